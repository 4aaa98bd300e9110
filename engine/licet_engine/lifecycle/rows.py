"""The rows of one tenant, read from one consistent state: what is there, before anything is made of it.

Rules kept here:

- What is not found is None; whoever asks about it is answered as about anything elsewhere.
- Nothing is written, and nothing of another tenant is read: the session sees to it.
- Whatever is more than facts (the time, how far operations have come, which devices are there) marks the state as passing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import func, or_, tuple_
from sqlalchemy.orm import defer
from sqlmodel import SQLModel, col, select
from sqlmodel.sql.expression import SelectOfScalar

from licet_attestations import canonical
from licet_attestations.statement import DECISION
from licet_engine.domain.errors import InvalidInput
from licet_engine.store.db import TenantSession
from licet_engine.store.tables import (
    ApiToken,
    Approval,
    ApprovalRequest,
    Attestation,
    BreakGlass,
    Budget,
    CheckResult,
    Dataset,
    Decision,
    Delegation,
    Deployment,
    DeviceAllotment,
    Endpoint,
    Environment,
    Hold,
    Issuer,
    LogLeaf,
    LogRecord,
    Metric,
    ModelVersion,
    Operation,
    PolicyBundle,
    PolicyShadow,
    Principal,
    Promotion,
    Publication,
    Run,
    Tenant,
    Ticket,
    TrafficEvent,
    UsedIdToken,
    Webhook,
    WebhookMessage,
)

_Row = TypeVar("_Row", bound=SQLModel)

LEAST_PREFIX_CHARS = 8
"""How much of a digest or an identifier must be given at least, to name what it is of."""


def _ambiguous(prefix: str, what: str) -> InvalidInput:
    # Whoever is of the tenant may list both, so that nothing is told by it.
    return InvalidInput(f"{prefix} is how several {what} begin: write more of it", code="ambiguous")


class Rows:
    """One consistent state of one tenant.

    Attributes:
        tenant: The tenant's row.
        facts_version: Version of the tenant's facts that this state is.
        policy_digest_hex: Digest of the policies that speak on promotion; part of every binding.
        asked_at_ms: Time of the question.
        is_passing: Whether more was looked at than facts: the time, how far operations have come, which devices are there. What
            was found then may be otherwise at the same facts version.
    """

    def __init__(
        self,
        session: TenantSession,
        tenant: Tenant,
        *,
        facts_version: int,
        policy_digest_hex: str,
        now_ms: int,
        devices_present: Callable[[], int] = lambda: 0,
    ) -> None:
        self.is_passing = False
        self._devices_present = devices_present
        self._session = session
        self.tenant = tenant
        self.facts_version = facts_version
        self.policy_digest_hex = policy_digest_hex
        self.asked_at_ms = now_ms

    @property
    def now_ms(self) -> int:
        """Time of the question, to look at: what rests on it passes."""
        self.is_passing = True
        return self.asked_at_ms

    def devices_present(self) -> int:
        """How many devices one worker has; no fact, and asked only where a run wants some."""
        self.is_passing = True
        return self._devices_present()

    # --- rows ------------------------------------------------------------------------------------------------------

    def principal(self, name: str) -> Principal | None:
        """The principal of that name."""
        return self._session.exec(select(Principal).where(Principal.name == name)).first()

    def may_act(self, name: str) -> bool:
        """Whether somebody of the tenant is active, and the tenant not suspended."""
        row = self.principal(name)
        return row is not None and row.active and not self.tenant.suspended

    def dataset(self, name: str) -> Dataset | None:
        """The dataset of that name."""
        return self._session.exec(select(Dataset).where(Dataset.name == name)).first()

    def environment(self, name: str) -> Environment | None:
        """The environment of that name."""
        return self._session.exec(select(Environment).where(Environment.name == name)).first()

    def environments(self) -> list[Environment]:
        """Every environment of the tenant."""
        return list(self._session.exec(select(Environment).order_by(col(Environment.name))).all())

    def device_allotment(self) -> DeviceAllotment | None:
        """How many devices the tenant may have at once, if that was ever set."""
        return self._session.exec(select(DeviceAllotment)).first()

    def run(self, name: str) -> Run | None:
        """The run of that name."""
        return self._session.exec(select(Run).where(Run.name == name)).first()

    def model_version(self, model: str, version: int) -> ModelVersion | None:
        """That version of that model."""
        query = select(ModelVersion).where(ModelVersion.model == model, ModelVersion.version == version)
        return self._session.exec(query).first()

    def model_versions(self, model: str) -> list[ModelVersion]:
        """All versions of that model, the newest first."""
        query = select(ModelVersion).where(ModelVersion.model == model).order_by(col(ModelVersion.version).desc())
        return list(self._session.exec(query).all())

    def has_other_version(self, version: ModelVersion) -> bool:
        """Whether another version stands, or is being registered, that the same run made."""
        query = select(ModelVersion).where(
            ModelVersion.run == version.run, col(ModelVersion.state).in_(["ready", "registering"])
        )
        mine = (version.model, version.version)
        return any((row.model, row.version) != mine for row in self._session.exec(query))

    def bundle(self, digest_hex: str) -> PolicyBundle | None:
        """The policy bundle of that digest."""
        return self._session.exec(select(PolicyBundle).where(PolicyBundle.digest_hex == digest_hex)).first()

    def running_shadow(self) -> PolicyShadow | None:
        """The candidate that runs beside the policies in force."""
        return self._session.exec(select(PolicyShadow).where(col(PolicyShadow.ended_at_ms).is_(None))).first()

    def operation(self, operation_id: str) -> Operation | None:
        """The operation of that identifier."""
        return self._session.exec(select(Operation).where(Operation.id == operation_id)).first()

    def last_operation(self, action: str, resource: str) -> Operation | None:
        """The operation of that action on that resource that was accepted last."""
        query = select(Operation).where(Operation.action == action, Operation.resource == resource)
        return self._session.exec(query.order_by(col(Operation.created_at_ms).desc(), col(Operation.id))).first()

    def approvals(self, model: str, version: int) -> list[Approval]:
        """The approvals of a version that were neither withdrawn nor voided, by people who are still active."""
        query = select(Approval).where(
            Approval.model == model,
            Approval.version == version,
            Approval.verdict == "approved",
            col(Approval.withdrawn_at_ms).is_(None),
            col(Approval.voided_at_ms).is_(None),
        )
        found = self._session.exec(query.order_by(col(Approval.at_ms))).all()
        # Who may not act any more does not vouch for anything any more.
        active = {row.name for row in self._session.exec(select(Principal).where(col(Principal.active).is_(True)))}
        return [row for row in found if row.approver in active and (row.on_behalf_of or row.approver) in active]

    def delegation(self, reviewer: str, delegate: str, track: str) -> Delegation | None:
        """The last delegation of a track by one person to another, in force or not."""
        query = select(Delegation).where(
            Delegation.reviewer == reviewer, Delegation.delegate == delegate, Delegation.track == track
        )
        # One that was not revoked comes before one that was, and of these the one that lasts longest.
        newest = query.order_by(col(Delegation.revoked_at_ms).is_not(None), col(Delegation.until_ms).desc())
        return self._session.exec(newest).first()

    def delegations(self, *, delegate: str | None = None) -> list[Delegation]:
        """The delegations in force, the first to end first; to one person, if one is named."""
        query = select(Delegation).where(
            col(Delegation.revoked_at_ms).is_(None), col(Delegation.until_ms) > self.now_ms
        )
        if delegate is not None:
            query = query.where(Delegation.delegate == delegate)
        return list(self._session.exec(query.order_by(col(Delegation.until_ms))).all())

    def webhooks(self) -> list[Webhook]:
        """The webhooks that were not removed, by name."""
        query = select(Webhook).where(col(Webhook.removed_at_ms).is_(None)).order_by(col(Webhook.name))
        return list(self._session.exec(query).all())

    def issuers(self) -> list[Issuer]:
        """The issuers that are trusted, by name."""
        query = select(Issuer).where(col(Issuer.removed_at_ms).is_(None)).order_by(col(Issuer.name))
        return list(self._session.exec(query).all())

    def issuer(self, name: str, *, removed: bool = False) -> Issuer | None:
        """The issuer of that name, if it is trusted; one that was removed only if that is wanted."""
        row = self._session.exec(select(Issuer).where(Issuer.name == name)).first()
        return row if row is not None and (removed or row.removed_at_ms is None) else None

    def is_used_id_token(self, digest_hex: str) -> bool:
        """Whether an ID token was exchanged already."""
        return self._session.exec(select(UsedIdToken).where(UsedIdToken.digest_hex == digest_hex)).first() is not None

    def exchanged_tokens(self, issuer: str) -> list[ApiToken]:
        """The tokens that still count and were given for ID tokens of an issuer, whatever account they are of."""
        query = select(ApiToken).where(col(ApiToken.revoked_at_ms).is_(None), col(ApiToken.expires_at_ms) > self.now_ms)
        return [row for row in self._session.exec(query).all() if row.workload.get("issuer") == issuer]

    def webhook_message(self, message_id: str) -> WebhookMessage | None:
        """A message to a webhook, by its identifier."""
        return self._session.exec(select(WebhookMessage).where(WebhookMessage.id == message_id)).first()

    def waiting_messages(self) -> dict[str, int]:
        """How many messages wait for each webhook that any wait for."""
        waiting = select(WebhookMessage.webhook, func.count()).where(WebhookMessage.state == "pending")
        return dict(self._session.exec(waiting.group_by(WebhookMessage.webhook)).all())

    def ticket(self, ticket_id: str) -> Ticket | None:
        """The change ticket of that identifier, as it was last fetched."""
        return self._session.exec(select(Ticket).where(Ticket.id == ticket_id)).first()

    def untold_approvals(self) -> list[Approval]:
        """The approvals that stand, or are void without its having been told; what expired is over, told or not."""
        query = select(Approval).where(
            Approval.verdict == "approved",
            col(Approval.withdrawn_at_ms).is_(None),
            col(Approval.void_told_at_ms).is_(None),
            or_(col(Approval.expires_at_ms) > self.now_ms, col(Approval.voided_at_ms).is_not(None)),
        )
        return list(self._session.exec(query.order_by(col(Approval.at_ms))).all())

    def verdicts(self, model: str, version: int) -> list[Approval]:
        """Every verdict on a version that was ever given, the newest first."""
        query = select(Approval).where(Approval.model == model, Approval.version == version)
        return list(self._session.exec(query.order_by(col(Approval.at_ms).desc())).all())

    def checks(self, version: ModelVersion) -> dict[str, CheckResult]:
        """The latest check of each kind for the files that the version has now."""
        query = select(CheckResult).where(
            CheckResult.model == version.model,
            CheckResult.version == version.version,
            CheckResult.model_digest_hex == version.digest_hex,
        )
        return {
            row.kind: row for row in self._session.exec(query.order_by(col(CheckResult.at_ms), col(CheckResult.id)))
        }

    def holds(self, resource_type: str, name: str) -> list[Hold]:
        """The holds on a resource that were not lifted."""
        query = select(Hold).where(
            Hold.resource_type == resource_type, Hold.resource_name == name, col(Hold.lifted_at_ms).is_(None)
        )
        return list(self._session.exec(query).all())

    def break_glass(self, identifier: str) -> BreakGlass | None:
        """That time of an operator behind the glass."""
        return self._session.exec(select(BreakGlass).where(BreakGlass.id == identifier)).first()

    def break_glasses(self) -> list[BreakGlass]:
        """Every time of operators behind the glass that was not reviewed."""
        return list(self._session.exec(select(BreakGlass).where(col(BreakGlass.reviewed_at_ms).is_(None))).all())

    def last_decisions(self, limit: int) -> list[Decision]:
        """The newest decisions, as they are listed."""
        return list(self._session.exec(select(Decision).order_by(col(Decision.leaf_index).desc()).limit(limit)).all())

    def last_operations(self, limit: int) -> list[Operation]:
        """The newest operations."""
        # What was sent may be long, and nobody who looks at many needs it.
        sent = defer(Operation.asked), defer(Operation.parameters)  # type: ignore[arg-type]  # On the class they are columns.
        query = select(Operation).options(*sent).order_by(col(Operation.created_at_ms).desc()).limit(limit)
        return list(self._session.exec(query).all())

    def last_leaves(self, limit: int) -> list[LogLeaf]:
        """The newest leaves of the log."""
        return list(self._session.exec(select(LogLeaf).order_by(col(LogLeaf.leaf_index).desc()).limit(limit)).all())

    def log_entries(self, indices: Collection[int]) -> list[tuple[LogLeaf, LogRecord]]:
        """Entries of the log by their index, with their records, in order; what is not there is left out."""
        self.is_passing = True
        together = (col(LogRecord.tenant_id) == col(LogLeaf.tenant_id)) & (
            col(LogRecord.leaf_index) == col(LogLeaf.leaf_index)
        )
        query = select(LogLeaf, LogRecord).join(LogRecord, together).where(col(LogLeaf.leaf_index).in_(list(indices)))
        return list(self._session.exec(query.order_by(col(LogLeaf.leaf_index))).all())

    def decisions(self, identifiers: Collection[str]) -> dict[str, Decision]:
        """Decisions by their number, as they are listed."""
        query = select(Decision).where(col(Decision.id).in_(list(identifiers)))
        return {row.id: row for row in self._session.exec(query).all()}

    def are_attested(self, decisions: Collection[str]) -> list[str]:
        """Those of these decisions that an attestation tells of, with record and salt."""
        self.is_passing = True
        subjects = [f"decision/{identifier}" for identifier in decisions]
        query = select(Attestation.subject).where(
            Attestation.predicate_type == DECISION, col(Attestation.subject).in_(subjects)
        )
        return sorted({subject.partition("/")[2] for subject in self._session.exec(query).all()})

    def operations_on(self, decisions: Collection[str]) -> list[Operation]:
        """The operations that stand on one of these decisions: that it accepted, or on which warrants are made."""
        self.is_passing = True
        named = list(decisions)
        query = select(Operation).where(
            or_(col(Operation.decision_id).in_(named), col(Operation.last_decision_id).in_(named))
        )
        return list(self._session.exec(query.order_by(col(Operation.id))).all())

    def bundle_by_prefix(self, prefix: str) -> PolicyBundle | None:
        """The policy bundle whose digest begins with these hex characters: at least eight of them.

        Raises:
            InvalidInput: There are several.
        """
        return self._by_prefix(PolicyBundle, PolicyBundle.digest_hex, prefix, "bundles")

    def _by_prefix(self, table: type[_Row], column: Any, prefix: str, what: str) -> _Row | None:
        """The one row whose identifier begins so."""
        if len(prefix) < LEAST_PREFIX_CHARS:
            return None
        found = self._session.exec(select(table).where(col(column).startswith(prefix, autoescape=True)).limit(2)).all()
        if len(found) > 1:
            raise _ambiguous(prefix, what)
        return found[0] if found else None

    def publication(self, identifier: str) -> Publication | None:
        """The publication of that identifier."""
        return self._session.exec(select(Publication).where(Publication.id == identifier)).first()

    def publication_named(self, prefix: str) -> Publication | None:
        """The publication whose identifier begins with these hex characters; else the last one of such a bundle that was refused.

        Raises:
            InvalidInput: There are several.
        """
        found = self._by_prefix(Publication, Publication.id, prefix, "publications")
        if found is not None or len(prefix) < LEAST_PREFIX_CHARS:
            return found
        query = select(Publication).where(
            col(Publication.bundle_hex).startswith(prefix, autoescape=True), Publication.state == "refused"
        )
        return self._session.exec(query.order_by(col(Publication.created_at_ms).desc(), col(Publication.id))).first()

    def last_publication(self, bundle_hex: str) -> Publication | None:
        """The publication of a bundle that ended last: of one that is published, the one that published it."""
        query = select(Publication).where(
            Publication.bundle_hex == bundle_hex, col(Publication.ended_at_ms).is_not(None)
        )
        # Sent again with other tests it may have been refused; that makes nothing of what was published before.
        newest = query.order_by(
            (col(Publication.state) == "published").desc(), col(Publication.ended_at_ms).desc(), col(Publication.id)
        )
        return self._session.exec(newest).first()

    def publications_under_way(self) -> list[Publication]:
        """The publications that are being examined."""
        self.is_passing = True
        return list(self._session.exec(select(Publication).where(Publication.state == "examining")).all())

    def has_budget(self, name: str) -> bool:
        """Whether a budget of that name was set."""
        return self._session.exec(select(Budget).where(Budget.name == name)).first() is not None

    def has_token(self, principal: str, token_id: str) -> bool:
        """Whether the principal has that token, not revoked."""
        query = select(ApiToken).where(
            ApiToken.principal == principal, ApiToken.id == token_id, col(ApiToken.revoked_at_ms).is_(None)
        )
        return self._session.exec(query).first() is not None

    def has_metric(self, metric: Metric) -> bool:
        """Whether that figure of that run was reported at that step already."""
        query = select(Metric).where(
            Metric.run == metric.run,
            Metric.name == metric.name,
            Metric.step == metric.step,
            Metric.attempt == metric.attempt,
        )
        return self._session.exec(query).first() is not None

    def any_hold(self) -> bool:
        """Whether any hold stands in the tenant."""
        return self._session.exec(select(Hold).where(col(Hold.lifted_at_ms).is_(None))).first() is not None

    def approval_requests(self) -> list[ApprovalRequest]:
        """The requests for approval that are open and have not expired, the oldest first."""
        return list(self._session.exec(self._open_requests()).all())

    def approval_request_pages(self, rows: int) -> Iterator[Sequence[ApprovalRequest]]:
        """The same, as many at a time, so that who needs the oldest alone reads no more."""
        place = tuple_(col(ApprovalRequest.at_ms), col(ApprovalRequest.id))
        query = self._open_requests().limit(rows)
        page = self._session.exec(query).all()
        while page:
            yield page
            page = self._session.exec(query.where(place > (page[-1].at_ms, page[-1].id))).all()

    def _open_requests(self) -> SelectOfScalar[ApprovalRequest]:
        query = select(ApprovalRequest).where(
            ApprovalRequest.state == "open", col(ApprovalRequest.expires_at_ms) > self.now_ms
        )
        return query.order_by(col(ApprovalRequest.at_ms), col(ApprovalRequest.id))

    def last_request(self, model: str, version: int, track: str, requested_by: str) -> ApprovalRequest | None:
        """The request for a version on a track that somebody made last, open or not."""
        query = select(ApprovalRequest).where(
            ApprovalRequest.model == model,
            ApprovalRequest.version == version,
            ApprovalRequest.track == track,
            ApprovalRequest.requested_by == requested_by,
        )
        return self._session.exec(query.order_by(col(ApprovalRequest.at_ms).desc(), col(ApprovalRequest.id))).first()

    def promotions(self, version: ModelVersion) -> list[Promotion]:
        """Every change of stage of a version, the newest first."""
        query = select(Promotion).where(Promotion.model == version.model, Promotion.version == version.version)
        return list(self._session.exec(query.order_by(col(Promotion.at_ms).desc(), col(Promotion.id).desc())).all())

    def on_stage(self, model: str, stage: str) -> ModelVersion | None:
        """The version of a model that stands on a stage."""
        query = select(ModelVersion).where(ModelVersion.model == model, ModelVersion.stage == stage)
        return self._session.exec(query.order_by(col(ModelVersion.version).desc())).first()

    def before_on_stage(self, model: str, stage: str) -> ModelVersion | None:
        """The version to which a stage goes back: the one that was promoted before the one that holds it now.

        A roll-back takes back the promotion that it undid, so that a second one goes further back, not forward again.
        """
        query = select(Promotion).where(Promotion.model == model, Promotion.stage == stage)
        held: list[int] = []
        for promotion in self._session.exec(query.order_by(col(Promotion.at_ms), col(Promotion.id))).all():
            operation = self.operation(promotion.operation_id or "")
            if operation is not None and operation.action == "model.roll-back":
                while held and held[-1] != promotion.version:
                    held.pop()
            else:
                held.append(promotion.version)
        for number in reversed(held[:-1]):
            row = self.model_version(model, number)
            if row is not None and row.state == "ready" and row.stage != "retired" and number != held[-1]:
                return row
        return None

    def endpoint(self, name: str) -> Endpoint | None:
        """The endpoint of that name."""
        return self._session.exec(select(Endpoint).where(Endpoint.name == name)).first()

    def deployments(self, endpoint: str) -> list[Deployment]:
        """Every deployment on an endpoint, the newest first."""
        query = select(Deployment).where(Deployment.endpoint == endpoint)
        return list(self._session.exec(query.order_by(col(Deployment.created_at_ms).desc(), col(Deployment.id).desc())))

    def has_moved_by_itself(self, endpoint: str, operation_id: str, *, serial: int | None = None) -> bool:
        """Whether the router reported a change of traffic under that operation, or that very one."""
        query = select(TrafficEvent).where(TrafficEvent.endpoint == endpoint, TrafficEvent.operation_id == operation_id)
        if serial is not None:
            query = query.where(TrafficEvent.serial == serial)
        return self._session.exec(query.limit(1)).first() is not None

    def has_open_operation(self, resource: str) -> bool:
        """Whether an operation on a resource was accepted and has not ended."""
        self.is_passing = True
        query = select(Operation).where(
            Operation.resource == resource, col(Operation.state).in_(["accepted", "running"])
        )
        return self._session.exec(query).first() is not None

    def packs(self) -> list[dict[str, Any]]:
        """The packs in force, with their parameters."""
        row = self.bundle(self.tenant.bundle_digest_hex or "")
        return [] if row is None else list(canonical.loads(row.body).get("packs", []))

    def thresholds(self, tier: str, names: Iterable[str]) -> dict[str, int]:
        """The numbers that the packs in force set for a risk tier: what checks hold their figures against."""
        parameters = {name: value for pack in self.packs() for name, value in pack["parameters"].items()}
        found = {name: parameters.get(f"{name}_{tier}", parameters.get(name)) for name in names}
        return {name: value for name, value in found.items() if isinstance(value, int)}

    def budget_remaining(self, name: str) -> int:
        """What is left of a budget; a budget that was never set is empty."""
        row = self._session.exec(select(Budget).where(Budget.name == name)).first()
        return 0 if row is None else row.remaining
