"""What is told of scheduled probes: nothing that is not known is taken for good."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from licet_engine.probe_report import ProbeReport, is_due, judge, read_report

NOW_MS = 1_800_000_000_000
DAY_S = 86_400
HELD = ProbeReport(outcome="held", began_at_ms=NOW_MS - 9_000, ended_at_ms=NOW_MS, tried=98, held_at_ms=NOW_MS)


def told(folder: Path, report: ProbeReport, *, now_ms: int = NOW_MS) -> tuple[str, str]:
    report.write(folder / "probes.json")
    assert read_report(folder / "probes.json") == report
    return judge(folder / "probes.json", every_s=DAY_S, now_ms=now_ms)


def test_a_run_that_held_is_well_for_as_long_as_the_next_is_not_due(tmp_path: Path) -> None:
    assert told(tmp_path, HELD) == ("ok", "98 tried across tenants, each denied")
    assert told(tmp_path, HELD, now_ms=NOW_MS + DAY_S * 1000)[0] == "ok"
    assert told(tmp_path, HELD, now_ms=NOW_MS + 2 * DAY_S * 1000) == ("weak", "none has ended in time")
    # Nor by a clock that was set back.
    assert told(tmp_path, HELD, now_ms=NOW_MS - 1000)[0] == "weak"


def test_what_came_through_is_an_alarm_until_a_run_held_and_is_named_for_a_month(tmp_path: Path) -> None:
    names = tuple(f"dataset.a{n}" for n in range(7))
    found = replace(HELD, outcome="found", findings=names, found_at_ms=NOW_MS, held_at_ms=NOW_MS - 1)
    state, words = told(tmp_path, found)
    assert state == "broken"
    assert "dataset.a4 and 2 more" in words
    # A run that fails, or is under way, or is overdue, is no sign that it is mended.
    for after in (replace(found, outcome="failed", failures=3, reason="away"), replace(found, outcome="running")):
        assert told(tmp_path, after, now_ms=NOW_MS + 9 * DAY_S * 1000)[0] == "broken"
    mended = replace(found, outcome="held", held_at_ms=NOW_MS + 1)
    state, words = told(tmp_path, mended, now_ms=NOW_MS + 2)
    assert (state, "dataset.a0" in words) == ("weak", True)
    later_ms = NOW_MS + 31 * DAY_S * 1000
    assert told(tmp_path, replace(mended, held_at_ms=later_ms, began_at_ms=later_ms), now_ms=later_ms)[0] == "ok"


def test_a_prober_that_fails_is_told(tmp_path: Path) -> None:
    failed = replace(HELD, outcome="failed", failures=2, reason="the api is away")
    assert told(tmp_path, failed) == ("weak", "failed 2 times in a row: the api is away")
    first = ProbeReport(outcome="running", began_at_ms=NOW_MS)
    assert told(tmp_path, first) == ("weak", "the first is under way")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"v": 2}',
        json.dumps({"v": 1, "outcome": "fine", "began_at_ms": 1, "findings": [], "attested": []}),
        json.dumps({"v": 1, "outcome": "held", "began_at_ms": "1", "findings": [], "attested": []}),
    ],
)
def test_a_report_that_cannot_be_read_is_an_alarm(tmp_path: Path, text: str) -> None:
    path = tmp_path / "probes.json"
    assert judge(path, every_s=DAY_S, now_ms=NOW_MS) == ("weak", "none has run yet")
    path.write_text(text)
    assert judge(path, every_s=DAY_S, now_ms=NOW_MS)[0] == "broken"


def test_a_run_is_due_once_in_each_interval_and_sooner_where_one_failed() -> None:
    def due(report: ProbeReport | None, after_s: float) -> bool:
        return is_due(report, every_s=DAY_S, retry_s=300, now_ms=NOW_MS + int(after_s * 1000))

    assert due(None, 0)
    assert not due(HELD, DAY_S - 1)
    assert due(HELD, DAY_S)
    assert due(HELD, -1), "a clock that was set back must not put it off for long"
    failed = replace(HELD, outcome="failed")
    assert not due(failed, 299)
    assert due(failed, 300)
    # Whether it is still under way, the lock says.
    assert due(replace(HELD, outcome="running"), 0)
