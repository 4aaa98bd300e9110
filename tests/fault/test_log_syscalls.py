"""System calls fail under the log and under the signer: each kind of write and sync, the n-th of it, once or from then on.

`strace` has the kernel refuse the call; what asked for it is the real SQLite and the real signer's state. A call that is refused so was
not carried out, but what was written before it is in the kernel's cache: a sync that fails may leave behind what a later reader finds.
After each fault the process is killed, the database is opened anew, and everything that was told must be true of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from appenders import Appender, check  # Found by conftest.py.

from databases import Database
from licet_attestations import merkle
from licet_attestations.signer.state import CheckpointState, FileStorage
from rounds import rounds

STRACE = shutil.which("strace")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(STRACE is None, reason="strace is not installed (Debian: apt-get install strace)"),
]
NTHS = range(1, rounds(8) + 1)


@contextlib.contextmanager
def failing(pid: int, calls: str, error: str, when: str, told: Path) -> Iterator[None]:
    """Have the kernel refuse system calls of a process that waits to be traced; ``told`` gets which."""
    tracer = subprocess.Popen(
        [
            *(str(STRACE), "-f", "-qqq", "-o", str(told), "-p", str(pid)),
            *("-e", f"trace={calls}", "-e", f"inject={calls}:error={error}:when={when}"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield
    finally:
        # Once who it traces has ended, it ends as well.
        _, said = tracer.communicate(timeout=60)
        assert not said, said


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("calls", ["pwrite64", "fdatasync", "fsync,ftruncate,fallocate"])
def test_whatever_call_fails_under_the_log_what_it_says_is_true(
    calls: str, error: str, *, lasting: bool, tmp_path: Path, migrated_file: Path
) -> None:
    broken = 0
    database = Database("sqlite", tmp_path / "licet.db")
    appender = Appender(database.write(tmp_path / "database"))
    for nth in NTHS:
        shutil.copyfile(migrated_file, tmp_path / "licet.db")
        for suffix in ("-wal", "-shm"):
            (tmp_path / f"licet.db{suffix}").unlink(missing_ok=True)
        appender.acknowledged.clear()
        appender.refused.clear()
        appender.unknown.clear()
        appender.start(f"n{nth}", 6, in_flight=2, traced=True)
        with failing(appender.pid, calls, error, f"{nth}+" if lasting else str(nth), tmp_path / "told"):
            appender.wait()
        # It ended without closing what it had open: who opens it next recovers what it finds in the write-ahead log.
        broken += "(INJECTED)" in (tmp_path / "told").read_text()
        engine = database.open()
        check(engine, appender)
        engine.dispose()
        assert len(appender.acknowledged) + len(appender.refused) + len(appender.unknown) == 6
        if not lasting:
            assert appender.acknowledged
    appender.close()
    assert broken


# Has heads of a growing log made durable, one after the other, and tells which of them might be signed. It tells by another system call than
# the signer writes with.
SIGNER = textwrap.dedent(
    """
    import hashlib, os, sys, time
    from pathlib import Path
    from licet_attestations import merkle
    from licet_attestations.errors import SignerUnavailable
    from licet_attestations.signer.state import CheckpointState, FileStorage

    def tell(*words):
        os.writev(1, [(" ".join(map(str, words)) + "\\n").encode()])

    leaves = [hashlib.sha256(bytes([index])).digest() for index in range(64)]

    def proof(first, size):
        if first in (0, size):
            return []
        return merkle.consistency_proof(first, size, lambda level, at: merkle.root(leaves[at << level : (at + 1) << level]))

    state = CheckpointState(FileStorage(Path(sys.argv[1])))
    tell("ready")
    status = os.open("/proc/self/status", os.O_RDONLY)
    while b"TracerPid:\\t0\\n" in os.pread(status, 10_000, 0):
        time.sleep(0.001)
    for size in range(1, 9):
        try:
            last = state.last("northbank")
            state.advance("northbank", size, merkle.root(leaves[:size]), proof(last.size if last else 0, size), size)
            tell("signed", size)
        except SignerUnavailable as error:
            tell("unavailable", size)
    """
)


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
@pytest.mark.parametrize("calls", ["write", "fsync", "rename,renameat,renameat2", "openat"])
def test_whatever_call_fails_under_the_signer_it_signs_nothing_that_it_does_not_know_later(
    calls: str, error: str, *, lasting: bool, tmp_path: Path
) -> None:
    told: list[list[str]] = []
    for nth in (1, 2, 5):
        folder = tmp_path / f"state{nth}"
        process = subprocess.Popen(
            [sys.executable, "-c", SIGNER, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with failing(process.pid, calls, error, f"{nth}+" if lasting else str(nth), tmp_path / "told"):
            said, failed = process.communicate(timeout=60)
        assert process.returncode == 0, failed
        lines = [line.split() for line in said.splitlines()]
        assert len(lines) == 8
        told += lines
        signed = [int(size) for what, size in lines if what == "signed"]
        # A new process finds at least what was signed, and it binds.
        last = CheckpointState(FileStorage(folder)).last("northbank")
        assert (last.size if last else 0) >= max(signed, default=0)
        if last is not None:
            leaves = [hashlib.sha256(bytes([index])).digest() for index in range(last.size)]
            assert last.root == merkle.root(leaves)
        assert signed or lasting
    assert ["unavailable"] in [line[:1] for line in told]


DISK_FULL = textwrap.dedent(
    """
    import json, os, shutil, subprocess, sys
    from pathlib import Path
    folder, database = Path(sys.argv[1]), sys.argv[2]
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=True)
    shutil.copyfile(database, folder / "licet.db")
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(max(0, shutil.disk_usage(folder).free - 600_000)))

    from licet_engine.log import store
    from licet_engine.log.errors import LogUnavailable
    from licet_engine.log.fsck import verify_logs
    from licet_engine.log.sequencer import Sequencer
    from licet_engine.log.submission import NewEntry, Submission
    from licet_engine.store import db

    def entry(word):
        return Submission([NewEntry("northbank", "decision", "northbank", "northbank", word.encode() + bytes(2000))])

    engine = db.open_engine(folder / "licet.db", every_tenant=True)
    sequencer = Sequencer(engine)
    outcomes = {}
    for count in range(400):
        word = f"w{count:04}"
        try:
            outcomes[word] = ["logged", sequencer.append(entry(word), 30).placed[0].index]
        except LogUnavailable as error:
            outcomes[word] = ["unknown" if error.may_be_logged else "refused", 0]
    alive = sequencer.is_alive()
    ballast.unlink()
    after = sequencer.append(entry("after"), 30).placed[0].index
    sequencer.close()
    engine.dispose()
    engine = db.open_engine(folder / "licet.db", every_tenant=True)
    (report,) = verify_logs(engine)
    with db.read_transaction(engine) as connection:
        found = [entry.record[:5].decode() for entry in store.read_entries(connection, "northbank", 0, report.size)]
    print(json.dumps({"outcomes": outcomes, "alive": alive, "after": after, "found": found}))
    """
)


def test_a_full_disk_refuses_what_it_cannot_keep_and_goes_on_once_there_is_room(
    tmp_path: Path, migrated_file: Path
) -> None:
    (tmp_path / "disk").mkdir()
    # A file system of its own, seen by this one process.
    ended = subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "--mount"),
            *(sys.executable, "-c", DISK_FULL, str(tmp_path / "disk"), str(migrated_file)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["alive"]
    logged = {word: index for word, (what, index) in told["outcomes"].items() if what == "logged"}
    refused = {word for word, (what, _) in told["outcomes"].items() if what == "refused"}
    assert logged
    assert refused
    found = told["found"]
    assert [found[index] for index in logged.values()] == list(logged)
    assert not refused & set(found)
    assert found[told["after"]] == "after"
    assert len(found) == len(set(found))
