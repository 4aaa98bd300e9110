"""One S3 bucket, as the adapters use it: how it is reached, what it can do, and what its errors mean.

Rules kept here:

- Options come from the operator's settings; credentials from a file of its owner's alone, or by the standard AWS chain. They
  are never logged and never part of an error.
- Every request has a time-out, a bounded number of tries, and bounds on how long each takes in all and how much its answer may have
  (``s3_bounds``). What may pass is ``Unavailable``, with nothing half-visible. So is an answer that makes no sense, whatever is wrong with it.
- Nothing is believed that was not tried: before first use a probe object shows whether the server keeps ``If-None-Match``
  and ``If-Match``. A server that ignores them is refused, for it would overwrite. What else it lacks is written down; that is looked at
  again with each check, because it can be switched on, and off, while this runs.
"""

from __future__ import annotations

import configparser
import contextlib
import logging
import math
import re
import secrets
import stat
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from urllib3.exceptions import HTTPError

from licet_adapters import s3_bounds
from licet_adapters.errors import AdapterError, Conflict, NotFound, Unavailable
from licet_adapters.s3_noted import NotedLocks
from licet_attestations import canonical
from licet_attestations.signer.files import make_private_directory, replace_durably

if TYPE_CHECKING:
    from collections.abc import Iterator

    from licet_adapters.ports import AdapterContext

logger = logging.getLogger(__name__)

FEATURES_FILE = "bucket.json"
"""Below the adapter's data folder: what the probe found, for ``licet doctor``."""

_TRIES = 4
_MAX_CODE_CHARS = 64
_CONNECT_TIMEOUT_S = 5.0
_DEFAULT_TIMEOUT_S = 30.0
_PRECONDITION = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_ABSENT = frozenset({"NoSuchKey", "NoSuchVersion", "NotFound", "404"})
_AWAY = (
    (frozenset({"NoSuchBucket"}), "make the bucket, or correct LICET_S3_BUCKET", "unavailable.bucket"),
    (
        frozenset({"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "401", "403"}),
        "correct the credentials or their rights",
        "unavailable.denied",
    ),
    (
        frozenset({"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "507"}),
        "it is full; make room",
        "unavailable.full",
    ),
)
"""What passes when somebody mends it: names or statuses, what to do, and the code."""

_UPLOAD_GONE = frozenset({"NoSuchUpload", "InvalidPart", "InvalidPartOrder"})
_NO_LOCK = frozenset({"ObjectLockConfigurationNotFoundError", "NotImplemented", "MethodNotAllowed", "InvalidRequest"})


class Overtaken(Conflict):
    """A condition of a write did not hold: something else stands there."""


class UploadGone(AdapterError):
    """The server no longer knows an upload that was begun, or parts of it."""


@dataclass(frozen=True, slots=True)
class Features:
    """What the bucket can do, as found.

    Attributes:
        versioned: It keeps what is overwritten or removed, until that version itself is removed.
        object_lock: Legal holds and retention are kept by the server.
        uploads_listed: Unfinished uploads can be found and ended.
        refused: What was tried and did not work, or is otherwise than Licet wants it, in words.
    """

    versioned: bool
    object_lock: bool
    uploads_listed: bool
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Keeping:
    """What the bucket keeps from removal, as its configuration says: it may be another tomorrow.

    Attributes:
        versioned: See ``Features``.
        object_lock: See ``Features``.
        default_rule: Retention that it sets by itself on whatever says none, in words; empty for none.
    """

    versioned: bool
    object_lock: bool
    default_rule: str


@contextlib.contextmanager
def s3_errors(what: str) -> Iterator[None]:
    """Turn what S3 and the way to it say into the adapters' errors.

    Args:
        what: What was tried, in words; part of the message.
    """
    try:
        yield
    except ClientError as error:
        raise _meaning(error, what) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise AdapterError(
            f"{what}: there are no credentials for S3: set LICET_S3_CREDENTIALS_FILE, or the standard AWS ones",
            code="adapter.credentials",
        ) from error
    except (BotoCoreError, HTTPError, ConnectionError, TimeoutError) as error:
        raise Unavailable(f"{what}: S3 does not answer ({type(error).__name__})", code="unavailable.storage") from error
    except AdapterError:
        raise
    except Exception as error:
        # A date, a number or a name that is none, or missing: boto3 and we take the server's word apart in many places.
        logger.warning("S3 answers what makes no sense", extra={"what": what}, exc_info=error)
        raise Unavailable(
            f"{what}: S3's answer makes no sense ({type(error).__name__})", code="unavailable.storage"
        ) from error


def error_code(error: ClientError) -> str:
    """The code of S3's answer, as far as it can be one: a server may say anything there, of any length."""
    return re.sub(r"[^A-Za-z0-9.]", "", str(error.response.get("Error", {}).get("Code", ""))[:_MAX_CODE_CHARS])


def _meaning(error: ClientError, what: str) -> AdapterError:
    code = error_code(error)
    status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    told, named = f"{what}: S3 answers {status} {code}", {code, status}
    if code in _UPLOAD_GONE:
        return UploadGone(told)
    if named & _PRECONDITION:
        return Overtaken(told, code="conflict.busy")
    if code != "NoSuchBucket" and named & _ABSENT:
        return NotFound("no such object")
    for names, mend, kind in _AWAY:
        if named & names:
            return Unavailable(f"{told}: {mend}", code=kind)
    return Unavailable(told, code="unavailable.storage")


class Bucket:
    """The bucket that an adapter's options name; reached, and looked at, when it is first used.

    Args:
        context: Of the adapter.

    Attributes:
        name: Of the bucket.
        prefix: Goes before every key.
        retention_days: For how long objects are kept from removal; 0 for not at all.
        locks: The legal holds that the adapter had set.
    """

    def __init__(self, context: AdapterContext) -> None:
        self.name = context.option("s3_bucket")
        if not self.name:
            raise AdapterError("no bucket is configured: set LICET_S3_BUCKET", code="adapter.options")
        self.prefix = context.option("s3_prefix")
        if self.prefix and not self.prefix.endswith("/"):
            raise AdapterError("LICET_S3_PREFIX must end in /", code="adapter.options")
        self.retention_days = int(context.option("s3_retention_days", "0"))
        self.locks = NotedLocks(context.data_dir / "state" / "locks")
        self._report = context.data_dir / FEATURES_FILE
        # One session: each reads megabytes of service descriptions before its first client.
        session = boto3.session.Session()
        self._client = _client(context, session, tries=_TRIES)
        self._single = _client(context, session, tries=1)
        # What is asked again soon anyway waits for nothing: a server that hangs is told as away within seconds.
        self._prober = _client(context, session, tries=2, most_s=_CONNECT_TIMEOUT_S)
        self._lock = threading.Lock()
        self._features: Features | None = None
        try:
            self.check()
        except Unavailable as error:
            # It may come back; until then every act says so itself.
            logger.warning("the bucket cannot be reached yet", extra={"bucket": self.name, "code": error.code})

    @property
    def client(self) -> Any:
        """The boto3 client, once the bucket is known to keep what is relied upon."""
        self.features()
        return self._client

    @property
    def single(self) -> Any:
        """The same, for what is sent once and not again by itself, since what permits it may be over by then."""
        self.features()
        return self._single

    def key(self, tenant: str, name: str) -> str:
        """The key of what ``name`` stands for: nothing of it can be told from the key."""
        return f"{self.prefix}{tenant}/{name}"

    def features(self) -> Features:
        """What the bucket can do; tried once.

        Raises:
            Unavailable: It cannot be reached.
            AdapterError: It cannot be relied upon (code ``adapter.bucket``).
        """
        with self._lock:
            if self._features is None:
                self._features = self._look()
            return self._features

    def check(self) -> None:
        """See ``Checkable``: the bucket is there, lets these credentials in, and keeps what is relied upon."""
        with s3_errors("the bucket is looked for"):
            self._prober.list_objects_v2(Bucket=self.name, Prefix=self.prefix, MaxKeys=1)
        before = self.features()
        found = self._described(_keeping(self._prober, self.name), uploads_listed=before.uploads_listed)
        with self._lock:
            if found == self._features:
                return
            self._features = found
        self._report_found(found)

    def _look(self) -> Features:
        with s3_errors("the bucket is looked at"):
            self._probe_conditions()
            try:
                self._client.list_multipart_uploads(Bucket=self.name, Prefix=self.prefix, MaxUploads=1)
                uploads_listed = True
            except ClientError:
                uploads_listed = False
        found = self._described(_keeping(self._client, self.name), uploads_listed=uploads_listed)
        self._report_found(found)
        return found

    def _described(self, keeping: _Keeping, *, uploads_listed: bool) -> Features:
        """What that comes to.

        Raises:
            AdapterError: The bucket cannot keep what it is configured to keep.
        """
        refused = []
        if not keeping.object_lock:
            refused.append("no Object Lock: a hold is kept by policy alone, and retention cannot be set")
        if keeping.default_rule:
            refused.append(
                f"it retains by itself ({keeping.default_rule}) what Licet stores without a retention of its own, such as "
                "the registry's stages, and so what is deleted stays until then: set LICET_S3_RETENTION_DAYS instead"
            )
        if not uploads_listed:
            refused.append("unfinished uploads cannot be listed: let a lifecycle rule of the bucket end them")
        if self.retention_days and not keeping.object_lock:
            raise AdapterError(
                f"LICET_S3_RETENTION_DAYS is set, and the bucket {self.name} has no Object Lock: make one that has",
                code="adapter.bucket",
            )
        return Features(keeping.versioned, keeping.object_lock, uploads_listed, tuple(refused))

    def _report_found(self, found: Features) -> None:
        with contextlib.suppress(OSError):  # Only a report.
            make_private_directory(self._report.parent)
            replace_durably(self._report, canonical.dumps(asdict(found) | {"refused": list(found.refused), "v": 1}))
        for reason in found.refused:
            logger.warning("the bucket lacks something", extra={"bucket": self.name, "reason": reason})

    def _probe_conditions(self) -> None:
        """Try whether conditions on writes are kept, with an object of no content and no other use."""
        key = f"{self.prefix}licet-probe/{secrets.token_hex(16)}"
        versions = []
        try:
            first = self._client.put_object(Bucket=self.name, Key=key, Body=b"1", IfNoneMatch="*")
            versions.append(first.get("VersionId"))
            if not self._is_refused(versions, Key=key, Body=b"2", IfNoneMatch="*"):
                raise AdapterError(
                    f"the server of the bucket {self.name} ignores If-None-Match, so it would overwrite: it cannot be used",
                    code="adapter.bucket",
                )
            if not self._is_refused(versions, Key=key, Body=b"3", IfMatch=f'"{"0" * 32}"'):
                raise AdapterError(
                    f"the server of the bucket {self.name} ignores If-Match, so changes would be lost: it cannot be used",
                    code="adapter.bucket",
                )
        finally:
            for version in versions:
                with contextlib.suppress(ClientError):  # A bucket that does not let it go keeps one byte.
                    self._client.delete_object(
                        Bucket=self.name, Key=key, **({} if version is None else {"VersionId": version})
                    )

    def _is_refused(self, versions: list[Any], **put: Any) -> bool:
        try:
            versions.append(self._client.put_object(Bucket=self.name, **put).get("VersionId"))
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status in {409, 412}:
                return True
            if status == 501:  # noqa: PLR2004  # "Not implemented" is no refusal of this write, but of all such.
                return False
            raise
        return False


def _keeping(client: Any, bucket: str) -> _Keeping:
    """Read from the bucket's configuration what it keeps."""
    with s3_errors("the bucket's versioning and lock are looked at"):
        versioned = client.get_bucket_versioning(Bucket=bucket).get("Status") in {"Enabled", "Suspended"}
        try:
            told = client.get_object_lock_configuration(Bucket=bucket).get("ObjectLockConfiguration", {})
        except ClientError as error:
            if error_code(error) not in _NO_LOCK:
                raise
            told = {}
        rule = told.get("Rule", {}).get("DefaultRetention", {})
        lasts = [f"{int(rule[unit])} {unit.lower()}" for unit in ("Days", "Years") if rule.get(unit)]
        mode = "COMPLIANCE" if rule.get("Mode") == "COMPLIANCE" else "GOVERNANCE"
        return _Keeping(
            versioned=versioned,
            object_lock=told.get("ObjectLockEnabled") == "Enabled",
            default_rule=f"{', '.join(lasts)}, {mode}" if lasts else "",
        )


def _client(context: AdapterContext, session: boto3.session.Session, *, tries: int, most_s: float = math.inf) -> Any:
    timeout_s = min(float(context.option("s3_timeout_s", str(_DEFAULT_TIMEOUT_S))), most_s)
    config = Config(
        connect_timeout=min(timeout_s, _CONNECT_TIMEOUT_S),
        read_timeout=timeout_s,
        retries={"mode": "standard", "total_max_attempts": tries},
        s3={"addressing_style": context.option("s3_addressing", "auto")},
        # What is read is authenticated by its seal; a checksum that the store tells is not trusted.
        response_checksum_validation="when_required",
        max_pool_connections=32,
        user_agent_extra="licet",
    )
    ca_file = context.option("s3_ca_file")
    with s3_errors("the client is made"):
        client = session.client(
            "s3",
            endpoint_url=context.option("s3_endpoint") or None,
            region_name=context.option("s3_region") or None,
            verify=ca_file or None,
            config=config,
            **_credentials(context.option("s3_credentials_file")),
        )
    return s3_bounds.bind(client, timeout_s)


def _credentials(file: str) -> dict[str, str]:
    """Read a credentials file of the standard form, section ``default``; nothing for the standard chain."""
    if not file:
        return {}
    path = Path(file)
    parser = configparser.ConfigParser(interpolation=None)
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise AdapterError(
                f"{path} can be reached by others: chmod 0600, and replace the credentials if they were read",
                code="adapter.credentials",
            )
        parser.read_string(path.read_text("utf-8"))
        section = parser["default"]
        found = {name: section[name] for name in ("aws_access_key_id", "aws_secret_access_key")}
        if token := section.get("aws_session_token"):
            found["aws_session_token"] = token
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError) as error:
        # What stands in the file is never part of the message, nor of its cause.
        raise AdapterError(
            f"{path} is no credentials file: [default] with aws_access_key_id and aws_secret_access_key ({type(error).__name__})",
            code="adapter.credentials",
        ) from None
    return found
