"""Large objects go to S3 in parts, and go on where they were: whoever was away, killed, or at it as well."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from s3_place import LARGE, Place, content_of, is_part
from s3_proxy import Fault

from licet_adapters.conformance.objects import reference
from licet_adapters.conformance.world import TENANT
from licet_adapters.errors import AdapterError, Conflict, Unavailable
from licet_adapters.objects.s3_upload import PART_BYTES, Uploads
from licet_adapters.s3 import Bucket


def test_a_large_object_comes_back_and_leaves_no_upload(place: Place) -> None:
    store, content = place.store(), content_of(LARGE)
    ref = reference(f"{TENANT}/large", content)
    assert place.put(ref, content, store)
    assert place.proxy.count("PUT", "partNumber") == 5
    assert place.get(ref, store) == content
    assert place.put(ref, content, store) is False
    assert place.uploads() == []


def test_a_store_that_goes_away_in_mid_upload_goes_on_where_it_was(place: Place) -> None:
    store, content = place.store(), content_of(LARGE)
    ref = reference(f"{TENANT}/large", content)
    place.proxy.faults.append(Fault(is_part, "status", -1, 503, after=2))
    with pytest.raises(Unavailable):
        place.put(ref, content, store)
    assert place.stored() == []
    assert len(place.uploads()) == 1
    place.proxy.faults.clear()
    place.proxy.seen.clear()
    assert place.put(ref, content)
    assert place.proxy.count("PUT", "partNumber") == 3
    assert place.proxy.count("POST", "uploads") == 0
    assert place.get(ref) == content
    assert place.uploads() == []


KILLED = """
import sys
from pathlib import Path
sys.path[:0] = [{fault!r}, {tests!r}]
import s3_place as t
from dataclasses import replace
from types import MappingProxyType
import io, json
from licet_adapters.conformance.objects import reference
from licet_adapters.objects.s3 import S3Objects
from licet_adapters.ports import AdapterContext
from licet_attestations.signer.keystore import Keystore
from licet_attestations.signer.rules import SignerRules
from licet_attestations.signer.state import CheckpointState, FileStorage
told = json.loads(sys.stdin.read())
keystore = Keystore.open(Path(told["signer"]))
signer = SignerRules(keystore, CheckpointState(FileStorage(Path(told["signer"]) / "state")), lambda: told["now_ms"])
context = AdapterContext(
    data_dir=Path(told["data_dir"]),
    trust_root=keystore.trust_root,
    signer=signer,
    clock=lambda: told["now_ms"],
    options=MappingProxyType(told["options"]),
)
content = t.content_of(t.LARGE)
S3Objects(context).put(told["warrant"].encode(), reference(t.TENANT + "/large", content), io.BytesIO(content), {{}})
"""


def test_a_killed_workers_upload_goes_on_in_the_next_attempt(place: Place) -> None:
    place.changes["s3_timeout_s"] = "30"
    content = content_of(LARGE)
    ref = reference(f"{TENANT}/large", content)
    told = {
        "signer": str(place.world.directory / "signer"),
        "data_dir": str(place.context().data_dir),
        "now_ms": place.world.now_ms,
        "options": dict(place.context().options),
        "warrant": place.warrant("objects.put", ref).decode(),
    }
    place.proxy.faults.append(Fault(is_part, "hang", -1, after=3))
    code = KILLED.format(fault=str(Path(__file__).parent), tests=str(Path(__file__).parents[1]))
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as worker:
        assert worker.stdin is not None
        worker.stdin.write(json.dumps(told).encode())
        worker.stdin.close()
        assert place.proxy.reached.wait(60)
        # The first parts may still be on their way when the next one hangs.
        for _ in range(200):
            parts = stored_parts(place)
            if parts >= 3:
                break
            threading.Event().wait(0.05)
        threading.Event().wait(0.5)
        worker.kill()
    place.proxy.released.set()
    assert worker.returncode == -9
    assert place.stored() == []
    place.proxy.faults.clear()
    place.proxy.seen.clear()
    assert place.put(ref, content)
    assert place.proxy.count("POST", "uploads") == 0
    assert place.proxy.count("PUT", "partNumber") < 5
    assert place.get(ref) == content
    assert place.uploads() == []


def stored_parts(place: Place) -> int:
    uploads = place.uploads()
    if not uploads:
        return 0
    upload = uploads[0]
    told = place.server.client().list_parts(Bucket=place.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    return len(told.get("Parts", ()))


def test_a_resumed_upload_never_sends_other_bytes_under_the_key_it_began_with(place: Place) -> None:
    """The source is not what it was: its wrong beginning is under way already, and the right one is sealed anew."""
    store, content = place.store(), content_of(LARGE)
    ref = reference(f"{TENANT}/large", content)

    class Wrong(io.BytesIO):
        """Begins otherwise, and then the disk under it fails."""

        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 2 * PART_BYTES:
                raise OSError(5, "Input/output error")
            return super().read(size)

    with pytest.raises(Unavailable):
        store.put(place.warrant("objects.put", ref), ref, Wrong(b"\0" * 100 + content[100:]), {})
    (begun,) = place.uploads()
    place.proxy.faults.clear()
    place.proxy.seen.clear()
    with pytest.raises(Unavailable):
        place.put(ref, content, store)
    assert place.proxy.count("PUT", "partNumber") == 0
    assert place.uploads() == []
    assert place.put(ref, content, store)
    assert begun["UploadId"] not in str(place.proxy.seen[-1])
    assert place.get(ref, store) == content


def test_content_that_proves_wrong_at_the_end_ends_its_upload(place: Place) -> None:
    store, content = place.store(), content_of(LARGE)
    ref = reference(f"{TENANT}/large", content)
    with pytest.raises(AdapterError) as refused:
        place.put(ref, content[:-1] + b"\0", store)
    assert refused.value.code == "input.digest"
    assert place.uploads() == []
    assert place.stored() == []


def test_a_completion_whose_answer_is_lost_is_found_done(place: Place) -> None:
    store, content = place.store(), content_of(LARGE)
    ref = reference(f"{TENANT}/large", content)
    place.proxy.faults.append(Fault(lambda m, p: m == "POST" and "uploadId" in p, "lose-answer", 1))
    place.put(ref, content, store)
    told = place.server.client().list_object_versions(Bucket=place.bucket, Prefix=f"{TENANT}/")
    assert len(told["Versions"]) == 1
    assert place.get(ref, store) == content
    assert place.uploads() == []


def test_an_upload_that_was_swept_begins_anew(place: Place) -> None:
    store, content = place.store(), content_of(LARGE)
    ref = reference(f"{TENANT}/large", content)
    place.proxy.faults.append(Fault(is_part, "status", -1, 503, after=2))
    with pytest.raises(Unavailable):
        place.put(ref, content, store)
    place.proxy.faults.clear()
    assert Uploads(Bucket(place.context()), place.context().data_dir / "state", 3600).sweep() == 0
    assert len(place.uploads()) == 1
    assert Uploads(Bucket(place.context()), place.context().data_dir / "state", -5).sweep() == 1
    assert place.uploads() == []
    with pytest.raises(Unavailable):
        place.put(ref, content, store)
    assert place.put(ref, content, store)
    assert place.get(ref, store) == content


def test_two_attempts_at_one_object_do_not_mix(place: Place) -> None:
    store, content = place.store(), content_of(LARGE)
    ref = reference(f"{TENANT}/large", content)
    place.proxy.faults.append(Fault(is_part, "hang", 1))
    place.changes["s3_timeout_s"] = "30"
    slow = threading.Thread(target=lambda: place.put(ref, content), daemon=True)
    slow.start()
    assert place.proxy.reached.wait(30)
    with pytest.raises(Conflict) as refused:
        place.put(ref, content, store)
    assert refused.value.code == "conflict.busy"
    place.proxy.released.set()
    slow.join(60)
    assert place.get(ref, store) == content
