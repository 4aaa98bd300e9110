"""Commands against a real HTTP server that answers as it is told: what is sent, what is shown, how it ends."""

from __future__ import annotations

import hashlib
import json
import stat
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from licet_engine import client as client_module
from licet_engine.cli import run
from licet_engine.commands.failures import report
from licet_engine.demo.stage import free_port

if TYPE_CHECKING:
    from pathlib import Path

OPERATION = {"id": "0" * 32, "tenant": "northbank", "state": "accepted"}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def licet(script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setattr(client_module, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(client_module, "_LONGEST_PAUSE_S", 0.002)
    for name in ("LICET_TOKEN_FILE", "LICET_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LICET_URL", script.url)
    monkeypatch.setenv("LICET_TOKEN", "licet_secret")

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        said = capsys.readouterr()
        assert "licet_secret" not in said.out + said.err
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return call


def test_an_ask_that_is_allowed_ends_with_0(licet: Run, script: Any, world: Any) -> None:
    script.answer(200, {"decision": world.allow})
    code, out, _ = licet("ask", "promote", "northbank/credit-risk@1", "--to", "prod")
    assert code == 0
    assert "allowed  model.promote on northbank/credit-risk@1" in out
    assert script.asked[0].json == {
        "action": "model.promote",
        "resource": "northbank/credit-risk@1",
        "parameters": {"stage": "prod"},
    }


def explained(*reports: dict[str, Any], nearest: list[dict[str, Any]] | None = None, **path: Any) -> dict[str, Any]:
    return {
        "record": {"id": "d" * 32, "decision": "deny", "action": "model.promote", "resource": {"id": "northbank/m@1"}},
        "explanation": {"decision": "deny", "kind": "forbidden", "deciding": list(reports), "nearest": nearest or []},
        "path": {"possible": False, "steps": [], "minimal": False, "message": "No declared fact would do.", **path},
    }


APPROVAL = {"name": "approval:model-risk", "describe": "Have model risk approve it."}
REPORT = {
    "id": "sr-11-7.checks.bias",
    "effect": "forbid",
    "mode": "enforce",
    "source": "pack:sr-11-7",
    "outcome": "true",
    "title": "Bias review",
    "advice": "Train with a mitigation.",
    "requires": ["check:bias"],
    "scope": [],
    "clauses": [],
    "failing": [
        {
            "source": "resource.checks.bias.selection_rate_ratio_micro >= 800000",
            "outcome": "false",
            "supports": True,
            "values": [{"text": "resource.checks.bias.selection_rate_ratio_micro = 741234"}],
        }
    ],
}


def test_a_denied_ask_shows_the_conjunct_its_values_and_the_path_to_yes(licet: Run, script: Any, world: Any) -> None:
    policies = [world.policy("sr-11-7.checks.bias", "check:bias"), world.policy("p", "approval:model-risk")]
    script.answer(200, {"decision": world.deny(*policies)})
    steps = [{"name": "check:bias", "describe": "Have the bias review pass."}]
    script.answer(200, explained(REPORT, possible=True, minimal=True, steps=steps))
    code, out, _ = licet("ask", "promote", "northbank/credit-risk@1", "--to", "prod")
    assert code == 1
    assert "denied  model.promote" in out
    assert "resource.checks.bias.selection_rate_ratio_micro >= 800000  is false" in out
    assert "resource.checks.bias.selection_rate_ratio_micro = 741234" in out
    assert "missing approvals  model-risk" in out
    assert "failing checks     bias" in out
    assert "1.  Have the bias review pass.  [check:bias]" in out
    assert script.asked[1].path == f"/v1/decisions/northbank/{'d' * 32}/explain"


def test_where_only_approvals_are_missing_the_ask_ends_with_3(licet: Run, script: Any, world: Any) -> None:
    script.answer(200, {"decision": world.deny(world.policy("p", "approval:model-risk"))})
    script.answer(200, explained(possible=True, steps=[APPROVAL]))
    code, out, _ = licet("ask", "promote", "northbank/m@1", "--format", "json")
    assert code == 3
    shown = json.loads(out)
    assert (shown["allowed"], shown["approval_pending"]) == (False, True)
    assert shown["path"]["steps"] == [APPROVAL]


def test_approvals_that_would_not_suffice_do_not_end_with_3(licet: Run, script: Any, world: Any) -> None:
    script.answer(200, {"decision": world.deny(world.policy("p", "approval:model-risk"))})
    script.answer(200, explained(still={"decision": "deny", "reasons": [], "errors": []}))
    code, out, _ = licet("ask", "promote", "northbank/m@1")
    assert code == 1
    assert "no policy would permit it to this principal" in " ".join(out.split())


def test_a_denial_without_reasons_is_not_asked_about_again(licet: Run, script: Any) -> None:
    script.answer(200, {"decision": {"id": "x", "decision": "deny"}})
    code, out, _ = licet("ask", "download", "lakeside/m@1")
    assert code == 1
    assert "No reasons are given" in out
    assert len(script.asked) == 1


def test_a_default_denial_shows_the_nearest_permits(licet: Run, script: Any, world: Any) -> None:
    script.answer(200, {"decision": world.deny()})
    part = {"source": 'principal in Role::"auditor"', "outcome": "false", "supports": False, "values": []}
    near = {"id": "role.auditor.export", "title": "Auditors export", "failing": [part]}
    script.answer(200, explained(nearest=[near]))
    code, out, _ = licet("ask", "export", "northbank")
    assert code == 1
    assert "No policy permits this." in out
    assert "role.auditor.export" in out
    assert 'principal in Role::"auditor"  is false' in out
    assert "No declared fact would do." in out


def test_an_explanation_that_may_not_be_read_is_left_out(licet: Run, script: Any, world: Any) -> None:
    script.answer(200, {"decision": world.deny(world.policy("p"))})
    script.problem(403, "denied", "no", decision={"id": "x", "decision": "deny"})
    code, out, _ = licet("ask", "promote", "northbank/m@1")
    assert code == 1
    assert "Do this." in out


def test_a_policy_that_errs_is_said_to_mean_no(licet: Run, script: Any, world: Any) -> None:
    script.answer(200, {"decision": world.deny(world.policy("p", "approval:legal"), errors=["own.broken"])})
    script.problem(403, "denied", "no", decision={"id": "x", "decision": "deny"})
    code, out, _ = licet("ask", "promote", "northbank/m@1")
    assert code == 1
    assert "own.broken could not be evaluated, and an error means no" in out


def test_hostile_text_in_an_answer_is_shown_harmless(licet: Run, script: Any, world: Any) -> None:
    evil = world.policy("p", "approval:legal", title="\x1b]0;owned\x07", advice="a\u202eb")
    script.answer(200, {"decision": world.deny(evil)})
    script.answer(
        200, explained({**REPORT, "id": "p", "failing": [{"source": "\x1b[2J", "values": [{"text": "\x9b"}]}]})
    )
    _, out, _ = licet("ask", "promote", "northbank/m@1")
    assert all(char.isprintable() or char == "\n" for char in out)


# --- mutations ----------------------------------------------------------------------------------------------------------


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


def test_evidence_is_written_whole_with_its_digest(licet: Run, script: Any, world: Any, tmp_path: Path) -> None:
    out_file = tmp_path / "northbank.zip"
    script.answer(202, {"decision": world.allow, "result": {}, "operation": OPERATION})
    script.answer(200, {**OPERATION, "state": "done", "result": {"artifact": "x.zip"}})
    script.hang_up()
    script.answer(200, b"PK...", Content_Type="application/zip")
    code, out, _ = licet("evidence", "export", "northbank", "--out", str(out_file), "--format", "json")
    assert code == 0
    assert out_file.read_bytes() == b"PK..."
    assert stat.S_IMODE(out_file.stat().st_mode) == 0o600
    assert json.loads(out)["digest_hex"] == hashlib.sha256(b"PK...").hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["northbank.zip"]


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


# --- looking things up --------------------------------------------------------------------------------------------------


def test_a_list_is_a_table_in_text_and_whole_in_json(licet: Run, script: Any) -> None:
    items = [{"name": "hmda", "state": "ready", "classification": "confidential", "digest_hex": "ab" * 32}]
    for _ in range(2):
        script.answer(200, {"items": items})
    code, out, _ = licet("dataset", "list", "northbank")
    assert code == 0
    assert out.splitlines() == ["NAME  STATE  CLASSIFICATION", "hmda  ready  confidential"]
    _, out, _ = licet("dataset", "list", "northbank", "--format", "json")
    assert json.loads(out) == {"items": items}


def test_decisions_are_listed_with_outcome_and_time_and_can_be_searched(licet: Run, script: Any) -> None:
    row = {"id": "a" * 32, "leaf_index": 3, "principal": "northbank/ci", "resource": "northbank/m@1", "at_ms": 0}
    items = [
        {**row, "action": "model.promote", "allowed": False},
        {**row, "action": "model.promote", "allowed": True},
        {**row, "action": "log.read", "allowed": False},
    ]
    for _ in range(2):
        script.answer(200, {"items": items})
    code, out, _ = licet("decision", "list", "northbank")
    assert code == 0
    assert out.splitlines()[0].split() == ["ID", "AT", "ALLOWED", "ACTION", "RESOURCE", "PRINCIPAL"]
    assert "1970-01-01 00:00:00Z  no " in out
    _, out, _ = licet("decision", "list", "northbank", "--denied", "--action", "model.promote", "--format", "json")
    assert json.loads(out) == {"items": items[:1]}
    assert [asked.path for asked in script.asked] == [
        "/v1/list/northbank/decisions?limit=50",
        "/v1/list/northbank/decisions?limit=1000",
    ]


def test_a_roll_back_says_which_version_is_on_the_stage_now(licet: Run, script: Any, world: Any) -> None:
    ended = {**OPERATION, "state": "done", "action": "model.roll-back", "resource": "northbank/m@2"}
    rows = [{"model": "m", "version": 1, "stage": "prod"}, {"model": "n", "version": 4, "stage": "prod"}]
    script.answer(202, {"decision": world.allow, "result": {}, "operation": OPERATION})
    script.answer(200, {**ended, "result": {"stage": "prod"}})
    script.answer(200, {"items": [*rows, {"model": "m", "version": 2, "stage": "none"}]})
    code, out, _ = licet("model", "roll-back", "northbank/m@2", "--wait")
    assert code == 0
    assert out.splitlines()[-1] == "  northbank/m@1 is on prod now"


def test_a_roll_back_is_done_even_if_the_models_may_not_be_read(licet: Run, script: Any) -> None:
    ended = {**OPERATION, "state": "done", "action": "model.roll-back", "resource": "northbank/m@2"}
    script.answer(200, {**ended, "result": {"stage": "prod"}})
    script.problem(403, "denied", "no", decision={"id": "x", "decision": "deny"})
    code, out, _ = licet("operation", "wait", f"northbank/{'0' * 32}", "--format", "json")
    assert code == 0
    assert json.loads(out)["on_stage"] is None


def test_who_has_no_role_for_an_action_is_told_so(licet: Run, script: Any, world: Any) -> None:
    told = explained(nearest=[])
    told["explanation"]["role_permits"] = False
    told["record"]["principal"] = {"type": "Person", "id": "northbank/ana"}
    script.answer(200, {"decision": world.deny()})
    script.answer(200, told)
    code, out, _ = licet("ask", "promote", "northbank/m@1")
    assert code == 1
    assert "no role of northbank/ana permits model.promote" in " ".join(out.split())


def test_explain_shows_clauses_in_order_with_their_outcomes(licet: Run, script: Any) -> None:
    clause = {
        "kind": "unless",
        "joiner": "and",
        "outcome": "false",
        "parts": [
            {"source": "resource.checks has bias", "outcome": "true", "supports": True, "values": []},
            {
                "source": "resource.checks.bias.passed",
                "outcome": "false",
                "supports": True,
                "values": [{"text": "resource.checks.bias.passed = false"}],
            },
            {"source": "context.x", "outcome": "not-reached", "supports": True, "values": []},
        ],
    }
    script.answer(200, explained({**REPORT, "clauses": [clause]}))
    code, out, _ = licet("decision", "explain", "northbank/" + "d" * 32)
    assert code == 0
    body = [line.strip() for line in out.splitlines()]
    begin = body.index("unless    resource.checks has bias")
    assert body[begin : begin + 6] == [
        "unless    resource.checks has bias",
        "is true",
        "and     resource.checks.bias.passed",
        "is false: resource.checks.bias.passed = false",
        "and     context.x",
        "was not reached",
    ]


def test_the_checkpoint_is_shown_as_it_was_signed(licet: Run, script: Any) -> None:
    note = "licet/log/northbank\n3\nAAAA=\n\n\u2014 licet/log/northbank BBBB=\n"
    script.answer(200, {"size": 3, "root_hex": "00", "origin": "licet/log/northbank", "checkpoint": note})
    code, out, _ = licet("log", "checkpoint", "northbank")
    assert code == 0
    assert out == note


def test_public_keys_are_shown_without_a_token(licet: Run, script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LICET_TOKEN")
    key = {"keyid": "ab", "alg": "ed25519", "spki": "", "purpose": "log", "valid_from_ms": 0, "valid_until_ms": None}
    script.answer(200, {"v": 1, "instance": "licet", "log_origin_prefix": "licet/log", "keys": [key]})
    code, out, _ = licet("keys", "show")
    assert code == 0
    assert "ed25519" in out
    assert "Authorization" not in script.asked[0].headers


# --- failures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 409, 413, 500])
def test_an_error_says_what_is_wrong_on_stderr_and_ends_with_2(licet: Run, script: Any, status: int) -> None:
    script.problem(status, "some-code", "what is wrong, and what to do")
    code, out, err = licet("dataset", "archive", "northbank/hmda")
    assert (code, out) == (2, "")
    assert "what is wrong, and what to do" in err


def test_a_look_up_that_is_denied_ends_with_1(licet: Run, script: Any) -> None:
    script.problem(403, "denied", "no", decision={"id": "x", "decision": "deny"})
    code, out, err = licet("dataset", "list", "lakeside")
    assert (code, err) == (1, "")
    assert "denied  catalogue.read on lakeside" in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["decision", "list", "lakeside"], "denied  decision.read on lakeside"),
        (["policy", "controls", "--evidence", "lakeside"], "denied  decision.read on lakeside"),
        (["decision", "explain", "lakeside/" + "d" * 32], "denied  decision.explain on lakeside/" + "d" * 32),
        (["decision", "show", "lakeside/" + "d" * 32], "denied  decision.read on lakeside/" + "d" * 32),
        (["operation", "show", "lakeside/" + "d" * 32], "denied  operation.read on lakeside/" + "d" * 32),
        (["log", "entries", "lakeside"], "denied  log.read on lakeside"),
    ],
)
def test_a_denied_look_up_names_the_action_and_the_thing_and_no_address(
    licet: Run, script: Any, arguments: list[str], told: str
) -> None:
    script.problem(403, "denied", "no", decision={"id": "x", "decision": "deny"})
    code, out, _ = licet(*arguments)
    assert code == 1
    assert out.splitlines()[0] == told
    assert "/v1" not in out


def test_an_error_in_json_stands_on_stdout(licet: Run, script: Any) -> None:
    script.problem(409, "conflict", "it is on prod already")
    code, out, err = licet("dataset", "archive", "northbank/hmda", "--format", "json")
    assert code == 2
    assert err == ""
    assert json.loads(out) == {"error": {"code": "conflict", "message": "it is on prod already"}}


def test_no_answer_tells_the_key_with_which_to_repeat(licet: Run, script: Any) -> None:
    code, _, err = licet("dataset", "archive", "northbank/hmda")
    assert code == 2
    assert f"--idempotency-key {script.asked[0].headers['Idempotency-Key']}" in err


def test_there_is_no_option_to_type_a_token(licet: Run, script: Any) -> None:
    code, _, err = licet("dataset", "archive", "northbank/hmda", "--token", "licet_typed")
    assert code == 2
    assert "No such option" in err
    assert not script.asked


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["model", "promote", "northbank/m@1"],
        ["model", "promote", "northbank/m@1", "--to", "moon"],
        ["dataset", "list"],
        ["operation", "wait", "no-slash"],
        ["operation", "show", "northbank/abc"],
        ["operation", "artifact", "northbank/abc", "--out", "x"],
        ["decision", "show", "northbank/" + "D" * 32],
        ["decision", "explain", "northbank/" + "d" * 31],
        ["ask", "promote", "northbank/m@1", "--to", "moon"],
        ["ask", "approve", "northbank/m@1", "--track", "moon"],
        ["ask", "fly", "northbank/m@1"],
        ["dataset", "register", "northbank/hmda", "--file", "/no/such/file"],
        [],
    ],
)
def test_a_command_that_cannot_be_understood_ends_with_2(licet: Run, script: Any, arguments: list[str]) -> None:
    code, _, err = licet(*arguments)
    assert code == 2
    assert err
    assert "^(" not in err
    assert not script.asked


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly", "--format", "json"],
        ["--fly", "--format", "json"],
        ["model", "promote", "northbank/m@1", "--format=json"],
        ["model", "promote", "northbank/m@1", "--to", "moon", "--format", "json"],
        ["decision", "show", "northbank/abc", "--format", "json"],
        ["ask", "fly", "northbank/m@1", "--format", "json"],
        ["verify", "/no/such.zip", "--trust-root", "/no/such.json", "--format", "json"],
    ],
)
def test_with_json_every_error_is_an_object_on_stdout(licet: Run, script: Any, arguments: list[str]) -> None:
    code, out, err = licet(*arguments)
    assert (code, err) == (2, "")
    error = json.loads(out)["error"]
    assert error["code"]
    assert error["message"]
    assert not script.asked


def test_with_json_no_token_is_an_error_in_json(licet: Run, script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LICET_TOKEN")
    code, out, err = licet("dataset", "list", "northbank", "--format", "json")
    assert (code, err) == (2, "")
    assert "LICET_TOKEN_FILE" in json.loads(out)["error"]["message"]
    assert not script.asked


def test_what_is_no_trust_root_is_named_with_what_it_was_given_for(licet: Run, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"v":1}')
    code, _, err = licet("verify", str(tmp_path / "a.zip"), "--trust-root", str(wrong))
    assert code == 2
    assert f"{wrong}, given with --trust-root, cannot be used: not a trust root of version 1" in err


def test_what_is_not_installed_is_named_with_the_way_to_install_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(ModuleNotFoundError("No module named 'cedarpy'", name="cedarpy"), "text") == 2
    assert "pip install 'licet[decide]'" in capsys.readouterr().err


def test_a_defect_is_said_to_be_one_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(ZeroDivisionError("division by zero"), "text") == 2
    err = capsys.readouterr().err
    assert "defect of licet: ZeroDivisionError" in err
    assert "Traceback" not in err


def test_packs_are_shown_without_a_server(licet: Run, script: Any) -> None:
    code, out, _ = licet("policy", "packs")
    assert code == 0
    assert "sr-11-7" in out
    assert "selection_rate_ratio_min_micro" in out
    code, out, _ = licet("policy", "packs", "residency", "--format", "json")
    assert "forbid" in json.loads(out)["packs"][0]["text"]
    code, _, err = licet("policy", "packs", "nonsense")
    assert code == 2
    assert "no pack is called" in err
    assert not script.asked


def test_controls_are_shown_without_a_server_and_promise_nothing(licet: Run, script: Any) -> None:
    code, out, _ = licet("policy", "controls", "--framework", "hipaa")
    assert code == 0
    assert "HIPAA  (pack hipaa)" in out
    assert "164.312(a)(1)  Access control" in out
    assert "hipaa.access.data, guardrail.isolation" in out
    code, out, _ = licet("policy", "controls", "--format", "json")
    rows = json.loads(out)["controls"]
    assert {row["framework"] for row in rows} >= {"HIPAA", "EU-AI-Act", "EAR", "NIST-SP-800-53", "SR-11-7", "GDPR"}
    assert all(set(row) == {"framework", "clause", "title", "pack", "policies", "also", "evidence"} for row in rows)
    code, _, err = licet("policy", "controls", "--framework", "sox")
    assert code == 2
    assert "no framework or pack is called 'sox'" in err
    code, _, err = licet("policy", "controls", "--from", "2026-01-01")
    assert code == 2
    assert "name the tenant whose decisions to count" in err
    assert not script.asked


def test_decisions_are_counted_under_each_clause_over_all_parts(licet: Run, script: Any) -> None:
    def group(decision: str, policies: list[str], observed: list[str], count: int) -> dict[str, Any]:
        return {"decision": decision, "policies": policies, "observed": observed, "count": count}

    two = ["hipaa.evaluation.drift", "hipaa.evaluation.technical"]
    told = {"unread": 0, "own": False}
    first = [group("deny", two, [], 3), group("allow", ["role.auditor.read"], ["hipaa.risk.tier"], 4)]
    script.answer(200, {"groups": first, "decisions": 7, "next": 12, **told})
    # A policy of another clause, and one that allowed: neither is a refusal by the clause.
    last = [group("deny", ["hipaa.use.work"], [], 2), group("allow", ["hipaa.use.data"], [], 1)]
    script.answer(200, {"groups": last, "decisions": 4, "next": None, **told, "unread": 1})
    asked = ("policy", "controls", "--framework", "hipaa", "--evidence", "northbank")
    code, out, _ = licet(*asked, "--from", "2026-01-01", "--to", "2026-02-01", "--format", "json")
    assert code == 0
    shown = json.loads(out)
    counts = {row["clause"]: row["decisions"] for row in shown["controls"]}
    # A decision that two policies of a clause refused is one decision.
    assert counts["164.308(a)(8)"] == {"refused": 3, "observed": 0}
    assert counts["164.308(a)(1)(ii)(B)"] == {"refused": 0, "observed": 4}
    assert counts["164.502(a)"] == {"refused": 2, "observed": 0}
    assert (shown["counted"]["decisions"], shown["counted"]["unread"], shown["counted"]["own"]) == (11, 1, False)
    window = "from_ms=1767225600000&to_ms=1769904000000"
    assert [asked.path for asked in script.asked] == [
        f"/v1/enforced/northbank?{window}",
        f"/v1/enforced/northbank?{window}&before=12",
    ]


def test_what_is_erased_or_another_s_is_told_with_the_count(licet: Run, script: Any) -> None:
    script.answer(200, {"groups": [], "decisions": 5, "unread": 5, "own": True, "next": None})
    _, out, _ = licet("policy", "controls", "--evidence", "northbank")
    assert "5 of your own decisions in northbank were looked at; the record of 5 was erased" in " ".join(out.split())


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([{"next": 12}, {"next": 12}], "goes on where it was already"),
        ([{"next": "x"}], "not of the expected form"),
        ([{"groups": [{"decision": "deny"}], "next": None}], "not of the expected form"),
    ],
)
def test_a_count_that_would_not_end_or_cannot_be_read_is_no_count(
    licet: Run, script: Any, parts: list[dict[str, Any]], told: str
) -> None:
    for part in parts:
        script.answer(200, {"groups": [], "decisions": 1, "unread": 0, "own": False, **part})
    code, out, err = licet("policy", "controls", "--evidence", "northbank")
    assert code == 2
    assert told in err
    assert not out


@pytest.mark.parametrize(
    ("line", "detail", "told"),
    [
        (
            "token issue a/x --ttl 1000d",
            "token.issue: ttl_s must be at most 3 (366d)",
            "--ttl must be at most 3 (366d)",
        ),
        (
            "person administer a/x --role no",
            "person.administer: roles.0 must be one of a, b",
            "--role must be one of a, b",
        ),
        ("run log a/r auc abc --step 1", "run.log: value must be a decimal number", "VALUE must be a decimal number"),
        ("token revoke a/x 12", "token.revoke: token_id must be an ID", "TOKEN_ID must be an ID"),
        (
            "break-glass request a --reason x --for 9h",
            "tenant.request-break-glass: duration_s must be",
            "--for must be",
        ),
        ("break-glass approve a 12", "tenant.approve-break-glass: id must be an ID", "ID must be an ID"),
        # Of this command --url is another thing: where the service is.
        ("webhook create a/w --address x", "webhook.create: url must be https", "--address must be https"),
        (
            "webhook create a/w --address x --event y",
            "webhook.create: events.0 must be one of a.b",
            "--event must be one of a.b",
        ),
        (
            "tenant administer a --remind-before 10s",
            "tenant.administer: remind_before_s must be at least 60",
            "--remind-before must be at least 60",
        ),
        (
            "approval delegate a/b --track legal --for 1d",
            "approval.delegate: until_ms must be at least 0",
            "--for must be at least 0",
        ),
        ("ask approve a/m@1", "model.approve: track is missing", "--track is missing"),
        ("ask hold a/m", "dataset.hold: purpose is missing", "--param purpose is missing"),
        (
            "train launch a/r --dataset a/d --environment e --use u --spec exclude=b,c",
            'training.launch: spec.exclude must be a list, such as ["b","c"]',
            """--spec exclude must be a list, such as ["b","c"]: write --spec 'exclude=["b","c"]'""",
        ),
    ],
)
def test_what_the_server_says_of_a_member_is_said_of_the_option(
    licet: Run, script: Any, line: str, detail: str, told: str
) -> None:
    script.problem(400, "invalid-input", detail)
    code, _, err = licet(*line.split())
    assert code == 2
    assert f"error: {told}" in err


@pytest.mark.parametrize(
    "line",
    [
        "model register a/m --run run-2",
        "train launch a/r --dataset hmda --environment e --use u",
        "ask register a/m --run run-2",
        "ask train a/r --dataset hmda",
    ],
)
def test_what_is_named_without_its_tenant_is_not_sent(licet: Run, script: Any, line: str) -> None:
    code, _, err = licet(*line.split())
    assert code == 2
    assert "write TENANT/NAME" in err
    assert not script.asked


def test_an_owner_may_be_named_with_the_tenant(licet: Run, script: Any, world: Any) -> None:
    script.answer(200, {"decision": world.allow, "result": {}, "operation": None})
    assert licet("person", "administer", "acme/ci", "--kind", "service", "--owner", "acme/ana")[0] == 0
    assert script.asked[0].json["parameters"]["owner"] == "ana"


def test_asking_to_register_names_both_actions_unless_a_run_tells_which(licet: Run, script: Any, world: Any) -> None:
    code, _, err = licet("ask", "register", "acme/m")
    assert code == 2
    assert "dataset.register or model.register" in " ".join(err.split())
    assert not script.asked
    script.answer(200, {"decision": world.allow})
    assert licet("ask", "register", "acme/m", "--run", "acme/r")[0] == 0
    assert script.asked[0].json["action"] == "model.register"


def test_a_question_that_got_no_answer_is_safe_to_repeat(licet: Run, script: Any) -> None:
    code, _, err = licet("ask", "read", "northbank/hmda")
    assert code == 2
    assert "safe to repeat" in err
    assert "idempotency" not in err
    assert "Idempotency-Key" not in script.asked[0].headers


@pytest.mark.parametrize(
    "line", ["dataset archive northbank/hmda", "ask read northbank/hmda", "dataset list northbank"]
)
def test_where_no_connection_was_taken_it_is_known_that_nothing_was_done(
    licet: Run, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setenv("LICET_URL", f"http://127.0.0.1:{free_port()}")
    code, _, err = licet(*line.split())
    assert code == 2
    assert "nothing was done" in err
    assert "idempotency" not in err


def test_an_address_below_the_root_is_told_to_be_the_root(licet: Run, script: Any) -> None:
    script.problem(404, "no-such-route", "There is no such route")
    code, _, err = licet("dataset", "list", "northbank")
    assert code == 2
    assert "the service's root" in err


@pytest.mark.parametrize("url", ["127.0.0.1:8100", "http://127.0.0.1:99999", "http://127.0.0.1:x"])
def test_what_is_no_address_is_told_the_form_of_one(licet: Run, script: Any, url: str) -> None:
    code, _, err = licet("dataset", "list", "northbank", "--url", url)
    assert code == 2
    assert "http://127.0.0.1:PORT" in err
    assert not script.asked


def test_checks_are_summed_up_before_their_details(licet: Run, script: Any) -> None:
    bias = {
        "kind": "bias",
        "passed": False,
        "figures": {"selection_rate_ratio_micro": 990_000},
        "detail": {"reasons": ['the model answers "no" for 99.3% of the rows'], "selection_rate_micro": 993_000},
    }
    drift = {"kind": "drift", "passed": True, "figures": {"drifted_features": 0}, "detail": {"reasons": []}}
    ended = {**OPERATION, "state": "done", "action": "model.check", "resource": "northbank/m@1", "attempt": 1}
    script.answer(200, {**ended, "result": {"results": [bias, drift]}, "error": None, "progress": None})
    code, out, _ = licet("operation", "show", f"northbank/{OPERATION['id']}")
    assert code == 0
    lines = [line.strip() for line in out.splitlines()]
    assert lines[1:4] == [
        "bias            FAIL  selection_rate_ratio 0.990",
        'the model answers "no" for 99.3% of the rows',
        "drift           pass  drifted_features 0",
    ]


def test_what_waits_is_listed_with_what_changed_since(licet: Run, script: Any) -> None:
    row = {
        "version": "northbank/m@2",
        "track": "legal",
        "on_behalf_of": None,
        "requested_by": "ana",
        "at_ms": 1,
        "expires_at_ms": 2,
        "binding": "0123456789abcdef",
        "reason": "please",
        "changed_since_request": ["evaluation:bias"],
        "changed_since_approval": ["model", "policy"],
    }
    script.answer(200, {"items": [row]})
    code, out, _ = licet("approval", "list", "northbank")
    assert code == 0
    assert script.asked[-1].path.startswith("/v1/list/northbank/inbox")
    assert "changed since it was asked for: evaluation:bias" in out
    assert "changed since the approval before: model, policy" in out
    script.answer(200, {"items": []})
    assert "Nothing waits for you." in licet("approval", "list", "northbank")[1]
    script.answer(200, {"items": []})
    licet("approval", "list", "northbank", "--all")
    assert script.asked[-1].path.startswith("/v1/list/northbank/approvals")


def test_the_secret_of_a_webhook_goes_to_a_file_of_its_owner_alone(
    licet: Run, script: Any, world: Any, tmp_path: Path
) -> None:
    out_file = tmp_path / "ops.secret"
    result = {"webhook": "northbank/ops", "id": "wh-1", "events": [], "secret": "whsec_c2VjcmV0"}
    script.answer(200, {"decision": world.allow, "operation": None, "result": result})
    code, out, err = licet(
        "webhook", "create", "northbank/ops", "--address", "https://hooks.example/in", "--out", str(out_file)
    )
    assert code == 0
    assert "whsec_" not in out + err
    assert out_file.read_text() == "whsec_c2VjcmV0\n"
    assert out_file.stat().st_mode & 0o777 == 0o600
    asked = len(script.asked)
    assert (
        licet("webhook", "create", "northbank/ops", "--address", "https://hooks.example/in", "--out", str(out_file))[0]
        == 2
    )
    assert len(script.asked) == asked


def test_the_history_of_webhooks_shows_every_try(licet: Run, script: Any) -> None:
    tries = [{"number": 1, "at_ms": 1, "status": 500, "reason": "answered 500", "took_ms": 3}]
    row = {"id": "msg_1", "webhook": "ops", "event": "webhook.test", "state": "pending", "tries": 1}
    script.answer(200, {"items": [{**row, "created_at_ms": 1, "next_at_ms": 2, "history": tries}]})
    code, out, _ = licet("webhook", "history", "northbank")
    assert code == 0
    assert "try 1" in out
    assert "answered 500" in out


def test_a_delegation_ends_that_long_from_now(licet: Run, script: Any, world: Any) -> None:
    script.answer(200, {"decision": world.allow, "operation": None, "result": {}})
    before_ms = time.time() * 1000
    assert licet("approval", "delegate", "northbank/ben", "--track", "legal", "--for", "5d")[0] == 0
    sent = script.asked[-1].json["parameters"]
    assert sent["track"] == "legal"
    assert before_ms <= sent["until_ms"] - 5 * 86_400_000 + 1 <= time.time() * 1000 + 1


def test_who_may_not_invoke_is_told_how_to_ask_why(licet: Run, script: Any) -> None:
    script.problem(403, "denied", "This is not permitted.", decision={"id": "d" * 32})
    code, out, _ = licet("endpoint", "invoke", "northbank/credit", "--row", "a=1", "--serving-url", script.url)
    assert code == 1
    assert "licet ask endpoint.invoke northbank/credit" in out
