"""Signature keys: ECDSA over P-256 with SHA-256 (attestations, warrants, models) and Ed25519 (logs).

Rules kept here:

- A key is named by the SHA-256 of its SubjectPublicKeyInfo; a name is looked up, never trusted.
- An algorithm belongs to its key: nothing in a message can choose it.
- No other curve and no other hash is accepted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, assert_never

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from licet_attestations.errors import FormatError, VerificationError

Algorithm = Literal["ecdsa-p256-sha256", "ed25519"]
P256: Algorithm = "ecdsa-p256-sha256"
ED25519: Algorithm = "ed25519"

_ECDSA = ec.ECDSA(hashes.SHA256())
_MAX_SPKI_BYTES = 4096


@dataclass(frozen=True)
class PublicKey:
    """A key that verifies.

    Attributes:
        keyid: SHA-256 of ``spki_der`` in hex.
        alg: Its one algorithm.
        spki_der: SubjectPublicKeyInfo, DER.
    """

    keyid: str
    alg: Algorithm
    spki_der: bytes = field(repr=False)

    @classmethod
    def from_der(cls, spki_der: bytes) -> PublicKey:
        """Read a SubjectPublicKeyInfo.

        Raises:
            FormatError: Not one, or neither P-256 nor Ed25519.
        """
        if len(spki_der) > _MAX_SPKI_BYTES:
            raise FormatError("a public key is longer than any that is supported")
        try:
            key = serialization.load_der_public_key(spki_der)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise FormatError("not a public key in DER (SubjectPublicKeyInfo)") from error
        return cls(hashlib.sha256(spki_der).hexdigest(), _algorithm_of(key), spki_der)

    @classmethod
    def from_raw(cls, raw: bytes) -> PublicKey:
        """Read the 32 bytes of an Ed25519 key.

        Raises:
            FormatError: Not one.
        """
        try:
            key = ed25519.Ed25519PublicKey.from_public_bytes(raw)
        except ValueError as error:
            raise FormatError("an Ed25519 key has 32 bytes") from error
        return cls.from_der(
            key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        )

    @classmethod
    def from_pem(cls, pem: bytes) -> PublicKey:
        """Read a PEM public key.

        Raises:
            FormatError: As ``from_der``.
        """
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise FormatError("not a public key in PEM") from error
        _algorithm_of(key)
        return cls.from_der(
            key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        )

    @cached_property
    def _key(self) -> ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey:
        key = serialization.load_der_public_key(self.spki_der)
        if not isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
            raise FormatError("neither a P-256 nor an Ed25519 key")
        return key

    def to_pem(self) -> bytes:
        """The key as PEM, for tools that are not ours."""
        return self._key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def raw(self) -> bytes:
        """The 32 bytes of an Ed25519 key.

        Raises:
            FormatError: It is another kind of key.
        """
        if not isinstance(self._key, ed25519.Ed25519PublicKey):
            raise FormatError("only an Ed25519 key has a raw form here")
        return self._key.public_bytes_raw()

    def verify(self, signature: bytes, message: bytes) -> None:
        """Verify ``signature`` over ``message``.

        Args:
            signature: DER ``ECDSA-Sig-Value`` for P-256, 64 bytes for Ed25519.
            message: The signed bytes, not their hash.

        Raises:
            VerificationError: It is not this key's signature.
        """
        try:
            if isinstance(self._key, ec.EllipticCurvePublicKey):
                self._key.verify(signature, message, _ECDSA)
            else:
                self._key.verify(signature, message)
        except InvalidSignature as error:
            raise VerificationError(
                f"the signature is not one of key {self.keyid[:16]} over these bytes", where=f"key {self.keyid}"
            ) from error


class PrivateKey:
    """A key that signs; it never shows itself in text."""

    def __init__(self, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> None:
        self._key = key
        public = key.public_key()
        _algorithm_of(public)
        self.public = PublicKey.from_der(
            public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        )

    @classmethod
    def generate(cls, alg: Algorithm) -> PrivateKey:
        """Make a fresh key."""
        match alg:
            case "ecdsa-p256-sha256":
                return cls(ec.generate_private_key(ec.SECP256R1()))
            case "ed25519":
                return cls(ed25519.Ed25519PrivateKey.generate())
            case _:
                assert_never(alg)

    @classmethod
    def from_pkcs8(cls, data: bytes, passphrase: bytes | None = None) -> PrivateKey:
        """Read a PKCS #8 key, PEM or DER.

        Raises:
            FormatError: Not one, a wrong passphrase, or another kind of key.
        """
        load = serialization.load_pem_private_key if data.startswith(b"-----") else serialization.load_der_private_key
        try:
            key = load(data, passphrase)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise FormatError("not a PKCS #8 private key, or another passphrase") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
            raise FormatError("neither a P-256 nor an Ed25519 key")
        return cls(key)

    def to_pkcs8(self, passphrase: bytes | None = None) -> bytes:
        """The key as PKCS #8 PEM, encrypted if a passphrase is given."""
        protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase is not None:
            protection = serialization.BestAvailableEncryption(passphrase)
        return self._key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)

    @property
    def keyid(self) -> str:
        """Name of the public half."""
        return self.public.keyid

    def sign(self, message: bytes) -> bytes:
        """Sign ``message`` (not its hash); the form is the one ``PublicKey.verify`` takes."""
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            return self._key.sign(message, _ECDSA)
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"PrivateKey({self.public.alg}, {self.keyid[:16]})"


def _algorithm_of(key: object) -> Algorithm:
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return P256
    if isinstance(key, ed25519.Ed25519PublicKey):
        return ED25519
    raise FormatError("only ECDSA P-256 and Ed25519 keys are supported")
