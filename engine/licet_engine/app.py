"""The api process, constructed: the only place that puts its parts together."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Final

from dbos import DBOSClient, EnqueueOptions
from dbos import _serialization as dbos_serialization
from litestar import Litestar
from sqlalchemy import Connection, Engine, func
from sqlmodel import col, select

from licet_attestations import rpc
from licet_attestations.rpc import RpcServer
from licet_attestations.signer.client import SignerClient
from licet_attestations.trustroot import TrustRoot
from licet_engine import logs, telemetry
from licet_engine.api.limits import Places
from licet_engine.api.routes import build_app
from licet_engine.api.services import Services
from licet_engine.canaries import Canaries
from licet_engine.domain.rates import Buckets
from licet_engine.evidence.attestations import Attestations
from licet_engine.evidence.isolation import PairAnswers
from licet_engine.lifecycle.asked import Enqueued
from licet_engine.lifecycle.asking import Desk
from licet_engine.lifecycle.devices import DeviceLeases, pool_states, waiting_operations
from licet_engine.lifecycle.exchange import Exchanger, IssuerKeys
from licet_engine.lifecycle.operations import Operations
from licet_engine.lifecycle.outbox import Outbox
from licet_engine.lifecycle.reminders import Reminders
from licet_engine.lifecycle.retention import Overwriting, Retention
from licet_engine.lifecycle.router_door import RouterDoor
from licet_engine.lifecycle.shadowing import Shadower
from licet_engine.lifecycle.spool import Spool
from licet_engine.lifecycle.tenants import Tenants
from licet_engine.log.directory import Directory
from licet_engine.log.notary import Notary
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.witnesses import Witnesses, load_policy
from licet_engine.metrics import ApiMetrics, Gauges, LiveGauges, free_bytes, new_registry, open_door
from licet_engine.probe_report import ProbeReport, read_report
from licet_engine.processes import die_with_server
from licet_engine.settings import Settings, load_settings
from licet_engine.store.access import Role, open_database
from licet_engine.store.db import UnsafeAllTenants
from licet_engine.store.tables import Operation, WebhookMessage
from licet_engine.unproved import Unproved
from licet_engine.users import users_here
from licet_engine.workflow import APPLICATION, WORKFLOW, WORKFLOW_VERSION, queue_of

logger = logging.getLogger(__name__)

_SWEEP_EVERY_S: Final = 60.0
_STOP_WITHIN_S: Final = 10.0
_SPARE_CONNECTIONS: Final = 16
"""For the sequencer, the notary, the calls of the worker and slow lists, beside the threads of requests."""
_SLOW_THREADS: Final = 4
"""For lists that look through many rows: whoever asks for many waits for the others who do."""


class Enqueuer:
    """Hands accepted operations to the workflow engine, in the transaction of their decision.

    Args:
        engine: Of the store, which the workflow engine's tables share.
    """

    def __init__(self, engine: Engine) -> None:
        self._client = DBOSClient(
            system_database_engine=engine,
            serializer=dbos_serialization.DBOSPortableJSON,
            application_name=APPLICATION,
        )

    def __call__(self, connection: Connection, item: Enqueued) -> None:
        """Enqueue one operation."""
        options: EnqueueOptions = {
            "workflow_name": WORKFLOW,
            "queue_name": queue_of(item.action, needs_devices=item.needs_devices),
            # The worker performs but a few of one tenant at once, however many wait.
            "queue_partition_key": item.tenant,
            # One workflow for each operation, whatever is retried.
            "workflow_id": f"{item.tenant}/{item.operation}",
            "app_version": WORKFLOW_VERSION,
            "application_name": APPLICATION,
        }
        trace = (item.traceparent,) if item.traceparent else ()
        self._client.enqueue_in_transaction(connection, options, item.tenant, item.operation, *trace)


def build_services(settings: Settings) -> Services:
    """Construct the api's parts."""
    engine = open_database(settings, Role.API, pool_size=settings.api_threads + _SPARE_CONNECTIONS)
    # On SQLite it would be the same file, and one pool serves both.
    writes = open_database(settings, Role.SEQUENCER, pool_size=2) if settings.database_urls else engine
    trust_root = TrustRoot.from_json(settings.trust_root.read_bytes())
    signer = SignerClient(settings.signer_socket)
    metrics = ApiMetrics(new_registry())
    notary = Notary(engine, signer)
    sequencer = Sequencer(writes, enqueue=Enqueuer(writes), observe=metrics.sequenced, verify_logs=notary.verify_logs)
    tenants = Tenants(engine)
    witnesses = Witnesses(
        engine,
        notary,
        trust_root,
        load_policy(settings.witness_policy),
        max_lag_s=settings.witness_max_lag_s,
        # Long enough for each to be looked up and to answer.
        round_s=2 * settings.outbound_timeout_s + 1,
        told=metrics.witness_told,
    )
    directory = Directory(engine, sequencer, notary)
    shadower = Shadower(engine, counted=metrics.shadowed)
    issuer_keys = IssuerKeys(engine, sequencer, tenants)
    overwriting = Overwriting(engine)

    def decided(action: str, allowed: bool) -> None:  # noqa: FBT001 - as it is called.
        metrics.decided(action, allowed)
        overwriting.decided(action, allowed)

    desk = Desk(engine, sequencer, tenants, decided, signer.webhook_secret, shadow=shadower.offer)
    operations = Operations(
        engine,
        sequencer,
        tenants,
        notary,
        trust_root,
        witnesses=witnesses,
        directory=directory,
        devices=DeviceLeases(engine, idle_s=settings.device_idle_s),
        max_age_s=settings.decision_max_age_s,
        decided=metrics.decided,
        ended=metrics.ended,
        shadow=shadower.offer,
    )
    return Services(
        settings=settings,
        engine=engine,
        sequencer=sequencer,
        tenants=tenants,
        desk=desk,
        operations=operations,
        router_door=RouterDoor(
            engine,
            sequencer,
            tenants,
            desk,
            operations,
            per_token=Buckets(settings.rate_per_token),
            per_tenant=Buckets(settings.rate_per_tenant),
        ),
        notary=notary,
        witnesses=witnesses,
        directory=directory,
        pair_answers=PairAnswers(engine, sequencer, directory, signer),
        attestations=Attestations(engine, sequencer, witnesses, signer),
        signer=signer,
        trust_root=trust_root,
        spool=Spool(
            settings.spool,
            max_bytes=settings.max_upload_bytes,
            max_per_principal=settings.max_uploads_per_principal,
            max_bytes_per_tenant=settings.max_tenant_uploads_bytes,
            ttl_s=settings.upload_ttl_s,
        ),
        outbox=Outbox(
            engine,
            most_tries=settings.webhook_tries,
            first_pause_s=settings.webhook_first_pause_s,
            history_s=settings.webhook_history_s,
            tried=metrics.message_tried,
        ),
        issuer_keys=issuer_keys,
        exchanger=Exchanger(engine, sequencer, tenants, desk, issuer_keys),
        reminders=Reminders(engine, sequencer, tenants),
        overwriting=overwriting,
        shadower=shadower,
        canaries=Canaries(engine, sequencer, tenants, trust_root, are_wanted=settings.probe_every_s > 0),
        unproved=Unproved(engine, sequencer, trust_root),
        threads=ThreadPoolExecutor(settings.api_threads, thread_name_prefix="licet-api"),
        slow_threads=ThreadPoolExecutor(_SLOW_THREADS, thread_name_prefix="licet-slow"),
        metrics=metrics,
        places=Places(settings.max_requests, settings.max_waiting_requests),
    )


def probe_gauges(settings: Settings) -> dict[str, tuple[str, str, Callable[[], float]]]:
    """What is read of the report of scheduled probes; nothing where none are."""

    def reported(read: Callable[[ProbeReport], float]) -> Callable[[], float]:
        def value() -> float:
            report = read_report(settings.probe_report)
            return 0.0 if report is None else read(report)

        return value

    if not settings.probe_every_s:
        return {}
    return {
        "licet_probe_findings": (
            "Probes across tenants that came through, or were told apart, and since then no run held.",
            "",
            reported(lambda r: float(len(r.findings) if r.found_at_ms > r.held_at_ms else 0)),
        ),
        "licet_probe_failures": (
            "Runs of probes in a row that could not be made, or not all of them.",
            "",
            reported(lambda r: float(r.failures)),
        ),
        "licet_probe_held_timestamp_seconds": (
            "When the newest run of probes ended that held; 0 if none did.",
            "",
            reported(lambda r: r.held_at_ms / 1000),
        ),
    }


def gauges(services: Services) -> Gauges:
    """What is read of the api when its metrics are asked for."""

    def open_operations() -> dict[str, float]:
        counted = dict.fromkeys(("accepted", "running"), 0.0)
        with UnsafeAllTenants(services.engine, "metrics count the open operations of all tenants") as session:
            query = select(Operation.state, func.count()).where(col(Operation.state).in_(counted))
            counted |= {state: float(count) for state, count in session.exec(query.group_by(Operation.state))}
        return counted

    def messages() -> dict[str, float]:
        counted = dict.fromkeys(("pending", "failed"), 0.0)
        with UnsafeAllTenants(services.engine, "metrics count the messages of all tenants") as session:
            query = select(WebhookMessage.state, func.count()).where(col(WebhookMessage.state).in_(counted))
            counted |= {state: float(count) for state, count in session.exec(query.group_by(WebhookMessage.state))}
        return counted

    return probe_gauges(services.settings) | {
        "licet_operations_open": ("Operations that have not ended, by state.", "state", open_operations),
        "licet_devices": ("Devices of the pool, by state.", "state", lambda: pool_states(services.engine)),
        "licet_devices_waited_for": (
            "Operations that wait for devices.",
            "",
            lambda: waiting_operations(services.engine),
        ),
        "licet_sequencer_queue_depth": (
            "Submissions that wait for the sequencer.",
            "",
            lambda: float(services.sequencer.queued()),
        ),
        "licet_policy_shadow_waiting": (
            "Decisions that wait to be put to a candidate.",
            "",
            lambda: float(services.shadower.waiting()),
        ),
        "licet_requests_active": ("Requests that are worked on.", "", lambda: float(services.places.active)),
        "licet_requests_waiting": ("Requests that wait for a place.", "", lambda: float(services.places.waiting)),
        "licet_checkpoint_lag_entries": (
            "Entries of all logs that no checkpoint of this process covers.",
            "",
            lambda: float(services.notary.lag()),
        ),
        "licet_witness_lag_seconds": (
            "Age of the oldest entry of any log that no quorum of witnesses has seen; 0 without witnesses.",
            "",
            services.witnesses.worst_lag_s,
        ),
        "licet_webhook_messages": ("Messages to webhooks, by state.", "state", messages),
        "licet_disk_free_bytes": (
            "Free space where the data folder lies.",
            "",
            free_bytes(services.settings.data),
        ),
    }


class Housekeeper:
    """What the api does unasked: checkpoints of logs that grew, what becomes of approvals, and removal of what is over.

    Args:
        services: The api's parts.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="licet-housekeeper", daemon=True)

    def verify_logs(self) -> None:
        """Before anything is asked: whether the database is one that the signer knows."""
        self._try("logs", self._services.notary.verify_all)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, when the turn at hand is done."""
        self._stop.set()
        self._thread.join(timeout=10.0)

    def _run(self) -> None:
        swept_at_s = 0.0
        retention = Retention(self._services.engine, self._services.settings)
        while not self._stop.wait(self._services.settings.checkpoint_interval_s):
            self._try("versions", self._services.tenants.catch_up)
            self._try("checkpoints", self._services.notary.sign_all)
            self._try("directory", self._services.directory.turn)
            self._try("reminders", self._services.reminders.look)
            self._try("erased", self._services.overwriting.turn)
            if time.monotonic() - swept_at_s > _SWEEP_EVERY_S:
                self._try("spool", self._services.spool.sweep)
                self._try("retention", lambda: retention.sweep(self._stop.is_set))
                self._try("messages", self._services.outbox.forget_old)
                swept_at_s = time.monotonic()

    @staticmethod
    def _try(name: str, act: Callable[[], object]) -> None:
        """One task's failure keeps no other from its turn: files must go while no checkpoint can be had."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever it is, the next turn may go better, and there must be one.
            logger.warning("housekeeping failed", extra={"task": name, "reason": f"{type(error).__name__}: {error}"})


def create_app(settings: Settings | None = None) -> Litestar:
    """The api as an ASGI application."""
    settings = settings or load_settings()
    services = build_services(settings)

    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        telemetry.configure("licet-api", settings.otlp_endpoint)
        rpc.observe(telemetry.RpcObserver(services.metrics.calls.called))
        services.metrics.registry.register(LiveGauges(gauges(services)))
        metrics_door = open_door(settings.metrics_port, services.metrics.registry, settings.metrics_token)
        housekeeper = Housekeeper(services)
        housekeeper.verify_logs()
        around = telemetry.continuing if settings.otlp_endpoint else None
        users = users_here(settings)
        peers, group = ({os.geteuid()}, None) if users is None else ({users.worker}, users.worker)
        methods = services.operations.handlers() | services.router_door.handlers() | services.outbox.handlers()
        methods |= services.issuer_keys.handlers() | services.witnesses.handlers()
        methods |= services.canaries.handlers() | services.unproved.handlers()
        # For archives, which the worker writes.
        methods["directory"] = lambda p: {"file": services.directory.archive_file(p["tenant"], p["size"]).decode()}
        door = RpcServer(settings.api_socket, methods, peers, shared_gid=group, around=around)
        thread = threading.Thread(target=door.serve_forever, name="licet-door", daemon=True)
        thread.start()
        housekeeper.start()
        services.shadower.start()
        try:
            yield
        finally:
            # Requests are answered by now. What the worker asked is answered next; then nothing more can be logged.
            door.close()
            await asyncio.to_thread(thread.join, _STOP_WITHIN_S)
            await asyncio.to_thread(housekeeper.stop)
            services.sequencer.close()
            await asyncio.to_thread(services.shadower.close)
            services.threads.shutdown(wait=False)
            services.slow_threads.shutdown(wait=False)
            services.engine.dispose()
            if metrics_door is not None:
                metrics_door.close()
            rpc.observe(None)
            telemetry.shutdown()

    return build_app(services, lifespan)


def application(*_args: Any) -> Litestar:
    """Factory for an ASGI server, called in the process that answers."""
    die_with_server()
    logs.configure()
    return create_app()
