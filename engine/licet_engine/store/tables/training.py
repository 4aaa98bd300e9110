"""Runs and their figures."""

from typing import Any, ClassVar

from sqlalchemy import BigInteger, ForeignKeyConstraint
from sqlmodel import Field

from licet_engine.store.tables.base import REMOVED_BY_ANY, JsonText, TenantRow, to_tenant


class Run(TenantRow, table=True):
    """A training run, over all its attempts."""

    __tablename__: ClassVar[Any] = "run"
    __table_args__ = (to_tenant(),)

    name: str = Field(primary_key=True)
    use: str
    datasets: list[str] = Field(default_factory=list, sa_type=JsonText)
    environment: str
    region: str
    spec: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    state: str
    """``accepted``, ``running``, ``done``, ``failed``, ``cancelled`` or ``refused``."""
    attempt: int = 0
    started_by: str
    started_by_kind: str
    authors: list[str] = Field(default_factory=list, sa_type=JsonText)
    pipelines: list[str] = Field(default_factory=list, sa_type=JsonText)
    cost: int = Field(default=0, sa_type=BigInteger)
    metrics_summary: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    outcome: dict[str, Any] | None = Field(default=None, sa_type=JsonText)
    """Digests of what the run made."""
    operation_id: str | None = None
    created_at_ms: int = Field(sa_type=BigInteger)
    started_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    ended_at_ms: int | None = Field(default=None, sa_type=BigInteger)


class Metric(TenantRow, table=True):
    """One figure of a run. Telemetry: raises no facts version.

    A resumed run reports steps after its checkpoint again, under its new attempt.
    """

    __tablename__: ClassVar[Any] = "metric"
    __table_args__ = (ForeignKeyConstraint(["tenant_id", "run"], ["run.tenant_id", "run.name"]),)
    __mapper_args__: ClassVar[Any] = REMOVED_BY_ANY

    run: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    step: int = Field(primary_key=True, sa_type=BigInteger)
    attempt: int = Field(primary_key=True)
    value: str
    """Decimal text, as the job reported it."""
    at_ms: int = Field(default=0, sa_type=BigInteger)
