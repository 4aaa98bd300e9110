"""Our own adapters pass the suites that third parties run."""

from __future__ import annotations

import io
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
from licet_adapters.registry.local import LocalRegistry
from licet_adapters.training.checks import LocalChecks
from licet_adapters.training.local import LocalTraining

if TYPE_CHECKING:
    from licet_adapters.ports import AdapterContext, ObjectStore


def put_an_object(world: World) -> GuardedAct:
    store = LocalObjects(world.context("local-objects"))
    ref = reference(f"{TENANT}/hmda", b"rows")
    return GuardedAct(
        action="dataset.register",
        operation="objects.put",
        other_action="dataset.read",
        other_operation="objects.get",
        resources=ref.resources(),
        parameters={"rows": 1},
        act=lambda warrant: store.put(warrant, ref, io.BytesIO(b"rows"), {"rows": 1}),
        has_happened=lambda: any((world.context("local-objects").data_dir / "objects").rglob("*")),
    )


def register_a_model(world: World) -> GuardedAct:
    registry = LocalRegistry(world.context("local-registry"))
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
