"""What the handlers of the API share: who asks, the body, and the ways to ask.

Rules kept here: a body is read up to its limit and no further; who asks is told again for every try of a decision.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

from litestar import Request
from litestar.exceptions import HTTPException

from licet_attestations import canonical
from licet_attestations.errors import FormatError
from licet_engine.api import authzen_forms
from licet_engine.api.services import Services
from licet_engine.domain.errors import InvalidInput, TooLarge, UnsupportedMedia
from licet_engine.domain.refs import parse_tenant
from licet_engine.lifecycle.asked import Answer, Asked, parse_asked
from licet_engine.lifecycle.catalogue import VERBS
from licet_engine.lifecycle.verbs import Verb, Who

_T = TypeVar("_T")
AnyRequest = Request[Any, Any, Any]
_BEARER: Final = "Bearer "
_JSON_DEPTH: Final = 16
_MAX_SENT_CHARS: Final = 256


class Context:
    """What the handlers share.

    Args:
        services: The api's parts.
    """

    def __init__(self, services: Services) -> None:
        self.services = services

    async def in_thread(self, call: Callable[..., _T], *args: Any) -> _T:
        """Run what blocks on a thread of the api's own."""
        # In the trace of the request, too.
        run = contextvars.copy_context().run
        return await asyncio.get_running_loop().run_in_executor(self.services.threads, run, partial(call, *args))

    async def in_slow_thread(self, call: Callable[..., _T], *args: Any) -> _T:
        """Run what looks through many rows, on one of the few threads for that: nobody's decision waits behind it."""
        run = contextvars.copy_context().run
        return await asyncio.get_running_loop().run_in_executor(self.services.slow_threads, run, partial(call, *args))

    def identify(self, request: AnyRequest) -> Callable[[], Who]:
        """Who asks; verified now, and again for every try.

        Raises:
            Unauthenticated: No token that counts.
        """
        header = request.headers.get("authorization", "")
        token = header[len(_BEARER) :].strip() if header.startswith(_BEARER) else ""

        def identify() -> Who:
            return self.services.tenants.identify(token)

        return identify

    async def body(self, request: AnyRequest, *, strict: bool = True) -> Any:
        """The JSON body, at most as large as the settings allow.

        Raises:
            InvalidInput: It broke off, is not JSON, or (where strict) with floats, repeated keys or undue depth.
            TooLarge: Larger than is read.
        """
        refuse_other_media(request)
        most = self.services.settings.max_body_bytes
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > most:
            raise TooLarge(f"a body has at most {most} bytes; this one says it has {length}")
        data = bytearray()
        async for chunk in stream(request, "body"):
            data += chunk
            if len(data) > most:
                raise TooLarge(f"a body has at most {most} bytes")
        try:
            if strict:
                return canonical.loads(bytes(data), max_bytes=most, max_depth=_JSON_DEPTH)
            return authzen_forms.decode(bytes(data))
        except (FormatError, ValueError, RecursionError) as error:
            raise InvalidInput(
                f"the body is not JSON of the form this takes: {error}", code="malformed-json"
            ) from error

    async def ask(
        self, identify: Callable[[], Who], asked: Asked, verify: Callable[[Who], None] | None = None
    ) -> Answer:
        """Put a question; ``verify`` raises if what it names beside its resource is not there."""
        if asked.is_dry:
            return await self.services.desk.ask_async(identify, asked, self.in_thread)
        return await self.in_thread(partial(self.services.desk.ask, identify, asked, verify=verify))

    async def permit(self, identify: Callable[[], Who], action: str, tenant: str, *, own: bool | None) -> Answer:
        """Ask whether something of a tenant's log may be read; ``own`` says whether it is the asker's, where that counts."""
        identify()  # Before the form of what was sent is looked at.
        return await self.ask(identify, _of_log(action, tenant, own=own))

    async def permit_widest(self, identify: Callable[[], Who], action: str, tenant: str) -> tuple[Answer, bool]:
        """Ask whether everybody's may be read, or else the asker's own: only the question that fits is put and logged.

        Returns:
            The answer, and whether it is about the asker's own alone.
        """
        who = identify()
        own = not await self.in_thread(self.services.desk.foresee, who, _of_log(action, tenant, own=False))
        return await self.permit(identify, action, tenant, own=own), own

    async def permit_of(
        self, identify: Callable[[], Who], action: str, tenant: str, name: str, *, is_found: bool
    ) -> Answer:
        """Ask about something of a log by its name; what is not there is asked about like anything elsewhere."""
        verb = VERBS[action]
        asked = parse_asked(verb, parse_tenant(tenant), {}, is_dry=True)
        if not is_found:
            asked = replace(asked, verb=replace(verb, propose=_nothing), sent=f"{tenant}/{name}"[:_MAX_SENT_CHARS])
        return await self.ask(identify, replace(asked, context=(("own", False),)))


def _of_log(action: str, tenant: str, *, own: bool | None) -> Asked:
    asked = parse_asked(VERBS[action], parse_tenant(tenant), {}, is_dry=True)
    return replace(asked, context=() if own is None else (("own", own),))


def _nothing(*_args: Any) -> None:
    return None


def members(body: Any, allowed: frozenset[str]) -> Mapping[str, Any]:
    """The members of a body that must be an object of these.

    Raises:
        InvalidInput: It is none, or has others.
    """
    if not isinstance(body, dict):
        raise InvalidInput("the body must be a JSON object")
    unknown = sorted(set(body) - allowed)
    if unknown:
        raise InvalidInput(
            f"the body has {', '.join(map(repr, unknown))}, which this does not take; it takes {', '.join(sorted(allowed))}"
        )
    return body


def find_verb(action: Any) -> Verb:
    """The verb of that name.

    Raises:
        InvalidInput: There is none.
    """
    verb = VERBS.get(action) if isinstance(action, str) else None
    if verb is None:
        fault = "'action' is missing" if action is None else f"action {action!r} is not known"
        raise InvalidInput(f"{fault}; the actions are {', '.join(sorted(VERBS))}")
    return verb


def refuse_other_media(request: AnyRequest, *, json: bool = True) -> None:
    """Refuse what is not JSON, where it must be, and what is packed: it would be read as something that it is not.

    Raises:
        UnsupportedMedia: It says that it is.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if json and kind != "application/json":
        raise UnsupportedMedia(f"the body must be application/json; this one says it is {kind[:_MAX_SENT_CHARS]!r}")
    packed = request.headers.get("content-encoding", "identity").strip().lower()
    if packed != "identity":
        raise UnsupportedMedia("a body is taken as it is: send it without a Content-Encoding")


async def stream(request: AnyRequest, what: str) -> AsyncIterator[bytes]:
    """The body as it comes.

    Args:
        request: Whose body.
        what: It is called in the error, ``body`` or ``upload``.

    Raises:
        InvalidInput: It broke off.
    """
    try:
        async for chunk in request.stream():
            yield chunk
    except (HTTPException, OSError) as error:
        # NOTE: Litestar calls it an error of the server when the sender goes away; it is none.
        raise InvalidInput(
            f"the {what} broke off; nothing was kept, send it again", code=f"truncated-{what}"
        ) from error
