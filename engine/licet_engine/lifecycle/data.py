"""Datasets: register, read, classify, hold and lift a hold, archive, delete."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from licet_adapters.errors import NotFound
from licet_adapters.ports import HoldOutcome, ObjectRef
from licet_engine.domain.errors import Conflict, InvalidInput
from licet_engine.domain.refs import Ref
from licet_engine.domain.restrictions import CLASSIFICATIONS
from licet_engine.lifecycle import provenance
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
from licet_engine.store.tables import Dataset, Hold, Operation

if TYPE_CHECKING:
    from licet_engine.lifecycle.deed import Deed

Word = Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")]
Column = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_. -]+$")]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Text = Annotated[str, Field(min_length=1, max_length=1000)]
Why = Annotated[str, Field(max_length=1000)]
"""A reason that may be left out; none is made up for whoever gives none."""


class RegisterDataset(Body):
    """A dataset, and what binds it.

    Attributes:
        upload: Identifier of an upload that this principal made.
        digest_hex: SHA-256 of the uploaded bytes.
        size_bytes: How many they are.
        classification: ``public``, ``internal``, ``confidential`` or ``restricted``.
        protected: Columns that hold attributes protected by law.
        residency: Regions in which the data may be processed.
        uses: Uses that the contract permits.
        expires_at_ms: When the right to use it ends.
        label: Column that models are to predict.
        columns: How each column is written, ``number`` or ``yes-no``; found by looking if it is left out.
        missing: Whether a row that lacks a value is refused with the whole table, or dropped and counted.
        purpose: Why it is kept.
    """

    upload: Id
    digest_hex: Hex
    size_bytes: Annotated[int, Field(gt=0)]
    classification: Annotated[str, Field(pattern="^(" + "|".join(CLASSIFICATIONS) + ")$")]
    protected: list[Column] = Field(default_factory=list, max_length=64)
    residency: list[Word] = Field(min_length=1, max_length=32)
    uses: list[Word] = Field(min_length=1, max_length=32)
    expires_at_ms: Annotated[int, Field(gt=0, lt=1 << 53)]
    label: Column
    columns: dict[Column, Annotated[str, Field(pattern="^(number|yes-no)$")]] = Field(
        default_factory=dict, max_length=4096
    )
    missing: Annotated[str, Field(pattern="^(refuse|drop)$")] = "refuse"
    purpose: Text = "model development"


class ClassifyDataset(Body):
    """New restrictions of a dataset; what is left out stays as it is."""

    classification: Annotated[str, Field(pattern="^(" + "|".join(CLASSIFICATIONS) + ")$")] | None = None
    residency: list[Word] | None = Field(default=None, min_length=1, max_length=32)
    uses: list[Word] | None = Field(default=None, min_length=1, max_length=32)
    expires_at_ms: Annotated[int, Field(gt=0, lt=1 << 53)] | None = None


class PlaceHold(Body):
    """Why a hold is placed or lifted."""

    reason: Text


# --- register -------------------------------------------------------------------------------------------------------


def ask_register(view: View, who: Who, ref: Ref, body: RegisterDataset, ids: Ids) -> Proposal:
    """A dataset as it would be; its rows are stored by the worker."""
    row = Dataset(
        tenant_id=ref.tenant,
        name=ref.name,
        classification=body.classification,
        protected=sorted(set(body.protected)),
        residency=sorted(set(body.residency)),
        uses=sorted(set(body.uses)),
        expires_at_ms=body.expires_at_ms,
        purpose=body.purpose,
        label=body.label,
        columns=dict(body.columns),
        missing=body.missing,
        object_id=f"{ref.tenant}/dataset/{ref.name}/{ids.operation}",
        digest_hex=body.digest_hex,
        rows=0,
        bytes=body.size_bytes,
        state="registering",
        registered_by=who.name,
        registered_by_kind=who.kind,
        created_at_ms=ids.now_ms,
    )
    present = view.dataset(ref.name)
    conflict = None
    inserts: tuple[Insert, ...] = (Insert(Dataset, row.model_dump()),)
    updates: tuple[Update, ...] = ()
    if present is not None and present.state != "failed":
        conflict = Conflict(f"dataset {ref} exists already, in state {present.state}: register it under another name")
    elif present is not None:
        values = {key: value for key, value in row.model_dump().items() if key not in {"tenant_id", "name"}}
        inserts, updates = (), (Update(Dataset, {"name": ref.name, "state": "failed"}, values),)
    parameters = {
        "upload": body.upload,
        "object_id": row.object_id,
        "digest_hex": body.digest_hex,
        "size_bytes": body.size_bytes,
        "label": body.label,
        "protected": row.protected,
        "columns": dict(body.columns),
        "missing": body.missing,
    }
    return Proposal(
        resource=view.dataset_entity(row),
        parameters=parameters,
        change=Change(inserts=inserts, updates=updates),
        conflict=conflict,
    )


def do_register(deed: Deed) -> Mapping[str, Any]:
    """Check that the upload is a whole table, then seal it under the tenant's key."""
    p = deed.parameters
    ref = _object_of(deed)

    def put(warrant: bytes, _attempt: int) -> dict[str, Any]:
        path = deed.spool.upload(deed.tenant, p["upload"], p["digest_hex"], p["size_bytes"])
        table = deed.tables.inspect(path, p)
        with path.open("rb") as source:
            outcome = deed.adapters.objects.put(warrant, ref, source, p)
        return {
            "stored_bytes": outcome.stored_bytes,
            "columns": dict(table.columns),
            "left_out": list(table.left_out),
            "rows": table.rows,
            "digest_hex": p["digest_hex"],
        }

    stored = deed.step(
        "store", put, adapter=deed.adapters.objects_name, operation="objects.put", resources=ref.resources()
    )
    deed.forget_uploads()
    return stored


def finish_register(_view: View, operation: Operation, result: Mapping[str, Any], _now_ms: int) -> Change:
    """The dataset can be used."""
    where = {"name": _name(operation), "state": "registering"}
    values = {"state": "ready", "rows": result["rows"], "columns": result["columns"]}
    return Change(updates=(Update(Dataset, where, values),))


def abandon_register(_view: View, operation: Operation, _error: Mapping[str, Any], _now_ms: int) -> Change:
    """The name may be used again."""
    return Change(updates=(Update(Dataset, {"name": _name(operation), "state": "registering"}, {"state": "failed"}),))


def _name(operation: Operation) -> str:
    return operation.resource.partition("/")[2]


# --- read -----------------------------------------------------------------------------------------------------------


def ask_read(view: View, _who: Who, ref: Ref, _body: NoBody, _ids: Ids) -> Proposal | None:
    """The rows of a dataset, decrypted for the one who asked."""
    row = view.dataset(ref.name)
    if row is None:
        return None
    conflict = (
        None
        if row.state in {"ready", "archived"}
        else Conflict(f"dataset {ref} is {row.state}: it has no rows to read")
    )
    return Proposal(resource=view.dataset_entity(row), parameters=_object_parameters(row), conflict=conflict)


def do_read(deed: Deed) -> Mapping[str, Any]:
    """Decrypt into an artifact that only the asker can fetch."""
    p = deed.parameters
    ref = _object_of(deed)

    def get(warrant: bytes, _attempt: int) -> dict[str, Any]:
        with deed.spool.new_artifact(deed.tenant, deed.id, "csv") as target:
            deed.adapters.objects.get(warrant, ref, target, p)
        return {}

    deed.step("read", get, adapter=deed.adapters.objects_name, operation="objects.get", resources=ref.resources())
    return {"artifact": f"{deed.id}.csv", "digest_hex": p["digest_hex"]}


# --- classify, hold, archive ----------------------------------------------------------------------------------------


def ask_classify(view: View, _who: Who, ref: Ref, body: ClassifyDataset, _ids: Ids) -> Proposal | None:
    """Other restrictions; everything made from the dataset inherits them at once."""
    row = view.dataset(ref.name)
    if row is None:
        return None
    values: dict[str, Any] = body.model_dump(exclude_none=True)
    for name in ("residency", "uses"):
        if name in values:
            values[name] = sorted(set(values[name]))
    if not values:
        raise InvalidInput("nothing to change: give at least one of classification, residency, uses, expires_at_ms")
    # Policy judges the dataset as it would be, and is told how that compares with what it is.
    then = Dataset(**{**row.model_dump(), **values})
    loosens = view.dataset_restrictions(then).loosens(view.dataset_restrictions(row))
    note = Note("facts", {"event": "dataset-classified", "dataset": str(ref), **values})
    change = Change(updates=(Update(Dataset, {"name": ref.name}, values),), notes=(note,))
    return Proposal(
        resource=view.dataset_entity(then),
        context={"loosens": loosens},
        change=change,
        result={"dataset": str(ref), **values},
    )


def place_hold(kind: str, name: str, who: Who, body: PlaceHold, ids: Ids) -> tuple[Change, dict[str, Any]]:
    """The change that places a hold on a resource."""
    row = Hold(
        tenant_id=who.tenant,
        id=ids.decision,
        resource_type=kind,
        resource_name=name,
        reason=body.reason,
        placed_by=who.name,
        placed_at_ms=ids.now_ms,
    )
    note = Note("hold", {"event": "hold-placed", "hold": row.id, "kind": kind, "name": name, "reason": body.reason})
    return Change(inserts=(Insert(Hold, row.model_dump()),), notes=(note,)), {"hold": row.id}


def lift_holds(
    view: View, kind: str, name: str, *, who: Who, body: PlaceHold, ids: Ids
) -> tuple[Change, Conflict | None]:
    """The change that lifts every hold on a resource."""
    holds = view.holds(kind, name)
    if not holds:
        return Change(), Conflict(f"no hold lies on {kind} {view.tenant.tenant_id}/{name}: there is nothing to lift")
    updates = tuple(
        Update(Hold, {"id": hold.id, "lifted_at_ms": None}, {"lifted_by": who.name, "lifted_at_ms": ids.now_ms})
        for hold in holds
    )
    note = Note(
        "hold",
        {"event": "hold-lifted", "holds": [h.id for h in holds], "kind": kind, "name": name, "reason": body.reason},
    )
    return Change(updates=updates, notes=(note,)), None


def ask_hold(view: View, who: Who, ref: Ref, body: PlaceHold, ids: Ids) -> Proposal | None:
    """A legal hold: nothing of it, or made from it, is deleted until it is lifted."""
    row = view.dataset(ref.name)
    if row is None:
        return None
    change, result = place_hold("Dataset", ref.name, who, body, ids)
    return Proposal(resource=view.dataset_entity(row), parameters=_object_parameters(row), change=change, result=result)


def do_hold(deed: Deed) -> Mapping[str, Any]:
    """Have the store keep the rows, too; policy has kept them since the decision."""
    ref = _object_of(deed)
    return deed.step(
        "hold",
        lambda warrant, _attempt: held(lambda: deed.adapters.objects.hold(warrant, ref, deed.parameters)),
        adapter=deed.adapters.objects_name,
        operation="objects.hold",
        resources=ref.resources(),
    )


def do_lift_hold(deed: Deed) -> Mapping[str, Any]:
    """The store lets go of the rows."""
    ref = _object_of(deed)
    return deed.step(
        "lift",
        lambda warrant, _attempt: held(lambda: deed.adapters.objects.lift(warrant, ref, deed.parameters)),
        adapter=deed.adapters.objects_name,
        operation="objects.lift",
        resources=ref.resources(),
    )


def held(act: Callable[[], HoldOutcome]) -> dict[str, Any]:
    """What came of a hold in the store; where nothing is stored there is nothing to keep, and that is told."""
    try:
        outcome = act()
    except NotFound:
        return {"held": False, "kept_by": NOTHING_STORED}
    return {"held": outcome.held, "kept_by": outcome.kept_by}


def finish_hold(view: View, operation: Operation, result: Mapping[str, Any], _now_ms: int) -> Change:
    """The hold itself stands since its decision; the rows must be there to be kept."""
    row = view.dataset(_name(operation))
    check_stored(result, operation.resource, is_stored=row is not None and row.state in {"ready", "archived"})
    return Change()


def _object_parameters(row: Dataset) -> dict[str, Any]:
    return {"object_id": row.object_id, "digest_hex": row.digest_hex, "size_bytes": row.bytes}


def _object_of(deed: Deed) -> ObjectRef:
    p = deed.parameters
    return ObjectRef(
        tenant=deed.tenant, object_id=p["object_id"], digest_hex=p["digest_hex"], size_bytes=p["size_bytes"]
    )


def ask_lift_hold(view: View, who: Who, ref: Ref, body: PlaceHold, ids: Ids) -> Proposal | None:
    """Every hold on the dataset is lifted."""
    row = view.dataset(ref.name)
    if row is None:
        return None
    change, conflict = lift_holds(view, "Dataset", ref.name, who=who, body=body, ids=ids)
    return Proposal(
        resource=view.dataset_entity(row), parameters=_object_parameters(row), change=change, conflict=conflict
    )


def ask_archive(view: View, _who: Who, ref: Ref, _body: NoBody, _ids: Ids) -> Proposal | None:
    """No new run may use it; what is made from it stays."""
    row = view.dataset(ref.name)
    if row is None:
        return None
    conflict = None if row.state == "ready" else Conflict(f"dataset {ref} is {row.state}: only a ready one is archived")
    note = Note("facts", {"event": "dataset-archived", "dataset": str(ref)})
    change = Change(
        updates=(Update(Dataset, {"name": ref.name, "state": "ready"}, {"state": "archived"}),), notes=(note,)
    )
    return Proposal(resource=view.dataset_entity(row), change=change, conflict=conflict)


# --- delete ---------------------------------------------------------------------------------------------------------


def ask_delete(view: View, _who: Who, ref: Ref, _body: NoBody, _ids: Ids) -> Proposal | None:
    """The stored rows are destroyed; the record that they were there stays."""
    row = view.dataset(ref.name)
    if row is None:
        return None
    conflict = (
        None
        if row.state in {"ready", "archived"}
        else Conflict(f"dataset {ref} is {row.state}: there is nothing to delete")
    )
    # Names within the tenant, without their digests: a warrant may touch what its decision names, and these it may not.
    parameters = _object_parameters(row) | {"dataset": row.name, "derived": view.derived(row.name)}
    return Proposal(resource=view.dataset_entity(row), parameters=parameters, conflict=conflict)


def do_delete(deed: Deed) -> Mapping[str, Any]:
    """Remove the object, and certify it."""
    deleted = deed.destroy("delete", _object_of(deed))
    return {**deleted, "attestation": deed.attest(provenance.deletion_statement(deed, deleted))}


def finish_delete(_view: View, operation: Operation, _result: Mapping[str, Any], _now_ms: int) -> Change:
    """The dataset is gone."""
    return Change(updates=(Update(Dataset, {"name": _name(operation)}, {"state": "deleted"}),))


VERBS = (
    Verb(
        action="dataset.register",
        summary="Register a dataset with its classification, residency, permitted uses and expiry.",
        form=RefForm.NAME,
        body=RegisterDataset,
        propose=ask_register,
        do=do_register,
        finish=finish_register,
        abandon=abandon_register,
        creates=True,
    ),
    Verb(
        action="dataset.read",
        summary="Read the rows of a dataset.",
        form=RefForm.NAME,
        body=NoBody,
        propose=ask_read,
        do=do_read,
    ),
    Verb(
        action="dataset.classify",
        summary="Change what binds a dataset and everything made from it.",
        form=RefForm.NAME,
        body=ClassifyDataset,
        propose=ask_classify,
    ),
    Verb(
        action="dataset.hold",
        summary="Place a hold: nothing of it or made from it is deleted.",
        form=RefForm.NAME,
        body=PlaceHold,
        propose=ask_hold,
        do=do_hold,
        finish=finish_hold,
    ),
    Verb(
        action="dataset.lift-hold",
        summary="Lift the holds on a dataset.",
        form=RefForm.NAME,
        body=PlaceHold,
        propose=ask_lift_hold,
        do=do_lift_hold,
        finish=finish_hold,
    ),
    Verb(
        action="dataset.archive",
        summary="Close a dataset for new runs.",
        form=RefForm.NAME,
        body=NoBody,
        propose=ask_archive,
    ),
    Verb(
        action="dataset.delete",
        summary="Destroy the rows of a dataset.",
        form=RefForm.NAME,
        body=NoBody,
        propose=ask_delete,
        do=do_delete,
        finish=finish_delete,
    ),
)
