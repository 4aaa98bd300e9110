"""The second wall between tenants, and the walls between processes, in the database itself (PostgreSQL only).

Rules kept here:

- Row security is forced on every table that has a tenant, for its owner too: a migration that makes such a table calls `protect`,
  and a test fails where one did not.
- A row is seen, and written, only in a transaction that said that it is about its tenant. The text that says so is cast to an array,
  which fails where nothing was said; emptiness would be taken for an answer.
- Every process has a role of its own, with the rights below and no others; what nobody is given here, nobody has. What somebody has all
  the same, or planted, is found by `licet_engine.store.breaches`.
- Nobody but the owner may have others' statements run what they wrote: no triggers, no foreign keys, no functions.

The roles:

- *owner* makes the tables and grants rights; runs migrations and fsck, and may see every tenant where it says so.
- *api* reads. It writes telemetry, the attempts of operations, leases of devices and checkpoints, and no fact. Over all tenants it sees only tokens'
  hashes, the tenants, the heads of logs, operations and what operators asked to see.
- *sequencer* writes what is logged and decided, and nothing else. It reads heads, leaves, tiles and budgets; of other tables only the
  columns that a change may state as its condition, never a text, a document or a record. What is logged it cannot change, but empty:
  a record with its salt, and what the table of decisions tells of it.
- *worker* reads and writes the rows of the workflow engine's tables, but for the number of its version, and reads what an export needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, LargeBinary, Table, Text, inspect, text

from licet_engine.store.postgres import EVERY_TENANT, SCOPE_SETTING
from licet_engine.store.tables import ERASED, TENANT_TABLES, JsonText

WORKFLOW_SCHEMA: Final = "dbos"
"""Where the workflow engine keeps its tables."""

WORKFLOW_VERSIONS: Final = "dbos_migrations"
"""Where the workflow engine keeps count of its migrations: who can write there has the owner write where they like, at its next start."""

# A subquery, so that it is worked out once for a statement and not once for a row.
_SCOPE: Final = f"(SELECT current_setting('{SCOPE_SETTING}')::text[])"
_IN_SCOPE: Final = f"tenant_id = ANY ({_SCOPE}::text[])"
_EVERYWHERE: Final = f"'{EVERY_TENANT}' = ANY ({_SCOPE}::text[])"

API_SEES_EVERYWHERE: Final = frozenset(
    {
        *("api_token", "break_glass", "device_allotment", "log_head", "operation", "tenant"),
        *("webhook", "webhook_message", "issuer"),
    }
)
"""Of which tables the api may see every tenant's rows: a token names no tenant before it is looked up; every log that grew gets a
checkpoint; whether a tenant exists is asked of every name alike; operators see what they asked of tenants and allotted to them, and
metrics count; messages of every tenant wait for the workers, which send them in turn, and fetch the keys of every tenant's issuers."""

# Telemetry, and how far an operation came, are no facts, and so not the sequencer's.
API_WRITES: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    # No columns given: the whole row.
    "metric": {"INSERT": (), "DELETE": ()},
    "operation": {"UPDATE": ("state", "attempt", "progress", "updated_at_ms")},
    "log_checkpoint": {"INSERT": (), "DELETE": ()},
    "log_cosignature": {"INSERT": (), "DELETE": ()},
    # What came of sending a message is telemetry; that there is one, and for whom, is the sequencer's to write.
    "webhook": {"UPDATE": ("failures", "rest_until_ms")},
    "webhook_message": {
        "UPDATE": ("state", "tries", "next_at_ms", "claimed_until_ms", "ended_at_ms"),
        "DELETE": (),
    },
    "webhook_try": {"INSERT": (), "DELETE": ()},
    # Who has which device, and who waits, is neither logged nor decided on.
    "device": {
        "INSERT": (),
        "UPDATE": (
            *("kind", "name", "memory_mib", "driver", "worker", "seen_at_ms"),
            *("operation_id", "of_tenant", "leased_at_ms", "renewed_at_ms"),
        ),
        "DELETE": (),
    },
    "device_wait": {"INSERT": (), "UPDATE": ("worker", "by_quota", "seen_at_ms"), "DELETE": ()},
    # What a candidate would have answered is telemetry; which bundle it is, is the sequencer's to write.
    "policy_shadow_count": {
        "INSERT": (),
        "UPDATE": ("same", "other_reasons", "to_deny", "to_allow", "dropped", "at_ms"),
        "DELETE": (),
    },
    "policy_flip": {"INSERT": (), "DELETE": ()},
    # What is over its time is removed by the api.
    "policy_shadow": {"DELETE": ()},
    # When an issuer's keys were looked at last; which they are is the sequencer's to write.
    "issuer": {"UPDATE": ("keys_as_of_ms",)},
    "idempotency_key": {"DELETE": ()},
    "used_id_token": {"DELETE": ()},
    "traffic_event": {"DELETE": ()},
    "invocation_batch": {"DELETE": ()},
}
SEQUENCER_READS: Final = frozenset({"budget", "log_head", "log_leaf", "log_tile"})
"""Tables that the sequencer reads whole."""

SEQUENCER_ONLY_ADDS: Final = frozenset(
    {
        *("attestation", "decision", "fact_blob", "idempotency_key", "invocation_batch", "log_leaf", "log_record"),
        *("metric", "traffic_event"),
    }
)
"""Tables whose rows the sequencer can neither change nor remove: what is logged stays as it was logged."""

SEQUENCER_EMPTIES: Final[Mapping[str, Mapping[str, str]]] = {
    "decision": {"principal": f"'{ERASED}'", "resource": f"'{ERASED}'", "observed": "'[]'"},
    "log_record": {"salt": "NULL", "record": "NULL"},
}
"""Of those, the columns that it can empty, and what stands there then. A policy keeps anything else out."""
_FOUND_BY: Final = ("tenant_id", "leaf_index")
"""By which columns it finds the row that it empties."""

NOT_THE_SEQUENCERS: Final = frozenset(
    {
        *("device", "device_wait", "installation", "log_checkpoint", "log_cosignature"),
        *("policy_flip", "policy_shadow_count"),
    }
)
"""Written by the owner, when an installation is made; by the api: checkpoints from what the signer gave it, cosignatures, who has which device, and what
candidates would have answered."""

WORKER_READS: Final = frozenset(
    {"attestation", "fact_blob", "log_checkpoint", "log_head", "log_leaf", "log_record", "log_tile", "policy_bundle"}
)
"""What an export of evidence is made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleNames:
    """What the roles are called in the database."""

    api: str
    sequencer: str
    worker: str

    def __iter__(self) -> Iterator[str]:
        return iter((self.api, self.sequencer, self.worker))


@dataclass(frozen=True, slots=True, order=True)
class Right:
    """One right on one thing.

    Attributes:
        kind: ``TABLE``, ``SEQUENCE``, ``SCHEMA``, ``ROUTINE`` or ``DATABASE``.
        schema: Of the thing, or the schema itself.
        name: Of the thing; of a routine with its arguments.
        column: If it is on one column alone.
        role: Who has it; ``PUBLIC`` for everybody.
        privilege: As the database calls it.
    """

    kind: str
    schema: str
    name: str
    column: str
    role: str
    privilege: str


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy of row security, its expressions in the form of `plain`."""

    table: str
    name: str
    roles: tuple[str, ...]
    command: str
    using: str
    check: str
    is_permissive: bool = True


def protect(connection: Connection, *table_names: str) -> None:
    """Force row security on tables. Called by the migration that makes them; does nothing on SQLite.

    Args:
        connection: The migration's, ``op.get_bind()``.
        table_names: Tables with a column ``tenant_id``.
    """
    if connection.dialect.name != "postgresql":
        return
    for name in table_names:
        table = _quoted(connection, name)
        for statement in (
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
            f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
            f"CREATE POLICY licet_tenant ON {table} USING ({_IN_SCOPE}) WITH CHECK ({_IN_SCOPE})",
            f"CREATE POLICY licet_owner ON {table} TO CURRENT_USER USING ({_EVERYWHERE}) WITH CHECK ({_EVERYWHERE})",
        ):
            connection.execute(text(statement))


def unprotect(connection: Connection, *table_names: str) -> None:
    """Undo `protect`: for the way back of a migration that protected tables which stay."""
    if connection.dialect.name != "postgresql":
        return
    for name in table_names:
        table = _quoted(connection, name)
        for statement in (
            f"DROP POLICY IF EXISTS licet_api ON {table}",
            f"DROP POLICY IF EXISTS licet_emptied ON {table}",
            f"DROP POLICY licet_owner ON {table}",
            f"DROP POLICY licet_tenant ON {table}",
            f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY",
            f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY",
        ):
            connection.execute(text(statement))


def _emptied(name: str) -> str:
    return " AND ".join(
        f"{column} IS NULL" if value == "NULL" else f"{column} = {value}"
        for column, value in SEQUENCER_EMPTIES[name].items()
    )


def unprotected(connection: Connection, *, version_table: str) -> list[str]:
    """Which tables lack forced row security or its policy; none on SQLite, which has no such thing.

    Args:
        connection: Of any role.
        version_table: Where the migrations keep count: the one table that needs no wall. Every other has a tenant.
    """
    if connection.dialect.name != "postgresql":
        return []
    rows = connection.execute(
        text(
            "SELECT c.relname FROM pg_class c"
            " WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND c.relname <> :counted"
            " AND NOT (c.relrowsecurity AND c.relforcerowsecurity"
            " AND EXISTS (SELECT 1 FROM pg_policy p WHERE p.polrelid = c.oid AND p.polname = 'licet_tenant'))"
            " ORDER BY c.relname"
        ),
        {"counted": version_table},
    )
    return list(rows.scalars())


def disarm(connection: Connection, roles: RoleNames) -> None:
    """Take from the roles whatever could have the owner run what they wrote, before the owner writes anything.

    Args:
        connection: Of the owner, in a transaction that writes.
        roles: Their names.
    """
    named = ", ".join(_quoted(connection, role) for role in roles)
    workflow = _workflow_tables(connection)
    for schema in (_own_schema(connection), *([WORKFLOW_SCHEMA] if workflow else [])):
        target = f"ALL TABLES IN SCHEMA {_quoted(connection, schema)}"
        connection.execute(text(f"REVOKE TRIGGER, REFERENCES, TRUNCATE ON {target} FROM {named} CASCADE"))
    if WORKFLOW_VERSIONS in workflow:
        table = f"{_quoted(connection, WORKFLOW_SCHEMA)}.{_quoted(connection, WORKFLOW_VERSIONS)}"
        connection.execute(text(f"REVOKE INSERT, UPDATE, DELETE ON {table} FROM {named} CASCADE"))
    # What the workflow engine's migrations are about to make is nobody else's either.
    connection.execute(text("ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON ROUTINES FROM PUBLIC"))


def grant(connection: Connection, roles: RoleNames, *, version_table: str) -> None:
    """Give every role its rights on the tables that are there, and take all others from it.

    Args:
        connection: Of the owner, in a transaction that writes.
        roles: Their names.
        version_table: Where migrations keep count; every process may look at it.
    """
    _open_to_api(connection, roles.api)
    _hold_to_emptying(connection, roles.sequencer)
    named = ", ".join(_quoted(connection, role) for role in roles)
    database = _quoted(connection, str(connection.execute(text("SELECT current_database()")).scalar_one()))
    connection.execute(text(f"REVOKE CREATE, TEMPORARY ON DATABASE {database} FROM {named} CASCADE"))
    there = [_own_schema(connection), *([WORKFLOW_SCHEMA] if inspect(connection).has_schema(WORKFLOW_SCHEMA) else [])]
    for schema in there:
        quoted = _quoted(connection, schema)
        for things in (f"ALL TABLES IN SCHEMA {quoted}", f"ALL SEQUENCES IN SCHEMA {quoted}", f"SCHEMA {quoted}"):
            connection.execute(text(f"REVOKE ALL ON {things} FROM {named} CASCADE"))
    if WORKFLOW_SCHEMA in there:
        routines = f"ALL ROUTINES IN SCHEMA {_quoted(connection, WORKFLOW_SCHEMA)}"
        connection.execute(text(f"REVOKE ALL ON {routines} FROM PUBLIC, {named} CASCADE"))
    for statement in _grants(connection, rights(connection, roles, version_table=version_table)):
        connection.execute(text(statement))


def rights(connection: Connection, roles: RoleNames, *, version_table: str) -> frozenset[Right]:
    """All rights that the roles have on the tables that are there, beside that to connect.

    Args:
        connection: Of any role, on PostgreSQL.
        roles: Their names.
        version_table: As for `grant`.
    """
    schema = _own_schema(connection)
    there = set(inspect(connection).get_table_names())
    found: set[Right] = set()
    for role in roles:
        found.add(Right("SCHEMA", schema, "", "", role, "USAGE"))
        if version_table in there:
            found.add(Right("TABLE", schema, version_table, "", role, "SELECT"))
    for table in TENANT_TABLES:
        if table.name in there:
            given = _rights_on(table, api=roles.api, sequencer=roles.sequencer, worker=roles.worker)
            found |= {Right("TABLE", schema, table.name, column, role, right) for role, right, column in given}
    return frozenset(found | set(_workflow_rights(connection, roles)))


def policies(connection: Connection, roles: RoleNames, *, owner: str) -> frozenset[Policy]:
    """All policies on the tables that are there."""
    there = set(inspect(connection).get_table_names())
    in_scope, everywhere = plain(_IN_SCOPE), plain(_EVERYWHERE)
    found: set[Policy] = set()
    for name in {table.name for table in TENANT_TABLES} & there:
        found.add(Policy(name, "licet_tenant", ("PUBLIC",), "ALL", in_scope, in_scope))
        found.add(Policy(name, "licet_owner", (owner,), "ALL", everywhere, everywhere))
        if name in SEQUENCER_EMPTIES:
            emptied = plain(_emptied(name))
            found.add(Policy(name, "licet_emptied", (roles.sequencer,), "UPDATE", "true", emptied, is_permissive=False))
        if name in API_SEES_EVERYWHERE:
            found.add(Policy(name, "licet_api", (roles.api,), "SELECT", everywhere, ""))
    return frozenset(found)


def plain(expression: str) -> str:
    """An expression of a policy without what the server adds when it shows one: brackets, spaces, casts to text, names of columns.

    Two that differ in more are different: none of ours has an operator whose place brackets could change.
    """
    bare = re.sub(r"[\s()]", "", expression)
    return re.sub(r"::text(\[\])?|AScurrent_setting", "", bare)


def _open_to_api(connection: Connection, api: str) -> None:
    """Let the api see every tenant's rows of some tables. What is so already is left alone: a change locks the table."""
    there = set(inspect(connection).get_table_names())
    found = connection.execute(
        text(
            "SELECT tablename, array_to_string(roles, ',') FROM pg_policies"
            " WHERE schemaname = current_schema() AND policyname = 'licet_api'"
        )
    )
    as_it_is = {str(name): str(roles) for name, roles in found}
    for name in sorted({table.name for table in TENANT_TABLES} & there):
        wanted = api if name in API_SEES_EVERYWHERE else None
        if as_it_is.get(name) == wanted:
            continue
        table = _quoted(connection, name)
        connection.execute(text(f"DROP POLICY IF EXISTS licet_api ON {table}"))
        if wanted is not None:
            role = _quoted(connection, wanted)
            connection.execute(text(f"CREATE POLICY licet_api ON {table} FOR SELECT TO {role} USING ({_EVERYWHERE})"))


def _hold_to_emptying(connection: Connection, sequencer: str) -> None:
    """Hold the sequencer's changes of what is logged to emptying it. What is so already is left alone, as above."""
    found = connection.execute(
        text(
            "SELECT tablename, array_to_string(roles, ',') FROM pg_policies"
            " WHERE schemaname = current_schema() AND policyname = 'licet_emptied'"
        )
    )
    as_it_is = {str(name): str(roles) for name, roles in found}
    for name in sorted(set(SEQUENCER_EMPTIES) & set(inspect(connection).get_table_names())):
        if as_it_is.get(name) == sequencer:
            continue
        table, role = _quoted(connection, name), _quoted(connection, sequencer)
        connection.execute(text(f"DROP POLICY IF EXISTS licet_emptied ON {table}"))
        held = f"AS RESTRICTIVE FOR UPDATE TO {role} USING (true) WITH CHECK ({_emptied(name)})"
        connection.execute(text(f"CREATE POLICY licet_emptied ON {table} {held}"))


def _rights_on(table: Table, *, api: str, sequencer: str, worker: str) -> Iterable[tuple[str, str, str]]:
    """Who, what, and on which column, if not on all."""
    yield api, "SELECT", ""
    for right, columns in API_WRITES.get(table.name, {}).items():
        for column in columns or ("",):
            yield api, right, column
    if table.name in WORKER_READS:
        yield worker, "SELECT", ""
    if table.name in NOT_THE_SEQUENCERS:
        return
    yield from ((sequencer, right, column) for right, column in _sequencers(table))


def _sequencers(table: Table) -> Iterable[tuple[str, str]]:
    yield "INSERT", ""
    if table.name not in SEQUENCER_ONLY_ADDS:
        yield "UPDATE", ""
    for column in SEQUENCER_EMPTIES.get(table.name, ()):
        yield "UPDATE", column
    if table.name in SEQUENCER_EMPTIES:
        for column in _FOUND_BY:
            yield "SELECT", column
    if table.name in SEQUENCER_READS:
        yield "SELECT", ""
    elif table.name not in SEQUENCER_ONLY_ADDS:
        for column in condition_columns(table):
            yield "SELECT", column


def condition_columns(table: Table) -> tuple[str, ...]:
    """The columns that a change may state as its condition: keys, states, numbers; no text, document or bytes."""
    return tuple(
        column.name
        for column in table.columns
        if not isinstance(column.type, (JsonText, LargeBinary)) and type(column.type) is not Text
    )


def _workflow_rights(connection: Connection, roles: RoleNames) -> Iterable[Right]:
    if not inspect(connection).has_schema(WORKFLOW_SCHEMA):
        return

    def on(table: str, role: str, right: str, column: str = "") -> Right:
        return Right("TABLE", WORKFLOW_SCHEMA, table, column, role, right)

    for role in (roles.sequencer, roles.worker):
        yield Right("SCHEMA", WORKFLOW_SCHEMA, "", "", role, "USAGE")
    for table in _workflow_tables(connection):
        yield on(table, roles.worker, "SELECT")
        if table != WORKFLOW_VERSIONS:
            for right in ("INSERT", "UPDATE", "DELETE"):
                yield on(table, roles.worker, right)
    for sequence in inspect(connection).get_sequence_names(schema=WORKFLOW_SCHEMA):
        yield Right("SEQUENCE", WORKFLOW_SCHEMA, sequence, "", roles.worker, "USAGE")
    # An operation is enqueued in its decision's own transaction: that is one row, and its input.
    for right in ("SELECT", "INSERT", "UPDATE"):
        yield on("workflow_status", roles.sequencer, right)
    yield on("workflow_input", roles.sequencer, "INSERT")
    yield on("workflow_input", roles.sequencer, "SELECT", "workflow_uuid")


def _workflow_tables(connection: Connection) -> list[str]:
    looked = inspect(connection)
    return looked.get_table_names(schema=WORKFLOW_SCHEMA) if looked.has_schema(WORKFLOW_SCHEMA) else []


def _grants(connection: Connection, given: Iterable[Right]) -> Iterable[str]:
    """The statements that give rights, one for each thing and role."""
    together: dict[tuple[str, str, str, str], dict[str, list[str]]] = {}
    for right in sorted(given):
        on = together.setdefault((right.kind, right.schema, right.name, right.role), {})
        on.setdefault(right.privilege, []).extend([right.column] if right.column else [])
    for (kind, schema, name, role), privileges in together.items():
        thing = ".".join(_quoted(connection, part) for part in (schema, name) if part)
        listed = ", ".join(f"{p}{_listed(connection, columns)}" for p, columns in privileges.items())
        yield f"GRANT {listed} ON {kind} {thing} TO {_quoted(connection, role)}"


def _own_schema(connection: Connection) -> str:
    return str(connection.execute(text("SELECT current_schema()")).scalar_one())


def _listed(connection: Connection, columns: Iterable[str]) -> str:
    names = ", ".join(_quoted(connection, column) for column in columns)
    return f" ({names})" if names else ""


def _quoted(connection: Connection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote_identifier(name)
