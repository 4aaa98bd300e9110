"""Parameters of packs: typed, bounded, and never able to add to the text of a policy."""

import json
from typing import Any

import cedarpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from licet_policies import PackChoice, PackError, compose, load_schema, pack, pack_names

SR = pack("sr-11-7")
HOSTILE = [
    'high"]) || true || (["x',
    'high"',
    "hi\\u0022gh",
    "high\n",
    "héigh",
    "",
    "HIGH",
    "a b",
    "*",
    "//",
    "high;",
    "-high",
]


def test_the_packs_are_there() -> None:
    assert pack_names() == ("change-management", "eu-ai-act", "export-control", "hipaa", "residency", "sr-11-7")


@pytest.mark.parametrize("name", ["", "sr-11", "../guardrails", "sr-11-7/", "SR-11-7"])
def test_an_unknown_pack_is_refused(name: str) -> None:
    with pytest.raises(PackError, match="no pack is called"):
        pack(name)


def test_defaults_fill_what_is_not_given() -> None:
    resolved = SR.resolve({"auc_min_micro_high": 700_000})
    assert resolved["auc_min_micro_high"] == 700_000
    assert resolved["selection_rate_ratio_min_micro"] == 800_000
    assert resolved["compliance_approval_tiers"] == ["high"]
    assert list(resolved) == list(SR.parameters)


def test_every_default_is_itself_allowed() -> None:
    for name in pack_names():
        defaults = {key: body["default"] for key, body in pack(name).parameters.items() if "default" in body}
        if len(defaults) == len(pack(name).parameters):
            assert pack(name).resolve(defaults) == defaults


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"auc_min": 1}, "no parameter is called auc_min; it has auc_min_micro_low"),
        ({"auc_min_micro_high": "600000"}, "auc_min_micro_high: expected an integer"),
        ({"auc_min_micro_high": 0.6}, "auc_min_micro_high: expected an integer"),
        ({"auc_min_micro_high": True}, "auc_min_micro_high: expected an integer"),
        ({"auc_min_micro_high": None}, "auc_min_micro_high: expected an integer"),
        ({"auc_min_micro_high": 1_000_001}, "1000001 lies outside 500000 to 1000000"),
        ({"auc_min_micro_high": 499_999}, "499999 lies outside 500000 to 1000000"),
        ({"drift_max_features": -1}, "-1 lies outside 0 to 10000"),
        (
            {"drift_tiers": "high"},
            r'drift_tiers: expected a list of words, found \'high\': write sr-11-7.drift_tiers=\["high"\]',
        ),
        ({"drift_tiers": {"high": True}}, "drift_tiers: expected a list of words"),
        ({"drift_tiers": []}, "expected 1 to 100 different words, found 0"),
        ({"drift_tiers": ["high", "high"]}, "different words"),
        ({"drift_tiers": ["huge"]}, "'huge' is none of low, medium, high, none"),
        ({"drift_tiers": [1]}, "expected words of a-z"),
    ],
)
def test_an_ill_typed_parameter_is_refused_with_its_name(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(PackError, match=message) as caught:
        SR.resolve(parameters)
    assert caught.value.code == "pack-refused"
    assert str(caught.value).startswith("pack sr-11-7: ")


def test_a_parameter_without_default_must_be_given() -> None:
    with pytest.raises(PackError, match="parameter regions must be given: Regions the tenant works in"):
        compose([PackChoice("residency")])


@pytest.mark.parametrize("word", HOSTILE)
def test_a_word_that_could_leave_its_literal_is_refused(word: str) -> None:
    with pytest.raises(PackError):
        compose([PackChoice("residency", parameters={"regions": ["us", word]})])
    with pytest.raises(PackError):
        compose([PackChoice("sr-11-7", parameters={"drift_tiers": [word]})])


def _substituted(node: Any, parameters: dict[str, Any]) -> Any:
    """Put parameters into Cedar's syntax tree: what the replacement in text must come to."""
    if isinstance(node, list):
        return [_substituted(item, parameters) for item in node]
    if not isinstance(node, dict):
        return node
    access = node.get(".")
    holder = {".": {"left": {"Var": "context"}, "attr": "parameters"}}
    if access and access["left"] == holder:
        value = parameters[access["attr"]]
        return {"Value": value} if isinstance(value, int) else {"Set": [{"Value": word} for word in value]}
    return {key: _substituted(item, parameters) for key, item in node.items()}


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_a_parameter_changes_nothing_of_a_policy_but_its_own_literal(data: st.DataObject) -> None:
    for name in pack_names():
        shipped = pack(name)
        given_parameters: dict[str, Any] = {}
        for key, body in shipped.parameters.items():
            if body["type"] == "integer":
                given_parameters[key] = data.draw(st.integers(body["minimum"], body["maximum"]))
            else:
                words = (
                    st.sampled_from(body["enum"]) if "enum" in body else st.from_regex(body["pattern"], fullmatch=True)
                )
                given_parameters[key] = data.draw(st.lists(words, min_size=1, max_size=3, unique=True))
        resolved = shipped.resolve(given_parameters)
        policies = shipped.policies(resolved)
        source = json.loads(cedarpy.policies_to_json_str(shipped.text))["staticPolicies"]
        assert len(policies) == len(source)
        for policy, tree in zip(policies, source.values(), strict=True):
            (rendered,) = json.loads(cedarpy.policies_to_json_str(policy.text))["staticPolicies"].values()
            assert rendered == _substituted(tree, resolved)
        validity = cedarpy.validate_policies("\n".join(policy.text for policy in policies), load_schema())
        assert validity.validation_passed, [str(error) for error in validity.errors]
