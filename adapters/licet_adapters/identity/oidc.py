"""The public keys of an issuer of ID tokens, as OpenID Connect publishes them.

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
    from collections.abc import Sequence

_DISCOVERY = "/.well-known/openid-configuration"
_MAX_BYTES = 256 * 1024
_OK = 200


def fetch_keys(
    issuer: str, *, networks: Sequence[outbound.Network], unsafe_http: bool, timeout_s: float
) -> dict[str, Any]:
    """Fetch the JWK set of an issuer.

    Args:
        issuer: Its URL, as its tokens have it in ``iss``.
        networks: That may be reached beside the public ones.
        unsafe_http: Whether plain http to this machine is meant.
        timeout_s: For each of the two requests.

    Returns:
        The set, as parsed; what is in it was not looked at.

    Raises:
        InputRefused: An address that must not be asked, or an answer that is not what it should be.
        Unavailable: No answer.
    """

    def get(url: str) -> dict[str, Any]:
        answer = outbound.request(
            "GET",
            url,
            headers={"Accept": "application/json", "User-Agent": "licet-keys/1"},
            networks=networks,
            unsafe_http=unsafe_http,
            timeout_s=timeout_s,
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

    told = get(issuer.removesuffix("/") + _DISCOVERY)
    if told.get("issuer") != issuer or not isinstance(told.get("jwks_uri"), str):
        raise InputRefused("the issuer's discovery document is another issuer's", code="identity.issuer")
    return get(told["jwks_uri"])
