"""What every shipped policy must be: annotated, valid, and never fed by what a caller merely asserts."""

import re
from collections import Counter

import cedarpy
import pytest
from pack_choices import PARAMETERS

from licet_adapters.training.spec import Thresholds
from licet_policies import guardrails, load_schema, pack, pack_names, roles, safety_valve_actions
from licet_policies.source import Policy

PACKED = {name: pack(name).policies(pack(name).resolve(PARAMETERS.get(name, {}))) for name in pack_names()}
SHIPPED = [*guardrails(), *roles(), *(policy for policies in PACKED.values() for policy in policies)]
TRACKS = {"engineering", "model-risk", "compliance", "security", "legal"}
OBTAINABLE = {
    *(f"approval:{track}" for track in (*TRACKS, "tenant-administrator")),
    *(f"check:{name}" for name in load_schema()[""]["commonTypes"]["Checks"]["attributes"]),
    "budget:training",
    "code:approved",
    "environment:approved",
    "hold:lifted",
    "quota:devices",
    "region:allowed",
    "signature:model",
    "ticket:approved",
}
# How each framework writes its clauses.
CONTROL = re.compile(
    r"SR-11-7:(IV|V|VI)"
    r"|GDPR:\d{1,2}(\(\d\)(\([a-z]\))?)?"
    r"|ECOA-Regulation-B:1002\.4\(a\)"
    r"|HIPAA:164\.\d{3}(\([a-z]\)(\(\d\)(\([ivx]+\)(\([A-Z]\))?)?)?)?"
    r"|EU-AI-Act:\d{1,2}(\(\d\)(\([a-z]\))?)?"
    r"|NIST-SP-800-53:[A-Z]{2}-\d{1,2}(\(\d{1,2}\))?"
    r"|EAR:7[3-7]\d\.\d{1,2}(\([a-z]\)(\(\d\))?)?"
)
EACH = pytest.mark.parametrize("policy", SHIPPED, ids=lambda policy: policy.id)


def test_everything_is_valid_against_the_strict_schema() -> None:
    result = cedarpy.validate_policies("\n".join(policy.text for policy in SHIPPED), load_schema())
    assert result.validation_passed, [str(error) for error in result.errors]


@EACH
def test_each_is_valid_alone(policy: Policy) -> None:
    assert cedarpy.validate_policies(policy.text, load_schema()).validation_passed


def test_ids_are_unique_and_begin_with_where_they_come_from() -> None:
    assert [name for name, count in Counter(policy.id for policy in SHIPPED).items() if count > 1] == []
    for policy in SHIPPED:
        assert policy.id.startswith(policy.source.removeprefix("pack:") + ".")


@EACH
def test_each_bears_what_a_reader_needs(policy: Policy) -> None:
    known = {"id", "title", "advice", "requires", "control", "severity", "owner"}
    assert {"id", "title", "owner"} <= set(policy.annotations) <= known
    assert all(value.strip() for value in policy.annotations.values())
    if policy.effect == "forbid":
        assert {"advice", "severity"} <= set(policy.annotations)
        assert policy.annotations["severity"] in {"critical", "high", "medium", "low"}
    if "requires" in policy.annotations:
        assert policy.annotations["requires"] in OBTAINABLE
    if "control" in policy.annotations:
        assert policy.effect == "forbid"
        assert CONTROL.fullmatch(policy.annotations["control"])


def test_guardrails_and_packs_only_forbid_and_roles_only_permit() -> None:
    assert {policy.effect for policy in guardrails()} == {"forbid"}
    assert {policy.effect for policies in PACKED.values() for policy in policies} == {"forbid"}
    assert {policy.effect for policy in roles()} == {"permit"}


@EACH
def test_none_reads_what_a_caller_asserts(policy: Policy) -> None:
    assert "claimed" not in policy.text


@EACH
def test_none_keeps_a_parameter_unfilled(policy: Policy) -> None:
    assert "parameters" not in policy.text


def test_every_action_is_permitted_to_some_role() -> None:
    text = "\n".join(policy.text for policy in roles())
    assert [name for name in load_schema()[""]["actions"] if f'Action::"{name}"' not in text] == []


def test_the_suspended_keep_exactly_the_safety_valves() -> None:
    (rule,) = [policy for policy in guardrails() if policy.id == "guardrail.active.tenant"]
    assert set(re.findall(r'Action::"([^"]+)"', rule.text)) == safety_valve_actions()


# What a check is measured against: without it the check cannot be run at all.
MEASURED_BY = {
    "technical": {"auc_min_micro", "calibration_error_max_micro"},
    "bias": {"selection_rate_ratio_min_micro", "selection_rate_ratio_lower_min_micro"},
    "explainability": {"explain_share_max_micro"},
    "drift": {"drift_max_features"},
}


def test_every_threshold_of_the_checks_is_of_one_of_them() -> None:
    assert set.union(*MEASURED_BY.values()) == set(Thresholds.model_fields)


@pytest.mark.parametrize("name", pack_names())
def test_a_pack_that_asks_for_a_check_says_what_it_is_measured_against(name: str) -> None:
    asked = {policy.annotations.get("requires", "").removeprefix("check:") for policy in PACKED[name]}
    given = {re.sub(r"_(low|medium|high)$", "", parameter) for parameter in pack(name).parameters}
    for kind in asked & set(MEASURED_BY):
        assert MEASURED_BY[kind] <= given, kind
