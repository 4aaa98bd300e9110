"""Model signatures: OpenSSF Model Signing 1.0 with an elliptic-curve key, as a Sigstore bundle.

Rules kept here:

- Only bundles signed with a key are made and read. Those signed with a certificate or by Sigstore's public instance are
  refused with a message that says so: their trust has roots that are not pinned here.
- The key is a pinned one. The bundle's hint at its key must agree with it and decides nothing.
- A model is exactly the files that its signature lists: one more, one less or another one is refused.

Source: ossf/model-signing-spec 1.0; Sigstore bundle v0.3; the reference implementation is PyPI ``model-signing``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from licet_attestations import canonical, dsse, statement
from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.keys import P256, PrivateKey, PublicKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PREDICATE_TYPE = "https://model_signing/signature/v1.0"
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIGNATURE_NAME = "model.sig"
"""The file beside the model that holds its signature and is not part of it."""

MAX_BUNDLE_BYTES = 16 * 1024 * 1024
_MAX_FILES = 100_000


@dataclass(frozen=True, slots=True)
class ModelSignature:
    """What a bundle says is signed.

    Attributes:
        name: The model's name; informative.
        digest_hex: Digest over the files' digests, in the order listed.
        files: SHA-256 in hex of each file, by its path within the model.
    """

    name: str
    digest_hex: str
    files: Mapping[str, str]


def _check_files(files: Mapping[str, str]) -> None:
    if not 1 <= len(files) <= _MAX_FILES:
        raise FormatError(f"a signed model has 1 to {_MAX_FILES} files")
    for name, digest_hex in files.items():
        path = PurePosixPath(name)
        if str(path) != name or path.is_absolute() or ".." in path.parts or name == "." or "\\" in name:
            raise FormatError(f"{name!r} is not a plain relative path of a model's file")
        if not statement.is_sha256_hex(digest_hex):
            raise FormatError(f"model file {name!r} has no SHA-256 digest")


def model_statement(name: str, files: Mapping[str, str]) -> bytes:
    """The in-toto statement that a signature of this model is over.

    Args:
        name: The model's name; informative.
        files: SHA-256 in hex of each file, by its path within the model.

    Raises:
        FormatError: No files, a path that leaves the model, or a digest that is none.
    """
    _check_files(files)
    ordered = sorted(files.items(), key=lambda item: PurePosixPath(item[0]))
    predicate: dict[str, Any] = {
        "resources": [{"algorithm": "sha256", "digest": digest, "name": path} for path, digest in ordered],
        "serialization": {
            "allow_symlinks": False,
            "hash_type": "sha256",
            "ignore_paths": [SIGNATURE_NAME],
            "method": "files",
        },
    }
    subject = statement.Subject(name, _digest_over(digest for _, digest in ordered))
    return statement.Statement((subject,), PREDICATE_TYPE, predicate).to_bytes()


def sign_statement(payload: bytes, key: PrivateKey) -> bytes:
    """Sign a statement from ``model_statement``; the bundle as JSON.

    Raises:
        FormatError: The payload is not such a statement, or the key is not a P-256 key.
    """
    _read_payload(payload)
    if key.public.alg != P256:
        raise FormatError("a model is signed with a P-256 key")
    envelope = dsse.sign(payload, dsse.IN_TOTO_PAYLOAD_TYPE, key)
    # The reference implementation names no key in the envelope; its bundle does, by the hint.
    unnamed = dsse.Envelope(envelope.payload_type, payload, (dsse.Signature("", envelope.signatures[0].sig),))
    return bundle_of(unnamed, key.public)


def bundle_of(envelope: dsse.Envelope, key: PublicKey) -> bytes:
    """An envelope as a Sigstore bundle, for verifiers that take no bare ones: it says which key, and adds nothing."""
    return canonical.dumps(
        {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": key_hint(key)}, "tlogEntries": []},
            "dsseEnvelope": envelope.to_dict(),
        }
    )


def sign_model(name: str, files: Mapping[str, str], key: PrivateKey) -> bytes:
    """Sign a model: ``model_statement`` and ``sign_statement`` in one."""
    return sign_statement(model_statement(name, files), key)


def key_hint(key: PublicKey) -> str:
    """How a bundle names a key: SHA-256 of its PEM text, in hex."""
    return hashlib.sha256(key.to_pem()).hexdigest()


def read_bundle(bundle: bytes) -> tuple[ModelSignature, dsse.Envelope, str]:
    """Read a key-signed bundle: what it lists, its envelope, and its key hint. Verifies nothing.

    Raises:
        FormatError: Not such a bundle; for one signed another way, the message says which.
    """
    value = canonical.loads(bundle, max_bytes=MAX_BUNDLE_BYTES)
    if not isinstance(value, dict) or value.get("mediaType") != MEDIA_TYPE:
        raise FormatError(f"not a Sigstore bundle of type {MEDIA_TYPE}")
    material = value.get("verificationMaterial")
    if not isinstance(material, dict):
        raise FormatError("the bundle has no verification material")
    if "certificate" in material or "x509CertificateChain" in material:
        raise FormatError(
            "the model is signed with a certificate; only models signed with a pinned key are verified here"
        )
    public_key = material.get("publicKey")
    if not isinstance(public_key, dict) or not isinstance(public_key.get("hint", ""), str):
        raise FormatError("the bundle's verification material names no public key")
    if "dsseEnvelope" not in value:
        raise FormatError("the bundle has no DSSE envelope")
    envelope = dsse.Envelope.from_dict(value["dsseEnvelope"])
    if envelope.payload_type != dsse.IN_TOTO_PAYLOAD_TYPE or len(envelope.signatures) != 1:
        raise FormatError("a model's bundle holds one signature over an in-toto statement")
    return _read_payload(envelope.payload), envelope, public_key.get("hint", "")


def verify_model(bundle: bytes, files: Mapping[str, str], keys: Iterable[PublicKey]) -> ModelSignature:
    """Verify that one of ``keys`` signed a model of exactly these files.

    Args:
        bundle: The signature, not trusted.
        files: SHA-256 in hex of each file at hand, by path, without the signature itself.
        keys: Pinned model keys.

    Raises:
        VerificationError: Not a bundle we verify, not signed by any of the keys, or of other files.
    """
    try:
        signature, envelope, hint = read_bundle(bundle)
    except FormatError as error:
        raise VerificationError(f"the model's signature cannot be verified: {error}", where=SIGNATURE_NAME) from error
    candidates = [key for key in keys if key.alg == P256 and hint in ("", key_hint(key))]
    # The key id of a foreign envelope is free text, so the hint alone has chosen the keys.
    unnamed = dsse.Envelope(envelope.payload_type, envelope.payload, (dsse.Signature("", envelope.signatures[0].sig),))
    try:
        dsse.verify_envelope(unnamed, candidates)
    except VerificationError as error:
        raise VerificationError("no pinned model key signed this model", where=SIGNATURE_NAME) from error
    for name in sorted(set(files) | set(signature.files)):
        if files.get(name) != signature.files.get(name):
            what = "is missing" if name not in files else "is not signed" if name not in signature.files else "differs"
            raise VerificationError(f"model file {name!r} {what}", where=name)
    return signature


def _digest_over(digests: Iterable[str]) -> str:
    total = hashlib.sha256()
    for digest in digests:
        total.update(bytes.fromhex(digest))
    return total.hexdigest()


def _read_payload(payload: bytes) -> ModelSignature:
    value = canonical.loads(payload, max_bytes=MAX_BUNDLE_BYTES)
    if not isinstance(value, dict) or value.get("_type") != statement.STATEMENT_TYPE:
        raise FormatError("the model's signature is not over an in-toto statement")
    if value.get("predicateType") != PREDICATE_TYPE:
        raise FormatError(f"the model's signature is over {value.get('predicateType')!r}, not {PREDICATE_TYPE!r}")
    try:
        (subject,), predicate = value["subject"], value["predicate"]
        name, digest_hex = subject["name"], subject["digest"]["sha256"]
        method, hash_type = predicate["serialization"]["method"], predicate["serialization"]["hash_type"]
        resources = [(r["name"], r["algorithm"], r["digest"]) for r in predicate["resources"]]
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError("the model's signature has not the fields of OpenSSF Model Signing 1.0") from error
    if (method, hash_type) != ("files", "sha256") or any(algorithm != "sha256" for _, algorithm, _ in resources):
        raise FormatError("only models signed file by file with SHA-256 are verified here")
    if not all(isinstance(text, str) for text in (name, *(path for path, _, _ in resources))):
        raise FormatError("a name in the model's signature is not text")
    files = {path: digest for path, _, digest in resources}
    if len(files) != len(resources):
        raise FormatError("the model's signature lists a file twice")
    _check_files(files)
    if _digest_over(digest for _, _, digest in resources) != digest_hex:
        raise FormatError("the model's digest is not the one over its files")
    return ModelSignature(name, digest_hex, files)
