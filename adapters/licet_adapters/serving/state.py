"""What the router keeps over its death: endpoints, their traffic, and what is still to be told.

Rules kept here:

- A file is replaced whole and durably; what is on the disk is a state that was in force, with its untold events.
- The guard of a version (its rollout: alarms, fallback, operation) is kept as long as the version stands, not only that of
  the newest.
- An event has a serial number of its endpoint, given once; told again after a crash, it is known by it.
- Model files of live deployments lie here in the clear, 0700, verified against their digests at every start of a
  replica, and are removed with the deployment.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from licet_adapters.errors import IntegrityError, Unavailable
from licet_adapters.ports import InputFile, check_endpoint, check_tenant
from licet_adapters.sandbox_outputs import stage_input
from licet_adapters.serving.rollout import Rollout
from licet_attestations import canonical
from licet_attestations.errors import LicetAttestationError
from licet_attestations.signer.files import make_private_directory, replace_durably, sweep, sync_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_STATE = "state.json"
_VERSION = 2
_UNGUARDED_VERSION = 1  # It knew the newest deployment's rollout only.
_SUBJECT = ("version", "model_digest_hex")


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployed:
    """One version that stands on an endpoint.

    Attributes:
        number: Of the version.
        operation_id: What deployed it.
        parameters: As they were decided.
        digests: File name to SHA-256 in hex.
        deployed_at_ms: When.
    """

    number: int
    operation_id: str
    parameters: Mapping[str, Any]
    digests: Mapping[str, str]
    deployed_at_ms: int

    @property
    def folder_name(self) -> str:
        """Where its files lie, below the endpoint's ``models``."""
        return f"{self.number}-{canonical.digest_hex(dict(self.digests))[:16]}"


@dataclass(kw_only=True, slots=True)
class EndpointState:
    """An endpoint as it is in force.

    Attributes:
        tenant: Owner.
        endpoint: Its ref.
        deployed: Number to version.
        weights: Number to percent; 100 in sum, or empty once retired.
        shadow: Number of the version that is given copies; 0: none.
        rollout: Where the newest deployment stands.
        guards: Number to where the deployment stands, for the other versions.
        serial: Number of the last event.
        outbox: Events that were not told yet, oldest first.
    """

    tenant: str
    endpoint: str
    deployed: dict[int, Deployed] = field(default_factory=dict)
    weights: dict[int, int] = field(default_factory=dict)
    shadow: int = 0
    rollout: Rollout | None = None
    guards: dict[int, Rollout] = field(default_factory=dict)
    serial: int = 0
    outbox: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_retired(self) -> bool:
        """Whether it takes no requests any more."""
        return not self.weights

    def weights_text(self) -> dict[str, int]:
        """The weights by number as text, as they travel."""
        return {str(number): percent for number, percent in sorted(self.weights.items())}

    def shadow_text(self) -> str:
        """The shadow's number as text; empty for none."""
        return str(self.shadow) if self.shadow else ""

    def deployed_by(self, operation_id: str) -> Deployed | None:
        """What an operation deployed, if it stands."""
        return next((one for one in self.deployed.values() if one.operation_id == operation_id), None)

    # --- guards --------------------------------------------------------------------------------------------------------

    def rollout_of(self, number: int) -> Rollout | None:
        """Where the deployment of a version stands; None if it is not known."""
        if self.rollout is not None and self.rollout.number == number:
            return self.rollout
        return self.guards.get(number)

    def on_guard(self) -> list[Rollout]:
        """Those whose alarms are watched, the newest first: their versions have traffic, or copies of it."""
        newest = [] if self.rollout is None else [self.rollout]
        at_work = {*self.weights, self.shadow}
        return [
            one
            for one in newest + [guard for _, guard in sorted(self.guards.items())]
            if one.number in at_work and one.is_guarded
        ]

    def begin(self, rollout: Rollout, deployed: Deployed, *, is_shadow: bool) -> None:
        """Have a deployment begin, and forget what is needed no more.

        What has traffic is kept, what the newest returns to, and what these return to.
        """
        before = [*self.guards.values()] + ([] if self.rollout is None else [self.rollout])
        guards = {one.number: one.by_hand() for one in before if one.number != rollout.number}
        self.rollout = rollout
        self.weights = rollout.weights or self.weights
        self.shadow = rollout.number if is_shadow else 0
        self.deployed[rollout.number] = deployed
        kept = {rollout.number, rollout.fallback, *self.weights}
        kept |= {guards[number].fallback for number in kept & guards.keys() if guards[number].is_guarded}
        self.deployed = {number: one for number, one in self.deployed.items() if number in kept}
        self.guards = {
            number: one if one.fallback in kept else one.returning_to(0)
            for number, one in guards.items()
            if number in kept
        }

    def alarm(self, number: int) -> Rollout:
        """Have the alarm of a version end its deployment; returns where that stands now."""
        seen = self.rollout_of(number)
        assert seen is not None  # noqa: S101  # Only what has a guard can raise an alarm; told to the type checker.
        ended = seen.alarmed(serves=number in self.weights)
        self._put(ended)
        if ended.state == "rolled-back":
            if number in self.weights:
                self.weights = {ended.fallback: 100}
                newest = self.rollout
                if newest is not None and newest.steps:
                    # Its next step would give traffic back to what has just lost it.
                    self._put(newest.by_hand())
            self._return_past(ended)
        if self.shadow == number or self.shadow in self.weights:
            self.shadow = 0
        return ended

    def _put(self, rollout: Rollout) -> None:
        if self.rollout is not None and self.rollout.number == rollout.number:
            self.rollout = rollout
        else:
            self.guards[rollout.number] = rollout

    def _return_past(self, ended: Rollout) -> None:
        # Nothing returns to a version whose own alarm has fired.
        for one in [*self.guards.values()] + ([] if self.rollout is None else [self.rollout]):
            if one.fallback == ended.number:
                self._put(one.returning_to(0 if one.number == ended.fallback else ended.fallback))

    # --- events --------------------------------------------------------------------------------------------------------

    def add_event(
        self,
        kind: str,
        operation_id: str,
        at_ms: int,
        *,
        cause: Mapping[str, Any] | None = None,
        about: Deployed | None = None,
    ) -> None:
        """Note that something happened, to be told; ``about`` names the version that a statement would be about."""
        self.serial += 1
        subject = {} if about is None else {"subject": {name: about.parameters[name] for name in _SUBJECT}}
        self.outbox.append(
            subject
            | {
                "kind": kind,
                "operation_id": operation_id,
                "weights": self.weights_text(),
                "shadow": self.shadow_text(),
                "cause": dict(cause or {}),
                "at_ms": at_ms,
                "serial": self.serial,
            }
        )

    def copy(self) -> EndpointState:
        """A copy whose members can be changed."""
        return replace(
            self,
            deployed=dict(self.deployed),
            weights=dict(self.weights),
            guards=dict(self.guards),
            outbox=[dict(event) for event in self.outbox],
        )

    def to_bytes(self) -> bytes:
        """As canonical JSON."""
        return canonical.dumps(
            {
                "v": _VERSION,
                "tenant": self.tenant,
                "endpoint": self.endpoint,
                "deployed": [
                    {
                        "number": one.number,
                        "operation_id": one.operation_id,
                        "parameters": dict(one.parameters),
                        "digests": dict(one.digests),
                        "deployed_at_ms": one.deployed_at_ms,
                    }
                    for one in self.deployed.values()
                ],
                "weights": self.weights_text(),
                "shadow": self.shadow,
                "rollout": None if self.rollout is None else _rollout_to_json(self.rollout),
                "guards": [_rollout_to_json(one) for one in self.guards.values()],
                "serial": self.serial,
                "outbox": self.outbox,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> EndpointState:
        """The reverse of ``to_bytes``.

        Raises:
            IntegrityError: It is not what was written.
        """
        try:
            value = canonical.loads(data)
            if value["v"] not in {_UNGUARDED_VERSION, _VERSION}:
                raise IntegrityError("the state of an endpoint is of another version of this program")
            rollout = value["rollout"]
            guards = [_rollout_from_json(one) for one in (value["guards"] if value["v"] == _VERSION else [])]
            return cls(
                tenant=value["tenant"],
                endpoint=check_endpoint(value["endpoint"], value["tenant"]),
                deployed={one["number"]: Deployed(**one) for one in value["deployed"]},
                weights={int(number): percent for number, percent in value["weights"].items()},
                shadow=value["shadow"],
                rollout=None if rollout is None else _rollout_from_json(rollout),
                guards={one.number: one for one in guards},
                serial=value["serial"],
                outbox=value["outbox"],
            )
        except (LicetAttestationError, KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"the state of an endpoint cannot be read: {error}") from error


def _rollout_to_json(rollout: Rollout) -> dict[str, Any]:
    return asdict(rollout) | {"steps": list(rollout.steps)}


def _rollout_from_json(value: dict[str, Any]) -> Rollout:
    return Rollout(**(value | {"steps": tuple(value["steps"])}))


class EndpointStore:
    """The folders of endpoints.

    Args:
        directory: Below which they are; its owner is this process alone.
    """

    def __init__(self, directory: Path) -> None:
        self._dir = directory / "endpoints"
        make_private_directory(self._dir)

    def folder(self, endpoint: str) -> Path:
        """The folder of an endpoint, made if it is missing."""
        tenant, _, name = endpoint.partition("/")
        check_endpoint(endpoint, check_tenant(tenant))
        folder = self._dir / tenant / name
        make_private_directory(folder)
        return folder

    def load_all(self) -> Iterator[EndpointState]:
        """Every endpoint that was saved; what crashed writers left is removed.

        Raises:
            IntegrityError: One cannot be read: the router does not start on a guess.
        """
        for path in sorted(self._dir.glob(f"*/*/{_STATE}")):
            sweep(path.parent)
            yield EndpointState.from_bytes(path.read_bytes())

    def save(self, endpoint: str, data: bytes) -> None:
        """Replace an endpoint's state, durably.

        Raises:
            Unavailable: The disk does not take it.
        """
        try:
            replace_durably(self.folder(endpoint) / _STATE, data)
        except OSError as error:
            raise Unavailable(f"the state of the endpoint cannot be written: {error.strerror}") from error

    def place_model(self, endpoint: str, deployed: Deployed, files: Mapping[str, InputFile]) -> None:
        """Copy a version's files here, verifying their digests; they appear all at once.

        Raises:
            InputRefused: A file is not what its digest names.
            Unavailable: The disk does not take them.
        """
        models = self.folder(endpoint) / "models"
        target = models / deployed.folder_name
        incoming = models / f".incoming-{deployed.folder_name}"
        try:
            if target.is_dir():  # Of an attempt before; verified again whenever a replica starts.
                return
            shutil.rmtree(incoming, ignore_errors=True)
            make_private_directory(incoming)
            for name, file in files.items():
                stage_input(file, incoming / name)
            incoming.rename(target)
            sync_directory(models)
        except OSError as error:
            raise Unavailable(f"the model's files cannot be stored: {error.strerror}") from error

    def model_files(self, endpoint: str, deployed: Deployed) -> dict[str, InputFile]:
        """A version's files with the digests they must have."""
        folder = self.folder(endpoint) / "models" / deployed.folder_name
        return {name: InputFile(path=folder / name, digest_hex=hexed) for name, hexed in deployed.digests.items()}

    def keep_models(self, endpoint: str, deployed: Mapping[int, Deployed]) -> None:
        """Remove the files of all other versions."""
        models = self.folder(endpoint) / "models"
        kept = {one.folder_name for one in deployed.values()}
        if models.is_dir():
            for folder in models.iterdir():
                if folder.name not in kept:
                    shutil.rmtree(folder, ignore_errors=True)
