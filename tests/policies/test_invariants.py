"""The invariants that are shipped: well formed, and proved of what is shipped, whatever a tenant adds to it."""

from __future__ import annotations

import re

import cedarpy
import pytest
from pack_choices import PARAMETERS, every_pack

from licet_engine.workbench.symbolic import (
    PolicySet,
    Proved,
    Prover,
    Refuted,
    SinglePolicy,
    bundle_properties,
    prove,
    read_invariants,
)
from licet_policies import (
    PackChoice,
    bundle_invariants,
    compose,
    guardrails,
    load_schema,
    pack_names,
    platform_invariants,
)

REGIONS = PackChoice("residency", "enforce", {"regions": ["us"]})
SLIP = """@id("own.slip") permit (principal, action == Action::"dataset.read", resource is Dataset)
when { resource.restrictions.expires_at_ms - context.now_ms > 0 };"""
# Without a freeze, what is promised of one would speak of no request.
FROZEN = PackChoice("change-management", "enforce", {"freeze_from_ms": 1_000, "freeze_until_ms": 2_000})
EVERY_KIND = len(Prover(load_schema()).environments())
EVERYTHING = compose([FROZEN if choice.name == FROZEN.name else choice for choice in every_pack()])


def test_each_is_valid_and_bears_one_sentence() -> None:
    shipped = bundle_invariants(EVERYTHING)
    result = cedarpy.validate_policies("\n".join(policy.text for policy in shipped), load_schema())
    assert result.validation_passed, [str(error) for error in result.errors]
    for policy in shipped:
        assert re.fullmatch(r"(?:[a-z0-9-]+\.)?invariant\.[a-z0-9.-]+", policy.id)
        assert len({"never", "always"} & set(policy.annotations)) == 1
        assert "claimed" not in policy.text
        assert "parameters" not in policy.text
    assert len(read_invariants(shipped)) == len(shipped)


def test_every_pack_promises_something() -> None:
    for name in pack_names():
        alone = compose([PackChoice(name, "enforce", PARAMETERS.get(name, {}))])
        assert len(bundle_invariants(alone)) > len(platform_invariants())


def test_a_pack_in_observe_mode_promises_nothing() -> None:
    observed = compose([PackChoice("sr-11-7", "observe")])
    assert bundle_invariants(observed) == platform_invariants()


def test_everything_that_is_shipped_is_proved_and_nothing_vacuously() -> None:
    properties = bundle_properties(EVERYTHING)
    outcomes = dict(zip((one.id for one in properties), prove(load_schema(), properties), strict=True))
    assert {name: outcome for name, outcome in outcomes.items() if outcome != Proved(EVERY_KIND)} == {}


def test_whatever_a_tenant_adds_nothing_that_must_never_be_is_allowed() -> None:
    # The widest that any bundle can be: the guardrails, and a permit of everything.
    widest = SinglePolicy.parse('@id("own.anything") permit (principal, action, resource);')
    bundle = PolicySet("widest", (*(SinglePolicy.parse(policy.text) for policy in guardrails()), widest))
    never = [one.property(bundle) for one in read_invariants(platform_invariants()) if one.kind == "never"]
    assert {
        one.id: out for one, out in zip(never, prove(load_schema(), never), strict=True) if out != Proved(EVERY_KIND)
    } == {}


@pytest.mark.parametrize(
    ("own", "broken"),
    [
        (
            SLIP,
            "bundle.errors",
        ),
        (
            '@id("own.stop") forbid (principal, action == Action::"dataset.hold", resource) when { resource is Dataset };',
            None,
        ),
    ],
)
def test_a_tenants_own_policy_is_found_out_where_it_can_err_and_cannot_close_a_valve(
    own: str, broken: str | None
) -> None:
    properties = bundle_properties(compose([], own))
    outcomes = zip(properties, prove(load_schema(), properties), strict=True)
    refuted = [one.id for one, outcome in outcomes if isinstance(outcome, Refuted)]
    assert refuted == ([broken] if broken else [])
