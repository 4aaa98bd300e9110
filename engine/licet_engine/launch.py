"""What stands between the supervisor and a process of the service: it becomes another user, and then that process.

Run by root as ``python -I -S launch.py PLAN`` with PLAN in JSON. Rules kept here:

- Stand-alone: the standard library only, nothing of ours is imported, so it starts in milliseconds.
- The user changes last, for good; the parent's death is asked for after that, because a change of user forgets it.
- What the new user may not reach by path (an interpreter under ``/root``) is mounted where it is, in a mount namespace
  of this process alone. Whatever else lies in the closed folder is then out of reach: nothing is opened to anybody.
- A process that starts jobs as another user is the root of a user namespace which holds those two users and no other:
  it can become the job's user, and never the signer's, the api's or the machine's root.
- Whatever fails here ends the process with status 70 before the program was started.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import stat
import sys

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_MS_BIND_REC = 0x1000 | 0x4000
_MS_NOSUID_NODEV = 0x2 | 0x4
_MS_REC_SLAVE = 0x4000 | 0x80000
_LAST_CAPABILITY = 63
_GROUP_PREFIX = "licet-worker-"
_GROUPS_ROOT = "/sys/fs/cgroup"
# CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, SYS_ADMIN: what it takes to give
# a job its user and its mounts, over these two users' processes and files. Bubblewrap, too, must be able to drop what it has.
_KEPT_CAPABILITIES = frozenset({0, 1, 2, 3, 4, 5, 6, 7, 8, 21})
FAILED_STATUS = 70


def check(status: int, what: str) -> None:
    """Raise if a call of the C library failed."""
    if status != 0:
        raise OSError(ctypes.get_errno(), what)


def make_reachable(libc: ctypes.CDLL, covers: dict[str, list[str]]) -> None:
    """Cover closed folders, and mount what is needed of them where it was, in a mount namespace of this process.

    Args:
        libc: The C library.
        covers: Closed folder to the paths below it that are needed.
    """
    check(libc.unshare(_CLONE_NEWNS), "unshare of mounts")
    check(libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC_SLAVE), None), "mount on /")
    # Opened before anything is covered.
    opened = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for paths in covers.values() for path in paths}
    for closed, paths in covers.items():
        options = b"mode=0755,size=64k"
        check(
            libc.mount(b"licet", os.fsencode(closed), b"tmpfs", ctypes.c_ulong(_MS_NOSUID_NODEV), options),
            f"mount on {closed}",
        )
        for path in paths:
            fd = opened[path]
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)  # noqa: PTH103, PTH120  # pathlib costs a third of the start.
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                os.makedirs(path, 0o755, exist_ok=True)  # noqa: PTH103  # As above.
            else:
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
            source = f"/proc/self/fd/{fd}".encode()
            check(libc.mount(source, os.fsencode(path), None, ctypes.c_ulong(_MS_BIND_REC), None), f"mount on {path}")


def delegate_groups(uid: int, gid: int) -> None:
    """Put this process in control groups of its own (version 1) which ``uid`` may divide, where that can be had."""
    with open("/proc/self/cgroup", encoding="ascii") as lines:  # noqa: PTH123  # As above.
        hierarchies = [line.rstrip("\n").split(":", 2) for line in lines]
    for _, names, own in hierarchies:
        if not {"memory", "pids"} & set(names.split(",")):
            continue
        parent = f"{_GROUPS_ROOT}/{names}{own.rstrip('/')}"
        with contextlib.suppress(OSError):
            for left in os.listdir(parent):  # noqa: PTH208  # As above.
                maker = left.removeprefix(_GROUP_PREFIX)
                if maker != left and not os.path.exists(f"/proc/{maker}"):  # noqa: PTH110  # As above.
                    with contextlib.suppress(OSError):  # In use after all: a job is still dying.
                        os.rmdir(f"{parent}/{left}")  # noqa: PTH106  # As above.
            group = f"{parent}/{_GROUP_PREFIX}{os.getpid()}"
            os.mkdir(group, 0o755)  # noqa: PTH102  # As above.
            for name in (group, f"{group}/cgroup.procs"):
                os.chown(name, uid, gid)
            with open(f"{group}/cgroup.procs", "w", encoding="ascii") as procs:  # noqa: PTH123  # As above.
                procs.write(str(os.getpid()))


def enter_namespace(libc: ctypes.CDLL, uid: int, gid: int, job: int) -> None:
    """Become the root of a user namespace in which 0 is ``uid`` and ``job`` is itself, and nobody else exists."""
    begin_r, begin_w = os.pipe()
    pid = os.getpid()
    mapper = os.fork()  # It stays outside: only from there can users other than the caller's be mapped.
    if mapper == 0:
        status = 1
        try:
            os.close(begin_w)
            if os.read(begin_r, 1):
                for kind, own in (("uid", uid), ("gid", gid)):
                    with open(f"/proc/{pid}/{kind}_map", "w", encoding="ascii") as file:  # noqa: PTH123  # As above.
                        file.write(f"0 {own} 1\n{job} {job} 1\n")
                status = 0
        finally:
            os._exit(status)
    os.close(begin_r)
    check(libc.unshare(_CLONE_NEWUSER), "unshare of users")
    os.write(begin_w, b".")
    os.close(begin_w)
    if os.waitpid(mapper, 0)[1] != 0:
        raise PermissionError("the users of the namespace could not be mapped")


def main(plan_text: str) -> None:
    """Do as the plan says; does not return."""
    plan = json.loads(plan_text)
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = plan["uid"], plan["gid"]
    if plan["covers"]:
        make_reachable(libc, plan["covers"])
    os.chdir("/")
    os.umask(0o077)
    os.setgroups(plan["groups"])
    if plan["job"] is not None:
        delegate_groups(uid, gid)
        enter_namespace(libc, uid, gid, plan["job"])
        uid = gid = 0
        for capability in range(_LAST_CAPABILITY + 1):
            if capability not in _KEPT_CAPABILITIES:
                libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # Fails for those this kernel does not know.
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3:
        raise PermissionError("the user could not be changed")
    check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    check(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != plan["parent"]:
        raise ProcessLookupError("the parent died before the process began")
    os.execv(plan["arguments"][0], plan["arguments"])  # noqa: S606  # No shell: that is the point.


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as problem:  # noqa: BLE001  # Nothing may slip past into a process that has more rights than planned.
        sys.stderr.write(f"launch: {type(problem).__name__}: {problem}\n")
        sys.stderr.flush()
        os._exit(FAILED_STATUS)
