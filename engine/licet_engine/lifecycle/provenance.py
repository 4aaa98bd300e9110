"""What is attested of what was done: in-toto statements in the formats that others read.

SLSA provenance v1 for training, in-toto test-result v0.1 for checks, SLSA VSA v1 for promotions, and a predicate of our
own for approvals, since no common one names tracks and bindings. Figures are integers in millionths or counts, so that
the statement is canonical JSON; each predicate names the tenant, which the formats allow as a further field. In SLSA's
predicates what is ours is named ``licet_...``, as SLSA asks of extensions (spec v1.0, "Extension fields").
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from licet_adapters.sandbox import shipped_code
from licet_adapters.training.environment import environment_digest_hex
from licet_attestations import canonical
from licet_attestations.statement import (
    APPROVAL,
    DELETION,
    DEPLOYMENT,
    SLSA_PROVENANCE,
    SLSA_VSA,
    TEST_RESULT,
    Statement,
    Subject,
)

if TYPE_CHECKING:
    from licet_engine.lifecycle.deed import Deed, Split

BUILD_TYPE: Final = "urn:licet:training:v1"


TRAINING_CODE_DIGEST_HEX: Final = shipped_code("train_tabular.py").digest_hex
"""Digest of the training job that is shipped with the platform, all its files: what an environment approves, what the
runner reports, and what provenance names."""

RUNTIME_DIGEST_HEX: Final = environment_digest_hex()
"""Digest of the interpreter and the libraries that jobs import on this installation: what an environment approves, what
the runner reports, and what provenance names."""


def model_digest_hex(files: Mapping[str, str]) -> str:
    """The digest that stands for a model.

    Args:
        files: File name to SHA-256 in hex.

    Returns:
        SHA-256 in hex over their canonical JSON; empty for no files.
    """
    return canonical.digest(dict(files)).hex() if files else ""


def timestamp(at_ms: int) -> str:
    """RFC 3339 text in UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def training_statement(deed: Deed, trained: Mapping[str, Any], files: Mapping[str, Any], *, split: Split) -> Statement:
    """SLSA provenance of what a run made.

    Source: slsa.dev/spec/v1.0/provenance.
    """
    p = deed.parameters
    digests = trained["digests"]
    predicate = {
        "licet_tenant": deed.tenant,
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {"run": p["run"], "spec": p["spec"], "split": dict(split.record)},
            "internalParameters": {
                "environment": p["environment"],
                "region": p["region"],
                "operation": deed.id,
                "attempt": trained["attempt"],
                "resumedFromStep": trained["resumed_from_step"],
                "execution": trained["execution"],
                "sandbox": trained["sandbox"],
            },
            "resolvedDependencies": [
                {"name": "dataset", "uri": f"licet:{p['dataset']}", "digest": {"sha256": p["digest_hex"]}},
                {"name": "training-rows", "digest": {"sha256": split.train.digest_hex}},
                {"name": "code", "uri": "pkg:pypi/licet#train_tabular.py", "digest": {"sha256": digests["code"]}},
                {"name": "environment", "digest": {"sha256": digests["environment"]}},
                {"name": "execution", "digest": {"sha256": digests["execution"]}},
            ],
        },
        "runDetails": {
            "builder": {"id": f"urn:licet:builder:{deed.instance}"},
            "metadata": {
                "invocationId": deed.id,
                "startedOn": timestamp(deed.started_at_ms),
                "finishedOn": timestamp(deed.now_ms()),
            },
        },
    }
    subjects = tuple(Subject(name, kept["digest_hex"]) for name, kept in sorted(files.items()))
    return Statement(subjects, SLSA_PROVENANCE, predicate)


def check_statement(deed: Deed, found: Mapping[str, Any], checked: Mapping[str, Any], split: Split) -> Statement:
    """in-toto test-result of one check of one version.

    Source: github.com/in-toto/attestation spec/predicates/test-result.md.
    """
    p = deed.parameters
    name = found["kind"]
    predicate = {
        "tenant": deed.tenant,
        "result": "PASSED" if found["passed"] else "FAILED",
        "configuration": [
            {"name": "code", "digest": {"sha256": checked["digests"]["code"]}},
            {"name": "environment", "digest": {"sha256": checked["digests"]["environment"]}},
            {"name": "training-rows", "digest": {"sha256": split.train.digest_hex}},
            {"name": "held-out-rows", "digest": {"sha256": split.held_out.digest_hex}},
        ],
        "passedTests": [name] if found["passed"] else [],
        "failedTests": [] if found["passed"] else [name],
        "version": p["version"],
        "figures": found["figures"],
        "detail": found["detail"],
        "thresholds": p["thresholds"],
        "sandbox": checked["sandbox"],
        "operation": deed.id,
        "finishedOn": timestamp(deed.now_ms()),
    }
    return Statement((*_files(p), Subject("model", p["model_digest_hex"])), TEST_RESULT, predicate)


def _files(parameters: Mapping[str, Any]) -> tuple[Subject, ...]:
    return tuple(Subject(name, kept["digest_hex"]) for name, kept in sorted(parameters["files"].items()))


def approval_statement(deed: Deed) -> Statement:
    """A reviewer's verdict on a binding."""
    p = deed.parameters
    predicate = {
        "tenant": deed.tenant,
        "version": p["version"],
        "track": p["track"],
        "verdict": p["verdict"],
        "approver": p["approver"],
        "reason": p["reason"],
        "binding": p["binding"],
        **({"onBehalfOf": p["on_behalf_of"]} if "on_behalf_of" in p else {}),
        "decision": deed.decision_id,
        "at": timestamp(deed.now_ms()),
    }
    return Statement((Subject("model", p["model_digest_hex"]), Subject("binding", p["binding"])), APPROVAL, predicate)


def deployment_statement(deed: Deed, deployed: Mapping[str, Any]) -> Statement:
    """What was put on an endpoint, how it is watched, and in what it runs."""
    p = deed.parameters
    predicate = {
        "tenant": deed.tenant,
        "event": "deployed",
        "endpoint": p["endpoint"],
        "version": p["version"],
        "strategy": p["strategy"],
        "steps": p["steps"],
        "bakeS": p["bake_s"],
        "fallback": p["fallback"],
        "alarms": p["alarms"],
        "region": p["region"],
        "weights": deployed["weights"],
        "shadow": deployed["shadow"],
        "reference": {"sha256": deployed["digests"]["reference"]},
        "code": {"sha256": deployed["digests"]["code"]},
        "environment": {"sha256": deployed["digests"]["environment"]},
        "sandbox": deployed["sandbox"],
        "binding": p["source"]["binding"],
        "decision": deed.decision_id,
        "operation": deed.id,
        "at": timestamp(deed.now_ms()),
    }
    subjects = (*_files(p["source"]), Subject("model", p["model_digest_hex"]))
    return Statement(subjects, DEPLOYMENT, predicate)


def traffic_statement(deed: Deed, shifted: Mapping[str, Any]) -> Statement:
    """How an endpoint's traffic is divided since somebody shifted it or rolled it back."""
    p = deed.parameters
    predicate = {
        "tenant": deed.tenant,
        "event": "rolled-back" if deed.action == "endpoint.roll-back" else "shifted",
        "endpoint": p["endpoint"],
        "weights": shifted["weights"],
        "shadow": shifted["shadow"],
        "cause": {"by": f"{deed.tenant}/{deed.principal}", "reason": p["reason"]},
        "decision": deed.decision_id,
        "operation": deed.id,
        "at": timestamp(deed.now_ms()),
    }
    subjects = tuple(Subject(f"{p['model']}@{number}", hex_) for number, hex_ in sorted(p["digests"].items()))
    return Statement(subjects, DEPLOYMENT, predicate)


def promotion_statement(deed: Deed) -> Statement:
    """SLSA verification summary: policy was satisfied, and by which attestations.

    Source: slsa.dev/spec/v1.0/verification_summary. ``verifiedLevels`` has no ``SLSA_`` level, since none was verified.
    """
    p = deed.parameters
    predicate = {
        "licet_tenant": deed.tenant,
        "verifier": {"id": f"urn:licet:engine:{deed.instance}"},
        "timeVerified": timestamp(deed.now_ms()),
        "resourceUri": f"licet:{p['version']}",
        "policy": {"uri": f"licet:{deed.tenant}/policy", "digest": {"sha256": p["bundle"]}},
        "inputAttestations": [
            {"uri": f"urn:licet:check:{kind}", "digest": {"sha256": digest_hex}}
            for kind, digest_hex in sorted(p["evaluations"].items())
        ],
        "verificationResult": "PASSED",
        "verifiedLevels": [f"LICET_STAGE_{p['stage'].upper()}"],
        "licet_event": "rolled-back" if deed.action == "model.roll-back" else "promoted",
        "licet_region": p["region"],
        "licet_binding": p["binding"],
        **({"licet_ticket": p["ticket"]} if "ticket" in p else {}),
        **({"licet_from": p["from"]} if "from" in p else {}),
        "licet_decision": deed.decision_id,
        "licet_operation": deed.id,
    }
    return Statement((*_files(p), Subject("model", p["model_digest_hex"])), SLSA_VSA, predicate)


DELETION_LIMITS: Final = (
    "Copies that were read or exported before are not known here, nor backups of the object store.",
    "A digest and the log's entries about the dataset remain: they show that it was there, not what was in it.",
    "What was made from it (derived) keeps what it learned of it.",
)
"""What a certificate of deletion does not show, in the words that stand in it."""


def deletion_statement(deed: Deed, deleted: Mapping[str, Any]) -> Statement:
    """A certificate: which object was destroyed with its key, what was made from it, and what does not follow."""
    p = deed.parameters
    predicate = {
        "v": 1,
        "tenant": deed.tenant,
        "dataset": f"{deed.tenant}/{p['dataset']}",
        "destroyed": {
            "object": p["object_id"],
            "digest": {"sha256": p["digest_hex"]},
            "bytes": p["size_bytes"],
            # The object's key is stored wrapped in the object's own header and nowhere else, so it went with it.
            "keys": 1 if deleted["was_there"] else 0,
            "wasThere": deleted["was_there"],
        },
        "derived": {
            "runs": [f"{deed.tenant}/{name}" for name in p["derived"]["runs"]],
            "versions": [f"{deed.tenant}/{name}" for name in p["derived"]["versions"]],
            "held": [f"{deed.tenant}/{name}" for name in p["derived"]["held"]],
            "more": p["derived"]["more"],
        },
        "doesNotProve": list(DELETION_LIMITS),
        "by": f"{deed.tenant}/{deed.principal}",
        "decision": deed.decision_id,
        "operation": deed.id,
        "at": timestamp(deed.now_ms()),
    }
    return Statement((Subject("dataset", p["digest_hex"]),), DELETION, predicate)
