"""One deployed version at work: its replicas, its queue, and what is known of how it does.

Rules kept here:

- A call goes to the ready replica that has the fewest; where none has room it waits, in a queue bounded in number and
  bytes. What does not fit is turned away at once, to be tried again by its caller.
- A call whose replica died is tried once more on another, within its time: inference changes nothing. One that took too
  long ends as a timeout, and its replica is replaced; others that it held up are tried elsewhere.
- A version that is drained takes nothing new and stops when nothing is left.
- What is compared with training is a sample: as much as fits in so many bytes a second. What does not fit is left out and
  costs nothing, and no request gives more than a few rows, so that none can crowd out the others.
- Replicas that die at once are started again with growing pauses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from licet_adapters.errors import JobFailed
from licet_adapters.jobs import oip
from licet_adapters.modelfiles import ARCHITECTURE_FILE, parse_architecture
from licet_adapters.ports import REFERENCE_FILE
from licet_adapters.serving.alarms import AlarmPanel
from licet_adapters.serving.calls import Answer, Call, Failure
from licet_adapters.serving.drift import spread
from licet_adapters.serving.histogram import Outcome, Tally
from licet_adapters.serving.reference import parse_reference
from licet_adapters.serving.replica import Replica
from licet_adapters.serving.scaling import Load, fits_in_fewer, wanted_replicas

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from licet_adapters.ports import InputFile
    from licet_adapters.sandbox import Sandbox
    from licet_adapters.serving.plan import DeploymentPlan

MAX_REQUEST_ROWS = 4096
_MAX_WAITING = 256
_MAX_WAITING_BYTES = 64 << 20
_LEAST_CAPACITY = 16
_MOST_CAPACITY = 128
_MAX_SHADOWED = 32
WAKE_S = 15.0
"""How much longer a call may take where it has to wait for a replica to start."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 30.0
_SAMPLED_BYTES_EACH_S = 512 << 10
_SAMPLED_BURST_BYTES = 1 << 20
_SAMPLED_ROWS = 256
_TRIES = 2
_LOOK_EVERY_S = 0.02
_HTTP_OK, _HTTP_BAD, _HTTP_SERVER = 200, 400, 500

logger = logging.getLogger(__name__)


class Version:
    """One version of one endpoint.

    Args:
        number: Its number.
        plan: As decided.
        files: Its files, verified whenever a replica starts.
        sandbox: Where replicas run.
        folder: Below which replicas have their folders.

    Raises:
        InputRefused: Architecture or reference cannot be used, or an alarm could never fire.
    """

    def __init__(
        self, number: int, plan: DeploymentPlan, files: Mapping[str, InputFile], sandbox: Sandbox, folder: Path
    ) -> None:
        self.number, self.plan, self._files = number, plan, files
        self._sandbox, self._folder = sandbox, folder
        architecture = parse_architecture(files[ARCHITECTURE_FILE].path.read_bytes())
        self.signature = oip.Signature.of(architecture.model_dump(mode="json"))
        names = list(self.signature.features)
        reference = files.get(REFERENCE_FILE)
        self.panel = AlarmPanel(
            plan.alarms, None if reference is None else parse_reference(reference.path.read_bytes(), names), names
        )
        self.tally = Tally()
        self.mirrored = self.not_mirrored = self.retried = self.replaced = 0
        self.is_needed = self.is_fallback = False
        self._capacity = min(max(_LEAST_CAPACITY, plan.batch.max_rows), _MOST_CAPACITY)
        self._timeout_s = plan.timeout_ms / 1000
        self._replicas: list[Replica] = []
        self._waiting: deque[Call] = deque()
        self._waiting_bytes = 0
        self._shadowed = 0
        now_s = time.monotonic()
        self._asked_s = self._calm_since_s = now_s
        self._pause_s, self._not_before_s = _FIRST_PAUSE_S, 0.0
        self._last_end, self._ends = "", 0
        self._sample_bytes, self._sampled_s = float(_SAMPLED_BURST_BYTES), now_s
        self._changed = asyncio.Event()
        self._stopping = False
        self._infer_head = (
            b"POST /v2/models/" + plan.endpoint.encode() + b"/infer HTTP/1.1\r\nhost: replica\r\ncontent-length: "
        )

    # --- figures -------------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> int:
        """Replicas that answer."""
        return sum(replica.state == "ready" for replica in list(self._replicas))

    @property
    def waiting(self) -> int:
        """Calls that wait for a replica."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """Calls on replicas."""
        return sum(replica.in_flight for replica in list(self._replicas))

    def figures(self) -> dict[str, Any]:
        """How it does, as canonical JSON."""
        now_s = time.monotonic()
        confidence = self.panel.mean_confidence_micro(now_s, 600)
        return {
            "version": self.plan.version,
            "replicas": {"ready": self.ready, "all": len(self._replicas)},
            "waiting": len(self._waiting),
            "in_flight": self.in_flight,
            "latency": self.tally.figures(),
            "retried": self.retried,
            "replaced": self.replaced,
            "mirrored": self.mirrored,
            "not_mirrored": self.not_mirrored,
            "confidence_mean_micro": confidence,
            "drift": {
                name: {"gap_micro": round(one.gap * 1_000_000), "chance_micro": round(one.chance * 1_000_000)}
                for name, one in self.panel.last_drift.items()
            },
        }

    # --- calls ---------------------------------------------------------------------------------------------------------

    def infer(self, body: bytes, done: Callable[[Answer | Failure, Outcome], None]) -> None:
        """Have a request answered; ``done`` is told the answer and how it counts, once."""
        now_s = time.monotonic()
        self._asked_s = now_s
        wait_s = self._timeout_s if self.ready else self._timeout_s + WAKE_S

        def finished(call: Call, end: Answer | Failure) -> None:
            outcome = self._record(call, end)
            done(end, outcome)
            if self.panel.watches_rows and type(end) is Answer and outcome == "ok":
                self._sample(body, end.body)

        request = self._infer_head + b"%d\r\n\r\n" % len(body) + body
        self._place(Call(request, begun_s=now_s, deadline_s=now_s + wait_s, done=finished))

    def mirror(self, body: bytes) -> None:
        """Have a copy of a request answered for nobody; one too many is dropped."""
        if self._shadowed >= _MAX_SHADOWED or self._stopping:
            self.not_mirrored += 1
            return
        self._shadowed += 1

        def done(_end: Answer | Failure, _outcome: Outcome) -> None:
            self._shadowed -= 1

        self.mirrored += 1
        self.infer(body, done)

    def _place(self, call: Call) -> None:
        replica = self._roomiest()
        if replica is not None:
            replica.take(call)
        elif self._stopping:
            call.finish("unavailable")  # No replica will come.
        elif len(self._waiting) >= _MAX_WAITING or self._waiting_bytes + len(call.request) > _MAX_WAITING_BYTES:
            call.finish("overloaded")
        else:
            self._waiting.append(call)
            self._waiting_bytes += len(call.request)
            self._scale(time.monotonic())

    def _roomiest(self) -> Replica | None:
        best = None
        for replica in self._replicas:
            if replica.has_room and (best is None or replica.in_flight < best.in_flight):
                best = replica
        return best

    def _serve_waiting(self) -> None:
        while self._waiting and (replica := self._roomiest()) is not None:
            call = self._waiting.popleft()
            self._waiting_bytes -= len(call.request)
            replica.take(call)

    def _record(self, call: Call, end: Answer | Failure) -> Outcome:
        if type(end) is Answer:
            status = end.status
            outcome: Outcome = (
                "ok" if status == _HTTP_OK else "client-error" if _HTTP_BAD <= status < _HTTP_SERVER else "server-error"
            )
        else:
            outcome = "timeout" if end == "timeout" else "server-error"
        now_s = time.monotonic()
        latency_us = (now_s - call.begun_s) * 1e6
        self.tally.add(latency_us, outcome)
        self.panel.record(now_s, latency_us, outcome)
        return outcome

    def _sample(self, request: bytes, answer: bytes) -> None:
        """Look at rows and answers as far as there is time for it: so many bytes a second, whatever the traffic."""
        now_s = time.monotonic()
        allowed = self._sample_bytes + (now_s - self._sampled_s) * _SAMPLED_BYTES_EACH_S
        self._sample_bytes, self._sampled_s = min(allowed, _SAMPLED_BURST_BYTES), now_s
        if len(request) > self._sample_bytes:
            return
        self._sample_bytes -= len(request)
        try:
            rows = oip.parse_request(request, self.signature, MAX_REQUEST_ROWS).rows
        except oip.Malformed:  # The model server took it; if it is not read here, it is no sample.
            return
        probabilities = oip.read_probabilities(answer)
        if probabilities is not None and len(probabilities) == len(rows):
            taken = spread(len(rows), _SAMPLED_ROWS)
            self.panel.record_rows(now_s, rows[taken], probabilities[taken])

    # --- what replicas tell --------------------------------------------------------------------------------------------

    def replica_ready(self, replica: Replica) -> None:
        """See ``Watcher``."""
        del replica
        self._pause_s = _FIRST_PAUSE_S
        self._changed.set()
        self._serve_waiting()

    def replica_ended(self, replica: Replica, reason: str) -> None:
        """See ``Watcher``."""
        if replica in self._replicas:
            self._replicas.remove(replica)
            if not replica.is_draining:
                logger.warning("replica ended", extra={"version": self.plan.version, "reason": reason})
                self._last_end = reason
                self._ends += 1
                self._not_before_s = time.monotonic() + self._pause_s
                self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
        self._changed.set()
        self._scale(time.monotonic())

    def call_ended(self, replica: Replica, call: Call, answer: Answer | None) -> None:
        """See ``Watcher``."""
        if answer is not None:
            call.finish(answer)
        elif time.monotonic() >= call.deadline_s:
            call.finish("timeout")
        elif call.tries >= _TRIES or call.is_over:
            call.finish("unavailable")
        else:
            self.retried += 1
            other = self._roomiest()
            if other is not None:
                other.take(call)
            else:
                # In front: it has waited longest. What was admitted once is not turned away for want of room.
                self._waiting.appendleft(call)
                self._waiting_bytes += len(call.request)
        if replica.is_draining and not replica.in_flight:
            replica.stop("drained")
        self._serve_waiting()

    # --- looking after it ----------------------------------------------------------------------------------------------

    def tick(self, now_s: float) -> None:
        """Replace what hangs, end what waits too long, start and stop replicas."""
        for replica in list(self._replicas):
            trouble = replica.tick(now_s)
            if trouble is not None:
                self.replaced += 1
                replica.stop("it hangs" if trouble == "hung" else "it did not come up in time")
        while self._waiting and self._waiting[0].deadline_s <= now_s:
            call = self._waiting.popleft()
            self._waiting_bytes -= len(call.request)
            call.finish("timeout")
        self._scale(now_s)

    def _load(self, now_s: float) -> Load:
        alive = sum(not replica.is_draining and replica.state != "ended" for replica in self._replicas)
        return Load(
            replicas=alive,
            waiting=len(self._waiting),
            in_flight=self.in_flight,
            capacity=self._capacity,
            idle_s=now_s - self._asked_s,
            calm_s=now_s - self._calm_since_s,
            is_needed=self.is_needed and not self._stopping,
            is_fallback=self.is_fallback,
        )

    def _scale(self, now_s: float) -> None:
        load = self._load(now_s)
        if not fits_in_fewer(load):
            self._calm_since_s = now_s
        wanted = wanted_replicas(load, self.plan.replicas)
        if wanted > load.replicas and now_s >= self._not_before_s:
            for _ in range(wanted - load.replicas):
                self._start_replica()
        elif wanted < load.replicas:
            self._calm_since_s = now_s
            alive = [one for one in self._replicas if not one.is_draining and one.state != "ended"]
            for replica in sorted(alive, key=lambda one: one.in_flight)[: load.replicas - wanted]:
                replica.is_draining = True
                if not replica.in_flight:
                    replica.stop("drained")

    def _start_replica(self) -> None:
        config = {
            "name": self.plan.endpoint,
            "version": str(self.number),
            "batch": {"max_rows": self.plan.batch.max_rows, "max_wait_ms": self.plan.batch.max_wait_ms},
            "max_request_rows": MAX_REQUEST_ROWS,
            "max_request_bytes": self.plan.max_request_bytes,
        }
        self._replicas.append(
            Replica(
                self._sandbox,
                self._folder,
                self._files,
                config=config,
                watcher=self,
                capacity=self._capacity,
            )
        )

    async def come_up(self, timeout_s: float) -> None:
        """Start what is needed at least and wait until it answers.

        Raises:
            JobFailed: It does not come up.
        """
        self._stopping = False
        # Kept warm from here on; the endpoint says later what it is needed for.
        self.is_needed = self.is_fallback = True
        ends_before = self._ends
        deadline_s = time.monotonic() + timeout_s
        while self.ready < max(1, self.plan.replicas.min):
            now_s = time.monotonic()
            if self._ends - ends_before > _TRIES or now_s >= deadline_s:
                await self.drain(0)
                why = self._last_end or "it takes too long"
                raise JobFailed(f"the model server does not come up: {why}", code="job.start")
            self.tick(now_s)
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _LOOK_EVERY_S)
        # So that it is not at once taken for idle.
        self._asked_s = time.monotonic()

    def go_on(self) -> None:
        """Be as before a start that failed: it stays, and its replicas are started again as they are needed."""
        self._stopping = False

    async def drain(self, timeout_s: float | None = None) -> None:
        """Take nothing new, end what is under way (at most ``timeout_s``), and stop all replicas."""
        self._stopping = True
        deadline_s = time.monotonic() + (self._timeout_s + 1 if timeout_s is None else timeout_s)
        while (self._waiting or self.in_flight) and time.monotonic() < deadline_s:  # noqa: ASYNC110  # Two conditions and a bound.
            await asyncio.sleep(_LOOK_EVERY_S)
        while self._waiting:
            self._waiting.popleft().finish("unavailable")
        self._waiting_bytes = 0
        stopped = list(self._replicas)
        for replica in stopped:  # Also those that are only starting.
            replica.is_draining = True
            replica.stop("retired")
        loop = asyncio.get_running_loop()
        for replica in stopped:
            await loop.run_in_executor(None, replica.join, 5.0)
