"""What a training run and a check may be asked to do: validated before any job starts.

Rules kept here:

- Strict: an unknown member, a float where millionths belong, or a number out of bounds refuses the operation.
- What is not given gets its value here, so the document that a job reads is complete, and the digest of the operation's
  parameters plus this code says everything.
- A column cannot be a feature and the label, or a feature and the group of the mitigation.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from licet_adapters.errors import InputRefused
from licet_adapters.training.data import ColumnName, Encoding  # noqa: TC001  # Pydantic reads the annotations.
from licet_attestations import canonical

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CHECK_KINDS = ("technical", "bias", "explainability", "drift")
Fraction = Annotated[int, Field(ge=0, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


MAX_RANKS = 8
"""Processes of one run, and devices of one run: all of one machine."""

SMALL_NETWORK_WEIGHTS = 1000
"""What a visit of a row costs does not fall any more below so many weights."""
WEIGHT_VISITS_PER_UNIT = 1_000_000 * SMALL_NETWORK_WEIGHTS
"""A unit of training: a million rows, each visited once by a small network, or fewer by a larger one."""


def training_units(rows: int, epochs: int, features: int, hidden: Sequence[int]) -> int:
    """How many units of training a run takes, rounded up: in proportion to its rows, its epochs and its network.

    Args:
        rows: Of the dataset.
        epochs: How often each is visited.
        features: Inputs of the network, at most.
        hidden: Units of each hidden layer.
    """
    widths = (features, *hidden, 1)
    weights = sum((before + 1) * after for before, after in itertools.pairwise(widths))
    return -(-rows * epochs * max(weights, SMALL_NETWORK_WEIGHTS) // WEIGHT_VISITS_PER_UNIT)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def document(self) -> bytes:
        """The form a job reads: canonical JSON, complete."""
        return canonical.dumps(self.model_dump(mode="json"))


class FeatureSpec(_Strict):
    """One input column of the network."""

    name: ColumnName
    encoding: Encoding = "number"


class Mitigation(_Strict):
    """A demographic-parity penalty: weight times the squared difference of mean predicted probability.

    Attributes:
        kind: ``demographic-parity``.
        group: Protected attribute; read for the loss only.
        weight_micro: Of the penalty, against a cross-entropy of weight one.
    """

    kind: Literal["demographic-parity"]
    group: ColumnName
    weight_micro: int = Field(gt=0, le=1_000_000_000)


class TrainingSpec(_Strict):
    """Member ``spec`` of the parameters of a ``training.run``.

    Attributes:
        v: Version of this document.
        job: The shipped job.
        seed: Of weights and row order.
        features: Inputs of the network, in order.
        label: What is predicted, ``yes-no``.
        decision_threshold_micro: Probability from which the answer is yes; goes into the architecture.
        hidden: Widths of the hidden layers.
        activation: Between layers.
        epochs: Passes over the rows.
        batch_size: Rows a step.
        learning_rate_micro: Adam's.
        weight_decay_micro: Adam's.
        mitigation: Against bias, or None.
        checkpoint_every_epochs: At which epochs a checkpoint may be written.
        device: What it is computed on; ``cuda`` takes one leased device for each rank.
        ranks: Processes that share each batch.
        precision: ``bf16`` computes the network's products in bfloat16 (``torch.autocast``); weights, loss and optimiser
            stay in float32.
    """

    v: Literal[1] = 1
    job: Literal["train_tabular"] = "train_tabular"
    seed: Seed
    features: tuple[FeatureSpec, ...] = Field(min_length=1, max_length=4096, strict=False)
    label: ColumnName
    decision_threshold_micro: Fraction = 500_000
    hidden: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field(default=(16,), max_length=8, strict=False)
    activation: Literal["relu", "tanh", "gelu", "silu"] = "tanh"
    epochs: int = Field(ge=1, le=1_000_000)
    batch_size: int = Field(default=512, ge=1, le=1 << 20)
    learning_rate_micro: int = Field(default=3_000, ge=1, le=1_000_000)
    weight_decay_micro: int = Field(default=1_000, ge=0, le=1_000_000)
    mitigation: Mitigation | None = None
    checkpoint_every_epochs: int = Field(default=25, ge=1, le=1_000_000)
    device: Literal["cpu", "cuda"] = "cpu"
    ranks: int = Field(default=1, ge=1, le=MAX_RANKS)
    precision: Literal["fp32", "bf16"] = "fp32"

    @property
    def devices(self) -> int:
        """How many devices it takes."""
        return self.ranks if self.device == "cuda" else 0

    @model_validator(mode="after")
    def _columns_have_one_use(self) -> TrainingSpec:
        names = [feature.name for feature in self.features]
        if len(set(names)) != len(names):
            raise ValueError("a feature is named twice")
        if self.label in names:
            raise ValueError("the label is among the features")
        if self.mitigation is not None and self.mitigation.group in {*names, self.label}:
            raise ValueError("the mitigation's group is a feature or the label; a group is only for the loss")
        return self


class Thresholds(_Strict):
    """Member ``thresholds`` of the parameters of a ``checks.run``; those of the kinds asked for must be given.

    Attributes:
        auc_min_micro: Least lower bound of the area under the ROC curve.
        calibration_error_max_micro: Greatest expected calibration error.
        selection_rate_ratio_min_micro: Least ratio of favourable rates.
        selection_rate_ratio_lower_min_micro: Least lower bound of that ratio.
        explain_share_max_micro: Greatest share of attributions on protected columns and proxies.
        drift_max_features: Most features that may drift.
    """

    auc_min_micro: Fraction | None = None
    calibration_error_max_micro: Fraction | None = None
    selection_rate_ratio_min_micro: Fraction | None = None
    selection_rate_ratio_lower_min_micro: Fraction | None = None
    explain_share_max_micro: Fraction | None = None
    drift_max_features: int | None = Field(default=None, ge=0, le=10_000)


_NEEDED: Mapping[str, tuple[str, ...]] = {
    "technical": ("auc_min_micro", "calibration_error_max_micro"),
    "bias": ("selection_rate_ratio_min_micro", "selection_rate_ratio_lower_min_micro"),
    "explainability": ("explain_share_max_micro",),
    "drift": ("drift_max_features",),
}


COMPARE_GROUPS = frozenset({"bias", "explainability"})
"""The checks that compare the groups of protected columns."""

FIGURES: Mapping[str, frozenset[str]] = {
    "technical": frozenset({"auc_lower_micro", "calibration_error_micro"}),
    "bias": frozenset({"selection_rate_ratio_micro", "selection_rate_ratio_lower_micro"}),
    "explainability": frozenset({"protected_or_proxy_share_micro"}),
    "drift": frozenset({"drifted_features"}),
}
"""What each check finds, as the policies name it."""


class CheckSpec(_Strict):
    """What a check job reads: members ``kinds``, ``thresholds`` and ``spec`` of the parameters of a ``checks.run``.

    Attributes:
        v: Version of this document.
        kinds: Which checks, in order.
        thresholds: What figures are held against.
        seed: Of bootstrap and permutations.
        groups: Protected attributes, ``yes-no``, each compared by itself; empty where nothing is compared between groups.
        bootstrap_rounds: Draws of each interval.
        permutation_rounds: Deals of each drift test.
        proxy_association_min_micro: Area under the ROC curve of a column for the group from which it counts as a proxy;
            0.7 is where discrimination is commonly called acceptable (Hosmer and Lemeshow).
        drift_alpha_micro: Family-wise error of the drift tests.
        drift_effect_min_micro: Least effect (greatest gap, or Cramer's V) that matters.
    """

    v: Literal[1] = 1
    kinds: tuple[Literal["technical", "bias", "explainability", "drift"], ...] = Field(
        min_length=1, max_length=4, strict=False
    )
    thresholds: Thresholds
    seed: Seed = 0
    groups: tuple[ColumnName, ...] = Field(default=(), max_length=64, strict=False)
    bootstrap_rounds: int = Field(default=1_000, ge=200, le=20_000)
    permutation_rounds: int = Field(default=1_999, ge=199, le=20_000)
    proxy_association_min_micro: int = Field(default=700_000, ge=500_000, le=1_000_000)
    drift_alpha_micro: int = Field(default=50_000, ge=1, le=500_000)
    drift_effect_min_micro: Fraction = 50_000

    @model_validator(mode="after")
    def _thresholds_are_given(self) -> CheckSpec:
        if len(set(self.kinds)) != len(self.kinds):
            raise ValueError("a kind is named twice")
        if len(set(self.groups)) != len(self.groups):
            raise ValueError("a group is named twice")
        if not self.groups and (compared := [kind for kind in self.kinds if kind in COMPARE_GROUPS]):
            raise ValueError(f"check {compared[0]} compares groups, and no group is named")
        for kind in self.kinds:
            for name in _NEEDED[kind]:
                if getattr(self.thresholds, name) is None:
                    raise ValueError(f"check {kind} needs the threshold {name}")
        return self


_Spec = TypeVar("_Spec", bound=_Strict)


def parse_spec(kind: type[_Spec], value: Mapping[str, Any]) -> _Spec:
    """Return ``value`` as a ``kind``.

    Raises:
        InputRefused: Which member is wrong; code ``input.spec``.
    """
    try:
        return kind.model_validate(dict(value))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "spec"
        raise InputRefused(f"{where}: {first['msg']}", code="input.spec") from error
