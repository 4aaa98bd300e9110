"""A process that runs within bounds: how it is started, and seen dead.

Rules kept here:

- It begins as the launcher, which takes every bound on before it becomes the program; it dies with the thread that started it.
- Its control groups are there before it is, and are removed once it is dead.
- Whatever it started has its process group, and is killed with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from licet_adapters import sandbox_launch
from licet_adapters.errors import Unavailable
from licet_adapters.sandbox_limits import make_control_groups

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from licet_adapters.sandbox_limits import ControlGroups, Limits

_LAUNCHER = Path(sandbox_launch.__file__)
_TOLD_CHARS = 300


@contextlib.contextmanager
def launched(
    plan: Mapping[str, Any], limits: Limits, *, stdout: int, stderr: int, pass_fds: Sequence[int] = ()
) -> Iterator[tuple[subprocess.Popen[bytes], ControlGroups]]:
    """Start a process, and end it.

    Args:
        plan: What the launcher does and becomes, but for its parent and its control groups.
        limits: Of which the control groups take theirs.
        stdout: Where it writes: a descriptor, or ``subprocess.PIPE``.
        stderr: The same of its errors.
        pass_fds: Descriptors that it keeps.
    """
    groups = make_control_groups(limits)
    try:
        whole = {**plan, "parent": os.getpid(), "cgroup_procs": groups.procs_files()}
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_LAUNCHER), json.dumps(whole)],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            pass_fds=pass_fds,
            env={},
            start_new_session=True,
        )
        try:
            yield process, groups
        finally:
            end(process)
    finally:
        groups.remove()


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process, if it has not ended, with whatever it may have started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def require_launched(status: int, said: str, what: str) -> None:
    """See that the launcher became the program.

    Args:
        status: With which the process ended.
        said: What it wrote to its errors.
        what: What was to be started, for people.

    Raises:
        Unavailable: It did not.
    """
    if status == sandbox_launch.FAILED_STATUS and "sandbox launch:" in said:
        raise Unavailable(f"{what} could not be started: {said.strip()[-_TOLD_CHARS:]}", code="sandbox.launch")
