"""Objects in a local folder, sealed for their tenant.

Rules kept here:

- A file lies at ``<tenant>/<2 hex>/<name>``; the name is an HMAC under the tenant's key, so a listing tells nothing.
- A file is written without a name, synced, and linked to its own name only if that is free (If-None-Match): all of an
  object is there, or none. Putting the same object again verifies what is there and changes nothing.
- The key of an object comes from the signer, which checks the warrant once more.
- Plaintext reaches its target by the same way: the target appears when the whole of it was verified.

The folder is not trusted: whoever can write to it can destroy objects, and can neither read nor change one unseen.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from licet_adapters.errors import Conflict, InputRefused, IntegrityError, NotFound, Unavailable, WarrantRefused
from licet_adapters.guard import WarrantGuard
from licet_adapters.objects import sealed
from licet_adapters.ports import AdapterContext, KeySource, ObjectRef, Parameters, PutOutcome
from licet_attestations.errors import SignerRefused, SignerUnavailable, VerificationError, WarrantError
from licet_attestations.signer.files import TEMPORARY_PREFIX, make_private_directory, remove_durably, sync_directory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NAME = "local-objects"
DEFAULT_MAX_OBJECT_BYTES = 16 << 30
MAX_RANGE_BYTES = 16 << 20


@contextlib.contextmanager
def signer_errors() -> Iterator[None]:
    """Turn the signer's errors into the adapters': a warrant it refuses is refused here, with its own code."""
    try:
        yield
    except SignerRefused as error:
        match error.code.removeprefix("warrant."):
            case "forged" | "expired" | "unlogged" | "other-adapter" | "other-operation" | "other-resource" as reason:
                raise WarrantRefused(reason, f"the signer refuses the warrant: {error}") from error
        if error.code == "signer.wrapped":
            raise IntegrityError(f"the sealed object's key is not its own: {error}", code="integrity.key") from error
        if error.code in ("signer.destroyed", "signer.no-key"):
            raise NotFound(f"the object can no longer be read: {error}", code="not-found.key") from error
        raise Unavailable(f"the signer refuses: {error}", code="unavailable.signer") from error
    except VerificationError as error:  # From rules in this process; over a socket it is a refusal.
        fault = error.reason if isinstance(error, WarrantError) else "forged"
        raise WarrantRefused(fault, f"the signer refuses the warrant: {error}") from error
    except SignerUnavailable as error:
        raise Unavailable(f"the signer cannot be had: {error}", code="unavailable.signer") from error


class SealedFolder:
    """Sealed objects in a folder, for an adapter that has admitted a warrant already.

    It admits no warrants itself: ``LocalObjects`` and ``LocalRegistry`` do, each its own, before they come here. The
    signer still gives a key only under that warrant.

    Args:
        directory: Where the files are.
        keys: The signer.
        chunk_bytes: Plaintext in a chunk of new objects.
    """

    def __init__(self, directory: Path, keys: KeySource, chunk_bytes: int = sealed.DEFAULT_CHUNK_BYTES) -> None:
        self._dir = directory
        self._keys = keys
        self._chunk_bytes = chunk_bytes

    def put(self, warrant: bytes, ref: ObjectRef, source: BinaryIO) -> PutOutcome:
        """Seal ``source`` under ``ref``; see ``ObjectStore.put``."""
        path = self._path(warrant, ref)
        if path.exists():
            return self._found(warrant, ref, path, source)
        with signer_errors():
            made = self._keys.new_data_key(ref.tenant, ref.object_id, warrant)
        header = sealed.make_header(ref, made.key, made.wrapped, self._chunk_bytes)
        with _storage_errors():
            make_private_directory(path.parent)
            parts = _after(header.to_bytes(), sealed.seal_chunks(header, ref, made.key, source))
            try:
                stored_bytes = write_new(path, parts)
            except FileExistsError:  # Another put was first; whatever it wrote must be this very object.
                return self._found(warrant, ref, path, None)
        return PutOutcome(created=True, stored_bytes=stored_bytes)

    def get(self, warrant: bytes, ref: ObjectRef, target: Path) -> None:
        """Write the plaintext of ``ref`` to ``target``; see ``ObjectStore.get``."""
        with self._open(warrant, ref) as (header, key, source), _storage_errors():
            try:
                write_new(target, sealed.open_chunks(header, ref, key, source))
            except FileExistsError as error:
                raise Conflict("the target exists already", code="conflict.target") from error

    def read_range(self, warrant: bytes, ref: ObjectRef, start: int, length: int) -> bytes:
        """Return a part of the plaintext; see ``ObjectStore.read_range``."""
        if length > MAX_RANGE_BYTES:
            raise InputRefused(f"a range is at most {MAX_RANGE_BYTES} bytes", code="input.range")
        with self._open(warrant, ref) as (header, key, source), _storage_errors():
            return sealed.open_range(header, ref, key, source, start=start, length=length)

    def delete(self, warrant: bytes, ref: ObjectRef) -> bool:
        """Remove the file of ``ref``; see ``ObjectStore.delete``."""
        path = self._path(warrant, ref)
        with _storage_errors():
            return remove_durably(path)

    def _found(self, warrant: bytes, ref: ObjectRef, path: Path, source: BinaryIO | None) -> PutOutcome:
        """Verify that what stands at ``path`` is ``ref``, and that what was offered is, too."""
        if source is not None:
            _check_source(ref, source)
        with self._open(warrant, ref) as (header, key, file), _storage_errors():
            for _ in sealed.open_chunks(header, ref, key, file):
                pass
            # A put that another process began and that we now call done must be durable, too.
            sync_directory(path.parent)
            return PutOutcome(created=False, stored_bytes=file.tell())

    @contextlib.contextmanager
    def _open(self, warrant: bytes, ref: ObjectRef) -> Iterator[tuple[sealed.Header, bytes, BinaryIO]]:
        path = self._path(warrant, ref)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound("no such object") from error
        except OSError as error:
            raise IntegrityError(
                f"the stored file cannot be opened: {error.strerror}", code="integrity.file"
            ) from error
        with os.fdopen(fd, "rb") as source:
            with _storage_errors():
                header = sealed.read_header(source)
            with signer_errors():
                key = self._keys.unwrap(ref.tenant, ref.object_id, header.wrapped, warrant)
            sealed.check_header(header, ref, key)
            yield header, key, source

    def _path(self, warrant: bytes, ref: ObjectRef) -> Path:
        # The object's id is what identifies it; HMAC of its digest under the tenant's key is its name.
        id_digest_hex = hashlib.sha256(ref.object_id.encode()).hexdigest()
        with signer_errors():
            name = self._keys.object_name(ref.tenant, id_digest_hex, warrant)
        return self._dir / ref.tenant / name[:2] / name


class LocalObjects:
    """The adapter ``local-objects``; see ``ObjectStore``."""

    def __init__(self, context: AdapterContext, max_object_bytes: int = DEFAULT_MAX_OBJECT_BYTES) -> None:
        self._guard = WarrantGuard(NAME, context.trust_root, context.data_dir / "state", context.clock)
        self._folder = SealedFolder(context.data_dir / "objects", context.signer)
        self._max_object_bytes = max_object_bytes

    def put(self, warrant: bytes, ref: ObjectRef, source: BinaryIO, parameters: Parameters) -> PutOutcome:
        """See ``ObjectStore``."""
        if ref.size_bytes > self._max_object_bytes:
            raise InputRefused(f"an object is at most {self._max_object_bytes} bytes", code="input.oversize")
        self._admit(warrant, "objects.put", ref, parameters)
        return self._folder.put(warrant, ref, source)

    def get(self, warrant: bytes, ref: ObjectRef, target: Path, parameters: Parameters) -> None:
        """See ``ObjectStore``."""
        self._admit(warrant, "objects.get", ref, parameters)
        self._folder.get(warrant, ref, target)

    def read_range(self, warrant: bytes, ref: ObjectRef, start: int, length: int, parameters: Parameters) -> bytes:
        """See ``ObjectStore``."""
        self._admit(warrant, "objects.get", ref, parameters)
        return self._folder.read_range(warrant, ref, start, length)

    def delete(self, warrant: bytes, ref: ObjectRef, parameters: Parameters) -> bool:
        """See ``ObjectStore``."""
        self._admit(warrant, "objects.delete", ref, parameters)
        return self._folder.delete(warrant, ref)

    def _admit(self, warrant: bytes, operation: str, ref: ObjectRef, parameters: Parameters) -> None:
        self._guard.admit(
            warrant, tenant=ref.tenant, operation=operation, parameters=parameters, resources=ref.resources()
        )


def write_new(path: Path, parts: Iterable[bytes]) -> int:
    """Write ``parts`` to ``path``, which appears whole, durable and 0600, or not at all; return the bytes written.

    Raises:
        FileExistsError: It exists; it was left as it was.
    """
    with _nameless_file(path.parent) as (file, link_from):
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
        written = file.tell()
        # Naming a folder descriptor makes this linkat(2), which alone can follow /proc to a nameless file.
        os.link(link_from, path, src_dir_fd=file.fileno(), follow_symlinks=True)
    sync_directory(path.parent)
    return written


@contextlib.contextmanager
def _nameless_file(directory: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Give a file in ``directory`` that a crash leaves no trace of, and the path to link it from."""
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT) or not directory.is_dir():
            raise
    else:
        with os.fdopen(fd, "wb") as file:
            yield file, Path(f"/proc/self/fd/{fd}")
        return
    # This file system has no nameless files: a crash here leaves a name that begins with the temporary prefix.
    temporary = directory / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            yield file, temporary
    finally:
        temporary.unlink(missing_ok=True)


def _after(first: bytes, rest: Iterable[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _check_source(ref: ObjectRef, source: BinaryIO) -> None:
    content = hashlib.sha256()
    size_bytes = 0
    while part := source.read(1 << 20):
        content.update(part)
        size_bytes += len(part)
    if size_bytes != ref.size_bytes or content.hexdigest() != ref.digest_hex:
        raise InputRefused("the content has another size or digest than was declared", code="input.digest")


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise Unavailable(f"the object folder fails: {error.strerror}", code="unavailable.storage") from error
