"""``licet train`` and ``licet run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from licet_engine.commands.data import lister
from licet_engine.commands.desk import immediate, mutation
from licet_engine.commands.options import JSON_PAIR, REFERENCE, read_json_object

if TYPE_CHECKING:
    from licet_engine.commands.desk import Desk

_MAX_RANKS = 8


@click.group()
def train() -> None:
    """Training: launch, cancel."""


@train.command()
@click.argument("ref", metavar="TENANT/RUN")
@click.option("--dataset", required=True, type=REFERENCE, help="Dataset to train on.")
@click.option("--environment", required=True, help="Environment to train in; see licet tenant environments.")
@click.option("--use", required=True, help="What the model is for.")
@click.option(
    "--spec", multiple=True, type=JSON_PAIR, help="Part of the specification, such as epochs=300. Repeatable."
)
@click.option(
    "--spec-file", type=click.Path(path_type=Path), help="JSON object with the specification; --spec wins over it."
)
@click.option("--cost", type=click.IntRange(0), help="What it takes from the training budget.")
@click.option(
    "--devices",
    type=click.IntRange(0, _MAX_RANKS),
    help="Devices of the pool, a rank on each; 0, the processor, if not given.",
)
@click.option(
    "--ranks",
    type=click.IntRange(1, _MAX_RANKS),
    help="Processes that share each batch, on the processor; 1 if not given.",
)
@click.option(
    "--precision", type=click.Choice(["fp32", "bf16"]), help="bf16 for products in bfloat16; fp32 if not given."
)
@mutation
def launch(
    desk: Desk,
    ref: str,
    *,
    dataset: str,
    environment: str,
    use: str,
    spec: tuple[tuple[str, Any], ...],
    spec_file: Path | None,
    cost: int | None,
    devices: int | None,
    ranks: int | None,
    precision: str | None,
) -> None:
    """Train a model on a dataset, as the run TENANT/RUN.

    The specification: seed, epochs, hidden (units of each hidden layer, [16,8]), learning_rate_micro, weight_decay_micro, exclude (columns),
    mitigation_weight_micro (of a demographic-parity penalty; 0 for none), group (protected column whose groups the penalty
    compares; checks review all), decision_threshold_micro, held_out_micro, split_seed, checkpoint_every_epochs, precision. Fractions
    are in millionths.

    A run that needs devices waits for them in the order of asking; licet run read shows it as waiting.

    \b
      licet train launch northbank/run-1 --dataset northbank/hmda --environment us-east \\
        --use credit-risk --spec epochs=200 --spec 'hidden=[32,16]' --wait
    """  # noqa: D301  # The backspace tells click not to wrap what follows.
    if devices and ranks not in {None, devices}:
        raise click.UsageError(f"on {devices} devices there are as many ranks: leave --ranks out")
    given = {**({} if spec_file is None else read_json_object(spec_file, "--spec-file")), **dict(spec)}
    given |= {} if precision is None else {"precision": precision}
    answer = desk.client.training.launch(
        ref,
        dataset=dataset,
        environment=environment,
        use=use,
        spec=given or None,
        cost=cost,
        devices=devices,
        ranks=ranks,
        **desk.sent,
    )
    desk.finish(answer)


@train.command()
@click.argument("ref", metavar="TENANT/RUN")
@immediate
def cancel(desk: Desk, ref: str) -> None:
    """Stop a run at its next sign of life."""
    desk.finish(desk.client.training.cancel(ref, **desk.sent))


@click.group()
def run() -> None:
    """Runs: read, log, list."""


@run.command()
@click.argument("ref", metavar="TENANT/RUN")
@immediate
def read(desk: Desk, ref: str) -> None:
    """Show what is known of a run."""
    desk.finish(desk.client.run.read(ref, **desk.sent))


@run.command()
@click.argument("ref", metavar="TENANT/RUN")
@click.argument("name")
@click.argument("value")
@click.option("--step", required=True, type=click.IntRange(0), help="Step that the figure belongs to.")
@immediate
def log(desk: Desk, ref: str, *, name: str, value: str, step: int) -> None:
    """Report the figure NAME with the decimal VALUE to a run."""
    desk.finish(desk.client.run.log(ref, name, step, value, **desk.sent))


lister(run, "runs", "List the runs of a tenant.")
