"""Processes that append to the logs of one database, to be killed or broken. Found through ``sys.path`` by ``conftest.py``."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

from sqlalchemy import Engine

from licet_engine.log import store
from licet_engine.log.fsck import verify_logs
from licet_engine.store import db
from licet_engine.store.tables import FactBlob

TENANTS = ("northbank", "lakeside")

# For every line "NAME TOTAL IN_FLIGHT TRACED" it is given, a child appends TOTAL submissions, or until it is killed, with so many in
# flight, and prints what became of each. A child that is to be traced waits for its tracer. The parent has no thread and no connection,
# so a child begins as a fresh process would, without the time to import.
_PROGRAM = textwrap.dedent(
    """
    import os, sys, threading, time
    from pathlib import Path
    import psycopg
    import sqlalchemy.dialects.postgresql.psycopg
    from licet_engine.log.errors import LogUnavailable
    from licet_engine.log.sequencer import Sequencer
    from licet_engine.log.submission import Insert, NewEntry, Submission
    from licet_engine.store import db
    from licet_engine.store.tables import FactBlob

    def tell(*words):
        # One write is one line, whole or not at all.
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())

    def append(name, total, in_flight, traced):
        sequencer = Sequencer(db.open_engine(Path(sys.argv[1]).read_text()), max_group=64)
        if traced:
            tell("ready")
            while "TracerPid:\\t0\\n" in Path("/proc/self/status").read_text():
                time.sleep(0.001)
        room = threading.Semaphore(in_flight)
        failures = []

        def told(word, future):
            error = future.exception()
            if error is not None:
                failures.append(error)
                tell("unknown" if isinstance(error, LogUnavailable) and error.may_be_logged else "refused", word)
            else:
                tell("logged", word, *(placed.index for placed in future.result().placed))
            room.release()

        for count in range(total):
            word = f"{name}-{count}"
            room.acquire()
            entries = [NewEntry(t, "decision", t, t, word.encode()) for t in ("northbank", "lakeside")]
            rows = [{"tenant_id": "northbank", "digest_hex": word, "body": b"{}"}]
            future = sequencer.submit(Submission(entries, companions=[Insert(FactBlob, rows)], bump=["northbank"]))
            future.add_done_callback(lambda future, word=word: told(word, future))
        sequencer.close()
        return min(len(failures), 100)

    for line in sys.stdin:
        name, total, in_flight, traced = line.split()
        pid = os.fork()
        if pid == 0:
            tell("pid", os.getpid())
            os._exit(append(name, int(total), int(in_flight), traced == "True"))
        tell("end", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
)


class Appender:
    """A process that appends, or its children in turn.

    Args:
        path: Holds what `open_engine` takes.

    Attributes:
        pid: The child that appends now.
        acknowledged: What was logged, and where, by its text.
        refused: What was said not to be logged.
        unknown: Of what it was said that nobody can know.
    """

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # The sequencer's warnings of what is broken on purpose.
            text=True,
            bufsize=1,
        )
        self.acknowledged: dict[str, tuple[int, int]] = {}
        self.refused: set[str] = set()
        self.unknown: set[str] = set()
        self.pid = 0

    def start(self, name: str, total: int, *, in_flight: int = 96, traced: bool = False) -> None:
        """Begin a child; one that is to be traced waits for that."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{name} {total} {in_flight} {traced}\n")
        word, pid = self._line().split()
        assert word == "pid"
        self.pid = int(pid)
        if traced:
            assert self._line().split() == ["ready"]

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def wait(self) -> int:
        """Take what is told until the child ends; return how it ended."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            what, word, *places = line.split()
            match what:
                case "end":
                    return int(word)
                case "logged":
                    self.acknowledged[word] = (int(places[0]), int(places[1]))
                case "refused":
                    self.refused.add(word)
                case "unknown":
                    self.unknown.add(word)
                case _:
                    raise AssertionError(line)
        raise AssertionError("the appender ended")

    def close(self) -> None:
        """End it."""
        self.process.communicate(timeout=30)
        assert self.process.returncode == 0


def check(engine: Engine, *appenders: Appender) -> Counter[str]:
    """Verify that the logs are sound and that everything that was told of them is true; return what is in them.

    The logs are computed again from the first leaf on. What was acknowledged stands where it was said to, once; what was refused stands
    nowhere; every submission is whole, in both logs and in the table.
    """
    tenant_ids = [report.tenant_id for report in verify_logs(engine)]
    logs = {}
    with db.read_transaction(engine) as connection:
        for tenant_id in tenant_ids:
            # A commit that comes late may have come since.
            size = store.read_head(connection, tenant_id).size
            logs[tenant_id] = [
                (entry.record or b"").decode() for entry in store.read_entries(connection, tenant_id, 0, size)
            ]
        facts_version = store.read_head(connection, "northbank").facts_version
        rows = connection.execute(FactBlob.__table__.select()).all()
    counted = Counter(logs.get("northbank", []))
    assert counted == Counter(logs.get("lakeside", [])) == Counter(row.digest_hex for row in rows)
    assert set(counted.values()) <= {1}
    assert facts_version == sum(counted.values())
    for appender in appenders:
        for word, (index, other_index) in appender.acknowledged.items():
            assert logs["northbank"][index] == logs["lakeside"][other_index] == word
        assert not appender.refused & set(counted), "what was said not to be logged is"
    return counted
