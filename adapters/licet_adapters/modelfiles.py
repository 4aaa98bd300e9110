"""The gate for model files: weights that cannot execute and a declared architecture, and nothing else.

A model is a folder of exactly ``model.safetensors`` and ``architecture.json``. Rules kept here:

- Both are regular files, opened without following links, of bounded size; any other entry refuses the folder.
- The weights are parsed by this strict reader, not by a library that might guess: header length, JSON without
  duplicates, known float types, shapes, offsets that tile the data with no gap, overlap or trailing byte.
- What another loader would execute is refused even where the strict reader would be content: a pickle (any protocol,
  bare or legacy torch), an archive (zip, tar, compressed) at either end of the file, or either within a tensor.
- The architecture is a declaration: names, widths, one of a few activations. It holds no code and no path.
- The declared tensors and those in the weights are the same, name by name and shape by shape.
- Nothing here imports torch, and nothing is ever unpickled; opcodes are only read.
"""

from __future__ import annotations

import hashlib
import io
import math
import mmap
import os
import pickletools
import re
import stat
import warnings
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from licet_adapters.errors import InputRefused
from licet_adapters.ports import MODEL_FILES
from licet_attestations import canonical
from licet_attestations.errors import LicetAttestationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from io import BufferedReader
    from pathlib import Path

WEIGHTS_FILE = "model.safetensors"
ARCHITECTURE_FILE = "architecture.json"
MAX_WEIGHTS_BYTES = 1 << 30
MAX_ARCHITECTURE_BYTES = 1 << 20
_MAX_HEADER_BYTES = 4 << 20
_MAX_TENSORS = 10_000
_MAX_DIMENSIONS = 8
_LENGTH_BYTES = 8
_ITEM_BYTES: Mapping[str, int] = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8}
# Leading bytes of what a careless loader would unpack, and its name for people. Four bytes or nearly: a tensor's first
# bytes are random, and a header length of 640 bytes reads like the start of a pickle.
_MAGICS: Mapping[bytes, str] = {
    b"PK\x03\x04": "a zip archive (as torch.save writes)",
    b"PK\x05\x06": "an empty zip archive",
    b"\x1f\x8b\x08": "gzip data",
    b"\xfd7zXZ\x00": "xz data",
    b"\x28\xb5\x2f\xfd": "zstandard data",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x93NUMPY": "a numpy file",
}
_BZIP2_MAGIC_AT = 4
_BZIP2_MAGIC = b"1AY&SY"
_TAR_MAGIC_AT = 257
_TAR_MAGIC = b"ustar"
_MAX_PICKLES = 16
_MAX_OPCODES = 200_000
_MAX_OPCODES_OF_ALL = 1_000_000
"""Over all tensors of a file: an honest one is left after a few, and following so many takes some seconds."""
# Nothing runs in an unpickler before one of these brought in a callable.
_IMPORTING = frozenset({"GLOBAL", "STACK_GLOBAL", "INST"})
# Numbers that stand for a callable in a registry which is empty unless a program fills it: an unpickler fails here.
_UNREGISTERED = frozenset({"EXT1", "EXT2", "EXT4"})
_TEXTS = (pickletools.pyunicode, pickletools.pystring, pickletools.pybytes_or_str)
_IMPORTED_NAME = re.compile(r"[A-Za-z_][\w.]* [A-Za-z_][\w.]*")

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:=/ -]*$")]
Width = Annotated[int, Field(ge=1, le=65536)]


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Feature(_Declared):
    """One input column and how it becomes numbers.

    Attributes:
        name: Column.
        encoding: ``number`` as it is, ``yes-no`` as 1 and 0, ``one-hot`` over ``categories``.
        categories: For ``one-hot``: the values, in order.
    """

    name: Name
    encoding: Literal["number", "yes-no", "one-hot"] = "number"
    categories: tuple[Name, ...] = Field(default=(), max_length=4096)

    @property
    def width(self) -> int:
        """How many numbers it becomes."""
        return len(self.categories) if self.encoding == "one-hot" else 1


class Architecture(_Declared):
    """The declared architecture: enough to build the network, nothing that could run.

    Attributes:
        v: Version of this declaration.
        kind: ``mlp``: fully connected layers with one activation between them.
        task: What the outputs mean.
        features: Inputs, in order.
        hidden: Widths of the hidden layers.
        activation: Between layers.
        dropout_permille: Between layers while training.
        outputs: Logits.
        threshold_micro: Probability from which the answer is yes.
        target: Column that is predicted.
        tensors: Name to shape of every tensor in the weights (buffers such as means and scales included).
    """

    v: Literal[1]
    kind: Literal["mlp"]
    task: Literal["binary-classification"]
    features: tuple[Feature, ...] = Field(min_length=1, max_length=4096)
    hidden: tuple[Width, ...] = Field(max_length=32)
    activation: Literal["relu", "tanh", "gelu", "silu"]
    dropout_permille: int = Field(default=0, ge=0, le=900)
    outputs: Literal[1] = 1
    threshold_micro: int = Field(default=500_000, ge=0, le=1_000_000)
    target: Name
    tensors: dict[Name, tuple[Annotated[int, Field(ge=0, le=1 << 31)], ...]] = Field(
        min_length=1, max_length=_MAX_TENSORS
    )

    @model_validator(mode="after")
    def _features_are_distinct(self) -> Architecture:
        if len({feature.name for feature in self.features}) != len(self.features):
            raise ValueError("a feature is named twice")
        for feature in self.features:
            if (feature.encoding == "one-hot") != bool(feature.categories):
                raise ValueError(f"feature {feature.name}: categories go with one-hot, and only with it")
            if len(set(feature.categories)) != len(feature.categories):
                raise ValueError(f"feature {feature.name}: a category is named twice")
        return self


@dataclass(frozen=True, kw_only=True, slots=True)
class InspectedModel:
    """A model folder that passed.

    Attributes:
        digests: File name to SHA-256 in hex, of the very bytes that were inspected.
        sizes_bytes: File name to length.
        architecture: Parsed.
    """

    digests: Mapping[str, str]
    sizes_bytes: Mapping[str, int]
    architecture: Architecture


def inspect_model_files(directory: Path) -> InspectedModel:
    """Verify that ``directory`` holds one model and nothing else.

    The caller makes sure that nobody else can write there between this and its use, or uses only bytes whose digests
    are those returned.

    Args:
        directory: To inspect; it is not changed.

    Raises:
        InputRefused: What is wrong, in which file; codes ``model.entries``, ``model.pickle``, ``model.archive``,
            ``model.weights``, ``model.architecture``, ``model.link``, ``model.size``.
    """
    _check_entries(directory)
    digests: dict[str, str] = {}
    sizes_bytes: dict[str, int] = {}
    with _open_regular(directory / ARCHITECTURE_FILE, MAX_ARCHITECTURE_BYTES) as file:
        data = file.read()
        architecture = parse_architecture(data)
        digests[ARCHITECTURE_FILE], sizes_bytes[ARCHITECTURE_FILE] = hashlib.sha256(data).hexdigest(), len(data)
    with _open_regular(directory / WEIGHTS_FILE, MAX_WEIGHTS_BYTES) as file:
        shapes = _inspect_weights(file)
        file.seek(0)
        digests[WEIGHTS_FILE] = hashlib.file_digest(file, "sha256").hexdigest()
        sizes_bytes[WEIGHTS_FILE] = file.tell()
    if shapes != dict(architecture.tensors):
        odd = sorted(
            name
            for name in shapes.keys() | architecture.tensors.keys()
            if shapes.get(name) != architecture.tensors.get(name)
        )
        raise InputRefused(
            f"{WEIGHTS_FILE}: tensors differ from those that {ARCHITECTURE_FILE} declares: {', '.join(odd[:5])}",
            code="model.weights",
        )
    return InspectedModel(digests=digests, sizes_bytes=sizes_bytes, architecture=architecture)


def parse_architecture(data: bytes) -> Architecture:
    """Return the declaration in ``data``.

    Raises:
        InputRefused: It is a disguised pickle or archive, or not a valid declaration.
    """
    _refuse_executable(io.BytesIO(data), ARCHITECTURE_FILE)
    try:
        # Parsed strictly first (no duplicates, no floats, bounded); then by JSON's own types.
        return Architecture.model_validate_json(canonical.dumps(canonical.loads(data)))
    except LicetAttestationError as error:
        raise InputRefused(f"{ARCHITECTURE_FILE}: {error}", code="model.architecture") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputRefused(f"{ARCHITECTURE_FILE}: {where}: {first['msg']}", code="model.architecture") from error


def _check_entries(directory: Path) -> None:
    try:
        entries = sorted(entry.name for entry in os.scandir(directory))
    except OSError as error:
        raise InputRefused(f"the model folder cannot be read: {error.strerror}", code="model.entries") from error
    for name in entries:
        if name not in MODEL_FILES:
            raise InputRefused(
                f"{name[:80]!r}: a model is exactly {' and '.join(MODEL_FILES)}; other files, pickles above all, are refused",
                code="model.entries",
            )
    if missing := sorted(set(MODEL_FILES) - set(entries)):
        raise InputRefused(f"the model lacks {', '.join(missing)}", code="model.entries")


def _open_regular(path: Path, max_bytes: int) -> BufferedReader:
    try:
        # O_NONBLOCK: a pipe of that name must not hold us up before it is seen to be one.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InputRefused(f"{path.name}: not a regular file: {error.strerror}", code="model.link") from error
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        raise InputRefused(f"{path.name}: not a regular file", code="model.link")
    if found.st_size > max_bytes:
        os.close(fd)
        raise InputRefused(f"{path.name}: {found.st_size} bytes; at most {max_bytes} are taken", code="model.size")
    return os.fdopen(fd, "rb")


# --- weights ---------------------------------------------------------------------------------------------------------


def _inspect_weights(file: BufferedReader) -> dict[str, tuple[int, ...]]:
    _refuse_executable(file, WEIGHTS_FILE)
    header, data_at, size_bytes = _read_weights_header(file)
    shapes: dict[str, tuple[int, ...]] = {}
    spans: list[tuple[int, int, str]] = []
    for name, declared in header.items():
        shapes[name], begin, end = _check_tensor(name, declared)
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise _bad_weights(f"tensor {name!r} overlaps another or leaves a gap")
        position = end
    if data_at + position != size_bytes:
        raise _bad_weights(f"{size_bytes - data_at - position} bytes differ between its header and its length")
    budget = _Budget(_MAX_OPCODES_OF_ALL)
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for begin, end, name in spans:
            window = _Window(mapped, data_at + begin, data_at + end)
            _refuse_executable(window, f"{WEIGHTS_FILE}: tensor {name!r}", budget)
    return shapes


def _read_weights_header(file: BufferedReader) -> tuple[dict[str, Any], int, int]:
    """Return the declared tensors, where their data begins, and the length of the file."""
    file.seek(0)
    size_bytes = os.fstat(file.fileno()).st_size
    if size_bytes <= _LENGTH_BYTES:
        raise _bad_weights("shorter than a header")
    header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if not 2 <= header_bytes <= min(_MAX_HEADER_BYTES, size_bytes - _LENGTH_BYTES):  # noqa: PLR2004  # `{}`
        raise _bad_weights("its header length is impossible: not a safetensors file")
    raw = file.read(header_bytes)
    if raw[:1] != b"{":
        raise _bad_weights("its header is not JSON: not a safetensors file")
    try:
        header = canonical.loads(raw.rstrip(b" "), max_bytes=_MAX_HEADER_BYTES)
    except LicetAttestationError as error:
        raise _bad_weights(f"its header is not strict JSON: {error}") from error
    # Libraries write {"format": "pt"} here; free text would be a place to hide things in.
    if header.pop("__metadata__", {"format": "pt"}) != {"format": "pt"}:
        raise _bad_weights("it bears metadata; only format=pt is taken")
    if not 1 <= len(header) <= _MAX_TENSORS:
        raise _bad_weights(f"it holds {len(header)} tensors; 1 to {_MAX_TENSORS} are taken")
    return header, _LENGTH_BYTES + header_bytes, size_bytes


def _check_tensor(name: str, declared: Any) -> tuple[tuple[int, ...], int, int]:
    if not isinstance(declared, dict) or set(declared) != {"dtype", "shape", "data_offsets"}:
        raise _bad_weights(f"tensor {name!r} is not declared by dtype, shape and data_offsets")
    dtype, shape, offsets = declared["dtype"], declared["shape"], declared["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise _bad_weights(f"tensor {name!r} has dtype {dtype!r}; {', '.join(_ITEM_BYTES)} are taken")
    if not _is_naturals(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _bad_weights(f"tensor {name!r} has no valid shape")
    if not _is_naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:  # noqa: PLR2004  # begin and end
        raise _bad_weights(f"tensor {name!r} has no valid offsets")
    if math.prod(shape) * _ITEM_BYTES[dtype] != offsets[1] - offsets[0]:
        raise _bad_weights(f"tensor {name!r} has not the size of its shape")
    return tuple(shape), offsets[0], offsets[1]


def _is_naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _bad_weights(what: str) -> InputRefused:
    return InputRefused(f"{WEIGHTS_FILE}: {what}", code="model.weights")


# --- what another loader would execute -------------------------------------------------------------------------------


class _Window(io.RawIOBase):
    """A read-only view of a part of a mapped file, without copying it."""

    def __init__(self, mapped: mmap.mmap, begin: int, end: int) -> None:
        super().__init__()
        self._mapped, self._begin, self._end, self._at = mapped, begin, end, begin

    def read(self, size: int | None = -1) -> bytes:
        stop = self._end if size is None or size < 0 else min(self._at + size, self._end)
        data = self._mapped[self._at : stop]
        self._at = max(stop, self._at)
        return data

    def readline(self, size: int | None = -1) -> bytes:
        del size  # Never asked for.
        found = self._mapped.find(b"\n", self._at, self._end)
        return self.read(-1 if found < 0 else found + 1 - self._at)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: self._begin, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        self._at = min(max(base + offset, self._begin), self._end)
        return self._at - self._begin

    def tell(self) -> int:
        return self._at - self._begin

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


@dataclass(slots=True)
class _Budget:
    """How many opcodes may still be followed."""

    left: int = _MAX_OPCODES


def _refuse_executable(file: Any, where: str, budget: _Budget | None = None) -> None:
    """Refuse what a careless loader would unpack or execute, however its name reads."""
    if _is_pickle(file, budget):
        raise InputRefused(
            f"{where}: this is a pickle, which can run code when it is loaded; save the weights as safetensors",
            code="model.pickle",
        )
    file.seek(0)
    head = file.read(512)
    found = next((name for magic, name in _MAGICS.items() if head.startswith(magic)), None)
    if head[_TAR_MAGIC_AT:].startswith(_TAR_MAGIC):
        found = "a tar archive"
    elif head[:3] == b"BZh" and head[_BZIP2_MAGIC_AT:].startswith(_BZIP2_MAGIC):
        found = "bzip2 data"
    elif found is None and zipfile.is_zipfile(file):
        # A zip is found by its end: a file can be something else in front and a zip behind.
        found = "a zip archive behind other data"
    if found is not None:
        raise InputRefused(
            f"{where}: this is {found}, which may hold a pickle or a bomb; it is not unpacked to look",
            code="model.archive",
        )


def _is_pickle(file: Any, budget: _Budget | None = None) -> bool:
    """Tell whether an unpickler would get anywhere with these bytes: import something, or end well at their end.

    Any protocol, and several pickles in a row (legacy torch files are five). Opcodes are read, never executed.
    """
    file.seek(0)
    budget = budget or _Budget(_MAX_OPCODES * _MAX_PICKLES)
    for _ in range(_MAX_PICKLES):
        match _walk_pickle(file, budget):
            case "imports":
                return True
            case "no pickle":
                return False
        if not file.read(1):
            return True  # It stopped exactly at the end.
        file.seek(-1, os.SEEK_CUR)
    return True


def _walk_pickle(file: Any, budget: _Budget) -> Literal["imports", "stops", "no pickle"]:
    """Follow one pickle's opcodes as far as an unpickler would come."""
    stack = _PickleStack()
    try:
        with warnings.catch_warnings():
            # A broken escape in what only looks like a pickle's text is no one's mistake.
            warnings.simplefilter("ignore", DeprecationWarning)
            for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
                if stack.imports(opcode, argument):
                    return "imports"
                budget.left -= 1
                if count > _MAX_OPCODES or budget.left < 0:
                    return "imports"  # Nothing of ours is like this; it need not be followed to its end.
    except (ValueError, OverflowError, MemoryError, LookupError):
        return "no pickle"
    return "stops"


class _PickleStack:
    """As much of an unpickler's stack, marks and memo as tells where it would fail: of each item, whether it is text.

    Bytes at random reach some opcode that imports every few thousand tries; with this they reach none.
    """

    def __init__(self) -> None:
        self._items: list[bool] = []
        self._marks: list[int] = []
        self._memo: dict[int, bool] = {}

    def imports(self, opcode: pickletools.OpcodeInfo, argument: Any) -> bool:
        """Take one step; tell whether it would import something.

        Raises:
            ValueError: An unpickler would fail here, before anything has run.
            LookupError: As ValueError.
        """
        if opcode.name in _UNREGISTERED:
            raise ValueError(opcode.name)
        if opcode.name == "STACK_GLOBAL":
            name_is_text, module_is_text = self._items.pop(), self._items.pop()
            return self._named(named=name_is_text and module_is_text)
        if opcode.name in _IMPORTING:
            return self._named(named=_IMPORTED_NAME.fullmatch(argument) is not None)
        match opcode.name:
            case "MARK":
                self._marks.append(len(self._items))
            case "POP" if len(self._items) == (self._marks[-1] if self._marks else -1):
                self._marks.pop()  # What lies on top is a mark.
            case "DUP":
                self._items.append(self._items[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._items[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._items[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self._items.append(self._memo[argument])
            case _:
                self._take(list(opcode.stack_before))
                self._items += [kind in _TEXTS for kind in opcode.stack_after]
        return False

    def _take(self, kinds: list[pickletools.StackObject]) -> None:
        if pickletools.markobject in kinds:
            del self._items[self._marks.pop() :]
            kinds = kinds[: kinds.index(pickletools.markobject)]
        for _ in kinds:
            self._items.pop()

    def _named(self, *, named: bool) -> bool:
        if not named:
            raise ValueError("no name to import")
        return True
