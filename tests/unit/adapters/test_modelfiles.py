"""The gate for model files: what it takes, and every disguise it must see through."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from licet_adapters.conformance.registry import make_model
from licet_adapters.errors import InputRefused
from licet_adapters.modelfiles import _is_pickle, inspect_model_files, parse_architecture

if TYPE_CHECKING:
    from collections.abc import Callable


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("echo executed > /tmp/licet-executed",)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model")[0]


def refusal(folder: Path) -> str:
    with pytest.raises(InputRefused) as refused:
        inspect_model_files(folder)
    return refused.value.code


def zipped(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def tarred(data: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("data.pkl")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]], **more: Any) -> bytes:
    header: dict[str, Any] = dict(more)
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return framed(json.dumps(header).encode(), data)


def framed(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


EVIL = pickle.dumps(Evil(), 4)


def test_a_model_passes_and_its_digests_are_of_what_was_read(model: Path) -> None:
    inspected = inspect_model_files(model)
    assert sorted(inspected.digests) == ["architecture.json", "model.safetensors"]
    assert inspected.sizes_bytes["model.safetensors"] == (model / "model.safetensors").stat().st_size
    assert inspected.architecture.hidden == (4,)


def test_a_model_written_by_the_safetensors_library_passes(model: Path) -> None:
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("safetensors.torch")
    shapes = json.loads((model / "architecture.json").read_bytes())["tensors"]
    library.save_file({n: torch.randn(s) for n, s in shapes.items()}, model / "model.safetensors", {"format": "pt"})
    inspect_model_files(model)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_of_any_protocol_is_seen_as_one(model: Path, protocol: int) -> None:
    for value in (Evil(), {"weights": [1.5, 2.5]}, [1]):
        data = pickle.dumps(value, protocol)
        (model / "model.safetensors").write_bytes(data)
        assert refusal(model) == "model.pickle"
        with pytest.raises(InputRefused) as refused:
            parse_architecture(data)
        assert refused.value.code == "model.pickle"
    assert not Path("/tmp/licet-executed").exists()  # noqa: S108  # Where the pickle would have written.


def test_a_torch_file_old_or_new_is_refused(model: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for legacy, code in ((True, "model.pickle"), (False, "model.archive")):
        torch.save({"w": torch.zeros(2)}, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
        (model / "model.safetensors").write_bytes((tmp_path / "w.pt").read_bytes())
        assert refusal(model) == code


@pytest.mark.parametrize(
    "data",
    [
        zipped(("data.pkl", EVIL)),
        zipped(("bomb", bytes(50_000_000))),
        zipped(),
        tarred(EVIL),
        gzip.compress(EVIL),
        bz2.compress(EVIL),
        lzma.compress(EVIL),
    ],
    ids=["zip", "zip bomb", "empty zip", "tar", "gzip", "bzip2", "xz"],
)
def test_an_archive_is_refused_unopened(model: Path, data: bytes) -> None:
    for name in ("model.safetensors", "architecture.json"):
        kept = (model / name).read_bytes()
        (model / name).write_bytes(data)
        assert refusal(model) == "model.archive"
        (model / name).write_bytes(kept)


def test_a_zip_behind_valid_weights_is_refused(model: Path) -> None:
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights + zipped(("data.pkl", EVIL)))
    assert refusal(model) == "model.archive"


def test_a_zip_as_the_last_tensor_of_valid_weights_is_refused(model: Path) -> None:
    content = zipped(("data.pkl", EVIL))
    content = bytes(-len(content) % 4) + content
    (model / "model.safetensors").write_bytes(safetensors({"w": ("F32", [len(content) // 4], content)}))
    assert refusal(model) == "model.archive"


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_as_a_tensor_of_valid_weights_is_refused(model: Path, protocol: int) -> None:
    content = pickle.dumps(Evil(), protocol)
    content += bytes(-len(content) % 4)
    (model / "model.safetensors").write_bytes(
        safetensors({"a": ("F32", [1], bytes(4)), "w": ("F32", [len(content) // 4], content)})
    )
    assert refusal(model) == "model.pickle"


def test_weights_that_an_unpickler_would_run_from_their_first_byte_are_refused(model: Path) -> None:
    # `B` takes four bytes of length and swallows them, header and all; then come a pop and the payload.
    payload = b"0cos\nsystem\n(S'true'\ntR."
    length = ord("B") + 256 * 0
    header = b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'
    header += b" " * (length - len(header))
    skipped = int.from_bytes((length.to_bytes(8, "little"))[1:5], "little")
    assert skipped == 0  # Nothing is swallowed: three zero bytes follow, which no unpickler reads.
    (model / "model.safetensors").write_bytes(framed(header, payload.ljust(36)))
    refusal(model)
    # With the header's length as the swallowed length, the pickle goes on within the data.
    length = ord("B") | (80 << 8)
    header = header.rstrip().ljust(length)
    data = bytes(36)
    whole = bytearray(framed(header, data))
    whole[85 : 85 + len(payload)] = payload
    (model / "model.safetensors").write_bytes(bytes(whole))
    assert refusal(model) == "model.pickle"


@pytest.mark.parametrize(
    "start",
    [b"", b"(0", b"N0", b"(lp0\n0", b"I1\np3\n0g3\n0", b"NN00", b"((00", b"}(u0", b"\x8c\x01a\x94h\x000", b"N." * 3],
    ids=repr,
)
def test_a_pickle_behind_harmless_opcodes_is_seen(model: Path, start: bytes) -> None:
    content = start + b"cos\nsystem\n(S'true'\ntR."
    content += bytes(-len(content) % 4)
    (model / "model.safetensors").write_bytes(safetensors({"w": ("F32", [len(content) // 4], content)}))
    assert refusal(model) == "model.pickle"


def test_random_weights_are_never_taken_for_a_pickle(tmp_path: Path) -> None:
    source = random.Random(7)  # noqa: S311  # Weights, not secrets.
    folder, _ = make_model(tmp_path / "model")
    for _ in range(300):
        weights = bytearray((folder / "model.safetensors").read_bytes())
        weights[-60:] = source.randbytes(60)
        (folder / "model.safetensors").write_bytes(bytes(weights))
        inspect_model_files(folder)
    for _ in range(20_000):
        assert not _is_pickle(io.BytesIO(source.randbytes(64)))


@pytest.mark.parametrize("header_bytes", [640, 896, 1152, 1408])
def test_a_header_whose_length_reads_like_a_pickles_start_passes(model: Path, header_bytes: int) -> None:
    weights = (model / "model.safetensors").read_bytes()
    length = int.from_bytes(weights[:8], "little")
    header = weights[8 : 8 + length].rstrip().ljust(header_bytes)
    (model / "model.safetensors").write_bytes(framed(header, weights[8 + length :]))
    assert (model / "model.safetensors").read_bytes()[0] == 0x80
    inspect_model_files(model)


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"", b""),
        (b"[]", b""),
        (b"{}", b""),
        (b" {}", b""),
        (b'{"w":1}', b""),
        (json.dumps({"w": TENSOR}).encode(), bytes(9)),
        (json.dumps({"w": TENSOR}).encode(), bytes(7)),
        (json.dumps({"w": TENSOR | {"dtype": "U8"}}).encode(), bytes(8)),
        (json.dumps({"w": TENSOR | {"dtype": "OBJ"}}).encode(), bytes(8)),
        (json.dumps({"w": TENSOR | {"shape": [3]}}).encode(), bytes(8)),
        (json.dumps({"w": TENSOR | {"shape": [-1, -2]}}).encode(), bytes(8)),
        (json.dumps({"w": TENSOR | {"shape": [True, 2]}}).encode(), bytes(8)),
        (json.dumps({"w": TENSOR | {"data_offsets": [8, 0]}}).encode(), bytes(8)),
        (json.dumps({"w": TENSOR | {"data_offsets": [0, 8, 9]}}).encode(), bytes(8)),
        (json.dumps({"w": TENSOR | {"more": 1}}).encode(), bytes(8)),
        (json.dumps({"w": TENSOR, "x": TENSOR}).encode(), bytes(8)),
        (json.dumps({"w": TENSOR, "x": TENSOR | {"data_offsets": [12, 20]}}).encode(), bytes(20)),
        (json.dumps({"w": TENSOR | {"data_offsets": [4, 12]}}).encode(), bytes(12)),
        (json.dumps({"w": TENSOR, "__metadata__": {"format": "pt", "note": "x"}}).encode(), bytes(8)),
        (
            b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            bytes(8),
        ),
        (b'{"w":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}', bytes(8)),
        (b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}", bytes(8)),
    ],
)
def test_weights_that_do_not_parse_strictly_are_refused(model: Path, header: bytes, data: bytes) -> None:
    (model / "model.safetensors").write_bytes(framed(header, data))
    assert refusal(model) == "model.weights"


def test_a_header_length_that_points_anywhere_else_is_refused(model: Path) -> None:
    weights = (model / "model.safetensors").read_bytes()
    for length in (0, 1, len(weights), 1 << 31, (1 << 64) - 1):
        (model / "model.safetensors").write_bytes(length.to_bytes(8, "little") + weights[8:])
        assert refusal(model) == "model.weights"


def test_weights_other_than_declared_are_refused(model: Path) -> None:
    (model / "model.safetensors").write_bytes(safetensors({"w": ("F32", [1], bytes(4))}))
    assert refusal(model) == "model.weights"


@pytest.mark.parametrize("name", ["extra.pkl", "model.bin", ".hidden", "pytorch_model.bin", "a.py", "data"])
def test_any_other_entry_is_refused(model: Path, name: str) -> None:
    (model / name).write_bytes(b"")
    assert refusal(model) == "model.entries"
    (model / name).unlink()
    (model / name).mkdir()
    assert refusal(model) == "model.entries"


@pytest.mark.parametrize("name", ["model.safetensors", "architecture.json"])
def test_what_is_not_a_regular_file_is_refused(model: Path, tmp_path: Path, name: str) -> None:
    path = model / name
    path.rename(tmp_path / "moved")
    assert refusal(model) == "model.entries"
    path.symlink_to(tmp_path / "moved")
    assert refusal(model) == "model.link"
    path.unlink()
    os.mkfifo(path)
    assert refusal(model) == "model.link"
    path.unlink()
    path.mkdir()
    assert refusal(model) == "model.link"


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent") == "model.entries"


def test_weights_that_are_too_large_are_not_read(model: Path) -> None:
    with (model / "model.safetensors").open("ab") as file:
        file.truncate((1 << 30) + 1)
    assert refusal(model) == "model.size"


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"kind": "code"},
        {"code": "import os"},
        {"hidden": [0]},
        {"hidden": ["4"]},
        {"hidden": [4] * 33},
        {"activation": "eval"},
        {"features": []},
        {"features": [{"name": "a"}, {"name": "a"}]},
        {"features": [{"name": "a", "encoding": "one-hot"}]},
        {"features": [{"name": "a", "categories": ["x"]}]},
        {"features": [{"name": "../a"}]},
        {"threshold_micro": 1_000_001},
        {"threshold_micro": True},
        {"tensors": {}},
    ],
)
def test_an_architecture_that_is_not_a_valid_declaration_is_refused(model: Path, change: dict[str, Any]) -> None:
    declared = json.loads((model / "architecture.json").read_bytes()) | change
    with pytest.raises(InputRefused) as refused:
        parse_architecture(json.dumps(declared).encode())
    assert refused.value.code == "model.architecture"


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"null", b"{", b'{"v":1,"v":1}', b"\xff\xfe", b'{"v":1.0}', b"[" * 99_999]
)
def test_an_architecture_that_is_not_strict_json_is_refused(data: bytes) -> None:
    with pytest.raises(InputRefused) as refused:
        parse_architecture(data)
    assert refused.value.code == "model.architecture"
