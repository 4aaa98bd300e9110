"""Project Wycheproof: signatures that a verifier must accept and must refuse."""

import json
from pathlib import Path
from typing import Any

import pytest

from licet_attestations.errors import VerificationError
from licet_attestations.keys import PublicKey


def _verifies(key: PublicKey, test: dict[str, Any]) -> bool:
    try:
        key.verify(bytes.fromhex(test["sig"]), bytes.fromhex(test["msg"]))
    except VerificationError:
        return False
    return True


@pytest.mark.parametrize("name", ["ed25519_test.json", "ecdsa_secp256r1_sha256_test.json"])
def test_signatures(vectors: Path, name: str) -> None:
    suite = json.loads((vectors / "wycheproof" / name).read_text())
    run, wrong = 0, []
    for group in suite["testGroups"]:
        key = PublicKey.from_der(bytes.fromhex(group["publicKeyDer"]))
        for test in group["tests"]:
            assert test["result"] in ("valid", "invalid")
            run += 1
            if _verifies(key, test) != (test["result"] == "valid"):
                wrong.append((test["tcId"], test["comment"]))
    assert run == suite["numberOfTests"]
    assert wrong == []
