"""What `licet ask` shows: the decision, the conjunct that denied, and the path to yes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from cli_world import APPROVAL, REPORT, Run, explained  # The line above finds it.


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


def test_what_is_allowed_and_not_possible_ends_as_it_would_if_it_were_asked_for(
    licet: Run, script: Any, world: Any
) -> None:
    conflict = {"code": "conflict", "detail": "northbank/m@1 is on prod already"}
    for _ in range(2):
        script.answer(200, {"decision": world.allow, "conflict": conflict})
    code, out, _ = licet("ask", "promote", "northbank/m@1")
    assert code == 2
    assert "allowed  model.promote" in out
    assert "but it could not be done as things stand: northbank/m@1 is on prod already" in " ".join(out.split())
    code, out, _ = licet("ask", "promote", "northbank/m@1", "--format", "json")
    assert (code, json.loads(out)["conflict"], json.loads(out)["allowed"]) == (2, conflict, True)


def test_a_path_to_yes_says_what_could_not_be_done_at_its_end(licet: Run, script: Any, world: Any) -> None:
    script.answer(200, {"decision": world.deny(world.policy("p", "approval:model-risk")), "conflict": None})
    conflict = {"code": "conflict", "detail": "northbank/m@1 is on prod already"}
    script.answer(200, explained(possible=True, minimal=True, steps=[APPROVAL], conflict=conflict))
    code, out, _ = licet("ask", "promote", "northbank/m@1")
    assert code == 3
    assert "Even then it could not be done as things stand: northbank/m@1 is on prod already" in " ".join(out.split())


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
    # What the path names is not told a second time.
    assert "failing checks" not in out
    assert out.count("check:bias") == 1
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
