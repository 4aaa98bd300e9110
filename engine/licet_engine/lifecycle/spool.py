"""Uploads on their way in and artifacts on their way out: plain files, each for a short time.

Rules kept here:

- A file belongs to one principal (an upload) or one operation (an artifact); its folder is its tenant's. It is open to
  api and worker alone: 0600, or 0660 where they are two users.
- It appears whole or not at all: written beside its name, synced, then renamed.
- It is gone when it was used, or when its time is over. The folder holds plaintext: the threat model says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import stat
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

from licet_engine.domain.errors import Busy, InvalidInput, TooLarge
from licet_engine.domain.refs import new_id, parse_tenant

_CHUNK_BYTES = 1 << 20
_CLOSED_DIR, _CLOSED_FILE = 0o700, 0o600
_SHARED_DIR, _SHARED_FILE = 0o2770, 0o660
_ID = re.compile(r"[0-9a-f]{32}")
_SUFFIX = re.compile(r"[a-z]{1,8}")


class Spool:
    """The spool of one installation.

    Args:
        folder: Where it lies.
        max_bytes: Largest upload.
        max_per_principal: Uploads of one principal that may wait at once.
        max_bytes_per_tenant: What the waiting uploads of a tenant may take together.
        ttl_s: How long a file stays that nobody uses.
    """

    def __init__(
        self, folder: Path, *, max_bytes: int, max_per_principal: int, max_bytes_per_tenant: int, ttl_s: int
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._max_per_principal = max_per_principal
        self._max_bytes_per_tenant = max_bytes_per_tenant
        self._ttl_s = ttl_s

    # --- uploads ---------------------------------------------------------------------------------------------------

    async def receive(
        self, tenant: str, principal: str, chunks: AsyncIterator[bytes], *, expected_bytes: int
    ) -> tuple[str, str, int]:
        """Take an upload.

        Args:
            tenant: Of the principal.
            principal: Whose upload it is.
            chunks: The body as it comes.
            expected_bytes: How long the sender said it would be.

        Returns:
            Identifier, SHA-256 in hex, and size.

        Raises:
            TooLarge: More than is allowed.
            Busy: The principal has too many uploads waiting, or the tenant too much of them.
            InvalidInput: It ended before all of it was there.
        """
        if expected_bytes > self._max_bytes:
            raise TooLarge(f"an upload has at most {self._max_bytes} bytes; this one says it has {expected_bytes}")
        folder = self._make(tenant, "uploads")
        owner = hashlib.sha256(principal.encode()).hexdigest()[:16]
        # What is on its way counts as well, so that many at once do not pass where one after the other would not.
        if sum(1 for path in folder.iterdir() if owner in path.name) >= self._max_per_principal:
            raise Busy(f"{principal} has {self._max_per_principal} uploads waiting to be used; use them, or wait")
        # A principal costs its tenant nothing, so that a bound for each of them would be none.
        if _size_bytes(folder) + expected_bytes > self._max_bytes_per_tenant:
            raise Busy(
                f"the uploads of {tenant} that wait to be used take {self._max_bytes_per_tenant} bytes at most; use"
                " some of them, or wait"
            )
        identifier = new_id()
        path = folder / f"{identifier}.{owner}"
        digest = hashlib.sha256()
        size = 0
        with self._whole(path) as file:
            # As long as it is going to be from its beginning, so that the next one is told the truth about the room left.
            file.truncate(max(expected_bytes, 0))
            async for chunk in chunks:
                size += len(chunk)
                if size > expected_bytes or size > self._max_bytes:
                    raise TooLarge(f"the upload is longer than the {expected_bytes} bytes it said it has")
                digest.update(chunk)
                file.write(chunk)
            if size != expected_bytes:
                raise InvalidInput(
                    f"the upload ended after {size} of {expected_bytes} bytes; nothing was kept, send it again",
                    code="truncated-upload",
                )
        return identifier, digest.hexdigest(), size

    def upload(self, tenant: str, identifier: str, digest_hex: str, size_bytes: int) -> Path:
        """Where an upload lies, if it is the one that was decided on.

        Raises:
            InvalidInput: It is not there (any more), or not what was said.
        """
        path = self._find(tenant, identifier)
        if path is None:
            raise InvalidInput(
                f"upload {identifier} is not there: it was used, or waited longer than {self._ttl_s} s; send it again",
                code="no-such-upload",
            )
        digest = hashlib.sha256()
        size = 0
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
        if size != size_bytes or not hmac.compare_digest(digest.hexdigest(), digest_hex):
            raise InvalidInput(f"upload {identifier} is not what was registered; send it again", code="other-upload")
        return path

    def is_mine(self, tenant: str, principal: str, identifier: str) -> bool:
        """Whether an upload is there and this principal's own."""
        path = self._find(tenant, identifier)
        return path is not None and path.suffix == "." + hashlib.sha256(principal.encode()).hexdigest()[:16]

    def forget(self, tenant: str, identifier: str) -> None:
        """Remove an upload that was used."""
        path = self._find(tenant, identifier)
        if path is not None:
            path.unlink(missing_ok=True)

    def _find(self, tenant: str, identifier: str) -> Path | None:
        if not _ID.fullmatch(identifier):
            raise InvalidInput("an upload is named by 32 hex characters")
        return next(iter(self._make(tenant, "uploads").glob(f"{identifier}.????????????????")), None)

    # --- artifacts -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def new_artifact(self, tenant: str, operation: str, suffix: str) -> Iterator[Path]:
        """A path at which an artifact may be made; it counts once the block ends."""
        path = self.artifact(tenant, operation, suffix)
        part = path.with_name(path.name + ".part")
        part.unlink(missing_ok=True)
        try:
            yield part
            part.chmod(self._file_mode())
            descriptor = os.open(part, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lasting_artifact(self, tenant: str, operation: str, suffix: str) -> Iterator[Path]:
        """A path at which an artifact is made by a writer that goes on with what an attempt before left beside it.

        It is whole as soon as it is there; this only lets the api read it.
        """
        path = self.artifact(tenant, operation, suffix)
        yield path
        path.chmod(self._file_mode())

    def artifact(self, tenant: str, operation: str, suffix: str) -> Path:
        """Where an operation's artifact lies, or would."""
        if not _ID.fullmatch(operation) or not _SUFFIX.fullmatch(suffix):
            raise InvalidInput("an artifact is named by its operation")
        return self._make(tenant, "artifacts") / f"{operation}.{suffix}"

    # --- the folder ------------------------------------------------------------------------------------------------

    def sweep(self) -> int:
        """Remove what is older than its time; return how many files that were."""
        oldest_s = time.time() - self._ttl_s
        removed = 0
        for path in self._folder.glob("*/*/*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest_s:
                    path.unlink()
                    removed += 1
        return removed

    def _is_shared(self) -> bool:
        """Whether api and worker are two users: then the folder hands its group, which both are in, down to what is in it."""
        return bool(self._folder.stat().st_mode & stat.S_ISGID)

    def _dir_mode(self) -> int:
        return _SHARED_DIR if self._is_shared() else _CLOSED_DIR

    def _file_mode(self) -> int:
        return _SHARED_FILE if self._is_shared() else _CLOSED_FILE

    def _make(self, tenant: str, kind: str) -> Path:
        folder = self._folder / parse_tenant(tenant) / kind
        self._folder.mkdir(mode=_CLOSED_DIR, exist_ok=True)
        for level in (folder.parent, folder):
            with contextlib.suppress(FileExistsError):
                level.mkdir(mode=_CLOSED_DIR)
                level.chmod(self._dir_mode())
        return folder

    @contextlib.contextmanager
    def _whole(self, path: Path) -> Iterator[BinaryIO]:
        part = path.with_name(f".{path.name}.part")
        try:
            with os.fdopen(
                os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _CLOSED_FILE), "wb"
            ) as file:
                os.fchmod(file.fileno(), self._file_mode())
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _size_bytes(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
