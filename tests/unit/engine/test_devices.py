"""Leases of devices: one operation at a time, within the allotment, in the order of asking, and never for ever."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlmodel import select

from databases import Database
from licet_engine.domain.errors import Conflict, InvalidInput, Unavailable
from licet_engine.lifecycle.devices import (
    Claim,
    DeviceLeases,
    NotAllotted,
    devices_of,
    devices_present,
    pool_states,
    waiting_operations,
)
from licet_engine.pool_reporter import machine_name
from licet_engine.settings import load_settings
from licet_engine.store import db
from licet_engine.store.tables import DeviceAllotment, DeviceRow, DeviceWait, Operation, Tenant
from licet_engine.workflow import DEVICE_QUEUE, EXAMINATION_QUEUE, LONG_QUEUE, queue_of

IDLE_S = 60
A, B, C, D = (f"GPU-{digit * 8}-0000-4000-8000-{digit * 12}" for digit in "abcd")


def told(uuid: str) -> dict[str, Any]:
    return {"uuid": uuid, "kind": "cuda", "name": "NVIDIA H100", "memory_mib": 81559, "driver": "550.54"}


class Bench:
    """A database with two tenants, and a clock that can be set."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.now_ms = 1_800_000_000_000
        self.leases = self.another_api()

    def another_api(self) -> DeviceLeases:
        return DeviceLeases(self.engine, idle_s=IDLE_S, clock=lambda: self.now_ms)

    def allot(self, tenant: str, devices: int) -> None:
        with db.tenant_session(self.engine, tenant, write=True) as session:
            for row in session.exec(select(DeviceAllotment)).all():
                session.delete(row)
            session.flush()
            session.add(DeviceAllotment(tenant_id=tenant, devices=devices, at_ms=1))

    def pool(self, *uuids: str, worker: str = "worker-1") -> None:
        self.leases.report(worker, [told(uuid) for uuid in uuids])

    def lease(self, tenant: str, operation: str, count: int = 1, worker: str = "worker-1") -> list[str]:
        self.now_ms += 1
        return self.leases.lease(Claim(tenant, operation, worker, count))

    def operation(self, tenant: str, name: str) -> None:
        with db.tenant_session(self.engine, tenant, write=True) as session:
            session.add(
                Operation(
                    tenant_id=tenant,
                    id=name,
                    action="training.launch",
                    resource=f"{tenant}/{name}",
                    state="running",
                    decision_id="d",
                    principal="ana",
                    created_at_ms=1,
                    updated_at_ms=1,
                )
            )

    def progress(self, tenant: str, name: str) -> dict[str, Any]:
        with db.tenant_session(self.engine, tenant) as session:
            return dict(session.exec(select(Operation).where(Operation.id == name)).one().progress or {})

    def holders(self) -> dict[str, str | None]:
        with db.tenant_session(self.engine, "platform") as session:
            return {row.uuid: row.operation_id for row in session.exec(select(DeviceRow)).all()}

    def waiting(self) -> set[str]:
        with db.tenant_session(self.engine, "platform") as session:
            return {row.operation_id for row in session.exec(select(DeviceWait)).all()}


@pytest.fixture
def bench(prepared: Database) -> Iterator[Bench]:
    engine = prepared.open()
    for tenant in ("northbank", "lakeside"):
        with db.tenant_session(engine, tenant, write=True) as session:
            session.add(Tenant(tenant_id=tenant, region="us", created_at_ms=1))
    made = Bench(engine)
    for tenant in ("northbank", "lakeside"):
        made.allot(tenant, 4)
    yield made
    engine.dispose()


def test_a_device_is_leased_to_one_operation_and_told_again_to_the_same(bench: Bench) -> None:
    bench.pool(A, B)
    assert bench.lease("northbank", "one") == [A]
    assert bench.lease("lakeside", "two") == [B]
    assert bench.lease("northbank", "one") == [A]
    assert bench.lease("northbank", "three") == []
    assert bench.holders() == {A: "one", B: "two"}
    assert pool_states(bench.engine) == {"free": 0, "leased": 2}
    assert waiting_operations(bench.engine) == 1


def test_of_many_who_ask_at_once_each_device_goes_to_one(bench: Bench) -> None:
    bench.pool(A, B, C)
    barrier = threading.Barrier(8)
    got: list[list[str]] = []

    def ask(name: str, tenant: str) -> None:
        leases = bench.another_api()
        barrier.wait()
        got.append(leases.lease(Claim(tenant, name, "worker-1", 1)))

    names = [(f"op-{number}", ("northbank", "lakeside")[number % 2]) for number in range(8)]
    threads = [threading.Thread(target=ask, args=name) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(uuid for uuids in got for uuid in uuids) == sorted([A, B, C])
    assert len(bench.waiting()) == 5


def test_of_many_at_work_at_once_no_two_are_on_a_device_and_no_tenant_is_over_its_allotment(bench: Bench) -> None:
    bench.pool(A, B, C)
    bench.allot("northbank", 2)
    guard, barrier = threading.Lock(), threading.Barrier(6)
    at_work: dict[str, str] = {}
    wrong: list[str] = []
    done: list[str] = []

    def work(number: int) -> None:
        leases = bench.another_api()
        tenant, count = ("northbank", "lakeside")[number % 2], 1 + number % 3 % 2
        barrier.wait()
        for turn in range(5):
            claim = Claim(tenant, f"op-{number}-{turn}", "worker-1", count)
            until_s = time.monotonic() + 60
            while not (got := leases.lease(claim)):
                if time.monotonic() > until_s:
                    wrong.append(f"{claim.operation} waits for ever")
                    return
                time.sleep(0.005)
            with guard:
                wrong.extend(f"{uuid} is {at_work[uuid]}'s and {claim.operation}'s" for uuid in got if uuid in at_work)
                at_work.update(dict.fromkeys(got, tenant))
                if list(at_work.values()).count("northbank") > 2:
                    wrong.append(f"northbank has more than it is allotted: {at_work}")
            time.sleep(0.01)
            with guard:
                for uuid in got:
                    at_work.pop(uuid, None)
            leases.release(claim.operation)
            done.append(claim.operation)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []
    assert len(done) == 30
    assert set(bench.holders().values()) == {None}
    assert bench.waiting() == set()


def test_those_who_wait_are_served_in_the_order_of_asking_whoever_asks_again_first(bench: Bench) -> None:
    bench.pool(A)
    assert bench.lease("northbank", "at-work") == [A]
    waiting = [("lakeside", "first"), ("northbank", "second"), ("lakeside", "third")]
    assert [bench.lease(*who) for who in waiting] == [[], [], []]
    bench.leases.release("at-work")
    for tenant, operation in waiting:
        # The last to come is the first to ask again, each time.
        assert {later: bench.lease(of, later) for of, later in reversed(waiting) if later > operation} == {
            later: [] for _, later in waiting if later > operation
        }
        assert bench.lease(tenant, operation) == [A]
        bench.leases.release(operation)


def test_who_begins_again_what_a_dead_worker_had_begun_has_its_devices_before_they_lapse(bench: Bench) -> None:
    bench.pool(A, B)
    assert bench.lease("northbank", "one", 2) == [A, B]
    bench.now_ms += IDLE_S * 1000 - 10
    # The worker died, and another api is asked, for another worker of the same machine.
    assert bench.another_api().lease(Claim("northbank", "one", "worker-1", 2)) == [A, B]
    bench.now_ms += IDLE_S * 1000 - 10
    assert bench.lease("lakeside", "two") == []
    # Begun on another machine it can have that one's only, and leaves none behind here.
    bench.pool(C, D, worker="worker-2")
    assert bench.lease("northbank", "one", 2, worker="worker-2") == [C, D]
    assert bench.lease("lakeside", "two") == [A]
    assert bench.holders() == {A: "two", B: None, C: "one", D: "one"}


def test_what_is_given_back_goes_to_who_waits(bench: Bench) -> None:
    bench.pool(A)
    bench.operation("lakeside", "two")
    assert bench.lease("northbank", "one") == [A]
    assert bench.lease("lakeside", "two") == []
    assert "every device of the pool" in bench.progress("lakeside", "two")["waiting"]
    bench.leases.release("one")
    assert bench.lease("lakeside", "two") == [A]
    assert "waiting" not in bench.progress("lakeside", "two")
    assert bench.waiting() == set()


def test_a_tenant_has_no_more_at_once_than_it_is_allotted_and_keeps_nobody_waiting(bench: Bench) -> None:
    bench.pool(A, B, C)
    bench.allot("northbank", 2)
    bench.operation("northbank", "two")
    assert bench.lease("northbank", "one") == [A]
    assert bench.lease("northbank", "two", 2) == []
    assert "of this tenant" in bench.progress("northbank", "two")["waiting"]
    # It asked before, and could not have had them: others are served.
    assert bench.lease("lakeside", "three", 2) == [B, C]
    bench.leases.release("one")
    assert bench.lease("northbank", "two", 2) == []
    bench.leases.release("three")
    assert len(bench.lease("northbank", "two", 2)) == 2


def test_who_needs_many_is_not_passed_by_who_needs_few(bench: Bench) -> None:
    bench.pool(A, B)
    assert bench.lease("northbank", "small") == [A]
    assert bench.lease("lakeside", "large", 2) == []
    assert bench.lease("northbank", "later") == []
    bench.leases.release("small")
    assert bench.lease("northbank", "later") == []
    assert bench.lease("lakeside", "large", 2) == [A, B]


def test_what_is_left_over_by_who_waits_may_be_had(bench: Bench) -> None:
    bench.pool(A, B, C, D)
    assert bench.lease("northbank", "first", 3) == [A, B, C]
    assert bench.lease("lakeside", "second", 1) == [D]
    assert bench.lease("lakeside", "third", 2) == []
    bench.leases.release("first")
    # Two of the three free ones are promised to the third.
    assert bench.lease("northbank", "fourth") == [A]
    assert bench.lease("lakeside", "third", 2) == [B, C]


def test_a_lease_lapses_when_its_run_gives_no_sign_of_life(bench: Bench) -> None:
    bench.pool(A)
    assert bench.lease("northbank", "one") == [A]
    bench.now_ms += IDLE_S * 1000 - 1
    assert bench.lease("lakeside", "two") == []
    assert bench.leases.renew("one", 1)
    bench.now_ms += IDLE_S * 1000 - 10
    assert bench.lease("lakeside", "two") == []
    bench.now_ms += 20
    assert bench.lease("lakeside", "two") == [A]
    # Who lost it is told so, and takes its turn anew.
    assert not bench.leases.renew("one", 1)
    assert bench.lease("northbank", "one") == []


def test_who_stopped_asking_keeps_nobody_waiting(bench: Bench) -> None:
    bench.pool(A, B)
    assert bench.lease("northbank", "one") == [A]
    assert bench.lease("lakeside", "gone", 2) == []
    assert bench.lease("northbank", "two") == []
    bench.now_ms += IDLE_S * 1000 - 1
    assert bench.leases.renew("one", 1)
    bench.now_ms += 10
    assert bench.lease("northbank", "two") == [B]
    assert bench.waiting() == set()


def report_at_work(bench: Bench, *uuids: str) -> None:
    """For as long as it takes, a worker reports these alone, while its run gives signs of life."""
    for _ in range(4):
        bench.now_ms += 30_000
        bench.leases.renew("one", 2)
        bench.pool(*uuids)


def test_of_two_machines_of_one_name_neither_takes_what_is_leased_from_the_other(bench: Bench) -> None:
    """As after a data folder was cloned."""
    bench.pool(A, worker="host-1f")
    bench.now_ms += 240_000  # It was noted some time ago that the device is there.
    bench.pool(A, worker="host-1f")
    assert bench.lease("northbank", "one", worker="host-1f") == [A]
    for _ in range(20):
        bench.now_ms += 20_000
        assert bench.leases.renew("one", 1)
        bench.pool(B, worker="host-1f")
        assert bench.holders() == {A: "one", B: None}
        bench.now_ms += 10_000
        bench.pool(A, worker="host-1f")
        assert bench.holders() == {A: "one"}
    # What nobody has leaves with the first report that does not name it.
    bench.leases.release("one")
    bench.pool(B, worker="host-1f")
    assert bench.holders() == {B: None}


def test_a_device_that_fell_off_is_leased_no_more_and_what_is_left_goes_back(bench: Bench) -> None:
    bench.pool(A, B, C)
    assert bench.lease("northbank", "one", 2) == [A, B]
    report_at_work(bench, A, C)
    assert not bench.leases.renew("one", 2)
    assert bench.lease("northbank", "one", 2) == [A, C]
    report_at_work(bench, C)
    with pytest.raises(Conflict) as refusal:
        bench.lease("northbank", "one", 2)
    assert refusal.value.code == "no-devices"


def test_where_nothing_can_be_told_nobody_loses_a_device(bench: Bench) -> None:
    bench.pool(A, B)
    assert bench.lease("northbank", "one") == [A]
    bench.leases.report("worker-1", None)
    assert bench.leases.renew("one", 1)
    assert bench.holders() == {A: "one", B: None}
    # Not for ever: what nobody has, or gives no sign of life any more, is forgotten.
    bench.now_ms += 15 * 60_000 + 1
    assert bench.leases.renew("one", 1)
    bench.leases.report("worker-1", None)
    assert bench.holders() == {A: "one"}
    bench.now_ms += IDLE_S * 1000 + 1
    bench.leases.report("worker-1", None)
    assert bench.holders() == {}


def test_a_machine_that_is_named_otherwise_has_its_devices_and_their_runs_still(bench: Bench) -> None:
    bench.pool(A, B, worker="host")
    assert bench.lease("northbank", "one", worker="host") == [A]
    # Its worker goes on with the run before it has reported: that may pass, and is tried again.
    with pytest.raises(Unavailable):
        bench.lease("northbank", "one", worker="host-1f")
    bench.pool(A, worker="host-1f")
    assert bench.lease("northbank", "one", worker="host-1f") == [A]
    # What it has no more is left under the old name, and not for ever.
    assert bench.holders() == {A: "one", B: None}
    bench.now_ms += 15 * 60_000 + 1
    bench.pool(A, worker="host-1f")
    assert bench.holders() == {A: "one"}


def test_a_leased_device_of_a_machine_that_is_gone_is_forgotten_once_its_lease_lapsed(bench: Bench) -> None:
    bench.pool(A, worker="gone")
    assert bench.lease("northbank", "one", worker="gone") == [A]
    bench.now_ms += 15 * 60_000 + 1
    bench.pool(B, worker="here")
    assert bench.holders() == {B: None}


def test_a_machine_is_named_once_for_its_folder_and_otherwise_than_another_of_its_name(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir(0o700)
    first, second = (machine_name(tmp_path / name) for name in "ab")
    assert machine_name(tmp_path / "a") == first != second
    host = platform.node().split(".")[0][:20]
    assert first.startswith(host)
    assert second.startswith(host)


def test_only_devices_of_the_worker_that_performs_it_are_of_use(bench: Bench) -> None:
    bench.pool(A, worker="worker-1")
    bench.pool(B, C, worker="worker-2")
    assert devices_present(bench.engine) == 2
    assert bench.lease("northbank", "one", 2, worker="worker-2") == [B, C]
    with pytest.raises(Conflict):
        bench.lease("northbank", "two", 2, worker="worker-1")
    bench.leases.release("one")
    bench.pool(worker="worker-2")
    assert bench.holders() == {A: None}


def test_the_devices_of_a_machine_that_is_gone_are_forgotten_once_nobody_has_them(bench: Bench) -> None:
    bench.pool(A, worker="here")
    bench.pool(B, C, worker="gone")
    assert bench.lease("northbank", "one", worker="gone") == [B]
    assert devices_present(bench.engine) == 2
    for _ in range(20):
        bench.now_ms += 60_000
        bench.pool(A, worker="here")
        bench.leases.renew("one", 1)
    assert pool_states(bench.engine) == {"free": 1.0, "leased": 1.0}
    bench.leases.release("one")
    bench.pool(A, worker="here")
    assert pool_states(bench.engine) == {"free": 1.0, "leased": 0.0}
    assert devices_present(bench.engine) == 1


def test_an_allotment_that_was_lowered_ends_who_needs_more(bench: Bench) -> None:
    bench.pool(A, B)
    bench.allot("northbank", 1)
    with pytest.raises(NotAllotted) as refusal:
        bench.lease("northbank", "one", 2)
    assert refusal.value.code == "refused"
    bench.allot("northbank", 0)
    with pytest.raises(NotAllotted):
        bench.lease("northbank", "one", 1)


@pytest.mark.parametrize("reported", [[{"uuid": A}], [{**told(A), "more": 1}], [told(f"{A}{n}") for n in range(65)]])
def test_a_report_that_is_no_list_of_devices_changes_nothing(bench: Bench, reported: list[dict[str, Any]]) -> None:
    bench.pool(A)
    with pytest.raises(InvalidInput):
        bench.leases.report("worker-1", reported)
    assert bench.holders() == {A: None}


def test_a_report_that_says_the_same_keeps_the_leases(bench: Bench) -> None:
    bench.pool(A, B)
    assert bench.lease("northbank", "one") == [A]
    bench.pool(A, B)
    bench.leases.report("worker-1", [told(A), {**told(B), "driver": "560.1"}])
    assert bench.holders() == {A: "one", B: None}


def test_what_needs_devices_waits_in_a_queue_of_its_own() -> None:
    assert devices_of({"spec": {"device": "cuda", "ranks": 2}}) == 2
    assert devices_of({"spec": {"device": "cpu", "ranks": 2}}) == devices_of({}) == devices_of({"spec": "x"}) == 0
    assert queue_of("training.launch", needs_devices=True) == DEVICE_QUEUE
    assert queue_of("training.launch") == LONG_QUEUE


def test_policies_are_examined_in_a_queue_of_their_own() -> None:
    # It has as many places as there is memory for, whatever else there is to do.
    assert queue_of("policy.publish") == EXAMINATION_QUEUE
    assert queue_of("policy.activate") != EXAMINATION_QUEUE


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"LICET_DEVICES": "0"}, "LICET_DEVICES names whole devices by UUID"),
        ({"LICET_DEVICES": f"{A},MIG-{A[4:]}"}, "not 'MIG-"),
        ({"LICET_DEVICE_IDLE_S": "30"}, "must be above LICET_LEASE_S"),
    ],
)
def test_a_pool_that_is_not_said_clearly_is_refused_at_the_start(variables: dict[str, str], said: str) -> None:
    with pytest.raises(Exception, match=said):
        load_settings(variables)


def test_the_allow_list_is_read_as_it_is_written() -> None:
    assert load_settings({"LICET_DEVICES": f" {A} ,{B},"}).device_uuids == (A, B)
    assert load_settings({}).device_uuids == ()
