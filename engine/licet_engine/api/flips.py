"""Where a candidate would have answered otherwise: shown to who may read the tenant's policies and its decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from litestar import Response, get
from sqlmodel import col, select

from licet_engine.api.context import AnyRequest, Context
from licet_engine.api.lists import MAX_ROWS
from licet_engine.api.problems import denied
from licet_engine.api.services import Services
from licet_engine.domain.refs import parse_tenant
from licet_engine.lifecycle.asked import parse_asked
from licet_engine.lifecycle.catalogue import VERBS
from licet_engine.lifecycle.verbs import Who
from licet_engine.store.db import tenant_session
from licet_engine.store.tables import PolicyFlip, PolicyShadow, PolicyShadowCount, Tenant
from licet_engine.store.tables.shadow import COUNTED

_NOT_THERE: Final = "shadow"
"""What a candidate elsewhere is called; what there is, is not looked at."""


def flip_routes(context: Context) -> list[Any]:
    """The one route."""
    services = context.services

    @get(
        "/v1/flips/{tenant:str}",
        tags=["policy"],
        summary="Where the candidate beside the policies in force would have answered otherwise.",
    )
    async def flips(request: AnyRequest, tenant: str, limit: int = 50) -> Response[Any]:
        identify = context.identify(request)
        who = identify()
        name = _NOT_THERE if parse_tenant(tenant) != who.tenant else await context.in_thread(_subject, services, who)
        # Two questions: the candidate is policy, and whom it would have answered otherwise is told of decisions.
        asked = parse_asked(VERBS["policy.read"], f"{tenant}/{name}", {}, is_dry=True)
        answer = await context.ask(identify, asked)
        if answer.decision.allowed:
            answer = await context.permit(identify, "decision.read", tenant, own=False)
        if not answer.decision.allowed:
            return denied(answer)
        return Response(await context.in_thread(_report, services, who, max(0, min(limit, MAX_ROWS))))

    return [flips]


def _newest() -> Any:
    return select(PolicyShadow).order_by(col(PolicyShadow.since_ms).desc(), col(PolicyShadow.id).desc())


def _subject(services: Services, who: Who) -> str:
    """Which bundle is asked about: the newest candidate; where there was none, the one in force."""
    with tenant_session(services.engine, who.tenant) as session:
        shadow = session.exec(_newest()).first()
        tenant = session.exec(select(Tenant)).first()
    if shadow is not None:
        return str(shadow.bundle_hex)[:16]
    return _NOT_THERE if tenant is None else (tenant.bundle_digest_hex or _NOT_THERE)[:16]


def _report(services: Services, who: Who, limit: int) -> dict[str, Any]:
    with tenant_session(services.engine, who.tenant) as session:
        shadow = session.exec(_newest()).first()
        if shadow is None:
            return {"shadow": None, "counts": _counts(()), "by_action": [], "by_policy": [], "flips": []}
        counted = session.exec(select(PolicyShadowCount).where(PolicyShadowCount.shadow == shadow.id)).all()
        newest = select(PolicyFlip).where(PolicyFlip.shadow == shadow.id)
        newest = newest.order_by(col(PolicyFlip.at_ms).desc(), col(PolicyFlip.decision).desc()).limit(limit)
        found = session.exec(newest).all()
    return {
        "shadow": shadow.model_dump(exclude={"tenant_id"}),
        "counts": _counts([row for row in counted if row.kind == "total"]),
        "by_action": _by("action", counted),
        "by_policy": _by("policy", counted),
        "flips": [row.model_dump(exclude={"tenant_id", "shadow"}) for row in found],
    }


def _counts(rows: Sequence[PolicyShadowCount]) -> dict[str, int]:
    counts = {name: sum(getattr(row, name) for row in rows) for name in COUNTED}
    return {"decided": sum(counts.values()) - counts["dropped"], **counts}


def _by(kind: str, rows: Sequence[PolicyShadowCount]) -> list[Mapping[str, Any]]:
    """What was counted by one kind of name, the most flips first; of policies the flips alone are counted."""
    found = [{kind: row.name, **_counts([row])} for row in rows if row.kind == kind]
    if kind == "policy":
        found = [{name: row[name] for name in (kind, "to_deny", "to_allow")} for row in found]
    return sorted(found, key=lambda row: (-(row["to_deny"] + row["to_allow"]), row[kind]))
