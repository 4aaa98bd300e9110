"""Checkpoints: the signer's word on how far a log has come.

Rules kept here:

- The signer signs only what extends the last checkpoint it signed; the proof of that is made here, from its own memory
  of where it stood, not from ours.
- A checkpoint is stored before it is handed on.
- Where a log is not an extension of what was signed, an old database was put in its place, and that holds all logs: nothing is appended to any
  of them, before the first entry of this process already, until they are what they were. What would be appended would be lost when the
  newer database is brought back. A signer that is away keeps nobody from deciding, and is asked again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from sqlalchemy import Engine, select

from licet_attestations.errors import SignerError, SignerRefused
from licet_engine.log import store
from licet_engine.log.errors import LogCorrupt, LogError, LogPutBack, NoSuchEntry
from licet_engine.log.sequencer import wall_clock_ms
from licet_engine.store.db import read_transaction, write_transaction
from licet_engine.store.postgres import EVERY_TENANT

logger = logging.getLogger(__name__)

_ASK_AGAIN_S: Final = 1.0
"""How long a signer that did not answer is not asked again before an entry."""


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
        self._verified: set[str] = set()
        self._put_back: frozenset[str] = frozenset()
        self._ask_again_at_s = 0.0
        self.fault = ""

    def verify_logs(self, tenants: Iterable[str]) -> None:
        """Verify that these logs may be appended to; asks the signer once for each, and then remembers.

        Raises:
            LogPutBack: A log is not an extension of what was signed: one of these, or any that was found so before.
        """
        if self._put_back:
            raise LogPutBack
        new = [tenant for tenant in tenants if tenant not in self._verified]
        if not new or time.monotonic() < self._ask_again_at_s:
            return
        try:
            put_back = {tenant for tenant in new if not self._stands(tenant)}
        except SignerError:
            self._ask_again_at_s = time.monotonic() + _ASK_AGAIN_S
            return
        self._verified.update(new)
        if put_back:
            self._tell_put_back(put_back)
            raise LogPutBack

    def _stands(self, tenant: str) -> bool:
        """Whether a log holds what the signer signed of it last. It is asked first: what it signed by then is read below."""
        size, root = self._signer.last_checkpoint(tenant)
        with read_transaction(self._engine, tenant) as connection:
            if store.read_head(connection, tenant).size < size:
                return False
            return not size or store.root_at(connection, tenant, size) == root

    def refuse(self, tenant: str) -> None:
        """Take note that a log is not what it was when this process last appended to it."""
        self._tell_put_back({tenant})

    def _tell_put_back(self, found: Iterable[str]) -> None:
        self._put_back = self._put_back | frozenset(found)
        self.fault = f"not what was signed before: {', '.join(sorted(self._put_back))}"
        logger.critical(
            "an old database was put in place: nothing is decided until the newer one is back",
            extra={"logs": sorted(self._put_back)},
        )

    def verify_all(self) -> None:
        """Verify all logs, those that were verified before by their size alone.

        Raises:
            LogCorrupt: Some log is not an extension of what was signed before.
            SignerError: The signer does not answer.
        """
        if self._put_back and not all(self._stands(tenant) for tenant in self._put_back):
            raise LogCorrupt(f"{self.fault}; run licet log fsck")
        if self._put_back:
            logger.warning("the logs are what was signed before again", extra={"logs": sorted(self._put_back)})
            self._put_back = frozenset()
            self.fault = ""
        # What was signed before the heads are read is in them, unless they are of an older database.
        known = {tenant: size for tenant, (size, _) in self._notes.items()}
        sizes = self._sizes()
        lost = {tenant for tenant, size in known.items() if sizes.get(tenant, 0) < size}
        lost |= {tenant for tenant in sizes.keys() - self._verified if not self._stands(tenant)}
        self._verified |= sizes.keys()
        if lost:
            self._tell_put_back(lost)
            raise LogCorrupt(f"{self.fault}; run licet log fsck")

    def _sizes(self) -> dict[str, int]:
        with read_transaction(self._engine, EVERY_TENANT) as connection:
            heads = connection.execute(select(store.HEADS.c.tenant_id, store.HEADS.c.size)).all()
        return {str(tenant): int(size) for tenant, size in heads}

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
        return sum(max(0, size - self._notes.get(tenant, (0, ""))[0]) for tenant, size in self._sizes().items())

    def sign_all(self) -> int:
        """Have every log signed that grew since its last checkpoint; return how many.

        Raises:
            LogCorrupt: Some log is not an extension of what was signed before; the others were signed.
        """
        # Before any is signed: what an older database holds of the others is not to be signed either.
        self.verify_all()
        grown = [t for t, size in self._sizes().items() if size and self._notes.get(t, (0, ""))[0] < size]
        refused: dict[str, str] = {}
        for tenant in grown:
            try:
                self.checkpoint(tenant)
            except (LogError, SignerRefused) as error:
                # Of this log something is not as it was; that must not keep the others from their checkpoints.
                refused[tenant] = str(error)
        self.fault = "; ".join(f"{tenant}: {why}" for tenant, why in refused.items())
        # A refusal may have other reasons, and pass.
        if lost := {tenant for tenant in refused if not self._stands(tenant)}:
            self._tell_put_back(lost)
        if refused:
            raise LogCorrupt(f"no checkpoint could be signed of {self.fault}; run licet log fsck")
        return len(grown)
