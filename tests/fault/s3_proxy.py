"""A misbehaving way to a real S3 server: an HTTP proxy that counts, delays, cuts, swaps and refuses what a test tells it to."""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_MOST_PIECES = 1_000
_ENDLESS: dict[str, tuple[bytes, bytes, float]] = {
    "drip-head": (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"z", 0.3),
    "drip-body": (b'HTTP/1.1 200 OK\r\nContent-Length: 999999\r\nETag: "a"\r\n\r\n', b" ", 0.3),
    "flood": (b"HTTP/1.1 200 OK\r\nContent-Length: 1048576000\r\n\r\n", b" " * (1 << 20), 0.0),
}


@dataclass
class Fault:
    """What happens to requests that fit.

    Attributes:
        fits: Tells by method and path with query.
        kind: ``status``, ``cut-request``, ``lose-answer``, ``truncate``, ``swap``, ``hang``; ``delay`` (passed on once released),
            ``answer`` (what the server said, as the value makes it), ``drip-head`` and ``drip-body`` (a byte now and then, without an
            end), ``flood`` (more and more).
        times: To how many of them; below 0 to all.
        value: Status, replacement body, how much of the body is left, or what makes status, headers and body of them.
        after: How many that fit are let through first.
    """

    fits: Callable[[str, str], bool]
    kind: str
    times: int = 1
    value: Any = None
    after: int = 0


def _chunks(handler: BaseHTTPRequestHandler) -> bytes:
    """A body that comes in chunks, as it came; none if there is none."""
    raw = b""
    while "chunked" in handler.headers.get("transfer-encoding", ""):
        line = handler.rfile.readline()
        size = int(line.partition(b";")[0], 16)
        raw += line + handler.rfile.read(size + 2)
        if size == 0:
            break
    return raw


class Proxy:
    """Forwards to ``port`` on this machine; takes requests by TLS if it is given a context.

    Attributes:
        seen: Method and path of every request.
        released: Set to let what hangs go.
        passed_bytes: Of endless answers.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.upstream = port
        self._scheme = "http" if tls is None else "https"
        self.seen: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.released = threading.Event()
        self.reached = threading.Event()
        self.passed_bytes = 0
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
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

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
        if fault is not None and fault.kind == "cut-request":
            handler.rfile.read(min(length, 1024))
            handler.connection.close()
            return
        body = handler.rfile.read(length) if "content-length" in handler.headers else _chunks(handler)
        if fault is None or not self._answered_here(handler, fault):
            self._pass_on(handler, fault, body)

    def _answered_here(self, handler: BaseHTTPRequestHandler, fault: Fault) -> bool:
        """Answer, or never answer, without the server; tell whether that was it."""
        if fault.kind in _ENDLESS:
            self._endless(handler, fault.kind)
        elif fault.kind in {"hang", "delay"}:
            self.reached.set()
            self.released.wait(60)
            return fault.kind == "hang"
        elif fault.kind == "status":
            told = b"" if fault.value == 200 else b"<Error><Code>Made</Code><Message>by the test</Message></Error>"
            self._answer(handler, fault.value, [], told)
        else:
            return False
        return True

    def _pass_on(self, handler: BaseHTTPRequestHandler, fault: Fault | None, body: bytes) -> None:
        kind = None if fault is None else fault.kind
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
        status = answer.status
        if fault is not None and kind == "answer":
            told = [(name, value) for name, value in told if name.lower() != "content-length"]
            status, told, data = fault.value(status, told, data)
        kept = fault.value if fault is not None and kind == "truncate" else None
        self._answer(handler, status, told, data, kept)

    def _endless(self, handler: BaseHTTPRequestHandler, kind: str) -> None:
        begin, more, pause_s = _ENDLESS[kind]
        try:
            handler.wfile.write(begin)
            for _ in range(_MOST_PIECES):
                handler.wfile.write(more)
                handler.wfile.flush()
                self.passed_bytes += len(more)
                if self.released.wait(pause_s):
                    return
        except OSError:
            pass

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
