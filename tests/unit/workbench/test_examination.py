"""An examination tells everything that it finds, and passes only with every step done; its process can be ended."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hard_invariant import HARD
from licet_attestations import canonical
from licet_engine.commands.published import finding_lines, report_lines
from licet_engine.domain.errors import InvalidInput
from licet_engine.lifecycle import examiner
from licet_engine.lifecycle.publication import document_of
from licet_engine.workbench.document import ProjectDocument
from licet_engine.workbench.examination import BUNDLE_FILE, examine
from licet_engine.workbench.project import load_project
from licet_engine.workbench.scaffold import write_project
from licet_engine.workbench.verdict import bounded, finding, passes, proved, steps, summary
from licet_policies import PackChoice, compose


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_project(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of the example project, which passes."""
    folder = tmp_path_factory.mktemp("passing") / "project"
    write_project(folder)
    found: dict[str, Any] = examine(folder, time_limit_s=10, longest_s=60).to_json()["report"]
    return found


def test_the_example_passes_under_the_digest_that_its_bundle_has(project: Path) -> None:
    examined = examiner.run(project, longest_s=60)
    assert passes(examined.report), summary(examined.report)
    data = canonical.dumps(load_project(project).bundle())
    assert examined.bundle_hex == hashlib.sha256(data).hexdigest()
    assert steps(examined.report) == (["lint", "tests", "coverage", "proofs"], [])


def test_nothing_less_than_a_whole_report_passes(report: dict[str, Any]) -> None:
    assert passes(report)
    assert not passes({})
    for part in ("v", "lint", "tests", "coverage", "proofs", "findings"):
        assert not passes({name: value for name, value in report.items() if name != part}), part
    refuted = [{**report["proofs"]["invariants"][0], "outcome": "refuted"}, *report["proofs"]["invariants"][1:]]
    unknown = [*report["proofs"]["invariants"][1:], {"id": "x", "title": "x", "outcome": "unknown"}]
    for changed in (
        {"v": 2},
        {"lint": {**report["lint"], "errors": 1}},
        {"tests": {**report["tests"], "missed": 1}},
        {"tests": {**report["tests"], "passed": 1}},
        {"coverage": {"percent": 99, "threshold": 100}},
        {"proofs": {"invariants": []}},
        {"proofs": {"invariants": refuted}},
        {"proofs": {"invariants": unknown}},
        {"findings": [{"step": "x", "severity": "error"}]},
    ):
        assert not passes({**report, **changed}), changed


def test_all_is_told_at_once(project: Path) -> None:
    (project / "policies" / "open.cedar").write_text(
        '@id("desk.open")\npermit (principal, action, resource)\nwhen { resource has cost && resource.cost == 7 };\n'
    )
    text = (project / "tests" / "release.yaml").read_text()
    (project / "tests" / "release.yaml").write_text(text.replace("expect: allow", "expect: deny", 1))
    found = examine(project, time_limit_s=10, longest_s=60).to_json()["report"]
    told = {(one["step"], one["rule"]) for one in found["findings"] if one["severity"] == "error"}
    assert {("lint", "open-permit"), ("tests", "test-failed"), ("coverage", "coverage")} <= told
    assert not passes(found)


def test_what_was_passed_over_is_told_with_its_reason(project: Path) -> None:
    (project / "policies" / "open.cedar").write_text(
        '@id("desk.open")\n@title("Open")\npermit (principal, action, resource)\n'
        'when { context.claimed.contains({"name": "letmein", "value": "1"}) };\n'
    )
    text = (project / "licet.toml").read_text()
    assert "\n[lint.off]\n" in text
    off = '\n[lint.off]\nopen-permit = "for now"\nclaimed-fact = "it is a drill"\n'
    (project / "licet.toml").write_text(text.replace("\n[lint.off]\n", off, 1))
    lint = examine(project, time_limit_s=10, longest_s=60).to_json()["report"]["lint"]
    told = {(one["rule"], one["policy"], one["reason"]) for one in lint["passed_over"]}
    assert {("open-permit", "desk.open", "for now"), ("claimed-fact", "desk.open", "it is a drill")} <= told
    assert len(lint["passed_over"]) == lint["switched_off"]
    shown = "\n".join(report_lines({"lint": lint}))
    assert "open-permit of desk.open" in shown
    assert "it is a drill" in shown


@pytest.mark.parametrize("name", ["bundle.errors", "bundle.narrows", "bundle.invariants"])
def test_an_invariant_does_not_take_the_name_of_what_is_always_proved(project: Path, name: str) -> None:
    (project / "invariants" / "own.cedar").write_text(
        f'@id("{name}")\n@title("Nothing is wrong")\n@never\n'
        'permit (principal, action == Action::"run.log", resource is Run) when { resource.cost < -5 && false };\n'
    )
    found = examine(project, time_limit_s=10, longest_s=60).to_json()["report"]
    assert not passes(found)
    assert any(name in one["message"] and "choose one of your own" in one["message"] for one in found["findings"]), (
        found
    )


def test_what_cannot_be_composed_is_told_and_nothing_else_is_tried(project: Path) -> None:
    (project / "policies" / "torn.cedar").write_text('@id("desk.torn")\nforbid (principal, action resource);\n')
    examined = examiner.run(project, longest_s=60)
    assert examined.bundle is None
    assert {(one["rule"], one["line"]) for one in examined.report["findings"] if one["severity"] == "error"} == {
        ("syntax", 2)
    }
    assert steps(examined.report) == ([], ["lint", "tests", "coverage", "proofs"])


@pytest.mark.parametrize("change", ["no-toml", "no-test-in-a-file", "bad-yaml"])
def test_a_project_that_cannot_be_read_is_a_finding_with_its_file(project: Path, change: str) -> None:
    file, text = {
        "no-toml": ("licet.toml", "version = "),
        "no-test-in-a-file": ("tests/release.yaml", "tests: []\n"),
        "bad-yaml": ("tests/release.yaml", "tests: [\n"),
    }[change]
    if change == "no-test-in-a-file":
        for other in ("downloads.yaml", "fixtures.yaml"):
            (project / "tests" / other).unlink()
    (project / file).write_text(text)
    found = examine(project, time_limit_s=10, longest_s=60).to_json()["report"]
    assert not passes(found)
    assert [one for one in found["findings"] if one["severity"] == "error" and one["file"].startswith(file[:5])]


def test_a_place_in_a_file_is_told_once(project: Path) -> None:
    (project / "licet.toml").write_text("version = \n")
    found = examine(project, time_limit_s=10, longest_s=60).to_json()["report"]["findings"]
    assert [(one["file"], one["line"]) for one in found] == [("licet.toml", 1)]
    (shown,) = finding_lines(found)
    assert shown.count("licet.toml") == 1


def test_what_refutes_is_shown_to_people_as_prove_shows_it(project: Path) -> None:
    (project / "policies" / "open.cedar").write_text(
        '@id("desk.open") @title("Open") @owner("desk")\npermit (principal, action == Action::"dataset.read", resource is Dataset);\n'
    )
    (project / "invariants" / "read.cedar").write_text(
        '@id("desk.invariant.read") @title("Anybody but an auditor reads data") @never\n'
        'permit (principal, action == Action::"dataset.read", resource is Dataset) unless { principal in Role::"auditor" };\n'
    )
    found = examine(project, time_limit_s=10, longest_s=60).to_json()["report"]["findings"]
    (refuted,) = [one for one in found if one["rule"] == "refuted"]
    # For programs it is whole.
    assert json.loads(refuted["detail"])["action"]["id"] == "dataset.read"
    lines = finding_lines([refuted])
    assert len(lines) < 20
    told = " ".join(" ".join(lines).split())
    assert 'action Action::"dataset.read"' in told
    assert "because desk.open" in told
    assert "{" not in told


def test_what_is_told_of_findings_is_bounded_one_by_one_and_all_together() -> None:
    long = finding("proofs", "refuted", "x" * 9000, line=3, detail="d" * 99_999, shown=[("reads", "y" * 9000)] * 99)
    assert (len(long["message"]), len(long["detail"]), len(long["shown"]), len(long["shown"][0][1])) == (
        *(2000, 20_000),
        *(40, 300),
    )
    short = finding("proofs", "refuted", "x", detail="d" * 10, shown=[("reads", "y" * 5)])
    told = bounded([short, long, short, short], most=3, chars=45)
    assert [(len(one["shown"]), len(one["detail"])) for one in told] == [(1, 10), (0, 0), (1, 10)]


def test_a_project_without_own_policies_has_nothing_to_cover(tmp_path: Path) -> None:
    (tmp_path / "licet.toml").write_text('version = 1\n\n[packs.sr-11-7]\nmode = "enforce"\n')
    found = examine(tmp_path, time_limit_s=10, longest_s=60).to_json()["report"]
    assert passes(found), summary(found)
    assert (found["tests"]["run"], found["coverage"]["policies"]) == (0, 0)


def test_what_cannot_be_told_is_an_error(project: Path) -> None:
    (project / "invariants" / "hard.cedar").write_text(HARD)
    found = examine(project, time_limit_s=0.2, longest_s=60).to_json()["report"]
    assert ("proofs", "unknown", "invariants/hard.cedar") in {
        (one["step"], one["rule"], one["file"]) for one in found["findings"] if one["severity"] == "error"
    }
    assert not passes(found)


def test_an_examination_that_takes_too_long_is_ended_and_refused(project: Path) -> None:
    began_s = time.monotonic()
    examined = examiner.run(project, longest_s=0.3)
    assert time.monotonic() - began_s < 5
    assert [one["rule"] for one in examined.report["findings"]] == ["time-out"]
    assert not passes(examined.report)
    assert examinations(project) == []


def test_an_examination_that_takes_too_much_memory_is_refused(project: Path) -> None:
    examined = examiner.run(project, longest_s=60, memory_bytes=48 << 20)
    assert not passes(examined.report)
    assert {one["rule"] for one in examined.report["findings"]} & {"memory", "crashed"}


def test_an_examination_ends_with_who_waits_for_it(project: Path) -> None:
    (project / "invariants" / "hard.cedar").write_text(HARD)
    code = f"from pathlib import Path; from licet_engine.lifecycle.examiner import run; run(Path({str(project)!r}), longest_s=60)"
    waiting = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline_s = time.monotonic() + 20
        while not (running := examinations(project)) and time.monotonic() < deadline_s:
            time.sleep(0.02)
        assert running
    finally:
        waiting.kill()
        waiting.wait()
    deadline_s = time.monotonic() + 10
    while examinations(project) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert examinations(project) == []


def examinations(project: Path) -> list[int]:
    """The examinations of a project that go on on this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if b"licet_engine.workbench.examination" in command and bytes(project) in command:
            found.append(int(path.name))
    return found


@pytest.mark.parametrize(
    ("status", "answer", "rule"),
    [
        (1, b"", "crashed"),
        (-11, b"", "crashed"),
        (-24, b"", "time-out"),
        (0, b"", "crashed"),
        (0, b"[]", "crashed"),
        (0, b'{"report": {"v": 1}, "bundle": null}', "crashed"),
        (0, b'{"report": {"v": 1, "findings": [1.5]}, "bundle": null}', "crashed"),
        (0, b'{"report": {"v": 1, "findings": []}, "bundle": null, "more": 1}', "crashed"),
        (0, b"[" * 5000, "crashed"),
    ],
)
def test_whatever_the_process_says_it_is_read_as_a_strangers(status: int, answer: bytes, rule: str) -> None:
    examined = examiner._judge(status, answer, b"")
    assert [one["rule"] for one in examined.report["findings"]] == [rule]
    assert (examined.bundle, passes(examined.report)) == (None, False)


def test_only_the_project_that_was_decided_on_is_examined(project: Path) -> None:
    document = ProjectDocument.from_folder(project)
    asked: dict[str, Any] = {"project": document.to_json(), "packs": [], "policies": ""}
    assert document_of(asked, document.digest_hex) == document
    asked["project"]["files"][0]["text"] += "\n// and more\n"
    with pytest.raises(InvalidInput, match="not the one that was decided on"):
        document_of(asked, document.digest_hex)
    parts: dict[str, Any] = {"packs": [{"name": "sr-11-7", "mode": "enforce", "parameters": {}}], "policies": ""}
    known = ProjectDocument.of_parts(parts["packs"], "")
    assert document_of({**parts, "project": None}, known.digest_hex) == known


def test_a_process_that_says_too_much_is_not_listened_to() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "import sys\nwhile True: sys.stdout.write('x' * 65536)"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            answer, _, fault = examiner._read(process, time.monotonic() + 20)
        finally:
            process.kill()
    assert (answer, fault is not None and fault[0]) == (b"", "too-large")


def test_who_left_the_network_reaches_nobody_on_it(project: Path) -> None:
    assert examiner.run(project, longest_s=60).report["network"]
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        code = (
            "import socket; from licet_engine.workbench.examination import leave_the_network\n"
            "said = leave_the_network()\n"
            f"reached = socket.socket().connect_ex(('127.0.0.1', {listener.getsockname()[1]})) == 0\n"
            "print(bool(said), reached)"
        )
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, timeout=60)
    # It is reached if, and only if, the kernel would not let it leave, and then that is said.
    assert told.stdout.split() in (["False", "False"], ["True", "True"])


# --- a bundle alone ---------------------------------------------------------------------------------------------------


def bundle_in(folder: Path, *, lacking: str = "") -> Path:
    bundle = compose([PackChoice("sr-11-7")])
    bundle["policies"] = [one for one in bundle["policies"] if not lacking or not one["id"].startswith(lacking)]
    folder.mkdir()
    (folder / BUNDLE_FILE).write_bytes(canonical.dumps(bundle))
    return folder


def test_of_a_bundle_alone_what_must_hold_is_proved_and_nothing_else_is_claimed(tmp_path: Path) -> None:
    folder = bundle_in(tmp_path / "whole")
    examined = examiner.run(folder, longest_s=60, kind="bundle")
    assert proved(examined.report) is True
    assert examined.bundle_hex == hashlib.sha256((folder / BUNDLE_FILE).read_bytes()).hexdigest()
    assert not {"lint", "tests", "coverage"} & examined.report.keys()
    assert not passes(examined.report), "it would not be published for that"
    ids = {one["id"] for one in examined.report["proofs"]["invariants"]}
    assert {"invariant.isolation.resources", "sr-11-7.invariant.tracks"} < ids


def test_a_bundle_that_breaks_an_invariant_is_told_with_a_request(tmp_path: Path) -> None:
    folder = bundle_in(tmp_path / "hollow", lacking="guardrail.isolation")
    report = examiner.run(folder, longest_s=60, kind="bundle").report
    assert proved(report) is False
    (outcome,) = (
        one["outcome"] for one in report["proofs"]["invariants"] if one["id"] == "invariant.isolation.resources"
    )
    assert outcome == "refuted"
    assert any(one["shown"] for one in report["findings"])


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"b":1, "a":2}', b'{"policies":[]}', b"\xff"])
def test_what_is_no_bundle_is_told_of_as_nothing(tmp_path: Path, body: bytes) -> None:
    (tmp_path / BUNDLE_FILE).write_bytes(body)
    report = examiner.run(tmp_path, longest_s=60, kind="bundle").report
    assert proved(report) is None
    assert report["findings"]


def test_what_takes_too_long_is_neither_proved_nor_refuted(tmp_path: Path) -> None:
    report = examiner.run(bundle_in(tmp_path / "whole"), longest_s=0.3, kind="bundle").report
    assert proved(report) is None


@pytest.mark.parametrize(
    ("outcomes", "told"),
    [
        (["proved"], True),
        (["proved", "refuted"], False),
        (["refuted", "unknown"], None),
        (["unknown"], None),
        ([], None),
    ],
)
def test_only_what_is_told_of_each_invariant_is_a_verdict(outcomes: list[str], told: object) -> None:
    invariants = [{"id": str(n), "title": "x", "outcome": outcome} for n, outcome in enumerate(outcomes)]
    assert proved({"proofs": {"invariants": invariants}}) is told
    assert proved({"findings": []}) is None
