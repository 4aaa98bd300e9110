"""Processes are killed while they append, and several append at once: no fork, no loss, nothing twice."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from databases import Database
from licet_engine.log import store
from licet_engine.log.fsck import verify_logs
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import Insert, NewEntry, Submission
from licet_engine.store import db
from licet_engine.store.tables import FactBlob
from rounds import rounds

ROUNDS = rounds(15)

# For every line "NAME TOTAL" it is given, a child appends TOTAL submissions, or until it is killed, and prints what was acknowledged.
# The parent has no thread and no connection, so a child begins as a fresh process would, without the time to import.
APPENDER = textwrap.dedent(
    """
    import os, sys, threading
    from pathlib import Path
    import psycopg
    import sqlalchemy.dialects.postgresql.psycopg
    from licet_engine.log.sequencer import Sequencer
    from licet_engine.log.submission import Insert, NewEntry, Submission
    from licet_engine.store import db
    from licet_engine.store.tables import FactBlob

    def tell(*words):
        # One write is one line, whole or not at all.
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())

    def append(name, total):
        sequencer = Sequencer(db.open_engine(Path(sys.argv[1]).read_text()), max_group=64)
        room = threading.Semaphore(96)
        failures = []

        def told(word, future):
            room.release()
            if future.exception() is not None:
                failures.append(future.exception())
                return
            tell("logged", word, *(placed.index for placed in future.result().placed))

        for count in range(total):
            word = f"{name}-{count}"
            room.acquire()
            entries = [NewEntry(t, "decision", t, t, word.encode()) for t in ("northbank", "lakeside")]
            rows = [{"tenant_id": "northbank", "digest_hex": word, "body": b"{}"}]
            future = sequencer.submit(Submission(entries, companions=[Insert(FactBlob, rows)], bump=["northbank"]))
            future.add_done_callback(lambda future, word=word: told(word, future))
        sequencer.close()
        return len(failures)

    for line in sys.stdin:
        name, total = line.split()
        pid = os.fork()
        if pid == 0:
            tell("pid", os.getpid())
            os._exit(append(name, int(total)))
        tell("end", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
)


class Appender:
    """A process that appends, or its children in turn."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", APPENDER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.acknowledged: dict[str, tuple[int, int]] = {}
        self.pid = 0

    def start(self, name: str, total: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{name} {total}\n")
        word, pid = self.process.stdout.readline().split()
        assert word == "pid"
        self.pid = int(pid)

    def wait(self) -> int:
        """Take what is acknowledged until the child ends; return how it ended."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            what, *rest = line.split()
            if what == "end":
                return int(rest[0])
            word, index, other_index = rest
            self.acknowledged[word] = (int(index), int(other_index))
        raise AssertionError("the appender ended")

    def close(self) -> None:
        self.process.communicate(timeout=30)
        assert self.process.returncode == 0


def check(engine: Engine, acknowledged: dict[str, tuple[int, int]]) -> Counter[str]:
    """Verify the logs from the first leaf on, and that what was acknowledged stands where it was said to, once."""
    sizes = {report.tenant_id: report.size for report in verify_logs(engine)}
    logs = {}
    with db.read_transaction(engine) as connection:
        for tenant_id, size in sizes.items():
            logs[tenant_id] = [
                (entry.record or b"").decode() for entry in store.read_entries(connection, tenant_id, 0, size)
            ]
        facts_version = store.read_head(connection, "northbank").facts_version
        rows = connection.execute(FactBlob.__table__.select()).all()
    counted = Counter(logs.get("northbank", []))
    assert counted == Counter(logs.get("lakeside", [])) == Counter(row.digest_hex for row in rows)
    assert set(counted.values()) <= {1}
    assert facts_version == sum(counted.values())
    for word, (index, other_index) in acknowledged.items():
        assert logs["northbank"][index] == logs["lakeside"][other_index] == word
    return counted


@pytest.fixture
def path(prepared: Database, tmp_path: Path) -> Path:
    return prepared.write(tmp_path / "database")


@pytest.fixture
def engine(prepared: Database) -> Iterator[Engine]:
    engine = prepared.open()
    yield engine
    engine.dispose()


def test_a_killed_process_loses_nothing_that_it_acknowledged(engine: Engine, path: Path, prepared: Database) -> None:
    # On PostgreSQL a connection must be made first, in each round.
    count, within_s = (ROUNDS, 0.15) if prepared.kind == "sqlite" else (ROUNDS // 3, 0.5)
    appender = Appender(path)
    seed = os.environ.get("LICET_TEST_SEED", "kill")
    chance = random.Random(seed)  # noqa: S311  # Chooses moments, no secrets.
    for nth in range(count):
        appender.start(f"round{nth}", 1_000_000)
        killer = threading.Timer(chance.uniform(0.0, within_s), os.kill, (appender.pid, signal.SIGKILL))
        killer.start()
        assert appender.wait() == -signal.SIGKILL
        killer.join()
        check(engine, appender.acknowledged)
    appender.close()
    acknowledged = appender.acknowledged
    assert len(acknowledged) > count, f"too little was appended to tell (seed {seed})"
    # And on it goes from there.
    sequencer = Sequencer(engine)
    sequencer.append(
        Submission(
            [
                NewEntry(tenant_id, "decision", tenant_id, tenant_id, b"after")
                for tenant_id in ("northbank", "lakeside")
            ],
            companions=[Insert(FactBlob, [{"tenant_id": "northbank", "digest_hex": "after", "body": b"{}"}])],
            bump=["northbank"],
        )
    )
    sequencer.close()
    check(engine, acknowledged)


def test_two_processes_append_to_the_same_logs_without_a_fork(engine: Engine, path: Path) -> None:
    appenders = {name: Appender(path) for name in ("one", "two")}
    for appender in appenders.values():
        # Neither is to have ended before the other has found its modules.
        appender.start("ready", 0)
        assert appender.wait() == 0
    for name, appender in appenders.items():
        appender.start(name, 400)
    for appender in appenders.values():
        assert appender.wait() == 0
        appender.close()
    acknowledged = appenders["one"].acknowledged | appenders["two"].acknowledged
    assert len(acknowledged) == 800
    assert len(set(acknowledged.values())) == 800
    assert sum(check(engine, acknowledged).values()) == 800
    # They really took turns: neither waited until the other had ended.
    order = [word.partition("-")[0] for word, _ in sorted(acknowledged.items(), key=lambda item: item[1])]
    assert order.index("two") < len(order) - order[::-1].index("one")
    assert order.index("one") < len(order) - order[::-1].index("two")


def test_of_two_processes_only_one_commits_on_the_same_facts(engine: Engine, path: Path) -> None:
    script = textwrap.dedent(
        """
        import json, sys
        from pathlib import Path
        from licet_engine.log import store
        from licet_engine.log.errors import StaleFacts
        from licet_engine.log.sequencer import Sequencer
        from licet_engine.log.submission import NewEntry, Submission
        from licet_engine.store import db

        engine = db.open_engine(Path(sys.argv[1]).read_text())
        sequencer = Sequencer(engine)
        won, stale = [], 0
        while len(won) < 60:
            with db.read_transaction(engine, "northbank") as connection:
                version = store.read_head(connection, "northbank").facts_version
            entry = NewEntry("northbank", "hold", "northbank", "northbank", b"x")
            try:
                receipt = sequencer.append(Submission([entry], expect={"northbank": version}, bump=["northbank"]))
            except StaleFacts:
                stale += 1
            else:
                assert receipt.facts_versions["northbank"] == version + 1
                won.append(version)
        sequencer.close()
        print(json.dumps([won, stale]))
        """
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    results = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    assert sorted(results[0][0] + results[1][0]) == list(range(120))
    assert [report.size for report in verify_logs(engine)] == [120]
