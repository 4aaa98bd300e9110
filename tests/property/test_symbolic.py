"""The symbolic encoding says what Cedar says, of whatever policies, requests and entities there are in our schema."""

from __future__ import annotations

import copy
import json
import os
from functools import cache
from typing import Any

import cedarpy
import cvc5
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st

from licet_engine.workbench.symbolic import Proved, Prover, Refuted, SinglePolicy, UnsupportedError, never_allows
from licet_engine.workbench.symbolic.counterexample import Counterexample, evaluate, extract
from licet_engine.workbench.symbolic.encode import Compiler
from licet_engine.workbench.symbolic.literals import LiteralStore
from licet_engine.workbench.symbolic.logic import Logic
from licet_engine.workbench.symbolic.stores import SymbolicStore
from licet_engine.workbench.symbolic.types import RequestEnvironment
from licet_policies.schema import load_schema

EXAMPLES = int(os.environ.get("LICET_SYMBOLIC_EXAMPLES", "60"))
MANY = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


@cache
def schema_json() -> str:
    """Our own vocabulary, and what it has no use for yet: extensions, tags, an enumeration, a deep hierarchy, groups."""
    value = copy.deepcopy(load_schema())
    (space,) = value.values()
    types, actions = space["entityTypes"], space["actions"]
    types["Role"]["memberOfTypes"] = ["Role"]
    types["Dataset"]["memberOfTypes"] = ["Role", "Dataset"]
    types["Tier"] = {"enum": ["low", "high"]}
    types["Dataset"]["tags"] = {"type": "String"}
    extra = {
        "price": {"type": "Extension", "name": "decimal"},
        "address": {"type": "Extension", "name": "ipaddr", "required": False},
        "made": {"type": "Extension", "name": "datetime"},
        "kept": {"type": "Extension", "name": "duration"},
        "level": {"type": "Entity", "name": "Tier"},
        "levels": {"type": "Set", "element": {"type": "Entity", "name": "Tier"}},
        "above": {"type": "Entity", "name": "Dataset", "required": False},
        "roles": {"type": "Set", "element": {"type": "Entity", "name": "Role"}},
    }
    types["Dataset"]["shape"]["attributes"] |= extra
    actions["reads"] = {}
    actions["dataset.read"]["memberOf"] = [{"id": "reads"}]
    return json.dumps(value)


@cache
def prover() -> Prover:
    return Prover(json.loads(schema_json()))


@cache
def cedar_schema() -> cedarpy.Schema:
    return cedarpy.Schema.from_json_str(schema_json())


BOOLS = (
    "principal.active",
    "resource.held",
    "resource has address",
    "resource has nothing",
    "principal has qualified",
    "resource has above && resource.above.held",
    "resource.above.archived",
    'resource.hasTag("k")',
    'resource.level == Tier::"low"',
    "resource is Dataset",
    "principal is ServiceAccount",
    'principal == Person::"p1"',
    "resource.address.isLoopback()",
    "resource.address.isIpv4()",
    'resource.address.isInRange(ip("10.0.0.0/8"))',
    'resource.price.lessThan(decimal("1.5"))',
    "resource.roles.isEmpty()",
    'action in Action::"reads"',
    "true",
    "resource.nothing",
)
LONGS = ("context.now_ms", "resource.derived", "0", "-1", "3", "9223372036854775807", "resource.kept.toDays()")
STRINGS = ('"us"', '"k"', "resource.restrictions.classification", 'resource.getTag("k")', '"a*b"', '"\U0001f600"')
ENTITIES = (
    "principal",
    "resource",
    "principal.tenant",
    "resource.tenant",
    'Tenant::"t1"',
    'Role::"r1"',
    'Role::"r2"',
    'Dataset::"d2"',
    "resource.above",
    "resource.level",
)
SETS = (
    "resource.restrictions.residency",
    "principal.qualified",
    '["us", "eu"]',
    "[]",
    "resource.roles",
    '[Role::"r1", Role::"r2"]',
    "resource.levels",
    "context.claimed",
    '[{name: "us", value: "k"}]',
    "[resource.derived, 3]",
    "[[3], [context.now_ms]]",
)
MOMENTS = (
    "resource.made",
    'datetime("2024-02-29")',
    "resource.made.offset(resource.kept)",
    "resource.made.toDate()",
    'datetime("1969-12-31T23:59:59.999Z")',
)
SPANS = ("resource.kept", 'duration("1d")', "resource.made.toTime()", "resource.made.durationSince(resource.made)")


def one_of(*choices: tuple[str, ...]) -> st.SearchStrategy[str]:
    return st.sampled_from([choice for group in choices for choice in group])


def comparison(operands: st.SearchStrategy[str], *signs: str) -> st.SearchStrategy[str]:
    return st.tuples(operands, st.sampled_from(signs), operands).map(
        lambda three: f"(({three[0]}) {three[1]} ({three[2]}))"
    )


def arithmetic(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return comparison(inner, "+", "-", "*") | inner.map(lambda one: f"-({one})")


NUMBERS = st.recursive(one_of(LONGS), arithmetic, max_leaves=4)
ANY = one_of(BOOLS, LONGS, STRINGS, ENTITIES, SETS, MOMENTS, SPANS)
CALLS = st.tuples(
    one_of(SETS), st.sampled_from(("contains", "containsAll", "containsAny")), one_of(SETS, STRINGS, ENTITIES, LONGS)
).map(lambda three: f"{three[0]}.{three[1]}({three[2]})")
SIMPLE = st.one_of(
    one_of(BOOLS),
    comparison(NUMBERS, "<", "<=", ">", ">=", "==", "!="),
    comparison(one_of(MOMENTS) | one_of(SPANS), "<", "<=", "=="),
    comparison(ANY, "==", "!="),
    comparison(one_of(ENTITIES), "in", "=="),
    st.tuples(one_of(ENTITIES), one_of(SETS)).map(lambda two: f"({two[0]} in ({two[1]}))"),
    st.tuples(one_of(STRINGS), st.sampled_from(("*", "u*", "a\\**", "*s", "", "p*lic"))).map(
        lambda two: f'({two[0]} like "{two[1]}")'
    ),
    CALLS,
)


def joined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        comparison(inner, "&&", "||", "=="),
        inner.map(lambda one: f"!({one})"),
        st.tuples(inner, inner, inner).map(lambda three: "(if {} then {} else {})".format(*three)),
        st.tuples(inner, ANY, ANY).map(lambda three: "((if {} then {} else {}) == ({}))".format(*three, three[1])),
    )


CONDITIONS = st.recursive(SIMPLE, joined, max_leaves=6)
HEADS = st.sampled_from(
    (
        "principal, action, resource",
        'principal, action == Action::"dataset.read", resource is Dataset',
        'principal is Person in Role::"r1", action in Action::"reads", resource',
        'principal in Role::"r2", action in [Action::"reads", Action::"dataset.hold"], resource in Role::"r1"',
        'principal == Person::"p1", action, resource is Dataset in Dataset::"d2"',
    )
)
POLICIES = st.tuples(HEADS, st.sampled_from(("when", "unless")), CONDITIONS, SIMPLE).map(
    lambda parts: f'@id("p.1") permit ({parts[0]}) {parts[1]} {{ {parts[2]} }} when {{ {parts[3]} || true }};'
)
KINDS = st.sampled_from((("Person", "dataset.read"), ("ServiceAccount", "dataset.read"), ("Person", "dataset.hold")))


def uid(kind: str, name: str) -> dict[str, str]:
    return {"type": kind, "id": name}


def ref(kind: str, name: str) -> dict[str, Any]:
    return {"__entity": uid(kind, name)}


def call(function: str, argument: str) -> dict[str, Any]:
    return {"__extn": {"fn": function, "arg": argument}}


MOMENT_TEXTS = ("2024-02-29", "1969-12-31T12:00:00Z", "0000-01-01", "9999-12-31T23:59:59.999+0100")
ADDRESSES = ("127.0.0.1", "10.1.2.0/24", "10.0.0.0/7", "::1", "ff02::1/64")


@st.composite
def entities(draw: st.DrawFn) -> list[dict[str, Any]]:
    def some(*choices: Any) -> Any:
        return draw(st.sampled_from(choices))

    def few(choices: tuple[Any, ...]) -> list[Any]:
        return [choice for choice in choices if draw(st.booleans())]

    roles = [uid("Role", "r1"), uid("Role", "r2")]
    found = [
        {"uid": uid("Tenant", name), "attrs": {"region": "us", "suspended": False}, "parents": []}
        for name in ("t1", "t2")
    ]
    found += [
        {"uid": roles[0], "attrs": {}, "parents": few((roles[1],))},
        {"uid": roles[1], "attrs": {}, "parents": []},
    ]
    for kind, name in (("Person", "p1"), ("ServiceAccount", "p1")):
        attrs = {"tenant": ref("Tenant", some("t1", "t2")), "active": draw(st.booleans())}
        if kind == "Person" and draw(st.booleans()):
            attrs["qualified"] = few(("us", "k"))
        found.append({"uid": uid(kind, name), "attrs": attrs, "parents": few(tuple(roles))})
    for name in ("d1", "d2"):
        attrs = {
            "tenant": ref("Tenant", some("t1", "t2")),
            "restrictions": {
                "classification": some("us", "public", "a*b", "\U0001f600"),
                "protected": draw(st.booleans()),
                "residency": few(("us", "eu")),
                "uses": [],
                "expires_at_ms": 0,
                "held": False,
            },
            "held": draw(st.booleans()),
            "archived": draw(st.booleans()),
            "derived": some(0, 3, -1, (1 << 63) - 1, -(1 << 63)),
            "price": call("decimal", some("1.5", "-0.0001", "922337203685477.5807")),
            "made": call("datetime", some(*MOMENT_TEXTS)),
            "kept": call("duration", some("1d", "-9223372036854775808ms", "9223372036854775807ms", "0s")),
            "level": ref("Tier", some("low", "high")),
            "levels": few((ref("Tier", "low"), ref("Tier", "high"))),
            "roles": few((ref("Role", "r1"), ref("Role", "r2"))),
        }
        if draw(st.booleans()):
            attrs["address"] = call("ip", some(*ADDRESSES))
        if draw(st.booleans()):
            attrs["above"] = ref("Dataset", some("d2", "d3"))
        parents = few((*roles, uid("Dataset", "d2")) if name == "d1" else tuple(roles))
        found.append(
            {
                "uid": uid("Dataset", name),
                "attrs": attrs,
                "parents": parents,
                "tags": {"k": "us"} if draw(st.booleans()) else {},
            }
        )
    return found


CONTEXTS = st.builds(
    lambda now, claimed: {"now_ms": now, "claimed": claimed},
    st.sampled_from((0, 3, -1, (1 << 63) - 1)),
    st.lists(st.sampled_from(({"name": "us", "value": "k"}, {"name": "eu", "value": "k"})), max_size=2),
)


def environment_of(kind: str, action: str) -> RequestEnvironment:
    return next(
        one
        for one in prover().environments()
        if (one.principal, one.action[1], one.resource) == (kind, action, "Dataset")
    )


@MANY
@given(text=POLICIES, kind=KINDS, context=CONTEXTS, things=entities())
def test_over_literals_a_policy_folds_to_what_cedar_says(
    text: str, kind: tuple[str, str], context: dict[str, Any], things: list[dict[str, Any]]
) -> None:
    policy, schema = SinglePolicy.parse(text), prover().schema
    request = {
        "principal": uid(kind[0], "p1"),
        "action": uid("Action", kind[1]),
        "resource": uid("Dataset", "d1"),
        "context": context,
    }
    logic = Logic(schema, fold=True)
    compiler = Compiler(logic, LiteralStore(logic, environment_of(*kind), request, things))
    encoded = compiler.policy(policy.body)
    answer = evaluate(policy, Counterexample(*(request[part] for part in ("principal", "action", "resource", "context")), tuple(things)), schema)  # fmt: skip
    assert (logic.is_true(encoded.satisfied), logic.is_true(encoded.errs)) == (answer.holds, bool(answer.errors)), text
    assert encoded.satisfied.isBooleanValue()
    assert encoded.errs.isBooleanValue()


@MANY
@given(text=POLICIES, kind=KINDS, wanted=st.sampled_from(("satisfied", "errs", "neither")))
def test_every_model_of_a_policy_is_a_request_of_which_cedar_says_the_same(
    text: str, kind: tuple[str, str], wanted: str
) -> None:
    policy, schema, environment = SinglePolicy.parse(text), prover().schema, environment_of(*kind)
    logic = Logic(schema)
    store = SymbolicStore(logic, environment)
    try:
        encoded = Compiler(logic, store).policy(policy.body)
    except UnsupportedError:
        reject()
    goals = {
        "satisfied": encoded.satisfied,
        "errs": encoded.errs,
        "neither": logic.not_(logic.or_(encoded.satisfied, encoded.errs)),
    }
    solver = cvc5.Solver(logic.tm)
    solver.setOption("produce-models", "true")
    solver.setOption("tlimit-per", "5000")
    solver.setLogic("ALL")
    for term in (*store.enforce(), goals[wanted]):
        solver.assertFormula(term)
    assume(solver.checkSat().isSat())
    found = extract(logic, store, solver, environment)
    answer = evaluate(policy, found, schema)
    assert (answer.holds, bool(answer.errors)) == (wanted == "satisfied", wanted == "errs"), (text, found.to_json())


@MANY
@given(text=POLICIES, kind=KINDS, context=CONTEXTS, things=entities())
def test_what_is_proved_never_to_hold_does_not_hold_of_any_request_drawn(
    text: str, kind: tuple[str, str], context: dict[str, Any], things: list[dict[str, Any]]
) -> None:
    policy, schema = SinglePolicy.parse(text), prover().schema
    outcome = prover().check(never_allows(policy), environment_of(*kind))
    complete = [*things, {"uid": uid("Dataset", "d3"), "attrs": things[-1]["attrs"], "parents": []}]
    request = (uid(kind[0], "p1"), uid("Action", kind[1]), uid("Dataset", "d1"), context)
    holds = evaluate(policy, Counterexample(*request, tuple(complete)), schema).holds
    if isinstance(outcome, Proved):
        assert not holds, text
    elif isinstance(outcome, Refuted):
        assert outcome.counterexample.left is not None
        assert outcome.counterexample.left.holds
    else:
        assert not outcome.internal, outcome
