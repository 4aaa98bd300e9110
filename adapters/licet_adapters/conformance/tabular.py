"""A small table and a small model, for the suites of training and checks: the same bytes on every machine."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from licet_adapters.modelfiles import ARCHITECTURE_FILE, WEIGHTS_FILE
from licet_adapters.ports import InputFile
from licet_attestations import canonical

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TRAIN_INPUT = "train.csv"
HELD_OUT_INPUT = "held-out.csv"
_ROWS = 240
_SPEC: Mapping[str, Any] = {
    "seed": 7,
    "features": [{"name": "income"}, {"name": "ratio"}],
    "label": "deny",
    "hidden": [4],
    "epochs": 20,
    "batch_size": 32,
}
_THRESHOLDS: Mapping[str, int] = {
    "auc_min_micro": 600_000,
    "calibration_error_max_micro": 900_000,
    "selection_rate_ratio_min_micro": 500_000,
    "selection_rate_ratio_lower_min_micro": 100_000,
    "explain_share_max_micro": 900_000,
    "drift_max_features": 1,
}
_IMPOSSIBLE: Mapping[str, int] = {
    "auc_min_micro": 1_000_000,
    "calibration_error_max_micro": 0,
    "selection_rate_ratio_min_micro": 1_000_000,
    "selection_rate_ratio_lower_min_micro": 1_000_000,
}


def table(first: int, rows: int = _ROWS) -> bytes:
    """Rows ``first`` and after: ``ratio`` tells most of ``deny``, ``minor`` nothing.

    Args:
        first: Number of the first row; what begins elsewhere has other rows of the same kind.
        rows: How many.

    Returns:
        CSV as jobs are given it: a header, LF, ``yes`` and ``no``.
    """
    lines = ["income,ratio,minor,deny"]
    for i in range(first, first + rows):
        ratio = i * 37 % 100
        deny = (ratio > 60) != (i % 11 == 0)  # noqa: PLR2004  # Which rows these are means nothing.
        minor = i * 7 % 3 == 0
        lines.append(f"{i * 53 % 90 / 10},{ratio / 100},{_word(is_so=minor)},{_word(is_so=deny)}")
    return "\n".join([*lines, ""]).encode()


def _word(*, is_so: bool) -> str:
    return "yes" if is_so else "no"


@dataclass(frozen=True, kw_only=True)
class TrainingExample:
    """What the training suite has trained.

    Attributes:
        spec: How to train, briefly.
        long_spec: How to train for some seconds, so that there is time to stop it; checkpoints come before the end.
        stop_at_epoch: When the long run is stopped, once it has reported so much; a checkpoint was due before.
        train: The rows.
        held_out: Rows that must be refused.
    """

    spec: Mapping[str, Any] = field(default_factory=lambda: dict(_SPEC))
    long_spec: Mapping[str, Any] = field(
        default_factory=lambda: {**_SPEC, "epochs": 500, "checkpoint_every_epochs": 10}
    )
    stop_at_epoch: int = 40
    train: bytes = field(default_factory=lambda: table(0))
    held_out: bytes = field(default_factory=lambda: table(_ROWS))


@dataclass(frozen=True, kw_only=True)
class ChecksExample:
    """What the suite of checks has checked.

    Attributes:
        kinds: Which checks, in this order.
        thresholds: Which the model meets in all of them.
        impossible: The same but for some that no model meets, so that the check named by ``fails`` does not pass.
        fails: Kinds that cannot pass under ``impossible``.
        spec: Seed, columns and rounds.
        train: Rows the model was trained on.
        held_out: Rows it never saw.
    """

    kinds: tuple[str, ...] = ("drift", "technical", "bias", "explainability")
    thresholds: Mapping[str, int] = field(default_factory=lambda: dict(_THRESHOLDS))
    impossible: Mapping[str, int] = field(default_factory=lambda: {**_THRESHOLDS, **_IMPOSSIBLE})
    fails: tuple[str, ...] = ("technical", "bias")
    spec: Mapping[str, Any] = field(
        default_factory=lambda: {"groups": ["minor"], "seed": 7, "bootstrap_rounds": 200, "permutation_rounds": 199}
    )
    train: bytes = field(default_factory=lambda: table(0))
    held_out: bytes = field(default_factory=lambda: table(_ROWS))


def write_input(path: Path, data: bytes) -> InputFile:
    """Write a plaintext input of a job, 0600."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o600)
    return InputFile(path=path, digest_hex=hashlib.sha256(data).hexdigest())


def write_model(folder: Path) -> dict[str, InputFile]:
    """Write a model of ``income`` and ``ratio`` that denies a high ratio; return its files by name."""
    tensors: dict[str, tuple[list[int], list[float]]] = {
        "layers.0.bias": ([1], [0.0]),
        "layers.0.weight": ([1, 2], [0.0, 1.5]),
        "normalise.mean": ([2], [4.5, 0.6]),
        "normalise.scale": ([2], [2.6, 0.3]),
    }
    header: dict[str, Any] = {}
    data = b""
    for name, (shape, values) in tensors.items():
        packed = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(packed)]}
        data += packed
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    architecture = {
        "v": 1,
        "kind": "mlp",
        "task": "binary-classification",
        "features": [{"name": "income", "encoding": "number"}, {"name": "ratio", "encoding": "number"}],
        "hidden": [],
        "activation": "relu",
        "threshold_micro": 500_000,
        "target": "deny",
        "tensors": {name: shape for name, (shape, _) in tensors.items()},
    }
    return {
        ARCHITECTURE_FILE: write_input(folder / ARCHITECTURE_FILE, canonical.dumps(architecture)),
        WEIGHTS_FILE: write_input(folder / WEIGHTS_FILE, len(text).to_bytes(8, "little") + text + data),
    }
