"""Why it was denied, with the values, and what would turn it into a yes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from licet_engine.decide import (
    Change,
    CompiledBundle,
    EntityUid,
    FactError,
    Obtainable,
    Request,
    decide,
    explain,
    path_to_yes,
)
from licet_engine.decide.path import supposed
from licet_policies.bundle import compose
from licet_policies.packs import PackChoice

# Test files are imported each by itself; the world they share stands beside them.
sys.path.append(str(Path(__file__).parent))
from decide_world import ANA, MODEL, NOW_MS, PERMIT, RUN, compiled, facts, policy, promote  # The line above finds it.

LAUNCH = Request(ANA, "training.launch", RUN, {"now_ms": NOW_MS, "claimed": []})


@pytest.fixture(scope="module")
def ours() -> CompiledBundle:
    return CompiledBundle.compile(compose([PackChoice("sr-11-7")]))


def approval(track: str, *, readable: bool = True) -> Obtainable:
    given = {"binding": "b1", "by": [], "expires_at_ms": NOW_MS + 1}
    return Obtainable(
        f"approval:{track}",
        f"have {track} approve it",
        (Change("set", ("approvals", track), given, MODEL),),
        readable=readable,
    )


def test_residency_is_explained_by_the_part_that_failed_and_its_values(ours: CompiledBundle) -> None:
    told = explain(ours, LAUNCH, facts())
    assert told.kind == "forbidden"
    (report,) = told.deciding
    assert report.id == "guardrail.residency.training"
    (part,) = report.failing
    assert part.source == "resource.restrictions.residency.contains(resource.region)"
    assert (part.outcome, [str(value) for value in part.values]) == (
        "false",
        ['resource.restrictions.residency = ["us"]', 'resource.region = "eu"'],
    )
    assert report.requires == ("region:allowed",)
    assert report.annotations["advice"]
    assert json.loads(json.dumps(told.to_json()))["deciding"][0]["failing"][0]["outcome"] == "false"


def test_parts_behind_the_one_that_stopped_cedar_are_not_reached() -> None:
    rule = (
        "forbid (principal, action, resource is ModelVersion) when { principal.active && resource.signed }"
        ' unless { resource.checks has bias && resource.checks.bias.passed && resource.tier == "high" };'
    )
    ready = compiled(PERMIT, policy("f.bias", rule, notes='@title("Bias") @requires("check:bias, check:drift")'))
    (report,) = explain(ready, promote(), facts()).deciding
    when, unless = report.clauses
    assert [part.outcome for part in when.parts] == ["true", "true"]
    assert [part.outcome for part in unless.parts] == ["false", "not-reached", "not-reached"]
    assert [str(value) for value in unless.parts[0].values] == ["resource.checks.bias is absent"]
    assert (when.outcome, unless.outcome, report.outcome, report.missing) == ("true", "false", "true", 0)
    assert report.requires == ("check:bias", "check:drift")


def test_an_error_is_explained_where_it_happened() -> None:
    rule = "forbid (principal, action, resource) when { principal.active && context.now_ms * 9223372036854775807 > 0 };"
    told = explain(compiled(PERMIT, policy("f.errs", rule)), promote(), facts())
    assert told.kind == "error"
    (report,) = told.deciding
    active, errs = report.clauses[0].parts
    assert (active.outcome, errs.outcome, report.outcome) == ("true", "error", "error")
    assert "overflow" in str(errs.message)


def test_where_every_permit_is_for_other_roles_it_is_told_that_no_role_permits() -> None:
    other = policy("p.role", 'permit (principal in Role::"compliance", action == Action::"model.promote", resource);')
    elsewhere = policy("p.other", 'permit (principal, action == Action::"model.read", resource);')
    refused = policy("f.no", "forbid (principal, action, resource);")
    for rules in ((other, elsewhere), (other, refused), (elsewhere,)):
        told = explain(compiled(*rules), promote(), facts())
        assert not told.role_permits
        assert told.to_json()["role_permits"] is False
    assert explain(compiled(other, PERMIT), promote(), facts()).role_permits


def test_a_default_deny_names_the_three_nearest_permits_and_what_each_lacks() -> None:
    head = 'permit (principal in Role::"{}", action == Action::"model.promote", resource is {})'
    near = [
        policy(
            "p.far",
            head.format("auditor", "Elsewhere") + " when { resource.tenant == principal.tenant && !principal.active };",
        ),
        policy("p.role", head.format("compliance", "ModelVersion") + ";"),
        policy(
            "p.held", head.format("data-scientist", "ModelVersion") + " when { principal.active && resource.held };"
        ),
        policy("p.both", head.format("auditor", "ModelVersion") + " when { resource.held };"),
        policy("p.other", 'permit (principal, action == Action::"model.read", resource);'),
        policy("f.no", "forbid (principal, action, resource) unless { principal.active };"),
    ]
    told = explain(compiled(*near), promote(), facts())
    assert told.kind == "no-permit"
    assert [(report.id, report.missing) for report in told.nearest] == [("p.held", 1), ("p.role", 1), ("p.both", 2)]
    assert told.role_permits
    held, role, _ = told.nearest
    assert [str(part) for part in held.failing] == ["`resource.held` is false (resource.held = false)"]
    assert [str(value) for value in role.failing[0].values] == [
        'principal = Person::"northbank/ana"',
        'what principal is in = [Role::"data-scientist"]',
    ]


def test_an_allow_an_observation_and_an_invalid_request_are_explained_too() -> None:
    watching = policy("f.seen", "forbid (principal, action, resource) when { principal.active };", mode="observe")
    ready = compiled(PERMIT, watching)
    told = explain(ready, promote(), facts())
    assert (told.kind, [r.id for r in told.deciding], [r.id for r in told.observed]) == (
        "allowed",
        ["p.all"],
        ["f.seen"],
    )
    wrong = explain(ready, promote(stage=1), facts())
    assert wrong.kind == "invalid"
    assert "context" in str(wrong.message)


def test_what_an_explanation_says_is_what_was_decided(ours: CompiledBundle) -> None:
    told = explain(ours, promote(), facts(roles=("pipeline",)))
    assert told.decision == decide(ours, promote(), facts(roles=("pipeline",)))
    assert len(told.deciding) > 2
    assert all(report.outcome == "true" for report in told.deciding)
    assert {"check:bias", "approval:model-risk"} <= set(told.requires)


PROMOTE_HIGH = policy(
    "f.approvals",
    'forbid (principal, action == Action::"model.promote", resource is ModelVersion) unless {'
    ' resource.approvals has "model-risk" && resource.approvals["model-risk"].binding == resource.binding &&'
    " resource.approvals has compliance && resource.approvals.compliance.binding == resource.binding };",
)


def test_the_path_to_yes_is_minimal_and_really_leads_there() -> None:
    ready = compiled(PERMIT, PROMOTE_HIGH)
    offers = [approval(track) for track in ("legal", "model-risk", "engineering", "compliance", "security")]
    path = path_to_yes(ready, promote(), facts(), offers)
    assert (path.possible, path.minimal, [step.name for step in path.steps]) == (
        True,
        True,
        ["approval:model-risk", "approval:compliance"],
    )
    assert decide(ready, *supposed(promote(), facts(), path.steps)).allowed
    for step in path.steps:
        assert not decide(ready, *supposed(promote(), facts(), [s for s in path.steps if s is not step])).allowed
    assert "patch" not in json.dumps(path.to_json())


def test_where_even_all_would_not_do_it_says_so_and_what_still_denies() -> None:
    rule = 'forbid (principal, action == Action::"model.promote", resource is ModelVersion) when { resource.held };'
    ready = compiled(PERMIT, PROMOTE_HIGH, policy("f.held", rule))
    path = path_to_yes(ready, promote(), facts(model={"held": True}), [approval("model-risk"), approval("compliance")])
    assert (path.possible, path.exhausted, path.steps) == (False, True, ())
    assert path.still is not None
    assert path.still.reasons == ("f.held",)
    assert path.message.startswith("No declared fact would do")


def test_what_may_not_be_read_is_neither_shown_nor_counted_on() -> None:
    offers = [approval("model-risk"), approval("compliance", readable=False)]
    path = path_to_yes(compiled(PERMIT, PROMOTE_HIGH), promote(), facts(), offers)
    assert not path.possible
    assert "compliance" not in path.message
    assert path.to_json()["steps"] == []
    # The very same answer as if it were not there.
    assert path == path_to_yes(compiled(PERMIT, PROMOTE_HIGH), promote(), facts(), offers[:1])


def test_what_is_permitted_already_needs_nothing() -> None:
    path = path_to_yes(compiled(PERMIT), promote(), facts(), [approval("legal")])
    assert (path.possible, path.steps, path.evaluations) == (True, (), 1)


def test_alternatives_are_tried_each_for_itself(ours: CompiledBundle) -> None:
    def region(name: str) -> Obtainable:
        return Obtainable(f"region:{name}", f"run it in {name}", (Change("set", ("region",), name, RUN),))

    path = path_to_yes(ours, LAUNCH, facts(), [region("ap"), region("us"), region("eu")])
    assert [step.name for step in path.steps] == ["region:us"]
    context = Obtainable("stage", "promote it to staging", (Change("set", ("stage",), "staging"),))
    ready = compiled(
        PERMIT,
        policy(
            "f.prod",
            'forbid (principal, action == Action::"model.promote", resource) when { context.stage == "prod" };',
        ),
    )
    assert [step.name for step in path_to_yes(ready, promote(), facts(), [context]).steps] == ["stage"]


def _forbid_launch(name: str, condition: str) -> str:
    return policy(
        name, f'forbid (principal, action == Action::"training.launch", resource is Run) when {{ {condition} }};'
    )


def test_what_would_only_make_it_worse_is_neither_advised_nor_blamed() -> None:
    permit = policy("p.launch", 'permit (principal, action == Action::"training.launch", resource is Run);')
    elsewhere = _forbid_launch("f.region", 'resource.region != "us"')
    costly = _forbid_launch("f.budget", "resource.cost > resource.budget_remaining")
    misused = _forbid_launch("f.use", 'resource.use == "marketing"')
    move = Obtainable("environment:eu", "run it in eu", (Change("set", ("region",), "eu", RUN),))
    raised = Obtainable("budget:training", "have it raised", (Change("set", ("budget_remaining",), 1000, RUN),))
    run: dict[str, Any] = {"region": "us", "cost": 1000, "budget_remaining": 100}

    path = path_to_yes(compiled(permit, elsewhere, costly), LAUNCH, facts(run=run), [move, raised])
    assert (path.possible, [step.name for step in path.steps]) == (True, ["budget:training"])

    path = path_to_yes(
        compiled(permit, elsewhere, costly, misused), LAUNCH, facts(run={**run, "use": "marketing"}), [move, raised]
    )
    assert not path.possible
    assert path.exhausted
    assert path.still is not None
    assert path.still.reasons == ("f.use",)


def test_the_number_of_evaluations_is_bounded_and_a_bounded_answer_says_so() -> None:
    ready = compiled(PERMIT, PROMOTE_HIGH)
    # Of many kinds, none of which is needed: facts have a type, so they are not of unknown tracks.
    offers = [
        Obtainable(f"t{n}", "raise it", (Change("set", ("restrictions", "expires_at_ms"), NOW_MS + 9, MODEL),))
        for n in range(30)
    ]
    path = path_to_yes(
        ready, promote(), facts(), [*offers, approval("model-risk"), approval("compliance")], max_evaluations=9
    )
    assert (path.possible, path.minimal, path.evaluations) == (True, False, 9)
    stages = [Obtainable(f"s{n}", "", (Change("set", ("stage",), f"s{n}"),)) for n in range(20)]
    none = path_to_yes(ready, promote(), facts(), stages, max_evaluations=9)
    assert (none.possible, none.exhausted, none.evaluations) == (False, False, 9)
    assert none.message.startswith("Nothing found")


def test_a_step_makes_the_records_it_needs_and_touches_no_fact() -> None:
    world = facts()
    passed: Any = {"passed": True, "drifted_features": 0}
    drift = Obtainable("check:drift", "", (Change("set", ("checks", "drift"), passed, MODEL),))
    _, changed = supposed(promote(), world, [drift])
    fact, before = changed.get(MODEL.key), world.get(MODEL.key)
    assert fact is not None
    assert before is not None
    assert fact.entity["attrs"]["checks"] == {"drift": passed}
    assert before.entity["attrs"]["checks"] == {}


@pytest.mark.parametrize(
    "change",
    [
        Change("set", ("held",), value=False, entity=EntityUid("Dataset", "northbank/unknown")),
        Change("add", ("tier",), "low", MODEL),
        Change("set", ("tier", "more"), 1, MODEL),
    ],
)
def test_a_step_that_fits_no_fact_is_a_mistake_of_who_declared_it(change: Change) -> None:
    with pytest.raises(FactError, match="an obtainable would"):
        supposed(promote(), facts(), [Obtainable("x", "", (change,))])
