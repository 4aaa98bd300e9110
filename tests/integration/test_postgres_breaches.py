"""What was changed in the database by hand, or planted there, is found by the start and by the doctor, before it does harm."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege

import licet_engine.init
from licet_engine.commands import doctor
from licet_engine.domain.errors import ConfigurationError
from licet_engine.init import prepare_database, verify_prepared
from licet_engine.settings import Settings, load_settings
from licet_engine.store.access import Role
from postgres_server import PostgresServer

OURS = "public.principal"
TRIGGER = "FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()"
TENANT_POLICY = "tenant_id = ANY ((SELECT current_setting('licet.tenants')::text[])::text[])"


@pytest.fixture(scope="module")
def settings(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Of a database whose walls stand; every test leaves it so."""
    name, folder = postgres.create(), tmp_path_factory.mktemp("breaches")
    made = load_settings({}, data=folder / "d", database_urls=str(postgres.write_urls(name, folder / "urls")))
    prepare_database(made)
    yield made
    postgres.drop(name)


@pytest.fixture
def admin(postgres: PostgresServer, settings: Settings) -> Iterator[psycopg.Connection[Any]]:
    with postgres.admin(postgres.name_of(settings.database_urls)) as connection:
        yield connection


def as_role(postgres: PostgresServer, settings: Settings, role: Role) -> psycopg.Connection[Any]:
    url = postgres.url(postgres.name_of(settings.database_urls), role)
    return psycopg.connect(
        host=str(url.query["host"]), user=url.username, password=url.password, dbname=url.database, autocommit=True
    )


def broken(settings: Settings) -> list[doctor.Finding]:
    return [finding for finding in doctor.look_at_database(settings) if finding.state == "broken"]


def run(connection: psycopg.Connection[Any], *statements: str) -> None:
    for statement in statements:
        connection.execute(statement.encode())


# --- what outlives a right, or is somebody else's ----------------------------------------------------------------------------

# What is done, what undoes it, and what is told.
BREACHES = {
    "a trigger on the queue": (
        [f"CREATE TRIGGER evil BEFORE INSERT ON dbos.workflow_status {TRIGGER}"],
        ["DROP TRIGGER evil ON dbos.workflow_status"],
        "the trigger evil on dbos.workflow_status is not of Licet.*DROP TRIGGER evil ON dbos.workflow_status",
    ),
    "a trigger where the owner writes": (
        [f"CREATE TRIGGER evil BEFORE UPDATE ON dbos.dbos_migrations {TRIGGER}"],
        ["DROP TRIGGER evil ON dbos.dbos_migrations"],
        "the trigger evil on dbos.dbos_migrations",
    ),
    "a trigger on a log": (
        [f"CREATE TRIGGER evil BEFORE INSERT ON public.log_leaf {TRIGGER}"],
        ["DROP TRIGGER evil ON public.log_leaf"],
        "the trigger evil on public.log_leaf",
    ),
    "a trigger that is called like the engine's": (
        [
            (
                "CREATE TRIGGER dbos_notifications_trigger AFTER INSERT ON dbos.workflow_status"
                " FOR EACH ROW EXECUTE FUNCTION dbos.notifications_function()"
            )
        ],
        ["DROP TRIGGER dbos_notifications_trigger ON dbos.workflow_status"],
        "the trigger dbos_notifications_trigger on dbos.workflow_status",
    ),
    "the engine's own trigger with a condition": (
        [
            "DROP TRIGGER dbos_notifications_trigger ON dbos.notifications",
            (
                "CREATE TRIGGER dbos_notifications_trigger AFTER INSERT ON dbos.notifications FOR EACH ROW"
                " WHEN (set_config('synchronous_commit', 'off', false) IS NULL) EXECUTE FUNCTION dbos.notifications_function()"
            ),
        ],
        [
            "DROP TRIGGER dbos_notifications_trigger ON dbos.notifications",
            (
                "CREATE TRIGGER dbos_notifications_trigger AFTER INSERT ON dbos.notifications"
                " FOR EACH ROW EXECUTE FUNCTION dbos.notifications_function()"
            ),
        ],
        "the trigger dbos_notifications_trigger on dbos.notifications",
    ),
    "a rule": (
        ["CREATE RULE evil AS ON INSERT TO public.log_leaf DO INSTEAD NOTHING"],
        ["DROP RULE evil ON public.log_leaf"],
        "the rule evil on public.log_leaf",
    ),
    "a view of the owner's": (
        [f"CREATE VIEW public.v AS TABLE {OURS}", "ALTER VIEW public.v OWNER TO licet_owner"],
        ["DROP VIEW public.v"],
        "not of Licet.*view (public.)?v",
    ),
    "a view of the owner's in another schema": (
        [
            "CREATE SCHEMA elsewhere",
            f"CREATE VIEW elsewhere.v AS TABLE {OURS}",
            "ALTER VIEW elsewhere.v OWNER TO licet_owner",
        ],
        ["DROP SCHEMA elsewhere CASCADE"],
        "not of Licet.*view elsewhere.v",
    ),
    "a function": (
        ["CREATE FUNCTION public.f() RETURNS int LANGUAGE sql AS 'SELECT 1'"],
        ["DROP FUNCTION public.f()"],
        r"not of Licet.*function (public\.)?f\(\)",
    ),
    "a function of the owner's in another schema": (
        [
            "CREATE SCHEMA elsewhere",
            "CREATE FUNCTION elsewhere.f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
            "ALTER FUNCTION elsewhere.f() OWNER TO licet_owner",
        ],
        ["DROP SCHEMA elsewhere CASCADE"],
        r"not of Licet.*function elsewhere\.f\(\)",
    ),
    "a function of the engine's that runs as its owner": (
        ["ALTER FUNCTION dbos.send_message SECURITY DEFINER"],
        ["ALTER FUNCTION dbos.send_message SECURITY INVOKER"],
        r"not of Licet.*dbos\.send_message",
    ),
    "an operator": (
        ["CREATE OPERATOR public.= (FUNCTION = pg_catalog.textne, LEFTARG = text, RIGHTARG = text)"],
        ["DROP OPERATOR public.= (text, text)"],
        "not of Licet.*operator",
    ),
    "a table of another's": (
        ["ALTER TABLE public.metric OWNER TO postgres"],
        ["ALTER TABLE public.metric OWNER TO licet_owner"],
        "not of Licet, or not its owner's.*table (public.)?metric",
    ),
    "a second policy": (
        [f"CREATE POLICY open ON {OURS} USING (true)"],
        [f"DROP POLICY open ON {OURS}"],
        "the policy 'open' on public.principal is not as Licet makes it",
    ),
    "a policy that lets everything through": (
        [f"ALTER POLICY licet_tenant ON {OURS} USING (true)"],
        [f"ALTER POLICY licet_tenant ON {OURS} USING ({TENANT_POLICY})"],
        "the policy 'licet_tenant' on public.principal is not as Licet makes it",
    ),
    "a policy that lets everything be written": (
        [f"ALTER POLICY licet_tenant ON {OURS} WITH CHECK (true)"],
        [f"ALTER POLICY licet_tenant ON {OURS} WITH CHECK ({TENANT_POLICY})"],
        "the policy 'licet_tenant' on public.principal is not as Licet makes it",
    ),
    "the owner's policy for all": (
        [f"ALTER POLICY licet_owner ON {OURS} TO PUBLIC"],
        [f"ALTER POLICY licet_owner ON {OURS} TO licet_owner"],
        "the policy 'licet_owner' on public.principal is not as Licet makes it",
    ),
    "a policy on the engine's tables": (
        ["CREATE POLICY evil ON dbos.workflow_status USING (true)"],
        ["DROP POLICY evil ON dbos.workflow_status"],
        "the policy 'evil' on dbos.workflow_status is not as Licet makes it",
    ),
    "a policy that was dropped": (
        [f"DROP POLICY licet_owner ON {OURS}"],
        [
            (
                f"CREATE POLICY licet_owner ON {OURS} TO licet_owner USING ('*' = ANY"
                " ((SELECT current_setting('licet.tenants')::text[])::text[])) WITH CHECK ('*' = ANY"
                " ((SELECT current_setting('licet.tenants')::text[])::text[]))"
            )
        ],
        "the policy 'licet_owner' on principal is missing",
    ),
    "row security that is not forced": (
        [f"ALTER TABLE {OURS} NO FORCE ROW LEVEL SECURITY"],
        [f"ALTER TABLE {OURS} FORCE ROW LEVEL SECURITY"],
        "row security is not forced on principal",
    ),
    "a right of everybody on a table": (
        ["GRANT UPDATE ON public.log_leaf TO PUBLIC"],
        ["REVOKE UPDATE ON public.log_leaf FROM PUBLIC"],
        r"PUBLIC has UPDATE ON TABLE public\.log_leaf.*REVOKE UPDATE ON TABLE public\.log_leaf FROM PUBLIC",
    ),
    "a right of everybody on a column": (
        ["GRANT SELECT (hash_hex) ON public.api_token TO PUBLIC"],
        ["REVOKE SELECT (hash_hex) ON public.api_token FROM PUBLIC"],
        r"PUBLIC has SELECT \(hash_hex\) ON TABLE public\.api_token",
    ),
    "a right of a stranger": (
        ["CREATE ROLE stranger", "GRANT SELECT ON public.log_record TO stranger"],
        ["DROP OWNED BY stranger", "DROP ROLE stranger"],
        r"the role 'stranger' has SELECT ON TABLE public\.log_record",
    ),
    "everybody may make things in the schema": (
        ["GRANT CREATE ON SCHEMA public TO PUBLIC"],
        ["REVOKE CREATE ON SCHEMA public FROM PUBLIC"],
        "PUBLIC has CREATE ON SCHEMA public",
    ),
    "everybody may look into the engine's schema": (
        ["GRANT USAGE ON SCHEMA dbos TO PUBLIC"],
        ["REVOKE USAGE ON SCHEMA dbos FROM PUBLIC"],
        "PUBLIC has USAGE ON SCHEMA dbos",
    ),
    "everybody may have temporary tables": (
        ["GRANT TEMPORARY ON DATABASE {database} TO PUBLIC"],
        ["REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC"],
        "PUBLIC has TEMPORARY ON DATABASE",
    ),
    "everybody may connect": (
        ["GRANT CONNECT ON DATABASE {database} TO PUBLIC"],
        ["REVOKE CONNECT ON DATABASE {database} FROM PUBLIC"],
        "PUBLIC has CONNECT ON DATABASE",
    ),
    "a right on a parameter of the server": (
        ["GRANT SET ON PARAMETER session_replication_role TO licet_worker"],
        ["REVOKE SET ON PARAMETER session_replication_role FROM licet_worker"],
        "the role 'licet_worker' has SET ON PARAMETER session_replication_role",
    ),
    "a right on the server's own functions": (
        ["GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_file(text) TO licet_worker"],
        ["REVOKE EXECUTE ON FUNCTION pg_catalog.pg_read_file(text) FROM licet_worker"],
        r"the role 'licet_worker' has EXECUTE ON ROUTINE pg_catalog\.pg_read_file",
    ),
    "rights on what will be made": (
        ["ALTER DEFAULT PRIVILEGES FOR ROLE licet_owner GRANT SELECT ON TABLES TO PUBLIC"],
        ["ALTER DEFAULT PRIVILEGES FOR ROLE licet_owner REVOKE SELECT ON TABLES FROM PUBLIC"],
        "by default privileges, PUBLIC will have SELECT on TABLES",
    ),
    "rights on what will be made in the schema": (
        ["ALTER DEFAULT PRIVILEGES FOR ROLE licet_owner IN SCHEMA public GRANT SELECT ON TABLES TO licet_worker"],
        ["ALTER DEFAULT PRIVILEGES FOR ROLE licet_owner IN SCHEMA public REVOKE SELECT ON TABLES FROM licet_worker"],
        "default privileges on new relations",
    ),
}


@pytest.mark.parametrize("case", BREACHES)
def test_what_was_changed_by_hand_stops_the_start_and_is_told_by_the_doctor(
    postgres: PostgresServer, settings: Settings, admin: psycopg.Connection[Any], case: str
) -> None:
    on, off, told = BREACHES[case]
    name = postgres.name_of(settings.database_urls)
    assert broken(settings) == []
    run(admin, *(statement.replace("{database}", name) for statement in on))
    try:
        with pytest.raises(ConfigurationError, match=told):
            prepare_database(settings)
        # Nor does a slot that comes second, and has no owner's URL, begin.
        with pytest.raises(ConfigurationError, match=told):
            verify_prepared(settings)
        (finding,) = broken(settings)
        assert re.search(told, f"{finding.detail}. {finding.mend}")
    finally:
        run(admin, *(statement.replace("{database}", name) for statement in off))
    prepare_database(settings)
    assert broken(settings) == []


@pytest.mark.parametrize(
    ("right", "thing"),
    [
        ("TRIGGER", "ON dbos.workflow_status"),
        ("INSERT", "ON dbos.dbos_migrations"),
        ("UPDATE", "ON public.hold"),
        ("SELECT (roles)", "ON public.principal"),
        ("CREATE", "ON SCHEMA public"),
        ("CREATE", "ON SCHEMA dbos"),
        ("TEMPORARY", "ON DATABASE {database}"),
        ("EXECUTE", "ON FUNCTION dbos.send_message"),
    ],
)
def test_what_a_role_was_given_beside_its_own_is_told_by_the_doctor_and_taken_away_by_the_start(
    postgres: PostgresServer, settings: Settings, admin: psycopg.Connection[Any], right: str, thing: str
) -> None:
    thing = thing.replace("{database}", postgres.name_of(settings.database_urls))
    run(admin, f"GRANT {right} {thing} TO licet_worker")
    (finding,) = broken(settings)
    assert f"the role 'licet_worker' has {right}" in finding.detail
    with pytest.raises(ConfigurationError, match="the role 'licet_worker' has"):
        verify_prepared(settings)
    prepare_database(settings)
    assert broken(settings) == []


def test_a_right_that_was_taken_from_a_role_is_told_and_given_again(
    settings: Settings, admin: psycopg.Connection[Any]
) -> None:
    run(admin, "REVOKE SELECT ON public.log_leaf FROM licet_worker")
    (finding,) = broken(settings)
    assert finding.detail == "the role 'licet_worker' lacks SELECT ON TABLE public.log_leaf"
    prepare_database(settings)
    assert broken(settings) == []


def test_what_an_extension_of_the_administrators_brought_is_left_alone(
    settings: Settings, admin: psycopg.Connection[Any]
) -> None:
    run(admin, "CREATE EXTENSION pg_stat_statements SCHEMA public")
    try:
        prepare_database(settings)
        assert broken(settings) == []
    finally:
        run(admin, "DROP EXTENSION pg_stat_statements")


# --- roles ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.value)
@pytest.mark.parametrize(
    "case",
    [
        ("GRANT postgres TO {role}", "REVOKE postgres FROM {role}", "is a member of postgres"),
        ("GRANT stranger TO {role}", "REVOKE stranger FROM {role}", "is a member of stranger"),
        ("ALTER ROLE {role} REPLICATION", "ALTER ROLE {role} NOREPLICATION", "has REPLICATION"),
        ("ALTER ROLE {role} CREATEROLE", "ALTER ROLE {role} NOCREATEROLE", "has CREATEROLE"),
        ("ALTER ROLE {role} CREATEDB", "ALTER ROLE {role} NOCREATEDB", "has CREATEDB"),
        ("ALTER ROLE {role} BYPASSRLS", "ALTER ROLE {role} NOBYPASSRLS", "has BYPASSRLS"),
    ],
    ids=["superusers", "a-group", "replication", "createrole", "createdb", "bypassrls"],
)
def test_a_role_that_is_not_plain_is_refused(
    settings: Settings, admin: psycopg.Connection[Any], role: Role, case: tuple[str, str, str]
) -> None:
    on, off, told = case
    name = f"licet_{role.value}"
    run(admin, "CREATE ROLE stranger", on.replace("{role}", name))
    try:
        with pytest.raises(ConfigurationError, match=told) as refused:
            prepare_database(settings)
        assert name in refused.value.message
        assert told in broken(settings)[0].detail
    finally:
        run(admin, off.replace("{role}", name), "DROP ROLE stranger")
    prepare_database(settings)


def test_an_owner_that_is_not_plain_is_found_where_its_url_was_taken_away(
    settings: Settings, admin: psycopg.Connection[Any]
) -> None:
    owner = settings.database_url_file("owner")
    kept = owner.rename(owner.with_suffix(".kept"))
    run(admin, "GRANT pg_read_all_data TO licet_owner")
    try:
        told = "the role 'licet_owner' is not plain: it is a member of pg_read_all_data"
        with pytest.raises(ConfigurationError, match=told):
            prepare_database(settings)
        assert told in broken(settings)[0].detail
    finally:
        run(admin, "REVOKE pg_read_all_data FROM licet_owner")
        kept.rename(owner)
    prepare_database(settings)


# --- the worker's role as an attacker's ----------------------------------------------------------------------------------------


def test_the_workers_role_can_plant_nothing_that_others_would_run(postgres: PostgresServer, settings: Settings) -> None:
    with as_role(postgres, settings, Role.WORKER) as worker:
        for statement in (
            f"CREATE TRIGGER evil BEFORE INSERT ON dbos.workflow_status {TRIGGER}",
            "CREATE TEMPORARY TABLE mine (x int)",
            "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "CREATE FUNCTION public.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "UPDATE dbos.dbos_migrations SET version = 0",
            "DELETE FROM dbos.dbos_migrations",
            "INSERT INTO dbos.dbos_migrations VALUES (1)",
            "TRUNCATE dbos.workflow_status",
            "SELECT dbos.enqueue_workflow('perform', 'short-operations')",
        ):
            with pytest.raises(InsufficientPrivilege):
                worker.execute(statement.encode())


def test_a_trigger_that_was_planted_before_does_not_run_as_the_owner(
    postgres: PostgresServer, settings: Settings, admin: psycopg.Connection[Any]
) -> None:
    # As it was while the worker had every right on the engine's tables.
    run(admin, "GRANT ALL ON dbos.dbos_migrations TO licet_worker")
    with as_role(postgres, settings, Role.WORKER) as worker:
        run(
            worker,
            "LISTEN ran",
            "CREATE TRIGGER evil BEFORE UPDATE ON dbos.dbos_migrations FOR EACH ROW"
            f" WHEN (pg_notify('ran', current_user) IS NOT NULL) {TRIGGER.removeprefix('FOR EACH ROW ')}",
            # So the owner has a migration to do, and writes here.
            "UPDATE dbos.dbos_migrations SET version = version - 1",
        )
        assert [notice.payload for notice in worker.notifies(timeout=2, stop_after=1)] == ["licet_worker"]
        with pytest.raises(ConfigurationError, match=r"the trigger evil on dbos\.dbos_migrations"):
            prepare_database(settings)
        assert list(worker.notifies(timeout=0.5)) == []
        run(admin, "DROP TRIGGER evil ON dbos.dbos_migrations")
        prepare_database(settings)
        with pytest.raises(InsufficientPrivilege):
            worker.execute("UPDATE dbos.dbos_migrations SET version = 0")


def test_a_broken_count_of_the_engines_migrations_is_told_in_words(
    settings: Settings, admin: psycopg.Connection[Any]
) -> None:
    (version,) = admin.execute("DELETE FROM dbos.dbos_migrations RETURNING version").fetchone() or (0,)
    with pytest.raises(
        ConfigurationError, match=r"cannot be prepared as the role 'licet_owner': DuplicateTable: .*workflow_status"
    ):
        prepare_database(settings)
    admin.execute("INSERT INTO dbos.dbos_migrations VALUES (%s)", (version,))
    prepare_database(settings)


# --- locks and connections -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [7_162_453_981, 7_162_453_982], ids=["migrating", "preparing"])
@pytest.mark.parametrize("role", [Role.API, Role.WORKER], ids=lambda role: role.value)
def test_a_role_that_holds_the_lock_of_preparing_is_told_at_once_by_name(
    postgres: PostgresServer, settings: Settings, role: Role, number: int
) -> None:
    with as_role(postgres, settings, role) as holder:
        holder.execute("SELECT pg_advisory_lock(%s)", (number,))
        told = rf"the role 'licet_{role.value}' holds the lock .*pg_terminate_backend\({holder.info.backend_pid}\)"
        with pytest.raises(ConfigurationError, match=told):
            prepare_database(settings)
    prepare_database(settings)


def test_a_role_that_keeps_a_table_locked_is_told_by_name_after_a_while(
    postgres: PostgresServer,
    settings: Settings,
    admin: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(licet_engine.init, "LOCK_WAIT_S", 1.0)
    run(admin, "DROP POLICY licet_api ON public.tenant")
    with as_role(postgres, settings, Role.API) as holder, holder.transaction():
        holder.execute("LOCK TABLE public.tenant IN ACCESS SHARE MODE")
        with pytest.raises(
            ConfigurationError, match=rf"the role 'licet_api' \(process {holder.info.backend_pid} of the server\)"
        ):
            prepare_database(settings)
    prepare_database(settings)


def test_the_doctor_tells_of_roles_that_could_shut_the_others_out(
    settings: Settings, admin: psycopg.Connection[Any]
) -> None:
    def told() -> list[str]:
        return [found.detail for found in doctor.look_at_database(settings) if found.check == "connections"]

    assert told() == []
    (limit,) = admin.execute("SELECT rolconnlimit FROM pg_roles WHERE rolname = 'licet_worker'").fetchone() or (0,)
    try:
        run(admin, "ALTER ROLE licet_worker CONNECTION LIMIT -1")
        assert told() == ["the role 'licet_worker' may take every connection of the server, and so shut the others out"]
        run(admin, "ALTER ROLE licet_worker CONNECTION LIMIT 300")
        (more,) = told()
        assert re.fullmatch(r"the roles may open \d+ connections together, and the server has 297 for them", more)
    finally:
        run(admin, f"ALTER ROLE licet_worker CONNECTION LIMIT {limit}")


def test_a_role_at_its_limit_leaves_the_others_their_connections(
    postgres: PostgresServer, settings: Settings, admin: psycopg.Connection[Any]
) -> None:
    (limit,) = admin.execute("SELECT rolconnlimit FROM pg_roles WHERE rolname = 'licet_sequencer'").fetchone() or (0,)
    (open_now,) = admin.execute(
        "SELECT count(*)::int FROM pg_stat_activity WHERE usename = 'licet_sequencer'"
    ).fetchone() or (0,)
    opened: list[psycopg.Connection[Any]] = []
    try:
        run(admin, f"ALTER ROLE licet_sequencer CONNECTION LIMIT {open_now + 2}")
        opened += [as_role(postgres, settings, Role.SEQUENCER) for _ in range(2)]
        with pytest.raises(psycopg.OperationalError, match="too many connections for role"):
            as_role(postgres, settings, Role.SEQUENCER)
        as_role(postgres, settings, Role.API).close()
    finally:
        for connection in opened:
            connection.close()
        run(admin, f"ALTER ROLE licet_sequencer CONNECTION LIMIT {limit}")


def test_the_guides_limits_hold_what_one_slot_opens() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    limits = dict(re.findall(r"CREATE ROLE licet_(\w+) LOGIN CONNECTION LIMIT (\d+)", guide))
    assert set(limits) == {role.value for role in Role}
    # As under Sizing there, and one for the doctor beside.
    assert int(limits["api"]) > 2 * (load_settings({}).api_threads + 16)
    assert int(limits["sequencer"]) > 4
    assert int(limits["worker"]) > 32
