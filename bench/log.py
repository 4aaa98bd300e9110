"""Log appends per second at group commit, with fsync on.

Each append is what a durable decision is: an entry with header, salt and record, and its row in the index of decisions. First whole groups
of a given size, back to back; then closed loops of asyncio clients that each await one append before the next, as the HTTP
server's decision routes do. ``fsync`` is the bare cost of the disk, for comparison.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from licet_engine.log.fsck import verify_logs
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import Insert, NewEntry, Submission
from licet_engine.store import db, migrations
from licet_engine.store.tables import Decision

GROUP_SIZES = (1, 4, 16, 64, 256, 512)
CLIENTS = (1, 16, 256)
RECORD_BYTES = 900


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


def fsync_ms(folder: Path, rounds: int = 50) -> float:
    """Median time of a 4 KiB write with fsync."""
    took: list[float] = []
    with (folder / "probe").open("wb") as file:
        for _ in range(rounds):
            file.write(b"\0" * 4096)
            file.flush()
            began = time.perf_counter()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - began)
    return statistics.median(took) * 1000


def groups_per_s(path: Path, size: int, seconds: float) -> float:
    """Appends per second in groups of ``size``."""
    engine = db.open_engine(path)
    sequencer = Sequencer(engine, max_group=size)
    sequencer.append(decision(0))
    made, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        # One group ahead, so that the thread never waits for us.
        with db.write_lock(engine):
            futures = [sequencer.submit(decision(made + at + 1)) for at in range(2 * size)]
        for future in futures:
            future.result()
        made += len(futures)
    rate = made / (time.perf_counter() - began)
    sequencer.close()
    assert [report.size for report in verify_logs(engine)] == [made + 1]
    engine.dispose()
    return rate


async def clients_per_s(path: Path, clients: int, seconds: float) -> tuple[float, float]:
    """Appends per second, and per group, of clients that each await one append before the next."""
    engine = db.open_engine(path)
    sequencer = Sequencer(engine)
    began = time.perf_counter()
    made = 0

    async def client() -> None:
        nonlocal made
        while time.perf_counter() - began < seconds:
            made += 1
            await sequencer.submit_async(decision(made))

    await asyncio.gather(*(client() for _ in range(clients)))
    rate = made / (time.perf_counter() - began)
    per_group = sequencer.counters.submissions / sequencer.counters.groups
    sequencer.close()
    verify_logs(engine)
    engine.dispose()
    return rate, per_group


def run(seconds: float = 1.5) -> dict[str, float]:
    """Measure everything, each on a database of its own; return the figures by name."""
    figures: dict[str, float] = {}
    # NOTE: Not in the system's temporary folder, which may be in memory, where fsync costs nothing.
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as name:
        folder = Path(name)
        figures["fsync_ms"] = fsync_ms(folder)
        names = [f"group-{size}" for size in GROUP_SIZES] + [f"clients-{count}" for count in CLIENTS]
        for each in names:
            path = folder / f"{each}.db"
            engine = db.open_engine(path)
            migrations.upgrade(engine)
            engine.dispose()
            kind, number = each.split("-")
            if kind == "group":
                figures[f"appends_per_s_{each}"] = groups_per_s(path, int(number), seconds)
            else:
                rate, per_group = asyncio.run(clients_per_s(path, int(number), seconds))
                figures[f"appends_per_s_{each}"] = rate
                figures[f"appends_per_group_{each}"] = per_group
    return figures


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=1.5, help="how long each figure is measured (default 1.5)")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    arguments = parser.parse_args()
    figures = run(arguments.seconds)
    if arguments.format == "json":
        print(json.dumps(figures))
        return
    print("log appends, each with a record of about 900 bytes and its row in the decision index; synchronous=FULL")
    for name, value in figures.items():
        print(f"  {name:<32} {value:>10.2f}")


if __name__ == "__main__":
    main()
