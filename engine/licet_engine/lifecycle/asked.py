"""A question and its answer, as values; and the form that a question must have.

Rules kept here:

- Form comes before everything but authentication: what has not the form that its verb takes is nobody's question, and is not logged.
- What is told of what is unknown or foreign is a number and a no.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from licet_engine.decide.decision import Decision
from licet_engine.domain.errors import InvalidInput, LicetError
from licet_engine.domain.refs import Ref, parse_bundle_ref, parse_ref, parse_tenant
from licet_engine.lifecycle.verbs import WORKLOAD, Body, RefForm, Verb, Who
from licet_engine.lifecycle.wording import sentence

_MAX_CLAIMS: Final = 64
_MAX_CLAIM_CHARS: Final = 1024
_MAX_KEY_CHARS: Final = 64


@dataclass(frozen=True, slots=True)
class Enqueued:
    """An accepted operation, handed to the workflow engine in the decision's own transaction."""

    tenant: str
    operation: str
    action: str
    traceparent: str = ""
    """The trace that it belongs to, if there is one."""
    needs_devices: bool = False
    """Whether it may have to wait for devices, and so waits among its like."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered to a question, once its decision is durable.

    Attributes:
        decision_id: Under which the decision is recorded.
        decision: The decision.
        policies: For who may read policy: the deciding policies' id, title, advice and what they require.
        operation: Identifier of the accepted operation, or None.
        tenant: In whose log the decision stands.
        result: What an allow answers at once.
        secrets: Answered once and stored nowhere.
        is_plain: Whether nothing but the decision's id and a no may be told.
        conflict: Why it cannot be done, or could not be, although it is allowed.
    """

    decision_id: str
    decision: Decision
    tenant: str
    policies: tuple[Mapping[str, Any], ...] = ()
    operation: str | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    secrets: Mapping[str, Any] = field(default_factory=dict)
    is_plain: bool = False
    conflict: LicetError | None = None

    def decision_json(self) -> dict[str, Any]:
        """The decision as the API tells it."""
        told: dict[str, Any] = {"id": self.decision_id, "decision": self.decision.word}
        if not self.is_plain:
            told |= {
                "policies": [dict(policy) for policy in self.policies],
                "errors": list(self.decision.errors),
                "observed": list(self.decision.observed),
            }
        return told

    def conflict_json(self) -> dict[str, str] | None:
        """Why it cannot be done although it is allowed, as the API tells it to who only asks."""
        return None if self.conflict is None else {"code": self.conflict.code, "detail": self.conflict.message}

    def to_json(self) -> dict[str, Any]:
        """The whole answer, with its secrets."""
        operation = None
        if self.operation is not None:
            operation = {"id": self.operation, "tenant": self.tenant, "state": "accepted"}
        return {
            "decision": self.decision_json(),
            "operation": operation,
            "result": {**self.result, **self.secrets},
        }


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as it was sent, its form already verified.

    Attributes:
        verb: What is asked for.
        ref: Of which resource.
        sent: The resource as it was written.
        body: The parameters.
        claimed: What the asker asserts; never a fact.
        is_dry: Whether only the decision is wanted.
        key: Idempotency key, or empty.
        context: Facts of the platform about the question itself, such as whether a decision is the asker's own.
        subject: On whose behalf it is asked, if not the asker's own.
        opens: Whether an allow opens a session: its record names an operation, of which no worker is told.
    """

    verb: Verb
    ref: Ref
    sent: str
    body: Body
    claimed: tuple[tuple[str, str], ...] = ()
    is_dry: bool = False
    key: str = ""
    context: tuple[tuple[str, Any], ...] = ()
    subject: Who | None = None
    opens: bool = False


def parse_asked(
    verb: Verb,
    resource: Any,
    parameters: Any,
    *,
    claimed: Any = None,
    is_dry: bool = False,
    key: str = "",
    subject: Who | None = None,
) -> Asked:
    """Verify the form of a question.

    Raises:
        InvalidInput: What was sent has not the form that the verb takes.
    """
    if not isinstance(resource, str):
        fault = "is missing: it is" if resource is None else "must be"
        raise InvalidInput(f"{verb.action}: resource {fault} text of the form {verb.form.value}")
    try:
        # The strict form of JSON: a list stays a list and a number a number; what is undeclared is refused.
        body = verb.body.model_validate({} if parameters is None else parameters)
    except ValidationError as error:
        raise InvalidInput(f"{verb.action}: {sentence(error, verb.body)}") from error
    if _has_nul(body.model_dump()):
        raise InvalidInput(f"{verb.action}: a text has a NUL character, which no database keeps")
    if len(key) > _MAX_KEY_CHARS or not key.isascii() or not key.isprintable():
        raise InvalidInput(f"an Idempotency-Key has at most {_MAX_KEY_CHARS} printable ASCII characters")
    return Asked(
        verb=verb,
        ref=_parse_ref(verb.form, resource),
        sent=resource,
        body=body,
        claimed=_parse_claims(claimed),
        is_dry=is_dry,
        key=key,
        subject=subject,
    )


def _has_nul(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_nul(part) for pair in value.items() for part in pair)
    if isinstance(value, (list, tuple)):
        return any(map(_has_nul, value))
    return isinstance(value, str) and "\0" in value


def _parse_ref(form: RefForm, text: str) -> Ref:
    if form is RefForm.TENANT:
        return Ref(parse_tenant(text), "")
    if form is RefForm.BUNDLE:
        return parse_bundle_ref(text)
    if form is RefForm.NAME_OR_VERSION:
        return parse_ref(text, versioned="@" in text)
    return parse_ref(text, versioned=form is RefForm.VERSION)


def _parse_claims(claimed: Any) -> tuple[tuple[str, str], ...]:
    if claimed is None:
        return ()
    if not isinstance(claimed, Mapping) or len(claimed) > _MAX_CLAIMS:
        raise InvalidInput(f"claimed must be an object of at most {_MAX_CLAIMS} texts")
    for name, value in claimed.items():
        if not isinstance(name, str) or not isinstance(value, str) or len(name) + len(value) > _MAX_CLAIM_CHARS:
            raise InvalidInput(f"a claim is a text under a name, both together at most {_MAX_CLAIM_CHARS} characters")
        if name.startswith(WORKLOAD):
            raise InvalidInput(f"claims under {WORKLOAD}* are the service's own, of what an ID token was exchanged for")
    return tuple(sorted(claimed.items()))
