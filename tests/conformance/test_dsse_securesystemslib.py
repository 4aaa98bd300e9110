"""DSSE envelopes both ways with securesystemslib, the library of TUF and in-toto."""

import base64
import json

import pytest
from securesystemslib.dsse import Envelope as TheirEnvelope
from securesystemslib.exceptions import VerificationError as TheirVerificationError
from securesystemslib.signer import CryptoSigner, Signature, SSlibKey

from licet_attestations import canonical, dsse
from licet_attestations.errors import VerificationError
from licet_attestations.keys import ED25519, P256, Algorithm, PrivateKey

PAYLOAD = canonical.dumps({"_type": "https://in-toto.io/Statement/v1", "text": "naïve"})


def _their_key(key: PrivateKey) -> SSlibKey:
    if key.public.alg == ED25519:
        return SSlibKey(key.keyid, "ed25519", "ed25519", {"public": key.public.raw().hex()})
    return SSlibKey(key.keyid, "ecdsa", "ecdsa-sha2-nistp256", {"public": key.public.to_pem().decode()})


@pytest.mark.parametrize("alg", [P256, ED25519])
def test_theirs_verifies_ours(alg: Algorithm) -> None:
    key = PrivateKey.generate(alg)
    envelope = json.loads(dsse.sign(PAYLOAD, dsse.IN_TOTO_PAYLOAD_TYPE, key).to_json())
    theirs = TheirEnvelope.from_dict(envelope)
    assert theirs.payload == PAYLOAD
    assert theirs.pae() == dsse.pae(dsse.IN_TOTO_PAYLOAD_TYPE, PAYLOAD)
    accepted = theirs.verify([_their_key(key)], 1)
    assert set(accepted) == {key.keyid}
    theirs.payload += b" "
    with pytest.raises(TheirVerificationError):
        theirs.verify([_their_key(key)], 1)


@pytest.mark.parametrize("alg", [P256, ED25519])
def test_ours_verifies_theirs(alg: Algorithm) -> None:
    key = PrivateKey.generate(alg)
    theirs = TheirEnvelope(PAYLOAD, dsse.IN_TOTO_PAYLOAD_TYPE, {})
    theirs.sign(CryptoSigner(key._key, _their_key(key)))
    envelope = dsse.Envelope.from_dict(theirs.to_dict())
    assert dsse.verify_envelope(envelope, [key.public]) == PAYLOAD
    with pytest.raises(VerificationError):
        dsse.verify_envelope(envelope, [PrivateKey.generate(alg).public])


def test_a_signature_moved_to_another_payload_is_refused_by_both() -> None:
    key = PrivateKey.generate(P256)
    envelope = dsse.sign(PAYLOAD, dsse.IN_TOTO_PAYLOAD_TYPE, key)
    moved = dsse.Envelope(envelope.payload_type, b"{}", envelope.signatures)
    with pytest.raises(VerificationError):
        dsse.verify_envelope(moved, [key.public])
    theirs = TheirEnvelope(
        b"{}", envelope.payload_type, {key.keyid: Signature(key.keyid, envelope.signatures[0].sig.hex())}
    )
    with pytest.raises(TheirVerificationError):
        theirs.verify([_their_key(key)], 1)
    assert base64.b64decode(json.loads(moved.to_json())["payload"]) == b"{}"
