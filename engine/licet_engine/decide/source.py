"""Expressions of Cedar's JSON form, written as a person would write them.

Cedar keeps no positions of source text, and its own printer brackets every step. This one brackets only where the grammar
needs it. What it writes parses to the very expression it was given; the tests hold it to that over Cedar's corpus.

Source: the Cedar grammar, https://docs.cedarpolicy.com/policies/syntax-grammar.html.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from licet_engine.decide.entities import quoted

Expression = Mapping[str, Any]

# How tightly each form binds; an operand that binds looser than its place allows is bracketed.
_IF, _OR, _AND, _RELATION, _SUM, _PRODUCT, _UNARY, _MEMBER = range(8)

_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED: Final = frozenset({"true", "false", "if", "then", "else", "in", "is", "like", "has", "__cedar"})
_RELATIONS: Final = frozenset({"==", "!=", "<", "<=", ">", ">=", "in"})
_METHODS: Final = frozenset({"contains", "containsAll", "containsAny", "getTag", "hasTag"})
_CONSTRUCTORS: Final = frozenset({"ip", "decimal", "datetime", "duration"})


def expression_text(expression: Expression) -> str:
    """``expression`` in Cedar's syntax."""
    return _write(expression)[0]


def literal_text(value: Any) -> str:
    """A literal of Cedar's JSON form in Cedar's syntax, sets and records included."""
    if isinstance(value, int):
        return str(value).lower()  # Of the two, only a boolean has capitals.
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(literal_text, value)) + "]"
    if value.keys() == {"__entity"}:
        return f"{value['__entity']['type']}::{quoted(value['__entity']['id'])}"
    if value.keys() == {"__extn"}:
        extension = value["__extn"]
        arguments = extension["args"] if "args" in extension else [extension["arg"]]
        return f"{extension['fn']}({', '.join(map(literal_text, arguments))})"
    return "{" + ", ".join(f"{_name(key)}: {literal_text(item)}" for key, item in value.items()) + "}"


def _name(attribute: str) -> str:
    plain = _IDENTIFIER.fullmatch(attribute) and attribute not in _RESERVED
    return attribute if plain else quoted(attribute)


def _at(level: int, expression: Expression) -> str:
    text, own = _write(expression)
    return text if own >= level else f"({text})"


def _write(expression: Expression) -> tuple[str, int]:
    ((op, body),) = expression.items()
    if op in _RELATIONS:
        return f"{_at(_SUM, body['left'])} {op} {_at(_SUM, body['right'])}", _RELATION
    if op in _METHODS:
        return f"{_at(_MEMBER, body['left'])}.{op}({expression_text(body['right'])})", _MEMBER
    if writer := _WRITERS.get(op):
        return writer(body)
    # Whatever is left is a function of an extension: a constructor, or a method of its first argument.
    if op in _CONSTRUCTORS:
        return f"{op}({', '.join(map(expression_text, body))})", _MEMBER
    return f"{_at(_MEMBER, body[0])}.{op}({', '.join(map(expression_text, body[1:]))})", _MEMBER


def _value(body: Any) -> tuple[str, int]:
    # A negative number is a minus and a number, and binds so.
    negative = isinstance(body, int) and not isinstance(body, bool) and body < 0
    return literal_text(body), _UNARY if negative else _MEMBER


def _joined(op: str, own: int) -> Callable[[Any], tuple[str, int]]:
    # All of these group to the left, so an equal on the right needs brackets to stay there.
    return lambda body: (f"{_at(own, body['left'])} {op} {_at(own + 1, body['right'])}", own)


def _prefixed(sign: str) -> Callable[[Any], tuple[str, int]]:
    def write(body: Any) -> tuple[str, int]:
        # A minus before a literal would be read as one negative literal.
        bare = sign == "-" and "Value" in body["arg"]
        return sign + (f"({expression_text(body['arg'])})" if bare else _at(_MEMBER, body["arg"])), _UNARY

    return write


def _attribute(body: Any) -> tuple[str, int]:
    name = _name(body["attr"])
    return _at(_MEMBER, body["left"]) + (f"[{name}]" if name.startswith('"') else f".{name}"), _MEMBER


def _like(body: Any) -> tuple[str, int]:
    pattern = "".join(
        "*" if part == "Wildcard" else quoted(part["Literal"])[1:-1].replace("*", "\\*") for part in body["pattern"]
    )
    return f'{_at(_SUM, body["left"])} like "{pattern}"', _RELATION


def _is(body: Any) -> tuple[str, int]:
    inside = f" in {_at(_SUM, body['in'])}" if "in" in body else ""
    return f"{_at(_SUM, body['left'])} is {body['entity_type']}{inside}", _RELATION


def _if(body: Any) -> tuple[str, int]:
    parts = (expression_text(body[part]) for part in ("if", "then", "else"))
    return "if {} then {} else {}".format(*parts), _IF


_WRITERS: Final[Mapping[str, Callable[[Any], tuple[str, int]]]] = {
    "Value": _value,
    "Var": lambda body: (body, _MEMBER),
    "!": _prefixed("!"),
    "neg": _prefixed("-"),
    "||": _joined("||", _OR),
    "&&": _joined("&&", _AND),
    "+": _joined("+", _SUM),
    "-": _joined("-", _SUM),
    "*": _joined("*", _PRODUCT),
    "isEmpty": lambda body: (f"{_at(_MEMBER, body['arg'])}.isEmpty()", _MEMBER),
    ".": _attribute,
    "has": lambda body: (f"{_at(_SUM, body['left'])} has {_name(body['attr'])}", _RELATION),
    "like": _like,
    "is": _is,
    "if-then-else": _if,
    "Set": lambda body: ("[" + ", ".join(map(expression_text, body)) + "]", _MEMBER),
    "Record": lambda body: (
        "{" + ", ".join(f"{_name(key)}: {expression_text(item)}" for key, item in body.items()) + "}",
        _MEMBER,
    ),
}
