"""What packs promise: each invariant says something, and no shipped policy or policy of a tenant's own breaks it."""

from typing import Any

import cedarpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pack_choices import PARAMETERS, every_pack
from worlds import ACTIONS, OPEN, ROLES, SCHEMA, World

from licet_policies import PackChoice, compose, load_schema, pack, pack_names
from licet_policies.cases import Case, Request, evaluate, load_cases, request_of
from licet_policies.source import Policy

CASES = load_cases()
INVARIANTS = [
    (name, policy)
    for name in pack_names()
    for policy in pack(name).invariants(pack(name).resolve(PARAMETERS.get(name, {})))
]
EACH = pytest.mark.parametrize(("name", "policy"), INVARIANTS, ids=[policy.id for _, policy in INVARIANTS])
# The weakest of policies of one's own permits everything: what holds under it holds under any.
OPENED = {name: compose([PackChoice(name, "enforce", PARAMETERS.get(name, {}))], OPEN) for name in pack_names()}
_ALONE: dict[str, dict[str, Any]] = {}


def speaks_of(policy: Policy, request: Request) -> bool:
    """Whether an invariant is about a request: whether, alone, it would permit it."""
    # Each names its actions, so most need no evaluation.
    if f'Action::"{request.action}"' not in policy.text:
        return False
    if policy.text not in _ALONE:
        entry = {"id": policy.id, "source": "tenant", "mode": "enforce", "text": policy.text}
        _ALONE[policy.text] = {**compose(), "safety_valves": [], "policies": [entry]}
    outcome = evaluate(_ALONE[policy.text], request)
    assert outcome.errors == ()
    return outcome.decision == "allow"


@EACH
def test_an_invariant_is_a_valid_permit_with_a_sentence(name: str, policy: Policy) -> None:
    assert policy.effect == "permit"
    assert policy.id.startswith(f"{name}.invariant.")
    assert set(policy.annotations) in ({"id", "never"}, {"id", "always"})
    sentence = next(value for key, value in policy.annotations.items() if key != "id")
    assert len(sentence.split()) > 4
    assert not sentence.endswith(".")
    assert cedarpy.validate_policies(policy.text, load_schema()).validation_passed
    assert "claimed" not in policy.text
    assert "parameters" not in policy.text


def test_every_pack_has_invariants_with_ids_of_their_own() -> None:
    assert {name for name, _ in INVARIANTS} == set(pack_names())
    ids = [policy.id for _, policy in INVARIANTS]
    assert len(set(ids)) == len(ids)


def _enforcing(name: str) -> list[Case]:
    """The cases in whose bundle the pack is enforced; their parameters are those of the invariants in the case."""
    return [case for case in CASES if case.packs.get(name, {"mode": "observe"}).get("mode", "enforce") == "enforce"]


def _invariant_in(case: Case, name: str, policy_id: str) -> Policy:
    shipped = pack(name)
    policies = shipped.invariants(shipped.resolve(case.packs[name].get("parameters", {})))
    return next(policy for policy in policies if policy.id == policy_id)


@EACH
def test_some_case_is_about_each_invariant_and_every_such_case_is_denied(name: str, policy: Policy) -> None:
    about = [case for case in _enforcing(name) if speaks_of(_invariant_in(case, name, policy.id), request_of(case))]
    assert about, "no case comes near this invariant"
    for case in about:
        assert case.expected.decision == "deny", case.name


@EACH
def test_an_invariant_rests_on_the_pack(name: str, policy: Policy) -> None:
    """Without the pack, where a tenant permits everything, a request of some case that it speaks of is allowed."""
    plain = compose(own=OPEN)
    for case in _enforcing(name):
        request = request_of(case)
        about = speaks_of(_invariant_in(case, name, policy.id), request)
        if about and evaluate(plain, request).decision == "allow":
            return
    pytest.fail("whatever a case asks that this invariant speaks of, the platform's own policies deny it")


@st.composite
def _requests(draw: Any) -> Request:
    world = World(draw)
    action = draw(st.sampled_from([a for a in ACTIONS if a.partition(".")[0] in ("dataset", "model", "endpoint")]))
    world.add("Tenant", "northbank")
    roles = draw(st.lists(st.sampled_from(ROLES), unique=True))
    tenant = {"__entity": {"type": "Tenant", "id": "northbank"}}
    principal = world.add(draw(st.sampled_from(["Person", "ServiceAccount"])), "asker", roles, tenant=tenant)
    applies = SCHEMA["actions"][action]["appliesTo"]
    kind = draw(st.sampled_from([each for each in applies["resourceTypes"] if each != "Elsewhere"]))
    resource = world.add(kind, "thing", tenant=tenant)
    context = world.record(applies["context"]["attributes"])
    return Request(principal, action, resource, context, tuple(world.entities.values()))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_requests())
def test_whatever_the_facts_what_an_invariant_speaks_of_is_denied(request: Request) -> None:
    outcomes = {name: evaluate(bundle, request).decision for name, bundle in OPENED.items()}
    assert [policy.id for name, policy in INVARIANTS if speaks_of(policy, request) and outcomes[name] != "deny"] == []


def test_all_packs_together_keep_every_invariant() -> None:
    together = compose(every_pack(), OPEN)
    for case in CASES:
        request = request_of(case)
        if any(speaks_of(policy, request) for _, policy in INVARIANTS):
            assert evaluate(together, request).decision == "deny", case.name


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    ("name", "parameter", "action", "resource"),
    [
        ("hipaa", "data_roles", "dataset.read", "Dataset::northbank/hmda"),
        ("hipaa", "weights_roles", "model.download", "ModelVersion::northbank/credit-risk@1"),
        ("export-control", "data_roles", "dataset.read", "Dataset::northbank/hmda"),
        ("export-control", "weights_roles", "model.download", "ModelVersion::northbank/credit-risk@1"),
    ],
)
def test_a_named_role_lets_exactly_those_who_have_it(
    name: str, parameter: str, action: str, resource: str, role: str
) -> None:
    bundle = compose([PackChoice(name, "enforce", {**PARAMETERS[name], parameter: [role]})], OPEN)
    for held in ROLES:
        who = "Person::northbank/nobody"
        changes = {who: {"roles": [held]}, resource: {"restrictions.classification": "restricted"}}
        case = Case("", {"principal": who, "action": action, "resource": resource, "set": changes}, {})
        assert evaluate(bundle, request_of(case)).decision == ("allow" if held == role else "deny"), held
