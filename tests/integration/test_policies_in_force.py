"""Policies in force: rolled back, run beside as a candidate, and observed before they are enforced."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from licet_engine.client import Answer

sys.path.append(str(Path(__file__).parent))
from service_world import Installation, problem  # The line above finds it.

pytestmark = pytest.mark.slow

BANK = "rulebank"
CLOSED = '@id("team.closed")\n@advice("Come back on Monday.")\nforbid (principal, action == Action::"catalogue.read", resource);'
NOTHING = '@id("team.nothing")\nforbid (principal, action, resource);'


@pytest.fixture(scope="module")
def bank(world: Installation) -> str:
    """A tenant whose policies are changed; its first bundle is its administrator's, without packs."""
    world.people(BANK, "us", packs=[])
    return BANK


def publish(world: Installation, who: str, policies: str = "", packs: tuple[Any, ...] = ()) -> str:
    """Publish a bundle; return how it is named."""
    answer = world.client(f"{BANK}/{who}").act("policy.publish", BANK, {"packs": list(packs), "policies": policies})
    ref: str = answer.require().result["ref"]
    return ref


def in_force(world: Installation, writer: str, activator: str, policies: str) -> str:
    """Publish a bundle and bring it into force."""
    ref = publish(world, writer, policies)
    world.client(f"{BANK}/{activator}").act("policy.activate", ref, {}).require()
    return ref


def roll_back(world: Installation, who: str) -> Answer:
    return world.client(f"{BANK}/{who}").policy.roll_back(BANK)


def deciding(answer: Answer) -> set[str]:
    return {policy.id for policy in answer.policies}


# --- roll-back ----------------------------------------------------------------------------------------------------------


def test_the_bundle_before_comes_back_once_by_somebody_who_did_not_write_it(world: Installation, bank: str) -> None:
    ana = world.client(f"{bank}/ana")
    open_ = in_force(
        world, "sam", "all", '@id("team.open")\nforbid (principal, action == Action::"run.log", resource);'
    )
    in_force(world, "all", "sam", CLOSED)
    assert deciding(ana.ask("catalogue.read", bank)) == {"team.closed"}
    # What would come back is sam's: sam and the one who rolls back are two people, as with an activation.
    assert deciding(roll_back(world, "sam")) == {"guardrail.separation-of-duties.policy"}
    assert deciding(ana.ask("catalogue.read", bank)) == {"team.closed"}
    # Who may not activate may not roll back either.
    assert not roll_back(world, "admin").allowed
    assert roll_back(world, "all").require().result["ref"] == open_
    assert ana.ask("catalogue.read", bank).allowed
    events = [record for _, record in world.entries(bank) if record.get("event") == "policy-rolled-back"]
    assert [(e["by"], f"{bank}/{e['bundle'][:16]}") for e in events] == [(f"{bank}/all", open_)]
    # One step and no more, back or forth: not even the bundle that was put aside can be activated as it is.
    with world.http(f"{bank}/all") as http:
        problem(http.post("/v1/policy/roll-back", json={"resource": bank}), 409, "conflict")
        states = {row["digest_hex"]: row["state"] for row in http.get(f"/v1/list/{bank}/bundles").json()["items"]}
    assert states[events[0]["before"]] == "superseded"
    closed = f"{bank}/{events[0]['before'][:16]}"
    with world.http(f"{bank}/sam") as http:
        problem(http.post("/v1/policy/activate", json={"resource": closed}), 409, "conflict")


def test_who_publishes_anew_what_was_put_aside_is_its_author_when_it_is_rolled_back_to(
    world: Installation, bank: str
) -> None:
    text = '@id("team.first")\nforbid (principal, action == Action::"run.log", resource);'
    in_force(world, "sam", "all", text)
    in_force(world, "all", "sam", CLOSED)
    publish(world, "all", text)
    assert deciding(roll_back(world, "all")) == {"guardrail.separation-of-duties.policy"}
    assert roll_back(world, "sam").allowed


def test_policies_that_let_nobody_do_anything_do_not_keep_the_ones_before_from_coming_back(
    world: Installation, bank: str
) -> None:
    in_force(world, "all", "sam", CLOSED)
    other = publish(world, "sam")
    in_force(world, "all", "sam", NOTHING)
    all_ = world.client(f"{bank}/all")
    assert deciding(all_.act("policy.activate", other, {})) == {"team.nothing"}
    assert roll_back(world, "sam").allowed
    assert deciding(all_.ask("catalogue.read", bank)) == {"team.closed"}


def test_approvals_do_not_outlive_a_roll_back(world: Installation, trained: str) -> None:
    # On the tenant whose model is trained for all tests; its bundle comes back as it was.
    sam, other = world.client("northbank/sam"), world.client("northbank/all")
    ci, mei = world.client("northbank/ci"), world.client("northbank/mei")
    answer = ci.act("model.register", "northbank/returned", {"run": "northbank/run-1", "tier": "high"})
    assert world.done(ci, answer).state == "done"
    version = answer.result["version"]
    packs = [{"name": "sr-11-7"}, {"name": "residency", "parameters": {"regions": ["us"]}}]
    published = sam.act("policy.publish", "northbank", {"packs": packs, "policies": CLOSED}).require()
    other.act("policy.activate", published.result["ref"], {}).require()
    told = mei.act("model.read", version, {}).require().result["version"]
    body = {"track": "model-risk", "binding": told["binding"], "reason": "looked at"}
    assert world.done(mei, mei.act("model.approve", version, body)).state == "done"
    # The bundle before is the administrator's.
    other.policy.roll_back("northbank").require()
    with world.http("northbank/uma") as http:
        rows = http.get("/v1/list/northbank/approvals?limit=1000").json()["items"]
    assert [r["state"] for r in rows if r["kind"] == "approval" and r["model"] == "returned"] == ["void"]
