"""``OidcKeys``: the public keys of an issuer of ID tokens, as OpenID Connect publishes them.

Rules kept here:

- The issuer says in its discovery document where its keys are, and must name itself there word for word. Both addresses are asked as any
  that somebody else named: guarded, bounded, no redirect.
- What is fetched is public; nothing is sent but the request.

Source: OpenID Connect Discovery 1.0, sections 3 and 4; RFC 7517.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from licet_adapters import outbound
from licet_adapters.errors import InputRefused, Unavailable

if TYPE_CHECKING:
    from licet_adapters.ports import AdapterContext

_DISCOVERY = "/.well-known/openid-configuration"
_MAX_BYTES = 256 * 1024
_OK = 200


class OidcKeys:
    """Fetches keys from issuers.

    Args:
        context: What every adapter is given.
    """

    def __init__(self, context: AdapterContext) -> None:
        self._networks = outbound.parse_networks(context.option("outbound_networks"))
        self._timeout_s = float(context.option("outbound_timeout_s", "10"))

    def fetch(self, issuer: str, *, unsafe_http: bool) -> dict[str, Any]:
        """See ``IssuerKeySource.fetch``; each of the two requests may take its time."""
        told = self._get(issuer.removesuffix("/") + _DISCOVERY, unsafe_http=unsafe_http)
        if told.get("issuer") != issuer or not isinstance(told.get("jwks_uri"), str):
            raise InputRefused("the issuer's discovery document is another issuer's", code="identity.issuer")
        return self._get(told["jwks_uri"], unsafe_http=unsafe_http)

    def _get(self, url: str, *, unsafe_http: bool) -> dict[str, Any]:
        answer = outbound.request(
            "GET",
            url,
            headers={"Accept": "application/json", "User-Agent": "licet-keys/1"},
            networks=self._networks,
            unsafe_http=unsafe_http,
            timeout_s=self._timeout_s,
            max_bytes=_MAX_BYTES + 1,
        )
        if answer.status != _OK:
            raise Unavailable(f"the issuer answered {answer.status}", code="identity.status")
        try:
            found = json.loads(answer.body) if len(answer.body) <= _MAX_BYTES else None
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise InputRefused("the issuer answered no JSON object, or too much", code="identity.form")
        return found
