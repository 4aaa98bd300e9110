"""The journal of accesses: a line for each admitted warrant, numbered without gaps, and what is wrong with one is counted."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from licet_adapters.conformance import World
from licet_adapters.errors import Unavailable, WarrantRefused
from licet_adapters.guard import WarrantGuard
from licet_adapters.journal import JOURNAL, journals, note_access, read_journal
from licet_attestations.warrant import Warrant, read_warrant


@pytest.fixture
def warrant(tmp_path: Path) -> Warrant:
    return read_warrant(envelope_of(World(tmp_path / "world")))


def envelope_of(world: World) -> bytes:
    return world.warrant(
        "training.launch",
        "local-training",
        "training.run",
        resources={"run": "northbank/run-1"},
        parameters={"epochs": 3},
    )


def numbers(folder: Path) -> list[int]:
    return [access.number for access in read_journal(folder / JOURNAL).accesses]


def test_accesses_are_numbered_over_restarts_and_processes(tmp_path: Path, warrant: Warrant) -> None:
    folder = tmp_path / "adapters" / "local-training" / "state"
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda _: note_access(folder, warrant, 5), range(40)))
    assert sorted(told) == numbers(folder) == list(range(1, 41))
    assert note_access(folder, warrant, 6) == 41
    found = read_journal(folder / JOURNAL)
    assert (found.missing, found.cut_short) == (0, 0)
    last = found.accesses[-1]
    assert (last.warrant, last.tenant, last.operation, last.at_ms) == (
        warrant.id,
        warrant.tenant,
        warrant.operation,
        6,
    )
    assert journals(tmp_path / "adapters") == [folder / JOURNAL]
    assert (folder / JOURNAL).stat().st_mode & 0o777 == 0o600


def test_a_line_that_was_taken_away_or_cut_short_is_counted(tmp_path: Path, warrant: Warrant) -> None:
    for at_ms in range(5):
        note_access(tmp_path, warrant, at_ms)
    path = tmp_path / JOURNAL
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:1] + lines[3:]))
    assert read_journal(path).missing == 2
    path.write_bytes(b"".join(lines)[:-9])
    assert note_access(tmp_path, warrant, 9) == 5, "the act of the line that was cut short was not done"
    found = read_journal(path)
    assert (numbers(tmp_path), found.missing, found.cut_short) == ([1, 2, 3, 4, 5], 0, 1)


def test_where_the_numbers_cannot_be_told_nothing_is_done(tmp_path: Path, warrant: Warrant) -> None:
    (tmp_path / JOURNAL).write_bytes(b"x" * 100_000)
    with pytest.raises(Unavailable, match="damaged"):
        note_access(tmp_path, warrant, 1)


def test_what_the_guard_admits_stands_in_it_once(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    envelope = envelope_of(world)
    named = read_warrant(envelope)
    guard = WarrantGuard(named.adapter, world.keystore.trust_root, tmp_path / "state", world.clock)
    asked = {
        "tenant": named.tenant,
        "operation": named.operation,
        "parameters": {"epochs": 3},
        "resources": named.resources,
    }
    guard.admit(envelope, **asked)
    with pytest.raises(WarrantRefused):
        guard.admit(envelope, **asked)
    found = read_journal(tmp_path / "state" / JOURNAL)
    assert [access.warrant for access in found.accesses] == [named.id]


def test_the_number_is_of_the_journal_whatever_the_warrant(tmp_path: Path, warrant: Warrant) -> None:
    note_access(tmp_path, warrant, 1)
    assert note_access(tmp_path, replace(warrant, id="another"), 2) == 2
