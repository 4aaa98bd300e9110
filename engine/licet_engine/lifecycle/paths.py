"""What could be got that might turn a denial into a permission: the obtainable facts, by action.

Rules kept here:

- Only what the asker's own tenant can obtain is named, and only from facts that its members may read.
- What could not be done even then is told beside a path that leads to yes, and only there: as with an allow itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from licet_adapters.training.spec import CHECK_KINDS
from licet_engine.decide.decision import Request
from licet_engine.decide.entities import EntityUid, Fact
from licet_engine.decide.path import Change, Obtainable
from licet_engine.domain.errors import LicetError
from licet_engine.domain.refs import parse_ref
from licet_engine.lifecycle.approvals import TRACKS, verdict_context
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.promotion import Promote, ask_promote
from licet_engine.lifecycle.provenance import RUNTIME_DIGEST_HEX, TRAINING_CODE_DIGEST_HEX
from licet_engine.lifecycle.training import name_taken
from licet_engine.lifecycle.verbs import Ids, Who

_BEST_FIGURES: Mapping[str, Mapping[str, Any]] = {
    "technical": {"passed": True, "auc_lower_micro": 1_000_000, "calibration_error_micro": 0},
    "bias": {
        "passed": True,
        "selection_rate_ratio_micro": 1_000_000,
        "selection_rate_ratio_lower_micro": 1_000_000,
    },
    "explainability": {"passed": True, "protected_or_proxy_share_micro": 0},
    "drift": {"passed": True, "drifted_features": 0},
}
"""What each check would have to say at best."""

_NEVER_MS = (1 << 53) - 1
"""What a fact that is got anew outlasts: the time of the question is part of the request, not of what can be got."""


def obtainable(view: View, request: Request, resource: Mapping[str, Any]) -> Sequence[Obtainable]:
    """What could be got for this question.

    Args:
        view: Of the asker's tenant.
        request: What was asked.
        resource: The resource's entity, as the decision saw it.

    Returns:
        The most easily got first.
    """
    action, kind = request.action, resource["uid"]["type"]
    if action == "training.launch" and kind == "Run":
        return _for_training(view, resource)
    if action in {"model.promote", "endpoint.deploy"} and kind == "ModelVersion":
        return _for_promotion(view, resource)
    if action == "model.approve" and kind == "ModelVersion":
        return _for_verdict(view, request, resource)
    return ()


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


def _entity(resource: Mapping[str, Any]) -> EntityUid:
    return EntityUid.from_json(resource["uid"])


def _for_training(view: View, resource: Mapping[str, Any]) -> list[Obtainable]:
    run, attrs = _entity(resource), resource["attrs"]
    # A run is of the code and the runtime that are installed here; which of them an environment approves is its own matter.
    code, runtime = TRAINING_CODE_DIGEST_HEX, RUNTIME_DIGEST_HEX
    found = [
        Obtainable(
            name=f"environment:{place.name}",
            describe=f"launch it in environment {place.name}, which is in region {place.region}",
            patch=(
                Change("set", ("environment",), place.name, run),
                Change("set", ("region",), place.region, run),
                Change("set", ("runtime_approved",), runtime in place.runtimes_allowed, run),
                Change("set", ("code_approved",), code in place.code_allowed, run),
            ),
        )
        # Its own among them: they exclude each other, so that to stay where it is is a choice, too.
        for place in view.environments()
    ]
    found.append(
        Obtainable(
            name="budget:training",
            describe=f"have the training budget raised to at least {attrs['cost']}",
            patch=(Change("set", ("budget_remaining",), max(attrs["cost"], attrs["budget_remaining"]), run),),
        )
    )
    if wanted := attrs.get("compute", {}).get("devices", 0):
        tenant = view.tenant.tenant_id
        found.append(
            Obtainable(
                name="quota:devices",
                describe=f"have an operator allot {wanted} devices: licet tenant allot {tenant} --devices {wanted}",
                patch=(Change("set", ("compute", "device_quota"), max(wanted, attrs["compute"]["device_quota"]), run),),
            )
        )
    return found


def _approval(view: View, name: str, binding: str, track: str) -> str:
    """What is to be done for a track's approval: of what was asked for or refused already, the next step."""
    given = f"licet approval approve {name} --track {track} --binding {binding}"
    if any(
        f"{view.tenant.tenant_id}/{asked.model}@{asked.version}" == name
        and (asked.track, asked.binding) == (track, binding)
        for asked in view.approval_requests()
    ):
        return f"wait for track {track}, which has been asked; a reviewer of it approves by: {given}"
    return f"have track {track} approve it as it stands: licet approval request {name} --track {track}"


def _for_verdict(view: View, request: Request, resource: Mapping[str, Any]) -> list[Obtainable]:
    """Whoever the asker stands in for on the track: a verdict is given in one's own place unless it says in whose."""
    who, context = _asker(request), request.context
    if "delegation" in context:
        return []
    track, verdict, name = context["track"], context["verdict"], resource["uid"]["id"]
    word = "approve" if verdict == "approved" else "reject"
    found = []
    for delegation in view.delegations(delegate=who.name):
        reviewer = view.principal(delegation.reviewer)
        if delegation.track != track or reviewer is None:
            continue
        there = verdict_context(view, who, track, verdict, reviewer.name)
        binding = resource["attrs"]["binding"][:16]
        command = f"licet approval {word} {name} --track {track} --binding {binding} --for {reviewer.name}"
        found.append(
            Obtainable(
                name=f"stand-in:{reviewer.name}",
                describe=f"say that it is given in the place of {reviewer.name}, who delegated track {track}: {command}",
                patch=tuple(Change("set", (member,), there[member]) for member in ("delegation", "people")),
                brings=(Fact.from_entity(view.principal_entity(reviewer)),),
            )
        )
    return found


def _for_promotion(view: View, resource: Mapping[str, Any]) -> list[Obtainable]:
    version, attrs = _entity(resource), resource["attrs"]
    name = resource["uid"]["id"]
    found = [
        Obtainable(
            name=f"check:{kind}",
            describe=(
                # A check is a function of the files and the data: the same again says the same.
                f"register a version that passes the {kind} check; this one did not"
                if kind in attrs["checks"]
                else f"pass the {kind} check: licet model check {name} --kind {kind}"
            ),
            patch=(Change("set", ("checks", kind), dict(_BEST_FIGURES[kind]), version),),
        )
        for kind in CHECK_KINDS
    ]
    found += [
        Obtainable(
            name=f"approval:{track}",
            describe=_approval(view, name, attrs["binding"], track),
            patch=(
                Change(
                    "set",
                    ("approvals", track),
                    {"binding": attrs["binding"], "by": [], "expires_at_ms": _NEVER_MS},
                    version,
                ),
            ),
        )
        for track in TRACKS
    ]
    found.append(
        Obtainable(
            name="ticket:approved",
            describe=(
                "have a change ticket for it approved, fetch it (licet ticket fetch), and name it: "
                f"licet model promote {name} --ticket TICKET"
            ),
            patch=(
                Change(
                    "set",
                    ("ticket",),
                    {
                        "id": "TICKET",
                        "state": "approved",
                        "approved": True,
                        "covers": True,
                        "as_of_ms": 0,
                        "fresh_until_ms": _NEVER_MS,
                    },
                ),
            ),
        )
    )
    found.append(
        Obtainable(
            name="signature:model",
            describe=f"have the files of {name} signed: register them again",
            patch=(Change(op="set", path=("signed",), value=True, entity=version),),
        )
    )
    return found
