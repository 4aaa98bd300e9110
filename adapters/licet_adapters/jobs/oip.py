"""The Open Inference Protocol, version 2, over JSON: what a request must be, and how answers are written. No I/O.

The protocol has its tensors in JSON: ``{"inputs": [{"name", "shape", "datatype", "data"}]}``. A tabular model takes one
input for each feature, of shape ``[rows]`` or ``[rows, 1]``, and gives ``probability`` and ``label``, of shape ``[rows]``.

Rules kept here:

- A request is understood whole or refused with a sentence that says which tensor is wrong, how, and what is taken; no
  value of a row stands in it.
- Every feature is there exactly once and nothing else is; a shape says exactly how many values there are; a value has the
  type that the datatype says, and is finite in float32.
- Rows, inputs and the nesting of data are bounded.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Floats = npt.NDArray[np.float32]

PLATFORM = "licet_tabular"
_INTEGERS = frozenset({"INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"})
_FLOATS = frozenset({"FP16", "FP32", "FP64"})
_DATATYPES = _INTEGERS | _FLOATS | {"BOOL"}
_BITS = {name: int("".join(filter(str.isdigit, name))) for name in _INTEGERS}
_MAX_INPUTS = 65_536
_MAX_ID_CHARS = 200
_MAX_NAME_CHARS = 200
_MAX_DIMENSIONS = 2


class Malformed(Exception):  # A refusal, named as the house names it.
    """The request is not what the protocol or the model takes; the message says why."""


class Tensor(msgspec.Struct):
    """One input as it was sent."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class Wanted(msgspec.Struct):
    """One output that is asked for."""

    name: str


class InferRequest(msgspec.Struct):
    """A request as it was sent; members that are not known are extensions, and ignored."""

    inputs: list[Tensor]
    id: str | None = None
    outputs: list[Wanted] | None = None


class OutputTensor(msgspec.Struct):
    """One output of an answer."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class InferResponse(msgspec.Struct, omit_defaults=True):
    """An answer."""

    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives.

    Attributes:
        features: Name to whether it is a yes or no, in the order of the model's columns.
        threshold: From which probability on the label is true.
    """

    features: Mapping[str, bool]
    threshold: float

    @classmethod
    def of(cls, declaration: Mapping[str, Any]) -> Signature:
        """Read it off an ``architecture.json``."""
        features = {feature["name"]: feature.get("encoding") == "yes-no" for feature in declaration["features"]}
        return cls(features, declaration.get("threshold_micro", 500_000) / 1_000_000)

    def metadata(self, name: str, version: str) -> dict[str, Any]:
        """Model metadata as the protocol has it; ``-1`` is a dimension of any size."""
        inputs = [
            {"name": feature, "datatype": "BOOL" if yes_no else "FP32", "shape": [-1]}
            for feature, yes_no in self.features.items()
        ]
        return {
            "name": name,
            "versions": [version],
            "platform": PLATFORM,
            "inputs": inputs,
            "outputs": [
                {"name": "probability", "datatype": "FP32", "shape": [-1]},
                {"name": "label", "datatype": "BOOL", "shape": [-1]},
            ],
        }


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that was understood.

    Attributes:
        rows: Float32 ``[rows, features]``, in the signature's order.
        id: As the caller chose.
        outputs: Names of the outputs to give.
    """

    rows: Floats
    id: str | None
    outputs: tuple[str, ...]


_OUTPUTS = ("probability", "label")
_decode_request = msgspec.json.Decoder(InferRequest).decode
_decode_response = msgspec.json.Decoder(InferResponse).decode
encode = msgspec.json.Encoder().encode
"""Writes JSON."""


def parse_request(body: bytes, signature: Signature, max_rows: int) -> Asked:
    """Understand an inference request.

    Args:
        body: As it was sent.
        signature: What the model takes.
        max_rows: Most rows of one request.

    Raises:
        Malformed: Why it is refused.
    """
    request = _decoded(body)
    if request.id is not None and len(request.id) > _MAX_ID_CHARS:
        raise Malformed(f"`id` has more than {_MAX_ID_CHARS} characters")
    outputs = _wanted(request.outputs)
    given: dict[str, Tensor] = {}
    for tensor in request.inputs[:_MAX_INPUTS]:
        if tensor.name not in signature.features:
            raise Malformed(
                f"input {tensor.name[:_MAX_NAME_CHARS]!r} is unknown; see the model's metadata for its inputs"
            )
        if tensor.name in given:
            raise Malformed(f"input {tensor.name!r} is given twice")
        given[tensor.name] = tensor
    if len(given) != len(signature.features):
        missing = next(name for name in signature.features if name not in given)
        raise Malformed(f"input {missing!r} is missing; the model takes {len(signature.features)} inputs")
    count = _row_count(next(iter(given.values())), max_rows)
    rows = np.empty((count, len(signature.features)), dtype=np.float32)
    for index, (name, yes_no) in enumerate(signature.features.items()):
        rows[:, index] = _values(given[name], count, yes_no=yes_no)
    if not np.isfinite(rows).all():
        odd = next(name for index, name in enumerate(signature.features) if not np.isfinite(rows[:, index]).all())
        raise Malformed(f"input {odd!r} holds a value that is not finite in FP32")
    return Asked(rows, request.id, outputs)


def _decoded(body: bytes) -> InferRequest:
    try:
        return _decode_request(body)
    except RecursionError as error:
        raise Malformed("the body is not an inference request: it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise Malformed("the body is not an inference request: it is not UTF-8") from error
    except msgspec.MsgspecError as error:
        raise Malformed(f"the body is not an inference request: {error if body else 'it is empty'}") from error


def _wanted(outputs: list[Wanted] | None) -> tuple[str, ...]:
    if not outputs:
        return _OUTPUTS
    for output in outputs:
        if output.name not in _OUTPUTS:
            raise Malformed(f"output {output.name[:_MAX_NAME_CHARS]!r} is unknown; there are {', '.join(_OUTPUTS)}")
    return tuple(dict.fromkeys(output.name for output in outputs))


def _row_count(tensor: Tensor, max_rows: int) -> int:
    shape = tensor.shape
    if not 1 <= len(shape) <= _MAX_DIMENSIONS or (len(shape) == _MAX_DIMENSIONS and shape[1] != 1):
        raise Malformed(f"input {tensor.name!r} has shape {_shown(shape)}; [rows] or [rows, 1] is taken")
    if not 1 <= shape[0] <= max_rows:
        raise Malformed(f"input {tensor.name!r} has {shape[0]} rows; 1 to {max_rows} are taken")
    return shape[0]


def _shown(shape: Sequence[int]) -> str:
    more = ", ..." if len(shape) > 4 else ""  # noqa: PLR2004  # Enough to see what it is.
    return f"[{', '.join(map(str, shape[:4]))}{more}]"


def _values(tensor: Tensor, count: int, *, yes_no: bool) -> Any:
    """The tensor's values, float32 ``[rows]``; some may not be finite."""
    name, datatype = tensor.name, tensor.datatype
    if datatype not in _DATATYPES:
        raise Malformed(f"input {name!r} has datatype {datatype[:20]!r}; {', '.join(sorted(_DATATYPES))} are taken")
    if datatype == "BOOL" and not yes_no:
        raise Malformed(f"input {name!r} has datatype BOOL; the model takes numbers here, FP32 for instance")
    data, kinds = _flat(tensor, count)
    allowed = {bool} if datatype == "BOOL" else {int} if datatype in _INTEGERS else {int, float}
    if not kinds <= allowed:
        odd = next(kind.__name__ for kind in kinds if kind not in allowed)
        raise Malformed(f"input {name!r} of datatype {datatype} holds a value that is {_JSON_NAMES.get(odd, odd)}")
    if datatype in _INTEGERS:
        bits = _BITS[datatype]
        low, high = (0, (1 << bits) - 1) if datatype[0] == "U" else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        if min(data) < low or max(data) > high:
            raise Malformed(f"input {name!r} holds a value beyond {datatype}")
    if yes_no and not set(data) <= {0, 1}:
        raise Malformed(f"input {name!r} is a yes or no: true and false, or 1 and 0, are taken")
    try:
        with np.errstate(over="ignore"):  # What overflows is infinite then, and refused.
            return np.asarray(data, dtype=np.float32)
    except OverflowError as error:  # An integer beyond any float.
        raise Malformed(f"input {name!r} holds a value that is not finite in FP32") from error


def _flat(tensor: Tensor, count: int) -> tuple[list[Any], set[type]]:
    """The tensor's values in a row, and their kinds."""
    name, data = tensor.name, tensor.data
    if tensor.shape not in ([count], [count, 1]):
        raise Malformed(
            f"input {name!r} has shape {_shown(tensor.shape)}; all inputs have the same rows, here [{count}]"
        )
    kinds = set(map(type, data))
    if kinds == {list}:
        if len(tensor.shape) != _MAX_DIMENSIONS or any(len(part) != 1 for part in data):
            raise Malformed(f"input {name!r}: its data is nested otherwise than its shape says")
        data = list(itertools.chain.from_iterable(data))
        kinds = set(map(type, data))
    if len(data) != count:
        raise Malformed(f"input {name!r} has {len(data)} values; its shape says {count}")
    return data, kinds


_JSON_NAMES = {
    "NoneType": "null",
    "bool": "true or false",
    "str": "text",
    "list": "an array",
    "dict": "an object",
    "float": "no whole number",
    "int": "a number",
}


def answer(asked: Asked, probabilities: Floats, labels: npt.NDArray[np.bool_], *, name: str, version: str) -> bytes:
    """Write the answer to a request: ``probabilities`` and ``labels`` are ``[rows]``."""
    count = len(probabilities)
    outputs = []
    for wanted in asked.outputs:
        if wanted == "probability":
            outputs.append(OutputTensor("probability", [count], "FP32", probabilities.tolist()))
        else:
            outputs.append(OutputTensor("label", [count], "BOOL", labels.tolist()))
    return encode(InferResponse(name, version, outputs, asked.id))


def read_probabilities(body: bytes) -> Floats | None:
    """The probabilities in an answer, float32 ``[rows]``; None if there are none that count."""
    try:
        for output in _decode_response(body).outputs:
            if output.name == "probability":
                values: Floats = np.asarray(output.data, dtype=np.float32)
                return values if values.ndim == 1 and bool(np.isfinite(values).all()) else None
    except (msgspec.MsgspecError, ValueError, TypeError):
        return None
    return None


def error_body(message: str) -> bytes:
    """An error as the protocol has it."""
    return encode({"error": message})
