"""Every statement and commit of the sequencer fails, both ways: without and with having been carried out.

After each fault the log is checked from the first leaf to the head, what was acknowledged is in it exactly once, and what was refused is
not in it at all.
"""

import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from sqlalchemy import Engine, event, text
from sqlmodel import select

from databases import Database, writers_held
from licet_engine.log import store
from licet_engine.log.errors import LogError, LogUnavailable
from licet_engine.log.fsck import verify_logs
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import Insert, NewEntry, Receipt, Spend, Submission, Update
from licet_engine.store import db
from licet_engine.store.tables import Budget, Operation, Tenant

Way = Literal["not persisted", "persisted"]
WAYS: tuple[Way, ...] = ("not persisted", "persisted")
GROUP = 5


class Faults:
    """Breaks the n-th thing that happens on the database's connections."""

    def __init__(self, engine: Engine) -> None:
        self.countdown: int | None = None
        self.way: Way = "not persisted"
        self.left = 0
        self.hit = False
        event.listen(engine, "before_cursor_execute", self._before)
        event.listen(engine, "after_cursor_execute", self._after)
        commit = engine.dialect.do_commit

        def do_commit(connection: Any) -> None:
            self._step("not persisted")
            commit(connection)
            self._step("persisted")

        engine.dialect.do_commit = do_commit

    def arm(self, nth: int, way: Way, times: int = 1) -> None:
        self.countdown, self.way, self.left, self.hit = nth, way, times, False

    def disarm(self) -> None:
        self.countdown = None

    def _before(self, *_args: Any) -> None:
        self._step("not persisted")

    def _after(self, *_args: Any) -> None:
        self._step("persisted")

    def _step(self, way: Way) -> None:
        if self.countdown is None or way != self.way:
            return
        self.countdown -= 1
        if self.countdown < 0 and self.left > 0:
            self.left -= 1
            self.hit = True
            raise sqlite3.OperationalError(f"disk I/O error, injected: {way}")


@pytest.fixture
def engine(prepared: Database) -> Iterator[Engine]:
    engine = prepared.open()
    with db.write_transaction(engine) as connection:
        connection.execute(text("CREATE TABLE work (item TEXT)"))
    yield engine
    engine.dispose()


def submission(name: str) -> Submission:
    row = {
        "tenant_id": "northbank",
        "id": name,
        "action": "a",
        "resource": "r",
        "state": "accepted",
        "decision_id": "d",
        "principal": "p",
        "created_at_ms": 1,
        "updated_at_ms": 1,
    }
    return Submission(
        [
            NewEntry("northbank", "decision", "northbank", "northbank", name.encode()),
            NewEntry("lakeside", "attempt", "northbank", "lakeside", name.encode()),
        ],
        companions=[
            Insert(Operation, [row]),
            Update(Operation, {"tenant_id": "northbank", "id": name}, {"state": "running"}),
        ],
        bump=["northbank"],
        enqueue=[name],
        spend=[Spend("northbank", "gpu", 1)],
    )


def enqueue(connection: Any, item: Any) -> None:
    connection.execute(text("INSERT INTO work VALUES (:item)"), {"item": item})


def submit_as_group(engine: Engine, sequencer: Sequencer, names: list[str]) -> dict[str, Receipt | Exception]:
    with writers_held(engine, "lakeside", "northbank"):
        futures = {name: sequencer.submit(submission(name)) for name in names}
    return {name: future.exception(30) or future.result() for name, future in futures.items()}


def check(engine: Engine, outcomes: dict[str, Receipt | Exception], budget: int) -> None:
    """The log is sound; every acknowledged submission is whole, where it was said to be, once; every refused one is nowhere."""
    verify_logs(engine)
    acknowledged = {name for name, outcome in outcomes.items() if isinstance(outcome, Receipt)}
    unknown = {
        name for name, outcome in outcomes.items() if isinstance(outcome, LogUnavailable) and outcome.may_be_logged
    }
    with db.read_transaction(engine) as connection:
        logged = {
            tenant_id: Counter(
                (entry.record or b"").decode()
                for entry in store.read_entries(connection, tenant_id, 0, 100_000)
                if entry.record != b"filler"
            )
            for tenant_id in ("northbank", "lakeside")
        }
        work = Counter(connection.execute(text("SELECT item FROM work")).scalars())
        facts_version = store.read_head(connection, "northbank").facts_version
        for name in acknowledged:
            receipt = outcomes[name]
            assert isinstance(receipt, Receipt)
            for placed in receipt.placed:
                entry = store.read_entry(connection, placed.tenant_id, placed.index)
                assert (entry.record, entry.header.encode()) == (name.encode(), placed.header)
    with db.tenant_session(engine, "northbank") as session:
        operations = Counter(session.exec(select(Operation.id).where(Operation.state == "running")).all())
        remaining = session.exec(select(Budget.remaining)).one()
    assert logged["northbank"] == logged["lakeside"] == work == operations
    assert set(work.values()) <= {1}
    assert acknowledged <= set(work) <= acknowledged | unknown
    assert remaining == budget - len(work)
    assert facts_version == len(work)


def filler(tenant_id: str) -> NewEntry:
    return NewEntry(tenant_id, "filler", tenant_id, tenant_id, b"filler")


def fill_tile(engine: Engine, sequencer: Sequencer) -> None:
    """Append until the next group of submissions completes a tile."""
    with db.read_transaction(engine) as connection:
        size = store.read_head(connection, "northbank").size
    if missing := (store.TILE_WIDTH - 2 - size) % store.TILE_WIDTH:
        sequencer.append(Submission([filler("northbank")] * missing))


def prepare(engine: Engine) -> tuple[Faults, Sequencer]:
    sequencer = Sequencer(engine, enqueue=enqueue)
    companions = [
        Insert(Tenant, [{"tenant_id": "northbank", "region": "us", "created_at_ms": 1}]),
        Insert(Budget, [{"tenant_id": "northbank", "name": "gpu", "limit": 1000, "remaining": 1000}]),
    ]
    sequencer.append(Submission([filler("northbank"), filler("lakeside")], companions=companions))
    return Faults(engine), sequencer


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("times", [1, 2, 1000])
def test_whatever_breaks_the_log_stays_sound_and_says_the_truth(engine: Engine, way: Way, times: int) -> None:
    faults, sequencer = prepare(engine)
    outcomes: dict[str, Receipt | Exception] = {}
    broken = 0
    for nth in range(100):
        fill_tile(engine, sequencer)
        faults.arm(nth, way, times)
        outcomes |= submit_as_group(engine, sequencer, [f"{nth}.{i}" for i in range(GROUP)])
        faults.disarm()
        check(engine, outcomes, 1000)
        if not faults.hit:
            break
        broken += 1
    # Begin, heads, budgets, leaves, records, tiles, head rows, companions, spends, work and commit: each was broken once.
    assert not faults.hit
    assert broken >= 16
    assert all(isinstance(outcome, Receipt | LogError) for outcome in outcomes.values())
    after = sequencer.append(submission("after"))
    assert after.placed[0].tenant_id == "northbank"
    sequencer.close()
    verify_logs(engine)


def test_what_broke_a_group_costs_its_submissions_nothing(engine: Engine) -> None:
    faults, sequencer = prepare(engine)
    for way in WAYS:
        for nth in range(2, 12):  # After the transaction has begun, and before it is committed.
            names = [f"{way}.{nth}.{i}" for i in range(GROUP)]
            with writers_held(engine, "lakeside", "northbank"):
                # The first is taken alone; the others wait behind it, and are a group.
                first = sequencer.submit(submission(f"{way}.{nth}"))
                while sequencer.queued():
                    threading.Event().wait(0.001)
                futures = [sequencer.submit(submission(name)) for name in names]
                first.add_done_callback(lambda _, nth=nth, way=way: faults.arm(nth, way))
            outcomes: dict[str, Receipt | Exception] = {
                name: future.result(30) for name, future in zip(names, futures, strict=True)
            }
            assert faults.hit
            faults.disarm()
            assert len(outcomes) == GROUP
    sequencer.close()
    verify_logs(engine)


def test_a_commit_that_says_it_failed_and_did_not_is_not_made_twice(engine: Engine) -> None:
    sequencer = Sequencer(engine)
    # On PostgreSQL a log is begun in a transaction of its own; the commit that breaks off is to be the entry's.
    sequencer.append(Submission([NewEntry("northbank", "decision", "northbank", "northbank", b"first")]))
    commit = engine.dialect.do_commit
    broken: list[bool] = []

    def commit_and_fail(connection: Any) -> None:
        commit(connection)
        if not broken:
            broken.append(True)
            raise sqlite3.OperationalError("lost connection, injected")

    engine.dialect.do_commit = commit_and_fail
    receipt = sequencer.append(Submission([NewEntry("northbank", "decision", "northbank", "northbank", b"once")]))
    assert sequencer.counters.recovered_commits == 1
    sequencer.close()
    assert [report.size for report in verify_logs(engine)] == [2]
    assert receipt.placed[0].index == 1


def test_a_commit_whose_outcome_cannot_be_learnt_is_told_so(engine: Engine) -> None:
    sequencer = Sequencer(engine)
    # On PostgreSQL a log is begun in a transaction of its own; the commit that breaks off is to be the entry's.
    sequencer.append(Submission([NewEntry("northbank", "decision", "northbank", "northbank", b"first")]))
    commit = engine.dialect.do_commit
    broken: list[str] = []

    def commit_and_fail(connection: Any) -> None:
        commit(connection)
        broken.append("commit")
        raise sqlite3.OperationalError("lost connection, injected")

    def stay_broken(*_args: Any) -> None:
        if broken:
            raise sqlite3.OperationalError("still no connection, injected")

    engine.dialect.do_commit = commit_and_fail
    event.listen(engine, "before_cursor_execute", stay_broken)
    with pytest.raises(LogUnavailable) as told:
        sequencer.append(Submission([NewEntry("northbank", "decision", "northbank", "northbank", b"once")]))
    assert told.value.may_be_logged
    engine.dialect.do_commit = commit
    broken.clear()
    assert (
        sequencer.append(Submission([NewEntry("northbank", "decision", "northbank", "northbank", b"two")]))
        .placed[0]
        .index
        == 2
    )
    sequencer.close()
    verify_logs(engine)


def test_a_thread_that_ends_unexpectedly_leaves_nobody_waiting(engine: Engine) -> None:
    def clock_ms() -> int:
        raise SystemExit

    sequencer = Sequencer(engine, clock_ms=clock_ms)
    with pytest.raises(LogUnavailable):
        sequencer.append(Submission([NewEntry("northbank", "decision", "northbank", "northbank", b"x")]), timeout_s=10)
    assert not sequencer.is_alive()
    with pytest.raises(LogUnavailable):
        sequencer.submit(Submission([NewEntry("northbank", "decision", "northbank", "northbank", b"x")]))
    verify_logs(engine)
