"""Endpoints, deployments, traffic and the account of invocations."""

from typing import Any, ClassVar

from sqlalchemy import BigInteger, ForeignKeyConstraint, Index
from sqlmodel import Field

from licet_engine.store.tables.base import JsonText, TenantRow, to_tenant, to_version


def to_endpoint() -> ForeignKeyConstraint:
    """The endpoint that the row names is one of its tenant's."""
    return ForeignKeyConstraint(["tenant_id", "endpoint"], ["endpoint.tenant_id", "endpoint.name"])


class Endpoint(TenantRow, table=True):
    """What is invoked: one model under one name, with the versions that take its traffic."""

    __tablename__: ClassVar[Any] = "endpoint"
    __table_args__ = (to_tenant(),)

    name: str = Field(primary_key=True)
    model: str
    region: str
    use: str
    state: str
    """``deploying`` until its first version answers, ``live``, or ``retired``."""
    weights: dict[str, int] = Field(default_factory=dict, sa_type=JsonText)
    """Version number, as text, to percent."""
    shadow: str = ""
    """Number of the version that is sent copies; empty for none."""
    alarmed: bool = False
    created_by: str = ""
    created_at_ms: int = Field(sa_type=BigInteger)
    updated_at_ms: int = Field(sa_type=BigInteger)


class Deployment(TenantRow, table=True):
    """One model version put on an endpoint, and what became of it. Its identifier is its operation's."""

    __tablename__: ClassVar[Any] = "deployment"
    __table_args__ = (
        to_endpoint(),
        to_version(),
        Index("ix_deployment_endpoint", "tenant_id", "endpoint", "created_at_ms"),
    )

    id: str = Field(primary_key=True)
    endpoint: str
    model: str
    version: int
    model_digest_hex: str
    strategy: str
    fallback: str = ""
    """Number of the version before, to which an alarm returns all traffic; empty for none."""
    plan: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    """Steps, alarms, replicas and bounds, as they were decided."""
    state: str
    """``starting``, ``baking``, ``live``, ``shadow``, ``superseded``, ``rolled-back``, ``retired`` or ``failed``."""
    cause: dict[str, Any] | None = Field(default=None, sa_type=JsonText)
    """Why it was rolled back or failed."""
    deployed_by: str
    decision_id: str
    attestation_digest_hex: str = ""
    created_at_ms: int = Field(sa_type=BigInteger)
    ended_at_ms: int | None = Field(default=None, sa_type=BigInteger)


class TrafficEvent(TenantRow, table=True):
    """A change of an endpoint's traffic that the router made by itself, as a deployment permits."""

    __tablename__: ClassVar[Any] = "traffic_event"
    __table_args__ = (to_endpoint(), Index("ix_traffic_event_at", "tenant_id", "endpoint", "at_ms"))

    endpoint: str = Field(primary_key=True)
    operation_id: str = Field(primary_key=True)
    serial: int = Field(primary_key=True, sa_type=BigInteger)
    kind: str
    """``step``, ``completed``, ``rolled-back`` or ``failed``."""
    weights: dict[str, int] = Field(default_factory=dict, sa_type=JsonText)
    shadow: str = ""
    cause: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    at_ms: int = Field(sa_type=BigInteger)


class InvocationCount(TenantRow, table=True):
    """How far an endpoint's invocations are accounted for. Telemetry: raises no facts version."""

    __tablename__: ClassVar[Any] = "invocation_count"
    __table_args__ = (to_endpoint(),)

    endpoint: str = Field(primary_key=True)
    last: int = Field(default=0, sa_type=BigInteger)
    """The last number that was reported; the next batch begins right after it."""
    lost: int = Field(default=0, sa_type=BigInteger)
    totals: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    """Version number to status to how many."""
    at_ms: int = Field(default=0, sa_type=BigInteger)


class InvocationBatch(TenantRow, table=True):
    """A batch of invocations as it was reported; the newest are kept here, all of them stand in the log."""

    __tablename__: ClassVar[Any] = "invocation_batch"
    __table_args__ = (to_endpoint(),)

    endpoint: str = Field(primary_key=True)
    first: int = Field(primary_key=True, sa_type=BigInteger)
    last: int = Field(sa_type=BigInteger)
    lost: int = Field(default=0, sa_type=BigInteger)
    router: str
    epoch: str
    groups: list[dict[str, Any]] = Field(default_factory=list, sa_type=JsonText)
    leaf_index: int | None = Field(default=None, sa_type=BigInteger)
    at_ms: int = Field(sa_type=BigInteger)
