"""The log: head, leaves, records and tiles, written by the sequencer only; checkpoints and their cosignatures."""

from typing import Any, ClassVar

from sqlalchemy import BigInteger, LargeBinary, Text
from sqlmodel import Field

from licet_engine.store.tables.base import REMOVED_BY_ANY, TenantRow


class LogHead(TenantRow, table=True):
    """The head row of a log: locked by whoever appends to it or changes the facts of its tenant."""

    __tablename__: ClassVar[Any] = "log_head"

    size: int = Field(sa_type=BigInteger)
    root: bytes = Field(sa_type=LargeBinary)
    frontier: bytes = Field(sa_type=LargeBinary)
    """The hashes of the complete subtrees, largest first, 32 bytes each."""
    facts_version: int = Field(sa_type=BigInteger)
    last_time_ms: int = Field(sa_type=BigInteger)


class LogLeaf(TenantRow, table=True):
    """A leaf: the header, which is never erased, and its RFC 6962 hash."""

    __tablename__: ClassVar[Any] = "log_leaf"

    leaf_index: int = Field(primary_key=True, sa_type=BigInteger)
    header: str = Field(sa_type=Text)
    hash: bytes = Field(sa_type=LargeBinary)


class LogRecord(TenantRow, table=True):
    """The record that a leaf commits to. Erasing empties salt and record: the leaf stays, and can be proven but not replayed."""

    __tablename__: ClassVar[Any] = "log_record"

    leaf_index: int = Field(primary_key=True, sa_type=BigInteger)
    salt: bytes | None = Field(default=None, sa_type=LargeBinary)
    record: bytes | None = Field(default=None, sa_type=LargeBinary)


class LogTile(TenantRow, table=True):
    """Up to 256 hashes of subtrees of height ``8 * level``, side by side.

    At level 0 only full tiles are kept (an unfinished one is read from the leaves); above, the last tile of a level grows.
    """

    __tablename__: ClassVar[Any] = "log_tile"

    level: int = Field(primary_key=True)
    tile_index: int = Field(primary_key=True, sa_type=BigInteger)
    hashes: bytes = Field(sa_type=LargeBinary)


class LogCheckpoint(TenantRow, table=True):
    """A checkpoint that the signer signed, as a C2SP signed note."""

    __tablename__: ClassVar[Any] = "log_checkpoint"
    __mapper_args__: ClassVar[Any] = REMOVED_BY_ANY

    size: int = Field(primary_key=True, sa_type=BigInteger)
    note: str = Field(sa_type=Text)
    at_ms: int = Field(default=0, sa_type=BigInteger)


class LogCosignature(TenantRow, table=True):
    """A witness's cosignature of a checkpoint: the line that it adds to the note. The first of each size and witness stays."""

    __tablename__: ClassVar[Any] = "log_cosignature"
    __mapper_args__: ClassVar[Any] = REMOVED_BY_ANY

    size: int = Field(primary_key=True, sa_type=BigInteger)
    keyid: str = Field(primary_key=True)
    """Of the witness's key; its name in a policy may change, and another key is another witness."""
    time_s: int = Field(sa_type=BigInteger)
    """By the witness's clock."""
    line: str = Field(sa_type=Text)
