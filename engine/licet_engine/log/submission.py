"""What is handed to the sequencer: entries for one or several logs, and what must hold and happen along with them.

Rules kept here:

- A submission is data, apart from how a record is written for the time it is given: it can be tried twice.
- It is all or nothing, over all logs that it touches.
- It touches no row of a tenant whose log it does not lock.
- It has at least one entry: no fact changes without a trace in a log.
- What is made under the lock is made of what is committed, and for the logs it locked before it was made.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from sqlalchemy import Table

from licet_attestations.leaf import is_tenant
from licet_engine.log.errors import InvalidSubmission
from licet_engine.store.tables import TenantRow

MAX_ENTRIES: Final = 1024
"""Entries of one submission."""

PlacedField = tuple[int, Literal["index", "time_ms"]]
"""Which entry of the submission, and what of its place."""


@dataclass(frozen=True, slots=True)
class NewEntry:
    """An entry to be appended.

    Attributes:
        tenant_id: Whose log it goes to.
        kind: What the record is.
        actor: Tenant of whoever acted.
        owner: Tenant of what was acted on.
        record: The record's bytes; or what makes them from the entry's time, which the sequencer sets. A record that states its time must
            be made so, or header and record would differ. It is called under the lock, perhaps twice: it must be quick.
    """

    tenant_id: str
    kind: str
    actor: str
    owner: str
    record: bytes | Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Insert:
    """Rows that are inserted in the entries' transaction.

    Attributes:
        table: The table, or its mapped class.
        rows: Column values by name, all rows with the same columns, ``tenant_id`` among them. Columns with a default may be left out.
        placed: Columns that take their value from the place of an entry, such as ``{"leaf_index": (0, "index"), "at_ms": (0, "time_ms")}``.
        if_absent: Leave rows alone whose key is there already: for rows addressed by their content.
    """

    table: Table | type[TenantRow]
    rows: Sequence[Mapping[str, Any]]
    placed: Mapping[str, PlacedField] = field(default_factory=dict)
    if_absent: bool = False


@dataclass(frozen=True, slots=True)
class Update:
    """A change of rows in the entries' transaction, made after all inserts.

    Attributes:
        table: The table, or its mapped class.
        key: What the rows must have, ``tenant_id`` among it; ``None`` stands for NULL. Beside the primary key it may state what else
            must still hold, such as ``{"tenant_id": ..., "id": ..., "state": "accepted"}``.
        values: What they get.
        expected_rows: How many rows must change, or the submission fails; ``None`` for any number.
        placed: As for `Insert`.
    """

    table: Table | type[TenantRow]
    key: Mapping[str, Any]
    values: Mapping[str, Any]
    expected_rows: int | None = 1
    placed: Mapping[str, PlacedField] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Spend:
    """Take ``amount`` from a budget, or fail the submission where less remains."""

    tenant_id: str
    name: str
    amount: int


@dataclass(frozen=True, slots=True)
class Submission:
    """What is to become durable together.

    Attributes:
        entries: In the order they are appended.
        expect: The facts version that each tenant's facts must still have.
        companions: Inserts, made first and in the order that foreign keys demand, and updates.
        bump: Tenants whose facts change by this: their facts version rises by one.
        enqueue: Handed one by one to the sequencer's ``enqueue`` hook, on the same connection.
        spend: Budgets that are drawn on.
    """

    entries: Sequence[NewEntry]
    expect: Mapping[str, int] = field(default_factory=dict)
    companions: Sequence[Insert | Update] = ()
    bump: Sequence[str] = ()
    enqueue: Sequence[Any] = ()
    spend: Sequence[Spend] = ()


@dataclass(frozen=True, slots=True)
class UnderLock:
    """A submission that is made while the logs it is for are locked, so that no fact it rests on can change before it commits.

    It is for whoever was refused with `StaleFacts` again and again: everybody else waits meanwhile.

    Attributes:
        tenants: Whose logs are locked.
        make: Makes the submission, from what is committed, read on a connection of its own. It is called on the sequencer's thread: it must
            be quick, must not write, and must not hand in anything itself. What it raises is the outcome.
    """

    tenants: frozenset[str]
    make: Callable[[], Submission]


@dataclass(frozen=True, slots=True)
class Placed:
    """Where an entry came to stand."""

    tenant_id: str
    index: int
    time_ms: int
    header: bytes


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the sequencer answers once everything is durable.

    Attributes:
        placed: Where the entries stand, in the order they were submitted.
        facts_versions: The facts versions right after this submission, of the tenants whose log it locked.
    """

    placed: tuple[Placed, ...]
    facts_versions: Mapping[str, int]


def core_table(table: Table | type[TenantRow]) -> Table:
    """The Core table, of either."""
    return table if isinstance(table, Table) else table.__table__  # type: ignore[attr-defined]  # SQLModel sets it.


def verify_submission(submission: Submission) -> frozenset[str]:
    """Verify that a submission keeps the rules of this module; return the tenants whose logs it locks.

    Raises:
        InvalidSubmission: It does not.
    """
    if not 0 < len(submission.entries) <= MAX_ENTRIES:
        raise InvalidSubmission(f"a submission has 1 to {MAX_ENTRIES} entries, not {len(submission.entries)}")
    tenants = frozenset((*(entry.tenant_id for entry in submission.entries), *submission.expect, *submission.bump))
    for tenant_id in tenants:
        if not is_tenant(tenant_id):
            raise InvalidSubmission(f"{tenant_id!r} is not a tenant")
    for spend in submission.spend:
        if spend.tenant_id not in tenants or type(spend.amount) is not int or spend.amount < 0:
            raise InvalidSubmission(f"spending {spend.amount} of {spend.name!r} is not for this submission to do")
    for companion in submission.companions:
        if isinstance(companion, Insert):
            foreign = [row for row in companion.rows if row.get("tenant_id") not in tenants]
        else:
            foreign = (
                []
                if companion.key.get("tenant_id") in tenants and "tenant_id" not in companion.values
                else [companion.key]
            )
        if foreign:
            raise InvalidSubmission(
                f"a row of {core_table(companion.table).name!r} belongs to {foreign[0].get('tenant_id')!r}, whose log is not locked"
            )
        if any(not 0 <= entry < len(submission.entries) for entry, _ in companion.placed.values()):
            raise InvalidSubmission("a companion refers to an entry that the submission does not have")
    return tenants


def tenants_of(handed_in: Submission | UnderLock) -> frozenset[str]:
    """The tenants whose logs are locked for what is handed in.

    Raises:
        InvalidSubmission: It contradicts itself, or names none.
    """
    if isinstance(handed_in, Submission):
        return verify_submission(handed_in)
    if not handed_in.tenants or not all(is_tenant(tenant_id) for tenant_id in handed_in.tenants):
        raise InvalidSubmission("what is made under the lock must name the tenants whose logs are to be locked")
    return handed_in.tenants
