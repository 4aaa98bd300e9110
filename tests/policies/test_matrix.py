"""A tenant is a wall: whatever the action, role, resource, facts, packs and own policies."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pack_choices import every_pack
from worlds import ACTIONS, OPEN, ROLES, SCHEMA, World

from licet_policies import compose
from licet_policies.cases import Case, Outcome, Request, evaluate, request_of

OPERATOR_ACTIONS = {"tenant.create", "tenant.administer", "tenant.allot", "tenant.suspend"} | {
    f"tenant.{verb}break-glass" for verb in ("", "request-", "end-")
}


def isolation_of(kind: str) -> str:
    return "guardrail.isolation.tenants" if kind == "Tenant" else "guardrail.isolation"


BUNDLES = {
    "plain": compose(),
    "everything": compose(every_pack(), OPEN),
    "observed": compose(every_pack("observe")),
}


def ask(world: World, action: str, principal: dict[str, str], resource: dict[str, str], bundle: str) -> Outcome:
    context = world.record(SCHEMA["actions"][action]["appliesTo"]["context"]["attributes"])
    return evaluate(BUNDLES[bundle], Request(principal, action, resource, context, tuple(world.entities.values())))


@st.composite
def requests(draw: Any, *, foreign: bool) -> tuple[str, str, Outcome]:
    world = World(draw)
    action = draw(st.sampled_from(ACTIONS))
    principal_kind = draw(st.sampled_from(["Person", "ServiceAccount"]))
    kind = draw(st.sampled_from(SCHEMA["actions"][action]["appliesTo"]["resourceTypes"]))
    world.add("Tenant", "northbank")
    world.add("Tenant", "lakeside")
    roles = draw(st.lists(st.sampled_from(ROLES), unique=True))
    principal = world.add(principal_kind, "asker", roles, tenant={"__entity": {"type": "Tenant", "id": "lakeside"}})
    owner = "northbank" if foreign else "lakeside"
    if kind == "Tenant":
        resource = world.add("Tenant", owner)
    elif kind == "Elsewhere":
        world.add("Tenant", "~")
        resource = world.add(kind, "~", tenant={"__entity": {"type": "Tenant", "id": "~"}})
    else:
        resource = world.add(kind, "thing", tenant={"__entity": {"type": "Tenant", "id": owner}})
    return kind, action, ask(world, action, principal, resource, draw(st.sampled_from(sorted(BUNDLES))))


PROPERTY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@PROPERTY
@given(requests(foreign=True))
def test_whatever_the_facts_a_foreign_thing_is_denied_by_isolation(asked: tuple[str, str, Outcome]) -> None:
    kind, _, outcome = asked
    assert outcome.decision == "deny"
    assert isolation_of(kind) in outcome.because
    assert outcome.errors == ()


@PROPERTY
@given(requests(foreign=False))
def test_whatever_the_facts_no_shipped_policy_errs(asked: tuple[str, str, Outcome]) -> None:
    assert asked[2].errors == ()


# One thing of each type that northbank owns, from the fixtures that the cases share.
THINGS = {
    "Dataset": "Dataset::northbank/hmda",
    "Elsewhere": "Elsewhere::~",
    "Endpoint": "Endpoint::northbank/scoring",
    "Evidence": "Evidence::northbank",
    "Issuer": "Issuer::northbank",
    "Log": "Log::northbank",
    "ModelVersion": "ModelVersion::northbank/credit-risk@1",
    "Person": "Person::northbank/ada",
    "PolicyBundle": "PolicyBundle::northbank/draft",
    "Run": "Run::northbank/run-1",
    "Secret": "Secret::northbank/warehouse",
    "ServiceAccount": "ServiceAccount::northbank/ci",
    "ChangeTicket": "ChangeTicket::northbank/CHG-1",
    "Tenant": "Tenant::northbank",
    "TenantKey": "TenantKey::northbank",
    "Webhook": "Webhook::northbank",
}
PAIRS = [(action, kind) for action in ACTIONS for kind in SCHEMA["actions"][action]["appliesTo"]["resourceTypes"]]
# What a service may never do is forbidden by two guardrails at once.
SERVICES_NEVER = {
    **dict.fromkeys(
        (
            *(("person.administer", "Person"), ("person.administer", "ServiceAccount"), ("token.issue", "Person")),
            *(("token.issue", "ServiceAccount"), ("issuer.trust", "Issuer")),
        ),
        "guardrail.separation-of-duties.administration",
    ),
    ("approval.delegate", "Person"): "guardrail.delegation.services",
    ("record.erase", "Evidence"): "guardrail.erasure.services",
    ("model.approve", "ModelVersion"): "guardrail.separation-of-duties.services",
    ("policy.activate", "PolicyBundle"): "guardrail.separation-of-duties.policy-services",
    ("policy.roll-back", "PolicyBundle"): "guardrail.separation-of-duties.policy-services",
}


def _matrix_request(principal: str, role: str, action: str, kind: str) -> Request:
    body = {"principal": principal, "action": action, "resource": THINGS[kind], "set": {principal: {"roles": [role]}}}
    return request_of(Case("matrix", body, {}))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("bundle", sorted(BUNDLES))
def test_no_role_lets_a_principal_touch_another_tenant(role: str, bundle: str) -> None:
    for principal in ("Person::lakeside/lena", "ServiceAccount::lakeside/ci"):
        for action, kind in PAIRS:
            outcome = evaluate(BUNDLES[bundle], _matrix_request(principal, role, action, kind))
            also = SERVICES_NEVER.get((action, kind)) if principal.startswith("Service") else None
            expected = {isolation_of(kind), *([also] if also else [])}
            assert (outcome.decision, outcome.errors) == ("deny", ()), (principal, action, kind)
            # The facts of northbank are in order, so that no other rule of the platform has a word to say; a pack's may.
            platform = {name for name in outcome.because if name.startswith("guardrail.")}
            assert platform == expected, (principal, action, kind)


@pytest.mark.parametrize("role", ROLES)
def test_an_operator_of_the_platform_touches_tenants_as_such_alone(role: str) -> None:
    allowed = set()
    for action, kind in PAIRS:
        request = _matrix_request("Person::platform/otto", role, action, kind)
        outcome = evaluate(BUNDLES["plain"], request)
        if outcome.decision == "allow":
            allowed.add((action, kind))
        elif not (kind == "Tenant" and action in OPERATOR_ACTIONS):
            assert outcome.because == (isolation_of(kind),), (action, kind)
    expected = {(action, "Tenant") for action in OPERATOR_ACTIONS}
    assert allowed == {"operator": expected, "administrator": {("tenant.administer", "Tenant")}}.get(role, set())
