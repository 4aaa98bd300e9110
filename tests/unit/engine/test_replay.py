"""Recorded decisions under other policies: what flips, by whom and why; and what cannot be decided again is told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))
from archive_world import Recorded, bundle  # The line above finds it.

from licet_engine.decide.decision import NO_PERMIT
from licet_engine.workbench.replay import ReplayError, replay_archive

FROZEN = (
    '@id("own.frozen") @title("Frozen") @advice("Wait.")'
    ' forbid (principal, action == Action::"model.promote", resource is ModelVersion);'
)
RECORDS, FACTS = "records/000000000000.jsonl", "facts/000000000000.jsonl"
OPENED = '@id("own.opened") @title("Opened") permit (principal, action, resource);'


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded()


def test_under_the_policies_it_was_decided_by_nothing_flips(recorded: Recorded, tmp_path: Path) -> None:
    path = recorded.write(tmp_path / "a.zip", erased=(7, 9))
    for before in (None, bundle()):
        report = replay_archive(path, bundle(), before=before, processes=1)
        assert (report.decided, report.others) == (len(recorded.records) - 2 + 1, 2)
        assert (report.flipped, report.other_reasons) == (0, 0)
        assert report.unreadable == {"the record was erased": 2}


def test_what_a_prohibition_would_have_denied_is_told_by_principal_action_and_policy(
    recorded: Recorded, tmp_path: Path
) -> None:
    report = replay_archive(recorded.write(tmp_path / "a.zip"), bundle(FROZEN), processes=1)
    hit = [who for who, action, allowed, _ in recorded.answers if action == "model.promote" and allowed]
    assert report.to_deny == len(hit) > 0
    assert report.to_allow == 0
    assert report.by_action == {"model.promote": len(hit)}
    assert report.by_policy == {"own.frozen": len(hit)}
    assert report.by_principal == {who: hit.count(who) for who in set(hit)}
    denied = sum(action == "model.promote" and not allowed for _, action, allowed, _ in recorded.answers)
    assert 0 < report.other_reasons <= denied
    first = report.flips[0]
    assert (first.before.allowed, first.after.reasons) == (True, ("own.frozen",))
    assert first.to_json()["action"] == "model.promote"


def test_what_a_grant_would_have_allowed_is_told_and_the_other_way_round(recorded: Recorded, tmp_path: Path) -> None:
    path = recorded.write(tmp_path / "a.zip")
    wider = replay_archive(path, bundle(OPENED), processes=1)
    assert wider.to_allow > 0
    assert wider.to_deny == 0
    assert set(wider.by_policy) == {"own.opened"}
    narrower = replay_archive(path, bundle(), before=bundle(OPENED), processes=1)
    assert (narrower.to_deny, narrower.to_allow) == (wider.to_allow, 0)
    # Nothing forbids it: nothing permits it any more.
    assert set(narrower.by_policy) == {NO_PERMIT}


def test_several_processes_find_what_one_finds_and_tell_how_far_they_are(recorded: Recorded, tmp_path: Path) -> None:
    path = recorded.write(tmp_path / "a.zip", times=3)
    one = replay_archive(path, bundle(FROZEN), processes=1)
    told: list[tuple[int, int]] = []
    two = replay_archive(path, bundle(FROZEN), processes=2, keep=3, progress=lambda done, of: told.append((done, of)))
    assert two.to_json() | {"flips": []} == one.to_json() | {"flips": []}
    assert [flip.to_json() for flip in two.flips] == [flip.to_json() for flip in one.flips[:3]]
    assert told == sorted(told)
    assert told[-1] == (3 * len(recorded.records) + 1,) * 2


def line(name: str, number: int, text: bytes) -> Callable[[dict[str, bytes]], object]:
    """Another line in a file of the first chunk."""

    def change(files: dict[str, bytes]) -> None:
        lines = files[name].splitlines()
        lines[number] = text
        files[name] = b"".join(one + b"\n" for one in lines)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (line(RECORDS, 3, b'{"record":{"decision":"allow","facts":[]},"salt":"%064d"}' % 0), "entry 3: "),
        (line(RECORDS, 3, b"["), "after entry 2: "),
        (line(RECORDS, -1, b""), RECORDS),
        (line(FACTS, 0, b"{}"), "000.jsonl"),
        (lambda files: files.pop(FACTS), "is not in the archive"),
    ],
    ids=["no record", "no JSON", "no line", "another fact", "no facts"],
)
def test_what_cannot_be_read_is_named_and_nothing_is_passed_over(
    recorded: Recorded, tmp_path: Path, change: Callable[[dict[str, bytes]], object], said: str
) -> None:
    path = recorded.write(tmp_path / "a.zip", changed=change)
    with pytest.raises(ReplayError, match=said):
        replay_archive(path, bundle(), processes=1)


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"no zip" * 100])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(content)
    with pytest.raises(ReplayError, match=r"a\.zip"):
        replay_archive(path, bundle(), processes=1)


def test_nothing_recorded_gives_nothing(tmp_path: Path, recorded: Recorded) -> None:
    empty: Any = Recorded.__new__(Recorded)
    empty.records, empty.facts, empty.bundle_hex = [], {}, ""
    report = replay_archive(empty.write(tmp_path / "a.zip"), bundle())
    assert (report.decided, report.others, report.flipped) == (0, 1, 0)
    assert recorded.records
