"""The prover can tell: a guardrail that is changed in any one place is told from the one that is shipped.

What no invariant covers, equivalence with the original does; so both are asked, and what only one of them notices is said.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import cedarpy
import pytest

from licet_engine.workbench.symbolic import (
    PolicySet,
    Prover,
    Refuted,
    RequestEnvironment,
    SinglePolicy,
    Unknown,
    bundle_properties,
    equivalent,
    never_errors,
)
from licet_policies import PackChoice, Policy, compose, guardrails, load_schema

PACKS = (PackChoice("sr-11-7"), PackChoice("residency", "enforce", {"regions": ["us"]}))
FLIPPED = {"==": "!=", "!=": "==", "<": "<=", "<=": "<", ">": ">=", ">=": ">"}
# Guardrails that no invariant speaks of: they keep the vocabulary and the order of work within a tenant.
UNSPOKEN = {
    "guardrail.approvals.verdict",
    "guardrail.approvals.withdrawal",
    "guardrail.break-glass.unreviewed",
    "guardrail.delegation.track",
    "guardrail.vocabulary.classification",
    "guardrail.vocabulary.track",
}
# Mutants that no request can tell from the original: the schema has none to which the other scope would apply and the
# conditions as well. The prover says so of each, and the tests hold it to that.
EQUIVALENT = {
    ("guardrail.break-glass.reviewer", "principal widened"),
    ("guardrail.delegation.author", "action widened"),
    ("guardrail.delegation.in-force", "action widened"),
    ("guardrail.delegation.qualified-still", "action widened"),
    ("guardrail.delegation.self", "principal narrowed"),
    ("guardrail.delegation.self", "resource widened"),
    ("guardrail.devices.quota", "resource widened"),
    ("guardrail.endpoints.approved", "action widened"),
    ("guardrail.endpoints.signature", "action widened"),
    ("guardrail.holds.deployment", "action widened"),
    ("guardrail.separation-of-duties.author", "principal widened"),
    ("guardrail.separation-of-duties.policy", "principal widened"),
    ("guardrail.separation-of-duties.self", "principal widened"),
    ("guardrail.separation-of-duties.self", "resource widened"),
    ("guardrail.tickets.approved", "action widened"),
    ("guardrail.tickets.fresh", "action widened"),
}
EACH = pytest.mark.parametrize("guardrail", guardrails(), ids=lambda policy: policy.id)


@cache
def prover() -> Prover:
    return Prover(load_schema())


def places(body: Any) -> Iterator[tuple[Any, str]]:
    """Every expression within, as the object that holds it and the key under which it does."""
    if isinstance(body, dict):
        for key, inner in body.items():
            yield body, key
            yield from places(inner)
    elif isinstance(body, list):
        for inner in body:
            yield from places(inner)


def mutants(text: str) -> Iterator[tuple[str, str]]:
    """The policy changed in one place, each with what was changed."""
    parsed = json.loads(cedarpy.policies_to_json_str(text))
    ((name, _),) = parsed["staticPolicies"].items()

    def changed(change: Any) -> str:
        whole = copy.deepcopy(parsed)
        change(whole["staticPolicies"][name])
        return cedarpy.policies_from_json_str(json.dumps(whole))

    policy = parsed["staticPolicies"][name]
    for number, condition in enumerate(policy["conditions"]):
        yield f"condition {number} dropped", changed(lambda p, n=number: p["conditions"].pop(n))
        flips = [place for place, (_, key) in enumerate(places(condition)) if key in ("&&", "||", *FLIPPED)]
        for place in flips:
            op = list(places(condition))[place][1]
            if op in FLIPPED:
                yield (
                    f"condition {number}, {place}: {op} flipped",
                    changed(lambda p, n=number, at=place: flip(p, n, at)),
                )
                continue
            for side in ("left", "right"):
                drop = changed(lambda p, n=number, at=place, s=side: drop_side(p, n, at, s))
                yield f"condition {number}, {place}: {side} of {op} dropped", drop
    for slot in ("principal", "action", "resource"):
        if policy[slot]["op"] != "All":
            yield f"{slot} widened", changed(lambda p, s=slot: p.update({s: {"op": "All"}}))
    for place in range(len(policy["action"].get("entities", ()))):
        yield f"action {place} left out", changed(lambda p, at=place: p["action"]["entities"].pop(at))
    if policy["principal"]["op"] == "All":
        narrow = {"principal": {"op": "is", "entity_type": "Person"}}
        yield "principal narrowed", changed(lambda p: p.update(narrow))


def flip(policy: dict[str, Any], number: int, place: int) -> None:
    holder, op = list(places(policy["conditions"][number]))[place]
    holder[FLIPPED[op]] = holder.pop(op)


def drop_side(policy: dict[str, Any], number: int, place: int, side: str) -> None:
    holder, op = list(places(policy["conditions"][number]))[place]
    kept = holder.pop(op)["right" if side == "left" else "left"]
    holder.update(kept)


def concerned(*policies: SinglePolicy) -> list[RequestEnvironment]:
    """Kinds of request that one of the policies may apply to; those to which not all of them do come first."""
    schema = prover().schema
    applies = {one: [p.may_apply(schema, one) for p in policies] for one in prover().environments()}
    return sorted((one for one, says in applies.items() if any(says)), key=lambda one: all(applies[one]))


def told_apart(original: SinglePolicy, mutant: SinglePolicy) -> bool:
    questions = (equivalent(original, mutant), never_errors(mutant))
    for environment in concerned(original, mutant):
        for question in questions:
            outcome = prover().check(question, environment)
            assert not isinstance(outcome, Unknown), outcome
            if isinstance(outcome, Refuted):
                return True
    return False


@EACH
def test_every_mutant_is_told_from_the_original(guardrail: Policy) -> None:
    original = SinglePolicy.parse(guardrail.text)
    for what, text in mutants(guardrail.text):
        expected = (guardrail.id, what) not in EQUIVALENT
        assert told_apart(original, SinglePolicy.parse(text)) == expected, what


@cache
def shipped() -> dict[str, Any]:
    """Everything that is shipped, and a tenant whose own policies permit all that they can."""
    return compose(PACKS, '@id("own.anything") permit (principal, action, resource);')


def noticed_by(policy_id: str, changed: list[dict[str, Any]]) -> str | None:
    """The first invariant that the bundle with ``changed`` instead of a policy breaks."""
    entries = [entry for entry in shipped()["policies"] if entry["id"] != policy_id]
    bundle = {**shipped(), "policies": entries + changed}
    (text,) = [entry["text"] for entry in shipped()["policies"] if entry["id"] == policy_id]
    properties = bundle_properties(bundle)
    for environment in concerned(SinglePolicy.parse(text)):
        for property_ in properties:
            if isinstance(prover().check(property_, environment, premise_is_met=True), Refuted):
                return property_.id
    return None


@EACH
def test_without_a_guardrail_an_invariant_is_refuted(guardrail: Policy) -> None:
    assert (noticed_by(guardrail.id, []) is None) == (guardrail.id in UNSPOKEN)


def test_the_bundle_is_still_proved_when_nothing_is_changed() -> None:
    whole = PolicySet.of_bundle("bundle", shipped())
    # Composed once more: the same policies, other objects.
    again = PolicySet.of_bundle("again", compose(PACKS, '@id("own.anything") permit (principal, action, resource);'))
    for environment in prover().environments()[::40]:
        for property_ in (*bundle_properties(shipped()), equivalent(whole, again)):
            assert not isinstance(prover().check(property_, environment), Refuted), property_.id
