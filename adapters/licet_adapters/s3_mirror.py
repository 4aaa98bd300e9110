"""A mirror of a log in a bucket, for anybody whom the bucket lets read it.

Rule kept here: an object is written whole or not at all, as S3 does; what may be read, and by whom, is the bucket's to say.
"""

from __future__ import annotations

from typing import Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from licet_adapters.s3 import error_code, s3_errors
from licet_attestations.errors import VerificationError
from licet_attestations.tiles import CHECKPOINT

_MISSING: Final = frozenset({"NoSuchKey", "404", "NotFound"})
_TIMEOUT_S: Final = 30
_MOST_DROPPED: Final = 255


class S3Place:
    """A mirror under a prefix of a bucket; see ``licet_attestations.mirror.Place``.

    Args:
        bucket: Made by its owner.
        prefix: Goes before every path; empty or ending in /.
        endpoint: URL of the service; empty for AWS's own. Credentials come by the standard AWS chain.
        addressing: ``path``, ``virtual`` or ``auto``.
    """

    def __init__(self, bucket: str, prefix: str, endpoint: str = "", addressing: str = "auto") -> None:
        config = Config(
            connect_timeout=_TIMEOUT_S,
            read_timeout=_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": 5},
            s3={"addressing_style": addressing},
            response_checksum_validation="when_required",
            request_checksum_calculation="when_required",
        )
        self._client: Any = boto3.session.Session().client("s3", endpoint_url=endpoint or None, config=config)
        self._bucket = bucket
        self._prefix = prefix

    def read(self, path: str, max_bytes: int) -> bytes | None:
        """See ``Place``."""
        with s3_errors(f"{path} of the mirror is read"):
            try:
                found = self._client.get_object(Bucket=self._bucket, Key=self._prefix + path)
            except ClientError as error:
                if error_code(error) in _MISSING:
                    return None
                raise
            data: bytes = found["Body"].read(max_bytes + 1)
        if len(data) > max_bytes:
            raise VerificationError(f"{path} of the mirror is longer than such a file can be", where=path)
        return data

    def write(self, path: str, data: bytes) -> None:
        """See ``Place``."""
        changes = path == CHECKPOINT
        with s3_errors(f"{path} of the mirror is written"):
            self._client.put_object(
                Bucket=self._bucket,
                Key=self._prefix + path,
                Body=data,
                ContentType="text/plain; charset=utf-8" if changes else "application/octet-stream",
                CacheControl="no-cache" if changes else "max-age=31536000, immutable",
            )

    def drop_partials(self, path: str) -> None:
        """See ``Place``."""
        with s3_errors(f"partial tiles of {path} are removed"):
            listed = self._client.list_objects_v2(
                Bucket=self._bucket, Prefix=f"{self._prefix}{path}.p/", MaxKeys=_MOST_DROPPED
            )
            for entry in listed.get("Contents", ()):
                self._client.delete_object(Bucket=self._bucket, Key=entry["Key"])
