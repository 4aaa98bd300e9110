"""Sealed objects over any place that holds bytes, and the object store made of them: the rules stand here, once.

Rules kept here:

- The name of an object is an HMAC under the tenant's key, so a listing tells nothing.
- The key of an object comes from the signer, which checks the warrant once more.
- Putting the same object again verifies what is there and changes nothing.
- A write that was begun and not ended goes on under the key it began with, if it is of this very object; no two texts are
  ever sealed with one key at one place (see ``Writing``).
- Plaintext reaches its target whole and verified, or not at all.

The place (a folder, a bucket) is not trusted: whoever can write to it can destroy objects, and can neither read nor change
one unseen.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import secrets
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from licet_adapters.errors import Conflict, InputRefused, IntegrityError, NotFound, Unavailable, WarrantRefused
from licet_adapters.guard import WarrantGuard
from licet_adapters.objects import sealed
from licet_adapters.ports import (
    AdapterContext,
    HoldOutcome,
    KeySource,
    ObjectRef,
    Parameters,
    PutOutcome,
)
from licet_attestations.errors import SignerRefused, SignerUnavailable, VerificationError, WarrantError
from licet_attestations.signer.files import TEMPORARY_PREFIX, sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from licet_attestations.warrant import Warrant

DEFAULT_MAX_OBJECT_BYTES = 16 << 30
MAX_RANGE_BYTES = 16 << 20


class Writing(Protocol):
    """One write of one blob, held by this attempt alone."""

    @property
    def begun(self) -> bytes | None:
        """The header under which an earlier attempt began; the write can go on from there."""
        ...

    def write(self, header: bytes, chunks: Iterable[bytes]) -> int | None:
        """Write all, visible at once or not at all; return the bytes written, or None if the name is taken.

        A write that goes on never gives out other bytes for a place than those it was begun with: if they differ, it is
        given up and ``Unavailable`` raised, and the next attempt begins with a new key.
        """
        ...

    def give_up(self) -> None:
        """Remove what was begun."""
        ...


class Blobs(Protocol):
    """Where sealed bytes lie, by tenant and name. Knows nothing of keys."""

    def is_there(self, tenant: str, name: str) -> bool:
        """Whether the name is taken."""
        ...

    def writing(self, tenant: str, name: str, size_bytes: int) -> AbstractContextManager[Writing]:
        """Hold the write of one blob of about that size."""
        ...

    def reading(self, tenant: str, name: str, whole_bytes: int = 0) -> AbstractContextManager[BinaryIO]:
        """Open a blob: ``read``, ``tell`` and ``seek`` forward. Raises ``NotFound``.

        Args:
            tenant: Whose.
            name: Which.
            whole_bytes: If all of it is going to be read, in order: about how much plaintext that is. Only a hint.
        """
        ...

    def settle(self, tenant: str, name: str) -> None:
        """Make durable, and keep for as long as is configured, what stands under the name."""
        ...

    def remove(self, tenant: str, name: str) -> bool:
        """Remove durably; return whether it was there. Raises ``Conflict`` if it is held or retained."""
        ...

    def check_alone(self, tenant: str, name: str) -> None:
        """Raise ``IntegrityError`` if under the name lies, or lay, anything beside one blob."""
        ...

    def hold(self, tenant: str, name: str, opened: BinaryIO, still_permitted: Callable[[], None]) -> HoldOutcome:
        """Keep the blob from removal until ``lift``; doing it again is harmless.

        Args:
            tenant: Whose.
            name: Which.
            opened: The blob as ``reading`` gave it; that very one is kept.
            still_permitted: Called right before the place is told, each time; what it raises is raised.
        """
        ...

    def lift(self, tenant: str, name: str, opened: BinaryIO, still_permitted: Callable[[], None]) -> HoldOutcome:
        """End ``hold``; as there."""
        ...

    def check_removable(self, tenant: str, name: str) -> None:
        """Raise ``Conflict`` if ``remove`` would, now."""
        ...


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


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Turn what a local disk says into the adapters' errors."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise Unavailable(f"the object folder fails: {error.strerror}", code="unavailable.storage") from error


class SealedObjects:
    """Sealed objects, for an adapter that has admitted a warrant already.

    It admits no warrants itself: ``GuardedObjects`` and ``SealedRegistry`` do, each its own, before they come here. The
    signer still gives a key only under that warrant.

    Args:
        blobs: Where they lie.
        keys: The signer.
        chunk_bytes: Plaintext in a chunk of new objects.
    """

    def __init__(self, blobs: Blobs, keys: KeySource, chunk_bytes: int = sealed.DEFAULT_CHUNK_BYTES) -> None:
        self._blobs = blobs
        self._keys = keys
        self._chunk_bytes = chunk_bytes

    def put(self, warrant: bytes, ref: ObjectRef, source: BinaryIO) -> PutOutcome:
        """Seal ``source`` under ``ref``; see ``ObjectStore.put``."""
        name = self._name(warrant, ref)
        if self._blobs.is_there(ref.tenant, name):
            return self._found(warrant, ref, name, source)
        with storage_errors(), self._blobs.writing(ref.tenant, name, ref.size_bytes) as writing:
            header, key = self._header(warrant, ref, writing)
            try:
                written = writing.write(header.to_bytes(), sealed.seal_chunks(header, ref, key, source))
            except InputRefused:
                writing.give_up()
                raise
        if written is None:  # Another put was first; whatever it wrote must be this very object.
            return self._found(warrant, ref, name, None)
        return PutOutcome(created=True, stored_bytes=written)

    def get(self, warrant: bytes, ref: ObjectRef, target: Path) -> None:
        """Write the plaintext of ``ref`` to ``target``; see ``ObjectStore.get``."""
        with self._open(warrant, ref, is_whole=True) as (header, key, source), storage_errors():
            try:
                write_new(target, sealed.open_chunks(header, ref, key, source))
            except FileExistsError as error:
                raise Conflict("the target exists already", code="conflict.target") from error

    def read_range(self, warrant: bytes, ref: ObjectRef, start: int, length: int) -> bytes:
        """Return a part of the plaintext; see ``ObjectStore.read_range``."""
        if length > MAX_RANGE_BYTES:
            raise InputRefused(f"a range is at most {MAX_RANGE_BYTES} bytes", code="input.range")
        with self._open(warrant, ref) as (header, key, source), storage_errors():
            return sealed.open_range(header, ref, key, source, start=start, length=length)

    def settle(self, warrant: bytes, ref: ObjectRef) -> None:
        """Have ``ref`` kept for as long as the place is configured to keep what it holds."""
        name = self._name(warrant, ref)
        with storage_errors():
            self._blobs.settle(ref.tenant, name)

    def delete(self, warrant: bytes, ref: ObjectRef) -> bool:
        """Remove ``ref``; see ``ObjectStore.delete``."""
        name = self._name(warrant, ref)
        with storage_errors():
            return self._blobs.remove(ref.tenant, name)

    def check_removable(self, warrant: bytes, ref: ObjectRef) -> None:
        """Raise ``Conflict`` if a hold or a retention keeps ``ref``."""
        name = self._name(warrant, ref)
        with storage_errors():
            self._blobs.check_removable(ref.tenant, name)

    def hold(self, warrant: bytes, ref: ObjectRef, still_permitted: Callable[[], None]) -> HoldOutcome:
        """See ``ObjectStore.hold`` and ``Blobs.hold``."""
        with self._verified(warrant, ref) as (name, opened):
            return self._blobs.hold(ref.tenant, name, opened, still_permitted)

    def lift(self, warrant: bytes, ref: ObjectRef, still_permitted: Callable[[], None]) -> HoldOutcome:
        """See ``ObjectStore.lift`` and ``Blobs.lift``."""
        with self._verified(warrant, ref) as (name, opened):
            return self._blobs.lift(ref.tenant, name, opened, still_permitted)

    def read_unknown(self, warrant: bytes, ref: ObjectRef, max_bytes: int) -> bytes:
        """Return the plaintext of a small object of whose content ``ref`` says nothing true; it is the object's own, and no more is known."""
        name = self._name(warrant, ref)
        with self._blobs.reading(ref.tenant, name) as source, storage_errors():
            header = sealed.read_header(source)
            with signer_errors():
                key = self._keys.unwrap(ref.tenant, ref.object_id, header.wrapped, warrant)
            return sealed.open_unknown(header, ref, key, source, max_bytes)

    @contextlib.contextmanager
    def _verified(self, warrant: bytes, ref: ObjectRef) -> Iterator[tuple[str, BinaryIO]]:
        """Find ``ref`` for whoever gets no key of it: what is opened bears its content's tag, and nothing else lies there."""
        name = self._name(warrant, ref)
        with storage_errors():
            self._blobs.check_alone(ref.tenant, name)
            with self._blobs.reading(ref.tenant, name) as opened:
                header = sealed.read_header(opened)
                with signer_errors():
                    tag_hex = self._keys.object_tag(ref.tenant, ref.object_id, header.wrapped, ref.digest_hex, warrant)
                sealed.check_tag(header, ref, tag_hex)
                yield name, opened

    def _header(self, warrant: bytes, ref: ObjectRef, writing: Writing) -> tuple[sealed.Header, bytes]:
        """Go on under the key that this very object was begun with, or begin under a new one."""
        if writing.begun is not None:
            with contextlib.suppress(Conflict, IntegrityError):
                header = sealed.read_header(io.BytesIO(writing.begun))
                with signer_errors():
                    key = self._keys.unwrap(ref.tenant, ref.object_id, header.wrapped, warrant)
                sealed.check_header(header, ref, key)
                return header, key
            writing.give_up()  # It was of other content.
        with signer_errors():
            made = self._keys.new_data_key(ref.tenant, ref.object_id, warrant)
        return sealed.make_header(ref, made.key, made.wrapped, self._chunk_bytes), made.key

    def _found(self, warrant: bytes, ref: ObjectRef, name: str, source: BinaryIO | None) -> PutOutcome:
        """Verify that what stands under ``name`` is ``ref``, and that what was offered is, too."""
        if source is not None:
            with storage_errors():
                _check_source(ref, source)
        with self._open(warrant, ref, is_whole=True) as (header, key, file), storage_errors():
            for _ in sealed.open_chunks(header, ref, key, file):
                pass
            stored_bytes = file.tell()
        # A put that another process began and that we now call done must be durable, too.
        with storage_errors():
            self._blobs.settle(ref.tenant, name)
        return PutOutcome(created=False, stored_bytes=stored_bytes)

    @contextlib.contextmanager
    def _open(
        self, warrant: bytes, ref: ObjectRef, *, is_whole: bool = False
    ) -> Iterator[tuple[sealed.Header, bytes, BinaryIO]]:
        name = self._name(warrant, ref)
        with self._blobs.reading(ref.tenant, name, ref.size_bytes if is_whole else 0) as source:
            with storage_errors():
                header = sealed.read_header(source)
            with signer_errors():
                key = self._keys.unwrap(ref.tenant, ref.object_id, header.wrapped, warrant)
            sealed.check_header(header, ref, key)
            yield header, key, source

    def _name(self, warrant: bytes, ref: ObjectRef) -> str:
        # The object's id is what identifies it; HMAC of its digest under the tenant's key is its name.
        id_digest_hex = hashlib.sha256(ref.object_id.encode()).hexdigest()
        with signer_errors():
            return self._keys.object_name(ref.tenant, id_digest_hex, warrant)


class GuardedObjects:
    """An object store: sealed objects behind the warrant guard; see ``ObjectStore``.

    Args:
        name: Instance name that warrants bear.
        context: The adapter's.
        blobs: Where the objects lie.
        max_object_bytes: Largest object.
    """

    def __init__(
        self, name: str, context: AdapterContext, blobs: Blobs, max_object_bytes: int = DEFAULT_MAX_OBJECT_BYTES
    ) -> None:
        self._guard = WarrantGuard(name, context.trust_root, context.data_dir / "state", context.clock)
        self._objects = SealedObjects(blobs, context.signer)
        self._max_object_bytes = max_object_bytes

    def put(self, warrant: bytes, ref: ObjectRef, source: BinaryIO, parameters: Parameters) -> PutOutcome:
        """See ``ObjectStore``."""
        if ref.size_bytes > self._max_object_bytes:
            raise InputRefused(f"an object is at most {self._max_object_bytes} bytes", code="input.oversize")
        self._admit(warrant, "objects.put", ref, parameters)
        outcome = self._objects.put(warrant, ref, source)
        if outcome.created:
            self._objects.settle(warrant, ref)
        return outcome

    def get(self, warrant: bytes, ref: ObjectRef, target: Path, parameters: Parameters) -> None:
        """See ``ObjectStore``."""
        self._admit(warrant, "objects.get", ref, parameters)
        self._objects.get(warrant, ref, target)

    def read_range(self, warrant: bytes, ref: ObjectRef, start: int, length: int, parameters: Parameters) -> bytes:
        """See ``ObjectStore``."""
        self._admit(warrant, "objects.get", ref, parameters)
        return self._objects.read_range(warrant, ref, start, length)

    def delete(self, warrant: bytes, ref: ObjectRef, parameters: Parameters) -> bool:
        """See ``ObjectStore``."""
        self._admit(warrant, "objects.delete", ref, parameters)
        return self._objects.delete(warrant, ref)

    def hold(self, warrant: bytes, ref: ObjectRef, parameters: Parameters) -> HoldOutcome:
        """See ``ObjectStore``."""
        admitted = self._admit(warrant, "objects.hold", ref, parameters)
        return self._objects.hold(warrant, ref, partial(self._guard.check_live, admitted))

    def lift(self, warrant: bytes, ref: ObjectRef, parameters: Parameters) -> HoldOutcome:
        """See ``ObjectStore``."""
        admitted = self._admit(warrant, "objects.lift", ref, parameters)
        return self._objects.lift(warrant, ref, partial(self._guard.check_live, admitted))

    def _admit(self, warrant: bytes, operation: str, ref: ObjectRef, parameters: Parameters) -> Warrant:
        return self._guard.admit(
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


def _check_source(ref: ObjectRef, source: BinaryIO) -> None:
    content = hashlib.sha256()
    size_bytes = 0
    while part := source.read(1 << 20):
        content.update(part)
        size_bytes += len(part)
    if size_bytes != ref.size_bytes or content.hexdigest() != ref.digest_hex:
        raise InputRefused("the content has another size or digest than was declared", code="input.digest")
