"""What a tenant's server knows of what could be got for a denial, and what could not be done even then.

Rules kept here:

- Only what the asker's own tenant can obtain is named, and only from facts that its members may read.
- What could not be done even then is told beside a path that leads to yes, and only there: as with an allow itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from licet_engine.decide.decision import Request
from licet_engine.decide.entities import EntityUid, Fact, FactSet
from licet_engine.decide.obtaining import Known, Place, StandIn, deployed_uid
from licet_engine.domain.errors import LicetError
from licet_engine.domain.refs import parse_ref
from licet_engine.lifecycle.approvals import verdict_context
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.promotion import Promote, ask_promote
from licet_engine.lifecycle.provenance import RUNTIME_DIGEST_HEX, TRAINING_CODE_DIGEST_HEX
from licet_engine.lifecycle.training import name_taken
from licet_engine.lifecycle.verbs import Ids, Proposal, Who
from licet_engine.store.tables import ModelVersion


def known(view: View, request: Request) -> Known:
    """What is known for this question beside its facts.

    Args:
        view: Of the asker's tenant.
        request: What was asked.
    """
    # A run is of the code and the runtime that are installed here; which of them an environment approves is its own matter.
    places = [
        Place(
            name=place.name,
            region=place.region,
            runtime_approved=RUNTIME_DIGEST_HEX in place.runtimes_allowed,
            code_approved=TRAINING_CODE_DIGEST_HEX in place.code_allowed,
        )
        for place in (view.environments() if request.action == "training.launch" else ())
    ]
    is_of_version = request.action in {"model.promote", "endpoint.deploy"}
    asked = frozenset(
        (f"{view.tenant.tenant_id}/{one.model}@{one.version}", one.track, one.binding)
        for one in (view.approval_requests() if is_of_version else ())
    )
    stand_ins = _stand_ins(view, request) if request.action == "model.approve" else ()
    return Known(places=places, asked=asked, stand_ins=stand_ins)


def _stand_ins(view: View, request: Request) -> list[StandIn]:
    """Whoever delegated the track of a verdict to the asker."""
    who, track, verdict = _asker(request), request.context["track"], request.context["verdict"]
    found = []
    for delegation in view.delegations(delegate=who.name):
        reviewer = view.principal(delegation.reviewer)
        if delegation.track == track and reviewer is not None:
            there = verdict_context(view, who, track, verdict, reviewer.name)
            found.append(StandIn(reviewer.name, there, Fact.from_entity(view.principal_entity(reviewer))))
    return found


def renewed(view: View, request: Request, facts: FactSet) -> tuple[Request, FactSet, tuple[str, ...]]:
    """A recorded question as it would be put now: its facts as they are, its time the present.

    Args:
        view: Of the tenant of the decision.
        request: What was asked.
        facts: What it was decided on.

    Returns:
        Request and facts of now, and the names of the facts that stay as recorded: what they are about is not there (yet, or any more).
    """
    found, kept = [], []
    for fact in facts:
        entity = _entity_now(view, request, fact)
        if entity is None:
            kept.append(str(fact.uid))
        found.append(fact if entity is None else Fact.from_entity(entity))
    context = dict(request.context)
    if request.action == "model.promote":
        proposal = _promotion(view, request)
        context |= {} if proposal is None else proposal.context
    context["now_ms"] = view.asked_at_ms
    return Request(request.principal, request.action, request.resource, context), FactSet(found), tuple(sorted(kept))


def _entity_now(view: View, request: Request, fact: Fact) -> Mapping[str, Any] | None:  # noqa: PLR0911  # One return for each kind.
    """An entity as it is now; None if it is not there, or another tenant's."""
    tenant, _, name = fact.uid.id.partition("/")
    if tenant != view.tenant.tenant_id:
        return None
    match fact.uid.type:
        case "Tenant":
            return view.tenant_entity()
        case "Person" | "ServiceAccount":
            return None if (person := view.principal(name)) is None else view.principal_entity(person)
        case "Dataset":
            return None if (dataset := view.dataset(name)) is None else view.dataset_entity(dataset)
        case "ModelVersion":
            return None if (version := _version_now(view, fact.uid)) is None else view.model_version_entity(version)
        case "Endpoint":
            endpoint, named = view.endpoint(name), deployed_uid(request)
            more = None if named is None else _version_now(view, named)
            return None if endpoint is None else view.endpoint_entity(endpoint, *([] if more is None else [more]))
    return None if fact.entity["attrs"].keys() - {"tenant"} else fact.entity


def _version_now(view: View, uid: EntityUid) -> ModelVersion | None:
    ref = parse_ref(uid.id, versioned=True)
    return (
        None
        if ref.tenant != view.tenant.tenant_id or ref.version is None
        else view.model_version(ref.name, ref.version)
    )


def obstacle(view: View, request: Request) -> LicetError | None:
    """Why what was asked for could not be done as things stand, were it permitted; None if it could, as far as the question tells.

    Args:
        view: Of the asker's tenant.
        request: What was asked, of a resource of that tenant.
    """
    if request.action == "training.launch":
        return name_taken(view, parse_ref(request.resource.id))
    if request.action == "model.promote":
        proposal = _promotion(view, request)
        return None if proposal is None else proposal.conflict
    return None


def _promotion(view: View, request: Request) -> Proposal | None:
    """What would be proposed now for a promotion that was asked."""
    context = request.context
    body = Promote(stage=context["stage"], region=context["region"] or None, ticket=context.get("ticket", {}).get("id"))
    ids = Ids(decision="", operation="", now_ms=view.asked_at_ms)
    return ask_promote(view, _asker(request), parse_ref(request.resource.id, versioned=True), body, ids)


def _asker(request: Request) -> Who:
    ref = parse_ref(request.principal.id)
    return Who(tenant=ref.tenant, name=ref.name, kind="person" if request.principal.type == "Person" else "service")
