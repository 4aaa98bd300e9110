"""Making an installation: folders, keys, tables, the platform's own tenant and its first operator."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dbos import DBOS
from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, Engine, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlmodel import select

from licet_attestations import canonical
from licet_attestations.signer.files import create_durably, make_private_directory
from licet_attestations.signer.keystore import Keystore, read_passphrase
from licet_attestations.trustroot import TrustRoot
from licet_engine.domain.errors import ConfigurationError
from licet_engine.domain.refs import PLATFORM, new_id, now_ms
from licet_engine.lifecycle.people import first_bundle, new_token, tenant_rows
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import Insert, NewEntry, Submission
from licet_engine.settings import Settings
from licet_engine.store import belonging, breaches, migrations, walls
from licet_engine.store.access import Role, database_url, open_database, role_names, verify_access, without_secrets
from licet_engine.store.belonging import Identity
from licet_engine.store.db import UnsafeAllTenants, read_transaction, write_transaction
from licet_engine.store.postgres import LOCK_WAIT_S, DatabaseUnavailable, is_postgres
from licet_engine.store.tables import ApiToken, Tenant

OPERATOR = "operator"
OPERATOR_TOKEN_TTL_S = 30 * 24 * 3600
INSTALLED_FILE = "installed"
"""Says that the installation is whole; the token beside it is the operator's to take away."""
OPERATOR_TOKEN_FILE = "operator.token"  # noqa: S105 - the name of a file.


@dataclass(frozen=True, slots=True)
class Initialised:
    """What was made.

    Attributes:
        token_file: Where the first operator's token lies, 0600.
        trust_root: Where the public keys lie.
    """

    token_file: Path
    trust_root: Path


def is_initialised(settings: Settings) -> bool:
    """Whether there is a whole installation."""
    said = any((settings.data / name).exists() for name in (INSTALLED_FILE, OPERATOR_TOKEN_FILE))
    return said and settings.trust_root.exists()


def _refuse_occupied(settings: Settings, beside: frozenset[str]) -> None:
    """Refuse a folder in which something else lies: its mode is changed, and it is backed up, moved and removed as a whole."""
    ours = {INSTALLED_FILE, OPERATOR_TOKEN_FILE, settings.trust_root.name, "run", "lost+found", *beside}
    folders = (settings.signer_data, settings.database.parent, settings.worker_data, settings.spool)
    ours |= {folder.name for folder in folders}
    try:
        foreign = sorted({entry.name for entry in settings.data.iterdir()} - ours)
    except OSError:  # Not there yet, or not to be read: what makes it says so.
        return
    if foreign:
        raise ConfigurationError(
            f"{settings.data} is not empty: {', '.join(map(repr, foreign[:3]))} lies in it; name a new folder with --data"
        )


def initialise(
    settings: Settings, *, instance: str = "licet", region: str = "us", beside: frozenset[str] = frozenset()
) -> Initialised:
    """Make an installation in ``settings.data``.

    A crash leaves something that `is_initialised` denies; running it again goes on from there.

    Args:
        settings: Of the installation.
        instance: Its name.
        region: Where the platform is.
        beside: Names of files that may lie in the folder already.

    Raises:
        ConfigurationError: There is a whole one already, or the folder is not ours to use.
    """
    if is_initialised(settings):
        raise ConfigurationError(f"{settings.data} holds an installation already; choose another folder with --data")
    _refuse_occupied(settings, beside)
    try:
        for folder in (
            settings.data,
            settings.data / "run",
            settings.signer_data,
            settings.database.parent,
            settings.worker_data,
            settings.spool,
        ):
            make_private_directory(folder)
        settings.data.chmod(0o700)
    except OSError as error:
        raise ConfigurationError(
            f"{settings.data} cannot be used: {error.strerror}; choose another with --data"
        ) from error
    passphrase = read_passphrase(Path(settings.key_passphrase_file)) if settings.key_passphrase_file else None
    if (settings.signer_data / "trust-root.json").exists():
        keystore = Keystore.open(settings.signer_data, passphrase=passphrase)
    else:
        keystore = Keystore.create(
            settings.signer_data,
            instance=instance,
            log_origin_prefix=f"{instance}/log",
            now_ms=now_ms(),
            passphrase=passphrase,
        )
    prepare_database(settings, founding=keystore.trust_root)
    settings.trust_root.unlink(missing_ok=True)
    create_durably(settings.trust_root, keystore.trust_root.to_json())
    token = _first_operator(settings, region)
    # Written last: with them the installation is whole.
    path = settings.data / OPERATOR_TOKEN_FILE
    create_durably(path, token.encode() + b"\n")
    create_durably(settings.data / INSTALLED_FILE, b"initialised\n")
    return Initialised(path, settings.trust_root)


def prepare_database(settings: Settings, *, founding: TrustRoot | None = None) -> None:
    """Bring all tables, ours and the workflow engine's, up to date, and give every role its rights.

    On PostgreSQL this takes the owner's URL. Where that is not there, the tables must be up to date already.

    Args:
        settings: Of the installation.
        founding: The trust root of an installation that is being made; else that of the one there is counts, if there is one.

    Raises:
        ConfigurationError: A role cannot be used, the owner is needed and is not there, the database is another installation's, or
            something in it is not as it should be: says what, and how to mend it.
    """
    if settings.database_urls and not settings.database_url_file(Role.OWNER.value).exists():
        if founding is not None:
            raise ConfigurationError(
                f"{settings.database_url_file(Role.OWNER.value)} is not there: an installation is made by the owner of its database"
            )
        verify_prepared(settings)
        return
    for role in Role:
        verify_access(settings, role)
    url = database_url(settings, Role.OWNER)
    engine = open_database(settings, Role.OWNER, every_tenant=True)
    try:
        with _told_of(url, engine), migrations.alone(engine):
            # Before the tables of another are migrated, or its roles are robbed of their rights.
            _verify_belonging(engine, settings, founding)
            if is_postgres(engine):
                _clear_the_way(settings, engine)
            migrations.upgrade(engine)
            _migrate_workflows(url)
            if is_postgres(engine):
                _raise_walls(settings, engine)
            else:
                os.chmod(settings.database, 0o600)  # noqa: PTH101 - beside its siblings below it is one call.
            _claim(engine, settings, founding)
    finally:
        engine.dispose()


def verify_prepared(settings: Settings, *, within_s: float = 0.0) -> None:
    """Wait until a PostgreSQL database is up to date and its walls stand, without changing anything.

    Args:
        settings: Of the installation.
        within_s: How long, while another is at it.

    Raises:
        ConfigurationError: A role cannot be used, the database is another installation's, or it is not as it should be by then.
    """
    for role in (Role.API, Role.SEQUENCER, Role.WORKER):
        verify_access(settings, role)
    until_s = time.monotonic() + within_s
    engine = open_database(settings, Role.API)
    try:
        while True:
            is_busy = migrations.is_being_prepared(engine)
            wrong = _what_is_wrong(settings, engine)
            if wrong is None:
                break
            is_behind = not migrations.is_current(engine)
            # What is wrong while nobody prepares it will be wrong in a minute.
            if time.monotonic() >= until_s or not (is_busy or is_behind):
                raise ConfigurationError(wrong)
            time.sleep(0.2)
        _verify_belonging(engine, settings, None)
    finally:
        engine.dispose()


def _what_is_wrong(settings: Settings, engine: Engine) -> str | None:
    if not migrations.is_current(engine):
        return (
            "the database is not at the version that this licet needs: see that"
            f" {settings.database_url_file(Role.OWNER.value)} holds the owner's URL, stop every slot, and start again"
        )
    with read_transaction(engine, PLATFORM) as connection:
        breach = breaches.first(connection, role_names(settings), version_table=migrations.VERSION_TABLE)
    return None if breach is None else _worded(breach)


def _worded(breach: breaches.Breach) -> str:
    return f"the database is not as it should be: {breach.what}. {breach.mend}"


def _identity(settings: Settings, founding: TrustRoot | None) -> Identity | None:
    """Of the installation that is made or is there; None where only tables are prepared."""
    if founding is not None:
        return Identity.of(founding)
    if not settings.trust_root.exists():
        return None
    return Identity.of(TrustRoot.from_json(settings.trust_root.read_bytes()))


def _verify_belonging(engine: Engine, settings: Settings, founding: TrustRoot | None) -> None:
    identity = _identity(settings, founding)
    if identity is None:
        return
    with read_transaction(engine, PLATFORM) as connection:
        if founding is None:
            belonging.verify_own(connection, identity)
        else:
            belonging.verify_free(connection, identity)


def _claim(engine: Engine, settings: Settings, founding: TrustRoot | None) -> None:
    identity = _identity(settings, founding)
    if identity is not None:
        with write_transaction(engine, PLATFORM) as connection:
            belonging.claim(connection, identity, now_ms=now_ms())


def _clear_the_way(settings: Settings, engine: Engine) -> None:
    """See that nothing runs as the owner but what Licet and the workflow engine wrote, before the owner writes anything."""
    roles = _four_roles(settings)
    with write_transaction(engine) as connection:
        _limit_waits(connection)
        for disarm in (True, False):
            breach = breaches.planted(connection, roles, version_table=migrations.VERSION_TABLE)
            if breach is not None:
                raise ConfigurationError(_worded(breach))
            if disarm:
                walls.disarm(connection, roles)


def _migrate_workflows(url: URL) -> None:
    if url.get_backend_name() == "postgresql" and "options" not in url.query:
        url = url.update_query_dict({"options": f"-c lock_timeout={LOCK_WAIT_S:.0f}s"})
    # NOTE: The text with the password goes no further than this process.
    DBOS.migrate(url.render_as_string(hide_password=False))


def _raise_walls(settings: Settings, engine: Engine) -> None:
    roles = _four_roles(settings)
    with write_transaction(engine) as connection:
        _limit_waits(connection)
        bare = walls.unprotected(connection, version_table=migrations.VERSION_TABLE)
        if bare:
            raise ConfigurationError(f"row security is not forced on {', '.join(bare)}: a defect of a migration")
        walls.grant(connection, roles, version_table=migrations.VERSION_TABLE)
        breach = breaches.first(connection, roles, version_table=migrations.VERSION_TABLE)
    if breach is not None:
        raise ConfigurationError(_worded(breach))


def _four_roles(settings: Settings) -> walls.RoleNames:
    names = {role: str(database_url(settings, role).username) for role in Role}
    if len(set(names.values())) < len(names):
        raise ConfigurationError(
            f"two of the files in {settings.database_urls} name the same database role; each needs one of its own"
        )
    return role_names(settings)


def _limit_waits(connection: Connection) -> None:
    connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_WAIT_S:.0f}s'"))


@contextmanager
def _told_of(url: URL, engine: Engine) -> Iterator[None]:
    """Say to whoever starts it why the owner cannot prepare the database, in the server's words but without what is secret."""
    try:
        yield
    except (DBAPIError, DatabaseUnavailable) as error:
        cause = error if isinstance(error, DBAPIError) else error.__cause__
        if not is_postgres(engine) or not isinstance(cause, DBAPIError):
            raise
        if isinstance(cause.orig, LockNotAvailable):
            raise ConfigurationError(
                f"the database could not be prepared: {_who_locks(engine)} for {LOCK_WAIT_S:.0f} s; stop it and start again"
            ) from None
        told = without_secrets(url, str(cause.orig))
        raise ConfigurationError(
            f"the database cannot be prepared as the role {url.username!r}: {type(cause.orig).__name__}: {told}"
        ) from None


def _who_locks(engine: Engine) -> str:
    """Who holds a table of this database."""
    with read_transaction(engine) as connection:
        held = connection.execute(
            text(
                "SELECT s.usename, s.pid FROM pg_locks l JOIN pg_stat_activity s ON s.pid = l.pid"
                " JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()"
                " JOIN pg_class c ON c.oid = l.relation AND c.relkind IN ('r', 'p') AND c.relowner = d.datdba"
                " WHERE l.granted AND l.pid <> pg_backend_pid() ORDER BY s.backend_start, s.pid LIMIT 1"
            )
        ).first()
    return (
        "something kept a table locked"
        if held is None
        else f"the role {held[0]!r} (process {held[1]} of the server) kept a table locked"
    )


def _first_operator(settings: Settings, region: str) -> str:
    engine = open_database(settings, Role.API)
    writes = open_database(settings, Role.SEQUENCER)
    sequencer = Sequencer(writes)
    try:
        at_ms = now_ms()
        token, row = new_token(
            PLATFORM, OPERATOR, now_ms=at_ms, ttl_s=OPERATOR_TOKEN_TTL_S, token_id=new_id(), label="first operator"
        )
        with UnsafeAllTenants(engine, "an installation may have been broken off") as session:
            began = session.exec(select(Tenant).where(Tenant.tenant_id == PLATFORM)).first() is not None
        # Where a try before got so far, the operator is there, and a fresh token is all that is missing.
        rows = (
            ()
            if began
            else tenant_rows(
                PLATFORM, region=region, administrator=OPERATOR, role="operator", bundle=first_bundle([]), now_ms=at_ms
            )
        )
        sequencer.append(
            Submission(
                entries=[NewEntry(PLATFORM, "people", PLATFORM, PLATFORM, _installed())],
                companions=[
                    *(Insert(i.table, [{**i.row}]) for i in rows),  # type: ignore[arg-type]  # Every table of ours has a tenant.
                    Insert(ApiToken, [row.model_dump()]),
                ],
                bump=(PLATFORM,),
            )
        )
    finally:
        sequencer.close()
        writes.dispose()
        engine.dispose()
    return token


def _installed() -> Callable[[int], bytes]:
    fixed = {"v": 1, "type": "people", "event": "installed", "operator": f"{PLATFORM}/{OPERATOR}"}
    return lambda time_ms: canonical.dumps({**fixed, "time_ms": time_ms})
