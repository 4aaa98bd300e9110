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

from archives import TENANT
from licet_attestations import canonical, statement, verify
from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.keys import P256, PrivateKey
from licet_attestations.tlogproof import TlogProof
from licet_attestations.verify import verify_archive

World = Any
Files = dict[str, bytes]
Pack = Callable[..., Path]
Mutate = Callable[[Files], object]
ANA = {"type": "Person", "id": "northbank/ana"}
RANGE, OUTSIDE, MANIFEST, CHECKPOINT = "log/range.json", "log/outside.jsonl", "manifest.json", "checkpoint.txt"
LEAVES, RECORDS, FACTS, ATTESTATIONS = (
    f"{folder}/000000000000.jsonl" for folder in ("leaves", "records", "facts", "attestations")
)
STATEMENT = "statement.dsse.json"
OUTSIDE_ATTESTATIONS = "log/outside.attestations.jsonl"


def refused(path: Path, world: World, step: str, where: str = "") -> str:
    with pytest.raises(VerificationError) as caught:
        verify_archive(path, world.trust)
    assert caught.value.step == step, f"{caught.value.step}: {caught.value}"
    assert where in (caught.value.where or ""), caught.value.where
    return str(caught.value)


@pytest.fixture
def whole(world: World, tmp_path: Path) -> Path:
    world.build(tmp_path / "whole.zip", sign_isolation=world.sign_isolation)
    verify_archive(tmp_path / "whole.zip", world.trust)
    return tmp_path / "whole.zip"


@pytest.fixture
def files(world: World, tmp_path: Path) -> Files:
    """The files of a whole archive."""
    made: Files = world.files(tmp_path)
    return made


@pytest.fixture
def windowed(world: World, tmp_path: Path) -> Files:
    """The files of an archive of entries 3 to 7."""
    made: Files = world.files(tmp_path, first=3, end=8)
    return made


def zipped(path: Path, files: Files, method: int = zipfile.ZIP_STORED) -> Path:
    """The files as another program would zip them."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return path


def edited(data: bytes, **changes: Any) -> bytes:
    return canonical.dumps(canonical.loads(data) | changes)


# --- What a forger does to files ------------------------------------------------------------------------------------------


def put(name: str, data: bytes) -> Mutate:
    return lambda files: files.update({name: data})


def drop(name: str) -> Mutate:
    return lambda files: files.pop(name)


def changed(name: str, **changes: Any) -> Mutate:
    return lambda files: files.update({name: edited(files[name], **changes)})


def lines(name: str, change: Callable[[list[bytes]], object]) -> Mutate:
    def mutate(files: Files) -> None:
        found = files[name].splitlines(keepends=True)
        change(found)
        assert b"".join(found) != files[name], "nothing was changed"
        files[name] = b"".join(found)

    return mutate


def line(name: str, number: int, change: Callable[[bytes], bytes]) -> Mutate:
    return lines(name, lambda found: found.__setitem__(number, change(found[number])))


def value(name: str, number: int, change: Callable[[Any], object]) -> Mutate:
    """Change what a line says, in its canonical form."""

    def mutate(text: bytes) -> bytes:
        found = json.loads(text)
        change(found)
        return canonical.dumps(found) + b"\n"

    return line(name, number, mutate)


def swap(first: int, second: int) -> Callable[[list[bytes]], object]:
    def change(found: list[bytes]) -> None:
        found[first], found[second] = found[second], found[first]

    return change


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
            "records/1.jsonl",
            "facts/00000000000x.jsonl",
        ],
    )
    def test_a_name_that_is_not_of_the_layout(self, files: Files, world: World, tmp_path: Path, name: str) -> None:
        path = zipped(tmp_path / "a.zip", {name: b"x", **files})
        message = refused(path, world, "1. form", ascii(name).strip("'"))
        assert "not of its layout" in message

    def test_two_files_of_one_name(self, files: Files, world: World, tmp_path: Path) -> None:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(name), data)
            with pytest.warns(UserWarning, match="Duplicate name"):
                archive.writestr(zipfile.ZipInfo(RECORDS), b"{}")
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

    def test_a_zip_bomb(self, files: Files, world: World, tmp_path: Path) -> None:
        files["records/000000999999.jsonl"] = bytes(50_000_000)
        path = zipped(tmp_path / "a.zip", files, zipfile.ZIP_DEFLATED)
        assert path.stat().st_size < 1_000_000
        assert "compressed" in refused(path, world, "1. form")

    def test_a_symbolic_link_inside(self, files: Files, world: World, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            link = zipfile.ZipInfo("README.txt")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, "/etc/passwd")
            for name, data in files.items():
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

    def test_a_required_file_left_out(self, files: Files, world: World, pack: Pack) -> None:
        del files["checkpoint.txt"]
        refused(pack(files), world, "1. form", "checkpoint.txt")


class TestManifest:
    KINDS = (
        "README.txt",
        CHECKPOINT,
        LEAVES,
        RANGE,
        RECORDS,
        "facts/",
        "bundles/",
        "attestations/",
        MANIFEST,
        "isolation.dsse.json",
        STATEMENT,
    )

    @pytest.mark.parametrize("kind", KINDS)
    def test_one_byte_flipped_in_each_kind_of_file(self, whole: Path, world: World, kind: str) -> None:
        with zipfile.ZipFile(whole) as archive:
            info = next(i for i in archive.infolist() if i.filename.startswith(kind))
        data = bytearray(whole.read_bytes())
        data[info.header_offset + 30 + len(info.filename) + info.file_size // 2] ^= 1
        whole.write_bytes(data)
        refused(whole, world, "2. manifest", info.filename)

    @pytest.mark.parametrize(
        ("mutate", "where"),
        [
            pytest.param(put("report.html", b"All is well."), "report.html", id="a file more"),
            pytest.param(put("records/000000999999.jsonl", b"{}"), "records/000000999999.jsonl", id="a chunk more"),
            pytest.param(drop(RECORDS), RECORDS, id="a file fewer"),
            pytest.param(put("README.txt", b"All is well."), "README.txt", id="another content"),
            pytest.param(put(RECORDS, b""), RECORDS, id="an empty file"),
        ],
    )
    def test_files_that_are_not_those_in_the_manifest(
        self, files: Files, world: World, pack: Pack, mutate: Mutate, where: str
    ) -> None:
        mutate(files)
        refused(pack(files, remanifest=False), world, "2. manifest", where)

    @pytest.mark.parametrize(
        "text",
        [
            b'{"files":{},"files":{},"tenant":"northbank","v":2}',
            b'{"files":{},"tenant":"northbank","v":2.0}',
            b'{"files":{},"tenant":"northbank","v":NaN}',
            b'{"files":{},"tenant":"northbank","v":99999999999999999999}',
            b'{"files":[],"tenant":"northbank","v":2}',
            b'{"files":{},"tenant":"northbank","v":1}',
            b'{"files":{},"tenant":"northbank","v":3}',
            b'{"files":{},"tenant":"northbank"}',
            b'{"files":{},"more":1,"tenant":"northbank","v":2}',
            b'{"files": {}, "tenant":"northbank","v":2}',
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b"\xef\xbb\xbf{}",
            b"\xff\xfe",
            b"",
            b"null",
        ],
    )
    def test_a_manifest_that_is_not_strict_json(self, files: Files, world: World, pack: Pack, text: bytes) -> None:
        refused(pack(files | {MANIFEST: text}, remanifest=False), world, "2. manifest", MANIFEST)


class TestCheckpoint:
    def test_wholly_re_signed_with_other_keys(self, world: World, tmp_path: Path) -> None:
        """All is consistent but that the keys are the forger's: the trust root is pinned, so nothing helps."""
        forger = dataclasses.replace(
            world,
            log=PrivateKey.generate("ed25519"),
            attestation=PrivateKey.generate(P256),
            warrant=PrivateKey.generate(P256),
        )
        forger.build(tmp_path / "a.zip", sign_isolation=forger.sign_isolation)
        refused(tmp_path / "a.zip", world, "3. checkpoint", CHECKPOINT)

    @pytest.mark.parametrize(
        ("mutate", "where"),
        [
            pytest.param(
                changed(RANGE, tenant="lakeside", origin="licet.example/log/lakeside"), RANGE, id="another tenant's"
            ),
            pytest.param(changed(RANGE, origin="licet.example/log/lakeside"), RANGE, id="another tenant's origin"),
            pytest.param(changed(RANGE, origin=1), RANGE, id="an origin that is none"),
            pytest.param(changed(RANGE, tenant="../x"), RANGE, id="a tenant that is none"),
            pytest.param(changed(RANGE, first=-1), RANGE, id="before the beginning"),
            pytest.param(changed(RANGE, first=10**9), RANGE, id="beginning after its end"),
            pytest.param(changed(RANGE, first=True), RANGE, id="a number that is a boolean"),
            pytest.param(changed(RANGE, end=10), RANGE, id="beyond the log's end"),
            pytest.param(changed(RANGE, size=8), RANGE, id="an end beyond its size"),
            pytest.param(changed(RANGE, end=8, size=8), CHECKPOINT, id="another size than the checkpoint's"),
            pytest.param(changed(RANGE, size=2**53 - 1, end=2**53 - 1), RANGE, id="more chunks than there are"),
            pytest.param(changed(RANGE, frontier_first="00"), RANGE, id="a frontier that is no list"),
            pytest.param(changed(RANGE, frontier_end=["00"]), RANGE, id="a frontier of no hashes"),
            pytest.param(changed(RANGE, consistency=["0" * 64] * 65), RANGE, id="a proof without end"),
            pytest.param(changed(RANGE, from_ms=5, to_ms=4), RANGE, id="times the wrong way round"),
            pytest.param(changed(RANGE, from_ms="now"), RANGE, id="a time that is none"),
            pytest.param(changed(RANGE, more=1), RANGE, id="a member more"),
            pytest.param(changed(RANGE, v=1), RANGE, id="an older version"),
            pytest.param(changed(RANGE, v=3), RANGE, id="a newer version"),
            pytest.param(put(RANGE, b"[]"), RANGE, id="a range that is a list"),
            pytest.param(put(RANGE, b'{"v":2,"v":2}'), RANGE, id="a range with a key twice"),
            pytest.param(put(CHECKPOINT, b"\xff"), CHECKPOINT, id="a checkpoint that is no text"),
            pytest.param(put(CHECKPOINT, b"x\n" * 100_000), CHECKPOINT, id="a checkpoint too large"),
            pytest.param(
                lambda files: files.update({CHECKPOINT: files[CHECKPOINT].replace(b"northbank", b"southbank")}),
                CHECKPOINT,
                id="a checkpoint of another origin",
            ),
            pytest.param(
                lambda files: files.update({CHECKPOINT: files[CHECKPOINT].partition(b"\n\n")[0] + b"\n\n"}),
                CHECKPOINT,
                id="a checkpoint that nobody signed",
            ),
            pytest.param(drop(LEAVES), LEAVES, id="no leaves"),
            pytest.param(drop(RECORDS), RECORDS, id="no records"),
            pytest.param(put("leaves/000000001024.jsonl", b"{}\n"), "leaves/000000001024.jsonl", id="leaves beyond it"),
            pytest.param(put("facts/000000001024.jsonl", b"{}\n"), "facts/000000001024.jsonl", id="facts beyond it"),
            pytest.param(
                put("records/000000000001.jsonl", b"{}\n"), "records/000000000001.jsonl", id="a chunk between"
            ),
        ],
    )
    def test_what_says_which_log_it_is(
        self, files: Files, world: World, pack: Pack, mutate: Mutate, where: str
    ) -> None:
        mutate(files)
        refused(pack(files), world, "3. checkpoint", where)

    def test_the_checkpoint_of_another_size(self, files: Files, world: World, pack: Pack) -> None:
        refused(pack(files | {CHECKPOINT: world.note(5).encode()}), world, "3. checkpoint", CHECKPOINT)


class TestLeaves:
    @pytest.mark.parametrize(
        "mutate",
        [
            pytest.param(lines(LEAVES, swap(2, 3)), id="reordered"),
            pytest.param(lines(LEAVES, lambda found: found.pop(3)), id="one dropped"),
            pytest.param(lines(LEAVES, lambda found: found.pop()), id="the last dropped"),
            pytest.param(lines(LEAVES, lambda found: found.pop(0)), id="the first dropped"),
            pytest.param(lines(LEAVES, lambda found: found.insert(3, found[3])), id="one twice"),
            pytest.param(lines(LEAVES, lambda found: found.append(found[-1])), id="one more"),
            pytest.param(lines(LEAVES, lambda found: found.__setitem__(4, found[3])), id="one replaced by another"),
            pytest.param(lines(LEAVES, list.clear), id="none"),
            pytest.param(
                line(LEAVES, 4, lambda text: text.replace(b'"actor":"lakeside"', b'"actor":"northbank"')),
                id="the actor changed",
            ),
            pytest.param(value(LEAVES, 4, lambda leaf: leaf.update(kind="hold")), id="the kind changed"),
            pytest.param(
                value(LEAVES, 4, lambda leaf: leaf.update(time_ms=leaf["time_ms"] + 1)), id="the time changed"
            ),
            pytest.param(value(LEAVES, 4, lambda leaf: leaf.update(commitment="0" * 64)), id="the commitment changed"),
            pytest.param(value(LEAVES, 4, lambda leaf: leaf.update(v=2)), id="another version"),
            pytest.param(value(LEAVES, 4, lambda leaf: leaf.update(more=1)), id="a member more"),
            pytest.param(value(LEAVES, 4, lambda leaf: leaf.update(time_ms=-1)), id="a time before all"),
            pytest.param(value(LEAVES, 4, lambda leaf: leaf.update(actor="North Bank")), id="a tenant that is none"),
            pytest.param(line(LEAVES, -1, lambda text: text[:-1]), id="cut short"),
            pytest.param(line(LEAVES, -1, lambda _text: b"x" * 5000 + b"\n"), id="too long"),
            pytest.param(line(LEAVES, -1, lambda _text: b"x" * 50_000_000), id="without an end"),
            pytest.param(line(LEAVES, 1, lambda text: text.replace(b",", b", ")), id="with spaces"),
            pytest.param(line(LEAVES, 1, lambda text: text[:-1] + b"\r\n"), id="with other line ends"),
            pytest.param(line(LEAVES, 1, lambda _text: b"\n"), id="an empty line"),
            pytest.param(line(LEAVES, 1, lambda _text: b"[" * 900 + b"\n"), id="nested deeply"),
            pytest.param(line(LEAVES, 1, lambda _text: b"\xff\xfe\n"), id="no text"),
        ],
    )
    def test_leaves_that_are_not_the_logs(self, files: Files, world: World, pack: Pack, mutate: Mutate) -> None:
        mutate(files)
        path = pack(files)
        with pytest.raises(VerificationError) as caught:
            verify_archive(path, world.trust)
        assert caught.value.step == "4. leaves"
        # Where each leaf is one, and only the root is another, the checkpoint is what they do not lead to.
        assert (caught.value.where or "").startswith((LEAVES, CHECKPOINT))

    @pytest.mark.parametrize(
        "changes",
        [
            {"frontier_first": ["0" * 64]},
            {"frontier_end": []},
            {"frontier_end": ["0" * 64, "0" * 64]},
            {"consistency": ["0" * 64]},
        ],
    )
    def test_a_frontier_or_proof_that_is_not_the_trees(
        self, files: Files, world: World, pack: Pack, changes: dict[str, Any]
    ) -> None:
        changed(RANGE, **changes)(files)
        refused(pack(files), world, "4. leaves")

    def test_a_frontier_that_hides_the_first_entries(self, files: Files, world: World, pack: Pack) -> None:
        for folder in ("leaves", "records", "facts", "attestations"):
            data = files.pop(f"{folder}/000000000000.jsonl")
            files[f"{folder}/000000000002.jsonl"] = b"".join(data.splitlines(keepends=True)[2:])
        changed(RANGE, first=2, frontier_first=["0" * 64])(files)
        refused(pack(files), world, "4. leaves", CHECKPOINT)


class TestWindow:
    W_LEAVES, W_RECORDS = "leaves/000000000003.jsonl", "records/000000000003.jsonl"

    def test_the_window_as_it_is_verifies(self, windowed: Files, world: World, pack: Pack) -> None:
        report = verify_archive(pack(windowed, remanifest=False), world.trust)
        assert (report.first, report.end, report.size) == (3, 8, len(world.leaves))

    @pytest.mark.parametrize("kept", [slice(1, None), slice(None, -1)])
    def test_an_entry_withheld_at_either_edge(self, windowed: Files, world: World, pack: Pack, kept: slice) -> None:
        """The forger moves the edge inwards, and has every frontier and proof right; only the times are against it."""
        first, end = range(3, 8)[kept][0], range(3, 8)[kept][-1] + 1
        window = dataclasses.replace(
            world.window(first, end), from_ms=world.leaves[2].time_ms + 1, to_ms=world.leaves[8].time_ms
        )
        forged = {RANGE: window.to_bytes()}
        for name, data in windowed.items():
            if name.startswith(("leaves/", "records/")):
                forged[f"{name[:7].rstrip('/')}/{first:012d}.jsonl"] = b"".join(data.splitlines(keepends=True)[kept])
            elif name.startswith(("facts/", "attestations/")):
                forged[f"{name.partition('/')[0]}/{first:012d}.jsonl"] = data
            elif name != RANGE:
                forged[name] = data
        assert "is missing" in refused(pack(forged), world, "5. window", OUTSIDE)
        forged[OUTSIDE] = b"".join(world.outside(index) + b"\n" for index in window.edges)
        assert "belongs to the window" in refused(pack(forged), world, "5. window", OUTSIDE)

    @pytest.mark.parametrize(
        "mutate",
        [
            pytest.param(drop(OUTSIDE), id="none"),
            pytest.param(lines(OUTSIDE, lambda found: found.pop(0)), id="the one before dropped"),
            pytest.param(lines(OUTSIDE, lambda found: found.pop()), id="the one after dropped"),
            pytest.param(lines(OUTSIDE, list.reverse), id="reordered"),
            pytest.param(lines(OUTSIDE, lambda found: found.insert(0, found[0])), id="one twice"),
            pytest.param(value(OUTSIDE, 0, lambda one: one.update(index=1)), id="of another place"),
            pytest.param(value(OUTSIDE, 0, lambda one: one.update(index=5)), id="of inside"),
            pytest.param(value(OUTSIDE, 0, lambda one: one.update(index=-1)), id="of before the beginning"),
            pytest.param(value(OUTSIDE, 0, lambda one: one["proof"].pop()), id="a proof too short"),
            pytest.param(value(OUTSIDE, 0, lambda one: one["proof"].append("0" * 64)), id="a proof too long"),
            pytest.param(value(OUTSIDE, 0, lambda one: one["proof"].reverse()), id="a proof turned round"),
            pytest.param(value(OUTSIDE, 0, lambda one: one.update(proof="")), id="no proof"),
            pytest.param(
                value(OUTSIDE, 0, lambda one: one.update(leaf=one["leaf"].replace("northbank", "lakeside", 1))),
                id="a leaf changed",
            ),
            pytest.param(value(OUTSIDE, 0, lambda one: one.update(leaf={})), id="a leaf that is none"),
            pytest.param(value(OUTSIDE, 0, lambda one: one.update(salt="0" * 64)), id="a salt without a record"),
            pytest.param(
                value(OUTSIDE, 0, lambda one: one.update(salt="0" * 64, record={"decision": "allow"})),
                id="a record that is not its own",
            ),
            pytest.param(value(OUTSIDE, 0, lambda one: one.update(more=1)), id="a member more"),
            pytest.param(line(OUTSIDE, 0, lambda text: text.replace(b",", b", ", 1)), id="with spaces"),
            pytest.param(line(OUTSIDE, -1, lambda text: text[:-1]), id="cut short"),
        ],
    )
    def test_entries_around_it_that_are_not_the_logs(
        self, windowed: Files, world: World, pack: Pack, mutate: Mutate
    ) -> None:
        mutate(windowed)
        refused(pack(windowed), world, "5. window", OUTSIDE)

    @pytest.mark.parametrize("changes", [{"from_ms": None}, {"to_ms": None}])
    def test_a_window_that_names_no_time(
        self, windowed: Files, world: World, pack: Pack, changes: dict[str, Any]
    ) -> None:
        changed(RANGE, **changes)(windowed)
        refused(pack(windowed), world, "5. window")

    @pytest.mark.parametrize(("name", "by_ms"), [("from_ms", 1), ("to_ms", -1)])
    def test_a_window_that_claims_a_narrower_time_than_its_entries(
        self, windowed: Files, world: World, pack: Pack, name: str, by_ms: int
    ) -> None:
        edge = world.leaves[3].time_ms if name == "from_ms" else world.leaves[7].time_ms + 1
        changed(RANGE, **{name: edge + by_ms})(windowed)
        refused(pack(windowed), world, "7. headers", self.W_RECORDS)

    def test_a_window_whose_end_the_log_has_not_reached(self, world: World, tmp_path: Path, pack: Pack) -> None:
        """All is genuine, and old: more of that time was logged since."""
        files = world.files(tmp_path)
        changed(RANGE, to_ms=world.now_ms + 10**9)(files)
        assert "may have been logged since" in refused(pack(files), world, "5. window", OUTSIDE)
        with pytest.raises(VerificationError, match="may have been logged since"):
            world.build(tmp_path / "b.zip", window=world.window(to_ms=world.now_ms + 10**9))

    def test_a_window_that_claims_a_wider_time_than_it_has(self, windowed: Files, world: World, pack: Pack) -> None:
        changed(RANGE, from_ms=world.leaves[0].time_ms)(windowed)
        refused(pack(windowed), world, "5. window", OUTSIDE)


class TestRecords:
    @pytest.mark.parametrize(
        "mutate",
        [
            pytest.param(
                value(RECORDS, 3, lambda one: one["record"].update(decision="allow")), id="the record changed"
            ),
            pytest.param(value(RECORDS, 3, lambda one: one.update(salt="0" * 64)), id="the salt changed"),
            pytest.param(value(RECORDS, 3, lambda one: one.update(salt="")), id="no salt"),
            pytest.param(value(RECORDS, 3, lambda one: one.update(record=[])), id="a record that is a list"),
            pytest.param(value(RECORDS, 3, lambda one: one.update(more=1)), id="a member more"),
            pytest.param(lines(RECORDS, swap(2, 3)), id="reordered"),
            pytest.param(lines(RECORDS, lambda found: found.pop(3)), id="one dropped"),
            pytest.param(lines(RECORDS, lambda found: found.insert(3, found[3])), id="one twice"),
            pytest.param(lines(RECORDS, lambda found: found.append(found[-1])), id="one more"),
            pytest.param(lines(RECORDS, list.clear), id="none"),
            pytest.param(line(RECORDS, 3, lambda text: text.replace(b",", b", ", 1)), id="with spaces"),
            pytest.param(line(RECORDS, 3, lambda _text: b'{"erased":false}\n'), id="not quite erased"),
            pytest.param(line(RECORDS, 3, lambda _text: b"\n"), id="an empty line"),
            pytest.param(line(RECORDS, -1, lambda text: text[:-1]), id="cut short"),
            pytest.param(
                line(RECORDS, 3, lambda text: text.replace(b'"record":{', b'"record":{"v":1,"v":1,', 1)),
                id="a key twice",
            ),
            pytest.param(
                line(
                    RECORDS,
                    3,
                    lambda text: text.replace(b'"record":{', b'"record":{"a":' + b"[" * 200 + b"]" * 200 + b",", 1),
                ),
                id="nested deeply",
            ),
            pytest.param(
                line(RECORDS, 3, lambda text: text.replace(b'"record":{', b'"record":{"a":1e999,', 1)),
                id="a huge number",
            ),
            pytest.param(
                line(RECORDS, 3, lambda text: text.replace(b'"record":{', b'"record":{"a":' + b"9" * 5000 + b",", 1)),
                id="a long number",
            ),
            pytest.param(
                line(RECORDS, 3, lambda text: text.replace(b'"record":{', b'"record":{"a":"\\ud800",', 1)),
                id="half a character",
            ),
            pytest.param(line(RECORDS, 3, lambda text: text.replace(b"northbank", b"north\xffank", 1)), id="no text"),
        ],
    )
    def test_a_record_that_is_not_what_the_leaf_commits_to(
        self, files: Files, world: World, pack: Pack, mutate: Mutate
    ) -> None:
        mutate(files)
        refused(pack(files), world, "6. records", RECORDS)

    def test_a_record_dropped_and_named_as_erased(self, files: Files, world: World, pack: Pack) -> None:
        """It is no decision: nothing else in the archive stands on it."""
        index = next(i for i, leaf in enumerate(world.leaves) if leaf.kind == "attempt")
        line(RECORDS, index, lambda _text: b'{"erased":true}\n')(files)
        assert "says that it was erased" in refused(pack(files), world, "6. records", f"entry {index}")

    @pytest.mark.parametrize("kind", ["hold", "attestation", "erasure"])
    def test_a_record_of_a_kind_that_is_never_erased(self, world: World, tmp_path: Path, pack: Pack, kind: str) -> None:
        world.erase(3)
        index = next(i for i, leaf in enumerate(world.leaves) if leaf.kind == kind)
        world.append("decision", world.erasing())
        world.append("erasure", world.erasure(index))
        files = world.files(tmp_path)
        line(RECORDS, index, lambda _text: b'{"erased":true}\n')(files)
        assert "is never erased" in refused(pack(files), world, "6. records", f"entry {index}")

    def test_more_outside_than_may_be_read_at_once(
        self, windowed: Files, world: World, pack: Pack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(verify, "MAX_OUTSIDE_BYTES", len(windowed[OUTSIDE]) - 1)
        refused(pack(windowed, remanifest=False), world, "5. window", OUTSIDE)

    def test_what_stands_outside_says_of_itself_what_its_record_says(
        self, world: World, tmp_path: Path, pack: Pack
    ) -> None:
        end = len(world.leaves)
        world.append("decision", world.erasing(), actor="lakeside")
        world.erased.add(3)
        world.append("erasure", world.erasure(3))
        world.append("hold", {"type": "hold"})
        refused(pack(world.files(tmp_path, end=end), remanifest=False), world, "7. headers", OUTSIDE)

    @pytest.mark.parametrize(
        "named",
        [
            pytest.param({}, id="another entry"),
            pytest.param({"index": 3}, id="another commitment"),
            pytest.param({"index": "3"}, id="no place"),
            pytest.param({"index": True}, id="not a number"),
            pytest.param({"index": 2**52}, id="a place that there is not"),
            pytest.param({"commitment": None}, id="no commitment"),
            pytest.param(None, id="nothing"),
        ],
    )
    def test_an_erasure_that_does_not_name_what_is_missing(
        self, files: Files, world: World, pack: Pack, named: dict[str, Any] | None
    ) -> None:
        record = world.erasure(2)
        if named is None:
            record["entries"] = "all"
        else:
            record["entries"][0] |= named
        world.append("decision", world.erasing())
        world.add_last(files)
        world.append("erasure", record)
        world.add_last(files)
        line(RECORDS, 3, lambda _text: b'{"erased":true}\n')(files)
        refused(pack(files), world, "6. records", RECORDS)

    def test_an_erasure_that_stands_before_what_is_missing(self, world: World, tmp_path: Path, pack: Pack) -> None:
        at = len(world.leaves)
        world.append("hold", {"type": "hold"})
        record = world.erasure(at)
        record["entries"][0]["index"] = at + 1
        world.leaves.pop()
        world.records.pop()
        world.append("erasure", record)
        world.append("hold", {"type": "hold"})
        files = world.files(tmp_path)
        line(RECORDS, at + 1, lambda _text: b'{"erased":true}\n')(files)
        refused(pack(files), world, "6. records", RECORDS)

    @pytest.mark.parametrize(
        "said",
        [{"decision": "deny"}, {"action": "dataset.delete"}, {"id": "another"}, None],
        ids=["denied", "of another action", "another", "none"],
    )
    def test_an_erasure_that_no_decision_allowed(
        self, files: Files, world: World, pack: Pack, said: dict[str, str] | None
    ) -> None:
        if said is not None:
            world.append("decision", world.erasing() | said)
            world.add_last(files)
        world.append("erasure", world.erasure(3))
        world.add_last(files)
        line(RECORDS, 3, lambda _text: b'{"erased":true}\n')(files)
        message = refused(pack(files), world, "6. records", RECORDS)
        assert "is not the decision that allowed it" in message

    def test_an_erasure_behind_the_window_whose_decision_is_withheld(
        self, world: World, tmp_path: Path, pack: Pack
    ) -> None:
        end = len(world.leaves)
        world.append("hold", {"type": "hold"})
        world.erase(3)
        files = world.files(tmp_path, end=end)
        lines(OUTSIDE, lambda found: found.pop(-2))(files)
        refused(pack(files), world, "6. records", f"entry {end + 2}")

    def test_an_erasure_that_is_erased_itself(self, world: World, tmp_path: Path, pack: Pack) -> None:
        at = world.erase(3)
        files = world.files(tmp_path)
        line(RECORDS, at, lambda _text: b'{"erased":true}\n')(files)
        refused(pack(files), world, "6. records", f"entry {at}")

    def test_an_erasure_whose_decision_is_erased(self, world: World, tmp_path: Path, pack: Pack) -> None:
        at = world.erase(3)
        files = world.files(tmp_path)
        world.append("decision", world.erasing())
        world.add_last(files)
        world.append("erasure", world.erasure(at - 1))
        world.add_last(files)
        line(RECORDS, at - 1, lambda _text: b'{"erased":true}\n')(files)
        assert "not the decision that allowed it" in refused(pack(files), world, "6. records", f"entry {at}")

    def test_an_erasure_behind_the_window_that_is_withheld(self, world: World, tmp_path: Path, pack: Pack) -> None:
        end = len(world.leaves)
        world.append("hold", {"type": "hold"})
        world.erase(3)
        files = world.files(tmp_path, end=end)
        lines(OUTSIDE, lambda found: found.pop())(files)
        refused(pack(files), world, "6. records", "entry 3")


class TestHeaders:
    def test_time_that_runs_backwards(self, world: World, tmp_path: Path) -> None:
        index = world.append("hold", {"type": "hold"}, time_ms=world.leaves[-1].time_ms - 1)
        world.build(tmp_path / "a.zip")
        refused(tmp_path / "a.zip", world, "7. headers", f"entry {index}")

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
        self,
        files: Files,
        world: World,
        pack: Pack,
        kind: str,
        record: dict[str, Any],
        actor: str,
        message: str,
    ) -> None:
        index = world.append(kind, record, actor=actor)
        world.add_last(files)
        assert message in refused(pack(files), world, "7. headers", f"{RECORDS}, entry {index}")

    def test_an_allow_for_another_tenant_under_ones_own_name(self, world: World, tmp_path: Path) -> None:
        world.decide("allow", "dataset.read")
        record = json.loads(world.records[-1][1]) | {"principal": {"type": "Person", "id": "lakeside/eve"}}
        world.append("decision", record, actor=TENANT)
        world.build(tmp_path / "a.zip")
        refused(tmp_path / "a.zip", world, "7. headers")

    def test_an_entry_of_another_owner(self, world: World, tmp_path: Path) -> None:
        index = world.append("hold", {"type": "hold"}, actor="lakeside", owner="lakeside")
        world.build(tmp_path / "a.zip")
        refused(tmp_path / "a.zip", world, "7. headers", f"entry {index}")

    def test_a_log_key_that_was_retired_before_the_last_entry(self, world: World, whole: Path) -> None:
        world.retired_ms["log"] = world.leaves[-1].time_ms
        refused(whole, world, "7. headers", "checkpoint.txt")


class TestDecisions:
    @pytest.mark.parametrize(
        ("mutate", "where"),
        [
            pytest.param(put(FACTS, b"{}\n"), FACTS, id="another fact"),
            pytest.param(lines(FACTS, lambda found: found.append(b"{}\n")), FACTS, id="a fact more"),
            pytest.param(lines(FACTS, lambda found: found.append(found[0])), FACTS, id="a fact twice"),
            pytest.param(line(FACTS, 0, lambda text: text.replace(b",", b", ", 1)), FACTS, id="another spelling"),
            pytest.param(put(FACTS, b""), FACTS, id="no line"),
            pytest.param(line(FACTS, 0, lambda text: text[:-1]), FACTS, id="cut short"),
            pytest.param(put(FACTS, b"not json\n"), FACTS, id="no JSON"),
            pytest.param(drop(FACTS), FACTS, id="no facts"),
            pytest.param(put(f"bundles/{'0' * 64}.json", b"{}"), f"bundles/{'0' * 64}.json", id="policies more"),
        ],
    )
    def test_facts_and_policies_that_are_not_those_that_decisions_name(
        self, files: Files, world: World, pack: Pack, mutate: Mutate, where: str
    ) -> None:
        mutate(files)
        refused(pack(files), world, "8. decisions", where)

    def test_more_than_a_chunk_can_name(
        self, files: Files, world: World, pack: Pack, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("licet_attestations.entries.MAX_NAMED", 3)
        facts = sorted((b"%d" % number for number in range(9)), key=lambda data: hashlib.sha256(data).digest())
        files[FACTS] = b"".join(fact + b"\n" for fact in facts)
        assert "more than the 3" in refused(pack(files), world, "8. decisions", FACTS)
        monkeypatch.setattr("licet_attestations.entries.MAX_NAMED_BYTES", 5)
        assert "larger than the 5" in refused(pack(files), world, "8. decisions", FACTS)

    def test_policies_left_out_or_changed(self, files: Files, world: World, pack: Pack) -> None:
        name = next(n for n in files if n.startswith("bundles/"))
        refused(pack(files | {name: b"{}"}), world, "8. decisions", name)
        del files[name]
        refused(pack(files), world, "8. decisions", name)

    def test_facts_that_are_out_of_order(self, world: World, tmp_path: Path, pack: Pack) -> None:
        other = canonical.dumps({"uid": {"type": "Dataset", "id": "northbank/other"}})
        world.facts[hashlib.sha256(other).hexdigest()] = other
        world.decide("deny", "dataset.read", facts=sorted(world.facts))
        files = world.files(tmp_path)
        lines(FACTS, list.reverse)(files)
        refused(pack(files), world, "8. decisions", FACTS)

    @pytest.mark.parametrize(
        "changes", [{"facts": "all"}, {"facts": ["../x"]}, {"facts": [1]}, {"bundle": None}, {"bundle": "../x"}]
    )
    def test_a_decision_that_does_not_name_what_it_was_made_on(
        self, world: World, tmp_path: Path, pack: Pack, changes: dict[str, Any]
    ) -> None:
        """What the log says so, no archive is made of; a forger's would not verify."""
        files = world.files(tmp_path)
        index = world.decide("deny", "dataset.read", **changes)
        with pytest.raises(FormatError, match=f"decision {index} does not name"):
            world.build(tmp_path / "a.zip")
        world.add_last(files)
        message = refused(pack(files), world, "8. decisions")
        assert f"decision {index} names" in message or "by SHA-256" in message or "lists the facts" in message


class TestSignatures:
    @pytest.mark.parametrize(
        "mutate",
        [
            pytest.param(drop(ATTESTATIONS), id="none"),
            pytest.param(put(ATTESTATIONS, b""), id="no line"),
            pytest.param(lines(ATTESTATIONS, lambda found: found.pop()), id="one dropped"),
            pytest.param(lines(ATTESTATIONS, lambda found: found.append(found[0])), id="one twice"),
            pytest.param(lines(ATTESTATIONS, lambda found: found.__setitem__(1, found[2])), id="one for another"),
            pytest.param(
                line(ATTESTATIONS, 1, lambda text: json.dumps(json.loads(text)).encode() + b"\n"), id="another spelling"
            ),
            pytest.param(value(ATTESTATIONS, 1, lambda one: one.update(signatures=[])), id="nobody signed"),
            pytest.param(
                value(ATTESTATIONS, 1, lambda one: one["signatures"][0].update(sig="AAAA")), id="another signature"
            ),
            pytest.param(value(ATTESTATIONS, 1, lambda one: one.update(payloadType="text/plain")), id="another type"),
            pytest.param(line(ATTESTATIONS, -1, lambda text: text[:-1]), id="cut short"),
            pytest.param(put(ATTESTATIONS, b"not json\n"), id="no JSON"),
        ],
    )
    def test_attestations_that_are_not_those_that_the_log_names(
        self, files: Files, world: World, pack: Pack, mutate: Mutate
    ) -> None:
        mutate(files)
        refused(pack(files), world, "9. signatures", ATTESTATIONS)

    @pytest.mark.parametrize(
        "mutate",
        [
            pytest.param(drop(OUTSIDE_ATTESTATIONS), id="none"),
            pytest.param(put(OUTSIDE_ATTESTATIONS, b""), id="no line"),
            pytest.param(lines(OUTSIDE_ATTESTATIONS, lambda found: found.append(found[0])), id="one twice"),
            pytest.param(
                value(OUTSIDE_ATTESTATIONS, 0, lambda one: one["signatures"][0].update(sig="AAAA")),
                id="another signature",
            ),
            pytest.param(lambda files: files.update({OUTSIDE_ATTESTATIONS: files[ATTESTATIONS]}), id="one for another"),
        ],
    )
    def test_attestations_of_outside_that_are_not_those_that_its_entries_name(
        self, world: World, tmp_path: Path, pack: Pack, mutate: Mutate
    ) -> None:
        world.examine()
        files = world.files(tmp_path, first=0, end=4)
        assert list(verify_archive(pack(files, remanifest=False), world.trust).policies.values()) != [""]
        mutate(files)
        refused(pack(files), world, "9. signatures", OUTSIDE_ATTESTATIONS)

    def test_an_attestation_by_a_key_for_another_purpose(self, world: World, tmp_path: Path) -> None:
        world.attest(statement.TEST_RESULT, {"tenant": TENANT}, key=world.warrant)
        world.build(tmp_path / "a.zip")
        refused(tmp_path / "a.zip", world, "9. signatures", ATTESTATIONS)

    def test_a_warrant_by_an_attestation_key(self, world: World, tmp_path: Path) -> None:
        world.log_warrant(world.make_warrant(0), key=world.attestation)
        world.build(tmp_path / "a.zip")
        refused(tmp_path / "a.zip", world, "9. signatures", ATTESTATIONS)

    def test_an_attestation_by_a_key_retired_before_it_was_logged(self, world: World, whole: Path) -> None:
        world.retired_ms["attestation"] = world.leaves[2].time_ms
        refused(whole, world, "9. signatures", ATTESTATIONS)

    def test_an_attestation_that_the_log_does_not_name(self, files: Files, world: World, pack: Pack) -> None:
        claim = statement.Statement((statement.Subject("it", "3" * 64),), statement.TEST_RESULT, {"tenant": TENANT})
        slipped_in = world.sign_export(claim.to_bytes())
        lines(ATTESTATIONS, lambda found: found.append(slipped_in + b"\n"))(files)
        assert "no entry of its chunk" in refused(pack(files), world, "9. signatures", ATTESTATIONS)

    def test_an_attestation_logged_as_of_another_type(self, world: World, tmp_path: Path) -> None:
        claim = statement.Statement((statement.Subject("it", "3" * 64),), statement.TEST_RESULT, {"tenant": TENANT})
        world.log_attestation(world.sign_export(claim.to_bytes()), statement.SLSA_VSA)
        world.build(tmp_path / "a.zip")
        refused(tmp_path / "a.zip", world, "9. signatures", ATTESTATIONS)

    def test_an_attestation_about_another_tenant(self, world: World, tmp_path: Path) -> None:
        world.attest(statement.TEST_RESULT, {"tenant": "lakeside"})
        world.build(tmp_path / "a.zip")
        refused(tmp_path / "a.zip", world, "9. signatures", ATTESTATIONS)


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
        world.log_warrant(world.make_warrant(0, **changes))
        index = len(world.leaves) - 1
        world.build(tmp_path / "a.zip")
        step = "9. signatures" if "tenant" in changes else "10. warrants"
        refused(tmp_path / "a.zip", world, step, f"{ATTESTATIONS}, entry {index}")

    def test_a_warrant_on_a_deny(self, world: World, tmp_path: Path) -> None:
        index = world.decide("deny", "training.launch")
        world.log_warrant(world.make_warrant(index))
        world.build(tmp_path / "a.zip")
        assert "deny" in refused(tmp_path / "a.zip", world, "10. warrants", ATTESTATIONS)

    def test_a_warrant_on_an_entry_that_is_no_decision(self, world: World, tmp_path: Path) -> None:
        index = next(i for i, leaf in enumerate(world.leaves) if leaf.kind == "hold")
        fields = {"leaf": world.leaves[index].to_bytes().decode(), "log_proof": world.tlog_proof(index)}
        decision = dataclasses.replace(world.make_warrant(0).decision, leaf_index=index)
        world.log_warrant(world.make_warrant(0, decision=decision, **fields))
        world.build(tmp_path / "a.zip")
        refused(tmp_path / "a.zip", world, "10. warrants", ATTESTATIONS)

    def test_a_warrant_whose_proof_is_of_another_log(self, world: World, tmp_path: Path) -> None:
        other = dataclasses.replace(world, log=PrivateKey.generate("ed25519"))
        world.log_warrant(world.make_warrant(0, log_proof=other.tlog_proof(0)))
        world.build(tmp_path / "a.zip")
        refused(tmp_path / "a.zip", world, "10. warrants", ATTESTATIONS)

    def test_a_warrant_whose_proof_is_of_a_fork_of_this_log(self, world: World, tmp_path: Path) -> None:
        """The log key signed a fork: the warrant's own proof holds, and yet it is not this log."""
        fork = dataclasses.replace(world, leaves=[], records=[], attestations={})
        fork.decide("allow", "training.launch", id="forked")
        fork.decide("deny", "training.launch")
        world.log_warrant(fork.make_warrant(0))
        world.build(tmp_path / "a.zip")
        assert "not entry 0 of this log" in refused(tmp_path / "a.zip", world, "10. warrants", ATTESTATIONS)

    def test_a_proof_with_a_stretched_path(self, world: World, tmp_path: Path) -> None:
        proof = TlogProof.from_text(world.tlog_proof(0))
        stretched = dataclasses.replace(proof, path=(*proof.path, bytes(32)))
        world.log_warrant(world.make_warrant(0, log_proof=stretched.to_text()))
        world.build(tmp_path / "a.zip")
        refused(tmp_path / "a.zip", world, "10. warrants", ATTESTATIONS)

    def test_a_decision_of_before_the_window_that_was_withheld_or_erased_by_the_forger(
        self, world: World, tmp_path: Path, pack: Pack
    ) -> None:
        files = world.files(tmp_path, first=1, end=5)
        assert verify_archive(pack(files, remanifest=False), world.trust).counts["warrants"] == 1
        only_time = edited(files[OUTSIDE].splitlines()[0], salt=None, record=None)
        lines(OUTSIDE, lambda found: found.__setitem__(0, only_time + b"\n"))(files)
        # That it is erased would have to stand in the log.
        refused(pack(files), world, "6. records", OUTSIDE)
        world.log_warrant(world.make_warrant(0))
        files = world.files(tmp_path, first=9)
        lines(OUTSIDE, lambda found: found.pop(0))(files)
        message = refused(pack(files), world, "10. warrants", "attestations/000000000009.jsonl")
        assert "entry 0, is not in the archive" in message


@pytest.fixture(scope="module")
def long(long_world: World, tmp_path_factory: pytest.TempPathFactory) -> Files:
    made: Files = long_world.files(tmp_path_factory.mktemp("long"))
    return made


class TestManyChunks:
    """Of a log of 2,500 entries, in three chunks: what is right by itself must be in its own place."""

    @pytest.mark.parametrize(
        ("folder", "step", "where"),
        [
            ("leaves", "4. leaves", CHECKPOINT),
            ("records", "6. records", RECORDS),
            ("facts", "8. decisions", FACTS),
            ("attestations", "9. signatures", ATTESTATIONS),
        ],
    )
    def test_two_chunks_of_a_kind_change_places(  # noqa: PLR0917  # pytest passes them by name.
        self, long: Files, long_world: World, pack: Pack, folder: str, step: str, where: str
    ) -> None:
        first, second = f"{folder}/000000000000.jsonl", f"{folder}/000000001024.jsonl"
        swapped = long | {first: long[second], second: long[first]}
        refused(pack(swapped), long_world, step, where)

    @pytest.mark.parametrize("folder", ["facts", "attestations"])
    def test_what_a_chunk_names_is_only_in_another(
        self, long: Files, long_world: World, pack: Pack, folder: str
    ) -> None:
        name = f"{folder}/000000001024.jsonl"
        step = "8. decisions" if folder == "facts" else "9. signatures"
        moved = long | {f"{folder}/000000000000.jsonl": long[f"{folder}/000000000000.jsonl"] + long[name]}
        del moved[name]
        refused(pack(moved), long_world, step, folder)

    @pytest.mark.parametrize("folder", ["leaves", "records"])
    def test_a_whole_chunk_withheld(self, long: Files, long_world: World, pack: Pack, folder: str) -> None:
        kept = {name: data for name, data in long.items() if name != f"{folder}/000000001024.jsonl"}
        refused(pack(kept), long_world, "3. checkpoint", f"{folder}/000000001024.jsonl")

    def test_one_leaf_moved_to_the_next_chunk(self, long: Files, long_world: World, pack: Pack) -> None:
        first, second = "leaves/000000000000.jsonl", "leaves/000000001024.jsonl"
        *kept, moved = long[first].splitlines(keepends=True)
        refused(pack(long | {first: b"".join(kept), second: moved + long[second]}), long_world, "4. leaves", first)

    def test_a_fault_in_a_late_chunk_names_its_entry(self, long: Files, long_world: World, pack: Pack) -> None:
        files = dict(long)
        value("records/000000002048.jsonl", 100, lambda one: one["record"].update(more=1))(files)
        refused(pack(files), long_world, "6. records", "records/000000002048.jsonl, entry 2148")


class TestExport:
    def test_a_manifest_that_nobody_signed(self, files: Files, world: World, pack: Pack) -> None:
        files["README.txt"] = b"All is well.\n"
        assert "another manifest" in refused(pack(files), world, "12. export", STATEMENT)

    @pytest.mark.parametrize("name", ["report.html", "entries.csv", "index.json", "oscal.json"])
    def test_a_report_slipped_in(self, files: Files, world: World, pack: Pack, name: str) -> None:
        files[name] = b"All is well.\n"
        refused(pack(files), world, "12. export", STATEMENT)

    def test_a_statement_signed_by_another_key(self, world: World, tmp_path: Path) -> None:
        other = dataclasses.replace(world, attestation=PrivateKey.generate(P256))
        world.build(tmp_path / "a.zip", sign_export=other.sign_export)
        refused(tmp_path / "a.zip", world, "12. export", STATEMENT)

    @pytest.mark.parametrize(
        "changes",
        [
            {"size": 3},
            {"tenant": "lakeside"},
            {"origin": "licet.example/log/lakeside"},
            {"erased": 1},
            {"root": "0" * 64},
            {"first": 1},
            {"end": 3},
            {"from_ms": 0},
            {"to_ms": 2**50},
            {"v": 1},
            {"exported_at_ms": "now"},
            {"more": 1},
        ],
    )
    def test_a_statement_about_another_range(self, world: World, tmp_path: Path, changes: dict[str, Any]) -> None:
        def sign(claim: bytes) -> bytes:
            found = canonical.loads(claim)
            return bytes(world.sign_export(edited(claim, predicate=found["predicate"] | changes)))

        world.build(tmp_path / "a.zip", sign_export=sign)
        refused(tmp_path / "a.zip", world, "12. export", STATEMENT)

    def test_the_statement_of_another_export(self, files: Files, world: World, pack: Pack, tmp_path: Path) -> None:
        """Replayed: a genuine statement of the same installation, about what was then."""
        world.decide("deny", "dataset.read")
        later = world.files(tmp_path)
        refused(pack(later | {STATEMENT: files[STATEMENT]}), world, "12. export", STATEMENT)

    def test_another_genuine_attestation_in_its_place(self, world: World, tmp_path: Path) -> None:
        world.build(tmp_path / "a.zip", sign_export=lambda _claim: list(world.attestations.values())[1])
        refused(tmp_path / "a.zip", world, "12. export", STATEMENT)

    def test_a_statement_from_before_what_it_is_about(self, world: World, tmp_path: Path) -> None:
        def sign(claim: bytes) -> bytes:
            found = canonical.loads(claim)
            early = {"exported_at_ms": world.leaves[-1].time_ms - 1}
            return bytes(world.sign_export(edited(claim, predicate=found["predicate"] | early)))

        world.build(tmp_path / "a.zip", sign_export=sign)
        assert "before the last entry" in refused(tmp_path / "a.zip", world, "12. export", STATEMENT)
        # A writer whose clock was set back states the time of the log.
        world.build(tmp_path / "b.zip", exported_at_ms=5)
        verify_archive(tmp_path / "b.zip", world.trust)

    def test_a_key_that_is_compromised_vouches_for_no_export_whatever_time_it_states(
        self, world: World, whole: Path
    ) -> None:
        trust = world.trust
        late_ms = world.now_ms + 10**9
        keys = tuple(
            dataclasses.replace(key, valid_until_ms=late_ms, compromised_from_ms=late_ms)
            if key.purpose == "attestation"
            else key
            for key in trust.trusted
        )
        with pytest.raises(VerificationError) as caught:
            verify_archive(whole, dataclasses.replace(trust, trusted=keys))
        assert (caught.value.step, caught.value.where) == ("12. export", STATEMENT)


class TestIsolation:
    @pytest.mark.parametrize(
        "changes",
        [{"answer": "broken"}, {"foreign": {}}, {"outward": 1}, {"sentence": "All is well."}, {"does_not_prove": []}],
    )
    def test_a_signed_answer_that_is_not_the_computed_one(
        self, world: World, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        def sign(answer: Any) -> bytes:
            predicate = answer.to_predicate() | changes
            claim = statement.Statement((statement.Subject("log", "1" * 64),), statement.ISOLATION, predicate)
            return bytes(world.sign_export(claim.to_bytes()))

        world.build(tmp_path / "a.zip", sign_isolation=sign)
        refused(tmp_path / "a.zip", world, "13. isolation", "isolation.dsse.json")

    def test_an_answer_signed_by_another_key(self, world: World, tmp_path: Path) -> None:
        other = dataclasses.replace(world, attestation=PrivateKey.generate(P256))
        world.build(tmp_path / "a.zip", sign_isolation=other.sign_isolation)
        refused(tmp_path / "a.zip", world, "13. isolation", "isolation.dsse.json")


def test_a_pickled_or_nested_archive_is_none(world: World, tmp_path: Path) -> None:
    for content in (
        b"\x80\x05N.",
        b"%PDF-1.7",
        b"\x1f\x8b\x08",
        zipped(tmp_path / "b.zip", {"a.zip": b"PK"}).read_bytes(),
    ):
        (tmp_path / "a.zip").write_bytes(content)
        refused(tmp_path / "a.zip", world, "1. form")
