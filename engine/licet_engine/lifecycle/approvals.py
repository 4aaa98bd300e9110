"""Approvals: requested, given, rejected, withdrawn, and given in another's place for a time.

An approval is a verdict on one binding: the exact model, data, evaluations and policies. Who may give it, in whose place,
and until when it counts, is for policy; here it is only recorded, and bound.

Rules kept here:

- Nothing is removed: a request is answered or withdrawn, an approval withdrawn or voided, a delegation revoked.
- What is decided on a delegation is decided on the delegation as it is recorded, ended and revoked ones too: policy says
  whether it is in force. Where there is none, nobody stands in.
- Each of these is told to the tenant's webhooks with the decision that made it so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from licet_engine.domain.binding import BINDING_PATTERN
from licet_engine.domain.errors import Conflict
from licet_engine.domain.refs import Ref
from licet_engine.domain.tracks import TRACKS
from licet_engine.lifecycle import provenance
from licet_engine.lifecycle.data import Text, Why, Word
from licet_engine.lifecycle.facts import View, entity_ref
from licet_engine.lifecycle.models import found, not_ready
from licet_engine.lifecycle.verbs import (
    Body,
    Change,
    Event,
    Ids,
    Insert,
    Note,
    Proposal,
    RefForm,
    Update,
    Verb,
    Who,
)
from licet_engine.store.tables import Approval, ApprovalRequest, Delegation, ModelVersion, Operation

if TYPE_CHECKING:
    from licet_engine.lifecycle.deed import Deed

Track = Annotated[str, Field(pattern="^(" + "|".join(TRACKS) + ")$")]


class RequestApproval(Body):
    """On which track approval is asked for."""

    track: Track
    reason: Why = ""


class GiveVerdict(Body):
    """A reviewer's verdict.

    Attributes:
        track: For which track it is given.
        verdict: ``approved`` or ``rejected``.
        reason: Why.
        binding: The binding the reviewer looked at, or its first 16 characters or more; refused if the version is another by
            now. An approval must name it; a rejection may leave it out.
        on_behalf_of: The reviewer who delegated the track, if the asker stands in for one.
    """

    track: Track
    verdict: Annotated[str, Field(pattern="^(approved|rejected)$")] = "approved"
    reason: Text = "reviewed"
    binding: Annotated[str, Field(pattern=BINDING_PATTERN)] = ""
    on_behalf_of: Word | None = None


class Withdraw(Body):
    """What is withdrawn, and why."""

    track: Track
    reason: Text = "withdrawn"


class Delegate(Body):
    """Which track is delegated, and until when."""

    track: Track
    until_ms: Annotated[int, Field(ge=0, lt=1 << 53)]
    reason: Text = "absent"


class RevokeDelegation(Body):
    """Which delegation to this person is revoked; the asker's own if no reviewer is named."""

    track: Track
    reviewer: Word | None = None


# --- request and approve --------------------------------------------------------------------------------------------


def ask_request(view: View, who: Who, ref: Ref, body: RequestApproval, ids: Ids) -> Proposal | None:
    """A request stands in the reviewers' inbox until it is answered, withdrawn or too old."""
    row = found(view, ref)
    if row is None:
        return None
    binding = view.binding(row)
    request = ApprovalRequest(
        **_bound(view, row, body, ids),
        requested_by=who.name,
        expires_at_ms=ids.now_ms + view.tenant.request_ttl_s * 1000,
    )
    mine = _own_requests(view, who, row, body.track)
    conflict = not_ready(row, ref)
    if conflict is None and any(earlier.binding == binding for earlier in mine):
        # Else who asks often enough fills the inbox, and hides what others ask for.
        conflict = Conflict(f"your request for {ref} on track {body.track} waits already: withdraw it to ask anew")
    told = {
        "request": request.id,
        "version": str(ref),
        "track": body.track,
        "binding": binding,
        "by": who.id,
        "reason": body.reason,
        "expires_at_ms": request.expires_at_ms,
    }
    return Proposal(
        resource=view.model_version_entity(row),
        context={"track": body.track},
        change=Change(
            inserts=(Insert(ApprovalRequest, request.model_dump()),),
            # What was asked for before the version changed is asked for by this one.
            updates=_withdrawn(mine),
            events=(Event("approval.requested", told),),
        ),
        conflict=conflict,
        result={"request": request.id, "binding": binding, "expires_at_ms": request.expires_at_ms},
    )


def _bound(view: View, row: ModelVersion, body: RequestApproval | GiveVerdict, ids: Ids) -> dict[str, Any]:
    """What a request and a verdict have alike: the version as it stands now, the track, the reason and the moment."""
    return {
        "tenant_id": row.tenant_id,
        "id": ids.decision,
        "model": row.model,
        "version": row.version,
        "track": body.track,
        "binding": view.binding(row),
        "reason": body.reason,
        "at_ms": ids.now_ms,
        "parts": view.binding_parts(row),
    }


def _open_requests(view: View, row: ModelVersion, track: str) -> list[ApprovalRequest]:
    """The open requests for a version on a track."""
    return [
        request
        for request in view.approval_requests()
        if (request.model, request.version, request.track) == (row.model, row.version, track)
    ]


def _own_requests(view: View, who: Who, row: ModelVersion, track: str) -> list[ApprovalRequest]:
    """The asker's open requests for a version on a track."""
    return [request for request in _open_requests(view, row, track) if request.requested_by == who.name]


def _withdrawn(requests: Sequence[ApprovalRequest]) -> list[Update]:
    return [Update(ApprovalRequest, {"id": r.id, "state": "open"}, {"state": "withdrawn"}) for r in requests]


def verdict_context(view: View, who: Who, track: str, verdict: str, on_behalf_of: str | None) -> dict[str, Any]:
    """The context in which a verdict is decided: on which track, by whom, and on which delegation."""
    tenant = view.tenant.tenant_id
    people = [who.name] if who.kind == "person" else []
    context: dict[str, Any] = {"track": track, "verdict": verdict}
    delegation = None if on_behalf_of is None else view.delegation(on_behalf_of, who.name, track)
    if delegation is not None:
        people.append(delegation.reviewer)
        context["delegation"] = {
            "reviewer": entity_ref("Person", f"{tenant}/{delegation.reviewer}"),
            "track": delegation.track,
            "until_ms": delegation.until_ms,
            "revoked": delegation.revoked_at_ms is not None,
        }
    return context | {"people": [entity_ref("Person", f"{tenant}/{name}") for name in sorted(set(people))]}


def ask_approve(view: View, who: Who, ref: Ref, body: GiveVerdict, ids: Ids) -> Proposal | None:
    """A verdict on the version as it stands now."""
    row = found(view, ref)
    if row is None:
        return None
    binding = view.binding(row)
    context = verdict_context(view, who, body.track, body.verdict, body.on_behalf_of)
    conflict = not_ready(row, ref)
    if not binding.startswith(body.binding):
        conflict = Conflict(f"{ref} is no longer what was reviewed (binding {body.binding[:16]}): review it again")
    elif not body.binding and body.verdict == "approved":
        # Else whatever stands there by the time this arrives would be approved, looked at or not.
        conflict = Conflict(f"an approval names the binding that was reviewed; {ref} shows it as `binding`")
    reviewer = None if body.on_behalf_of is None else view.principal(body.on_behalf_of)
    if body.on_behalf_of is not None and (reviewer is None or "delegation" not in context):
        conflict = Conflict(
            f"{ref.tenant}/{body.on_behalf_of} never delegated track {body.track} to you: "
            "ask them to, or give the verdict as your own"
        )
    verdict = Approval(
        **_bound(view, row, body, ids),
        verdict=body.verdict,
        approver=who.name,
        on_behalf_of=body.on_behalf_of,
        expires_at_ms=ids.now_ms + view.tenant.approval_ttl_s * 1000,
    )
    record = {"version": str(ref), "track": body.track, "binding": binding, "verdict": body.verdict, "approver": who.id}
    if body.on_behalf_of is not None:
        record["on_behalf_of"] = f"{ref.tenant}/{body.on_behalf_of}"
    note = Note(
        "approval", {"event": "approval", **record, "reason": body.reason, "expires_at_ms": verdict.expires_at_ms}
    )
    told = {**record, "approval": verdict.id, "reason": body.reason, "expires_at_ms": verdict.expires_at_ms}
    event = Event("approval.given" if body.verdict == "approved" else "approval.rejected", told)
    change = Change(
        inserts=(Insert(Approval, verdict.model_dump()),),
        updates=_after_verdict(view, row, body, ids),
        notes=(note,),
        events=(event,),
    )
    return Proposal(
        resource=view.model_version_entity(row),
        context=context,
        parameters={**record, "reason": body.reason, "model_digest_hex": row.digest_hex},
        change=change,
        conflict=conflict,
        result={
            "approval": verdict.id,
            "binding": binding,
            "track": body.track,
            "verdict": body.verdict,
            "expires_at_ms": verdict.expires_at_ms,
        },
        entities=() if reviewer is None else (view.principal_entity(reviewer),),
    )


def _after_verdict(view: View, row: ModelVersion, body: GiveVerdict, ids: Ids) -> list[Update]:
    """What else a verdict changes: the requests of its track are answered, and a rejection undoes what it approved."""
    # Also those made when the version was another: the reviewer saw what had changed since, and answered.
    of_track = {"model": row.model, "version": row.version, "track": body.track, "state": "open"}
    updates = [Update(ApprovalRequest, of_track, {"state": "answered"}, rows=None)]
    if body.verdict == "rejected":
        # A rejection withdraws whatever the track approved of this version before: were it only what was approved of the
        # present binding, an older approval would stand again as soon as its binding does.
        standing = (a for a in view.approvals(row.model, row.version) if a.track == body.track)
        updates += [Update(Approval, {"id": a.id}, {"withdrawn_at_ms": ids.now_ms}) for a in standing]
    return updates


def do_approve(deed: Deed) -> Mapping[str, Any]:
    """Attest the verdict."""
    return {"attestation": deed.attest(provenance.approval_statement(deed))}


def finish_approve(_view: View, operation: Operation, result: Mapping[str, Any], _now_ms: int) -> Change:
    """The approval names its attestation."""
    values = {"attestation_digest_hex": result["attestation"]}
    return Change(updates=(Update(Approval, {"id": operation.decision_id}, values),))


# --- withdraw -------------------------------------------------------------------------------------------------------


def ask_withdraw_request(view: View, who: Who, ref: Ref, body: Withdraw, _ids: Ids) -> Proposal | None:
    """The requester's open requests of the track leave the inbox."""
    row = found(view, ref)
    if row is None:
        return None
    there = _open_requests(view, row, body.track)
    mine = [request for request in there if request.requested_by == who.name]
    conflict = None
    if not mine:
        why = _why_no_request(view.last_request(row.model, row.version, body.track, who.name))
        conflict = Conflict(f"no request of yours for {ref} on track {body.track} is open: {why}. {_look_at(ref)}")
    note = Note("approval", {"event": "request-withdrawn", "version": str(ref), "track": body.track, "by": who.id})
    return Proposal(
        resource=view.model_version_entity(row),
        # Where nothing is open there is nobody else's to withdraw, and the conflict says so.
        context={"track": body.track, "own": bool(mine) or not there},
        change=Change(
            updates=_withdrawn(mine),
            notes=(note,),
        ),
        conflict=conflict,
        result={"withdrawn": [request.id for request in mine], "track": body.track},
    )


def _why_no_request(last: ApprovalRequest | None) -> str:
    """Why a request is not open, by the last that was made."""
    if last is None:
        return "you made none"
    if last.state == "answered":
        return "a verdict of the track has answered it"
    return "you withdrew it already" if last.state == "withdrawn" else "its time is over"


def _why_no_approval(last: Approval | None) -> str:
    """Why an approval does not stand, by the last verdict that was given."""
    if last is None:
        return "you gave none"
    if last.verdict == "rejected":
        return "your last verdict there is a rejection; to take that back, approve"
    if last.withdrawn_at_ms is not None:
        return "it was withdrawn already, by you or with a rejection of its track"
    return "it is void, since what it was given for changed or somebody behind it may not act any more"


def _look_at(ref: Ref) -> str:
    return f"See licet approval list {ref.tenant} --all"


def ask_withdraw_approval(view: View, who: Who, ref: Ref, body: Withdraw, ids: Ids) -> Proposal | None:
    """The approver's approvals of the track count no more. Who stood in, and for whom, may each withdraw."""
    row = found(view, ref)
    if row is None:
        return None
    there = [approval for approval in view.approvals(row.model, row.version) if approval.track == body.track]
    mine = [approval for approval in there if who.name in {approval.approver, approval.on_behalf_of}]
    conflict = None
    if not mine:
        given = (a for a in view.verdicts(row.model, row.version) if who.name in {a.approver, a.on_behalf_of})
        why = _why_no_approval(next((a for a in given if a.track == body.track), None))
        conflict = Conflict(f"no approval of yours for {ref} on track {body.track} stands: {why}. {_look_at(ref)}")
    record = {"version": str(ref), "track": body.track, "by": who.id, "reason": body.reason}
    withdrawn = {"withdrawn_at_ms": ids.now_ms}
    told = {**record, "approvals": [a.id for a in mine], "cause": "withdrawn", "changed": []}
    return Proposal(
        resource=view.model_version_entity(row),
        # As with requests.
        context={"track": body.track, "own": bool(mine) or not there},
        change=Change(
            updates=[Update(Approval, {"id": a.id, "withdrawn_at_ms": None}, withdrawn) for a in mine],
            notes=(Note("approval", {"event": "approval-withdrawn", **record}),),
            events=(Event("approval.voided", told),),
        ),
        conflict=conflict,
        result={"withdrawn": [approval.id for approval in mine], "track": body.track},
    )


# --- delegate -------------------------------------------------------------------------------------------------------


def ask_delegate(view: View, who: Who, ref: Ref, body: Delegate, ids: Ids) -> Proposal | None:
    """Another person stands in for the asker on a track, from now until a time."""
    row = view.principal(ref.name)
    if row is None or row.kind != "person":
        return None
    received = any(d.track == body.track for d in view.delegations(delegate=who.name))
    delegation = Delegation(
        tenant_id=ref.tenant,
        id=ids.decision,
        track=body.track,
        reviewer=who.name,
        delegate=ref.name,
        reason=body.reason,
        created_at_ms=ids.now_ms,
        until_ms=body.until_ms,
    )
    record = {"track": body.track, "reviewer": who.id, "delegate": str(ref), "until_ms": body.until_ms}
    note = Note("approval", {"event": "delegated", "delegation": delegation.id, **record, "reason": body.reason})
    present = view.delegation(who.name, ref.name, body.track)
    updates = []
    if present is not None and present.revoked_at_ms is None:
        # The new one stands in its place, so that revoking it leaves none behind.
        replaced = {"revoked_at_ms": ids.now_ms, "revoked_by": who.name}
        updates.append(Update(Delegation, {"id": present.id, "revoked_at_ms": None}, replaced))
    return Proposal(
        resource=view.principal_entity(row),
        context={"track": body.track, "until_ms": body.until_ms, "received": received},
        change=Change(inserts=(Insert(Delegation, delegation.model_dump()),), updates=updates, notes=(note,)),
        result={"delegation": delegation.id, **record},
    )


def ask_revoke_delegation(view: View, who: Who, ref: Ref, body: RevokeDelegation, ids: Ids) -> Proposal | None:
    """The person stands in no more; what they approved meanwhile stays."""
    row = view.principal(ref.name)
    if row is None or row.kind != "person":
        return None
    reviewer = body.reviewer or who.name
    in_force = [d for d in view.delegations(delegate=ref.name) if (d.reviewer, d.track) == (reviewer, body.track)]
    record = {"track": body.track, "reviewer": f"{ref.tenant}/{reviewer}", "delegate": str(ref), "by": who.id}
    revoked = {"revoked_at_ms": ids.now_ms, "revoked_by": who.name}
    conflict = None
    if not in_force:
        conflict = Conflict(f"no delegation of track {body.track} by {ref.tenant}/{reviewer} to {ref} is in force")
    return Proposal(
        resource=view.principal_entity(row),
        context={"track": body.track, "own": reviewer == who.name and who.kind == "person"},
        change=Change(
            updates=[Update(Delegation, {"id": d.id, "revoked_at_ms": None}, revoked) for d in in_force],
            notes=(Note("approval", {"event": "delegation-revoked", **record}),),
        ),
        conflict=conflict,
        result={"revoked": [d.id for d in in_force], **record},
    )


VERBS = (
    Verb(
        action="model.request",
        summary="Ask a track for its approval of a version.",
        form=RefForm.VERSION,
        body=RequestApproval,
        propose=ask_request,
    ),
    Verb(
        action="model.approve",
        summary="Approve or reject a version for a track.",
        form=RefForm.VERSION,
        body=GiveVerdict,
        propose=ask_approve,
        do=do_approve,
        finish=finish_approve,
    ),
    Verb(
        action="model.withdraw-request",
        summary="Withdraw one's own request for an approval.",
        form=RefForm.VERSION,
        body=Withdraw,
        propose=ask_withdraw_request,
    ),
    Verb(
        action="model.withdraw-approval",
        summary="Withdraw an approval that one gave, before the version is in prod.",
        form=RefForm.VERSION,
        body=Withdraw,
        propose=ask_withdraw_approval,
    ),
    Verb(
        action="approval.delegate",
        summary="Have another person stand in on a track, for a time.",
        form=RefForm.NAME,
        body=Delegate,
        propose=ask_delegate,
    ),
    Verb(
        action="approval.revoke-delegation",
        summary="Revoke a delegation.",
        form=RefForm.NAME,
        body=RevokeDelegation,
        propose=ask_revoke_delegation,
    ),
)
