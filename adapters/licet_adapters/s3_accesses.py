"""S3 server access logs, read: what the object store itself says was done in a bucket.

Rules kept here: a line is read by its first fields, and what follows them may grow; a line that has not the form is counted, never guessed.

Source: Amazon S3 User Guide, "Amazon S3 server access log format".
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_LINE_CHARS: Final = 16 * 1024
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# Owner, bucket, [time], address, requester, request, operation, key, "request line", status.
_LINE: Final = re.compile(
    r"(?P<owner>\S+) (?P<bucket>\S+) \[(?P<time>[^\]]{26})\] (?P<address>\S+) (?P<requester>\S+) (?P<request>\S+) "
    r'(?P<operation>\S+) (?P<key>\S+) (?:-|"(?:[^"\\]|\\.)*") (?P<status>\d{3}|-)(?: .*)?'
)
_TIME: Final = re.compile(r"(\d{2})/([A-Z][a-z]{2})/(\d{4}):(\d{2}):(\d{2}):(\d{2}) ([+-])(\d{2})(\d{2})")


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """One request to a bucket.

    Attributes:
        bucket: Which.
        at_ms: When, to the second.
        requester: Who, as the store calls them; ``-`` for nobody known.
        operation: As the store calls it: ``REST.GET.OBJECT``.
        key: Of the object; empty where the request was about none.
        status: HTTP status; 0 where there is none.
    """

    bucket: str
    at_ms: int
    requester: str
    operation: str
    key: str
    status: int


def read_accesses(lines: Iterable[str]) -> Iterator[StoreAccess | None]:
    """Read a log; None for a line that has not the form. Empty lines are left out."""
    for line in lines:
        if line.strip():
            yield _read(line.rstrip("\n"))


def _read(line: str) -> StoreAccess | None:
    match = _LINE.fullmatch(line) if len(line) <= MAX_LINE_CHARS else None
    at_ms = None if match is None else _time_ms(match["time"])
    if match is None or at_ms is None:
        return None
    # NOTE: Keys are URL-encoded twice where they have special characters; ours have none, so once is enough to compare.
    key = "" if match["key"] == "-" else unquote(match["key"])
    status = 0 if match["status"] == "-" else int(match["status"])
    return StoreAccess(match["bucket"], at_ms, match["requester"], match["operation"], key, status)


def _time_ms(text: str) -> int | None:
    match = _TIME.fullmatch(text)
    if match is None or match[2] not in _MONTHS:
        return None
    try:
        offset = dt.timedelta(hours=int(match[8]), minutes=int(match[9]))
        zone = dt.timezone(offset if match[7] == "+" else -offset)
        day = (int(match[3]), _MONTHS.index(match[2]) + 1, int(match[1]))
        moment = dt.datetime(*day, int(match[4]), int(match[5]), int(match[6]), tzinfo=zone)
    except ValueError:
        return None
    return int(moment.timestamp()) * 1000
