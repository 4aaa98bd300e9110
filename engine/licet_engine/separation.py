"""How the processes of an installation are kept apart: who starts as whom, and what each may reach.

Rules kept here:

- Started as root, signer, api and worker are three users, numbers without names, and none of them is root. The signer's
  keys are its own alone; the database and the spool are the api's, and its group the worker's, since the queue lies there;
  the adapters' state is the worker's alone; of the URLs of a PostgreSQL database each reads its own roles'. Each socket can be reached by those who need it and no other.
- Ownership is set from what runs, whenever it starts: an installation that was made by root, or served as one user
  before, is taken over as it is. Links are not followed; what belongs to jobs stays theirs.
- Where the users cannot be had, that is said: it is never taken for done.
"""

from __future__ import annotations

import json
import os
import pwd
import site
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from licet_adapters.sandbox import JOB_UID
from licet_engine import launch
from licet_engine.domain.errors import ConfigurationError
from licet_engine.settings import Settings
from licet_engine.users import Process, Users

_PROBE_WITHIN_S: Final = 30.0
_FIRST_OPEN_PORT: Final = 1024
_CLOSED_DIR: Final = 0o700
_CLOSED_FILE: Final = 0o600
_SHARED_DIR: Final = 0o2770
"""With the group handed down, so that what one makes there the other can use."""
_SHARED_FILE: Final = 0o660
_PASSED_DIR: Final = 0o710
_SOCKET_DIR: Final = 0o2710
_READ_FILE: Final = 0o640


@dataclass(frozen=True, slots=True)
class Separation:
    """How the processes of an installation are kept apart on this machine.

    Attributes:
        users: Who they are; None if all are the user who starts them.
        has_namespace: The worker can give jobs a user of their own.
        notes: What is not as it could be, and why.
    """

    users: Users | None
    has_namespace: bool
    notes: tuple[str, ...]


def find_separation(settings: Settings) -> Separation:
    """Find out how the processes can be kept apart, by trying.

    Raises:
        ConfigurationError: They must be, by the settings, and cannot.
    """
    if settings.users == "off":
        return Separation(None, has_namespace=False, notes=("LICET_USERS is off: the processes share one user",))
    problem = ""
    if os.geteuid() != 0:
        problem = "not started as root: the processes share one user"
    elif (port := min(settings.port, settings.router_port)) < _FIRST_OPEN_PORT:
        problem = f"port {port} is open to root alone: the processes share one user; use a port from 1024 on"
    if problem:
        return _shared(settings, problem)
    users = Users(settings.uid_base)
    _check_numbers(users)
    for process in ("signer", "api"):
        if failed := _try(settings, users, process, has_namespace=False):
            return _shared(settings, f"the processes share one user, for another cannot run here: {failed}")
    if not _try(settings, users, "worker", has_namespace=True):
        return Separation(users, has_namespace=True, notes=())
    if failed := _try(settings, users, "worker", has_namespace=False):
        return _shared(settings, f"the processes share one user, for another cannot run here: {failed}")
    return Separation(
        users,
        has_namespace=False,
        notes=("no user namespace can be made for the worker: jobs are its user, if they can be confined at all",),
    )


def _check_numbers(users: Users) -> None:
    """Refuse numbers that are somebody's: their files would be the service's, and the service's theirs."""
    for number in (*users.all(), JOB_UID):
        if name := _name_of(number):
            raise ConfigurationError(
                f"user {number} is {name} here; choose numbers that are nobody's by LICET_UID_BASE, or LICET_USERS=off"
            )
    if JOB_UID in users.all():
        raise ConfigurationError(f"LICET_UID_BASE must leave {JOB_UID} alone: that is the user of jobs")


def _shared(settings: Settings, problem: str) -> Separation:
    if settings.users == "on":
        raise ConfigurationError(f"LICET_USERS is on, and {problem}")
    return Separation(None, has_namespace=False, notes=(problem,))


def _name_of(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return ""


def _try(settings: Settings, users: Users, process: Process, *, has_namespace: bool) -> str:
    """Start something as a process would be started; return what went wrong."""
    code = "import os, sys, licet_attestations, licet_engine.settings; os.stat(sys.argv[1])"
    command = launch_command(
        settings, Separation(users, has_namespace=has_namespace, notes=()), process,
        [sys.executable, "-P", "-c", code, str(settings.data)],
    )  # fmt: skip
    try:
        ended = subprocess.run(
            command, capture_output=True, check=False, text=True, timeout=_PROBE_WITHIN_S, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if ended.returncode == 0 else (ended.stderr.strip().splitlines() or ["it ended"])[-1][:300]


def launch_command(settings: Settings, separation: Separation, process: Process, command: Sequence[str]) -> list[str]:
    """What starts ``command`` as the user of a process; ``command`` itself if there is none."""
    users = separation.users
    if users is None:
        return list(command)
    plan = {
        "parent": os.getpid(),
        "uid": users.uid(process),
        "gid": users.uid(process),
        "groups": users.groups(process),
        "job": JOB_UID if process in {"router", "worker"} and separation.has_namespace else None,
        "covers": _covers(settings),
        "arguments": list(command),
    }
    return [sys.executable, "-I", "-S", str(launch.__file__), json.dumps(plan)]


def _covers(settings: Settings) -> dict[str, list[str]]:
    """Closed folders above what the processes need, and what they need of each."""
    needed = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, str(Path(sys.executable).parent)]
    needed += [path for path in (*sys.path, *site.getsitepackages()) if Path(path).is_absolute()]
    needed += [str(Path(__file__).parents[1]), str(settings.data)]
    needed += [settings.database_urls] if settings.database_urls else []
    paths = {Path(form) for path in needed for form in (path, os.path.realpath(path)) if Path(form).exists()}
    covers: dict[str, list[str]] = {}
    for path in sorted(paths):
        closed = next((str(above) for above in reversed(path.parents) if not above.stat().st_mode & stat.S_IXOTH), None)
        # What lies below something that is mounted is there with it.
        if closed is not None and not any(path.is_relative_to(kept) for kept in covers.get(closed, [])):
            covers.setdefault(closed, []).append(str(path))
    return covers


def take_over(settings: Settings, users: Users | None) -> None:
    """Give each process what is its own. Only root can; for anybody else all is theirs already.

    Args:
        settings: Of the installation, which is not served.
        users: Who the processes are; None if all are root.
    """
    if os.geteuid() != 0:
        return
    signer, api, worker, base = (0, 0, 0, 0) if users is None else (users.signer, users.api, users.worker, users.base)
    apart = users is not None
    run = settings.signer_socket.parent.parent
    sockets = (settings.signer_socket.parent, settings.api_socket.parent, settings.router_socket.parent)
    for folder in (run, *sockets, settings.database.parent, settings.router_data):
        folder.mkdir(mode=_CLOSED_DIR, exist_ok=True)
    lock = Path(f"{settings.database}.lock")
    os.close(os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _CLOSED_FILE))
    shared = (_SHARED_DIR, _SHARED_FILE) if apart else (_CLOSED_DIR, _CLOSED_FILE)
    _give(settings.signer_data, signer, signer)
    _give(settings.worker_data, worker, worker)
    _give(settings.router_data, worker, worker)
    _give(settings.router_socket.parent, worker, worker)
    _give(settings.database.parent, api, worker, modes=shared)
    _give(settings.spool, api, worker, modes=shared)
    for folder, uid in ((settings.signer_socket.parent, signer), (settings.api_socket.parent, api)):
        os.chown(folder, uid, worker)
        folder.chmod(_SOCKET_DIR if apart else _CLOSED_DIR)
    os.chown(settings.trust_root, 0, base)
    settings.trust_root.chmod(_READ_FILE if apart else _CLOSED_FILE)
    _give_urls(settings, api, worker, base, apart=apart)
    # Last, for it lets them in.
    for folder in (run, settings.data):
        os.chown(folder, 0, base)
        folder.chmod(_PASSED_DIR if apart else _CLOSED_DIR)


def _give_urls(settings: Settings, api: int, worker: int, base: int, *, apart: bool) -> None:
    """Let each process read the URL of its own database role and no other's; the owner's stays root's."""
    if not settings.database_urls:
        return
    folder = Path(settings.database_urls)
    for role, uid in (("owner", 0), ("api", api), ("sequencer", api), ("worker", worker)):
        path = settings.database_url_file(role)
        if path.is_file() and not path.is_symlink():
            os.chown(path, uid, uid, follow_symlinks=False)
            path.chmod(_CLOSED_FILE)
    os.chown(folder, 0, base)
    folder.chmod(_PASSED_DIR if apart else _CLOSED_DIR)


def _give(top: Path, uid: int, gid: int, *, modes: tuple[int, int] | None = None) -> None:
    """Make a folder and all in it somebody's; a crash within leaves the folder itself to be done again."""
    found = top.stat(follow_symlinks=False)
    if modes is None and (found.st_uid, found.st_gid) == (uid, gid):
        return
    for fd in _opened(top):
        held = os.fstat(fd)
        # Jobs own their output while they last; and a second name may be one that was planted.
        if held.st_uid == JOB_UID or (stat.S_ISREG(held.st_mode) and held.st_nlink != 1):
            continue
        os.fchown(fd, uid, gid)
        if modes is not None:
            os.fchmod(fd, modes[0] if stat.S_ISDIR(held.st_mode) else modes[1])


def _opened(top: Path) -> Iterator[int]:
    """Descriptors of all folders and plain files below ``top``, itself last."""
    for _, _, names, folder_fd in os.fwalk(top, topdown=False, follow_symlinks=False):
        for name in names:
            found = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):
                continue
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder_fd)
            try:
                yield fd
            finally:
                os.close(fd)
        yield folder_fd
