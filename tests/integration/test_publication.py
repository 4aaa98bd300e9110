"""Policies are published with what was found of them, or not at all; then somebody else brings them into force."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import select

from licet_attestations import canonical, dsse
from licet_attestations.statement import TEST_RESULT, Statement
from licet_attestations.trustroot import TrustRoot
from licet_engine.client import Answer, Operation
from licet_engine.store import tables
from licet_engine.store.db import tenant_session
from licet_engine.workbench.document import ProjectDocument
from licet_engine.workbench.project import load_project
from licet_engine.workbench.scaffold import write_project

sys.path.append(str(Path(__file__).parent))
from service_world import Installation, poll, problem  # The line above finds it.

from hard_invariant import HARD

pytestmark = pytest.mark.slow

DESK = "desk"
NUMBERS = count()


@pytest.fixture(scope="module")
def desk(world: Installation) -> str:
    """A tenant whose policies are published; a CI may do so, too."""
    world.people(DESK, "us", packs=[])
    world.person(f"{DESK}/policies", kind="service", roles=["security-engineer"], owner="sam")
    return DESK


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The example project, with a policy that makes its bundle another each time."""
    folder = tmp_path / "project"
    write_project(folder)
    own = f'@id("desk.n-{next(NUMBERS)}")\n@title("Nothing")\n@advice("No.")\n@severity("low")\n@owner("desk")\n'
    scope = 'forbid (principal is Person, action == Action::"run.log", resource is Run)\nwhen { resource.cost < 0 };\n'
    (folder / "policies" / "more.cedar").write_text(own + scope)
    change(folder, "licet.toml", "threshold = 100", "threshold = 80")
    return folder


def change(folder: Path, name: str, before: str, after: str) -> None:
    text = (folder / name).read_text()
    assert before in text
    (folder / name).write_text(text.replace(before, after))


def send(world: Installation, folder: Path, who: str = f"{DESK}/sam") -> Answer:
    document = ProjectDocument.from_folder(folder).to_json()
    return world.client(who).policy.publish(who.partition("/")[0], project=document)


def published(world: Installation, folder: Path, who: str = f"{DESK}/sam") -> Operation:
    answer = send(world, folder, who)
    assert answer.require().operation is not None
    return world.done(world.client(who), answer)


def refused(world: Installation, folder: Path) -> list[Mapping[str, Any]]:
    """Publish what is refused; return what was found, and see that nothing of it is there as a bundle."""
    before = bundles(world)
    ended = published(world, folder)
    assert (ended.state, ended.result["state"]) == ("refused", "refused"), ended
    assert ended.error is not None
    assert ended.error["code"] == "refused"
    assert bundles(world) == before
    told = world.client(f"{DESK}/sam").policy.read(ended.result["publication"]).require().result
    assert told["publication"]["state"] == "refused"
    statement = attested(world, ended.result["attestation"])
    assert statement.predicate["result"] == "FAILED"
    findings: list[Mapping[str, Any]] = told["publication"]["report"]["findings"]
    _is_named_as_refused(world, ended)
    assert [one["message"] for one in findings] == [one["message"] for one in ended.result["findings"]]
    return findings


def _is_named_as_refused(world: Installation, ended: Operation) -> None:
    """Whoever would activate what was refused is told by a policy, and not as of what is nowhere."""
    names = [ended.result["publication"].partition("/")[2]]
    names += [ended.result["bundle"][:8]] if "bundle" in ended.result else []
    for name in names:
        told = world.client(f"{DESK}/all").policy.read(f"{DESK}/{name}").require().result["publication"]
        assert told["state"] == "refused"
        assert deciding(world.client(f"{DESK}/all").policy.activate(f"{DESK}/{name}")) == {
            "guardrail.publication.proved"
        }
        # Of another tenant's nothing is told.
        assert deciding(world.client("lakeside/all").policy.activate(f"{DESK}/{name}")) == set()


def bundles(world: Installation) -> set[str]:
    return {row["digest_hex"] for row in world.client(f"{DESK}/sam").list(DESK, "bundles", limit=1000)}


def attested(world: Installation, digest_hex: str) -> Statement:
    """The statement of that digest: signed by this installation, and in the tenant's log."""
    with tenant_session(world.engine, DESK) as session:
        row = session.exec(select(tables.Attestation).where(tables.Attestation.digest_hex == digest_hex)).one()
    trust = TrustRoot.from_json(world.settings.trust_root.read_bytes())
    payload = dsse.verify_envelope(dsse.Envelope.from_json(row.envelope.encode()), trust.keys("attestation"))
    assert hashlib.sha256(payload).hexdigest() == digest_hex
    assert any(r.get("digest") == digest_hex for _, r in world.entries(DESK) if r.get("type") == "attestation")
    return Statement.from_bytes(payload)


def deciding(answer: Answer) -> set[str]:
    return {policy.id for policy in answer.policies}


def test_what_passes_is_published_under_the_digest_that_was_known_and_activated_by_another(
    world: Installation, desk: str, project: Path
) -> None:
    known = hashlib.sha256(canonical.dumps(load_project(project).bundle())).hexdigest()
    ended = published(world, project)
    assert ended.state == "done", ended
    assert ended.result["bundle"] == known
    ref = f"{desk}/{known[:8]}"
    # Signed: of which bundle, by what, with which results.
    statement = attested(world, ended.result["attestation"])
    with tenant_session(world.engine, desk) as session:
        row = session.exec(select(tables.PolicyBundle).where(tables.PolicyBundle.digest_hex == known)).one()
    assert (row.proved, row.attestation_hex) == (True, ended.result["attestation"])
    assert statement.predicate_type == TEST_RESULT
    document = ProjectDocument.from_folder(project)
    assert [(s.name, s.sha256_hex) for s in statement.subject] == [
        ("policy-bundle", known),
        ("policy-project", document.digest_hex),
    ]
    predicate = statement.predicate
    assert (predicate["tenant"], predicate["result"]) == (desk, "PASSED")
    assert (predicate["passedTests"], predicate["failedTests"]) == (["lint", "tests", "coverage", "proofs"], [])
    assert (predicate["tests"]["run"], predicate["tests"]["passed"]) == (14, 14)
    assert {"invariant.isolation.resources", "bundle.errors"} < set(predicate["proofs"])
    assert set(predicate["proofs"].values()) == {"proved"}
    assert set(predicate["tools"]) == {"licet", "cedarpy", "cvc5"}
    # Not by its author, not by a service, not by who has another role.
    sam, other = world.client(f"{desk}/sam"), world.client(f"{desk}/all")
    assert deciding(sam.policy.activate(ref)) == {"guardrail.separation-of-duties.policy"}
    assert not world.client(f"{desk}/admin").policy.activate(ref).allowed
    other.policy.activate(ref).require()
    told = other.policy.read(ref, body=True, project=True).require().result
    assert (told["author"], told["activated_by"], told["state"]) == ("sam", "all", "active")
    assert hashlib.sha256(canonical.dumps(told["body"])).hexdigest() == known
    assert ProjectDocument.from_json(told["project"]) == document
    assert told["publication"]["attestation_hex"] == ended.result["attestation"]
    # What the logs say of it, in this order: that it was asked, the warrant, the statement, the end, that it came into force.
    events = [r.get("event") for _, r in world.entries(desk) if r.get("bundle") == known and r.get("type") == "policy"]
    assert events == ["policy-published", "policy-activated"]


def test_what_is_in_force_already_is_told_as_such_and_keeps_its_times(
    world: Installation, desk: str, project: Path, tmp_path: Path
) -> None:
    first = published(world, project)
    other = world.client(f"{desk}/all")
    other.policy.activate(first.result["ref"]).require()
    again = published(world, project)
    assert (again.state, again.result["in_force"]) == ("done", True)
    assert "in_force" not in first.result
    # Put aside, and published once more: it was made and in force before, and its times still say so.
    write_project(tmp_path / "next")
    change(tmp_path / "next", "licet.toml", "threshold = 100", "threshold = 70")
    other.policy.activate(published(world, tmp_path / "next").result["ref"]).require()
    before = row(world, first.result["bundle"])
    assert before["state"] == "superseded"
    assert "in_force" not in published(world, project).result
    after = row(world, first.result["bundle"])
    assert after["state"] == "published"
    assert after["created_at_ms"] == before["created_at_ms"] <= after["activated_at_ms"] == before["activated_at_ms"]


def row(world: Installation, digest_hex: str) -> dict[str, Any]:
    listed = world.client(f"{DESK}/all").list(DESK, "bundles", limit=1000)
    return next(dict(row) for row in listed if row["digest_hex"] == digest_hex)


def test_a_bundle_that_was_not_examined_is_not_activated(world: Installation, desk: str, project: Path) -> None:
    ended = published(world, project)
    with tenant_session(world.engine, desk, write=True) as session:
        row = session.exec(
            select(tables.PolicyBundle).where(tables.PolicyBundle.digest_hex == ended.result["bundle"])
        ).one()
        row.proved = False
        session.add(row)
    answer = world.client(f"{desk}/all").policy.activate(ended.result["ref"])
    assert deciding(answer) == {"guardrail.publication.proved"}
    # Published once more it is examined, and stays its first author's.
    assert published(world, project, f"{desk}/all").result["bundle"] == ended.result["bundle"]
    assert deciding(world.client(f"{desk}/sam").policy.activate(ended.result["ref"])) == {
        "guardrail.separation-of-duties.policy"
    }
    world.client(f"{desk}/all").policy.activate(ended.result["ref"]).require()


def test_a_ci_publishes_for_who_answers_for_it_who_does_not_activate_it(
    world: Installation, desk: str, project: Path
) -> None:
    ended = published(world, project, f"{desk}/policies")
    assert ended.state == "done", ended
    ref = ended.result["ref"]
    assert deciding(world.client(f"{desk}/sam").policy.activate(ref)) == {"guardrail.separation-of-duties.policy"}
    assert not world.client(f"{desk}/policies").policy.activate(ref).allowed
    told = world.client(f"{desk}/all").policy.read(ref).require().result["publication"]
    assert (told["published_by"], told["author"]) == (f"{desk}/policies", "sam")
    assert not send(world, project, f"{desk}/ci").allowed


def test_an_error_of_lint_is_refused_with_its_place(world: Installation, desk: str, project: Path) -> None:
    assert desk
    (project / "policies" / "open.cedar").write_text('@id("desk.open")\npermit (principal, action, resource);\n')
    (project / "policies" / "torn.cedar").write_text('@id("desk.torn")\nforbid (principal, action resource);\n')
    found = {(one["step"], one["rule"], one["file"], one["line"]) for one in refused(world, project)}
    assert ("lint", "open-permit", "policies/open.cedar", 1) in {(s, r, f, 1) for s, r, f, _ in found}
    assert ("lint", "syntax", "policies/torn.cedar", 2) in found


def test_a_test_that_fails_is_refused_with_why(world: Installation, desk: str, project: Path) -> None:
    assert desk
    change(project, "tests/release.yaml", "expect: allow", "expect: deny")
    found = [one for one in refused(world, project) if one["step"] == "tests"]
    assert {(one["rule"], one["file"]) for one in found} == {("test-failed", "tests/release.yaml")}
    assert "expected deny, was allow" in found[0]["message"]
    assert "decided: this permit applies" in found[0]["detail"]


def test_too_little_coverage_is_refused(world: Installation, desk: str, project: Path) -> None:
    assert desk
    change(project, "licet.toml", "threshold = 80", "threshold = 100")
    found = refused(world, project)
    assert ("coverage", "licet.toml") in {(one["rule"], one["file"]) for one in found}
    assert {"policy-not-covered"} <= {one["rule"] for one in found}


def test_a_refuted_invariant_is_refused_with_a_request_that_cedar_confirmed(
    world: Installation, desk: str, project: Path
) -> None:
    assert desk
    text = (
        '@id("desk.invariant.nobody")\n@never("Anybody reads a dataset")\n'
        'permit (principal is Person, action == Action::"dataset.read", resource is Dataset);\n'
    )
    (project / "invariants" / "nobody.cedar").write_text(text)
    (found,) = [one for one in refused(world, project) if one["severity"] == "error"]
    assert (found["step"], found["rule"], found["file"], found["line"]) == (
        *("proofs", "refuted"),
        *("invariants/nobody.cedar", 1),
    )
    request = json.loads(found["detail"])
    assert request["left"]["holds"]
    assert request["right"]["holds"]
    assert "dataset.read" in str(request["action"])
    assert request["entities"]


def test_what_cannot_be_told_is_no_pass(world: Installation, desk: str, project: Path) -> None:
    assert desk
    (project / "invariants" / "hard.cedar").write_text(HARD)
    (found,) = [one for one in refused(world, project) if one["severity"] == "error"]
    if found["rule"] == "time-out":  # On a busy machine the whole examination ends before its hardest question.
        assert "so nothing is shown" in found["message"]
    else:
        assert (found["rule"], found["file"]) == ("unknown", "invariants/hard.cedar")
        assert "cannot be told" in found["message"]


def test_a_project_that_is_none_is_refused_before_anything_is_begun(
    world: Installation, desk: str, project: Path
) -> None:
    document = ProjectDocument.from_folder(project).to_json()
    files = document["files"]
    bad: list[Any] = [
        {**document, "files": [*files, {"name": "policies/../../etc/passwd", "text": ""}]},
        {**document, "files": [*files, {"name": "/etc/passwd", "text": ""}]},
        {**document, "files": [*files, files[-1]]},
        {**document, "files": [one for one in files if one["name"] != "licet.toml"]},
        {**document, "v": 2},
        {**document, "more": 1},
    ]
    with world.http(f"{desk}/sam") as http:
        for sent in bad:
            asked = {"resource": desk, "parameters": {"project": sent}}
            problem(http.post("/v1/policy/publish", json=asked), 400, "invalid-input")


def test_a_worker_that_dies_while_it_examines_goes_on_and_nothing_is_published_by_half(
    world: Installation, desk: str, project: Path
) -> None:
    (project / "invariants" / "hard.cedar").write_text(HARD)
    answer = send(world, project)
    operation = answer.require().operation
    assert operation is not None
    before = bundles(world)
    poll("the examination", lambda: examinations(world))
    worker, child = world.supervisor.pid("worker"), examinations(world)[0]
    os.kill(worker, signal.SIGKILL)
    # It dies with who waits for it.
    poll("its end", lambda: not Path(f"/proc/{child}").exists() or is_zombie(child))
    assert bundles(world) == before
    ended = world.client(f"{desk}/sam").wait(operation, timeout_s=120)
    assert ended.state == "refused"
    told = world.client(f"{desk}/sam").policy.read(answer.result["publication"]).require().result["publication"]
    assert told["state"] == "refused"
    rows = [r for _, r in world.entries(desk) if r.get("publication") == operation.id]
    assert [r["event"] for r in rows if r.get("type") == "policy"] == ["policy-refused"]


def examinations(world: Installation) -> list[int]:
    """The processes that examine something, of this installation's worker."""
    worker = world.supervisor.pid("worker")
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == worker and b"licet_engine.workbench.examination" in command and b"sandbox_launch" not in command:
            found.append(int(path.name))
    return found


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_another_tenant_sees_nothing_of_it(world: Installation, desk: str, project: Path) -> None:
    ended = published(world, project)
    foreign = world.client("lakeside/all")
    for name in (ended.result["bundle"], ended.result["bundle"][:8], ended.result["publication"].partition("/")[2]):
        for answer in (foreign.policy.read(f"{desk}/{name}"), foreign.policy.read(f"lakeside/{name}")):
            assert not answer.allowed
            assert not answer.policies
    # The same project is the same bundle elsewhere, of which this tenant knows nothing.
    own = published(world, project, "lakeside/sam")
    assert own.result["bundle"] == ended.result["bundle"]
    assert own.result["attestation"] != ended.result["attestation"]


def test_no_more_is_examined_at_once_than_there_is_memory_for(
    world: Installation, desk: str, project: Path, tmp_path: Path
) -> None:
    (project / "invariants" / "hard.cedar").write_text(HARD)
    sent = []
    for number, who in enumerate((f"{desk}/sam", f"{desk}/sam", "lakeside/sam", "lakeside/sam")):
        folder = tmp_path / f"n-{number}"
        shutil.copytree(project, folder)
        change(folder, "licet.toml", "threshold = 80", f"threshold = {70 + number}")
        operation = send(world, folder, who).require().operation
        assert operation is not None
        sent.append((who, operation))
    most = 0
    for who, operation in sent:
        while not world.client(who).operation(operation.tenant, operation.id).is_final:
            most = max(most, len(examinations(world)))
            time.sleep(0.05)
    assert most == world.settings.examinations == 2


def test_a_publication_that_is_under_way_is_not_begun_twice(world: Installation, desk: str, project: Path) -> None:
    (project / "invariants" / "hard.cedar").write_text(HARD)
    first = send(world, project).require().operation
    assert first is not None
    with world.http(f"{desk}/sam") as http:
        sent = {"resource": desk, "parameters": {"project": ProjectDocument.from_folder(project).to_json()}}
        problem(http.post("/v1/policy/publish", json=sent), 409, "conflict")
    assert world.client(f"{desk}/sam").wait(first, timeout_s=120).state == "refused"


def test_a_beginning_that_two_bundles_share_names_neither(world: Installation, desk: str) -> None:
    digests = ["ab" * 5 + "0" * 54, "ab" * 5 + "1" * 54]
    with tenant_session(world.engine, desk, write=True) as session:
        for digest_hex in digests:
            row = {"digest_hex": digest_hex, "author": "sam", "state": "superseded", "body": b"{}", "proved": True}
            session.add(tables.PolicyBundle(tenant_id=desk, created_at_ms=1, **row))
    with world.http(f"{desk}/all") as http:
        for prefix, status, code in (
            ("ab" * 4, 400, "ambiguous"),
            ("ab" * 5, 400, "ambiguous"),
            (digests[0][:11], 409, "conflict"),
            (digests[0], 409, "conflict"),
            ("ab" * 3, 403, "denied"),
        ):
            problem(http.post("/v1/policy/activate", json={"resource": f"{desk}/{prefix}"}), status, code)
