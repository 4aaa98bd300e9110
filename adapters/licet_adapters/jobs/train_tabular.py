"""Trains a small network on training rows, inside the sandbox; can be killed anywhere and goes on where it was.

Rules kept here:

- All that decides the next step is in the checkpoint (weights, optimiser, generator, epoch), and a checkpoint appears
  whole or not at all; so a run that was killed and resumed ends with the very bits of one that was not.
- A checkpoint is bound to spec and rows. One of another run is refused; one of another torch is left behind.
- A protected attribute is read only if the mitigation needs it, only for the loss, and is never a feature.
- Reporting, and checkpoints beyond the first, are by the clock too, so their cost does not grow with speed; neither
  touches what is learned.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch

if TYPE_CHECKING:
    from licet_adapters.jobs import tabular
else:
    sys.path.insert(0, str(Path(__file__).parent))  # -I leaves the script's folder out.
    import tabular

_REPORT_EVERY_S = 0.05
# A checkpoint waits for the disk: often enough that a kill costs little, seldom enough that waiting costs less.
_CHECKPOINT_EVERY_S = 0.4
_CHECKPOINT = "checkpoint.safetensors"


class Training:
    """One run's state and its steps.

    Args:
        spec: As the worker validated it.
        rows: Features, float32 ``[rows, features]``, CPU.
        labels: Float32 ``[rows]``, 0 or 1.
        group: Bool ``[rows]``, or None without mitigation.
    """

    def __init__(
        self, spec: dict[str, Any], rows: torch.Tensor, labels: torch.Tensor, group: torch.Tensor | None
    ) -> None:
        self._spec = spec
        self._rows, self._labels, self._group = rows, labels, group
        tabular.make_deterministic(spec["seed"])
        self.network = tabular.Network(spec)
        self.network.normalise.fit(rows)
        self._order = torch.Generator().manual_seed(spec["seed"])
        self._optimiser = torch.optim.Adam(
            self.network.parameters(),
            lr=spec["learning_rate_micro"] / tabular.MICRO,
            weight_decay=spec["weight_decay_micro"] / tabular.MICRO,
            foreach=False,
        )
        self.epoch = 0
        self.step = 0

    def run_epoch(self) -> dict[str, float]:
        """Pass once over all rows in a fresh order; return mean loss and the last batch's parity gap."""
        order = torch.randperm(len(self._rows), generator=self._order)
        loss_sum = gap = 0.0
        for batch in torch.split(order, self._spec["batch_size"]):
            self._optimiser.zero_grad(set_to_none=True)
            logits = self.network(self._rows[batch])
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, self._labels[batch])
            loss_sum += loss.item() * len(batch)
            if self._group is not None:
                difference = self._parity_gap(torch.sigmoid(logits), self._group[batch])
                gap = abs(difference.item())
                loss = loss + self._spec["mitigation"]["weight_micro"] / tabular.MICRO * difference.square()
            loss.backward()  # type: ignore[no-untyped-call]  # Torch leaves it untyped.
            self._optimiser.step()
            self.step += 1
        self.epoch += 1
        figures = {"loss": loss_sum / len(self._rows)}
        return figures if self._group is None else figures | {"parity_gap": gap}

    @staticmethod
    def _parity_gap(probabilities: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        """Difference of mean predicted probability between the groups; 0 where a batch lacks one of them."""
        if not group.any() or group.all():
            return probabilities.sum() * 0
        return probabilities[group].mean() - probabilities[~group].mean()

    def checkpoint(self, fingerprint: str) -> bytes:
        """All state, as safetensors."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        for index, state in self._optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": torch.as_tensor(tensor) for name, tensor in state.items()}
        tensors["order"] = self._order.get_state()
        state = {"v": 1, "epoch": self.epoch, "step": self.step, "fingerprint": fingerprint, "torch": torch.__version__}
        return safetensors.torch.save(tensors, {"state": json.dumps(state)})

    def restore(self, path: Path, fingerprint: str) -> None:
        """Go on from a checkpoint, if there is one of this torch.

        Raises:
            tabular.Refused: It is of another run, or damaged.
        """
        if not path.exists():
            return
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                state = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # Not a mapping.
            if state["torch"] != torch.__version__:
                return
            if state["fingerprint"] != fingerprint:
                raise tabular.Refused("job.checkpoint", "the checkpoint is of another run")
            network = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
            self.network.load_state_dict(network)
            adam: dict[int, dict[str, torch.Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith("adam."):
                    _, index, key = name.split(".")
                    adam.setdefault(int(index), {})[key] = tensor
            self._optimiser.load_state_dict(
                {"state": adam, "param_groups": self._optimiser.state_dict()["param_groups"]}
            )
            self._order.set_state(tensors["order"])
            self.epoch, self.step = state["epoch"], state["step"]
        except (RuntimeError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise tabular.Refused("job.checkpoint", "the checkpoint is damaged") from error


def architecture(spec: dict[str, Any], network: tabular.Network) -> dict[str, Any]:
    """The declaration that stands beside the weights."""
    return {
        "v": 1,
        "kind": "mlp",
        "task": "binary-classification",
        "features": spec["features"],
        "hidden": spec["hidden"],
        "activation": spec["activation"],
        "dropout_permille": 0,
        "outputs": 1,
        "threshold_micro": spec["decision_threshold_micro"],
        "target": spec["label"],
        "tensors": {name: list(tensor.shape) for name, tensor in network.state_dict().items()},
    }


def train(inputs: Path, output: Path, reporter: tabular.Reporter | None) -> None:
    """Train to the end, from a checkpoint if there is one.

    Args:
        inputs: Holds ``spec.json`` and ``train.csv``.
        output: Where checkpoint and model go.
        reporter: Where figures go; None trains without reporting or checkpoints (to compare with).
    """
    spec_bytes = (inputs / "spec.json").read_bytes()
    spec: dict[str, Any] = json.loads(spec_bytes)
    names = [feature["name"] for feature in spec["features"]]
    group_names = [] if spec["mitigation"] is None else [spec["mitigation"]["group"]]
    columns = tabular.read_columns(inputs / "train.csv", [*names, spec["label"], *group_names])
    labels = torch.from_numpy(columns[spec["label"]])
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise tabular.Refused("input.label", "train.csv: a label is neither yes nor no")
    if not 0 < int(labels.sum()) < len(labels):
        raise tabular.Refused("input.label", "train.csv: all labels are the same")
    group = torch.from_numpy(columns[group_names[0]] > 0) if group_names else None
    run = Training(spec, tabular.stack(columns, names), labels, group)
    content = spec_bytes + b"\0" + (inputs / "train.csv").read_bytes()
    fingerprint = hashlib.sha256(content).hexdigest()
    if reporter is not None:
        run.restore(output / _CHECKPOINT, fingerprint)
        reporter.send({"resumed": {"step": run.step, "epoch": run.epoch}})
    reported_s = checkpointed_s = 0.0
    started_s = time.monotonic()
    while run.epoch < spec["epochs"]:
        figures = run.run_epoch()
        if reporter is None:
            continue
        last = run.epoch == spec["epochs"]
        now_s = time.monotonic()
        if last or now_s - reported_s >= _REPORT_EVERY_S:
            reported_s = now_s
            values = {name: tabular.micro(value) for name, value in figures.items()}
            reporter.send({"metric": {"step": run.step, "epoch": run.epoch - 1, "values_micro": values}})
        due = run.epoch % spec["checkpoint_every_epochs"] == 0 and now_s - checkpointed_s >= _CHECKPOINT_EVERY_S
        if last or due:
            checkpointed_s = now_s
            tabular.write_durably(output / _CHECKPOINT, run.checkpoint(fingerprint))
    if reporter is not None:
        reporter.send({"loop": {"wall_us": round((time.monotonic() - started_s) * tabular.MICRO)}})
    weights = {name: tensor.contiguous() for name, tensor in run.network.state_dict().items()}
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise tabular.Refused("job.diverged", "training diverged: a weight is not finite; lower the learning rate")
    tabular.write_durably(output / "model.safetensors", safetensors.torch.save(weights, {"format": "pt"}))
    tabular.write_durably(output / "architecture.json", tabular.canonical_json(architecture(spec, run.network)))


def main() -> None:
    """Train as the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--report-fd", type=int, required=True)
    asked = parser.parse_args()
    reporter = tabular.Reporter(asked.report_fd)
    with tabular.refusals_reported(reporter):
        train(asked.inputs, asked.output, reporter)
    tabular.finish()


if __name__ == "__main__":
    main()
