"""The account of an endpoint's invocations, as the router tells it in batches.

Rules kept here:

- Invocations are accounted for without gaps: a batch begins right after the last one. What overlaps, leaves a gap, does
  not add up or names a session that was not allowed is refused, and the log says so, once for each batch.
- The account is telemetry and bumps no facts version. A batch may be told again after a lost answer.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Engine, delete
from sqlmodel import col, select

from licet_adapters.serving.histogram import OUTCOMES
from licet_attestations import canonical
from licet_engine.domain.errors import Busy, Conflict, InvalidInput
from licet_engine.lifecycle.endpoints import MAX_NUMBER, VERSION_NUMBER, WORD, own_entry, own_name
from licet_engine.log.errors import SubmissionConflict
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import Insert, Submission, Update
from licet_engine.store import tables
from licet_engine.store.db import tenant_session

KEPT_BATCHES: Final = 1000
"""Batches of an endpoint that stay as rows; all of them stand in the log."""
_PRUNED_EVERY: Final = 64
"""Batches of an endpoint, after which those too many are removed: each removal waits for the one writer."""
_MAX_TRIES: Final = 8
_MAX_GROUPS: Final = 50_000
_CHUNK: Final = 500
_MAX_REFUSED: Final = 10_000


class AccountBroken(Conflict):
    """A batch of invocations is not what comes next; it was refused, and the log says so."""

    default_code = "account-broken"


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of invocations as the router reports it.

    Attributes:
        router: Which router.
        epoch: Which life of it.
        first: Number of its first invocation; the last batch ended right before.
        last: Number of its last.
        lost: Numbers that were reserved, and of which it is not known whether they were used.
        groups: Session, version and status with how many.
    """

    router: str
    epoch: str
    first: int
    last: int
    lost: int
    groups: tuple[Mapping[str, Any], ...]

    @classmethod
    def parse(cls, sent: Any) -> Batch:
        """Read a batch.

        Raises:
            InvalidInput: It has not the form of one.
        """
        match sent:
            case {
                "router": str(),
                "epoch": str() | int(),
                "first": int(),
                "last": int(),
                "lost": int(),
                "groups": list(),
            }:
                pass
            case _:
                raise InvalidInput("a batch has router, epoch, first, last, lost and groups")
        numbers = (sent["first"], sent["last"], sent["lost"])
        if not all(type(n) is int and 0 <= n <= MAX_NUMBER for n in numbers) or not 1 <= sent["first"] <= sent["last"]:
            raise InvalidInput("a batch's numbers are integers, first from 1 and not after last")
        if not WORD.fullmatch(sent["router"]) or not WORD.fullmatch(str(sent["epoch"])):
            raise InvalidInput("a batch's router and epoch are plain words")
        if len(sent["groups"]) > _MAX_GROUPS:
            raise InvalidInput(f"a batch has at most {_MAX_GROUPS} groups; report more often")
        groups = tuple(_group(group) for group in sent["groups"])
        return cls(sent["router"], str(sent["epoch"]), *numbers, groups)

    @property
    def fault(self) -> str:
        """Why it does not add up, or nothing."""
        counted = sum(group["count"] for group in self.groups) + self.lost
        spanned = self.last - self.first + 1
        return "" if counted == spanned else f"it counts {counted} of {spanned} numbers"

    def to_json(self) -> dict[str, Any]:
        """As it stands in the log."""
        return {
            "router": self.router,
            "epoch": self.epoch,
            "first": self.first,
            "last": self.last,
            "lost": self.lost,
            "groups": [dict(group) for group in self.groups],
        }


def _group(sent: Any) -> Mapping[str, Any]:
    match sent:
        case {"session": str(session), "version": int() | str() as version, "status": str(status), "count": int(count)}:
            number = str(version)
            # ``0`` stands for requests that ended before a version was chosen for them.
            is_plain = WORD.fullmatch(session) and (VERSION_NUMBER.fullmatch(number) or number == "0")
            if is_plain and status in OUTCOMES and type(count) is int and 0 < count <= MAX_NUMBER:
                return {"session": session, "version": number, "status": status, "count": count}
    raise InvalidInput(f"a group has session, version, status ({', '.join(OUTCOMES)}) and a count above 0")


class InvocationAccounts:
    """The accounts of all endpoints.

    Args:
        engine: Of the store.
        sequencer: Through which everything gets into the logs.
    """

    def __init__(self, engine: Engine, sequencer: Sequencer) -> None:
        self._engine, self._sequencer = engine, sequencer
        self._lock = threading.Lock()
        self._since_pruned: Counter[tuple[str, str]] = Counter()
        self._refused: OrderedDict[tuple[str, str, str], None] = OrderedDict()

    def last(self, tenant: str, endpoint: str) -> int:
        """The last number that is accounted for; a router that starts goes on from there.

        Raises:
            InvalidInput: It was never deployed.
        """
        name = own_name(tenant, endpoint)
        with tenant_session(self._engine, tenant) as session:
            count = session.exec(select(tables.InvocationCount).where(tables.InvocationCount.endpoint == name)).first()
        if count is None:
            raise InvalidInput(f"{endpoint} was never deployed")
        return count.last

    def take(self, tenant: str, endpoint: str, batch: Any) -> int:
        """Account for a batch of invocations and return the last number; one that was reported before is answered alike.

        Raises:
            AccountBroken: It is not what comes next, or does not add up; the log says that it was refused.
        """
        name = own_name(tenant, endpoint)
        sent = Batch.parse(batch)
        for _ in range(_MAX_TRIES):
            with tenant_session(self._engine, tenant) as session:
                count = session.exec(
                    select(tables.InvocationCount).where(tables.InvocationCount.endpoint == name)
                ).first()
                known = session.exec(
                    select(tables.InvocationBatch).where(
                        tables.InvocationBatch.endpoint == name, tables.InvocationBatch.first == sent.first
                    )
                ).first()
                if count is None:
                    raise InvalidInput(f"{endpoint} was never deployed")
                if known is not None and (known.router, known.epoch, known.last) == (
                    sent.router,
                    sent.epoch,
                    sent.last,
                ):
                    return count.last
                fault = sent.fault or self._fault(session, endpoint, sent)
            if sent.first != count.last + 1:
                word = "overlaps what was reported" if sent.first <= count.last else "leaves a gap"
                fault = f"it {word}: the next number is {count.last + 1}, not {sent.first}"
            if fault:
                self._refuse(tenant, endpoint, sent, fault)
                raise AccountBroken(f"the invocations of {endpoint} are refused: {fault}")
            try:
                self._sequencer.append(_account(tenant, endpoint, name, count, sent))
            except SubmissionConflict:
                continue  # Another report of the same came first: look again.
            with self._lock:
                self._since_pruned[tenant, name] += 1
                is_due = not self._since_pruned[tenant, name] % _PRUNED_EVERY
            if is_due:
                self._prune(tenant, name, sent.first)
            return sent.last
        raise Busy(f"the account of {endpoint} is written by others all the time; try again")

    def _fault(self, session: Any, endpoint: str, batch: Batch) -> str:
        """Why the groups of a batch cannot be, or nothing: each stands on a session that was allowed."""
        unknown = {str(group["session"]) for group in batch.groups}
        for named in _chunks(sorted(unknown)):
            query = select(tables.Decision.id).where(
                col(tables.Decision.id).in_(named),
                tables.Decision.action == "endpoint.invoke",
                tables.Decision.resource == endpoint,
                col(tables.Decision.allowed).is_(True),
            )
            unknown -= set(session.exec(query).all())
        return f"no session {min(unknown)} was allowed on it" if unknown else ""

    def _refuse(self, tenant: str, endpoint: str, batch: Batch, fault: str) -> None:
        """Log a refusal, once for each batch, so that a router that insists does not fill the log."""
        key = (tenant, endpoint, canonical.digest_hex(batch.to_json()))
        with self._lock:
            if key in self._refused:
                return
            self._refused[key] = None
            while len(self._refused) > _MAX_REFUSED:
                self._refused.popitem(last=False)
        fixed = {
            "v": 1,
            "type": "invocations",
            "event": "refused",
            "endpoint": endpoint,
            "why": fault,
            "batch_digest": key[2],
            **{name: value for name, value in batch.to_json().items() if name != "groups"},
        }
        self._sequencer.append(Submission(entries=[own_entry(tenant, "invocations", fixed)]))

    def _prune(self, tenant: str, name: str, first: int) -> None:
        with tenant_session(self._engine, tenant, write=True) as session:
            kept = session.exec(
                select(tables.InvocationBatch.first)
                .where(tables.InvocationBatch.endpoint == name)
                .order_by(col(tables.InvocationBatch.first).desc())
                .offset(KEPT_BATCHES)
                .limit(1)
            ).first()
            if kept is not None and kept < first:
                session.exec(
                    delete(tables.InvocationBatch).where(
                        col(tables.InvocationBatch.endpoint) == name, col(tables.InvocationBatch.first) <= kept
                    )
                )


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """As many names at a time as one query takes."""
    for start in range(0, len(names), _CHUNK):
        yield names[start : start + _CHUNK]


def _account(tenant: str, endpoint: str, name: str, count: tables.InvocationCount, batch: Batch) -> Submission:
    totals: dict[str, dict[str, int]] = {version: dict(by) for version, by in count.totals.items()}
    for group in batch.groups:
        of_version = totals.setdefault(str(group["version"]), {})
        of_version[group["status"]] = of_version.get(group["status"], 0) + group["count"]
    fixed = {"v": 1, "type": "invocations", "event": "counted", "endpoint": endpoint, **batch.to_json()}
    row = {"tenant_id": tenant, "endpoint": name, **batch.to_json()}
    return Submission(
        entries=[own_entry(tenant, "invocations", fixed)],
        companions=[
            Insert(tables.InvocationBatch, [row], placed={"leaf_index": (0, "index"), "at_ms": (0, "time_ms")}),
            # Only right after the number it was looked at with: of two reports at once one is refused here.
            Update(
                tables.InvocationCount,
                {"tenant_id": tenant, "endpoint": name, "last": count.last},
                {"last": batch.last, "lost": count.lost + batch.lost, "totals": totals},
                placed={"at_ms": (0, "time_ms")},
            ),
        ],
    )
