"""Adapter ``http-tickets``: change tickets by ``GET`` from an address that the operators set.

Rules kept here:

- The address is the operators', with ``{tenant}`` and ``{ticket}`` in its path; both are plain names, so neither leads elsewhere.
- The token is read from a file of this user alone, and sent to that address only; no redirect is followed.
- 404 is no ticket. Every other answer but 200 is no answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from licet_adapters import outbound
from licet_adapters.errors import InputRefused, NotFound, Unavailable
from licet_adapters.guard import WarrantGuard
from licet_adapters.tickets.common import MAX_TICKET_BYTES, check_names, read_ticket
from licet_attestations.errors import SignerError
from licet_attestations.signer.keystore import read_passphrase

if TYPE_CHECKING:
    from licet_adapters.ports import AdapterContext, Parameters, TicketFact

_OK, _NOT_FOUND = 200, 404


class HttpTickets:
    """Asks another system for tickets.

    Args:
        context: What every adapter is given.
    """

    def __init__(self, context: AdapterContext) -> None:
        self._guard = WarrantGuard("http-tickets", context.trust_root, context.data_dir, context.clock)
        self._clock = context.clock
        self._url = context.option("tickets_url")
        self._token_file = context.option("tickets_token_file")
        self._timeout_s = float(context.option("outbound_timeout_s", "10"))
        self._networks = outbound.parse_networks(context.option("outbound_networks"))
        self._max_age_s = int(context.option("ticket_max_age_s", "3600"))

    def fetch(self, warrant: bytes, tenant: str, ticket: str, parameters: Parameters) -> TicketFact:
        """See ``Tickets.fetch``."""
        check_names(tenant, ticket)
        self._guard.admit(
            warrant,
            tenant=tenant,
            operation="tickets.fetch",
            parameters=parameters,
            resources={"ticket": f"{tenant}/{ticket}"},
        )
        if "{ticket}" not in self._url:
            raise Unavailable(
                "no address of tickets is set: LICET_TICKETS_URL, with {ticket} in it", code="tickets.none"
            )
        answer = outbound.request(
            "GET",
            self._url.replace("{tenant}", tenant).replace("{ticket}", ticket),
            headers={"Accept": "application/json", "User-Agent": "licet-tickets/1", **self._authorization()},
            networks=self._networks,
            # The address is the operators' own; it is still refused for another machine.
            unsafe_http=True,
            timeout_s=self._timeout_s,
            max_bytes=MAX_TICKET_BYTES + 1,
        )
        if answer.status == _NOT_FOUND:
            raise NotFound(f"there is no ticket {ticket}", code="tickets.not-found")
        if answer.status != _OK:
            raise Unavailable(f"ticket {ticket} cannot be fetched: answered {answer.status}")
        return read_ticket(answer.body, ticket, now_ms=self._clock(), max_age_s=self._max_age_s)

    def _authorization(self) -> dict[str, str]:
        if not self._token_file:
            return {}
        try:
            # The same rules as for a passphrase: a file of this user alone, not a link, not empty.
            token = read_passphrase(Path(self._token_file)).decode("ascii")
        except (SignerError, UnicodeDecodeError) as error:
            raise InputRefused("the token of the ticket system cannot be read", code="tickets.token") from error
        return {"Authorization": f"Bearer {token}"}
