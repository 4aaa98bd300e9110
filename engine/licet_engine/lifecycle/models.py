"""Model versions: register, read, download, hold, delete."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from licet_adapters.modelfiles import inspect_model_files
from licet_adapters.ports import MODEL_FILES, HoldOutcome, ModelVersionRef, ObjectRef
from licet_engine.domain.errors import Conflict
from licet_engine.domain.refs import Ref
from licet_engine.lifecycle import provenance
from licet_engine.lifecycle.data import Hex, Id, PlaceHold, held, lift_holds, place_hold
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.holding import NOTHING_STORED, check_stored
from licet_engine.lifecycle.verbs import (
    Body,
    Change,
    Ids,
    Insert,
    NoBody,
    Note,
    Proposal,
    RefForm,
    Update,
    Verb,
    Who,
)
from licet_engine.store.tables import Approval, ModelVersion, Operation, Run

if TYPE_CHECKING:
    from licet_engine.lifecycle.deed import Deed

WEIGHTS = "model.safetensors"


class ModelUpload(Body):
    """One file of a model that this principal uploaded."""

    upload: Id
    digest_hex: Hex
    size_bytes: Annotated[int, Field(gt=0)]


class RegisterModel(Body):
    """Files to register as a version of a model.

    Attributes:
        run: The run that made the model; its lineage and authors are the version's.
        tier: Risk tier, ``low``, ``medium`` or ``high``.
        files: Uploads that stand for files of the run, by name; empty to take the run's own.
    """

    run: Annotated[str, Field(max_length=128)]
    tier: Annotated[str, Field(pattern="^(low|medium|high)$")] = "high"
    files: dict[str, ModelUpload] = Field(default_factory=dict, max_length=2)

    @model_validator(mode="after")
    def _known_files(self) -> RegisterModel:
        unknown = sorted(set(self.files) - set(MODEL_FILES))
        if unknown:
            raise ValueError(
                f"a model has the files {' and '.join(MODEL_FILES)} and no other; not {', '.join(unknown)}"
            )
        return self


# --- register -------------------------------------------------------------------------------------------------------


def ask_register(view: View, who: Who, ref: Ref, body: RegisterModel, ids: Ids) -> Proposal | None:
    """A version as it would be: the next one, or other files for one that is on no stage yet."""
    tenant, _, run_name = body.run.partition("/")
    run = view.run(run_name) if tenant == ref.tenant else None
    if run is None:
        return None
    present = None if ref.version is None else view.model_version(ref.name, ref.version)
    if ref.version is not None and present is None:
        return None
    if ref.version is None:
        newest = next(iter(view.model_versions(ref.name)), None)
        # A number is taken once a version stood under it; a registration that was refused took none.
        if newest is not None and newest.state == "failed" and not newest.manifest:
            present = newest
        number = 1 if newest is None else newest.version + (present is None)
    else:
        number = ref.version
    outcome = run.outcome or {}
    files = {
        name: {"object_id": kept["object_id"], "digest_hex": kept["digest_hex"], "size_bytes": kept["size_bytes"]}
        for name, kept in outcome.get("files", {}).items()
    }
    files |= {
        name: {"upload": sent.upload, "digest_hex": sent.digest_hex, "size_bytes": sent.size_bytes}
        for name, sent in body.files.items()
    }
    # Who replaces a file is an author of the version as well.
    authors = sorted({*run.authors, *([who.name] if who.kind == "person" else _owner(view, who))})
    pipelines = sorted({*run.pipelines, *([who.name] if who.kind == "service" else [])})
    row = ModelVersion(
        tenant_id=ref.tenant,
        model=ref.name,
        version=number,
        revision=1 if present is None else present.revision + 1,
        run=run.name,
        tier=body.tier if present is None or not present.manifest else present.tier,
        use=run.use,
        stage="none",
        digest_hex=provenance.model_digest_hex({name: kept["digest_hex"] for name, kept in files.items()}),
        manifest={},
        authors=authors if present is None else sorted({*authors, *present.authors}),
        pipelines=pipelines if present is None else sorted({*pipelines, *present.pipelines}),
        datasets=run.datasets,
        signed=False,
        state="registering",
        created_by=who.name,
        created_at_ms=ids.now_ms,
    )
    parameters = {
        "version": f"{ref.tenant}/{ref.name}@{number}",
        "revision": row.revision,
        "run": body.run,
        "files": files,
        "weights_of_run": outcome.get("files", {}).get(WEIGHTS, {}).get("digest_hex", ""),
        "replaces": "" if present is None else _standing_digest_hex(present),
    }
    return Proposal(
        resource=view.model_version_entity(row),
        context={"replaces": present is not None and bool(present.manifest)},
        parameters=parameters,
        change=_registration(row, present, ids),
        conflict=_cannot_register(run, present, files, ref) or _cannot_replace(view, present, ref),
        result={"version": f"{ref.tenant}/{ref.name}@{number}"},
    )


def _standing_digest_hex(present: ModelVersion) -> str:
    """The digest of the files that the registry holds of a version, which are older than the row while it is registered."""
    kept = present.manifest.get("files", {})
    return provenance.model_digest_hex({name: kept[name]["digest_hex"] for name in MODEL_FILES if name in kept})


def _owner(view: View, who: Who) -> list[str]:
    account = view.principal(who.name)
    return [account.owner] if account is not None and account.owner else []


def _registration(row: ModelVersion, present: ModelVersion | None, ids: Ids) -> Change:
    if present is None:
        return Change(inserts=(Insert(ModelVersion, row.model_dump()),))
    where = {"model": row.model, "version": row.version, "revision": present.revision, "stage": "none"}
    # The manifest stays until the registry holds other files: a swap that is refused changes nothing.
    kept = {"tenant_id", "model", "version", "manifest"}
    if present.manifest:
        # Who replaces a file did not make the version; who takes a number under which none ever stood does.
        kept |= {"created_at_ms", "created_by"}
    values = {key: value for key, value in row.model_dump().items() if key not in kept}
    note = Note("facts", {"event": "model-replaced", "version": f"{row.tenant_id}/{row.model}@{row.version}"})
    return Change(
        updates=(
            Update(ModelVersion, where, values),
            # An approval is of what was there; of other files it says nothing, even if the old ones come back.
            Update(
                Approval,
                {"model": row.model, "version": row.version, "voided_at_ms": None},
                {"voided_at_ms": ids.now_ms},
                rows=None,
            ),
        ),
        notes=(note,),
    )


def _cannot_register(run: Run, present: ModelVersion | None, files: Mapping[str, Any], ref: Ref) -> Conflict | None:
    if run.state != "done":
        return Conflict(
            f"run {ref.tenant}/{run.name} is {run.state}: only the model of a run that is done is registered"
        )
    if sorted(files) != sorted(MODEL_FILES):
        return Conflict(
            f"run {ref.tenant}/{run.name} left no {' and '.join(MODEL_FILES)}, or they were deleted with its model"
        )
    if present is not None and (present.stage != "none" or present.state not in {"ready", "failed"}):
        return Conflict(f"{ref} is on stage {present.stage}, {present.state}: its files stand; register a new version")
    if present is not None and present.manifest and present.run != run.name:
        return Conflict(
            f"{ref} was made by run {ref.tenant}/{present.run}: register another run's model as a new version"
        )
    return None


def _cannot_replace(view: View, present: ModelVersion | None, ref: Ref) -> Conflict | None:
    """Why the files of a version that stands cannot be replaced, if so; whether a hold keeps them is for policy."""
    if present is None or not present.manifest:
        return None
    if view.promotions(present):
        # What was on a stage can be returned to, so it must stay what it was.
        return Conflict(f"{ref} was promoted before: its files stand for good; register a new version")
    if view.has_open_operation(str(ref)):
        return Conflict(f"an operation on {ref} is at work: its files stand until that has ended")
    return None


def do_register(deed: Deed) -> Mapping[str, Any]:
    """Gather the files, have them inspected, signed and sealed by the registry."""
    p = deed.parameters
    ref = version_ref(deed.tenant, p)

    def register(warrant: bytes, _attempt: int) -> dict[str, Any]:
        with deed.plaintext() as folder:
            for name, kept in p["files"].items():
                if "upload" in kept:
                    path = deed.spool.upload(deed.tenant, kept["upload"], kept["digest_hex"], kept["size_bytes"])
                    deed.copy(path, folder / name)
                else:
                    deed.fetch(f"fetch:{name}", object_of(deed.tenant, kept), folder / name)
            if p["files"][WEIGHTS]["digest_hex"] != p["weights_of_run"]:
                # What they are is told first: a pickle is refused as a pickle.
                inspect_model_files(folder)
                raise Conflict(
                    "these weights are not what the run made, so nobody knows what data is behind them; register the run's own",
                    code="other-weights",
                )
            done = deed.adapters.registry.register(warrant, ref, folder, p)
        return {"files": {name: dict(entry) for name, entry in done.files.items()}, "key_id": done.key_id}

    registered = deed.step(
        "register",
        register,
        adapter=deed.adapters.registry_name,
        operation="registry.register",
        resources=ref.resources(),
    )
    deed.forget_uploads()
    return registered


def version_ref(tenant: str, parameters: Mapping[str, Any]) -> ModelVersionRef:
    """The registry's name of the version that an operation is about."""
    digests = {name: kept["digest_hex"] for name, kept in parameters["files"].items()}
    return ModelVersionRef(tenant=tenant, version=parameters["version"], digests=digests)


def object_of(tenant: str, kept: Mapping[str, Any]) -> ObjectRef:
    """The object that holds a file."""
    return ObjectRef(
        tenant=tenant, object_id=kept["object_id"], digest_hex=kept["digest_hex"], size_bytes=kept["size_bytes"]
    )


def split_name(operation: Operation) -> tuple[str, int]:
    """Model and version that an operation is about."""
    text = operation.parameters.get("version", operation.resource)
    name, _, number = text.partition("/")[2].partition("@")
    return name, int(number)


def finish_register(_view: View, operation: Operation, result: Mapping[str, Any], _now_ms: int) -> Change:
    """The version is there, signed."""
    model, version = split_name(operation)
    where = {"model": model, "version": version, "revision": operation.parameters["revision"]}
    manifest = {"files": result["files"], "key_id": result["key_id"], "sources": dict(operation.parameters["files"])}
    return Change(updates=(Update(ModelVersion, where, {"state": "ready", "signed": True, "manifest": manifest}),))


def abandon_register(view: View, operation: Operation, _error: Mapping[str, Any], _now_ms: int) -> Change:
    """What was refused is no version of anything; the files that stood before stand again."""
    model, version = split_name(operation)
    where = {"model": model, "version": version, "revision": operation.parameters["revision"]}
    row = view.model_version(model, version)
    standing = "" if row is None else _standing_digest_hex(row)
    values = {"state": "ready" if standing else "failed", "digest_hex": standing, "signed": bool(standing)}
    return Change(updates=(Update(ModelVersion, where, values),))


# --- read, download -------------------------------------------------------------------------------------------------


def found(view: View, ref: Ref) -> ModelVersion | None:
    """The row of a version."""
    return None if ref.version is None else view.model_version(ref.name, ref.version)


def not_ready(row: ModelVersion, ref: Ref) -> Conflict | None:
    """Why nothing can be done with a version, if so."""
    return None if row.state == "ready" else Conflict(f"{ref} is {row.state}: it has no files")


def registry_parameters(row: ModelVersion, ref: Ref) -> dict[str, Any]:
    """The parameters by which the registry is told of a version."""
    files = {name: entry for name, entry in row.manifest.get("files", {}).items() if name in MODEL_FILES}
    return {
        "version": str(ref),
        "revision": row.revision,
        "files": {name: {"digest_hex": entry["digest_hex"]} for name, entry in files.items()},
    }


def ask_read(view: View, _who: Who, ref: Ref, _body: NoBody, _ids: Ids) -> Proposal | None:
    """What is known of a version, and everything that was decided on it."""
    row = found(view, ref)
    if row is None:
        return None
    checks = [
        {
            "kind": check.kind,
            "passed": check.passed,
            "figures": check.figures,
            "at_ms": check.at_ms,
            "attestation": check.attestation_digest_hex,
        }
        for check in view.checks(row).values()
    ]
    binding = view.binding(row)
    approvals = [
        {
            "track": a.track,
            "approver": a.approver,
            "at_ms": a.at_ms,
            "on_behalf_of": a.on_behalf_of,
            "expires_at_ms": a.expires_at_ms,
            "current": a.binding == binding and a.expires_at_ms > view.now_ms,
            "reason": a.reason,
        }
        for a in view.approvals(row.model, row.version)
    ]
    history = [promotion.model_dump(exclude={"tenant_id", "model", "version"}) for promotion in view.promotions(row)]
    result = {
        **row.model_dump(exclude={"tenant_id", "manifest"}),
        "files": row.manifest.get("files", {}),
        "restrictions": view.lineage_restrictions(row.datasets).to_fact(),
        "checks": checks,
        "approvals": approvals,
        "history": history,
        "binding": binding,
    }
    return Proposal(resource=view.model_version_entity(row), result={"version": result})


def ask_download(view: View, _who: Who, ref: Ref, _body: NoBody, _ids: Ids) -> Proposal | None:
    """The files of a version and its signature."""
    row = found(view, ref)
    if row is None:
        return None
    return Proposal(
        resource=view.model_version_entity(row),
        parameters=registry_parameters(row, ref),
        conflict=not_ready(row, ref),
    )


def do_download(deed: Deed) -> Mapping[str, Any]:
    """Decrypt and verify the files into an artifact that only the asker can fetch."""
    ref = version_ref(deed.tenant, deed.parameters)

    def read(warrant: bytes, _attempt: int) -> dict[str, Any]:
        with deed.plaintext() as folder, deed.spool.new_artifact(deed.tenant, deed.id, "zip") as target:
            deed.adapters.registry.read(warrant, ref, folder / "model", deed.parameters)
            deed.zip_folder(folder / "model", target)
        return {}

    deed.step("read", read, adapter=deed.adapters.registry_name, operation="registry.read", resources=ref.resources())
    return {"artifact": f"{deed.id}.zip"}


# --- hold, retire, delete -------------------------------------------------------------------------------------------


def ask_hold(view: View, who: Who, ref: Ref, body: PlaceHold, ids: Ids) -> Proposal | None:
    """A legal hold on one version."""
    row = found(view, ref)
    if row is None:
        return None
    change, result = place_hold("ModelVersion", f"{ref.name}@{ref.version}", who, body, ids)
    return Proposal(
        resource=view.model_version_entity(row), parameters=registry_parameters(row, ref), change=change, result=result
    )


def do_hold(deed: Deed) -> Mapping[str, Any]:
    """Have the registry keep the files, too; policy has kept them since the decision."""
    return _in_registry(deed, "hold", deed.adapters.registry.hold)


def do_lift_hold(deed: Deed) -> Mapping[str, Any]:
    """The registry lets go of the files."""
    return _in_registry(deed, "lift", deed.adapters.registry.lift)


def _in_registry(
    deed: Deed, name: str, act: Callable[[bytes, ModelVersionRef, Mapping[str, Any]], HoldOutcome]
) -> Mapping[str, Any]:
    if not deed.parameters["files"]:
        return {"held": False, "kept_by": NOTHING_STORED}
    ref = version_ref(deed.tenant, deed.parameters)
    return deed.step(
        name,
        lambda warrant, _attempt: held(lambda: act(warrant, ref, deed.parameters)),
        adapter=deed.adapters.registry_name,
        operation=f"registry.{name}",
        resources=ref.resources(),
    )


def finish_hold(view: View, operation: Operation, result: Mapping[str, Any], _now_ms: int) -> Change:
    """The hold itself stands since its decision; the files must be there to be kept."""
    row = view.model_version(*split_name(operation))
    check_stored(result, operation.resource, is_stored=row is not None and row.state == "ready")
    return Change()


def ask_lift_hold(view: View, who: Who, ref: Ref, body: PlaceHold, ids: Ids) -> Proposal | None:
    """Every hold on the version is lifted; those on the data behind it stay."""
    row = found(view, ref)
    if row is None:
        return None
    change, conflict = lift_holds(view, "ModelVersion", f"{ref.name}@{ref.version}", who=who, body=body, ids=ids)
    return Proposal(
        resource=view.model_version_entity(row),
        parameters=registry_parameters(row, ref),
        change=change,
        conflict=conflict,
    )


def ask_delete(view: View, _who: Who, ref: Ref, _body: NoBody, _ids: Ids) -> Proposal | None:
    """The files are destroyed; number, history and attestations stay."""
    row = found(view, ref)
    if row is None:
        return None
    return Proposal(
        resource=view.model_version_entity(row),
        parameters={**registry_parameters(row, ref), "objects": _objects_of_run(view, row)},
        conflict=not_ready(row, ref),
    )


def _objects_of_run(view: View, row: ModelVersion) -> dict[str, Any]:
    """What the run made and keeps, if no other version stands on it: with the last version it goes, too."""
    run = view.run(row.run)
    if run is None or view.has_other_version(row):
        return {}
    return dict((run.outcome or {}).get("files", {}))


def do_delete(deed: Deed) -> Mapping[str, Any]:
    """Remove the files from the registry, and those that the run kept."""
    ref = version_ref(deed.tenant, deed.parameters)

    def delete(warrant: bytes, _attempt: int) -> dict[str, Any]:
        done = deed.adapters.registry.delete(warrant, ref, deed.parameters)
        return {"stage": done.stage, "before": done.before}

    deleted = deed.step(
        "delete", delete, adapter=deed.adapters.registry_name, operation="registry.delete", resources=ref.resources()
    )
    for name, kept in deed.parameters["objects"].items():
        deed.destroy(f"destroy:{name}", object_of(deed.tenant, kept))
    return deleted


def finish_delete(view: View, operation: Operation, _result: Mapping[str, Any], _now_ms: int) -> Change:
    """The version is a tombstone; a run whose files went with it makes no version any more."""
    model, version = split_name(operation)
    values = {"state": "deleted", "stage": "retired"}
    updates = [Update(ModelVersion, {"model": model, "version": version}, values)]
    row = view.model_version(model, version)
    run = None if row is None else view.run(row.run)
    if operation.parameters["objects"] and run is not None:
        updates.append(Update(Run, {"name": run.name}, {"outcome": {**(run.outcome or {}), "files": {}}}))
    return Change(updates=updates)


VERBS = (
    Verb(
        action="model.register",
        summary="Register a run's model as a version, or replace the files of one that is on no stage.",
        form=RefForm.NAME_OR_VERSION,
        body=RegisterModel,
        propose=ask_register,
        do=do_register,
        finish=finish_register,
        abandon=abandon_register,
        creates=True,
    ),
    Verb(
        action="model.read",
        summary="Show a version and its history.",
        form=RefForm.VERSION,
        body=NoBody,
        propose=ask_read,
    ),
    Verb(
        action="model.download",
        summary="Fetch the files of a version with their signature.",
        form=RefForm.VERSION,
        body=NoBody,
        propose=ask_download,
        do=do_download,
    ),
    Verb(
        action="model.hold",
        summary="Place a hold on a version.",
        form=RefForm.VERSION,
        body=PlaceHold,
        propose=ask_hold,
        do=do_hold,
        finish=finish_hold,
    ),
    Verb(
        action="model.lift-hold",
        summary="Lift the holds on a version.",
        form=RefForm.VERSION,
        body=PlaceHold,
        propose=ask_lift_hold,
        do=do_lift_hold,
        finish=finish_hold,
    ),
    Verb(
        action="model.delete",
        summary="Destroy the files of a version, and those its run kept if no other version stands on them.",
        form=RefForm.VERSION,
        body=NoBody,
        propose=ask_delete,
        do=do_delete,
        finish=finish_delete,
    ),
)
