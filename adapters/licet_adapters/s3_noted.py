"""Which legal holds an adapter had set, in its own folder: so that one which somebody else lifted is noticed.

Rules kept here:

- A lock is noted once the store shows it, and forgotten before it is lifted. A crash between the two leaves one unnoted for as
  long as it takes until the operation goes on; no lock is told as missing that was meant to be lifted.
- A note's time is when its lock was last seen. What was not seen keeps its time, and so is looked for first, each time.
- What a note could not be read back with is not taken from the store: a version's name has its bound.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from licet_adapters.errors import Unavailable
from licet_attestations import canonical
from licet_attestations.errors import FormatError
from licet_attestations.signer.files import make_private_directory, remove_durably, replace_durably

if TYPE_CHECKING:
    from pathlib import Path

_SUFFIX = ".json"
_MAX_NOTE_BYTES = 8 << 10
_MAX_VERSION_CHARS = 1024
"""As long as S3 makes the name of a version."""


@dataclass(frozen=True, slots=True)
class NotedLock:
    """A lock that was set: of which key, and of which of its versions."""

    key: str
    version: str | None

    def __post_init__(self) -> None:
        if len(self.version or "") > _MAX_VERSION_CHARS:
            raise Unavailable("the name of a version is longer than any can be", code="unavailable.storage")


class NotedLocks:
    """The locks that one adapter had set.

    Args:
        folder: Where they are noted, one file each.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def note(self, lock: NotedLock) -> None:
        """Note a lock, seen now."""
        body = canonical.dumps({"v": 1, "key": lock.key, "version": lock.version or ""})
        try:
            make_private_directory(self._folder)
            replace_durably(self._path(lock), body)
        except OSError as error:
            raise Unavailable(f"a hold cannot be noted: {error.strerror}", code="unavailable.storage") from error

    def forget(self, lock: NotedLock) -> None:
        """Forget a lock that is to be lifted."""
        try:
            remove_durably(self._path(lock))
        except OSError as error:
            raise Unavailable(f"a hold cannot be forgotten: {error.strerror}", code="unavailable.storage") from error

    def seen(self, lock: NotedLock) -> None:
        """A lock was there just now."""
        try:
            os.utime(self._path(lock))
        except FileNotFoundError:
            return  # It was lifted meanwhile.
        except OSError as error:
            raise Unavailable(
                f"that it was seen cannot be noted: {error.strerror}", code="unavailable.storage"
            ) from error

    def is_noted(self, lock: NotedLock) -> bool:
        """Whether a lock is to be there still."""
        return self._path(lock).exists()

    def longest_unseen(self) -> list[str]:
        """The names of all notes, that of the longest unseen lock first.

        Raises:
            Unavailable: The folder cannot be read.
        """
        times: dict[str, int] = {}
        try:
            if not self._folder.is_dir():
                return []
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    # What is lifted meanwhile is none to look for.
                    with contextlib.suppress(FileNotFoundError):
                        if entry.name.endswith(_SUFFIX):
                            times[entry.name] = entry.stat().st_mtime_ns
        except OSError as error:
            raise Unavailable(
                f"notes of holds cannot be listed: {error.strerror}", code="unavailable.storage"
            ) from error
        return sorted(times, key=lambda name: (times[name], name))

    def read(self, name: str) -> NotedLock | None:
        """What a note says; None if it is not there any more.

        Raises:
            Unavailable: It cannot be read, or says nothing.
        """
        try:
            with (self._folder / name).open("rb") as file:
                told = canonical.loads(file.read(_MAX_NOTE_BYTES))
            return NotedLock(str(told["key"]), str(told["version"]) or None)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unavailable(f"it cannot be read: {error.strerror}", code="unavailable.storage") from error
        except (KeyError, TypeError, FormatError) as error:
            raise Unavailable("it is damaged", code="unavailable.storage") from error

    def _path(self, lock: NotedLock) -> Path:
        name = hashlib.sha256(f"{lock.key}\n{lock.version or ''}".encode()).hexdigest()
        return self._folder / f"{name}{_SUFFIX}"
