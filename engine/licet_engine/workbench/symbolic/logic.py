"""Terms of the solver, folded as they are built: what is known at once is never asked.

Rules kept:

- A constructor here is equal to the solver's own of the same name on every input; it only returns a simpler term.
- With ``fold``, every term is simplified as it is built. Over literals alone each is then a literal itself, which is how
  the encoding is compared with Cedar without a solver's search.

Source: SMT-LIB 2.6 and cvc5's theories of bit-vectors, strings, datatypes, finite sets and uninterpreted functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import cvc5
from cvc5 import Kind

from licet_engine.workbench.symbolic.errors import UnsupportedError
from licet_engine.workbench.symbolic.types import (
    EntityInfo,
    EntityType,
    ExtensionType,
    Primitive,
    RecordType,
    Schema,
    SetType,
    Type,
)

__all__ = ["Logic", "Term"]

Term = Any
"""A term of cvc5, which ships no type information."""

_MAX_CODE_POINT: Final = 0x2FFFF
"""The highest character of SMT-LIB's strings."""
_SURROGATES: Final = range(0xD800, 0xE000)
_SPARE: Final = 0xF0000
"""Where the characters begin for which surrogates stand that no literal took."""


class Logic:
    """One solver's terms and sorts, for one schema.

    Attributes:
        tm: cvc5's term manager; terms of different managers never meet.
        schema: Names the entity types.
        true, false: The two.
        lemmas: Theorems about terms made here, which spare the solver finding them: bits of a division tell it little.
        named: Entities that were written out, by type and id.
    """

    def __init__(self, schema: Schema, *, fold: bool = False) -> None:
        self.schema = schema
        self.tm: Any = cvc5.TermManager()
        self.true: Term = self.tm.mkTrue()
        self.false: Term = self.tm.mkFalse()
        self.lemmas: list[Term] = []
        self.named: set[tuple[str, str]] = set()
        self._simplifier: Any = cvc5.Solver(self.tm) if fold else None
        self._sorts: dict[Type, Any] = {}
        self._high: dict[str, str] = {}

    def make(self, kind: Any, *arguments: Term) -> Term:
        """A term of ``kind``, simplified where this logic folds."""
        term = self.tm.mkTerm(kind, *arguments)
        return self._simplifier.simplify(term) if self._simplifier is not None else term

    def boolean(self, value: bool) -> Term:  # noqa: FBT001  # It is the value, not a switch.
        """``true`` or ``false``."""
        return self.true if value else self.false

    def not_(self, term: Term) -> Term:
        """Negation."""
        if term.isBooleanValue():
            return self.boolean(not term.getBooleanValue())
        return term[0] if term.getKind() == Kind.NOT else self.make(Kind.NOT, term)

    def and_(self, *terms: Term) -> Term:
        """Conjunction."""
        return self._join(Kind.AND, terms, self.true, self.false)

    def or_(self, *terms: Term) -> Term:
        """Disjunction."""
        return self._join(Kind.OR, terms, self.false, self.true)

    def _join(self, kind: Any, terms: Iterable[Term], neutral: Term, absorbing: Term) -> Term:
        kept: dict[Term, None] = {}
        for term in terms:
            if term == absorbing or self.not_(term) in kept:
                return absorbing
            if term != neutral:
                kept[term] = None
        if not kept:
            return neutral
        return next(iter(kept)) if len(kept) == 1 else self.make(kind, *kept)

    def ite(self, condition: Term, then: Term, otherwise: Term) -> Term:
        """``then`` where ``condition`` holds, else ``otherwise``; both of one sort."""
        if condition.isBooleanValue():
            return then if condition.getBooleanValue() else otherwise
        if then == otherwise:
            return then
        if then.getSort().isBoolean():
            if then.isBooleanValue():
                return (
                    self.or_(condition, otherwise) if then == self.true else self.and_(self.not_(condition), otherwise)
                )
            if otherwise.isBooleanValue():
                negated = self.not_(condition)
                return self.and_(condition, then) if otherwise == self.false else self.or_(negated, then)
        return self.make(Kind.ITE, condition, then, otherwise)

    def equal(self, one: Term, other: Term) -> Term:
        """Equality; both of one sort."""
        if one == other:
            return self.true
        if _is_plain_value(one) and _is_plain_value(other):
            return self.false
        return self.make(Kind.EQUAL, one, other)

    def is_true(self, term: Term) -> bool:
        """Whether ``term`` is the literal ``true``."""
        return bool(term == self.true)

    def is_false(self, term: Term) -> bool:
        """Whether ``term`` is the literal ``false``."""
        return bool(term == self.false)

    def long(self, value: int) -> Term:
        """A 64-bit literal, in two's complement."""
        return self.bits(64, value)

    def bits(self, width: int, value: int) -> Term:
        """A bit-vector literal of ``width`` bits, in two's complement."""
        return self.tm.mkBitVector(width, value % (1 << width))

    def string(self, value: str) -> Term:
        """A string literal.

        SMT-LIB's strings end at U+2FFFF, and hold surrogates, which Cedar's do not: so a higher character is written as a
        surrogate of its own. Cedar compares characters and does nothing else with them, so which one it is changes nothing.

        Raises:
            UnsupportedError: More than 2,048 different characters above U+2FFFF.
        """
        for char in value:
            if ord(char) > _MAX_CODE_POINT and char not in self._high:
                if len(self._high) == len(_SURROGATES):
                    raise UnsupportedError("more than 2,048 different characters above U+2FFFF are written out")
                self._high[char] = chr(_SURROGATES[len(self._high)])
        return self.tm.mkString("".join(self._high.get(char, char) for char in value))

    def text(self, term: Term) -> str:
        """The text that a string literal stands for, ``string`` the other way round."""
        value: str = term.getStringValue()
        taken = {surrogate: char for char, surrogate in self._high.items()}
        return "".join(taken.get(char) or self._spare(char) if ord(char) in _SURROGATES else char for char in value)

    def _spare(self, surrogate: str) -> str:
        # The characters that were not written out, in order: the literals' own are passed over.
        left = ord(surrogate) - _SURROGATES.start - len(self._high)
        spare = (chr(code) for code in range(_SPARE, _SPARE + 2 * len(_SURROGATES)) if chr(code) not in self._high)
        return next(char for place, char in enumerate(spare) if place == left)

    def entity(self, kind: str, name: str) -> Term:
        """An entity as a literal; the id alone tells entities of a type apart.

        Raises:
            UnsupportedError: The type is enumerated and has no such entity, or the id has no encoding.
        """
        self.named.add((kind, name))
        info = self.schema.entities.get(kind)
        if info is None or info.members is None:
            return self.string(name)
        if name not in info.members:
            raise UnsupportedError(f"{kind} is enumerated and has no entity called {name!r}")
        constructor = self.sort(EntityType(kind)).getDatatype()[info.members.index(name)].getTerm()
        return self.make(Kind.APPLY_CONSTRUCTOR, constructor)

    def sort(self, type_: Type) -> Any:
        """The sort in which values of ``type_`` are encoded.

        Raises:
            UnsupportedError: A set of nothing, which has no sort.
        """
        if type_ not in self._sorts:
            self._sorts[type_] = self._make_sort(type_)
        return self._sorts[type_]

    def _make_sort(self, type_: Type) -> Any:  # noqa: PLR0911  # One return for each type.
        match type_:
            case Primitive("Bool"):
                return self.tm.getBooleanSort()
            case Primitive("Long") | ExtensionType("decimal" | "datetime" | "duration"):
                return self.tm.mkBitVectorSort(64)
            case Primitive("String"):
                return self.tm.getStringSort()
            case EntityType(name):
                info = self.schema.entities.get(name)
                enumerated = info is not None and info.members is not None
                return self._enumeration(info) if info and enumerated else self.tm.getStringSort()
            case ExtensionType("ipaddr"):
                return self._addresses()
            case RecordType():
                return self._record(type_)
            case SetType(element) if element is not None:
                return self.tm.mkSetSort(self.sort(element))
            case SetType():
                raise UnsupportedError("a set of which nothing is known but that it is empty is used as a value")
        raise UnsupportedError(f"type {type_} has no encoding")

    def _enumeration(self, info: EntityInfo) -> Any:
        declared = self.tm.mkDatatypeDecl(info.name)
        for number, _ in enumerate(info.members or ()):
            declared.addConstructor(self.tm.mkDatatypeConstructorDecl(f"{info.name}#{number}"))
        return self.tm.mkDatatypeSort(declared)

    def _addresses(self) -> Any:
        # Every value of this datatype is an address, and no two are the same one: a prefix as long as the address is `host`.
        declared = self.tm.mkDatatypeDecl("ipaddr")
        for name, width, prefix in (("v4", 32, 5), ("v6", 128, 7)):
            host = self.tm.mkDatatypeConstructorDecl(f"{name}host")
            host.addSelector(f"{name}host-address", self.tm.mkBitVectorSort(width))
            net = self.tm.mkDatatypeConstructorDecl(f"{name}net")
            net.addSelector(f"{name}net-address", self.tm.mkBitVectorSort(width))
            net.addSelector(f"{name}net-prefix", self.tm.mkBitVectorSort(prefix))
            declared.addConstructor(host)
            declared.addConstructor(net)
        return self.tm.mkDatatypeSort(declared)

    def _record(self, type_: RecordType) -> Any:
        number = len(self._sorts)
        constructor = self.tm.mkDatatypeConstructorDecl(f"record{number}")
        for place, (_, attribute) in enumerate(type_.attributes):
            sort = self.sort(attribute.type)
            constructor.addSelector(f"r{number}.{place}", sort if attribute.required else self.option(sort))
        declared = self.tm.mkDatatypeDecl(f"Record{number}")
        declared.addConstructor(constructor)
        return self.tm.mkDatatypeSort(declared)

    def option(self, sort: Any) -> Any:
        """The sort of a value of ``sort``, or none."""
        return self.tm.mkNullableSort(sort)

    def construct(self, sort: Any, which: int, *arguments: Term) -> Term:
        """A value of a datatype, by the place of its constructor."""
        return self.make(Kind.APPLY_CONSTRUCTOR, sort.getDatatype()[which].getTerm(), *arguments)

    def select(self, term: Term, which: int, place: int) -> Term:
        """What a datatype's constructor holds; arbitrary where ``term`` was made by another."""
        return self.make(Kind.APPLY_SELECTOR, term.getSort().getDatatype()[which][place].getTerm(), term)

    def was_made_by(self, term: Term, which: int) -> Term:
        """Whether a datatype's value was made by the constructor at place ``which``."""
        return self.make(Kind.APPLY_TESTER, term.getSort().getDatatype()[which].getTesterTerm(), term)


def _is_plain_value(term: Term) -> bool:
    return bool(term.isStringValue() or term.isBitVectorValue() or term.isBooleanValue())
