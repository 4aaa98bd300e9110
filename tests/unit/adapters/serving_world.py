"""A router with a world around it, for the tests of serving: a real signer and log, a real sandbox, real sockets."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from licet_adapters.conformance.invoking import WorldDoor
from licet_adapters.conformance.tabular import table, write_input, write_model
from licet_adapters.conformance.world import TENANT, World
from licet_adapters.ports import REFERENCE_FILE, DeploymentJob, InputFile, ServingOutcome, TrafficChange
from licet_adapters.serving.reference import build_reference
from licet_adapters.serving.router import Router, RouterConfig, build_router

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ENDPOINT = f"{TENANT}/credit"
ADAPTER = "local-serving"
ACTIONS = {
    "serving.deploy": "endpoint.deploy",
    "serving.shift": "endpoint.shift-traffic",
    "serving.retire": "endpoint.retire",
}
PATIENCE_S = 30.0


def body(income: float = 4.5, ratio: float = 0.9, rows: int = 1) -> bytes:
    """An inference request."""
    inputs = [
        {"name": name, "shape": [rows], "datatype": "FP32", "data": [value] * rows}
        for name, value in (("income", income), ("ratio", ratio))
    ]
    return json.dumps({"inputs": inputs}).encode()


class ServingWorld:
    """A world, a door and a router that can be stopped and started again."""

    def __init__(self, directory: Path, **config: Any) -> None:
        self.world = World(directory)
        self._config = config
        self.door = WorldDoor(self.world)
        self.router: Router | None = None
        self._thread: threading.Thread | None = None
        self._callers: list[Caller] = []
        self._serial = 0

    @property
    def data_dir(self) -> Path:
        return self.world.directory / "router"

    def start(self) -> Router:
        """Start a router on this world's folder."""
        context = self.world.context(ADAPTER)
        config = RouterConfig(data_dir=self.data_dir, port=0, **self._config)
        self.router = build_router(config, context.trust_root, self.world.signer, self.door, self.world.clock)
        self._thread = threading.Thread(target=self.router.run, daemon=True)
        self._thread.start()
        assert self.router.wait_ready(PATIENCE_S)
        return self.router

    def stop(self) -> None:
        """Stop it in good order."""
        if self.router is not None and self._thread is not None:
            self.router.ask_to_stop()
            self._thread.join(PATIENCE_S)
            assert not self._thread.is_alive()
        self.router = None

    def close(self) -> None:
        """Stop it, and hang up."""
        for caller in self._callers:
            caller.close()
        self.stop()

    # --- deeds ---------------------------------------------------------------------------------------------------------

    def model(self, *, reference: bool = False) -> dict[str, InputFile]:
        """The files of a model, and its reference."""
        folder = self.world.directory / "models" / str(self._serial)
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

    def job(self, number: int, *, files: dict[str, InputFile] | None = None, **changes: Any) -> DeploymentJob:
        """A deployment of version ``number``: direct, unless changed."""
        self._serial += 1
        version = f"{TENANT}/credit-risk@{number}"
        parameters: dict[str, Any] = {
            "endpoint": ENDPOINT,
            "version": version,
            "model_digest_hex": hashlib.sha256(version.encode()).hexdigest(),
            "region": "local",
            "strategy": "direct",
            "steps": [],
            "bake_s": 0,
            "fallback": "",
            "replicas": {"min": 1, "max": 1, "idle_s": 0},
            "batch": {"max_rows": 16, "max_wait_ms": 0},
            "timeout_ms": 3000,
            "max_request_bytes": 65_536,
            "alarms": [{"kind": "p95-latency", "threshold_us": 5_000_000, "window_s": 10, "min_count": 50}],
        }
        return DeploymentJob(
            tenant=TENANT,
            endpoint=ENDPOINT,
            operation_id=hashlib.sha256(f"deploy-{self._serial}".encode()).hexdigest()[:32],
            step="deploy",
            attempt=1,
            version=version,
            parameters=parameters | changes,
            model=self.model() if files is None else files,
        )

    def change(self, **parameters: Any) -> TrafficChange:
        """A change of traffic."""
        self._serial += 1
        return TrafficChange(
            tenant=TENANT,
            endpoint=ENDPOINT,
            operation_id=hashlib.sha256(f"change-{self._serial}".encode()).hexdigest()[:32],
            step="shift",
            attempt=1,
            parameters={"endpoint": ENDPOINT, **parameters},
        )

    def warrant(self, operation: str, asked: DeploymentJob | TrafficChange, **changes: Any) -> bytes:
        """The right warrant for it."""
        return self.world.warrant(
            ACTIONS[operation],
            ADAPTER,
            operation,
            resources=asked.resources(),
            parameters=asked.parameters,
            operation_id=asked.operation_id,
            step=asked.step,
            attempt=asked.attempt,
            **changes,
        )

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
        assert self.router is not None
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
    """One who calls, on one connection."""

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
        assert time.monotonic() < deadline_s, f"it never came to pass: {what}"
        time.sleep(0.02)
    return found
