"""How an operation ends: in which state, with what of it told, and which rows and entries come of it.

Rules kept here:

- What it did becomes facts in one transaction with the log entry that says so.
- A failed operation can always end, even where its rows are not as they should be.
- What becomes rows alone is neither told nor stored with the operation.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from licet_attestations import canonical
from licet_engine.domain.refs import now_ms
from licet_engine.lifecycle.asked import Enqueued
from licet_engine.lifecycle.catalogue import VERBS
from licet_engine.lifecycle.entries import rows_of
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.tenants import InForce
from licet_engine.lifecycle.verbs import KEPT, Change, Event, Note
from licet_engine.log.submission import Insert, NewEntry, Submission, Update
from licet_engine.store import tables

logger = logging.getLogger(__name__)

_MOST_TOLD_CHARS: Final = 500
"""Of why an operation failed, in a message to webhooks."""


@dataclass(frozen=True, slots=True)
class End:
    """How an operation ends: in which state, and what of it is told."""

    state: str
    result: dict[str, Any] | None
    error: dict[str, Any] | None

    @classmethod
    def of(cls, row: tables.Operation, state: str, result: dict[str, Any] | None, error: dict[str, Any] | None) -> End:
        """As the worker says, or as what it did says of itself."""
        if result is None:
            return cls(state, None, error)
        told = {name: value for name, value in result.items() if name != KEPT}
        why = VERBS[row.action].refuses(told)
        return cls(state, told, error) if why is None else cls("refused", told, {"code": "refused", "message": why})


def change_at_end(
    view: View,
    row: tables.Operation,
    result: dict[str, Any] | None,
    error: dict[str, Any] | None,
    at_ms: int,
    *,
    is_last: bool,
) -> Change:
    """What an ended operation leaves as rows."""
    verb = VERBS[row.action]
    if result is not None:
        return Change() if verb.finish is None else verb.finish(view, row, result, at_ms)
    if verb.abandon is None or is_last:
        # A failed operation must always be able to end, even where its rows are not as they should be.
        return Change()
    try:
        return verb.abandon(view, row, error or {}, at_ms)
    except Exception:
        logger.exception("what a failed operation leaves cannot be told", extra={"operation": row.id})
        return Change()


def ending(
    tenant: str,
    row: tables.Operation,
    ends: End,
    change: Change,
    in_force: InForce,
    *,
    again: dict[str, Any] | None,
) -> Submission:
    """The end of an operation as one transaction.

    Args:
        tenant: Whose it is.
        row: The operation.
        ends: How.
        change: What it leaves as rows.
        in_force: On which facts version that was told.
        again: An operation that is accepted with its end: what the store is to be told again.
    """
    fixed = {
        "v": 1,
        "type": "operation",
        "operation": row.id,
        "action": row.action,
        "resource": row.resource,
        "state": ends.state,
        "attempt": row.attempt,
        "decision": row.decision_id,
        "result_digest": "" if ends.result is None else canonical.digest(ends.result).hex(),
        "error": ends.error,
    }
    entries = [NewEntry(tenant, "operation", tenant, tenant, lambda t: canonical.dumps({**fixed, "time_ms": t}))]
    entries += [
        NewEntry(
            tenant,
            note.kind,
            tenant,
            tenant,
            lambda t, note=note: canonical.dumps(
                {"v": 1, "type": note.kind, **note.record, "operation": row.id, "time_ms": t}
            ),  # type: ignore[misc]  # A default binds the note of this turn.
        )
        for note in (*change.notes, *([] if again is None else [_told_again(again)]))
    ]
    companions = [*rows_of(change, tenant)]
    enqueue: list[Enqueued] = []
    if again is not None:
        companions.append(Insert(tables.Operation, [again]))
        enqueue.append(Enqueued(tenant, again["id"], again["action"]))
    values = {"state": ends.state, "result": ends.result, "error": ends.error, "updated_at_ms": now_ms()}
    key = {"tenant_id": tenant, "id": row.id, "state": row.state, "attempt": row.attempt}
    companions.append(Update(tables.Operation, key, values))
    changes = bool(change.inserts or change.updates)
    return Submission(
        entries=entries,
        expect={tenant: in_force.facts_version},
        companions=companions,
        bump=(tenant,) if changes else (),
        enqueue=enqueue,
    )


def failed(tenant: str, row: tables.Operation, error: Mapping[str, Any] | None) -> Event:
    """What webhooks are told of an operation that failed."""
    told = error or {}
    return Event(
        "operation.failed",
        {
            "operation": f"{tenant}/{row.id}",
            "action": row.action,
            "resource": row.resource,
            "principal": f"{tenant}/{row.principal}",
            "code": str(told.get("code", "")),
            "message": str(told.get("message", ""))[:_MOST_TOLD_CHARS],
        },
    )


def _told_again(again: Mapping[str, Any]) -> Note:
    told = {
        "event": "store-told-again",
        "action": again["action"],
        "resource": again["resource"],
        "accepted": again["id"],
    }
    return Note("hold", told)
