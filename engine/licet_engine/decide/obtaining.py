"""What could be got that might turn a denial into a permission: the obtainable facts, by action.

Rules kept here:

- They follow from the request and its facts, and from what else is known there: where a server is, its environments, requests and
  delegations; with a record alone, nothing.
- Each says what to do to get it, and what would be true then. Whether it helps, evaluation tells (``path``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from licet_engine.decide.decision import Request
from licet_engine.decide.entities import EntityUid, Fact, FactSet
from licet_engine.decide.path import Change, Obtainable
from licet_engine.domain.tracks import TRACKS

_BEST_FIGURES: Final[Mapping[str, Mapping[str, Any]]] = {
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

_NEVER_MS: Final = (1 << 53) - 1
"""What a fact that is got anew outlasts: the time of the question is part of the request, not of what can be got."""


@dataclass(frozen=True, slots=True)
class Place:
    """An environment in which a run may be launched.

    Attributes:
        name: Of it.
        region: Where it is.
        runtime_approved: Whether it approves the runtime that is installed.
        code_approved: The same of the code.
    """

    name: str
    region: str
    runtime_approved: bool
    code_approved: bool


@dataclass(frozen=True, slots=True)
class StandIn:
    """A reviewer for whom the asker may give the verdict.

    Attributes:
        reviewer: Who delegated the track.
        context: What the context of the verdict would have then.
        fact: The reviewer, as a fact.
    """

    reviewer: str
    context: Mapping[str, Any]
    fact: Fact


@dataclass(frozen=True, slots=True)
class Known:
    """What is known beside the facts of the question.

    Attributes:
        places: Environments of the tenant.
        asked: Open requests for approval: version, track and binding of each.
        stand_ins: For whom the asker may stand in on the track of the question.
    """

    places: Sequence[Place] = ()
    asked: frozenset[tuple[str, str, str]] = frozenset()
    stand_ins: Sequence[StandIn] = ()


def obtainable(request: Request, facts: FactSet, known: Known | None = None) -> Sequence[Obtainable]:
    """What could be got for a question.

    Args:
        request: What was asked.
        facts: What it was decided on.
        known: What else is known.

    Returns:
        The most easily got first.
    """
    fact, known = facts.get(request.resource.key), known or Known()
    if fact is None:
        return ()
    match request.action, request.resource.type:
        case "training.launch", "Run":
            return _for_training(fact, known)
        case "model.promote", "ModelVersion":
            return [*_for_version(fact, known), _ticket(fact), _signature(fact)]
        case "model.approve", "ModelVersion":
            return _for_verdict(request, fact, known)
        case "endpoint.deploy", "Endpoint":
            return _for_deployment(request, facts, fact, known)
    return ()


def _set(entity: EntityUid | None, path: tuple[str, ...], value: Any) -> Change:
    return Change("set", path, value, entity)


def _for_training(run: Fact, known: Known) -> list[Obtainable]:
    attrs, tenant = run.entity["attrs"], run.uid.id.partition("/")[0]
    found = [
        Obtainable(
            name=f"environment:{place.name}",
            describe=f"launch it in environment {place.name}, which is in region {place.region}",
            patch=(
                _set(run.uid, ("environment",), place.name),
                _set(run.uid, ("region",), place.region),
                _set(run.uid, ("runtime_approved",), place.runtime_approved),
                _set(run.uid, ("code_approved",), place.code_approved),
            ),
        )
        # Its own among them: they exclude each other, so that to stay where it is is a choice, too.
        for place in known.places
    ]
    found.append(
        Obtainable(
            name="budget:training",
            describe=f"have the training budget raised to at least {attrs['cost']}",
            patch=(_set(run.uid, ("budget_remaining",), max(attrs["cost"], attrs["budget_remaining"])),),
        )
    )
    if wanted := attrs.get("compute", {}).get("devices", 0):
        quota = max(wanted, attrs["compute"]["device_quota"])
        found.append(
            Obtainable(
                name="quota:devices",
                describe=f"have an operator allot {wanted} devices: licet tenant allot {tenant} --devices {wanted}",
                patch=(_set(run.uid, ("compute", "device_quota"), quota),),
            )
        )
    return found


def _for_version(version: Fact, known: Known) -> list[Obtainable]:
    """The checks and approvals of a version."""
    attrs, name = version.entity["attrs"], version.uid.id
    found = [
        Obtainable(
            name=f"check:{kind}",
            describe=(
                # A check is a function of the files and the data: the same again says the same.
                f"register a version that passes the {kind} check; this one did not"
                if kind in attrs["checks"]
                else f"pass the {kind} check: licet model check {name} --kind {kind}"
            ),
            patch=(_set(version.uid, ("checks", kind), dict(best)),),
        )
        for kind, best in _BEST_FIGURES.items()
    ]
    found += [
        Obtainable(
            name=f"approval:{track}",
            describe=_approval(known, name, attrs["binding"], track),
            patch=(
                _set(
                    version.uid,
                    ("approvals", track),
                    {"binding": attrs["binding"], "by": [], "expires_at_ms": _NEVER_MS},
                ),
            ),
        )
        for track in TRACKS
    ]
    return found


def _approval(known: Known, name: str, binding: str, track: str) -> str:
    """What is to be done for a track's approval: of what was asked for already, the next step."""
    if (name, track, binding) in known.asked:
        given = f"licet approval approve {name} --track {track} --binding {binding}"
        return f"wait for track {track}, which has been asked; a reviewer of it approves by: {given}"
    return f"have track {track} approve it as it stands: licet approval request {name} --track {track}"


def _ticket(version: Fact) -> Obtainable:
    told = {
        "id": "TICKET",
        "state": "approved",
        "approved": True,
        "covers": True,
        "as_of_ms": 0,
        "fresh_until_ms": _NEVER_MS,
    }
    return Obtainable(
        name="ticket:approved",
        describe=(
            "have a change ticket for it approved, fetch it (licet ticket fetch), and name it: "
            f"licet model promote {version.uid.id} --ticket TICKET"
        ),
        patch=(_set(None, ("ticket",), told),),
    )


def _signature(version: Fact) -> Obtainable:
    return Obtainable(
        name="signature:model",
        describe=f"have the files of {version.uid.id} signed: register them again",
        patch=(_set(version.uid, ("signed",), value=True),),
    )


def _for_verdict(request: Request, version: Fact, known: Known) -> list[Obtainable]:
    """Whoever the asker stands in for on the track: a verdict is given in one's own place unless it says in whose."""
    context = request.context
    if "delegation" in context:
        return []
    track, word = context["track"], "approve" if context["verdict"] == "approved" else "reject"
    binding = version.entity["attrs"]["binding"][:16]
    return [
        Obtainable(
            name=f"stand-in:{one.reviewer}",
            describe=(
                f"say that it is given in the place of {one.reviewer}, who delegated track {track}: licet approval {word}"
                f" {version.uid.id} --track {track} --binding {binding} --for {one.reviewer}"
            ),
            patch=tuple(_set(None, (member,), one.context[member]) for member in ("delegation", "people")),
            brings=(one.fact,),
        )
        for one in known.stand_ins
    ]


def _for_deployment(request: Request, facts: FactSet, endpoint: Fact, known: Known) -> list[Obtainable]:
    """What the version that would be put on the endpoint lacks, and what is chosen with the deployment."""
    named = deployed_uid(request)
    version = None if named is None else facts.get(named.key)
    if version is None:
        return []
    name = version.uid.id
    found = _for_version(version, known)
    found.append(_signature(version))
    if version.entity["attrs"]["stage"] not in ("staging", "prod"):
        found.append(
            Obtainable(
                name="stage:staging",
                describe=f"have it promoted first: licet model promote {name} --to staging",
                patch=(_set(version.uid, ("stage",), "staging"),),
            )
        )
    found.append(
        Obtainable(
            name="alarm:named",
            describe="watch it by an alarm: name one with --alarm, such as --alarm error-rate=0.02",
            patch=(_set(None, ("alarmed",), value=True),),
        )
    )
    allowed = [name for name in endpoint.entity["attrs"]["restrictions"]["residency"] if isinstance(name, str)]
    # Its own among them, as with the environments of a run. A new endpoint is in the region of its deployment.
    found += [
        Obtainable(
            name=f"region:{region}",
            describe=f"deploy it in region {region}: --region {region}",
            patch=(_set(None, ("region",), region), _set(endpoint.uid, ("region",), region)),
        )
        for region in sorted({*allowed, request.context["region"]})
    ]
    return found


def deployed_uid(request: Request) -> EntityUid | None:
    """The version that the context of a deployment names, or None."""
    value = request.context.get("version")
    uid = value.get("__entity", value) if isinstance(value, Mapping) else None
    if not isinstance(uid, Mapping) or uid.get("type") != "ModelVersion":
        return None
    return EntityUid("ModelVersion", str(uid.get("id")))
