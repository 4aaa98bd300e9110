"""What was allowed is done, once, as it was decided: datasets, holds, approvals, keys, evidence."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from licet_attestations import canonical
from licet_attestations.statement import EXPORT, WARRANT
from licet_engine.client import Answer, LicetClient
from licet_engine.decide.bundle import CompiledBundle
from licet_engine.decide.record import replay
from licet_engine.worker import MAX_DEATHS

sys.path.append(str(Path(__file__).parent))
from service_world import Installation, poll, problem, table  # The line above finds it.

pytestmark = pytest.mark.slow


def deciding(answer: Answer) -> set[str]:
    return {policy.id for policy in answer.policies}


def fetched(client: LicetClient, answer: Answer, world: Installation) -> bytes:
    ended = world.done(client, answer)
    assert ended.state == "done", ended
    target = io.BytesIO()
    client.fetch_artifact(ended, target)
    return target.getvalue()


def may_write(world: Installation) -> bool:
    """Whether nobody who was stopped in the middle of a transaction keeps everybody from writing (SQLite has one writer)."""
    if world.settings.database_urls:
        return True
    with closing(sqlite3.connect(world.settings.database, timeout=0.2, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
    return True


@contextmanager
def stopped_worker(world: Installation) -> Iterator[None]:
    """While this lasts, what is accepted is not begun."""
    pid = world.supervisor.pid("worker")

    def is_still(thread: Path) -> bool:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T"

    def stopped() -> bool:
        os.kill(pid, signal.SIGSTOP)
        # A thread that is in the middle of a call to the system ends it first, and may have the lock only then.
        poll("all its threads to stand still", lambda: all(map(is_still, Path(f"/proc/{pid}/task").iterdir())))
        is_idle = may_write(world)
        if not is_idle:
            os.kill(pid, signal.SIGCONT)
        return is_idle

    poll("a moment at which the worker writes nothing", stopped)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# --- datasets -----------------------------------------------------------------------------------------------------------


def test_what_was_registered_is_read_back_byte_for_byte(world: Installation) -> None:
    # Larger than a chunk of the store, and with what only this table has.
    data = table(60_000, odd=4242)
    assert len(data) > 1 << 20
    before = world.objects("northbank")
    ana = world.client("northbank/ana")
    ended = world.register("northbank/ana", "round-trip", data)
    assert ended.state == "done"
    assert ended.result is not None
    assert (ended.result["rows"], ended.result["digest_hex"]) == (60_000, hashlib.sha256(data).hexdigest())
    (stored,) = world.objects("northbank") - before
    assert data[1000:1040] not in stored.read_bytes()
    answer = ana.act("dataset.read", "northbank/round-trip", {})
    assert fetched(ana, answer, world) == data
    # The upload is gone, and so is everything that was decrypted on the way.
    assert not list((world.settings.worker_data / "plain").glob("*"))
    left = [
        path for path in (world.settings.spool / "northbank" / "uploads").iterdir() if path.stat().st_size == len(data)
    ]
    assert left == []


def test_every_effect_had_a_warrant_that_was_logged_before_it(world: Installation) -> None:
    first = world.size("northbank")
    ended = world.register("northbank/ana", "warranted", table(30, odd=8))
    entries = [record for _, record in world.entries("northbank", first)]
    ours = [record for record in entries if record.get("operation") in ({"id": ended.id}, ended.id)]
    kinds = [record.get("predicate_type") or record.get("state") for record in ours]
    assert WARRANT in kinds
    assert kinds.index(WARRANT) < kinds.index("done")
    decided = next(r for r in entries if isinstance(r.get("operation"), dict) and r["operation"]["id"] == ended.id)
    assert (decided["action"], decided["decision"]) == ("dataset.register", "allow")


def test_an_artifact_is_for_the_one_who_asked(world: Installation) -> None:
    ana = world.client("northbank/ana")
    ended = world.done(ana, ana.act("dataset.read", "northbank/loans", {}))
    path = f"/v1/operations/northbank/{ended.id}"
    for who in ("northbank/ben", "northbank/all", "northbank/admin", "lakeside/ana"):
        with world.http(who) as http:
            problem(http.get(f"{path}/artifact"), 403, "denied")
    for who, status in (("northbank/ben", 403), ("northbank/uma", 200), ("northbank/ana", 200), ("lakeside/uma", 403)):
        with world.http(who) as http:
            assert http.get(path).status_code == status


def test_an_operation_goes_on_when_the_worker_is_told_to_end(world: Installation) -> None:
    ana = world.client("northbank/ana")
    launch = {"dataset": "northbank/loans", "environment": "us-east", "use": "credit-risk", "spec": {"epochs": 1500}}
    answer = ana.act("training.launch", "northbank/run-interrupted", launch)
    assert answer.operation is not None
    of = answer.operation
    poll("the job to report", lambda: ana.operation(of.tenant, of.id).progress, 60.0)
    worker = world.supervisor.pid("worker")
    os.kill(worker, signal.SIGTERM)
    ended = ana.wait(of, timeout_s=120)
    assert ended.state == "done", ended
    assert ended.attempt > 1
    poll("another worker", lambda: world.supervisor.pid("worker") != worker)


# --- who waits for whom -------------------------------------------------------------------------------------------------


def test_no_training_stands_before_an_export_and_no_tenant_before_another(world: Installation) -> None:
    ana, cora = world.client("lakeside/ana"), world.client("northbank/cora")
    launch = {"dataset": "lakeside/loans", "environment": "eu-east", "use": "credit-risk", "spec": {"epochs": 15_000}}
    runs = [f"lakeside/run-long-{number}" for number in range(5)]
    try:
        at_work = [ana.act("training.launch", run, launch).require().operation for run in runs]
        of = [operation for operation in at_work if operation is not None]
        states = lambda: [ana.operation(one.tenant, one.id).state for one in of]  # noqa: E731 - read anew each time.
        # As many as one tenant may have at work, and others that wait behind them.
        poll("trainings to begin", lambda: states().count("running") > 1, 60.0)
        # What is a safety valve does not wait, neither another's nor one's own; nor does another's work that is long.
        assert world.done(cora, cora.act("evidence.export", "northbank", {})).state == "done"
        own = world.client("lakeside/cora")
        assert world.done(own, own.act("evidence.export", "lakeside", {})).state == "done"
        assert world.register("northbank/ana", "not-behind-lakeside", table()).state == "done"
        assert set(states()) == {"accepted", "running"}
    finally:
        for run in runs:
            ana.act("training.cancel", run, {})
    for one in of:
        assert ana.wait(one, timeout_s=120).state in {"failed", "refused"}


def test_what_takes_the_worker_down_again_and_again_ends(world: Installation) -> None:
    ana = world.client("northbank/ana")
    with stopped_worker(world):
        answer = ana.act("dataset.read", "northbank/loans", {})
        assert answer.operation is not None
        # As the lives before left it: each began it, and none got any further.
        left = world.settings.worker_data / "lives" / f"northbank.{answer.operation.id}"
        left.write_text(str(MAX_DEATHS - 1))
    ended = world.done(ana, answer)
    assert (ended.state, (ended.error or {}).get("code")) == ("failed", "worker-died")
    # The worker tells before it forgets.
    poll("the lives to be forgotten", lambda: not left.exists())


# --- holds and deletion -------------------------------------------------------------------------------------------------


def test_a_hold_stops_what_would_destroy(world: Installation, trained: str) -> None:
    admin, cora = world.client("northbank/admin"), world.client("northbank/cora")
    cora.act("dataset.hold", "northbank/loans", {"reason": "an inquiry"}).require()
    try:
        for action, ref, body in (
            ("dataset.delete", "northbank/loans", {}),
            ("dataset.archive", "northbank/loans", {}),
            ("model.delete", trained, {}),
            ("key.destroy", "northbank", {"reason": "all of it"}),
        ):
            answer = admin.act(action, ref, body)
            assert not answer.allowed
            assert any(policy.startswith("guardrail.holds") for policy in deciding(answer)), (action, deciding(answer))
            assert answer.operation is None
    finally:
        cora.act("dataset.lift-hold", "northbank/loans", {"reason": "closed"}).require()
    ana = world.client("northbank/ana")
    assert fetched(ana, ana.act("dataset.read", "northbank/loans", {}), world) == table()


def test_what_is_deleted_is_gone_and_its_name_is_not_used_again(world: Installation) -> None:
    before = world.objects("northbank")
    assert world.register("northbank/ana", "short-lived", table(40, odd=17)).state == "done"
    assert len(world.objects("northbank") - before) == 1
    admin, ana = world.client("northbank/admin"), world.client("northbank/ana")
    assert world.done(admin, admin.act("dataset.delete", "northbank/short-lived", {})).state == "done"
    assert world.objects("northbank") == before
    with world.http("northbank/ana") as http:
        problem(http.post("/v1/dataset/read", json={"resource": "northbank/short-lived"}), 403, "denied")
        body = {"resource": "northbank/short-lived", "parameters": world.dataset_body("northbank/ana", table(40))}
        problem(http.post("/v1/dataset/register", json=body), 409, "conflict")
    states = {row["name"]: row["state"] for row in ana.list("northbank", "datasets", limit=1000)}
    assert states["short-lived"] == "deleted"


def test_a_hold_that_comes_after_the_decision_still_stops_the_deletion(world: Installation) -> None:
    assert world.register("northbank/ana", "held-late", table(40, odd=23)).state == "done"
    stored = world.objects("northbank")
    admin, cora = world.client("northbank/admin"), world.client("northbank/cora")
    with stopped_worker(world):
        accepted = admin.act("dataset.delete", "northbank/held-late", {}).require()
        cora.act("dataset.hold", "northbank/held-late", {"reason": "just in time"}).require()
    ended = world.done(admin, accepted)
    assert ended.state == "refused", ended
    assert world.objects("northbank") == stored
    refused = [r for _, r in world.entries("northbank") if r.get("action") == "dataset.delete" and r.get("v") == 1]
    again = [r for r in refused if r.get("operation", {}) and r["decision"] == "deny"]
    assert any("guardrail.holds.datasets" in r["reasons"] for r in again if "reasons" in r)


def test_a_hold_keeps_the_file_by_a_mark_until_it_is_lifted(world: Installation) -> None:
    assert world.register("northbank/ana", "marked", table(40, odd=29)).state == "done"
    cora = world.client("northbank/cora")
    holds = world.settings.worker_data / "adapters" / "local-objects" / "holds"
    told = world.done(cora, cora.act("dataset.hold", "northbank/marked", {"reason": "an inquiry"}))
    assert told.result == {"held": True, "kept_by": "adapter"}
    marks = {path.name for path in holds.rglob("*") if path.is_file()}
    told = world.done(cora, cora.act("dataset.lift-hold", "northbank/marked", {"reason": "closed"}))
    assert told.result == {"held": False, "kept_by": "adapter"}
    assert len(marks - {path.name for path in holds.rglob("*") if path.is_file()}) == 1


def test_a_hold_on_rows_that_are_gone_is_no_success(world: Installation) -> None:
    stored = world.objects("northbank")
    assert world.register("northbank/ana", "vanished", table(40, odd=37)).state == "done"
    (mine,) = world.objects("northbank") - stored
    mine.unlink()
    cora = world.client("northbank/cora")
    told = world.done(cora, cora.act("dataset.hold", "northbank/vanished", {"reason": "an inquiry"}))
    assert (told.state, (told.error or {})["code"]) == ("failed", "integrity.missing")


def test_a_hold_that_was_lifted_on_its_way_does_not_reach_the_store(world: Installation) -> None:
    """Else the store would keep for good what nobody holds any more."""
    assert world.register("northbank/ana", "soon-free", table(40, odd=31)).state == "done"
    admin, cora = world.client("northbank/admin"), world.client("northbank/cora")
    with stopped_worker(world):
        placed = cora.act("dataset.hold", "northbank/soon-free", {"reason": "an inquiry"}).require()
        lifted = cora.act("dataset.lift-hold", "northbank/soon-free", {"reason": "closed"}).require()
        again = cora.act("dataset.hold", "northbank/soon-free", {"reason": "reopened"}).require()
    # The last word was a hold: the one that lifts comes too late, and those that hold find it so.
    assert world.done(cora, lifted).state == "refused"
    assert {world.done(cora, answer).state for answer in (placed, again)} == {"done"}
    over = cora.act("dataset.lift-hold", "northbank/soon-free", {"reason": "over"})
    assert world.done(cora, over).state == "done"
    assert world.done(admin, admin.act("dataset.delete", "northbank/soon-free", {})).state == "done"


def test_a_tenant_whose_key_is_destroyed_can_read_nothing_any_more(world: Installation) -> None:
    world.people("endingbank", "us")
    world.tokens.setdefault("endingbank/admin", "")
    body = world.dataset_body("endingbank/ana", table(40), residency=["us"])
    ana, admin = world.client("endingbank/ana"), world.client("endingbank/admin")
    assert world.done(ana, ana.act("dataset.register", "endingbank/loans", body)).state == "done"
    assert fetched(ana, ana.act("dataset.read", "endingbank/loans", {}), world) == table(40)
    assert world.done(admin, admin.act("key.destroy", "endingbank", {"reason": "contract ended"})).state == "done"
    ended = world.done(ana, ana.act("dataset.read", "endingbank/loans", {}))
    assert ended.state == "failed"
    assert ended.error_code == "not-found.key"
    # And it is not made anew by writing.
    body = world.dataset_body("endingbank/ana", table(41), residency=["us"])
    assert world.done(ana, ana.act("dataset.register", "endingbank/more", body)).state == "failed"
    # Others are not touched by it.
    other = world.client("lakeside/ana")
    assert fetched(other, other.act("dataset.read", "lakeside/loans", {}), world) == table()


# --- approvals ----------------------------------------------------------------------------------------------------------


def standing(world: Installation, version: str) -> list[tuple[str, str]]:
    """The approvals that count for a version as it is now."""
    told = world.client("northbank/mei").act("model.read", version, {}).require().result["version"]
    return sorted((row["track"], row["approver"]) for row in told["approvals"] if row["current"])


def approve(world: Installation, who: str, version: str, track: str, **more: Any) -> Answer:
    """Give a verdict on the version as it stands, as one does who has looked at it."""
    client = world.client(who)
    looked_at = client.act("model.read", version, {})
    binding = looked_at.result["version"]["binding"] if looked_at.allowed else ""
    return client.act("model.approve", version, {"track": track, "binding": binding, **more})


@pytest.fixture(scope="module")
def reviewed(world: Installation, trained: str) -> str:
    """A second version, of the same run, for these tests to approve and to swap."""
    assert trained
    ci = world.client("northbank/ci")
    answer = ci.act("model.register", "northbank/reviewed", {"run": "northbank/run-1", "tier": "high"})
    assert world.done(ci, answer).state == "done"
    version: str = answer.result["version"]
    return version


def test_nobody_approves_their_own_work(world: Installation, reviewed: str) -> None:
    # The person who answers for the pipeline that made it, as a colleague would, and then as the pipeline.
    denied = approve(world, "northbank/ana", reviewed, "engineering")
    assert not denied.allowed
    assert "guardrail.separation-of-duties.author" in deciding(denied)
    denied = approve(world, "northbank/ci", reviewed, "model-risk")
    assert not denied.allowed
    assert "guardrail.separation-of-duties.services" in deciding(denied)
    # One who had no part in it may, on a track of their own alone.
    assert not approve(world, "northbank/mei", reviewed, "compliance").allowed
    assert standing(world, reviewed) == []


def architecture(world: Installation, reviewed: str) -> dict[str, Any]:
    ana = world.client("northbank/ana")
    with zipfile.ZipFile(io.BytesIO(fetched(ana, ana.act("model.download", reviewed, {}), world))) as archive:
        assert {"architecture.json", "model.safetensors", "model.sig"} == set(archive.namelist())
        told: dict[str, Any] = json.loads(archive.read("architecture.json"))
    return told


def test_an_approval_ends_when_a_file_is_swapped_even_if_it_is_put_back(world: Installation, reviewed: str) -> None:
    mei, ben = world.client("northbank/mei"), world.client("northbank/ben")
    given = approve(world, "northbank/mei", reviewed, "model-risk")
    ended = world.done(mei, given)
    assert ended.state == "done"
    assert standing(world, reviewed) == [("model-risk", "mei")]
    with world.http("northbank/mei") as http:
        body = {"resource": reviewed, "parameters": {"track": "model-risk"}}
        problem(http.post("/v1/model/approve", json=body), 409, "conflict")
    # Given again, it lasts longer; it is still one person on one track.
    renewed = mei.model.approve(reviewed, "model-risk", binding=given.result["binding"]).require().result
    assert renewed["expires_at_ms"] > given.result["expires_at_ms"]
    assert set(standing(world, reviewed)) == {("model-risk", "mei")}

    changed = architecture(world, reviewed)
    changed["threshold_micro"] = 300_000
    upload = world.upload("northbank/ben", json.dumps(changed, sort_keys=True, separators=(",", ":")).encode())
    swap = {"run": "northbank/run-1", "files": {"architecture.json": upload}}
    assert world.done(ben, ben.act("model.register", reviewed, swap)).state == "done"
    assert standing(world, reviewed) == []
    assert architecture(world, reviewed)["threshold_micro"] == 300_000
    # Who swapped a file is an author of it from now on.
    assert "guardrail.separation-of-duties.author" in deciding(approve(world, "northbank/ben", reviewed, "engineering"))

    assert world.done(ben, ben.act("model.register", reviewed, {"run": "northbank/run-1"})).state == "done"
    assert architecture(world, reviewed)["threshold_micro"] != 300_000
    assert standing(world, reviewed) == []
    # A verdict on what was looked at before is refused; on what is there now it is given.
    stale = {"track": "model-risk", "binding": given.result["binding"]}
    with world.http("northbank/mei") as http:
        problem(http.post("/v1/model/approve", json={"resource": reviewed, "parameters": stale}), 409, "conflict")
    assert world.done(mei, approve(world, "northbank/mei", reviewed, "model-risk")).state == "done"
    assert standing(world, reviewed) == [("model-risk", "mei")]


def test_a_rejection_withdraws_what_its_track_approved(world: Installation, reviewed: str) -> None:
    cora = world.client("northbank/cora")
    assert world.done(cora, approve(world, "northbank/cora", reviewed, "compliance")).state == "done"
    assert ("compliance", "cora") in standing(world, reviewed)
    rejected = approve(world, "northbank/cora", reviewed, "compliance", verdict="rejected", reason="not so fast")
    assert world.done(cora, rejected).state == "done"
    assert ("compliance", "cora") not in standing(world, reviewed)


def test_unchecked_it_is_not_promoted_and_the_answer_says_what_is_missing(world: Installation, reviewed: str) -> None:
    answer = world.client("northbank/ci").act("model.promote", reviewed, {"stage": "prod"})
    assert not answer.allowed
    assert answer.operation is None
    assert {"check:bias", "check:technical", "approval:compliance"} <= set(answer.requires)
    explained = world.client("northbank/uma").get_json("/v1/decisions", "northbank", answer.decision_id, "explain")
    steps = {step["name"] for step in explained["path"]["steps"]}
    assert {"check:bias", "check:technical", "approval:compliance"} <= steps


# --- evidence -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(world: Installation, reviewed: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An archive of northbank's evidence and, elsewhere, the trust root."""
    assert reviewed
    folder = tmp_path_factory.mktemp("evidence")
    cora = world.client("northbank/cora")
    archive = folder / "northbank.zip"
    archive.write_bytes(fetched(cora, cora.act("evidence.export", "northbank", {}), world))
    trust_root = folder / "trust-root.json"
    shutil.copyfile(world.settings.trust_root, trust_root)
    return archive, trust_root


AUDITOR = textwrap.dedent(
    """
    import sys
    from licet_attestations.__main__ import verify_command

    try:
        verify_command(sys.argv[1:])
    finally:
        strangers = {"licet_engine", "licet_adapters", "licet_policies", "cedarpy", "sqlalchemy", "litestar", "torch"}
        found = strangers & {name.partition(".")[0] for name in sys.modules}
        assert not found, found
    """
)


def audit(archive: Path, trust_root: Path) -> tuple[int, dict[str, Any]]:
    """Verify in a process that has nothing but the archive, the trust root and the attestations room."""
    done = subprocess.run(
        [sys.executable, "-c", AUDITOR, str(archive), "--trust-root", str(trust_root), "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"PATH": ""},
        timeout=120,
    )
    assert done.stdout, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, told


def test_the_evidence_verifies_offline_in_another_process(world: Installation, exported: tuple[Path, Path]) -> None:
    code, told = audit(*exported)
    assert code == 0, told
    assert told["isolation"]["answer"] == "holds"
    with zipfile.ZipFile(exported[0]) as archive:
        names = [name for name in archive.namelist() if name.startswith("leaves/")]
        size = sum(len(archive.read(name).splitlines()) for name in names)
        assert world.tokens["northbank/ana"].encode() not in b"".join(map(archive.read, archive.namelist()))
    assert size == told["end"] <= world.size("northbank")


def test_evidence_of_a_time_shows_that_nothing_of_it_is_withheld(
    world: Installation, exported: tuple[Path, Path], tmp_path: Path
) -> None:
    cora = world.client("northbank/cora")
    with zipfile.ZipFile(exported[0]) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("leaves/"))
        times = [json.loads(line)["time_ms"] for name in names for line in archive.read(name).splitlines()]
    from_ms, to_ms = times[len(times) // 3], times[len(times) * 2 // 3]
    assert times[0] < from_ms < to_ms
    path = tmp_path / "window.zip"
    asked = {"from_ms": from_ms, "to_ms": to_ms}
    path.write_bytes(fetched(cora, cora.act("evidence.export", "northbank", asked), world))
    code, told = audit(path, exported[1])
    assert code == 0, told
    assert (told["from_ms"], told["to_ms"]) == (from_ms, to_ms)
    assert told["end"] - told["first"] == sum(from_ms <= time_ms < to_ms for time_ms in times)
    assert "directory" in {step["name"] for step in told["steps"]}
    # Who exported what is in the log, with the statement that was signed.
    entries = [record for _, record in world.entries("northbank")]
    noted = [record for record in entries if record.get("event") == "evidence-exported"][-1]
    assert noted["manifest_digest"] == hashlib.sha256(zipfile.ZipFile(path).read("manifest.json")).hexdigest()
    logged = [record["digest"] for record in entries if record.get("predicate_type") == EXPORT]
    assert noted["attestation"] == logged[-1]


@pytest.mark.parametrize(
    "asked", [{"from_ms": 5, "to_ms": 4}, {"from_ms": -1}, {"to_ms": "now"}, {"from_ms": True}, {"until_ms": 1}]
)
def test_a_time_that_is_none_is_refused(world: Installation, asked: dict[str, Any]) -> None:
    with world.http("northbank/cora") as http:
        answer = http.post("/v1/evidence/export", json={"resource": "northbank", "parameters": asked})
    problem(answer, 400, "invalid-input")


def test_evidence_that_was_changed_or_is_anothers_is_refused(
    exported: tuple[Path, Path], tmp_path: Path, world: Installation
) -> None:
    archive, trust_root = exported
    data = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as zipped:
        name = next(n for n in zipped.namelist() if n.startswith("records/") and b'"deny"' in zipped.read(n))
        data[data.index(zipped.read(name)) + zipped.read(name).index(b'"deny"') + 1] ^= 1
    changed = tmp_path / "changed.zip"
    changed.write_bytes(data)
    code, told = audit(changed, trust_root)
    assert (code, told["verified"], told["where"]) == (1, False, name)
    # Against the trust root of another installation nothing of it holds.
    from licet_attestations.signer.keystore import Keystore  # noqa: PLC0415  # Only this test is a forger.

    (tmp_path / "keys").mkdir(mode=0o700)
    other = Keystore.create(
        tmp_path / "keys", instance=world_instance(trust_root), log_origin_prefix="licet/log", now_ms=1, passphrase=None
    )
    pinned = tmp_path / "other-root.json"
    pinned.write_bytes(other.trust_root.to_json())
    code, told = audit(archive, pinned)
    assert (code, told["verified"]) == (1, False)
    assert world.settings.trust_root.read_bytes() == trust_root.read_bytes()


def world_instance(trust_root: Path) -> str:
    instance: str = json.loads(trust_root.read_bytes())["instance"]
    return instance


def test_every_decision_is_the_same_again_from_its_record_alone(exported: tuple[Path, Path]) -> None:
    replayed = {"allow": 0, "deny": 0}
    with zipfile.ZipFile(exported[0]) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    lines = [(name, line) for name, body in held.items() for line in body.splitlines()]
    facts = {hashlib.sha256(line).hexdigest(): line for name, line in lines if name.startswith("facts/")}
    bundles = {
        name[8:-5]: CompiledBundle.from_bytes(body) for name, body in held.items() if name.startswith("bundles/")
    }
    for name, line in lines:
        if not name.startswith("records/"):
            continue
        record = json.loads(line)["record"]
        if "reasons" not in record:
            continue  # Not a decision.
        decision = replay(canonical.dumps(record), facts, bundles[record["bundle"]])
        assert decision.word == record["decision"]
        replayed[decision.word] += 1
    assert min(replayed.values()) > 5, replayed
