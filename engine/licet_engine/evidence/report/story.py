"""What happened in a window of a log, in one pass over its entries: what index, page and assessment are made of.

Rules kept here:

- Bounded: of what there can be many, the newest or the most frequent are kept, and how many more there were.
- Counts are of all entries. An erased record is counted as erased, under no name and no policy.
- Bundles are told by the decisions that name them: in which entries and times each decided.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from licet_attestations.isolation import PLATFORM
from licet_engine.evidence.contents import Contents, Seen
from licet_engine.evidence.report.counting import Buckets, Kept, Tally
from licet_engine.evidence.report.rows import DECIDED, Row, mapping, row_of, texts
from licet_engine.evidence.report.text import cut

MAX_BUNDLES: Final = 200
MAX_SPANS: Final = 400
_MAX_LISTED: Final = 200
_MAX_REASONS: Final = 12
_MAX_GROUPS: Final = 4_000
_MAX_TOGETHER: Final = 64

_QUIET: Final = frozenset({"read", "explain", "invoke", "list"})
"""Last words of actions that change nothing."""
_STEPS: Final = frozenset({"step", "completed"})
"""What a deployment does as it was decided; everything else that traffic does is worth telling."""
_LISTED: Final = {"approval": "approvals", "break-glass": "glass", "hold": "holds", "policy": "policies"}
"""Kinds of entries that are listed as they are, and where."""


@dataclass(slots=True)
class Span:
    """An unbroken run of decisions under one bundle."""

    bundle: str
    first: int
    last: int
    first_ms: int
    last_ms: int
    decisions: int = 0


@dataclass(frozen=True, slots=True)
class Told:
    """A row with what else is told of it."""

    row: Row
    reasons: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Story:
    """What happened.

    Attributes:
        entries: How many there are.
        erased: How many have no record any more, by kind.
        first_ms: Time of the first entry; None where there is none.
        last_ms: Time of the last.
        kinds: Entries by kind.
        decided: Decisions of the tenant's own principals, by outcome (``allow``, ``deny``, ``erased``).
        foreign: Attempts of others, operators left out, by outcome.
        actions: Decisions of the tenant's own, by action and outcome.
        principals: The same, by principal.
        tenants: Attempts of others, by tenant and outcome.
        refusing: Decisions by the policies that refused (``deny``) or only would have (``observed``).
        refusals: Decisions by the policies that refused and those that only would have, together.
        ungrouped: Decisions beyond the bound of these.
        operations: Operations by action and how they ended.
        attestations: By predicate type.
        times: Decisions by time and outcome; attempts of others as ``foreign``.
        bundles: Decisions by bundle.
        spans: Bundles in force, in order; the newest.
        deciding: The bundle of the last decision.
        uncounted_bundles: Decisions under bundles beyond the bound.
        uncounted_spans: Older spans that are left out.
        approvals: Verdicts, and what became of them.
        done: What was allowed and changed something.
        denied: Decisions that denied the tenant's own principals.
        attempts: What others tried.
        operators: What operators did to the tenant, break-glass left out.
        looks: How often operators looked behind the glass.
        glass: Break-glass.
        traffic: What routers reported but ordinary steps: returns, failures.
        holds: Legal holds.
        policies: Changes of policies.
        failed: Operations that did not end as they should.
    """

    entries: int = 0
    erased: Counter[str] = field(default_factory=Counter)
    first_ms: int | None = None
    last_ms: int | None = None
    kinds: Tally = field(default_factory=Tally)
    decided: Counter[str] = field(default_factory=Counter)
    foreign: Counter[str] = field(default_factory=Counter)
    actions: Tally = field(default_factory=Tally)
    principals: Tally = field(default_factory=Tally)
    tenants: Tally = field(default_factory=Tally)
    refusing: Tally = field(default_factory=Tally)
    refusals: Counter[tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=Counter)
    ungrouped: int = 0
    operations: Tally = field(default_factory=Tally)
    attestations: Tally = field(default_factory=Tally)
    times: Buckets = field(default_factory=Buckets)
    bundles: dict[str, Counter[str]] = field(default_factory=dict)
    spans: deque[Span] = field(default_factory=deque)
    deciding: str | None = None
    uncounted_bundles: int = 0
    uncounted_spans: int = 0
    approvals: Kept[Told] = field(default_factory=lambda: Kept(_MAX_LISTED))
    done: Kept[Told] = field(default_factory=lambda: Kept(_MAX_LISTED))
    denied: Kept[Told] = field(default_factory=lambda: Kept(_MAX_LISTED))
    attempts: Kept[Told] = field(default_factory=lambda: Kept(_MAX_LISTED))
    operators: Kept[Told] = field(default_factory=lambda: Kept(_MAX_LISTED))
    looks: int = 0
    glass: Kept[Told] = field(default_factory=lambda: Kept(_MAX_LISTED))
    traffic: Kept[Told] = field(default_factory=lambda: Kept(_MAX_LISTED))
    holds: Kept[Told] = field(default_factory=lambda: Kept(_MAX_LISTED))
    policies: Kept[Told] = field(default_factory=lambda: Kept(_MAX_LISTED))
    failed: Kept[Told] = field(default_factory=lambda: Kept(_MAX_LISTED))


def story_of(contents: Contents) -> Story:
    """Read the entries of an archive."""
    story, tenant = Story(), contents.scope.tenant
    for seen in contents.entries():
        _take(story, tenant, seen)
    return story


def _take(story: Story, tenant: str, seen: Seen) -> None:
    row = row_of(seen)
    story.entries += 1
    story.first_ms = row.time_ms if story.first_ms is None else story.first_ms
    story.last_ms = row.time_ms
    story.kinds.add(row.kind)
    if row.erased:
        story.erased[row.kind] += 1
    record = seen.record or {}
    if row.kind in DECIDED:
        _take_decided(story, tenant, row, record)
        return
    if not row.erased:
        _take_told(story, tenant, row, record)


def _take_told(story: Story, tenant: str, row: Row, record: Mapping[str, Any]) -> None:
    if row.kind == "attestation":
        story.attestations.add(row.attestation_type)
    elif row.kind == "operation":
        ended = row.outcome if row.outcome in {"done", "failed", "refused"} else "other"
        story.operations.add(row.action, ended)
        if ended != "done":
            story.failed.add(Told(row, more=_kept(mapping(record, "error"))))
    elif row.kind == "traffic":
        if row.outcome not in _STEPS:
            story.traffic.add(Told(row, more=_kept(mapping(record, "cause"))))
    elif row.kind in _LISTED:
        story.looks += row.kind == "break-glass" and row.action == "looked"
        listed: Kept[Told] = getattr(story, _LISTED[row.kind])
        listed.add(Told(row, more=_kept(record)))
    elif row.actor != tenant:
        story.operators.add(Told(row))


def _take_decided(story: Story, tenant: str, row: Row, record: Mapping[str, Any]) -> None:
    outcome = "erased" if row.erased else row.outcome
    reasons = tuple(texts(record, "reasons"))
    told = Told(row, reasons[:_MAX_REASONS])
    if row.actor != tenant:
        if row.actor == PLATFORM:
            story.operators.add(told)
            return
        story.foreign[outcome] += 1
        story.tenants.add(row.actor, outcome)
        story.times.add(row.time_ms, "foreign")
        story.attempts.add(told)
        return
    story.decided[outcome] += 1
    story.times.add(row.time_ms, outcome)
    if row.erased:
        return
    story.actions.add(row.action, outcome)
    story.principals.add(row.principal, outcome)
    _take_bundle(story, row, outcome)
    observed = texts(record, "observed")
    _take_refusal(story, reasons if outcome == "deny" else (), tuple(observed))
    for policy in observed:
        story.refusing.add(policy, "observed")
    if outcome == "deny":
        story.denied.add(told)
        for policy in reasons:
            story.refusing.add(policy, "deny")
    elif row.operation or (row.action.startswith("policy.") and row.action.rpartition(".")[2] not in _QUIET):
        story.done.add(told)


def _take_refusal(story: Story, reasons: tuple[str, ...], observed: tuple[str, ...]) -> None:
    """Count a decision once under all the policies that refused it, so that none is counted twice where policies are added up."""
    key = (reasons, observed)
    if not any(key):
        return
    if len(reasons) + len(observed) > _MAX_TOGETHER or (
        key not in story.refusals and len(story.refusals) >= _MAX_GROUPS
    ):
        story.ungrouped += 1
        return
    story.refusals[key] += 1


def _take_bundle(story: Story, row: Row, outcome: str) -> None:
    before, story.deciding = story.deciding, row.bundle
    if row.bundle not in story.bundles and len(story.bundles) >= MAX_BUNDLES:
        story.uncounted_bundles += 1
        return
    story.bundles.setdefault(row.bundle, Counter())[outcome] += 1
    if not story.spans or before != row.bundle:
        story.spans.append(Span(row.bundle, row.index, row.index, row.time_ms, row.time_ms))
        if len(story.spans) > MAX_SPANS:
            story.spans.popleft()
            story.uncounted_spans += 1
    span = story.spans[-1]
    span.last, span.last_ms, span.decisions = row.index, row.time_ms, span.decisions + 1


_MAX_KEPT: Final = 24
_MAX_KEPT_CHARS: Final = 240


def _kept(record: Mapping[str, Any]) -> dict[str, Any]:
    """Of a record that is listed, what a list can show: texts, integers, and lists of texts as one text."""
    kept: dict[str, Any] = {}
    for name, value in list(record.items())[:_MAX_KEPT]:
        if isinstance(value, str):
            kept[name] = cut(value, _MAX_KEPT_CHARS)
        elif type(value) is int:
            kept[name] = value
        elif isinstance(value, list):
            kept[name] = cut(", ".join(each for each in value[:8] if isinstance(each, str)), _MAX_KEPT_CHARS)
    return kept
