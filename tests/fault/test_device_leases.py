"""Workers that have devices are killed, stopped and forgotten, again and again: no device ever serves two runs at once.

Each worker leases devices of one pool in one database, holds them on the machine, and works as a job that outlives it by a
moment. What a job does on a device stands in a journal: it takes the device's file exclusively, which fails loudly where
another job has it. The seed can be set: ``LICET_TEST_SEED``.

And a real training is killed with its worker while it holds devices: its lease is adopted, or lapses and goes round, and the run
goes on from its checkpoint. It computes on the processor, as no machine that runs these tests needs a CUDA device; everything
around it, from the lease to the kernel's lock on the device, is what a run on CUDA has.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlmodel import select

from databases import KINDS, Database
from licet_adapters.conformance.tabular import TRAIN_INPUT, TrainingExample, write_input
from licet_adapters.conformance.world import TENANT, World
from licet_adapters.errors import Unavailable
from licet_adapters.ports import Metric, TrainingJob, TrainingOutcome
from licet_adapters.training.devices import DevicePool, Machine
from licet_adapters.training.local import LocalTraining
from licet_engine.lifecycle.devices import Claim, DeviceLeases, pool_states
from licet_engine.store import db
from licet_engine.store.tables import DeviceAllotment, DeviceRow, Tenant
from rounds import rounds

pytestmark = pytest.mark.slow

UUIDS = [f"GPU-{digit * 8}-0000-4000-8000-{digit * 12}" for digit in "123"]
WORKERS = 4
ROUNDS = rounds(12)
IDLE_S = 1
LONG_S = 1.6
"""Longer than a lease that nobody renews."""

# The job: holds the output folder as the sandbox's first process does, and uses the devices for a moment.
JOB = """
import fcntl, os, sys, time
lock, journal, name, *devices = sys.argv[1:]
fcntl.flock(os.open(lock, os.O_RDONLY), fcntl.LOCK_EX)
print("started", flush=True)
used = []
for device in devices:
    fd = os.open(device, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with open(journal, "a") as file:
            file.write(f"TWO {name} {os.path.basename(device)}\\n")
    used.append(fd)
time.sleep(float(os.environ["JOB_S"]))
with open(journal, "a") as file:
    file.write(f"used {name} {len(devices)}\\n")
"""

WORKER = """
import os, subprocess, sys, time, random
from pathlib import Path
from licet_adapters.errors import Unavailable
from licet_adapters.training.devices import DevicePool, Machine
from licet_engine.lifecycle.devices import Claim, DeviceLeases
from licet_engine.store.db import open_engine
folder, number, seed = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
chance = random.Random(seed)
database = (folder / "database").read_text()
leases = DeviceLeases(open_engine(database, every_tenant=True), idle_s=%(idle_s)d)
machine = Machine(str(folder / "nvidia-smi"), folder / "gpus", folder / "dev")
pool = DevicePool(%(uuids)r, folder / "state", machine)
for turn in range(10_000):
    name = f"{number}-{turn}-{os.getpid()}"
    out = folder / "out" / name
    out.mkdir(parents=True)
    claim = Claim(f"tenant{int(number) %% 2}", name, "worker-1", chance.choice((1, 1, 2)))
    while not (devices := leases.lease(claim)):
        time.sleep(0.02)
    try:
        with pool.held(devices, out) as held:
            files = [str(folder / "used" / node) for node in sorted(held.nodes)]
            job = subprocess.Popen([sys.executable, "-I", "-S", "-c", %(job)r, str(out), str(folder / "journal"), name, *files],
                stdout=subprocess.PIPE, env={"JOB_S": str(chance.choice((0.05, 0.2, %(long_s)f)))})
            job.stdout.readline()
            job.wait()
    except Unavailable as error:
        with (folder / "journal").open("a") as file:
            file.write(f"busy {name} {error.code}\\n")
    leases.release(name)
"""


def _machine(folder: Path) -> None:
    lines = "".join(f"{index}, {uuid}, Test, 1024, 1.0\\n" for index, uuid in enumerate(UUIDS))
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{lines}'\n")
    (folder / "nvidia-smi").chmod(0o755)
    (folder / "dev").mkdir()
    (folder / "used").mkdir()
    # Any device node will do, under a name of ours: what a job uses is a file beside it.
    for index, (uuid, node) in enumerate(zip(UUIDS, ("full", "zero", "null"), strict=True)):
        (folder / "dev" / f"nvidia{index}").symlink_to(f"/dev/{node}")
        (folder / "used" / f"nvidia{index}").touch()
        (folder / "gpus" / str(index)).mkdir(parents=True)
        (folder / "gpus" / str(index) / "information").write_text(f"GPU UUID: {uuid}\nDevice Minor: {index}\n")


def _pool(engine: Engine, tenants: tuple[str, ...], *, idle_s: int) -> DeviceLeases:
    """Tenants that are allotted two devices each, and the pool that they share."""
    for tenant in tenants:
        with db.tenant_session(engine, tenant, write=True) as session:
            session.add(Tenant(tenant_id=tenant, region="us", created_at_ms=1))
            session.flush()
            session.add(DeviceAllotment(tenant_id=tenant, devices=2, at_ms=1))
    leases = DeviceLeases(engine, idle_s=idle_s)
    told = {"kind": "cuda", "name": "Test", "memory_mib": 1024, "driver": "1.0"}
    leases.report("worker-1", [{"uuid": uuid, **told} for uuid in UUIDS])
    return leases


@pytest.mark.timeout(150 + 3 * ROUNDS)
def test_no_device_serves_two_runs_whoever_is_killed(prepared: Database, tmp_path: Path) -> None:
    _machine(tmp_path)
    prepared.write(tmp_path / "database")
    engine = prepared.open()
    _pool(engine, ("tenant0", "tenant1"), idle_s=IDLE_S)
    code = WORKER % {"idle_s": IDLE_S, "long_s": LONG_S, "uuids": UUIDS, "job": JOB}
    seed = os.environ.get("LICET_TEST_SEED", "devices")
    chance = random.Random(seed)  # noqa: S311  # Chooses moments, no secrets.

    def start(number: int, life: int) -> subprocess.Popen[bytes]:
        arguments = [str(tmp_path), str(number), f"{seed}-{number}-{life}"]
        return subprocess.Popen([sys.executable, "-c", code, *arguments])

    journal = tmp_path / "journal"
    workers = [start(number, 0) for number in range(WORKERS)]
    try:
        until_s = time.monotonic() + 60
        while not journal.exists():
            assert time.monotonic() < until_s, "no worker begins"
            time.sleep(0.1)
        for life in range(1, ROUNDS + 1):
            time.sleep(chance.uniform(0.0, 0.6))
            victim = chance.randrange(WORKERS)
            if chance.random() < 0.25:
                # Stopped for longer than its leases last: it wakes up and knows nothing of it.
                workers[victim].send_signal(signal.SIGSTOP)
                time.sleep(IDLE_S + 0.3)
                workers[victim].send_signal(signal.SIGCONT)
            else:
                workers[victim].kill()
                workers[victim].wait()
                workers[victim] = start(victim, life)
        done = journal.read_text().count("used ")
        until_s = time.monotonic() + 30
        while journal.read_text().count("used ") <= done:
            assert time.monotonic() < until_s, "after all that, nobody gets a device any more"
            time.sleep(0.1)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    events = Counter(line.split()[0] for line in journal.read_text().splitlines())
    assert events["TWO"] == 0, journal.read_text()
    assert events["used"] > ROUNDS / 2, events
    # Nothing is left that a crash could have left for ever.
    time.sleep(IDLE_S + 0.1)
    with db.tenant_session(engine, "platform") as session:
        rows = session.exec(select(DeviceRow)).all()
    assert len(rows) == len(UUIDS)
    engine.dispose()


# --- a training that is killed with its worker ---------------------------------------------------------------------------

SPEC = {**TrainingExample().spec, "epochs": 150, "checkpoint_every_epochs": 5, "ranks": 2}
OTHER = "lakeside"
ADOPTED_IDLE_S, LAPSED_IDLE_S = 600, 2
# A training of two ranks is dear, and that leases are the same on each kind of database is shown above: one of these is on the first, one on
# the last.
MakeDatabase = Callable[..., AbstractContextManager[Database]]


class Field:
    """A machine with devices, the leases of them, and a training that holds two."""

    def __init__(self, folder: Path, database: Database, idle_s: int) -> None:
        folder.chmod(0o700)
        _machine(folder)
        self.folder = folder
        self.database = database
        self.idle_s = idle_s
        self.world = World(folder)
        self.engine = database.open()
        self.leases = _pool(self.engine, (TENANT, OTHER), idle_s=idle_s)

    def job(self, name: str, attempt: int = 1) -> TrainingJob:
        return TrainingJob(
            tenant=TENANT,
            operation_id=hashlib.sha256(name.encode()).hexdigest()[:32],
            step="train",
            attempt=attempt,
            run=f"{TENANT}/{name}",
            parameters={"spec": SPEC},
            inputs={TRAIN_INPUT: write_input(self.folder / "inputs" / TRAIN_INPUT, TrainingExample().train)},
            workdir=self.folder / "work" / name,
        )

    def claim(self, job: TrainingJob) -> Claim:
        return Claim(TENANT, job.operation_id, "worker-1", 2)

    def train(self, job: TrainingJob, warrant: bytes, devices: list[str], report: int | None = None) -> TrainingOutcome:
        """Hold the devices for the job's folder, as a run on them does, and train to the end."""
        machine = Machine(str(self.folder / "nvidia-smi"), self.folder / "gpus", self.folder / "dev")

        def on_metric(metric: Metric) -> None:
            if report is not None:
                os.write(report, b"%d\n" % metric.epoch)

        (job.workdir / "job").mkdir(mode=0o700, parents=True, exist_ok=True)
        with DevicePool(UUIDS, self.folder / "state", machine).held(devices, job.workdir / "job"):
            training = LocalTraining(self.world.context("local-training"))
            return training.run(warrant, job, on_metric, lambda: False)

    def warrant(self, job: TrainingJob) -> bytes:
        return self.world.warrant_for("training.launch", "local-training", "training.run", job)

    def kill_a_worker_at_work(self, job: TrainingJob, *, after_epoch: int) -> list[str]:
        """Have a worker lease devices and train; kill it once it is so far. Return what it had leased."""
        warrant, (reader, writer) = self.warrant(job), os.pipe()
        worker = os.fork()
        if worker == 0:
            try:
                # Its own connections, as every process has.
                leases = DeviceLeases(self.database.open(), idle_s=self.idle_s)
                self.train(job, warrant, leases.lease(self.claim(job)), writer)
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader, "rb") as lines:
            reached = any(int(line) >= after_epoch for line in lines)
        os.kill(worker, signal.SIGKILL)
        assert os.waitpid(worker, 0)[1] == signal.SIGKILL
        assert reached, "the worker ended before it was killed"
        return self.holders(job.operation_id)

    def holders(self, operation: str) -> list[str]:
        with db.tenant_session(self.engine, "platform") as session:
            return sorted(row.uuid for row in session.exec(select(DeviceRow)).all() if row.operation_id == operation)


@pytest.fixture
def field(request: pytest.FixtureRequest, make_database: MakeDatabase, tmp_path: Path) -> Iterator[Field]:
    kind, idle_s = request.param
    with make_database(kind) as database:
        made = Field(tmp_path, database, idle_s)
        yield made
        made.engine.dispose()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("field", [(KINDS[0], ADOPTED_IDLE_S)], indirect=True)
def test_a_killed_workers_devices_stay_its_runs_which_goes_on_to_the_very_bits(field: Field) -> None:
    whole_job = field.job("whole")
    whole = field.train(whole_job, field.warrant(whole_job), [])
    job = field.job("killed")
    assert field.kill_a_worker_at_work(job, after_epoch=15) == UUIDS[:2]
    # Nobody else has them, whatever died.
    other = Claim(OTHER, "f" * 32, "worker-1", 2)
    assert field.leases.lease(other) == []
    # Killed again, as the one that adopted it; then it comes to its end.
    again = field.job("killed", attempt=2)
    assert field.kill_a_worker_at_work(again, after_epoch=50) == UUIDS[:2]
    assert field.leases.lease(other) == []
    last = field.job("killed", attempt=3)
    resumed = field.train(last, field.warrant(last), field.leases.lease(field.claim(last)))
    assert field.holders(job.operation_id) == UUIDS[:2]
    assert resumed.resumed_from_step > 0
    assert resumed.digests == whole.digests
    field.leases.release(job.operation_id)
    assert field.leases.lease(other) == UUIDS[:2]
    assert pool_states(field.engine) == {"free": 1.0, "leased": 2.0}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("field", [(KINDS[-1], LAPSED_IDLE_S)], indirect=True)
def test_a_killed_workers_lease_lapses_and_its_run_waits_for_devices_anew_and_goes_on(field: Field) -> None:
    job = field.job("killed")
    assert field.kill_a_worker_at_work(job, after_epoch=15) == UUIDS[:2]
    other = Claim(OTHER, "f" * 32, "worker-1", 2)
    until_s = time.monotonic() + LAPSED_IDLE_S + 10
    while not (taken := field.leases.lease(other)):
        assert time.monotonic() < until_s, "the lease of a dead worker does not lapse"
        time.sleep(0.1)
    # What is leased is had as well: the kernel let go of the device with the worker, and the job died with it.
    machine = Machine(str(field.folder / "nvidia-smi"), field.folder / "gpus", field.folder / "dev")
    (field.folder / "other").mkdir()
    with DevicePool(UUIDS, field.folder / "state", machine).held(taken, field.folder / "other"):
        again = field.job("killed", attempt=2)
        assert taken == UUIDS[:2]
        assert field.leases.renew(other.operation, 2)
        assert field.leases.lease(field.claim(again)) == []
        # Whoever does not know that it lost its lease is let at nothing.
        with pytest.raises(Unavailable) as busy:
            field.train(again, field.warrant(again), UUIDS[:2])
        assert busy.value.code == "devices.busy"
    field.leases.release(other.operation)
    last = field.job("killed", attempt=3)
    resumed = field.train(last, field.warrant(last), field.leases.lease(field.claim(last)))
    assert field.holders(job.operation_id) == UUIDS[:2]
    assert resumed.resumed_from_step > 0
    assert resumed.metrics[-1].epoch == SPEC["epochs"] - 1
