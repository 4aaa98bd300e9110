"""What the tabular jobs share: reading tables, the network, its files, and how a job reports.

Rules kept here:

- The network is built from its declaration alone; weights are read and written as safetensors, nothing is unpickled.
- Normalisation is part of the weights (two buffers), so a model takes raw values, here as elsewhere.
- What is wrong with an input ends the job with a code and a sentence that shows no value of any row.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import math
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

MICRO = 1_000_000
REFUSED_STATUS = 65
_YES_NO = {"yes": 1.0, "no": 0.0}
_ACTIVATIONS: Mapping[str, type[torch.nn.Module]] = {
    "relu": torch.nn.ReLU,
    "tanh": torch.nn.Tanh,
    "gelu": torch.nn.GELU,
    "silu": torch.nn.SiLU,
}

Floats = npt.NDArray[np.float32]


class Refused(Exception):  # A refusal, named as the house names it.
    """The job cannot go on, and says why.

    Attributes:
        code: Stable; begins with ``input.`` if what was handed in is at fault.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Reporter:
    """Writes JSON lines to the descriptor that the worker reads.

    Args:
        fd: The descriptor.
        is_heard: Whether anything is written; of several processes that do the same, one speaks.
    """

    def __init__(self, fd: int, *, is_heard: bool = True) -> None:
        self._fd = fd
        self._is_heard = is_heard

    def send(self, line: Mapping[str, Any]) -> None:
        """Write one line; a worker that is gone ends the job."""
        data = json.dumps(line, allow_nan=False).encode() + b"\n"
        while data and self._is_heard:
            data = data[os.write(self._fd, data) :]


@contextlib.contextmanager
def refusals_reported(reporter: Reporter) -> Iterator[None]:
    """Turn a refusal in the block into a report and an exit status."""
    try:
        yield
    except Refused as refused:
        reporter.send({"error": {"code": refused.code, "message": str(refused)}})
        sys.exit(REFUSED_STATUS)


def finish() -> NoReturn:
    """End the process at once: all is written and synced, and tearing torch down takes half a second."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def make_deterministic(seed: int) -> None:
    """One thread, deterministic kernels, one seed: the same inputs give the same bits."""
    torch.set_num_threads(1)
    # The same as use_deterministic_algorithms, which imports a compiler of two seconds to tell it, too.
    torch.set_deterministic_debug_mode("error")
    torch.manual_seed(seed)


def read_columns(path: Path, names: Sequence[str]) -> dict[str, Floats]:
    """Return the named columns of a canonical table, float32 ``[rows]`` each; yes is 1, no is 0.

    Raises:
        Refused: A column is missing, a row is broken, or a value is not finite.
    """
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            if missing := [name for name in names if name not in header]:
                raise Refused("input.column", f"{path.name}: column {missing[0]} is missing")
            at = [header.index(name) for name in names]
            values: list[list[float]] = []
            for cells in reader:
                if len(cells) != len(header):
                    raise Refused(
                        "input.csv", f"{path.name}, line {reader.line_num}: {len(cells)} cells, not {len(header)}"
                    )
                values.append([_number(cells[index], path.name, reader.line_num, header[index]) for index in at])
        except csv.Error as error:
            raise Refused("input.csv", f"{path.name}, line {reader.line_num}: {error}") from error
    if not values:
        raise Refused("input.csv", f"{path.name}: no rows")
    with np.errstate(over="ignore"):  # What overflows is infinite then, and refused.
        array = np.asarray(values, dtype=np.float32)
    if not np.isfinite(array).all():
        raise Refused("input.csv", f"{path.name}: a value is beyond what float32 holds")
    return {name: array[:, index].copy() for index, name in enumerate(names)}


def _number(cell: str, file: str, line: int, column: str) -> float:
    if (known := _YES_NO.get(cell)) is not None:
        return known
    try:
        value = float(cell)
    except ValueError as error:
        raise Refused("input.csv", f"{file}, line {line}, column {column}: not a number") from error
    if not math.isfinite(value):
        raise Refused("input.csv", f"{file}, line {line}, column {column}: not a finite number")
    return value


def stack(columns: Mapping[str, Floats], names: Sequence[str]) -> torch.Tensor:
    """The named columns side by side: float32 ``[rows, names]``, CPU."""
    return torch.from_numpy(np.stack([columns[name] for name in names], axis=1))


class Normalise(torch.nn.Module):
    """``(x - mean) / scale``, with both as buffers, float32 ``[features]``."""

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def fit(self, rows: torch.Tensor) -> None:
        """Take mean and standard deviation of ``rows`` (float32 ``[rows, features]``); a constant column is only shifted."""
        self.mean.copy_(rows.mean(dim=0))
        deviation = rows.std(dim=0, correction=0)
        self.scale.copy_(torch.where(deviation > 0, deviation, torch.ones_like(deviation)))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Normalise ``rows``."""
        return (rows - self.mean) / self.scale


class Network(torch.nn.Module):
    """The declared network: raw features, float32 ``[rows, features]``, to logits, float32 ``[rows]``.

    Args:
        declaration: Members ``features``, ``hidden`` and ``activation`` of ``architecture.json``.
    """

    def __init__(self, declaration: Mapping[str, Any]) -> None:
        super().__init__()
        if any(feature["encoding"] == "one-hot" for feature in declaration["features"]):
            raise Refused("input.architecture", "one-hot features are not read by this job")
        widths = [len(declaration["features"]), *declaration["hidden"], 1]
        self.normalise = Normalise(widths[0])
        layers: list[torch.nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [torch.nn.Linear(before, after), _ACTIVATIONS[declaration["activation"]]()]
        self.layers = torch.nn.Sequential(*layers[:-1])

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the logits of ``rows``."""
        logits: torch.Tensor = self.layers(self.normalise(rows)).squeeze(1)
        return logits


def load_network(folder: Path) -> tuple[Network, dict[str, Any]]:
    """Build the network that ``architecture.json`` declares, with the weights beside it.

    Raises:
        Refused: They do not fit, or a weight is not finite.
    """
    declaration: dict[str, Any] = json.loads((folder / "architecture.json").read_bytes())
    network = Network(declaration)
    try:
        tensors = safetensors.torch.load((folder / "model.safetensors").read_bytes())
        network.load_state_dict(tensors)
    except (RuntimeError, ValueError, safetensors.SafetensorError) as error:
        raise Refused("input.weights", "model.safetensors does not fit architecture.json") from error
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise Refused("input.weights", "model.safetensors holds a value that is not finite")
    return network.eval(), declaration


def write_durably(path: Path, data: bytes) -> None:
    """Replace ``path``: a kill at any point leaves the old file or the new, whole."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def canonical_json(value: Any) -> bytes:
    """The one JSON form that the platform reads; ASCII keys, no floats."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def micro(value: float) -> int:
    """A finite number in millionths.

    Raises:
        Refused: It is not finite: a figure that could not be computed never counts as one.
    """
    if not math.isfinite(value):
        raise Refused("job.figure", "a figure is not finite")
    return round(value * MICRO)
