"""The port of model registries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from licet_adapters.errors import InputRefused
from licet_adapters.ports.base import MODEL_FILES, Parameters, check_digest_hex, check_version
from licet_attestations import canonical

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from licet_adapters.ports.objects import HoldOutcome


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
        check_version(self.version, self.tenant)
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
