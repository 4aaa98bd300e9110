"""What goes wrong on the command line is said where it is read, with the exit code that scripts go by."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from cli_world import Run  # The line above finds it.

from licet_engine.commands.failures import report
from licet_engine.demo.stage import free_port


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

    two = ["hipaa.assurances.deployment", "hipaa.assurances.promotion"]
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
    assert counts["164.308(b)(1)"] == {"refused": 3, "observed": 0}
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
