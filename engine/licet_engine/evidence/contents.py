"""What an evidence archive is of: its scope, and what is in it, as those see it who make something for people out of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from licet_attestations.leaf import Leaf
from licet_attestations.statement import Statement


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What an archive is of: entries from ``first`` up to ``end``, itself left out.

    Attributes:
        instance: The installation.
        tenant: Whose log.
        origin: Of the log, as its checkpoint names it.
        first: Index of the first entry.
        end: Index after the last.
        size: Of the log at the signed checkpoint.
        root_hex: Of the log at the signed checkpoint.
        from_ms: From when on entries were asked for; None for the beginning.
        to_ms: Up to when, itself left out; None for no end.
        exported_at_ms: When it was made.
    """

    instance: str
    tenant: str
    origin: str
    first: int
    end: int
    size: int
    root_hex: str
    from_ms: int | None
    to_ms: int | None
    exported_at_ms: int


@dataclass(frozen=True, slots=True)
class Seen:
    """One entry of the window; ``record`` is None where it was erased."""

    index: int
    leaf: Leaf
    record: Mapping[str, Any] | None


class Contents(Protocol):
    """What is in an archive. Everything comes in the order of the log, and may be asked for more than once."""

    @property
    def scope(self) -> Scope:
        """What it is of."""
        ...

    @property
    def isolation(self) -> Mapping[str, Any]:
        """Predicate of the isolation statement over the window."""
        ...

    def entries(self) -> Iterator[Seen]:
        """Every entry of the window; there can be millions."""
        ...

    def attestations(self) -> Iterator[tuple[str, int, Statement]]:
        """Every attestation of the window: digest in hex, index of its entry, statement."""
        ...

    def bundle(self, digest_hex: str) -> Mapping[str, Any]:
        """The policy bundle that a decision of the window names."""
        ...
