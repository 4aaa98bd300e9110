"""The directory log: what it commits to of every log, made once for each change, and never of a log that went back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text, update

from databases import Database
from licet_adapters.conformance import World
from licet_attestations import merkle
from licet_attestations.directory import verify_archive_file, verify_opening
from licet_attestations.errors import VerificationError
from licet_attestations.leaf import DIRECTORY, Leaf
from licet_attestations.pairs import PairsMap, verify_pair
from licet_attestations.signer.rules import SignerRules
from licet_attestations.signer.state import CheckpointState, FileStorage
from licet_engine.log import directory, store
from licet_engine.log.directory import Directory
from licet_engine.log.errors import LogCorrupt, NoSuchEntry
from licet_engine.log.fsck import fsck
from licet_engine.log.notary import Notary
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import NewEntry, Submission
from licet_engine.store import db


class Logs:
    """A database with logs in it, and a directory of them."""

    def __init__(self, world: World, engine: Engine, folder: Path) -> None:
        self.world = world
        self.engine = engine
        self.sequencer = Sequencer(engine, clock_ms=world.clock)
        # The signer of the world, with a memory of its own.
        state = CheckpointState(FileStorage(folder / "logs"))
        self.notary = Notary(engine, SignerRules(world.keystore, state, world.clock))
        self.directory = self.another()

    def another(self) -> Directory:
        """A directory of another api."""
        return Directory(self.engine, self.sequencer, self.notary)

    def grow(self, tenant: str = "northbank", *, actor: str = "", kind: str = "decision", count: int = 1) -> None:
        entries = [NewEntry(tenant, kind, actor or tenant, tenant, b'{"v":1}') for _ in range(count)]
        self.sequencer.append(Submission(entries))

    def leaves(self, tenant: str = "northbank") -> list[Leaf]:
        with db.read_transaction(self.engine) as connection:
            return [entry.leaf for entry in store.read_entries(connection, tenant, 0, 10_000)]

    def size(self, tenant: str = DIRECTORY) -> int:
        with db.read_transaction(self.engine) as connection:
            return store.read_head(connection, tenant).size

    def problems(self) -> list[str]:
        return [problem for report in fsck(self.engine) for problem in report.problems]

    def change(self, statement: str) -> None:
        with db.write_transaction(self.engine) as connection:
            connection.execute(text(statement))


@pytest.fixture
def logs(prepared: Database, tmp_path: Path) -> Iterator[Logs]:
    engine = prepared.open()
    made = Logs(World(tmp_path / "world"), engine, tmp_path)
    yield made
    made.sequencer.close()
    engine.dispose()


def verify(logs: Logs, tenant: str, at: Directory | None = None) -> int:
    """See that what the directory has of a log is what its leaves make; return how far it is."""
    found = (at or logs.directory).opened(tenant)
    opened = verify_opening(found.document, logs.world.keystore.trust_root, tenant)
    leaves = logs.leaves(tenant)[: opened.state.size]
    with db.read_transaction(logs.engine) as connection:
        assert opened.state.root == store.root_at(connection, tenant, opened.state.size)
    assert opened.state.pairs_root == found.pairs.root() == PairsMap.of(leaves).root()
    assert opened.checkpoint.size == logs.size()
    return opened.state.size


def test_an_entry_is_made_where_a_log_grew_and_only_then(logs: Logs) -> None:
    assert not logs.directory.turn()
    logs.grow(count=3)
    logs.grow("lakeside")
    assert logs.directory.turn()
    assert not logs.directory.turn(), "its own entry is no change"
    assert logs.size() == 1
    assert (verify(logs, "northbank"), verify(logs, "lakeside")) == (3, 1)
    logs.grow("northbank", actor="lakeside", kind="attempt")
    assert verify(logs, "northbank") == 4, "who asks has the directory go on"
    assert logs.size() == 2
    assert verify(logs, "lakeside") == 1
    assert logs.problems() == []


def test_a_pair_that_is_there_and_one_that_is_not_are_proved(logs: Logs) -> None:
    logs.grow(count=3)
    logs.grow(actor="lakeside", kind="attempt", count=2)
    logs.directory.turn()
    logs.grow(actor="lakeside", kind="attempt")
    found = logs.directory.opened("northbank")
    pair = found.pairs.get("lakeside", "northbank")
    assert pair is not None
    assert (pair.count, pair.first, pair.last, dict(pair.kinds)) == (3, 3, 5, {"attempt": 3})
    for actor in ("lakeside", "hillside"):
        proof = found.pairs.prove(actor, "northbank")
        verify_pair(found.state.pairs_root, actor, "northbank", found.pairs.get(actor, "northbank"), proof)


def test_several_apis_make_one_directory(logs: Logs) -> None:
    first, second = logs.directory, logs.another()
    logs.grow(count=2)
    assert first.turn()
    assert not second.turn()
    logs.grow()
    assert second.turn()
    assert not first.turn()
    logs.grow(actor="lakeside", kind="attempt")
    assert verify(logs, "northbank", first) == verify(logs, "northbank", second) == 4
    assert verify(logs, "northbank", logs.another()) == 4, "it is taken up from what is stored"
    assert logs.size() == 3
    assert logs.problems() == []


def test_one_that_comes_second_with_what_it_read_before_makes_no_entry(
    logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = logs.another()
    logs.grow()
    count = late._count

    def count_late(tenant: str, before: PairsMap) -> tuple[PairsMap, bytes]:
        counted = count(tenant, before)
        logs.directory.turn()
        return counted

    monkeypatch.setattr(late, "_count", count_late)
    assert not late.turn()
    assert logs.size() == 1
    assert verify(logs, "northbank", late) == 1
    assert logs.problems() == []


def test_a_long_log_is_counted_a_piece_at_a_time(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "MAX_COUNTED", 40)
    logs.grow(count=100)
    logs.grow("lakeside")
    sizes = []
    while logs.directory.turn():
        sizes.append(verify(logs, "northbank"))
    assert sizes[-1] == 100
    assert len(set(sizes)) > 1
    assert logs.problems() == []


def test_a_log_that_went_back_is_not_committed_to(logs: Logs) -> None:
    logs.grow(count=3)
    logs.grow("lakeside")
    logs.directory.turn()
    with db.write_transaction(logs.engine) as connection:
        connection.execute(update(store.HEADS).where(store.HEADS.c.tenant_id == "northbank").values(size=2))
    logs.grow("lakeside")
    with pytest.raises(LogCorrupt, match="northbank is shorter"):
        logs.directory.turn()
    assert "northbank" in logs.directory.fault
    assert logs.size() == 1


def test_an_archive_is_given_what_ties_it_to_the_directory(logs: Logs) -> None:
    logs.grow(count=3)
    logs.grow(actor="lakeside", kind="attempt", count=2)
    for size, made_again in ((5, True), (3, False)):
        data = logs.directory.archive_file("northbank", size)
        leaves = logs.leaves()[:size]
        root = merkle.root(leaf.hash() for leaf in leaves)
        given: dict[str, Any] = {"first": 0, "end": size, "size": size, "root": root, "leaves": leaves}
        opened, is_made_again = verify_archive_file(data, logs.world.keystore.trust_root, "northbank", **given)
        assert (opened.state.size, is_made_again) == (5, made_again)
        with pytest.raises(VerificationError):
            verify_archive_file(
                data, logs.world.keystore.trust_root, "northbank", **(given | {"root": merkle.leaf_hash(b"")})
            )


def test_a_log_without_entries_is_not_in_it(logs: Logs) -> None:
    logs.grow()
    with pytest.raises(NoSuchEntry, match="empty"):
        logs.directory.opened("lakeside")


def test_pairs_that_were_changed_are_not_gone_on_from(logs: Logs) -> None:
    logs.grow(actor="lakeside", kind="attempt", count=2)
    logs.directory.turn()
    logs.change("DELETE FROM directory_pair WHERE actor = 'lakeside'")
    with pytest.raises(LogCorrupt, match="pairs"):
        logs.another().opened("northbank")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("UPDATE directory_pair SET count = 7 WHERE of_tenant = 'northbank'", "other pairs"),
        ("DELETE FROM directory_pair", "other pairs"),
        ("UPDATE directory_state SET size = 9 WHERE of_tenant = 'northbank'", "which it never had"),
        ("UPDATE directory_state SET root = pairs_root WHERE of_tenant = 'lakeside'", "another root"),
        ("UPDATE directory_state SET pairs_root = root WHERE of_tenant = 'lakeside'", "other pairs"),
        ("DELETE FROM directory_state WHERE of_tenant = 'lakeside'", "commits to something else"),
        ("UPDATE directory_head SET leaf_index = 4", "commits to something else"),
        ("DELETE FROM directory_head", "cannot be opened"),
    ],
)
def test_what_is_damaged_of_it_is_found(logs: Logs, damage: str, told: str) -> None:
    logs.grow(count=3)
    logs.grow("lakeside")
    logs.directory.turn()
    assert logs.problems() == []
    logs.change(damage)
    assert any(told in problem for problem in logs.problems()), logs.problems()
