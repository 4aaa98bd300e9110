"""The second wall between tenants, and the walls between processes, in the database itself (PostgreSQL only).

Rules kept here:

- Row security is forced on every table that has a tenant, for its owner too: a migration that makes such a table calls `protect`,
  and a test fails where one did not.
- A row is seen, and written, only in a transaction that said that it is about its tenant. The text that says so is cast to an array,
  which fails where nothing was said; emptiness would be taken for an answer.
- Every process has a role of its own, with the rights below and no others; what nobody is given here, nobody has.

The roles:

- *owner* makes the tables and grants rights; runs migrations and fsck, and may see every tenant where it says so.
- *api* reads. It writes telemetry, the attempts of operations, leases of devices and checkpoints, and no fact. Over all tenants it sees only tokens'
  hashes, the tenants, the heads of logs, operations and what operators asked to see.
- *sequencer* writes what is logged and decided, and nothing else. It reads heads, leaves, tiles and budgets; of other tables only the
  columns that a change may state as its condition, never a text, a document or a record. What is logged it cannot change.
- *worker* has the workflow engine's tables, and reads what an export needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, LargeBinary, Table, Text, inspect, text

from licet_engine.store.postgres import EVERY_TENANT, SCOPE_SETTING
from licet_engine.store.tables import TENANT_TABLES, JsonText

WORKFLOW_SCHEMA: Final = "dbos"
"""Where the workflow engine keeps its tables."""

# A subquery, so that it is worked out once for a statement and not once for a row.
_SCOPE: Final = f"(SELECT current_setting('{SCOPE_SETTING}')::text[])"
_IN_SCOPE: Final = f"tenant_id = ANY ({_SCOPE}::text[])"
_EVERYWHERE: Final = f"'{EVERY_TENANT}' = ANY ({_SCOPE}::text[])"

API_SEES_EVERYWHERE: Final = frozenset(
    {
        *("api_token", "break_glass", "device_allotment", "log_head", "operation", "tenant"),
        *("webhook", "webhook_message"),
    }
)
"""Of which tables the api may see every tenant's rows: a token names no tenant before it is looked up; every log that grew gets a
checkpoint; whether a tenant exists is asked of every name alike; operators see what they asked of tenants and allotted to them, and
metrics count; messages of every tenant wait for the workers, which send them in turn."""

# Telemetry, and how far an operation came, are no facts, and so not the sequencer's.
API_WRITES: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    # No columns given: the whole row.
    "metric": {"INSERT": (), "DELETE": ()},
    "operation": {"UPDATE": ("state", "attempt", "progress", "updated_at_ms")},
    "log_checkpoint": {"INSERT": (), "DELETE": ()},
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
    # What is over its time is removed by the api.
    "idempotency_key": {"DELETE": ()},
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

NOT_THE_SEQUENCERS: Final = frozenset({"device", "device_wait", "log_checkpoint"})
"""Written by the api: checkpoints from what the signer gave it, and who has which device."""

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
            f"DROP POLICY licet_owner ON {table}",
            f"DROP POLICY licet_tenant ON {table}",
            f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY",
            f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY",
        ):
            connection.execute(text(statement))


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


def grant(connection: Connection, roles: RoleNames, *, version_table: str) -> None:
    """Give every role its rights on the tables that are there, and take all others from it.

    Args:
        connection: Of the owner, in a transaction that writes.
        roles: Their names.
        version_table: Where migrations keep count; every process may look at it.
    """
    there = set(inspect(connection).get_table_names())
    schema = connection.execute(text("SELECT quote_ident(current_schema())")).scalar_one()
    quoted = {
        name: _quoted(connection, role)
        for name, role in (("api", roles.api), ("sequencer", roles.sequencer), ("worker", roles.worker))
    }
    statements: list[str] = []
    for role in quoted.values():
        statements += [
            f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {role}",
            f"GRANT USAGE ON SCHEMA {schema} TO {role}",
            f"GRANT SELECT ON {_quoted(connection, version_table)} TO {role}",
        ]
    for table in sorted(TENANT_TABLES, key=lambda table: table.name):
        if table.name in there:
            statements += _rights_on(connection, table, **quoted)
    statements += _workflow_rights(connection, **quoted)
    for statement in statements:
        connection.execute(text(statement))


def _rights_on(connection: Connection, table: Table, *, api: str, sequencer: str, worker: str) -> Iterable[str]:
    name = _quoted(connection, table.name)
    yield f"GRANT SELECT ON {name} TO {api}"
    yield f"DROP POLICY IF EXISTS licet_api ON {name}"
    if table.name in API_SEES_EVERYWHERE:
        yield f"CREATE POLICY licet_api ON {name} FOR SELECT TO {api} USING ({_EVERYWHERE})"
    for right, columns in API_WRITES.get(table.name, {}).items():
        yield f"GRANT {right}{_listed(connection, columns)} ON {name} TO {api}"
    if table.name in WORKER_READS:
        yield f"GRANT SELECT ON {name} TO {worker}"
    if table.name in NOT_THE_SEQUENCERS:
        return
    rights = ["INSERT"] if table.name in SEQUENCER_ONLY_ADDS else ["INSERT", "UPDATE"]
    if table.name in SEQUENCER_READS:
        rights.append("SELECT")
    elif table.name not in SEQUENCER_ONLY_ADDS:
        rights.append(f"SELECT{_listed(connection, condition_columns(table))}")
    yield f"GRANT {', '.join(rights)} ON {name} TO {sequencer}"


def condition_columns(table: Table) -> tuple[str, ...]:
    """The columns that a change may state as its condition: keys, states, numbers; no text, document or bytes."""
    return tuple(
        column.name
        for column in table.columns
        if not isinstance(column.type, (JsonText, LargeBinary)) and type(column.type) is not Text
    )


def _workflow_rights(connection: Connection, *, api: str, sequencer: str, worker: str) -> Iterable[str]:
    if not inspect(connection).has_schema(WORKFLOW_SCHEMA):
        return
    yield f"REVOKE ALL ON ALL TABLES IN SCHEMA {WORKFLOW_SCHEMA} FROM {api}, {sequencer}"
    yield f"REVOKE ALL ON SCHEMA {WORKFLOW_SCHEMA} FROM {api}"
    yield f"GRANT USAGE ON SCHEMA {WORKFLOW_SCHEMA} TO {sequencer}, {worker}"
    yield f"GRANT ALL ON ALL TABLES IN SCHEMA {WORKFLOW_SCHEMA} TO {worker}"
    yield f"GRANT ALL ON ALL SEQUENCES IN SCHEMA {WORKFLOW_SCHEMA} TO {worker}"
    yield f"GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {WORKFLOW_SCHEMA} TO {worker}"
    # An operation is enqueued in its decision's own transaction: that is one row, and its input.
    yield f"GRANT SELECT, INSERT, UPDATE ON {WORKFLOW_SCHEMA}.workflow_status TO {sequencer}"
    yield f"GRANT INSERT, SELECT (workflow_uuid) ON {WORKFLOW_SCHEMA}.workflow_input TO {sequencer}"


def _listed(connection: Connection, columns: Iterable[str]) -> str:
    names = ", ".join(_quoted(connection, column) for column in columns)
    return f" ({names})" if names else ""


def _quoted(connection: Connection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote_identifier(name)
