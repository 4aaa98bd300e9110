"""``licet verify``: evidence and attestations, offline, against a trust root that you hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from licet_engine.commands.desk import guarded
from licet_engine.commands.options import format_option

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_compiled: dict[str, Any] = {}


def replay(record: Mapping[str, Any], facts: list[Mapping[str, Any]], bundle: Mapping[str, Any]) -> object:
    """Evaluate a decision of an archive again; raises if the outcome is another."""
    import hashlib  # noqa: PLC0415  # Only a replay needs what follows.

    from licet_attestations import canonical  # noqa: PLC0415  # As above.
    from licet_engine.decide import record as records  # noqa: PLC0415  # As above.
    from licet_engine.decide.bundle import CompiledBundle  # noqa: PLC0415  # As above.

    name = str(record["bundle"])
    if name not in _compiled:
        _compiled.clear()  # Bundles come one after the other.
        _compiled[name] = CompiledBundle.from_bytes(canonical.dumps(bundle))
    named = {hashlib.sha256(data).hexdigest(): data for data in map(canonical.dumps, facts)}
    # It compares the digest of the bundle with the one in the record itself.
    return records.replay(canonical.dumps(record), named, _compiled[name])


@click.command()
@click.argument("archive", type=click.Path(path_type=Path))
@click.option(
    "--trust-root",
    required=True,
    type=click.Path(path_type=Path),
    help="The public keys that you pin. Get them by another way than the archive.",
)
@click.option("--tenant", help="Whose archive it must be.")
@click.option(
    "--tlog-policy",
    "policy",
    type=click.Path(path_type=Path),
    help="Your witnesses and their quorum (C2SP tlog-policy).",
)
@click.option(
    "--logged",
    "entry",
    type=click.Path(path_type=Path),
    help="The log entry that names it, beside an attestation that was exported.",
)
@click.option("--replay", "replayed", is_flag=True, help="Evaluate every decision again; needs 'licet[decide]'.")
@click.option("--explain", "explained", is_flag=True, help="Tell what each step shows, and how.")
@format_option("json", "junit")
@guarded
def verify(  # noqa: PLR0917  # The options, as click hands them over.
    archive: Path,
    trust_root: Path,
    tenant: str | None,
    policy: Path | None,
    entry: Path | None,
    format_: str,
    *,
    replayed: bool,
    explained: bool,
) -> None:
    """Verify the evidence ARCHIVE, or a single attestation, offline. Exit 0: verified; 1: not verified; 2: could not run."""
    from licet_attestations.__main__ import verify_command  # noqa: PLC0415  # An auditor's command starts fast.

    if replayed:
        import licet_engine.decide.record  # noqa: F401, PLC0415  # What is missing is said before, not blamed on the archive.
    run: Callable[..., None] | None = verify_command.callback
    if run is None:
        raise click.UsageError("the verifier is not there")
    run(
        archive=archive,
        trust_root=trust_root,
        tenant=tenant,
        policy=policy,
        entry=entry,
        replay_name=f"{__name__}:replay" if replayed else None,
        format_=format_,
        explained=explained,
    )
