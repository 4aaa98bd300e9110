"""A group of submissions, and what it comes to: worked out in memory, under the lock of the heads, before anything is written.

Rules kept here:

- A submission is taken in whole, or refused and leaves the plan as it was.
- Within a group no two are decided on facts that an earlier one changed, and no two spend the same.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.exc import IntegrityError

from licet_attestations.leaf import SALT_BYTES, Leaf, commit
from licet_attestations.merkle import leaf_hash
from licet_engine.log import store
from licet_engine.log.errors import (
    LogError,
    LogUnavailable,
    SpendRefused,
    StaleFacts,
    SubmissionConflict,
)
from licet_engine.log.submission import (
    Placed,
    Receipt,
    Spend,
    Submission,
    UnderLock,
    verify_submission,
)

Outcome = Receipt | Exception
_NOT_MADE: Final = Submission(())


@dataclass(slots=True, eq=False)
class Pending:
    """A submission that waits for its outcome.

    Attributes:
        handed_in: What was handed in.
        tenants: Whose logs it writes, or whose facts it rests on.
        future: Who waits.
        loop: Where who waits waits; None for a thread.
        outcome: What came of it.
        submission: What is written, once it is made.
    """

    handed_in: Submission | UnderLock
    tenants: frozenset[str]
    future: "Future[Receipt] | asyncio.Future[Receipt]"
    loop: asyncio.AbstractEventLoop | None
    outcome: Outcome | None = None
    submission: Submission = _NOT_MADE

    def make(self) -> None:
        """Have the submission made, if it is one that is made under the lock; raises what making it raises."""
        if isinstance(self.handed_in, Submission):
            self.submission = self.handed_in
            return
        self.submission = self.handed_in.make()
        if not verify_submission(self.submission) <= self.tenants:
            raise SubmissionConflict("what was made under the lock is for other logs than those that are locked")


class GroupFailed(Exception):  # Never leaves the sequencer.
    """A group of which nothing was written, or of which that is not known."""

    def __init__(self, *, retryable: bool, may_be_logged: bool) -> None:
        super().__init__("a group failed")
        self.retryable = retryable
        self.may_be_logged = may_be_logged

    def for_caller(self) -> LogError:
        """What a single submission is told."""
        cause = self.__cause__
        if isinstance(cause, LogError):
            return cause
        told: LogError
        if isinstance(cause, IntegrityError):
            told = SubmissionConflict("a row that this would insert is there already, or one that it refers to is not")
        elif self.may_be_logged:
            told = LogUnavailable(
                "the log broke off at the commit and cannot be asked whether it was made", may_be_logged=True
            )
        else:
            told = LogUnavailable("the log cannot be written; nothing was logged")
        told.__cause__ = cause
        return told


class Plan:
    """What a group will write, worked out in memory under the lock of the heads."""

    def __init__(self, heads: Mapping[str, store.Head], budgets: dict[tuple[str, str], int], now_ms: int) -> None:
        self.heads = heads
        self.hashes: dict[str, list[bytes]] = {tenant_id: [] for tenant_id in heads}
        self.versions = {tenant_id: head.facts_version for tenant_id, head in heads.items()}
        self.times_ms = {tenant_id: head.last_time_ms for tenant_id, head in heads.items()}
        self.leaf_rows: list[dict[str, Any]] = []
        self.record_rows: list[dict[str, Any]] = []
        self.receipts: list[tuple[Pending, Receipt]] = []
        self.refused: list[tuple[Pending, Exception]] = []
        self.reached: dict[str, tuple[int, bytes]] = {}
        self._budgets = budgets
        self._now_ms = now_ms

    def accept(self, pending: Pending) -> None:
        """Take a submission in, or raise and stay as before."""
        submission = pending.submission
        for tenant_id, expected in submission.expect.items():
            if self.versions[tenant_id] != expected:
                raise StaleFacts(tenant_id, expected, self.versions[tenant_id])
        remaining = self._spend(submission.spend)
        # One time for all entries of a submission, in whichever log, and none before an entry that stands there already.
        time_ms = max(self._now_ms, *(self.times_ms[entry.tenant_id] for entry in submission.entries))
        placed: list[Placed] = []
        leaf_rows: list[dict[str, Any]] = []
        record_rows: list[dict[str, Any]] = []
        added: dict[str, int] = {}
        for entry in submission.entries:
            tenant_id = entry.tenant_id
            nth = added.get(tenant_id, 0)
            index = self.heads[tenant_id].size + len(self.hashes[tenant_id]) + nth
            added[tenant_id] = nth + 1
            record = entry.record if isinstance(entry.record, bytes) else entry.record(time_ms)
            salt = os.urandom(SALT_BYTES)
            header = Leaf(entry.kind, time_ms, entry.actor, entry.owner, commit(salt, record)).to_bytes()
            leaf_rows.append(
                {"tenant_id": tenant_id, "leaf_index": index, "header": header.decode(), "hash": leaf_hash(header)}
            )
            record_rows.append({"tenant_id": tenant_id, "leaf_index": index, "salt": salt, "record": record})
            placed.append(Placed(tenant_id, index, time_ms, header))
        # Nothing below can fail.
        self._budgets |= remaining
        for row in leaf_rows:
            self.hashes[row["tenant_id"]].append(row["hash"])
            self.times_ms[row["tenant_id"]] = time_ms
        for tenant_id in submission.bump:
            self.versions[tenant_id] += 1
        self.leaf_rows += leaf_rows
        self.record_rows += record_rows
        versions = {tenant_id: self.versions[tenant_id] for tenant_id in pending.tenants}
        self.receipts.append((pending, Receipt(tuple(placed), versions)))

    def _spend(self, spends: Sequence[Spend]) -> dict[tuple[str, str], int]:
        remaining: dict[tuple[str, str], int] = {}
        for spend in spends:
            key = (spend.tenant_id, spend.name)
            left = remaining.get(key, self._budgets.get(key))
            if left is None or left < spend.amount:
                raise SpendRefused(spend.tenant_id, spend.name, spend.amount, left or 0)
            remaining[key] = left - spend.amount
        return remaining


def made_or_refused(pending: Pending, refused: list[tuple[Pending, Exception]]) -> bool:
    """Have a submission made, or add why it cannot be to those refused; whether it was made."""
    try:
        pending.make()
    except Exception as error:  # noqa: BLE001  # The caller's own; the caller gets it back.
        refused.append((pending, error))
        return False
    return True
