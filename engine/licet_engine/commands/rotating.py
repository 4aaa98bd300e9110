"""``licet keys rotate``, ``compromised``, ``rotations`` and ``follow``: a key of the signer gives way, and a pinned trust root follows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from licet_engine.commands.data import OUT
from licet_engine.commands.desk import local, refuse_present, remote
from licet_engine.commands.options import Moment
from licet_engine.commands.text import clean

if TYPE_CHECKING:
    from licet_attestations.trustroot import Purpose
    from licet_engine.commands.desk import Desk
    from licet_engine.rotating import Rotated

_MAX_STATEMENTS_BYTES = 64 << 20
_PURPOSES = ("log", "attestation", "warrant", "model")
_OUT = click.option(
    "--out", type=OUT, help="File to write the signed statement to, one a line, for those who pin the trust root."
)
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Write over a file that exists.")
_DATA = click.option("--data", type=OUT, help="Folder of the installation; LICET_DATA or ./data if not given.")


@click.command()
@click.argument("purpose", type=click.Choice(_PURPOSES))
@_OUT
@_OVERWRITE
@_DATA
@local
def rotate(purpose: Purpose, out: Path | None, data: Path | None, format_: str, *, overwrite: bool) -> None:
    """Put a fresh key in the place of the one for PURPOSE, and log it, in an installation that is stopped. The old key is erased."""
    from licet_engine.rotating import rotate as rotate_key  # noqa: PLC0415  # Operators only.
    from licet_engine.settings import load_settings  # noqa: PLC0415  # As above.

    if out is not None:
        refuse_present(out, overwrite=overwrite)
    settings = load_settings(data=data)
    _tell(rotate_key(settings, purpose), settings.trust_root, out, format_)


@click.command()
@click.argument("keyid")
@click.option(
    "--from", "from_ms", required=True, type=Moment(), help="The first moment at which others may have had it."
)
@_OUT
@_OVERWRITE
@_DATA
@local
def compromised(
    keyid: str, from_ms: int, out: Path | None, data: Path | None, format_: str, *, overwrite: bool
) -> None:
    """Declare the key KEYID compromised from a moment on, and log it, in an installation that is stopped.

    KEYID is as licet keys show --trust-root FILE tells it, or its first eight digits or more. What it signed later counts for nothing, nor what cannot be shown to be
    from before. A key that counts still is rotated first. It can be declared again from an earlier moment, and is never taken back.
    """
    from licet_engine.rotating import declare_compromised  # noqa: PLC0415  # Operators only.
    from licet_engine.settings import load_settings  # noqa: PLC0415  # As above.

    if out is not None:
        refuse_present(out, overwrite=overwrite)
    settings = load_settings(data=data)
    _tell(declare_compromised(settings, keyid, from_ms), settings.trust_root, out, format_)


def _tell(done: Rotated, path: Path, out: Path | None, format_: str) -> None:
    from licet_attestations import rotation  # noqa: PLC0415  # Operators only.

    if out is not None:
        out.write_bytes(b"".join(statement + b"\n" for statement in done.statements))
    told = {
        "before": rotation.digest_hex(done.before),
        "after": rotation.digest_hex(done.after),
        "logged": list(done.digests_hex),
        "trust_root": str(path),
    }
    if format_ == "json":
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(f"trust root {told['before'][:16]} gave way to {told['after'][:16]}, in {path}")
    click.echo(f"logged with the platform as {', '.join(done.digests_hex)}")
    click.echo("Who pins the old one follows it with: licet keys follow STATEMENT --trust-root OLD --out NEW")
    if rotation.current(done.after, "log") not in done.before.trusted:
        click.echo("Policies of witnesses, and mirrors, name the key of a log: give them the new one (licet log vkey).")


@click.command()
@click.argument("statements", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="STATEMENT...")
@click.option("--trust-root", required=True, type=click.Path(path_type=Path), help="The public keys that you pin.")
@click.option("--out", required=True, type=OUT, help="File to write the trust root that follows to.")
@click.option("--overwrite", is_flag=True, help="Write over a file that exists.")
@local
def follow(statements: tuple[Path, ...], trust_root: Path, out: Path, format_: str, *, overwrite: bool) -> None:
    """Follow rotations and compromises of keys from the trust root that you pin, offline, and write the one that follows. Exit 1: they do not lead on."""
    from licet_attestations import rotation  # noqa: PLC0415  # Auditors only.
    from licet_attestations.__main__ import NOT_VERIFIED, read_trust_root  # noqa: PLC0415  # As above.
    from licet_attestations.errors import VerificationError  # noqa: PLC0415  # As above.

    refuse_present(out, overwrite=overwrite)
    pinned = read_trust_root(trust_root)
    after, where = pinned, ""
    try:
        for path in statements:
            where = str(path)
            with path.open("rb") as stream:
                read = stream.read(_MAX_STATEMENTS_BYTES + 1)
            if not read.strip() or len(read) > _MAX_STATEMENTS_BYTES:
                what = "is longer than any can be" if read.strip() else "holds no statement"
                raise click.BadParameter(f"{where} {what}: name a file that `licet keys rotations` wrote")
            for data in read.splitlines():
                after = rotation.verify_rotation(data, after)
    except VerificationError as error:
        click.echo(f"NOT verified: {clean(where)}: {error}", err=True)
        raise click.exceptions.Exit(NOT_VERIFIED) from error
    out.write_bytes(after.to_json())
    told = {"before": rotation.digest_hex(pinned), "after": rotation.digest_hex(after), "file": str(out)}
    if format_ == "json":
        click.echo(json.dumps(told, indent=2))
    else:
        click.echo(f"Verified: trust root {told['before'][:16]} leads to {told['after'][:16]}, written to {out}")


@click.command()
@click.option("--out", required=True, type=OUT, help="Folder to write them to, numbered in their order.")
@click.option("--overwrite", is_flag=True, help="Write over files that exist.")
@remote
def rotations(desk: Desk, out: Path, *, overwrite: bool) -> None:
    """Fetch the signed statements of all rotations and compromises of the server's keys, and the log entries that name them."""
    from licet_attestations.attested import entry_file  # noqa: PLC0415  # Kept out of the start of other commands.
    from licet_attestations.canonical import dumps  # noqa: PLC0415  # Kept out of the start of other commands.

    desk.needs_token = False  # They are public.
    files = {}
    for number, found in enumerate(desk.client.rotations()["rotations"], 1):
        files[out / f"rotation-{number:04}.dsse.json"] = dumps(found["statement"])
        files[out / f"rotation-{number:04}.entry.json"] = entry_file("platform", found["logged"])
    out.mkdir(parents=True, exist_ok=True)
    for path in files:
        refuse_present(path, overwrite=overwrite)
    for path, data in files.items():
        path.write_bytes(data)
    lines = [f"written to {path}" for path in files] or ["no key was ever rotated"]
    desk.show({"files": [str(path) for path in files]}, lines)
