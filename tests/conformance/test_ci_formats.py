"""What the workbench writes for a CI, and the schemas that it prints, held against what others published.

Sources: ``formats/README.md``; JSON Schema 2020-12, whose metaschema comes with ``jsonschema``.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import xmlschema

from licet_engine.cli import run
from licet_engine.workbench.scaffold import write_project
from licet_engine.workbench.schemas import schema_of_tests, schema_of_toml
from licet_engine.workbench.yamltext import read_yaml

FORMATS = Path(__file__).parent / "formats"
SARIF = json.loads((FORMATS / "sarif-2.1.0-rtm.5.json").read_text("utf-8"))
JUNIT = xmlschema.XMLSchema10(FORMATS / "junit-10.xsd")
# What each command has to tell: nothing, and every kind of thing that it finds.
COMMANDS = (("lint",), ("lint", "--prove"), ("test",), ("coverage",), ("prove",))
SPOILT = {
    "policies/reading.cedar": [('@owner("compliance")', '@ownr("x \\u{1b} <&>")')],
    "policies/downloads.cedar": [
        ("// Who takes", "// licet-lint: off missing-owner: the <team> & its file say it\n// Who takes"),
        ('@owner("security")\n', ""),
    ],
    "tests/release.yaml": [
        ("because: [desk.release.freeze]", "because: [desk.training.precision]"),
        ("name: goes to prod before the freeze", "name: 'goes <to> \"prod\" & before \\u2028'"),
    ],
    "tests/downloads.yaml": [("action: dataset.read", "action: dataset.eat")],
    "invariants/desk.cedar": [("principal.tenant != resource.tenant", "principal.tenant == resource.tenant")],
}


@pytest.fixture(params=["clean", "spoilt"])
def project(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """The example project, as it is and with a mistake of each kind."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "our policies"
    write_project(folder)
    for name, changes in SPOILT.items() if request.param == "spoilt" else ():
        text = (folder / name).read_text("utf-8")
        for before, after in changes:
            assert before in text, name
            text = text.replace(before, after, 1)
        (folder / name).write_text(text, "utf-8")
    return request.param, folder


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_sarif_is_valid_under_the_schema_of_the_standard(
    project: tuple[str, Path], command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    state, folder = project
    assert run(["policy", *command, str(folder), "--format", "sarif"]) == (1 if state == "spoilt" else 0)
    log = json.loads(capsys.readouterr().out)
    jsonschema.Draft4Validator(SARIF, format_checker=jsonschema.Draft4Validator.FORMAT_CHECKER).validate(log)
    assert bool(log["runs"][0]["results"]) == (state == "spoilt")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_junit_is_valid_under_the_schema_of_jenkins(
    project: tuple[str, Path], command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    state, folder = project
    assert run(["policy", *command, str(folder), "--format", "junit"]) == (1 if state == "spoilt" else 0)
    text = capsys.readouterr().out
    JUNIT.validate(text)
    assert ("<failure" in text or "<error" in text) == (state == "spoilt")


def test_the_published_schemas_refuse_what_is_none() -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft4Validator(SARIF).validate({"version": "2.1.0", "runs": [{"tool": {}}]})
    with pytest.raises(xmlschema.XMLSchemaValidationError):
        JUNIT.validate('<testsuites><testsuite><testcase name="n"/></testsuite></testsuites>')


def schema(text: str) -> jsonschema.Draft202012Validator:
    """A schema of ours, which is valid under the dialect that it names."""
    found = json.loads(text)
    assert found["$schema"] == jsonschema.Draft202012Validator.META_SCHEMA["$id"]
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_the_schemas_that_are_printed_are_schemas_and_take_every_file_of_the_example(tmp_path: Path) -> None:
    written = write_project(tmp_path / "p")
    of_toml, of_tests = schema(schema_of_toml()), schema(schema_of_tests())
    of_toml.validate(tomllib.loads((tmp_path / "p" / "licet.toml").read_text("utf-8")))
    tests = [name for name in written if name.startswith("tests/")]
    assert len(tests) == 3
    for name in tests:
        of_tests.validate(read_yaml(name, (tmp_path / "p" / name).read_text("utf-8")).plain())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (schema_of_toml, {"version": 2}),
        (schema_of_toml, {"version": 1, "pakcs": {}}),
        (schema_of_toml, {"version": 1, "coverage": {"threshold": 101}}),
        (schema_of_tests, {"test": []}),
        (schema_of_tests, {"tests": [{"name": "n", "expect": "maybe"}]}),
        (schema_of_tests, {"tests": [{"expect": "deny"}]}),
    ],
)
def test_the_schemas_that_are_printed_refuse_what_the_workbench_refuses(text: Any, value: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        schema(text()).validate(value)
