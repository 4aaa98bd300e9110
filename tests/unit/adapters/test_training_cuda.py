"""Training on real CUDA devices; skipped, with the reason, where this machine has none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from licet_adapters.conformance.tabular import TRAIN_INPUT, TrainingExample, write_input
from licet_adapters.conformance.world import TENANT, World
from licet_adapters.jobs import ranks
from licet_adapters.ports import Metric, TrainingJob, TrainingOutcome
from licet_adapters.training.local import LocalTraining

WHY_NOT = "" if torch.cuda.is_available() else f"torch {torch.__version__} finds no CUDA device on this machine"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "a CUDA device is here")]
SPEC = {**TrainingExample().spec, "epochs": 400, "checkpoint_every_epochs": 5, "device": "cuda"}


class Bench:
    """A world whose pool is every device of this machine."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.uuids = tuple(ranks.visible_devices()["uuids"])
        allowed = {"devices": ",".join(self.uuids)}
        self.training = LocalTraining(replace(self.world.context("local-training"), options=allowed))

    def run(self, name: str, *, attempt: int = 1, stop_at: int | None = None, **changes: Any) -> TrainingOutcome:
        spec = {**SPEC, **changes}
        folder = self.world.directory
        job = TrainingJob(
            tenant=TENANT,
            operation_id=name.encode().hex().ljust(32, "0")[:32],
            step="train",
            attempt=attempt,
            run=f"{TENANT}/{name}",
            parameters={"spec": spec},
            inputs={TRAIN_INPUT: write_input(folder / "inputs" / TRAIN_INPUT, TrainingExample().train)},
            workdir=folder / "work" / name,
            devices=self.uuids[: spec.get("ranks", 1)],
        )
        seen: list[Metric] = []
        warrant = self.world.warrant_for("training.launch", "local-training", "training.run", job)
        return self.training.run(
            warrant, job, seen.append, lambda: stop_at is not None and bool(seen) and seen[-1].epoch >= stop_at
        )


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("cuda")
    folder.chmod(0o700)
    made = Bench(folder)
    assert [device.uuid for device in made.training.devices()] == list(made.uuids), made.training._pool.look().notes
    return made


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_on_a_device_names_it_and_goes_on_to_the_very_bits(bench: Bench, precision: str) -> None:
    whole = bench.run(f"whole-{precision}", precision=precision)
    assert [device["uuid"] for device in whole.execution["devices"]] == list(bench.uuids[:1])
    assert whole.execution["cuda"] == torch.version.cuda
    assert whole.sandbox.kind == "bubblewrap"
    assert bench.run(f"cut-{precision}", precision=precision, stop_at=60).stopped
    resumed = bench.run(f"cut-{precision}", attempt=2, precision=precision)
    assert resumed.resumed_from_step > 0
    assert resumed.digests == whole.digests


def test_a_rank_on_each_of_two_devices_goes_on_to_the_very_bits(bench: Bench) -> None:
    if len(bench.uuids) < 2:
        pytest.skip(f"this machine has {len(bench.uuids)} CUDA device, and two are needed")
    whole = bench.run("two", ranks=2)
    assert bench.run("two-cut", ranks=2, stop_at=60).stopped
    assert bench.run("two-cut", attempt=2, ranks=2).digests == whole.digests
