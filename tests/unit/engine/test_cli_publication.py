"""What came of a publication is told whole, and what is written down has the digest under which it was asked for."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from licet_attestations import canonical
from licet_engine.workbench.document import ProjectDocument
from licet_engine.workbench.scaffold import write_project

sys.path.insert(0, str(Path(__file__).parent))
from cli_world import OPERATION, Run  # The line above finds it.

BUNDLE = {
    "v": 1,
    "policies": [{"id": "team.x", "source": "tenant", "mode": "enforce", "text": "forbid();"}],
    "packs": [],
}
DIGEST = hashlib.sha256(canonical.dumps(BUNDLE)).hexdigest()
ACCEPTED = {**OPERATION, "action": "policy.publish", "resource": "northbank"}
PUBLICATION = f"northbank/{'5' * 32}"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_project(tmp_path / "p")
    return tmp_path / "p"


def read(document: ProjectDocument, **more: Any) -> dict[str, Any]:
    """What `policy.read` gives of a bundle that was published from a project."""
    report = {
        "v": 1,
        "lint": {"errors": 0, "warnings": 2, "switched_off": 1},
        "tests": {"run": 3, "passed": 3, "missed": 0},
        "coverage": {"percent": 97, "threshold": 90},
        "proofs": {"proved": 1, "invariants": [{"id": "i", "title": "t", "outcome": "proved"}]},
        "tools": {"cvc5": "1"},
        "findings": [],
        "findings_left_out": 0,
    }
    publication = {
        "ref": PUBLICATION,
        "state": "published",
        "project_hex": document.digest_hex,
        "bundle_hex": DIGEST,
        "published_by": "northbank/ci",
        "author": "sam",
        "created_at_ms": 0,
        "attestation_hex": "a" * 64,
        "report": report,
    }
    pack = {"name": "sr-11-7", "version": "1", "mode": "observe", "parameters": {"auc_min_micro_low": 600000}}
    policies = [*BUNDLE["policies"], {"id": "guardrail.x", "source": "guardrail", "mode": "enforce", "text": "x"}]  # type: ignore[misc]  # A list, as it stands above.
    return {
        "bundle": DIGEST,
        "author": "sam",
        "state": "published",
        "packs": [pack],
        "policies": policies,
        "publication": publication,
        **more,
    }


def test_a_project_is_sent_whole_and_what_to_type_next_is_told(
    licet: Run, script: Any, world: Any, project: Path
) -> None:
    script.answer(202, {"decision": world.allow, "operation": ACCEPTED, "result": {}})
    result = {"publication": PUBLICATION, "state": "published", "bundle": DIGEST, "attestation": "a" * 64}
    script.answer(200, {**ACCEPTED, "state": "done", "result": result})
    code, out, _ = licet("policy", "publish", "northbank", "--project", str(project), "--wait")
    assert code == 0
    sent = json.loads(script.asked[0].body)
    assert sent["parameters"] == {"project": ProjectDocument.from_folder(project).to_json()}
    assert out.splitlines()[-1].strip() == f"licet policy activate northbank/{DIGEST[:8]}"


def test_what_is_refused_is_told_with_its_place_and_is_no_success(
    licet: Run, script: Any, world: Any, project: Path
) -> None:
    finding = {
        "step": "proofs",
        "rule": "refuted",
        "severity": "error",
        "message": "Never: x\x1b[2J",
        "file": "invariants/x.cedar",
        "line": 3,
        "column": 1,
        "detail": '{"action": "x"}',
    }
    result = {"publication": PUBLICATION, "state": "refused", "findings": [finding]}
    error = {"code": "refused", "message": "not published: proofs: 1 finding"}
    script.answer(202, {"decision": world.allow, "operation": ACCEPTED, "result": {}})
    script.answer(200, {**ACCEPTED, "state": "refused", "result": result, "error": error})
    code, out, _ = licet("policy", "publish", "northbank", "--project", str(project), "--wait")
    assert code == 1
    assert "done" not in out
    assert "invariants/x.cedar:3:1: error: Never: x\ufffd[2J [proofs, refuted]" in out
    assert '    {"action": "x"}' in out
    assert f"licet policy show {PUBLICATION}" in out


def test_a_project_names_its_own_packs(licet: Run, project: Path) -> None:
    code, _, err = licet("policy", "publish", "northbank", "--project", str(project), "--pack", "sr-11-7")
    assert code == 2
    assert "leave them out" in err
    code, _, err = licet("policy", "publish", "northbank", "--project", str(project / "tests"))
    assert code == 2
    assert "licet.toml" in err


def test_a_bundle_is_shown_in_short_and_its_text_when_it_is_asked_for(
    licet: Run, script: Any, world: Any, project: Path
) -> None:
    document = ProjectDocument.from_folder(project)
    for _ in range(2):
        script.answer(
            200, {"items": [{"state": "published", "digest_hex": "0" * 64}, {"state": "active", "digest_hex": DIGEST}]}
        )
        script.answer(200, {"decision": world.allow, "operation": None, "result": read(document)})
    code, out, _ = licet("policy", "show", "northbank")
    assert code == 0
    assert json.loads(script.asked[1].body)["resource"] == f"northbank/{DIGEST}"
    told = " ".join(out.split())
    for part in (
        f"bundle northbank/{DIGEST[:8]} published",
        "published by northbank/ci, 1970-01-01 00:00:00Z, for sam",
        "pack sr-11-7 1, observe: auc_min_micro_low=600000",
        "own policy team.x",
        "others 1 of the platform and its packs",
        "lint 0 errors and 2 warnings, 1 passed over for a reason",
        "tests 3 of 3 pass",
        "coverage 97 %, demanded are 90 %",
        "proofs 1 of 1 proved",
        f"licet policy activate northbank/{DIGEST[:8]}",
    ):
        assert part in told, part
    assert "forbid();" not in out
    _, out, _ = licet("policy", "show", "northbank", "--text")
    assert "forbid();" in out


def test_bundle_and_project_are_written_if_they_have_the_digest(
    licet: Run, script: Any, world: Any, project: Path, tmp_path: Path
) -> None:
    document = ProjectDocument.from_folder(project)
    result = read(document, body=BUNDLE, project=document.to_json())
    script.answer(200, {"decision": world.allow, "operation": None, "result": result})
    out, folder = tmp_path / "b.json", tmp_path / "back"
    asked = ("policy", "show", f"northbank/{DIGEST[:8]}", "--out", str(out), "--project", str(folder))
    assert licet(*asked)[0] == 0
    assert json.loads(script.asked[0].body)["parameters"] == {"body": True, "project": True}
    assert hashlib.sha256(out.read_bytes()).hexdigest() == DIGEST
    assert ProjectDocument.from_folder(folder) == document
    # Nothing is overwritten.
    assert licet(*asked)[0] == 2
    for name, forged in (
        ("--out", {"body": {**BUNDLE, "v": 2}}),
        ("--project", {"project": ProjectDocument.of([("licet.toml", "version = 1\n")]).to_json()}),
    ):
        script.answer(200, {"decision": world.allow, "operation": None, "result": result | forged})
        target = tmp_path / f"forged{name}"
        code, _, err = licet("policy", "show", f"northbank/{DIGEST[:8]}", name, str(target))
        assert code == 2
        assert "has not the digest" in err
        assert not target.exists()


def test_what_is_in_force_already_is_not_for_somebody_to_go_on_with(
    licet: Run, script: Any, world: Any, project: Path
) -> None:
    script.answer(202, {"decision": world.allow, "operation": ACCEPTED, "result": {}})
    result = {"publication": PUBLICATION, "state": "published", "bundle": DIGEST, "in_force": True}
    script.answer(200, {**ACCEPTED, "state": "done", "result": result})
    code, out, _ = licet("policy", "publish", "northbank", "--project", str(project), "--wait")
    assert code == 0
    assert "in force already" in out
    assert "activate" not in out


def test_a_bundle_that_was_put_aside_was_in_force(licet: Run, script: Any, world: Any, project: Path) -> None:
    told = read(ProjectDocument.from_folder(project), activated_at_ms=0, activated_by="ben")
    script.answer(200, {"decision": world.allow, "operation": None, "result": {**told, "activated_at_ms": 1000}})
    _, out, _ = licet("policy", "show", f"northbank/{DIGEST[:8]}")
    assert "was in force  ben, from 1970-01-01 00:00:01Z" in out


@pytest.mark.parametrize(
    ("name", "listed", "said"),
    [
        ("4d1c2a9b", [{"digest_hex": "0" * 64}], "there is no bundle northbank/4d1c2a9b: licet policy list northbank"),
        ("4d1c", [], "northbank/4d1c: a bundle is named by at least 8 characters of its digest"),
        # It is there, and something else denies it.
        ("4d1c2a9b", [{"digest_hex": "4d1c2a9b" + "0" * 56}], ""),
    ],
)
def test_a_bundle_that_is_not_there_is_told_to_who_may_list_them(
    licet: Run, script: Any, name: str, listed: list[dict[str, Any]], said: str
) -> None:
    script.answer(403, {"code": "denied", "decision": {"id": "d" * 32, "decision": "deny"}})
    if listed:
        script.answer(200, {"items": listed})
        script.answer(200, {"items": []})
    script.answer(403, {"code": "denied", "decision": {"id": "e" * 32, "decision": "deny"}})
    code, _, err = licet("policy", "activate", f"northbank/{name}")
    assert code == 1
    assert err.startswith(said)
    assert bool(err) == bool(said)
