"""Models, their versions, checks, promotions and approvals."""

from typing import Any, ClassVar

from sqlalchemy import BigInteger, ForeignKeyConstraint, Index, Text
from sqlmodel import Field

from licet_engine.store.tables.base import JsonText, TenantRow, to_tenant, to_version


class ModelVersion(TenantRow, table=True):
    """A version of a model."""

    __tablename__: ClassVar[Any] = "model_version"
    __table_args__ = (to_tenant(),)

    model: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    run: str
    tier: str
    """``low``, ``medium`` or ``high``."""
    use: str
    revision: int = 1
    """How often its files were registered; what was approved of other files does not count."""
    stage: str = "none"
    """``none``, ``staging``, ``prod`` or ``retired``."""
    digest_hex: str = ""
    manifest: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    authors: list[str] = Field(default_factory=list, sa_type=JsonText)
    pipelines: list[str] = Field(default_factory=list, sa_type=JsonText)
    datasets: list[str] = Field(default_factory=list, sa_type=JsonText)
    signed: bool = False
    state: str
    """``registering``, ``ready``, ``deleted`` or ``failed``."""
    created_by: str = ""
    created_at_ms: int = Field(sa_type=BigInteger)


class CheckResult(TenantRow, table=True):
    """What a check of a model found; it counts only for the digest that was checked."""

    __tablename__: ClassVar[Any] = "check_result"
    __table_args__ = (to_version(), Index("ix_check_result_version", "tenant_id", "model", "version", "kind", "at_ms"))

    id: str = Field(primary_key=True)
    model: str
    version: int
    kind: str
    """``technical``, ``bias``, ``explainability`` or ``drift``."""
    model_digest_hex: str
    passed: bool
    figures: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    attestation_digest_hex: str = ""
    operation_id: str | None = None
    at_ms: int = Field(sa_type=BigInteger)


class ApprovalRequest(TenantRow, table=True):
    """A request that a track approve a model version."""

    __tablename__: ClassVar[Any] = "approval_request"
    __table_args__ = (to_version(), Index("ix_approval_request_version", "tenant_id", "model", "version"))

    id: str = Field(primary_key=True)
    model: str
    version: int
    track: str
    binding: str
    state: str = "open"
    """``open``, ``answered`` or ``withdrawn``."""
    requested_by: str
    reason: str = Field(default="", sa_type=Text)
    at_ms: int = Field(sa_type=BigInteger)
    expires_at_ms: int = Field(default=0, sa_type=BigInteger)
    parts: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    """What the binding was made of."""
    reminded_at_ms: int | None = Field(default=None, sa_type=BigInteger)


class Approval(TenantRow, table=True):
    """A reviewer's verdict, bound to the digests it was given for."""

    __tablename__: ClassVar[Any] = "approval"
    __table_args__ = (to_version(), Index("ix_approval_version", "tenant_id", "model", "version"))

    id: str = Field(primary_key=True)
    model: str
    version: int
    track: str
    binding: str
    verdict: str
    """``approved`` or ``rejected``."""
    approver: str
    reason: str = Field(default="", sa_type=Text)
    attestation_digest_hex: str = ""
    at_ms: int = Field(sa_type=BigInteger)
    withdrawn_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    voided_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    on_behalf_of: str | None = None
    """The reviewer for whom the approver stood in."""
    expires_at_ms: int = Field(default=0, sa_type=BigInteger)
    parts: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    """What the binding was made of, so that it can be told what changed."""
    reminded_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    void_told_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    """When it was told that it is void."""


class Delegation(TenantRow, table=True):
    """A reviewer has another person stand in on a track, for a time. Revoked perhaps, never removed."""

    __tablename__: ClassVar[Any] = "delegation"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "reviewer"], ["principal.tenant_id", "principal.name"]),
        ForeignKeyConstraint(["tenant_id", "delegate"], ["principal.tenant_id", "principal.name"]),
        Index("ix_delegation_delegate", "tenant_id", "delegate", "track"),
    )

    id: str = Field(primary_key=True)
    track: str
    reviewer: str
    delegate: str
    reason: str = Field(default="", sa_type=Text)
    created_at_ms: int = Field(sa_type=BigInteger)
    until_ms: int = Field(sa_type=BigInteger)
    revoked_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    revoked_by: str | None = None


class Ticket(TenantRow, table=True):
    """A change ticket as another system told of it, when it was last fetched."""

    __tablename__: ClassVar[Any] = "ticket"
    __table_args__ = (to_tenant(),)

    id: str = Field(primary_key=True)
    state: str
    approved: bool
    subjects: list[str] = Field(default_factory=list, sa_type=JsonText)
    """References of models and versions that it is about."""
    as_of_ms: int = Field(sa_type=BigInteger)
    fresh_until_ms: int = Field(sa_type=BigInteger)
    fetched_at_ms: int = Field(sa_type=BigInteger)
    operation_id: str


class Promotion(TenantRow, table=True):
    """A change of stage: who, when, and by which decision."""

    __tablename__: ClassVar[Any] = "promotion"
    __table_args__ = (to_version(), Index("ix_promotion_version", "tenant_id", "model", "version", "at_ms"))

    id: str = Field(primary_key=True)
    model: str
    version: int
    stage_before: str
    stage: str
    promoted_by: str
    decision_id: str
    bundle_digest_hex: str = ""
    operation_id: str | None = None
    reason: str = Field(default="", sa_type=Text)
    at_ms: int = Field(sa_type=BigInteger)
