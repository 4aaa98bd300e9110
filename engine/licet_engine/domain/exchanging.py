"""What both sides of an exchange of ID tokens name alike: the client and the command, the door and what stands behind it.

Source: RFC 8693, sections 2.1 and 3.
"""

from __future__ import annotations

from typing import Final

GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  # A name of RFC 8693.
ID_TOKEN: Final = "urn:ietf:params:oauth:token-type:id_token"  # noqa: S105  # As above.
ID_TOKENS: Final = frozenset({ID_TOKEN, "urn:ietf:params:oauth:token-type:jwt"})
"""As what an ID token may be sent: a job may know it as no more than a JWT."""
MAX_TOKEN_CHARS: Final = 16 * 1024
"""Of an ID token in compact form."""


def audience_of(issuer: str) -> str:
    """The audience that ID tokens must be made for, if an administrator names no other.

    Args:
        issuer: As the tenant knows it: ``TENANT/NAME``.
    """
    return f"licet:{issuer}"
