"""Operators see nothing of a tenant, but what it lets them see, for as long as it lets them, in its own log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from service_world import Installation
from sqlmodel import col, select

from licet_engine.client import Answer, StateConflict
from licet_engine.store import tables
from licet_engine.store.db import tenant_session

OPERATOR = "platform/operator"


def notes(world: Installation, number: str) -> list[str]:
    """What the tenant's own log says of one number, in order."""
    return [
        record["event"]
        for leaf, record in world.entries("northbank")
        if leaf.kind == "break-glass" and record["break_glass"] == number
    ]


def requested(world: Installation, **more: Any) -> str:
    answer = world.client(OPERATOR).tenant.request_break_glass("northbank", "ticket 17", **more)
    return str(answer.require().result["break_glass"])


def look(world: Installation, number: str, what: str = "decisions", who: str = OPERATOR) -> Answer:
    return world.client(who).tenant.break_glass("northbank", number, what)


def because(answer: Answer) -> set[str]:
    assert not answer.allowed
    return {policy.id for policy in answer.policies}


def test_the_whole_way_stands_in_the_tenants_log_and_only_metadata_is_shown(world: Installation) -> None:
    number = requested(world)
    # Nothing but the approval is missing, and nobody is told of an end that there is not yet.
    assert because(look(world, number)) == {"guardrail.break-glass.approval"}
    listed = {row["id"]: row for row in world.client(OPERATOR).list("platform", "break-glasses")}
    assert (listed[number]["state"], listed[number]["until_ms"]) == ("requested", None)
    approved = world.client("northbank/admin").tenant.approve_break_glass("northbank", number).require()
    assert approved.result["operator"] == OPERATOR

    shown = look(world, number, "decisions").require().result["items"]
    assert {"id", "action", "principal", "resource", "allowed", "at_ms", "leaf_index"} == set(shown[0])
    operations = look(world, number, "operations").require().result["items"]
    assert not {"parameters", "asked", "claimed", "result", "progress"} & set(operations[0])
    headers = look(world, number, "log").require().result["items"]
    assert set(headers[0]) == {"index", "kind", "time_ms", "actor", "owner"}

    world.client(OPERATOR).tenant.end_break_glass("northbank", number).require()
    assert because(look(world, number)) == {"guardrail.break-glass.approval", "guardrail.break-glass.window"}

    # Not again before it was reviewed, and not by who approved it.
    again = world.client(OPERATOR).tenant.request_break_glass("northbank", "ticket 18")
    assert because(again) == {"guardrail.break-glass.unreviewed"}
    world.client("northbank/cora").tenant.review_break_glass("northbank", number, "as agreed").require()
    assert notes(world, number) == ["requested", "approved", "looked", "looked", "looked", "ended", "reviewed"]
    rows = world.client(OPERATOR).list("platform", "break-glasses")
    assert [(row["tenant"], row["state"]) for row in rows if row["id"] == number] == [("northbank", "reviewed")]
    assert all("finding" not in row for row in rows)
    assert world.client("northbank/ana").list("northbank", "break-glasses")[0]["finding"] == "as agreed"
    assert world.client("lakeside/ana").list("lakeside", "break-glasses") == []


def test_what_was_looked_at_is_stored_nowhere_of_the_operators(world: Installation) -> None:
    number = requested(world)
    world.client("northbank/admin").tenant.approve_break_glass("northbank", number).require()
    shown = world.client(OPERATOR).act(
        "tenant.break-glass", "northbank", {"id": number, "what": "decisions"}, idempotency_key="looked-once"
    )
    seen = shown.require().result["items"][0]["id"]
    with tenant_session(world.engine, "platform") as session:
        keys = session.exec(select(tables.IdempotencyKey)).all()
    assert all(seen not in row.body for row in keys)
    assert all(seen not in str(record) for _, record in world.entries("platform") if record.get("id") != seen)
    world.client("northbank/admin").tenant.end_break_glass("northbank", number).require()
    world.client("northbank/sam").tenant.review_break_glass("northbank", number, "fine").require()


def test_it_is_over_by_itself_and_with_its_approver(world: Installation) -> None:
    number = requested(world)
    world.person("northbank/ada", roles=["administrator"])
    world.client("northbank/ada").tenant.approve_break_glass("northbank", number).require()
    assert look(world, number).allowed
    admin = world.client("northbank/admin")
    admin.act("person.administer", "northbank/ada", {"kind": "person", "roles": [], "active": True}).require()
    assert because(look(world, number)) == {"guardrail.break-glass.approval"}
    admin.act("person.administer", "northbank/ada", {"kind": "person", "roles": ["administrator"]}).require()
    assert look(world, number).allowed
    with tenant_session(world.engine, "northbank", write=True) as session:
        row = session.exec(select(tables.BreakGlass).where(col(tables.BreakGlass.id) == number)).one()
        row.until_ms = int(time.time() * 1000) - 1  # As if its hour had gone by.
        session.add(row)
    assert "guardrail.break-glass.window" in because(look(world, number))
    world.client("northbank/sam").tenant.review_break_glass("northbank", number, "it ended by itself").require()


@pytest.mark.parametrize("who", ["northbank/admin", "northbank/ana", "lakeside/admin", "lakeside/all"])
def test_nobody_but_the_operator_who_asked_looks(world: Installation, who: str) -> None:
    number = requested(world)
    world.client("northbank/admin").tenant.approve_break_glass("northbank", number).require()
    assert not look(world, number, who=who).allowed
    world.client("northbank/admin").tenant.end_break_glass("northbank", number).require()
    world.client("northbank/cora").tenant.review_break_glass("northbank", number, "unused").require()


def test_what_nobody_approved_can_be_withdrawn_and_needs_no_review(world: Installation) -> None:
    number = requested(world)
    ended = world.client(OPERATOR).tenant.end_break_glass("northbank", number).require()
    assert ended.result["state"] == "lapsed"
    with pytest.raises(StateConflict, match="lapsed"):
        world.client("northbank/admin").tenant.approve_break_glass("northbank", number)
    # It was never open, so nothing is to be reviewed before the next.
    world.client(OPERATOR).tenant.end_break_glass("northbank", requested(world)).require()


def test_whoever_comes_out_of_turn_is_told_why_and_what_to_do(world: Installation) -> None:
    operator, admin, cora = (world.client(who) for who in (OPERATOR, "northbank/admin", "northbank/cora"))

    def refused(act: Callable[[], Answer], told: str) -> None:
        with pytest.raises(StateConflict, match=told):
            act()

    number, unknown = requested(world), "0" * 32
    refused(
        lambda: admin.tenant.approve_break_glass("northbank", unknown), "licet break-glass list northbank shows those"
    )
    refused(lambda: cora.tenant.review_break_glass("northbank", number, "x"), "nobody approved it yet")
    admin.tenant.approve_break_glass("northbank", number).require()
    refused(lambda: admin.tenant.approve_break_glass("northbank", number), "it was approved already")
    refused(lambda: cora.tenant.review_break_glass("northbank", number, "x"), "it is open: review it when its time")
    operator.tenant.end_break_glass("northbank", number).require()
    refused(lambda: operator.tenant.end_break_glass("northbank", number), "is over already: it is ended")
    refused(lambda: admin.tenant.approve_break_glass("northbank", number), "and is over: have the operator ask again")
    cora.tenant.review_break_glass("northbank", number, "fine").require()
    refused(lambda: cora.tenant.review_break_glass("northbank", number, "fine"), "it was reviewed already")
    # In another tenant it is as if it had never been.
    lakeside = world.client("lakeside/admin")
    refused(lambda: lakeside.tenant.approve_break_glass("lakeside", number), "lakeside has no break-glass")


def test_what_was_asked_for_ahead_is_not_approved_before_the_last_was_reviewed(world: Installation) -> None:
    admin, cora = world.client("northbank/admin"), world.client("northbank/cora")
    first, second = requested(world), requested(world)
    admin.tenant.approve_break_glass("northbank", first).require()
    world.client(OPERATOR).tenant.end_break_glass("northbank", first).require()
    with pytest.raises(StateConflict, match=f"{first} was not reviewed yet: have compliance or security review it"):
        admin.tenant.approve_break_glass("northbank", second)
    assert not look(world, second).allowed
    cora.tenant.review_break_glass("northbank", first, "fine").require()
    admin.tenant.approve_break_glass("northbank", second).require()
    assert look(world, second).allowed
    world.client(OPERATOR).tenant.end_break_glass("northbank", second).require()
    cora.tenant.review_break_glass("northbank", second, "fine").require()


def test_tokens_are_listed_to_whom_they_concern_and_revoked_together(world: Installation) -> None:
    world.person("northbank/tom", roles=["auditor"])
    first = world.tokens["northbank/tom"]
    admin = world.client("northbank/admin")
    second = admin.token.issue("northbank/tom", label="second").require().result["token"]
    own = world.client("northbank/tom").list("northbank", "tokens")
    assert {row["principal"] for row in own} == {"tom"}
    assert all("hash_hex" not in row for row in own)
    assert {row["principal"] for row in admin.list("northbank", "tokens", limit=1000)} > {"tom", "ana"}
    admin.token.revoke("northbank/tom", every=True).require()
    for token in (first, second):
        world.tokens["northbank/tom"] = token
        assert world.http("northbank/tom").get("/v1/list/northbank/runs").status_code == 401
    assert all(
        row["revoked_at_ms"] for row in admin.list("northbank", "tokens", limit=1000) if row["principal"] == "tom"
    )


def test_operators_list_tenants_and_a_tenant_sees_itself_alone(world: Installation) -> None:
    assert {"northbank", "lakeside", "platform"} <= {
        row["tenant"] for row in world.client(OPERATOR).list("platform", "tenants")
    }
    assert [row["tenant"] for row in world.client("lakeside/ana").list("lakeside", "tenants")] == ["lakeside"]
