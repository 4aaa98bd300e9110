"""Tables as the worker handles them: inspected when they are registered, divided the same way ever after."""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from licet_adapters.errors import InputRefused
from licet_adapters.ports import InputFile
from licet_adapters.training.data import TableSchema, read_table, split_table
from licet_engine.domain.errors import InvalidInput

_YES_NO: Final = frozenset({"yes", "no", "true", "false"})
_MISSING: Final = frozenset({"", "NA", "N/A", "NULL", "null", "None"})


def infer_columns(data: bytes) -> dict[str, str]:
    """How each column of a table is written: ``number`` or ``yes-no``; a column that is neither is left out.

    Raises:
        InvalidInput: Not a table.
    """
    try:
        reader = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        header = [name.strip() for name in next(reader)]
        kinds: dict[int, str | None] = {index: None for index, name in enumerate(header) if name}
        for cells in reader:
            for index in list(kinds):
                if index < len(cells):
                    kinds[index] = _merge(kinds[index], cells[index].strip())
    except (UnicodeDecodeError, csv.Error, StopIteration) as error:
        raise InvalidInput(f"this is not a CSV file in UTF-8: {error}", code="input.csv") from error
    return {header[index]: kind for index, kind in kinds.items() if kind in {"number", "yes-no"}}


def _merge(kind: str | None, cell: str) -> str | None:
    if kind == "other" or cell in _MISSING:
        return kind
    try:
        float(cell)
        found = "number"
    except ValueError:
        found = "yes-no" if cell.lower() in _YES_NO else "other"
    return found if kind in {None, found} else "other"


class Tables:
    """Reads and divides tables; stateless."""

    def inspect(self, path: Path, parameters: Mapping[str, Any]) -> tuple[dict[str, str], int]:
        """Verify a table that is to be registered.

        Args:
            path: The upload.
            parameters: Of the operation: label, protected columns, what a missing value does, and perhaps the columns.

        Returns:
            How each kept column is written, and the number of rows.

        Raises:
            InvalidInput: It is broken; says in which line and column.
        """
        data = path.read_bytes()
        columns = dict(parameters.get("columns") or infer_columns(data))
        for name in (parameters["label"], *parameters["protected"]):
            if columns.get(name) != "yes-no":
                found = columns.get(name, "no column of it, or of no kind that is known")
                raise InvalidInput(f"column {name!r} must be yes-no; it is {found}", code="input.csv")
        try:
            schema = _schema(columns, parameters)
            table = read_table(data, schema)
        except ValidationError as error:
            raise InvalidInput(f"the table's columns: {error.errors(include_url=False)[0]['msg']}") from error
        except InputRefused as error:
            raise InvalidInput(str(error), code=error.code) from error
        return columns, len(table.rows)

    def split(
        self, source: Path, folder: Path, parameters: Mapping[str, Any]
    ) -> tuple[InputFile, InputFile, Mapping[str, Any]]:
        """Divide a registered table into training and held-out rows, as files in ``folder``.

        Columns that the spec excludes are in neither; the label and the protected columns are in both.
        """
        excluded = set(parameters["exclude"])
        columns = {name: kind for name, kind in parameters["columns"].items() if name not in excluded}
        table = read_table(source.read_bytes(), _schema(columns, parameters))
        divided = split_table(table, **parameters["split"])
        train = _write(folder / "train.csv", divided.train.to_csv())
        held_out = _write(folder / "held-out.csv", divided.held_out.to_csv())
        return train, held_out, divided.record


def _schema(columns: Mapping[str, str], parameters: Mapping[str, Any]) -> TableSchema:
    return TableSchema.model_validate(
        {
            "columns": dict(columns),
            "label": parameters["label"],
            "groups": tuple(parameters["protected"]),
            "missing": parameters.get("missing", "refuse"),
        }
    )


def _write(path: Path, data: bytes) -> InputFile:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
    return InputFile(path=path, digest_hex=hashlib.sha256(data).hexdigest())
