"""``licet webhook``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from licet_engine.commands.desk import immediate, remote
from licet_engine.commands.options import SECONDS, words
from licet_engine.commands.people import refuse_taken, write_token
from licet_engine.commands.render import list_lines
from licet_engine.commands.text import clean, time_text

if TYPE_CHECKING:
    from licet_engine.client_values import Answer
    from licet_engine.commands.desk import Desk

_WEBHOOK = "TENANT/NAME"
_SECRET_OUT = click.option(
    "--out", type=click.Path(path_type=Path), help="File to write the secret to, mode 0600, instead of showing it."
)


@click.group()
def webhook() -> None:
    """Webhooks: create, list, test, history, redeliver, rotate, delete."""


@webhook.command()
@click.argument("ref", metavar=_WEBHOOK)
@click.option("--address", required=True, help="https address that is told.")
@click.option("--event", "events", multiple=True, help="Event it is told of; all if not given. Repeatable.")
@click.option("--unsafe-http", is_flag=True, help="The address is plain http on the server's own machine.")
@_SECRET_OUT
@immediate
def create(desk: Desk, ref: str, *, address: str, events: tuple[str, ...], unsafe_http: bool, out: Path | None) -> None:
    """Create a webhook. Its secret, by which the receiver verifies messages, is shown this once."""
    refuse_taken(out)
    answer = desk.client.webhook.create(
        ref, address, events=words(events) or None, unsafe_http=unsafe_http or None, **desk.sent
    )
    _hand_over(desk, answer, out)


def _hand_over(desk: Desk, answer: Answer, out: Path | None) -> None:
    """Show a secret this once, or write it to a file that only its owner can read."""
    secret = answer.result.get("secret")
    if out is not None and isinstance(secret, str):
        write_token(out, secret)
        kept = {name: value for name, value in answer.result.items() if name != "secret"}
        answer = replace(answer, result={**kept, "secret_file": str(out)})
    desk.finish(answer)


@webhook.command()
@click.argument("ref", metavar=_WEBHOOK)
@click.option(
    "--overlap",
    type=SECONDS,
    default="1d",
    show_default=True,
    help="How long messages are signed with the old secret as well; 0s if it leaked.",
)
@_SECRET_OUT
@immediate
def rotate(desk: Desk, ref: str, *, overlap: float, out: Path | None) -> None:
    """Give a webhook a new secret, which is shown this once."""
    refuse_taken(out)
    _hand_over(desk, desk.client.webhook.rotate(ref, overlap_s=int(overlap), **desk.sent), out)


@webhook.command()
@click.argument("ref", metavar=_WEBHOOK)
@immediate
def delete(desk: Desk, ref: str) -> None:
    """Delete a webhook: it is told nothing more, and its secret is gone."""
    desk.finish(desk.client.webhook.delete(ref, **desk.sent))


@webhook.command()
@click.argument("ref", metavar=_WEBHOOK)
@immediate
def test(desk: Desk, ref: str) -> None:
    """Send a webhook a message that means nothing; licet webhook history shows what came of it."""
    desk.finish(desk.client.webhook.test(ref, **desk.sent))


@webhook.command()
@click.argument("tenant")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many at most.")
@remote
def history(desk: Desk, tenant: str, limit: int) -> None:
    """Show what was sent to webhooks, the newest first, with every try."""
    rows = desk.client.list(tenant, "messages", limit=limit)
    lines = list_lines("messages", rows)
    for row in rows:
        lines += [
            clean(f"  {row['id']}  try {one['number']}  {time_text(one['at_ms'])}  {one['status']}  {one['reason']}")
            for one in row["history"]
        ]
    desk.show({"items": rows}, lines)


@webhook.command()
@click.argument("ref", metavar=_WEBHOOK)
@click.argument("message")
@immediate
def redeliver(desk: Desk, ref: str, message: str) -> None:
    """Send a message that ended again, delivered or not, under the same identifier."""
    desk.finish(desk.client.webhook.redeliver(ref, message, **desk.sent))


@webhook.command(name="list")
@click.argument("tenant")
@click.option("--all", "is_all", is_flag=True, help="Also those that were deleted.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many at most.")
@remote
def list_(desk: Desk, tenant: str, limit: int, *, is_all: bool) -> None:
    """List the webhooks of a tenant, the newest first."""
    what = "all-webhooks" if is_all else "webhooks"
    rows = desk.client.list(tenant, what, limit=limit)
    desk.show({"items": rows}, list_lines(what, rows))
