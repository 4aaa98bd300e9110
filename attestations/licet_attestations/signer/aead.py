"""The one AEAD of the house: AES-256-GCM with 96-bit nonces and 128-bit tags, and how associated data is built.

Rules kept here:

- A key is 32 bytes, a nonce 12, a tag 16; nothing shorter is ever accepted.
- Associated data is a purpose and its parts, each with its length before it: two different lists of parts never give
  the same bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16


class SealBroken(Exception):  # Says what was found, and is always caught by who knows what it means.
    """The bytes were not sealed with this key, nonce and associated data."""


def new_key() -> bytes:
    """Return a fresh random key."""
    return secrets.token_bytes(KEY_BYTES)


def associated_data(purpose: str, *parts: str | bytes) -> bytes:
    """Return the bytes that bind a sealed text to its purpose and place."""
    built = bytearray()
    for part in (purpose, *parts):
        raw = part.encode("utf-8") if isinstance(part, str) else part
        built += len(raw).to_bytes(4, "big") + raw
    return bytes(built)


def seal(key: bytes, nonce: bytes, plaintext: bytes, bound: bytes) -> bytes:
    """Return ciphertext and tag; the caller never uses a nonce twice with one key."""
    _check(key, nonce)
    return AESGCM(key).encrypt(nonce, plaintext, bound)


def unseal(key: bytes, nonce: bytes, sealed: bytes, bound: bytes) -> bytes:
    """Return the plaintext.

    Raises:
        SealBroken: Another key, nonce, associated data, or altered bytes.
    """
    _check(key, nonce)
    if len(sealed) < TAG_BYTES:
        raise SealBroken("shorter than a tag")
    try:
        return AESGCM(key).decrypt(nonce, sealed, bound)
    except InvalidTag as error:
        raise SealBroken("not authentic") from error


def wrap(key: bytes, secret: bytes, bound: bytes) -> bytes:
    """Seal ``secret`` under a fresh random nonce, which goes first in the result."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + seal(key, nonce, secret, bound)


def unwrap(key: bytes, wrapped: bytes, bound: bytes) -> bytes:
    """Return what ``wrap`` sealed.

    Raises:
        SealBroken: See ``unseal``.
    """
    if len(wrapped) < NONCE_BYTES + TAG_BYTES:
        raise SealBroken("shorter than a nonce and a tag")
    return unseal(key, wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], bound)


def object_tag_hex(key: bytes, tenant: str, object_id: str, digest_hex: str) -> str:
    """Return the tag over an object's content that stands in its header; without the key it tells nothing of the content."""
    message = associated_data("licet-object-digest-v1", tenant, object_id, bytes.fromhex(digest_hex))
    return hmac.new(key, message, hashlib.sha256).hexdigest()


def _check(key: bytes, nonce: bytes) -> None:
    if len(key) != KEY_BYTES or len(nonce) != NONCE_BYTES:
        raise ValueError("a key is 32 bytes and a nonce 12")
