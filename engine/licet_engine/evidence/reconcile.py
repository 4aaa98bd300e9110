"""Reconciliation: what adapters and the object store say was accessed, matched with the warrants that stand in tenants' logs.

Rules kept here:

- What is matched is kept by different parties: warrants in the logs, accesses in the adapters' journals, requests in the store's own log.
- An access without a warrant is counted and shown; so is a number that is missing, and a line that cannot be read. None is explained away.
- A request of the store is matched by its key's tenant, what it does, and the time in which a warrant for that was good. Names in the store
  are HMACs, so that it was this very object is not told here.

What it cannot show: accesses that no journal and no log of the store has.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Engine, select

from licet_adapters.journal import Access, read_journal
from licet_adapters.s3_accesses import StoreAccess
from licet_attestations import canonical
from licet_attestations.errors import LicetAttestationError
from licet_attestations.leaf import is_tenant
from licet_attestations.statement import TEST_RESULT, WARRANT, Statement, Subject
from licet_attestations.warrant import MAX_CLOCK_SKEW_MS, Warrant, read_warrant
from licet_engine.evidence.isolation import RECONCILIATION_SUBJECT
from licet_engine.log import store
from licet_engine.store.db import read_transaction
from licet_engine.store.tables import Attestation

if TYPE_CHECKING:
    from pathlib import Path

GRACE_MS: Final = 3_600_000
"""How long after a warrant's end the store may still be busy with what was begun under it: an object is read and written in parts."""
MAX_SHOWN: Final = 100
_AT_ONCE: Final = 1000
_ATTESTATIONS: Final = store.table_of(Attestation)
_READS: Final = frozenset({"GET", "HEAD"})
_REMOVES: Final = frozenset({"DELETE"})


@dataclass(slots=True)
class Reconciled:
    """What became of one tenant's accesses.

    Attributes:
        tenant: Whose things were accessed, as far as that is told.
        warrants: In the tenant's log.
        accesses: In journals and in the store's log.
        unmatched: Of these, how many have no warrant.
        shown: The first unmatched, in words.
    """

    tenant: str
    warrants: int = 0
    accesses: int = 0
    unmatched: int = 0
    shown: list[str] = field(default_factory=list)

    def add(self, problem: str | None) -> None:
        """Count an access, and what is wrong with it."""
        self.accesses += 1
        if problem is not None:
            self.unmatched += 1
            if len(self.shown) < MAX_SHOWN:
                self.shown.append(problem)


@dataclass(slots=True)
class Reconciliation:
    """What a reconciliation found.

    Attributes:
        tenants: By tenant; under ``""``, accesses that name none.
        missing: Numbers that are missing in journals.
        unread: Lines that could not be read, in journals and logs of the store.
        journals: How many journals were read.
    """

    tenants: dict[str, Reconciled] = field(default_factory=dict)
    missing: int = 0
    unread: int = 0
    journals: int = 0

    def of(self, tenant: str) -> Reconciled:
        """The figures of one tenant."""
        return self.tenants.setdefault(tenant, Reconciled(tenant))

    @property
    def is_clean(self) -> bool:
        """Whether everything is matched, and nothing is missing or unread."""
        return not (self.missing or self.unread or any(found.unmatched for found in self.tenants.values()))

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "journals": self.journals,
            "missing": self.missing,
            "unread": self.unread,
            "tenants": [
                {
                    "tenant": found.tenant,
                    "warrants": found.warrants,
                    "accesses": found.accesses,
                    "unmatched": found.unmatched,
                    "shown": list(found.shown),
                }
                for _, found in sorted(self.tenants.items())
            ],
        }


def reconcile(
    engine: Engine,
    journals: Iterable[Path],
    requests: Iterable[StoreAccess | None] = (),
    *,
    prefix: str = "",
) -> Reconciliation:
    """Match accesses with warrants.

    Args:
        engine: Of the store, over all tenants; only read.
        journals: Of adapters.
        requests: From the object store's log; None for a line that could not be read.
        prefix: Under which objects lie in the bucket.

    Raises:
        Unavailable: A journal cannot be read.
    """
    result = Reconciliation()
    warrants = {warrant.id: warrant for warrant in _warrants(engine)}
    for warrant in warrants.values():
        result.of(warrant.tenant).warrants += 1
    used: set[str] = set()
    for path in journals:
        read = read_journal(path)
        result.journals += 1
        result.missing += read.missing
        result.unread += read.cut_short
        for access in read.accesses:
            known = warrants.get(access.warrant)
            result.of(access.tenant).add(_problem(access, known, is_second=access.warrant in used))
            used.add(access.warrant)
    good = _Good(warrants.values())
    for request in requests:
        if request is None:
            result.unread += 1
        elif request.key.startswith(prefix) and request.key:
            tenant = request.key.removeprefix(prefix).partition("/")[0]
            whose = tenant if is_tenant(tenant) else ""
            problem = None if good.at(whose, _does(request), request.at_ms) else _told(request)
            result.of(whose).add(problem)
    return result


def reconciliation_statement(result: Reconciliation, tenant: str, at_ms: int) -> Statement:
    """in-toto test-result of a reconciliation, for one tenant: its own figures, what is missing anywhere, and when that was found."""
    found = result.of(tenant)
    report = {
        "tenant": tenant,
        "at_ms": at_ms,
        "warrants": found.warrants,
        "accesses": found.accesses,
        # What is missing or unreadable may have been this tenant's.
        "unmatched": found.unmatched + result.missing + result.unread,
    }
    passed = not report["unmatched"]
    name = "licet:reconciliation"
    predicate = {
        **report,
        "result": "PASSED" if passed else "FAILED",
        "configuration": [],
        "passedTests": [name] if passed else [],
        "failedTests": [] if passed else [name],
    }
    return Statement((Subject(RECONCILIATION_SUBJECT, canonical.digest_hex(report)),), TEST_RESULT, predicate)


def _warrants(engine: Engine) -> Iterator[Warrant]:
    """All warrants that tenants' logs have; what cannot be read is none."""
    after = ("", "")
    columns = (_ATTESTATIONS.c.tenant_id, _ATTESTATIONS.c.digest_hex, _ATTESTATIONS.c.envelope)
    while True:
        query = (
            select(*columns)
            .where(_ATTESTATIONS.c.predicate_type == WARRANT)
            .where(
                (_ATTESTATIONS.c.tenant_id > after[0])
                | ((_ATTESTATIONS.c.tenant_id == after[0]) & (_ATTESTATIONS.c.digest_hex > after[1]))
            )
            .order_by(_ATTESTATIONS.c.tenant_id, _ATTESTATIONS.c.digest_hex)
            .limit(_AT_ONCE)
        )
        with read_transaction(engine) as connection:
            rows = connection.execute(query).all()
        for tenant, digest_hex, envelope in rows:
            after = (tenant, digest_hex)
            try:
                warrant = read_warrant(envelope.encode())
            except LicetAttestationError:
                continue
            if warrant.tenant == tenant:
                yield warrant
        if len(rows) < _AT_ONCE:
            return


def _problem(access: Access, warrant: Warrant | None, *, is_second: bool) -> str | None:
    """Why an access has no warrant; None if it has one."""
    told = f"access {access.number}, {access.operation} at {access.at_ms} ms, warrant {access.warrant}"
    if warrant is None:
        return f"{told}: no log has the warrant"
    if (warrant.tenant, warrant.operation) != (access.tenant, access.operation):
        return f"{told}: the warrant is for {warrant.operation} of {warrant.tenant}"
    if not warrant.issued_at_ms - MAX_CLOCK_SKEW_MS <= access.at_ms <= warrant.expires_at_ms + MAX_CLOCK_SKEW_MS:
        return f"{told}: the warrant was not good then"
    return f"{told}: the warrant was used before" if is_second else None


class _Good:
    """Within which times which tenant had a warrant to do what."""

    def __init__(self, warrants: Iterable[Warrant]) -> None:
        spans: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for warrant in warrants:
            for what in _permits(warrant.operation):
                span = (warrant.issued_at_ms - MAX_CLOCK_SKEW_MS - 1000, warrant.expires_at_ms + GRACE_MS)
                spans.setdefault((warrant.tenant, what), []).append(span)
        self._spans = {key: _joined(sorted(found)) for key, found in spans.items()}

    def at(self, tenant: str, what: str, at_ms: int) -> bool:
        spans = self._spans.get((tenant, what), ())
        at = bisect.bisect_right(spans, at_ms, key=lambda span: span[0]) - 1
        return at >= 0 and spans[at][1] >= at_ms


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for begin, end in spans:
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def _permits(operation: str) -> tuple[str, ...]:
    """What in a store an adapter's operation comes to. Whoever writes looks first, and clears away what was begun."""
    family, _, verb = operation.partition(".")
    if family not in {"objects", "registry"}:
        return ()
    if verb in {"get", "read"}:
        return ("read",)
    return ("read", "write", "remove") if verb in {"put", "register", "delete"} else ("read", "write")


def _does(request: StoreAccess) -> str:
    method = request.operation.split(".")[1] if request.operation.count(".") > 1 else ""
    if method in _READS:
        return "read"
    return "remove" if method in _REMOVES else "write"


def _told(request: StoreAccess) -> str:
    name = hashlib.sha256(request.key.encode()).hexdigest()[:16]
    return (
        f"{request.operation} at {request.at_ms} ms by {request.requester}, key {name}: no warrant for it was good then"
    )


def report_lines(told: Mapping[str, Any]) -> list[str]:
    """A reconciliation for people."""
    lines = [
        f"{told['journals']} journals read; {told['missing']} numbers missing, {told['unread']} lines could not be read"
    ]
    for found in told["tenants"]:
        name = found["tenant"] or "(no tenant)"
        lines.append(
            f"{name}: {found['accesses']} accesses, {found['warrants']} warrants in its log, {found['unmatched']} unmatched"
        )
        lines += [f"    {problem}" for problem in found["shown"]]
    return lines
