"""A misbehaving way to a real S3 server: an HTTP proxy that counts, delays, cuts, swaps and refuses what a test tells it to."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Fault:
    """What happens to requests that fit.

    Attributes:
        fits: Tells by method and path with query.
        kind: ``status``, ``cut-request``, ``lose-answer``, ``truncate``, ``swap``, ``hang``.
        times: To how many of them; below 0 to all.
        value: Status, replacement body, or how much of the body is left.
        after: How many that fit are let through first.
    """

    fits: Callable[[str, str], bool]
    kind: str
    times: int = 1
    value: Any = None
    after: int = 0


class Proxy:
    """Forwards to ``port`` on this machine.

    Attributes:
        seen: Method and path of every request.
        released: Set to let what hangs go.
    """

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.seen: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.released = threading.Event()
        self.reached = threading.Event()
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (ConnectionError, TimeoutError):
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

            def __getattr__(self, name: str) -> Any:
                if name.startswith("do_"):
                    return self._forward
                raise AttributeError(name)

            def _forward(self) -> None:
                proxy.forward(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop."""
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def count(self, method: str, part: str) -> int:
        """How many requests of that method had ``part`` in their path or query."""
        return sum(1 for m, path in self.seen if m == method and part in path)

    def _fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.seen.append((method, path))
            for fault in self.faults:
                if fault.fits(method, path):
                    if fault.after > 0:
                        fault.after -= 1
                        continue
                    if fault.times != 0:
                        fault.times -= 1
                        return fault
        return None

    def forward(self, handler: BaseHTTPRequestHandler) -> None:
        """Pass one request on, as well or as badly as it is told."""
        handler.close_connection = True
        length = int(handler.headers.get("content-length") or 0)
        fault = self._fault(handler.command, handler.path)
        kind = None if fault is None else fault.kind
        if kind == "cut-request":
            handler.rfile.read(min(length, 1024))
            handler.connection.close()
            return
        body = handler.rfile.read(length)
        if kind == "hang":
            self.reached.set()
            self.released.wait(60)
            return
        if kind == "status":
            assert fault is not None
            told = b"" if fault.value == 200 else b"<Error><Code>Made</Code><Message>by the test</Message></Error>"
            self._answer(handler, fault.value, [], told)
            return
        headers = dict(handler.headers.items())
        upstream = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=30)
        try:
            # The host is part of what is signed, so it stays as it was sent.
            upstream.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if name.lower() not in {"connection", "expect"}:
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            data = answer.read()
        except OSError:
            handler.connection.close()
            return
        finally:
            upstream.close()
        if kind == "lose-answer":
            handler.connection.close()
            return
        told = [
            (name, value)
            for name, value in answer.getheaders()
            if name.lower() not in {"connection", "transfer-encoding"}
        ]
        if fault is not None and kind == "swap":
            data = fault.value(data)
            told = [(name, value) for name, value in told if name.lower() not in {"content-length", "content-range"}]
            told += [("Content-Length", str(len(data)))]
            if answer.status == 206:
                told += [("Content-Range", f"bytes 0-{len(data) - 1}/{len(data)}")]
        kept = fault.value if fault is not None and kind == "truncate" else None
        self._answer(handler, answer.status, told, data, kept)

    def _answer(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        headers: list[tuple[str, str]],
        data: bytes,
        kept: int | None = None,
    ) -> None:
        handler.send_response_only(status)
        names = {name.lower() for name, _ in headers}
        for name, value in headers:
            handler.send_header(name, value)
        if "content-length" not in names:
            handler.send_header("Content-Length", str(len(data)))
        handler.send_header("Connection", "close")
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data if kept is None else data[:kept])
