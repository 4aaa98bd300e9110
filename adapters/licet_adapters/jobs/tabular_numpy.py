"""The declared network computed by numpy: what serving uses, where starting torch would take seconds. No I/O.

Rules kept here:

- The same network as ``tabular.Network``: a test holds both to the same answers.
- It is built from its declaration alone; weights are safetensors, every tensor is accounted for and finite.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Floats = npt.NDArray[np.float32]


class Refused(Exception):  # A refusal, named as the house names it.
    """The model cannot be served, and why."""


class Network:
    """The declared network: raw features, float32 ``[rows, features]``, to logits, float32 ``[rows]``.

    Args:
        declaration: ``architecture.json``.
        weights: ``model.safetensors``.
    """

    def __init__(self, declaration: Mapping[str, Any], weights: bytes) -> None:
        if any(feature.get("encoding") == "one-hot" for feature in declaration["features"]):
            raise Refused("one-hot features are not served by this job")
        try:
            tensors = {name: tensor.astype(np.float32) for name, tensor in safetensors.numpy.load(weights).items()}
        except (safetensors.SafetensorError, ValueError, TypeError, KeyError) as error:
            raise Refused(f"model.safetensors cannot be read: {error}") from error
        if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
            raise Refused("model.safetensors holds a value that is not finite")
        widths = [len(declaration["features"]), *declaration["hidden"], 1]
        try:
            self._mean, self._scale = tensors.pop("normalise.mean"), tensors.pop("normalise.scale")
            # Activations stand between the layers and have numbers of their own: 0, 2, 4, ...
            names = [f"layers.{2 * index}" for index in range(len(widths) - 1)]
            self._layers = [(tensors.pop(f"{name}.weight").T.copy(), tensors.pop(f"{name}.bias")) for name in names]
        except KeyError as error:
            raise Refused(f"model.safetensors lacks {error}") from error
        shapes = [weight.shape for weight, _ in self._layers]
        wanted = list(itertools.pairwise(widths))
        if tensors or shapes != wanted or self._mean.shape != (widths[0],) or self._scale.shape != (widths[0],):
            raise Refused("model.safetensors does not fit architecture.json")
        self._activation = _activation(declaration["activation"])

    def __call__(self, rows: Floats) -> Floats:
        """Return the logits of ``rows``."""
        values: Floats = (rows - self._mean) / self._scale
        for weight, bias in self._layers[:-1]:
            values = self._activation(values @ weight + bias)
        weight, bias = self._layers[-1]
        logits: Floats = (values @ weight + bias)[:, 0]
        return logits


def _activation(name: str) -> Callable[[Floats], Floats]:
    if name == "gelu":
        from scipy.special import erf  # noqa: PLC0415  # A fifth of a second, for those who need it.

        root = np.float32(np.sqrt(0.5))
        return lambda x: x * np.float32(0.5) * (1 + erf(x * root))
    return _ACTIVATIONS[name]


_ACTIVATIONS: Mapping[str, Callable[[Floats], Floats]] = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "silu": lambda x: x * sigmoid(x),
}


def sigmoid(values: Floats) -> Floats:
    """``1 / (1 + exp(-x))``, without overflow on either side."""
    folded = np.exp(-np.abs(values))
    result: Floats = np.where(values >= 0, 1, folded) / (1 + folded)
    return result.astype(np.float32)
