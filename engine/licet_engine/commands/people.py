"""``licet tenant``, ``licet person`` and ``licet token``."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from licet_engine.commands.data import lister
from licet_engine.commands.desk import immediate, remote
from licet_engine.commands.options import PAIR, SECONDS, words
from licet_engine.commands.policy import PACKS_OPTIONS, chosen_packs
from licet_engine.commands.render import list_lines

if TYPE_CHECKING:
    from licet_engine.client_values import Answer
    from licet_engine.commands.desk import Desk

_TOKEN_OUT = click.option(
    "--out", type=click.Path(path_type=Path), help="File to write the token to, mode 0600, instead of showing it."
)


def _hand_over(desk: Desk, answer: Answer, out: Path | None) -> None:
    """Show a token this once, or write it to a file that only its owner can read."""
    token = answer.result.get("token")
    if out is None or not isinstance(token, str):
        desk.finish(answer)
        return
    write_token(out, token)
    kept = {name: value for name, value in answer.result.items() if name != "token"}
    desk.finish(replace(answer, result={**kept, "token_file": str(out)}))


def write_token(out: Path, token: str) -> None:
    """Write a token to a new file, mode 0600."""
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(token + "\n")


def refuse_taken(out: Path | None) -> None:
    """Refuse a file that exists, or cannot be made."""
    # A token that was issued and could not be written would be lost.
    if out is not None and (out.exists() or out.is_symlink() or not out.parent.is_dir()):
        raise click.BadParameter(f"{out} must be a new file in a folder that exists", param_hint="--out")


def _seconds(value: float | None) -> int | None:
    return None if value is None else int(value)


@click.group()
def tenant() -> None:
    """Tenants: create, administer, allot, suspend, resume, list, environments."""


@tenant.command()
@click.argument("tenant")
@click.option("--region", required=True, help="Region the tenant is at home in.")
@click.option("--administrator", help="Name of its first administrator; admin if not given.")
@PACKS_OPTIONS
@click.option(
    "--token-ttl",
    type=SECONDS,
    default="1d",
    show_default=True,
    help="How long the administrator's first token counts.",
)
@_TOKEN_OUT
@immediate
def create(
    desk: Desk,
    tenant: str,
    *,
    region: str,
    administrator: str | None,
    packs: tuple[str, ...],
    pack_parameters: tuple[tuple[str, object], ...],
    token_ttl: float,
    out: Path | None,
) -> None:
    """Create a tenant, its first administrator and a token for them. For operators of the platform."""
    refuse_taken(out)
    answer = desk.client.tenant.create(
        tenant,
        region=region,
        administrator=administrator,
        packs=chosen_packs(packs, pack_parameters) or None,
        token_ttl_s=int(token_ttl),
        **desk.sent,
    )
    _hand_over(desk, answer, out)


@tenant.command()
@click.argument("tenant")
@click.option(
    "--environment",
    "environments",
    multiple=True,
    type=PAIR,
    metavar="NAME=REGION",
    help="Declare an environment. Repeatable.",
)
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    type=PAIR,
    metavar="NAME=AMOUNT",
    help="Set a budget, such as training=100. Repeatable.",
)
@click.option("--approval-ttl", type=SECONDS, help="How long an approval counts, such as 90d.")
@click.option("--request-ttl", type=SECONDS, help="How long a request for approval waits.")
@click.option("--remind-before", type=SECONDS, help="How long before either ends a reminder is sent.")
@click.option(
    "--evidence-retention-days",
    type=click.IntRange(1),
    help="How many days what is logged is kept. Fewer count for what is logged from then on.",
)
@immediate
def administer(
    desk: Desk,
    tenant: str,
    environments: tuple[tuple[str, str], ...],
    budgets: tuple[tuple[str, str], ...],
    evidence_retention_days: int | None,
    **terms: float | None,
) -> None:
    """Declare environments, set budgets, and say how long approvals and requests last and evidence is kept."""
    for name, amount in budgets:
        if not amount.isascii() or not amount.isdigit():
            raise click.BadParameter(f"{name}={amount}: an amount is a whole number", param_hint="--budget")
    answer = desk.client.tenant.administer(
        tenant,
        environments=[{"name": name, "region": region} for name, region in environments] or None,
        budgets={name: int(amount) for name, amount in budgets} or None,
        approval_ttl_s=_seconds(terms["approval_ttl"]),
        request_ttl_s=_seconds(terms["request_ttl"]),
        remind_before_s=_seconds(terms["remind_before"]),
        evidence_retention_days=evidence_retention_days,
        **desk.sent,
    )
    desk.finish(answer)


@tenant.command()
@click.argument("tenant")
@click.option(
    "--devices", required=True, type=click.IntRange(0, 10_000), help="How many it may have at once; 0 for none."
)
@immediate
def allot(desk: Desk, tenant: str, devices: int) -> None:
    """Allot devices of the pool to a tenant. For operators of the platform."""
    desk.finish(desk.client.tenant.allot(tenant, devices=devices, **desk.sent))


_WHY = click.option("--reason", help="Why; it stands in the tenant's log.")


@tenant.command()
@click.argument("tenant")
@_WHY
@immediate
def suspend(desk: Desk, tenant: str, *, reason: str | None) -> None:
    """Suspend a tenant: it may only roll back, hold and export."""
    desk.finish(desk.client.tenant.suspend(tenant, reason=reason, **desk.sent))


@tenant.command()
@click.argument("tenant")
@_WHY
@immediate
def resume(desk: Desk, tenant: str, *, reason: str | None) -> None:
    """End the suspension of a tenant."""
    desk.finish(desk.client.tenant.suspend(tenant, suspended=False, reason=reason, **desk.sent))


@tenant.command(name="list")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many at most.")
@remote
def list_tenants(desk: Desk, limit: int) -> None:
    """List the tenants and their environments. For operators of the platform."""
    rows = desk.client.list("platform", "tenants", limit=limit)
    desk.show({"items": rows}, list_lines("tenants", rows))


lister(tenant, "environments", "List the environments of a tenant.", name="environments")


@click.group()
def device() -> None:
    """Devices of the pool: list."""


@device.command(name="list")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many at most.")
@remote
def list_devices(desk: Desk, limit: int) -> None:
    """List the devices and who has them. For operators of the platform."""
    rows = desk.client.list("platform", "devices", limit=limit)
    desk.show({"items": rows}, list_lines("devices", rows))


@click.group()
def person() -> None:
    """People and service accounts: administer, list."""


@person.command(name="administer")
@click.argument("ref", metavar="TENANT/NAME")
@click.option(
    "--kind",
    type=click.Choice(["person", "service"]),
    default="person",
    show_default=True,
    help="Person or service account.",
)
@click.option("--role", "roles", multiple=True, help="Role; all of them, those left out are taken away. Repeatable.")
@click.option("--active/--inactive", default=True, show_default=True, help="Whether it may do anything.")
@click.option("--owner", help="Person who answers for a service account.")
@click.option(
    "--qualified", multiple=True, help="Track on which the person may stand in for a reviewer; all of them. Repeatable."
)
@immediate
def administer_person(
    desk: Desk,
    ref: str,
    kind: str,
    roles: tuple[str, ...],
    owner: str | None,
    *,
    active: bool,
    qualified: tuple[str, ...],
) -> None:
    """Set a person or service account to be exactly this, and make it if it is new."""
    if owner is not None:
        # As everything is named with its tenant, so may the owner be; it is of the same tenant in any case.
        owner = owner.removeprefix(f"{ref.partition('/')[0]}/")
    answer = desk.client.person.administer(
        ref,
        kind=kind,
        roles=words(roles),
        active=active,
        owner=owner,
        qualified=words(qualified),
        **desk.sent,
    )
    desk.finish(answer)


lister(person, "people", "List the people and service accounts of a tenant.")


@click.group()
def token() -> None:
    """API tokens: issue, exchange, revoke, list."""


@token.command()
@click.argument("ref", metavar="TENANT/NAME")
@click.option("--label", help="What it is for.")
@click.option("--ttl", type=SECONDS, default="90d", show_default=True, help="How long it counts.")
@_TOKEN_OUT
@immediate
def issue(desk: Desk, ref: str, *, label: str | None, ttl: float, out: Path | None) -> None:
    """Issue a token to a person or service account; it is shown this once."""
    refuse_taken(out)
    _hand_over(desk, desk.client.token.issue(ref, label=label, ttl_s=int(ttl), **desk.sent), out)


@token.command()
@click.argument("ref", metavar="TENANT/NAME")
@click.argument("token_id", required=False)
@click.option("--all", "every", is_flag=True, help="Revoke every token of the person or service account.")
@immediate
def revoke(desk: Desk, ref: str, *, token_id: str | None, every: bool) -> None:
    """Revoke the token TOKEN_ID of a person or service account, or all of them."""
    if (token_id is None) != every:
        raise click.UsageError("name the token by TOKEN_ID, or say --all")
    desk.finish(desk.client.token.revoke(ref, token_id, every=every, **desk.sent))


lister(token, "tokens", "List the tokens of a tenant: everybody's, or else your own.")
