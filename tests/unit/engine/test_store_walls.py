"""The second wall between tenants, in PostgreSQL, as the roles of the processes see it."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import DataError, IntegrityError, ProgrammingError

from licet_engine.domain.errors import ConfigurationError
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import Insert, NewEntry, Submission, Update
from licet_engine.store import db, migrations, walls
from licet_engine.store.access import Role
from licet_engine.store.tables import TENANT_TABLES, ApiToken, Dataset, Operation, Principal, Tenant
from postgres_server import PostgresServer

TENANTS = ("lakeside", "northbank")


@pytest.fixture(scope="module")
def name(postgres: PostgresServer, migrated: str) -> Iterator[str]:
    name = postgres.create(like=migrated)
    sequencer = Sequencer(engine := db.open_engine(postgres.url(name, Role.SEQUENCER)))
    for tenant in TENANTS:
        rows = [
            Insert(Tenant, [{"tenant_id": tenant, "region": "us", "created_at_ms": 1}]),
            Insert(Principal, [{"tenant_id": tenant, "name": "ada", "kind": "person", "created_at_ms": 1}]),
            Insert(
                ApiToken,
                [{"tenant_id": tenant, "hash_hex": tenant, "id": "t", "principal": "ada", "created_at_ms": 1}],
            ),
        ]
        sequencer.append(Submission([NewEntry(tenant, "people", tenant, tenant, b"{}")], companions=rows))
    sequencer.close()
    engine.dispose()
    yield name
    postgres.drop(name)


@pytest.fixture(params=list(Role), ids=lambda role: role.value)
def role(request: pytest.FixtureRequest) -> Role:
    found: Role = request.param
    return found


@pytest.fixture
def engine(postgres: PostgresServer, name: str, role: Role) -> Iterator[Engine]:
    engine = db.open_engine(postgres.url(name, role))
    yield engine
    engine.dispose()


def open_as(postgres: PostgresServer, name: str, role: Role) -> Engine:
    return db.open_engine(postgres.url(name, role))


def may(engine: Engine, statement: str, *tenants: str) -> list[tuple[object, ...]] | None:
    """What a statement gives; None where the role has no right to it."""
    try:
        with db.write_transaction(engine, *(tenants or ("northbank",))) as connection:
            result = connection.execute(text(statement))
            return [tuple(row) for row in result] if result.returns_rows else []
    except ProgrammingError as error:
        if "permission denied" in str(error.orig):
            return None
        raise


# --- rows -----------------------------------------------------------------------------------------------------------------


def test_every_table_there_is_has_a_tenant_and_forced_row_security(postgres: PostgresServer, name: str) -> None:
    engine = open_as(postgres, name, Role.OWNER)
    with db.read_transaction(engine) as connection:
        assert walls.unprotected(connection, version_table=migrations.VERSION_TABLE) == []
        protected = set(
            connection.execute(text("SELECT tablename FROM pg_policies WHERE policyname = 'licet_tenant'")).scalars()
        )
        there = set(inspect(connection).get_table_names()) - {migrations.VERSION_TABLE}
    engine.dispose()
    assert protected == there == {table.name for table in TENANT_TABLES}


def test_a_table_that_a_migration_forgot_is_found(postgres: PostgresServer, name: str) -> None:
    engine = open_as(postgres, name, Role.OWNER)
    with db.write_transaction(engine) as connection:
        connection.execute(text("CREATE TABLE forgotten (tenant_id text)"))
        assert walls.unprotected(connection, version_table=migrations.VERSION_TABLE) == ["forgotten"]
        connection.execute(text("ALTER TABLE forgotten ENABLE ROW LEVEL SECURITY"))
        assert walls.unprotected(connection, version_table=migrations.VERSION_TABLE) == [
            "forgotten"
        ]  # Its owner would still see every row.
        walls.protect(connection, "forgotten")
        assert walls.unprotected(connection, version_table=migrations.VERSION_TABLE) == []
        # Nor is there one that has no tenant at all.
        connection.execute(text("CREATE TABLE everybodys (name text)"))
        assert walls.unprotected(connection, version_table=migrations.VERSION_TABLE) == ["everybodys"]
        connection.rollback()
    engine.dispose()


def test_a_transaction_sees_the_tenants_it_names_and_no_other(engine: Engine, role: Role) -> None:
    statement = f"SELECT tenant_id FROM {'principal' if role is Role.OWNER else 'log_head'} ORDER BY 1"  # noqa: S608 - as below.
    for tenants in (("northbank",), ("lakeside",), TENANTS):
        assert may(engine, statement, *tenants) == [(t,) for t in tenants]
    assert may(engine, statement, "nobody") == []


def test_a_transaction_that_names_no_tenant_fails_instead_of_seeing_nothing(engine: Engine) -> None:
    for begin in (db.read_transaction, db.write_transaction):
        with pytest.raises(DataError, match="malformed array"), begin(engine) as connection:
            connection.execute(text("SELECT tenant_id FROM log_head"))
    engine.dispose()
    # Nor one that was not begun by us: on a fresh connection the setting does not exist at all.
    with engine.connect() as connection, pytest.raises((ProgrammingError, DataError)):
        connection.execute(text("SELECT tenant_id FROM log_head"))


def test_what_a_transaction_named_does_not_outlive_it(engine: Engine) -> None:
    assert may(engine, "SELECT 1 FROM log_head", *TENANTS) is not None
    with pytest.raises(DataError), db.read_transaction(engine) as connection:
        connection.execute(text("SELECT tenant_id FROM log_head"))


def test_a_row_of_a_tenant_that_was_not_named_is_neither_written_nor_moved_there(
    postgres: PostgresServer, name: str
) -> None:
    engine = open_as(postgres, name, Role.SEQUENCER)
    with pytest.raises(ProgrammingError, match="row-level security"), db.write_transaction(engine, "northbank") as c:
        c.execute(text("INSERT INTO principal VALUES ('lakeside', 'eve', 'person', '[]', true, NULL, 1)"))
    with pytest.raises(ProgrammingError, match="row-level security"), db.write_transaction(engine, "northbank") as c:
        c.execute(text("UPDATE principal SET tenant_id = 'lakeside', name = 'eve'"))
    with db.write_transaction(engine, "northbank") as c:
        assert c.execute(text("UPDATE principal SET active = false WHERE tenant_id = 'lakeside'")).rowcount == 0
    engine.dispose()


def test_only_the_owner_and_for_some_tables_the_api_may_look_at_every_tenant(engine: Engine, role: Role) -> None:
    seen = {
        table.name
        for table in TENANT_TABLES
        if may(engine, f'SELECT tenant_id FROM "{table.name}"', "*")  # noqa: S608 - names of our own tables.
    }
    filled = {"api_token", "log_head", "log_leaf", "log_record", "principal", "tenant"}
    expected = {Role.OWNER: filled, Role.API: filled & walls.API_SEES_EVERYWHERE}
    assert seen == expected.get(role, set())


def test_no_tenant_can_be_called_like_the_word_for_all_of_them(engine: Engine, role: Role) -> None:
    with pytest.raises((ProgrammingError, IntegrityError)), db.write_transaction(engine, "northbank") as connection:
        connection.execute(text("INSERT INTO tenant VALUES ('*', 'us', false, 1, NULL)"))
    assert role in Role


# --- rights ---------------------------------------------------------------------------------------------------------------


def test_the_sequencer_reads_heads_leaves_tiles_and_budgets_and_of_the_rest_only_conditions(
    postgres: PostgresServer, name: str
) -> None:
    engine = open_as(postgres, name, Role.SEQUENCER)
    whole = {t.name for t in TENANT_TABLES if may(engine, f'SELECT * FROM "{t.name}"') is not None}  # noqa: S608 - as above.
    # Of three tables every column is a key, a state or a number.
    assert whole == {*walls.SEQUENCER_READS, "used_id_token", "device_allotment", "policy_shadow"}
    for hidden in (
        *("SELECT record FROM log_record", "SELECT salt FROM log_record", "SELECT body FROM fact_blob"),
        *("SELECT purpose FROM dataset", "SELECT parameters FROM operation", "SELECT envelope FROM attestation"),
        *("SELECT body FROM policy_bundle", "SELECT roles FROM principal", "SELECT body FROM idempotency_key"),
        *("SELECT * FROM decision", "SELECT * FROM metric", "SELECT * FROM log_checkpoint"),
        "SELECT inputs FROM dbos.workflow_input",
    ):
        assert may(engine, hidden) is None, hidden
    engine.dispose()


@pytest.mark.parametrize("table", ["log_leaf", "log_record", "decision", "fact_blob", "attestation"])
def test_nobody_but_the_owner_can_change_or_remove_what_was_logged(
    postgres: PostgresServer, name: str, table: str
) -> None:
    for role in (Role.API, Role.SEQUENCER, Role.WORKER):
        engine = open_as(postgres, name, role)
        for statement in (f"UPDATE {table} SET tenant_id = tenant_id", f"DELETE FROM {table}", f"TRUNCATE {table}"):  # noqa: S608 - as above.
            assert may(engine, statement) is None, (role, statement)
        engine.dispose()


def test_the_sequencer_can_empty_what_was_logged_and_write_nothing_else_there(
    postgres: PostgresServer, name: str
) -> None:
    emptied = {
        "log_record": "salt = NULL, record = NULL",
        "decision": "principal = '(erased)', resource = '(erased)', observed = '[]'",
    }
    for role in (Role.API, Role.WORKER):
        engine = open_as(postgres, name, role)
        for table, change in emptied.items():
            assert may(engine, f"UPDATE {table} SET {change} WHERE leaf_index = 0") is None, (role, table)  # noqa: S608 - as above.
        engine.dispose()
    engine = open_as(postgres, name, Role.SEQUENCER)
    for table, change in emptied.items():
        assert may(engine, f"UPDATE {table} SET {change} WHERE leaf_index = 0") is not None, table  # noqa: S608 - as above.
    for hidden in ("leaf_index = 1", "tenant_id = 'x'"):
        for table in emptied:
            assert may(engine, f"UPDATE {table} SET {hidden} WHERE leaf_index = 0") is None, (table, hidden)  # noqa: S608 - as above.
    engine.dispose()


def test_the_api_writes_telemetry_removes_what_is_over_its_time_and_changes_no_fact(
    postgres: PostgresServer, name: str
) -> None:
    engine = open_as(postgres, name, Role.API)
    # Devices and who waits for them are nobody else's to write.
    over_its_time = {"device", "device_wait", "metric", "log_checkpoint", "idempotency_key", "traffic_event"}
    over_its_time |= {"log_cosignature", "invocation_batch", "webhook_message", "webhook_try"}
    over_its_time |= {"used_id_token", "policy_flip", "policy_shadow", "policy_shadow_count"}
    telemetry = {
        "device",
        "device_wait",
        "metric",
        "log_checkpoint",
        "log_cosignature",
        "webhook_try",
        "policy_flip",
        "policy_shadow_count",
    }
    for table in sorted(TENANT_TABLES, key=lambda table: table.name):
        removed = may(engine, f'DELETE FROM "{table.name}"')  # noqa: S608 - as above.
        assert (removed is not None) == (table.name in over_its_time), table.name
        assert may(engine, f'UPDATE "{table.name}" SET tenant_id = tenant_id') is None, table.name  # noqa: S608 - as above.
        if table.name not in telemetry:
            assert may(engine, f"INSERT INTO \"{table.name}\" (tenant_id) VALUES ('northbank')") is None  # noqa: S608 - as above.
    assert may(engine, "UPDATE operation SET state = 'running', attempt = attempt + 1") == []
    assert may(engine, "UPDATE operation SET last_decision_id = 'forged'") is None
    assert may(engine, "SELECT * FROM dbos.workflow_status") is None
    engine.dispose()


def test_the_worker_sees_the_workflow_engine_and_what_an_export_needs(postgres: PostgresServer, name: str) -> None:
    engine = open_as(postgres, name, Role.WORKER)
    seen = {t.name for t in TENANT_TABLES if may(engine, f'SELECT * FROM "{t.name}"') is not None}  # noqa: S608 - as above.
    assert seen == set(walls.WORKER_READS)
    assert may(engine, "SELECT * FROM dbos.workflow_status") == []
    for table in TENANT_TABLES:
        assert may(engine, f"INSERT INTO \"{table.name}\" (tenant_id) VALUES ('northbank')") is None  # noqa: S608 - as above.
    engine.dispose()


@pytest.mark.parametrize("right", ["TRIGGER", "REFERENCES", "TRUNCATE", "MAINTAIN"])
def test_no_role_but_the_owner_can_hang_anything_on_a_table_empty_it_or_lock_it_at_will(
    postgres: PostgresServer, name: str, right: str
) -> None:
    with postgres.admin(name) as admin:
        tables = admin.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname IN ('public', 'dbos')"
        ).fetchall()
        assert len(tables) > len(TENANT_TABLES) + 10
        for role in (Role.API, Role.SEQUENCER, Role.WORKER):
            for (table,) in tables:
                asked = (f"licet_{role.value}", table, right)
                assert admin.execute("SELECT has_table_privilege(%s, %s, %s)", asked).fetchone() == (False,), asked


def test_of_the_workflow_engines_schema_each_role_has_what_it_needs_and_no_more(
    postgres: PostgresServer, name: str
) -> None:
    with postgres.admin(name) as admin:
        found: dict[tuple[str, str], set[str]] = {}
        for role in ("licet_api", "licet_sequencer", "licet_worker"):
            for table, rights in admin.execute(
                "SELECT tablename, (SELECT array_agg(r) FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) r"
                " WHERE has_table_privilege(%s, format('dbos.%%I', tablename), r)) FROM pg_tables WHERE schemaname = 'dbos'",
                (role,),
            ).fetchall():
                found[role, table] = set(rights or ())
            functions = admin.execute(
                "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'dbos'::regnamespace"
                " AND has_function_privilege(%s, oid, 'EXECUTE')",
                (role,),
            ).fetchall()
            assert functions == []
    every = {"SELECT", "INSERT", "UPDATE", "DELETE"}
    for (role, table), rights in found.items():
        expected = {
            "licet_worker": {"SELECT"} if table == "dbos_migrations" else every,
            "licet_sequencer": {"workflow_status": every - {"DELETE"}, "workflow_input": {"INSERT"}}.get(table, set()),
        }
        assert rights == expected.get(role, set()), (role, table)


@pytest.mark.parametrize("role", [Role.API, Role.SEQUENCER, Role.WORKER])
def test_no_role_but_the_owner_can_make_tables_or_lift_a_wall(engine: Engine) -> None:
    assert may(engine, "CREATE TABLE mine (x int)") is None
    for statement in (
        "ALTER TABLE log_head DISABLE ROW LEVEL SECURITY",
        "CREATE POLICY mine ON log_head USING (true)",
        "DROP POLICY licet_tenant ON log_head",
    ):
        with pytest.raises(ProgrammingError, match="must be owner"):
            may(engine, statement)


def test_a_superuser_is_refused_because_no_wall_holds_for_it(postgres: PostgresServer, name: str) -> None:
    url = postgres.url(name).set(username="postgres", password="postgres-pass-word")
    engine = db.open_engine(url)
    with pytest.raises(ConfigurationError, match="superuser"), db.read_transaction(engine, "northbank"):
        pass
    engine.dispose()


def test_rights_given_by_hand_are_taken_away_when_they_are_given_anew(postgres: PostgresServer, migrated: str) -> None:
    name = postgres.create(like=migrated)
    owner = open_as(postgres, name, Role.OWNER)
    worker = open_as(postgres, name, Role.WORKER)
    with db.write_transaction(owner) as connection:
        connection.execute(text("GRANT DELETE ON log_leaf TO licet_worker"))
    assert may(worker, "DELETE FROM log_leaf") == []
    roles = walls.RoleNames(api="licet_api", sequencer="licet_sequencer", worker="licet_worker")
    with db.write_transaction(owner) as connection:
        walls.grant(connection, roles, version_table=migrations.VERSION_TABLE)
    assert may(worker, "DELETE FROM log_leaf") is None
    owner.dispose()
    worker.dispose()
    postgres.drop(name)


def test_every_column_that_a_change_may_state_as_its_condition_can_be_read_by_the_sequencer(
    postgres: PostgresServer, name: str
) -> None:
    # What a submission may say: keys, states and numbers, also where nothing is there to match.
    engine = open_as(postgres, name, Role.SEQUENCER)
    sequencer = Sequencer(engine)
    key = {"tenant_id": "northbank", "id": "none", "state": "accepted", "attempt": 1}
    changes = [
        Update(Operation, key, {"state": "done", "error": None}, expected_rows=0),
        Update(Dataset, {"tenant_id": "northbank", "state": "ready"}, {"state": "archived"}, expected_rows=0),
    ]
    receipt = sequencer.append(
        Submission([NewEntry("northbank", "decision", "northbank", "northbank", b"{}")], companions=changes)
    )
    assert len(receipt.placed) == 1
    sequencer.close()
    engine.dispose()
