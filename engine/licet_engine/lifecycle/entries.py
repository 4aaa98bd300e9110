"""What a decision and a change become in the log and its tables: written the same way by all who decide."""

from __future__ import annotations

from collections.abc import Iterable

from licet_engine.decide.decision import Decision, Request
from licet_engine.decide.entities import EntityUid, FactSet
from licet_engine.decide.record import Operation, build_record
from licet_engine.lifecycle.tenants import InForce
from licet_engine.lifecycle.verbs import Change, Who
from licet_engine.log.submission import Insert, NewEntry, Update
from licet_engine.store import tables


def decision_entry(
    who: Who,
    decision_id: str,
    *,
    request: Request,
    decision: Decision,
    facts: FactSet,
    in_force: InForce,
    operation: Operation | None,
    sent: str,
    owner: str,
    asked_by: EntityUid | None = None,
) -> tuple[NewEntry, Insert]:
    """The entry of a decision in its asker's log, and the row by which it is found; it must be the first of a submission.

    Args:
        who: Who asked.
        decision_id: Its number.
        request: What Cedar was asked.
        decision: What it answered.
        facts: What it knew.
        in_force: By which policies, at which facts version.
        operation: What follows from it.
        sent: The resource as it was named.
        owner: Whose log the leaf's header names as the resource's.
        asked_by: Who asked about another principal.
    """

    def record(time_ms: int) -> bytes:
        return build_record(
            decision_id=decision_id,
            time_ms=time_ms,
            tenant=who.tenant,
            request=request,
            decision=decision,
            facts=facts,
            facts_version=in_force.facts_version,
            bundle_hex=in_force.bundle.digest_hex,
            operation=operation,
            asked_by=asked_by,
        )

    row = {
        "tenant_id": who.tenant,
        "id": decision_id,
        "action": request.action,
        "principal": who.id,
        "resource": sent,
        "allowed": decision.allowed,
        "observed": list(decision.observed),
    }
    index = Insert(tables.Decision, [row], placed={"leaf_index": (0, "index"), "at_ms": (0, "time_ms")})
    return NewEntry(who.tenant, "decision", who.tenant, owner, record), index


def rows_of(change: Change, tenant: str) -> Iterable[Insert | Update]:
    """The rows that a change writes, each of its tenant."""
    for i in change.inserts:
        yield Insert(i.table, [{"tenant_id": tenant, **i.row}])  # type: ignore[arg-type]  # Every table of ours has a tenant.
    for u in change.updates:
        yield Update(u.table, {"tenant_id": tenant, **u.where}, u.set, u.rows)  # type: ignore[arg-type]  # As above.
