"""One accepted operation while the worker performs it: the only way from a decision to an effect.

Rules kept here:

- No warrant, no run (law 1): whatever touches data, keys, compute or the registry goes through `step` or `effect`, which
  have a warrant made for exactly that, and log it, before the adapter is called.
- A recorded step (`step`) gives its first outcome again after a crash; an unrecorded one (`effect`) is done again and
  must be safe to do again.
- What is decrypted lies in folders of this operation alone, and is gone when they close.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from licet_adapters.ports import (
    InputFile,
    Metric,
    ModelChecker,
    ModelRegistry,
    Notifier,
    ObjectRef,
    ObjectStore,
    ServingRuntime,
    Tickets,
    TrainingRunner,
)
from licet_attestations import rpc
from licet_attestations.signer.client import SignerClient
from licet_attestations.statement import Statement
from licet_engine.domain.errors import LicetError, Unavailable
from licet_engine.domain.refs import now_ms
from licet_engine.lifecycle.devices import devices_of
from licet_engine.lifecycle.examiner import Examined, Examiner, document_of
from licet_engine.lifecycle.spool import Spool
from licet_engine.lifecycle.tabular import Tables

if TYPE_CHECKING:
    from licet_engine.settings import Settings

_CHUNK_BYTES: Final = 1 << 20
_REPORT_EVERY_S: Final = 0.25
_MAX_REPORTED: Final = 200
_WAIT_PAUSE_S: Final = 1.0

Act = Callable[[bytes, int], dict[str, Any]]
"""Does one thing under a warrant, as the attempt of that number; returns canonical JSON."""

Stands = Callable[[], dict[str, Any] | None]
"""Tells what an act gave that was done before; None if it was not."""

Record = Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]]
"""Runs a named step of a workflow, or returns what it gave before."""


SUPERSEDED: Final = "superseded"
"""Code of the api's answer to an attempt that is not the newest one."""


class Stopped(LicetError):
    """The operation lost its lease: it was cancelled, or decided again and denied."""

    status = 409
    default_code = "refused"


class Door:
    """The internal door of the api, as the worker sees it.

    Args:
        socket: Where it listens.
        timeout_s: For one call.
        patience_s: How long to go on trying while the api is away.
    """

    def __init__(self, socket: Path, *, timeout_s: float = 30.0, patience_s: float = 60.0) -> None:
        self._socket = socket
        self._timeout_s = timeout_s
        self._patience_s = patience_s

    def call(self, method: str, **params: Any) -> Any:
        """Call a method; every one of them may be called again after a lost answer.

        Raises:
            RpcFault: The api refused, with its code.
            Unavailable: The api did not come back in time.
        """
        deadline_s = time.monotonic() + self._patience_s
        pause_s = 0.05
        while True:
            try:
                return rpc.call(self._socket, method, params, self._timeout_s)
            except rpc.RpcUnavailable as error:
                if time.monotonic() + pause_s > deadline_s:
                    raise Unavailable(f"the api does not answer {method}: {error}") from error
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """The adapters that the worker loaded, by the port they serve, and the names that warrants for two of them bear."""

    objects: ObjectStore
    objects_name: str
    registry: ModelRegistry
    registry_name: str
    training: TrainingRunner
    checks: ModelChecker
    serving: ServingRuntime
    tickets: Tickets | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What every deed uses, constructed once by the worker."""

    settings: Settings
    door: Door
    signer: SignerClient
    adapters: Adapters
    spool: Spool
    tables: Tables
    instance: str
    machine: str
    export: Callable[[Deed, bytes], dict[str, Any]]
    examiner: Examiner
    notifier: Notifier | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """Training and held-out rows of a dataset, as files."""

    train: InputFile
    held_out: InputFile
    record: Mapping[str, Any]


class Deed:
    """An accepted operation at work.

    Attributes:
        tenant: Whose.
        id: Its identifier.
        action: What was allowed.
        parameters: As they were decided on.
        asked: The body of the question, as it was sent.
        principal: On whose behalf.
        decision_id: The decision that accepted it.
        attempt: Number of this attempt.
        started_at_ms: When the first attempt was accepted.
    """

    def __init__(
        self,
        tools: Tools,
        tenant: str,
        operation: str,
        begun: Mapping[str, Any],
        record: Record,
        *,
        went_on: Callable[[], None],
    ) -> None:
        self._tools = tools
        self._record = record
        self._went_on = went_on
        self.tenant = tenant
        self.id = operation
        self.action: str = begun["action"]
        self.parameters: dict[str, Any] = begun["parameters"]
        self.asked: dict[str, Any] = begun.get("asked", {})
        self.principal: str = begun["principal"]
        self.decision_id: str = begun["decision"]
        self.attempt: int = begun["attempt"]
        self.started_at_ms: int = begun["created_at_ms"]
        self._renewed_at_s = time.monotonic()
        self._go_on = True
        self._lost = ""
        self._reported_at_s = 0.0
        self._unreported: list[dict[str, Any]] = []

    # --- what it may use -------------------------------------------------------------------------------------------

    @property
    def adapters(self) -> Adapters:
        """The adapters."""
        return self._tools.adapters

    @property
    def tickets_name(self) -> str:
        """Instance of the adapter that fetches change tickets."""
        return self._tools.settings.tickets

    @property
    def signer(self) -> SignerClient:
        """The signer."""
        return self._tools.signer

    @property
    def spool(self) -> Spool:
        """Uploads and artifacts."""
        return self._tools.spool

    @property
    def tables(self) -> Tables:
        """Reading and splitting of tables."""
        return self._tools.tables

    @property
    def instance(self) -> str:
        """Name of this installation."""
        return self._tools.instance

    @property
    def workdir(self) -> Path:
        """Folder that lasts over all attempts: checkpoints and outputs of jobs."""
        folder = self._tools.settings.worker_data / "work" / self.tenant / self.id
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def now_ms(self) -> int:
        """The time."""
        return now_ms()

    # --- warrants --------------------------------------------------------------------------------------------------

    def step(
        self,
        name: str,
        act: Act,
        *,
        adapter: str,
        operation: str,
        resources: Mapping[str, str],
        stands: Stands | None = None,
    ) -> dict[str, Any]:
        """Do something once, under a warrant: after a crash its outcome is told again.

        Args:
            name: Of the step, unique in the operation.
            act: What to do; called with the warrant and the attempt's number.
            adapter: Instance that acts.
            operation: What it does.
            resources: What it touches.
            stands: Asked where no warrant is given any more: what an attempt did whose end nobody saw, if it did. What stands is
                recorded as done, for a refusal in its place would not be true.
        """

        def do() -> dict[str, Any]:
            return self.effect(name, act, adapter=adapter, operation=operation, resources=resources)

        return self._record(name, do if stands is None else lambda: self.unless_it_stands(do, stands))

    def unless_it_stands(self, do: Callable[[], dict[str, Any]], stands: Stands) -> dict[str, Any]:
        """Do something; where no warrant is given for it any more, tell what an attempt did before, if it did."""
        try:
            return do()
        except rpc.RpcFault as refusal:
            done = stands() if refusal.code == Stopped.default_code else None
            if done is None:
                raise
            return done

    def effect(
        self, name: str, act: Act, *, adapter: str, operation: str, resources: Mapping[str, str]
    ) -> dict[str, Any]:
        """Do something under a warrant, in every attempt anew."""
        warrant = self.warrant(name, adapter=adapter, operation=operation, resources=resources)
        return act(warrant, self.attempt)

    def warrant(self, name: str, *, adapter: str, operation: str, resources: Mapping[str, str]) -> bytes:
        """Have a warrant made, and logged, for one attempt at one step."""
        told = self._tools.door.call("license", tenant=self.tenant, operation=self.id, attempt=self.attempt, step=name)
        warrant = self.signer.mint(
            tenant=self.tenant,
            leaf=told["leaf"],
            leaf_index=told["leaf_index"],
            salt=bytes.fromhex(told["salt"]),
            record=told["record"],
            proof=[bytes.fromhex(part) for part in told["proof"]],
            checkpoint=told["checkpoint"],
            adapter=adapter,
            operation=operation,
            step=name,
            attempt=self.attempt,
            operation_id=self.id,
            resources=resources,
            parameters=self.parameters,
        )
        self._tools.door.call("attest", tenant=self.tenant, operation=self.id, envelope=warrant.decode())
        return warrant

    # --- attestations ----------------------------------------------------------------------------------------------

    def log_attestation(self, envelope: bytes) -> str:
        """Have a statement logged that was signed; return the digest under which it is known."""
        told = self._tools.door.call("attest", tenant=self.tenant, operation=self.id, envelope=envelope.decode())
        return str(told["digest"])

    def attest(self, statement: Statement) -> str:
        """Have a statement signed and logged; return the digest under which it is known."""
        names = "+".join(subject.name for subject in statement.subject)
        kind = str(statement.predicate.get("passedTests", "")) + str(statement.predicate.get("failedTests", ""))
        label = f"{statement.predicate_type}:{names}:{kind}"
        # Recorded first, with the time it states: signed again after a crash, it is the same statement, known already.
        stated = self._record(f"state:{label}", lambda: {"statement": statement.to_bytes().decode()})["statement"]

        def sign() -> dict[str, Any]:
            return {"digest": self.log_attestation(self.signer.attest(self.tenant, stated.encode()))}

        return str(self._record(f"attest:{label}", sign)["digest"])

    # --- leases and telemetry --------------------------------------------------------------------------------------

    def report(self, metric: Metric) -> None:
        """Pass a job's figures on, now and then; a job that has some is going on."""
        self._went_on()
        self._unreported.append({"step": metric.step, "epoch": metric.epoch, "values_micro": dict(metric.values_micro)})
        if time.monotonic() - self._reported_at_s >= _REPORT_EVERY_S or len(self._unreported) >= _MAX_REPORTED:
            self._flush()

    def went_on(self, done: int, count: int) -> None:
        """Tell how much of its work an operation has done.

        Raises:
            Superseded: A newer attempt began.
        """
        share = done * 1_000_000 // max(count, 1)
        self.report(Metric(step=done, epoch=0, values_micro={"done": share}))

    def _flush(self) -> None:
        if self._unreported:
            self._tools.door.call(
                "report", tenant=self.tenant, operation=self.id, attempt=self.attempt, metrics=self._unreported
            )
        self._unreported = []
        self._reported_at_s = time.monotonic()

    def should_stop(self) -> bool:
        """Whether the lease is lost; decides again when half of it is over."""
        if self._go_on and time.monotonic() - self._renewed_at_s > self._tools.settings.lease_s / 2:
            self._flush()
            told = self._tools.door.call("renew", tenant=self.tenant, operation=self.id, attempt=self.attempt)
            self._go_on, self._lost = told["go_on"], told["lost"]
            self._renewed_at_s = time.monotonic()
        return not self._go_on

    def lease_devices(self) -> tuple[str, ...]:
        """Lease the devices that the operation needs, and wait until they can be had; none for one that needs none.

        Raises:
            RpcFault: It was cancelled or denied, or the pool will never have so many.
        """
        while devices_of(self.parameters):
            devices = self._tools.door.call(
                "lease",
                tenant=self.tenant,
                operation=self.id,
                attempt=self.attempt,
                worker=self._tools.machine,
            )["devices"]
            if devices:
                return tuple(devices)
            time.sleep(_WAIT_PAUSE_S)
        return ()

    def stopped(self) -> LicetError:
        """The error with which a stopped attempt ends, and its operation too unless it can be begun again."""
        if self._lost:
            return Unavailable(f"{self.action} was stopped: it lost its {self._lost}, and must wait for them again")
        return Stopped(f"{self.action} was stopped: it was cancelled, or decided again and denied")

    # --- files -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def plaintext(self) -> Iterator[Path]:
        """A folder for what is decrypted; nothing of it is left when the block ends."""
        folder = self._tools.settings.worker_plain / f"{self.id}-{self.attempt}-{time.monotonic_ns()}"
        folder.mkdir(mode=0o700, parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def fetch(self, name: str, ref: ObjectRef, target: Path) -> None:
        """Decrypt an object into ``target``."""

        def get(warrant: bytes, _attempt: int) -> dict[str, Any]:
            self.adapters.objects.get(warrant, ref, target, self.parameters)
            return {}

        self.effect(name, get, adapter=self.adapters.objects_name, operation="objects.get", resources=ref.resources())

    def destroy(self, name: str, ref: ObjectRef) -> dict[str, Any]:
        """Delete an object, once, as the step of that name; tell whether it was there."""

        def delete(warrant: bytes, _attempt: int) -> dict[str, Any]:
            return {"was_there": self.adapters.objects.delete(warrant, ref, self.parameters)}

        return self.step(
            name, delete, adapter=self.adapters.objects_name, operation="objects.delete", resources=ref.resources()
        )

    def fetch_split(self, ref: ObjectRef, folder: Path, *, parameters: Mapping[str, Any]) -> Split:
        """Decrypt a dataset and divide it into training and held-out rows, always alike for the same parameters."""
        source = folder / "dataset.csv"
        self.fetch("fetch:dataset", ref, source)
        train, held_out, record = self.tables.split(source, folder, parameters)
        return Split(train=train, held_out=held_out, record=record)

    def forget_uploads(self) -> None:
        """Remove the uploads that this operation names: they were used, or never will be."""
        parts = [self.parameters, *self.parameters.get("files", {}).values()]
        for part in parts:
            if "upload" in part:
                self.spool.forget(self.tenant, part["upload"])

    def output_file(self, output: str, name: str) -> Path:
        """A file that a job made, in this operation's own folder."""
        return self.workdir / output / name

    def measure(self, path: Path) -> tuple[str, int]:
        """SHA-256 in hex, and size in bytes."""
        digest = hashlib.sha256()
        size = 0
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
        return digest.hexdigest(), size

    def copy(self, source: Path, target: Path) -> None:
        """Copy a file's bytes."""
        shutil.copyfile(source, target)
        target.chmod(0o600)

    def zip_folder(self, folder: Path, target: Path) -> None:
        """Put the files of a folder into one archive, uncompressed."""
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for path in sorted(folder.iterdir()):
                archive.write(path, path.name)

    def export_evidence(self, warrant: bytes) -> dict[str, Any]:
        """Write the evidence archive as this operation's artifact."""
        return self._tools.export(self, warrant)

    def examine_policies(self, warrant: bytes) -> Examined:
        """Examine the policy project that was sent with the question."""
        document = document_of(self.asked, self.parameters["project"])
        with self.plaintext() as folder:
            return self._tools.examiner.examine(
                warrant, tenant=self.tenant, parameters=self.parameters, document=document, folder=folder
            )

    def clean_up(self) -> None:
        """Remove the folder that lasted over the attempts."""
        shutil.rmtree(self.workdir, ignore_errors=True)
