"""Several ranks and mixed precision: the same bits every time, whatever dies in between."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from licet_adapters.conformance.tabular import TRAIN_INPUT, TrainingExample, write_input
from licet_adapters.conformance.world import TENANT, World
from licet_adapters.errors import InputRefused, JobFailed
from licet_adapters.ports import Metric, TrainingJob, TrainingOutcome
from licet_adapters.sandbox import Sandbox
from licet_adapters.training.local import LocalTraining, execution_digest_hex

pytestmark = pytest.mark.slow

SPEC = {**TrainingExample().spec, "epochs": 120, "checkpoint_every_epochs": 5}
MITIGATION = {"kind": "demographic-parity", "group": "minor", "weight_micro": 5_000_000}


class Bench:
    """A world, and a runner in it that is started anew for each attempt."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)

    def job(self, name: str, *, attempt: int = 1, **changes: Any) -> TrainingJob:
        folder = self.world.directory
        return TrainingJob(
            tenant=TENANT,
            operation_id=f"{abs(hash(name)):032x}"[:32],
            step="train",
            attempt=attempt,
            run=f"{TENANT}/{name}",
            parameters={"spec": {**SPEC, **changes}},
            inputs={TRAIN_INPUT: write_input(folder / "inputs" / TRAIN_INPUT, TrainingExample().train)},
            workdir=folder / "work" / name,
        )

    def run(
        self,
        job: TrainingJob,
        on_metric: Callable[[Metric], None] = lambda _metric: None,
        should_stop: Callable[[], bool] = lambda: False,
        training: LocalTraining | None = None,
    ) -> TrainingOutcome:
        warrant = self.world.warrant_for("training.launch", "local-training", "training.run", job)
        training = training or LocalTraining(self.world.context("local-training"))
        return training.run(warrant, job, on_metric, should_stop)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("ranks")
    folder.chmod(0o700)
    return Bench(folder)


@pytest.fixture(scope="module")
def whole(bench: Bench) -> TrainingOutcome:
    """Two ranks, from beginning to end."""
    return bench.run(bench.job("whole", ranks=2, mitigation=MITIGATION))


def descendants(pid: int) -> Iterator[int]:
    """The processes below one, as this machine numbers them, also those of other namespaces."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    waiting = list(children.get(pid, ()))
    while waiting:
        found = waiting.pop()
        yield found
        waiting += children.get(found, ())


def rank_pids() -> dict[int, int]:
    """Rank to process id, of the ranks that this process has at work."""
    found = {}
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if variable.startswith(b"LOCAL_RANK="):
                    found[int(variable[len(b"LOCAL_RANK=") :])] = pid
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_rank(bench: Bench, job: TrainingJob, rank: int, *, after_epoch: int) -> tuple[JobFailed, set[int]]:
    """Run a job and kill one of its ranks once it is so far; return how that ended, and all that were at work."""
    # What other tests have started (a database server, perhaps) is none of the job's.
    before = set(descendants(os.getpid()))
    seen: set[int] = set()
    killed = threading.Event()

    def on_metric(metric: Metric) -> None:
        if metric.epoch >= after_epoch and not killed.is_set():
            pids = rank_pids()
            seen.update(set(descendants(os.getpid())) - before)
            assert set(pids.values()) <= seen
            os.kill(pids[rank], signal.SIGKILL)
            killed.set()

    with pytest.raises(JobFailed) as failure:
        bench.run(job, on_metric)
    assert killed.is_set()
    return failure.value, seen


def test_two_ranks_train_what_is_told_of_them(whole: TrainingOutcome) -> None:
    assert dict(whole.execution) == {
        "device": "cpu",
        "devices": [],
        "cuda": "",
        "ranks": 2,
        "precision": "fp32",
    }
    assert whole.digests["execution"] == execution_digest_hex(whole.execution, whole.digests["environment"])
    assert whole.digests["execution"] != execution_digest_hex(
        {**whole.execution, "ranks": 3}, whole.digests["environment"]
    )
    assert whole.metrics[-1].epoch == SPEC["epochs"] - 1


def test_ranks_learn_what_one_process_learns(bench: Bench, whole: TrainingOutcome) -> None:
    alone = bench.run(bench.job("alone", mitigation=MITIGATION))
    for name in ("loss", "parity_gap"):
        one, two = (outcome.metrics[-1].values_micro[name] for outcome in (alone, whole))
        # Sums in another order: not the same bits, but the same model.
        assert abs(one - two) < 2_000, name
    assert whole.metrics[-1].values_micro["loss"] < 500_000


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_attempt_and_the_next_one_ends_with_the_very_bits(
    bench: Bench, whole: TrainingOutcome, rank: int
) -> None:
    job = bench.job(f"killed-{rank}", ranks=2, mitigation=MITIGATION)
    failure, seen = kill_rank(bench, job, rank, after_epoch=20)
    # It counts as killed, which is tried again; and nothing of it is left.
    assert failure.code == "job.killed"
    assert not [pid for pid in seen if is_alive(pid)]
    assert not (job.workdir / "model").exists()
    resumed = bench.run(replace(job, attempt=2))
    assert resumed.resumed_from_step > 0
    assert resumed.digests == whole.digests


def test_a_stopped_run_of_two_ranks_leaves_no_process_and_goes_on(bench: Bench, whole: TrainingOutcome) -> None:
    job = bench.job("stopped", ranks=2, mitigation=MITIGATION)
    seen: list[Metric] = []
    stopped = bench.run(job, seen.append, lambda: bool(seen) and seen[-1].epoch >= 20)
    assert stopped.stopped
    assert not rank_pids()
    assert bench.run(replace(job, attempt=2)).digests == whole.digests


def test_without_a_sandbox_no_rank_outlives_the_process_that_started_it(bench: Bench) -> None:
    training = LocalTraining(bench.world.context("local-training"))
    training._sandbox = Sandbox(bench.world.directory / "bare", candidates=[])
    job = bench.job("bare", ranks=2, epochs=100_000)
    ranks: dict[int, int] = {}

    def on_metric(_metric: Metric) -> None:
        ranks.update(rank_pids())

    stopped = bench.run(job, on_metric, lambda: len(ranks) == 2, training)
    assert stopped.stopped
    assert stopped.sandbox.kind == "none"
    until_s = time.monotonic() + 10
    while any(map(is_alive, ranks.values())):
        assert time.monotonic() < until_s, "a rank outlives its starter"
        time.sleep(0.05)


def test_a_run_in_mixed_precision_goes_on_to_the_very_bits(bench: Bench) -> None:
    exact = bench.run(bench.job("exact"))
    mixed = bench.run(bench.job("mixed", precision="bf16"))
    assert mixed.execution["precision"] == "bf16"
    assert mixed.digests["weights"] != exact.digests["weights"]
    losses = [outcome.metrics[-1].values_micro["loss"] for outcome in (exact, mixed)]
    assert abs(losses[0] - losses[1]) < 20_000
    job = bench.job("mixed-stopped", precision="bf16")
    seen: list[Metric] = []
    assert bench.run(job, seen.append, lambda: bool(seen) and seen[-1].epoch >= 20).stopped
    resumed = bench.run(replace(job, attempt=2))
    assert resumed.resumed_from_step > 0
    assert resumed.digests == mixed.digests


@pytest.mark.parametrize("change", [{"ranks": 2}, {"precision": "bf16"}])
def test_a_checkpoint_is_of_one_number_of_ranks_and_one_precision(bench: Bench, change: dict[str, Any]) -> None:
    name = "-".join(change)
    first = bench.job(f"before-{name}", epochs=30)
    bench.run(first)
    other = bench.job(f"after-{name}", epochs=30, **change)
    (other.workdir / "job").mkdir(parents=True)
    taken = other.workdir / "job" / "checkpoint.safetensors"
    taken.write_bytes((first.workdir / "job" / "checkpoint.safetensors").read_bytes())
    taken.chmod(0o644)
    with pytest.raises(JobFailed, match="precision, device and number of ranks") as failure:
        bench.run(other)
    assert failure.value.code == "job.checkpoint"


@pytest.mark.parametrize(
    "change",
    [{"ranks": 0}, {"ranks": 9}, {"ranks": True}, {"precision": "fp8"}, {"device": "tpu"}, {"ranks": "2"}],
)
def test_what_cannot_be_computed_is_refused_before_any_job(bench: Bench, change: dict[str, Any]) -> None:
    job = bench.job(f"refused-{change}", **change)
    with pytest.raises(InputRefused) as refusal:
        bench.run(replace(job, run=f"{TENANT}/refused"))
    assert refusal.value.code == "input.spec"


def test_what_all_ranks_refuse_is_the_askers_fault_as_for_one(bench: Bench) -> None:
    header, *rows = TrainingExample().train.splitlines(keepends=True)
    broken = write_input(bench.world.directory / "broken.csv", header + b"x,1,no,no\n" + b"".join(rows))
    job = replace(bench.job("broken", ranks=2), inputs={TRAIN_INPUT: broken})
    with pytest.raises(InputRefused) as refusal:
        bench.run(job)
    assert refusal.value.code == "input.csv"
