"""What an adapter may raise: one class per reaction of the caller, one stable ``code`` per cause.

Rules kept here:

- Everything an adapter raises on purpose descends from ``AdapterError``; foreign exceptions are wrapped at the boundary.
- A message says what is wrong and where, and never carries plaintext, keys or warrant contents.
"""

from __future__ import annotations

from typing import Literal

RefusalCode = Literal[
    "forged", "expired", "spent", "other-adapter", "other-operation", "other-parameter", "other-resource", "unlogged"
]


class AdapterError(Exception):
    """Root of the adapters' errors.

    Attributes:
        code: Stable, dotted; travels in logs, metrics and problem details.
    """

    def __init__(self, message: str, *, code: str = "adapter.error") -> None:
        super().__init__(message)
        self.code = code


class WarrantRefused(AdapterError):  # A refusal, named as the house names it.
    """The warrant does not permit this act: nothing was done. The caller needs another warrant, or must stop.

    Attributes:
        reason: Which of the guard's rules was broken.
    """

    def __init__(self, reason: RefusalCode, message: str) -> None:
        super().__init__(message, code=f"warrant.{reason}")
        self.reason: RefusalCode = reason


class InputRefused(AdapterError):  # As above.
    """What was handed in is not acceptable (a disguised pickle, a wrong digest): the asker must change it."""

    def __init__(self, message: str, *, code: str = "input.refused") -> None:
        super().__init__(message, code=code)


class Conflict(AdapterError):  # As above.
    """Something else already stands where this act would write, or a newer attempt has begun."""

    def __init__(self, message: str, *, code: str = "conflict") -> None:
        super().__init__(message, code=code)


class NotFound(AdapterError):  # As above.
    """What the warrant names is not there."""

    def __init__(self, message: str, *, code: str = "not-found") -> None:
        super().__init__(message, code=code)


class IntegrityError(AdapterError):
    """Stored bytes are not what was written: raise an alarm, never retry into them."""

    def __init__(self, message: str, *, code: str = "integrity") -> None:
        super().__init__(message, code=code)


class Unavailable(AdapterError):  # As above.
    """A disk, the signer or a sandbox cannot be had now: nothing half-done is visible, retry with a new warrant."""

    def __init__(self, message: str, *, code: str = "unavailable") -> None:
        super().__init__(message, code=code)


class JobFailed(AdapterError):  # As above.
    """A job ran and failed by itself (its code raised, it broke a limit): a retry would fail the same way."""

    def __init__(self, message: str, *, code: str = "job.failed") -> None:
        super().__init__(message, code=code)
