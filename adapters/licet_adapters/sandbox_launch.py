"""What stands between the worker and a job: started as its own process, it limits itself and becomes the job.

Run as ``python -I -S sandbox_launch.py PLAN`` with PLAN in JSON. Rules kept here:

- Stand-alone: the standard library only, nothing of ours is imported, so it starts in milliseconds.
- Everything is done in the one thread of a fresh process, before the job's program exists: cgroups, limits, user.
- The order matters: cgroups and mounts need the first user's rights; limits are inherited; the user changes last, for
  good; the parent's death is asked for after that, because a change of user forgets it.
- What the second user may not reach by path (an interpreter under ``/root``) is mounted where it may, in a mount
  namespace of this process alone: nothing outside changes, not even for a moment.
- Whatever fails here ends the process with status 70 before the job's program was started.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import stat
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWNS = 0x00020000
_MS_BIND_ALL = 0x1000 | 0x4000  # With what is mounted below: in containers, each of the driver's libraries is a mount.
_MS_NOSUID_NODEV = 0x2 | 0x4
_MS_REC_PRIVATE = 0x4000 | 0x40000
FAILED_STATUS = 70


def mount(
    libc: ctypes.CDLL, source: str, target: str, flags: int, *, kind: str | None = None, data: str | None = None
) -> None:
    """Call the system's own, or raise."""
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    if libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]) != 0:
        raise OSError(ctypes.get_errno(), f"mount on {target}")


def mount_all(libc: ctypes.CDLL, hub: str, sources: dict[str, str]) -> None:
    """Mount each source as ``hub/NAME``, in a new mount namespace.

    Args:
        libc: The C library.
        hub: An existing folder that everybody may walk into; it is covered.
        sources: Name to path, which may lie under ``hub``.
    """
    if libc.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    mount(libc, "none", "/", _MS_REC_PRIVATE)
    # Opened after unshare, so that they belong to this namespace, and before the hub is covered.
    opened = {name: os.open(path, os.O_PATH | os.O_CLOEXEC) for name, path in sources.items()}
    mount(libc, "licet", hub, _MS_NOSUID_NODEV, kind="tmpfs", data="mode=0755,size=64k")
    for name, fd in opened.items():
        target = f"{hub}/{name}"
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.mkdir(target, 0o755)  # noqa: PTH102  # pathlib costs a third of the start.
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644))
        mount(libc, f"/proc/self/fd/{fd}", target, _MS_BIND_ALL)


def main(plan_text: str) -> None:
    """Do as the plan says; does not return."""
    plan = json.loads(plan_text)
    for file in plan["cgroup_procs"]:
        with open(file, "w", encoding="ascii") as procs:  # noqa: PTH123  # pathlib costs a third of the start.
            procs.write(str(os.getpid()))
    for name, value in plan["limits"].items():
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (bounded, bounded))
    libc = ctypes.CDLL(None, use_errno=True)
    if plan["mounts"]:
        mount_all(libc, plan["hub"], plan["mounts"])
    os.umask(0o077)
    if plan["uid"] is not None:
        os.setgroups([])
        os.setresgid(plan["gid"], plan["gid"], plan["gid"])
        os.setresuid(plan["uid"], plan["uid"], plan["uid"])
        if os.getresuid() != (plan["uid"],) * 3:
            raise PermissionError("the user could not be changed")
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 or libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != plan["parent"]:
        raise ProcessLookupError("the parent died before the job began")
    os.chdir("/" if plan["directory"] is None else plan["directory"])
    os.execve(plan["program"], plan["arguments"], plan["environment"])  # noqa: S606  # No shell: that is the point.


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as problem:  # noqa: BLE001  # Nothing may slip past into a job that is less confined than planned.
        sys.stderr.write(f"sandbox launch: {type(problem).__name__}: {problem}\n")
        sys.stderr.flush()
        os._exit(FAILED_STATUS)
