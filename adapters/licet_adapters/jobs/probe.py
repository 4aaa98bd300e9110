"""Looks at the sandbox from inside and tries to leave it; prints what it found as one line of JSON.

Rules kept here:

- It finds out by doing: it connects, writes, opens and unshares, and reports what really happened.
- It judges nothing: the worker, outside, compares what is said here with what must be so.
- Standard library only.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import socket
from pathlib import Path

_CLONE_NEWUSER = 0x10000000
_CONNECT_TIMEOUT_S = 1.0


def connect(family: int, address: tuple[str, int] | bytes) -> str:
    """Return how an attempt to connect ended: ``connected`` or the name of the error."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            tried.settimeout(_CONNECT_TIMEOUT_S)
            tried.connect(address)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    return "connected"


def write(path: Path) -> str:
    """Return how an attempt to create ``path`` ended: ``written`` or the name of the error."""
    try:
        path.write_bytes(b"x")
        path.unlink()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    return "written"


def read(path: Path) -> str:
    """Return how an attempt to read ``path`` ended: ``read`` or the name of the error."""
    try:
        if path.is_dir():
            list(path.iterdir())
        else:
            path.read_bytes()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    return "read"


def status() -> dict[str, str]:
    """The kernel's own account of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def descriptors() -> list[str]:
    """What the descriptors that this process was born with point to."""
    found = []
    for name in sorted(os.listdir("/proc/self/fd"), key=int):  # noqa: PTH208  # Names are wanted, not paths.
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))  # noqa: PTH115  # A pipe is no path.
        except OSError:  # The one that listed the folder.
            continue
    return found


def unshare_user() -> str:
    """Return how an attempt to make a user namespace (to have capabilities in) ended."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER) == 0:
        return "made"
    return errno.errorcode.get(ctypes.get_errno(), "failed")


def main() -> None:
    """Probe and report."""
    parser = argparse.ArgumentParser()
    for name in ("--inputs", "--output", "--report-fd", "--secrets", "--port", "--abstract", "--outside-pid"):
        parser.add_argument(name, required=True)
    asked = parser.parse_args()
    born_with = descriptors()
    own = status()
    code_dir = Path(__file__).parent
    found = {
        "uid": os.getuid(),
        "capabilities": [own["CapEff"], own["CapPrm"], own["CapBnd"]],
        "no_new_privileges": own["NoNewPrivs"],
        "interfaces": sorted(name for _, name in socket.if_nameindex()),
        "connected": [
            connect(socket.AF_INET, ("127.0.0.1", int(asked.port))),
            connect(socket.AF_UNIX, b"\0" + asked.abstract.encode()),
            connect(socket.AF_INET, ("192.0.2.1", 53)),
        ],
        "read": [read(Path(secret)) for secret in json.loads(asked.secrets)],
        "written": [
            write(folder / "licet-probe")
            for folder in (
                Path("/"),
                Path("/usr"),
                Path("/job"),
                Path("/dev"),
                code_dir,
                Path(asked.inputs),
                Path(os.__file__).parent,
            )
        ],
        "output": write(Path(asked.output) / "licet-probe"),
        "processes": sorted(int(name.name) for name in Path("/proc").iterdir() if name.name.isdigit()),
        "outside_process": read(Path(f"/proc/{asked.outside_pid}/environ")),
        "descriptors": born_with,
        "environment": sorted(os.environ),
        "user_namespace": unshare_user(),
    }
    (Path(asked.output) / "probe.json").write_text(json.dumps(found), encoding="ascii")


if __name__ == "__main__":
    main()
