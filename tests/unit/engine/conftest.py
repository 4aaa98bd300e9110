"""A small real HTTP server that answers as a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from licet_engine import client as client_module
from licet_engine.cli import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Script:
    """What to answer, in order, and what was asked."""

    url: str = ""
    answers: list[tuple[int, Any, dict[str, str]] | None] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    def answer(self, status: int, body: Any, **headers: str) -> None:
        """Answer the next request with ``status`` and ``body`` (JSON, or bytes as they are)."""
        self.answers.append((status, body, {name.replace("_", "-"): value for name, value in headers.items()}))

    def problem(self, status: int, code: str, detail: str, **more: Any) -> None:
        """Answer the next request with a problem document."""
        self.answer(
            status, {"type": "about:blank", "title": code, "status": status, "detail": detail, "code": code, **more}
        )

    def hang_up(self) -> None:
        """Close the connection of the next request without an answer."""
        self.answers.append(None)


@pytest.fixture
def script() -> Iterator[Script]:
    told = Script()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                self.send_error(411)
                return
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            told.asked.append(Asked(self.command, self.path, dict(self.headers.items()), body))
            if not told.answers:
                self.close_connection = True
                return
            answer = told.answers.pop(0)
            if answer is None:
                self.close_connection = True
                return
            status, value, headers = answer
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, text)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = handle_any  # noqa: N815  # The names that the base class looks for.

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.02), daemon=True)
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield told
    server.shutdown()
    server.server_close()
    thread.join()


ALLOW = {"id": "a" * 32, "decision": "allow", "policies": [], "errors": [], "observed": []}


def deny(*policies: dict[str, Any], errors: list[str] | None = None) -> dict[str, Any]:
    """A decision that denies."""
    return {"id": "d" * 32, "decision": "deny", "policies": list(policies), "errors": errors or [], "observed": []}


def policy(name: str, *requires: str, **more: str) -> dict[str, Any]:
    """A deciding policy."""
    return {
        "id": name,
        "title": f"Title of {name}",
        "advice": "Do this.",
        "requires": list(requires),
        "severity": "high",
        **more,
    }


@pytest.fixture
def world() -> Any:
    """The builders of decisions."""

    class World:
        allow = ALLOW
        deny = staticmethod(deny)
        policy = staticmethod(policy)

    return World


@pytest.fixture
def licet(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setattr(client_module, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(client_module, "_LONGEST_PAUSE_S", 0.002)
    for name in ("LICET_TOKEN_FILE", "LICET_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LICET_URL", script.url)
    monkeypatch.setenv("LICET_TOKEN", "licet_secret")

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        said = capsys.readouterr()
        assert "licet_secret" not in said.out + said.err
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return call
