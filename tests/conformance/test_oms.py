"""OpenSSF Model Signing: our bundles against the reference implementation, theirs against ours, and the spec's own examples."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from licet_attestations import dsse, oms, statement
from licet_attestations.errors import FormatError, VerificationError
from licet_attestations.keys import P256, PrivateKey


@pytest.fixture
def key() -> PrivateKey:
    return PrivateKey.generate(P256)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "credit-risk"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"\x00weights" * 100)
    (folder / "architecture.json").write_text("{}")
    (folder / "sub" / "a.txt").write_text("a")
    (folder / "sub-b.txt").write_text("b")  # "sub-b.txt" sorts before "sub/a.txt" as text, after it as a path.
    return folder


def _files(model: Path) -> dict[str, str]:
    return {
        path.relative_to(model).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in model.rglob("*")
        if path.is_file() and path.name != oms.SIGNATURE_NAME
    }


def _reference(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def _reference_verify(model: Path, public: Path) -> subprocess.CompletedProcess[str]:
    return _reference("verify", "key", model, "--signature", model / oms.SIGNATURE_NAME, "--public_key", public)


def test_the_reference_implementation_verifies_our_bundle_and_refuses_a_changed_model(
    key: PrivateKey, model: Path, tmp_path: Path
) -> None:
    public = tmp_path / "public.pem"
    public.write_bytes(key.public.to_pem())
    (model / oms.SIGNATURE_NAME).write_bytes(oms.sign_model("northbank/credit-risk@1", _files(model), key))
    done = _reference_verify(model, public)
    assert done.returncode == 0, done.stdout + done.stderr
    (model / "architecture.json").write_text("{ }")
    assert _reference_verify(model, public).returncode != 0


def test_the_reference_implementation_refuses_a_file_beside_the_signed_ones(
    key: PrivateKey, model: Path, tmp_path: Path
) -> None:
    public = tmp_path / "public.pem"
    public.write_bytes(key.public.to_pem())
    (model / oms.SIGNATURE_NAME).write_bytes(oms.sign_model("m", _files(model), key))
    assert _reference_verify(model, public).returncode == 0
    (model / "more.txt").write_text("x")
    assert _reference_verify(model, public).returncode != 0


def test_ours_verifies_the_reference_implementations_bundle(key: PrivateKey, model: Path, tmp_path: Path) -> None:
    private = tmp_path / "private.pem"
    private.write_bytes(key.to_pkcs8())
    signature = model / oms.SIGNATURE_NAME
    done = _reference("sign", "key", model, "--signature", signature, "--private_key", private)
    assert done.returncode == 0, done.stdout + done.stderr
    signed = oms.verify_model(signature.read_bytes(), _files(model), [key.public])
    assert signed.files == _files(model)
    with pytest.raises(VerificationError, match=r"architecture\.json.*differs"):
        oms.verify_model(signature.read_bytes(), _files(model) | {"architecture.json": "0" * 64}, [key.public])
    with pytest.raises(VerificationError, match="is not signed"):
        oms.verify_model(signature.read_bytes(), _files(model) | {"extra": "0" * 64}, [key.public])
    with pytest.raises(VerificationError, match="is missing"):
        oms.verify_model(signature.read_bytes(), {"sub-b.txt": _files(model)["sub-b.txt"]}, [key.public])
    with pytest.raises(VerificationError, match="no pinned model key"):
        oms.verify_model(signature.read_bytes(), _files(model), [PrivateKey.generate(P256).public])
    with pytest.raises(VerificationError, match="no pinned model key"):
        oms.verify_model(signature.read_bytes(), _files(model), [])


def test_the_specs_key_bundle_is_read(vectors: Path) -> None:
    # Its public key is not published with it (and is of P-384, which is not pinned here), so its signature is not verified.
    signed, envelope, hint = oms.read_bundle((vectors / "oms/v1.0/valid/key.bundle.json").read_bytes())
    assert sorted(signed.files) == ["signme-1", "signme-2"]
    assert len(hint) == 64
    assert envelope.payload_type == dsse.IN_TOTO_PAYLOAD_TYPE


@pytest.mark.vector_files("oms/v1.0/valid/*.bundle.json")
def test_only_the_specs_key_bundle_can_be_verified_and_the_others_are_refused_with_the_reason(vector: Path) -> None:
    if vector.name == "key.bundle.json":
        oms.read_bundle(vector.read_bytes())
        return
    with pytest.raises(FormatError, match="signed with a certificate"):
        oms.read_bundle(vector.read_bytes())


@pytest.mark.vector_files("oms/v1.0/invalid*/*.bundle.json")
def test_the_specs_invalid_bundles_are_refused(vector: Path) -> None:
    with pytest.raises(FormatError):
        oms.read_bundle(vector.read_bytes())
    with pytest.raises(VerificationError):
        oms.verify_model(vector.read_bytes(), {"a": "0" * 64}, [PrivateKey.generate(P256).public])


def test_a_bundle_is_refused_where_its_root_digest_is_not_over_its_files(key: PrivateKey) -> None:
    good = statement.Statement.from_bytes(oms.model_statement("m", {"a": "1" * 64}))
    bad = statement.Statement((statement.Subject("m", "2" * 64),), good.predicate_type, good.predicate)
    with pytest.raises(FormatError, match="not the one over its files"):
        oms.sign_statement(bad.to_bytes(), key)


@pytest.mark.parametrize("name", ["/etc/passwd", "../a", "a/../b", "", ".", "a//b", "a\\b", "./a"])
def test_a_path_that_is_not_plain_is_refused(name: str) -> None:
    with pytest.raises(FormatError):
        oms.model_statement("m", {name: "1" * 64})


def test_a_bundle_signed_by_another_curve_is_refused_by_the_hint(model: Path, tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    private = tmp_path / "p384.pem"
    private.write_bytes(
        other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    signature = model / oms.SIGNATURE_NAME
    assert _reference("sign", "key", model, "--signature", signature, "--private_key", private).returncode == 0
    with pytest.raises(VerificationError, match="no pinned model key"):
        oms.verify_model(signature.read_bytes(), _files(model), [PrivateKey.generate(P256).public])


def test_a_bundle_for_another_hint_is_refused(key: PrivateKey) -> None:
    bundle = json.loads(oms.sign_model("m", {"a": "1" * 64}, key))
    bundle["verificationMaterial"]["publicKey"]["hint"] = "0" * 64
    with pytest.raises(VerificationError, match="no pinned model key"):
        oms.verify_model(json.dumps(bundle).encode(), {"a": "1" * 64}, [key.public])
