"""What a bucket with Object Lock keeps from removal: legal holds and retention, each of one version.

Rules kept here:

- A lock is of the version that was looked at, by its id: whatever is put on top of it meanwhile is not what is locked.
- Retention is compliance, and as long as configured: it goes with the bytes when they are stored, so there is no moment without it, and what
  is found to be less is set anew. Whose idea the less was (a default of the bucket, somebody's haste) makes no difference.
- A legal hold that was set is looked for again, now and then: whoever has the right can lift it behind our back, and is noticed.
- Whether a hold may still be set or lifted is asked right before every request, and no request is sent again without asking.
"""

from __future__ import annotations

import datetime as dt
import time
from typing import TYPE_CHECKING, Any

from licet_adapters.errors import AdapterError, Conflict, NotFound, Unavailable
from licet_adapters.ports import FoundLocks, HoldOutcome
from licet_adapters.s3 import Bucket, s3_errors
from licet_adapters.s3_noted import NotedLock

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MODE = "COMPLIANCE"
_HOLD_TRIES = 4
_FIRST_PAUSE_S = 0.2
_SKEW = dt.timedelta(minutes=15)
"""How far the server's clock may be from ours: further off it takes none of our signatures."""


def head(bucket: Bucket, key: str, version: str | None = None) -> dict[str, Any] | None:
    """What the server tells of a version, or of the newest; None if there is none."""
    try:
        with s3_errors("an object is looked for"):
            found: dict[str, Any] = bucket.client.head_object(Bucket=bucket.name, Key=key, **of_version(version))
    except NotFound:
        return None
    return found


def of_version(version: str | None) -> dict[str, str]:
    """The argument that names a version; none where there are none."""
    return {} if version is None else {"VersionId": version}


def retained(bucket: Bucket) -> dict[str, Any]:
    """The arguments that store an object with its retention; none if none is configured."""
    if not bucket.retention_days:
        return {}
    return {"ObjectLockMode": MODE, "ObjectLockRetainUntilDate": dt.datetime.now(dt.UTC) + _days(bucket) + _SKEW}


def retain(bucket: Bucket, key: str) -> None:
    """Have the newest version kept for as long as is configured, counted from when it was stored.

    Raises:
        NotFound: There is none.
        Unavailable: It could not be set.
    """
    if not bucket.retention_days:
        return
    found = head(bucket, key)
    if found is None:
        raise NotFound("no such object")
    with s3_errors("an object's retention is looked at"):
        wanted = found["LastModified"] + _days(bucket)
        until = found.get("ObjectLockRetainUntilDate")
        if wanted <= dt.datetime.now(dt.UTC):
            return  # Its time is over; asking again makes it no longer.
        if found.get("ObjectLockMode") == MODE and until is not None and until >= wanted:
            return
    with s3_errors("an object's retention is set"):
        bucket.client.put_object_retention(
            Bucket=bucket.name,
            Key=key,
            Retention={"Mode": MODE, "RetainUntilDate": wanted + _SKEW},
            **of_version(found.get("VersionId")),
        )


def check_removable(found: Mapping[str, Any]) -> None:
    """Raise ``Conflict`` if a version of which this is told is held or retained."""
    if found.get("ObjectLockLegalHoldStatus") == "ON":
        raise Conflict("a legal hold lies on the object: lift it first", code="conflict.held")
    with s3_errors("an object's retention is looked at"):
        until = found.get("ObjectLockRetainUntilDate")
        if until is not None and until > dt.datetime.now(dt.UTC):
            raise Conflict(
                f"the object is retained until {until.astimezone(dt.UTC):%Y-%m-%dT%H:%MZ}: nothing removes it before",
                code="conflict.retained",
            )


def set_hold(
    bucket: Bucket, key: str, version: str | None, still_permitted: Callable[[], None], *, held: bool
) -> HoldOutcome:
    """Set or lift the legal hold of a version.

    Args:
        bucket: Where.
        key: What.
        version: Of which version.
        still_permitted: Asked right before each request; raises if it may not be sent any more.
        held: Whether it is to be held.
    """
    if not bucket.features().object_lock:
        return HoldOutcome(held=False, kept_by="none")
    lock = NotedLock(key, version)
    if not held:
        still_permitted()
        bucket.locks.forget(lock)
    for tried in range(1, _HOLD_TRIES + 1):
        still_permitted()
        try:
            with s3_errors("a legal hold is set"):
                bucket.single.put_object_legal_hold(
                    Bucket=bucket.name,
                    Key=key,
                    LegalHold={"Status": "ON" if held else "OFF"},
                    **of_version(version),
                )
            break
        except Unavailable:
            if tried == _HOLD_TRIES:
                raise
        time.sleep(_FIRST_PAUSE_S * 2**tried)
    found = head(bucket, key, version) or {}
    if (found.get("ObjectLockLegalHoldStatus") == "ON") is not held:
        raise Unavailable("the store took a legal hold and does not show it", code="unavailable.storage")
    if held:
        bucket.locks.note(lock)
    return HoldOutcome(held=held, kept_by="object-lock")


def look_for(bucket: Bucket, most: int) -> FoundLocks:
    """Look for the legal holds that were set, the longest unseen first.

    Args:
        bucket: Where.
        most: How many are looked at; as many others may turn out not to let themselves be looked at.

    Raises:
        AdapterError: The bucket, or the folder of the notes, cannot be asked.
    """
    missing: list[str] = []
    unseen: list[str] = []
    seen = 0
    for name in bucket.locks.longest_unseen():
        if most in (seen + len(missing), len(unseen)):
            break
        what = f"the note {name}"
        try:
            lock = bucket.locks.read(name)
            if lock is None:
                continue  # It was lifted meanwhile.
            what = f"the legal hold on {lock.key}" + (f", version {lock.version}" if lock.version else "")
            found = head(bucket, lock.key, lock.version)
            if found is not None and found.get("ObjectLockLegalHoldStatus") == "ON":
                bucket.locks.seen(lock)
                seen += 1
            elif bucket.locks.is_noted(lock):  # Or it was lifted by us while we looked.
                missing.append(
                    f"{what} {'is gone with its object' if found is None else 'was lifted by somebody else'}"
                )
        except AdapterError as error:
            bucket.check()  # Where none can be looked at, nothing is said of single ones.
            unseen.append(f"{what}: {error}")
    return FoundLocks(missing=tuple(missing), unseen=tuple(unseen))


def _days(bucket: Bucket) -> dt.timedelta:
    return dt.timedelta(days=bucket.retention_days)
