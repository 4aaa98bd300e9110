"""The errors of the room: one root, and one subclass per reaction of the caller.

Rules kept here:

- Whatever verifies raises only ``VerificationError``; a foreign exception is wrapped ``from`` at the boundary.
- ``code`` is stable: it stands in HTTP bodies, log lines, metrics and on the signer's wire.
- A message says what is wrong, where, and what to do.
"""

from __future__ import annotations

from typing import Literal

WarrantFault = Literal[
    "forged", "expired", "other-adapter", "other-operation", "other-parameter", "other-resource", "unlogged"
]
"""Why a warrant does not permit an act. (That it is spent, only the adapter's own guard can know.)"""


class LicetAttestationError(Exception):
    """Root of every error of this room.

    Attributes:
        code: Stable, machine-readable kind.
    """

    code = "attestation.error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code


class FormatError(LicetAttestationError):
    """Bytes or values are not what their format allows. The caller has bad input."""

    code = "attestation.format"


class ErasedSince(LicetAttestationError):
    """A record is missing, and no entry up to the checkpoint says that it was erased: erased since, or gone. The caller tries a newer checkpoint."""

    code = "attestation.erased-since"


class VerificationError(LicetAttestationError):
    """Something that should prove a thing does not prove it. The caller must not rely on it.

    Attributes:
        step: The verifier's step that failed, as its output prints it, or None outside of an archive.
        where: The file, key or entry at fault, or None.
    """

    code = "attestation.unverified"

    def __init__(
        self, message: str, *, step: str | None = None, where: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.step = step
        self.where = where


class WarrantError(VerificationError):
    """A warrant does not permit the act at hand; nothing may be done under it.

    Attributes:
        reason: The rule it breaks; ``code`` is ``warrant.`` and the reason.
    """

    def __init__(self, reason: WarrantFault, message: str) -> None:
        super().__init__(message, where="warrant", code=f"warrant.{reason}")
        self.reason: WarrantFault = reason


class SignerError(LicetAttestationError):
    """The signer did not do what it was asked to."""

    code = "signer.error"


class SignerRefused(SignerError):  # A refusal, named as the house names it.
    """The signer's rules forbid it. Asking again changes nothing."""

    code = "signer.refused"


class SignerUnavailable(SignerError):  # As above.
    """The signer could not be reached or did not answer in time. Asking again may help."""

    code = "signer.unavailable"
