"""Candidates that run beside the policies in force, and where they would have answered otherwise."""

from typing import Any, ClassVar, Final

from sqlalchemy import BigInteger, Index
from sqlmodel import Field

from licet_engine.store.tables.base import REMOVED_BY_ANY, JsonText, TenantRow, to_tenant

COUNTED: Final = ("same", "other_reasons", "to_deny", "to_allow", "dropped")
"""What is counted of a candidate's answers."""


class PolicyShadow(TenantRow, table=True):
    """A published bundle beside the active one: set and ended by decisions. At most one of a tenant has not ended."""

    __tablename__: ClassVar[Any] = "policy_shadow"
    __table_args__ = (to_tenant(), Index("ix_policy_shadow_since", "tenant_id", "since_ms"))
    __mapper_args__: ClassVar[Any] = REMOVED_BY_ANY

    id: str = Field(primary_key=True)
    """The decision that set it."""
    bundle_hex: str
    """The candidate."""
    active_hex: str
    """The bundle in force, which it is compared with."""
    set_by: str
    since_ms: int = Field(sa_type=BigInteger)
    ended_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    ended: str | None = None
    """``off``, ``replaced`` by another candidate, or ``overtaken``: other policies came into force, perhaps itself."""


class PolicyShadowCount(TenantRow, table=True):
    """How a candidate's answers compare: telemetry, to which every api adds what it counted."""

    __tablename__: ClassVar[Any] = "policy_shadow_count"
    __mapper_args__: ClassVar[Any] = REMOVED_BY_ANY

    shadow: str = Field(primary_key=True)
    kind: str = Field(primary_key=True)
    """``total``; ``action``, each decision once; or ``policy``, flips by the policies that would decide them."""
    name: str = Field(primary_key=True)
    same: int = Field(default=0, sa_type=BigInteger)
    """The same answer by the same policies."""
    other_reasons: int = Field(default=0, sa_type=BigInteger)
    """The same answer by others."""
    to_deny: int = Field(default=0, sa_type=BigInteger)
    to_allow: int = Field(default=0, sa_type=BigInteger)
    dropped: int = Field(default=0, sa_type=BigInteger)
    """Not put to the candidate: there was no room for it, or no way to it."""
    at_ms: int = Field(sa_type=BigInteger)
    """When it was added to last."""


class PolicyFlip(TenantRow, table=True):
    """A decision that a candidate would have answered otherwise: telemetry, of which the newest are kept."""

    __tablename__: ClassVar[Any] = "policy_flip"
    __table_args__ = (Index("ix_policy_flip_at", "tenant_id", "shadow", "at_ms"),)
    __mapper_args__: ClassVar[Any] = REMOVED_BY_ANY

    shadow: str = Field(primary_key=True)
    decision: str = Field(primary_key=True)
    at_ms: int = Field(sa_type=BigInteger)
    principal: str
    action: str
    resource: str
    before: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    after: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
