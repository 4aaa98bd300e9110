"""The sequencer: the one thread of a process through which everything gets into the logs.

Rules kept here:

1. Nothing is answered before it is durable (law 2). An entry, what it was decided on, what it changes and what it starts are one
   transaction: all of it or nothing.
2. A submission commits only if every facts version it expects is still the current one, read under the lock of the head row; else it
   alone fails with `StaleFacts`. The others of its group are not affected.
3. Consumables are spent submission by submission, so two of one group cannot spend the same.
4. Time never runs backwards in a log: an entry's time is the clock's, or the last entry's where that is later.
5. Nothing that matters is remembered between two groups. Heads are read under the lock each time, so any number of sequencers, in
   any number of processes, may write to one database.
6. Nothing is appended to a log that is shorter than it was here, or than was signed: it was put back, and what is appended to it is lost when
   the newer database is. A sequencer that lost what it logged itself goes on only when it is started again.

The way of a group, and what a crash leaves at each step:

    wait for submissions               nothing is written; callers were not answered
    lock the heads, in tenant order    nothing
    plan in memory                     nothing
    write, commit (one fsync)          all of the group, or nothing; callers were not answered, and find out by asking again
    answer                             the group is durable; a caller whose answer is lost finds it in the log

Whoever was found stale again and again may have a submission made under the lock (`UnderLock`): in a group of its own, from what is
committed, while nobody can commit anything else to those logs. It cannot be stale.

A group that fails is rolled back and its submissions are tried one by one, so that one bad submission fails alone. If the commit itself
breaks off, the log is asked whether the group is there (its leaves are salted, so nobody else can have written them), and what a failed
commit may have left behind is written over, before anything is tried again: nothing is appended, spent or started twice, and what was said
not to be logged is not found in the log after a crash.
"""

import asyncio
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import Connection, Engine, Table, bindparam, insert, select, text, tuple_, update

from licet_attestations.errors import FormatError
from licet_engine.log import store
from licet_engine.log.errors import (
    InvalidSubmission,
    LogBusy,
    LogError,
    LogPutBack,
    LogUnavailable,
    StaleFacts,
    SubmissionConflict,
)
from licet_engine.log.group import GroupFailed, Pending, Plan, made_or_refused
from licet_engine.log.submission import (
    Insert,
    Receipt,
    Submission,
    UnderLock,
    Update,
    core_table,
    tenants_of,
    verify_submission,
)
from licet_engine.store.db import insert_if_absent, overwrite_what_failed, read_transaction, write_transaction
from licet_engine.store.postgres import is_postgres
from licet_engine.store.tables import Budget

logger = logging.getLogger(__name__)

DEFAULT_MAX_QUEUED: Final = 10_000
DEFAULT_MAX_GROUP: Final = 512
DEFAULT_MAX_CLOCK_STEP_BACK_MS: Final = 1_000
MAX_TRIES: Final = 3
"""How often something is made on facts that may grow stale, before it is made under the lock."""
_MAX_COSTLY_TRIES: Final = 8
GATHER_S: Final = 0.002
"""How long a group waits for as many as the one before had."""

_BUDGETS: Final = store.table_of(Budget)
_INSERT_LEAVES: Final = insert(store.LEAVES)
_INSERT_RECORDS: Final = insert(store.RECORDS)
_INSERT_HEADS: Final = insert(store.HEADS)
_HEAD_COLUMNS: Final = ("size", "root", "frontier", "facts_version", "last_time_ms")
_UPDATE_HEADS: Final = (
    update(store.HEADS)
    .where(store.HEADS.c.tenant_id == bindparam("head_tenant_id"))
    .values({name: bindparam(f"head_{name}") for name in _HEAD_COLUMNS})
)
_SPEND: Final = (
    update(_BUDGETS)
    .where(
        _BUDGETS.c.tenant_id == bindparam("of_tenant_id"),
        _BUDGETS.c.name == bindparam("of_name"),
        _BUDGETS.c.remaining >= bindparam("amount"),
    )
    .values(remaining=_BUDGETS.c.remaining - bindparam("amount"))
)


def wall_clock_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Counters:
    """What the sequencer counted since it started; read by metrics."""

    groups: int = 0
    submissions: int = 0
    entries: int = 0
    refused: int = 0
    failed_groups: int = 0
    recovered_commits: int = 0
    """Commits that broke off and were found durable."""
    clock_steps_back: int = 0
    """Groups whose clock was behind a log's last entry by more than the bound."""


class Sequencer:
    """Appends submissions to the logs, in groups, on a thread of its own.

    Args:
        engine: From `open_engine`.
        enqueue: Called with the transaction's connection and each item of ``Submission.enqueue``; it must write through that connection only.
        clock_ms: Milliseconds since the epoch.
        max_queued: Submissions that may wait; beyond it `LogBusy`.
        max_group: Submissions in one transaction.
        max_clock_step_back_ms: How far the clock may be behind a log before it is counted and warned of.
        observe: Told of each group: how many submissions, and how many seconds until they were durable or refused.
        verify_logs: Asked before each group whether its logs may be appended to; raises `LogError` where they may not.
        put_back: Told of a log that is not what it was.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        enqueue: Callable[[Connection, Any], None] | None = None,
        clock_ms: Callable[[], int] = wall_clock_ms,
        max_queued: int = DEFAULT_MAX_QUEUED,
        max_group: int = DEFAULT_MAX_GROUP,
        max_clock_step_back_ms: int = DEFAULT_MAX_CLOCK_STEP_BACK_MS,
        observe: Callable[[int, float], None] = lambda _submissions, _duration_s: None,
        verify_logs: Callable[[Iterable[str]], None] = lambda _tenants: None,
        put_back: Callable[[str], None] = lambda _tenant: None,
    ) -> None:
        self._put_back = put_back
        self._observe = observe
        self._verify_logs = verify_logs
        self.counters = Counters()
        self._engine = engine
        self._enqueue = enqueue
        self._clock_ms = clock_ms
        self._max_queued = max_queued
        self._max_group = max_group
        self._max_clock_step_back_ms = max_clock_step_back_ms
        self._changed = threading.Condition()  # Guards the three below.
        self._queue: deque[Pending] = deque()
        self._closing = False
        self._wanted = 0  # Of the thread: at how many that wait it is to be woken; 0 for never.
        self._last_group = 1
        self._updates: dict[tuple[Any, ...], Any] = {}  # Of the thread: statements by shape.
        self._reached: dict[
            str, tuple[int, bytes]
        ] = {}  # Of the thread: size and root of each log after the last group here.
        self._begun: set[str] = set()  # Of the thread: logs that are known to have a head row, which none ever loses.
        self._thread = threading.Thread(target=self._run, name="licet-sequencer", daemon=True)
        self._thread.start()

    # --- For callers, on any thread -------------------------------------------------------------------------------------

    def submit(self, submission: Submission | UnderLock) -> "Future[Receipt]":
        """Hand in a submission.

        Args:
            submission: Tried as it is, perhaps more than once; not to be changed afterwards.

        Returns:
            Resolved once everything is durable, or with why it is not: `StaleFacts`, `SpendRefused`, `SubmissionConflict`,
            `InvalidSubmission`, `LogUnavailable`, or what making it under the lock raised. Cancelling has no effect once the group is
            under way.

        Raises:
            InvalidSubmission: It contradicts itself.
            LogBusy: Too much waits.
            LogUnavailable: The sequencer is closed.
        """
        future: Future[Receipt] = Future()
        self._put(Pending(submission, tenants_of(submission), future, None))
        return future

    def submit_async(self, submission: Submission | UnderLock) -> "asyncio.Future[Receipt]":
        """Hand in a submission from a coroutine; as `submit`, with a future of the running loop.

        A loop is woken once for all of its futures that a group resolves.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Receipt] = loop.create_future()
        self._put(Pending(submission, tenants_of(submission), future, loop))
        return future

    def append(self, submission: Submission | UnderLock, timeout_s: float | None = None) -> Receipt:
        """Hand in a submission and wait until it is durable."""
        return self.submit(submission).result(timeout_s)

    def append_fresh(
        self,
        make: Callable[[], Submission],
        *,
        again_on: tuple[type[LogError], ...] = (),
        locks: bool = True,
    ) -> Receipt:
        """Append what is made on the facts of now, and wait until it is durable.

        It is made again where it was stale, and after a few times under the lock, so that facts that change all the time hold up nobody for
        ever.

        Args:
            make: Makes the submission; see `UnderLock`. What it raises comes back.
            again_on: Refusals beside `StaleFacts` after which it is made again.
            locks: Whether it may be made under the lock; where making it is costly it may not, for everybody else would wait.

        Raises:
            StaleFacts: It may not be made under the lock, and the facts changed each time.
            LogError: See `submit`.
        """
        again: tuple[type[Exception], ...] = (StaleFacts, *again_on)
        tenants: frozenset[str] = frozenset()
        for left in reversed(range(MAX_TRIES if locks else _MAX_COSTLY_TRIES)):
            submission = make()
            tenants = verify_submission(submission)
            try:
                return self.append(submission)
            except again:
                if not left and not locks:
                    raise
        return self.append(UnderLock(tenants, make))

    def queued(self) -> int:
        """How many submissions wait."""
        return len(self._queue)

    def is_alive(self) -> bool:
        """Whether submissions are accepted."""
        return not self._closing and self._thread.is_alive()

    def verify_database(self) -> None:
        """Ask the database something, as whoever writes to it.

        Raises:
            Exception: It does not answer.
        """
        with read_transaction(self._engine) as connection:
            connection.execute(text("SELECT 1"))

    def close(self, timeout_s: float = 30.0) -> None:
        """Accept nothing more, log what waits, and end the thread.

        Raises:
            LogUnavailable: The thread did not end in time.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise LogUnavailable(f"the sequencer did not end within {timeout_s} s", may_be_logged=True)

    def _put(self, pending: Pending) -> None:
        with self._changed:
            if self._closing:
                raise LogUnavailable("the log is closed: nothing more is accepted")
            if len(self._queue) >= self._max_queued:
                raise LogBusy(f"{len(self._queue)} submissions wait to be logged: try again later")
            self._queue.append(pending)
            if len(self._queue) == self._wanted:
                self._changed.notify()

    # --- The thread -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        group: list[Pending] = []
        try:
            while (taken := self._take()) is not None:
                group = taken
                if group:
                    began_s = time.perf_counter()
                    together = [pending for pending in group if isinstance(pending.handed_in, Submission)]
                    if together:
                        self._sequence(together)
                    for pending in group:
                        if isinstance(pending.handed_in, UnderLock):
                            # By itself: what stands before it in its own group would not be committed when it is made.
                            self._sequence([pending])
                    self._answer(group)
                    self._observe(len(group), time.perf_counter() - began_s)
        except BaseException as error:  # The thread ends here, whatever it was; nobody may wait for it for ever.
            logger.exception("the sequencer stopped")
            with self._changed:
                self._closing = True
                abandoned = [*group, *self._queue]
                self._queue.clear()
            for pending in abandoned:
                unavailable = LogUnavailable("the sequencer stopped", may_be_logged=pending in group)
                unavailable.__cause__ = error
                pending.outcome = pending.outcome or unavailable
            self._answer(abandoned)

    def _take(self) -> list[Pending] | None:
        """Wait for submissions and take a group of them; ``None`` once all is done and the sequencer closes."""
        with self._changed:
            while not self._queue and not self._closing:
                self._wait(1, None)
            # Callers that were answered together come back together. Those who come first wait a moment for the rest: a
            # group costs the same for one as for twenty, and its writing would only hold up the others' thread.
            until_s = time.monotonic() + GATHER_S
            while len(self._queue) < self._last_group and not self._closing:
                left_s = until_s - time.monotonic()
                if left_s <= 0 or not self._wait(self._last_group, left_s):
                    break
            if not self._queue:
                return None
            taken = [self._queue.popleft() for _ in range(min(len(self._queue), self._max_group))]
            self._last_group = len(taken)
        # From here on a future of ours cannot be cancelled any more; what was cancelled before is not logged.
        return [pending for pending in taken if pending.loop is not None or _starts(pending.future)]

    def _wait(self, wanted: int, timeout_s: float | None) -> bool:
        """Wait until so many submissions are there, or the sequencer closes; whether that came before the time was over."""
        self._wanted = wanted
        came = self._changed.wait(timeout_s)
        self._wanted = 0
        return came

    def _sequence(self, group: list[Pending]) -> None:
        """Give every submission of the group its outcome."""
        try:
            self._commit(group)
        except GroupFailed as failure:
            self.counters.failed_groups += 1
            logger.warning(
                "a group was not logged", extra={"submissions": len(group), "error": repr(failure.__cause__)}
            )
            if len(group) == 1 or not failure.retryable:
                for pending in group:
                    pending.outcome = failure.for_caller()
                return
            # Nothing of the group is durable. One by one, so that what is wrong with one is not visited on the others.
            for pending in group:
                self._sequence([pending])

    def _commit(self, group: list[Pending]) -> None:
        """Try to commit a group in one transaction; sets outcomes only where all of it is decided."""
        reached, plan = "begin", None
        try:
            tenants = frozenset[str]().union(*(pending.tenants for pending in group))
            self._verify_logs(tenants)
            self._begin_logs(tenants)
            with write_transaction(self._engine, *tenants) as connection:
                reached = "write"
                plan = self._plan(connection, group)
                if plan.receipts:
                    self._write(connection, plan)
                reached = "commit"
            # From here on the group is durable.
        except Exception as error:
            if reached != "commit" or plan is None or not plan.receipts:
                # Rolled back, by us or because the connection is gone. Where not even a transaction could be begun, trying every
                # submission by itself would only wait as often.
                raise GroupFailed(retryable=reached != "begin", may_be_logged=False) from error
            # The commit broke off: it may have been made or not.
            if not self._is_durable(plan):
                raise GroupFailed(retryable=True, may_be_logged=False) from error
            self.counters.recovered_commits += 1
            logger.warning("a commit reported an error but is durable", extra={"error": repr(error)})
        self._reached |= plan.reached
        self.counters.groups += 1
        self.counters.submissions += len(plan.receipts)
        self.counters.entries += len(plan.leaf_rows)
        self.counters.refused += len(plan.refused)
        for pending, receipt in plan.receipts:
            pending.outcome = receipt
        for pending, refusal in plan.refused:
            pending.outcome = refusal

    def _begin_logs(self, tenants: frozenset[str]) -> None:
        """On PostgreSQL, see that there is a head to lock in every log; on SQLite all writers wait for each other anyway."""
        if is_postgres(self._engine) and (new := tenants - self._begun):
            with write_transaction(self._engine, *new) as connection:
                store.ensure_heads(connection, new)
            self._begun |= new

    def _is_durable(self, plan: "Plan") -> bool:
        """Ask the log whether a group is in it whose commit broke off; if it is not, it never will be."""
        row = plan.leaf_rows[0]
        try:
            # Under the lock: whatever became of the transaction, it is over then.
            with write_transaction(self._engine, row["tenant_id"]) as connection:
                store.read_heads(connection, (row["tenant_id"],), lock=True)
                found = bool(store.read_hash(connection, row["tenant_id"], row["leaf_index"]) == row["hash"])
                if not found:
                    overwrite_what_failed(connection)
        except Exception as error:
            raise GroupFailed(retryable=False, may_be_logged=True) from error
        return found

    def _plan(self, connection: Connection, group: list[Pending]) -> "Plan":
        """Lock the heads and decide, in order, which submissions are accepted and what they write."""
        heads = store.read_heads(connection, {tenant for pending in group for tenant in pending.tenants}, lock=True)
        for tenant_id, head in heads.items():
            size, root = self._reached.get(tenant_id, (0, head.root))
            if head.size < size or (head.size == size and head.root != root):
                logger.critical("a log is not what it was", extra={"tenant": tenant_id, "size": head.size, "was": size})
                self._put_back(tenant_id)
                raise LogPutBack
        refused: list[tuple[Pending, Exception]] = []
        made = [pending for pending in group if made_or_refused(pending, refused)]
        budgets = _read_budgets(connection, made)
        now_ms = self._clock_ms()
        ahead_ms = max(head.last_time_ms for head in heads.values()) - now_ms
        if ahead_ms > self._max_clock_step_back_ms:
            self.counters.clock_steps_back += 1
            logger.warning("the clock is behind the log", extra={"behind_ms": ahead_ms})
        plan = Plan(heads, budgets, now_ms)
        plan.refused += refused
        for pending in made:
            try:
                plan.accept(pending)
            except LogError as refusal:
                plan.refused.append((pending, refusal))
            except FormatError as error:
                plan.refused.append((pending, InvalidSubmission(f"the entry has no valid header: {error}")))
            except Exception as error:  # noqa: BLE001  # The caller's own, from making its record; the caller gets it back.
                plan.refused.append((pending, error))
        return plan

    def _write(self, connection: Connection, plan: "Plan") -> None:
        """Write what a plan accepted; every statement for the whole group at once."""
        connection.execute(_INSERT_LEAVES, plan.leaf_rows)
        connection.execute(_INSERT_RECORDS, plan.record_rows)
        self._write_heads(connection, plan)
        submissions = [pending.submission for pending, _ in plan.receipts]
        if any(submission.companions for submission in submissions):
            _write_inserts(connection, plan)
            self._write_updates(connection, plan)
        spends = [spend for submission in submissions for spend in submission.spend]
        if spends:
            # The condition is in the statement too: what was read under the lock is not what makes it safe.
            rows = [
                {"of_tenant_id": spend.tenant_id, "of_name": spend.name, "amount": spend.amount} for spend in spends
            ]
            if connection.execute(_SPEND, rows).rowcount != len(rows):
                raise SubmissionConflict("a budget changed outside the sequencer")
        for submission in submissions:
            for item in submission.enqueue:
                if self._enqueue is None:
                    raise InvalidSubmission("this sequencer has nowhere to enqueue to")
                self._enqueue(connection, item)

    def _write_heads(self, connection: Connection, plan: "Plan") -> None:
        new: list[dict[str, Any]] = []
        known: list[dict[str, Any]] = []
        for tenant_id, head in plan.heads.items():
            hashes = plan.hashes[tenant_id]
            if not hashes and plan.versions[tenant_id] == head.facts_version:
                continue
            frontier = store.frontier_of(head)
            tiles = store.TileWriter(connection, tenant_id)
            frontier.append_many(hashes, tiles.emit)
            tiles.write()
            root = frontier.root()
            plan.reached[tenant_id] = (frontier.size, root)
            values = (
                frontier.size,
                root,
                b"".join(frontier.hashes()),
                plan.versions[tenant_id],
                plan.times_ms[tenant_id],
            )
            if head.stored:
                known.append(
                    {"head_tenant_id": tenant_id}
                    | {f"head_{name}": value for name, value in zip(_HEAD_COLUMNS, values, strict=True)}
                )
            else:
                new.append({"tenant_id": tenant_id} | dict(zip(_HEAD_COLUMNS, values, strict=True)))
        if new:
            connection.execute(_INSERT_HEADS, new)
        if known:
            connection.execute(_UPDATE_HEADS, known)

    def _write_updates(self, connection: Connection, plan: "Plan") -> None:
        batches: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
        for pending, receipt in plan.receipts:
            for companion in pending.submission.companions:
                if not isinstance(companion, Update):
                    continue
                table = core_table(companion.table)
                values = _with_places(companion.values, companion, receipt)
                key_shape = tuple((name, value is None) for name, value in companion.key.items())
                shape = (table, key_shape, tuple(values))
                row = {f"key_{name}": value for name, value in companion.key.items() if value is not None}
                row |= {f"new_{name}": value for name, value in values.items()}
                if companion.expected_rows == 1 and set(table.primary_key.columns.keys()) <= companion.key.keys():
                    # Each matches one row or none, so the sum tells whether every one matched.
                    batches[shape].append(row)
                else:
                    found = connection.execute(self._update_of(shape), row).rowcount
                    if companion.expected_rows not in {None, found}:
                        raise SubmissionConflict(
                            f"{found} rows of {table.name!r} are as expected, not {companion.expected_rows}"
                        )
        for shape, rows in batches.items():
            if connection.execute(self._update_of(shape), rows).rowcount != len(rows):
                raise SubmissionConflict(f"a row of {shape[0].name!r} is not as expected: look at it again")

    def _update_of(self, shape: tuple[Any, ...]) -> Any:
        if shape not in self._updates:
            table, key_shape, names = shape
            statement = update(table).values({name: bindparam(f"new_{name}") for name in names})
            for name, is_null in key_shape:
                column = table.c[name]
                statement = statement.where(column.is_(None) if is_null else column == bindparam(f"key_{name}"))
            self._updates[shape] = statement
        return self._updates[shape]

    def _answer(self, group: Iterable[Pending]) -> None:
        """Resolve futures: those of a loop all in one wake-up of it."""
        by_loop: dict[asyncio.AbstractEventLoop, list[Pending]] = {}
        for pending in group:
            if pending.loop is not None:
                by_loop.setdefault(pending.loop, []).append(pending)
            else:
                _resolve((pending,))
        for loop, resolved in by_loop.items():
            try:
                loop.call_soon_threadsafe(_resolve, resolved)
            except RuntimeError:
                # The loop is closed, and whoever waited on it is gone. What is logged stays logged.
                logger.info(
                    "a loop was closed before its submissions were answered", extra={"submissions": len(resolved)}
                )


def _read_budgets(connection: Connection, group: list[Pending]) -> dict[tuple[str, str], int]:
    wanted = sorted({(spend.tenant_id, spend.name) for pending in group for spend in pending.submission.spend})
    if not wanted:
        return {}
    query = select(_BUDGETS.c.tenant_id, _BUDGETS.c.name, _BUDGETS.c.remaining).where(
        tuple_(_BUDGETS.c.tenant_id, _BUDGETS.c.name).in_(wanted)
    )
    return {(row.tenant_id, row.name): row.remaining for row in connection.execute(query.with_for_update())}


def _write_inserts(connection: Connection, plan: Plan) -> None:
    batches: dict[tuple[Table, bool, tuple[str, ...]], list[dict[str, Any]]] = defaultdict(list)
    for pending, receipt in plan.receipts:
        for companion in pending.submission.companions:
            if isinstance(companion, Insert):
                table = core_table(companion.table)
                for row in companion.rows:
                    values = _with_places(row, companion, receipt)
                    batches[table, companion.if_absent, tuple(sorted(values))].append(values)
    # In the order of foreign keys, which the order of submissions in a group need not keep.
    rank = _rank_of_tables(frozenset(table for table, _, _ in batches))
    for table, if_absent, names in sorted(batches, key=lambda batch: rank[batch[0]]):
        statement = insert_if_absent(connection, table) if if_absent else _insert_into(table)
        connection.execute(statement, batches[table, if_absent, names])


_insert_into = lru_cache(maxsize=256)(insert)


@lru_cache(maxsize=256)
def _rank_of_tables(tables: frozenset[Table]) -> dict[Table, int]:
    if len(tables) <= 1:
        return dict.fromkeys(tables, 0)
    ordered = next(iter(tables)).metadata.sorted_tables
    return {table: rank for rank, table in enumerate(ordered) if table in tables}


def _with_places(values: Mapping[str, Any], companion: Insert | Update, receipt: Receipt) -> dict[str, Any]:
    if not companion.placed:
        return dict(values)
    places = {name: getattr(receipt.placed[entry], of) for name, (entry, of) in companion.placed.items()}
    return {**values, **places}


def _starts(future: "Future[Receipt] | asyncio.Future[Receipt]") -> bool:
    return isinstance(future, Future) and future.set_running_or_notify_cancel()


def _resolve(group: Iterable[Pending]) -> None:
    for pending in group:
        future, outcome = pending.future, pending.outcome
        if future.done():
            continue  # Cancelled by its caller; what is logged stays logged.
        if isinstance(outcome, Receipt):
            future.set_result(outcome)
        else:
            future.set_exception(outcome or LogUnavailable("the sequencer gave no outcome", may_be_logged=True))
