"""Witnesses that are processes of their own: two of three, one of them down and one lying; and what an auditor does with the log."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service_world import Installation, poll, problem, table

from databases import KINDS
from licet_attestations import tlogpolicy
from licet_attestations.cosignature import cosign
from licet_attestations.keys import ED25519, PrivateKey
from licet_attestations.mirror import FolderPlace, update, verify_mirror
from licet_attestations.tlogpolicy import Policy
from licet_attestations.trustroot import TrustRoot
from licet_attestations.vkey import COSIGNER_KIND, VerifierKey
from licet_engine.demo.stage import free_port
from licet_engine.log.fsck import fsck
from licet_engine.log.fsck_named import Against
from licet_engine.log.last_signed import SignersWord
from licet_engine.store.access import Role, open_database

_TENANTS = ("northbank", "lakeside", "platform", "~directory")
_MAX_LAG_S = 2


class Process:
    """A witness's own process."""

    def __init__(self, folder: Path, number: int) -> None:
        self.name = f"W{number}"
        self.folder = folder / f"w{number}"
        self.port = free_port()
        self._command = [sys.executable, "-m", "licet_attestations.witness_server", str(self.folder)]
        made = subprocess.run(
            [*self._command, "--init", f"w{number}.example"], check=True, capture_output=True, timeout=30, text=True
        )
        self.key = VerifierKey.from_text(made.stdout.strip(), COSIGNER_KIND)
        self.logs = folder / "logs"
        self._running: subprocess.Popen[str] | None = None

    @property
    def line(self) -> str:
        return f"witness {self.name} {self.key.to_text()} http://127.0.0.1:{self.port}\n"

    def start(self) -> None:
        self._running = subprocess.Popen(
            [*self._command, "--logs", str(self.logs), "--listen", f"127.0.0.1:{self.port}"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._running.stdout is not None
        assert self._running.stdout.readline().startswith("witness ")

    def kill(self) -> None:
        if self._running is not None:
            self._running.send_signal(signal.SIGKILL)
            self._running.wait(10)
            assert self._running.stdout is not None
            self._running.stdout.close()
            self._running = None


class Liar(http.server.BaseHTTPRequestHandler):
    """Says that it cosigned, with a key that is not the one that is pinned."""

    key = PrivateKey.generate(ED25519)
    asked = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        type(self).asked += 1
        lines = cosign(body.split("\n\n", 1)[1], "w2.example", self.key, int(time.time())).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(lines)))
        self.end_headers()
        self.wfile.write(lines)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # The base class's name.
        pass


class World:
    """An installation that wants two of three witnesses."""

    def __init__(self, folder: Path, urls: str) -> None:
        self.folder = folder
        self.witnesses = [Process(folder, number) for number in range(3)]
        # Read by the users of api and worker, who are not this one.
        self._open = tempfile.TemporaryDirectory(prefix="lw-")
        Path(self._open.name).chmod(0o755)
        self.policy_file = Path(self._open.name) / "policy"
        self.policy_file.write_text("".join(w.line for w in self.witnesses) + "group G 2 W0 W1 W2\nquorum G\n")
        self.service = Installation(
            database_urls=urls,
            witness_policy=str(self.policy_file),
            witness_networks="127.0.0.0/8",
            witness_max_lag_s=_MAX_LAG_S,
            outbound_timeout_s=1.0,
        )
        self.trust = TrustRoot.from_json(self.service.settings.trust_root.read_bytes())
        made = [
            subprocess.run(
                [
                    *(sys.executable, "-m", "licet_engine.cli", "log", "vkey", tenant),
                    *("--trust-root", str(self.service.settings.trust_root)),
                ],
                check=True,
                capture_output=True,
                text=True,
                timeout=30,
            ).stdout
            for tenant in _TENANTS
        ]
        (folder / "logs").write_text("".join(made))
        self.liar = http.server.ThreadingHTTPServer(("127.0.0.1", self.witnesses[2].port), Liar)
        threading.Thread(target=self.liar.serve_forever, daemon=True).start()

    @property
    def policy(self) -> Policy:
        return Policy.from_bytes(self.policy_file.read_bytes())

    def degraded(self) -> list[str]:
        with self.service.http(None) as http_:
            return list(http_.get("/health/ready").json()["degraded"])

    def checkpoint(self, who: str = "northbank/uma") -> str:
        return self.service.client(who).log.file(who.partition("/")[0], "checkpoint").decode()

    def stop(self) -> None:
        self.service.stop()
        for witness in self.witnesses:
            witness.kill()
        self.liar.shutdown()
        self.liar.server_close()
        self._open.cleanup()


@pytest.fixture(scope="module", params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    urls = ""
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres")
        urls = str(server.write_urls(server.create(), tmp_path_factory.mktemp("database") / "urls"))
    made = World(tmp_path_factory.mktemp("witnesses"), urls)
    try:
        made.witnesses[0].start()  # The second is down, and the third lies.
        made.service.start()
        for tenant, region in (("northbank", "us"), ("lakeside", "eu")):
            made.service.people(tenant, region)
        yield made
    finally:
        made.stop()


def test_without_a_quorum_deeds_wait_and_with_one_they_go_on(place: World) -> None:
    service = place.service
    ana = service.client("northbank/ana")
    poll("a log that no quorum has seen for too long", lambda: place.degraded() == ["witnesses"], 15)
    time.sleep(_MAX_LAG_S + 0.1)  # So that it is true of every log.
    body = service.dataset_body("northbank/ana", table())
    operation = ana.act("dataset.register", "northbank/loans", body).require().operation
    assert operation is not None
    time.sleep(3)
    waiting = ana.operation("northbank", operation.id)
    assert waiting.state == "running"
    assert Liar.asked > 0
    # What is decided is still decided and logged, and who is suspended is suspended.
    size = service.size("lakeside")
    service.client("platform/operator").act(
        "tenant.suspend", "lakeside", {"suspended": True, "reason": "a drill"}
    ).require()
    service.client("platform/operator").act(
        "tenant.suspend", "lakeside", {"suspended": False, "reason": "over"}
    ).require()
    assert service.size("lakeside") > size
    place.witnesses[1].start()
    assert ana.wait(operation, timeout_s=60).state == "done"
    poll("a quorum", lambda: place.degraded() == [], 15)


def test_the_checkpoint_that_is_served_verifies_under_the_policy(place: World) -> None:
    found = tlogpolicy.verify(
        place.checkpoint(), place.policy, place.trust.origin("northbank"), place.trust.keys("log")
    )
    assert set(found.cosignatures) == {"W0", "W1"}


def test_a_killed_witness_goes_on_where_it_was(place: World) -> None:
    before = place.checkpoint()
    place.witnesses[0].kill()
    place.service.person("northbank/new", roles=["auditor"])
    time.sleep(1.5)
    place.witnesses[0].start()
    poll("a newer cosigned checkpoint", lambda: place.checkpoint() != before, 30)
    tlogpolicy.verify(place.checkpoint(), place.policy, place.trust.origin("northbank"), place.trust.keys("log"))


def test_evidence_bears_the_quorum_and_verifies_with_the_auditors_policy(place: World, tmp_path: Path) -> None:
    cora = place.service.client("northbank/cora")
    ended = place.service.done(cora, cora.act("evidence.export", "northbank", {}))
    assert ended.state == "done", ended.error
    archive = tmp_path / "northbank.zip"
    with archive.open("wb") as target:
        cora.fetch_artifact(ended, target)
    command = [sys.executable, "-m", "licet_engine.cli", "verify", str(archive)]
    command += ["--trust-root", str(place.service.settings.trust_root), "--tlog-policy"]
    verified = subprocess.run(
        [*command, str(place.policy_file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (verified.returncode, "cosigned by W0, W1" in verified.stdout) == (0, True), verified.stderr
    all_three = tmp_path / "all"
    all_three.write_text(place.policy_file.read_text().replace("group G 2", "group G all"))
    refused = subprocess.run([*command, str(all_three)], capture_output=True, text=True, timeout=60, check=False)
    assert (refused.returncode, "the policy wants 3 of" in refused.stderr) == (1, True), refused.stderr


def test_a_log_is_mirrored_as_static_files_and_verifies_offline(place: World, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(place.service.tokens["northbank/uma"])
    token.chmod(0o600)
    trust = ["--trust-root", str(place.service.settings.trust_root), "--tlog-policy", str(place.policy_file)]
    licet = [sys.executable, "-m", "licet_engine.cli", "log"]
    told: dict[str, Any] = {}
    for _ in range(2):
        run = subprocess.run(
            [
                *(*licet, "mirror", "northbank", "--out", str(tmp_path / "m"), *trust),
                *("--url", place.service.url, "--token-file", str(token), "--format", "json"),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        told = json.loads(run.stdout)
        assert told["cosigned_by"] == ["W0", "W1"]
    verify = subprocess.run(
        [*licet, "verify-mirror", str(tmp_path / "m"), *trust, "--format", "json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (verify.returncode, json.loads(verify.stdout)["size"]) == (0, told["size"])
    (tmp_path / "m" / "tile/0/000.p" / str(told["size"])).write_bytes(bytes(32) * told["size"])
    verify = subprocess.run(
        [*licet, "verify-mirror", str(tmp_path / "m"), *trust], capture_output=True, text=True, timeout=60, check=False
    )
    assert (verify.returncode, "tile/0/000.p" in verify.stderr) == (1, True), verify.stderr


def test_tiles_are_a_tenants_own_and_of_one_spelling(place: World) -> None:
    http_ = place.service.http("northbank/uma")
    served = http_.get("/v1/tlog/northbank/checkpoint")
    assert served.headers["content-type"] == "text/plain; charset=utf-8"
    assert served.headers["cache-control"] == "private, no-cache"
    for path, length in (("0/000.p/7", 7 * 32), ("0/000.p/1", 32)):
        tile = http_.get(f"/v1/tlog/northbank/tile/{path}")
        assert (tile.status_code, len(tile.content)) == (200, length)
        assert tile.headers["content-type"] == "application/octet-stream"
        assert "immutable" in tile.headers["cache-control"]
    for path in ("0/000", "0/001.p/1", "entries/x999/x999/999", "9/000.p/1"):
        problem(http_.get(f"/v1/tlog/northbank/tile/{path}"), 400, "no-such-tile")
    for path in ("0/0", "0/000.p/256", "00/000", "0/x000/000", "data/000"):
        problem(http_.get(f"/v1/tlog/northbank/tile/{path}"), 400, "no-such-tile")
    for who in ("lakeside/uma", "northbank/ana"):
        assert place.service.http(who).get("/v1/tlog/northbank/tile/0/000.p/1").status_code == 403, who
        assert place.service.http(who).get("/v1/tlog/northbank/checkpoint").status_code == 403, who
    assert place.service.http(None).get("/v1/tlog/northbank/checkpoint").status_code == 401


def test_a_mirror_by_the_client_holds_what_the_api_serves(place: World, tmp_path: Path) -> None:
    client = place.service.client("northbank/uma")
    mirror = FolderPlace(tmp_path)
    found = update(mirror, lambda path: client.log.file("northbank", path), place.trust, "northbank", place.policy)
    verify_mirror(mirror, place.trust, "northbank", place.policy)
    # The tiles that the api serves are those that were computed from the entries.
    for path in sorted(p for p in tmp_path.rglob("*") if p.is_file() and p.name != "checkpoint"):
        name = str(path.relative_to(tmp_path))
        assert client.log.file("northbank", name) == path.read_bytes(), name
    assert found.checkpoint.size > 10


def test_every_log_is_whole_with_all_it_names_and_who_signed_it(place: World) -> None:
    settings = place.service.settings
    word = SignersWord(settings)
    engine = open_database(settings, Role.OWNER, every_tenant=True)
    told: list[tuple[str, int, int]] = []
    try:
        against = Against(trust_root=place.trust, policy=place.policy, last_signed=word.last_signed)
        reports = fsck(engine, against=against, progress=lambda *done: told.append(done))
    finally:
        engine.dispose()
    assert [(report.tenant_id, report.problems) for report in reports if report.problems] == []
    assert word.unknown == ""
    assert {name for name, *_ in told} == {report.tenant_id for report in reports if report.size}


def _parent(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def test_safety_valves_and_decisions_go_on_while_every_witness_is_away_and_exports_wait(place: World) -> None:
    service = place.service
    for witness in place.witnesses[:2]:
        witness.kill()
    service.person("northbank/late", roles=["auditor"])  # So that there is an entry which nobody sees.
    poll("the bound to be over", lambda: place.degraded() == ["witnesses"], 15)
    cora = service.client("northbank/cora")
    export = cora.act("evidence.export", "northbank", {}).require().operation
    assert export is not None
    held = cora.act("dataset.hold", "northbank/loans", {"reason": "a litigation"}).require()
    if held.operation is not None:
        assert cora.wait(held.operation, timeout_s=30).state == "done"
    assert [row["reason"] for row in cora.list("northbank", "holds")] == ["a litigation"]
    assert cora.operation("northbank", export.id).state == "running"
    for witness in place.witnesses[:2]:
        witness.start()
    assert cora.wait(export, timeout_s=60).state == "done"


def test_the_witnesses_are_asked_again_after_the_api_was_killed(place: World) -> None:
    before = place.checkpoint()
    # Of the supervisor's children, those that serve the api: they carry its socket's folder in what they were started with.
    commands = {
        int(entry.name): (entry / "cmdline").read_bytes().decode()
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _parent(entry) == os.getpid()
    }
    apis = [pid for pid, command in commands.items() if "licet_engine.app" in command]
    assert apis, commands
    for pid in apis:
        os.kill(pid, signal.SIGKILL)

    def is_back() -> bool:
        try:
            return place.checkpoint() != before
        except Exception:  # noqa: BLE001  # It is away for a moment.
            return False

    poll("a checkpoint that was cosigned after the api came back", is_back, 60)
    tlogpolicy.verify(place.checkpoint(), place.policy, place.trust.origin("northbank"), place.trust.keys("log"))
