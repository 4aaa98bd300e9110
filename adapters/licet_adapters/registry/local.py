"""A model registry in a local folder: versions inspected, signed, sealed, and moved between stages.

Layout below the data folder::

    objects/...                            weights, architecture and signature, sealed for the tenant
    manifests/<tenant>/<model>/<n>.json    what version n is: digests and sizes (public)
    manifests/<tenant>/<model>/stages.json where each version stands
    state/                                 spent warrants and the effect ledger

Rules kept here:

- Nothing is stored that the gate in ``modelfiles`` did not pass, and exactly the digests that the warrant names.
- The manifest is written last and whole: before it there is no version, after it all of the version is there.
- What is read is verified against the warrant's digests and the model's signature under a pinned key, not against the
  manifest alone: the folder is not trusted.
- At most one version of a model holds ``staging``, and one ``prod``. A version that is retired or deleted does not come
  back; a number is never used again.
- Every effect is recorded in the ledger: a retry with a new warrant returns the first outcome.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import secrets
import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from licet_adapters.effects import EffectLedger
from licet_adapters.errors import AdapterError, Conflict, InputRefused, IntegrityError, NotFound, Unavailable
from licet_adapters.guard import WarrantGuard
from licet_adapters.modelfiles import inspect_model_files
from licet_adapters.objects.local import SealedFolder, signer_errors
from licet_adapters.ports import (
    MODEL_FILES,
    SIGNATURE_FILE,
    AdapterContext,
    ModelVersionRef,
    ObjectRef,
    Parameters,
    RegisteredVersion,
    StageOutcome,
    check_tenant,
)
from licet_attestations import canonical, oms
from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.signer.files import (
    TEMPORARY_PREFIX,
    make_private_directory,
    replace_durably,
    sync_directory,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from licet_attestations.warrant import Warrant

NAME = "local-registry"
_STAGES = frozenset({"staging", "prod"})
_FINAL = frozenset({"retired", "deleted"})
_MANIFEST_FIELDS = frozenset({"v", "version", "files", "model_digest_hex", "key_id", "registered_at_ms"})


class LocalRegistry:
    """The adapter ``local-registry``; see ``ModelRegistry``."""

    def __init__(self, context: AdapterContext) -> None:
        state_dir = context.data_dir / "state"
        self._context = context
        self._guard = WarrantGuard(NAME, context.trust_root, state_dir, context.clock)
        self._effects = EffectLedger(state_dir)
        self._folder = SealedFolder(context.data_dir / "objects", context.signer)
        self._manifests = context.data_dir / "manifests"

    def register(
        self, warrant: bytes, ref: ModelVersionRef, directory: Path, parameters: Parameters
    ) -> RegisteredVersion:
        """See ``ModelRegistry``."""
        admitted = self._admit(warrant, "registry.register", ref, parameters)
        with self._effects.once(admitted) as effect, self._locked(ref) as folder:
            if effect.outcome is None:
                effect.record(asdict(self._register(warrant, ref, directory, folder, parameters)))
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
            for name in (*MODEL_FILES, SIGNATURE_FILE):
                self._folder.get(warrant, _object_ref(ref, name, registered.files[name]), making / name)
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
        with self._effects.once(admitted) as effect, self._locked(ref) as folder:
            if effect.outcome is None:
                registered = self._same(ref, _read_manifest(folder, ref.number))
                stages = _read_stages(folder)
                before = stages.get(ref.number, "none")
                if before in _STAGES:
                    raise Conflict(f"{ref.version} stands at {before}: retire it first", code="conflict.stage")
                # First no one can ask for it any more, then its bytes go: a crash between leaves sealed bytes that the
                # retry removes.
                _write_stages(folder, stages | {ref.number: "deleted"})
                for name in (*MODEL_FILES, SIGNATURE_FILE):
                    self._folder.delete(warrant, _object_ref(ref, name, registered.files[name]))
                effect.record(asdict(StageOutcome(stage="deleted", before=before, replaced=None)))
            return StageOutcome(**effect.outcome or {})

    def manifest(self, tenant: str, version: str) -> RegisteredVersion | None:
        """See ``ModelRegistry``."""
        placeholder = ModelVersionRef(tenant=tenant, version=version, digests=dict.fromkeys(MODEL_FILES, "0" * 64))
        return _read_manifest(self._model_dir(placeholder), placeholder.number)

    # --- steps, under the effect's and the model's lock --------------------------------------------------------------

    def _register(
        self, warrant: bytes, ref: ModelVersionRef, directory: Path, folder: Path, parameters: Parameters
    ) -> RegisteredVersion:
        standing = _read_manifest(folder, ref.number)
        if standing is not None and standing.model_digest_hex == ref.model_digest_hex and standing.stage not in _FINAL:
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
                self._folder.put(warrant, _object_ref(ref, name, files[name]), source)
        with signer_errors():
            bundle = self._context.signer.sign_model(ref.tenant, ref.version, dict(ref.digests), warrant)
        signature = self._verify_signature(ref, bundle)
        files[SIGNATURE_FILE] = {"digest_hex": hashlib.sha256(bundle).hexdigest(), "size_bytes": len(bundle)}
        stored = _object_ref(ref, SIGNATURE_FILE, files[SIGNATURE_FILE])
        # Signatures differ each time: one that a crashed attempt left belongs to no manifest, and goes.
        self._folder.delete(warrant, stored)
        self._folder.put(warrant, stored, io.BytesIO(bundle))
        manifest = {
            "v": 1,
            "version": ref.version,
            "files": files,
            "model_digest_hex": ref.model_digest_hex,
            "key_id": signature,
            "registered_at_ms": self._context.clock(),
        }
        with _storage_errors():
            replace_durably(folder / f"{ref.number}.json", canonical.dumps(manifest))
        if standing is not None:
            # The version is the new content from here on. A crash now leaves sealed bytes that nothing names.
            before = ModelVersionRef(
                tenant=ref.tenant,
                version=ref.version,
                digests={name: str(standing.files[name]["digest_hex"]) for name in MODEL_FILES},
            )
            for name in (*MODEL_FILES, SIGNATURE_FILE):
                self._folder.delete(warrant, _object_ref(before, name, standing.files[name]))
        return self._present(ref)

    def _move(self, admitted: Warrant, ref: ModelVersionRef, stage: str) -> StageOutcome:
        with self._effects.once(admitted) as effect, self._locked(ref) as folder:
            if effect.outcome is None:
                self._present(ref)
                stages = _read_stages(folder)
                before = stages.get(ref.number, "none")
                if before == "retired" and stage != "retired":
                    raise Conflict(f"{ref.version} is retired", code="conflict.stage")
                holders = [number for number, held in stages.items() if held == stage and number != ref.number]
                replaced = max(holders, default=None) if stage in _STAGES else None
                moved = stages | {ref.number: stage} | ({} if replaced is None else {replaced: "none"})
                _write_stages(folder, moved)
                outcome = StageOutcome(
                    stage=stage, before=before, replaced=None if replaced is None else f"{ref.model}@{replaced}"
                )
                effect.record(asdict(outcome))
            return StageOutcome(**effect.outcome or {})

    def _admit(self, warrant: bytes, operation: str, ref: ModelVersionRef, parameters: Parameters) -> Warrant:
        return self._guard.admit(
            warrant, tenant=ref.tenant, operation=operation, parameters=parameters, resources=ref.resources()
        )

    def _present(self, ref: ModelVersionRef) -> RegisteredVersion:
        registered = self._same(ref, _read_manifest(self._model_dir(ref), ref.number))
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

    def _model_dir(self, ref: ModelVersionRef) -> Path:
        # Both parts were checked to be slugs when the ref was made.
        return self._manifests / check_tenant(ref.tenant) / ref.model.partition("/")[2]

    @contextlib.contextmanager
    def _locked(self, ref: ModelVersionRef) -> Iterator[Path]:
        """Hold the lock of the model, across processes; give its folder."""
        folder = self._model_dir(ref)
        with _storage_errors():
            make_private_directory(folder)
            fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield folder
        finally:
            os.close(fd)


def _object_ref(ref: ModelVersionRef, name: str, file: Mapping[str, Any]) -> ObjectRef:
    return ObjectRef(
        tenant=ref.tenant,
        object_id=ref.object_id(name),
        digest_hex=file["digest_hex"],
        size_bytes=file["size_bytes"],
    )


def _read_manifest(folder: Path, number: int) -> RegisteredVersion | None:
    value = _read_json(folder / f"{number}.json")
    if value is None:
        return None
    try:
        if (
            set(value) != _MANIFEST_FIELDS
            or value.pop("v") != 1
            or set(value["files"]) != {*MODEL_FILES, SIGNATURE_FILE}
        ):
            raise _damaged()
        registered = RegisteredVersion(**value, stage=_read_stages(folder).get(number, "none"))
        for file in registered.files.values():
            if set(file) != {"digest_hex", "size_bytes"}:
                raise _damaged()
    except (TypeError, AttributeError) as error:
        raise _damaged() from error
    return registered


def _read_stages(folder: Path) -> dict[int, str]:
    value = _read_json(folder / "stages.json")
    if value is None:
        return {}
    try:
        return {int(number): str(stage) for number, stage in value["stages"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged() from error


def _write_stages(folder: Path, stages: Mapping[int, str]) -> None:
    value = {"v": 1, "stages": {str(number): stage for number, stage in stages.items()}}
    with _storage_errors():
        replace_durably(folder / "stages.json", canonical.dumps(value))


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = canonical.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unavailable(f"the registry cannot be read: {error.strerror}", code="unavailable.storage") from error
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
