"""The shape of everything that can be asked for: a verb per action of the schema.

Rules kept here:

- A verb is data and pure functions. `propose` reads facts and says what the decision is about and what an allow would
  change; it changes nothing itself. `do` runs in the worker, under warrants. `finish` turns what was done into rows.
- What a change writes is data too, so that it is committed with its decision, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict
from sqlmodel import SQLModel

from licet_engine.domain.errors import LicetError
from licet_engine.domain.refs import Ref
from licet_engine.lifecycle.facts import Entity, View, principal_type, uid
from licet_engine.store.tables import Operation

if TYPE_CHECKING:
    from licet_engine.lifecycle.deed import Deed


WORKLOAD = "workload."
"""What the names of claims begin with that the service itself makes of who a workload was found to be; nobody else may claim them."""


def claims_of(workload: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What is known of a workload, as claims."""
    return tuple(sorted((f"{WORKLOAD}{name}", value) for name, value in workload.items()))


class Body(BaseModel):
    """What may be sent with a verb; anything undeclared is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class NoBody(Body):
    """A verb that takes nothing but its resource."""


@dataclass(frozen=True, slots=True)
class Who:
    """An authenticated principal.

    Attributes:
        tenant: Its tenant.
        name: Its name there.
        kind: ``person`` or ``service``.
        token_id: Which of its tokens it presented.
        workload: What is known of the workload that the token was given to, as claims.
    """

    tenant: str
    name: str
    kind: str
    token_id: str = ""
    workload: tuple[tuple[str, str], ...] = ()

    @property
    def id(self) -> str:
        """Reference of the principal."""
        return f"{self.tenant}/{self.name}"

    @property
    def uid(self) -> dict[str, str]:
        """Cedar reference of the principal."""
        return uid(principal_type(self.kind), self.id)


@dataclass(frozen=True, slots=True)
class Update:
    """Rows to change.

    Attributes:
        table: Of the rows.
        where: Column to value; together with the tenant.
        set: Column to new value.
        rows: How many rows this must change; None for any number.
    """

    table: type[SQLModel]
    where: Mapping[str, Any]
    set: Mapping[str, Any]
    rows: int | None = 1


@dataclass(frozen=True, slots=True)
class Insert:
    """A row to insert; its tenant is filled in if it is not there."""

    table: type[SQLModel]
    row: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Note:
    """A further entry of the tenant's log: its kind, and its record without identifiers and time."""

    kind: str
    record: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Spend:
    """A part of a budget, spent with the decision."""

    budget: str
    amount: int


@dataclass(frozen=True, slots=True)
class Event:
    """Something that the tenant's webhooks are told of, once what it tells of is committed.

    Attributes:
        kind: One of `licet_engine.lifecycle.outbox.EVENTS`.
        data: What is told: plain JSON, without secrets.
        webhook: Identifier of the one webhook that is told, if it is not for all that want such events.
        message: Identifier of the message, where it must be known before; else one is made.
    """

    kind: str
    data: Mapping[str, Any]
    webhook: str | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """What an allow writes, in the tenant that owns the resource.

    Attributes:
        told: At the end of an operation: what its result tells beside what the worker says.
    """

    inserts: Sequence[Insert] = ()
    updates: Sequence[Update] = ()
    notes: Sequence[Note] = ()
    spends: Sequence[Spend] = ()
    events: Sequence[Event] = ()
    told: Mapping[str, Any] = field(default_factory=dict)


NOTHING = Change()


@dataclass(frozen=True, slots=True)
class Ids:
    """Identifiers chosen before the decision, so that its record and its rows can name each other."""

    decision: str
    operation: str
    now_ms: int


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a decision would be about.

    Attributes:
        resource: The resource as it is, or as it would be.
        entities: Others that the context names, so that policies can look at them.
        context: What the action's context holds beyond time and claims.
        parameters: Of the operation that an allow accepts; None if it accepts none.
        change: What an allow writes.
        conflict: Why this cannot be done even if it is allowed; told only after an allow.
        result: What an allow answers at once.
        secrets: Answered like ``result``, but never stored.
        reveals: Identifier of a webhook whose secret is answered once the change is committed.
    """

    resource: Entity
    entities: Sequence[Entity] = ()
    context: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] | None = None
    change: Change = NOTHING
    conflict: LicetError | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    secrets: Mapping[str, Any] = field(default_factory=dict)
    reveals: str = ""


class RefForm(Enum):
    """How a verb's resource is named."""

    TENANT = "TENANT"
    NAME = "TENANT/NAME"
    BUNDLE = "TENANT/BUNDLE"
    VERSION = "TENANT/NAME@VERSION"
    NAME_OR_VERSION = "TENANT/NAME[@VERSION]"


Propose = Callable[[View, Who, Ref, Any, Ids], Proposal | None]
Sketch = Callable[[View, Who, Ref], Entity]
Do = Callable[["Deed"], Mapping[str, Any]]
Finish = Callable[[View, Operation, Mapping[str, Any], int], Change]

KEPT = "kept"
"""The part of what was done that becomes rows alone: it is neither told as the operation's result nor stored with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """Something that can be asked for.

    Attributes:
        action: The action's name in the schema.
        summary: One line for people.
        form: How its resource is named.
        body: What may be sent with it.
        propose: Reads facts; None for a resource that is not there.
        do: Performs the accepted operation, in the worker.
        finish: Turns what was done into rows.
        abandon: What a failed or refused operation leaves, as rows.
        refuses: Of what was done, why it counts as refused; None where it does not. What is told then is told with the result.
        creates: Whether its resource does not exist before.
        reads_asked: Whether `do` reads what was sent, beside the operation's parameters; it may be long.
        sketch: Where `propose` is costly: the resource as far as policy looks at it. A proposal is made only if it is allowed.
    """

    action: str
    summary: str
    form: RefForm
    body: type[Body]
    propose: Propose
    do: Do | None = None
    finish: Finish | None = None
    abandon: Finish | None = None
    refuses: Callable[[Mapping[str, Any]], str | None] = lambda _result: None
    creates: bool = False
    reads_asked: bool = False
    sketch: Sketch | None = None
