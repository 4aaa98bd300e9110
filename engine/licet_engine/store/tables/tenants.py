"""Tenants, their people and tokens, environments and budgets, and operators behind the glass."""

from typing import Any, ClassVar

from sqlalchemy import BigInteger, ForeignKeyConstraint, Text, UniqueConstraint
from sqlmodel import Field

from licet_engine.domain.keeping import DEFAULT_DAYS
from licet_engine.store.tables.base import JsonText, TenantRow, to_tenant

DEFAULT_APPROVAL_TTL_S = 90 * 86_400
DEFAULT_REQUEST_TTL_S = 14 * 86_400
DEFAULT_REMIND_BEFORE_S = 86_400


class Tenant(TenantRow, table=True):
    """A tenant. ``tenant_id`` is its slug: immutable and never reused."""

    __tablename__: ClassVar[Any] = "tenant"

    region: str
    suspended: bool = False
    created_at_ms: int = Field(sa_type=BigInteger)
    bundle_digest_hex: str | None = None
    """The policy bundle in force."""
    approval_ttl_s: int = Field(default=DEFAULT_APPROVAL_TTL_S, sa_type=BigInteger)
    """How long an approval counts."""
    request_ttl_s: int = Field(default=DEFAULT_REQUEST_TTL_S, sa_type=BigInteger)
    """How long a request for approval waits."""
    remind_before_s: int = Field(default=DEFAULT_REMIND_BEFORE_S, sa_type=BigInteger)
    """How long before either ends a reminder is sent."""
    evidence_retention_days: int = Field(default=DEFAULT_DAYS, sa_type=BigInteger)
    """How long what is logged is kept at the least."""
    evidence_retained: list[list[int]] = Field(default_factory=list, sa_type=JsonText)
    """Longer times that were in force before; see `licet_engine.domain.keeping`."""


class Principal(TenantRow, table=True):
    """A person or a service account."""

    __tablename__: ClassVar[Any] = "principal"
    __table_args__ = (to_tenant(),)

    name: str = Field(primary_key=True)
    kind: str
    """``person`` or ``service``."""
    roles: list[str] = Field(default_factory=list, sa_type=JsonText)
    active: bool = True
    owner: str | None = None
    """The person who answers for a service account."""
    created_at_ms: int = Field(sa_type=BigInteger)
    qualified: list[str] = Field(default_factory=list, sa_type=JsonText)
    """Tracks on which the person may stand in for a reviewer."""


class ApiToken(TenantRow, table=True):
    """An API token, kept as its SHA-256; the token itself is shown once and never stored."""

    __tablename__: ClassVar[Any] = "api_token"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "principal"], ["principal.tenant_id", "principal.name"]),
        # Identity is looked up by the hash alone, before any tenant is known.
        UniqueConstraint("hash_hex"),
    )

    hash_hex: str = Field(primary_key=True)
    id: str
    """Names the token to people, in the log and when it is revoked."""
    principal: str
    label: str = ""
    created_at_ms: int = Field(sa_type=BigInteger)
    expires_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    revoked_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    workload: dict[str, str] = Field(default_factory=dict, sa_type=JsonText)
    """What the issuer claimed of the workload that it was given to for an ID token; empty for one that was issued."""


class BreakGlass(TenantRow, table=True):
    """An operator's time behind the glass of this tenant: asked for, approved, over, reviewed."""

    __tablename__: ClassVar[Any] = "break_glass"
    __table_args__ = (to_tenant(),)

    id: str = Field(primary_key=True)
    operator: str
    """Reference of the operator, who is of the platform's tenant."""
    reason: str = Field(sa_type=Text)
    duration_ms: int = Field(sa_type=BigInteger)
    requested_at_ms: int = Field(sa_type=BigInteger)
    approved_by: str | None = None
    approved_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    until_ms: int = Field(default=0, sa_type=BigInteger)
    ended_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    """When it was ended before its time."""
    reviewed_by: str | None = None
    reviewed_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    finding: str = Field(default="", sa_type=Text)


class Environment(TenantRow, table=True):
    """A place where runs may be executed, its approved runtime and the code it may run."""

    __tablename__: ClassVar[Any] = "environment"
    __table_args__ = (to_tenant(),)

    name: str = Field(primary_key=True)
    region: str
    runtimes_allowed: list[str] = Field(default_factory=list, sa_type=JsonText)
    """Digests of the runtimes (interpreter and libraries) that are approved here."""
    code_allowed: list[str] = Field(default_factory=list, sa_type=JsonText)
    """Digests of the code that is approved to run here."""


class Budget(TenantRow, table=True):
    """A consumable. Spent by the sequencer only, so that two entries of one group cannot spend the same."""

    __tablename__: ClassVar[Any] = "budget"
    __table_args__ = (to_tenant(),)

    name: str = Field(primary_key=True)
    limit: int = Field(sa_type=BigInteger)
    remaining: int = Field(sa_type=BigInteger)
