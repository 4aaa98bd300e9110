"""What all ports share: tenants, digests and versions by their form, the files of a job, and how it was confined."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from licet_adapters.errors import InputRefused

if TYPE_CHECKING:
    from pathlib import Path


Parameters = Mapping[str, Any]
"""The accepted operation's parameters: canonical JSON (no floats)."""
Clock = Callable[[], int]
"""Milliseconds since the epoch."""
_TENANT = re.compile(r"[a-z][a-z0-9-]{1,38}[a-z0-9]\Z")
_VERSION = re.compile(r"([a-z][a-z0-9-]{1,38}[a-z0-9])/([a-z0-9][a-z0-9-]{0,62})@([1-9][0-9]{0,8})\Z")
_DIGEST_HEX = re.compile(r"[0-9a-f]{64}\Z")


def check_tenant(tenant: str) -> str:
    """Return ``tenant`` if it is a tenant id.

    Raises:
        InputRefused: It is not; so it can never become a path.
    """
    if not _TENANT.match(tenant):
        raise InputRefused("not a tenant id", code="input.tenant")
    return tenant


def check_digest_hex(digest_hex: str) -> str:
    """Return ``digest_hex`` if it is a SHA-256 in lower-case hex.

    Raises:
        InputRefused: It is not.
    """
    if not _DIGEST_HEX.match(digest_hex):
        raise InputRefused("not a SHA-256 digest in lower-case hex", code="input.digest")
    return digest_hex


def check_version(version: str, tenant: str) -> str:
    """Return ``version`` if it is the ref of a model version of ``tenant`` (``northbank/credit-risk@2``).

    Raises:
        InputRefused: It is not.
    """
    match = _VERSION.match(version)
    if match is None or match[1] != check_tenant(tenant):
        raise InputRefused("not a model version of this tenant", code="input.version")
    return version


def version_number(version: str) -> int:
    """The number in the ref of a model version.

    Raises:
        InputRefused: It is not such a ref.
    """
    match = _VERSION.match(version)
    if match is None:
        raise InputRefused("not a model version", code="input.version")
    return int(match[3])


MODEL_FILES = ("architecture.json", "model.safetensors")
"""The files of a model: a declared architecture and weights that cannot execute. Nothing else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputFile:
    """A plaintext file that a job reads, and the digest that the warrant names for it."""

    path: Path
    digest_hex: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxReport:
    """How a job was confined, for its attestation.

    Attributes:
        kind: ``bubblewrap``, or ``none`` (then only code shipped with the platform ran).
        checks: Probe name to what was found (``"network": "unreachable"``).
        notes: Plain sentences: what this did not confine.
    """

    kind: str
    checks: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundLocks:
    """What came of a look for locks, in plain sentences.

    Attributes:
        missing: Which are not there.
        unseen: Which could not be looked at, and why.
    """

    missing: Sequence[str] = ()
    unseen: Sequence[str] = ()


@runtime_checkable
class LockKeeper(Protocol):
    """An adapter whose place keeps what is held by locks that others can lift."""

    def look_for_locks(self, most: int) -> FoundLocks:
        """Look for up to ``most`` locks that were set and not lifted, the longest unseen first.

        One that cannot be looked at keeps no other from being looked for.

        Raises:
            AdapterError: None can be looked for now.
        """
        ...


@runtime_checkable
class Checkable(Protocol):
    """An adapter whose place may be away; one that has no such method is taken to be there."""

    def check(self) -> None:
        """Raise ``AdapterError``, within seconds, if the place cannot be reached or relied upon now; change nothing."""
        ...
