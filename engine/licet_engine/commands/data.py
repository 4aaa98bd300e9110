"""``licet dataset`` and ``licet hold``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from licet_engine.commands.desk import immediate, mutation, remote, waiting
from licet_engine.commands.options import COLUMN, MOMENT, read_json_object, words
from licet_engine.commands.render import list_lines

if TYPE_CHECKING:
    from licet_engine.client_nouns import DatasetVerbs, EvidenceVerbs, ModelVerbs
    from licet_engine.commands.desk import Desk

CLASSIFICATION = click.Choice(["public", "internal", "confidential", "restricted"])
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
OUT = click.Path(path_type=Path)


@click.group()
def dataset() -> None:
    """Datasets: register, read, classify, archive, delete, list."""


@dataset.command()
@click.argument("ref", metavar="TENANT/NAME")
@click.option("--file", "file", required=True, type=FILE, help="CSV file with a header line.")
@click.option("--classification", required=True, type=CLASSIFICATION, help="How confidential it is.")
@click.option("--residency", required=True, multiple=True, help="Region it may be processed in. Repeatable.")
@click.option("--use", "uses", required=True, multiple=True, help="Use that the contract permits. Repeatable.")
@click.option("--expires", "expires_at_ms", required=True, type=MOMENT, help="When the right to use it ends.")
@click.option("--label", required=True, help="Column that models are to predict.")
@click.option("--protected", multiple=True, help="Column with an attribute protected by law. Repeatable.")
@click.option(
    "--missing",
    type=click.Choice(["refuse", "drop"]),
    default="refuse",
    show_default=True,
    help="What a row that lacks a value does: the whole table is refused, or the row dropped.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    type=COLUMN,
    help="How a column is written; all others are left out. Without it they are found by looking. Repeatable.",
)
@click.option(
    "--columns",
    "columns_file",
    type=FILE,
    help='JSON object {"NAME": "number" or "yes-no"} in place of --column; --column wins over it.',
)
@click.option("--purpose", help="Why it is kept.")
@mutation
def register(
    desk: Desk,
    ref: str,
    *,
    file: Path,
    classification: str,
    residency: tuple[str, ...],
    uses: tuple[str, ...],
    expires_at_ms: int,
    label: str,
    protected: tuple[str, ...],
    missing: str,
    columns: tuple[tuple[str, str], ...],
    columns_file: Path | None,
    purpose: str | None,
) -> None:
    """Register a CSV file as a dataset, with all that binds it."""
    given = {} if columns_file is None else read_json_object(columns_file, "--columns")
    written = dict(COLUMN.checked(name, kind, "--columns") for name, kind in given.items()) | dict(columns)
    answer = desk.client.dataset.register(
        ref,
        file,
        classification=classification,
        residency=words(residency),
        uses=words(uses),
        expires_at_ms=expires_at_ms,
        label=label,
        protected=words(protected),
        missing=missing,
        columns=written or None,
        purpose=purpose,
        **desk.sent,
    )
    desk.finish(answer)


@dataset.command()
@click.argument("ref", metavar="TENANT/NAME")
@click.option("--out", required=True, type=OUT, help="File to write the rows to.")
@click.option("--overwrite", is_flag=True, help="Write over a file that exists.")
@waiting
def read(desk: Desk, ref: str, *, out: Path, overwrite: bool) -> None:
    """Read the rows of a dataset into a file."""
    desk.save(desk.client.dataset.read(ref, **desk.sent), out, overwrite=overwrite)


@dataset.command()
@click.argument("ref", metavar="TENANT/NAME")
@click.option("--classification", type=CLASSIFICATION, help="How confidential it is.")
@click.option("--residency", multiple=True, help="Region it may be processed in. Repeatable.")
@click.option("--use", "uses", multiple=True, help="Use that the contract permits. Repeatable.")
@click.option("--expires", "expires_at_ms", type=MOMENT, help="When the right to use it ends.")
@immediate
def classify(
    desk: Desk,
    ref: str,
    *,
    classification: str | None,
    residency: tuple[str, ...],
    uses: tuple[str, ...],
    expires_at_ms: int | None,
) -> None:
    """Change what binds a dataset and everything made from it; what is left out stays."""
    answer = desk.client.dataset.classify(
        ref,
        classification=classification,
        residency=words(residency) or None,
        uses=words(uses) or None,
        expires_at_ms=expires_at_ms,
        **desk.sent,
    )
    desk.finish(answer)


@dataset.command()
@click.argument("ref", metavar="TENANT/NAME")
@immediate
def archive(desk: Desk, ref: str) -> None:
    """Close a dataset for new runs; what was made from it stays."""
    desk.finish(desk.client.dataset.archive(ref, **desk.sent))


@dataset.command()
@click.argument("ref", metavar="TENANT/NAME")
@mutation
def delete(desk: Desk, ref: str) -> None:
    """Destroy the rows of a dataset; the record that they were there stays."""
    desk.finish(desk.client.dataset.delete(ref, **desk.sent))


def lister(group: click.Group, what: str, summary: str, *, name: str = "list") -> None:
    """Give a group its command that lists what there is of it."""

    @group.command(name=name, help=summary)
    @click.argument("tenant")
    @click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many at most.")
    @remote
    def list_(desk: Desk, tenant: str, limit: int) -> None:
        rows = desk.client.list(tenant, what, limit=limit)
        desk.show({"items": rows}, list_lines(what, rows))


lister(dataset, "datasets", "List the datasets of a tenant.")


@click.group()
def hold() -> None:
    """Holds on datasets, model versions and a tenant's evidence: place, lift, list."""


@hold.command()
@click.argument("ref", metavar="TENANT[/NAME[@VERSION]]")
@click.option("--reason", required=True, help="Why.")
@mutation
def place(desk: Desk, ref: str, *, reason: str) -> None:
    """Place a hold: nothing of it, or made from it, is deleted until it is lifted. On TENANT alone: no record of its log is erased."""
    desk.finish(_held(desk, ref).hold(ref, reason, **desk.sent))


@hold.command()
@click.argument("ref", metavar="TENANT[/NAME[@VERSION]]")
@click.option("--reason", required=True, help="Why.")
@mutation
def lift(desk: Desk, ref: str, *, reason: str) -> None:
    """Lift every hold on a dataset, a model version or, on TENANT alone, its evidence."""
    desk.finish(_held(desk, ref).lift_hold(ref, reason, **desk.sent))


def _held(desk: Desk, ref: str) -> ModelVerbs | DatasetVerbs | EvidenceVerbs:
    client = desk.client
    return client.model if "@" in ref else client.dataset if "/" in ref else client.evidence


lister(hold, "holds", "List the holds in a tenant.")
