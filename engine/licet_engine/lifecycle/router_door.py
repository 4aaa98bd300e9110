"""What the router asks and reports, at the internal door of the api: sessions, invocations, traffic.

Rules kept here:

- A session is a decision like any other: logged before it is answered, on the facts of now, for the principal whose token
  the router took. The router sends the token's hash alone, and the answer never says why not.
- Invocations are accounted for without gaps: a batch begins right after the last one. What overlaps, leaves a gap or does
  not add up is refused, and the log says so. The account is telemetry and bumps no facts version.
- What the router did by itself becomes facts in one transaction with its log entry. Everything may be reported again after
  a lost answer.
- How an endpoint is doing is told by the router, so that nobody needs a door into its process.
"""

from __future__ import annotations

import math
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import Engine, delete
from sqlmodel import col, select

from licet_adapters.errors import AdapterError
from licet_adapters.ports import MAX_CAUSE_CHARS, check_weights
from licet_adapters.serving.histogram import OUTCOMES
from licet_attestations import canonical
from licet_engine.domain.errors import Busy, Conflict, InvalidInput, TooManyRequests, Unauthenticated
from licet_engine.domain.rates import Buckets
from licet_engine.domain.refs import now_ms, parse_ref
from licet_engine.lifecycle.asked import parse_asked
from licet_engine.lifecycle.asking import Desk
from licet_engine.lifecycle.catalogue import VERBS
from licet_engine.lifecycle.endpoints import CHANGES, ON_ENDPOINT, over
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.operations import Operations
from licet_engine.lifecycle.outbox import mailing_of, message_rows
from licet_engine.lifecycle.tenants import Tenants
from licet_engine.log.errors import SubmissionConflict
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import Insert, NewEntry, Submission, Update
from licet_engine.store import tables
from licet_engine.store.db import tenant_session

KEPT_BATCHES: Final = 1000
_PRUNED_EVERY: Final = 64
"""Batches of an endpoint, after which those too many are removed: each removal waits for the one writer."""
"""Batches of an endpoint that stay as rows; all of them stand in the log."""

EVENTS: Final = ("step", "completed", "rolled-back", "failed")
_ENDS: Final = frozenset({"rolled-back", "failed"})
"""What an alarm does: traffic returned; or there was nowhere to return to, and the version answers on, without a guard."""
_OVER: Final = frozenset({"retired", "failed", "rolled-back"})
"""States in which a deployment stays."""
_MAX_TRIES: Final = 8
_MAX_GROUPS: Final = 50_000
_CHUNK: Final = 500
_MAX_CAUSE_MEMBERS: Final = 16
_MAX_NUMBER: Final = 2**53 - 1
_MAX_REFUSED: Final = 10_000
_MAX_STATUS: Final = 10_000
_NOBODY: Final = ""
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_WORD: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_VERSION: Final = re.compile(r"[1-9][0-9]{0,8}")


class AccountBroken(Conflict):
    """A batch of invocations is not what comes next; it was refused, and the log says so."""

    default_code = "account-broken"


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of invocations as the router reports it.

    Attributes:
        router: Which router.
        epoch: Which life of it.
        first: Number of its first invocation; the last batch ended right before.
        last: Number of its last.
        lost: Numbers that were reserved, and of which it is not known whether they were used.
        groups: Session, version and status with how many.
    """

    router: str
    epoch: str
    first: int
    last: int
    lost: int
    groups: tuple[Mapping[str, Any], ...]

    @classmethod
    def parse(cls, sent: Any) -> Batch:
        """Read a batch.

        Raises:
            InvalidInput: It has not the form of one.
        """
        match sent:
            case {
                "router": str(),
                "epoch": str() | int(),
                "first": int(),
                "last": int(),
                "lost": int(),
                "groups": list(),
            }:
                pass
            case _:
                raise InvalidInput("a batch has router, epoch, first, last, lost and groups")
        numbers = (sent["first"], sent["last"], sent["lost"])
        if not all(type(n) is int and 0 <= n <= _MAX_NUMBER for n in numbers) or not 1 <= sent["first"] <= sent["last"]:
            raise InvalidInput("a batch's numbers are integers, first from 1 and not after last")
        if not _WORD.fullmatch(sent["router"]) or not _WORD.fullmatch(str(sent["epoch"])):
            raise InvalidInput("a batch's router and epoch are plain words")
        if len(sent["groups"]) > _MAX_GROUPS:
            raise InvalidInput(f"a batch has at most {_MAX_GROUPS} groups; report more often")
        groups = tuple(_group(group) for group in sent["groups"])
        return cls(sent["router"], str(sent["epoch"]), *numbers, groups)

    @property
    def fault(self) -> str:
        """Why it does not add up, or nothing."""
        counted = sum(group["count"] for group in self.groups) + self.lost
        spanned = self.last - self.first + 1
        return "" if counted == spanned else f"it counts {counted} of {spanned} numbers"

    def to_json(self) -> dict[str, Any]:
        """As it stands in the log."""
        return {
            "router": self.router,
            "epoch": self.epoch,
            "first": self.first,
            "last": self.last,
            "lost": self.lost,
            "groups": [dict(group) for group in self.groups],
        }


def _group(sent: Any) -> Mapping[str, Any]:
    match sent:
        case {"session": str(session), "version": int() | str() as version, "status": str(status), "count": int(count)}:
            number = str(version)
            # ``0`` stands for requests that ended before a version was chosen for them.
            is_plain = _WORD.fullmatch(session) and (_VERSION.fullmatch(number) or number == "0")
            if is_plain and status in OUTCOMES and type(count) is int and 0 < count <= _MAX_NUMBER:
                return {"session": session, "version": number, "status": status, "count": count}
    raise InvalidInput(f"a group has session, version, status ({', '.join(OUTCOMES)}) and a count above 0")


class RouterDoor:
    """What the internal door offers to the router.

    Args:
        engine: Of the store.
        sequencer: Through which everything gets into the logs.
        tenants: What is in force, and who a token speaks for.
        desk: Where questions are answered.
        operations: Gathers what the signer needs for a warrant.
        per_token: Rates at which sessions are opened, of tokens; all that are nobody's have one together.
        per_tenant: The same, of tenants.
    """

    def __init__(
        self,
        engine: Engine,
        sequencer: Sequencer,
        tenants: Tenants,
        desk: Desk,
        operations: Operations,
        *,
        per_token: Buckets,
        per_tenant: Buckets,
    ) -> None:
        self._per_token, self._per_tenant = per_token, per_tenant
        self._engine = engine
        self._sequencer = sequencer
        self._tenants = tenants
        self._desk = desk
        self._operations = operations
        self._lock = threading.Lock()
        self._status: OrderedDict[tuple[str, str], tuple[int, dict[str, Any]]] = OrderedDict()
        self._since_pruned: Counter[tuple[str, str]] = Counter()
        self._refused: OrderedDict[tuple[str, str, str], None] = OrderedDict()

    def handlers(self) -> dict[str, Callable[[dict[str, Any]], Any]]:
        """The methods by name; parameters and results are canonical JSON."""
        return {
            "account": lambda p: self.account(p["tenant"], p["endpoint"]),
            "session": lambda p: self.session(p["token_hash_hex"], p["endpoint"]),
            "invocations": lambda p: self.invocations(p["tenant"], p["endpoint"], p["batch"]),
            "status": lambda p: self.take_status(p["tenant"], p["endpoint"], p["figures"]),
            "traffic": lambda p: self.traffic(p["tenant"], p["endpoint"], p["event"]),
        }

    # --- sessions --------------------------------------------------------------------------------------------------

    def session(self, token_hash_hex: str, endpoint: str) -> dict[str, Any]:
        """Decide whether the bearer of a token may invoke an endpoint; with an allow, what the signer needs for a warrant.

        Raises:
            Unauthenticated: The token does not count.
            TooManyRequests: It opens sessions faster than it may.
        """
        if not isinstance(token_hash_hex, str) or not _HASH.fullmatch(token_hash_hex):
            raise InvalidInput("token_hash_hex is the SHA-256 of a token, in hex")
        # Whose token it is comes before the form of what was sent, as at the front door; and so does how often it comes.
        try:
            who = self._tenants.identify_hash(token_hash_hex)
        except Unauthenticated:
            self._charge((self._per_token, _NOBODY))
            raise
        self._charge((self._per_token, who.token_id), (self._per_tenant, who.tenant))
        asked = replace(parse_asked(VERBS["endpoint.invoke"], endpoint, {}), opens=True)
        answer = self._desk.ask(lambda: self._tenants.identify_hash(token_hash_hex), asked)
        if not answer.decision.allowed or answer.operation is None:
            return {"allowed": False, "decision": answer.decision_id}
        who = self._tenants.identify_hash(token_hash_hex)
        return {
            "allowed": True,
            "tenant": answer.tenant,
            "principal": who.id,
            "decision": answer.decision_id,
            "operation_id": answer.operation,
            "parameters": {"endpoint": str(asked.ref)},
            **self._operations.material(answer.tenant, answer.decision_id),
        }

    def _charge(self, *whom: tuple[Buckets, str]) -> None:
        with self._lock:
            wait_s = max(rates.take(name) for rates, name in whom)
        if wait_s:
            raise TooManyRequests("sessions are opened faster than they may be", retry_after_s=math.ceil(wait_s))

    # --- invocations -----------------------------------------------------------------------------------------------

    def account(self, tenant: str, endpoint: str) -> dict[str, Any]:
        """The last number that is accounted for; a router that starts goes on from there.

        Raises:
            InvalidInput: It was never deployed.
        """
        name = _own(tenant, endpoint)
        with tenant_session(self._engine, tenant) as session:
            count = session.exec(select(tables.InvocationCount).where(tables.InvocationCount.endpoint == name)).first()
        if count is None:
            raise InvalidInput(f"{endpoint} was never deployed")
        return {"last": count.last}

    def invocations(self, tenant: str, endpoint: str, batch: Any) -> dict[str, Any]:
        """Account for a batch of invocations; one that was reported before is answered alike.

        Raises:
            AccountBroken: It is not what comes next, or does not add up; the log says that it was refused.
        """
        name = _own(tenant, endpoint)
        sent = Batch.parse(batch)
        for _ in range(_MAX_TRIES):
            with tenant_session(self._engine, tenant) as session:
                count = session.exec(
                    select(tables.InvocationCount).where(tables.InvocationCount.endpoint == name)
                ).first()
                known = session.exec(
                    select(tables.InvocationBatch).where(
                        tables.InvocationBatch.endpoint == name, tables.InvocationBatch.first == sent.first
                    )
                ).first()
                if count is None:
                    raise InvalidInput(f"{endpoint} was never deployed")
                if known is not None and (known.router, known.epoch, known.last) == (
                    sent.router,
                    sent.epoch,
                    sent.last,
                ):
                    return {"last": count.last}
                fault = sent.fault or self._fault(session, endpoint, sent)
            if sent.first != count.last + 1:
                word = "overlaps what was reported" if sent.first <= count.last else "leaves a gap"
                fault = f"it {word}: the next number is {count.last + 1}, not {sent.first}"
            if fault:
                self._refuse(tenant, endpoint, sent, fault)
                raise AccountBroken(f"the invocations of {endpoint} are refused: {fault}")
            try:
                self._sequencer.append(_account(tenant, endpoint, name, count, sent))
            except SubmissionConflict:
                continue  # Another report of the same came first: look again.
            with self._lock:
                self._since_pruned[tenant, name] += 1
                is_due = not self._since_pruned[tenant, name] % _PRUNED_EVERY
            if is_due:
                self._prune(tenant, name, sent.first)
            return {"last": sent.last}
        raise Busy(f"the account of {endpoint} is written by others all the time; try again")

    def _fault(self, session: Any, endpoint: str, batch: Batch) -> str:
        """Why the groups of a batch cannot be, or nothing: each stands on a session that was allowed."""
        unknown = {str(group["session"]) for group in batch.groups}
        for named in _chunks(sorted(unknown)):
            query = select(tables.Decision.id).where(
                col(tables.Decision.id).in_(named),
                tables.Decision.action == "endpoint.invoke",
                tables.Decision.resource == endpoint,
                col(tables.Decision.allowed).is_(True),
            )
            unknown -= set(session.exec(query).all())
        return f"no session {min(unknown)} was allowed on it" if unknown else ""

    def _refuse(self, tenant: str, endpoint: str, batch: Batch, fault: str) -> None:
        """Log a refusal, once for each batch, so that a router that insists does not fill the log."""
        key = (tenant, endpoint, canonical.digest_hex(batch.to_json()))
        with self._lock:
            if key in self._refused:
                return
            self._refused[key] = None
            while len(self._refused) > _MAX_REFUSED:
                self._refused.popitem(last=False)
        fixed = {
            "v": 1,
            "type": "invocations",
            "event": "refused",
            "endpoint": endpoint,
            "why": fault,
            "batch_digest": key[2],
            **{name: value for name, value in batch.to_json().items() if name != "groups"},
        }
        self._sequencer.append(Submission(entries=[_entry(tenant, "invocations", fixed)]))

    def _prune(self, tenant: str, name: str, first: int) -> None:
        with tenant_session(self._engine, tenant, write=True) as session:
            kept = session.exec(
                select(tables.InvocationBatch.first)
                .where(tables.InvocationBatch.endpoint == name)
                .order_by(col(tables.InvocationBatch.first).desc())
                .offset(KEPT_BATCHES)
                .limit(1)
            ).first()
            if kept is not None and kept < first:
                session.exec(
                    delete(tables.InvocationBatch).where(
                        col(tables.InvocationBatch.endpoint) == name, col(tables.InvocationBatch.first) <= kept
                    )
                )

    # --- status ----------------------------------------------------------------------------------------------------

    def take_status(self, tenant: str, endpoint: str, figures: Any) -> dict[str, Any]:
        """Keep how an endpoint is doing, in memory: telemetry, and gone with this process."""
        _own(tenant, endpoint)
        if not isinstance(figures, dict):
            raise InvalidInput("figures is an object")
        with self._lock:
            self._status[tenant, endpoint] = (now_ms(), figures)
            self._status.move_to_end((tenant, endpoint))
            while len(self._status) > _MAX_STATUS:
                self._status.popitem(last=False)
        return {}

    def status(self, tenant: str, endpoint: str) -> tuple[int, dict[str, Any]] | None:
        """When the router last told how an endpoint is doing, and what; None if it did not since this process began."""
        with self._lock:
            return self._status.get((tenant, endpoint))

    # --- traffic ---------------------------------------------------------------------------------------------------

    def traffic(self, tenant: str, endpoint: str, event: Any) -> dict[str, Any]:
        """Take note of a change of traffic that the router made by itself; one that is known is answered alike.

        Raises:
            InvalidInput: It is no such event, or of no deployment of this endpoint.
        """
        name = _own(tenant, endpoint)
        sent = _event(event)

        def make() -> Submission:
            with self._tenants.view(tenant) as found:
                row = found[0].endpoint(name) if found is not None else None
                if found is None or row is None:
                    raise InvalidInput(f"{endpoint} was never deployed")
                view, in_force = found
                if view.has_moved_by_itself(name, sent["operation_id"], serial=sent["serial"]):
                    raise _KnownAlready
                return _move(view, row, endpoint, sent, in_force.facts_version)

        try:
            receipt = self._sequencer.append_fresh(make, again_on=(SubmissionConflict,))
        except _KnownAlready:
            return {"serial": sent["serial"]}
        for changed, version in receipt.facts_versions.items():
            self._tenants.seen(changed, version)
        return {"serial": sent["serial"]}


class _KnownAlready(Exception):
    """The event was taken note of before; never leaves this module."""


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """As many names at a time as one query takes."""
    for start in range(0, len(names), _CHUNK):
        yield names[start : start + _CHUNK]


# --- the parts of a submission ----------------------------------------------------------------------------------------


def _own(tenant: str, endpoint: str) -> str:
    ref = parse_ref(endpoint)
    if ref.tenant != tenant:
        raise InvalidInput(f"{endpoint} is not {tenant}'s")
    return ref.name


def _entry(tenant: str, kind: str, fixed: Mapping[str, Any]) -> NewEntry:
    return NewEntry(tenant, kind, tenant, tenant, lambda time_ms: canonical.dumps({**fixed, "time_ms": time_ms}))


def _account(tenant: str, endpoint: str, name: str, count: tables.InvocationCount, batch: Batch) -> Submission:
    totals: dict[str, dict[str, int]] = {version: dict(by) for version, by in count.totals.items()}
    for group in batch.groups:
        of_version = totals.setdefault(str(group["version"]), {})
        of_version[group["status"]] = of_version.get(group["status"], 0) + group["count"]
    fixed = {"v": 1, "type": "invocations", "event": "counted", "endpoint": endpoint, **batch.to_json()}
    row = {"tenant_id": tenant, "endpoint": name, **batch.to_json()}
    return Submission(
        entries=[_entry(tenant, "invocations", fixed)],
        companions=[
            Insert(tables.InvocationBatch, [row], placed={"leaf_index": (0, "index"), "at_ms": (0, "time_ms")}),
            # Only right after the number it was looked at with: of two reports at once one is refused here.
            Update(
                tables.InvocationCount,
                {"tenant_id": tenant, "endpoint": name, "last": count.last},
                {"last": batch.last, "lost": count.lost + batch.lost, "totals": totals},
                placed={"at_ms": (0, "time_ms")},
            ),
        ],
    )


def _event(sent: Any) -> dict[str, Any]:
    match sent:
        case {
            "kind": str(kind),
            "operation_id": str(operation),
            "weights": dict(weights),
            "shadow": str(shadow),
            "cause": dict(cause),
            "at_ms": int(at_ms),
            "serial": int(serial),
        }:
            pass
        case _:
            raise InvalidInput("an event has kind, operation_id, weights, shadow, cause, at_ms and serial")
    if (
        kind not in EVENTS
        or not _WORD.fullmatch(operation)
        or not 0 <= serial <= _MAX_NUMBER
        or not 0 <= at_ms <= _MAX_NUMBER
    ):
        raise InvalidInput(f"an event is one of {', '.join(EVENTS)}, of an operation, with a time and a serial number")
    try:
        weights = check_weights(weights) if weights else {}
    except AdapterError as error:
        raise InvalidInput(f"event: {error}") from error
    if shadow and not _VERSION.fullmatch(shadow):
        raise InvalidInput("event: shadow is a version number, or empty")
    told = [*cause, *(value for value in cause.values() if isinstance(value, str))]
    plain = all(isinstance(value, (str, int)) for value in cause.values())
    if len(cause) > _MAX_CAUSE_MEMBERS or not plain or any(len(text) > MAX_CAUSE_CHARS for text in told):
        raise InvalidInput("event: cause has a few members of text and integers")
    return {
        "kind": kind,
        "operation_id": operation,
        "weights": {number: percent for number, percent in weights.items() if percent},
        "shadow": shadow,
        "cause": cause,
        "at_ms": at_ms,
        "serial": serial,
    }


def _move(view: View, row: tables.Endpoint, endpoint: str, event: Mapping[str, Any], facts_version: int) -> Submission:
    tenant, name = row.tenant_id, row.name
    deployments = view.deployments(name)
    own = next((d for d in deployments if d.id == event["operation_id"]), None)
    operation = view.operation(event["operation_id"])
    if operation is None or operation.resource != endpoint or operation.action not in CHANGES:
        raise InvalidInput(f"no operation {event['operation_id']} was accepted on {endpoint}")
    fixed = {"v": 1, "type": "traffic", "endpoint": endpoint, **event}
    values: dict[str, Any] = {"weights": event["weights"], "shadow": event["shadow"], "updated_at_ms": event["at_ms"]}
    companions: list[Insert | Update] = [
        Insert(tables.TrafficEvent, [{"tenant_id": tenant, "endpoint": name, **event}]),
        # What was retired meanwhile stays without traffic.
        Update(
            tables.Endpoint,
            {"tenant_id": tenant, "name": name, "state": row.state},
            values if row.state != "retired" else {"updated_at_ms": event["at_ms"]},
        ),
    ]
    for deployment in deployments:
        state = _state_after(deployment, own, event)
        change: dict[str, Any] = {} if state == deployment.state else {"state": state}
        if deployment is own and event["kind"] in _ENDS and deployment.state not in _OVER:
            change |= {"cause": event["cause"]} | ({"ended_at_ms": event["at_ms"]} if state in _OVER else {})
            told = over(endpoint, deployment, event["kind"], event["weights"], event["cause"])
            companions += message_rows(tenant, mailing_of(view), (told,), event["at_ms"], deployment.decision_id)
        if change:
            companions.append(Update(tables.Deployment, {"tenant_id": tenant, "id": deployment.id}, change))
    return Submission(
        entries=[_entry(tenant, "traffic", fixed)],
        expect={tenant: facts_version},
        companions=companions,
        bump=(tenant,),
    )


def _state_after(deployment: tables.Deployment, own: tables.Deployment | None, event: Mapping[str, Any]) -> str:
    number = str(deployment.version)
    if deployment.state in _OVER:
        return deployment.state
    if own is not None and deployment.id == own.id and event["kind"] != "failed":
        shadowed = "shadow" if own.strategy == "shadow" else "live"
        return {"step": "baking", "completed": shadowed}.get(event["kind"], str(event["kind"]))
    if deployment.state not in ON_ENDPOINT or not event["weights"]:
        # Of a retirement the operation itself says what it ends.
        return deployment.state
    # What is held warm for a return is on the endpoint still, without traffic.
    return "live" if event["weights"].get(number) else "shadow" if event["shadow"] == number else "superseded"
