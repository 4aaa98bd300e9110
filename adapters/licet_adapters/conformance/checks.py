"""What a model checker must keep; see ``ModelChecker``."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from licet_adapters.conformance.guards import GuardConformance, GuardedAct
from licet_adapters.conformance.suite import expect, refused
from licet_adapters.conformance.tabular import (
    HELD_OUT_INPUT,
    TRAIN_INPUT,
    ChecksExample,
    write_input,
    write_model,
)
from licet_adapters.conformance.world import TENANT, World
from licet_adapters.modelfiles import WEIGHTS_FILE
from licet_adapters.ports import AdapterContext, CheckJob, CheckOutcome, Metric, ModelChecker, check_digest_hex

if TYPE_CHECKING:
    from collections.abc import Callable


class ChecksConformance(GuardConformance):
    """A result is complete, of the very model and rows that were decided, and never a guess; and all of the guard's cases.

    Args:
        adapter: Instance name.
        factory: Makes the checker; may be called again on the same context, as after a restart.
        example: What to check; by default in the form that ``local-checks`` reads.
    """

    def __init__(
        self, adapter: str, factory: Callable[[AdapterContext], ModelChecker], example: ChecksExample | None = None
    ) -> None:
        super().__init__(adapter, self._guarded)
        self._factory = factory
        self._example = example or ChecksExample()

    def case_every_kind_asked_for_has_one_result(self, world: World) -> None:
        """In that order, with whole figures; the outcome names code and environment, and how the job was confined."""
        outcome = self._run(world, self._job(world, "all"))
        expect([result.kind for result in outcome.results], list(self._example.kinds), "kinds of the results")
        for result in outcome.results:
            expect(bool(result.figures), expected=True, what=f"figures of check {result.kind}")
            expect({type(figure) for figure in result.figures.values()}, {int}, f"types in check {result.kind}")
        for name in ("code", "environment"):
            check_digest_hex(outcome.digests.get(name, ""))
        expect(bool(outcome.sandbox.kind), expected=True, what="a word on how the job was confined")

    def case_figures_are_held_against_the_thresholds_that_were_decided(self, world: World) -> None:
        """The same figures pass under some and not under others."""
        met = self._run(world, self._job(world, "met"))
        missed = self._run(world, self._job(world, "missed", thresholds=dict(self._example.impossible)))
        expect([result.kind for result in met.results if not result.passed], [], "checks that fail")
        failed = {result.kind for result in missed.results if not result.passed}
        expect(sorted(failed), sorted(self._example.fails), "checks that fail under impossible thresholds")
        expect(
            [dict(result.figures) for result in missed.results],
            [dict(result.figures) for result in met.results],
            "figures under other thresholds",
        )

    def case_only_what_was_asked_for_is_checked(self, world: World) -> None:
        """One kind, one result, with the figures it has among others."""
        everything = self._run(world, self._job(world, "everything"))
        kind = self._example.kinds[-1]
        one = self._run(world, self._job(world, "one", kinds=[kind]))
        expect([result.kind for result in one.results], [kind], "kinds of the results")
        expect(dict(one.results[0].figures), dict(everything.results[-1].figures), f"figures of check {kind}")

    def case_finished_checks_are_told_again_and_not_run_again(self, world: World) -> None:
        """Same operation and step, new attempt and warrant, model and rows gone: the first outcome."""
        job = self._job(world, "finished")
        first = self._run(world, job)
        for file in (*job.model.values(), *job.inputs.values()):
            file.path.unlink()
        expect(_told(self._run(world, replace(job, attempt=2))), _told(first), "outcome of the retry")

    def case_checks_that_were_stopped_are_no_pass(self, world: World) -> None:
        """They fail; the next attempt, by a checker that was started anew, gives what was never stopped would."""
        whole = self._run(world, self._job(world, "whole"))
        job = self._job(world, "stopped")
        with refused("job"):
            self._run(world, job, should_stop=lambda: True)
        expect(_told(self._run(world, replace(job, attempt=2))), _told(whole), "outcome after a stop")

    def case_a_step_that_was_used_is_good_for_nothing_else(self, world: World) -> None:
        """Same operation and step, other thresholds."""
        job = self._job(world, "used")
        first = self._run(world, job)
        other = {**job.parameters, "thresholds": dict(self._example.impossible)}
        with refused("conflict"):
            self._run(world, replace(job, attempt=2, parameters=other))
        expect(_told(self._run(world, replace(job, attempt=3))), _told(first), "outcome after a refused misuse")

    def case_an_older_attempt_is_refused_after_a_newer_one_began(self, world: World) -> None:
        """A worker that woke up late does not act over its successor."""
        job = self._job(world, "order")
        with refused("job"):
            self._run(world, replace(job, attempt=3), should_stop=lambda: True)
        with refused("conflict"):
            self._run(world, replace(job, attempt=2))

    def case_files_that_were_not_decided_are_refused(self, world: World) -> None:
        """Model or rows of another digest than the warrant names."""
        for name in (WEIGHTS_FILE, HELD_OUT_INPUT, TRAIN_INPUT):
            job = self._job(world, f"swapped-{name.partition('.')[0]}")
            path = {**job.model, **job.inputs}[name].path
            path.write_bytes(path.read_bytes()[:-1] + b"\x01")
            with refused("input"):
                self._run(world, job)

    def case_rows_that_are_not_all_there_or_too_many_are_refused(self, world: World) -> None:
        """Without held-out rows nothing is checked."""
        job = self._job(world, "rows")
        train, held_out = job.inputs[TRAIN_INPUT], job.inputs[HELD_OUT_INPUT]
        for inputs in (
            {TRAIN_INPUT: train},
            {TRAIN_INPUT: train, HELD_OUT_INPUT: held_out, "more.csv": train},
            {},
        ):
            with refused("input"):
                self._run(world, replace(job, inputs=inputs))

    def case_a_disguised_pickle_is_refused(self, world: World) -> None:
        """Though it is the very file that was decided."""
        job = self._job(world, "pickled")
        disguised = write_input(job.model[WEIGHTS_FILE].path, pickle.dumps({"weights": [1, 2, 3]}))
        with refused("model", "input"):
            self._run(world, replace(job, model={**job.model, WEIGHTS_FILE: disguised}))

    def case_what_is_not_understood_is_refused(self, world: World) -> None:
        """No kind, one that is unknown, no thresholds."""
        job = self._job(world, "odd")
        unsaid: tuple[dict[str, Any], ...] = ({"kinds": []}, {"kinds": "all"}, {"thresholds": {}}, {"thresholds": 1})
        for change in ({"kinds": ["beauty"]}, *unsaid):
            with refused("input"):
                self._run(world, replace(job, parameters={**job.parameters, **change}))

    # --- how -----------------------------------------------------------------------------------------------------------

    def _guarded(self, world: World) -> GuardedAct:
        job = self._job(world, "guarded", kinds=[self._example.kinds[0]])
        happened: list[object] = []

        def act(warrant: bytes) -> None:
            happened.append(self._start(world).run(warrant, job, happened.append, lambda: False))

        return GuardedAct(
            action="model.check",
            operation="checks.run",
            other_action="training.launch",
            other_operation="training.run",
            resources=job.resources(),
            parameters=job.parameters,
            act=act,
            has_happened=lambda: bool(happened) or any(job.workdir.rglob("*")),
        )

    def _job(self, world: World, name: str, **parameters: Any) -> CheckJob:
        folder = world.directory / "inputs" / name
        example = self._example
        return CheckJob(
            tenant=TENANT,
            operation_id=hashlib.sha256(name.encode()).hexdigest()[:32],
            step="check",
            attempt=1,
            version=f"{TENANT}/{name}@1",
            parameters={
                "kinds": list(example.kinds),
                "thresholds": dict(example.thresholds),
                "spec": dict(example.spec),
                **parameters,
            },
            model=write_model(folder),
            inputs={
                TRAIN_INPUT: write_input(folder / TRAIN_INPUT, example.train),
                HELD_OUT_INPUT: write_input(folder / HELD_OUT_INPUT, example.held_out),
            },
            workdir=world.directory / "work" / name,
        )

    def _run(
        self,
        world: World,
        job: CheckJob,
        on_metric: Callable[[Metric], None] = lambda _metric: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> CheckOutcome:
        """Run under the right warrant, by a checker that has just been started."""
        warrant = world.warrant_for("model.check", self._adapter, "checks.run", job)
        return self._start(world).run(warrant, job, on_metric, should_stop)

    def _start(self, world: World) -> ModelChecker:
        return self._factory(world.context(self._adapter))


def _told(outcome: CheckOutcome) -> dict[str, Any]:
    return {
        "results": [
            (result.kind, result.passed, dict(result.figures), dict(result.detail)) for result in outcome.results
        ],
        "digests": dict(outcome.digests),
        "sandbox": (outcome.sandbox.kind, dict(outcome.sandbox.checks), list(outcome.sandbox.notes)),
    }
