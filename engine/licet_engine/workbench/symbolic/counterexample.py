"""A request and its entities, read out of the solver's model, and asked of Cedar again before anybody sees them.

Rules kept:

- What is shown is complete: the request, every entity that it or another entity refers to, each with all its attributes,
  and a hierarchy that Cedar accepts.
- An entity outside of the footprint has no ancestors, whatever the model says: nothing encoded depends on them.
- Ids that no policy names are chosen anew, so that a reader can tell who is who. Cedar compares ids, within a type, and does
  nothing else with them.
- A counterexample counts only if Cedar itself, given the same policies and the schema, confirms it.

Source: the extractor of Cedar's symbolic compiler; see ADR 0018.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any, Final

import cedarpy

from licet_engine.workbench.symbolic.errors import UnsupportedError
from licet_engine.workbench.symbolic.extensions import address_text
from licet_engine.workbench.symbolic.logic import Logic, Term
from licet_engine.workbench.symbolic.stores import SymbolicStore
from licet_engine.workbench.symbolic.subjects import PolicySet, Property, SinglePolicy, Subject
from licet_engine.workbench.symbolic.types import (
    EntityType,
    ExtensionType,
    Primitive,
    RecordType,
    RequestEnvironment,
    Schema,
    SetType,
    Type,
)
from licet_engine.workbench.symbolic.values import Atom, Record, Value

__all__ = ["RECORDED", "Counterexample", "Evaluated", "evaluate", "extract", "has_wide_number", "violates"]

RECORDED: Final = 1 << 53
"""A number that a record holds is below this, and above its negative: canonical JSON has no others."""
_MAX_ENTITIES: Final = 1_000
_HALF: Final = 1 << 63


@dataclass(frozen=True)
class Counterexample:
    """A request of which a property does not hold.

    Attributes:
        principal, action, resource: ``{"type", "id"}`` each.
        context: Cedar's JSON.
        entities: Cedar's JSON, one object for each entity.
        left: What Cedar says of the property's left side: see ``Evaluated``.
        right: The same of its right side; None if it has none.
    """

    principal: Mapping[str, str]
    action: Mapping[str, str]
    resource: Mapping[str, str]
    context: Mapping[str, Any]
    entities: tuple[Mapping[str, Any], ...]
    left: Evaluated | None = None
    right: Evaluated | None = None

    def request(self) -> dict[str, Any]:
        """The request as Cedar takes it."""
        return {
            "principal": dict(self.principal),
            "action": dict(self.action),
            "resource": dict(self.resource),
            "context": dict(self.context),
        }

    def to_json(self) -> dict[str, Any]:
        """Everything that is needed to ask it again."""
        return {**self.request(), "entities": [dict(entity) for entity in self.entities]}


@dataclass(frozen=True)
class Evaluated:
    """What Cedar says of one subject.

    Attributes:
        holds: A policy is satisfied, or a set allows.
        reasons: Ids of the policies that decided.
        errors: Cedar's message for each policy that erred.
    """

    holds: bool
    reasons: tuple[str, ...]
    errors: tuple[str, ...]


class _Reader:
    """Reads values of one model."""

    def __init__(self, logic: Logic, store: SymbolicStore, solver: Any) -> None:
        self._logic = logic
        self._store = store
        self._solver = solver
        self._waiting: dict[tuple[str, str], Atom] = {}
        self._in_footprint: set[tuple[str, str]] = set()
        self._names: dict[tuple[str, str], str] = {}

    def read(self, environment: RequestEnvironment) -> Counterexample:
        principal, resource = (
            self._value(self._store.variable(slot))["__entity"] for slot in ("principal", "resource")
        )
        for entity in self._store.footprint:
            self._in_footprint.add(self._uid(self._entity(entity.type, self._solver.getValue(entity.term))))
        action = {"type": environment.action[0], "id": environment.action[1]}
        context = self._value(self._store.variable("context"))
        return Counterexample(principal, action, resource, context, tuple(self._entities()))

    def _entities(self) -> Iterator[dict[str, Any]]:
        done: set[tuple[str, str]] = set()
        while self._waiting.keys() - done:
            key = next(key for key in self._waiting if key not in done)
            done.add(key)
            if len(done) > _MAX_ENTITIES:
                raise UnsupportedError(f"the counterexample has more than {_MAX_ENTITIES} entities")
            # Actions and their groups are the schema's, and Cedar adds them itself.
            if key[0] in self._logic.schema.entities:
                yield self._described(key, self._waiting[key])

    def _described(self, key: tuple[str, str], entity: Atom) -> dict[str, Any]:
        info, store = self._logic.schema.entities[key[0]], self._store
        parents: list[dict[str, str]] = []
        if key in self._in_footprint:
            for kind in sorted(info.ancestors):
                above = self._value(Atom(SetType(EntityType(kind)), store.ancestors(entity, kind)))
                parents += [one["__entity"] for one in above]
        described = {
            "uid": {"type": key[0], "id": key[1]},
            "attrs": self._value(store.attributes(entity)[1]),
            "parents": parents,
        }
        if info.tags is not None:
            described["tags"] = {}
            for name in sorted(self._solver.getValue(store.tag_names(entity)).getSetValue(), key=str):
                value = store.tag(entity, name)[1]
                assert value is not None  # noqa: S101  # The type has tags.
                described["tags"][self._logic.text(name)] = self._value(value)
        return described

    def _value(self, value: Value) -> Any:
        if isinstance(value, Record):
            found = {}
            for name in value.names:
                field = value.get(name)
                if field is not None and self._solver.getValue(field.present).getBooleanValue():
                    found[name] = self._value(field.value)
            return found
        if not isinstance(value, Atom):
            raise UnsupportedError("a set that was written out stands in no entity")
        return self._constant(value.type, self._solver.getValue(value.term))

    def _constant(self, kind: Type, term: Term) -> Any:  # noqa: PLR0911  # One return for each type.
        match kind:
            case Primitive("Bool"):
                return term.getBooleanValue()
            case Primitive("Long"):
                return _signed(term)
            case Primitive("String"):
                return self._logic.text(term)
            case EntityType():
                return self._entity(kind, term)
            case ExtensionType(name):
                return {"__extn": _extension(name, term)}
            case SetType(element) if element is not None:
                return [self._constant(element, one) for one in sorted(_members(term), key=str)]
            case RecordType():
                return self._record(kind, term)
        raise UnsupportedError(f"a value of type {kind} cannot be read")

    def _record(self, kind: RecordType, term: Term) -> dict[str, Any]:
        found = {}
        for (name, attribute), part in zip(kind.attributes, list(term)[1:], strict=True):
            if attribute.required:
                found[name] = self._constant(attribute.type, part)
            elif part.getNumChildren() > 1:  # Of `some`; `null` is its constructor alone.
                found[name] = self._constant(attribute.type, part[1])
        return found

    def _entity(self, kind: Type, term: Term) -> dict[str, Any]:
        info = self._logic.schema.entities.get(str(kind))
        if info is not None and info.members is not None:
            name = info.members[int(str(term[0].getSymbol()).rpartition("#")[2])]
        else:
            name = self._readable(str(kind), self._logic.text(term))
        self._waiting.setdefault((str(kind), name), Atom(kind, term))
        return {"__entity": {"type": str(kind), "id": name}}

    def _readable(self, kind: str, name: str) -> str:
        named = self._logic.named
        if (kind, name) not in named and (kind, name) not in self._names:
            stem = kind.rpartition("::")[2].lower()
            taken = sum(own == kind for own, _ in self._names)
            self._names[kind, name] = next(
                new for number in count(taken + 1) if (kind, new := f"{stem}-{number}") not in named
            )
        return self._names.get((kind, name), name)

    @staticmethod
    def _uid(entity: Mapping[str, Any]) -> tuple[str, str]:
        return entity["__entity"]["type"], entity["__entity"]["id"]


def _members(term: Term) -> set[Term]:
    members: set[Term] = term.getSetValue()
    return members


def _signed(term: Term) -> int:
    value = int(term.getBitVectorValue(10))
    return value - 2 * _HALF if value >= _HALF else value


def _extension(name: str, term: Term) -> dict[str, Any]:
    if name == "ipaddr":
        numbers = tuple(int(part.getBitVectorValue(10)) for part in list(term)[1:])
        return {"fn": "ip", "arg": address_text(str(term[0].getSymbol()), numbers)}
    value = _signed(term)
    if name == "decimal":
        sign, whole, part = "-" if value < 0 else "", *divmod(abs(value), 10_000)
        return {"fn": "decimal", "arg": f"{sign}{whole}.{part:04d}"}
    span = {"fn": "duration", "arg": f"{value}ms"}
    if name == "duration":
        return span
    # Not every moment of 64 bits has a date of four digits of years; each is so long after 1970.
    return {"fn": "offset", "args": [{"__extn": {"fn": "datetime", "arg": "1970-01-01"}}, {"__extn": span}]}


def extract(logic: Logic, store: SymbolicStore, solver: Any, environment: RequestEnvironment) -> Counterexample:
    """Read the request and the entities of the solver's model.

    Raises:
        UnsupportedError: The model has a value that Cedar has not.
    """
    return _Reader(logic, store, solver).read(environment)


def has_wide_number(found: Counterexample) -> bool:
    """Whether some number of a request or its entities is one that no record can hold."""
    pending: list[Any] = [found.context, *found.entities]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            pending.extend(value.values())
        elif isinstance(value, list | tuple):
            pending.extend(value)
        elif isinstance(value, int) and abs(value) >= RECORDED:
            return True
    return False


def evaluate(subject: Subject, found: Counterexample, schema: Schema) -> Evaluated:
    """Ask Cedar what ``subject`` says of a request: the measure of the encoding, and independent of it."""
    if isinstance(subject, SinglePolicy):
        body = json.dumps({**subject.body, "effect": "permit"}, sort_keys=True)
        policies: tuple[tuple[str, str], ...] = ((subject.id, body),)
    else:
        valve = found.action["id"] in subject.valves
        policies = tuple(
            (policy.id, json.dumps(policy.body, sort_keys=True))
            for policy in subject.policies
            if not valve or policy.id in subject.platform
        )
    result = cedarpy.is_authorized(
        found.request(),
        _policy_set(policies),
        [dict(entity) for entity in found.entities],
        _schema(json.dumps(schema.source)),
    )
    if result.decision.value == "NoDecision":
        raise UnsupportedError(
            f"Cedar does not take the request: {'; '.join(map(str, result.diagnostics.errors))[:500]}"
        )
    errors = tuple(str(error) for error in result.diagnostics.errors)
    licet = isinstance(subject, PolicySet) and subject.semantics == "licet"
    return Evaluated(bool(result.allowed) and not (licet and errors), tuple(sorted(result.diagnostics.reasons)), errors)


def violates(property_: Property, left: Evaluated, right: Evaluated | None) -> bool:  # noqa: PLR0911  # One return for each kind.
    """Whether what Cedar said of a request shows that the property does not hold."""
    match property_.kind, right:
        case "never-errors", _:
            return bool(left.errors)
        case "always-allows", _:
            return not left.holds
        case "never-allows", _:
            return left.holds
        case "equivalent", Evaluated():
            return left.holds != right.holds
        case "implies", Evaluated():
            return left.holds and not right.holds
        case "disjoint", Evaluated():
            return left.holds and right.holds
    return False


@lru_cache(maxsize=64)
def _policy_set(policies: tuple[tuple[str, str], ...]) -> cedarpy.PolicySet:
    # Through JSON each policy keeps its own id; text would be numbered.
    parsed = {name: json.loads(body) for name, body in policies}
    return cedarpy.PolicySet.from_json_str(json.dumps({"staticPolicies": parsed, "templates": {}, "templateLinks": []}))


@lru_cache(maxsize=8)
def _schema(text: str) -> cedarpy.Schema:
    return cedarpy.Schema.from_json_str(text)
