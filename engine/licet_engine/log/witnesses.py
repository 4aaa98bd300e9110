"""Cosignatures of checkpoints: which witness is asked about what, what they answered, and how far a quorum has seen each log.

Rules kept here:

- A cosignature is verified here before it is kept, and again before anything rests on it: not who brought it, nor where it lay, counts.
- All witnesses are asked about one checkpoint of a log until a quorum has cosigned it, or it is plain that none will: a quorum is of one
  checkpoint, and witnesses that were each asked about another would never be one.
- Where the policy wants a quorum, a log is *covered* while none of its entries that is older than the bound lies beyond the newest
  checkpoint that a quorum cosigned. What needs cover and has none is refused as unavailable; nothing is decided or logged less for it.
- A witness that says that a log forked, or that knows a longer one than there is, is an alarm and no outage: it is told as such.
- What is remembered here alone (who is asked next, and when) may be lost at any time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, select

from licet_attestations import cosignature, tlogpolicy
from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.tlogpolicy import Policy, Witness
from licet_attestations.trustroot import TrustRoot
from licet_engine.domain.errors import ConfigurationError, InvalidInput, Unavailable
from licet_engine.log import store
from licet_engine.log.errors import NoSuchEntry
from licet_engine.log.notary import Notary
from licet_engine.log.sequencer import wall_clock_ms
from licet_engine.store.db import read_transaction, write_transaction
from licet_engine.store.postgres import EVERY_TENANT

logger = logging.getLogger(__name__)

_MOST_AT_ONCE: Final = 64
_CLAIM_S: Final = 60.0
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
_MOST_SEARCHED: Final = 64
_CLOCKS_APART_S: Final = 300
_MOST_FAULT_CHARS: Final = 200
_MOVED_AT_ONCE: Final = 3
"""How often in a row a witness may name another size than the last one named, before it is left alone for a while."""


@dataclass(slots=True)
class _Round:
    """The checkpoint of one log that every witness is asked about."""

    size: int
    note: str
    began_s: float
    is_met: bool = False


@dataclass(slots=True)
class _Stand:
    """How one witness stands to one log."""

    old_size: int
    cosigned: int = 0
    moved: int = 0
    failures: int = 0
    retry_at_s: float = 0.0
    claimed_until_s: float = 0.0
    alarm: str = ""


@dataclass(slots=True)
class _Peer:
    """How one witness stands to all: whether it can be reached."""

    failures: int = 0
    retry_at_s: float = 0.0
    fault: str = ""
    stands: dict[str, _Stand] = field(default_factory=dict)


def load_policy(path: str) -> Policy | None:
    """Read the policy of an installation; None where it has none.

    Raises:
        ConfigurationError: It cannot be read, or a witness that is to be asked has no URL.
    """
    if not path:
        return None
    try:
        with Path(path).open("rb") as stream:
            policy = Policy.from_bytes(stream.read(tlogpolicy.MAX_POLICY_BYTES + 1))
    except OSError as error:
        raise ConfigurationError(f"LICET_WITNESS_POLICY: {path} cannot be read: {error.strerror}") from error
    except FormatError as error:
        raise ConfigurationError(f"LICET_WITNESS_POLICY: {path}, {error}") from error
    for witness in policy.witnesses.values():
        if not witness.url.startswith(("https://", "http://")):
            raise ConfigurationError(
                f"LICET_WITNESS_POLICY: {path}: witness {witness.name!r} has no URL: write its submission prefix after its key"
            )
    return policy


class Witnesses:
    """Keeps the cosignatures of all logs.

    Args:
        engine: Of the store.
        notary: Makes the checkpoints.
        trust_root: Keys of the logs.
        policy: Witnesses and quorum; None for none.
        max_lag_s: How old an entry may be that no quorum has seen.
        round_s: How long a checkpoint waits for its quorum before a newer one takes its place.
        told: Told of each answer: the witness, and ``cosigned``, ``moved``, ``refused`` or ``failed``.
    """

    def __init__(
        self,
        engine: Engine,
        notary: Notary,
        trust_root: TrustRoot,
        policy: Policy | None,
        *,
        max_lag_s: int,
        round_s: float,
        told: Callable[[str, str], None] = lambda _witness, _outcome: None,
    ) -> None:
        self._engine = engine
        self._notary = notary
        self._trust_root = trust_root
        self._policy = policy
        self._max_lag_ms = max_lag_s * 1000
        self._round_s = round_s
        self._told = told
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._peers = {name: _Peer() for name in (policy.witnesses if policy is not None else ())}
        self._rounds: dict[str, _Round] = {}
        self._covered: dict[str, int] = {}

    @property
    def is_required(self) -> bool:
        """Whether anything rests on a quorum."""
        return self._policy is not None and self._policy.is_required

    def handlers(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        """The methods of the internal door, by name."""
        return {
            "witness_asks": lambda p: self.asks(p["witness"], p["limit"]),
            "witness_told": lambda p: self.told(p["witness"], p["tenant"], p["size"], p["outcome"]),
        }

    # --- asking ----------------------------------------------------------------------------------------------------

    def asks(self, name: str, limit: int) -> list[dict[str, Any]]:
        """What one witness is to be asked now; each is claimed for a while."""
        policy, peer = self._peer(name)
        witness = policy.witnesses[name]
        now_s = time.monotonic()
        known = self._notary.known()
        found: list[dict[str, Any]] = []
        with self._lock:
            if peer.retry_at_s > now_s:
                return []
            due = [tenant for tenant in sorted(known) if self._is_due(peer, tenant, known[tenant], now_s)]
        for tenant in due[: max(0, min(limit, _MOST_AT_ONCE))]:
            asked = self._ask(peer, witness, tenant)
            if asked is not None:
                found.append(asked)
        return found

    def _is_due(self, peer: _Peer, tenant: str, newest: tuple[int, str], now_s: float) -> bool:
        target = self._target(tenant, newest, now_s)
        stand = peer.stands.get(tenant)
        if stand is None:
            return True
        return stand.cosigned < target.size and stand.retry_at_s <= now_s and stand.claimed_until_s <= now_s

    def _target(self, tenant: str, newest: tuple[int, str], now_s: float) -> _Round:
        """The checkpoint that all are asked about. Under the lock."""
        target = self._rounds.get(tenant)
        if target is None or (newest[0] > target.size and (target.is_met or now_s - target.began_s > self._round_s)):
            target = self._rounds[tenant] = _Round(newest[0], newest[1], now_s)
        return target

    def _ask(self, peer: _Peer, witness: Witness, tenant: str) -> dict[str, Any] | None:
        with self._lock:
            target = self._rounds[tenant]
            stand = peer.stands.get(tenant)
        with read_transaction(self._engine, tenant) as connection:
            if stand is None:
                stand = _Stand(store.cosigned_by(connection, tenant, witness.key.key.keyid))
            if stand.old_size > target.size:
                # It has seen more than this checkpoint: the next one is for it.
                with self._lock:
                    self._is_ahead(connection, stand, peer, tenant)
                return None
            try:
                proof = store.consistency_proof(connection, tenant, stand.old_size, target.size)
            except NoSuchEntry:
                return None
        with self._lock:
            stand = peer.stands.setdefault(tenant, stand)
            stand.claimed_until_s = time.monotonic() + _CLAIM_S
        return {
            "tenant": tenant,
            "size": target.size,
            "note": target.note,
            "old_size": stand.old_size,
            "proof": [part.hex() for part in proof],
        }

    def _is_ahead(self, connection: Connection, stand: _Stand, peer: _Peer, tenant: str) -> None:
        """A witness that has seen more of a log than there is: the log was put back."""
        peer.stands.setdefault(tenant, stand)
        self._rounds.pop(tenant, None)
        stand.retry_at_s = time.monotonic() + _FIRST_PAUSE_S
        size = store.read_head(connection, tenant).size
        stand.alarm = (
            f"it cosigned {stand.old_size} entries, and the log has {size}: the log was put back"
            if stand.old_size > size
            else ""
        )

    def told(self, name: str, tenant: str, size: int, outcome: Mapping[str, Any]) -> dict[str, Any]:
        """Take what came of asking; may be called again.

        Args:
            name: The witness.
            tenant: Whose log.
            size: Of the checkpoint that it was asked about.
            outcome: ``lines`` it answered, or the ``size`` it says it cosigned last, or a ``fault``, with ``away`` where it was not reached.
        """
        policy, peer = self._peer(name)
        witness = policy.witnesses[name]
        if "lines" in outcome:
            fault = self._cosigned(peer, witness, tenant, size, str(outcome["lines"]))
            if fault:
                self._failed(peer, tenant, fault, away=False)
            self._told(name, "refused" if fault else "cosigned")
        elif "size" in outcome:
            self._moved(peer, tenant, size, int(outcome["size"]))
            self._told(name, "moved")
        else:
            away = bool(outcome.get("away"))
            self._failed(peer, tenant, str(outcome.get("fault"))[:_MOST_FAULT_CHARS], away=away)
            if outcome.get("fork"):
                with self._lock:
                    self._stand(peer, tenant).alarm = "it says that the log does not extend what it saw"
                logger.error("a witness says that a log forked", extra={"witness": name, "tenant": tenant})
            self._told(name, "failed" if away else "refused")
        return {}

    def _cosigned(self, peer: _Peer, witness: Witness, tenant: str, size: int, lines: str) -> str:
        """Verify and keep a cosignature; return what is wrong with it, or nothing."""
        with read_transaction(self._engine, tenant) as connection:
            kept = store.read_checkpoint(connection, tenant, size)
        if kept is None:
            return "it was not asked about that"
        try:
            found = cosignature.read_lines(kept[1], lines, witness.key)
        except VerificationError as error:
            return str(error)[:_MOST_FAULT_CHARS]
        if abs(found.time_s - wall_clock_ms() // 1000) > _CLOCKS_APART_S:
            return f"its clock is more than {_CLOCKS_APART_S} s from ours"
        with write_transaction(self._engine, tenant) as connection:
            keyid = witness.key.key.keyid
            store.save_cosignature(connection, tenant, size, keyid=keyid, time_s=found.time_s, line=found.line)
        with self._lock:
            peer.failures, peer.retry_at_s, peer.fault = 0, 0.0, ""
            stand = self._stand(peer, tenant)
            stand.old_size, stand.cosigned = max(stand.old_size, size), max(stand.cosigned, size)
            stand.moved, stand.failures, stand.claimed_until_s, stand.alarm = 0, 0, 0.0, ""
        self._look(tenant, (size,))
        return ""

    def _moved(self, peer: _Peer, tenant: str, size: int, old_size: int) -> None:
        """A witness names the size that it cosigned last."""
        with self._lock:
            stand = self._stand(peer, tenant)
            stand.claimed_until_s = 0.0
            stand.moved += 1
            if old_size < stand.cosigned:
                logger.error("a witness forgot what it cosigned", extra={"tenant": tenant, "size": old_size})
            if old_size == stand.old_size or stand.moved > _MOVED_AT_ONCE:
                if old_size == size:
                    stand.alarm = f"it holds another checkpoint of {size} entries: the log forked"
                self._pause(stand)
            stand.old_size = old_size

    def _failed(self, peer: _Peer, tenant: str, fault: str, *, away: bool) -> None:
        with self._lock:
            stand = self._stand(peer, tenant)
            stand.claimed_until_s = 0.0
            peer.fault = fault
            if away:
                # Whoever cannot be reached about one log cannot be about the others.
                peer.failures += 1
                for other in peer.stands.values():
                    other.claimed_until_s = 0.0
                peer.retry_at_s = time.monotonic() + _pause_s(peer.failures)
            else:
                self._pause(stand)

    @staticmethod
    def _pause(stand: _Stand) -> None:
        stand.failures += 1
        stand.retry_at_s = time.monotonic() + _pause_s(stand.failures)

    @staticmethod
    def _stand(peer: _Peer, tenant: str) -> _Stand:
        return peer.stands.setdefault(tenant, _Stand(0))

    def _peer(self, name: str) -> tuple[Policy, _Peer]:
        if self._policy is None or name not in self._peers:
            raise InvalidInput(f"{name!r} is no witness of this installation")
        return self._policy, self._peers[name]

    # --- how far a quorum has seen -----------------------------------------------------------------------------------

    def note(self, tenant: str, size: int, note: str) -> str:
        """A checkpoint with the cosignatures it has."""
        with read_transaction(self._engine, tenant) as connection:
            return note + "".join(store.read_cosignatures(connection, tenant, size).values())

    def newest(self, tenant: str) -> tuple[int, str]:
        """A checkpoint of the whole log, with the cosignatures that it has: size and note. Nobody is waited for."""
        size, note = self._notary.checkpoint(tenant)
        return size, self.note(tenant, size, note)

    def cosigned(self, tenant: str) -> tuple[int, str] | None:
        """The newest checkpoint that a quorum cosigned, with its cosignatures: size and note; None if there is none."""
        self._look(tenant, None)
        with self._lock:
            size = self._covered.get(tenant)
        if size is None:
            return None
        with read_transaction(self._engine, tenant) as connection:
            kept = store.read_checkpoint(connection, tenant, size)
        return None if kept is None else (size, self.note(tenant, *kept))

    def lag_ms(self, tenant: str) -> int:
        """How old the oldest entry is that lies beyond the newest checkpoint that a quorum cosigned; 0 where there is none."""
        with self._lock:
            covered = self._covered.get(tenant, -1)
        with read_transaction(self._engine, tenant) as connection:
            if covered < 0 or store.read_head(connection, tenant).size > covered:
                entries = store.read_entries(connection, tenant, max(covered, 0), 1)
                return max(0, wall_clock_ms() - entries[0].leaf.time_ms) if entries else 0
        return 0

    def require(self, tenant: str, what: str) -> None:
        """Refuse what needs cover where the log has none.

        Raises:
            Unavailable: An entry older than the bound was seen by no quorum.
        """
        if not self.is_required or self.lag_ms(tenant) <= self._max_lag_ms:
            return
        self._look(tenant, None)  # Another api may have been told.
        lag_ms = self.lag_ms(tenant)
        if lag_ms > self._max_lag_ms and self._policy is not None:
            raise Unavailable(
                f"{what} waits: for {lag_ms // 1000} s no quorum of witnesses ({self._policy.quorum_text()}) has cosigned the log of"
                f" {tenant}, and {self._max_lag_ms // 1000} s are allowed",
                code="unavailable",
            )

    def for_evidence(self, tenant: str, wait_s: float) -> tuple[int, str]:
        """A checkpoint of the log for an archive: where a quorum is required, one that it cosigned.

        Raises:
            Unavailable: None can be had.
        """
        size, note = self.newest(tenant)
        if not self.is_required:
            return size, note
        until_s = time.monotonic() + wait_s
        with self._lock:
            while self._covered.get(tenant, -1) < size and (left_s := until_s - time.monotonic()) > 0:
                self._arrived.wait(left_s)
        self.require(tenant, "an export")
        found = self.cosigned(tenant)
        if found is None:
            raise Unavailable(f"an export waits: no quorum of witnesses has cosigned a checkpoint of {tenant} yet")
        return found

    def faults(self) -> dict[str, str]:
        """What is wrong with witnesses, by their names: alarms before outages."""
        with self._lock:
            told = {name: peer.fault for name, peer in self._peers.items() if peer.fault}
            for name, peer in self._peers.items():
                alarms = [f"{tenant}: {stand.alarm}" for tenant, stand in sorted(peer.stands.items()) if stand.alarm]
                if alarms:
                    told[name] = alarms[0]
        return told

    def has_alarm(self) -> bool:
        """Whether a witness says that a log forked or was put back."""
        with self._lock:
            return any(stand.alarm for peer in self._peers.values() for stand in peer.stands.values())

    def worst_lag_s(self) -> float:
        """The greatest lag of all logs, in seconds; 0 where there are no witnesses."""
        if self._policy is None:
            return 0.0
        with read_transaction(self._engine, EVERY_TENANT) as connection:
            heads = connection.execute(select(store.HEADS.c.tenant_id, store.HEADS.c.size)).all()
        with self._lock:
            behind = [tenant for tenant, size in heads if size > self._covered.get(tenant, 0)]
        lags_ms = [0]
        for tenant in behind:
            lag_ms = self.lag_ms(tenant)
            if lag_ms > self._max_lag_ms:
                self._look(tenant, None)  # Another api may have been told, or this one began just now.
                lag_ms = self.lag_ms(tenant)
            lags_ms.append(lag_ms)
        return max(lags_ms) / 1000

    def is_behind(self) -> bool:
        """Whether something is refused for want of a quorum."""
        return self.is_required and self.worst_lag_s() * 1000 > self._max_lag_ms

    def _look(self, tenant: str, sizes: tuple[int, ...] | None) -> None:
        """Find the newest checkpoint that a quorum cosigned, among these or the newest ones, and verify that it did."""
        if self._policy is None:
            return
        with read_transaction(self._engine, tenant) as connection:
            found = newest_cosigned(connection, tenant, self._policy, self._trust_root, sizes)
        if found is None:
            return
        with self._lock:
            self._covered[tenant] = max(self._covered.get(tenant, -1), found)
            target = self._rounds.get(tenant)
            if target is not None and target.size <= found:
                target.is_met = True
            self._arrived.notify_all()


def newest_cosigned(
    connection: Connection,
    tenant: str,
    policy: Policy,
    trust_root: TrustRoot,
    sizes: tuple[int, ...] | None = None,
) -> int | None:
    """The size of the newest checkpoint whose stored cosignatures verify as the policy's quorum."""
    keyids = {witness.key.key.keyid for witness in policy.witnesses.values()}
    for size in store.cosigned_sizes(connection, tenant, _MOST_SEARCHED) if sizes is None else sizes:
        kept = store.read_checkpoint(connection, tenant, size)
        if kept is None:
            continue
        lines = store.read_cosignatures(connection, tenant, size)
        note = kept[1] + "".join(line for keyid, line in lines.items() if keyid in keyids)
        try:
            # The logs are this installation's own, whatever logs the policy names for others.
            tlogpolicy.verify(note, policy.without_logs(), trust_root.origin(tenant), trust_root.keys("log"))
        except VerificationError:
            continue
        return size
    return None


def _pause_s(failures: int) -> float:
    return float(min(_FIRST_PAUSE_S * 2 ** min(failures - 1, 10), _LONGEST_PAUSE_S))
