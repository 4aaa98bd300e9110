r"""Text of strangers, made fit to be shown. Names of principals, resources, reasons and labels are whatever somebody chose.

Rules kept here:

- What cannot be seen, or changes how its surroundings look (controls, marks of direction, blanks that are none, parts of surrogate
  pairs, characters without a meaning), is shown by its number as ``\u{202E}``. So a name looks like no other.
- No name is longer than is said where it is shown; what is cut ends in an ellipsis.
- One form of a time: RFC 3339 in UTC.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Final

MAX_CHARS: Final = 160
"""Of a name that is shown in full."""
ELLIPSIS: Final = "\N{HORIZONTAL ELLIPSIS}"

_PLAIN: Final = re.compile(r"[ -~]*")
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_BLANK_LETTERS: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0")
_MARKS: Final = frozenset({"Mn", "Me"})
_MAX_MARKS: Final = 3
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
LAST_MS: Final = 253_402_300_799_999
"""The last millisecond of the year 9999, after which RFC 3339 has no form."""


def pieces(text: str) -> list[tuple[str, bool]]:
    """A text in pieces, each with whether it stands for a character that cannot be shown."""
    if _PLAIN.fullmatch(text):
        return [(text, False)] if text else []
    found: list[tuple[str, bool]] = []
    kept: list[str] = []
    marks = 0
    for char in text:
        category = unicodedata.category(char)
        # A letter bears a few marks; a tower of them would cover what stands around it.
        marks = marks + 1 if category in _MARKS else 0
        blank = char in _BLANK_LETTERS or (category == "Zs" and char != " ") or _is_selector(char)
        if category not in _UNSEEN and not blank and marks <= _MAX_MARKS:
            kept.append(char)
            continue
        if kept:
            found.append(("".join(kept), False))
            kept = []
        found.append((f"\\u{{{ord(char):04X}}}", True))
    if kept:
        found.append(("".join(kept), False))
    return found


def _is_selector(char: str) -> bool:
    return "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"


def visible(text: str, max_chars: int = MAX_CHARS) -> str:
    """A text as it can be shown, cut after ``max_chars`` of its characters."""
    return "".join(piece for piece, _ in pieces(cut(text, max_chars)))


def cut(text: str, max_chars: int) -> str:
    """The beginning of a text, with an ellipsis where something is left out."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + ELLIPSIS


def columns(text: str) -> int:
    """How many columns a text takes at most, in units of a narrow letter."""
    return sum(2 if unicodedata.east_asian_width(char) in "WFA" else 1 for char in text)


def fitting(text: str, max_columns: int) -> str:
    """The beginning of a text that fits into some columns, as it can be shown."""
    shown = visible(text)
    if columns(shown) <= max_columns:
        return shown
    while shown and columns(shown) >= max_columns:
        shown = shown[:-1]
    return shown + ELLIPSIS


def moment(time_ms: int) -> str:
    """A time as RFC 3339; one that has no such form as its milliseconds."""
    if not 0 <= time_ms <= LAST_MS:
        return f"{time_ms} ms"
    at = _EPOCH + timedelta(milliseconds=time_ms)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
