"""Restrictions on data, and how they are inherited along lineage.

A run and a model bear the restrictions of every dataset behind them: the highest classification, the intersection of
residency and of permitted uses, the earliest expiry, protected if anything is, held if anything is. An intersection
that is empty permits nothing; it never means "unrestricted".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from licet_engine.domain.errors import InvalidInput

CLASSIFICATIONS = ("public", "internal", "confidential", "restricted")
"""From the least to the most confidential."""


@dataclass(frozen=True, slots=True)
class Restrictions:
    """What binds a piece of data and everything made from it.

    Attributes:
        classification: One of ``CLASSIFICATIONS``.
        protected: Whether it holds attributes protected by law.
        residency: Regions in which it may be processed.
        uses: Uses which the contract permits.
        expires_at_ms: When the right to use it ends.
        held: Whether a legal hold lies on it or on what is behind it.
    """

    classification: str
    protected: bool
    residency: frozenset[str]
    uses: frozenset[str]
    expires_at_ms: int
    held: bool

    def __post_init__(self) -> None:
        if self.classification not in CLASSIFICATIONS:
            raise InvalidInput(
                f"classification {self.classification!r} is not known: use one of {', '.join(CLASSIFICATIONS)}"
            )

    def loosens(self, other: Restrictions) -> bool:
        """Whether these permit anything that ``other`` does not; holds are no part of the comparison."""
        return (
            CLASSIFICATIONS.index(self.classification) < CLASSIFICATIONS.index(other.classification)
            or self.protected < other.protected
            or not self.residency <= other.residency
            or not self.uses <= other.uses
            or self.expires_at_ms > other.expires_at_ms
        )

    def to_fact(self) -> dict[str, Any]:
        """The Cedar record ``Restrictions`` of the schema."""
        return {
            "classification": self.classification,
            "protected": self.protected,
            "residency": sorted(self.residency),
            "uses": sorted(self.uses),
            "expires_at_ms": self.expires_at_ms,
            "held": self.held,
        }


def inherit(parents: Iterable[Restrictions], *, held: bool = False) -> Restrictions:
    """The restrictions of something made from all ``parents``.

    Args:
        parents: Restrictions of each dataset behind it; at least one.
        held: Whether a hold lies on the thing itself.

    Raises:
        InvalidInput: No parent: what has no lineage has no known restrictions, so it may not be used.
    """
    behind = tuple(parents)
    if not behind:
        raise InvalidInput("nothing is known of the data behind this, so its restrictions cannot be told")
    return Restrictions(
        classification=max((p.classification for p in behind), key=CLASSIFICATIONS.index),
        protected=any(p.protected for p in behind),
        residency=frozenset.intersection(*(p.residency for p in behind)),
        uses=frozenset.intersection(*(p.uses for p in behind)),
        expires_at_ms=min(p.expires_at_ms for p in behind),
        held=held or any(p.held for p in behind),
    )
