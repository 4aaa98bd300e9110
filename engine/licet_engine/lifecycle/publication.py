"""Publication of policies: a project is sent, examined, attested, and is then a bundle that somebody else may activate.

Rules kept here:

- That it is asked for is decided and logged before anything of it is looked at.
- Nothing is published by half: the bundle, what was found and the state come with the operation's end, in one transaction.
- A bundle is published with a report that passes, or not at all. The report is judged here, from its parts; what is missing
  in it does not pass.
- Its author is a person. For what a service account sent, that is who answers for the account, who must not activate it either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from licet_attestations import canonical
from licet_attestations.errors import FormatError
from licet_attestations.isolation_pair import BUNDLE_SUBJECT
from licet_attestations.statement import TEST_RESULT, Statement, Subject
from licet_engine.decide.bundle import CompiledBundle
from licet_engine.decide.errors import BundleError
from licet_engine.domain.errors import Conflict, InvalidInput
from licet_engine.domain.refs import Ref
from licet_engine.lifecycle.examiner import ADAPTER, OPERATION
from licet_engine.lifecycle.facts import BUNDLE_PREFIX_CHARS, Entity, View
from licet_engine.lifecycle.people import PackChosen
from licet_engine.lifecycle.provenance import timestamp
from licet_engine.lifecycle.verbs import (
    KEPT,
    Body,
    Change,
    Ids,
    Insert,
    Note,
    Proposal,
    RefForm,
    Update,
    Verb,
    Who,
)
from licet_engine.store.tables import Operation, PolicyBundle, Publication
from licet_engine.workbench.document import MAX_DOCUMENT_FILES, ProjectDocument
from licet_engine.workbench.errors import ProjectError
from licet_engine.workbench.verdict import bounded, ended_early, passes, steps, summary
from licet_policies import pack
from licet_policies.bundle import MAX_OWN_CHARS
from licet_policies.errors import PackError

if TYPE_CHECKING:
    from licet_engine.lifecycle.deed import Deed

_TOLD_FINDINGS: Final = 20
_TOLD_CHARS: Final = 16_000
"""Of what was found, in the result of the operation; the publication has all of it."""


class ProjectFile(Body):
    """A file of the project: its path from the project's folder, and its text."""

    name: Annotated[str, Field(max_length=512)]
    text: str


class ProjectSent(Body):
    """A policy project, as one document."""

    v: Literal[1]
    files: list[ProjectFile] = Field(max_length=MAX_DOCUMENT_FILES)


class PublishPolicies(Body):
    """A policy project; or packs and own policies alone, all of them: what is left out is no longer in force once activated."""

    project: ProjectSent | None = None
    packs: list[PackChosen] = Field(default_factory=list, max_length=32)
    policies: Annotated[str, Field(max_length=MAX_OWN_CHARS)] = ""

    @model_validator(mode="after")
    def _one_of_both(self) -> PublishPolicies:
        if self.project is not None and (self.packs or self.policies):
            raise ValueError("send a project, or packs and policies, not both: a project names its own")
        return self

    def document(self) -> ProjectDocument:
        """What was sent, as a project.

        Raises:
            InvalidInput: It is none.
        """
        try:
            if self.project is not None:
                return ProjectDocument.from_json(self.project.model_dump())
            for chosen in self.packs:
                pack(chosen.name).resolve(chosen.parameters)
            if len({chosen.name for chosen in self.packs}) < len(self.packs):
                raise InvalidInput("a pack is chosen twice: choose it once")
            return ProjectDocument.of_parts([chosen.model_dump() for chosen in self.packs], self.policies)
        except (ProjectError, PackError) as error:
            raise InvalidInput(f"this cannot be published: {error}") from error


def document_of(asked: Mapping[str, Any], digest_hex: str) -> ProjectDocument:
    """The project that was sent to be published.

    Args:
        asked: The body of the question, as it was stored.
        digest_hex: Of the project that was decided on.

    Raises:
        InvalidInput: What was stored is not what was decided on.
    """
    sent = asked.get("project")
    document = (
        ProjectDocument.from_json(sent)
        if sent is not None
        else ProjectDocument.of_parts(asked.get("packs", []), asked.get("policies", ""))
    )
    if document.digest_hex != digest_hex:
        raise InvalidInput("the project that is stored is not the one that was decided on: send it again")
    return document


def author_of(view: View, who: Who) -> str:
    """The person who counts as the author of what somebody publishes."""
    row = view.principal(who.name)
    return who.name if row is None or row.owner is None else row.owner


def sketch_publish(view: View, who: Who, ref: Ref) -> Entity:
    """The bundle as far as policy looks at it, before the work of reading a project is done for someone who may not publish."""
    return view.bundle_entity(_sent(ref.tenant, "0" * 64, author_of(view, who), 0))


def _sent(tenant: str, project_hex: str, author: str, now_ms: int) -> PolicyBundle:
    """What is sent to be published: no bundle yet, and named by the digest of the project."""
    return PolicyBundle(
        tenant_id=tenant,
        digest_hex=project_hex,
        author=author,
        state="examining",
        proved=False,
        body=b"",
        created_at_ms=now_ms,
    )


def ask_publish(view: View, who: Who, ref: Ref, body: PublishPolicies, ids: Ids) -> Proposal:
    """The bundle as it would be; which one it is, the examination says."""
    document = body.document()
    digest_hex = document.digest_hex
    author = author_of(view, who)
    row = Publication(
        tenant_id=ref.tenant,
        id=ids.operation,
        project_hex=digest_hex,
        published_by=who.id,
        author=author,
        state="examining",
        created_at_ms=ids.now_ms,
    )
    conflict = None
    if any(one.project_hex == digest_hex for one in view.publications_under_way()):
        conflict = Conflict("this very project is being examined already: wait for what comes of it")
    return Proposal(
        resource=view.bundle_entity(_sent(ref.tenant, digest_hex, author, ids.now_ms)),
        parameters={"project": digest_hex},
        change=Change(inserts=(Insert(Publication, row.model_dump()),)),
        conflict=conflict,
        result={"publication": f"{ref.tenant}/{ids.operation}", "project": digest_hex},
    )


def do_publish(deed: Deed) -> Mapping[str, Any]:
    """Have the project examined, and attest what was found, whether or not it is published."""
    project_hex = deed.parameters["project"]
    began_ms = deed.now_ms()

    def examine(warrant: bytes, _attempt: int) -> dict[str, Any]:
        examined = deed.examine_policies(warrant, document_of(deed.asked, project_hex))
        return {
            "report": dict(examined.report),
            "bundle": examined.bundle,
            "bundle_hex": examined.bundle_hex,
            "began_ms": began_ms,
            "ended_ms": deed.now_ms(),
        }

    found = deed.step("examine", examine, adapter=ADAPTER, operation=OPERATION, resources={"project": project_hex})
    attestation = deed.attest(publication_statement(deed, found))
    report, bundle_hex = found["report"], found["bundle_hex"]
    is_published = bundle_hex is not None and passes(report)
    told: dict[str, Any] = {
        "publication": f"{deed.tenant}/{deed.id}",
        "state": "published" if is_published else "refused",
        "project": project_hex,
        "attestation": attestation,
        "found": summary(report),
        KEPT: {"report": report, "bundle": found["bundle"] if is_published else None, "bundle_hex": bundle_hex},
    }
    if bundle_hex is not None:
        told["bundle"] = bundle_hex
    if is_published:
        told["ref"] = f"{deed.tenant}/{bundle_hex[:BUNDLE_PREFIX_CHARS]}"
    else:
        told["findings"] = bounded(report["findings"], most=_TOLD_FINDINGS, chars=_TOLD_CHARS)
    return told


def publication_statement(deed: Deed, found: Mapping[str, Any]) -> Statement:
    """in-toto test-result of an examination: of the bundle, and of the project that it was composed of.

    Source: github.com/in-toto/attestation spec/predicates/test-result.md.
    """
    report, bundle_hex, project_hex = found["report"], found["bundle_hex"], deed.parameters["project"]
    is_published = bundle_hex is not None and passes(report)
    passed, failed = steps(report)
    predicate = {
        "tenant": deed.tenant,
        "result": "PASSED" if is_published else "FAILED",
        "configuration": [{"name": "policy-project", "digest": {"sha256": project_hex}}],
        "passedTests": passed,
        "failedTests": failed,
        "lint": report.get("lint", {}),
        "tests": report.get("tests", {}),
        "coverage": report.get("coverage", {}),
        "publication": deed.id,
        "decision": deed.decision_id,
        **examination_told(report, began_ms=found["began_ms"], ended_ms=found["ended_ms"]),
    }
    bundle = () if bundle_hex is None else (Subject(BUNDLE_SUBJECT, bundle_hex),)
    return Statement((*bundle, Subject("policy-project", project_hex)), TEST_RESULT, predicate)


def examination_told(report: Mapping[str, Any], *, began_ms: int, ended_ms: int) -> dict[str, Any]:
    """What an attestation says of any examination, of a project or of a bundle."""
    return {
        "tools": report.get("tools", {}),
        "proofs": {one["id"]: one["outcome"] for one in report.get("proofs", {}).get("invariants", ())},
        "found": summary(report),
        "report": {"sha256": canonical.digest(dict(report)).hex()},
        "network": report.get("network", ""),
        "startedOn": timestamp(began_ms),
        "finishedOn": timestamp(ended_ms),
    }


def refuses(result: Mapping[str, Any]) -> str | None:
    """Why a project was not published; None if it was."""
    if result.get("state") == "published":
        return None
    return f"not published: {result.get('found') or 'it could not be told'}"


def finish_publish(view: View, operation: Operation, result: Mapping[str, Any], now_ms: int) -> Change:
    """The bundle may be activated by somebody else; or the publication says why not.

    Raises:
        InvalidInput: What the worker says is not what it did, or no bundle.
    """
    kept = result[KEPT]
    report, bundle_hex = kept["report"], kept["bundle_hex"]
    ended = {
        "state": "refused",
        "bundle_hex": bundle_hex,
        "report": report,
        "attestation_hex": result["attestation"],
        "ended_at_ms": now_ms,
    }
    where = {"id": operation.id, "state": "examining"}
    told = {"publication": operation.id, "bundle": bundle_hex or "", "attestation": result["attestation"]}
    if result["state"] != "published":
        note = Note("policy", {"event": "policy-refused", **told, "found": result["found"]})
        return Change(updates=(Update(Publication, where, ended),), notes=(note,))
    body = _verified(kept, report)
    row = view.publication(operation.id)
    if row is None:
        raise InvalidInput(f"publication {operation.id} was never accepted")
    changed = Update(Publication, where, ended | {"state": "published"})
    bundle = _bundle_change(view, row, body, bundle_hex, attestation_hex=result["attestation"], now_ms=now_ms)
    note = Note("policy", {"event": "policy-published", **told, "author": f"{row.tenant_id}/{row.author}"})
    return replace(bundle, updates=(*bundle.updates, changed), notes=(note,))


def _verified(kept: Mapping[str, Any], report: Mapping[str, Any]) -> bytes:
    """The bundle's bytes, if they are what they should be: what is activated must be found to be policies before."""
    body = (kept["bundle"] or "").encode()
    if not passes(report) or hashlib.sha256(body).hexdigest() != kept["bundle_hex"]:
        raise InvalidInput("what is to be published is not what was examined: nothing was published")
    _compiled(body)
    return body


@lru_cache(maxsize=4)
def _compiled(body: bytes) -> None:
    """See that a bundle can be in force: once, for it is asked again where facts changed meanwhile, at last under the lock of the log."""
    try:
        CompiledBundle.compile(canonical.loads(body, max_bytes=len(body), canonical=True))
    except (BundleError, FormatError) as error:
        raise InvalidInput(f"what was examined is no bundle that could be in force: {error}") from error


def _bundle_change(
    view: View, row: Publication, body: bytes, digest_hex: str, *, attestation_hex: str, now_ms: int
) -> Change:
    """The bundle as a row; of one that is there already, what the publication changes."""
    present = view.bundle(digest_hex)
    where = {"digest_hex": digest_hex}
    examined = {"proved": True, "attestation_hex": attestation_hex}
    if present is None:
        made = {
            "digest_hex": digest_hex,
            "author": row.author,
            "state": "published",
            "body": body,
            "created_at_ms": now_ms,
            "activated_at_ms": None,
            **examined,
        }
        return Change(inserts=(Insert(PolicyBundle, made),))
    if present.state == "superseded":
        # It was put aside. Who wants it back is behind it now, whoever wrote it first.
        values = {"author": row.author, "state": "published", **examined}
        return Change(updates=(Update(PolicyBundle, where | {"state": "superseded"}, values),))
    # It was published before, and stays its author's; it may not have been examined then.
    told = {"in_force": True} if present.state == "active" else {}
    return Change(updates=(Update(PolicyBundle, where, examined),), told=told)


def abandon_publish(_view: View, operation: Operation, error: Mapping[str, Any], now_ms: int) -> Change:
    """What could not be examined is not published."""
    rule, message = error.get("code", "failed"), error.get("message", "it could not be examined")
    values = {"state": "refused", "report": ended_early(str(rule), str(message)), "ended_at_ms": now_ms}
    return Change(updates=(Update(Publication, {"id": operation.id, "state": "examining"}, values),))


VERBS = (
    Verb(
        action="policy.publish",
        summary="Publish a policy project: it is examined, and is then a bundle that another may activate.",
        form=RefForm.TENANT,
        body=PublishPolicies,
        propose=ask_publish,
        do=do_publish,
        finish=finish_publish,
        abandon=abandon_publish,
        refuses=refuses,
        sketch=sketch_publish,
        reads_asked=True,
        creates=True,
    ),
)
