"""The schemas that an editor takes: JSON schemas of ``licet.toml`` and of the tests, and the Cedar schema.

Rules kept: each is generated from what the workbench itself reads the file with, so that an editor and the workbench agree.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from licet_engine.workbench.cases import TestFile
from licet_engine.workbench.project import Config
from licet_policies.schema import extension_text, schema_text

if TYPE_CHECKING:
    from pydantic import BaseModel

    from licet_engine.workbench.project import Project

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema_of_toml() -> str:
    """The JSON schema of ``licet.toml``."""
    return _json_schema(Config, "licet.toml: a policy project of Licet")


def schema_of_tests() -> str:
    """The JSON schema of a file of tests."""
    return _json_schema(TestFile, "tests/*.yaml: tests of a policy project of Licet")


def schema_of_cedar(project: Project | None) -> str:
    """The Cedar schema in Cedar's own syntax, with what a project adds to it."""
    if project is None or project.extension is None:
        return schema_text()
    return schema_text() + "\n" + extension_text(project.extension.namespaces)


def _json_schema(model: type[BaseModel], title: str) -> str:
    schema: dict[str, Any] = model.model_json_schema(by_alias=True)
    return json.dumps({"$schema": DIALECT, **schema, "title": title}, indent=2) + "\n"
