"""What may be read of a tenant, once it was permitted: rows as flat objects. Always of the asker's own tenant."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final
from urllib.parse import urlsplit

from sqlalchemy.orm import defer
from sqlmodel import Session, SQLModel, col, false, select

from licet_attestations import canonical
from licet_engine.api.services import Services
from licet_engine.decide.bundle import RESERVED_IDS, CompiledBundle
from licet_engine.decide.decision import Request, decide
from licet_engine.decide.entities import Fact, FactSet
from licet_engine.decide.explain import explain
from licet_engine.decide.obtaining import obtainable
from licet_engine.decide.path import path_to_yes
from licet_engine.decide.record import parse_record, recorded_request
from licet_engine.domain.errors import Erased, InvalidInput, Unavailable
from licet_engine.domain.refs import PLATFORM, now_ms
from licet_engine.lifecycle.asked import Asked, parse_asked
from licet_engine.lifecycle.breakglass import state_of
from licet_engine.lifecycle.catalogue import VERBS
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.inbox import Inbox, inbox
from licet_engine.lifecycle.paths import known, obstacle, renewed
from licet_engine.lifecycle.verbs import WORKLOAD, Who
from licet_engine.log import store
from licet_engine.store import tables
from licet_engine.store.db import UnsafeAllTenants, read_transaction, tenant_session

MAX_ROWS: Final = 1000
MAX_INDEX: Final = 1 << 53
_PLACES: Final = store.table_of(tables.Environment)

Rows = Callable[[Services, Who, int, bool], list[dict[str, Any]]]
Body = Callable[[Services, Who, int, bool], dict[str, Any]]


def asked_of(services: Services, who: Who, identifier: str) -> Asked:
    """The question that an operation of the asker's own tenant was accepted for, to be asked again, dry."""
    with tenant_session(services.engine, who.tenant) as session:
        row = session.exec(select(tables.Operation).where(tables.Operation.id == identifier)).one()
    # Who asks again brings what is known of the workload that it is now.
    claimed = {claim["name"]: claim["value"] for claim in row.claimed if not claim["name"].startswith(WORKLOAD)}
    return parse_asked(VERBS[row.action], row.resource, row.asked, claimed=claimed, is_dry=True)


def operation(services: Services, who: Who, tenant: str, identifier: str) -> dict[str, Any] | None:
    """An operation of the asker's own tenant."""
    if tenant != who.tenant:
        return None
    with tenant_session(services.engine, tenant) as session:
        row = session.exec(select(tables.Operation).where(tables.Operation.id == identifier)).first()
    # How one's own operation stands was permitted with it, but only to who may still act.
    if row is None or not services.tenants.may_act(who):
        return None
    return {
        "id": row.id,
        "tenant": tenant,
        "action": row.action,
        "resource": row.resource,
        "state": row.state,
        "attempt": row.attempt,
        "decision": row.decision_id,
        "principal": row.principal,
        "progress": row.progress,
        "result": row.result,
        "error": row.error,
        "created_at_ms": row.created_at_ms,
        "updated_at_ms": row.updated_at_ms,
    }


def _of(
    table: type[SQLModel],
    newest: Any,
    hidden: frozenset[str] = frozenset(),
    *,
    own: Callable[[Who], tuple[Any, ...]] | None = None,
) -> Rows:
    """Rows of a table; ``own`` says which of them are of what the asker asked for, where that counts."""

    def rows(services: Services, who: Who, limit: int, own_only: bool) -> list[dict[str, Any]]:  # noqa: FBT001 - of a table of functions.
        # What is not shown is not read either: it may be long, such as a project that was sent to be published.
        query = select(table).options(*(defer(getattr(table, name)) for name in hidden)).order_by(newest).limit(limit)
        if own_only:
            query = query.where(*(false(),) if own is None else own(who))
        with tenant_session(services.engine, who.tenant) as session:
            found = session.exec(query).all()
        return [{name: getattr(row, name) for name in shown} for row in found]

    shown = [name for name in table.model_fields if name not in {"tenant_id", *hidden}]
    return rows


def _approvals(services: Services, who: Who, limit: int, _own_only: bool) -> list[dict[str, Any]]:  # noqa: FBT001 - as above.
    with tenant_session(services.engine, who.tenant) as session:
        requests = session.exec(
            select(tables.ApprovalRequest).order_by(col(tables.ApprovalRequest.at_ms).desc()).limit(limit)
        ).all()
        given = session.exec(select(tables.Approval).order_by(col(tables.Approval.at_ms).desc()).limit(limit)).all()
    hidden, at_ms = {"tenant_id", "parts"}, services.tenants.now_ms(who.tenant)
    told: list[dict[str, Any]] = []
    for asked in requests:
        is_over = asked.state == "open" and asked.expires_at_ms <= at_ms
        told.append({"kind": "request", **asked.model_dump(exclude=hidden)} | ({"state": "expired"} if is_over else {}))
    told += [{"kind": "approval", **row.model_dump(exclude=hidden), "state": _standing(row, at_ms)} for row in given]
    return sorted(told, key=lambda row: -row["at_ms"])[:limit]


def _standing(row: tables.Approval, at_ms: int) -> str:
    """What became of a verdict. That an approval was overtaken by a change shows within seconds, once it is marked void."""
    if row.withdrawn_at_ms is not None:
        return "withdrawn"
    if row.voided_at_ms is not None:
        return "void"
    return "expired" if row.verdict == "approved" and row.expires_at_ms <= at_ms else "given"


def _break_glasses(services: Services, who: Who, limit: int, _own_only: bool) -> list[dict[str, Any]]:  # noqa: FBT001 - as above.
    query = select(tables.BreakGlass).order_by(col(tables.BreakGlass.requested_at_ms).desc()).limit(limit)
    if who.tenant == PLATFORM:
        # Operators see what they asked of tenants, and what became of it; what the tenant's reviewer found is the tenant's.
        with UnsafeAllTenants(services.engine, "operators see their own requests to tenants") as session:
            found, hidden = session.exec(query).all(), {"tenant_id", "finding"}
    else:
        with tenant_session(services.engine, who.tenant) as session:
            found, hidden = session.exec(query).all(), {"tenant_id"}
    at_ms = now_ms()
    return [
        # What was not approved has no end yet.
        {
            "tenant": r.tenant_id,
            "state": state_of(r, at_ms),
            **r.model_dump(exclude=hidden),
            "until_ms": r.until_ms or None,
        }
        for r in found
    ]


def _tenants(services: Services, who: Who, limit: int, _own_only: bool) -> list[dict[str, Any]]:  # noqa: FBT001 - as above.
    query = select(tables.Tenant).order_by(col(tables.Tenant.tenant_id)).limit(limit)
    # Operators administer tenants as such: which there are, and the environments that they set, is theirs to know.
    is_platform = who.tenant == PLATFORM
    opened: AbstractContextManager[Session] = (
        UnsafeAllTenants(services.engine, "operators list tenants")
        if is_platform
        else tenant_session(services.engine, who.tenant)
    )
    with opened as session:
        found = session.exec(query).all()
        names = [row.tenant_id for row in found]
        allotments = session.exec(
            select(tables.DeviceAllotment).where(col(tables.DeviceAllotment.tenant_id).in_(names))
        ).all()
    environments: dict[str, dict[str, str]] = {name: {} for name in names}
    # Of this table the api sees no tenant's rows but those of tenants that it names.
    with read_transaction(services.engine, *names) as connection:
        query_places = select(_PLACES.c.tenant_id, _PLACES.c.name, _PLACES.c.region).where(
            _PLACES.c.tenant_id.in_(names)
        )
        for place in connection.execute(query_places.order_by(_PLACES.c.name)):
            environments[place.tenant_id][place.name] = place.region
    allotted = {row.tenant_id: row.devices for row in allotments}
    return [
        {
            "tenant": row.tenant_id,
            "devices": allotted.get(row.tenant_id, 0),
            **row.model_dump(exclude={"tenant_id", "bundle_digest_hex"}),
            "environments": environments[row.tenant_id],
        }
        for row in found
    ]


def _inbox(services: Services, who: Who, limit: int, _own_only: bool) -> dict[str, Any]:  # noqa: FBT001 - as above.
    """What waits for somebody, and whether more was there than is looked at."""
    with services.tenants.view(who.tenant) as found:
        waits = Inbox([], is_cut=False) if found is None else inbox(*found, who, limit)
    return {"items": waits.rows, "is_cut": waits.is_cut}


def _delegations(services: Services, who: Who, limit: int, _own_only: bool) -> list[dict[str, Any]]:  # noqa: FBT001 - as above.
    with tenant_session(services.engine, who.tenant) as session:
        query = select(tables.Delegation).order_by(col(tables.Delegation.created_at_ms).desc()).limit(limit)
        rows = session.exec(query).all()
    at_ms = services.tenants.now_ms(who.tenant)
    states = (
        (r, "revoked" if r.revoked_at_ms is not None else "ended" if r.until_ms <= at_ms else "in force") for r in rows
    )
    return [{**row.model_dump(exclude={"tenant_id"}), "state": state} for row, state in states]


def _webhooks(*, deleted: bool) -> Rows:
    """The webhooks that are told of events, and those that were if ``deleted``."""

    def rows(services: Services, who: Who, limit: int, _own_only: bool) -> list[dict[str, Any]]:  # noqa: FBT001 - as above.
        query = select(tables.Webhook).order_by(col(tables.Webhook.created_at_ms).desc()).limit(limit)
        if not deleted:
            query = query.where(col(tables.Webhook.removed_at_ms).is_(None))
        with tenant_session(services.engine, who.tenant) as session:
            found = session.exec(query).all()
        return [
            {
                **row.model_dump(exclude=hidden),
                "state": "live" if row.removed_at_ms is None else "deleted",
                "host": urlsplit(row.url).hostname or "",
                "url_digest": hashlib.sha256(row.url.encode()).hexdigest(),
            }
            for row in found
        ]

    # Many receivers keep a secret in the path of their address: a digest tells as well which it is.
    hidden = {"tenant_id", "url", "secret", "secret_before"}
    return rows


def _issuers(services: Services, who: Who, limit: int, _own_only: bool) -> list[dict[str, Any]]:  # noqa: FBT001 - as above.
    with tenant_session(services.engine, who.tenant) as session:
        rows = session.exec(select(tables.Issuer).order_by(col(tables.Issuer.name)).limit(limit)).all()
    return [{**row.model_dump(exclude={"tenant_id", "keys"}), "keys": [key["kid"] for key in row.keys]} for row in rows]


def _messages(services: Services, who: Who, limit: int, _own_only: bool) -> list[dict[str, Any]]:  # noqa: FBT001 - as above.
    with tenant_session(services.engine, who.tenant) as session:
        query = select(tables.WebhookMessage).order_by(col(tables.WebhookMessage.created_at_ms).desc()).limit(limit)
        rows = session.exec(query).all()
        webhooks = {row.id: row for row in session.exec(select(tables.Webhook)).all()}
        tried: dict[str, list[dict[str, Any]]] = {row.id: [] for row in rows}
        of_these = col(tables.WebhookTry.message).in_(list(tried))
        for one in session.exec(select(tables.WebhookTry).where(of_these).order_by(col(tables.WebhookTry.number))):
            tried[one.message].append(one.model_dump(exclude={"tenant_id", "message"}))
    hidden = {"tenant_id", "claimed_until_ms"}
    return [
        {
            **row.model_dump(exclude=hidden),
            "webhook": webhooks[row.webhook].name,
            # A receiver that fails is left alone, whatever waits for it.
            "next_at_ms": max(row.next_at_ms, webhooks[row.webhook].rest_until_ms if row.state == "pending" else 0),
            "history": tried[row.id],
        }
        for row in rows
    ]


def _items(rows: Rows) -> Body:
    return lambda services, who, limit, own_only: {"items": rows(services, who, limit, own_only)}


_ROWS: Final[Mapping[str, Rows]] = {
    "datasets": _of(tables.Dataset, col(tables.Dataset.created_at_ms).desc(), frozenset({"object_id"})),
    "runs": _of(tables.Run, col(tables.Run.created_at_ms).desc()),
    "models": _of(tables.ModelVersion, col(tables.ModelVersion.created_at_ms).desc()),
    "endpoints": _of(tables.Endpoint, col(tables.Endpoint.created_at_ms).desc()),
    "environments": _of(tables.Environment, col(tables.Environment.name)),
    "people": _of(tables.Principal, col(tables.Principal.name)),
    "holds": _of(tables.Hold, col(tables.Hold.placed_at_ms).desc()),
    "operations": _of(
        tables.Operation,
        col(tables.Operation.created_at_ms).desc(),
        frozenset({"parameters", "asked", "claimed"}),
        own=lambda who: (tables.Operation.principal == who.name, tables.Operation.principal_kind == who.kind),
    ),
    "tokens": _of(
        tables.ApiToken,
        col(tables.ApiToken.created_at_ms).desc(),
        frozenset({"hash_hex"}),
        own=lambda who: (tables.ApiToken.principal == who.name,),
    ),
    "break-glasses": _break_glasses,
    "tenants": _tenants,
    # The pool is the platform's own: to who is of another tenant there is none to be listed.
    "devices": _of(tables.DeviceRow, col(tables.DeviceRow.uuid)),
    "bundles": _of(tables.PolicyBundle, col(tables.PolicyBundle.created_at_ms).desc(), frozenset({"body"})),
    "publications": _of(tables.Publication, col(tables.Publication.created_at_ms).desc(), frozenset({"report"})),
    "approvals": _approvals,
    "delegations": _delegations,
    "tickets": _of(tables.Ticket, col(tables.Ticket.fetched_at_ms).desc()),
    "webhooks": _webhooks(deleted=False),
    "all-webhooks": _webhooks(deleted=True),
    "issuers": _issuers,
    "messages": _messages,
    "decisions": _of(
        tables.Decision,
        col(tables.Decision.leaf_index).desc(),
        own=lambda who: (tables.Decision.principal == who.id,),
    ),
}


_BODIES: Final[Mapping[str, Body]] = {**{name: _items(rows) for name, rows in _ROWS.items()}, "inbox": _inbox}
NAMES: Final = frozenset(_BODIES)


def find(what: str) -> Body:
    """How what is listed under that name is read.

    Raises:
        InvalidInput: There is no such list.
    """
    if what not in _BODIES:
        raise InvalidInput(f"there is no list of {what!r}; there are {', '.join(sorted(NAMES))}")
    return _BODIES[what]


# --- decisions ------------------------------------------------------------------------------------------------------


def decision_row(services: Services, who: Who, tenant: str, identifier: str) -> tables.Decision | None:
    """A decision of the asker's own tenant, as it is listed."""
    if tenant != who.tenant:
        return None
    with tenant_session(services.engine, tenant) as session:
        return session.exec(select(tables.Decision).where(tables.Decision.id == identifier)).first()


def decision_record(services: Services, who: Who, row: tables.Decision) -> dict[str, Any]:
    """The record of a decision with its place in the log."""
    entry, record = _entry(services, who, row)
    return {"record": record, "leaf_index": row.leaf_index, "leaf": entry.header}


def decision_explanation(services: Services, who: Who, row: tables.Decision) -> dict[str, Any]:
    """Why it was decided so, and what would have it decided otherwise; all from the record and the facts it names."""
    _, record = _entry(services, who, row)
    with tenant_session(services.engine, who.tenant) as session:
        bodies = session.exec(select(tables.FactBlob).where(col(tables.FactBlob.digest_hex).in_(record["facts"]))).all()
        bundle = session.exec(
            select(tables.PolicyBundle).where(tables.PolicyBundle.digest_hex == record["bundle"])
        ).first()
    if bundle is None or len(bodies) != len(record["facts"]):
        raise Unavailable(
            f"what decision {row.id} was made on is no longer stored; it can be proven, but not explained"
        )
    facts = FactSet(Fact.from_bytes(blob.body) for blob in bodies)
    request = recorded_request(record)
    compiled = _compiled(services, who, bundle)
    explained = explain(compiled, request, facts)
    told: dict[str, Any] = {
        "record": {key: record[key] for key in ("id", "action", "resource", "principal", "decision", "time_ms")},
        "explanation": explained.to_json(),
        "path": None,
        "now": None,
    }
    is_own = request.principal.id.startswith(f"{who.tenant}/") and facts.get(request.resource.key) is not None
    if is_own and explained.kind != "invalid":
        with services.tenants.view(who.tenant) as found:
            if found is not None:
                view, policies = found[0], found[1].bundle
                if record["decision"] == "deny":
                    told["path"] = _path(view, compiled, request, facts)
                told["now"] = _now(view, policies, request, facts)
    return told


def _now(view: View, policies: CompiledBundle, request: Request, facts: FactSet) -> dict[str, Any]:
    """What would be decided on the same question now, by the policies in force, and what it would need."""
    asked, facts_now, kept = renewed(view, request, facts)
    decision = decide(policies, asked, facts_now, remember=False)
    is_open = not decision.allowed and not RESERVED_IDS.intersection(decision.errors)
    told = {key: value for key, value in decision.to_json().items() if key != "messages"}
    return told | {
        "kept": list(kept),
        "path": _path(view, policies, asked, facts_now) if is_open else None,
    }


def _path(view: View, compiled: CompiledBundle, request: Request, facts: FactSet) -> dict[str, Any]:
    """The path to yes, and what could not be done even at its end as things stand."""
    path = path_to_yes(compiled, request, facts, obtainable(request, facts, known(view, request)))
    conflict = obstacle(view, request) if path.possible else None
    told = None if conflict is None else {"code": conflict.code, "detail": conflict.message}
    return path.to_json() | {"conflict": told}


def _compiled(services: Services, who: Who, bundle: tables.PolicyBundle) -> CompiledBundle:
    with services.tenants.view(who.tenant) as found:
        if found is not None and found[1].bundle.digest_hex == bundle.digest_hex:
            return found[1].bundle
    return CompiledBundle.from_bytes(bundle.body)


def _entry(services: Services, who: Who, row: tables.Decision) -> tuple[store.Entry, dict[str, Any]]:
    with read_transaction(services.engine, who.tenant) as connection:
        entry = store.read_entry(connection, who.tenant, row.leaf_index)
    if entry.record is None:
        raise Erased(
            f"the record of decision {row.id} was erased: that it was made can be proven, what it was cannot be shown"
        )
    return entry, parse_record(entry.record)


# --- the log --------------------------------------------------------------------------------------------------------


def log_head(services: Services, tenant: str) -> dict[str, Any]:
    """Size, root and a signed checkpoint of the log as it is now."""
    size, note = services.notary.checkpoint(tenant)
    with read_transaction(services.engine, tenant) as connection:
        root = store.root_at(connection, tenant, size)
    return {
        "size": size,
        "root_hex": root.hex(),
        "origin": services.trust_root.origin(tenant),
        "checkpoint": services.witnesses.note(tenant, size, note),
    }


def log_entries(services: Services, tenant: str, first: int, count: int) -> dict[str, Any]:
    """Headers of entries."""
    with read_transaction(services.engine, tenant) as connection:
        entries = store.read_entries(connection, tenant, first, count)
    return {"entries": [{"index": entry.index, "leaf": canonical.loads(entry.header.encode())} for entry in entries]}
