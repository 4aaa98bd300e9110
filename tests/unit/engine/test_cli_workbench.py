"""The workbench as its user runs it: what is found ends as exit code 1, what could not be done as 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import cedarpy
import pytest

from licet_engine.cli import run
from licet_engine.workbench.document import ProjectDocument

# Test files are imported each by itself; the project they share stands beside them.
sys.path.append(str(Path(__file__).parent))
from workbench_world import READ, READS, WORLD, write  # The line above finds it.

BAD = READ.replace('@owner("ops")', '@ownr("ops")').replace("resource.held", "resource.hold")
VERBS = ("lint", "test", "coverage", "fmt")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "p", {"policies/a.cedar": READ, "tests/world.yaml": WORLD, "tests/t.yaml": READS})


def test_the_project_that_init_writes_is_clean_in_every_respect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "p")
    assert run(["policy", "init", folder]) == 0
    assert "licet policy lint" in capsys.readouterr().out
    for command in (["lint"], ["fmt", "--check"], ["test"], ["coverage"]):
        assert run(["policy", *command, folder]) == 0, capsys.readouterr()
    assert run(["policy", "init", folder]) == 2
    assert "nothing was written" in capsys.readouterr().err


def test_lint_tells_where_from_where_it_runs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "policies" / "a.cedar").write_text(BAD)
    assert run(["policy", "lint", "p"]) == 1
    told = capsys.readouterr()
    assert told.out.splitlines() == [
        "p/policies/a.cedar:3:1: warning: @ownr is not known; did you mean @owner? [unknown-annotation]",
        "p/policies/a.cedar:5:70: error: attribute `hold` on entity type `Dataset` not found; did you mean `held`? [schema]",
    ]
    assert told.err == "2 finding(s) in 1 policies and invariants\n"


def test_what_a_file_holds_cannot_steer_the_terminal(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "policies" / "a.cedar").write_text(READ.replace("desk.read", "desk\x1b[2J\u202eread"))
    assert run(["policy", "lint", "p"]) == 1
    told = capsys.readouterr()
    assert "\x1b[2J" not in told.out
    assert "\u202e" not in told.out


def test_lint_in_json_has_what_was_switched_off_with_its_reason(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "policies" / "a.cedar").write_text("// licet-lint: off unknown-annotation: ours\n" + BAD)
    assert run(["policy", "lint", "p", "--format", "json"]) == 1
    body = json.loads(capsys.readouterr().out)
    assert body["counted"] == 1
    assert [(one["rule"], one["suppressed"]) for one in body["findings"]] == [
        ("unknown-annotation", "ours"),
        ("schema", None),
    ]
    assert body["findings"][1] | {"message": ""} == {
        "rule": "schema",
        "severity": "error",
        "message": "",
        "policy": "desk.read",
        "suppressed": None,
        "file": "policies/a.cedar",
        "line": 6,
        "column": 70,
        "end_line": 6,
        "end_column": 74,
    }


def parsed(text: str) -> ET.Element:
    return ET.fromstring(text.encode())  # noqa: S314  # It was written a moment ago, here.


def verify_sarif(text: str) -> list[dict[str, object]]:
    """What SARIF 2.1.0 demands of a log (3.13), a run (3.14), a driver (3.19), a result (3.27) and a region (3.30)."""
    log = json.loads(text)
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-schema-2.1.0.json")
    (found,) = log["runs"]
    driver = found["tool"]["driver"]
    assert driver["name"]
    assert found["columnKind"] == "unicodeCodePoints"
    ids = [rule["id"] for rule in driver["rules"]]
    assert len(set(ids)) == len(ids)
    for result in found["results"]:
        assert ids[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note")
        assert result["message"]["text"]
        (location,) = result["locations"]
        physical = location["physicalLocation"]
        assert not physical["artifactLocation"]["uri"].startswith("/")
        assert " " not in physical["artifactLocation"]["uri"]
        region = physical["region"]
        assert set(region) == {"startLine", "startColumn", "endLine", "endColumn"}
        assert all(isinstance(value, int) and value >= 1 for value in region.values())
        assert (region["startLine"], region["startColumn"]) <= (region["endLine"], region["endColumn"])
        for suppression in result.get("suppressions", ()):
            assert suppression["kind"] in ("inSource", "external")
            assert suppression["justification"]
    results: list[dict[str, object]] = found["results"]
    return results


def test_sarif_is_what_the_standard_demands_and_names_files_from_where_it_runs(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "policies" / "a.cedar").rename(project / "policies" / "a b.cedar")
    (project / "policies" / "a b.cedar").write_text(BAD)
    assert run(["policy", "lint", "p", "--format", "sarif"]) == 1
    found = verify_sarif(capsys.readouterr().out)
    assert [one["ruleId"] for one in found] == ["unknown-annotation", "schema"]
    assert '"p/policies/a%20b.cedar"' in json.dumps(found)


def test_a_clean_project_is_valid_sarif_and_junit_too(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("lint", "test"):
        assert run(["policy", verb, str(project), "--format", "sarif"]) == 0
        assert verify_sarif(capsys.readouterr().out) == []
        assert run(["policy", verb, str(project), "--format", "junit"]) == 0
        root = parsed(capsys.readouterr().out)
        assert (root.tag, root.get("failures"), root.get("errors")) == ("testsuites", "0", "0")
        assert int(root.get("tests") or 0) > 0


def test_junit_has_a_case_for_each_test_with_its_explanation(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = 'An <auditor> & "\\x1b" reads'
    failing = READS.replace("An auditor reads public data", f"'{name}'").replace("[desk.read]", "[]")
    (project / "tests" / "t.yaml").write_text(failing)
    assert run(["policy", "test", "p", "--format", "junit"]) == 1
    (suite,) = parsed(capsys.readouterr().out)
    (case,) = suite
    (failure,) = case
    assert (suite.get("name"), case.get("name"), failure.tag) == ("tests/t.yaml", name, "failure")
    assert "desk.read decided: this permit applies" in (failure.text or "")


def test_a_test_that_fails_is_explained_and_one_that_is_broken_is_called_so(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "tests" / "t.yaml").write_text(READS.replace("classification", "x").replace("[desk.read]", "[]"))
    assert run(["policy", "test", "p"]) == 1
    told = capsys.readouterr()
    assert "p/tests/t.yaml:3: failed: An auditor reads public data" in told.out
    assert "is true (resource.held = false)" in told.out
    assert told.err == "0 of 1 tests pass\n"
    (project / "tests" / "t.yaml").write_text(READS.replace("dataset.read", "dataset.eat"))
    assert run(["policy", "test", "p", "--format", "json"]) == 1
    (only,) = json.loads(capsys.readouterr().out)["tests"]
    assert (only["outcome"], only["line"]) == ("broken", 3)
    assert run(["policy", "test", "p", "--match", "nothing of that name"]) == 2


def test_coverage_below_the_threshold_is_exit_code_1_by_option_and_by_licet_toml(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["policy", "coverage", "p"]) == 0
    out = capsys.readouterr().out
    assert "p/policies/a.cedar:5:60: no test finds `!resource.held` false [desk.read]" in out
    assert run(["policy", "coverage", "p", "--threshold", "60"]) == 0
    assert run(["policy", "coverage", "p", "--threshold", "61"]) == 1
    (project / "licet.toml").write_text("version = 1\n[coverage]\nthreshold = 100\n")
    capsys.readouterr()
    assert run(["policy", "coverage", "p", "--format", "json"]) == 1
    body = json.loads(capsys.readouterr().out)
    assert (body["percent"], body["outcomes"]) == (60, {"covered": 2, "all": 4})
    assert run(["policy", "coverage", "p", "--format", "junit"]) == 1
    capsys.readouterr()
    assert run(["policy", "coverage", "p", "--format", "sarif"]) == 1
    assert len(verify_sarif(capsys.readouterr().out)) == 2


def test_coverage_fails_while_a_test_does(project: Path) -> None:
    (project / "tests" / "t.yaml").write_text(READS.replace("[desk.read]", "[]"))
    assert run(["policy", "coverage", "p"]) == 1


def test_fmt_writes_what_fmt_check_would_change_and_then_nothing(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = project / "policies" / "a.cedar"
    before = file.read_text()
    assert run(["policy", "fmt", "--check", "p"]) == 1
    assert capsys.readouterr().out == "would format p/policies/a.cedar\n"
    assert file.read_text() == before
    assert run(["policy", "fmt", "p"]) == 0
    assert capsys.readouterr().out == "formatted p/policies/a.cedar\n"
    assert file.read_text() != before
    assert run(["policy", "fmt", "--check", "p"]) == 0


def test_one_file_that_does_not_parse_keeps_fmt_from_writing_any(project: Path) -> None:
    (project / "policies" / "z.cedar").write_text("permit (")
    before = (project / "policies" / "a.cedar").read_text()
    assert run(["policy", "fmt", "p"]) == 2
    assert (project / "policies" / "a.cedar").read_text() == before


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("what", ["nowhere", "empty", "binary", "toml", "file"])
def test_what_is_no_project_is_exit_code_2_and_a_message(
    tmp_path: Path, verb: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / what
    if what == "file":
        folder.write_text("x")
    elif what != "nowhere":
        folder.mkdir()
    if what == "binary":
        write(folder, {"policies/a.cedar": os.urandom(2048) + b"\0\xff"})
    if what == "toml":
        (folder / "licet.toml").write_text("version = [")
    assert run(["policy", verb, str(folder)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "error" in told.err
    assert "defect" not in told.err


@pytest.mark.parametrize("verb", ["lint", "test", "coverage", "prove"])
def test_a_ci_has_its_file_where_the_project_cannot_be_read(
    project: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "licet.toml").write_text("version = 1\nverzion = 2\n")
    assert run(["policy", verb, "p", "--format", "sarif"]) == 2
    told = capsys.readouterr()
    (found,) = verify_sarif(told.out)
    assert (found["ruleId"], found["level"]) == ("unread", "error")
    assert '"uri": "p/licet.toml"' in json.dumps(found)
    assert '"startLine": 2' in json.dumps(found)
    # The place stands once.
    assert "licet.toml" not in str(found["message"])
    assert "licet.toml:2: " in told.err
    assert run(["policy", verb, "p", "--format", "junit"]) == 2
    root = parsed(capsys.readouterr().out)
    assert (root.get("tests"), root.get("errors")) == ("1", "1")
    assert run(["policy", verb, "nowhere", "--format", "junit"]) == 2
    assert parsed(capsys.readouterr().out).get("errors") == "1"


@pytest.mark.parametrize("verb", ["init", "lint", "fmt", "bundle"])
def test_a_folder_without_a_name_is_not_the_one_where_it_runs(
    project: Path, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project.parent / "empty").mkdir()
    monkeypatch.chdir(project.parent / "empty" if verb == "init" else project)
    assert run(["policy", verb, ""]) == 2
    assert "the name is empty" in capsys.readouterr().err
    assert list((project.parent / "empty").iterdir()) == []


def test_tests_may_end_in_either_way_and_none_is_passed_over(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "tests" / "t.yaml").rename(project / "tests" / "t.yml")
    assert run(["policy", "test", "p"]) == 0
    assert capsys.readouterr().err == "1 of 1 tests pass\n"
    names = [name for name, _ in ProjectDocument.from_folder(project).files]
    assert "tests/t.yml" in names


def test_an_error_is_json_where_json_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["policy", "lint", str(tmp_path), "--format", "json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "invalid-project"


@pytest.mark.parametrize("verb", ["test", "coverage"])
def test_a_bundle_that_cannot_be_composed_is_an_error_and_no_pass(
    project: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "policies" / "a.cedar").write_text(BAD)
    assert run(["policy", verb, "p"]) == 2
    assert "`licet policy lint` says where" in capsys.readouterr().err


def test_the_schemas_are_printed_and_the_cedar_one_is_cedar(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("toml", "tests"):
        assert run(["policy", "schema", kind]) == 0
        assert json.loads(capsys.readouterr().out)["$schema"]
    (project / "schema").mkdir()
    (project / "schema" / "a.cedarschema").write_text("namespace Acme { entity V = { tenant: Tenant }; }")
    (project / "licet.toml").write_text('version = 1\n[schema]\nextensions = ["schema/a.cedarschema"]\n')
    for arguments, has_own in (([], False), (["p"], True)):
        assert run(["policy", "schema", "cedar", *arguments]) == 0
        text = capsys.readouterr().out
        assert ("namespace Acme" in text) == has_own
        cedarpy.Schema.from_str(text)


def test_the_rules_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["policy", "lint", "--rules"]) == 0
    assert "missing-owner" in capsys.readouterr().out


def test_the_workbench_runs_without_a_server_installed(project: Path) -> None:
    """What only the server needs is made to be missing; the commands of the workbench do not notice."""
    missing = ("sqlalchemy", "sqlmodel", "litestar", "granian", "httpx", "torch", "numpy", "dbos", "rich")
    program = (
        "import sys\n"
        f"for name in {missing!r}: sys.modules[name] = None\n"
        "from licet_engine.cli import run\n"
        "sys.exit(max(run(['policy', verb, sys.argv[1]]) for verb in ('lint', 'test', 'coverage')))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(project)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
