"""The tables of the engine.

Rules kept here:

- Every table has ``tenant_id`` as the first column of its primary key; nothing is stored outside a tenant.
- Times are integer milliseconds since the epoch (``_ms``); digests are lower-case hexadecimal text (``_hex``).
- Structured columns are JSON *text*: the same on every database, and never queried into. Assign a new value to change one; a change
  inside a list or dict is not seen by the session.
- Table classes do not validate (SQLModel never does where ``table=True``): input is validated by separate models before it gets here.
- The tables of the log are written by the sequencer only.
"""

import json
from typing import Any, ClassVar, Final

from sqlalchemy import BigInteger, ForeignKeyConstraint, Index, LargeBinary, Text, UniqueConstraint
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel

DEFAULT_APPROVAL_TTL_S = 90 * 86_400
DEFAULT_REQUEST_TTL_S = 14 * 86_400
DEFAULT_REMIND_BEFORE_S = 86_400


class JsonText(TypeDecorator[Any]):
    """A JSON value kept as text, with sorted keys and no white space; ``None`` is NULL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any | None, dialect: Dialect) -> str | None:  # noqa: ARG002  # SQLAlchemy's signature.
        """Encode on the way in; NaN and infinity are refused, because they are not JSON."""
        if value is None:
            return None
        return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> Any | None:  # noqa: ARG002  # SQLAlchemy's signature.
        """Decode on the way out."""
        return None if value is None else json.loads(value)


def _to_tenant() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["tenant_id"], ["tenant.tenant_id"])


def _to_version() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["tenant_id", "model", "version"], ["model_version.tenant_id", "model_version.model", "model_version.version"]
    )


_REMOVED_BY_ANY: Final = {"confirm_deleted_rows": False}
"""Of rows that go when their time is over: of several apis, another may have removed them already, which is as well."""


class TenantRow(SQLModel):
    """What every row has: the tenant it belongs to."""

    tenant_id: str = Field(primary_key=True)


# --- Tenants and people -------------------------------------------------------------------------------------------------


class Tenant(TenantRow, table=True):
    """A tenant. ``tenant_id`` is its slug: immutable and never reused."""

    __tablename__: ClassVar[Any] = "tenant"

    region: str
    suspended: bool = False
    created_at_ms: int = Field(sa_type=BigInteger)
    bundle_digest_hex: str | None = None
    """The policy bundle in force."""
    approval_ttl_s: int = Field(default=DEFAULT_APPROVAL_TTL_S, sa_type=BigInteger)
    """How long an approval counts."""
    request_ttl_s: int = Field(default=DEFAULT_REQUEST_TTL_S, sa_type=BigInteger)
    """How long a request for approval waits."""
    remind_before_s: int = Field(default=DEFAULT_REMIND_BEFORE_S, sa_type=BigInteger)
    """How long before either ends a reminder is sent."""


class Principal(TenantRow, table=True):
    """A person or a service account."""

    __tablename__: ClassVar[Any] = "principal"
    __table_args__ = (_to_tenant(),)

    name: str = Field(primary_key=True)
    kind: str
    """``person`` or ``service``."""
    roles: list[str] = Field(default_factory=list, sa_type=JsonText)
    active: bool = True
    owner: str | None = None
    """The person who answers for a service account."""
    created_at_ms: int = Field(sa_type=BigInteger)
    qualified: list[str] = Field(default_factory=list, sa_type=JsonText)
    """Tracks on which the person may stand in for a reviewer."""


class ApiToken(TenantRow, table=True):
    """An API token, kept as its SHA-256; the token itself is shown once and never stored."""

    __tablename__: ClassVar[Any] = "api_token"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "principal"], ["principal.tenant_id", "principal.name"]),
        # Identity is looked up by the hash alone, before any tenant is known.
        UniqueConstraint("hash_hex"),
    )

    hash_hex: str = Field(primary_key=True)
    id: str
    """Names the token to people, in the log and when it is revoked."""
    principal: str
    label: str = ""
    created_at_ms: int = Field(sa_type=BigInteger)
    expires_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    revoked_at_ms: int | None = Field(default=None, sa_type=BigInteger)


class BreakGlass(TenantRow, table=True):
    """An operator's time behind the glass of this tenant: asked for, approved, over, reviewed."""

    __tablename__: ClassVar[Any] = "break_glass"
    __table_args__ = (_to_tenant(),)

    id: str = Field(primary_key=True)
    operator: str
    """Reference of the operator, who is of the platform's tenant."""
    reason: str = Field(sa_type=Text)
    duration_ms: int = Field(sa_type=BigInteger)
    requested_at_ms: int = Field(sa_type=BigInteger)
    approved_by: str | None = None
    approved_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    until_ms: int = Field(default=0, sa_type=BigInteger)
    ended_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    """When it was ended before its time."""
    reviewed_by: str | None = None
    reviewed_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    finding: str = Field(default="", sa_type=Text)


class Environment(TenantRow, table=True):
    """A place where runs may be executed, its approved runtime and the code it may run."""

    __tablename__: ClassVar[Any] = "environment"
    __table_args__ = (_to_tenant(),)

    name: str = Field(primary_key=True)
    region: str
    runtimes_allowed: list[str] = Field(default_factory=list, sa_type=JsonText)
    """Digests of the runtimes (interpreter and libraries) that are approved here."""
    code_allowed: list[str] = Field(default_factory=list, sa_type=JsonText)
    """Digests of the code that is approved to run here."""


class Budget(TenantRow, table=True):
    """A consumable. Spent by the sequencer only, so that two entries of one group cannot spend the same."""

    __tablename__: ClassVar[Any] = "budget"
    __table_args__ = (_to_tenant(),)

    name: str = Field(primary_key=True)
    limit: int = Field(sa_type=BigInteger)
    remaining: int = Field(sa_type=BigInteger)


# --- Devices ------------------------------------------------------------------------------------------------------------


class DeviceAllotment(TenantRow, table=True):
    """How many devices of the pool a tenant may have at once; none where there is no row."""

    __tablename__: ClassVar[Any] = "device_allotment"
    __table_args__ = (_to_tenant(),)

    devices: int
    at_ms: int = Field(sa_type=BigInteger)


class DeviceRow(TenantRow, table=True):
    """A device of the pool and its lease. The platform's own; no fact: raises no facts version."""

    __tablename__: ClassVar[Any] = "device"

    uuid: str = Field(primary_key=True)
    kind: str
    name: str
    memory_mib: int
    driver: str
    worker: str
    """The machine that has it, whose workers share it."""
    seen_at_ms: int = Field(sa_type=BigInteger)
    operation_id: str | None = None
    """To which operation it is leased."""
    of_tenant: str | None = None
    leased_at_ms: int = Field(default=0, sa_type=BigInteger)
    renewed_at_ms: int = Field(default=0, sa_type=BigInteger)


class DeviceWait(TenantRow, table=True):
    """An operation that waits for devices. The platform's own, as the pool is."""

    __tablename__: ClassVar[Any] = "device_wait"

    operation_id: str = Field(primary_key=True)
    of_tenant: str
    worker: str
    wanted: int
    by_quota: bool = False
    """It waits for runs of its own tenant, and keeps nobody else waiting."""
    since_ms: int = Field(sa_type=BigInteger)
    seen_at_ms: int = Field(sa_type=BigInteger)


# --- Data and holds -----------------------------------------------------------------------------------------------------


class Dataset(TenantRow, table=True):
    """A registered dataset and the restrictions that everything made from it inherits."""

    __tablename__: ClassVar[Any] = "dataset"
    __table_args__ = (_to_tenant(),)

    name: str = Field(primary_key=True)
    classification: str
    """``public``, ``internal``, ``confidential`` or ``restricted``."""
    protected: list[str] = Field(default_factory=list, sa_type=JsonText)
    """Columns that hold protected attributes."""
    residency: list[str] = Field(default_factory=list, sa_type=JsonText)
    uses: list[str] = Field(default_factory=list, sa_type=JsonText)
    expires_at_ms: int = Field(sa_type=BigInteger)
    purpose: str = Field(default="", sa_type=Text)
    label: str = ""
    """The column that is predicted."""
    columns: dict[str, str] = Field(default_factory=dict, sa_type=JsonText)
    """How each column is written: ``number`` or ``yes-no``; found when the rows are stored."""
    missing: str = "refuse"
    """What a missing value does to its row: ``refuse`` or ``drop``."""
    object_id: str
    digest_hex: str
    rows: int = Field(default=0, sa_type=BigInteger)
    bytes: int = Field(default=0, sa_type=BigInteger)
    state: str
    """``registering``, ``ready``, ``archived``, ``deleted`` or ``failed``."""
    registered_by: str
    registered_by_kind: str
    created_at_ms: int = Field(sa_type=BigInteger)


class Hold(TenantRow, table=True):
    """A hold on a resource: placed, later perhaps lifted, never removed."""

    __tablename__: ClassVar[Any] = "hold"
    __table_args__ = (_to_tenant(), Index("ix_hold_resource", "tenant_id", "resource_type", "resource_name"))

    id: str = Field(primary_key=True)
    resource_type: str
    resource_name: str
    reason: str = Field(sa_type=Text)
    placed_by: str
    placed_at_ms: int = Field(sa_type=BigInteger)
    lifted_by: str | None = None
    lifted_at_ms: int | None = Field(default=None, sa_type=BigInteger)


# --- Training -----------------------------------------------------------------------------------------------------------


class Run(TenantRow, table=True):
    """A training run, over all its attempts."""

    __tablename__: ClassVar[Any] = "run"
    __table_args__ = (_to_tenant(),)

    name: str = Field(primary_key=True)
    use: str
    datasets: list[str] = Field(default_factory=list, sa_type=JsonText)
    environment: str
    region: str
    spec: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    state: str
    """``accepted``, ``running``, ``done``, ``failed``, ``cancelled`` or ``refused``."""
    attempt: int = 0
    started_by: str
    started_by_kind: str
    authors: list[str] = Field(default_factory=list, sa_type=JsonText)
    pipelines: list[str] = Field(default_factory=list, sa_type=JsonText)
    cost: int = Field(default=0, sa_type=BigInteger)
    metrics_summary: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    outcome: dict[str, Any] | None = Field(default=None, sa_type=JsonText)
    """Digests of what the run made."""
    operation_id: str | None = None
    created_at_ms: int = Field(sa_type=BigInteger)
    started_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    ended_at_ms: int | None = Field(default=None, sa_type=BigInteger)


class Metric(TenantRow, table=True):
    """One figure of a run. Telemetry: raises no facts version.

    A resumed run reports steps after its checkpoint again, under its new attempt.
    """

    __tablename__: ClassVar[Any] = "metric"
    __table_args__ = (ForeignKeyConstraint(["tenant_id", "run"], ["run.tenant_id", "run.name"]),)
    __mapper_args__: ClassVar[Any] = _REMOVED_BY_ANY

    run: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    step: int = Field(primary_key=True, sa_type=BigInteger)
    attempt: int = Field(primary_key=True)
    value: str
    """Decimal text, as the job reported it."""
    at_ms: int = Field(default=0, sa_type=BigInteger)


# --- Models -------------------------------------------------------------------------------------------------------------


class ModelVersion(TenantRow, table=True):
    """A version of a model."""

    __tablename__: ClassVar[Any] = "model_version"
    __table_args__ = (_to_tenant(),)

    model: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    run: str
    tier: str
    """``low``, ``medium`` or ``high``."""
    use: str
    revision: int = 1
    """How often its files were registered; what was approved of other files does not count."""
    stage: str = "none"
    """``none``, ``staging``, ``prod`` or ``retired``."""
    digest_hex: str = ""
    manifest: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    authors: list[str] = Field(default_factory=list, sa_type=JsonText)
    pipelines: list[str] = Field(default_factory=list, sa_type=JsonText)
    datasets: list[str] = Field(default_factory=list, sa_type=JsonText)
    signed: bool = False
    state: str
    """``registering``, ``ready``, ``deleted`` or ``failed``."""
    created_by: str = ""
    created_at_ms: int = Field(sa_type=BigInteger)


class CheckResult(TenantRow, table=True):
    """What a check of a model found; it counts only for the digest that was checked."""

    __tablename__: ClassVar[Any] = "check_result"
    __table_args__ = (_to_version(), Index("ix_check_result_version", "tenant_id", "model", "version", "kind", "at_ms"))

    id: str = Field(primary_key=True)
    model: str
    version: int
    kind: str
    """``technical``, ``bias``, ``explainability`` or ``drift``."""
    model_digest_hex: str
    passed: bool
    figures: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    attestation_digest_hex: str = ""
    operation_id: str | None = None
    at_ms: int = Field(sa_type=BigInteger)


class ApprovalRequest(TenantRow, table=True):
    """A request that a track approve a model version."""

    __tablename__: ClassVar[Any] = "approval_request"
    __table_args__ = (_to_version(), Index("ix_approval_request_version", "tenant_id", "model", "version"))

    id: str = Field(primary_key=True)
    model: str
    version: int
    track: str
    binding: str
    state: str = "open"
    """``open``, ``answered`` or ``withdrawn``."""
    requested_by: str
    reason: str = Field(default="", sa_type=Text)
    at_ms: int = Field(sa_type=BigInteger)
    expires_at_ms: int = Field(default=0, sa_type=BigInteger)
    parts: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    """What the binding was made of."""
    reminded_at_ms: int | None = Field(default=None, sa_type=BigInteger)


class Approval(TenantRow, table=True):
    """A reviewer's verdict, bound to the digests it was given for."""

    __tablename__: ClassVar[Any] = "approval"
    __table_args__ = (_to_version(), Index("ix_approval_version", "tenant_id", "model", "version"))

    id: str = Field(primary_key=True)
    model: str
    version: int
    track: str
    binding: str
    verdict: str
    """``approved`` or ``rejected``."""
    approver: str
    reason: str = Field(default="", sa_type=Text)
    attestation_digest_hex: str = ""
    at_ms: int = Field(sa_type=BigInteger)
    withdrawn_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    voided_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    on_behalf_of: str | None = None
    """The reviewer for whom the approver stood in."""
    expires_at_ms: int = Field(default=0, sa_type=BigInteger)
    parts: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    """What the binding was made of, so that it can be told what changed."""
    reminded_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    void_told_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    """When it was told that it is void."""


class Delegation(TenantRow, table=True):
    """A reviewer has another person stand in on a track, for a time. Revoked perhaps, never removed."""

    __tablename__: ClassVar[Any] = "delegation"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "reviewer"], ["principal.tenant_id", "principal.name"]),
        ForeignKeyConstraint(["tenant_id", "delegate"], ["principal.tenant_id", "principal.name"]),
        Index("ix_delegation_delegate", "tenant_id", "delegate", "track"),
    )

    id: str = Field(primary_key=True)
    track: str
    reviewer: str
    delegate: str
    reason: str = Field(default="", sa_type=Text)
    created_at_ms: int = Field(sa_type=BigInteger)
    until_ms: int = Field(sa_type=BigInteger)
    revoked_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    revoked_by: str | None = None


class Ticket(TenantRow, table=True):
    """A change ticket as another system told of it, when it was last fetched."""

    __tablename__: ClassVar[Any] = "ticket"
    __table_args__ = (_to_tenant(),)

    id: str = Field(primary_key=True)
    state: str
    approved: bool
    subjects: list[str] = Field(default_factory=list, sa_type=JsonText)
    """References of models and versions that it is about."""
    as_of_ms: int = Field(sa_type=BigInteger)
    fresh_until_ms: int = Field(sa_type=BigInteger)
    fetched_at_ms: int = Field(sa_type=BigInteger)
    operation_id: str


class Promotion(TenantRow, table=True):
    """A change of stage: who, when, and by which decision."""

    __tablename__: ClassVar[Any] = "promotion"
    __table_args__ = (_to_version(), Index("ix_promotion_version", "tenant_id", "model", "version", "at_ms"))

    id: str = Field(primary_key=True)
    model: str
    version: int
    stage_before: str
    stage: str
    promoted_by: str
    decision_id: str
    bundle_digest_hex: str = ""
    operation_id: str | None = None
    reason: str = Field(default="", sa_type=Text)
    at_ms: int = Field(sa_type=BigInteger)


# --- Serving ------------------------------------------------------------------------------------------------------------


def _to_endpoint() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["tenant_id", "endpoint"], ["endpoint.tenant_id", "endpoint.name"])


class Endpoint(TenantRow, table=True):
    """What is invoked: one model under one name, with the versions that take its traffic."""

    __tablename__: ClassVar[Any] = "endpoint"
    __table_args__ = (_to_tenant(),)

    name: str = Field(primary_key=True)
    model: str
    region: str
    use: str
    state: str
    """``deploying`` until its first version answers, ``live``, or ``retired``."""
    weights: dict[str, int] = Field(default_factory=dict, sa_type=JsonText)
    """Version number, as text, to percent."""
    shadow: str = ""
    """Number of the version that is sent copies; empty for none."""
    alarmed: bool = False
    created_by: str = ""
    created_at_ms: int = Field(sa_type=BigInteger)
    updated_at_ms: int = Field(sa_type=BigInteger)


class Deployment(TenantRow, table=True):
    """One model version put on an endpoint, and what became of it. Its identifier is its operation's."""

    __tablename__: ClassVar[Any] = "deployment"
    __table_args__ = (
        _to_endpoint(),
        _to_version(),
        Index("ix_deployment_endpoint", "tenant_id", "endpoint", "created_at_ms"),
    )

    id: str = Field(primary_key=True)
    endpoint: str
    model: str
    version: int
    model_digest_hex: str
    strategy: str
    fallback: str = ""
    """Number of the version before, to which an alarm returns all traffic; empty for none."""
    plan: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    """Steps, alarms, replicas and bounds, as they were decided."""
    state: str
    """``starting``, ``baking``, ``live``, ``shadow``, ``superseded``, ``rolled-back``, ``retired`` or ``failed``."""
    cause: dict[str, Any] | None = Field(default=None, sa_type=JsonText)
    """Why it was rolled back or failed."""
    deployed_by: str
    decision_id: str
    attestation_digest_hex: str = ""
    created_at_ms: int = Field(sa_type=BigInteger)
    ended_at_ms: int | None = Field(default=None, sa_type=BigInteger)


class TrafficEvent(TenantRow, table=True):
    """A change of an endpoint's traffic that the router made by itself, as a deployment permits."""

    __tablename__: ClassVar[Any] = "traffic_event"
    __table_args__ = (_to_endpoint(), Index("ix_traffic_event_at", "tenant_id", "endpoint", "at_ms"))

    endpoint: str = Field(primary_key=True)
    operation_id: str = Field(primary_key=True)
    serial: int = Field(primary_key=True, sa_type=BigInteger)
    kind: str
    """``step``, ``completed``, ``rolled-back`` or ``failed``."""
    weights: dict[str, int] = Field(default_factory=dict, sa_type=JsonText)
    shadow: str = ""
    cause: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    at_ms: int = Field(sa_type=BigInteger)


class InvocationCount(TenantRow, table=True):
    """How far an endpoint's invocations are accounted for. Telemetry: raises no facts version."""

    __tablename__: ClassVar[Any] = "invocation_count"
    __table_args__ = (_to_endpoint(),)

    endpoint: str = Field(primary_key=True)
    last: int = Field(default=0, sa_type=BigInteger)
    """The last number that was reported; the next batch begins right after it."""
    lost: int = Field(default=0, sa_type=BigInteger)
    totals: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    """Version number to status to how many."""
    at_ms: int = Field(default=0, sa_type=BigInteger)


class InvocationBatch(TenantRow, table=True):
    """A batch of invocations as it was reported; the newest are kept here, all of them stand in the log."""

    __tablename__: ClassVar[Any] = "invocation_batch"
    __table_args__ = (_to_endpoint(),)

    endpoint: str = Field(primary_key=True)
    first: int = Field(primary_key=True, sa_type=BigInteger)
    last: int = Field(sa_type=BigInteger)
    lost: int = Field(default=0, sa_type=BigInteger)
    router: str
    epoch: str
    groups: list[dict[str, Any]] = Field(default_factory=list, sa_type=JsonText)
    leaf_index: int | None = Field(default=None, sa_type=BigInteger)
    at_ms: int = Field(sa_type=BigInteger)


# --- Webhooks -----------------------------------------------------------------------------------------------------------


class Webhook(TenantRow, table=True):
    """Where a tenant wants to be told of events. Its secret is derived by the signer, and stored nowhere.

    ``failures`` and ``rest_until_ms`` are telemetry: they raise no facts version.
    """

    __tablename__: ClassVar[Any] = "webhook"
    __table_args__ = (_to_tenant(),)

    id: str = Field(primary_key=True)
    name: str
    url: str = Field(sa_type=Text)
    events: list[str] = Field(default_factory=list, sa_type=JsonText)
    """Those it is told of; empty for all."""
    unsafe_http: bool = False
    created_by: str
    created_at_ms: int = Field(sa_type=BigInteger)
    removed_at_ms: int | None = Field(default=None, sa_type=BigInteger)
    secret: str
    """Identifier from which the signer derives the secret."""
    secret_before: str | None = None
    """That of the secret before, by which messages are signed as well until a time."""
    secret_before_until_ms: int = Field(default=0, sa_type=BigInteger)
    failures: int = 0
    """Tries in a row that failed."""
    rest_until_ms: int = Field(default=0, sa_type=BigInteger)
    """Until when it is left alone."""


class WebhookMessage(TenantRow, table=True):
    """One event for one webhook, written with the decision that it tells of. Its sending is telemetry: it raises no facts version."""

    __tablename__: ClassVar[Any] = "webhook_message"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "webhook"], ["webhook.tenant_id", "webhook.id"]),
        Index("ix_webhook_message_due", "state", "next_at_ms"),
        Index("ix_webhook_message_waiting", "tenant_id", "state", "webhook", "next_at_ms"),
    )

    id: str = Field(primary_key=True)
    webhook: str
    event: str
    body: str = Field(sa_type=Text)
    """The very bytes that are signed and sent."""
    state: str = "pending"
    """``pending``, ``delivered``, ``failed`` or ``dropped``."""
    tries: int = 0
    tries_before: int = 0
    """Of these, before it was last put in the queue by hand."""
    created_at_ms: int = Field(sa_type=BigInteger)
    queued_at_ms: int = Field(sa_type=BigInteger)
    next_at_ms: int = Field(sa_type=BigInteger)
    claimed_until_ms: int = Field(default=0, sa_type=BigInteger)
    """Until then a worker is at it."""
    ended_at_ms: int | None = Field(default=None, sa_type=BigInteger)


class WebhookTry(TenantRow, table=True):
    """One try at sending a message, and what came of it."""

    __tablename__: ClassVar[Any] = "webhook_try"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "message"], ["webhook_message.tenant_id", "webhook_message.id"]),
    )

    message: str = Field(primary_key=True)
    number: int = Field(primary_key=True)
    at_ms: int = Field(sa_type=BigInteger)
    status: int = 0
    """HTTP status; 0 if there was no answer."""
    reason: str = Field(default="", sa_type=Text)
    took_ms: int = Field(default=0, sa_type=BigInteger)


# --- Policy, decisions, operations ---------------------------------------------------------------------------------------


class PolicyBundle(TenantRow, table=True):
    """An immutable policy bundle, by digest. ``body`` is the canonical JSON the digest is over."""

    __tablename__: ClassVar[Any] = "policy_bundle"

    digest_hex: str = Field(primary_key=True)
    author: str
    state: str
    """``published``, ``active`` or ``superseded``."""
    proved: bool = False
    body: bytes = Field(sa_type=LargeBinary)
    created_at_ms: int = Field(sa_type=BigInteger)
    activated_at_ms: int | None = Field(default=None, sa_type=BigInteger)


class FactBlob(TenantRow, table=True):
    """A fact that some decision used, by digest: canonical JSON of one entity."""

    __tablename__: ClassVar[Any] = "fact_blob"

    digest_hex: str = Field(primary_key=True)
    body: bytes = Field(sa_type=LargeBinary)


class Decision(TenantRow, table=True):
    """The index by which decisions are listed; the decision itself is a record of the log."""

    __tablename__: ClassVar[Any] = "decision"
    __table_args__ = (Index("ix_decision_at", "tenant_id", "at_ms"),)

    id: str = Field(primary_key=True)
    leaf_index: int = Field(sa_type=BigInteger)
    action: str
    principal: str
    resource: str
    allowed: bool
    at_ms: int = Field(sa_type=BigInteger)


class Operation(TenantRow, table=True):
    """An accepted operation and how far it came."""

    __tablename__: ClassVar[Any] = "operation"
    __table_args__ = (Index("ix_operation_created", "tenant_id", "created_at_ms"),)

    id: str = Field(primary_key=True)
    action: str
    resource: str
    state: str
    """``accepted``, ``running``, ``done``, ``failed`` or ``refused``."""
    decision_id: str
    """The decision that accepted it."""
    last_decision_id: str = ""
    """The last decision on it: warrants are made on this one."""
    facts_version: int = Field(default=0, sa_type=BigInteger)
    """The version of the tenant's facts on which that decision still stands."""
    principal: str
    principal_kind: str = "person"
    parameters: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    attempt: int = 0
    """How often its performance was begun."""
    claimed: list[dict[str, str]] = Field(default_factory=list, sa_type=JsonText)
    """What the asker asserted, to be decided on again alike."""
    asked: dict[str, Any] = Field(default_factory=dict, sa_type=JsonText)
    """The body as it was sent, to be asked again."""
    progress: dict[str, Any] | None = Field(default=None, sa_type=JsonText)
    result: dict[str, Any] | None = Field(default=None, sa_type=JsonText)
    error: dict[str, Any] | None = Field(default=None, sa_type=JsonText)
    created_at_ms: int = Field(sa_type=BigInteger)
    updated_at_ms: int = Field(sa_type=BigInteger)


class Attestation(TenantRow, table=True):
    """A signed statement about something, by the digest of its envelope."""

    __tablename__: ClassVar[Any] = "attestation"
    __table_args__ = (Index("ix_attestation_subject", "tenant_id", "subject"),)

    digest_hex: str = Field(primary_key=True)
    predicate_type: str
    subject: str
    envelope: str = Field(sa_type=Text)
    leaf_index: int | None = Field(default=None, sa_type=BigInteger)
    at_ms: int = Field(sa_type=BigInteger)


class IdempotencyKey(TenantRow, table=True):
    """What was answered to a mutation, so that its repetition is answered alike."""

    __tablename__: ClassVar[Any] = "idempotency_key"
    __mapper_args__: ClassVar[Any] = _REMOVED_BY_ANY

    principal: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    request_digest_hex: str
    body: str = Field(sa_type=Text)
    at_ms: int = Field(sa_type=BigInteger)


# --- The log ------------------------------------------------------------------------------------------------------------


class LogHead(TenantRow, table=True):
    """The head row of a log: locked by whoever appends to it or changes the facts of its tenant."""

    __tablename__: ClassVar[Any] = "log_head"

    size: int = Field(sa_type=BigInteger)
    root: bytes = Field(sa_type=LargeBinary)
    frontier: bytes = Field(sa_type=LargeBinary)
    """The hashes of the complete subtrees, largest first, 32 bytes each."""
    facts_version: int = Field(sa_type=BigInteger)
    last_time_ms: int = Field(sa_type=BigInteger)


class LogLeaf(TenantRow, table=True):
    """A leaf: the header, which is never erased, and its RFC 6962 hash."""

    __tablename__: ClassVar[Any] = "log_leaf"

    leaf_index: int = Field(primary_key=True, sa_type=BigInteger)
    header: str = Field(sa_type=Text)
    hash: bytes = Field(sa_type=LargeBinary)


class LogRecord(TenantRow, table=True):
    """The record that a leaf commits to. Erasing empties salt and record: the leaf stays, and can be proven but not replayed."""

    __tablename__: ClassVar[Any] = "log_record"

    leaf_index: int = Field(primary_key=True, sa_type=BigInteger)
    salt: bytes | None = Field(default=None, sa_type=LargeBinary)
    record: bytes | None = Field(default=None, sa_type=LargeBinary)


class LogTile(TenantRow, table=True):
    """Up to 256 hashes of subtrees of height ``8 * level``, side by side.

    At level 0 only full tiles are kept (an unfinished one is read from the leaves); above, the last tile of a level grows.
    """

    __tablename__: ClassVar[Any] = "log_tile"

    level: int = Field(primary_key=True)
    tile_index: int = Field(primary_key=True, sa_type=BigInteger)
    hashes: bytes = Field(sa_type=LargeBinary)


class LogCheckpoint(TenantRow, table=True):
    """A checkpoint that the signer signed, as a C2SP signed note."""

    __tablename__: ClassVar[Any] = "log_checkpoint"
    __mapper_args__: ClassVar[Any] = _REMOVED_BY_ANY

    size: int = Field(primary_key=True, sa_type=BigInteger)
    note: str = Field(sa_type=Text)
    at_ms: int = Field(default=0, sa_type=BigInteger)


# --- The installation ---------------------------------------------------------------------------------------------------


class Installation(TenantRow, table=True):
    """Which installation the database is of: one row, of the platform's tenant, written once by the owner.

    Nobody but the owner can change it, and who has other keys is told so before anything is done.
    """

    __tablename__: ClassVar[Any] = "installation"

    instance: str
    trust_root_digest_hex: str
    """SHA-256 of the trust root's canonical form."""
    created_at_ms: int = Field(sa_type=BigInteger)


TENANT_TABLES = frozenset(table for table in SQLModel.metadata.tables.values() if "tenant_id" in table.c)
