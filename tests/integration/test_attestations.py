"""Attestations as people fetch them: who may, what they get, and that it verifies offline."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from licet_attestations import attested, canonical
from licet_attestations.statement import CYCLONEDX, DECISION, DELETION
from licet_attestations.trustroot import TrustRoot
from licet_engine.cli import run
from licet_engine.domain.errors import InvalidInput
from licet_engine.evidence import attestations

sys.path.append(str(Path(__file__).parent))
from service_world import Installation, problem, table  # The line above finds it.

pytestmark = pytest.mark.slow


@pytest.fixture
def trust(world: Installation) -> TrustRoot:
    return TrustRoot.from_json(world.settings.trust_root.read_bytes())


def verified(found: dict[str, Any], trust: TrustRoot) -> attested.Attested:
    """What was given out: signed by a pinned key, and named by an entry of the log."""
    logged = found["logged"]
    entry = {"tenant": "northbank", **{name: logged[name] for name in attested.ENTRY_FIELDS - {"tenant"}}}
    named = attested.read_entry(canonical.dumps(entry))
    told = attested.verify_attestation(canonical.dumps(found["statement"]), trust, named)
    assert told.leaf is not None
    assert told.digest_hex == found["digest_hex"]
    return told


def test_a_denial_is_attested_once_to_who_may_read_the_decision(world: Installation, trust: TrustRoot) -> None:
    ana, uma = world.client("northbank/ana"), world.client("northbank/uma")
    denied = ana.act("tenant.suspend", "northbank", {})
    assert not denied.allowed
    found = uma.attestation.decision("northbank", denied.decision_id)
    told = verified(found, trust)
    assert told.claim.predicate_type == DECISION
    assert told.claim.predicate["record"]["decision"] == "deny"
    assert told.claim.subject[0].name == f"decision/{denied.decision_id}"
    size = world.size("northbank")
    # Asked again, also by the one whose it is, the very same is given out; nothing but the question is logged.
    assert ana.attestation.decision("northbank", denied.decision_id)["digest_hex"] == found["digest_hex"]
    assert [leaf.kind for leaf, _ in world.entries("northbank", size)] == ["decision"]


def test_another_tenant_and_who_lacks_the_right_get_nothing(world: Installation) -> None:
    mine = world.client("northbank/ana").act("tenant.suspend", "northbank", {}).decision_id
    digest = world.client("northbank/uma").attestation.decision("northbank", mine)["digest_hex"]
    bodies = []
    for path in (
        "/northbank",
        f"/northbank/{digest}",
        f"/northbank/decision/{mine}",
        "/northbank/policy/" + "0" * 16,
        "/northbank/entry/0",
    ):
        with world.http("lakeside/uma") as http:
            answer = http.get(f"/v1/attestations{path}")
            nowhere = http.get(f"/v1/attestations{path.replace('northbank', 'nobody-home')}")
        bodies += [problem(answer, 403, "denied")["detail"], problem(nowhere, 403, "denied")["detail"]]
        with world.http(None) as http:
            assert http.get(f"/v1/attestations{path}").status_code == 401
    assert len(set(bodies)) == 1
    # The pipeline may neither export evidence nor read what others asked.
    for path in ("/northbank", f"/northbank/{digest}", f"/northbank/decision/{mine}"):
        with world.http("northbank/ci") as http:
            problem(http.get(f"/v1/attestations{path}"), 403, "denied")


def test_what_is_not_there_is_told_to_who_may_look(world: Installation) -> None:
    with world.http("northbank/uma") as http:
        for path in (f"/northbank/{'0' * 64}", "/northbank/x", f"/northbank/policy/{'0' * 16}", "/northbank/policy/0"):
            problem(http.get(f"/v1/attestations{path}"), 400, "no-such-attestation")
        for index in (0, 10_000_000, -1):
            problem(http.get(f"/v1/attestations/northbank/entry/{index}"), 400, "not-attested")
        problem(http.get("/v1/attestations/northbank?kind=nothing"), 400, "invalid-input")


def test_a_deletion_is_certified_with_what_was_made_of_the_data(world: Installation, trust: TrustRoot) -> None:
    assert world.register("northbank/ana", "doomed", table(odd=3)).state == "done"
    ana, admin, uma = (world.client(f"northbank/{name}") for name in ("ana", "admin", "uma"))
    launch = {"dataset": "northbank/doomed", "environment": "us-east", "use": "credit-risk", "spec": {"epochs": 2}}
    assert world.done(ana, ana.act("training.launch", "northbank/run-doomed", launch)).state == "done"
    ended = world.done(admin, admin.act("dataset.delete", "northbank/doomed", {}))
    assert ended.state == "done", ended
    (row,) = uma.attestation.newest("northbank", about="northbank/doomed", kind="deletion")
    assert ended.result["attestation"] == row["digest_hex"]
    claim = verified(uma.attestation.read("northbank", row["digest_hex"]), trust).claim
    assert claim.predicate_type == DELETION
    assert claim.predicate["destroyed"]["wasThere"] is True
    assert claim.predicate["derived"] == {"runs": ["northbank/run-doomed"], "versions": [], "held": [], "more": 0}


def test_a_check_leaves_a_bill_of_materials_with_what_earlier_checks_found(
    world: Installation, trained: str, trust: TrustRoot
) -> None:
    mei, uma = world.client("northbank/mei"), world.client("northbank/uma")
    for kind in ("drift", "bias"):
        assert world.done(mei, mei.act("model.check", trained, {"kinds": [kind]})).state == "done"
    newest = uma.attestation.newest("northbank", about=trained, kind="model-bom")
    assert len(newest) >= 2
    claim = verified(uma.attestation.read("northbank", newest[0]["digest_hex"]), trust).claim
    assert claim.predicate_type == CYCLONEDX
    card = claim.predicate["metadata"]["component"]["modelCard"]
    slices = {metric["slice"] for metric in card["quantitativeAnalysis"]["performanceMetrics"]}
    assert slices >= {"drift", "bias"}


def test_what_is_looked_for_is_found_behind_many_others(world: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    ana, uma = world.client("northbank/ana"), world.client("northbank/uma")
    asked = [str(ana.act("dataset.read", "northbank/nothing", {}).decision_id) for _ in range(6)]
    first, *_ = made = [uma.attestation.decision("northbank", each) for each in asked]
    monkeypatch.setattr(attestations, "MAX_ROWS", 2)
    given = attestations.Attestations(world.engine, *(cast("Any", None),) * 3)
    (found,) = given.newest("northbank", kind="", subject=f"decision/{asked[0]}", limit=5)
    assert found["digest_hex"] == first["digest_hex"]
    newest = given.newest("northbank", kind="decision", subject="", limit=5)
    assert [row["digest_hex"] for row in newest] == [one["digest_hex"] for one in reversed(made[1:])]
    monkeypatch.setattr(attestations, "_MAX_PAGES", 2)
    with pytest.raises(InvalidInput, match="not among the newest 4"):
        given.newest("northbank", kind="", subject=f"decision/{asked[0]}", limit=5)


def test_an_auditor_exports_by_command_and_verifies_offline(
    world: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = world.client("northbank/ana").act("dataset.read", "northbank/nothing", {}).decision_id
    monkeypatch.setenv("LICET_URL", world.url)
    monkeypatch.setenv("LICET_TOKEN", world.tokens["northbank/uma"])
    out = tmp_path / "out"
    assert run(["attestation", "decision", f"northbank/{asked}", "--out", str(out)]) == 0
    assert run(["attestation", "list", "northbank", "--about", f"decision/{asked}", "--format", "json"]) == 0
    told = capsys.readouterr().out
    digest = json.loads(told[told.index("{") :])["items"][0]["digest_hex"]
    assert run(["attestation", "show", "northbank", digest]) == 0
    assert "model" not in capsys.readouterr().err
    # Files that are there stay as they are.
    assert run(["attestation", "export", "northbank", digest, "--out", str(out)]) == 2
    assert run(["attestation", "export", "northbank", digest, "--out", str(out), "--overwrite"]) == 0
    monkeypatch.delenv("LICET_URL")
    monkeypatch.delenv("LICET_TOKEN")
    name = f"decision-{digest[:16]}"
    pinned = ["--trust-root", str(world.settings.trust_root)]
    for file in (f"{name}.dsse.json", f"{name}.sigstore.json"):
        logged = ["--logged", str(out / f"{name}.entry.json")]
        assert run(["attestation", "verify", str(out / file), *pinned, *logged, "--tenant", "northbank"]) == 0
    capsys.readouterr()
    altered = (out / f"{name}.dsse.json").read_text().replace('"payload":"', '"payload":"AAAA')
    (out / "altered.json").write_text(altered)
    assert run(["attestation", "verify", str(out / "altered.json"), *pinned]) == 1
    assert run(["attestation", "verify", str(out / f"{name}.dsse.json"), *pinned, "--tenant", "lakeside"]) == 1
    assert run(["attestation", "verify", str(out / "nothing.json"), *pinned]) == 2
