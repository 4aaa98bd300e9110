"""One request with its entities, as literals: what the encoding says of them needs no search, and is Cedar's own answer.

That is how the encoding earns its trust: over this store every formula folds to true or false, to be compared with what
Cedar decided. Here, other than among symbols, an entity may be missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from licet_engine.workbench.symbolic.errors import SymbolicError
from licet_engine.workbench.symbolic.extensions import FUNCTIONS, read_literal
from licet_engine.workbench.symbolic.logic import Logic, Term
from licet_engine.workbench.symbolic.types import (
    EntityType,
    ExtensionType,
    Primitive,
    RecordType,
    RequestEnvironment,
    SetType,
    Type,
)
from licet_engine.workbench.symbolic.values import Algebra, Atom, Field, Items, Record, Value

__all__ = ["LiteralStore"]

Uid = tuple[str, str]


class LiteralStore:
    """A concrete request and concrete entities.

    Args:
        logic: One that folds.
        environment: The kind of the request.
        request: ``principal``, ``action``, ``resource`` and ``context`` in Cedar's JSON.
        entities: In Cedar's JSON, valid for the schema.

    Raises:
        SymbolicError: A value is not of the type that the schema says.
    """

    def __init__(
        self,
        logic: Logic,
        environment: RequestEnvironment,
        request: Mapping[str, Any],
        entities: Iterable[Mapping[str, Any]],
    ) -> None:
        self._logic = logic
        self._algebra = Algebra(logic)
        self._entities = {_uid(entity["uid"]): entity for entity in entities}
        actions = logic.schema.actions
        self._parents: dict[Uid, set[Uid]] = {
            uid: {_uid(parent) for parent in entity["parents"]} for uid, entity in self._entities.items()
        }
        self._parents |= {uid: set(action.ancestors) for uid, action in actions.items()}
        self._variables: dict[str, Value] = {
            slot: self._entity(*_uid(request[slot])) for slot in ("principal", "action", "resource")
        }
        self._variables["context"] = self._value(environment.context, request["context"])

    def variable(self, name: str) -> Value:
        """``principal``, ``action``, ``resource`` or ``context``."""
        return self._variables[name]

    def note(self, entity: Atom) -> None:
        """Nothing is asserted of a hierarchy that is known."""

    def attributes(self, entity: Atom) -> tuple[Term, Record]:
        """Whether ``entity`` is among the entities, and its attributes."""
        uid = self._key(entity)
        info, found = self._logic.schema.entities.get(uid[0]), self._entities.get(uid)
        if found is None:
            return self._logic.boolean(uid in self._logic.schema.actions), Record.of({})
        value = self._value(info.attributes if info else RecordType(()), found["attrs"])
        assert isinstance(value, Record)  # noqa: S101  # It was made of a record's type.
        return self._logic.true, value

    def is_in(self, entity: Atom, ancestor: Atom) -> Term:
        """Whether ``ancestor`` is an ancestor of ``entity``."""
        return self._logic.boolean(self._key(ancestor) in self._above(self._key(entity)))

    def is_in_any(self, entity: Atom, ancestors: Atom) -> Term:
        """Whether one of a set of entities is an ancestor of ``entity``."""
        assert isinstance(ancestors.type, SetType)  # noqa: S101  # The compiler asks it of nothing else.
        kind = ancestors.type.element
        above = [self._entity(*uid) for uid in self._above(self._key(entity)) if EntityType(uid[0]) == kind]
        return self._logic.or_(*(self._algebra.contains(ancestors, one) for one in above))

    def tag(self, entity: Atom, name: Term) -> tuple[Term, Value | None]:
        """Whether ``entity`` has the tag called ``name``, and its value."""
        uid = self._key(entity)
        info, found = self._logic.schema.entities.get(uid[0]), self._entities.get(uid, {})
        tags = found.get("tags", {})
        text = self._logic.text(name)
        if info is None or info.tags is None or text not in tags:
            return self._logic.false, None
        return self._logic.true, self._value(info.tags, tags[text])

    def _above(self, uid: Uid) -> set[Uid]:
        reached: set[Uid] = set()
        waiting = list(self._parents.get(uid, ()))
        while waiting:
            one = waiting.pop()
            if one not in reached:
                reached.add(one)
                waiting += self._parents.get(one, ())
        return reached

    def _entity(self, kind: str, name: str) -> Atom:
        return Atom(EntityType(kind), self._logic.entity(kind, name))

    def _key(self, entity: Atom) -> Uid:
        kind = str(entity.type)
        info = self._logic.schema.entities.get(kind)
        if info is not None and info.members is not None:
            return kind, info.members[int(str(entity.term[0].getSymbol()).rpartition("#")[2])]
        return kind, self._logic.text(entity.term)

    def _value(self, kind: Type, given: Any) -> Value:  # noqa: PLR0911  # One return for each type.
        logic = self._logic
        match kind:
            case Primitive("Bool") if isinstance(given, bool):
                return Atom(kind, logic.boolean(given))
            case Primitive("Long") if isinstance(given, int) and not isinstance(given, bool):
                return Atom(kind, logic.long(given))
            case Primitive("String") if isinstance(given, str):
                return Atom(kind, logic.string(given))
            case EntityType(name) if isinstance(given, Mapping):
                uid = given.get("__entity", given)
                return self._entity(name, uid["id"])
            case ExtensionType():
                return Atom(kind, self._extension(given))
            case SetType(element) if element is not None and isinstance(given, list):
                items = Items(tuple(self._value(element, member) for member in given))
                term, fits = self._algebra.term(items, kind)
                if logic.is_true(fits):
                    return Atom(kind, term)
            case RecordType() if isinstance(given, Mapping):
                return Record.of(
                    {
                        name: Field(logic.true, self._value(attribute.type, given[name]))
                        for name, attribute in kind.attributes
                        if name in given
                    }
                )
        raise SymbolicError(f"{given!r:.60} is not of type {kind}")

    def _extension(self, given: Any) -> Term:
        call = given.get("__extn", given) if isinstance(given, Mapping) else given
        arguments = call["args"] if "args" in call else [call["arg"]]
        if call["fn"] in FUNCTIONS:
            works, term = FUNCTIONS[call["fn"]].encode(self._logic, *map(self._extension, arguments))
            read = term if self._logic.is_true(works) else None
        else:
            read = read_literal(self._logic, call["fn"], arguments[0])
        if read is None:
            raise SymbolicError(f"{given!r:.60} is not a value")
        return read


def _uid(value: Mapping[str, Any]) -> Uid:
    inner = value.get("__entity", value)
    return inner["type"], inner["id"]
