"""Durable decisions per second over HTTP on PostgreSQL, with one api process and with two, beside SQLite in the same run.

Each is a whole installation that syncs to the disk at every commit. What matters is the ratio: load, apis and database share one machine, so
two apis can be quicker only where it has cores to spare. The server is that of the tests, from the wheel.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from service import BATCH, ONE, http_request, measure, service

from licet_engine.demo.stage import free_port
from licet_engine.serve import Supervisor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from postgres_server import PostgresServer  # The line above finds it.

CONNECTIONS = (16, 256)


@contextlib.contextmanager
def second(first: Supervisor) -> Iterator[Supervisor]:
    """Another supervisor of the same installation, with an api and a worker of its own."""
    settings = replace(first.settings, slot=2, port=free_port(), router_port=free_port())
    other = Supervisor(settings, log=settings.data.parent / "service-2.log")
    other.start()
    threading.Thread(target=other.run, daemon=True).start()
    try:
        yield other
    finally:
        other.stop()


def decisions_per_s(supervisors: list[Supervisor], token: str, connections: int, each: int) -> tuple[float, float]:
    """Decisions per second of all apis together, and the slowest one's median in ms."""
    body = ONE if each == 1 else {**ONE, "evaluations": [{}] * each}
    path = "/access/v1/evaluation" if each == 1 else "/access/v1/evaluations"
    request = http_request("POST", path, token, body)

    def load(supervisor: Supervisor) -> tuple[float, float, float, int]:
        port = int(supervisor.url.rpartition(":")[2])
        return measure("127.0.0.1", port, request, connections // len(supervisors))

    with ThreadPoolExecutor(len(supervisors)) as threads:
        found = list(threads.map(load, supervisors))
    return sum(rate for rate, *_ in found) * each, max(p50_ms for _, p50_ms, *_ in found)


def figures(supervisors: list[Supervisor], token: str) -> dict[tuple[int, int], tuple[float, float]]:
    """Decisions per second and median by connections and decisions of a request."""
    return {
        (connections, each): decisions_per_s(supervisors, token, connections, each)
        for connections in CONNECTIONS
        for each in (1, BATCH)
    }


def main() -> None:
    """Measure and print."""
    found = {}
    with service() as (supervisor, token, _):
        found["SQLite, one api"] = figures([supervisor], token)
    server = PostgresServer(durable=True)
    try:
        with tempfile.TemporaryDirectory(prefix="licet-bench-") as folder:
            urls = str(server.write_urls(server.create(), Path(folder) / "urls"))
            with service(database_urls=urls) as (supervisor, token, _):
                found["PostgreSQL, one api"] = figures([supervisor], token)
                with second(supervisor) as other:
                    found["PostgreSQL, two apis"] = figures([supervisor, other], token)
    finally:
        server.close()
    base = found["SQLite, one api"]
    print(f"{'connections':>11} {'request':<10} {'where':<22} {'decisions/s':>11} {'p50 ms':>7} {'of SQLite':>10}")
    for connections, each in base:
        what = "single" if each == 1 else f"of {each}"
        for where, rates in found.items():
            rate, p50_ms = rates[connections, each]
            ratio = rate / base[connections, each][0]
            print(f"{connections:>11} {what:<10} {where:<22} {rate:>11,.0f} {p50_ms:>7.1f} {ratio:>10.0%}")


if __name__ == "__main__":
    main()
