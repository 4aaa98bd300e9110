"""Which database an installation has, and as whom each of its processes connects to it.

Rules kept here:

- The URL of a PostgreSQL database holds a password: it stands in a file that is its owner's alone, one for each role, and is never
  put into an argument, an environment, a log line or an error.
- A process opens the file of its own role and no other.
"""

from __future__ import annotations

import os
import stat
from enum import Enum
from typing import Final
from urllib.parse import quote, quote_plus

from sqlalchemy import Engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from licet_engine.domain.errors import ConfigurationError
from licet_engine.settings import Settings
from licet_engine.store.db import open_engine
from licet_engine.store.walls import RoleNames

_MAX_URL_BYTES: Final = 4096
_SECRET_OPTIONS: Final = ("password", "sslpassword", "oauth_client_secret")


class Role(Enum):
    """As whom a process connects."""

    OWNER = "owner"
    API = "api"
    SEQUENCER = "sequencer"
    WORKER = "worker"


def database_url(settings: Settings, role: Role) -> URL:
    """Read the URL of the installation's database for a role.

    Raises:
        ConfigurationError: The file is not there, not its owner's alone, or holds no URL of a PostgreSQL database.
    """
    if not settings.database_urls:
        return URL.create("sqlite", database=str(settings.database))
    path = settings.database_url_file(role.value)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            text = file.read(_MAX_URL_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        told = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigurationError(
            f"{path} cannot be read: {told}; put the URL of the database for the role {role.value!r} there"
        ) from error
    if mode & 0o077:
        raise ConfigurationError(f"{path} has mode {mode:04o} and holds a password: chmod 0600 {path}")
    if text.count("@") > 1:
        # What stands before the last of them would be taken for the name of a machine, and told in errors, though it is of the password.
        raise ConfigurationError(
            f"{path} has more than one @: write each in the name, the password or an option as %40"
        )
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # Its own message, and its cause, would show the text.
        raise ConfigurationError(f"{path} holds no URL of the form postgresql://ROLE:PASSWORD@HOST/DATABASE") from None
    if url.get_backend_name() != "postgresql" or not url.username or not url.database:
        raise ConfigurationError(f"{path} holds no URL of the form postgresql://ROLE:PASSWORD@HOST/DATABASE")
    return url


def role_names(settings: Settings) -> RoleNames:
    """What the roles of the processes are called in a PostgreSQL database.

    Raises:
        ConfigurationError: As for `database_url`.
    """
    api, sequencer, worker = (
        str(database_url(settings, role).username) for role in (Role.API, Role.SEQUENCER, Role.WORKER)
    )
    return RoleNames(api=api, sequencer=sequencer, worker=worker)


def without_secrets(url: URL, told: str) -> str:
    """What a driver says of a connection, in one line, without what is secret in its URL."""
    secrets = {str(url.password or "")}
    for option in _SECRET_OPTIONS:
        given = url.query.get(option, ())
        secrets.update([given] if isinstance(given, str) else given)
    written = {
        form for secret in secrets for form in (secret, quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1])
    }
    # The longest first: a part of it may be another's whole.
    for form in sorted(filter(None, written), key=len, reverse=True):
        told = told.replace(form, "***")
    return " ".join(told.split())


def open_database(settings: Settings, role: Role, *, pool_size: int = 8, every_tenant: bool = False) -> Engine:
    """Open an engine on the installation's database as one of its roles.

    Args:
        settings: Of the installation.
        role: As whom; of no account on SQLite, which has one file and no roles.
        pool_size: As for `open_engine`.
        every_tenant: As for `open_engine`.
    """
    return open_engine(database_url(settings, role), pool_size=pool_size, every_tenant=every_tenant)


def verify_access(settings: Settings, role: Role) -> None:
    """Connect once as a role of a PostgreSQL database, to say clearly why that cannot be done where it cannot.

    For whoever sets the installation up: what the server says is passed on, which callers of the api are not told.

    Raises:
        ConfigurationError: The URL is not there or is none, nobody answers, the role is refused, or no wall holds for it.
    """
    url = database_url(settings, role)
    if not settings.database_urls:
        return
    engine = open_engine(url, pool_size=1)
    try:
        engine.connect().close()
    except ConfigurationError as error:
        raise ConfigurationError(f"{settings.database_url_file(role.value)}: {error.message}") from error
    except DBAPIError as error:
        told = without_secrets(url, str(error.orig))
        path = settings.database_url_file(role.value)
        raise ConfigurationError(
            f"the database that {path} names cannot be used as the role {url.username!r}: {told}"
        ) from None
    finally:
        engine.dispose()
