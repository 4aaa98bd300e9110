"""What is true: the tenant's rows, read at one facts version, as the entities that policies speak of.

Rules kept here:

- A `View` reads one consistent state of one tenant. What it does not find is None; whoever asks about it is answered
  as about anything elsewhere.
- Restrictions are inherited along lineage: a run and a model version bear those of every dataset behind them, and a
  hold on any of these is a hold on them.
- A check counts only for the digest of the files that the version has now, and an approval stands beside the binding
  it was given for; whether the two agree is for policy to say.
- Nothing that a caller asserts gets in here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import func, or_
from sqlalchemy.orm import defer
from sqlmodel import col, select

from licet_attestations import canonical
from licet_engine.domain.binding import binding_parts
from licet_engine.domain.errors import InvalidInput
from licet_engine.domain.refs import ELSEWHERE_TENANT, Ref
from licet_engine.domain.restrictions import Restrictions, inherit
from licet_engine.store.db import TenantSession
from licet_engine.store.tables import (
    ApiToken,
    Approval,
    ApprovalRequest,
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

Entity = dict[str, Any]
"""A Cedar entity in JSON: uid, attrs, parents."""

BUNDLE_PREFIX_CHARS = 16
"""How much of a bundle's digest names it in a reference."""
MAX_DERIVED = 500
"""Runs, and versions, that a certificate of deletion names; of more it says how many."""
LEAST_PREFIX_CHARS = 8
"""How much of it must be given at least."""

TRAINING_BUDGET = "training"
"""Name of the tenant's budget for training, in the unit of `Run.cost`."""


def uid(kind: str, identifier: str) -> dict[str, str]:
    """A Cedar entity reference in JSON."""
    return {"type": kind, "id": identifier}


def entity_ref(kind: str, identifier: str) -> dict[str, Any]:
    """A Cedar entity reference as the value of an attribute."""
    return {"__entity": uid(kind, identifier)}


def entity(kind: str, identifier: str, attrs: dict[str, Any], parents: Iterable[dict[str, str]] = ()) -> Entity:
    """A Cedar entity in JSON."""
    return {"uid": uid(kind, identifier), "attrs": attrs, "parents": list(parents)}


def principal_type(kind: str) -> str:
    """The Cedar type of a principal of ``kind`` (``person`` or ``service``)."""
    return "Person" if kind == "person" else "ServiceAccount"


def tenant_entity(tenant: str, *, region: str, suspended: bool) -> Entity:
    """A tenant as policies see it."""
    return entity("Tenant", tenant, {"region": region, "suspended": suspended})


def elsewhere_entities(sent: str) -> list[Entity]:
    """The one stand-in for what is unknown or foreign; only what the asker sent tells two of them apart."""
    return [
        entity("Elsewhere", sent, {"tenant": entity_ref("Tenant", ELSEWHERE_TENANT)}),
        tenant_entity(ELSEWHERE_TENANT, region="", suspended=False),
    ]


def _ambiguous(prefix: str, what: str) -> InvalidInput:
    # Whoever is of the tenant may list both, so that nothing is told by it.
    return InvalidInput(f"{prefix} is how several {what} begin: write more of it", code="ambiguous")


class View:
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

    def bundle_by_prefix(self, prefix: str) -> PolicyBundle | None:
        """The policy bundle whose digest begins with these hex characters: at least eight of them.

        Raises:
            InvalidInput: There are several.
        """
        if len(prefix) < LEAST_PREFIX_CHARS:
            return None
        query = select(PolicyBundle).where(col(PolicyBundle.digest_hex).startswith(prefix, autoescape=True))
        found = self._session.exec(query.limit(2)).all()
        if len(found) > 1:
            raise _ambiguous(prefix, "bundles")
        return found[0] if found else None

    def publication(self, identifier: str) -> Publication | None:
        """The publication of that identifier."""
        return self._session.exec(select(Publication).where(Publication.id == identifier)).first()

    def publication_by_prefix(self, prefix: str) -> Publication | None:
        """The publication whose identifier begins with these hex characters: at least eight of them.

        Raises:
            InvalidInput: There are several.
        """
        if len(prefix) < LEAST_PREFIX_CHARS:
            return None
        query = select(Publication).where(col(Publication.id).startswith(prefix, autoescape=True))
        found = self._session.exec(query.limit(2)).all()
        if len(found) > 1:
            raise _ambiguous(prefix, "publications")
        return found[0] if found else None

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
        return list(self._session.exec(select(Publication).where(Publication.state == "checking")).all())

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
        query = select(ApprovalRequest).where(
            ApprovalRequest.state == "open", col(ApprovalRequest.expires_at_ms) > self.now_ms
        )
        return list(self._session.exec(query.order_by(col(ApprovalRequest.at_ms))).all())

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

    # --- restrictions ----------------------------------------------------------------------------------------------

    def dataset_restrictions(self, row: Dataset) -> Restrictions:
        """What binds a dataset."""
        return Restrictions(
            classification=row.classification,
            protected=bool(row.protected),
            residency=frozenset(row.residency),
            uses=frozenset(row.uses),
            expires_at_ms=row.expires_at_ms,
            held=bool(self.holds("Dataset", row.name)),
        )

    def lineage_restrictions(self, datasets: Iterable[str], *, held: bool = False) -> Restrictions:
        """What binds something made from these datasets."""
        rows = [row for row in (self.dataset(name) for name in datasets) if row is not None]
        return inherit((self.dataset_restrictions(row) for row in rows), held=held)

    def derived_count(self, dataset: str) -> int:
        """How many runs at work and live model versions stand on a dataset."""
        runs = self._session.exec(select(Run).where(col(Run.state).in_(["accepted", "running"])))
        versions = self._session.exec(select(ModelVersion).where(col(ModelVersion.state).in_(["ready", "registering"])))
        return sum(dataset in row.datasets for row in runs) + sum(dataset in row.datasets for row in versions)

    def derived(self, dataset: str) -> dict[str, Any]:
        """What was ever made from a dataset, by names within the tenant, the oldest first: runs, versions, and which of these are held."""
        runs = self._session.exec(select(Run).order_by(col(Run.created_at_ms), col(Run.name))).all()
        versions = self._session.exec(
            select(ModelVersion).order_by(col(ModelVersion.created_at_ms), col(ModelVersion.version))
        ).all()
        of_runs = [row.name for row in runs if dataset in row.datasets]
        of_versions = [f"{row.model}@{row.version}" for row in versions if dataset in row.datasets]
        held = [name for name in of_versions[:MAX_DERIVED] if self.holds("ModelVersion", name)]
        more = max(0, len(of_runs) - MAX_DERIVED) + max(0, len(of_versions) - MAX_DERIVED)
        return {"runs": of_runs[:MAX_DERIVED], "versions": of_versions[:MAX_DERIVED], "held": held, "more": more}

    # --- entities --------------------------------------------------------------------------------------------------

    def _owned(self) -> dict[str, Any]:
        return {"tenant": entity_ref("Tenant", self.tenant.tenant_id)}

    def _id(self, name: str) -> str:
        return f"{self.tenant.tenant_id}/{name}"

    def _people(self, names: Iterable[str], kind: str) -> list[dict[str, Any]]:
        return [entity_ref(kind, self._id(name)) for name in sorted(names)]

    def tenant_entity(self) -> Entity:
        """The tenant itself."""
        return tenant_entity(self.tenant.tenant_id, region=self.tenant.region, suspended=self.tenant.suspended)

    def principal_entity(self, row: Principal) -> Entity:
        """A person or service account, with its roles as parents."""
        parents = [uid("Role", role) for role in sorted(row.roles)]
        attrs = self._owned() | {"active": row.active}
        if row.kind == "person" and row.qualified:
            attrs["qualified"] = sorted(row.qualified)
        return entity(principal_type(row.kind), self._id(row.name), attrs, parents)

    def dataset_entity(self, row: Dataset) -> Entity:
        """A dataset."""
        restrictions = self.dataset_restrictions(row)
        attrs = self._owned() | {
            "restrictions": restrictions.to_fact(),
            "held": restrictions.held,
            "archived": row.state in {"archived", "deleted"},
            "derived": self.derived_count(row.name),
        }
        return entity("Dataset", self._id(row.name), attrs)

    def run_entity(self, row: Run, *, is_paid: bool = False) -> Entity:
        """A run, or one as it would be.

        Args:
            row: The run.
            is_paid: Whether its cost was taken from the budget already, and so is there for it.
        """
        place = self.environment(row.environment)
        code, runtime = row.spec.get("code_digest_hex", ""), row.spec.get("runtime_digest_hex", "")
        attrs = self._owned() | {
            "restrictions": self.lineage_restrictions(row.datasets).to_fact(),
            "use": row.use,
            "environment": row.environment,
            "region": row.region,
            "runtime_approved": place is not None and runtime in place.runtimes_allowed,
            "code_approved": place is not None and code in place.code_allowed,
            "cost": row.cost,
            "budget_remaining": self.budget_remaining(TRAINING_BUDGET) + (row.cost if is_paid else 0),
            "authors": self._people(row.authors, "Person"),
            "pipelines": self._people(row.pipelines, "ServiceAccount"),
            "state": row.state,
        }
        return entity("Run", self._id(row.name), attrs | self._compute(row))

    def _compute(self, row: Run) -> dict[str, Any]:
        """What a run takes beyond one process in float32; nothing for one that takes no more."""
        spec = row.spec.get("spec", {})
        device, ranks, precision = spec.get("device", "cpu"), spec.get("ranks", 1), spec.get("precision", "fp32")
        if (device, ranks, precision) == ("cpu", 1, "fp32"):
            return {}
        allotment = self.device_allotment()
        return {
            "compute": {
                "device": device,
                "devices": 0 if device == "cpu" else ranks,
                "device_quota": 0 if allotment is None else allotment.devices,
                "ranks": ranks,
                "precision": precision,
            }
        }

    def binding(self, row: ModelVersion) -> str:
        """What an approval of the version, as it stands now, binds to."""
        return canonical.digest(self.binding_parts(row)).hex()

    def binding_parts(self, row: ModelVersion) -> dict[str, Any]:
        """What that binding is made of."""
        datasets = [found.digest_hex for found in map(self.dataset, row.datasets) if found is not None]
        return binding_parts(
            model_digest_hex=row.digest_hex,
            revision=row.revision,
            dataset_digests_hex=datasets,
            evaluation_digests_hex={k: c.attestation_digest_hex for k, c in self.checks(row).items()},
            policy_digest_hex=self.policy_digest_hex,
            restrictions=self.lineage_restrictions(row.datasets).to_fact() | {"held": False},
            tier=row.tier,
        )

    def _approvals_by_track(self, row: ModelVersion, binding: str) -> dict[str, dict[str, Any]]:
        """For each track the approval that lasts longest, of the present binding if there is one.

        That it has expired is left for policy to say, so that a question remembered for a while grows no older answer.
        """
        tracks: dict[str, list[Approval]] = {}
        for approval in self.approvals(row.model, row.version):
            tracks.setdefault(approval.track, []).append(approval)
        found = {}
        for track, given in sorted(tracks.items()):
            current = [a for a in given if a.binding == binding]
            last = max(current or given, key=lambda a: a.expires_at_ms)
            people = {name for a in current or [last] for name in (a.approver, a.on_behalf_of) if name is not None}
            found[track] = {
                "binding": last.binding,
                "by": self._people(people, "Person"),
                "expires_at_ms": last.expires_at_ms,
            }
        return found

    def model_version_entity(self, row: ModelVersion) -> Entity:
        """A model version, or one as it would be."""
        held = bool(self.holds("ModelVersion", f"{row.model}@{row.version}"))
        checks = {kind: {"passed": check.passed, **check.figures} for kind, check in self.checks(row).items()}
        binding = self.binding(row)
        attrs = self._owned() | {
            "model": entity_ref("Model", self._id(row.model)),
            "tier": row.tier,
            "restrictions": self.lineage_restrictions(row.datasets, held=held).to_fact(),
            "use": row.use,
            "stage": row.stage,
            "held": held,
            "authors": self._people(row.authors, "Person"),
            "pipelines": self._people(row.pipelines, "ServiceAccount"),
            "binding": binding,
            "approvals": self._approvals_by_track(row, binding),
            "signed": row.signed,
            "checks": checks,
        }
        return entity("ModelVersion", f"{self._id(row.model)}@{row.version}", attrs)

    def endpoint_entity(self, row: Endpoint, *more: ModelVersion) -> Entity:
        """An endpoint, or one as it would be with further versions on it; what binds any of its versions binds it."""
        numbers = {int(number) for number, percent in row.weights.items() if percent}
        numbers |= {int(row.shadow)} if row.shadow else set()
        if not numbers and not more:
            # What answers nothing now is still bound by whatever answered there.
            numbers = {deployment.version for deployment in self.deployments(row.name)}
        on_it = [found for n in sorted(numbers) if (found := self.model_version(row.model, n)) is not None]
        held = any(self.holds("ModelVersion", f"{version.model}@{version.version}") for version in on_it)
        datasets = {name for version in (*on_it, *more) for name in version.datasets}
        attrs = self._owned() | {
            "restrictions": self.lineage_restrictions(sorted(datasets), held=held).to_fact(),
            "use": more[-1].use if more else row.use,
            "region": row.region,
            "alarmed": row.alarmed,
            "live": row.state == "live",
            "held": held,
        }
        return entity("Endpoint", self._id(row.name), attrs)

    def bundle_entity(self, row: PolicyBundle) -> Entity:
        """A policy bundle."""
        attrs = self._owned() | {
            "author": entity_ref("Person", self._id(row.author)),
            "state": row.state,
            "proved": row.proved,
        }
        return entity("PolicyBundle", self._id(row.digest_hex[:BUNDLE_PREFIX_CHARS]), attrs)

    def key_entity(self) -> Entity:
        """The tenant's key."""
        return entity("TenantKey", self._id("key"), self._owned() | {"held": self.any_hold()})

    def plain_entity(self, kind: str, ref: Ref) -> Entity:
        """A resource of which policies know only the tenant: ChangeTicket, Evidence, Issuer, Log, Secret, Webhook."""
        return entity(kind, str(ref), self._owned())
