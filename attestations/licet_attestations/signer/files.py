"""Files that must survive a crash: written to a temporary file, synced, renamed, and their folder synced.

Rules kept here:

- When a function returns, what it did is on the disk. When it raises, either the old or the new state is, whole.
- Files and folders made here are the owner's alone (0600, 0700).
- A temporary file left by a crash begins with ``.tmp-`` and may be removed by ``sweep``.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"


def sync_directory(directory: Path) -> None:
    """Make renames, creations and removals in ``directory`` durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_private_directory(directory: Path) -> None:
    """Create ``directory`` and its missing parents, 0700, each synced into its parent."""
    if directory.is_dir():
        return
    make_private_directory(directory.parent)
    with contextlib.suppress(FileExistsError):  # Another thread or process was first.
        directory.mkdir(mode=0o700)
    sync_directory(directory.parent)


def _write_temporary(directory: Path, data: bytes) -> Path:
    temporary = directory / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def replace_durably(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` whole, whether or not it exists."""
    temporary = _write_temporary(path.parent, data)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def create_durably(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` whole, which must not exist.

    Raises:
        FileExistsError: It exists; it was left as it was.
    """
    temporary = _write_temporary(path.parent, data)
    try:
        # A link fails where the name is taken, as O_EXCL does, but the name never stands for half a file.
        os.link(temporary, path, follow_symlinks=False)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def remove_durably(path: Path) -> bool:
    """Remove ``path``; return whether it was there. Its absence is durable either way."""
    try:
        path.unlink()
        found = True
    except FileNotFoundError:
        found = False
    if path.parent.is_dir():
        sync_directory(path.parent)
    return found


def sweep(directory: Path) -> None:
    """Remove what crashed writers left in ``directory``; only its one owner may call this, before it starts to write."""
    for left in directory.glob(f"{TEMPORARY_PREFIX}*"):
        left.unlink(missing_ok=True)
    sync_directory(directory)
