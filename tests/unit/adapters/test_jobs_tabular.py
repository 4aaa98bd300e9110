"""The jobs find what is there to find, and say when they cannot."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from licet_adapters.jobs import check_tabular, train_tabular
from licet_adapters.sandbox import JobRun, Sandbox, shipped_code
from licet_adapters.training.spec import CheckSpec, TrainingSpec, parse_spec

# The jobs import their neighbour by its bare name, as they do inside the sandbox.
tabular = check_tabular.tabular
FEATURES = ("income", "debt", "code")
THRESHOLDS = {
    "auc_min_micro": 600_000,
    "calibration_error_max_micro": 100_000,
    "selection_rate_ratio_min_micro": 800_000,
    "selection_rate_ratio_lower_min_micro": 700_000,
    "explain_share_max_micro": 500_000,
    "drift_max_features": 0,
}


class Silent(tabular.Reporter):  # type: ignore[misc,name-defined]  # The neighbour by its bare name is not typed.
    """A reporter that keeps its lines."""

    def __init__(self) -> None:
        super().__init__(-1)
        self.lines: list[dict[str, Any]] = []

    def send(self, line: dict[str, Any]) -> None:
        self.lines.append(line)


def table(rows: int, *, seed: int, proxy: float = 0.0, unfair: float = 0.0, shift: float = 0.0) -> str:
    """Rows whose label depends on income and debt; ``code`` follows the group as far as ``proxy`` says."""
    chance = np.random.default_rng(seed)
    group = chance.random(rows) < 0.3
    income = chance.normal(size=rows) + shift - unfair * group
    debt = chance.random(rows) < 0.4
    code = proxy * group + chance.normal(size=rows)
    deny = chance.random(rows) < 1 / (1 + np.exp(1.5 + 1.5 * income - 1.0 * debt))
    lines = ["income,debt,code,black,deny"]
    lines += [
        f"{float(i)!r},{_yes(d)},{float(c)!r},{_yes(g)},{_yes(y)}"
        for i, d, c, g, y in zip(income, debt, code, group, deny, strict=True)
    ]
    return "\n".join(lines) + "\n"


def _yes(value: Any) -> str:
    return "yes" if value else "no"


def training_spec(**changes: Any) -> dict[str, Any]:
    return {
        "seed": 3,
        "features": [
            {"name": name, "encoding": "yes-no" if name == "debt" else "number"}
            for name in changes.pop("names", FEATURES)
        ],
        "label": "deny",
        "decision_threshold_micro": 400_000,
        "epochs": 40,
        "learning_rate_micro": 10_000,
        "checkpoint_every_epochs": 1,
        **changes,
    }


def trained(folder: Path, train: str, held_out: str, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "train.csv").write_text(train)
    (folder / "held-out.csv").write_text(held_out)
    (folder / "spec.json").write_bytes(parse_spec(TrainingSpec, training_spec(**changes)).document())
    train_tabular.train(folder, folder, None)
    return folder


def checked(folder: Path, kind: str, **spec: Any) -> dict[str, Any]:
    asked = {"kinds": [kind], "thresholds": THRESHOLDS, "groups": ["black"], "bootstrap_rounds": 200, **spec}
    (folder / "spec.json").write_bytes(parse_spec(CheckSpec, asked).document())
    check_tabular.check(folder, folder, Silent())
    results = json.loads((folder / "results.json").read_bytes())["results"]
    assert [result["kind"] for result in results] == [kind]
    found: dict[str, Any] = results[0]
    return found


# --- training --------------------------------------------------------------------------------------------------------


def test_resuming_from_any_checkpoint_gives_the_very_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table(300, seed=1)
    whole = trained(tmp_path / "whole", rows, rows, epochs=8, mitigation=_mitigation())
    wanted = hashlib.sha256((whole / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setattr(train_tabular, "_REPORT_EVERY_S", 0.0)
    monkeypatch.setattr(train_tabular, "_CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(train_tabular, "_CHECKPOINT_SHARE", 1e9)
    for cut in range(1, 8):
        folder = tmp_path / f"cut-{cut}"
        folder.mkdir()
        spec = parse_spec(TrainingSpec, training_spec(epochs=8, mitigation=_mitigation()))
        (folder / "train.csv").write_text(rows)
        (folder / "spec.json").write_bytes(spec.document())

        class Killed(BaseException):
            pass

        class Killer(Silent):
            def send(self, line: dict[str, Any]) -> None:
                super().send(line)
                if line.get("metric", {}).get("epoch") == cut:  # noqa: B023  # Used within this turn.
                    raise Killed  # As above.

        with pytest.raises(Killed):
            train_tabular.train(folder, folder, Killer())
        assert not (folder / "model.safetensors").exists()
        resumed = Silent()
        train_tabular.train(folder, folder, resumed)
        assert resumed.lines[0]["resumed"]["epoch"] == cut
        assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == wanted


@pytest.mark.parametrize("disk_s", [0.001, 0.2, 3.0])
def test_checkpoints_take_no_more_than_their_share_of_the_time_however_slow_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk_s: float
) -> None:
    rows = table(60, seed=1)
    (tmp_path / "train.csv").write_text(rows)
    spec = json.loads(parse_spec(TrainingSpec, training_spec(epochs=500)).document())
    run = train_tabular.begin(spec, tmp_path, train_tabular.ranks.Ranks())
    clock = {"s": 1000.0}
    kept: list[float] = []

    def keep() -> None:
        kept.append(clock["s"])
        clock["s"] += disk_s

    epoch = run.run_epoch

    def run_epoch() -> dict[str, float]:
        clock["s"] += 0.5
        return epoch()

    monkeypatch.setattr(train_tabular.time, "monotonic", lambda: clock["s"])
    monkeypatch.setattr(run, "run_epoch", run_epoch)
    train_tabular.loop(run, 500, Silent(), keep)
    whole_s = clock["s"] - 1000.0
    # The first and the last are made in any case.
    assert (len(kept) - 2) * disk_s <= whole_s * 0.05
    assert len(kept) >= min(250, whole_s * 0.04 / disk_s)
    assert kept[0] == 1000.5


def test_a_checkpoint_cut_short_by_a_crash_is_never_read(tmp_path: Path) -> None:
    rows = table(300, seed=1)
    folder = trained(tmp_path / "run", rows, rows, epochs=3)
    wanted = (folder / "model.safetensors").read_bytes()
    (folder / "checkpoint.safetensors.tmp").write_bytes(b"half")
    train_tabular.train(folder, folder, Silent())
    assert (folder / "model.safetensors").read_bytes() == wanted


def test_the_group_is_no_feature_and_the_penalty_narrows_the_gap(tmp_path: Path) -> None:
    rows, unseen = table(3000, seed=1, unfair=1.0), table(3000, seed=2, unfair=1.0)
    plain = trained(tmp_path / "plain", rows, unseen)
    fair = trained(tmp_path / "fair", rows, unseen, mitigation=_mitigation())
    before, after = checked(plain, "bias"), checked(fair, "bias")
    assert before["figures"]["selection_rate_ratio_micro"] < 800_000
    assert not before["passed"]
    assert after["figures"]["selection_rate_ratio_micro"] > before["figures"]["selection_rate_ratio_micro"] + 100_000
    declared = json.loads((fair / "architecture.json").read_bytes())
    assert [feature["name"] for feature in declared["features"]] == list(FEATURES)


def test_labels_that_are_no_labels_are_refused(tmp_path: Path) -> None:
    rows = table(300, seed=1).replace(",yes\n", ",2\n", 1)
    with pytest.raises(tabular.Refused, match="neither") as refusal:
        trained(tmp_path / "run", rows, rows)
    assert refusal.value.code == "input.label"


def test_labels_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    rows = table(300, seed=1).replace(",yes\n", ",no\n")
    with pytest.raises(tabular.Refused, match="same") as refusal:
        trained(tmp_path / "run", rows, rows)
    assert refusal.value.code == "input.label"


def _mitigation() -> dict[str, Any]:
    return {"kind": "demographic-parity", "group": "black", "weight_micro": 60_000_000}


# --- checks ----------------------------------------------------------------------------------------------------------


def test_technical_validation_tells_a_good_model_from_noise(tmp_path: Path) -> None:
    good = checked(trained(tmp_path / "good", table(1500, seed=1), table(1500, seed=2)), "technical")
    assert good["passed"]
    assert good["detail"]["reasons"] == []
    low, high = good["detail"]["auc_interval_micro"]
    assert low < good["detail"]["auc_micro"] < high
    assert good["figures"]["auc_lower_micro"] == low
    noise = checked(trained(tmp_path / "noise", table(1500, seed=1), table(1500, seed=2), names=("code",)), "technical")
    assert not noise["passed"]
    assert "area under the ROC curve" in noise["detail"]["reasons"][0]


def test_a_model_whose_probabilities_are_off_is_not_calibrated(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", table(1500, seed=1), table(1500, seed=2))
    before = checked(folder, "technical")
    weights = tabular.safetensors.torch.load((folder / "model.safetensors").read_bytes())
    weights["layers.2.bias"] += 2.0
    (folder / "model.safetensors").write_bytes(tabular.safetensors.torch.save(weights, {"format": "pt"}))
    after = checked(folder, "technical")
    assert after["figures"]["auc_lower_micro"] == before["figures"]["auc_lower_micro"]
    assert after["figures"]["calibration_error_micro"] > 100_000
    assert not after["passed"]


def test_the_lower_bound_of_the_ratio_has_a_floor_of_its_own(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", table(1500, seed=1), table(120, seed=5))
    found = checked(folder, "bias", thresholds={**THRESHOLDS, "selection_rate_ratio_min_micro": 1})
    strict = checked(
        folder,
        "bias",
        thresholds={
            **THRESHOLDS,
            "selection_rate_ratio_min_micro": 1,
            "selection_rate_ratio_lower_min_micro": 1_000_000,
        },
    )
    assert found["figures"] == strict["figures"]
    assert not strict["passed"]
    assert strict["detail"]["reasons"][-1].endswith("; it must be at least 1")


def test_a_model_that_favours_nobody_does_not_pass_the_bias_review(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", table(500, seed=1), table(500, seed=2), decision_threshold_micro=0)
    found = checked(folder, "bias")
    assert (found["passed"], found["figures"]["selection_rate_ratio_micro"]) == (False, 0)
    said = 'the model answers "yes" for 100.0% of the rows; each answer must be given to at least 5.0%'
    assert found["detail"]["reasons"][-1] == said


def test_a_protected_column_among_the_features_is_found(tmp_path: Path) -> None:
    rows, unseen = table(1500, seed=1), table(1500, seed=2)
    # The label follows the group alone.
    follow = [line.rsplit(",", 1)[0] + "," + line.rsplit(",", 2)[1] for line in rows.splitlines()[1:]]
    rows = "income,debt,code,black,deny\n" + "\n".join(follow) + "\n"
    found = checked(trained(tmp_path / "run", rows, unseen, names=(*FEATURES, "black")), "explainability")
    assert found["detail"]["features"]["black"]["protected"]
    assert found["figures"]["protected_or_proxy_share_micro"] > 500_000
    assert not found["passed"]


def test_a_proxy_that_dominates_fails_and_one_that_does_not_is_only_named(tmp_path: Path) -> None:
    rows, unseen = table(1500, seed=1, proxy=3.0), table(1500, seed=2, proxy=3.0)
    idle = checked(trained(tmp_path / "idle", rows, unseen), "explainability")
    assert idle["detail"]["features"]["code"]["proxy"]
    assert not idle["detail"]["features"]["income"]["proxy"]
    assert idle["passed"]
    dominant = checked(trained(tmp_path / "dominant", rows, unseen, names=("code",)), "explainability")
    assert dominant["figures"]["protected_or_proxy_share_micro"] == 1_000_000
    assert not dominant["passed"]


def test_drift_finds_what_moved_and_nothing_else(tmp_path: Path) -> None:
    found = checked(trained(tmp_path / "run", table(900, seed=1), table(600, seed=2, shift=0.4)), "drift")
    assert not found["passed"]
    assert found["figures"]["drifted_features"] == 1
    assert found["detail"]["reasons"] == ["features that drifted: 1; there may be at most 0"]
    assert found["detail"]["features"]["income"]["drifted"]


def test_drift_cries_wolf_no_more_often_than_it_says(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", table(400, seed=0), table(300, seed=1))
    alarms = 0
    for seed in range(40):
        (folder / "held-out.csv").write_text(table(300, seed=100 + seed))
        alarms += not checked(folder, "drift", permutation_rounds=199)["passed"]
    # At five in a hundred, seven or more of forty come about once in two hundred such tests.
    assert alarms < 7


def test_permutation_and_theory_agree_where_both_hold(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", table(900, seed=1), table(600, seed=2, shift=0.08))
    exact = checked(folder, "drift")["detail"]["features"]["income"]["p_micro"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check_tabular, "_EXACT_ROWS", 10)
        asymptotic = checked(folder, "drift")["detail"]["features"]["income"]["p_micro"]
    assert abs(exact - asymptotic) < 30_000


def test_holm_is_holm() -> None:
    assert check_tabular._holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_checks_give_the_same_figures_every_time(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", table(500, seed=1), table(500, seed=2))
    assert checked(folder, "technical") == checked(folder, "technical")
    assert checked(folder, "drift") == checked(folder, "drift")


@pytest.mark.parametrize(
    ("held_out", "code"),
    [
        ("income,debt,code,deny\n1,no,1,no\n", "input.column"),
        ("income,debt,code,black,deny\n", "input.csv"),
        ("income,debt,code,black,deny\n1,no,1,no\n", "input.csv"),
        ("income,debt,code,black,deny\n1,no,nan,no,no\n", "input.csv"),
        ("income,debt,code,black,deny\n1,no,1e39,no,no\n", "input.csv"),
        ("income,debt,code,black,deny\n1,no,x,no,no\n", "input.csv"),
        ("income,debt,code,black,deny\n" + "1,no,1,no,no\n" * 50, "input.rows"),
    ],
)
def test_held_out_rows_that_do_not_serve_are_refused(tmp_path: Path, held_out: str, code: str) -> None:
    folder = trained(tmp_path / "run", table(300, seed=1), table(300, seed=2))
    (folder / "held-out.csv").write_text(held_out)
    with pytest.raises(tabular.Refused) as refusal:
        checked(folder, "technical")
    assert refusal.value.code == code


def test_weights_that_do_not_fit_or_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", table(300, seed=1), table(300, seed=2))
    weights = tabular.safetensors.torch.load((folder / "model.safetensors").read_bytes())
    for wrong in ({"layers.0.bias": torch.zeros(1)}, {"layers.0.bias": torch.full((16,), float("nan"))}):
        (folder / "model.safetensors").write_bytes(tabular.safetensors.torch.save(weights | wrong, {"format": "pt"}))
        with pytest.raises(tabular.Refused) as refusal:
            checked(folder, "technical")
        assert refusal.value.code == "input.weights"


def test_a_figure_that_is_not_finite_is_never_reported() -> None:
    with pytest.raises(tabular.Refused):
        tabular.micro(float("nan"))


# --- stand-alone -----------------------------------------------------------------------------------------------------


def test_jobs_import_nothing_of_ours_but_their_neighbours() -> None:
    for name, data in shipped_code("train_tabular.py").files.items():
        for line in data.decode().splitlines():
            if line.startswith(("import licet", "from licet")):
                pytest.fail(f"{name}: {line}")


def test_a_refusal_reaches_the_worker_as_a_report(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    sandbox = Sandbox(tmp_path / "state")
    documents = {
        "spec.json": parse_spec(TrainingSpec, training_spec()).document(),
        "train.csv": b"income,debt,code,deny\n1,no,1,maybe\n",
    }
    lines: list[dict[str, Any]] = []
    run = JobRun(code=shipped_code("train_tabular.py"), inputs={}, documents=documents, output_dir=tmp_path / "out")
    end = sandbox.run(run, lines.append, lambda: False)
    assert end.status == tabular.REFUSED_STATUS
    assert lines == [{"error": {"code": "input.csv", "message": "train.csv, line 2, column deny: not a number"}}]
    assert os.listdir(tmp_path / "out") == []  # noqa: PTH208  # Names are wanted.
