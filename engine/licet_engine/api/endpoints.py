"""What is read of an endpoint: its history from our tables, how it is doing as the router last told.

Rules kept here: what is not there, another tenant's or not the asker's to read takes one path, by a logged decision. A
router that is away is told as such: what is known without it is told all the same.
"""

from __future__ import annotations

from typing import Any, Final

from litestar import Response, get
from sqlmodel import col, select

from licet_engine.api.context import AnyRequest, Context
from licet_engine.api.problems import denied
from licet_engine.api.services import Services
from licet_engine.domain.refs import now_ms
from licet_engine.lifecycle.asked import parse_asked
from licet_engine.lifecycle.catalogue import VERBS
from licet_engine.store import tables
from licet_engine.store.db import tenant_session

_LATE_MS: Final = 10_000
_MOST_EVENTS: Final = 50
_MOST_BATCHES: Final = 10


def endpoint_routes(context: Context) -> list[Any]:
    """Endpoints."""

    @get(
        "/v1/endpoints/{tenant:str}/{name:str}",
        tags=["endpoint"],
        summary="An endpoint: versions, traffic and its events, invocations, and how the router says it is doing.",
    )
    async def endpoint(request: AnyRequest, tenant: str, name: str) -> Response[Any]:
        identify = context.identify(request)
        identify()
        answer = await context.ask(identify, parse_asked(VERBS["endpoint.read"], f"{tenant}/{name}", {}, is_dry=True))
        if not answer.decision.allowed:
            return denied(answer)
        return Response(await context.in_thread(_endpoint, context.services, tenant, name))

    return [endpoint]


def _endpoint(services: Services, tenant: str, name: str) -> dict[str, Any]:
    with tenant_session(services.engine, tenant) as session:
        row = session.exec(select(tables.Endpoint).where(tables.Endpoint.name == name)).one()
        deployments = session.exec(
            select(tables.Deployment)
            .where(tables.Deployment.endpoint == name)
            .order_by(col(tables.Deployment.created_at_ms).desc())
            .limit(_MOST_EVENTS)
        ).all()
        events = session.exec(
            select(tables.TrafficEvent)
            .where(tables.TrafficEvent.endpoint == name)
            .order_by(col(tables.TrafficEvent.serial).desc())
            .limit(_MOST_EVENTS)
        ).all()
        count = session.exec(select(tables.InvocationCount).where(tables.InvocationCount.endpoint == name)).one()
        batches = session.exec(
            select(tables.InvocationBatch)
            .where(tables.InvocationBatch.endpoint == name)
            .order_by(col(tables.InvocationBatch.first).desc())
            .limit(_MOST_BATCHES)
        ).all()
    hidden = {"tenant_id", "endpoint"}
    return {
        "endpoint": row.model_dump(exclude={"tenant_id"}),
        "deployments": [d.model_dump(exclude=hidden) for d in deployments],
        "events": [e.model_dump(exclude=hidden) for e in events],
        "invocations": {
            **count.model_dump(exclude=hidden),
            "batches": [b.model_dump(exclude={*hidden, "groups"}) for b in batches],
        },
        "live": _live(services, tenant, f"{tenant}/{name}"),
        "path": f"/v2/models/{tenant}/{name}/infer",
    }


def _live(services: Services, tenant: str, ref: str) -> dict[str, Any]:
    """How the router says it is doing; ``state`` says whether it said so lately."""
    told = services.router_door.status(tenant, ref)
    if told is None:
        return {"state": "the router has not told yet"}
    at_ms, figures = told
    is_late = now_ms() - at_ms > _LATE_MS
    return {"state": "the router has not told of late" if is_late else "answers", "told_at_ms": at_ms, **figures}
