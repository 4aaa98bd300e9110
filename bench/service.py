"""Durable decisions per second over HTTP, beside a route of the same server that does nothing; and cold start to ready.

The server is a whole installation: api, signer and worker, SQLite with synchronous=FULL. The load comes from a process of
its own over keep-alive connections. Figures are ratios within one run: machines differ.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from licet_engine.client import LicetClient
from licet_engine.demo.stage import free_port
from licet_engine.init import initialise
from licet_engine.serve import Supervisor
from licet_engine.settings import load_settings

SECONDS = 4.0
PAUSE_S = 0.05
"""How long a client waits that was turned away; less than it is told to, so that the load stays on."""
BATCH = 100
CSV = "amount,region,label,grp\n" + "".join(
    f"{i},{i % 7},{'yes' if i % 3 else 'no'},{'yes' if i % 2 else 'no'}\n" for i in range(200)
)


async def _one(
    address: tuple[str, int], request: bytes, until_s: float, took_s: list[float], turned_away: list[float]
) -> int:
    reader, writer = await asyncio.open_connection(*address)
    done = 0
    while time.perf_counter() < until_s:
        began_s = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        is_full = head.startswith(b"HTTP/1.1 503") and b"\r\nretry-after:" in head.lower()
        assert is_full or head.startswith(b"HTTP/1.1 200"), head[:200]
        length = next(
            int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
        )
        body = await reader.readexactly(length)
        if is_full:
            turned_away.append(time.perf_counter() - began_s)
            await asyncio.sleep(PAUSE_S)
            continue
        assert b'"decision":false' not in body, body[:300]
        took_s.append(time.perf_counter() - began_s)
        done += 1
    writer.close()
    return done


async def _load(host: str, port: int, request: bytes, connections: int) -> tuple[float, float, float, int]:
    took_s: list[float] = []
    turned_away: list[float] = []
    began_s = time.perf_counter()
    until_s = began_s + SECONDS
    counts = await asyncio.gather(
        *(_one((host, port), request, until_s, took_s, turned_away) for _ in range(connections))
    )
    spent_s = time.perf_counter() - began_s
    took_s.sort()
    p50_s, p99_s = took_s[len(took_s) // 2], took_s[int(len(took_s) * 0.99)]
    return sum(counts) / spent_s, p50_s * 1e3, p99_s * 1e3, len(turned_away)


def _load_process(pipe: Any, host: str, port: int, request: bytes, connections: int) -> None:
    pipe.send(asyncio.run(_load(host, port, request, connections)))


def measure(host: str, port: int, request: bytes, connections: int) -> tuple[float, float, float, int]:
    """Requests per second, median and 99th percentile in ms, and how many were turned away by a full log (503)."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_load_process, args=(theirs, host, port, request, connections)
    )
    process.start()
    theirs.close()  # So that its end, however it comes, is seen here.
    result: tuple[float, float, float, int] = ours.recv()
    process.join()
    return result


def http_request(method: str, path: str, token: str, body: Any = None) -> bytes:
    """A keep-alive request as bytes."""
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {token}"]
    if data:
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    return "\r\n".join([*lines, "", ""]).encode() + data


@contextlib.contextmanager
def service(**more: Any) -> Iterator[tuple[Supervisor, str, float]]:
    """A running installation with a tenant and a dataset; the token of one who may read it; and the cold start in s.

    Args:
        more: Further settings.
    """
    folder = Path(tempfile.mkdtemp(prefix="licet-bench-"))
    # What is measured is the way of a decision, not the limits before it, nor the proofs that are made beside it.
    unlimited = {"rate_per_token": 10**9, "rate_per_tenant": 10**9, "max_requests": 1024}
    ports = {"port": free_port(), "router_port": free_port()}
    settings = load_settings({}, data=folder / "data", prove_every_s=0, **ports, **unlimited, **more)
    initialise(settings)
    supervisor = Supervisor(settings, log=folder / "service.log")
    began_s = time.perf_counter()
    supervisor.start()
    cold_s = time.perf_counter() - began_s
    threading.Thread(target=supervisor.run, daemon=True).start()
    try:
        operator = LicetClient(supervisor.url, (settings.data / "operator.token").read_text("ascii").strip())
        packs = [{"name": "sr-11-7", "mode": "enforce", "parameters": {}}]
        made = operator.act(
            "tenant.create", "bench", {"region": "us", "administrator": "admin", "packs": packs}
        ).require()
        admin = LicetClient(supervisor.url, made.result["token"])
        admin.act("person.administer", "bench/ana", {"kind": "person", "roles": ["data-scientist"]}).require()
        token = admin.act("token.issue", "bench/ana", {}).require().result["token"]
        ana = LicetClient(supervisor.url, token)
        path = folder / "rows.csv"
        path.write_text(CSV)
        answer = ana.act(
            "dataset.register",
            "bench/rows",
            {
                **ana.upload(path).to_parameters(),
                "classification": "internal",
                "residency": ["us"],
                "uses": ["bench"],
                "expires_at_ms": 4_000_000_000_000,
                "label": "label",
            },
        ).require()
        assert answer.operation is not None
        ana.wait(answer.operation).require()
        yield supervisor, token, cold_s
    finally:
        supervisor.stop()
        shutil.rmtree(folder, ignore_errors=True)


ONE = {
    "subject": {"type": "person", "id": "bench/ana"},
    "action": {"name": "dataset.read"},
    "resource": {"type": "Dataset", "id": "bench/rows"},
}


def main() -> None:
    """Measure and print."""
    with service() as (supervisor, token, cold_s):
        host, port = "127.0.0.1", int(supervisor.url.rpartition(":")[2])
        noop = http_request("GET", "/health/live", token)
        # As little work, but behind what stands before every route but health: rates, turns, measures.
        doors = http_request("GET", "/.well-known/authzen-configuration", token)
        single = http_request("POST", "/access/v1/evaluation", token, ONE)
        batch = http_request("POST", "/access/v1/evaluations", token, {**ONE, "evaluations": [{}] * BATCH})
        print(f"cold start to ready: {cold_s:.2f} s")
        print(
            f"{'connections':>11} {'what':<18} {'requests/s':>10} {'decisions/s':>11} {'p50 ms':>7} {'p99 ms':>7} {'of noop':>8} {'turned away':>12}"
        )
        for connections in (16, 256):
            bases = []
            rows = []
            for what, request, each in (
                ("noop", noop, 0),
                ("through the doors", doors, None),
                ("single", single, 1),
                (f"batch of {BATCH}", batch, BATCH),
                ("noop again", noop, 0),
            ):
                rate, p50_ms, p99_ms, away = measure(host, port, request, connections)
                rows.append((what, rate, each, p50_ms, p99_ms, away))
                if each == 0:
                    bases.append(rate)
            base = statistics.mean(bases)
            for what, rate, each, p50_ms, p99_ms, away in rows:
                decisions = f"{rate * each:,.0f}" if each else "-"
                print(
                    f"{connections:>11} {what:<18} {rate:>10,.0f} {decisions:>11} {p50_ms:>7.1f} {p99_ms:>7.1f} {rate / base:>7.0%} {away:>12}"
                )


if __name__ == "__main__":
    main()
