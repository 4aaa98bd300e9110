"""Training and checks under real warrants, in the sandbox, on the example data."""

import hashlib
import json
import os
import random
import signal
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from licet_adapters.conformance.world import TENANT, World
from licet_adapters.errors import Conflict, InputRefused, IntegrityError, JobFailed, WarrantRefused
from licet_adapters.modelfiles import inspect_model_files
from licet_adapters.ports import CheckJob, CheckOutcome, InputFile, Metric, TrainingJob, TrainingOutcome
from licet_adapters.training.checks import LocalChecks, parse_results
from licet_adapters.training.data import TableSchema, read_table, split_table
from licet_adapters.training.local import LocalTraining

HMDA = Path(__file__).parents[3] / "examples" / "boston-hmda" / "hmda.csv"
FEATURES = {
    "dir": "number",
    "hir": "number",
    "lvr": "number",
    "ccs": "number",
    "mcs": "number",
    "pbcr": "yes-no",
    "self": "yes-no",
    "single": "yes-no",
    "uria": "number",
    "comdominiom": "number",
}
SCHEMA = TableSchema.model_validate(
    {
        "columns": {**FEATURES, "black": "yes-no", "deny": "yes-no"},
        "label": "deny",
        "groups": ("black",),
        "missing": "drop",
    }
)
SPEC: dict[str, Any] = {
    "seed": 0,
    "features": [{"name": name, "encoding": encoding} for name, encoding in FEATURES.items()],
    "label": "deny",
    "decision_threshold_micro": 200_000,
    "epochs": 400,
}
MITIGATION = {"kind": "demographic-parity", "group": "black", "weight_micro": 60_000_000}
THRESHOLDS = {
    "auc_min_micro": 600_000,
    "calibration_error_max_micro": 100_000,
    "selection_rate_ratio_min_micro": 800_000,
    "selection_rate_ratio_lower_min_micro": 700_000,
    "explain_share_max_micro": 500_000,
    "drift_max_features": 1,
}
KINDS = ["technical", "bias", "explainability", "drift"]


class Bench:
    """A world with the example's rows in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.world = World(folder)
        split = split_table(read_table(HMDA.read_bytes(), SCHEMA), held_out_micro=400_000, seed=0)
        self.train = self.file("train.csv", split.train.to_csv())
        self.held_out = self.file("held-out.csv", split.held_out.to_csv())
        self.training = LocalTraining(self.world.context("local-training"))
        self.checks = LocalChecks(self.world.context("local-checks"))

    def file(self, name: str, data: bytes) -> InputFile:
        path = self.folder / name
        path.write_bytes(data)
        path.chmod(0o600)
        return InputFile(path=path, digest_hex=hashlib.sha256(data).hexdigest())

    def job(self, name: str, *, attempt: int = 1, train: InputFile | None = None, **changes: Any) -> TrainingJob:
        return TrainingJob(
            tenant=TENANT,
            operation_id=hashlib.sha256(name.encode()).hexdigest()[:32],
            step="train",
            attempt=attempt,
            run=f"{TENANT}/{name}",
            parameters={"spec": {**SPEC, **changes}},
            inputs={"train.csv": train or self.train},
            workdir=self.folder / "work" / name,
        )

    def warrant(self, job: TrainingJob | CheckJob, **asked: Any) -> bytes:
        training = isinstance(job, TrainingJob)
        return self.world.warrant(
            "training.launch" if training else "model.check",
            "local-training" if training else "local-checks",
            "training.run" if training else "checks.run",
            **{
                "resources": job.resources(),
                "parameters": job.parameters,
                "operation_id": job.operation_id,
                "step": job.step,
                "attempt": job.attempt,
                **asked,
            },
        )

    def run(self, job: TrainingJob) -> tuple[TrainingOutcome, list[Metric]]:
        metrics: list[Metric] = []
        return self.training.run(self.warrant(job), job, metrics.append, lambda: False), metrics

    def check_job(self, name: str, model_dir: Path, attempt: int = 1, **parameters: Any) -> CheckJob:
        def model_file(file: str) -> InputFile:
            data = (model_dir / file).read_bytes()
            return InputFile(path=model_dir / file, digest_hex=hashlib.sha256(data).hexdigest())

        return CheckJob(
            tenant=TENANT,
            operation_id=hashlib.sha256(f"check {name}".encode()).hexdigest()[:32],
            step="check",
            attempt=attempt,
            version=f"{TENANT}/{name}@1",
            parameters={"kinds": KINDS, "thresholds": THRESHOLDS, "spec": {"groups": ["black"]}, **parameters},
            model={file: model_file(file) for file in ("model.safetensors", "architecture.json")},
            inputs={"train.csv": self.train, "held-out.csv": self.held_out},
            workdir=self.folder / "work" / f"check-{name}",
        )

    def check(self, job: CheckJob) -> CheckOutcome:
        return self.checks.run(self.warrant(job), job, lambda _metric: None, lambda: False)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("training")
    folder.chmod(0o700)
    return Bench(folder)


@pytest.fixture(scope="module")
def version_1(bench: Bench) -> TrainingOutcome:
    return bench.run(bench.job("v1"))[0]


def test_a_run_makes_an_inspected_model_and_reports_as_it_goes(bench: Bench) -> None:
    outcome, metrics = bench.run(bench.job("reported"))
    inspected = inspect_model_files(outcome.output_dir)
    assert outcome.digests["weights"] == inspected.digests["model.safetensors"]
    assert outcome.digests["architecture"] == inspected.digests["architecture.json"]
    assert inspected.architecture.threshold_micro == 200_000
    assert [feature.name for feature in inspected.architecture.features] == list(FEATURES)
    assert {"code", "environment"} < set(outcome.digests)
    assert metrics[-1].epoch == 399
    assert metrics[-1].values_micro["loss"] < metrics[0].values_micro["loss"]
    assert list(outcome.metrics) == metrics[-1:]
    assert (outcome.stopped, outcome.resumed_from_step) == (False, 0)
    for file in outcome.output_dir.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert file.stat().st_uid == os.geteuid()


def test_version_1_fails_the_bias_review_and_version_2_passes(bench: Bench, version_1: TrainingOutcome) -> None:
    version_2, _ = bench.run(bench.job("v2", mitigation=MITIGATION))
    first = bench.check(bench.check_job("v1", version_1.output_dir))
    second = bench.check(bench.check_job("v2", version_2.output_dir))
    assert [result.kind for result in first.results] == KINDS
    assert [result.passed for result in first.results] == [True, False, True, True]
    assert [result.passed for result in second.results] == [True, True, True, True]
    # Not by a hair, on either side.
    assert first.results[1].figures["selection_rate_ratio_micro"] < 750_000
    assert second.results[1].figures["selection_rate_ratio_micro"] > 850_000
    low, high = second.results[1].detail["groups"]["black"]["selection_rate_ratio_interval_micro"]
    assert low < second.results[1].figures["selection_rate_ratio_micro"] < high


def test_the_same_run_again_gives_the_same_bits(bench: Bench, version_1: TrainingOutcome) -> None:
    again, _ = bench.run(bench.job("again"))
    assert again.digests == version_1.digests


def test_a_finished_run_is_returned_and_not_trained_again(bench: Bench, version_1: TrainingOutcome) -> None:
    outcome, metrics = bench.run(bench.job("v1", attempt=2))
    assert outcome == version_1
    assert metrics == []


def test_a_model_changed_after_its_run_is_noticed(bench: Bench) -> None:
    outcome, _ = bench.run(bench.job("changed", epochs=2))
    other, _ = bench.run(bench.job("other", epochs=3))
    (outcome.output_dir / "model.safetensors").write_bytes((other.output_dir / "model.safetensors").read_bytes())
    with pytest.raises(IntegrityError):
        bench.run(bench.job("changed", attempt=2, epochs=2))


def test_a_stopped_run_goes_on_from_its_checkpoint(bench: Bench, version_1: TrainingOutcome) -> None:
    job = bench.job("stopped")
    seen: list[Metric] = []
    stopped = bench.training.run(bench.warrant(job), job, seen.append, lambda: bool(seen) and seen[-1].epoch >= 100)
    assert stopped.stopped
    assert not stopped.output_dir.exists()
    resumed, _ = bench.run(bench.job("stopped", attempt=2))
    assert resumed.resumed_from_step > 0
    assert resumed.digests == version_1.digests


def test_a_worker_killed_anywhere_resumes_to_the_same_bits(bench: Bench, version_1: TrainingOutcome) -> None:
    chance = random.Random(7)  # noqa: S311  # Only when to kill is drawn.
    resumed_from: list[int] = []
    for attempt in range(1, 6):
        job = bench.job("killed", attempt=attempt)
        envelope = bench.warrant(job)
        kill_at_epoch = chance.randrange(attempt * 60, attempt * 60 + 50)
        # One attempt is killed while it starts, before any report.
        _run_and_kill(bench, envelope, job, None if attempt == 2 else kill_at_epoch)
    outcome, _ = bench.run(bench.job("killed", attempt=9))
    resumed_from.append(outcome.resumed_from_step)
    assert resumed_from[0] > 0
    assert outcome.digests == version_1.digests


def _run_and_kill(bench: Bench, envelope: bytes, job: TrainingJob, epoch: int | None) -> None:
    reader, writer = os.pipe()
    worker = os.fork()
    if worker == 0:
        try:
            LocalTraining(bench.world.context("local-training")).run(
                envelope, job, lambda metric: _tell(writer, metric.epoch), lambda: False
            )
        finally:
            os._exit(0)
    os.close(writer)
    if epoch is None:
        time.sleep(0.3)
    else:
        with os.fdopen(reader, "rb") as lines:
            for line in lines:
                if int(line) >= epoch:
                    break
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)


def _tell(fd: int, epoch: int) -> None:
    os.write(fd, b"%d\n" % epoch)


def test_an_older_attempt_cannot_go_on_after_a_newer_one_began(bench: Bench) -> None:
    newer = bench.job("order", attempt=3, epochs=2)
    bench.training.run(bench.warrant(newer), newer, lambda _metric: None, lambda: True)
    with pytest.raises(Conflict):
        bench.run(bench.job("order", attempt=2, epochs=2))


def test_a_spent_or_other_warrant_trains_nothing(bench: Bench) -> None:
    job = bench.job("refused", epochs=2)
    envelope = bench.warrant(job)
    bench.training.run(envelope, job, lambda _metric: None, lambda: False)
    with pytest.raises(WarrantRefused) as refusal:
        bench.training.run(envelope, job, lambda _metric: None, lambda: False)
    assert refusal.value.reason == "spent"
    more = bench.job("refused-2", epochs=2)
    with pytest.raises(WarrantRefused) as refusal:
        bench.training.run(
            bench.warrant(more, parameters={"spec": {**SPEC, "epochs": 1}}), more, lambda _metric: None, lambda: False
        )
    assert refusal.value.reason == "other-parameter"
    assert not more.workdir.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"epochs": 10**9},
        {"epochs": "many"},
        {"surprise": 1},
        {"label": "dir"},
        {"hidden": [0]},
        {"activation": "eval"},
        {"job": "../../etc/passwd"},
        {"learning_rate_micro": 0},
        {"mitigation": {**MITIGATION, "group": "dir"}},
        {"features": []},
        {"features": [{"name": "dir"}, {"name": "dir"}]},
    ],
)
def test_a_spec_that_is_not_understood_is_refused(bench: Bench, change: dict[str, Any]) -> None:
    with pytest.raises(InputRefused) as refusal:
        bench.run(bench.job(f"spec-{hashlib.sha256(repr(change).encode()).hexdigest()[:8]}", **change))
    assert refusal.value.code == "input.spec"


def test_held_out_rows_cannot_be_handed_to_training(bench: Bench) -> None:
    job = bench.job("peeking", epochs=2)
    peeking = TrainingJob(
        tenant=job.tenant,
        operation_id=job.operation_id,
        step=job.step,
        attempt=1,
        run=job.run,
        parameters=job.parameters,
        inputs={**job.inputs, "held-out.csv": bench.held_out},
        workdir=job.workdir,
    )
    with pytest.raises(InputRefused) as refusal:
        bench.run(peeking)
    assert refusal.value.code == "input.names"


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        (b"deny\n", b"denied\n", "input.column"),
        (b",no,no\n", b",no,nan\n", "input.csv"),
        (b",no,no\n", b",no\n", "input.csv"),
    ],
)
def test_rows_that_the_job_cannot_read_are_the_askers_fault(bench: Bench, old: bytes, new: bytes, code: str) -> None:
    broken = bench.file(f"broken-{new.hex()}.csv", bench.train.path.read_bytes().replace(old, new, 1))
    with pytest.raises(InputRefused) as refusal:
        bench.run(bench.job(f"broken-{new.hex()}", train=broken, epochs=2))
    assert refusal.value.code == code


def test_training_that_diverges_fails_and_leaves_no_model(bench: Bench) -> None:
    header, *rows = bench.train.path.read_bytes().splitlines(keepends=True)
    extreme = bench.file(
        "extreme.csv", header + b"".join(b"3e38" + row[row.index(b",") :] for row in rows[:2]) + b"".join(rows)
    )
    job = bench.job("diverges", train=extreme, epochs=5, learning_rate_micro=1_000_000)
    with pytest.raises(JobFailed) as failure:
        bench.run(job)
    assert failure.value.code in {"job.figure", "job.diverged"}
    assert not (job.workdir / "model").exists()


def test_a_checkpoint_of_another_run_is_refused(bench: Bench) -> None:
    job = bench.job("mixed", epochs=30)
    bench.run(job)
    other = bench.job("mixed-2", epochs=31)
    (other.workdir / "job").mkdir(parents=True)
    stolen = other.workdir / "job" / "checkpoint.safetensors"
    stolen.write_bytes((job.workdir / "job" / "checkpoint.safetensors").read_bytes())
    stolen.chmod(0o644)
    with pytest.raises(JobFailed) as failure:
        bench.run(other)
    assert failure.value.code == "job.checkpoint"
    stolen.write_bytes(b"\x80\x04 not a checkpoint")
    with pytest.raises(JobFailed) as failure:
        bench.run(bench.job("mixed-2", attempt=2, epochs=31))
    assert failure.value.code == "job.checkpoint"


# --- checks ----------------------------------------------------------------------------------------------------------


def test_finished_checks_are_returned_and_not_run_again(bench: Bench, version_1: TrainingOutcome) -> None:
    technical = {"kinds": ["technical"]}
    first = bench.check(bench.check_job("twice", version_1.output_dir, **technical))
    begun_s = time.monotonic()
    assert bench.check(bench.check_job("twice", version_1.output_dir, attempt=2, **technical)) == first
    assert time.monotonic() - begun_s < 1


def test_a_stopped_check_is_no_pass(bench: Bench, version_1: TrainingOutcome) -> None:
    job = bench.check_job("stopped", version_1.output_dir)
    with pytest.raises(JobFailed) as failure:
        bench.checks.run(bench.warrant(job), job, lambda _metric: None, lambda: True)
    assert failure.value.code == "job.stopped"


def test_a_disguised_pickle_is_refused_before_any_job(bench: Bench, version_1: TrainingOutcome, tmp_path: Path) -> None:
    (tmp_path / "architecture.json").write_bytes((version_1.output_dir / "architecture.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04\x95\x0e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.")
    with pytest.raises(InputRefused):
        bench.check(bench.check_job("pickled", tmp_path))


@pytest.mark.parametrize(
    "parameters",
    [
        {"kinds": ["beauty"]},
        {"kinds": ["bias", "bias"]},
        {"thresholds": {}},
        {"thresholds": {**THRESHOLDS, "auc_min_micro": 2_000_000}},
        {"spec": {}},
        {"spec": {"groups": ["black"], "bootstrap_rounds": 1}},
        {"spec": {"groups": ["deny"]}},
    ],
)
def test_checks_that_are_not_understood_are_refused(
    bench: Bench, version_1: TrainingOutcome, parameters: dict[str, Any]
) -> None:
    name = hashlib.sha256(json.dumps(parameters).encode()).hexdigest()[:8]
    with pytest.raises(InputRefused) as refusal:
        bench.check(bench.check_job(f"odd-{name}", version_1.output_dir, **parameters))
    assert refusal.value.code == "input.spec"


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b'{"results":[],"v":1}',
        b'{"results":[{"detail":{},"figures":{"drifted_features":0},"kind":"bias","passed":true}],"v":1}',
        b'{"results":[{"detail":{},"figures":{"drifted_features":-1},"kind":"drift","passed":true}],"v":1}',
        b'{"results":[{"detail":{},"figures":{"drifted_features":true},"kind":"drift","passed":true}],"v":1}',
        b'{"results":[{"detail":{},"figures":{"drifted_features":0.5},"kind":"drift","passed":true}],"v":1}',
        b'{"results":[{"detail":{},"figures":{},"kind":"drift","passed":true}],"v":1}',
        b'{"results":[{"detail":{},"figures":{"drifted_features":0},"kind":"drift","passed":1}],"v":1}',
        b'{"results":[{"detail":{},"figures":{"drifted_features":0},"kind":"drift","passed":true,"x":1}],"v":1}',
    ],
)
def test_results_that_are_not_well_formed_fail_the_job(document: bytes) -> None:
    with pytest.raises(JobFailed) as failure:
        parse_results(document, ("drift",))
    assert failure.value.code == "job.results"
