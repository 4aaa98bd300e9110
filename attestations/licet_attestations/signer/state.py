"""The last checkpoint of every log: what makes a fork impossible, even from a restored backup of the service.

Rules kept here:

- A checkpoint is signed only if its log extends the last one, and only after the new one is durable here. A crash at
  any point leaves the old or the new state; either way nothing was signed that the state does not know.
- After a failed write nothing is assumed: what is stored is read again and binds, and it is written again before the
  next signature, because a write may fail and yet be found by a later read, or be found now and lost by a power cut.
- A state that cannot be read stops its log; it is never taken for an empty one.
- The signer's time never runs backwards past what it has stored.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from licet_attestations import canonical, merkle
from licet_attestations.errors import FormatError, SignerRefused, SignerUnavailable, VerificationError
from licet_attestations.leaf import is_tenant
from licet_attestations.signer.files import make_private_directory, replace_durably, sweep

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Storage(Protocol):
    """Where small named values are kept. A write is durable once it returns; if it raises, it may or may not be."""

    def names(self) -> list[str]:
        """All names there are."""
        ...

    def read(self, name: str) -> bytes | None:
        """The value of ``name``, or None if it was never written."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Set ``name`` to ``data``, whole."""
        ...


class FileStorage:
    """One file for each name, in a folder of its own."""

    def __init__(self, directory: Path) -> None:
        make_private_directory(directory)
        sweep(directory)
        self._dir = directory

    def names(self) -> list[str]:
        """See ``Storage``."""
        return [path.stem for path in self._dir.glob("*.json")]

    def read(self, name: str) -> bytes | None:
        """See ``Storage``."""
        try:
            return (self._dir / f"{name}.json").read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """See ``Storage``."""
        replace_durably(self._dir / f"{name}.json", data)


@dataclass(frozen=True, slots=True)
class Head:
    """The last checkpoint of one log that was, or was about to be, signed."""

    size: int
    root: bytes
    signed_at_ms: int

    def to_bytes(self) -> bytes:
        """As stored."""
        return canonical.dumps({"v": 1, "size": self.size, "root": self.root.hex(), "signed_at_ms": self.signed_at_ms})

    @classmethod
    def from_bytes(cls, data: bytes) -> Head:
        """Read what ``to_bytes`` wrote.

        Raises:
            SignerUnavailable: It is something else; the log stands still until a person has looked.
        """
        try:
            match canonical.loads(data, canonical=True):
                case {"v": 1, "size": int(size), "root": str(root), "signed_at_ms": int(at_ms), **rest} if not rest:
                    return cls(size, bytes.fromhex(root), at_ms)
        except (FormatError, ValueError) as error:
            raise _damaged() from error
        raise _damaged()


def _damaged() -> SignerUnavailable:
    return SignerUnavailable("the stored last checkpoint cannot be read: restore it", code="signer.state")


class CheckpointState:
    """The heads of all logs, over a ``Storage`` that this object alone writes to."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        # Only what this process wrote and saw succeed: those need no second write.
        self._durable: dict[str, Head] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()  # Over the locks and the time.
        self._latest_ms = max((self._load(name).signed_at_ms for name in storage.names()), default=0)

    def now_ms(self, clock_ms: int) -> int:
        """Return the time to go by: the clock's, but never before what was seen already."""
        with self._lock:
            self._latest_ms = max(self._latest_ms, clock_ms)
            return self._latest_ms

    def last(self, tenant: str) -> Head | None:
        """Return the head that binds ``tenant``'s log, if there is one."""
        return self._durable.get(tenant) or self._stored(tenant)

    def advance(self, tenant: str, size: int, root: bytes, proof: Sequence[bytes], now_ms: int) -> Head:
        """Verify that the log extends its last head, and make the new head durable; then, only then, it may be signed.

        Args:
            tenant: Whose log.
            size: Entries in the new head.
            root: Root of the new head, 32 bytes.
            proof: Consistency with the last head; empty for a log's first.
            now_ms: Signer's time.

        Raises:
            SignerRefused: Smaller than the last head, or not its extension (code ``signer.fork``).
            SignerUnavailable: The state cannot be read or written; nothing may be signed.
        """
        if not is_tenant(tenant):
            raise SignerRefused("not a tenant's log", code="signer.tenant")
        with self._lock:
            lock = self._locks.setdefault(tenant, threading.Lock())
        with lock:
            last = self.last(tenant) or Head(0, merkle.EMPTY_ROOT, 0)
            if size < last.size:
                raise SignerRefused(f"the log had {last.size} entries and now has {size}", code="signer.fork")
            try:
                merkle.verify_extension(last.size, last.root, size, root, proof)
            except VerificationError as error:
                raise SignerRefused(
                    f"the log does not extend its last checkpoint: {error}", code="signer.fork"
                ) from error
            if (known := self._durable.get(tenant)) is not None and known.size == size:
                return known
            head = Head(size, root, max(now_ms, last.signed_at_ms))
            # From here until the write has returned, what is stored is not known.
            self._durable.pop(tenant, None)
            try:
                self._storage.write(tenant, head.to_bytes())
            except OSError as error:
                raise SignerUnavailable(f"the last checkpoint cannot be stored: {error.strerror}") from error
            self._durable[tenant] = head
            return head

    def _stored(self, tenant: str) -> Head | None:
        try:
            data = self._storage.read(tenant)
        except OSError as error:
            raise SignerUnavailable(f"the last checkpoint cannot be read: {error.strerror}") from error
        return None if data is None else Head.from_bytes(data)

    def _load(self, tenant: str) -> Head:
        head = self._stored(tenant)
        if head is None:
            raise _damaged()
        return head
