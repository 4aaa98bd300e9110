"""Every shipped case holds: the decision, exactly the determining policies, no errors."""

from collections import Counter
from typing import Any

import pytest
from pack_choices import PARAMETERS

from licet_policies import compose, guardrails, pack, pack_names, roles
from licet_policies.cases import Case, evaluate, load_cases, request_of
from licet_policies.source import Policy

CASES = load_cases()


def shipped() -> list[Policy]:
    packs = [pack(name) for name in pack_names()]
    rules = [policy for each in packs for policy in each.policies(each.resolve(PARAMETERS.get(each.name, {})))]
    return [*guardrails(), *roles(), *rules]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.file}: {case.name}")
def test_case(case: Case, bundle_for: Any) -> None:
    assert evaluate(bundle_for(case), request_of(case)) == case.expected


def test_there_are_cases_and_each_name_is_a_sentence_of_its_own() -> None:
    counts = Counter(case.name for case in CASES)
    assert len(CASES) > 200
    assert [name for name, count in counts.items() if count > 1] == []
    assert [name for name in counts if len(name.split()) < 4 or name.endswith(".")] == []


@pytest.mark.parametrize("policy", shipped(), ids=lambda policy: policy.id)
def test_every_policy_determines_a_case_alone(policy: Policy) -> None:
    wanted = "allow" if policy.effect == "permit" else "deny"
    assert any(case.body["because"] == [policy.id] and case.body["expect"] == wanted for case in CASES)


def test_a_case_fails_when_a_policy_it_rests_on_errs(bundle_for: Any) -> None:
    case = next(case for case in CASES if case.body["expect"] == "allow")
    request = request_of(case)
    without_facts = type(request)(request.principal, request.action, request.resource, request.context, ())
    outcome = evaluate(bundle_for(case), without_facts)
    assert outcome.decision == "deny"
    assert outcome.errors


def test_an_empty_bundle_permits_nothing() -> None:
    case = next(case for case in CASES if case.body["expect"] == "allow")
    assert evaluate({**compose(), "policies": []}, request_of(case)).decision == "deny"
