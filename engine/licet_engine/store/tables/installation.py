"""Which installation the database is of."""

from typing import Any, ClassVar

from sqlalchemy import BigInteger
from sqlmodel import Field

from licet_engine.store.tables.base import TenantRow


class Installation(TenantRow, table=True):
    """Which installation the database is of: one row, of the platform's tenant, written by the owner alone.

    Nobody but the owner can change it, and who has other keys is told so before anything is done.
    """

    __tablename__: ClassVar[Any] = "installation"

    instance: str
    trust_root_digest_hex: str
    """SHA-256 of the trust root's canonical form."""
    created_at_ms: int = Field(sa_type=BigInteger)
