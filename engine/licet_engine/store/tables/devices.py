"""The pool of devices, who has them and who waits."""

from typing import Any, ClassVar

from sqlalchemy import BigInteger
from sqlmodel import Field

from licet_engine.store.tables.base import TenantRow, to_tenant


class DeviceAllotment(TenantRow, table=True):
    """How many devices of the pool a tenant may have at once; none where there is no row."""

    __tablename__: ClassVar[Any] = "device_allotment"
    __table_args__ = (to_tenant(),)

    devices: int
    at_ms: int = Field(sa_type=BigInteger)


class DeviceRow(TenantRow, table=True):
    """A device of the pool and its lease. The platform's own; no fact: raises no facts version."""

    __tablename__: ClassVar[Any] = "device"

    uuid: str = Field(primary_key=True)
    kind: str
    name: str
    memory_mib: int
    driver: str
    worker: str
    """The machine that has it, whose workers share it."""
    seen_at_ms: int = Field(sa_type=BigInteger)
    operation_id: str | None = None
    """To which operation it is leased."""
    of_tenant: str | None = None
    leased_at_ms: int = Field(default=0, sa_type=BigInteger)
    renewed_at_ms: int = Field(default=0, sa_type=BigInteger)


class DeviceWait(TenantRow, table=True):
    """An operation that waits for devices. The platform's own, as the pool is."""

    __tablename__: ClassVar[Any] = "device_wait"

    operation_id: str = Field(primary_key=True)
    of_tenant: str
    worker: str
    wanted: int
    by_quota: bool = False
    """It waits for runs of its own tenant, and keeps nobody else waiting."""
    since_ms: int = Field(sa_type=BigInteger)
    seen_at_ms: int = Field(sa_type=BigInteger)
