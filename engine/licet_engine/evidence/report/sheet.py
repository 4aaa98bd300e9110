"""``entries.csv``: the index of everything, one row for each entry, as RFC 4180 has it.

Rules kept here:

- Every cell is quoted. No cell holds a line break or another control character; they are shown by their numbers.
- No cell is a formula, in whatever program, with whatever separator the file is read: where a sign that begins one stands at the
  beginning of a cell, or behind a separator or a quotation mark within it, an apostrophe stands before the sign.
- Rows are made one by one: memory does not grow with their number.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Final

from licet_engine.evidence.report.rows import Row
from licet_engine.evidence.report.text import moment, visible

COLUMNS: Final = (
    "index",
    "time",
    "kind",
    "actor",
    "owner",
    "principal",
    "action",
    "resource",
    "outcome",
    "bundle",
    "decision",
    "operation",
    "attestation",
    "attestation_type",
    "erased",
)
MAX_CELL_CHARS: Final = 512
_ROWS_AT_ONCE: Final = 500

_SIGNS: Final = "=+\\-@"
_LOOKALIKES: Final = "".join(
    char
    for char in map(chr, (*range(0x2000, 0x3000), *range(0xFE00, 0x10000)))
    if unicodedata.normalize("NFKC", char)[:1] in set("=+-@")
)
"""What some programs take for one of these signs: their full-width, small, raised and lowered forms."""
_DASHES: Final = "\u2010\u2011\u2012\u2013\u2014\u2212"
_BEGINS: Final = re.compile(f'((?:^|[,;|:"])\\s*)([{_SIGNS}{re.escape(_LOOKALIKES)}{_DASHES}])')


_HARMLESS: Final = re.compile(r"[0-9A-Za-z]+(?:[._/:@-][0-9A-Za-z]+){0,40}")
"""Most cells: words, numbers, times and references, of which nothing needs to be looked at."""


def cell(value: str) -> str:
    """A cell of the file, quoted, that no spreadsheet takes for a formula."""
    if len(value) <= MAX_CELL_CHARS and _HARMLESS.fullmatch(value):
        return f'"{value}"'
    safe = _BEGINS.sub(r"\1'\2", visible(value, MAX_CELL_CHARS))
    return '"' + safe.replace('"', '""') + '"'


def lines(rows: Iterable[Row]) -> Iterator[bytes]:
    """The file, in pieces of some hundred rows."""
    waiting = [_line(COLUMNS)]
    for row in rows:
        waiting.append(_line(_values(row)))
        if len(waiting) >= _ROWS_AT_ONCE:
            yield "".join(waiting).encode()
            waiting = []
    if waiting:
        yield "".join(waiting).encode()


def _line(values: Iterable[str]) -> str:
    return ",".join(map(cell, values)) + "\r\n"


def _values(row: Row) -> tuple[str, ...]:
    return (
        str(row.index),
        moment(row.time_ms),
        row.kind,
        row.actor,
        row.owner,
        row.principal,
        row.action,
        row.resource,
        row.outcome,
        row.bundle,
        row.decision,
        row.operation,
        row.attestation,
        row.attestation_type,
        "yes" if row.erased else "no",
    )
