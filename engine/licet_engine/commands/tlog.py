"""``licet log witness``, ``vkey``, ``mirror`` and ``verify-mirror``: what an auditor runs on a machine of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.witness_server import witness_command
from licet_engine.commands.data import OUT
from licet_engine.commands.desk import local, remote
from licet_engine.commands.failures import EXIT_DENIED
from licet_engine.commands.progress import Progress
from licet_engine.commands.text import clean

if TYPE_CHECKING:
    from licet_attestations.mirror import Mirrored, Place
    from licet_attestations.tlogpolicy import Policy
    from licet_engine.commands.desk import Desk

COMMANDS: list[click.Command] = [witness_command]

_TRUST_ROOT = click.option(
    "--trust-root",
    required=True,
    type=click.Path(path_type=Path),
    help="The public keys that you pin. Get them by another way than the log.",
)
_POLICY = click.option(
    "--tlog-policy",
    "policy",
    type=click.Path(path_type=Path),
    help="Your witnesses and their quorum (C2SP tlog-policy).",
)


def _policy(path: Path | None) -> Policy | None:
    from licet_attestations.__main__ import read_policy  # noqa: PLC0415  # Only these commands need it.

    return None if path is None else read_policy(path)


@click.command()
@click.argument("tenant")
@_TRUST_ROOT
@local
def vkey(tenant: str, trust_root: Path, format_: str) -> None:
    """Show the key of a tenant's log in C2SP form, for licet log witness --log and for other people's tools."""
    from licet_attestations.__main__ import read_trust_root  # noqa: PLC0415  # As above.
    from licet_attestations.checkpoint import verifier_key  # noqa: PLC0415  # As above.
    from licet_attestations.leaf import is_tenant  # noqa: PLC0415  # As above.

    if not is_tenant(tenant):
        raise click.BadParameter(f"{tenant!r} is not a tenant", param_hint="TENANT")
    trust = read_trust_root(trust_root)
    keys = [verifier_key(trust.origin(tenant), key) for key in trust.keys("log")]
    if not keys:
        raise FormatError(f"{trust_root} has no key of a log")
    click.echo(json.dumps({"vkeys": keys}, indent=2) if format_ == "json" else "\n".join(keys))


@click.command()
@click.argument("tenant")
@_TRUST_ROOT
@_POLICY
@click.option("--out", type=OUT, help="Folder of the mirror; made if it is not there.")
@click.option("--to", metavar="s3://BUCKET/PREFIX", help="Bucket of the mirror; credentials by the standard AWS chain.")
@click.option("--s3-endpoint", default="", metavar="URL", help="Of another S3 service than AWS's.")
@remote
def mirror(  # noqa: PLR0917  # The options, as click hands them over.
    desk: Desk, tenant: str, trust_root: Path, policy: Path | None, out: Path | None, to: str | None, s3_endpoint: str
) -> None:
    """Bring a mirror of a tenant's log up to date, as static files (C2SP tlog-tiles). It never goes backwards."""
    from licet_attestations.__main__ import read_trust_root  # noqa: PLC0415  # As above.
    from licet_attestations.mirror import update  # noqa: PLC0415  # As above.

    place = _place(out, to, s3_endpoint)
    found = update(
        place,
        lambda path: desk.client.log.file(tenant, path),
        read_trust_root(trust_root),
        tenant,
        _policy(policy),
    )
    desk.show(_told(found), [f"mirrored {_line(found)}, {found.added} new"])


@click.command(name="verify-mirror")
@click.argument("folder", type=OUT)
@_TRUST_ROOT
@_POLICY
@click.option("--tenant", help="Whose log it must be.")
@local
def verify_mirror(folder: Path, trust_root: Path, policy: Path | None, tenant: str | None, format_: str) -> None:
    """Verify a mirror offline: every entry, every tile, the checkpoint. Exit 0: verified; 1: not verified; 2: could not run."""
    from licet_attestations import mirror as mirrors  # noqa: PLC0415  # As above.
    from licet_attestations.__main__ import read_trust_root  # noqa: PLC0415  # As above.
    from licet_attestations.checkpoint import MAX_NOTE_BYTES  # noqa: PLC0415  # As above.

    trust, witnesses = read_trust_root(trust_root), _policy(policy)
    place = mirrors.FolderPlace(folder)
    progress = Progress(format_)
    try:
        note = place.read("checkpoint", MAX_NOTE_BYTES) or b""
        whose = tenant or mirrors.tenant_of(note, trust)
        found = mirrors.verify_mirror(
            place, trust, whose, witnesses, lambda done, size: progress.tell(whose, done, size)
        )
    except VerificationError as error:
        if format_ == "json":
            click.echo(json.dumps({"verified": False, "where": error.where, "problem": str(error)}, indent=2))
        else:
            click.echo(f"NOT verified, in {clean(error.where or folder)}: {clean(str(error))}", err=True)
        raise click.exceptions.Exit(EXIT_DENIED) from error
    if format_ == "json":
        click.echo(json.dumps({"verified": True, **_told(found)}, indent=2))
    else:
        click.echo(f"verified: {_line(found)}")
        if witnesses is None:
            click.echo("Who else saw this log was not asked: name your witnesses with --tlog-policy.")


def _told(found: Mirrored) -> dict[str, Any]:
    head = found.checkpoint
    return {
        "origin": head.origin,
        "size": head.size,
        "root_hex": head.root.hex(),
        "cosigned_by": list(found.cosigners),
        "added": found.added,
    }


def _line(found: Mirrored) -> str:
    cosigned = f", cosigned by {', '.join(found.cosigners)}" if found.cosigners else ""
    return clean(f"{found.checkpoint.origin}, {found.checkpoint.size} entries{cosigned}")


def _place(out: Path | None, to: str | None, endpoint: str) -> Place:
    if (out is None) == (to is None):
        raise click.UsageError("name one of --out FOLDER and --to s3://BUCKET/PREFIX")
    if out is not None:
        from licet_attestations.mirror import FolderPlace  # noqa: PLC0415  # As above.

        return FolderPlace(out)
    parts = urlsplit(to or "")
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise click.BadParameter(f"{to!r} is not s3://BUCKET/PREFIX", param_hint="--to")
    from licet_adapters.s3_mirror import S3Place  # noqa: PLC0415  # Needs the extra s3.

    prefix = parts.path.strip("/")
    return S3Place(parts.netloc, f"{prefix}/" if prefix else "", endpoint, "path" if endpoint else "auto")


COMMANDS += [vkey, mirror, verify_mirror]
