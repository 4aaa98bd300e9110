"""What is looked up on the command line is shown whole, in order, and harmless."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from cli_world import OPERATION, REPORT, Run, explained  # The line above finds it.


def test_a_list_is_a_table_in_text_and_whole_in_json(licet: Run, script: Any) -> None:
    items = [{"name": "hmda", "state": "ready", "classification": "confidential", "digest_hex": "ab" * 32}]
    for _ in range(2):
        script.answer(200, {"items": items})
    code, out, _ = licet("dataset", "list", "northbank")
    assert code == 0
    told = "not shown: digest; --format json shows all"
    assert out.splitlines() == ["NAME  STATE  CLASSIFICATION", "hmda  ready  confidential", told]
    _, out, _ = licet("dataset", "list", "northbank", "--format", "json")
    assert json.loads(out) == {"items": items}


def test_a_list_says_what_it_leaves_out_and_not_what_says_nothing(licet: Run, script: Any) -> None:
    row = {"name": "hmda", "state": "ready", "classification": "confidential"}
    script.answer(200, {"items": [{**row, "label": "", "protected": [], "object_id": None}]})
    _, out, _ = licet("dataset", "list", "northbank")
    assert "not shown" not in out
    script.answer(200, {"items": [{**row, "label": ""}, {**row, "label": "deny", "created_at_ms": 0}]})
    _, out, _ = licet("dataset", "list", "northbank")
    assert out.splitlines()[-1] == "not shown: created at, label; --format json shows all"


def test_who_stands_in_is_told_to_say_for_whom(licet: Run, script: Any) -> None:
    row = {"version": "northbank/m@1", "track": "legal", "requested_by": "ci", "on_behalf_of": None}
    script.answer(200, {"items": [row, {**row, "track": "model-risk", "on_behalf_of": "mei"}], "is_cut": False})
    code, out, _ = licet("approval", "list", "northbank")
    assert code == 0
    told = "northbank/m@1 model-risk you stand in for mei: approve or reject it with --for mei"
    assert " ".join(out.split()).endswith(told)
    assert out.count("you stand in for") == 1


@pytest.mark.parametrize("command", ["break-glass list northbank", "break-glass look northbank 1 log"])
def test_what_breaking_the_glass_shows_is_items_as_in_every_list(
    licet: Run, script: Any, world: Any, command: str
) -> None:
    items = [{"index": 3, "kind": "decision"}]
    body = {"items": items} if "list" in command else {"decision": world.allow, "result": {"items": items}}
    script.answer(200, body)
    code, out, _ = licet(*command.split(), "--format", "json")
    assert code == 0
    assert json.loads(out)["items"] == items


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
    script.answer(200, {"items": [row], "is_cut": False})
    code, out, _ = licet("approval", "list", "northbank")
    assert code == 0
    assert "more requests" not in out
    assert script.asked[-1].path.startswith("/v1/list/northbank/inbox")
    assert "changed since it was asked for: evaluation:bias" in out
    assert "changed since the approval before: model, policy" in out
    script.answer(200, {"items": [], "is_cut": False})
    assert "Nothing waits for you." in licet("approval", "list", "northbank")[1]
    script.answer(200, {"items": [], "is_cut": True})
    assert "more requests are open than are looked at" in licet("approval", "list", "northbank")[1]
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


def test_a_secret_that_could_not_be_shown_leaves_no_file(licet: Run, script: Any, world: Any, tmp_path: Path) -> None:
    result = {"webhook": "northbank/ops", "id": "wh-1", "secret": None, "note": "licet webhook rotate gives a new one"}
    script.answer(200, {"decision": world.allow, "operation": None, "result": result})
    code, out, _ = licet("webhook", "rotate", "northbank/ops", "--out", str(tmp_path / "ops.secret"))
    assert code == 0
    assert "licet webhook rotate gives a new one" in out
    assert not (tmp_path / "ops.secret").exists()


def test_webhooks_that_were_deleted_are_listed_where_all_are(licet: Run, script: Any) -> None:
    row = {"name": "ops", "state": "deleted", "removed_at_ms": 1}
    for flags, what in (([], "webhooks"), (["--all"], "all-webhooks")):
        script.answer(200, {"items": [row]})
        code, out, _ = licet("webhook", "list", "northbank", *flags)
        assert code == 0
        assert script.asked[-1].path.startswith(f"/v1/list/northbank/{what}?")
        assert ("deleted" in out) == bool(flags)


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


@pytest.mark.parametrize("arguments", ["northbank", "northbank/4d1c2a9b7e305f68 --off"])
def test_a_shadow_is_of_a_bundle_or_ended_for_a_tenant(licet: Run, script: Any, arguments: str) -> None:
    code, _, err = licet("policy", "shadow", *arguments.split())
    assert code == 2
    assert "name" in err
    assert not script.asked


def test_flips_are_told_with_counts_and_what_decides_before_and_after(licet: Run, script: Any) -> None:
    counts = {"same": 7, "other_reasons": 1, "to_deny": 2, "to_allow": 0, "dropped": 3}
    shadow = {
        "id": "s",
        "bundle_hex": "4d1c2a9b7e305f68" * 4,
        "active_hex": "a" * 64,
        "set_by": "northbank/sam",
        "since_ms": 1_800_000_000_000,
        "ended_at_ms": 1_800_000_060_000,
        "ended": "overtaken",
    }
    flip = {
        "decision": "d" * 32,
        "at_ms": 1_800_000_000_000,
        "principal": "northbank/ana",
        "action": "model.promote",
        "resource": 'ModelVersion::"northbank/m@1"',
        "before": {"decision": "allow", "reasons": ["role.x"], "errors": []},
        "after": {"decision": "deny", "reasons": ["team.no"], "errors": ["team.errs"]},
    }
    report = {
        "shadow": shadow,
        "counts": {"decided": 10, **counts},
        "by_action": [{"action": "model.promote", "decided": 10, **counts}, {"action": "run.read", "to_deny": 0}],
        "by_policy": [{"policy": "team.no", "to_deny": 2, "to_allow": 0}],
        "flips": [flip],
    }
    script.answer(200, report)
    code, out, _ = licet("policy", "flips", "northbank", "--limit", "5")
    assert code == 0
    assert script.asked[0].path == "/v1/flips/northbank?limit=5"
    assert "4d1c2a9b7e305f68 beside aaaaaaaaaaaaaaaa" in out
    assert "other policies came into force" in out
    for line in (r"decided +10", r"other reasons +1", r"to deny +2", r"dropped +3", r"model\.promote +2 +0"):
        assert re.search(line, out), line
    assert "run.read" not in out
    assert re.search(r"before +allow: role\.x", out)
    assert re.search(r"after +deny: team\.errs \(error\), team\.no", out)
    script.answer(200, {**report, "shadow": None})
    assert licet("policy", "flips", "northbank")[1] == "no bundle ran beside the policies in force\n"


def test_of_decisions_those_are_listed_that_something_observed_would_have_denied(licet: Run, script: Any) -> None:
    rows = [{"id": name, "allowed": True, "observed": seen} for name, seen in (("one", []), ("two", ["team.no"]))]
    script.answer(200, {"items": rows})
    code, out, _ = licet("decision", "list", "northbank", "--observed", "--format", "json")
    assert code == 0
    assert [row["id"] for row in json.loads(out)["items"]] == ["two"]
