"""Tickets are facts only where they are clearly tickets; messages are signed so that others' software verifies them."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook

from licet_adapters.conformance.world import FOREIGN_TENANT, TENANT, World
from licet_adapters.errors import AdapterError, InputRefused, NotFound, Unavailable, WarrantRefused
from licet_adapters.notify.webhooks import StandardWebhooks
from licet_adapters.ports import AdapterContext, Notice
from licet_adapters.tickets.common import read_ticket
from licet_adapters.tickets.file import FileTickets
from licet_adapters.tickets.http import HttpTickets

NOW_MS = 1_750_000_000_000
HOOK = "wh-" + "a" * 32


def ticket(**changes: Any) -> dict[str, Any]:
    usual = {"id": "CHG-1", "state": "approved", "approved": True, "subjects": ["a/m@1"], "as_of_ms": NOW_MS}
    return usual | changes


def read(found: Any, name: str = "CHG-1") -> Any:
    data = found if isinstance(found, bytes) else json.dumps(found).encode()
    return read_ticket(data, name, now_ms=NOW_MS, max_age_s=60)


def test_a_ticket_becomes_a_fact_with_an_end() -> None:
    told = read(ticket(as_of_ms=NOW_MS - 59_999, extra="is not looked at"))
    assert (told.state, told.approved, told.subjects) == ("approved", True, ["a/m@1"])
    assert told.fresh_until_ms == NOW_MS + 1


@pytest.mark.parametrize(
    "found",
    [
        *(b"", b"[]", b"nonsense", b"{" * 100_000, b" " * 70_000),
        *(ticket(id="CHG-2"), ticket(approved="true"), ticket(approved=1), ticket(as_of_ms="1"), ticket(as_of_ms=True)),
        *(ticket(as_of_ms=NOW_MS - 60_000), ticket(as_of_ms=NOW_MS + 60_001), ticket(as_of_ms=-1)),
        *(
            ticket(state=""),
            ticket(state="a\nb"),
            ticket(subjects="a/m@1"),
            ticket(subjects=[1]),
            ticket(subjects=["A B"]),
        ),
        *({k: v for k, v in ticket().items() if k != missing} for missing in ("id", "state", "approved", "as_of_ms")),
    ],
)
def test_what_is_not_clearly_a_fresh_ticket_is_refused(found: Any) -> None:
    with pytest.raises(InputRefused):
        read(found)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "world")


def context(world: World, name: str, **options: str) -> AdapterContext:
    return replace(world.context(name), options=options)


def warrant(world: World, adapter: str, name: str, tenant: str = TENANT) -> bytes:
    resources = {"ticket": f"{tenant}/{name}"}
    parameters = {"ticket": name}
    return world.warrant(
        "ticket.fetch", adapter, "tickets.fetch", resources=resources, parameters=parameters, tenant=tenant
    )


def fetch(world: World, tickets: FileTickets | HttpTickets, name: str = "CHG-1", tenant: str = TENANT) -> Any:
    adapter = "file-tickets" if isinstance(tickets, FileTickets) else "http-tickets"
    return tickets.fetch(warrant(world, adapter, name, tenant), tenant, name, {"ticket": name})


def test_a_file_is_a_ticket_of_its_tenant_and_links_and_pipes_are_none(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "tickets"
    (folder / TENANT).mkdir(parents=True)
    tickets = FileTickets(context(world, "file-tickets", tickets_folder=str(folder), ticket_max_age_s="60"))
    for name in ("CHG-1", "LINK", "PIPE"):
        (folder / "outside.json").write_text(json.dumps(ticket(id=name, as_of_ms=world.now_ms)))
    (folder / TENANT / "CHG-1.json").write_text(json.dumps(ticket(as_of_ms=world.now_ms)))
    (folder / TENANT / "LINK.json").symlink_to(folder / "outside.json")
    os.mkfifo(folder / TENANT / "PIPE.json")
    assert fetch(world, tickets).approved
    with pytest.raises(NotFound):
        fetch(world, tickets, "CHG-2")
    with pytest.raises(NotFound):
        fetch(world, tickets, "CHG-1", FOREIGN_TENANT)
    for name in ("LINK", "PIPE"):
        with pytest.raises(AdapterError):
            fetch(world, tickets, name)
    for name in ("../CHG-1", "a/b", "", ".", "x" * 65):
        with pytest.raises(InputRefused):
            tickets.fetch(b"", TENANT, name, {})
    made = warrant(world, "file-tickets", "CHG-1")
    with pytest.raises(WarrantRefused):
        tickets.fetch(made, TENANT, "CHG-2", {"ticket": "CHG-2"})
    (folder / TENANT / "CHG-1.json").write_text(json.dumps(ticket(as_of_ms=world.now_ms)))
    tickets.fetch(made, TENANT, "CHG-1", {"ticket": "CHG-1"})
    with pytest.raises(WarrantRefused):
        tickets.fetch(made, TENANT, "CHG-1", {"ticket": "CHG-1"})


class Server:
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.status, self.body, self.headers = 200, b"", dict[str, str]()
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                told.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(told.status)
                for name, value in {**told.headers, "Content-Length": str(len(told.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(told.body)

            do_GET = do_POST = do_any  # noqa: N815  # The names that the base class looks for.

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def test_a_ticket_is_asked_for_by_name_with_a_token_that_nobody_else_can_read(
    world: World, server: Server, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    token.chmod(0o600)
    options = {
        "tickets_url": server.url + "/api/{tenant}/tickets/{ticket}",
        "tickets_token_file": str(token),
        "outbound_networks": "127.0.0.0/8",
        "ticket_max_age_s": "60",
    }
    tickets = HttpTickets(context(world, "http-tickets", **options))
    server.body = json.dumps(ticket(as_of_ms=world.now_ms)).encode()
    assert fetch(world, tickets).approved
    path, headers, _ = server.asked[-1]
    assert path == f"/api/{TENANT}/tickets/CHG-1"
    assert headers["authorization"] == "Bearer s3cret"
    server.status = 404
    with pytest.raises(NotFound):
        fetch(world, tickets)
    for server.status in (301, 401, 500):
        with pytest.raises(Unavailable) as refused:
            fetch(world, tickets)
        assert "s3cret" not in str(refused.value)
    server.status, server.body = 200, b"{" + b" " * 70_000
    with pytest.raises(InputRefused):
        fetch(world, tickets)
    token.chmod(0o644)
    with pytest.raises(InputRefused, match="token"):
        fetch(world, tickets)


def notice(server: Server, **changes: Any) -> Notice:
    usual: dict[str, Any] = {
        "tenant": TENANT,
        "secrets": [HOOK],
        "url": f"{server.url}/in",
        "unsafe_http": True,
        "message": "msg_1",
        "body": b'{"type": "webhook.test"}',
    }
    return Notice(**(usual | changes))


def test_a_message_is_signed_with_a_secret_of_its_tenant_and_webhook_alone(world: World, server: Server) -> None:
    world.now_ms = time.time_ns() // 1_000_000
    sender = StandardWebhooks(context(world, "standard-webhooks", outbound_networks="127.0.0.0/8"))
    assert sender.send(notice(server)).delivered
    _, headers, body = server.asked[-1]
    assert Webhook(world.signer.webhook_secret(TENANT, HOOK)).verify(body, headers) == {"type": "webhook.test"}
    secrets = {
        world.signer.webhook_secret(TENANT, HOOK),
        world.signer.webhook_secret(FOREIGN_TENANT, HOOK),
        world.signer.webhook_secret(TENANT, "wh-" + "b" * 32),
    }
    assert len(secrets) == 3
    for secret in secrets - {world.signer.webhook_secret(TENANT, HOOK)}:
        with pytest.raises(Exception, match=r"(?i)signature"):
            Webhook(secret).verify(body, headers)


def test_while_a_secret_is_changed_either_verifies_and_no_third(world: World, server: Server) -> None:
    world.now_ms = time.time_ns() // 1_000_000
    sender = StandardWebhooks(context(world, "standard-webhooks", outbound_networks="127.0.0.0/8"))
    new, old, third = ("wh-" + letter * 32 for letter in "abc")
    assert sender.send(notice(server, secrets=[new, old])).delivered
    _, headers, body = server.asked[-1]
    for secret in (new, old):
        assert Webhook(world.signer.webhook_secret(TENANT, secret)).verify(body, headers) == {"type": "webhook.test"}
    with pytest.raises(Exception, match=r"(?i)signature"):
        Webhook(world.signer.webhook_secret(TENANT, third)).verify(body, headers)


def test_what_a_receiver_answers_is_an_outcome(world: World, server: Server) -> None:
    sender = StandardWebhooks(context(world, "standard-webhooks", outbound_networks="127.0.0.0/8"))
    for status, delivered, is_final in (
        (200, True, False),
        (204, True, False),
        (410, False, True),
        (302, False, False),
    ):
        server.status = status
        outcome = sender.send(notice(server))
        assert (outcome.delivered, outcome.is_final, outcome.status) == (delivered, is_final, status)
    server.status, server.headers, server.body = 429, {"Retry-After": "120"}, b"private words"
    outcome = sender.send(notice(server))
    assert (outcome.retry_after_s, outcome.delivered) == (120, False)
    assert "private" not in outcome.reason
    # The last of these is longer than any number that Python reads.
    for text, seconds in (("9" * 30, 86_400), ("0" * 6 + "120", 120), ("soon", 0), ("9" * 5000, 86_400)):
        server.headers = {"Retry-After": text}
        assert sender.send(notice(server)).retry_after_s == seconds
    closed = StandardWebhooks(context(world, "standard-webhooks"))
    before = len(server.asked)
    assert "not public" in closed.send(notice(server)).reason
    assert len(server.asked) == before
