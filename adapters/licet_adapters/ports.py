"""The ports: what the worker may ask of an adapter, as Protocols with their inputs and outcomes.

Rules kept here:

- Every method takes ``warrant`` (a DSSE envelope) first. The adapter verifies it itself and durably marks it spent
  before it acts; whoever calls is not trusted to have checked.
- ``parameters`` are those of the accepted *operation*, exactly as its decision recorded them; the warrant carries
  their digest. ``resources()`` names what this one *step* touches; the warrant carries them by name and digest. An
  input takes whatever else it needs out of one of the two, so nothing unwarranted can slip in beside them.
- An outcome is plain data of integers and text: it can stand in a canonical record. Fractions are in micro.
- A method repeated for the same operation and step (with a new warrant) returns the first outcome and repeats no effect.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, runtime_checkable

from licet_adapters.errors import InputRefused
from licet_attestations import canonical

if TYPE_CHECKING:
    from pathlib import Path

    from licet_attestations.trustroot import TrustRoot

Parameters = Mapping[str, Any]
"""The accepted operation's parameters: canonical JSON (no floats)."""

Clock = Callable[[], int]
"""Milliseconds since the epoch."""

_TENANT = re.compile(r"[a-z][a-z0-9-]{1,38}[a-z0-9]\Z")
_OBJECT_ID = re.compile(r"[a-z0-9][A-Za-z0-9._@-]*(/[A-Za-z0-9_][A-Za-z0-9._@-]*)*\Z")
_VERSION = re.compile(r"([a-z][a-z0-9-]{1,38}[a-z0-9])/([a-z0-9][a-z0-9-]{0,62})@([1-9][0-9]{0,8})\Z")
_DIGEST_HEX = re.compile(r"[0-9a-f]{64}\Z")
_MAX_OBJECT_ID_CHARS = 240


def check_tenant(tenant: str) -> str:
    """Return ``tenant`` if it is a tenant id.

    Raises:
        InputRefused: It is not; so it can never become a path.
    """
    if not _TENANT.match(tenant):
        raise InputRefused("not a tenant id", code="input.tenant")
    return tenant


def check_digest_hex(digest_hex: str) -> str:
    """Return ``digest_hex`` if it is a SHA-256 in lower-case hex.

    Raises:
        InputRefused: It is not.
    """
    if not _DIGEST_HEX.match(digest_hex):
        raise InputRefused("not a SHA-256 digest in lower-case hex", code="input.digest")
    return digest_hex


# --- objects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectRef:
    """One immutable object of a tenant.

    Attributes:
        tenant: Owner.
        object_id: Chosen by the caller, unique in the tenant, never reused for other content while it exists
            (``northbank/hmda``, ``northbank/credit-risk@1/model.safetensors``).
        digest_hex: SHA-256 of the plaintext.
        size_bytes: Length of the plaintext.
    """

    tenant: str
    object_id: str
    digest_hex: str
    size_bytes: int

    def __post_init__(self) -> None:
        check_tenant(self.tenant)
        check_digest_hex(self.digest_hex)
        if len(self.object_id) > _MAX_OBJECT_ID_CHARS or not _OBJECT_ID.match(self.object_id):
            raise InputRefused("not an object id", code="input.object-id")
        if self.size_bytes < 0:
            raise InputRefused("an object's size is not negative", code="input.size")

    def resources(self) -> dict[str, str]:
        """What a warrant for this object must name."""
        return {"object": self.object_id, "digest": self.digest_hex}


@dataclass(frozen=True, kw_only=True, slots=True)
class PutOutcome:
    """What a put did.

    Attributes:
        created: False if the very same object was there already (If-None-Match).
        stored_bytes: Size of the sealed file.
    """

    created: bool
    stored_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class HoldOutcome:
    """What came of a hold, or of lifting one.

    Attributes:
        held: Whether it lies there now.
        kept_by: Who keeps the bytes: ``object-lock`` (the store, even from its owner), ``adapter`` (it removes nothing that
            is held; whoever reaches the bytes without it can), or ``none`` (the store has no such thing: policy alone).
    """

    held: bool
    kept_by: str


@runtime_checkable
class Checkable(Protocol):
    """An adapter whose place may be away; one that has no such method is taken to be there."""

    def check(self) -> None:
        """Raise ``AdapterError``, within seconds, if the place cannot be reached or relied upon now; change nothing."""
        ...


class ObjectStore(Protocol):
    """Adapter ``local-objects`` and its peers; operations ``objects.put|get|delete|hold|lift``."""

    def put(self, warrant: bytes, ref: ObjectRef, source: BinaryIO, parameters: Parameters) -> PutOutcome:
        """Seal and store ``source``; all of it becomes visible at once, or none.

        Raises:
            WarrantRefused: See the guard.
            InputRefused: ``source`` has another digest or size than ``ref``.
            Conflict: Other content stands under this id.
        """
        ...

    def get(self, warrant: bytes, ref: ObjectRef, target: Path, parameters: Parameters) -> None:
        """Write the plaintext to ``target`` (0600, must not exist); it appears only after all of it was verified.

        Raises:
            WarrantRefused: See the guard.
            NotFound: No such object.
            IntegrityError: Not the bytes that were put.
        """
        ...

    def read_range(self, warrant: bytes, ref: ObjectRef, start: int, length: int, parameters: Parameters) -> bytes:
        """Return ``length`` plaintext bytes from ``start`` (fewer at the end), each chunk verified; under ``objects.get``."""
        ...

    def delete(self, warrant: bytes, ref: ObjectRef, parameters: Parameters) -> bool:
        """Remove the object durably; return whether it was there.

        Raises:
            Conflict: A hold or a retention keeps it; nothing was removed.
        """
        ...

    def hold(self, warrant: bytes, ref: ObjectRef, parameters: Parameters) -> HoldOutcome:
        """Keep the object from removal until ``lift``, by the strongest means there is; doing it again is harmless.

        What is kept is verified to be ``ref``. The warrant must still be live when the place is told.

        Raises:
            WarrantRefused: See the guard; ``expired`` also if its time was over before the place was told.
            Conflict: Other content stands under this id.
            IntegrityError: What stands there is not what was put, or not alone.
        """
        ...

    def lift(self, warrant: bytes, ref: ObjectRef, parameters: Parameters) -> HoldOutcome:
        """End ``hold``; doing it again is harmless. As there, the warrant must be live when the place is told."""
        ...


# --- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFile:
    """A plaintext file that a job reads, and the digest that the warrant names for it."""

    path: Path
    digest_hex: str


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
class SandboxReport:
    """How a job was confined, for its attestation.

    Attributes:
        kind: ``bubblewrap``, or ``none`` (then only code shipped with the platform ran).
        checks: Probe name to what was found (``"network": "unreachable"``).
        notes: Plain sentences: what this did not confine.
    """

    kind: str
    checks: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


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
        """Return the devices that jobs may be given here; empty where there are none, or they cannot be told."""
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


# --- checks ----------------------------------------------------------------------------------------------------------


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


# --- registry --------------------------------------------------------------------------------------------------------

MODEL_FILES = ("architecture.json", "model.safetensors")
"""The files of a model: a declared architecture and weights that cannot execute. Nothing else."""

SIGNATURE_FILE = "model.sig"
"""The OpenSSF Model Signing bundle beside them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelVersionRef:
    """One version of a tenant's model.

    Attributes:
        tenant: Owner.
        version: ``northbank/credit-risk@1``; begins with the tenant.
        digests: File name of ``MODEL_FILES`` to SHA-256 in hex: what was trained, checked and approved.
    """

    tenant: str
    version: str
    digests: Mapping[str, str]

    def __post_init__(self) -> None:
        match = _VERSION.match(self.version)
        if match is None or match[1] != self.tenant:
            raise InputRefused("not a model version of this tenant", code="input.version")
        if sorted(self.digests) != sorted(MODEL_FILES):
            raise InputRefused(f"a model version has exactly the files {', '.join(MODEL_FILES)}", code="input.files")
        for digest_hex in self.digests.values():
            check_digest_hex(digest_hex)

    @property
    def model(self) -> str:
        """Ref of the model (``northbank/credit-risk``)."""
        return self.version.rpartition("@")[0]

    @property
    def number(self) -> int:
        """The version's number."""
        return int(self.version.rpartition("@")[2])

    @property
    def model_digest_hex(self) -> str:
        """SHA-256 over the canonical JSON of ``digests``: what this content of the version is known by."""
        return canonical.digest_hex(dict(self.digests))

    def object_id(self, file: str) -> str:
        """Under which object id ``file`` of this content is stored."""
        return f"{self.version}/{self.model_digest_hex[:32]}/{file}"

    def resources(self) -> dict[str, str]:
        """What a warrant must name: the version, each file's digest, and each object that holds one."""
        named = {"version": self.version}
        named |= {f"digest:{name}": digest_hex for name, digest_hex in self.digests.items()}
        return named | {f"object:{name}": self.object_id(name) for name in (*MODEL_FILES, SIGNATURE_FILE)}


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisteredVersion:
    """A version as the registry holds it.

    Attributes:
        version: Its ref.
        files: File name to {digest_hex, size_bytes}, the signature included.
        model_digest_hex: As ``ModelVersionRef.model_digest_hex``.
        key_id: Key that signed the model.
        registered_at_ms: When.
        stage: ``none``, ``staging``, ``prod``, ``retired`` or ``deleted``.
    """

    version: str
    files: Mapping[str, Mapping[str, Any]]
    model_digest_hex: str
    key_id: str
    registered_at_ms: int
    stage: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StageOutcome:
    """What a change of stage did.

    Attributes:
        stage: Where the version stands now.
        before: Where it stood.
        replaced: The version of the same model that held this stage until now, and stands at ``none`` from now on.
    """

    stage: str
    before: str
    replaced: str | None


class ModelRegistry(Protocol):
    """Adapter ``local-registry`` and its peers; operations ``registry.register|read|promote|retire|delete|hold|lift``."""

    def register(
        self, warrant: bytes, ref: ModelVersionRef, directory: Path, parameters: Parameters
    ) -> RegisteredVersion:
        """Inspect, sign and store the files in ``directory`` as ``ref``.

        A version keeps its content, with one exception that must have been decided: while it stands at ``none``,
        ``parameters["replaces"]`` may name the ``model_digest_hex`` of the content that this one takes the place of.

        Raises:
            WarrantRefused: See the guard.
            InputRefused: A file is not what it must be (a pickle however disguised, another digest, an extra file).
            Conflict: The version exists with other content.
        """
        ...

    def read(self, warrant: bytes, ref: ModelVersionRef, target_dir: Path, parameters: Parameters) -> RegisteredVersion:
        """Write the verified files and ``model.sig`` into ``target_dir`` (must not exist); the signature is verified too."""
        ...

    def promote(self, warrant: bytes, ref: ModelVersionRef, parameters: Parameters) -> StageOutcome:
        """Move the version to ``parameters["stage"]`` (``staging`` or ``prod``)."""
        ...

    def retire(self, warrant: bytes, ref: ModelVersionRef, parameters: Parameters) -> StageOutcome:
        """Move the version to ``retired``; it stays readable."""
        ...

    def delete(self, warrant: bytes, ref: ModelVersionRef, parameters: Parameters) -> StageOutcome:
        """Remove the version's files durably; its manifest stays as a tombstone and the number is never reused."""
        ...

    def hold(self, warrant: bytes, ref: ModelVersionRef, parameters: Parameters) -> HoldOutcome:
        """Keep the version's files and its manifest from removal until ``lift``; doing it again is harmless."""
        ...

    def lift(self, warrant: bytes, ref: ModelVersionRef, parameters: Parameters) -> HoldOutcome:
        """End ``hold``; doing it again is harmless."""
        ...

    def moved(self, tenant: str, version: str, operation_id: str, step: str) -> StageOutcome | None:
        """Tell whether a promotion or retirement was done, by its operation and step (no warrant: nothing is touched).

        It is asked where no warrant can be had any more for an attempt whose end nobody saw.

        Returns:
            What it gave; None if it was not done.
        """
        ...

    def manifest(self, tenant: str, version: str) -> RegisteredVersion | None:
        """Return what is public of a version of ``tenant`` (no warrant: digests and stage, no content)."""
        ...


# --- serving ---------------------------------------------------------------------------------------------------------

REFERENCE_FILE = "reference.json"
"""The training reference beside a deployed model: what drift is measured against. See ``licet_adapters.serving.reference``."""

_ENDPOINT = re.compile(r"([a-z][a-z0-9-]{1,38}[a-z0-9])/([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)\Z")
_WHOLE_PERCENT = 100
_MAX_WEIGHTED = 16


def check_endpoint(endpoint: str, tenant: str) -> str:
    """Return ``endpoint`` if it is the ref of an endpoint of ``tenant`` (``northbank/credit``).

    Raises:
        InputRefused: It is not.
    """
    match = _ENDPOINT.match(endpoint)
    if match is None or match[1] != check_tenant(tenant):
        raise InputRefused("not an endpoint of this tenant", code="input.endpoint")
    return endpoint


def check_version(version: str, tenant: str) -> str:
    """Return ``version`` if it is the ref of a model version of ``tenant`` (``northbank/credit-risk@2``).

    Raises:
        InputRefused: It is not.
    """
    match = _VERSION.match(version)
    if match is None or match[1] != check_tenant(tenant):
        raise InputRefused("not a model version of this tenant", code="input.version")
    return version


def version_number(version: str) -> int:
    """The number in the ref of a model version.

    Raises:
        InputRefused: It is not such a ref.
    """
    match = _VERSION.match(version)
    if match is None:
        raise InputRefused("not a model version", code="input.version")
    return int(match[3])


MAX_CAUSE_CHARS = 200
"""Of any one text in what is told of a change of traffic."""


def check_weights(weights: object) -> dict[str, int]:
    """Return ``weights`` if they divide an endpoint's traffic: version numbers as text to whole percent, 100 in sum.

    Raises:
        InputRefused: They do not.
    """
    if not isinstance(weights, Mapping) or not 1 <= len(weights) <= _MAX_WEIGHTED:
        raise InputRefused(f"weights name 1 to {_MAX_WEIGHTED} versions", code="input.weights")
    for number, percent in weights.items():
        if not isinstance(number, str) or not re.fullmatch(r"[1-9][0-9]{0,8}", number):
            raise InputRefused("weights go by version number, as text", code="input.weights")
        if type(percent) is not int or not 0 <= percent <= _WHOLE_PERCENT:
            raise InputRefused("a weight is a whole percentage, 0 to 100", code="input.weights")
    if sum(weights.values()) != _WHOLE_PERCENT:
        raise InputRefused("the weights do not add up to 100", code="input.weights")
    return dict(weights)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeploymentJob:
    """One attempt at deploying a model version on an endpoint.

    Attributes:
        tenant: Owner of endpoint and model.
        endpoint: Ref of the endpoint (``northbank/credit``).
        operation_id: The accepted operation.
        step: Its step.
        attempt: 1, 2, ...
        version: Ref of the model version (``northbank/credit-risk@2``).
        parameters: The operation's: strategy, steps, fallback, replicas, batch, bounds and alarms, as decided; the
            members ``endpoint`` and ``version`` repeat those above. See ``licet_adapters.serving.plan``.
        model: ``model.safetensors`` and ``architecture.json`` by name, and perhaps ``reference.json``.
    """

    tenant: str
    endpoint: str
    operation_id: str
    step: str
    attempt: int
    version: str
    parameters: Parameters
    model: Mapping[str, InputFile]

    def __post_init__(self) -> None:
        check_endpoint(self.endpoint, self.tenant)
        check_version(self.version, self.tenant)
        if (self.parameters.get("endpoint"), self.parameters.get("version")) != (self.endpoint, self.version):
            raise InputRefused("the operation's parameters name another endpoint or version", code="input.parameters")
        if set(self.model) - {REFERENCE_FILE} != set(MODEL_FILES):
            raise InputRefused(
                f"a deployment has exactly the files {', '.join(MODEL_FILES)} and perhaps {REFERENCE_FILE}",
                code="input.files",
            )

    @property
    def number(self) -> int:
        """The version's number."""
        return version_number(self.version)

    def resources(self) -> dict[str, str]:
        """What the warrant must name: endpoint and version, and every file by digest."""
        files = {f"model:{name}": check_digest_hex(file.digest_hex) for name, file in self.model.items()}
        return {"endpoint": self.endpoint, "version": self.version} | files


@dataclass(frozen=True, kw_only=True, slots=True)
class TrafficChange:
    """One attempt at changing an endpoint's traffic, or at retiring it.

    Attributes:
        tenant: Owner of the endpoint.
        endpoint: Its ref.
        operation_id: The accepted operation.
        step: Its step.
        attempt: 1, 2, ...
        parameters: The operation's; ``endpoint`` repeats the one above. To shift: ``weights`` and ``shadow``.
    """

    tenant: str
    endpoint: str
    operation_id: str
    step: str
    attempt: int
    parameters: Parameters

    def __post_init__(self) -> None:
        check_endpoint(self.endpoint, self.tenant)
        if self.parameters.get("endpoint") != self.endpoint:
            raise InputRefused("the operation's parameters name another endpoint", code="input.parameters")

    @property
    def weights(self) -> dict[str, int]:
        """How the traffic is to be divided, as decided."""
        return check_weights(self.parameters.get("weights"))

    @property
    def shadow(self) -> str:
        """Number of the version that is to be given copies of requests, as text; empty for none."""
        shadow = self.parameters.get("shadow", "")
        if not isinstance(shadow, str) or (shadow and not re.fullmatch(r"[1-9][0-9]{0,8}", shadow)):
            raise InputRefused("`shadow` is a version number as text, or empty", code="input.shadow")
        return shadow

    def resources(self) -> dict[str, str]:
        """What the warrant must name: the endpoint."""
        return {"endpoint": self.endpoint}


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingOutcome:
    """How an endpoint stands after a deployment or a change.

    Attributes:
        weights: Version number, as text, to whole percent; empty after a retirement.
        shadow: Number of the version that is given copies, as text; empty for none.
        replicas: Version number, as text, to how many replicas stand ready.
        sandbox: How the replicas are confined.
        digests: ``code`` and ``environment``, and of a deployment ``reference``, what live data is compared with: SHA-256 in hex.
    """

    weights: Mapping[str, int]
    shadow: str
    replicas: Mapping[str, int]
    sandbox: SandboxReport
    digests: Mapping[str, str]


class ServingRuntime(Protocol):
    """Adapter ``local-serving`` and its peers; operations ``serving.deploy``, ``serving.shift``, ``serving.retire``.

    An invocation is admitted under a session warrant of its own (``serving.invoke``), by whatever takes the request.
    """

    def deploy(self, warrant: bytes, job: DeploymentJob) -> ServingOutcome:
        """Start the version's replicas and begin to give it traffic as ``job.parameters`` say; return when both stand.

        What follows by itself (further steps of a canary, a return to the fallback on an alarm) is in the parameters, so
        this one warrant permits it.

        Raises:
            WarrantRefused: See the guard. Nothing was done.
            InputRefused: A file is not what its digest names, or the parameters are not understood.
            Conflict: This number stands deployed with other content, the fallback is not deployed, or a newer attempt began.
            JobFailed: The model server does not come up.
            Unavailable: No sandbox, or the runtime cannot be reached now.
        """
        ...

    def shift(self, warrant: bytes, change: TrafficChange) -> ServingOutcome:
        """Divide the traffic as ``change.parameters`` say, now; an advance that was under way ends.

        Requests in flight end on the version they began on.

        Raises:
            WarrantRefused: See the guard. Nothing was done.
            InputRefused: The weights or the shadow are not understood.
            NotFound: No such endpoint.
            Conflict: A version that is to have traffic is not deployed.
        """
        ...

    def retire(self, warrant: bytes, change: TrafficChange) -> ServingOutcome:
        """Take no more requests, end those in flight, and stop every replica of the endpoint.

        Raises:
            WarrantRefused: See the guard. Nothing was done.
            NotFound: No such endpoint.
        """
        ...

    def stands(self, tenant: str, endpoint: str, operation_id: str, step: str) -> ServingOutcome | None:
        """Tell whether a deployment or a change was done, by its operation and step (no warrant: nothing is touched).

        It is asked where no warrant can be had any more for an attempt whose end nobody saw. What is under way is waited for.

        Returns:
            How the endpoint stood then, or stands; None if it was not done.

        Raises:
            Unavailable: The runtime cannot be reached now.
        """
        ...

    def status(self, tenant: str, endpoint: str) -> Mapping[str, Any]:
        """Return how the endpoint stands, as canonical JSON: traffic, replicas, figures (telemetry: no warrant).

        Raises:
            NotFound: No such endpoint of this tenant.
        """
        ...


# --- what adapters are given -----------------------------------------------------------------------------------------


class DataKey(Protocol):
    """A fresh object key: ``key`` (32 bytes, never stored) and ``wrapped`` (stored beside what it seals)."""

    @property
    def key(self) -> bytes:
        """The key itself."""
        ...

    @property
    def wrapped(self) -> bytes:
        """The key as only the signer can open it."""
        ...


# --- notifications ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """One try at telling one webhook of one event.

    Attributes:
        tenant: Whose webhook.
        secrets: Identifiers of the secrets that it is signed with, the newest first.
        url: Where it is.
        unsafe_http: Whether plain http to this machine is meant.
        message: Identifier of the message, the same at every try.
        body: What is signed and sent, the same bytes at every try.
    """

    tenant: str
    secrets: Sequence[str]
    url: str
    unsafe_http: bool
    message: str
    body: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class NoticeOutcome:
    """What came of a try.

    Attributes:
        delivered: The receiver took it.
        status: HTTP status; 0 without an answer.
        reason: In a few words, without anything the receiver sent.
        is_final: Not delivered, and no further try makes sense.
        retry_after_s: How long the receiver asked to be left alone.
    """

    delivered: bool
    status: int
    reason: str
    is_final: bool = False
    retry_after_s: int = 0


class Notifier(Protocol):
    """Adapter ``standard-webhooks`` and its peers.

    NOTE: it takes no warrant. A message touches no data, key, model or traffic; that a webhook is told is decided when it is
    added, and what it is told is written with the decision it tells of. The signer signs the message, so the adapter holds
    no secret.
    """

    def send(self, notice: Notice) -> NoticeOutcome:
        """Try once. What goes wrong at the receiver or on the way is an outcome.

        Raises:
            Unavailable: The signer cannot be had.
        """
        ...


# --- change tickets --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class TicketFact:
    """A change ticket as another system tells of it.

    Attributes:
        state: Its state in that system's words.
        approved: Whether the change is approved.
        subjects: References of the models or versions that it is about.
        as_of_ms: When it was so.
        fresh_until_ms: Until when that may be relied on.
    """

    state: str
    approved: bool
    subjects: Sequence[str]
    as_of_ms: int
    fresh_until_ms: int


class Tickets(Protocol):
    """Adapters ``file-tickets``, ``http-tickets`` and their peers; operation ``tickets.fetch``."""

    def fetch(self, warrant: bytes, tenant: str, ticket: str, parameters: Parameters) -> TicketFact:
        """Fetch one ticket.

        Raises:
            WarrantRefused: See the guard.
            NotFound: There is no such ticket.
            InputRefused: What was found is no ticket of the form expected, is another, or is too old.
            Unavailable: It cannot be fetched now.
        """
        ...


class WebhookSigner(Protocol):
    """Who signs messages to webhooks: the signer."""

    def sign_webhook(self, tenant: str, webhook: str, message: str, timestamp_s: int, body: bytes) -> str:
        """Return the value of the header ``webhook-signature``."""
        ...


class KeySource(Protocol):
    """Where object keys come from: the signer. It checks the warrant too, before it gives any.

    Every method raises ``licet_attestations.errors.SignerError``, or ``VerificationError`` for a bad warrant.
    """

    def new_data_key(self, tenant: str, object_id: str, warrant: bytes) -> DataKey:
        """Make a key for one object."""
        ...

    def unwrap(self, tenant: str, object_id: str, wrapped: bytes, warrant: bytes) -> bytes:
        """Return the key of one object."""
        ...

    def object_tag(self, tenant: str, object_id: str, wrapped: bytes, digest_hex: str, warrant: bytes) -> str:
        """Return the tag (hex) that an object's header bears if its content has that digest; no key is told."""
        ...

    def object_name(self, tenant: str, digest_hex: str, warrant: bytes) -> str:
        """Return the name (hex) under which to store what ``digest_hex`` identifies; it reveals nothing of it."""
        ...


class ModelSigner(Protocol):
    """Who signs models: the signer."""

    def sign_model(self, tenant: str, version: str, files: Mapping[str, str], warrant: bytes) -> bytes:
        """Return the OpenSSF Model Signing bundle over ``files`` (name to SHA-256 hex), the model named ``version``."""
        ...


class SignerPort(KeySource, ModelSigner, WebhookSigner, Protocol):
    """What of the signer an adapter may use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterContext:
    """All that an adapter is constructed with; an entry point's class takes it as its one argument.

    Attributes:
        data_dir: Where this adapter keeps its things; its own.
        trust_root: Public keys to verify warrants and signatures with.
        signer: Keys and model signatures, under warrant.
        clock: Time.
        run_dir: Where the sockets of this installation's processes are; for an adapter whose substance is another process.
        options: What the operator configured for adapters, by name of the setting (``s3_bucket``); read-only.
    """

    data_dir: Path
    trust_root: TrustRoot
    signer: SignerPort
    clock: Clock
    run_dir: Path | None = None
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def option(self, name: str, default: str = "") -> str:
        """What was configured under ``name``; ``default`` if nothing was."""
        return self.options.get(name, "") or default
