"""What the directory log commits to, and the pairs of every log. All rows are the directory's own, whichever tenant they tell of."""

from typing import Any, ClassVar

from sqlalchemy import BigInteger, LargeBinary
from sqlmodel import Field

from licet_engine.store.tables.base import JsonText, TenantRow


class DirectoryHead(TenantRow, table=True):
    """The newest entry of the directory log, one row: what opens its map."""

    __tablename__: ClassVar[Any] = "directory_head"

    leaf_index: int = Field(sa_type=BigInteger)
    seed: bytes = Field(sa_type=LargeBinary)
    """Whoever has it can look into the entry's map."""


class DirectoryState(TenantRow, table=True):
    """A log as the newest entry has it. It only ever grows."""

    __tablename__: ClassVar[Any] = "directory_state"

    of_tenant: str = Field(primary_key=True)
    leaf_index: int = Field(sa_type=BigInteger)
    """The entry that had it so first."""
    size: int = Field(sa_type=BigInteger)
    """How far its pairs are counted."""
    root: bytes = Field(sa_type=LargeBinary)
    pairs_root: bytes = Field(sa_type=LargeBinary)


class DirectoryPair(TenantRow, table=True):
    """The entries of one actor on one owner's things, in one log, as far as that is counted: made of leaf headers alone."""

    __tablename__: ClassVar[Any] = "directory_pair"

    of_tenant: str = Field(primary_key=True)
    actor: str = Field(primary_key=True)
    owner: str = Field(primary_key=True)
    count: int = Field(sa_type=BigInteger)
    first: int = Field(sa_type=BigInteger)
    last: int = Field(sa_type=BigInteger)
    first_ms: int = Field(sa_type=BigInteger)
    last_ms: int = Field(sa_type=BigInteger)
    kinds: dict[str, int] = Field(default_factory=dict, sa_type=JsonText)
