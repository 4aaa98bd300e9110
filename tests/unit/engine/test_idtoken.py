"""ID tokens: whatever is wrong with one, it does not count."""

from __future__ import annotations

import base64
import hmac
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from licet_engine.domain import idtoken
from licet_engine.domain.errors import InvalidInput

NOW_S = 1_800_000_000
ISSUER, AUDIENCE = "https://ci.example", "licet:northbank/github"
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
SIGNERS: dict[str, Any] = {"RS256": RSA, "ES256": EC, "EdDSA": ED}
DOCUMENT = {
    "keys": [
        {**RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True), "kid": "RS256", "use": "sig"},
        {**ECAlgorithm.to_jwk(EC.public_key(), as_dict=True), "kid": "ES256"},
        {**OKPAlgorithm.to_jwk(ED.public_key(), as_dict=True), "kid": "EdDSA"},
    ]
}
KEYS = idtoken.read_keys(DOCUMENT)
CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "aud": AUDIENCE,
    "sub": "repo:northbank/policies:ref:refs/heads/main",
    "iat": NOW_S - 5,
    "exp": NOW_S + 300,
    "jti": "1",
}


def token(algorithm: str = "RS256", header: dict[str, Any] | None = None, **claims: Any) -> str:
    payload = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    return jwt.encode(payload, SIGNERS[algorithm], algorithm, {"kid": algorithm, **(header or {})})


def verify(text: str) -> idtoken.IdToken:
    return idtoken.verify(text, KEYS, issuer=ISSUER, audience=AUDIENCE, now_ms=NOW_S * 1000)


def encoded(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.mark.parametrize("algorithm", sorted(SIGNERS))
def test_a_token_of_a_known_key_tells_what_it_claims(algorithm: str) -> None:
    found = verify(token(algorithm))
    assert dict(found.claims) == CLAIMS
    assert found.expires_at_ms == CLAIMS["exp"] * 1000


def test_a_time_before_which_it_does_not_count_may_be_null() -> None:
    raw = jwt.api_jws.PyJWS().encode(json.dumps({**CLAIMS, "nbf": None}).encode(), RSA, "RS256", {"kid": "RS256"})
    assert verify(raw).claims["nbf"] is None


def test_an_audience_may_be_a_list_of_one() -> None:
    assert verify(token(aud=[AUDIENCE])).claims["aud"] == [AUDIENCE]


def test_it_is_known_again_by_what_was_signed_whatever_its_signature() -> None:
    once, again = token("ES256"), token("ES256")
    assert once != again  # ES256 signs otherwise each time.
    assert verify(once).digest_hex == verify(again).digest_hex != verify(token("ES256", jti="2")).digest_hex


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"iss": "https://ci.example.evil"}, "issued by another"),
        ({"iss": None}, "issued by another"),
        ({"aud": "licet:lakeside/github"}, "somebody else"),
        ({"aud": [AUDIENCE, "licet:lakeside/github"]}, "somebody else"),
        ({"aud": None}, "somebody else"),
        ({"exp": NOW_S}, "time is over"),
        ({"exp": None}, "exp is no whole number"),
        ({"exp": str(NOW_S + 300)}, "exp is no whole number"),
        ({"exp": NOW_S + 300.5}, "exp is no whole number"),
        ({"exp": True}, "exp is no whole number"),
        ({"exp": NOW_S + 200_000}, "longer than a day"),
        ({"iat": None}, "iat is no whole number"),
        ({"iat": NOW_S + 61}, "has not come"),
        ({"nbf": NOW_S + 61}, "has not come"),
        ({"nbf": "soon"}, "nbf is no whole number"),
        ({"iat": NOW_S + 10, "exp": NOW_S + 5}, "longer than a day"),
    ],
)
def test_whose_it_is_for_whom_and_when_are_looked_at(claims: dict[str, Any], said: str) -> None:
    with pytest.raises(idtoken.Refused, match=said):
        verify(token(**claims))


def signed_with_secret(secret: bytes, body: str) -> str:
    head = f"{encoded({'alg': 'HS256', 'kid': 'RS256'})}.{body}"
    return f"{head}.{encoded(hmac.digest(secret, head.encode(), 'sha256'))}"


def hostile() -> dict[str, str]:
    good = token()
    head, body, signature = good.split(".")
    hmac_key = RSA.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    twice = (json.dumps(CLAIMS)[:-1] + ', "sub": "repo:northbank/policies"}').encode()
    deep = b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"
    other = rsa.generate_private_key(65537, 2048)
    raw = jwt.api_jws.PyJWS()
    return {
        "unsigned": f"{encoded({'alg': 'none', 'kid': 'RS256'})}.{body}.",
        "unsigned in capitals": f"{encoded({'alg': 'NoNe', 'kid': 'RS256'})}.{body}.",
        "a shared secret made of the public key": signed_with_secret(hmac_key, body),
        "another algorithm of the same key": jwt.encode(CLAIMS, RSA, "PS256", {"kid": "RS256"}),
        "the kid of another key": token(header={"kid": "ES256"}),
        "an unknown kid": token(header={"kid": "other"}),
        "another's signature": jwt.encode(CLAIMS, other, "RS256", {"kid": "RS256"}),
        "a critical extension": f"{encoded({'alg': 'RS256', 'kid': 'RS256', 'crit': ['b64'], 'b64': False})}.{body}.{signature}",
        "a changed claim": f"{head}.{encoded({**CLAIMS, 'sub': 'repo:evil/evil'})}.{signature}",
        "a member twice": raw.encode(twice, RSA, "RS256", {"kid": "RS256"}),
        "endless nesting": raw.encode(deep, RSA, "RS256", {"kid": "RS256"}),
        "not a number": raw.encode(json.dumps({**CLAIMS, "x": float("nan")}).encode(), RSA, "RS256", {"kid": "RS256"}),
        "no object": raw.encode(b"[]", RSA, "RS256", {"kid": "RS256"}),
        "no JSON": raw.encode(b"\xff\xfe", RSA, "RS256", {"kid": "RS256"}),
        "no signature": f"{head}.{body}.",
        "two parts": f"{head}.{body}",
        "four parts": f"{good}.{signature}",
        "empty": "",
        "spaces": f" {good}",
        "a header that is no JSON": f"{encoded(b'{')}.{body}.{signature}",
        "a header that is a list": f"{encoded([1])}.{body}.{signature}",
        "a key in the header": token(header={"kid": "other", "jwk": DOCUMENT["keys"][0]}),
        "letters that are none of ASCII": good + "ä",
        "too long": token(padding="x" * 20_000),
    }


@pytest.mark.parametrize("text", hostile().values(), ids=hostile())
def test_whatever_is_not_just_so_is_refused(text: str) -> None:
    with pytest.raises(idtoken.Refused):
        verify(text)


def test_a_token_without_a_kid_is_refused_and_no_key_is_asked_for() -> None:
    with pytest.raises(idtoken.Refused) as refused:
        verify(jwt.encode(CLAIMS, RSA, "RS256"))
    assert not refused.value.unknown_key
    with pytest.raises(idtoken.Refused) as new:
        verify(token(header={"kid": "new"}))
    assert new.value.unknown_key


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (None, "JWK set"),
        ({"keys": {}}, "JWK set"),
        ({"keys": []}, "holds no key"),
        ({"keys": [1]}, "no object"),
        ({"keys": [{**DOCUMENT["keys"][0]}] * 2}, "kid of its own"),
        ({"keys": [{**DOCUMENT["keys"][0], "kid": ""}]}, "kid of its own"),
        ({"keys": [{**DOCUMENT["keys"][0], "d": "AQAB"}]}, "private key"),
        ({"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "a"}]}, "shared secret"),
        ({"keys": [{**DOCUMENT["keys"][0], "n": "!"}]}, "no public key of its kind"),
        ({"keys": [{**DOCUMENT["keys"][1], "x": DOCUMENT["keys"][1]["y"]}]}, "no public key of its kind"),
        ({"keys": [{**DOCUMENT["keys"][0], "use": "enc"}]}, "holds no key"),
        ({"keys": [{"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA", "kid": "a"}]}, "holds no key"),
        ({"keys": [DOCUMENT["keys"][0]] * 33}, "at most 32"),
    ],
)
def test_what_is_no_set_of_public_keys_is_refused(document: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        idtoken.read_keys(document)


def test_a_short_rsa_key_is_refused() -> None:
    short = rsa.generate_private_key(65537, 1024).public_key()  # noqa: S505  # That it is refused is what is tested.
    with pytest.raises(InvalidInput, match="2048 to 8192 bits"):
        idtoken.read_keys({"keys": [{**RSAAlgorithm.to_jwk(short, as_dict=True), "kid": "a"}]})


def test_of_a_key_nothing_but_its_public_members_is_kept() -> None:
    (kept,) = idtoken.read_keys({"keys": [{**DOCUMENT["keys"][0], "x5c": ["AA"], "note": "x"}]})
    assert sorted(kept) == ["e", "kid", "kty", "n"]
