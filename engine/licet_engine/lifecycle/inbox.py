"""What waits for one person: requests on tracks that they may approve on, as themselves or in another's place.

Rules kept here:

- Whether somebody may approve is asked of policy, on the facts of now, and of nothing else. The answer is not logged:
  it permits nothing, and what it is about everybody of the tenant may list.
- A request that was made for another state of the version is shown with what has changed since.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from licet_engine.decide.decision import Request, decide
from licet_engine.decide.entities import EntityUid, Fact, FactSet
from licet_engine.domain.binding import changed_parts
from licet_engine.domain.refs import Ref
from licet_engine.lifecycle.approvals import verdict_context
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.tenants import InForce
from licet_engine.lifecycle.verbs import Who
from licet_engine.store.tables import Approval, ApprovalRequest, ModelVersion

MOST_LOOKED_AT: Final = 500
"""Open requests, the oldest first."""


def inbox(view: View, in_force: InForce, who: Who, limit: int) -> list[dict[str, Any]]:
    """The open requests that ``who`` may answer, the oldest first."""
    places = {(d.track, d.reviewer): d for d in view.delegations(delegate=who.name)}
    versions: dict[tuple[str, int], tuple[ModelVersion, dict[str, Any], str, dict[str, Any]] | None] = {}
    found: list[dict[str, Any]] = []
    for request in view.approval_requests()[:MOST_LOOKED_AT]:
        key = (request.model, request.version)
        if key not in versions:
            row = view.model_version(*key)
            versions[key] = (
                None
                if row is None or row.state != "ready" or row.stage == "retired"
                else (row, view.binding_parts(row), view.binding(row), view.model_version_entity(row))
            )
        known = versions[key]
        if known is None:
            continue
        capacities = [None, *(reviewer for track, reviewer in places if track == request.track)]
        able = [c for c in capacities if _may_approve(view, in_force, who, known[3], (request.track, c))]
        if able:
            _, parts, binding, _ = known
            found.append(_shown(view, request, parts, binding, able))
        if len(found) >= limit:
            break
    return found


def _may_approve(
    view: View, in_force: InForce, who: Who, resource: dict[str, Any], capacity: tuple[str, str | None]
) -> bool:
    """Whether policy would permit an approval on a track, in somebody's place or as oneself."""
    track, on_behalf_of = capacity
    asker = view.principal(who.name)
    reviewer = None if on_behalf_of is None else view.principal(on_behalf_of)
    entities = [view.tenant_entity(), resource]
    entities += [view.principal_entity(person) for person in (asker, reviewer) if person is not None]
    request = Request(
        principal=EntityUid.from_json(who.uid),
        action="model.approve",
        resource=EntityUid.from_json(resource["uid"]),
        context={
            **verdict_context(view, who, track, "approved", on_behalf_of),
            "claimed": [],
            "now_ms": view.now_ms,
        },
    )
    facts = FactSet(Fact.from_entity(entity) for entity in entities)
    return decide(in_force.bundle, request, facts, remember=False).allowed


def _shown(
    view: View, request: ApprovalRequest, parts: dict[str, Any], binding: str, able: Sequence[str | None]
) -> dict[str, Any]:
    before = _last_void(view.verdicts(request.model, request.version), request.track, binding, view.now_ms)
    return {
        "request": request.id,
        "version": str(Ref(view.tenant.tenant_id, request.model, request.version)),
        "track": request.track,
        "requested_by": request.requested_by,
        "reason": request.reason,
        "at_ms": request.at_ms,
        "age_s": max(0, view.now_ms - request.at_ms) // 1000,
        "expires_at_ms": request.expires_at_ms,
        "binding": binding,
        "changed_since_request": changed_parts(request.parts, parts) if request.binding != binding else [],
        "approved_before_by": None if before is None else before.approver,
        "changed_since_approval": [] if before is None else changed_parts(before.parts, parts),
        # In whose place; one's own right comes first.
        "on_behalf_of": able[0],
    }


def _last_void(verdicts: Sequence[Approval], track: str, binding: str, now_ms: int) -> Approval | None:
    """The last approval of the track that counts no more."""
    for verdict in verdicts:
        if verdict.track == track and verdict.verdict == "approved" and verdict.withdrawn_at_ms is None:
            is_void = verdict.binding != binding or verdict.voided_at_ms is not None
            return verdict if is_void or verdict.expires_at_ms <= now_ms else None
    return None
