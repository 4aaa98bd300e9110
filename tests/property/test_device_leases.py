"""Leases of devices against a naive reference that keeps them in dictionaries; and against what every holder was told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete
from sqlmodel import select

from databases import KINDS, Database
from licet_engine.domain.errors import Conflict, Unavailable
from licet_engine.lifecycle.devices import Claim, DeviceLeases, NotAllotted
from licet_engine.store import db
from licet_engine.store.tables import DeviceAllotment, DeviceRow, DeviceWait, Tenant

IDLE_MS = 60_000
UUIDS = tuple(f"GPU-{digit * 8}-0000-4000-8000-{digit * 12}" for digit in "abcd")
TENANTS = ("lakeside", "northbank")
OPERATIONS = {
    f"{tenant}-{count}{letter}": (tenant, count) for tenant in TENANTS for count in (1, 2, 3) for letter in "xy"
}
WORKER = "machine"
_NAMES = st.sampled_from(sorted(OPERATIONS))
STEPS = st.one_of(
    # Most steps ask, or are about those who asked.
    *[st.tuples(st.just("lease"), _NAMES)] * 4,
    *[st.tuples(st.just("release"), _NAMES)] * 2,
    st.tuples(st.just("renew"), _NAMES),
    st.tuples(st.just("wait"), st.sampled_from((1, IDLE_MS // 2, IDLE_MS, IDLE_MS + 1))),
    st.tuples(st.just("report"), st.sets(st.sampled_from(UUIDS)).map(sorted)),
    st.tuples(st.just("allot"), st.tuples(st.sampled_from(TENANTS), st.integers(0, 4))),
)


@dataclass
class Waiting:
    """One who waits: since when, when it last asked, and whether for its own tenant's runs."""

    since_ms: int
    asked_ms: int = 0
    by_quota: bool = False


@dataclass
class Naive:
    """The rules as they are written, one after another."""

    now_ms: int = 1_000_000
    quota: dict[str, int] = field(default_factory=dict)
    holder: dict[str, str] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)
    sign_ms: dict[str, int] = field(default_factory=dict)
    leased_ms: dict[str, int] = field(default_factory=dict)
    seen_ms: dict[str, int] = field(default_factory=dict)
    waits: dict[str, Waiting] = field(default_factory=dict)

    def devices(self, name: str) -> list[str]:
        return sorted(uuid for uuid, holder in self.holder.items() if holder == name)

    def free_of(self, name: str) -> None:
        self.holder = {uuid: holder for uuid, holder in self.holder.items() if holder != name}

    def lease(self, name: str) -> list[str] | type[Exception]:
        tenant, count = OPERATIONS[name]
        if count > self.quota.get(tenant, 0):
            return NotAllotted
        if count > len(self.present):
            return Conflict if self.present else Unavailable
        for other in set(self.holder.values()):
            if self.now_ms - self.sign_ms[other] > IDLE_MS:
                self.free_of(other)
        if len(self.devices(name)) != count:
            self.free_of(name)
            wait = self.waits.setdefault(name, Waiting(self.now_ms))
            wait.asked_ms = self.now_ms
            of_tenant = sum(OPERATIONS[holder][0] == tenant for holder in self.holder.values())
            wait.by_quota = of_tenant + count > self.quota[tenant]
            if wait.by_quota:
                return []
            self.waits = {n: w for n, w in self.waits.items() if self.now_ms - w.asked_ms <= IDLE_MS}
            before = [
                OPERATIONS[n][1]
                for n, w in self.waits.items()
                if not w.by_quota and (w.since_ms, n) < (wait.since_ms, name)
            ]
            free = sorted(self.present - set(self.holder))
            if len(free) < sum(before) + count:
                return []
            self.holder.update(dict.fromkeys(free[:count], name))
            self.leased_ms.update(dict.fromkeys(free[:count], self.now_ms))
        self.waits.pop(name, None)
        self.sign_ms[name] = self.now_ms
        return self.devices(name)

    def renew(self, name: str) -> bool:
        self.sign_ms[name] = self.now_ms
        return len(self.devices(name)) == OPERATIONS[name][1]

    def release(self, name: str) -> None:
        self.free_of(name)
        self.waits.pop(name, None)

    def report(self, uuids: Sequence[str]) -> None:
        leased = {uuid for uuid, holder in self.holder.items() if self.now_ms - self.sign_ms[holder] <= IDLE_MS}
        if self.present == set(uuids) and all(
            self.now_ms - self.seen_ms[uuid] <= (45_000 if uuid in leased else 300_000) for uuid in uuids
        ):
            return
        # What is leased may be another machine's of the same name, which reports it.
        kept = {
            uuid
            for uuid in leased - set(uuids)
            if self.now_ms - max(self.seen_ms[uuid], self.leased_ms[uuid]) <= 90_000
        }
        self.present = set(uuids) | kept
        self.seen_ms.update(dict.fromkeys(uuids, self.now_ms))
        self.holder = {uuid: holder for uuid, holder in self.holder.items() if uuid in self.present}


class Real:
    """The leases, in a database that is emptied for each example."""

    def __init__(self, engine: Engine, naive: Naive) -> None:
        self._engine = engine
        self._leases = DeviceLeases(engine, idle_s=IDLE_MS // 1000, clock=lambda: naive.now_ms)
        with db.write_transaction(engine) as connection:
            for table in (DeviceAllotment, DeviceRow, DeviceWait):
                connection.execute(delete(table))

    def lease(self, name: str) -> list[str] | type[Exception]:
        tenant, count = OPERATIONS[name]
        try:
            return self._leases.lease(Claim(tenant, name, WORKER, count))
        except (NotAllotted, Conflict, Unavailable) as refusal:
            return type(refusal)

    def renew(self, name: str) -> bool:
        return self._leases.renew(name, OPERATIONS[name][1])

    def release(self, name: str) -> None:
        self._leases.release(name)

    def report(self, uuids: Sequence[str]) -> None:
        told = {"kind": "cuda", "name": "Test", "memory_mib": 1024, "driver": "1.0"}
        self._leases.report(WORKER, [{"uuid": uuid, **told} for uuid in uuids])

    def allot(self, tenant: str, devices: int) -> None:
        with db.tenant_session(self._engine, tenant, write=True) as session:
            row = session.exec(select(DeviceAllotment)).first()
            row = row or DeviceAllotment(tenant_id=tenant, devices=devices, at_ms=1)
            row.devices = devices
            session.add(row)

    def rows(self) -> tuple[dict[str, str], set[str]]:
        with db.tenant_session(self._engine, "platform") as session:
            rows = session.exec(select(DeviceRow)).all()
            waits = session.exec(select(DeviceWait)).all()
            held = {row.uuid: row.operation_id for row in rows if row.operation_id is not None}
            return held, {row.operation_id for row in waits}


@pytest.mark.parametrize("kind", KINDS)
def test_leases_are_the_naive_ones_and_no_two_holders_are_told_the_same_device(
    make_database: Callable[..., AbstractContextManager[Database]], kind: str
) -> None:
    with make_database(kind) as database:
        engine = database.open()
        for tenant in TENANTS:
            with db.tenant_session(engine, tenant, write=True) as session:
                session.add(Tenant(tenant_id=tenant, region="us", created_at_ms=1))

        @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(steps=st.lists(STEPS, min_size=4, max_size=24))
        def compare_on(steps: list[tuple[str, Any]]) -> None:
            compare(engine, steps)

        compare_on()
        engine.dispose()


def compare(engine: Engine, steps: Sequence[tuple[str, Any]]) -> None:
    naive = Naive()
    real = Real(engine, naive)
    for tenant in TENANTS:
        naive.quota[tenant] = 4
        real.allot(tenant, 4)
    naive.report(UUIDS)
    real.report(UUIDS)
    told: dict[str, tuple[str, ...]] = {}
    sign_ms: dict[str, int] = {}
    for verb, about in steps:
        naive.now_ms += 1
        if verb == "lease":
            got = real.lease(about)
            assert got == naive.lease(about)
            told.pop(about, None)
            if isinstance(got, list) and got:
                told[about], sign_ms[about] = tuple(got), naive.now_ms
                assert len(got) == OPERATIONS[about][1]
        elif verb == "renew":
            has_all = real.renew(about)
            assert has_all == naive.renew(about)
            if not has_all:
                told.pop(about, None)
            sign_ms[about] = naive.now_ms
        elif verb == "release":
            real.release(about)
            naive.release(about)
            told.pop(about, None)
        elif verb == "wait":
            naive.now_ms += about
        elif verb == "report":
            real.report(about)
            naive.report(about)
            told = {name: tuple(uuid for uuid in uuids if uuid in about) for name, uuids in told.items()}
        else:
            naive.quota[about[0]] = about[1]
            real.allot(*about)
        held, waiting = real.rows()
        assert held == naive.holder
        assert waiting == set(naive.waits)
        # Whoever was told a device and gave a sign of life in time has it alone, until it falls off the machine.
        alive = [uuid for name, uuids in told.items() if naive.now_ms - sign_ms[name] <= IDLE_MS for uuid in uuids]
        assert len(alive) == len(set(alive))
