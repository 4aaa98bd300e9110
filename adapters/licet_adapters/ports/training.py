"""The port of training, and the devices that runs are given."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from licet_adapters.errors import InputRefused
from licet_adapters.ports.base import InputFile, Parameters, SandboxReport, check_digest_hex

if TYPE_CHECKING:
    from pathlib import Path

DEVICE_UUID = re.compile(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
"""How NVIDIA's driver names a whole device. A slice of one (``MIG-...``) is not taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """Figures a job reports as it goes.

    Attributes:
        step: Optimiser steps (or, for checks, units of work) done.
        epoch: 0-based.
        values_micro: Name to value in millionths.
    """

    step: int
    epoch: int
    values_micro: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """One accelerator of this machine that may be given to jobs.

    Attributes:
        uuid: As its driver names it (``GPU-...``); the same after a restart and in any slot.
        kind: ``cuda``.
        name: Of the product, for people.
        memory_mib: Its memory.
        driver: Version of its driver.
    """

    uuid: str
    kind: str
    name: str
    memory_mib: int
    driver: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingJob:
    """One attempt at one training run.

    Attributes:
        tenant: Owner of the run.
        operation_id: The accepted operation.
        step: Its step.
        attempt: 1, 2, ...; a resume after a kill is a new attempt.
        run: Ref of the run (``northbank/credit-risk-1``).
        parameters: The operation's; member ``spec`` says how to train (seed, epochs, features, mitigation, ...).
        inputs: Name to file: the training rows, never held-out rows.
        workdir: Persistent across attempts; holds checkpoints and outputs.
        devices: UUIDs of the devices that are leased to this attempt; empty for a run on the processor.
    """

    tenant: str
    operation_id: str
    step: str
    attempt: int
    run: str
    parameters: Parameters
    inputs: Mapping[str, InputFile]
    workdir: Path
    devices: Sequence[str] = ()

    @property
    def spec(self) -> Mapping[str, Any]:
        """How to train, as decided."""
        spec = self.parameters.get("spec")
        if not isinstance(spec, Mapping):
            raise InputRefused("the operation's parameters lack `spec`", code="input.spec")
        return spec

    def resources(self) -> dict[str, str]:
        """What the warrant must name: the run, every input by digest, and every device that this attempt may use."""
        files = {f"input:{name}": check_digest_hex(f.digest_hex) for name, f in self.inputs.items()}
        return {"run": self.run} | files | leased_devices(self.tenant, self.operation_id, self.devices)


def leased_devices(tenant: str, operation_id: str, uuids: Sequence[str]) -> dict[str, str]:
    """How a warrant names devices: each as the lease that one operation has of it, in the order of the ranks."""
    return {f"device:{rank}": f"{tenant}/device/{operation_id}/{uuid}" for rank, uuid in enumerate(uuids)}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingOutcome:
    """What a training run made.

    Attributes:
        output_dir: Holds ``model.safetensors`` and ``architecture.json``, already inspected.
        digests: ``weights``, ``architecture``, ``code``, ``environment``, ``execution``: SHA-256 in hex.
        sandbox: How it was confined.
        execution: On what it ran: ``device`` (``cpu`` or ``cuda``), ``devices`` (of each ``uuid``, ``name``, ``driver``),
            ``cuda`` (version that torch was built with; empty without), ``ranks`` and ``precision``. Its digest, together
            with that of the environment, is ``execution``.
        metrics: The last of each figure.
        resumed_from_step: Optimiser step of the checkpoint it went on from; 0 if it began anew.
        stopped: ``should_stop`` said so before the end: there is a checkpoint and no model.
    """

    output_dir: Path
    digests: Mapping[str, str]
    sandbox: SandboxReport
    metrics: Sequence[Metric]
    resumed_from_step: int
    stopped: bool = False
    execution: Mapping[str, Any] = field(default_factory=dict)


class TrainingRunner(Protocol):
    """Adapter ``local-training`` and its peers; operation ``training.run``."""

    def devices(self) -> Sequence[Device]:
        """Return the devices that jobs may be given here; empty where there are none.

        Raises:
            Unavailable: They cannot be told now: those that are known stay as they are.
        """
        ...

    def run(
        self,
        warrant: bytes,
        job: TrainingJob,
        on_metric: Callable[[Metric], None],
        should_stop: Callable[[], bool],
    ) -> TrainingOutcome:
        """Train, or go on from the last checkpoint in ``job.workdir``; return when done or stopped.

        Args:
            warrant: For ``training.run``.
            job: What to train.
            on_metric: Called on this thread as figures arrive.
            should_stop: Asked at least once a second; true stops the job (lease lost, cancelled).

        Raises:
            WarrantRefused: See the guard.
            InputRefused: An input has another digest than the warrant names, or the spec is not understood.
            JobFailed: The job's own failure.
            Unavailable: No sandbox and the code is not the platform's.
        """
        ...
