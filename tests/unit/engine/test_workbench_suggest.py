"""The cases that tests lack, found by the solver: written as tests that pass, and reach what they were looked for."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from licet_engine.cli import run
from licet_engine.workbench.cases import load_cases
from licet_engine.workbench.coverage import coverage
from licet_engine.workbench.project import load_project
from licet_engine.workbench.testing import Runner

sys.path.append(str(Path(__file__).parent))
from workbench_world import POLICY, READ, READS, WORLD, write  # The line above finds it.

MANY = """@id("desk.many")
@title("Many parts")
@advice("Wait.")
@severity("low")
@owner("desk")
forbid (principal is Person in Role::"model-risk", action == Action::"model.approve", resource is ModelVersion)
when { context.track == "legal" && (resource.tier == "high" || resource.restrictions.protected) && !resource.authors.contains(principal) }
unless { resource.checks has bias && resource.checks.bias.passed || context.now_ms < 1700000000000 };
"""
NEVER = MANY.replace("desk.many", "desk.never").replace('"legal" &&', '"legal" && context.track == "security" &&')


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    files = {"policies/a.cedar": READ, "policies/b.cedar": POLICY, "policies/c.cedar": MANY}
    return write(tmp_path / "p", files | {"tests/world.yaml": WORLD, "tests/t.yaml": READS})


def percent(folder: Path) -> int:
    project = load_project(folder)
    runner = Runner(project)
    results = [runner.run(case) for case in load_cases(project)]
    assert [result.message for result in results if result.outcome != "passed"] == []
    return coverage(project, runner.compiled, results).percent


def test_what_is_missing_is_written_and_covers_everything(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert percent(project) < 100
    assert run(["policy", "coverage", "p", "--suggest"]) == 0
    told = capsys.readouterr()
    wrote = re.findall(r"^wrote p/(tests/suggested/\S+\.yaml): ", told.out, re.MULTILINE)
    assert sorted(wrote) == sorted(str(path.relative_to(project)) for path in (project / "tests/suggested").iterdir())
    assert percent(project) == 100
    # One case reaches several gaps, and is written once.
    assert len(wrote) < int(re.search(r"for (\d+) gaps", told.err)[1])
    assert run(["policy", "coverage", "p", "--threshold", "100"]) == 0


def test_who_asks_has_a_role_and_asks_of_their_own_tenant_where_that_will_do(project: Path) -> None:
    assert run(["policy", "coverage", "p", "--suggest"]) == 0
    cases = [case for case in load_cases(load_project(project)) if case.file.startswith("tests/suggested/")]
    assert cases
    for case in cases:
        asker, resource = case.entities[str(case.asked.principal)], case.entities[str(case.asked.resource)]
        assert asker["roles"], case.file
        assert asker["tenant"] == resource["tenant"], case.file


def test_a_stranger_is_suggested_where_nobody_else_comes_to_it(project: Path) -> None:
    away = MANY.replace("desk.many", "desk.away").replace(
        'context.track == "legal"', "principal.tenant != resource.tenant"
    )
    (project / "policies" / "d.cedar").write_text(away)
    assert run(["policy", "coverage", "p", "--suggest"]) == 0
    assert percent(project) == 100


def test_what_no_request_comes_to_is_told_and_nothing_is_written_for_it(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "policies" / "c.cedar").write_text(NEVER)
    assert run(["policy", "coverage", "p", "--suggest"]) == 1
    out = capsys.readouterr().out
    assert "no test lets desk.never apply; no request that could be made comes to it" in out
    assert '`context.track == "security"` true; no request that could be made comes to it' in out
    assert percent(project) < 100


def test_a_test_that_fails_is_told_with_what_is_suggested(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "tests" / "t.yaml").write_text(READS.replace("[desk.read]", "[]"))
    assert run(["policy", "coverage", "p", "--suggest"]) == 1
    assert "1 of the tests do not pass: see `licet policy test`" in capsys.readouterr().err


def test_nothing_is_written_over(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "tests" / "suggested").mkdir()
    (project / "tests" / "suggested" / "mine.txt").write_text("mine")
    assert run(["policy", "coverage", "p", "--suggest"]) == 2
    assert "nothing was written" in capsys.readouterr().err
    assert [path.name for path in (project / "tests" / "suggested").iterdir()] == ["mine.txt"]
    # A link that leads nowhere is there, too: nothing is written to where it would lead.
    (project / "tests" / "suggested" / "mine.txt").unlink()
    (project / "tests" / "suggested").rmdir()
    (project / "tests" / "suggested").symlink_to(project.parent / "elsewhere")
    assert run(["policy", "coverage", "p", "--suggest"]) == 2
    assert not (project.parent / "elsewhere").exists()


def test_a_format_that_a_suggestion_has_not_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["policy", "coverage", "p", "--suggest", "--format", "json"]) == 2
    assert "--format" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert not (project / "tests" / "suggested").exists()
