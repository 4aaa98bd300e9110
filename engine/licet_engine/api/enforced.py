"""How often policies decided: a tenant's decisions, grouped by the policies that determined them.

Rules kept here:

- Only of the asker's own tenant, and once that was permitted; of one who may read their own decisions alone, of those.
- One question reads a bounded number of records, the newest first, and says where the next one goes on. So what it costs
  does not grow with the log, and who wants all of it asks often, each time under a decision of its own.
- A record that was erased is counted as unread, never passed over: a count that leaves something out says so.
- A decision is counted under all the policies that determined it together, so that whoever adds up over several policies
  counts no decision twice.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from sqlalchemy import Engine
from sqlalchemy import select as select_core
from sqlmodel import col, select

from licet_engine.decide.record import parse_record
from licet_engine.domain.errors import InvalidInput
from licet_engine.lifecycle.verbs import Who
from licet_engine.log.store import RECORDS
from licet_engine.store import tables
from licet_engine.store.db import read_transaction, tenant_session

MAX_RECORDS: Final = 2000
"""Records that one question reads."""
_CHUNK: Final = 200
"""Records held in memory at once."""
_MAX_INTEGER: Final = 1 << 53


def check_window(from_ms: int, to_ms: int, before: int | None) -> None:
    """Verify what a question names.

    Raises:
        InvalidInput: A time or an index that is none, or a window that ends before it begins.
    """
    for name, value in (("from_ms", from_ms), ("to_ms", to_ms), ("before", before)):
        if value is not None and not 0 <= value <= _MAX_INTEGER:
            raise InvalidInput(f"{name} must lie between 0 and {_MAX_INTEGER}")
    if to_ms < from_ms:
        raise InvalidInput("to_ms lies before from_ms: name the window by its beginning and its end")


def enforced(  # noqa: PLR0917 - one call, from a route that hands on what it was asked.
    engine: Engine,
    who: Who,
    from_ms: int,
    to_ms: int,
    before: int | None,
    own_only: bool,  # noqa: FBT001 - as above.
) -> dict[str, Any]:
    """Group the decisions of a window by the policies that determined them.

    Args:
        engine: The database.
        who: Whose tenant, and whose decisions where ``own_only``.
        from_ms: Begin of the window.
        to_ms: Its end, itself outside.
        before: Index in the log below which to look; None for the newest.
        own_only: Whether to look at the asker's own decisions alone.

    Returns:
        The groups, how many decisions were looked at, of how many the record was erased, and where to go on.
    """
    query = select(tables.Decision.leaf_index).where(
        col(tables.Decision.at_ms) >= from_ms, col(tables.Decision.at_ms) < to_ms
    )
    if before is not None:
        query = query.where(col(tables.Decision.leaf_index) < before)
    if own_only:
        query = query.where(tables.Decision.principal == who.id)
    newest = query.order_by(col(tables.Decision.leaf_index).desc()).limit(MAX_RECORDS + 1)
    with tenant_session(engine, who.tenant) as session:
        found = list(session.exec(newest).all())
    indexes = found[:MAX_RECORDS]
    groups: Counter[tuple[str, tuple[str, ...], tuple[str, ...]]] = Counter()
    for begin in range(0, len(indexes), _CHUNK):
        groups.update(_determined(engine, who.tenant, indexes[begin : begin + _CHUNK]))
    return {
        "groups": [
            {"decision": word, "policies": list(reasons), "observed": list(observed), "count": count}
            for (word, reasons, observed), count in sorted(groups.items())
        ],
        "decisions": len(indexes),
        "unread": len(indexes) - groups.total(),
        "own": own_only,
        "next": indexes[-1] if len(found) > MAX_RECORDS else None,
    }


def _determined(engine: Engine, tenant: str, indexes: list[int]) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    query = select_core(RECORDS.c.record).where(RECORDS.c.tenant_id == tenant, RECORDS.c.leaf_index.in_(indexes))
    with read_transaction(engine, tenant) as connection:
        records = [parse_record(data) for data in connection.execute(query).scalars() if data is not None]
    return [(record["decision"], tuple(record["reasons"]), tuple(record["observed"])) for record in records]
