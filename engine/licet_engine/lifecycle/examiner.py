"""Who has policies examined in a process of its own: a project under a warrant, and, as a service to its log, a bundle that is in force.

Rules kept here:

- A bundle in force needs no warrant: nobody asked, nothing of a tenant is reached for but its policies, and nothing is done with them.
- The project is what a tenant's people wrote. It is examined in a process that is bounded in time, memory and output, leaves the
  network, cannot gain rights, and dies with the thread that waits for it.
- What could not be told in time, and what took the process down, is a finding: the project is refused. Only where the kernel
  killed it, most likely for want of memory that others took, it is tried again first.
- What the process says is read like anything that a stranger says: bounded, as strict JSON, and the bundle by its digest.
"""

from __future__ import annotations

import hashlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from licet_adapters.errors import JobFailed
from licet_adapters.guard import WarrantGuard
from licet_adapters.sandbox_limits import Limits
from licet_adapters.sandbox_process import launched, require_launched
from licet_attestations import canonical
from licet_attestations.errors import LicetAttestationError
from licet_engine.domain.errors import Unavailable
from licet_engine.workbench.document import ProjectDocument
from licet_engine.workbench.verdict import ended_early

ADAPTER: Final = "workbench"
"""The instance that warrants for an examination name."""
OPERATION: Final = "policy.examine"

_QUESTION_S: Final = 10.0
_MAX_ANSWER_BYTES: Final = 8 << 20
_MAX_ERROR_BYTES: Final = 8 << 10
_MEMORY_BYTES: Final = 2 << 30
_TO_END_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Examined:
    """What came of an examination.

    Attributes:
        report: As ``licet_engine.workbench.examination`` writes it.
        bundle: The bundle's canonical JSON as text; None where none could be composed.
    """

    report: Mapping[str, Any]
    bundle: str | None

    @property
    def bundle_hex(self) -> str | None:
        """The bundle's digest, under which it is published."""
        return None if self.bundle is None else hashlib.sha256(self.bundle.encode()).hexdigest()


class Examiner:
    """Examines policy projects.

    Args:
        guard: Admits the warrants.
        longest_s: For one examination.
    """

    def __init__(self, guard: WarrantGuard, *, longest_s: int) -> None:
        self._guard = guard
        self._longest_s = longest_s

    def examine(
        self, warrant: bytes, *, tenant: str, parameters: Mapping[str, Any], document: ProjectDocument, folder: Path
    ) -> Examined:
        """Examine a project.

        Args:
            warrant: For this project.
            tenant: Whose it is.
            parameters: Of the operation.
            document: The project.
            folder: An empty folder for its files, removed by whoever made it.

        Raises:
            WarrantRefused: The warrant is not for this, or was used.
            JobFailed: The kernel killed the process.
            Unavailable: It could not be started.
        """
        self._guard.admit(
            warrant,
            tenant=tenant,
            operation=OPERATION,
            parameters=dict(parameters),
            resources={"project": document.digest_hex},
        )
        root = folder / "project"
        document.write(root)
        return run(root, longest_s=self._longest_s)


def run(
    root: Path, *, longest_s: float, memory_bytes: int = _MEMORY_BYTES, kind: Literal["project", "bundle"] = "project"
) -> Examined:
    """Examine the project in a folder, or the bundle, in a process of its own; the process dies with this thread.

    Raises:
        JobFailed: The kernel killed it.
        Unavailable: It could not be started.
    """
    question_s = min(_QUESTION_S, longest_s / 4)
    limits = Limits(cpu_s=int(longest_s) + 1, memory_bytes=memory_bytes, file_bytes=0, open_files=64, processes=64)
    plan = {
        # Of its address space, too: it starts no threads, and maps no more than it uses.
        "limits": limits.resource_limits(own_user=False) | {"RLIMIT_AS": memory_bytes},
        "uid": None,
        "gid": None,
        "mounts": {},
        "program": sys.executable,
        "arguments": [
            *(sys.executable, "-I", "-B", "-m", "licet_engine.workbench.examination"),
            *(kind, str(root), str(question_s), str(longest_s)),
        ],
        "environment": {"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"},
        "directory": str(root),
    }
    with launched(plan, limits, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as (process, _):
        answer, said, fault = _read(process, time.monotonic() + longest_s)
        if fault is None:
            try:
                process.wait(_TO_END_S)
            except subprocess.TimeoutExpired:
                fault = ("time-out", f"the examination did not end within {longest_s:.0f} s")
    if fault is not None:
        return _refused(*fault)
    return _judge(process.returncode, answer, said)


def _read(process: subprocess.Popen[bytes], until_s: float) -> tuple[bytes, bytes, tuple[str, str] | None]:
    """What the process says, up to its bounds; and why it is not listened to any more, if it is not."""
    answer, said = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        for stream, kept in ((process.stdout, answer), (process.stderr, said)):
            if stream is not None:
                selector.register(stream, selectors.EVENT_READ, kept)
        while selector.get_map():
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                message = "the examination takes longer than it may, so nothing is shown: simplify the policies, or have it given longer"
                return bytes(answer), bytes(said), ("time-out", message)
            for key, _ in selector.select(left_s):
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    selector.unregister(key.fileobj)
                key.data.extend(chunk)
            if len(answer) > _MAX_ANSWER_BYTES:
                return b"", bytes(said), ("too-large", "the examination says more than it may: divide the project")
            del said[:-_MAX_ERROR_BYTES]
    return bytes(answer), bytes(said), None


def _judge(status: int, answer: bytes, said: bytes) -> Examined:
    require_launched(status, said.decode("utf-8", "replace"), "the examination")
    if status == -signal.SIGKILL:
        raise JobFailed("the examination was killed, most likely for want of memory", code="job.killed")
    if status == -signal.SIGXCPU:
        return _refused("time-out", "the examination takes more processor time than it may: simplify the policies")
    if status != 0:
        if b"ModuleNotFoundError" in said:
            raise Unavailable("the solver is not installed beside the service: pip install 'licet[server]'")
        if b"MemoryError" in said or b"bad_alloc" in said:
            return _refused("memory", "the examination takes more memory than it may: simplify the policies")
        return _refused("crashed", f"the examination ended with status {status} and told nothing")
    try:
        told = canonical.loads(answer, max_bytes=_MAX_ANSWER_BYTES)
        # Nothing in it has another form than what is signed, sent and kept.
        canonical.dumps(told)
    except (LicetAttestationError, ValueError) as error:
        return _refused("crashed", f"the examination's report cannot be read: {error}")
    match told:
        case {"report": {"v": 1, "findings": list()} as report, "bundle": str() | None as bundle} if len(told) == 2:  # noqa: PLR2004  # These two.
            return Examined(report, bundle)
    return _refused("crashed", "the examination's report is none")


def _refused(rule: str, message: str) -> Examined:
    return Examined(ended_early(rule, message), None)
