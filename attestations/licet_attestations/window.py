"""Which entries of a log an archive holds, and what shows that none of them is withheld.

Rules kept here:

- A window is what lies between two times in a log whose times never run backwards. So the entry before the first and the one after the
  last, each with its proof of inclusion, show that there are no others: they lie *outside* the two times.
- What was before is the tree's frontier there, what came after a proof that the signed tree extends the frontier behind the last entry. One
  archive's second frontier is the next one's first.
- Other entries of outside the window are there because something in it stands on them, such as a warrant on its decision, or because they say why
  a record of it is missing. They are few, and bounded.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from licet_attestations import canonical, merkle
from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.leaf import Leaf, is_tenant, verify_commitment
from licet_attestations.statement import is_sha256_hex

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

VERSION: Final = 2
MAX_PROOF_HASHES: Final = 64
MAX_OUTSIDE_BYTES: Final = 64 * 1024 * 1024
"""Of the entries of outside, together: they are read at once."""
_FIELDS: Final = frozenset(
    [
        "v",
        "tenant",
        "origin",
        "first",
        "end",
        "size",
        "from_ms",
        "to_ms",
        "frontier_first",
        "frontier_end",
        "consistency",
    ]
)
_OUTSIDE_FIELDS: Final = frozenset({"index", "leaf", "proof", "salt", "record"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The entries from ``first`` up to ``end`` of a log of ``size`` entries.

    Attributes:
        tenant: Whose log.
        origin: The log's origin.
        first: First entry.
        end: The entry after the last.
        size: Of the log at the checkpoint.
        from_ms: All entries from this time on, milliseconds since the epoch; None: from the log's beginning.
        to_ms: And before this time; None: to the checkpoint.
        frontier_first: The tree before ``first``: hashes, largest subtree first.
        frontier_end: The same before ``end``.
        consistency: Proof that the tree of ``size`` extends that of ``end``; empty where they are the same, or ``end`` is 0.
    """

    tenant: str
    origin: str
    first: int
    end: int
    size: int
    from_ms: int | None = None
    to_ms: int | None = None
    frontier_first: Sequence[bytes] = ()
    frontier_end: Sequence[bytes] = ()
    consistency: Sequence[bytes] = ()

    def to_bytes(self) -> bytes:
        """Its document, in canonical JSON."""
        return canonical.dumps(
            {
                "v": VERSION,
                "tenant": self.tenant,
                "origin": self.origin,
                "first": self.first,
                "end": self.end,
                "size": self.size,
                "from_ms": self.from_ms,
                "to_ms": self.to_ms,
                "frontier_first": [part.hex() for part in self.frontier_first],
                "frontier_end": [part.hex() for part in self.frontier_end],
                "consistency": [part.hex() for part in self.consistency],
            }
        )

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Read its document; verifies nothing.

        Raises:
            FormatError: It is none of this version.
        """
        if isinstance(value, dict) and value.get("v") == 1:
            raise FormatError(
                "the archive has the layout of an older version, which is not read any more: export it anew"
            )
        if not isinstance(value, dict) or set(value) != _FIELDS or value["v"] != VERSION:
            raise FormatError(f"not a range of version {VERSION}")
        numbers = [value["first"], value["end"], value["size"]]
        if not all(type(number) is int for number in numbers) or [0, *numbers] != sorted([0, *numbers]):
            raise FormatError("the range does not go from a first entry to an end within the log's size")
        if not is_tenant(value["tenant"]) or not isinstance(value["origin"], str):
            raise FormatError("the range names no tenant and origin")
        times = [time for time in (value["from_ms"], value["to_ms"]) if time is not None]
        if not all(type(time) is int and time >= 0 for time in times) or times != sorted(times):
            raise FormatError("the range's times are milliseconds since the epoch, the earlier first")
        return cls(
            tenant=value["tenant"],
            origin=value["origin"],
            first=value["first"],
            end=value["end"],
            size=value["size"],
            from_ms=value["from_ms"],
            to_ms=value["to_ms"],
            frontier_first=_hashes(value["frontier_first"]),
            frontier_end=_hashes(value["frontier_end"]),
            consistency=_hashes(value["consistency"]),
        )

    @property
    def edges(self) -> tuple[int, ...]:
        """The entries right before and after it, where there are any."""
        return (*((self.first - 1,) if self.first else ()), *((self.end,) if self.end < self.size else ()))

    def verify_end(self, tree: merkle.Frontier, root: bytes) -> None:
        """Verify that ``tree``, made of all before ``end``, is the beginning of the signed one.

        Args:
            tree: Frontier behind the last entry.
            root: Of the tree of ``size``, signed.

        Raises:
            VerificationError: An entry was changed, moved or left out, or a frontier or the proof is not the tree's.
        """
        if tree.size != self.end:
            raise VerificationError(f"the leaves end at {tree.size}, the range at {self.end}")
        try:
            merkle.verify_extension(self.end, tree.root(), self.size, root, self.consistency)
        except VerificationError as error:
            raise VerificationError(
                f"the leaves do not lead to the checkpoint's root: one was changed, moved or left out ({error})"
            ) from error

    def verify_times(self, outside: Mapping[int, Outside]) -> None:
        """Verify by the entries around it that it has every entry between its times.

        Raises:
            VerificationError: One of them is missing, or lies between the times.
        """
        if self.from_ms is None and self.first:
            raise VerificationError(f"the range begins at entry {self.first} and names no time from which on")
        if self.to_ms is not None and self.end == self.size:
            raise VerificationError(
                "the log at the checkpoint has no entry from the end of the time on, so more of that time may have been logged since"
            )
        if self.to_ms is None and self.end < self.size:
            raise VerificationError(f"the range ends at entry {self.end} and names no time up to which")
        for index in self.edges:
            if index not in outside:
                raise VerificationError(
                    f"entry {index}, which would show that the window has every entry of its time, is missing"
                )
        if self.from_ms is not None and self.first and outside[self.first - 1].leaf.time_ms >= self.from_ms:
            raise VerificationError(f"entry {self.first - 1} belongs to the window, and is not in it")
        if self.to_ms is not None and self.end < self.size and outside[self.end].leaf.time_ms < self.to_ms:
            raise VerificationError(f"entry {self.end} belongs to the window, and is not in it")

    def verify_time(self, index: int, time_ms: int) -> None:
        """Verify that an entry is of the window's time.

        Raises:
            VerificationError: It is not.
        """
        if (self.from_ms is not None and time_ms < self.from_ms) or (self.to_ms is not None and time_ms >= self.to_ms):
            raise VerificationError(f"entry {index} is not of the time that the archive is of")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """An entry of outside the window.

    Attributes:
        index: Its place in the log.
        leaf: Its header.
        proof: Of its inclusion in the tree of the checkpoint: sibling hashes, leaf to root.
        salt: Of its commitment; None where the record is erased, or not given as it is there only for its time.
        record: Its bytes; None as above.
    """

    index: int
    leaf: Leaf
    proof: Sequence[bytes]
    salt: bytes | None = None
    record: bytes | None = None

    def to_bytes(self) -> bytes:
        """Its line, in canonical JSON."""
        return canonical.dumps(
            {
                "index": self.index,
                "leaf": self.leaf.to_bytes().decode(),
                "proof": [part.hex() for part in self.proof],
                "salt": None if self.salt is None else self.salt.hex(),
                "record": None if self.record is None else canonical.loads(self.record),
            }
        )

    @classmethod
    def from_bytes(cls, line: bytes) -> Self:
        """Read its line; verifies nothing.

        Raises:
            FormatError: It is none.
        """
        value = canonical.loads(line, canonical=True)
        if not isinstance(value, dict) or set(value) != _OUTSIDE_FIELDS:
            raise FormatError("an entry of outside has exactly index, leaf, proof, salt and record")
        index, leaf, salt, record = (value[name] for name in ("index", "leaf", "salt", "record"))
        if type(index) is not int or index < 0 or not isinstance(leaf, str):
            raise FormatError("an entry of outside has an index and a leaf")
        if (salt is None) != (record is None) or not (salt is None or is_sha256_hex(salt)):
            raise FormatError("an entry of outside has a salt of 32 bytes in hex and a record, or neither")
        if record is not None and not isinstance(record, dict):
            raise FormatError("a record is an object")
        return cls(
            index=index,
            leaf=Leaf.from_bytes(leaf.encode()),
            proof=_hashes(value["proof"]),
            salt=None if salt is None else bytes.fromhex(salt),
            record=None if record is None else canonical.dumps(record),
        )

    def read(self) -> Mapping[str, Any]:
        """What its record says; nothing where there is none."""
        record: Mapping[str, Any] = {} if self.record is None else canonical.loads(self.record)
        return record

    def verify(self, size: int, root: bytes) -> None:
        """Verify that it is an entry of the tree, and that its record is its own.

        Raises:
            VerificationError: It is not.
        """
        merkle.verify_inclusion(self.leaf.hash(), self.index, size, self.proof, root)
        if self.salt is not None and self.record is not None:
            verify_commitment(self.leaf, self.salt, self.record)


def _hashes(value: Any) -> tuple[bytes, ...]:
    if not isinstance(value, list) or len(value) > MAX_PROOF_HASHES or not all(is_sha256_hex(part) for part in value):
        raise FormatError(f"hashes are a list of at most {MAX_PROOF_HASHES} SHA-256 in hex")
    return tuple(bytes.fromhex(part) for part in value)


def moment(time_ms: int) -> str:
    """A moment as people read it, in UTC."""
    try:
        moment = dt.datetime.fromtimestamp(time_ms // 1000, dt.UTC)
        return f"{moment:%Y-%m-%d %H:%M:%S}{f'.{time_ms % 1000:03d}' if time_ms % 1000 else ''} UTC"
    except (OverflowError, ValueError, OSError):  # A time beyond the calendar is no reason to fail.
        return f"{time_ms} ms after 1970"
