"""The set-up of an editor works: its commands, as they stand on the page, in a project; and what it has one write leads to what they wrote."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cedarpy
import jsonschema
import pytest

from licet_engine.workbench.cases import load_cases
from licet_engine.workbench.project import load_project
from licet_engine.workbench.scaffold import write_project

PAGE = (Path(__file__).parents[2] / "docs" / "policy-editor.md").read_text("utf-8")


def block(kind: str) -> str:
    """The one block of its kind."""
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The example project, with the schemas that the page's commands write."""
    write_project(tmp_path)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["/bin/bash", "-euc", block("sh")], cwd=tmp_path, env={**os.environ, "PATH": path}, check=True)
    return tmp_path


def test_the_first_lines_lead_to_the_schemas_and_change_nothing_of_the_project(project: Path) -> None:
    before = load_project(project)
    for name, line, pattern in (
        ("licet.toml", block("toml"), r"#:schema (\S+)\n"),
        ("tests/release.yaml", block("yaml"), r"# yaml-language-server: \$schema=(\S+)\n"),
    ):
        file = project / name
        match = re.fullmatch(pattern, line)
        assert match is not None
        schema = json.loads((file.parent / match[1]).read_text("utf-8"))
        jsonschema.Draft202012Validator.check_schema(schema)
        assert Path(name).suffix.removeprefix(".") in schema["title"]
        file.write_text(line + file.read_text("utf-8"), "utf-8")
    after = load_project(project)
    assert after.bundle() == before.bundle()
    assert len(load_cases(after)) == len(load_cases(before))


def test_the_settings_name_the_cedar_schema_which_is_one(project: Path) -> None:
    settings = json.loads(block("json"))
    cedarpy.Schema.from_str((project / settings["cedar.schemaFile"]).read_text("utf-8"))
    assert settings["cedar.autodetectSchemaFile"] is False
