"""From a registered version to production and back: request, approve, reject, promote, roll back, retire.

An approval is a verdict on one binding: the exact model, data, evaluations and policies. Who may give it, and what it
takes to promote, is for policy; here it is only recorded, and bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from licet_adapters.ports import ModelVersionRef, StageOutcome
from licet_engine.domain.errors import Conflict
from licet_engine.domain.refs import Ref
from licet_engine.lifecycle import provenance
from licet_engine.lifecycle.data import Text, Word
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.models import found, not_ready, registry_parameters, split_name, version_ref
from licet_engine.lifecycle.verbs import Body, Change, Ids, Insert, NoBody, Note, Proposal, RefForm, Update, Verb, Who
from licet_engine.store.tables import Approval, ApprovalRequest, ModelVersion, Operation, Promotion

if TYPE_CHECKING:
    from licet_engine.lifecycle.deed import Deed

TRACKS = ("engineering", "model-risk", "security", "legal", "compliance")
"""The tracks on which approval is given."""

Track = Annotated[str, Field(pattern="^(" + "|".join(TRACKS) + ")$")]
Stage = Annotated[str, Field(pattern="^(staging|prod)$")]


class RequestApproval(Body):
    """On which track approval is asked for."""

    track: Track
    reason: Text = "ready for review"


class GiveVerdict(Body):
    """A reviewer's verdict.

    Attributes:
        track: For which track it is given.
        verdict: ``approved`` or ``rejected``.
        reason: Why.
        binding: The binding the reviewer looked at, or its first 16 characters or more; refused if the version is another by
            now. An approval must name it; a rejection may leave it out.
    """

    track: Track
    verdict: Annotated[str, Field(pattern="^(approved|rejected)$")] = "approved"
    reason: Text = "reviewed"
    binding: Annotated[str, Field(pattern="^([0-9a-f]{16,64})?$")] = ""


class Promote(Body):
    """Where to promote to."""

    stage: Stage = "prod"
    region: Word | None = None
    reason: Annotated[str, Field(max_length=1000)] = ""


class RollBack(Body):
    """Which stage goes back to the version before."""

    stage: Stage = "prod"
    reason: Text = "returned to the version before"


# --- request and approve --------------------------------------------------------------------------------------------


def ask_request(view: View, who: Who, ref: Ref, body: RequestApproval, ids: Ids) -> Proposal | None:
    """A request stands in the reviewers' inbox."""
    row = found(view, ref)
    if row is None:
        return None
    binding = view.binding(row)
    request = ApprovalRequest(
        tenant_id=ref.tenant,
        id=ids.decision,
        model=row.model,
        version=row.version,
        track=body.track,
        binding=binding,
        requested_by=who.name,
        reason=body.reason,
        at_ms=ids.now_ms,
    )
    return Proposal(
        resource=view.model_version_entity(row),
        context={"track": body.track},
        change=Change(inserts=(Insert(ApprovalRequest, request.model_dump()),)),
        conflict=not_ready(row, ref),
        result={"request": request.id, "binding": binding},
    )


def ask_approve(view: View, who: Who, ref: Ref, body: GiveVerdict, ids: Ids) -> Proposal | None:
    """A verdict on the version as it stands now."""
    row = found(view, ref)
    if row is None:
        return None
    binding = view.binding(row)
    conflict = not_ready(row, ref)
    if not binding.startswith(body.binding):
        conflict = Conflict(f"{ref} is no longer what was reviewed (binding {body.binding[:16]}): review it again")
    elif not body.binding and body.verdict == "approved":
        # Else whatever stands there by the time this arrives would be approved, looked at or not.
        conflict = Conflict(f"an approval names the binding that was reviewed; {ref} shows it as `binding`")
    standing = view.approvals(row.model, row.version)
    current = [a for a in standing if a.binding == binding]
    mine = next((a for a in current if a.approver == who.name), None)
    if mine is not None and body.verdict == "approved":
        # Two tracks are two pairs of eyes.
        conflict = Conflict(
            f"{who.id} approved {ref}, as it stands now, on track {mine.track} already: one person, one track"
        )
    verdict = Approval(
        tenant_id=ref.tenant,
        id=ids.decision,
        model=row.model,
        version=row.version,
        track=body.track,
        binding=binding,
        verdict=body.verdict,
        approver=who.name,
        reason=body.reason,
        at_ms=ids.now_ms,
    )
    updates = [
        Update(
            ApprovalRequest,
            {"model": row.model, "version": row.version, "track": body.track, "state": "open", "binding": binding},
            {"state": "answered"},
            rows=None,
        )
    ]
    if body.verdict == "rejected":
        # A rejection withdraws whatever the track approved of this version before: were it only what was approved of the
        # present binding, an older approval would stand again as soon as its binding does.
        withdrawn = (a for a in standing if a.track == body.track)
        updates += [Update(Approval, {"id": a.id}, {"withdrawn_at_ms": ids.now_ms}) for a in withdrawn]
    record = {"version": str(ref), "track": body.track, "binding": binding, "verdict": body.verdict, "approver": who.id}
    note = Note("approval", {"event": "approval", **record, "reason": body.reason})
    return Proposal(
        resource=view.model_version_entity(row),
        context={"track": body.track},
        parameters={**record, "reason": body.reason, "model_digest_hex": row.digest_hex},
        change=Change(inserts=(Insert(Approval, verdict.model_dump()),), updates=updates, notes=(note,)),
        conflict=conflict,
        result={"approval": verdict.id, "binding": binding, "track": body.track, "verdict": body.verdict},
    )


def do_approve(deed: Deed) -> Mapping[str, Any]:
    """Attest the verdict."""
    return {"attestation": deed.attest(provenance.approval_statement(deed))}


def finish_approve(_view: View, operation: Operation, result: Mapping[str, Any], _now_ms: int) -> Change:
    """The approval names its attestation."""
    values = {"attestation_digest_hex": result["attestation"]}
    return Change(updates=(Update(Approval, {"id": operation.decision_id}, values),))


# --- promote, roll back, retire -------------------------------------------------------------------------------------


def ask_promote(view: View, _who: Who, ref: Ref, body: Promote, _ids: Ids) -> Proposal | None:
    """The version takes a stage; the one that holds it now gives way."""
    row = found(view, ref)
    if row is None:
        return None
    conflict = not_ready(row, ref)
    if row.stage == body.stage:
        conflict = Conflict(f"{ref} is on {body.stage} already")
    elif row.stage == "retired":
        conflict = Conflict(f"{ref} is retired: register it as a new version")
    elif row.stage == "prod":
        conflict = Conflict(f"{ref} is on prod, and would leave it: roll it back or retire it")
    region = body.region or view.tenant.region
    regions = {view.tenant.region, *(place.region for place in view.environments())}
    if region not in regions:
        conflict = Conflict(f"region {region!r} is none of the tenant's; it has {', '.join(sorted(regions))}")
    parameters = {
        **registry_parameters(row, ref),
        "stage": body.stage,
        "region": region,
        "reason": body.reason,
        "model_digest_hex": row.digest_hex,
        "bundle": view.tenant.bundle_digest_hex,
        "evaluations": {kind: check.attestation_digest_hex for kind, check in view.checks(row).items()},
        "binding": view.binding(row),
    }
    return Proposal(
        resource=view.model_version_entity(row),
        context={"stage": body.stage, "region": region},
        parameters=parameters,
        conflict=conflict,
    )


def do_promote(deed: Deed) -> Mapping[str, Any]:
    """Move the stage in the registry, and attest that policy was satisfied."""
    ref = version_ref(deed.tenant, deed.parameters)

    def promote(warrant: bytes, _attempt: int) -> dict[str, Any]:
        return _told(deed.adapters.registry.promote(warrant, ref, deed.parameters))

    moved = deed.step(
        "promote",
        promote,
        adapter=deed.adapters.registry_name,
        operation="registry.promote",
        resources=ref.resources(),
        stands=_stands(deed, ref, "promote"),
    )
    return {**moved, "attestation": deed.attest(provenance.promotion_statement(deed))}


def finish_retire(_view: View, operation: Operation, result: Mapping[str, Any], now_ms: int) -> Change:
    """The version has left every stage; nothing gives way to it."""
    return Change(
        inserts=(Insert(Promotion, _promotion(operation, result, now_ms)),),
        updates=(_takes_stage(operation, result["stage"]),),
    )


def _promotion(operation: Operation, result: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """The row that tells who changed a stage, when, why and by which decision."""
    model, version = split_name(operation)
    return {
        "id": operation.id,
        "model": model,
        "version": version,
        "stage_before": result["before"],
        "stage": result["stage"],
        "promoted_by": operation.principal,
        "decision_id": operation.decision_id,
        "bundle_digest_hex": operation.parameters.get("bundle") or "",
        "operation_id": operation.id,
        "reason": operation.parameters.get("reason", ""),
        "at_ms": now_ms,
    }


def _takes_stage(operation: Operation, stage: str) -> Update:
    """Exactly the files that were decided on; a version whose files are others by now takes no stage."""
    model, version = split_name(operation)
    where = {"model": model, "version": version, "revision": operation.parameters["revision"], "state": "ready"}
    return Update(ModelVersion, where, {"stage": stage})


def finish_promote(view: View, operation: Operation, result: Mapping[str, Any], now_ms: int) -> Change:
    """The version stands on its stage, and the registry says by whose decision."""
    model, version = split_name(operation)
    stage = result["stage"]
    updates = [_takes_stage(operation, stage)]
    gives_way = view.on_stage(model, stage)
    if gives_way is not None and gives_way.version != version:
        updates.append(Update(ModelVersion, {"model": model, "version": gives_way.version}, {"stage": "none"}))
    return Change(inserts=(Insert(Promotion, _promotion(operation, result, now_ms)),), updates=updates)


def ask_roll_back(view: View, _who: Who, ref: Ref, body: RollBack, _ids: Ids) -> Proposal | None:
    """The stage goes back to the version that held it before ``ref``."""
    row = found(view, ref)
    if row is None:
        return None
    before = view.before_on_stage(row.model, body.stage)
    conflict: Conflict | None = None
    parameters: dict[str, Any] | None = None
    if row.stage != body.stage:
        conflict = Conflict(f"{ref} is not on {body.stage}: there is nothing to roll back")
    elif before is None or before.state != "ready":
        conflict = Conflict(f"no version of {ref.unversioned} held {body.stage} before: there is nothing to return to")
    if before is not None:
        back = Ref(ref.tenant, before.model, before.version)
        parameters = {
            **registry_parameters(before, back),
            "from": str(ref),
            "stage": body.stage,
            "region": view.tenant.region,
            "reason": body.reason,
            "model_digest_hex": before.digest_hex,
            "bundle": view.tenant.bundle_digest_hex,
            "evaluations": {kind: check.attestation_digest_hex for kind, check in view.checks(before).items()},
            "binding": view.binding(before),
        }
    return Proposal(resource=view.model_version_entity(row), parameters=parameters, conflict=conflict)


def ask_retire(view: View, _who: Who, ref: Ref, _body: NoBody, _ids: Ids) -> Proposal | None:
    """The version leaves every stage for good; its files stay readable."""
    row = found(view, ref)
    if row is None:
        return None
    conflict = not_ready(row, ref)
    if row.stage == "retired":
        conflict = Conflict(f"{ref} is retired already")
    return Proposal(
        resource=view.model_version_entity(row), parameters=registry_parameters(row, ref), conflict=conflict
    )


def do_retire(deed: Deed) -> Mapping[str, Any]:
    """Retire the version in the registry."""
    ref = version_ref(deed.tenant, deed.parameters)

    def retire(warrant: bytes, _attempt: int) -> dict[str, Any]:
        return _told(deed.adapters.registry.retire(warrant, ref, deed.parameters))

    return deed.step(
        "retire",
        retire,
        adapter=deed.adapters.registry_name,
        operation="registry.retire",
        resources=ref.resources(),
        stands=_stands(deed, ref, "retire"),
    )


def _told(done: StageOutcome) -> dict[str, Any]:
    return {"stage": done.stage, "before": done.before, "replaced": done.replaced or ""}


def _stands(deed: Deed, ref: ModelVersionRef, step: str) -> Callable[[], dict[str, Any] | None]:
    """What the registry did for a step of this operation, if it did: a stage that moved has moved, whoever is asked afterwards."""

    def stands() -> dict[str, Any] | None:
        done = deed.adapters.registry.moved(deed.tenant, ref.version, deed.id, step)
        return None if done is None else _told(done)

    return stands


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
        action="model.promote",
        summary="Promote a version to staging or prod.",
        form=RefForm.VERSION,
        body=Promote,
        propose=ask_promote,
        do=do_promote,
        finish=finish_promote,
    ),
    Verb(
        action="model.roll-back",
        summary="Return a stage to the version before.",
        form=RefForm.VERSION,
        body=RollBack,
        propose=ask_roll_back,
        do=do_promote,
        finish=finish_promote,
    ),
    Verb(
        action="model.retire",
        summary="Take a version off every stage for good.",
        form=RefForm.VERSION,
        body=NoBody,
        propose=ask_retire,
        do=do_retire,
        finish=finish_retire,
    ),
)
