"""Why: the policies that decided, the very part that failed, and the values it looked at.

Rules kept here:

- Every outcome shown is Cedar's own answer to that part, asked alone; which parts were asked at all follows from their
  order (see ``conjuncts``).
- The values shown are those of the facts the decision rests on, and of nothing newer.
- Whoever is shown an explanation may read policy: that is for the caller to have decided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from licet_engine.decide.bundle import RESERVED_IDS, request_keys, scope_keys
from licet_engine.decide.conjuncts import SLOTS, Clause, Outcome, Path, Probes, clauses, paths, resolve, value_text
from licet_engine.decide.decision import Decision, decide, query_of
from licet_engine.decide.source import expression_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from licet_engine.decide.bundle import CompiledBundle, Policy
    from licet_engine.decide.decision import Request
    from licet_engine.decide.entities import FactSet, UidKey
    from licet_engine.decide.source import Expression

Kind = Literal["allowed", "forbidden", "error", "no-permit", "invalid"]

NEAREST = 3
# So many permits are asked at most to find the nearest; those whose scope fits best come first.
_MAX_CANDIDATES = 200


@dataclass(frozen=True, slots=True)
class Value:
    """What stood at one place that a part reads.

    Attributes:
        path: Such as ``resource.restrictions.residency``.
        found: Whether anything stood there.
        value: In Cedar's JSON form; None if nothing did.
    """

    path: str
    found: bool
    value: Any

    def __str__(self) -> str:
        return f"{self.path} = {value_text(self.value)}" if self.found else f"{self.path} is absent"

    def to_json(self) -> dict[str, Any]:
        """For an answer."""
        return {"path": self.path, "found": self.found, "value": self.value, "text": str(self)}


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a clause, or one constraint of a scope.

    Attributes:
        source: As written in Cedar.
        outcome: Of the source as written; ``not-reached`` if Cedar had stopped before it.
        supports: Whether, asked alone, it is as the policy needs it to apply.
        values: What it looked at.
        message: What Cedar said, if it erred.
    """

    source: str
    outcome: Literal["true", "false", "error", "not-reached"]
    supports: bool
    values: tuple[Value, ...] = ()
    message: str | None = None

    def __str__(self) -> str:
        text = (
            f"`{self.source}` is {self.outcome}" if self.outcome != "error" else f"`{self.source}` errs: {self.message}"
        )
        return text + (f" ({', '.join(map(str, self.values))})" if self.values else "")

    def to_json(self) -> dict[str, Any]:
        """For an answer."""
        return {
            "source": self.source,
            "outcome": self.outcome,
            "supports": self.supports,
            "values": [value.to_json() for value in self.values],
            "message": self.message,
            "text": str(self),
        }


@dataclass(frozen=True, slots=True)
class ClauseReport:
    """One ``when`` or ``unless`` of a policy, with the outcome of each of its parts in order."""

    kind: Literal["when", "unless"]
    joiner: Literal["and", "or"]
    outcome: Literal["true", "false", "error", "not-reached"]
    parts: tuple[Part, ...]

    def to_json(self) -> dict[str, Any]:
        """For an answer."""
        return {
            "kind": self.kind,
            "joiner": self.joiner,
            "outcome": self.outcome,
            "parts": [part.to_json() for part in self.parts],
        }


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """One policy against one request.

    Attributes:
        id: Its id.
        effect: ``permit`` or ``forbid``.
        mode: ``enforce`` or ``observe``.
        source: ``guardrail``, ``role``, ``tenant`` or ``pack:<name>``.
        outcome: ``true`` if it applied, ``false`` if not, ``error``.
        annotations: Its title, advice, requires, control, severity, owner and whatever else it bears.
        scope: Its constraints on principal, action and resource.
        clauses: Its conditions in order.
        missing: How many constraints and parts would have to be otherwise for it to apply.
    """

    id: str
    effect: str
    mode: str
    source: str
    outcome: Outcome
    annotations: Mapping[str, str]
    scope: tuple[Part, ...]
    clauses: tuple[ClauseReport, ...]
    missing: int

    @property
    def requires(self) -> tuple[str, ...]:
        """The obtainable facts it names, such as ``approval:model-risk``."""
        return tuple(word.strip() for word in self.annotations.get("requires", "").split(",") if word.strip())

    @property
    def failing(self) -> tuple[Part, ...]:
        """What of it failed: for a permit why it did not apply, for a forbid why its exception did not."""
        if self.effect == "permit":
            parts = (part for clause in self.clauses for part in clause.parts)
            return tuple(part for part in (*self.scope, *parts) if not part.supports)
        exceptions = (part for clause in self.clauses if clause.kind == "unless" for part in clause.parts)
        return tuple(part for part in exceptions if part.outcome in ("false", "error"))

    def to_json(self) -> dict[str, Any]:
        """For an answer."""
        named = ("title", "advice", "control", "severity", "owner")
        return {
            "id": self.id,
            "effect": self.effect,
            "mode": self.mode,
            "source": self.source,
            "outcome": self.outcome,
            **{name: self.annotations.get(name) for name in named},
            "requires": list(self.requires),
            "scope": [part.to_json() for part in self.scope],
            "clauses": [clause.to_json() for clause in self.clauses],
            "failing": [part.to_json() for part in self.failing],
            "missing": self.missing,
        }


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a request is decided as it is.

    Attributes:
        decision: The decision.
        kind: Whether permits allowed it, forbids denied it, a policy erred, no permit applied, or it was no valid request.
        deciding: The policies that decided, erring ones among them, in the order of the bundle.
        nearest: Where no permit applied, the permits that were nearest to it.
        observed: The policies in observe mode that would have denied.
        role_permits: Whether the scope of any permit on the action fits the principal; if not, no fact would do.
        message: What was wrong with the request or the facts, if that was it.
    """

    decision: Decision
    kind: Kind
    deciding: tuple[PolicyReport, ...] = ()
    nearest: tuple[PolicyReport, ...] = ()
    observed: tuple[PolicyReport, ...] = ()
    role_permits: bool = True
    message: str | None = None

    @property
    def requires(self) -> tuple[str, ...]:
        """Every obtainable fact that a deciding policy names, each once."""
        return tuple(dict.fromkeys(word for report in self.deciding for word in report.requires))

    def to_json(self) -> dict[str, Any]:
        """For an answer to who may read policy."""
        return {
            **self.decision.to_json(),
            "kind": self.kind,
            "deciding": [report.to_json() for report in self.deciding],
            "nearest": [report.to_json() for report in self.nearest],
            "watched": [report.to_json() for report in self.observed],
            "requires": list(self.requires),
            "role_permits": self.role_permits,
            "message": self.message,
        }


def explain(compiled: CompiledBundle, request: Request, facts: FactSet) -> Explanation:
    """Explain the decision on a request.

    Args:
        compiled: The policies it was decided by.
        request: What was asked.
        facts: What it was decided on.

    Returns:
        The decision again, with its reasons in full.
    """
    decision = decide(compiled, request, facts, remember=False)
    if RESERVED_IDS.intersection(decision.errors):
        return Explanation(decision, "invalid", message="; ".join(text for _, text in decision.messages))
    by_id = compiled.policies_by_id
    deciding = sorted((by_id[name] for name in {*decision.reasons, *decision.errors}), key=lambda p: p.ordinal)
    observed = [by_id[name] for name in decision.observed]
    if decision.errors:
        kind: Kind = "error"
    elif decision.allowed:
        kind = "allowed"
    else:
        kind = "forbidden" if deciding else "no-permit"
    nearby = [] if kind != "no-permit" else _candidates(compiled, request, facts)
    witness = _Witness(compiled, request, facts, [*deciding, *observed, *nearby])
    nearest = sorted((witness.report(policy) for policy in nearby), key=lambda r: (r.missing, -_supported(r)))[:NEAREST]
    return Explanation(
        decision=decision,
        kind=kind,
        deciding=tuple(witness.report(policy) for policy in deciding),
        nearest=tuple(nearest),
        observed=tuple(witness.report(policy) for policy in observed),
        role_permits=_fits_principal(compiled, request, facts),
    )


def reports(
    compiled: CompiledBundle, request: Request, facts: FactSet, policies: Sequence[Policy]
) -> tuple[PolicyReport, ...]:
    """Take policies apart against a request, whether or not they had a say on it.

    Args:
        compiled: The bundle they belong to.
        request: What is asked; one that can be evaluated.
        facts: What it is asked on, without a problem.
        policies: Which.
    """
    witness = _Witness(compiled, request, facts, policies)
    return tuple(witness.report(policy) for policy in policies)


def _candidates(compiled: CompiledBundle, request: Request, facts: FactSet) -> list[Policy]:
    """The permits on the action, those whose scope fits better first, no more than can be asked."""
    met = {
        slot: set(request_keys(uid, facts.ancestors(uid)))
        for slot, uid in (("principal", request.principal.key), ("resource", request.resource.key))
    }

    def misfits(policy: Policy) -> int:
        return sum(met[slot].isdisjoint(scope_keys(policy.ast[slot])) for slot in met)

    return sorted(_permits(compiled, request), key=misfits)[:_MAX_CANDIDATES]


def _permits(compiled: CompiledBundle, request: Request) -> list[Policy]:
    """The permits on the action."""
    return [p for p in compiled.on_action(request.action_key) if p.effect == "permit" and p.mode == "enforce"]


def _fits_principal(compiled: CompiledBundle, request: Request, facts: FactSet) -> bool:
    """Whether the scope of any permit on the action is for this principal."""
    uid = request.principal.key
    met = set(request_keys(uid, facts.ancestors(uid)))
    return any(not met.isdisjoint(scope_keys(policy.ast["principal"])) for policy in _permits(compiled, request))


def _supported(report: PolicyReport) -> int:
    parts = (part for clause in report.clauses for part in clause.parts)
    return sum(part.supports for part in (*report.scope, *parts))


class _Witness:
    """Reports on policies against one request, from one evaluation of all of their parts."""

    def __init__(self, compiled: CompiledBundle, request: Request, facts: FactSet, policies: Sequence[Policy]) -> None:
        self._request = request
        self._facts = facts
        self._roots: Mapping[str, UidKey] = {
            "principal": request.principal.key,
            "action": request.action_key,
            "resource": request.resource.key,
        }
        handle = compiled.entities.get(facts, remember=False)
        self._probes = Probes(policies, query_of(request), handle, compiled.schema)

    def report(self, policy: Policy) -> PolicyReport:
        """One policy, taken apart."""
        scope = tuple(self._constraint(policy, slot) for slot in SLOTS if policy.ast[slot]["op"] != "All")
        reached = all(part.supports for part in scope)
        reports: list[ClauseReport] = []
        missing = sum(not part.supports for part in scope)
        for number, (clause, outcomes) in enumerate(zip(clauses(policy.ast), self._probes.parts(policy), strict=True)):
            folded, asked = clause.fold(outcomes)
            needed: Outcome = "true" if clause.kind == "when" else "false"
            parts = tuple(
                self._part(policy, (number, i), part, outcome, needed=needed, reached=reached and i < asked)
                for i, (part, outcome) in enumerate(zip(clause.parts, outcomes, strict=True))
            )
            reports.append(ClauseReport(clause.kind, clause.joiner, folded if reached else "not-reached", parts))
            missing += _missing(clause, folded, needed, parts)
            reached = reached and folded == needed
        return PolicyReport(
            id=policy.id,
            effect=policy.effect,
            mode=policy.mode,
            source=policy.source,
            outcome=self._probes.outcome(policy),
            annotations=policy.annotations,
            scope=scope,
            clauses=tuple(reports),
            missing=missing,
        )

    def _constraint(self, policy: Policy, slot: str) -> Part:
        holds = self._probes.slot(policy, slot)
        uid = self._roots[slot]
        values = [self._value(Path(slot, ()))]
        if slot != "action" and "in" in (policy.ast[slot]["op"], *policy.ast[slot]):
            inside = [{"__entity": {"type": t, "id": i}} for t, i in self._facts.ancestors(uid) if (t, i) != uid]
            values.append(Value(f"what {slot} is in", found=True, value=inside))
        return Part(_scope_text(slot, policy.ast[slot]), "true" if holds else "false", holds, tuple(values))

    def _part(
        self,
        policy: Policy,
        where: tuple[int, int],
        part: Expression,
        outcome: Outcome,
        *,
        needed: Outcome,
        reached: bool,
    ) -> Part:
        return Part(
            source=expression_text(part),
            outcome=outcome if reached else "not-reached",
            supports=outcome == needed,
            values=tuple(self._value(path) for path in paths(part)),
            message=self._probes.message(policy, *where) if reached else None,
        )

    def _value(self, path: Path) -> Value:
        found, value = resolve(path, self._roots, self._request.context, self._facts)
        return Value(str(path), found, value)


def _missing(clause: Clause, folded: Outcome, needed: Outcome, parts: Sequence[Part]) -> int:
    """How many parts would have to be otherwise for a clause to be as its policy needs it."""
    if folded == needed:
        return 0
    # A `when` between `&&` and an `unless` between `||` need every part; the other two need any one.
    needs_all = (clause.joiner == "and") == (clause.kind == "when")
    return max(1, sum(not part.supports for part in parts)) if needs_all else 1


def _scope_text(slot: str, constraint: Mapping[str, Any]) -> str:
    def uid(entity: Mapping[str, str]) -> str:
        return expression_text({"Value": {"__entity": entity}})

    if constraint["op"] == "is":
        inside = constraint.get("in")
        return f"{slot} is {constraint['entity_type']}" + (f" in {uid(inside['entity'])}" if inside else "")
    if "entities" in constraint:
        return f"{slot} in [{', '.join(map(uid, constraint['entities']))}]"
    return f"{slot} {constraint['op']} {uid(constraint['entity'])}"
