"""Policies in force: rolled back, run beside as a candidate, and observed before they are enforced."""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from licet_engine.client import Answer

sys.path.append(str(Path(__file__).parent))
from service_world import Installation, poll, problem  # The line above finds it.

pytestmark = pytest.mark.slow

BANK = "rulebank"
CLOSED = '@id("team.closed")\n@advice("Come back on Monday.")\nforbid (principal, action == Action::"catalogue.read", resource);'
NUMBERS = count()
NOTHING = '@id("team.nothing")\nforbid (principal, action, resource);'


@pytest.fixture(scope="module")
def bank(world: Installation) -> str:
    """A tenant whose policies are changed; its first bundle is its administrator's, without packs."""
    world.people(BANK, "us", packs=[])
    return BANK


def publish(world: Installation, who: str, policies: str = "", *, is_new: bool = True) -> str:
    """Publish a bundle, one that there was not before unless it is to be published anew; return how it is named."""
    if is_new:
        policies += f'@id("team.n-{next(NUMBERS)}")\nforbid (principal, action == Action::"run.log", resource);'
    return world.publish(f"{BANK}/{who}", {"packs": [], "policies": policies})


def in_force(world: Installation, writer: str, activator: str, policies: str, *, is_new: bool = True) -> str:
    """Publish a bundle and bring it into force."""
    ref = publish(world, writer, policies, is_new=is_new)
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
    assert bank
    text = '@id("team.first")\nforbid (principal, action == Action::"run.log", resource);'
    in_force(world, "sam", "all", text, is_new=False)
    in_force(world, "all", "sam", CLOSED)
    publish(world, "all", text, is_new=False)
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
    assert trained
    # On the tenant whose model is trained for all tests; its bundle comes back as it was.
    other = world.client("northbank/all")
    ci, mei = world.client("northbank/ci"), world.client("northbank/mei")
    answer = ci.act("model.register", "northbank/returned", {"run": "northbank/run-1", "tier": "high"})
    assert world.done(ci, answer).state == "done"
    version = answer.result["version"]
    packs = [{"name": "sr-11-7"}, {"name": "residency", "parameters": {"regions": ["us"]}}]
    other.act("policy.activate", world.publish("northbank/sam", {"packs": packs, "policies": CLOSED}), {}).require()
    told = mei.act("model.read", version, {}).require().result["version"]
    body = {"track": "model-risk", "binding": told["binding"], "reason": "looked at"}
    assert world.done(mei, mei.act("model.approve", version, body)).state == "done"
    # The bundle before is the administrator's.
    other.policy.roll_back("northbank").require()
    with world.http("northbank/uma") as http:
        rows = http.get("/v1/list/northbank/approvals?limit=1000").json()["items"]
    assert [r["state"] for r in rows if r["kind"] == "approval" and r["model"] == "returned"] == ["void"]


# --- a candidate beside them ----------------------------------------------------------------------------------------------


def report(world: Installation, who: str = "sam") -> dict[str, Any]:
    return world.client(f"{BANK}/{who}").policy.flips(BANK)


def test_a_candidate_changes_no_answer_and_tells_which_it_would_until_it_is_overtaken(
    world: Installation, bank: str
) -> None:
    sam, ana, all_ = (world.client(f"{bank}/{name}") for name in ("sam", "ana", "all"))
    in_force(world, "all", "sam", "")
    ref = publish(world, "sam", CLOSED)
    told = sam.policy.shadow(bank, ref.partition("/")[2]).require()
    allowed = [ana.ask("catalogue.read", bank) for _ in range(3)]
    assert all(answer.allowed for answer in allowed)
    ana.ask("policy.read", ref)  # Denied, with and without.
    # What is another tenant's, or nowhere, is put to no candidate.
    assert not ana.ask("dataset.read", "lakeside/loans").allowed
    assert not ana.ask("dataset.read", f"{bank}/nothing").allowed
    found = poll("the flips", lambda: (r := report(world))["counts"]["to_deny"] >= 3 and r)
    assert found["shadow"]["id"] == told.decision_id
    assert f"{bank}/{found['shadow']['bundle_hex'][:16]}" == ref
    assert found["shadow"]["ended_at_ms"] is None
    assert found["by_policy"] == [{"policy": "team.closed", "to_deny": 3, "to_allow": 0}]
    by_action = {row["action"]: row for row in found["by_action"]}
    assert by_action["catalogue.read"]["to_deny"] == 3
    assert by_action["policy.read"]["same"] >= 1
    assert "dataset.read" not in by_action
    assert [flip["decision"] for flip in found["flips"]] == [answer.decision_id for answer in reversed(allowed)]
    newest = found["flips"][0]
    assert (newest["principal"], newest["action"], newest["resource"]) == (
        f"{bank}/ana",
        "catalogue.read",
        f'Tenant::"{bank}"',
    )
    assert newest["before"]["decision"] == "allow"
    assert newest["after"] == {"decision": "deny", "reasons": ["team.closed"], "errors": []}
    # As soon as it is in force it is compared with nothing any more.
    all_.act("policy.activate", ref, {}).require()
    assert report(world)["shadow"]["ended"] == "overtaken"
    assert not ana.ask("catalogue.read", bank).allowed
    assert roll_back(world, "sam").allowed
    events = [record["event"] for _, record in world.entries(bank) if record.get("shadow") == told.decision_id]
    assert events == ["policy-shadowed"]


def test_a_candidate_is_set_by_who_may_replaced_by_another_and_ended(world: Installation, bank: str) -> None:
    in_force(world, "sam", "all", '@id("team.x")\nforbid (principal, action == Action::"run.log", resource);')
    first, second = publish(world, "sam", CLOSED), publish(world, "sam", NOTHING)
    assert not world.client(f"{bank}/uma").policy.shadow(bank, first.partition("/")[2]).allowed
    with world.http(f"{bank}/sam") as http:

        def shadow(**parameters: Any) -> Any:
            return http.post("/v1/policy/shadow", json={"resource": bank, "parameters": parameters})

        problem(shadow(off=True), 409, "conflict")
        problem(shadow(), 400, "invalid-input")
        problem(shadow(bundle=first.partition("/")[2], off=True), 400, "invalid-input")
        problem(shadow(bundle="0" * 16), 403, "denied")
        active = next(
            row["digest_hex"]
            for row in http.get(f"/v1/list/{bank}/bundles").json()["items"]
            if row["state"] == "active"
        )
        problem(shadow(bundle=active), 409, "conflict")
        assert shadow(bundle=first.partition("/")[2]).status_code == 200
        problem(shadow(bundle=first.partition("/")[2]), 409, "conflict")
        assert shadow(bundle=second.partition("/")[2]).status_code == 200
        found = http.get(f"/v1/flips/{bank}").json()["shadow"]
        assert (f"{bank}/{found['bundle_hex'][:16]}", found["ended"]) == (second, None)
        assert shadow(off=True).status_code == 200
        assert http.get(f"/v1/flips/{bank}").json()["shadow"]["ended"] == "off"


def test_flips_are_for_who_may_read_policy_and_decisions(world: Installation, bank: str) -> None:
    for name, may in (("sam", True), ("uma", True), ("mei", True), ("ana", False), ("ci", False), ("admin", False)):
        with world.http(f"{bank}/{name}") as http:
            answer = http.get(f"/v1/flips/{bank}")
            if may:
                assert answer.status_code == 200
            else:
                problem(answer, 403, "denied")
    # To read policy alone is not enough: flips are other people's decisions.
    text = (
        '@id("team.policies")\npermit (principal, action == Action::"policy.read", resource)'
        f'\nwhen {{ principal == Person::"{bank}/ana" }};'
    )
    in_force(world, "sam", "all", text)
    ana = world.client(f"{bank}/ana")
    with world.http(f"{bank}/sam") as http:
        active = next(
            row["digest_hex"]
            for row in http.get(f"/v1/list/{bank}/bundles").json()["items"]
            if row["state"] == "active"
        )
    assert ana.ask("policy.read", f"{bank}/{active[:16]}").allowed
    with world.http(f"{bank}/ana") as http:
        problem(http.get(f"/v1/flips/{bank}"), 403, "denied")


def test_what_is_decided_again_while_it_is_performed_is_put_to_the_candidate_too(
    world: Installation, bank: str
) -> None:
    sam = world.client(f"{bank}/sam")
    in_force(world, "all", "sam", "")
    text = '@id("team.hold")\nforbid (principal, action == Action::"dataset.register", resource);'
    sam.policy.shadow(bank, publish(world, "sam", text).partition("/")[2]).require()
    assert world.register(
        f"{bank}/ana", "shadowed", b"income,deny\n1,yes\n2,no\n" * 20, protected=[], residency=["us"]
    ).id
    found = poll("the flip", lambda: (r := report(world))["counts"]["to_deny"] and r)
    assert {flip["action"] for flip in found["flips"]} == {"dataset.register"}
    sam.policy.shadow(bank, off=True).require()


# --- observed -------------------------------------------------------------------------------------------------------------


def test_a_policy_of_ones_own_that_is_observed_denies_nothing_and_its_decisions_are_found(
    world: Installation, bank: str
) -> None:
    in_force(world, "sam", "all", CLOSED.replace("@advice", '@mode("observe")\n@advice'))
    ana = world.client(f"{bank}/ana")
    answer = ana.ask("catalogue.read", bank)
    assert (answer.allowed, answer.observed) == (True, ("team.closed",))
    rows = world.client(f"{bank}/sam").list(bank, "decisions", limit=50)
    found = {row["id"]: row["observed"] for row in rows}
    assert found[answer.decision_id] == ["team.closed"]
    assert world.client(f"{bank}/sam").decision.read(bank, answer.decision_id)["record"]["observed"] == ["team.closed"]
    in_force(world, "sam", "all", CLOSED)
    assert deciding(ana.ask("catalogue.read", bank)) == {"team.closed"}
