"""Workers that have devices are killed, stopped and forgotten, again and again: no device ever serves two runs at once.

Each worker leases devices of one pool in one database, holds them on the machine, and works as a job that outlives it by a
moment. What a job does on a device stands in a journal: it takes the device's file exclusively, which fails loudly where
another job has it. The seed can be set: ``LICET_TEST_SEED``.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from sqlmodel import select

from licet_engine.lifecycle.devices import DeviceLeases
from licet_engine.store import db, migrations
from licet_engine.store.tables import DeviceAllotment, DeviceRow, Tenant

pytestmark = pytest.mark.slow

UUIDS = [f"GPU-{digit * 8}-0000-4000-8000-{digit * 12}" for digit in "123"]
WORKERS = 4
ROUNDS = 40
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
leases = DeviceLeases(open_engine(folder / "licet.db"), idle_s=%(idle_s)d)
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


@pytest.mark.timeout(200)
def test_no_device_serves_two_runs_whoever_is_killed(tmp_path: Path) -> None:
    _machine(tmp_path)
    engine = db.open_engine(tmp_path / "licet.db")
    migrations.upgrade(engine)
    for tenant in ("tenant0", "tenant1"):
        with db.tenant_session(engine, tenant, write=True) as session:
            session.add(Tenant(tenant_id=tenant, region="us", created_at_ms=1))
            session.flush()
            session.add(DeviceAllotment(tenant_id=tenant, devices=2, at_ms=1))
    leases = DeviceLeases(engine, idle_s=IDLE_S)
    told = {"kind": "cuda", "name": "Test", "memory_mib": 1024, "driver": "1.0"}
    leases.report("worker-1", [{"uuid": uuid, **told} for uuid in UUIDS])
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
