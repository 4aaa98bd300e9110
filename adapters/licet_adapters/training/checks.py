"""Checks on this machine, in the sandbox.

Rules kept here:

- No warrant, no run: the guard admits and spends it before anything is read.
- The model is inspected before a job loads it, as if a stranger had made it.
- A result is taken only if it is complete and well-formed: every kind asked for, in order, each with exactly its figures,
  integers all. A check that could not be computed fails the job, and is never a pass.
"""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, Any

from licet_adapters.effects import EffectLedger
from licet_adapters.errors import InputRefused, JobFailed
from licet_adapters.guard import WarrantGuard
from licet_adapters.modelfiles import inspect_model_files
from licet_adapters.ports import MODEL_FILES, AdapterContext, CheckJob, CheckOutcome, CheckResult, Metric
from licet_adapters.sandbox import JobRun, Sandbox, shipped_code
from licet_adapters.sandbox_limits import Limits
from licet_adapters.sandbox_outputs import stage_input
from licet_adapters.training.common import (
    HELD_OUT_INPUT,
    SPEC_DOCUMENT,
    TRAIN_INPUT,
    Reports,
    report_from_record,
    report_to_record,
    require_inputs,
)
from licet_adapters.training.environment import environment_digest_hex
from licet_adapters.training.spec import FIGURES, CheckSpec, parse_spec
from licet_attestations import canonical
from licet_attestations.errors import LicetAttestationError
from licet_attestations.signer.files import make_private_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

NAME = "local-checks"
RESULTS_FILE = "results.json"
_MAX_RESULTS_BYTES = 8 << 20


class LocalChecks:
    """Adapter ``local-checks``.

    Args:
        context: What every adapter is given.
        limits: What a check job may use.
    """

    def __init__(self, context: AdapterContext, *, limits: Limits | None = None) -> None:
        make_private_directory(context.data_dir)
        self._guard = WarrantGuard(NAME, context.trust_root, context.data_dir, context.clock)
        self._ledger = EffectLedger(context.data_dir)
        self._sandbox = Sandbox(context.data_dir)
        self._limits = limits or Limits()

    def run(
        self,
        warrant: bytes,
        job: CheckJob,
        on_metric: Callable[[Metric], None],
        should_stop: Callable[[], bool],
    ) -> CheckOutcome:
        """Run the checks.

        Raises:
            WarrantRefused: See the guard. Nothing was done.
            InputRefused: A file or the spec is not acceptable.
            Conflict: Another attempt is at work, or a newer one began.
            JobFailed: The job's own failure, or it was stopped.
            Unavailable: A disk or the sandbox cannot be had now.
        """
        admitted = self._guard.admit(
            warrant, tenant=job.tenant, operation="checks.run", parameters=job.parameters, resources=job.resources()
        )
        spec = parse_spec(CheckSpec, {**job.spec, "kinds": job.kinds, "thresholds": dict(job.thresholds)})
        require_inputs(job.inputs, (TRAIN_INPUT, HELD_OUT_INPUT))
        require_inputs(job.model, MODEL_FILES)
        with self._ledger.once(admitted) as effect:
            if effect.outcome is None:
                effect.record(self._check(job, spec, on_metric, should_stop))
            return _outcome_from_record(effect.outcome or {})

    def _check(
        self,
        job: CheckJob,
        spec: CheckSpec,
        on_metric: Callable[[Metric], None],
        should_stop: Callable[[], bool],
    ) -> dict[str, Any]:
        code = shipped_code("check_tabular.py")
        make_private_directory(job.workdir)
        with _fresh(job.workdir / "model") as model_dir, _fresh(job.workdir / "job") as output_dir:
            for name, file in job.model.items():
                stage_input(file, model_dir / name)
            target = inspect_model_files(model_dir).architecture.target
            if target in spec.groups:
                raise InputRefused(f"the model predicts {target}, a group that it is checked for", code="input.spec")
            run = JobRun(
                code=code,
                inputs={**job.inputs, **job.model},
                documents={SPEC_DOCUMENT: spec.document()},
                output_dir=output_dir,
                limits=self._limits,
            )
            reports = Reports(on_metric)
            end = self._sandbox.run(run, reports.take, should_stop)
            if end.stopped:
                raise JobFailed("the checks were stopped before they were done", code="job.stopped")
            reports.require_success(end)
            with _fresh(job.workdir / "results") as results_dir:
                run.collect(results_dir, required=(RESULTS_FILE,), owner_uid=end.owner_uid)
                data = (results_dir / RESULTS_FILE).read_bytes()
        return {
            "results": parse_results(data, spec.kinds),
            "digests": {"code": code.digest_hex, "environment": environment_digest_hex()},
            "sandbox": report_to_record(end.sandbox),
        }


def parse_results(data: bytes, kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return what a check job wrote, as canonical JSON.

    Raises:
        JobFailed: It is not exactly one well-formed result for each of ``kinds``, in order; code ``job.results``.
    """
    try:
        document = canonical.loads(data, max_bytes=_MAX_RESULTS_BYTES)
    except LicetAttestationError as error:
        raise JobFailed(f"{RESULTS_FILE}: {error}", code="job.results") from error
    match document:
        case {"v": 1, "results": list() as results} if len(document) == 2 and len(results) == len(kinds):  # noqa: PLR2004
            for kind, result in zip(kinds, results, strict=True):
                _require_result(kind, result)
            return results
        case _:
            raise JobFailed(f"{RESULTS_FILE}: not one result for each check", code="job.results")


def _require_result(kind: str, result: Any) -> None:
    match result:
        case {"kind": found, "passed": bool(), "figures": dict() as figures, "detail": dict()} if (
            found == kind
            and set(result) == {"kind", "passed", "figures", "detail"}
            and set(figures) == FIGURES[kind]
            and all(type(figure) is int and figure >= 0 for figure in figures.values())
        ):
            return
        case _:
            raise JobFailed(f"{RESULTS_FILE}: the result of check {kind} is not well-formed", code="job.results")


def _outcome_from_record(record: Mapping[str, Any]) -> CheckOutcome:
    return CheckOutcome(
        results=tuple(CheckResult(**result) for result in record["results"]),
        digests=record["digests"],
        sandbox=report_from_record(record["sandbox"]),
    )


@contextlib.contextmanager
def _fresh(folder: Path) -> Any:
    """An empty folder that is gone afterwards; what a killed attempt left in it goes too."""
    shutil.rmtree(folder, ignore_errors=True)
    make_private_directory(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
