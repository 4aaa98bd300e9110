"""Serves one tabular model, inside the sandbox: Open Inference Protocol 2 over HTTP on a Unix socket.

Rules kept here:

- There is no network in the sandbox; the socket lies in the output folder, where the router reaches it and nobody else.
- The network is computed by numpy from the declared architecture and weights that cannot execute. It starts in a fifth of
  a second where torch takes seconds, so a version can sleep and be woken; a test holds both to the same answers.
- Requests that arrive together are computed together: at most ``max_rows`` rows at once, and none waits longer than
  ``max_wait_ms`` for company. A request is never split, and what is wrong with one is told to it alone.
- Whatever is sent is bounded: heads, bodies, rows. A connection that breaks the protocol is answered and closed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import httptools
import numpy as np
import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from licet_adapters.jobs import oip, tabular_numpy
else:
    sys.path.insert(0, str(Path(__file__).parent))  # -I leaves the script's folder out.
    import oip
    import tabular_numpy

SOCKET = "replica.sock"
CONFIG = "serve.json"
_REFUSED_STATUS = 65
_MAX_HEAD_BYTES = 32 << 10
_MAX_HEADERS = 64
_MAX_PENDING_ROWS = 65_536
_REASONS = {200: b"OK", 400: b"Bad Request", 404: b"Not Found", 405: b"Method Not Allowed", 413: b"Content Too Large",
            500: b"Internal Server Error", 503: b"Service Unavailable"}  # fmt: skip


class Model:
    """One model version as it answers.

    Args:
        folder: Holds ``architecture.json`` and ``model.safetensors``.
        name: What answers call the model.
        version: And its version.
    """

    def __init__(self, folder: Path, *, name: str, version: str) -> None:
        declaration = json.loads((folder / "architecture.json").read_bytes())
        self._network = tabular_numpy.Network(declaration, (folder / "model.safetensors").read_bytes())
        self.signature = oip.Signature.of(declaration)
        self.name, self.version = name, version

    def probabilities(self, rows: oip.Floats) -> oip.Floats:
        """Probability of the target, ``[rows]``."""
        with np.errstate(over="ignore", invalid="ignore"):  # What is not finite then is refused after.
            return tabular_numpy.sigmoid(self._network(rows))

    def answer(self, asked: oip.Asked, probabilities: oip.Floats) -> bytes:
        """The answer to one request.

        Raises:
            ArithmeticError: A probability is not finite.
        """
        if not np.isfinite(probabilities).all():
            raise ArithmeticError
        labels = probabilities >= self.signature.threshold
        return oip.answer(asked, probabilities, labels, name=self.name, version=self.version)


class Batcher:
    """Computes together what arrives together.

    Args:
        model: Computes.
        max_rows: Most rows at once; a request that has more is computed alone.
        max_wait_ms: How long a request waits for others at most; 0: only for what has arrived already.
    """

    def __init__(self, model: Model, *, max_rows: int, max_wait_ms: int) -> None:
        self._model = model
        self._max_rows = max_rows
        self._max_wait_s = max_wait_ms / 1000
        self._waiting: list[tuple[oip.Asked, Callable[[int, bytes], None]]] = []
        self._rows = 0
        self._timer: asyncio.Handle | None = None

    def add(self, asked: oip.Asked, reply: Callable[[int, bytes], None]) -> None:
        """Compute ``asked`` soon and give its answer to ``reply``."""
        count = len(asked.rows)
        if self._rows + count > _MAX_PENDING_ROWS:
            reply(503, oip.error_body("too many rows are waiting; try again"))
            return
        if self._waiting and self._rows + count > self._max_rows:
            self._flush()
        self._waiting.append((asked, reply))
        self._rows += count
        if self._rows >= self._max_rows:
            self._flush()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            later = self._max_wait_s
            self._timer = loop.call_later(later, self._flush) if later else loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting, self._rows = self._waiting, [], 0
        if not waiting:
            return
        rows = waiting[0][0].rows if len(waiting) == 1 else np.concatenate([asked.rows for asked, _ in waiting])
        probabilities = self._model.probabilities(rows)
        at = 0
        for asked, reply in waiting:
            count = len(asked.rows)
            try:
                status, body = 200, self._model.answer(asked, probabilities[at : at + count])
            except ArithmeticError:
                status, body = 500, oip.error_body("the model gives a probability that is not finite for these rows")
            reply(status, body)
            at += count


class Connection(asyncio.Protocol):
    """One connection of the router.

    Args:
        server: What all connections share.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._url = b""
        self._body: list[bytes] = []
        self._size = self._head_bytes = self._headers = 0
        self._in_head = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's."""
        # NOTE: uvloop's transports are no subclasses of asyncio's, so this cannot be asked with isinstance.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio's."""
        del exc
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Asyncio's."""
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse(400, "not an HTTP request")
            return
        if self._in_head and self._head_bytes > _MAX_HEAD_BYTES:
            self._refuse(400, "the head of the request is too large")

    # --- httptools calls these -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url, self._body, self._size, self._headers, self._in_head = b"", [], 0, 0, True

    def on_url(self, url: bytes) -> None:
        """A part of its target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; none is of use here, their number is bounded."""
        del name, value
        self._headers += 1
        if self._headers > _MAX_HEADERS:
            raise ValueError

    def on_headers_complete(self) -> None:
        """The head is over."""
        self._in_head = False
        self._head_bytes = 0

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._size += len(body)
        if self._size <= self._server.max_body_bytes:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._size > self._server.max_body_bytes:
            self._refuse(413, f"the body has more than {self._server.max_body_bytes} bytes")
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._server.handle(self._parser.get_method(), self._url, body, self.reply)

    # --- answers -------------------------------------------------------------------------------------------------------

    def reply(self, status: int, body: bytes) -> None:
        """Write an answer."""
        if self._transport is not None:
            head = b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            self._transport.write(head % (status, _REASONS[status], len(body)) + body)

    def _refuse(self, status: int, message: str) -> None:
        self.reply(status, oip.error_body(message))
        if self._transport is not None:
            self._transport.close()


class Server:
    """Answers requests for one model.

    Args:
        model: Which.
        batcher: Computes.
        max_rows: Most rows of one request.
        max_body_bytes: Most bytes of one body.
    """

    def __init__(self, model: Model, batcher: Batcher, *, max_rows: int, max_body_bytes: int) -> None:
        self._model, self._batcher, self._max_rows = model, batcher, max_rows
        self.max_body_bytes = max_body_bytes
        one = b"/v2/models/" + model.name.encode()
        versioned = one + b"/versions/" + model.version.encode()
        self._infer = frozenset({one + b"/infer", versioned + b"/infer"})
        metadata = oip.encode(model.signature.metadata(model.name, model.version))
        ready = oip.encode({"name": model.name, "ready": True})
        self._get = {
            b"/v2": oip.encode({"name": "licet-model-server", "version": "1", "extensions": []}),
            b"/v2/health/live": oip.encode({"live": True}),
            b"/v2/health/ready": oip.encode({"ready": True}),
            one: metadata,
            versioned: metadata,
            one + b"/ready": ready,
            versioned + b"/ready": ready,
        }

    def handle(self, method: bytes, url: bytes, body: bytes, reply: Callable[[int, bytes], None]) -> None:
        """Answer one request."""
        if url in self._infer:
            if method != b"POST":
                reply(405, oip.error_body("inference is asked for with POST"))
                return
            try:
                asked = oip.parse_request(body, self._model.signature, self._max_rows)
            except oip.Malformed as error:
                reply(400, oip.error_body(str(error)))
                return
            self._batcher.add(asked, reply)
            return
        known = self._get.get(url)
        if known is None:
            reply(404, oip.error_body("no such model, version or route"))
        elif method != b"GET":
            reply(405, oip.error_body("this is read with GET"))
        else:
            reply(200, known)


async def serve(folder: Path, socket: Path, on_ready: Callable[[], None]) -> None:
    """Serve the model in ``folder`` on ``socket`` until the process is told to end."""
    config = json.loads((folder / CONFIG).read_bytes())
    model = Model(folder, name=config["name"], version=config["version"])
    batcher = Batcher(model, max_rows=config["batch"]["max_rows"], max_wait_ms=config["batch"]["max_wait_ms"])
    server = Server(model, batcher, max_rows=config["max_request_rows"], max_body_bytes=config["max_request_bytes"])
    # The first computation is the slowest; no caller shall have to wait for it.
    model.probabilities(np.zeros((1, len(model.signature.features)), dtype=np.float32))
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    listener = await loop.create_unix_server(lambda: Connection(server), str(socket), backlog=256)
    on_ready()
    await ended.wait()
    listener.close()


def main() -> None:
    """Serve, as the router's sandbox told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--report-fd", type=int, required=True)
    asked = parser.parse_args()

    def report(line: Mapping[str, Any]) -> None:
        with open(asked.report_fd, "wb", closefd=False, buffering=0) as pipe:  # A descriptor.
            pipe.write(json.dumps(line).encode() + b"\n")

    try:
        uvloop.run(serve(asked.inputs, asked.output / SOCKET, lambda: report({"ready": True})))
    except tabular_numpy.Refused as refused:
        report({"error": {"code": "input.model", "message": str(refused)}})
        sys.exit(_REFUSED_STATUS)


if __name__ == "__main__":
    main()
