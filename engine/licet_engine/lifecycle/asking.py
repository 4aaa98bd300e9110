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
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import Engine
from sqlmodel import select

from licet_attestations.errors import LicetAttestationError
from licet_engine.decide.cache import BoundedCache
from licet_engine.decide.decision import Decision, Request, decide
from licet_engine.decide.entities import EntityUid, Fact, FactSet
from licet_engine.decide.record import Operation as OperationPart
from licet_engine.domain.errors import Busy, Conflict, LicetError
from licet_engine.domain.refs import PLATFORM, VOID_LOG, new_id
from licet_engine.lifecycle import deploying, erasing
from licet_engine.lifecycle import facts as facts_of
from licet_engine.lifecycle.asked import Answer, Asked
from licet_engine.lifecycle.committing import Question, claims_about, policies_told, request_digest_hex, submission
from licet_engine.lifecycle.entries import decision_entry
from licet_engine.lifecycle.facts import Entity, View
from licet_engine.lifecycle.outbox import Mailing, mailing_of
from licet_engine.lifecycle.shadowing import Judged
from licet_engine.lifecycle.tenants import InForce, Tenants
from licet_engine.lifecycle.verbs import Change, Ids, Proposal, Who
from licet_engine.log.errors import SpendRefused, StaleFacts, SubmissionConflict
from licet_engine.log.sequencer import MAX_TRIES, Sequencer
from licet_engine.log.submission import (
    Receipt,
    Submission,
    UnderLock,
    tenants_of,
)
from licet_engine.store import tables
from licet_engine.store.db import tenant_session

logger = logging.getLogger(__name__)

_MAX_REMEMBERED_QUESTIONS: Final = 10_000
_MAX_REMEMBERED_BYTES: Final = 64 << 20
_BYTES_PER_QUESTION: Final = 4096
"""What a question takes beside its texts and facts, roughly."""
_MAX_REMEMBERED_CHARS: Final = 4096
_MAX_REMEMBERED_FACTS: Final = 200_000


_NOT_SHOWN: Final = (
    "the signer could not show the secret, and it is shown no more: once the signer answers, licet webhook rotate"
    " (webhook.rotate) gives a new one"
)


@dataclass(frozen=True, slots=True)
class _Prepared:
    submission: Submission
    answer: Answer
    question: Question
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


class Desk:
    """Where questions are answered.

    Args:
        engine: Of the store.
        sequencer: Through which everything gets into the logs.
        tenants: What is in force.
        decided: Told of each durable decision: its action, and whether it allowed.
        reveal: Gives the secret of a webhook of a tenant; raises an error of the signer's where it cannot.
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
        self._remembered: BoundedCache[Any, Question] = BoundedCache(
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
    ) -> Question | Answer:
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
        # Only now that it is committed, so that the signer can no more make it fail: what was done is answered as done.
        try:
            secrets = {"secret": self._reveal(question.owner, proposal.reveals)}
        except LicetAttestationError as error:
            logger.warning("a secret could not be shown", extra={"tenant": question.owner, "code": error.code})
            return replace(answer, secrets={"secret": None, "note": _NOT_SHOWN})
        return replace(answer, secrets=secrets)

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

    def _recalled(self, who: Who, asked: Asked) -> Question | None:
        key = self._recall_key(who, asked)
        question = self._remembered.get(key)
        if question is None or question.in_force.facts_version != self.tenants.version(who.tenant):
            return None
        return question

    def _question(self, who: Who, asked: Asked) -> Question:
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
        context: dict[str, Any] = {"claimed": [{"name": n, "value": v} for n, v in claims_about(who, asked)]}
        context |= dict(asked.context)
        if proposal is not None:
            context |= proposal.context
        elif asked.verb.action in _CONTEXT_OF_ELSEWHERE:
            context |= _CONTEXT_OF_ELSEWHERE[asked.verb.action](asked.body)
        question = Question(
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
    def _request(question: Question, now_ms: int) -> Request:
        return Request(
            principal=EntityUid.from_json((question.asked.subject or question.who).uid),
            action=question.asked.verb.action,
            resource=question.resource,
            context={**question.context, "now_ms": now_ms},
        )

    def _prepare(self, question: Question) -> _Prepared:
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
            policies=() if proposal is None else policies_told(question.in_force, decision),
            operation=operation,
            result=proposal.result if does and proposal is not None else {},
            secrets=proposal.secrets if does and proposal is not None else {},
            is_plain=proposal is None,
            conflict=proposal.conflict if decision.allowed and proposal is not None else None,
        )
        fresh = [f for f in question.facts if (who.tenant, f.digest_hex) not in self._stored_facts]
        made = submission(question, answer, change, entry, ids, fresh=fresh)
        return _Prepared(made, answer, question, request)

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
        if row.request_digest_hex != request_digest_hex(asked):
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


def _weight(question: Question) -> int:
    """About how many bytes a remembered question holds: what was sent, as text and as context, and its facts twice."""
    claims = sum(len(name) + len(value) for name, value in claims_about(question.who, question.asked))
    facts = sum(len(fact.data) for fact in question.facts)
    return _BYTES_PER_QUESTION + len(question.asked.sent) + 4 * 2 * claims + 4 * facts


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
    "record.erase": erasing.context_of_elsewhere,
    "approval.revoke-delegation": lambda body: {"track": body.track, "own": False},
}
