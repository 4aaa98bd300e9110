"""Devices: what the pool is, who may have how many, and who has which.

Rules kept here:

- A device is leased to one operation at a time: taken and given back under the lock of the pool's rows, so that this holds
  over every api and worker. It lasts over a crash of any of them.
- A lease lapses when its operation gives no sign of life for so long: whoever begins it again finds it, or waits anew. What
  a lapsed lease's holder may still be doing on the device is the adapter's to see: it holds a lock of the kernel's.
- Of a tenant, no more devices are leased at once than it is allotted. Whoever asks for more than that at once was denied
  by policy before; who must wait for runs of its own keeps nobody else waiting.
- Who waits is served in the order of asking, also where a later one would need less.
- Leases are no facts, and no decision is made on them. The rows are the platform's own: no tenant reads them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final

from pydantic import Field
from sqlalchemy import Engine
from sqlmodel import col, select

from licet_adapters.ports import Device
from licet_engine.domain.errors import Conflict, InvalidInput, LicetError, Unavailable
from licet_engine.domain.refs import PLATFORM, Ref, now_ms
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.verbs import Body, Change, Ids, Insert, Note, Proposal, RefForm, Update, Verb, Who
from licet_engine.store.db import TenantSession, tenant_session
from licet_engine.store.tables import DeviceAllotment, DeviceRow, DeviceWait, Operation

logger = logging.getLogger(__name__)

_MAX_REPORTED: Final = 64
_GONE_AFTER_MS: Final = 15 * 60_000
"""A device that nobody reported for so long is of a machine that is gone; leased, it stays until its lease lapses."""
_NOTED_EVERY_MS: Final = 5 * 60_000
_LEASED_NOTED_EVERY_MS: Final = 45_000
"""How often it is noted that a device is there; that of a leased one, at each second report."""
_FELL_OFF_AFTER_MS: Final = 90_000
"""A leased device of a worker that does not report it: two reports long somebody else may still do so."""
_BY_QUOTA: Final = "other runs of this tenant have all that it is allotted"
_BY_POOL: Final = "every device of the pool is at work, or promised to who asked before"


class AllotDevices(Body):
    """How many devices a tenant may have at once; 0 for none."""

    devices: Annotated[int, Field(ge=0, le=10_000)]


def ask_allot(view: View, _who: Who, ref: Ref, body: AllotDevices, ids: Ids) -> Proposal:
    """What a tenant may take of the pool from now on; what it has already is decided again at its next sign of life."""
    values = {"devices": body.devices, "at_ms": ids.now_ms}
    known = view.device_allotment() is not None
    note = Note("facts", {"event": "devices-allotted", "devices": body.devices})
    change = (
        Change(updates=(Update(DeviceAllotment, {}, values),), notes=(note,))
        if known
        else Change(inserts=(Insert(DeviceAllotment, values),), notes=(note,))
    )
    conflict = None
    if ref.tenant == PLATFORM:
        conflict = Conflict("the platform's own tenant trains nothing: allot devices to a tenant")
    return Proposal(
        resource=view.tenant_entity(),
        change=change,
        conflict=conflict,
        result={"tenant": ref.tenant, "devices": body.devices},
    )


class NotAllotted(LicetError):
    """The tenant's allotment was lowered below what the operation needs: it will never have that many."""

    status = 403
    default_code = "refused"


@dataclass(frozen=True, slots=True)
class Claim:
    """What an operation asks of the pool.

    Attributes:
        tenant: Whose.
        operation: Which.
        worker: By which machine's workers it is performed: only that one's devices are of use.
        count: How many devices.
    """

    tenant: str
    operation: str
    worker: str
    count: int


def devices_present(engine: Engine) -> int:
    """How many devices the best equipped worker has: a run's devices are of one machine."""
    with tenant_session(engine, PLATFORM) as session:
        workers = [row.worker for row in session.exec(select(DeviceRow)).all()]
    return max(map(workers.count, set(workers)), default=0)


def pool_states(engine: Engine) -> dict[str, float]:
    """How many devices of the pool are ``free``, and how many ``leased``."""
    with tenant_session(engine, PLATFORM) as session:
        leased = [row.operation_id is not None for row in session.exec(select(DeviceRow)).all()]
    return {"free": float(leased.count(False)), "leased": float(leased.count(True))}


def waiting_operations(engine: Engine) -> float:
    """How many operations wait for devices."""
    with tenant_session(engine, PLATFORM) as session:
        return float(len(session.exec(select(DeviceWait)).all()))


class DeviceLeases:
    """Who has which device. Constructed once by the api.

    Args:
        engine: Of the store.
        idle_s: After how long without a sign of life a lease lapses.
        clock: Milliseconds since the epoch, the same for every api.
    """

    def __init__(self, engine: Engine, *, idle_s: int, clock: Callable[[], int] = now_ms) -> None:
        self._engine = engine
        self._clock = clock
        self._idle_ms = idle_s * 1000

    def report(self, worker: str, devices: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
        """Take note of the devices that a worker has now; one that is gone is leased to nobody any more, or soon.

        Args:
            worker: Whose.
            devices: All of them. None where the worker cannot tell: what is known of it stays, until it is too old.

        Raises:
            InvalidInput: What is reported is no list of devices.
        """
        if devices is None:
            self._forget()
            return {}
        try:
            reported = {device.uuid: device for device in (Device(**device) for device in devices)}
        except TypeError as error:
            raise InvalidInput("devices are reported each with uuid, kind, name, memory_mib and driver") from error
        if len(devices) > _MAX_REPORTED:
            raise InvalidInput(f"a worker reports at most {_MAX_REPORTED} devices, not {len(devices)}")
        if self._knows(worker, reported):
            return {}
        with tenant_session(self._engine, PLATFORM, write=True) as session:
            for row in _pool(session):
                if row.uuid not in reported and (self._is_gone(row) or self._fell_off(row, worker)):
                    session.delete(row)
            known = {row.uuid: row for row in _pool(session)}
            for device in reported.values():
                values = {**asdict(device), "worker": worker, "seen_at_ms": self._clock()}
                row = known.get(device.uuid) or DeviceRow(tenant_id=PLATFORM, **values)
                for name, value in values.items():
                    setattr(row, name, value)
                session.add(row)
        logger.info("devices of a worker", extra={"worker": worker, "devices": sorted(reported)})
        return {}

    def _knows(self, worker: str, reported: Mapping[str, Device]) -> bool:
        """Whether what is reported stands already, and was written lately; and nothing stands that is long gone."""
        at_ms = self._clock()
        with tenant_session(self._engine, PLATFORM) as session:
            pool = session.exec(select(DeviceRow)).all()
        rows = [row for row in pool if row.worker == worker]
        every_ms = {True: _LEASED_NOTED_EVERY_MS, False: _NOTED_EVERY_MS}
        if any(row.seen_at_ms < at_ms - every_ms[self._is_leased(row)] for row in rows):
            return False
        if any(map(self._is_gone, pool)):
            return False
        names = ("uuid", "kind", "name", "memory_mib", "driver")
        return {row.uuid: tuple(getattr(row, name) for name in names) for row in rows} == {
            device.uuid: tuple(getattr(device, name) for name in names) for device in reported.values()
        }

    def _is_gone(self, row: DeviceRow) -> bool:
        """Whether a device is of a machine that is gone; leased, it is not before its lease lapsed."""
        return row.seen_at_ms < self._clock() - _GONE_AFTER_MS and not self._is_leased(row)

    def _is_leased(self, row: DeviceRow) -> bool:
        return row.operation_id is not None and row.renewed_at_ms >= self._clock() - self._idle_ms

    def _fell_off(self, row: DeviceRow, worker: str) -> bool:
        """Whether a device that a worker does not report is no more.

        Where the data folder was cloned, another machine bears the same name, and reports it: a lease is not ended for that.
        """
        return row.worker == worker and (
            not self._is_leased(row) or max(row.seen_at_ms, row.leased_at_ms) < self._clock() - _FELL_OFF_AFTER_MS
        )

    def _forget(self) -> None:
        """Forget the devices of machines that are gone."""
        with tenant_session(self._engine, PLATFORM) as session:
            if not any(map(self._is_gone, session.exec(select(DeviceRow)).all())):
                return
        with tenant_session(self._engine, PLATFORM, write=True) as session:
            for row in _pool(session):
                if self._is_gone(row):
                    session.delete(row)

    def lease(self, claim: Claim) -> list[str]:
        """Lease devices to an operation, or tell its row what it waits for.

        Returns:
            Their UUIDs, in a lasting order; none while it waits. Called again by the same operation it gives the same ones.

        Raises:
            NotAllotted: The tenant may not have so many.
            Conflict: The worker does not have so many at all.
            Unavailable: It has none, or has not told yet.
        """
        with tenant_session(self._engine, claim.tenant) as session:
            allotment = session.exec(select(DeviceAllotment)).first()
        quota = 0 if allotment is None else allotment.devices
        if claim.count > quota:
            raise NotAllotted(f"{claim.count} devices are needed, and {claim.tenant} is allotted {quota}")
        with tenant_session(self._engine, PLATFORM, write=True) as session:
            at_ms = self._clock()
            pool = _pool(session)
            for row in pool:
                if row.operation_id is not None and row.renewed_at_ms < at_ms - self._idle_ms:
                    logger.warning("a device's lease lapsed", extra={"device": row.uuid, "operation": row.operation_id})
                    _free(row)
            here = sum(row.worker == claim.worker for row in pool)
            if not here:
                # A worker that was just started reports within seconds: a run that it goes on with must not end for that.
                raise Unavailable(
                    f"{claim.count} devices are needed, and none of this worker's is known; see licet device list, and"
                    " licet doctor on its machine"
                )
            if claim.count > here:
                raise Conflict(
                    f"{claim.count} devices are needed, and the pool of this worker has {here}; see licet device list",
                    code="no-devices",
                )
            waits_for, taken = self._take(session, claim, pool, quota=quota, at_ms=at_ms)
        self._tell(claim, waits_for)
        return taken

    def _take(
        self,
        session: TenantSession,
        claim: Claim,
        pool: Sequence[DeviceRow],
        *,
        quota: int,
        at_ms: int,
    ) -> tuple[str, list[str]]:
        """What the operation waits for, or which devices it has."""
        here = [row for row in pool if row.worker == claim.worker]
        mine = [row for row in here if row.operation_id == claim.operation]
        waits = session.exec(select(DeviceWait)).all()
        known = next((row for row in waits if row.operation_id == claim.operation), None)
        if len(mine) != claim.count:
            # Some are gone, or of another worker: those that are left go back, and it takes its turn anew.
            for row in pool:
                if row.operation_id == claim.operation:
                    _free(row)
            wait = known or DeviceWait(
                tenant_id=PLATFORM,
                operation_id=claim.operation,
                of_tenant=claim.tenant,
                worker=claim.worker,
                wanted=claim.count,
                since_ms=at_ms,
                seen_at_ms=at_ms,
            )
            # Asked for again every second; written no oftener than is needed to be taken for alive.
            if wait.worker != claim.worker or at_ms - wait.seen_at_ms > self._idle_ms // 4:
                wait.worker, wait.seen_at_ms = claim.worker, at_ms
            wait.by_quota = claim.count + sum(row.of_tenant == claim.tenant for row in pool) > quota
            free = [row for row in here if row.operation_id is None]
            if wait.by_quota or len(free) - self._promised(session, waits, wait, at_ms) < claim.count:
                session.add(wait)
                return (_BY_QUOTA if wait.by_quota else _BY_POOL), []
            mine = free[: claim.count]
        if known is not None:
            session.delete(known)
        for row in mine:
            if row.operation_id is None:
                row.operation_id, row.of_tenant, row.leased_at_ms = claim.operation, claim.tenant, at_ms
            row.renewed_at_ms = at_ms
            session.add(row)
        return "", [row.uuid for row in mine]

    def _promised(self, session: TenantSession, waits: Sequence[DeviceWait], mine: DeviceWait, at_ms: int) -> int:
        """How many devices go to those who asked before; who gives no sign of life any more waits no more."""
        promised = 0
        for other in waits:
            if other.seen_at_ms < at_ms - self._idle_ms:
                session.delete(other)
            elif other.worker == mine.worker and not other.by_quota:
                is_before = (other.since_ms, other.operation_id) < (mine.since_ms, mine.operation_id)
                promised += other.wanted if is_before else 0
        return promised

    def _tell(self, claim: Claim, waits_for: str) -> None:
        """Say in the operation's row that it waits, and for what; or that it does not wait any more."""
        query = select(Operation).where(Operation.id == claim.operation)
        counted = f"{claim.count} {'devices' if claim.count > 1 else 'device'}"
        told = f"for {counted}: {waits_for}" if waits_for else None
        with tenant_session(self._engine, claim.tenant) as session:
            row = session.exec(query).first()
        if row is None or (row.progress or {}).get("waiting") == told:
            return
        with tenant_session(self._engine, claim.tenant, write=True) as session:
            row = session.exec(query).one()
            row.progress = {"attempt": row.attempt} | ({} if told is None else {"waiting": told})
            row.updated_at_ms = self._clock()
            session.add(row)

    def renew(self, operation: str, count: int) -> bool:
        """Renew an operation's leases; return whether it has them still, all of them."""
        with tenant_session(self._engine, PLATFORM, write=True) as session:
            mine = [row for row in _pool(session) if row.operation_id == operation]
            for row in mine:
                row.renewed_at_ms = self._clock()
                session.add(row)
            return len(mine) == count

    def release(self, operation: str) -> None:
        """Give back what an operation has, and its place among those who wait."""
        with tenant_session(self._engine, PLATFORM, write=True) as session:
            for row in _pool(session):
                if row.operation_id == operation:
                    _free(row)
                    session.add(row)
            for wait in session.exec(select(DeviceWait).where(DeviceWait.operation_id == operation)).all():
                session.delete(wait)


def _pool(session: TenantSession) -> Sequence[DeviceRow]:
    """Every device, locked until the session ends where the database can lock rows; in the order in which all lock them."""
    return session.exec(select(DeviceRow).order_by(col(DeviceRow.uuid)).with_for_update()).all()


def _free(row: DeviceRow) -> None:
    row.operation_id, row.of_tenant, row.leased_at_ms, row.renewed_at_ms = None, None, 0, 0


def devices_of(parameters: Mapping[str, Any]) -> int:
    """How many devices an accepted operation needs."""
    spec = parameters.get("spec")
    return int(spec["ranks"]) if isinstance(spec, Mapping) and spec.get("device") == "cuda" else 0


VERBS = (
    Verb(
        action="tenant.allot",
        summary="Allot devices of the pool to a tenant.",
        form=RefForm.TENANT,
        body=AllotDevices,
        propose=ask_allot,
    ),
)
