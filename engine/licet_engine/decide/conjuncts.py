"""A policy taken apart into the parts it asks in order, and each part asked alone.

Rules kept here:

- A condition is split only where Cedar itself stops early: at the ``&&`` (or the ``||``) it is made of at the top. Asked in
  order and folded with the same rule of stopping, the parts give Cedar's own outcome: holds, does not hold, errs. The
  tests hold this to Cedar's answer for every policy of its corpus.
- Every part is asked as a permit of its own, all in one set, by Cedar: no part is evaluated by us.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cedarpy import _internal

from licet_engine.decide.decision import Evaluation, evaluate
from licet_engine.decide.source import Expression, literal_text

if TYPE_CHECKING:
    from licet_engine.decide.bundle import Policy
    from licet_engine.decide.entities import FactSet, UidKey

Outcome = Literal["true", "false", "error"]
Joiner = Literal["and", "or"]
SLOTS = ("principal", "action", "resource")

_ALL: Mapping[str, Any] = {"op": "All"}


@dataclass(frozen=True, slots=True)
class Clause:
    """One ``when`` or ``unless``.

    Attributes:
        kind: Which of the two.
        joiner: Whether its parts stood between ``&&`` or between ``||``.
        parts: In the order in which Cedar asks them; at least one.
    """

    kind: Literal["when", "unless"]
    joiner: Joiner
    parts: tuple[Expression, ...]

    def fold(self, outcomes: Sequence[Outcome]) -> tuple[Outcome, int]:
        """What the written condition comes to, and how many of its parts were asked to tell.

        Args:
            outcomes: Of each part, asked alone.
        """
        stops: Outcome = "false" if self.joiner == "and" else "true"
        for asked, outcome in enumerate(outcomes, start=1):
            if outcome in (stops, "error"):
                return outcome, asked
        return ("true" if self.joiner == "and" else "false"), len(outcomes)


@dataclass(frozen=True, slots=True)
class Path:
    """A place that a part reads: ``resource.restrictions.residency``, or ``principal`` itself."""

    root: str
    attributes: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join((self.root, *self.attributes))


def clauses(ast: Mapping[str, Any]) -> tuple[Clause, ...]:
    """The conditions of a policy in Cedar's JSON form, in order."""
    return tuple(_clause(condition["kind"], condition["body"]) for condition in ast["conditions"])


def _clause(kind: Literal["when", "unless"], body: Expression) -> Clause:
    joiner: Joiner = "or" if "||" in body else "and"
    return Clause(kind, joiner, tuple(_flat("||" if joiner == "or" else "&&", body)))


def _flat(op: str, body: Expression) -> Iterator[Expression]:
    if op in body:
        yield from _flat(op, body[op]["left"])
        yield from _flat(op, body[op]["right"])
    else:
        yield body


def fold_policy(taken_apart: Sequence[Clause], outcomes: Sequence[Sequence[Outcome]]) -> tuple[Outcome, int]:
    """Whether the conditions of a policy hold, and how many of its clauses were asked to tell."""
    for asked, (clause, answers) in enumerate(zip(taken_apart, outcomes, strict=True), start=1):
        outcome, _ = clause.fold(answers)
        if outcome == "error":
            return "error", asked
        if (outcome == "true") != (clause.kind == "when"):
            return "false", asked
    return "true", len(taken_apart)


class Probes:
    """The answers to every part and every scope constraint of some policies, from one evaluation."""

    __slots__ = ("_evaluation", "_holding")

    def __init__(
        self,
        policies: Iterable[Policy],
        query: dict[str, Any],
        entities: _internal.Entities,
        schema: _internal.Schema,
    ) -> None:
        probes: dict[str, Any] = {}
        for policy in policies:
            for slot in SLOTS:
                probes[f"{policy.ordinal}.{slot}"] = _permit(**{slot: policy.ast[slot]})
            for i, clause in enumerate(clauses(policy.ast)):
                for j, part in enumerate(clause.parts):
                    probes[f"{policy.ordinal}.{i}.{j}"] = _permit(part)
        document = json.dumps({"templates": {}, "staticPolicies": probes, "templateLinks": []})
        self._evaluation: Evaluation = evaluate(_internal.PolicySet.from_json_str(document), query, entities, schema)
        self._holding = frozenset(self._evaluation.reasons)

    def slot(self, policy: Policy, slot: str) -> bool:
        """Whether the request meets the policy's scope in one slot."""
        return f"{policy.ordinal}.{slot}" in self._holding

    def parts(self, policy: Policy) -> list[list[Outcome]]:
        """The outcome of each part of each clause, asked alone."""
        return [
            [self._outcome(f"{policy.ordinal}.{i}.{j}") for j in range(len(clause.parts))]
            for i, clause in enumerate(clauses(policy.ast))
        ]

    def message(self, policy: Policy, clause: int, part: int) -> str | None:
        """What Cedar said of a part that errs."""
        return self._evaluation.errors.get(f"{policy.ordinal}.{clause}.{part}")

    def outcome(self, policy: Policy) -> Outcome:
        """What the whole policy comes to: ``true`` if it applies, as Cedar would say."""
        # Scopes never err, and Cedar asks them first.
        if not all(self.slot(policy, slot) for slot in SLOTS):
            return "false"
        return fold_policy(clauses(policy.ast), self.parts(policy))[0]

    def _outcome(self, probe: str) -> Outcome:
        if probe in self._evaluation.errors:
            return "error"
        return "true" if probe in self._holding else "false"


def _permit(part: Expression | None = None, **scope: Any) -> dict[str, Any]:
    return {
        "effect": "permit",
        **{slot: scope.get(slot, _ALL) for slot in SLOTS},
        "conditions": [] if part is None else [{"kind": "when", "body": part}],
    }


def paths(expression: Expression) -> list[Path]:
    """The places an expression reads, each once, as deep as it follows them, in the order of the text."""
    found: dict[Path, None] = {}
    _collect(expression, found)
    return list(found)


def _collect(expression: Any, found: dict[Path, None]) -> None:
    if isinstance(expression, list):
        for item in expression:
            _collect(item, found)
    elif isinstance(expression, Mapping):
        if (path := _path(expression)) is not None:
            found[path] = None
        elif "Value" not in expression:
            for item in expression.values():
                _collect(item, found)


def _path(expression: Mapping[str, Any]) -> Path | None:
    if "Var" in expression:
        return Path(expression["Var"], ())
    step = expression.get(".") or expression.get("has")
    if not isinstance(step, Mapping) or not isinstance(step.get("left"), Mapping):
        return None
    before = _path(step["left"])
    return None if before is None else Path(before.root, (*before.attributes, step["attr"]))


def resolve(path: Path, roots: Mapping[str, UidKey], context: Mapping[str, Any], facts: FactSet) -> tuple[bool, Any]:
    """What stands at a path.

    Args:
        path: Where.
        roots: The entities that principal, action and resource are.
        context: Of the request.
        facts: Which the request was decided on.

    Returns:
        Whether anything stands there, and what, in Cedar's JSON form.
    """
    value: Any = context if path.root == "context" else _reference(roots[path.root])
    for attribute in path.attributes:
        if isinstance(value, Mapping) and attribute in value and "__entity" not in value:
            value = value[attribute]
            continue
        uid = _entity(value)
        fact = None if uid is None else facts.get(uid)
        if fact is None or attribute not in fact.entity["attrs"]:
            return False, None
        value = fact.entity["attrs"][attribute]
    return True, value


def value_text(value: Any) -> str:
    """A value of facts or context, as a person would write it in Cedar."""
    return literal_text(_explicit(value))


def _reference(uid: UidKey) -> dict[str, Any]:
    return {"__entity": {"type": uid[0], "id": uid[1]}}


def _entity(value: Any) -> UidKey | None:
    if not isinstance(value, Mapping):
        return None
    inner = value.get("__entity", value)
    if (
        isinstance(inner, Mapping)
        and inner.keys() == {"type", "id"}
        and all(isinstance(v, str) for v in inner.values())
    ):
        return (inner["type"], inner["id"])
    return None


def _explicit(value: Any) -> Any:
    # Under a schema Cedar accepts an entity without its escape; written out, it should read as an entity all the same.
    if isinstance(value, list):
        return [_explicit(item) for item in value]
    if isinstance(value, Mapping):
        if (uid := _entity(value)) is not None:
            return _reference(uid)
        if value.keys() != {"__extn"}:
            return {key: _explicit(item) for key, item in value.items()}
    return value
