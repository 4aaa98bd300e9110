"""The sequencer and the stored log."""

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text
from sqlmodel import select

sys.path.insert(0, str(Path(__file__).parent))
from log_world import Clock, entry, grouped, tenant_row  # The line above finds it.

from databases import Database, writers_held
from licet_attestations import keys
from licet_attestations.checkpoint import Checkpoint, sign_checkpoint
from licet_attestations.leaf import verify_commitment
from licet_attestations.merkle import EMPTY_ROOT, verify_consistency, verify_inclusion
from licet_engine.log import store
from licet_engine.log.errors import (
    InvalidSubmission,
    LogBusy,
    LogUnavailable,
    NoSuchEntry,
    SpendRefused,
    StaleFacts,
    SubmissionConflict,
)
from licet_engine.log.fsck import fsck, verify_logs
from licet_engine.log.sequencer import MAX_TRIES, Sequencer
from licet_engine.log.submission import Insert, NewEntry, Spend, Submission, UnderLock, Update
from licet_engine.store import db
from licet_engine.store.tables import Budget, Decision, FactBlob, LogRecord, Operation, Principal


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def engine(prepared: Database) -> Iterator[Engine]:
    engine = prepared.open()
    yield engine
    assert [report for report in fsck(engine) if report.problems] == []
    engine.dispose()


@pytest.fixture
def sequencer(engine: Engine, clock: Clock) -> Iterator[Sequencer]:
    sequencer = Sequencer(engine, clock_ms=clock)
    yield sequencer
    sequencer.close()


# --- What is answered ---------------------------------------------------------------------------------------------------


def test_an_entry_is_stored_as_committed_header_and_record(engine: Engine, sequencer: Sequencer, clock: Clock) -> None:
    record = json.dumps({"v": 1}).encode()
    receipt = sequencer.append(Submission([NewEntry("northbank", "attempt", "lakeside", "northbank", record)]))
    (placed,) = receipt.placed
    with db.read_transaction(engine) as connection:
        stored = store.read_entry(connection, "northbank", 0)
        head = store.read_head(connection, "northbank")
    assert stored.salt is not None
    assert stored.record == verify_commitment(stored.leaf, stored.salt, record)
    assert placed.header == stored.header.encode()
    assert (stored.leaf.kind, stored.leaf.actor, stored.leaf.owner, stored.leaf.time_ms) == (
        "attempt",
        "lakeside",
        "northbank",
        clock.now_ms,
    )
    assert (head.size, head.root, head.last_time_ms) == (1, stored.hash, clock.now_ms)


def test_an_answer_is_given_only_once_another_process_can_read_it(engine: Engine, sequencer: Sequencer) -> None:
    seen: list[int] = []
    future = sequencer.submit(Submission([entry()]))

    def look(_future: Any) -> None:
        with db.read_transaction(engine) as connection:
            seen.append(store.read_head(connection, "northbank").size)

    future.add_done_callback(look)
    future.result(10)
    sequencer.close()
    assert seen == [1]


def test_records_of_equal_content_have_different_commitments(sequencer: Sequencer) -> None:
    placed = sequencer.append(Submission([entry(), entry()])).placed
    assert placed[0].header != placed[1].header


def test_one_submission_stands_in_several_logs_at_one_time(engine: Engine, sequencer: Sequencer, clock: Clock) -> None:
    clock.now_ms = 9_000
    sequencer.append(Submission([entry("northbank")]))
    clock.now_ms = 8_500
    receipt = sequencer.append(Submission([entry("lakeside", kind="attempt"), entry("northbank", kind="attempt")]))
    assert [(p.tenant_id, p.index, p.time_ms) for p in receipt.placed] == [
        ("lakeside", 0, 9_000),
        ("northbank", 1, 9_000),
    ]
    with db.read_transaction(engine) as connection:
        assert {t: h.size for t, h in store.read_heads(connection, ["lakeside", "northbank"]).items()} == {
            "lakeside": 1,
            "northbank": 2,
        }


def test_a_record_is_made_for_the_time_its_header_states(engine: Engine, sequencer: Sequencer, clock: Clock) -> None:
    sequencer.append(Submission([entry()]))
    clock.now_ms -= 60_000
    receipt = sequencer.append(Submission([entry(record=lambda time_ms: json.dumps({"time_ms": time_ms}).encode())]))
    with db.read_transaction(engine) as connection:
        stored = store.read_entry(connection, "northbank", 1)
    assert json.loads(stored.record or b"")["time_ms"] == stored.leaf.time_ms == receipt.placed[0].time_ms


def test_time_never_runs_backwards_and_a_clock_that_does_is_counted(sequencer: Sequencer, clock: Clock) -> None:
    times = []
    for now_ms in (5_000_000, 4_999_999, 1_000_000, 5_000_001):
        clock.now_ms = now_ms
        times.append(sequencer.append(Submission([entry()])).placed[0].time_ms)
    assert times == [5_000_000, 5_000_000, 5_000_000, 5_000_001]
    assert sequencer.counters.clock_steps_back == 1


def test_coroutines_await_their_entries_with_one_wake_up_for_a_group(engine: Engine, sequencer: Sequencer) -> None:
    async def ask() -> tuple[list[int], int]:
        loop = asyncio.get_running_loop()
        wake_ups = 0
        call = loop.call_soon_threadsafe

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal wake_ups
            wake_ups += 1
            return call(*args, **kwargs)

        loop.call_soon_threadsafe = counted
        with db.write_transaction(engine):
            futures = [sequencer.submit_async(Submission([entry()])) for _ in range(100)]
        receipts = await asyncio.gather(*futures)
        return [receipt.placed[0].index for receipt in receipts], wake_ups

    indices, wake_ups = asyncio.run(ask())
    assert indices == list(range(100))
    assert wake_ups <= 2  # The group that was taken before the others came, and theirs.


def test_a_loop_that_is_gone_loses_its_answer_but_not_its_entry(engine: Engine, sequencer: Sequencer) -> None:
    async def ask_and_leave() -> None:
        sequencer.submit_async(Submission([entry()]))

    with db.write_transaction(engine):
        asyncio.run(ask_and_leave())
    assert sequencer.append(Submission([entry()])).placed[0].index == 1


# --- Facts, budgets, companions -----------------------------------------------------------------------------------------


def test_a_decision_on_stale_facts_fails_alone(engine: Engine, sequencer: Sequencer) -> None:
    fresh, writer, stale, other = grouped(
        sequencer,
        engine,
        [
            Submission([entry()], expect={"northbank": 0}),
            Submission([entry(kind="hold")], expect={"northbank": 0}, bump=["northbank"]),
            Submission([entry()], expect={"northbank": 0}),
            Submission([entry("lakeside")], expect={"lakeside": 0}),
        ],
    )
    assert isinstance(stale, StaleFacts)
    assert (stale.tenant_id, stale.expected, stale.found) == ("northbank", 0, 1)
    assert [receipt.facts_versions for receipt in (fresh, writer, other)] == [
        {"northbank": 0},
        {"northbank": 1},
        {"lakeside": 0},
    ]
    assert sequencer.counters.failed_groups == 0
    with db.read_transaction(engine) as connection:
        head = store.read_head(connection, "northbank")
    assert (head.size, head.facts_version) == (2, 1)


def facts_version(engine: Engine) -> int:
    with db.read_transaction(engine, "northbank") as connection:
        return store.read_head(connection, "northbank").facts_version


def change_of_facts() -> Submission:
    return Submission([entry(kind="facts")], bump=("northbank",))


def test_what_is_stale_each_time_is_made_under_the_lock_where_no_fact_can_change(
    engine: Engine, sequencer: Sequencer
) -> None:
    other = Sequencer(engine)
    made_on: list[int] = []
    late: list[Any] = []

    def make() -> Submission:
        made_on.append(facts_version(engine))
        if len(made_on) <= MAX_TRIES:
            other.append(change_of_facts())
        else:
            late.append(other.submit(change_of_facts()))
            # Whoever changes facts is held up until this is committed, however long it takes to make.
            with pytest.raises(TimeoutError):
                late[0].result(timeout=0.2)
            assert facts_version(engine) == made_on[-1]
        return Submission([entry()], expect={"northbank": made_on[-1]})

    receipt = sequencer.append_fresh(make)
    changed = late[0].result()
    other.close()
    assert made_on == [0, 1, 2, 3]
    assert receipt.placed[0].index == 3
    assert (changed.placed[0].index, changed.facts_versions["northbank"]) == (4, 4)
    assert facts_version(engine) == 4


def test_what_making_under_the_lock_raises_comes_back_and_nothing_is_logged(
    engine: Engine, sequencer: Sequencer
) -> None:
    def fail() -> Submission:
        raise LookupError("there is nothing to be decided")

    futures = [sequencer.submit(UnderLock(frozenset({"northbank"}), fail)), sequencer.submit(Submission([entry()]))]
    with pytest.raises(LookupError, match="nothing to be decided"):
        futures[0].result()
    assert futures[1].result().placed[0].index == 0
    with pytest.raises(SubmissionConflict, match="other logs"):
        sequencer.append(UnderLock(frozenset({"northbank"}), lambda: Submission([entry("lakeside")])))
    with pytest.raises(InvalidSubmission, match="1 to"):
        sequencer.append(UnderLock(frozenset({"northbank"}), lambda: Submission([])))
    with pytest.raises(InvalidSubmission, match="must name the tenants"):
        sequencer.submit(UnderLock(frozenset(), lambda: Submission([entry()])))
    with db.read_transaction(engine, "northbank", "lakeside") as connection:
        assert store.read_head(connection, "northbank").size == 1
        assert store.read_head(connection, "lakeside").size == 0


def test_two_made_under_the_lock_one_after_the_other_both_see_what_the_other_changed(
    engine: Engine, sequencer: Sequencer
) -> None:
    def make() -> Submission:
        return Submission([entry()], expect={"northbank": facts_version(engine)}, bump=("northbank",))

    with writers_held(engine, "platform"):
        first = sequencer.submit(Submission([entry("platform")]))
        while sequencer.queued():
            threading.Event().wait(0.001)
        futures = [sequencer.submit(UnderLock(frozenset({"northbank"}), make)) for _ in range(3)]
        futures.append(sequencer.submit(change_of_facts()))
    assert first.result()
    # Those that are made under the lock come after what was handed in with them, each in a transaction of its own.
    assert [future.result().facts_versions["northbank"] for future in futures] == [2, 3, 4, 1]


def test_what_is_costly_to_make_is_never_made_under_the_lock(engine: Engine, sequencer: Sequencer) -> None:
    calls: list[int] = []

    def make() -> Submission:
        calls.append(facts_version(engine))
        sequencer.append(change_of_facts())
        return Submission([entry()], expect={"northbank": calls[-1]})

    with pytest.raises(StaleFacts):
        sequencer.append_fresh(make, locks=False)
    assert len(calls) > MAX_TRIES


def test_a_decision_may_rest_on_the_facts_of_a_tenant_whose_log_it_does_not_write(sequencer: Sequencer) -> None:
    assert sequencer.append(Submission([entry("platform")], bump=["northbank"])).facts_versions["northbank"] == 1
    with pytest.raises(StaleFacts):
        sequencer.append(Submission([entry("platform")], expect={"northbank": 0}))
    sequencer.append(Submission([entry("platform")], expect={"northbank": 1}))


def test_two_of_one_group_cannot_spend_the_same(engine: Engine, sequencer: Sequencer) -> None:
    budget = Insert(Budget, [{"tenant_id": "northbank", "name": "gpu", "limit": 10, "remaining": 10}])
    sequencer.append(Submission([entry()], companions=[tenant_row(), budget]))
    spend = Submission([entry()], spend=[Spend("northbank", "gpu", 4), Spend("northbank", "gpu", 1)])
    outcomes = grouped(sequencer, engine, [spend, spend, spend])
    assert [isinstance(outcome, SpendRefused) for outcome in outcomes] == [False, False, True]
    assert (outcomes[2].remaining, outcomes[2].amount) == (0, 4)
    assert sequencer.counters.failed_groups == 0  # Found out before anything was written, at nobody else's cost.
    with db.tenant_session(engine, "northbank") as session:
        assert session.exec(select(Budget.remaining)).one() == 0
    with pytest.raises(SpendRefused):
        sequencer.append(Submission([entry()], spend=[Spend("northbank", "no-such", 0)]))


def test_companions_are_committed_with_the_entry_and_know_its_place(
    engine: Engine, sequencer: Sequencer, clock: Clock
) -> None:
    decision = {"tenant_id": "northbank", "id": "d1", "action": "a", "principal": "p", "resource": "r", "allowed": True}
    blob = Insert(FactBlob, [{"tenant_id": "northbank", "digest_hex": "00", "body": b"{}"}], if_absent=True)
    placed = {"leaf_index": (1, "index"), "at_ms": (1, "time_ms")}
    people = [
        # In a group, and across submissions, tables are filled in the order of foreign keys.
        Submission(
            [entry()],
            companions=[
                Insert(Principal, [{"tenant_id": "northbank", "name": "ada", "kind": "person", "created_at_ms": 1}])
            ],
        ),
        Submission([entry()], companions=[tenant_row()]),
    ]
    outcomes = grouped(
        sequencer,
        engine,
        [*people, Submission([entry(), entry()], companions=[blob, blob, Insert(Decision, [decision], placed=placed)])],
    )
    with db.tenant_session(engine, "northbank") as session:
        row = session.exec(select(Decision)).one()
        assert (row.leaf_index, row.at_ms) == (outcomes[2].placed[1].index, clock.now_ms)
        person = session.exec(select(Principal)).one()
        assert (person.roles, person.active) == ([], True)  # Columns left out got their defaults.


def test_an_update_that_does_not_find_what_it_expects_fails_alone(engine: Engine, sequencer: Sequencer) -> None:
    row = {
        "tenant_id": "northbank",
        "id": "o1",
        "action": "a",
        "resource": "r",
        "state": "accepted",
        "decision_id": "d",
        "principal": "p",
        "created_at_ms": 1,
        "updated_at_ms": 1,
    }
    key = {"tenant_id": "northbank", "id": "o1", "state": "accepted", "result": None}
    start = Update(
        Operation, key, {"state": "running", "result": {"attempt": 1}}, placed={"updated_at_ms": (0, "time_ms")}
    )
    outcomes = grouped(
        sequencer,
        engine,
        [
            Submission([entry()], companions=[Insert(Operation, [row])]),
            Submission([entry()], companions=[start]),
            Submission([entry()], companions=[start]),
            Submission([entry()]),
        ],
    )
    assert [type(outcome).__name__ for outcome in outcomes] == ["Receipt", "Receipt", "SubmissionConflict", "Receipt"]
    with db.tenant_session(engine, "northbank") as session:
        operation = session.exec(select(Operation)).one()
        assert (operation.state, operation.result) == ("running", {"attempt": 1})
        assert operation.updated_at_ms > 1
    assert sequencer.counters.failed_groups == 2  # The group, and the one of it that failed again.


def test_an_update_of_many_rows_states_how_many(engine: Engine, sequencer: Sequencer) -> None:
    rows = [{"tenant_id": "northbank", "name": name, "limit": 1, "remaining": 1} for name in "abc"]
    sequencer.append(Submission([entry()], companions=[tenant_row(), Insert(Budget, rows)]))
    key = {"tenant_id": "northbank", "limit": 1}
    with pytest.raises(SubmissionConflict):
        sequencer.append(Submission([entry()], companions=[Update(Budget, key, {"remaining": 0}, expected_rows=2)]))
    sequencer.append(Submission([entry()], companions=[Update(Budget, key, {"remaining": 0}, expected_rows=3)]))
    sequencer.append(
        Submission([entry()], companions=[Update(Budget, key | {"limit": 9}, {"remaining": 7}, expected_rows=None)])
    )
    with db.tenant_session(engine, "northbank") as session:
        assert session.exec(select(Budget.remaining)).all() == [0, 0, 0]


def test_a_row_that_is_there_already_fails_its_submission_alone_and_whole(engine: Engine, sequencer: Sequencer) -> None:
    twice = Submission([entry("northbank"), entry("platform")], companions=[tenant_row()], bump=["northbank"])
    first, second, third = grouped(sequencer, engine, [twice, twice, Submission([entry("lakeside")])])
    assert isinstance(second, SubmissionConflict)
    assert (first.placed[0].index, third.placed[0].index) == (0, 0)
    with db.read_transaction(engine) as connection:
        heads = store.read_heads(connection, ["northbank", "platform"])
    assert (heads["northbank"].size, heads["northbank"].facts_version, heads["platform"].size) == (1, 1, 2)


def test_what_is_enqueued_is_enqueued_with_the_entry_or_not_at_all(engine: Engine, clock: Clock) -> None:
    with db.write_transaction(engine) as connection:
        connection.execute(text("CREATE TABLE work (item TEXT)"))

    def enqueue(connection: Connection, item: Any) -> None:
        connection.execute(text("INSERT INTO work VALUES (:item)"), {"item": item})
        if item == "bad":
            raise RuntimeError(item)

    sequencer = Sequencer(engine, enqueue=enqueue, clock_ms=clock)
    good, bad, other = grouped(
        sequencer, engine, [Submission([entry()], enqueue=[item]) for item in ("good", "bad", "other")]
    )
    assert isinstance(bad, LogUnavailable)
    assert not bad.may_be_logged
    assert (good.placed[0].index, other.placed[0].index) == (0, 1)
    sequencer.close()
    with db.read_transaction(engine) as connection:
        assert connection.execute(text("SELECT item FROM work")).scalars().all() == ["good", "other"]


def test_an_item_is_not_lost_where_there_is_nowhere_to_enqueue_to(sequencer: Sequencer) -> None:
    with pytest.raises(InvalidSubmission):
        sequencer.append(Submission([entry()], enqueue=["work"]))


# --- What is refused ----------------------------------------------------------------------------------------------------

FOREIGN = {"tenant_id": "lakeside", "name": "x", "limit": 1, "remaining": 1}


@pytest.mark.parametrize(
    "submission",
    [
        Submission([]),
        Submission([entry()] * 1025),
        Submission([entry("Not A Tenant")]),
        Submission([entry()], expect={"../x": 1}),
        Submission([entry()], spend=[Spend("lakeside", "gpu", 1)]),
        Submission([entry()], spend=[Spend("northbank", "gpu", -1)]),
        Submission([entry()], companions=[Insert(Budget, [FOREIGN])]),
        Submission([entry()], companions=[Insert(Budget, [{"name": "x", "limit": 1, "remaining": 1}])]),
        Submission([entry()], companions=[Update(Budget, {"tenant_id": "lakeside", "name": "x"}, {"remaining": 9})]),
        Submission([entry()], companions=[Update(Budget, {"name": "x"}, {"remaining": 9})]),
        Submission([entry()], companions=[Update(Budget, {"tenant_id": "northbank"}, {"tenant_id": "lakeside"})]),
        Submission([entry()], companions=[Insert(Budget, [], placed={"limit": (1, "index")})]),
    ],
)
def test_a_submission_that_contradicts_itself_is_refused_at_once(sequencer: Sequencer, submission: Submission) -> None:
    with pytest.raises(InvalidSubmission):
        sequencer.submit(submission)


def test_an_entry_without_a_valid_header_or_record_fails_alone(engine: Engine, sequencer: Sequencer) -> None:
    def broken(_time_ms: int) -> bytes:
        raise KeyError("broken")

    outcomes = grouped(
        sequencer,
        engine,
        [
            Submission([entry(), entry(kind="Not A Kind")]),
            Submission([entry(), entry(record=broken)]),
            Submission([entry(), entry(record="text")]),
            Submission([entry()]),
        ],
    )
    assert [type(outcome).__name__ for outcome in outcomes] == ["InvalidSubmission", "KeyError", "TypeError", "Receipt"]
    assert outcomes[3].placed[0].index == 0
    assert sequencer.counters.failed_groups == 0


def test_too_much_waiting_is_refused_and_nothing_waits_for_ever(engine: Engine) -> None:
    sequencer = Sequencer(engine, max_queued=3)
    with db.write_transaction(engine):
        accepted = [sequencer.submit(Submission([entry()]))]
        while sequencer.queued():
            threading.Event().wait(0.001)
        accepted += [sequencer.submit(Submission([entry()])) for _ in range(3)]
        with pytest.raises(LogBusy):
            sequencer.submit(Submission([entry()]))
    assert [future.result(10).placed[0].index for future in accepted] == [0, 1, 2, 3]
    sequencer.close()


def test_closing_logs_what_waits_and_refuses_what_comes(engine: Engine) -> None:
    sequencer = Sequencer(engine)
    futures = [sequencer.submit(Submission([entry()])) for _ in range(50)]
    sequencer.close()
    assert [future.result(0).placed[0].index for future in futures] == list(range(50))
    with pytest.raises(LogUnavailable):
        sequencer.submit(Submission([entry()]))
    assert not sequencer.is_alive()


def test_what_is_cancelled_while_it_waits_is_not_logged(engine: Engine, sequencer: Sequencer) -> None:
    with db.write_transaction(engine):
        first = sequencer.submit(Submission([entry()]))
        while sequencer.queued():
            threading.Event().wait(0.001)
        second = sequencer.submit(Submission([entry()]))
        assert second.cancel()
        assert not first.cancel()
    assert first.result(10).placed[0].index == 0
    assert sequencer.append(Submission([entry()])).placed[0].index == 1


# --- Reading and proving ------------------------------------------------------------------------------------------------


def test_proofs_hold_over_tile_borders_and_for_older_sizes(engine: Engine, sequencer: Sequencer) -> None:
    for _ in range(6):
        sequencer.append(Submission([entry() for _ in range(130)]))
    with db.read_transaction(engine) as connection:
        hashes = [e.hash for e in store.read_entries(connection, "northbank", 0, 10_000)]
        assert len(hashes) == 780
        for size in (1, 2, 255, 256, 257, 511, 512, 513, 780):
            root = store.root_at(connection, "northbank", size)
            for index in {0, size // 2, size - 1}:
                verify_inclusion(
                    hashes[index], index, size, store.inclusion_proof(connection, "northbank", index, size), root
                )
            proof = store.consistency_proof(connection, "northbank", size, 780)
            verify_consistency(size, root, 780, store.root_at(connection, "northbank", 780), proof)
        assert store.root_at(connection, "northbank", 780) == store.read_head(connection, "northbank").root


def test_there_are_no_proofs_of_what_never_was(engine: Engine, sequencer: Sequencer) -> None:
    with db.read_transaction(engine) as connection:
        assert store.root_at(connection, "northbank", 0) == EMPTY_ROOT
    sequencer.append(Submission([entry(), entry(), entry()]))
    with db.read_transaction(engine) as connection:
        for prove in (
            lambda: store.inclusion_proof(connection, "northbank", 0, 4),
            lambda: store.inclusion_proof(connection, "northbank", 3, 3),
            lambda: store.inclusion_proof(connection, "northbank", -1, 3),
            lambda: store.inclusion_proof(connection, "lakeside", 0, 1),
            lambda: store.consistency_proof(connection, "northbank", 0, 4),
            lambda: store.consistency_proof(connection, "northbank", 4, 4),
            lambda: store.consistency_proof(connection, "northbank", 3, 2),
            lambda: store.root_at(connection, "northbank", 4),
            lambda: store.read_entry(connection, "northbank", 3),
            lambda: store.read_entry(connection, "lakeside", 0),
        ):
            with pytest.raises(NoSuchEntry):
                prove()


def test_an_erased_record_leaves_its_leaf_provable(engine: Engine, sequencer: Sequencer) -> None:
    sequencer.append(Submission([entry(), entry()]))
    erase = Update(LogRecord, {"tenant_id": "northbank", "leaf_index": 0}, {"salt": None, "record": None})
    sequencer.append(Submission([entry(kind="erasure")], companions=[erase]))
    with db.read_transaction(engine) as connection:
        stored = store.read_entry(connection, "northbank", 0)
        proof = store.inclusion_proof(connection, "northbank", 0, 3)
        head = store.read_head(connection, "northbank")
    assert (stored.salt, stored.record) == (None, None)
    verify_inclusion(stored.hash, 0, 3, proof, head.root)
    (report,) = verify_logs(engine)
    assert (report.size, report.erased) == (3, 1)


def test_checkpoints_are_kept_and_the_first_of_a_size_stays(engine: Engine, sequencer: Sequencer) -> None:
    sequencer.append(Submission([entry(), entry()]))
    with db.write_transaction(engine) as connection:
        root = store.read_head(connection, "northbank").root
        note = sign_checkpoint(Checkpoint("test/northbank", 2, root), keys.PrivateKey.generate(keys.ED25519))
        store.save_checkpoint(connection, "northbank", 2, note, 5)
        store.save_checkpoint(connection, "northbank", 2, "another", 6)
        kept = select(store.CHECKPOINTS.c.tenant_id, store.CHECKPOINTS.c.size, store.CHECKPOINTS.c.note)
        assert [tuple(row) for row in connection.execute(kept)] == [("northbank", 2, note)]
    verify_logs(engine)
