"""``licet approval`` and ``licet ticket``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from licet_engine.commands.data import lister
from licet_engine.commands.desk import immediate, mutation, remote
from licet_engine.commands.models import TRACK, VERSION, model
from licet_engine.commands.options import SECONDS
from licet_engine.commands.render import list_lines
from licet_engine.commands.text import clean, labelled

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from licet_engine.commands.desk import Desk


@click.group()
def approval() -> None:
    """Approvals: what waits for you, request, approve, reject, withdraw, delegate, ..."""


def _request(desk: Desk, ref: str, *, track: str, reason: str | None) -> None:
    """Ask a track for its approval of a version as it stands."""
    desk.finish(desk.client.model.request(ref, track, reason=reason, **desk.sent))


def _approve(
    desk: Desk, ref: str, *, track: str, reason: str | None, binding: str | None, on_behalf_of: str | None
) -> None:
    """Approve a version for a track, exactly as it stands: any change to it voids the approval."""
    given = desk.client.model.approve(
        ref, track, reason=reason, binding=binding, on_behalf_of=on_behalf_of, **desk.sent
    )
    desk.finish(given)


def _reject(
    desk: Desk, ref: str, *, track: str, reason: str | None, binding: str | None, on_behalf_of: str | None
) -> None:
    """Reject a version for a track, and withdraw what the track approved before."""
    given = desk.client.model.approve(
        ref, track, verdict="rejected", reason=reason, binding=binding, on_behalf_of=on_behalf_of, **desk.sent
    )
    desk.finish(given)


def _verdict(
    group: click.Group, name: str, function: Callable[..., None], *, reason_required: bool, bound: bool
) -> None:
    """Give a group a command on the approval of a version."""
    command: Callable[..., Any] = mutation(function) if bound else immediate(function)
    if bound:
        command = click.option(
            "--for", "on_behalf_of", help="Reviewer in whose place you give it: who delegated the track to you."
        )(command)
        told = "Binding that was reviewed, or its first 16 characters; refused if it is another by now."
        command = click.option("--binding", required=name == "approve", help=told)(command)
    command = click.option("--reason", required=reason_required, help="Why.")(command)
    command = click.option("--track", required=True, type=TRACK, help="Track.")(command)
    group.command(name=name)(click.argument("ref", metavar=VERSION)(command))


for _group in (model, approval):
    _verdict(_group, "request", _request, reason_required=False, bound=False)
    _verdict(_group, "approve", _approve, reason_required=True, bound=True)
    _verdict(_group, "reject", _reject, reason_required=True, bound=True)


@approval.command()
@click.argument("ref", metavar=VERSION)
@click.option("--track", required=True, type=TRACK, help="Track.")
@click.option("--request", "is_request", is_flag=True, help="Withdraw your request, not your approval.")
@click.option("--reason", help="Why.")
@immediate
def withdraw(desk: Desk, ref: str, *, track: str, reason: str | None, is_request: bool) -> None:
    """Withdraw an approval that you gave, before the version is in prod; or a request that you made."""
    verbs = desk.client.model
    act = verbs.withdraw_request if is_request else verbs.withdraw_approval
    desk.finish(act(ref, track, reason=reason, **desk.sent))


@approval.command()
@click.argument("ref", metavar="TENANT/PERSON")
@click.option("--track", required=True, type=TRACK, help="Track.")
@click.option("--for", "duration_s", required=True, type=SECONDS, help="For how long, such as 5d; thirty days at most.")
@click.option("--reason", help="Why.")
@immediate
def delegate(desk: Desk, ref: str, *, track: str, duration_s: float, reason: str | None) -> None:
    """Have a person stand in for you on a track, from now on, for a time."""
    until_ms = int((time.time() + duration_s) * 1000)
    desk.finish(desk.client.approval.delegate(ref, track, until_ms=until_ms, reason=reason, **desk.sent))


@approval.command(name="revoke-delegation")
@click.argument("ref", metavar="TENANT/PERSON")
@click.option("--track", required=True, type=TRACK, help="Track.")
@click.option("--reviewer", help="Reviewer who delegated it; you if not given.")
@immediate
def revoke_delegation(desk: Desk, ref: str, *, track: str, reviewer: str | None) -> None:
    """Revoke a delegation to a person at once; what they approved meanwhile stays."""
    desk.finish(desk.client.approval.revoke_delegation(ref, track, reviewer=reviewer, **desk.sent))


@approval.command(name="list")
@click.argument("tenant")
@click.option("--all", "is_all", is_flag=True, help="Every request and approval, not only what waits for you.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many at most.")
@remote
def list_(desk: Desk, tenant: str, limit: int, *, is_all: bool) -> None:
    """List what waits for you: open requests that you may answer, for yourself or in another's place, the oldest first."""
    if is_all:
        rows = desk.client.list(tenant, "approvals", limit=limit)
        desk.show({"items": rows}, list_lines("approvals", rows))
        return
    rows, is_cut = desk.client.inbox(tenant, limit=limit)
    lines = list_lines("inbox", rows) if rows else ["Nothing waits for you."]
    if is_cut:
        told = "more requests are open than are looked at: among the newest may be some for you that are not shown"
        lines.append(labelled("but", f"{told}; see licet approval list {clean(tenant)} --all"))
    for row in rows:
        if row.get("on_behalf_of"):
            told = f"you stand in for {row['on_behalf_of']}: approve or reject it with --for {row['on_behalf_of']}"
            lines.append(labelled(clean(f"{row['version']} {row['track']}  "), told))
        for name, told in (
            ("changed_since_request", "changed since it was asked for"),
            ("changed_since_approval", "changed since the approval before"),
        ):
            if row.get(name):
                lines.append(labelled(clean(f"{row['version']} {row['track']}  "), f"{told}: {', '.join(row[name])}"))
    desk.show({"items": rows, "is_cut": is_cut}, lines)


lister(approval, "delegations", "List the delegations of a tenant.", name="delegations")


@click.group()
def ticket() -> None:
    """Change tickets: fetch, list."""


@ticket.command()
@click.argument("tenant")
@click.argument("ticket")
@mutation
def fetch(desk: Desk, tenant: str, ticket: str) -> None:
    """Fetch a change ticket as it is now; name it in a promotion while it is fresh."""
    desk.finish(desk.client.ticket.fetch(tenant, ticket, **desk.sent))


lister(ticket, "tickets", "List the change tickets that were fetched.")
