"""What stands before every route: who may come in now, how long it took, and which trace it belongs to.

Rules kept here:

- A request is counted against its token and its tenant before its body is read. Who sends no token that counts shares
  one rate and one queue with all who do not.
- Health is asked about by machines that must be answered while everybody else waits: it passes freely.
- What is measured names routes as they are written, never what was sent.
- A client that stops sending loses its place.
- Who is answered before all of the body was read is told that the connection closes: what is left of the body stands where the next
  request would, so the server cannot go on with it, and a client that is not told loses the request it sends next.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any, Final

from litestar.enums import ScopeType
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from licet_engine import telemetry
from licet_engine.api.limits import Places
from licet_engine.domain.errors import TooManyRequests, Unauthenticated
from licet_engine.domain.rates import Buckets
from licet_engine.lifecycle.tenants import Tenants
from licet_engine.metrics import ApiMetrics

RECEIVE_WITHIN_S: Final = 30.0
"""How long a client may take for the next part of its body."""
_BEARER: Final = b"Bearer "
_NOBODY: Final = "~nobody"
_BODY: Final = "licet_body"


class FrontDoor(ASGIMiddleware):
    """Lets requests in, in turn, and measures them.

    Args:
        tenants: Tells who a token speaks for.
        places: Where requests are worked on.
        per_token: Rates of tokens.
        per_tenant: Rates of tenants.
        metrics: What is measured.
    """

    scopes = (ScopeType.HTTP,)

    def __init__(
        self, tenants: Tenants, places: Places, per_token: Buckets, per_tenant: Buckets, metrics: ApiMetrics
    ) -> None:
        self._tenants = tenants
        self._places = places
        self._per_token = per_token
        self._per_tenant = per_tenant
        self._metrics = metrics

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        """See ``ASGIMiddleware``."""
        if scope["path"].startswith("/health/"):
            await next_app(scope, receive, send)
            return
        began_s = time.perf_counter()
        route, method = str(scope.get("path_template") or "other"), str(scope.get("method", ""))
        status = 500
        body = _Body(receive, has_any=_has_body(scope))
        scope["state"][_BODY] = body

        async def remember(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            tenant = self._admit(scope)
            async with self._places.place(tenant):
                with telemetry.serving(f"{method} {route}", _header(scope, b"traceparent")):
                    await next_app(scope, body.receive, remember)
        except TooManyRequests:
            status = TooManyRequests.status
            raise
        finally:
            self._metrics.served(method, route, status, time.perf_counter() - began_s)

    def _admit(self, scope: Scope) -> str:
        """Count a request against its rates; return the tenant in whose turn it waits.

        Raises:
            TooManyRequests: A rate is used up.
        """
        header = _header(scope, b"authorization")
        token = header[len(_BEARER) :].strip().decode("latin-1") if header.startswith(_BEARER) else ""
        try:
            who = self._tenants.identify(token)
        except Unauthenticated:
            # It will be refused, or asks for what is open to all; either way it is nobody whose rate it could be.
            waits = [(self._per_token, _NOBODY, "this service")]
            tenant = _NOBODY
        else:
            waits = [(self._per_token, who.token_id, "this token"), (self._per_tenant, who.tenant, "this tenant")]
            tenant = who.tenant
        for buckets, caller, named in waits:
            wait_s = buckets.take(caller)
            if wait_s:
                raise TooManyRequests(
                    f"the rate of {named} is used up: wait as long as Retry-After says, and ask less often",
                    retry_after_s=max(1, math.ceil(wait_s)),
                )
        return tenant


def _header(scope: Scope, name: bytes) -> bytes:
    return next((bytes(value) for key, value in scope["headers"] if key == name), b"")


def _has_body(scope: Scope) -> bool:
    return _header(scope, b"content-length").strip(b"0") != b"" or _header(scope, b"transfer-encoding") != b""


async def say_that_it_closes(message: Message, scope: Scope) -> None:
    """Litestar's hook before each message to the client, whoever answers: also where a request was not let in."""
    if message["type"] == "http.response.start":
        body = scope["state"].get(_BODY)
        if not (body.is_whole if body is not None else not _has_body(scope)):
            message["headers"] = [*message["headers"], (b"connection", b"close")]


class _Body:
    """Waits for the next part of a body as long as a slow client may need, and no longer; knows whether all of it came."""

    def __init__(self, receive: Receive, *, has_any: bool) -> None:
        self._receive = receive
        self.is_whole = not has_any

    async def receive(self) -> Any:
        """The next message, as ASGI has it."""
        if self.is_whole:  # What comes next is the news that the client has gone, which may take as long as the answer.
            return await self._receive()
        message = await asyncio.wait_for(self._receive(), RECEIVE_WITHIN_S)
        self.is_whole = not message.get("more_body", False)
        return message
