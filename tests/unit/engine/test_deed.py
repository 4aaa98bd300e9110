"""What an operation does, it does under a warrant; and what stands is not told as refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from licet_adapters.conformance.registry import make_model
from licet_adapters.conformance.world import TENANT, World
from licet_adapters.ports import ModelVersionRef
from licet_adapters.registry.local import LocalRegistry
from licet_attestations.rpc import RpcFault
from licet_engine.lifecycle.deed import Deed
from licet_engine.lifecycle.promotion import do_retire


class Refusing:
    """The api's door, of an operation that was decided again and denied, or cancelled."""

    def __init__(self, code: str) -> None:
        self._code = code

    def call(self, method: str, **_: Any) -> Any:
        assert method == "license"
        raise RpcFault(self._code, "it was decided again and denied")


def deed(registry: LocalRegistry, ref: ModelVersionRef, code: str = "refused") -> Deed:
    begun = {
        "action": "model.retire",
        "parameters": {
            "version": ref.version,
            "files": {name: {"digest_hex": digest_hex} for name, digest_hex in ref.digests.items()},
        },
        "principal": "ana",
        "decision": "d",
        "attempt": 2,
        "created_at_ms": 1,
    }
    tools = SimpleNamespace(
        adapters=SimpleNamespace(registry=registry, registry_name="local-registry"), door=Refusing(code)
    )
    return Deed(cast("Any", tools), TENANT, "op-1", begun, lambda _, act: act(), went_on=lambda: None)


@pytest.fixture
def registered(tmp_path: Path) -> tuple[World, LocalRegistry, ModelVersionRef]:
    world = World(tmp_path / "world")
    folder, ref = make_model(world.directory / "model")
    registry = LocalRegistry(world.context("local-registry"))
    envelope = world.warrant(
        "model.register", "local-registry", "registry.register", resources=ref.resources(), parameters={}
    )
    registry.register(envelope, ref, folder, {})
    return world, registry, ref


def test_a_stage_that_an_attempt_moved_is_done_though_no_warrant_is_given_any_more(
    registered: tuple[World, LocalRegistry, ModelVersionRef],
) -> None:
    world, registry, ref = registered
    with pytest.raises(RpcFault, match="denied"):
        do_retire(deed(registry, ref))
    envelope = world.warrant(
        "model.retire",
        "local-registry",
        "registry.retire",
        resources=ref.resources(),
        parameters={},
        operation_id="op-1",
        step="retire",
    )
    registry.retire(envelope, ref, {})
    assert do_retire(deed(registry, ref)) == {"stage": "retired", "before": "none", "replaced": ""}
    # Only a refusal is overruled by what stands; whatever else is wrong may pass, and is tried again.
    with pytest.raises(RpcFault):
        do_retire(deed(registry, ref, code="unavailable"))


def test_a_deployment_that_stands_is_done_though_not_even_its_model_may_be_read_any_more(
    registered: tuple[World, LocalRegistry, ModelVersionRef],
) -> None:
    _, registry, ref = registered
    standing: dict[str, Any] = {"weights": {"1": 100}}
    refused = deed(registry, ref)

    def read() -> dict[str, Any]:
        return refused.effect(
            "read", lambda *_: {}, adapter="local-registry", operation="registry.read", resources=ref.resources()
        )

    assert refused.unless_it_stands(read, lambda: standing) == standing
    with pytest.raises(RpcFault, match="denied"):
        refused.unless_it_stands(read, lambda: None)
    away = deed(registry, ref, code="unavailable")
    with pytest.raises(RpcFault):
        away.unless_it_stands(
            lambda: away.effect("read", lambda *_: {}, adapter="a", operation="o", resources={}), lambda: standing
        )
