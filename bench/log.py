"""Log appends per second with every commit synced, beside what the disk could do at most, on SQLite and on PostgreSQL; and how fast fsck is.

Each append is what a durable decision is: an entry with header, salt and record, and its row in the index of decisions. Closed loops of
asyncio clients each await one append before the next, as the HTTP server's decision routes do; groups of a given size come back to back. The
limit of the disk is how often it syncs 4 KiB that were written over, measured before and after each figure, since a busy machine changes it from one
second to the next. The share is durable appends for each sync that the disk could have done: of one writer at most 100%, and above it where
many share a sync.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.engine import URL

from licet_engine.init import prepare_database
from licet_engine.log.fsck import fsck, verify_logs
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import Insert, NewEntry, Submission
from licet_engine.settings import load_settings
from licet_engine.store import db, migrations
from licet_engine.store.access import Role
from licet_engine.store.tables import Decision

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from postgres_server import PostgresServer  # The line above finds it.

GROUP_SIZES = (1, 16, 256)
CLIENTS = (1, 16, 256)
FSCK_ENTRIES = 20_000
RECORD_BYTES = 900

MakeDatabase = Callable[[], Path | URL]
"""Makes an empty database with all tables."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured of one kind of load.

    Attributes:
        name: Database and load.
        appends_per_s: How many appends became durable.
        commits_per_s: In how many transactions.
        syncs_per_s: How often the disk could have synced 4 KiB.
    """

    name: str
    appends_per_s: float
    commits_per_s: float
    syncs_per_s: float

    @property
    def share(self) -> float:
        """Durable appends for each sync that the disk could have done."""
        return self.appends_per_s / self.syncs_per_s


def decision(number: int) -> Submission:
    """One durable decision: its record, and its row in the index."""
    filling = "x" * RECORD_BYTES

    def record(time_ms: int) -> bytes:
        return b'{"filling":"%b","time_ms":%d,"v":1}' % (filling.encode(), time_ms)

    row = {
        "tenant_id": "northbank",
        "id": f"{number:032x}",
        "action": "model.promote",
        "principal": 'Person::"northbank/ada"',
        "resource": "northbank/credit-risk@1",
        "allowed": True,
    }
    placed = Insert(Decision, [row], placed={"leaf_index": (0, "index"), "at_ms": (0, "time_ms")})
    return Submission(
        [NewEntry("northbank", "decision", "northbank", "northbank", record)],
        expect={"northbank": 0},
        companions=[placed],
    )


def syncs_per_s(folder: Path, seconds: float) -> float:
    """How often 4 KiB are written over and synced, one after the other."""
    file = os.open(folder / "synced", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.pwrite(file, bytes(4096), 0)
        os.fsync(file)
        made, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            os.pwrite(file, made.to_bytes(8, "big") * 512, 0)
            os.fdatasync(file)
            made += 1
        return made / (time.perf_counter() - began)
    finally:
        os.close(file)


def groups(engine: Engine, size: int, seconds: float) -> tuple[float, float]:
    """Appends and commits per second in groups of ``size``, on SQLite."""
    sequencer = Sequencer(engine, max_group=size)
    sequencer.append(decision(0))
    made, began, before = 0, time.perf_counter(), sequencer.counters.groups
    while time.perf_counter() - began < seconds:
        # One group ahead, so that the thread never waits for us.
        with db.write_lock(engine):
            futures = [sequencer.submit(decision(made + at + 1)) for at in range(2 * size)]
        for future in futures:
            future.result()
        made += len(futures)
    took = time.perf_counter() - began
    sequencer.close()
    assert [report.size for report in verify_logs(engine)] == [made + 1]
    return made / took, (sequencer.counters.groups - before) / took


async def clients(engine: Engine, count: int, seconds: float) -> tuple[float, float]:
    """Appends and commits per second of clients that each await one append before the next."""
    sequencer = Sequencer(engine)
    await sequencer.submit_async(decision(0))
    made, began, before = 0, time.perf_counter(), sequencer.counters.groups

    async def client() -> None:
        nonlocal made
        while time.perf_counter() - began < seconds:
            made += 1
            await sequencer.submit_async(decision(made))

    await asyncio.gather(*(client() for _ in range(count)))
    took = time.perf_counter() - began
    sequencer.close()
    assert [report.size for report in verify_logs(engine)] == [made + 1]
    return made / took, (sequencer.counters.groups - before) / took


def measure(make: MakeDatabase, folder: Path, name: str, load: Callable[[Engine], tuple[float, float]]) -> Figure:
    """Measure a load on a database of its own, between two looks at the disk."""
    engine = db.open_engine(make(), every_tenant=True)
    try:
        before = syncs_per_s(folder, 0.3)
        appends, commits = load(engine)
        return Figure(name, appends, commits, (before + syncs_per_s(folder, 0.3)) / 2)
    finally:
        engine.dispose()


def fsck_per_s(make: MakeDatabase, entries: int) -> float:
    """Entries that fsck checks in a second."""
    engine = db.open_engine(make(), every_tenant=True)
    try:
        sequencer = Sequencer(engine)
        for future in [sequencer.submit(decision(number)) for number in range(entries // 2)]:
            future.result()
        for future in [sequencer.submit(decision(number)) for number in range(entries // 2, entries)]:
            future.result()
        sequencer.close()
        began = time.perf_counter()
        (report,) = fsck(engine)
        took = time.perf_counter() - began
        assert (report.size, report.problems) == (entries, [])
        return entries / took
    finally:
        engine.dispose()


def sqlite(folder: Path) -> MakeDatabase:
    """SQLite databases in a folder."""
    made = 0

    def make() -> Path:
        nonlocal made
        made += 1
        path = folder / f"{made}.db"
        engine = db.open_engine(path)
        migrations.upgrade(engine)
        engine.dispose()
        return path

    return make


def postgres(server: PostgresServer, folder: Path) -> MakeDatabase:
    """Databases of a server that syncs."""
    template = server.create()
    urls = server.write_urls(template, folder / "urls")
    prepare_database(load_settings({}, data=folder, database_urls=str(urls)))
    return lambda: server.url(server.create(like=template), Role.OWNER)


def run(seconds: float, entries: int) -> tuple[list[Figure], dict[str, float]]:
    """Measure everything; the loads, and the entries per second of fsck by database."""
    figures: list[Figure] = []
    rates: dict[str, float] = {}
    with ExitStack() as stack:
        # NOTE: Not in the system's temporary folder, which may be in memory, where a sync costs nothing. A PostgreSQL server lies there all the
        # same, for its socket's path must be short: what is measured of it beside the disk here holds where both are one file system.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-")))
        server = PostgresServer(durable=True)
        stack.callback(server.close)
        (folder / "postgres").mkdir()
        kinds = {"SQLite": sqlite(folder), "PostgreSQL": postgres(server, folder / "postgres")}
        for name, make in kinds.items():
            for count in CLIENTS:
                load = f"{name}, {count} writer{'s' if count > 1 else ''}"
                figures.append(
                    measure(
                        make, folder, load, lambda engine, count=count: asyncio.run(clients(engine, count, seconds))
                    )
                )
        for size in GROUP_SIZES:
            load = f"SQLite, groups of {size}"
            figures.append(
                measure(kinds["SQLite"], folder, load, lambda engine, size=size: groups(engine, size, seconds))
            )
        for name, make in kinds.items():
            rates[name] = fsck_per_s(make, entries)
    return figures, rates


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each figure is measured (default 2)")
    parser.add_argument("--entries", type=int, default=FSCK_ENTRIES, help="entries that fsck checks (default 20000)")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    arguments = parser.parse_args()
    figures, rates = run(arguments.seconds, arguments.entries)
    if arguments.format == "json":
        told = [asdict(figure) | {"share": figure.share} for figure in figures]
        print(json.dumps({"loads": told, "fsck_entries_per_s": rates}))
        return
    base = figures[0].appends_per_s
    print("log appends, each with a record of about 900 bytes and its row in the decision index; every commit synced")
    print(f"{'load':<24} {'appends/s':>10} {'of one':>8} {'commits/s':>10} {'disk syncs/s':>13} {'share':>7}")
    for each in figures:
        print(
            f"{each.name:<24} {each.appends_per_s:>10,.0f} {each.appends_per_s / base:>7.1f}x {each.commits_per_s:>10,.0f}"
            f" {each.syncs_per_s:>13,.0f} {each.share:>7.0%}"
        )
    print(f"{'fsck':<24} {'entries/s':>10} {'of SQLite':>9}")
    for name, rate in rates.items():
        print(f"{name:<24} {rate:>10,.0f} {rate / rates['SQLite']:>9.0%}")


if __name__ == "__main__":
    main()
