"""What of a log was erased, and which of its entries say so.

Rules kept here:

- A record is missing lawfully where an entry of kind ``erasure`` behind it names its place and its commitment. Such an entry is never erased itself,
  nor is the decision that allowed it, which stands right before it.
- Only records of decisions, of attempts and about people are ever erased. A warrant, a hold or an erasure that is missing was withheld.
- What is missing and not named yet is all that is remembered, and bounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from licet_attestations.errors import FormatError, VerificationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from licet_attestations.leaf import Leaf

KIND: Final = "erasure"
ERASABLE: Final = frozenset({"attempt", "decision", "people"})
"""Kinds of entries whose records may be erased, by the platform's own guardrail."""
MAX_MISSING: Final = 200_000
"""Erased records that may wait for the entry that names them."""


class Missing:
    """The records that are missing and that no entry names as erased, so far."""

    def __init__(self) -> None:
        self._commitments: dict[int, str] = {}

    def add(self, index: int, leaf: Leaf) -> None:
        """A record is not there.

        Raises:
            VerificationError: It is of a kind that is never erased, or more are missing than can be remembered.
        """
        if leaf.kind not in ERASABLE:
            raise VerificationError(
                f"the record of entry {index} is missing: a record of kind {leaf.kind!r} is never erased"
            )
        if len(self._commitments) >= MAX_MISSING:
            raise VerificationError(
                f"more than {MAX_MISSING} records are missing that later entries would name as erased: an archive of a shorter time has fewer"
            )
        self._commitments[index] = leaf.commitment

    def take(self, index: int, record: Mapping[str, Any]) -> int:
        """Take the erasure of an entry; return how many records that are missing it names.

        Raises:
            FormatError: It is none.
        """
        named = 0
        for erased, commitment in erased_by(record):
            if erased < index and self._commitments.get(erased) == commitment:
                del self._commitments[erased]
                named += 1
        return named

    @property
    def first(self) -> int | None:
        """The first that nothing names; None if there is none."""
        return min(self._commitments, default=None)


def verify_decided(index: int, record: Mapping[str, Any], kind: str, before: Mapping[str, Any] | None) -> None:
    """Verify that an erasure was allowed by the decision before it.

    Args:
        index: Of the erasure.
        record: Of the erasure.
        kind: Of the entry before it.
        before: Its record; None if it has none.

    Raises:
        VerificationError: It was not.
    """
    match before:
        case {"decision": "allow", "action": "record.erase", "id": str(decision)} if (
            kind == "decision" and decision == record.get("decision")
        ):
            return
    raise VerificationError(f"the entry before the erasure of entry {index} is not the decision that allowed it")


def erased_by(record: Mapping[str, Any]) -> list[tuple[int, str]]:
    """The entries that the record of an erasure names: place and commitment.

    Raises:
        FormatError: It is none.
    """
    entries = record.get("entries")
    if record.get("type") != KIND or not isinstance(entries, list):
        raise FormatError("the record of an erasure lists entries")
    found = []
    for entry in entries:
        match entry:
            case {"index": int(index), "commitment": str(commitment)} if type(index) is int:
                found.append((index, commitment))
            case _:
                raise FormatError("an erasure names each entry by index and commitment")
    return found
