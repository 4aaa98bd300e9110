"""What an object store must keep; see ``ObjectStore``."""

from __future__ import annotations

import hashlib
import io
import secrets
from typing import TYPE_CHECKING, Any

from licet_adapters.conformance.suite import Suite, expect, refused
from licet_adapters.conformance.world import FOREIGN_TENANT, TENANT, World
from licet_adapters.ports import AdapterContext, ObjectRef, ObjectStore

if TYPE_CHECKING:
    from collections.abc import Callable

_ACTIONS = {
    "objects.put": "dataset.register",
    "objects.get": "dataset.read",
    "objects.delete": "dataset.delete",
    "objects.hold": "dataset.hold",
    "objects.lift": "dataset.lift-hold",
}
_PARAMETERS: dict[str, Any] = {"purpose": "conformance"}
# Empty, small, around the edges of any chunk size from 64 KiB to 1 MiB, and several chunks.
_SIZES = (0, 1, 65_535, 65_536, 65_537, 262_143, 262_144, 262_145, 1_048_577, 2_500_000)


class ObjectStoreConformance(Suite):
    """What was put comes back, whole and only to whom it belongs.

    Args:
        adapter: Instance name.
        factory: Makes the store; may be called again on the same context, as after a restart.
    """

    def __init__(self, adapter: str, factory: Callable[[AdapterContext], ObjectStore]) -> None:
        self._adapter = adapter
        self._factory = factory

    def case_what_was_put_comes_back(self, world: World) -> None:
        """Every size, also after a restart."""
        for size in _SIZES:
            content = secrets.token_bytes(size)
            ref = reference(f"{TENANT}/size-{size}", content)
            expect(self._put(world, ref, content), expected=True, what=f"put of {size} bytes created")
            expect(self._get(world, ref), content, f"content of {size} bytes")

    def case_a_range_is_the_same_part_of_the_whole(self, world: World) -> None:
        """Across chunks, and beyond the end."""
        content = secrets.token_bytes(700_000)
        ref = reference(f"{TENANT}/ranged", content)
        self._put(world, ref, content)
        for start, length in (
            (0, 1),
            (0, 700_000),
            (262_140, 10),
            (65_530, 600_000),
            (699_999, 100),
            (700_000, 5),
            (9, 0),
        ):
            warrant = self._warrant(world, "objects.get", ref)
            found = self._factory(world.context(self._adapter)).read_range(warrant, ref, start, length, _PARAMETERS)
            expect(found, content[start : start + length], f"range {start}+{length}")

    def case_a_range_that_begins_beyond_the_end_is_refused(self, world: World) -> None:
        """It is an error, not an empty answer."""
        ref = reference(f"{TENANT}/ranged", b"content")
        self._put(world, ref, b"content")
        store = self._factory(world.context(self._adapter))
        for start, length in ((8, 1), (-1, 1), (0, -1)):
            with refused("input"):
                store.read_range(self._warrant(world, "objects.get", ref), ref, start, length, _PARAMETERS)

    def case_the_same_object_put_again_changes_nothing(self, world: World) -> None:
        """If-None-Match: the second put says so."""
        ref = reference(f"{TENANT}/twice", b"content")
        expect(self._put(world, ref, b"content"), expected=True, what="the first put created")
        expect(self._put(world, ref, b"content"), expected=False, what="the second put created")
        expect(self._get(world, ref), b"content", "content after two puts")

    def case_other_content_under_the_same_id_is_a_conflict(self, world: World) -> None:
        """An object is immutable; what was there stays."""
        first, second = reference(f"{TENANT}/same", b"first"), reference(f"{TENANT}/same", b"other")
        self._put(world, first, b"first")
        with refused("conflict"):
            self._put(world, second, b"other")
        expect(self._get(world, first), b"first", "content after a refused put")
        with refused("conflict", "not-found"):
            self._get(world, second)

    def case_content_that_is_not_as_declared_is_refused_and_nothing_is_there(self, world: World) -> None:
        """Cut off, too long, altered: as an upload may be."""
        content = secrets.token_bytes(600_000)
        ref = reference(f"{TENANT}/declared", content)
        for wrong in (content[:-1], content[:300_000], b"", content + b"x", bytes([content[0] ^ 1]) + content[1:]):
            with refused("input"):
                self._put(world, ref, wrong)
            with refused("not-found"):
                self._get(world, ref)
        self._put(world, ref, content)
        expect(self._get(world, ref), content, "content after refused puts")

    def case_an_object_that_is_not_there_is_not_found(self, world: World) -> None:
        """And its target does not appear."""
        with refused("not-found"):
            self._get(world, reference(f"{TENANT}/absent", b"content"))

    def case_a_target_that_exists_is_left_alone(self, world: World) -> None:
        """Nothing is overwritten."""
        ref = reference(f"{TENANT}/target", b"content")
        self._put(world, ref, b"content")
        target = world.directory / "target"
        target.write_bytes(b"mine")
        store = self._factory(world.context(self._adapter))
        with refused("conflict"):
            store.get(self._warrant(world, "objects.get", ref), ref, target, _PARAMETERS)
        expect(target.read_bytes(), b"mine", "a target that was there")

    def case_a_deleted_object_is_gone_and_deleting_again_says_so(self, world: World) -> None:
        """The id is free again."""
        ref = reference(f"{TENANT}/gone", b"content")
        self._put(world, ref, b"content")
        store = self._factory(world.context(self._adapter))
        expect(store.delete(self._warrant(world, "objects.delete", ref), ref, _PARAMETERS), True, "first delete")  # noqa: FBT003
        expect(store.delete(self._warrant(world, "objects.delete", ref), ref, _PARAMETERS), False, "second delete")  # noqa: FBT003
        with refused("not-found"):
            self._get(world, ref)

    def case_a_held_object_is_not_removed_until_the_hold_is_lifted(self, world: World) -> None:
        """Where the store has no holds the outcome says so, and nothing pretends to be held."""
        ref = reference(f"{TENANT}/held", b"content")
        self._put(world, ref, b"content")
        store = self._factory(world.context(self._adapter))
        for _ in range(2):  # Doing it again is harmless.
            outcome = store.hold(self._warrant(world, "objects.hold", ref), ref, _PARAMETERS)
        expect(outcome.held, outcome.kept_by != "none", "a hold, where there is something to keep it")
        expect(outcome.kept_by in {"object-lock", "adapter", "none"}, expected=True, what="a word on who keeps it")
        if outcome.held:
            again = self._factory(world.context(self._adapter))
            with refused("conflict.held"):
                again.delete(self._warrant(world, "objects.delete", ref), ref, _PARAMETERS)
        expect(self._get(world, ref), b"content", "content under a hold")
        for _ in range(2):
            outcome = store.lift(self._warrant(world, "objects.lift", ref), ref, _PARAMETERS)
        expect(outcome.held, expected=False, what="a hold that was lifted")
        expect(store.delete(self._warrant(world, "objects.delete", ref), ref, _PARAMETERS), True, "delete")  # noqa: FBT003

    def case_what_is_not_there_is_not_held(self, world: World) -> None:
        """An error, so that nobody believes that it is kept."""
        ref = reference(f"{TENANT}/absent", b"content")
        store = self._factory(world.context(self._adapter))
        with refused("not-found"):
            store.hold(self._warrant(world, "objects.hold", ref), ref, _PARAMETERS)

    def case_two_tenants_hold_the_same_content_apart(self, world: World) -> None:
        """Deleting one leaves the other."""
        mine = reference(f"{TENANT}/shared", b"content")
        theirs = reference(f"{FOREIGN_TENANT}/shared", b"content", tenant=FOREIGN_TENANT)
        self._put(world, mine, b"content")
        self._put(world, theirs, b"content")
        store = self._factory(world.context(self._adapter))
        store.delete(self._warrant(world, "objects.delete", mine), mine, _PARAMETERS)
        expect(self._get(world, theirs), b"content", "the other tenant's content")

    def _put(self, world: World, ref: ObjectRef, content: bytes) -> bool:
        store = self._factory(world.context(self._adapter))
        return store.put(self._warrant(world, "objects.put", ref), ref, io.BytesIO(content), _PARAMETERS).created

    def _get(self, world: World, ref: ObjectRef) -> bytes:
        target = world.directory / f"got-{secrets.token_hex(8)}"
        store = self._factory(world.context(self._adapter))
        try:
            store.get(self._warrant(world, "objects.get", ref), ref, target, _PARAMETERS)
        except BaseException:
            expect(target.exists(), expected=False, what="a target after a failed get")
            raise
        return target.read_bytes()

    def _warrant(self, world: World, operation: str, ref: ObjectRef) -> bytes:
        return world.warrant(
            _ACTIONS[operation],
            self._adapter,
            operation,
            resources=ref.resources(),
            parameters=_PARAMETERS,
            tenant=ref.tenant,
        )


def reference(object_id: str, content: bytes, tenant: str = TENANT) -> ObjectRef:
    """Return the ref of ``content`` under ``object_id``."""
    return ObjectRef(
        tenant=tenant,
        object_id=object_id,
        digest_hex=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
    )
