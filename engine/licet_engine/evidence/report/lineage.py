"""Where each model version came from and where it went, from the attestations of a window.

Rules kept here:

- Drawn from signed attestations alone: provenance of runs, results of checks, approvals, promotions, deployments.
- A version is one set of bytes: the same number with other files is another line. A run leads to a version where it made every
  file of it, by digest.
- What is not attested in the window is not there: a version may have been trained before it.
- Bounded: of versions, the newest; of what belongs to one, the newest few. What is left out is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from licet_attestations.statement import (
    APPROVAL,
    DEPLOYMENT,
    SLSA_PROVENANCE,
    SLSA_VSA,
    TEST_RESULT,
    Statement,
)
from licet_engine.evidence.contents import Contents
from licet_engine.evidence.report.counting import Kept
from licet_engine.evidence.report.rows import mapping, number, text, texts
from licet_engine.evidence.report.text import moment

MAX_VERSIONS: Final = 200
_MAX_RUNS: Final = 1000
_MAX_OF_ONE: Final = 12
_MAX_FILES: Final = 64
_REF: Final = "licet:"
_MAX_NAME: Final = 512


@dataclass(frozen=True, slots=True)
class Mark:
    """One attestation, in the words of a picture: what it says (``name``, ``detail``), when, and its digest."""

    name: str
    detail: str
    at: str
    attestation: str
    index: int


@dataclass(frozen=True, slots=True)
class Run:
    """A training run, with the datasets it was made of (name and digest) and the files it made."""

    name: str
    datasets: tuple[tuple[str, str], ...]
    files: frozenset[tuple[str, str]]
    finished: str
    attestation: str
    index: int


@dataclass(slots=True)
class Version:
    """One model version with these very bytes.

    Attributes:
        name: Its reference.
        model_hex: The digest that stands for its files.
        files: Name and digest of each.
        checks: What was found.
        approvals: Verdicts.
        promotions: To stages.
        deployments: On endpoints; returns of traffic among them.
    """

    name: str
    model_hex: str
    files: frozenset[tuple[str, str]] = frozenset()
    checks: Kept[Mark] = field(default_factory=lambda: Kept(_MAX_OF_ONE))
    approvals: Kept[Mark] = field(default_factory=lambda: Kept(_MAX_OF_ONE))
    promotions: Kept[Mark] = field(default_factory=lambda: Kept(_MAX_OF_ONE))
    deployments: Kept[Mark] = field(default_factory=lambda: Kept(_MAX_OF_ONE))


@dataclass(slots=True)
class Lineage:
    """Versions by name and digest, and runs, in the order in which they were first attested."""

    versions: dict[tuple[str, str], Version] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)
    left_out_runs: int = 0

    def runs_of(self, version: Version) -> list[Run]:
        """The runs that made every file of a version."""
        return [run for run in self.runs.values() if version.files and version.files <= run.files]

    def of(self, name: str, model_hex: str) -> Version:
        """A version; the oldest makes place for it where there are too many."""
        key = (name[:_MAX_NAME], model_hex)
        if key not in self.versions:
            self.versions[key] = Version(*key)
            if len(self.versions) > MAX_VERSIONS:
                oldest = next(iter(self.versions))
                del self.versions[oldest]
                if len(self.left_out) < MAX_VERSIONS:
                    self.left_out.add(oldest[0])
        return self.versions[key]


def lineage_of(contents: Contents) -> Lineage:
    """Read the attestations of an archive."""
    lineage = Lineage()
    for digest_hex, index, claim in contents.attestations():
        if claim.predicate_type == SLSA_PROVENANCE:
            _take_run(lineage, digest_hex, index, claim)
        elif claim.predicate_type in _KEEP:
            _take_version(lineage, digest_hex, index, claim)
    return lineage


def _take_run(lineage: Lineage, digest_hex: str, index: int, claim: Statement) -> None:
    build = mapping(claim.predicate, "buildDefinition")
    name = text(mapping(build, "externalParameters"), "run")[:_MAX_NAME]
    needed = build.get("resolvedDependencies")
    datasets = [
        (text(each, "uri").removeprefix(_REF)[:_MAX_NAME], text(mapping(each, "digest"), "sha256"))
        for each in (needed if isinstance(needed, list) else [])[:_MAX_FILES]
        if isinstance(each, Mapping) and each.get("name") == "dataset"
    ]
    if len(lineage.runs) >= _MAX_RUNS:
        lineage.left_out_runs += 1
        del lineage.runs[next(iter(lineage.runs))]
    finished = text(mapping(mapping(claim.predicate, "runDetails"), "metadata"), "finishedOn")
    lineage.runs[digest_hex] = Run(name, tuple(datasets), _files(claim), finished[:64], digest_hex, index)


def _files(claim: Statement) -> frozenset[tuple[str, str]]:
    """The files among the subjects; what stands for all of them, or for a binding, is no file."""
    return frozenset((s.name, s.sha256_hex) for s in claim.subject[:_MAX_FILES] if s.name not in {"model", "binding"})


def _take_version(lineage: Lineage, digest_hex: str, index: int, claim: Statement) -> None:
    predicate = claim.predicate
    model = next((s.sha256_hex for s in claim.subject if s.name == "model"), "")
    name = text(predicate, "version") or text(predicate, "resourceUri").removeprefix(_REF)
    if claim.predicate_type == DEPLOYMENT and not (name and model):
        _take_traffic(lineage, digest_hex, index, claim)
        return
    if not name or not model:
        return
    version = lineage.of(name, model)
    if claim.predicate_type != APPROVAL:
        version.files = version.files | _files(claim)
    _KEEP[claim.predicate_type](version, predicate, digest_hex, index)


def _take_traffic(lineage: Lineage, digest_hex: str, index: int, claim: Statement) -> None:
    """A change of traffic names its versions as subjects, each by the digest that stands for it."""
    predicate = claim.predicate
    cause = mapping(predicate, "cause")
    why = text(cause, "kind") or text(cause, "reason")
    detail = f"{text(predicate, 'event')}{': ' if why else ''}{why}"
    said = Mark(text(predicate, "endpoint")[:_MAX_NAME], detail[:_MAX_NAME], _at(predicate), digest_hex, index)
    for subject in claim.subject[:_MAX_OF_ONE]:
        tenant = f"{text(predicate, 'tenant')}/"
        name = subject.name if subject.name.startswith(tenant) else tenant + subject.name
        lineage.of(name, subject.sha256_hex).deployments.add(said)


def _at(predicate: Mapping[str, Any]) -> str:
    """When, as engine or router say it."""
    at_ms = number(predicate, "at_ms")
    return text(predicate, "at")[:64] if at_ms is None else moment(at_ms)


def _keep_check(version: Version, predicate: Mapping[str, Any], digest_hex: str, index: int) -> None:
    names = ", ".join([*texts(predicate, "passedTests"), *texts(predicate, "failedTests")])
    version.checks.add(
        Mark(names[:_MAX_NAME], text(predicate, "result")[:64], text(predicate, "finishedOn")[:64], digest_hex, index)
    )


def _keep_approval(version: Version, predicate: Mapping[str, Any], digest_hex: str, index: int) -> None:
    said = f"{text(predicate, 'verdict')} by {text(predicate, 'approver')}"
    version.approvals.add(
        Mark(text(predicate, "track")[:_MAX_NAME], said[:_MAX_NAME], _at(predicate), digest_hex, index)
    )


def _keep_promotion(version: Version, predicate: Mapping[str, Any], digest_hex: str, index: int) -> None:
    levels = [each.removeprefix("LICET_STAGE_").lower() for each in texts(predicate, "verifiedLevels")]
    said = f"{text(predicate, 'verificationResult')}, region {text(predicate, 'region')}"
    version.promotions.add(
        Mark(", ".join(levels)[:_MAX_NAME], said[:_MAX_NAME], text(predicate, "timeVerified")[:64], digest_hex, index)
    )


def _keep_deployment(version: Version, predicate: Mapping[str, Any], digest_hex: str, index: int) -> None:
    cause = mapping(predicate, "cause")
    why = text(cause, "kind") or text(predicate, "strategy")
    said = f"{text(predicate, 'event')}{': ' if why else ''}{why}"
    version.deployments.add(
        Mark(text(predicate, "endpoint")[:_MAX_NAME], said[:_MAX_NAME], _at(predicate), digest_hex, index)
    )


_KEEP: Final = {
    TEST_RESULT: _keep_check,
    APPROVAL: _keep_approval,
    SLSA_VSA: _keep_promotion,
    DEPLOYMENT: _keep_deployment,
}
