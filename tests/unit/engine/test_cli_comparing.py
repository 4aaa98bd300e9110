"""What a change of policy means, as its author asks: proved, compared for everything that could happen, replayed."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from archives import MemoryLog
from licet_attestations import canonical
from licet_engine.cli import run
from licet_engine.decide import CompiledBundle, Fact, FactSet, Request, build_record, decide
from licet_engine.decide.entities import EntityUid
from licet_engine.workbench import markdown
from licet_engine.workbench.diffing import ActionDiff, diff_bundles
from licet_policies import compose
from licet_policies.cases import load_cases, request_of

OPENED = '@id("desk.opened") @title("Opened") @owner("desk")\npermit (principal, action == Action::"model.read", resource is ModelVersion);\n'
FROZEN = (
    '@id("desk.frozen") @title("Frozen") @advice("Wait.") @severity("low") @owner("desk")\n'
    'forbid (principal, action == Action::"model.promote", resource is ModelVersion) when { context.stage == "prod" };\n'
)
ERRS = (
    '@id("desk.errs") @title("Errs") @advice("Wait.") @severity("low") @owner("desk")\n'
    'forbid (principal, action == Action::"dataset.read", resource is Dataset)'
    " when { resource.restrictions.expires_at_ms + 1 < context.now_ms };\n"
)
NEVER_READ = (
    '@id("desk.invariant.read") @title("Anybody but an auditor reads a model") @never\n'
    'permit (principal, action == Action::"model.read", resource is ModelVersion) unless { principal in Role::"auditor" };\n'
)


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert run(["policy", "init", "before"]) == 0
    return tmp_path / "before"


@pytest.fixture
def after(before: Path) -> Path:
    assert run(["policy", "init", "after"]) == 0
    return before.with_name("after")


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_the_project_that_init_writes_is_proved_with_what_that_does_not_show(
    before: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(["policy", "prove", str(before), "--format", "json"]) == 0
    answer = told(capsys)
    assert {proof["outcome"] for proof in answer["proofs"]} == {"proved"}
    assert {"bundle.errors", "bundle.narrows", "desk.invariant.restricted-data"} <= {p["id"] for p in answer["proofs"]}
    assert len(answer["limits"]) > 3
    assert run(["policy", "prove", str(before)]) == 0
    assert "What this does not show:" in capsys.readouterr().out


def test_what_is_refuted_is_told_with_its_place_and_a_request_in_every_format(
    before: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (before / "policies" / "errs.cedar").write_text(ERRS)
    (before / "invariants" / "read.cedar").write_text(NEVER_READ)
    capsys.readouterr()
    assert run(["policy", "prove", "before", "--format", "json"]) == 1
    by_id = {proof["id"]: proof for proof in told(capsys)["proofs"]}
    assert by_id["bundle.errors"]["outcome"] == by_id["desk.invariant.read"]["outcome"] == "refuted"
    request = by_id["bundle.errors"]["request"]
    assert request["action"]["id"] == "dataset.read"
    assert any("desk.errs" in error for error in request["left"]["errors"])
    assert run(["policy", "prove", "before"]) == 1
    out = capsys.readouterr().out
    assert "before/policies/errs.cedar:1:" in out
    assert "before/invariants/read.cedar:1:" in out
    # What is proved is counted; of the request, only what decided is shown.
    assert not [line for line in out.splitlines() if line.startswith("proved")]
    assert re.search(r"^\d+ proved, 2 refuted of \d+ properties; --verbose names each$", out, re.MULTILINE)
    shown = out.partition("bundle.errors does not hold of this request:\n")[2].partition("\n\n")[0]
    assert "resource.restrictions.expires_at_ms = 9" in " ".join(shown.split())
    assert "desk.errs" in shown
    assert len(shown.splitlines()) < 15
    assert run(["policy", "prove", "before", "--verbose"]) == 1
    assert "proved   invariant.isolation" in capsys.readouterr().out
    assert run(["policy", "prove", "before", "--format", "junit"]) == 1
    report = ET.fromstring(capsys.readouterr().out)  # noqa: S314  # Our own.
    assert len(report.findall(".//failure")) == 2
    assert run(["policy", "prove", "before", "--format", "sarif"]) == 1
    results = told(capsys)["runs"][0]["results"]
    assert {result["ruleId"] for result in results} == {"refuted"}


def test_an_invariant_that_speaks_of_nothing_or_is_none_is_not_passed_over(
    before: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = before / "invariants" / "none.cedar"
    file.write_text(NEVER_READ.replace("unless {", "when { false &&"))
    capsys.readouterr()
    assert run(["policy", "prove", "before"]) == 1
    assert "it says nothing [vacuous]" in capsys.readouterr().out
    file.write_text(NEVER_READ.replace("@never", "").replace('@title("Anybody but an auditor reads a model")', ""))
    assert run(["policy", "prove", "before"]) == 2
    assert '@never("...")' in capsys.readouterr().err


def test_versions_are_compared_for_everything_that_could_happen(
    after: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run(["policy", "diff", "before", "after"]) == 0
    (after / "policies" / "more.cedar").write_text(OPENED + FROZEN)
    assert run(["policy", "bundle", "before", "--out", "before.json"]) == 0
    capsys.readouterr()
    # A bundle's file and a project's folder are the same version.
    assert run(["policy", "diff", "before.json", "after", "--format", "json"]) == 1
    answer = told(capsys)
    changed = {(one["action"], one["resource"]): one for one in answer["actions"] if one["relation"] != "equivalent"}
    assert {key: one["relation"] for key, one in changed.items()} == {
        ("model.read", "ModelVersion"): "looser",
        ("model.promote", "ModelVersion"): "stricter",
    }
    (denied,) = {tuple(d["because"]) for d in changed["model.promote", "ModelVersion"]["differences"]}
    assert denied == ("desk.frozen",)
    assert run(["policy", "diff", "after", "before", "--format", "json"]) == 1
    assert told(capsys)["counts"]["looser"] == 1
    assert run(["policy", "diff", "before", "after", "--format", "markdown"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("### Policy: 1 looser, 1 stricter,")
    assert "| `model.promote` | `ModelVersion` | **stricter** | now denied for a ServiceAccount |" in out


def test_what_narrows_and_widens_at_once_is_incomparable() -> None:
    narrow = FROZEN.replace('context.stage == "prod"', 'context.stage == "prod" && resource.tier == "high"')
    other = FROZEN.replace('context.stage == "prod"', 'context.stage == "staging"')
    found = {(one.action, one.resource): one for one in diff_bundles(compose(own=narrow), compose(own=other))}
    promote = found["model.promote", "ModelVersion"]
    assert promote.relation == "incomparable"
    assert {difference.now_allowed for difference in promote.differences} == {True, False}
    assert {one.relation for key, one in found.items() if key != ("model.promote", "ModelVersion")} == {"equivalent"}


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"v":1,"schema":{}}', b"\xff", b"not json"])
def test_what_is_no_version_is_refused(before: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (before.parent / "x.json").write_bytes(content)
    assert run(["policy", "diff", "before", "x.json"]) == 2
    assert "neither a project's folder nor a bundle" in capsys.readouterr().err
    assert run(["policy", "diff", "before", "nowhere"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def recorded(path: Path, bundle: dict[str, Any]) -> int:
    """An archive of every shipped case, decided by ``bundle``; how many allowed promotions to prod are in it."""
    compiled = CompiledBundle.compile(bundle)
    log = MemoryLog(bundles={compiled.digest_hex: canonical.dumps(bundle)})
    hit = 0
    for number, case in enumerate(load_cases()):
        asked = request_of(case)
        facts = FactSet([Fact.from_entity(entity) for entity in asked.entities])
        principal, resource = (EntityUid.from_json(dict(one)) for one in (asked.principal, asked.resource))
        request = Request(principal, asked.action, resource, asked.context)
        decision = decide(compiled, request, facts)
        hit += decision.allowed and asked.action == "model.promote" and asked.context["stage"] == "prod"
        log.facts |= {fact.digest_hex: fact.data for fact in facts}
        record = build_record(
            decision_id=f"{number:032x}",
            time_ms=number,
            tenant="northbank",
            request=request,
            decision=decision,
            facts=facts,
            facts_version=1,
            bundle_hex=compiled.digest_hex,
        )
        log.append("decision", record)
    log.build(path)
    return hit


def test_what_did_happen_is_decided_again(before: Path, after: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (after / "policies" / "more.cedar").write_text(FROZEN)
    # What was recorded was decided under the version before, as `bundle` writes it.
    assert run(["policy", "bundle", "before", "--out", "before.json"]) == 0
    hit = recorded(before.parent / "log.zip", json.loads((before.parent / "before.json").read_bytes()))
    assert hit > 0
    capsys.readouterr()
    assert run(["policy", "replay", "before", "--archive", "log.zip"]) == 0
    assert "0 of " in capsys.readouterr().out
    assert run(["policy", "replay", "after", "--archive", "log.zip", "--format", "json", "--keep", "1"]) == 1
    answer = told(capsys)
    assert (answer["to_deny"], answer["to_allow"], len(answer["flips"])) == (hit, 0, 1)
    assert answer["by_policy"] == {"desk.frozen": hit}
    assert run(["policy", "replay", "before.json", "--archive", "log.zip", "--before", "after"]) == 1
    assert f"{hit} to allow" in capsys.readouterr().out
    assert run(["policy", "replay", "after", "--archive", "log.zip", "--format", "markdown"]) == 1
    assert f"| `desk.frozen` | {hit} |" in capsys.readouterr().out
    assert run(["policy", "replay", "after", "--archive", "before.json"]) == 2
    assert "before.json" in capsys.readouterr().err


@pytest.mark.parametrize("hostile", ["a`b", "``", "x|y", "<b>", "a\n\n# b", "", " ", "`", "\x1b[31m"])
def test_names_cannot_break_out_of_markdown(hostile: str) -> None:
    shown = markdown.code(hostile)
    assert "\n" not in shown
    assert "\x1b" not in shown
    assert not [bar for at, bar in enumerate(shown) if bar == "|" and shown[at - 1] != "\\"]
    fence = shown[: len(shown) - len(shown.lstrip("`"))]
    assert fence
    assert shown.endswith(fence)
    assert fence not in shown[len(fence) : -len(fence)]
    told_so = markdown.diff_markdown([ActionDiff(hostile, hostile, unknown=[hostile])])
    assert "<b>" not in told_so.replace("`<b>`", "")
