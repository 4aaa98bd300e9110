"""The data plane: Open Inference Protocol 2 for callers who may invoke.

Rules kept here:

- Authentication first, then the session, then the body. Health and the server's name need neither.
- Whether an endpoint is unknown, another tenant's or forbidden cannot be told: one answer, by one way, through the api.
- What reaches a version is an invocation, and its answer bears its number, the version that gave it and the session it ran under; without
  a number nothing is answered.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

import msgspec

from licet_adapters.errors import Unavailable
from licet_adapters.jobs import oip
from licet_adapters.serving.calls import Answer, Failure
from licet_adapters.serving.histogram import Outcome
from licet_adapters.serving.problems import Reply, problem
from licet_adapters.serving.sessions import Refusal, Session

if TYPE_CHECKING:
    from collections.abc import Mapping

    from licet_adapters.serving.crowd import Crowd
    from licet_adapters.serving.endpoint import Endpoint
    from licet_adapters.serving.http import Connection, Exchange
    from licet_adapters.serving.sessions import Sessions

_TARGET = re.compile(
    rb"/v2/models/([a-z][a-z0-9-]{1,38}[a-z0-9])[/.]([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)"
    rb"(?:/versions/([^/]*))?(/infer|/ready)?\Z"
)
_MALFORMED = re.compile(rb"/v2/models/([ -~]+?)(?:/versions/[!-.0-~]*)?(/infer|/ready)?\Z")
_MAX_NAME_CHARS = 128
_NUMBER = re.compile(rb"[1-9][0-9]{0,8}\Z")
_MAX_TOKEN_BYTES = 4096
_MAX_ROUTES = 4096
_HTTP_OK = 200

Observe = Callable[[Outcome, float], None]
"""Told the outcome of an invocation, and how many seconds it took."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Route:
    """What a target asks for.

    Attributes:
        endpoint: Ref of the endpoint; where it is none, the text that stands in its place.
        version: Number, if the target names one; 0 if it names what is none.
        act: ``infer``, ``ready`` or ``metadata``.
    """

    endpoint: str
    version: int | None
    act: str


def parse_route(target: bytes) -> Route | None:
    """Read ``/v2/models/TENANT/ENDPOINT[/versions/N][/infer|/ready]``; None if it is nothing of the kind.

    A client that takes a model's name for one segment writes ``TENANT.ENDPOINT``, or ``%2F`` for the slash.
    """
    path = unquote_to_bytes(target.partition(b"?")[0])
    match = _TARGET.match(path)
    if match is None:
        # What is wrong with the name, its caller is told once it is known who calls.
        malformed = _MALFORMED.match(path)
        if malformed is None:
            return None
        text, act = malformed.groups()
        return Route(text.decode()[:_MAX_NAME_CHARS], None, "metadata" if act is None else act[1:].decode())
    tenant, name, version, act = match.groups()
    number = None if version is None else int(version) if _NUMBER.match(version) else 0
    return Route(f"{tenant.decode()}/{name.decode()}", number, "metadata" if act is None else act[1:].decode())


class DataPlane:
    """Answers callers.

    Args:
        endpoints: Ref to endpoint; the router's own, which changes.
        sessions: Who may.
        crowd: Who is connected.
        observe: Told of every invocation.
    """

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        sessions: Sessions,
        crowd: Crowd[Connection],
        *,
        observe: Observe | None = None,
    ) -> None:
        self._endpoints, self._sessions, self._observe = endpoints, sessions, observe
        self.crowd = crowd
        self.is_ready = False
        self._routes: dict[bytes, Route | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        version = importlib.metadata.version("licet")
        self._server = Reply(200, oip.encode({"name": "licet", "version": version, "extensions": []}))

    # --- who and what --------------------------------------------------------------------------------------------------

    def begin(self, exchange: Exchange) -> None:
        """Say what becomes of a request whose head was read."""
        target = exchange.url
        if target.startswith(b"/v2/models/"):
            self._begin_model(exchange)
        elif exchange.method != b"GET":
            exchange.answer(problem(404, "no-such-route", "no such route"))
        elif target == b"/v2/health/live":
            exchange.answer(Reply(200, oip.encode({"live": True})))
        elif target == b"/v2/health/ready":
            exchange.answer(Reply(200 if self.is_ready else 503, oip.encode({"ready": self.is_ready})))
        elif target in {b"/v2", b"/v2/"}:
            exchange.answer(self._server)
        else:
            exchange.answer(problem(404, "no-such-route", "no such route"))

    def _begin_model(self, exchange: Exchange) -> None:
        token = exchange.token
        if not token or len(token) > _MAX_TOKEN_BYTES:
            exchange.answer(problem(401, "unauthenticated", "a bearer token is needed"))
            return
        route = self._route(exchange.url)
        if route is None:
            exchange.answer(problem(404, "no-such-route", "no such route"))
            return
        if exchange.method != (b"POST" if route.act == "infer" else b"GET"):
            reply = problem(405, "method-not-allowed", "inference is asked for with POST .../infer, all else with GET")
            allowed = b"allow: POST\r\n" if route.act == "infer" else b"allow: GET\r\n"
            exchange.answer(replace(reply, headers=reply.headers + allowed))
            return
        token_hash = hashlib.sha256(token).hexdigest()
        known = self._sessions.find(token_hash, route.endpoint)
        if known is not None:
            self._admit(exchange, route, known)
        else:
            task = asyncio.get_running_loop().create_task(self._open(exchange, route, token_hash))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _route(self, target: bytes) -> Route | None:
        if target not in self._routes:
            if len(self._routes) >= _MAX_ROUTES:
                self._routes.clear()
            self._routes[target] = parse_route(target)
        return self._routes[target]

    async def _open(self, exchange: Exchange, route: Route, token_hash: str) -> None:
        try:
            known = await self._sessions.open(token_hash, route.endpoint)
            self._admit(exchange, route, known)
        except Exception as error:  # noqa: BLE001  # Whatever it was: no session, no invocation, and the caller is answered.
            logger.warning("no session", extra={"endpoint": route.endpoint, "reason": str(error)})
            exchange.answer(
                problem(503, "unavailable", "it cannot be decided now whether this is permitted; try again")
            )

    def _admit(self, exchange: Exchange, route: Route, known: Session | Refusal) -> None:
        if type(known) is Refusal:
            if known.is_malformed:
                exchange.answer(
                    problem(
                        400,
                        "invalid-input",
                        f"{route.endpoint!r} names no endpoint: write TENANT/NAME, in lower-case letters, digits and '-',"
                        " with a letter or digit at both ends",
                    )
                )
            elif known.decision is None:
                exchange.answer(problem(401, "unauthenticated", "this token does not count"))
            else:
                exchange.answer(problem(403, "denied", "This is not permitted.", decision={"id": known.decision}))
            return
        assert isinstance(known, Session)  # noqa: S101  # Told to the type checker.
        # Who may invoke is of the endpoint's tenant.
        if not exchange.know(route.endpoint.partition("/")[0]):
            return
        endpoint = self._endpoints.get(route.endpoint)
        if endpoint is None or not endpoint.has_traffic:
            exchange.answer(problem(404, "not-deployed", "nothing is deployed on this endpoint"))
        elif route.act == "infer":
            self._infer(exchange, route, known, endpoint)
        elif route.version is not None and route.version not in endpoint.numbers:
            exchange.answer(problem(404, "no-such-version", "this version has no traffic here"))
        elif route.act == "ready":
            ready = endpoint.is_ready(route.version)
            exchange.answer(Reply(200 if ready else 503, oip.encode({"name": route.endpoint, "ready": ready})))
        else:
            exchange.answer(_metadata(endpoint, route))

    # --- inference -----------------------------------------------------------------------------------------------------

    def _infer(self, exchange: Exchange, route: Route, session: Session, endpoint: Endpoint) -> None:
        if exchange.odd_media:
            exchange.answer(problem(415, "unsupported-media-type", exchange.odd_media))
            return
        limit = endpoint.max_request_bytes(route.version)
        if limit is None:
            exchange.answer(problem(404, "no-such-version", "this version has no traffic here"))
            return
        tenant = endpoint.state.tenant
        exchange.want_body(tenant, limit, lambda body: self._ask(exchange, route, session, endpoint, body))

    def _ask(self, exchange: Exchange, route: Route, session: Session, endpoint: Endpoint, body: bytes) -> None:
        # Chosen now that the request is whole: while its body arrived, traffic may have moved.
        version = endpoint.choose(route.version)
        if version is None:
            exchange.answer(problem(404, "no-such-version", "this version has no traffic here any more"))
            return
        if len(body) > version.plan.max_request_bytes:
            exchange.refuse_size(version.plan.max_request_bytes)
            return
        begun_s = time.monotonic()

        def done(end: Answer | Failure, outcome: Outcome) -> None:
            if self._observe is not None:
                self._observe(outcome, time.monotonic() - begun_s)
            counted = _count(endpoint, session, version.number, outcome)
            if counted is None:
                exchange.answer(problem(503, "unavailable", "the invocation cannot be counted now; try again"))
                return
            reply = _reply(end)
            headers = b"licet-version: %d\r\nlicet-invocation: %d\r\nlicet-session: %b\r\n" % (
                version.number,
                counted,
                session.decision.encode(),
            )
            exchange.answer(Reply(reply.status, reply.body, reply.media_type, reply.headers + headers))

        version.infer(body, done)
        if endpoint.state.shadow:
            # After this turn of the loop: what is mirrored must not stand before what is waited for.
            asyncio.get_running_loop().call_soon(endpoint.mirror, body)


def _count(endpoint: Endpoint, session: Session, number: int, outcome: Outcome) -> int | None:
    try:
        return endpoint.counter.take(session.decision, number, outcome)
    except Unavailable as error:
        logger.warning("invocation not counted", extra={"endpoint": endpoint.state.endpoint, "reason": str(error)})
        endpoint.reserve_ahead()
        return None


def _reply(end: Answer | Failure) -> Reply:
    if type(end) is Answer:
        if end.status == _HTTP_OK:
            return Reply(200, end.body)
        return _from_model(end)
    if end == "timeout":
        return problem(504, "timeout", "the model did not answer in time")
    if end == "overloaded":
        return problem(503, "overloaded", "too many requests are waiting for this version; try again")
    return problem(503, "unavailable", "no replica of this version could answer; try again")


def _from_model(answer: Answer) -> Reply:
    """What a model server refused, in the house's shape."""
    try:
        detail = str(msgspec.json.decode(answer.body, type=dict[str, str])["error"])[:1000]
    except (msgspec.MsgspecError, KeyError, UnicodeDecodeError):
        return problem(500, "model-failed", "the model server answered with something that is no answer")
    if answer.status in {400, 413}:
        return problem(answer.status, "invalid-input" if answer.status == 400 else "too-large", detail)  # noqa: PLR2004
    if answer.status == 503:  # noqa: PLR2004
        return problem(503, "overloaded", detail)
    return problem(500, "model-failed", detail)


def _metadata(endpoint: Endpoint, route: Route) -> Reply:
    number = route.version or endpoint.numbers[-1]
    version = endpoint.choose(number)
    if version is None:
        return problem(404, "no-such-version", "this version has no traffic here")
    metadata = version.signature.metadata(route.endpoint, str(number))
    metadata["versions"] = [str(one) for one in endpoint.numbers]
    return Reply(200, oip.encode(metadata))
