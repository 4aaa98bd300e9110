"""Bounds on what an S3 server, or whoever stands before it, can cost: every exchange ends, and no answer grows without end.

Rules kept here:

- An exchange (one try of one request, to the last byte of its answer) has a deadline by the clock. Time-outs of single reads do not
  bound it: a byte now and then satisfies them for ever.
- What may be read in it is bounded, too: by the range that was asked for, or by what any answer without a range needs.
- Both are kept at the socket, below everything that parses, so that status line, headers, errors and bodies are all counted.

boto3 offers no such bounds and no way to set them. The classes of its connections are put in the place of its own, which is not part of
its interface: ``bind`` refuses a client whose insides are not as they were when this was written.
"""

from __future__ import annotations

import io
import re
import time
from typing import TYPE_CHECKING, Any

from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)

from licet_adapters.errors import AdapterError

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

SLOWEST_BYTES_PER_S = 128 << 10
"""What moves more slowly than this is taken for standing still."""

MAX_PLAIN_ANSWER_BYTES = 2 << 20
"""Of an answer to a request without a range, headers included: the longest document, or a page of a listing."""

_HEADROOM_BYTES = 256 << 10
"""Headers, and what TLS or chunks put around the bytes."""

_SEND_BYTES = 256 << 10
_RANGE = re.compile(r"bytes=([0-9]{1,18})-([0-9]{1,18})\Z")


class _Exchange:
    """What one try may still take.

    Args:
        answer_s: How long the other side may take beside the time that the bytes need.
        moved_bytes: What is sent and what is asked for, which takes its time.
        read_bytes: Most that the answer may have.
    """

    def __init__(self, answer_s: float, moved_bytes: int, read_bytes: int) -> None:
        self._until_s = time.monotonic() + answer_s + moved_bytes / SLOWEST_BYTES_PER_S
        self._left_bytes = read_bytes + _HEADROOM_BYTES

    def wait_s(self, timeout_s: float | None) -> float:
        """How long the next step may wait."""
        left_s = self._until_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the exchange took too long in all")
        return left_s if timeout_s is None else min(left_s, timeout_s)

    def took(self, size: int) -> None:
        """Count what was read."""
        self._left_bytes -= size
        if self._left_bytes < 0:
            raise ConnectionError("the answer is longer than any that was asked for")


class _Answer(io.RawIOBase):
    """The reading end of an exchange."""

    def __init__(self, sock: _BoundedSocket, exchange: _Exchange) -> None:
        self._sock = sock
        self._exchange = exchange
        # The socket's own file: it keeps the descriptor open for as long as the answer is read.
        self._file = sock.bare.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.bare.settimeout(self._exchange.wait_s(self._sock.timeout_s))
        size = self._file.readinto(buffer) or 0
        self._exchange.took(size)
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


class _BoundedSocket:
    """A connected socket, plain or TLS, within the bounds of its connection's exchange.

    Attributes:
        bare: The socket.
        exchange: What is at work on it.
        timeout_s: Of a single step.
    """

    def __init__(self, bare: socket.socket, exchange: _Exchange) -> None:
        self.bare = bare
        self.exchange = exchange
        self.timeout_s = bare.gettimeout()

    def settimeout(self, timeout_s: float | None) -> None:
        self.timeout_s = timeout_s
        self.bare.settimeout(timeout_s)

    def sendall(self, data: Any) -> None:
        left = memoryview(data)
        while left:
            self.bare.settimeout(self.exchange.wait_s(self.timeout_s))
            left = left[self.bare.send(left[:_SEND_BYTES]) :]

    def makefile(self, _mode: str = "rb", buffering: int = -1) -> Any:
        answer = _Answer(self, self.exchange)
        return answer if buffering == 0 else io.BufferedReader(answer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bare, name)


def _pools(answer_s: float) -> dict[str, Any]:
    class Bounded:
        """What a connection of either kind does more."""

        _exchange: _Exchange | None = None

        def connect(self: Any) -> None:
            super().connect()  # type: ignore[misc]  # Of the class that this is mixed into.
            # The handshake is bounded in whole by its time-out; from here on the exchange counts.
            self.sock = _BoundedSocket(self.sock, self._exchange or _Exchange(answer_s, 0, MAX_PLAIN_ANSWER_BYTES))

        def request(self: Any, method: str, url: str, body: Any = None, headers: Any = None, **options: Any) -> Any:
            self._exchange = _of_request(answer_s, headers or {})
            if self.sock is not None:
                self.sock.exchange = self._exchange
            return super().request(method, url, body, headers, **options)  # type: ignore[misc]  # As above.

    class Plain(Bounded, AWSHTTPConnection):  # type: ignore[misc]  # botocore has no types.
        """Without TLS."""

    class Tls(Bounded, AWSHTTPSConnection):  # type: ignore[misc]  # As above.
        """With TLS."""

    class PlainPool(AWSHTTPConnectionPool):  # type: ignore[misc]  # As above.
        """Its pool."""

        ConnectionCls = Plain

    class TlsPool(AWSHTTPSConnectionPool):  # type: ignore[misc]  # As above.
        """Its pool."""

        ConnectionCls = Tls

    return {"http": PlainPool, "https": TlsPool}


def _of_request(answer_s: float, headers: Mapping[str, Any]) -> _Exchange:
    told = {_text(name).lower(): _text(value) for name, value in headers.items()}
    # By TLS a body goes in chunks, with a checksum after it, and has no length of its own.
    length = told.get("content-length") or told.get("x-amz-decoded-content-length", "0")
    sent_bytes = int(length) if length.isdecimal() else 0
    asked = _RANGE.match(told.get("range", ""))
    if asked is None:
        return _Exchange(answer_s, sent_bytes, MAX_PLAIN_ANSWER_BYTES)
    asked_bytes = int(asked[2]) - int(asked[1]) + 1
    return _Exchange(answer_s, sent_bytes + asked_bytes, asked_bytes)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def bind(client: Any, answer_s: float) -> Any:
    """Keep a new client to the bounds; return it.

    Args:
        client: Of boto3, not used yet.
        answer_s: How long one try of a request may take beside the time that its bytes need.

    Raises:
        AdapterError: It is not made as it was: nothing would bound it.
    """
    pools = _pools(answer_s)
    session: Any = getattr(getattr(client, "_endpoint", None), "http_session", None)
    manager: Any = getattr(session, "_manager", None)
    if not hasattr(manager, "pool_classes_by_scheme") or not hasattr(session, "_pool_classes_by_scheme"):
        raise AdapterError("this botocore cannot be kept to bounds: install the version in constraints.txt")
    session._pool_classes_by_scheme = pools  # noqa: SLF001  # For connections through a proxy, which are made later.
    manager.pool_classes_by_scheme = pools
    return client
