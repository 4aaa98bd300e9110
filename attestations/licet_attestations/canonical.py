"""Canonical JSON (RFC 8785) in the subset that Licet signs and hashes.

Rules kept here:

- The subset is null, booleans, integers of magnitude below 2**53, strings, arrays, and objects whose keys are ASCII.
  Floats are refused both ways: fractions travel as integers in permille or micro, or as strings.
- In that subset, Python's own encoder with sorted keys gives the very bytes of RFC 8785: the order of ASCII keys is the
  same by code point as by UTF-16 unit, integers are shortest already, and the escapes are the same.
- Parsing is strict and bounded: size, depth, duplicate keys, floats, NaN, lone surrogates, a byte-order mark and bad UTF-8
  are refused. What ``dumps`` wrote, ``loads`` reads.

Source: RFC 8785 sections 3.2.2 and 3.2.3; RFC 7493 (I-JSON).
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from licet_attestations.errors import FormatError

MAX_DEPTH = 64
MAX_BYTES = 16 * 1024 * 1024
_MAX_INTEGER = 2**53 - 1
_MAX_INTEGER_CHARS = 17

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
# Strings first, so that a bracket inside one is not counted.
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')


def _check(value: Any, depth: int) -> None:  # noqa: C901  # One test per JSON type, in one place and fast.
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return
    if kind is int:
        if not -_MAX_INTEGER <= value <= _MAX_INTEGER:
            raise FormatError(f"integer {value} is not below 2**53 in magnitude; write it as a string")
    elif kind is dict:
        if depth >= MAX_DEPTH:
            raise FormatError(f"JSON is nested deeper than {MAX_DEPTH}")
        for key, item in value.items():
            if type(key) is not str or not key.isascii():
                raise FormatError(f"object key {key!r} is not ASCII text")
            _check(item, depth + 1)
    elif kind is list or kind is tuple:
        if depth >= MAX_DEPTH:
            raise FormatError(f"JSON is nested deeper than {MAX_DEPTH}")
        for item in value:
            _check(item, depth + 1)
    elif isinstance(value, str):
        return  # A StrEnum is encoded as the text it is.
    else:
        raise FormatError(f"a value of type {kind.__name__} has no canonical JSON here (floats: use micro integers)")


def dumps(value: Any) -> bytes:
    """Encode ``value`` as canonical JSON.

    Args:
        value: None, bool, int, str, list or tuple, dict with ASCII keys, nested at most ``MAX_DEPTH`` deep.

    Raises:
        FormatError: The value is outside the subset.
    """
    _check(value, 0)
    try:
        return _ENCODER.encode(value).encode()
    except UnicodeEncodeError as error:
        raise FormatError("a string holds a lone surrogate, which has no UTF-8") from error


def digest(value: Any) -> bytes:
    """SHA-256 of the canonical JSON of ``value``."""
    return hashlib.sha256(dumps(value)).digest()


def digest_hex(value: Any) -> str:
    """SHA-256 of the canonical JSON of ``value``, as 64 hex characters."""
    return hashlib.sha256(dumps(value)).hexdigest()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise FormatError("a JSON object has the same key twice")
    for key in result:
        if not key.isascii():
            raise FormatError(f"object key {key!r} is not ASCII text")
    return result


def _integer(text: str) -> int:
    if len(text) > _MAX_INTEGER_CHARS or abs(value := int(text)) > _MAX_INTEGER:
        raise FormatError("a JSON integer is not below 2**53 in magnitude")
    if text == "-0":
        raise FormatError("a JSON number is minus zero")
    return value


def _no_float(text: str) -> Any:
    raise FormatError(f"a JSON number {text[:32]!r} is not an integer")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_no_float, parse_constant=_no_float, strict=True
)


def _check_depth(text: str, max_depth: int) -> None:
    if text.count("[") + text.count("{") <= max_depth:
        return
    depth = 0
    for token in _TOKENS.finditer(text):
        mark = token.group()
        if mark in "[{":
            depth += 1
            if depth > max_depth:
                raise FormatError(f"JSON is nested deeper than {max_depth}")
        elif mark in "]}":
            depth -= 1


def loads(data: bytes, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH, canonical: bool = False) -> Any:
    """Parse JSON strictly.

    Args:
        data: UTF-8 text of one JSON value.
        max_bytes: Longest input that is looked at.
        max_depth: Deepest nesting of arrays and objects.
        canonical: Whether the bytes must be the canonical ones, so that one value has one text.

    Raises:
        FormatError: Not JSON, outside the subset, over a bound, or (if asked for) not canonical.
    """
    if len(data) > max_bytes:
        raise FormatError(f"JSON of {len(data)} bytes is longer than the {max_bytes} allowed here")
    try:
        text = data.decode("utf-8")
        _check_depth(text, max_depth)
        value = _DECODER.decode(text)
    except UnicodeDecodeError as error:
        raise FormatError("JSON is not valid UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not JSON: {error}") from error
    if canonical:
        if dumps(value) != data:
            raise FormatError("JSON is not in its canonical form")
    elif "\\u" in text:
        dumps(value)  # An escape may have made a lone surrogate.
    return value
