"""Project Wycheproof's AES-GCM vectors through the one AEAD that seals keys and objects here."""

import json
from pathlib import Path

import pytest

from licet_attestations.signer import aead


def test_aes_gcm(vectors: Path) -> None:
    suite = json.loads((vectors / "wycheproof" / "aes_gcm_test.json").read_text())
    run, ours, wrong = 0, 0, []
    for group in suite["testGroups"]:
        for test in group["tests"]:
            run += 1
            key, nonce, bound, plain, cipher, tag = (
                bytes.fromhex(test[name]) for name in ("key", "iv", "aad", "msg", "ct", "tag")
            )
            if (group["keySize"], group["ivSize"], group["tagSize"]) != (256, 96, 128):
                # Sizes we never use are refused before anything is computed.
                if (group["keySize"], group["ivSize"]) != (256, 96):
                    with pytest.raises(ValueError, match="32 bytes"):
                        aead.unseal(key, nonce, cipher + tag, bound)
                continue
            ours += 1
            try:
                found = aead.unseal(key, nonce, cipher + tag, bound) == plain
                found = found and aead.seal(key, nonce, plain, bound) == cipher + tag
            except aead.SealBroken:
                found = False
            if found != (test["result"] == "valid"):
                wrong.append((test["tcId"], test["comment"]))
    assert run == suite["numberOfTests"]
    assert ours > 50
    assert wrong == []
