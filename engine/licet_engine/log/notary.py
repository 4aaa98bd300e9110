"""Checkpoints: the signer's word on how far a log has come.

Rules kept here:

- The signer signs only what extends the last checkpoint it signed; the proof of that is made here, from its own memory
  of where it stood, not from ours.
- A checkpoint is stored before it is handed on.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from sqlalchemy import Engine, select

from licet_attestations.errors import SignerRefused
from licet_engine.log import store
from licet_engine.log.errors import LogCorrupt, LogError, NoSuchEntry
from licet_engine.log.sequencer import wall_clock_ms
from licet_engine.store.db import read_transaction, write_transaction
from licet_engine.store.postgres import EVERY_TENANT


class CheckpointSigner(Protocol):
    """What of the signer is needed here."""

    def sign_checkpoint(self, tenant: str, size: int, root: bytes, proof: Sequence[bytes]) -> str:
        """Sign a checkpoint that extends the last one."""
        ...

    def last_checkpoint(self, tenant: str) -> tuple[int, bytes]:
        """Size and root of the last checkpoint signed; size 0 before the first."""
        ...


class Notary:
    """Has checkpoints signed and stored.

    Args:
        engine: Of the store.
        signer: Who signs.

    Attributes:
        fault: Which logs are not extensions of what was signed before; empty if all are.
    """

    def __init__(self, engine: Engine, signer: CheckpointSigner) -> None:
        self._engine = engine
        self._signer = signer
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
        self._notes: dict[str, tuple[int, str]] = {}
        self.fault = ""

    def checkpoint(self, tenant: str, *, min_size: int = 0) -> tuple[int, str]:
        """A checkpoint that covers at least ``min_size`` entries; of the whole log as it is, if ``min_size`` is 0.

        Returns:
            Its size and its note.

        Raises:
            SignerError: The signer does not answer, or refuses because the log is not what it was.
        """
        known = self._notes.get(tenant)
        if known is not None and min_size and known[0] >= min_size:
            return known
        with self._locks[tenant]:
            failed_at = -1
            while True:
                try:
                    return self._sign(tenant, min_size)
                except (NoSuchEntry, SignerRefused):
                    # Another api may have had a later state signed in between; the proof was then made for where the signer does not
                    # stand any more. It only ever goes forward: where it has not, something is wrong.
                    last_size, _ = self._signer.last_checkpoint(tenant)
                    if last_size == failed_at:
                        raise
                    failed_at = last_size

    def _sign(self, tenant: str, min_size: int) -> tuple[int, str]:
        known = self._notes.get(tenant)
        with read_transaction(self._engine, tenant) as connection:
            head = store.read_head(connection, tenant)
            if known is not None and known[0] >= (min_size or head.size):
                return known
            last_size, _ = self._signer.last_checkpoint(tenant)
            proof = store.consistency_proof(connection, tenant, last_size, head.size) if last_size else []
        note = self._signer.sign_checkpoint(tenant, head.size, head.root, proof)
        with write_transaction(self._engine, tenant) as connection:
            store.save_checkpoint(connection, tenant, head.size, note, wall_clock_ms())
        self._notes[tenant] = (head.size, note)
        return head.size, note

    def known(self) -> dict[str, tuple[int, str]]:
        """The newest checkpoint of each log that was made or seen here: its size and its note."""
        return dict(self._notes)

    def lag(self) -> int:
        """How many entries of all logs no checkpoint covers that was made or seen here."""
        with read_transaction(self._engine, EVERY_TENANT) as connection:
            heads = connection.execute(select(store.HEADS.c.tenant_id, store.HEADS.c.size)).all()
        return sum(max(0, size - self._notes.get(tenant, (0, ""))[0]) for tenant, size in heads)

    def sign_all(self) -> int:
        """Have every log signed that grew since its last checkpoint; return how many.

        Raises:
            LogCorrupt: Some log is not an extension of what was signed before; the others were signed.
        """
        with read_transaction(self._engine, EVERY_TENANT) as connection:
            heads = connection.execute(select(store.HEADS.c.tenant_id, store.HEADS.c.size)).all()
        grown = [t for t, size in heads if size and self._notes.get(t, (0, ""))[0] < size]
        refused: list[str] = []
        for tenant in grown:
            try:
                self.checkpoint(tenant)
            except (LogError, SignerRefused) as error:
                # Of this log something is not as it was; that must not keep the others from their checkpoints.
                refused.append(f"{tenant}: {error}")
        self.fault = "; ".join(refused)
        if refused:
            raise LogCorrupt(f"no checkpoint could be signed of {'; '.join(refused)}; run licet log fsck")
        return len(grown)
