"""A bucket of a real S3 server, reached through a proxy that can misbehave, and what adapters do in it."""

from __future__ import annotations

import io
import random
import secrets
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from s3_proxy import Proxy

from licet_adapters.conformance.registry import make_model
from licet_adapters.conformance.world import TENANT, World
from licet_adapters.errors import AdapterError
from licet_adapters.objects.s3 import S3Objects
from licet_adapters.objects.s3_upload import PART_BYTES
from licet_adapters.ports import AdapterContext, ModelVersionRef, ObjectRef
from licet_adapters.registry.s3 import S3Registry
from s3_server import S3Server

LARGE = 4 * PART_BYTES + 12_345
_ACTIONS = {
    "objects.put": "dataset.register",
    "objects.get": "dataset.read",
    "objects.delete": "dataset.delete",
    "objects.hold": "dataset.hold",
}


class Place:
    """A world whose adapters reach a bucket of the server through the proxy."""

    def __init__(self, folder: Path, server: S3Server, proxy: Proxy, *, lock: bool = True) -> None:
        self.world = World(folder / "world")
        self.server = server
        self.proxy = proxy
        self.bucket = server.bucket(lock=lock)
        self.changes: dict[str, str] = {"s3_timeout_s": "3"}

    def context(self, name: str = "s3-objects") -> AdapterContext:
        options = self.server.options(self.bucket, s3_endpoint=self.proxy.endpoint) | self.changes
        return replace(self.world.context(name), options=MappingProxyType(options))

    def store(self) -> S3Objects:
        return S3Objects(self.context())

    def warrant(self, operation: str, ref: ObjectRef) -> bytes:
        return self.world.warrant(
            _ACTIONS[operation], "s3-objects", operation, resources=ref.resources(), parameters={}
        )

    def put(self, ref: ObjectRef, content: bytes, store: S3Objects | None = None) -> bool:
        source = io.BytesIO(content)
        return (store or self.store()).put(self.warrant("objects.put", ref), ref, source, {}).created

    def get(self, ref: ObjectRef, store: S3Objects | None = None) -> bytes:
        target = self.world.directory / secrets.token_hex(8)
        try:
            (store or self.store()).get(self.warrant("objects.get", ref), ref, target, {})
        except AdapterError:
            assert not target.exists()
            raise
        return target.read_bytes()

    def stored(self) -> list[str]:
        return [entry["Key"] for entry in self.server.client().list_objects_v2(Bucket=self.bucket).get("Contents", ())]

    def uploads(self) -> list[dict[str, Any]]:
        return list(self.server.client().list_multipart_uploads(Bucket=self.bucket).get("Uploads", ()))


def content_of(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311  # The same each time, in each process.


def is_get_of_object(method: str, path: str) -> bool:
    return method == "GET" and f"/{TENANT}/" in path


def is_put_of_object(method: str, path: str) -> bool:
    return method == "PUT" and f"/{TENANT}/" in path


def is_list(method: str, path: str) -> bool:
    return method == "GET" and "list-type=2" in path


def is_part(method: str, path: str) -> bool:
    return method == "PUT" and "partNumber" in path


def registry_warrant(
    place: Place, operation: str, ref: ModelVersionRef, parameters: dict[str, Any], **asked: Any
) -> bytes:
    action = {"registry.register": "model.register", "registry.promote": "model.promote"}[operation]
    return place.world.warrant(
        action, "s3-registry", operation, resources=ref.resources(), parameters=parameters, **asked
    )


def registered(place: Place) -> tuple[S3Registry, ModelVersionRef]:
    folder, ref = make_model(place.world.directory / "model")
    registry = S3Registry(place.context("s3-registry"))
    registry.register(registry_warrant(place, "registry.register", ref, {}), ref, folder, {})
    return registry, ref


def promote(place: Place, registry: S3Registry, ref: ModelVersionRef, stage: str, **asked: Any) -> str:
    parameters = {"stage": stage}
    return registry.promote(
        registry_warrant(place, "registry.promote", ref, parameters, **asked), ref, parameters
    ).stage


def documents(place: Place) -> dict[str, bytes]:
    client = place.server.client()
    found = {key: client.get_object(Bucket=place.bucket, Key=key)["Body"].read() for key in place.stored()}
    return {key: data for key, data in found.items() if not data.startswith(b"LICETOB1")}
