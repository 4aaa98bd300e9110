"""Clauses and the policies that enforce them: each explained once, none of them made up."""

import json
from importlib import resources

import pytest

from licet_policies import PackError, controls, guardrails, pack, pack_names
from licet_policies.controls import _control
from licet_policies.packs import ControlText
from licet_policies.source import parse_policies

SHIPPED = [
    *guardrails(),
    *(policy for name in pack_names() for policy in parse_policies(pack(name).text, f"pack:{name}")),
]


def test_every_clause_that_a_policy_names_is_explained_and_names_it() -> None:
    found = {f"{control.framework}:{control.clause}": control for control in controls()}
    assert len(found) == len(controls())
    for policy in SHIPPED:
        if "control" in policy.annotations:
            assert policy.id in found[policy.annotations["control"]].policies
    for reference, control in found.items():
        naming = {policy.id for policy in SHIPPED if policy.annotations.get("control") == reference}
        assert set(control.policies) == naming
        assert control.title
        assert control.evidence


def test_every_policy_of_a_framework_s_pack_names_a_clause() -> None:
    # Two of these rules of sr-11-7 are a tenant's to switch on, and no clause asks for them. HIPAA speaks of no model.
    without = {policy.id for policy in SHIPPED if policy.source != "guardrail" and "control" not in policy.annotations}
    assert without == {
        "hipaa.evaluation.drift",
        "hipaa.evaluation.technical",
        "sr-11-7.approval.legal",
        "sr-11-7.approval.security",
    }


def test_what_serves_a_clause_beside_is_the_platform_s_and_does_not_name_it() -> None:
    platform = {policy.id for policy in guardrails()}
    for control in controls():
        assert set(control.also) <= platform
        assert not set(control.also) & set(control.policies)


@pytest.mark.parametrize(("asked", "frameworks"), [("hipaa", {"HIPAA"}), ("HIPAA", {"HIPAA"}), ("ear", {"EAR"})])
def test_a_framework_is_found_by_its_name_in_any_case(asked: str, frameworks: set[str]) -> None:
    assert {control.framework for control in controls(asked)} == frameworks


def test_a_pack_is_found_by_its_name_with_every_framework_that_it_speaks_of() -> None:
    assert {control.framework for control in controls("sr-11-7")} == {"SR-11-7", "ECOA-Regulation-B"}
    assert {control.framework for control in controls("change-management")} == {"NIST-SP-800-53"}


def test_an_unknown_framework_is_refused_with_those_there_are() -> None:
    with pytest.raises(PackError, match="no framework or pack is called 'sox'; there are EAR, ECOA"):
        controls("sox")


def test_a_clause_that_names_a_policy_which_does_not_exist_is_refused() -> None:
    with pytest.raises(PackError, match=r"x: clause A:1 names policies that do not exist: guardrail\.nothing"):
        _control("x", "A:1", ControlText("t", "e", ("guardrail.nothing",)), [], set())


def test_the_clauses_of_the_guardrails_are_package_data() -> None:
    text = resources.files("licet_policies").joinpath("guardrails", "controls.json").read_text("utf-8")
    assert set(json.loads(text)["controls"]) == {"GDPR:5(1)(b)"}
