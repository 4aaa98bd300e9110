"""``licet model``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from licet_engine.commands.data import OUT, lister
from licet_engine.commands.desk import immediate, mutation, waiting
from licet_engine.commands.options import REFERENCE, words

if TYPE_CHECKING:
    from licet_engine.commands.desk import Desk

STAGE = click.Choice(["staging", "prod"])
TRACK = click.Choice(["engineering", "model-risk", "security", "legal", "compliance"])
CHECKS = ["technical", "bias", "explainability", "drift"]
VERSION = "TENANT/MODEL@VERSION"


@click.group()
def model() -> None:
    """Model versions: register, check, approve, promote, roll back, retire, ..."""


@model.command()
@click.argument("ref", metavar="TENANT/MODEL[@VERSION]")
@click.option("--run", "run_", required=True, type=REFERENCE, help="Run that made it.")
@click.option("--tier", type=click.Choice(["low", "medium", "high"]), help="Risk tier; high if not given.")
@click.option(
    "--weights", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="A model.safetensors of your own."
)
@click.option(
    "--architecture",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="An architecture.json of your own.",
)
@mutation
def register(
    desk: Desk, ref: str, *, run_: str, tier: str | None, weights: Path | None, architecture: Path | None
) -> None:
    """Register a run's model as the next version, or replace files of the version named, which voids its approvals."""
    files = {"model.safetensors": weights, "architecture.json": architecture}
    given = {name: path for name, path in files.items() if path is not None}
    desk.finish(desk.client.model.register(ref, run=run_, tier=tier, files=given or None, **desk.sent))


@model.command()
@click.argument("ref", metavar=VERSION)
@immediate
def read(desk: Desk, ref: str) -> None:
    """Show a version: its files, checks, approvals and history, with who decided what."""
    desk.finish(desk.client.model.read(ref, **desk.sent))


@model.command()
@click.argument("ref", metavar=VERSION)
@click.option("--out", required=True, type=OUT, help="Zip file to write the model and its signature to.")
@click.option("--overwrite", is_flag=True, help="Write over a file that exists.")
@waiting
def download(desk: Desk, ref: str, *, out: Path, overwrite: bool) -> None:
    """Fetch the files of a version with their signature."""
    desk.save(desk.client.model.download(ref, **desk.sent), out, overwrite=overwrite)


@model.command()
@click.argument("ref", metavar=VERSION)
@click.option(
    "--kind", "kinds", multiple=True, type=click.Choice(CHECKS), help="Check to run; all if not given. Repeatable."
)
@mutation
def check(desk: Desk, ref: str, *, kinds: tuple[str, ...]) -> None:
    """Check a version on held-out data."""
    desk.finish(desk.client.model.check(ref, kinds=words(kinds) or None, **desk.sent))


@model.command()
@click.argument("ref", metavar=VERSION)
@click.option("--to", "stage", required=True, type=STAGE, help="Stage.")
@click.option("--region", help="Region; the tenant's own if not given.")
@click.option("--reason", help="Why.")
@click.option("--ticket", help="Change ticket it is under; fetch it first, by licet ticket fetch.")
@mutation
def promote(desk: Desk, ref: str, *, stage: str, region: str | None, reason: str | None, ticket: str | None) -> None:
    """Promote a version to a stage."""
    desk.finish(desk.client.model.promote(ref, stage=stage, region=region, reason=reason, ticket=ticket, **desk.sent))


@model.command(name="roll-back")
@click.argument("ref", metavar=VERSION)
@click.option("--stage", type=STAGE, default="prod", show_default=True, help="Stage that it holds.")
@click.option("--reason", help="Why.")
@mutation
def roll_back(desk: Desk, ref: str, *, stage: str, reason: str | None) -> None:
    """Return the stage that a version holds to the version before."""
    desk.finish(desk.client.model.roll_back(ref, stage=stage, reason=reason, **desk.sent))


@model.command()
@click.argument("ref", metavar=VERSION)
@mutation
def retire(desk: Desk, ref: str) -> None:
    """Take a version off every stage for good."""
    desk.finish(desk.client.model.retire(ref, **desk.sent))


@model.command()
@click.argument("ref", metavar=VERSION)
@mutation
def delete(desk: Desk, ref: str) -> None:
    """Destroy the files of a version; the record that they were there stays."""
    desk.finish(desk.client.model.delete(ref, **desk.sent))


lister(model, "models", "List the model versions of a tenant.")
