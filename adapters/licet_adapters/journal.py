"""The journal of accesses: every warrant that an adapter admitted, numbered without gaps.

Rules kept here:

- A line is durable before the act: what was not written down is not done.
- Numbers go on over restarts and over all processes of an instance: a number that is missing is a line that was taken away.
- A line that a crash cut short stays as it is, and numbers go on behind it; the act it was for was not done.

It is written by the adapter itself. Whoever can write the adapter's folder can write it; what it is compared with is kept elsewhere.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from licet_adapters.errors import Unavailable
from licet_attestations import canonical
from licet_attestations.errors import FormatError
from licet_attestations.signer.files import make_private_directory, sync_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from licet_attestations.warrant import Warrant

JOURNAL: Final = "accesses.jsonl"
_MAX_LINE_BYTES: Final = 1024
_FIELDS: Final = frozenset({"n", "warrant", "tenant", "operation", "at_ms"})


@dataclass(frozen=True, slots=True)
class Access:
    """An admitted warrant.

    Attributes:
        number: From 1.
        warrant: Its id.
        tenant: Whose things.
        operation: What was admitted.
        at_ms: When.
    """

    number: int
    warrant: str
    tenant: str
    operation: str
    at_ms: int


@dataclass(slots=True)
class Journal:
    """A journal, read.

    Attributes:
        accesses: In order.
        missing: How many numbers are missing, or stand where they should not.
        cut_short: Lines that are none.
    """

    accesses: list[Access] = field(default_factory=list)
    missing: int = 0
    cut_short: int = 0


def note_access(folder: Path, warrant: Warrant, at_ms: int) -> int:
    """Write an access down, durably; return its number.

    Raises:
        Unavailable: It cannot be written, or the numbers cannot be told. Nothing may be done.
    """
    path = folder / JOURNAL
    try:
        make_private_directory(folder)
        is_new = not path.exists()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            size = os.fstat(fd).st_size
            tail = os.pread(fd, min(size, 4 * _MAX_LINE_BYTES), max(0, size - 4 * _MAX_LINE_BYTES))
            number = _last_number(tail, is_whole=size == len(tail)) + 1
            line = canonical.dumps(
                {
                    "n": number,
                    "warrant": warrant.id,
                    "tenant": warrant.tenant,
                    "operation": warrant.operation,
                    "at_ms": at_ms,
                }
            )
            # A line that a crash cut short is ended, so that it takes no other with it.
            os.write(fd, (b"" if not tail or tail.endswith(b"\n") else b"\n") + line + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        if is_new:
            sync_directory(folder)
    except OSError as error:
        raise Unavailable(f"the access cannot be written down: {error.strerror}") from error
    return number


def read_journal(path: Path) -> Journal:
    """Read a journal.

    Raises:
        Unavailable: It cannot be read.
    """
    found, expected = Journal(), 1
    try:
        for line in _lines(path):
            access = _access(line)
            if access is None:
                found.cut_short += 1
                continue
            found.missing += abs(access.number - expected)
            expected = access.number + 1
            found.accesses.append(access)
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {error.strerror}") from error
    return found


def journals(adapters_dir: Path) -> list[Path]:
    """The journals of all adapter instances: in the instance's own folder, or in its ``state``."""
    return sorted([*adapters_dir.glob(f"*/{JOURNAL}"), *adapters_dir.glob(f"*/state/{JOURNAL}")])


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while line := stream.readline(_MAX_LINE_BYTES):
            yield line


def _access(line: bytes) -> Access | None:
    """A line as an access; None if it is none."""
    try:
        value = canonical.loads(line.rstrip(b"\n"), max_bytes=_MAX_LINE_BYTES, max_depth=1)
    except FormatError:
        return None
    if not isinstance(value, dict) or set(value) != _FIELDS or not line.endswith(b"\n"):
        return None
    numbers = (value["n"], value["at_ms"])
    texts = (value["warrant"], value["tenant"], value["operation"])
    if any(type(number) is not int for number in numbers) or not all(isinstance(text, str) for text in texts):
        return None
    return Access(value["n"], *texts, value["at_ms"])


def _last_number(tail: bytes, *, is_whole: bool) -> int:
    """The number of the last whole line."""
    for line in reversed(tail.splitlines(keepends=True)):
        access = _access(line)
        if access is not None:
            return access.number
    if tail and not is_whole:
        raise Unavailable("the last lines of the journal of accesses are damaged: look at it, and restore it")
    return 0
