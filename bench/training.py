"""Overhead of governed training inside the training loop.

The shipped job runs in the sandbox, reporting and checkpointing, beside the very same loop called bare in this process. The
job times its own loop; start and imports are not counted.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from licet_adapters import jobs
from licet_adapters.ports import InputFile
from licet_adapters.sandbox import JobRun, Sandbox, shipped_code
from licet_adapters.training.data import TableSchema, read_table, split_table
from licet_adapters.training.spec import TrainingSpec, parse_spec

# The jobs import each other as the scripts that they are.
sys.path.insert(0, str(Path(jobs.__file__).parent))
import train_tabular

DATA = Path(__file__).parent.parent / "examples" / "boston-hmda" / "hmda.csv"
TARGET_S = 32.0
ROUNDS = 2
_PROBE_EPOCHS = 400


def rows() -> bytes:
    """The training rows of the example data."""
    numbers = ("dir", "hir", "lvr", "ccs", "mcs", "uria", "comdominiom")
    columns = dict.fromkeys(numbers, "number") | dict.fromkeys(("pbcr", "self", "single", "black", "deny"), "yes-no")
    schema = TableSchema.model_validate({"columns": columns, "label": "deny", "groups": ("black",), "missing": "drop"})
    return split_table(read_table(DATA.read_bytes(), schema), held_out_micro=400_000, seed=0).train.to_csv()


def spec(epochs: int) -> bytes:
    """How to train."""
    encodings = {"pbcr": "yes-no", "self": "yes-no", "single": "yes-no"}
    names = ("dir", "hir", "lvr", "ccs", "mcs", "uria", "comdominiom", *encodings)
    features = [{"name": name, "encoding": encodings.get(name, "number")} for name in names]
    wanted: dict[str, Any] = {"seed": 0, "features": features, "label": "deny", "epochs": epochs}
    return parse_spec(TrainingSpec, wanted).document()


def bare(table: bytes, epochs: int) -> float:
    """Seconds of the loop without sandbox, reports or checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder)
        (inputs / "train.csv").write_bytes(table)
        (inputs / "spec.json").write_bytes(spec(epochs))
        (inputs / "out").mkdir()
        began_s = time.perf_counter()
        train_tabular.train(inputs, inputs / "out", None)
        return time.perf_counter() - began_s


def governed(table: bytes, epochs: int) -> float:
    """Seconds of the loop in the sandbox, as the job measures it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = root / "train.csv"
        source.write_bytes(table)
        found: list[float] = []

        def on_line(line: dict[str, Any]) -> None:
            if "loop" in line:
                found.append(line["loop"]["wall_us"] / 1e6)

        (root / "out").mkdir()
        run = JobRun(
            code=shipped_code("train_tabular.py"),
            inputs={"train.csv": InputFile(path=source, digest_hex=hashlib.sha256(table).hexdigest())},
            documents={"spec.json": spec(epochs)},
            output_dir=root / "out",
        )
        end = Sandbox(root / "state").run(run, on_line, lambda: False)
        assert end.status == 0, end
        return found[0]


def main() -> None:
    """Measure and print."""
    table = rows()
    bare(table, 20)
    epochs = int(_PROBE_EPOCHS * TARGET_S / bare(table, _PROBE_EPOCHS))
    pairs = [(bare(table, epochs), governed(table, epochs)) for _ in range(ROUNDS)]
    for plain_s, in_sandbox_s in pairs:
        print(
            f"{epochs} epochs: bare {plain_s:.1f} s, governed {in_sandbox_s:.1f} s, ratio {in_sandbox_s / plain_s:.3f}"
        )
    ratio = statistics.median(in_sandbox_s / plain_s for plain_s, in_sandbox_s in pairs)
    print(json.dumps({"governed_over_bare": round(ratio, 4), "overhead_percent": round((ratio - 1) * 100, 2)}))


if __name__ == "__main__":
    main()
