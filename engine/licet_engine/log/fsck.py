"""Check a stored log against itself, from the first leaf to the head.

Rules kept here:

- Everything that can be computed is computed again: every leaf's hash, every tile, the frontier, the root, every checkpoint's root, every
  commitment. Nothing stored is believed.
- One consistent state of the database is read, in batches; nothing is written. It may be of a service that runs.
- All that is wrong with a log is told, up to a bound, not only the first thing.
- What the directory has of a log is looked at with the log: size, root and pairs, made again from its headers. What its newest entry
  commits to is looked at with the directory's own log.

With `Against`, what the log names and who signed it are checked as well: see `fsck_named`. Without, the signatures of checkpoints are not
looked at. What neither can show: that the log was shown to all alike. That is for witnesses, and for those who keep checkpoints.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Connection, Engine, func, inspect, select

from licet_attestations import merkle
from licet_attestations.checkpoint import parse_note
from licet_attestations.directory import DirectoryMap, LogState, entry_record
from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.leaf import DIRECTORY, Leaf, verify_commitment
from licet_attestations.pairs import PairsMap
from licet_engine.log import directory, store
from licet_engine.log.errors import LogCorrupt
from licet_engine.log.fsck_named import Against, Named, Signed
from licet_engine.store.db import read_transaction

_BATCH: Final = 1024
_MAX_PROBLEMS: Final = 100

Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class LogReport:
    """What was found in one log.

    Attributes:
        tenant_id: Whose log.
        size: Leaves found.
        root: Root over them, computed.
        erased: Entries whose record was erased.
        problems: What is wrong, in words; empty where all is well.
    """

    tenant_id: str
    size: int = 0
    root: bytes = merkle.EMPTY_ROOT
    erased: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, problem: str) -> None:
        """Note a problem, up to the bound."""
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(problem)


def fsck(
    engine: Engine,
    tenant_ids: Iterable[str] | None = None,
    *,
    against: Against | None = None,
    progress: Progress = lambda _tenant_id, _done, _size: None,
) -> list[LogReport]:
    """Check logs.

    Args:
        engine: From `open_engine`.
        tenant_ids: Whose logs; all of them if None, and none if empty.
        against: What is checked beside the logs themselves; nothing if None.
        progress: Told now and then of a log, how many entries are done, and how many there are.

    Returns:
        A report for each log, by tenant id.
    """
    if tenant_ids is None:
        with read_transaction(engine) as connection:
            wanted = _all_logs(connection)
    else:
        wanted = set(tenant_ids)
    # The signer is asked before the logs are read: it signs only what stands, so what it signed by now is read below, whoever appends.
    signed = {} if against is None else {tenant_id: against.last_signed(tenant_id) for tenant_id in wanted}
    with read_transaction(engine) as connection:
        return [
            _check_log(connection, tenant_id, against, signed.get(tenant_id), progress) for tenant_id in sorted(wanted)
        ]


def verify_logs(engine: Engine, tenant_ids: Iterable[str] | None = None) -> list[LogReport]:
    """Check logs as `fsck`, and refuse any that is damaged.

    Raises:
        LogCorrupt: With the first problem of each damaged log.
    """
    reports = fsck(engine, tenant_ids)
    damaged = [f"{report.tenant_id}: {report.problems[0]}" for report in reports if report.problems]
    if damaged:
        raise LogCorrupt("; ".join(damaged))
    return reports


def _all_logs(connection: Connection) -> set[str]:
    # A log is found by any trace of it, so that a lost head does not hide its leaves.
    tables = (store.HEADS, store.LEAVES, store.RECORDS, store.TILES, store.CHECKPOINTS)
    return {
        tenant_id
        for table in tables
        for tenant_id in connection.execute(select(table.c.tenant_id).distinct()).scalars()
    }


def _check_log(
    connection: Connection, tenant_id: str, against: Against | None, signed: Signed | None, progress: Progress
) -> LogReport:
    report = LogReport(tenant_id)
    named = None if against is None else Named(connection, tenant_id, against, signed, report.add)
    size = store.read_head(connection, tenant_id).size
    tiles = _TileCheck(connection, report)
    checkpoints = _read_checkpoints(connection, report)
    listed = _DirectoryCheck(connection, report)
    frontier = merkle.Frontier()
    last_time_ms = 0
    while entries := store.read_entries(connection, tenant_id, report.size, _BATCH):
        for entry in entries:
            if entry.index != report.size:
                # The tree cannot go on over a gap, and what was compared so far would mislead.
                report.add(f"entry {report.size} is missing: the next is {entry.index}")
                return report
            last_time_ms = _check_entry(entry, last_time_ms, report)
            hash_ = merkle.leaf_hash(entry.header.encode())
            if hash_ != entry.hash:
                report.add(f"the hash of entry {entry.index} is not that of its header")
            frontier.append(hash_, tiles.emit)
            report.size += 1
            listed.count(entry.header, frontier)
            if checkpoints.pop(report.size, None) not in {None, frontier.root()}:
                report.add(f"the checkpoint of size {report.size} has another root")
        if named is not None:
            named.take(entries)
        progress(tenant_id, report.size, size)
    report.root = frontier.root()
    report.problems += [
        f"there is a checkpoint of size {size}, which the log never had" for size in checkpoints if size
    ]
    tiles.finish()
    listed.finish()
    _check_head(connection, frontier, last_time_ms, report)
    _check_counts(connection, report)
    if named is not None:
        named.finish(report.size)
    return report


def _check_entry(entry: store.Entry, last_time_ms: int, report: LogReport) -> int:
    """Check one entry by itself; return its time."""
    try:
        leaf = Leaf.from_bytes(entry.header.encode())
    except FormatError as error:
        report.add(f"the header of entry {entry.index} is not a leaf: {error}")
        return last_time_ms
    if leaf.time_ms < last_time_ms:
        report.add(f"time runs backwards at entry {entry.index}")
    if entry.salt is None or entry.record is None:
        if entry.salt is not None or entry.record is not None:
            report.add(f"entry {entry.index} is half erased")
        report.erased += 1
        return leaf.time_ms
    try:
        verify_commitment(leaf, entry.salt, entry.record)
    except VerificationError as error:
        report.add(f"entry {entry.index}: {error}")
    else:
        _check_record_time(entry.index, entry.record, leaf, report)
    return leaf.time_ms


def _check_record_time(index: int, record: bytes, leaf: Leaf, report: LogReport) -> None:
    try:
        value = json.loads(record)
    except ValueError:
        return  # What a record looks like is for those who wrote it.
    stated = value.get("time_ms") if isinstance(value, dict) else None
    if stated is not None and stated != leaf.time_ms:
        report.add(f"the record of entry {index} states another time than its header")


def _check_head(connection: Connection, frontier: merkle.Frontier, last_time_ms: int, report: LogReport) -> None:
    head = store.read_head(connection, report.tenant_id)
    if head.size != frontier.size:
        report.add(f"the head says size {head.size}, the leaves are {frontier.size}")
    if head.root != frontier.root():
        report.add("the head has another root than the leaves")
    if head.frontier != b"".join(frontier.hashes()):
        report.add("the head has another frontier than the leaves")
    if head.last_time_ms != last_time_ms:
        report.add(f"the head says the last entry is of {head.last_time_ms}, it is of {last_time_ms}")


def _check_counts(connection: Connection, report: LogReport) -> None:
    """Every entry has its record row, erased or not, and there is no record of an entry that is not."""
    records = connection.execute(
        select(func.count()).select_from(store.RECORDS).where(store.RECORDS.c.tenant_id == report.tenant_id)
    ).scalar_one()
    if records != report.size:
        report.add(f"there are {records} records for {report.size} entries")


def _read_checkpoints(connection: Connection, report: LogReport) -> dict[int, bytes]:
    """The roots that checkpoints state, by size. Their signatures are another part's: this has no keys."""
    roots: dict[int, bytes] = {}
    query = select(store.CHECKPOINTS.c.size, store.CHECKPOINTS.c.note).where(
        store.CHECKPOINTS.c.tenant_id == report.tenant_id
    )
    for size, note in connection.execute(query):
        try:
            checkpoint, _, _ = parse_note(note)
        except FormatError as error:
            report.add(f"the checkpoint of size {size} is not one: {error}")
            continue
        if checkpoint.size != size:
            report.add(f"the checkpoint kept as of size {size} is of size {checkpoint.size}")
        elif size == 0 and checkpoint.root != merkle.EMPTY_ROOT:
            report.add("the checkpoint of size 0 has another root")
        roots[size] = checkpoint.root
    return roots


class _DirectoryCheck:
    """Counts the pairs of a log again, and compares what the directory has of it where the log has come as far."""

    def __init__(self, connection: Connection, report: LogReport) -> None:
        self._connection = connection
        self._report = report
        # A restored database may be of before there was a directory.
        self._is_there = inspect(connection).has_table(directory.STATES.name)
        states = directory.read_directory(connection, 0).states if self._is_there else {}
        self._state = states.get(report.tenant_id)
        self._pairs = PairsMap()

    def count(self, header: str, frontier: merkle.Frontier) -> None:
        """Take the next entry; ``frontier`` has it."""
        state = self._state
        if state is None or self._pairs.size >= state.size:
            return
        try:
            self._pairs.add(Leaf.from_bytes(header.encode()))
        except FormatError:
            self._state = None  # Told already; the pairs cannot be made again.
            return
        if self._pairs.size == state.size:
            self._compare(state, frontier.root())

    def _compare(self, state: LogState, root: bytes) -> None:
        if state.root != root:
            self._report.add(f"the directory has another root of the log at size {state.size}")
        stored = directory.read_pairs(self._connection, state.tenant, state.size)
        if not state.pairs_root == self._pairs.root() == stored.root():
            self._report.add(f"the directory has other pairs of the log at size {state.size} than its headers make")

    def finish(self) -> None:
        """See that the directory has nothing that the log never had; of the directory's own log, what its newest entry commits to."""
        if self._state is not None and self._pairs.size < self._state.size:
            self._report.add(f"the directory has the log at size {self._state.size}, which it never had")
        if self._is_there and self._report.tenant_id == DIRECTORY and self._report.size:
            self._check_newest()

    def _check_newest(self) -> None:
        known = directory.read_directory(self._connection, 0)
        entries = store.read_entries(self._connection, DIRECTORY, self._report.size - 1, 1)
        try:
            map_ = DirectoryMap(known.states.values(), known.seed)
            record = entry_record(entries[0].leaf.time_ms, map_.root)
        except FormatError as error:
            self._report.add(f"the newest entry of the directory cannot be opened: {error}")
            return
        if known.index != self._report.size - 1 or entries[0].record != record:
            self._report.add("the newest entry of the directory commits to something else than its rows")


class _TileCheck:
    """Builds the tiles that a log must have and compares them with what is stored, one full tile at a time."""

    def __init__(self, connection: Connection, report: LogReport) -> None:
        self._connection = connection
        self._report = report
        self._open: dict[int, tuple[int, list[bytes]]] = {}
        self._seen = 0

    def emit(self, level: int, index: int, hash_: bytes) -> None:
        """Take a full subtree."""
        if level % store.TILE_HEIGHT:
            return
        tile_level = level // store.TILE_HEIGHT
        tile_index, offset = divmod(index, store.TILE_WIDTH)
        hashes = self._open.setdefault(tile_level, (tile_index, []))[1]
        hashes.append(hash_)
        if offset == store.TILE_WIDTH - 1:
            del self._open[tile_level]
            self._compare(tile_level, tile_index, hashes)

    def finish(self) -> None:
        """Compare the unfinished tiles above level 0, and see that there are no others."""
        for tile_level, (tile_index, hashes) in self._open.items():
            if tile_level:
                self._compare(tile_level, tile_index, hashes)
        stored = self._connection.execute(
            select(func.count()).select_from(store.TILES).where(store.TILES.c.tenant_id == self._report.tenant_id)
        ).scalar_one()
        if stored != self._seen:
            self._report.add(f"{stored} tiles are stored where there should be {self._seen}")

    def _compare(self, tile_level: int, tile_index: int, hashes: list[bytes]) -> None:
        stored = self._connection.execute(
            select(store.TILES.c.hashes).where(
                store.TILES.c.tenant_id == self._report.tenant_id,
                store.TILES.c.level == tile_level,
                store.TILES.c.tile_index == tile_index,
            )
        ).scalar()
        self._seen += 1
        if stored != b"".join(hashes):
            self._report.add(f"tile {tile_index} of level {tile_level} is missing or not what the leaves make")
