"""The port of checks: tests of a model, never questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from licet_adapters.errors import InputRefused
from licet_adapters.ports.base import InputFile, Parameters, SandboxReport, check_digest_hex

if TYPE_CHECKING:
    from pathlib import Path

    from licet_adapters.ports.training import Metric


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckJob:
    """Tests of one model version; *check* always means a test of a model.

    Attributes:
        tenant: Owner of the model.
        operation_id: The accepted operation.
        step: Its step.
        attempt: 1, 2, ...
        version: Ref of the model version.
        parameters: The operation's; members ``kinds`` (of technical, bias, explainability, drift), ``thresholds``
            (integers in micro, or counts) and ``spec`` (seed, columns, ...).
        model: ``model.safetensors`` and ``architecture.json`` by name.
        inputs: Name to file: held-out and training rows.
        workdir: Scratch of this job.
    """

    tenant: str
    operation_id: str
    step: str
    attempt: int
    version: str
    parameters: Parameters
    model: Mapping[str, InputFile]
    inputs: Mapping[str, InputFile]
    workdir: Path

    @property
    def kinds(self) -> list[str]:
        """Which checks to run, as decided."""
        kinds = self.parameters.get("kinds")
        if not isinstance(kinds, list) or not kinds or not all(isinstance(kind, str) for kind in kinds):
            raise InputRefused("the operation's parameters lack `kinds`", code="input.kinds")
        return list(kinds)

    @property
    def thresholds(self) -> Mapping[str, int]:
        """What to hold the figures against, as decided."""
        thresholds = self.parameters.get("thresholds")
        if not isinstance(thresholds, Mapping):
            raise InputRefused("the operation's parameters lack `thresholds`", code="input.thresholds")
        return thresholds

    @property
    def spec(self) -> Mapping[str, Any]:
        """Seed, columns and the like, as decided; empty if not given."""
        spec = self.parameters.get("spec", {})
        if not isinstance(spec, Mapping):
            raise InputRefused("the operation's `spec` is not an object", code="input.spec")
        return spec

    def resources(self) -> dict[str, str]:
        """What the warrant must name: the version, and every model file and input by digest."""
        files = {f"model:{name}": f for name, f in self.model.items()}
        files |= {f"input:{name}": f for name, f in self.inputs.items()}
        return {"version": self.version} | {name: check_digest_hex(f.digest_hex) for name, f in files.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """What one check found.

    Attributes:
        kind: ``technical``, ``bias``, ``explainability`` or ``drift``.
        passed: Held against the thresholds given.
        figures: Name to integer, micro or count as the name says (``auc_lower_micro``, ``drifted_features``).
        detail: Canonical JSON for people and reports (per group, per feature); no floats.
    """

    kind: str
    passed: bool
    figures: Mapping[str, int]
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckOutcome:
    """What a check job found.

    Attributes:
        results: One per kind asked for, in that order.
        digests: ``code`` and ``environment``: SHA-256 in hex.
        sandbox: How it was confined.
    """

    results: Sequence[CheckResult]
    digests: Mapping[str, str]
    sandbox: SandboxReport


class ModelChecker(Protocol):
    """Adapter ``local-checks`` and its peers; operation ``checks.run``."""

    def run(
        self,
        warrant: bytes,
        job: CheckJob,
        on_metric: Callable[[Metric], None],
        should_stop: Callable[[], bool],
    ) -> CheckOutcome:
        """Run the checks; a check that could not be computed is a failure of the job, never a pass.

        Raises:
            WarrantRefused: See the guard.
            InputRefused: A file has another digest than the warrant names, or a kind is unknown.
            JobFailed: The job's own failure, or it was stopped.
        """
        ...
