"""Change tickets: facts of another system, fetched by the worker, named in a promotion.

Rules kept here:

- A ticket is what the other system said at ``as_of_ms``, and counts until ``fresh_until_ms``; policy holds the time
  against it. What was not fetched is not there. A failed fetch changes nothing: what was known grows old.
- Whether a ticket is about a version is compared here, by reference: the version, or its model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from licet_engine.domain.errors import Conflict
from licet_engine.domain.refs import Ref
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.verbs import Body, Change, Ids, Insert, Note, Proposal, RefForm, Update, Verb, Who
from licet_engine.store.tables import Operation, Ticket

if TYPE_CHECKING:
    from licet_engine.lifecycle.deed import Deed

TicketId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


class FetchTicket(Body):
    """Which ticket."""

    ticket: TicketId


def ticket_fact(view: View, ref: Ref, ticket_id: str | None) -> dict[str, Any]:
    """What is known of a ticket that a promotion of ``ref`` names, as a part of its context; nothing if it is not known."""
    row = None if ticket_id is None else view.ticket(ticket_id)
    if row is None:
        return {}
    return {
        "ticket": {
            "id": row.id,
            "state": row.state,
            "approved": row.approved,
            "covers": bool({str(ref), str(ref.unversioned)} & set(row.subjects)),
            "as_of_ms": row.as_of_ms,
            "fresh_until_ms": row.fresh_until_ms,
        }
    }


def ask_fetch(view: View, _who: Who, ref: Ref, body: FetchTicket, _ids: Ids) -> Proposal:
    """A ticket is fetched from where the operators said tickets are."""
    return Proposal(
        resource=view.plain_entity("ChangeTicket", Ref(ref.tenant, body.ticket)),
        parameters={"ticket": body.ticket},
    )


def do_fetch(deed: Deed) -> Mapping[str, Any]:
    """Fetch it, in every attempt anew: what it said before a crash may be old by now."""
    tickets = deed.adapters.tickets
    if tickets is None:
        raise Conflict(
            "no system of change tickets is set up: operators name one in LICET_ADAPTERS and LICET_TICKETS",
            code="no-tickets",
        )
    ticket_id = deed.parameters["ticket"]

    def fetch(warrant: bytes, _attempt: int) -> dict[str, Any]:
        told = tickets.fetch(warrant, deed.tenant, ticket_id, deed.parameters)
        return {
            "state": told.state,
            "approved": told.approved,
            "subjects": list(told.subjects),
            "as_of_ms": told.as_of_ms,
            "fresh_until_ms": told.fresh_until_ms,
        }

    resources = {"ticket": f"{deed.tenant}/{ticket_id}"}
    return deed.effect("fetch", fetch, adapter=deed.tickets_name, operation="tickets.fetch", resources=resources)


def finish_fetch(view: View, operation: Operation, result: Mapping[str, Any], now_ms: int) -> Change:
    """What was fetched is what is known from now on; never something older than what is known already."""
    ticket_id = operation.parameters["ticket"]
    values = {**result, "fetched_at_ms": now_ms, "operation_id": operation.id}
    note = Note("facts", {"event": "ticket-fetched", "ticket": ticket_id, **result})
    present = view.ticket(ticket_id)
    if present is None:
        return Change(inserts=(Insert(Ticket, {"id": ticket_id, **values}),), notes=(note,))
    if present.as_of_ms > result["as_of_ms"]:
        return Change(notes=(note,))
    return Change(updates=(Update(Ticket, {"id": ticket_id}, values),), notes=(note,))


VERBS = (
    Verb(
        action="ticket.fetch",
        summary="Fetch a change ticket, so that a promotion can name it.",
        form=RefForm.TENANT,
        body=FetchTicket,
        propose=ask_fetch,
        do=do_fetch,
        finish=finish_fetch,
    ),
)
