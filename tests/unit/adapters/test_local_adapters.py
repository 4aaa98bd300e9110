"""The embedded adapters on a hostile or failing disk; what every adapter must keep is in the conformance suites."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from licet_adapters.conformance.objects import reference
from licet_adapters.conformance.registry import make_model
from licet_adapters.conformance.world import FOREIGN_TENANT, TENANT, World
from licet_adapters.effects import EffectLedger
from licet_adapters.errors import (
    AdapterError,
    Conflict,
    InputRefused,
    IntegrityError,
    NotFound,
    Unavailable,
    WarrantRefused,
)
from licet_adapters.guard import WarrantGuard
from licet_adapters.loader import load_adapters
from licet_adapters.objects.local import LocalObjects
from licet_adapters.ports import ModelVersionRef, ObjectRef, StageOutcome
from licet_adapters.registry.local import LocalRegistry
from licet_attestations import canonical
from licet_attestations.warrant import Warrant, read_warrant

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    return World(tmp_path / "world")


def warrant(world: World, operation: str, ref: ObjectRef) -> bytes:
    action = {"objects.put": "dataset.register", "objects.get": "dataset.read", "objects.delete": "dataset.delete"}
    return world.warrant(
        action[operation], "local-objects", operation, resources=ref.resources(), parameters={}, tenant=ref.tenant
    )


def put(world: World, content: bytes, object_id: str, tenant: str = TENANT) -> tuple[LocalObjects, ObjectRef, Path]:
    store, ref = LocalObjects(world.context("local-objects")), reference(object_id, content, tenant)
    before = set(files(world))
    store.put(warrant(world, "objects.put", ref), ref, io.BytesIO(content), {})
    (made,) = set(files(world)) - before
    return store, ref, made


def files(world: World) -> list[Path]:
    return [path for path in (world.context("local-objects").data_dir / "objects").rglob("*") if path.is_file()]


def get(world: World, store: LocalObjects, ref: ObjectRef) -> bytes:
    target = world.directory / secrets.token_hex(8)
    try:
        store.get(warrant(world, "objects.get", ref), ref, target, {})
    except AdapterError:
        assert not target.exists()
        raise
    return target.read_bytes()


# --- objects ---------------------------------------------------------------------------------------------------------


def test_neither_name_nor_file_tells_of_the_content(world: World) -> None:
    content = b"a confidential row\n" * 10_000
    _, ref, path = put(world, content, f"{TENANT}/hmda")
    stored = path.read_bytes()
    for secret in (b"confidential", ref.digest_hex.encode(), bytes.fromhex(ref.digest_hex), b"hmda"):
        assert secret not in stored
        assert secret not in os.fsencode(path)
    _, _, again = put(world, content, f"{TENANT}/copy")
    assert again.name != path.name
    assert path.stat().st_mode & 0o077 == 0


def test_objects_swapped_on_disk_do_not_open(world: World) -> None:
    store, mine, my_path = put(world, b"mine", f"{TENANT}/one")
    _, other, other_path = put(world, b"also", f"{TENANT}/two")
    _, theirs, their_path = put(world, b"them", f"{FOREIGN_TENANT}/one", FOREIGN_TENANT)
    kept = {path: path.read_bytes() for path in (my_path, other_path, their_path)}
    for target, source, ref in (
        (my_path, other_path, mine),
        (my_path, their_path, mine),
        (their_path, my_path, theirs),
    ):
        target.write_bytes(kept[source])
        with pytest.raises(IntegrityError):
            get(world, store, ref)
        target.write_bytes(kept[target])
    assert get(world, store, other) == b"also"


def test_an_old_file_put_back_does_not_open_as_the_new_content(world: World) -> None:
    store, old, path = put(world, b"old rows", f"{TENANT}/hmda")
    kept = path.read_bytes()
    store.delete(warrant(world, "objects.delete", old), old, {})
    _, new, path = put(world, b"new rows", f"{TENANT}/hmda")
    path.write_bytes(kept)
    for act in (
        lambda: get(world, store, new),
        lambda: store.read_range(warrant(world, "objects.get", new), new, 0, 4, {}),
    ):
        with pytest.raises((IntegrityError, Conflict)):
            act()


@pytest.mark.parametrize("at", [0, 10, 40, -20, -1])
def test_a_damaged_file_is_found_by_reading_and_by_putting_again(world: World, at: int) -> None:
    store, ref, path = put(world, b"content", f"{TENANT}/hmda")
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises((IntegrityError, Conflict)):
        get(world, store, ref)
    with pytest.raises((IntegrityError, Conflict)):
        store.put(warrant(world, "objects.put", ref), ref, io.BytesIO(b"content"), {})


def test_a_link_in_place_of_a_file_is_not_followed(world: World) -> None:
    store, ref, path = put(world, b"content", f"{TENANT}/hmda")
    path.rename(world.directory / "moved")
    path.symlink_to(world.directory / "moved")
    with pytest.raises(IntegrityError):
        get(world, store, ref)


def test_a_source_that_breaks_leaves_nothing(world: World) -> None:
    class Broken(io.RawIOBase):
        reads = 0

        def read(self, size: int = -1) -> bytes:
            self.reads += 1
            if self.reads > 2:
                raise OSError(5, "Input/output error")
            return bytes(size)

    store, content = LocalObjects(world.context("local-objects")), bytes(3_000_000)
    ref = reference(f"{TENANT}/hmda", content)
    with pytest.raises(Unavailable):
        store.put(warrant(world, "objects.put", ref), ref, Broken(), {})  # type: ignore[arg-type]
    assert files(world) == []
    store.put(warrant(world, "objects.put", ref), ref, io.BytesIO(content), {})
    assert get(world, store, ref) == content


@pytest.mark.parametrize("call", ["fsync", "link", "open"])
def test_a_disk_that_fails_leaves_all_or_nothing(world: World, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    store, ref = LocalObjects(world.context("local-objects")), reference(f"{TENANT}/hmda", b"content")
    put(world, b"another", f"{TENANT}/first")  # So that tenant key and folders are there.
    for nth in range(1, 12):
        envelope, real, calls = warrant(world, "objects.put", ref), getattr(os, call), 0

        def failing(*args: Any, real: Any = real, nth: int = nth, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == nth:
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            with contextlib.suppress(Unavailable, IntegrityError):
                store.put(envelope, ref, io.BytesIO(b"content"), {})
        assert not [path for path in files(world) if path.name.startswith(".tmp-")]
        try:
            assert get(world, store, ref) == b"content"
        except NotFound:
            assert len(files(world)) == 1
        else:
            store.delete(warrant(world, "objects.delete", ref), ref, {})


def test_two_puts_at_once_make_one_object(world: World) -> None:
    content = secrets.token_bytes(500_000)
    ref = reference(f"{TENANT}/hmda", content)
    store, created = LocalObjects(world.context("local-objects")), []
    envelopes = [warrant(world, "objects.put", ref) for _ in range(6)]

    def act(envelope: bytes) -> None:
        created.append(store.put(envelope, ref, io.BytesIO(content), {}).created)

    threads = [threading.Thread(target=act, args=(envelope,)) for envelope in envelopes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(created) == [False] * 5 + [True]
    assert len(files(world)) == 1
    assert get(world, store, ref) == content


def test_after_the_tenants_key_is_destroyed_nothing_opens(world: World) -> None:
    store, ref, _ = put(world, b"content", f"{TENANT}/hmda")
    destroy = world.warrant("key.destroy", "signer", "keys.destroy", resources={}, parameters={})
    world.signer.destroy_tenant_key(TENANT, destroy)
    with pytest.raises(NotFound):
        get(world, store, ref)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tenant": "../northbank"},
        {"object_id": ""},
        {"object_id": "/etc/passwd"},
        {"object_id": "northbank/../../x"},
        {"object_id": "northbank//x"},
        {"object_id": "n" * 300},
        {"object_id": "northbank/x\n"},
        {"digest_hex": "A" * 64},
        {"size_bytes": -1},
    ],
)
def test_what_is_no_reference_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputRefused):
        replace(reference(f"{TENANT}/hmda", b""), **wrong)


# --- guard and ledger ------------------------------------------------------------------------------------------------


def test_of_many_at_once_one_spends_the_warrant(world: World) -> None:
    context = world.context("local-objects")
    ref = reference(f"{TENANT}/hmda", b"")
    envelope, admitted, codes = warrant(world, "objects.put", ref), [], []

    def act() -> None:
        guard = WarrantGuard("local-objects", context.trust_root, context.data_dir / "state", context.clock)
        try:
            admitted.append(
                guard.admit(envelope, tenant=TENANT, operation="objects.put", parameters={}, resources=ref.resources())
            )
        except WarrantRefused as error:
            codes.append(error.code)

    threads = [threading.Thread(target=act) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(admitted) == 1
    assert codes == ["warrant.spent"] * 7


@pytest.mark.parametrize("call", ["open", "write", "fsync"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_mark_that_cannot_be_written_admits_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    context, ref = world.context("local-objects"), reference(f"{TENANT}/hmda", b"")
    guard = WarrantGuard("local-objects", context.trust_root, context.data_dir / "state", context.clock)
    envelope, real, calls = warrant(world, "objects.put", ref), getattr(os, call), 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    asked: dict[str, Any] = {
        "tenant": TENANT,
        "operation": "objects.put",
        "parameters": {},
        "resources": ref.resources(),
    }
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        try:
            guard.admit(envelope, **asked)
            was_admitted = True
        except Unavailable:
            was_admitted = False
    assert was_admitted == (calls < nth)
    # If the first try left a mark the warrant is lost, and if it left none it is whole: it is admitted once at most.
    with contextlib.suppress(WarrantRefused):
        guard.admit(envelope, **asked)
        assert not was_admitted
    with pytest.raises(WarrantRefused) as refused:
        guard.admit(envelope, **asked)
    assert refused.value.reason == "spent"


def test_parameters_that_are_not_canonical_are_refused(world: World) -> None:
    ref = reference(f"{TENANT}/hmda", b"")
    store = LocalObjects(world.context("local-objects"))
    with pytest.raises(InputRefused):
        store.put(warrant(world, "objects.put", ref), ref, io.BytesIO(), {"rate": 0.5})


def admitted(world: World, **changes: Any) -> Warrant:
    usual: dict[str, Any] = {"resources": {"object": f"{TENANT}/x"}, "parameters": {}, "operation_id": "op-1"}
    return read_warrant(world.warrant("dataset.register", "local-objects", "objects.put", **(usual | changes)))


def test_an_effect_is_done_once_and_then_replayed(world: World) -> None:
    ledger = EffectLedger(world.directory / "state")
    assert ledger.recorded(admitted(world)) is None
    with ledger.once(admitted(world)) as effect:
        assert effect.outcome is None
        effect.record({"made": 1})
    with EffectLedger(world.directory / "state").once(admitted(world, attempt=2)) as effect:
        assert effect.outcome == {"made": 1}
    assert ledger.recorded(admitted(world)) == {"made": 1}


def test_an_effect_that_broke_is_done_again(world: World) -> None:
    ledger = EffectLedger(world.directory / "state")
    with pytest.raises(ZeroDivisionError), ledger.once(admitted(world)):
        raise ZeroDivisionError
    with ledger.once(admitted(world, attempt=2)) as effect:
        assert effect.outcome is None


@pytest.mark.parametrize("changes", [{"parameters": {"a": 1}}, {"resources": {"object": f"{TENANT}/y"}}])
def test_the_same_step_with_other_content_is_a_conflict(world: World, changes: dict[str, Any]) -> None:
    ledger = EffectLedger(world.directory / "state")
    with ledger.once(admitted(world)) as effect:
        effect.record({"made": 1})
    with pytest.raises(Conflict) as refused, ledger.once(admitted(world, **changes)):
        pass
    assert refused.value.code == "conflict.other-effect"


def test_an_older_attempt_cannot_act_after_a_newer_one_began(world: World) -> None:
    ledger = EffectLedger(world.directory / "state")
    older, newer = admitted(world, attempt=1), admitted(world, attempt=2)
    with ledger.once(newer), pytest.raises(Conflict) as busy, ledger.once(older):
        pass
    assert busy.value.code == "conflict.busy"
    with pytest.raises(Conflict) as refused, ledger.once(older):
        pass
    assert refused.value.code == "conflict.superseded"


def test_effects_of_two_tenants_are_apart(world: World) -> None:
    ledger = EffectLedger(world.directory / "state")
    with ledger.once(admitted(world)) as effect:
        effect.record({"made": 1})
    theirs = admitted(world, tenant=FOREIGN_TENANT, resources={"object": f"{FOREIGN_TENANT}/x"})
    assert ledger.recorded(theirs) is None


# --- registry --------------------------------------------------------------------------------------------------------


def registered(world: World) -> tuple[LocalRegistry, ModelVersionRef, Path]:
    folder, ref = make_model(world.directory / "model")
    registry = LocalRegistry(world.context("local-registry"))
    registry.register(register_warrant(world, ref), ref, folder, {})
    return registry, ref, world.context("local-registry").data_dir


def register_warrant(world: World, ref: ModelVersionRef, **asked: Any) -> bytes:
    return world.warrant(
        "model.register", "local-registry", "registry.register", resources=ref.resources(), parameters={}, **asked
    )


def read_warrant_for(world: World, ref: ModelVersionRef) -> bytes:
    return world.warrant("model.download", "local-registry", "registry.read", resources=ref.resources(), parameters={})


def test_a_manifest_that_names_other_files_is_refused(world: World) -> None:
    registry, ref, data_dir = registered(world)
    manifest = data_dir / "manifests" / TENANT / "credit-risk" / "1.json"
    value = canonical.loads(manifest.read_bytes())
    value["files"]["model.safetensors"]["digest_hex"] = "0" * 64
    manifest.write_bytes(canonical.dumps(value))
    with pytest.raises(Conflict):
        registry.read(read_warrant_for(world, ref), ref, world.directory / "read", {})
    manifest.write_bytes(b"{}")
    with pytest.raises(IntegrityError):
        registry.manifest(TENANT, ref.version)


def test_a_stored_file_that_was_altered_is_refused_and_nothing_is_left(world: World) -> None:
    registry, ref, data_dir = registered(world)
    for path in [path for path in (data_dir / "objects").rglob("*") if path.is_file()]:
        kept = path.read_bytes()
        path.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        with pytest.raises(IntegrityError):
            registry.read(read_warrant_for(world, ref), ref, world.directory / "read", {})
        path.write_bytes(kept)
    assert not [path for path in world.directory.iterdir() if path.name.startswith((".tmp-", "read"))]
    registry.read(read_warrant_for(world, ref), ref, world.directory / "read", {})


@pytest.mark.parametrize("call", ["fsync", "link", "open"])
def test_a_registration_that_a_failing_disk_breaks_off_is_done_by_the_retry(
    world: World, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    folder, ref = make_model(world.directory / "model")
    registry = LocalRegistry(world.context("local-registry"))
    for attempt in range(1, 40):
        envelope = register_warrant(world, ref, operation_id="op-1", attempt=attempt)
        real, calls = getattr(os, call), 0

        def failing(*args: Any, real: Any = real, attempt: int = attempt, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == attempt:
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            try:
                registry.register(envelope, ref, folder, {})
            except (Unavailable, InputRefused, IntegrityError):
                continue
            break
    assert attempt > 2
    target = world.directory / "read"
    registry.read(read_warrant_for(world, ref), ref, target, {})
    assert (target / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_whether_a_promotion_that_broke_off_was_done_can_be_told_wherever_it_broke_off(
    world: World, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    registry, ref, _ = registered(world)
    done = StageOutcome(stage="prod", before="none", replaced=None)
    parameters = {"stage": "prod"}
    seen: set[tuple[bool, bool]] = set()
    for at in range(1, 24):
        asked = {"operation_id": f"op-{at}", "resources": ref.resources()}
        envelope = world.warrant("model.promote", "local-registry", "registry.promote", parameters=parameters, **asked)
        real, calls = getattr(os, call), 0

        def failing(*args: Any, real: Any = real, at: int = at, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            result = real(*args, **kwargs)
            if calls == at:
                raise OSError(5, "Input/output error")
            return result

        broke = False
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            try:
                assert registry.promote(envelope, ref, parameters) == done
            except Unavailable:
                broke = True
        standing = registry.manifest(TENANT, ref.version)
        assert standing is not None
        moved = standing.stage == "prod"
        told = registry.moved(TENANT, ref.version, f"op-{at}", "only")
        assert told == (done if moved else None)
        seen.add((broke, moved))
        again = world.warrant(
            "model.promote", "local-registry", "registry.promote", parameters=parameters, attempt=2, **asked
        )
        # What stood before is told as it was then, not as the broken attempt left it.
        assert registry.promote(again, ref, parameters) == done
        (world.context("local-registry").data_dir / "manifests" / TENANT / "credit-risk" / "stages.json").unlink()
    assert seen == {(True, False), (True, True), (False, True)}


@pytest.mark.parametrize(
    "version",
    ["northbank/credit-risk", "lakeside/credit-risk@1", "northbank/../x@1", "northbank/a/b@1", "northbank/a@0"],
)
def test_what_is_no_version_of_the_tenant_is_refused(version: str) -> None:
    with pytest.raises(InputRefused):
        ModelVersionRef(
            tenant=TENANT, version=version, digests={"model.safetensors": "0" * 64, "architecture.json": "0" * 64}
        )


# --- loading ---------------------------------------------------------------------------------------------------------


def test_only_what_is_allowed_is_loaded(world: World) -> None:
    loaded = load_adapters(["local-objects", "local-registry"], world.context("."))
    assert {name: type(adapter) for name, adapter in loaded.items()} == {
        "local-objects": LocalObjects,
        "local-registry": LocalRegistry,
    }
    assert load_adapters([], world.context(".")) == {}
    with pytest.raises(AdapterError) as refused:
        load_adapters(["no-such-adapter"], world.context("."))
    assert refused.value.code == "adapter.unknown"
