"""The documents for security engineers are complete: every guardrail, role, pack rule and parameter, as shipped."""

import re
from pathlib import Path

import cedarpy
import pytest
from pack_choices import PARAMETERS

from licet_policies import compose, controls, guardrails, load_schema, pack, pack_names, platform_invariants, roles

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
    rules = shipped.policies(shipped.resolve(PARAMETERS.get(name, {})))
    assert all(f"| `{policy.id}` | {policy.annotations['title']} |" in text for policy in rules)
    # Sorted by id, so that a reader finds one.
    assert re.findall(rf"^\| `({name}\.[^`]+)` \|", text, re.MULTILINE) == sorted(policy.id for policy in rules)


@pytest.mark.parametrize("name", pack_names())
def test_the_readme_of_a_pack_tells_each_clause_with_its_policies_and_what_shows_it(name: str) -> None:
    text = (POLICIES / "licet_policies" / "packs" / name / "README.md").read_text("utf-8")
    section = text.split("## Clauses")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([A-Z][^|]+:[^|]+) \| ([^|]+) \| ([^|]*) \| ([^|]+) \|$", section, re.MULTILINE)
    assert rows == [
        (
            f"{control.framework}:{control.clause}",
            control.title,
            ", ".join(f"`{policy}`" for policy in (*control.policies, *control.also)) or "(the platform itself)",
            control.evidence,
        )
        for control in controls()
        if control.pack == name
    ]
    assert rows


@pytest.mark.parametrize("name", pack_names())
def test_the_readme_of_a_pack_says_what_it_does_not_cover_and_tells_its_invariants(name: str) -> None:
    text = (POLICIES / "licet_policies" / "packs" / name / "README.md").read_text("utf-8")
    assert len(text.split("## What it does not cover")[1].split("\n## ")[0].split()) > 30
    invariants = pack(name).invariants(pack(name).resolve(PARAMETERS.get(name, {})))
    told = re.findall(r"^- (.+): `([^`]+)`$", text.split("## Invariants")[1], re.MULTILINE)
    assert told == [(policy.annotations["never"], policy.id) for policy in invariants]


def test_every_pack_stands_in_the_readme_with_its_framework() -> None:
    section = README.split("## Packs")[1]
    rows = re.findall(
        r"^\| \[`([^`]+)`\]\(licet_policies/packs/\1/README\.md\) \| (.+) \| (.+) \|$", section, re.MULTILINE
    )
    assert rows == [(name, pack(name).title, pack(name).framework) for name in pack_names()]


def test_every_invariant_stands_in_the_readmes_with_its_sentence() -> None:
    rows = re.findall(r"^\| `(invariant\.[^`]+)` \| (never|always) \| (.+) \|$", README, re.MULTILINE)
    found = [(policy.id, kind, policy.annotations[kind]) for policy in platform_invariants() for kind in ("never", "always") if kind in policy.annotations]  # fmt: skip
    assert rows == found
