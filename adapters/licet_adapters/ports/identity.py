"""The port of issuers' public keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping


class IssuerKeySource(Protocol):
    """``OidcKeys`` and its peers.

    NOTE: it takes no warrant, and is no choice of an operator's. What is fetched is public, and touches no data, key, model or
    traffic; that an issuer is asked is decided when it is trusted, and that its keys count is an entry of the tenant's log.
    """

    def fetch(self, issuer: str, *, unsafe_http: bool) -> Mapping[str, Any]:
        """Fetch the JWK set of an issuer.

        Args:
            issuer: Its URL, as its tokens have it in ``iss``.
            unsafe_http: Whether plain http to this machine is meant.

        Returns:
            The set, as parsed; what is in it was not looked at.

        Raises:
            InputRefused: An address that must not be asked, or an answer that is not what it should be.
            Unavailable: No answer.
        """
        ...
