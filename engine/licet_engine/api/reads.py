"""What is read: operations and what they made, lists, decisions, the log, and how the service is.

Rules kept here: what one may see of one's own operations was permitted with them; everything else is asked, and logged.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any, Final

from litestar import MediaType, Response, get
from litestar.response import File
from sqlalchemy import text

from licet_attestations.errors import LicetAttestationError
from licet_engine.api import enforced, lists
from licet_engine.api.context import AnyRequest, Context
from licet_engine.api.problems import denied
from licet_engine.api.services import Services
from licet_engine.domain.errors import InvalidInput
from licet_engine.domain.refs import now_ms, parse_tenant
from licet_engine.probe_report import judge
from licet_engine.processes import is_alive
from licet_engine.storage import is_away
from licet_engine.store.db import read_transaction

_ARTIFACT_TYPES: Final = {"csv": "text/csv", "zip": "application/zip"}
_BY_ASKER: Final = {"decisions": "decision.read", "operations": "operation.read", "tokens": "token.list"}
"""The lists of what somebody asked for, with the action that reads them; every other list is of the catalogue, but for these."""
_OF_KINDS: Final = {
    **dict.fromkeys(("webhooks", "all-webhooks", "messages"), "webhook.read"),
    "issuers": "issuer.read",
}


def operation_routes(context: Context) -> list[Any]:
    """Operations, and what they made."""
    services = context.services

    @get("/v1/operations/{tenant:str}/{operation:str}", tags=["operation"], summary="How far an operation has come.")
    async def operation(request: AnyRequest, tenant: str, operation: str) -> Response[Any]:
        identify = context.identify(request)
        who = identify()
        row = await context.in_thread(lists.operation, services, who, tenant, operation)
        if row is None or row["principal"] != who.name:
            answer = await context.permit_of(identify, "operation.read", tenant, operation, is_found=row is not None)
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
            return denied(await context.permit_of(identify, "operation.read", tenant, operation, is_found=False))
        # What it holds was decrypted for this principal. That they may still have it is decided when they fetch it, as the
        # very question that the operation was an answer to.
        asked = await context.in_thread(lists.asked_of, services, who, operation)
        answer = await context.ask(identify, asked)
        if not answer.decision.allowed:
            return denied(answer)
        suffix = name.rpartition(".")[2]
        path = services.spool.artifact(tenant, operation, suffix)
        if not path.exists():
            raise InvalidInput("the artifact's time is over; ask for it again", code="artifact-expired")
        return File(path, filename=name, media_type=_ARTIFACT_TYPES.get(suffix, "application/octet-stream"))

    return [operation, artifact]


def list_routes(context: Context) -> list[Any]:
    """What a tenant has."""
    services = context.services

    @get("/v1/list/{tenant:str}/{what:str}", tags=["list"], summary="What a tenant has: datasets, runs, models, ...")
    async def listing(request: AnyRequest, tenant: str, what: str, limit: int = 50) -> Response[Any]:
        identify = context.identify(request)
        who = identify()
        listed = lists.find(what)
        bounded = max(1, min(limit, lists.MAX_ROWS))
        action = _BY_ASKER.get(what)
        if action is None:
            own_only = False
            action = _OF_KINDS.get(what, "catalogue.read")
            answer = await context.permit(identify, action, tenant, own=None)
        else:
            # Everybody's, or else what the asker asked for.
            answer, own_only = await context.permit_widest(identify, action, tenant)
        if not answer.decision.allowed:
            return denied(answer)
        return Response(await context.in_slow_thread(listed, services, who, bounded, own_only))

    return [listing]


def decision_routes(context: Context) -> list[Any]:
    """Decisions, their records and why they were made."""
    services = context.services

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

    @get(
        "/v1/enforced/{tenant:str}",
        tags=["decision"],
        summary="How often which policies determined a decision, from the newest on; next says where to go on.",
    )
    async def enforcement(
        request: AnyRequest, tenant: str, from_ms: int = 0, to_ms: int = lists.MAX_INDEX, before: int | None = None
    ) -> Response[Any]:
        identify = context.identify(request)
        who = identify()
        enforced.check_window(from_ms, to_ms, before)
        # Everybody's, or else what the asker asked for.
        answer, own_only = await context.permit_widest(identify, "decision.read", tenant)
        if not answer.decision.allowed:
            return denied(answer)
        return Response(
            await context.in_thread(enforced.enforced, services.engine, who, from_ms, to_ms, before, own_only)
        )

    return [decision_record, decision_explain, enforcement]


def log_routes(context: Context) -> list[Any]:
    """The log and the public keys."""
    services = context.services

    @get("/v1/log/{tenant:str}", tags=["log"], summary="Size, root and signed checkpoint of the tenant's log.")
    async def log_head(request: AnyRequest, tenant: str) -> Response[Any]:
        answer = await context.permit(context.identify(request), "log.read", tenant, own=None)
        if not answer.decision.allowed:
            return denied(answer)
        return Response(await context.in_thread(lists.log_head, services, tenant))

    @get("/v1/log/{tenant:str}/entries", tags=["log"], summary="Headers of the log's entries.")
    async def log_entries(request: AnyRequest, tenant: str, first: int = 0, count: int = 100) -> Response[Any]:
        answer = await context.permit(context.identify(request), "log.read", tenant, own=None)
        if not answer.decision.allowed:
            return denied(answer)
        begin, most = max(0, min(first, lists.MAX_INDEX)), max(0, min(count, lists.MAX_ROWS))
        return Response(await context.in_thread(lists.log_entries, services, tenant, begin, most))

    @get(
        "/v1/log/{tenant:str}/directory",
        tags=["log"],
        summary="What the directory of all logs commits to of this tenant's, with its proof.",
    )
    async def log_directory(request: AnyRequest, tenant: str) -> Response[Any]:
        answer = await context.permit(context.identify(request), "log.read", tenant, own=None)
        if not answer.decision.allowed:
            return denied(answer)
        return Response((await context.in_thread(services.directory.opened, tenant)).document)

    @get(
        "/v1/isolation/{owner:str}/{actor:str}",
        tags=["log"],
        summary="Whether a tenant ever stood in the owner's log: a signed statement with its proof.",
    )
    async def isolation(request: AnyRequest, owner: str, actor: str) -> Response[Any]:
        identify = context.identify(request)
        identify()
        about = parse_tenant(actor)
        # It is evidence of the owner's, and a small part of what an export holds: whoever may have that may have this.
        answer = await context.permit(identify, "evidence.export", owner, own=None)
        if not answer.decision.allowed:
            return denied(answer)
        return Response(await context.in_thread(services.pair_answers.answer, about, owner))

    @get("/v1/trust-root", tags=["log"], summary="The public keys. Take them once, by a way you trust, and keep them.")
    async def trust_root() -> dict[str, Any]:
        return services.trust_root.to_dict()

    return [log_head, log_entries, log_directory, isolation, trust_root]


def health_routes(context: Context) -> list[Any]:
    """How the service is."""
    services = context.services

    @get("/health/live", tags=["health"], summary="Whether the process answers.", media_type=MediaType.JSON)
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @get("/health/ready", tags=["health"], summary="Whether everything that a request needs answers.")
    async def ready() -> Response[Any]:
        faults = await context.in_thread(_faults, services)
        # A store that is away keeps nobody from deciding, holding or suspending: it is told, and traffic goes on.
        degraded = ["storage"] if is_away(services.settings.storage_away) else []
        # Nor do witnesses: what waits for them are warrants and exports.
        degraded += await context.in_thread(_behind, services)
        degraded += await context.in_thread(_probed, services)
        told = {"status": "ready" if not faults else "not ready", "faults": faults, "degraded": degraded}
        return Response(told, status_code=503 if faults else 200)

    return [live, ready]


async def _of_decision(  # noqa: PLR0917 - one call for two routes that differ in the last two only.
    context: Context, request: AnyRequest, tenant: str, decision: str, action: str, render: Callable[..., Any]
) -> Response[Any]:
    identify = context.identify(request)
    who = identify()
    row = await context.in_thread(lists.decision_row, context.services, who, tenant, decision)
    if row is None:
        return denied(await context.permit_of(identify, action, tenant, decision, is_found=False))
    answer = await context.permit(identify, action, tenant, own=row.principal == who.id)
    if not answer.decision.allowed:
        return denied(answer)
    return Response(await context.in_thread(render, context.services, who, row))


def _behind(services: Services) -> list[str]:
    """Whether warrants wait for witnesses, or one of these says that a log forked."""
    try:
        return ["witnesses"] if services.witnesses.is_behind() or services.witnesses.has_alarm() else []
    except Exception:  # noqa: BLE001 - the database does not answer, which is a fault and told as one.
        return []


def _probed(services: Services) -> list[str]:
    """Whether scheduled probes came through, failed, or are overdue."""
    settings = services.settings
    if not settings.probe_every_s or not settings.probe_report.exists():
        return []
    state, _ = judge(settings.probe_report, every_s=settings.probe_every_s, now_ms=now_ms())
    return ["probes"] if state != "ok" else []


def _faults(services: Services) -> list[str]:
    faults = []
    try:
        services.signer.public()
    except LicetAttestationError:
        faults.append("signer")
    if services.notary.fault or services.directory.fault:
        faults.append("log")
    if not services.sequencer.is_alive():
        faults.append("sequencer")
    for part, sign in (("router", services.settings.router_sign), ("worker", services.settings.worker_sign)):
        if not is_alive(sign):
            faults.append(part)
    if shutil.disk_usage(services.settings.data).free < services.settings.min_free_bytes:
        faults.append("disk")
    try:
        with read_transaction(services.engine) as connection:
            connection.execute(text("SELECT 1"))
        services.sequencer.verify_database()  # On PostgreSQL it is another role than the one above.
    except Exception:  # noqa: BLE001 - whatever it is, the database does not answer.
        faults.append("database")
    return faults
