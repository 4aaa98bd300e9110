"""Tests a model on held-out rows, inside the sandbox: technical, bias, explainability, drift.

Rules kept here:

- Figures are rounded to millionths first and then held against the thresholds, so that a policy that compares the same
  figures comes to the same answer.
- An interval is a 95 % percentile bootstrap. For "at least" demands on one figure the lower bound is compared (technical:
  AUC); the bias review compares the point estimate with the threshold (the four-fifths rule is about the rate itself)
  and the lower bound with a floor of its own, so that neither luck nor a small sample passes.
- Drift is judged against chance at this very sample size: by permutation (beyond 50,000 rows by the asymptotic law),
  corrected for the number of features by Holm, and only if the difference is large enough to matter.
- Of several protected columns each is reviewed, and the figure is that of the worst: a model is as fair as it is to the group it treats
  worst, whichever column its author had in mind.
- A model that gives nearly everybody the same answer treats all groups alike and decides nothing. It does not pass the bias review,
  whatever its rates: else a threshold at the end of the scale would pass any weights.
- A figure that cannot be computed fails the job: it is never a pass.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from licet_adapters.jobs import tabular
else:
    sys.path.insert(0, str(Path(__file__).parent))  # -I leaves the script's folder out.
    import tabular

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_INTERVAL_PERCENT = (2.5, 97.5)
_CALIBRATION_BINS = 10
_MIN_ROWS_A_SIDE = 10
_MIN_SHARE_MICRO = 50_000
_EXACT_ROWS = 50_000
_CHUNK_ELEMENTS = 4_000_000
_ATTRIBUTION_STEPS = 32
_MAX_ATTRIBUTED_ROWS = 1_000
_TIE = 1e-9


class Case:
    """All that the checks look at.

    Args:
        inputs: Holds ``spec.json``, the model's two files, ``train.csv`` and ``held-out.csv``.
    """

    def __init__(self, inputs: Path) -> None:
        self.spec: dict[str, Any] = json.loads((inputs / "spec.json").read_bytes())
        tabular.make_deterministic(self.spec["seed"])
        self.network, self.declaration = tabular.load_network(inputs)
        self.names = [feature["name"] for feature in self.declaration["features"]]
        self.label: str = self.declaration["target"]
        wanted = list(dict.fromkeys([*self.names, self.label, *self.spec["groups"]]))
        self.train = tabular.read_columns(inputs / "train.csv", wanted)
        self.held_out = tabular.read_columns(inputs / "held-out.csv", wanted)
        self.rows = tabular.stack(self.held_out, self.names)
        with torch.no_grad():
            logits = self.network(self.rows)
        self.scores: Floats = torch.sigmoid(logits.double()).numpy()
        if not np.isfinite(self.scores).all():
            raise tabular.Refused("job.figure", "the model gives scores that are not finite")
        self.labels = self._two_sided(self.label)

    @cached_property
    def groups(self) -> dict[str, Bools]:
        """Which held-out rows are of each group; only for checks that compare groups, which are not run without one."""
        return {name: self._two_sided(name) for name in self.spec["groups"]}

    def _two_sided(self, name: str) -> Bools:
        values: Bools = self.held_out[name] > 0
        if min(int(values.sum()), int((~values).sum())) < _MIN_ROWS_A_SIDE:
            raise tabular.Refused(
                "input.rows", f"held-out.csv: column {name} has fewer than {_MIN_ROWS_A_SIDE} rows on one side"
            )
        return values

    def generator(self) -> np.random.Generator:
        """A fresh generator; each check has the same numbers whatever ran before it."""
        return np.random.default_rng(self.spec["seed"])

    def threshold(self, name: str) -> int:
        """One of the thresholds, as decided."""
        return int(self.spec["thresholds"][name])


def area_under_roc(scores: Floats, positive: Bools) -> float:
    """Area under the ROC curve, ties counted half."""
    from scipy.stats import rankdata  # noqa: PLC0415  # Half a second, for those who need it.

    ones, zeros = int(positive.sum()), int((~positive).sum())
    return float((rankdata(scores)[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def calibration_error(scores: Floats, positive: Bools) -> float:
    """Expected calibration error over bins of equal numbers of rows; equal scores share a bin."""
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, _CALIBRATION_BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, scores, side="right")
    rows = np.bincount(bins, minlength=len(edges) + 1)
    gaps = np.bincount(bins, weights=scores - positive, minlength=len(edges) + 1)
    return float(np.abs(gaps[rows > 0]).sum() / len(scores))


def bootstrap(case: Case, strata: Bools, statistic: Callable[[npt.NDArray[np.int64]], float]) -> tuple[int, int]:
    """A 95 % interval in micro, rows drawn anew within each side of ``strata`` so that none is ever empty."""
    generator = case.generator()
    sides = [np.flatnonzero(strata), np.flatnonzero(~strata)]
    values = [
        statistic(np.concatenate([generator.choice(side, len(side)) for side in sides]))
        for _ in range(case.spec["bootstrap_rounds"])
    ]
    lower, upper = np.percentile(values, _INTERVAL_PERCENT)
    return tabular.micro(float(lower)), tabular.micro(float(upper))


def check_technical(case: Case) -> dict[str, Any]:
    """Does it discriminate, and are its probabilities right, on rows it never saw."""
    auc = tabular.micro(area_under_roc(case.scores, case.labels))
    auc_interval = bootstrap(case, case.labels, lambda drawn: area_under_roc(case.scores[drawn], case.labels[drawn]))
    error = tabular.micro(calibration_error(case.scores, case.labels))
    error_interval = bootstrap(
        case, case.labels, lambda drawn: calibration_error(case.scores[drawn], case.labels[drawn])
    )
    reasons = [
        *_below(
            "the lower end of the interval of the area under the ROC curve", auc_interval[0], case, "auc_min_micro"
        ),
        *_above("the calibration error", error, case, "calibration_error_max_micro"),
    ]
    return {
        "kind": "technical",
        "passed": not reasons,
        "figures": {"auc_lower_micro": auc_interval[0], "calibration_error_micro": error},
        "detail": {
            "auc_micro": auc,
            "auc_interval_micro": list(auc_interval),
            "calibration_error_interval_micro": list(error_interval),
            "rows": len(case.labels),
            "positives": int(case.labels.sum()),
            "reasons": reasons,
        },
    }


def check_bias(case: Case) -> dict[str, Any]:
    """Do the groups get the favourable outcome (a predicted no) at like rates, for every protected column."""
    favourable = case.scores < case.declaration["threshold_micro"] / tabular.MICRO
    found = {name: _compare(case, favourable, members) for name, members in case.groups.items()}
    ratio = min(group["selection_rate_ratio_micro"] for group in found.values())
    lower = min(group["selection_rate_ratio_interval_micro"][0] for group in found.values())
    selected = tabular.micro(float(favourable.mean()))
    decides = _MIN_SHARE_MICRO <= selected <= tabular.MICRO - _MIN_SHARE_MICRO
    share, answer = max((selected, "no"), (tabular.MICRO - selected, "yes"))
    reasons = [
        *_below("the lowest ratio of selection rates", ratio, case, "selection_rate_ratio_min_micro"),
        *_below("the lower end of its interval", lower, case, "selection_rate_ratio_lower_min_micro"),
    ]
    if not decides:
        reasons.append(
            f'the model answers "{answer}" for {_percent(share)} of the rows; each answer must be given to at least'
            f" {_percent(_MIN_SHARE_MICRO)}"
        )
    return {
        "kind": "bias",
        "passed": not reasons,
        "figures": {"selection_rate_ratio_micro": ratio, "selection_rate_ratio_lower_micro": lower},
        "detail": {
            "favourable": f"{case.label} = no",
            "selection_rate_micro": selected,
            "decides": decides,
            "least_share_of_an_answer_micro": _MIN_SHARE_MICRO,
            "groups": found,
            "reasons": reasons,
        },
    }


def _below(what: str, figure: int, case: Case, threshold: str) -> list[str]:
    """The sentence that a figure is too low, if it is."""
    least = case.threshold(threshold)
    return [] if figure >= least else [f"{what} is {_decimal(figure)}; it must be at least {_decimal(least)}"]


def _above(what: str, figure: int, case: Case, threshold: str) -> list[str]:
    """The sentence that a figure is too high, if it is."""
    most = case.threshold(threshold)
    return [] if figure <= most else [f"{what} is {_decimal(figure)}; it must be at most {_decimal(most)}"]


def _decimal(micro: int) -> str:
    return f"{micro / tabular.MICRO:.6f}".rstrip("0").rstrip(".")


def _percent(micro: int) -> str:
    return f"{micro / tabular.MICRO:.1%}"


def _compare(case: Case, favourable: Bools, members: Bools) -> dict[str, Any]:
    """Selection rates on both sides of one protected column."""
    from fairlearn.metrics import demographic_parity_ratio  # noqa: PLC0415  # It brings pandas and scikit-learn.

    rates = {side: float(favourable[rows].mean()) for side, rows in (("yes", members), ("no", ~members))}
    if max(rates.values()) == 0:
        ratio, interval = 0, (0, 0)  # Nobody is selected: there is no rate to be like, and nothing to pass.
    else:
        found = demographic_parity_ratio(case.labels, favourable, sensitive_features=np.where(members, "yes", "no"))
        ratio = tabular.micro(float(found))
        interval = bootstrap(case, members, lambda drawn: _parity_ratio(favourable[drawn], members[drawn]))
    return {
        "selection_rate_ratio_micro": ratio,
        "selection_rate_ratio_interval_micro": list(interval),
        "selection_rate_micro": {side: tabular.micro(rate) for side, rate in rates.items()},
        "rows": {"yes": int(members.sum()), "no": int((~members).sum())},
    }


def _parity_ratio(favourable: Bools, groups: Bools) -> float:
    rates = sorted((float(favourable[groups].mean()), float(favourable[~groups].mean())))
    return rates[0] / rates[1] if rates[1] > 0 else 0.0


def check_explainability(case: Case) -> dict[str, Any]:
    """Do protected columns, or proxies of one, hold the dominating share of what moves the score."""
    from captum.attr import IntegratedGradients  # noqa: PLC0415  # It brings matplotlib.

    rows = case.rows[:: max(1, len(case.rows) // _MAX_ATTRIBUTED_ROWS)]
    # The average applicant is what a row is compared with.
    baseline = case.network.normalise.mean.unsqueeze(0)
    attributions, delta = IntegratedGradients(case.network).attribute(
        rows, baselines=baseline, n_steps=_ATTRIBUTION_STEPS, return_convergence_delta=True
    )
    weights: Floats = attributions.abs().mean(dim=0).double().numpy()
    if not weights.sum() > 0:
        raise tabular.Refused("job.figure", "the model's score depends on no feature: there is nothing to explain")
    shares = weights / weights.sum()
    sides = {name: _training_side(case, name) for name in case.spec["groups"]}
    level = case.spec["proxy_association_min_micro"]
    features: dict[str, Any] = {}
    share = 0.0
    for name, own in zip(case.names, shares, strict=True):
        column = case.train[name].astype(np.float64)
        association = {
            group: tabular.micro(_two_way(area_under_roc(column, members))) for group, members in sides.items()
        }
        protected, proxy = name in sides, max(association.values()) >= level
        share += float(own) if protected or proxy else 0.0
        features[name] = {
            "share_micro": tabular.micro(float(own)), "association_micro": association, "protected": protected, "proxy": proxy,
        }  # fmt: skip
    figure = tabular.micro(share)
    reasons = _above("the share of protected columns and their proxies", figure, case, "explain_share_max_micro")
    return {
        "kind": "explainability",
        "passed": not reasons,
        "figures": {"protected_or_proxy_share_micro": figure},
        "detail": {
            "method": "integrated gradients of the logit, against the training mean",
            "association": "area under the ROC curve of the column for each protected column, on training rows",
            "proxy_association_min_micro": level,
            "score_association_micro": {
                name: tabular.micro(_two_way(area_under_roc(case.scores, members)))
                for name, members in case.groups.items()
            },
            "convergence_delta_max_micro": tabular.micro(float(delta.abs().max())),
            "features": features,
            "rows": len(rows),
            "reasons": reasons,
        },
    }


def _training_side(case: Case, group: str) -> Bools:
    """Which training rows are of the group."""
    members: Bools = case.train[group] > 0
    if not 0 < int(members.sum()) < len(members):
        raise tabular.Refused("input.rows", f"train.csv: column {group} has rows on one side only")
    return members


def _two_way(area: float) -> float:
    return max(area, 1 - area)


def check_drift(case: Case) -> dict[str, Any]:
    """Do held-out rows look like training rows, feature by feature."""
    alpha = case.spec["drift_alpha_micro"] / tabular.MICRO
    effect_min = case.spec["drift_effect_min_micro"]
    train_rows, held_out_rows = len(case.train[case.label]), len(case.labels)
    pooled = [np.concatenate([case.train[name], case.held_out[name]]) for name in case.names]
    binary = [feature["encoding"] == "yes-no" for feature in case.declaration["features"]]
    tests = [_two_samples(values, train_rows, binary=two) for values, two in zip(pooled, binary, strict=True)]
    permuted = train_rows + held_out_rows <= _EXACT_ROWS
    p_values = _permutation_p_values(case, pooled, train_rows) if permuted else [p for _, p in tests]
    drifted = 0
    features: dict[str, Any] = {}
    for name, two, (effect, _), p, adjusted in zip(case.names, binary, tests, p_values, _holm(p_values), strict=True):
        effect_micro = tabular.micro(effect)
        found = adjusted < alpha and effect_micro >= effect_min
        drifted += found
        features[name] = {
            "test": "chi-squared" if two else "kolmogorov-smirnov",
            "effect_micro": effect_micro,
            "p_micro": tabular.micro(p),
            "p_adjusted_micro": tabular.micro(adjusted),
            "drifted": bool(found),
        }
    most = case.threshold("drift_max_features")
    reasons = [] if drifted <= most else [f"features that drifted: {int(drifted)}; there may be at most {most}"]
    return {
        "kind": "drift",
        "passed": not reasons,
        "figures": {"drifted_features": int(drifted)},
        "detail": {
            "p_values": f"{case.spec['permutation_rounds']} permutations" if permuted else "asymptotic",
            "correction": "Holm",
            "alpha_micro": case.spec["drift_alpha_micro"],
            "effect_min_micro": effect_min,
            "rows": {"train": train_rows, "held_out": held_out_rows},
            "features": features,
            "reasons": reasons,
        },
    }


def _two_samples(pooled: tabular.Floats, first_rows: int, *, binary: bool) -> tuple[float, float]:
    """Kolmogorov-Smirnov for numbers, chi-squared for yes and no: the effect and its asymptotic p."""
    from scipy.stats import chi2_contingency, ks_2samp  # noqa: PLC0415  # Half a second, for those who need it.

    if pooled.min() == pooled.max():
        return 0.0, 1.0
    first, second = pooled[:first_rows], pooled[first_rows:]
    if binary:
        counts = [[int((part > 0).sum()), int((part <= 0).sum())] for part in (first, second)]
        found = chi2_contingency(counts, correction=False)
        # With two rows and two columns this is Cramer's V.
        return float(np.sqrt(found.statistic / len(pooled))), float(found.pvalue)
    outcome = ks_2samp(first, second, method="asymp")
    return float(outcome.statistic), float(outcome.pvalue)


def _permutation_p_values(case: Case, pooled: Sequence[tabular.Floats], first_rows: int) -> list[float]:
    """For each feature, how often rows dealt out at random differ at least as much as these do.

    The difference is the greatest gap between the two cumulative shares: for numbers that is the Kolmogorov-Smirnov
    statistic itself; for two values, with the margins that permuting keeps, chi-squared rises and falls with it. The
    same deals serve all features: a deal knows nothing of a feature's values, only of how many of them are equal.
    """
    rows = len(pooled[0])
    own = np.arange(rows) < first_rows
    orders = [np.argsort(values, kind="stable") for values in pooled]
    ends = [
        np.flatnonzero(np.append(np.diff(values[order]) != 0, [True]))
        for values, order in zip(pooled, orders, strict=True)
    ]

    def gaps(in_first: npt.NDArray[np.int32], at: npt.NDArray[np.int64]) -> Floats:
        counts = in_first[:, at]
        found: Floats = np.abs(counts / first_rows - (at + 1 - counts) / (rows - first_rows)).max(axis=1)
        return found

    observed = [
        gaps(np.cumsum(own[order], dtype=np.int32)[None, :], at)[0] for order, at in zip(orders, ends, strict=True)
    ]
    generator = case.generator()
    rounds = case.spec["permutation_rounds"]
    reached = [0] * len(pooled)
    done = 0
    while done < rounds:
        chunk = min(rounds - done, max(1, _CHUNK_ELEMENTS // rows))
        in_first = np.cumsum(generator.permuted(np.tile(own, (chunk, 1)), axis=1), axis=1, dtype=np.int32)
        for index, at in enumerate(ends):
            reached[index] += int((gaps(in_first, at) >= observed[index] - _TIE).sum())
        done += chunk
    return [(count + 1) / (rounds + 1) for count in reached]


def _holm(p_values: Sequence[float]) -> list[float]:
    """Adjust for testing many features (Holm 1979)."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda at: p_values[at])):
        running = max(running, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = running
    return adjusted


_CHECKS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "technical": check_technical,
    "bias": check_bias,
    "explainability": check_explainability,
    "drift": check_drift,
}


def check(inputs: Path, output: Path, reporter: tabular.Reporter) -> None:
    """Run the checks that the spec names, and write ``results.json``."""
    case = Case(inputs)
    results = []
    for number, kind in enumerate(case.spec["kinds"], start=1):
        result = _CHECKS[kind](case)
        results.append(result)
        reporter.send({"metric": {"step": number, "epoch": 0, "values_micro": result["figures"]}})
    tabular.write_durably(output / "results.json", tabular.canonical_json({"v": 1, "results": results}))


def main() -> None:
    """Check as the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--report-fd", type=int, required=True)
    asked = parser.parse_args()
    reporter = tabular.Reporter(asked.report_fd)
    with tabular.refusals_reported(reporter):
        check(asked.inputs, asked.output, reporter)
    tabular.finish()


if __name__ == "__main__":
    main()
