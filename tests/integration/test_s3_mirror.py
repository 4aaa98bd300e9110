"""A mirror in a real bucket: it grows, is what a folder would hold, and is not gone on with when touched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from licet_adapters.errors import AdapterError
from licet_adapters.s3_mirror import S3Place
from licet_attestations import merkle
from licet_attestations.checkpoint import Checkpoint, sign_checkpoint
from licet_attestations.errors import VerificationError
from licet_attestations.keys import ED25519, PrivateKey
from licet_attestations.leaf import Leaf
from licet_attestations.mirror import FolderPlace, update, verify_mirror
from licet_attestations.tiles import Tile, write_entries
from licet_attestations.trustroot import TrustedKey, TrustRoot
from s3_server import REGION, S3Server

pytestmark = pytest.mark.slow

TENANT = "acme"
KEY = PrivateKey.generate(ED25519)
TRUST = TrustRoot("i", (TrustedKey(KEY.public, "log", 0),), "licet.example/log")
LEAVES = [Leaf("decision", number, TENANT, TENANT, "a" * 64).to_bytes() for number in range(600)]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    s3 = S3Server()
    try:
        s3.start()
        yield s3
    finally:
        s3.close()


def _serve(size: int) -> dict[str, bytes]:
    root = merkle.root(map(merkle.leaf_hash, LEAVES[:size]))
    served = {"checkpoint": sign_checkpoint(Checkpoint(TRUST.origin(TENANT), size, root), KEY).encode()}
    for first in range(0, size, 256):
        entries = LEAVES[first : min(first + 256, size)]
        served[Tile(-1, first // 256, len(entries)).path()] = write_entries(entries)
    return served


def test_a_mirror_in_a_bucket_is_that_of_a_folder(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    bucket = server.bucket(lock=False)
    place, folder = S3Place(bucket, "logs/acme/", server.endpoint, "path"), FolderPlace(tmp_path)
    for size in (3, 200, 300, 300, 600):
        for mirror in (place, folder):
            assert update(mirror, _serve(size).__getitem__, TRUST, TENANT).checkpoint.size == size
    assert verify_mirror(place, TRUST, TENANT).checkpoint.size == 600
    listed = server.client().list_objects_v2(Bucket=bucket, Prefix="logs/acme/")["Contents"]
    kept = {entry["Key"].removeprefix("logs/acme/") for entry in listed}
    assert kept == {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    told = server.client().head_object(Bucket=bucket, Key="logs/acme/checkpoint")
    assert (told["ContentType"], told["CacheControl"]) == ("text/plain; charset=utf-8", "no-cache")
    with pytest.raises(VerificationError, match="put back"):
        update(place, _serve(300).__getitem__, TRUST, TENANT)
    server.client().put_object(Bucket=bucket, Key="logs/acme/tile/0/002.p/88", Body=bytes(88 * 32))
    with pytest.raises(VerificationError) as found:
        verify_mirror(place, TRUST, TENANT)
    assert found.value.where == "tile/0/002.p/88"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    stranger = S3Place(bucket, "logs/acme/", server.endpoint, "path")
    for act in (lambda: stranger.write("checkpoint", b"x"), lambda: stranger.read("checkpoint", 10)):
        with pytest.raises(AdapterError):
            act()
