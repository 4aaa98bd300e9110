"""Policy bundles, facts, decisions, operations and what attests them."""

from typing import Any, ClassVar

from sqlalchemy import BigInteger, Index, LargeBinary, Text
from sqlmodel import Field

from licet_engine.store.tables.base import REMOVED_BY_ANY, JsonText, TenantRow


class PolicyBundle(TenantRow, table=True):
    """An immutable policy bundle, by digest. ``body`` is the canonical JSON the digest is over."""

    __tablename__: ClassVar[Any] = "policy_bundle"

    digest_hex: str = Field(primary_key=True)
    author: str
    state: str
    """``published``, ``active`` or ``superseded``."""
    proved: bool = False
    """Whether it was examined, with nothing found that refuses it: when it was published; or its proofs alone, as it came with its tenant. Such a
    one is in force or put aside, and so is not activated without a publication."""
    body: bytes = Field(sa_type=LargeBinary)
    created_at_ms: int = Field(sa_type=BigInteger)
    activated_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    activated_by: str | None = None
    """Who brought it into force last; None for the first bundle of a tenant, which came with it."""
    before_hex: str | None = None
    """Digest of the bundle it took the place of when it came into force last, if that may be rolled back to."""
    attestation_hex: str | None = None
    """Digest of an attestation of what was examined of it; None if nobody did."""


class FactBlob(TenantRow, table=True):
    """A fact that some decision used, by digest: canonical JSON of one entity."""

    __tablename__: ClassVar[Any] = "fact_blob"

    digest_hex: str = Field(primary_key=True)
    body: bytes = Field(sa_type=LargeBinary)


ERASED = "(erased)"
"""Stands for whose, or about what, a decision was whose record is erased; no name has brackets."""


class Decision(TenantRow, table=True):
    """The index by which decisions are listed; the decision itself is a record of the log."""

    __tablename__: ClassVar[Any] = "decision"
    __table_args__ = (Index("ix_decision_at", "tenant_id", "at_ms"),)

    id: str = Field(primary_key=True)
    leaf_index: int = Field(sa_type=BigInteger)
    action: str
    principal: str
    resource: str
    allowed: bool
    observed: list[str] = Field(default_factory=list, sa_type=JsonText)
    """What is in observe mode and would have denied it."""
    at_ms: int = Field(sa_type=BigInteger)


class Operation(TenantRow, table=True):
    """An accepted operation and how far it came."""

    __tablename__: ClassVar[Any] = "operation"
    __table_args__ = (Index("ix_operation_created", "tenant_id", "created_at_ms"),)

    id: str = Field(primary_key=True)
    action: str
    resource: str
    state: str
    """``accepted``, ``running``, ``done``, ``failed`` or ``refused``."""
    decision_id: str
    """The decision that accepted it."""
    last_decision_id: str = ""
    """The last decision on it: warrants are made on this one."""
    facts_version: int = Field(default=0, sa_type=BigInteger)
    """The version of the tenant's facts on which that decision still stands."""
    principal: str
    principal_kind: str = "person"
    parameters: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    attempt: int = 0
    """How often its performance was begun."""
    claimed: list[dict[str, str]] = Field(default_factory=list, sa_type=JsonText)
    """What the asker asserted, to be decided on again alike."""
    asked: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    """The body as it was sent, to be asked again."""
    progress: dict[str, Any] | None = Field(default=None, sa_type=JsonText)
    result: dict[str, Any] | None = Field(default=None, sa_type=JsonText)
    error: dict[str, Any] | None = Field(default=None, sa_type=JsonText)
    created_at_ms: int = Field(sa_type=BigInteger)
    updated_at_ms: int = Field(sa_type=BigInteger)


class Attestation(TenantRow, table=True):
    """A signed statement about something, by the digest of its envelope."""

    __tablename__: ClassVar[Any] = "attestation"
    __table_args__ = (Index("ix_attestation_subject", "tenant_id", "subject"),)

    digest_hex: str = Field(primary_key=True)
    predicate_type: str
    subject: str
    envelope: str = Field(sa_type=Text)
    leaf_index: int | None = Field(default=None, sa_type=BigInteger)
    at_ms: int = Field(sa_type=BigInteger)


class IdempotencyKey(TenantRow, table=True):
    """What was answered to a mutation, so that its repetition is answered alike."""

    __tablename__: ClassVar[Any] = "idempotency_key"
    __mapper_args__: ClassVar[Any] = REMOVED_BY_ANY

    principal: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    request_digest_hex: str
    body: str = Field(sa_type=Text)
    at_ms: int = Field(sa_type=BigInteger)
