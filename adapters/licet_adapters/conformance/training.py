"""What a training runner must keep; see ``TrainingRunner``."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from licet_adapters.conformance.guards import GuardConformance, GuardedAct
from licet_adapters.conformance.suite import expect, refused
from licet_adapters.conformance.tabular import HELD_OUT_INPUT, TRAIN_INPUT, TrainingExample, write_input
from licet_adapters.conformance.world import TENANT, World
from licet_adapters.modelfiles import ARCHITECTURE_FILE, WEIGHTS_FILE, inspect_model_files
from licet_adapters.ports import (
    MODEL_FILES,
    AdapterContext,
    Metric,
    TrainingJob,
    TrainingOutcome,
    TrainingRunner,
    check_digest_hex,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class TrainingConformance(GuardConformance):
    """A run is what was decided, can be stopped anywhere, and goes on to the same weights; and all of the guard's cases.

    Args:
        adapter: Instance name.
        factory: Makes the runner; may be called again on the same context, as after a restart.
        example: What to train; by default in the form that ``local-training`` reads.
    """

    def __init__(
        self,
        adapter: str,
        factory: Callable[[AdapterContext], TrainingRunner],
        example: TrainingExample | None = None,
    ) -> None:
        super().__init__(adapter, self._guarded)
        self._factory = factory
        self._example = example or TrainingExample()

    def case_a_run_makes_a_model_that_is_safe_to_open(self, world: World) -> None:
        """Exactly the two files, which pass the gate, with the digests that the outcome names."""
        outcome = self._run(world, self._job(world, "first"))
        inspected = inspect_model_files(outcome.output_dir)
        expect(outcome.digests["weights"], inspected.digests[WEIGHTS_FILE], "digest of the weights")
        expect(outcome.digests["architecture"], inspected.digests[ARCHITECTURE_FILE], "digest of the architecture")
        for name in ("code", "environment"):
            check_digest_hex(outcome.digests.get(name, ""))
        expect((outcome.stopped, outcome.resumed_from_step), (False, 0), "stopped, resumed from step")
        expect(bool(outcome.sandbox.kind), expected=True, what="a word on how the job was confined")

    def case_figures_arrive_as_it_goes(self, world: World) -> None:
        """On the caller's thread, in order, whole numbers; the last are those of the outcome."""
        metrics: list[Metric] = []
        threads: set[int] = set()

        def on_metric(metric: Metric) -> None:
            metrics.append(metric)
            threads.add(threading.get_ident())

        outcome = self._run(world, self._job(world, "reported", self._example.long_spec), on_metric)
        expect(len(metrics) > 1, expected=True, what="more than one report of a long run")
        expect(threads, {threading.get_ident()}, "threads on which figures arrive")
        steps = [metric.step for metric in metrics]
        expect(steps, sorted(steps), "steps of the reports")
        figures = [value for metric in metrics for value in metric.values_micro.values()]
        expect({type(value) for value in figures}, {int}, "types of the figures")
        expect(list(outcome.metrics)[-1:], metrics[-1:], "the last figures")

    def case_the_same_run_again_gives_the_same_weights(self, world: World) -> None:
        """Another operation, the same rows and spec."""
        first = self._run(world, self._job(world, "one"))
        second = self._run(world, self._job(world, "two"))
        expect(dict(second.digests), dict(first.digests), "digests of the same run")

    def case_a_run_that_was_stopped_goes_on_to_the_same_weights(self, world: World) -> None:
        """By a runner that was started anew, as a new attempt under a new warrant; until then there is no model."""
        whole = self._run(world, self._job(world, "whole", self._example.long_spec))
        job = self._job(world, "stopped", self._example.long_spec)
        seen: list[Metric] = []
        stopped = self._run(
            world, job, seen.append, lambda: bool(seen) and seen[-1].epoch >= self._example.stop_at_epoch
        )
        expect(stopped.stopped, expected=True, what="a run that was told to stop before its end")
        self._require_no_model(stopped)
        resumed = self._run(world, replace(job, attempt=2))
        expect(resumed.stopped, expected=False, what="a run that was not told to stop")
        expect(resumed.resumed_from_step > 0, expected=True, what="to go on from a checkpoint")
        expect(dict(resumed.digests), dict(whole.digests), "digests after a stop")

    def case_a_stop_is_heeded_though_nothing_was_reported_yet(self, world: World) -> None:
        """The next attempt does all of it."""
        job = self._job(world, "at-once")
        stopped = self._run(world, job, should_stop=lambda: True)
        expect(stopped.stopped, expected=True, what="a run that was told to stop at once")
        self._require_no_model(stopped)
        expect(self._run(world, replace(job, attempt=2)).stopped, expected=False, what="the next attempt")

    def case_a_finished_run_is_told_again_and_not_trained_again(self, world: World) -> None:
        """Same operation and step, new attempt and warrant, the rows gone: the first outcome."""
        job = self._job(world, "finished")
        first = self._run(world, job)
        job.inputs[TRAIN_INPUT].path.unlink()
        metrics: list[Metric] = []
        again = self._run(world, replace(job, attempt=2), metrics.append)
        expect(_told(again), _told(first), "outcome of the retry")
        expect(metrics, [], "figures of a run that is not trained again")
        inspected = inspect_model_files(again.output_dir)
        expect(inspected.digests[WEIGHTS_FILE], first.digests["weights"], "weights of the retry")

    def case_a_step_that_was_used_is_good_for_nothing_else(self, world: World) -> None:
        """Same operation and step, other parameters."""
        job = self._job(world, "used")
        first = self._run(world, job)
        other = {"spec": {**self._example.spec, "seed": 8}}
        with refused("conflict"):
            self._run(world, replace(job, attempt=2, parameters=other))
        expect(_told(self._run(world, replace(job, attempt=3))), _told(first), "outcome after a refused misuse")

    def case_an_older_attempt_is_refused_after_a_newer_one_began(self, world: World) -> None:
        """A worker that woke up late does not act over its successor."""
        job = self._job(world, "order")
        self._run(world, replace(job, attempt=3), should_stop=lambda: True)
        with refused("conflict"):
            self._run(world, replace(job, attempt=2))

    def case_devices_are_named_each_once(self, world: World) -> None:
        """By a runner that has any; one that has none says so."""
        devices = self._start(world).devices()
        expect(len({device.uuid for device in devices}), len(devices), "names of devices, each once")
        expect([device.kind for device in devices if not device.kind], [], "devices of no kind")

    def case_devices_that_the_spec_does_not_take_are_refused(self, world: World) -> None:
        """Leases that nobody decided on; nothing is trained."""
        job = replace(self._job(world, "leased"), devices=("GPU-00000000-0000-4000-8000-000000000000",))
        metrics: list[Metric] = []
        with refused("input"):
            self._run(world, job, metrics.append)
        expect(metrics, [], "figures of a refused run")

    def case_held_out_rows_are_refused(self, world: World) -> None:
        """Beside the training rows and in their place; nothing is trained."""
        job = self._job(world, "peeking")
        held_out = write_input(world.directory / HELD_OUT_INPUT, self._example.held_out)
        for inputs in ({**job.inputs, HELD_OUT_INPUT: held_out}, {HELD_OUT_INPUT: held_out}, {}):
            metrics: list[Metric] = []
            with refused("input"):
                self._run(world, replace(job, inputs=inputs), metrics.append)
            expect(metrics, [], "figures of a refused run")

    def case_rows_that_were_not_decided_are_refused(self, world: World) -> None:
        """The warrant names another digest than the file has; nothing is trained."""
        job = self._job(world, "swapped")
        job.inputs[TRAIN_INPUT].path.write_bytes(self._example.held_out)
        metrics: list[Metric] = []
        with refused("input"):
            self._run(world, job, metrics.append)
        expect(metrics, [], "figures of a refused run")

    def case_parameters_that_do_not_say_how_to_train_are_refused(self, world: World) -> None:
        """Nothing is guessed."""
        job = self._job(world, "unsaid")
        unsaid: tuple[dict[str, Any], ...] = ({}, {"spec": {}}, {"spec": "as always"})
        for parameters in unsaid:
            with refused("input"):
                self._run(world, replace(job, parameters=parameters))

    # --- how -----------------------------------------------------------------------------------------------------------

    def _guarded(self, world: World) -> GuardedAct:
        job = self._job(world, "guarded")
        happened: list[object] = []

        def act(warrant: bytes) -> None:
            happened.append(self._start(world).run(warrant, job, happened.append, lambda: False))

        return GuardedAct(
            action="training.launch",
            operation="training.run",
            other_action="model.check",
            other_operation="checks.run",
            resources=job.resources(),
            parameters=job.parameters,
            act=act,
            has_happened=lambda: bool(happened) or any(job.workdir.rglob("*")),
        )

    def _job(self, world: World, name: str, spec: Mapping[str, Any] | None = None) -> TrainingJob:
        return TrainingJob(
            tenant=TENANT,
            operation_id=hashlib.sha256(name.encode()).hexdigest()[:32],
            step="train",
            attempt=1,
            run=f"{TENANT}/{name}",
            parameters={"spec": dict(spec or self._example.spec)},
            inputs={TRAIN_INPUT: write_input(world.directory / "inputs" / name / TRAIN_INPUT, self._example.train)},
            workdir=world.directory / "work" / name,
        )

    def _run(
        self,
        world: World,
        job: TrainingJob,
        on_metric: Callable[[Metric], None] = lambda _metric: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> TrainingOutcome:
        """Run under the right warrant, by a runner that has just been started."""
        warrant = world.warrant_for("training.launch", self._adapter, "training.run", job)
        return self._start(world).run(warrant, job, on_metric, should_stop)

    def _start(self, world: World) -> TrainingRunner:
        return self._factory(world.context(self._adapter))

    def _require_no_model(self, outcome: TrainingOutcome) -> None:
        found = [name for name in MODEL_FILES if (outcome.output_dir / name).exists()]
        expect(found, [], "model files of a run that was stopped")


def _told(outcome: TrainingOutcome) -> dict[str, Any]:
    return {
        "digests": dict(outcome.digests),
        "metrics": [(metric.step, metric.epoch, dict(metric.values_micro)) for metric in outcome.metrics],
        "resumed_from_step": outcome.resumed_from_step,
        "sandbox": (outcome.sandbox.kind, dict(outcome.sandbox.checks), list(outcome.sandbox.notes)),
        "stopped": outcome.stopped,
    }
