"""The routes of the API, and the application they make.

Rules kept here:

- Who asks is told before the body is read.
- A route for each verb of the catalogue; none of them knows a rule.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from litestar import Litestar, Response, post, put
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme

from licet_attestations.errors import LicetAttestationError
from licet_engine import __version__
from licet_engine.api import attestations, authzen, document, endpoints, exchange, flips, reads, tlog
from licet_engine.api.context import AnyRequest, Context, find_verb, members, refuse_other_media, stream
from licet_engine.api.door import FrontDoor, say_that_it_closes
from licet_engine.api.problems import (
    denied,
    on_anything,
    on_attestation_error,
    on_http_exception,
    on_licet_error,
)
from licet_engine.api.services import Services
from licet_engine.domain.errors import InvalidInput, LicetError, Unauthenticated
from licet_engine.domain.rates import Buckets
from licet_engine.lifecycle.asked import Asked, parse_asked
from licet_engine.lifecycle.catalogue import VERBS
from licet_engine.lifecycle.verbs import Verb, Who


def _verb_route(context: Context, verb: Verb) -> HTTPRouteHandler:
    noun, _, name = verb.action.partition(".")

    @post(
        f"/v1/{noun}/{name}",
        name=verb.action,
        tags=[noun],
        summary=verb.summary,
        description=f"Asks for {verb.action} on a resource named {verb.form.value}.",
        status_code=200,
    )
    async def handle(request: AnyRequest) -> Response[Any]:
        identify = context.identify(request)
        identify()
        body = members(await context.body(request), frozenset({"resource", "parameters", "claimed"}))
        asked = parse_asked(
            verb,
            body.get("resource"),
            body.get("parameters"),
            claimed=body.get("claimed"),
            key=request.headers.get("idempotency-key", ""),
        )
        answer = await context.ask(identify, asked, lambda who: _check_uploads(context, who, asked))
        if not answer.decision.allowed:
            return denied(answer)
        if answer.conflict is not None:
            raise answer.conflict
        return Response(answer.to_json(), status_code=202 if answer.operation else 200)

    return handle


def _check_uploads(context: Context, who: Who, asked: Asked) -> None:
    """An upload is used by the principal that made it, and by nobody else."""
    sent = asked.body.model_dump()
    named = [sent["upload"]] if "upload" in sent else []
    if isinstance(sent.get("files"), dict):
        named += [entry["upload"] for entry in sent["files"].values()]
    for identifier in named:
        if not context.services.spool.is_mine(who.tenant, who.id, identifier):
            raise InvalidInput(
                f"upload {identifier} is not there: it was used, or its time is over; send it again",
                code="no-such-upload",
            )


def _asking_routes(context: Context) -> list[Any]:
    """Asking without doing, and sending files."""
    services = context.services

    @post(
        "/v1/ask",
        tags=["decision"],
        summary="Ask whether something would be permitted; nothing is done.",
        status_code=200,
    )
    async def ask(request: AnyRequest) -> dict[str, Any]:
        identify = context.identify(request)
        identify()
        body = members(await context.body(request), frozenset({"action", "resource", "parameters", "claimed"}))
        verb = find_verb(body.get("action"))
        asked = parse_asked(
            verb, body.get("resource"), body.get("parameters"), claimed=body.get("claimed"), is_dry=True
        )
        answer = await context.ask(identify, asked)
        return {"decision": answer.decision_json(), "conflict": answer.conflict_json()}

    @put("/v1/uploads", tags=["upload"], summary="Send a file that a later request will use.", status_code=201)
    async def upload(request: AnyRequest) -> dict[str, Any]:
        who = context.identify(request)()
        if not await context.in_thread(services.tenants.may_act, who):
            raise Unauthenticated("this principal may not act any more, or its tenant is suspended")
        refuse_other_media(request, json=False)
        length = request.headers.get("content-length", "")
        if not length.isdigit():
            raise InvalidInput("an upload needs a Content-Length", code="length-required")
        identifier, digest_hex, size = await services.spool.receive(
            who.tenant, who.id, stream(request, "upload"), expected_bytes=int(length)
        )
        return {"upload": identifier, "digest_hex": digest_hex, "size_bytes": size}

    return [ask, upload]


def _reading_routes(context: Context) -> list[Any]:
    families = (
        reads.operation_routes,
        endpoints.endpoint_routes,
        reads.list_routes,
        flips.flip_routes,
        reads.decision_routes,
        reads.log_routes,
        tlog.routes,
        attestations.routes,
        reads.health_routes,
        authzen.routes,
        exchange.routes,
    )
    return [route for family in families for route in family(context)]


def build_app(services: Services, lifespan: Callable[[Litestar], AbstractAsyncContextManager[None]]) -> Litestar:
    """The application."""
    context = Context(services)
    handlers = [_verb_route(context, verb) for verb in VERBS.values()]
    settings = services.settings
    door = FrontDoor(
        services.tenants,
        services.places,
        Buckets(settings.rate_per_token),
        Buckets(settings.rate_per_tenant),
        services.metrics,
    )
    return Litestar(
        route_handlers=[*handlers, *_asking_routes(context), *_reading_routes(context)],
        lifespan=[lifespan],
        middleware=[door],
        before_send=[say_that_it_closes],
        request_max_body_size=services.settings.max_upload_bytes + services.settings.max_body_bytes,
        exception_handlers={
            LicetError: on_licet_error,
            LicetAttestationError: on_attestation_error,
            HTTPException: on_http_exception,
            Exception: on_anything,
        },
        openapi_config=OpenAPIConfig(
            title="Licet",
            version=__version__,
            description="Decided, executed under warrant, proven: governance of every step of a model's life.",
            components=Components(security_schemes={"token": SecurityScheme(type="http", scheme="bearer")}),
            security=[{"token": []}],
            render_plugins=[document.PagePlugin(path="/"), document.DocumentPlugin()],
            openapi_router=document.router(),
        ),
        logging_config=None,
    )
