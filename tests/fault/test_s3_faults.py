"""S3 that is away, full, slow, wrong or dying: real boto3 and a real server, with a misbehaving way between them."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_place import (
    LARGE,
    Place,
    content_of,
    documents,
    is_get_of_object,
    is_list,
    is_put_of_object,
    promote,
    registered,
)
from s3_proxy import Fault, Proxy

from licet_adapters.conformance.objects import reference
from licet_adapters.conformance.world import TENANT
from licet_adapters.errors import AdapterError, Conflict, IntegrityError, NotFound, Unavailable
from licet_adapters.objects.s3_upload import PART_BYTES
from licet_adapters.registry.s3 import S3Documents
from licet_adapters.s3 import FEATURES_FILE, Bucket
from s3_server import S3Server

# --- what the bucket tells -------------------------------------------------------------------------------------------


def test_neither_key_nor_bytes_tell_of_the_content(place: Place) -> None:
    content = b"a confidential row\n" * 1000
    ref = reference(f"{TENANT}/hmda", content)
    place.put(ref, content)
    (key,) = place.stored()
    assert key.startswith(f"{TENANT}/")
    assert len(key) == len(TENANT) + 1 + 64
    stored = place.server.client().get_object(Bucket=place.bucket, Key=key)
    data = stored["Body"].read()
    for secret in (b"confidential", b"hmda", ref.digest_hex.encode(), bytes.fromhex(ref.digest_hex)):
        assert secret not in data
        assert secret not in key.encode()
    assert stored["Metadata"] == {}


def test_the_registrys_bucket_names_no_model_and_no_stage(place: Place) -> None:
    registry, ref = registered(place)
    assert registry.manifest(TENANT, ref.version) is not None
    for key in place.stored():
        data = place.server.client().get_object(Bucket=place.bucket, Key=key)["Body"].read()
        for secret in (b"credit-risk", b"safetensors", b"stage", ref.digests["model.safetensors"].encode()):
            assert secret not in data
            assert secret not in key.encode()


def test_credentials_stand_in_no_log_line_and_no_error(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    store, ref = place.store(), reference(f"{TENANT}/x", b"x")
    place.proxy.faults.append(Fault(is_put_of_object, "status", -1, 403))
    with pytest.raises(Unavailable) as refused:
        place.put(ref, b"x", store)
    assert refused.value.code == "unavailable.denied"
    told = str(refused.value) + caplog.text
    assert place.server.secret_key not in told
    assert place.server.access_key not in told


def test_a_credentials_file_that_others_can_reach_is_refused_and_not_quoted(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text("[default]\naws_secret_access_key = very-secret\n")
    file.chmod(0o644)
    place.changes["s3_credentials_file"] = str(file)
    with pytest.raises(AdapterError) as refused:
        place.store()
    assert refused.value.code == "adapter.credentials"
    file.chmod(0o600)
    with pytest.raises(AdapterError) as refused:
        place.store()
    assert refused.value.code == "adapter.credentials"
    assert "very-secret" not in str(refused.value)


# --- what it can and cannot ------------------------------------------------------------------------------------------


def test_a_server_that_ignores_conditions_is_refused_before_anything_is_stored(place: Place) -> None:
    """It answers as if the condition had held."""
    place.proxy.faults.append(Fault(lambda m, p: m == "PUT" and "licet-probe" in p, "status", 1, 200, after=1))
    with pytest.raises(AdapterError) as refused:
        place.store()
    assert refused.value.code == "adapter.bucket"
    assert "If-None-Match" in str(refused.value)


def test_what_the_bucket_lacks_is_written_down_and_a_hold_says_so(
    tmp_path: Path, server: S3Server, proxy: Proxy
) -> None:
    place = Place(tmp_path, server, proxy, lock=False)
    ref = reference(f"{TENANT}/x", b"x")
    place.put(ref, b"x")
    told = json.loads((place.context().data_dir / FEATURES_FILE).read_bytes())
    assert told["object_lock"] is False
    assert any("Object Lock" in reason for reason in told["refused"])
    assert place.store().hold(place.warrant("objects.hold", ref), ref, {}).kept_by == "none"
    place.changes["s3_retention_days"] = "1"
    with pytest.raises(AdapterError) as refused:
        place.store()
    assert refused.value.code == "adapter.bucket"


def test_what_is_retained_is_removed_by_nobody(place: Place) -> None:
    place.changes["s3_retention_days"] = "1"
    ref = reference(f"{TENANT}/kept", b"kept")
    place.put(ref, b"kept")
    with pytest.raises(Conflict) as refused:
        place.store().delete(place.warrant("objects.delete", ref), ref, {})
    assert refused.value.code == "conflict.retained"
    assert place.get(ref) == b"kept"
    head = place.server.client().head_object(Bucket=place.bucket, Key=place.stored()[0])
    assert head["ObjectLockMode"] == "COMPLIANCE"


def test_a_deleted_object_leaves_no_version_behind(place: Place) -> None:
    ref = reference(f"{TENANT}/gone", b"gone")
    place.put(ref, b"gone")
    assert place.store().delete(place.warrant("objects.delete", ref), ref, {})
    told = place.server.client().list_object_versions(Bucket=place.bucket, Prefix=f"{TENANT}/")
    assert not told.get("Versions")
    assert not told.get("DeleteMarkers")


# --- away, full, slow ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"), [(503, "unavailable.storage"), (500, "unavailable.storage"), (507, "unavailable.full")]
)
def test_a_store_that_stays_away_or_full_is_unavailable_and_holds_nothing(place: Place, status: int, code: str) -> None:
    store, ref = place.store(), reference(f"{TENANT}/x", b"x")
    place.proxy.faults.append(Fault(is_put_of_object, "status", -1, status))
    with pytest.raises(Unavailable) as refused:
        place.put(ref, b"x", store)
    assert refused.value.code == code
    # 507 is no passing fault for boto3; what passes is tried again, a bounded number of times.
    assert place.proxy.count("PUT", f"/{TENANT}/") == (1 if status == 507 else 4)
    place.proxy.faults.clear()
    with pytest.raises(NotFound):
        place.get(ref, store)
    assert place.put(ref, b"x", store)


def test_a_fault_that_passes_is_not_noticed(place: Place) -> None:
    store, ref = place.store(), reference(f"{TENANT}/x", b"x")
    place.proxy.faults += [Fault(is_put_of_object, "status", 1, 503), Fault(is_put_of_object, "cut-request", 1)]
    assert place.put(ref, b"x", store)
    assert place.get(ref, store) == b"x"


def test_a_put_whose_answer_is_lost_is_done_once(place: Place) -> None:
    store, ref = place.store(), reference(f"{TENANT}/x", b"content")
    place.proxy.faults.append(Fault(is_put_of_object, "lose-answer", 1))
    place.put(ref, b"content", store)
    told = place.server.client().list_object_versions(Bucket=place.bucket, Prefix=f"{TENANT}/")
    assert len(told["Versions"]) == 1
    assert place.get(ref, store) == b"content"


def test_a_store_that_hangs_is_given_up_in_bounded_time(place: Place) -> None:
    place.changes["s3_timeout_s"] = "1"
    store, ref = place.store(), reference(f"{TENANT}/x", b"x")
    place.proxy.faults.append(Fault(is_put_of_object, "hang", -1))
    with pytest.raises(Unavailable):
        place.put(ref, b"x", store)
    assert place.proxy.count("PUT", f"/{TENANT}/") == 4


def test_a_store_that_is_not_there_at_the_start_is_used_once_it_is(tmp_path: Path) -> None:
    server = S3Server()
    proxy = Proxy(server.port)
    try:
        server.start()
        place = Place(tmp_path, server, proxy)
        server.stop()
        place.changes["s3_timeout_s"] = "1"
        store, ref = place.store(), reference(f"{TENANT}/x", b"x")
        with pytest.raises(Unavailable):
            place.put(ref, b"x", store)
        server.start()
        assert place.put(ref, b"x", store)
        server.stop()
        server.start()
        assert place.get(ref, store) == b"x"
    finally:
        proxy.close()
        server.close()


@pytest.mark.parametrize(
    ("kind", "value", "code"),
    [
        ("status", 403, "unavailable.denied"),
        ("status", 503, "unavailable.storage"),
        ("hang", None, "unavailable.storage"),
    ],
)
def test_a_check_says_why_the_bucket_cannot_be_used_and_when_it_can_again(
    place: Place, kind: str, value: Any, code: str
) -> None:
    place.changes["s3_timeout_s"] = "1"
    store = place.store()
    store.check()
    place.proxy.faults.append(Fault(is_list, kind, -1, value))
    began_s = time.monotonic()
    with pytest.raises(Unavailable) as refused:
        store.check()
    assert refused.value.code == code
    assert time.monotonic() - began_s < 10
    place.proxy.faults.clear()
    store.check()


def test_a_check_tells_that_there_is_no_such_bucket(place: Place) -> None:
    place.bucket = f"{place.bucket}-none"
    store = place.store()
    with pytest.raises(Unavailable) as refused:
        store.check()
    assert refused.value.code == "unavailable.bucket"
    place.server.client().create_bucket(Bucket=place.bucket)
    store.check()


# --- wrong bytes -----------------------------------------------------------------------------------------------------


def test_another_objects_bytes_are_refused(place: Place) -> None:
    store = place.store()
    mine, other = reference(f"{TENANT}/mine", b"mine"), reference(f"{TENANT}/other", b"also")
    place.put(mine, b"mine", store)
    (my_key,) = place.stored()
    place.put(other, b"also", store)
    (other_key,) = set(place.stored()) - {my_key}
    foreign = place.server.client().get_object(Bucket=place.bucket, Key=other_key)["Body"].read()
    place.proxy.faults.append(Fault(is_get_of_object, "swap", -1, lambda _: foreign))
    with pytest.raises(IntegrityError):
        place.get(mine, store)
    with pytest.raises(IntegrityError):
        place.put(mine, b"mine", store)


@pytest.mark.parametrize("at", [0, 20, 200, -1])
def test_a_changed_byte_is_refused_though_the_etag_is_right(place: Place, at: int) -> None:
    store, content = place.store(), content_of(900_000)
    ref = reference(f"{TENANT}/x", content)
    place.put(ref, content, store)

    def changed(data: bytes) -> bytes:
        wrong = bytearray(data)
        wrong[at] ^= 1
        return bytes(wrong)

    place.proxy.faults.append(Fault(is_get_of_object, "swap", -1, changed))
    with pytest.raises((IntegrityError, Conflict, Unavailable)):
        place.get(ref, store)


def test_an_answer_that_breaks_off_is_asked_for_again_and_then_given_up(place: Place) -> None:
    store, content = place.store(), content_of(900_000)
    ref = reference(f"{TENANT}/x", content)
    place.put(ref, content, store)
    place.proxy.faults.append(Fault(is_get_of_object, "truncate", 2, 1000))
    assert place.get(ref, store) == content
    place.proxy.faults[:] = [Fault(is_get_of_object, "truncate", -1, 1000)]
    with pytest.raises(Unavailable):
        place.get(ref, store)


def test_what_is_fetched_ahead_and_breaks_off_is_asked_for_again_and_then_given_up(place: Place) -> None:
    store, content = place.store(), content_of(LARGE)
    ref = reference(f"{TENANT}/x", content)
    place.put(ref, content, store)
    place.proxy.seen.clear()
    assert place.get(ref, store) == content
    assert place.proxy.count("GET", f"/{TENANT}/") == 5
    place.proxy.faults.append(Fault(is_get_of_object, "truncate", 2, 1000, after=1))
    assert place.get(ref, store) == content
    place.proxy.faults[:] = [Fault(is_get_of_object, "truncate", -1, 1000, after=1)]
    with pytest.raises(Unavailable):
        place.get(ref, store)


def test_of_a_range_no_more_is_fetched_than_where_it_lies(place: Place) -> None:
    store, content = place.store(), content_of(LARGE)
    ref = reference(f"{TENANT}/x", content)
    place.put(ref, content, store)
    place.proxy.seen.clear()
    start = 3 * PART_BYTES + 7
    told = store.read_range(place.warrant("objects.get", ref), ref, start, 1000, {})
    assert told == content[start : start + 1000]
    assert place.proxy.count("GET", f"/{TENANT}/") == 2


def test_an_object_overwritten_behind_our_back_is_refused(place: Place) -> None:
    store, ref = place.store(), reference(f"{TENANT}/x", b"content")
    place.put(ref, b"content", store)
    place.server.client().put_object(Bucket=place.bucket, Key=place.stored()[0], Body=b"LICETOB1 and something else")
    with pytest.raises(IntegrityError):
        place.get(ref, store)


# --- the registry ----------------------------------------------------------------------------------------------------


def test_a_stage_written_by_two_at_once_is_lost_by_neither(place: Place) -> None:
    """Two machines: each has its own lock, so the condition of the write alone keeps them apart."""
    registry, ref = registered(place)
    promote(place, registry, ref, "staging")
    other_context = replace(
        place.context("s3-registry"),
        data_dir=place.world.directory / "other-machine",
        options=MappingProxyType(place.server.options(place.bucket)),
    )
    secret = Path("state") / "documents.key"
    (other_context.data_dir / "state").mkdir(parents=True)
    shutil.copy(place.context("s3-registry").data_dir / secret, other_context.data_dir / secret)
    other = S3Documents(Bucket(other_context), other_context.data_dir / "state")
    standing = other.read(ref.model, "stages")
    assert standing is not None
    raced = threading.Event()

    def race(method: str, path: str) -> bool:
        # Between what the registry read and its write, the other machine writes.
        if is_put_of_object(method, path) and not raced.is_set():
            raced.set()
            other.write(ref.model, "stages", b'{"stages":{"1":"none","7":"staging"},"v":1}', standing)
        return False

    place.proxy.faults.append(Fault(race, "status"))
    with pytest.raises(Conflict) as refused:
        promote(place, registry, ref, "prod", operation_id="op-1")
    # An operation that meets it is tried again by the worker, which takes this code for what may pass.
    assert refused.value.code == "conflict.busy"
    promote(place, registry, ref, "prod", operation_id="op-1", attempt=2)
    last = other.read(ref.model, "stages")
    assert last is not None
    assert json.loads(last.data)["stages"] == {"1": "prod", "7": "staging"}
    manifest = registry.manifest(TENANT, ref.version)
    assert manifest is not None
    assert manifest.stage == "prod"


def test_a_stage_whose_answer_is_lost_is_moved_once(place: Place) -> None:
    registry, ref = registered(place)
    place.proxy.faults.append(Fault(is_put_of_object, "lose-answer", 1))
    assert promote(place, registry, ref, "prod") == "prod"
    manifest = registry.manifest(TENANT, ref.version)
    assert manifest is not None
    assert manifest.stage == "prod"


def test_an_older_stage_put_back_and_a_manifest_taken_away_are_found(place: Place) -> None:
    registry, ref = registered(place)
    promote(place, registry, ref, "staging")
    older = documents(place)
    promote(place, registry, ref, "prod")
    (key,) = [key for key, data in documents(place).items() if older.get(key) != data]
    client = place.server.client()
    newest = documents(place)[key]
    client.put_object(Bucket=place.bucket, Key=key, Body=older[key])
    with pytest.raises(IntegrityError):
        registry.manifest(TENANT, ref.version)
    client.put_object(Bucket=place.bucket, Key=key, Body=newest)
    (manifest,) = documents(place).keys() - {key}
    kept = documents(place)[manifest]
    for wrong in (kept[:-1] + bytes([kept[-1] ^ 1]), b"", newest):
        client.put_object(Bucket=place.bucket, Key=manifest, Body=wrong)
        with pytest.raises(IntegrityError):
            registry.manifest(TENANT, ref.version)
    client.delete_object(Bucket=place.bucket, Key=manifest)
    with pytest.raises(IntegrityError):
        registry.manifest(TENANT, ref.version)


# --- whatever was stored comes back ----------------------------------------------------------------------------------


def test_whatever_was_stored_comes_back_and_nothing_else_does(place: Place) -> None:
    store = place.store()

    @settings(max_examples=12, deadline=None)
    @given(st.integers(0, 3), st.integers(0, 70_000), st.integers(0, 1 << 30))
    def check(chunks: int, rest: int, seed: int) -> None:
        content = content_of(chunks * 262_144 + rest, seed)
        ref = reference(f"{TENANT}/p-{hashlib.sha256(content).hexdigest()[:20]}", content)
        place.put(ref, content, store)
        assert place.get(ref, store) == content
        start = seed % (len(content) + 1)
        warrant = place.warrant("objects.get", ref)
        assert store.read_range(warrant, ref, start, 1000, {}) == content[start : start + 1000]
        with pytest.raises((Conflict, NotFound)):
            place.get(replace(ref, digest_hex="0" * 64), store)

    check()
