"""Under load: a flood by one tenant costs another little, and a stop loses nothing that was answered."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Self

import httpx
import pytest
from service_world import Installation, poll, problem, table

# Low, so that even a machine that is busy with other things is asked for more.
RATE_PER_TOKEN, RATE_PER_TENANT = 20, 30
ASK = {"action": "dataset.read", "resource": "northbank/loans"}


def made(**settings: Any) -> Installation:
    installation = Installation(**settings)
    try:
        installation.start()
        for tenant, region in (("northbank", "us"), ("lakeside", "eu")):
            installation.people(tenant, region)
        assert installation.register("northbank/ana", "loans", table()).state == "done"
        assert installation.register("lakeside/ana", "loans", table()).state == "done"
    except BaseException:
        installation.stop()
        raise
    return installation


@pytest.fixture(scope="module")
def narrow() -> Iterator[Installation]:
    """With few places; rates are for the tests to set by what they send."""
    installation = made(
        max_requests=8, max_waiting_requests=16, rate_per_token=RATE_PER_TOKEN, rate_per_tenant=RATE_PER_TENANT
    )
    yield installation
    installation.stop()


class Flood:
    """Threads that ask as fast as they can, for a bounded time."""

    def __init__(self, installation: Installation, who: str, threads: int, seconds: float) -> None:
        self.statuses: Counter[int] = Counter()
        self.retry_after: set[str] = set()
        self.connection: set[str | None] = set()
        self._until_s = time.monotonic() + seconds
        self._headers = {"Authorization": f"Bearer {installation.tokens[who]}"}
        self._url = installation.url
        self._body = ASK | {"resource": f"{who.partition('/')[0]}/loans"}
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, headers=self._headers, timeout=30.0, trust_env=False) as client:
            while time.monotonic() < self._until_s:
                response = client.post("/v1/ask", json=self._body)
                with self._lock:
                    self.statuses[response.status_code] += 1
                    if "retry-after" in response.headers:
                        self.retry_after.add(response.headers["retry-after"])
                        # Its body was not read, so the connection cannot be gone on with; who is not told loses a request.
                        self.connection.add(response.headers.get("connection"))


def latencies_s(installation: Installation, who: str, count: int) -> list[float]:
    found = []
    with installation._one(who) as client:
        for _ in range(count):
            began_s = time.monotonic()
            response = client.post("/v1/ask", json=ASK | {"resource": f"{who.partition('/')[0]}/loans"})
            found.append(time.monotonic() - began_s)
            assert response.status_code == 200, response.text
            time.sleep(0.03)
    return sorted(found)


def test_a_flood_by_one_tenant_is_told_to_wait_and_another_hardly_notices(narrow: Installation) -> None:
    quiet_s = latencies_s(narrow, "lakeside/ana", 20)
    with Flood(narrow, "northbank/ana", threads=8, seconds=3.0) as flood:
        time.sleep(0.5)
        busy_s = latencies_s(narrow, "lakeside/ana", 20)
    assert set(flood.statuses) == {200, 429}
    assert flood.statuses[429] > 0
    # A burst of two seconds, three seconds' worth of the rate, and what a second more or less makes.
    assert flood.statuses[200] <= RATE_PER_TOKEN * (2 + 3 + 1)
    assert flood.retry_after == {"1"}
    # Two cores are shared with whatever else runs here: bounded, not unmoved.
    assert busy_s[-2] < max(1.0, 20 * quiet_s[-2]), (quiet_s, busy_s)


def test_several_tokens_of_a_tenant_share_its_rate(narrow: Installation) -> None:
    time.sleep(2.1)  # Its bucket is full again.
    with (
        Flood(narrow, "northbank/ben", threads=3, seconds=4.0) as one,
        Flood(narrow, "northbank/mei", threads=3, seconds=4.0) as two,
    ):
        pass
    allowed = sum(flood.statuses[status] for flood in (one, two) for status in (200, 403))
    assert allowed <= RATE_PER_TENANT * (2 + 4 + 1)
    assert one.statuses[429] + two.statuses[429] > 0
    assert one.connection | two.connection == {"close"}


def test_who_has_no_token_has_a_rate_too_and_health_is_always_answered(narrow: Installation) -> None:
    time.sleep(1.0)
    client = narrow.http(None)
    statuses: Counter[int] = Counter()
    last = client.get("/v1/list/northbank/runs")
    for _ in range(400):
        last = client.get("/v1/list/northbank/runs", headers={"Authorization": "Bearer licet_nobody"})
        statuses[last.status_code] += 1
        if last.status_code == 429:
            break
    assert statuses[401] > 0
    problem(last, 429, "too-many-requests")
    assert client.get("/health/live").status_code == 200
    # Who has a token is not held up by those who have none.
    assert narrow.http("lakeside/ana").post("/v1/ask", json=ASK).status_code == 200


def test_a_client_that_stops_sending_holds_no_place_of_others(narrow: Installation) -> None:
    """Uploads that hang take places of their tenant; another tenant's requests go on."""
    port = int(narrow.url.rpartition(":")[2])
    hanging = []
    head = (
        f"PUT /v1/uploads HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {narrow.tokens['northbank/cora']}\r\n"
        "Content-Length: 100000\r\n\r\nonly this"
    )
    try:
        for _ in range(12):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(head.encode())
            hanging.append(sock)
        time.sleep(0.5)
        assert latencies_s(narrow, "lakeside/ana", 5)[-1] < 2.0
    finally:
        for sock in hanging:
            sock.close()
    # Its own places are free again once they are gone.
    poll("a free place", lambda: narrow.http("northbank/cora").get("/v1/list/northbank/runs").status_code == 200)


def test_a_stop_under_load_loses_no_decision_and_cuts_no_request() -> None:
    installation = made(rate_per_token=100_000, rate_per_tenant=100_000)
    try:
        installation.supervisor.ask_to_stop()
        installation._thread.join(30)
        installation.supervisor.stop()
        environment = {**os.environ, **installation.settings.to_environment()}
        with installation.log.open("ab") as log:
            served = subprocess.Popen(
                [sys.executable, "-c", "from licet_engine.cli import main; main()", "serve"],
                env=environment,
                stdout=log,
                stderr=log,
            )
        try:
            poll("readiness", lambda: _is_ready(installation), 60)
            size = installation.size("northbank")
            answered, broken = _ask_until_gone(installation, served)
            assert served.wait(40) == 0
        finally:
            if served.poll() is None:
                served.kill()
                served.wait()
        logged = {
            record["id"]
            for leaf, record in installation.entries("northbank", size)
            if leaf.kind == "decision" and record["principal"]["id"] == "northbank/ana"
        }
        assert len(answered) > 100
        # What was answered is in the log, and whatever got into the log was answered.
        assert logged == answered, (len(logged - answered), len(answered - logged), broken)
        # Everything else was refused at the door: no answer broke off half way.
        assert not broken & {"ReadError", "IncompleteRead"}, broken
    finally:
        installation.stop()


def _is_ready(installation: Installation) -> bool:
    try:
        return httpx.get(f"{installation.url}/health/ready", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _ask_until_gone(installation: Installation, served: subprocess.Popen[bytes]) -> tuple[set[str], set[str]]:
    answered: set[str] = set()
    broken: set[str] = set()
    lock = threading.Lock()

    def ask() -> None:
        with installation._one("northbank/ana") as client:
            while True:
                try:
                    response = client.post("/v1/ask", json=ASK)
                except httpx.HTTPError as error:
                    with lock:
                        broken.add(type(error).__name__)
                    return
                assert response.status_code == 200, response.text
                with lock:
                    answered.add(response.json()["decision"]["id"])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    # However busy the machine is: it is stopped in the middle of it.
    poll("answers", lambda: len(answered) > 200, 60)
    served.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(40)
    return answered, broken
