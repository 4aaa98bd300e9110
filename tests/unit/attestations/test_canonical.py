"""Strict, bounded, canonical JSON."""

import enum
import hashlib

import pytest

from licet_attestations import canonical
from licet_attestations.errors import FormatError


class Colour(enum.StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": 1, "a": [None, True, False]}, b'{"a":[null,true,false],"b":1}'),
        ({"B": 1, "a": 2, "10": 3, "9": 4}, b'{"10":3,"9":4,"B":1,"a":2}'),
        ('\u20ac\x0f\n\t\b\f\r"\\/\x7f', '"€\\u000f\\n\\t\\b\\f\\r\\"\\\\/\x7f"'.encode()),
        (2**53 - 1, b"9007199254740991"),
        ((1, 2), b"[1,2]"),
        (Colour.RED, b'"red"'),
    ],
)
def test_dumps(value: object, text: bytes) -> None:
    assert canonical.dumps(value) == text
    assert canonical.digest(value) == hashlib.sha256(text).digest()
    assert canonical.digest_hex(value) == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize(
    "value",
    [1.0, float("nan"), 2**53, -(2**53), {1: "a"}, {"é": 1}, {None: 1}, "\ud800", b"bytes", {1}, object(), [[1.5]]],
)
def test_dumps_refuses_what_is_outside_the_subset(value: object) -> None:
    with pytest.raises(FormatError):
        canonical.dumps(value)


def test_dumps_and_loads_agree_on_depth() -> None:
    nested: object = 1
    for _ in range(canonical.MAX_DEPTH):
        nested = [nested]
    assert canonical.loads(canonical.dumps(nested)) == nested
    with pytest.raises(FormatError, match="deeper"):
        canonical.dumps([nested])
    with pytest.raises(FormatError, match="deeper"):
        canonical.loads(b"[" + canonical.dumps(nested) + b"]")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"{",
        b"1.0",
        b"1e3",
        b"-0",
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"9007199254740992",
        b"1" * 5000,
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        '{"é":1}'.encode(),
        b'"\xff"',
        b"\xef\xbb\xbf1",
        b'"\\ud800"',
        b'"\\uD83D"',
        b'{"a":1}x',
        b"'a'",
        b'"\n"',
        b"[1,]",
        b"[" * 1_000_000,
        b'{"a":' * 1_000,
        "\ufeff1".encode("utf-16"),
    ],
)
def test_loads_refuses(text: bytes) -> None:
    with pytest.raises(FormatError):
        canonical.loads(text)


def test_loads_reads_what_is_not_canonical_only_if_it_may() -> None:
    assert canonical.loads(b' {"b": 1, "a": "\\u0041\\ud83d\\ude02"} ') == {"a": "A\U0001f602", "b": 1}
    for text in (b'{"b":1,"a":2}', b'{"a": 1}', b'"\\u0041"', b"1 ", b'"\\/"'):
        canonical.loads(text)
        with pytest.raises(FormatError, match="canonical"):
            canonical.loads(text, canonical=True)


def test_brackets_in_strings_are_not_depth() -> None:
    assert canonical.loads(b'"' + b"[" * 200 + b'"') == "[" * 200
    assert canonical.loads(b'["\\"[[[[","]]"]', max_depth=1) == ['"[[[[', "]]"]


def test_size_is_bounded() -> None:
    with pytest.raises(FormatError, match="longer"):
        canonical.loads(b"[1,2,3]", max_bytes=6)
