"""The stored log: heads, entries, tiles and checkpoints, and the proofs made from them.

Rules kept here:

- Reading only. What changes a log goes through the sequencer; the exceptions are checkpoints and cosignatures, which the log does not contain.
- Every function takes the tenant and reads nothing of another.
- A proof is made for any size the log ever had, from at most two tiles of every level: full subtrees never change, so an older tree is
  still in the newer one.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Table, bindparam, func, insert, select, update

from licet_attestations import merkle
from licet_attestations.errors import FormatError
from licet_attestations.leaf import Leaf
from licet_engine.log.errors import LogCorrupt, NoSuchEntry
from licet_engine.store.db import insert_if_absent
from licet_engine.store.tables import LogCheckpoint, LogCosignature, LogHead, LogLeaf, LogRecord, LogTile, TenantRow

TILE_HEIGHT: Final = 8
TILE_WIDTH: Final = 1 << TILE_HEIGHT


def table_of(row_class: type[TenantRow]) -> Table:
    """The Core table of a mapped class."""
    table: Table = row_class.__table__  # type: ignore[attr-defined]  # SQLModel sets it on table classes.
    return table


HEADS: Final = table_of(LogHead)
LEAVES: Final = table_of(LogLeaf)
RECORDS: Final = table_of(LogRecord)
TILES: Final = table_of(LogTile)
CHECKPOINTS: Final = table_of(LogCheckpoint)
COSIGNATURES: Final = table_of(LogCosignature)


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a log.

    Attributes:
        tenant_id: Whose log.
        size: Number of entries.
        root: RFC 6962 root over them.
        frontier: Roots of the full subtrees, largest first, 32 bytes each, joined.
        facts_version: Raised by whatever changes a fact of the tenant.
        last_time_ms: Time of the last entry; 0 before the first.
        stored: Whether the log has a row yet.
    """

    tenant_id: str
    size: int = 0
    root: bytes = merkle.EMPTY_ROOT
    frontier: bytes = b""
    facts_version: int = 0
    last_time_ms: int = 0
    stored: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a log; ``salt`` and ``record`` are ``None`` where it was erased."""

    index: int
    header: str
    hash: bytes
    salt: bytes | None
    record: bytes | None

    @property
    def leaf(self) -> Leaf:
        """The header, parsed."""
        return Leaf.from_bytes(self.header.encode())


# Built once: these run for every group.
_READ_HEADS: Final = (
    select(HEADS).where(HEADS.c.tenant_id.in_(bindparam("wanted", expanding=True))).order_by(HEADS.c.tenant_id)
)
_LOCK_HEADS: Final = _READ_HEADS.with_for_update()


# --- Heads --------------------------------------------------------------------------------------------------------------


def read_heads(connection: Connection, tenant_ids: Iterable[str], *, lock: bool = False) -> dict[str, Head]:
    """Read heads; of a log that is not there yet, an empty one.

    Args:
        connection: In a transaction.
        tenant_ids: Whose logs.
        lock: Keep them locked until the transaction ends, taken in the order of tenant ids so that two writers never wait for each other.
    """
    wanted = sorted(set(tenant_ids))
    heads = {tenant_id: Head(tenant_id) for tenant_id in wanted}
    for row in connection.execute(_LOCK_HEADS if lock else _READ_HEADS, {"wanted": wanted}):
        heads[row.tenant_id] = Head(
            row.tenant_id, row.size, row.root, row.frontier, row.facts_version, row.last_time_ms, stored=True
        )
    return heads


def read_head(connection: Connection, tenant_id: str) -> Head:
    """Read the head of one log."""
    return read_heads(connection, (tenant_id,))[tenant_id]


def ensure_heads(connection: Connection, tenant_ids: Iterable[str]) -> None:
    """Give every log a head row that has none yet, an empty one.

    What is not there cannot be locked: two that began a log at the same time would not wait for each other. In a transaction of its own,
    so that nobody holds the lock of one head while it waits for another to be made.
    """
    rows = [
        {
            "tenant_id": tenant_id,
            "size": 0,
            "root": merkle.EMPTY_ROOT,
            "frontier": b"",
            "facts_version": 0,
            "last_time_ms": 0,
        }
        for tenant_id in sorted(set(tenant_ids))
    ]
    connection.execute(insert_if_absent(connection, HEADS), rows)


def frontier_of(head: Head) -> merkle.Frontier:
    """Take up a log's frontier.

    Raises:
        LogCorrupt: It does not fit the size.
    """
    hashes = [head.frontier[at : at + merkle.HASH_BYTES] for at in range(0, len(head.frontier), merkle.HASH_BYTES)]
    try:
        return merkle.Frontier(head.size, hashes)
    except FormatError as error:
        raise LogCorrupt(f"the head of {head.tenant_id!r} is damaged: {error}") from error


# --- Entries ------------------------------------------------------------------------------------------------------------


def read_entries(connection: Connection, tenant_id: str, first: int, count: int) -> list[Entry]:
    """Read ``count`` entries from index ``first`` on, in order; fewer where the log ends."""
    query = (
        select(LEAVES.c.leaf_index, LEAVES.c.header, LEAVES.c.hash, RECORDS.c.salt, RECORDS.c.record)
        .select_from(
            LEAVES.outerjoin(
                RECORDS, (RECORDS.c.tenant_id == LEAVES.c.tenant_id) & (RECORDS.c.leaf_index == LEAVES.c.leaf_index)
            )
        )
        .where(LEAVES.c.tenant_id == tenant_id, LEAVES.c.leaf_index >= first, LEAVES.c.leaf_index < first + count)
        .order_by(LEAVES.c.leaf_index)
    )
    return [Entry(*row) for row in connection.execute(query)]


def indexes_of_kind(connection: Connection, tenant_id: str, kind: str, first: int, end: int) -> list[int]:
    """Where entries of a kind stand from ``first`` up to ``end``, in order. Headers are looked through: for kinds that are few."""
    query = (
        select(LEAVES.c.leaf_index)
        .where(
            LEAVES.c.tenant_id == tenant_id,
            LEAVES.c.leaf_index >= first,
            LEAVES.c.leaf_index < end,
            LEAVES.c.header.contains(f'"kind":"{kind}"', autoescape=True),
        )
        .order_by(LEAVES.c.leaf_index)
    )
    return list(connection.execute(query).scalars())


def index_at(connection: Connection, tenant_id: str, time_ms: int, size: int) -> int:
    """The first of ``size`` entries that is not before a time; ``size`` where all are. Times never run backwards, so few are read.

    Raises:
        NoSuchEntry: The log was never that large.
    """
    first, end = 0, size
    while first < end:
        middle = (first + end) // 2
        if read_entry(connection, tenant_id, middle).leaf.time_ms < time_ms:
            first = middle + 1
        else:
            end = middle
    return first


def read_hash(connection: Connection, tenant_id: str, index: int) -> bytes | None:
    """Read the hash of one leaf; ``None`` where the log has none at ``index``."""
    hash_: bytes | None = connection.execute(
        select(LEAVES.c.hash).where(LEAVES.c.tenant_id == tenant_id, LEAVES.c.leaf_index == index)
    ).scalar()
    return hash_


def read_entry(connection: Connection, tenant_id: str, index: int) -> Entry:
    """Read one entry.

    Raises:
        NoSuchEntry: The log has none at ``index``.
    """
    entries = read_entries(connection, tenant_id, index, 1)
    if not entries:
        raise NoSuchEntry(f"the log of {tenant_id!r} has no entry {index}")
    return entries[0]


# --- Tiles and proofs ---------------------------------------------------------------------------------------------------


class TileReader:
    """The hashes of a log's full subtrees, read by tiles that are kept as long as the reader."""

    def __init__(self, connection: Connection, tenant_id: str) -> None:
        self._connection = connection
        self._tenant_id = tenant_id
        self._tiles: dict[tuple[int, int], bytes] = {}

    def hash_at(self, level: int, index: int) -> bytes:
        """The hash over leaves ``[index << level, (index + 1) << level)``.

        Raises:
            NoSuchEntry: The log does not reach so far.
        """
        tile_level, height = divmod(level, TILE_HEIGHT)
        first = index << height
        tile_index, offset = divmod(first, TILE_WIDTH)
        width = merkle.HASH_BYTES
        data = self._tile(tile_level, tile_index)[offset * width : (offset + (1 << height)) * width]
        if len(data) != width << height:
            raise NoSuchEntry(f"the log of {self._tenant_id!r} has no full subtree {index} of height {level}")
        hashes = [data[at : at + width] for at in range(0, len(data), width)]
        while len(hashes) > 1:
            hashes = [merkle.node_hash(hashes[at], hashes[at + 1]) for at in range(0, len(hashes), 2)]
        return hashes[0]

    def _tile(self, level: int, tile_index: int) -> bytes:
        key = (level, tile_index)
        if key not in self._tiles:
            self._tiles[key] = read_tile(self._connection, self._tenant_id, level, tile_index)
        return self._tiles[key]


def read_tile(connection: Connection, tenant_id: str, level: int, tile_index: int) -> bytes:
    """The hashes of a tile, as far as they are there."""
    stored: bytes | None = connection.execute(
        select(TILES.c.hashes).where(
            TILES.c.tenant_id == tenant_id, TILES.c.level == level, TILES.c.tile_index == tile_index
        )
    ).scalar()
    if stored is not None:
        return stored
    if level > 0:
        return b""
    first = tile_index * TILE_WIDTH
    hashes = connection.execute(
        select(LEAVES.c.hash)
        .where(LEAVES.c.tenant_id == tenant_id, LEAVES.c.leaf_index >= first, LEAVES.c.leaf_index < first + TILE_WIDTH)
        .order_by(LEAVES.c.leaf_index)
    ).scalars()
    return b"".join(hashes)


def inclusion_proof(connection: Connection, tenant_id: str, index: int, size: int) -> list[bytes]:
    """The audit path of entry ``index`` in the log as it was at ``size``.

    Raises:
        NoSuchEntry: The log has no such entry, or was never that large.
    """
    return _prove(lambda hash_at: merkle.inclusion_proof(index, size, hash_at), connection, tenant_id, size)


def consistency_proof(connection: Connection, tenant_id: str, size1: int, size2: int) -> list[bytes]:
    """The proof that the log at ``size2`` extends the log at ``size1``.

    Raises:
        NoSuchEntry: The log was never that large, or the sizes are out of order.
    """
    return _prove(lambda hash_at: merkle.consistency_proof(size1, size2, hash_at), connection, tenant_id, size2)


def frontier_at(connection: Connection, tenant_id: str, size: int) -> list[bytes]:
    """The roots of the full subtrees of the log as it was at ``size``, largest first.

    Raises:
        NoSuchEntry: The log was never that large.
    """

    def hashes(hash_at: merkle.HashAt) -> list[bytes]:
        found, position = [], 0
        for level in range(size.bit_length() - 1, -1, -1):
            if size >> level & 1:
                found.append(hash_at(level, position >> level))
                position += 1 << level
        return found

    return _prove(hashes, connection, tenant_id, size)


def root_at(connection: Connection, tenant_id: str, size: int) -> bytes:
    """The root of the log as it was at ``size``.

    Raises:
        NoSuchEntry: The log was never that large.
    """
    return merkle.Frontier(size, frontier_at(connection, tenant_id, size)).root()


def _prove(
    make: Callable[[merkle.HashAt], list[bytes]], connection: Connection, tenant_id: str, size: int
) -> list[bytes]:
    # Some proofs need no hash at all, so the size is not proven to exist by making one.
    if not 0 <= size <= read_head(connection, tenant_id).size:
        raise NoSuchEntry(f"the log of {tenant_id!r} was never of size {size}")
    try:
        return make(TileReader(connection, tenant_id).hash_at)
    except FormatError as error:
        raise NoSuchEntry(f"the log of {tenant_id!r}: {error}") from error


# --- What the sequencer writes ------------------------------------------------------------------------------------------


class TileWriter:
    """Collects what an append changes in the tiles of one log, and writes it in the append's transaction."""

    def __init__(self, connection: Connection, tenant_id: str) -> None:
        self._connection = connection
        self._tenant_id = tenant_id
        self._grown: dict[tuple[int, int], list[bytes]] = {}
        self._full: list[int] = []

    def emit(self, level: int, index: int, hash_: bytes) -> None:
        """Take a subtree that was completed; of those that tiles hold, from level 1 up."""
        if level == 0 or level % TILE_HEIGHT:
            return
        if level == TILE_HEIGHT:
            self._full.append(index)
        self._grown.setdefault((level // TILE_HEIGHT, index // TILE_WIDTH), []).append(hash_)

    def write(self) -> None:
        """Write the tiles. The leaves of this append must stand in the table already."""
        new: list[dict[str, Any]] = []
        changed: list[dict[str, Any]] = []
        for tile_index in self._full:
            hashes = read_tile(self._connection, self._tenant_id, 0, tile_index)
            new.append({"tenant_id": self._tenant_id, "level": 0, "tile_index": tile_index, "hashes": hashes})
        for (level, tile_index), added in self._grown.items():
            before = read_tile(self._connection, self._tenant_id, level, tile_index)
            row = {
                "tenant_id": self._tenant_id,
                "level": level,
                "tile_index": tile_index,
                "hashes": before + b"".join(added),
            }
            (changed if before else new).append(row)
        if new:
            self._connection.execute(insert(TILES), new)
        for row in changed:
            self._connection.execute(
                update(TILES)
                .where(
                    TILES.c.tenant_id == row["tenant_id"],
                    TILES.c.level == row["level"],
                    TILES.c.tile_index == row["tile_index"],
                )
                .values(hashes=row["hashes"])
            )


# --- Checkpoints --------------------------------------------------------------------------------------------------------


def save_checkpoint(connection: Connection, tenant_id: str, size: int, note: str, at_ms: int) -> None:
    """Keep a signed checkpoint; the first one of a size stays."""
    connection.execute(
        insert_if_absent(connection, CHECKPOINTS),
        [{"tenant_id": tenant_id, "size": size, "note": note, "at_ms": at_ms}],
    )


def read_checkpoint(connection: Connection, tenant_id: str, size: int | None = None) -> tuple[int, str] | None:
    """The checkpoint of a size, or the newest: its size and its note, without cosignatures."""
    query = select(CHECKPOINTS.c.size, CHECKPOINTS.c.note).where(CHECKPOINTS.c.tenant_id == tenant_id)
    if size is not None:
        query = query.where(CHECKPOINTS.c.size == size)
    row = connection.execute(query.order_by(CHECKPOINTS.c.size.desc()).limit(1)).first()
    return None if row is None else (row.size, row.note)


def save_cosignature(connection: Connection, tenant_id: str, size: int, *, keyid: str, time_s: int, line: str) -> None:
    """Keep a cosignature that was verified; the first one of a witness and a size stays."""
    row = {"tenant_id": tenant_id, "size": size, "keyid": keyid, "time_s": time_s, "line": line}
    connection.execute(insert_if_absent(connection, COSIGNATURES), [row])


def read_cosignatures(connection: Connection, tenant_id: str, size: int) -> dict[str, str]:
    """The lines of a checkpoint's cosignatures, by the key's identifier."""
    query = (
        select(COSIGNATURES.c.keyid, COSIGNATURES.c.line)
        .where(COSIGNATURES.c.tenant_id == tenant_id, COSIGNATURES.c.size == size)
        .order_by(COSIGNATURES.c.keyid)
    )
    return {row.keyid: row.line for row in connection.execute(query)}


def cosigned_sizes(connection: Connection, tenant_id: str, count: int) -> list[int]:
    """The greatest sizes of which anybody cosigned the checkpoint, the greatest first."""
    query = (
        select(COSIGNATURES.c.size)
        .where(COSIGNATURES.c.tenant_id == tenant_id)
        .distinct()
        .order_by(COSIGNATURES.c.size.desc())
    )
    return list(connection.execute(query.limit(count)).scalars())


def cosigned_by(connection: Connection, tenant_id: str, keyid: str) -> int:
    """The greatest size that a witness cosigned; 0 for none."""
    query = select(func.max(COSIGNATURES.c.size)).where(
        COSIGNATURES.c.tenant_id == tenant_id, COSIGNATURES.c.keyid == keyid
    )
    return int(connection.execute(query).scalar() or 0)
