"""Rules on what a policy says, as far as its text alone tells; what needs a proof is told by other sources."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from licet_engine.decide.conjuncts import clauses
from licet_engine.workbench.rules import Context, Found, Rule
from licet_policies.bundle import safety_valve_actions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from licet_engine.decide.source import Expression
    from licet_engine.workbench.checked import CheckedPolicy
    from licet_engine.workbench.spans import Span

_TWO: Final = 2


def _part_span(policy: CheckedPolicy, clause: int, part: int) -> Span:
    return policy.written.span(policy.written.clauses[clause].parts[part])


def _slot_span(policy: CheckedPolicy, slot: str) -> Span:
    return policy.written.span(policy.written.slots.get(slot))


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _parts(policy: CheckedPolicy) -> Iterator[tuple[int, int, Expression]]:
    for i, clause in enumerate(clauses(policy.ast)):
        for j, part in enumerate(clause.parts):
            yield i, j, part


def _reads(expression: Any) -> bool:
    """Whether anything of the request is read."""
    pending = [expression]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if "Var" in value:
                return True
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
    return False


def _open_permit(context: Context) -> Iterator[Found]:
    for policy in context.parsed:
        if policy.effect == "permit" and policy.ast["action"]["op"] == "All":
            yield Found(
                _slot_span(policy, "action"),
                "this permits every action there is or will be: name those it is about",
                policy,
            )


def _unscoped_resource(context: Context) -> Iterator[Found]:
    for policy in context.parsed:
        if policy.ast["resource"]["op"] == "All":
            yield Found(
                _slot_span(policy, "resource"),
                "this speaks on resources of every type: name the type, such as `resource is ModelVersion`",
                policy,
            )


def _repeated_scope(context: Context) -> Iterator[Found]:
    for policy in context.parsed:
        entities = [(entity["type"], entity["id"]) for entity in policy.ast["action"].get("entities", ())]
        for kind, name in sorted({entity for entity in entities if entities.count(entity) > 1}):
            yield Found(_slot_span(policy, "action"), f'{kind}::"{name}" stands here twice: name it once', policy)


def _repeated_condition(context: Context) -> Iterator[Found]:
    for policy in context.parsed:
        stands: dict[str, Span] = {}
        scope = set(_scope_conditions(policy.ast))
        for i, j, part in _parts(policy):
            kind = clauses(policy.ast)[i].kind
            key, where = _key([kind, part]), _part_span(policy, i, j)
            if kind == "when" and _key(part) in scope:
                yield Found(where, "the scope says so already: take it away here", policy)
            elif key in stands and stands[key] != where:
                yield Found(where, f"this stands at {stands[key]} already: take one of the two away", policy)
            stands.setdefault(key, where)


def _scope_conditions(ast: Mapping[str, Any]) -> Iterator[str]:
    """What each constraint of a scope would be as a condition."""
    for slot in ("principal", "action", "resource"):
        constraint = ast[slot]
        variable = {"Var": slot}
        if constraint["op"] == "is":
            yield _key({"is": {"left": variable, "entity_type": constraint["entity_type"]}})
        elif "entity" in constraint:
            yield _key({constraint["op"]: {"left": variable, "right": {"Value": {"__entity": constraint["entity"]}}}})


def _constant_condition(context: Context) -> Iterator[Found]:
    for policy in context.parsed:
        for i, j, part in _parts(policy):
            if not _reads(part):
                yield Found(
                    _part_span(policy, i, j),
                    "this reads nothing of the request, so it is always the same: take it away",
                    policy,
                )


def _duplicate_policy(context: Context) -> Iterator[Found]:
    first: dict[str, CheckedPolicy] = {}
    for policy in context.parsed:
        key = _key({name: value for name, value in policy.ast.items() if name != "annotations"})
        if key in first:
            yield Found(
                policy.written.span(),
                f"this says what the policy at {first[key].written.span()} says: take one of the two away",
                policy,
            )
        first.setdefault(key, policy)


def _several_rules(context: Context) -> Iterator[Found]:
    for policy in context.parsed:
        for i, clause in enumerate(clauses(policy.ast)):
            if policy.effect == "forbid" and clause.kind == "when" and clause.joiner == "or":
                yield Found(
                    policy.written.span(policy.written.clauses[i].where),
                    "these are several rules in one forbid, and a refusal could not say which: write one forbid for each",
                    policy,
                )


def _safety_valve(context: Context) -> Iterator[Found]:
    valves = safety_valve_actions()
    for policy in context.parsed:
        scope = policy.ast["action"]
        entities = scope["entities"] if "entities" in scope else [scope["entity"]] if "entity" in scope else []
        for name in sorted({entity["id"] for entity in entities if entity["type"] == "Action"} & valves):
            yield Found(
                _slot_span(policy, "action"),
                f"{name} is a safety valve: the platform's policies alone decide it, and this one is not asked; leave it out",
                policy,
            )


def _claimed_fact(context: Context) -> Iterator[Found]:
    for policy in context.parsed:
        if policy.effect != "permit":
            continue
        for i, j, part in _parts(policy):
            if _key({"left": {"Var": "context"}, "attr": "claimed"}) in _key(part):
                yield Found(
                    _part_span(policy, i, j),
                    "context.claimed is what the caller merely asserts: whoever asks could permit themselves; rest it on a fact",
                    policy,
                )


RULES: Final = (
    Rule("open-permit", "error", "A permit names its actions", _open_permit),
    Rule("unscoped-resource", "warning", "A policy names the type of its resource", _unscoped_resource),
    Rule("repeated-scope", "warning", "A scope names each action once", _repeated_scope),
    Rule("repeated-condition", "warning", "A condition stands in a policy once", _repeated_condition),
    Rule("constant-condition", "warning", "A condition reads something of the request", _constant_condition),
    Rule("duplicate-policy", "warning", "No two policies say the same", _duplicate_policy),
    Rule("several-rules", "warning", "A forbid is one rule", _several_rules),
    Rule("safety-valve", "warning", "A policy names no action on which it is not asked", _safety_valve),
    Rule("claimed-fact", "error", "A permit rests on facts, not on what its asker claims", _claimed_fact),
)
