"""What decides: bundles, facts, slices, errors, observe mode, safety valves."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from licet_attestations import canonical
from licet_engine.decide import (
    BundleError,
    CompiledBundle,
    Decision,
    EntityUid,
    Fact,
    FactError,
    FactSet,
    Request,
    decide,
    decide_unsliced,
)
from licet_engine.decide.cache import BoundedCache

# Test files are imported each by itself; the world they share stands beside them.
sys.path.append(str(Path(__file__).parent))
from decide_world import (  # The line above finds it.
    ANA,
    MODEL,
    MODEL_ATTRS,
    NOW_MS,
    PERMIT,
    bundle,
    compiled,
    fact,
    facts,
    policy,
    promote,
)

ERRS = "context.now_ms * 9223372036854775807 > 0"


def test_a_permit_allows_and_is_named_by_its_own_id() -> None:
    assert decide(compiled(PERMIT), promote(), facts()) == Decision(allowed=True, reasons=("p.all",))


def test_an_empty_bundle_denies() -> None:
    assert decide(compiled(), promote(), facts()) == Decision(allowed=False)


def test_no_matching_policy_denies() -> None:
    other = policy("p.other", 'permit (principal, action == Action::"dataset.read", resource);')
    assert decide(compiled(other), promote(), facts()) == Decision(allowed=False)


def test_a_forbid_overrides_every_permit_and_alone_is_the_reason() -> None:
    forbid = policy("f.one", "forbid (principal, action, resource) when { principal.active };")
    assert decide(compiled(PERMIT, forbid), promote(), facts()) == Decision(allowed=False, reasons=("f.one",))


def test_a_forbid_that_errs_denies_though_cedar_would_skip_it() -> None:
    forbid = policy("f.errs", f"forbid (principal, action, resource is ModelVersion) when {{ {ERRS} }};")
    decision = decide(compiled(PERMIT, forbid), promote(), facts())
    assert decision == Decision(allowed=False, errors=("f.errs",))
    assert "overflow" in dict(decision.messages)["f.errs"]


def test_a_permit_that_errs_denies_though_another_holds() -> None:
    other = policy("p.errs", f'permit (principal, action == Action::"model.promote", resource) when {{ {ERRS} }};')
    assert decide(compiled(PERMIT, other), promote(), facts()) == Decision(allowed=False, errors=("p.errs",))


@pytest.mark.parametrize(
    "request_",
    [
        Request(ANA, "model.unheard-of", MODEL, {"now_ms": 1, "claimed": []}),
        promote(stage=7),
        promote(more="than the schema knows"),
        promote(region=None),
        Request(ANA, "model.promote", MODEL, {}),
        Request(EntityUid("Nobody", "x"), "model.promote", MODEL, dict(promote().context)),
        Request(EntityUid("not a type", "x"), "model.promote", MODEL, dict(promote().context)),
        Request(ANA, "model.promote", EntityUid("Dataset", "northbank/hmda"), dict(promote().context)),
        promote(now_ms=0.5),
        promote(now_ms=2**60),
        promote(stage="\ud800"),
        promote(é=1),
        promote(stage=object()),
        Request(EntityUid("Person", "\udcff"), "model.promote", MODEL, dict(promote().context)),
    ],
)
def test_what_a_caller_got_wrong_is_a_deny_that_says_so(request_: Request) -> None:
    decision = decide(compiled(PERMIT), request_, facts())
    assert decision == Decision(allowed=False, errors=("request",))
    assert dict(decision.messages)["request"]
    assert decide_unsliced(compiled(PERMIT), request_, facts()) == decision


def test_facts_that_the_schema_does_not_know_are_a_deny() -> None:
    wrong = FactSet([*(f for f in facts() if f.uid != MODEL), fact(MODEL, {**MODEL_ATTRS, "held": "no"})])
    assert decide(compiled(PERMIT), promote(), wrong).errors == ("facts",)


def test_facts_that_contradict_each_other_are_a_deny() -> None:
    twice = FactSet([*facts(), fact(MODEL, {**MODEL_ATTRS, "held": True})])
    assert decide(compiled(PERMIT), promote(), twice).errors == ("facts",)


def test_a_missing_fact_is_a_deny_where_a_policy_looks_at_it() -> None:
    forbid = policy("f.held", "forbid (principal, action, resource is ModelVersion) when { resource.held };")
    without = FactSet(f for f in facts() if f.uid != MODEL)
    assert decide(compiled(PERMIT, forbid), promote(), without) == Decision(allowed=False, errors=("f.held",))


def test_what_is_observed_changes_nothing_and_is_told() -> None:
    watching = [
        policy("f.seen", "forbid (principal, action, resource) when { principal.active };", mode="observe"),
        policy("f.not", "forbid (principal, action, resource) unless { principal.active };", mode="observe"),
        policy("f.errs", f"forbid (principal, action, resource) when {{ {ERRS} }};", mode="observe"),
        policy("p.seen", "permit (principal, action, resource is ModelVersion);", mode="observe"),
    ]
    decision = decide(compiled(PERMIT, *watching), promote(), facts())
    assert decision == Decision(allowed=True, reasons=("p.all",), observed=("f.errs", "f.seen"))
    # A permit in observe mode grants nothing.
    assert decide(compiled(*watching), promote(), facts()) == Decision(allowed=False, observed=("f.errs", "f.seen"))


def test_a_safety_valve_is_decided_by_the_platform_alone() -> None:
    policies = [
        policy("role.all", 'permit (principal, action == Action::"model.roll-back", resource);', source="role"),
        policy("own.broken", f"forbid (principal, action, resource) when {{ {ERRS} }};"),
        policy("pack.no", "forbid (principal, action, resource);", source="pack:x"),
        policy("guardrail.x", "forbid (principal, action, resource is Elsewhere);", source="guardrail"),
    ]
    asked = Request(ANA, "model.roll-back", MODEL, {"now_ms": NOW_MS, "claimed": []})
    valve = compiled(*policies, safety_valves=["model.roll-back"])
    assert decide(valve, asked, facts()) == Decision(allowed=True, reasons=("role.all",))
    assert decide_unsliced(valve, asked, facts()) == decide(valve, asked, facts())
    assert not decide(compiled(*policies), asked, facts()).allowed


def test_many_policies_make_small_slices_that_are_made_once() -> None:
    own = [
        policy(f"own.p{n}", f'permit (principal == Person::"p{n}", action == Action::"model.promote", resource);')
        for n in range(500)
    ]
    ready = compiled(PERMIT, *own, validate=False)

    def slice_of(asker: EntityUid) -> Any:
        key = asker.key
        return ready.slice_for(key, ("Action", "model.promote"), MODEL.key, (key,), (MODEL.key,))

    assert [p.id for p in slice_of(ANA).policies] == ["p.all"]
    assert [p.id for p in slice_of(EntityUid("Person", "p7")).policies] == ["p.all", "own.p7"]
    # People whom no policy mentions share one slice.
    assert slice_of(ANA) is slice_of(EntityUid("Person", "somebody else"))


def test_threads_share_one_bundle() -> None:
    forbid = policy(
        "f.eu", 'forbid (principal, action, resource) when { context has region && context.region == "eu" };'
    )
    ready, world = compiled(PERMIT, forbid, validate=False), facts()
    wrong: list[Decision] = []

    def ask(region: str) -> None:
        for _ in range(200):
            decision = decide(ready, promote(region=region), world)
            if decision.allowed != (region == "us"):
                wrong.append(decision)

    threads = [threading.Thread(target=ask, args=(region,)) for region in ("us", "eu") * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"v": 2}, "v 1"),
        ({"schema": "entity X;"}, "schema"),
        ({"schema": {"": {"entityTypes": 3}}}, "not a Cedar schema"),
        ({"policies": {}}, "list of policies"),
        ({"policies": [{"id": "a.b"}]}, "id, source, mode and text"),
        ({"policies": [policy("a.b", "permit (principal, action, resource)")]}, "does not parse"),
        ({"policies": [policy("a.b", "permit (principal == ?principal, action, resource);")]}, "no template"),
        (
            {
                "policies": [
                    policy("a.b", "permit (principal, action, resource); forbid (principal, action, resource);")
                ]
            },
            "one",
        ),
        ({"policies": [PERMIT | {"id": "a.c"}]}, "@id"),
        ({"policies": [PERMIT | {"text": "permit (principal, action, resource);"}]}, "@id"),
        ({"policies": [PERMIT, PERMIT]}, "twice"),
        ({"policies": [PERMIT | {"mode": "perhaps"}]}, "mode"),
        ({"policies": [PERMIT | {"source": "nowhere"}]}, "source"),
        ({"policies": [PERMIT | {"source": "guardrail"}]}, "only forbids"),
        ({"policies": [policy("request", "permit (principal, action, resource);")]}, "reserved"),
        ({"policies": [policy("a`b", "permit (principal, action, resource);")]}, "letters"),
        ({"policies": [policy("a.b", "permit (principal, action, resource) when { resource.heldd };")]}, "a.b"),
        ({"policies": [PERMIT], "more": 0.5}, "canonical"),
    ],
)
def test_what_is_no_bundle_does_not_compile(change: dict[str, Any], says: str) -> None:
    with pytest.raises(BundleError, match=says):
        CompiledBundle.compile(bundle() | change)


def test_a_bundle_is_known_by_the_digest_of_its_canonical_json() -> None:
    data = canonical.dumps(bundle(PERMIT))
    assert CompiledBundle.from_bytes(data).digest_hex == canonical.digest_hex(bundle(PERMIT))
    for other in (data + b" ", b"[]", b"{"):
        with pytest.raises(BundleError):
            CompiledBundle.from_bytes(other)


@pytest.mark.parametrize(
    "entity",
    [
        {"uid": {"type": "Role", "id": "a"}, "attrs": {}},
        {"uid": 'Role::"a"', "attrs": {}, "parents": []},
        {"uid": {"type": "Role", "id": 1}, "attrs": {}, "parents": []},
        {"uid": {"type": "Role", "id": "a"}, "attrs": {"x": 0.5}, "parents": []},
        {"uid": {"type": "Role", "id": "a"}, "attrs": [], "parents": []},
        {"uid": {"type": "Role", "id": "a"}, "attrs": {}, "parents": [{"__entity": {"type": "Role", "id": "b"}}]},
        {"uid": {"type": "Role", "id": "a"}, "attrs": {}, "parents": [], "tags": {}},
    ],
)
def test_what_is_no_entity_is_no_fact(entity: dict[str, Any]) -> None:
    with pytest.raises(FactError):
        Fact.from_entity(entity)


def test_a_fact_does_not_follow_what_is_done_to_the_entity_it_was_made_from() -> None:
    attrs = dict(MODEL_ATTRS)
    made = fact(MODEL, attrs)
    attrs["held"] = True
    assert made.entity["attrs"]["held"] is False
    assert Fact.from_bytes(made.data).digest_hex == made.digest_hex


def test_ancestors_are_the_entity_and_all_it_is_in() -> None:
    def role(name: str, *parents: str) -> Fact:
        return fact(EntityUid("Role", name), {}, *parents)

    world = FactSet([role("a", "b", "missing"), role("b", "c"), role("c", "a")])
    assert [name for _, name in world.ancestors(("Role", "a"))] == ["a", "b", "c", "missing"]
    assert world.ancestors(("Role", "unknown")) == (("Role", "unknown"),)


def test_the_cache_is_bounded_by_entries_and_by_weight_and_keeps_what_was_used_last() -> None:
    cache: BoundedCache[str, int] = BoundedCache(max_entries=3, max_weight=10)
    for name in "abc":
        cache.put(name, 1, 1)
    assert cache.get("a") == 1
    cache.put("d", 1, 1)
    assert [cache.get(name) for name in "abcd"] == [1, None, 1, 1]
    cache.put("e", 1, 9)
    assert len(cache) == 2
    assert cache.weight == 10
    cache.put("huge", 1, 99)
    assert (cache.get("huge"), len(cache), cache.weight) == (1, 1, 99)


def test_names_are_written_as_cedar_reads_them() -> None:
    assert str(EntityUid("Person", 'a"\\\n\0\u200b')) == 'Person::"a\\"\\\\\\n\\0\\u{200b}"'
