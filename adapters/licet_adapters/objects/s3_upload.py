"""Uploads to S3: small objects in one request, large ones in parts, which go on after a crash.

Rules kept here:

- One attempt at a time holds an upload (a lock that the kernel drops when its process dies).
- Before a part is sent, its digest is durably written down with the header it was sealed under. An attempt that goes on seals
  again: where the bytes differ from what was written down, the upload is ended and begun anew with a new key. So two texts
  never leave this machine sealed with one key at one place, whatever the source holds by then.
- Nothing is visible before the last step, and that bears ``If-None-Match: *``.
- Uploads older than the bound are ended, whoever began them, if their keys are of the form of ours: others may use the bucket, too.

A crash leaves an upload and its file; the next attempt goes on with both. If the file is lost, the sweep ends the upload.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import logging
import os
import re
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from licet_adapters.errors import AdapterError, Conflict, Unavailable
from licet_adapters.objects import sealed
from licet_adapters.s3 import Bucket, Overtaken, UploadGone, s3_errors
from licet_adapters.s3_lock import retained
from licet_attestations import canonical
from licet_attestations.errors import FormatError
from licet_attestations.rpc import decode_bytes, encode_bytes
from licet_attestations.signer.files import make_private_directory, remove_durably, replace_durably

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

PART_BYTES = 8 << 20
"""Sealed bytes in each part but the last; an object that fits in one is sent in one request."""

_LANES = 4
_SWEEP_EVERY_S = 3600.0
_HEADROOM_BYTES = 64 << 10
_MAX_PAGES = 100
_MAX_TOKEN_CHARS = 2048
_KEY = r"[a-z][a-z0-9-]{1,38}[a-z0-9]/[0-9a-f]{64}"
"""What follows the prefix: a tenant, and an object's name."""


class Uploads:
    """The uploads of one adapter instance.

    Args:
        bucket: Where to.
        state_dir: What was begun is written down below it.
        orphan_age_s: How old an unfinished upload is when it is ended.
    """

    def __init__(self, bucket: Bucket, state_dir: Path, orphan_age_s: float) -> None:
        self._bucket = bucket
        self._dir = state_dir / "uploads"
        self._orphan_age_s = orphan_age_s
        self._swept_at_s = -_SWEEP_EVERY_S

    @contextlib.contextmanager
    def writing(self, tenant: str, name: str, size_bytes: int) -> Iterator[UploadWriting]:
        """Hold the upload of one blob.

        Raises:
            Conflict: Another attempt is at work.
        """
        folder = self._dir / tenant
        make_private_directory(folder)
        lock = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Conflict("another attempt stores this object", code="conflict.busy") from error
            yield UploadWriting(self._bucket, self._bucket.key(tenant, name), folder / f"{name}.json", size_bytes)
        finally:
            os.close(lock)

    def sweep_now_and_then(self) -> None:
        """End uploads that nobody goes on with, at most once an hour; a failure is told and stops nothing."""
        if time.monotonic() - self._swept_at_s < _SWEEP_EVERY_S:
            return
        self._swept_at_s = time.monotonic()
        try:
            ended = self.sweep()
        except AdapterError as error:
            logger.warning("unfinished uploads could not be swept", extra={"code": error.code})
        else:
            if ended:
                logger.info("ended unfinished uploads", extra={"count": ended})

    def sweep(self) -> int:
        """End the unfinished uploads of ours that are too old, of the first pages that the bucket lists; return how many there were."""
        if not self._bucket.features().uploads_listed:
            return 0
        before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=self._orphan_age_s)
        is_ours = re.compile(re.escape(self._bucket.prefix) + _KEY).fullmatch
        at: dict[str, str] = {}
        done: set[tuple[str, str]] = set()
        for _ in range(_MAX_PAGES):
            with s3_errors("unfinished uploads are swept"):
                told = self._bucket.client.list_multipart_uploads(
                    Bucket=self._bucket.name, Prefix=self._bucket.prefix, **at
                )
                old = [
                    (str(upload["Key"]), str(upload["UploadId"]))
                    for upload in told.get("Uploads", ())
                    if upload["Initiated"] <= before and is_ours(upload["Key"])
                ]
                old = [upload for upload in old if upload not in done]
                is_last = not told.get("IsTruncated") or not told.get("NextKeyMarker")
                # Where something is ended the same page is asked for again: others have moved up, whatever the server says of more.
                if not is_last and not old:
                    at = {"KeyMarker": told["NextKeyMarker"], "UploadIdMarker": told.get("NextUploadIdMarker", "")}
            for key, upload in old:
                abort(self._bucket, key, upload)
                done.add((key, upload))
            if is_last and not old:
                break
        return len(done)


class UploadWriting:
    """One write of one blob; see ``Writing``.

    Args:
        bucket: Where to.
        key: As which object.
        path: Where what was begun is written down.
        size_bytes: Of the plaintext.
    """

    def __init__(self, bucket: Bucket, key: str, path: Path, size_bytes: int) -> None:
        self._bucket = bucket
        self._key = key
        self._path = path
        self._in_parts = size_bytes + _HEADROOM_BYTES > PART_BYTES
        self._state: dict[str, Any] | None = self._read() if self._in_parts else None

    @property
    def begun(self) -> bytes | None:
        """See ``Writing``."""
        return None if self._state is None else decode_bytes(self._state["header"])

    def write(self, header: bytes, chunks: Iterable[bytes]) -> int | None:
        """See ``Writing``."""
        if self._in_parts:
            return self._write_parts(header, chunks)
        body = b"".join((header, *chunks))
        try:
            with s3_errors("an object is stored"):
                self._bucket.client.put_object(
                    Bucket=self._bucket.name, Key=self._key, Body=body, IfNoneMatch="*", **retained(self._bucket)
                )
        except Overtaken:
            # Perhaps by this very request, whose answer was lost: what stands there is looked at.
            return None
        return len(body)

    def give_up(self) -> None:
        """See ``Writing``."""
        state, self._state = self._state, None
        if state is not None:
            # First it ends there, then it is forgotten here: a crash between leaves what the next attempt ends.
            abort(self._bucket, self._key, state["upload"])
            remove_durably(self._path)

    # --- in parts ------------------------------------------------------------------------------------------------------

    def _write_parts(self, header: bytes, chunks: Iterable[bytes]) -> int | None:
        try:
            if self._state is None:
                self._begin(header)
            written = self._send(header, chunks)
            is_ours = self._complete()
        except UploadGone as error:
            # It was swept, or it was completed and the answer lost: the next attempt finds out which.
            self._state = None
            remove_durably(self._path)
            raise Unavailable(
                "S3 no longer knows the upload that was begun: it begins anew", code="unavailable.storage"
            ) from error
        if not is_ours:
            self.give_up()
            return None
        self._state = None
        remove_durably(self._path)
        return written

    def _begin(self, header: bytes) -> None:
        with s3_errors("an upload is begun"):
            told = self._bucket.client.create_multipart_upload(
                Bucket=self._bucket.name, Key=self._key, **retained(self._bucket)
            )
            upload = _token(told["UploadId"])
        self._state = {"v": 1, "upload": upload, "header": encode_bytes(header), "digests": [], "etags": {}}
        self._save()

    def _send(self, header: bytes, chunks: Iterable[bytes]) -> int:
        """Send the parts that were not sent, a few at a time."""
        state = self._state or {}
        digests: list[str] = state["digests"]
        etags: dict[str, str] = state["etags"]
        written = 0
        sending: dict[Future[str], str] = {}
        with ThreadPoolExecutor(_LANES) as lanes:
            try:
                for number, part in enumerate(_parts(header, chunks), 1):
                    written += len(part)
                    digest_hex = hashlib.sha256(part).hexdigest()
                    if number <= len(digests) and digests[number - 1] != digest_hex:
                        self.give_up()
                        raise Unavailable(
                            "the upload that was begun was of other bytes: it begins anew", code="unavailable.storage"
                        )
                    if number > len(digests):
                        digests.append(digest_hex)
                        self._save()  # Before it is sent: see the rules.
                    if str(number) not in etags:
                        sending[lanes.submit(self._send_part, state["upload"], number, part)] = str(number)
                    while len(sending) >= _LANES:
                        self._take(sending, etags)
                while sending:
                    self._take(sending, etags)
            except BaseException:
                for future in sending:
                    future.cancel()
                wait(sending)
                self._note(sending, etags)  # What did arrive is not sent again by the next attempt.
                raise
        return written

    def _send_part(self, upload: str, number: int, part: bytes) -> str:
        with s3_errors("a part is stored"):
            told = self._bucket.client.upload_part(
                Bucket=self._bucket.name, Key=self._key, UploadId=upload, PartNumber=number, Body=part
            )
            return _token(told["ETag"])

    def _take(self, sending: dict[Future[str], str], etags: dict[str, str]) -> None:
        done, _ = wait(sending, return_when=FIRST_COMPLETED)
        failed = [error for future in done if (error := future.exception()) is not None]
        if failed:
            raise failed[0]
        self._note({future: sending.pop(future) for future in done}, etags)

    def _note(self, ended: dict[Future[str], str], etags: dict[str, str]) -> None:
        """Write down which of these parts arrived."""
        for future, number in ended.items():
            if not future.cancelled() and future.exception() is None:
                etags[number] = future.result()
        if self._state is not None:  # Else it was given up.
            self._save()

    def _complete(self) -> bool:
        state = self._state or {}
        parts = [{"PartNumber": int(number), "ETag": etag} for number, etag in state["etags"].items()]
        try:
            with s3_errors("an upload is completed"):
                self._bucket.client.complete_multipart_upload(
                    Bucket=self._bucket.name,
                    Key=self._key,
                    UploadId=state["upload"],
                    IfNoneMatch="*",
                    MultipartUpload={"Parts": sorted(parts, key=lambda part: part["PartNumber"])},
                )
        except Overtaken:
            return False
        return True

    def _save(self) -> None:
        make_private_directory(self._path.parent)
        replace_durably(self._path, canonical.dumps(self._state))

    def _read(self) -> dict[str, Any] | None:
        try:
            match canonical.loads(self._path.read_bytes()):
                case {"v": 1, "upload": str(), "header": str(), "digests": list(), "etags": dict()} as state:
                    return dict(state)
        except FileNotFoundError:
            return None
        except FormatError:
            pass
        # Half a disk's worth of nothing: the upload it was of is ended by the sweep.
        remove_durably(self._path)
        return None


def abort(bucket: Bucket, key: str, upload: str) -> None:
    """End an upload and free its parts; one that is gone is ended."""
    with contextlib.suppress(UploadGone), s3_errors("an upload is ended"):
        bucket.client.abort_multipart_upload(Bucket=bucket.name, Key=key, UploadId=upload)


def _token(told: str) -> str:
    """What the server told as a name for something, if it can be one: it is written down, and sent back."""
    if not told or not told.isascii() or not told.isprintable() or len(told) > _MAX_TOKEN_CHARS:
        raise ValueError("not a token")
    return told


def _parts(header: bytes, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The sealed object cut in parts."""
    gathered = bytearray(header)
    for chunk in chunks:
        # ``chunks`` verifies the digest of the whole before it gives out the last: nothing is completed that is not so.
        gathered += chunk
        while len(gathered) > PART_BYTES:
            yield bytes(gathered[:PART_BYTES])
            del gathered[:PART_BYTES]
    yield bytes(gathered)


assert PART_BYTES >= sealed.MAX_CHUNK_BYTES  # noqa: S101  # Or a part could be cut before its chunk was verified.
