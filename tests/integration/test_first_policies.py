"""The policies that a tenant comes with are proved by the service, by itself: signed, in the tenant's log, in its answers and its archives."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from service_world import Installation, poll
from sqlmodel import select

from databases import KINDS
from licet_attestations import canonical, dsse, rpc
from licet_attestations.isolation_pair import BUNDLE_SUBJECT, ISOLATION_INVARIANT, verify_statement
from licet_attestations.signer.client import SignerClient
from licet_attestations.statement import TEST_RESULT, Statement, Subject
from licet_attestations.trustroot import TrustRoot
from licet_engine.domain.refs import PLATFORM
from licet_engine.lifecycle.deed import Door
from licet_engine.log.fsck import fsck
from licet_engine.store import tables
from licet_engine.store.db import tenant_session
from licet_policies import compose
from postgres_server import PostgresServer

TENANTS = ("northbank", "lakeside", "farside", "farmost")
PACKS = [{"name": "sr-11-7"}, {"name": "residency", "mode": "observe", "parameters": {"regions": ["eu"]}}]


@pytest.fixture(scope="module", params=KINDS)
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation that proves what its tenants come with: on the first kind as one user, else as its usual three."""
    urls = ""
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        urls = str(server.write_urls(server.create(), tmp_path_factory.mktemp("database") / "urls"))
    users = "off" if request.param == KINDS[0] else "auto"
    installation = Installation(database_urls=urls, users=users, prove_every_s=1, checkpoint_interval_s=0.2)
    try:
        installation.start()
        for tenant, packs in zip(TENANTS, ([], PACKS, [], []), strict=True):
            installation.people(tenant, "eu", packs=packs)
        for tenant in (PLATFORM, *TENANTS):
            poll(f"the proof for {tenant}", lambda of=tenant: bundle(installation, of).attestation_hex, 120.0)
        yield installation
    finally:
        installation.stop()


@pytest.fixture
def shared(house: Installation) -> Installation:
    """One whose doors are open to this process: where a worker of the test's own can take part."""
    if house.settings.users != "off":
        pytest.skip("its doors are open to its own users alone")
    return house


def bundle(house: Installation, tenant: str) -> tables.PolicyBundle:
    """The bundle in force."""
    with tenant_session(house.engine, tenant) as session:
        return session.exec(select(tables.PolicyBundle).where(tables.PolicyBundle.state == "active")).one()


def attestations(house: Installation, tenant: str) -> dict[str, Statement]:
    """What the tenant's log has of examined bundles, each verified, by digest."""
    trust = TrustRoot.from_json(house.settings.trust_root.read_bytes())
    with tenant_session(house.engine, tenant) as session:
        rows = session.exec(select(tables.Attestation).where(tables.Attestation.subject == BUNDLE_SUBJECT)).all()
    entries = house.entries(tenant)
    found = {}
    for row in rows:
        payload = dsse.verify_envelope(dsse.Envelope.from_json(row.envelope.encode()), trust.keys("attestation"))
        leaf, record = entries[row.leaf_index]
        assert (leaf.kind, leaf.actor, record["digest"]) == ("attestation", tenant, row.digest_hex)
        found[row.digest_hex] = Statement.from_bytes(payload)
    return found


def doctor(house: Installation) -> list[dict[str, Any]]:
    """What `licet doctor` says of policies."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LICET_")}
    run = [sys.executable, "-m", "licet_engine.cli", "doctor", "--format", "json"]
    told = subprocess.run(
        run, capture_output=True, text=True, check=False, env=environment | house.settings.to_environment()
    )
    return [dict(each) for each in json.loads(told.stdout)["findings"] if each["check"] == "policies"]


def in_force(house: Installation, tenant: str, body: bytes, digest_hex: str = "") -> str:
    """Put a bundle among those that were in force, as if it had been before bundles were examined; return its digest."""
    digest_hex = digest_hex or hashlib.sha256(body).hexdigest()
    row = {"digest_hex": digest_hex, "author": "sam", "state": "superseded", "body": body, "activated_at_ms": 2}
    with tenant_session(house.engine, tenant, write=True) as session:
        session.add(tables.PolicyBundle(tenant_id=tenant, created_at_ms=1, **row))
    return digest_hex


def end(house: Installation, claim: Statement, *, tenant: str = "farside") -> Mapping[str, Any]:
    """Tell the api of an examination, as a worker does that was taken over: it can have anything signed."""
    envelope = SignerClient(house.settings.signer_socket).attest(tenant, claim.to_bytes())
    told: Mapping[str, Any] = Door(house.settings.api_socket).call("unproved_end", envelope=envelope.decode())
    return told


def test_each_tenant_has_a_signed_proof_of_what_it_came_with(house: Installation) -> None:
    for tenant in (PLATFORM, *TENANTS):
        row = bundle(house, tenant)
        assert row.proved
        ((digest, claim),) = attestations(house, tenant).items()
        assert row.attestation_hex == digest
        assert (claim.predicate_type, claim.subject) == (TEST_RESULT, (Subject(BUNDLE_SUBJECT, row.digest_hex),))
        told = claim.predicate
        assert (told["tenant"], told["result"]) == (tenant, "PASSED")
        assert (told["passedTests"], told["failedTests"]) == (["proofs"], [])
        assert told["proofs"][ISOLATION_INVARIANT] == "proved"
        assert set(told["proofs"].values()) == {"proved"}
        assert told["tools"]["cvc5"]
        assert told["startedOn"] <= told["finishedOn"]
    # Packs bring invariants of their own.
    packed, plain = (next(iter(attestations(house, t).values())).predicate["proofs"] for t in ("lakeside", "farside"))
    assert packed.keys() > plain.keys()


def test_no_tenant_is_told_when_anothers_were_proved_though_they_are_the_same(house: Installation) -> None:
    found = [next(iter(attestations(house, tenant).values())) for tenant in (PLATFORM, "northbank", "farside")]
    assert len({claim.subject for claim in found}) == 1
    assert len({claim.predicate["startedOn"] for claim in found}) == len(found)


def test_it_is_shown_with_the_bundle_and_the_doctor_counts_it(house: Installation) -> None:
    row = bundle(house, "lakeside")
    told = house.client("lakeside/sam").act("policy.read", f"lakeside/{row.digest_hex[:12]}", {}).require().result
    assert (told["proved"], told["attestation_hex"], told["publication"]) == (True, row.attestation_hex, None)
    (found,) = doctor(house)
    assert (found["state"], found["detail"]) == (
        "ok",
        "those of 5 of 5 tenants are proved, the platform's own among them",
    )


def test_the_isolation_answer_has_a_proof_for_all_policies(house: Installation) -> None:
    found = house.client("lakeside/uma").evidence.isolation("northbank", "lakeside")
    trust = TrustRoot.from_json(house.settings.trust_root.read_bytes())
    predicate = verify_statement(canonical.dumps(found["statement"]), trust).predicate
    row = bundle(house, "lakeside")
    assert predicate["policies"] == {row.digest_hex: row.attestation_hex}
    assert predicate["sections"][2]["status"] == "supported"


def test_the_archive_has_a_proof_for_all_policies(house: Installation, tmp_path: Path) -> None:
    archive = tmp_path / "evidence.zip"
    cora = house.client("lakeside/cora")
    ended = house.done(cora, cora.act("evidence.export", "lakeside", {}))
    assert ended.state == "done", ended
    with archive.open("xb") as file:
        cora.fetch_artifact(ended, file)
    run = [sys.executable, "-m", "licet_engine.cli", "verify", str(archive)]
    run += ["--trust-root", str(house.settings.trust_root), "--format", "json"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    told = json.loads(done.stdout)
    assert done.returncode == 0, told
    assert {step["name"]: step["detail"] for step in told["steps"]}["policies"] == "1 bundles, 1 of them proved"
    assert not any("proved" in limit for limit in told["limits"])


def without(guardrail: str) -> bytes:
    """A bundle that lacks some guardrails."""
    bundle = compose()
    bundle["policies"] = [one for one in bundle["policies"] if not one["id"].startswith(f"guardrail.{guardrail}")]
    return canonical.dumps(bundle)


def set_state(house: Installation, tenant: str, digest_hex: str, state: str) -> None:
    with tenant_session(house.engine, tenant, write=True) as session:
        row = session.exec(select(tables.PolicyBundle).where(tables.PolicyBundle.digest_hex == digest_hex)).one()
        row.state = state
        session.add(row)


def test_policies_that_break_an_invariant_are_attested_as_such_and_told(house: Installation) -> None:
    house.halt()
    hollow, older = (in_force(house, "farside", without(name)) for name in ("isolation", "publication"))
    # What is damaged is of a tenant before it, and keeps nobody.
    damaged = in_force(house, "farmost", b"{}", "cd" * 32)
    known = set(attestations(house, "farside"))
    house.again()
    poll("the verdicts", lambda: len(set(attestations(house, "farside")) - known) == 2, 120.0)
    claims = {
        claim.subject[0].sha256_hex: claim.predicate
        for name, claim in attestations(house, "farside").items()
        if name not in known
    }
    assert claims.keys() == {hollow, older}
    for digest_hex, outcome in ((hollow, "refuted"), (older, "proved")):
        predicate = claims[digest_hex]
        assert (predicate["result"], predicate["failedTests"]) == ("FAILED", ["proofs"])
        assert predicate["proofs"][ISOLATION_INVARIANT] == outcome
    poll("the service to say so", lambda: house.output().count("policies in force break an invariant") == 2)
    # Neither is in force now: nothing is wrong at present. What was then is told by the answer.
    assert doctor(house)[0]["state"] == "ok"
    found = house.client("farside/uma").evidence.isolation("northbank", "farside")["predicate"]
    assert (found["policies"][hollow], len(found["policies"][older])) == ("", 64)
    assert found["sections"][2]["status"] == "not-proven-here"
    for digest_hex, state, what in ((hollow, "broken", "something across tenants"), (older, "weak", "of today")):
        set_state(house, "farside", digest_hex, "active")
        (told,) = doctor(house)
        set_state(house, "farside", digest_hex, "superseded")
        assert (told["state"], what in told["detail"]) == (state, True), told
        assert f"farside/{digest_hex[:12]}" in told["detail"]
    poll("the damage to be told", lambda: "run licet log fsck" in house.output(), 60.0)
    assert house.output().count("run licet log fsck") == 1
    assert not any(claim.subject[0].sha256_hex == damaged for claim in attestations(house, "farmost").values())


def test_only_an_examination_of_what_was_in_force_is_taken(shared: Installation) -> None:
    row = bundle(shared, "northbank")
    predicate = {"tenant": "farside", "result": "PASSED", "proofs": {ISOLATION_INVARIANT: "proved"}}
    size = shared.size("farside")
    for subject, changes, why in (
        (Subject(BUNDLE_SUBJECT, "ab" * 32), {}, "never in force in farside"),
        (Subject("policy-project", row.digest_hex), {}, "not of an examination"),
        (Subject(BUNDLE_SUBJECT, row.digest_hex), {"proofs": []}, "not of an examination"),
        (Subject(BUNDLE_SUBJECT, row.digest_hex), {"proofs": {}}, "do not say of each invariant"),
        (Subject(BUNDLE_SUBJECT, row.digest_hex), {"proofs": {"other": "proved"}}, "do not say of each invariant"),
        (Subject(BUNDLE_SUBJECT, row.digest_hex), {"proofs": {ISOLATION_INVARIANT: "unknown"}}, "do not say of each"),
        (Subject(BUNDLE_SUBJECT, row.digest_hex), {"proofs": {ISOLATION_INVARIANT: ["proved"]}}, "do not say of each"),
        (Subject(BUNDLE_SUBJECT, row.digest_hex), {"proofs": {ISOLATION_INVARIANT: "refuted"}}, "result is another"),
        (Subject(BUNDLE_SUBJECT, row.digest_hex), {"result": "FAILED"}, "result is another"),
        (Subject(BUNDLE_SUBJECT, row.digest_hex), {"result": []}, "result is another"),
    ):
        with pytest.raises(rpc.RpcFault, match=why):
            end(shared, Statement((subject,), TEST_RESULT, predicate | changes))
    forged = SignerClient(shared.settings.signer_socket).attest(
        "farside", Statement((Subject(BUNDLE_SUBJECT, row.digest_hex),), TEST_RESULT, predicate).to_bytes()
    )
    broken = json.loads(forged) | {"payload": json.loads(forged)["payload"][:-4] + "AAAA"}
    with pytest.raises(rpc.RpcFault, match="no attestation of this installation"):
        Door(shared.settings.api_socket).call("unproved_end", envelope=json.dumps(broken))
    assert shared.size("farside") == size


def test_whoever_comes_second_is_told_of_the_first_and_nothing_is_logged(shared: Installation) -> None:
    row, size = bundle(shared, "northbank"), shared.size("northbank")
    predicate = {"tenant": "northbank", "result": "FAILED", "proofs": {ISOLATION_INVARIANT: "refuted"}}
    claim = Statement((Subject(BUNDLE_SUBJECT, row.digest_hex),), TEST_RESULT, predicate)
    assert end(shared, claim, tenant="northbank") == {"digest": row.attestation_hex}
    assert shared.size("northbank") == size
    assert bundle(shared, "northbank").proved


def test_what_nobody_proved_for_long_the_doctor_calls_weak(shared: Installation) -> None:
    with tenant_session(shared.engine, "northbank", write=True) as session:
        session.add(
            tables.PolicyBundle(
                tenant_id="northbank",
                digest_hex="cd" * 32,
                author="sam",
                state="active",
                body=b"{}",
                created_at_ms=1,
                activated_at_ms=2,
            )
        )
    try:
        (found,) = doctor(shared)
        assert (found["state"], "northbank/cdcdcdcdcdcd" in found["detail"]) == ("weak", True), found
    finally:
        with tenant_session(shared.engine, "northbank", write=True) as session:
            row = session.exec(select(tables.PolicyBundle).where(tables.PolicyBundle.digest_hex == "cd" * 32)).one()
            session.delete(row)


def test_the_logs_are_whole_after_all(house: Installation) -> None:
    assert [problem for report in fsck(house.engine) for problem in report.problems] == []
