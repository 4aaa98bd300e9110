"""Proofs, good and mutated, from transparency-dev/merkle."""

import base64
import json
from pathlib import Path

import pytest

from licet_attestations import merkle
from licet_attestations.errors import VerificationError


def _bytes(value: str | None) -> bytes:
    return base64.b64decode(value or "")


@pytest.mark.vector_files("rfc6962/inclusion/**/*.json")
def test_inclusion_proof(vector: Path) -> None:
    case = json.loads(vector.read_text())
    proof = [_bytes(part) for part in case["proof"] or []]
    arguments = (_bytes(case["leafHash"]), case["leafIdx"], case["treeSize"], proof, _bytes(case["root"]))
    if case["wantErr"]:
        with pytest.raises(VerificationError):
            merkle.verify_inclusion(*arguments)
    else:
        merkle.verify_inclusion(*arguments)


@pytest.mark.vector_files("rfc6962/consistency/**/*.json")
def test_consistency_proof(vector: Path) -> None:
    case = json.loads(vector.read_text())
    proof = [_bytes(part) for part in case["proof"] or []]
    arguments = (case["size1"], _bytes(case["root1"]), case["size2"], _bytes(case["root2"]), proof)
    if case["wantErr"]:
        with pytest.raises(VerificationError):
            merkle.verify_consistency(*arguments)
    else:
        merkle.verify_consistency(*arguments)


def test_every_vector_is_there(vectors: Path) -> None:
    assert len(list((vectors / "rfc6962").rglob("*.json"))) > 150
