"""``python -m licet_attestations ARCHIVE --trust-root FILE``: verify an evidence archive, or a single attestation, offline.

Exit codes: 0 verified, 1 not verified, 2 could not run.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import click

from licet_attestations import attested, telling
from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.statement import ISOLATION_PAIR, tenant_of
from licet_attestations.tlogpolicy import MAX_POLICY_BYTES, Policy
from licet_attestations.trustroot import MAX_TRUST_ROOT_BYTES, TrustRoot
from licet_attestations.verify import Progress, Replay, verify_archive

NOT_VERIFIED = 1
COULD_NOT_RUN = 2


def _statement_in(path: Path) -> bytes | None:
    """The signed statement that a file holds; None where it is something else, which an archive then has to be."""
    with path.open("rb") as stream:
        data = stream.read(attested.MAX_BYTES + 1)
    if not data.startswith(b"{"):
        return None
    if len(data) > attested.MAX_BYTES:
        raise VerificationError("the statement is too long", step="1. form", where=path.name)
    return data


def _verify_statement(
    data: bytes, path: Path, trust: TrustRoot, *, tenant: str | None, entry: Path | None, format_: str
) -> None:
    """Verify a signed statement of any kind, and the entry of the log that names it, if that is given."""
    try:
        named = None
        if entry is not None:
            with entry.open("rb") as stream:
                named = attested.read_entry(stream.read(attested.MAX_ENTRY_BYTES + 1))
        found = attested.verify_attestation(data, trust, named)
        whose = tenant_of(found.claim.predicate)
        if tenant not in {None, whose}:
            raise VerificationError(f"the attestation is of tenant {whose!r}, not of {tenant!r}")
    except (FormatError, VerificationError) as error:
        is_entry = isinstance(error, FormatError) or error.step == "log entry"
        where = entry.name if entry is not None and is_entry else path.name
        raise VerificationError(str(error), step="log entry" if is_entry else "attestation", where=where) from error
    if format_ == "json":
        told = found.to_dict()
        if found.claim.predicate_type == ISOLATION_PAIR:
            told["isolation"] = dict(found.claim.predicate)
        click.echo(json.dumps(told, indent=2))
        return
    click.echo("\n".join(found.lines()))


def load_replay(name: str) -> Replay:
    """Import the replay ``MODULE:FUNCTION``.

    Raises:
        click.BadParameter: There is none of that name.
    """
    module, colon, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function) if colon else None
    except (ImportError, AttributeError, ValueError) as error:
        raise click.BadParameter(f"cannot import {name!r}: {error}") from error
    if not callable(found):
        raise click.BadParameter(f"{name!r} is not MODULE:FUNCTION")
    replay: Replay = found
    return replay


def read_policy(path: Path) -> Policy:
    """Read a tlog-policy.

    Raises:
        FormatError: The file cannot be read, or is none; says which file and which line.
    """
    role = f"{path}, given with --tlog-policy,"
    try:
        with path.open("rb") as stream:
            return Policy.from_bytes(stream.read(MAX_POLICY_BYTES + 1))
    except OSError as error:
        raise FormatError(f"{role} cannot be read: {error.strerror or error}") from error
    except FormatError as error:
        raise FormatError(f"{role} cannot be used: {error}") from error


def read_trust_root(path: Path) -> TrustRoot:
    """Read the trust root that is pinned.

    Raises:
        FormatError: The file cannot be read, or is none; says which file, and what it is for.
    """
    role = f"{path}, given with --trust-root,"
    try:
        with path.open("rb") as stream:
            return TrustRoot.from_json(stream.read(MAX_TRUST_ROOT_BYTES + 1))
    except OSError as error:
        raise FormatError(f"{role} cannot be read: {error.strerror or error}") from error
    except FormatError as error:
        raise FormatError(f"{role} cannot be used: {error}; name the file with the public keys that you pin") from error


@click.command(name="verify")
@click.argument("archive", type=click.Path(path_type=Path))
@click.option(
    "--trust-root",
    required=True,
    type=click.Path(path_type=Path),
    help="The public keys you pin. Get them by another way than the archive.",
)
@click.option("--tenant", help="Whose archive it must be.")
@click.option(
    "--tlog-policy",
    "policy",
    type=click.Path(path_type=Path),
    help="Your witnesses and their quorum (C2SP tlog-policy).",
)
@click.option("--replay", "replay_name", metavar="MODULE:FUNCTION", help="Evaluate every decision again with this.")
@click.option(
    "--logged",
    "entry",
    type=click.Path(path_type=Path),
    help="The log entry that names it, beside an attestation that was exported.",
)
@click.option("--explain", "explained", is_flag=True, help="Tell what each step shows, and how.")
@click.option("--format", "format_", type=click.Choice(["text", "json", "junit"]), default="text", show_default=True)
def verify_command(  # noqa: PLR0917  # The options, as click hands them over.
    archive: Path,
    trust_root: Path,
    tenant: str | None,
    policy: Path | None,
    replay_name: str | None,
    entry: Path | None,
    format_: str,
    *,
    explained: bool,
) -> None:
    """Verify the evidence ARCHIVE, or a single attestation, offline. Exit 0: verified; 1: not verified; 2: could not run."""
    replay = None if replay_name is None else load_replay(replay_name)
    try:
        trust = read_trust_root(trust_root)
        witnesses = None if policy is None else read_policy(policy)
        if (statement := _statement_in(archive)) is not None:
            if format_ == "junit":
                raise FormatError(
                    "JUnit tells of an archive's steps, and a single attestation has none: use --format json"
                )
            _verify_statement(statement, archive, trust, tenant=tenant, entry=entry, format_=format_)
            return
        if entry is not None:
            raise click.UsageError("--logged goes with a single attestation: an archive has its log in it")
        report = verify_archive(
            archive, trust, expected_tenant=tenant, replay=replay, policy=witnesses, progress=_progress(format_)
        )
    except VerificationError as error:
        click.echo(telling.failed(error, format_, explained=explained), err=format_ == "text")
        raise click.exceptions.Exit(NOT_VERIFIED) from error
    except (OSError, FormatError) as error:
        click.echo(telling.not_run(error, format_, archive.name), err=format_ != "json")
        raise click.exceptions.Exit(COULD_NOT_RUN) from error
    click.echo(telling.verified(report, format_, explained=explained))


def _progress(format_: str) -> Progress:
    """Tells people at a terminal how far it is; nobody else."""
    if format_ != "text" or not sys.stderr.isatty():
        return lambda _done, _count: None

    def tell(done: int, count: int) -> None:
        end = "\r" if done < count else "\r\033[K"
        click.echo(f"{done:,} of {count:,} entries{end}", nl=False, err=True)

    return tell


if __name__ == "__main__":
    verify_command(prog_name="python -m licet_attestations")
