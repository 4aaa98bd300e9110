"""Bounds of a job: resource limits everywhere, control groups where they can be had.

Rules kept here:

- A limit is enforced by the kernel; what only a control group can enforce, and could not be had, is said in the report.
- A control group is named after the process that made it, so that a later process can remove what a killed one left.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_PREFIX = "licet-job-"
_V1_ROOT = Path("/sys/fs/cgroup")
_REMOVE_TRIES = 50
_REMOVE_PAUSE_S = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a job may use.

    Attributes:
        wall_s: Seconds from start to end.
        cpu_s: Processor seconds of any one process.
        memory_bytes: All its memory with a control group; the data segment of each process without.
        file_bytes: Largest file it may write.
        processes: Processes and threads.
        open_files: Descriptors of each process.
        output_bytes: All files in its output folder together.
        output_files: How many files may stand there.
        scratch_bytes: Size of its private ``/tmp`` and ``/dev/shm``.
        report_bytes: All lines it may report.
    """

    wall_s: int = 900
    cpu_s: int = 900
    memory_bytes: int = 4 << 30
    file_bytes: int = 512 << 20
    processes: int = 256
    open_files: int = 256
    output_bytes: int = 1 << 30
    output_files: int = 16
    scratch_bytes: int = 256 << 20
    report_bytes: int = 64 << 20

    def resource_limits(self, *, own_user: bool) -> dict[str, int]:
        """Names of ``resource`` constants to values.

        Args:
            own_user: The job has a user of its own; only then can processes be counted, since the kernel counts by user.
        """
        limits = {
            "RLIMIT_CORE": 0,
            "RLIMIT_CPU": self.cpu_s,
            "RLIMIT_DATA": self.memory_bytes,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_NOFILE": self.open_files,
        }
        return limits | ({"RLIMIT_NPROC": self.processes} if own_user else {})


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlGroups:
    """Control groups of one job.

    Attributes:
        directories: One for all (version 2), or one for each controller (version 1); empty if none could be had.
        enforced: Controller to what it holds, for the report.
    """

    directories: tuple[Path, ...]
    enforced: Mapping[str, str]

    def procs_files(self) -> list[str]:
        """Where the job's first process must write its id."""
        return [str(directory / "cgroup.procs") for directory in self.directories]

    def remove(self) -> None:
        """Remove them; the job's processes must be dying or dead."""
        for directory in self.directories:
            for _ in range(_REMOVE_TRIES):
                try:
                    directory.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:  # A killed process is not gone at once.
                    time.sleep(_REMOVE_PAUSE_S)


def make_control_groups(limits: Limits) -> ControlGroups:
    """Make control groups for one job beside this process's own, as far as this machine lets us."""
    name = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    directories: list[Path] = []
    enforced: dict[str, str] = {}
    wanted = {"memory": str(limits.memory_bytes), "pids": str(limits.processes)}
    for controllers, parent, version in _own_groups():
        _sweep(parent)
        held = [controller for controller in wanted if controller in controllers]
        if not held:
            continue
        directory = parent / name
        try:
            directory.mkdir()
        except OSError:
            continue
        written = []
        for controller in held:
            with contextlib.suppress(OSError):
                (directory / _LIMIT_FILES[version][controller]).write_text(wanted[controller])
                written.append(controller)
        if not written:
            with contextlib.suppress(OSError):
                directory.rmdir()
            continue
        directories.append(directory)
        enforced |= {controller: f"{wanted[controller]} (cgroup v{version})" for controller in written}
    return ControlGroups(directories=tuple(directories), enforced=enforced)


_LIMIT_FILES: Mapping[int, Mapping[str, str]] = {
    1: {"memory": "memory.limit_in_bytes", "pids": "pids.max"},
    2: {"memory": "memory.max", "pids": "pids.max"},
}


def _own_groups() -> list[tuple[frozenset[str], Path, int]]:
    """Controllers, folder and version of each hierarchy this process stands in."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    groups: list[tuple[frozenset[str], Path, int]] = []
    for line in lines:
        hierarchy, names, path = line.split(":", 2)
        relative = path.lstrip("/")
        if hierarchy == "0":
            base = _V1_ROOT / "unified" if (_V1_ROOT / "unified").is_dir() else _V1_ROOT
            groups.append((_delegated(base / relative), base / relative, 2))
        elif names:
            controllers = frozenset(names.split(","))
            parent = _V1_ROOT / names / relative
            if parent.is_dir():
                groups.append((controllers, parent, 1))
    return groups


def _delegated(directory: Path) -> frozenset[str]:
    """Controllers that a child of this version 2 group would have."""
    try:
        return frozenset((directory / "cgroup.subtree_control").read_text().split())
    except OSError:
        return frozenset()


def _sweep(parent: Path) -> None:
    """Remove groups whose maker is dead; a group still in use cannot be removed, so nothing live is hurt."""
    for directory in parent.glob(f"{_PREFIX}*"):
        maker = directory.name[len(_PREFIX) :].partition("-")[0]
        if not Path(f"/proc/{maker}").exists():
            with contextlib.suppress(OSError):
                directory.rmdir()
