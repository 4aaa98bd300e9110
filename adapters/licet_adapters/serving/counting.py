"""Counts the invocations of an endpoint, without gaps, over crashes.

Rules kept here:

- A number is given when an answer is about to be sent, and only out of a block that was reserved durably before; where
  none can be reserved, nothing is answered.
- A batch names the numbers it covers, each once: the first follows the last of the batch before. What a crash left
  reserved and not told is told as lost, once, by the next start.
- A batch is on the disk before it is told, so that after a crash the very same batch is told again.
- Before the first number of a life is given, the account as the log has it is asked for, and again when the log refuses what
  is told. Where it is not what is remembered here (one of the two was restored, or this folder was lost), the log's word counts:
  nothing that it knows is given again, and what it does not know is told as lost.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from licet_adapters.errors import IntegrityError, Unavailable
from licet_attestations import canonical
from licet_attestations.errors import LicetAttestationError
from licet_attestations.signer.files import replace_durably

if TYPE_CHECKING:
    from pathlib import Path

    from licet_adapters.serving.histogram import Outcome

BLOCK = 20_000
"""Numbers reserved at once."""
_LOW = BLOCK // 2
MAX_GROUPS = 2_000
"""Groups in a batch; what was counted after them comes in the next."""


_Groups = Counter[tuple[str, int, "Outcome"]]


class InvocationCounter:
    """The counter of one endpoint; its methods may be called by different threads.

    Args:
        path: Its file.
        router: Name of this router, for the batches.

    Raises:
        IntegrityError: The file cannot be read.
        Unavailable: It cannot be written.
    """

    def __init__(self, path: Path, router: str) -> None:
        self._path = path
        self._router = router
        self._memory, self._disk = threading.Lock(), threading.Lock()
        self._groups: _Groups = Counter()
        # What came before `_groups` and fills batches of its own, each with the last number that is in it.
        self._full: deque[tuple[_Groups, int]] = deque()
        reserved = reported = epoch = 0
        self._pending: dict[str, Any] | None = None
        if path.exists():
            try:
                state = canonical.loads(path.read_bytes())
                epoch, reserved, reported = state["epoch"], state["reserved"], state["reported"]
                self._pending = state["pending"]
            except (LicetAttestationError, KeyError, TypeError) as error:
                raise IntegrityError(
                    f"the counter {path} cannot be read ({error}): move it away and start the router again; it goes on from the"
                    " log's account then"
                ) from error
        self._epoch = epoch + 1
        self._reserved, self._reported = reserved, reported
        # Beyond what the pending batch covers, what was reserved may have been given out; nobody knows to whom.
        told = reported if self._pending is None else self._pending["last"]
        self._lost = reserved - told
        self._next = reserved + 1
        self._is_aligned = False
        self._write(reserved=reserved, reported=reported, pending=self._pending)

    @property
    def is_aligned(self) -> bool:
        """Whether the account was compared with the log's in this life."""
        return self._is_aligned

    @property
    def needs_block(self) -> bool:
        """Whether it is time to reserve the next block."""
        return self._reserved - self._next < _LOW

    @property
    def has_full(self) -> bool:
        """Whether there is a whole batch to tell, beside the one that fills at present."""
        return bool(self._full)

    @property
    def last(self) -> int:
        """The last number that was given."""
        return self._next - 1

    def take(self, session: str, version: int, outcome: Outcome) -> int:
        """Count one invocation and return its number.

        Raises:
            Unavailable: No number is reserved.
        """
        with self._memory:
            number = self._next
            if number > self._reserved:
                raise Unavailable("no invocation number is reserved: the router's disk does not keep up")
            group = (session, version, outcome)
            if len(self._groups) >= MAX_GROUPS and group not in self._groups:
                self._full.append((self._groups, number - 1))
                self._groups = Counter()
            self._next = number + 1
            self._groups[group] += 1
            return number

    def align(self, accounted: int) -> None:
        """Take note of the last number that the log accounts for; no number was given in this life yet.

        Raises:
            Unavailable: The disk does not take it. Nothing is aligned.
        """
        with self._disk, self._memory:
            known = {self._reported} if self._pending is None else {self._reported, self._pending["last"]}
            if accounted not in known:
                self._go_on_from(accounted)
            self._is_aligned = True

    def realign(self, accounted: int) -> None:
        """Go on from the log's account, which refuses what is told of this life: all of it that the log lacks is lost.

        Numbers that were given stay given: none is given again.

        Args:
            accounted: The last number that the log accounts for.

        Raises:
            Unavailable: The disk does not take it. Everything is as it was.
        """
        with self._disk, self._memory:
            self._go_on_from(accounted)

    def _go_on_from(self, accounted: int) -> None:
        """The log's account counts; both locks are held."""
        reserved, last = max(self._reserved, accounted), max(self._next - 1, accounted)
        self._write(reserved=reserved, reported=accounted, pending=None)
        # A crash right here leaves the same: the next life tells what is reserved beyond the account as lost.
        self._reserved, self._reported, self._pending = reserved, accounted, None
        self._groups, self._lost, self._next = Counter(), last - accounted, last + 1
        self._full.clear()

    def reserve(self) -> None:
        """Reserve the next block, durably; may wait for the disk.

        Raises:
            Unavailable: The account was not compared yet, or the disk does not take it. Nothing was reserved.
        """
        with self._disk:
            if not self._is_aligned:
                raise Unavailable("the account was not compared with the log's yet")
            wanted = self._reserved + BLOCK
            self._write(reserved=wanted, reported=self._reported, pending=self._pending)
            with self._memory:
                self._reserved = wanted

    def cut(self) -> dict[str, Any] | None:
        """Return the batch to tell next, on the disk already; None if there is nothing to tell.

        Raises:
            Unavailable: The disk does not take it.
        """
        with self._disk:
            if not self._is_aligned:
                return None
            if self._pending is not None:
                return self._pending
            with self._memory:
                if not self._full:
                    self._full.append((self._groups, self._next - 1))
                    self._groups = Counter()
                groups, last = self._full.popleft()
                lost, self._lost = self._lost, 0
                if not groups and not lost:
                    return None
            batch = {
                "router": self._router,
                "epoch": self._epoch,
                "first": self._reported + 1,
                "last": last,
                "lost": lost,
                "groups": [
                    {"session": session, "version": version, "status": outcome, "count": count}
                    for (session, version, outcome), count in sorted(groups.items())
                ],
            }
            try:
                self._write(reserved=self._reserved, reported=self._reported, pending=batch)
            except Unavailable:
                with self._memory:
                    self._full.appendleft((groups, last))
                    self._lost += lost
                raise
            self._pending = batch
            return batch

    def acknowledge(self) -> None:
        """The batch was told.

        Raises:
            Unavailable: The disk does not take it; the batch may be told again.
        """
        with self._disk:
            if self._pending is None:
                return
            last = self._pending["last"]
            self._write(reserved=self._reserved, reported=last, pending=None)
            self._reported, self._pending = last, None

    def close(self) -> None:
        """Give back what was reserved and never used, so that nothing is lost in an orderly end."""
        with self._disk, self._memory:
            if self._next - 1 < self._reserved:
                self._write(reserved=self._next - 1, reported=self._reported, pending=self._pending)
                self._reserved = self._next - 1

    def _write(self, *, reserved: int, reported: int, pending: dict[str, Any] | None) -> None:
        state = {"v": 1, "epoch": self._epoch, "reserved": reserved, "reported": reported, "pending": pending}
        try:
            replace_durably(self._path, canonical.dumps(state))
        except OSError as error:
            raise Unavailable(f"the invocation counter cannot be written: {error.strerror}") from error
