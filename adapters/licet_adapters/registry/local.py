"""A model registry in a local folder; what it keeps, ``rules`` says.

Layout below the data folder::

    objects/...                            weights, architecture and signature, sealed for the tenant
    holds/...                              marks of what is not to be removed
    manifests/<tenant>/<model>/<n>.json    what version n is: digests and sizes (public)
    manifests/<tenant>/<model>/stages.json where each version stands
    state/                                 spent warrants and the effect ledger
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from licet_adapters.errors import Unavailable
from licet_adapters.objects.local import FolderBlobs
from licet_adapters.ports import HoldOutcome, check_tenant
from licet_adapters.registry.rules import Document, SealedRegistry
from licet_attestations.signer.files import make_private_directory, replace_durably

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from licet_adapters.ports import AdapterContext

NAME = "local-registry"


class FolderDocuments:
    """Documents as files; see ``Documents``. Who writes holds the lock of the model, so nothing can come between.

    Args:
        directory: Where they are.
    """

    def __init__(self, directory: Path) -> None:
        self._dir = directory

    def read(self, model: str, name: str) -> Document | None:
        """See ``Documents``."""
        try:
            return Document((self._model_dir(model) / f"{name}.json").read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unavailable(f"the registry cannot be read: {error.strerror}", code="unavailable.storage") from error

    def write(self, model: str, name: str, data: bytes, before: Document | None) -> None:  # noqa: ARG002  # The lock is held.
        """See ``Documents``."""
        with _storage_errors():
            replace_durably(self._model_dir(model) / f"{name}.json", data)

    def settle(self, model: str, name: str) -> None:
        """See ``Documents``; a folder has no retention of its own."""

    def hold(self, model: str, name: str, still_permitted: Callable[[], None]) -> HoldOutcome:  # noqa: ARG002  # See below.
        """See ``Documents``: this adapter removes none, so none needs a mark."""
        still_permitted()
        return HoldOutcome(held=True, kept_by="adapter")

    def lift(self, model: str, name: str, still_permitted: Callable[[], None]) -> HoldOutcome:  # noqa: ARG002  # As above.
        """See ``Documents``."""
        still_permitted()
        return HoldOutcome(held=False, kept_by="adapter")

    @contextlib.contextmanager
    def locked(self, model: str) -> Iterator[None]:
        """See ``Documents``."""
        with model_lock(self._model_dir(model)):
            yield

    def _model_dir(self, model: str) -> Path:
        # Both parts were checked to be slugs when the ref was made.
        tenant, _, name = model.partition("/")
        return self._dir / check_tenant(tenant) / name


class LocalRegistry(SealedRegistry):
    """The adapter ``local-registry``; see ``ModelRegistry``."""

    def __init__(self, context: AdapterContext) -> None:
        blobs = FolderBlobs(context.data_dir / "objects", context.data_dir / "holds")
        super().__init__(NAME, context, blobs, FolderDocuments(context.data_dir / "manifests"))


@contextlib.contextmanager
def model_lock(folder: Path) -> Iterator[None]:
    """Hold the lock in ``folder``, across processes; the kernel drops it when a process dies."""
    with _storage_errors():
        make_private_directory(folder)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(f"the registry folder fails: {error.strerror}", code="unavailable.storage") from error
