"""What is wrong with the form of a question, in a sentence: which member, what is allowed there, and how it is written.

Rules kept here:

- A pattern that a body uses is put in words here, once; a test tells if one is missing.
- What was sent is shown again only where it shows how it should have been written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from licet_engine.domain.binding import BINDING_PATTERN

_DAY_S: Final = 86_400
_HOUR_S: Final = 3600
_MAX_SHOWN_CHARS: Final = 80
_CHOICE: Final = re.compile(r"\^\(((?:[a-z|-]|\\\.)+)\)\$")
PATTERNS: Final[Mapping[str, str]] = {
    r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$": "a name of 1 to 63 lower-case letters, digits and '-'",
    r"^[A-Za-z0-9_. -]+$": "the name of a column: letters, digits, '_', '.', '-' and spaces",
    r"^[0-9a-f]{64}$": "a digest of 64 hexadecimal digits",
    r"^[0-9a-f]{8,64}$": "the digest of a bundle, or at least its first 8 hexadecimal digits",
    r"^[0-9a-f]{32}$": "an ID of 32 hexadecimal digits, as lists show it",
    BINDING_PATTERN: "the binding that licet model read shows, or at least its first 16 hexadecimal digits",
    r"^[a-z][a-z0-9_.-]{0,63}$": "a name of at most 64 lower-case letters, digits, '_', '.' and '-', beginning with a letter",
    r"^[a-z][a-z0-9_]{0,63}$": "the name of a claim: at most 64 lower-case letters, digits and '_', beginning with a letter",
    r"^[1-9][0-9]{0,8}$": "the number of a version, such as 2",
    r"^([1-9][0-9]{0,8})?$": "the number of a version, such as 2, or empty for none",
    r"^[a-z][a-z0-9-]*/[a-z0-9][a-z0-9-]*@[1-9][0-9]{0,8}$": "a version of a model, as TENANT/NAME@VERSION",
    r"^[!-~]+$": "an address without spaces, of ASCII characters",
    r"^msg_[0-9A-Za-z]{1,64}$": "the ID of a message, as licet webhook history shows it",
    r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$": "the ID of a ticket: at most 64 letters, digits, '_' and '-'",
    r"^-?[0-9]{1,18}(\.[0-9]{1,9})?$": "a decimal number, such as 0.81",
}
"""What a text of that pattern is."""


def pattern_text(pattern: str) -> str:
    """What a text must be that matches a pattern."""
    choice = _CHOICE.fullmatch(pattern)
    if choice is not None:
        return f"one of {', '.join(choice[1].replace(chr(92), '').split('|'))}"
    return PATTERNS.get(pattern, f"text that matches {pattern}")


def sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """The first thing that is wrong, as ``MEMBER WHAT``; or only ``WHAT`` where no one member is wrong.

    Args:
        error: Of verifying what was sent.
        model: Against which it was verified.
    """
    found = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in found["loc"] if part != "[key]")
    kind, about = found["type"], found.get("ctx") or {}
    if kind == "extra_forbidden":
        holder, _, _ = where.rpartition(".")
        names = ", ".join(_members(model, found["loc"][:-1])) or "nothing"
        return f"{where} is not known; {holder or 'this'} takes {names}"
    if kind == "value_error":
        return f"{where}{': ' if where else ''}{about.get('error', found['msg'])}"
    said = _SAYS.get(kind)
    what = f"is not of the right form: {found['msg']}" if said is None else said(about, where, found.get("input"))
    return f"{where or 'parameters'} {what}"


def _members(model: Any, loc: tuple[int | str, ...]) -> list[str]:
    """The members that the object at ``loc`` may have."""
    schema = model.model_json_schema()
    parts = schema.get("$defs", {})
    at: Any = schema
    for step in (*loc, None):
        while "$ref" in at or "anyOf" in at:
            at = parts[at["$ref"].rpartition("/")[2]] if "$ref" in at else at["anyOf"][0]
        if step is None:
            break
        at = at.get("items", {}) if isinstance(step, int) else _below(at, step)
    return list(at.get("properties", {}))


def _below(at: Mapping[str, Any], step: str) -> Any:
    return at.get("properties", {}).get(step) or at.get("additionalProperties") or {}


def _bound(value: Any, where: str) -> str:
    """A bound; of a length of time also in the unit that people would use."""
    if where.endswith("_s") and isinstance(value, int) and value >= _HOUR_S:
        unit, name = (_DAY_S, "d") if value % _DAY_S == 0 else (_HOUR_S, "h")
        if value % unit == 0:
            return f"{value} ({value // unit}{name})"
    return str(value)


def _list_text(given: Any) -> str:
    """How a list is written, by what was given in its place."""
    if isinstance(given, str) and given and len(given) <= _MAX_SHOWN_CHARS:
        return json.dumps([word.strip() for word in given.split(",")], separators=(",", ":"))
    return json.dumps([given]) if type(given) is int else '["A","B"]'


_SAYS: Final[Mapping[str, Callable[[Mapping[str, Any], str, Any], str]]] = {
    "missing": lambda _about, _where, _given: "is missing",
    "string_pattern_mismatch": lambda about, _where, _given: f"must be {pattern_text(about['pattern'])}",
    "greater_than_equal": lambda about, where, _given: f"must be at least {_bound(about['ge'], where)}",
    "less_than_equal": lambda about, where, _given: f"must be at most {_bound(about['le'], where)}",
    "greater_than": lambda about, where, _given: f"must be more than {_bound(about['gt'], where)}",
    "less_than": lambda about, where, _given: f"must be less than {_bound(about['lt'], where)}",
    "string_too_short": lambda about, _where, _given: f"must have at least {about['min_length']} characters",
    "string_too_long": lambda about, _where, _given: f"must have at most {about['max_length']} characters",
    "too_short": lambda about, _where, _given: f"must have at least {about['min_length']} of them",
    "too_long": lambda about, _where, _given: f"must have at most {about['max_length']} of them",
    "literal_error": lambda about, _where, _given: f"must be {about['expected']}",
    "union_tag_invalid": lambda about, _where, _given: (
        f"must have as {about['discriminator']} one of {about['expected_tags']}"
    ),
    "union_tag_not_found": lambda about, _where, _given: f"lacks {about['discriminator']}, which tells what it is",
    "int_type": lambda _about, _where, _given: "must be a whole number",
    "string_type": lambda _about, _where, _given: "must be text",
    "bool_type": lambda _about, _where, _given: "must be true or false",
    "dict_type": lambda _about, _where, _given: "must be an object of names and values",
    "model_type": lambda _about, _where, _given: "must be an object of names and values",
    "list_type": lambda _about, _where, given: f"must be a list, such as {_list_text(given)}",
}
