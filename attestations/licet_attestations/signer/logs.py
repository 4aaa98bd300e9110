"""How the processes log: one JSON object a line on standard error, configured by them and by nobody else.

Rules kept here:

- A line has a time, a level, where it came from, what happened, and the key-values given with it. Bodies, tokens and keys are
  never given.
- On a terminal, where a person reads, it is text, and only what a person should look at.
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


class TextFormatter(logging.Formatter):
    """A record as a line for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Render a record."""
        told = [f"{record.levelname.lower()}: {record.getMessage()}"]
        told += [f"{key}={value}" for key, value in vars(record).items() if key not in _OWN]
        if record.exc_info:
            told.append("\n" + self.formatException(record.exc_info))
        # Nothing that came from elsewhere may steer the terminal.
        return "".join(char if char.isprintable() or char == "\n" else " " for char in " ".join(told))


def configure() -> None:
    """Make this process log."""
    handler = logging.StreamHandler(sys.stderr)
    is_terminal = sys.stderr.isatty()
    handler.setFormatter(TextFormatter() if is_terminal else JsonFormatter())
    logging.basicConfig(level=logging.WARNING if is_terminal else logging.INFO, handlers=[handler], force=True)
