"""Training: launch a run, cancel it, log to it, read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from licet_adapters.errors import InputRefused
from licet_adapters.ports import MODEL_FILES, Metric, ObjectRef, TrainingJob, leased_devices
from licet_adapters.training.spec import MAX_RANKS, TrainingSpec, parse_spec, training_units
from licet_engine.domain.errors import Conflict, InvalidInput, LicetError
from licet_engine.domain.refs import Ref
from licet_engine.lifecycle import provenance
from licet_engine.lifecycle.data import Column, Word
from licet_engine.lifecycle.facts import TRAINING_BUDGET, View
from licet_engine.lifecycle.verbs import (
    Body,
    Change,
    Ids,
    Insert,
    NoBody,
    Proposal,
    RefForm,
    Spend,
    Update,
    Verb,
    Who,
)
from licet_engine.store.tables import Dataset, Operation, Run
from licet_engine.store.tables import Metric as MetricRow

if TYPE_CHECKING:
    from licet_engine.lifecycle.deed import Deed


class Spec(Body):
    """How to train. Fractions are in millionths.

    Attributes:
        seed: Of the weights and of every draw.
        epochs: Full passes over the training rows.
        hidden: Units of each hidden layer.
        learning_rate_micro: Step size of the optimiser.
        weight_decay_micro: L2 penalty.
        exclude: Columns that no job may see, beside those that are neither numbers nor yes-no.
        mitigation_weight_micro: Weight of a demographic-parity penalty between the groups; 0 for none.
        group: Protected column whose groups the penalty compares; the first one, if not given. The bias check compares all.
        decision_threshold_micro: Probability from which the model says yes.
        held_out_micro: Share of the rows that is kept from training.
        split_seed: Of the split into training and held-out rows.
        checkpoint_every_epochs: How much a kill may cost.
        precision: ``fp32``, or ``bf16`` for products in bfloat16; weights, loss and optimiser stay in float32.
    """

    seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 7
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 300
    hidden: list[Annotated[int, Field(ge=1, le=4096)]] = Field(default_factory=lambda: [16], max_length=8)
    learning_rate_micro: Annotated[int, Field(ge=1, le=1_000_000)] = 3_000
    weight_decay_micro: Annotated[int, Field(ge=0, le=1_000_000)] = 1_000
    exclude: list[Column] = Field(default_factory=list, max_length=64)
    mitigation_weight_micro: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    group: Column | None = None
    decision_threshold_micro: Annotated[int, Field(ge=0, le=1_000_000)] = 500_000
    held_out_micro: Annotated[int, Field(ge=50_000, le=500_000)] = 350_000
    split_seed: Annotated[int, Field(ge=0, lt=1 << 31)] = 20
    checkpoint_every_epochs: Annotated[int, Field(ge=1, le=10_000)] = 25
    precision: Literal["fp32", "bf16"] = "fp32"


class LaunchTraining(Body):
    """What to train, on what, where, and for which use.

    Attributes:
        dataset: What it is trained on.
        environment: Where.
        use: What the model is for.
        cost: What it takes from the budget, at least.
        devices: Devices of the pool; a rank on each. 0 trains on the processor.
        ranks: Processes that share each batch; where devices are asked for, one for each.
        spec: How.
    """

    dataset: Annotated[str, Field(max_length=128)]
    environment: Word
    use: Word
    cost: Annotated[int, Field(ge=1, lt=1 << 31)] = 1
    devices: Annotated[int, Field(ge=0, le=MAX_RANKS)] = 0
    ranks: Annotated[int, Field(ge=1, le=MAX_RANKS)] | None = None
    spec: Spec = Spec()

    @model_validator(mode="after")
    def _a_rank_on_each_device(self) -> LaunchTraining:
        if self.devices and self.ranks not in {None, self.devices}:
            raise ValueError(f"on {self.devices} devices there are as many ranks: leave ranks out, or give the same")
        return self

    @property
    def execution(self) -> dict[str, Any]:
        """On what it is computed, as the job is told."""
        return {"device": "cuda" if self.devices else "cpu", "ranks": self.devices or self.ranks or 1}


class LogMetric(Body):
    """One figure reported to a run from outside."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_.-]{0,63}$")]
    step: Annotated[int, Field(ge=0, lt=1 << 53)]
    value: Annotated[str, Field(pattern=r"^-?[0-9]{1,18}(\.[0-9]{1,9})?$")]


# --- launch ---------------------------------------------------------------------------------------------------------


def ask_launch(view: View, who: Who, ref: Ref, body: LaunchTraining, ids: Ids) -> Proposal | None:
    """A run as it would be: what it trains on, where, at what cost."""
    tenant, _, dataset_name = body.dataset.partition("/")
    dataset = view.dataset(dataset_name) if tenant == ref.tenant else None
    if dataset is None:
        return None
    place = view.environment(body.environment)
    region = "" if place is None else place.region
    job: dict[str, Any] = {}
    # What is wrong with the question is told after an allow only, as every conflict is: it tells what is in the tenant.
    conflict: LicetError | None = None
    if place is None:
        conflict = InvalidInput(
            f"environment {body.environment!r} is not declared in {ref.tenant}: name one that"
            f" licet tenant environments {ref.tenant} lists, or have it declared with licet tenant administer"
        )
        # No policy allows a run that would be nowhere, so after an allow it would never be told. What environments there are,
        # every member may list.
        if view.may_act(who.name):
            raise conflict
    elif (taken := name_taken(view, ref)) is not None:
        conflict = taken
    elif dataset.state != "ready":
        # Its columns are not known, so no job can be written for it.
        conflict = Conflict(f"dataset {body.dataset} is {dataset.state}: only a ready one can be trained on")
    else:
        try:
            job = _job(dataset, body)
        except InvalidInput as error:
            conflict = error
        # Of the pool nothing is told that was not decided to be told: how many there are is no fact.
        if body.devices and conflict is None and (present := view.devices_present()) < body.devices:
            conflict = Conflict(
                f"devices asked for: {body.devices}; no worker of this installation has more than {present}: ask for"
                " fewer, or train on the processor with ranks",
                code="no-devices",
            )
    # The asker may set more aside than the run is known to need, not less.
    cost = max(body.cost, training_units(dataset.rows, body.spec.epochs, len(dataset.columns), body.spec.hidden))
    row = Run(
        tenant_id=ref.tenant,
        name=ref.name,
        use=body.use,
        datasets=[dataset.name],
        environment=body.environment,
        region=region,
        spec=job
        | {
            "code_digest_hex": provenance.TRAINING_CODE_DIGEST_HEX,
            "runtime_digest_hex": provenance.RUNTIME_DIGEST_HEX,
        },
        state="accepted",
        started_by=who.name,
        started_by_kind=who.kind,
        # Whoever starts a pipeline's run is an author of what it makes, through the one who answers for the pipeline.
        authors=_authors(view, who),
        pipelines=[who.name] if who.kind == "service" else [],
        cost=cost,
        operation_id=ids.operation,
        created_at_ms=ids.now_ms,
    )
    parameters = {
        "run": str(ref),
        "dataset": body.dataset,
        "object_id": dataset.object_id,
        "digest_hex": dataset.digest_hex,
        "size_bytes": dataset.bytes,
        "label": dataset.label,
        "protected": dataset.protected,
        "columns": dataset.columns,
        "missing": dataset.missing,
        "environment": body.environment,
        "region": region,
        "code_digest_hex": provenance.TRAINING_CODE_DIGEST_HEX,
        "runtime_digest_hex": provenance.RUNTIME_DIGEST_HEX,
        **job,
    }
    change = Change(inserts=(Insert(Run, row.model_dump()),), spends=(Spend(TRAINING_BUDGET, cost),))
    return Proposal(resource=view.run_entity(row), parameters=parameters, change=change, conflict=conflict)


def name_taken(view: View, ref: Ref) -> Conflict | None:
    """Why a run cannot have that name, if so."""
    return None if view.run(ref.name) is None else Conflict(f"run {ref} exists already: launch it under another name")


def _job(dataset: Dataset, body: LaunchTraining) -> dict[str, Any]:
    """What the job is told: the rows it gets, and how and on what to train on them."""
    spec = body.spec
    group = spec.group or (dataset.protected[0] if dataset.protected else "")
    if group and group not in dataset.protected:
        raise InvalidInput(
            f"spec.group: {group!r} is no protected column of {dataset.name}; "
            f"protected: {', '.join(dataset.protected) or 'none'}"
        )
    if spec.exclude and (unknown := sorted(set(spec.exclude) - set(dataset.columns))):
        raise InvalidInput(
            f"spec.exclude: {', '.join(unknown)}: no column of {dataset.name}; it has {', '.join(dataset.columns)}"
        )
    unseen = {dataset.label, *dataset.protected, *spec.exclude}
    if unseen_by_name := sorted(set(spec.exclude) & {dataset.label, *dataset.protected}):
        raise InvalidInput(
            f"spec.exclude: {', '.join(unseen_by_name)}: the label and protected columns are no features in any case; leave them out"
        )
    if not set(dataset.columns) - unseen:
        raise InvalidInput("spec.exclude leaves no column to train on")
    wanted: dict[str, Any] = {
        "seed": spec.seed,
        "features": [{"name": n, "encoding": e} for n, e in sorted(dataset.columns.items()) if n not in unseen],
        "label": dataset.label,
        "decision_threshold_micro": spec.decision_threshold_micro,
        "hidden": spec.hidden,
        "epochs": spec.epochs,
        "learning_rate_micro": spec.learning_rate_micro,
        "weight_decay_micro": spec.weight_decay_micro,
        "checkpoint_every_epochs": spec.checkpoint_every_epochs,
        "precision": spec.precision,
        **body.execution,
    }
    if spec.mitigation_weight_micro:
        if not group:
            raise InvalidInput(
                f"spec.mitigation_weight_micro: {dataset.name} has no protected column whose groups to compare"
            )
        wanted["mitigation"] = {
            "kind": "demographic-parity",
            "group": group,
            "weight_micro": spec.mitigation_weight_micro,
        }
    try:
        training = parse_spec(TrainingSpec, wanted).model_dump(mode="json")
    except InputRefused as error:
        raise InvalidInput(f"spec: {error}") from error
    return {
        "spec": training,
        "split": {"held_out_micro": spec.held_out_micro, "seed": spec.split_seed},
        "exclude": sorted(set(spec.exclude)),
    }


def _authors(view: View, who: Who) -> list[str]:
    if who.kind == "person":
        return [who.name]
    account = view.principal(who.name)
    return [account.owner] if account is not None and account.owner else []


def do_launch(deed: Deed) -> Mapping[str, Any]:
    """Fetch the rows, keep the held-out ones back, train in the sandbox, seal and attest what came of it."""
    p = deed.parameters
    if p["code_digest_hex"] != provenance.TRAINING_CODE_DIGEST_HEX:
        raise Conflict(
            "the code that is installed here is not the code that was approved; ask again", code="other-code"
        )
    if p["runtime_digest_hex"] != provenance.RUNTIME_DIGEST_HEX:
        raise Conflict(
            "the runtime that is installed here is not the one that was approved; ask again", code="other-runtime"
        )
    source = ObjectRef(
        tenant=deed.tenant, object_id=p["object_id"], digest_hex=p["digest_hex"], size_bytes=p["size_bytes"]
    )
    # Before anything is decrypted: it may have to wait.
    devices = deed.lease_devices()
    with deed.plaintext() as folder:
        split = deed.fetch_split(source, folder, parameters=p)

        def run(warrant: bytes, attempt: int) -> dict[str, Any]:
            job = TrainingJob(
                tenant=deed.tenant,
                operation_id=deed.id,
                step="train",
                attempt=attempt,
                run=p["run"],
                parameters=p,
                inputs={"train.csv": split.train},
                workdir=deed.workdir,
                devices=devices,
            )
            outcome = deed.adapters.training.run(warrant, job, deed.report, deed.should_stop)
            if outcome.stopped:
                raise deed.stopped()
            if outcome.digests["code"] != p["code_digest_hex"]:
                raise Conflict("other code ran than was approved; what it made is not kept", code="other-code")
            if outcome.digests["environment"] != p["runtime_digest_hex"]:
                raise Conflict(
                    "it ran in another runtime than was approved; what it made is not kept", code="other-runtime"
                )
            return {
                "digests": dict(outcome.digests),
                "output": outcome.output_dir.name,
                "made": {
                    name: dict(zip(("digest_hex", "size_bytes"), deed.measure(outcome.output_dir / name), strict=True))
                    for name in MODEL_FILES
                },
                "sandbox": {
                    "kind": outcome.sandbox.kind,
                    "checks": dict(outcome.sandbox.checks),
                    "notes": list(outcome.sandbox.notes),
                },
                "metrics": _last_figures(outcome.metrics),
                "resumed_from_step": outcome.resumed_from_step,
                "execution": dict(outcome.execution),
                "attempt": attempt,
            }

        resources = {"run": p["run"], "input:train.csv": split.train.digest_hex}
        resources |= leased_devices(deed.tenant, deed.id, devices)
        trained = deed.step("train", run, adapter="local-training", operation="training.run", resources=resources)
    files = {name: _keep(deed, trained, name) for name in MODEL_FILES}
    statement = provenance.training_statement(deed, trained, files, split=split)
    attestation = deed.attest(statement)
    deed.clean_up()
    return {**trained, "files": files, "attestation": attestation}


def _last_figures(metrics: Any) -> dict[str, int]:
    last: dict[str, int] = {}
    for metric in metrics:
        last |= {f"{name}_micro": value for name, value in metric.values_micro.items()}
        last |= {"epoch": metric.epoch, "step": metric.step}
    return last


def _keep(deed: Deed, trained: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Seal one file that the run made."""
    made = trained["made"][name]
    ref = ObjectRef(tenant=deed.tenant, object_id=f"{deed.tenant}/run/{deed.id}/{name}", **made)

    def put(warrant: bytes, _attempt: int) -> dict[str, Any]:
        with deed.output_file(trained["output"], name).open("rb") as source:
            deed.adapters.objects.put(warrant, ref, source, deed.parameters)
        return {"object_id": ref.object_id, **made}

    return dict(
        deed.step(
            f"keep:{name}", put, adapter=deed.adapters.objects_name, operation="objects.put", resources=ref.resources()
        )
    )


def finish_launch(view: View, operation: Operation, result: Mapping[str, Any], now_ms: int) -> Change:
    """The run is done; one that was cancelled while it ended stays cancelled, and its model is never registered."""
    row = view.run(_name(operation))
    values = {
        "state": "cancelled" if row is not None and row.state == "cancelled" else "done",
        "metrics_summary": result["metrics"],
        "outcome": dict(result),
        "ended_at_ms": now_ms,
        "attempt": result["attempt"],
    }
    return Change(updates=(Update(Run, {"name": _name(operation)}, values),))


def abandon_launch(view: View, operation: Operation, error: Mapping[str, Any], now_ms: int) -> Change:
    """The run is over, and the record says why."""
    row = view.run(_name(operation))
    cancelled = row is not None and row.state == "cancelled"
    state = "cancelled" if cancelled else "refused" if error.get("code") == "refused" else "failed"
    values = {"state": state, "outcome": {"error": dict(error)}, "ended_at_ms": now_ms}
    return Change(updates=(Update(Run, {"name": _name(operation)}, values),))


def _name(operation: Operation) -> str:
    return operation.resource.partition("/")[2]


# --- cancel, log, read ----------------------------------------------------------------------------------------------


def ask_cancel(view: View, _who: Who, ref: Ref, _body: NoBody, _ids: Ids) -> Proposal | None:
    """The run stops at its next sign of life."""
    row = view.run(ref.name)
    if row is None:
        return None
    going = row.state in {"accepted", "running"}
    conflict = None if going else Conflict(f"run {ref} is {row.state}: there is nothing to cancel")
    change = Change(updates=(Update(Run, {"name": ref.name, "state": row.state}, {"state": "cancelled"}),))
    return Proposal(resource=view.run_entity(row), change=change, conflict=conflict, result={"state": "cancelled"})


def ask_log(view: View, _who: Who, ref: Ref, body: LogMetric, ids: Ids) -> Proposal | None:
    """One figure more, from outside the platform."""
    row = view.run(ref.name)
    if row is None:
        return None
    metric = MetricRow(
        tenant_id=ref.tenant,
        run=ref.name,
        name=f"logged.{body.name}",
        step=body.step,
        attempt=_attempt(view, row),
        value=body.value,
        at_ms=ids.now_ms,
    )
    conflict = None
    if view.has_metric(metric):
        conflict = Conflict(f"run {ref} has a figure {body.name!r} at step {body.step} already: what is logged stays")
    return Proposal(
        resource=view.run_entity(row),
        change=Change(inserts=(Insert(MetricRow, metric.model_dump()),)),
        conflict=conflict,
    )


def ask_read(view: View, _who: Who, ref: Ref, _body: NoBody, _ids: Ids) -> Proposal | None:
    """What is known of a run."""
    row = view.run(ref.name)
    if row is None:
        return None
    result = row.model_dump(exclude={"tenant_id"}) | {"attempt": _attempt(view, row)}
    if row.state == "accepted" and result["attempt"]:
        operation = view.operation(row.operation_id or "")
        waits = operation is not None and "waiting" in (operation.progress or {})
        result["state"] = "waiting" if waits else "running"
    return Proposal(resource=view.run_entity(row), result={"run": result})


def _attempt(view: View, row: Run) -> int:
    """The attempt at which a run is; how far an operation has come is no fact, so the row does not know it before the end."""
    operation = view.operation(row.operation_id or "")
    return row.attempt if operation is None else operation.attempt


def metric_rows(run: str, attempt: int, metric: Metric, now_ms: int) -> list[dict[str, Any]]:
    """A job's figures as rows of telemetry."""
    return [
        {"run": run, "name": name, "step": metric.step, "attempt": attempt, "value": _decimal(value), "at_ms": now_ms}
        for name, value in metric.values_micro.items()
    ]


def _decimal(micro: int) -> str:
    sign, rest = ("-", -micro) if micro < 0 else ("", micro)
    return f"{sign}{rest // 1_000_000}.{rest % 1_000_000:06d}"


VERBS = (
    Verb(
        action="training.launch",
        summary="Train a model on a dataset in an environment.",
        form=RefForm.NAME,
        body=LaunchTraining,
        propose=ask_launch,
        do=do_launch,
        finish=finish_launch,
        abandon=abandon_launch,
        creates=True,
    ),
    Verb(action="training.cancel", summary="Stop a run.", form=RefForm.NAME, body=NoBody, propose=ask_cancel),
    Verb(action="run.log", summary="Report a figure to a run.", form=RefForm.NAME, body=LogMetric, propose=ask_log),
    Verb(action="run.read", summary="Show a run.", form=RefForm.NAME, body=NoBody, propose=ask_read),
)
