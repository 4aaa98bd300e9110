"""A router with a world around it: a real signer and log, a real sandbox, real sockets.

For tests and measures of the router that is shipped; the suite for serving runtimes knows none.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from typing import TYPE_CHECKING, Any

from licet_adapters.conformance.deployments import ENDPOINT, deployment, traffic_change, warrant_for
from licet_adapters.conformance.invoking import WorldDoor
from licet_adapters.conformance.tabular import table, write_input, write_model
from licet_adapters.conformance.world import TENANT, World
from licet_adapters.ports import REFERENCE_FILE
from licet_adapters.serving.reference import build_reference
from licet_adapters.serving.router import Router, RouterConfig, build_router
from licet_adapters.serving.sessions import ADAPTER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from licet_adapters.ports import DeploymentJob, InputFile, ServingOutcome, TrafficChange

PATIENCE_S = 30.0


def body(income: float = 4.5, ratio: float = 0.9, rows: int = 1) -> bytes:
    """An inference request."""
    inputs = [
        {"name": name, "shape": [rows], "datatype": "FP32", "data": [value] * rows}
        for name, value in (("income", income), ("ratio", ratio))
    ]
    return json.dumps({"inputs": inputs}).encode()


class ServingWorld:
    """A world, a door and a router that can be stopped and started again.

    Args:
        directory: Scratch, 0700.

    Attributes:
        world: The world.
        door: What the router asks and tells.
        router: The router, while it runs.
    """

    def __init__(self, directory: Path, **config: Any) -> None:
        self.world = World(directory)
        self._config = config
        self.door = WorldDoor(self.world)
        self.router: Router | None = None
        self._thread: threading.Thread | None = None
        self._callers: list[Caller] = []
        self._models = 0

    @property
    def data_dir(self) -> Path:
        """The router's folder."""
        return self.world.directory / "router"

    def start(self) -> Router:
        """Start a router on this world's folder."""
        context = self.world.context(ADAPTER)
        config = RouterConfig(data_dir=self.data_dir, port=0, **self._config)
        self.router = build_router(config, context.trust_root, self.world.signer, self.door, self.world.clock)
        self._thread = threading.Thread(target=self.router.run, daemon=True)
        self._thread.start()
        if not self.router.wait_ready(PATIENCE_S):
            raise TimeoutError(f"the router is not ready after {PATIENCE_S:.0f} s")
        return self.router

    def stop(self) -> None:
        """Stop it in good order."""
        if self.router is not None and self._thread is not None:
            self.router.ask_to_stop()
            self._thread.join(PATIENCE_S)
            if self._thread.is_alive():
                raise TimeoutError(f"the router has not stopped after {PATIENCE_S:.0f} s")
        self.router = None

    def close(self) -> None:
        """Stop it, and hang up."""
        for caller in self._callers:
            caller.close()
        self.stop()

    # --- deeds ---------------------------------------------------------------------------------------------------------

    def model(self, *, reference: bool = False) -> dict[str, InputFile]:
        """The files of a model, and its reference."""
        self._models += 1
        folder = self.world.directory / "models" / str(self._models)
        files = write_model(folder)
        if reference:
            data = build_reference(
                table(0),
                architecture=files["architecture.json"].path.read_bytes(),
                weights=files["model.safetensors"].path.read_bytes(),
                data_as_of_ms=self.world.now_ms,
            )
            files[REFERENCE_FILE] = write_input(folder / REFERENCE_FILE, data)
        return files

    def job(self, number: int, **changes: Any) -> DeploymentJob:
        """A deployment of version ``number``; see ``deployment``."""
        return deployment(self.world, number, **changes)

    def change(self, **parameters: Any) -> TrafficChange:
        """A change of traffic."""
        return traffic_change(**parameters)

    def warrant(self, operation: str, asked: DeploymentJob | TrafficChange) -> bytes:
        """The right warrant for it."""
        return warrant_for(self.world, ADAPTER, operation, asked)

    def deploy(self, number: int, **changes: Any) -> ServingOutcome:
        """Deploy under the right warrant."""
        job = self.job(number, **changes)
        return self.running.runtime.deploy(self.warrant("serving.deploy", job), job)

    def shift(self, weights: dict[str, int], shadow: str = "") -> ServingOutcome:
        """Shift under the right warrant."""
        change = self.change(weights=weights, shadow=shadow)
        return self.running.runtime.shift(self.warrant("serving.shift", change), change)

    def retire(self) -> ServingOutcome:
        """Retire under the right warrant."""
        change = self.change()
        return self.running.runtime.retire(self.warrant("serving.retire", change), change)

    @property
    def running(self) -> Router:
        """The router, which must have been started."""
        if self.router is None:
            raise RuntimeError("no router runs in this world: start one first")
        return self.router

    def figures(self) -> Any:
        """How the endpoint stands."""
        return self.running.runtime.status(TENANT, ENDPOINT)

    # --- requests ------------------------------------------------------------------------------------------------------

    def caller(self, token: str | None = None) -> Caller:
        """A caller with a connection of its own; by default one who may."""
        made = Caller(self.running.address, self.door.allow(ENDPOINT) if token is None else token)
        self._callers.append(made)
        return made


class Caller:
    """One who calls, on one connection.

    Args:
        address: The router's.
        token: What is shown; nothing if empty.
    """

    def __init__(self, address: tuple[str, int], token: str) -> None:
        self._connection = http.client.HTTPConnection(*address, timeout=PATIENCE_S)
        self._token = token

    def ask(
        self, method: str, path: str, data: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON body and headers."""
        sent = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        self._connection.request(method, path, data, sent | (headers or {}))
        answer = self._connection.getresponse()
        told = answer.read()
        return answer.status, json.loads(told), {name.lower(): value for name, value in answer.getheaders()}

    def infer(
        self, data: bytes | None = None, *, path: str = f"/v2/models/{ENDPOINT}/infer"
    ) -> tuple[int, Any, dict[str, str]]:
        """Invoke the endpoint."""
        return self.ask("POST", path, body() if data is None else data)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


@contextlib.contextmanager
def serving_world(directory: Path, **config: Any) -> Iterator[ServingWorld]:
    """A world with a router that runs; ``config`` goes into what it is started with."""
    world = ServingWorld(directory, **config)
    world.start()
    try:
        yield world
    finally:
        world.close()


def eventually(holds: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait until it holds; return what it gave."""
    deadline_s = time.monotonic() + patience_s
    while not (found := holds()):
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"it never came to pass: {what}")
        time.sleep(0.02)
    return found
