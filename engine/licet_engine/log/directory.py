"""The directory log: once a second, where any log grew, an entry that commits to the head and the pairs of every log.

Rules kept here:

- A log that is shorter than the directory has it stops the directory: nothing that went back is ever committed to.
- Pairs are counted from the headers of entries, in order, each once; they, the states and the entry that commits to them are one
  submission. It is made on one version of the directory's rows, as any decision on its facts: of several apis, one makes an entry.
- The seed of an entry opens its whole map. It stands in the directory's own rows, is replaced with every entry, and is never told.

What a crash leaves: the entry with all its rows, or neither. An entry without a checkpoint gets one in the next turn.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Engine, select

from licet_attestations.directory import (
    KIND,
    SEED_BYTES,
    DirectoryMap,
    LogState,
    archive_file,
    entry_record,
    opening_document,
)
from licet_attestations.isolation import PLATFORM
from licet_attestations.leaf import DIRECTORY
from licet_attestations.pairs import Pair, PairsMap
from licet_attestations.tlogproof import TlogProof
from licet_engine.log import store
from licet_engine.log.errors import LogCorrupt, NoSuchEntry, StaleFacts
from licet_engine.log.notary import Notary
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import Insert, NewEntry, Submission, Update
from licet_engine.store.db import read_transaction
from licet_engine.store.postgres import EVERY_TENANT
from licet_engine.store.tables import DirectoryHead, DirectoryPair, DirectoryState

HEAD: Final = store.table_of(DirectoryHead)
STATES: Final = store.table_of(DirectoryState)
PAIRS: Final = store.table_of(DirectoryPair)

MAX_COUNTED: Final = 50_000
"""Entries of one log that a turn counts at most: of a log that had none counted, the rest is counted in the turns that follow."""
_MAX_KEPT: Final = 4096
_NUMBERS: Final = ("count", "first", "last", "first_ms", "last_ms")


@dataclass(frozen=True, slots=True)
class PairsAt:
    """What the directory has of one log, and what the log's pairs are there.

    Attributes:
        document: The opening, as `licet_attestations.directory.verify_opening` takes it.
        state: The log.
        pairs: Its pairs.
    """

    document: Mapping[str, Any]
    state: LogState
    pairs: PairsMap


@dataclass(frozen=True, slots=True)
class _Known:
    """The directory's rows at one version."""

    version: int
    index: int
    seed: bytes
    states: Mapping[str, LogState]


class Directory:
    """Makes the directory's entries, and opens the newest.

    Args:
        engine: Of the store; only read.
        sequencer: Appends the entries.
        notary: Has them signed.

    Attributes:
        fault: Why no entry can be made; empty if one can.
    """

    def __init__(self, engine: Engine, sequencer: Sequencer, notary: Notary) -> None:
        self._engine = engine
        self._sequencer = sequencer
        self._notary = notary
        self._lock = threading.Lock()
        self._known: _Known | None = None
        self._pairs: dict[str, PairsMap] = {}
        self._map: tuple[int, DirectoryMap] | None = None
        self.fault = ""

    def turn(self) -> bool:
        """Make an entry if any log grew since the last, and have the directory signed; whether one was made.

        Raises:
            LogCorrupt: A log is shorter than the directory has it.
        """
        with self._lock:
            return self._turn()

    def opened(self, tenant: str) -> PairsAt:
        """What the directory has of a tenant's log, up to now.

        Raises:
            NoSuchEntry: The log is empty.
            LogCorrupt: As for `turn`.
        """
        with self._lock:
            self._turn()
            known = self._read()
            state = known.states.get(tenant)
            if state is None:
                raise NoSuchEntry(f"the log of {tenant!r} is empty, so the directory has nothing of it")
            if self._map is None or self._map[0] != known.index:
                self._map = (known.index, DirectoryMap(known.states.values(), known.seed))
            opening = self._map[1].opening(tenant)
            pairs = self._pairs_of(tenant, state)
            size, note = self._notary.checkpoint(DIRECTORY, min_size=known.index + 1)
            with read_transaction(self._engine, DIRECTORY) as connection:
                entry = store.read_entry(connection, DIRECTORY, known.index)
                path = store.inclusion_proof(connection, DIRECTORY, known.index, size)
            if entry.salt is None or entry.record is None:
                raise LogCorrupt("the newest entry of the directory has no record: run licet log fsck")
            document = opening_document(
                opening,
                leaf=entry.header,
                record_salt=entry.salt,
                record=entry.record,
                proof=TlogProof(known.index, tuple(path), note).to_text(),
            )
            return PairsAt(document, state, pairs.copy())

    def archive_file(self, tenant: str, size: int) -> bytes:
        """The content of ``directory.json`` in an archive of a tenant's log as it was at ``size``.

        Raises:
            NoSuchEntry: The log is empty, or was never that large.
            LogCorrupt: As for `turn`.
        """
        found = self.opened(tenant)
        shorter, longer = sorted((size, found.state.size))
        proof: list[bytes] = []
        if 0 < shorter < longer:
            with read_transaction(self._engine, tenant) as connection:
                proof = store.consistency_proof(connection, tenant, shorter, longer)
        return archive_file(found.document, proof)

    # --- A turn -----------------------------------------------------------------------------------------------------------

    def _turn(self) -> bool:
        try:
            made = self._made()
        except StaleFacts:
            # Another api made an entry meanwhile, which will do as well.
            self._known = None
            made = False
        known = self._read()
        if known.index >= 0:
            self._notary.checkpoint(DIRECTORY, min_size=known.index + 1)
        return made

    def _made(self) -> bool:
        known = self._read()
        with read_transaction(self._engine, EVERY_TENANT) as connection:
            rows = connection.execute(select(store.HEADS.c.tenant_id, store.HEADS.c.size)).all()
        sizes = {tenant: size for tenant, size in rows if tenant != DIRECTORY}
        behind = [tenant for tenant, state in known.states.items() if sizes.get(tenant, 0) < state.size]
        if behind:
            self.fault = (
                f"the log of {', '.join(sorted(behind))} is shorter than the directory has it: run licet log fsck"
            )
            raise LogCorrupt(self.fault)
        self.fault = ""
        grown = sorted(t for t, size in sizes.items() if size > (known.states[t].size if t in known.states else 0))
        if not grown:
            return False
        changed: dict[str, LogState] = {}
        counted: dict[str, PairsMap] = {}
        companions: list[Insert | Update] = []
        for tenant in grown:
            state = known.states.get(tenant)
            before = PairsMap() if state is None else self._pairs_of(tenant, state)
            counted[tenant], root = self._count(tenant, before)
            changed[tenant] = LogState(tenant, counted[tenant].size, root, counted[tenant].root())
            companions += _state_rows(changed[tenant], is_new=state is None)
            companions += _pair_rows(tenant, before, counted[tenant])
        seed, states = os.urandom(SEED_BYTES), {**known.states, **changed}
        map_ = DirectoryMap(states.values(), seed)
        companions.append(_head_row(seed, is_new=known.index < 0))
        entry = NewEntry(DIRECTORY, KIND, PLATFORM, DIRECTORY, lambda time_ms: entry_record(time_ms, map_.root))
        receipt = self._sequencer.append(
            Submission([entry], expect={DIRECTORY: known.version}, bump=(DIRECTORY,), companions=companions)
        )
        index = receipt.placed[0].index
        self._known = _Known(receipt.facts_versions[DIRECTORY], index, seed, states)
        self._map = (index, map_)
        self._keep(counted)
        return True

    def _count(self, tenant: str, before: PairsMap) -> tuple[PairsMap, bytes]:
        """Count what came since; how far that is, and the log's root there."""
        pairs = before.copy()
        with read_transaction(self._engine, tenant) as connection:
            headers = connection.execute(
                select(store.LEAVES.c.header)
                .where(store.LEAVES.c.tenant_id == tenant, store.LEAVES.c.leaf_index >= pairs.size)
                .order_by(store.LEAVES.c.leaf_index)
                .limit(MAX_COUNTED)
            )
            for text in headers.scalars():
                header = json.loads(
                    text
                )  # As the sequencer wrote it; that the map is right is for whoever makes it again.
                pairs.count(header["actor"], header["owner"], header["kind"], header["time_ms"])
            return pairs, store.root_at(connection, tenant, pairs.size)

    # --- What is stored ---------------------------------------------------------------------------------------------------

    def _read(self) -> _Known:
        """The directory's rows, read anew only where they changed."""
        with read_transaction(self._engine, DIRECTORY) as connection:
            version = store.read_head(connection, DIRECTORY).facts_version
            if self._known is not None and self._known.version == version:
                return self._known
            self._known = read_directory(connection, version)
        self._pairs.clear()
        return self._known

    def _pairs_of(self, tenant: str, state: LogState) -> PairsMap:
        kept = self._pairs.get(tenant)
        if kept is not None and kept.size == state.size:
            return kept
        with read_transaction(self._engine, DIRECTORY) as connection:
            pairs = read_pairs(connection, tenant, state.size)
        if pairs.root() != state.pairs_root:
            raise LogCorrupt(
                f"the pairs of the log of {tenant} are not those that the directory has: run licet log fsck"
            )
        self._keep({tenant: pairs})
        return pairs

    def _keep(self, counted: Mapping[str, PairsMap]) -> None:
        if len(self._pairs) + len(counted) > _MAX_KEPT:
            self._pairs.clear()
        self._pairs.update(counted)


def read_directory(connection: Connection, version: int) -> _Known:
    """What the newest entry of the directory commits to, and its seed."""
    head = connection.execute(select(HEAD.c.leaf_index, HEAD.c.seed).where(HEAD.c.tenant_id == DIRECTORY)).first()
    rows = connection.execute(
        select(STATES.c.of_tenant, STATES.c.size, STATES.c.root, STATES.c.pairs_root).where(
            STATES.c.tenant_id == DIRECTORY
        )
    )
    states = {row.of_tenant: LogState(*row) for row in rows}
    return _Known(version, -1, b"", states) if head is None else _Known(version, head.leaf_index, head.seed, states)


def read_pairs(connection: Connection, tenant: str, size: int) -> PairsMap:
    """The pairs of a log, as they are stored."""
    columns = (PAIRS.c.actor, PAIRS.c.owner, *(PAIRS.c[name] for name in _NUMBERS), PAIRS.c.kinds)
    rows = connection.execute(select(*columns).where(PAIRS.c.tenant_id == DIRECTORY, PAIRS.c.of_tenant == tenant))
    return PairsMap(size, [Pair(*row) for row in rows])


def _head_row(seed: bytes, *, is_new: bool) -> Insert | Update:
    if is_new:
        row = {"tenant_id": DIRECTORY, "seed": seed}
        return Insert(DirectoryHead, [row], placed={"leaf_index": (0, "index")})
    return Update(DirectoryHead, {"tenant_id": DIRECTORY}, {"seed": seed}, placed={"leaf_index": (0, "index")})


def _state_rows(state: LogState, *, is_new: bool) -> list[Insert | Update]:
    key = {"tenant_id": DIRECTORY, "of_tenant": state.tenant}
    values = {"size": state.size, "root": state.root, "pairs_root": state.pairs_root}
    placed = {"leaf_index": (0, "index")}
    if is_new:
        return [Insert(DirectoryState, [key | values], placed=placed)]  # type: ignore[arg-type]  # The literal is one of two.
    return [Update(DirectoryState, key, values, placed=placed)]  # type: ignore[arg-type]  # As above.


def _pair_rows(tenant: str, before: PairsMap, after: PairsMap) -> list[Insert | Update]:
    rows: list[Insert | Update] = []
    for pair in after.pairs():
        known = before.get(pair.actor, pair.owner)
        if known == pair:
            continue
        key = {"tenant_id": DIRECTORY, "of_tenant": tenant, "actor": pair.actor, "owner": pair.owner}
        values = {name: getattr(pair, name) for name in _NUMBERS} | {"kinds": dict(pair.kinds)}
        rows.append(Insert(DirectoryPair, [key | values]) if known is None else Update(DirectoryPair, key, values))
    return rows
