"""Throughput of the S3 store against plain boto3, on a real S3 server of this machine.

The store seals, authenticates, writes down what it sends and verifies what it reads; boto3's own transfer does none of it, and
sends and reads parts side by side. Both sides move the same bytes over the same server, turn by turn.
"""

from __future__ import annotations

import hashlib
import io
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from licet_adapters.conformance.world import TENANT, World
from licet_adapters.objects.s3 import S3Objects
from licet_adapters.ports import ObjectRef

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from s3_server import S3Server  # The line above finds it.

SIZES = (64 << 10, 4 << 20, 64 << 20)
ROUNDS = {64 << 10: 20, 4 << 20: 10, 64 << 20: 3}


class Sides:
    """The store and plain boto3 on one bucket."""

    def __init__(self, server: S3Server, folder: Path) -> None:
        self.bucket = server.bucket(lock=False)
        self.world = World(folder / "world")
        self.folder = folder
        self.client = server.client()
        context = replace(self.world.context("s3-objects"), options=MappingProxyType(server.options(self.bucket)))
        self.store = S3Objects(context)

    def warrant(self, action: str, operation: str, ref: ObjectRef) -> bytes:
        """Made beforehand: the decision is measured elsewhere."""
        return self.world.warrant(action, "s3-objects", operation, resources=ref.resources(), parameters={})

    def stored(self, name: str, content: bytes) -> tuple[float, float]:
        """Seconds of put and get through the store."""
        digest_hex = hashlib.sha256(content).hexdigest()
        ref = ObjectRef(tenant=TENANT, object_id=f"{TENANT}/{name}", digest_hex=digest_hex, size_bytes=len(content))
        put = self.warrant("dataset.register", "objects.put", ref)
        get = self.warrant("dataset.read", "objects.get", ref)
        target = self.folder / f"{name}.store"
        began_s = time.perf_counter()
        self.store.put(put, ref, io.BytesIO(content), {})
        put_s, began_s = time.perf_counter() - began_s, time.perf_counter()
        self.store.get(get, ref, target, {})
        get_s = time.perf_counter() - began_s
        assert target.read_bytes() == content
        target.unlink()
        return put_s, get_s

    def plain(self, name: str, content: bytes) -> tuple[float, float]:
        """Seconds of upload and download by boto3 alone."""
        target = self.folder / f"{name}.plain"
        began_s = time.perf_counter()
        self.client.upload_fileobj(io.BytesIO(content), self.bucket, f"plain/{name}")
        put_s, began_s = time.perf_counter() - began_s, time.perf_counter()
        self.client.download_file(self.bucket, f"plain/{name}", str(target))
        get_s = time.perf_counter() - began_s
        assert target.read_bytes() == content
        target.unlink()
        return put_s, get_s


def main() -> None:
    """Measure and print."""
    server = S3Server()
    told: dict[str, Any] = {}
    try:
        server.start()
        with tempfile.TemporaryDirectory(prefix="licet-bench-") as folder:
            sides = Sides(server, Path(folder))
            sides.stored("warm", b"x")
            sides.plain("warm", b"x")
            for size in SIZES:
                pairs = []
                for turn in range(ROUNDS[size]):
                    content = hashlib.shake_128(f"{size}-{turn}".encode()).digest(size)
                    pairs.append((sides.stored(f"o-{size}-{turn}", content), sides.plain(f"o-{size}-{turn}", content)))
                for at, what in enumerate(("put", "get")):
                    store_s = statistics.median(pair[0][at] for pair in pairs)
                    plain_s = statistics.median(pair[1][at] for pair in pairs)
                    print(
                        f"{size >> 10:>6} KiB {what}: store {size / store_s / 2**20:7.1f} MiB/s ({store_s * 1e3:.0f} ms), "
                        f"boto3 {size / plain_s / 2**20:7.1f} MiB/s ({plain_s * 1e3:.0f} ms), ratio {plain_s / store_s:.2f}"
                    )
                    told[f"{what}_{size >> 10}_kib_store_over_boto3"] = round(plain_s / store_s, 3)
    finally:
        server.close()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
