"""``oscal.json``: OSCAL assessment results, for the tools in which others keep their controls.

Rules kept here:

- It promises no compliance. What is found of a clause is one narrow objective, which stands in the document: that the policies which
  are mapped to it were enforced in every decision of the window. Whether that is what the clause asks for, an assessor says.
- What cannot be told is not satisfied: a decision whose record is erased, a bundle that was not counted, no decision at all.
- OSCAL's titles, descriptions and remarks are markup. So nothing that a stranger named stands in them; that stands in properties and
  names, which are text.
- Identifiers follow from the log and the range: the same archive gives the same ones.

Source: NIST OSCAL 1.1.3, assessment results model.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Final

from licet_attestations import archive, canonical
from licet_attestations.statement import is_sha256_hex
from licet_engine.evidence.contents import Scope
from licet_engine.evidence.report.bundles import Summary
from licet_engine.evidence.report.clauses import Clause, clauses_of
from licet_engine.evidence.report.lineage import Lineage
from licet_engine.evidence.report.reading import Reading
from licet_engine.evidence.report.story import Story
from licet_engine.evidence.report.text import LAST_MS, moment, visible

VERSION: Final = "1.1.3"
NAMESPACE: Final = "urn:licet:oscal:v1"
_UUIDS: Final = uuid.uuid5(uuid.NAMESPACE_URL, NAMESPACE)
_MAX_ATTESTATIONS: Final = 300
_MAX_NAMED: Final = 60

_DISCLAIMER: Final = (
    "Made by a policy engine from its own log. It states which policies were enforced and what they refused. It is no statement of"
    " compliance: whether a policy does what a clause asks for is for an assessor to judge. Verify the archive that this file came in"
    " before relying on it."
)
_OBJECTIVE: Final = "In every decision of the window, every policy that is mapped to this clause was part of the policies in force, and enforced."


def oscal_bytes(reading: Reading, digests: Mapping[str, str]) -> bytes:
    """The file.

    Args:
        reading: What it is made of.
        digests: SHA-256 of those files of the archive that are known by now.
    """
    document = _Document(reading.scope, reading.story, reading.bundles)
    return canonical.dumps({"assessment-results": document.results(reading.isolation, reading.lineage, digests)})


class _Document:
    """One document: what all its parts refer to."""

    def __init__(self, scope: Scope, story: Story, bundles: Mapping[str, Summary]) -> None:
        self._scope = scope
        self._story = story
        self._bundles = bundles
        self._clauses = list(clauses_of(bundles))
        self._at = _time(scope.exported_at_ms)
        self._log = str(uuid.uuid5(_UUIDS, f"log {scope.origin}"))

    def _id(self, *parts: str) -> str:
        scope = self._scope
        of = [scope.origin, scope.first, scope.end, scope.root_hex, *map(visible, parts)]
        return str(uuid.uuid5(_UUIDS, canonical.dumps(of).decode()))

    def results(self, isolation: Mapping[str, Any], lineage: Lineage, digests: Mapping[str, str]) -> dict[str, Any]:
        """The whole."""
        document: dict[str, Any] = {
            "uuid": self._id("document", str(self._scope.exported_at_ms)),
            "metadata": self._metadata(),
            "import-ap": {
                "href": f"#{self._id('plan')}",
                "remarks": "There is no assessment plan: the policies in force say what is assessed.",
            },
            "results": [self._result(isolation)],
            "back-matter": {"resources": list(self._resources(lineage, digests))},
        }
        if self._clauses:
            document["local-definitions"] = {
                "objectives-and-methods": [self._objective(clause) for clause in self._clauses]
            }
        return document

    def _metadata(self) -> dict[str, Any]:
        scope = self._scope
        tenant, instance = (str(uuid.uuid5(_UUIDS, f"{kind} {scope.origin}")) for kind in ("tenant", "instance"))
        return {
            "title": "Evidence of policy decisions",
            "last-modified": self._at,
            "version": f"{scope.first}-{scope.end}",
            "oscal-version": VERSION,
            "props": [
                _prop("tenant", scope.tenant),
                _prop("log-origin", scope.origin),
                _prop("first-entry", scope.first),
                _prop("end-entry", scope.end),
                _prop("log-size", scope.size),
                _prop("log-root", scope.root_hex),
            ],
            "roles": [
                {"id": "asset-owner", "title": "Owner of the log"},
                {"id": "prepared-by", "title": "Made this document"},
            ],
            "parties": [
                {"uuid": tenant, "type": "organization", "name": _text(scope.tenant)},
                {"uuid": instance, "type": "organization", "name": _text(scope.instance)},
            ],
            "responsible-parties": [
                {"role-id": "asset-owner", "party-uuids": [tenant]},
                {"role-id": "prepared-by", "party-uuids": [instance]},
            ],
            "remarks": _DISCLAIMER,
        }

    def _result(self, isolation: Mapping[str, Any]) -> dict[str, Any]:
        story, scope = self._story, self._scope
        start = scope.from_ms if scope.from_ms is not None else story.first_ms
        found = {
            "uuid": self._id("result"),
            "title": "Decisions of the window",
            "description": "What policy decided between the first and the last entry of the window, as the log has it.",
            "start": self._at if start is None else _time(start),
            "end": self._at if story.last_ms is None else _time(story.last_ms),
            "props": [
                _prop("entries", story.entries),
                _prop("decisions-allowed", story.decided["allow"]),
                _prop("decisions-denied", story.decided["deny"]),
                _prop("decisions-erased", story.decided["erased"]),
                _prop("attempts-of-others", story.foreign.total()),
            ],
            "local-definitions": {"components": [self._component()]},
            "reviewed-controls": self._reviewed(),
            "observations": [
                self._isolated(isolation),
                *self._attested(),
                *(self._observed(clause) for clause in self._clauses),
            ],
            "remarks": _DISCLAIMER,
        }
        if self._clauses:
            found["findings"] = [self._finding(clause) for clause in self._clauses]
        return found

    def _component(self) -> dict[str, Any]:
        return {
            "uuid": self._log,
            "type": "software",
            "title": "The tenant's log of decisions",
            "description": "A tamper-evident log, in which every decision stands before it is answered.",
            "props": [_prop("log-origin", self._scope.origin)],
            "status": {"state": "operational"},
        }

    def _reviewed(self) -> dict[str, Any]:
        by_framework: dict[str, list[Clause]] = {}
        for clause in self._clauses:
            by_framework.setdefault(clause.framework, []).append(clause)
        selections: list[dict[str, Any]] = [
            {
                "props": [_prop("framework", framework)],
                "include-controls": [{"control-id": clause.id} for clause in clauses],
            }
            for framework, clauses in by_framework.items()
        ]
        described = "Those clauses to which policies are mapped that were in force in the window. The mapping is an engineer's reading."
        reviewed: dict[str, Any] = {
            "description": described,
            "control-selections": selections or [{"description": "No policy that was in force is mapped to a clause."}],
        }
        if self._clauses:
            objectives = [{"objective-id": _objective_id(clause)} for clause in self._clauses]
            reviewed["control-objective-selections"] = [{"include-objectives": objectives}]
        return reviewed

    def _objective(self, clause: Clause) -> dict[str, Any]:
        return {
            "control-id": clause.id,
            "description": clause.title,
            "props": [_prop("framework", clause.framework), _prop("clause", clause.clause)],
            "parts": [{"id": _objective_id(clause), "name": "assessment-objective", "prose": _OBJECTIVE}],
        }

    def _observation(
        self, key: str, title: str, description: str, props: list[dict[str, str]], *evidence: str
    ) -> dict[str, Any]:
        return {
            "uuid": self._id("observation", key),
            "title": title,
            "description": description,
            "methods": ["EXAMINE"],
            "types": ["control-objective"],
            "props": props,
            "subjects": [{"subject-uuid": self._log, "type": "component"}],
            "collected": self._at,
            "relevant-evidence": [
                {
                    "href": f"#{self._id('resource', path)}",
                    "description": _DESCRIBED.get(path, "A policy bundle that decided."),
                }
                for path in evidence
            ],
        }

    def _isolated(self, isolation: Mapping[str, Any]) -> dict[str, Any]:
        answer = str(isolation.get("answer", ""))
        return self._observation(
            "isolation",
            "Isolation of the tenant on record",
            "Whether any decision let another tenant touch what is this tenant's, or this tenant what is another's. The sentence in the"
            " properties is the answer; the report says what it does not prove.",
            [
                _prop("isolation", answer if answer in {"holds", "broken"} else "unknown"),
                _prop("sentence", str(isolation.get("sentence", ""))),
            ],
            archive.SHEET,
            archive.REPORT,
        )

    def _attested(self) -> Iterator[dict[str, Any]]:
        shown, _, _ = self._story.attestations.top(20)
        for each in shown:
            yield self._observation(
                f"attestations {each.name}",
                "Attestations of one type",
                "How many signed in-toto statements of this predicate type the window has. Each is in the archive.",
                [_prop("predicate-type", each.name), _prop("attestations", each.total)],
                archive.SHEET,
            )

    def _observed(self, clause: Clause) -> dict[str, Any]:
        refused = observed = 0
        for (reasons, watched), count in self._story.refusals.items():
            refused += count if clause.policies & set(reasons) else 0
            observed += count if clause.policies & set(watched) else 0
        policies = sorted(clause.policies)[:_MAX_NAMED]
        props = [
            _prop("framework", clause.framework),
            _prop("clause", clause.clause),
            _prop("decisions-refused", refused),
            _prop("decisions-that-would-have-been-refused", observed),
            _prop("decisions-not-counted", self._story.decided["erased"] + self._story.ungrouped),
            *(_prop("policy", policy) for policy in policies),
        ]
        shows = f" What else shows it: {clause.evidence}" if clause.evidence else ""
        return self._observation(
            clause.id,
            f"Decisions under {clause.id}",
            "How many decisions the policies that are mapped to this clause refused, and how many those that only observe would have refused."
            " What they let pass names none of them." + shows,
            props,
            archive.SHEET,
            *(archive.bundle_name(digest) for digest in list(self._bundles)[-8:]),
        )

    def _finding(self, clause: Clause) -> dict[str, Any]:
        state, reason, why = self._state(clause)
        return {
            "uuid": self._id("finding", clause.id),
            "title": f"Whether the policies under {clause.id} were enforced",
            "description": f"{clause.title}. {why}",
            "props": [_prop("framework", clause.framework), _prop("clause", clause.clause)],
            "target": {
                "type": "objective-id",
                "target-id": _objective_id(clause),
                "description": _OBJECTIVE,
                "status": {"state": state, "reason": reason, "remarks": why},
            },
            "related-observations": [{"observation-uuid": self._id("observation", clause.id)}],
            "remarks": _DISCLAIMER,
        }

    def _state(self, clause: Clause) -> tuple[str, str, str]:
        story = self._story
        unread = sum(counts.total() for digest, counts in story.bundles.items() if digest not in self._bundles)
        untold = story.decided["erased"] + story.uncounted_bundles + unread
        if untold:
            return (
                "not-satisfied",
                "other",
                f"Under which policies {untold} decisions of the window were made cannot be told.",
            )
        lacking = [b for b in self._bundles.values() if not clause.policies <= b.modes.keys()]
        watching = [
            b for b in self._bundles.values() if any(b.modes.get(policy) == "observe" for policy in clause.policies)
        ]
        count = len(self._bundles)
        if lacking:
            return (
                "not-satisfied",
                "fail",
                f"{len(lacking)} of the {count} bundles that decided do not hold all policies of this clause.",
            )
        if watching:
            return (
                "not-satisfied",
                "fail",
                f"In {len(watching)} of the {count} bundles that decided, a policy of this clause only observes.",
            )
        return (
            "satisfied",
            "pass",
            f"All {count} bundles that decided hold all policies of this clause, and enforce them.",
        )

    def _resources(self, lineage: Lineage, digests: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        yield {
            "uuid": self._id("plan"),
            "title": "No assessment plan",
            "description": "These results come from policies that were in force, not from a plan. The bundles beside say what was checked.",
        }
        for path, described in _DESCRIBED.items():
            yield self._resource(path, described, digests.get(path))
        for digest in self._bundles:
            yield self._resource(archive.bundle_name(digest), "A policy bundle that decided.", digest)
        found = [(run.attestation, run.index) for run in lineage.runs.values()]
        for version in lineage.versions.values():
            marks = (*version.checks, *version.approvals, *version.promotions, *version.deployments)
            found += [(mark.attestation, mark.index) for mark in marks]
        known = {digest: index for digest, index in found if is_sha256_hex(digest)}
        for digest, index in list(known.items())[-_MAX_ATTESTATIONS:]:
            path = archive.chunk_with(archive.ATTESTATIONS, index, self._scope.first)
            resource = self._resource(path, "A signed in-toto statement in a DSSE envelope, a line of this file.", None)
            props = [_prop("payload-sha256", digest), _prop("entry", index)]
            yield resource | {"uuid": self._id("attestation", digest), "props": props}

    def _resource(self, path: str, described: str, digest_hex: str | None) -> dict[str, Any]:
        link: dict[str, Any] = {"href": path, "media-type": _MEDIA[path.rpartition(".")[2]]}
        if digest_hex is not None:
            link["hashes"] = [{"algorithm": "SHA-256", "value": digest_hex}]
        return {"uuid": self._id("resource", path), "title": path, "description": described, "rlinks": [link]}


_MEDIA: Final = {
    "csv": "text/csv",
    "json": "application/json",
    "jsonl": "application/jsonl",
    "html": "text/html",
    "txt": "text/plain",
}
_DESCRIBED: Final = {
    archive.SHEET: "One row for each entry of the window.",
    archive.INDEX: "What the archive holds, in figures.",
    archive.REPORT: "The report for people: what was found, and what it does not prove.",
    archive.CHECKPOINT: "The signed checkpoint of the log.",
    archive.MANIFEST: "The digests of all files of the archive, which a signed statement names.",
}


def _objective_id(clause: Clause) -> str:
    return f"{clause.id}_enforced"


def _prop(name: str, value: str | int) -> dict[str, str]:
    return {"name": name, "ns": NAMESPACE, "value": _text(str(value))}


def _text(value: str) -> str:
    return visible(value, 400).strip() or "none"


def _time(time_ms: int) -> str:
    return moment(min(max(time_ms, 0), LAST_MS))
