"""Which installation a database is of: one database has one, whose keys sign its logs.

Rules kept here:

- The database says by whose trust root it was made. Whoever comes with another is refused before anything is done: two signers would sign
  two histories under one name, and each of two installations would have an operator of its own.
- Several supervisors of one data folder, and a folder that came back from a backup, have the same trust root.
- Only making an installation, or the first start after an upgrade from a version that did not say it, writes the row; a rotation of a key
  writes the trust root that follows the one that stands there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sqlalchemy import Connection, inspect
from sqlmodel import col, insert, select, update

from licet_attestations.trustroot import TrustRoot
from licet_engine.domain.errors import ConfigurationError
from licet_engine.domain.refs import PLATFORM
from licet_engine.store.tables import Installation, Tenant


@dataclass(frozen=True, slots=True)
class Identity:
    """By what an installation is told from others.

    Attributes:
        instance: Its name.
        trust_root_digest_hex: SHA-256 of its trust root's canonical form.
    """

    instance: str
    trust_root_digest_hex: str

    @classmethod
    def of(cls, trust_root: TrustRoot) -> Identity:
        """The identity of who has this trust root."""
        return cls(trust_root.instance, hashlib.sha256(trust_root.to_json()).hexdigest())


def verify_free(connection: Connection, identity: Identity) -> None:
    """Verify that an installation may be made on a database: it has none, or this one was begun there.

    Args:
        connection: In a transaction about the platform.
        identity: Of who makes one.

    Raises:
        ConfigurationError: There is another.
    """
    found = identity_in(connection)
    is_other = found != identity if found is not None else _has_platform(connection)
    if is_other:
        named = f" ({found.instance!r}, {_short(found)})" if found is not None else ""
        raise ConfigurationError(
            f"the database holds an installation already{named}: name an empty database, or, to serve that one from another slot or after"
            " a restore, use its own data folder"
        )


def verify_own(connection: Connection, identity: Identity) -> None:
    """Verify that a database is not another installation's.

    Args:
        connection: In a transaction about the platform.
        identity: Of who asks.

    Raises:
        ConfigurationError: It is.
    """
    found = identity_in(connection)
    if found is not None and found != identity:
        raise ConfigurationError(
            f"the database is of another installation: of {found.instance!r} with {_short(found)}, and this data folder is of"
            f" {identity.instance!r} with {_short(identity)}; correct LICET_DATA or LICET_DATABASE_URLS"
        )


def claim(connection: Connection, identity: Identity, *, now_ms: int) -> None:
    """Write whose the database is, if it does not say so yet.

    Args:
        connection: Of the owner, in a transaction about the platform that writes.
        identity: Whose it is.
        now_ms: Time of the row.
    """
    if identity_in(connection) is None:
        row = Installation(
            tenant_id=PLATFORM,
            instance=identity.instance,
            trust_root_digest_hex=identity.trust_root_digest_hex,
            created_at_ms=now_ms,
        )
        connection.execute(insert(Installation).values(**row.model_dump()))


def renew(connection: Connection, before: Identity, after: Identity) -> None:
    """Write the trust root that follows; doing it again is harmless.

    Args:
        connection: Of the owner, in a transaction about the platform that writes.
        before: What stands there, or did.
        after: What follows it.

    Raises:
        ConfigurationError: The database is another installation's.
    """
    found = identity_in(connection)
    if found == after:
        return
    verify_own(connection, before)
    connection.execute(
        update(Installation)
        .where(col(Installation.tenant_id) == PLATFORM)
        .values(trust_root_digest_hex=after.trust_root_digest_hex)
    )


def identity_in(connection: Connection) -> Identity | None:
    """What a database says of itself; None where it says nothing yet."""
    if not inspect(connection).has_table("installation"):
        return None
    row = connection.execute(
        select(Installation.instance, Installation.trust_root_digest_hex).where(Installation.tenant_id == PLATFORM)
    ).first()
    return None if row is None else Identity(row.instance, row.trust_root_digest_hex)


def _has_platform(connection: Connection) -> bool:
    if not inspect(connection).has_table("tenant"):
        return False
    # Not the mapped row: the table may be an older version's.
    found = connection.execute(select(Tenant.tenant_id).where(Tenant.tenant_id == PLATFORM)).first()
    return found is not None


def _short(identity: Identity) -> str:
    return f"trust root {identity.trust_root_digest_hex[:16]}"
