"""The model server in a process of its own: what arrives together is computed together, and each caller gets its own answer."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from licet_adapters import jobs
from licet_adapters.conformance.routing import serving_world
from licet_adapters.conformance.tabular import write_model
from licet_adapters.jobs.serve_tabular import CONFIG, SOCKET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

LONG_MS = 20_000
"""How long a server waits for company, where nobody should have to."""
SOON_S = 10.0
NOT_YET_S = 0.5

Row = tuple[float, float]


def expected(row: Row) -> float:
    """The probability that the model of these tests gives a row of income and ratio."""
    return 1 / (1 + math.exp(-1.5 * (row[1] - 0.6) / 0.3))


def rows_of(caller: int, count: int) -> list[Row]:
    """Rows that no other caller has."""
    return [(caller + 0.5, 0.03 * caller + 0.009 * index) for index in range(count)]


def request(rows: Sequence[Row]) -> bytes:
    columns = (("income", [row[0] for row in rows]), ("ratio", [row[1] for row in rows]))
    inputs = [{"name": name, "shape": [len(rows)], "datatype": "FP32", "data": data} for name, data in columns]
    return json.dumps({"inputs": inputs}).encode()


def is_own(rows: Sequence[Row], told: Any) -> bool:
    """Whether an answer is that to these rows."""
    probabilities = next(out["data"] for out in told["outputs"] if out["name"] == "probability")
    return probabilities == pytest.approx([expected(row) for row in rows], abs=1e-5)


class ModelServer:
    """A server of the model of these tests, without the sandbox.

    Args:
        folder: Its own, with a short name: a socket lies in it.
        max_rows: Of a batch.
        max_wait_ms: Of a batch.
    """

    def __init__(self, folder: Path, *, max_rows: int, max_wait_ms: int) -> None:
        inputs, output = folder / "in", folder / "out"
        output.mkdir()
        write_model(inputs)
        batch = {"max_rows": max_rows, "max_wait_ms": max_wait_ms}
        config = {"name": "m", "version": "1", "batch": batch, "max_request_rows": 100, "max_request_bytes": 1 << 16}
        (inputs / CONFIG).write_text(json.dumps(config))
        code = folder / "code"
        shutil.copytree(Path(jobs.__file__).parent, code)
        reading, report = os.pipe()
        self._socket = output / SOCKET
        command = ["-I", "-B", str(code / "serve_tabular.py"), "--inputs", str(inputs), "--output", str(output)]
        self._process = subprocess.Popen([sys.executable, *command, "--report-fd", str(report)], pass_fds=[report])
        os.close(report)
        with os.fdopen(reading, "rb") as lines:
            assert json.loads(lines.readline()) == {"ready": True}
        self._asking = ThreadPoolExecutor(16)

    def ask(self, body: bytes) -> Future[tuple[int, Any]]:
        """Send a request, on a connection of its own; it is sent once this returns."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(60)
        connection.sock.connect(str(self._socket))
        connection.request("POST", "/v2/models/m/infer", body)

        def answer() -> tuple[int, Any]:
            with contextlib.closing(connection):
                got = connection.getresponse()
                return got.status, json.loads(got.read())

        return self._asking.submit(answer)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._asking.shutdown()


@pytest.fixture
def served() -> Iterator[Callable[..., ModelServer]]:
    made: list[ModelServer] = []
    with tempfile.TemporaryDirectory(prefix="lc-") as folder:

        def serve(**batch: int) -> ModelServer:
            made.append(ModelServer(Path(folder), **batch))
            return made[-1]

        yield serve
        for server in made:
            server.stop()


def test_requests_wait_until_a_batch_is_full_and_each_caller_gets_its_own_answer(
    served: Callable[..., ModelServer],
) -> None:
    server = served(max_rows=12, max_wait_ms=LONG_MS)
    asked = [rows_of(caller, count) for caller, count in enumerate((1, 2, 3, 1, 2))]
    answers = [server.ask(request(rows)) for rows in asked]
    # One that is refused waits for nobody, and nobody is refused with it.
    assert server.ask(b'{"inputs": []}').result(SOON_S)[0] == 400
    time.sleep(NOT_YET_S)
    assert not any(answer.done() for answer in answers)
    asked.append(rows_of(5, 3))
    answers.append(server.ask(request(asked[-1])))
    # All of them now, long before anybody's wait is over.
    for rows, answer in zip(asked, answers, strict=True):
        status, told = answer.result(SOON_S)
        assert (status, is_own(rows, told)) == (200, True)
    assert not is_own(asked[0], answers[3].result()[1])  # The answers can be told apart.


def test_no_more_rows_are_computed_at_once_than_a_batch_may_have(served: Callable[..., ModelServer]) -> None:
    server = served(max_rows=4, max_wait_ms=LONG_MS)
    asked = [rows_of(0, 3), rows_of(1, 3), rows_of(2, 9)]
    first = server.ask(request(asked[0]))
    time.sleep(NOT_YET_S)
    assert not first.done()
    second = server.ask(request(asked[1]))
    # Six rows are too many: the first is computed without the second, which waits for others.
    assert is_own(asked[0], first.result(SOON_S)[1])
    time.sleep(NOT_YET_S)
    assert not second.done()
    # A request that is larger than a batch is not divided: it is computed alone, and so is who waited.
    third = server.ask(request(asked[2]))
    assert is_own(asked[1], second.result(SOON_S)[1])
    assert is_own(asked[2], third.result(SOON_S)[1])


def test_who_is_alone_is_answered_once_the_wait_is_over_and_not_before(served: Callable[..., ModelServer]) -> None:
    server = served(max_rows=4, max_wait_ms=700)
    began_s = time.monotonic()
    assert is_own(rows_of(1, 1), server.ask(request(rows_of(1, 1))).result(SOON_S)[1])
    assert time.monotonic() - began_s >= 0.7


def test_who_is_alone_is_answered_where_nobody_waits(served: Callable[..., ModelServer]) -> None:
    server = served(max_rows=4, max_wait_ms=0)
    assert is_own(rows_of(1, 1), server.ask(request(rows_of(1, 1))).result(SOON_S)[1])


def test_callers_of_an_endpoint_are_answered_together_and_each_its_own(tmp_path: Path) -> None:
    with serving_world(tmp_path) as world:
        world.deploy(1, batch={"max_rows": 8, "max_wait_ms": 1000}, replicas={"min": 1, "max": 1, "idle_s": 0})
        callers = [world.caller() for _ in range(8)]
        together = threading.Barrier(len(callers))
        took_s: list[list[float]] = [[] for _ in range(4)]

        def ask(number: int) -> None:
            rows = rows_of(number, 1)
            for times in took_s:
                together.wait(60)
                began_s = time.monotonic()
                status, told, _ = callers[number].infer(request(rows))
                times.append(time.monotonic() - began_s)
                assert (status, is_own(rows, told)) == (200, True)

        with ThreadPoolExecutor(len(callers)) as asking:
            for asked in [asking.submit(ask, number) for number in range(len(callers))]:
                asked.result(60)
        # Eight rows make a batch: in one round all were answered before the wait that each of them alone would have had.
        assert min(max(times) for times in took_s) < 1
