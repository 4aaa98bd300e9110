"""What lies under the log on PostgreSQL fails: the server's own writes and syncs, and the way to it while a commit is under way.

`strace` has the kernel refuse calls of the server's processes. A sync of its write-ahead log that fails ends all of them (PANIC), and it
recovers from what it finds: what was refused may be there then, or not. A proxy cuts connections at a commit: before the server has it,
before its answer is heard, or so that the commit comes later than the cut. After each fault everything that was told must be true.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from appenders import Appender, check  # Found by conftest.py.
from commit_cutter import CUTS, CommitCutter, Cut  # Found like it.
from sqlalchemy.engine import URL

from databases import KINDS, Database
from licet_engine.init import prepare_database
from licet_engine.settings import load_settings
from licet_engine.store.access import Role
from postgres_server import PostgresServer
from rounds import rounds

sys.path.append(str(Path(__file__).parents[1] / "integration"))
from service_world import poll  # The line above finds it.

STRACE = shutil.which("strace")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("postgresql" not in KINDS, reason="TEST_DATABASES leaves PostgreSQL out"),
]
NTHS = range(1, rounds(4) + 1)
TOTAL = 8


class Place:
    """A server that syncs, with one database that has all tables.

    Attributes:
        server: The server.
        database: The owner's way into the database.
    """

    def __init__(self, folder: Path) -> None:
        self.server = PostgresServer(durable=True)
        name = self.server.create()
        urls = self.server.write_urls(name, folder / "urls")
        prepare_database(load_settings({}, data=folder, database_urls=str(urls)))
        self.database = Database("postgresql", self.server.url(name, Role.OWNER))

    def check(self, appender: Appender) -> int:
        """Check what an appender was told; return how many submissions the logs hold."""
        engine = self.database.open()
        try:
            return sum(check(engine, appender).values())
        finally:
            engine.dispose()

    def is_up(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError), self.server.admin():
            return True
        return False


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    try:
        yield made
    finally:
        made.server.close()


@contextlib.contextmanager
def failing(pid: int, calls: str, error: str, when: str, told: Path) -> Iterator[None]:
    """Have the kernel refuse system calls of a server's processes that begin from now on; ``told`` gets which.

    Each process counts for itself.
    """
    tracer = subprocess.Popen(
        [
            *(str(STRACE), "-f", "-qq", "-o", str(told), "-p", str(pid)),
            *("-e", f"trace={calls}", "-e", f"inject={calls}:error={error}:when={when}"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        status = Path(f"/proc/{pid}/status")
        poll("the tracer", lambda: "TracerPid:\t0\n" not in status.read_text())
        yield
    finally:
        tracer.send_signal(signal.SIGINT)  # It lets go of whom it traces.
        tracer.communicate(timeout=60)


@pytest.mark.skipif(STRACE is None, reason="strace is not installed (Debian: apt-get install strace)")
@pytest.mark.timeout(120 + 60 * len(NTHS))
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("calls", ["fdatasync", "pwrite64"])
def test_whatever_call_fails_under_the_server_what_the_log_says_is_true(
    calls: str, error: str, tmp_path: Path, place: Place
) -> None:
    server = place.server
    appender = Appender(place.database.write(tmp_path / "database"))
    broken = 0
    # The first of each process are those of a commit: a backend has nothing else to sync.
    for nth in NTHS:
        with failing(server.pid, calls, error, str(nth), tmp_path / "told"):
            appender.start(f"n{nth}", TOTAL, in_flight=2)
            appender.wait()
        broken += "(INJECTED)" in (tmp_path / "told").read_text()
        # Where its processes ended, it starts them anew and recovers by itself.
        poll("the server to answer", place.is_up)
        place.check(appender)
    assert broken == len(NTHS), "no call was refused"
    told = len(appender.acknowledged) + len(appender.refused) + len(appender.unknown)
    assert told == TOTAL * len(NTHS)
    assert appender.refused | appender.unknown, "nothing that failed was noticed"
    assert calls != "fdatasync" or "PANIC" in server.log()
    # And on it goes.
    before = place.check(appender)
    appender.start("after", TOTAL, in_flight=2)
    assert appender.wait() == 0
    assert place.check(appender) == before + TOTAL
    appender.close()


@pytest.mark.parametrize("how", CUTS)
def test_a_connection_that_is_cut_at_a_commit_costs_nothing_and_appends_nothing_twice(
    how: Cut, tmp_path: Path, place: Place
) -> None:
    with cutting(place, tmp_path) as (cutter, appender):
        for nth in range(rounds(12)):
            # The first commits are those of the connection itself and of the beginning of a log.
            cutter.arm(how, after=nth)
            appender.start(f"n{nth}", 24, in_flight=2)
            appender.wait()
            cutter.disarm()
            place.check(appender)
        assert cutter.cuts[how] == rounds(12)
        # With a way to ask there is nothing that cannot be known, and what is not there is tried again.
        assert not appender.unknown
        refused = len(appender.refused)
        # Whose connection was not yet made has nothing to ask, and is told that nothing was logged.
        assert refused <= 2 * 3
        assert place.check(appender) == len(appender.acknowledged) == 24 * rounds(12) - refused


@pytest.mark.parametrize("how", CUTS)
def test_where_the_log_cannot_be_asked_either_nobody_is_told_that_nothing_was_logged(
    how: Cut, tmp_path: Path, place: Place
) -> None:
    with cutting(place, tmp_path) as (cutter, appender):
        appender.start("ready", 1)
        assert appender.wait() == 0
        # Five: two of making a connection and two of beginning logs, or so, come first. On a busy machine some cuts come too late for a round.
        for nth in range(5, 29):
            if nth >= 9 and cutter.cuts[how] >= 3 and appender.unknown:
                break
            cutter.arm(how, after=nth, closed_for_s=1.0)
            appender.start(f"n{nth}", 24, in_flight=2)
            appender.wait()
            cutter.disarm()
            place.check(appender)
        assert cutter.cuts[how] >= 3
        assert appender.unknown

        def made() -> int:
            """How many were logged of which nobody could be told so."""
            return place.check(appender) - len(appender.acknowledged)

        assert 0 <= made() <= len(appender.unknown)
        match how:
            case "unsent":
                assert made() == 0
            case "unheard" | "late":
                poll("the last commit", lambda: made() == len(appender.unknown))


@contextlib.contextmanager
def cutting(place: Place, folder: Path) -> Iterator[tuple[CommitCutter, Appender]]:
    """A way to the database that can be cut, and a process that appends by it."""
    cutter = CommitCutter(place.server.sockets)
    assert isinstance(place.database.url, URL)
    url = place.database.url.set(query={"host": str(cutter.folder)})
    appender = Appender(Database("postgresql", url).write(folder / "database"))
    try:
        yield cutter, appender
    finally:
        appender.close()
        cutter.close()
