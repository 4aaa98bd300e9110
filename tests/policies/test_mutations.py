"""The cases can fail: without a policy, or without one conjunct of it, some case no longer holds."""

import json
from collections.abc import Iterator
from typing import Any

import cedarpy
import pytest
from pack_choices import PARAMETERS

from licet_policies import guardrails, pack, pack_names, roles
from licet_policies.cases import evaluate, load_cases, request_of
from licet_policies.source import Policy

CASES = load_cases()
# Policies with conjuncts that no request can tell from true, and the text of those that are tried all the same: the wall
# denies what crosses tenants before the grant to members has a say, so its only condition is a second lock.
EQUIVALENT = {"role.member.catalogue": "principal.tenant == resource"}


def _conjuncts(body: dict[str, Any]) -> list[dict[str, Any]]:
    if "&&" in body:
        return [*_conjuncts(body["&&"]["left"]), *_conjuncts(body["&&"]["right"])]
    return [body]


def _conjunction(parts: list[dict[str, Any]]) -> dict[str, Any]:
    body = parts[0] if parts else {"Value": True}
    for part in parts[1:]:
        body = {"&&": {"left": body, "right": part}}
    return body


def mutants(text: str) -> Iterator[str]:
    """Give the policy once without each conjunct of each of its conditions."""
    parsed = json.loads(cedarpy.policies_to_json_str(text))
    (policy,) = parsed["staticPolicies"].values()
    for condition in policy["conditions"]:
        body = condition["body"]
        parts = _conjuncts(body)
        for dropped in range(len(parts)):
            condition["body"] = _conjunction(parts[:dropped] + parts[dropped + 1 :])
            yield cedarpy.policies_from_json_str(json.dumps(parsed))
        condition["body"] = body


def _is_noticed(policy_id: str, mutate: Any, bundle_for: Any) -> bool:
    # Those that name the policy come first, and after them those that ask for the same actions: they notice soonest.
    naming = [case for case in CASES if policy_id in case.body["because"]]
    actions = {case.body["action"] for case in naming}
    rest_of = sorted(
        (case for case in CASES if case not in naming), key=lambda case: case.body["action"] not in actions
    )
    for case in (*naming, *rest_of):
        bundle = bundle_for(case)
        entries = [entry for entry in bundle["policies"] if entry["id"] == policy_id]
        if not entries or entries[0]["mode"] == "observe":
            continue
        rest = [entry for entry in bundle["policies"] if entry["id"] != policy_id]
        changed = {**bundle, "policies": rest + mutate(entries[0])}
        if evaluate(changed, request_of(case)) != case.expected:
            return True
    return False


def shipped_ids() -> list[str]:
    rules = [
        policy for name in pack_names() for policy in pack(name).policies(pack(name).resolve(PARAMETERS.get(name, {})))
    ]
    return [policy.id for policy in (*guardrails(), *roles(), *rules)]


@pytest.mark.parametrize("policy_id", shipped_ids())
def test_dropping_a_policy_is_noticed(policy_id: str, bundle_for: Any) -> None:
    assert _is_noticed(policy_id, lambda _: [], bundle_for)


def _with_conditions() -> list[Policy]:
    return [policy for policy in (*guardrails(), *roles()) if "{" in policy.text]


@pytest.mark.parametrize("policy", _with_conditions(), ids=lambda policy: policy.id)
def test_dropping_a_conjunct_of_a_platform_policy_is_noticed(policy: Policy, bundle_for: Any) -> None:
    for mutant in mutants(policy.text):
        if policy.id in EQUIVALENT and EQUIVALENT[policy.id] not in mutant:
            continue
        assert _is_noticed(policy.id, lambda entry, text=mutant: [{**entry, "text": text}], bundle_for), mutant


@pytest.mark.parametrize("policy_id", [name for name in shipped_ids() if name.split(".")[0] in pack_names()])
def test_dropping_a_conjunct_of_a_pack_policy_is_noticed(policy_id: str, bundle_for: Any) -> None:
    case = next(case for case in CASES if case.body["because"] == [policy_id])
    (text,) = [entry["text"] for entry in bundle_for(case)["policies"] if entry["id"] == policy_id]
    for position, mutant in enumerate(mutants(text)):
        # Each bundle has its own parameters, so the mutant is made anew in each.
        def mutate(entry: dict[str, Any], position: int = position) -> list[dict[str, Any]]:
            return [{**entry, "text": list(mutants(entry["text"]))[position]}]

        assert _is_noticed(policy_id, mutate, bundle_for), mutant
