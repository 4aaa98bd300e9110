"""What would a change of policy have done to what has happened? Recorded decisions, decided again under other policies.

Rules kept here:

- A recorded decision is decided again from its record alone: the same request, the same facts by digest, other policies. What
  cannot be decided again (its record was erased) is counted and told, never passed over.
- The outcome that stands in the record is the one that is compared with, unless other policies are given for it, too.
- A flip is another answer. The same answer for other reasons is counted apart: it is no flip, and may still be of interest.
- Entities are parsed once for each set of facts. Memory is bounded whatever the archive holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from licet_attestations import archive, canonical
from licet_attestations.entries import ERASED, Entries
from licet_attestations.errors import LicetAttestationError
from licet_attestations.window import Window
from licet_engine.decide.bundle import CompiledBundle
from licet_engine.decide.cache import BoundedCache
from licet_engine.decide.decision import Decision, Request, decide
from licet_engine.decide.entities import Fact, FactSet
from licet_engine.decide.errors import FactError, RecordError
from licet_engine.decide.record import check_record, recorded_request
from licet_engine.workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path


MAX_RECORD_BYTES: Final = 16 << 20
"""Of one record or one fact."""
_MAX_FACTS, _MAX_FACT_BYTES = 100_000, 64 << 20
_MAX_SETS, _MAX_FACTS_IN_SETS = 20_000, 200_000
_MAX_COUNTED: Final = 10_000
"""Principals, actions and policies that are told apart; the rest is counted together under `OTHERS`."""
_MAX_PROCESSES: Final = 8
OTHERS: Final = "(others)"


class ReplayError(WorkbenchError):
    """What was to be replayed cannot be read."""

    default_code = "invalid-archive"


@dataclass(frozen=True, slots=True)
class Recorded:
    """A decision as it was recorded.

    Attributes:
        id: Of the decision.
        time_ms: When it was made.
        bundle_hex: Digest of the policies it was made under.
        request: What was asked.
        facts: Digests of what it rested on.
        decision: What was answered.
    """

    id: str
    time_ms: int
    bundle_hex: str
    request: Request
    facts: tuple[str, ...]
    decision: Decision

    @classmethod
    def from_record(cls, value: Any) -> Recorded:
        """Take a decision record.

        Args:
            value: Of canonical JSON.

        Raises:
            ReplayError: It is none.
        """
        try:
            record = check_record(value)
            return cls(
                id=str(record["id"]),
                time_ms=int(record["time_ms"]),
                bundle_hex=record["bundle"],
                request=recorded_request(record),
                facts=tuple(record["facts"]),
                decision=Decision(
                    allowed=record["decision"] == "allow",
                    reasons=tuple(record["reasons"]),
                    errors=tuple(record["errors"]),
                    observed=tuple(record["observed"]),
                ),
            )
        except (RecordError, TypeError, ValueError) as error:
            raise ReplayError(str(error)) from error


class DecisionArchive:
    """The decisions of an evidence archive. Its form is checked, its signatures are not: ``licet verify`` does that.

    Args:
        path: Of the archive.

    Raises:
        ReplayError: It is no evidence archive.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._archive = archive.Archive(path)
            told = canonical.loads(self._archive.read(archive.RANGE, MAX_RECORD_BYTES), max_bytes=MAX_RECORD_BYTES)
            window = Window.from_json(told)
        except (OSError, LicetAttestationError) as error:
            raise ReplayError(f"{path}: {error}") from error
        self._chunks = list(Entries(self._archive, window).chunks())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.__exit__(None, None, None)

    def __len__(self) -> int:
        """How many chunks its entries come in."""
        return len(self._chunks)

    def size(self, chunk: int) -> int:
        """How many entries a chunk has."""
        return self._chunks[chunk].end - self._chunks[chunk].start

    def decisions(self, chunk: int) -> Iterator[Recorded | Literal["erased"] | None]:
        """The entries of a chunk: each a decision, None for one of another kind, or what says that a decision's record was erased.

        Raises:
            ReplayError: A record cannot be read.
        """
        at = self._chunks[chunk]
        entries = at.entries()
        index = at.start - 1
        try:
            for entry in entries:
                index = entry.index
                if entry.leaf.kind != "decision":
                    yield None
                else:
                    yield "erased" if entry.record is None else Recorded.from_record(entry.record)
        except (OSError, LicetAttestationError) as error:
            raise ReplayError(f"{self._path}: {at.name(archive.RECORDS)}, after entry {index}: {error}") from error
        except ReplayError as error:
            raise ReplayError(f"{self._path}: {at.name(archive.RECORDS)}, entry {index}: {error}") from error

    def facts(self, chunk: int) -> Mapping[str, bytes]:
        """Canonical JSON of what the decisions of a chunk rest on, by its SHA-256.

        Raises:
            ReplayError: It cannot be read.
        """
        at = self._chunks[chunk]
        try:
            return at.facts
        except (OSError, LicetAttestationError) as error:
            raise ReplayError(f"{self._path}: {at.name(archive.FACTS)}: {error}") from error

    def find(self, decision_id: str) -> tuple[Recorded, FactSet]:
        """The decision of that id, and what it rests on.

        Raises:
            ReplayError: There is none, or more than one, or something cannot be read.
        """
        found: list[tuple[Recorded, int]] = []
        wanted = decision_id.encode()
        erased = 0
        for number, chunk in enumerate(self._chunks):
            try:
                # Other records may name it: those of what was done under it.
                is_named = any(wanted in line or line == ERASED for _, line in chunk.lines())
            except (OSError, LicetAttestationError) as error:
                raise ReplayError(f"{self._path}: {chunk.name(archive.RECORDS)}: {error}") from error
            for recorded in self.decisions(number) if is_named else ():
                if recorded == "erased":
                    erased += 1
                elif recorded is not None and recorded.id == decision_id:
                    found.append((recorded, number))
        if len(found) > 1:
            raise ReplayError(
                f"{self._path}: holds {len(found)} decisions {decision_id:.64}: `licet verify` says what is wrong"
            )
        if not found:
            more = f"; {erased} records of its range were erased, and it may be one of them" if erased else ""
            raise ReplayError(f"{self._path}: holds no decision {decision_id:.64}{more}")
        recorded, number = found[0]
        try:
            return recorded, _Facts().get(recorded.facts, self.facts(number))
        except ReplayError as error:
            raise ReplayError(f"{self._path}: {error}") from error

    def bundle(self, digest_hex: str) -> bytes:
        """Canonical JSON of the policies with that digest.

        Raises:
            ReplayError: They are not there, or other bytes stand in their place.
        """
        try:
            data = self._archive.read(archive.bundle_name(digest_hex), MAX_RECORD_BYTES)
        except (OSError, LicetAttestationError) as error:
            raise ReplayError(f"{self._path}: bundle {digest_hex:.64}: {error}") from error
        if hashlib.sha256(data).hexdigest() != digest_hex:
            raise ReplayError(f"{self._path}: the bytes of bundle {digest_hex:.64} have another digest")
        return data


@dataclass(frozen=True, slots=True)
class Flip:
    """A decision that comes out otherwise.

    Attributes:
        recorded: What was asked, and when.
        before: The answer it is compared with.
        after: The answer under the other policies.
    """

    recorded: Recorded
    before: Decision
    after: Decision

    @property
    def because(self) -> tuple[str, ...]:
        """The policies by which it flips: those that now decide, or none where nothing permits any more."""
        return self.after.because

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        request = self.recorded.request
        return {
            "id": self.recorded.id,
            "time_ms": self.recorded.time_ms,
            "principal": str(request.principal),
            "action": request.action,
            "resource": str(request.resource),
            "before": self.before.to_json(),
            "after": self.after.to_json(),
        }


@dataclass(slots=True)
class ReplayReport:
    """What a replay found.

    Attributes:
        decided: Decisions that were decided again.
        others: Records that are no decisions.
        unreadable: Decisions that cannot be decided again, by why.
        to_deny: Decisions that were allowed, and would be denied.
        to_allow: The other way round.
        other_reasons: The same answer, by other policies.
        by_principal: Flips of each principal; `by_action` and `by_policy` likewise.
        flips: The first flips, whole.
    """

    decided: int = 0
    others: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    to_deny: int = 0
    to_allow: int = 0
    other_reasons: int = 0
    by_principal: Counter[str] = field(default_factory=Counter)
    by_action: Counter[str] = field(default_factory=Counter)
    by_policy: Counter[str] = field(default_factory=Counter)
    flips: list[Flip] = field(default_factory=list)

    @property
    def flipped(self) -> int:
        """All flips."""
        return self.to_deny + self.to_allow

    def add(self, flip: Flip, *, keep: int) -> None:
        """Count a flip, and keep it if there is room."""
        if flip.after.allowed:
            self.to_allow += 1
        else:
            self.to_deny += 1
        _count(self.by_principal, str(flip.recorded.request.principal))
        _count(self.by_action, flip.recorded.request.action)
        for policy in flip.because:
            _count(self.by_policy, policy)
        if len(self.flips) < keep:
            self.flips.append(flip)

    def merge(self, later: ReplayReport, *, keep: int) -> None:
        """Add what was found in the records that follow."""
        for name in ("decided", "others", "to_deny", "to_allow", "other_reasons"):
            setattr(self, name, getattr(self, name) + getattr(later, name))
        for name in ("unreadable", "by_principal", "by_action", "by_policy"):
            mine: Counter[str] = getattr(self, name)
            for counted, times in getattr(later, name).items():
                _count(mine, counted, times)
        self.flips += later.flips[: keep - len(self.flips)]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "decided": self.decided,
            "others": self.others,
            "unreadable": dict(self.unreadable),
            "flipped": self.flipped,
            "to_deny": self.to_deny,
            "to_allow": self.to_allow,
            "other_reasons": self.other_reasons,
            "by_principal": dict(self.by_principal.most_common()),
            "by_action": dict(self.by_action.most_common()),
            "by_policy": dict(self.by_policy.most_common()),
            "flips": [flip.to_json() for flip in self.flips],
        }


def _count(counts: Counter[str], name: str, times: int = 1) -> None:
    counts[name if name in counts or len(counts) < _MAX_COUNTED else OTHERS] += times


class _Facts:
    """Sets of facts by the digests that name them; each fact read once, as far as memory goes."""

    def __init__(self) -> None:
        self._facts: BoundedCache[str, Fact] = BoundedCache(max_entries=_MAX_FACTS, max_weight=_MAX_FACT_BYTES)
        self._sets: BoundedCache[tuple[str, ...], FactSet] = BoundedCache(
            max_entries=_MAX_SETS, max_weight=_MAX_FACTS_IN_SETS
        )

    def get(self, digests: tuple[str, ...], there: Mapping[str, bytes]) -> FactSet:
        """The facts that ``digests`` name, of which ``there`` has those that are not known.

        Raises:
            ReplayError: One is not there, or is none; or there are too many.
        """
        known = self._sets.get(digests)
        if known is None:
            if len(digests) > _MAX_FACTS_IN_SETS:
                raise ReplayError(f"a decision rests on more than {_MAX_FACTS_IN_SETS} facts")
            known = FactSet([self._fact(digest, there) for digest in digests])
            self._sets.put(digests, known, len(digests))
        return known

    def _fact(self, digest_hex: str, there: Mapping[str, bytes]) -> Fact:
        known = self._facts.get(digest_hex)
        if known is None:
            data = there.get(digest_hex)
            if data is None:
                raise ReplayError(f"fact {digest_hex:.64} is not in the archive")
            try:
                known = Fact.from_bytes(data)
            except FactError as error:
                raise ReplayError(f"fact {digest_hex:.64}: {error}") from error
            self._facts.put(digest_hex, known, len(data))
        return known


class _Replayer:
    """Decides the decisions of one archive again; every process has one of its own."""

    def __init__(self, path: Path, after: bytes, before: bytes | None) -> None:
        self._archive = DecisionArchive(path)
        self._facts = _Facts()
        self._after = CompiledBundle.from_bytes(after)
        self._before = None if before is None else CompiledBundle.from_bytes(before)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.__exit__()

    def replay(self, chunk: int, keep: int) -> ReplayReport:
        """Decide the decisions of a chunk."""
        report = ReplayReport()
        there = self._archive.facts(chunk)
        for recorded in self._archive.decisions(chunk):
            if recorded is None:
                report.others += 1
                continue
            if recorded == "erased":
                _count(report.unreadable, "the record was erased")
                continue
            facts = self._facts.get(recorded.facts, there)
            before = recorded.decision if self._before is None else decide(self._before, recorded.request, facts)
            after = decide(self._after, recorded.request, facts)
            report.decided += 1
            if before.allowed != after.allowed:
                report.add(Flip(recorded, before, after), keep=keep)
            elif (before.reasons, before.errors) != (after.reasons, after.errors):
                report.other_reasons += 1
        return report


_replayer: _Replayer | None = None
"""Of this process, where it is one that was started to replay."""


def _begin(path: Path, after: bytes, before: bytes | None) -> None:
    global _replayer  # noqa: PLW0603  # What a process of the pool keeps between its parts.
    _replayer = _Replayer(path, after, before)


def _replay_part(chunk: int, keep: int) -> ReplayReport:
    assert _replayer is not None  # noqa: S101  # `_begin` ran before.
    return _replayer.replay(chunk, keep)


def replay_archive(
    path: Path,
    after: bytes,
    *,
    before: bytes | None = None,
    keep: int = 100,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ReplayReport:
    """Decide the decisions of an evidence archive again.

    Args:
        path: Of the archive.
        after: Canonical JSON of the bundle to decide by, validated.
        before: The same of the bundle to compare with; None: what was recorded.
        keep: How many flips are kept whole.
        processes: How many work at it; None: as many as there are processors, eight at most.
        progress: Told now and then how many records were looked at, of how many.

    Raises:
        BundleError: A bundle cannot be used.
        ReplayError: The archive, a record or a fact cannot be read.
    """
    with DecisionArchive(path) as opened:
        sizes = [opened.size(chunk) for chunk in range(len(opened))]
    parts = [(chunk, keep) for chunk in range(len(sizes))]
    wanted = min(processes or min(os.cpu_count() or 1, _MAX_PROCESSES), len(parts))
    report = ReplayReport()
    with contextlib.ExitStack() as stack:
        if wanted > 1:
            pool = stack.enter_context(
                ProcessPoolExecutor(
                    wanted, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(path, after, before)
                )
            )
            found = pool.map(_replay_part, *zip(*parts, strict=True))
        else:
            replayer = stack.enter_context(_Replayer(path, after, before))
            found = (replayer.replay(*part) for part in parts)
        done = 0
        for size, part in zip(sizes, found, strict=True):
            report.merge(part, keep=keep)
            done += size
            if progress is not None:
                progress(done, sum(sizes))
    return report
