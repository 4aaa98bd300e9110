"""Objects in an S3 bucket, sealed for their tenant.

Rules kept here:

- An object lies at ``<prefix><tenant>/<name>``; what the name is, ``store`` says.
- It is written under ``If-None-Match: *``: all of it is there, or none, and nothing is overwritten.
- A large one is sent in parts (``s3_upload``), and what a killed worker began goes on in the next attempt.
- What is read is verified by its seal. An ETag or a checksum that the store tells is never taken for more than a name.
- A hold is a legal hold of the very version that was opened and found to be the object, where the bucket has Object Lock; where it has
  not, the outcome says so. An object that anything else lies on or under is not held, nor is its hold lifted: somebody was there.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast

from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from licet_adapters import s3_lock
from licet_adapters.errors import IntegrityError, Unavailable
from licet_adapters.objects.s3_upload import Uploads, UploadWriting
from licet_adapters.objects.store import DEFAULT_MAX_OBJECT_BYTES, GuardedObjects
from licet_adapters.s3 import Bucket, error_code, s3_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from licet_adapters.ports import AdapterContext, FoundLocks, HoldOutcome

NAME = "s3-objects"

_FIRST_WINDOW_BYTES = 512 << 10
_WINDOW_BYTES = 8 << 20
_LANES = 2
"""How many windows are fetched ahead of the one that is read."""

_HEADROOM_BYTES = 64 << 10
_READ_TRIES = 4
_FIRST_PAUSE_S = 0.1
_MAX_VERSIONS = 100
_MAX_TOTAL_BYTES = 1 << 44
_NO_VERSIONS = frozenset({"NotImplemented", "MethodNotAllowed"})
_BROKEN = (BotoCoreError, HTTPError, OSError)


class S3Blobs:
    """Blobs in a bucket; see ``Blobs``.

    Args:
        bucket: Where.
        state_dir: Where uploads that were begun are written down.
        orphan_age_s: How old an unfinished upload is when it is ended.
    """

    def __init__(self, bucket: Bucket, state_dir: Path, orphan_age_s: float) -> None:
        self._bucket = bucket
        self._uploads = Uploads(bucket, state_dir, orphan_age_s)

    def is_there(self, tenant: str, name: str) -> bool:
        """See ``Blobs``."""
        return s3_lock.head(self._bucket, self._bucket.key(tenant, name)) is not None

    @contextlib.contextmanager
    def writing(self, tenant: str, name: str, size_bytes: int) -> Iterator[UploadWriting]:
        """See ``Blobs``."""
        self._uploads.sweep_now_and_then()
        with self._uploads.writing(tenant, name, size_bytes) as writing:
            yield writing

    @contextlib.contextmanager
    def reading(self, tenant: str, name: str, whole_bytes: int = 0) -> Iterator[BinaryIO]:
        """See ``Blobs``."""
        with _Reader(self._bucket, self._bucket.key(tenant, name), whole_bytes) as reader:
            yield cast("BinaryIO", reader)

    def settle(self, tenant: str, name: str) -> None:
        """See ``Blobs``: what S3 answered for is durable; a retention is set if one is configured."""
        s3_lock.retain(self._bucket, self._bucket.key(tenant, name))

    def remove(self, tenant: str, name: str) -> bool:
        """See ``Blobs``: every version goes, so nothing can be brought back."""
        self.check_removable(tenant, name)
        key = self._bucket.key(tenant, name)
        # Listed whatever the bucket was found to be: versions may have been switched on since.
        versions = self._versions(key)
        if not versions and self.is_there(tenant, name):
            raise Unavailable("the store lists no version of an object that it has", code="unavailable.storage")
        for version in versions:
            try:
                with s3_errors("an object is removed"):
                    self._bucket.client.delete_object(
                        Bucket=self._bucket.name, Key=key, **s3_lock.of_version(version.id)
                    )
            except Unavailable as error:
                if error.code == "unavailable.denied":  # A lock that was set since it was looked for.
                    self.check_removable(tenant, name)
                raise
        return not all(version.is_marker for version in versions)

    def check_alone(self, tenant: str, name: str) -> None:
        """See ``Blobs``."""
        standing = self._versions(self._bucket.key(tenant, name))
        if len(standing) > 1 or any(version.is_marker for version in standing):
            raise IntegrityError(
                f"an object has {len(standing)} versions or marks of removal, and this adapter writes one and leaves none:"
                " find out who wrote to the bucket, remove theirs, and ask again",
                code="integrity.versions",
            )

    def hold(self, tenant: str, name: str, opened: BinaryIO, still_permitted: Callable[[], None]) -> HoldOutcome:
        """See ``Blobs``."""
        return self._set_hold(tenant, name, opened, still_permitted, held=True)

    def lift(self, tenant: str, name: str, opened: BinaryIO, still_permitted: Callable[[], None]) -> HoldOutcome:
        """See ``Blobs``."""
        return self._set_hold(tenant, name, opened, still_permitted, held=False)

    def check_removable(self, tenant: str, name: str) -> None:
        """See ``Blobs``: of all versions, for what is held or retained may lie below another."""
        key = self._bucket.key(tenant, name)
        for version in self._versions(key):
            if not version.is_marker:
                s3_lock.check_removable(s3_lock.head(self._bucket, key, version.id) or {})

    def _set_hold(
        self, tenant: str, name: str, opened: BinaryIO, still_permitted: Callable[[], None], *, held: bool
    ) -> HoldOutcome:
        version = cast("_Reader", opened).version
        return s3_lock.set_hold(self._bucket, self._bucket.key(tenant, name), version, still_permitted, held=held)

    def _versions(self, key: str) -> list[_Version]:
        """Every version of the object, the marks of removal among them; none if there is none."""
        with s3_errors("an object's versions are listed"):
            try:
                told = self._bucket.client.list_object_versions(
                    Bucket=self._bucket.name, Prefix=key, MaxKeys=_MAX_VERSIONS
                )
            except ClientError as error:
                if error_code(error) not in _NO_VERSIONS or self._bucket.features().versioned:
                    raise
                return [] if s3_lock.head(self._bucket, key) is None else [_Version(None, is_marker=False)]
            if told.get("IsTruncated"):
                raise IntegrityError(
                    f"an object has more than {_MAX_VERSIONS} versions, and this adapter writes one: look at the bucket",
                    code="integrity.versions",
                )
            return [
                _Version(str(listed["VersionId"]), is_marker=is_marker)
                for kind, is_marker in (("Versions", False), ("DeleteMarkers", True))
                for listed in told.get(kind, ())
                if listed["Key"] == key
            ]


@dataclass(frozen=True, slots=True)
class _Version:
    """One version of an object; its id is None on a server that knows none."""

    id: str | None
    is_marker: bool


@dataclass(frozen=True, slots=True)
class _Window:
    """Some bytes of an object, how many there are in all, and of which version they are."""

    data: bytes
    total: int
    etag: str
    version: str | None


class _Reader(io.RawIOBase):
    """An object, read window by window: bounded memory, and a window that breaks off is read again.

    Every window is of the version that the first was of; whose bytes they are, only the seal tells. Where all is going to be
    read, the next windows are fetched while one is opened.

    Args:
        bucket: Where.
        key: What.
        whole_bytes: See ``Blobs.reading``.

    Attributes:
        version: The version that is read; None where the bucket keeps none.
    """

    def __init__(self, bucket: Bucket, key: str, whole_bytes: int) -> None:
        super().__init__()
        self._bucket = bucket
        self._key = key
        self._is_whole = whole_bytes > 0
        self._at = 0
        self._window_at = 0
        self._lanes: ThreadPoolExecutor | None = None
        self._ahead: deque[tuple[int, Future[_Window]]] = deque()
        first = min(max(whole_bytes + _HEADROOM_BYTES, _FIRST_WINDOW_BYTES), _WINDOW_BYTES)
        window = self._fetch(0, first, None)
        self._window, self._total, self._etag = window.data, window.total, window.etag
        self.version = window.version
        self._look_ahead()

    def read(self, size: int = -1) -> bytes:
        """Read up to ``size`` bytes; nothing at the end."""
        if size < 0:
            raise ValueError("a size is asked for")
        parts = []
        while size > 0 and self._at < self._total:
            offset = self._at - self._window_at
            if not 0 <= offset < len(self._window):
                self._advance()
                offset = 0
            part = self._window[offset : offset + size]
            parts.append(part)
            self._at += len(part)
            size -= len(part)
        return b"".join(parts)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move; nothing is fetched."""
        self._at = offset if whence == io.SEEK_SET else self._at + offset
        return self._at

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at

    def close(self) -> None:
        """Fetch nothing more; what is on its way is not waited for."""
        if self._lanes is not None:
            self._lanes.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _advance(self) -> None:
        """Bring the window that begins where the next byte is read."""
        while self._ahead and self._ahead[0][0] != self._at:
            self._ahead.popleft()[1].cancel()
        if self._ahead:
            self._window = self._ahead.popleft()[1].result().data
        else:
            window = self._fetch(self._at, _WINDOW_BYTES, self._etag)
            self._window, self._total, self._etag = window.data, window.total, window.etag
        self._window_at = self._at
        self._look_ahead()

    def _look_ahead(self) -> None:
        if not self._is_whole:
            return
        at = self._ahead[-1][0] + _WINDOW_BYTES if self._ahead else self._window_at + len(self._window)
        while at < self._total and len(self._ahead) < _LANES:
            if self._lanes is None:
                self._lanes = ThreadPoolExecutor(_LANES, thread_name_prefix="licet-s3-read")
            self._ahead.append((at, self._lanes.submit(self._fetch, at, _WINDOW_BYTES, self._etag)))
            at += _WINDOW_BYTES

    def _fetch(self, at: int, size: int, etag: str | None) -> _Window:
        """The bytes from there; changes nothing here."""
        tried = 0
        while True:
            tried += 1
            try:
                with s3_errors("an object is read"):
                    return self._get(at, size, etag)
            except Unavailable:
                if tried == _READ_TRIES:
                    raise
            time.sleep(_FIRST_PAUSE_S * 2**tried)

    def _get(self, at: int, size: int, etag: str | None) -> _Window:
        condition = {"IfMatch": etag} if etag else {}
        # One that sends nothing again by itself: what breaks off in the middle is asked for again by us, and tries would multiply.
        told = self._bucket.single.get_object(
            Bucket=self._bucket.name, Key=self._key, Range=f"bytes={at}-{at + size - 1}", **condition
        )
        with contextlib.closing(told["Body"]) as body:
            try:
                data: bytes = body.read(size + 1)
            except _BROKEN as error:
                raise Unavailable("an object is read: the answer broke off", code="unavailable.storage") from error
        total_text = str(told.get("ContentRange", "")).rpartition("/")[2]
        # A server that ignores ranges sends all from the beginning, which is good only there.
        total = int(total_text) if total_text.isdigit() else int(told["ContentLength"])
        if total > _MAX_TOTAL_BYTES or len(data) != min(size, total - at):
            raise Unavailable(
                "an object is read: the answer is shorter or longer than asked", code="unavailable.storage"
            )
        version = told.get("VersionId")
        return _Window(data, total, str(told.get("ETag", "")), None if version is None else str(version))


def blobs_of(context: AdapterContext, bucket: Bucket) -> S3Blobs:
    """Make the blobs of an adapter as it is configured."""
    return S3Blobs(bucket, context.data_dir / "state", float(context.option("s3_upload_age_s", "86400")))


class S3Objects(GuardedObjects):
    """The adapter ``s3-objects``; see ``ObjectStore``."""

    def __init__(self, context: AdapterContext, max_object_bytes: int = DEFAULT_MAX_OBJECT_BYTES) -> None:
        bucket = Bucket(context)
        super().__init__(NAME, context, blobs_of(context, bucket), max_object_bytes)
        self._bucket = bucket

    def check(self) -> None:
        """See ``Checkable``."""
        self._bucket.check()

    def look_for_locks(self, most: int) -> FoundLocks:
        """See ``LockKeeper``."""
        return s3_lock.look_for(self._bucket, most)
