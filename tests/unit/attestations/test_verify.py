"""The verifier on what is whole, and on the ways an archive can be honest and yet incomplete."""

import dataclasses
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from archives import MemoryLog, digest_of, read_files
from licet_attestations import dsse, evidence, isolation, verify
from licet_attestations.__main__ import verify_command
from licet_attestations.archive import REQUIRED, Archive, ArchiveWriter
from licet_attestations.errors import ErasedSince, FormatError, VerificationError
from licet_attestations.keys import ED25519, PrivateKey
from licet_attestations.leaf import Leaf
from licet_attestations.tlogpolicy import Policy
from licet_attestations.vkey import COSIGNER_KIND, LOG_KIND, VerifierKey


def answer_of(tenant: str, leaf: Leaf, record: Mapping[str, Any]) -> isolation.Isolation:
    count = isolation.IsolationCount(tenant)
    count.take(leaf, record)
    return count.answer()


World = Any
"""The log that conftest makes; test folders are no packages to import it from."""


def test_a_whole_archive_verifies_and_every_step_is_reported(world: World, tmp_path: Path) -> None:
    path = tmp_path / "northbank.evidence.zip"
    built = world.build(path)
    report = verify.verify_archive(path, world.trust, expected_tenant="northbank")
    assert [s.name for s in report.steps] == [step.name for step in verify.STEPS[:-2]]
    assert (report.tenant, report.first, report.size) == ("northbank", 0, len(world.leaves))
    assert (built.first, built.size, built.erased) == (0, len(world.leaves), 0)
    # Counted from 0, the last one is one below the size.
    assert any(f"entries 0 to {len(world.leaves) - 1}, root" in step.detail for step in report.steps)
    assert "from the log's beginning to the checkpoint" in report.steps[4].detail
    assert report.counts["allow"] == 1
    assert report.counts["deny"] == 2
    assert report.counts["attestations"] == 3
    assert report.counts["warrants"] == 1
    assert report.isolation.answer == "holds"
    assert dict(report.isolation.foreign) == {"lakeside": {"deny": 1}}
    assert dict(report.isolation.operators) == {"tenant.suspend": {"allow": 1}}
    assert any("not evaluated again" in limit for limit in report.limits)
    assert json.loads(json.dumps(report.to_dict()))["verified"] is True
    assert not list(tmp_path.glob("*.part"))


def test_the_steps_in_the_comment_are_the_steps_that_run() -> None:
    documented = [line.split()[1] for line in (verify.__doc__ or "").splitlines() if line[:3].strip(" .").isdigit()]
    assert documented == [step.name for step in verify.STEPS]


def test_the_documentation_lists_the_steps_that_run() -> None:
    documented = (Path(__file__).parents[3] / "docs" / "formats.md").read_text()
    for number, step in enumerate(verify.STEPS, start=1):
        assert f"\n| {number}. {step.name} | " in documented


def test_the_archive_is_deterministic_but_for_its_signatures(world: World, tmp_path: Path) -> None:
    first, second = tmp_path / "a.zip", tmp_path / "b.zip"
    note, envelope = world.note(), world.sign_export(b"{}")
    world.build(first, checkpoint_note=note, sign_export=lambda _claim: envelope)
    world.build(second, checkpoint_note=note, sign_export=lambda _claim: envelope)
    assert first.read_bytes() == second.read_bytes()


def test_any_unzip_program_can_read_it(world: World, tmp_path: Path) -> None:
    world.build(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "out")
    assert (tmp_path / "out" / "records" / "000000000000.jsonl").is_file()
    with Archive(tmp_path / "a.zip") as ours:
        assert {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")} >= set(
            ours.members
        )


def test_an_empty_log_verifies(empty_world: World, tmp_path: Path) -> None:
    empty_world.build(tmp_path / "a.zip")
    report = verify.verify_archive(tmp_path / "a.zip", empty_world.trust)
    assert report.size == 0
    assert report.isolation.answer == "holds"


@pytest.mark.parametrize(("first", "end"), [(1, 9), (3, 9), (4, 7), (7, 8), (0, 5), (5, 5), (0, 0), (9, 9)])
def test_a_window_verifies_and_says_what_is_not_in_it(world: World, tmp_path: Path, first: int, end: int) -> None:
    built = world.build(tmp_path / "a.zip", first=first, end=end)
    report = verify.verify_archive(tmp_path / "a.zip", world.trust)
    assert (report.first, report.end, report.size) == (built.first, built.end, built.size) == (first, end, 9)
    assert any(f"Entries before {first}" in limit for limit in report.limits) == (first > 0)
    assert any(f"Entries from {end} on" in limit for limit in report.limits) == (end < 9)
    assert report.from_ms == (world.leaves[first - 1].time_ms + 1 if first else None)
    assert sum(report.counts.get(kind, 0) for kind in ("decision", "attempt", "attestation", "hold")) == end - first


def test_archives_of_one_window_after_another_join(world: World, tmp_path: Path) -> None:
    first, second = (world.files(tmp_path, first=first, end=end) for first, end in ((0, 4), (4, 9)))
    ends, begins = (json.loads(files["log/range.json"]) for files in (first, second))
    assert ends["frontier_end"] == begins["frontier_first"]
    assert ends["end"] == begins["first"]


def test_a_warrant_is_verified_with_its_decision_from_before_the_window(world: World, tmp_path: Path) -> None:
    world.build(tmp_path / "a.zip", first=1, end=4)
    report = verify.verify_archive(tmp_path / "a.zip", world.trust)
    assert report.counts["warrants"] == 1
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        before, after = archive.read("log/outside.jsonl").splitlines()
    assert json.loads(before)["record"]["decision"] == "allow"
    assert json.loads(after)["record"] is None, "it only shows what time it was"


def test_policies_that_were_proved_to_keep_tenants_apart_are_told_with_the_attestation(
    world: World, tmp_path: Path
) -> None:
    (bundle_hex,) = world.bundles
    world.build(tmp_path / "a.zip")
    report = verify.verify_archive(tmp_path / "a.zip", world.trust)
    assert report.policies == {bundle_hex: ""}
    assert any("Of 1 policy bundles nothing here says that they were proved" in limit for limit in report.limits)
    for untold in ({"proofs": {}}, {"proofs": {"invariant.isolation.resources": "unknown"}}, {"proofs": "proved"}):
        world.examine(**untold)
    digest_hex = digest_of(dsse.Envelope.from_json(world.examine()).payload)
    index = len(world.leaves) - 1
    for _ in range(3):
        world.decide("deny", "dataset.read")
    # Of the whole log, of what was before it was examined, and of what was after.
    for first, end in ((0, index + 4), (0, 5), (index + 2, index + 4)):
        world.build(tmp_path / "b.zip", first=first, end=end)
        report = verify.verify_archive(tmp_path / "b.zip", world.trust)
        assert report.policies == {bundle_hex: digest_hex}
        assert not any("proved" in limit for limit in report.limits)
        assert next(step.detail for step in report.steps if step.name == "policies") == "1 bundles, 1 of them proved"


def test_of_several_attestations_about_the_same_policies_the_newest_counts(world: World, tmp_path: Path) -> None:
    (bundle_hex,) = world.bundles
    refuted = {"proofs": {"invariant.isolation.resources": "refuted"}}
    world.examine(number=1)
    world.examine(number=2, **refuted)
    world.examine(number=3, proofs={"invariant.isolation.resources": "unknown"})  # It takes nothing back.
    index = len(world.leaves) - 1
    for _ in range(3):
        world.decide("deny", "dataset.read")
    # Of the whole log, and of what stands before and behind: there they are outside of it.
    for first, end in ((0, index + 4), (0, 5), (index + 2, index + 4)):
        world.build(tmp_path / "a.zip", first=first, end=end)
        report = verify.verify_archive(tmp_path / "a.zip", world.trust)
        assert report.policies == {bundle_hex: ""}
        (limit,) = (limit for limit in report.limits if "policy bundles" in limit)
        assert (
            limit
            == f"Of 1 policy bundles it is attested that they were found to allow something across tenants: {bundle_hex[:16]}."
        )
    digest_hex = digest_of(dsse.Envelope.from_json(world.examine(number=4)).payload)
    world.build(tmp_path / "b.zip")
    assert verify.verify_archive(tmp_path / "b.zip", world.trust).policies == {bundle_hex: digest_hex}


def test_what_is_logged_at_the_same_time_is_all_in_the_window_or_all_out(world: World, tmp_path: Path) -> None:
    at_ms = world.now_ms
    for number in range(4):
        world.append("hold", {"v": 1, "type": "hold", "number": number}, time_ms=at_ms)
    world.build(tmp_path / "a.zip", first=9, window=world.window(9, 13, from_ms=at_ms))
    assert verify.verify_archive(tmp_path / "a.zip", world.trust).counts["hold"] == 4
    with pytest.raises(VerificationError, match="entry 10 belongs to the window"):
        world.build(tmp_path / "b.zip", window=world.window(11, 13, from_ms=at_ms))


class Cut(Exception):
    """The process ends."""


class TestGoingOn:
    """An export that was cut off is gone on with where it was."""

    def cut(self, world: Any, path: Path, at: int) -> None:
        """Build until some entries are written, and end there."""

        def progress(done: int, _count: int) -> None:
            if done >= at:
                raise Cut

        with pytest.raises(Cut):
            world.build(path, progress=progress)

    def test_it_becomes_the_archive_that_it_would_have_become(self, long_world: Any, tmp_path: Path) -> None:
        note, envelope = long_world.note(), long_world.sign_export(b"{}")
        same: dict[str, Any] = {"checkpoint_note": note, "sign_export": lambda _claim: envelope}
        long_world.build(tmp_path / "whole.zip", **same)
        for at in (1, 1024, 2048, 2500):
            path = tmp_path / f"{at}.zip"

            def progress(done: int, _count: int, at: int = at) -> None:
                if done >= at:
                    raise Cut

            with pytest.raises(Cut):
                long_world.build(path, progress=progress, **same)
            assert not path.exists()
            begun = evidence.begun(path)
            assert begun is not None
            assert (begun[0].end, begun[1]) == (2500, note)
            long_world.asked.clear()
            long_world.build(path, **same)
            assert path.read_bytes() == (tmp_path / "whole.zip").read_bytes()
            # The chunk that was last is not taken for whole.
            assert min(long_world.asked) == {1: 0, 1024: 0, 2048: 1024, 2500: 2048}[at]
        assert not list(tmp_path.glob("*.part"))

    @pytest.mark.parametrize("damage", ["cut", "flip", "tail", "empty"])
    def test_what_was_half_written_is_written_anew(self, long_world: Any, tmp_path: Path, damage: str) -> None:
        path = tmp_path / "a.zip"
        self.cut(long_world, path, 2048)
        part = evidence.part_of(path)
        data = bytearray(part.read_bytes())
        match damage:
            case "cut":
                data = data[: len(data) // 2]
            case "flip":
                data[len(data) // 3] ^= 1
            case "tail":
                data += b"PK\x03\x04" + bytes(40)
            case "empty":
                data.clear()
        part.write_bytes(data)
        long_world.build(path)
        assert verify.verify_archive(path, long_world.trust).size == 2500

    def test_what_was_erased_meanwhile_is_not_given_out(self, long_world: Any, tmp_path: Path) -> None:
        path = tmp_path / "a.zip"
        self.cut(long_world, path, 2048)
        assert long_world.records[5][1] in evidence.part_of(path).read_bytes()
        size = len(long_world.leaves)
        try:
            long_world.erase(5)
            # The checkpoint that was begun under is from before: under that one, nothing shows that it was erased.
            begun, note = evidence.begun(path) or (None, "")
            assert begun is not None
            with pytest.raises(ErasedSince, match="entry 5"):
                long_world.build(path, window=begun, checkpoint_note=note)
            assert not path.exists()
            assert long_world.build(path).erased == 1
            assert long_world.records[5][1] not in path.read_bytes()
            assert verify.verify_archive(path, long_world.trust).counts["erased"] == 1
        finally:
            long_world.erased.clear()
            del long_world.leaves[size:], long_world.records[size:]

    def test_of_another_window_or_checkpoint_nothing_is_kept(self, long_world: Any, tmp_path: Path) -> None:
        path = tmp_path / "a.zip"
        self.cut(long_world, path, 2048)
        long_world.asked.clear()
        long_world.build(path, first=3)
        assert min(long_world.asked) == 2
        assert verify.verify_archive(path, long_world.trust).first == 3

    def test_where_nothing_was_begun_there_is_nothing_to_go_on_with(self, tmp_path: Path) -> None:
        assert evidence.begun(tmp_path / "a.zip") is None
        evidence.part_of(tmp_path / "b.zip").write_bytes(b"something else")
        assert evidence.begun(tmp_path / "b.zip") is None


def test_memory_is_bounded_and_progress_is_told(long_world: Any, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    long_world.build(tmp_path / "a.zip", progress=lambda *at: told.append(at))
    assert told == [(0, 2500), (1024, 2500), (2048, 2500), (2500, 2500)]
    told.clear()
    verify.verify_archive(tmp_path / "a.zip", long_world.trust, progress=lambda *at: told.append(at))
    assert told == [(0, 2500), (1024, 2500), (2048, 2500), (2500, 2500)]


def test_erased_records_are_allowed_counted_and_said(world: World, tmp_path: Path) -> None:
    world.erase(0, 3)
    built = world.build(tmp_path / "a.zip")
    report = verify.verify_archive(tmp_path / "a.zip", world.trust)
    assert built.erased == report.counts["erased"] == 2
    assert any("2 records are erased" in limit for limit in report.limits)
    assert any("decisions whose records are erased" in limit for limit in report.limits)
    assert report.isolation.answer == "holds"  # They were the tenant's own.


def test_what_is_erased_behind_the_window_is_shown_by_the_entry_that_erased_it(world: World, tmp_path: Path) -> None:
    world.log_warrant(world.make_warrant(0))
    end = len(world.leaves)
    world.append("hold", {"type": "hold"})
    world.erase(3)
    world.erase(0)  # Before the window, and a warrant in it stands on it.
    world.erase(end)  # No part of it.
    assert [leaf.kind for leaf in world.leaves[end:]] == ["hold", *["decision", "erasure"] * 3]
    built = world.build(tmp_path / "a.zip", first=1, end=end)
    assert built.erased == 1
    report = verify.verify_archive(tmp_path / "a.zip", world.trust)
    assert report.counts["erased"] == 1
    outside = [json.loads(line) for line in read_files(tmp_path / "a.zip")["log/outside.jsonl"].splitlines()]
    assert [each["index"] for each in outside] == [0, *range(end, end + 5)]


def test_an_erased_decision_of_another_tenant_makes_the_answer_unknown(world: World, tmp_path: Path) -> None:
    world.erase(world.attempt())
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
    assert answer_of("platform", own, record).answer == "holds"
    assert answer_of("northbank", dataclasses.replace(own, actor="northbank"), record).answer == "holds"
    foreign = record | {"resource": {"type": "Tenant", "id": "lakeside"}}
    assert answer_of("northbank", dataclasses.replace(own, actor="northbank"), foreign).answer == "broken"


def test_an_entry_of_another_tenant_that_is_no_decision_makes_the_answer_unknown() -> None:
    entry = Leaf("operation", 1, "lakeside", "northbank", "0" * 64)
    assert answer_of("northbank", entry, {}).answer == "unknown"


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
    assert (caught.value.step, caught.value.where) == ("15. replay", "records/000000000000.jsonl, entry 3")


def test_the_builder_refuses_what_would_not_verify(world: World, tmp_path: Path) -> None:
    out = tmp_path / "a.zip"
    whole = world.window()
    for window, message in (
        (world.window(0, 9, frontier_end=[]), "frontier behind the last entry"),
        (world.window(3, 9, frontier_first=[bytes(32)] * 2), "do not lead to the checkpoint"),
        (world.window(0, 5, consistency=[]), "do not lead to the checkpoint"),
        (world.window(0, 9, origin="licet.example/log/lakeside"), "the checkpoint is of"),
        (world.window(0, 9, from_ms=world.leaves[1].time_ms), "entry 0 is not of the time"),
    ):
        with pytest.raises((FormatError, VerificationError), match=message):
            world.build(out, window=window)
    with pytest.raises(FormatError, match="the checkpoint is of"):
        world.build(out, checkpoint_note=world.note(5))
    world.leaves[1], world.leaves[2] = world.leaves[2], world.leaves[1]
    with pytest.raises(VerificationError, match="commits to"):
        world.build(out, window=whole)
    assert not out.exists()


def test_the_builder_refuses_a_source_that_lacks_something(world: World, tmp_path: Path) -> None:
    for name in ("facts", "attestations"):
        kept = dict(getattr(world, name))
        getattr(world, name).clear()
        with pytest.raises(VerificationError, match="the source does not have it"):
            world.build(tmp_path / "a.zip")
        getattr(world, name).update(kept)

    class Short(MemoryLog):
        def entries(self, first: int, end: int) -> Iterator[evidence.Raw]:
            yield from super().entries(first, end - 1)

    short = Short(**{item.name: getattr(world, item.name) for item in dataclasses.fields(MemoryLog)})
    with pytest.raises(FormatError, match="entries end at 8, 9 are due"):
        short.build(tmp_path / "a.zip")


def test_an_archive_that_cannot_be_made_leaves_the_one_of_before(world: World, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"before")
    with pytest.raises(VerificationError):
        world.build(tmp_path / "a.zip", window=world.window(0, 5, consistency=[]))
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
        for number, step in enumerate(verify.STEPS[:-2], start=1):
            assert f"{number:2}. {step.name:<10}  ok" in done.output
        assert "no decision let another tenant touch anything of 'northbank'" in done.output
        assert "What this does not prove:" in done.output

    def test_not_verified_is_1_and_names_step_and_file(self, arguments: list[str], tmp_path: Path) -> None:
        data = bytearray((tmp_path / "a.zip").read_bytes())
        at = data.index(b"northbank/ana")
        data[at] ^= 1
        (tmp_path / "a.zip").write_bytes(data)
        done = CliRunner().invoke(verify_command, arguments)
        assert done.exit_code == 1
        assert "NOT verified, at step 2. manifest, in records/000000000000.jsonl" in done.output
        done = CliRunner().invoke(verify_command, [*arguments, "--format", "json"])
        assert json.loads(done.output)["step"] == "2. manifest"
        assert json.loads(done.output)["where"] == "records/000000000000.jsonl"

    def test_json_is_one_object(self, arguments: list[str]) -> None:
        done = CliRunner().invoke(verify_command, [*arguments, "--format", "json", "--tenant", "northbank"])
        assert done.exit_code == 0
        assert json.loads(done.output)["isolation"]["answer"] == "holds"

    def test_each_step_is_explained(self, arguments: list[str]) -> None:
        done = CliRunner().invoke(verify_command, [*arguments, "--explain"])
        assert done.exit_code == 0
        told = " ".join(done.output.split())
        for step in verify.STEPS[:-2]:
            assert step.shows in told

    def test_junit_is_what_a_ci_reads(self, arguments: list[str], tmp_path: Path) -> None:
        done = CliRunner().invoke(verify_command, [*arguments, "--format", "junit"])
        assert done.exit_code == 0
        suite = ET.fromstring(done.output).find("testsuite")  # noqa: S314  # Our own.
        assert suite is not None
        assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("15", "0", "2")
        (tmp_path / "a.zip").write_bytes(
            (tmp_path / "a.zip").read_bytes().replace(b"northbank/ana", b"northbank/eve", 1)
        )
        done = CliRunner().invoke(verify_command, [*arguments, "--format", "junit"])
        assert done.exit_code == 1
        suite = ET.fromstring(done.output).find("testsuite")  # noqa: S314  # Our own.
        assert suite is not None
        (failed,) = suite.iter("failure")
        assert "in records/000000000000.jsonl" in str(failed.get("message"))
        assert [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None] == [
            "2. manifest"
        ]
        assert (suite.get("failures"), suite.get("skipped")) == ("1", "13")

    def test_what_comes_out_of_an_archive_does_not_reach_the_terminal(self, world: World, tmp_path: Path) -> None:
        world.decide("deny", "dataset.read", principal="northbank/\x1b[2Jeve", tenant="\x1b]0;hi\x07")
        world.build(tmp_path / "b.zip")
        (tmp_path / "root.json").write_bytes(world.trust.to_json())
        for format_ in ("text", "junit"):
            arguments = [str(tmp_path / "b.zip"), "--trust-root", str(tmp_path / "root.json"), "--format", format_]
            done = CliRunner().invoke(verify_command, arguments)
            assert done.exit_code == 1
            assert not {"\x1b", "\x07"} & set(done.output)

    def test_a_single_attestation_does_not_pass_for_an_archive(
        self, world: World, arguments: list[str], tmp_path: Path
    ) -> None:
        name = VerifierKey("w.example", COSIGNER_KIND, PrivateKey.generate(ED25519).public).to_text()
        (tmp_path / "policy").write_text(f"witness W {name}\nquorum W\n")
        (tmp_path / "a.zip").write_bytes(next(reversed(world.attestations.values())))
        for more in (
            ["--tlog-policy", str(tmp_path / "policy")],
            ["--replay", "builtins:print"],
            ["--format", "junit"],
        ):
            done = CliRunner().invoke(verify_command, [*arguments, *more])
            assert (done.exit_code, "single attestation and no archive" in done.output) == (1, True), more

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
        assert "15. replay      ok" in done.output

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
            writer.add(f"records/{index:012d}.jsonl", b"")
        writer.finish()
    with Archive(path) as archive:
        assert len(archive.members) == 65_536 + len(REQUIRED)
    with zipfile.ZipFile(path) as theirs:
        assert len(theirs.namelist()) == 65_536 + len(REQUIRED)


def test_packing_again_gives_the_same_answer(world: World, pack: Callable[..., Path], tmp_path: Path) -> None:
    path = pack(world.files(tmp_path), remanifest=False)
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
