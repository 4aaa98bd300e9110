"""Drift and the other alarms: they fire when they should, and not by chance."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from licet_adapters.conformance.tabular import table, write_model
from licet_adapters.errors import InputRefused
from licet_adapters.serving.alarms import AlarmPanel
from licet_adapters.serving.drift import (
    CAPACITY,
    MAX_CELLS,
    RowWindow,
    alpha_of_look,
    chance_of_gap,
    compare,
    drifted,
    greatest_gap,
    holm,
)
from licet_adapters.serving.plan import parse_plan
from licet_adapters.serving.reference import SKETCH, Reference, build_reference, parse_reference, sketch_error
from licet_attestations import canonical

NAMES = [f"f{index}" for index in range(10)]
DRIFT = {"kind": "drift", "alpha_micro": 50_000, "window_s": 60, "min_count": 100, "effect_min_micro": 0}


def reference(generator: np.random.Generator, rows: int = 1500, **changes: Any) -> Reference:
    columns = {}
    for name in NAMES:
        ordered = np.sort(generator.normal(size=rows)).astype(np.float32).astype(np.float64)
        columns[name] = ordered[np.linspace(0, rows - 1, min(rows, SKETCH)).round().astype(int)]
    whole: dict[str, Any] = {"rows": rows, "features": columns, "confidence_mean": 0.75, "data_as_of_ms": 1_000_000}
    return Reference(**(whole | changes))


def alarms(*wanted: dict[str, Any]) -> Any:
    plan = {
        "endpoint": "northbank/credit",
        "version": "northbank/m@1",
        "model_digest_hex": "a" * 64,
        "strategy": "direct",
    }
    return parse_plan(plan | {"alarms": list(wanted)}).alarms


def rows_of(generator: np.random.Generator, count: int, shift: float = 0.0) -> Any:
    rows = generator.normal(size=(count, len(NAMES))).astype(np.float32)
    rows[:, 3] += shift
    return rows


@given(
    st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=60),
    st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=60),
)
def test_the_gap_is_that_of_kolmogorov_and_smirnov(first: list[float], second: list[float]) -> None:
    points = [*first, *second]
    expected = max(abs(np.mean(np.asarray(first) <= x) - np.mean(np.asarray(second) <= x)) for x in points)
    assert greatest_gap(np.sort(first), np.sort(second)) == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_monotone_and_never_more_than_bonferroni(chances: list[float]) -> None:
    adjusted = holm(chances)
    for one, other in zip(chances, adjusted, strict=True):
        assert one <= other <= min(1.0, one * len(chances)) + 1e-12
    order = np.argsort(chances, kind="stable")
    assert (np.diff(np.asarray(adjusted)[order]) >= 0).all()


def test_all_looks_together_spend_no_more_than_alpha() -> None:
    assert sum(alpha_of_look(0.05, look) for look in range(1, 100_000)) <= 0.05


@pytest.mark.parametrize(("first", "second"), [(20, 50), (200, 1500)])
def test_the_bound_is_no_smaller_than_the_chance_that_scipy_computes(first: int, second: int) -> None:
    generator = np.random.default_rng(1)
    for shift in (0.0, 0.2, 0.5):
        one, other = np.sort(generator.normal(size=first)), np.sort(generator.normal(shift, size=second))
        found = ks_2samp(one, other, method="exact" if first < 100 else "asymp")
        assert greatest_gap(one, other) == pytest.approx(found.statistic)
        assert chance_of_gap(found.statistic, first, second) >= found.pvalue


def test_rows_like_those_of_training_raise_no_alarm_in_a_thousand_looks() -> None:
    """Ten lives of a hundred looks over ten features each, at an alpha of 5 % for a life; at each look alone, fifty would."""
    fired = 0
    for seed in range(10):
        generator = np.random.default_rng(seed)
        panel = AlarmPanel(alarms(DRIFT), reference(generator), NAMES)
        for look in range(100):
            panel.record_rows(float(look), rows_of(generator, 100), np.full(100, 0.75, dtype=np.float32))
            fired += panel.evaluate(float(look), 0) is not None
    assert fired == 0


@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_a_feature_that_moved_is_found_and_named(shift: float) -> None:
    generator = np.random.default_rng(5)
    panel = AlarmPanel(alarms(DRIFT), reference(generator), NAMES)
    panel.record_rows(1.0, rows_of(generator, 300, shift), np.full(300, 0.75, dtype=np.float32))
    fired = panel.evaluate(1.0, 0)
    assert fired is not None
    assert fired.to_json() | {"count": 300} == {
        "kind": "drift", "value": 1, "threshold": 0, "window_s": 60, "count": 300, "detail": "features drifted: f3",
    }  # fmt: skip


def test_a_small_sample_must_show_more_than_a_large_one() -> None:
    generator = np.random.default_rng(7)
    known = reference(generator)
    small = drifted(compare(rows_of(generator, 20, 0.5), known, NAMES), 0.01, 0.0)
    large = drifted(compare(rows_of(generator, 3000, 0.5), known, NAMES), 0.01, 0.0)
    assert (set(small), set(large)) == (set(), {"f3"})


def test_a_difference_that_is_certain_and_too_small_to_matter_is_not_drift() -> None:
    generator = np.random.default_rng(9)
    found = compare(rows_of(generator, 4000, 0.3), reference(generator, 20_000), NAMES)
    assert found["f3"].chance < 0.001
    assert drifted(found, 0.01, 0.3) == {}


def test_too_few_rows_or_too_few_new_ones_are_not_looked_at() -> None:
    generator = np.random.default_rng(11)
    panel = AlarmPanel(alarms(DRIFT), reference(generator), NAMES)
    panel.record_rows(1.0, rows_of(generator, 99, 3.0), np.full(99, 0.75, dtype=np.float32))
    assert panel.evaluate(1.0, 0) is None
    panel.record_rows(1.0, rows_of(generator, 1, 3.0), np.full(1, 0.75, dtype=np.float32))
    assert panel.evaluate(1.0, 0) is not None
    assert panel.evaluate(1.1, 0) is None
    # What has left the window counts no more.
    assert panel.evaluate(100.0, 0) is None


@settings(max_examples=25)
@given(st.lists(st.integers(1, 3 * CAPACITY), min_size=1, max_size=4))
def test_a_window_keeps_the_last_rows_and_no_more(counts: list[int]) -> None:
    window = RowWindow(1)
    sent = np.arange(sum(counts), dtype=np.float32)[:, None]
    at = 0
    for second, count in enumerate(counts):
        window.add(second, sent[at : at + count], np.full(count, 0.25, dtype=np.float32))
        at += count
    rows, confidence = window.rows_since(-1.0), window.confidence_since(-1.0)
    assert window.count_since(-1.0) == len(rows)
    assert sorted(rows[:, 0].tolist()) == sent[-CAPACITY:, 0].tolist()
    assert set(confidence.tolist()) == {0.75}


def test_the_other_alarms_fire_beyond_their_thresholds_and_not_at_them() -> None:
    generator = np.random.default_rng(13)
    known = reference(generator, confidence_mean=0.75, data_as_of_ms=1_000_000)
    latency = {"kind": "p95-latency", "threshold_us": 1000, "window_s": 5, "min_count": 20}
    errors = {"kind": "error-rate", "threshold_micro": 50_000, "window_s": 5, "min_count": 20}
    confidence = {"kind": "confidence-shift", "threshold_micro": 100_000, "window_s": 5, "min_count": 20}
    age = {"kind": "staleness", "max_age_s": 100}

    panel = AlarmPanel(alarms(latency, errors), None, NAMES)
    for _ in range(19):
        panel.record(1.0, 2000, "ok")
    assert panel.evaluate(1.0, 0) is None
    panel.record(1.0, 2000, "ok")
    fired = panel.evaluate(1.0, 0)
    assert fired is not None
    assert (fired.kind, fired.threshold, fired.count) == ("p95-latency", 1000, 20)
    assert 2000 <= fired.value <= 2101
    assert panel.evaluate(60.0, 0) is None

    panel = AlarmPanel(alarms(errors), None, NAMES)
    for outcome in ["client-error"] * 10 + ["ok"] * 19 + ["timeout"]:
        panel.record(1.0, 10, outcome)  # type: ignore[arg-type]  # Literals in a list.
    assert panel.evaluate(1.0, 0) is None  # One in twenty is the threshold itself.
    panel.record(1.0, 10, "server-error")
    fired = panel.evaluate(1.0, 0)
    assert fired is not None
    assert (fired.kind, fired.value) == ("error-rate", 2 * 1_000_000 // 21)

    panel = AlarmPanel(alarms(confidence), known, NAMES)
    panel.record_rows(1.0, rows_of(generator, 50), np.full(50, 0.20, dtype=np.float32))  # As sure as 0.80 is.
    assert panel.evaluate(1.0, 0) is None
    panel.record_rows(1.0, rows_of(generator, 200), np.full(200, 0.99, dtype=np.float32))
    assert (panel.evaluate(1.0, 0) or known) != known

    panel = AlarmPanel(alarms(age), known, NAMES)
    assert panel.evaluate(1.0, 1_000_000 + 100_999) is None
    fired = panel.evaluate(1.0, 1_000_000 + 101_000)
    assert fired is not None
    assert (fired.kind, fired.value) == ("staleness", 101)


def test_malformed_requests_hide_no_failure_and_make_up_no_count() -> None:
    latency = {"kind": "p95-latency", "threshold_us": 50_000, "window_s": 5, "min_count": 20}
    errors = {"kind": "error-rate", "threshold_micro": 20_000, "window_s": 5, "min_count": 20}
    for wanted, outcome, latency_us in ((errors, "server-error", 10), (latency, "ok", 200_000)):
        panel = AlarmPanel(alarms(wanted), None, NAMES)
        for _ in range(6000):
            panel.record(1.0, 300, "client-error")
        for _ in range(19):
            panel.record(1.0, latency_us, outcome)  # type: ignore[arg-type]  # Literals in a tuple.
        assert panel.evaluate(1.0, 0) is None
        panel.record(1.0, latency_us, outcome)  # type: ignore[arg-type]  # As above.
        fired = panel.evaluate(1.0, 0)
        assert fired is not None
        assert (fired.kind, fired.count) == (wanted["kind"], 20)


def test_drift_is_looked_at_once_a_second_over_one_window_on_a_bounded_number_of_values() -> None:
    generator = np.random.default_rng(17)
    names = [f"f{index:04d}" for index in range(1000)]
    column = np.sort(generator.normal(size=SKETCH))
    known = Reference(rows=100_000, features=dict.fromkeys(names, column), confidence_mean=0.7, data_as_of_ms=0)
    many = [DRIFT | {"window_s": 60 + at // 8, "min_count": 1, "alpha_micro": 1} for at in range(16)]
    panel = AlarmPanel(alarms(*many), known, names)
    windows, sizes = [], []

    def beside(compute: Any) -> Any:
        windows.append([alarm.window_s for alarm, looks in panel._drift if looks.at_s == now_s])
        sizes.append(compute.args[0].size)
        future: Future[Any] = Future()
        future.set_result({})
        return future

    for tenth in range(40):
        now_s = tenth / 10
        panel.record_rows(now_s, np.zeros((500, 1000), np.float32), np.full(500, 0.7, np.float32))
        assert panel.evaluate(now_s, 0, beside) is None
    assert windows == [[60] * 8, [61] * 8, [60] * 8, [61] * 8]
    assert max(sizes) <= MAX_CELLS


def test_what_drifted_is_told_when_the_look_that_is_taken_elsewhere_is_over() -> None:
    generator = np.random.default_rng(19)
    panel = AlarmPanel(alarms(DRIFT), reference(generator), NAMES)
    panel.record_rows(1.0, rows_of(generator, 300, 2.0), np.full(300, 0.75, dtype=np.float32))
    future: Future[Any] = Future()
    asked: list[Any] = []
    for _ in range(3):
        assert panel.evaluate(1.0, 0, lambda compute: asked.append(compute) or future) is None
    assert len(asked) == 1
    future.set_result(asked[0]())
    fired = panel.evaluate(1.1, 0)
    assert fired is not None
    assert fired.detail == "features drifted: f3"


def test_an_alarm_that_could_never_fire_is_refused() -> None:
    generator = np.random.default_rng(15)
    confidence = {"kind": "confidence-shift", "threshold_micro": 1}
    age = {"kind": "staleness", "max_age_s": 1}
    for wanted, known in (
        (DRIFT, None),
        (confidence, None),
        (age, None),
        (confidence, reference(generator, confidence_mean=None)),
        (age, reference(generator, data_as_of_ms=None)),
    ):
        with pytest.raises(InputRefused) as refused:
            AlarmPanel(alarms(wanted), known, NAMES)
        assert refused.value.code == "input.alarm"


# --- references --------------------------------------------------------------------------------------------------------


def test_a_reference_is_made_of_training_rows_and_read_again(tmp_path: Any) -> None:
    files = {name: file.path.read_bytes() for name, file in write_model(tmp_path).items()}
    data = build_reference(
        table(0, 3000), architecture=files["architecture.json"], weights=files["model.safetensors"], data_as_of_ms=5
    )
    known = parse_reference(data, ["income", "ratio"])
    assert (known.rows, known.data_as_of_ms) == (3000, 5)
    assert 0.5 < (known.confidence_mean or 0) < 1
    assert {len(values) for values in known.features.values()} == {SKETCH}
    # The sketch is as good as it says it is.
    values = np.sort([float(line.split(",")[1]) for line in table(0, 3000).decode().splitlines()[1:]])
    assert greatest_gap(values.astype(np.float32).astype(np.float64), known.features["ratio"]) <= sketch_error(
        known, "ratio"
    )
    with pytest.raises(InputRefused):
        parse_reference(data, ["income", "other"])


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"rows": 0},
        {"rows": True},
        {"features": {"a": []}},
        {"features": {"a": [2, 1]}},
        {"features": {"a": [1, "2"]}},
        {"features": {"a": [1, 2, 3, 4]}},
        {"features": {"a": [1], "b": [1]}},
        {"confidence_mean_micro": -1},
        {"data_as_of_ms": "now"},
    ],
)
def test_a_reference_that_is_none_is_refused(change: dict[str, Any]) -> None:
    whole: dict[str, Any] = {"v": 1, "rows": 3, "features": {"a": [1, 2, 3]}, "confidence_mean_micro": 1}
    assert parse_reference(canonical.dumps(whole), ["a"]).rows == 3
    with pytest.raises(InputRefused):
        parse_reference(canonical.dumps(whole | change), ["a"])


def test_rows_that_cannot_be_read_make_no_reference(tmp_path: Any) -> None:
    files = {name: file.path.read_bytes() for name, file in write_model(tmp_path).items()}
    for rows in (b"", b"income,ratio\n", b"income\n1\n", b"income,ratio\n1,x\n", b"income,ratio\n1,1e30\n", b"\xff"):
        with pytest.raises(InputRefused):
            build_reference(rows, architecture=files["architecture.json"], weights=files["model.safetensors"])
