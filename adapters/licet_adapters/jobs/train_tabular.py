"""Trains a small network on training rows, inside the sandbox; can be killed anywhere and goes on where it was.

Rules kept here:

- All that decides the next step is in the checkpoint (weights, optimiser, generator, epoch), and a checkpoint appears
  whole or not at all; so a run that was killed and resumed ends with the very bits of one that was not.
- A checkpoint is bound to rows and spec, and so to precision, device and number of ranks. One of another run is refused;
  one of another torch is left behind.
- Several ranks share each batch and make every step together, with the same bits; the first alone writes and reports.
- A protected attribute is read only if the mitigation needs it, only for the loss, and is never a feature.
- Reporting, and checkpoints beyond the first, are by the clock too, so their cost grows neither with speed nor with how long the disk
  takes to have one; neither touches what is learned.
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
    from collections.abc import Callable

    from licet_adapters.jobs import ranks, tabular
else:
    sys.path.insert(0, str(Path(__file__).parent))  # -I leaves the script's folder out.
    import ranks
    import tabular

_REPORT_EVERY_S = 0.05
# A checkpoint waits for the disk: often enough that a kill costs little, seldom enough that waiting costs less.
_CHECKPOINT_EVERY_S = 0.4
_CHECKPOINT_LATEST_S = 600.0
_CHECKPOINT_SHARE = 0.05
"""Of the time that may go into checkpoints: where one takes long, the next is the later for it."""
_CHECKPOINT = "checkpoint.safetensors"


class Training:
    """One run's state and its steps.

    Args:
        spec: As the worker validated it.
        rows: Features, float32 ``[rows, features]``, CPU.
        labels: Float32 ``[rows]``, 0 or 1.
        group: Float32 ``[rows]``, 1 for who is in it, or None without mitigation.
        among: This process among those that train together.

    Attributes:
        among: As given.
        network: What is trained.
        epoch: Epochs done.
        step: Steps done.
    """

    def __init__(
        self,
        spec: dict[str, Any],
        rows: torch.Tensor,
        labels: torch.Tensor,
        group: torch.Tensor | None,
        among: ranks.Ranks,
    ) -> None:
        self._spec = spec
        self.among = among
        tabular.make_deterministic(spec["seed"])
        network = tabular.Network(spec)
        network.normalise.fit(rows)
        # Made on the processor in every case, so that where a run begins does not depend on its device.
        self.network = network.to(among.device)
        self._rows, self._labels = rows.to(among.device), labels.to(among.device)
        self._row_count, self._group = len(rows), group
        self._order = torch.Generator().manual_seed(spec["seed"])
        self._optimiser = torch.optim.Adam(
            self.network.parameters(),
            lr=spec["learning_rate_micro"] / tabular.MICRO,
            weight_decay=spec["weight_decay_micro"] / tabular.MICRO,
            foreach=False,
        )
        self.epoch = 0
        self.step = 0

    @property
    def may_checkpoint(self) -> bool:
        """Whether a checkpoint may be written after this epoch."""
        return bool(self.epoch % self._spec["checkpoint_every_epochs"] == 0)

    def run_epoch(self) -> dict[str, float]:
        """Pass once over all rows in a fresh order; return mean loss and the last batch's parity gap."""
        order = torch.randperm(self._row_count, generator=self._order)
        device = self.among.device
        # Read once an epoch: reading a figure waits for the device.
        losses: list[torch.Tensor] = []
        gap = torch.zeros((), device=device)
        for batch in torch.split(order, self._spec["batch_size"]):
            self._optimiser.zero_grad(set_to_none=True)
            mine = self.among.part_of(batch)
            here = mine.to(device)
            logits = self._logits(self._rows[here])
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, self._labels[here], reduction="sum")
            told = loss.detach()
            loss = loss / len(batch)
            if self._group is not None:
                penalty, gap = self._parity_penalty(torch.sigmoid(logits), self._group[mine], self._group[batch])
                loss = loss + penalty
            loss.backward()  # type: ignore[no-untyped-call]  # Torch leaves it untyped.
            losses.append(self._share(told))
            self._optimiser.step()
            self.step += 1
        self.epoch += 1
        figures = {"loss": torch.stack(losses).double().sum().item() / self._row_count}
        return figures if self._group is None else figures | {"parity_gap": abs(gap.item())}

    def _logits(self, rows: torch.Tensor) -> torch.Tensor:
        """The network's answer, float32 ``[rows]``, its products in the precision of the spec."""
        if self._spec["precision"] == "fp32":
            exact: torch.Tensor = self.network(rows)
            return exact
        with torch.autocast(self.among.device.type, torch.bfloat16):
            mixed: torch.Tensor = self.network(rows)
        return mixed.float()

    def _parity_penalty(
        self, probabilities: torch.Tensor, group: torch.Tensor, whole: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Penalise the gap of mean predicted probability between the groups of a batch.

        The gap is over the whole batch, of which this rank has a part: what is returned first has, over all ranks, the
        gradient of weight times the squared gap.

        Args:
            probabilities: Of this rank's part, float32 ``[part]``, on its device.
            group: Of its part, float32 ``[part]``, CPU.
            whole: Of the batch, float32 ``[batch]``, CPU.

        Returns:
            The penalty and the gap; both 0 where the batch lacks one of the groups.
        """
        inside = int(whole.sum())
        if inside in {0, len(whole)}:
            return probabilities.sum() * 0, torch.zeros((), device=probabilities.device)
        members = group.to(probabilities.device)
        outside = len(whole) - inside
        part = (probabilities * members).sum() / inside - (probabilities * (1 - members)).sum() / outside
        gap = self.among.sum(part.detach())
        return 2 * self._spec["mitigation"]["weight_micro"] / tabular.MICRO * gap * part, gap

    def _share(self, told: torch.Tensor) -> torch.Tensor:
        """Give every rank the gradient of the whole batch; return the whole batch's loss."""
        if self.among.count == 1:
            return told
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        flat = self.among.sum(torch.cat([*(gradient.reshape(-1) for gradient in gradients), told.reshape(1)]))
        at = 0
        for gradient in gradients:
            gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
            at += gradient.numel()
        return flat[-1]

    def checkpoint(self, fingerprint: str) -> bytes:
        """All state, as safetensors."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        for index, state in self._optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{name}": torch.as_tensor(tensor) for name, tensor in state.items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
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
                raise tabular.Refused(
                    "job.checkpoint",
                    "the checkpoint is of another run: rows, spec, precision, device and number of ranks must be the same",
                )
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


def train(inputs: Path, output: Path, reporter: tabular.Reporter | None, among: ranks.Ranks | None = None) -> None:
    """Train to the end, from a checkpoint if there is one.

    Args:
        inputs: Holds ``spec.json`` and ``train.csv``.
        output: Where checkpoint and model go.
        reporter: Where figures go; None trains without reporting or checkpoints (to compare with).
        among: This process among those that train together, all with the same inputs and output; alone if not given.
    """
    spec_bytes = (inputs / "spec.json").read_bytes()
    spec: dict[str, Any] = json.loads(spec_bytes)
    run = begin(spec, inputs, among or ranks.Ranks())
    fingerprint = hashlib.sha256(spec_bytes + b"\0" + (inputs / "train.csv").read_bytes()).hexdigest()
    if reporter is not None:
        # No rank can have written by now what another has yet to read: every step is made together.
        run.restore(output / _CHECKPOINT, fingerprint)
        run.among.require_same((run.step, run.epoch))
        reporter.send({"resumed": {"step": run.step, "epoch": run.epoch}})
        if run.among.device.type == "cuda":
            reporter.send({"devices": ranks.visible_devices()})
    loop(run, spec["epochs"], reporter, lambda: _keep(run, output, fingerprint))
    if run.among.rank == 0:
        _write_model(spec, run.network, output)


def begin(spec: dict[str, Any], inputs: Path, among: ranks.Ranks) -> Training:
    """Read the rows; return the run as it is before its first step."""
    names = [feature["name"] for feature in spec["features"]]
    group_names = [] if spec["mitigation"] is None else [spec["mitigation"]["group"]]
    columns = tabular.read_columns(inputs / "train.csv", [*names, spec["label"], *group_names])
    labels = torch.from_numpy(columns[spec["label"]])
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise tabular.Refused("input.label", "train.csv: a label is neither yes nor no")
    if not 0 < int(labels.sum()) < len(labels):
        raise tabular.Refused("input.label", "train.csv: all labels are the same")
    group = (torch.from_numpy(columns[group_names[0]]) > 0).float() if group_names else None
    return Training(spec, tabular.stack(columns, names), labels, group, among)


def _keep(run: Training, output: Path, fingerprint: str) -> None:
    tabular.write_durably(output / _CHECKPOINT, run.checkpoint(fingerprint))


def loop(run: Training, epochs: int, reporter: tabular.Reporter | None, keep: Callable[[], None]) -> None:
    """Go on to the last epoch, reporting and keeping checkpoints by the clock."""
    reported_s = checkpoint_due_s = 0.0
    started_s = time.monotonic()
    while run.epoch < epochs:
        figures = run.run_epoch()
        if reporter is None or run.among.rank > 0:
            continue
        last = run.epoch == epochs
        now_s = time.monotonic()
        if last or now_s - reported_s >= _REPORT_EVERY_S:
            reported_s = now_s
            values = {name: tabular.micro(value) for name, value in figures.items()}
            reporter.send({"metric": {"step": run.step, "epoch": run.epoch - 1, "values_micro": values}})
        if last or (run.may_checkpoint and now_s >= checkpoint_due_s):
            keep()
            took_s = time.monotonic() - now_s
            rest_s = min(max(_CHECKPOINT_EVERY_S, took_s / _CHECKPOINT_SHARE), _CHECKPOINT_LATEST_S)
            checkpoint_due_s = now_s + took_s + rest_s
    if reporter is not None:
        reporter.send({"loop": {"wall_us": round((time.monotonic() - started_s) * tabular.MICRO)}})


def _write_model(spec: dict[str, Any], network: tabular.Network, output: Path) -> None:
    weights = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        raise tabular.Refused("job.diverged", "training diverged: a weight is not finite; lower the learning rate")
    tabular.write_durably(output / "model.safetensors", safetensors.torch.save(weights, {"format": "pt"}))
    tabular.write_durably(output / "architecture.json", tabular.canonical_json(architecture(spec, network)))


def main() -> None:
    """Train as the arguments say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--report-fd", type=int, required=True)
    asked = parser.parse_args()
    spec: dict[str, Any] = json.loads((asked.inputs / "spec.json").read_bytes())
    if spec["ranks"] > 1 and not ranks.is_started():
        ranks.start(spec["ranks"], Path(__file__), sys.argv[1:], report_fd=asked.report_fd)
    reporter = tabular.Reporter(ranks.report_descriptor(asked.report_fd), is_heard=ranks.is_first())
    with tabular.refusals_reported(reporter), ranks.joined(spec) as among:
        train(asked.inputs, asked.output, reporter, among)
    tabular.finish()


if __name__ == "__main__":
    ranks.recorded(main)
