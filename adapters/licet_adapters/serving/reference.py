"""The training reference of a model: what its inputs and its confidence looked like on the rows it was trained on.

``reference.json`` is canonical JSON: ``{"v": 1, "rows", "features": {NAME: [...]}, "confidence_mean_micro",
"data_as_of_ms"}``. A feature has at most ``SKETCH`` of its training values, in micro, evenly spaced in their order.

Rules kept here:

- It holds no row: only single values of single columns, sorted. It is as secret as the model.
- What is read was decided on by digest, and is verified all the same: bounded, sorted, and of the model's features.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from licet_adapters.errors import InputRefused
from licet_adapters.jobs.tabular_numpy import Network, Refused, sigmoid
from licet_attestations import canonical
from licet_attestations.errors import LicetAttestationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Doubles = npt.NDArray[np.float64]

SKETCH = 1001
MAX_REFERENCE_BYTES = 64 << 20
_MICRO = 1_000_000
_MAX_MAGNITUDE = 9_000_000_000.0  # Micro of it is still an exact integer of canonical JSON.
_YES_NO = {"yes": 1.0, "no": 0.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A training reference, read.

    Attributes:
        rows: How many rows the values were taken from.
        features: Name to sorted values, float64 ``[at most SKETCH]``.
        confidence_mean: Mean of the greater of the two probabilities, or None.
        data_as_of_ms: When the newest data behind the model was taken, or None.
    """

    rows: int
    features: Mapping[str, Doubles]
    confidence_mean: float | None
    data_as_of_ms: int | None


def build_reference(table: bytes, *, architecture: bytes, weights: bytes, data_as_of_ms: int | None = None) -> bytes:
    """Make the reference of a model from its training rows.

    Args:
        table: Training rows as the jobs are given them: CSV with a header, ``yes`` and ``no``.
        architecture: ``architecture.json`` of the model.
        weights: ``model.safetensors`` of the model.
        data_as_of_ms: When the newest data behind it was taken.

    Raises:
        InputRefused: The rows or the model cannot be read; code ``input.reference``.
    """
    try:
        declaration = canonical.loads(architecture)
        names = [feature["name"] for feature in declaration["features"]]
        rows = _read_rows(table, names)
        folded = sigmoid(Network(declaration, weights)(rows.astype(np.float32)))
    except (LicetAttestationError, Refused, csv.Error, KeyError, TypeError, UnicodeDecodeError, ValueError) as error:
        raise InputRefused(f"no reference can be made: {error}", code="input.reference") from error
    confidence = float(np.maximum(folded, 1 - folded).mean())
    value: dict[str, Any] = {
        "v": 1,
        "rows": len(rows),
        "features": {name: _sketch(rows[:, index]) for index, name in enumerate(names)},
        "confidence_mean_micro": round(confidence * _MICRO),
    }
    if data_as_of_ms is not None:
        value["data_as_of_ms"] = data_as_of_ms
    return canonical.dumps(value)


def _read_rows(table: bytes, names: Sequence[str]) -> Doubles:
    reader = csv.DictReader(io.StringIO(table.decode()), strict=True)
    rows = [[_YES_NO[cell] if (cell := row[name]) in _YES_NO else float(cell) for name in names] for row in reader]
    values = np.asarray(rows, dtype=np.float64).reshape(len(rows), len(names))
    if not len(values) or not (np.abs(values) < _MAX_MAGNITUDE).all():
        raise ValueError(f"there are no rows, or a value is not between -{_MAX_MAGNITUDE:.0f} and {_MAX_MAGNITUDE:.0f}")
    return values


def _sketch(column: Doubles) -> list[int]:
    ordered = np.sort(column)
    if len(ordered) > SKETCH:
        ordered = ordered[np.linspace(0, len(ordered) - 1, SKETCH).round().astype(int)]
    return [round(float(value) * _MICRO) for value in ordered]


def parse_reference(data: bytes, names: Sequence[str]) -> Reference:
    """Read a reference.

    Args:
        data: As it was deployed.
        names: The model's features.

    Raises:
        InputRefused: It is not a reference of such a model; code ``input.reference``.
    """
    try:
        value = canonical.loads(data, max_bytes=MAX_REFERENCE_BYTES)
    except LicetAttestationError as error:
        raise InputRefused(f"reference.json: {error}", code="input.reference") from error
    match value:
        case {"v": 1, "rows": int(rows), "features": dict(features)} if rows > 0:
            pass
        case _:
            raise InputRefused("reference.json is not a reference of version 1", code="input.reference")
    if list(features) != sorted(names):
        raise InputRefused("reference.json is of a model with other features", code="input.reference")
    columns: dict[str, Doubles] = {}
    for name, sketch in features.items():
        if not isinstance(sketch, list) or not 1 <= len(sketch) <= min(rows, SKETCH):
            raise InputRefused(f"reference.json: feature {name!r} has no values, or too many", code="input.reference")
        if not all(type(item) is int for item in sketch) or sketch != sorted(sketch):
            raise InputRefused(f"reference.json: feature {name!r} is not sorted whole numbers", code="input.reference")
        # In float32 and back, as the model sees them: a value and itself must be equal.
        columns[name] = (np.asarray(sketch, dtype=np.float64) / _MICRO).astype(np.float32).astype(np.float64)
    return Reference(
        rows=rows,
        features=columns,
        confidence_mean=None if (mean := _natural(value, "confidence_mean_micro")) is None else mean / _MICRO,
        data_as_of_ms=_natural(value, "data_as_of_ms"),
    )


def _natural(value: Mapping[str, Any], name: str) -> int | None:
    found = value.get(name)
    if found is not None and (type(found) is not int or found < 0):
        raise InputRefused(f"reference.json: {name} is not a natural number", code="input.reference")
    return found


def sketch_error(reference: Reference, name: str) -> float:
    """By how much a cumulative share read off the sketch may be wrong."""
    kept = len(reference.features[name])
    return 0.0 if kept == reference.rows else 1.0 / max(1, kept - 1)
