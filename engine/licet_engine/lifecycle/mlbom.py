"""The bill of materials of a model version, with its model card: CycloneDX 1.6, attested whenever the version is checked.

Rules kept here:

- It is made of what the operation knows and nothing else: the same operation makes the same text.
- Figures are text with six decimals, for CycloneDX has them so; what a check found is told with the words of the check.
- Names of columns are told, values of the data never.

Source: CycloneDX 1.6 (ECMA-424), ``modelCard``; the predicate type is that of the in-toto attestation framework.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from licet_attestations.statement import CYCLONEDX, TENANT_PROPERTY, Statement, Subject
from licet_engine.lifecycle.provenance import timestamp

if TYPE_CHECKING:
    from licet_engine.lifecycle.deed import Deed
    from licet_engine.lifecycle.facts import View
    from licet_engine.store.tables import CheckResult, Dataset, ModelVersion, Run

SPEC_VERSION: Final = "1.6"
LIMITATIONS: Final = (
    "Figures are of the held-out rows of the one dataset named here; on other data they may be others.",
    "What the data was gathered for and whom it leaves out is not known here.",
)


def card_of(
    row: ModelVersion, run: Run, dataset: Dataset, checks: Mapping[str, CheckResult], view: View
) -> dict[str, Any]:
    """What of a bill of materials is known when a check is asked for: names within the tenant, no digests.

    A warrant may touch what its decision names by digest or reference; nothing of this is to be touched.
    """
    restrictions = view.lineage_restrictions(row.datasets)
    spec = run.spec.get("spec", {})
    return {
        "model": row.model,
        "number": row.version,
        "revision": row.revision,
        "run": row.run,
        "tier": row.tier,
        "use": row.use,
        "dataset": dataset.name,
        "rows": dataset.rows,
        "classification": restrictions.classification,
        "residency": sorted(restrictions.residency),
        "uses": sorted(restrictions.uses),
        "features": [part["name"] for part in spec.get("features", [])],
        "hidden": list(spec.get("hidden", [])),
        # Its own words might read as a reference; so they never stand by themselves.
        "purpose": f"Kept for: {dataset.purpose}",
        # Of the kinds that are not checked anew, what stands.
        "checked": {
            kind: {"passed": check.passed, "figures": dict(check.figures)} for kind, check in sorted(checks.items())
        },
    }


def bom_statement(deed: Deed, checked: Mapping[str, Any]) -> Statement:
    """The bill of materials of the version that was checked, its figures as far as it ever was."""
    p, card = deed.parameters, deed.parameters["card"]
    found = {kind: {**one, "detail": {}} for kind, one in card["checked"].items()} | {
        one["kind"]: one for one in checked["results"]
    }
    files = [
        {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": _sha256(kept["digest_hex"])}
        for name, kept in sorted(p["files"].items())
    ]
    predicate = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": _serial_number(deed),
        "version": 1,
        "metadata": {
            "timestamp": timestamp(deed.now_ms()),
            "component": {
                "type": "machine-learning-model",
                "bom-ref": "model",
                "group": deed.tenant,
                "name": card["model"],
                "version": str(card["number"]),
                "hashes": _sha256(p["model_digest_hex"]),
                "components": files,
                "modelCard": _model_card(card, found, p),
            },
            "properties": [
                {"name": TENANT_PROPERTY, "value": deed.tenant},
                {"name": "licet:version", "value": p["version"]},
                {"name": "licet:revision", "value": str(card["revision"])},
                {"name": "licet:run", "value": f"{deed.tenant}/{card['run']}"},
                {"name": "licet:tier", "value": card["tier"]},
                {"name": "licet:operation", "value": deed.id},
            ],
        },
        "components": [_dataset(deed, card)],
        "dependencies": [
            {"ref": "model", "dependsOn": ["dataset", *(one["bom-ref"] for one in files)]},
            {"ref": "dataset"},
            *({"ref": one["bom-ref"]} for one in files),
        ],
    }
    subjects = [Subject(name, kept["digest_hex"]) for name, kept in sorted(p["files"].items())]
    return Statement((*subjects, Subject("model", p["model_digest_hex"])), CYCLONEDX, predicate)


def _serial_number(deed: Deed) -> str:
    """A UUID of version 8 (RFC 9562, section 5.8): of the operation, so that it is the same made again."""
    name = bytearray(hashlib.sha256(f"licet:mlbom:v1\0{deed.tenant}\0{deed.id}".encode()).digest()[:16])
    name[6] = name[6] & 0x0F | 0x80
    name[8] = name[8] & 0x3F | 0x80
    return f"urn:uuid:{uuid.UUID(bytes=bytes(name))}"


def _sha256(digest_hex: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest_hex}]


def _dataset(deed: Deed, card: Mapping[str, Any]) -> dict[str, Any]:
    p = deed.parameters
    return {
        "type": "data",
        "bom-ref": "dataset",
        "group": deed.tenant,
        "name": card["dataset"],
        "description": card["purpose"],
        "hashes": _sha256(p["dataset"]["digest_hex"]),
        "data": [
            {
                "type": "dataset",
                "name": card["dataset"],
                "classification": card["classification"],
                **({"sensitiveData": [f"column {name}" for name in p["protected"]]} if p["protected"] else {}),
            }
        ],
        "properties": [
            {"name": "licet:rows", "value": str(card["rows"])},
            *({"name": "licet:residency", "value": region} for region in card["residency"]),
            *({"name": "licet:permitted-use", "value": use} for use in card["uses"]),
        ],
    }


def _model_card(card: Mapping[str, Any], found: Mapping[str, Any], p: Mapping[str, Any]) -> dict[str, Any]:
    layers = ", ".join(str(width) for width in card["hidden"])
    groups = found.get("bias", {}).get("detail", {}).get("groups", {})
    return {
        "bom-ref": "model-card",
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": "binary classification",
            "architectureFamily": "multilayer perceptron",
            **({"modelArchitecture": f"hidden layers of {layers}"} if layers else {}),
            "datasets": [{"ref": "dataset"}],
            "inputs": [{"format": f"number: {name}"} for name in card["features"]],
            "outputs": [{"format": f"probability: {p['label']}"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": _metrics(found)},
        "considerations": {
            "users": [f"who may invoke it for {card['use']}"],
            "useCases": [card["use"]],
            "technicalLimitations": list(LIMITATIONS),
            **({"fairnessAssessments": _fairness(groups)} if groups else {}),
        },
        "properties": [
            {"name": f"licet:check:{kind}", "value": "passed" if one["passed"] else "failed"}
            for kind, one in sorted(found.items())
        ],
    }


def _metrics(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    told = []
    for kind, one in sorted(found.items()):
        for name, value in sorted(one["figures"].items()):
            metric: dict[str, Any] = {"type": name.removesuffix("_micro"), "value": _text(name, value), "slice": kind}
            bounds = one["detail"].get(f"{name.removesuffix('_micro')}_interval_micro")
            if isinstance(bounds, Sequence) and len(bounds) == 2:  # noqa: PLR2004  # Lower and upper.
                lower, upper = (_text("_micro", bound) for bound in bounds)
                metric["confidenceInterval"] = {"lowerBound": lower, "upperBound": upper}
            told.append(metric)
    return told


def _text(name: str, value: int) -> str:
    """A figure as text: millionths as a decimal fraction, counts as they are."""
    if not name.endswith("_micro"):
        return str(value)
    whole, part = divmod(abs(value), 1_000_000)
    return f"{'-' if value < 0 else ''}{whole}.{part:06d}"


def _fairness(groups: Mapping[str, Any]) -> list[dict[str, str]]:
    told = []
    for column, found in sorted(groups.items()):
        rates = ", ".join(
            f"{value}: {_text('_micro', rate)}" for value, rate in sorted(found["selection_rate_micro"].items())
        )
        ratio = _text("_micro", found["selection_rate_ratio_micro"])
        told.append(
            {
                "groupAtRisk": f"groups of column {column}",
                "harms": f"the favourable answer is given at different rates ({rates}); the lowest is {ratio} of the highest",
            }
        )
    return told
