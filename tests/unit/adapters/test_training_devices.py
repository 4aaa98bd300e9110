"""The pool of devices: found by UUID alone, held by one job at a time, and all that is let into its sandbox."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from licet_adapters.conformance.tabular import TRAIN_INPUT, TrainingExample, write_input
from licet_adapters.conformance.world import TENANT, World
from licet_adapters.errors import InputRefused, JobFailed, Unavailable
from licet_adapters.ports import TrainingJob
from licet_adapters.sandbox import JobCode, JobRun, Sandbox
from licet_adapters.training import devices as devices_module
from licet_adapters.training import local as local_module
from licet_adapters.training.common import Reports
from licet_adapters.training.devices import DevicePool, Found, Machine, find_devices
from licet_adapters.training.local import LocalTraining, job_environment
from licet_adapters.training.spec import TrainingSpec, parse_spec

FIRST, SECOND, THIRD = (f"GPU-{digit * 8}-0000-4000-8000-{digit * 12}" for digit in "123")
ANSWER = f"""\
0, {FIRST}, NVIDIA H100 80GB HBM3, 81559, 550.54.15
1, {SECOND}, NVIDIA H100 80GB HBM3, 81559, 550.54.15
MIG 1g.10gb, MIG-11111111-0000-4000-8000-111111111111, slice, 9856, 550.54.15
2, {THIRD}, NVIDIA H100, [N/A], 550.54.15
nonsense
"""


class Bench:
    """A machine with a driver's tool, a driver and device nodes of its own."""

    def __init__(self, folder: Path) -> None:
        self.program = folder / "nvidia-smi"
        self.driver_dir = folder / "gpus"
        self.dev_dir = folder / "dev"
        self.dev_dir.mkdir()
        self.answers(ANSWER)
        # As a container sees it: the devices that are its 0 and 1 are the machine's 4 and 2.
        for uuid, minor, node in ((FIRST, 4, "full"), (SECOND, 2, "zero")):
            self.driver_knows(uuid, minor)
            (self.dev_dir / f"nvidia{minor}").symlink_to(f"/dev/{node}")
        (self.dev_dir / "nvidiactl").symlink_to("/dev/null")
        # What the first two would be by their index: somebody else's.
        for index in (0, 1):
            (self.dev_dir / f"nvidia{index}").symlink_to("/dev/random")

    def answers(self, text: str, status: int = 0) -> None:
        self.program.write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\nexit {status}\n")
        self.program.chmod(0o755)

    def driver_knows(self, uuid: str, minor: int) -> None:
        folder = self.driver_dir / f"0000:0{minor}:00.0"
        folder.mkdir(parents=True)
        lines = f"Model: \t\t NVIDIA H100\nIRQ:   \t\t 17\nGPU UUID: \t {uuid}\nDevice Minor: \t {minor}\n"
        (folder / "information").write_text(lines)

    @property
    def machine(self) -> Machine:
        return Machine(program=str(self.program), driver_dir=self.driver_dir, dev_dir=self.dev_dir)

    def find(self, *allowed: str) -> Found:
        return find_devices(allowed, self.machine)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# --- finding ---------------------------------------------------------------------------------------------------------


def test_a_device_is_found_by_uuid_with_the_node_that_its_driver_names(bench: Bench) -> None:
    found = bench.find(SECOND, FIRST)
    assert [device.uuid for device in found.devices] == [SECOND, FIRST]
    assert {uuid: node.name for uuid, node in found.nodes.items()} == {FIRST: "nvidia4", SECOND: "nvidia2"}
    device = found.devices[0]
    assert (device.kind, device.name, device.memory_mib, device.driver) == (
        "cuda",
        "NVIDIA H100 80GB HBM3",
        81559,
        "550.54.15",
    )
    assert found.notes == ()


def test_what_is_not_allowed_is_not_in_the_pool(bench: Bench) -> None:
    assert [device.uuid for device in bench.find(SECOND).devices] == [SECOND]


def test_without_a_list_nothing_is_even_looked_for(bench: Bench, tmp_path: Path) -> None:
    bench.program.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\n")
    assert bench.find() == Found()
    assert not (tmp_path / "asked").exists()


def test_a_device_whose_node_the_driver_does_not_tell_is_left_out(bench: Bench) -> None:
    (bench.driver_dir / "0000:04:00.0" / "information").write_text(f"GPU UUID: {FIRST}\n")
    found = bench.find(FIRST, SECOND)
    assert [device.uuid for device in found.devices] == [SECOND]
    assert "does not tell which node" in found.notes[0]


@pytest.mark.parametrize(
    ("spoil", "note"),
    [
        (lambda bench: bench.program.unlink(), "not installed"),
        (lambda bench: bench.answers("No devices were found\n", status=6), "No devices were found"),
        (lambda bench: bench.answers("\n"), "not on this machine"),
        (lambda bench: (bench.dev_dir / "nvidia4").unlink(), "is no device"),
        (lambda bench: bench.program.write_bytes(b"\x7fELF"), "cannot be run"),
    ],
)
def test_what_cannot_be_found_leaves_an_empty_pool_and_says_why(bench: Bench, spoil: Any, note: str) -> None:
    spoil(bench)
    found = bench.find(FIRST)
    assert found.devices == ()
    assert note in found.notes[0]


def test_a_tool_that_hangs_is_not_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.program.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(devices_module, "_TIMEOUT_S", 0.2)
    assert "cannot be run" in bench.find(FIRST).notes[0]


def test_a_tool_that_fails_for_a_moment_takes_no_device_from_anybody_and_one_that_fails_for_long_takes_all(
    bench: Bench, pool: DevicePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices_module, "_KEPT_S", -1.0)
    assert [device.uuid for device in pool.look().devices] == [FIRST, SECOND]
    bench.answers("Unable to determine the device handle\n", status=15)
    for _ in range(2):
        found = pool.look()
        assert [device.uuid for device in found.devices] == [FIRST, SECOND]
        assert "Unable to determine" in found.notes[0]
    with pool.held((FIRST,), tmp_path):
        pass
    monkeypatch.setattr(devices_module, "_STANDS_S", -1.0)
    assert pool.look().devices == ()
    # What is told stands at once, also where it is less than before.
    bench.answers(ANSWER)
    assert len(pool.look().devices) == 2
    bench.answers(ANSWER.splitlines(keepends=True)[1])
    assert [device.uuid for device in pool.look().devices] == [SECOND]


def test_where_the_tool_has_told_nothing_yet_no_device_is_said_to_be_gone(
    bench: Bench, pool: DevicePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices_module, "_KEPT_S", -1.0)
    bench.answers("Unable to determine the device handle\n", status=15)
    for _ in range(2):
        with pytest.raises(Unavailable, match="Unable to determine") as refusal:
            pool.told()
        assert refusal.value.code == "devices.untold"
    bench.answers(ANSWER)
    assert [device.uuid for device in pool.told()] == [FIRST, SECOND]
    bench.answers("Unable to determine the device handle\n", status=15)
    assert [device.uuid for device in pool.told()] == [FIRST, SECOND]
    monkeypatch.setattr(devices_module, "_STANDS_S", -1.0)
    with pytest.raises(Unavailable):
        pool.told()
    bench.answers("")
    assert pool.told() == ()


def test_a_slice_of_a_device_and_one_without_figures_are_not_taken(bench: Bench) -> None:
    bench.driver_knows(THIRD, 6)
    (bench.dev_dir / "nvidia6").symlink_to("/dev/null")
    found = bench.find(THIRD, "MIG-11111111-0000-4000-8000-111111111111")
    assert found.devices == ()
    assert all("not on this machine" in note for note in found.notes)


# --- holding ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pool(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DevicePool:
    monkeypatch.setattr(devices_module, "_LOCK_WAIT_S", 0.2)
    return DevicePool((FIRST, SECOND), tmp_path / "state", bench.machine)


def test_a_job_is_given_its_nodes_and_no_other(pool: DevicePool, tmp_path: Path) -> None:
    with pool.held((SECOND,), tmp_path) as held:
        assert sorted(held.nodes) == ["nvidia2", "nvidiactl"]
        assert [device.uuid for device in held.devices] == [SECOND]
    with pool.held((), tmp_path) as held:
        assert (held.nodes, held.devices) == ({}, ())


def test_nobody_else_has_a_device_while_it_is_held(pool: DevicePool, tmp_path: Path) -> None:
    with pool.held((FIRST,), tmp_path):
        with pytest.raises(Unavailable) as refusal, pool.held((SECOND, FIRST), tmp_path):
            pass
        assert refusal.value.code == "devices.busy"
        with pool.held((SECOND,), tmp_path):
            pass
    with pool.held((FIRST,), tmp_path):
        pass


HOLD = """
import sys, time
from pathlib import Path
from licet_adapters.training.devices import DevicePool, Machine
state, output, program, driver, dev, uuid = sys.argv[1:]
pool = DevicePool((uuid,), Path(state), Machine(program, Path(driver), Path(dev)))
with pool.held((uuid,), Path(output)):
    print("held", flush=True)
    time.sleep(60)
"""
OUTLIVE = """
import fcntl, os, sys, time
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def _holder(bench: Bench, state: Path, output: Path, uuid: str) -> subprocess.Popen[bytes]:
    arguments = [state, output, bench.program, bench.driver_dir, bench.dev_dir, uuid]
    process = subprocess.Popen([sys.executable, "-c", HOLD, *map(str, arguments)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_device_of_a_killed_worker_is_had_only_when_its_job_is_gone_too(
    bench: Bench, pool: DevicePool, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    holder = _holder(bench, tmp_path / "state", output, FIRST)
    with pytest.raises(Unavailable, match="at work for another job"), pool.held((FIRST,), tmp_path):
        pass
    # The job outlives the worker: it holds its output folder, as the sandbox's first process does.
    job = subprocess.Popen([sys.executable, "-c", OUTLIVE, str(output)], stdout=subprocess.PIPE)
    assert job.stdout is not None
    assert job.stdout.readline() == b"held\n"
    _kill(holder)
    with pytest.raises(Unavailable, match="not gone yet"), pool.held((FIRST,), tmp_path):
        pass
    _kill(job)
    with pool.held((FIRST,), tmp_path):
        pass


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_two_who_want_the_same_two_devices_never_wait_for_each_other(bench: Bench, tmp_path: Path) -> None:
    pool = DevicePool((FIRST, SECOND), tmp_path / "state", bench.machine)
    had: list[str] = []

    def take(order: tuple[str, str]) -> None:
        for _ in range(20):
            with pool.held(order, tmp_path) as held:
                had.append(",".join(device.uuid for device in held.devices))

    threads = [threading.Thread(target=take, args=(order,)) for order in ((FIRST, SECOND), (SECOND, FIRST))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(had) == 40


@pytest.mark.parametrize("uuids", [(FIRST, FIRST), ("0",), ("../../etc/passwd",)])
def test_devices_are_named_by_uuid_each_once(pool: DevicePool, tmp_path: Path, uuids: tuple[str, ...]) -> None:
    with pytest.raises(InputRefused), pool.held(uuids, tmp_path):
        pass


def test_a_device_that_is_not_allowed_cannot_be_held(bench: Bench, tmp_path: Path) -> None:
    pool = DevicePool((FIRST,), tmp_path / "state", bench.machine)
    with pytest.raises(Unavailable) as refusal, pool.held((SECOND,), tmp_path):
        pass
    assert refusal.value.code == "devices.missing"


# --- in the sandbox --------------------------------------------------------------------------------------------------

LOOK = """
import argparse, json, os
parser = argparse.ArgumentParser()
for name in ("--inputs", "--output", "--report-fd"):
    parser.add_argument(name)
asked = parser.parse_args()
zeros = open("/dev/nvidia2", "rb").read(4) if os.path.exists("/dev/nvidia2") else b""
try:
    open("/dev/nvidia9", "w")
    made = "made"
except OSError:
    made = "refused"
system = sorted(os.listdir("/sys")) if os.path.isdir("/sys") else []
read_only = [bool(os.statvfs(f"/sys/devices/system/{name}").f_flag & os.ST_RDONLY) for name in ("cpu", "node") if system]
told = {"system": system, "read_only": read_only, "names": sorted(os.listdir("/dev")), "zeros": zeros.hex(), "made": made, "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}
os.write(int(asked.report_fd), json.dumps(told).encode() + b"\\n")
"""


def test_of_the_machine_a_job_reads_what_cuda_needs_and_nothing_without_devices(
    pool: DevicePool, tmp_path: Path
) -> None:
    sandbox = Sandbox(tmp_path / "sandbox")
    if sandbox.probe().kind == "none":
        pytest.skip("no sandbox can be had here")
    code = JobCode(entry="look.py", files={"look.py": LOOK.encode()})
    told: list[dict[str, Any]] = []
    for uuids in ((), (SECOND,)):
        output = tmp_path / f"out{len(uuids)}"
        output.mkdir()
        with pool.held(uuids, output) as held:
            run = JobRun(code=code, inputs={}, documents={}, output_dir=output, devices=held.nodes)
            end = sandbox.run(run, told.append, lambda: False)
        assert end.status == 0, end.stderr_tail
    without, with_device = told
    assert without["system"] == []
    # Never the whole: of block devices, file systems, networks and groups of processes a job learns nothing.
    assert "devices" in with_device["system"]
    assert set(with_device["system"]) <= {"bus", "class", "devices", "module"}
    assert with_device["read_only"] == [True, True]


def test_only_leased_devices_can_be_seen_in_the_sandbox(pool: DevicePool, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    code = JobCode(entry="look.py", files={"look.py": LOOK.encode()})
    told: list[dict[str, Any]] = []
    with pool.held((SECOND,), output) as held:
        environment = {"CUDA_VISIBLE_DEVICES": SECOND}
        run = JobRun(code=code, inputs={}, documents={}, output_dir=output, environment=environment, devices=held.nodes)
        sandbox = Sandbox(tmp_path / "sandbox")
        if sandbox.probe().kind == "none":
            pytest.skip("no sandbox can be had here")
        end = sandbox.run(run, told.append, lambda: False)
    assert end.status == 0, end.stderr_tail
    devices = {name for name in told[0]["names"] if name.startswith("nvidia")}
    assert devices == {"nvidia2", "nvidiactl"}
    assert (told[0]["zeros"], told[0]["made"], told[0]["visible"]) == ("00000000", "refused", SECOND)


# --- a training run --------------------------------------------------------------------------------------------------


def _job(folder: Path, devices: tuple[str, ...], **changes: Any) -> TrainingJob:
    example = TrainingExample()
    return TrainingJob(
        tenant=TENANT,
        operation_id="a" * 32,
        step="train",
        attempt=1,
        run=f"{TENANT}/on-devices",
        parameters={"spec": {**example.spec, **changes}},
        inputs={TRAIN_INPUT: write_input(folder / "inputs" / TRAIN_INPUT, example.train)},
        workdir=folder / "work",
        devices=devices,
    )


@pytest.fixture
def world(tmp_path: Path) -> World:
    folder = tmp_path / "world"
    folder.mkdir(mode=0o700)
    return World(folder)


def test_the_warrant_of_a_run_names_each_device_as_leased_to_its_operation(tmp_path: Path) -> None:
    job = _job(tmp_path, (SECOND, FIRST), device="cuda", ranks=2)
    named = {name: value for name, value in job.resources().items() if name.startswith("device:")}
    assert named == {
        "device:0": f"{TENANT}/device/{job.operation_id}/{SECOND}",
        "device:1": f"{TENANT}/device/{job.operation_id}/{FIRST}",
    }


@pytest.mark.parametrize(
    ("devices", "changes"),
    [((), {"device": "cuda"}), ((FIRST,), {}), ((FIRST,), {"device": "cuda", "ranks": 2}), ((FIRST,), {"ranks": 1})],
)
def test_a_spec_and_its_leases_must_agree(
    bench: Bench, world: World, devices: tuple[str, ...], changes: dict[str, Any]
) -> None:
    context = replace(world.context("local-training"), options={"devices": f"{FIRST},{SECOND}"})
    training = LocalTraining(context, machine=bench.machine)
    job = _job(world.directory, devices, **changes)
    warrant = world.warrant_for("training.launch", "local-training", "training.run", job)
    with pytest.raises(InputRefused) as refusal:
        training.run(warrant, job, lambda _metric: None, lambda: False)
    assert refusal.value.code == "input.devices"


def test_a_job_finds_its_devices_by_uuid_in_the_order_of_its_ranks(pool: DevicePool, tmp_path: Path) -> None:
    spec = parse_spec(TrainingSpec, {**TrainingExample().spec, "device": "cuda", "ranks": 2})
    with pool.held((SECOND, FIRST), tmp_path) as held:
        environment = job_environment(spec, held)
    assert environment["CUDA_VISIBLE_DEVICES"] == f"{SECOND},{FIRST}"
    assert (environment["NCCL_SOCKET_IFNAME"], environment["GLOO_SOCKET_IFNAME"]) == ("lo", "lo")
    assert environment["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    with pool.held((), tmp_path) as held:
        assert job_environment(parse_spec(TrainingSpec, TrainingExample().spec), held) == {}


@pytest.mark.parametrize("seen", [None, [], [FIRST], [FIRST, SECOND, THIRD], [SECOND, FIRST]])
def test_what_a_job_made_counts_only_if_it_saw_the_devices_it_was_given(
    pool: DevicePool, tmp_path: Path, seen: list[str] | None
) -> None:
    reports = Reports(lambda _metric: None)
    if seen is not None:
        reports.take({"devices": {"uuids": seen, "cuda": "12.6"}})
    with pool.held((FIRST, SECOND), tmp_path) as held, pytest.raises(JobFailed) as failure:
        local_module._require_seen(held, reports)
    assert failure.value.code == "job.devices"
    reports.take({"devices": {"uuids": [FIRST, SECOND], "cuda": "12.6"}})
    local_module._require_seen(held, reports)


def test_a_run_on_devices_that_torch_cannot_use_says_so(bench: Bench, world: World) -> None:
    import torch  # noqa: PLC0415  # Half a second that the other tests need not wait.

    if torch.cuda.is_available():
        pytest.skip("torch can use CUDA devices here: see test_training_cuda.py")
    context = replace(world.context("local-training"), options={"devices": f"{FIRST},{SECOND}"})
    training = LocalTraining(context, machine=bench.machine)
    assert [device.uuid for device in training.devices()] == [FIRST, SECOND]
    job = _job(world.directory, (FIRST,), device="cuda")
    warrant = world.warrant_for("training.launch", "local-training", "training.run", job)
    with pytest.raises(JobFailed, match="cannot use a CUDA device") as failure:
        training.run(warrant, job, lambda _metric: None, lambda: False)
    assert failure.value.code == "job.device"
