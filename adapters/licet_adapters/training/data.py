"""Tables: a strict CSV reader and a fixed split, in the worker, before any row comes near a job.

Rules kept here:

- Pure: standard library only, no I/O. The same bytes and schema give the same bytes on every machine and version.
- A broken table is refused whole, naming line and column; no cell is guessed, and no value is shown in a message.
- Numbers are finite. A missing or NaN label is always refused; a missing feature drops its row only if the schema says
  so, and is counted.
- Only the columns that the schema names are kept: what a job must not see (a column that gives the label away) never
  reaches it.
- The split is stratified and made by hashing seed and row number: held-out rows are held out for good, whatever library
  version asks, and row order does not leak it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from licet_adapters.errors import InputRefused

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MAX_BYTES = 1 << 30
MAX_ROWS = 5_000_000
MAX_CELL_CHARS = 4096
MICRO = 1_000_000
_MISSING = frozenset({"", "NA", "N/A", "NULL", "null", "None"})
_YES_NO = {"yes": "yes", "no": "no", "true": "yes", "false": "no", "1": "yes", "0": "no"}

ColumnName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:=/ -]*$")]
Encoding = Literal["number", "yes-no"]


class _Reader(Protocol):
    """What ``csv.reader`` gives."""

    line_num: int

    def __iter__(self) -> Iterator[list[str]]: ...
    def __next__(self) -> list[str]: ...


class TableSchema(BaseModel):
    """What a table must look like, and which of its columns are kept.

    Attributes:
        columns: Kept columns and how they are written, in order.
        label: The column that is predicted, ``yes-no``.
        groups: Protected attributes, ``yes-no``: for the bias check, never a feature.
        missing: What a missing feature does to its row; a missing label or group always refuses the table.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    columns: dict[ColumnName, Encoding] = Field(min_length=2, max_length=4096)
    label: ColumnName
    groups: tuple[ColumnName, ...] = Field(default=(), strict=False, max_length=64)
    missing: Literal["refuse", "drop"] = "refuse"

    @model_validator(mode="after")
    def _named_columns_exist(self) -> TableSchema:
        for name in (self.label, *self.groups):
            if self.columns.get(name) != "yes-no":
                raise ValueError(f"column {name} must be among the columns, as yes-no")
        if self.label in self.groups:
            raise ValueError("the label is not a group")
        return self

    @property
    def features(self) -> tuple[str, ...]:
        """Columns that are neither label nor group, in order."""
        return tuple(name for name in self.columns if name != self.label and name not in self.groups)


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table that passed.

    Attributes:
        schema: Which it passed.
        rows: Cells as text, in the order of the schema's columns; numbers parse, yes-no cells are ``yes`` or ``no``.
        dropped_lines: Lines whose rows were dropped for a missing feature, 1-based.
    """

    schema: TableSchema
    rows: Sequence[tuple[str, ...]]
    dropped_lines: Sequence[int] = ()

    def to_csv(self) -> bytes:
        """Return the one canonical form: header, LF, minimal quoting."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.schema.columns)
        writer.writerows(self.rows)
        return text.getvalue().encode()

    def column(self, name: str) -> list[str]:
        """The cells of one column."""
        at = list(self.schema.columns).index(name)
        return [row[at] for row in self.rows]


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Training and held-out rows of one table.

    Attributes:
        train: What may enter the training sandbox.
        held_out: What may not.
        record: Counts and parameters, for the attestation.
    """

    train: Table
    held_out: Table
    record: Mapping[str, int | str]


def read_table(data: bytes, schema: TableSchema) -> Table:
    """Parse and verify a CSV.

    Args:
        data: UTF-8, comma-separated, one header line; further columns are allowed and left behind.
        schema: What it must look like.

    Raises:
        InputRefused: With line and column; code ``input.csv`` or, for a missing or NaN label, ``input.label``.
    """
    if len(data) > MAX_BYTES:
        raise InputRefused(f"the table has {len(data)} bytes; at most {MAX_BYTES} are taken", code="input.csv")
    if b"\x00" in data:
        raise InputRefused("the table contains NUL bytes: not a text file", code="input.csv")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputRefused(f"line {line}: not UTF-8", code="input.csv") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows, dropped = _read_rows(reader, schema)
    except csv.Error as error:
        raise InputRefused(f"line {reader.line_num}: {error}", code="input.csv") from error
    if not data.endswith(b"\n"):
        # A table cut within its last line would otherwise lose half a number and say nothing.
        raise InputRefused(
            "the last line has no line end: the table may have been cut short; end it with one", code="input.csv"
        )
    if not rows:
        raise InputRefused("the table has no rows", code="input.csv")
    return Table(schema=schema, rows=rows, dropped_lines=tuple(dropped))


def _read_rows(reader: _Reader, schema: TableSchema) -> tuple[list[tuple[str, ...]], list[int]]:
    header = next(reader, None)
    if header is None:
        raise InputRefused("the table is empty: not even a header", code="input.csv")
    positions = _positions(header, schema)
    rows: list[tuple[str, ...]] = []
    dropped: list[int] = []
    for cells in reader:
        line = reader.line_num
        if len(cells) != len(header):
            raise InputRefused(
                f"line {line}: {len(cells)} cells where the header names {len(header)} columns", code="input.csv"
            )
        row = [_cell(cells[positions[name]], name, encoding, line, schema) for name, encoding in schema.columns.items()]
        present = tuple(cell for cell in row if cell is not None)
        if len(present) < len(row):
            dropped.append(line)
        else:
            rows.append(present)
        if len(rows) > MAX_ROWS:
            raise InputRefused(f"line {line}: more than {MAX_ROWS} rows", code="input.csv")
    return rows, dropped


def split_table(table: Table, *, held_out_micro: int, seed: int) -> Split:
    """Hold out rows: the same share of each combination of label and groups.

    Args:
        table: All rows.
        held_out_micro: Share that is held out, in millionths, above 0 and below 1.
        seed: Which split.

    Raises:
        InputRefused: A share out of range, or a combination too small to stand on both sides; code ``input.split``.
    """
    if not 0 < held_out_micro < MICRO:
        raise InputRefused("the held-out share is not between 0 and 1", code="input.split")
    names = list(table.schema.columns)
    at = [names.index(name) for name in (table.schema.label, *table.schema.groups)]
    strata: dict[tuple[str, ...], list[int]] = {}
    for number, row in enumerate(table.rows):
        strata.setdefault(tuple(row[index] for index in at), []).append(number)
    held_out: set[int] = set()
    for numbers in strata.values():
        ordered = sorted(
            numbers, key=lambda number: hashlib.sha256(f"licet-split:v1:{seed}:{number}".encode()).digest()
        )
        held_out.update(ordered[: (len(ordered) * held_out_micro + MICRO // 2) // MICRO])
    train_rows = [row for number, row in enumerate(table.rows) if number not in held_out]
    held_out_rows = [row for number, row in enumerate(table.rows) if number in held_out]
    if not train_rows or not held_out_rows:
        raise InputRefused("the table is too small to split", code="input.split")
    return Split(
        train=Table(schema=table.schema, rows=train_rows),
        held_out=Table(schema=table.schema, rows=held_out_rows),
        record={
            "method": "licet-split:v1",
            "seed": seed,
            "held_out_micro": held_out_micro,
            "train_rows": len(train_rows),
            "held_out_rows": len(held_out_rows),
            "dropped_rows": len(table.dropped_lines),
        },
    )


def _positions(header: Sequence[str], schema: TableSchema) -> dict[str, int]:
    names = [name.strip() for name in header]
    if repeated := sorted({name for name in schema.columns if names.count(name) > 1}):
        raise InputRefused(f"line 1: column {repeated[0]} stands there twice", code="input.csv")
    if missing := [name for name in schema.columns if name not in names]:
        raise InputRefused(f"line 1: column {missing[0]} is missing", code="input.csv")
    return {name: names.index(name) for name in schema.columns}


def _cell(raw: str, name: str, encoding: Encoding, line: int, schema: TableSchema) -> str | None:
    """Return the cell in its one form, or None if it is missing and its row is to be dropped."""
    where = f"line {line}, column {name}"
    code = "input.label" if name == schema.label else "input.csv"
    if len(raw) > MAX_CELL_CHARS:
        raise InputRefused(f"{where}: more than {MAX_CELL_CHARS} characters", code=code)
    text = raw.strip()
    if text in _MISSING:
        if name == schema.label:
            raise InputRefused(f"{where}: the label is missing", code=code)
        if name in schema.groups or schema.missing == "refuse":
            raise InputRefused(f"{where}: missing", code=code)
        return None
    if encoding == "yes-no":
        if (known := _YES_NO.get(text.lower())) is None:
            raise InputRefused(f"{where}: neither yes nor no", code=code)
        return known
    try:
        value = float(text)
    except ValueError as error:
        raise InputRefused(f"{where}: not a number", code=code) from error
    if not math.isfinite(value) or "_" in text:
        raise InputRefused(f"{where}: not a finite number", code=code)
    return repr(value)
