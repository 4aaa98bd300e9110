"""``licet probe``: everything there is, tried across tenants."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from licet_engine.commands.data import OUT
from licet_engine.commands.desk import remote
from licet_engine.commands.failures import EXIT_DONE, EXIT_ERROR
from licet_engine.commands.text import clean

if TYPE_CHECKING:
    from pathlib import Path

    from licet_engine.commands.desk import Desk
    from licet_engine.probing import Probed


@click.group()
def probe() -> None:
    """Active probes: run."""


@probe.command(name="run")
@click.option("--owner", required=True, metavar="TENANT", help="Whose canary resources are tried.")
@click.option("--attest", is_flag=True, help="Have the result signed and logged in the owner's log, on this machine.")
@click.option("--data", type=OUT, help="With --attest: folder of the installation; LICET_DATA or ./data if not given.")
@remote
def run_probes(desk: Desk, owner: str, data: Path | None, *, attest: bool) -> None:
    """Try every action on the canary resources of OWNER, with a token of another tenant. Exit 0: all denied; 2: not.

    What is tried is meant: where it were allowed, it would be done. Use it against a tenant made for it, or resources named canary.
    """
    from licet_engine import probing  # noqa: PLC0415  # It needs what a server needs.

    if attest:
        _require_signer(data)
    found = probing.probe(desk.client.http, owner)
    told = found.to_dict()
    lines = [f"{found.tried} tried on {clean(owner)}, {len(found.allowed)} allowed, {len(found.told_apart)} told apart"]
    for word in ("allowed", "told_apart", "not_tried"):
        lines += [clean(f"  {word.replace('_', ' ')}: {each}") for each in told[word]]
    if attest:
        told["attestation"] = _attest(found, owner, data)
        lines.append(f"attested as {told['attestation']}")
    desk.show(told, lines)
    raise click.exceptions.Exit(EXIT_DONE if found.holds else EXIT_ERROR)


def _require_signer(data: Path | None) -> None:
    from licet_engine.attester import require_signer  # noqa: PLC0415  # Servers only.
    from licet_engine.settings import load_settings  # noqa: PLC0415  # As above.

    require_signer(load_settings(data=data))


def _attest(found: Probed, owner: str, data: Path | None) -> str:
    from licet_engine.attester import attest_and_log  # noqa: PLC0415  # Servers only.
    from licet_engine.domain.refs import now_ms  # noqa: PLC0415  # As above.
    from licet_engine.probing import probes_statement  # noqa: PLC0415  # As above.
    from licet_engine.settings import load_settings  # noqa: PLC0415  # As above.

    return attest_and_log(load_settings(data=data), {owner: probes_statement(found, owner, now_ms()).to_bytes()})[owner]
