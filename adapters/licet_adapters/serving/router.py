"""The router: one process that owns the replicas of all endpoints and takes their requests.

Rules kept here:

- It is the adapter instance ``local-serving``: whoever calls its control is not trusted to have checked anything. Each
  deed is admitted by the guard here, marked spent, and recorded in the ledger, so that a retry repeats nothing.
- One event loop does everything that must be fast; what waits for disk, api or signer is done beside it.
- One router to a folder. What it needs to go on is on the disk, so it can be killed anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from licet_adapters.effects import EffectLedger
from licet_adapters.errors import NotFound, Unavailable
from licet_adapters.guard import WarrantGuard
from licet_adapters.ports import (
    REFERENCE_FILE,
    DeploymentJob,
    InputFile,
    SandboxReport,
    ServingOutcome,
    TrafficChange,
    check_endpoint,
)
from licet_adapters.sandbox import Sandbox, shipped_code
from licet_adapters.serving.counting import InvocationCounter
from licet_adapters.serving.crowd import Crowd
from licet_adapters.serving.endpoint import Endpoint
from licet_adapters.serving.http import Connection
from licet_adapters.serving.plan import parse_plan
from licet_adapters.serving.plane import DataPlane
from licet_adapters.serving.replica import JOB, sweep_replicas
from licet_adapters.serving.reporter import Reporter
from licet_adapters.serving.sessions import ADAPTER, Door, Minting, Sessions
from licet_adapters.serving.share import Shares
from licet_adapters.serving.state import EndpointState, EndpointStore
from licet_adapters.training.common import report_from_record, report_to_record
from licet_adapters.training.environment import environment_digest_hex
from licet_attestations import rpc
from licet_attestations.signer.files import create_durably, make_private_directory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping

    from licet_adapters.ports import Clock
    from licet_adapters.serving.plane import Observe
    from licet_attestations.trustroot import TrustRoot

_TICK_S = 0.02
_SLOW_TICK_S = 0.25
_CALL_TIMEOUT_S = 180.0
_GRACE_S = 10.0
_DOOR_THREADS = 4

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterConfig:
    """What a router is started with.

    Attributes:
        data_dir: Its own folder, 0700.
        host: Where it takes requests.
        port: The same; 0: any that is free.
        control_socket: Where deeds are asked for; None: only by ``Router.runtime``.
        max_connections: Of callers, at a time.
        max_held_bytes: Of requests that are not whole or not answered yet.
        max_endpoints: Of a tenant.
        max_replicas: Of all versions on a tenant's endpoints together, as many as each may have at most.
    """

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 8001
    control_socket: Path | None = None
    max_connections: int = 2048
    max_held_bytes: int = 512 << 20
    max_endpoints: int = 50
    max_replicas: int = 64


class Runtime:
    """The port ``ServingRuntime``, in the router's own process; its methods block and may be called by any thread."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def deploy(self, warrant: bytes, job: DeploymentJob) -> ServingOutcome:
        """See ``ServingRuntime``."""
        plan = parse_plan(job.parameters)
        return self._router.act(warrant, "serving.deploy", job, lambda endpoint: endpoint.deploy(job, plan), new=True)

    def shift(self, warrant: bytes, change: TrafficChange) -> ServingOutcome:
        """See ``ServingRuntime``."""
        change.weights, change.shadow  # noqa: B018  # Refused before the warrant is spent, if they are no weights.
        return self._router.act(warrant, "serving.shift", change, lambda endpoint: endpoint.shift(change))

    def retire(self, warrant: bytes, change: TrafficChange) -> ServingOutcome:
        """See ``ServingRuntime``."""
        return self._router.act(warrant, "serving.retire", change, lambda endpoint: endpoint.retire(change))

    def stands(self, tenant: str, endpoint: str, operation_id: str, step: str) -> ServingOutcome | None:
        """See ``ServingRuntime``."""
        check_endpoint(endpoint, tenant)
        return self._router.stands(tenant, endpoint, operation_id, step)

    def status(self, tenant: str, endpoint: str) -> Mapping[str, Any]:
        """See ``ServingRuntime``."""
        check_endpoint(endpoint, tenant)
        return self._router.figures(endpoint)


class Router:
    """One router; made by ``build_router``.

    Attributes:
        runtime: The port, for callers in this process.
        address: Host and port it takes requests on, once it is ready.
    """

    def __init__(
        self,
        config: RouterConfig,
        trust_root: TrustRoot,
        signer: Minting,
        door: Door,
        clock: Clock,
        *,
        observe: Observe | None,
    ) -> None:
        make_private_directory(config.data_dir)
        self._config, self._clock = config, clock
        self._lock_fd = _only_router(config.data_dir)
        self._guard = WarrantGuard(ADAPTER, trust_root, config.data_dir, clock)
        self._ledger = EffectLedger(config.data_dir)
        self._store = EndpointStore(config.data_dir)
        self._name = _router_name(config.data_dir / "router-id")
        self._replicas_dir = config.data_dir / "replicas"
        sweep_replicas(self._replicas_dir)
        self._sandbox = Sandbox(config.data_dir)
        self._signer, self._door, self._observe = signer, door, observe
        self._endpoints: dict[str, Endpoint] = {}
        self._shares = Shares(self._endpoints, max_endpoints=config.max_endpoints, max_replicas=config.max_replicas)
        # What is told of what was done waits behind nobody who wants to do something, nor they behind strangers.
        self._beside = ThreadPoolExecutor(_DOOR_THREADS, thread_name_prefix="router-beside")
        self._opening = ThreadPoolExecutor(_DOOR_THREADS, thread_name_prefix="router-sessions")
        self._strangers = ThreadPoolExecutor(_DOOR_THREADS, thread_name_prefix="router-strangers")
        self._disk = ThreadPoolExecutor(2, thread_name_prefix="router-disk")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._reporter: Reporter | None = None
        self._plane: DataPlane | None = None
        self._ready = threading.Event()
        self._asked_to_stop = threading.Event()
        self.address: tuple[str, int] = (config.host, config.port)
        self.runtime = Runtime(self)

    # --- life ----------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until asked to stop; on the thread that calls.

        Raises:
            Unavailable: It cannot listen, or was closed before.
            IntegrityError: What it kept cannot be read.
        """
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._main())
        finally:
            self._loop = None
            for executor in (self._beside, self._opening, self._strangers):
                executor.shutdown(wait=False, cancel_futures=True)
            self._disk.shutdown(wait=True)
            os.close(self._lock_fd)

    def ask_to_stop(self) -> None:
        """Have ``run`` return soon; from any thread or a signal handler."""
        self._asked_to_stop.set()
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None:
            with contextlib.suppress(RuntimeError):  # It has stopped already.
                loop.call_soon_threadsafe(stop.set)

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until it takes requests; from another thread."""
        return self._ready.wait(timeout_s)

    async def _main(self) -> None:
        loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._loop = loop
        if self._asked_to_stop.is_set():
            return
        # The probe of the sandbox takes a moment; no request shall wait for it.
        await loop.run_in_executor(self._beside, self._sandbox.probe)
        sessions = Sessions(self._door, self._signer, self._guard, self._clock, self._opening, self._strangers)
        crowd: Crowd[Connection] = Crowd(self._config.max_connections, self._config.max_held_bytes)
        plane = DataPlane(self._endpoints, sessions, crowd, observe=self._observe)
        self._plane = plane
        self._reporter = Reporter(self._endpoints, self._door, self._signer, self._beside)
        for state in self._store.load_all():
            self._endpoints[state.endpoint] = self._make_endpoint(state, self._counter_of(state.endpoint))
        async with self._control():
            try:
                listener = await loop.create_server(
                    lambda: Connection(plane), self._config.host, self._config.port, backlog=1024
                )
            except OSError as error:
                raise Unavailable(
                    f"the router cannot listen on {self._config.host}:{self._config.port}: {error.strerror}"
                ) from error
            self.address = listener.sockets[0].getsockname()[:2]
            tasks = [loop.create_task(self._tick(plane)), loop.create_task(self._reporter.run())]
            plane.is_ready = True
            self._ready.set()
            logger.info("router ready", extra={"host": self.address[0], "port": self.address[1]})
            await self._stop.wait()
            plane.is_ready = False
        listener.close()
        for connection in plane.crowd.members():
            connection.end()
        deadline_s = time.monotonic() + _GRACE_S
        while len(plane.crowd) and time.monotonic() < deadline_s:  # noqa: ASYNC110  # With a bound.
            await asyncio.sleep(_TICK_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._end()

    async def _end(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(endpoint.stop() for endpoint in self._endpoints.values()))
        if self._reporter is not None:
            await self._reporter.finish(_GRACE_S)
        for endpoint in self._endpoints.values():
            with contextlib.suppress(Unavailable):  # Then the next start tells them as lost.
                await loop.run_in_executor(self._disk, endpoint.counter.close)

    async def _tick(self, plane: DataPlane) -> None:
        slow_at_s = 0.0
        while True:
            await asyncio.sleep(_TICK_S)
            now_s = time.monotonic()
            for endpoint in list(self._endpoints.values()):
                try:
                    endpoint.tick(now_s)
                except Exception:
                    logger.exception("an endpoint could not be looked after: %s", endpoint.state.endpoint)
            if now_s - slow_at_s >= _SLOW_TICK_S:
                slow_at_s = now_s
                for connection in plane.crowd.members():
                    connection.tick(now_s)

    # --- deeds ---------------------------------------------------------------------------------------------------------

    def act(
        self,
        warrant: bytes,
        operation: str,
        asked: DeploymentJob | TrafficChange,
        deed: Callable[[Endpoint], Coroutine[Any, Any, None]],
        *,
        new: bool = False,
    ) -> ServingOutcome:
        """Do what a warrant permits, once; on the caller's thread, the deed itself on the loop's."""
        admitted = self._guard.admit(
            warrant, tenant=asked.tenant, operation=operation, parameters=asked.parameters, resources=asked.resources()
        )
        with self._ledger.once(admitted) as effect:
            if effect.outcome is None:
                effect.record(self._on_loop(self._do(asked, deed, new=new)))
            return _outcome(effect.outcome or {})

    async def _do(
        self,
        asked: DeploymentJob | TrafficChange,
        deed: Callable[[Endpoint], Coroutine[Any, Any, None]],
        *,
        new: bool,
    ) -> dict[str, Any]:
        with contextlib.ExitStack() as held:
            if isinstance(asked, DeploymentJob):
                held.enter_context(self._shares.taken(asked, parse_plan(asked.parameters)))
            endpoint = self._endpoints.get(asked.endpoint)
            if endpoint is None:
                if not new:
                    raise NotFound("nothing is deployed on this endpoint")
                state = EndpointState(tenant=asked.tenant, endpoint=asked.endpoint)
                counter = await asyncio.get_running_loop().run_in_executor(self._disk, self._counter_of, asked.endpoint)
                # Another deployment on it may have been faster.
                endpoint = self._endpoints.get(asked.endpoint) or self._make_endpoint(state, counter)
                self._endpoints[asked.endpoint] = endpoint
            await deed(endpoint)
        return self._standing(endpoint, asked.operation_id)

    def _standing(self, endpoint: Endpoint, operation_id: str) -> dict[str, Any]:
        deployed = endpoint.state.deployed_by(operation_id)
        compared = "" if deployed is None else deployed.digests.get(REFERENCE_FILE, "")
        reference = {"reference": compared} if compared else {}
        return {
            "weights": endpoint.state.weights_text(),
            "shadow": endpoint.state.shadow_text(),
            "replicas": endpoint.replicas(),
            "sandbox": report_to_record(self._sandbox.probe()),
            "digests": {"code": shipped_code(JOB).digest_hex, "environment": environment_digest_hex(), **reference},
        }

    def stands(self, tenant: str, endpoint: str, operation_id: str, step: str) -> ServingOutcome | None:
        """What an operation's step gave, if it was done; from any thread."""

        async def look() -> dict[str, Any]:
            known = self._endpoints.get(endpoint)
            if known is not None:
                async with known.changing:
                    pass  # What is under way ends first.
            effect = self._ledger.looked_up(tenant, operation_id, step)
            if effect is not None and effect.outcome is not None:
                return {"outcome": effect.outcome}
            # A crash between the deed and its record: a deployment is known by its state.
            if known is None or known.state.deployed_by(operation_id) is None:
                return {"outcome": None}
            return {"outcome": self._standing(known, operation_id)}

        found = self._on_loop(look())["outcome"]
        return None if found is None else _outcome(found)

    def endpoints(self) -> list[tuple[str, str]]:
        """Tenant and ref of every endpoint it knows; from any thread."""
        return [(endpoint.state.tenant, endpoint.state.endpoint) for endpoint in list(self._endpoints.values())]

    def load(self) -> dict[str, int]:
        """What all endpoints together are at, without a name; from any thread, and so of about one moment."""
        found = dict.fromkeys(("replicas", "active", "waiting", "untold"), 0)
        for endpoint in list(self._endpoints.values()):
            found["untold"] += len(endpoint.state.outbox)
            for version in endpoint.versions():
                found["replicas"] += version.ready
                found["active"] += version.in_flight
                found["waiting"] += version.waiting
        return found | {"connections": len(self._plane.crowd) if self._plane is not None else 0}

    def figures(self, endpoint: str) -> Mapping[str, Any]:
        """How an endpoint stands; from any thread."""

        async def read() -> dict[str, Any]:
            if endpoint not in self._endpoints:
                raise NotFound("nothing is deployed on this endpoint")
            return self._endpoints[endpoint].figures()

        return self._on_loop(read())

    def _counter_of(self, endpoint: str) -> InvocationCounter:
        """The counter of an endpoint; reads and writes its file."""
        return InvocationCounter(self._store.folder(endpoint) / "counter.json", self._name)

    def _make_endpoint(self, state: EndpointState, counter: InvocationCounter) -> Endpoint:
        reporter = self._reporter
        return Endpoint(
            state,
            store=self._store,
            sandbox=self._sandbox,
            replicas_dir=self._replicas_dir,
            counter=counter,
            clock=self._clock,
            disk=self._disk,
            beside=self._beside,
            accounted=lambda: int(self._door.call("account", tenant=state.tenant, endpoint=state.endpoint)["last"]),
            on_event=reporter.wake if reporter is not None else lambda: None,
        )

    def _on_loop(self, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
        loop = self._loop
        if loop is None or not self._ready.wait(_GRACE_S):
            work.close()
            raise Unavailable("the router is not running")
        try:
            return asyncio.run_coroutine_threadsafe(work, loop).result(_CALL_TIMEOUT_S)
        except (TimeoutError, RuntimeError) as error:
            raise Unavailable("the router did not do it in time") from error

    @contextlib.asynccontextmanager
    async def _control(self) -> AsyncIterator[None]:
        """Answer on the control socket while in the block."""
        if self._config.control_socket is None:
            yield
            return
        server = rpc.RpcServer(self._config.control_socket, control_handlers(self.runtime), {os.geteuid()})
        thread = threading.Thread(target=server.serve_forever, name="router-control", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.close()
            # The next router shall find the socket gone.
            await asyncio.get_running_loop().run_in_executor(None, thread.join, _GRACE_S)


def build_router(
    config: RouterConfig,
    trust_root: TrustRoot,
    signer: Minting,
    door: Door,
    clock: Clock,
    *,
    observe: Observe | None = None,
) -> Router:
    """Make a router.

    Args:
        config: Where and how.
        trust_root: Public keys to verify warrants with.
        signer: Mints session warrants and attests.
        door: The internal door of the api.
        clock: Time of day, in milliseconds.
        observe: Told the outcome of every invocation, and how many seconds it took; on the event loop, so it must be quick.

    Raises:
        Unavailable: Another router runs on this folder, or the disk does not take its name.
    """
    return Router(config, trust_root, signer, door, clock, observe=observe)


def control_handlers(runtime: Runtime) -> dict[str, rpc.Handler]:
    """The methods of the control socket; what ``LocalServing`` calls."""

    def deploy(params: dict[str, Any]) -> dict[str, Any]:
        warrant = rpc.decode_bytes(params.pop("warrant"))
        files = {
            name: InputFile(path=Path(file["path"]), digest_hex=file["digest_hex"])
            for name, file in params.pop("model").items()
        }
        return outcome_to_record(runtime.deploy(warrant, DeploymentJob(**params, model=files)))

    def shift(params: dict[str, Any]) -> dict[str, Any]:
        return outcome_to_record(runtime.shift(rpc.decode_bytes(params.pop("warrant")), TrafficChange(**params)))

    def retire(params: dict[str, Any]) -> dict[str, Any]:
        return outcome_to_record(runtime.retire(rpc.decode_bytes(params.pop("warrant")), TrafficChange(**params)))

    def stands(params: dict[str, Any]) -> dict[str, Any]:
        found = runtime.stands(params["tenant"], params["endpoint"], params["operation_id"], params["step"])
        return {"outcome": None if found is None else outcome_to_record(found)}

    def status(params: dict[str, Any]) -> dict[str, Any]:
        return dict(runtime.status(params["tenant"], params["endpoint"]))

    return {"deploy": deploy, "shift": shift, "retire": retire, "stands": stands, "status": status}


def outcome_to_record(outcome: ServingOutcome) -> dict[str, Any]:
    """An outcome as canonical JSON."""
    return {
        "weights": dict(outcome.weights),
        "shadow": outcome.shadow,
        "replicas": dict(outcome.replicas),
        "sandbox": report_to_record(outcome.sandbox),
        "digests": dict(outcome.digests),
    }


def _outcome(record: Mapping[str, Any]) -> ServingOutcome:
    sandbox: SandboxReport = report_from_record(record["sandbox"])
    return ServingOutcome(**(dict(record) | {"sandbox": sandbox}))


def _only_router(data_dir: Path) -> int:
    fd = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise Unavailable(f"{data_dir}: another router is running on this folder") from error
    return fd


def _router_name(path: Path) -> str:
    """The name of this router in what it tells; chosen once for its folder."""
    with contextlib.suppress(FileExistsError):
        create_durably(path, secrets.token_hex(8).encode())
    return path.read_text(encoding="ascii")
