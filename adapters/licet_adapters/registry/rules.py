"""A model registry over any place for sealed objects and any place for documents: the rules stand here, once.

Of each model there are documents (``<n>``: what version n is, digests and sizes; ``stages``: where each version stands)
and, sealed for the tenant, the files of its versions with their signature.

Rules kept here:

- Nothing is stored that the gate in ``modelfiles`` did not pass, and exactly the digests that the warrant names.
- The manifest is written last and whole: before it there is no version, after it all of the version is there.
- What is read is verified against the warrant's digests and the model's signature under a pinned key, not against the
  manifest alone: the place is not trusted.
- At most one version of a model holds ``staging``, and one ``prod``. A version that is retired or deleted does not come
  back; a number is never used again.
- A document is written only over what was read (compare and swap); who was overtaken tries again.
- Every effect is recorded in the ledger: a retry with a new warrant returns the first outcome.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import shutil
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from licet_adapters.effects import EffectLedger
from licet_adapters.errors import AdapterError, Conflict, InputRefused, IntegrityError, NotFound, Unavailable
from licet_adapters.guard import WarrantGuard
from licet_adapters.modelfiles import inspect_model_files
from licet_adapters.objects.store import Blobs, SealedObjects, signer_errors
from licet_adapters.ports import (
    MODEL_FILES,
    SIGNATURE_FILE,
    AdapterContext,
    HoldOutcome,
    ModelVersionRef,
    ObjectRef,
    Parameters,
    RegisteredVersion,
    StageOutcome,
)
from licet_attestations import canonical, oms
from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.signer.files import TEMPORARY_PREFIX, sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from licet_attestations.warrant import Warrant

_STAGES = frozenset({"staging", "prod"})
_FINAL = frozenset({"retired", "deleted"})
_MANIFEST_FIELDS = frozenset({"v", "version", "files", "model_digest_hex", "key_id", "registered_at_ms"})
_FILES = (*MODEL_FILES, SIGNATURE_FILE)
STAGES_DOCUMENT = "stages"
_MAX_SIGNATURE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Document:
    """A document as it was read.

    Attributes:
        data: Its bytes.
        token: What the place needs to know that nothing was written since.
    """

    data: bytes
    token: str = ""


class Documents(Protocol):
    """Where the documents of models lie. ``model`` is its ref (``northbank/credit-risk``), checked when the ref was made."""

    def read(self, model: str, name: str) -> Document | None:
        """Return a document, if there is one."""
        ...

    def write(self, model: str, name: str, data: bytes, before: Document | None) -> None:
        """Write a document whole and durably over ``before``, which is what was read (None: nothing was there).

        Raises:
            Conflict: Something was written since (code ``conflict.busy``).
        """
        ...

    def settle(self, model: str, name: str) -> None:
        """Have a document that never changes any more kept for as long as the place is configured to keep what it holds."""
        ...

    def hold(self, model: str, name: str, still_permitted: Callable[[], None]) -> HoldOutcome:
        """Keep a document, as it stands, from removal until ``lift``; see ``Blobs.hold``."""
        ...

    def lift(self, model: str, name: str, still_permitted: Callable[[], None]) -> HoldOutcome:
        """End ``hold``."""
        ...

    def locked(self, model: str) -> AbstractContextManager[None]:
        """Hold the model, across the processes of this instance."""
        ...


class SealedRegistry:
    """A registry; see ``ModelRegistry``.

    Args:
        name: Instance name that warrants bear.
        context: The adapter's.
        blobs: Where the files lie.
        documents: Where the documents lie.
    """

    def __init__(self, name: str, context: AdapterContext, blobs: Blobs, documents: Documents) -> None:
        state_dir = context.data_dir / "state"
        self._context = context
        self._guard = WarrantGuard(name, context.trust_root, state_dir, context.clock)
        self._effects = EffectLedger(state_dir)
        self._objects = SealedObjects(blobs, context.signer)
        self._documents = documents

    def register(
        self, warrant: bytes, ref: ModelVersionRef, directory: Path, parameters: Parameters
    ) -> RegisteredVersion:
        """See ``ModelRegistry``."""
        admitted = self._admit(warrant, "registry.register", ref, parameters)
        with self._effects.once(admitted) as effect, self._documents.locked(ref.model):
            if effect.outcome is None:
                effect.record(asdict(self._register(warrant, ref, directory, parameters)))
            return RegisteredVersion(**effect.outcome or {})

    def read(self, warrant: bytes, ref: ModelVersionRef, target_dir: Path, parameters: Parameters) -> RegisteredVersion:
        """See ``ModelRegistry``."""
        self._admit(warrant, "registry.read", ref, parameters)
        registered = self._present(ref)
        if os.path.lexists(target_dir):
            raise Conflict("the target exists already", code="conflict.target")
        making = target_dir.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        try:
            making.mkdir(mode=0o700)
            for name in _FILES:
                self._objects.get(warrant, _object_ref(ref, name, registered.files[name]), making / name)
            self._verify_signature(ref, (making / SIGNATURE_FILE).read_bytes())
            making.rename(target_dir)
            sync_directory(target_dir.parent)
        except OSError as error:
            raise Unavailable(f"the model cannot be written: {error.strerror}", code="unavailable.storage") from error
        finally:
            shutil.rmtree(making, ignore_errors=True)
        return registered

    def promote(self, warrant: bytes, ref: ModelVersionRef, parameters: Parameters) -> StageOutcome:
        """See ``ModelRegistry``."""
        stage = parameters.get("stage")
        if not isinstance(stage, str) or stage not in _STAGES:
            raise InputRefused("the operation's parameters name no stage (staging, prod)", code="input.stage")
        return self._move(self._admit(warrant, "registry.promote", ref, parameters), ref, stage)

    def retire(self, warrant: bytes, ref: ModelVersionRef, parameters: Parameters) -> StageOutcome:
        """See ``ModelRegistry``."""
        return self._move(self._admit(warrant, "registry.retire", ref, parameters), ref, "retired")

    def delete(self, warrant: bytes, ref: ModelVersionRef, parameters: Parameters) -> StageOutcome:
        """See ``ModelRegistry``."""
        admitted = self._admit(warrant, "registry.delete", ref, parameters)
        with self._effects.once(admitted) as effect, self._documents.locked(ref.model):
            if effect.outcome is None:
                registered = self._same(ref, self._manifest(ref))
                stages, standing = self._stages(ref)
                before = stages.get(ref.number, "none")
                if before in _STAGES:
                    raise Conflict(f"{ref.version} stands at {before}: retire it first", code="conflict.stage")
                for name in _FILES:
                    self._objects.check_removable(warrant, _object_ref(ref, name, registered.files[name]))
                # First no one can ask for it any more, then its bytes go: a crash between leaves sealed bytes that the
                # retry removes.
                self._write_stages(ref, stages | {ref.number: "deleted"}, standing)
                for name in _FILES:
                    self._objects.delete(warrant, _object_ref(ref, name, registered.files[name]))
                effect.record(asdict(StageOutcome(stage="deleted", before=before, replaced=None)))
            return StageOutcome(**effect.outcome or {})

    def hold(self, warrant: bytes, ref: ModelVersionRef, parameters: Parameters) -> HoldOutcome:
        """See ``ModelRegistry``."""
        still_permitted = partial(self._guard.check_live, self._admit(warrant, "registry.hold", ref, parameters))
        registered = self._present(ref)
        for name in _FILES:
            self._objects.hold(warrant, _object_ref(ref, name, registered.files[name]), still_permitted)
        # Without its manifest nobody could tell what the files are.
        return self._documents.hold(ref.model, str(ref.number), still_permitted)

    def lift(self, warrant: bytes, ref: ModelVersionRef, parameters: Parameters) -> HoldOutcome:
        """See ``ModelRegistry``."""
        still_permitted = partial(self._guard.check_live, self._admit(warrant, "registry.lift", ref, parameters))
        registered = self._present(ref)
        for name in _FILES:
            self._objects.lift(warrant, _object_ref(ref, name, registered.files[name]), still_permitted)
        return self._documents.lift(ref.model, str(ref.number), still_permitted)

    def moved(self, tenant: str, version: str, operation_id: str, step: str) -> StageOutcome | None:
        """See ``ModelRegistry``."""
        effect = self._effects.looked_up(tenant, operation_id, step)
        if effect is None:
            return None
        if effect.outcome is not None:
            return StageOutcome(**effect.outcome)
        standing = self.manifest(tenant, version)
        if effect.intended is None or standing is None or standing.stage != effect.intended["stage"]:
            return None
        return StageOutcome(**effect.intended)

    def manifest(self, tenant: str, version: str) -> RegisteredVersion | None:
        """See ``ModelRegistry``."""
        placeholder = ModelVersionRef(tenant=tenant, version=version, digests=dict.fromkeys(MODEL_FILES, "0" * 64))
        return self._manifest(placeholder)

    # --- steps, under the effect's and the model's lock --------------------------------------------------------------

    def _register(
        self, warrant: bytes, ref: ModelVersionRef, directory: Path, parameters: Parameters
    ) -> RegisteredVersion:
        standing = self._manifest(ref)
        if standing is not None and standing.model_digest_hex == ref.model_digest_hex and standing.stage not in _FINAL:
            for name in _FILES:
                self._objects.settle(warrant, _object_ref(ref, name, standing.files[name]))
            self._documents.settle(ref.model, str(ref.number))
            return standing  # Registered already; perhaps a crash fell between the manifest and the ledger.
        if standing is not None and (
            standing.stage != "none" or parameters.get("replaces") != standing.model_digest_hex
        ):
            raise Conflict(f"{ref.version} is registered with other content", code="conflict.content")
        inspected = inspect_model_files(directory)
        if dict(inspected.digests) != dict(ref.digests):
            raise InputRefused("a model file has another digest than was decided", code="input.digest")
        files: dict[str, dict[str, Any]] = {}
        for name in MODEL_FILES:
            files[name] = {"digest_hex": ref.digests[name], "size_bytes": inspected.sizes_bytes[name]}
            # What is stored is verified against the digest again while it is read: a swap since is refused.
            with _storage_errors(), (directory / name).open("rb") as source:
                self._objects.put(warrant, _object_ref(ref, name, files[name]), source)
        bundle = self._signed(warrant, ref)
        signature = self._verify_signature(ref, bundle)
        files[SIGNATURE_FILE] = {"digest_hex": hashlib.sha256(bundle).hexdigest(), "size_bytes": len(bundle)}
        self._objects.put(warrant, _object_ref(ref, SIGNATURE_FILE, files[SIGNATURE_FILE]), io.BytesIO(bundle))
        manifest = {
            "v": 1,
            "version": ref.version,
            "files": files,
            "model_digest_hex": ref.model_digest_hex,
            "key_id": signature,
            "registered_at_ms": self._context.clock(),
        }
        written = self._documents.read(ref.model, str(ref.number))
        self._documents.write(ref.model, str(ref.number), canonical.dumps(manifest), written)
        if standing is not None:
            # The version is the new content from here on. A crash now leaves sealed bytes that nothing names.
            before = ModelVersionRef(
                tenant=ref.tenant,
                version=ref.version,
                digests={name: str(standing.files[name]["digest_hex"]) for name in MODEL_FILES},
            )
            for name in _FILES:
                with contextlib.suppress(Conflict):  # What is retained stays, sealed, until its time is over.
                    self._objects.delete(warrant, _object_ref(before, name, standing.files[name]))
        for name in _FILES:
            self._objects.settle(warrant, _object_ref(ref, name, files[name]))
        self._documents.settle(ref.model, str(ref.number))
        return self._present(ref)

    def _signed(self, warrant: bytes, ref: ModelVersionRef) -> bytes:
        """A signature of these files whose place is free, or which is there already.

        Signatures differ each time. One that a crashed attempt left belongs to no manifest, and goes; where a retention keeps it,
        it is as good as a new one.
        """
        left = _object_ref(ref, SIGNATURE_FILE, {"digest_hex": "0" * 64, "size_bytes": 0})
        try:
            self._objects.delete(warrant, left)
        except Conflict as kept:
            if kept.code not in {"conflict.held", "conflict.retained"}:
                raise
            return self._objects.read_unknown(warrant, left, _MAX_SIGNATURE_BYTES)
        with signer_errors():
            return self._context.signer.sign_model(ref.tenant, ref.version, dict(ref.digests), warrant)

    def _move(self, admitted: Warrant, ref: ModelVersionRef, stage: str) -> StageOutcome:
        with self._effects.once(admitted) as effect, self._documents.locked(ref.model):
            if effect.outcome is None:
                self._present(ref)
                stages, standing = self._stages(ref)
                before = stages.get(ref.number, "none")
                if effect.intended is None or before != stage:
                    if before == "retired" and stage != "retired":
                        raise Conflict(f"{ref.version} is retired", code="conflict.stage")
                    holders = [number for number, held in stages.items() if held == stage and number != ref.number]
                    replaced = max(holders, default=None) if stage in _STAGES else None
                    effect.intend(
                        asdict(
                            StageOutcome(
                                stage=stage,
                                before=before,
                                replaced=None if replaced is None else f"{ref.model}@{replaced}",
                            )
                        )
                    )
                    moved = stages | {ref.number: stage} | ({} if replaced is None else {replaced: "none"})
                    self._write_stages(ref, moved, standing)
                # Else an attempt moved it, and a crash fell before the record: what it found there before still counts.
                effect.record(effect.intended or {})
            return StageOutcome(**effect.outcome or {})

    def _admit(self, warrant: bytes, operation: str, ref: ModelVersionRef, parameters: Parameters) -> Warrant:
        return self._guard.admit(
            warrant, tenant=ref.tenant, operation=operation, parameters=parameters, resources=ref.resources()
        )

    def _present(self, ref: ModelVersionRef) -> RegisteredVersion:
        registered = self._same(ref, self._manifest(ref))
        if registered.stage == "deleted":
            raise NotFound(f"{ref.version} was deleted")
        return registered

    def _same(self, ref: ModelVersionRef, registered: RegisteredVersion | None) -> RegisteredVersion:
        if registered is None:
            raise NotFound("no such model version")
        if {name: registered.files[name]["digest_hex"] for name in MODEL_FILES} != dict(ref.digests):
            raise Conflict(f"{ref.version} is registered with other content", code="conflict.content")
        return registered

    def _verify_signature(self, ref: ModelVersionRef, bundle: bytes) -> str:
        """Verify the model's signature under a pinned key; return the key's id."""
        for key in self._context.trust_root.keys("model"):
            with contextlib.suppress(VerificationError):
                if oms.verify_model(bundle, ref.digests, [key]).name == ref.version:
                    return key.keyid
        raise IntegrityError(f"{ref.version}: no pinned model key signed these files", code="integrity.signature")

    # --- documents ---------------------------------------------------------------------------------------------------

    def _manifest(self, ref: ModelVersionRef) -> RegisteredVersion | None:
        """What the documents say of the version."""
        value = _json(self._documents.read(ref.model, str(ref.number)))
        if value is None:
            return None
        try:
            if set(value) != _MANIFEST_FIELDS or value.pop("v") != 1 or set(value["files"]) != set(_FILES):
                raise _damaged()
            registered = RegisteredVersion(**value, stage=self._stages(ref)[0].get(ref.number, "none"))
            for file in registered.files.values():
                if set(file) != {"digest_hex", "size_bytes"}:
                    raise _damaged()
        except (TypeError, AttributeError) as error:
            raise _damaged() from error
        return registered

    def _stages(self, ref: ModelVersionRef) -> tuple[dict[int, str], Document | None]:
        """Where the versions of the model stand, and the document that says so."""
        document = self._documents.read(ref.model, STAGES_DOCUMENT)
        value = _json(document)
        if value is None:
            return {}, None
        try:
            return {int(number): str(stage) for number, stage in value["stages"].items()}, document
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged() from error

    def _write_stages(self, ref: ModelVersionRef, stages: Mapping[int, str], before: Document | None) -> None:
        value = {"v": 1, "stages": {str(number): stage for number, stage in stages.items()}}
        self._documents.write(ref.model, STAGES_DOCUMENT, canonical.dumps(value), before)


def _object_ref(ref: ModelVersionRef, name: str, file: Mapping[str, Any]) -> ObjectRef:
    return ObjectRef(
        tenant=ref.tenant,
        object_id=ref.object_id(name),
        digest_hex=file["digest_hex"],
        size_bytes=file["size_bytes"],
    )


def _json(document: Document | None) -> dict[str, Any] | None:
    if document is None:
        return None
    try:
        value = canonical.loads(document.data)
    except FormatError as error:
        raise _damaged() from error
    if not isinstance(value, dict):
        raise _damaged()
    return value


def _damaged() -> AdapterError:
    return IntegrityError("a manifest of the registry is damaged", code="integrity.manifest")


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(f"the registry folder fails: {error.strerror}", code="unavailable.storage") from error
