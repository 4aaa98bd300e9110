"""The page of lint rules is complete and true: each rule finds its bad example, alone, and nothing is found in its good one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from licet_engine.workbench.lint import lint
from licet_engine.workbench.project import load_project
from licet_engine.workbench.rules import Rule, registry

PAGE = (Path(__file__).parents[2] / "docs" / "policy-lint.md").read_text("utf-8")
SECTIONS: Mapping[str, str] = dict(re.findall(r"^### ([a-z-]+)\n(.*?)(?=^### |\Z)", PAGE, re.MULTILINE | re.DOTALL))
EXAMPLE = re.compile(r"^(Bad|Good):\n\n```(cedar|toml|cedar invariant)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE_OF = {"cedar": "policies/example.cedar", "cedar invariant": "invariants/example.cedar", "toml": "licet.toml"}


def found_in(folder: Path, kind: str, text: str, *, prove: bool) -> list[str]:
    for name, body in {"licet.toml": "version = 1\n", FILE_OF[kind]: text}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(body, "utf-8")
    return [finding.rule for finding in lint(load_project(folder), prove=prove) if finding.suppressed is None]


def test_every_rule_has_a_section_in_their_order_and_no_other_has() -> None:
    assert list(SECTIONS) == list(registry())


@pytest.mark.parametrize("rule", registry().values(), ids=lambda rule: rule.id)
def test_a_section_says_what_the_rule_says_of_itself(rule: Rule) -> None:
    section = " ".join(SECTIONS[rule.id].split())
    assert section.startswith(f"**{rule.title}.** {rule.severity.capitalize()}")
    assert ("cannot be switched off." in section) == rule.fixed


@pytest.mark.parametrize("rule", registry())
def test_the_bad_example_is_found_by_its_rule_alone_and_nothing_in_the_good_one(rule: str, tmp_path: Path) -> None:
    examples = {label: (kind, text) for label, kind, text in EXAMPLE.findall(SECTIONS[rule])}
    assert set(examples) == {"Bad", "Good"}
    prove = registry()[rule].is_proof
    assert set(found_in(tmp_path / "bad", *examples["Bad"], prove=prove)) == {rule}
    assert found_in(tmp_path / "good", *examples["Good"], prove=prove) == []
