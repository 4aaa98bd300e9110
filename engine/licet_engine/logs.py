"""How the processes log: one JSON object a line on standard error, configured by them and by nobody else.

Rules kept here: a line has a time, a level, where it came from, what happened, and the key-values given with it. Bodies,
tokens and keys are never given.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Final

_OWN: Final = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Render a record."""
        told = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        told |= {key: value for key, value in vars(record).items() if key not in _OWN}
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


def configure(level: int = logging.INFO) -> None:
    """Make this process log."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # They tell at INFO what is of no use to an operator: every statement, every request of our own health checks.
    for name in ("alembic", "dbos", "httpx", "httpcore", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.WARNING)
