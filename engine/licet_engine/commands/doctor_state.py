"""What ``licet doctor`` finds in the state of an installation: sockets, logs, tokens, what should be gone, breaks of glass.

Rules kept here: as in ``doctor``. The database is read, the signer is asked what it signed last, and nothing is written.
"""

from __future__ import annotations

import ipaddress
import json
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from licet_engine.commands.doctor_database import looked_into
from licet_engine.commands.text import clean, time_text

if TYPE_CHECKING:
    from licet_engine.settings import Settings

State = Literal["ok", "weak", "broken"]

_DAY_MS = 86_400_000
_SOON_MS = 7 * _DAY_MS
_LATE_MS = _DAY_MS
_PROVED_WITHIN_MS = 1_800_000
"""After which it is told that policies in force were not examined: the first tries are over."""
_MAX_NAMED = 5
_MAX_WAL_BYTES = 1 << 30
_LAG_ENTRIES = 1000
_SOCKET_TIMEOUT_S = 3.0
_OWN_NETWORKS = tuple(map(ipaddress.ip_network, ("127.0.0.0/8", "::1/128", "169.254.0.0/16", "fe80::/10")))


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look found.

    Attributes:
        check: What was looked at.
        state: ``ok``, ``weak`` or ``broken``.
        detail: What was found.
        mend: What to do about it.
    """

    check: str
    state: State
    detail: str
    mend: str = ""


def named(names: list[str]) -> str:
    """Some names, and how many more there are."""
    more = len(names) - _MAX_NAMED
    return ", ".join(map(clean, names[:_MAX_NAMED])) + (f" and {more} more" if more > 0 else "")


def look_at_belonging(settings: Settings) -> Iterator[Finding]:
    """Whether the database is of the installation whose keys lie in the data folder."""
    import hashlib  # noqa: PLC0415  # Only doctor needs it.

    from licet_attestations.errors import LicetAttestationError  # noqa: PLC0415  # As above.
    from licet_attestations.trustroot import TrustRoot  # noqa: PLC0415  # As above.

    try:
        own = TrustRoot.from_json(settings.trust_root.read_bytes())
    except (OSError, LicetAttestationError):  # Another look tells.
        return
    digest_hex = hashlib.sha256(own.to_json()).hexdigest()
    with looked_into(settings) as ask:
        if ask is None:
            return
        rows = ask("SELECT instance, trust_root_digest_hex FROM installation")
    if not rows:
        yield Finding(
            "belonging",
            "weak",
            "the database does not say whose it is yet",
            "Start licet serve, which writes it there.",
        )
    elif rows != [(own.instance, digest_hex)]:
        yield Finding(
            "belonging",
            "broken",
            f"the database is of another installation ({rows[0][0]!r}, trust root {rows[0][1][:16]}; this is {digest_hex[:16]})",
            "Stop the service; correct LICET_DATA or LICET_DATABASE_URLS.",
        )
    else:
        yield Finding("belonging", "ok", f"the database is of this installation, trust root {digest_hex[:16]}")


def look_at_sockets(settings: Settings) -> Iterator[Finding]:
    """Whether the internal doors are closed to others."""
    folder = settings.data / "run"
    if not folder.is_dir():
        return
    wrong = [
        f"{path} ({stat.S_IMODE(path.lstat().st_mode):04o})"
        for path in (folder, settings.api_socket, settings.signer_socket, settings.router_socket)
        if path.exists() and stat.S_IMODE(path.lstat().st_mode) & 0o007
    ]
    if wrong:
        yield Finding(
            "sockets",
            "broken",
            f"every user of this machine can reach {named(wrong)}",
            f"chmod 0700 {folder}, and start the service again.",
        )
    else:
        yield Finding("sockets", "ok", f"{folder} is closed to others")


def look_at_passphrase(settings: Settings) -> Iterator[Finding]:
    """Whether the signer will be able to open its keys."""
    path = settings.signer_data / "keystore.json"
    try:
        is_sealed = json.loads(path.read_bytes())["kdf"] is not None
    except (OSError, ValueError, KeyError, TypeError):
        return  # The look at the keys tells of that.
    if is_sealed and not settings.key_passphrase_file:
        yield Finding(
            "passphrase",
            "broken",
            "the keys are sealed, and no passphrase file is set: the signer cannot start",
            "Set LICET_KEY_PASSPHRASE_FILE.",
        )
    elif not is_sealed and settings.key_passphrase_file:
        yield Finding(
            "passphrase",
            "broken",
            "a passphrase file is set, but the keys are not sealed: the signer refuses to start",
            "Unset LICET_KEY_PASSPHRASE_FILE; to have sealed keys, make a new installation with it set.",
        )


def look_at_logs(settings: Settings) -> Iterator[Finding]:
    """Every log against what the signer signed last."""
    # Before the sizes: what is signed meanwhile is not to look as if it were ahead of them.
    signed = _last_checkpoints(settings)
    with looked_into(settings) as ask:
        if ask is None:
            return
        sizes = {str(tenant): int(size) for tenant, size in ask("SELECT tenant_id, size FROM log_head")}
    behind = sorted(tenant for tenant, size in signed.items() if size > sizes.get(tenant, 0))
    if behind:
        yield Finding(
            "logs",
            "broken",
            f"the signer signed more entries than there are of {named(behind)}: an old database was put in place",
            "Stop the service. Bring the newer database back; else no checkpoint and no warrant can be made for these.",
        )
        return
    lag = sum(max(0, size - signed.get(tenant, 0)) for tenant, size in sizes.items())
    if lag > _LAG_ENTRIES:
        yield Finding(
            "logs",
            "weak",
            f"{lag} entries of {len(sizes)} logs are under no checkpoint yet",
            "Look whether the signer answers, and at the log of licet serve for refused checkpoints.",
        )
    else:
        yield Finding(
            "logs", "ok", f"{len(sizes)} logs reach what the signer signed; {lag} entries wait for a checkpoint"
        )


def _last_checkpoints(settings: Settings) -> dict[str, int]:
    from licet_attestations.errors import LicetAttestationError  # noqa: PLC0415  # No command but this should load cryptography.
    from licet_attestations.signer.state import Head  # noqa: PLC0415  # As above.

    found = {}
    for path in (settings.signer_data / "state").glob("*.json"):
        try:
            found[path.stem] = Head.from_bytes(path.read_bytes()).size
        except (OSError, LicetAttestationError):
            found[path.stem] = 1 << 62  # Unreadable: the signer stops this log, as if it were ahead of all there is.
    return found


def look_at_tokens(settings: Settings) -> Iterator[Finding]:
    """Tokens that end soon, and the first operator's, which should not lie where it was made."""
    now_ms = int(time.time() * 1000)
    with looked_into(settings) as ask:
        if ask is None:
            return
        ending = ask(
            "SELECT tenant_id || '/' || principal FROM api_token WHERE revoked_at_ms IS NULL"
            " AND expires_at_ms > :now_ms AND expires_at_ms < :soon_ms ORDER BY expires_at_ms",
            now_ms=now_ms,
            soon_ms=now_ms + _SOON_MS,
        )
        operators = ask(
            "SELECT max(expires_at_ms) FROM api_token WHERE revoked_at_ms IS NULL AND tenant_id = 'platform'"
        )[0][0]
    if not operators or operators < now_ms:
        yield Finding(
            "tokens",
            "broken",
            "no operator has a token that counts: nobody can create or suspend a tenant",
            "Make a new operator's token: take operator.token and installed away and run licet init, which adds one.",
        )
    if ending:
        yield Finding(
            "tokens",
            "weak",
            f"end within a week: {named([row[0] for row in ending])}",
            "Have new ones issued in time, by an administrator of the tenant: licet token issue TENANT/NAME. The first"
            " operator's is made anew with the service stopped: take operator.token and installed away and run licet init.",
        )
    elif operators and operators >= now_ms:
        yield Finding("tokens", "ok", f"none ends within a week; the last of an operator ends {time_text(operators)}")
    token = settings.data / "operator.token"
    if token.exists():
        yield Finding(
            "operator token",
            "weak",
            f"{token} still lies where it was made",
            "Give it to the operator, and remove it here.",
        )


def look_at_retention(settings: Settings) -> Iterator[Finding]:
    """Whether what is over its time is removed."""
    now_ms = int(time.time() * 1000)
    late = []
    with looked_into(settings) as ask:
        if ask is None:
            return
        for kind, query, ttl_s in (
            ("idempotency keys", "SELECT count(*) FROM idempotency_key WHERE at_ms < :ms", settings.idempotency_ttl_s),
            ("figures of runs", "SELECT count(*) FROM metric WHERE at_ms < :ms", settings.telemetry_ttl_s),
            ("events of traffic", "SELECT count(*) FROM traffic_event WHERE at_ms < :ms", settings.telemetry_ttl_s),
            ("flips of candidates", "SELECT count(*) FROM policy_flip WHERE at_ms < :ms", settings.telemetry_ttl_s),
            (
                "messages to webhooks",
                "SELECT count(*) FROM webhook_message WHERE ended_at_ms < :ms",
                settings.webhook_history_s,
            ),
        ):
            count = ask(query, ms=now_ms - ttl_s * 1000 - _LATE_MS)[0][0]
            if count:
                late.append(f"{count} {kind}")
    oldest_s = time.time() - settings.failed_work_ttl_s - _LATE_MS / 1000
    folders = [path for path in (settings.worker_data / "work").glob("*/*") if path.stat().st_mtime < oldest_s]
    if folders:
        late.append(f"{len(folders)} work folders")
    if late:
        yield Finding(
            "retention",
            "weak",
            f"a day over their time: {', '.join(late)}",
            "They go while the service runs: look at its log for 'housekeeping failed'.",
        )
    else:
        yield Finding("retention", "ok", "nothing is a day over its time")
    wal = Path(f"{settings.database}-wal")
    if wal.exists() and wal.stat().st_size > _MAX_WAL_BYTES:
        yield Finding(
            "database",
            "weak",
            f"{wal} has {wal.stat().st_size >> 20} MiB: a reader holds it for long",
            "Look for a backup or a program that reads the database all the time.",
        )


def look_at_messages(settings: Settings) -> Iterator[Finding]:
    """Messages to webhooks that were given up, or wait for long, and where webhooks and tickets may reach."""
    allowed = [ipaddress.ip_network(part.strip()) for part in settings.outbound_networks.split(",") if part.strip()]
    near = [str(n) for n in allowed if any(n.version == own.version and n.overlaps(own) for own in _OWN_NETWORKS)]
    if near:
        yield Finding(
            "ways out",
            "weak",
            f"webhooks of every tenant may reach this machine, or what answers its neighbours alone: {named(near)}",
            "Take it out of LICET_OUTBOUND_NETWORKS, or allow the one address that is meant.",
        )
    else:
        yield Finding("ways out", "ok", f"public addresses{', ' if allowed else ''}{named([str(n) for n in allowed])}")
    now_ms = int(time.time() * 1000)
    with looked_into(settings) as ask:
        if ask is None:
            return
        failing = ask(
            "SELECT tenant_id || '/' || name FROM webhook WHERE removed_at_ms IS NULL AND failures >= :tries ORDER BY 1",
            tries=settings.webhook_tries,
        )
        failed = ask(
            "SELECT count(*) FROM webhook_message WHERE state = 'failed' AND ended_at_ms > :ms", ms=now_ms - _SOON_MS
        )[0][0]
        waiting = ask("SELECT count(*) FROM webhook_message WHERE state = 'pending'")[0][0]
    told = f"{waiting} wait, {failed} were given up within a week"
    if failing or failed:
        receivers = f"; receivers that fail: {named([row[0] for row in failing])}" if failing else ""
        yield Finding(
            "messages",
            "weak",
            told + receivers,
            "The tenant's administrator sees why (licet webhook history), and has them sent again (licet webhook redeliver).",
        )
    else:
        yield Finding("messages", "ok", told)


def look_at_probes(settings: Settings) -> Iterator[Finding]:
    """What came of the scheduled probes across tenants."""
    from licet_engine.probe_report import judge  # noqa: PLC0415  # Only doctor needs it.

    if not settings.probe_every_s:
        yield Finding(
            "probes",
            "ok",
            "none are scheduled: nothing tries the wall between tenants by itself (LICET_PROBE_EVERY_S)",
        )
        return
    state, told = judge(settings.probe_report, every_s=settings.probe_every_s, now_ms=int(time.time() * 1000))
    mend = {
        "ok": "",
        "weak": "Look at the worker's log for probes.",
        "broken": "Take it for a breach of the wall until you know better: see docs/operations.md, Probes.",
    }
    yield Finding("probes", state, clean(told), mend[state])


def look_at_policies(settings: Settings) -> Iterator[Finding]:
    """Whether the policies in force keep the invariants, as far as anybody proved it."""
    with looked_into(settings) as ask:
        if ask is None:
            return
        rows = ask(
            "SELECT b.tenant_id, b.digest_hex, b.proved, b.attestation_hex, b.activated_at_ms, a.envelope FROM policy_bundle b"
            " LEFT JOIN attestation a ON a.tenant_id = b.tenant_id AND a.digest_hex = b.attestation_hex AND NOT b.proved"
            " WHERE b.state = 'active' ORDER BY b.tenant_id"
        )
    # Where nobody will, there is nothing to wait for.
    before_ms = int(time.time() * 1000) - (_PROVED_WITHIN_MS if settings.prove_every_s else 0)
    open_: list[str] = []
    older: list[str] = []
    waiting: list[str] = []
    for tenant, digest_hex, is_proved, attested, activated_at_ms, envelope in rows:
        name = f"{tenant}/{digest_hex[:12]}"
        if attested and not is_proved:
            (open_ if _lets_across(envelope, digest_hex) else older).append(name)
        elif not attested and activated_at_ms < before_ms:
            waiting.append(name)
    if open_:
        mend = "Publish others at once. licet policy show TENANT/BUNDLE names the attestation that says what was found."
        yield Finding(
            "policies", "broken", f"in force, and found to allow something across tenants: {named(open_)}", mend
        )
    if older:
        mend = "Publish the same packs and policies: they get the guardrails of today. licet policy show TENANT/BUNDLE names what was found."
        yield Finding("policies", "weak", f"in force, and found to break an invariant of today: {named(older)}", mend)
    if waiting:
        mend = "Look at the worker's log" if settings.prove_every_s else "Set LICET_PROVE_EVERY_S"
        detail = f"in force, and nobody proved what must hold of them: {named(waiting)}"
        yield Finding(
            "policies", "weak", detail, f"{mend}; or publish the same packs and policies, which examines them."
        )
    if not (open_ or older or waiting):
        proved = sum(bool(row[3]) for row in rows)
        yield Finding(
            "policies", "ok", f"those of {proved} of {len(rows)} tenants are proved, the platform's own among them"
        )


def _lets_across(envelope: str | None, digest_hex: str) -> bool:
    """Whether an attestation says that policies allow something across tenants; so it is taken to do where it cannot be read."""
    from licet_attestations import dsse  # noqa: PLC0415  # Only doctor needs it.
    from licet_attestations.isolation_pair import examined_policies  # noqa: PLC0415  # As above.
    from licet_attestations.statement import Statement  # noqa: PLC0415  # As above.

    if envelope is None:
        return True
    claim = Statement.from_bytes(dsse.Envelope.from_json(envelope.encode()).payload)
    return not examined_policies(claim).get(digest_hex, False)


def look_at_break_glass(settings: Settings) -> Iterator[Finding]:
    """Times of operators behind the glass that nobody reviewed."""
    now_ms = int(time.time() * 1000)
    with looked_into(settings) as ask:
        if ask is None:
            return
        rows = ask(
            "SELECT tenant_id, id, coalesce(ended_at_ms, until_ms) FROM break_glass"
            " WHERE approved_at_ms IS NOT NULL AND reviewed_at_ms IS NULL"
        )
    waiting = [f"{tenant} {number}" for tenant, number, over_ms in rows if over_ms <= now_ms]
    if waiting:
        yield Finding(
            "break-glass",
            "weak",
            f"not reviewed: {named(waiting)}",
            "Ask compliance or security of the tenant: licet break-glass review TENANT NUMBER --finding ...",
        )
    else:
        yield Finding("break-glass", "ok", f"{len(rows)} open, none waits for a review")
