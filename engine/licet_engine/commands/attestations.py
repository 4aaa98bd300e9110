"""``licet attestation``: list, show, export and verify; decisions and policies that came into force, attested on demand."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from licet_engine.commands.data import OUT
from licet_engine.commands.desk import local, refuse_present, remote
from licet_engine.commands.oversight import split_reference
from licet_engine.commands.text import block, clean, labelled, time_text
from licet_engine.commands.verify import verify as verify_evidence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from licet_engine.commands.desk import Desk

KINDS = (
    *("approval", "decision", "deletion", "deployment", "export", "isolation", "key-compromise"),
    *("key-rotation", "model-bom", "policy"),
    *("promotion", "test-result", "traffic", "training", "warrant"),
)
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LABEL_CHARS = 12
_OUT = click.option("--out", type=OUT, help="Folder to write its files to.")
_OVERWRITE = click.option("--overwrite", is_flag=True, help="Write over files that exist.")


@click.group()
def attestation() -> None:
    """Attestations: list, show, export, verify; of decisions and policies on demand."""


@attestation.command(name="list")
@click.argument("tenant")
@click.option("--kind", type=click.Choice(KINDS), help="Of this kind alone; warrants are listed only so.")
@click.option("--about", default="", metavar="NAME", help="About this: a version, run, dataset, endpoint, decision.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="How many at most.")
@remote
def list_attestations(desk: Desk, tenant: str, kind: str | None, about: str, limit: int) -> None:
    """List the attestations of a tenant, the newest first."""
    found = desk.client.attestation.newest(tenant, kind=kind or "", about=about, limit=limit)
    lines = [
        clean(
            f"{time_text(row['at_ms'])}  {row['kind']:<12} {row['digest_hex']}  {', '.join(dict.fromkeys(row['about']))}"
        )
        for row in found
    ]
    none = (
        f"no attestation is about {about!r}: leave out --about to see what they are about"
        if about
        else "no attestations"
    )
    desk.show({"items": found}, lines or [none])


@attestation.command()
@click.argument("tenant")
@click.argument("digest")
@remote
def show(desk: Desk, tenant: str, digest: str) -> None:
    """Show what an attestation says, and where it stands in the log. DIGEST is as list tells it."""
    found = desk.client.attestation.read(tenant, _digest(digest))
    statement = _statement_of(found)
    lines = [
        labelled("kind", found.get("kind"), label_chars=_LABEL_CHARS),
        labelled("type", found.get("predicate_type"), label_chars=_LABEL_CHARS),
        labelled("log entry", found.get("leaf_index"), label_chars=_LABEL_CHARS),
        *(
            labelled("about", f"{one['name']} sha256 {one['digest']['sha256']}", label_chars=_LABEL_CHARS)
            for one in statement["subject"]
        ),
        *block(statement["predicate"]),
    ]
    desk.show({**found, "read": statement}, lines)


@attestation.command()
@click.argument("tenant")
@click.argument("digest")
@click.option("--out", required=True, type=OUT, help="Folder to write its files to.")
@_OVERWRITE
@remote
def export(desk: Desk, tenant: str, digest: str, *, out: Path, overwrite: bool) -> None:
    """Write an attestation as files: as it was signed, as a Sigstore bundle, and the log entry that names it with its proof."""
    _write(desk, tenant, desk.client.attestation.read(tenant, _digest(digest)), out, overwrite=overwrite)


@attestation.command()
@click.argument("ref", metavar="TENANT/ID")
@_OUT
@_OVERWRITE
@remote
def decision(desk: Desk, ref: str, *, out: Path | None, overwrite: bool) -> None:
    """Have a decision attested: a signed statement of its record, with the proof that it is in the log."""
    tenant, identifier = split_reference(ref, "TENANT/ID")
    _give(desk, tenant, desk.client.attestation.decision(tenant, identifier), out, overwrite=overwrite)


@attestation.command()
@click.argument("ref", metavar="TENANT/BUNDLE")
@_OUT
@_OVERWRITE
@remote
def policy(desk: Desk, ref: str, *, out: Path | None, overwrite: bool) -> None:
    """Have it attested that policies came into force, by activation or roll-back: of the last time that this bundle did."""
    tenant, slash, bundle = ref.partition("/")
    if not slash or not re.fullmatch(r"[0-9a-f]{8,64}", bundle):
        raise click.BadParameter(
            f"{ref!r} is not of the form TENANT/BUNDLE, with 8 to 64 hexadecimal digits", param_hint="TENANT/BUNDLE"
        )
    _give(desk, tenant, desk.client.attestation.policy(tenant, bundle), out, overwrite=overwrite)


@attestation.command()
@click.argument("tenant")
@click.argument("index", type=click.IntRange(0))
@_OUT
@_OVERWRITE
@remote
def entry(desk: Desk, tenant: str, index: int, out: Path | None, *, overwrite: bool) -> None:
    """Have an entry of the log attested: a decision, policies that came into force, traffic that the router moved by itself."""
    _give(desk, tenant, desk.client.attestation.entry(tenant, index), out, overwrite=overwrite)


@attestation.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--trust-root",
    required=True,
    type=click.Path(path_type=Path),
    help="The public keys that you pin. Get them by another way than the attestation.",
)
@click.option("--tenant", help="Whose attestation it must be.")
@click.option(
    "--logged",
    "entry",
    type=click.Path(path_type=Path),
    help="The log entry that names it, as export wrote it.",
)
@local
def verify(file: Path, trust_root: Path, tenant: str | None, entry: Path | None, format_: str) -> None:
    """Verify an attestation offline, in a FILE that export wrote. Exit 0: verified; 1: not verified; 2: could not run."""
    run: Any = verify_evidence.callback
    run(
        archive=file,
        trust_root=trust_root,
        tenant=tenant,
        policy=None,
        entry=entry,
        format_=format_,
        explained=False,
        replayed=False,
    )


def _digest(text: str) -> str:
    if not _DIGEST.fullmatch(text):
        raise click.BadParameter(f"{text!r} is not a digest of 64 hexadecimal digits", param_hint="DIGEST")
    return text


def _statement_of(found: Mapping[str, Any]) -> dict[str, Any]:
    import base64  # noqa: PLC0415  # Kept out of the start of other commands.
    import json  # noqa: PLC0415  # As above.

    read: dict[str, Any] = json.loads(base64.b64decode(found["statement"]["payload"]))
    return read


def _give(desk: Desk, tenant: str, found: Mapping[str, Any], out: Path | None, *, overwrite: bool) -> None:
    if out is None:
        lines = [f"attested as {clean(found['digest_hex'])}; write its files with --out"]
        desk.show(dict(found), lines)
        return
    _write(desk, tenant, found, out, overwrite=overwrite)


def _write(desk: Desk, tenant: str, found: Mapping[str, Any], out: Path, *, overwrite: bool) -> None:
    files = files_of(tenant, found, desk.client.trust_root())
    out.mkdir(parents=True, exist_ok=True)
    for name in files:
        refuse_present(out / name, overwrite=overwrite)
    for name, data in files.items():
        (out / name).write_bytes(data)
    written = [str(out / name) for name in files]
    desk.show({"digest_hex": found["digest_hex"], "files": written}, [f"written to {clean(path)}" for path in written])


def files_of(tenant: str, found: Mapping[str, Any], trust_root: Mapping[str, Any]) -> dict[str, bytes]:
    """An attestation as files, by their names.

    Args:
        tenant: Whose.
        found: As the service gives it out.
        trust_root: The service's; it chooses the hint at the key in the Sigstore bundle, which decides nothing.

    Raises:
        VerificationError: It is not one of the service's.
    """
    from licet_attestations import attested, canonical, dsse, oms  # noqa: PLC0415  # Kept out of the start of others.
    from licet_attestations.trustroot import TrustRoot  # noqa: PLC0415  # As above.

    trust = TrustRoot.from_json(canonical.dumps(dict(trust_root)))
    envelope = canonical.dumps(found["statement"])
    # That the service contradicts itself is seen here; that it is the right service, by whoever pins its keys.
    logged = found["logged"]
    entry = attested.entry_file(tenant, logged)
    verified = attested.verify_attestation(envelope, trust, attested.read_entry(entry))
    key = next(one.key for one in trust.trusted if one.key.keyid == verified.keyid)
    signed = dsse.Envelope.from_json(envelope)
    # A Sigstore bundle bears one signature; a rotation has those of all keys.
    alone = replace(signed, signatures=tuple(one for one in signed.signatures if one.keyid == key.keyid))
    name = f"{found['kind']}-{verified.digest_hex[:16]}"
    files = {
        f"{name}.dsse.json": envelope,
        f"{name}.sigstore.json": oms.bundle_of(alone, key),
        f"{name}.statement.json": verified.claim.to_bytes(),
        f"{name}.entry.json": entry,
        f"{name}.leaf": logged["leaf"].encode(),
        f"{name}.tlog-proof": logged["proof"].encode(),
    }
    if found["kind"] == "model-bom":
        files[f"{name}.cdx.json"] = canonical.dumps(dict(verified.claim.predicate))
    if found["kind"] in {"decision", "policy", "traffic"}:
        # The entry that it is about, beside the one that names it.
        predicate = verified.claim.predicate
        files |= {
            f"{name}.about.leaf": predicate["leaf"].encode(),
            f"{name}.about.tlog-proof": predicate["log_proof"].encode(),
        }
    return files
