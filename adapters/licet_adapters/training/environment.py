"""What a job's result depends on besides its code and inputs, as one digest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import sys
from typing import TYPE_CHECKING

from licet_attestations import canonical

if TYPE_CHECKING:
    from collections.abc import Sequence

_DISTRIBUTIONS: Sequence[str] = (
    "captum", "fairlearn", "numpy", "pandas", "safetensors", "scikit-learn", "scipy", "torch",
)  # fmt: skip


def describe_environment() -> dict[str, str]:
    """Name what matters: the interpreter, the platform, the libraries that jobs import; ``absent`` if not installed."""
    described = {
        "implementation": platform.python_implementation(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "system": sys.platform,
    }
    for name in _DISTRIBUTIONS:
        try:
            described[f"dist:{name}"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            described[f"dist:{name}"] = "absent"
    return described


def environment_digest_hex() -> str:
    """SHA-256 over the description, in canonical JSON."""
    return hashlib.sha256(canonical.dumps(describe_environment())).hexdigest()
