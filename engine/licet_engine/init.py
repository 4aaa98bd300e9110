"""Making an installation: folders, keys, tables, the platform's own tenant and its first operator."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dbos import DBOS
from sqlalchemy import Engine
from sqlmodel import select

from licet_attestations import canonical
from licet_attestations.signer.files import create_durably, make_private_directory
from licet_attestations.signer.keystore import Keystore, read_passphrase
from licet_engine.domain.errors import ConfigurationError
from licet_engine.domain.refs import PLATFORM, new_id, now_ms
from licet_engine.lifecycle.people import first_bundle, new_token, tenant_rows
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import Insert, NewEntry, Submission
from licet_engine.settings import Settings
from licet_engine.store import migrations, walls
from licet_engine.store.access import Role, database_url, open_database, verify_access
from licet_engine.store.db import UnsafeAllTenants, write_transaction
from licet_engine.store.postgres import is_postgres
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
    prepare_database(settings)
    settings.trust_root.unlink(missing_ok=True)
    create_durably(settings.trust_root, keystore.trust_root.to_json())
    token = _first_operator(settings, region)
    # Written last: with them the installation is whole.
    path = settings.data / OPERATOR_TOKEN_FILE
    create_durably(path, token.encode() + b"\n")
    create_durably(settings.data / INSTALLED_FILE, b"initialised\n")
    return Initialised(path, settings.trust_root)


def prepare_database(settings: Settings) -> None:
    """Bring all tables, ours and the workflow engine's, up to date, and give every role its rights.

    On PostgreSQL this takes the owner's URL. Where that is not there, the tables must be up to date already.

    Raises:
        ConfigurationError: A role cannot be used, the owner is needed and is not there, or a table lacks its wall.
    """
    if settings.database_urls and not settings.database_url_file(Role.OWNER.value).exists():
        verify_prepared(settings)
        return
    for role in Role:
        verify_access(settings, role)
    engine = open_database(settings, Role.OWNER, every_tenant=True)
    try:
        with migrations.alone(engine):
            migrations.upgrade(engine)
            # NOTE: The text with the password goes no further than this process.
            DBOS.migrate(database_url(settings, Role.OWNER).render_as_string(hide_password=False))
            if is_postgres(engine):
                _raise_walls(settings, engine)
            else:
                os.chmod(settings.database, 0o600)  # noqa: PTH101 - beside its siblings below it is one call.
    finally:
        engine.dispose()


def verify_prepared(settings: Settings, *, within_s: float = 0.0) -> None:
    """Wait until the tables of a PostgreSQL database are up to date, without changing anything.

    Args:
        settings: Of the installation.
        within_s: How long; another may be at it.

    Raises:
        ConfigurationError: A role cannot be used, or they are not up to date by then.
    """
    for role in (Role.API, Role.SEQUENCER, Role.WORKER):
        verify_access(settings, role)
    until_s = time.monotonic() + within_s
    engine = open_database(settings, Role.API)
    try:
        while not migrations.is_current(engine):
            if time.monotonic() >= until_s:
                raise ConfigurationError(
                    "the database is not at the version that this licet needs: see that"
                    f" {settings.database_url_file(Role.OWNER.value)} holds the owner's URL, stop every slot, and start again"
                )
            time.sleep(0.2)
    finally:
        engine.dispose()


def _raise_walls(settings: Settings, engine: Engine) -> None:
    names = {role: str(database_url(settings, role).username) for role in Role}
    if len(set(names.values())) < len(names):
        raise ConfigurationError(
            f"two of the files in {settings.database_urls} name the same database role; each needs one of its own"
        )
    roles = walls.RoleNames(api=names[Role.API], sequencer=names[Role.SEQUENCER], worker=names[Role.WORKER])
    with write_transaction(engine) as connection:
        bare = walls.unprotected(connection, version_table=migrations.VERSION_TABLE)
        if bare:
            raise ConfigurationError(f"row security is not forced on {', '.join(bare)}: a defect of a migration")
        walls.grant(connection, roles, version_table=migrations.VERSION_TABLE)


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
