"""``licet break-glass``: an operator looks, for a time, at what happened in a tenant that let them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from licet_engine.commands.data import lister
from licet_engine.commands.desk import immediate
from licet_engine.commands.options import SECONDS
from licet_engine.commands.render import list_lines

if TYPE_CHECKING:
    from licet_engine.commands.desk import Desk


@click.group(name="break-glass")
def break_glass() -> None:
    """An operator's time behind the glass: request, approve, look, end, review, list."""


@break_glass.command()
@click.argument("tenant")
@click.option("--reason", required=True, help="Why; the tenant reads it.")
@click.option("--for", "duration", type=SECONDS, default="1h", show_default=True, help="How long; at most 4h.")
@immediate
def request(desk: Desk, tenant: str, *, reason: str, duration: float) -> None:
    """Ask a tenant to let you look; tell its administrator the ID. For operators of the platform."""
    answer = desk.client.tenant.request_break_glass(tenant, reason, duration_s=int(duration), **desk.sent)
    desk.finish(answer)


@break_glass.command()
@click.argument("tenant")
@click.argument("identifier", metavar="ID")
@immediate
def approve(desk: Desk, tenant: str, *, identifier: str) -> None:
    """Let the operator look who asked under ID. For administrators of the tenant."""
    desk.finish(desk.client.tenant.approve_break_glass(tenant, identifier, **desk.sent))


@break_glass.command()
@click.argument("tenant")
@click.argument("identifier", metavar="ID")
@click.argument("what", type=click.Choice(["decisions", "operations", "log"]))
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True, help="How many at most.")
@immediate
def look(desk: Desk, tenant: str, *, identifier: str, what: str, limit: int) -> None:
    """Look at the newest decisions, operations or log headers of a tenant. Every look stands in its log."""
    answer = desk.client.tenant.break_glass(tenant, identifier, what, limit=limit, **desk.sent)
    if not answer.allowed:
        desk.finish(answer)
        return
    rows = list(answer.result.get("items") or ())
    desk.show({**answer.to_json(), "items": rows}, list_lines(what, rows))


@break_glass.command()
@click.argument("tenant")
@click.argument("identifier", metavar="ID")
@immediate
def end(desk: Desk, tenant: str, *, identifier: str) -> None:
    """End it before its time."""
    desk.finish(desk.client.tenant.end_break_glass(tenant, identifier, **desk.sent))


@break_glass.command()
@click.argument("tenant")
@click.argument("identifier", metavar="ID")
@click.option("--finding", required=True, help="What you found.")
@immediate
def review(desk: Desk, tenant: str, *, identifier: str, finding: str) -> None:
    """Say what you found in the log when it was over. For compliance and security of the tenant."""
    desk.finish(desk.client.tenant.review_break_glass(tenant, identifier, finding, **desk.sent))


lister(break_glass, "break-glasses", "List every time of an operator behind the glass; of all tenants, for platform.")
