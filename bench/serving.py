"""Serving: what the router costs before the bare model server, and what is lost or late when traffic moves.

- Overhead: 16 connections, each asking again as soon as it is answered, first of the bare model server on its socket, then
  of the router before the same server; both in the sandbox, the router in a process of its own. Medians, interleaved.
- Lost: 100 shifts of all traffic between two versions while the same load runs; every answer that is not 200 is lost.
- Alarm: a version whose 95th percentile breaks its alarm; from the first request it answers to the last.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop

from licet_adapters.conformance.deployments import ENDPOINT, MODEL, NEVER
from licet_adapters.conformance.routing import ServingWorld, body
from licet_adapters.conformance.tabular import write_model
from licet_adapters.sandbox import JobRun, Sandbox, shipped_code
from licet_adapters.serving.replica import JOB, LIMITS, SOCKET

CONNECTIONS = 16
ROUND_S = 2.0
ROUNDS = 3
SHIFTS = 100
CONFIG = {
    "name": ENDPOINT,
    "version": "1",
    "batch": {"max_rows": 16, "max_wait_ms": 0},
    "max_request_rows": 4096,
    "max_request_bytes": 65_536,
}


class Asker(asyncio.Protocol):
    """One connection that asks again and again; it reads no more of an answer than where it ends."""

    def __init__(self, request: bytes, load: Load) -> None:
        self._request, self._load = request, load
        self._data = b""
        self._begun_s = 0.0

    def connection_made(self, transport: Any) -> None:
        """Ask."""
        self._transport = transport
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it as lost, unless it is over."""
        del exc
        if not self._load.over:
            self._load.lost += 1

    def _ask(self) -> None:
        self._begun_s = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Read on, and ask again at the end of an answer."""
        self._data += data
        head_end = self._data.find(b"\r\n\r\n")
        if head_end < 0:
            return
        at = self._data.index(b"content-length: ") + 16
        end = head_end + 4 + int(self._data[at : self._data.index(b"\r\n", at)])
        if len(self._data) < end:
            return
        self._load.answered(time.perf_counter() - self._begun_s, self._data[:head_end])
        self._data = b""
        if self._load.over:
            self._transport.close()
        else:
            self._ask()


class Load:
    """What all connections found."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.lost = 0
        self.over = False
        self.versions: list[tuple[float, bytes]] = []

    def answered(self, seconds: float, head: bytes) -> None:
        """Note an answer."""
        self.seconds.append(seconds)
        if not head.startswith(b"HTTP/1.1 200"):
            self.lost += 1
        at = head.find(b"licet-version: ")
        if at > 0:
            self.versions.append((time.perf_counter(), head[at + 15 : head.index(b"\r\n", at)]))


async def ask(where: tuple[str, int] | str, token: str, seconds: float, load: Load) -> Load:
    """Ask on all connections for a while."""
    loop = asyncio.get_running_loop()
    data = body()
    head = f"POST /v2/models/{ENDPOINT}/infer HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {token}\r\n"
    request = head.encode() + b"content-length: %d\r\n\r\n" % len(data) + data
    for _ in range(CONNECTIONS):
        if isinstance(where, str):
            await loop.create_unix_connection(lambda: Asker(request, load), where)
        else:
            await loop.create_connection(lambda: Asker(request, load), *where)
    deadline_s = time.perf_counter() + seconds
    while time.perf_counter() < deadline_s and not load.over:  # noqa: ASYNC110  # Another thread may end it.
        await asyncio.sleep(0.02)
    load.over = True
    await asyncio.sleep(0.2)
    return load


def asked(where: tuple[str, int] | str, token: str, seconds: float, load: Load | None = None) -> Load:
    """As ``ask``, on a loop of its own."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(ask(where, token, seconds, load or Load()))


def routed(pipe: Connection, folder: str) -> None:
    """The router's process: does what it is told over a pipe."""
    world = ServingWorld(Path(folder))
    address = world.start().address
    first = f"{MODEL}@1"
    world.deploy(1)
    world.deploy(2, strategy="blue-green", fallback=first, bake_s=3600, alarms=[NEVER])
    world.shift({"1": 100})
    pipe.send((address, world.door.allow(ENDPOINT)))
    while True:
        match pipe.recv():
            case "shifts":
                for number in range(SHIFTS):
                    world.shift({"1": 100} if number % 2 else {"2": 100})
                pipe.send(world.figures())
            case "alarm":
                tight = {**NEVER, "threshold_us": 1}
                world.deploy(3, strategy="blue-green", fallback=first, bake_s=3600, alarms=[tight])
                pipe.send(None)
            case _:
                world.stop()
                return


def bare(folder: Path) -> tuple[str, threading.Event, threading.Thread]:
    """Start the bare model server, as the router would."""
    (folder / "out").mkdir(parents=True)
    run = JobRun(
        code=shipped_code(JOB),
        inputs=write_model(folder / "model"),
        documents={"serve.json": json.dumps(CONFIG).encode()},
        output_dir=folder / "out",
        limits=LIMITS,
    )
    sandbox = Sandbox(folder / "state")
    ready, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=sandbox.run, args=(run, lambda _line: ready.set(), stop.is_set), daemon=True)
    thread.start()
    assert ready.wait(30)
    print(f"sandbox: {sandbox.probe().kind}")
    return str(folder / "out" / SOCKET), stop, thread


def p50_us(load: Load) -> float:
    """Median of the latencies."""
    assert load.lost == 0, f"{load.lost} requests were lost"
    return statistics.median(load.seconds) * 1e6


def overhead(socket: str, address: tuple[str, int], token: str) -> None:
    """Print what the router costs."""
    asked(socket, token, 0.5)
    asked(address, token, 0.5)
    direct, through = [], []
    rates: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for found, rate, where in ((direct, rates[0], socket), (through, rates[1], address)):
            load = asked(where, token, ROUND_S)
            found.append(p50_us(load))
            rate.append(len(load.seconds) / ROUND_S)
    one, two = statistics.median(direct), statistics.median(through)
    print(
        f"p50 at {CONNECTIONS} connections: bare {one:.0f} us, routed {two:.0f} us: {two - one:.0f} us more ({two / one:.2f} x)"
    )
    print(f"requests a second: bare {statistics.median(rates[0]):.0f}, routed {statistics.median(rates[1]):.0f}")


def shifts(pipe: Connection, address: tuple[str, int], token: str) -> None:
    """Print what is lost in shifts under load."""
    load = Load()

    def shifted() -> None:
        pipe.send("shifts")
        pipe.recv()
        load.over = True

    thread = threading.Thread(target=shifted)
    thread.start()
    asked(address, token, 300, load)
    thread.join()
    seen = {version for _, version in load.versions}
    assert seen == {b"1", b"2"}, seen
    print(f"{SHIFTS} shifts under load: {len(load.seconds)} requests, {load.lost} lost")


def alarm(pipe: Connection, address: tuple[str, int], token: str) -> None:
    """Print how long the version with an alarm answered."""
    load = Load()

    def deployed() -> None:
        pipe.send("alarm")
        pipe.recv()
        time.sleep(3)
        load.over = True

    thread = threading.Thread(target=deployed)
    thread.start()
    asked(address, token, 60, load)
    thread.join()
    times = [at_s for at_s, version in load.versions if version == b"3"]
    assert times, "the version never had traffic"
    assert load.versions[-1][1] == b"1", "traffic never returned"
    print(f"from the first bad answer to full return: {max(times) - min(times):.2f} s, {load.lost} requests lost")


def main() -> None:
    """Measure everything."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=routed, args=(theirs, f"{folder}/world"))
        process.start()
        address, token = ours.recv()
        socket, stop, thread = bare(Path(folder) / "bare")
        overhead(socket, address, token)
        stop.set()
        thread.join()
        shifts(ours, address, token)
        alarm(ours, address, token)
        ours.send("stop")
        process.join()


if __name__ == "__main__":
    main()
