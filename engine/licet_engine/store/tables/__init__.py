"""The tables of the engine.

A module for each family; what is named here is what others import.

Rules kept here:

- Every table has ``tenant_id`` as the first column of its primary key; nothing is stored outside a tenant.
- Times are integer milliseconds since the epoch (``_ms``); digests are lower-case hexadecimal text (``_hex``).
- Structured columns are JSON *text*: the same on every database, and never queried into. Assign a new value to change one; a change
  inside a list or dict is not seen by the session.
- Table classes do not validate (SQLModel never does where ``table=True``): input is validated by separate models before it gets here.
- The tables of the log are written by the sequencer only.
"""

from sqlmodel import SQLModel

from licet_engine.store.tables.base import JsonText, TenantRow
from licet_engine.store.tables.data import Dataset, Hold
from licet_engine.store.tables.devices import DeviceAllotment, DeviceRow, DeviceWait
from licet_engine.store.tables.directory import DirectoryHead, DirectoryPair, DirectoryState
from licet_engine.store.tables.installation import Installation
from licet_engine.store.tables.log import LogCheckpoint, LogCosignature, LogHead, LogLeaf, LogRecord, LogTile
from licet_engine.store.tables.models import (
    Approval,
    ApprovalRequest,
    CheckResult,
    Delegation,
    ModelVersion,
    Promotion,
    Ticket,
)
from licet_engine.store.tables.operations import (
    ERASED,
    Attestation,
    Decision,
    FactBlob,
    IdempotencyKey,
    Operation,
    PolicyBundle,
)
from licet_engine.store.tables.publications import Publication
from licet_engine.store.tables.serving import Deployment, Endpoint, InvocationBatch, InvocationCount, TrafficEvent
from licet_engine.store.tables.shadow import PolicyFlip, PolicyShadow, PolicyShadowCount
from licet_engine.store.tables.tenants import (
    DEFAULT_APPROVAL_TTL_S,
    DEFAULT_REMIND_BEFORE_S,
    DEFAULT_REQUEST_TTL_S,
    ApiToken,
    BreakGlass,
    Budget,
    Environment,
    Principal,
    Tenant,
)
from licet_engine.store.tables.training import Metric, Run
from licet_engine.store.tables.webhooks import Webhook, WebhookMessage, WebhookTry
from licet_engine.store.tables.workload import Issuer, UsedIdToken

TENANT_TABLES = frozenset(table for table in SQLModel.metadata.tables.values() if "tenant_id" in table.c)

__all__ = [
    "DEFAULT_APPROVAL_TTL_S",
    "DEFAULT_REMIND_BEFORE_S",
    "DEFAULT_REQUEST_TTL_S",
    "ERASED",
    "TENANT_TABLES",
    "ApiToken",
    "Approval",
    "ApprovalRequest",
    "Attestation",
    "BreakGlass",
    "Budget",
    "CheckResult",
    "Dataset",
    "Decision",
    "Delegation",
    "Deployment",
    "DeviceAllotment",
    "DeviceRow",
    "DeviceWait",
    "DirectoryHead",
    "DirectoryPair",
    "DirectoryState",
    "Endpoint",
    "Environment",
    "FactBlob",
    "Hold",
    "IdempotencyKey",
    "Installation",
    "InvocationBatch",
    "InvocationCount",
    "Issuer",
    "JsonText",
    "LogCheckpoint",
    "LogCosignature",
    "LogHead",
    "LogLeaf",
    "LogRecord",
    "LogTile",
    "Metric",
    "ModelVersion",
    "Operation",
    "PolicyBundle",
    "PolicyFlip",
    "PolicyShadow",
    "PolicyShadowCount",
    "Principal",
    "Promotion",
    "Publication",
    "Run",
    "Tenant",
    "TenantRow",
    "Ticket",
    "TrafficEvent",
    "UsedIdToken",
    "Webhook",
    "WebhookMessage",
    "WebhookTry",
]
