"""Checkpoints: signed by the signer's own rules, stored before they are handed on, never of another history."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from sqlalchemy import Engine, delete, func, select

from databases import Database
from licet_adapters.conformance import World
from licet_attestations import merkle
from licet_attestations.checkpoint import verify_checkpoint
from licet_attestations.errors import LicetAttestationError, SignerRefused, SignerUnavailable
from licet_attestations.signer.rules import SignerRules
from licet_attestations.signer.state import CheckpointState, FileStorage
from licet_engine.log import store
from licet_engine.log.errors import LogCorrupt, LogPutBack
from licet_engine.log.fsck import fsck
from licet_engine.log.notary import Notary
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import NewEntry, Submission
from licet_engine.store import db


class Log:
    """A database with logs in it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._sequencer = Sequencer(self.engine)

    def grow(self, tenant: str = "northbank", count: int = 1, record: bytes = b'{"v":1}') -> None:
        entries = [NewEntry(tenant, "decision", tenant, tenant, record) for _ in range(count)]
        self._sequencer.append(Submission(entries))

    def head(self, tenant: str = "northbank") -> store.Head:
        with db.read_transaction(self.engine) as connection:
            return store.read_head(connection, tenant)

    def stored(self, tenant: str = "northbank") -> tuple[int, str] | None:
        with db.read_transaction(self.engine) as connection:
            newest = (
                select(store.CHECKPOINTS.c.size, store.CHECKPOINTS.c.note)
                .where(store.CHECKPOINTS.c.tenant_id == tenant)
                .order_by(store.CHECKPOINTS.c.size.desc())
            )
            row = connection.execute(newest).first()
        return None if row is None else (row.size, row.note)

    def count_stored(self) -> int:
        with db.read_transaction(self.engine) as connection:
            return int(connection.execute(select(func.count()).select_from(store.CHECKPOINTS)).scalar_one())

    def become(self, other: Log) -> None:
        """Hold what another holds, beside what only this one does."""
        with db.read_transaction(other.engine) as connection:
            tables = (store.LEAVES, store.RECORDS, store.HEADS)
            rows = {table: [dict(row) for row in connection.execute(table.select()).mappings()] for table in tables}
        with db.write_transaction(self.engine) as connection:
            for table, found in rows.items():
                for tenant in {row["tenant_id"] for row in found}:
                    connection.execute(delete(table).where(table.c.tenant_id == tenant))
                connection.execute(table.insert(), found)

    def cut(self, tenant: str = "northbank") -> None:
        """Lose the last entry, as if it had never been."""
        with db.write_transaction(self.engine) as connection:
            head = store.read_head(connection, tenant)
            hashes = [store.read_hash(connection, tenant, at) for at in range(head.size - 1)]
            frontier = merkle.Frontier()
            frontier.append_many(hashes)
            for table in (store.RECORDS, store.LEAVES):
                connection.execute(
                    delete(table).where(table.c.tenant_id == tenant, table.c.leaf_index == head.size - 1)
                )
            last_ms = store.read_entry(connection, tenant, head.size - 2).leaf.time_ms
            values = {
                "last_time_ms": last_ms,
                "size": frontier.size,
                "root": frontier.root(),
                "frontier": b"".join(frontier.hashes()),
            }
            connection.execute(store.HEADS.update().where(store.HEADS.c.tenant_id == tenant).values(values))

    def close(self) -> None:
        self._sequencer.close()
        self.engine.dispose()


class Troubled:
    """The signer behind a connection that may break before or after it has signed."""

    def __init__(self, signer: SignerRules) -> None:
        self._signer = signer
        self.broken = ""
        self.signed = 0

    def sign_checkpoint(self, tenant: str, size: int, root: bytes, proof: Sequence[bytes]) -> str:
        if self.broken == "before":
            raise SignerUnavailable("the signer does not answer")
        note = self._signer.sign_checkpoint(tenant, size, root, proof)
        self.signed += 1
        if self.broken == "after":
            raise SignerUnavailable("the signer's answer was lost")
        return note

    def last_checkpoint(self, tenant: str) -> tuple[int, bytes]:
        if self.broken == "away":
            raise SignerUnavailable("the signer does not answer")
        return self._signer.last_checkpoint(tenant)


@pytest.fixture
def world(tmp_path: Path) -> World:
    folder = tmp_path / "world"
    folder.mkdir(mode=0o700)
    return World(folder)


@pytest.fixture
def log(prepared: Database) -> Iterator[Log]:
    log = Log(prepared.open())
    yield log
    assert [report for report in fsck(log.engine) if report.problems] == []
    log.close()


@pytest.fixture
def other_engine(
    prepared: Database, make_database: Callable[..., AbstractContextManager[Database]]
) -> Iterator[Engine]:
    """Another database of the same kind."""
    with make_database(prepared.kind) as other:
        engine = other.open()
        yield engine
        engine.dispose()


@pytest.fixture
def signer(world: World) -> Troubled:
    return Troubled(world.signer)


@pytest.fixture
def notary(log: Log, signer: Troubled) -> Notary:
    return Notary(log.engine, signer)


def verify(world: World, log: Log, note: str, size: int, tenant: str = "northbank") -> None:
    """Verify as an auditor would: by the pinned keys, for this tenant's log, and that it is of the log as it was."""
    trust = world.keystore.trust_root
    checkpoint = verify_checkpoint(note, trust.origin(tenant), trust.keys("log"))
    with db.read_transaction(log.engine) as connection:
        root = store.root_at(connection, tenant, size)
    assert (checkpoint.size, checkpoint.root) == (size, root)


def test_a_checkpoint_is_of_the_whole_log_signed_and_stored(world: World, log: Log, notary: Notary) -> None:
    log.grow(count=5)
    size, note = notary.checkpoint("northbank")
    assert size == 5
    verify(world, log, note, 5)
    assert log.stored() == (5, note)


def test_a_checkpoint_of_one_log_is_none_of_another(world: World, log: Log, notary: Notary) -> None:
    log.grow()
    _, note = notary.checkpoint("northbank")
    trust = world.keystore.trust_root
    with pytest.raises(LicetAttestationError):
        verify_checkpoint(note, trust.origin("lakeside"), trust.keys("log"))
    assert log.stored("lakeside") is None


def test_each_checkpoint_extends_the_one_before(world: World, log: Log, notary: Notary) -> None:
    # Over the edges of tiles: each proof is verified by the signer, or it would not sign.
    total = 0
    for count in (1, 1, 2, 3, 120, 128, 1, 1, 254, 2, 300):
        log.grow(count=count)
        total += count
        size, note = notary.checkpoint("northbank")
        assert size == total
        verify(world, log, note, total)
    assert log.count_stored() == 11


def test_what_is_covered_already_is_not_signed_again(log: Log, notary: Notary, signer: Troubled) -> None:
    log.grow(count=3)
    first = notary.checkpoint("northbank")
    signer.broken = "before"
    for min_size in (0, 1, 3):
        assert notary.checkpoint("northbank", min_size=min_size) == first
    assert signer.signed == 1


def test_what_is_not_covered_yet_is_signed(world: World, log: Log, notary: Notary) -> None:
    log.grow(count=3)
    notary.checkpoint("northbank")
    log.grow(count=2)
    # An older one does for who needs no more, without a word to the signer.
    assert notary.checkpoint("northbank", min_size=3)[0] == 3
    size, note = notary.checkpoint("northbank", min_size=4)
    assert size == 5
    verify(world, log, note, 5)


def test_a_notary_that_starts_anew_goes_on_where_the_signer_stood(world: World, log: Log, notary: Notary) -> None:
    log.grow(count=3)
    notary.checkpoint("northbank")
    again = Notary(log.engine, world.signer)
    assert again.checkpoint("northbank")[0] == 3
    log.grow(count=4)
    # And so does a signer that starts anew: it has its last checkpoint from its own disk.
    state = CheckpointState(FileStorage(world.directory / "signer" / "state"))
    size, note = Notary(log.engine, SignerRules(world.keystore, state, world.clock)).checkpoint("northbank")
    assert size == 7
    verify(world, log, note, 7)


def test_two_notaries_take_turns(world: World, log: Log) -> None:
    notaries = [Notary(log.engine, world.signer) for _ in range(2)]
    for turn in range(6):
        log.grow(count=turn + 1)
        size, note = notaries[turn % 2].checkpoint("northbank")
        verify(world, log, note, size)
    assert log.count_stored() == 6


def test_a_checkpoint_that_was_signed_and_lost_does_not_hinder_the_next(
    world: World, log: Log, notary: Notary, signer: Troubled
) -> None:
    log.grow(count=3)
    signer.broken = "after"
    with pytest.raises(SignerUnavailable):
        notary.checkpoint("northbank")
    assert (signer.signed, log.stored()) == (1, None)
    signer.broken = ""
    log.grow(count=2)
    size, note = notary.checkpoint("northbank")
    assert size == 5
    verify(world, log, note, 5)


FULL = {
    "sqlite": (
        "CREATE TRIGGER full BEFORE INSERT ON log_checkpoint BEGIN SELECT RAISE(ABORT, 'disk full'); END",
        "DROP TRIGGER full",
    ),
    "postgresql": (
        'ALTER TABLE log_checkpoint ADD CONSTRAINT "disk full" CHECK (size < 0)',
        'ALTER TABLE log_checkpoint DROP CONSTRAINT "disk full"',
    ),
}


def test_a_checkpoint_that_could_not_be_stored_is_not_handed_on(log: Log, notary: Notary) -> None:
    fill, empty = FULL[log.engine.dialect.name]
    log.grow(count=3)
    with db.write_transaction(log.engine) as connection:
        connection.exec_driver_sql(fill)
    for _ in range(2):
        with pytest.raises(Exception, match="disk full"):
            notary.checkpoint("northbank", min_size=3)
    with db.write_transaction(log.engine) as connection:
        connection.exec_driver_sql(empty)
    assert notary.checkpoint("northbank", min_size=3) == log.stored()


def test_a_signer_that_is_away_is_said_and_nothing_is_stored(log: Log, notary: Notary, signer: Troubled) -> None:
    log.grow()
    signer.broken = "before"
    with pytest.raises(SignerUnavailable):
        notary.checkpoint("northbank")
    with pytest.raises(SignerUnavailable):
        notary.sign_all()
    assert log.stored() is None
    signer.broken = ""
    assert notary.checkpoint("northbank")[0] == 1


def test_another_history_is_not_signed_however_long_it_is(other_engine: Engine, world: World, log: Log) -> None:
    log.grow(count=4)
    Notary(log.engine, world.signer).checkpoint("northbank")
    other = Log(other_engine)
    try:
        for count in (4, 5, 300):
            other.grow(count=count, record=b'{"v":2}')
            with pytest.raises(SignerRefused) as refusal:
                Notary(other.engine, world.signer).checkpoint("northbank")
            assert refusal.value.code == "signer.fork"
        assert other.count_stored() == 0
    finally:
        other.close()
    # The true history can still go on.
    log.grow()
    assert Notary(log.engine, world.signer).checkpoint("northbank")[0] == 5


def test_where_one_log_lost_its_end_nothing_of_that_database_is_signed_or_appended_to(
    other_engine: Engine, world: World, log: Log
) -> None:
    # The database is restored from a backup: northbank's log is shorter than what was signed.
    log.grow(count=4)
    log.grow("lakeside", count=2)
    Notary(log.engine, world.signer).sign_all()
    restored = Log(other_engine)
    try:
        restored.grow(count=2)
        restored.grow("riverside", count=3)
        notary = Notary(restored.engine, world.signer)
        with pytest.raises(LogCorrupt, match="northbank") as corrupt:
            notary.sign_all()
        assert "riverside" not in str(corrupt.value)
        # What it holds of the others would be signed in place of what the newer database holds.
        assert restored.count_stored() == 0
        # It is not forgotten by the next round either.
        with pytest.raises(LogCorrupt, match="northbank"):
            notary.sign_all()
        with pytest.raises(LogPutBack) as told:
            notary.verify_logs({"riverside"})
        assert "northbank" not in str(told.value)
        # Once it holds what was signed, it goes on.
        restored.become(log)
        assert notary.sign_all() == 3
        notary.verify_logs({"northbank", "riverside"})
    finally:
        restored.close()


def test_a_log_that_was_put_back_is_not_appended_to_even_once(
    other_engine: Engine, world: World, log: Log, signer: Troubled
) -> None:
    log.grow(count=4)
    Notary(log.engine, world.signer).sign_all()
    restored = Log(other_engine)
    restored.grow(count=2)
    notary = Notary(restored.engine, signer)
    sequencer = Sequencer(restored.engine, verify_logs=notary.verify_logs)
    entry = NewEntry("northbank", "decision", "northbank", "northbank", b"lost")
    try:
        # While the signer is away nobody is kept from deciding; once it answers, nothing more is appended.
        signer.broken = "away"
        sequencer.append(Submission([entry]))
        signer.broken = ""
        threading.Event().wait(1.1)
        with pytest.raises(LogPutBack):
            sequencer.append(Submission([entry]))
        assert restored.head().size == 3
    finally:
        sequencer.close()
        restored.close()


def test_a_log_that_goes_back_under_its_sequencer_is_not_appended_to(log: Log, notary: Notary) -> None:
    sequencer = Sequencer(log.engine, verify_logs=notary.verify_logs, put_back=notary.refuse)
    entries = [NewEntry("northbank", "decision", "northbank", "northbank", b"%d" % n) for n in range(3)]
    for entry in entries:
        sequencer.append(Submission([entry]))
    head = log.head()
    log.cut()
    try:
        with pytest.raises(LogPutBack):
            sequencer.append(Submission(entries[:1]))
        # Nor to any other, from then on.
        with pytest.raises(LogPutBack):
            sequencer.append(Submission([NewEntry("lakeside", "decision", "lakeside", "lakeside", b"x")]))
        assert log.head().size == head.size - 1
        assert "northbank" in notary.fault
    finally:
        sequencer.close()


def test_every_log_that_grew_is_signed_once(world: World, log: Log, notary: Notary, signer: Troubled) -> None:
    assert notary.sign_all() == 0
    tenants = ("northbank", "lakeside", "platform", "~void")
    for count, tenant in enumerate(tenants, start=1):
        log.grow(tenant, count=count)
    assert notary.sign_all() == 4
    for count, tenant in enumerate(tenants, start=1):
        stored = log.stored(tenant)
        assert stored is not None
        verify(world, log, stored[1], count, tenant)
    assert notary.sign_all() == 0
    log.grow("lakeside")
    assert notary.sign_all() == 1
    assert signer.signed == 5


def test_many_who_ask_at_once_while_the_log_grows_get_what_they_asked_for(
    world: World, log: Log, notary: Notary, signer: Troubled
) -> None:
    log.grow()
    together = threading.Barrier(8)

    def ask(number: int) -> tuple[int, int, str]:
        together.wait(10)
        if number % 4 == 0:
            log.grow(count=number + 1)
        wanted = log.head().size
        size, note = notary.checkpoint("northbank", min_size=wanted)
        return wanted, size, note

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    for wanted, size, note in answers:
        assert size >= wanted
        verify(world, log, note, size)
    assert 1 <= signer.signed <= 4


def test_a_checkpoint_that_was_deleted_here_is_made_again(world: World, log: Log, notary: Notary) -> None:
    log.grow(count=3)
    notary.checkpoint("northbank")
    with db.write_transaction(log.engine) as connection:
        connection.execute(delete(store.CHECKPOINTS))
    size, note = Notary(log.engine, world.signer).checkpoint("northbank")
    assert log.stored() == (size, note)
    verify(world, log, note, 3)
