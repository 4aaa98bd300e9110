"""Tables, engines and migrations."""

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from dbos._utils import retriable_postgres_exception
from sqlalchemy import Engine, insert, inspect, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError, StatementError
from sqlmodel import SQLModel

from databases import Database
from licet_engine.store import db, migrations, walls
from licet_engine.store.postgres import DatabaseUnavailable
from licet_engine.store.tables import TENANT_TABLES, Dataset, Principal, Run, Tenant, TenantRow
from postgres_server import PostgresServer


@pytest.fixture
def engine(database: Database) -> Iterator[Engine]:
    engine = database.open()
    migrations.upgrade(engine)
    yield engine
    engine.dispose()


def test_every_table_begins_its_primary_key_with_the_tenant() -> None:
    ours = [row_class.__table__ for row_class in TenantRow.__subclasses__()]
    assert set(ours) == TENANT_TABLES
    for table in ours:
        assert next(iter(table.primary_key.columns)).name == "tenant_id", table.name


def test_migrations_make_exactly_the_tables_that_are_declared(engine: Engine) -> None:
    migrations.upgrade(engine)  # A second time changes nothing.
    with db.read_transaction(engine) as connection:
        context = MigrationContext.configure(connection, opts={"version_table": migrations.VERSION_TABLE})
        assert compare_metadata(context, SQLModel.metadata) == []


def test_migrations_go_back_to_nothing(engine: Engine) -> None:
    migrations.downgrade(engine)
    assert inspect(engine).get_table_names() == [migrations.VERSION_TABLE]
    migrations.upgrade(engine)


def test_each_migration_goes_back_and_forth_by_itself(engine: Engine) -> None:
    script = ScriptDirectory(str(Path(migrations.__file__).parent))
    revisions = [revision.revision for revision in script.walk_revisions()]
    assert migrations.is_current(engine)
    for before in revisions[1:]:
        migrations.downgrade(engine, before)
        assert not migrations.is_current(engine)
        migrations.upgrade(engine)
        assert migrations.is_current(engine)
        migrations.downgrade(engine, before)
    migrations.upgrade(engine)
    with db.read_transaction(engine) as connection:
        assert walls.unprotected(connection, version_table=migrations.VERSION_TABLE) == []


def test_what_was_published_keeps_its_attestation_and_what_was_not_has_none(engine: Engine) -> None:
    migrations.downgrade(engine, "0015_erasure")
    bundle = (
        "INSERT INTO policy_bundle (tenant_id, digest_hex, author, state, proved, body, created_at_ms)"
        " VALUES (:tenant, :bundle, 'sam', 'active', :proved, :body, 1)"
    )
    publication = (
        "INSERT INTO publication (tenant_id, id, project_hex, bundle_hex, published_by, author, state, attestation_hex, created_at_ms)"
        " VALUES (:tenant, :id, 'p', :bundle, 's', 's', :state, :attestation, 1)"
    )
    with db.write_transaction(engine, "northbank", "lakeside") as connection:
        for tenant in ("northbank", "lakeside"):
            row = {"tenant_id": tenant, "region": "us", "suspended": False, "created_at_ms": 1}
            connection.execute(insert(Tenant.__table__).values(**row))  # type: ignore[attr-defined]  # SQLModel sets it.
            for name in ("first", "sent"):
                values = {"tenant": tenant, "bundle": name, "proved": name == "sent", "body": b"{}"}
                connection.execute(text(bundle), values)
        for tenant, number, name, state in (("northbank", 1, "sent", "published"), ("lakeside", 2, "first", "refused")):
            values = {"tenant": tenant, "id": f"{number}", "bundle": name, "state": state, "attestation": f"a{number}"}
            connection.execute(text(publication), values)
    migrations.upgrade(engine)
    with db.read_transaction(engine, "northbank", "lakeside") as connection:
        rows = connection.execute(text("SELECT tenant_id, digest_hex, attestation_hex FROM policy_bundle"))
        found = {(row[0], row[1]): row[2] for row in rows}
    assert found == {
        ("northbank", "first"): None,
        ("northbank", "sent"): "a1",
        ("lakeside", "first"): None,
        ("lakeside", "sent"): None,
    }


def test_of_several_processes_that_migrate_at_once_one_does(database: Database) -> None:
    engines = [database.open() for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(migrations.upgrade, engines))
    for engine in engines:
        assert migrations.is_current(engine)
        engine.dispose()


def test_a_migration_that_fails_leaves_the_schema_as_it_was(database: Database) -> None:
    engine = database.open()
    with db.write_transaction(engine) as connection:
        connection.execute(text("CREATE TABLE tenant (something_else INTEGER)"))
    with pytest.raises((OperationalError, ProgrammingError)):
        migrations.upgrade(engine)
    assert inspect(engine).get_table_names() == ["tenant"]
    engine.dispose()


def test_connections_are_durable_and_keep_foreign_keys(tmp_path: Path) -> None:
    engine = db.open_engine(tmp_path / "licet.db")
    migrations.upgrade(engine)
    with db.read_transaction(engine) as connection:
        settings = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert settings == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}
    with pytest.raises(IntegrityError), db.tenant_session(engine, "northbank", write=True) as session:
        session.add(Principal(tenant_id="northbank", name="ada", kind="person", created_at_ms=1))
    engine.dispose()


def test_connections_to_postgresql_are_durable_whatever_its_default_is(postgres: PostgresServer) -> None:
    name = postgres.create()
    with postgres.admin() as admin:
        admin.execute(f"ALTER DATABASE {name} SET synchronous_commit = off".encode())
    engine = db.open_engine(postgres.url(name))
    for begin in (db.read_transaction, db.write_transaction):
        with begin(engine) as connection:
            assert connection.execute(text("SHOW synchronous_commit")).scalar() == "on"
    engine.dispose()
    postgres.drop(name)


@pytest.mark.parametrize("database", ["sqlite://", ":memory:", "sqlite:///file:x?mode=memory&uri=true", "mysql://x/y"])
def test_a_database_that_would_keep_nothing_or_is_not_known_is_refused(database: str) -> None:
    with pytest.raises(db.StoreError):
        db.open_engine(database)


def test_json_columns_are_sorted_text_and_refuse_what_is_not_json(engine: Engine) -> None:
    def run(name: str, spec: dict[str, object]) -> Run:
        return Run(
            tenant_id="northbank",
            name=name,
            use="credit",
            environment="us",
            region="us",
            spec=spec,
            state="accepted",
            started_by="ada",
            started_by_kind="person",
            created_at_ms=1,
        )

    with db.tenant_session(engine, "northbank", write=True) as session:
        session.add(Tenant(tenant_id="northbank", region="us", created_at_ms=1))
        session.flush()
        session.add(run("r1", {"b": [1, "é"], "a": None}))
    with db.read_transaction(engine) as connection:
        assert connection.execute(text("SELECT spec, outcome FROM run")).one() == ('{"a":null,"b":[1,"é"]}', None)
    with db.tenant_session(engine, "northbank") as session:
        stored = session.get(Run, ("northbank", "r1"))
        assert stored is not None
        assert stored.spec == {"b": [1, "é"], "a": None}
    with pytest.raises((StatementError, ValueError)), db.tenant_session(engine, "northbank", write=True) as session:
        session.add(run("r2", {"loss": math.nan}))


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_writers_wait_for_each_other_and_readers_do_not(engine: Engine) -> None:
    entered, leave, order = threading.Event(), threading.Event(), []

    def first() -> None:
        with db.write_transaction(engine) as connection:
            connection.execute(
                text("INSERT INTO tenant (tenant_id, region, suspended, created_at_ms) VALUES ('aa', 'us', 0, 1)")
            )
            entered.set()
            assert leave.wait(10)
            order.append("first")

    def second() -> None:
        with db.write_transaction(engine):
            order.append("second")

    threads = [threading.Thread(target=first)]
    threads[0].start()
    assert entered.wait(10)
    threads.append(threading.Thread(target=second))
    threads[1].start()
    with db.tenant_session(engine, "aa") as session:
        assert session.get(Tenant, ("aa",)) is None  # Not committed, and not waited for.
    leave.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first", "second"]


def test_a_reader_sees_one_state_however_long_it_reads(engine: Engine) -> None:
    with db.read_transaction(engine) as reader:
        assert reader.execute(text("SELECT count(*) FROM tenant")).scalar() == 0
        with db.write_transaction(engine) as writer:
            writer.execute(
                text("INSERT INTO tenant (tenant_id, region, suspended, created_at_ms) VALUES ('aa', 'us', false, 1)")
            )
        assert reader.execute(text("SELECT count(*) FROM tenant")).scalar() == 0
        with pytest.raises(DBAPIError):
            reader.execute(
                text("INSERT INTO tenant (tenant_id, region, suspended, created_at_ms) VALUES ('bb', 'us', false, 1)")
            )
    with db.read_transaction(engine) as reader:
        assert reader.execute(text("SELECT count(*) FROM tenant")).scalar() == 1


def test_an_exception_rolls_a_write_back_and_lets_the_lock_go(engine: Engine) -> None:
    def write_and_fail() -> None:
        with db.tenant_session(engine, "aa", write=True) as session:
            session.add(Tenant(tenant_id="aa", region="us", created_at_ms=1))
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    with db.tenant_session(engine, "aa", write=True) as session:
        assert session.get(Tenant, ("aa",)) is None


def test_rows_addressed_by_content_may_be_inserted_twice(engine: Engine) -> None:
    table = Tenant.__table__
    row = {"tenant_id": "aa", "region": "us", "created_at_ms": 1}
    with db.write_transaction(engine) as connection:
        for region in ("us", "eu"):
            connection.execute(db.insert_if_absent(connection, table), [row | {"region": region}])
    with db.tenant_session(engine, "aa") as session:
        tenant = session.get(Tenant, "aa")
        assert tenant is not None
        assert tenant.region == "us"


def test_table_classes_do_not_validate_so_nobody_may_rely_on_it() -> None:
    # If SQLModel ever does, the separate input models can go.
    assert Dataset(tenant_id=7).tenant_id == 7


def test_a_server_that_is_not_there_is_told_in_words_that_the_workflow_engine_takes_for_what_may_pass(
    postgres: PostgresServer,
) -> None:
    # Else an operation would end for it: what is not one of the engine's own words is no lost connection to it.
    engine = db.open_engine(postgres.url("licet_none").set(query={"host": "/nowhere"}))
    with pytest.raises(OperationalError) as told:
        engine.connect()
    assert retriable_postgres_exception(told.value)
    with pytest.raises(DatabaseUnavailable, match="does not answer"), db.read_transaction(engine):
        pass
