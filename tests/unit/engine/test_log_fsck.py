"""What is damaged in a stored log is found, and stops that log alone."""

import sys
from pathlib import Path

import pytest
from sqlalchemy import text, update

sys.path.insert(0, str(Path(__file__).parent))
from log_world import Clock, entry, grouped  # The line above finds it.

from databases import Database
from licet_engine.log import store
from licet_engine.log.errors import (
    LogCorrupt,
)
from licet_engine.log.fsck import fsck, verify_logs
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import Submission
from licet_engine.store import db, migrations

DAMAGE = {
    "a changed header": "UPDATE log_leaf SET header = replace(header, 'decision', 'decisiom') WHERE leaf_index = 300",
    "a header that is none": "UPDATE log_leaf SET header = '{}' WHERE leaf_index = 3",
    "a changed hash": "UPDATE log_leaf SET hash = zeroblob(32) WHERE leaf_index = 599",
    "a lost leaf": "DELETE FROM log_leaf WHERE leaf_index = 17",
    "a lost last leaf": "DELETE FROM log_leaf WHERE leaf_index = 599",
    "a lost head": "DELETE FROM log_head",
    "a head of another size": "UPDATE log_head SET size = 599",
    "a head of another root": "UPDATE log_head SET root = zeroblob(32)",
    "a head of another frontier": "UPDATE log_head SET frontier = zeroblob(128)",
    "a head of another time": "UPDATE log_head SET last_time_ms = 0",
    "a changed record": "UPDATE log_record SET record = x'7b7d' WHERE leaf_index = 4",
    "a changed salt": "UPDATE log_record SET salt = zeroblob(32) WHERE leaf_index = 4",
    "a half erased record": "UPDATE log_record SET salt = NULL WHERE leaf_index = 4",
    "a lost record": "DELETE FROM log_record WHERE leaf_index = 599",
    "a record too many": "INSERT INTO log_record VALUES ('northbank', 600, NULL, NULL)",
    "a changed tile": "UPDATE log_tile SET hashes = zeroblob(8192) WHERE level = 0 AND tile_index = 1",
    "a changed upper tile": "UPDATE log_tile SET hashes = zeroblob(64) WHERE level = 1",
    "a lost tile": "DELETE FROM log_tile WHERE level = 0 AND tile_index = 0",
    "a lost upper tile": "DELETE FROM log_tile WHERE level = 1",
    "a tile too many": "INSERT INTO log_tile VALUES ('northbank', 0, 2, zeroblob(32))",
    "a checkpoint of another root": (
        "INSERT INTO log_checkpoint VALUES ('northbank', 1,"
        " 'o' || char(10) || '1' || char(10) || 'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA='"
        " || char(10) || char(10) || char(8212) || ' o AAAAAAAAAAAA' || char(10), 1)"
    ),
    "a checkpoint beyond the log": (
        "INSERT INTO log_checkpoint VALUES ('northbank', 601,"
        " 'o' || char(10) || '601' || char(10) || 'AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA='"
        " || char(10) || char(10) || char(8212) || ' o AAAAAAAAAAAA' || char(10), 1)"
    ),
    "a checkpoint that is none": "INSERT INTO log_checkpoint VALUES ('northbank', 1, 'x', 1)",
    "a log without anything else": "INSERT INTO log_record VALUES ('lakeside', 0, NULL, NULL)",
}


@pytest.fixture(scope="module")
def sound_log(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("log") / "licet.db"
    engine = db.open_engine(path)
    migrations.upgrade(engine)
    sequencer = Sequencer(engine)
    sequencer.append(Submission([entry() for _ in range(600)]))
    sequencer.close()
    assert [(report.size, report.problems) for report in fsck(engine)] == [(600, [])]
    with engine.connect() as connection:
        connection.connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()
    return path.read_bytes()


@pytest.mark.parametrize("damage", DAMAGE)
def test_fsck_finds(tmp_path: Path, sound_log: bytes, damage: str) -> None:
    path = tmp_path / "licet.db"
    path.write_bytes(sound_log)
    engine = db.open_engine(path)
    with db.write_transaction(engine) as connection:
        assert connection.execute(text(DAMAGE[damage])).rowcount > 0
    with pytest.raises(LogCorrupt):
        verify_logs(engine)
    engine.dispose()


def test_fsck_finds_a_record_that_states_another_time(prepared: Database) -> None:
    clock = Clock()
    engine = prepared.open()
    sequencer = Sequencer(engine, clock_ms=clock)
    sequencer.append(Submission([entry(record=b'{"time_ms":1}')]))
    sequencer.close()
    with pytest.raises(LogCorrupt, match="another time"):
        verify_logs(engine)
    engine.dispose()


def test_a_damaged_head_stops_its_own_log_only(prepared: Database) -> None:
    engine = prepared.open()
    sequencer = Sequencer(engine)
    sequencer.append(Submission([entry("northbank"), entry("lakeside")]))
    with db.write_transaction(engine) as connection:
        connection.execute(update(store.HEADS).where(store.HEADS.c.tenant_id == "northbank").values(frontier=b"x"))
    damaged, sound = grouped(sequencer, engine, [Submission([entry("northbank")]), Submission([entry("lakeside")])])
    assert isinstance(damaged, LogCorrupt)
    assert sound.placed[0].index == 1
    sequencer.close()
    engine.dispose()
