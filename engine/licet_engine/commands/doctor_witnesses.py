"""What ``licet doctor`` finds of witnesses. Rules kept here: as in ``doctor``."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from licet_engine.commands.doctor_database import looked_into
from licet_engine.commands.doctor_state import Finding, named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from licet_attestations.tlogpolicy import Policy
    from licet_engine.commands.doctor_database import Ask
    from licet_engine.settings import Settings

_MOST_SEARCHED = 64
_POLICY = "Set LICET_WITNESS_POLICY to a C2SP tlog-policy file whose witnesses have URLs; see docs/witness.md."


def look_at_witnesses(settings: Settings) -> Iterator[Finding]:
    """Whether a quorum of witnesses has seen every log."""
    if not settings.witness_policy:
        return
    from licet_engine.domain.errors import ConfigurationError  # noqa: PLC0415  # Where there are witnesses alone.
    from licet_engine.log.witnesses import load_policy  # noqa: PLC0415  # As above.

    try:
        policy = load_policy(settings.witness_policy)
    except ConfigurationError as error:
        yield Finding("witnesses", "broken", str(error), _POLICY)
        return
    with looked_into(settings) as ask:
        if ask is None or policy is None:
            return
        lags_s = {str(tenant): _lag_s(ask, policy, tenant, size) for tenant, size in _heads(ask)}
    late = sorted(tenant for tenant, lag_s in lags_s.items() if lag_s > settings.witness_max_lag_s)
    wanted = policy.quorum_text()
    if late:
        yield Finding(
            "witnesses",
            "broken" if policy.is_required else "weak",
            f"for more than {settings.witness_max_lag_s} s no quorum ({wanted}) has cosigned the log of {named(late)}",
            "Look at licet_witness_answers_total and the log of licet serve for what witnesses answer, and whether they run."
            + (" Warrants and exports wait until then." if policy.is_required else ""),
        )
    else:
        worst_s = int(max(lags_s.values(), default=0))
        yield Finding(
            "witnesses",
            "ok",
            f"{len(lags_s)} logs, quorum {wanted}; the oldest entry that none has seen is of {worst_s} s ago",
        )


def _heads(ask: Ask) -> list[tuple[str, int]]:
    return [(str(tenant), int(size)) for tenant, size in ask("SELECT tenant_id, size FROM log_head")]


def _lag_s(ask: Ask, policy: Policy, tenant: str, size: int) -> float:
    """Age of the oldest entry beyond the newest checkpoint with a quorum, as it is stored: the api verifies it."""
    names = {witness.key.key.keyid: witness.name for witness in policy.witnesses.values()}
    seen: dict[int, set[str]] = {}
    for at, keyid in ask(
        "SELECT size, keyid FROM log_cosignature WHERE tenant_id = :tenant ORDER BY size DESC LIMIT :most",
        tenant=tenant,
        most=_MOST_SEARCHED * max(1, len(names)),
    ):
        cosigners = seen.setdefault(int(at), set())
        if keyid in names:
            cosigners.add(names[keyid])
    covered = max((at for at, found in seen.items() if policy.is_met(found)), default=0)
    if covered >= size:
        return 0.0
    rows = ask(
        "SELECT header FROM log_leaf WHERE tenant_id = :tenant AND leaf_index = :first", tenant=tenant, first=covered
    )
    return max(0.0, time.time() - json.loads(rows[0][0])["time_ms"] / 1000) if rows else 0.0
