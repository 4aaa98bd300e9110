"""What binds data is loosened by compliance alone, and what is held keeps its files: decided by policy, on live facts."""

from __future__ import annotations

from typing import Any

import pytest
from service_world import FAR_MS, Installation, table

from licet_engine.client import Answer

DATASET = "northbank/bound"
LOOSENING = "guardrail.lineage.loosening"
LOOSER: list[dict[str, Any]] = [
    {"classification": "internal"},
    {"residency": ["us", "eu"]},
    {"residency": ["eu"]},
    {"uses": ["credit-risk", "marketing"]},
    {"expires_at_ms": FAR_MS + 1},
    # Being stricter in one respect makes up for nothing in another.
    {"classification": "restricted", "expires_at_ms": FAR_MS + 1},
]
TIGHTER: list[dict[str, Any]] = [
    {"classification": "confidential"},
    {"classification": "restricted", "residency": ["us"], "uses": ["credit-risk"], "expires_at_ms": FAR_MS - 1},
]


@pytest.fixture(scope="module")
def bound(world: Installation) -> str:
    assert world.register("northbank/ana", "bound", table(odd=7)).state == "done"
    return DATASET


def deciding(answer: Answer) -> tuple[bool, list[str]]:
    return answer.allowed, [policy.id for policy in answer.policies]


@pytest.mark.parametrize("parameters", LOOSER)
def test_who_registered_data_cannot_loosen_it_and_compliance_can(
    world: Installation, bound: str, parameters: dict[str, Any]
) -> None:
    assert deciding(world.client("northbank/ana").ask("dataset.classify", bound, parameters)) == (False, [LOOSENING])
    assert world.client("northbank/cora").ask("dataset.classify", bound, parameters).allowed
    assert not world.client("northbank/ana").act("dataset.classify", bound, parameters).allowed


@pytest.mark.parametrize("parameters", TIGHTER)
def test_who_registered_data_can_tighten_it_even_while_it_is_held(
    world: Installation, bound: str, parameters: dict[str, Any]
) -> None:
    ana, cora = world.client("northbank/ana"), world.client("northbank/cora")
    assert ana.ask("dataset.classify", bound, parameters).allowed
    cora.act("dataset.hold", bound, {"reason": "enquiry"}).require()
    try:
        assert ana.ask("dataset.classify", bound, parameters).allowed
    finally:
        cora.act("dataset.lift-hold", bound, {"reason": "closed"}).require()


def test_policy_judges_the_dataset_as_it_would_be(world: Installation, bound: str) -> None:
    ana, cora = world.client("northbank/ana"), world.client("northbank/cora")
    ana.act("dataset.classify", bound, {"classification": "restricted"}).require()
    # What was tightened is the measure from now on.
    back = {"classification": "confidential"}
    assert deciding(ana.act("dataset.classify", bound, back)) == (False, [LOOSENING])
    assert cora.act("dataset.classify", bound, back).require().result["classification"] == "confidential"


@pytest.mark.parametrize("held", ["model.hold", "dataset.hold"])
def test_the_files_of_a_version_stand_while_a_hold_lies_on_it_or_its_data(
    world: Installation, trained: str, held: str
) -> None:
    ana, cora = world.client("northbank/ana"), world.client("northbank/cora")
    swap = {"run": "northbank/run-1"}
    where = trained if held == "model.hold" else "northbank/loans"
    assert ana.ask("model.register", trained, swap).allowed
    cora.act(held, where, {"reason": "enquiry"}).require()
    try:
        for answer in (ana.ask("model.register", trained, swap), ana.act("model.register", trained, swap)):
            assert deciding(answer) == (False, ["guardrail.holds.replacement"])
        # A new version replaces nothing.
        assert ana.ask("model.register", trained.partition("@")[0], swap).allowed
    finally:
        cora.act(held.replace("hold", "lift-hold"), where, {"reason": "closed"}).require()
    assert ana.ask("model.register", trained, swap).allowed
