"""One replica: a model server in the sandbox, and the connections to it.

Rules kept here:

- A replica is a job like any other: the same sandbox, its inputs staged and verified, its first process dying with the
  thread that watches it, which dies with the router.
- The socket it makes lies in a folder that only it can write to. It is opened once, must be a socket of the replica's
  own user, and is connected to by that descriptor: nothing the replica puts in its place later leads anywhere else.
- Everything but the watching thread runs on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import stat
import threading
import time
from typing import TYPE_CHECKING, Any, Literal, Protocol

from licet_adapters.errors import AdapterError, JobFailed
from licet_adapters.sandbox import JobRun, shipped_code
from licet_adapters.sandbox_limits import Limits
from licet_adapters.serving.calls import Answer, Call, Upstream
from licet_attestations import canonical
from licet_attestations.signer.files import make_private_directory

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from licet_adapters.ports import InputFile
    from licet_adapters.sandbox import Sandbox

State = Literal["starting", "ready", "ended"]
START_TIMEOUT_S = 30.0
JOB = "serve_tabular.py"
SOCKET = "replica.sock"
CONFIG = "serve.json"
# A server lives until it is stopped: time is no bound of it; memory, processes and files are.
LIMITS = Limits(
    wall_s=10**9, cpu_s=2**31 - 1, memory_bytes=1 << 30, file_bytes=1 << 20, processes=64, output_bytes=1 << 20,
    output_files=4, scratch_bytes=16 << 20, report_bytes=1 << 20,
)  # fmt: skip
_HEALTH_EVERY_S = 1.0
_HEALTH_TIMEOUT_S = 3.0
_CONNECT_TIMEOUT_S = 2.0
_HEALTH_REQUEST = b"GET /v2/health/ready HTTP/1.1\r\nhost: replica\r\n\r\n"
_HTTP_OK = 200


class Watcher(Protocol):
    """Whom a replica tells; see ``Version``."""

    def replica_ready(self, replica: Replica) -> None:
        """It answers from now on."""
        ...

    def replica_ended(self, replica: Replica, reason: str) -> None:
        """It is gone, and why."""
        ...

    def call_ended(self, replica: Replica, call: Call, answer: Answer | None) -> None:
        """A call it had is answered, or came to nothing."""
        ...


class Replica:
    """One model server.

    Args:
        sandbox: Where it runs.
        folder: Below which it has a folder of its own.
        files: The model's.
        config: What the server is told.
        watcher: Who is told.
        capacity: Calls it takes at a time.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        folder: Path,
        files: Mapping[str, InputFile],
        *,
        config: Mapping[str, Any],
        watcher: Watcher,
        capacity: int,
    ) -> None:
        self._sandbox, self._watcher, self._capacity = sandbox, watcher, capacity
        self._loop = asyncio.get_running_loop()
        self.id = secrets.token_hex(8)
        self._folder = folder / self.id
        self._run = JobRun(
            code=shipped_code(JOB),
            inputs=files,
            documents={CONFIG: canonical.dumps(dict(config))},
            output_dir=self._folder,
            limits=LIMITS,
        )
        self.state: State = "starting"
        self.is_draining = False
        self.in_flight = 0
        self.begun_s = time.monotonic()
        self._stop = threading.Event()
        self._reason = ""
        self._socket_fd = -1
        self._free: list[Upstream] = []
        self._all: set[Upstream] = set()
        self._connecting = 0
        self._queued: list[Call] = []
        self._health: Call | None = None
        self._healthy_s = 0.0
        self._thread = threading.Thread(target=self._watch, name=f"replica-{self.id}", daemon=True)
        self._thread.start()

    @property
    def has_room(self) -> bool:
        """Whether it takes another call."""
        return self.state == "ready" and not self.is_draining and self.in_flight < self._capacity

    def take(self, call: Call) -> None:
        """Carry a call."""
        self.in_flight += 1
        call.tries += 1
        if self._free:
            self._free.pop().send(call)
            return
        self._queued.append(call)
        self._connect()

    def stop(self, reason: str) -> None:
        """End it now; what it carries comes to nothing."""
        if not self._stop.is_set():
            self._reason = reason
            self._stop.set()
            # Told by hand, it need not wait for the thread to see it.
            self._leave()

    def tick(self, now_s: float) -> Literal["hung", "late"] | None:
        """Look after it: ``hung``: a call or a question after its health is not answered in time; ``late``: it never came up."""
        if self.state == "starting":
            return "late" if now_s - self.begun_s > START_TIMEOUT_S else None
        if self.state == "ended":
            return None
        if any(up.call is not None and up.call.deadline_s <= now_s for up in self._all):
            return "hung"
        if any(call.deadline_s <= now_s for call in self._queued):
            return "hung"
        if self._health is None and now_s - self._healthy_s >= _HEALTH_EVERY_S and self.in_flight == 0:
            self._ask_health(now_s)
        return None

    def join(self, timeout_s: float) -> None:
        """Wait until its processes are gone."""
        self._thread.join(timeout_s)

    # --- the watching thread -------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        reason = "ended by itself"
        try:
            make_private_directory(self._folder)
            end = self._sandbox.run(self._run, self._on_line, self._stop.is_set)
            if not end.stopped:
                last = end.stderr_tail.strip().rpartition("\n")[2][:200]
                reason = f"ended with status {end.status}: {last}" if last else f"ended with status {end.status}"
        except AdapterError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001  # Whatever it was, the version must learn that its replica is gone.
            reason = f"{type(error).__name__}: {error}"
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
            with contextlib.suppress(RuntimeError):  # The loop is closed: nobody wants to know any more.
                self._loop.call_soon_threadsafe(self._gone, self._reason or reason)

    def _on_line(self, line: dict[str, Any]) -> None:
        match line:
            case {"ready": True}:
                fd = self._open_socket()
                self._loop.call_soon_threadsafe(self._ready, fd)
            case {"error": {"message": str(message)}}:
                self._reason = message[:300]
            case _:
                raise JobFailed("the model server reported a line that is not a report", code="job.report")

    def _open_socket(self) -> int:
        try:
            fd = os.open(self._folder / SOCKET, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise JobFailed(f"the model server made no socket: {error.strerror}", code="job.socket") from error
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            os.close(fd)
            raise JobFailed("what the model server made is not a socket", code="job.socket")
        return fd

    # --- the loop's thread ---------------------------------------------------------------------------------------------

    def _ready(self, fd: int) -> None:
        if self.state != "starting" or self._stop.is_set():
            os.close(fd)
            return
        self._socket_fd = fd
        self.state = "ready"
        self._healthy_s = time.monotonic()
        self._watcher.replica_ready(self)

    def _gone(self, reason: str) -> None:
        self._leave()
        self._watcher.replica_ended(self, reason)

    def _leave(self) -> None:
        """Take no more, and give back what it carries."""
        if self.state == "ended":
            return
        self.state = "ended"
        if self._socket_fd >= 0:
            os.close(self._socket_fd)
            self._socket_fd = -1
        queued, self._queued = self._queued, []
        for call in queued:
            self._give_back(call)
        for upstream in list(self._all):
            upstream.close()

    def _give_back(self, call: Call) -> None:
        if call is self._health:
            self._health = None
            return
        self.in_flight -= 1
        self._watcher.call_ended(self, call, None)

    def _connect(self) -> None:
        if self._connecting < len(self._queued) and len(self._all) + self._connecting <= self._capacity + 1:
            self._connecting += 1
            self._loop.create_task(self._open_connection())

    async def _open_connection(self) -> None:
        try:
            if self.state != "ready":
                return
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                _, upstream = await self._loop.create_unix_connection(
                    lambda: Upstream(self._on_answer, self._on_broken), f"/proc/self/fd/{self._socket_fd}"
                )
        except (OSError, TimeoutError):
            self.stop("it cannot be connected to")
            return
        finally:
            self._connecting -= 1
        self._all.add(upstream)
        if self._stop.is_set():
            upstream.close()
        else:
            self._serve_next(upstream)

    def _serve_next(self, upstream: Upstream) -> None:
        if self._queued:
            upstream.send(self._queued.pop(0))
        else:
            self._free.append(upstream)

    def _on_answer(self, upstream: Upstream, call: Call, answer: Answer) -> None:
        self._serve_next(upstream)
        if call is self._health:
            self._health = None
            if answer.status == _HTTP_OK:
                self._healthy_s = time.monotonic()
            return
        self.in_flight -= 1
        self._healthy_s = time.monotonic()
        self._watcher.call_ended(self, call, answer)

    def _on_broken(self, upstream: Upstream, call: Call | None) -> None:
        self._all.discard(upstream)
        if upstream in self._free:
            self._free.remove(upstream)
        if call is not None:
            # Dead, or as good as: nothing more is sent there, above all not what it has just failed at.
            self.stop("it broke off within a request")
            self._give_back(call)

    def _ask_health(self, now_s: float) -> None:
        health = Call(
            _HEALTH_REQUEST, begun_s=now_s, deadline_s=now_s + _HEALTH_TIMEOUT_S, done=lambda _call, _end: None
        )
        self._health = health
        if self._free:
            self._free.pop().send(health)
        else:
            self._queued.append(health)
            self._connect()


def sweep_replicas(folder: Path) -> None:
    """Remove what replicas of a killed router left; theirs died with it."""
    shutil.rmtree(folder, ignore_errors=True)
    make_private_directory(folder)
