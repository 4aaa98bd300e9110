"""No policy text ends the process that reads it, and none makes a decision take long."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from licet_engine.decide import CompiledBundle, EntityUid, Fact, FactSet, Request, decide
from licet_engine.decide.bundle import read_policy
from licet_engine.decide.errors import BundleError
from licet_engine.domain.errors import InvalidInput
from licet_engine.lifecycle.people import first_bundle
from licet_policies import PolicySourceError, compose
from licet_policies.bounds import MAX_POLICY_CHARS
from licet_policies.bundle import MAX_OWN_CHARS, MAX_OWN_STEPS

N = 5000


def policy(condition: str, name: str = "own.x") -> str:
    return f'@id("{name}") forbid (principal, action == Action::"catalogue.read", resource) when {{ {condition} }};'


def nested(n: int) -> dict[str, str]:
    """Conditions that Cedar's parser, reader or evaluator goes ``n`` levels into."""
    return {
        "brackets": "(" * n + "true" + ")" * n,
        "brackets that stay open": "(" * n + "true",
        "negations": "!(" * n + "true" + ")" * n,
        "exclamation marks": "!" * n + "true",
        "minus signs": "-" * n + "1 == 1",
        "minus and brackets": "-(" * n + "1" + ")" * n + " == 1",
        "conditionals": "if true then " * n + "true" + " else true" * n,
        "sets": "[" * n + "1" + "]" * n + " == [1]",
        "records": "{a:" * n + "1" + "}" * n + " == {a:1}",
        "conjunctions": "true" + " && true" * n,
        "disjunctions": "false" + " || false" * n,
        "sums": "1" + " + 1" * n + " == 1",
        "products": "1" + " * 1" * n + " == 1",
        "accessors": "principal" + ".tenant" * n + " == principal",
        "indices": "principal" + '["tenant"]' * n + " == principal",
        "calls": "principal" + ".contains(principal" * n + ")" * n,
        "paths": "principal has a" + ".a" * n,
        "conditions": "true } when { " * n + "true",
        "a comment that ends as Cedar's does": "// \r" + "(" * n + "true" + ")" * n,
        "a string that ends as Cedar's does": '"\\\n" == ' + "(" * n + "true" + ")" * n + ' == "',
    }


@pytest.mark.parametrize("kind", nested(1))
@pytest.mark.parametrize("n", [N, 40_000])
def test_what_overflows_the_stack_of_cedar_is_refused_before_it_gets_there(kind: str, n: int) -> None:
    """Were it not refused, this very process would end."""
    text = policy(nested(n)[kind])
    with pytest.raises(PolicySourceError):
        compose(own=text)
    with pytest.raises(InvalidInput):
        first_bundle([], text)
    with pytest.raises(BundleError):
        read_policy(0, {"id": "own.x", "source": "tenant", "mode": "enforce", "text": text})


def test_an_annotation_list_or_name_without_end_is_refused() -> None:
    for condition in ("A::" * N + '"x" == principal', "[" + "1," * N + "1] == []", '"' + "x" * N + '" == "x"'):
        with pytest.raises(PolicySourceError):
            compose(own=policy(condition))
    with pytest.raises(PolicySourceError, match=f"more than {MAX_POLICY_CHARS} characters"):
        compose(own=policy("true // " + "x" * MAX_POLICY_CHARS))


# Runs apart, with a small stack: what would overflow it fails this test by its exit status, not the whole run.
_HOSTILE = """
import random, resource, sys, threading
from licet_engine.decide.bundle import CompiledBundle, read_policy
from licet_engine.decide.conjuncts import Probes
from licet_engine.decide.errors import BundleError
from licet_engine.decide.source import expression_text
from licet_policies import PolicySourceError, compose
from licet_policies.bounds import MAX_NESTING

WRAPS = ["({})", "!({})", "!{}", "-({}) == 1", "[{}] == [true]", "{{a: {}}} == {{a: true}}", "if {} then true else false",
         "if true then {} else false", "if true then true else {}", "true && {}", "{} && true", "false || {}", "{} || true",
         "{{a: {}}}.a", "{{a: {}}}[\\"a\\"]", "[{}].contains(true)", "{} == true", "true == {}", "[[{}]].containsAll([])"]
LEAVES = ["true", "principal.active", "principal has tenant.region", "context.now_ms + 1 > 0", 'principal in Tenant::"x"']

def work():
    chance, read = random.Random(int(sys.argv[1])), 0
    for turn in range(int(sys.argv[2])):
        few = chance.sample(WRAPS, chance.choice([1, 2, len(WRAPS)]))
        condition = chance.choice(LEAVES)
        for _ in range(chance.choice([5, 15, 25, 35, 60, 100, 200, 400])):
            condition = chance.choice(few).format(condition)
        text = '@id("own.x") forbid (principal, action == Action::"catalogue.read", resource) when { ' + condition + " };"
        try:
            policy = read_policy(0, {"id": "own.x", "source": "tenant", "mode": "enforce", "text": text})
        except BundleError:
            continue
        read += 1
        try:
            bundle = compose(own=text)
        except PolicySourceError as error:
            assert "not valid against the schema" in str(error), error
        else:
            CompiledBundle.compile(bundle)
        for part in policy.ast["conditions"]:
            expression_text(part["body"])
        Probes([policy], {"principal": {"type": "Person", "id": "a"}, "action": {"type": "Action", "id": "catalogue.read"},
                          "resource": {"type": "Tenant", "id": "a"}, "context": "{}"}, ENTITIES, SCHEMA)
    print(read)

from cedarpy import _internal
import json
from licet_policies.schema import load_schema
SCHEMA = _internal.Schema.from_json_str(json.dumps(load_schema()))
ENTITIES = _internal.Entities.from_json_str("[]", SCHEMA)
threading.stack_size(2 << 20)
failures = []
threading.excepthook = lambda told: failures.append(told)
thread = threading.Thread(target=work)
thread.start()
thread.join()
if failures:
    sys.__excepthook__(failures[0].exc_type, failures[0].exc_value, failures[0].exc_traceback)
    sys.exit(1)
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_no_text_within_the_bounds_ends_the_process_or_is_refused_later(seed: int) -> None:
    """A quarter of the usual stack is enough for whatever gets through: read, validated, probed and written again."""
    done = subprocess.run(
        [sys.executable, "-c", _HOSTILE, str(seed), "120"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr[-2000:]}"
    assert int(done.stdout) > 10, "hardly any text was within the bounds, so this shows nothing"


LIKE = '"' + "a" * 512 + '" like "*' + "a" * 62 + 'b"'
HUNDRED = "[" + ",".join(f"[{number}]" for number in range(100)) + "]"


@pytest.mark.parametrize(
    "condition",
    [
        " || ".join([LIKE] * 8),
        f"{HUNDRED}.containsAny({HUNDRED.replace('9', '8')}) && false",
        " + ".join(["1"] * 28) + " == 3",
    ],
)
def test_the_costliest_own_policies_keep_a_decision_short(condition: str) -> None:
    """Measured are some 15 ms; what this mends took seconds."""
    one = policy(condition, "own.x000")
    wanted = min(
        500, MAX_OWN_CHARS // (len(one) + 1), MAX_OWN_STEPS // (condition.count(" ") + condition.count("[") + 4)
    )
    bundle = compose(own="\n".join(policy(condition, f"own.x{number:03d}") for number in range(wanted)))
    compiled = CompiledBundle.compile(bundle, validate=False)
    tenant, person = EntityUid("Tenant", "lakeside"), EntityUid("Person", "lakeside/lena")
    facts = FactSet(
        [
            Fact.from_entity({"uid": tenant.to_json(), "attrs": {"region": "eu", "suspended": False}, "parents": []}),
            Fact.from_entity(
                {"uid": person.to_json(), "attrs": {"tenant": tenant.to_json(), "active": True}, "parents": []}
            ),
        ]
    )
    request = Request(person, "catalogue.read", tenant, {"claimed": [], "now_ms": 1})
    decide(compiled, request, facts)  # The first one parses the slice.
    took_s = []
    for _ in range(5):
        begun_s = time.perf_counter()
        decide(compiled, request, facts)
        took_s.append(time.perf_counter() - begun_s)
    assert min(took_s) < 0.5


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ('"' + "a" * 513 + '" == "a"', "characters in one string"),
        ('"a" like "' + "a" * 65 + '"', "characters in one string"),
        ('"a" like "*a*a*a*a*"', "wildcards"),
        (" || ".join(['"a" like "a*"'] * 9), "uses of `like`"),
        ("[" + "1," * 100 + "1].contains(1)", "members of one set"),
        ("principal has a.a.a.a.a.a.a.a.a", "attributes after one `has`"),
        ("true && " * 40 + "true", "several conditions"),
        ("(true]", "closes nothing"),
    ],
)
def test_what_is_too_costly_is_refused_with_what_to_do(condition: str, message: str) -> None:
    with pytest.raises(PolicySourceError, match=message):
        compose(own=policy(condition))


def test_own_policies_together_are_bounded_and_what_is_said_of_them_too() -> None:
    many = [policy(" && ".join(["true"] * 25), f"own.x{number}") for number in range(MAX_OWN_STEPS // 25)]
    with pytest.raises(PolicySourceError, match=f"at most {MAX_OWN_STEPS} brackets"):
        compose(own="\n".join(many))
    wrong = [policy("principal.gone", f"own.x{number}") for number in range(200)]
    with pytest.raises(PolicySourceError, match="not valid against the schema, 400 finding") as refusal:
        compose(own="\n".join(wrong))
    assert len(str(refusal.value)) < 20_000


def test_whoever_is_stopped_is_decided_by_the_platform_alone() -> None:
    """So a tenant's own policies cost nobody anything once it is suspended, and say nothing either."""
    compiled = CompiledBundle.compile(compose(own=policy("true")))
    tenant, person = EntityUid("Tenant", "lakeside"), EntityUid("Person", "lakeside/lena")

    def reasons(*, suspended: bool, active: bool) -> tuple[str, ...]:
        attrs = {"region": "eu", "suspended": suspended}
        facts = FactSet(
            [
                Fact.from_entity({"uid": tenant.to_json(), "attrs": attrs, "parents": []}),
                Fact.from_entity(
                    {"uid": person.to_json(), "attrs": {"tenant": tenant.to_json(), "active": active}, "parents": []}
                ),
            ]
        )
        request = Request(person, "catalogue.read", tenant, {"claimed": [], "now_ms": 1})
        decision = decide(compiled, request, facts)
        assert not decision.allowed
        return decision.reasons

    assert reasons(suspended=False, active=True) == ("own.x",)
    assert reasons(suspended=True, active=True) == ("guardrail.active.tenant",)
    assert reasons(suspended=False, active=False) == ("guardrail.active.principal",)


def test_a_bundle_that_names_an_unknown_state_is_refused() -> None:
    with pytest.raises(BundleError, match="does not know"):
        CompiledBundle.compile({**compose(), "platform_alone": ["moon-full"]})
