"""A model registry in an S3 bucket; what it keeps, ``rules`` says.

Rules kept here:

- A document lies at ``<prefix><tenant>/<name>``, the name an HMAC under a key of this registry, and is sealed with another:
  the bucket tells neither which models there are nor where they stand.
- It is written under ``If-None-Match: *`` or ``If-Match``, so of two who change one, one is refused, and says so.
- Each bears a number that only grows. The highest seen is written down here, with the digest of what bore it: an older document put back
  in its place is found, and so is one that was taken away, or another of the same number.
- A number is written down as issued before it leaves here, and none is issued twice: a write that was never seen to be done has its own,
  and cannot be put in the place of what was written instead.
- A manifest is held and retained with its files, by its version; the stages change, and are not.

Both keys are derived from one secret in this adapter's own folder. Documents are read without a warrant (``manifest``), so
the signer could not be asked for them. Whoever copies the folder to another worker lets that one read them; without it what
stands in the bucket cannot be read, and versions are registered again.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING

from licet_adapters import s3_lock
from licet_adapters.errors import IntegrityError, NotFound, Unavailable
from licet_adapters.objects.s3 import blobs_of
from licet_adapters.ports import check_tenant
from licet_adapters.registry.local import model_lock
from licet_adapters.registry.rules import STAGES_DOCUMENT, Document, SealedRegistry
from licet_adapters.s3 import Bucket, Overtaken, s3_errors
from licet_attestations.signer import aead
from licet_attestations.signer.files import create_durably, make_private_directory, replace_durably

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from licet_adapters.ports import AdapterContext, FoundLocks, HoldOutcome

NAME = "s3-registry"

_MAX_DOCUMENT_BYTES = 1 << 20
_NUMBER_BYTES = 8


class S3Documents:
    """Sealed documents in a bucket; see ``Documents``.

    Args:
        bucket: Where.
        state_dir: The secret, the locks and the highest numbers seen.
    """

    def __init__(self, bucket: Bucket, state_dir: Path) -> None:
        self._bucket = bucket
        self._dir = state_dir / "documents"
        secret = _secret(state_dir / "documents.key")
        self._naming = hmac.new(secret, b"licet-registry-names-v1", hashlib.sha256).digest()
        self._sealing = hmac.new(secret, b"licet-registry-documents-v1", hashlib.sha256).digest()

    def read(self, model: str, name: str) -> Document | None:
        """See ``Documents``."""
        found = self._read(model, name)
        return None if found is None else Document(found.data, found.etag)

    def write(self, model: str, name: str, data: bytes, before: Document | None) -> None:
        """See ``Documents``."""
        number = max(self._seen(model, name).number, self._issued(model, name)) + 1
        # Before it leaves: whatever becomes of this write, no other bears its number.
        self._keep_note(model, f"{name}.issued", str(number))
        body = aead.wrap(self._sealing, number.to_bytes(_NUMBER_BYTES, "big") + data, self._bound(model, name))
        condition = {"IfNoneMatch": "*"} if before is None else {"IfMatch": before.token}
        kept = {} if name == STAGES_DOCUMENT else s3_lock.retained(self._bucket)
        try:
            with s3_errors("a document of the registry is written"):
                self._bucket.client.put_object(
                    Bucket=self._bucket.name, Key=self._key(model, name), Body=body, **condition, **kept
                )
        except Overtaken:
            # Perhaps by this very request, whose answer was lost.
            standing = self._read(model, name)
            if standing is None or (standing.number, standing.data) != (number, data):
                raise
        self._note(model, name, _Seen(number, hashlib.sha256(data).hexdigest()))

    def settle(self, model: str, name: str) -> None:
        """See ``Documents``."""
        s3_lock.retain(self._bucket, self._key(model, name))

    def hold(self, model: str, name: str, still_permitted: Callable[[], None]) -> HoldOutcome:
        """See ``Documents``."""
        return self._set_hold(model, name, still_permitted, held=True)

    def lift(self, model: str, name: str, still_permitted: Callable[[], None]) -> HoldOutcome:
        """See ``Documents``."""
        return self._set_hold(model, name, still_permitted, held=False)

    @contextlib.contextmanager
    def locked(self, model: str) -> Iterator[None]:
        """See ``Documents``; between machines the conditions of the writes hold."""
        with model_lock(self._folder(model)):
            yield

    def _set_hold(self, model: str, name: str, still_permitted: Callable[[], None], *, held: bool) -> HoldOutcome:
        # Its seal and number show that it is the document, so this version is what is to be kept.
        standing = self._read(model, name)
        if standing is None:
            raise NotFound("no such document")
        return s3_lock.set_hold(self._bucket, self._key(model, name), standing.version, still_permitted, held=held)

    def _read(self, model: str, name: str) -> _Standing | None:
        """What stands there."""
        seen = self._seen(model, name)
        try:
            with s3_errors("a document of the registry is read"):
                told = self._bucket.client.get_object(Bucket=self._bucket.name, Key=self._key(model, name))
                with contextlib.closing(told["Body"]) as body:
                    sealed = body.read(_MAX_DOCUMENT_BYTES + 1)
                etag, version = str(told["ETag"]), told.get("VersionId")
        except NotFound:
            if seen.number:
                raise IntegrityError("a document of the registry was taken away", code="integrity.manifest") from None
            return None
        try:
            plain = aead.unwrap(self._sealing, sealed[: _MAX_DOCUMENT_BYTES + 1], self._bound(model, name))
        except aead.SealBroken as error:
            raise IntegrityError("a document of the registry is damaged", code="integrity.manifest") from error
        number = int.from_bytes(plain[:_NUMBER_BYTES], "big")
        data = plain[_NUMBER_BYTES:]
        found = _Seen(number, hashlib.sha256(data).hexdigest())
        if number < seen.number:
            raise IntegrityError("an older document of the registry was put back", code="integrity.manifest")
        if number == seen.number and seen.digest_hex not in ("", found.digest_hex):
            raise IntegrityError("another document of the registry bears the same number", code="integrity.manifest")
        self._note(model, name, found)
        return _Standing(number, data, etag, None if version is None else str(version))

    def _key(self, model: str, name: str) -> str:
        what = aead.associated_data("licet-registry-name", model, name)
        return self._bucket.key(_tenant(model), hmac.new(self._naming, what, hashlib.sha256).hexdigest())

    def _bound(self, model: str, name: str) -> bytes:
        return aead.associated_data("licet-registry-document", model, name)

    def _folder(self, model: str) -> Path:
        return self._dir / _tenant(model) / model.partition("/")[2]

    def _seen(self, model: str, name: str) -> _Seen:
        # What an older version wrote down has no digest.
        number, _, digest_hex = self._noted(model, f"{name}.seen").partition(" ")
        return _Seen(_number(number), digest_hex)

    def _issued(self, model: str, name: str) -> int:
        return _number(self._noted(model, f"{name}.issued"))

    def _note(self, model: str, name: str, found: _Seen) -> None:
        seen = self._seen(model, name)
        if found.number > seen.number or (found.number == seen.number and not seen.digest_hex):
            self._keep_note(model, f"{name}.seen", f"{found.number} {found.digest_hex}")

    def _noted(self, model: str, file: str) -> str:
        try:
            return (self._folder(model) / file).read_text("ascii")
        except FileNotFoundError:
            return "0"
        except (OSError, ValueError) as error:
            raise Unavailable("the registry's own notes cannot be read", code="unavailable.storage") from error

    def _keep_note(self, model: str, file: str, text: str) -> None:
        try:
            make_private_directory(self._folder(model))
            replace_durably(self._folder(model) / file, text.encode())
        except OSError as error:
            raise Unavailable(f"the registry's own notes fail: {error.strerror}", code="unavailable.storage") from error


@dataclass(frozen=True, slots=True)
class _Seen:
    """The number of a document, and the digest of what bore it."""

    number: int
    digest_hex: str


@dataclass(frozen=True, slots=True)
class _Standing:
    """A document that was opened: its number, its bytes, and which version of the object it is."""

    number: int
    data: bytes
    etag: str
    version: str | None


class S3Registry(SealedRegistry):
    """The adapter ``s3-registry``; see ``ModelRegistry``."""

    def __init__(self, context: AdapterContext) -> None:
        bucket = Bucket(context)
        documents = S3Documents(bucket, context.data_dir / "state")
        super().__init__(NAME, context, blobs_of(context, bucket), documents)
        self._bucket = bucket

    def check(self) -> None:
        """See ``Checkable``."""
        self._bucket.check()

    def look_for_locks(self, most: int) -> FoundLocks:
        """See ``LockKeeper``."""
        return s3_lock.look_for(self._bucket, most)


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise Unavailable("the registry's own notes are damaged", code="unavailable.storage") from error


def _tenant(model: str) -> str:
    return check_tenant(model.partition("/")[0])


def _secret(path: Path) -> bytes:
    """Read the registry's secret; made on first use."""
    try:
        make_private_directory(path.parent)
        with contextlib.suppress(FileExistsError):
            create_durably(path, aead.new_key())
        secret = path.read_bytes()
    except OSError as error:
        raise Unavailable(
            f"the registry's secret cannot be had: {error.strerror}", code="unavailable.storage"
        ) from error
    if len(secret) != aead.KEY_BYTES:
        raise IntegrityError("the registry's secret is damaged: restore it from its backup", code="integrity.key")
    return secret
