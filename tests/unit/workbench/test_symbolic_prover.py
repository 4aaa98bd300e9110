"""What is proved, what is refuted and how, and what is neither."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from licet_attestations import canonical
from licet_engine.workbench.symbolic import (
    LIMITS,
    Counterexample,
    InvariantError,
    Outcome,
    PolicySet,
    Progress,
    Property,
    Proved,
    Prover,
    Refuted,
    SinglePolicy,
    SymbolicError,
    Unknown,
    always_allows,
    disjoint,
    equivalent,
    implies,
    never_allows,
    never_errors,
    prove,
    read_invariants,
)
from licet_engine.workbench.symbolic.counterexample import evaluate, has_wide_number
from licet_policies.errors import PolicySourceError

SCHEMA: dict[str, Any] = {
    "": {
        "entityTypes": {
            "Group": {"memberOfTypes": ["Group"]},
            "User": {
                "memberOfTypes": ["Group"],
                "shape": {
                    "type": "Record",
                    "attributes": {
                        "age": {"type": "Long"},
                        "boss": {"type": "Entity", "name": "User"},
                        "nick": {"type": "String", "required": False},
                        "home": {"type": "Extension", "name": "ipaddr"},
                        "joined": {"type": "Extension", "name": "datetime"},
                        "colour": {"type": "Entity", "name": "Colour"},
                    },
                },
                "tags": {"type": "Set", "element": {"type": "String"}},
            },
            "Colour": {"enum": ["red", "blue"]},
            "Doc": {
                "memberOfTypes": ["Group"],
                "shape": {
                    "type": "Record",
                    "attributes": {"groups": {"type": "Set", "element": {"type": "Entity", "name": "Group"}}},
                },
            },
        },
        "actions": {
            "read": {"appliesTo": {"principalTypes": ["User"], "resourceTypes": ["Doc"]}, "memberOf": [{"id": "use"}]},
            "write": {
                "appliesTo": {
                    "principalTypes": ["User"],
                    "resourceTypes": ["Doc"],
                    "context": {
                        "type": "Record",
                        "attributes": {
                            "size": {"type": "Long"},
                            "parts": {
                                "type": "Set",
                                "element": {
                                    "type": "Record",
                                    "attributes": {
                                        "n": {"type": "Long"},
                                        "note": {"type": "String", "required": False},
                                    },
                                },
                            },
                        },
                    },
                }
            },
            "use": {},
        },
    }
}


@cache
def prover() -> Prover:
    return Prover(SCHEMA)


def policy(
    condition: str, name: str = "p.1", head: str = "principal, action, resource", effect: str = "permit"
) -> SinglePolicy:
    return SinglePolicy.parse(f"{effect} ({head}) when {{ {condition} }};", name)


def of(property_: Property) -> Outcome:
    (outcome,) = prover().prove([property_])
    return outcome


def refuted(property_: Property) -> Counterexample:
    outcome = of(property_)
    assert isinstance(outcome, Refuted), outcome
    assert outcome.replayed
    return outcome.counterexample


WRITE = 'principal, action == Action::"write", resource'


@pytest.mark.parametrize(
    "condition",
    [
        "principal.age + 1 == principal.age + 1 || true",
        "context.size * 2 > 0 && false",
        "principal.nick == principal.nick",
        'principal.getTag("a").contains("b")',
        "-principal.age == 0",
        "principal.joined.toDate() == principal.joined",
        "principal.boss.boss.nick == principal.nick",
    ],
)
def test_what_can_err_is_found_to_err(condition: str) -> None:
    found = refuted(
        never_errors(policy(condition, head=WRITE if "context" in condition else "principal, action, resource"))
    )
    assert found.left is not None
    assert found.left.errors


@pytest.mark.parametrize(
    "condition",
    [
        "principal.age > 0 && principal.age - 1 >= 0",
        'principal has nick && principal.nick like "a*"',
        'principal.hasTag("a") && principal.getTag("a").isEmpty()',
        "principal.boss.boss.colour == principal.colour",
        'principal.home.isInRange(ip("10.0.0.0/8")) == false',
        'principal.joined.toTime() >= duration("0ms")',
    ],
)
def test_what_is_guarded_never_errs(condition: str) -> None:
    assert of(never_errors(policy(condition))) == Proved(2)


@pytest.mark.parametrize(
    ("condition", "head"),
    [
        (
            'principal in Group::"a" && Group::"a" in Group::"b" && !(principal in Group::"b")',
            "principal, action, resource",
        ),
        ('Group::"a" in Group::"b" && Group::"b" in Group::"a"', "principal, action, resource"),
        ("resource.groups.contains(principal)", "principal, action, resource"),
        ('resource.groups.contains(Group::"a") && !(Group::"a" in resource.groups)', "principal, action, resource"),
        ("principal.age < 0 && principal.age > -1", "principal, action, resource"),
        ('principal.colour != Colour::"red" && principal.colour != Colour::"blue"', "principal, action, resource"),
        ("principal.home.isLoopback() && principal.home.isMulticast()", "principal, action, resource"),
        ("principal.joined.toDate() > principal.joined", "principal, action, resource"),
        ('action in Action::"use" && context has size', "principal, action, resource"),
        ("principal is Doc", "principal, action, resource"),
        ('"abc" like "a*d"', "principal, action, resource"),
        ("context.parts.contains({n: 1}) && context.parts.isEmpty()", WRITE),
    ],
)
def test_what_no_request_meets_is_proved_never_to_hold(condition: str, head: str) -> None:
    assert of(never_allows(policy(condition, head=head))) == Proved(2)


@pytest.mark.parametrize(
    ("condition", "head"),
    [
        (
            'principal in Group::"a" && Group::"a" in Group::"b" && principal in Group::"b"',
            "principal, action, resource",
        ),
        ('principal in resource.groups && !resource.groups.contains(Group::"a")', "principal, action, resource"),
        ("principal.boss.boss == principal && principal.boss != principal", "principal, action, resource"),
        (
            'principal.home.isInRange(ip("10.0.0.0/8")) && principal.home.isInRange(ip("10.1.0.0/16"))',
            "principal, action, resource",
        ),
        ('principal.home == ip("::1")', "principal, action, resource"),
        (
            'principal.joined < datetime("1066-10-14") && principal.joined.toDate() == principal.joined',
            "principal, action, resource",
        ),
        ('principal.colour == Colour::"blue"', "principal, action, resource"),
        ('principal.hasTag("a") && principal.getTag("a").containsAll(["b", "c"])', "principal, action, resource"),
        ('principal has nick && principal.nick like "*\\U0001f600*b"', "principal, action, resource"),
        ("context.size == -9223372036854775808", WRITE),
        ('context.parts.containsAny([{n: 1, note: "x"}, {n: 2}]) && !context.parts.contains({n: 2})', WRITE),
        ("principal.age * principal.age == 1522756 && principal.age < 0", "principal, action, resource"),
    ],
)
def test_what_some_request_meets_is_shown_with_it(condition: str, head: str) -> None:
    condition = condition.replace("\\U0001f600", "\U0001f600")
    found = refuted(never_allows(policy(condition, head=head)))
    assert found.left is not None
    assert found.left.holds


@pytest.mark.parametrize(
    ("condition", "head"),
    [
        ("context.size > 9007199254740989", WRITE),
        ("principal.age < -9007199254740989 && principal.boss.age > 9007199254740989", "principal, action, resource"),
        # Without the bound the solver gives numbers beyond it for each of these.
        ("principal.age < 0", "principal, action, resource"),
        ("!(principal.age > 100)", WRITE),
        (
            "principal.boss.boss.age > principal.boss.age && principal.boss.age > principal.age",
            "principal, action, resource",
        ),
    ],
)
def test_a_counterexample_that_can_be_recorded_is_shown_where_there_is_one(condition: str, head: str) -> None:
    found = refuted(never_allows(policy(condition, head=head)))
    assert found.left is not None
    assert found.left.holds
    assert not has_wide_number(found)
    canonical.dumps(found.to_json())


@pytest.mark.parametrize("bound", ["== 9007199254740992", "> 9223372036854775000", "< -9223372036854775000"])
def test_what_only_wider_numbers_refute_is_refuted_still(bound: str) -> None:
    found = refuted(never_allows(policy(f"context.size {bound}", head=WRITE)))
    assert has_wide_number(found)
    assert found.left is not None
    assert found.left.holds


def test_a_counterexample_can_be_asked_again_of_cedar() -> None:
    subject = policy('principal in Group::"a" && principal.boss.age > 100')
    found = refuted(never_allows(subject))
    shown = found.to_json()
    again = Counterexample(
        shown["principal"], shown["action"], shown["resource"], shown["context"], tuple(shown["entities"])
    )
    assert evaluate(subject, again, prover().schema).holds
    boss = next(one for one in shown["entities"] if one["uid"] == shown["principal"])["attrs"]["boss"]["__entity"]
    assert {"type": "Group", "id": "a"} in [one["uid"] for one in shown["entities"]]
    assert next(one for one in shown["entities"] if one["uid"] == boss)["attrs"]["age"] > 100


def sets(*policies: SinglePolicy, semantics: Any = "licet", name: str = "set") -> PolicySet:
    return PolicySet(name, policies, semantics)


def test_a_forbid_outweighs_a_permit_and_nothing_is_allowed_without_one() -> None:
    permit, forbid = policy("true"), policy("principal.age < 18", "p.2", effect="forbid")
    assert of(never_allows(sets(forbid))) == Proved(2)
    assert of(always_allows(sets(permit))) == Proved(2)
    assert of(disjoint(policy("principal.age == 3", "q.1"), sets(permit, forbid))) == Proved(2)
    assert refuted(always_allows(sets(permit, forbid))).left is not None


def test_a_policy_that_errs_is_skipped_by_cedar_and_denies_in_licet() -> None:
    permit, errs = policy("true"), policy('principal.nick == "x" && false', "p.2", effect="forbid")
    assert of(always_allows(sets(permit, errs, semantics="cedar"))) == Proved(2)
    found = refuted(always_allows(sets(permit, errs)))
    assert found.left is not None
    assert found.left.errors
    assert isinstance(of(equivalent(sets(permit, errs), sets(permit, errs, semantics="cedar"))), Refuted)


def test_what_is_stricter_implies_what_is_looser_and_not_the_other_way() -> None:
    looser, stricter = policy("principal.age > 0", "p.1"), policy("principal.age > 5", "p.1")
    assert of(implies(sets(stricter), sets(looser))) == Proved(2)
    found = refuted(implies(sets(looser), sets(stricter)))
    assert found.left is not None
    assert found.right is not None
    assert (found.left.holds, found.right.holds) == (True, False)
    assert of(equivalent(sets(looser), sets(policy("!(principal.age <= 0)")))) == Proved(2)


def test_a_premise_that_no_request_meets_is_said_to_be_vacuous() -> None:
    assert of(disjoint(policy("principal.age > principal.age", "q.1"), policy("true"))) == Proved(2, vacuous=True)
    assert of(disjoint(policy("principal.age > 1", "q.1"), policy("principal.age < 1"))) == Proved(2)


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("(if principal.age > 1 then 1 else principal.joined) == 1", "depends on the request"),
        ('principal has nick && decimal(principal.nick) == decimal("1.0")', "depends on the request"),
    ],
)
def test_what_has_no_encoding_is_not_proved(condition: str, reason: str) -> None:
    outcome = of(never_allows(policy(f"({condition}) && false && true", name="p.odd")))
    assert isinstance(outcome, Unknown)
    assert reason in outcome.reason
    assert "p.odd" in outcome.reason
    assert not outcome.internal


def test_a_question_that_takes_too_long_is_not_proved() -> None:
    # Two factors of a product of two primes: the bits of a multiplication are what solvers are slowest at.
    hard = policy(
        "context.size > 1 && principal.age > 1 && context.size * principal.age == 4611685975477714963"
        " && context.size * context.size != principal.age * principal.age",
        head=WRITE,
    )
    (outcome,) = prove(SCHEMA, [never_allows(hard)], time_limit_s=0.2)
    assert isinstance(outcome, Unknown)


def test_one_environment_that_is_not_known_is_enough_to_fail() -> None:
    odd = policy("(if context.size > 1 then 1 else principal) == 1", head=WRITE)
    outcome = of(implies(odd, odd))
    assert isinstance(outcome, Unknown)
    assert outcome.environment is not None
    assert outcome.environment.action == ("Action", "write")


def test_a_schema_that_allows_no_request_proves_nothing() -> None:
    nothing = {"": {"entityTypes": {"User": {}}, "actions": {}}}
    assert isinstance(prove(nothing, [never_allows(policy("false"))])[0], Unknown)


def test_who_is_who_can_be_told_in_a_counterexample() -> None:
    found = refuted(never_allows(policy('principal.boss != principal && principal in Group::"staff"')))
    boss = next(one for one in found.entities if one["uid"] == found.principal)["attrs"]["boss"]["__entity"]
    assert {found.principal["id"], boss["id"]} == {"user-1", "user-2"}
    assert {"type": "Group", "id": "staff"} in [one["uid"] for one in found.entities]


def test_progress_is_told_of_each_kind_of_request() -> None:
    told: list[Progress] = []
    prove(SCHEMA, [never_allows(policy("false"))], progress=told.append)
    assert [(one.done, one.total) for one in told] == [(1, 2), (2, 2)]


def test_what_is_no_single_policy_is_refused() -> None:
    for text in ("permit (principal, action, resource)", "permit (principal == ?principal, action, resource);", ""):
        with pytest.raises(SymbolicError):
            SinglePolicy.parse(text, "p.1")
    with pytest.raises(SymbolicError, match="no @id"):
        SinglePolicy.parse("permit (principal, action, resource);")
    with pytest.raises(SymbolicError, match="occur twice"):
        sets(policy("true"), policy("false"))
    with pytest.raises(SymbolicError, match="takes"):
        Property("implies", policy("true"))


def test_invariants_are_read_with_their_sentences() -> None:
    never, always = read_invariants(
        '@id("a.b") @never("A minor writes") permit (principal, action == Action::"write", resource) when { principal.age < 18 };'
        '@id("a.c") @always("Everybody reads") permit (principal, action == Action::"read", resource);'
    )
    bundle = sets(policy('principal.age >= 18 || action == Action::"read"'))
    assert (never.kind, never.title, always.kind) == ("never", "A minor writes", "always")
    assert [of(one.property(bundle)) for one in (never, always)] == [Proved(2), Proved(2)]
    assert isinstance(of(never.property(sets(policy("true")))), Refuted)
    assert isinstance(of(always.property(sets(policy("principal.age > 1")))), Refuted)


@pytest.mark.parametrize(
    "text",
    [
        '@id("a.b") @never("x") forbid (principal, action, resource);',
        '@id("a.b") @never permit (principal, action, resource);',
        '@id("a.b") @never(" ") permit (principal, action, resource);',
        '@id("a.b") permit (principal, action, resource);',
        '@id("a.b") @never("x") @always("y") permit (principal, action, resource);',
        '@id("a.b") @never("x") permit (principal, action, resource); @id("a.b") @never("x") permit (principal, action, resource);',
    ],
)
def test_an_invariant_that_does_not_say_what_it_means_is_refused(text: str) -> None:
    with pytest.raises(InvariantError):
        read_invariants(text)
    with pytest.raises(PolicySourceError):
        read_invariants('@never("x") permit (principal, action, resource);')


def test_the_limits_are_sentences() -> None:
    assert all(limit.endswith(".") and limit[0].isupper() for limit in LIMITS)
