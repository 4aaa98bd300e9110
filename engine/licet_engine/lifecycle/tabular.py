"""Tables as the worker handles them: inspected when they are registered, divided the same way ever after."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

from pydantic import ValidationError

from licet_adapters.errors import InputRefused
from licet_adapters.modelfiles import ARCHITECTURE_FILE, WEIGHTS_FILE
from licet_adapters.ports import InputFile
from licet_adapters.serving.reference import build_reference
from licet_adapters.training.data import MAX_CELL_CHARS, CsvRecords, Division, TableRows, TableSchema
from licet_engine.domain.errors import InvalidInput
from licet_engine.lifecycle.wording import sentence

MAX_NAMED: Final = 100
"""Columns that are named as left out; of a table's thousands, nobody reads more."""
_YES_NO: Final = frozenset({"yes", "no", "true", "false"})
_MISSING: Final = frozenset({"", "NA", "N/A", "NULL", "null", "None"})


def infer_columns(stream: BinaryIO) -> dict[str, str]:
    """How each column of a table is written: ``number`` or ``yes-no``; a column that is neither is left out.

    Raises:
        InputRefused: Not a table.
    """
    records = iter(CsvRecords(stream))
    header = [name.strip() for name in next(records, [])]
    kinds: dict[int, str | None] = {index: None for index, name in enumerate(header) if name}
    for cells in records:
        for index in list(kinds):
            if index < len(cells):
                kinds[index] = _merge(kinds[index], cells[index].strip())
    return {header[index]: kind for index, kind in kinds.items() if kind in {"number", "yes-no"}}


def _merge(kind: str | None, cell: str) -> str | None:
    if kind == "other" or cell in _MISSING:
        return kind
    if len(cell) > MAX_CELL_CHARS:
        return "other"
    try:
        float(cell)
        found = "number"
    except ValueError:
        found = "yes-no" if cell.lower() in _YES_NO else "other"
    return found if kind in {None, found} else "other"


@dataclass(frozen=True, slots=True)
class Inspected:
    """A table that can be registered.

    Attributes:
        columns: How each kept column is written.
        rows: Their number.
        left_out: The columns that are not kept, in order, at most `MAX_NAMED` of them; one without a name by its place.
    """

    columns: Mapping[str, str]
    rows: int
    left_out: Sequence[str]


class Tables:
    """Reads and divides tables; stateless."""

    def inspect(self, path: Path, parameters: Mapping[str, Any]) -> Inspected:
        """Verify a table that is to be registered.

        Args:
            path: The upload.
            parameters: Of the operation: label, protected columns, what a missing value does, and perhaps the columns.

        Raises:
            InvalidInput: It is broken; says in which line and column.
        """
        try:
            with path.open("rb") as stream:
                declared = parameters.get("columns")
                columns = dict(declared or infer_columns(stream))
                for name in (parameters["label"], *parameters["protected"]):
                    # One of which no kind was found is read as what it must be: then the line is named that is not so.
                    found = columns.get(name, "not declared") if declared else columns.setdefault(name, "yes-no")
                    if found != "yes-no":
                        raise InvalidInput(f"column {name!r} must be yes-no; it is {found}", code="input.csv")
                if set(columns) <= {parameters["label"]}:
                    raise InvalidInput(
                        f"beside the label {parameters['label']!r} no column was found that is a number or yes-no: the table"
                        " is comma-separated, its first line names the columns, and rows follow",
                        code="input.csv",
                    )
                stream.seek(0)
                table = TableRows(stream, _schema(columns, parameters))
                for _ in table:
                    pass
                stream.seek(0)
                names = enumerate((name.strip() for name in next(iter(CsvRecords(stream)))), 1)
                left_out = (
                    name or f"column {place}, which has no name" for place, name in names if name not in columns
                )
                return Inspected(columns, table.rows, tuple(islice(left_out, MAX_NAMED)))
        except InputRefused as error:
            raise InvalidInput(str(error), code=error.code) from error

    def split(
        self, source: Path, folder: Path, parameters: Mapping[str, Any]
    ) -> tuple[InputFile, InputFile, Mapping[str, Any]]:
        """Divide a registered table into training and held-out rows, as files in ``folder``.

        Columns that the spec excludes are in neither; the label and the protected columns are in both.
        """
        excluded = set(parameters["exclude"])
        if needed := sorted(excluded & {parameters["label"], *parameters["protected"]}):
            raise InvalidInput(
                f"spec.exclude: {', '.join(needed)}: the label and the protected columns are needed to divide and to check"
                " the rows, and are never features: leave them out of exclude",
                code="input.exclude",
            )
        columns = {name: kind for name, kind in parameters["columns"].items() if name not in excluded}
        schema = _schema(columns, parameters)
        with source.open("rb") as stream:
            rows = TableRows(stream, schema)
            division = Division(rows, schema, **parameters["split"])
            stream.seek(0)
            with _Writer(folder / "train.csv", schema) as train, _Writer(folder / "held-out.csv", schema) as held_out:
                for number, row in enumerate(TableRows(stream, schema)):
                    (held_out if division.is_held_out(number, row) else train).write(row)
        record = division.record(
            held_out_micro=parameters["split"]["held_out_micro"], dropped_rows=len(rows.dropped_lines)
        )
        return train.file(), held_out.file(), record

    def reference(self, train: Path, model: Path, target: Path, *, as_of_ms: int) -> InputFile:
        """Write what the training rows looked like to the model; it holds values of columns, sorted, and no row."""
        data = build_reference(
            train.read_bytes(),
            architecture=(model / ARCHITECTURE_FILE).read_bytes(),
            weights=(model / WEIGHTS_FILE).read_bytes(),
            data_as_of_ms=as_of_ms,
        )
        with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
        return InputFile(path=target, digest_hex=hashlib.sha256(data).hexdigest())


def _schema(columns: Mapping[str, str], parameters: Mapping[str, Any]) -> TableSchema:
    try:
        return TableSchema.model_validate(
            {
                "columns": dict(columns),
                "label": parameters["label"],
                "groups": tuple(parameters["protected"]),
                "missing": parameters.get("missing", "refuse"),
            }
        )
    except ValidationError as error:
        raise InvalidInput(f"the table: {sentence(error, TableSchema)}") from error


class _Writer:
    """Writes rows in the one canonical form (header, LF, minimal quoting), and knows the digest of what it wrote."""

    def __init__(self, path: Path, schema: TableSchema) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")
        self._csv = csv.writer(self, lineterminator="\n")
        self.write(tuple(schema.columns))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, row: tuple[str, ...] | str) -> None:
        """Write one row; the CSV writer calls this again with its text."""
        if isinstance(row, tuple):
            self._csv.writerow(row)
            return
        data = row.encode()
        self._digest.update(data)
        self._file.write(data)

    def file(self) -> InputFile:
        """What was written."""
        return InputFile(path=self._path, digest_hex=self._digest.hexdigest())
