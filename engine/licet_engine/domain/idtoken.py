"""ID tokens of workloads: signed by an issuer, about who asked it.

Rules kept here:

- The algorithm is one of three, and is that of the key, whatever the token's header says: no ``none``, no shared secrets.
- A key is named by ``kid``; a token without one is refused. Keys are public and of a sound size.
- Nothing of a token is read before its signature is verified, but the header. Sizes are bounded, members stand once, numbers are whole.
- The issuer, the audience and the times are required. Clocks may differ by a minute.

Source: RFC 7515 (JWS), RFC 7517 (JWK), RFC 7519 (JWT), RFC 8725 (best current practices).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from licet_engine.domain.errors import InvalidInput

MAX_TOKEN_CHARS: Final = 16 * 1024
MAX_KEYS: Final = 32
_MIN_RSA_BITS: Final = 2048
_MAX_RSA_BITS: Final = 8192
_SKEW_S: Final = 60
_MOST_S: Final = 24 * 3600
"""How long after it was issued a token may end: one that lasts longer is no token of a job."""
_MEMBERS: Final[Mapping[str, tuple[str, ...]]] = {
    "RS256": ("kty", "kid", "n", "e"),
    "ES256": ("kty", "kid", "crv", "x", "y"),
    "EdDSA": ("kty", "kid", "crv", "x"),
}
_ALGORITHMS: Final[Mapping[tuple[str, str], str]] = {
    ("RSA", ""): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}


class Refused(Exception):
    """An ID token does not count.

    Attributes:
        unknown_key: Whether that is because its key is not known; it may be a new one.
        tried: Whether its signature was looked at.
    """

    def __init__(self, why: str, *, unknown_key: bool = False, tried: bool = False) -> None:
        super().__init__(why)
        self.unknown_key = unknown_key
        self.tried = tried


@dataclass(frozen=True, slots=True)
class IdToken:
    """An ID token whose signature, issuer, audience and times were verified.

    Attributes:
        claims: All that it claims.
        expires_at_ms: When it ends.
        digest_hex: SHA-256 of what was signed, by which it is known again.
    """

    claims: Mapping[str, Any]
    expires_at_ms: int
    digest_hex: str


def algorithm_of(key: Mapping[str, str]) -> str | None:
    """The one algorithm that a key is for; None where it is for none of ours."""
    return _ALGORITHMS.get((key.get("kty", ""), key.get("crv", "")))


def read_keys(document: Any) -> list[dict[str, str]]:
    """The public keys of a JWK set that can be used here, by their public members alone.

    Args:
        document: As parsed from JSON.

    Raises:
        InvalidInput: It is no set of keys, holds a private one, or none that can be used.
    """
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list) or len(keys) > MAX_KEYS:
        raise InvalidInput(f"a JWK set is an object with at most {MAX_KEYS} keys in the member keys")
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        if not isinstance(key, dict):
            raise InvalidInput("a key of the JWK set is no object")
        if key.keys() & {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}:
            raise InvalidInput(
                "the JWK set holds a private key or a shared secret: send the public ones, and replace it"
            )
        plain = {name: value for name, value in key.items() if isinstance(value, str)}
        algorithm = algorithm_of(plain)
        if algorithm is None or key.get("use", "sig") != "sig" or plain.get("alg", algorithm) != algorithm:
            continue
        public = {name: plain.get(name, "") for name in _MEMBERS[algorithm]}
        if not 0 < len(public["kid"]) <= 256 or public["kid"] in found:  # noqa: PLR2004  # As bounded as any name.
            raise InvalidInput("each key of a JWK set needs a kid of its own, of at most 256 characters")
        _public_key(public)
        found[public["kid"]] = public
    if not found:
        raise InvalidInput("the JWK set holds no key for RS256, ES256 or EdDSA")
    return [found[kid] for kid in sorted(found)]


def _public_key(key: Mapping[str, str]) -> Any:
    algorithm = algorithm_of(key)
    try:
        if algorithm == "RS256":
            found = RSAAlgorithm.from_jwk(dict(key))
            if not _MIN_RSA_BITS <= found.key_size <= _MAX_RSA_BITS:
                raise InvalidInput(f"an RSA key has {_MIN_RSA_BITS} to {_MAX_RSA_BITS} bits")
            return found
        return (ECAlgorithm if algorithm == "ES256" else OKPAlgorithm).from_jwk(dict(key))
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise InvalidInput(f"key {key.get('kid', '')!r} of the JWK set is no public key of its kind") from error


def new_decoys() -> dict[str, dict[str, str]]:
    """A public key for each algorithm, whose private one is nobody's."""
    rsa_key = rsa.generate_private_key(65537, _MIN_RSA_BITS).public_key()
    made = {
        "RS256": RSAAlgorithm.to_jwk(rsa_key, as_dict=True),
        "ES256": ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True),
        "EdDSA": OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate().public_key(), as_dict=True),
    }
    return {name: {member: str(key.get(member, "")) for member in _MEMBERS[name]} for name, key in made.items()}


def decoys_for(token: str, decoys: Mapping[str, Mapping[str, str]]) -> list[dict[str, str]]:
    """The decoy of the algorithm that a token names, under the name of the key that it names; none where it names none."""
    try:
        header = jwt.get_unverified_header(token[:MAX_TOKEN_CHARS])
    except (jwt.PyJWTError, ValueError, RecursionError):
        return []
    kid, decoy = header.get("kid"), decoys.get(str(header.get("alg")))
    return [{**decoy, "kid": kid}] if isinstance(kid, str) and decoy is not None else []


def verify(token: str, keys: Sequence[Mapping[str, str]], *, issuer: str, audience: str, now_ms: int) -> IdToken:
    """Verify an ID token.

    Args:
        token: As it was sent, in compact form.
        keys: The issuer's, as ``read_keys`` gives them.
        issuer: Who must have issued it.
        audience: For whom it must be, and for nobody else.
        now_ms: The time.

    Raises:
        Refused: It does not count; the reason is for logs, not for who sent it.
    """
    if len(token) > MAX_TOKEN_CHARS or not token.isascii() or token.count(".") != 2:  # noqa: PLR2004  # Compact form has three parts.
        raise Refused("it is no token in compact form, or too long")
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise Refused("its header cannot be read") from error
    kid = header.get("kid")
    key = next((key for key in keys if key["kid"] == kid), None)
    if not isinstance(kid, str) or key is None:
        raise Refused("its key is not known", unknown_key=isinstance(kid, str))
    algorithm = algorithm_of(key) or ""
    if header.get("alg") != algorithm or "crit" in header:
        raise Refused("its algorithm is not that of its key")
    try:
        payload: bytes = jwt.api_jws.PyJWS().decode(token, _public_key(key), algorithms=[algorithm])
    except (jwt.PyJWTError, InvalidInput, ValueError) as error:
        raise Refused("its signature is not its issuer's", tried=True) from error
    claims = _claims(payload)
    expires_at_s = _times(claims, now_ms // 1000)
    if claims.get("iss") != issuer:
        raise Refused("it was issued by another", tried=True)
    if claims.get("aud") not in (audience, [audience]):
        raise Refused("it is for somebody else", tried=True)
    digest_hex = hashlib.sha256(token.rpartition(".")[0].encode()).hexdigest()
    return IdToken(claims, expires_at_s * 1000, digest_hex)


def _claims(payload: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a member stands twice")
        return found

    try:
        claims = json.loads(payload, object_pairs_hook=once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Refused("what it claims cannot be read", tried=True) from error
    if not isinstance(claims, dict):
        raise Refused("what it claims is no object", tried=True)
    return claims


def _no_number(text: str) -> None:
    raise ValueError(text)


def _times(claims: Mapping[str, Any], now_s: int) -> int:
    """When the token ends, in seconds; it must have begun, and not have ended."""
    times = {name: claims.get(name) for name in ("exp", "iat", "nbf")}
    for name, value in times.items():
        if type(value) is not int and not (name == "nbf" and value is None):
            raise Refused(f"its {name} is no whole number of seconds", tried=True)
    expires_at_s, issued_at_s = int(claims["exp"]), int(claims["iat"])
    if expires_at_s <= now_s:
        raise Refused("its time is over", tried=True)
    if max(issued_at_s, claims.get("nbf") or 0) > now_s + _SKEW_S:
        raise Refused("its time has not come", tried=True)
    if not 0 < expires_at_s - issued_at_s <= _MOST_S:
        raise Refused("it lasts longer than a day", tried=True)
    return expires_at_s


def text_of(value: Any) -> str | None:
    """A claim as it is compared and recorded: text, or a whole number or truth as JSON writes it; None for anything else."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, (bool, int)) else None
