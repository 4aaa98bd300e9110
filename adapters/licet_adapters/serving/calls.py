"""A request on its way to a model, and the connection that carries it to a replica.

Rules kept here:

- A call is answered once, whatever happens: by its replica, by the one it was tried on again, or by a failure.
- One call at a time goes over a connection; a connection that broke or misbehaved is never used again.
- What a replica answers is bounded in head and body.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import httptools

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_ANSWER_BYTES = 64 << 20
_MAX_HEAD_BYTES = 16 << 10
Failure = Literal["timeout", "overloaded", "unavailable"]


@dataclass(slots=True)
class Answer:
    """What a model server answered."""

    status: int
    body: bytes


class Call:
    """One request to one version.

    Args:
        request: Head and body as they go to a replica.
        begun_s: When it came, of the monotonic clock.
        deadline_s: When it is too late.
        done: Told the answer or the failure, once.
    """

    __slots__ = ("begun_s", "deadline_s", "done", "is_over", "request", "tries")

    def __init__(
        self, request: bytes, *, begun_s: float, deadline_s: float, done: Callable[[Call, Answer | Failure], None]
    ) -> None:
        self.request = request
        self.begun_s = begun_s
        self.deadline_s = deadline_s
        self.done = done
        self.tries = 0
        self.is_over = False

    def finish(self, outcome: Answer | Failure) -> None:
        """Tell the outcome, unless one was told."""
        if not self.is_over:
            self.is_over = True
            self.done(self, outcome)


class Upstream(asyncio.Protocol):
    """One connection to a replica.

    Args:
        on_answer: Told the call and its answer; the connection is free again.
        on_broken: Told that the connection is of no use any more, with the call it carried, if any.
    """

    def __init__(
        self, on_answer: Callable[[Upstream, Call, Answer], None], on_broken: Callable[[Upstream, Call | None], None]
    ) -> None:
        self._on_answer, self._on_broken = on_answer, on_broken
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._call: Call | None = None
        self._body: list[bytes] = []
        self._size = 0
        self._head_bytes = 0
        self._finished: tuple[Call, Answer] | None = None

    @property
    def call(self) -> Call | None:
        """What it carries."""
        return self._call

    def send(self, call: Call) -> None:
        """Carry a call; the connection must be free."""
        self._call = call
        if self._transport is None:
            # `connection_lost` was told already, and is not told again.
            asyncio.get_running_loop().call_soon(self._break)
        elif not self._transport.is_closing():
            self._transport.write(call.request)

    def close(self) -> None:
        """Break the connection off."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio's."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio's."""
        del exc
        self._transport = None
        self._break()

    def _break(self) -> None:
        call, self._call = self._call, None
        self._on_broken(self, call)

    def data_received(self, data: bytes) -> None:
        """Asyncio's."""
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.close()
            return
        if self._finished is not None:
            (call, answer), self._finished = self._finished, None
            self._on_answer(self, call, answer)

    # --- httptools calls these -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """An answer begins."""
        if self._call is None or self._finished is not None:
            raise ValueError("an answer that nobody asked for")
        self._body, self._size = [], 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; none is of use."""
        del name, value
        if self._head_bytes - self._size > _MAX_HEAD_BYTES + MAX_ANSWER_BYTES:
            raise ValueError("the head of the answer is too large")

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._size += len(body)
        if self._size > MAX_ANSWER_BYTES:
            raise ValueError("the answer is too large")
        self._body.append(body)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        call, self._call = self._call, None
        if call is None:
            raise ValueError("an answer that nobody asked for")
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._head_bytes = 0
        self._finished = (call, Answer(self._parser.get_status_code(), body))
