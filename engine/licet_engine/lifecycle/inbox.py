"""What waits for one person: requests on tracks that they may approve on, as themselves or in another's place.

Rules kept here:

- Whether somebody may approve is asked of policy, on the facts of now, and of nothing else. The answer is not logged:
  it permits nothing, and what it is about everybody of the tenant may list.
- Requests are looked at from the oldest on, page by page, until enough are found: who may answer only the newer ones
  sees them. There is a bound, and whether it was hit is told.
- A request that was made for another state of the version is shown with what has changed since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from licet_engine.decide.decision import Request, decide
from licet_engine.decide.entities import EntityUid, Fact, FactSet
from licet_engine.domain.binding import changed_parts
from licet_engine.domain.refs import Ref
from licet_engine.lifecycle.approvals import verdict_context
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.tenants import InForce
from licet_engine.lifecycle.verbs import Who
from licet_engine.store.tables import Approval, ApprovalRequest

_PAGE: Final = 500
MOST_LOOKED_AT: Final = 10_000
"""Open requests. One person has one for a version and a track."""
MOST_VERSIONS: Final = 100
"""Versions that these are of. Each is read once, and that is what takes time: some milliseconds, of a thread that decisions share."""


@dataclass(frozen=True, slots=True)
class Inbox:
    """What waits for one person.

    Attributes:
        rows: The open requests that they may answer, the oldest first.
        is_cut: Whether a bound was hit: among the newer requests may be some that are not shown.
    """

    rows: list[dict[str, Any]]
    is_cut: bool


def inbox(
    view: View,
    in_force: InForce,
    who: Who,
    limit: int,
    *,
    most: int = MOST_LOOKED_AT,
    most_versions: int = MOST_VERSIONS,
) -> Inbox:
    """The open requests that ``who`` may answer.

    Args:
        view: Of the tenant.
        in_force: By which policies it is told whether they may.
        who: For whom they wait.
        limit: How many at most.
        most: How many are looked at.
        most_versions: Of how many versions.
    """
    looking = _Looking(view, in_force, who)
    found: list[dict[str, Any]] = []
    looked_at = 0
    for page in view.approval_request_pages(_PAGE):
        for request in page:
            if looked_at == most or not (looking.knows(request) or looking.versions < most_versions):
                return Inbox(found, is_cut=True)
            looked_at += 1
            row = looking.shown(request)
            if row is not None:
                found.append(row)
            if len(found) == limit:
                return Inbox(found, is_cut=False)
    return Inbox(found, is_cut=False)


class _Looking:
    """Looks at requests for one person; what many requests share is looked at once."""

    def __init__(self, view: View, in_force: InForce, who: Who) -> None:
        self._view = view
        self._in_force = in_force
        self._who = who
        self._places = [(d.track, d.reviewer) for d in view.delegations(delegate=who.name)]
        self._versions: dict[tuple[str, int], _Version | None] = {}
        self._able: dict[tuple[str, int, str], list[str | None]] = {}

    @property
    def versions(self) -> int:
        """How many versions were read."""
        return len(self._versions)

    def knows(self, request: ApprovalRequest) -> bool:
        """Whether the version of a request was read before."""
        return (request.model, request.version) in self._versions

    def shown(self, request: ApprovalRequest) -> dict[str, Any] | None:
        """A request as it is listed; None if it cannot be answered, or not by this person."""
        key = (request.model, request.version)
        if key not in self._versions:
            self._versions[key] = self._version(*key)
        version = self._versions[key]
        if version is None:
            return None
        # As whom they may is a matter of the version and the track, whoever asked.
        asked = (*key, request.track)
        if asked not in self._able:
            capacities = [None, *(reviewer for track, reviewer in self._places if track == request.track)]
            self._able[asked] = [
                capacity
                for capacity in capacities
                if _may_approve(self._view, self._in_force, self._who, version.entity, (request.track, capacity))
            ]
        able = self._able[asked]
        return _shown(self._view, request, version, able) if able else None

    def _version(self, model: str, version: int) -> _Version | None:
        row = self._view.model_version(model, version)
        if row is None or row.state != "ready" or row.stage == "retired":
            return None
        view = self._view
        return _Version(view.binding_parts(row), view.binding(row), view.model_version_entity(row))


@dataclass(frozen=True, slots=True)
class _Version:
    parts: dict[str, Any]
    binding: str
    entity: dict[str, Any]


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


def _shown(view: View, request: ApprovalRequest, version: _Version, able: Sequence[str | None]) -> dict[str, Any]:
    parts, binding = version.parts, version.binding
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
