"""The sandbox: where code runs that we do not trust, and ours that handles what tenants sent.

Rules kept here:

- A job sees the interpreter, its own code and inputs (read-only) and one output folder; no network, no other process,
  no other file. It has no capability and cannot get one; outside it is an unprivileged user.
- Started as root, we drop to that user *before* bubblewrap starts: as root it would keep every capability.
- A sandbox is believed only after a probe has run in it and tried to leave. A machine whose sandbox fails the probe has
  none: then only code shipped with the platform, known by digest, runs, and every report says so and why. Only a probe
  that held is remembered: one that failed may have failed for want of memory or time, and is made again for the next job.
- The job dies with the thread that runs it, even by SIGKILL; and no two jobs ever hold one output folder.
- What a job reports is bounded, line by line and in sum.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from licet_adapters.errors import Conflict, JobFailed, Unavailable
from licet_adapters.ports import InputFile, SandboxReport
from licet_adapters.sandbox_bwrap import (
    JOB_ENVIRONMENT,
    Bubblewrap,
    Sources,
    find_bubblewraps,
    is_mounted,
    judge,
    sandbox_arguments,
)
from licet_adapters.sandbox_limits import ControlGroups, Limits
from licet_adapters.sandbox_outputs import collect_outputs, stage_input
from licet_adapters.sandbox_process import launched, require_launched
from licet_adapters.sandbox_watch import Watch
from licet_attestations import canonical
from licet_attestations.signer.files import make_private_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

JOB_UID = 64_201
"""Who jobs are when the worker is root: a number without a name, used for nothing else."""

_JOBS_DIR = Path(__file__).parent / "jobs"
_HUB = "/tmp"  # noqa: S108  # Covered in a mount namespace of the launcher's own; nothing is written there.
_LOCK_WAIT_S = 10.0
_LOCK_PAUSE_S = 0.05
_PROBE_LIMITS = Limits(wall_s=20, cpu_s=10)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobCode:
    """What runs.

    Attributes:
        entry: Name of the file that is run.
        files: Name to content, the entry included.
    """

    entry: str
    files: Mapping[str, bytes]

    @property
    def digest_hex(self) -> str:
        """SHA-256 over entry, names and contents: what provenance and approvals of code name."""
        files = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        return hashlib.sha256(canonical.dumps({"entry": self.entry, "files": files})).hexdigest()


def shipped_code(entry: str) -> JobCode:
    """Return a job that is shipped with the platform, ``train_tabular.py`` or another of ``licet_adapters.jobs``."""
    files = {path.name: path.read_bytes() for path in sorted(_JOBS_DIR.glob("*.py")) if path.name != "__init__.py"}
    if entry not in files:
        raise Unavailable(f"no job {entry!r} is shipped", code="sandbox.code")
    return JobCode(entry=entry, files=files)


def _is_shipped(code: JobCode) -> bool:
    try:
        return code.digest_hex == shipped_code(code.entry).digest_hex
    except Unavailable:
        return False


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRun:
    """One run of a job.

    Attributes:
        code: What runs.
        inputs: File name to what is copied there; digests are verified on the way.
        documents: File name to content that we made ourselves (a spec).
        output_dir: Persistent; the job's alone while it runs.
        arguments: More arguments of the entry.
        limits: What it may use.
        environment: More variables that it finds.
        devices: Name in ``/dev`` to the device node that is let in under it; no other is, beside those of every sandbox.
    """

    code: JobCode
    inputs: Mapping[str, InputFile]
    documents: Mapping[str, bytes]
    output_dir: Path
    arguments: Sequence[str] = ()
    limits: Limits = field(default_factory=Limits)
    environment: Mapping[str, str] = field(default_factory=dict)
    devices: Mapping[str, Path] = field(default_factory=dict)

    def collect(
        self, target_dir: Path, *, required: Collection[str], ignored: Collection[str] = (), owner_uid: int
    ) -> dict[str, str]:
        """Copy what the finished job left into ``target_dir``; see ``collect_outputs``."""
        return collect_outputs(
            self.output_dir,
            target_dir,
            required=required,
            ignored=ignored,
            owner_uid=owner_uid,
            max_file_bytes=self.limits.file_bytes,
            max_files=self.limits.output_files,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class JobEnd:
    """How a run ended.

    Attributes:
        status: Exit status; negative if a signal ended it.
        stopped: We ended it because ``should_stop`` said so.
        stderr_tail: The end of what it said.
        owner_uid: Whom its output files must belong to.
        sandbox: How it was confined.
    """

    status: int
    stopped: bool
    stderr_tail: str
    owner_uid: int
    sandbox: SandboxReport


class Sandbox:
    """Runs jobs; constructed once a process, in the worker.

    Args:
        state_dir: Where inputs are staged, 0700; what a killed worker left there is removed.
        job_uid: Who jobs are when we are root.
        candidates: Programs to try, in order; None looks for them on this machine.
    """

    def __init__(
        self, state_dir: Path, *, job_uid: int = JOB_UID, candidates: Sequence[Bubblewrap] | None = None
    ) -> None:
        self._staging = state_dir / "staging"
        make_private_directory(self._staging)
        self._drop_to = job_uid if os.geteuid() == 0 else None
        self._candidates = candidates
        self._lock = threading.Lock()
        self._held: tuple[Bubblewrap, SandboxReport] | None = None
        self._sweep_staging()

    def probe(self) -> SandboxReport:
        """Return how jobs are confined here; runs in the sandbox to find out, until one has held."""
        return self._confinement()[1]

    def run(self, run: JobRun, on_line: Callable[[dict[str, Any]], None], should_stop: Callable[[], bool]) -> JobEnd:
        """Run a job to its end, on this thread; the job dies if this thread does.

        Args:
            run: What.
            on_line: Called with every object the job reports.
            should_stop: Asked several times a second; true kills the job.

        Raises:
            InputRefused: An input is not what its digest names. Nothing was run.
            Unavailable: No sandbox, and the code is not the platform's; or the job could not be started.
            Conflict: Another job holds the output folder.
            JobFailed: It broke a bound: time, size of outputs, or of its report.
        """
        bubblewrap, report = self._confinement()
        if bubblewrap is None and not _is_shipped(run.code):
            raise Unavailable(
                f"there is no sandbox here, and this code is not shipped with the platform: {'; '.join(report.notes)}",
                code="sandbox.none",
            )
        return self._execute(bubblewrap, report, run, on_line, should_stop)

    # --- which sandbox ---------------------------------------------------------------------------------------------

    def _confinement(self) -> tuple[Bubblewrap | None, SandboxReport]:
        with self._lock:
            if self._held is not None:
                return self._held
            bubblewrap, report = self._find()
            if bubblewrap is not None:
                self._held = (bubblewrap, report)
            return bubblewrap, report

    def _find(self) -> tuple[Bubblewrap | None, SandboxReport]:
        notes: list[str] = []
        for candidate in find_bubblewraps(notes) if self._candidates is None else self._candidates:
            try:
                checks, problems = self._verify(candidate)
            except (Unavailable, JobFailed) as error:
                problems = [str(error)]
            if not problems:
                kept = ["the interpreter and its libraries can be read; the kernel is shared"]
                if self._drop_to is None:
                    kept.append(
                        "the worker is not root: jobs are its user outside, and processes are counted only by a control group"
                    )
                return candidate, SandboxReport(kind="bubblewrap", checks=checks, notes=tuple(kept))
            notes.append(f"{candidate.origin}: {'; '.join(problems)}")
        notes.append(
            "jobs run as plain processes of the worker's user, with resource limits only: code shipped with the platform and no other"
        )
        return None, SandboxReport(kind="none", checks={}, notes=tuple(notes))

    def _verify(self, candidate: Bubblewrap) -> tuple[dict[str, str], list[str]]:
        """Run the probe and compare what it found with what must be so."""
        unknown = SandboxReport(kind="bubblewrap")
        with (
            tempfile.TemporaryDirectory(dir=self._staging.parent, prefix="probe-") as folder,
            contextlib.ExitStack() as stack,
        ):
            # What must not be had from inside: a listener on loopback, one with an abstract name, files of ours.
            tcp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            tcp.bind(("127.0.0.1", 0))
            tcp.listen(1)
            abstract = f"licet-probe-{secrets.token_hex(8)}"
            unix = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            unix.bind(b"\0" + abstract.encode())
            unix.listen(1)
            secret = Path(folder) / "secret"
            secret.write_bytes(b"secret")
            output_dir = Path(folder) / "out"
            output_dir.mkdir()
            # Licet's own code is no secret; where it was installed beside the libraries, jobs see it with them.
            own = [] if is_mounted(Path(__file__)) else [str(Path(__file__))]
            hidden = json.dumps([str(secret), str(self._staging), *own, "/etc/shadow", "/home", "/var"])
            arguments = ["--secrets", hidden, "--port", str(tcp.getsockname()[1]), "--abstract", abstract]
            arguments += ["--outside-pid", str(os.getpid())]
            probe = JobRun(
                code=shipped_code("probe.py"),
                inputs={},
                documents={},
                output_dir=output_dir,
                arguments=arguments,
                limits=_PROBE_LIMITS,
            )
            end = self._execute(candidate, unknown, probe, lambda _line: None, lambda: False)
            if end.status != 0:
                return {}, [f"it does not start (status {end.status}): {end.stderr_tail.strip()[-300:]}"]
            answer = output_dir / "probe.json"
            owner_uid = answer.stat(follow_symlinks=False).st_uid
            return judge(json.loads(answer.read_bytes()), owner_uid=owner_uid, expected_uid=self._owner_uid(candidate))

    def _owner_uid(self, bubblewrap: Bubblewrap | None) -> int:
        return os.geteuid() if bubblewrap is None or self._drop_to is None else self._drop_to

    # --- staging ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _staged(self, run: JobRun) -> Iterator[Path]:
        """Copies of code and inputs, in a folder that lives as long as the block."""
        with self._staging_lock():
            folder = self._staging / secrets.token_hex(8)
            folder.mkdir(mode=0o700)
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            for part in ("code", "in"):
                (folder / part).mkdir()
                (folder / part).chmod(0o755)  # Everybody may read here; only we can come this far by path.
            for name, data in run.code.files.items():
                _write_readable(folder / "code" / name, data)
            for name, data in run.documents.items():
                _write_readable(folder / "in" / name, data)
            for name, source in run.inputs.items():
                stage_input(source, folder / "in" / name)
            yield folder
        except OSError as error:
            raise Unavailable(f"the job's inputs cannot be staged: {error.strerror}", code="sandbox.staging") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(fd)

    @contextlib.contextmanager
    def _staging_lock(self) -> Iterator[None]:
        fd = os.open(self._staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _sweep_staging(self) -> None:
        """Remove plaintext that a killed worker left; a folder in use is locked."""
        with self._staging_lock():
            for folder in self._staging.iterdir():
                fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
                except BlockingIOError:
                    pass
                finally:
                    os.close(fd)

    # --- running ---------------------------------------------------------------------------------------------------

    def _execute(
        self,
        bubblewrap: Bubblewrap | None,
        report: SandboxReport,
        run: JobRun,
        on_line: Callable[[dict[str, Any]], None],
        should_stop: Callable[[], bool],
    ) -> JobEnd:
        owner_uid = self._owner_uid(bubblewrap)
        with self._staged(run) as staged, _held(run.output_dir) as lock_fd, contextlib.ExitStack() as stack:
            run.output_dir.chmod(0o700)
            if owner_uid != os.geteuid():
                os.chown(run.output_dir, owner_uid, owner_uid)
            report_r, report_w = _pipe(stack)
            error_r, error_w = _pipe(stack)
            fds = [report_w.fileno(), lock_fd]
            plan = self._plan(bubblewrap, run, staged, report_w.fileno(), lock_fd)
            process, groups = stack.enter_context(
                launched(plan, run.limits, stdout=error_w.fileno(), stderr=error_w.fileno(), pass_fds=fds)
            )
            report_w.close()
            error_w.close()
            watch = Watch(
                process,
                report_fd=report_r.fileno(),
                error_fd=error_r.fileno(),
                output_dir=run.output_dir,
                limits=run.limits,
                on_line=on_line,
            )
            stopped = watch.follow(should_stop)
        require_launched(process.returncode, watch.stderr_tail, "the job")
        return JobEnd(
            status=process.returncode,
            stopped=stopped,
            stderr_tail=watch.stderr_tail,
            owner_uid=owner_uid,
            sandbox=_with_limits(report, groups, run.limits),
        )

    def _plan(
        self,
        bubblewrap: Bubblewrap | None,
        run: JobRun,
        staged: Path,
        report_fd: int,
        sync_fd: int,
    ) -> dict[str, Any]:
        """What the launcher does, and becomes."""
        confined = bubblewrap is not None
        root = Path("/job") if confined else staged
        output = Path("/job/out") if confined else run.output_dir.absolute()
        command = [sys.executable, "-I", "-B", str(root / "code" / run.code.entry), "--inputs", str(root / "in")]
        command += ["--output", str(output), "--report-fd", str(report_fd), *run.arguments]
        plan: dict[str, Any] = {
            "limits": run.limits.resource_limits(own_user=confined and self._drop_to is not None),
            "uid": self._drop_to if confined else None,
            "gid": self._drop_to if confined else None,
            "mounts": {},
        }
        if bubblewrap is None:
            scratch = str(staged)
            environment = dict(JOB_ENVIRONMENT) | {"HOME": scratch, "MPLCONFIGDIR": scratch, "TMPDIR": scratch}
            environment |= run.environment
            return plan | {
                "program": sys.executable, "arguments": command, "environment": environment, "directory": scratch
            }  # fmt: skip
        sources = Sources(None if self._drop_to is None else _HUB)
        arguments = sandbox_arguments(
            staged=staged,
            output_dir=run.output_dir,
            scratch_bytes=run.limits.scratch_bytes,
            sync_fd=sync_fd,
            sources=sources,
            environment=run.environment,
            devices=run.devices,
        )
        program = sources.of(bubblewrap.program)
        environment = {"LD_LIBRARY_PATH": sources.of(bubblewrap.libraries)} if bubblewrap.libraries else {}
        return plan | {
            "program": program,
            "arguments": ["bwrap", *arguments, *command],
            "environment": environment,
            "directory": None,
            "mounts": sources.mounts,
            "hub": sources.hub,
        }


def _pipe(stack: contextlib.ExitStack) -> tuple[Any, Any]:
    read_fd, write_fd = os.pipe()
    reader = stack.enter_context(os.fdopen(read_fd, "rb", buffering=0))
    writer = stack.enter_context(os.fdopen(write_fd, "wb", buffering=0))
    return reader, writer


@contextlib.contextmanager
def _held(output_dir: Path) -> Iterator[int]:
    """Hold the output folder; the job inherits the lock, so it lasts until the last of its processes is gone."""
    try:
        fd = os.open(output_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"the output folder cannot be opened: {error.strerror}", code="sandbox.output") from error
    try:
        deadline_s = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline_s:
                    raise Conflict("another job holds the output folder", code="conflict.busy") from error
                time.sleep(_LOCK_PAUSE_S)
        yield fd
    finally:
        os.close(fd)


def _write_readable(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o444)


def _with_limits(report: SandboxReport, groups: ControlGroups, limits: Limits) -> SandboxReport:
    """Say in the report which bounds held in this run."""
    memory = groups.enforced.get("memory", f"{limits.memory_bytes} of data each process (RLIMIT_DATA)")
    checks = dict(report.checks) | {"memory": memory, "processor": f"{limits.cpu_s} s each process (RLIMIT_CPU)"}
    if "pids" in groups.enforced:
        checks["process-count"] = groups.enforced["pids"]
    return SandboxReport(kind=report.kind, checks=checks, notes=report.notes)
