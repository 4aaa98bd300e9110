"""The request and its entities as symbols: every request of one kind, and every set of entities that the schema allows.

Rules kept:

- An attribute is a function of the entity, one for each leaf of the shape; an optional one has a second function, which says
  whether it is there. The request's context is the same without an argument.
- The ancestors that an entity has of one type are a function from the entity to a finite set.
- Every entity that is referred to exists (what the encoding leaves out is listed in ``limits``).
- A hierarchy is the transitive closure of a graph without cycles. That is asserted of the footprint alone, the entities
  that the policies can come to speak of: variables, literals, and what attributes and tags give. Any model of these is one
  of the whole, since every other entity may be taken to have no ancestors.

Source: the enforcer and the extractor of Cedar's symbolic compiler; see ADR 0018.
"""

from __future__ import annotations

from typing import Protocol

from cvc5 import Kind

from licet_engine.workbench.symbolic.errors import UnsupportedError
from licet_engine.workbench.symbolic.logic import Logic, Term
from licet_engine.workbench.symbolic.types import (
    BOOL,
    LONG,
    STRING,
    EntityType,
    RecordType,
    RequestEnvironment,
    SetType,
    Type,
)
from licet_engine.workbench.symbolic.values import Atom, Field, Record, Value

__all__ = ["Store", "SymbolicStore"]


class Store(Protocol):
    """What an encoding needs to know of the request and the entities."""

    def variable(self, name: str) -> Value:
        """``principal``, ``action``, ``resource`` or ``context``."""

    def note(self, entity: Atom) -> None:
        """Take an entity into the footprint."""

    def attributes(self, entity: Atom) -> tuple[Term, Record]:
        """Where ``entity`` exists, and its attributes there."""

    def is_in(self, entity: Atom, ancestor: Atom) -> Term:
        """Whether ``ancestor`` is an ancestor of ``entity``, which it is not of itself."""

    def is_in_any(self, entity: Atom, ancestors: Atom) -> Term:
        """Whether one of a set of entities is an ancestor of ``entity``."""

    def tag(self, entity: Atom, name: Term) -> tuple[Term, Value | None]:
        """Whether ``entity`` has the tag called ``name``, and its value; None if it can have none."""


class SymbolicStore:
    """Any request of one kind, with any entities.

    Attributes:
        footprint: Entities that the policies encoded so far can speak of, and that a hierarchy holds.
    """

    def __init__(self, logic: Logic, environment: RequestEnvironment) -> None:
        self._logic = logic
        self._functions: dict[tuple[str, str], Term] = {}
        self._numbers: dict[Term, None] = {}
        self._in_hierarchy = _in_hierarchy(logic)
        self._action_types = frozenset(kind for kind, _ in logic.schema.actions)
        self.footprint: dict[Atom, None] = {}
        principal, resource = EntityType(environment.principal), EntityType(environment.resource)
        kind, name = environment.action
        self._variables: dict[str, Value] = {
            "principal": Atom(principal, logic.tm.mkConst(logic.sort(principal), "principal")),
            "action": Atom(EntityType(kind), logic.entity(kind, name)),
            "resource": Atom(resource, logic.tm.mkConst(logic.sort(resource), "resource")),
            "context": self._record("context", environment.context, ()),
        }

    def variable(self, name: str) -> Value:
        """``principal``, ``action``, ``resource`` or ``context``."""
        return self._variables[name]

    def note(self, entity: Atom) -> None:
        """Take an entity into the footprint."""
        self.footprint[entity] = None

    def attributes(self, entity: Atom) -> tuple[Term, Record]:
        """Attributes of ``entity``, which exists."""
        info = self._logic.schema.entities.get(str(entity.type))
        shape = info.attributes if info else RecordType(())
        return self._logic.true, self._record(str(entity.type), shape, (entity,))

    def _record(self, path: str, shape: RecordType, arguments: tuple[Atom, ...]) -> Record:
        declared = dict(shape.attributes)

        def make(name: str) -> Field:
            attribute, inner = declared[name], f"{path}\x1f{name}"
            present = self._logic.true if attribute.required else self._apply(inner, "?", BOOL, arguments)
            return Field(present, self._leaf(inner, attribute.type, arguments))

        return Record(tuple(declared), make)

    def _leaf(self, path: str, kind: Type, arguments: tuple[Atom, ...]) -> Value:
        if isinstance(kind, RecordType):
            return self._record(path, kind, arguments)
        return Atom(kind, self._apply(path, "=", kind, arguments))

    def _apply(self, path: str, role: str, kind: Type, arguments: tuple[Atom, ...]) -> Term:
        tm, key = self._logic.tm, (path, role)
        if key not in self._functions:
            sort = self._logic.sort(kind)
            sorts = [argument.term.getSort() for argument in arguments]
            name = f"{path}{role}".replace("\x1f", ".")
            self._functions[key] = tm.mkConst(tm.mkFunctionSort(sorts, sort) if sorts else sort, name)
        function = self._functions[key]
        found = tm.mkTerm(Kind.APPLY_UF, function, *(a.term for a in arguments)) if arguments else function
        if kind == LONG:
            self._numbers[found] = None
        return found

    def within(self, limit: int) -> list[Term]:
        """That each number which was asked for so far, in an attribute, a tag or the context, is above ``-limit`` and below ``limit``."""
        logic = self._logic
        low, high = logic.long(-limit), logic.long(limit)
        return [
            logic.make(Kind.BITVECTOR_SLT, *pair)
            for number in self._numbers
            for pair in ((low, number), (number, high))
        ]

    def ancestors(self, entity: Atom, of_type: str) -> Term:
        """The ancestors of ``entity`` that are of one type."""
        return self._apply(f"{entity.type} in {of_type}", "", SetType(EntityType(of_type)), (entity,))

    def is_in(self, entity: Atom, ancestor: Atom) -> Term:
        """Whether ``ancestor`` is an ancestor of ``entity``."""
        logic, kinds = self._logic, (str(entity.type), str(ancestor.type))
        if kinds[0] in self._action_types:
            groups = [logic.string(name) for kind, name in self._groups(entity) if kind == kinds[1]]
            return logic.or_(*(logic.equal(group, ancestor.term) for group in groups))
        if kinds[1] not in logic.schema.ancestor_types(kinds[0]):
            return logic.false
        return logic.make(Kind.SET_MEMBER, ancestor.term, self.ancestors(entity, kinds[1]))

    def _groups(self, action: Atom) -> frozenset[tuple[str, str]]:
        """The groups that an action is in, which the schema says."""
        if not action.term.isStringValue():
            raise UnsupportedError("which action is meant depends on the request")
        found = self._logic.schema.actions.get((str(action.type), self._logic.text(action.term)))
        return found.ancestors if found else frozenset()

    def is_in_any(self, entity: Atom, ancestors: Atom) -> Term:
        """Whether one of a set of entities is an ancestor of ``entity``."""
        logic, kind = self._logic, ancestors.type
        assert isinstance(kind, SetType)  # noqa: S101  # The compiler asks it of nothing else.
        if str(entity.type) in self._action_types:
            groups = [logic.string(name) for group, name in self._groups(entity) if EntityType(group) == kind.element]
            return logic.or_(*(logic.make(Kind.SET_MEMBER, group, ancestors.term) for group in groups))
        if str(kind.element) not in logic.schema.ancestor_types(str(entity.type)):
            return logic.false
        shared = logic.make(Kind.SET_INTER, ancestors.term, self.ancestors(entity, str(kind.element)))
        return logic.not_(logic.make(Kind.SET_IS_EMPTY, shared))

    def tag(self, entity: Atom, name: Term) -> tuple[Term, Value | None]:
        """Whether ``entity`` has the tag called ``name``, and its value."""
        info = self._logic.schema.entities.get(str(entity.type))
        if info is None or info.tags is None:
            return self._logic.false, None
        value = self._leaf(f"{entity.type} tag", info.tags, (entity, Atom(STRING, name)))
        return self._logic.make(Kind.SET_MEMBER, name, self.tag_names(entity)), value

    def tag_names(self, entity: Atom) -> Term:
        """The names of all tags of ``entity``."""
        return self._apply(f"{entity.type} tags", "", SetType(STRING), (entity,))

    def enforce(self) -> list[Term]:
        """What holds of the footprint because it is a part of a hierarchy."""
        logic, entities = self._logic, [entity for entity in self.footprint if str(entity.type) in self._in_hierarchy]
        found: list[Term] = []
        for entity in entities:
            if str(entity.type) in logic.schema.ancestor_types(str(entity.type)):
                found.append(logic.not_(self.is_in(entity, entity)))
            for above in entities:
                if entity != above and str(above.type) in logic.schema.ancestor_types(str(entity.type)):
                    found += self._transitive(entity, above)
        return [term for term in found if not logic.is_true(term)]

    def _transitive(self, entity: Atom, above: Atom) -> list[Term]:
        logic, holds = self._logic, self.is_in(entity, above)
        found = []
        # What is above `above` is of a type that may be above `entity`: the types are closed already.
        for kind in sorted(logic.schema.ancestor_types(str(above.type))):
            further = logic.make(Kind.SET_SUBSET, self.ancestors(above, kind), self.ancestors(entity, kind))
            found.append(logic.or_(logic.not_(holds), further))
        return found


def _in_hierarchy(logic: Logic) -> frozenset[str]:
    return frozenset(
        name
        for info in logic.schema.entities.values()
        for name in ({info.name, *info.ancestors} if info.ancestors else ())
    )
