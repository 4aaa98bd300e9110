"""Endpoints: all their verbs, what operations on them are decided on again, and how they are invoked and read."""

from __future__ import annotations

from licet_engine.domain.refs import Ref, parse_ref
from licet_engine.lifecycle import traffic
from licet_engine.lifecycle.deploying import (
    DeployVersion,
    abandon_deploy,
    ask_deploy,
    context_of_deployment,
    do_deploy,
    finish_deploy,
)
from licet_engine.lifecycle.endpoints import name_of
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.models import not_ready
from licet_engine.lifecycle.verbs import Ids, NoBody, Proposal, RefForm, Verb, Who
from licet_engine.store.tables import Operation


def as_it_is_now(view: View, operation: Operation) -> Proposal | None:
    """What an operation on an endpoint would be decided on now; None if it is no longer what it was."""
    row = view.endpoint(name_of(operation))
    if row is None:
        return None
    p = operation.parameters
    if operation.action == "endpoint.shift-traffic":
        return Proposal(
            resource=view.endpoint_entity(row), context={"unfit": traffic.unfit(view, row, p["weights"], p["shadow"])}
        )
    if operation.action != "endpoint.deploy":
        return Proposal(resource=view.endpoint_entity(row))
    version_ref = parse_ref(p["version"], versioned=True)
    version = view.model_version(version_ref.name, version_ref.version or 0)
    # A version that stands on a stage keeps its files; whatever else happened, other bytes were not decided on.
    if version is None or version.digest_hex != p["model_digest_hex"] or not_ready(version, version_ref) is not None:
        return None
    return Proposal(
        resource=view.endpoint_entity(row, version),
        entities=(view.model_version_entity(version),),
        context=context_of_deployment(version, p["region"], p["strategy"], alarmed=bool(p["alarms"])),
    )


def ask_invoke(view: View, _who: Who, ref: Ref, _body: NoBody, _ids: Ids) -> Proposal | None:
    """Whether the asker may put requests to the endpoint, and where."""
    row = view.endpoint(ref.name)
    if row is None:
        return None
    return Proposal(
        resource=view.endpoint_entity(row),
        parameters={"endpoint": str(ref)},
        result={"endpoint": str(ref), "path": f"/v2/models/{ref}/infer"},
    )


def ask_read(view: View, _who: Who, ref: Ref, _body: NoBody, _ids: Ids) -> Proposal | None:
    """What is known of an endpoint: its versions, its traffic, and how both came about."""
    row = view.endpoint(ref.name)
    if row is None:
        return None
    deployments = [d.model_dump(exclude={"tenant_id", "endpoint"}) for d in view.deployments(ref.name)]
    result = {**row.model_dump(exclude={"tenant_id"}), "deployments": deployments}
    return Proposal(resource=view.endpoint_entity(row), result={"endpoint": result})


VERBS = (
    Verb(
        action="endpoint.deploy",
        summary="Put a model version on an endpoint, watched by alarms.",
        form=RefForm.NAME,
        body=DeployVersion,
        propose=ask_deploy,
        do=do_deploy,
        finish=finish_deploy,
        abandon=abandon_deploy,
        creates=True,
    ),
    *traffic.VERBS,
    Verb(
        action="endpoint.invoke",
        summary="Ask whether an endpoint may be invoked, and where; the request itself goes to the router.",
        form=RefForm.NAME,
        body=NoBody,
        propose=ask_invoke,
    ),
    Verb(
        action="endpoint.read",
        summary="Show an endpoint and its history.",
        form=RefForm.NAME,
        body=NoBody,
        propose=ask_read,
    ),
)
