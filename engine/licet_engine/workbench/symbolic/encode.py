"""Policies to terms: what a policy says of every request of one kind, as formulas over that request and its entities.

Rules kept:

- The whole of Cedar's dynamic semantics, errors among it: an expression's encoding says where it succeeds and what it gives
  there. What has the wrong type, or overflows, or reads what is not there, succeeds nowhere. ``&&``, ``||`` and ``if``
  err only by what they evaluate.
- Types are inferred from below: of what the schema says of requests and entities, and of literals. A branch that is known
  not to be taken is not looked at, so what has no type there does no harm.
- What cannot be encoded exactly is refused (``UnsupportedError``), never approximated.

Source: the semantics in Cedar's specification, https://docs.cedarpolicy.com/policies/syntax-operators.html, and the way in
which Cedar's own symbolic compiler encodes it (cedar-policy/cedar-spec, cedar-lean/Cedar/SymCC); see ADR 0018.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cvc5 import Kind

from licet_engine.workbench.symbolic.errors import UnsupportedError
from licet_engine.workbench.symbolic.extensions import CONSTRUCTORS, FUNCTIONS, read_literal
from licet_engine.workbench.symbolic.logic import Logic, Term
from licet_engine.workbench.symbolic.stores import Store
from licet_engine.workbench.symbolic.types import BOOL, LONG, STRING, EntityType, ExtensionType, SetType
from licet_engine.workbench.symbolic.values import Algebra, Atom, Field, Items, Record, Value

__all__ = ["Compiler", "Encoded", "Result"]

Expression = Mapping[str, Any]
_ARITHMETIC: Final = {
    "+": (Kind.BITVECTOR_SADDO, Kind.BITVECTOR_ADD),
    "-": (Kind.BITVECTOR_SSUBO, Kind.BITVECTOR_SUB),
    "*": (Kind.BITVECTOR_SMULO, Kind.BITVECTOR_MULT),
}
_ORDERED: Final = frozenset({LONG, ExtensionType("datetime"), ExtensionType("duration")})


@dataclass(frozen=True, slots=True)
class Result:
    """What an expression comes to.

    Attributes:
        ok: Where it does not err.
        value: What it is there; None if it errs everywhere.
    """

    ok: Term
    value: Value | None


@dataclass(frozen=True, slots=True)
class Encoded:
    """One policy: where it is satisfied and where it errs, which exclude each other."""

    satisfied: Term
    errs: Term


class Compiler:
    """Encodes policies for one kind of request.

    Args:
        logic: Makes the terms.
        store: The request and the entities, as symbols or as literals.
    """

    def __init__(self, logic: Logic, store: Store) -> None:
        self.logic = logic
        self.store = store
        self.algebra = Algebra(logic)
        self._error = Result(logic.false, None)

    def policy(self, policy: Mapping[str, Any]) -> Encoded:
        """Encode one policy in Cedar's JSON form: its scope, and then its conditions in order.

        Raises:
            UnsupportedError: It has no exact encoding.
        """
        logic = self.logic
        parts: list[Callable[[], Result]] = [
            lambda slot=slot: self._scope(slot, policy[slot])  # type: ignore[misc]
            for slot in ("principal", "action", "resource")
        ]
        for condition in policy["conditions"]:
            body, kind = condition["body"], condition["kind"]
            parts.append(lambda b=body, k=kind: self.expression(b if k == "when" else {"!": {"arg": b}}))  # type: ignore[misc]
        result = Result(logic.true, Atom(BOOL, logic.true))
        for part in parts:
            result = self._and(result, part)
        held = result.value.term if isinstance(result.value, Atom) and result.value.type == BOOL else logic.false
        return Encoded(logic.and_(result.ok, held), logic.not_(result.ok))

    def _scope(self, slot: str, scope: Mapping[str, Any]) -> Result:
        who = {"Var": slot}
        if "slot" in scope or "slot" in (scope.get("in") or {}):
            raise UnsupportedError("a template is not linked; link it first")
        match scope["op"]:
            case "All":
                return Result(self.logic.true, Atom(BOOL, self.logic.true))
            case "==" | "in" as op if "entity" in scope:
                return self.expression({op: {"left": who, "right": _entity_literal(scope["entity"])}})
            case "in":
                members = [_entity_literal(entity) for entity in scope["entities"]]
                return self.expression({"in": {"left": who, "right": {"Set": members}}})
            case "is":
                body = {"left": who, "entity_type": scope["entity_type"]}
                inside = scope.get("in")
                return self.expression({"is": body | ({"in": _entity_literal(inside["entity"])} if inside else {})})
        raise UnsupportedError(f"the scope {scope['op']!r} is not known")

    def expression(self, expression: Expression) -> Result:
        """Encode one expression in Cedar's JSON form.

        Raises:
            UnsupportedError: It has no exact encoding.
        """
        ((op, body),) = expression.items()
        if handler := _HANDLERS.get(op):
            return handler(self, body)
        if op in _ARITHMETIC or op in _RELATIONS:
            return self._binary(op, body)
        if op in CONSTRUCTORS:
            return self._construct(op, [self.expression(argument) for argument in body])
        if op in FUNCTIONS:
            return self._call(op, [self.expression(argument) for argument in body])
        raise UnsupportedError(f"{op!r} is not known")

    def _bool(self, ok: Term, term: Term) -> Result:
        return self._error if self.logic.is_false(ok) else Result(ok, Atom(BOOL, term))

    # Literals and variables.

    def _value(self, body: Any) -> Result:
        if isinstance(body, list):
            return self._set([{"Value": member} for member in body])
        if isinstance(body, Mapping) and body.keys() == {"__extn"}:
            return self._literal_call(body["__extn"])
        if isinstance(body, Mapping) and body.keys() != {"__entity"}:
            return self._record({name: {"Value": inner} for name, inner in body.items()})
        return Result(self.logic.true, self._literal(body))

    def _literal(self, body: Any) -> Value:
        logic = self.logic
        if isinstance(body, bool):
            return Atom(BOOL, logic.boolean(body))
        if isinstance(body, int):
            return Atom(LONG, logic.long(body))
        if isinstance(body, str):
            return Atom(STRING, logic.string(body))
        if isinstance(body, Mapping):
            kind, name = body["__entity"]["type"], body["__entity"]["id"]
            return self._noted(Atom(EntityType(kind), logic.entity(kind, name)))
        raise UnsupportedError(f"the literal {body!r:.60} is not known")

    def _literal_call(self, call: Mapping[str, Any]) -> Result:
        arguments = call["args"] if "args" in call else [call["arg"]]
        return self._construct(call["fn"], [self._value(argument) for argument in arguments])

    def _variable(self, name: str) -> Result:
        return Result(self.logic.true, self._noted(self.store.variable(name)))

    def _noted(self, value: Value) -> Value:
        """``value``, which stands in the footprint if it is an entity."""
        if isinstance(value, Atom) and isinstance(value.type, EntityType):
            self.store.note(value)
        return value

    # What evaluates only a part of what it holds.

    def _and(self, left: Result, right: Callable[[], Result]) -> Result:
        return self._short_circuit(left, right, decides=False)

    def _short_circuit(self, left: Result, right: Callable[[], Result], *, decides: bool) -> Result:
        logic = self.logic
        if not isinstance(left.value, Atom) or left.value.type != BOOL:
            return self._error
        decided = left.value.term if decides else logic.not_(left.value.term)
        if logic.is_true(decided):
            return left
        other = right()
        if not isinstance(other.value, Atom) or other.value.type != BOOL:
            return self._bool(logic.and_(left.ok, decided), logic.boolean(decides))
        join = logic.or_ if decides else logic.and_
        return self._bool(logic.and_(left.ok, logic.or_(decided, other.ok)), join(left.value.term, other.value.term))

    def _if(self, body: Mapping[str, Expression]) -> Result:
        logic = self.logic
        condition = self.expression(body["if"])
        if not isinstance(condition.value, Atom) or condition.value.type != BOOL:
            return self._error
        holds = condition.value.term
        if holds.isBooleanValue():
            branch = self.expression(body["then" if logic.is_true(holds) else "else"])
            ok = logic.and_(condition.ok, branch.ok)
            return self._error if logic.is_false(ok) else Result(ok, branch.value)
        then, otherwise = self.expression(body["then"]), self.expression(body["else"])
        ok = logic.and_(condition.ok, logic.ite(holds, then.ok, otherwise.ok))
        if then.value is None or otherwise.value is None:
            return Result(ok, then.value if otherwise.value is None else otherwise.value)
        return Result(ok, self.algebra.choose(holds, then.value, otherwise.value))

    # What evaluates all of it.

    def _not(self, body: Mapping[str, Expression]) -> Result:
        inner = self.expression(body["arg"])
        if not isinstance(inner.value, Atom) or inner.value.type != BOOL:
            return self._error
        return self._bool(inner.ok, self.logic.not_(inner.value.term))

    def _negate(self, body: Mapping[str, Expression]) -> Result:
        logic, inner = self.logic, self.expression(body["arg"])
        if not isinstance(inner.value, Atom) or inner.value.type != LONG:
            return self._error
        term = inner.value.term
        ok = logic.and_(inner.ok, logic.not_(logic.make(Kind.BITVECTOR_NEGO, term)))
        return self._error if logic.is_false(ok) else Result(ok, Atom(LONG, logic.make(Kind.BITVECTOR_NEG, term)))

    def _is_empty(self, body: Mapping[str, Expression]) -> Result:
        inner = self.expression(body["arg"])
        if inner.value is None or not _is_set(inner.value):
            return self._error
        return self._bool(inner.ok, self.algebra.is_empty(inner.value))

    def _binary(self, op: str, body: Mapping[str, Expression]) -> Result:
        return self._related(op, self.expression(body["left"]), self.expression(body["right"]))

    def _related(self, op: str, left: Result, right: Result) -> Result:
        if left.value is None or right.value is None:
            return self._error
        ok = self.logic.and_(left.ok, right.ok)
        if op in _ARITHMETIC:
            return self._arithmetic(op, ok, left.value, right.value)
        if op == "in" and _is_entity(left.value) and _holds_no_entities(right.value):
            # Such a set has no entity to be in: to ask is an error, but for an empty one.
            return self._bool(self.logic.and_(ok, self.algebra.is_empty(right.value)), self.logic.false)
        term = _RELATIONS[op](self, left.value, right.value)
        return self._error if term is None else self._bool(ok, term)

    def _arithmetic(self, op: str, ok: Term, left: Value, right: Value) -> Result:
        logic = self.logic
        if not isinstance(left, Atom) or not isinstance(right, Atom) or {left.type, right.type} != {LONG}:
            return self._error
        overflows, operation = _ARITHMETIC[op]
        ok = logic.and_(ok, logic.not_(logic.make(overflows, left.term, right.term)))
        if logic.is_false(ok):
            return self._error
        return Result(ok, Atom(LONG, logic.make(operation, left.term, right.term)))

    def _less(self, left: Value, right: Value, *, or_equal: bool) -> Term | None:
        if not isinstance(left, Atom) or not isinstance(right, Atom):
            return None
        if left.type != right.type or left.type not in _ORDERED:
            return None
        return self.logic.make(Kind.BITVECTOR_SLE if or_equal else Kind.BITVECTOR_SLT, left.term, right.term)

    def _contains(self, left: Value, right: Value) -> Term | None:
        return self.algebra.contains(left, right) if _is_set(left) else None

    def _contains_all(self, left: Value, right: Value) -> Term | None:
        return self.algebra.contains_all(left, right) if _is_set(left) and _is_set(right) else None

    def _contains_any(self, left: Value, right: Value) -> Term | None:
        return self.algebra.contains_any(left, right) if _is_set(left) and _is_set(right) else None

    def _in(self, left: Value, right: Value) -> Term | None:
        if not isinstance(left, Atom) or not isinstance(left.type, EntityType):
            return None
        if isinstance(right, Items):
            # Cedar wants entities of every member before it compares any.
            members = [self._in(left, one) if _is_entity(one) else None for one in right.members]
            known = [member for member in members if member is not None]
            return self.logic.or_(*known) if len(known) == len(members) else None
        if not isinstance(right, Atom):
            return None
        if isinstance(right.type, EntityType):
            return self.logic.or_(self.algebra.equal(left, right), self.store.is_in(left, right))
        if isinstance(right.type, SetType):
            return self.logic.or_(self.algebra.contains(right, left), self.store.is_in_any(left, right))
        return None

    def _is(self, body: Mapping[str, Any]) -> Result:
        logic, inner = self.logic, self.expression(body["left"])
        if not isinstance(inner.value, Atom) or not isinstance(inner.value.type, EntityType):
            return self._error
        held = self._bool(inner.ok, logic.boolean(inner.value.type.name == body["entity_type"]))
        if "in" not in body:
            return held
        return self._and(held, lambda: self._related("in", inner, self.expression(body["in"])))

    def _like(self, body: Mapping[str, Any]) -> Result:
        logic, inner = self.logic, self.expression(body["left"])
        if not isinstance(inner.value, Atom) or inner.value.type != STRING:
            return self._error
        parts = [
            logic.make(Kind.REGEXP_ALL)
            if part == "Wildcard"
            else logic.make(Kind.STRING_TO_REGEXP, logic.string(part["Literal"]))
            for part in body["pattern"]
        ] or [logic.make(Kind.STRING_TO_REGEXP, logic.string(""))]
        pattern = parts[0] if len(parts) == 1 else logic.make(Kind.REGEXP_CONCAT, *parts)
        return self._bool(inner.ok, logic.make(Kind.STRING_IN_REGEXP, inner.value.term, pattern))

    # Attributes and tags.

    def _attributes(self, value: Value) -> tuple[Term, Record] | None:
        """Where the attributes of a record or an entity are there, and which; None for anything else."""
        if isinstance(value, Record):
            return self.logic.true, value
        if isinstance(value, Atom) and isinstance(value.type, EntityType):
            return self.store.attributes(value)
        return None

    def _get(self, body: Mapping[str, Any]) -> Result:
        logic, inner = self.logic, self.expression(body["left"])
        found = self._attributes(inner.value) if inner.value is not None else None
        field = found[1].get(body["attr"]) if found else None
        if found is None or field is None:
            return self._error
        ok = logic.and_(inner.ok, found[0], field.present)
        return self._error if logic.is_false(ok) else Result(ok, self._noted(field.value))

    def _has(self, body: Mapping[str, Any]) -> Result:
        logic, inner = self.logic, self.expression(body["left"])
        found = self._attributes(inner.value) if inner.value is not None else None
        if found is None:
            return self._error
        field = found[1].get(body["attr"])
        return self._bool(inner.ok, logic.and_(found[0], field.present) if field else logic.false)

    def _tag(self, body: Mapping[str, Any]) -> tuple[Term, Term, Value | None] | None:
        """Where entity and tag's name succeed, where the tag is there, and its value; None if they are of other types."""
        left, right = self.expression(body["left"]), self.expression(body["right"])
        if not isinstance(left.value, Atom) or not isinstance(left.value.type, EntityType):
            return None
        if not isinstance(right.value, Atom) or right.value.type != STRING:
            return None
        found, value = self.store.tag(left.value, right.value.term)
        return self.logic.and_(left.ok, right.ok), found, value

    def _has_tag(self, body: Mapping[str, Any]) -> Result:
        found = self._tag(body)
        return self._bool(found[0], found[1]) if found else self._error

    def _get_tag(self, body: Mapping[str, Any]) -> Result:
        found = self._tag(body)
        ok = self.logic.and_(found[0], found[1]) if found else self.logic.false
        if found is None or found[2] is None or self.logic.is_false(ok):
            return self._error
        return Result(ok, self._noted(found[2]))

    # What is put together.

    def _set(self, body: list[Expression]) -> Result:
        results = [self.expression(member) for member in body]
        values = [result.value for result in results if result.value is not None]
        if len(values) < len(results):
            return self._error
        return Result(self.logic.and_(*(result.ok for result in results)), Items(tuple(values)))

    def _record(self, body: Mapping[str, Expression]) -> Result:
        logic, ok, fields = self.logic, self.logic.true, {}
        for name, inner in body.items():
            result = self.expression(inner)
            if result.value is None:
                return self._error
            ok = logic.and_(ok, result.ok)
            fields[name] = Field(logic.true, result.value)
        return Result(ok, Record.of(fields))

    def _construct(self, name: str, arguments: list[Result]) -> Result:
        if name in FUNCTIONS:  # Entity data may call `offset`, and Cedar writes it so.
            return self._call(name, arguments)
        result = arguments[0] if len(arguments) == 1 else self._error
        if not isinstance(result.value, Atom) or result.value.type != STRING:
            return self._error
        if not result.value.term.isStringValue():
            raise UnsupportedError(f"{name}() is given a text that depends on the request")
        term = read_literal(self.logic, name, self.logic.text(result.value.term))
        return self._error if term is None else Result(result.ok, Atom(CONSTRUCTORS[name], term))

    def _call(self, name: str, arguments: list[Result]) -> Result:
        logic, function = self.logic, FUNCTIONS[name]
        terms = [one.value.term for one in arguments if isinstance(one.value, Atom)]
        types = tuple(one.value.type for one in arguments if isinstance(one.value, Atom))
        if types != function.arguments:
            return self._error
        works, term = function.encode(logic, *terms)
        ok = logic.and_(works, *(one.ok for one in arguments))
        return self._error if logic.is_false(ok) else Result(ok, Atom(function.result, term))


def _entity_literal(entity: Mapping[str, str]) -> Expression:
    return {"Value": {"__entity": {"type": entity["type"], "id": entity["id"]}}}


def _is_set(value: Value) -> bool:
    return isinstance(value, Items) or (isinstance(value, Atom) and isinstance(value.type, SetType))


def _holds_no_entities(value: Value) -> bool:
    kind = value.type if isinstance(value, Atom) else None
    return isinstance(kind, SetType) and not isinstance(kind.element, EntityType)


def _is_entity(value: Value) -> bool:
    return isinstance(value, Atom) and isinstance(value.type, EntityType)


def _negated(
    relation: Callable[[Compiler, Value, Value], Term | None],
) -> Callable[[Compiler, Value, Value], Term | None]:
    def negated(compiler: Compiler, left: Value, right: Value) -> Term | None:
        term = relation(compiler, left, right)
        return None if term is None else compiler.logic.not_(term)

    return negated


def _equal(compiler: Compiler, left: Value, right: Value) -> Term | None:
    return compiler.algebra.equal(left, right)


def _below(compiler: Compiler, left: Value, right: Value) -> Term | None:
    return compiler._less(left, right, or_equal=False)  # noqa: SLF001  # A part of the compiler, by name of the operator.


def _at_most(compiler: Compiler, left: Value, right: Value) -> Term | None:
    return compiler._less(left, right, or_equal=True)  # noqa: SLF001  # As above.


_RELATIONS: Final[Mapping[str, Callable[[Compiler, Value, Value], Term | None]]] = {
    "==": _equal,
    "!=": _negated(_equal),
    "<": _below,
    "<=": _at_most,
    ">": _negated(_at_most),
    ">=": _negated(_below),
    "in": Compiler._in,  # noqa: SLF001  # As above.
    "contains": Compiler._contains,  # noqa: SLF001  # As above.
    "containsAll": Compiler._contains_all,  # noqa: SLF001  # As above.
    "containsAny": Compiler._contains_any,  # noqa: SLF001  # As above.
}
_HANDLERS: Final[Mapping[str, Callable[[Compiler, Any], Result]]] = {
    "Value": Compiler._value,  # noqa: SLF001  # As above.
    "Var": Compiler._variable,  # noqa: SLF001  # As above.
    "&&": lambda self, body: self._and(self.expression(body["left"]), lambda: self.expression(body["right"])),
    "||": lambda self, body: self._short_circuit(
        self.expression(body["left"]), lambda: self.expression(body["right"]), decides=True
    ),
    "!": Compiler._not,  # noqa: SLF001  # As above.
    "neg": Compiler._negate,  # noqa: SLF001  # As above.
    "if-then-else": Compiler._if,  # noqa: SLF001  # As above.
    "isEmpty": Compiler._is_empty,  # noqa: SLF001  # As above.
    "is": Compiler._is,  # noqa: SLF001  # As above.
    "like": Compiler._like,  # noqa: SLF001  # As above.
    ".": Compiler._get,  # noqa: SLF001  # As above.
    "has": Compiler._has,  # noqa: SLF001  # As above.
    "hasTag": Compiler._has_tag,  # noqa: SLF001  # As above.
    "getTag": Compiler._get_tag,  # noqa: SLF001  # As above.
    "Set": Compiler._set,  # noqa: SLF001  # As above.
    "Record": Compiler._record,  # noqa: SLF001  # As above.
}
