"""An S3 server, or whoever stands before it or has its credentials, that means ill: it costs bounded time and memory, and undoes nothing."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import secrets
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from s3_place import (
    Place,
    content_of,
    documents,
    is_get_of_object,
    is_list,
    is_part,
    is_put_of_object,
    promote,
    registered,
)
from s3_proxy import Fault, Proxy

from licet_adapters import s3_bounds
from licet_adapters.conformance.objects import reference
from licet_adapters.conformance.registry import make_model
from licet_adapters.conformance.world import TENANT
from licet_adapters.errors import AdapterError, Conflict, IntegrityError, NotFound, Unavailable, WarrantRefused
from licet_adapters.objects.s3 import S3Objects
from licet_adapters.objects.s3_upload import PART_BYTES, Uploads
from licet_adapters.ports import FoundLocks, HoldOutcome, ModelVersionRef, ObjectRef
from licet_adapters.registry.s3 import S3Documents, S3Registry
from licet_adapters.s3 import FEATURES_FILE, Bucket
from licet_attestations import canonical
from licet_engine.storage import LockWatch, read_report
from s3_server import S3Server

CONTENT = b"a row of northbank\n" * 1000
REF = reference(f"{TENANT}/loans", CONTENT)

Answer = tuple[int, list[tuple[str, str]], bytes]


def warrant(place: Place, action: str, adapter: str, operation: str, ref: ObjectRef | ModelVersionRef) -> bytes:
    return place.world.warrant(action, adapter, operation, resources=ref.resources(), parameters={})


def hold(place: Place, store: S3Objects | None = None, ref: ObjectRef = REF) -> HoldOutcome:
    return (store or place.store()).hold(warrant(place, "dataset.hold", "s3-objects", "objects.hold", ref), ref, {})


def lift(place: Place, store: S3Objects | None = None, ref: ObjectRef = REF) -> HoldOutcome:
    return (store or place.store()).lift(
        warrant(place, "dataset.lift-hold", "s3-objects", "objects.lift", ref), ref, {}
    )


def notes(place: Place) -> list[Path]:
    """Of the holds that were set, by when their locks were last seen."""
    found = (place.context().data_dir / "state" / "locks").glob("*.json")
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def the_key(place: Place) -> str:
    (key,) = place.stored()
    return key


def versions_of(place: Place, key: str) -> list[str]:
    told = place.server.client().list_object_versions(Bucket=place.bucket, Prefix=key)
    return [version["VersionId"] for version in told.get("Versions", ())]


def legal_hold(place: Place, key: str, version: str) -> str:
    told = place.server.client().head_object(Bucket=place.bucket, Key=key, VersionId=version)
    return str(told.get("ObjectLockLegalHoldStatus", "OFF"))


def with_headers(**changes: str | None) -> Callable[[int, list[tuple[str, str]], bytes], Answer]:
    named = {name.replace("_", "-").lower(): value for name, value in changes.items()}

    def made(status: int, headers: list[tuple[str, str]], data: bytes) -> Answer:
        kept = [(name, value) for name, value in headers if name.lower() not in named]
        return status, kept + [(name, value) for name, value in named.items() if value is not None], data

    return made


def with_body(data: bytes, status: int = 200) -> Callable[[int, list[tuple[str, str]], bytes], Answer]:
    return lambda _status, _headers, _data: (status, [], data)


# --- holds -----------------------------------------------------------------------------------------------------------


def is_legal_hold(method: str, path: str) -> bool:
    return method == "PUT" and "legal-hold" in path


def test_no_hold_is_set_or_lifted_under_a_warrant_whose_time_is_over(place: Place) -> None:
    """The store asks for patience, and the warrant ends meanwhile: it is not told again."""
    place.put(REF, CONTENT)
    hold(place)
    store = place.store()
    place.proxy.seen.clear()

    def late(method: str, path: str) -> bool:
        if is_legal_hold(method, path):
            place.world.now_ms += 400_000
            return True
        return False

    place.proxy.faults.append(Fault(late, "status", -1, 503))
    with pytest.raises(WarrantRefused) as refused:
        lift(place, store)
    assert refused.value.reason == "expired"
    assert place.proxy.count("PUT", "legal-hold") == 1
    key = the_key(place)
    assert [legal_hold(place, key, version) for version in versions_of(place, key)] == ["ON"]


def test_a_hold_that_the_store_takes_at_the_second_try_is_set(place: Place) -> None:
    place.put(REF, CONTENT)
    place.proxy.faults.append(Fault(is_legal_hold, "status", 1, 503))
    assert hold(place) == HoldOutcome(held=True, kept_by="object-lock")


def test_a_lock_that_somebody_else_lifted_is_told_until_it_is_there_again(place: Place, tmp_path: Path) -> None:
    store = place.store()
    place.put(REF, CONTENT, store)
    report = tmp_path / "storage.unlocked"
    watch = LockWatch({"s3-objects": store, "local": object()}, report)
    hold(place, store)
    watch.look()
    assert read_report(report).faults == {}
    key = the_key(place)
    (version,) = versions_of(place, key)

    def set_by_another(status: str) -> None:
        place.server.client().put_object_legal_hold(
            Bucket=place.bucket, Key=key, VersionId=version, LegalHold={"Status": status}
        )

    set_by_another("OFF")
    # Also by a worker that was started since.
    for watching in (watch, LockWatch({"s3-objects": place.store()}, report)):
        watching.look()
        (told,) = read_report(report).faults.values()
        assert f"the legal hold on {key}, version {version} was lifted by somebody else" in told
    hold(place, store)
    watch.look()
    assert not report.exists()
    # With its object it is gone as well.
    set_by_another("OFF")
    place.server.client().delete_object(Bucket=place.bucket, Key=key, VersionId=version)
    watch.look()
    (told,) = read_report(report).faults.values()
    assert f"{key}, version {version} is gone with its object" in told


def test_a_lock_that_was_lifted_as_it_should_be_is_not_told_as_missing(place: Place, tmp_path: Path) -> None:
    store = place.store()
    place.put(REF, CONTENT, store)
    hold(place, store)
    lift(place, store)
    watch = LockWatch({"s3-objects": store}, tmp_path / "storage.unlocked")
    watch.look()
    assert not (tmp_path / "storage.unlocked").exists()
    assert store.look_for_locks(10) == FoundLocks()


def test_the_longest_unseen_locks_are_looked_for_first_and_no_more_than_asked(place: Place) -> None:
    store = place.store()
    refs = [reference(f"{TENANT}/loans-{number}", CONTENT + b"%d" % number) for number in range(3)]
    for number, ref in enumerate(refs):
        place.put(ref, CONTENT + b"%d" % number, store)
        hold(place, store, ref)
    looked_at: list[str] = []
    for _ in refs:
        place.proxy.seen.clear()
        assert store.look_for_locks(1) == FoundLocks()
        looked_at += [path for method, path in place.proxy.seen if method == "HEAD"]
    assert len(looked_at) == len(set(looked_at)) == len(refs)


def test_a_lock_or_a_note_that_cannot_be_looked_at_hides_no_other(place: Place, tmp_path: Path) -> None:
    store = place.store()
    refs = [reference(f"{TENANT}/loans-{number}", CONTENT + b"%d" % number) for number in range(3)]
    keys: list[str] = []
    for number, ref in enumerate(refs):
        place.put(ref, CONTENT + b"%d" % number, store)
        hold(place, store, ref)
        keys += set(place.stored()) - set(keys)
    denied, lifted, damaged = keys
    place.server.client().put_object_legal_hold(Bucket=place.bucket, Key=lifted, LegalHold={"Status": "OFF"})
    place.proxy.faults.append(Fault(lambda method, path: method == "HEAD" and denied in path, "status", -1, 403))
    report = tmp_path / "storage.unlocked"
    (last,) = (path for path in notes(place) if lifted in path.read_text())
    os.utime(last)
    # Of two that are looked at, what cannot be is none.
    found = store.look_for_locks(2)
    assert [len(found.missing), len(found.unseen)] == [1, 1]
    (note,) = (path for path in notes(place) if damaged in path.read_text())
    note.write_bytes(b"{")
    found = store.look_for_locks(3)
    assert [len(found.missing), len(found.unseen)] == [1, 2]
    assert LockWatch({"s3-objects": store}, report).look()
    (told,) = read_report(report).faults.values()
    assert told.startswith("1 of what is held lost its lock")
    assert lifted in told
    (told,) = read_report(report).unseen.values()
    assert told.startswith("2 of what is held cannot be looked at")
    assert f"the legal hold on {denied}" in told
    assert f"the note {note.name}: it is damaged" in told


def test_of_a_bucket_that_is_away_no_single_lock_is_told(place: Place, tmp_path: Path, caplog: Any) -> None:
    store = place.store()
    place.put(REF, CONTENT, store)
    hold(place, store)
    report = tmp_path / "storage.unlocked"
    key = the_key(place)
    place.server.client().put_object_legal_hold(Bucket=place.bucket, Key=key, LegalHold={"Status": "OFF"})
    assert LockWatch({"s3-objects": store}, report).look()
    faults = read_report(report).faults
    assert key in faults["s3-objects"]
    place.proxy.faults.append(Fault(lambda _method, _path: True, "status", -1, 403))
    # Of a worker that was started since: what was known stands, and that nothing can be seen now.
    caplog.clear()
    assert not LockWatch({"s3-objects": store}, report).look()
    assert read_report(report).faults == faults
    assert "S3 answers 403" in read_report(report).unseen["s3-objects"]
    (record,) = (record for record in caplog.records if record.message == "locks cannot be looked for")
    assert record.code == "unavailable.denied"
    assert "S3 answers 403" in record.reason
    place.proxy.faults.clear()
    hold(place, store)
    assert LockWatch({"s3-objects": store}, report).look()
    assert not report.exists()


def test_no_version_is_held_whose_name_could_not_be_noted(place: Place) -> None:
    place.put(REF, CONTENT)
    store = place.store()
    place.proxy.faults.append(Fault(is_get_of_object, "answer", -1, with_headers(x_amz_version_id="v" * 1025)))
    place.proxy.seen.clear()
    with pytest.raises(Unavailable):
        hold(place, store)
    assert place.proxy.count("PUT", "legal-hold") == 0
    assert notes(place) == []


def test_a_hold_is_never_of_a_decoy_on_top(place: Place) -> None:
    place.put(REF, CONTENT)
    key, client = the_key(place), place.server.client()
    (true,) = versions_of(place, key)
    copied = client.get_object(Bucket=place.bucket, Key=key)["Body"].read()
    for decoy in (b"decoy", copied):
        version = client.put_object(Bucket=place.bucket, Key=key, Body=decoy)["VersionId"]
        for act in (hold, lift):
            with pytest.raises(IntegrityError) as refused:
                act(place)
            assert refused.value.code == "integrity.versions"
        assert legal_hold(place, key, version) == "OFF"
        client.delete_object(Bucket=place.bucket, Key=key, VersionId=version)
    assert hold(place).held
    assert legal_hold(place, key, true) == "ON"


def test_a_hold_of_what_a_mark_of_removal_hides_is_no_hold_of_nothing(place: Place) -> None:
    place.put(REF, CONTENT)
    place.server.client().delete_object(Bucket=place.bucket, Key=the_key(place))
    with pytest.raises(IntegrityError) as refused:
        hold(place)
    assert refused.value.code == "integrity.versions"


def test_a_hold_of_other_content_and_of_nothing_is_refused(place: Place) -> None:
    with pytest.raises(NotFound):
        hold(place)
    place.put(REF, CONTENT)
    other = reference(REF.object_id, CONTENT[::-1])
    with pytest.raises(Conflict):
        hold(place, ref=other)
    key = the_key(place)
    place.server.client().put_object(Bucket=place.bucket, Key=key, Body=b"LICETOB1 and something else")
    place.server.client().delete_object(Bucket=place.bucket, Key=key, VersionId=versions_of(place, key)[-1])
    with pytest.raises(IntegrityError):
        hold(place)


def test_the_held_version_is_the_one_that_was_opened(place: Place) -> None:
    """Somebody puts another on top between the look and the lock."""
    place.put(REF, CONTENT)
    key = the_key(place)
    (true,) = versions_of(place, key)
    put: list[str] = []

    def race(method: str, path: str) -> bool:
        if is_legal_hold(method, path) and not put:
            put.append(place.server.client().put_object(Bucket=place.bucket, Key=key, Body=b"decoy")["VersionId"])
        return False

    place.proxy.faults.append(Fault(race, "status"))
    hold(place)
    assert (legal_hold(place, key, true), legal_hold(place, key, put[0])) == ("ON", "OFF")


def test_what_is_held_below_a_decoy_is_told_as_held(place: Place) -> None:
    place.put(REF, CONTENT)
    hold(place)
    place.server.client().put_object(Bucket=place.bucket, Key=the_key(place), Body=b"decoy")
    with pytest.raises(Conflict) as refused:
        place.store().delete(place.warrant("objects.delete", REF), REF, {})
    assert refused.value.code == "conflict.held"


def test_a_hold_on_a_model_keeps_its_manifest_too(place: Place) -> None:
    place.changes["s3_retention_days"] = "1"
    registry, ref = registered(place)
    registry.hold(warrant(place, "model.hold", "s3-registry", "registry.hold", ref), ref, {})
    client = place.server.client()
    (manifest,) = documents(place)
    (version,) = versions_of(place, manifest)
    for key in place.stored():
        head = client.head_object(Bucket=place.bucket, Key=key)
        assert (head["ObjectLockLegalHoldStatus"], head["ObjectLockMode"]) == ("ON", "COMPLIANCE")
    with pytest.raises(client.exceptions.ClientError):
        client.delete_object(Bucket=place.bucket, Key=manifest, VersionId=version)
    registry.lift(warrant(place, "model.lift-hold", "s3-registry", "registry.lift", ref), ref, {})
    assert {
        client.head_object(Bucket=place.bucket, Key=key)["ObjectLockLegalHoldStatus"] for key in place.stored()
    } == {"OFF"}


# --- retention -------------------------------------------------------------------------------------------------------


def set_default(place: Place, mode: str, days: int) -> None:
    rule = {"DefaultRetention": {"Mode": mode, "Days": days}}
    place.server.client().put_object_lock_configuration(
        Bucket=place.bucket, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
    )


def days_left(head: dict[str, Any]) -> float:
    return float((head["ObjectLockRetainUntilDate"] - dt.datetime.now(dt.UTC)) / dt.timedelta(days=1))


@pytest.mark.parametrize("size", [1000, PART_BYTES + 1000])
def test_retention_is_as_configured_whatever_the_bucket_would_do(place: Place, size: int) -> None:
    set_default(place, "GOVERNANCE", 1)
    place.changes["s3_retention_days"] = "30"
    content = content_of(size)
    place.put(reference(f"{TENANT}/kept", content), content)
    (key,) = [key for key in place.stored() if key.startswith(f"{TENANT}/")]
    head = place.server.client().head_object(Bucket=place.bucket, Key=key)
    assert head["ObjectLockMode"] == "COMPLIANCE"
    assert 29.9 < days_left(head) < 30.1
    told = canonical.loads((place.context().data_dir / FEATURES_FILE).read_bytes())
    assert any("1 days, GOVERNANCE" in reason for reason in told["refused"])


def test_a_shorter_retention_that_somebody_set_first_is_made_what_it_should_be(place: Place) -> None:
    place.put(REF, CONTENT)
    key, client = the_key(place), place.server.client()
    until = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    client.put_object_retention(
        Bucket=place.bucket, Key=key, Retention={"Mode": "COMPLIANCE", "RetainUntilDate": until}
    )
    place.changes["s3_retention_days"] = "30"
    assert place.put(REF, CONTENT) is False
    assert days_left(client.head_object(Bucket=place.bucket, Key=key)) > 29.9
    other = reference(f"{TENANT}/other", CONTENT)
    place.changes["s3_retention_days"] = "0"
    place.put(other, CONTENT)
    (other_key,) = set(place.stored()) - {key}
    client.put_object_retention(
        Bucket=place.bucket, Key=other_key, Retention={"Mode": "GOVERNANCE", "RetainUntilDate": until}
    )
    place.changes["s3_retention_days"] = "30"
    # Some servers let nobody without a bypass change the mode: then it is not called done.
    with_mode = client.head_object(Bucket=place.bucket, Key=other_key)["ObjectLockMode"]
    try:
        place.put(other, CONTENT)
    except Unavailable:
        assert client.head_object(Bucket=place.bucket, Key=other_key)["ObjectLockMode"] == with_mode
    else:
        assert client.head_object(Bucket=place.bucket, Key=other_key)["ObjectLockMode"] == "COMPLIANCE"


def test_a_signature_that_a_crashed_attempt_left_and_a_retention_keeps_is_taken_over(place: Place) -> None:
    set_default(place, "COMPLIANCE", 1)
    folder, ref = make_model(place.world.directory / "model")
    context = place.context("s3-registry")

    def register() -> None:
        made = place.world.warrant(
            "model.register", "s3-registry", "registry.register", resources=ref.resources(), parameters={}
        )
        S3Registry(context).register(made, ref, folder, {})

    # The third object stored is the signature; the manifest, which is stored after it, is refused.
    place.proxy.faults.append(Fault(is_put_of_object, "status", -1, 503, after=3))
    with pytest.raises(Unavailable):
        register()
    place.proxy.faults.clear()
    left = set(place.stored())
    register()
    registry = S3Registry(context)
    assert registry.manifest(TENANT, ref.version) is not None
    assert len({key for key in set(place.stored()) - left if key.startswith(f"{TENANT}/")}) == 1
    registry.read(
        warrant(place, "model.download", "s3-registry", "registry.read", ref), ref, place.world.directory / "out", {}
    )


# --- answers without sense -------------------------------------------------------------------------------------------


def get(place: Place, store: S3Objects) -> None:
    place.get(REF, store)


def delete(place: Place, store: S3Objects) -> None:
    store.delete(place.warrant("objects.delete", REF), REF, {})


def put_large(place: Place, store: S3Objects) -> None:
    content = content_of(PART_BYTES + 1000)
    place.put(reference(f"{TENANT}/large", content), content, store)


def check(_place: Place, store: S3Objects) -> None:
    store.check()


def is_head(method: str, path: str) -> bool:
    return method == "HEAD" and f"/{TENANT}/" in path


def is_versions(method: str, path: str) -> bool:
    return method == "GET" and "versions" in path


def is_read(method: str, path: str) -> bool:
    return is_get_of_object(method, path) and "versions" not in path


def is_begin(method: str, path: str) -> bool:
    return method == "POST" and "uploads" in path


RETAIN = "x_amz_object_lock_retain_until_date"


@pytest.mark.parametrize(
    ("fits", "made", "act"),
    [
        pytest.param(is_read, with_headers(content_range="bytes 0-1/\xb2"), get, id="range of odd digits"),
        pytest.param(is_read, with_headers(content_range="bytes 0-1/" + "9" * 5000), get, id="range of 5000 digits"),
        pytest.param(is_read, with_headers(content_range="bytes 0-1/" + "9" * 30), get, id="range of 30 digits"),
        pytest.param(is_read, with_headers(last_modified="yesterday"), get, id="date that is none"),
        pytest.param(is_head, with_headers(**{RETAIN: "never"}), delete, id="retained until no date"),
        pytest.param(is_head, with_headers(**{RETAIN: "2099-01-01T00:00:00"}), delete, id="retained until no zone"),
        pytest.param(is_head, with_headers(content_length="abc"), delete, id="length that is none"),
        pytest.param(is_versions, with_body(b"<<<"), delete, id="versions that are no XML"),
        pytest.param(
            is_versions,
            with_body(b"<ListVersionsResult><Version><Key>k</Key></Version></ListVersionsResult>"),
            delete,
            id="version without id",
        ),
        pytest.param(is_list, with_body(b"<html>a portal<br></html>"), check, id="listing that is a page"),
        pytest.param(
            is_begin,
            with_body(b"<InitiateMultipartUploadResult></InitiateMultipartUploadResult>"),
            put_large,
            id="no id of an upload",
        ),
        pytest.param(is_part, with_headers(etag=None), put_large, id="part without ETag"),
        pytest.param(is_part, with_headers(etag='"\xff\xfe"'), put_large, id="part with an odd ETag"),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_store_that_is_away(
    place: Place, fits: Callable[[str, str], bool], made: Callable[..., Answer], act: Callable[[Place, S3Objects], None]
) -> None:
    """It may pass: nothing has failed for good, and nothing is taken for what it is not."""
    place.put(REF, CONTENT)
    store = place.store()
    place.proxy.faults.append(Fault(fits, "answer", -1, made))
    with pytest.raises(Unavailable):
        act(place, store)
    place.proxy.faults.clear()
    act(place, store)


def test_of_an_errors_code_no_more_is_told_than_a_code_can_be(place: Place) -> None:
    place.put(REF, CONTENT)
    store = place.store()
    for code in (b"Z" * 1_000_000, b'x&#10;{"level":"info"} call 555 &#x202e;'):
        told = with_body(b"<Error><Code>" + code + b"</Code></Error>", 400)
        place.proxy.faults[:] = [Fault(is_read, "answer", -1, told)]
        with pytest.raises(Unavailable) as refused:
            place.get(REF, store)
        assert len(str(refused.value)) < 200
        assert str(refused.value).isprintable()
        assert 'level":' not in str(refused.value)


@pytest.mark.parametrize(("fits", "act"), [(is_read, get), (is_head, delete), (is_list, check)])
@pytest.mark.parametrize("kind", ["drip-head", "drip-body"])
def test_an_answer_that_never_ends_is_given_up(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    fits: Callable[[str, str], bool],
    act: Callable[[Place, S3Objects], None],
    kind: str,
) -> None:
    """Each byte comes within the time-out of a read."""
    monkeypatch.setattr(s3_bounds, "SLOWEST_BYTES_PER_S", 4 << 20)
    place.put(REF, CONTENT)
    place.changes["s3_timeout_s"] = "1"
    store = place.store()
    place.proxy.faults.append(Fault(fits, kind, -1))
    began_s = time.monotonic()
    try:
        act(place, store)
    except Unavailable:
        pass
    else:
        assert (fits, kind) == (is_head, "drip-body")  # An answer to HEAD has no body: whatever follows is not read.
    # A range has its own time for its bytes, at the slowest rate that counts as moving, and is asked for four times.
    assert time.monotonic() - began_s < 20


def test_the_same_bounds_are_kept_by_tls(tmp_path: Path, server: S3Server) -> None:
    certificate = tmp_path / "tls.pem"
    write_certificate(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    proxy = Proxy(server.port, context)
    try:
        place = Place(tmp_path, server, proxy)
        place.changes |= {"s3_ca_file": str(certificate), "s3_timeout_s": "1"}
        content = content_of(PART_BYTES + 1000)
        ref = reference(f"{TENANT}/large", content)
        assert place.put(ref, content)
        assert place.get(ref) == content
        store = place.store()
        for kind in ("drip-head", "drip-body", "flood"):
            proxy.faults[:] = [Fault(is_list, kind, -1)]
            began_s = time.monotonic()
            with pytest.raises(Unavailable):
                store.check()
            assert time.monotonic() - began_s < 15
        assert proxy.passed_bytes < 64 << 20
        proxy.faults.clear()
        store.check()
    finally:
        proxy.close()


def write_certificate(path: Path) -> None:
    """A certificate of this machine's loopback, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(
        made.public_bytes(encoding) + key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    )


def test_an_answer_without_bound_takes_no_memory(place: Place) -> None:
    store = place.store()
    place.proxy.faults.append(Fault(is_list, "flood", -1))
    with pytest.raises(Unavailable):
        store.check()
    # Two tries, each of some megabytes at most on their way.
    assert place.proxy.passed_bytes < 64 << 20


# --- the registry, others in the bucket, and what is switched on later -----------------------------------------------


def test_no_two_documents_bear_one_number(place: Place) -> None:
    """A promotion is stored and each answer lost; the document is kept aside, and put back after another change."""
    registry, ref = registered(place)
    before = set(documents(place))
    place.proxy.faults.append(Fault(is_put_of_object, "lose-answer", -1))
    with pytest.raises(Unavailable):
        promote(place, registry, ref, "prod")
    place.proxy.faults.clear()
    (key,) = set(documents(place)) - before
    kept, client = documents(place)[key], place.server.client()
    for version in versions_of(place, key):
        client.delete_object(Bucket=place.bucket, Key=key, VersionId=version)
    registry.retire(warrant(place, "model.retire", "s3-registry", "registry.retire", ref), ref, {})
    client.put_object(Bucket=place.bucket, Key=key, Body=kept)
    with pytest.raises(IntegrityError):
        registry.manifest(TENANT, ref.version)


def test_another_document_of_the_same_number_is_found(place: Place) -> None:
    """As two machines might issue it that share the secret and not the notes."""
    registry, ref = registered(place)
    promote(place, registry, ref, "staging")
    state = place.context("s3-registry").data_dir / "state"
    bucket = Bucket(place.context("s3-registry"))
    key = S3Documents(bucket, state)._key(ref.model, "stages")
    other_dir = place.world.directory / "other" / "state"
    other_dir.mkdir(parents=True)
    (other_dir / "documents.key").write_bytes((state / "documents.key").read_bytes())
    for version in versions_of(place, key):
        place.server.client().delete_object(Bucket=place.bucket, Key=key, VersionId=version)
    S3Documents(bucket, other_dir).write(ref.model, "stages", b'{"stages":{"1":"prod"},"v":1}', None)
    with pytest.raises(IntegrityError):
        registry.manifest(TENANT, ref.version)


def test_a_sweep_ends_no_uploads_of_others(place: Place) -> None:
    client = place.server.client()
    theirs = [
        "other/northbank/abc",
        "licet-2/northbank/" + "0" * 64,
        "x",
        "northbank/" + "0" * 63,
        "photos/" + "A" * 64,
    ]
    mine = [f"licet/{TENANT}/" + secrets.token_hex(32) for _ in range(3)]
    for key in (*theirs, *mine):
        client.create_multipart_upload(Bucket=place.bucket, Key=key)
    place.changes["s3_prefix"] = "licet/"
    assert Uploads(Bucket(place.context()), place.context().data_dir / "state", -5).sweep() == len(mine)
    place.changes["s3_prefix"] = ""
    assert Uploads(Bucket(place.context()), place.context().data_dir / "state", -5).sweep() == 0
    assert sorted(upload["Key"] for upload in place.uploads()) == sorted(theirs)
    place.changes["s3_prefix"] = "licet"
    with pytest.raises(AdapterError) as refused:
        place.store()
    assert refused.value.code == "adapter.options"


def test_a_sweep_looks_beyond_the_first_page(place: Place) -> None:
    client = place.server.client()
    for _ in range(5):
        client.create_multipart_upload(Bucket=place.bucket, Key=f"{TENANT}/" + secrets.token_hex(32))
    bucket = Bucket(place.context())

    def small(params: dict[str, Any], **_: Any) -> None:
        params["MaxUploads"] = 2

    bucket.client.meta.events.register("provide-client-params.s3.ListMultipartUploads", small)
    assert Uploads(bucket, place.context().data_dir / "state", -5).sweep() == 5
    assert place.uploads() == []


def test_versions_that_are_switched_on_later_are_noticed_and_removed(
    tmp_path: Path, server: S3Server, proxy: Proxy
) -> None:
    place = Place(tmp_path, server, proxy, lock=False)
    store = place.store()
    place.put(REF, CONTENT, store)
    client = server.client()
    client.put_bucket_versioning(Bucket=place.bucket, VersioningConfiguration={"Status": "Enabled"})
    key = the_key(place)
    client.put_object(Bucket=place.bucket, Key=key, Body=b"on top")
    assert store.delete(place.warrant("objects.delete", REF), REF, {})
    told = client.list_object_versions(Bucket=place.bucket, Prefix=key)
    assert not told.get("Versions")
    assert not told.get("DeleteMarkers")
    store.check()
    report = canonical.loads((place.context().data_dir / FEATURES_FILE).read_bytes())
    assert report["versioned"] is True
