"""What is removed when its time is over, so that disks do not fill by themselves.

Rules kept here:

- Leaves and records of a log are never removed here (a record is erased by `record.erase` alone), nor facts, decisions, operations, attestations or what proves them.
- What goes has a documented time, a setting each; a row goes in a small transaction of its tenant's, so that nobody
  waits long, and a crash leaves some rows for the next turn.
- A mark of a spent warrant goes only as ``licet_adapters.guard`` allows.
- The folder of an operation goes only when the operation has ended; whether it has, the api is asked.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dbos import DBOS
from sqlalchemy import Engine
from sqlmodel import col, select

from licet_adapters.errors import AdapterError
from licet_adapters.guard import forget, spent_folders
from licet_attestations import rpc
from licet_engine.domain.errors import LicetError
from licet_engine.domain.refs import now_ms
from licet_engine.settings import Settings
from licet_engine.store.db import UnsafeAllTenants, forget_what_was_overwritten, tenant_session
from licet_engine.store.tables import (
    IdempotencyKey,
    InvocationBatch,
    LogCheckpoint,
    LogCosignature,
    LogHead,
    Metric,
    PolicyFlip,
    PolicyShadow,
    PolicyShadowCount,
    TrafficEvent,
    UsedIdToken,
)

if TYPE_CHECKING:
    from licet_engine.lifecycle.deed import Door

logger = logging.getLogger(__name__)

ERASE: Final = "record.erase"
_BATCH: Final = 500
_MAX_BATCHES: Final = 20
"""For one table of one tenant in one turn; the next turn goes on."""
_DAY_MS: Final = 86_400_000
_SWEEP_EVERY_S: Final = 60.0
_USED_TOKEN_TTL_S: Final = 3600


@dataclass(frozen=True, slots=True)
class _Term:
    """Rows of a table whose time is over so long after the time in a column."""

    table: type[Any]
    at_ms: Any
    ttl_s: int


class Retention:
    """Removes rows whose time is over.

    Args:
        engine: Of the store.
        settings: The times.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._checkpoint_ttl_ms = settings.checkpoint_ttl_s * 1000
        self._terms = (
            _Term(IdempotencyKey, IdempotencyKey.at_ms, settings.idempotency_ttl_s),
            _Term(Metric, Metric.at_ms, settings.telemetry_ttl_s),
            # Each stands in the log for ever; a router that tells one again does so long before.
            _Term(TrafficEvent, TrafficEvent.at_ms, settings.telemetry_ttl_s),
            _Term(InvocationBatch, InvocationBatch.at_ms, settings.telemetry_ttl_s),
            # That a candidate ran, of which bundle and by whom, stands in the log for ever. One that runs has no end yet, and stays.
            _Term(PolicyShadow, PolicyShadow.ended_at_ms, settings.telemetry_ttl_s),
            _Term(PolicyShadowCount, PolicyShadowCount.at_ms, settings.telemetry_ttl_s),
            _Term(PolicyFlip, PolicyFlip.at_ms, settings.telemetry_ttl_s),
            # One that is over is refused for that, a while later also where clocks differ.
            _Term(UsedIdToken, UsedIdToken.expires_at_ms, _USED_TOKEN_TTL_S),
        )

    def sweep(self, should_stop: Callable[[], bool] = lambda: False) -> int:
        """Remove what is over its time, of every tenant; return how many rows that were."""
        with UnsafeAllTenants(self._engine, "rows of every tenant are removed when their time is over") as session:
            tenants = sorted(session.exec(select(LogHead.tenant_id)).all())
        removed = 0
        for tenant in tenants:
            for term in self._terms:
                removed += self._drain(tenant, term, should_stop)
            removed += self._thin_checkpoints(tenant, should_stop)
        if removed:
            logger.info("rows removed", extra={"rows": removed})
        return removed

    def _drain(self, tenant: str, term: _Term, should_stop: Callable[[], bool]) -> int:
        before_ms = now_ms() - term.ttl_s * 1000
        removed = 0
        for _ in range(_MAX_BATCHES):
            query = select(term.table).where(col(term.at_ms) < before_ms).limit(_BATCH)
            with tenant_session(self._engine, tenant) as session:
                if should_stop() or session.exec(query.limit(1)).first() is None:
                    break
            # The writers' lock is taken only where there is something to remove.
            with tenant_session(self._engine, tenant, write=True) as session:
                rows = session.exec(query).all()
                for row in rows:
                    session.delete(row)
                removed += len(rows)
        return removed

    def _thin_checkpoints(self, tenant: str, should_stop: Callable[[], bool]) -> int:
        """Of old checkpoints keep the last of each day, and the one that most witnesses cosigned: proofs are made from tiles, for any size."""
        before_ms = now_ms() - self._checkpoint_ttl_ms
        query = (
            select(LogCheckpoint)
            .where(col(LogCheckpoint.at_ms) < before_ms)
            .order_by(col(LogCheckpoint.at_ms), col(LogCheckpoint.size))
        )
        with tenant_session(self._engine, tenant) as session:
            old = [(row.size, row.at_ms) for row in session.exec(query).all()]
            seen = Counter(session.exec(select(LogCosignature.size)).all())
        kept = {at_ms // _DAY_MS: size for size, at_ms in old}
        # What is older than any checkpoint of a quorum would be covered by nothing, were that one removed.
        cosigned = {at_ms // _DAY_MS: size for size, at_ms in sorted(old, key=lambda row: (seen[row[0]], row[0]))}
        thinned = [size for size, at_ms in old if size not in {kept[at_ms // _DAY_MS], cosigned[at_ms // _DAY_MS]}]
        for first in range(0, min(len(thinned), _BATCH * _MAX_BATCHES), _BATCH):
            if should_stop():
                return first
            with tenant_session(self._engine, tenant, write=True) as session:
                batch = col(LogCheckpoint.size).in_(thinned[first : first + _BATCH])
                for row in session.exec(select(LogCheckpoint).where(batch)).all():
                    session.delete(row)
                lines = select(LogCosignature).where(col(LogCosignature.size).in_(thinned[first : first + _BATCH]))
                for line in session.exec(lines).all():
                    session.delete(line)
        return min(len(thinned), _BATCH * _MAX_BATCHES)


class Overwriting:
    """Has what was erased leave the write-ahead log of the database too, soon after.

    Args:
        engine: Of the store.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._is_due = threading.Event()
        self._is_due.set()  # An api before this one may have ended between an erasure and its turn.

    def decided(self, action: str, allowed: bool) -> None:  # noqa: FBT001 - as whoever tells of decisions calls it.
        """Take note of a decision that is durable."""
        if allowed and action == ERASE:
            self._is_due.set()

    def turn(self) -> None:
        """Do it, if something was erased since; where others read or write just now, the next turn tries again."""
        if self._is_due.is_set():
            self._is_due.clear()
            if not forget_what_was_overwritten(self._engine):
                self._is_due.set()


class WorkSweeper:
    """Removes what the worker leaves: folders of failed operations, marks of spent warrants, what the queue did.

    Args:
        settings: The times.
        door: Tells whether an operation has ended.
    """

    def __init__(self, settings: Settings, door: Door) -> None:
        self._settings = settings
        self._door = door
        self._swept_at_s = float("-inf")

    def sweep(self) -> None:
        """Do a turn, if the last one is a while ago; what cannot be done now is left for the next."""
        if time.monotonic() - self._swept_at_s < _SWEEP_EVERY_S:
            return
        self._swept_at_s = time.monotonic()
        for turn in (self.sweep_folders, self.sweep_marks, self.sweep_queue):
            try:
                turn()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next turn may go better, and there must be one.
                logger.warning("housekeeping failed", extra={"turn": turn.__name__, "reason": repr(error)})

    def sweep_folders(self) -> int:
        """Remove work folders that nobody touched for long, of operations that have ended."""
        oldest_s = time.time() - self._settings.failed_work_ttl_s
        removed = 0
        for folder in (self._settings.worker_data / "work").glob("*/*"):
            if folder.is_symlink() or not folder.is_dir() or folder.stat().st_mtime >= oldest_s:
                continue
            try:
                state = self._door.call("state", tenant=folder.parent.name, operation=folder.name)["state"]
            except (LicetError, rpc.RpcFault) as error:
                logger.warning("a work folder is kept", extra={"folder": str(folder), "reason": str(error)})
                continue
            if state in {"done", "failed", "refused"}:
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
        return removed

    def sweep_marks(self) -> int:
        """Remove marks of warrants that ended long ago, of every adapter."""
        removed = 0
        for folder in spent_folders(self._settings.worker_data / "adapters"):
            try:
                removed += forget(folder, now_ms(), self._settings.warrant_mark_ttl_s * 1000)
            except AdapterError as error:
                logger.warning("marks are kept", extra={"folder": str(folder), "reason": str(error)})
        return removed

    def sweep_queue(self) -> int:
        """Have the workflow engine forget what ended long ago. Nothing is enqueued twice: an operation is accepted once."""
        before_s = time.time() - self._settings.workflow_ttl_s
        cutoff = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(before_s))
        ended: Iterable[Any] = DBOS.list_workflows(
            status=["SUCCESS", "ERROR", "CANCELLED"],
            completed_before=cutoff,
            limit=_BATCH,
            load_input=False,
            load_output=False,
        )
        ids = [workflow.workflow_id for workflow in ended]
        if ids:
            DBOS.delete_workflows(ids)
        return len(ids)
