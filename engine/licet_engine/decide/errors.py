"""The errors of decide, under the engine's root: one subclass per reaction of the caller.

A denial is a value, never an exception; so is a request that the schema does not know. What raises here is a bundle, a fact
or a record that should not have got so far.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from licet_engine.domain.errors import LicetError

if TYPE_CHECKING:
    from collections.abc import Sequence


class DecideError(LicetError):
    """Root of the errors of decide."""

    default_code = "decide"


class BundleError(DecideError):
    """A policy bundle is not what a bundle must be. It must not come into force.

    Attributes:
        policy_id: The policy at fault, or None where the bundle as a whole is.
    """

    status = 400
    default_code = "invalid-bundle"

    def __init__(self, message: str, *, policy_id: str | None = None) -> None:
        super().__init__(message if policy_id is None else f"policy {policy_id!r}: {message}")
        self.policy_id = policy_id


class FactError(DecideError):
    """Bytes or values are not a fact. What they stand for is unknown, so nothing may rest on them."""

    default_code = "invalid-fact"


class RecordError(DecideError):
    """Bytes are not a decision record. There is nothing to evaluate again."""

    default_code = "invalid-record"


class ReplayMismatch(DecideError):  # What an auditor calls it.
    """A recorded decision does not follow from what its record names.

    Attributes:
        differs: What differs: ``bundle``, ``facts``, ``decision``, ``reasons``, ``errors`` or ``observed``.
    """

    default_code = "replay-mismatch"

    def __init__(self, differs: Sequence[str], message: str) -> None:
        super().__init__(message)
        self.differs = tuple(differs)
