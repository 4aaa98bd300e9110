"""The routes of the API, and the application they make.

Rules kept here:

- Who asks is told before the body is read; a body is read up to its limit and no further.
- A route for each verb of the catalogue; none of them knows a rule.
- What one may see of one's own operations was permitted with them; everything else is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from licet_attestations import canonical
from licet_attestations.errors import FormatError, LicetAttestationError
from litestar import Litestar, MediaType, Request, Response, get, post, put
from litestar.exceptions import ClientException, HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme
from litestar.response import File

from licet_engine import __version__
from licet_engine.api import authzen, lists
from licet_engine.api.problems import (
    denied,
    on_anything,
    on_attestation_error,
    on_http_exception,
    on_licet_error,
)
from licet_engine.domain.errors import InvalidInput, LicetError, TooLarge
from licet_engine.domain.refs import parse_tenant
from licet_engine.lifecycle.asking import Answer, Asked, parse_asked
from licet_engine.lifecycle.catalogue import VERBS
from licet_engine.lifecycle.verbs import Verb, Who
from licet_engine.store.db import read_transaction

from sqlalchemy import text as sql_text

if TYPE_CHECKING:
    from licet_engine.app import Services

_T = TypeVar("_T")
AnyRequest = Request[Any, Any, Any]
_BEARER: Final = "Bearer "
_JSON_DEPTH: Final = 16
_ARTIFACT_TYPES: Final = {"csv": "text/csv", "zip": "application/zip"}


class Context:
    """What the handlers share.

    Args:
        services: The api's parts.
    """

    def __init__(self, services: Services) -> None:
        self.services = services

    async def in_thread(self, call: Callable[..., _T], *args: Any) -> _T:
        """Run what blocks on a thread of the api's own."""
        return await asyncio.get_running_loop().run_in_executor(self.services.threads, call, *args)

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
            InvalidInput: Not JSON, or (where strict) with floats, repeated keys or undue depth.
            TooLarge: Larger than is read.
        """
        most = self.services.settings.max_body_bytes
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > most:
            raise TooLarge(f"a body has at most {most} bytes; this one says it has {length}")
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > most:
                raise TooLarge(f"a body has at most {most} bytes")
        try:
            if strict:
                return canonical.loads(bytes(data), max_bytes=most, max_depth=_JSON_DEPTH)
            return authzen.decode(bytes(data))
        except (FormatError, ValueError) as error:
            raise InvalidInput(f"the body is not JSON of the form this takes: {error}", code="malformed-json") from error

    async def ask(self, identify: Callable[[], Who], asked: Asked) -> Answer:
        """Put a question."""
        if asked.is_dry:
            return await self.services.desk.ask_async(identify, asked, self.in_thread)
        return await self.in_thread(self.services.desk.ask, identify, asked)

    async def permit(self, identify: Callable[[], Who], action: str, tenant: str, *, own: bool) -> Answer:
        """Ask whether something of a tenant's log may be read."""
        asked = parse_asked(VERBS[action], parse_tenant(tenant), {}, is_dry=True)
        return await self.ask(identify, replace(asked, context=(("own", own),)))


def _members(body: Any, allowed: frozenset[str]) -> Mapping[str, Any]:
    if not isinstance(body, dict):
        raise InvalidInput("the body must be a JSON object")
    unknown = sorted(set(body) - allowed)
    if unknown:
        raise InvalidInput(f"the body has {', '.join(map(repr, unknown))}, which this does not take; it takes {', '.join(sorted(allowed))}")
    return body


def _verb_route(context: Context, verb: Verb) -> HTTPRouteHandler:
    noun, _, name = verb.action.partition(".")
    schema = canonical_schema(verb)

    @post(
        f"/v1/{noun}/{name}",
        name=verb.action,
        tags=[noun],
        summary=verb.summary,
        description=(
            f"Asks for `{verb.action}` on a resource named `{verb.form.value}`. The body is "
            f'`{{"resource": "...", "parameters": {{...}}, "claimed": {{...}}}}`; its parameters:\n\n```json\n{schema}\n```'
        ),
        status_code=200,
    )
    async def handle(request: AnyRequest) -> Response[Any]:
        identify = context.identify(request)
        who = identify()
        body = _members(await context.body(request), frozenset({"resource", "parameters", "claimed"}))
        asked = parse_asked(
            verb,
            body.get("resource"),
            body.get("parameters"),
            claimed=body.get("claimed"),
            key=request.headers.get("idempotency-key", ""),
        )
        _check_uploads(context, who, asked)
        answer = await context.ask(identify, asked)
        if not answer.decision.allowed:
            return denied(answer)
        if answer.conflict is not None:
            raise answer.conflict
        return Response(answer.to_json(), status_code=202 if answer.operation else 200)

    return handle


def canonical_schema(verb: Verb) -> str:
    """The JSON schema of a verb's parameters."""
    import json  # noqa: PLC0415 - for the documentation alone.

    return json.dumps(verb.body.model_json_schema(), indent=1, sort_keys=True)


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


def _routes(context: Context) -> list[HTTPRouteHandler]:
    services = context.services

    @post("/v1/ask", tags=["decision"], summary="Ask whether something would be permitted; nothing is done.", status_code=200)
    async def ask(request: AnyRequest) -> dict[str, Any]:
        identify = context.identify(request)
        identify()
        body = _members(await context.body(request), frozenset({"action", "resource", "parameters", "claimed"}))
        verb = find_verb(body.get("action"))
        asked = parse_asked(
            verb, body.get("resource"), body.get("parameters"), claimed=body.get("claimed"), is_dry=True
        )
        answer = await context.ask(identify, asked)
        return {"decision": answer.decision_json()}

    @put("/v1/uploads", tags=["upload"], summary="Send a file that a later request will use.", status_code=201)
    async def upload(request: AnyRequest) -> dict[str, Any]:
        who = context.identify(request)()
        length = request.headers.get("content-length", "")
        if not length.isdigit():
            raise InvalidInput("an upload needs a Content-Length", code="length-required")
        identifier, digest_hex, size = await services.spool.receive(
            who.tenant, who.id, _stream(request), expected_bytes=int(length)
        )
        return {"upload": identifier, "digest_hex": digest_hex, "size_bytes": size}

    @get("/v1/operations/{tenant:str}/{operation:str}", tags=["operation"], summary="How far an operation has come.")
    async def operation(request: AnyRequest, tenant: str, operation: str) -> Response[Any]:
        identify = context.identify(request)
        who = identify()
        row = await context.in_thread(lists.operation, services, who, tenant, operation)
        if row is None or row["principal"] != who.name:
            answer = await _permit_found(context, identify, "operation.read", tenant, operation, found=row is not None)
            if not answer.decision.allowed or row is None:
                return denied(answer)
        return Response(row)

    @get(
        "/v1/operations/{tenant:str}/{operation:str}/artifact",
        tags=["operation"],
        summary="What an operation made for the one who asked for it.",
    )
    async def artifact(request: AnyRequest, tenant: str, operation: str) -> Response[Any]:
        identify = context.identify(request)
        who = identify()
        row = await context.in_thread(lists.operation, services, who, tenant, operation)
        name = ((row or {}).get("result") or {}).get("artifact", "")
        if row is None or row["principal"] != who.name or not name:
            return denied(await _permit_found(context, identify, "operation.read", tenant, operation, found=False))
        suffix = name.rpartition(".")[2]
        path = services.spool.artifact(tenant, operation, suffix)
        if not path.exists():
            raise InvalidInput("the artifact's time is over; ask for it again", code="artifact-expired")
        return File(path, filename=name, media_type=_ARTIFACT_TYPES.get(suffix, "application/octet-stream"))

    @get("/v1/list/{tenant:str}/{what:str}", tags=["list"], summary="What a tenant has: datasets, runs, models, ...")
    async def listing(request: AnyRequest, tenant: str, what: str, limit: int = 50) -> Response[Any]:
        identify = context.identify(request)
        who = identify()
        rows = lists.find(what)
        bounded = max(1, min(limit, lists.MAX_ROWS))
        if what == "decisions":
            answer = await context.permit(identify, "decision.read", tenant, own=False)
            own_only = not answer.decision.allowed
            if own_only:
                answer = await context.permit(identify, "decision.read", tenant, own=True)
        else:
            own_only = False
            answer = await context.permit(identify, "operation.read", tenant, own=True)
        if not answer.decision.allowed:
            return denied(answer)
        items = await context.in_thread(rows, services, who, bounded, own_only)
        return Response({"items": items})

    @get("/v1/decisions/{tenant:str}/{decision:str}", tags=["decision"], summary="The record of a decision.")
    async def decision_record(request: AnyRequest, tenant: str, decision: str) -> Response[Any]:
        return await _of_decision(context, request, tenant, decision, "decision.read", lists.decision_record)

    @get(
        "/v1/decisions/{tenant:str}/{decision:str}/explain",
        tags=["decision"],
        summary="Why it was decided so, from the record: what failed with its values, and the path to yes.",
    )
    async def decision_explain(request: AnyRequest, tenant: str, decision: str) -> Response[Any]:
        return await _of_decision(context, request, tenant, decision, "decision.explain", lists.decision_explanation)

    @get("/v1/log/{tenant:str}", tags=["log"], summary="Size, root and signed checkpoint of the tenant's log.")
    async def log_head(request: AnyRequest, tenant: str) -> Response[Any]:
        answer = await context.permit(context.identify(request), "log.read", tenant, own=False)
        if not answer.decision.allowed:
            return denied(answer)
        return Response(await context.in_thread(lists.log_head, services, tenant))

    @get("/v1/log/{tenant:str}/entries", tags=["log"], summary="Headers of the log's entries.")
    async def log_entries(request: AnyRequest, tenant: str, first: int = 0, count: int = 100) -> Response[Any]:
        answer = await context.permit(context.identify(request), "log.read", tenant, own=False)
        if not answer.decision.allowed:
            return denied(answer)
        bounded = max(0, min(count, lists.MAX_ROWS))
        return Response(await context.in_thread(lists.log_entries, services, tenant, max(0, first), bounded))

    @get("/v1/trust-root", tags=["log"], summary="The public keys. Take them once, by a way you trust, and keep them.")
    async def trust_root() -> dict[str, Any]:
        return services.trust_root.to_dict()

    @get("/health/live", tags=["health"], summary="Whether the process answers.", media_type=MediaType.JSON)
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @get("/health/ready", tags=["health"], summary="Whether everything that a request needs answers.")
    async def ready() -> Response[Any]:
        faults = await context.in_thread(_faults, services)
        return Response({"status": "ready" if not faults else "not ready", "faults": faults}, status_code=503 if faults else 200)

    found: list[Any] = [ask, upload, operation, artifact, listing, decision_record, decision_explain]
    found += [log_head, log_entries, trust_root, live, ready]
    return found


def find_verb(action: Any) -> Verb:
    """The verb of that name.

    Raises:
        InvalidInput: There is none.
    """
    verb = VERBS.get(action) if isinstance(action, str) else None
    if verb is None:
        raise InvalidInput(f"action {action!r} is not known; the actions are {', '.join(sorted(VERBS))}")
    return verb


async def _stream(request: AnyRequest) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except (ClientException, OSError) as error:
        raise InvalidInput("the upload broke off; nothing was kept, send it again", code="truncated-upload") from error


async def _permit_found(
    context: Context, identify: Callable[[], Who], action: str, tenant: str, name: str, *, found: bool
) -> Answer:
    """Ask about something of a log by its name; what is not there is asked about like anything elsewhere."""
    verb = VERBS[action]
    asked = parse_asked(verb, parse_tenant(tenant), {}, is_dry=True)
    if not found:
        asked = replace(asked, verb=replace(verb, propose=_nothing), sent=f"{tenant}/{name}"[:256])
    return await context.ask(identify, replace(asked, context=(("own", False),)))


def _nothing(*_args: Any) -> None:
    return None


async def _of_decision(
    context: Context, request: AnyRequest, tenant: str, decision: str, action: str, render: Callable[..., Any]
) -> Response[Any]:
    identify = context.identify(request)
    who = identify()
    row = await context.in_thread(lists.decision_row, context.services, who, tenant, decision)
    if row is None:
        return denied(await _permit_found(context, identify, action, tenant, decision, found=False))
    answer = await context.permit(identify, action, tenant, own=row.principal == who.id)
    if not answer.decision.allowed:
        return denied(answer)
    return Response(await context.in_thread(render, context.services, who, row))


def _faults(services: Services) -> list[str]:
    faults = []
    try:
        services.signer.public()
    except LicetAttestationError:
        faults.append("signer")
    if not services.sequencer.is_alive():
        faults.append("sequencer")
    try:
        with read_transaction(services.engine) as connection:
            connection.execute(sql_text("SELECT 1"))
    except Exception:  # noqa: BLE001 - whatever it is, the database does not answer.
        faults.append("database")
    return faults


def build_app(services: Services, lifespan: Callable[[Litestar], AbstractAsyncContextManager[None]]) -> Litestar:
    """The application."""
    context = Context(services)
    handlers = [_verb_route(context, verb) for verb in VERBS.values()]
    return Litestar(
        route_handlers=[*handlers, *_routes(context), *authzen.routes(context)],
        lifespan=[lifespan],
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
        ),
        logging_config=None,
    )


