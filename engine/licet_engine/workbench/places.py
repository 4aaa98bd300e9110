"""Which line of a TOML file a key stands in: what ``tomllib`` does not tell.

Rules kept: this only helps whoever mends a file; nothing is decided by it. A key that is written in a way it does not know
has no line, and its error names the key alone.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_HEADER: Final = re.compile(r"\s*\[\[?\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY: Final = re.compile(
    r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*="""
)
_WORD: Final = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")


def line_of(text: str, keys: Sequence[str | int]) -> int | None:
    """The line, from 1, of the longest beginning of a path of keys that the file names; None if it names none of it."""
    wanted = [str(key) for key in keys if not isinstance(key, int)]
    best, found = 0, None
    table: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if header := _HEADER.fullmatch(line):
            table = _words(header[1])
            named = table
        elif key := _KEY.match(line):
            named = [*table, *_words(key[1])]
        else:
            continue
        if named == wanted[: len(named)] and len(named) > best:
            best, found = len(named), number
    return found


def _words(text: str) -> list[str]:
    return [word.strip("\"'") for word in _WORD.findall(text)]
