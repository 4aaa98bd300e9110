"""Archives made to deceive: each is refused, at the step that is there for it, naming the file.

A mutant that only changes bytes falls to the manifest (step 2). To test a deeper step, the forger here makes the manifest fit,
and where it takes keys, holds the right ones.
"""

import dataclasses
import hashlib
import io
import json
import os
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from licet_attestations import canonical, dsse, statement
from licet_attestations.errors import VerificationError
from licet_attestations.keys import P256, PrivateKey
from licet_attestations.tlogproof import TlogProof
from licet_attestations.verify import verify_archive

World = Any
Pack = Callable[..., Path]
TENANT = "northbank"
ANA = {"type": "Person", "id": "northbank/ana"}


def refused(path: Path, world: World, step: str, where: str = "") -> str:
    with pytest.raises(VerificationError) as caught:
        verify_archive(path, world.trust)
    assert caught.value.step == step, f"{caught.value.step}: {caught.value}"
    assert where in (caught.value.where or ""), caught.value.where
    return str(caught.value)


@pytest.fixture
def whole(world: World, tmp_path: Path) -> Path:
    world.build(tmp_path / "whole.zip", isolation=_isolation(world))
    verify_archive(tmp_path / "whole.zip", world.trust)
    return tmp_path / "whole.zip"


def _isolation(world: World) -> bytes:
    predicate = world.isolation().to_predicate()
    claim = statement.Statement((statement.Subject("log", "1" * 64),), statement.ISOLATION, predicate)
    return bytes(world.sign_export(claim.to_bytes()))


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    """The files as another program would zip them."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return path


def edited(data: bytes, **changes: Any) -> bytes:
    return canonical.dumps(canonical.loads(data) | changes)


class TestForm:
    def test_any_one_byte_changed_anywhere_is_refused(self, whole: Path, world: World) -> None:
        data = whole.read_bytes()
        for at in range(0, len(data), max(1, len(data) // 400)):
            mutant = bytearray(data)
            mutant[at] ^= 1 << (at % 8)
            whole.write_bytes(mutant)
            with pytest.raises(VerificationError) as caught:
                verify_archive(whole, world.trust)
            assert caught.value.step in ("1. form", "2. manifest"), f"byte {at}: {caught.value.step}"

    def test_every_byte_of_the_directory_counts(self, whole: Path, world: World) -> None:
        data = whole.read_bytes()
        directory = struct.unpack("<L", data[-6:-2])[0]
        for at in [*range(30), *range(directory, directory + 60), *range(len(data) - 80, len(data))]:
            mutant = bytearray(data)
            mutant[at] ^= 0x10
            whole.write_bytes(mutant)
            refused(whole, world, "1. form")

    @pytest.mark.parametrize("kept", [0, 10, 1000, -1, -30, -200])
    def test_truncated(self, whole: Path, world: World, kept: int) -> None:
        whole.write_bytes(whole.read_bytes()[:kept])
        refused(whole, world, "1. form")

    def test_bytes_before_after_and_between(self, whole: Path, world: World) -> None:
        data = whole.read_bytes()
        for mutant in (b"MZ" + data, data + b"\x00", data[:2000] + b"x" + data[2000:]):
            whole.write_bytes(mutant)
            refused(whole, world, "1. form")

    @pytest.mark.parametrize(
        "name",
        [
            "../../etc/cron.d/x",
            "/etc/passwd",
            "records/../../x",
            "..\\x",
            "extra.txt",
            "records/01.json",
            "facts/x.json",
        ],
    )
    def test_a_name_that_is_not_of_the_layout(self, world: World, tmp_path: Path, name: str) -> None:
        path = zipped(tmp_path / "a.zip", {name: b"x", **world.files()})
        message = refused(path, world, "1. form", ascii(name).strip("'"))
        assert "not of its layout" in message

    def test_two_files_of_one_name(self, world: World, tmp_path: Path) -> None:
        files = world.files()
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(name), data)
            with pytest.warns(UserWarning, match="Duplicate name"):
                archive.writestr(zipfile.ZipInfo("records/0.json"), b"{}")
        (tmp_path / "a.zip").write_bytes(stream.getvalue())
        refused(tmp_path / "a.zip", world, "1. form")

    def test_two_identical_entries_of_the_right_form(self, whole: Path, world: World) -> None:
        """Two directory entries that share one file: what overlapping bombs are made of."""
        data = whole.read_bytes()
        offset = struct.unpack("<L", data[-6:-2])[0]
        name_bytes = struct.unpack("<H", data[offset + 28 : offset + 30])[0]
        entry = data[offset : offset + 46 + name_bytes]
        count, size = struct.unpack("<HL", data[-12:-6])
        end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count + 1, count + 1, size + len(entry), offset, 0)
        whole.write_bytes(data[:offset] + entry + data[offset:-22] + end)
        refused(whole, world, "1. form", "README.txt")

    def test_a_zip_bomb(self, world: World, tmp_path: Path) -> None:
        files = world.files() | {"records/999.json": bytes(50_000_000)}
        path = zipped(tmp_path / "a.zip", files, zipfile.ZIP_DEFLATED)
        assert path.stat().st_size < 1_000_000
        assert "compressed" in refused(path, world, "1. form")

    def test_a_symbolic_link_inside(self, world: World, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            link = zipfile.ZipInfo("README.txt")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, "/etc/passwd")
            for name, data in world.files().items():
                if name != "README.txt":
                    archive.writestr(zipfile.ZipInfo(name), data)
        refused(tmp_path / "a.zip", world, "1. form")

    def test_a_directory_that_claims_millions_of_files(self, whole: Path, world: World) -> None:
        data = whole.read_bytes()[:-22]
        end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 2**60, 2**60, 46, 0)
        locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(data), 1)
        end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 46, 0, 0)
        whole.write_bytes(data + end64 + locator + end)
        refused(whole, world, "1. form")

    def test_a_pipe_or_folder_in_place_of_a_file(self, world: World, tmp_path: Path) -> None:
        with pytest.raises(OSError, match="directory"):
            verify_archive(tmp_path, world.trust)
        refused(Path(os.devnull), world, "1. form")

    def test_a_required_file_left_out(self, world: World, pack: Pack) -> None:
        files = world.files()
        del files["checkpoint.txt"]
        refused(pack(files), world, "1. form", "checkpoint.txt")


class TestManifest:
    KINDS = (
        "README.txt",
        "checkpoint.txt",
        "log/leaves.jsonl",
        "log/range.json",
        "records/0.json",
        "facts/",
        "bundles/",
        "attestations/",
        "manifest.json",
        "isolation.dsse.json",
        "statement.dsse.json",
    )

    @pytest.mark.parametrize("kind", KINDS)
    def test_one_byte_flipped_in_each_kind_of_file(self, whole: Path, world: World, kind: str) -> None:
        with zipfile.ZipFile(whole) as archive:
            info = next(i for i in archive.infolist() if i.filename.startswith(kind))
        data = bytearray(whole.read_bytes())
        data[info.header_offset + 30 + len(info.filename) + info.file_size // 2] ^= 1
        whole.write_bytes(data)
        refused(whole, world, "2. manifest", info.filename)

    def test_a_file_more_or_fewer_than_in_the_manifest(self, world: World, pack: Pack) -> None:
        files = world.files()
        refused(pack(files | {"records/999.json": b"{}"}, remanifest=False), world, "2. manifest", "records/999.json")
        del files["records/3.json"]
        refused(pack(files, remanifest=False), world, "2. manifest", "records/3.json")

    def test_a_file_that_is_not_the_one_in_the_manifest_though_the_directory_fits_it(
        self, world: World, pack: Pack
    ) -> None:
        files = world.files() | {"README.txt": b"All is well.\n"}
        refused(pack(files, remanifest=False), world, "2. manifest", "README.txt")

    @pytest.mark.parametrize(
        "text",
        [
            b'{"files":{},"files":{},"tenant":"northbank","v":1}',
            b'{"files":{},"tenant":"northbank","v":1.0}',
            b'{"files":{},"tenant":"northbank","v":NaN}',
            b'{"files":[],"tenant":"northbank","v":1}',
            b"[" * 100_000,
            b"\xff\xfe",
            b"",
            b"null",
        ],
    )
    def test_a_manifest_that_is_not_strict_json(self, world: World, pack: Pack, text: bytes) -> None:
        refused(pack(world.files() | {"manifest.json": text}, remanifest=False), world, "2. manifest", "manifest.json")


class TestCheckpoint:
    def test_wholly_re_signed_with_other_keys(self, world: World, tmp_path: Path) -> None:
        """All is consistent but that the keys are the forger's: the trust root is pinned, so nothing helps."""
        forger = dataclasses.replace(
            world,
            log=PrivateKey.generate("ed25519"),
            attestation=PrivateKey.generate(P256),
            warrant=PrivateKey.generate(P256),
        )
        forger.build(tmp_path / "a.zip", attestations=world.attestations)
        refused(tmp_path / "a.zip", world, "3. checkpoint", "checkpoint.txt")

    def test_another_tenants_checkpoint(self, world: World, pack: Pack) -> None:
        files = world.files()
        files["log/range.json"] = edited(
            files["log/range.json"], tenant="lakeside", origin=world.trust.origin("lakeside")
        )
        refused(pack(files), world, "3. checkpoint", "log/range.json")
        other = world.trust.origin("lakeside")
        files["log/range.json"] = edited(world.files()["log/range.json"], origin=other)
        refused(pack(files), world, "3. checkpoint")

    def test_a_log_key_that_signs_by_another_origin(self, world: World, pack: Pack) -> None:
        files = world.files()
        note = files["checkpoint.txt"].decode()
        files["checkpoint.txt"] = note.replace("northbank", "southbank").encode()
        refused(pack(files), world, "3. checkpoint", "checkpoint.txt")

    @pytest.mark.parametrize(
        "changes",
        [
            {"first": -1},
            {"first": 10**9},
            {"frontier_first": ["00"]},
            {"erased": [10**6]},
            {"erased": "all"},
            {"more": 1},
        ],
    )
    def test_a_range_that_is_none(self, world: World, pack: Pack, changes: dict[str, Any]) -> None:
        files = world.files()
        files["log/range.json"] = edited(files["log/range.json"], **changes)
        refused(pack(files), world, "3. checkpoint", "log/range.json")


class TestLeaves:
    @pytest.mark.parametrize(
        "mutation", ["reorder", "drop", "drop-last", "repeat", "change", "add", "cut", "long", "spaces"]
    )
    def test_leaves_that_are_not_the_logs(self, world: World, pack: Pack, mutation: str) -> None:
        files = world.files()
        lines = files["log/leaves.jsonl"].splitlines(keepends=True)
        match mutation:
            case "reorder":
                lines[2], lines[3] = lines[3], lines[2]
            case "drop":
                del lines[3]
            case "drop-last":
                del lines[-1]
            case "repeat":
                lines.insert(3, lines[3])
            case "change":
                lines[4] = lines[4].replace(b'"actor":"lakeside"', b'"actor":"northbank"')
            case "add":
                lines.append(lines[-1])
            case "cut":
                lines[-1] = lines[-1][:-1]
            case "long":
                lines[-1] = b"x" * 5000
            case "spaces":
                lines[1] = lines[1].replace(b",", b", ")
        assert b"".join(lines) != files["log/leaves.jsonl"]
        files["log/leaves.jsonl"] = b"".join(lines)
        refused(pack(files), world, "4. leaves", "log/leaves.jsonl")

    def test_an_older_checkpoint_with_all_the_leaves(self, world: World, pack: Pack) -> None:
        files = world.files() | {"checkpoint.txt": world.note(5).encode()}
        refused(pack(files), world, "4. leaves", "log/leaves.jsonl")

    def test_a_frontier_that_hides_the_first_entries(self, world: World, pack: Pack) -> None:
        files = world.files()
        files["log/leaves.jsonl"] = b"".join(files["log/leaves.jsonl"].splitlines(keepends=True)[2:])
        files["log/range.json"] = edited(files["log/range.json"], first=2, frontier_first=["0" * 64])
        refused(pack(files), world, "4. leaves", "log/leaves.jsonl")


class TestRecords:
    def test_a_record_dropped_without_being_named_as_erased(self, world: World, pack: Pack) -> None:
        files = world.files()
        del files["records/3.json"]
        assert "not named as erased" in refused(pack(files), world, "5. records", "records/3.json")

    def test_a_record_dropped_and_named_as_erased_falls_to_the_signed_statement(self, world: World, pack: Pack) -> None:
        files = world.files()
        del files["records/3.json"]
        files["log/range.json"] = edited(files["log/range.json"], erased=[3])
        refused(pack(files), world, "10. export", "statement.dsse.json")

    def test_a_record_that_is_there_and_named_as_erased(self, world: World, pack: Pack) -> None:
        files = world.files()
        files["log/range.json"] = edited(files["log/range.json"], erased=[3])
        refused(pack(files), world, "5. records", "records/3.json")

    @pytest.mark.parametrize("mutation", ["record", "salt", "swap", "fields", "form"])
    def test_a_record_that_is_not_what_the_leaf_commits_to(self, world: World, pack: Pack, mutation: str) -> None:
        files = world.files()
        value = json.loads(files["records/3.json"])
        match mutation:
            case "record":
                value["record"]["decision"] = "allow"
            case "salt":
                value["salt"] = "0" * 64
            case "swap":
                value = json.loads(files["records/0.json"])
            case "fields":
                value["more"] = 1
        text = canonical.dumps(value)
        files["records/3.json"] = text + b" " if mutation == "form" else text
        refused(pack(files), world, "5. records", "records/3.json")

    def test_a_record_of_no_entry(self, world: World, pack: Pack) -> None:
        refused(pack(world.files() | {"records/999.json": b"{}"}), world, "5. records", "records/999.json")


class TestHeaders:
    def test_time_that_runs_backwards(self, world: World, tmp_path: Path) -> None:
        index = world.append("hold", {"type": "hold"}, time_ms=world.leaves[-1].time_ms - 1)
        world.build(tmp_path / "a.zip")
        refused(tmp_path / "a.zip", world, "6. headers", f"entry {index}")

    @pytest.mark.parametrize(
        ("kind", "record", "actor", "message"),
        [
            ("hold", {"type": "operation"}, TENANT, "the header says 'hold'"),
            ("attempt", {"decision": "deny"}, "lakeside", "no principal and no outcome"),
            ("attempt", {"principal": ANA}, TENANT, "no principal and no outcome"),
            ("operation", {"decision": "allow"}, TENANT, "is a decision"),
            ("operation", {"decision": "deny"}, TENANT, "is a decision"),
            ("decision", {"decision": "maybe", "principal": ANA}, TENANT, "no principal and no outcome"),
            ("decision", {"decision": "deny", "principal": ANA}, TENANT, "one of this tenant's own"),
            (
                "decision",
                {"decision": "allow", "principal": ANA, "tenant": TENANT},
                "lakeside",
                "one of this tenant's own",
            ),
            ("decision", {"tenant": "lakeside", "decision": "deny"}, TENANT, "of tenant 'lakeside'"),
            ("hold", {"time_ms": 2**52}, TENANT, "from after its entry"),
            ("hold", {"principal": {"type": "Person", "id": "lakeside/eve"}}, TENANT, "principal is of another tenant"),
        ],
    )
    def test_a_header_that_says_other_than_its_record(  # noqa: PLR0917  # pytest passes them by name.
        self, world: World, tmp_path: Path, kind: str, record: dict[str, Any], actor: str, message: str
    ) -> None:
        index = world.append(kind, record, actor=actor)
        world.build(tmp_path / "a.zip")
        assert message in refused(tmp_path / "a.zip", world, "6. headers", f"records/{index}.json")

    def test_an_allow_for_another_tenant_under_ones_own_name(self, world: World, tmp_path: Path) -> None:
        world.decide("allow", "dataset.read")
        record = json.loads(world.records[-1][1]) | {"principal": {"type": "Person", "id": "lakeside/eve"}}
        world.append("decision", record, actor=TENANT)
        world.build(tmp_path / "a.zip")
        refused(tmp_path / "a.zip", world, "6. headers")

    def test_an_entry_of_another_owner(self, world: World, tmp_path: Path) -> None:
        index = world.append("hold", {"type": "hold"}, actor="lakeside", owner="lakeside")
        world.build(tmp_path / "a.zip")
        refused(tmp_path / "a.zip", world, "6. headers", f"entry {index}")

    def test_a_log_key_that_was_retired_before_the_last_entry(self, world: World, whole: Path) -> None:
        world.retired_ms["log"] = world.leaves[-1].time_ms
        refused(whole, world, "6. headers", "checkpoint.txt")


class TestDecisions:
    @pytest.mark.parametrize("folder", ["facts", "bundles"])
    def test_a_fact_or_bundle_left_out_or_changed(self, world: World, pack: Pack, folder: str) -> None:
        files = world.files()
        name = next(n for n in files if n.startswith(f"{folder}/"))
        refused(pack(files | {name: b"{}"}), world, "7. decisions", name)
        del files[name]
        refused(pack(files), world, "7. decisions", name)

    @pytest.mark.parametrize("changes", [{"facts": "all"}, {"facts": ["../x"]}, {"bundle": None}, {"facts": None}])
    def test_a_decision_that_does_not_name_what_it_was_made_on(
        self, world: World, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        index = world.decide("deny", "dataset.read", **changes)
        world.build(tmp_path / "a.zip")
        refused(tmp_path / "a.zip", world, "7. decisions", f"records/{index}.json")


class TestSignatures:
    def test_an_attestation_by_a_key_for_another_purpose(self, world: World, tmp_path: Path) -> None:
        world.attest(statement.TEST_RESULT, {"tenant": TENANT}, key=world.warrant)
        world.build(tmp_path / "a.zip")
        refused(tmp_path / "a.zip", world, "8. signatures", "attestations/")

    def test_a_warrant_by_an_attestation_key(self, world: World, tmp_path: Path) -> None:
        world.log_warrant(world.make_warrant(0), key=world.attestation)
        world.build(tmp_path / "a.zip")
        refused(tmp_path / "a.zip", world, "8. signatures", "attestations/")

    def test_an_attestation_by_a_key_retired_before_it_was_logged(self, world: World, whole: Path) -> None:
        world.retired_ms["attestation"] = world.leaves[2].time_ms
        refused(whole, world, "8. signatures", "attestations/")

    def test_an_attestation_that_the_log_does_not_name(self, world: World, tmp_path: Path) -> None:
        claim = statement.Statement((statement.Subject("it", "3" * 64),), statement.TEST_RESULT, {"tenant": TENANT})
        slipped_in = world.sign_export(claim.to_bytes())
        world.build(tmp_path / "a.zip", attestations=[*world.attestations, slipped_in])
        assert "no entry of the log" in refused(tmp_path / "a.zip", world, "8. signatures", "attestations/")

    def test_an_attestation_that_the_log_names_left_out(self, world: World, tmp_path: Path) -> None:
        world.build(tmp_path / "a.zip", attestations=world.attestations[:-1])
        assert "not there" in refused(tmp_path / "a.zip", world, "8. signatures", "attestations/")

    def test_an_attestation_replaced_by_another_genuine_one(self, world: World, pack: Pack) -> None:
        files = world.files()
        first, second = [n for n in files if n.startswith("attestations/")][1:3]
        files[first] = files[second]
        refused(pack(files), world, "8. signatures", first)

    def test_an_attestation_logged_as_of_another_type(self, world: World, tmp_path: Path) -> None:
        claim = statement.Statement((statement.Subject("it", "3" * 64),), statement.TEST_RESULT, {"tenant": TENANT})
        world.log_attestation(world.sign_export(claim.to_bytes()), statement.SLSA_VSA)
        world.build(tmp_path / "a.zip")
        refused(tmp_path / "a.zip", world, "8. signatures", "attestations/")

    def test_an_attestation_about_another_tenant(self, world: World, tmp_path: Path) -> None:
        world.attest(statement.TEST_RESULT, {"tenant": "lakeside"})
        world.build(tmp_path / "a.zip")
        refused(tmp_path / "a.zip", world, "8. signatures", "attestations/")

    def test_an_envelope_with_a_second_spelling(self, world: World, pack: Pack) -> None:
        files = world.files()
        name = next(n for n in files if n.startswith("attestations/"))
        files[name] = json.dumps(json.loads(files[name])).encode()
        refused(pack(files), world, "8. signatures", name)


class TestWarrants:
    @pytest.mark.parametrize(
        "changes",
        [
            {"operation": "objects.delete"},
            {"action": "dataset.delete", "operation": "objects.delete"},
            {"operation_id": "op2"},
            {"parameters_digest_hex": "0" * 64},
            {"principal": "Person::northbank/bob"},
            {"issued_at_ms": 1_700_000_100_000, "expires_at_ms": 1_700_000_100_001},
            {"tenant": "lakeside"},
        ],
    )
    def test_a_warrant_that_permits_what_was_not_decided(
        self, world: World, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        """Made with the real warrant key: what a compromised signer could do shows."""
        envelope = world.log_warrant(world.make_warrant(0, **changes))
        world.build(tmp_path / "a.zip")
        name = hashlib.sha256(dsse.Envelope.from_json(envelope).payload).hexdigest()
        step = "8. signatures" if "tenant" in changes else "9. warrants"
        refused(tmp_path / "a.zip", world, step, name)

    def test_a_warrant_on_a_deny(self, world: World, tmp_path: Path) -> None:
        index = world.decide("deny", "training.launch")
        world.log_warrant(world.make_warrant(index))
        world.build(tmp_path / "a.zip")
        assert "deny" in refused(tmp_path / "a.zip", world, "9. warrants", "attestations/")

    def test_a_warrant_on_an_entry_that_is_no_decision(self, world: World, tmp_path: Path) -> None:
        index = next(i for i, leaf in enumerate(world.leaves) if leaf.kind == "hold")
        fields = {"leaf": world.leaves[index].to_bytes().decode(), "log_proof": world.proof(index)}
        decision = dataclasses.replace(world.make_warrant(0).decision, leaf_index=index)
        world.log_warrant(world.make_warrant(0, decision=decision, **fields))
        world.build(tmp_path / "a.zip")
        refused(tmp_path / "a.zip", world, "9. warrants", "attestations/")

    def test_a_warrant_whose_proof_is_of_another_log(self, world: World, tmp_path: Path) -> None:
        other = dataclasses.replace(world, log=PrivateKey.generate("ed25519"))
        world.log_warrant(world.make_warrant(0, log_proof=other.proof(0)))
        world.build(tmp_path / "a.zip")
        refused(tmp_path / "a.zip", world, "9. warrants", "attestations/")

    def test_a_warrant_whose_proof_is_of_a_fork_of_this_log(self, world: World, tmp_path: Path) -> None:
        """The log key signed a fork: the warrant's own proof holds, and yet it is not this log."""
        fork = dataclasses.replace(world, leaves=[], records=[], attestations=[])
        fork.decide("allow", "training.launch", id="forked")
        fork.decide("deny", "training.launch")
        world.log_warrant(fork.make_warrant(0))
        world.build(tmp_path / "a.zip")
        assert "not entry 0 of this log" in refused(tmp_path / "a.zip", world, "9. warrants", "attestations/")

    def test_a_proof_with_a_stretched_path(self, world: World, tmp_path: Path) -> None:
        proof = TlogProof.from_text(world.proof(0))
        stretched = dataclasses.replace(proof, path=(*proof.path, bytes(32)))
        world.log_warrant(world.make_warrant(0, log_proof=stretched.to_text()))
        world.build(tmp_path / "a.zip")
        refused(tmp_path / "a.zip", world, "9. warrants", "attestations/")


class TestExport:
    def test_a_manifest_that_nobody_signed(self, world: World, pack: Pack) -> None:
        files = world.files() | {"README.txt": b"All is well.\n"}
        assert "another manifest" in refused(pack(files), world, "10. export", "statement.dsse.json")

    def test_a_statement_signed_by_another_key(self, world: World, tmp_path: Path) -> None:
        other = dataclasses.replace(world, attestation=PrivateKey.generate(P256))
        world.build(tmp_path / "a.zip", sign_export=other.sign_export)
        refused(tmp_path / "a.zip", world, "10. export", "statement.dsse.json")

    @pytest.mark.parametrize(
        "changes", [{"size": 3}, {"tenant": "lakeside"}, {"erased": 1}, {"root": "0" * 64}, {"first": 1}]
    )
    def test_a_statement_about_another_range(self, world: World, tmp_path: Path, changes: dict[str, Any]) -> None:
        def sign(claim: bytes) -> bytes:
            value = canonical.loads(claim)
            return bytes(world.sign_export(edited(claim, predicate=value["predicate"] | changes)))

        world.build(tmp_path / "a.zip", sign_export=sign)
        refused(tmp_path / "a.zip", world, "10. export", "statement.dsse.json")

    def test_another_genuine_attestation_in_its_place(self, world: World, tmp_path: Path) -> None:
        world.build(tmp_path / "a.zip", sign_export=lambda _claim: world.attestations[1])
        refused(tmp_path / "a.zip", world, "10. export", "statement.dsse.json")
