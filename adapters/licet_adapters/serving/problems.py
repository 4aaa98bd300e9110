"""Answers that are no inference: RFC 9457 problem details, in the one shape of the house.

The member ``error`` repeats ``detail``: that is where a client of the Open Inference Protocol looks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from licet_adapters.jobs import oip

if TYPE_CHECKING:
    from collections.abc import Mapping

_TITLES: Mapping[int, tuple[str, str]] = {
    200: ("OK", ""),
    400: ("Bad Request", "Invalid input"),
    401: ("Unauthorized", "Not authenticated"),
    403: ("Forbidden", "Denied"),
    404: ("Not Found", "Not found"),
    405: ("Method Not Allowed", "Method not allowed"),
    408: ("Request Timeout", "Too slow"),
    413: ("Content Too Large", "Too large"),
    415: ("Unsupported Media Type", "Unsupported media type"),
    431: ("Request Header Fields Too Large", "Too large"),
    500: ("Internal Server Error", "Internal error"),
    503: ("Service Unavailable", "Unavailable"),
    504: ("Gateway Timeout", "Timeout"),
}
_RETRY_AFTER = "1"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the data plane.

    Attributes:
        status: HTTP status.
        body: JSON.
        media_type: Of the body.
        headers: More headers, each ``name: value`` and CRLF.
    """

    status: int
    body: bytes
    media_type: bytes = b"application/json"
    headers: bytes = b""

    def to_bytes(self, *, keep_alive: bool) -> bytes:
        """Head and body."""
        reason = _TITLES[self.status][0].encode() if self.status in _TITLES else b"Error"
        return b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b%b\r\n%b" % (
            self.status,
            reason,
            self.media_type,
            len(self.body),
            self.headers,
            b"" if keep_alive else b"connection: close\r\n",
            self.body,
        )


def problem(status: int, code: str, detail: str, **extra: Any) -> Reply:
    """A problem as an answer."""
    body = {
        "type": f"urn:licet:problem:{code}",
        "title": _TITLES[status][1],
        "status": status,
        "code": code,
        "detail": detail,
        "error": detail,
        **extra,
    }
    headers = ""
    if status == 503:  # noqa: PLR2004  # The one status that goes with it.
        headers = f"retry-after: {_RETRY_AFTER}\r\n"
    elif status == 401:  # noqa: PLR2004  # RFC 9110 wants the challenge with it.
        headers = "www-authenticate: Bearer\r\n"
    return Reply(status, oip.encode(body), b"application/problem+json", headers.encode())
