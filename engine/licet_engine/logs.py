"""How the engine's processes log: as the signer does, in one form."""

from __future__ import annotations

import logging
from typing import Final

from licet_attestations.signer import logs

_TALKATIVE: Final = ("alembic", "dbos", "httpx", "httpcore", "sqlalchemy")
_OF_THE_SERVER: Final = ("_granian", "granian.access")


def configure() -> None:
    """Make this process log."""
    logs.configure()
    # They tell at INFO what is of no use to an operator: every statement, every request of our own health checks.
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    # The web server has a form of its own; here its lines take ours.
    for name in _OF_THE_SERVER:
        server = logging.getLogger(name)
        server.handlers.clear()
        server.propagate = True
