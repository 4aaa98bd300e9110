"""An old database is put in place under a running signer: nothing is decided on it, and it is said which logs went back.

Api and worker are killed and begin on the old database, as after a restore that nobody verified; or, on PostgreSQL, the old rows come
back under an api that runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from databases import KINDS
from licet_attestations.signer.client import SignerClient
from licet_engine.client import LicetClient, ServerUnavailable
from licet_engine.log import store
from licet_engine.store.access import Role, open_database
from licet_engine.store.db import read_transaction
from postgres_server import PostgresServer

sys.path.append(str(Path(__file__).parent))
from test_kill import NO_TLS, TENANT, Checks, Supervised, is_gone, poll, prepare  # The line above finds it.

pytestmark = pytest.mark.slow


class Place:
    """An installation whose database can be copied and put back.

    Attributes:
        service: The installation.
        kind: Of its database.
    """

    def __init__(self, kind: str, folder: Path, server: PostgresServer | None) -> None:
        self.kind = kind
        self._server = server
        self._aside = folder / "aside"
        self._aside.mkdir()
        urls = ""
        if server is not None:
            self._name = server.create()
            self._old = ""
            urls = str(server.write_urls(self._name, folder / "urls"))
        self.service = Supervised(folder, database_urls=urls)

    def keep_old(self) -> None:
        """Copy the database as it is."""
        with self.nobody_at_work():
            if self._server is not None:
                self._end_connections(self._name)
                self._old = self._server.create(like=self._name)
                return
            for path in self._files():
                shutil.copy2(path, self._aside / path.name)

    def put_old(self) -> None:
        """Put the copy in place of the database, which is kept; and, called again, the other way round."""
        if self._server is not None:
            self._end_connections(self._name)
            with self._server.admin() as connection:
                for now, then in ((self._name, "aside"), (self._old, self._name), ("aside", self._old)):
                    connection.execute(f"ALTER DATABASE {now} RENAME TO {then}".encode())
                connection.execute(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS true".encode())
            return
        folder = self.service.settings.database.parent
        kept, here = list(self._aside.iterdir()), self._files()
        for path in here:
            path.rename(self._aside / f"new-{path.name}")
        owner = folder.stat()
        for path in kept:
            shutil.move(path, folder / path.name)
            os.chown(folder / path.name, owner.st_uid, owner.st_gid)
            (folder / path.name).chmod(0o660)
        for path in self._aside.iterdir():
            path.rename(self._aside / path.name.removeprefix("new-"))

    def _files(self) -> list[Path]:
        database = self.service.settings.database
        return [path for suffix in ("", "-wal", "-shm") if (path := Path(f"{database}{suffix}")).exists()]

    def _end_connections(self, name: str) -> None:
        assert self._server is not None
        with self._server.admin() as connection:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", (name,)
            )

    @contextlib.contextmanager
    def nobody_at_work(self) -> Iterator[None]:
        """Kill all but signer and supervisor, and have them started again after the block."""
        supervisor = self.service.process
        assert supervisor is not None
        os.kill(supervisor.pid, signal.SIGSTOP)
        try:
            pids = [pid for name, pid in self.service.pids().items() if name not in {"supervisor", "signer"}]
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            poll("them to end", lambda: all(map(is_gone, pids)))
            yield
        finally:
            if self._server is not None:
                with self._server.admin() as connection:
                    connection.execute(f"ALTER DATABASE {self._name} ALLOW_CONNECTIONS true".encode())
            os.kill(supervisor.pid, signal.SIGCONT)

    def sizes(self) -> dict[str, int]:
        """Entries of the logs as they stand in the database."""
        engine = open_database(self.service.settings, Role.OWNER, every_tenant=True)
        try:
            with read_transaction(engine) as connection:
                return {str(row.tenant_id): int(row.size) for row in connection.execute(store.HEADS.select())}
        finally:
            engine.dispose()

    def command(self, *words: str) -> tuple[int, Any]:
        """How a command of the machine's administrator ends, and what it says as JSON."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LICET_")}
        environment |= self.service.settings.to_environment()
        run = [sys.executable, "-m", "licet_engine.cli", *words, "--format", "json"]
        ended = subprocess.run(run, capture_output=True, text=True, check=False, env=environment)
        return ended.returncode, json.loads(ended.stdout)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    kind = request.param
    server = request.getfixturevalue("postgres") if kind == "postgresql" else None
    with tempfile.TemporaryDirectory(prefix="lc-") as folder:
        made = Place(kind, Path(folder), server)
        made.service.start()
        try:
            yield made
        finally:
            made.service.stop()


class Asker:
    """Asks for tenant and operator, by bare HTTP."""

    def __init__(self, url: str, tokens: list[str]) -> None:
        self._url = url
        self._tokens = tokens

    def answers(self, path: str, body: dict[str, Any]) -> list[httpx.Response]:
        """What each is answered."""
        with httpx.Client(base_url=self._url, trust_env=False, timeout=30.0, verify=NO_TLS) as http:
            return [http.post(path, json=body, headers={"Authorization": f"Bearer {token}"}) for token in self._tokens]

    def are_refused(self) -> bool:
        """Whether each is told that nothing is decided, whatever is asked."""
        try:
            found = [
                *self.answers("/v1/ask", {"action": "dataset.read", "resource": f"{TENANT}/loans"}),
                *self.answers("/v1/ask", {"action": "dataset.read", "resource": "nobody-home/loans"}),
                *self.answers("/v1/dataset/hold", {"resource": f"{TENANT}/loans", "parameters": {"reason": "x"}}),
            ]
        except httpx.HTTPError:
            return False
        told = [(answer.status_code, answer.json().get("code"), "retry-after" in answer.headers) for answer in found]
        assert not any(TENANT in answer.text for answer in found if answer.status_code == 503)
        return set(told) == {(503, "log-put-back", True)}


def signed_last(service: Supervised) -> int:
    """Entries of the tenant's log under the signer's last checkpoint."""
    return SignerClient(service.settings.signer_socket).last_checkpoint(TENANT)[0]


WAYS = [pytest.param(kind, way, id=f"{kind}-{way}") for kind in KINDS for way in ("killed", "running")]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("place", "way"), [p for p in WAYS if p.id != "sqlite-running"], indirect=["place"])
def test_on_an_old_database_nothing_is_decided_until_the_newer_one_is_back(
    place: Place, way: str, tmp_path: Path
) -> None:
    service = place.service
    service.settle()
    tokens, _ = prepare(service, tmp_path)
    operator = (service.settings.data / "operator.token").read_text().strip()
    asker = Asker(service.url, [tokens[0], operator])
    place.keep_old()
    service.settle()
    pids = service.pids()
    old = place.sizes()[TENANT]
    with LicetClient(service.url, tokens[0]) as client:
        for _ in range(5):
            assert client.ask("dataset.read", f"{TENANT}/loans").allowed
    newer = place.sizes()[TENANT]
    assert newer >= old + 5
    poll("a checkpoint over them", lambda: signed_last(service) >= newer)

    with contextlib.nullcontext() if way == "running" else place.nobody_at_work():
        place.put_old()
    poll("nothing to be decided", asker.are_refused, 60.0)
    # Not one entry of that log was added, for whoever asked first.
    assert place.sizes()[TENANT] == old
    health = httpx.get(f"{service.url}/health/ready", trust_env=False, verify=NO_TLS)
    assert (health.status_code, "log" in health.json()["faults"]) == (503, True)
    code, told = place.command("doctor")
    assert code != 0
    (logs,) = (found for found in told["findings"] if found["check"] == "logs")
    assert logs["state"] == "broken"
    assert TENANT in logs["detail"]
    code, told = place.command("log", "fsck")
    assert code != 0
    (ours,) = (found for found in told["logs"] if found["tenant"] == TENANT)
    assert any("it was put back" in problem for problem in ours["problems"]), told
    assert "an old database was put in place" in service.log.read_text()

    # Brought back as it was, with nobody at work, and it goes on.
    with place.nobody_at_work():
        place.put_old()
    with LicetClient(service.url, tokens[0]) as client:
        poll("decisions", lambda: is_decided(client), 60.0)
    service.settle()
    assert service.pids()["signer"] == pids["signer"]
    assert place.sizes()[TENANT] > newer
    poll("a checkpoint", lambda: signed_last(service) > newer)
    code, told = place.command("log", "fsck")
    assert code == 0, told
    checks = Checks(service.settings)
    checks.nothing_was_done_undecided()
    checks.engine.dispose()


def is_decided(client: LicetClient) -> bool:
    """Whether the tenant may read its dataset again."""
    try:
        return client.ask("dataset.read", f"{TENANT}/loans").allowed
    except ServerUnavailable:
        return False
