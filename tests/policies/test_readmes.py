"""The documents for security engineers are complete: every guardrail, role, pack rule and parameter, as shipped."""

import re
from pathlib import Path

import cedarpy
import pytest

from licet_policies import compose, guardrails, load_schema, pack, pack_names, roles

POLICIES = Path(__file__).parents[2] / "policies"
README = (POLICIES / "README.md").read_text("utf-8")


def test_every_guardrail_stands_in_the_readme_with_its_title() -> None:
    rows = re.findall(r"^\| `(guardrail\.[^`]+)` \| (.+) \|$", README, re.MULTILINE)
    assert rows == [(policy.id, policy.annotations["title"]) for policy in guardrails()]


def test_every_role_stands_in_the_readme_with_its_actions() -> None:
    expected: dict[str, set[str]] = {}
    for policy in roles():
        expected.setdefault(policy.id.split(".")[1], set()).update(re.findall(r'Action::"([^"]+)"', policy.text))
    section = README.split("## Roles")[1].split("## Packs")[0]
    found = {
        name.strip("`"): set(re.findall(r"`([a-z]+\.[a-z-]+)`", actions))
        for name, actions in re.findall(r"^\| ([^|]+) \| (`.+) \|$", section, re.MULTILINE)
    }
    found["member"] = found.pop("(everybody in their tenant)")
    assert found == expected


def test_the_example_in_the_readme_composes() -> None:
    (example,) = re.findall(r"```cedar\n(.*?)```", README, re.DOTALL)
    assert compose(own=example)["policies"][-1]["id"] == "risk.no-weekend-promotions"
    assert cedarpy.validate_policies(example, load_schema()).validation_passed


@pytest.mark.parametrize("name", pack_names())
def test_every_parameter_and_rule_stands_in_the_readme_of_its_pack(name: str) -> None:
    shipped = pack(name)
    text = (POLICIES / "licet_policies" / "packs" / name / "README.md").read_text("utf-8")
    rows = {
        row[0]: row[-1] for row in re.findall(r"^\| `([a-z0-9_]+)` \| (.+) \| (.+) \| (.+) \|$", text, re.MULTILINE)
    }
    defaults = {key: body.get("default", "(must be given)") for key, body in shipped.parameters.items()}
    assert rows == {key: ", ".join(value) if isinstance(value, list) else str(value) for key, value in defaults.items()}
    rules = shipped.policies(shipped.resolve({"regions": ["us"]} if name == "residency" else {}))
    assert all(f"| `{policy.id}` | {policy.annotations['title']} |" in text for policy in rules)
