"""Deployments: a model version on an endpoint, watched by alarms.

Rules kept here:

- What a deployment may do by itself (its steps, the return to the version before on an alarm) is in its parameters, and so
  decided, logged and in its warrant.
- A version is deployed as the bytes that were decided on, and an endpoint is bound by whatever binds any version on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from licet_adapters.ports import MODEL_FILES, REFERENCE_FILE, DeploymentJob, InputFile, ModelVersionRef
from licet_adapters.serving.plan import Alarm, Batch, Percent, Replicas, check_steps
from licet_engine.domain.errors import Conflict
from licet_engine.domain.refs import Ref, parse_ref
from licet_engine.lifecycle import provenance
from licet_engine.lifecycle.data import Word
from licet_engine.lifecycle.endpoints import MAX_VERSIONS, ON_ENDPOINT, WHOLE, main_version, name_of, stands_on, told
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.models import not_ready, object_of
from licet_engine.lifecycle.verbs import Body, Change, Ids, Insert, Proposal, Update, Who
from licet_engine.store.tables import Deployment, Endpoint, InvocationCount, ModelVersion, Operation

if TYPE_CHECKING:
    from licet_engine.lifecycle.deed import Deed, Stands


_NO_VERSION_BEFORE: Final = (
    "there is no version before on this endpoint: this one takes all traffic at once, without steps, and an alarm has nothing to"
    " return it to; it is told as failed, and the version answers on"
)


class DeployVersion(Body):
    """Which version to put on the endpoint, and how.

    Attributes:
        version: Of which model; on an endpoint that has one already, of that.
        region: Where it answers; the tenant's own if left out.
        strategy: ``canary`` in steps, ``blue-green`` at once with the version before kept warm, ``shadow`` with copies of
            requests only, or ``direct``. On an endpoint without a version before, canary and blue-green are ``direct``.
        steps: Percent of a canary, rising, the last 100.
        bake_s: How long each step is held without an alarm before the next.
        replicas: How many processes answer.
        batch: How requests are computed together.
        timeout_ms: How long a request may take.
        max_request_bytes: Largest request.
        alarms: What returns all traffic to the version before. Policy refuses a deployment without one.
    """

    version: Annotated[str, Field(max_length=128, pattern=r"^[a-z][a-z0-9-]*/[a-z0-9][a-z0-9-]*@[1-9][0-9]{0,8}$")]
    region: Word | None = None
    strategy: Literal["canary", "blue-green", "shadow", "direct"] = "canary"
    steps: list[Percent] = Field(default_factory=lambda: [10, 50, WHOLE], min_length=1, max_length=20)
    bake_s: Annotated[int, Field(ge=0, le=604_800)] = 60
    replicas: Replicas = Replicas()
    batch: Batch = Batch()
    timeout_ms: Annotated[int, Field(ge=10, le=120_000)] = 2000
    max_request_bytes: Annotated[int, Field(ge=256, le=64 << 20)] = 1 << 20
    alarms: list[Alarm] = Field(default_factory=list, max_length=16)

    @model_validator(mode="after")
    def _steps_fit(self) -> DeployVersion:
        if "steps" in self.model_fields_set:
            if self.strategy != "canary":
                raise ValueError("only a canary has steps")
            check_steps(self.steps)
        return self


def ask_deploy(view: View, who: Who, ref: Ref, body: DeployVersion, ids: Ids) -> Proposal | None:
    """The endpoint as it would be with the version on it."""
    version_ref = parse_ref(body.version, versioned=True)
    version = None
    if version_ref.tenant == ref.tenant and version_ref.version is not None:
        version = view.model_version(version_ref.name, version_ref.version)
    if version is None:
        return None
    present = view.endpoint(ref.name)
    before = main_version(present)
    region = body.region or (present.region if present is not None else view.tenant.region)
    row = present or Endpoint(
        tenant_id=ref.tenant,
        name=ref.name,
        model=version.model,
        region=region,
        use=version.use,
        state="deploying",
        created_by=who.name,
        created_at_ms=ids.now_ms,
        updated_at_ms=ids.now_ms,
    )
    # Without a version before there is nothing to divide traffic with, and nothing to go back to.
    strategy = body.strategy if before or body.strategy == "shadow" else "direct"
    source = _source(view, version)
    parameters = _plan(ref, body, version, strategy, before, region) | {"source": source}
    change = _deployment(row, present, parameters, version, who, ids)
    return Proposal(
        resource=view.endpoint_entity(row, version),
        entities=(view.model_version_entity(version),),
        context=context_of_deployment(version, region, strategy, alarmed=bool(body.alarms)),
        parameters=parameters,
        change=change,
        conflict=_cannot_deploy(view, ref, present, version, strategy) if source is not None else _no_lineage(version),
        result={"deployment": ids.operation, "strategy": strategy, "fallback": parameters["fallback"]}
        | ({} if before else {"note": _NO_VERSION_BEFORE}),
    )


def _plan(  # noqa: PLR0917 - the parts of one value, in its only call.
    ref: Ref, body: DeployVersion, version: ModelVersion, strategy: str, before: str, region: str
) -> dict[str, Any]:
    """What the router is told, and holds itself to."""
    return {
        "endpoint": str(ref),
        "version": f"{ref.tenant}/{version.model}@{version.version}",
        "model_digest_hex": version.digest_hex,
        "region": region,
        "strategy": strategy,
        "steps": list(body.steps) if strategy == "canary" else [],
        # What has nothing to be returned to is not waited for.
        "bake_s": body.bake_s if strategy != "direct" else 0,
        "fallback": f"{ref.tenant}/{version.model}@{before}" if before else "",
        "replicas": body.replicas.model_dump(mode="json"),
        "batch": body.batch.model_dump(mode="json"),
        "timeout_ms": body.timeout_ms,
        "max_request_bytes": body.max_request_bytes,
        "alarms": [alarm.model_dump(mode="json") for alarm in body.alarms],
    }


def _no_lineage(version: ModelVersion) -> Conflict:
    name = Ref(version.tenant_id, version.model, version.version)
    return Conflict(
        f"the run and the data behind {name} are not known, so nothing can be compared with them: train anew"
    )


def _source(view: View, version: ModelVersion) -> dict[str, Any] | None:
    """Where the worker gets the model's files and the rows it was trained on; None if these are not known."""
    files = {name: entry for name, entry in version.manifest.get("files", {}).items() if name in MODEL_FILES}
    run = view.run(version.run)
    dataset = view.dataset(version.datasets[0]) if version.datasets else None
    if run is None or dataset is None:
        return None
    return {
        "files": {name: {"digest_hex": entry["digest_hex"]} for name, entry in files.items()},
        "binding": view.binding(version),
        "dataset": {"object_id": dataset.object_id, "digest_hex": dataset.digest_hex, "size_bytes": dataset.bytes},
        "as_of_ms": dataset.created_at_ms,
        "label": dataset.label,
        "protected": dataset.protected,
        "columns": dataset.columns,
        "missing": dataset.missing,
        "split": run.spec["split"],
        "exclude": run.spec["exclude"],
    }


def context_of_deployment(version: ModelVersion, region: str, strategy: str, *, alarmed: bool) -> dict[str, Any]:
    """The context in which a deployment is decided on."""
    name = f"{version.tenant_id}/{version.model}@{version.version}"
    return {
        "region": region,
        "alarmed": alarmed,
        "strategy": strategy,
        "version": {"__entity": {"type": "ModelVersion", "id": name}},
    }


def context_of_elsewhere(body: DeployVersion) -> dict[str, Any]:
    """The context of a deployment of which nothing is known but what was sent."""
    return {"region": body.region or "", "alarmed": bool(body.alarms), "strategy": body.strategy}


def _cannot_deploy(  # noqa: PLR0911 - one return for each reason.
    view: View, ref: Ref, present: Endpoint | None, version: ModelVersion, strategy: str
) -> Conflict | None:
    name = Ref(ref.tenant, version.model, version.version)
    if (conflict := not_ready(version, name)) is not None:
        return conflict
    if present is None:
        return None if strategy != "shadow" else Conflict(f"{ref} has no traffic to send {name} copies of")
    if present.model != version.model:
        return Conflict(
            f"{ref} answers with {ref.tenant}/{present.model}: deploy another model on an endpoint of its own"
        )
    if present.state != "retired" and present.use != version.use:
        # Who may invoke is decided by the endpoint's use, against what binds every version on it.
        return Conflict(f"{ref} is for {present.use}, {name} for {version.use}: deploy it on an endpoint of its own")
    if view.has_open_operation(str(ref)):
        return Conflict(f"an operation on {ref} is at work: wait until it has ended")
    deployments = view.deployments(ref.name)
    baking = next((d for d in deployments if d.state in {"starting", "baking"}), None)
    if baking is not None:
        return Conflict(f"version {baking.version} still bakes on {ref}: wait, or roll back")
    if present.state == "live" and (
        present.weights.get(str(version.version)) or present.shadow == str(version.version)
    ):
        return Conflict(f"{name} is on {ref} already")
    if strategy == "shadow" and not main_version(present):
        return Conflict(f"{ref} has no traffic to send {name} copies of")
    if len({d.version for d in deployments if d.state in ON_ENDPOINT} | {version.version}) > MAX_VERSIONS:
        return Conflict(f"{ref} has {MAX_VERSIONS} versions already: retire it, and deploy anew")
    return None


def _deployment(  # noqa: PLR0917 - as above.
    row: Endpoint, present: Endpoint | None, plan: Mapping[str, Any], version: ModelVersion, who: Who, ids: Ids
) -> Change:
    """The rows of a deployment that was accepted."""
    deployment = Deployment(
        tenant_id=row.tenant_id,
        id=ids.operation,
        endpoint=row.name,
        model=version.model,
        version=version.version,
        model_digest_hex=version.digest_hex,
        strategy=plan["strategy"],
        fallback=plan["fallback"].rpartition("@")[2],
        plan={name: plan[name] for name in ("steps", "bake_s", "replicas", "batch", "alarms", "region", "timeout_ms")},
        state="starting",
        deployed_by=who.name,
        decision_id=ids.decision,
        created_at_ms=ids.now_ms,
    )
    inserts = [Insert(Deployment, deployment.model_dump())]
    if present is None:
        count = InvocationCount(tenant_id=row.tenant_id, endpoint=row.name, at_ms=ids.now_ms)
        inserts = [Insert(Endpoint, row.model_dump()), Insert(InvocationCount, count.model_dump()), *inserts]
    updates: tuple[Update, ...] = ()
    if present is not None and present.state == "retired":
        values = {"state": "deploying", "region": plan["region"], "use": version.use, "updated_at_ms": ids.now_ms}
        updates = (Update(Endpoint, {"name": row.name, "state": "retired"}, values),)
    return Change(inserts=inserts, updates=updates)


def do_deploy(deed: Deed) -> Mapping[str, Any]:
    """Fetch the model and what it was trained on, hand both to the router, and attest what stands."""
    stands = stands_on(deed, "deploy")
    # Without leave to read the model nothing can be deployed any more; but it may be, by an attempt before.
    deployed = deed.unless_it_stands(lambda: _deploy(deed, stands), stands)
    deed.clean_up()
    return {**deployed, "attestation": deed.attest(provenance.deployment_statement(deed, deployed))}


def _deploy(deed: Deed, stands: Stands) -> dict[str, Any]:
    p, source = deed.parameters, deed.parameters["source"]
    digests = {name: kept["digest_hex"] for name, kept in source["files"].items()}
    ref = ModelVersionRef(tenant=deed.tenant, version=p["version"], digests=digests)
    with deed.plaintext() as folder:

        def read(warrant: bytes, _attempt: int) -> dict[str, Any]:
            deed.adapters.registry.read(warrant, ref, folder / "model", p)
            return {}

        name = deed.adapters.registry_name
        deed.effect("read", read, adapter=name, operation="registry.read", resources=ref.resources())
        split = deed.fetch_split(object_of(deed.tenant, source["dataset"]), folder, parameters=source)
        reference = deed.tables.reference(
            split.train.path, folder / "model", folder / REFERENCE_FILE, as_of_ms=source["as_of_ms"]
        )
        files = {name: InputFile(path=folder / "model" / name, digest_hex=digests[name]) for name in MODEL_FILES}

        def job(attempt: int) -> DeploymentJob:
            return DeploymentJob(
                tenant=deed.tenant,
                endpoint=p["endpoint"],
                operation_id=deed.id,
                step="deploy",
                attempt=attempt,
                version=p["version"],
                parameters=p,
                model=files | {REFERENCE_FILE: reference},
            )

        def deploy(warrant: bytes, attempt: int) -> dict[str, Any]:
            return told(deed.adapters.serving.deploy(warrant, job(attempt)))

        return deed.step(
            "deploy",
            deploy,
            adapter="local-serving",
            operation="serving.deploy",
            resources=job(1).resources(),
            stands=stands,
        )


def finish_deploy(view: View, operation: Operation, result: Mapping[str, Any], now_ms: int) -> Change:
    """The version is on the endpoint; what the router reported meanwhile is newer than what it answered first."""
    name = name_of(operation)
    alarmed = bool(operation.parameters["alarms"])
    values: dict[str, Any] = {"state": "live", "alarmed": alarmed, "updated_at_ms": now_ms}
    if not view.has_moved_by_itself(name, operation.id):
        values |= {"weights": dict(result["weights"]), "shadow": result["shadow"]}
    state = {"direct": "live", "shadow": "shadow"}.get(operation.parameters["strategy"], "baking")
    updates = [
        Update(Endpoint, {"name": name}, values),
        Update(Deployment, {"id": operation.id}, {"attestation_digest_hex": result["attestation"]}),
        Update(Deployment, {"id": operation.id, "state": "starting"}, {"state": state}, rows=None),
    ]
    fallback = operation.parameters["fallback"].rpartition("@")[2]
    kept = {operation.parameters["version"].rpartition("@")[2], fallback, *result["weights"]}
    newest: dict[str, Deployment] = {}
    for d in view.deployments(name):
        if d.state in ON_ENDPOINT:
            newest.setdefault(str(d.version), d)
    # The router keeps no more than what takes traffic, what is returned to, and what these return to.
    kept |= {newest[number].fallback for number in kept & newest.keys()}
    updates += [
        Update(Deployment, {"id": d.id}, {"state": "retired", "ended_at_ms": now_ms})
        for d in view.deployments(name)
        if d.state in ON_ENDPOINT and str(d.version) not in kept
    ]
    return Change(updates=updates)


def abandon_deploy(view: View, operation: Operation, error: Mapping[str, Any], now_ms: int) -> Change:
    """Nothing was deployed; an endpoint that never answered is as good as retired."""
    ended = {"state": "failed", "cause": dict(error), "ended_at_ms": now_ms}
    row = view.endpoint(name_of(operation))
    updates = [Update(Deployment, {"id": operation.id}, ended)]
    if row is not None and row.state == "deploying":
        updates.append(Update(Endpoint, {"name": row.name}, {"state": "retired", "updated_at_ms": now_ms}))
    return Change(updates=updates)
