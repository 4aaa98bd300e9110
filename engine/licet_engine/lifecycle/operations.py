"""Accepted operations, as the api keeps them while the worker performs them.

Rules kept here:

- The worker decides nothing and writes none of our tables: it asks here, through the internal door.
- A decision that a warrant is to be made on is fresh: neither old, nor made on facts that have changed since. Else it is
  made again, logged, on the facts of now. A deny ends the operation as ``refused``.
- Every method can be called again after a lost answer: what was done is not done twice.
- What an operation did becomes facts in one transaction with the log entry that says so.
- Only the newest attempt is listened to.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import Engine
from sqlmodel import select

from licet_adapters.ports import Metric
from licet_attestations import canonical, dsse
from licet_attestations.errors import LicetAttestationError
from licet_attestations.statement import Statement, tenant_of
from licet_attestations.trustroot import TrustRoot
from licet_engine.decide.decision import Decision, Request, decide
from licet_engine.decide.entities import EntityUid, Fact, FactSet
from licet_engine.decide.record import Operation as OperationPart
from licet_engine.domain.errors import Conflict, InvalidInput, LicetError, Unavailable
from licet_engine.domain.refs import new_id, now_ms
from licet_engine.lifecycle import training
from licet_engine.lifecycle.again import Refused, as_it_is_now
from licet_engine.lifecycle.catalogue import VERBS
from licet_engine.lifecycle.deed import SUPERSEDED
from licet_engine.lifecycle.devices import Claim, DeviceLeases, devices_of
from licet_engine.lifecycle.ending import End, change_at_end, ending, failed
from licet_engine.lifecycle.entries import decision_entry
from licet_engine.lifecycle.holding import told_again
from licet_engine.lifecycle.outbox import Mailing, mailing_of, message_rows
from licet_engine.lifecycle.shadowing import Judged
from licet_engine.lifecycle.tenants import Tenants
from licet_engine.lifecycle.verbs import Ids, Who
from licet_engine.log import store
from licet_engine.log.directory import Directory
from licet_engine.log.errors import NoSuchEntry, SubmissionConflict
from licet_engine.log.notary import Notary
from licet_engine.log.sequencer import MAX_TRIES, Sequencer
from licet_engine.log.submission import Insert, NewEntry, Submission, Update
from licet_engine.log.witnesses import Witnesses
from licet_engine.store import tables
from licet_engine.store.db import read_transaction, tenant_session
from licet_policies.bundle import safety_valve_actions

ENDED: Final = frozenset({"done", "failed", "refused"})
logger = logging.getLogger(__name__)

_MAX_METRICS: Final = 10_000
_TRAIN: Final = "train"
_WAIT_FOR_WITNESSES_S: Final = 5.0
"""For which an export waits for the newest entries to be cosigned, before it is content with a somewhat older checkpoint."""


class NoSuchOperation(LicetError):
    """The worker asks for an operation that was never accepted: a defect, or a forged call."""

    default_code = "no-such-operation"


class _Ended(Exception):  # No error: somebody else ended the operation; never leaves this module.
    def __init__(self, row: tables.Operation) -> None:
        super().__init__("the operation has ended")
        self.row = row


class Superseded(LicetError):
    """A newer attempt at the operation began: the worker that asks must end."""

    status = 409
    default_code = SUPERSEDED


@dataclass(frozen=True, slots=True)
class _Material:
    """What the signer needs to make a warrant on a decision."""

    leaf: str
    leaf_index: int
    salt: bytes
    record: str
    proof: list[bytes]
    checkpoint: str

    def to_json(self) -> dict[str, Any]:
        return {
            "leaf": self.leaf,
            "leaf_index": self.leaf_index,
            "salt": self.salt.hex(),
            "record": self.record,
            "proof": [part.hex() for part in self.proof],
            "checkpoint": self.checkpoint,
        }


class Operations:
    """What the internal door offers.

    Args:
        engine: Of the store.
        sequencer: Through which everything gets into the logs.
        tenants: What is in force.
        notary: Has checkpoints signed.
        trust_root: Keys that attestations must bear.
        witnesses: Without whose quorum, where one is required, no warrant is made; those of safety valves are.
        directory: Has what ties a log to all others.
        devices: Who has which device.
        max_age_s: How old a decision may be for a warrant.
        decided: Told of each decision that is made again: its action, and whether it allowed.
        ended: Told of each operation that ends: its action and state.
        shadow: Handed each decision that is made again and that a candidate is to be asked about.
    """

    def __init__(
        self,
        engine: Engine,
        sequencer: Sequencer,
        tenants: Tenants,
        notary: Notary,
        trust_root: TrustRoot,
        *,
        witnesses: Witnesses,
        directory: Directory,
        devices: DeviceLeases,
        max_age_s: int,
        decided: Callable[[str, bool], None] = lambda _action, _allowed: None,
        ended: Callable[[str, str], None] = lambda _action, _state: None,
        shadow: Callable[[Judged | None], None] = lambda _judged: None,
    ) -> None:
        self._shadow = shadow
        self._decided = decided
        self._ended = ended
        self._engine = engine
        self._sequencer = sequencer
        self._tenants = tenants
        self._notary = notary
        self._trust_root = trust_root
        self._witnesses = witnesses
        self._directory = directory
        self._devices = devices
        self._max_age_ms = max_age_s * 1000

    def handlers(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        """The methods of the internal door, by name; parameters and results are canonical JSON."""
        return {
            "state": lambda p: {"state": self._operation(p["tenant"], p["operation"]).state},
            "begin": lambda p: self.begin(p["tenant"], p["operation"]),
            "license": lambda p: self.license(p["tenant"], p["operation"], p["attempt"], p["step"]),
            "renew": lambda p: self.renew(p["tenant"], p["operation"], p["attempt"]),
            "lease": lambda p: self.lease(p["tenant"], p["operation"], p["attempt"], p["worker"]),
            "devices": lambda p: self._devices.report(p["worker"], p["devices"]),
            "report": lambda p: self.report(p["tenant"], p["operation"], p["attempt"], p["metrics"]),
            "attest": lambda p: self.attest(p["tenant"], p["operation"], p["envelope"]),
            "finish": lambda p: self.finish(p["tenant"], p["operation"], p["attempt"], p["result"]),
            "fail": lambda p: self.fail(p["tenant"], p["operation"], p["attempt"], p["error"], refused=p["refused"]),
            "directory": lambda p: {"file": self._directory_file(p["tenant"], p["size"])},
            "checkpoint": lambda p: dict(
                zip(("size", "note"), self._witnesses.for_evidence(p["tenant"], _WAIT_FOR_WITNESSES_S), strict=True)
            ),
        }

    # --- performing ------------------------------------------------------------------------------------------------

    def begin(self, tenant: str, operation_id: str) -> dict[str, Any]:
        """Begin an attempt at an operation; an operation that ended is told as such."""
        with tenant_session(self._engine, tenant, write=True) as session:
            # Locked: of two that begin it at once each gets a number of its own, and none begins what just ended.
            row = session.exec(
                select(tables.Operation).where(tables.Operation.id == operation_id).with_for_update()
            ).first()
            if row is None:
                raise NoSuchOperation(f"operation {tenant}/{operation_id} was never accepted")
            if row.state not in ENDED:
                row.state = "running"
                row.attempt += 1
                row.updated_at_ms = now_ms()
                session.add(row)
            return {
                "action": row.action,
                "resource": row.resource,
                "state": row.state,
                "attempt": row.attempt,
                "decision": row.decision_id,
                "principal": row.principal,
                "parameters": row.parameters,
                "asked": row.asked if VERBS[row.action].reads_asked else {},
                "created_at_ms": row.created_at_ms,
            }

    def license(self, tenant: str, operation_id: str, attempt: int, step: str) -> dict[str, Any]:
        """What the signer needs for a warrant: the allowing decision, fresh, and the proof that it is in the log.

        Raises:
            Refused: Decided again, the answer is no.
            Superseded: A newer attempt began.
            Unavailable: A quorum of witnesses is required, and has not seen the log for too long.
        """
        row = self._at_work(tenant, operation_id, attempt)
        if row.action not in safety_valve_actions():
            self._witnesses.require(tenant, f"{row.action} on {row.resource}")
        needed = devices_of(row.parameters)
        # Any warrant is a sign of life; it must have them still where it is about to use them.
        if needed and not self._devices.renew(operation_id, needed) and step == _TRAIN:
            raise Unavailable(
                f"{row.action} on {row.resource} has not the devices it needs any more; they are leased anew"
            )
        index, at_ms = self._placed(tenant, row.last_decision_id or row.decision_id)
        # Whatever became true or false since (a hold, a swap, a suspension) may make it another decision.
        if self._tenants.now_ms(tenant) - at_ms > self._max_age_ms or self._facts_version(tenant) != row.facts_version:
            index = self._decide_again(tenant, row, step)
        return self._material(tenant, index).to_json()

    def renew(self, tenant: str, operation_id: str, attempt: int) -> dict[str, Any]:
        """Decide again on a long operation; whether it may go on."""
        row = self._operation(tenant, operation_id, attempt)
        if row.state in ENDED or self._is_cancelled(tenant, row):
            return {"go_on": False, "lost": ""}
        try:
            self._decide_again(tenant, row, "lease")
        except Refused:
            return {"go_on": False, "lost": ""}
        needed = devices_of(row.parameters)
        if needed and not self._devices.renew(operation_id, needed):
            return {"go_on": False, "lost": "devices"}
        return {"go_on": True, "lost": ""}

    def lease(self, tenant: str, operation_id: str, attempt: int, worker: str) -> dict[str, Any]:
        """Lease the devices that an operation needs; none are told while it waits for them.

        Raises:
            Refused: It was cancelled, or may not have so many.
            Conflict: The worker has not so many.
            Unavailable: None of the worker's is known.
            Superseded: A newer attempt began.
        """
        row = self._at_work(tenant, operation_id, attempt)
        return {"devices": self._devices.lease(Claim(tenant, operation_id, worker, devices_of(row.parameters)))}

    def _at_work(self, tenant: str, operation_id: str, attempt: int) -> tables.Operation:
        row = self._operation(tenant, operation_id, attempt)
        if row.state != "running" or self._is_cancelled(tenant, row):
            raise Refused(
                f"{row.action} on {row.resource} is {row.state} or was cancelled: nothing more is done for it"
            )
        return row

    def _is_cancelled(self, tenant: str, row: tables.Operation) -> bool:
        if row.action != "training.launch":
            return False
        with self._tenants.view(tenant) as found:
            run = found[0].run(row.resource.partition("/")[2]) if found is not None else None
        return run is None or run.state == "cancelled"

    def _operation(self, tenant: str, operation_id: str, attempt: int | None = None) -> tables.Operation:
        with tenant_session(self._engine, tenant) as session:
            row = session.exec(select(tables.Operation).where(tables.Operation.id == operation_id)).first()
        if row is None:
            raise NoSuchOperation(f"operation {tenant}/{operation_id} was never accepted")
        if attempt is not None:
            _fence(row, attempt)
        return row

    def _placed(self, tenant: str, decision_id: str) -> tuple[int, int]:
        with tenant_session(self._engine, tenant) as session:
            row = session.exec(select(tables.Decision).where(tables.Decision.id == decision_id)).one()
        return row.leaf_index, row.at_ms

    def material(self, tenant: str, decision_id: str) -> dict[str, Any]:
        """What the signer needs for a warrant on a decision that was made just now."""
        self._witnesses.require(tenant, "a session")
        index, _ = self._placed(tenant, decision_id)
        return self._material(tenant, index).to_json()

    def _facts_version(self, tenant: str) -> int:
        with read_transaction(self._engine, tenant) as connection:
            return store.read_head(connection, tenant).facts_version

    def _material(self, tenant: str, index: int) -> _Material:
        size, note = self._notary.checkpoint(tenant, min_size=index + 1)
        with read_transaction(self._engine, tenant) as connection:
            entry = store.read_entry(connection, tenant, index)
            proof = store.inclusion_proof(connection, tenant, index, size)
        if entry.salt is None or entry.record is None:
            raise Unavailable(f"entry {index} of {tenant} was erased, so nothing can be done on it; ask again")
        return _Material(entry.header, index, entry.salt, entry.record.decode(), proof, note)

    # --- deciding again --------------------------------------------------------------------------------------------

    def _decide_again(self, tenant: str, row: tables.Operation, step: str) -> int:
        """Decide on an operation anew, on the facts of now; return the entry's index."""
        decisions: list[tuple[Decision, Judged | None]] = []

        def put() -> Submission:
            decision, judged, submission = self._question_again(tenant, row, step)
            decisions.append((decision, judged))
            return submission

        receipt = self._sequencer.append_fresh(put)
        decision, judged = decisions[-1]
        self._shadow(judged)
        self._decided(row.action, decision.allowed)
        if not decision.allowed:
            told = ", ".join((*decision.reasons, *decision.errors)) or "no policy permits it any more"
            raise Refused(f"{row.action} on {row.resource} was decided again and denied: {told}")
        return receipt.placed[0].index

    def _question_again(
        self, tenant: str, row: tables.Operation, step: str
    ) -> tuple[Decision, Judged | None, Submission]:
        who = Who(tenant=tenant, name=row.principal, kind=row.principal_kind)
        with self._tenants.view(tenant) as found:
            if found is None:
                raise Unavailable(f"tenant {tenant} is not there")
            view, in_force = found
            ids = Ids(decision=new_id(), operation=row.id, now_ms=view.now_ms)
            now = as_it_is_now(view, who, row, ids)
            resource, context, parameters = now.resource, now.context, now.parameters
            if parameters is not None and canonical.digest(dict(parameters)) != canonical.digest(row.parameters):
                raise Refused(f"what {row.action} on {row.resource} was decided on has changed since: ask again")
            principal = view.principal(row.principal)
            entities = [view.tenant_entity(), resource, *now.entities]
            entities += [] if principal is None else [view.principal_entity(principal)]
        facts = FactSet(Fact.from_entity(entity) for entity in entities)
        request = Request(
            principal=EntityUid.from_json(who.uid),
            action=row.action,
            resource=EntityUid.from_json(resource["uid"]),
            context={**context, "claimed": row.claimed, "now_ms": ids.now_ms},
        )
        decision = decide(in_force.bundle, request, facts)
        part = OperationPart.about(row.id, step, tenant=tenant, resource=request.resource.id, parameters=row.parameters)
        entry, index = decision_entry(
            who,
            ids.decision,
            request=request,
            decision=decision,
            facts=facts,
            in_force=in_force,
            operation=part,
            sent=row.resource,
            owner=tenant,
        )
        blobs = [{"tenant_id": tenant, "digest_hex": f.digest_hex, "body": f.data} for f in facts]
        companions: list[Insert | Update] = [
            index,
            Insert(tables.FactBlob, blobs, if_absent=True),
        ]
        if decision.allowed:
            key = {"tenant_id": tenant, "id": row.id}
            values = {"last_decision_id": ids.decision, "facts_version": in_force.facts_version}
            companions.append(Update(tables.Operation, key, values))
        submission = Submission(
            entries=[entry],
            expect={tenant: in_force.facts_version},
            companions=companions,
        )
        judged = Judged.of(in_force, ids.decision, ids.now_ms, request=request, facts=facts, decision=decision)
        return decision, judged, submission

    # --- what was done ---------------------------------------------------------------------------------------------

    def report(self, tenant: str, operation_id: str, attempt: int, metrics: list[dict[str, Any]]) -> dict[str, Any]:
        """Take figures of a job: telemetry, no facts.

        Raises:
            InvalidInput: More figures than one call may bring; nothing is kept of them.
        """
        if len(metrics) > _MAX_METRICS:
            raise InvalidInput(
                f"one call brings at most {_MAX_METRICS} metrics, not {len(metrics)}: send them in parts"
            )
        row = self._operation(tenant, operation_id, attempt)
        run = row.resource.partition("/")[2] if row.action == "training.launch" else None
        at_ms = now_ms()
        with tenant_session(self._engine, tenant, write=True) as session:
            current = session.exec(
                select(tables.Operation).where(tables.Operation.id == operation_id).with_for_update()
            ).one()
            last: dict[str, Any] = {}
            for sent in metrics:
                metric = Metric(step=sent["step"], epoch=sent["epoch"], values_micro=sent["values_micro"])
                last = {"epoch": metric.epoch, "step": metric.step, "values_micro": dict(metric.values_micro)}
                for values in training.metric_rows(run, attempt, metric, at_ms) if run else ():
                    key = (tenant, run, values["name"], values["step"], values["attempt"])
                    if session.get(tables.Metric, key) is None:
                        session.add(tables.Metric(tenant_id=tenant, **values))
            current.progress = last | {"attempt": attempt}
            current.updated_at_ms = at_ms
            session.add(current)
        return {}

    def _directory_file(self, tenant: str, size: int) -> str | None:
        """What shows that a tenant's log is the one that the directory has; None where the directory does not have it yet."""
        try:
            return self._directory.archive_file(tenant, size).decode()
        except NoSuchEntry:
            return None

    def attest(self, tenant: str, operation_id: str, envelope: str) -> dict[str, Any]:
        """Log an attestation; return the digest under which it is known."""
        try:
            sealed = dsse.Envelope.from_json(envelope.encode())
            keys = (*self._trust_root.keys("attestation"), *self._trust_root.keys("warrant"))
            payload = dsse.verify_envelope(sealed, keys)
            statement = Statement.from_bytes(payload)
        except LicetAttestationError as error:
            raise InvalidInput(f"this is no attestation of this installation: {error}") from error
        digest_hex = hashlib.sha256(payload).hexdigest()
        self._operation(tenant, operation_id)
        if tenant_of(statement.predicate) != tenant:
            raise InvalidInput(f"this attestation does not say that it is {tenant}'s")
        with tenant_session(self._engine, tenant) as session:
            known = session.exec(select(tables.Attestation).where(tables.Attestation.digest_hex == digest_hex)).first()
        if known is not None:
            return {"digest": digest_hex}
        fixed = {
            "v": 1,
            "type": "attestation",
            "digest": digest_hex,
            "predicate_type": statement.predicate_type,
            "operation": operation_id,
        }
        row = {
            "tenant_id": tenant,
            "digest_hex": digest_hex,
            "predicate_type": statement.predicate_type,
            "subject": statement.subject[0].name,
            "envelope": envelope,
        }
        submission = Submission(
            entries=[
                NewEntry(tenant, "attestation", tenant, tenant, lambda t: canonical.dumps({**fixed, "time_ms": t}))
            ],
            companions=[
                Insert(tables.Attestation, [row], placed={"leaf_index": (0, "index"), "at_ms": (0, "time_ms")})
            ],
        )
        try:
            self._sequencer.append(submission)
        except SubmissionConflict:
            # Another call with the same attestation came first.
            return {"digest": digest_hex}
        return {"digest": digest_hex}

    def finish(self, tenant: str, operation_id: str, attempt: int, result: Mapping[str, Any]) -> dict[str, Any]:
        """What the operation did becomes facts."""
        return self._end(tenant, operation_id, attempt, "done", result=dict(result), error=None)

    def fail(
        self, tenant: str, operation_id: str, attempt: int, error: Mapping[str, Any], *, refused: bool
    ) -> dict[str, Any]:
        """The operation ends without its effect; the record says why."""
        state = "refused" if refused else "failed"
        return self._end(tenant, operation_id, attempt, state, result=None, error=dict(error))

    def _end(
        self,
        tenant: str,
        operation_id: str,
        attempt: int,
        state: str,
        *,
        result: dict[str, Any] | None,
        error: dict[str, Any] | None,
    ) -> dict[str, Any]:
        made: list[tuple[tables.Operation, End]] = []

        def make() -> Submission:
            with self._tenants.view(tenant) as found:
                if found is None:
                    raise Unavailable(f"tenant {tenant} is not there")
                view, in_force = found
                row = view.operation(operation_id)
                if row is None:
                    raise NoSuchOperation(f"operation {tenant}/{operation_id} was never accepted")
                if row.state in ENDED:
                    raise _Ended(row)
                _fence(row, attempt)
                ends = End.of(row, state, result, error)
                change = change_at_end(view, row, result, error, view.now_ms, is_last=len(made) >= MAX_TRIES)
                if change.told and ends.result is not None:
                    ends = replace(ends, result={**ends.result, **change.told})
                if ends.state == "failed":
                    change = replace(change, events=(*change.events, failed(tenant, row, error)))
                mailing = mailing_of(view) if change.events else Mailing()
                messages = message_rows(tenant, mailing, change.events, view.now_ms, row.decision_id)
                made.append((row, ends))
                again = told_again(view, row, view.now_ms)
                ends_so = ending(tenant, row, ends, change, in_force, again=again)
                return replace(ends_so, companions=(*ends_so.companions, *messages))

        try:
            receipt = self._sequencer.append_fresh(make, again_on=(SubmissionConflict,))
        except _Ended as ended:
            self._give_back(ended.row)
            return {"state": ended.row.state}
        except SubmissionConflict as conflict:
            raise Conflict(
                f"operation {tenant}/{operation_id} cannot be ended as {state}: its rows are not as expected"
            ) from conflict
        for changed, version in receipt.facts_versions.items():
            self._tenants.seen(changed, version, receipt.placed[0].time_ms)
        row, ends = made[-1]
        self._ended(row.action, ends.state)
        self._give_back(row)
        return {"state": ends.state}

    def _give_back(self, ended: tables.Operation) -> None:
        """Give back the devices of an operation; a crash before this leaves leases that nobody renews, and that lapse."""
        if devices_of(ended.parameters):
            self._devices.release(ended.id)


def _fence(row: tables.Operation, attempt: int) -> None:
    """Take nothing of an attempt that is not the newest: whoever makes it was taken for dead, and another is at work."""
    if row.attempt != attempt:
        raise Superseded(f"attempt {attempt} at {row.action} on {row.resource} is over: attempt {row.attempt} began")
