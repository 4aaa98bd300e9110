"""The leaf of the log: a header that can never be erased, and a salted commitment to a record that can.

Rules kept here:

- The format is fixed (see the decision record on the leaf format): canonical JSON of exactly ``actor``, ``commitment``,
  ``kind``, ``owner``, ``time_ms``, ``v``. A leaf has one text; another spelling is another leaf and is refused.
- The commitment is SHA-256(salt || record bytes) with 32 random bytes of salt: without the salt it tells nothing of the
  record, so that record and salt can be erased together while the tree still stands.

Source: RFC 6962 for the tree; RFC 8785 for the text.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Any

from licet_attestations import canonical, merkle
from licet_attestations.errors import FormatError, VerificationError

VERSION = 1
SALT_BYTES = 32
MAX_LEAF_BYTES = 1024
VOID = "~void"
"""Stands for the owner of what does not exist."""
DIRECTORY = "~directory"
"""The log that commits to all others (`licet_attestations.directory`); like `VOID`, nobody's name."""

_TENANT = re.compile(r"[a-z][a-z0-9-]{1,38}[a-z0-9]|" + "|".join(map(re.escape, (VOID, DIRECTORY))))
_KIND = re.compile(r"[a-z][a-z-]{0,31}")
_COMMITMENT = re.compile(r"[0-9a-f]{64}")
_MAX_TIME_MS = 2**53 - 1
# A leaf's one text, whole: what matches it is a leaf, but for the bound of its time.
_TEXT = re.compile(
    rb'\{"actor":"(%(t)b)","commitment":"([0-9a-f]{64})","kind":"([a-z][a-z-]{0,31})","owner":"(%(t)b)",'
    rb'"time_ms":(0|[1-9][0-9]{0,15}),"v":1\}' % {b"t": _TENANT.pattern.encode()}
)
_FIELDS = frozenset({"v", "kind", "time_ms", "actor", "owner", "commitment"})


def is_tenant(value: object) -> bool:
    """Whether ``value`` is a tenant's slug, ``~void`` or ``~directory``."""
    return isinstance(value, str) and _TENANT.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class Leaf:
    """The header of one entry.

    Attributes:
        kind: What the record is: ``decision``, ``attempt``, ``approval``, ``attestation``, ``operation``, ``hold``, ...
        time_ms: When it was sequenced, milliseconds since the epoch; never less than the entry's before it.
        actor: Tenant of whoever acted.
        owner: Tenant of what was acted on.
        commitment: Hex SHA-256 of salt and record.
    """

    kind: str
    time_ms: int
    actor: str
    owner: str
    commitment: str

    def __post_init__(self) -> None:
        if not _KIND.fullmatch(self.kind):
            raise FormatError(f"{self.kind!r} is not a kind of log entry")
        if not is_tenant(self.actor) or not is_tenant(self.owner):
            raise FormatError(f"{self.actor!r} or {self.owner!r} is not a tenant")
        if type(self.time_ms) is not int or not 0 <= self.time_ms <= _MAX_TIME_MS:
            raise FormatError(f"{self.time_ms!r} is not a time in milliseconds")
        if not _COMMITMENT.fullmatch(self.commitment):
            raise FormatError("a commitment is 64 lower-case hex characters")

    def to_bytes(self) -> bytes:
        """The leaf's one text. Every field is ASCII without escapes, so this is its canonical JSON."""
        return (
            f'{{"actor":"{self.actor}","commitment":"{self.commitment}","kind":"{self.kind}",'
            f'"owner":"{self.owner}","time_ms":{self.time_ms},"v":{VERSION}}}'
        ).encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> Leaf:
        """Read a leaf.

        Raises:
            FormatError: Not a leaf of this version, or not in its one text.
        """
        if (found := _TEXT.fullmatch(data)) is not None:
            actor, commitment, kind, owner, time_ms = found.groups()
            return cls(kind.decode(), int(time_ms), actor.decode(), owner.decode(), commitment.decode())
        # It is none. What is wrong with it is told by reading it as what it should be.
        value: Any = canonical.loads(data, max_bytes=MAX_LEAF_BYTES, max_depth=1)
        if not isinstance(value, dict) or set(value) != _FIELDS or value["v"] != VERSION:
            raise FormatError(f"not a log leaf of version {VERSION}")
        del value["v"]
        if not all(isinstance(value[name], str) for name in ("kind", "actor", "owner", "commitment")):
            raise FormatError("a log leaf has no text where there should be text")
        cls(**value)
        raise FormatError("a log leaf is not in its canonical form")

    def hash(self) -> bytes:
        """The leaf's hash in the tree."""
        return merkle.leaf_hash(self.to_bytes())


def commit(salt: bytes, record: bytes) -> str:
    """The commitment to ``record`` under ``salt``, in hex.

    Raises:
        FormatError: The salt is not 32 bytes.
    """
    if len(salt) != SALT_BYTES:
        raise FormatError(f"a salt has {SALT_BYTES} bytes")
    return hashlib.sha256(salt + record).hexdigest()


def verify_commitment(leaf: Leaf, salt: bytes, record: bytes) -> bytes:
    """Verify that ``leaf`` commits to ``record``, and return the record.

    Raises:
        VerificationError: It commits to something else.
    """
    if len(salt) != SALT_BYTES or not hmac.compare_digest(commit(salt, record), leaf.commitment):
        raise VerificationError("the record and its salt are not what the log entry commits to")
    return record
