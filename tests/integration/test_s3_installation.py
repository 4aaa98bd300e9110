"""One whole installation whose objects and models lie on S3: from a dataset to evidence that verifies."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[1] / "fault"))
from s3_proxy import Fault, Proxy  # As above.
from service_world import Installation, free_port, poll, table  # As above.

from licet_engine.backup import backup, restore
from licet_engine.client import Answer, LicetClient
from licet_engine.commands.doctor import look_at_storage
from licet_engine.serve import Supervisor
from s3_server import S3Server  # The line above finds it.

pytestmark = pytest.mark.slow

BANK = "northbank"
DATA = table()
SECRET = "for-the-worker-alone"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    s3 = S3Server()
    try:
        s3.start()
        yield s3
    finally:
        s3.close()


@pytest.fixture(scope="module")
def bucket(server: S3Server) -> str:
    return server.bucket(lock=True)


@pytest.fixture(scope="module")
def way(server: S3Server) -> Iterator[Proxy]:
    """What the worker reaches the server through."""
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def house(server: S3Server, bucket: str, way: Proxy) -> Iterator[Installation]:
    options = server.options(bucket, "licet/", s3_endpoint=way.endpoint) | {"s3_timeout_s": 10.0}
    installation = Installation(
        adapters="s3-objects,s3-registry,local-training,local-checks,local-serving",
        objects_adapter="s3-objects",
        registry_adapter="s3-registry",
        users="off",  # The credentials file is this user's.
        **options,
    )
    try:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
            installation.start()
        installation.people(BANK, "us")
        yield installation
    finally:
        installation.stop()


def keys(server: S3Server, bucket: str) -> list[str]:
    return [entry["Key"] for entry in server.client().list_objects_v2(Bucket=bucket).get("Contents", ())]


def fetched(house: Installation, who: str, answer: Answer) -> bytes:
    client = house.client(who)
    ended = house.done(client, answer)
    assert ended.state == "done", ended
    target = io.BytesIO()
    client.fetch_artifact(ended, target)
    return target.getvalue()


def test_from_a_dataset_to_evidence_everything_lies_on_s3(
    house: Installation, server: S3Server, bucket: str, tmp_path: Path
) -> None:
    assert house.register(f"{BANK}/ana", "loans", DATA, residency=["us"]).state == "done"
    ana, ci, mei = (house.client(f"{BANK}/{name}") for name in ("ana", "ci", "mei"))
    assert fetched(house, f"{BANK}/ana", ana.act("dataset.read", f"{BANK}/loans", {})) == DATA
    # The guardrails alone speak on promotion.
    bundle = house.publish(f"{BANK}/sam", {"packs": [], "policies": ""})
    house.client(f"{BANK}/all").act("policy.activate", bundle, {}).require()
    launch = {"dataset": f"{BANK}/loans", "environment": "us-east", "use": "credit-risk", "spec": {"epochs": 20}}
    assert house.done(ci, ci.act("training.launch", f"{BANK}/run-1", launch)).state == "done"
    answer = ci.act("model.register", f"{BANK}/risk", {"run": f"{BANK}/run-1", "tier": "high"})
    assert house.done(ci, answer).state == "done"
    version = answer.result["version"]
    binding = mei.act("model.read", version, {}).require().result["version"]["binding"]
    approval = {"track": "model-risk", "binding": binding, "reason": "looked at"}
    assert house.done(mei, mei.act("model.approve", version, approval)).state == "done"
    assert house.done(ci, ci.act("model.promote", version, {"stage": "prod"})).state == "done"
    assert mei.act("model.read", version, {}).require().result["version"]["stage"] == "prod"

    stored = keys(server, bucket)
    # The dataset, what the run kept, the version's files with their signature, its manifest and its stage.
    assert len(stored) >= 6
    assert all(key.startswith(f"licet/{BANK}/") for key in stored)
    client = server.client()
    for key in stored:
        data = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        assert DATA[:200] not in data
        assert b"loans" not in data
        assert b"risk" not in data
    for adapter in ("local-objects", "local-registry"):
        assert not (house.settings.worker_data / "adapters" / adapter).exists()

    archive, trust_root = tmp_path / "evidence.zip", tmp_path / "trust-root.json"
    archive.write_bytes(fetched(house, f"{BANK}/cora", house.client(f"{BANK}/cora").act("evidence.export", BANK, {})))
    trust_root.write_bytes(house.settings.trust_root.read_bytes())
    verified = subprocess.run(
        [sys.executable, "-m", "licet_attestations", str(archive), "--trust-root", str(trust_root)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert server.secret_key not in house.output()
    assert server.access_key not in house.output()


def test_a_hold_is_a_legal_hold_in_the_bucket_until_it_is_lifted(
    house: Installation, server: S3Server, bucket: str
) -> None:
    before = set(keys(server, bucket))
    assert house.register(f"{BANK}/ana", "held", DATA, residency=["us"]).state == "done"
    (key,) = set(keys(server, bucket)) - before
    cora, client = house.client(f"{BANK}/cora"), server.client()
    told = house.done(cora, cora.act("dataset.hold", f"{BANK}/held", {"reason": "an inquiry"}))
    assert told.state == "done"
    assert told.result == {"held": True, "kept_by": "object-lock"}
    assert client.get_object_legal_hold(Bucket=bucket, Key=key)["LegalHold"]["Status"] == "ON"
    version = client.head_object(Bucket=bucket, Key=key)["VersionId"]
    with pytest.raises(client.exceptions.ClientError):
        client.delete_object(Bucket=bucket, Key=key, VersionId=version)
    lifted = house.done(cora, cora.act("dataset.lift-hold", f"{BANK}/held", {"reason": "closed"}))
    assert lifted.result == {"held": False, "kept_by": "object-lock"}
    assert client.get_object_legal_hold(Bucket=bucket, Key=key)["LegalHold"]["Status"] == "OFF"


def test_a_lift_that_arrives_after_a_newer_hold_undoes_nothing(
    house: Installation, server: S3Server, bucket: str, way: Proxy
) -> None:
    """The lift's request lies somewhere on its way while the hold is placed, done, and shown by the store."""
    before = set(keys(server, bucket))
    assert house.register(f"{BANK}/ana", "raced", DATA, residency=["us"]).state == "done"
    (key,) = set(keys(server, bucket)) - before
    cora, client = house.client(f"{BANK}/cora"), server.client()

    def kept() -> str:
        return str(client.get_object_legal_hold(Bucket=bucket, Key=key)["LegalHold"]["Status"])

    assert house.done(cora, cora.act("dataset.hold", f"{BANK}/raced", {"reason": "one"})).state == "done"
    way.faults.append(Fault(lambda method, path: method == "PUT" and "legal-hold" in path and key in path, "delay"))
    lifted = cora.act("dataset.lift-hold", f"{BANK}/raced", {"reason": "closed"}).require()
    assert way.reached.wait(30)
    assert house.done(cora, cora.act("dataset.hold", f"{BANK}/raced", {"reason": "two"})).state == "done"
    assert kept() == "ON"
    way.released.set()
    assert house.done(cora, lifted).state in {"done", "refused"}
    poll("the store told again", lambda: told_again(house))
    (accepted,) = told_again(house)
    assert cora.wait(f"{BANK}/{accepted}", timeout_s=60).state == "done"
    assert kept() == "ON"


def told_again(house: Installation) -> list[str]:
    return [record["accepted"] for _, record in house.entries(BANK) if record.get("event") == "store-told-again"]


def test_credentials_of_the_environment_reach_the_worker_alone(house: Installation) -> None:
    with_them = {
        name
        for name in ("signer", "api", "router", "worker")
        if SECRET.encode() in Path(f"/proc/{house.supervisor.pid(name)}/environ").read_bytes()
    }
    assert with_them == {"worker"}


def test_a_store_that_goes_away_ends_no_operation_and_loses_none(
    house: Installation, server: S3Server, bucket: str
) -> None:
    ana = house.client(f"{BANK}/ana")
    body = house.dataset_body(f"{BANK}/ana", DATA, residency=["us"])
    before = set(keys(server, bucket))
    bare = house.http(None)

    def degraded() -> list[str]:
        answer = bare.get("/health/ready")
        # Who decides, holds and suspends is not kept from it by a store that is away.
        assert answer.status_code == 200
        return list(answer.json()["degraded"])

    def broken() -> set[str]:
        found = [finding.detail for finding in look_at_storage(house.settings) if finding.state == "broken"]
        return {detail.partition(":")[0] for detail in found if "S3 does not answer" in detail}

    assert degraded() == []
    assert broken() == set()
    server.stop()
    try:
        answer = ana.act("dataset.register", f"{BANK}/later", body).require()
        poll("an attempt that failed", lambda: "attempt failed" in house.output())
        poll("the store told as away", lambda: degraded() == ["storage"], within_s=60)
        poll("doctor saying why", lambda: broken() == {"s3-objects", "s3-registry"})
    finally:
        server.start()
    assert house.done(ana, answer).state == "done"
    assert len(set(keys(server, bucket)) - before) == 1
    poll("the store told as there", lambda: degraded() == [], within_s=60)


def test_a_restored_installation_goes_on_with_the_same_bucket(house: Installation, tmp_path: Path) -> None:
    """Without the registry's secret it could not tell what is registered, nor where it stands."""
    if house.settings.database_urls:
        pytest.skip("licet backup is for SQLite, and refuses PostgreSQL")
    adapters = house.settings.worker_data / "adapters"
    uploads = adapters / "s3-objects" / "state" / "uploads" / BANK
    uploads.mkdir(mode=0o700, parents=True, exist_ok=True)
    (uploads / ("0" * 64 + ".json")).write_text("{}")
    backup(house.settings, tmp_path / "b")
    data = house.data.parent / "r"
    restore(tmp_path / "b", data)
    kept = {path.relative_to(data / "worker").as_posix() for path in (data / "worker").rglob("*") if path.is_file()}
    assert {
        "adapters/s3-registry/state/documents.key",
        f"adapters/s3-registry/state/documents/{BANK}/risk/1.seen",
        f"adapters/s3-registry/state/documents/{BANK}/risk/stages.seen",
    } <= kept
    assert not [name for name in kept if "/uploads/" in name]
    settings = replace(house.settings, data=data, port=free_port(), router_port=free_port())
    supervisor = Supervisor(settings, log=tmp_path / "restored.log")
    try:
        supervisor.start()
        with LicetClient(supervisor.url, house.tokens[f"{BANK}/admin"]) as admin:
            # It stands at prod, as the bucket says: the registry knows it, and moves it.
            told = house.done(admin, admin.act("model.retire", f"{BANK}/risk@1", {}))
        assert (told.state, told.result["before"]) == ("done", "prod")
        with LicetClient(supervisor.url, house.tokens[f"{BANK}/ana"]) as ana:
            ended = house.done(ana, ana.act("dataset.read", f"{BANK}/loans", {}))
            target = io.BytesIO()
            ana.fetch_artifact(ended, target)
        assert target.getvalue() == DATA
    finally:
        supervisor.stop()


def test_doctor_says_what_the_bucket_keeps(house: Installation) -> None:
    found = list(look_at_storage(house.settings))
    assert {finding.state for finding in found} == {"ok"}
    assert any("holds are kept by the store" in finding.detail for finding in found)


def test_a_lock_that_somebody_lifted_behind_our_back_is_told_by_the_doctor(
    house: Installation, server: S3Server, bucket: str
) -> None:
    before = set(keys(server, bucket))
    assert house.register(f"{BANK}/ana", "watched", DATA, residency=["us"]).state == "done"
    (key,) = set(keys(server, bucket)) - before
    cora = house.client(f"{BANK}/cora")
    assert house.done(cora, cora.act("dataset.hold", f"{BANK}/watched", {"reason": "an inquiry"})).state == "done"
    client = server.client()

    def look_again() -> None:
        # A worker looks when it starts, and then once an hour. (The next one has not the secret of the environment.)
        os.kill(house.supervisor.pid("worker"), signal.SIGKILL)

    def broken() -> list[str]:
        return [finding.detail for finding in look_at_storage(house.settings) if finding.state == "broken"]

    client.put_object_legal_hold(Bucket=bucket, Key=key, LegalHold={"Status": "OFF"})
    assert broken() == []
    look_again()
    (told,) = poll("the doctor telling", broken, within_s=60)
    assert "s3-objects: 1 of what is held lost its lock" in told
    assert key in told
    # It keeps nobody from anything.
    assert house.http(None).get("/health/ready").json()["degraded"] == []
    client.put_object_legal_hold(Bucket=bucket, Key=key, LegalHold={"Status": "ON"})
    look_again()
    poll("the doctor telling that it is there again", lambda: broken() == [], within_s=60)
    lifted = house.done(cora, cora.act("dataset.lift-hold", f"{BANK}/watched", {"reason": "closed"}))
    assert lifted.state == "done"
