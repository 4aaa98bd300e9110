"""Breaking the glass: an operator looks, for a time, at what happened in a tenant, since the tenant let them.

Rules kept here:

- An operator asks; an administrator of the tenant approves; at most four hours later it is over by itself. Either of
  them ends it before. Afterwards somebody of the tenant's compliance or security reviews what was done, or the operators
  cannot ask again.
- Each look is an act of its own: decided anew, with the approver as they are now, and written to the tenant's log with
  the ID under which it was approved.
- What can be looked at is who did what and when: decisions, operations, headers of the log. Never what was sent or made,
  no data, no model, no figure, no reason that somebody gave.
- What was looked at is told once and stored nowhere of the operators'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

from pydantic import Field

from licet_attestations import canonical
from licet_attestations.errors import FormatError
from licet_engine.domain.errors import Conflict
from licet_engine.domain.refs import PLATFORM, Ref
from licet_engine.lifecycle.data import Id, Text
from licet_engine.lifecycle.facts import View, entity_ref
from licet_engine.lifecycle.verbs import Body, Change, Ids, Insert, Note, Proposal, RefForm, Update, Verb, Who
from licet_engine.store.tables import BreakGlass

MAX_DURATION_S: Final = 4 * 3600
APPROVE_WITHIN_MS: Final = 24 * 3600 * 1000
"""What nobody approved within a day is not approved any more."""
MAX_ROWS: Final = 200
_KIND: Final = "break-glass"


class RequestBreakGlass(Body):
    """Why it is needed, and for how long once it is approved."""

    reason: Text
    duration_s: Annotated[int, Field(ge=60, le=MAX_DURATION_S)] = 3600


class OfBreakGlass(Body):
    """Which one."""

    id: Id


class ReviewBreakGlass(Body):
    """Which one, and what the reviewer found."""

    id: Id
    finding: Text


class Look(Body):
    """Under which approval something is looked at, and what."""

    id: Id
    what: Annotated[str, Field(pattern="^(decisions|operations|log)$")]
    limit: Annotated[int, Field(ge=1, le=MAX_ROWS)] = 50


def state_of(row: BreakGlass, now_ms: int) -> str:
    """How it stands: ``requested``, ``lapsed``, ``open``, ``ended`` or ``reviewed``."""
    if row.reviewed_at_ms is not None:
        return "reviewed"
    if row.approved_at_ms is None:
        over = row.ended_at_ms is not None or now_ms > row.requested_at_ms + APPROVE_WITHIN_MS
        return "lapsed" if over else "requested"
    return "open" if row.ended_at_ms is None and now_ms < row.until_ms else "ended"


def _note(event: str, row: BreakGlass, who: Who, **more: Any) -> Note:
    return Note(_KIND, {"event": event, "break_glass": row.id, "by": who.id, **more})


def ask_request(view: View, who: Who, ref: Ref, body: RequestBreakGlass, ids: Ids) -> Proposal:
    """An operator asks to look."""
    row = BreakGlass(
        tenant_id=ref.tenant,
        id=ids.operation,
        operator=who.id,
        reason=body.reason,
        duration_ms=body.duration_s * 1000,
        requested_at_ms=ids.now_ms,
    )
    unreviewed = sum(state_of(other, view.now_ms) == "ended" for other in view.break_glasses())
    conflict = None
    if ref.tenant == PLATFORM:
        conflict = Conflict("what is the platform's own is no tenant's: nothing needs to be broken there")
    note = _note("requested", row, who, reason=body.reason, duration_s=body.duration_s)
    return Proposal(
        resource=view.tenant_entity(),
        context={"unreviewed": unreviewed},
        change=Change(inserts=(Insert(BreakGlass, row.model_dump()),), notes=(note,)),
        conflict=conflict,
        result={
            "tenant": ref.tenant,
            "break_glass": row.id,
            "state": "requested",
            "approve_until_ms": ids.now_ms + APPROVE_WITHIN_MS,
        },
    )


def _missing(view: View, identifier: str) -> Proposal:
    """What is not there changes nothing; who may not ask is denied before this is told."""
    tenant = view.tenant.tenant_id
    conflict = Conflict(
        f"{tenant} has no break-glass {identifier}: licet break-glass list {tenant} shows those that there are"
    )
    return Proposal(resource=view.tenant_entity(), conflict=conflict)


_NOT_TO_APPROVE: Final[Mapping[str, str]] = {
    "lapsed": "it lapsed, withdrawn or not approved within a day: have the operator ask again",
    "open": "it was approved already",
    "ended": "it was approved already, and is over: have the operator ask again, once it was reviewed",
    "reviewed": "it is over: have the operator ask again",
}
_NOT_TO_REVIEW: Final[Mapping[str, str]] = {
    "requested": "nobody approved it yet, so nobody looked",
    "lapsed": "it was never approved, so nobody looked",
    "open": "it is open: review it when its time is over, or end it first with licet break-glass end",
    "reviewed": "it was reviewed already",
}
"""Why not, by state."""


def _other_unreviewed(view: View, row: BreakGlass) -> BreakGlass | None:
    """Another that is over and was not reviewed: several may be asked for at once, and each is reviewed before the next is approved."""
    return next((o for o in view.break_glasses() if o.id != row.id and state_of(o, view.now_ms) == "ended"), None)


def ask_approve(view: View, who: Who, _ref: Ref, body: OfBreakGlass, ids: Ids) -> Proposal:
    """An administrator of the tenant lets the operator look, from now on and for as long as was asked."""
    row = view.break_glass(body.id)
    if row is None:
        return _missing(view, body.id)
    state = state_of(row, view.now_ms)
    until_ms = ids.now_ms + row.duration_ms
    values = {"approved_by": who.name, "approved_at_ms": ids.now_ms, "until_ms": until_ms}
    conflict = None
    if state != "requested":
        conflict = Conflict(f"break-glass {row.id} cannot be approved: {_NOT_TO_APPROVE[state]}")
    elif (other := _other_unreviewed(view, row)) is not None:
        conflict = Conflict(f"break-glass {other.id} was not reviewed yet: have compliance or security review it first")
    where = {"id": row.id, "approved_at_ms": None, "ended_at_ms": None}
    return Proposal(
        resource=view.tenant_entity(),
        change=Change(
            updates=(Update(BreakGlass, where, values),),
            notes=(_note("approved", row, who, operator=row.operator, until_ms=until_ms),),
        ),
        conflict=conflict,
        result={"break_glass": row.id, "state": "open", "operator": row.operator, "until_ms": until_ms},
    )


def ask_end(view: View, who: Who, _ref: Ref, body: OfBreakGlass, ids: Ids) -> Proposal:
    """It is over before its time."""
    row = view.break_glass(body.id)
    if row is None:
        return _missing(view, body.id)
    state = state_of(row, view.now_ms)
    over = "lapsed" if state == "requested" else "ended"
    return Proposal(
        resource=view.tenant_entity(),
        change=Change(
            updates=(Update(BreakGlass, {"id": row.id, "ended_at_ms": None}, {"ended_at_ms": ids.now_ms}),),
            notes=(_note("ended", row, who),),
        ),
        conflict=None
        if state in {"requested", "open"}
        else Conflict(f"break-glass {row.id} is over already: it is {state}"),
        result={"break_glass": row.id, "state": over},
    )


def ask_review(view: View, who: Who, _ref: Ref, body: ReviewBreakGlass, ids: Ids) -> Proposal:
    """Somebody of the tenant looked at what was done."""
    row = view.break_glass(body.id)
    if row is None:
        return _missing(view, body.id)
    state = state_of(row, view.now_ms)
    context = (
        {} if row.approved_by is None else {"approved_by": entity_ref("Person", f"{row.tenant_id}/{row.approved_by}")}
    )
    values = {"reviewed_by": who.name, "reviewed_at_ms": ids.now_ms, "finding": body.finding}
    return Proposal(
        resource=view.tenant_entity(),
        context=context,
        change=Change(
            updates=(Update(BreakGlass, {"id": row.id, "reviewed_at_ms": None}, values),),
            notes=(_note("reviewed", row, who, finding=body.finding),),
        ),
        conflict=None
        if state == "ended"
        else Conflict(f"break-glass {row.id} cannot be reviewed: {_NOT_TO_REVIEW[state]}"),
        result={"break_glass": row.id, "state": "reviewed"},
    )


def ask_look(view: View, who: Who, ref: Ref, body: Look, _ids: Ids) -> Proposal:
    """An operator looks. What was not approved, is over, or is another operator's is denied, not merely refused."""
    row = view.break_glass(body.id)
    is_open = row is not None and row.operator == who.id and state_of(row, view.now_ms) == "open"
    context: dict[str, Any] = {
        "until_ms": _until_ms(row, view.now_ms) if row is not None and row.operator == who.id else 0
    }
    approver = view.principal(row.approved_by) if row is not None and is_open and row.approved_by else None
    entities = []
    if approver is not None:
        # As they are now: an approver who left, or is no administrator any more, lets nobody look.
        context["approved_by"] = entity_ref("Person", f"{ref.tenant}/{approver.name}")
        entities.append(view.principal_entity(approver))
    note = Note(
        _KIND, {"event": "looked", "break_glass": body.id, "by": who.id, "what": body.what, "limit": body.limit}
    )
    return Proposal(
        resource=view.tenant_entity(),
        entities=entities,
        context=context,
        change=Change(notes=(note,)),
        secrets={"items": _ROWS[body.what](view, body.limit)} if is_open else {},
    )


def _until_ms(row: BreakGlass, now_ms: int) -> int:
    """Until when it is open; before it was approved, until when it would be if it were now: what is missing then is approval alone."""
    if state_of(row, now_ms) == "requested":
        return now_ms + row.duration_ms
    return row.until_ms if row.ended_at_ms is None else min(row.until_ms, row.ended_at_ms)


def _decisions(view: View, limit: int) -> list[dict[str, Any]]:
    names = ("id", "action", "principal", "resource", "allowed", "at_ms", "leaf_index")
    return [{name: getattr(row, name) for name in names} for row in view.last_decisions(limit)]


def _operations(view: View, limit: int) -> list[dict[str, Any]]:
    names = (
        "id",
        "action",
        "resource",
        "state",
        "principal",
        "attempt",
        "decision_id",
        "created_at_ms",
        "updated_at_ms",
    )
    told = []
    for row in view.last_operations(limit):
        code = (row.error or {}).get("code")
        told.append({name: getattr(row, name) for name in names} | {"error_code": code})
    return told


def _headers(view: View, limit: int) -> list[dict[str, Any]]:
    told = []
    for row in view.last_leaves(limit):
        try:
            header = canonical.loads(row.header.encode())
        except FormatError:  # A damaged header is for fsck to tell of.
            continue
        told.append({"index": row.leaf_index} | {name: header[name] for name in ("kind", "time_ms", "actor", "owner")})
    return told


_ROWS: Mapping[str, Callable[[View, int], list[dict[str, Any]]]] = {
    "decisions": _decisions,
    "operations": _operations,
    "log": _headers,
}


VERBS = (
    Verb(
        action="tenant.request-break-glass",
        summary="Ask a tenant, as an operator, to let you look at what happened there.",
        form=RefForm.TENANT,
        body=RequestBreakGlass,
        propose=ask_request,
    ),
    Verb(
        action="tenant.approve-break-glass",
        summary="Let the operator who asked look, for as long as they asked for.",
        form=RefForm.TENANT,
        body=OfBreakGlass,
        propose=ask_approve,
    ),
    Verb(
        action="tenant.break-glass",
        summary="Look, as an operator, at decisions, operations or log headers of a tenant that let you.",
        form=RefForm.TENANT,
        body=Look,
        propose=ask_look,
    ),
    Verb(
        action="tenant.end-break-glass",
        summary="End it before its time.",
        form=RefForm.TENANT,
        body=OfBreakGlass,
        propose=ask_end,
    ),
    Verb(
        action="tenant.review-break-glass",
        summary="Say what you found when you reviewed what was done behind the glass.",
        form=RefForm.TENANT,
        body=ReviewBreakGlass,
        propose=ask_review,
    ),
)
