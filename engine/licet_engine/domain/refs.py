"""How things are named: tenants, references to resources, identifiers, time.

Rules kept here:

- A tenant's identifier is an immutable slug, used as a key everywhere and never reused.
- A reference always begins with its tenant; nothing is ever looked up without one.
- Identifiers made by us sort by the time they were made.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass

from licet_attestations.isolation import PLATFORM as PLATFORM  # noqa: PLC0414  # The tenant of operators; ours to hand on.
from licet_attestations.leaf import VOID
from licet_engine.domain.errors import InvalidInput

VOID_LOG = VOID
"""The log that takes the owner's half of an attempt on a tenant that does not exist."""

ELSEWHERE_TENANT = "~"
"""The one tenant of every stand-in for what is unknown or foreign."""

_TENANT = re.compile(r"[a-z][a-z0-9-]{1,38}[a-z0-9]")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_ROLE = re.compile(r"[a-z][a-z-]{1,38}")

MAX_REF_CHARS = 128


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """A reference ``tenant/name`` or ``tenant/name@version``.

    Attributes:
        tenant: The owner's slug.
        name: Name within the tenant and the kind of resource.
        version: 1-based version, or None.
    """

    tenant: str
    name: str
    version: int | None = None

    def __str__(self) -> str:
        suffix = "" if self.version is None else f"@{self.version}"
        return f"{self.tenant}/{self.name}{suffix}"

    @property
    def unversioned(self) -> Ref:
        """The same reference without its version."""
        return Ref(self.tenant, self.name)


def parse_ref(text: str, *, versioned: bool = False) -> Ref:
    """Parse a reference.

    Args:
        text: ``tenant/name``, or ``tenant/name@version`` when ``versioned``.
        versioned: Whether a version is required; otherwise none may stand there.

    Raises:
        InvalidInput: The text is no such reference.
    """
    form = "TENANT/NAME@VERSION" if versioned else "TENANT/NAME"
    if not isinstance(text, str) or len(text) > MAX_REF_CHARS:
        raise InvalidInput(f"a reference must be text of the form {form}, at most {MAX_REF_CHARS} characters")
    tenant, slash, rest = text.partition("/")
    name, at, version = rest.partition("@")
    if not slash or not _TENANT.fullmatch(tenant) or not _NAME.fullmatch(name) or bool(at) != versioned:
        raise InvalidInput(
            f"{text!r} is not a reference of the form {form} (lower-case letters, digits and '-' in a name)"
        )
    if versioned and not _VERSION.fullmatch(version):
        raise InvalidInput(f"{text!r} must end in a version number from 1, such as {tenant}/{name}@1")
    return Ref(tenant, name, int(version) if versioned else None)


def parse_bundle_ref(text: str) -> Ref:
    """Parse the reference of a policy bundle: its name may be all of its digest, a character more than other names have.

    Raises:
        InvalidInput: The text is no such reference.
    """
    tenant, _, name = text.partition("/")
    if _DIGEST.fullmatch(name) and _TENANT.fullmatch(tenant):
        return Ref(tenant, name)
    return parse_ref(text)


def parse_tenant(text: str) -> str:
    """Parse a tenant's slug.

    Raises:
        InvalidInput: Not 3 to 40 lower-case letters, digits and hyphens beginning with a letter.
    """
    if not isinstance(text, str) or not _TENANT.fullmatch(text):
        raise InvalidInput(
            f"{text!r} is not a tenant: use 3 to 40 lower-case letters, digits and '-', beginning with a letter"
        )
    return text


def parse_name(text: str) -> str:
    """Parse a bare name within a tenant.

    Raises:
        InvalidInput: Not 1 to 63 lower-case letters, digits and '-'.
    """
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        raise InvalidInput(f"{text!r} is not a name: use 1 to 63 lower-case letters, digits and '-'")
    return text


def parse_role(text: str) -> str:
    """Parse the name of a role.

    Raises:
        InvalidInput: Not lower-case letters and hyphens.
    """
    if not isinstance(text, str) or not _ROLE.fullmatch(text):
        raise InvalidInput(f"{text!r} is not a role: use lower-case letters and '-'")
    return text


def now_ms() -> int:
    """Wall-clock time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def new_id() -> str:
    """A fresh identifier: 32 hex characters, the first 12 the time in milliseconds, the rest random."""
    return f"{now_ms():012x}{os.urandom(10).hex()}"
