"""A whole installation for tests: the processes, two tenants, their people, their tokens, and eyes on the logs.

Found by tests beside it, and by those in ``tests/fault``, through ``sys.path``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from databases import own_database
from licet_attestations.leaf import Leaf
from licet_engine.client import Answer, LicetClient, Operation
from licet_engine.demo.stage import free_port
from licet_engine.init import initialise
from licet_engine.log import store
from licet_engine.serve import Supervisor
from licet_engine.settings import Settings, load_settings
from licet_engine.store.access import Role, open_database
from licet_engine.store.db import read_transaction

NO_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of what speaks plain HTTP: it trusts nobody. The usual one reads all authorities anew for each client."""
FAR_MS: Final = 4_000_000_000_000
_TRIES: Final = 100
UUIDS: Final = [f"GPU-{digit * 8}-0000-4000-8000-{digit * 12}" for digit in "12"]
"""Devices that are on the world's allow-list, and on no machine: its worker takes runs on devices, and has none."""
EVERY_ROLE: Final = (*("administrator", "auditor", "compliance", "data-scientist", "model-risk", "security-engineer"),)
PEOPLE: Final[Mapping[str, tuple[str, Sequence[str]]]] = {
    # All that a person may be: what such a one is denied elsewhere, the wall alone denies.
    "all": ("person", EVERY_ROLE),
    "ana": ("person", ["data-scientist"]),
    "ben": ("person", ["data-scientist"]),
    "mei": ("person", ["model-risk"]),
    "cora": ("person", ["compliance"]),
    "sam": ("person", ["security-engineer"]),
    "uma": ("person", ["auditor"]),
    "ci": ("service", ["pipeline"]),
}
_PROBLEM: Final = frozenset({"type", "title", "status", "code", "detail"})
_LEAKS: Final = re.compile(
    r"Traceback|File \"|sqlalchemy|sqlite3|psycopg|postgres|pydantic|msgspec|litestar|licet_[A-Za-z0-9_-]{20,}|/site-packages/|SELECT ",
    re.IGNORECASE,
)


def table(rows: int = 400, *, odd: int = 0) -> bytes:
    """A table in which ``ratio`` tells most of ``deny`` and ``minor`` nothing; ``odd`` makes it another one."""
    lines = ["income,ratio,minor,deny"]
    for i in range(rows):
        ratio = (i * 37 % 100) / 100
        deny = "yes" if (ratio > 0.6) != (i % 11 == 0) else "no"
        lines.append(f"{(i * 53 % 90) / 10 + odd},{ratio},{'yes' if i % 3 == 0 else 'no'},{deny}")
    return ("\n".join(lines) + "\n").encode()


def poll(what: str, found: Callable[[], Any], within_s: float = 30.0) -> Any:
    """Wait until something is found; tell what was waited for if it never is."""
    until_s = time.monotonic() + within_s
    pause = threading.Event()
    while True:
        value = found()
        if value:
            return value
        assert time.monotonic() < until_s, f"waited {within_s:.0f} s for {what}"
        pause.wait(0.02)


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Assert the one shape that every error of the API has; return its body."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert set(body) - {"decision"} == _PROBLEM, body
    assert body["type"] == f"urn:licet:problem:{body['code']}"
    assert body["status"] == status
    assert body["code"] == code, body
    assert all(isinstance(body[name], str) and body[name] for name in _PROBLEM - {"status"})
    assert ("decision" in body) == (status == 403)
    assert ("www-authenticate" in response.headers) == (status == 401)
    assert ("retry-after" in response.headers) == (status in {429, 503})
    assert not _LEAKS.search(response.text), response.text
    return body


def masked(response: httpx.Response) -> tuple[int, dict[str, str], Any]:
    """What an answer tells, but for the decision's number and the time of day."""
    body = response.json()
    decision = body.get("decision")
    told = decision if isinstance(decision, dict) else body.get("context", {})
    assert re.fullmatch("[0-9a-f]{32}", told["id"])
    told["id"] = "*"
    headers = {name: value for name, value in response.headers.items() if name != "date"}
    return response.status_code, headers, body


def free_ports(count: int) -> int:
    """The first of so many neighbouring ports that nobody listens on: below those that connections are made from meanwhile."""
    for _ in range(_TRIES):
        first = secrets.choice(range(10_000, 30_000))
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in range(first, first + count):
                held.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
    raise RuntimeError(f"no {count} neighbouring ports are free")


class Installation:
    """A running installation in a folder of its own; nothing gets into its logs that a test did not ask for."""

    def __init__(self, **overrides: Any) -> None:
        # A short path: the sockets of the processes lie below it.
        self._folder = tempfile.TemporaryDirectory(prefix="lc-")
        folder = Path(self._folder.name)
        self.data = folder / "d"
        self.log = folder / "service.log"
        self.log.touch()
        if "database_urls" not in overrides:
            overrides["database_urls"] = own_database(folder / "urls")
        self.settings: Settings = load_settings(
            {}, data=self.data, **{"port": free_port(), "router_port": free_port(), "prove_every_s": 0} | overrides
        )
        initialise(self.settings)
        self.tokens: dict[str, str] = {"platform/operator": (self.data / "operator.token").read_text().strip()}
        self.supervisor = Supervisor(self.settings, log=self.log, longest_pause_s=0.5)
        self.engine = open_database(self.settings, Role.OWNER, every_tenant=True)
        self._clients: list[LicetClient | httpx.Client] = []
        self._thread = threading.Thread(target=self.supervisor.run, daemon=True)

    @property
    def url(self) -> str:
        """Where the API is."""
        return self.supervisor.url

    def start(self) -> None:
        """Start everything."""
        self.supervisor.start()
        self._thread.start()

    def halt(self) -> None:
        """Stop everything and keep the folder."""
        self.supervisor.ask_to_stop()
        self._thread.join(30)
        self.supervisor.stop()

    def again(self) -> None:
        """Serve what was halted, as a new supervisor does."""
        self.supervisor = Supervisor(self.settings, log=self.log, longest_pause_s=0.5)
        self._thread = threading.Thread(target=self.supervisor.run, daemon=True)
        self.start()

    def stop(self) -> None:
        """Stop everything and remove the folder."""
        for client in self._clients:
            client.close()
        self.supervisor.ask_to_stop()
        if self._thread.ident is not None:
            self._thread.join(30)
        self.supervisor.stop()
        self.engine.dispose()
        self._folder.cleanup()

    # --- who asks ------------------------------------------------------------------------------------------------------

    def client(self, who: str) -> LicetClient:
        """A client that speaks for ``tenant/name``."""
        client = LicetClient(self.url, self.tokens[who], serving_url=self.supervisor.router_url)
        self._clients.append(client)
        return client

    def http(self, who: str | None) -> httpx.Client:
        """A bare HTTP client that speaks for ``tenant/name``, or for nobody."""
        headers = {} if who is None else {"Authorization": f"Bearer {self.tokens[who]}"}
        client = httpx.Client(base_url=self.url, headers=headers, timeout=30.0, trust_env=False, verify=NO_TLS)
        self._clients.append(client)
        return client

    def people(self, tenant: str, region: str, *, packs: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Make a tenant with environments, a budget, people and tokens; with every pack, if none are named."""
        if packs is None:
            packs = [
                {"name": "sr-11-7"},
                {"name": "residency", "parameters": {"regions": [region]}},
            ]
        operator = self.client("platform/operator")
        made = operator.act("tenant.create", tenant, {"region": region, "administrator": "admin", "packs": list(packs)})
        self.tokens[f"{tenant}/admin"] = made.require().result["token"]
        admin = self.client(f"{tenant}/admin")
        places = [{"name": f"{region}-east", "region": region}, {"name": "far", "region": "elsewhere"}]
        admin.act("tenant.administer", tenant, {"environments": places, "budgets": {"training": 50}}).require()
        for name, (kind, roles) in PEOPLE.items():
            self.person(f"{tenant}/{name}", kind=kind, roles=roles)

    def person(self, who: str, *, roles: Sequence[str], kind: str = "person", owner: str = "ana") -> str:
        """Make a principal; return its token."""
        admin = self.client(f"{who.partition('/')[0]}/admin")
        body = {"kind": kind, "roles": list(roles)} | ({"owner": owner} if kind == "service" else {})
        admin.act("person.administer", who, body).require()
        self.tokens[who] = admin.act("token.issue", who, {}).require().result["token"]
        return self.tokens[who]

    # --- what is done --------------------------------------------------------------------------------------------------

    def upload(self, who: str, data: bytes) -> dict[str, Any]:
        """Send bytes; return how a verb names them."""
        with self._one(who) as http:
            response = http.put("/v1/uploads", content=data)
        assert response.status_code == 201, response.text
        told = response.json()
        assert told["digest_hex"] == hashlib.sha256(data).hexdigest()
        return {"upload": told["upload"], "digest_hex": told["digest_hex"], "size_bytes": told["size_bytes"]}

    def _one(self, who: str) -> httpx.Client:
        return httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.tokens[who]}"},
            timeout=30.0,
            trust_env=False,
            verify=NO_TLS,
        )

    def dataset_body(self, who: str, data: bytes, **changes: Any) -> dict[str, Any]:
        """What `dataset.register` takes, with the bytes uploaded."""
        region = "us" if who.startswith("northbank") else "eu"
        body = {
            **self.upload(who, data),
            "classification": "confidential",
            "protected": ["minor"],
            "residency": [region],
            "uses": ["credit-risk"],
            "expires_at_ms": FAR_MS,
            "label": "deny",
        }
        return body | changes

    def register(self, who: str, name: str, data: bytes, **changes: Any) -> Operation:
        """Register a dataset of the asker's tenant; return the operation as it ended."""
        client = self.client(who)
        ref = f"{who.partition('/')[0]}/{name}"
        return self.done(client, client.act("dataset.register", ref, self.dataset_body(who, data, **changes)))

    def done(self, client: LicetClient, answer: Answer) -> Operation:
        """Wait for what was accepted."""
        operation = answer.require().operation
        assert operation is not None
        return client.wait(operation, timeout_s=120)

    def publish(self, who: str, body: Mapping[str, Any]) -> str:
        """Publish policies of the asker's tenant; return how the bundle is named, by the digest's beginning."""
        client = self.client(who)
        ended = self.done(client, client.act("policy.publish", who.partition("/")[0], dict(body)))
        assert ended.state == "done", ended
        ref: str = ended.result["ref"]
        return ref

    # --- what the logs hold --------------------------------------------------------------------------------------------

    def size(self, tenant: str) -> int:
        """Entries of a log."""
        with read_transaction(self.engine) as connection:
            return store.read_head(connection, tenant).size

    def entries(self, tenant: str, first: int = 0) -> list[tuple[Leaf, dict[str, Any]]]:
        """Entries of a log with their records."""
        with read_transaction(self.engine) as connection:
            found = store.read_entries(connection, tenant, first, 1_000_000)
        return [(Leaf.from_bytes(e.header.encode()), json.loads(e.record or b"{}")) for e in found]

    def output(self) -> str:
        """What the processes wrote to their standard output and error."""
        return self.log.read_text()

    def objects(self, tenant: str) -> set[Path]:
        """The files of the object store that are a tenant's."""
        folder = self.settings.worker_data / "adapters" / "local-objects" / "objects" / tenant
        return {path for path in folder.rglob("*") if path.is_file()}
