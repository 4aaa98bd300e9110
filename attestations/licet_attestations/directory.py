"""The directory: one log for all, which commits to the head of every tenant's log, so that none can be forked in secret.

Each entry commits to a *map* from tenants to size, root and pairs root of their logs. Rules kept here:

- A tenant's place in the map follows from its name, and the map has one depth everywhere. So under one entry there is one opening for a
  tenant and no second: whoever shows two auditors two logs needs two directories.
- An opening tells nothing of others. Leaves are salted; where nothing stands, a hash stands that nobody can tell from a subtree; and all of
  it is made anew from a fresh seed for every entry, so that what did not change cannot be seen either.
- An opening counts only with its entry, that entry's place in the directory log, and that log's signed checkpoint.

What it does not do: prove that a tenant is not in it.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from licet_attestations import canonical, merkle, tlogproof
from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.leaf import DIRECTORY, Leaf, is_tenant, verify_commitment
from licet_attestations.pairs import PairsMap
from licet_attestations.statement import is_sha256_hex

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from licet_attestations.checkpoint import Checkpoint
    from licet_attestations.trustroot import TrustRoot

KIND: Final = "directory"
DEPTH: Final = 64
SEED_BYTES: Final = 32
MAX_BYTES: Final = 128 * 1024
_POSITION: Final = b"licet:directory:position:v1\x00"
_SALT: Final = b"licet:directory:salt:v1\x00"
_BLIND: Final = b"licet:directory:blind:v1\x00"
_LEAF: Final = b"licet:directory:leaf:v1\x00"
_NODE: Final = b"licet:directory:node:v1\x00"
_FIELDS: Final = frozenset(
    {"v", "tenant", "size", "root", "pairs_root", "salt", "siblings", "leaf", "record_salt", "record", "proof"}
)


@dataclass(frozen=True, slots=True)
class LogState:
    """What an entry commits to of one log.

    Attributes:
        tenant: Whose log.
        size: Its entries.
        root: Root of the tree over them.
        pairs_root: Root of the map of its pairs.
    """

    tenant: str
    size: int
    root: bytes
    pairs_root: bytes

    def to_dict(self) -> dict[str, Any]:
        """As it is committed to."""
        return {
            "v": 1,
            "tenant": self.tenant,
            "size": self.size,
            "root": self.root.hex(),
            "pairs_root": self.pairs_root.hex(),
        }


def position(tenant: str) -> int:
    """A tenant's place in the map: the first 64 bits of a hash of its name."""
    return int.from_bytes(hashlib.sha256(_POSITION + tenant.encode()).digest()[: DEPTH // 8])


def _leaf_hash(salt: bytes, state: LogState) -> bytes:
    return hashlib.sha256(_LEAF + salt + canonical.dumps(state.to_dict())).digest()


def _node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()


class DirectoryMap:
    """The map of one entry, whole: for whoever makes it, and for nobody else.

    Args:
        states: The logs.
        seed: 32 random bytes, of this entry alone. Who has them can look into it.

    Raises:
        FormatError: Two logs have one place, or the seed is no seed.
    """

    def __init__(self, states: Iterable[LogState], seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise FormatError(f"a seed has {SEED_BYTES} bytes")
        # The seed stands before what it is for, and what it is for has one length: it is a key.
        self._blind = hashlib.sha256(_BLIND + seed)
        self._salt = hashlib.sha256(_SALT + seed)
        self._states: dict[int, LogState] = {}
        for state in states:
            if self._states.setdefault(position(state.tenant), state) is not state:
                raise FormatError(f"two logs have the place of {state.tenant!r} in the directory")
        self._places = sorted(self._states)
        self.root = self._hash(0, len(self._places), 0, 0)

    def opening(self, tenant: str) -> tuple[LogState, bytes, list[bytes]]:
        """State, salt and siblings (from the root down) of a tenant's log.

        Raises:
            FormatError: It is not in the map.
        """
        place = position(tenant)
        state = self._states.get(place)
        if state is None or state.tenant != tenant:
            raise FormatError(f"the log of {tenant!r} is not in the directory yet")
        siblings, begin, end = [], 0, len(self._places)
        for depth in range(DEPTH):
            middle = self._middle(begin, end, depth)
            bit = place >> (DEPTH - 1 - depth) & 1
            prefix = place >> (DEPTH - 1 - depth) ^ 1
            off = (begin, middle) if bit else (middle, end)
            siblings.append(self._hash(*off, depth + 1, prefix))
            begin, end = (middle, end) if bit else (begin, middle)
        return state, self._salt_of(tenant), siblings

    def _salt_of(self, tenant: str) -> bytes:
        hasher = self._salt.copy()
        hasher.update(hashlib.sha256(tenant.encode()).digest())
        return hasher.digest()

    def _middle(self, begin: int, end: int, depth: int) -> int:
        """Where among places, which agree in their first ``depth`` bits, those with a set bit begin."""
        shift = DEPTH - 1 - depth
        while begin < end:
            at = (begin + end) // 2
            begin, end = (begin, at) if self._places[at] >> shift & 1 else (at + 1, end)
        return begin

    def _hash(self, begin: int, end: int, depth: int, prefix: int) -> bytes:
        if begin == end:
            hasher = self._blind.copy()
            hasher.update(bytes([depth]) + prefix.to_bytes(DEPTH // 8))
            return hasher.digest()
        if end - begin == 1:
            return self._chain(self._places[begin], depth)
        middle = self._middle(begin, end, depth)
        return _node_hash(
            self._hash(begin, middle, depth + 1, prefix << 1), self._hash(middle, end, depth + 1, prefix << 1 | 1)
        )

    def _chain(self, place: int, depth: int) -> bytes:
        """The hash at ``depth`` over one log that stands alone there."""
        state = self._states[place]
        result = _leaf_hash(self._salt_of(state.tenant), state)
        for below in range(DEPTH, depth, -1):
            prefix = place >> (DEPTH - below)
            sibling = self._hash(0, 0, below, prefix ^ 1)
            result = _node_hash(sibling, result) if prefix & 1 else _node_hash(result, sibling)
        return result


def map_root(state: LogState, salt: bytes, siblings: Sequence[bytes]) -> bytes:
    """The root to which an opening leads.

    Raises:
        VerificationError: Not as many siblings as the map is deep, or of another length.
    """
    if len(siblings) != DEPTH or any(len(part) != merkle.HASH_BYTES for part in (salt, *siblings)):
        raise VerificationError(f"an opening has {DEPTH} siblings of 32 bytes")
    place, result = position(state.tenant), _leaf_hash(salt, state)
    for height, sibling in enumerate(reversed(siblings)):
        result = _node_hash(sibling, result) if place >> height & 1 else _node_hash(result, sibling)
    return result


def entry_record(time_ms: int, root: bytes) -> bytes:
    """The record of an entry of the directory log."""
    return canonical.dumps({"v": 1, "type": KIND, "time_ms": time_ms, "map_root": root.hex()})


@dataclass(frozen=True, slots=True)
class Opened:
    """A tenant's log as an entry of the directory has it, verified.

    Attributes:
        state: The log.
        index: The entry.
        time_ms: When it was made.
        checkpoint: Of the directory log: the same for every tenant, so that it can be compared.
    """

    state: LogState
    index: int
    time_ms: int
    checkpoint: Checkpoint


def opening_document(
    opening: tuple[LogState, bytes, Sequence[bytes]],
    *,
    leaf: str,
    record_salt: bytes,
    record: bytes,
    proof: str,
) -> dict[str, Any]:
    """An opening as it is told: what `verify_opening` takes.

    Args:
        opening: From `DirectoryMap`.
        leaf: The entry's leaf, as text.
        record_salt: Salt of its commitment.
        record: Its record.
        proof: That it is in the directory log, as a C2SP ``.tlog-proof``.
    """
    state, salt, siblings = opening
    return {
        **state.to_dict(),
        "salt": salt.hex(),
        "siblings": [part.hex() for part in siblings],
        "leaf": leaf,
        "record_salt": record_salt.hex(),
        "record": canonical.loads(record),
        "proof": proof,
    }


def verify_opening(document: object, trust: TrustRoot, tenant: str) -> Opened:
    """Verify that the directory commits to a tenant's log, and return to which.

    Args:
        document: From `opening_document`; nothing in it is trusted.
        trust: Pinned keys.
        tenant: Whose log it must be.

    Raises:
        VerificationError: It does not show it.
    """
    try:
        state, salt, siblings, leaf = _parse(document)
    except FormatError as error:
        raise VerificationError(f"not an opening of the directory: {error}") from error
    if state.tenant != tenant:
        raise VerificationError(f"the opening is of the log of {state.tenant!r}, not of {tenant!r}")
    given: Mapping[str, Any] = document  # type: ignore[assignment]  # Parsed above.
    record = canonical.dumps(given["record"])
    if (leaf.kind, leaf.owner) != (KIND, DIRECTORY):
        raise VerificationError("the opening's entry is none of the directory's")
    verify_commitment(leaf, bytes.fromhex(given["record_salt"]), record)
    if record != entry_record(leaf.time_ms, map_root(state, salt, siblings)):
        raise VerificationError("the opening leads to another root than its entry commits to")
    keys = trust.keys_since("log", leaf.time_ms)
    index, head = tlogproof.verify(given["proof"], leaf.to_bytes(), trust.origin(DIRECTORY), keys)
    return Opened(state, index, leaf.time_ms, head)


def _parse(value: object) -> tuple[LogState, bytes, list[bytes], Leaf]:
    if not isinstance(value, dict) or set(value) != _FIELDS or value["v"] != 1:
        raise FormatError(f"it has exactly {', '.join(sorted(_FIELDS))}")
    size, siblings = value["size"], value["siblings"]
    if not is_tenant(value["tenant"]) or type(size) is not int or size < 0 or not isinstance(value["record"], dict):
        raise FormatError("it names a tenant, a size from 0 and a record")
    if not isinstance(siblings, list) or len(siblings) != DEPTH:
        raise FormatError(f"it has {DEPTH} siblings")
    hashes = [value["root"], value["pairs_root"], value["salt"], value["record_salt"], *siblings]
    if not all(is_sha256_hex(part) for part in hashes):
        raise FormatError("roots, salts and siblings are 32 bytes in hex")
    if not isinstance(value["leaf"], str) or not isinstance(value["proof"], str):
        raise FormatError("its leaf and its proof are text")
    state = LogState(value["tenant"], size, bytes.fromhex(value["root"]), bytes.fromhex(value["pairs_root"]))
    salt, parts = bytes.fromhex(value["salt"]), [bytes.fromhex(part) for part in siblings]
    return state, salt, parts, Leaf.from_bytes(value["leaf"].encode())


# --- In an archive ------------------------------------------------------------------------------------------------------


def archive_file(document: Mapping[str, Any], consistency: Sequence[bytes]) -> bytes:
    """The content of ``directory.json`` in an archive.

    Args:
        document: From `opening_document`.
        consistency: Proof that the longer one of the directory's tree and that of the archive's checkpoint extends the other.
    """
    return canonical.dumps({"v": 1, "opening": dict(document), "consistency": [part.hex() for part in consistency]})


def verify_archive_file(
    data: bytes, trust: TrustRoot, tenant: str, *, first: int, end: int, size: int, root: bytes, leaves: Iterable[Leaf]
) -> tuple[Opened, bool]:
    """Verify that an archive's log is the one that the directory has.

    Args:
        data: The file; not trusted.
        trust: Pinned keys.
        tenant: Whose archive.
        first: First entry in the archive.
        end: The entry after the last.
        size: Size of the log at the archive's checkpoint.
        root: Of the tree at the archive's checkpoint, verified.
        leaves: The archive's leaves, verified, in order.

    Returns:
        What the directory has, and whether the pairs could be made again: only from the log's beginning, and up to what the archive has.

    Raises:
        VerificationError: The directory has another log, or other pairs.
    """
    try:
        value = canonical.loads(data, max_bytes=MAX_BYTES, canonical=True)
    except FormatError as error:
        raise VerificationError(f"not a file of the directory: {error}") from error
    match value:
        case {"v": 1, "opening": opening, "consistency": list(given), **rest} if not rest and all(
            is_sha256_hex(part) for part in given
        ):
            consistency = [bytes.fromhex(part) for part in given]
        case _:
            raise VerificationError("a file of the directory has exactly v, opening and consistency")
    opened = verify_opening(opening, trust, tenant)
    state = opened.state
    if state.size >= size:
        merkle.verify_extension(size, root, state.size, state.root, consistency)
    else:
        merkle.verify_extension(state.size, state.root, size, root, consistency)
    if first or state.size > end:
        return opened, False
    pairs = PairsMap()
    for leaf in itertools.islice(leaves, state.size):
        pairs.add(leaf)
    if pairs.root() != state.pairs_root:
        raise VerificationError("the directory has other pairs of this tenant's log than its leaves make")
    return opened, True
