"""Publications of policies: what was sent, and what was found."""

from typing import Any, ClassVar

from sqlalchemy import BigInteger, Index
from sqlmodel import Field

from licet_engine.store.tables.base import JsonText, TenantRow, to_tenant


class Publication(TenantRow, table=True):
    """A project that somebody sent to be published. Its files stand with its operation, as they were sent."""

    __tablename__: ClassVar[Any] = "publication"
    __table_args__ = (
        to_tenant(),
        Index("ix_publication_bundle", "tenant_id", "bundle_hex"),
        Index("ix_publication_created", "tenant_id", "created_at_ms"),
    )

    id: str = Field(primary_key=True)
    """The operation that examines it."""
    project_hex: str
    """Digest of the project as it was sent."""
    bundle_hex: str | None = None
    """Digest of the bundle that it is; None while it is not known, or where none could be composed."""
    published_by: str
    """Reference of who sent it."""
    author: str
    """The person who counts as its author: who sent it, or who answers for the service account that did."""
    state: str
    """``examining``, ``published`` or ``refused``."""
    report: dict[str, Any] | None = Field(default=None, sa_type=JsonText)
    """What the examination found; None while it goes on, and where it could not be made."""
    attestation_hex: str | None = None
    """Digest of the signed statement of it."""
    created_at_ms: int = Field(sa_type=BigInteger)
    ended_at_ms: int | None = Field(default=None, sa_type=BigInteger)
