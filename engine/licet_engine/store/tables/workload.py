"""Whom a tenant trusts to say who a workload is, and which of their tokens were used."""

from typing import Any, ClassVar

from sqlalchemy import BigInteger, ForeignKeyConstraint, Index, Text
from sqlmodel import Field

from licet_engine.store.tables.base import JsonText, TenantRow, to_tenant


class Issuer(TenantRow, table=True):
    """An issuer of ID tokens, and the service account that those of certain claims are exchanged for.

    ``keys`` and ``keys_as_of_ms`` are what the worker fetched last, or what was given with it.
    """

    __tablename__: ClassVar[Any] = "issuer"
    __table_args__ = (
        to_tenant(),
        ForeignKeyConstraint(["tenant_id", "account"], ["principal.tenant_id", "principal.name"]),
        # Whose keys grow old is asked every other second, of all tenants at once.
        Index("ix_issuer_keys_as_of", "keys_as_of_ms"),
    )

    name: str = Field(primary_key=True)
    url: str = Field(sa_type=Text)
    audience: str = Field(sa_type=Text)
    account: str
    """Name of the service account."""
    claims: dict[str, str] = Field(default_factory=dict, sa_type=JsonText)
    """What a token must claim, word for word."""
    keys: list[dict[str, str]] = Field(default_factory=list, sa_type=JsonText)
    """Public keys as JWK, of their public members alone."""
    keys_as_of_ms: int = Field(default=0, sa_type=BigInteger)
    """When they were fetched; 0 before the first time."""
    fetched: bool = True
    """Whether keys are fetched from the issuer, and grow old; else they were given, and stay."""
    unsafe_http: bool = False
    created_by: str
    created_at_ms: int = Field(sa_type=BigInteger)
    removed_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    refused_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    """When an ID token that it signed was last refused; telemetry, while the log has each."""
    refused_because: str = Field(default="", sa_type=Text)


class UsedIdToken(TenantRow, table=True):
    """An ID token that was exchanged, by the digest of what was signed: none is exchanged twice."""

    __tablename__: ClassVar[Any] = "used_id_token"
    __table_args__ = (to_tenant(),)

    digest_hex: str = Field(primary_key=True)
    expires_at_ms: int = Field(sa_type=BigInteger)
