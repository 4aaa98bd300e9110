"""Our own adapters pass the suites that third parties run."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from licet_adapters.conformance import (
    Case,
    ChecksConformance,
    ConformanceFailed,
    GuardConformance,
    GuardedAct,
    ObjectStoreConformance,
    RegistryConformance,
    Suite,
    TrainingConformance,
    World,
    run,
)
from licet_adapters.conformance.objects import reference
from licet_adapters.conformance.registry import make_model
from licet_adapters.conformance.world import TENANT
from licet_adapters.objects.local import LocalObjects
from licet_adapters.objects.s3 import S3Objects
from licet_adapters.registry.local import LocalRegistry
from licet_adapters.registry.s3 import S3Registry
from licet_adapters.training.checks import LocalChecks
from licet_adapters.training.local import LocalTraining

if TYPE_CHECKING:
    from licet_adapters.ports import AdapterContext, ModelRegistry, ObjectStore

sys.path.insert(0, str(Path(__file__).parents[1]))

from s3_server import S3Server  # The line above finds it.


class Bucket:
    """A bucket of a real server, and how adapters are made on it: each world has a place of its own in it."""

    def __init__(self, server: S3Server, name: str) -> None:
        self.server = server
        self.name = name

    def context(self, context: AdapterContext) -> AdapterContext:
        # One world lives in one folder; an adapter that is made anew in it finds what the one before left.
        prefix = f"{context.data_dir.parents[1].name}/"
        return replace(context, options=MappingProxyType(self.server.options(self.name, prefix)))

    def objects(self, context: AdapterContext) -> ObjectStore:
        return S3Objects(self.context(context))

    def registry(self, context: AdapterContext) -> ModelRegistry:
        return S3Registry(self.context(context))

    def keys(self, world: World) -> list[str]:
        told = self.server.client().list_objects_v2(Bucket=self.name, Prefix=f"{world.directory.name}/")
        return [entry["Key"] for entry in told.get("Contents", ())]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    server = S3Server()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="module")
def bucket(s3: S3Server) -> Bucket:
    return Bucket(s3, s3.bucket(lock=True))


@pytest.fixture(scope="module")
def bare_bucket(s3: S3Server) -> Bucket:
    """Without Object Lock, and so without versions."""
    return Bucket(s3, s3.bucket(lock=False))


def put_an_object(
    world: World,
    adapter: str = "local-objects",
    factory: Callable[[AdapterContext], ObjectStore] = LocalObjects,
    stored: Callable[[World], Any] | None = None,
) -> GuardedAct:
    store = factory(world.context(adapter))
    ref = reference(f"{TENANT}/hmda", b"rows")
    return GuardedAct(
        action="dataset.register",
        operation="objects.put",
        other_action="dataset.read",
        other_operation="objects.get",
        resources=ref.resources(),
        parameters={"rows": 1},
        act=lambda warrant: store.put(warrant, ref, io.BytesIO(b"rows"), {"rows": 1}),
        has_happened=lambda: bool((stored or local_files)(world)),
    )


def local_files(world: World) -> list[Path]:
    return list((world.context("local-objects").data_dir / "objects").rglob("*"))


def register_a_model(
    world: World,
    adapter: str = "local-registry",
    factory: Callable[[AdapterContext], ModelRegistry] = LocalRegistry,
) -> GuardedAct:
    registry = factory(world.context(adapter))
    folder = world.directory / "model"
    if not folder.exists():
        world.model = make_model(folder)  # type: ignore[attr-defined]  # The same model for each act of one world.
    _, ref = world.model  # type: ignore[attr-defined]
    return GuardedAct(
        action="model.register",
        operation="registry.register",
        other_action="model.retire",
        other_operation="registry.retire",
        resources=ref.resources(),
        parameters={"model": "credit-risk"},
        act=lambda warrant: registry.register(warrant, ref, folder, {"model": "credit-risk"}),
        has_happened=lambda: registry.manifest(TENANT, ref.version) is not None,
    )


def _cases(suite: Suite) -> list[Any]:
    return [pytest.param(case, id=str(case)) for case in suite.cases()]


@pytest.mark.parametrize("case", _cases(ObjectStoreConformance("local-objects", LocalObjects)))
def test_local_objects(case: Case) -> None:
    case.run()


@pytest.mark.parametrize("case", _cases(RegistryConformance("local-registry", LocalRegistry)))
def test_local_registry(case: Case) -> None:
    case.run()


@pytest.mark.parametrize("case", _cases(GuardConformance("local-objects", put_an_object)))
def test_local_objects_guard(case: Case) -> None:
    case.run()


@pytest.mark.parametrize("case", _cases(GuardConformance("local-registry", register_a_model)))
def test_local_registry_guard(case: Case) -> None:
    case.run()


# The suites are the same, unchanged. A case is found by its name and run on the bucket that the server has.
S3_OBJECTS = [str(case) for case in ObjectStoreConformance("s3-objects", S3Objects).cases()]
S3_REGISTRY = [str(case) for case in RegistryConformance("s3-registry", S3Registry).cases()]
S3_GUARD = [str(case) for case in GuardConformance("s3-objects", put_an_object).cases()]


def _run(suite: Suite, name: str) -> None:
    (case,) = [case for case in suite.cases() if str(case) == name]
    case.run()


@pytest.mark.parametrize("name", S3_OBJECTS)
def test_s3_objects(bucket: Bucket, name: str) -> None:
    _run(ObjectStoreConformance("s3-objects", bucket.objects), name)


@pytest.mark.parametrize("name", S3_OBJECTS)
def test_s3_objects_in_a_bucket_without_object_lock(bare_bucket: Bucket, name: str) -> None:
    _run(ObjectStoreConformance("s3-objects", bare_bucket.objects), name)


@pytest.mark.parametrize("name", S3_REGISTRY)
def test_s3_registry(bucket: Bucket, name: str) -> None:
    _run(RegistryConformance("s3-registry", bucket.registry), name)


@pytest.mark.parametrize("name", S3_GUARD)
def test_s3_objects_guard(bucket: Bucket, name: str) -> None:
    def act(world: World) -> GuardedAct:
        return put_an_object(world, "s3-objects", bucket.objects, bucket.keys)

    _run(GuardConformance("s3-objects", act), name)


@pytest.mark.parametrize("name", S3_GUARD)
def test_s3_registry_guard(bucket: Bucket, name: str) -> None:
    def act(world: World) -> GuardedAct:
        return register_a_model(world, "s3-registry", bucket.registry)

    _run(GuardConformance("s3-registry", act), name)


@pytest.mark.slow
@pytest.mark.parametrize("case", _cases(TrainingConformance("local-training", LocalTraining)))
def test_local_training(case: Case) -> None:
    case.run()


@pytest.mark.slow
@pytest.mark.parametrize("case", _cases(ChecksConformance("local-checks", LocalChecks)))
def test_local_checks(case: Case) -> None:
    case.run()


def _unguarded(context: AdapterContext) -> ObjectStore:
    class UnsafeObjects(LocalObjects):
        """Admits anything."""

        def _admit(self, *_: Any) -> None:
            pass

    return UnsafeObjects(context)


def test_a_suite_fails_an_adapter_that_admits_anything() -> None:
    def act(world: World) -> GuardedAct:
        good = put_an_object(world)
        ref = reference(f"{TENANT}/hmda", b"rows")
        store = _unguarded(world.context("local-objects"))
        return GuardedAct(
            **{
                **vars(good),
                "act": lambda warrant: store.put(warrant, ref, io.BytesIO(b"rows"), {"rows": 1}),
            }
        )

    with pytest.raises(ConformanceFailed) as failed:
        run(GuardConformance("local-objects", act))
    named = str(failed.value)
    for sentence in ("a_spent_warrant_is_refused", "another_adapter", "other_parameters"):
        assert sentence in named


@pytest.mark.parametrize("suite", [ObjectStoreConformance("local-objects", LocalObjects)], ids=["objects"])
def test_a_suite_runs_without_pytest(suite: Suite) -> None:
    assert run(suite) == len(suite.cases()) > 0


def test_a_suite_without_cases_fails() -> None:
    with pytest.raises(ConformanceFailed):
        run(Suite())
