"""A spent warrant stays spent when its mark is gone, whatever the clock says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from licet_adapters import guard as guards
from licet_adapters.conformance.world import World
from licet_adapters.errors import Unavailable, WarrantRefused
from licet_adapters.guard import WarrantGuard, forget, read_horizon
from licet_attestations.warrant import MAX_LIFETIME_MS, read_warrant

TTL_MS = 60_000
RESOURCES = {"object": "northbank/thing"}


class Scene:
    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.state = folder / "state"
        self.spent = self.state / "spent"
        self.guard = WarrantGuard("local-objects", self.world.keystore.trust_root, self.state, self.world.clock)

    def warrant(self) -> bytes:
        return self.world.warrant(
            "dataset.read", "local-objects", "objects.get", resources=RESOURCES, parameters={"a": 1}
        )

    def admit(self, envelope: bytes) -> None:
        self.guard.admit(
            envelope, tenant="northbank", operation="objects.get", parameters={"a": 1}, resources=RESOURCES
        )

    def marks(self) -> int:
        return len(list(self.spent.glob("??/*")))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    tmp_path.chmod(0o700)
    return Scene(tmp_path)


def test_a_mark_is_kept_until_its_warrant_ended_and_longer(scene: Scene) -> None:
    scene.admit(scene.warrant())
    for at_ms in (0, MAX_LIFETIME_MS, MAX_LIFETIME_MS + TTL_MS):
        assert forget(scene.spent, scene.world.now_ms + at_ms, TTL_MS) == 0
    assert scene.marks() == 1
    assert forget(scene.spent, scene.world.now_ms + MAX_LIFETIME_MS + TTL_MS + 1, TTL_MS) == 1
    assert scene.marks() == 0


def test_a_forgotten_warrant_is_refused_although_the_clock_jumps_back(scene: Scene) -> None:
    envelope = scene.warrant()
    scene.admit(envelope)
    began_ms = scene.world.now_ms
    forget(scene.spent, began_ms + 10 * MAX_LIFETIME_MS, TTL_MS)
    assert read_horizon(scene.spent) == read_warrant(envelope).expires_at_ms
    assert scene.marks() == 0
    scene.world.now_ms = began_ms  # To when the warrant was live.
    for _ in range(2):
        with pytest.raises(WarrantRefused, match="used"):
            scene.admit(envelope)


def test_a_clock_that_jumped_forward_bars_new_warrants_for_no_longer_than_a_warrant_lives(scene: Scene) -> None:
    scene.admit(scene.warrant())
    forget(scene.spent, scene.world.now_ms + 1000 * 86_400_000, TTL_MS)
    assert read_horizon(scene.spent) <= scene.world.now_ms + MAX_LIFETIME_MS
    scene.world.now_ms += MAX_LIFETIME_MS + 1
    scene.admit(scene.warrant())


def test_the_horizon_never_falls(scene: Scene) -> None:
    scene.admit(scene.warrant())
    forget(scene.spent, scene.world.now_ms + 10 * MAX_LIFETIME_MS, TTL_MS)
    before = read_horizon(scene.spent)
    # A mark of an older warrant, put back from somewhere.
    folder = scene.spent / "00"
    folder.mkdir(exist_ok=True)
    (folder / "0").write_text(json.dumps({"spent_at_ms": 1}))
    assert forget(scene.spent, scene.world.now_ms, TTL_MS) == 1
    assert read_horizon(scene.spent) == before


def test_the_horizon_is_durable_before_any_mark_goes(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.admit(scene.warrant())

    def full(_path: Path, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(guards, "replace_durably", full)
    with pytest.raises(Unavailable, match="No space"):
        forget(scene.spent, scene.world.now_ms + 10 * MAX_LIFETIME_MS, TTL_MS)
    assert scene.marks() == 1


def test_who_found_no_mark_because_it_was_being_removed_is_refused_all_the_same(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    envelope = scene.warrant()
    scene.admit(envelope)
    verify = guards.verify_warrant

    def late(*args: object, **kwargs: object) -> object:
        found = verify(*args, **kwargs)  # type: ignore[arg-type]
        # Between the look at the clock and the mark, another process removes the mark of this warrant.
        forget(scene.spent, scene.world.now_ms + 10 * MAX_LIFETIME_MS, TTL_MS)
        return found

    monkeypatch.setattr(guards, "verify_warrant", late)
    with pytest.raises(WarrantRefused, match="used"):
        scene.admit(envelope)


def test_a_damaged_horizon_admits_nothing(scene: Scene) -> None:
    scene.admit(scene.warrant())
    (scene.spent / "horizon").write_text("soon")
    with pytest.raises(Unavailable, match="damaged"):
        scene.admit(scene.warrant())


def test_half_a_mark_stays_and_marks(scene: Scene) -> None:
    envelope = scene.warrant()
    scene.admit(envelope)
    (mark,) = scene.spent.glob("??/*")
    mark.write_bytes(b'{"id"')
    assert forget(scene.spent, scene.world.now_ms + 10 * MAX_LIFETIME_MS, TTL_MS) == 0
    with pytest.raises(WarrantRefused):
        scene.admit(envelope)


def test_one_call_removes_a_bounded_number(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "_MAX_FORGOTTEN", 2)
    for _ in range(3):
        scene.admit(scene.warrant())
    late_ms = scene.world.now_ms + 10 * MAX_LIFETIME_MS
    assert [forget(scene.spent, late_ms, TTL_MS) for _ in range(3)] == [2, 1, 0]
