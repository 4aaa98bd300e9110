"""What a tenant's server knows of what could be got for a denial, and what could not be done even then.

Rules kept here:

- Only what the asker's own tenant can obtain is named, and only from facts that its members may read.
- What could not be done even then is told beside a path that leads to yes, and only there: as with an allow itself.
"""

from __future__ import annotations

from licet_engine.decide.decision import Request
from licet_engine.decide.entities import Fact
from licet_engine.decide.obtaining import Known, Place, StandIn
from licet_engine.domain.errors import LicetError
from licet_engine.domain.refs import parse_ref
from licet_engine.lifecycle.approvals import verdict_context
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.promotion import Promote, ask_promote
from licet_engine.lifecycle.provenance import RUNTIME_DIGEST_HEX, TRAINING_CODE_DIGEST_HEX
from licet_engine.lifecycle.training import name_taken
from licet_engine.lifecycle.verbs import Ids, Who


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


def obstacle(view: View, request: Request) -> LicetError | None:
    """Why what was asked for could not be done as things stand, were it permitted; None if it could, as far as the question tells.

    Args:
        view: Of the asker's tenant.
        request: What was asked, of a resource of that tenant.
    """
    who, context = _asker(request), request.context
    ids = Ids(decision="", operation="", now_ms=view.asked_at_ms)
    ref = parse_ref(request.resource.id, versioned="@" in request.resource.id)
    if request.action == "training.launch":
        return name_taken(view, ref)
    if request.action == "model.promote":
        ticket = context.get("ticket", {}).get("id")
        body = Promote(stage=context["stage"], region=context["region"], ticket=ticket)
        proposal = ask_promote(view, who, ref, body, ids)
        return None if proposal is None else proposal.conflict
    return None


def _asker(request: Request) -> Who:
    ref = parse_ref(request.principal.id)
    return Who(tenant=ref.tenant, name=ref.name, kind="person" if request.principal.type == "Person" else "service")
