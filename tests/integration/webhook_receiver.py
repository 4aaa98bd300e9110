"""A receiver of webhooks on loopback. Found through ``sys.path`` by the tests that use it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver:
    """A receiver of webhooks: it verifies as others' software does, and answers as it is told."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.name = ""
        self.answer: Callable[[int], int] = lambda _: 204
        self.hang = threading.Event()
        self.hang.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                number = len(receiver.got)
                receiver.hang.wait(30)
                self.send_response(receiver.answer(number))
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/in"

    def of(self, event: str) -> list[tuple[dict[str, str], dict[str, Any]]]:
        found = [(headers, json.loads(body)) for _, headers, body in list(self.got)]
        return [(headers, body) for headers, body in found if body["type"] == event]

    def close(self) -> None:
        self.hang.set()
        self._server.shutdown()
        self._server.server_close()
