"""What happens to approvals without anybody's asking: they are voided by change, and what ends soon is reminded of.

Rules kept here:

- Law 7: an approval whose binding is another by now is void. Policy never counts it; here it is also recorded, with what
  changed, and told. So it does not come back when a change is undone.
- Each is told once, however many processes look: the row that remembers it is changed on the condition that it does not
  yet, in the transaction of the entry that says so.
- A tenant is looked at when its facts have changed, or the time of something has come.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Engine
from sqlmodel import col, select

from licet_attestations import canonical
from licet_engine.domain.binding import changed_parts
from licet_engine.domain.errors import LicetError
from licet_engine.domain.refs import Ref
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.outbox import mailing_of, message_rows
from licet_engine.lifecycle.tenants import Tenants
from licet_engine.lifecycle.verbs import Event
from licet_engine.log.errors import LogError
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import NewEntry, Submission, Update
from licet_engine.store.db import UnsafeAllTenants
from licet_engine.store.tables import Approval, ApprovalRequest, LogHead

logger = logging.getLogger(__name__)

_MOST_AT_ONCE: Final = 200
_LATEST_MS: Final = 1 << 62


@dataclass
class _Found:
    """What is due in one tenant."""

    records: list[dict[str, Any]] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    changes_facts: bool = False
    next_at_ms: int = _LATEST_MS

    @property
    def is_full(self) -> bool:
        return len(self.records) >= _MOST_AT_ONCE

    def add(self, record: dict[str, Any], update: Update, event: Event) -> None:
        self.records.append(record)
        self.updates.append(update)
        self.events.append(event)


class Reminders:
    """Looks after the approvals of every tenant.

    Args:
        engine: Of the store.
        sequencer: Through which everything gets into the logs.
        tenants: What is in force.
    """

    def __init__(self, engine: Engine, sequencer: Sequencer, tenants: Tenants) -> None:
        self._engine = engine
        self._sequencer = sequencer
        self._tenants = tenants
        self._looked_at: dict[str, tuple[int, int]] = {}

    def look(self) -> None:
        """Look at every tenant once; what fails is looked at again the next time."""
        with UnsafeAllTenants(self._engine, "reminders are due in every tenant") as session:
            heads = session.exec(
                select(LogHead.tenant_id, LogHead.facts_version).order_by(col(LogHead.tenant_id))
            ).all()
        for tenant, facts_version in heads:
            version, next_at_ms = self._looked_at.get(tenant, (-1, 0))
            if version == facts_version and self._tenants.now_ms(tenant) < next_at_ms:
                continue
            try:
                self._look_at(tenant, facts_version)
            except (LicetError, LogError) as error:
                # The facts changed meanwhile, or another process told of the same.
                logger.info("reminders wait", extra={"tenant": tenant, "reason": str(error)})

    def _look_at(self, tenant: str, facts_version: int) -> None:
        with self._tenants.view(tenant) as found:
            if found is None:
                # The log of what is elsewhere has no tenant, and nothing is ever due there.
                self._looked_at[tenant] = (facts_version, _LATEST_MS)
                return
            view, in_force = found
            due = _due(view)
            if not due.records:
                self._looked_at[tenant] = (in_force.facts_version, due.next_at_ms)
                return
            mailing = mailing_of(view)
        # A void approval is a fact like any other; a reminder is none.
        submission = Submission(
            entries=[_entry(tenant, record) for record in due.records],
            expect={tenant: in_force.facts_version},
            companions=[*due.updates, *message_rows(tenant, mailing, due.events, view.now_ms, "")],
            bump=(tenant,) if due.changes_facts else (),
        )
        receipt = self._sequencer.append(submission)
        for changed, at_version in receipt.facts_versions.items():
            self._tenants.seen(changed, at_version, receipt.placed[0].time_ms)


def _entry(tenant: str, record: dict[str, Any]) -> NewEntry:
    fixed = {"v": 1, "type": "approval", **record}
    return NewEntry(tenant, "approval", tenant, tenant, lambda at_ms: canonical.dumps({**fixed, "time_ms": at_ms}))


def _due(view: View) -> _Found:
    due = _Found()
    _void(view, due)
    remind_ms = view.tenant.remind_before_s * 1000
    _remind(view, due, _open_requests(view), remind_ms)
    _remind(view, due, _standing(view), remind_ms)
    return due


def _open_requests(view: View) -> Sequence[ApprovalRequest]:
    return [request for request in view.approval_requests() if request.reminded_at_ms is None]


def _standing(view: View) -> Sequence[Approval]:
    return [
        approval
        for approval in view.untold_approvals()
        if approval.voided_at_ms is None and approval.reminded_at_ms is None and approval.expires_at_ms > view.now_ms
    ]


def _void(view: View, due: _Found) -> None:
    known: dict[tuple[str, int], dict[str, Any]] = {}
    for approval in view.untold_approvals():
        of = (approval.model, approval.version)
        if of not in known:
            row = view.model_version(*of)
            # What is no longer there, and what never came to be, has nothing to be compared with.
            known[of] = dict(view.binding_parts(row)) if row is not None and row.state == "ready" else {}
        parts = known[of]
        is_other = bool(parts) and canonical.digest(parts).hex() != approval.binding
        if due.is_full or (approval.voided_at_ms is None and not is_other):
            continue
        ref = Ref(view.tenant.tenant_id, approval.model, approval.version)
        told = {
            "version": str(ref),
            "track": approval.track,
            "approval": approval.id,
            "approver": f"{ref.tenant}/{approval.approver}",
            "changed": changed_parts(approval.parts, parts) if parts else [],
        }
        values: dict[str, Any] = {"void_told_at_ms": view.now_ms}
        if approval.voided_at_ms is None:
            values["voided_at_ms"] = view.now_ms
            due.changes_facts = True
        key = {"tenant_id": ref.tenant, "id": approval.id, "void_told_at_ms": None}
        due.add({"event": "approval-voided", **told}, Update(Approval, key, values), Event("approval.voided", told))


def _remind(view: View, due: _Found, rows: Sequence[Approval] | Sequence[ApprovalRequest], remind_ms: int) -> None:
    for row in rows:
        remind_at_ms = row.expires_at_ms - remind_ms
        if remind_at_ms > view.now_ms:
            due.next_at_ms = min(due.next_at_ms, remind_at_ms)
            continue
        if due.is_full or any(update.key.get("id") == row.id for update in due.updates):
            continue
        tenant = view.tenant.tenant_id
        what = "approval" if isinstance(row, Approval) else "request"
        told = {
            "what": what,
            what: row.id,
            "version": str(Ref(tenant, row.model, row.version)),
            "track": row.track,
            "expires_at_ms": row.expires_at_ms,
        }
        key = {"tenant_id": tenant, "id": row.id, "reminded_at_ms": None}
        record = {"event": f"{what}-expiring", **told}
        due.add(record, Update(type(row), key, {"reminded_at_ms": view.now_ms}), Event("approval.expiring", told))
