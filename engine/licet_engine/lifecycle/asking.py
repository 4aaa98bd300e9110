"""The way of a question: who asks, what is true, may they, remember.

Rules kept here:

1. Authentication comes before anything else; then the form of what was sent; then, within the asker's own tenant, the
   resource. What belongs to another tenant is never looked at.
2. What is unknown and what is foreign take one path: the isolation guardrail alone decides, the answer holds nothing but
   a number and a no, and two entries are appended in one transaction: to the asker's log what it sent, to the owner's
   log (or the void log) that it was tried.
3. A decision is durable before it is answered, allow and deny alike (law 2). It commits only on the facts version it was
   made on; else it is made again, from authentication on; after three tries under the lock of the log, where no fact
   can change.
4. What an allow changes, and the operation it accepts, are committed with it.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pydantic import ValidationError
from sqlalchemy import Engine
from sqlmodel import select

from licet_attestations import canonical
from licet_engine.decide.cache import BoundedCache
from licet_engine.decide.decision import Decision, Request, decide
from licet_engine.decide.entities import EntityUid, Fact, FactSet
from licet_engine.decide.record import Operation as OperationPart
from licet_engine.domain.errors import Busy, Conflict, InvalidInput, LicetError
from licet_engine.domain.refs import PLATFORM, VOID_LOG, Ref, new_id, parse_bundle_ref, parse_ref, parse_tenant
from licet_engine.lifecycle import deploying
from licet_engine.lifecycle import facts as facts_of
from licet_engine.lifecycle.devices import devices_of
from licet_engine.lifecycle.entries import decision_entry, rows_of
from licet_engine.lifecycle.facts import Entity, View
from licet_engine.lifecycle.outbox import Mailing, mailing_of, message_rows
from licet_engine.lifecycle.shadowing import Judged
from licet_engine.lifecycle.tenants import InForce, Tenants
from licet_engine.lifecycle.verbs import WORKLOAD, Body, Change, Ids, Note, Proposal, RefForm, Verb, Who
from licet_engine.lifecycle.wording import sentence
from licet_engine.log.errors import SpendRefused, StaleFacts, SubmissionConflict
from licet_engine.log.sequencer import MAX_TRIES, Sequencer
from licet_engine.log.submission import (
    Insert,
    NewEntry,
    Receipt,
    Spend,
    Submission,
    UnderLock,
    Update,
    tenants_of,
)
from licet_engine.store import tables
from licet_engine.store.db import tenant_session
from licet_engine.telemetry import traceparent

_MAX_REMEMBERED_QUESTIONS: Final = 10_000
_MAX_REMEMBERED_BYTES: Final = 64 << 20
_BYTES_PER_QUESTION: Final = 4096
"""What a question takes beside its texts and facts, roughly."""
_MAX_REMEMBERED_CHARS: Final = 4096
_MAX_REMEMBERED_FACTS: Final = 200_000
_MAX_CLAIMS: Final = 64
_MAX_CLAIM_CHARS: Final = 1024
_MAX_KEY_CHARS: Final = 64


@dataclass(frozen=True, slots=True)
class Enqueued:
    """An accepted operation, handed to the workflow engine in the decision's own transaction."""

    tenant: str
    operation: str
    action: str
    traceparent: str = ""
    """The trace that it belongs to, if there is one."""
    needs_devices: bool = False
    """Whether it may have to wait for devices, and so waits among its like."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered to a question, once its decision is durable.

    Attributes:
        decision_id: Under which the decision is recorded.
        decision: The decision.
        policies: For who may read policy: the deciding policies' id, title, advice and what they require.
        operation: Identifier of the accepted operation, or None.
        tenant: In whose log the decision stands.
        result: What an allow answers at once.
        secrets: Answered once and stored nowhere.
        is_plain: Whether nothing but the decision's id and a no may be told.
        conflict: Why it cannot be done, or could not be, although it is allowed.
    """

    decision_id: str
    decision: Decision
    tenant: str
    policies: tuple[Mapping[str, Any], ...] = ()
    operation: str | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    secrets: Mapping[str, Any] = field(default_factory=dict)
    is_plain: bool = False
    conflict: LicetError | None = None

    def decision_json(self) -> dict[str, Any]:
        """The decision as the API tells it."""
        told: dict[str, Any] = {"id": self.decision_id, "decision": self.decision.word}
        if not self.is_plain:
            told |= {
                "policies": [dict(policy) for policy in self.policies],
                "errors": list(self.decision.errors),
                "observed": list(self.decision.observed),
            }
        return told

    def conflict_json(self) -> dict[str, str] | None:
        """Why it cannot be done although it is allowed, as the API tells it to who only asks."""
        return None if self.conflict is None else {"code": self.conflict.code, "detail": self.conflict.message}

    def to_json(self) -> dict[str, Any]:
        """The whole answer, with its secrets."""
        operation = None
        if self.operation is not None:
            operation = {"id": self.operation, "tenant": self.tenant, "state": "accepted"}
        return {
            "decision": self.decision_json(),
            "operation": operation,
            "result": {**self.result, **self.secrets},
        }


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as it was sent, its form already verified.

    Attributes:
        verb: What is asked for.
        ref: Of which resource.
        sent: The resource as it was written.
        body: The parameters.
        claimed: What the asker asserts; never a fact.
        is_dry: Whether only the decision is wanted.
        key: Idempotency key, or empty.
        context: Facts of the platform about the question itself, such as whether a decision is the asker's own.
        subject: On whose behalf it is asked, if not the asker's own.
        opens: Whether an allow opens a session: its record names an operation, of which no worker is told.
    """

    verb: Verb
    ref: Ref
    sent: str
    body: Body
    claimed: tuple[tuple[str, str], ...] = ()
    is_dry: bool = False
    key: str = ""
    context: tuple[tuple[str, Any], ...] = ()
    subject: Who | None = None
    opens: bool = False


@dataclass(frozen=True, slots=True)
class _Question:
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


@dataclass(frozen=True, slots=True)
class _Prepared:
    submission: Submission
    answer: Answer
    question: _Question
    request: Request


class _Known(Exception):  # No error: it carries an answer out of the sequencer, and never leaves this module.
    def __init__(self, answer: Answer) -> None:
        super().__init__("this was answered before")
        self.answer = answer


class _Put:
    """Puts a question, anew each time it is called, and keeps how it was decided last."""

    def __init__(self, put: Callable[[], _Prepared | Answer]) -> None:
        # On whichever thread it is put, it belongs to the request at hand.
        self._context = copy_context()
        self._put = put
        self.prepared: _Prepared

    def __call__(self) -> Submission:
        prepared = self._context.run(self._put)
        if isinstance(prepared, Answer):
            raise _Known(prepared)
        self.prepared = prepared
        return prepared.submission


def _too_fast(asked: Asked) -> Busy:
    return Busy(f"the facts of {asked.ref.tenant} change too fast to decide on; try again")


def parse_asked(
    verb: Verb,
    resource: Any,
    parameters: Any,
    *,
    claimed: Any = None,
    is_dry: bool = False,
    key: str = "",
    subject: Who | None = None,
) -> Asked:
    """Verify the form of a question.

    Raises:
        InvalidInput: What was sent has not the form that the verb takes.
    """
    if not isinstance(resource, str):
        fault = "is missing: it is" if resource is None else "must be"
        raise InvalidInput(f"{verb.action}: resource {fault} text of the form {verb.form.value}")
    try:
        # The strict form of JSON: a list stays a list and a number a number; what is undeclared is refused.
        body = verb.body.model_validate({} if parameters is None else parameters)
    except ValidationError as error:
        raise InvalidInput(f"{verb.action}: {sentence(error, verb.body)}") from error
    if _has_nul(body.model_dump()):
        raise InvalidInput(f"{verb.action}: a text has a NUL character, which no database keeps")
    if len(key) > _MAX_KEY_CHARS or not key.isascii() or not key.isprintable():
        raise InvalidInput(f"an Idempotency-Key has at most {_MAX_KEY_CHARS} printable ASCII characters")
    return Asked(
        verb=verb,
        ref=_parse_ref(verb.form, resource),
        sent=resource,
        body=body,
        claimed=_parse_claims(claimed),
        is_dry=is_dry,
        key=key,
        subject=subject,
    )


def _has_nul(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_nul(part) for pair in value.items() for part in pair)
    if isinstance(value, (list, tuple)):
        return any(map(_has_nul, value))
    return isinstance(value, str) and "\0" in value


def _parse_ref(form: RefForm, text: str) -> Ref:
    if form is RefForm.TENANT:
        return Ref(parse_tenant(text), "")
    if form is RefForm.BUNDLE:
        return parse_bundle_ref(text)
    if form is RefForm.NAME_OR_VERSION:
        return parse_ref(text, versioned="@" in text)
    return parse_ref(text, versioned=form is RefForm.VERSION)


def _parse_claims(claimed: Any) -> tuple[tuple[str, str], ...]:
    if claimed is None:
        return ()
    if not isinstance(claimed, Mapping) or len(claimed) > _MAX_CLAIMS:
        raise InvalidInput(f"claimed must be an object of at most {_MAX_CLAIMS} texts")
    for name, value in claimed.items():
        if not isinstance(name, str) or not isinstance(value, str) or len(name) + len(value) > _MAX_CLAIM_CHARS:
            raise InvalidInput(f"a claim is a text under a name, both together at most {_MAX_CLAIM_CHARS} characters")
        if name.startswith(WORKLOAD):
            raise InvalidInput(f"claims under {WORKLOAD}* are the service's own, of what an ID token was exchanged for")
    return tuple(sorted(claimed.items()))


class Desk:
    """Where questions are answered.

    Args:
        engine: Of the store.
        sequencer: Through which everything gets into the logs.
        tenants: What is in force.
        decided: Told of each durable decision: its action, and whether it allowed.
        reveal: Gives the secret of a webhook of a tenant.
        shadow: Handed each durable decision that a candidate is to be asked about.
    """

    def __init__(
        self,
        engine: Engine,
        sequencer: Sequencer,
        tenants: Tenants,
        decided: Callable[[str, bool], None] = lambda _action, _allowed: None,
        reveal: Callable[[str, str], str] | None = None,
        *,
        shadow: Callable[[Judged | None], None] = lambda _judged: None,
    ) -> None:
        self._decided = decided
        self._shadow = shadow
        self._reveal = reveal
        self._engine = engine
        self._sequencer = sequencer
        self.tenants = tenants
        self._remembered: BoundedCache[Any, _Question] = BoundedCache(
            max_entries=_MAX_REMEMBERED_QUESTIONS, max_weight=_MAX_REMEMBERED_BYTES
        )
        self._stored_facts: OrderedDict[tuple[str, str], None] = OrderedDict()

    # --- the two ways to ask ---------------------------------------------------------------------------------------

    def ask(self, identify: Callable[[], Who], asked: Asked, *, verify: Callable[[Who], None] | None = None) -> Answer:
        """Answer a question; blocks until its decision is durable.

        Args:
            identify: Tells who asks; asked again for every try.
            asked: The question.
            verify: Raises if what the question names beside its resource is not there. Not called for a question that
                was answered before: by then it may be used up.

        Raises:
            Unauthenticated: Nobody who may ask.
            Conflict: The key was used for another question.
            Busy: The facts change faster than they can be decided on, and this is not decided under the lock.
        """
        put = _Put(lambda: self._put(identify, asked, verify))
        try:
            # Another request with this key, or one that spent or changed the same rows, may come first: look again then.
            receipt = self._sequencer.append_fresh(
                put, again_on=(SpendRefused, SubmissionConflict), locks=asked.verb.sketch is None
            )
        except _Known as known:
            return known.answer
        except StaleFacts as error:
            raise _too_fast(asked) from error
        except (SpendRefused, SubmissionConflict) as error:
            raise Busy(f"what {asked.verb.action} on {asked.sent} changes is not as it was read; try again") from error
        return self._answered(put.prepared, receipt)

    def _put(
        self, identify: Callable[[], Who], asked: Asked, verify: Callable[[Who], None] | None
    ) -> _Prepared | Answer:
        """Decide a question on the facts of now; its answer, if it was answered before."""
        who = identify()
        known = self._replayed(who, asked)
        if known is not None:
            return known
        question = self._question_unless_replayed(who, asked, verify)
        return question if isinstance(question, Answer) else self._prepare(question)

    def _question_unless_replayed(
        self, who: Who, asked: Asked, verify: Callable[[Who], None] | None
    ) -> _Question | Answer:
        """Read the facts of a question; give the answer to its key instead, if there is one by then.

        The same request may have been done since the key was looked for. What it made or used up is then among the
        facts, and would be told as a conflict, or a deny, to the very sender for whom it was done. So the key is looked
        for again after the facts were read; what is done after that is not among them, and the commit finds them stale.
        """
        try:
            if verify is not None:
                verify(who)
            question = self._question(who, asked)
        except LicetError:
            known = self._replayed(who, asked)
            if known is None:
                raise
            return known
        return self._replayed(who, asked) or question

    def foresee(self, who: Who, asked: Asked) -> bool:
        """Whether a question would be allowed as things stand.

        Nothing is logged, so nothing may be answered from it: it only chooses which of two questions is put.
        """
        question = self._question(who, asked)
        return decide(question.in_force.bundle, self._request(question, question.ids.now_ms), question.facts).allowed

    async def ask_async(self, identify: Callable[[], Who], asked: Asked, in_thread: Callable[..., Any]) -> Answer:
        """Answer a dry question without blocking; facts that are not in memory are read by ``in_thread``."""
        tenants: frozenset[str] = frozenset()
        for _ in range(MAX_TRIES):
            who = identify()
            question = self._recalled(who, asked)
            if question is None:
                question = await in_thread(self._question, who, asked)
            prepared = self._prepare(question)
            tenants = tenants_of(prepared.submission)
            try:
                receipt = await self._sequencer.submit_async(prepared.submission)
            except StaleFacts as error:
                self.tenants.seen(error.tenant_id, error.found)
                continue
            return self._answered(prepared, receipt)
        put = _Put(lambda: self._prepare(self._question(identify(), asked)))
        try:
            receipt = await self._sequencer.submit_async(UnderLock(tenants, put))
        except (StaleFacts, SubmissionConflict) as error:
            raise _too_fast(asked) from error
        return self._answered(put.prepared, receipt)

    def _answered(self, prepared: _Prepared, receipt: Receipt) -> Answer:
        question = prepared.question
        self._decided(question.asked.verb.action, prepared.answer.decision.allowed)
        for tenant, version in receipt.facts_versions.items():
            self.tenants.seen(tenant, version, receipt.placed[0].time_ms)
        for digest_hex in question.facts.digests:
            self._stored_facts[(question.who.tenant, digest_hex)] = None
        while len(self._stored_facts) > _MAX_REMEMBERED_FACTS:
            self._stored_facts.popitem(last=False)
        answer, proposal = prepared.answer, question.proposal
        if proposal is not None and question.owner == question.who.tenant:
            # Not what crosses the wall, nor what is elsewhere: of these a candidate is told nothing.
            judged = Judged.of(
                question.in_force,
                answer.decision_id,
                receipt.placed[0].time_ms,
                request=prepared.request,
                facts=question.facts,
                decision=answer.decision,
            )
            self._shadow(judged)
        if proposal is None or not proposal.reveals or not answer.result or self._reveal is None:
            return answer
        # Only now that it is committed; if the signer is away, nobody ever sees it, and a rotation makes another.
        return replace(answer, secrets={"secret": self._reveal(question.owner, proposal.reveals)})

    # --- what is true ----------------------------------------------------------------------------------------------

    def _recall_key(self, who: Who, asked: Asked) -> Any:
        if not asked.is_dry:
            return None
        return (
            who,
            self.tenants.version(who.tenant),
            asked.verb.action,
            asked.sent,
            asked.claimed,
            asked.context,
            asked.subject,
            asked.body.model_dump_json(),
        )

    def _recalled(self, who: Who, asked: Asked) -> _Question | None:
        key = self._recall_key(who, asked)
        question = self._remembered.get(key)
        if question is None or question.in_force.facts_version != self.tenants.version(who.tenant):
            return None
        return question

    def _question(self, who: Who, asked: Asked) -> _Question:
        """Read the facts of a question, from one consistent state."""
        with self.tenants.view(who.tenant) as found:
            if found is None:
                raise Busy(f"tenant {who.tenant} is not there yet; try again")
            view, in_force = found
            ids = Ids(decision=new_id(), operation=new_id(), now_ms=view.asked_at_ms)
            # Whose permissions count: who asks on behalf of another was permitted to do so by a decision of its own.
            subject = asked.subject or who
            principal = view.principal(subject.name)
            asker: list[Entity] = [view.tenant_entity()]
            if principal is not None:
                asker.append(view.principal_entity(principal))
            proposal, owner_version = self._sketch(view, in_force, subject, asked, asker), None
            if proposal is None:
                proposal, owner_version = self._propose(view, subject, asked, ids)
            mailing = mailing_of(view) if proposal is not None and proposal.change.events else Mailing()
        extra = facts_of.elsewhere_entities(asked.sent) if proposal is None else [proposal.resource, *proposal.entities]
        resource = extra[0]
        facts = FactSet(Fact.from_entity(entity) for entity in (*asker, *extra))
        context: dict[str, Any] = {"claimed": [{"name": n, "value": v} for n, v in _claims(who, asked)]}
        context |= dict(asked.context)
        if proposal is not None:
            context |= proposal.context
        elif asked.verb.action in _CONTEXT_OF_ELSEWHERE:
            context |= _CONTEXT_OF_ELSEWHERE[asked.verb.action](asked.body)
        question = _Question(
            who=who,
            asked=asked,
            in_force=in_force,
            facts=facts,
            resource=EntityUid.from_json(resource["uid"]),
            context=context,
            proposal=proposal,
            ids=ids,
            owner=self._owner(who, asked, proposal),
            owner_version=owner_version,
            mailing=mailing,
        )
        # What rests on more than facts may be otherwise the next time, though the facts are the same.
        is_lasting = asked.verb.sketch is None and not view.is_passing
        if asked.is_dry and is_lasting and len(asked.body.model_dump_json()) <= _MAX_REMEMBERED_CHARS:
            self._remembered.put(self._recall_key(who, asked), question, _weight(question))
        return question

    def _sketch(
        self, view: View, in_force: InForce, who: Who, asked: Asked, asker: Sequence[Entity]
    ) -> Proposal | None:
        """Where proposing is costly: what is denied on a sketch of it already, so that the cost is not incurred."""
        if asked.verb.sketch is None or asked.ref.tenant != who.tenant:
            return None
        entity = asked.verb.sketch(view, who, asked.ref)
        request = Request(
            principal=EntityUid.from_json(who.uid),
            action=asked.verb.action,
            resource=EntityUid.from_json(entity["uid"]),
            context={"claimed": [], "now_ms": view.asked_at_ms},
        )
        facts = FactSet(Fact.from_entity(part) for part in (*asker, entity))
        allowed = decide(in_force.bundle, request, facts, remember=False).allowed
        return None if allowed else Proposal(resource=entity)

    def _propose(self, view: View, who: Who, asked: Asked, ids: Ids) -> tuple[Proposal | None, int | None]:
        """What the question is about, or None for what is unknown or foreign."""
        if asked.ref.tenant == who.tenant:
            return asked.verb.propose(view, who, asked.ref, asked.body, ids), None
        if who.tenant == PLATFORM and asked.verb.action.startswith("tenant."):
            # Operators administer tenants, and nothing of a tenant's: no other verb reaches beyond the wall. What is the tenant's
            # changes without the operators' facts.
            view.is_passing = True
            with self.tenants.view(asked.ref.tenant) as found:
                if found is None:
                    is_new = asked.verb.creates
                    return (asked.verb.propose(view, who, asked.ref, asked.body, ids) if is_new else None), None
                return asked.verb.propose(found[0], who, asked.ref, asked.body, ids), found[1].facts_version
        return None, None

    def _owner(self, who: Who, asked: Asked, proposal: Proposal | None) -> str:
        """In whose log the other half stands."""
        # Asked of the database in every case, so that the time it takes tells nothing.
        exists = self.tenants.exists(asked.ref.tenant)
        if asked.ref.tenant == who.tenant:
            return who.tenant if proposal is not None else VOID_LOG
        if exists or (proposal is not None and asked.verb.creates):
            return asked.ref.tenant
        return VOID_LOG

    # --- may they, and remember ------------------------------------------------------------------------------------

    @staticmethod
    def _request(question: _Question, now_ms: int) -> Request:
        return Request(
            principal=EntityUid.from_json((question.asked.subject or question.who).uid),
            action=question.asked.verb.action,
            resource=question.resource,
            context={**question.context, "now_ms": now_ms},
        )

    def _prepare(self, question: _Question) -> _Prepared:
        """Decide, and write down everything that is to become durable with the decision."""
        who, asked, ids, proposal = question.who, question.asked, question.ids, question.proposal
        if asked.is_dry:
            # A remembered question is decided anew each time, under a number and a time of its own.
            ids = Ids(decision=new_id(), operation="", now_ms=self.tenants.now_ms(who.tenant))
        request = self._request(question, ids.now_ms)
        decision = decide(question.in_force.bundle, request, question.facts)
        does = decision.allowed and not asked.is_dry and proposal is not None and proposal.conflict is None
        change = proposal.change if does and proposal is not None else Change()
        # What no worker performs is no operation, unless it is a session that is opened.
        is_work = asked.verb.do is not None or asked.opens
        operation = (
            ids.operation if does and is_work and proposal is not None and proposal.parameters is not None else None
        )
        part = None
        if operation is not None and proposal is not None:
            part = OperationPart.about(
                operation, "", tenant=who.tenant, resource=request.resource.id, parameters=proposal.parameters or {}
            )

        entry = decision_entry(
            who,
            ids.decision,
            request=request,
            decision=decision,
            facts=question.facts,
            in_force=question.in_force,
            operation=part,
            sent=asked.sent,
            # What stands in the asker's log never tells whether a foreign thing exists.
            owner=VOID_LOG if proposal is None else question.owner,
            asked_by=EntityUid.from_json(who.uid) if asked.subject is not None else None,
        )
        answer = Answer(
            decision_id=ids.decision,
            decision=decision,
            tenant=who.tenant,
            policies=() if proposal is None else _policies(question.in_force, decision),
            operation=operation,
            result=proposal.result if does and proposal is not None else {},
            secrets=proposal.secrets if does and proposal is not None else {},
            is_plain=proposal is None,
            conflict=proposal.conflict if decision.allowed and proposal is not None else None,
        )
        return _Prepared(self._submission(question, answer, change, entry, ids), answer, question, request)

    def _submission(
        self, question: _Question, answer: Answer, change: Change, entry: tuple[NewEntry, Insert], ids: Ids
    ) -> Submission:
        who, asked, proposal = question.who, question.asked, question.proposal
        entries = [entry[0]]
        if question.owner != who.tenant:
            entries.append(
                NewEntry(question.owner, "attempt", who.tenant, question.owner, _attempt(question, answer, ids))
            )
        entries += [
            NewEntry(question.owner, note.kind, who.tenant, question.owner, _note(note, answer.decision_id))
            for note in change.notes
        ]
        companions: list[Insert | Update] = [entry[1]]
        fresh = [f for f in question.facts if (who.tenant, f.digest_hex) not in self._stored_facts]
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

    # --- the same request again ------------------------------------------------------------------------------------

    def _replayed(self, who: Who, asked: Asked) -> Answer | None:
        """What was answered to this key, if it was used for this very question."""
        if not asked.key or asked.is_dry or not self.tenants.may_act(who):
            # Who may not act any more is answered by a decision, not from what was decided before.
            return None
        with tenant_session(self._engine, who.tenant) as session:
            row = session.exec(
                select(tables.IdempotencyKey).where(
                    tables.IdempotencyKey.principal == who.id, tables.IdempotencyKey.key == asked.key
                )
            ).first()
        if row is None:
            return None
        if row.request_digest_hex != _request_digest_hex(asked):
            raise Conflict(
                f"Idempotency-Key {asked.key!r} was used for another request; use a fresh key for each request",
                code="idempotency-key-reused",
            )
        stored = json.loads(row.body)
        return Answer(
            decision_id=stored["decision"],
            decision=Decision(allowed=True, reasons=tuple(stored["reasons"])),
            tenant=who.tenant,
            policies=tuple(stored["policies"]),
            operation=stored["operation"],
            result=stored["result"],
        )


def _claims(who: Who, asked: Asked) -> tuple[tuple[str, str], ...]:
    """What the asker claims, and what is known of the workload that it is."""
    return (*asked.claimed, *who.workload)


def _weight(question: _Question) -> int:
    """About how many bytes a remembered question holds: what was sent, as text and as context, and its facts twice."""
    claims = sum(len(name) + len(value) for name, value in _claims(question.who, question.asked))
    facts = sum(len(fact.data) for fact in question.facts)
    return _BYTES_PER_QUESTION + len(question.asked.sent) + 4 * 2 * claims + 4 * facts


# --- the parts of a submission ----------------------------------------------------------------------------------------


def _policies(in_force: InForce, decision: Decision) -> tuple[Mapping[str, Any], ...]:
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


def _attempt(question: _Question, answer: Answer, ids: Ids) -> Callable[[int], bytes]:
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


def _operation_row(question: _Question, answer: Answer, stands_on: int) -> dict[str, Any]:
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
        "claimed": [{"name": n, "value": v} for n, v in _claims(who, asked)],
        "attempt": 0,
        "progress": None,
        "result": None,
        "error": None,
        "created_at_ms": question.ids.now_ms,
        "updated_at_ms": question.ids.now_ms,
    }


def _request_digest_hex(asked: Asked) -> str:
    sent = {
        "action": asked.verb.action,
        "resource": asked.sent,
        "body": asked.body.model_dump_json(),
        "claimed": [list(claim) for claim in asked.claimed],
    }
    return canonical.digest(sent).hex()


def _key_row(question: _Question, answer: Answer) -> dict[str, Any]:
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
        "request_digest_hex": _request_digest_hex(question.asked),
        "body": json.dumps(body, sort_keys=True),
        "at_ms": question.ids.now_ms,
    }


_CONTEXT_OF_ELSEWHERE: Mapping[str, Callable[[Any], Mapping[str, Any]]] = {
    # The schema wants these of the action; of what is elsewhere only what was sent is known.
    "dataset.classify": lambda _: {"loosens": False},
    "model.register": lambda _: {"replaces": False},
    "model.promote": lambda body: {"stage": body.stage, "region": body.region or ""},
    "model.approve": lambda body: {"track": body.track, "verdict": body.verdict, "people": []},
    "endpoint.deploy": deploying.context_of_elsewhere,
    "endpoint.shift-traffic": lambda _: {"unfit": 0},
    "model.request": lambda body: {"track": body.track},
    "tenant.break-glass": lambda _: {"until_ms": 0},
    "tenant.request-break-glass": lambda _: {"unreviewed": 0},
    "model.withdraw-request": lambda body: {"track": body.track, "own": False},
    "model.withdraw-approval": lambda body: {"track": body.track, "own": False},
    "approval.delegate": lambda body: {"track": body.track, "until_ms": body.until_ms, "received": False},
    "approval.revoke-delegation": lambda body: {"track": body.track, "own": False},
}
