"""What a serving runtime must keep; see ``ServingRuntime``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from licet_adapters.conformance.deployments import ENDPOINT, MODEL, deployment, traffic_change, warrant_for
from licet_adapters.conformance.guards import GuardConformance, GuardedAct
from licet_adapters.conformance.suite import expect, refused
from licet_adapters.conformance.tabular import write_input
from licet_adapters.conformance.world import FOREIGN_TENANT, TENANT, World
from licet_adapters.errors import AdapterError
from licet_adapters.modelfiles import WEIGHTS_FILE
from licet_adapters.ports import (
    AdapterContext,
    DeploymentJob,
    ServingOutcome,
    ServingRuntime,
    check_digest_hex,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class ServingConformance(GuardConformance):
    """A version serves as it was decided, traffic goes where it was told, a retry repeats nothing; and all of the guard's cases.

    How requests are answered is not part of the port: an implementation brings its own tests of its data plane.

    Args:
        adapter: Instance name.
        factory: Makes the runtime; may be called again on the same context, as after a restart: then the one before is
            of no use any more.
        stop: Stops the last one, if any: nothing of it may work in its folder after that.
    """

    def __init__(
        self, adapter: str, factory: Callable[[AdapterContext], ServingRuntime], stop: Callable[[], None]
    ) -> None:
        super().__init__(adapter, self._guarded)
        self._factory, self._stop = factory, stop

    def end_case(self) -> None:
        """Stop the runtime before its folder goes."""
        self._stop()

    def case_the_first_version_has_all_traffic(self, world: World) -> None:
        """The outcome says so, names code and environment, and how replicas are confined."""
        outcome = self._deploy(world, deployment(world, 1))
        expect(_traffic(outcome), ({"1": 100}, ""), "traffic")
        expect(outcome.replicas.get("1", 0) >= 1, expected=True, what="a replica that stands ready")
        for name in ("code", "environment"):
            check_digest_hex(outcome.digests.get(name, ""))
        expect(bool(outcome.sandbox.kind), expected=True, what="a word on how replicas are confined")

    def case_a_canary_begins_at_its_first_step(self, world: World) -> None:
        """The rest stays with the fallback."""
        self._deploy(world, deployment(world, 1))
        outcome = self._deploy(world, deployment(world, 2, **_canary(1)))
        expect(_traffic(outcome), ({"1": 90, "2": 10}, ""), "traffic")

    def case_a_shadow_has_no_traffic_of_its_own(self, world: World) -> None:
        """What was before stays."""
        self._deploy(world, deployment(world, 1))
        outcome = self._deploy(world, deployment(world, 2, strategy="shadow", fallback=f"{MODEL}@1"))
        expect(_traffic(outcome), ({"1": 100}, "2"), "traffic")

    def case_traffic_goes_where_it_is_told(self, world: World) -> None:
        """And back."""
        self._deploy(world, deployment(world, 1))
        self._deploy(world, deployment(world, 2, **_canary(1)))
        for weights in ({"2": 100}, {"1": 70, "2": 30}, {"1": 100}):
            expect(_traffic(self._shift(world, weights)), (weights, ""), "traffic after a shift")

    def case_a_runtime_that_starts_anew_has_what_was(self, world: World) -> None:
        """Weights and all."""
        self._deploy(world, deployment(world, 1))
        self._deploy(world, deployment(world, 2, **_canary(1)))
        self._shift(world, {"1": 70, "2": 30})
        status = self._start(world).status(TENANT, ENDPOINT)
        expect(dict(status["weights"]), {"1": 70, "2": 30}, "weights after a restart")

    def case_a_retired_endpoint_is_gone(self, world: World) -> None:
        """It cannot be shifted; it can be deployed to again."""
        self._deploy(world, deployment(world, 1))
        outcome = self._retire(world)
        expect((dict(outcome.weights), dict(outcome.replicas)), ({}, {}), "traffic and replicas after a retirement")
        with refused("not-found"):
            self._shift(world, {"1": 100})
        expect(_traffic(self._deploy(world, deployment(world, 1))), ({"1": 100}, ""), "traffic")

    def case_a_deployment_that_is_done_is_told_again_and_not_done_again(self, world: World) -> None:
        """Same operation and step, new attempt and warrant, the files gone: the first outcome."""
        job = deployment(world, 1)
        first = self._deploy(world, job)
        for file in job.model.values():
            file.path.unlink()
        expect(self._deploy(world, replace(job, attempt=2)), first, "outcome of the retry")

    def case_what_stands_is_told_to_whoever_has_no_warrant_any_more(self, world: World) -> None:
        """Of its own operation and step alone, also by a runtime that starts anew."""
        job = deployment(world, 1)
        expect(self._start(world).stands(TENANT, ENDPOINT, job.operation_id, "deploy"), None, "what never began")
        outcome = self._deploy(world, job)
        for runtime in (self._start(world), self._start(world)):
            expect(runtime.stands(TENANT, ENDPOINT, job.operation_id, job.step), outcome, "what was deployed")
            expect(runtime.stands(TENANT, ENDPOINT, "0" * 32, job.step), None, "what another operation did")
        with refused("input"):
            self._start(world).stands("lakeside", ENDPOINT, job.operation_id, job.step)

    def case_a_step_that_was_used_is_good_for_nothing_else(self, world: World) -> None:
        """Same operation and step, other parameters."""
        job = deployment(world, 1)
        self._deploy(world, job)
        other = {**job.parameters, "timeout_ms": 1234}
        with refused("conflict"):
            self._deploy(world, replace(job, attempt=2, parameters=other))

    def case_files_that_were_not_decided_are_refused(self, world: World) -> None:
        """Another digest than the warrant names; nothing is deployed."""
        job = deployment(world, 1)
        job.model[WEIGHTS_FILE].path.write_bytes(b"other")
        with refused("input"):
            self._deploy(world, job)
        self._require_nothing(world)

    def case_a_model_that_cannot_be_served_is_refused(self, world: World) -> None:
        """Though it is the very file that was decided; what was before goes on."""
        self._deploy(world, deployment(world, 1))
        job = deployment(world, 2, **_canary(1))
        broken = write_input(job.model[WEIGHTS_FILE].path, job.model[WEIGHTS_FILE].path.read_bytes()[:-4])
        with refused("job", "input", "model"):
            self._deploy(world, replace(job, model={**job.model, WEIGHTS_FILE: broken}))
        expect(dict(self._runtime.status(TENANT, ENDPOINT)["weights"]), {"1": 100}, "weights")

    def case_what_is_not_understood_is_refused(self, world: World) -> None:
        """In a plan, and in weights."""
        for change in ({"strategy": "hope"}, {"alarms": [{"kind": "feeling"}]}, {"unknown": 1}):
            with refused("input"):
                self._deploy(world, deployment(world, 1, **change))
        self._require_nothing(world)
        self._deploy(world, deployment(world, 1))
        for weights in ({}, {"1": 99}, {"1": 101, "2": -1}, {"one": 100}, [100]):
            with refused("input"):
                self._shift(world, weights)

    def case_traffic_is_given_to_nothing_that_is_not_there(self, world: World) -> None:
        """Neither to a version, nor to a fallback."""
        with refused("not-found"):
            self._shift(world, {"1": 100})
        self._deploy(world, deployment(world, 1))
        with refused("conflict"):
            self._shift(world, {"1": 50, "2": 50})
        with refused("conflict"):
            self._deploy(world, deployment(world, 3, **_canary(2)))

    def case_another_tenants_endpoint_cannot_be_named(self, world: World) -> None:
        """Not even to look at it."""
        self._deploy(world, deployment(world, 1))
        with refused("input", "not-found"):
            self._runtime.status(FOREIGN_TENANT, ENDPOINT)
        with refused("input"):
            replace(traffic_change(), tenant=FOREIGN_TENANT)

    # --- how -----------------------------------------------------------------------------------------------------------

    def _guarded(self, world: World) -> GuardedAct:
        job = deployment(world, 1)
        runtime = self._start(world)

        def has_happened() -> bool:
            try:
                return bool(runtime.status(TENANT, ENDPOINT)["weights"])
            except AdapterError:
                return False

        return GuardedAct(
            action="endpoint.deploy",
            operation="serving.deploy",
            other_action="endpoint.retire",
            other_operation="serving.retire",
            resources=job.resources(),
            parameters=job.parameters,
            act=lambda warrant: runtime.deploy(warrant, job),
            has_happened=has_happened,
        )

    def _require_nothing(self, world: World) -> None:
        del world
        with refused("not-found"):
            weights = self._runtime.status(TENANT, ENDPOINT)["weights"]
            if not weights:
                raise AdapterError("nothing is deployed", code="not-found")

    def _deploy(self, world: World, job: DeploymentJob) -> ServingOutcome:
        return self._start(world).deploy(warrant_for(world, self._adapter, "serving.deploy", job), job)

    def _shift(self, world: World, weights: Any) -> ServingOutcome:
        change = traffic_change(weights=weights, shadow="")
        return self._start(world).shift(warrant_for(world, self._adapter, "serving.shift", change), change)

    def _retire(self, world: World) -> ServingOutcome:
        change = traffic_change()
        return self._start(world).retire(warrant_for(world, self._adapter, "serving.retire", change), change)

    def _start(self, world: World) -> ServingRuntime:
        """The runtime, started anew."""
        self._runtime = self._factory(world.context(self._adapter))
        return self._runtime


def _canary(fallback: int) -> dict[str, Any]:
    return {"strategy": "canary", "steps": [10, 100], "bake_s": 3600, "fallback": f"{MODEL}@{fallback}"}


def _traffic(outcome: ServingOutcome) -> tuple[dict[str, int], str]:
    return dict(outcome.weights), outcome.shadow
