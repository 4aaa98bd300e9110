"""From a registered version to production and back: promote, roll back, retire. What it takes is for policy to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from licet_adapters.ports import ModelVersionRef, StageOutcome
from licet_engine.domain.errors import Conflict
from licet_engine.domain.refs import Ref
from licet_engine.lifecycle import provenance
from licet_engine.lifecycle.data import Why, Word
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.models import found, not_ready, registry_parameters, split_name, version_ref
from licet_engine.lifecycle.tickets import TicketId, ticket_fact
from licet_engine.lifecycle.verbs import Body, Change, Ids, Insert, NoBody, Proposal, RefForm, Update, Verb, Who
from licet_engine.store.tables import ModelVersion, Operation, Promotion

if TYPE_CHECKING:
    from licet_engine.lifecycle.deed import Deed

Stage = Annotated[str, Field(pattern="^(staging|prod)$")]


class Promote(Body):
    """Where to promote to."""

    stage: Stage = "prod"
    region: Word | None = None
    reason: Annotated[str, Field(max_length=1000)] = ""
    ticket: TicketId | None = None


class RollBack(Body):
    """Which stage goes back to the version before."""

    stage: Stage = "prod"
    reason: Why = ""


# --- promote, roll back, retire -------------------------------------------------------------------------------------


def ask_promote(view: View, _who: Who, ref: Ref, body: Promote, _ids: Ids) -> Proposal | None:
    """The version takes a stage; the one that holds it now gives way.

    The parameters name the ticket, if one is named; what it says stands in the context, and is read again when the
    promotion is decided again.
    """
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
    context = ticket_fact(view, ref, body.ticket)
    if body.ticket is not None and not context and conflict is None:
        # Whether or not a policy asks for one: what is named and not known is no.
        conflict = Conflict(f"ticket {body.ticket} was never fetched: licet ticket fetch {ref.tenant} {body.ticket}")
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
        **({} if body.ticket is None else {"ticket": body.ticket}),
    }
    return Proposal(
        resource=view.model_version_entity(row),
        context={"stage": body.stage, "region": region, **context},
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
