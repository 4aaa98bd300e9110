"""Objects in a local folder, sealed for their tenant.

Rules kept here:

- A file lies at ``<tenant>/<2 hex>/<name>``; what the name is, ``store`` says.
- A file is written without a name, synced, and linked to its own name only if that is free (If-None-Match): all of an
  object is there, or none.
- A hold is a mark beside the objects that this adapter keeps: it removes nothing that bears one. Whoever can write to the
  folder can remove both: only a store with locks of its own keeps an object from its owner.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, BinaryIO

from licet_adapters.errors import Conflict, IntegrityError, NotFound
from licet_adapters.objects.store import DEFAULT_MAX_OBJECT_BYTES, GuardedObjects, write_new
from licet_adapters.ports import AdapterContext, HoldOutcome
from licet_attestations.signer.files import create_durably, make_private_directory, remove_durably, sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

NAME = "local-objects"


class FolderBlobs:
    """Blobs as files; see ``Blobs``.

    Args:
        directory: Where the files are.
        holds: Where the marks of holds are.
    """

    def __init__(self, directory: Path, holds: Path) -> None:
        self._dir = directory
        self._holds = holds

    def is_there(self, tenant: str, name: str) -> bool:
        """See ``Blobs``."""
        return self._path(tenant, name).exists()

    @contextlib.contextmanager
    def writing(self, tenant: str, name: str, size_bytes: int) -> Iterator[_FileWriting]:  # noqa: ARG002  # A file grows.
        """See ``Blobs``."""
        yield _FileWriting(self._path(tenant, name))

    @contextlib.contextmanager
    def reading(self, tenant: str, name: str, whole_bytes: int = 0) -> Iterator[BinaryIO]:  # noqa: ARG002  # The system reads ahead.
        """See ``Blobs``."""
        try:
            fd = os.open(self._path(tenant, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound("no such object") from error
        except OSError as error:
            raise IntegrityError(
                f"the stored file cannot be opened: {error.strerror}", code="integrity.file"
            ) from error
        with os.fdopen(fd, "rb") as source:
            yield source

    def settle(self, tenant: str, name: str) -> None:
        """See ``Blobs``; a folder has no retention of its own."""
        sync_directory(self._path(tenant, name).parent)

    def remove(self, tenant: str, name: str) -> bool:
        """See ``Blobs``."""
        self.check_removable(tenant, name)
        return remove_durably(self._path(tenant, name))

    def check_alone(self, tenant: str, name: str) -> None:
        """See ``Blobs``: a folder has one file of a name."""

    def hold(
        self,
        tenant: str,
        name: str,
        opened: BinaryIO,  # noqa: ARG002  # The mark is of the name, which nothing else can take.
        still_permitted: Callable[[], None],
    ) -> HoldOutcome:
        """See ``Blobs``."""
        still_permitted()
        mark = self._mark(tenant, name)
        make_private_directory(mark.parent)
        with contextlib.suppress(FileExistsError):
            create_durably(mark, b"")
        return HoldOutcome(held=True, kept_by="adapter")

    def lift(
        self,
        tenant: str,
        name: str,
        opened: BinaryIO,  # noqa: ARG002  # As above.
        still_permitted: Callable[[], None],
    ) -> HoldOutcome:
        """See ``Blobs``."""
        still_permitted()
        remove_durably(self._mark(tenant, name))
        return HoldOutcome(held=False, kept_by="adapter")

    def check_removable(self, tenant: str, name: str) -> None:
        """See ``Blobs``."""
        if self._mark(tenant, name).exists():
            raise Conflict("a hold lies on the object: lift it first", code="conflict.held")

    def _path(self, tenant: str, name: str) -> Path:
        return self._dir / tenant / name[:2] / name

    def _mark(self, tenant: str, name: str) -> Path:
        return self._holds / tenant / name[:2] / name


class _FileWriting:
    """A file that appears whole; nothing of it outlives a crash, so there is nothing to go on with."""

    begun: bytes | None = None

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, header: bytes, chunks: Iterable[bytes]) -> int | None:
        make_private_directory(self._path.parent)
        try:
            return write_new(self._path, _after(header, chunks))
        except FileExistsError:
            return None

    def give_up(self) -> None:
        pass


class LocalObjects(GuardedObjects):
    """The adapter ``local-objects``; see ``ObjectStore``."""

    def __init__(self, context: AdapterContext, max_object_bytes: int = DEFAULT_MAX_OBJECT_BYTES) -> None:
        blobs = FolderBlobs(context.data_dir / "objects", context.data_dir / "holds")
        super().__init__(NAME, context, blobs, max_object_bytes)


def _after(first: bytes, rest: Iterable[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
