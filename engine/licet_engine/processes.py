"""Processes that belong together die together, however one of them ends."""

from __future__ import annotations

import ctypes
import fcntl
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
SIGN_WITHIN_S: Final = 30.0
"""How old a sign of life may be: it is given every second."""


def die_with(parent: int) -> Callable[[], None]:
    """What a child calls between fork and exec, so that the kernel ends it when its parent ends.

    NOTE: The kernel takes the thread that forked for the parent: it must live as long as the child should.

    Args:
        parent: Process id of the parent.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def set_up() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # It ended before the flag was set.
            os._exit(1)

    return set_up


@contextmanager
def alone(lock: Path) -> Iterator[bool]:
    """Whether this process is, while in the block, the only one at what a lock stands for.

    The kernel lets go of it when the process ends, however it does.

    Args:
        lock: A file that is there, or is made.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def die_with_server() -> None:
    """Ask the kernel to end this process of a server when the one that started it ends.

    The flag of a supervisor's child is not inherited: without one of its own, what a killed server had started would go
    on answering, on the same port, beside the server that is started in its place.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    server = multiprocessing.parent_process()
    if server is not None and not server.is_alive():  # It ended before the flag was set.
        os._exit(1)


def give_sign(path: Path) -> None:
    """Say that this process lives: its id, in a file that is touched again and again."""
    try:
        os.utime(path)
    except FileNotFoundError:
        path.write_text(str(os.getpid()), encoding="ascii")


def is_alive(path: Path) -> bool:
    """Whether the sign of life at ``path`` is fresh."""
    try:
        return time.time() - path.stat().st_mtime < SIGN_WITHIN_S
    except OSError:
        return False
