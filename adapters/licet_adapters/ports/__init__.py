"""The ports: what the worker may ask of an adapter, as Protocols with their inputs and outcomes.

A module for each family; what is named here is what others import.

Rules kept here:

- Every method takes ``warrant`` (a DSSE envelope) first. The adapter verifies it itself and durably marks it spent
  before it acts; whoever calls is not trusted to have checked.
- ``parameters`` are those of the accepted *operation*, exactly as its decision recorded them; the warrant carries
  their digest. ``resources()`` names what this one *step* touches; the warrant carries them by name and digest. An
  input takes whatever else it needs out of one of the two, so nothing unwarranted can slip in beside them.
- An outcome is plain data of integers and text: it can stand in a canonical record. Fractions are in micro.
- A method repeated for the same operation and step (with a new warrant) returns the first outcome and repeats no effect.
"""

from licet_adapters.ports.base import (
    MODEL_FILES,
    Checkable,
    Clock,
    FoundLocks,
    InputFile,
    LockKeeper,
    Parameters,
    SandboxReport,
    check_digest_hex,
    check_tenant,
    check_version,
    version_number,
)
from licet_adapters.ports.checks import CheckJob, CheckOutcome, CheckResult, ModelChecker
from licet_adapters.ports.context import AdapterContext, DataKey, KeySource, ModelSigner, SignerPort, WebhookSigner
from licet_adapters.ports.identity import IssuerKeySource
from licet_adapters.ports.notices import Notice, NoticeOutcome, Notifier
from licet_adapters.ports.objects import HoldOutcome, ObjectRef, ObjectStore, PutOutcome
from licet_adapters.ports.registry import (
    SIGNATURE_FILE,
    ModelRegistry,
    ModelVersionRef,
    RegisteredVersion,
    StageOutcome,
)
from licet_adapters.ports.serving import (
    CONTROL_SOCKET,
    MAX_CAUSE_CHARS,
    REFERENCE_FILE,
    DeploymentJob,
    ServingOutcome,
    ServingRuntime,
    TrafficChange,
    check_endpoint,
    check_weights,
)
from licet_adapters.ports.tickets import TicketFact, Tickets
from licet_adapters.ports.training import (
    DEVICE_UUID,
    Device,
    Metric,
    TrainingJob,
    TrainingOutcome,
    TrainingRunner,
    leased_devices,
)

__all__ = [
    "CONTROL_SOCKET",
    "DEVICE_UUID",
    "MAX_CAUSE_CHARS",
    "MODEL_FILES",
    "REFERENCE_FILE",
    "SIGNATURE_FILE",
    "AdapterContext",
    "CheckJob",
    "CheckOutcome",
    "CheckResult",
    "Checkable",
    "Clock",
    "DataKey",
    "DeploymentJob",
    "Device",
    "FoundLocks",
    "HoldOutcome",
    "InputFile",
    "IssuerKeySource",
    "KeySource",
    "LockKeeper",
    "Metric",
    "ModelChecker",
    "ModelRegistry",
    "ModelSigner",
    "ModelVersionRef",
    "Notice",
    "NoticeOutcome",
    "Notifier",
    "ObjectRef",
    "ObjectStore",
    "Parameters",
    "PutOutcome",
    "RegisteredVersion",
    "SandboxReport",
    "ServingOutcome",
    "ServingRuntime",
    "SignerPort",
    "StageOutcome",
    "TicketFact",
    "Tickets",
    "TrafficChange",
    "TrainingJob",
    "TrainingOutcome",
    "TrainingRunner",
    "WebhookSigner",
    "check_digest_hex",
    "check_endpoint",
    "check_tenant",
    "check_version",
    "check_weights",
    "leased_devices",
    "version_number",
]
