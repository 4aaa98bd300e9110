"""What a candidate would have answered: found out beside the answers, and never in their way.

Rules kept here:

- A candidate changes no answer and is waited for by none. A decision is handed over once it is durable, to a queue that is bounded; one
  thread of the process puts it to the candidate, on the very facts and the very request that were decided on. What finds no room is
  dropped, and counted as that.
- Tenants take turns, each with a queue of its own: one that asks a thousand times a second fills its own queue and nobody else's, and
  where all are full together the longest gives way. The thread works at most a quarter of the time, so that it takes no more of the
  processor from answers than that, whatever candidates cost.
- Errors mean no: a candidate that errs, that cannot be compiled, or under which the request is none, would have denied. It is a flip where
  the answer was yes. That it cannot be read now, since the database is away, says nothing of it: that is counted as dropped.
- What crosses a tenant's wall, and what is elsewhere, is not handed over: a candidate is told nothing of it, and nobody by it.
- What was found is telemetry. It is added to the tables every two seconds; a process that is killed takes with it what it had not yet
  written. Several apis each see to their own decisions, and their counts add up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Engine, delete, select
from sqlmodel import select as select_rows

from licet_engine.decide.bundle import CompiledBundle
from licet_engine.decide.cache import BoundedCache
from licet_engine.decide.decision import ERROR_ENGINE, Decision, Request, decide
from licet_engine.decide.entities import FactSet
from licet_engine.decide.errors import BundleError
from licet_engine.domain.refs import now_ms
from licet_engine.log.submission import core_table
from licet_engine.store.db import insert_if_absent, insert_or_add, tenant_session, write_transaction
from licet_engine.store.tables import PolicyBundle, PolicyFlip, PolicyShadowCount
from licet_engine.store.tables.shadow import COUNTED

if TYPE_CHECKING:
    from licet_engine.lifecycle.tenants import InForce, Shadow

logger = logging.getLogger(__name__)

KEPT_FLIPS: Final = 200
"""Of one shadow: the newest."""
_MAX_LINE: Final = 256
_MAX_LINE_BYTES: Final = 8 << 20
_MAX_WAITING: Final = 4096
_MAX_WAITING_BYTES: Final = 64 << 20
_BYTES_PER_ITEM: Final = 2048
"""What a decision that waits takes beside its facts and its context, roughly."""
_MAX_CANDIDATES: Final = 256
_MAX_CANDIDATE_BYTES: Final = 64 << 20
_WRITE_EVERY_S: Final = 2.0
_WRITTEN_TOGETHER: Final = 50
"""Tenants whose counts are written in one transaction."""
_SHARE: Final = 0.25
_LONGEST_DEBT_S: Final = 0.002
"""How much of its rest the thread puts off, since it cannot rest for microseconds."""
_PAUSE_S: Final = 1.0
"""How long candidates are not read after the database did not answer."""
_STOP_WITHIN_S: Final = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A durable decision, as a candidate is to be asked about it.

    Attributes:
        tenant: Whose it is.
        shadow: Which candidate.
        id: Of the decision.
        at_ms: When it was made.
        request: What was asked.
        facts: What it rests on.
        decision: What was answered.
    """

    tenant: str
    shadow: Shadow
    id: str
    at_ms: int
    request: Request
    facts: FactSet
    decision: Decision

    @classmethod
    def of(
        cls, in_force: InForce, decision_id: str, at_ms: int, *, request: Request, facts: FactSet, decision: Decision
    ) -> Judged | None:
        """A decision under the policies in force; None where no candidate runs beside them."""
        if in_force.shadow is None:
            return None
        return cls(in_force.tenant.tenant_id, in_force.shadow, decision_id, at_ms, request, facts, decision)

    @property
    def weight(self) -> int:
        """About how many bytes it holds."""
        return _BYTES_PER_ITEM + len(self.request.context_json or b"") + sum(len(fact.data) for fact in self.facts)


@dataclass(slots=True)
class _Line:
    """What waits of one tenant."""

    waiting: deque[tuple[Judged, int]] = field(default_factory=deque)
    weight: int = 0


@dataclass(slots=True)
class _Tally:
    """What was counted of one shadow and is not written yet."""

    counts: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    flips: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT_FLIPS))

    def count(self, kind: str, name: str, what: str, times: int = 1) -> None:
        """Count one thing."""
        counted = self.counts.setdefault((kind, name), dict.fromkeys(COUNTED, 0))
        counted[what] += times

    def count_decision(self, action: str, what: str) -> None:
        """Count a decision."""
        self.count("total", "", what)
        self.count("action", action, what)

    def add(self, earlier: _Tally) -> None:
        """Take over what could not be written."""
        for (kind, name), counted in earlier.counts.items():
            for what, times in counted.items():
                self.count(kind, name, what, times)
        self.flips = deque((*earlier.flips, *self.flips), maxlen=KEPT_FLIPS)


class Shadower:
    """Puts decisions to candidates, on a thread of its own.

    Args:
        engine: Of the store.
        counted: Told of each decision that was compared or dropped: ``same``, ``other_reasons``, ``to_deny``, ``to_allow`` or ``dropped``.
        write_every_s: How often what was found is written.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        counted: Callable[[str], None] = lambda _what: None,
        write_every_s: float = _WRITE_EVERY_S,
    ) -> None:
        self._engine = engine
        self._counted = counted
        self._write_every_s = write_every_s
        self._changed = threading.Condition()  # Guards the five below.
        self._lines: OrderedDict[str, _Line] = OrderedDict()
        self._waiting = 0
        self._weight = 0
        self._tallies: dict[tuple[str, str], _Tally] = {}
        self._closing = False
        # Of the thread alone.
        self._candidates: BoundedCache[tuple[str, str], CompiledBundle | str] = BoundedCache(
            max_entries=_MAX_CANDIDATES, max_weight=_MAX_CANDIDATE_BYTES
        )
        self._read_again_s = float("-inf")
        self._debt_s = 0.0
        self._thread = threading.Thread(target=self._run, name="licet-shadow", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Take nothing more, count what waits as dropped, write what was found, and end."""
        with self._changed:
            self._closing = True
            for line in self._lines.values():
                for judged, _ in line.waiting:
                    self._drop(judged)
            self._lines.clear()
            self._waiting = self._weight = 0
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(_STOP_WITHIN_S)

    def waiting(self) -> int:
        """How many decisions wait to be put to a candidate."""
        return self._waiting

    def offer(self, judged: Judged | None) -> None:
        """Hand over a decision that is durable; never blocks, and never raises for want of room."""
        if judged is None:
            return
        weight = judged.weight
        with self._changed:
            if self._closing or not self._has_room(judged.tenant, weight):
                self._drop(judged)
                return
            line = self._lines.setdefault(judged.tenant, _Line())
            line.waiting.append((judged, weight))
            line.weight += weight
            self._waiting += 1
            self._weight += weight
            if self._waiting == 1:
                self._changed.notify()

    def _has_room(self, tenant: str, weight: int) -> bool:
        """Whether a decision of a tenant's can wait, once the longest line gave way to a shorter one."""
        line = self._lines.get(tenant)
        mine, held = (0, 0) if line is None else (len(line.waiting), line.weight)
        if mine >= _MAX_LINE or held + weight > _MAX_LINE_BYTES:
            return False
        while self._waiting >= _MAX_WAITING or self._weight + weight > _MAX_WAITING_BYTES:
            longest = max(self._lines.values(), key=lambda each: len(each.waiting))
            if len(longest.waiting) <= mine + 1:
                return False
            judged, freed = longest.waiting.pop()
            longest.weight -= freed
            self._waiting -= 1
            self._weight -= freed
            self._drop(judged)
        return True

    def _drop(self, judged: Judged) -> None:
        self._tally(judged).count_decision(judged.request.action, "dropped")
        self._counted("dropped")

    def _tally(self, judged: Judged) -> _Tally:
        return self._tallies.setdefault((judged.tenant, judged.shadow.id), _Tally())

    # --- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        write_at_s = time.monotonic() + self._write_every_s
        while True:
            judged = self._take(write_at_s)
            if judged is not None:
                began_s = time.thread_time()
                self._compare(judged)
                self._rest(time.thread_time() - began_s)
            is_last = self._closing
            if is_last or time.monotonic() >= write_at_s:
                self._write()
                write_at_s = time.monotonic() + self._write_every_s
            if is_last:
                return

    def _take(self, until_s: float) -> Judged | None:
        """Wait for a decision, of the tenant whose turn it is; None when there is none by then, or it is over."""
        with self._changed:
            while not self._waiting and not self._closing:
                left_s = until_s - time.monotonic()
                if left_s <= 0 or not self._changed.wait(left_s):
                    return None
            if not self._waiting:
                return None
            tenant, line = self._lines.popitem(last=False)
            judged, weight = line.waiting.popleft()
            line.weight -= weight
            self._waiting -= 1
            self._weight -= weight
            if line.waiting:
                self._lines[tenant] = line  # The last in turn now.
        return judged

    def _rest(self, worked_s: float) -> None:
        self._debt_s += worked_s * (1 / _SHARE - 1)
        if self._debt_s >= _LONGEST_DEBT_S:
            time.sleep(self._debt_s)
            self._debt_s = 0.0

    def _compare(self, judged: Judged) -> None:
        try:
            candidate = self._candidate(judged)
        except Exception as error:  # noqa: BLE001 - whatever it is, it says nothing of the candidate, and there is a next decision.
            self._read_again_s = time.monotonic() + _PAUSE_S
            logger.warning("a candidate cannot be read", extra={"reason": f"{type(error).__name__}: {error}"})
            candidate = None
        after = None if candidate is None else _answer(candidate, judged)
        with self._changed:
            if after is None:
                self._drop(judged)
                return
            tally = self._tally(judged)
            what = _compared(judged.decision, after)
            tally.count_decision(judged.request.action, what)
            if what in {"to_deny", "to_allow"}:
                for policy in after.because:
                    tally.count("policy", policy, what)
                tally.flips.append(_flip(judged, after))
        self._counted(what)

    def _candidate(self, judged: Judged) -> CompiledBundle | str | None:
        """The candidate compiled, or why it cannot be; None if it cannot be read now."""
        key = (judged.tenant, judged.shadow.bundle_hex)
        known = self._candidates.get(key)
        if known is not None or time.monotonic() < self._read_again_s:
            return known
        with tenant_session(self._engine, judged.tenant) as session:
            row = session.exec(
                select_rows(PolicyBundle).where(PolicyBundle.digest_hex == judged.shadow.bundle_hex)
            ).first()
        body = b"" if row is None else row.body
        found: CompiledBundle | str
        try:
            found = CompiledBundle.from_bytes(body)
        except BundleError as error:
            found = str(error)
        self._candidates.put(key, found, len(body))
        return found

    # --- what was found --------------------------------------------------------------------------------------------

    def _write(self) -> None:
        with self._changed:
            tallies, self._tallies = self._tallies, {}
        # In order: of two apis that add to the same rows, neither then waits for the other that waits for it.
        keys = sorted(tallies)
        for first in range(0, len(keys), _WRITTEN_TOGETHER):
            some = keys[first : first + _WRITTEN_TOGETHER]
            try:
                with write_transaction(self._engine, *sorted({tenant for tenant, _ in some})) as connection:
                    for key in some:
                        _add(connection, *key, tallies[key])
            except Exception as error:  # noqa: BLE001 - whatever it is, the next turn may go better, and nothing is lost until then.
                logger.warning("flips are not written", extra={"reason": f"{type(error).__name__}: {error}"})
                with self._changed:
                    for key in some:
                        self._tallies.setdefault(key, _Tally()).add(tallies[key])


def _answer(candidate: CompiledBundle | str, judged: Judged) -> Decision:
    """What a candidate answers; whatever goes wrong, it is a no."""
    if isinstance(candidate, str):
        return Decision(allowed=False, errors=(ERROR_ENGINE,), messages=((ERROR_ENGINE, candidate),))
    try:
        # The facts are parsed for it alone: what an active bundle may take of memory for them, a candidate may not.
        return decide(candidate, judged.request, judged.facts, remember=False)
    except Exception as error:  # noqa: BLE001 - errors mean no, and the thread must go on.
        return Decision(allowed=False, errors=(ERROR_ENGINE,), messages=((ERROR_ENGINE, type(error).__name__),))


def _compared(before: Decision, after: Decision) -> str:
    if before.allowed != after.allowed:
        return "to_allow" if after.allowed else "to_deny"
    return "same" if (before.reasons, before.errors) == (after.reasons, after.errors) else "other_reasons"


def _flip(judged: Judged, after: Decision) -> dict[str, Any]:
    request = judged.request
    return {
        "tenant_id": judged.tenant,
        "shadow": judged.shadow.id,
        "decision": judged.id,
        "at_ms": judged.at_ms,
        "principal": request.principal.id,
        "action": request.action,
        "resource": str(request.resource),
        "before": _told(judged.decision),
        "after": _told(after),
    }


def _told(decision: Decision) -> dict[str, Any]:
    return {"decision": decision.word, "reasons": list(decision.reasons), "errors": list(decision.errors)}


def _add(connection: Connection, tenant: str, shadow: str, tally: _Tally) -> None:
    """Add what was counted to the rows of one shadow, and keep the newest of its flips."""
    at_ms = now_ms()
    counts, flips = core_table(PolicyShadowCount), core_table(PolicyFlip)
    rows = [
        {"tenant_id": tenant, "shadow": shadow, "kind": kind, "name": name, **counted, "at_ms": at_ms}
        for (kind, name), counted in sorted(tally.counts.items())
    ]
    if rows:
        connection.execute(insert_or_add(connection, counts, add=COUNTED, replace=("at_ms",)), rows)
    if not tally.flips:
        return
    connection.execute(insert_if_absent(connection, flips), list(tally.flips))
    of_shadow = (flips.c.tenant_id == tenant, flips.c.shadow == shadow)
    newest = select(flips.c.decision).where(*of_shadow).order_by(flips.c.at_ms.desc(), flips.c.decision.desc())
    connection.execute(delete(flips).where(*of_shadow, flips.c.decision.not_in(newest.limit(KEPT_FLIPS))))
