"""Runs on this machine's own CUDA devices, from the request to the attestation; skipped where it has none."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from service_world import Installation, poll, table  # Found by conftest.py.
from sqlmodel import select

from licet_adapters.jobs import ranks
from licet_attestations import dsse
from licet_attestations.statement import SLSA_PROVENANCE, Statement
from licet_engine.client import Operation
from licet_engine.store import tables
from licet_engine.store.db import tenant_session

WHY_NOT = "" if torch.cuda.is_available() else f"torch {torch.__version__} finds no CUDA device on this machine"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "a CUDA device is here")]


@pytest.fixture(scope="module")
def uuid() -> str:
    """The one device that is let into the pool."""
    first: str = ranks.visible_devices()["uuids"][0]
    return first


@pytest.fixture(scope="module")
def installation(uuid: str) -> Iterator[Installation]:
    """Two tenants, each allotted one device of a pool of one."""
    made = Installation(devices=uuid)
    try:
        made.start()
        for tenant, region in (("northbank", "us"), ("lakeside", "eu")):
            made.people(tenant, region)
            assert made.register(f"{tenant}/ana", "loans", table()).state == "done"
        operator = made.client("platform/operator")
        poll("the worker to report its device", lambda: operator.list("platform", "devices"), 90)
        for tenant in ("northbank", "lakeside"):
            operator.act("tenant.allot", tenant, {"devices": 1}).require()
        yield made
    finally:
        made.stop()


def launch(world: Installation, tenant: str, run: str, **spec: Any) -> Operation:
    region = "us" if tenant == "northbank" else "eu"
    body = {
        "dataset": f"{tenant}/loans",
        "environment": f"{region}-east",
        "use": "credit-risk",
        "devices": 1,
        "spec": {"epochs": 300, "checkpoint_every_epochs": 5} | spec,
    }
    accepted = world.client(f"{tenant}/ana").act("training.launch", f"{tenant}/{run}", body).require()
    assert accepted.operation is not None
    return accepted.operation


def execution(world: Installation, tenant: str, operation: str) -> dict[str, Any]:
    """How a run was executed, as attested."""
    with tenant_session(world.engine, tenant) as session:
        rows = session.exec(select(tables.Attestation)).all()
    found = [Statement.from_bytes(dsse.Envelope.from_json(row.envelope.encode()).payload) for row in rows]
    (told,) = [
        one.predicate["buildDefinition"]["internalParameters"]
        for one in found
        if one.predicate_type == SLSA_PROVENANCE and operation in json.dumps(one.predicate)
    ]
    assert told["sandbox"]["kind"] == "bubblewrap", told["sandbox"]
    return dict(told["execution"])


def test_a_run_on_a_device_is_attested_with_its_uuid_and_gives_it_back(installation: Installation, uuid: str) -> None:
    accepted = launch(installation, "northbank", "on-device", precision="bf16")
    ended = installation.client("northbank/ana").wait(accepted, timeout_s=180)
    assert ended.state == "done", ended
    told = execution(installation, "northbank", accepted.id)
    assert (told["device"], told["precision"], told["ranks"]) == ("cuda", "bf16", 1)
    assert [device["uuid"] for device in told["devices"]] == [uuid]
    assert told["cuda"] == torch.version.cuda
    (device,) = installation.client("platform/operator").list("platform", "devices")
    assert (device["uuid"], device["of_tenant"]) == (uuid, None)


def test_two_tenants_that_want_the_one_device_have_it_one_after_the_other(
    installation: Installation, uuid: str
) -> None:
    operator = installation.client("platform/operator")
    first = launch(installation, "northbank", "first", epochs=3000)
    poll(
        "the first to have the device", lambda: operator.list("platform", "devices")[0]["of_tenant"] == "northbank", 60
    )
    second = launch(installation, "lakeside", "second")
    waits = installation.client("lakeside/ana")
    poll("the second to wait", lambda: waits.run.read("lakeside/second").result["run"]["state"] == "waiting", 60)
    for tenant, accepted in (("northbank", first), ("lakeside", second)):
        ended = installation.client(f"{tenant}/ana").wait(accepted, timeout_s=180)
        assert ended.state == "done", ended
        assert [device["uuid"] for device in execution(installation, tenant, accepted.id)["devices"]] == [uuid]


def epoch(world: Installation, tenant: str, operation: str) -> int:
    """How far a run says that it is."""
    with tenant_session(world.engine, tenant) as session:
        row = session.exec(select(tables.Operation).where(tables.Operation.id == operation)).one()
    return int((row.progress or {}).get("epoch", 0))


def job_pid() -> int | None:
    """The job that trains, inside its sandbox: its line has the script first, the sandbox's own has it last of all."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            program, *arguments = (folder / "cmdline").read_bytes().split(b"\0")
            if b"python" in program and any(argument.endswith(b"train_tabular.py") for argument in arguments[:4]):
                return int(folder.name)
    return None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_killed_on_a_device_goes_on_and_ends_with_the_very_model_of_one_that_was_not(
    installation: Installation, precision: str
) -> None:
    ana = installation.client("northbank/ana")
    spec = {"epochs": 3000, "precision": precision}
    whole = ana.wait(launch(installation, "northbank", f"whole-{precision}", **spec), timeout_s=180)
    accepted = launch(installation, "northbank", f"cut-{precision}", **spec)
    at_work = poll(
        "the job to be well at work", lambda: epoch(installation, "northbank", accepted.id) > 40 and job_pid(), 90
    )
    os.kill(at_work, signal.SIGKILL)
    cut = ana.wait(accepted, timeout_s=180)
    assert (whole.state, cut.state) == ("done", "done"), (whole, cut)
    assert cut.result["resumed_from_step"] > whole.result["resumed_from_step"] == 0
    assert cut.result["digests"]["weights"] == whole.result["digests"]["weights"]
    (device,) = installation.client("platform/operator").list("platform", "devices")
    assert device["of_tenant"] is None
