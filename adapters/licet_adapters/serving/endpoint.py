"""One endpoint at work: who gets which request, how a deployment advances, and what ends it.

Rules kept here:

- An allowed change is on the disk before traffic follows it. The one exception is the return on an alarm: traffic goes
  back first, in memory, at once; a crash before it is on the disk comes up in the state before, and alarms again.
- A request in flight ends on the version it began on, whatever happens to the weights.
- Every version that has traffic is on guard, and so is a shadow, whichever was deployed last: its alarms return its traffic
  to its own fallback. What an alarm ended is given no traffic again but by a fresh deployment.
- Only a version that has traffic answers, also where a caller names one: what was rolled back cannot be reached by number.
- A deployment that was never completed by a crash is there again with its operation; made again, it is the same one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

from licet_adapters.errors import Conflict, NotFound, Unavailable
from licet_adapters.ports import DeploymentJob, TrafficChange, version_number
from licet_adapters.serving.plan import DeploymentPlan, parse_plan
from licet_adapters.serving.rollout import Rollout
from licet_adapters.serving.split import TrafficSplit
from licet_adapters.serving.state import Deployed, EndpointState, EndpointStore
from licet_adapters.serving.version import Version

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from concurrent.futures import Executor
    from pathlib import Path

    from licet_adapters.ports import Clock
    from licet_adapters.sandbox import Sandbox
    from licet_adapters.serving.alarms import Fired, Found
    from licet_adapters.serving.counting import InvocationCounter

_COME_UP_S = 60.0
_ALARMS_EVERY_S = 0.1
_RESERVE_AGAIN_S = _SAVE_AGAIN_S = 0.2

logger = logging.getLogger(__name__)


class _Overtaken(Exception):  # Not an error: an alarm or a person was faster.
    """The state is not the one this change was meant for."""


def _beside(compute: Callable[[], Found]) -> asyncio.Future[Found]:
    return asyncio.get_running_loop().run_in_executor(None, compute)


def _require_fallback(state: EndpointState, fallback: int) -> None:
    before = state.rollout_of(fallback)
    if before is not None and before.state == "rolled-back":
        raise Conflict(f"an alarm took version {fallback}, the fallback, out of traffic", code="conflict.fallback")


def _require_unalarmed(state: EndpointState, weights: Mapping[int, int], *, is_return: bool) -> None:
    """Return if nothing that an alarm ended would be given traffic that it has not.

    A return by hand may go to what has failed: that had nowhere to return to, and was left in traffic as the last resort.
    """
    for number, percent in weights.items():
        rollout = state.rollout_of(number)
        if not percent or number in state.weights or rollout is None or rollout.is_guarded:
            continue
        if not (is_return and rollout.state == "failed"):
            raise Conflict(f"an alarm ended the deployment of version {number}; deploy it anew", code="conflict.alarm")


def _rollout_figures(rollout: Rollout) -> dict[str, Any]:
    return {
        "operation": rollout.operation_id,
        "version": str(rollout.number),
        "fallback": str(rollout.fallback) if rollout.fallback else "",
        "state": rollout.state,
    }


class Endpoint:
    """One endpoint.

    Args:
        state: As it is in force.
        store: Where it is kept.
        sandbox: Where replicas run.
        replicas_dir: Below which they have their folders.
        counter: Counts its invocations.
        clock: Time of day.
        disk: Where what waits for the disk is done.
        beside: Where what waits for the api is done.
        accounted: Asks the api for the last number of this endpoint that is accounted for.
        on_event: Called whenever there is something to tell.
    """

    def __init__(
        self,
        state: EndpointState,
        *,
        store: EndpointStore,
        sandbox: Sandbox,
        replicas_dir: Path,
        counter: InvocationCounter,
        clock: Clock,
        disk: Executor,
        beside: Executor,
        accounted: Callable[[], int],
        on_event: Callable[[], None],
    ) -> None:
        self.state = state
        # Number of the last event that the disk has in a state that was in force.
        self._saved_serial = state.serial
        self._is_ending = False
        self._store, self._sandbox, self._replicas_dir = store, sandbox, replicas_dir
        self._clock, self._disk, self._on_event = clock, disk, on_event
        self._beside, self._accounted = beside, accounted
        self.counter = counter
        self.changing = asyncio.Lock()
        self._saving = asyncio.Lock()
        self._versions: dict[int, Version] = {}
        # Those that a shift under way is to give traffic: whatever else is changed meanwhile, they are needed.
        self._woken: frozenset[int] = frozenset()
        self._split = TrafficSplit({})
        self._held_since_s = self._alarms_at_s = time.monotonic()
        self._reserving: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        for number, deployed in state.deployed.items():
            self._versions[number] = self._make_version(deployed)
        self._follow(state)

    # --- requests ------------------------------------------------------------------------------------------------------

    @property
    def has_traffic(self) -> bool:
        """Whether it takes requests."""
        return bool(self._split.numbers)

    @property
    def numbers(self) -> list[int]:
        """The versions that have traffic."""
        return sorted(self._split.numbers)

    def versions(self) -> list[Version]:
        """The versions that have replicas here, or can have them."""
        return list(self._versions.values())

    def choose(self, number: int | None) -> Version | None:
        """The version for a request; ``number`` if the caller names one. None: none takes it."""
        if number is None:
            number = self._split.choose()
        elif number not in self._split.numbers:
            return None
        return None if number is None else self._versions[number]

    def max_request_bytes(self, number: int | None) -> int | None:
        """Largest request that any version takes which may be chosen for it; None: none is.

        Which one it is, `choose` says once the request is whole.
        """
        numbers = self._split.numbers if number is None else self._split.numbers & {number}
        return max((self._versions[one].plan.max_request_bytes for one in numbers), default=None)

    def mirror(self, body: bytes) -> None:
        """Give the shadow, if there is one, a copy."""
        shadow = self.state.shadow
        if shadow and shadow in self._versions:
            self._versions[shadow].mirror(body)

    def is_ready(self, number: int | None) -> bool:
        """Whether a request would be taken: a replica answers, or would be woken."""
        numbers = self._split.numbers if number is None else self._split.numbers & {number}
        return any(self._versions[one].ready or not self._versions[one].plan.replicas.min for one in numbers)

    def reserve_ahead(self) -> None:
        """Reserve invocation numbers in the background, if they run short."""
        if self.counter.needs_block and (self._reserving is None or self._reserving.done()):
            self._reserving = asyncio.get_running_loop().create_task(self._reserve())

    async def _reserve(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            if not self.counter.is_aligned:
                accounted = await loop.run_in_executor(self._beside, self._accounted)
                await loop.run_in_executor(self._disk, self.counter.align, accounted)
            await loop.run_in_executor(self._disk, self.counter.reserve)
        except Exception as error:  # noqa: BLE001  # Whatever the door raises: no number, no answer, and it is asked again.
            logger.warning("no invocation numbers reserved", extra={"reason": str(error)})
            await asyncio.sleep(_RESERVE_AGAIN_S)

    def realign(self) -> None:
        """Go on from the account as the api has it; waits for the api and the disk, so not on the event loop.

        Raises:
            Unavailable: The disk does not take it.
        """
        self.counter.realign(self._accounted())

    # --- changes that a warrant permits -----------------------------------------------------------------------------------

    async def deploy(self, job: DeploymentJob, plan: DeploymentPlan) -> None:
        """Bring a version in, as decided.

        Raises:
            Conflict: The number stands with other content, or the fallback does not stand.
            InputRefused: Files or parameters cannot be used.
            JobFailed: It does not come up.
            Unavailable: The disk does not take it.
        """
        async with self.changing:
            if self.state.rollout is not None and self.state.rollout.operation_id == job.operation_id:
                return  # A crash came between the deed and its record.
            deployed = Deployed(
                number=job.number,
                operation_id=job.operation_id,
                parameters=dict(job.parameters),
                digests={name: file.digest_hex for name, file in job.model.items()},
                deployed_at_ms=self._clock(),
            )
            fallback = version_number(plan.fallback) if plan.fallback else 0
            self._require_possible(deployed, plan, fallback)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._disk, self._store.place_model, job.endpoint, deployed, job.model)
            version = await loop.run_in_executor(self._disk, self._make_version, deployed)
            rollout = Rollout(
                operation_id=job.operation_id,
                number=job.number,
                fallback=fallback,
                steps=tuple(plan.weights),
                index=0,
                state="advancing",
                bake_s=plan.bake_s,
            )
            before = self._versions.get(job.number)

            def deploy(state: EndpointState) -> None:
                _require_fallback(state, fallback)  # Its alarm may have fired meanwhile.
                state.begin(rollout, deployed, is_shadow=plan.strategy == "shadow")
                state.add_event("step", job.operation_id, self._clock())
                if not plan.bake_s and len(rollout.steps) <= 1:
                    # There is nothing to wait for.
                    state.rollout = rollout.after(0)
                    state.add_event("completed", job.operation_id, self._clock())
                self._versions[job.number] = version

            try:
                await version.come_up(_COME_UP_S)
                await self._take(deploy)
            except BaseException as error:
                # Nothing was deployed: what stood under the number stands, and nothing of this is left.
                if before is not None:
                    self._versions[job.number] = before
                else:
                    self._versions.pop(job.number, None)
                await version.drain(0)
                if not isinstance(error, Unavailable):  # Else the disk may have it all the same, and come up with it.
                    await self._forget_models()
                raise
            await self._forget_models()
            self._held_since_s = time.monotonic()
            if before is not None:
                self._background(before.drain())

    def _require_possible(self, deployed: Deployed, plan: DeploymentPlan, fallback: int) -> None:
        state = self.state
        if fallback and (fallback not in state.deployed or not state.weights):
            raise Conflict(f"the fallback {plan.fallback} is not deployed on this endpoint", code="conflict.fallback")
        if fallback and state.deployed[fallback].parameters["version"] != plan.fallback:
            raise Conflict(f"another version stands as number {fallback}", code="conflict.fallback")
        _require_fallback(state, fallback)
        if plan.strategy == "shadow" and not state.weights:
            raise Conflict("a shadow needs a version that has the traffic", code="conflict.shadow")
        standing = state.deployed.get(deployed.number)
        if standing is not None and (
            standing.digests != deployed.digests or standing.parameters["version"] != deployed.parameters["version"]
        ):
            raise Conflict("this version stands with other content; retire it first", code="conflict.content")

    async def shift(self, change: TrafficChange) -> None:
        """Divide the traffic by hand.

        Raises:
            NotFound: Nothing is deployed here.
            Conflict: A version that is to have traffic does not stand, or an alarm ended its deployment.
            JobFailed: One that slept does not come up.
        """
        weights = {int(number): percent for number, percent in change.weights.items()}
        shadow = int(change.shadow or 0)
        async with self.changing:
            self._require_deployed()
            for number in [number for number, percent in weights.items() if percent] + ([shadow] if shadow else []):
                if number not in self.state.deployed:
                    raise Conflict(f"version {number} is not deployed on this endpoint", code="conflict.version")
            if shadow and weights.get(shadow):
                raise Conflict("a shadow has no traffic of its own", code="conflict.shadow")
            is_return = "deployment" in change.parameters
            _require_unalarmed(self.state, weights, is_return=is_return)

            def shift(state: EndpointState) -> None:
                _require_unalarmed(state, weights, is_return=is_return)  # An alarm may have fired meanwhile.
                state.weights = {number: percent for number, percent in weights.items() if percent}
                state.shadow = shadow
                if state.rollout is not None:
                    state.rollout = state.rollout.by_hand()
                state.add_event("step", change.operation_id, self._clock())

            self._woken = frozenset(number for number, percent in weights.items() if percent)
            self._follow(self.state)
            woken = [self._versions[number] for number in sorted(self._woken)]
            try:
                for version in woken:
                    if not version.ready:
                        await version.come_up(_COME_UP_S)
                await self._take(shift)
            except BaseException:
                for version in woken:
                    version.go_on()
                raise
            finally:
                # If nothing was shifted, each is needed for what it was needed for before, a return among it.
                self._woken = frozenset()
                self._follow(self.state)

    async def retire(self, change: TrafficChange) -> None:
        """Take nothing more, end what is under way, stop everything.

        Raises:
            NotFound: Nothing is deployed here.
        """
        async with self.changing:
            self._require_deployed()
            versions = list(self._versions.values())

            def retire(state: EndpointState) -> None:
                state.weights, state.shadow, state.rollout, state.guards, state.deployed = {}, 0, None, {}, {}
                state.add_event("completed", change.operation_id, self._clock())

            await self._take(retire)
            await asyncio.gather(*(version.drain() for version in versions))
            await self._forget_models()

    def _require_deployed(self) -> None:
        if self.state.is_retired:
            raise NotFound("nothing is deployed on this endpoint")

    # --- what happens by itself ------------------------------------------------------------------------------------------

    def tick(self, now_s: float) -> None:
        """Look after everything; called many times a second."""
        for version in list(self._versions.values()):
            version.tick(now_s)
        self.reserve_ahead()
        if now_s - self._alarms_at_s >= _ALARMS_EVERY_S:
            self._alarms_at_s = now_s
            self._watch(now_s)

    def _watch(self, now_s: float) -> None:
        newest = self.state.rollout
        for rollout in self.state.on_guard():
            if rollout.number not in self._versions:
                continue
            fired = self._versions[rollout.number].panel.evaluate(now_s, self._clock(), _beside)
            if fired is not None:
                self._return(rollout.number, fired)
                return
        if newest is not None and not self.changing.locked():
            following = newest.after(now_s - self._held_since_s)
            if following is not newest:
                self._held_since_s = now_s
                self._background(self._advance(newest, following))

    def _return(self, number: int, fired: Fired) -> None:
        """All traffic to the version's fallback, at once; the disk follows."""
        state = self.state.copy()
        ended = state.alarm(number)
        kind = "rolled-back" if ended.state == "rolled-back" else "failed"
        state.add_event(
            kind, ended.operation_id, self._clock(), cause=fired.to_json(), about=state.deployed[ended.number]
        )
        logger.warning("alarm", extra={"endpoint": state.endpoint, "kind": fired.kind, "value": fired.value})
        self._follow(state)
        self._background(self._save())

    async def _advance(self, seen: Rollout, following: Rollout) -> None:
        def advance(state: EndpointState) -> None:
            if state.rollout is not seen:
                raise _Overtaken
            state.rollout = following
            state.weights = following.weights or state.weights
            kind = "completed" if following.state == "completed" else "step"
            state.add_event(kind, following.operation_id, self._clock())

        async with self.changing:
            with contextlib.suppress(_Overtaken):
                await self._take(advance)

    # --- state -----------------------------------------------------------------------------------------------------------

    def next_to_tell(self) -> Mapping[str, Any] | None:
        """The first event that was not told yet and is on the disk; one that is not could be forgotten, and its number used again."""
        first = next(iter(self.state.outbox), None)
        return first if first is not None and first["serial"] <= self._saved_serial else None

    async def told(self, serial: int) -> None:
        """Note that the events up to ``serial`` were told."""

        def forget(state: EndpointState) -> None:
            state.outbox = [event for event in state.outbox if event["serial"] > serial]

        await self._take(forget)

    async def _take(self, change: Callable[[EndpointState], None]) -> None:
        """Put a changed state on the disk, then in force."""
        async with self._saving:
            while True:
                before = self.state
                state = before.copy()
                change(state)
                await self._write(state)
                if self.state is before:
                    break
                # An alarm fired while this was written: what it did comes first, and this on top of it. What the disk has
                # until then was never in force, and its last number is the alarm's event here: that one is not saved.
            self._saved_serial = state.serial
            self._follow(state)

    async def _forget_models(self) -> None:
        """Remove the files of what stands here no more; only while nothing else changes, or what arrives would go, too."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._disk, self._store.keep_models, self.state.endpoint, self.state.deployed)

    async def _save(self) -> None:
        """Put what is in force on the disk, once it takes it."""
        while True:
            try:
                async with self._saving:
                    state = self.state
                    await self._write(state)
                    self._saved_serial = state.serial
            except Unavailable as error:
                told = {"endpoint": self.state.endpoint, "reason": str(error)}
                logger.warning("a return is not on the disk yet", extra=told)
                if self._is_ending:
                    return
                await asyncio.sleep(_SAVE_AGAIN_S)
            else:
                self._on_event()
                return

    async def _write(self, state: EndpointState) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._disk, self._store.save, state.endpoint, state.to_bytes())

    def _follow(self, state: EndpointState) -> None:
        """Have traffic and replicas follow a state."""
        self.state = state
        self._split = TrafficSplit(state.weights)
        newest = 0 if state.rollout is None else state.rollout.number
        guards = [state.rollout_of(number) for number in {newest, *state.weights}]
        fallbacks = {one.fallback for one in guards if one is not None and one.is_guarded}
        for number, version in list(self._versions.items()):
            if number not in state.deployed:
                del self._versions[number]
                self._background(version.drain())
                continue
            version.is_fallback = number in fallbacks or number in self._woken
            version.is_needed = version.is_fallback or number == state.shadow or bool(state.weights.get(number))
        self._on_event()

    def _make_version(self, deployed: Deployed) -> Version:
        return Version(
            deployed.number,
            parse_plan(deployed.parameters),
            self._store.model_files(self.state.endpoint, deployed),
            self._sandbox,
            self._replicas_dir,
        )

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # A task that nobody holds may be collected before it ran.
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("work in the background failed", exc_info=error, extra={"endpoint": self.state.endpoint})

    async def stop(self) -> None:
        """End what is under way and stop all replicas; the state stays as it is."""
        self._is_ending = True
        await asyncio.gather(*(version.drain() for version in self._versions.values()))
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- figures -----------------------------------------------------------------------------------------------------------

    def replicas(self) -> dict[str, int]:
        """Version number, as text, to replicas that answer."""
        return {str(number): version.ready for number, version in sorted(self._versions.items())}

    def figures(self) -> dict[str, Any]:
        """How it stands, as canonical JSON."""
        state, rollout = self.state, self.state.rollout
        return {
            "endpoint": state.endpoint,
            "weights": state.weights_text(),
            "shadow": state.shadow_text(),
            "rollout": None
            if rollout is None
            else _rollout_figures(rollout) | {"step": rollout.index, "steps": list(rollout.steps)},
            "guards": [
                _rollout_figures(one) | {"alarms": [alarm.kind for alarm in self._versions[one.number].plan.alarms]}
                for one in state.on_guard()
                if one is not rollout and one.number in self._versions
            ],
            "versions": {str(number): version.figures() for number, version in sorted(self._versions.items())},
            "invocations": self.counter.last,
            "untold_events": len(state.outbox),
        }
