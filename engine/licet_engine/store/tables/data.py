"""Datasets, and holds on anything."""

from typing import Any, ClassVar

from sqlalchemy import BigInteger, Index, Text
from sqlmodel import Field

from licet_engine.store.tables.base import JsonText, TenantRow, to_tenant


class Dataset(TenantRow, table=True):
    """A registered dataset and the restrictions that everything made from it inherits."""

    __tablename__: ClassVar[Any] = "dataset"
    __table_args__ = (to_tenant(),)

    name: str = Field(primary_key=True)
    classification: str
    """``public``, ``internal``, ``confidential`` or ``restricted``."""
    protected: list[str] = Field(default_factory=list, sa_type=JsonText)
    """Columns that hold protected attributes."""
    residency: list[str] = Field(default_factory=list, sa_type=JsonText)
    uses: list[str] = Field(default_factory=list, sa_type=JsonText)
    expires_at_ms: int = Field(sa_type=BigInteger)
    purpose: str = Field(default="", sa_type=Text)
    label: str = ""
    """The column that is predicted."""
    columns: dict[str, str] = Field(default_factory=dict, sa_type=JsonText)
    """How each column is written: ``number`` or ``yes-no``; found when the rows are stored."""
    missing: str = "refuse"
    """What a missing value does to its row: ``refuse`` or ``drop``."""
    object_id: str
    digest_hex: str
    rows: int = Field(default=0, sa_type=BigInteger)
    bytes: int = Field(default=0, sa_type=BigInteger)
    state: str
    """``registering``, ``ready``, ``archived``, ``deleted`` or ``failed``."""
    registered_by: str
    registered_by_kind: str
    created_at_ms: int = Field(sa_type=BigInteger)


class Hold(TenantRow, table=True):
    """A hold on a resource: placed, later perhaps lifted, never removed."""

    __tablename__: ClassVar[Any] = "hold"
    __table_args__ = (to_tenant(), Index("ix_hold_resource", "tenant_id", "resource_type", "resource_name"))

    id: str = Field(primary_key=True)
    resource_type: str
    resource_name: str
    reason: str = Field(sa_type=Text)
    placed_by: str
    placed_at_ms: int = Field(sa_type=BigInteger)
    lifted_by: str | None = None
    lifted_at_ms: int | None = Field(default=None, sa_type=BigInteger)
