"""Scheduled probes: the service tries its own wall, by itself, as a principal like any other, and says what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from service_world import Installation, free_ports, poll
from sqlmodel import select

from databases import KINDS
from licet_attestations import dsse, rpc
from licet_attestations.signer.client import SignerClient
from licet_attestations.statement import TEST_RESULT, Statement
from licet_attestations.trustroot import TrustRoot
from licet_engine.canaries import ACTOR, OWNER
from licet_engine.cli import run
from licet_engine.client import LicetClient
from licet_engine.domain.refs import PLATFORM
from licet_engine.lifecycle.deed import Door
from licet_engine.log.fsck import verify_logs
from licet_engine.probe_report import ProbeReport, read_report
from licet_engine.prober import Prober
from licet_engine.probing import probes
from licet_engine.store import tables
from licet_engine.store.db import tenant_session
from postgres_server import PostgresServer

EVERY_S = 3600


@pytest.fixture(scope="module", params=KINDS)
def probed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation that probes itself: on the first kind as one user, else as its usual three."""
    urls = ""
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        urls = str(server.write_urls(server.create(), tmp_path_factory.mktemp("database") / "urls"))
    users = "off" if request.param == KINDS[0] else "auto"
    installation = Installation(
        database_urls=urls, users=users, probe_every_s=EVERY_S, metrics_port=free_ports(3), checkpoint_interval_s=0.2
    )
    try:
        installation.start()
        poll("the first run", lambda: ended(installation), 90.0)
        yield installation
    finally:
        installation.stop()


@pytest.fixture
def shared(probed: Installation) -> Installation:
    """One whose doors are open to this process: where a worker of the test's own can take part."""
    if probed.settings.users != "off":
        pytest.skip("its doors are open to its own users alone")
    return probed


def ended(installation: Installation) -> ProbeReport | None:
    report = read_report(installation.settings.probe_report)
    return report if report is not None and report.ended_at_ms else None


def doctor(installation: Installation) -> dict[str, Any]:
    """What `licet doctor` says of probes."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LICET_")}
    environment |= installation.settings.to_environment()
    run = [sys.executable, "-m", "licet_engine.cli", "doctor", "--format", "json"]
    told = subprocess.run(run, capture_output=True, text=True, check=False, env=environment)
    (found,) = (each for each in json.loads(told.stdout)["findings"] if each["check"] == "probes")
    return dict(found)


def metrics(installation: Installation) -> dict[str, float]:
    """The gauges of probes, as they are now."""
    token = installation.settings.metrics_token.read_text().strip()
    url = f"http://127.0.0.1:{installation.settings.metrics_port}/metrics"
    answer = httpx.get(url, headers={"Authorization": f"Bearer {token}"}, trust_env=False)
    lines = [line.split() for line in answer.text.splitlines() if line.startswith("licet_probe_")]
    return {name: float(value) for name, value in lines}


def degraded(installation: Installation) -> bool:
    """Whether readiness names the probes."""
    with installation.http(None) as http:
        answer = http.get("/health/ready")
    assert answer.status_code == 200, "it goes on deciding"
    return "probes" in answer.json()["degraded"]


def attested(installation: Installation, tenant: str) -> list[tuple[str, Statement]]:
    """Attestations of probes in a tenant's log, each verified, with its digest."""
    trust = TrustRoot.from_json(installation.settings.trust_root.read_bytes())
    with tenant_session(installation.engine, tenant) as session:
        rows = session.exec(
            select(tables.Attestation)
            .where(tables.Attestation.subject == "isolation-probes")
            .order_by(tables.Attestation.leaf_index)  # type: ignore[arg-type]  # A column, which mypy takes for its value.
        ).all()
    found = []
    entries = installation.entries(tenant)
    for row in rows:
        payload = dsse.verify_envelope(dsse.Envelope.from_json(row.envelope.encode()), trust.keys("attestation"))
        leaf, record = entries[row.leaf_index]
        assert (leaf.kind, record["digest"]) == ("attestation", row.digest_hex)
        found.append((row.digest_hex, Statement.from_bytes(payload)))
    return found


def test_the_service_tries_its_wall_by_itself_and_attests_what_came_of_it(probed: Installation) -> None:
    report = ended(probed)
    assert report is not None
    assert (report.outcome, report.findings, report.failures) == ("held", (), 0), report
    assert report.tried == len(list(probes(OWNER)))
    for tenant in (OWNER, PLATFORM):
        digest, claim = attested(probed, tenant)[0]
        assert claim.predicate_type == TEST_RESULT
        assert claim.predicate["tenant"] == tenant
        assert (claim.predicate["result"], claim.predicate["tried"]) == ("PASSED", report.tried)
        assert digest in dict(report.attested)[tenant]
    # Each try stands in both logs, as any other tenant's would.
    attempts = [leaf for leaf, _ in probed.entries(OWNER) if leaf.kind == "attempt"]
    assert len(attempts) >= report.tried
    assert {leaf.actor for leaf in attempts} == {ACTOR}
    assert {leaf.actor for leaf, _ in probed.entries(PLATFORM)} <= {PLATFORM, ACTOR}
    assert doctor(probed)["state"] == "ok"
    assert not degraded(probed)
    gauges = metrics(probed)
    assert (gauges["licet_probe_findings"], gauges["licet_probe_failures"]) == (0, 0)
    assert gauges["licet_probe_held_timestamp_seconds"] == pytest.approx(report.held_at_ms / 1000)
    verify_logs(probed.engine)


def test_the_canaries_are_logged_and_their_tokens_are_short_and_few(probed: Installation) -> None:
    events = [record.get("event") for leaf, record in probed.entries(PLATFORM) if leaf.owner in {ACTOR, OWNER}]
    assert events == ["tenant-created", "tenant-created"]
    for tenant in (ACTOR, OWNER):
        with tenant_session(probed.engine, tenant) as session:
            tokens = session.exec(select(tables.ApiToken)).all()
        live = [token for token in tokens if token.revoked_at_ms is None]
        assert len(live) == 1
        assert live[0].expires_at_ms - live[0].created_at_ms == 900_000
    assert "licet_" not in probed.settings.probe_report.read_text()


class Leaky(Door):
    """The door of an api that takes one tenant's principal for an auditor of the other's: a wall that does not hold."""

    def call(self, method: str, **params: Any) -> Any:
        told = super().call(method, **params)
        if method != "probes_begin":
            return told
        with LicetClient(self.url, told[OWNER]) as keeper:
            keeper.act("person.administer", f"{OWNER}/uma", {"roles": ["auditor"]}).require()
            return told | {ACTOR: keeper.act("token.issue", f"{OWNER}/uma", {}).require().result["token"]}

    url = ""


def prober(
    installation: Installation, kind: type[Door] = Door, *, socket: Path | None = None, every_s: int = 1
) -> Prober:
    """A prober of the test's own; by default one that is always due."""
    door = kind(socket or installation.settings.api_socket, patience_s=0.2)
    settings = replace(installation.settings, probe_every_s=every_s)
    return Prober(settings, door, SignerClient(installation.settings.signer_socket).attest)


def test_what_comes_through_is_an_alarm_until_it_is_mended_and_is_remembered(shared: Installation) -> None:
    Leaky.url = shared.url
    poll("it to be due", lambda: prober(shared, Leaky).turn())
    report = ended(shared)
    assert report is not None
    assert report.outcome == "found"
    assert "GET /v1/log/TENANT/entries" in report.findings
    _, claim = attested(shared, PLATFORM)[-1]
    assert claim.predicate["result"] == "FAILED"
    assert "GET /v1/log/TENANT/entries" in claim.predicate["failedTests"]
    told = doctor(shared)
    assert (told["state"], "came through" in told["detail"]) == ("broken", True)
    poll("readiness to tell", lambda: degraded(shared))
    poll("metrics to tell", lambda: metrics(shared)["licet_probe_findings"] > 10)
    # The wall stands again. That it did not, is not forgotten.
    poll("a run that holds", lambda: prober(shared).turn() and (r := ended(shared)) and r.outcome == "held")
    assert doctor(shared)["state"] == "weak"
    assert "came through" in doctor(shared)["detail"]
    poll("metrics to tell", lambda: metrics(shared)["licet_probe_findings"] == 0)


def test_a_run_that_cannot_be_made_is_told_and_none_is_skipped(shared: Installation) -> None:
    shared.settings.probe_report.unlink()
    nowhere = shared.settings.api_socket.with_name("nobody.sock")
    for count in (1, 2):
        poll("it to be due", lambda: prober(shared, socket=nowhere).turn())
        report = ended(shared)
        assert report is not None
        assert (report.outcome, report.failures) == ("failed", count)
        assert "the api does not answer" in report.reason
    assert doctor(shared)["state"] == "weak"
    assert degraded(shared)
    poll("metrics to tell", lambda: metrics(shared)["licet_probe_failures"] == 2)
    # One that died over it is not taken for one that is at it.
    replace(report, outcome="running").write(shared.settings.probe_report)
    assert prober(shared).turn()
    report = ended(shared)
    assert report is not None
    assert (report.outcome, report.failures) == ("held", 0)
    assert doctor(shared)["state"] == "ok"


def test_of_several_workers_one_makes_the_run(shared: Installation) -> None:
    shared.settings.probe_report.unlink()
    before = len(attested(shared, OWNER))
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: prober(shared, every_s=EVERY_S).turn(), range(3)))
    assert sorted(made) == [False, False, True]
    assert len(attested(shared, OWNER)) == before + 1


def test_a_tenant_that_was_not_made_for_it_is_left_alone(shared: Installation) -> None:
    with tenant_session(shared.engine, ACTOR, write=True) as session:
        row = session.exec(select(tables.Principal).where(tables.Principal.name == "prober")).one()
        roles, row.roles = row.roles, ["auditor"]
        session.add(row)
    try:
        poll("it to be due", lambda: prober(shared).turn())
        report = ended(shared)
        assert report is not None
        assert "is not as it was made for probes" in report.reason
    finally:
        with tenant_session(shared.engine, ACTOR, write=True) as session:
            row = session.exec(select(tables.Principal).where(tables.Principal.name == "prober")).one()
            row.roles = roles
            session.add(row)


def test_a_report_that_cannot_be_read_is_kept_and_another_begun(shared: Installation) -> None:
    path = shared.settings.probe_report
    kept = path.with_suffix(".unreadable")
    path.write_text('{"v": 1, "found')
    poll("it to be due", lambda: prober(shared).turn())
    report = ended(shared)
    assert report is not None
    assert report.outcome == "held"
    assert kept.read_text() == '{"v": 1, "found'
    kept.unlink()


def test_nothing_is_tried_for_an_attestation_that_nobody_would_sign(
    shared: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LICET_URL", shared.url)
    monkeypatch.setenv("LICET_TOKEN", shared.tokens["platform/operator"])
    before = len(shared.entries(OWNER))
    assert run(["probe", "run", "--owner", OWNER, "--attest", "--data", str(tmp_path)]) == 2
    assert f"no signer runs in {tmp_path}" in capsys.readouterr().err
    assert len(shared.entries(OWNER)) == before


def test_the_door_takes_no_other_attestation(shared: Installation) -> None:
    door = Door(shared.settings.api_socket)
    with tenant_session(shared.engine, OWNER) as session:
        good = session.exec(select(tables.Attestation).where(tables.Attestation.subject == "isolation-probes")).first()
    assert good is not None
    # Once more is harmless.
    assert door.call("probes_end", envelope=good.envelope) == {"digest": good.digest_hex}
    body = json.loads(good.envelope)
    body["signatures"][0]["sig"] = "AAAA" + body["signatures"][0]["sig"][4:]
    signer = SignerClient(shared.settings.signer_socket)
    claim = Statement.from_bytes(dsse.Envelope.from_json(good.envelope.encode()).payload)
    other = replace(claim, predicate=claim.predicate | {"tenant": ACTOR})
    for envelope in (json.dumps(body), "{}", signer.attest(ACTOR, other.to_bytes()).decode()):
        with pytest.raises(rpc.RpcFault):
            door.call("probes_end", envelope=envelope)
