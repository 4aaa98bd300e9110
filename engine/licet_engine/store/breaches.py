"""What in a PostgreSQL database is not as `licet_engine.store.walls` makes it: looked for at every start, and by ``licet doctor``.

Rules kept here:

- Nothing is changed; any role may look, for the catalogues are open to all.
- In our schemas, and of what the owner has anywhere, everything is known: what is neither ours nor the workflow engine's is a breach,
  whoever made it. So is every right, of whomever, that the walls do not give. What an extension brought is the administrator's affair.
- What could run as somebody else (triggers, rules, functions, views) outlives the right by which it was made. So it is looked for by
  itself, and before the owner writes anything.
- The first breach is told with the statement that mends it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from dbos._migration import get_dbos_migrations
from sqlalchemy import Connection, text

from licet_engine.store import walls
from licet_engine.store.walls import WORKFLOW_SCHEMA, Policy, Right, RoleNames

_CONNECT: Final = "CONNECT"
"""Named roles may have it on the database, for by itself it opens nothing; everybody may not."""

# Everything there is in a schema names it as what it depends on.
_STRANGERS: Final = """
SELECT pg_describe_object(d.classid, d.objid, 0)
FROM pg_depend d
LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = ANY (CAST(:schemas AS oid[]))
  AND d.classid <> 'pg_extension'::regclass
  AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = d.classid AND e.objid = d.objid AND e.deptype = 'e')
  AND NOT coalesce(c.relkind IN ('r', 'p', 'i', 'I', 'S') AND c.relowner = :owner, false)
  AND NOT coalesce(p.pronamespace::regnamespace::text = :workflow AND p.proname = ANY (:functions)
                   AND p.proowner = :owner AND NOT p.prosecdef, false)
UNION ALL
SELECT pg_describe_object('pg_class'::regclass, c.oid, 0) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relowner = :owner AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relnamespace <> ALL (CAST(:schemas AS oid[]))
  AND n.nspname !~ '^pg_'
UNION ALL
SELECT pg_describe_object('pg_proc'::regclass, p.oid, 0) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE p.proowner = :owner AND p.pronamespace <> ALL (CAST(:schemas AS oid[])) AND n.nspname !~ '^pg_'
ORDER BY 1
"""
_TRIGGERS: Final = """
SELECT quote_ident(t.tgname), format('%I.%I', n.nspname, c.relname), pg_get_triggerdef(t.oid), t.tgenabled <> 'O'
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE NOT t.tgisinternal AND n.oid = ANY (CAST(:schemas AS oid[]))
ORDER BY 2, 1
"""
_RULES: Final = """
SELECT quote_ident(r.rulename), format('%I.%I', n.nspname, c.relname)
FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.oid = ANY (CAST(:schemas AS oid[]))
ORDER BY 2, 1
"""
_ROLES: Final = """
SELECT r.rolname, quote_ident(r.rolname), r.rolsuper, r.rolbypassrls,
       r.rolcreaterole, r.rolcreatedb, r.rolreplication,
       (SELECT string_agg(quote_ident(g.rolname), ', ' ORDER BY g.rolname)
        FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid WHERE m.member = r.oid)
FROM pg_roles r WHERE r.rolname = ANY (:roles) ORDER BY 1
"""
_POLICIES: Final = """
SELECT format('%I.%I', p.schemaname, p.tablename), p.schemaname = current_schema(), p.tablename, p.policyname,
       array_to_string(p.roles, ','), p.cmd, coalesce(p.qual, ''), coalesce(p.with_check, ''), p.permissive = 'PERMISSIVE'
FROM pg_policies p WHERE p.schemaname::regnamespace::oid = ANY (CAST(:schemas AS oid[]))
ORDER BY 1, 4
"""
# A right on a thing that is in one of our schemas, or is the owner's, or is one of our roles'; the owner's own are left out.
_RIGHTS: Final = """
WITH things(kind, oid, schema_oid, name, "column", owner, acl, class) AS (
  SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, c.oid, c.relnamespace, c.relname::text, '', c.relowner,
         c.relacl, 'pg_class'::regclass
  FROM pg_class c WHERE c.relacl IS NOT NULL
  UNION ALL
  SELECT 'TABLE', c.oid, c.relnamespace, c.relname::text, a.attname::text, c.relowner, a.attacl, 'pg_class'::regclass
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE a.attacl IS NOT NULL AND NOT a.attisdropped
  UNION ALL
  SELECT 'ROUTINE', p.oid, p.pronamespace, format('%s(%s)', p.proname, pg_get_function_identity_arguments(p.oid)), '', p.proowner,
         coalesce(p.proacl, acldefault('f', p.proowner)), 'pg_proc'::regclass
  FROM pg_proc p WHERE p.proacl IS NOT NULL OR p.pronamespace = ANY (CAST(:schemas AS oid[]))
  UNION ALL
  SELECT 'SCHEMA', n.oid, n.oid, '', '', n.nspowner, coalesce(n.nspacl, acldefault('n', n.nspowner)), 'pg_namespace'::regclass
  FROM pg_namespace n
  UNION ALL
  SELECT 'DATABASE', d.oid, 0, d.datname::text, '', d.datdba, coalesce(d.datacl, acldefault('d', d.datdba)), 'pg_database'::regclass
  FROM pg_database d WHERE d.datname = current_database()
  UNION ALL
  SELECT 'PARAMETER', p.oid, 0, p.parname, '', 0, p.paracl, 'pg_parameter_acl'::regclass FROM pg_parameter_acl p
)
SELECT DISTINCT t.kind, coalesce(n.nspname::text, ''), t.name, t."column", coalesce(r.rolname::text, 'PUBLIC'), a.privilege_type
FROM things t CROSS JOIN LATERAL aclexplode(t.acl) a
LEFT JOIN pg_namespace n ON n.oid = t.schema_oid LEFT JOIN pg_roles r ON r.oid = a.grantee
WHERE a.grantee <> t.owner AND a.grantee <> :owner
  AND (r.rolname = ANY (:roles)
       OR ((t.schema_oid = ANY (CAST(:schemas AS oid[])) OR t.owner = :owner OR t.kind = 'DATABASE')
           AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = t.class AND e.objid = t.oid AND e.deptype = 'e')))
"""
_DEFAULTS: Final = """
SELECT DISTINCT coalesce(quote_ident(r.rolname), 'PUBLIC'), a.privilege_type,
       CASE d.defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'ROUTINES' WHEN 'T' THEN 'TYPES'
                            WHEN 'n' THEN 'SCHEMAS' ELSE 'LARGE OBJECTS' END
FROM pg_default_acl d CROSS JOIN LATERAL aclexplode(d.defaclacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
WHERE d.defaclrole = :owner AND a.grantee <> :owner AND NOT (d.defaclobjtype = 'T' AND a.grantee = 0)
ORDER BY 1, 2, 3
"""


@dataclass(frozen=True, slots=True)
class Breach:
    """Something that is not as the walls are made.

    Attributes:
        what: Is there, or is missing.
        mend: How to mend it.
    """

    what: str
    mend: str


class _Look:
    """One look at a database."""

    def __init__(self, connection: Connection, roles: RoleNames, version_table: str) -> None:
        self.connection = connection
        self.roles = roles
        self.version_table = version_table
        self.owner_oid, self.owner = connection.execute(
            text(
                "SELECT d.datdba::int8, r.rolname::text FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba"
                " WHERE d.datname = current_database()"
            )
        ).one()
        self.schemas = [
            int(oid)
            for oid in connection.execute(
                text("SELECT oid::int8 FROM pg_namespace WHERE nspname IN (current_schema(), :workflow)"),
                {"workflow": WORKFLOW_SCHEMA},
            ).scalars()
        ]

    def rows(self, query: str, **values: Any) -> list[Any]:
        known = {"schemas": self.schemas, "owner": self.owner_oid, **values}
        used = {name: value for name, value in known.items() if f":{name}" in query}
        return list(self.connection.execute(text(query), used))


def planted(connection: Connection, roles: RoleNames, *, version_table: str) -> Breach | None:
    """The first of what could have the owner or another role run what it never wrote; also in a database that is not up to date.

    Args:
        connection: Of any role.
        roles: What the roles are called.
        version_table: Where our migrations keep count.
    """
    return next(_planted(_Look(connection, roles, version_table)), None)


def first(connection: Connection, roles: RoleNames, *, version_table: str) -> Breach | None:
    """The first breach of a database that is up to date, and whose rights were given.

    Args:
        connection: Of any role.
        roles: What the roles are called.
        version_table: Where our migrations keep count.
    """
    bare = walls.unprotected(connection, version_table=version_table)
    if bare:
        return Breach(
            f"row security is not forced on {', '.join(bare)}",
            "If a migration forgot it, that is a defect of it; else, as the owner: ALTER TABLE ... ENABLE ROW LEVEL SECURITY,"
            " FORCE ROW LEVEL SECURITY.",
        )
    look = _Look(connection, roles, version_table)
    for breaches in (_planted(look), _policies(look), _rights(look), _defaults(look)):
        for breach in breaches:
            return breach
    return None


def connection_limits(connection: Connection, roles: RoleNames) -> list[Breach]:
    """Whether one role could take so many of the server's connections that the others get none: a weakness, and no breach.

    Args:
        connection: Of any role.
        roles: What the roles are called.
    """
    look = _Look(connection, roles, "")
    rows = look.rows(
        "SELECT rolname, quote_ident(rolname), rolconnlimit FROM pg_roles WHERE rolname = ANY (:roles) ORDER BY 1",
        roles=[look.owner, *roles],
    )
    (there,) = look.rows(
        "SELECT sum(CASE name WHEN 'max_connections' THEN setting::int ELSE -setting::int END) FROM pg_settings"
        " WHERE name IN ('max_connections', 'superuser_reserved_connections', 'reserved_connections')"
    )
    found = [
        Breach(
            f"the role {name!r} may take every connection of the server, and so shut the others out",
            f"ALTER ROLE {quoted} CONNECTION LIMIT ..., as under Sizing in docs/operations.md.",
        )
        for name, quoted, limit in rows
        if limit < 0
    ]
    together = sum(limit for *_, limit in rows if limit > 0)
    if together > there[0]:
        found.append(
            Breach(
                f"the roles may open {together} connections together, and the server has {there[0]} for them",
                "Raise max_connections, or lower the roles' CONNECTION LIMIT, as under Sizing in docs/operations.md.",
            )
        )
    return found


def _planted(look: _Look) -> Iterator[Breach]:
    yield from _roles(look)
    workflow = _workflow_ddl()
    for trigger, table, definition, is_altered in look.rows(_TRIGGERS):
        # The workflow engine's own are those that its migrations make, word for word.
        if is_altered or f"{definition};" not in workflow:
            yield Breach(
                f"the trigger {trigger} on {table} is not of Licet: it runs as whoever writes there",
                f"Find out who made it; then, as the owner: DROP TRIGGER {trigger} ON {table}.",
            )
    for rule, table in look.rows(_RULES):
        yield Breach(
            f"the rule {rule} on {table} is not of Licet: it changes what statements do",
            f"Find out who made it; then, as the owner: DROP RULE {rule} ON {table}.",
        )
    functions = sorted(set(re.findall(r"CREATE (?:OR REPLACE )?FUNCTION dbos\.(\w+)", workflow)))
    for (told,) in look.rows(_STRANGERS, workflow=WORKFLOW_SCHEMA, functions=functions):
        yield Breach(
            f"not of Licet, or not its owner's as it should be: {told}",
            "The database must be Licet's alone. Find out who made it, and drop it or move it to a database of its own.",
        )


def _roles(look: _Look) -> Iterator[Breach]:
    """The roles themselves, whoever of them is connected."""
    if look.owner in look.roles:
        yield Breach(
            f"the role {look.owner!r} of a process owns the database",
            "Make the role of owner.url the owner: ALTER DATABASE ... OWNER TO ...",
        )
    for name, quoted, *powers, groups in look.rows(_ROLES, roles=[look.owner, *look.roles]):
        names = ("SUPERUSER", "BYPASSRLS", "CREATEROLE", "CREATEDB", "REPLICATION")
        had = [power for power, has in zip(names, powers, strict=True) if has]
        if had:
            yield Breach(
                f"the role {name!r} is not plain: it has {', '.join(had)}",
                f"ALTER ROLE {quoted} {' '.join(f'NO{power}' for power in had)}.",
            )
        if groups:
            yield Breach(
                f"the role {name!r} is not plain: it is a member of {groups}, and may do what that may",
                f"REVOKE {groups} FROM {quoted}.",
            )


def _policies(look: _Look) -> Iterator[Breach]:
    expected = walls.policies(look.connection, look.roles, owner=look.owner)
    found: dict[Policy, str] = {}
    for told, is_ours, table, name, roles, command, using, check, permissive in look.rows(_POLICIES):
        who = tuple(sorted("PUBLIC" if role == "public" else role for role in roles.split(",")))
        where = table if is_ours else told
        found[Policy(where, name, who, command, walls.plain(using), walls.plain(check), permissive)] = told
    for policy, told in found.items():
        if policy not in expected:
            yield Breach(
                f"the policy {policy.name!r} on {told} is not as Licet makes it",
                "Find out who changed it; restore it as it is on the other tables, or drop it where they have none of that name.",
            )
    for policy in sorted(expected - set(found), key=lambda policy: (policy.table, policy.name)):
        yield Breach(
            f"the policy {policy.name!r} on {policy.table} is missing", "Restore it as it is on the other tables."
        )


def _rights(look: _Look) -> Iterator[Breach]:
    expected = walls.rights(look.connection, look.roles, version_table=look.version_table)
    found = {Right(*row) for row in look.rows(_RIGHTS, roles=list(look.roles))}
    for right in sorted(found - expected):
        if right.kind == "DATABASE" and right.privilege == _CONNECT and right.role != "PUBLIC":
            continue
        # PostgreSQL gives it by itself on the schema that every database comes with, and it opens nothing.
        if (right.kind, right.role, right.privilege) == (
            "SCHEMA",
            "PUBLIC",
            "USAGE",
        ) and right.schema != WORKFLOW_SCHEMA:
            continue
        yield Breach(
            f"{right.role} has {_said(right)}, which Licet gives to nobody"
            if right.role == "PUBLIC"
            else f"the role {right.role!r} has {_said(right)}, which Licet does not give it",
            f"Find out who gave it; then, as the owner or the administrator: REVOKE {_said(right)} FROM {_role(right)}.",
        )
    for right in sorted(expected - found):
        yield Breach(
            f"the role {right.role!r} lacks {_said(right)}",
            "Start licet serve with owner.url there: it gives every role its rights.",
        )


def _defaults(look: _Look) -> Iterator[Breach]:
    for role, privilege, things in look.rows(_DEFAULTS):
        yield Breach(
            f"by default privileges, {role} will have {privilege} on {things} that the owner makes",
            f"As the owner: ALTER DEFAULT PRIVILEGES REVOKE {privilege} ON {things} FROM {role}.",
        )


def _said(right: Right) -> str:
    thing = ".".join(part for part in (right.schema, right.name) if part)
    return f"{right.privilege}{f' ({right.column})' if right.column else ''} ON {right.kind} {thing}"


def _role(right: Right) -> str:
    return right.role if right.role == "PUBLIC" else f'"{right.role}"'


@lru_cache(maxsize=1)
def _workflow_ddl() -> str:
    """Everything that the workflow engine's migrations say, in one line."""
    # NOTE: The module is the engine's own; its triggers and functions are listed nowhere else. A test fails where it has gone.
    statements = "\n".join(get_dbos_migrations(WORKFLOW_SCHEMA, use_listen_notify=True))
    return " ".join(statements.replace(f'"{WORKFLOW_SCHEMA}"', WORKFLOW_SCHEMA).split())
