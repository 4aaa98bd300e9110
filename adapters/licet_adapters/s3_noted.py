"""Which legal holds an adapter had set, in its own folder: so that one which somebody else lifted can be missed.

Rules kept here:

- A lock is noted once the store shows it, and forgotten before it is lifted. A crash between the two leaves one unnoted for as
  long as it takes until the operation goes on; no lock is missed that was meant to be lifted.
- A note's time is when its lock was last seen. What was not seen keeps its time, and so is looked for first, each time.
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
    from collections.abc import Iterator
    from pathlib import Path

_SUFFIX = ".json"
_MAX_NOTE_BYTES = 8 << 10


@dataclass(frozen=True, slots=True)
class NotedLock:
    """A lock that was set: of which key, and of which of its versions."""

    key: str
    version: str | None


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

    def is_noted(self, lock: NotedLock) -> bool:
        """Whether a lock is to be there still."""
        return self._path(lock).exists()

    def longest_unseen(self, most: int) -> Iterator[NotedLock]:
        """Locks, the longest unseen first."""
        if not self._folder.is_dir():
            return
        times: dict[str, int] = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                # What is lifted meanwhile is none to look for.
                with contextlib.suppress(FileNotFoundError):
                    if entry.name.endswith(_SUFFIX):
                        times[entry.name] = entry.stat().st_mtime_ns
        for name in sorted(times, key=lambda name: (times[name], name))[:most]:
            try:
                with (self._folder / name).open("rb") as file:
                    told = canonical.loads(file.read(_MAX_NOTE_BYTES))
                yield NotedLock(str(told["key"]), str(told["version"]) or None)
            except FileNotFoundError:
                continue
            except (KeyError, TypeError, FormatError) as error:
                raise Unavailable(f"the note of a hold is damaged: {name}", code="unavailable.storage") from error

    def _path(self, lock: NotedLock) -> Path:
        name = hashlib.sha256(f"{lock.key}\n{lock.version or ''}".encode()).hexdigest()
        return self._folder / f"{name}{_SUFFIX}"
