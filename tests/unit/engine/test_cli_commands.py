"""Commands against a real HTTP server that answers as it is told: what is sent, what is shown, how it ends."""

from __future__ import annotations

import hashlib
import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from cli_world import APPROVAL, OPERATION, Run, explained  # The line above finds it.


def test_promote_with_wait_follows_the_operation_to_its_end(licet: Run, script: Any, world: Any) -> None:
    script.answer(202, {"decision": world.allow, "result": {}, "operation": OPERATION})
    for state in ("running", "done"):
        script.answer(200, {**OPERATION, "state": state, "action": "model.promote", "resource": "northbank/m@2"})
    code, out, err = licet("model", "promote", "northbank/m@2", "--to", "prod", "--wait", "--format", "json")
    assert code == 0
    assert json.loads(out)["operation"]["state"] == "done"
    assert [line.split(": ")[1].split(" ")[0] for line in err.splitlines()] == ["running", "done"]


@pytest.mark.parametrize(("state", "expected"), [("failed", 2), ("refused", 1)])
def test_what_was_accepted_and_then_not_done_does_not_end_with_0(
    licet: Run, script: Any, world: Any, state: str, expected: int
) -> None:
    script.answer(202, {"decision": world.allow, "result": {}, "operation": OPERATION})
    script.answer(200, {**OPERATION, "state": state, "error": {"code": "pickle", "message": "it is a pickle"}})
    code, out, _ = licet("model", "promote", "northbank/m@2", "--to", "prod", "--wait")
    assert code == expected
    assert "it is a pickle [pickle]" in out


def test_without_wait_the_user_is_told_how_to_follow(licet: Run, script: Any, world: Any) -> None:
    script.answer(202, {"decision": world.allow, "result": {}, "operation": OPERATION})
    code, out, _ = licet("model", "check", "northbank/m@2")
    assert code == 0
    assert f"licet operation wait northbank/{'0' * 32}" in out


def test_a_denied_promotion_ends_with_3_when_approvals_are_all_that_is_missing(
    licet: Run, script: Any, world: Any
) -> None:
    denial = world.deny(world.policy("p", "approval:compliance"))
    script.problem(403, "denied", "no", decision=denial)
    script.answer(200, explained(possible=True, steps=[APPROVAL]))
    code, out, _ = licet("model", "promote", "northbank/m@2", "--to", "prod", "--wait")
    assert code == 3
    assert "not yet" in out


@pytest.mark.parametrize(
    ("arguments", "path", "resource", "parameters"),
    [
        (
            "model approve northbank/m@2 --track model-risk --reason ok --binding 0123456789abcdef",
            "/v1/model/approve",
            "northbank/m@2",
            {"track": "model-risk", "verdict": "approved", "reason": "ok", "binding": "0123456789abcdef"},
        ),
        (
            "approval reject northbank/m@2 --track legal --reason no",
            "/v1/model/approve",
            "northbank/m@2",
            {"track": "legal", "verdict": "rejected", "reason": "no"},
        ),
        (
            "approval request northbank/m@2 --track legal",
            "/v1/model/request",
            "northbank/m@2",
            {"track": "legal"},
        ),
        (
            "approval approve northbank/m@2 --track legal --reason ok --binding 0123456789abcdef --for lea",
            "/v1/model/approve",
            "northbank/m@2",
            {
                "track": "legal",
                "verdict": "approved",
                "reason": "ok",
                "binding": "0123456789abcdef",
                "on_behalf_of": "lea",
            },
        ),
        (
            "approval withdraw northbank/m@2 --track legal --reason mistake",
            "/v1/model/withdraw-approval",
            "northbank/m@2",
            {"track": "legal", "reason": "mistake"},
        ),
        (
            "approval withdraw northbank/m@2 --track legal --request",
            "/v1/model/withdraw-request",
            "northbank/m@2",
            {"track": "legal"},
        ),
        (
            "approval revoke-delegation northbank/ben --track legal --reviewer lea",
            "/v1/approval/revoke-delegation",
            "northbank/ben",
            {"track": "legal", "reviewer": "lea"},
        ),
        ("ticket fetch northbank CHG-1", "/v1/ticket/fetch", "northbank", {"ticket": "CHG-1"}),
        (
            "model promote northbank/m@2 --to prod --ticket CHG-1",
            "/v1/model/promote",
            "northbank/m@2",
            {"stage": "prod", "ticket": "CHG-1"},
        ),
        (
            "webhook create northbank/ops --address https://hooks.example/in --event approval.given,approval.voided",
            "/v1/webhook/create",
            "northbank/ops",
            {"url": "https://hooks.example/in", "events": ["approval.given", "approval.voided"]},
        ),
        ("webhook delete northbank/ops", "/v1/webhook/delete", "northbank/ops", {}),
        ("webhook test northbank/ops", "/v1/webhook/test", "northbank/ops", {}),
        ("webhook rotate northbank/ops", "/v1/webhook/rotate", "northbank/ops", {"overlap_s": 86_400}),
        ("webhook rotate northbank/ops --overlap 0s", "/v1/webhook/rotate", "northbank/ops", {"overlap_s": 0}),
        (
            "webhook redeliver northbank/ops msg_1",
            "/v1/webhook/redeliver",
            "northbank/ops",
            {"message": "msg_1"},
        ),
        (
            "person administer northbank/ben --role data-scientist --qualified model-risk,security",
            "/v1/person/administer",
            "northbank/ben",
            {
                "kind": "person",
                "roles": ["data-scientist"],
                "active": True,
                "qualified": ["model-risk", "security"],
            },
        ),
        (
            "tenant administer northbank --approval-ttl 90d --request-ttl 12h --remind-before 1h",
            "/v1/tenant/administer",
            "northbank",
            {"approval_ttl_s": 7_776_000, "request_ttl_s": 43_200, "remind_before_s": 3600},
        ),
        ("hold place northbank/hmda --reason suit", "/v1/dataset/hold", "northbank/hmda", {"reason": "suit"}),
        ("hold lift northbank/m@2 --reason over", "/v1/model/lift-hold", "northbank/m@2", {"reason": "over"}),
        (
            (
                "train launch northbank/run-1 --dataset northbank/hmda --environment us-east --use credit-risk"
                " --spec epochs=20 --spec hidden=[8]"
            ),
            "/v1/training/launch",
            "northbank/run-1",
            {
                "dataset": "northbank/hmda",
                "environment": "us-east",
                "use": "credit-risk",
                "spec": {"epochs": 20, "hidden": [8]},
            },
        ),
        ("train cancel northbank/run-1", "/v1/training/cancel", "northbank/run-1", {}),
        (
            "run log northbank/run-1 loss 0.25 --step 3",
            "/v1/run/log",
            "northbank/run-1",
            {"name": "loss", "step": 3, "value": "0.25"},
        ),
        (
            "model register northbank/m --run northbank/run-1",
            "/v1/model/register",
            "northbank/m",
            {"run": "northbank/run-1"},
        ),
        ("model check northbank/m@1 --kind bias", "/v1/model/check", "northbank/m@1", {"kinds": ["bias"]}),
        ("model roll-back northbank/m@2", "/v1/model/roll-back", "northbank/m@2", {"stage": "prod"}),
        (
            "person administer northbank/ana --role data-scientist --role auditor",
            "/v1/person/administer",
            "northbank/ana",
            {"kind": "person", "roles": ["data-scientist", "auditor"], "active": True},
        ),
        (
            "tenant administer northbank --environment us-east=us --budget training=100",
            "/v1/tenant/administer",
            "northbank",
            {"environments": [{"name": "us-east", "region": "us"}], "budgets": {"training": 100}},
        ),
        ("tenant resume northbank", "/v1/tenant/suspend", "northbank", {"suspended": False}),
        ("token revoke northbank/ana abc", "/v1/token/revoke", "northbank/ana", {"token_id": "abc"}),
        (
            'policy publish northbank --pack residency --pack-parameter residency.regions=["us"]',
            "/v1/policy/publish",
            "northbank",
            {"packs": [{"name": "residency", "mode": "enforce", "parameters": {"regions": ["us"]}}], "policies": ""},
        ),
        ("policy activate northbank/abc", "/v1/policy/activate", "northbank/abc", {}),
        (
            "policy shadow northbank/4d1c2a9b7e305f68",
            "/v1/policy/shadow",
            "northbank",
            {"bundle": "4d1c2a9b7e305f68"},
        ),
        ("policy shadow northbank --off", "/v1/policy/shadow", "northbank", {"off": True}),
        ("policy rollback northbank", "/v1/policy/roll-back", "northbank", {}),
        (
            "dataset classify northbank/hmda --residency us,uk",
            "/v1/dataset/classify",
            "northbank/hmda",
            {"residency": ["us", "uk"]},
        ),
        ("keys destroy northbank --reason gone --yes", "/v1/key/destroy", "northbank", {"reason": "gone"}),
    ],
)
def test_a_command_sends_what_it_says(
    licet: Run, script: Any, world: Any, *, arguments: str, path: str, resource: str, parameters: dict[str, Any]
) -> None:
    script.answer(200, {"decision": world.allow, "result": {}, "operation": None})
    code, _, err = licet(*arguments.split(), "--idempotency-key", "k1")
    assert code == 0, err
    assert script.asked[0].path == path
    assert script.asked[0].json == {"resource": resource, "parameters": parameters}
    assert script.asked[0].headers["Idempotency-Key"] == "k1"


def test_registering_a_dataset_sends_the_file_and_all_that_binds_it(
    licet: Run, script: Any, world: Any, tmp_path: Path
) -> None:
    file = tmp_path / "hmda.csv"
    file.write_bytes(b"deny,black\n1,0\n")
    digest_hex = hashlib.sha256(file.read_bytes()).hexdigest()
    script.answer(201, {"upload": "e" * 32, "digest_hex": digest_hex, "size_bytes": 15})
    script.answer(202, {"decision": world.allow, "result": {}, "operation": OPERATION})
    line = "dataset register northbank/hmda --classification confidential --protected black --residency us"
    line += " --use credit-risk --expires 2030-01-01 --label deny"
    code, _, err = licet(*line.split(), "--file", str(file))
    assert code == 0, err
    sent = script.asked[1].json["parameters"]
    assert sent["expires_at_ms"] == 1_893_456_000_000
    assert (sent["protected"], sent["residency"], sent["uses"]) == (["black"], ["us"], ["credit-risk"])


def test_a_dataset_is_registered_with_what_is_said_of_its_columns(
    licet: Run, script: Any, world: Any, tmp_path: Path
) -> None:
    file, columns = tmp_path / "hmda.csv", tmp_path / "columns.json"
    file.write_bytes(b"deny,a=b\n1,0\n")
    columns.write_text('{"deny": "number", "lti": "number"}')
    digest_hex = hashlib.sha256(file.read_bytes()).hexdigest()
    script.answer(201, {"upload": "e" * 32, "digest_hex": digest_hex, "size_bytes": len(file.read_bytes())})
    script.answer(202, {"decision": world.allow, "result": {}, "operation": OPERATION})
    line = "dataset register northbank/hmda --classification internal --residency us --use x --expires 2030-01-01"
    line += " --label deny --missing drop --column deny=yes-no --column a=b=number"
    code, _, err = licet(*line.split(), "--file", str(file), "--columns", str(columns))
    assert code == 0, err
    sent = script.asked[1].json["parameters"]
    assert sent["missing"] == "drop"
    assert sent["columns"] == {"deny": "yes-no", "lti": "number", "a=b": "number"}


@pytest.mark.parametrize("more", [["--column", "deny=word"], ["--columns", "COLUMNS"], ["--missing", "guess"], []])
def test_a_dataset_that_cannot_be_registered_is_not_uploaded(
    licet: Run, script: Any, tmp_path: Path, more: list[str]
) -> None:
    file, columns = tmp_path / "hmda.csv", tmp_path / "columns.json"
    file.write_bytes(b"deny\n1\n" if more else b"")
    columns.write_text('{"deny": ["number"]}')
    line = "dataset register northbank/hmda --classification internal --residency us --use x --expires 2030-01-01"
    given = [str(columns) if word == "COLUMNS" else word for word in more]
    code, _, err = licet(*line.split(), "--label", "deny", "--file", str(file), *given)
    assert code == 2
    assert ("deny" in err or "guess" in err) if more else "is empty" in err
    assert not script.asked


def test_a_token_goes_to_a_file_of_its_own_and_not_to_the_terminal(
    licet: Run, script: Any, world: Any, tmp_path: Path
) -> None:
    out_file = tmp_path / "ana.token"
    result = {"token_id": "1", "token": "licet_fresh", "expires_at_ms": 1_893_456_000_000}
    script.answer(200, {"decision": world.allow, "result": result, "operation": None})
    code, out, _ = licet("token", "issue", "northbank/ana", "--ttl", "30d", "--out", str(out_file))
    assert code == 0
    assert "licet_fresh" not in out
    assert out_file.read_text() == "licet_fresh\n"
    assert stat.S_IMODE(out_file.stat().st_mode) == 0o600
    assert script.asked[0].json["parameters"] == {"ttl_s": 2_592_000}


def test_no_token_is_issued_for_a_file_that_cannot_be_made(licet: Run, script: Any, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    for out in (tmp_path / "taken", tmp_path / "no" / "folder"):
        code, _, err = licet("token", "issue", "northbank/ana", "--out", str(out))
        assert code == 2
        assert "must be a new file" in err
    assert not script.asked


@pytest.mark.parametrize("named", [["northbank"], ["--tenant", "northbank"]])
def test_evidence_is_written_whole_with_its_digest(
    licet: Run, script: Any, world: Any, tmp_path: Path, named: list[str]
) -> None:
    out_file = tmp_path / "northbank.zip"
    script.answer(202, {"decision": world.allow, "result": {}, "operation": OPERATION})
    script.answer(200, {**OPERATION, "state": "done", "result": {"artifact": "x.zip"}})
    script.hang_up()
    script.answer(200, b"PK...", Content_Type="application/zip")
    code, out, _ = licet("evidence", "export", *named, "--out", str(out_file), "--format", "json")
    assert code == 0
    assert script.asked[0].json["resource"] == "northbank"
    assert out_file.read_bytes() == b"PK..."
    assert stat.S_IMODE(out_file.stat().st_mode) == 0o600
    assert json.loads(out)["digest_hex"] == hashlib.sha256(b"PK...").hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["northbank.zip"]


@pytest.mark.parametrize("named", [[], ["northbank", "--tenant", "lakeside"]])
def test_evidence_is_of_one_tenant(licet: Run, script: Any, tmp_path: Path, named: list[str]) -> None:
    code, _, err = licet("evidence", "export", *named, "--out", str(tmp_path / "a.zip"))
    assert code == 2
    assert "name one tenant" in err
    assert not script.asked


def test_an_artifact_that_cannot_be_fetched_leaves_nothing(licet: Run, script: Any, world: Any, tmp_path: Path) -> None:
    script.answer(202, {"decision": world.allow, "result": {}, "operation": OPERATION})
    script.answer(200, {**OPERATION, "state": "done"})
    script.problem(404, "gone", "the artifact is gone: ask again")
    code, _, err = licet("dataset", "read", "northbank/hmda", "--out", str(tmp_path / "rows.csv"))
    assert code == 2
    assert "the artifact is gone" in err
    assert not list(tmp_path.iterdir())


def test_a_file_is_not_written_over_unless_told(licet: Run, script: Any, world: Any, tmp_path: Path) -> None:
    out_file = tmp_path / "rows.csv"
    out_file.write_bytes(b"precious")
    script.answer(202, {"decision": world.allow, "result": {}, "operation": OPERATION})
    code, _, err = licet("dataset", "read", "northbank/hmda", "--out", str(out_file))
    assert code == 2
    assert "--overwrite" in err
    assert out_file.read_bytes() == b"precious"
