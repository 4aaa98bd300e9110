"""Tables: a strict CSV reader and a fixed split, in the worker, before any row comes near a job.

Rules kept here:

- Pure: standard library only, no I/O but reading the stream it is given. The same bytes and schema give the same bytes on
  every machine and version.
- A table is read record by record, each of bounded size, so that how much memory it takes does not follow from how long
  it is: of a row that was read nothing is kept but, while a table is divided, eight bytes.
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
from array import array
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from licet_adapters.errors import InputRefused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

MAX_BYTES = 1 << 30
MAX_ROWS = 5_000_000
MAX_CELL_CHARS = 4096
MAX_COLUMNS = 4096
MAX_RECORD_BYTES = 1 << 20
"""One record with its line ends, quoted ones included."""
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


class CsvRecords:
    """The records of a CSV in UTF-8, one at a time: the header first.

    Args:
        stream: Of bytes, at its beginning.

    Raises:
        InputRefused: While it is read; with the line, code ``input.csv``.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lines = 0
        self._bytes = 0
        self._record_bytes = 0
        self._is_ended = True
        self._reader: _Reader = csv.reader(self._text(), strict=True)

    @property
    def line_num(self) -> int:
        """The line at which the record that was read last ends, 1-based."""
        return self._reader.line_num

    def __iter__(self) -> Iterator[list[str]]:
        while True:
            self._record_bytes = 0
            try:
                record = next(self._reader)
            except StopIteration:
                break
            except csv.Error as error:
                raise InputRefused(f"line {self.line_num}: {error}", code="input.csv") from error
            if len(record) > MAX_COLUMNS:
                raise InputRefused(f"line {self.line_num}: more than {MAX_COLUMNS} columns", code="input.csv")
            yield record
        if not self._is_ended:
            # A table cut within its last line would otherwise lose half a number and say nothing.
            raise InputRefused(
                "the last line has no line end: the table may have been cut short; end it with one", code="input.csv"
            )

    def _text(self) -> Iterator[str]:
        while line := self._stream.readline(MAX_RECORD_BYTES + 1):
            self._lines += 1
            self._bytes += len(line)
            # Quoted line ends make records of many lines; it is the record that the reader holds in memory.
            self._record_bytes += len(line)
            if self._record_bytes > MAX_RECORD_BYTES:
                raise InputRefused(
                    f"line {self._lines}: more than {MAX_RECORD_BYTES} bytes in one record", code="input.csv"
                )
            if self._bytes > MAX_BYTES:
                raise InputRefused(f"the table has more than {MAX_BYTES} bytes", code="input.csv")
            if b"\x00" in line:
                raise InputRefused("the table contains NUL bytes: not a text file", code="input.csv")
            self._is_ended = line.endswith(b"\n")
            try:
                text = line.decode("utf-8-sig" if self._lines == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputRefused(f"line {self._lines}: not UTF-8", code="input.csv") from error
            # A carriage return ends a line, too, as the reader expects it to.
            yield from io.StringIO(text, newline="")


class TableRows:
    """The rows of a table that pass, one at a time.

    Args:
        stream: Of bytes, at its beginning: UTF-8, comma-separated, one header line; further columns are allowed and left
            behind.
        schema: What it must look like.

    Attributes:
        rows: How many passed so far.
        dropped_lines: Lines whose rows were dropped for a missing feature so far, 1-based.
    """

    def __init__(self, stream: BinaryIO, schema: TableSchema) -> None:
        self._records = CsvRecords(stream)
        self._schema = schema
        self.rows = 0
        self.dropped_lines = array("L")

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        """Read and verify.

        Raises:
            InputRefused: With line and column; code ``input.csv`` or, for a missing or NaN label, ``input.label``.
        """
        records = iter(self._records)
        header = next(records, None)
        if header is None:
            raise InputRefused("the table is empty: not even a header", code="input.csv")
        positions = _positions(header, self._schema)
        kept = [(positions[name], name, encoding) for name, encoding in self._schema.columns.items()]
        for cells in records:
            line = self._records.line_num
            if len(cells) != len(header):
                raise InputRefused(
                    f"line {line}: {len(cells)} cells where the header names {len(header)} columns", code="input.csv"
                )
            row = [_cell(cells[at], name, encoding, line, self._schema) for at, name, encoding in kept]
            present = tuple(cell for cell in row if cell is not None)
            if self.rows + len(self.dropped_lines) >= MAX_ROWS:
                raise InputRefused(f"line {line}: more than {MAX_ROWS} rows", code="input.csv")
            if len(present) < len(row):
                self.dropped_lines.append(line)
            else:
                self.rows += 1
                yield present
        if not self.rows:
            raise InputRefused("the table has no rows", code="input.csv")


def read_table(data: bytes, schema: TableSchema) -> Table:
    """Parse and verify a CSV that is small enough to be held in memory as a table.

    Args:
        data: As ``TableRows`` takes it.
        schema: What it must look like.

    Raises:
        InputRefused: As ``TableRows``.
    """
    found = TableRows(io.BytesIO(data), schema)
    rows = list(found)
    return Table(schema=schema, rows=rows, dropped_lines=tuple(found.dropped_lines))


class Division:
    """Which rows are held out: the same share of each combination of label and groups.

    Args:
        rows: All rows, in their order; read once.
        schema: Which they passed.
        held_out_micro: Share that is held out, in millionths, above 0 and below 1.
        seed: Which split.

    Attributes:
        held_out_rows: How many are held out.
        train_rows: How many are not.

    Raises:
        InputRefused: A share out of range, or a combination too small to stand on both sides; code ``input.split``.
    """

    def __init__(self, rows: Iterable[tuple[str, ...]], schema: TableSchema, *, held_out_micro: int, seed: int) -> None:
        if not 0 < held_out_micro < MICRO:
            raise InputRefused("the held-out share is not between 0 and 1", code="input.split")
        names = list(schema.columns)
        self._at = [names.index(name) for name in (schema.label, *schema.groups)]
        self._seed = seed
        # Of each row the first eight bytes of its hash, so that millions take little room; which of two rows that
        # have these in common comes first (one table in millions) is not decided: that split is refused.
        ranks: dict[tuple[str, ...], array[int]] = {}
        count = 0
        for row in rows:
            ranks.setdefault(self._stratum(row), array("Q")).append(self._rank(count))
            count += 1
        self._limits: dict[tuple[str, ...], int] = {}
        self.held_out_rows = 0
        for stratum, found in ranks.items():
            taken = (len(found) * held_out_micro + MICRO // 2) // MICRO
            ordered = sorted(found)
            if 0 < taken < len(ordered) and ordered[taken - 1] == ordered[taken]:
                raise InputRefused("two rows cannot be put in order; use another seed", code="input.split")
            self._limits[stratum] = ordered[taken - 1] if taken else -1
            self.held_out_rows += taken
        self.train_rows = count - self.held_out_rows
        if not self.train_rows or not self.held_out_rows:
            raise InputRefused("the table is too small to split", code="input.split")

    def is_held_out(self, number: int, row: tuple[str, ...]) -> bool:
        """Whether a row is held out.

        Args:
            number: Its place among the rows, from 0.
            row: The row.
        """
        return self._rank(number) <= self._limits[self._stratum(row)]

    def _stratum(self, row: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(row[index] for index in self._at)

    def _rank(self, number: int) -> int:
        digest = hashlib.sha256(f"licet-split:v1:{self._seed}:{number}".encode()).digest()
        return int.from_bytes(digest[:8], "big")

    def record(self, *, held_out_micro: int, dropped_rows: int) -> Mapping[str, int | str]:
        """Counts and parameters, for the attestation."""
        return {
            "method": "licet-split:v1",
            "seed": self._seed,
            "held_out_micro": held_out_micro,
            "train_rows": self.train_rows,
            "held_out_rows": self.held_out_rows,
            "dropped_rows": dropped_rows,
        }


def split_table(table: Table, *, held_out_micro: int, seed: int) -> Split:
    """Divide a table that is held in memory; as ``Division`` does it.

    Args:
        table: All rows.
        held_out_micro: Share that is held out, in millionths, above 0 and below 1.
        seed: Which split.

    Raises:
        InputRefused: As ``Division``.
    """
    division = Division(table.rows, table.schema, held_out_micro=held_out_micro, seed=seed)
    sides: tuple[list[tuple[str, ...]], list[tuple[str, ...]]] = ([], [])
    for number, row in enumerate(table.rows):
        sides[division.is_held_out(number, row)].append(row)
    return Split(
        train=Table(schema=table.schema, rows=sides[0]),
        held_out=Table(schema=table.schema, rows=sides[1]),
        record=division.record(held_out_micro=held_out_micro, dropped_rows=len(table.dropped_lines)),
    )


def _positions(header: Sequence[str], schema: TableSchema) -> dict[str, int]:
    names = [name.strip() for name in header]
    counts = Counter(names)
    if repeated := sorted(name for name in schema.columns if counts[name] > 1):
        raise InputRefused(f"line 1: column {repeated[0]} stands there twice", code="input.csv")
    if missing := [name for name in schema.columns if name not in counts]:
        # A file with another separator has but one column, whose name is the whole line.
        told = "; columns are separated by commas, and the first line names them" if len(names) == 1 else ""
        raise InputRefused(f"line 1: column {missing[0]} is missing{told}", code="input.csv")
    places = {name: at for at, name in enumerate(names)}
    return {name: places[name] for name in schema.columns}


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
        if name in schema.groups:
            raise InputRefused(f"{where}: missing; a protected column has a value in every row", code=code)
        if schema.missing == "refuse":
            raise InputRefused(
                f"{where}: missing; to leave out the rows that lack a value, register with missing=drop (--missing drop)",
                code=code,
            )
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
