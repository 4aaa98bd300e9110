"""The traffic of an endpoint: shifted by hand, returned to the version before, and ended.

Rules kept here: traffic is moved by a decision, or by what a deployment was decided to do by itself. It is moved by hand
only to what could be deployed as it stands; the way back is always open.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import Field

from licet_adapters.errors import NotFound
from licet_adapters.ports import TrafficChange
from licet_engine.domain.errors import Conflict, InvalidInput
from licet_engine.domain.refs import Ref
from licet_engine.lifecycle import provenance
from licet_engine.lifecycle.data import Why
from licet_engine.lifecycle.endpoints import (
    MAX_VERSIONS,
    ON_ENDPOINT,
    WHOLE,
    main_version,
    name_of,
    not_live,
    over,
    stands_on,
    told,
)
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.verbs import Body, Change, Ids, NoBody, Proposal, RefForm, Update, Verb, Who
from licet_engine.store.tables import Deployment, Endpoint, Operation

if TYPE_CHECKING:
    from licet_engine.lifecycle.deed import Deed

_VERSION_TEXT: Final = r"^([1-9][0-9]{0,8})?$"

Weight = Annotated[int, Field(ge=0, le=WHOLE)]


class ShiftTraffic(Body):
    """How the endpoint's traffic is divided from now on.

    Attributes:
        weights: Version number, as text, to percent; 100 together.
        shadow: Number of the version that is sent copies; empty for none.
        reason: Why.
    """

    weights: Annotated[
        dict[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}$")], Weight],
        Field(min_length=1, max_length=MAX_VERSIONS),
    ]
    shadow: Annotated[str, Field(pattern=_VERSION_TEXT)] = ""
    reason: Why = ""


class RollBackEndpoint(Body):
    """Why all traffic goes back to the version before."""

    reason: Why = ""


def ask_shift(view: View, _who: Who, ref: Ref, body: ShiftTraffic, _ids: Ids) -> Proposal | None:
    """The endpoint's traffic, divided by hand among the versions that are on it."""
    row = view.endpoint(ref.name)
    if row is None:
        return None
    if sum(body.weights.values()) != WHOLE:
        raise InvalidInput(f"weights: they are {sum(body.weights.values())} together, and must be {WHOLE}")
    if body.weights.get(body.shadow):
        raise InvalidInput(f"shadow: version {body.shadow} takes traffic, so it needs no copies")
    present = {str(d.version) for d in view.deployments(ref.name) if d.state in ON_ENDPOINT}
    named = {number for number, percent in body.weights.items() if percent} | ({body.shadow} if body.shadow else set())
    conflict = not_live(row, ref, view)
    if absent := sorted(named - present, key=int):
        conflict = conflict or Conflict(f"version {', '.join(absent)} is not on {ref}: deploy it first")
    weights = {number: percent for number, percent in body.weights.items() if percent}
    return Proposal(
        resource=view.endpoint_entity(row),
        context={"unfit": unfit(view, row, weights, body.shadow)},
        parameters=_change(view, ref, row, weights, body.shadow, body.reason),
        conflict=conflict,
    )


def _change(  # noqa: PLR0917 - the parts of a change of traffic, for two verbs.
    view: View, ref: Ref, row: Endpoint, weights: Mapping[str, int], shadow: str, reason: str
) -> dict[str, Any]:
    digests = {}
    for number in (*weights, *([shadow] if shadow else ())):
        version = view.model_version(row.model, int(number))
        digests[number] = "" if version is None else version.digest_hex
    return {
        "endpoint": str(ref),
        "weights": dict(weights),
        "shadow": shadow,
        "reason": reason,
        "model": row.model,
        "digests": digests,
    }


def unfit(view: View, row: Endpoint, weights: Mapping[str, int], shadow: str) -> int:
    """Percent of the traffic that would go to versions that could not be deployed as they stand; a shadow counts for 1."""
    shares = dict(weights) | ({shadow: 1} if shadow else {})
    return sum(percent for number, percent in shares.items() if not _is_fit(view, row.model, int(number)))


def _is_fit(view: View, model: str, number: int) -> bool:
    version = view.model_version(model, number)
    if version is None or version.state != "ready" or not version.signed or version.stage not in {"staging", "prod"}:
        return False
    if view.holds("ModelVersion", f"{model}@{number}"):
        return False
    if version.stage == "staging":
        return True
    binding = view.binding(version)
    return any(a.binding == binding and a.expires_at_ms > view.now_ms for a in view.approvals(model, number))


def ask_roll_back(view: View, _who: Who, ref: Ref, body: RollBackEndpoint, _ids: Ids) -> Proposal | None:
    """All traffic goes back to the version before the newest that takes any."""
    row = view.endpoint(ref.name)
    if row is None:
        return None
    newest = next((d for d in view.deployments(ref.name) if d.state in {"baking", "live", "shadow"}), None)
    conflict: Conflict | None = Conflict(f"{ref} is {row.state}: it has no traffic") if row.state != "live" else None
    parameters = None
    if newest is None or not (newest.fallback or newest.state == "shadow"):
        conflict = conflict or Conflict(f"{ref} had no version before: retire it to stop it")
    elif not (back := _back(view, ref, newest) if newest.fallback else main_version(row)):
        conflict = conflict or Conflict(f"every version before on {ref} was rolled back: deploy one anew, or retire it")
    elif back not in {str(d.version) for d in view.deployments(ref.name) if d.state in ON_ENDPOINT}:
        conflict = conflict or Conflict(
            f"version {back}, the one before, is on {ref} no more: deploy it anew, or retire it"
        )
    else:
        parameters = _change(view, ref, row, {back: WHOLE}, "", body.reason) | {"deployment": newest.id}
    return Proposal(resource=view.endpoint_entity(row), parameters=parameters, conflict=conflict)


def _back(view: View, ref: Ref, deployment: Deployment) -> str:
    """Number of the version to which a deployment returns: past those that were rolled back themselves, as the router does.

    Empty if there is none.
    """
    newest: dict[str, Deployment] = {}
    for one in view.deployments(ref.name):
        newest.setdefault(str(one.version), one)
    back, passed = deployment.fallback, {str(deployment.version)}
    while back and back not in passed and back in newest and newest[back].state == "rolled-back":
        passed.add(back)
        back = newest[back].fallback
    return "" if back in passed else back


def do_shift(deed: Deed) -> Mapping[str, Any]:
    """Have the router divide the traffic anew, and attest it."""

    def shift(warrant: bytes, attempt: int) -> dict[str, Any]:
        return told(deed.adapters.serving.shift(warrant, _traffic(deed, "shift", attempt)))

    resources = _traffic(deed, "shift", 1).resources()
    shifted = deed.step(
        "shift",
        shift,
        adapter="local-serving",
        operation="serving.shift",
        resources=resources,
        stands=stands_on(deed, "shift"),
    )
    return {**shifted, "attestation": deed.attest(provenance.traffic_statement(deed, shifted))}


def _traffic(deed: Deed, step: str, attempt: int) -> TrafficChange:
    return TrafficChange(
        tenant=deed.tenant,
        endpoint=deed.parameters["endpoint"],
        operation_id=deed.id,
        step=step,
        attempt=attempt,
        parameters=deed.parameters,
    )


def finish_shift(view: View, operation: Operation, result: Mapping[str, Any], now_ms: int) -> Change:
    """The traffic is divided so; a deployment that was rolled back by hand is over."""
    name = name_of(operation)
    taking = {number for number, percent in result["weights"].items() if percent}
    updates = []
    if not view.has_moved_by_itself(name, operation.id):
        values: dict[str, Any] = {"weights": dict(result["weights"]), "shadow": result["shadow"]}
        updates.append(Update(Endpoint, {"name": name}, values | {"updated_at_ms": now_ms}))
    events = []
    for deployment in view.deployments(name):
        if deployment.id == operation.parameters.get("deployment"):
            cause = {"by": operation.principal, "reason": operation.parameters["reason"]}
            values = {"state": "rolled-back", "cause": cause, "ended_at_ms": now_ms}
            updates.append(Update(Deployment, {"id": deployment.id}, values))
            if deployment.state != "rolled-back":
                events.append(
                    over(operation.parameters["endpoint"], deployment, "rolled-back", result["weights"], cause)
                )
        elif deployment.state in ON_ENDPOINT:
            updates.append(
                Update(Deployment, {"id": deployment.id}, {"state": _state_of(deployment, taking, result["shadow"])})
            )
    return Change(updates=updates, events=tuple(events))


def _state_of(deployment: Deployment, taking: set[str], shadow: str) -> str:
    number = str(deployment.version)
    return "live" if number in taking else "shadow" if number == shadow else "superseded"


def ask_retire(view: View, _who: Who, ref: Ref, _body: NoBody, _ids: Ids) -> Proposal | None:
    """The endpoint drains and stops; its history stays."""
    row = view.endpoint(ref.name)
    if row is None:
        return None
    conflict = None
    if row.state == "retired":
        conflict = Conflict(f"{ref} is retired already")
    elif view.has_open_operation(str(ref)):
        conflict = Conflict(f"an operation on {ref} is at work: wait until it has ended")
    return Proposal(resource=view.endpoint_entity(row), parameters={"endpoint": str(ref)}, conflict=conflict)


def do_retire(deed: Deed) -> Mapping[str, Any]:
    """Have the router drain and stop everything of the endpoint."""

    def retire(warrant: bytes, attempt: int) -> dict[str, Any]:
        try:
            return told(deed.adapters.serving.retire(warrant, _traffic(deed, "retire", attempt)))
        except NotFound:
            # A router that lost its folder has nothing to stop; the endpoint must be retired all the same, to be deployed anew.
            return {"weights": {}, "shadow": "", "replicas": {}}

    resources = _traffic(deed, "retire", 1).resources()
    return deed.step(
        "retire",
        retire,
        adapter="local-serving",
        operation="serving.retire",
        resources=resources,
        stands=stands_on(deed, "retire"),
    )


def finish_retire(view: View, operation: Operation, _result: Mapping[str, Any], now_ms: int) -> Change:
    """Nothing answers there any more."""
    name = name_of(operation)
    values = {"state": "retired", "weights": {}, "shadow": "", "alarmed": False, "updated_at_ms": now_ms}
    updates = [Update(Endpoint, {"name": name}, values)]
    updates += [
        Update(Deployment, {"id": deployment.id}, {"state": "retired", "ended_at_ms": now_ms})
        for deployment in view.deployments(name)
        if deployment.state in ON_ENDPOINT
    ]
    return Change(updates=updates)


VERBS = (
    Verb(
        action="endpoint.shift-traffic",
        summary="Divide an endpoint's traffic among its versions.",
        form=RefForm.NAME,
        body=ShiftTraffic,
        propose=ask_shift,
        do=do_shift,
        finish=finish_shift,
    ),
    Verb(
        action="endpoint.roll-back",
        summary="Return all traffic of an endpoint to the version before.",
        form=RefForm.NAME,
        body=RollBackEndpoint,
        propose=ask_roll_back,
        do=do_shift,
        finish=finish_shift,
    ),
    Verb(
        action="endpoint.retire",
        summary="Drain an endpoint and stop everything of it.",
        form=RefForm.NAME,
        body=NoBody,
        propose=ask_retire,
        do=do_retire,
        finish=finish_retire,
    ),
)
