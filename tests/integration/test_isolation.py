"""The isolation answer of one pair, asked of a real installation and verified as an auditor does: offline, by pinned keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from service_world import Installation, poll, table

from licet_adapters.journal import journals
from licet_adapters.s3_accesses import StoreAccess
from licet_attestations import canonical, directory
from licet_attestations.errors import VerificationError
from licet_attestations.isolation_pair import ISOLATION_INVARIANT, PairAnswer, report_html, verify_statement
from licet_attestations.leaf import DIRECTORY
from licet_attestations.pairs import PairsMap
from licet_attestations.statement import TEST_RESULT, Statement, Subject
from licet_attestations.trustroot import TrustRoot
from licet_engine.attester import attest_and_log
from licet_engine.client_values import Denied
from licet_engine.evidence.reconcile import Reconciliation, reconcile
from licet_engine.log.fsck import fsck
from licet_engine.probing import probe, probes
from licet_engine.store.access import Role, open_database


@pytest.fixture
def auditor() -> str:
    """Somebody of northbank who may have its evidence."""
    return "northbank/uma"


@pytest.fixture(scope="module")
def trust(world: Installation) -> TrustRoot:
    return TrustRoot.from_json(world.settings.trust_root.read_bytes())


def ask(world: Installation, auditor: str, actor: str, owner: str = "northbank") -> dict[str, Any]:
    found: dict[str, Any] = world.client(auditor).evidence.isolation(actor, owner)
    return found


def verified(found: dict[str, Any], trust: TrustRoot) -> PairAnswer:
    return verify_statement(canonical.dumps(found["statement"]), trust)


def test_a_tenant_that_never_came_is_proved_not_to_stand_in_the_log(
    world: Installation, auditor: str, trust: TrustRoot
) -> None:
    world.people("farside", "us")
    answer = verified(ask(world, auditor, "farside"), trust)
    assert answer.is_absent
    assert answer.predicate["answer"] == "no-records"
    # The size and the pairs that the directory has are those that the log's leaves make.
    leaves = [leaf for leaf, _ in world.entries("northbank")][: answer.opened.state.size]
    assert PairsMap.of(leaves).root() == answer.opened.state.pairs_root
    assert not any(leaf.actor == "farside" for leaf in leaves)


def test_one_that_does_not_exist_gets_the_same_form_of_answer(world: Installation, auditor: str) -> None:
    absent = [ask(world, auditor, actor)["predicate"] for actor in ("farside", "nobody-home")]

    def form(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: form(item) for key, item in sorted(value.items())}
        return type(value).__name__

    # How far a proof of absence goes is a matter of hashes of names, whoever exists.
    assert form(absent[0] | {"pairs_proof": {}}) == form(absent[1] | {"pairs_proof": {}})
    texts = [json.dumps([p["sentence"], p["sections"]]).replace(str(p["directory"]["size"]), "N") for p in absent]
    assert texts[0].replace("farside", "nobody-home") == texts[1]


def test_one_that_tried_stands_there_with_what_it_tried(world: Installation, auditor: str, trust: TrustRoot) -> None:
    lena = world.client("lakeside/ana")
    before = verified(ask(world, auditor, "lakeside"), trust)
    count = 0 if before.pair is None else before.pair.count
    for _ in range(3):
        assert not lena.act("dataset.read", "northbank/loans", {}).allowed
    answer = verified(ask(world, auditor, "lakeside"), trust)
    assert answer.pair is not None
    assert answer.pair.count == count + 3
    assert set(answer.pair.kinds) == {"attempt"}
    assert answer.predicate["outcomes"] == {
        "allow": 0,
        "deny": count + 3,
        "erased": 0,
        "other": 0,
        "not_counted": 0,
    }


def test_the_answer_is_decided_and_logged_with_its_attestation(world: Installation, auditor: str) -> None:
    first = world.size("northbank")
    found = ask(world, auditor, "farside")
    kinds = [
        (leaf.kind, record.get("action") or record.get("digest")) for leaf, record in world.entries("northbank", first)
    ]
    assert kinds == [("decision", "evidence.export"), ("attestation", found["digest_hex"])]


def test_who_may_not_have_the_evidence_may_not_have_the_answer(world: Installation, auditor: str) -> None:
    told = []
    for who, owner in (("lakeside/ana", "northbank"), ("lakeside/ana", "nobody-home"), ("northbank/ci", "northbank")):
        with world.http(who) as http:
            answer = http.get(f"/v1/isolation/{owner}/farside")
        assert answer.status_code == 403, answer.text
        told.append(answer.json())
    assert told[0]["detail"] == told[1]["detail"]
    with world.http(auditor) as http:
        assert http.get("/v1/isolation/northbank/northbank").status_code == 400
        assert http.get("/v1/isolation/northbank/~void").status_code == 400
    with world.http(None) as http:
        assert http.get("/v1/isolation/northbank/farside").status_code == 401


def test_the_directory_goes_on_by_itself_and_opens_for_each_tenant(world: Installation, trust: TrustRoot) -> None:
    size = world.size(DIRECTORY)
    world.client("lakeside/ana").act("dataset.read", "lakeside/nothing", {})
    poll("an entry of the directory", lambda: world.size(DIRECTORY) > size)
    for tenant, other in (("northbank", "lakeside"), ("lakeside", "northbank")):
        with world.http(f"{tenant}/uma") as http:
            document = http.get(f"/v1/log/{tenant}/directory").json()
        assert directory.verify_opening(document, trust, tenant).state.tenant == tenant
        with pytest.raises(VerificationError):
            directory.verify_opening(document, trust, other)
    engine = open_database(world.settings, Role.OWNER, every_tenant=True)
    try:
        assert [problem for report in fsck(engine) for problem in report.problems] == []
    finally:
        engine.dispose()


def test_it_is_answered_in_less_than_a_second(world: Installation, auditor: str) -> None:
    client = world.client(auditor)
    client.evidence.isolation("farside", "northbank")
    began_s = time.monotonic()
    client.evidence.isolation("farside", "northbank")
    assert time.monotonic() - began_s < 1


def test_an_auditor_verifies_it_offline_and_one_changed_figure_is_refused(
    world: Installation, auditor: str, tmp_path: Path
) -> None:
    found = ask(world, auditor, "farside")
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_bytes(canonical.dumps(found["statement"]))
    other = ask(world, auditor, "lakeside")["statement"] | {"signatures": found["statement"]["signatures"]}
    bad.write_bytes(canonical.dumps(other))
    command = [sys.executable, "-m", "licet_attestations", "--trust-root", str(world.settings.trust_root)]
    ended = subprocess.run([*command, str(good)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "has no entry of 'farside'" in ended.stdout
    assert "(b) Map of pairs: proven, of records." in ended.stdout
    ended = subprocess.run([*command, str(good), "--tenant", "lakeside"], capture_output=True, text=True, check=False)
    assert (ended.returncode, "not of 'lakeside'" in ended.stderr) == (1, True)
    ended = subprocess.run([*command, str(bad)], capture_output=True, text=True, check=False)
    assert (ended.returncode, "NOT verified" in ended.stderr) == (1, True)


def test_the_page_for_people_runs_nothing(world: Installation, auditor: str, trust: TrustRoot) -> None:
    page = report_html(verified(ask(world, auditor, "farside"), trust))
    assert "<script" not in page
    assert "default-src 'none'" in page
    assert "What no log can exclude" in page


def test_a_tenant_without_a_log_is_elsewhere(world: Installation, auditor: str) -> None:
    with pytest.raises(Denied):
        ask(world, auditor, "northbank", "nobody-home")


# --- reconciliation -----------------------------------------------------------------------------------------------------


def on_machine(world: Installation, *command: str) -> tuple[int, dict[str, Any]]:
    """What a command of the machine's administrator says as JSON, and how it ends."""
    environment = {**os.environ, "LICET_DATA": str(world.settings.data)}
    if world.settings.database_urls:
        environment["LICET_DATABASE_URLS"] = str(world.settings.database_urls)
    run = [sys.executable, "-m", "licet_engine.cli", *command, "--format", "json"]
    ended = subprocess.run(run, capture_output=True, text=True, check=False, env=environment)
    assert "error" not in ended.stdout, ended.stdout
    assert ended.stdout, ended.stderr
    return ended.returncode, json.loads(ended.stdout)


def test_what_adapters_accessed_is_matched_with_warrants_and_attested(
    world: Installation, auditor: str, trust: TrustRoot
) -> None:
    assert world.register("northbank/ana", "more-loans", table(7)).state == "done"
    code, told = on_machine(world, "evidence", "reconcile", "--attest")
    ours = next(found for found in told["tenants"] if found["tenant"] == "northbank")
    assert (code, told["missing"], told["unread"], ours["unmatched"]) == (0, 0, 0, 0), told
    assert 0 < ours["accesses"] <= ours["warrants"]
    predicate = verified(ask(world, auditor, "farside"), trust).predicate
    assert predicate["reconciliation"]["attestation"] == told["attested"]["northbank"]
    assert predicate["reconciliation"]["accesses"] == ours["accesses"]
    assert [s["status"] for s in predicate["sections"][:4]] == [
        "supported",
        "proven",
        "not-proven-here",
        "supported",
    ]


def test_an_access_without_a_warrant_is_shown_wherever_it_stands(world: Installation, tmp_path: Path) -> None:
    copies = []
    for number, path in enumerate(journals(world.settings.worker_data / "adapters")):
        copies.append(tmp_path / f"{number}.jsonl")
        copies[-1].write_bytes(path.read_bytes())
    longest = max(copies, key=lambda path: path.stat().st_size)
    engine = open_database(world.settings, Role.OWNER, every_tenant=True)

    def look(requests: Sequence[StoreAccess | None] = ()) -> Reconciliation:
        return reconcile(engine, copies, requests, prefix="licet/")

    try:
        assert look().is_clean
        lines = longest.read_bytes().splitlines(keepends=True)
        last = json.loads(lines[-1])
        # A warrant that nobody logged, one that was used twice, and a line that was taken away.
        forged = [last | {"n": last["n"] + 1, "warrant": "0" * 32}, last | {"n": last["n"] + 2}]
        longest.write_bytes(b"".join([*lines, *(canonical.dumps(line) + b"\n" for line in forged)]))
        found = look().of(last["tenant"])
        assert found.unmatched == 2
        assert "no log has the warrant" in found.shown[0]
        assert "used before" in found.shown[1]
        longest.write_bytes(b"".join(lines[1:]))
        assert (look().missing, look().is_clean) == (1, False)
        longest.write_bytes(b"".join(lines))
        # What the store itself says: in the time of a warrant, long after it, by nobody's tenant, and what cannot be read.
        write = [json.loads(line) for line in lines if b"objects.put" in line]
        at_ms = write[-1]["at_ms"] if write else last["at_ms"]

        def request(at_ms: int, key: str, operation: str = "REST.PUT.OBJECT") -> StoreAccess:
            return StoreAccess("bucket", at_ms, "worker", operation, key, 200)

        key = f"licet/{last['tenant']}/ab12"
        assert look([request(at_ms, key), request(at_ms, "elsewhere/x"), request(at_ms, "")]).is_clean
        later = look([request(at_ms + 86_400_000, key), request(at_ms, "licet/nobody-home/x"), None])
        assert (later.of(last["tenant"]).unmatched, later.of("nobody-home").unmatched, later.unread) == (1, 1, 1)
        assert "no warrant for it was good then" in later.of(last["tenant"]).shown[0]
        assert key not in later.of(last["tenant"]).shown[0]
    finally:
        engine.dispose()


# --- probes -------------------------------------------------------------------------------------------------------------


def test_everything_tried_across_tenants_is_denied_and_tells_nothing(world: Installation) -> None:
    with world.http("lakeside/all") as http:
        found = probe(http, "northbank")
    assert found.to_dict() == {
        "tried": len(list(probes("northbank"))),
        "allowed": [],
        "told_apart": [],
        "not_tried": [],
    }
    assert found.holds


def test_what_is_allowed_is_found(world: Installation) -> None:
    # On a tenant that is there for this alone: what is allowed is done.
    world.people("leaky", "us")
    with world.http("leaky/all") as http:
        found = probe(http, "leaky")
    assert not found.holds
    assert "GET /v1/log/TENANT" in found.allowed


def test_probes_are_attested_and_taken_up_by_the_answer(
    world: Installation, auditor: str, trust: TrustRoot, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text(world.tokens["lakeside/all"])
    code, told = on_machine(
        world, "probe", "run", "--owner", "northbank", "--url", world.url, "--token-file", str(token), "--attest"
    )
    assert (code, told["allowed"], told["told_apart"], told["not_tried"]) == (0, [], [], []), told
    predicate = verified(ask(world, auditor, "farside"), trust).predicate
    assert predicate["probes"]["attestation"] == told["attestation"]
    assert (predicate["probes"]["tried"], predicate["probes"]["allowed"]) == (told["tried"], 0)
    assert predicate["sections"][4]["status"] == "supported"


def test_a_bundle_in_force_counts_as_proved_where_that_is_attested(
    world: Installation, auditor: str, trust: TrustRoot
) -> None:
    before = verified(ask(world, auditor, "farside"), trust).predicate
    assert set(before["policies"].values()) == {""}
    expected = {}
    for bundle in before["policies"]:
        predicate = {"tenant": "northbank", "result": "PASSED", "proofs": {ISOLATION_INVARIANT: "proved"}}
        claim = Statement((Subject("policy-bundle", bundle),), TEST_RESULT, predicate)
        expected |= {bundle: attest_and_log(world.settings, {"northbank": claim.to_bytes()})["northbank"]}
    after = verified(ask(world, auditor, "farside"), trust).predicate
    assert after["policies"] == expected
    assert [before["sections"][2]["status"], after["sections"][2]["status"]] == ["not-proven-here", "supported"]
    # Of several the newest counts.
    refuted = next(iter(expected))
    predicate = {"tenant": "northbank", "result": "FAILED", "proofs": {ISOLATION_INVARIANT: "refuted"}}
    claim = Statement((Subject("policy-bundle", refuted),), TEST_RESULT, predicate)
    attest_and_log(world.settings, {"northbank": claim.to_bytes()})
    later = verified(ask(world, auditor, "farside"), trust).predicate
    assert later["policies"] == expected | {refuted: ""}
    assert later["sections"][2]["status"] == "not-proven-here"


def test_the_commands_write_the_statement_and_the_page_and_verify_them(
    world: Installation, auditor: str, tmp_path: Path
) -> None:
    token, out, page = tmp_path / "token", tmp_path / "answer.json", tmp_path / "answer.html"
    token.touch(0o600)
    token.write_text(world.tokens[auditor])
    asked = ["evidence", "isolation", "--actor", "farside", "--owner", "northbank", "--url", world.url]
    written = ["--token-file", str(token), "--out", str(out), "--html", str(page)]
    code, told = on_machine(world, *asked, *written)
    assert (code, told["predicate"]["answer"]) == (0, "no-records")
    assert json.loads(out.read_text()) == told["statement"]
    assert page.read_text().startswith("<!doctype html>")
    code, verified_ = on_machine(world, "verify", str(out), "--trust-root", str(world.settings.trust_root))
    assert (code, verified_["isolation"]) == (0, told["predicate"])
    run = [sys.executable, "-m", "licet_engine.cli", *asked, *written]
    again = subprocess.run(run, capture_output=True, text=True, check=False)
    assert again.returncode != 0, "it does not write over a file that is there"
