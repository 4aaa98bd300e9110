"""Composition: the same choices give the same bytes, and no choice removes what the platform demands."""

import random
import re
from typing import Any

import pytest

from licet_attestations import canonical
from licet_policies import (
    LicetPoliciesError,
    PackChoice,
    PackError,
    PolicySourceError,
    bundle_digest,
    bundle_digest_hex,
    compose,
    guardrails,
    load_schema,
    policies_for,
    roles,
    safety_valve_actions,
)

PACKS = [PackChoice("sr-11-7"), PackChoice("residency", "observe", {"regions": ["us", "eu"]})]
OWN_A = '@id("team.a")\npermit (principal, action == Action::"run.read", resource is Run);'
OWN_B = '@id("team.b")\nforbid (principal, action == Action::"run.log", resource is Run);'


def test_the_order_of_choices_does_not_matter() -> None:
    first = compose(PACKS, OWN_A + OWN_B)
    second = compose(PACKS[::-1], f"// A remark.\n{OWN_B}\n\n{OWN_A}")
    assert canonical.dumps(first) == canonical.dumps(second)
    assert bundle_digest(first) == bundle_digest(second)
    assert bundle_digest_hex(first) == bundle_digest(first).hex()


def test_the_order_of_words_in_a_parameter_does_not_matter() -> None:
    one = compose([PackChoice("residency", parameters={"regions": ["us", "eu"]})])
    other = compose([PackChoice("residency", parameters={"regions": ("eu", "us")})])
    assert one == other


def test_any_choice_changes_the_digest() -> None:
    bundles = [
        compose(),
        compose([PackChoice("sr-11-7")]),
        compose([PackChoice("sr-11-7", "observe")]),
        compose([PackChoice("sr-11-7", parameters={"auc_min_micro_high": 600_001})]),
        compose(own=OWN_A),
    ]
    assert len({bundle_digest(bundle) for bundle in bundles}) == len(bundles)


def test_a_bundle_has_the_agreed_shape() -> None:
    bundle = compose(PACKS, OWN_A)
    assert set(bundle) == {"v", "schema", "safety_valves", "platform_alone", "packs", "policies"}
    assert bundle["v"] == 1
    assert bundle["schema"] == load_schema()
    assert all(set(policy) == {"id", "source", "mode", "text"} for policy in bundle["policies"])
    assert [(pack["name"], pack["mode"]) for pack in bundle["packs"]] == [
        ("residency", "observe"),
        ("sr-11-7", "enforce"),
    ]
    assert bundle["packs"][0]["parameters"] == {"regions": ["eu", "us"]}
    modes = {(policy["source"], policy["mode"]) for policy in bundle["policies"]}
    assert modes == {
        ("guardrail", "enforce"),
        ("role", "enforce"),
        ("pack:residency", "observe"),
        ("pack:sr-11-7", "enforce"),
        ("tenant", "enforce"),
    }
    assert len({policy["id"] for policy in bundle["policies"]}) == len(bundle["policies"])


def test_guardrails_and_roles_are_in_every_bundle() -> None:
    platform = {policy.id: policy.text for policy in (*guardrails(), *roles())}
    for bundle in (compose(), compose(PACKS, OWN_A)):
        found = {policy["id"]: policy["text"] for policy in bundle["policies"]}
        assert {name: found[name] for name in platform} == platform


def test_changing_a_bundle_changes_no_other() -> None:
    compose()["schema"][""]["actions"].clear()
    compose()["policies"].clear()
    assert compose()["schema"][""]["actions"]
    assert compose()["policies"]


def test_a_safety_valve_is_decided_by_the_platform_alone() -> None:
    bundle = compose([PackChoice("sr-11-7"), PackChoice("residency", parameters={"regions": ["us"]})], OWN_B)
    assert bundle["safety_valves"] == sorted(safety_valve_actions())
    assert safety_valve_actions() <= set(load_schema()[""]["actions"])
    for action in safety_valve_actions():
        assert {policy["source"] for policy in policies_for(bundle, action)} == {"guardrail", "role"}
        assert policies_for(bundle, action, "observe") == []
    assert len(policies_for(bundle, "model.promote")) == len(bundle["policies"])


def test_a_pack_is_chosen_once() -> None:
    with pytest.raises(PackError, match="pack sr-11-7: chosen twice"):
        compose([PackChoice("sr-11-7"), PackChoice("sr-11-7", "observe")])


def test_a_mode_is_enforce_or_observe() -> None:
    off: Any = "off"
    with pytest.raises(PackError, match="mode is enforce or observe, not 'off'"):
        compose([PackChoice("sr-11-7", off)])


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("permit (principal, action, resource);", "needs an @id"),
        ('@id("plain")\npermit (principal, action, resource);', "needs an @id"),
        ("@id\npermit (principal, action, resource);", "needs an @id"),
        ('@id("Team.A")\npermit (principal, action, resource);', "needs an @id"),
        ('@id("team.a\n")\npermit (principal, action, resource);', "needs an @id"),
        (f'@id("{"a" * 70}.{"b" * 70}")\npermit (principal, action, resource);', "needs an @id"),
        (OWN_A + OWN_A, "own policy team.a: the id occurs twice"),
        (OWN_A.replace("team.a", "guardrail.isolation"), "ids that begin so belong to the platform"),
        (OWN_A.replace("team.a", "role.team"), "ids that begin so belong to the platform"),
        (OWN_A.replace("team.a", "sr-11-7.mine"), "ids that begin so belong to the platform"),
        (OWN_A.replace("team.a", "residency.mine"), "ids that begin so belong to the platform"),
        ('@id("team.a")\npermit (principal == ?principal, action, resource);', "is a template"),
        ('@id("team.a")\npermit (principal, action, resource)', "does not parse"),
        ('@id("team.a")\npermit (principal, action, resource) when { "open };', "does not end"),
        ("nonsense", "does not parse"),
        (";", "found 0|does not parse"),
        ('@id("team.a")\npermit (principal, action == Action::"run.erase", resource);', "not valid against the schema"),
        (OWN_A.replace(";", ' when { resource.colour == "red" };'), "not valid against the schema"),
        (OWN_A.replace(";", " when { context.parameters.auc_min_micro_low > 1 };"), "not valid against the schema"),
    ],
)
def test_an_own_policy_that_cannot_stand_is_refused(own: str, message: str) -> None:
    with pytest.raises(PolicySourceError, match=message) as caught:
        compose(own=own)
    assert caught.value.code == "policy-refused"
    assert isinstance(caught.value, LicetPoliciesError)


def test_own_policies_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("licet_policies.bundle.MAX_OWN_CHARS", 10)
    with pytest.raises(PolicySourceError, match="at most 10 characters"):
        compose(own=OWN_A)


def test_own_text_of_comments_and_blanks_adds_nothing() -> None:
    assert compose(own=" \n// Nothing yet; really.\n") == compose()


def test_two_thousand_own_policies_compose() -> None:
    texts = [OWN_A.replace("team.a", f"team.rule-{number}") for number in range(2000)]
    random.Random(1).shuffle(texts)  # noqa: S311 -- an order, not a secret.
    own = [policy["id"] for policy in compose(own="".join(texts))["policies"] if policy["source"] == "tenant"]
    assert own == sorted(own)
    assert len(own) == 2000
    assert all(re.fullmatch(r"team\.rule-\d+", name) for name in own)


@pytest.mark.parametrize(
    ("note", "mode"), [("", "enforce"), ('@mode("enforce")', "enforce"), ('@mode("observe")', "observe")]
)
def test_a_policy_of_ones_own_stands_in_the_mode_that_it_says(note: str, mode: str) -> None:
    bundle = compose(own=f'@id("team.a") {note} forbid (principal, action, resource);')
    (entry,) = [entry for entry in bundle["policies"] if entry["source"] == "tenant"]
    assert entry["mode"] == mode
    assert entry["id"] in {policy["id"] for policy in policies_for(bundle, "model.promote", mode)}  # type: ignore[arg-type]  # One of the two.


@pytest.mark.parametrize("note", ['@mode("off")', '@mode("Observe")', "@mode"])
def test_a_mode_that_there_is_not_is_refused_rather_than_taken_for_one(note: str) -> None:
    with pytest.raises(PolicySourceError, match="@mode is enforce or observe"):
        compose(own=f'@id("team.a") {note} forbid (principal, action, resource);')
