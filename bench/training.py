"""Governed training against the bare loop: rows per second, on one and two ranks, in both precisions, and on devices.

The shipped job runs in the sandbox, reporting and checkpointing, beside the very same loop in a process of its own, or in
several that `torchrun` starts. Both time the loop alone; start, imports and reading are not counted. Where this machine
has no CUDA device, that is said, and only the processor is measured. `cpu` or `cuda` as an argument measures that alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from licet_adapters import jobs
from licet_adapters.ports import InputFile
from licet_adapters.sandbox import JobRun, Sandbox, shipped_code
from licet_adapters.sandbox_bwrap import JOB_ENVIRONMENT
from licet_adapters.sandbox_limits import Limits
from licet_adapters.training.data import TableSchema, read_table, split_table
from licet_adapters.training.devices import DevicePool
from licet_adapters.training.local import DEVICE_LIMITS, SAME_BITS_ENVIRONMENT, job_environment
from licet_adapters.training.spec import TrainingSpec, parse_spec

# The jobs import each other as the scripts that they are.
sys.path.insert(0, str(Path(jobs.__file__).parent))
import train_tabular

DATA = Path(__file__).parent.parent / "examples" / "boston-hmda" / "hmda.csv"
TARGET_S = 32.0
ROUNDS = 2
VARIANT_S = 8.0
_PROBE_EPOCHS = 100
_BARE = "bare"


def rows() -> bytes:
    """The training rows of the example data."""
    numbers = ("dir", "hir", "lvr", "ccs", "mcs", "uria", "comdominiom")
    columns = dict.fromkeys(numbers, "number") | dict.fromkeys(("pbcr", "self", "single", "black", "deny"), "yes-no")
    schema = TableSchema.model_validate({"columns": columns, "label": "deny", "groups": ("black",), "missing": "drop"})
    return split_table(read_table(DATA.read_bytes(), schema), held_out_micro=400_000, seed=0).train.to_csv()


def spec(epochs: int, **on: Any) -> bytes:
    """How to train, and on what."""
    encodings = {"pbcr": "yes-no", "self": "yes-no", "single": "yes-no"}
    names = ("dir", "hir", "lvr", "ccs", "mcs", "uria", "comdominiom", *encodings)
    features = [{"name": name, "encoding": encodings.get(name, "number")} for name in names]
    wanted: dict[str, Any] = {"seed": 0, "features": features, "label": "deny", "epochs": epochs, **on}
    return parse_spec(TrainingSpec, wanted).document()


def bare(table: bytes, epochs: int, **on: Any) -> float:
    """Seconds of the loop without sandbox, reports or checkpoints; several ranks are started by ``torchrun`` alone."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder)
        (inputs / "train.csv").write_bytes(table)
        (inputs / "spec.json").write_bytes(spec(epochs, **on))
        script = [str(Path(__file__)), _BARE, folder]
        count = str(on.get("ranks", 1))
        started = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count] if count != "1" else []
        environment = {**os.environ, **JOB_ENVIRONMENT, "GLOO_SOCKET_IFNAME": "lo", "PATH": os.environ["PATH"]}
        # What makes a run's bits the same each time is part of the loop, and is not free.
        environment |= SAME_BITS_ENVIRONMENT
        subprocess.run([sys.executable, *started, *script], check=True, env=environment)
        return float((inputs / "seconds").read_text())


def run_bare(folder: Path) -> None:
    """What each process of the bare loop does."""
    told: dict[str, Any] = json.loads((folder / "spec.json").read_bytes())
    if told["ranks"] > 1:
        os.environ["LICET_RANKS_STARTED_BY"] = str(os.getppid())
    with train_tabular.ranks.joined(told) as among:
        run = train_tabular.begin(told, folder, among)
        began_s = time.perf_counter()
        train_tabular.loop(run, told["epochs"], None, lambda: None)
        if among.rank == 0:
            (folder / "seconds").write_text(str(time.perf_counter() - began_s))
    train_tabular.tabular.finish()


def governed(table: bytes, epochs: int, **on: Any) -> float:
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
        asked = parse_spec(TrainingSpec, json.loads(spec(epochs, **on)))
        uuids = visible_devices()[: asked.devices]
        (root / "pool").mkdir(mode=0o700)
        with DevicePool(uuids, root / "pool").held(uuids, root / "out") as held:
            run = JobRun(
                code=shipped_code("train_tabular.py"),
                inputs={"train.csv": InputFile(path=source, digest_hex=hashlib.sha256(table).hexdigest())},
                documents={"spec.json": asked.document()},
                output_dir=root / "out",
                limits=DEVICE_LIMITS if uuids else Limits(),
                environment=job_environment(asked, held),
                devices=held.nodes,
            )
            end = Sandbox(root / "state").run(run, on_line, lambda: False)
        assert end.status == 0, end
        return found[0]


def visible_devices() -> list[str]:
    """UUIDs of the CUDA devices of this machine, as torch sees them; none without them."""
    return list(train_tabular.ranks.visible_devices()["uuids"]) if torch.cuda.is_available() else []


def variants() -> Iterator[dict[str, Any]]:
    """What is measured: one and two ranks, both precisions; on devices, where there are some."""
    for precision in ("fp32", "bf16"):
        for ranks in (1, 2):
            yield {"ranks": ranks, "precision": precision}
    count = len(visible_devices())
    for precision in ("fp32", "bf16"):
        for ranks in sorted({1, count} - {0} if count else ()):
            yield {"device": "cuda", "ranks": ranks, "precision": precision}


def main() -> None:
    """Measure and print."""
    table = rows()
    row_count = len(table.splitlines()) - 1
    if not visible_devices():
        print(f"no CUDA device here (torch {torch.__version__}): nothing is measured on one")
    asked = sys.argv[1:]
    for on in variants():
        if asked and on.get("device", "cpu") not in asked:
            continue
        target_s = TARGET_S if on == {"ranks": 1, "precision": "fp32"} else VARIANT_S
        epochs = max(_PROBE_EPOCHS, int(_PROBE_EPOCHS * target_s / bare(table, _PROBE_EPOCHS, **on)))
        pairs = [(bare(table, epochs, **on), governed(table, epochs, **on)) for _ in range(ROUNDS)]
        for plain_s, in_sandbox_s in pairs:
            ratio = in_sandbox_s / plain_s
            print(f"{on}, {epochs} epochs: bare {plain_s:.1f} s, governed {in_sandbox_s:.1f} s, ratio {ratio:.3f}")
        ratio = statistics.median(in_sandbox_s / plain_s for plain_s, in_sandbox_s in pairs)
        speed = [round(row_count * epochs / statistics.median(taken)) for taken in zip(*pairs, strict=True)]
        found = {"rows_per_s_bare": speed[0], "rows_per_s_governed": speed[1]}
        found |= {"governed_over_bare": round(ratio, 4), "overhead_percent": round((ratio - 1) * 100, 2)}
        print(json.dumps(on | found), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == [_BARE]:
        run_bare(Path(sys.argv[2]))
    else:
        main()
