"""Training on this machine, in the sandbox.

Rules kept here:

- No warrant, no run: the guard admits and spends it before anything is read.
- The job is given exactly the training rows and its spec; held-out rows are not among its inputs, and cannot be.
- What the job wrote is collected out of its reach and inspected before it counts as a model.
- A job is let at exactly the devices that its warrant names and this machine's pool has, held as long as it runs; and
  what it made counts only if it saw these and no other.
- A kill anywhere loses no more than the steps since the last checkpoint: the next attempt, under a new warrant, goes on
  from there to the same weights. Once the outcome is recorded, a further attempt returns it and trains nothing.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from licet_adapters.effects import EffectLedger
from licet_adapters.errors import Conflict, InputRefused, IntegrityError, JobFailed
from licet_adapters.guard import WarrantGuard
from licet_adapters.modelfiles import inspect_model_files
from licet_adapters.ports import MODEL_FILES, AdapterContext, Device, Metric, TrainingJob, TrainingOutcome
from licet_adapters.sandbox import JobRun, Sandbox, shipped_code
from licet_adapters.sandbox_limits import Limits
from licet_adapters.training.common import (
    SPEC_DOCUMENT,
    TRAIN_INPUT,
    Reports,
    report_from_record,
    report_to_record,
    require_inputs,
)
from licet_adapters.training.devices import DevicePool, Held
from licet_adapters.training.environment import environment_digest_hex
from licet_adapters.training.spec import TrainingSpec, parse_spec
from licet_attestations import canonical
from licet_attestations.signer.files import make_private_directory, sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from licet_adapters.training.devices import Machine

NAME = "local-training"
_LEFT_BEHIND = ("checkpoint.safetensors", "checkpoint.safetensors.tmp", *(f"{name}.tmp" for name in MODEL_FILES))
DEVICE_LIMITS = Limits(
    wall_s=24 * 3600, cpu_s=24 * 3600, memory_bytes=64 << 30, processes=2048, open_files=4096, scratch_bytes=2 << 30
)
"""What a job on devices may use: their driver maps far more memory than it fills, and opens many files."""

_RANKS_ENVIRONMENT: Mapping[str, str] = {
    # Ranks meet on the sandbox's own loopback; the sandbox has no names to look others up by, and no other network.
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
    "NCCL_IB_DISABLE": "1",
}
SAME_BITS_ENVIRONMENT: Mapping[str, str] = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""Without it cuBLAS may give other bits in another run; with it, short products take longer."""


class LocalTraining:
    """Adapter ``local-training``.

    Args:
        context: What every adapter is given.
        limits: What a training job may use; by default it depends on whether it has devices.
        machine: Where devices are told of.
    """

    def __init__(
        self, context: AdapterContext, *, limits: Limits | None = None, machine: Machine | None = None
    ) -> None:
        make_private_directory(context.data_dir)
        self._guard = WarrantGuard(NAME, context.trust_root, context.data_dir, context.clock)
        self._ledger = EffectLedger(context.data_dir)
        self._sandbox = Sandbox(context.data_dir)
        self._limits = limits
        allowed = [uuid for uuid in context.option("devices").split(",") if uuid]
        self._pool = DevicePool(allowed, context.data_dir, machine)

    def devices(self) -> Sequence[Device]:
        """The devices that jobs may be given here.

        Raises:
            Unavailable: They cannot be told now.
        """
        return self._pool.told()

    def probe(self) -> dict[str, Any]:
        """How jobs are confined on this machine, as canonical JSON (for ``licet doctor``)."""
        return report_to_record(self._sandbox.probe())

    def run(
        self,
        warrant: bytes,
        job: TrainingJob,
        on_metric: Callable[[Metric], None],
        should_stop: Callable[[], bool],
    ) -> TrainingOutcome:
        """Train, or go on from the last checkpoint in ``job.workdir``; return when done or stopped.

        Raises:
            WarrantRefused: See the guard. Nothing was done.
            InputRefused: The spec or an input is not acceptable.
            Conflict: Another attempt is at work, or a newer one began.
            JobFailed: The job's own failure.
            Unavailable: A disk or the sandbox cannot be had now.
        """
        admitted = self._guard.admit(
            warrant, tenant=job.tenant, operation="training.run", parameters=job.parameters, resources=job.resources()
        )
        spec = parse_spec(TrainingSpec, job.spec)
        require_inputs(job.inputs, (TRAIN_INPUT,))
        if len(job.devices) != spec.devices:
            raise InputRefused(
                f"the spec takes {spec.devices} devices, and {len(job.devices)} are leased to it", code="input.devices"
            )
        model_dir = job.workdir / "model"
        with self._ledger.once(admitted) as effect:
            if effect.outcome is not None:
                return _outcome_from_record(effect.outcome, model_dir)
            outcome = self._train(job, spec, model_dir, on_metric, should_stop)
            if not outcome.stopped:
                effect.record(_outcome_to_record(outcome))
            return outcome

    def _train(
        self,
        job: TrainingJob,
        spec: TrainingSpec,
        model_dir: Path,
        on_metric: Callable[[Metric], None],
        should_stop: Callable[[], bool],
    ) -> TrainingOutcome:
        code = shipped_code(f"{spec.job}.py")
        # The job's own folder, its checkpoints in it, stays between attempts; what it writes there is never used in place.
        output_dir = job.workdir / "job"
        make_private_directory(output_dir)
        reports = Reports(on_metric)
        with self._pool.held(job.devices, output_dir) as held:
            run = JobRun(
                code=code,
                inputs=job.inputs,
                documents={SPEC_DOCUMENT: spec.document()},
                output_dir=output_dir,
                limits=self._limits or (DEVICE_LIMITS if held.devices else Limits()),
                environment=job_environment(spec, held),
                devices=held.nodes,
            )
            end = self._sandbox.run(run, reports.take, should_stop)
        digests = {"code": code.digest_hex, "environment": environment_digest_hex()}
        execution = _execution(spec, held, reports)
        digests["execution"] = execution_digest_hex(execution, digests["environment"])
        if not end.stopped:
            reports.require_success(end)
            _require_seen(held, reports)
            digests |= self._publish(run, end.owner_uid, model_dir)
        return TrainingOutcome(
            output_dir=model_dir,
            digests=digests,
            sandbox=end.sandbox,
            metrics=tuple(reports.metrics),
            resumed_from_step=reports.resumed_from_step,
            stopped=end.stopped,
            execution=execution,
        )

    def _publish(self, run: JobRun, owner_uid: int, model_dir: Path) -> dict[str, str]:
        """Collect and inspect the model; it appears in ``model_dir`` whole."""
        incoming = model_dir.with_name("model.incoming")
        for left in (incoming, model_dir):  # Of an attempt that was killed before its outcome was recorded.
            shutil.rmtree(left, ignore_errors=True)
        make_private_directory(incoming)
        run.collect(incoming, required=MODEL_FILES, ignored=_LEFT_BEHIND, owner_uid=owner_uid)
        inspected = inspect_model_files(incoming)
        incoming.rename(model_dir)
        sync_directory(model_dir.parent)
        return {
            "weights": inspected.digests["model.safetensors"],
            "architecture": inspected.digests["architecture.json"],
        }


def execution_digest_hex(execution: Mapping[str, Any], environment_digest_hex: str) -> str:
    """SHA-256 over all that a run was executed on: the environment, devices with their driver, CUDA, ranks, precision."""
    described = {**execution, "environment": environment_digest_hex}
    return hashlib.sha256(canonical.dumps(described)).hexdigest()


def job_environment(spec: TrainingSpec, held: Held) -> dict[str, str]:
    """The variables that a job on several ranks, or on devices, needs beside those of every job."""
    environment = dict(_RANKS_ENVIRONMENT) if spec.ranks > 1 else {}
    if held.devices:
        environment |= {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": ",".join(device.uuid for device in held.devices),
            **SAME_BITS_ENVIRONMENT,
        }
    return environment


def _execution(spec: TrainingSpec, held: Held, reports: Reports) -> dict[str, Any]:
    named = ("uuid", "name", "driver")
    return {
        "device": spec.device,
        "devices": [{name: asdict(device)[name] for name in named} for device in held.devices],
        "cuda": reports.seen[1] if reports.seen is not None else "",
        "ranks": spec.ranks,
        "precision": spec.precision,
    }


def _require_seen(held: Held, reports: Reports) -> None:
    """Return if the job saw exactly the devices it was given, in their order.

    Raises:
        JobFailed: It did not, so what it made is not what its attestation would say.
    """
    leased = tuple(device.uuid for device in held.devices)
    seen = () if reports.seen is None else reports.seen[0]
    if seen != leased:
        raise JobFailed(
            f"the job saw {', '.join(seen) or 'no device'}, and was given {', '.join(leased) or 'none'}",
            code="job.devices",
        )


def _outcome_to_record(outcome: TrainingOutcome) -> dict[str, Any]:
    return {
        "digests": dict(outcome.digests),
        "sandbox": report_to_record(outcome.sandbox),
        "metrics": [
            {"step": metric.step, "epoch": metric.epoch, "values_micro": dict(metric.values_micro)}
            for metric in outcome.metrics
        ],
        "resumed_from_step": outcome.resumed_from_step,
        "execution": dict(outcome.execution),
    }


def _outcome_from_record(record: dict[str, Any], model_dir: Path) -> TrainingOutcome:
    """The outcome recorded before, if its model still stands where it stood.

    Raises:
        Conflict: Its folder is gone; the outcome is history, and a new run is needed.
        IntegrityError: The model there is another.
    """
    if not model_dir.is_dir():
        raise Conflict(
            "this run is finished, and its working folder is gone; start a new run", code="conflict.finished"
        )
    found = inspect_model_files(model_dir).digests
    digests = record["digests"]
    if (found["model.safetensors"], found["architecture.json"]) != (digests["weights"], digests["architecture"]):
        raise IntegrityError("the model in the working folder is not the one this run made")
    return TrainingOutcome(
        output_dir=model_dir,
        digests=digests,
        sandbox=report_from_record(record["sandbox"]),
        metrics=tuple(Metric(**metric) for metric in record["metrics"]),
        resumed_from_step=record["resumed_from_step"],
        execution=record.get("execution", {}),  # Outcomes of earlier versions name none.
    )
