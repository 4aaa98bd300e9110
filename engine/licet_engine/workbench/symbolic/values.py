"""Values of Cedar as the encoding holds them: records taken apart, sets written out kept so, all else a term with its type.

Rules kept:

- A record is never a term, unless it is an element of a set: an attribute that nobody reads costs the solver nothing.
- A set that a policy writes out is its members, so that ``["a", "b"].contains(x)`` is two comparisons; only what meets a
  set of unknown size is asked of the solver's sets.
- Values of different types are told apart by their types, as Cedar does: equal they are never, but for sets, which may both
  be empty.
- Where two branches of a condition that is not known have values that no one type covers, the encoding stops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cvc5 import Kind

from licet_engine.workbench.symbolic.errors import UnsupportedError
from licet_engine.workbench.symbolic.logic import Logic, Term
from licet_engine.workbench.symbolic.types import Attribute, RecordType, SetType, Type

__all__ = ["Algebra", "Atom", "Field", "Items", "Record", "Value"]


@dataclass(frozen=True, slots=True)
class Atom:
    """A value that is one term, of any type but a record."""

    type: Type
    term: Term


@dataclass(frozen=True, slots=True)
class Items:
    """A set that was written out: every one of these is in it, and nothing else is."""

    members: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Field:
    """An attribute's value, and whether it is there; where it is not, the value is arbitrary."""

    present: Term
    value: Value


class Record:
    """A record, or the attributes of an entity, whose fields are made when they are first asked for.

    Attributes:
        names: Of every attribute that there may be; sorted.
    """

    __slots__ = ("_fields", "_make", "names")

    def __init__(self, names: Sequence[str], make: Callable[[str], Field]) -> None:
        self.names = tuple(names)
        self._make = make
        self._fields: dict[str, Field] = {}

    @classmethod
    def of(cls, fields: Mapping[str, Field]) -> Record:
        """A record of these fields."""
        return cls(sorted(fields), fields.__getitem__)

    def get(self, name: str) -> Field | None:
        """The field called ``name``; None if there can be none."""
        if name not in self.names:
            return None
        if name not in self._fields:
            self._fields[name] = self._make(name)
        return self._fields[name]


Value = Atom | Items | Record


class Algebra:
    """What Cedar asks of values, whatever their types: equality, membership, choice."""

    def __init__(self, logic: Logic) -> None:
        self.logic = logic

    def equal(self, one: Value, other: Value) -> Term:  # noqa: PLR0911  # One return for each pair.
        """Whether two values are equal.

        Raises:
            UnsupportedError: Sets of sets, or of records, of different types.
        """
        logic = self.logic
        match one, other:
            case Atom(), Atom():
                if one.type == other.type:
                    return logic.equal(one.term, other.term)
                if isinstance(one.type, SetType) and isinstance(other.type, SetType):
                    _verify_disjoint(one.type.element, other.type.element)
                    return logic.and_(self._is_empty_term(one.term), self._is_empty_term(other.term))
                return logic.false
            case Record(), Record():
                return logic.and_(*(self._fields_equal(one.get(n), other.get(n)) for n in {*one.names, *other.names}))
            case Items(), Items():
                return logic.and_(self.contains_all(one, other), self.contains_all(other, one))
            case (Items() as items, Atom(SetType() as kind, held)) | (Atom(SetType() as kind, held), Items() as items):
                term, possible = self._items_term(items, kind)
                return logic.and_(possible, logic.equal(term, held))
        return logic.false

    def _fields_equal(self, one: Field | None, other: Field | None) -> Term:
        logic = self.logic
        if one is None or other is None:
            field = one or other
            return logic.not_(field.present) if field else logic.true
        same = logic.equal(one.present, other.present)
        if logic.is_false(same) or logic.is_false(one.present):
            return same
        return logic.and_(same, logic.or_(logic.not_(one.present), self.equal(one.value, other.value)))

    def choose(self, condition: Term, then: Value, otherwise: Value) -> Value:
        """``then`` where ``condition`` holds, else ``otherwise``.

        Raises:
            UnsupportedError: No one type covers both.
        """
        logic = self.logic
        if condition.isBooleanValue():
            return then if logic.is_true(condition) else otherwise
        if isinstance(then, Record) and isinstance(otherwise, Record):
            names = sorted({*then.names, *otherwise.names})
            return Record(names, lambda name: self._choose_field(condition, then.get(name), otherwise.get(name)))
        kind = self.unify(self.type_of(then), self.type_of(otherwise))
        if isinstance(kind, SetType) and kind.element is None:
            return Items(())
        (one, fits), (other, too) = self.term(then, kind), self.term(otherwise, kind)
        if not logic.is_true(logic.and_(fits, too)):
            raise UnsupportedError(f"a value is not known to be {kind}, which depends on the request")
        return Atom(kind, logic.ite(condition, one, other))

    def _choose_field(self, condition: Term, then: Field | None, otherwise: Field | None) -> Field:
        logic = self.logic
        present = logic.ite(
            condition, then.present if then else logic.false, otherwise.present if otherwise else logic.false
        )
        if then is None or otherwise is None:
            field = then or otherwise
            assert field is not None  # noqa: S101  # A name comes from one of the two.
            return Field(present, field.value)
        return Field(present, self.choose(condition, then.value, otherwise.value))

    def type_of(self, value: Value) -> Type:
        """The type of a value; that of a record says which of its attributes are certain.

        Raises:
            UnsupportedError: A set of members that no one type covers.
        """
        match value:
            case Atom():
                return value.type
            case Items():
                element: Type | None = None
                for member in value.members:
                    kind = self.type_of(member)
                    element = kind if element is None else self.unify(element, kind)
                return SetType(element)
            case Record():
                fields = [(name, value.get(name)) for name in value.names]
                return RecordType(
                    tuple(
                        (name, Attribute(self.type_of(field.value), self.logic.is_true(field.present)))
                        for name, field in fields
                        if field is not None and not self.logic.is_false(field.present)
                    )
                )

    def unify(self, one: Type, other: Type) -> Type:
        """The type that covers both.

        Raises:
            UnsupportedError: There is none.
        """
        if one == other:
            return one
        if isinstance(one, SetType) and isinstance(other, SetType):
            if one.element is None or other.element is None:
                return one if other.element is None else other
            return SetType(self.unify(one.element, other.element))
        if isinstance(one, RecordType) and isinstance(other, RecordType):
            mine, theirs = dict(one.attributes), dict(other.attributes)
            both: dict[str, Attribute] = {}
            for name in sorted({*mine, *theirs}):
                if name in mine and name in theirs:
                    kind = self.unify(mine[name].type, theirs[name].type)
                    both[name] = Attribute(kind, mine[name].required and theirs[name].required)
                else:
                    both[name] = Attribute((mine.get(name) or theirs[name]).type, required=False)
            return RecordType(tuple(both.items()))
        raise UnsupportedError(f"a value is {one} or {other}, which one depends on the request")

    def term(self, value: Value, kind: Type) -> tuple[Term, Term]:
        """``value`` as a term of ``kind``'s sort, and whether it is of that type; where not, the term is arbitrary."""
        logic = self.logic
        if isinstance(value, Atom) and value.type == kind:
            return value.term, logic.true
        if isinstance(value, Items) and isinstance(kind, SetType):
            return self._items_term(value, kind)
        if isinstance(value, Record) and isinstance(kind, RecordType):
            return self._record_term(value, kind)
        if isinstance(value, Atom) and isinstance(value.type, SetType) and isinstance(kind, SetType):
            _verify_disjoint(value.type.element, kind.element)
            return logic.tm.mkEmptySet(logic.sort(kind)), self._is_empty_term(value.term)
        return self._any(kind), logic.false

    def _any(self, kind: Type) -> Term:
        # Some value of the sort: a fresh constant is as good as any, since nothing rests on it.
        return self.logic.tm.mkConst(self.logic.sort(kind), "arbitrary")

    def _items_term(self, items: Items, kind: SetType) -> tuple[Term, Term]:
        logic = self.logic
        term = logic.tm.mkEmptySet(logic.sort(kind))
        possible = logic.true
        if kind.element is None:
            raise UnsupportedError("a set of which nothing is known but that it is empty is used as a value")
        for member in items.members:
            element, fits = self.term(member, kind.element)
            possible = logic.and_(possible, fits)
            if not logic.is_false(fits):
                term = logic.make(Kind.SET_UNION, term, logic.make(Kind.SET_SINGLETON, element))
        return term, possible

    def _record_term(self, value: Record, kind: RecordType) -> tuple[Term, Term]:
        logic, sort = self.logic, self.logic.sort(kind)
        parts = []
        declared = dict(kind.attributes)
        # What the type does not have must not be there.
        strange = [value.get(name) for name in value.names if name not in declared]
        possible = logic.and_(*(logic.not_(field.present) for field in strange if field is not None))
        for name, attribute in kind.attributes:
            field = value.get(name)
            present = field.present if field else logic.false
            part, fits = self.term(field.value, attribute.type) if field else (self._any(attribute.type), logic.true)
            if attribute.required:
                possible = logic.and_(possible, present, fits)
            else:
                possible = logic.and_(possible, logic.or_(logic.not_(present), fits))
                some = logic.tm.mkNullableSome(part)
                part = logic.ite(present, some, logic.tm.mkNullableNull(some.getSort()))
            parts.append(part)
        return logic.construct(sort, 0, *parts), possible

    def is_empty(self, value: Value) -> Term:
        """Whether a set is empty."""
        return self.logic.boolean(not value.members) if isinstance(value, Items) else self._is_empty_term(_term(value))

    def _is_empty_term(self, term: Term) -> Term:
        return self.logic.make(Kind.SET_IS_EMPTY, term)

    def contains(self, of: Value, member: Value) -> Term:
        """Whether ``member`` is in the set ``of``."""
        logic = self.logic
        if isinstance(of, Items):
            return logic.or_(*(self.equal(one, member) for one in of.members))
        kind = _set_type(of)
        if kind.element is None:
            return logic.false
        term, possible = self.term(member, kind.element)
        return (
            logic.false
            if logic.is_false(possible)
            else logic.and_(possible, logic.make(Kind.SET_MEMBER, term, _term(of)))
        )

    def contains_all(self, of: Value, members: Value) -> Term:
        """Whether every one of the set ``members`` is in the set ``of``."""
        logic = self.logic
        if isinstance(members, Items):
            return logic.and_(*(self.contains(of, one) for one in members.members))
        kind = _set_type(members)
        if isinstance(of, Items):
            return logic.make(Kind.SET_SUBSET, _term(members), self._fitting(of, kind))
        if _set_type(of) == kind:
            return logic.make(Kind.SET_SUBSET, _term(members), _term(of))
        _verify_disjoint(_set_type(of).element, kind.element)
        return self._is_empty_term(_term(members))

    def contains_any(self, one: Value, other: Value) -> Term:
        """Whether two sets share a member."""
        logic = self.logic
        if isinstance(other, Items):
            return logic.or_(*(self.contains(one, member) for member in other.members))
        if isinstance(one, Items):
            return self.contains_any(other, one)
        if _set_type(one) == _set_type(other):
            return logic.not_(self._is_empty_term(logic.make(Kind.SET_INTER, _term(one), _term(other))))
        _verify_disjoint(_set_type(one).element, _set_type(other).element)
        return logic.false

    def _fitting(self, items: Items, kind: SetType) -> Term:
        """Those of ``items`` that are of the set's type, as a term."""
        logic = self.logic
        union = logic.tm.mkEmptySet(logic.sort(kind))
        for member in items.members:
            assert kind.element is not None  # noqa: S101  # A term is never of the type of nothing.
            element, fits = self.term(member, kind.element)
            single = logic.make(Kind.SET_SINGLETON, element)
            union = logic.make(Kind.SET_UNION, union, logic.ite(fits, single, logic.tm.mkEmptySet(logic.sort(kind))))
        return union


def _term(value: Value) -> Any:
    if not isinstance(value, Atom):
        raise UnsupportedError("a set is expected here")
    return value.term


def _set_type(value: Value) -> SetType:
    if not isinstance(value, Atom) or not isinstance(value.type, SetType):
        raise UnsupportedError("a set is expected here")
    return value.type


def _verify_disjoint(one: Type | None, other: Type | None) -> None:
    """Let pass what shares no value, whatever the request."""
    nested = (SetType, RecordType)
    if isinstance(one, nested) and isinstance(other, nested) and type(one) is type(other):
        raise UnsupportedError(f"sets of {one} and of {other} are compared")
