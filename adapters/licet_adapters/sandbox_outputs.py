"""Files that cross the wall of the sandbox: staged on the way in, collected on the way out.

Rules kept here:

- What goes in is copied while it is hashed: the job reads the very bytes whose digest the warrant names.
- What comes out was made by code that may be hostile. It is opened without following links, must be a regular file
  with one name, of the expected owner and a bounded size, and is copied: nothing the job can still reach is used.
- An unexpected file is refused, never skipped: a job that leaves one did something we do not understand.
"""

from __future__ import annotations

import hashlib
import os
import stat
from typing import TYPE_CHECKING

from licet_adapters.errors import InputRefused, JobFailed, Unavailable
from licet_attestations.signer.files import sync_directory

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from licet_adapters.ports import InputFile

_CHUNK_BYTES = 1 << 20
MAX_INPUT_BYTES = 8 << 30
_NO_FOLLOW = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def stage_input(source: InputFile, target: Path) -> None:
    """Copy an input to ``target``, readable to all (its folder is not), and verify its digest.

    Raises:
        InputRefused: Not a regular file, too large, or other content than its digest says.
    """
    try:
        fd = os.open(source.path, os.O_RDONLY | _NO_FOLLOW)
    except OSError as error:
        raise InputRefused(f"input {target.name}: cannot be opened: {error.strerror}", code="input.file") from error
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_INPUT_BYTES:
            raise InputRefused(
                f"input {target.name}: not a regular file of at most {MAX_INPUT_BYTES} bytes", code="input.file"
            )
        digest_hex = _copy(file.fileno(), target, 0o444, found.st_size)
    if digest_hex != source.digest_hex:
        raise InputRefused(f"input {target.name}: its content is not what its digest names", code="input.digest")


def collect_outputs(
    output_dir: Path,
    target_dir: Path,
    *,
    required: Collection[str],
    ignored: Collection[str] = (),
    owner_uid: int,
    max_file_bytes: int,
    max_files: int,
) -> dict[str, str]:
    """Copy what a finished job left.

    Args:
        output_dir: Where the job wrote.
        target_dir: Where the copies go (0600); must exist, and be out of the job's reach.
        required: Names that must be there.
        ignored: Names that may be there too; they must be as harmless, and are not copied.
        owner_uid: Who the job was, seen from outside.
        max_file_bytes: Each.
        max_files: All together.

    Returns:
        Name to SHA-256 in hex of what was copied.

    Raises:
        JobFailed: A link, pipe, device or folder, a file of two names or of another owner, an unexpected, missing, oversized
            or surplus file; code ``job.outputs``.
    """
    dir_fd = os.open(output_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with os.scandir(dir_fd) as entries:
            names = sorted(entry.name for _, entry in zip(range(max_files + 1), entries, strict=False))
        if len(names) > max_files:
            raise JobFailed(f"the job left more than {max_files} files", code="job.outputs")
        if missing := sorted(set(required) - set(names)):
            raise JobFailed(f"the job did not write {', '.join(missing)}", code="job.outputs")
        digests: dict[str, str] = {}
        for name in names:
            if name not in required and name not in ignored:
                raise JobFailed(f"the job left an unexpected file {name[:80]!r}", code="job.outputs")
            fd = _open_output(dir_fd, name, owner_uid, max_file_bytes)
            try:
                if name in required:
                    digests[name] = _copy(fd, target_dir / name, 0o600, max_file_bytes)
            finally:
                os.close(fd)
    finally:
        os.close(dir_fd)
    sync_directory(target_dir)
    return digests


def measure_outputs(output_dir: Path) -> tuple[int, int]:
    """Return how many entries stand in ``output_dir`` and how many bytes they take; links are not followed."""
    count = total_bytes = 0
    with os.scandir(output_dir) as entries:
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # Renamed while we looked.
                continue
            count += 1
            total_bytes += found.st_blocks * 512
    return count, total_bytes


def _open_output(dir_fd: int, name: str, owner_uid: int, max_file_bytes: int) -> int:
    shown = repr(name[:80])
    try:
        # O_NONBLOCK: a pipe must not hold us up before it is seen to be one.
        fd = os.open(name, os.O_RDONLY | _NO_FOLLOW, dir_fd=dir_fd)
    except OSError as error:
        raise JobFailed(f"output {shown} is not a regular file: {error.strerror}", code="job.outputs") from error
    found = os.fstat(fd)
    problem = None
    if not stat.S_ISREG(found.st_mode):
        problem = "is not a regular file"
    elif found.st_nlink != 1:
        problem = "has a second name (a hard link)"
    elif found.st_uid != owner_uid:
        problem = "belongs to somebody else"
    elif found.st_size > max_file_bytes:
        problem = f"has {found.st_size} bytes; at most {max_file_bytes} are taken"
    if problem is not None:
        os.close(fd)
        raise JobFailed(f"output {shown} {problem}", code="job.outputs")
    return fd


def _copy(source_fd: int, target: Path, mode: int, max_bytes: int) -> str:
    digest = hashlib.sha256()
    try:
        target_fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            os.fchmod(target_fd, mode)  # Whatever the umask.
            copied = 0
            while chunk := os.read(source_fd, _CHUNK_BYTES):
                copied += len(chunk)
                if copied > max_bytes:
                    raise JobFailed(f"{target.name} grew while it was read", code="job.outputs")
                digest.update(chunk)
                view = memoryview(chunk)
                while view:
                    view = view[os.write(target_fd, view) :]
            os.fsync(target_fd)
        finally:
            os.close(target_fd)
    except OSError as error:
        raise Unavailable(f"{target.name} cannot be copied: {error.strerror}") from error
    return digest.hexdigest()
