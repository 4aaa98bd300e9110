"""What a model registry must keep; see ``ModelRegistry``."""

from __future__ import annotations

import hashlib
import json
import pickle
import secrets
from typing import TYPE_CHECKING, Any

from licet_adapters.conformance.suite import Suite, expect, refused
from licet_adapters.conformance.world import TENANT, World
from licet_adapters.modelfiles import ARCHITECTURE_FILE, WEIGHTS_FILE
from licet_adapters.ports import (
    MODEL_FILES,
    SIGNATURE_FILE,
    AdapterContext,
    ModelRegistry,
    ModelVersionRef,
    RegisteredVersion,
    StageOutcome,
)
from licet_attestations import canonical, oms

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_ACTIONS = {
    "registry.register": "model.register",
    "registry.read": "model.download",
    "registry.promote": "model.promote",
    "registry.retire": "model.retire",
    "registry.delete": "model.delete",
    "registry.hold": "model.hold",
    "registry.lift": "model.lift-hold",
}
_VERSION = f"{TENANT}/credit-risk@1"


class RegistryConformance(Suite):
    """A version is what was decided, keeps its content, and moves as it was told.

    Args:
        adapter: Instance name.
        factory: Makes the registry; may be called again on the same context, as after a restart.
    """

    def __init__(self, adapter: str, factory: Callable[[AdapterContext], ModelRegistry]) -> None:
        self._adapter = adapter
        self._factory = factory

    def case_a_registered_version_reads_back_signed(self, world: World) -> None:
        """The very bytes, and a signature that verifies under the pinned key, naming the version."""
        folder, ref = make_model(world.directory / "made")
        registered = self._register(world, ref, folder)
        expect(registered.stage, "none", "stage of a new version")
        target = world.directory / "read"
        self._do(world, "registry.read", ref).read(self._last, ref, target, {})
        for name in MODEL_FILES:
            expect((target / name).read_bytes(), (folder / name).read_bytes(), name)
        bundle = (target / SIGNATURE_FILE).read_bytes()
        signature = oms.verify_model(bundle, ref.digests, world.keystore.trust_root.keys("model"))
        expect(signature.name, ref.version, "the signed name")

    def case_the_manifest_is_public_and_of_its_tenant(self, world: World) -> None:
        """Digests and stage; nothing where there is nothing."""
        folder, ref = make_model(world.directory / "made")
        registry = self._factory(world.context(self._adapter))
        expect(registry.manifest(TENANT, ref.version), None, "manifest before")
        registered = self._register(world, ref, folder)
        expect(registry.manifest(TENANT, ref.version), registered, "manifest after")
        with refused("input"):
            registry.manifest("lakeside", ref.version)

    def case_a_retry_of_a_registration_repeats_nothing(self, world: World) -> None:
        """Same operation and step, new attempt and warrant, the folder gone: the first outcome."""
        folder, ref = make_model(world.directory / "made")
        first = self._register(world, ref, folder, operation_id="op-1")
        world.now_ms += 1_000
        again = self._register(world, ref, world.directory / "nowhere", operation_id="op-1", attempt=2)
        expect(again, first, "outcome of the retry")

    def case_a_version_keeps_its_content(self, world: World) -> None:
        """Other content under its number is a conflict."""
        folder, ref = make_model(world.directory / "made")
        other_folder, other = make_model(world.directory / "other")
        first = self._register(world, ref, folder)
        with refused("conflict"):
            self._register(world, other, other_folder)
        expect(self._factory(world.context(self._adapter)).manifest(TENANT, ref.version), first, "manifest")

    def case_content_is_replaced_only_as_decided_and_only_before_promotion(self, world: World) -> None:
        """The decision names what is replaced."""
        folder, ref = make_model(world.directory / "made")
        other_folder, other = make_model(world.directory / "other")
        self._register(world, ref, folder)
        with refused("conflict"):
            self._register(world, other, other_folder, parameters={"replaces": "f" * 64})
        replaced = self._register(world, other, other_folder, parameters={"replaces": ref.model_digest_hex})
        expect(replaced.model_digest_hex, other.model_digest_hex, "content after the replacement")
        with refused("conflict"):
            self._do(world, "registry.read", ref).read(self._last, ref, world.directory / "old", {})
        self._move(world, "registry.promote", other, {"stage": "staging"})
        with refused("conflict"):
            self._register(world, ref, folder, parameters={"replaces": other.model_digest_hex})

    def case_files_that_were_not_decided_are_refused(self, world: World) -> None:
        """Another digest than the warrant names; nothing is registered."""
        folder, ref = make_model(world.directory / "made")
        _, other = make_model(world.directory / "other")
        with refused("input"):
            self._register(world, other, folder)
        expect(self._factory(world.context(self._adapter)).manifest(TENANT, ref.version), None, "manifest")

    def case_a_pickle_is_refused(self, world: World) -> None:
        """Under the name of the weights, and beside them."""
        folder, _ = make_model(world.directory / "made")
        (folder / WEIGHTS_FILE).write_bytes(pickle.dumps({"weights": [1, 2, 3]}))
        with refused("model"):
            self._register(world, _reference(folder), folder)
        folder, ref = make_model(world.directory / "beside")
        (folder / "extra.pkl").write_bytes(pickle.dumps([1]))
        with refused("model"):
            self._register(world, ref, folder)

    def case_promotion_takes_the_stage_from_the_version_before(self, world: World) -> None:
        """And a roll-back gives it back."""
        folder, first = make_model(world.directory / "one")
        second_folder, second = make_model(world.directory / "two", version=f"{TENANT}/credit-risk@2")
        self._register(world, first, folder)
        self._register(world, second, second_folder)
        outcome = self._move(world, "registry.promote", first, {"stage": "prod"})
        expect(outcome, StageOutcome(stage="prod", before="none", replaced=None), "first promotion")
        outcome = self._move(world, "registry.promote", second, {"stage": "prod"})
        expect(outcome, StageOutcome(stage="prod", before="none", replaced=first.version), "second promotion")
        registry = self._factory(world.context(self._adapter))
        stages = [getattr(registry.manifest(TENANT, ref.version), "stage", None) for ref in (first, second)]
        expect(stages, ["none", "prod"], "stages")
        outcome = self._move(world, "registry.promote", first, {"stage": "prod"})
        expect(outcome.replaced, second.version, "roll-back")

    def case_what_moved_is_told_to_whoever_has_no_warrant_any_more(self, world: World) -> None:
        """Of its own operation and step alone, as it was at the time."""
        folder, ref = make_model(world.directory / "made")
        self._register(world, ref, folder)
        asked = (TENANT, ref.version, "op-7", "only")
        expect(self._factory(world.context(self._adapter)).moved(*asked), None, "what never began")
        outcome = self._move(world, "registry.promote", ref, {"stage": "prod"}, operation_id="op-7")
        self._move(world, "registry.retire", ref, operation_id="op-8")
        registry = self._factory(world.context(self._adapter))
        expect(registry.moved(*asked), outcome, "what was done")
        for other in ((TENANT, ref.version, "op-7", "other"), (TENANT, ref.version, "op-9", "only")):
            expect(registry.moved(*other), None, "what another operation or step did")
        with refused("input"):
            registry.moved("../lakeside", ref.version, "op-7", "only")

    def case_promotion_to_no_stage_is_refused(self, world: World) -> None:
        """Before the warrant is spent."""
        folder, ref = make_model(world.directory / "made")
        self._register(world, ref, folder)
        for parameters in ({}, {"stage": "retired"}, {"stage": ["prod"]}):
            with refused("input"):
                self._move(world, "registry.promote", ref, parameters)

    def case_other_content_is_not_promoted(self, world: World) -> None:
        """The warrant's digests rule, not the version's name."""
        folder, ref = make_model(world.directory / "made")
        _, other = make_model(world.directory / "other")
        self._register(world, ref, folder)
        with refused("conflict"):
            self._move(world, "registry.promote", other, {"stage": "prod"})

    def case_a_retired_version_reads_and_does_not_come_back(self, world: World) -> None:
        """Its number neither."""
        folder, ref = make_model(world.directory / "made")
        self._register(world, ref, folder)
        expect(self._move(world, "registry.retire", ref).stage, "retired", "stage")
        with refused("conflict"):
            self._move(world, "registry.promote", ref, {"stage": "prod"})
        self._do(world, "registry.read", ref).read(self._last, ref, world.directory / "read", {})

    def case_a_version_in_use_is_not_deleted_and_a_deleted_one_is_gone(self, world: World) -> None:
        """Its manifest says so; its content cannot be read or registered again."""
        folder, ref = make_model(world.directory / "made")
        self._register(world, ref, folder)
        self._move(world, "registry.promote", ref, {"stage": "prod"})
        with refused("conflict"):
            self._move(world, "registry.delete", ref)
        self._move(world, "registry.retire", ref)
        expect(self._move(world, "registry.delete", ref, operation_id="op-9").stage, "deleted", "stage")
        expect(self._move(world, "registry.delete", ref, operation_id="op-9").stage, "deleted", "stage of the retry")
        with refused("not-found"):
            self._do(world, "registry.read", ref).read(self._last, ref, world.directory / "read", {})
        with refused("conflict"):
            self._register(world, ref, folder)

    def case_a_held_version_is_not_deleted_until_the_hold_is_lifted(self, world: World) -> None:
        """All of it stays, and it stands where it stood."""
        folder, ref = make_model(world.directory / "made")
        self._register(world, ref, folder)
        outcome = self._do(world, "registry.hold", ref).hold(self._last, ref, {})
        if outcome.held:
            with refused("conflict.held"):
                self._move(world, "registry.delete", ref)
            manifest = self._factory(world.context(self._adapter)).manifest(TENANT, ref.version)
            expect(getattr(manifest, "stage", None), "none", "stage of a held version")
        self._do(world, "registry.read", ref).read(self._last, ref, world.directory / "read", {})
        outcome = self._do(world, "registry.lift", ref).lift(self._last, ref, {})
        expect(outcome.held, expected=False, what="a hold that was lifted")
        expect(self._move(world, "registry.delete", ref).stage, "deleted", "stage")

    # --- how ---------------------------------------------------------------------------------------------------------

    def _register(
        self,
        world: World,
        ref: ModelVersionRef,
        folder: Path,
        parameters: Mapping[str, Any] | None = None,
        **asked: Any,
    ) -> RegisteredVersion:
        given = dict(parameters or {})
        return self._do(world, "registry.register", ref, given, **asked).register(self._last, ref, folder, given)

    def _move(
        self,
        world: World,
        operation: str,
        ref: ModelVersionRef,
        parameters: Mapping[str, Any] | None = None,
        **asked: Any,
    ) -> StageOutcome:
        given = dict(parameters or {})
        registry = self._do(world, operation, ref, given, **asked)
        moves = {
            "registry.promote": registry.promote,
            "registry.retire": registry.retire,
            "registry.delete": registry.delete,
        }
        return moves[operation](self._last, ref, given)

    def _do(
        self,
        world: World,
        operation: str,
        ref: ModelVersionRef,
        parameters: Mapping[str, Any] | None = None,
        **asked: Any,
    ) -> ModelRegistry:
        """Have a warrant made (``self._last``) and give a registry that has just been started."""
        self._last = world.warrant(
            _ACTIONS[operation],
            self._adapter,
            operation,
            resources=ref.resources(),
            parameters=dict(parameters or {}),
            **asked,
        )
        return self._factory(world.context(self._adapter))


def make_model(folder: Path, version: str = _VERSION) -> tuple[Path, ModelVersionRef]:
    """Write a small valid model with random weights; return its folder and ref."""
    shapes = {"layers.0.weight": (4, 2), "layers.0.bias": (4,), "layers.1.weight": (1, 4), "layers.1.bias": (1,)}
    header: dict[str, Any] = {}
    data = b""
    for name, shape in shapes.items():
        count = 4 * (shape[0] * shape[1] if len(shape) > 1 else shape[0])
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + count]}
        # Zero first: what is random must never look like something else by chance.
        data += bytes(4) + secrets.token_bytes(count - 4)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    architecture = {
        "v": 1,
        "kind": "mlp",
        "task": "binary-classification",
        "features": [{"name": "dir"}, {"name": "lvr"}],
        "hidden": [4],
        "activation": "relu",
        "target": "deny",
        "tensors": {name: list(shape) for name, shape in shapes.items()},
    }
    folder.mkdir()
    (folder / WEIGHTS_FILE).write_bytes(len(text).to_bytes(8, "little") + text + data)
    (folder / ARCHITECTURE_FILE).write_bytes(canonical.dumps(architecture))
    return folder, _reference(folder, version)


def _reference(folder: Path, version: str = _VERSION) -> ModelVersionRef:
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in MODEL_FILES}
    return ModelVersionRef(tenant=TENANT, version=version, digests=digests)
