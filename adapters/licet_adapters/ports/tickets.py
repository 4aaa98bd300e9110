"""The port of change tickets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from licet_adapters.ports.base import Parameters


@dataclass(frozen=True, kw_only=True, slots=True)
class TicketFact:
    """A change ticket as another system tells of it.

    Attributes:
        state: Its state in that system's words.
        approved: Whether the change is approved.
        subjects: References of the models or versions that it is about.
        as_of_ms: When it was so.
        fresh_until_ms: Until when that may be relied on.
    """

    state: str
    approved: bool
    subjects: Sequence[str]
    as_of_ms: int
    fresh_until_ms: int


class Tickets(Protocol):
    """Adapters ``file-tickets``, ``http-tickets`` and their peers; operation ``tickets.fetch``."""

    def fetch(self, warrant: bytes, tenant: str, ticket: str, parameters: Parameters) -> TicketFact:
        """Fetch one ticket.

        Raises:
            WarrantRefused: See the guard.
            NotFound: There is no such ticket.
            InputRefused: What was found is no ticket of the form expected, is another, or is too old.
            Unavailable: It cannot be fetched now.
        """
        ...
