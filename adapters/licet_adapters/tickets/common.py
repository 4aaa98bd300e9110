"""What a change ticket looks like, wherever it comes from, and how it becomes a fact.

Rules kept here:

- A ticket is a JSON object ``{"id", "state", "approved", "subjects", "as_of_ms"}``; other members are not looked at. Anything
  of another type, of another ticket, from the future or too old is refused: what is not clearly a ticket is none.
- A ticket that says nothing of ``subjects`` is about nothing.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from licet_adapters.errors import InputRefused
from licet_adapters.ports import TicketFact, check_tenant

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_TICKET_BYTES = 64 * 1024
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_STATE = re.compile(r"[ -~]{1,64}")
_SUBJECT = re.compile(r"[a-z0-9@/-]{1,128}")
_MAX_SUBJECTS = 64
_MAX_SKEW_MS = 60_000


def check_names(tenant: str, ticket: str) -> None:
    """Raise ``InputRefused`` unless these are a tenant and a ticket: so neither becomes more than one part of a path."""
    check_tenant(tenant)
    if not _ID.fullmatch(ticket):
        raise InputRefused("not the identifier of a ticket", code="input.ticket")


def read_ticket(data: bytes, ticket: str, *, now_ms: int, max_age_s: int) -> TicketFact:
    """Read a ticket.

    Args:
        data: As it was found.
        ticket: Identifier of the one that was asked for.
        now_ms: The time.
        max_age_s: How long it may be relied on.

    Raises:
        InputRefused: It is none, is another, or is too old.
    """
    if len(data) > MAX_TICKET_BYTES:
        raise InputRefused(f"ticket {ticket} is over {MAX_TICKET_BYTES} bytes", code="input.ticket")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputRefused(f"ticket {ticket} is not JSON", code="input.ticket") from error
    match found:
        case {"id": str(name), "state": str(state), "approved": bool(approved), "as_of_ms": int(as_of_ms)}:
            pass
        case _:
            raise InputRefused(f"ticket {ticket} lacks id, state, approved or as_of_ms", code="input.ticket")
    if name != ticket:
        raise InputRefused(f"ticket {ticket} was asked for, and another was given", code="input.other-ticket")
    if isinstance(as_of_ms, bool) or not 0 <= as_of_ms <= now_ms + _MAX_SKEW_MS or not _STATE.fullmatch(state):
        raise InputRefused(f"ticket {ticket} bears no sound time or state", code="input.ticket")
    fresh_until_ms = as_of_ms + max_age_s * 1000
    if fresh_until_ms <= now_ms:
        raise InputRefused(
            f"what is known of ticket {ticket} is older than {max_age_s} s: have it brought up to date",
            code="input.stale-ticket",
        )
    return TicketFact(
        state=state,
        approved=approved,
        subjects=_subjects(found, ticket),
        as_of_ms=as_of_ms,
        fresh_until_ms=fresh_until_ms,
    )


def _subjects(found: Mapping[str, Any], ticket: str) -> list[str]:
    subjects = found.get("subjects", [])
    if not isinstance(subjects, list) or len(subjects) > _MAX_SUBJECTS:
        raise InputRefused(f"ticket {ticket}: subjects is no list of at most {_MAX_SUBJECTS}", code="input.ticket")
    if not all(isinstance(subject, str) and _SUBJECT.fullmatch(subject) for subject in subjects):
        raise InputRefused(f"ticket {ticket}: a subject is a reference such as a/model@1", code="input.ticket")
    return sorted(set(subjects))
