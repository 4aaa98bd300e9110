"""Processes are killed while they append, and several append at once: no fork, no loss, nothing twice."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from queue import Queue

import pytest
from appenders import TENANTS, Appender, check  # Found by conftest.py.
from sqlalchemy import Engine

from databases import Database
from licet_engine.log.fsck import verify_logs
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import Insert, NewEntry, Submission
from licet_engine.store.tables import FactBlob
from rounds import rounds

ROUNDS = rounds(15)
KILLS = rounds(500)


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
    times, within_s = (ROUNDS, 0.15) if prepared.kind == "sqlite" else (ROUNDS // 3, 0.5)
    appender = Appender(path)
    seed = os.environ.get("LICET_TEST_SEED", "kill")
    chance = random.Random(seed)  # noqa: S311  # Chooses moments, no secrets.
    for nth in range(times):
        appender.start(f"round{nth}", 1_000_000)
        killer = threading.Timer(chance.uniform(0.0, within_s), os.kill, (appender.pid, signal.SIGKILL))
        killer.start()
        assert appender.wait() == -signal.SIGKILL
        killer.join()
        check(engine, appender)
    appender.close()
    assert len(appender.acknowledged) > times, f"too little was appended to tell (seed {seed})"
    # And on it goes from there.
    sequencer = Sequencer(engine)
    sequencer.append(
        Submission(
            [NewEntry(tenant_id, "decision", tenant_id, tenant_id, b"after") for tenant_id in TENANTS],
            companions=[Insert(FactBlob, [{"tenant_id": "northbank", "digest_hex": "after", "body": b"{}"}])],
            bump=["northbank"],
        )
    )
    sequencer.close()
    assert check(engine, appender)["after"] == 1


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
    assert sum(check(engine, *appenders.values()).values()) == 800
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


def test_three_processes_are_killed_five_hundred_times_while_they_append_and_nothing_is_lost(
    engine: Engine, path: Path, prepared: Database
) -> None:
    kills = KILLS if prepared.kind == "sqlite" else KILLS // 5
    seed = os.environ.get("LICET_TEST_SEED", "many")
    chance = random.Random(seed)  # noqa: S311  # Chooses moments, no secrets.
    appenders = [Appender(path) for _ in range(3)]
    ends: Queue[Appender] = Queue()
    names = count()

    def appends(appender: Appender) -> None:
        appender.start(f"life{next(names)}", 1_000_000)
        threading.Thread(target=lambda: ends.put(appender) if appender.wait() == -signal.SIGKILL else None).start()

    for appender in appenders:
        appends(appender)
    for nth in range(kills):
        time.sleep(chance.uniform(0.0, 0.03))
        os.kill(chance.choice(appenders).pid, signal.SIGKILL)
        appends(ends.get(timeout=60))
        if nth % 100 == 99:
            verify_logs(engine)  # While two others append.
    for appender in appenders:
        os.kill(appender.pid, signal.SIGKILL)
    for _ in appenders:
        ends.get(timeout=60)
    for appender in appenders:
        appender.close()
    found = check(engine, *appenders)
    assert sum(found.values()) >= sum(len(appender.acknowledged) for appender in appenders) > kills, seed
