"""The router process: takes invocations, owns the replicas of what is deployed, and is the adapter ``local-serving``.

It is wiring only; what it does stands in ``licet_adapters.serving``. It holds no key: the signer makes its session warrants,
on decisions of the api, and it admits them like any other.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from licet_adapters.errors import AdapterError
from licet_adapters.guard import forget
from licet_adapters.serving.router import Router, RouterConfig, build_router
from licet_attestations import rpc
from licet_attestations.signer.client import SignerClient
from licet_attestations.trustroot import TrustRoot
from licet_engine import logs, telemetry
from licet_engine.domain.refs import now_ms
from licet_engine.metrics import Gauges, LiveGauges, RouterMetrics, new_registry, open_door
from licet_engine.processes import give_sign
from licet_engine.settings import Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

_DOOR_TIMEOUT_S: Final = 10.0
_DOOR_PATIENCE_S: Final = 3.0
"""How long a caller is kept waiting for an api that is being started again."""
_TELL_EVERY_S: Final = 1.0
_SIGN_EVERY_S: Final = 1.0
_SWEEP_EVERY_S: Final = 60.0
_MARK_TTL_S: Final = 3600
"""A session leaves a mark each minute: longer than this none is kept, whatever the setting."""
_READY_WITHIN_S: Final = 60.0


class PatientDoor:
    """The internal door of the api, as the router sees it: it waits a little for an api that is away, and no longer.

    Args:
        settings: Of the installation.
    """

    def __init__(self, settings: Settings) -> None:
        self._socket = settings.api_socket

    def call(self, method: str, **params: Any) -> Any:
        """Call a method; every one of them may be called again after a lost answer.

        Raises:
            RpcFault: The api refused, with its code.
            RpcUnavailable: It did not come back in time.
        """
        deadline_s = time.monotonic() + _DOOR_PATIENCE_S
        pause_s = 0.05
        while True:
            try:
                return rpc.call(self._socket, method, params, _DOOR_TIMEOUT_S)
            except rpc.RpcUnavailable:
                if time.monotonic() + pause_s > deadline_s:
                    raise
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.5)


def tell_status(router: Router, door: PatientDoor) -> None:
    """Tell the api how every endpoint is doing: telemetry, for which nobody may reach into this process."""
    for tenant, endpoint in router.endpoints():
        try:
            door.call("status", tenant=tenant, endpoint=endpoint, figures=dict(router.figures(endpoint)))
        except (rpc.RpcFault, rpc.RpcUnavailable, AdapterError) as error:
            logger.warning("how an endpoint is doing was not told", extra={"endpoint": endpoint, "reason": str(error)})
            if not isinstance(error, rpc.RpcFault):
                return  # The api is away, for the others, too.


def sweep_marks(settings: Settings) -> None:
    """Remove marks of sessions and deeds whose warrants ended long ago."""
    ttl_s = min(settings.warrant_mark_ttl_s, _MARK_TTL_S)
    try:
        while forget(settings.router_data / "spent", now_ms(), ttl_s * 1000):
            pass
    except AdapterError as error:
        logger.warning("marks are kept", extra={"reason": str(error)})


def gauges(router: Router) -> Gauges:
    """What is read of the router when its metrics are asked for."""

    def of(name: str) -> Callable[[], float]:
        return lambda: float(router.load()[name])

    return {
        "licet_replicas": ("Model servers that answer.", "", of("replicas")),
        "licet_invocations_active": ("Invocations that replicas work on.", "", of("active")),
        "licet_invocations_waiting": ("Invocations that wait for a replica.", "", of("waiting")),
        "licet_router_connections": ("Connections of callers.", "", of("connections")),
        "licet_router_untold_events": ("Changes of traffic that the api was not told yet.", "", of("untold")),
    }


def main(settings: Settings | None = None) -> None:
    """Run the router until it is told to stop, or its supervisor is gone."""
    logs.configure()
    settings = settings or load_settings()
    config = RouterConfig(
        data_dir=settings.router_data,
        host=settings.router_host,
        port=settings.router_port,
        control_socket=settings.router_socket,
        max_connections=settings.router_connections,
        max_endpoints=settings.endpoints_per_tenant,
        max_replicas=settings.replicas_per_tenant,
    )
    telemetry.configure("licet-router", settings.otlp_endpoint)
    metrics = RouterMetrics(new_registry())
    rpc.observe(telemetry.RpcObserver(metrics.calls.called))
    trust_root = TrustRoot.from_json(settings.trust_root.read_bytes())
    door = PatientDoor(settings)
    router = build_router(
        config, trust_root, SignerClient(settings.signer_socket), door, now_ms, observe=metrics.invoked
    )
    metrics.registry.register(LiveGauges(gauges(router)))
    open_door(settings.metrics_port and settings.metrics_port + 2, metrics.registry, settings.metrics_token)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: router.ask_to_stop())

    def watch() -> None:
        is_ready = router.wait_ready(_READY_WITHIN_S)
        parent = os.getppid()
        while os.getppid() == parent:
            if is_ready:
                give_sign(settings.router_sign)
            time.sleep(_SIGN_EVERY_S)
        router.ask_to_stop()  # The supervisor died without a word: nobody would start us again.

    def tell() -> None:
        while True:
            tell_status(router, door)
            time.sleep(_TELL_EVERY_S)

    def sweep() -> None:
        while True:
            sweep_marks(settings)
            time.sleep(_SWEEP_EVERY_S)

    for task in (watch, tell, sweep):
        threading.Thread(target=task, name=f"licet-router-{task.__name__}", daemon=True).start()
    router.run()
    telemetry.shutdown()
    logging.shutdown()


if __name__ == "__main__":
    main()
