"""A decision explained without a server: out of an archive, from a test, from a request; and what would be needed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from licet_engine.cli import run

sys.path.append(str(Path(__file__).parent))
from archive_world import Recorded  # The line above finds it.
from workbench_world import POLICY, READ, READS, WORLD, write  # As above.

RECORDS = "records/000000000000.jsonl"
FROZEN = (
    '@id("desk.frozen") @title("Frozen") @advice("Wait.") @severity("low") @owner("desk")\n'
    'forbid (principal, action == Action::"model.promote", resource is ModelVersion);\n'
)
PACKED = 'version = 1\n[packs.sr-11-7]\n[packs.residency]\n[packs.residency.parameters]\nregions = ["us"]\n'


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
def archive(recorded: Recorded, tmp_path: Path) -> str:
    return str(recorded.write(tmp_path / "a.zip"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write(
        tmp_path / "project",
        {"policies/p.cedar": POLICY + READ, "tests/world.yaml": WORLD, "tests/reads.yaml": READS},
    )


def told(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert run(["policy", "explain", *arguments, "--format", "json"]) == code
    return json.loads(capsys.readouterr().out)


def number_of(recorded: Recorded, action: str, *reasons: str) -> str:
    found = next(n for n, (_, act, _, why) in enumerate(recorded.answers) if (act, why) == (action, reasons))
    return f"{found:032x}"


def test_every_recorded_decision_is_explained_and_follows_from_its_record(
    recorded: Recorded, archive: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(0, len(recorded.answers), 40):
        answer = told(capsys, f"{number:032x}", "--archive", archive)
        _, _, allowed, reasons = recorded.answers[number]
        assert answer["decision"]["decision"] == ("allow" if allowed else "deny")
        assert tuple(sorted(report["id"] for report in answer["explanation"]["deciding"])) == reasons
        assert answer["compared"]["differs"] == []
        assert (answer["path"] is None) == allowed


def test_a_missing_approval_is_told_part_by_part_with_the_path_to_yes(
    recorded: Recorded, archive: str, capsys: pytest.CaptureFixture[str]
) -> None:
    which = number_of(recorded, "model.promote", "sr-11-7.approval.model-risk")
    answer = told(capsys, which, "--archive", archive)
    assert [step["name"] for step in answer["path"]["steps"]] == ["approval:model-risk"]
    assert run(["policy", "explain", which, "--archive", archive]) == 0
    out = capsys.readouterr().out
    assert "licet approval request" in out
    assert "is false" in out
    assert "evaluated again: the same answer, as recorded" in out
    assert max(map(len, out.splitlines())) <= 100


def test_under_the_policies_of_now_the_difference_is_told(
    recorded: Recorded, archive: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "now", {"licet.toml": PACKED, "policies/p.cedar": FROZEN})
    which = next(f"{n:032x}" for n, (_, act, ok, _) in enumerate(recorded.answers) if ok and act == "model.promote")
    answer = told(capsys, which, "--archive", archive, "--now", "--project", str(folder), code=1)
    assert answer["compared"]["differs"] == ["decision", "reasons"]
    assert answer["compared"]["before"]["decision"] == "allow"
    assert [report["id"] for report in answer["explanation"]["deciding"]] == ["desk.frozen"]
    assert (answer["path"]["possible"], answer["path"]["still"]["reasons"]) == (False, ["desk.frozen"])
    same = write(tmp_path / "same", {"licet.toml": PACKED})
    assert run(["policy", "explain", which, "--archive", archive, "--now", "--project", str(same)]) == 0
    assert "the policies of now decide as was recorded" in capsys.readouterr().out


def test_a_forged_record_does_not_follow_and_that_is_a_finding(
    recorded: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = next(n for n, (_, _, ok, _) in enumerate(recorded.answers) if not ok)
    forged = json.loads(recorded.records[number]) | {"decision": "allow", "reasons": ["role.pipeline.models"]}
    body = json.dumps(forged, sort_keys=True, separators=(",", ":")).encode()

    def forge(files: dict[str, bytes]) -> None:
        assert recorded.records[number] in files[RECORDS]
        files[RECORDS] = files[RECORDS].replace(recorded.records[number], body)

    path = recorded.write(tmp_path / "forged.zip", changed=forge)
    assert run(["policy", "explain", f"{number:032x}", "--archive", str(path)]) == 1
    assert "it does NOT follow from its record" in capsys.readouterr().out


def test_what_an_archive_lacks_or_has_otherwise_is_named(
    recorded: Recorded, archive: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = told(capsys, "f" * 32, "--archive", archive, code=2)
    assert "holds no decision ffff" in missing["error"]["message"]
    bundle = f"bundles/{recorded.bundle_hex}.json"
    other = recorded.write(tmp_path / "b.zip", changed=lambda files: files.update({bundle: b"{}"}))
    assert "another digest" in told(capsys, "0" * 32, "--archive", str(other), code=2)["error"]["message"]

    def repeat(files: dict[str, bytes]) -> None:
        files[RECORDS] = files[RECORDS].replace(recorded.records[1], recorded.records[0])

    twice = recorded.write(tmp_path / "d.zip", changed=repeat)
    assert "holds 2 decisions" in told(capsys, "0" * 32, "--archive", str(twice), code=2)["error"]["message"]
    (tmp_path / "e.zip").write_bytes(Path(archive).read_bytes()[:-9])
    assert "not a zip file" in told(capsys, "0" * 32, "--archive", str(tmp_path / "e.zip"), code=2)["error"]["message"]
    less = recorded.write(tmp_path / "c.zip", changed=lambda files: files.pop(bundle))
    assert "lacks a file" in told(capsys, "0" * 32, "--archive", str(less), code=2)["error"]["message"]


def test_a_test_and_a_request_are_explained_with_what_is_nearest(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = told(capsys, "--test", "An auditor reads public data", str(project))
    assert [report["id"] for report in answer["explanation"]["deciding"]] == ["desk.read"]
    assert answer["compared"] is None
    asked = {
        "principal": "Person::north/ana",
        "action": "dataset.read",
        "resource": "Dataset::north/d",
        "entities": {
            "Tenant::north": {"region": "us", "suspended": False},
            "Person::north/ana": {"tenant": "Tenant::north", "active": True},
            "Dataset::north/d": {
                "tenant": "Tenant::north",
                "restrictions": {
                    "classification": "public",
                    "protected": False,
                    "residency": [],
                    "uses": [],
                    "expires_at_ms": 9,
                    "held": False,
                },
                "held": False,
                "archived": False,
                "derived": 0,
            },
        },
        "time": "1970-01-01",
        "context": {"claimed": [{"name": "ticket", "value": "CHG-1"}]},
    }
    file = tmp_path / "request.json"
    file.write_text(json.dumps(asked))
    answer = told(capsys, "--request", str(file), str(project))
    assert answer["explanation"]["kind"] == "no-permit"
    assert "desk.read" in [report["id"] for report in answer["explanation"]["nearest"]]
    assert run(["policy", "explain", "--request", str(file), str(project)]) == 0
    out = capsys.readouterr().out
    assert "The nearest that would" in out
    assert "claimed   ticket = CHG-1; the asker says so, and no more" in out
    assert "decision  " not in out
    file.write_text(json.dumps(asked | {"expects": "allow"}))
    assert "expects: no such key" in told(capsys, "--request", str(file), str(project), code=2)["error"]["message"]


@pytest.mark.parametrize(
    ("policy", "steps"),
    [
        ("guardrail.endpoints.approved", ["approval:engineering"]),
        ("guardrail.endpoints.alarm", ["alarm:named"]),
        ("guardrail.endpoints.signature", ["signature:model"]),
        ("residency.deployment", ["region:us"]),
        ("guardrail.holds.deployment", []),
    ],
)
def test_what_a_deployment_lacks_is_on_its_path_to_yes(
    recorded: Recorded, archive: str, capsys: pytest.CaptureFixture[str], policy: str, steps: list[str]
) -> None:
    answer = told(capsys, number_of(recorded, "endpoint.deploy", policy), "--archive", archive)
    assert [step["name"] for step in answer["path"]["steps"]] == steps
    assert answer["path"]["possible"] == bool(steps)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say what to explain"),
        (("northbank/" + "0" * 32,), "licet decision explain northbank/"),
        (("--test", "a", "--request", "b"), "different ways"),
        (("xyz", "--archive", "a.zip"), "32 hexadecimal digits"),
        (("0" * 32, "--archive", "a.zip", "--project", "."), "add --now"),
        (("--test", "a", "--now"), "--archive"),
        (("--test", "a test that is not there", "project"), "name one of 'An auditor reads public data'"),
    ],
)
def test_what_is_asked_wrongly_is_told_with_what_to_do(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(project.parent)
    assert said in told(capsys, *arguments, code=2)["error"]["message"]
