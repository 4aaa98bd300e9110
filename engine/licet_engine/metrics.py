"""What the processes measure, and the door at which operators read it, in Prometheus' format.

Rules kept here:

- No label names a tenant, a person or a thing of theirs: what one may see of another's load stays a sum.
- The door is on this machine alone, and asks for the token that lies in the data folder, its owner's alone.
- What is read at the door is read when it is asked for; it never keeps a request waiting.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from secrets import token_urlsafe
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Histogram, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from licet_adapters.serving.histogram import OUTCOMES, Outcome
from licet_attestations.signer.files import create_durably

logger = logging.getLogger(__name__)

METRICS_HOST: Final = "127.0.0.1"
_FAST_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LONG_S: Final = (0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 512)
_READ_AGAIN_S: Final = 5.0


def new_registry() -> CollectorRegistry:
    """A registry with what is known of the process itself."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


class CallMetrics:
    """Calls through the internal doors, as this process makes them.

    Args:
        registry: Where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._calls = Histogram(
            "licet_rpc_call_duration_seconds",
            "Calls of other processes by door (signer, api), method and outcome (ok, or the error's code).",
            ("door", "method", "outcome"),
            buckets=_FAST_S,
            registry=registry,
        )

    def called(self, door: str, method: str, outcome: str, duration_s: float) -> None:
        """Count one call."""
        self._calls.labels(door, method, outcome).observe(duration_s)


class ApiMetrics:
    """What the api measures.

    Args:
        registry: Where it is registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.calls = CallMetrics(registry)
        self._http = Histogram(
            "licet_http_request_duration_seconds",
            "Requests by method, route and status, the wait for a place included.",
            ("method", "route", "status"),
            buckets=_FAST_S,
            registry=registry,
        )
        self._decisions = Counter(
            "licet_decisions", "Durable decisions by action and outcome.", ("action", "outcome"), registry=registry
        )
        self._shadowed = Counter(
            "licet_policy_shadow_decisions",
            "Decisions that a candidate was to be asked about, by how its answer compares, or dropped.",
            ("outcome",),
            registry=registry,
        )
        self._messages = Counter(
            "licet_webhook_tries", "Tries at sending messages to webhooks, by outcome.", ("outcome",), registry=registry
        )
        self._witnesses = Counter(
            "licet_witness_answers",
            "Answers of witnesses: cosigned, moved (another size), refused, or failed (not reached).",
            ("witness", "outcome"),
            registry=registry,
        )
        self._ended = Counter(
            "licet_operations_ended",
            "Operations that ended, by action and state.",
            ("action", "state"),
            registry=registry,
        )
        self._group_size = Histogram(
            "licet_sequencer_group_size", "Submissions in one transaction.", buckets=_SIZES, registry=registry
        )
        self._group_s = Histogram(
            "licet_sequencer_group_duration_seconds",
            "From taking a group to its durability.",
            buckets=_FAST_S,
            registry=registry,
        )

    def served(self, method: str, route: str, status: int, duration_s: float) -> None:
        """Count one request."""
        self._http.labels(method, route, str(status)).observe(duration_s)

    def decided(self, action: str, allowed: bool) -> None:  # noqa: FBT001 - what it is called with has two members.
        """Count one durable decision."""
        self._decisions.labels(action, "allow" if allowed else "deny").inc()

    def shadowed(self, outcome: str) -> None:
        """Count one decision that a candidate was, or was not, asked about."""
        self._shadowed.labels(outcome).inc()

    def ended(self, action: str, state: str) -> None:
        """Count one operation that ended."""
        self._ended.labels(action, state).inc()

    def message_tried(self, delivered: bool) -> None:  # noqa: FBT001 - as the outbox calls it.
        """Count one try at sending a message."""
        self._messages.labels("delivered" if delivered else "failed").inc()

    def witness_told(self, witness: str, outcome: str) -> None:
        """Count one answer of a witness."""
        self._witnesses.labels(witness, outcome).inc()

    def sequenced(self, submissions: int, duration_s: float) -> None:
        """Take note of one group of the sequencer."""
        self._group_size.observe(submissions)
        self._group_s.observe(duration_s)


class WorkerMetrics:
    """What the worker measures.

    Args:
        registry: Where it is registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.calls = CallMetrics(registry)
        self._performed = Histogram(
            "licet_worker_operation_duration_seconds",
            "Performances of operations by the state they ended in.",
            ("state",),
            buckets=_LONG_S,
            registry=registry,
        )

    def performed(self, state: str, duration_s: float) -> None:
        """Count one performance."""
        self._performed.labels(state).observe(duration_s)


class RouterMetrics:
    """What the router measures.

    Args:
        registry: Where it is registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.calls = CallMetrics(registry)
        invocations = Histogram(
            "licet_invocation_duration_seconds",
            "Invocations by outcome, from the whole request to its answer.",
            ("outcome",),
            buckets=_FAST_S,
            registry=registry,
        )
        # Found once: it is asked for with every request.
        self._by_outcome = {outcome: invocations.labels(outcome) for outcome in OUTCOMES}

    def invoked(self, outcome: Outcome, duration_s: float) -> None:
        """Count one invocation."""
        self._by_outcome[outcome].observe(duration_s)


Gauges = Mapping[str, tuple[str, str, Callable[[], Mapping[str, float] | float]]]
"""Name to: what it says, the one label it has or none, and how it is read."""


class LiveGauges(Collector):
    """What is read when it is asked for, at most once in a few seconds.

    Args:
        gauges: What there is.
        again_s: How long what was read is told again.
    """

    def __init__(self, gauges: Gauges, again_s: float = _READ_AGAIN_S) -> None:
        self._gauges = gauges
        self._again_s = again_s
        self._lock = threading.Lock()
        self._read_at_s = float("-inf")
        self._families: list[GaugeMetricFamily] = []

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """See ``Collector``."""
        with self._lock:
            if time.monotonic() - self._read_at_s > self._again_s:
                self._families = list(self._read())
                self._read_at_s = time.monotonic()
            return self._families

    def _read(self) -> Iterator[GaugeMetricFamily]:
        for name, (told, label, read) in self._gauges.items():
            family = GaugeMetricFamily(name, told, labels=(label,) if label else ())
            try:
                found = read()
            except Exception as error:  # noqa: BLE001 - a gauge that cannot be read is left out; the others are told.
                logger.warning("a gauge cannot be read", extra={"gauge": name, "reason": repr(error)})
                continue
            values = found if isinstance(found, Mapping) else {"": found}
            for value_of, value in values.items():
                family.add_metric((value_of,) if label else (), value)
            yield family


def free_bytes(folder: Path) -> Callable[[], float]:
    """Reads the free space of a folder's file system."""
    return lambda: float(shutil.disk_usage(folder).free)


# --- the door -------------------------------------------------------------------------------------------------------


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = 5  # A slow reader costs one thread for so long.

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as the base class calls it.
        """Say nothing: who reads metrics reads them every few seconds."""


class MetricsDoor:
    """Serves a registry on a port of this machine.

    Args:
        port: On 127.0.0.1; 0 chooses one.
        registry: What is served.
        token_file: Where the token lies that must be shown.
    """

    def __init__(self, port: int, registry: CollectorRegistry, token_file: Path) -> None:
        expected = b"Bearer " + token_file.read_text("ascii").strip().encode()
        metrics = make_wsgi_app(registry)

        def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            shown = str(environ.get("HTTP_AUTHORIZATION", "")).encode("latin-1", "replace")
            if environ.get("PATH_INFO") != "/metrics":
                start_response("404 Not Found", [("Content-Type", "text/plain")])
                return [b"metrics are at /metrics\n"]
            if not hmac.compare_digest(shown, expected):
                start_response("401 Unauthorized", [("Content-Type", "text/plain"), ("WWW-Authenticate", "Bearer")])
                return [b"show the token of metrics.token\n"]
            answer: Iterable[bytes] = metrics(environ, start_response)
            return answer

        self._server = make_server(METRICS_HOST, port, guarded, _Server, _Handler)
        self.port: int = self._server.server_port
        threading.Thread(target=self._server.serve_forever, name="licet-metrics", daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


def open_door(port: int, registry: CollectorRegistry, token_file: Path) -> MetricsDoor | None:
    """Open a door if there is a port for it; without one, or with one in use, the process goes on without."""
    if not port:
        return None
    try:
        return MetricsDoor(port, registry, token_file)
    except OSError as error:
        # NOTE: A second process of the same kind on this machine needs a port of its own, by its own settings.
        logger.warning("no metrics are served", extra={"port": port, "reason": str(error)})
        return None


def make_token(path: Path) -> None:
    """Make the token that must be shown to read metrics, if there is none yet."""
    with contextlib.suppress(FileExistsError):
        create_durably(path, token_urlsafe(32).encode() + b"\n")
