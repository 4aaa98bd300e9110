"""How often policies decided: in parts, of one tenant, and never without saying what was left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, insert, update

from databases import Database
from licet_engine.api import enforced as module
from licet_engine.api.enforced import check_window, enforced
from licet_engine.decide.decision import Decision, Request
from licet_engine.decide.entities import EntityUid, FactSet
from licet_engine.decide.record import build_record
from licet_engine.domain.errors import InvalidInput
from licet_engine.lifecycle.verbs import Who
from licet_engine.log.store import RECORDS, table_of
from licet_engine.store import tables
from licet_engine.store.db import write_transaction

DECISIONS = table_of(tables.Decision)
UMA = Who(tenant="northbank", name="uma", kind="person")


@pytest.fixture
def engine(prepared: Database) -> Iterator[Engine]:
    engine = prepared.open()
    yield engine
    engine.dispose()


def record(tenant: str, index: int, decision: Decision) -> bytes:
    request = Request(EntityUid("Person", f"{tenant}/uma"), "log.read", EntityUid("Log", tenant), {"now_ms": index})
    return build_record(
        decision_id=f"{index:032x}",
        time_ms=index,
        tenant=tenant,
        request=request,
        decision=decision,
        facts=FactSet([]),
        facts_version=0,
        bundle_hex="0" * 64,
    )


def store(engine: Engine, decisions: dict[int, Decision], tenant: str = "northbank", principal: str = "uma") -> None:
    """Put decisions into a log, each at its index and that time."""
    with write_transaction(engine, tenant) as connection:
        for index, decision in decisions.items():
            row: dict[str, Any] = {"id": f"{index:031x}{tenant[0] == 'l':x}", "leaf_index": index, "at_ms": index}
            row |= {"tenant_id": tenant, "action": "log.read", "resource": tenant, "allowed": decision.allowed}
            connection.execute(insert(DECISIONS).values(principal=f"{tenant}/{principal}", **row))
            values = {"tenant_id": tenant, "leaf_index": index, "record": record(tenant, index, decision)}
            connection.execute(insert(RECORDS).values(salt=b"s" * 32, **values))


def denied(*reasons: str, observed: tuple[str, ...] = ()) -> Decision:
    return Decision(allowed=False, reasons=reasons, errors=(), observed=observed)


def allowed(*reasons: str, observed: tuple[str, ...] = ()) -> Decision:
    return Decision(allowed=True, reasons=reasons, errors=(), observed=observed)


def ask(engine: Engine, **changes: Any) -> dict[str, Any]:
    asked = {"who": UMA, "from_ms": 0, "to_ms": 1 << 53, "before": None, "own_only": False} | changes
    return enforced(engine, **asked)


def test_decisions_are_counted_by_the_policies_that_determined_them(engine: Engine) -> None:
    store(engine, {0: denied("a", "b"), 1: denied("a", "b"), 2: denied("a"), 3: allowed("p", observed=("o",))})
    assert ask(engine) == {
        "groups": [
            {"decision": "allow", "policies": ["p"], "observed": ["o"], "count": 1},
            {"decision": "deny", "policies": ["a"], "observed": [], "count": 1},
            {"decision": "deny", "policies": ["a", "b"], "observed": [], "count": 2},
        ],
        "decisions": 4,
        "unread": 0,
        "own": False,
        "next": None,
    }


def test_nothing_of_another_tenant_is_counted(engine: Engine) -> None:
    store(engine, {0: denied("a")})
    store(engine, {0: denied("foreign"), 1: denied("foreign")}, tenant="lakeside")
    assert [group["policies"] for group in ask(engine)["groups"]] == [["a"]]
    theirs = ask(engine, who=Who(tenant="lakeside", name="uma", kind="person"))
    assert [(group["policies"], group["count"]) for group in theirs["groups"]] == [(["foreign"], 2)]


def test_of_one_s_own_alone_those_of_others_are_left_out(engine: Engine) -> None:
    store(engine, {0: denied("a")})
    store(engine, {1: denied("b")}, principal="ana")
    told = ask(engine, own_only=True)
    assert [group["policies"] for group in told["groups"]] == [["a"]]
    assert (told["decisions"], told["own"]) == (1, True)


def test_a_window_holds_its_beginning_and_not_its_end(engine: Engine) -> None:
    store(engine, {index: denied(f"p{index}") for index in range(4)})
    told = ask(engine, from_ms=1, to_ms=3)
    assert [group["policies"] for group in told["groups"]] == [["p1"], ["p2"]]


def test_an_erased_record_is_told_as_unread(engine: Engine) -> None:
    store(engine, {0: denied("a"), 1: denied("a")})
    with write_transaction(engine, "northbank") as connection:
        erased = update(RECORDS).where(RECORDS.c.tenant_id == "northbank", RECORDS.c.leaf_index == 1)
        connection.execute(erased.values(salt=None, record=None))
    told = ask(engine)
    assert (told["decisions"], told["unread"], told["groups"][0]["count"]) == (2, 1, 1)


def test_parts_follow_one_another_until_all_is_counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RECORDS", 3)
    monkeypatch.setattr(module, "_CHUNK", 2)
    store(engine, {index: denied(f"p{index}") for index in range(7)})
    parts, before = [], None
    while True:
        parts.append(ask(engine, before=before))
        before = parts[-1]["next"]
        if before is None:
            break
    assert [part["decisions"] for part in parts] == [3, 3, 1]
    found = [group["policies"][0] for part in parts for group in part["groups"]]
    assert sorted(found) == [f"p{index}" for index in range(7)]


def test_a_part_that_just_fits_is_the_last(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RECORDS", 3)
    store(engine, {index: denied("p") for index in range(3)})
    assert ask(engine)["next"] is None


@pytest.mark.parametrize(
    ("window", "told"),
    [
        ((-1, 5, None), "from_ms must lie"),
        ((0, (1 << 53) + 1, None), "to_ms must lie"),
        ((0, 5, -1), "before must lie"),
        ((6, 5, None), "to_ms lies before from_ms"),
    ],
)
def test_a_window_that_is_none_is_refused(window: tuple[int, int, int | None], told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        check_window(*window)
    check_window(5, 5, 0)
