"""``licet operation``, ``licet decision``, ``licet evidence``, ``licet log`` and ``licet keys``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from licet_engine.commands.data import OUT, lister
from licet_engine.commands.desk import exit_code_of, immediate, local, mutation, refuse_present, remote, waiting
from licet_engine.commands.failures import EXIT_DONE, EXIT_ERROR
from licet_engine.commands.options import INDICES, MAX_ERASED, MOMENT
from licet_engine.commands.progress import Progress
from licet_engine.commands.render import explanation_lines, list_lines, operation_lines
from licet_engine.commands.text import block, clean, labelled, time_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from licet_adapters.s3_accesses import StoreAccess
    from licet_engine.commands.desk import Desk
    from licet_engine.evidence.reconcile import Reconciliation
    from licet_engine.settings import Settings


_IDENTIFIER = re.compile(r"[0-9a-f]{32}")


def split_reference(ref: str, what: str) -> tuple[str, str]:
    """Tenant and identifier of a reference."""
    tenant, slash, identifier = ref.partition("/")
    if not slash or not tenant or not _IDENTIFIER.fullmatch(identifier):
        raise click.BadParameter(
            f"{ref!r} is not of the form TENANT/ID, with an ID of 32 hexadecimal digits", param_hint=what
        )
    return tenant, identifier


# --- operation ------------------------------------------------------------------------------------------------------------


@click.group()
def operation() -> None:
    """Operations: show, wait, artifact, list."""


@operation.command(name="show")
@click.argument("ref", metavar="TENANT/ID")
@remote
def show_operation(desk: Desk, ref: str) -> None:
    """Show how an operation stands."""
    found = desk.client.operation(*split_reference(ref, "TENANT/ID"))
    desk.show({"operation": found.to_json()}, operation_lines(found))


@operation.command()
@click.argument("ref", metavar="TENANT/ID")
@waiting
def wait(desk: Desk, ref: str) -> None:
    """Wait until an operation has ended. Exit 0: done; 1: refused by policy; 2: failed."""
    split_reference(ref, "TENANT/ID")
    ended = desk.wait_for(ref)
    desk.show_ended(ended)
    raise click.exceptions.Exit(exit_code_of(ended))


@operation.command()
@click.argument("ref", metavar="TENANT/ID")
@click.option("--out", required=True, type=OUT, help="File to write it to.")
@click.option("--overwrite", is_flag=True, help="Write over a file that exists.")
@remote
def artifact(desk: Desk, ref: str, *, out: Path, overwrite: bool) -> None:
    """Fetch what a done operation made for you."""
    refuse_present(out, overwrite=overwrite)
    found = desk.client.operation(*split_reference(ref, "TENANT/ID"))
    digest_hex = desk.fetch(found, out)
    desk.show({"file": str(out), "digest_hex": digest_hex}, [f"written to {out} (SHA-256 {digest_hex})"])


lister(operation, "operations", "List the operations of a tenant.")


# --- decision -------------------------------------------------------------------------------------------------------------


@click.group()
def decision() -> None:
    """Decisions: show, explain, list."""


@decision.command(name="show")
@click.argument("ref", metavar="TENANT/ID")
@remote
def show_decision(desk: Desk, ref: str) -> None:
    """Show the record of a decision, and where it stands in the log."""
    found = desk.client.decision.read(*split_reference(ref, "TENANT/ID"))
    lines = block(found.get("record") or {})
    lines.append(labelled("log entry", found.get("leaf_index"), label_chars=11))
    lines.append(labelled("leaf", found.get("leaf"), label_chars=11))
    desk.show(found, lines)


@decision.command()
@click.argument("ref", metavar="TENANT/ID")
@remote
def explain(desk: Desk, ref: str) -> None:
    """Explain a decision: the conjuncts that failed, with their values; advice; the path to yes; what would be decided now.

    Without a server, out of an evidence archive: licet policy explain.
    """
    found = desk.client.decision.explain(*split_reference(ref, "TENANT/ID"))
    desk.show(found.to_json(), explanation_lines(found))


_MOST_ROWS = 1000


@decision.command(name="list")
@click.argument("tenant")
@click.option("--denied", is_flag=True, help="Denials alone.")
@click.option("--observed", is_flag=True, help="Those alone that something in observe mode would have denied.")
@click.option("--action", help="Those on this action alone, such as model.promote.")
@click.option("--limit", type=click.IntRange(1, _MOST_ROWS), default=50, show_default=True, help="How many at most.")
@remote
def list_decisions(desk: Desk, tenant: str, action: str | None, limit: int, *, denied: bool, observed: bool) -> None:
    """List the decisions of a tenant, the newest first; --denied, --observed and --action search the newest 1000."""
    is_sought = denied or observed or action is not None
    rows = desk.client.list(tenant, "decisions", limit=_MOST_ROWS if is_sought else limit)
    # A row that does not say that it was allowed counts as a denial.
    found = [
        row
        for row in rows
        if not (denied and row.get("allowed") is True)
        and not (observed and not row.get("observed"))
        and (action is None or row.get("action") == action)
    ]
    lines = list_lines("decisions", found[:limit])
    if is_sought and len(rows) == _MOST_ROWS:
        click.echo(f"only the newest {_MOST_ROWS} decisions were searched", err=True)
    desk.show({"items": found[:limit]}, lines)


# --- evidence -------------------------------------------------------------------------------------------------------------


@click.group()
def evidence() -> None:
    """Evidence: export. Verify it with licet verify."""


@evidence.command()
@click.argument("tenant", required=False)
@click.option("--tenant", "named", metavar="TENANT", help="The same, as an option.")
@click.option("--from", "from_ms", type=MOMENT, help="Only what was logged from this time on.")
@click.option("--to", "to_ms", type=MOMENT, help="Only what was logged before this time.")
@click.option("--out", required=True, type=OUT, help="Zip file to write the archive to.")
@click.option("--overwrite", is_flag=True, help="Write over a file that exists.")
@waiting
def export(  # The options, as click hands them over.
    desk: Desk,
    tenant: str | None,
    named: str | None,
    out: Path,
    *,
    from_ms: int | None,
    to_ms: int | None,
    overwrite: bool,
) -> None:
    """Export the tenant's log with everything it names, as one archive that verifies offline."""
    tenant = tenant or named
    if tenant is None or named not in {None, tenant}:
        raise click.UsageError("name one tenant: licet evidence export TENANT --out FILE")
    if from_ms is not None and to_ms is not None and from_ms > to_ms:
        raise click.BadParameter("it is after --to", param_hint="--from")
    desk.save(desk.client.evidence.export(tenant, from_ms=from_ms, to_ms=to_ms, **desk.sent), out, overwrite=overwrite)


@evidence.command()
@click.option("--actor", required=True, metavar="TENANT", help="Who is asked about; it need not exist.")
@click.option("--owner", required=True, metavar="TENANT", help="Whose log is asked.")
@click.option("--out", type=OUT, help="File to write the signed statement to.")
@click.option("--html", "page", type=OUT, help="File to write a page for people to.")
@click.option("--overwrite", is_flag=True, help="Write over files that exist.")
@remote
def isolation(desk: Desk, actor: str, owner: str, *, out: Path | None, page: Path | None, overwrite: bool) -> None:
    """Answer whether ACTOR ever stood in the log of OWNER, by a signed statement with its proof. Verify it with licet verify."""
    from licet_attestations import isolation_pair  # noqa: PLC0415  # Kept out of the start of other commands.
    from licet_attestations.canonical import dumps  # noqa: PLC0415  # As above.
    from licet_attestations.trustroot import TrustRoot  # noqa: PLC0415  # As above.

    for path in filter(None, (out, page)):
        refuse_present(path, overwrite=overwrite)
    found = desk.client.evidence.isolation(actor, owner)
    envelope = dumps(found["statement"])
    # That the service contradicts itself is seen here; that it is the right service, by whoever pins its keys.
    answer = isolation_pair.verify_statement(envelope, TrustRoot.from_json(dumps(desk.client.trust_root())))
    if out is not None:
        out.write_bytes(envelope)
    if page is not None:
        page.write_text(isolation_pair.report_html(answer), "utf-8")
    lines = [clean(line) for line in isolation_pair.report_lines(answer)]
    desk.show(found, [*lines, *(f"written to {path}" for path in filter(None, (out, page)))])


@evidence.command()
@click.option("--data", type=OUT, help="Folder of the installation; LICET_DATA or ./data if not given.")
@click.option("--s3-log", "logs", multiple=True, type=OUT, help="Server access log of the bucket. Repeatable.")
@click.option("--attest", is_flag=True, help="Have the figures of each tenant signed, and log them there.")
@local
def reconcile(data: Path | None, logs: tuple[Path, ...], format_: str, *, attest: bool) -> None:
    """Match what adapters and the object store accessed with warrants, on this machine. Exit 0: all matched; 2: not."""
    from licet_adapters.journal import JOURNAL, journals  # noqa: PLC0415  # Servers only.
    from licet_engine.evidence import reconcile as reconciling  # noqa: PLC0415  # As above.
    from licet_engine.settings import load_settings  # noqa: PLC0415  # As above.
    from licet_engine.store.access import Role, open_database  # noqa: PLC0415  # As above.

    settings = load_settings(data=data)
    if not settings.database_urls and not settings.database.is_file():
        raise click.BadParameter(f"there is no database {settings.database}", param_hint="--data")
    if attest:
        from licet_engine.attester import require_signer  # noqa: PLC0415  # As above.

        require_signer(settings)
    engine = open_database(settings, Role.OWNER, every_tenant=True)
    own = settings.router_data / JOURNAL
    found = [*journals(settings.worker_data / "adapters"), *([own] if own.is_file() else [])]
    try:
        result = reconciling.reconcile(engine, found, _store_requests(logs), prefix=settings.s3_prefix)
    finally:
        engine.dispose()
    told = result.to_dict() | ({"attested": _attest(settings, result)} if attest else {})
    lines = [clean(line) for line in reconciling.report_lines(told)]
    lines += [f"attested for {clean(tenant)}: {digest}" for tenant, digest in told.get("attested", {}).items()]
    click.echo(json.dumps(told, indent=2) if format_ == "json" else "\n".join(lines))
    raise click.exceptions.Exit(EXIT_DONE if result.is_clean else EXIT_ERROR)


def _store_requests(logs: tuple[Path, ...]) -> Iterator[StoreAccess | None]:
    from licet_adapters.s3_accesses import read_accesses  # noqa: PLC0415  # Servers only.

    for path in logs:
        with path.open(encoding="utf-8", errors="replace") as lines:
            yield from read_accesses(lines)


def _attest(settings: Settings, result: Reconciliation) -> dict[str, str]:
    """Have each tenant's figures signed and logged; the digests of the statements, by tenant."""
    from licet_engine.attester import attest_and_log  # noqa: PLC0415  # As above.
    from licet_engine.domain.refs import now_ms  # noqa: PLC0415  # As above.
    from licet_engine.evidence.reconcile import reconciliation_statement  # noqa: PLC0415  # As above.

    known, at_ms = [tenant for tenant, found in result.tenants.items() if found.warrants], now_ms()
    return attest_and_log(settings, {t: reconciliation_statement(result, t, at_ms).to_bytes() for t in known})


# --- log ------------------------------------------------------------------------------------------------------------------


@click.group()
def log() -> None:
    """The tamper-evident log: checkpoint, entries, erase, fsck; mirrors and witnesses."""


@log.command()
@click.argument("tenant")
@remote
def checkpoint(desk: Desk, tenant: str) -> None:
    """Show the head of a tenant's log: its signed checkpoint. Keep it: no later log may contradict it."""
    head = desk.client.log.read(tenant)
    document = {"origin": head.origin, "size": head.size, "root_hex": head.root_hex, "checkpoint": head.checkpoint}
    desk.show(document, [clean(head.checkpoint.rstrip("\n"), lines=True)])


@log.command()
@click.argument("tenant")
@click.option("--first", type=click.IntRange(0), default=0, show_default=True, help="First entry.")
@click.option("--count", type=click.IntRange(1, 1000), default=100, show_default=True, help="How many at most.")
@remote
def entries(desk: Desk, tenant: str, first: int, count: int) -> None:
    """Show the headers of entries: when, of what kind, by whose principal, on whose things."""
    found = desk.client.log.entries(tenant, first=first, count=count)
    lines = []
    for entry in found:
        leaf = entry["leaf"]
        line = (
            f"{entry['index']:>7}  {time_text(leaf['time_ms'])}  {leaf['kind']:<12} {leaf['actor']} on {leaf['owner']}"
        )
        lines.append(clean(f"{line}  {leaf['commitment'][:16]}"))
    desk.show({"entries": found}, lines or ["no entries"])


@log.command()
@click.argument("tenant")
@click.argument("chosen", metavar="INDEX...", nargs=-1, required=True, type=INDICES)
@click.option("--reason", required=True, help="Why. It stays in the log: let it tell nothing of what goes.")
@click.option("--yes", is_flag=True, help="Do not ask whether it is meant.")
@immediate
def erase(desk: Desk, tenant: str, chosen: tuple[range, ...], *, reason: str, yes: bool) -> None:
    """Erase the records of entries, as 12 or 20-29, at most 100 at once; that they were there stays proven.

    What is held, too young, needed to show what was allowed, or about what you did yourself is not erased.
    """
    count = sum(map(len, chosen))
    if count > MAX_ERASED:
        raise click.BadParameter(f"these are {count}, and at most {MAX_ERASED} are erased at once", param_hint="INDEX")
    indices = sorted({index for some in chosen for index in some})
    if not yes:
        click.confirm(
            f"What {len(indices)} entries of the log of {clean(tenant)} tell is gone for good, but for backups and archives. Erase it?",
            abort=True,
            err=True,
        )
    desk.finish(desk.client.record.erase(tenant, indices, reason, **desk.sent))


@log.command()
@click.option("--data", type=OUT, help="Folder of the installation; LICET_DATA or ./data if not given.")
@click.option("--tenant", "tenants", multiple=True, help="Whose log; all if not given. Repeatable.")
@local
def fsck(data: Path | None, tenants: tuple[str, ...], format_: str) -> None:
    """Check the logs in the database of this machine: leaves, tiles, records, references, signatures, the signer. Exit 0: whole; 2: damaged."""
    from licet_attestations.__main__ import read_trust_root  # noqa: PLC0415  # Servers only.
    from licet_engine.log.fsck import fsck as check  # noqa: PLC0415  # As above.
    from licet_engine.log.fsck_named import Against  # noqa: PLC0415  # As above.
    from licet_engine.log.last_signed import SignersWord  # noqa: PLC0415  # As above.
    from licet_engine.log.witnesses import load_policy  # noqa: PLC0415  # As above.
    from licet_engine.settings import load_settings  # noqa: PLC0415  # As above.
    from licet_engine.store.access import Role, open_database  # noqa: PLC0415  # As above.

    settings = load_settings(data=data)
    if not settings.database_urls and not settings.database.is_file():
        raise click.BadParameter(f"there is no database {settings.database}", param_hint="--data")
    word, progress = SignersWord(settings), Progress(format_)
    against = Against(
        trust_root=read_trust_root(settings.trust_root),
        policy=load_policy(settings.witness_policy),
        last_signed=word.last_signed,
    )
    engine = open_database(settings, Role.OWNER, every_tenant=True)
    try:
        found = check(engine, tenants or None, against=against, progress=progress.tell)
    finally:
        engine.dispose()
    document: list[dict[str, Any]] = [
        {
            "tenant": r.tenant_id,
            "size": r.size,
            "root_hex": r.root.hex(),
            "erased": r.erased,
            "problems": list(r.problems),
        }
        for r in found
    ]
    if format_ == "json":
        click.echo(json.dumps({"logs": document, "unchecked": word.unknown}, indent=2))
    else:
        for entry in document:
            state = click.style("damaged", fg="red") if entry["problems"] else click.style("whole", fg="green")
            click.echo(f"{state}  {clean(entry['tenant'])}  {entry['size']} entries, {entry['erased']} erased")
            for problem in entry["problems"]:
                click.echo(labelled("", problem, indent=4, label_chars=0))
        if word.unknown:
            click.echo(f"not checked: {clean(word.unknown)}")
    raise click.exceptions.Exit(EXIT_ERROR if any(r.problems for r in found) else EXIT_DONE)


# --- keys -----------------------------------------------------------------------------------------------------------------


@click.group()
def keys() -> None:
    """Keys: show the public ones and follow their rotation; rotate, back up and restore the signer's, destroy a tenant's."""


@keys.command(name="show")
@click.option("--trust-root", type=click.Path(path_type=Path), help="Of this file, and ask no server.")
@remote
def show_keys(desk: Desk, trust_root: Path | None) -> None:
    """Show the trust root: the server's public keys. To verify evidence, pin one that you got by another way."""
    desk.needs_token = False  # They are public.
    root = desk.client.trust_root() if trust_root is None else _trust_root_in(trust_root)
    lines = [f"instance {clean(root.get('instance'))}, logs {clean(root.get('log_origin_prefix'))}/TENANT"]
    for key in root.get("keys") or ():
        until = "" if key.get("valid_until_ms") is None else f" until {time_text(key['valid_until_ms'])}"
        lost = key.get("compromised_from_ms")
        until += "" if lost is None else f", compromised from {time_text(lost)}"
        begun = f"from {time_text(key.get('valid_from_ms') or 0)}{until}"
        lines.append(clean(f"  {key.get('purpose'):<12}{key.get('alg'):<19}{key.get('keyid')}  {begun}"))
    desk.show(root, lines)


def _trust_root_in(path: Path) -> dict[str, Any]:
    from licet_attestations.__main__ import read_trust_root  # noqa: PLC0415  # Operators only.

    return read_trust_root(path).to_dict()


@keys.command()
@click.argument("tenant")
@click.option("--reason", required=True, help="Why.")
@click.option("--yes", is_flag=True, help="Do not ask whether it is meant.")
@mutation
def destroy(desk: Desk, tenant: str, reason: str, *, yes: bool) -> None:
    """Destroy a tenant's key: everything stored under it becomes unreadable for good."""
    if not yes:
        click.confirm(
            f"Everything that {clean(tenant)} stored becomes unreadable for good. Destroy its key?",
            abort=True,
            err=True,
        )
    desk.finish(desk.client.key.destroy(tenant, reason, **desk.sent))


_SECRET = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    required=True,
    help="File, mode 0600, with the passphrase of the backup.",
)
_SIGNERS = click.option(
    "--data", type=click.Path(path_type=Path), help="Folder of the installation; LICET_DATA or ./data if not given."
)


@keys.command(name="backup")
@click.argument("file", type=click.Path(path_type=Path))
@_SECRET
@_SIGNERS
@local
def back_up_keys(file: Path, passphrase_file: Path, data: Path | None, format_: str) -> None:
    """Seal the signer's keys and last checkpoints into the new FILE, and read it back. Run it as the signer's user."""
    from licet_attestations.signer.escrow import back_up  # noqa: PLC0415  # Operators only.
    from licet_attestations.signer.keystore import read_passphrase  # noqa: PLC0415  # As above.
    from licet_engine.settings import load_settings  # noqa: PLC0415  # As above.

    root = back_up(load_settings(data=data).signer_data, file, read_passphrase(passphrase_file))
    _tell_root(root.to_dict(), file, format_)


@keys.command(name="restore")
@click.argument("file", type=click.Path(path_type=Path))
@_SECRET
@_SIGNERS
@local
def restore_keys(file: Path, passphrase_file: Path, data: Path | None, format_: str) -> None:
    """Make the signer's folder anew from FILE, in an installation that has no keys. A passphrase of the keys stays theirs."""
    from licet_attestations.signer.escrow import bring_back  # noqa: PLC0415  # As above.
    from licet_attestations.signer.keystore import read_passphrase  # noqa: PLC0415  # As above.
    from licet_engine.settings import load_settings  # noqa: PLC0415  # As above.

    target = load_settings(data=data).signer_data
    root = bring_back(file, target, read_passphrase(passphrase_file))
    _tell_root(root.to_dict(), target, format_)


def _tell_root(root: Mapping[str, Any], where: Path, format_: str) -> None:
    if format_ == "json":
        click.echo(json.dumps({"path": str(where), "trust_root": root}, indent=2))
        return
    click.echo(f"{where}: the keys of instance {clean(root.get('instance'))}")
    for key in root.get("keys") or ():
        click.echo(clean(f"  {key.get('purpose'):<12}{key.get('alg'):<19}{key.get('keyid')}"))
