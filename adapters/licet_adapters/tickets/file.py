"""Adapter ``file-tickets``: change tickets as files, ``FOLDER/TENANT/TICKET.json``, put there by who exports them.

Rules kept here: no link is followed, nothing but a plain file is read, and no more of it than a ticket may have.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from licet_adapters.errors import InputRefused, NotFound, Unavailable
from licet_adapters.guard import WarrantGuard
from licet_adapters.tickets.common import MAX_TICKET_BYTES, check_names, read_ticket

if TYPE_CHECKING:
    from licet_adapters.ports import AdapterContext, Parameters, TicketFact


class FileTickets:
    """Reads tickets from a folder.

    Args:
        context: What every adapter is given.
    """

    def __init__(self, context: AdapterContext) -> None:
        self._guard = WarrantGuard("file-tickets", context.trust_root, context.data_dir, context.clock)
        self._clock = context.clock
        self._folder = context.option("tickets_folder")
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
        if not self._folder:
            raise Unavailable("no folder of tickets is set: LICET_TICKETS_FOLDER", code="tickets.none")
        data = self._read(tenant, f"{ticket}.json", ticket)
        return read_ticket(data, ticket, now_ms=self._clock(), max_age_s=self._max_age_s)

    def _read(self, tenant: str, name: str, ticket: str) -> bytes:
        plain = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            root = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
            try:
                folder = os.open(tenant, plain | os.O_DIRECTORY, dir_fd=root)
                try:
                    # Not blocking: a pipe would wait for who writes into it.
                    file = os.open(name, plain | os.O_NONBLOCK, dir_fd=folder)
                finally:
                    os.close(folder)
            finally:
                os.close(root)
        except FileNotFoundError as error:
            raise NotFound(f"there is no ticket {ticket}", code="tickets.not-found") from error
        except OSError as error:
            raise Unavailable(f"ticket {ticket} cannot be read: {error.strerror}") from error
        with os.fdopen(file, "rb") as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise InputRefused(f"ticket {ticket} is no plain file", code="input.ticket")
            return opened.read(MAX_TICKET_BYTES + 1)
