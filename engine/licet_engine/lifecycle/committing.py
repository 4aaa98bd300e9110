"""What becomes durable with a decision, in one transaction: its entries, the facts it names, and what an allow changes.

Rules kept here:

- What is unknown and what is foreign take two entries: to the asker's log what it sent, to the owner's log (or the void log) that it
  was tried.
- It is committed on the facts version that the decision was made on, or not at all.
- The answer to a key is kept with what it did.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from licet_attestations import canonical
from licet_engine.decide.decision import Decision
from licet_engine.decide.entities import EntityUid, Fact, FactSet
from licet_engine.lifecycle.asked import Answer, Asked, Enqueued
from licet_engine.lifecycle.devices import devices_of
from licet_engine.lifecycle.entries import rows_of
from licet_engine.lifecycle.outbox import Mailing, message_rows
from licet_engine.lifecycle.tenants import InForce
from licet_engine.lifecycle.verbs import Change, Ids, Note, Proposal, Who
from licet_engine.log.submission import (
    Insert,
    NewEntry,
    Spend,
    Submission,
    Update,
)
from licet_engine.store import tables
from licet_engine.telemetry import traceparent


@dataclass(frozen=True, slots=True)
class Question:
    """A question with everything that is known about it, at one facts version."""

    who: Who
    asked: Asked
    in_force: InForce
    facts: FactSet
    resource: EntityUid
    context: Mapping[str, Any]
    proposal: Proposal | None
    ids: Ids
    owner: str
    owner_version: int | None = None
    mailing: Mailing = field(default_factory=Mailing)


def submission(
    question: Question,
    answer: Answer,
    change: Change,
    entry: tuple[NewEntry, Insert],
    ids: Ids,
    *,
    fresh: Sequence[Fact],
) -> Submission:
    """Everything that is to become durable with a decision.

    Args:
        question: What was asked.
        answer: What will be answered.
        change: What an allow writes.
        entry: The decision's own entry, and its row.
        ids: Under which it is recorded.
        fresh: The facts whose text is not known to be stored.
    """
    who, asked, proposal = question.who, question.asked, question.proposal
    entries = [entry[0]]
    if question.owner != who.tenant:
        entries.append(NewEntry(question.owner, "attempt", who.tenant, question.owner, _attempt(question, answer, ids)))
    entries += [
        NewEntry(question.owner, note.kind, who.tenant, question.owner, _note(note, answer.decision_id))
        for note in change.notes
    ]
    companions: list[Insert | Update] = [entry[1]]
    if fresh:
        rows = [{"tenant_id": who.tenant, "digest_hex": f.digest_hex, "body": f.data} for f in fresh]
        companions.append(Insert(tables.FactBlob, rows, if_absent=True))
    companions += rows_of(change, question.owner)
    companions += message_rows(question.owner, question.mailing, change.events, ids.now_ms, answer.decision_id)
    enqueue: list[Enqueued] = []
    if answer.operation is not None and proposal is not None and not asked.opens:
        # What the decision changes itself is no reason to decide again.
        stands_on = question.in_force.facts_version + (1 if _changes_facts(change) else 0)
        companions.append(Insert(tables.Operation, [_operation_row(question, answer, stands_on)]))
        needs_devices = devices_of(proposal.parameters or {}) > 0
        enqueue.append(
            Enqueued(who.tenant, answer.operation, asked.verb.action, traceparent(), needs_devices=needs_devices)
        )
    if asked.key and (change.inserts or change.updates or answer.operation):
        companions.append(Insert(tables.IdempotencyKey, [_key_row(question, answer)]))
    expect = {who.tenant: question.in_force.facts_version}
    if question.owner_version is not None:
        expect[question.owner] = question.owner_version
    return Submission(
        entries=entries,
        expect=expect,
        companions=companions,
        # A new operator's half changes nothing of the operator's own tenant.
        bump=(question.owner,) if _changes_facts(change) else (),
        enqueue=enqueue,
        spend=[Spend(question.owner, s.budget, s.amount) for s in change.spends],
    )


def policies_told(in_force: InForce, decision: Decision) -> tuple[Mapping[str, Any], ...]:
    """The policies that determined a decision, for who may read policy."""
    told = []
    for policy_id in (*decision.reasons, *decision.errors):
        policy = in_force.bundle.policies_by_id.get(policy_id)
        if policy is not None:
            notes = policy.annotations
            required = [word.strip() for word in notes.get("requires", "").split(",") if word.strip()]
            told.append(
                {"id": policy.id, "requires": required}
                | {name: notes[name] for name in ("title", "advice", "control", "severity") if name in notes}
            )
    return tuple(told)


def _attempt(question: Question, answer: Answer, ids: Ids) -> Callable[[int], bytes]:
    """The owner's half: that a foreign principal tried, what, and what was answered."""
    who, asked = question.who, question.asked
    fixed = {
        "v": 1,
        "type": "attempt",
        "id": ids.decision,
        "actor": who.tenant,
        "principal": who.uid,
        "action": asked.verb.action,
        "resource": asked.sent,
        "decision": answer.decision.word,
    }
    return lambda time_ms: canonical.dumps({**fixed, "time_ms": time_ms})


def _note(note: Note, decision_id: str) -> Callable[[int], bytes]:
    fixed = {"v": 1, "type": note.kind, **note.record, "decision": decision_id}
    return lambda time_ms: canonical.dumps({**fixed, "time_ms": time_ms})


def _changes_facts(change: Change) -> bool:
    return bool(change.inserts or change.updates or change.spends)


def _operation_row(question: Question, answer: Answer, stands_on: int) -> dict[str, Any]:
    asked, who, proposal = question.asked, question.who, question.proposal
    return {
        "tenant_id": who.tenant,
        "id": answer.operation,
        "action": asked.verb.action,
        "resource": asked.sent,
        "state": "accepted",
        "decision_id": answer.decision_id,
        "last_decision_id": answer.decision_id,
        "facts_version": stands_on,
        "principal": who.name,
        "principal_kind": who.kind,
        "parameters": {} if proposal is None else dict(proposal.parameters or {}),
        "asked": asked.body.model_dump(mode="json"),
        "claimed": [{"name": n, "value": v} for n, v in claims_about(who, asked)],
        "attempt": 0,
        "progress": None,
        "result": None,
        "error": None,
        "created_at_ms": question.ids.now_ms,
        "updated_at_ms": question.ids.now_ms,
    }


def request_digest_hex(asked: Asked) -> str:
    """By what a question is known again under its key."""
    sent = {
        "action": asked.verb.action,
        "resource": asked.sent,
        "body": asked.body.model_dump_json(),
        "claimed": [list(claim) for claim in asked.claimed],
    }
    return canonical.digest(sent).hex()


def _key_row(question: Question, answer: Answer) -> dict[str, Any]:
    body = {
        "decision": answer.decision_id,
        "reasons": list(answer.decision.reasons),
        "policies": [dict(policy) for policy in answer.policies],
        "operation": answer.operation,
        "result": dict(answer.result),
    }
    return {
        "tenant_id": question.who.tenant,
        "principal": question.who.id,
        "key": question.asked.key,
        "request_digest_hex": request_digest_hex(question.asked),
        "body": json.dumps(body, sort_keys=True),
        "at_ms": question.ids.now_ms,
    }


def claims_about(who: Who, asked: Asked) -> tuple[tuple[str, str], ...]:
    """What the asker claims, and what is known of the workload that it is."""
    return (*asked.claimed, *who.workload)
