"""May they: one request, the facts, the policies in force, and one answer.

Rules kept here:

- Errors mean no. Cedar skips a policy that errs, even a forbid; here the decision is a deny and names the policy.
- A deny is a value. So is what a caller got wrong: an action the schema does not know, a context of the wrong shape,
  facts that contradict each other. No data of a caller raises.
- The schema is given to Cedar twice, once when facts are parsed and once with the request.
- The context that is evaluated is the canonical JSON that is recorded, byte for byte.
- Which policies have a say follows from bundle, request and facts alone, so that a replay leaves out the same.
- What is in observe mode is evaluated apart and changes nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from cedarpy import _internal

from licet_attestations import canonical
from licet_attestations.errors import FormatError
from licet_engine.decide.errors import FactError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from licet_engine.decide.bundle import CompiledBundle, Slice
    from licet_engine.decide.entities import EntityUid, FactSet, UidKey

NO_PERMIT = "(no permit)"
"""Stands for the policy where a deny came from no forbid: nothing permitted it."""
ERROR_REQUEST = "request"
ERROR_FACTS = "facts"
ERROR_ENGINE = "engine"

_NAMESPACED = re.compile(r"((?:[A-Za-z_][A-Za-z0-9_]*::)+Action)::(.+)", re.DOTALL)
_POLICY_ERROR = "error while evaluating policy `"


def _is_text(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Request:
    """May ``principal`` do ``action`` to ``resource``?

    Attributes:
        principal: Who asks.
        action: The id of an action of the schema, such as ``model.promote``; one that a tenant's extension of the schema declares
            is named with its namespace, such as ``Acme::Action::vendor.onboard``.
        resource: What it is asked about.
        context: The rest of what the policies may look at. Not to be changed afterwards.
        context_json: Its canonical JSON: what is evaluated and recorded; None where there is a ``problem``.
        problem: Why this cannot be put to policy at all, or None.
    """

    principal: EntityUid
    action: str
    resource: EntityUid
    context: Mapping[str, Any]
    context_json: bytes | None = field(init=False, repr=False, compare=False)
    problem: str | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        data: bytes | None = None
        problem: str | None = None
        texts = (self.principal.type, self.principal.id, self.action, self.resource.type, self.resource.id)
        if not all(map(_is_text, texts)):
            problem = "a name holds a lone surrogate, which is no text"
        else:
            try:
                data = canonical.dumps(self.context if type(self.context) is dict else dict(self.context))
            except (FormatError, TypeError, ValueError, RecursionError) as error:
                problem = f"the context has no canonical JSON: {error}"
        object.__setattr__(self, "context_json", data)
        object.__setattr__(self, "problem", problem)

    @property
    def action_key(self) -> UidKey:
        """Type and id of the action. No action of the platform's has an id that reads like a namespace."""
        match = None if "::" not in self.action else _NAMESPACED.fullmatch(self.action)
        return ("Action", self.action) if match is None else (match[1], match[2])

    def to_json(self) -> dict[str, Any]:
        """As it was asked."""
        return {
            "principal": self.principal.to_json(),
            "action": self.action,
            "resource": self.resource.to_json(),
            "context": None if self.context_json is None else dict(self.context),
        }


@dataclass(frozen=True, slots=True)
class Decision:
    """An answer.

    Attributes:
        allowed: Yes or no.
        reasons: Ids of the policies that decided, sorted: the permits of an allow, the forbids of a deny.
        errors: Ids of the policies that erred, sorted; or ``request``, ``facts``, ``engine``. Any makes it a deny.
        observed: Ids of the policies in observe mode that would have denied, sorted.
        messages: For each that erred, what Cedar said of it.
    """

    allowed: bool
    reasons: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    observed: tuple[str, ...] = ()
    messages: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    @property
    def word(self) -> str:
        """``allow`` or ``deny``."""
        return "allow" if self.allowed else "deny"

    @property
    def because(self) -> tuple[str, ...]:
        """What decided: the policies that erred, else those that permitted or forbade, else that none permitted."""
        return self.errors or self.reasons or (NO_PERMIT,)

    def to_json(self) -> dict[str, Any]:
        """For an answer to who may read policy."""
        return {
            "decision": self.word,
            "reasons": list(self.reasons),
            "errors": list(self.errors),
            "observed": list(self.observed),
            "messages": dict(self.messages),
        }


class _Diagnostics(msgspec.Struct):
    errors: list[str]
    reason: list[str] = []


class _Answer(msgspec.Struct):
    decision: str
    diagnostics: _Diagnostics


_ANSWER = msgspec.json.Decoder(_Answer)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What Cedar itself said, before errors were made to mean no.

    Attributes:
        allowed: Cedar's decision.
        reasons: Ids of the determining policies, unsorted.
        errors: Message by the id of the policy that erred, or by ``request`` or ``engine``.
    """

    allowed: bool
    reasons: list[str]
    errors: dict[str, str]


def evaluate(
    policies: _internal.PolicySet,
    query: dict[str, Any],
    entities: _internal.Entities,
    schema: _internal.Schema,
) -> Evaluation:
    """Put one request to one policy set.

    NOTE: this calls the extension beneath ``cedarpy.is_authorized``. The wrapper copies the request, encodes the context
    (we hold its canonical JSON already), decodes the answer with ``json`` and wraps it in objects: with it a decision
    takes about a tenth longer (``bench/decide.py`` measures both).

    Args:
        policies: Each under its own id.
        query: Principal, action and resource as type and id, the context as JSON text.
        entities: Parsed against ``schema``.
        schema: Checks the request.
    """
    try:
        (text,) = _internal.is_authorized_batch([query], policies, entities, schema, False)  # noqa: FBT003  # Positional there.
        answer = _ANSWER.decode(text)
    except Exception as error:  # noqa: BLE001  # Whatever goes wrong in here means no; an exception might mean anything.
        return Evaluation(allowed=False, reasons=[], errors={ERROR_ENGINE: f"{type(error).__name__}: {error}"})
    errors = answer.diagnostics.errors
    if answer.decision == "NoDecision":
        return Evaluation(allowed=False, reasons=[], errors={ERROR_REQUEST: "; ".join(errors)})
    by_id: dict[str, str] = {}
    for message in errors:
        # Ids hold no backtick, so the first one ends it.
        head, found, rest = message.removeprefix(_POLICY_ERROR).partition("`: ")
        by_id[head if found and message.startswith(_POLICY_ERROR) else ERROR_ENGINE] = rest or message
    return Evaluation(allowed=answer.decision == "Allow", reasons=answer.diagnostics.reason, errors=by_id)


def query_of(request: Request) -> dict[str, Any]:
    """A request without a ``problem``, as Cedar takes it."""
    kind, action_id = request.action_key
    return {
        "principal": request.principal.to_json(),
        "action": {"type": kind, "id": action_id},
        "resource": request.resource.to_json(),
        "context": (request.context_json or b"").decode(),
    }


def decide(compiled: CompiledBundle, request: Request, facts: FactSet, *, remember: bool = True) -> Decision:
    """Decide a request by the policies in force.

    Args:
        compiled: The policies in force for the tenant.
        request: What is asked.
        facts: What is true: at least principal, resource and whatever these refer to.
        remember: False for facts that are only supposed, so that they push nothing real out of the caches.

    Returns:
        The decision; a deny, with what is wrong in its errors, where request or facts cannot be evaluated.
    """
    return _decide(compiled, request, facts, sliced=True, remember=remember)


def decide_unsliced(compiled: CompiledBundle, request: Request, facts: FactSet) -> Decision:
    """Decide by evaluating every policy of the bundle: slow, and the measure of ``decide``."""
    return _decide(compiled, request, facts, sliced=False, remember=False)


def _decide(compiled: CompiledBundle, request: Request, facts: FactSet, *, sliced: bool, remember: bool) -> Decision:
    if request.context_json is None:
        return _refused(ERROR_REQUEST, request.problem or "")
    if facts.problem is not None:
        return _refused(ERROR_FACTS, facts.problem)
    try:
        entities = compiled.entities.get(facts, remember=remember)
    except FactError as error:
        return _refused(ERROR_FACTS, str(error))
    principal, action, resource = request.principal.key, request.action_key, request.resource.key
    alone = compiled.is_platform_alone(principal, facts)
    chosen: Slice = (
        compiled.slice_for(
            principal, action, resource, facts.ancestors(principal), facts.ancestors(resource), platform_alone=alone
        )
        if sliced
        else compiled.whole(action, platform_alone=alone)
    )
    query = query_of(request)
    enforced = evaluate(chosen.enforced, query, entities, compiled.schema)
    observed: tuple[str, ...] = ()
    if chosen.observed is not None and ERROR_REQUEST not in enforced.errors:
        watched = evaluate(chosen.observed, query, entities, compiled.schema)
        # A permit that held would have denied nobody; a policy of either effect that erred would have.
        forbids = () if watched.allowed else watched.reasons
        observed = tuple(sorted({*forbids, *watched.errors}))
    if enforced.errors:
        # A permit does not decide a deny: where Cedar would have allowed, the errors alone are why not.
        return Decision(
            allowed=False,
            reasons=() if enforced.allowed else tuple(sorted(enforced.reasons)),
            errors=tuple(sorted(enforced.errors)),
            observed=observed,
            messages=tuple(sorted(enforced.errors.items())),
        )
    return Decision(allowed=enforced.allowed, reasons=tuple(sorted(enforced.reasons)), observed=observed)


def _refused(kind: str, message: str) -> Decision:
    return Decision(allowed=False, errors=(kind,), messages=((kind, message),))
