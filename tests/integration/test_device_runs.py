"""Runs on several ranks, in mixed precision and on devices, as their users see them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from service_world import UUIDS, Installation, poll, problem  # Found by conftest.py.
from sqlmodel import select

from licet_attestations import dsse
from licet_attestations.statement import SLSA_PROVENANCE, WARRANT, Statement
from licet_engine.commands.render import operation_lines
from licet_engine.lifecycle.devices import Claim, DeviceLeases
from licet_engine.store import tables
from licet_engine.store.db import tenant_session
from licet_engine.worker import MAX_KILLED

DEVICE = {"kind": "cuda", "name": "NVIDIA H100", "memory_mib": 81559, "driver": "550.54"}


def launch(**changes: Any) -> dict[str, Any]:
    body = {"dataset": "northbank/loans", "environment": "us-east", "use": "credit-risk", "spec": {"epochs": 20}}
    return body | changes


def statements(world: Installation, operation: str, kind: str) -> list[Statement]:
    """What was attested of an operation, the oldest first."""
    named = [
        record["digest"]
        for _, record in world.entries("northbank")
        if record.get("type") == "attestation" and record["operation"] == operation and record["predicate_type"] == kind
    ]
    with tenant_session(world.engine, "northbank") as session:
        rows = {row.digest_hex: row.envelope for row in session.exec(select(tables.Attestation)).all()}
    return [Statement.from_bytes(dsse.Envelope.from_json(rows[name].encode()).payload) for name in named]


def rank_pid(rank: int) -> int | None:
    """A rank that is at work below this process, as this machine numbers it."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if b"LOCAL_RANK=%d\0" % rank in (folder / "environ").read_bytes() and _is_ours(folder):
                return int(folder.name)
    return None


def _is_ours(folder: Path) -> bool:
    while folder.name not in {"0", "1"}:
        if folder.name == str(os.getpid()):
            return True
        folder = folder.with_name((folder / "stat").read_text().rpartition(")")[2].split()[1])
    return False


def test_a_run_of_two_ranks_whose_rank_is_killed_goes_on_by_itself_and_says_how_it_ran(world: Installation) -> None:
    ana = world.client("northbank/ana")
    spec = {"epochs": 1500, "precision": "bf16", "checkpoint_every_epochs": 5}
    accepted = ana.act("training.launch", "northbank/ranks", launch(ranks=2, spec=spec)).require()
    assert accepted.operation is not None
    # Once it reports, there are checkpoints: they are written as often as figures are.
    pid = poll("a rank to be well at work", lambda: _epoch(world, accepted.operation.id) > 40 and rank_pid(1), 90)
    os.kill(pid, signal.SIGKILL)
    ended = ana.wait(accepted.operation, timeout_s=200)
    assert ended.state == "done", ended
    assert ended.result["attempt"] == 2
    assert ended.result["resumed_from_step"] > 0
    (provenance,) = statements(world, accepted.operation.id, SLSA_PROVENANCE)
    told = provenance.predicate["buildDefinition"]
    execution = {"device": "cpu", "devices": [], "cuda": "", "ranks": 2, "precision": "bf16"}
    assert told["internalParameters"]["execution"] == execution
    assert told["externalParameters"]["spec"]["ranks"] == 2
    named = {item["name"]: item["digest"]["sha256"] for item in told["resolvedDependencies"]}
    assert named["execution"] == ended.result["digests"]["execution"]
    assert ended.result["attempt"] == told["internalParameters"]["attempt"]
    # What it took stood among the facts of its decision.
    with tenant_session(world.engine, "northbank") as session:
        facts = [json.loads(row.body) for row in session.exec(select(tables.FactBlob)).all()]
    (computed,) = {
        json.dumps(fact["attrs"]["compute"], sort_keys=True)
        for fact in facts
        if fact["uid"] == {"type": "Run", "id": "northbank/ranks"}
    }
    assert json.loads(computed) == {"device": "cpu", "devices": 0, "device_quota": 0, "ranks": 2, "precision": "bf16"}


def test_a_run_that_is_killed_each_time_goes_on_from_its_checkpoint_and_then_ends_with_what_to_do(
    world: Installation,
) -> None:
    ana = world.client("northbank/ana")
    spec = {"epochs": 20_000, "checkpoint_every_epochs": 5}
    accepted = ana.act("training.launch", "northbank/dies", launch(ranks=2, spec=spec)).require()
    assert accepted.operation is not None
    reached = 0
    for number in range(1, MAX_KILLED + 1):

        def is_further(before: int = reached, attempt: int = number) -> bool:
            # What the attempt before did is told until a moment after its end.
            told = _progress(world, accepted.operation.id)
            return told.get("attempt") == attempt and int(told["epoch"]) > before + 10

        pid = poll("a rank to be at work", lambda done=is_further: done() and rank_pid(1), 90)
        reached = _epoch(world, accepted.operation.id)
        os.kill(pid, signal.SIGKILL)
        poll("the rank to be gone", lambda pid=pid: not Path(f"/proc/{pid}").exists(), 30)
    ended = ana.wait(accepted.operation, timeout_s=60)
    assert (ended.state, ended.attempt, ended.error["code"]) == ("failed", MAX_KILLED, "job.killed")
    told = " ".join("\n".join(operation_lines(ended)).split())
    assert "killed by SIGKILL" in told
    assert f"killed {MAX_KILLED} times, and is not begun again: ask anew with less to do" in told
    assert ana.run.read("northbank/dies").result["run"]["state"] == "failed"
    with tenant_session(world.engine, "northbank") as session:
        rows = session.exec(select(tables.Metric).where(tables.Metric.run == "dies")).all()
    first = [min(row.step for row in rows if row.attempt == number) for number in range(1, MAX_KILLED + 1)]
    # Each attempt begins later than the one before.
    assert first == sorted(set(first))


def _epoch(world: Installation, operation: str) -> int:
    return int(_progress(world, operation).get("epoch", 0))


def _progress(world: Installation, operation: str) -> dict[str, Any]:
    with tenant_session(world.engine, "northbank") as session:
        row = session.exec(select(tables.Operation).where(tables.Operation.id == operation)).one()
    return dict(row.progress or {})


def test_a_run_that_takes_nothing_more_has_no_compute_among_its_facts(world: Installation) -> None:
    answer = world.client("northbank/ana").ask("training.launch", "northbank/plain", launch())
    assert answer.allowed
    with tenant_session(world.engine, "northbank") as session:
        facts = [json.loads(row.body) for row in session.exec(select(tables.FactBlob)).all()]
    (plain,) = [fact for fact in facts if fact["uid"] == {"type": "Run", "id": "northbank/plain"}]
    assert "compute" not in plain["attrs"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ranks": 0}, "ranks"),
        ({"devices": 1000}, "devices"),
        ({"devices": -1}, "devices"),
        ({"devices": 2, "ranks": 3}, "on 2 devices there are as many ranks"),
        ({"spec": {"precision": "fp8"}}, "spec.precision"),
        ({"devices": "all"}, "devices"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_what_is_wrong(
    world: Installation, changes: dict[str, Any], said: str
) -> None:
    body = {"resource": "northbank/wrong", "parameters": launch(**changes)}
    answer = problem(world.http("northbank/ana").post("/v1/training/launch", json=body), 400, "invalid-input")
    assert said in answer["detail"]


def test_devices_are_allotted_by_operators_alone_and_asking_for_more_is_denied_with_the_way_to_yes(
    world: Installation,
) -> None:
    ana, operator = world.client("northbank/ana"), world.client("platform/operator")
    for who in ("northbank/admin", "northbank/all", "lakeside/all"):
        assert not world.client(who).act("tenant.allot", "northbank", {"devices": 8}).allowed
    denied = ana.act("training.launch", "northbank/denied", launch(devices=2))
    assert [policy.id for policy in denied.policies] == ["guardrail.devices.quota"]
    explained = ana.explain(denied)
    assert explained is not None
    (step,) = explained.path["steps"]
    assert step["name"] == "quota:devices"
    assert "licet tenant allot northbank --devices 2" in step["describe"]
    assert operator.act("tenant.allot", "northbank", {"devices": 2}).require().result["devices"] == 2
    try:
        # Allowed now; and there are none.
        refused = problem(
            world.http("northbank/ana").post(
                "/v1/training/launch", json={"resource": "northbank/none", "parameters": launch(devices=2)}
            ),
            409,
            "no-devices",
        )
        assert "no worker of this installation has more than 0" in refused["detail"]
        (row,) = [row for row in operator.list("platform", "tenants") if row["tenant"] == "northbank"]
        assert row["devices"] == 2
    finally:
        operator.act("tenant.allot", "northbank", {"devices": 0}).require()


def test_a_run_waits_for_devices_in_plain_sight_and_tenants_do_not_see_the_pool(world: Installation) -> None:
    ana, operator = world.client("northbank/ana"), world.client("platform/operator")
    operator.act("tenant.allot", "northbank", {"devices": 2}).require()
    leases = DeviceLeases(world.engine, idle_s=120)
    machine = (world.settings.worker_data / "machine-id").read_text()
    try:
        pool = [{"uuid": uuid, **DEVICE} for uuid in UUIDS]
        leases.report(machine, pool)
        if shutil.which("nvidia-smi") is not None:
            # The worker, which has none, says so now and then; after that there is time. Without the tool it says nothing.
            poll("the worker to report", lambda: operator.list("platform", "devices") == [], 60)
        leases.report(machine, pool)
        other = DeviceLeases(world.engine, idle_s=120)
        operator.act("tenant.allot", "lakeside", {"devices": 2}).require()
        assert other.lease(Claim("lakeside", "f" * 32, machine, 1)) == UUIDS[:1]
        accepted = ana.act("training.launch", "northbank/waits", launch(devices=2)).require()
        assert accepted.operation is not None
        row = poll(
            "the run to wait",
            lambda: (run := ana.run.read("northbank/waits").result["run"])["state"] == "waiting" and run,
            20,
        )
        assert row["attempt"] == 1
        listed = {row["uuid"]: row["of_tenant"] for row in operator.list("platform", "devices")}
        assert listed == {UUIDS[0]: "lakeside", UUIDS[1]: None}
        assert ana.list("northbank", "devices") == []
        assert not ana.ask("catalogue.read", "platform").allowed
        # No step has begun: nothing was decrypted for it, and no warrant made.
        assert statements(world, accepted.operation.id, WARRANT) == []
        assert ana.training.cancel("northbank/waits").allowed
        ended = ana.wait(accepted.operation, timeout_s=30)
        assert ended.state == "refused"
        # With its end it gave back its place among those who wait.
        with tenant_session(world.engine, "platform") as session:
            assert session.exec(select(tables.DeviceWait)).all() == []
        assert ana.run.read("northbank/waits").result["run"]["state"] == "cancelled"
    finally:
        leases.release("f" * 32)
        leases.report(machine, [])
        for tenant in ("northbank", "lakeside"):
            operator.act("tenant.allot", tenant, {"devices": 0}).require()
