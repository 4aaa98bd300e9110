"""The command line against a real service: the three processes, SQLite, the sandbox, real data."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from licet_engine.cli import run
from licet_engine.client import LicetClient, Operation

pytestmark = pytest.mark.slow

Run = Callable[..., tuple[int, Any]]
COLUMNS = ("income", "ratio", "minor", "deny")


@dataclass(frozen=True)
class Service:
    """A running service.

    Attributes:
        url: Where it answers.
        folder: Where tokens and files lie; ``data`` below it is the installation's.
        router_port: Where its router listens.
    """

    url: str
    folder: Path
    router_port: str

    @property
    def data(self) -> Path:
        return self.folder / "data"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _rows(file: Path) -> None:
    """A table in which ``ratio`` tells most of ``deny`` and ``minor`` nothing, the same on every machine."""
    lines = [",".join(COLUMNS)]
    for i in range(900):
        ratio = (i * 37 % 100) / 100
        deny = "yes" if (ratio > 0.6) != (i % 11 == 0) else "no"
        lines.append(f"{(i * 53 % 90) / 10},{ratio},{'yes' if i % 3 == 0 else 'no'},{deny}")
    file.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("cli")
    port = _free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LICET_")}
    environment["LICET_ROUTER_PORT"] = str(_free_port())
    command = [sys.executable, "-m", "licet_engine.cli", "serve", "--init"]
    command += ["--data", str(folder / "data"), "--port", str(port)]
    with (folder / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "licet serves" in line:
                break
        else:
            pytest.fail(f"the service did not start:\n{(folder / 'serve.log').read_text()}")
        yield Service(f"http://127.0.0.1:{port}", folder, environment["LICET_ROUTER_PORT"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.stdout.close()
        assert process.wait(60) == 0


@pytest.fixture
def licet(service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command as somebody; gives the exit code and the JSON document."""
    for name in [name for name in os.environ if name.startswith("LICET_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LICET_URL", service.url)
    monkeypatch.setenv("LICET_ROUTER_PORT", service.router_port)

    def call(who: str, line: str, *more: str) -> tuple[int, Any]:
        token = service.data / "operator.token" if who == "operator" else service.folder / f"{who}.token"
        monkeypatch.setenv("LICET_TOKEN_FILE", str(token))
        code = run([*line.split(), *more, "--format", "json"])
        out = capsys.readouterr().out
        return code, json.loads(out) if out else None

    return call


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """What one step leaves for the next."""
    return {}


def _must(answer: tuple[int, Any]) -> Any:
    code, document = answer
    assert code == 0, document
    return document


def test_1_a_tenant_its_people_and_their_tokens(licet: Run, service: Service) -> None:
    for tenant, region in (("northbank", "us"), ("lakeside", "eu")):
        packs = [
            *("--pack", "sr-11-7", "--pack", "residency", "--pack-parameter", f'residency.regions=["{region}"]'),
            *("--pack-parameter", 'sr-11-7.engineering_approval_tiers=["none"]'),
            *("--pack-parameter", 'sr-11-7.model_risk_approval_tiers=["low"]'),
            # This bank takes it upon itself to hold such versions to less.
            *("--pack-parameter", 'sr-11-7.protected_tiers=["low"]'),
            *("--pack-parameter", 'sr-11-7.confidential_tiers=["low"]'),
        ]
        out = str(service.folder / f"{tenant}-admin.token")
        _must(licet("operator", f"tenant create {tenant} --region {region}", *packs, "--out", out))
        places = "--environment us-east=us --environment eu-west=eu --budget training=10"
        _must(licet(f"{tenant}-admin", f"tenant administer {tenant} {places}"))
    people = {"ana": "data-scientist", "mia": "model-risk", "cora": "compliance", "sam": "security-engineer"}
    for name, role in people.items():
        _must(licet("northbank-admin", f"person administer northbank/{name} --role {role}"))
    _must(licet("northbank-admin", "person administer northbank/pipe --kind service --owner ana --role pipeline"))
    for name in (*people, "pipe"):
        out = str(service.folder / f"{name}.token")
        _must(licet("northbank-admin", f"token issue northbank/{name} --ttl 1h", "--out", out))
        assert Path(out).stat().st_mode & 0o777 == 0o600
    listed = _must(licet("northbank-admin", "person list northbank"))["items"]
    assert {row["name"] for row in listed} == {*people, "pipe", "admin"}


def test_2_a_dataset_is_registered_and_a_broken_one_is_not(licet: Run, service: Service) -> None:
    rows = service.folder / "loans.csv"
    _rows(rows)
    broken = service.folder / "broken.csv"
    broken.write_text(rows.read_text() + "1,NaN,no,yes\n")
    line = "--classification confidential --residency us --use credit-risk --expires 2030-01-01 --label deny --protected minor --wait"
    code, document = licet("ana", f"dataset register northbank/broken {line}", "--file", str(broken))
    assert code == 2
    assert "ratio" in document["operation"]["error"]["message"]
    document = _must(licet("ana", f"dataset register northbank/loans {line}", "--file", str(rows)))
    assert document["operation"]["state"] == "done"
    listed = _must(licet("ana", "dataset list northbank"))["items"]
    assert {(row["name"], row["state"]) for row in listed} == {("loans", "ready"), ("broken", "failed")}
    copy = service.folder / "copy.csv"
    _must(licet("ana", "dataset read northbank/loans", "--out", str(copy)))
    assert copy.read_bytes() == rows.read_bytes()


def test_3_training_abroad_is_denied_with_the_path_to_yes(licet: Run) -> None:
    line = "ask train northbank/run-0 --dataset northbank/loans --environment eu-west --use credit-risk"
    code, document = licet("ana", line)
    assert code == 1
    assert "guardrail.residency.training" in [p["id"] for p in document["decision"]["policies"]]
    assert [step["name"] for step in document["path"]["steps"]] == ["environment:us-east"]


def test_4_a_model_is_trained_registered_and_checked(licet: Run, service: Service) -> None:
    line = "train launch northbank/run-1 --dataset northbank/loans --environment us-east --use credit-risk"
    document = _must(licet("ana", f"{line} --spec epochs=150 --wait"))
    assert document["operation"]["result"]["attestation"]
    document = _must(licet("ana", "model register northbank/risk --run northbank/run-1 --tier low --wait"))
    assert document["result"]["version"] == "northbank/risk@1"
    _must(licet("ana", "model check northbank/risk@1 --kind technical --kind bias --wait"))
    archive = service.folder / "model.zip"
    _must(licet("ana", "model download northbank/risk@1", "--out", str(archive)))
    with zipfile.ZipFile(archive) as found:
        assert {"model.safetensors", "architecture.json", "model.sig"} <= set(found.namelist())


def test_5_what_lacks_only_approvals_ends_with_3_and_names_the_tracks(licet: Run) -> None:
    code, document = licet("pipe", "ask promote northbank/risk@1 --to prod")
    assert code == 3, document
    assert document["approval_pending"] is True
    assert [step["name"] for step in document["path"]["steps"]] == ["approval:model-risk"]
    code, _ = licet("pipe", "model promote northbank/risk@1 --to prod --wait")
    assert code == 3


def test_6_nobody_approves_their_own_work(licet: Run) -> None:
    line = f"approval approve northbank/risk@1 --track model-risk --reason mine --binding {'0' * 64}"
    code, document = licet("ana", line)
    assert code == 1
    ids = [policy["id"] for policy in document["decision"]["policies"]]
    assert "guardrail.separation-of-duties.author" in ids


def test_7_after_approval_the_same_ask_says_yes(licet: Run, told: dict[str, Any]) -> None:
    _must(licet("ana", "approval request northbank/risk@1 --track model-risk"))
    looked_at = _must(licet("mia", "model read northbank/risk@1"))["result"]["version"]["binding"]
    line = f"model approve northbank/risk@1 --track model-risk --wait --binding {looked_at[:16]}"
    _must(licet("mia", line, "--reason", "holds on the held-out rows"))
    _must(licet("pipe", "ask promote northbank/risk@1 --to prod"))
    document = _must(licet("pipe", "model promote northbank/risk@1 --to prod --wait"))
    told["promotion"] = document["decision"]["id"]
    version = _must(licet("ana", "model read northbank/risk@1"))["result"]["version"]
    assert version["stage"] == "prod"
    assert version["history"][0]["decision_id"] == told["promotion"]
    code, document = licet("pipe", "model promote northbank/risk@1 --to prod")
    assert code == 2
    assert document["error"]["code"] == "conflict"


def test_8_a_hold_keeps_the_data(licet: Run) -> None:
    _must(licet("cora", "hold place northbank/loans --reason litigation"))
    for line in ("dataset delete northbank/loans", "keys destroy northbank --reason x --yes"):
        code, document = licet("northbank-admin", line)
        assert code == 1, line
        assert any(p["id"].startswith("guardrail.holds") for p in document["decision"]["policies"])
    _must(licet("cora", "hold lift northbank/loans --reason settled"))


@pytest.mark.parametrize(
    "line",
    [
        "ask read {}/loans",
        "ask download {}/risk@1",
        "ask export {}",
        "dataset delete {}/loans",
        "dataset list {}",
        "operation show {}/" + "0" * 32,
    ],
)
def test_9_what_is_foreign_and_what_does_not_exist_look_the_same(licet: Run, line: str) -> None:
    documents = []
    for tenant in ("northbank", "nowhere"):
        code, document = licet("lakeside-admin", line.format(tenant))
        assert code == 1
        text = json.dumps(document)
        documents.append(text.replace(document["decision"]["id"], "ID").replace(tenant, "TENANT"))
    assert documents[0] == documents[1]


def test_a_decision_is_explained_from_its_record(licet: Run, told: dict[str, Any]) -> None:
    document = _must(licet("sam", f"decision explain northbank/{told['promotion']}"))
    assert document["explanation"]["kind"] == "allowed"
    document = _must(licet("sam", f"decision show northbank/{told['promotion']}"))
    assert document["record"]["action"] == "model.promote"


def test_the_log_shows_a_signed_checkpoint_and_its_entries(licet: Run) -> None:
    head = _must(licet("sam", "log checkpoint northbank"))
    assert head["checkpoint"].startswith(f"{head['origin']}\n{head['size']}\n")
    entries = _must(licet("sam", "log entries northbank --first 1 --count 2"))["entries"]
    assert [entry["index"] for entry in entries] == [1, 2]


def test_a_denied_look_up_ends_with_1(licet: Run) -> None:
    code, document = licet("ana", "log checkpoint northbank")
    assert code == 1
    assert document["decision"]["decision"] == "deny"


def test_evidence_verifies_offline_and_a_changed_byte_does_not(licet: Run, service: Service, tmp_path: Path) -> None:
    archive = tmp_path / "northbank.zip"
    _must(licet("cora", "evidence export northbank", "--out", str(archive)))
    root = tmp_path / "trust-root.json"
    shutil.copy(service.data / "trust-root.json", root)
    command = [sys.executable, "-m", "licet_engine.cli", "verify", str(archive), "--trust-root", str(root)]
    out = subprocess.run([*command, "--replay", "--format", "json"], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stdout + out.stderr
    report = json.loads(out.stdout)
    assert report["tenant"] == "northbank"
    assert report["isolation"]["answer"] == "holds"
    assert report["counts"]["replayed"] == report["counts"]["allow"] + report["counts"]["deny"]

    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(bytes(data))
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.returncode == 1
    assert "NOT verified, at step" in out.stderr


def test_the_client_waits_and_an_idempotency_key_does_a_thing_once(service: Service) -> None:
    token = (service.folder / "ana.token").read_text().strip()
    with LicetClient(service.url, token) as client:
        first = client.model.check("northbank/risk@1", kinds=["technical"], idempotency_key="once")
        again = client.model.check("northbank/risk@1", kinds=["technical"], idempotency_key="once")
        assert first.operation is not None
        assert first == again
        seen: list[Operation] = []
        assert client.wait(first.operation, on_progress=seen.append).require().is_done
        assert seen[-1].state == "done"


def test_the_doctor_finds_the_service_running(licet: Run, service: Service) -> None:
    port = service.url.rpartition(":")[2]
    code, document = licet("operator", "doctor", "--data", str(service.data), "--port", port)
    assert code in {0, 1}, document
    states = {finding["check"]: finding["state"] for finding in document["findings"]}
    for check in ("keys", "migrations", "clock", "signer", "router", "worker", "api live", "api ready", "router ready"):
        assert states[check] == "ok", document


def test_the_logs_are_whole(licet: Run, service: Service) -> None:
    logs = _must(licet("operator", "log fsck", "--data", str(service.data)))["logs"]
    assert {"northbank", "lakeside", "platform"} <= {entry["tenant"] for entry in logs}
    assert not any(entry["problems"] for entry in logs)
