"""Checks: tests of a model version on the held-out rows, against the thresholds of the packs in force."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from licet_adapters.ports import MODEL_FILES, CheckJob, InputFile
from licet_adapters.training.spec import CHECK_KINDS, COMPARE_GROUPS, FIGURES, Thresholds
from licet_engine.domain.errors import Conflict, InvalidInput, LicetError
from licet_engine.domain.refs import Ref
from licet_engine.lifecycle import mlbom, provenance
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.models import found, not_ready, object_of, registry_parameters, split_name, version_ref
from licet_engine.lifecycle.verbs import Body, Change, Ids, Insert, Proposal, RefForm, Verb, Who
from licet_engine.store.tables import CheckResult, Dataset, Operation

if TYPE_CHECKING:
    from licet_engine.lifecycle.deed import Deed


class CheckModel(Body):
    """Which checks to run; left out, all that the data allows."""

    kinds: list[Annotated[str, Field(pattern="^(" + "|".join(CHECK_KINDS) + ")$")]] = Field(
        default_factory=list, max_length=len(CHECK_KINDS)
    )


def ask_check(view: View, _who: Who, ref: Ref, body: CheckModel, _ids: Ids) -> Proposal | None:
    """Tests of a version on the held-out rows, against the thresholds of the packs in force."""
    row = found(view, ref)
    if row is None:
        return None
    run = view.run(row.run)
    dataset = view.dataset(row.datasets[0]) if row.datasets else None
    resource = view.model_version_entity(row)
    if run is None or dataset is None:
        return Proposal(resource=resource, conflict=Conflict(f"{ref} has no lineage: there is nothing to check it on"))
    parameters = {
        **registry_parameters(row, ref),
        "kinds": _kinds(body, dataset),
        "thresholds": view.thresholds(row.tier, tuple(Thresholds.model_fields)),
        "model_digest_hex": row.digest_hex,
        "dataset": {"object_id": dataset.object_id, "digest_hex": dataset.digest_hex, "size_bytes": dataset.bytes},
        "label": dataset.label,
        "protected": dataset.protected,
        "columns": dataset.columns,
        "missing": dataset.missing,
        "split": run.spec["split"],
        "exclude": run.spec["exclude"],
        # Every protected column is reviewed: which of them matters is not for the author of the run to say.
        "spec": {"groups": sorted(dataset.protected), "seed": run.spec["spec"]["seed"]},
        "card": mlbom.card_of(row, run, dataset, view.checks(row), view),
    }
    conflict: LicetError | None = not_ready(row, ref)
    if dataset.state not in {"ready", "archived"}:
        conflict = Conflict(f"the data behind {ref} is {dataset.state}")
    elif impossible := sorted(set(body.kinds) - set(_possible(dataset))):
        told = ", ".join(impossible)
        conflict = InvalidInput(f"{told}: the data behind {ref} has no protected column whose groups to compare")
    return Proposal(resource=resource, parameters=parameters, conflict=conflict)


def _possible(dataset: Dataset) -> tuple[str, ...]:
    """The checks that this data allows; two of them compare the groups of protected columns."""
    return CHECK_KINDS if dataset.protected else tuple(kind for kind in CHECK_KINDS if kind not in COMPARE_GROUPS)


def _kinds(body: CheckModel, dataset: Dataset) -> list[str]:
    """The checks to run, in their order."""
    return [kind for kind in _possible(dataset) if not body.kinds or kind in body.kinds]


def do_check(deed: Deed) -> Mapping[str, Any]:
    """Run the checks in the sandbox, and attest each with its figures, and the bill of materials with them all."""
    p = deed.parameters
    ref = version_ref(deed.tenant, p)
    with deed.plaintext() as folder:
        split = deed.fetch_split(object_of(deed.tenant, p["dataset"]), folder, parameters=p)

        def read(warrant: bytes, _attempt: int) -> dict[str, Any]:
            deed.adapters.registry.read(warrant, ref, folder / "model", p)
            return {}

        deed.effect(
            "read", read, adapter=deed.adapters.registry_name, operation="registry.read", resources=ref.resources()
        )
        job_parts = {
            "model": {
                name: InputFile(path=folder / "model" / name, digest_hex=ref.digests[name]) for name in MODEL_FILES
            },
            "inputs": {
                "train.csv": split.train,
                "held-out.csv": split.held_out,
            },
        }

        def job(attempt: int) -> CheckJob:
            return CheckJob(
                tenant=deed.tenant,
                operation_id=deed.id,
                step="check",
                attempt=attempt,
                version=p["version"],
                parameters=p,
                workdir=deed.workdir,
                **job_parts,
            )

        def check(warrant: bytes, attempt: int) -> dict[str, Any]:
            outcome = deed.adapters.checks.run(warrant, job(attempt), deed.report, deed.should_stop)
            return {
                "results": [
                    {"kind": r.kind, "passed": r.passed, "figures": dict(r.figures), "detail": dict(r.detail)}
                    for r in outcome.results
                ],
                "digests": dict(outcome.digests),
                "sandbox": {
                    "kind": outcome.sandbox.kind,
                    "checks": dict(outcome.sandbox.checks),
                    "notes": list(outcome.sandbox.notes),
                },
            }

        checked = deed.step(
            "check", check, adapter="local-checks", operation="checks.run", resources=job(1).resources()
        )
    results = []
    for found_ in checked["results"]:
        statement = provenance.check_statement(deed, found_, checked, split)
        results.append({**found_, "attestation": deed.attest(statement)})
    bom = deed.attest(mlbom.bom_statement(deed, checked))
    deed.clean_up()
    return {**checked, "results": results, "bom": bom}


def finish_check(_view: View, operation: Operation, result: Mapping[str, Any], now_ms: int) -> Change:
    """The results stand as facts, for the files that were checked."""
    model, version = split_name(operation)
    inserts = tuple(
        Insert(
            CheckResult,
            {
                "id": f"{operation.id}-{found_['kind']}",
                "model": model,
                "version": version,
                "kind": found_["kind"],
                "model_digest_hex": operation.parameters["model_digest_hex"],
                "passed": found_["passed"],
                "figures": {name: found_["figures"][name] for name in sorted(FIGURES[found_["kind"]])},
                "attestation_digest_hex": found_["attestation"],
                "operation_id": operation.id,
                "at_ms": now_ms,
            },
        )
        for found_ in result["results"]
    )
    return Change(inserts=inserts)


VERBS = (
    Verb(
        action="model.check",
        summary="Check a version on held-out data.",
        form=RefForm.VERSION,
        body=CheckModel,
        propose=ask_check,
        do=do_check,
        finish=finish_check,
    ),
)
