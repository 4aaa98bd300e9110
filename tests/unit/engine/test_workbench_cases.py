"""Tests of a policy project mean what the bundle will mean in force, and say why where they come out otherwise."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest

from licet_engine.workbench.cases import DEFAULT_TIME, load_cases
from licet_engine.workbench.coverage import Coverage, coverage
from licet_engine.workbench.errors import ProjectError
from licet_engine.workbench.project import load_project
from licet_engine.workbench.scaffold import write_project
from licet_engine.workbench.schemas import schema_of_tests, schema_of_toml
from licet_engine.workbench.testing import Result, Runner
from licet_engine.workbench.yamltext import read_yaml

# Test files are imported each by itself; the project they share stands beside them.
sys.path.append(str(Path(__file__).parent))
from workbench_world import POLICY, READ, READS, WORLD, write  # The line above finds it.

CASE = READS.split("tests:\n")[1]


def results(folder: Path, tests: str, policies: str = READ, world: str = WORLD) -> list[Result]:
    files = {"policies/a.cedar": policies, "tests/world.yaml": world, "tests/t.yaml": tests}
    project = load_project(write(folder, files))
    runner = Runner(project)
    return [runner.run(case) for case in load_cases(project)]


def one(folder: Path, *changes: tuple[str, str]) -> Result:
    """The one test of the world, otherwise written."""
    text = READS
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (result,) = results(folder, text)
    return result


def test_a_test_passes_with_its_decision_and_exactly_its_policies(tmp_path: Path) -> None:
    assert one(tmp_path).outcome == "passed"


def test_an_allow_by_other_policies_than_named_does_not_pass(tmp_path: Path) -> None:
    failed = one(tmp_path, ("[desk.read]", "[]"))
    assert failed.outcome == "failed"
    assert failed.message == "expected because of no policy, was because of desk.read"


def test_a_deny_for_another_reason_than_named_does_not_pass(tmp_path: Path) -> None:
    failed = one(
        tmp_path, ("expect: allow", "expect: deny"), ("[desk.read]", "[]"), ("1970-01-01", "2020-01-01T00:00:00Z")
    )
    assert failed.outcome == "failed"
    assert "guardrail.restrictions.expiry" in failed.message


def test_a_failure_shows_the_very_part_with_its_values(tmp_path: Path) -> None:
    failed = one(tmp_path, ("{restrictions.expires_at_ms: 9}", "{restrictions.classification: internal}"))
    assert failed.outcome == "failed"
    told = "\n".join(failed.why)
    assert "desk.read was expected: this permit does not apply (Auditors read public data)" in told
    assert (
        '`resource.restrictions.classification == "public"` is false'
        ' (resource.restrictions.classification = "internal")' in told
    )


def test_the_clock_is_pinned_by_row_test_and_file_and_is_never_the_machines(tmp_path: Path) -> None:
    row = "    rows: [{time: 5}, {time: 1970-01-01T01:00:00+01:00}, {}]\n"
    text = READS.replace("tests:", "time: 7\ntests:").replace("    time: 1970-01-01\n", "") + row
    assert [result.case.time_ms for result in results(tmp_path, text)] == [5, 0, 7]
    (case,) = load_cases(load_project(write(tmp_path, {"tests/t.yaml": READS.replace("    time: 1970-01-01\n", "")})))
    assert (DEFAULT_TIME, case.time_ms) == ("2026-01-01T00:00:00Z", 1_767_225_600_000)


def test_the_rows_of_a_table_are_tests_of_their_own_and_change_what_they_name(tmp_path: Path) -> None:
    rows = """    rows:
      - name: of the desk
      - principal: Person::north/ana
        because: [role.data-scientist.data]
      - set: {Dataset::north/d: {held: true}}
        expect: deny
        because: []
"""
    found = results(tmp_path, READS + rows)
    assert [(result.case.name.split(": ")[1], result.outcome) for result in found] == [
        ("of the desk", "passed"),
        ("row 2", "passed"),
        ("row 3", "passed"),
    ]
    assert [result.case.line for result in found] == [12, 13, 15]


BROKEN = {
    "an unknown action": (
        ("dataset.read", "dataset.reed"),
        "there is no action 'dataset.reed'; did you mean dataset.read",
    ),
    "an unknown type": (("resource: Dataset::", "resource: Datset::"), "did you mean Dataset?"),
    "nobody that is described": (("Person::north/ines", "Person::north/nobody"), "no fixture describes Person"),
    "a change to nothing": (
        ("set: {Dataset::north/d", "set: {Dataset::north/e"),
        "no fixture describes Dataset::north/e",
    ),
    "a change to no attribute": (
        ("restrictions.expires_at_ms: 9", "restrictions.expire: 9"),
        "did you mean expires_at_ms",
    ),
    "a change below nothing": (("restrictions.expires_at_ms: 9", "nothing.x: 9"), "has no record nothing"),
    "a value of another type": (
        ("expires_at_ms: 9", "expires_at_ms: x"),
        "the schema wants an integer here, found 'x'",
    ),
    "what is not there taken away": (
        ("restrictions.expires_at_ms: 9", "colour: ~"),
        "no colour that could be taken away",
    ),
    "a required attribute taken away": (("restrictions.expires_at_ms: 9", "held: ~"), "the schema wants held as well"),
    "an unknown policy": (
        ("[desk.read]", "[desk.reed]"),
        "the bundle has no policy 'desk.reed'; did you mean desk.read",
    ),
    "an unknown context": (("time: 1970-01-01", "context: {colour: red}"), "context: the schema has no 'colour' here"),
    "an action that does not apply": (("dataset.read", "model.read"), "model.read"),
    "an integer beyond what is recorded": (("expires_at_ms: 9", f"expires_at_ms: {2**60}"), "canonical JSON"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_test_that_cannot_be_decided_is_broken_and_does_not_pass(tmp_path: Path, kind: str) -> None:
    change, told = BROKEN[kind]
    result = one(tmp_path, change)
    assert (result.outcome, told in result.message) == ("broken", True), result.message


def test_a_policy_that_errs_fails_a_test_that_expects_a_deny(tmp_path: Path) -> None:
    erring = READ.replace("!resource.held", "resource.derived * 9007199254740991 * 9007199254740991 >= 0")
    text = READS.replace("expect: allow", "expect: deny").replace("[desk.read]", "[]")
    text = text.replace("{restrictions.expires_at_ms: 9}", "{derived: 9}")
    (result,) = results(tmp_path, text, erring)
    assert result.outcome == "failed"
    assert "desk.read errs: integer overflow" in result.message


def test_what_an_observed_pack_would_have_done_is_asserted_where_it_is_looked_at(tmp_path: Path) -> None:
    toml = 'version = 1\n[packs.residency]\nmode = "observe"\nparameters = {regions = ["us"]}\n'
    text = (
        READS.replace("dataset.read", "dataset.register")
        .replace("ines", "ana")
        .replace("desk.read", "role.data-scientist.data")
    )
    write(tmp_path, {"licet.toml": toml, "policies/a.cedar": READ, "tests/world.yaml": WORLD})
    for expected, outcome in (
        ("", "passed"),
        ("    observed: [residency.datasets]\n", "passed"),
        ("    observed: []\n", "failed"),
    ):
        (tmp_path / "tests" / "t.yaml").write_text(text + expected)
        project = load_project(tmp_path)
        (case,) = load_cases(project)
        assert Runner(project).run(case).outcome == outcome


FILES = {
    "no tests": ("fixtures: []\n", "holds no test"),
    "an unknown key": (READS + "    becaus: []\n", "tests/t.yaml:11: tests.0.becaus: no such key"),
    "no expectation": (
        READS.replace("    expect: allow\n", ""),
        "tests/t.yaml:3: An auditor reads public data: expect",
    ),
    "no policies": (READS.replace("    because: [desk.read]\n", ""), "because must be given, with []"),
    "another decision": (READS.replace("allow", "maybe"), "tests/t.yaml:9: tests.0.expect: must be 'allow' or 'deny'"),
    "the clock in the context": (READS + "    context: {now_ms: 3}\n", "pin it by `time`"),
    "no time": (READS.replace("1970-01-01", "noon"), "'noon' is no time"),
    "a time without an offset": (READS.replace("1970-01-01", "1970-01-01T10:00:00"), "names no offset"),
    "missing fixtures": (READS.replace("world.yaml", "nowhere.yaml"), "there is no tests/nowhere.yaml"),
    "fixtures of itself": (READS.replace("world.yaml", "t.yaml"), "names fixtures itself"),
    "fixtures outside": (READS.replace("world.yaml", "../../x.yaml"), "there is no tests/../../x.yaml"),
    "an entity twice": (
        READS + "entities: {Tenant::north: {}}\n",
        "Tenant::north is described in tests/t.yaml and in another",
    ),
    "two tests of one name": (READS + CASE, "two tests are called"),
    "a list": ("- 1\n", "tests/t.yaml:1: the file: must be"),
    "text": ("hello\n", "tests/t.yaml:1"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_mistake_in_a_file_of_tests_is_told_with_its_line(tmp_path: Path, kind: str) -> None:
    text, told = FILES[kind]
    with pytest.raises(ProjectError) as refused:
        results(tmp_path, text)
    assert told in str(refused.value)


def measured(folder: Path, tests: str, policies: str = READ) -> Coverage:
    found = results(folder, tests, policies)
    project = load_project(folder)
    return coverage(project, Runner(project).compiled, found)


def test_what_no_test_reaches_is_told_with_its_place(tmp_path: Path) -> None:
    seen = measured(tmp_path, READS, READ + POLICY)
    assert (seen.policies, seen.parts, seen.outcomes, seen.percent) == ((1, 2), (2, 6), (2, 12), 21)
    told = {(gap.policy, gap.wanted, gap.span.line, gap.span.column, gap.source) for gap in seen.gaps}
    assert ("desk.read", "false", 5, 60, "!resource.held") in told
    assert ("desk.freeze", "applies", 6, 1, "") in told
    assert ("desk.freeze", "true", 13, 50, "resource.signed") in told
    assert len(seen.gaps) == 11


def test_a_part_behind_the_one_that_stopped_was_not_asked(tmp_path: Path) -> None:
    text = READS.replace("{restrictions.expires_at_ms: 9}", "{restrictions.classification: internal, held: true}")
    text = text.replace("expect: allow", "expect: deny").replace("[desk.read]", "[]")
    seen = measured(tmp_path, text)
    assert (seen.policies, seen.parts, seen.outcomes) == ((0, 1), (1, 2), (1, 4))


def test_a_broken_test_covers_nothing(tmp_path: Path) -> None:
    assert measured(tmp_path, READS.replace("resource: Dataset::north/d", "resource: Dataset::north/x")).percent == 0


def test_a_project_without_policies_of_its_own_is_not_covered_but_an_error(tmp_path: Path) -> None:
    text = READS.replace("ines", "ana").replace("desk.read", "role.data-scientist.data")
    with pytest.raises(ProjectError, match="nothing to cover"):
        measured(tmp_path, text, "// none\n")


def test_the_project_that_init_writes_passes_its_tests_and_covers_all(tmp_path: Path) -> None:
    write_project(tmp_path / "p")
    project = load_project(tmp_path / "p")
    runner = Runner(project)
    found = [runner.run(case) for case in load_cases(project)]
    assert {result.outcome for result in found} == {"passed"}
    assert coverage(project, runner.compiled, found).percent == 100


@pytest.mark.parametrize(
    "rule", ["desk.downloads.high-tier", "desk.reading.auditors", "desk.release.freeze", "desk.training.precision"]
)
def test_the_tests_that_init_writes_notice_when_a_policy_is_gone(tmp_path: Path, rule: str) -> None:
    write_project(tmp_path)
    for file in (tmp_path / "policies").iterdir():
        text = file.read_text()
        for piece in text.split("@id("):
            if piece.startswith(f'"{rule}"'):
                changed = piece.replace("when", "when { context.now_ms < 0 }\nwhen", 1)
                file.write_text(text.replace(piece, changed))
    project = load_project(tmp_path)
    runner = Runner(project)
    assert "failed" in {runner.run(case).outcome for case in load_cases(project)}


def test_the_schemas_for_editors_take_what_init_writes_and_refuse_what_is_misspelt(tmp_path: Path) -> None:
    write_project(tmp_path)
    tests, toml = json.loads(schema_of_tests()), json.loads(schema_of_toml())
    for schema in (tests, toml):
        jsonschema.Draft202012Validator.check_schema(schema)
    for file in (tmp_path / "tests").iterdir():
        jsonschema.validate(read_yaml(file.name, file.read_text()).plain(), tests)
    config = tomllib.loads((tmp_path / "licet.toml").read_text())
    jsonschema.validate(config, toml)
    for wrong, schema in (({**config, "pack": {}}, toml), ({"tests": [{"nam": "x"}]}, tests)):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
