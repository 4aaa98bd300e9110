"""Law 4: a tenant is a wall. A session never reads or writes another tenant's rows."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, column, exists, func, literal_column, table, text, union_all
from sqlalchemy.orm import aliased
from sqlmodel import delete, insert, select, update

from databases import Database
from licet_engine.store import db
from licet_engine.store.tables import Budget, Principal, Tenant

PRINCIPALS: Any = Principal.__table__
BUDGETS: Any = Budget.__table__


@pytest.fixture
def engine(prepared: Database) -> Iterator[Engine]:
    engine = prepared.open()
    for tenant_id in ("northbank", "lakeside"):
        with db.tenant_session(engine, tenant_id, write=True) as session:
            session.add(Tenant(tenant_id=tenant_id, region="us", created_at_ms=1))
            session.flush()
            session.add(Principal(tenant_id=tenant_id, name="ada", kind="person", created_at_ms=1))
            session.add(Budget(tenant_id=tenant_id, name="ada", limit=5, remaining=5))
    yield engine
    engine.dispose()


Other = aliased(Principal)
Sub = aliased(Principal, select(Principal).subquery())

NARROWED: dict[str, Callable[[], Any]] = {
    "a column": lambda: select(Principal.tenant_id),
    "an alias": lambda: select(Other.tenant_id),
    "a class joined to itself": lambda: select(Principal.tenant_id, Other.tenant_id).join(
        Other, Other.name == Principal.name
    ),
    "a join": lambda: select(Principal.tenant_id, Budget.tenant_id).join(Budget, Budget.name == Principal.name),
    "an outer join": lambda: select(Principal.tenant_id, Budget.tenant_id).outerjoin(
        Budget, Budget.name == Principal.name
    ),
    "a subquery": lambda: select(select(Principal.tenant_id).subquery().c.tenant_id),
    "a common table expression": lambda: select(select(Principal.tenant_id).cte().c.tenant_id),
    "a union": lambda: union_all(select(Principal.tenant_id), select(Budget.tenant_id)),
    "an alias of a subquery": lambda: select(Sub.tenant_id),
    "a scalar subquery": lambda: select(
        Principal.tenant_id,
        select(func.max(Budget.tenant_id)).scalar_subquery(),
        select(func.min(Other.tenant_id)).scalar_subquery(),
    ),
    "a group": lambda: select(Principal.tenant_id).group_by(Principal.tenant_id),
    "a disjunction that would let others in": lambda: select(Principal.tenant_id).where(
        (Principal.tenant_id == "lakeside") | (Principal.name == "ada")
    ),
}


@pytest.mark.parametrize("shape", NARROWED)
@pytest.mark.parametrize("tenant_id", ["northbank", "lakeside"])
def test_a_select_sees_only_its_tenant_through(engine: Engine, shape: str, tenant_id: str) -> None:
    with db.tenant_session(engine, tenant_id) as session:
        rows = session.execute(NARROWED[shape]()).all()
    assert rows
    assert {value for row in rows for value in row} == {tenant_id}


def test_whole_rows_and_counts_are_narrowed(engine: Engine) -> None:
    with db.tenant_session(engine, "northbank") as session:
        assert [row.tenant_id for row in session.exec(select(Principal)).all()] == ["northbank"]
        assert session.exec(select(func.count()).select_from(Principal)).one() == 1


def test_what_only_another_tenant_has_is_not_there(engine: Engine) -> None:
    foreign = Principal.tenant_id == "lakeside"
    with db.tenant_session(engine, "northbank") as session:
        assert session.get(Principal, ("lakeside", "ada")) is None
        assert session.get(Principal, ("northbank", "ada")) is not None
        assert session.exec(select(Principal).where(foreign)).all() == []
        assert session.exec(select(Budget).where(exists().where(foreign))).all() == []
        assert session.exec(select(Budget).where(Budget.name.in_(select(Principal.name).where(foreign)))).all() == []


REFUSED: dict[str, Callable[[], Any]] = {
    "a plain table": lambda: select(PRINCIPALS),
    "a column of a plain table": lambda: select(PRINCIPALS.c.name),
    "an alias of a plain table": lambda: select(PRINCIPALS.alias().c.name),
    "a plain table beside a class": lambda: select(Principal, BUDGETS),
    "a column of a plain table beside a class": lambda: select(Principal.name, BUDGETS.c.name),
    "a join to a plain table": lambda: select(Principal.name).join(BUDGETS, BUDGETS.c.name == Principal.name),
    "a plain table in a subquery": lambda: select(Principal.name).where(Principal.name.in_(select(BUDGETS.c.name))),
    "a plain table in exists": lambda: select(Principal.name).where(exists().where(BUDGETS.c.name == "ada")),
    "a plain table in a subquery's columns": lambda: select(Principal.name, select(BUDGETS).subquery().c.name),
    "a table by name only": lambda: select(Principal.name, table("budget", column("name"))),
    "text": lambda: text("SELECT * FROM principal"),
    "text in a condition": lambda: select(Principal).where(text("1 = 1")),
    "a class from text": lambda: select(Principal).from_statement(text("SELECT * FROM principal")),
    "literal SQL": lambda: select(Principal.name, literal_column("(SELECT max(name) FROM budget)")),
    "nothing of ours": lambda: select(func.count()),
    "an insert": lambda: insert(Principal).values(tenant_id="northbank", name="x", kind="person", created_at_ms=1),
    "moving a row": lambda: update(Principal).values(tenant_id="lakeside"),
    "moving a row by its attribute": lambda: update(Principal).values({Principal.tenant_id: "lakeside"}),
    "moving a row in order": lambda: update(Principal).ordered_values((Principal.tenant_id, "lakeside")),
    "an update of a plain table": lambda: update(PRINCIPALS).values(active=False),
    "a delete from a plain table": lambda: delete(PRINCIPALS),
    "an update with text": lambda: update(Principal).where(text("1 = 1")).values(active=False),
}


@pytest.mark.parametrize("shape", REFUSED)
def test_a_statement_that_cannot_be_narrowed_is_refused(engine: Engine, shape: str) -> None:
    with db.tenant_session(engine, "northbank", write=True) as session, pytest.raises(db.TenantScopeError):
        session.execute(REFUSED[shape]())


def test_an_update_by_a_list_of_keys_is_refused(engine: Engine) -> None:
    # SQLAlchemy makes it without criteria: it would change lakeside's row.
    with db.tenant_session(engine, "northbank", write=True) as session, pytest.raises(db.TenantScopeError):
        session.execute(update(Principal), [{"tenant_id": "lakeside", "name": "ada", "active": False}])


def test_updates_and_deletes_touch_only_their_tenant(engine: Engine) -> None:
    with db.tenant_session(engine, "northbank", write=True) as session:
        assert session.execute(update(Principal).values(active=False)).rowcount == 1
        assert session.execute(delete(Budget)).rowcount == 1
    with db.tenant_session(engine, "lakeside") as session:
        assert session.exec(select(Principal.active)).one()
        assert session.exec(select(Budget.remaining)).one() == 5


def test_rows_of_another_tenant_cannot_be_added_changed_or_removed(engine: Engine) -> None:
    with db.tenant_session(engine, "lakeside") as session:
        foreign = session.exec(select(Budget)).one()

    def add(session: db.TenantSession) -> None:
        session.add(Budget(tenant_id="lakeside", name="new", limit=1, remaining=1))

    def add_without_tenant(session: db.TenantSession) -> None:
        session.add(Budget(name="new", limit=1, remaining=1))

    def change(session: db.TenantSession) -> None:
        session.add(foreign)
        foreign.remaining = 0

    def remove(session: db.TenantSession) -> None:
        session.delete(foreign)

    def move(session: db.TenantSession) -> None:
        session.exec(select(Budget)).one().tenant_id = "lakeside"

    for attempt in (add, add_without_tenant, change, remove, move):
        with pytest.raises(db.TenantScopeError), db.tenant_session(engine, "northbank", write=True) as session:
            attempt(session)
    with db.tenant_session(engine, "lakeside") as session:
        assert [(row.name, row.remaining) for row in session.exec(select(Budget)).all()] == [("ada", 5)]


def test_ways_around_the_session_are_closed(engine: Engine) -> None:
    with db.tenant_session(engine, "northbank", write=True) as session:
        for way in (
            session.connection,
            lambda: session.bulk_save_objects([]),
            lambda: session.bulk_insert_mappings(Budget, []),
            lambda: session.bulk_update_mappings(Budget, []),
        ):
            with pytest.raises(db.TenantScopeError):
                way()
    with pytest.raises(db.TenantScopeError), db.tenant_session(engine, ""):
        pass


def test_a_reading_session_writes_nothing(engine: Engine) -> None:
    with db.tenant_session(engine, "northbank") as session, pytest.raises(db.TenantScopeError):
        session.execute(delete(Budget))
    with db.tenant_session(engine, "northbank") as session:
        session.add(Budget(tenant_id="northbank", name="new", limit=1, remaining=1))
        with pytest.raises(db.TenantScopeError):
            session.flush()


def test_the_way_over_all_tenants_needs_a_reason_and_says_so_once(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(db.TenantScopeError):
        db.UnsafeAllTenants(engine, "")
    reason = f"a test looks at every tenant of a {engine.dialect.name} database"
    with caplog.at_level(logging.INFO, logger="licet_engine.store.db"):
        for _ in range(2):
            with db.UnsafeAllTenants(engine, reason) as session:
                assert {row.tenant_id for row in session.exec(select(Budget)).all()} == {"northbank", "lakeside"}
    assert [record.levelname for record in caplog.records if getattr(record, "reason", None) == reason] == ["INFO"]


def test_the_way_over_all_tenants_commits_only_without_an_exception(engine: Engine) -> None:
    def delete_and_fail() -> None:
        with db.UnsafeAllTenants(engine, "a test", write=True) as session:
            session.execute(delete(Budget))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        delete_and_fail()
    with db.UnsafeAllTenants(engine, "a test", write=True) as session:
        assert len(session.exec(select(Budget)).all()) == 2
        session.execute(delete(Budget))
    with db.UnsafeAllTenants(engine, "a test") as session:
        assert session.exec(select(Budget)).all() == []
