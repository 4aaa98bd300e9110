"""The verifier on what is whole, and on the ways an archive can be honest and yet incomplete."""

import dataclasses
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from licet_attestations import dsse, isolation, statement, verify
from licet_attestations.__main__ import verify_command
from licet_attestations.archive import REQUIRED, Archive, ArchiveWriter
from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.keys import ED25519, PrivateKey
from licet_attestations.leaf import Leaf
from licet_attestations.tlogpolicy import Policy
from licet_attestations.vkey import COSIGNER_KIND, LOG_KIND, VerifierKey

World = Any
"""The log that conftest makes; test folders are no packages to import it from."""


def test_a_whole_archive_verifies_and_every_step_is_reported(world: World, tmp_path: Path) -> None:
    path = tmp_path / "northbank.evidence.zip"
    built = world.build(path)
    report = verify.verify_archive(path, world.trust, expected_tenant="northbank")
    assert [s.name for s in report.steps] == [name for name, _ in verify.STEPS[:-1]]
    assert (report.tenant, report.first, report.size) == ("northbank", 0, len(world.leaves))
    assert (built.first, built.size, built.erased) == (0, len(world.leaves), 0)
    # Counted from 0, the last one is one below the size.
    assert any(f"entries 0 to {len(world.leaves) - 1}, root" in step.detail for step in report.steps)
    assert verify.entries_text(5, 5) == "no entries"
    assert report.counts["allow"] == 1
    assert report.counts["deny"] == 2
    assert report.counts["attestations"] == 3
    assert report.counts["warrants"] == 1
    assert report.isolation.answer == "holds"
    assert dict(report.isolation.foreign) == {"lakeside": {"deny": 1}}
    assert dict(report.isolation.operators) == {"tenant.suspend": {"allow": 1}}
    assert "not evaluated again" in report.limits[0]
    assert json.loads(json.dumps(report.to_dict()))["verified"] is True
    assert not list(tmp_path.glob("*.part"))


def test_the_steps_in_the_comment_are_the_steps_that_run() -> None:
    documented = [line.split()[1] for line in (verify.__doc__ or "").splitlines() if line[:3].strip(" .").isdigit()]
    assert documented == [name for name, _ in verify.STEPS]


def test_the_documentation_lists_the_steps_that_run() -> None:
    documented = (Path(__file__).parents[3] / "docs" / "formats.md").read_text()
    for number, (name, _) in enumerate(verify.STEPS, start=1):
        assert f"\n| {number}. {name} | " in documented


def test_the_archive_is_deterministic_but_for_its_signatures(world: World) -> None:
    first, second = io.BytesIO(), io.BytesIO()
    note, envelope = world.note(), world.sign_export(b"{}")
    world.build(first, checkpoint_note=note, sign_export=lambda _claim: envelope)
    world.build(second, checkpoint_note=note, sign_export=lambda _claim: envelope)
    assert first.getvalue() == second.getvalue()


def test_any_unzip_program_can_read_it(world: World, tmp_path: Path) -> None:
    world.build(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "out")
    assert (tmp_path / "out" / "records" / "0.json").is_file()
    with Archive(tmp_path / "a.zip") as ours:
        assert {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")} >= set(
            ours.members
        )


def test_an_empty_log_verifies(empty_world: World, tmp_path: Path) -> None:
    empty_world.build(tmp_path / "a.zip")
    report = verify.verify_archive(tmp_path / "a.zip", empty_world.trust)
    assert report.size == 0
    assert report.isolation.answer == "holds"


@pytest.mark.parametrize("first", [1, 3, 4, 7])
def test_a_range_from_a_frontier_verifies_and_says_what_is_not_in_it(world: World, tmp_path: Path, first: int) -> None:
    named = {
        json.loads(record)["digest"]
        for leaf, (_, record) in zip(world.leaves[first:], world.records[first:], strict=True)
        if leaf.kind == "attestation"
    }
    kept = [e for e in world.attestations if hashlib.sha256(dsse.Envelope.from_json(e).payload).hexdigest() in named]
    world.build(tmp_path / "a.zip", first=first, attestations=kept)
    report = verify.verify_archive(tmp_path / "a.zip", world.trust)
    assert report.first == first
    assert any(f"Entries before {first}" in limit for limit in report.limits)
    assert any("before the first entry" in limit for limit in report.limits) == (first == 1)


def test_erased_records_are_allowed_counted_and_said(world: World, tmp_path: Path) -> None:
    world.erased = {0, 3}
    built = world.build(tmp_path / "a.zip")
    report = verify.verify_archive(tmp_path / "a.zip", world.trust)
    assert built.erased == report.counts["erased"] == 2
    assert any("2 records are erased" in limit for limit in report.limits)
    assert any("decisions whose records are erased" in limit for limit in report.limits)
    assert report.isolation.answer == "holds"  # They were the tenant's own.


def test_an_erased_decision_of_another_tenant_makes_the_answer_unknown(world: World, tmp_path: Path) -> None:
    world.erased = {world.attempt()}
    world.build(tmp_path / "a.zip")
    assert verify.verify_archive(tmp_path / "a.zip", world.trust).isolation.answer == "unknown"


def test_an_allow_for_another_tenant_breaks_isolation(world: World, tmp_path: Path) -> None:
    world.attempt("allow")
    world.build(tmp_path / "a.zip")
    report = verify.verify_archive(tmp_path / "a.zip", world.trust)
    assert report.isolation.answer == "broken"
    assert "is broken on record: 1 allowed" in report.isolation.sentence()


def test_an_allow_on_what_is_another_tenants_breaks_isolation(world: World, tmp_path: Path) -> None:
    world.decide("allow", "dataset.read", resource={"type": "Dataset", "id": "lakeside/claims"})
    world.build(tmp_path / "a.zip")
    assert verify.verify_archive(tmp_path / "a.zip", world.trust).isolation.outward == 1


def test_the_operators_log_holds_what_they_did_to_others_and_breaks_no_isolation() -> None:
    own = Leaf("decision", 1, "platform", "northbank", "0" * 64)
    record = {"decision": "allow", "action": "tenant.suspend", "resource": {"type": "Tenant", "id": "northbank"}}
    assert isolation.isolation("platform", [(own, record)]).answer == "holds"
    assert isolation.isolation("northbank", [(dataclasses.replace(own, actor="northbank"), record)]).answer == "holds"
    foreign = record | {"resource": {"type": "Tenant", "id": "lakeside"}}
    assert isolation.isolation("northbank", [(dataclasses.replace(own, actor="northbank"), foreign)]).answer == "broken"


def test_an_entry_of_another_tenant_that_is_no_decision_makes_the_answer_unknown() -> None:
    entry = Leaf("operation", 1, "lakeside", "northbank", "0" * 64)
    assert isolation.isolation("northbank", [(entry, {})]).answer == "unknown"


def test_a_signed_isolation_answer_must_be_the_computed_one(world: World, tmp_path: Path) -> None:
    def sign(predicate: dict[str, Any]) -> bytes:
        claim = statement.Statement((statement.Subject("log", "1" * 64),), statement.ISOLATION, predicate)
        return bytes(world.sign_export(claim.to_bytes()))

    true = world.isolation().to_predicate()
    world.build(tmp_path / "a.zip", isolation=sign(true))
    verify.verify_archive(tmp_path / "a.zip", world.trust)
    world.build(tmp_path / "b.zip", isolation=sign(true | {"foreign": {}}))
    with pytest.raises(VerificationError) as caught:
        verify.verify_archive(tmp_path / "b.zip", world.trust)
    assert (caught.value.step, caught.value.where) == ("11. isolation", "isolation.dsse.json")


def test_replay_is_given_every_decision_with_its_facts_and_bundle(world: World, tmp_path: Path) -> None:
    world.build(tmp_path / "a.zip")
    seen: list[tuple[str, int]] = []

    def replay(record: Mapping[str, Any], facts: list[Mapping[str, Any]], bundle: Mapping[str, Any]) -> None:
        assert facts[0]["uid"] == {"type": "Dataset", "id": "northbank/hmda"}
        assert bundle["v"] == 1
        seen.append((record["action"], len(facts)))

    report = verify.verify_archive(tmp_path / "a.zip", world.trust, replay=replay)
    assert report.steps[-1].name == "replay"
    assert report.counts["replayed"] == len(seen) == 3

    def refuse(record: Mapping[str, Any], *_: object) -> None:
        if record["action"] == "model.promote":
            raise RuntimeError("allow, not deny")

    with pytest.raises(VerificationError, match="does not come out the same: allow, not deny") as caught:
        verify.verify_archive(tmp_path / "a.zip", world.trust, replay=refuse)
    assert (caught.value.step, caught.value.where) == ("12. replay", "records/3.json")


def test_the_builder_refuses_inputs_that_would_not_verify(world: World) -> None:
    rows = list(world.record_rows())
    for changes, message in (
        ({"leaves": world.leaves[:-1]}, "do not lead to the checkpoint"),
        ({"leaves": [world.leaves[1], world.leaves[0], *world.leaves[2:]]}, "do not lead to the checkpoint"),
        ({"records": rows[:-1]}, "records end at"),
        ({"records": []}, "records end at"),
        ({"records": rows[1:]}, "0 was due"),
        ({"records": [*rows, (len(rows), None, None)]}, "was due"),
        ({"origin": "licet.example/log/lakeside"}, "do not lead to the checkpoint"),
    ):
        with pytest.raises(FormatError, match=message):
            world.build(io.BytesIO(), **changes)
    with pytest.raises(VerificationError, match="commits to"):
        world.build(io.BytesIO(), records=[(0, bytes(32), rows[0][2]), *rows[1:]])


def test_a_failed_build_leaves_nothing_behind(world: World, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"before")
    with pytest.raises(FormatError):
        world.build(tmp_path / "a.zip", records=[])
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]
    assert (tmp_path / "a.zip").read_bytes() == b"before"


class TestCommand:
    @pytest.fixture
    def arguments(self, world: World, tmp_path: Path) -> list[str]:
        world.build(tmp_path / "a.zip")
        (tmp_path / "root.json").write_bytes(world.trust.to_json())
        return [str(tmp_path / "a.zip"), "--trust-root", str(tmp_path / "root.json")]

    def test_verified_is_0(self, arguments: list[str]) -> None:
        done = CliRunner().invoke(verify_command, arguments)
        assert done.exit_code == 0
        for number, (name, _) in enumerate(verify.STEPS[:-1], start=1):
            assert f"{number:2}. {name:<10}  ok" in done.output
        assert "no decision let another tenant touch anything of 'northbank'" in done.output
        assert "What this does not prove:" in done.output

    def test_not_verified_is_1_and_names_step_and_file(self, arguments: list[str], tmp_path: Path) -> None:
        data = bytearray((tmp_path / "a.zip").read_bytes())
        at = data.index(b"northbank/ana")
        data[at] ^= 1
        (tmp_path / "a.zip").write_bytes(data)
        done = CliRunner().invoke(verify_command, arguments)
        assert done.exit_code == 1
        assert "NOT verified, at step 2. manifest, in records/0.json" in done.output
        done = CliRunner().invoke(verify_command, [*arguments, "--format", "json"])
        assert json.loads(done.output)["step"] == "2. manifest"
        assert json.loads(done.output)["where"] == "records/0.json"

    def test_json_is_one_object(self, arguments: list[str]) -> None:
        done = CliRunner().invoke(verify_command, [*arguments, "--format", "json", "--tenant", "northbank"])
        assert done.exit_code == 0
        assert json.loads(done.output)["isolation"]["answer"] == "holds"

    def test_another_tenants_archive_is_not_what_was_asked_for(self, arguments: list[str]) -> None:
        done = CliRunner().invoke(verify_command, [*arguments, "--tenant", "lakeside"])
        assert done.exit_code == 1
        assert "3. checkpoint" in done.output

    def test_what_cannot_run_is_2(self, arguments: list[str], tmp_path: Path) -> None:
        assert CliRunner().invoke(verify_command, [arguments[0]]).exit_code == 2
        assert CliRunner().invoke(verify_command, ["/nowhere.zip", *arguments[1:]]).exit_code == 2
        assert CliRunner().invoke(verify_command, [*arguments, "--replay", "no.such:thing"]).exit_code == 2
        assert CliRunner().invoke(verify_command, [*arguments, "--replay", "json"]).exit_code == 2
        (tmp_path / "root.json").write_text("{}")
        assert CliRunner().invoke(verify_command, arguments).exit_code == 2

    def test_a_replay_is_imported_by_name(self, arguments: list[str]) -> None:
        done = CliRunner().invoke(verify_command, [*arguments, "--replay", "builtins:print"])
        assert done.exit_code == 0
        assert "12. replay      ok" in done.output

    def test_it_runs_as_a_module(self, arguments: list[str]) -> None:
        command = [sys.executable, "-m", "licet_attestations", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr


def test_an_auditor_imports_little_and_quickly() -> None:
    program = (
        "import sys, time; start = time.perf_counter(); import licet_attestations.verify; "
        "took = time.perf_counter() - start; "
        "heavy = {'torch', 'litestar', 'cedarpy', 'licet_engine', 'licet_adapters', 'licet_policies', 'sqlmodel'}; "
        "print(took, sorted(heavy & set(sys.modules)))"
    )
    runs = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
        seconds, _, heavy = done.stdout.strip().partition(" ")
        assert heavy == "[]"
        runs.append(float(seconds))
    assert min(runs) < 0.3


def test_many_files_use_the_large_directory_and_still_verify_in_form(tmp_path: Path) -> None:

    path = tmp_path / "large.zip"
    with path.open("w+b") as stream:
        writer = ArchiveWriter(stream)
        for name in sorted(REQUIRED):
            writer.add(name, b"x")
        for index in range(65_536):
            writer.add(f"records/{index}.json", b"")
        writer.finish()
    with Archive(path) as archive:
        assert len(archive.members) == 65_536 + len(REQUIRED)
    with zipfile.ZipFile(path) as theirs:
        assert len(theirs.namelist()) == 65_536 + len(REQUIRED)


def test_packing_again_gives_the_same_answer(world: World, pack: Callable[..., Path]) -> None:
    path = pack(world.files(), remanifest=False)
    verify.verify_archive(path, world.trust)


def test_an_archive_wants_the_quorum_of_the_callers_policy(world: World, tmp_path: Path) -> None:
    path = tmp_path / "northbank.evidence.zip"
    world.build(path)
    witness = VerifierKey("w.example", COSIGNER_KIND, PrivateKey.generate(ED25519).public)
    wanted = Policy.from_bytes(f"witness W {witness.to_text()}\nquorum W\n".encode())
    with pytest.raises(VerificationError, match="cosigned by nobody") as found:
        verify.verify_archive(path, world.trust, policy=wanted)
    assert (found.value.step, found.value.where) == ("3. checkpoint", "checkpoint.txt")
    origin = world.trust.origin("northbank")
    (key,) = world.trust.keys("log")
    ours = VerifierKey(origin, LOG_KIND, key).to_text()
    other = VerifierKey("else/northbank", LOG_KIND, key).to_text()
    report = verify.verify_archive(path, world.trust, policy=Policy.from_bytes(f"log {ours}\nquorum none\n".encode()))
    assert not any("--tlog-policy" in limit for limit in report.limits)
    assert any("--tlog-policy" in limit for limit in verify.verify_archive(path, world.trust).limits)
    with pytest.raises(VerificationError, match="trusts no log"):
        verify.verify_archive(path, world.trust, policy=Policy.from_bytes(f"log {other}\nquorum none\n".encode()))
