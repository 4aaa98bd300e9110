"""Slicing, probing and recording change nothing, whatever the policies, the facts and the request."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from licet_attestations import canonical
from licet_engine.decide import CompiledBundle, Decision, EntityUid, Fact, FactSet, Request, decide, decide_unsliced
from licet_engine.decide.bundle import policy_set
from licet_engine.decide.conjuncts import Probes
from licet_engine.decide.decision import evaluate, query_of
from licet_engine.decide.record import ENGINE, Operation, build_record, recorded_request, replay
from licet_policies.schema import load_schema

TENANTS = ("northbank", "lakeside")
ROLES = ("a", "b", "c")
PEOPLE = ("p1", "p2")
THINGS = ("d1", "d2")
# One of many is wrong: a request that cannot be evaluated shows nothing of slices.
ACTIONS = ("dataset.read", "dataset.delete", "dataset.hold") * 3 + ("unheard.of",)
CONDITIONS = (
    "principal.active",
    "principal.tenant == resource.tenant",
    "resource.held",
    "resource.derived > 3",
    "resource.checks.bias.passed",
    "context.now_ms * 9223372036854775807 > 0",
    'context.claimed.contains({name: "ticket", value: "1"})',
    'principal in Role::"a" && resource has restrictions && resource.restrictions.residency.contains("us")',
    "resource.nothing || principal.active",
    "principal.active || resource.nothing",
    "!(resource.held || principal.active)",
    "1 == 1",
)


def schema() -> dict[str, Any]:
    """Our own vocabulary, with what it has no use for yet: groups of actions, roles in roles, datasets in roles."""
    value = copy.deepcopy(load_schema())
    (space,) = value.values()
    space["actions"]["reads"] = {}
    space["actions"]["all"] = {}
    space["actions"]["reads"]["memberOf"] = [{"id": "all"}]
    for name in ("dataset.read", "dataset.hold"):
        space["actions"][name]["memberOf"] = [{"id": "reads"}]
    for kind in ("Role", "Dataset"):
        space["entityTypes"][kind]["memberOfTypes"] = ["Role"]
    return value


SCHEMA = schema()


def entity_of(kinds: dict[str, tuple[str, ...]]) -> st.SearchStrategy[str]:
    return st.sampled_from([f'{kind}::"{name}"' for kind, names in kinds.items() for name in names])


def scope(slot: str, entities: st.SearchStrategy[str], kinds: tuple[str, ...]) -> st.SearchStrategy[str]:
    kind = st.sampled_from(kinds)
    return st.one_of(
        st.just(slot),
        entities.map(lambda e: f"{slot} == {e}"),
        entities.map(lambda e: f"{slot} in {e}"),
        kind.map(lambda k: f"{slot} is {k}"),
        *[st.tuples(kind, entities).map(lambda pair: f"{slot} is {pair[0]} in {pair[1]}")] * 2,
    )


PRINCIPALS = scope("principal", entity_of({"Person": PEOPLE, "Role": ROLES}), ("Person", "Person", "ServiceAccount"))
RESOURCES = scope("resource", entity_of({"Dataset": THINGS, "Role": ROLES}), ("Dataset", "Dataset", "Model"))
ACTION_NAMES = st.sampled_from(("dataset.read", "dataset.delete", "dataset.hold", "reads", "all")).map(
    lambda name: f'Action::"{name}"'
)
ACTION_SCOPES = st.one_of(
    st.just("action"),
    ACTION_NAMES.map(lambda a: f"action == {a}"),
    ACTION_NAMES.map(lambda a: f"action in {a}"),
    st.lists(ACTION_NAMES, max_size=3).map(lambda names: f"action in [{', '.join(names)}]"),
)
SOUND = CONDITIONS[:4] + CONDITIONS[6:8] + CONDITIONS[9:]
CLAUSES = st.lists(
    st.tuples(st.sampled_from(("when", "unless")), st.sampled_from(SOUND), st.sampled_from(("&&", "||"))).flatmap(
        lambda head: st.sampled_from(CONDITIONS).map(lambda more: f"{head[0]} {{ ({head[1]}) {head[2]} ({more}) }}")
    ),
    max_size=2,
)


@st.composite
def bundles(draw: st.DrawFn) -> dict[str, Any]:
    policies = []
    for number in range(draw(st.integers(0, 8))):
        effect = draw(st.sampled_from(("permit", "permit", "forbid")))
        head = f"{effect} ({draw(PRINCIPALS)}, {draw(ACTION_SCOPES)}, {draw(RESOURCES)})"
        source = draw(st.sampled_from(("role", "tenant", "pack:x")))
        mode = draw(st.sampled_from(("enforce", "enforce", "observe")))
        text = f'@id("p.{number}") {head} {" ".join(draw(CLAUSES))};'
        policies.append({"id": f"p.{number}", "source": source, "mode": mode, "text": text})
    valves = draw(st.sampled_from(([], ["dataset.read"])))
    alone = draw(st.sampled_from(([], ["principal-inactive"], ["principal-inactive", "tenant-suspended"])))
    return {
        "v": 1,
        "schema": SCHEMA,
        "packs": [],
        "safety_valves": valves,
        "platform_alone": alone,
        "policies": policies,
    }


def uid(kind: str, name: str) -> dict[str, str]:
    return {"type": kind, "id": name}


@st.composite
def fact_sets(draw: st.DrawFn) -> FactSet:
    def parents(of: tuple[str, ...]) -> list[dict[str, str]]:
        return [uid("Role", role) for role in of if draw(st.booleans())]

    def tenant() -> dict[str, str]:
        return uid("Tenant", draw(st.sampled_from(TENANTS)))

    entities = [
        # Only towards later letters, so that no role is in itself.
        *[
            {"uid": uid("Tenant", t), "attrs": {"region": "us", "suspended": draw(st.booleans())}, "parents": []}
            for t in TENANTS
        ],
        *[{"uid": uid("Role", r), "attrs": {}, "parents": parents(ROLES[n + 1 :])} for n, r in enumerate(ROLES)],
        *[
            {
                "uid": uid("Person", p),
                "attrs": {"tenant": tenant(), "active": draw(st.booleans())},
                "parents": parents(ROLES),
            }
            for p in PEOPLE
        ],
        *[
            {
                "uid": uid("Dataset", d),
                "attrs": {
                    "tenant": tenant(),
                    "restrictions": {
                        "classification": "internal",
                        "protected": False,
                        "residency": draw(st.sampled_from((["us"], ["eu"], []))),
                        "uses": [],
                        "expires_at_ms": 0,
                        "held": False,
                    },
                    "held": draw(st.booleans()),
                    "archived": False,
                    "derived": draw(st.integers(0, 6)),
                },
                "parents": parents(ROLES),
            }
            for d in THINGS
        ],
    ]
    # A fact that is missing ends a branch of the hierarchy, or takes the attributes away.
    return FactSet(Fact.from_entity(entity) for entity in entities if draw(st.integers(0, 9)))


REQUESTS = st.builds(
    Request,
    st.sampled_from(PEOPLE).map(lambda p: EntityUid("Person", p)),
    st.sampled_from(ACTIONS),
    st.sampled_from(THINGS).map(lambda d: EntityUid("Dataset", d)),
    st.sampled_from(
        (
            {"now_ms": 5, "claimed": []},
            {"now_ms": 5, "claimed": [{"name": "ticket", "value": "1"}]},
            {"now_ms": 0, "claimed": []},
        )
        * 3
        + ({"now_ms": "5", "claimed": []}, {"now_ms": 0.5})
    ),
)
MANY = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def same(one: Decision, other: Decision) -> None:
    assert (one.allowed, one.reasons, one.errors, one.observed) == (
        other.allowed,
        other.reasons,
        other.errors,
        other.observed,
    )


@MANY
@given(bundle=bundles(), facts=fact_sets(), requests=st.lists(REQUESTS, min_size=1, max_size=4))
def test_a_slice_decides_as_the_whole_bundle_does(
    bundle: dict[str, Any], facts: FactSet, requests: list[Request]
) -> None:
    compiled = CompiledBundle.compile(bundle, validate=False)
    for request in requests:
        whole = decide_unsliced(compiled, request, facts)
        same(decide(compiled, request, facts), whole)
        same(decide(compiled, request, facts), whole)  # From the caches, too.
        assert not (whole.allowed and whole.errors), "errors mean no"
        if is_stopped(bundle, request, facts):
            decided_by = {*whole.reasons, *whole.errors, *whole.observed} - {"request", "facts", "engine"}
            sources = {policy["id"]: policy["source"] for policy in bundle["policies"]}
            assert {sources[name] for name in decided_by} <= {"role"}


def is_stopped(bundle: dict[str, Any], request: Request, facts: FactSet) -> bool:
    """Whether the bundle leaves the asker none but the platform's policies, told the plainest way."""
    entities = {(fact.uid.type, fact.uid.id): fact.entity["attrs"] for fact in facts}
    asker = entities.get(request.principal.key, {})
    tenant = entities.get(("Tenant", asker.get("tenant", {}).get("id")), {})
    states = {"principal-inactive": asker.get("active") is False, "tenant-suspended": tenant.get("suspended") is True}
    return any(states[name] for name in bundle["platform_alone"])


@MANY
@given(bundle=bundles(), facts=fact_sets(), request=REQUESTS)
def test_the_parts_of_each_policy_come_to_what_cedar_says_of_it_alone(
    bundle: dict[str, Any], facts: FactSet, request: Request
) -> None:
    compiled = CompiledBundle.compile(bundle, validate=False)
    if request.problem or decide(compiled, request, facts).errors == ("request",):
        return
    query, handle = query_of(request), compiled.entities.get(facts)
    probes = Probes(compiled.policies, query, handle, compiled.schema)
    for policy in compiled.policies:
        alone = evaluate(policy_set([policy.fragment]), query, handle, compiled.schema)
        assert probes.outcome(policy) == ("error" if alone.errors else "true" if alone.reasons else "false")


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


@MANY
@given(
    bundle=bundles(),
    facts=fact_sets(),
    request=REQUESTS,
    words=st.tuples(TEXT, TEXT, TEXT),
    operation=st.none() | st.builds(Operation, TEXT, TEXT, TEXT, st.lists(TEXT, max_size=4).map(tuple)),
)
def test_a_record_is_canonical_and_replays(
    bundle: dict[str, Any], facts: FactSet, request: Request, words: tuple[str, str, str], operation: Operation | None
) -> None:
    compiled = CompiledBundle.compile(bundle, validate=False)
    decision = decide(compiled, request, facts)
    asked_by = EntityUid("Person", words[2]) if words[2] else None
    data = build_record(
        decision_id=words[0],
        time_ms=7,
        tenant=words[1],
        request=request,
        decision=decision,
        facts=facts,
        facts_version=3,
        bundle_hex=compiled.digest_hex,
        operation=operation,
        asked_by=asked_by,
    )
    assert data == canonical.dumps(
        {
            "v": 1,
            "id": words[0],
            "time_ms": 7,
            "tenant": words[1],
            "principal": request.principal.to_json(),
            "action": request.action,
            "resource": request.resource.to_json(),
            "context": None if request.problem else dict(request.context),
            "facts": sorted(fact.digest_hex for fact in facts),
            "facts_version": 3,
            "bundle": canonical.digest_hex(bundle),
            "engine": ENGINE,
            "decision": "allow" if decision.allowed else "deny",
            "reasons": sorted(decision.reasons),
            "errors": sorted(decision.errors),
            "observed": sorted(decision.observed),
            "operation": None
            if operation is None
            else {
                "id": operation.id,
                "step": operation.step,
                "parameters_digest": operation.parameters_digest_hex,
                "resources": list(operation.resources),
            },
            "asked_by": None if asked_by is None else asked_by.to_json(),
        }
    )
    if not request.problem:
        assert recorded_request(canonical.loads(data)) == request
    known = {fact.digest_hex: fact.data for fact in facts}
    same(replay(data, known, canonical.dumps(bundle)), decision)
