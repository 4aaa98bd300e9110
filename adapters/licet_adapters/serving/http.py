"""One caller's connection: HTTP/1.1 in, one exchange after the other out.

Rules kept here:

- A request is taken by who asks before anything of its body is looked at: the head is handed on when it is whole, and
  the body is read on only if it is wanted; what is not wanted is read past, bounded, so that the caller sees its answer.
- Heads, bodies and exchanges at a time are bounded, and so is the time: for a request to arrive, for a connection to be
  idle, for a caller to take its answer. Of the places and bytes that all share, each has no more than its share.
- Answers leave in the order of their requests.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol, cast

import httptools

from licet_adapters.serving.crowd import NOBODY
from licet_adapters.serving.problems import Reply, problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from licet_adapters.serving.crowd import Crowd

MAX_HEAD_BYTES = 16 << 10
_MAX_URL_BYTES = 2048
_MAX_HEADERS = 100
_MAX_AT_A_TIME = 16
_MAX_DISCARDED_BYTES = 16 << 20
"""Read past, so that a caller who sends before it listens sees its answer."""
_MAX_BODY_BYTES = 64 << 20
"""Of any endpoint; what is announced beyond it is not even asked about."""
_MAX_EARLY_BYTES = 1 << 20
"""Of a body of which it is not known yet whether it is wanted: what came with the head."""
_MAX_SHOWN_CHARS = 60
_MEDIA_CHARS = frozenset(map(len, (b"content-type", b"content-encoding", b"inference-header-content-length")))
"""Lengths of the names of headers that say what a body is; most other names are not lowered."""
ARRIVAL_S = 10.0
IDLE_S = 75.0
STALL_S = 10.0


def _odd_media(name: bytes, value: bytes) -> str:
    """What is wrong with a header that says what the body is; empty if nothing is, or it is another header."""
    said = value.strip().lower()
    if name == b"content-type" and said.partition(b";")[0].strip() != b"application/json":
        shown = said.decode("latin-1")[:_MAX_SHOWN_CHARS]
        return f"the body must be application/json; this one says it is {shown!r}"
    if name == b"content-encoding" and said != b"identity":
        return "a body is taken as it is: send it without a Content-Encoding"
    if name == b"inference-header-content-length":
        return "tensors are taken as JSON, and not as binary data"
    return ""


class Exchange:
    """One request and its answer.

    Args:
        connection: Which it came on.
    """

    __slots__ = ("_body", "_connection", "_held", "_owner", "announced", "body_limit", "expects", "head_is_read",
                 "is_whole", "keep_alive", "method", "odd_media", "on_whole", "reply", "size", "token", "url")  # fmt: skip

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._body: list[bytes] = []
        self._owner, self._held = NOBODY, 0
        self.url = b""
        self.method = b""
        self.token = b""
        self.odd_media = ""
        self.size = self.announced = 0
        self.expects = False
        self.body_limit: int | None = None
        self.head_is_read = self.is_whole = False
        self.keep_alive = True
        self.reply: Reply | None = None
        self.on_whole: Callable[[bytes], None] | None = None

    def know(self, tenant: str) -> bool:
        """Note for whom it is; answered with 503, it returns False, if that tenant's connections have all their places."""
        if self._connection.crowd.know(self._connection, tenant):
            return True
        self.keep_alive = False
        self.answer(problem(503, "overloaded", "this tenant has as many connections as it may; try again"))
        return False

    def want_body(self, tenant: str, limit: int, then: Callable[[bytes], None]) -> None:
        """Read the body, at most ``limit`` bytes, and call ``then`` with it; too large, it is answered with 413.

        It counts as the tenant's until the request is answered.
        """
        if max(self.size, self.announced) > limit:
            self.refuse_size(limit)
            return
        early = self._held
        self.let_go()
        self._owner = tenant
        if not self._hold(early):
            return
        self.body_limit, self.on_whole = limit, then
        self._connection.go_on(self)

    def add(self, part: bytes) -> None:
        """A part of the body arrived."""
        self.size += len(part)
        if self.reply is not None:
            return  # Read past.
        limit = _MAX_EARLY_BYTES if self.body_limit is None else self.body_limit
        if self.size > limit:
            self.refuse_size(limit)
        elif self._hold(len(part)):
            self._body.append(part)

    def _hold(self, size: int) -> bool:
        """Take room for a part of the body; answered with 503, it returns False, if there is none."""
        if not self._connection.crowd.hold(self._owner, size):
            self.answer(problem(503, "overloaded", "the requests that wait fill the room there is; try again"))
            return False
        self._held += size
        return True

    def let_go(self) -> None:
        """Give back the room that the body has; once answered, or when nobody waits for the answer any more."""
        if self._held:
            self._connection.crowd.let_go(self._owner, self._held)
            self._held = 0

    def refuse_size(self, limit: int) -> None:
        """Answer that the body is too large."""
        self.answer(problem(413, "too-large", f"the body is larger than the {limit} bytes that this endpoint takes"))

    def whole(self) -> None:
        """The request arrived to its end; whoever wants the body is given it."""
        if self.is_whole and self.on_whole is not None and self.reply is None:
            then, self.on_whole = self.on_whole, None
            then(self._body[0] if len(self._body) == 1 else b"".join(self._body))

    def answer(self, reply: Reply) -> None:
        """Answer, once; later answers are dropped."""
        if self.reply is None:
            self.reply = reply
            self._body = []
            self.let_go()
            self._connection.flush()


class Plane(Protocol):
    """Who answers; see ``DataPlane``."""

    crowd: Crowd[Connection]

    def begin(self, exchange: Exchange) -> None:
        """The head of a request was read: say what becomes of it."""
        ...


class Connection(asyncio.Protocol):
    """One connection.

    Args:
        plane: Who answers.
    """

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self.crowd = plane.crowd
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._exchanges: deque[Exchange] = deque()
        self._reading: Exchange | None = None
        self._head_bytes = self._headers = self._header_bytes = self._frame_bytes = 0
        self._paused = self._closing = self._closing_after = False
        self._deadline_s = time.monotonic() + ARRIVAL_S
        self._stalled_since_s: float | None = None

    # --- asyncio calls these -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's."""
        self._transport = cast("asyncio.Transport", transport)
        if not self.crowd.enter(self):
            self.give_way()

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio's."""
        del exc
        self._transport = None
        self.crowd.leave(self)
        for exchange in self._exchanges:
            exchange.let_go()

    def pause_writing(self) -> None:
        """The caller does not take its answers."""
        self._stalled_since_s = time.monotonic()

    def resume_writing(self) -> None:
        """It does."""
        self._stalled_since_s = None

    def data_received(self, data: bytes) -> None:
        """Asyncio's."""
        if self._closing:
            return
        reading, size = self._reading, 0
        if reading is None or not reading.head_is_read:
            if reading is None:
                self._deadline_s = time.monotonic() + ARRIVAL_S
            self._head_bytes += len(data)
        else:
            size = reading.size
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(problem(400, "invalid-input", "this server does not upgrade connections"))
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, _Refused):
                raise
            self._refuse(cause.reply)
        except httptools.HttpParserError:
            self._refuse(problem(400, "invalid-input", "not an HTTP/1.1 request"))
        else:
            self._bound(reading, size, len(data))

    def _bound(self, before: Exchange | None, size: int, fed: int) -> None:
        """Close where what is neither body nor the end of it grows too large.

        The parser keeps a field until it is whole, and joins its parts anew with each that arrives: that is bounded by what is read.

        Args:
            before: The exchange that was being read.
            size: How much of its body had arrived.
            fed: How many bytes were read since.
        """
        reading = self._reading
        if reading is None or self._closing:
            return
        if not reading.head_is_read:
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(problem(431, "too-large", f"the head of a request has at most {MAX_HEAD_BYTES} bytes"))
            return
        # Frames of chunks between two parts of a body, and trailers after the last.
        self._frame_bytes = self._frame_bytes + fed if reading is before and reading.size == size else 0
        if self._frame_bytes > MAX_HEAD_BYTES:
            self._refuse(problem(431, "too-large", f"what frames a body has at most {MAX_HEAD_BYTES} bytes"))

    # --- httptools calls these -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        if len(self._exchanges) >= _MAX_AT_A_TIME:
            raise _Refused(problem(400, "invalid-input", f"at most {_MAX_AT_A_TIME} requests wait on one connection"))
        self._reading = Exchange(self)
        self._headers = self._header_bytes = 0
        self._exchanges.append(self._reading)

    def on_url(self, url: bytes) -> None:
        """A part of its target."""
        exchange = self._reading
        if exchange is not None:
            exchange.url += url
            if len(exchange.url) > _MAX_URL_BYTES:
                raise _Refused(problem(400, "invalid-input", f"a target has at most {_MAX_URL_BYTES} bytes"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header of it."""
        self._headers += 1
        self._header_bytes += len(name) + len(value)
        if self._headers > _MAX_HEADERS or self._header_bytes > MAX_HEAD_BYTES:
            raise _Refused(
                problem(431, "too-large", f"a request has at most {_MAX_HEADERS} headers of {MAX_HEAD_BYTES} bytes")
            )
        exchange = self._reading
        if exchange is None or exchange.head_is_read:
            return  # A trailer.
        if len(name) == 13 and name.lower() == b"authorization":  # noqa: PLR2004  # Its length: most names are not lowered.
            if exchange.token:
                raise _Refused(problem(400, "invalid-input", "one Authorization header is taken"))
            scheme, _, token = value.partition(b" ")
            exchange.token = token.strip() if scheme.lower() == b"bearer" else b""
        elif len(name) == 14 and name.lower() == b"content-length":  # noqa: PLR2004  # As above.
            # What is announced counts at once, so that too much is refused before it is sent. The parser knows it is a number.
            exchange.announced = int(value)
        elif len(name) == 6 and name.lower() == b"expect":  # noqa: PLR2004  # As above.
            exchange.expects = True
        elif len(name) in _MEDIA_CHARS:
            exchange.odd_media = exchange.odd_media or _odd_media(name.lower(), value)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        exchange = self._reading
        if exchange is None:
            return
        exchange.method = self._parser.get_method()
        exchange.keep_alive = self._parser.should_keep_alive()
        exchange.head_is_read = True
        self._head_bytes = self._frame_bytes = 0
        if exchange.announced > _MAX_BODY_BYTES:
            raise _Refused(problem(413, "too-large", f"a body has at most {_MAX_BODY_BYTES} bytes"))
        self._plane.begin(exchange)
        if exchange.reply is None and exchange.on_whole is None and self._transport is not None:
            # Who asks is not known yet: what follows the head stays where it is.
            self._paused = True
            self._transport.pause_reading()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        exchange = self._reading
        if exchange is not None:
            exchange.add(body)
            if exchange.reply is not None and exchange.size > _MAX_DISCARDED_BYTES:
                self._close()

    def on_message_complete(self) -> None:
        """The request is whole."""
        exchange, self._reading = self._reading, None
        self._deadline_s = time.monotonic() + IDLE_S
        if self._closing_after:
            self._close()
        elif exchange is not None:
            exchange.is_whole = True
            exchange.whole()

    # --- exchanges call these ------------------------------------------------------------------------------------------

    def go_on(self, exchange: Exchange) -> None:
        """Read the body of an exchange that is wanted."""
        self._resume()
        if exchange.expects and not exchange.is_whole and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        exchange.whole()

    def flush(self) -> None:
        """Write the answers that are next."""
        self._resume()
        while self._exchanges and (reply := self._exchanges[0].reply) is not None:
            exchange = self._exchanges.popleft()
            if self._transport is None:
                continue
            self._transport.write(reply.to_bytes(keep_alive=exchange.keep_alive))
            if not exchange.keep_alive:
                # Closed while its body is still arriving, the caller might not see the answer.
                self._closing_after = True
                if exchange.is_whole:
                    self._close()
                return

    def _resume(self) -> None:
        reading = self._reading
        if reading is not None and reading.head_is_read and reading.reply is None and reading.on_whole is None:
            return  # Another's answer left; of this one it is not known yet who asks.
        if self._paused and self._transport is not None:
            self._paused = False
            self._deadline_s = time.monotonic() + ARRIVAL_S
            self._transport.resume_reading()

    def _close(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.close()

    def _refuse(self, reply: Reply) -> None:
        """Answer and close: where the next request begins is not known any more."""
        # Not if an answer before it is still to come: it would be taken for that one's.
        is_next = not self._exchanges or self._reading is self._exchanges[0]
        was_answered = self._reading is not None and self._reading.reply is not None
        if self._transport is not None and is_next and not was_answered:
            self._transport.write(reply.to_bytes(keep_alive=False))
        self._close()

    # --- the crowd calls these -----------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether nothing is asked on it at present."""
        return not self._exchanges

    def give_way(self) -> None:
        """Close, since the place is needed."""
        if self._transport is not None and not self._closing:
            self._refuse(problem(503, "overloaded", "too many connections; try again"))

    # --- time ----------------------------------------------------------------------------------------------------------

    def tick(self, now_s: float) -> None:
        """Close a connection that is too slow."""
        transport = self._transport
        if transport is None:
            return
        if self._stalled_since_s is not None and now_s - self._stalled_since_s > STALL_S:
            transport.abort()
            return
        if now_s < self._deadline_s or self._paused:
            return
        if self._reading is not None or self._head_bytes:
            self._refuse(problem(408, "too-slow", f"a request must arrive within {ARRIVAL_S:.0f} s"))
        elif not self._exchanges:
            transport.close()

    def end(self) -> None:
        """Close it if nothing is under way; else after the answer that is."""
        if not self._exchanges and self._transport is not None:
            self._transport.close()
        for exchange in self._exchanges:
            exchange.keep_alive = False


class _Refused(Exception):  # Carried through the parser.
    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply
