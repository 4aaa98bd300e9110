"""The worker: performs accepted operations. It loads adapters; it cannot sign, and it decides nothing.

Rules kept here:

- DBOS holds the queue and the record of each step, with the settings that make "once" true: a pinned application
  version, one executor id per process slot, JSON only. A row marked as pickled is refused, never decoded.
- What a worker had in hand when it died is adopted by another slot's. A slot is dead when nobody holds its lock, which the kernel drops
  with the process and not a moment sooner. Should one be taken for dead all the same, its attempts are fenced: the api takes nothing
  of an attempt that is not the newest, and no adapter lets an older attempt act over a newer.
- An error of a step is recorded as a value, so that a replay takes the same way as the first run did. What a step gave
  is kept by its name over all rounds, and steps are recorded in the order in which they ended; so a replay in which
  something outside a step goes better than it did the first time still finds each record where it looks for it.
- What may pass (a part that is away, a job that was killed) is tried again as a new attempt under new warrants; anything
  else ends the operation, with the reason in the log.
- What takes the worker down each time it is performed (memory, above all) ends as well: fifty deaths in a row in which
  nothing of it got done are no accident. Being told to stop is no death, and what may pass is counted apart.
- An operation never ends without the api knowing: to begin and to end it, the worker waits for the api as long as it
  takes, and is found where it was if it dies meanwhile, however often.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from dbos import DBOS, DBOSConfig
from dbos import _serialization as dbos_serialization

from licet_adapters.errors import AdapterError
from licet_adapters.errors import Unavailable as AdapterUnavailable
from licet_adapters.guard import WarrantGuard
from licet_adapters.identity.oidc import OidcKeys
from licet_adapters.loader import load_adapters
from licet_adapters.outbound import parse_networks
from licet_adapters.ports import AdapterContext
from licet_attestations import rpc
from licet_attestations.errors import LicetAttestationError, SignerRefused, SignerUnavailable
from licet_attestations.signer.client import SignerClient
from licet_attestations.trustroot import TrustRoot
from licet_engine import logs, telemetry
from licet_engine.courier import Courier
from licet_engine.domain.errors import ConfigurationError, InvalidInput, LicetError, Unavailable
from licet_engine.domain.refs import now_ms
from licet_engine.evidence.export import Exporter
from licet_engine.key_fetcher import KeyFetcher
from licet_engine.lifecycle.catalogue import VERBS
from licet_engine.lifecycle.deed import SUPERSEDED, Adapters, Deed, Door, Tools
from licet_engine.lifecycle.examiner import ADAPTER as EXAMINER
from licet_engine.lifecycle.examiner import Examiner
from licet_engine.lifecycle.lives import Life, Lives
from licet_engine.lifecycle.retention import WorkSweeper
from licet_engine.lifecycle.spool import Spool
from licet_engine.lifecycle.tabular import Tables
from licet_engine.log.witnesses import load_policy
from licet_engine.metrics import WorkerMetrics, new_registry, open_door
from licet_engine.policy_prover import PolicyProver
from licet_engine.pool_reporter import PoolReporter, machine_name
from licet_engine.prober import Prober
from licet_engine.processes import give_sign
from licet_engine.settings import MAX_SLOT, Settings, load_settings
from licet_engine.storage import LockWatch, StorageWatch
from licet_engine.store.access import Role, open_database
from licet_engine.store.db import always_writing
from licet_engine.witness_asker import WitnessAsker
from licet_engine.workflow import (
    APPLICATION,
    DEVICE_QUEUE,
    EXAMINATION_QUEUE,
    LONG_QUEUE,
    SHORT_QUEUE,
    WORKFLOW,
    WORKFLOW_VERSION,
)

logger = logging.getLogger(__name__)

EXECUTOR_PREFIX: Final = "worker-"
"""With the number of its slot, who performs a workflow."""
MAX_ROUNDS: Final = 10
"""Attempts of one performance while a part is away: with the pauses between them, most of a minute."""
MAX_KILLED: Final = 5
"""Attempts at a job that is killed again and again."""
_KILLED_AGAIN: Final = (
    f". It was killed {MAX_KILLED} times, and is not begun again: ask anew with less to do (rows, epochs, a smaller"
    " network), or have the machine given more memory"
)
MAX_ATTEMPTS: Final = 100
"""Attempts over all lives of the worker: what takes it down each time ends, too."""
_LONGEST_PAUSE_S: Final = 10.0
MAX_DEATHS: Final = 50
"""Times in a row that the worker may die over one operation, with nothing of it done in between."""
_LONG_AT_ONCE: Final = 4
_SHORT_AT_ONCE: Final = 16
_DEVICES_AT_ONCE: Final = 64
"""Those that wait for devices do so at work, but cost nothing; none of them decrypts anything before it has its devices."""
_DEVICES_OF_ONE_TENANT: Final = 8
"""At work or waiting there at once, of one tenant: few enough that no two or three tenants fill the queue."""
_OF_ONE_TENANT: Final = 3
"""Operations of one tenant that are at work at once in each queue; more wait, and nobody else waits behind them."""
_SHORT_EVERY_S, _LONG_EVERY_S, _DEVICES_EVERY_S = 0.1, 0.25, 0.5
"""How often a queue is looked into: the oftener, the more a worker costs that has nothing to do."""
_ADOPT_EVERY_S: Final = 2.0
_WAIT_FOR_PLACE_S: Final = 10.0
_KILLED: Final = "job.killed"
# ``internal`` is what the other side of a door says of a fault that it did not foresee, such as a locked database.
_AWAY: Final = frozenset(
    {
        *("unavailable", "busy", "database-unavailable", "log-busy", "log-put-back", "log-unavailable", "stale-facts"),
        "internal",
    }
)
_TRANSIENT_CODES: Final = frozenset(
    {_KILLED, "conflict.busy", "signer.error", "signer.stale", "signer.state", "signer.unavailable", "warrant.expired"}
)
_REFUSED_CODES: Final = frozenset({"refused"})


_MAX_CODE_CHARS: Final = 64
_MAX_MESSAGE_CHARS: Final = 1000
"""What is kept and told of an error: a store, or anybody's adapter, may say more than can be sent."""


class StepFailed(Exception):
    """A step failed; what is known of it is plain data, the same at every replay."""

    def __init__(self, error: Mapping[str, Any], *, is_replayed: bool) -> None:
        super().__init__(error["message"])
        self.error = dict(error)
        self.is_replayed = is_replayed


def refuse_pickles() -> None:
    """Make DBOS unable to decode a pickled row: whoever could write one would run code here."""

    def refuse(_self: object, *_args: object) -> Any:
        raise ValueError("a pickled row is refused: Licet stores JSON only")

    dbos_serialization.DefaultSerializer.deserialize = refuse  # type: ignore[method-assign,assignment]  # There is no setting for it.
    dbos_serialization.DefaultSerializer.serialize = refuse  # type: ignore[method-assign,assignment]  # As above.


def describe(error: Exception) -> dict[str, Any]:
    """What is told of an error: a stable code, a message that is safe to show, and whether it may pass."""
    if isinstance(error, StepFailed):
        return error.error
    if getattr(error, "code", "") == SUPERSEDED:
        _leave()
    if isinstance(error, (LicetError, AdapterError, SignerRefused, SignerUnavailable, rpc.RpcFault)):
        code = str(getattr(error, "code", "failed"))
        transient = (
            code in _TRANSIENT_CODES
            or isinstance(error, (Unavailable, AdapterUnavailable, SignerUnavailable))
            or (isinstance(error, rpc.RpcFault) and code in _AWAY)
        )
        return {"code": code[:_MAX_CODE_CHARS], "message": str(error)[:_MAX_MESSAGE_CHARS], "transient": transient}
    logger.error("step failed", exc_info=error)
    return {
        "code": "internal",
        "message": f"internal error ({type(error).__name__}); see the worker's log",
        "transient": False,
    }


def _leave() -> NoReturn:
    """End this process: another performs what it has in hand, and nothing that it still does counts.

    Nor is it recorded as the outcome of a step: whoever performs the operation now would find it, and leave too.
    """
    logger.error("this worker was taken for dead; it ends")
    logging.shutdown()
    os._exit(1)


class Performer:
    """Performs operations.

    Args:
        tools: What every deed uses.
        lives: What earlier lives of this worker left at work.
    """

    def __init__(self, tools: Tools, lives: Lives) -> None:
        self._tools = tools
        self._lives = lives

    def perform(self, tenant: str, operation: str) -> str:
        """Perform one accepted operation to its end; return the state it ended in."""
        with self._lives.at_work(tenant, operation) as life:
            return self._perform(tenant, operation, life)

    def _perform(self, tenant: str, operation: str, life: Life) -> str:
        record = _recorder(life.went_on)
        error: dict[str, Any] = {}
        rounds = killed = 0
        begun = self._tell("begin", tenant=tenant, operation=operation)
        while begun["state"] == "running":
            deed = Deed(self._tools, tenant, operation, begun, record, went_on=life.went_on)
            try:
                if life.deaths >= MAX_DEATHS:
                    raise InvalidInput(
                        f"the worker died {life.deaths} times in a row over it, most likely for want of memory; it is"
                        " not begun again: ask anew with less data, or have the worker given more",
                        code="worker-died",
                    )
                if deed.attempt > MAX_ATTEMPTS:
                    raise InvalidInput(f"it was begun {MAX_ATTEMPTS} times and never ended", code="too-many-attempts")
                verb = VERBS[deed.action]
                if verb.do is None:
                    raise InvalidInput(f"{deed.action} is nothing that a worker performs")
                result = dict(verb.do(deed))
                told = self._tools.door.call(
                    "finish", tenant=tenant, operation=operation, attempt=deed.attempt, result=result
                )
                return str(told["state"])
            except Exception as raised:  # noqa: BLE001 - whatever it was, the operation must end, with its reason logged.
                error = describe(raised)
                killed += error["code"] == _KILLED
                if not error["transient"] or killed >= MAX_KILLED:
                    break
                if isinstance(raised, StepFailed) and raised.is_replayed:
                    continue  # It tells how an earlier life of this worker fared, not how things are now.
                rounds += 1
                logger.warning(
                    "attempt failed",
                    extra={"tenant": tenant, "operation": operation, "attempt": deed.attempt, "code": error["code"]},
                )
                if rounds >= MAX_ROUNDS:
                    break
                time.sleep(min(0.1 * 2**rounds, _LONGEST_PAUSE_S))
                begun = self._tell("begin", tenant=tenant, operation=operation)
        else:
            return str(begun["state"])
        logger.warning("operation failed", extra={"tenant": tenant, "operation": operation, "code": error["code"]})
        again = _KILLED_AGAIN if killed >= MAX_KILLED else ""
        told = {"code": error["code"], "message": error["message"] + again}
        refused = error["code"] in _REFUSED_CODES
        ended = self._tell_failed(deed, tenant=tenant, operation=operation, told=told, refused=refused)
        # Kept until here, so that an attempt that failed in passing could use it again; nothing will from now on.
        try:
            deed.forget_uploads()
            deed.clean_up()
        except OSError as left:
            logger.warning("files of an ended operation stay", extra={"operation": operation, "reason": str(left)})
        return str(ended["state"])

    def _tell_failed(self, deed: Deed, *, tenant: str, operation: str, told: dict[str, str], refused: bool) -> Any:
        """Tell the api that an operation failed, and why; if the reason cannot be told, that it failed."""
        call: dict[str, Any] = {"tenant": tenant, "operation": operation, "attempt": deed.attempt, "refused": refused}
        try:
            return self._tell("fail", error=told, **call)
        except LicetAttestationError:
            logger.exception("the api does not take the reason", extra={"operation": operation})
        return self._tell("fail", error={"code": "internal", "message": "see the worker's log for the reason"}, **call)

    def _tell(self, method: str, **params: Any) -> Any:
        """Call the api until it answers: without it an operation can neither begin nor end."""
        pause_s = 0.2
        while True:
            try:
                return self._tools.door.call(method, **params)
            except (Unavailable, rpc.RpcFault) as error:
                if not describe(error)["transient"]:
                    raise
                logger.warning("the api does not take %s; trying again", method, extra={"reason": str(error)})
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


def _recorder(went_on: Callable[[], None]) -> Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]:
    """Runs steps so that DBOS remembers what they gave, for one performance of one operation.

    Args:
        went_on: Told of each step that got done now, and not in an earlier life.
    """
    given: dict[str, dict[str, Any]] = {}

    def record(name: str, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        ran = False

        def once() -> dict[str, Any]:
            nonlocal ran
            ran = True
            try:
                return {"ok": act()}
            except Exception as error:  # noqa: BLE001 - recorded as a value, and raised again right below.
                return {"error": describe(error)}

        if name not in given:
            outcome = DBOS.run_step({"name": name}, once)
            if "error" in outcome:
                raise StepFailed(outcome["error"], is_replayed=not ran)
            given[name] = outcome["ok"]
            if ran:
                went_on()
        return given[name]

    return record


def build_tools(settings: Settings) -> Tools:
    """Construct what the worker uses. The one place that loads adapters."""
    trust_root = TrustRoot.from_json(settings.trust_root.read_bytes())
    signer = SignerClient(settings.signer_socket)
    context = AdapterContext(
        data_dir=settings.worker_data / "adapters",
        trust_root=trust_root,
        signer=signer,
        clock=now_ms,
        run_dir=settings.router_socket.parent,
        options=settings.adapter_options,
    )
    loaded = load_adapters(settings.adapter_names, context)
    door = Door(settings.api_socket)
    engine = open_database(settings, Role.WORKER)
    # The export and the examination are our own adapters: they admit their warrants like any other.
    guard = WarrantGuard("evidence", trust_root, settings.worker_data / "adapters" / "evidence", now_ms)
    examining = WarrantGuard(EXAMINER, trust_root, settings.worker_data / "adapters" / EXAMINER, now_ms)
    return Tools(
        settings=settings,
        door=door,
        signer=signer,
        adapters=Adapters(
            objects=loaded[settings.objects_adapter],
            objects_name=settings.objects_adapter,
            registry=loaded[settings.registry_adapter],
            registry_name=settings.registry_adapter,
            training=loaded["local-training"],
            checks=loaded["local-checks"],
            serving=loaded["local-serving"],
            tickets=loaded.get(settings.tickets),
        ),
        notifier=loaded.get("standard-webhooks"),
        issuer_keys=OidcKeys(context),
        spool=Spool(
            settings.spool,
            max_bytes=settings.max_upload_bytes,
            max_per_principal=settings.max_uploads_per_principal,
            max_bytes_per_tenant=settings.max_tenant_uploads_bytes,
            ttl_s=settings.upload_ttl_s,
        ),
        tables=Tables(),
        instance=trust_root.instance,
        machine=machine_name(settings.worker_data),
        export=Exporter(engine, door, signer, trust_root, guard).export,
        examiner=Examiner(examining, longest_s=settings.examination_s),
    )


def _reach_out(settings: Settings, tools: Tools) -> None:
    """Start what tells and asks others beside operations: receivers, issuers, witnesses, our own wall, and the api of our devices."""
    if tools.notifier is not None:
        Courier(Door(settings.api_socket, patience_s=5.0), tools.notifier).start()
    if tools.issuer_keys is not None:
        KeyFetcher(Door(settings.api_socket, patience_s=5.0), tools.issuer_keys).start()
    policy = load_policy(settings.witness_policy)
    for witness in policy.witnesses.values() if policy is not None else ():
        reach = parse_networks(settings.witness_networks)
        door = Door(settings.api_socket, patience_s=5.0)
        WitnessAsker(door, witness, reach, settings.outbound_timeout_s).start()
    Prober(settings, Door(settings.api_socket, patience_s=30.0), tools.signer.attest).start()
    PolicyProver(settings, Door(settings.api_socket, patience_s=30.0), tools.signer.attest).start()
    PoolReporter(tools.door, tools.machine, tools.adapters.training.devices).start()


def main(settings: Settings | None = None) -> None:
    """Run the worker until it is told to stop."""
    logs.configure()
    settings = settings or load_settings()
    refuse_pickles()
    _only_worker(settings)
    shutil.rmtree(settings.worker_plain, ignore_errors=True)  # What a killed worker left decrypted.
    telemetry.configure("licet-worker", settings.otlp_endpoint)
    tools = build_tools(settings)
    lives = Lives(settings.worker_data / "lives")
    performer = Performer(tools, lives)
    config: DBOSConfig = {
        "name": APPLICATION,
        # Read for the kind of database alone: connections are made by the engine.
        "system_database_url": "postgresql:///unused" if settings.database_urls else f"sqlite:///{settings.database}",
        "system_database_engine": always_writing(open_database(settings, Role.WORKER)),
        "application_version": WORKFLOW_VERSION,
        "executor_id": f"{EXECUTOR_PREFIX}{settings.slot}",
        "run_migrations": False,
        "serializer": dbos_serialization.DBOSPortableJSON,
        "log_level": "WARNING",
        "use_listen_notify": False,
        "notification_listener_polling_interval_sec": 1.0,
    }
    DBOS(config=config)

    metrics = WorkerMetrics(new_registry())
    rpc.observe(telemetry.RpcObserver(metrics.calls.called))
    open_door(settings.metrics_port and settings.metrics_port + 1, metrics.registry, settings.metrics_token)

    # Without a bound on how often it is found again: an accepted operation is never left where it is.
    @DBOS.workflow(name=WORKFLOW, max_recovery_attempts=None)
    def perform(tenant: str, operation: str, traceparent: str = "") -> str:
        began_s = time.monotonic()
        with telemetry.continuing("perform operation", traceparent):
            state = performer.perform(tenant, operation)
        metrics.performed(state, time.monotonic() - began_s)
        return state

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    # What is to run on devices is left to the workers that have some.
    DBOS.listen_queues([LONG_QUEUE, SHORT_QUEUE, EXAMINATION_QUEUE, *([DEVICE_QUEUE] if settings.device_uuids else [])])
    DBOS.launch()
    for queue, at_once, of_one_tenant, every_s in (
        (LONG_QUEUE, _LONG_AT_ONCE, _OF_ONE_TENANT, _LONG_EVERY_S),
        (SHORT_QUEUE, _SHORT_AT_ONCE, _OF_ONE_TENANT, _SHORT_EVERY_S),
        # One tenant's leave a place to others, where there is more than one.
        (EXAMINATION_QUEUE, settings.examinations, max(1, settings.examinations - 1), _LONG_EVERY_S),
        (DEVICE_QUEUE, _DEVICES_AT_ONCE, _DEVICES_OF_ONE_TENANT, _DEVICES_EVERY_S),
    ):
        DBOS.register_queue(
            queue,
            worker_concurrency=at_once,
            partition_worker_concurrency=of_one_tenant,
            polling_interval_sec=every_s,
        )
    stored = tools.adapters
    stores = {stored.objects_name: stored.objects, stored.registry_name: stored.registry}
    StorageWatch(stores, settings.storage_away).start()
    LockWatch(stores, settings.storage_unlocked).start()
    _reach_out(settings, tools)
    _announce(settings)
    sweeper = WorkSweeper(settings, tools.door)
    parent = os.getppid()
    adopted_at_s = time.monotonic()
    while not stop.wait(1.0):
        if os.getppid() != parent:  # The supervisor died without a word: nobody would start us again.
            break
        give_sign(settings.worker_sign)
        sweeper.sweep()
        if settings.database_urls and time.monotonic() - adopted_at_s > _ADOPT_EVERY_S:
            adopt_orphans(settings)
            adopted_at_s = time.monotonic()
    # It ends at once, as if it were killed: what is at work is found where it was, as a new attempt. Were DBOS closed
    # under it instead, the steps at work would fail for that reason, and their operations with them.
    lives.put_down()
    telemetry.shutdown()
    logging.shutdown()
    os._exit(0)


def _only_worker(settings: Settings) -> None:
    """Hold the one place of a worker in this installation until this process ends."""
    settings.worker_data.mkdir(mode=0o700, parents=True, exist_ok=True)
    until_s = time.monotonic() + _WAIT_FOR_PLACE_S
    # Held by the open descriptor, which is never closed: the kernel lets go of it when the process ends.
    while _try_place(settings, settings.slot) is None:
        # Another slot's worker may hold it for a moment, to adopt what the one before left.
        if time.monotonic() > until_s:
            raise ConfigurationError(
                f"another worker runs in slot {settings.slot} on {settings.worker_data}; there is one place for one"
            )
        time.sleep(0.1)


def _try_place(settings: Settings, slot: int) -> int | None:
    """Hold the place of a slot's worker as long as the descriptor is open; None if another holds it."""
    lock = os.open(settings.worker_lock(slot), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def adopt_orphans(settings: Settings) -> int:
    """Take over what dead workers of other slots had in hand; return how many operations.

    The dead worker's place is held meanwhile, so that it is not started again under our hands. What was taken over goes back to the queue
    and is found there by whichever worker has room, once: the queue hands it out under a lock.
    """
    try:
        owners = {workflow.executor_id for workflow in DBOS.list_workflows(status="PENDING", load_input=False)}
    except Exception as error:  # noqa: BLE001 - whatever it is, the next turn may go better, and there must be one.
        logger.warning("it cannot be told which workers died", extra={"reason": type(error).__name__})
        return 0
    adopted = 0
    for owner in sorted(owner for owner in owners if owner and owner != f"{EXECUTOR_PREFIX}{settings.slot}"):
        slot = owner.removeprefix(EXECUTOR_PREFIX)
        if not slot.isdecimal() or not 0 < int(slot) <= MAX_SLOT:
            continue
        place = _try_place(settings, int(slot))
        if place is None:
            continue  # It lives.
        try:
            found = DBOS._recover_pending_workflows([owner])  # noqa: SLF001  # DBOS offers it to its own conductor only.
        except Exception as error:  # noqa: BLE001 - as above.
            logger.warning("a dead worker's operations were not adopted", extra={"reason": type(error).__name__})
        else:
            adopted += len(found)
            logger.warning("adopted operations of a dead worker", extra={"owner": owner, "operations": len(found)})
        finally:
            os.close(place)
    return adopted


def _announce(settings: Settings) -> None:
    settings.worker_sign.write_text(str(os.getpid()), encoding="ascii")


if __name__ == "__main__":
    main()
