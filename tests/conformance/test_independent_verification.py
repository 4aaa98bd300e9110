"""Every kind of evidence of a real run, verified by software that is not ours; and a copy that was tampered with, refused by it.

Sources: securesystemslib (DSSE), ``@sigstore/verify`` (Sigstore bundles), ``model_signing`` (OpenSSF Model Signing), Go's ``sumdb/note``
and ``sumdb/tlog`` and ``proofbundle`` (checkpoints and ``.tlog-proof``), ``cyclonedx-python-lib`` (bills of materials).
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

sys.path += [str(Path(__file__).parents[1] / name) for name in ("", "integration", "docs")]
from attestation_pages import PAGES, undocumented  # The line above finds it.
from service_world import Installation  # The line above finds it.

from attested_run import BANK, KINDS, OF_THE_PLATFORM, export, perform, rotate
from foreign_tools import built_go, installed_npm, python_tool, ran
from licet_attestations.vkey import LOG_KIND, VerifierKey
from licet_attestations.witness import Request, Witness

pytestmark = pytest.mark.slow

Ran = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Evidence:
    """What an auditor has on a machine of their own.

    Attributes:
        folder: Of files: what was exported of each kind, ``KIND-DIGEST.*``.
        keys: What the trust root holds, as others' tools take it.
        model: The deployed model with its signature.
        archive: The evidence archive.
    """

    folder: Path
    keys: Path
    model: Path
    archive: Path

    def of(self, kind: str, suffix: str) -> list[Path]:
        files = sorted(self.folder.glob(f"{kind}-*.{suffix}"))
        assert files, f"nothing of kind {kind} was exported"
        return files

    def key(self, kind: str) -> Path:
        # Its key is compromised since: whether one is from before, the log shows.
        return next(self.keys.glob("warrant-*-compromised.pem")) if kind == "warrant" else self.keys / "attestation.pem"

    def log_key(self, kind: str) -> Path:
        return self.keys / "platform" / "log.vkey" if kind in OF_THE_PLATFORM else self.keys / "log.vkey"


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    folder = tmp_path_factory.mktemp("evidence")
    world = Installation(prove_every_s=1)
    try:
        world.start()
        run = perform(world, folder)
        rotate(run)
        export(run, folder / "exported", 12)
        # Pinned before anything is looked at, by another way than the evidence: from the installation's own folder.
        shutil.copy(run.trust_root, folder / "trust-root.json")
    finally:
        world.stop()
    for tenant, keys in ((BANK, folder / "keys"), ("platform", folder / "keys" / "platform")):
        done = python_tool("keys.py", folder / "trust-root.json", tenant, keys)
        assert done.returncode == 0, done.stderr
    return Evidence(folder / "exported", folder / "keys", run.model, run.archive)


@pytest.fixture(scope="module")
def sigstore(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ran]:
    folder = installed_npm(tmp_path_factory.mktemp("npm"))
    return lambda key, *bundles: ran("node", folder / "sigstore_verify.mjs", key, *bundles)


@pytest.fixture(scope="module")
def tlogverify(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ran]:
    program = built_go(tmp_path_factory.mktemp("go"))
    return lambda *arguments: ran(program, *arguments)


def tampered(envelope: dict[str, Any]) -> dict[str, Any]:
    """The same envelope with another tenant's name in its statement: as long, and as well formed."""
    payload = base64.b64decode(envelope["payload"])
    other = payload.replace(b"northbank", b"southbank").replace(b'"platform"', b'"formplat"')
    assert other != payload
    return envelope | {"payload": base64.b64encode(other).decode()}


def _strange(path: Path) -> None:
    """The key of nobody."""
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415  # Needed here alone.
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415  # As above.

    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


# --- signatures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_securesystemslib_verifies_every_envelope_and_refuses_a_tampered_one(
    evidence: Evidence, kind: str, tmp_path: Path
) -> None:
    envelopes = evidence.of(kind, "dsse.json")
    done = python_tool("dsse_verify.py", evidence.key(kind), *envelopes)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("verified: ") == len(envelopes)
    (tmp_path / "t.json").write_text(json.dumps(tampered(json.loads(envelopes[0].read_bytes()))))
    refused = python_tool("dsse_verify.py", evidence.key(kind), tmp_path / "t.json")
    assert refused.returncode == 1
    assert "NOT verified: t.json" in refused.stderr
    # A key of another purpose signed none of them.
    other = evidence.keys / ("model.pem" if kind not in OF_THE_PLATFORM else "platform/strange.pem")
    if kind in OF_THE_PLATFORM:
        _strange(other)
        # All that counted signed it, of all purposes.
        for purpose in ("attestation", "model", "warrant"):
            assert python_tool("dsse_verify.py", evidence.keys / f"{purpose}.pem", envelopes[0]).returncode == 0
    assert "NOT verified" in python_tool("dsse_verify.py", other, envelopes[0]).stderr


@pytest.mark.parametrize("kind", KINDS)
def test_sigstore_verifies_every_bundle_and_refuses_a_tampered_one(
    evidence: Evidence, sigstore: Callable[..., Ran], kind: str, tmp_path: Path
) -> None:
    bundles = evidence.of(kind, "sigstore.json")
    done = sigstore(evidence.key(kind), *bundles)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("verified: ") == len(bundles)
    bundle = json.loads(bundles[0].read_bytes())
    (tmp_path / "t.json").write_text(json.dumps(bundle | {"dsseEnvelope": tampered(bundle["dsseEnvelope"])}))
    refused = sigstore(evidence.key(kind), tmp_path / "t.json")
    assert refused.returncode == 1
    assert "NOT verified: t.json" in refused.stderr


def test_the_export_statement_of_an_archive_is_verified_and_refused_tampered(
    evidence: Evidence, sigstore: Callable[..., Ran], tmp_path: Path
) -> None:
    with zipfile.ZipFile(evidence.archive) as archive:
        envelope = json.loads(archive.read("statement.dsse.json"))
    for name, found in (("s.json", envelope), ("t.json", tampered(envelope))):
        (tmp_path / name).write_text(json.dumps(found))
        bundle = {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": "pinned"}, "tlogEntries": []},
            "dsseEnvelope": found,
        }
        (tmp_path / f"sigstore-{name}").write_text(json.dumps(bundle))
    key = evidence.key("export")
    assert python_tool("dsse_verify.py", key, tmp_path / "s.json").returncode == 0
    assert sigstore(key, tmp_path / "sigstore-s.json").returncode == 0
    assert python_tool("dsse_verify.py", key, tmp_path / "t.json").returncode == 1
    assert sigstore(key, tmp_path / "sigstore-t.json").returncode == 1


# --- fields -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "examination"])
def test_the_page_of_a_kind_says_every_field_of_a_fresh_run(evidence: Evidence, kind: str) -> None:
    name = "check" if kind == "test-result" else kind
    exported = "test-result" if kind == "examination" else kind
    told = [json.loads(path.read_bytes())["predicate"] for path in evidence.of(exported, "statement.json")]
    # Two pages are of this type: of checks, and of examinations of policies.
    if exported == "test-result":
        told = [predicate for predicate in told if ("proofs" in predicate) == (kind == "examination")]
    assert told
    assert undocumented((PAGES / f"{name}.md").read_text("utf-8"), told) == set()


# --- models -----------------------------------------------------------------------------------------------------------


def _model_signing(evidence: Evidence, model: Path) -> Ran:
    options = ("--signature", model / "model.sig", "--public_key", evidence.keys / "model.pem")
    return ran(sys.executable, "-m", "model_signing", "verify", "key", model, *options)


def test_model_signing_verifies_the_deployed_model_and_refuses_another_weight(
    evidence: Evidence, tmp_path: Path
) -> None:
    done = _model_signing(evidence, evidence.model)
    assert done.returncode == 0, done.stdout + done.stderr
    other = tmp_path / "model"
    shutil.copytree(evidence.model, other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    assert _model_signing(evidence, other).returncode != 0


def test_sigstore_verifies_the_models_signature_by_the_key_for_models_alone(
    evidence: Evidence, sigstore: Callable[..., Ran], tmp_path: Path
) -> None:
    signature = evidence.model / "model.sig"
    assert sigstore(evidence.keys / "model.pem", signature).returncode == 0
    assert sigstore(evidence.keys / "attestation.pem", signature).returncode == 1
    bundle = json.loads(signature.read_bytes())
    (tmp_path / "t.sig").write_text(json.dumps(bundle | {"dsseEnvelope": tampered(bundle["dsseEnvelope"])}))
    assert sigstore(evidence.keys / "model.pem", tmp_path / "t.sig").returncode == 1


# --- bills of materials -----------------------------------------------------------------------------------------------


def test_the_bill_of_materials_is_valid_cyclonedx_and_one_with_other_words_is_not(evidence: Evidence) -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    for path in evidence.of("model-bom", "cdx.json"):
        text = path.read_text("utf-8")
        assert validator.validate_str(text) is None
        bom = json.loads(text)
        card = bom["metadata"]["component"]["modelCard"]
        assert {metric["slice"] for metric in card["quantitativeAnalysis"]["performanceMetrics"]} == {
            *("technical", "bias", "explainability", "drift"),
        }
        bom["metadata"]["component"]["modelCard"] = card | {"figures": []}
        assert validator.validate_str(json.dumps(bom)) is not None


# --- the log ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_go_verifies_that_every_attestation_is_logged_and_refuses_another_leaf(
    evidence: Evidence, tlogverify: Callable[..., Ran], kind: str, tmp_path: Path
) -> None:
    key = evidence.log_key(kind)
    for leaf in evidence.of(kind, "leaf"):
        proof = leaf.with_suffix(".tlog-proof")
        done = tlogverify("entry", key, proof, leaf)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("verified: entry ")
        (tmp_path / "leaf").write_bytes(leaf.read_bytes().replace(b'"kind"', b'"kinD"'))
        assert tlogverify("entry", key, proof, tmp_path / "leaf").returncode == 1


def test_go_verifies_the_checkpoint_and_refuses_another_size_or_key(
    evidence: Evidence, tlogverify: Callable[..., Ran], tmp_path: Path
) -> None:
    with zipfile.ZipFile(evidence.archive) as archive:
        note = archive.read("checkpoint.txt").decode()
    origin, size, rest = note.split("\n", 2)
    checkpoint = tmp_path / "checkpoint.txt"
    checkpoint.write_text(note)
    key = evidence.keys / "log.vkey"
    done = tlogverify("checkpoint", key, checkpoint)
    assert done.stdout.startswith(f"verified: {size} entries"), done.stderr
    checkpoint.write_text(f"{origin}\n{int(size) + 1}\n{rest}")
    assert tlogverify("checkpoint", key, checkpoint).returncode == 1
    other = tmp_path / "keys"
    assert python_tool("keys.py", evidence.keys.parent / "trust-root.json", "lakeside", other).returncode == 0
    checkpoint.write_text(note)
    assert tlogverify("checkpoint", other / "log.vkey", checkpoint).returncode == 1


def test_go_verifies_the_cosignature_of_a_witness_and_refuses_its_absence_and_another_time(
    evidence: Evidence, tlogverify: Callable[..., Ran], tmp_path: Path
) -> None:
    with zipfile.ZipFile(evidence.archive) as archive:
        note = archive.read("checkpoint.txt").decode()
    key, checkpoint, vkey = evidence.keys / "log.vkey", tmp_path / "checkpoint.txt", tmp_path / "witness.vkey"
    vkey.write_text(Witness.create(tmp_path / "w", "witness.example").to_text())
    log = VerifierKey.from_text(key.read_text().strip(), LOG_KIND)
    witness = Witness(tmp_path / "w", [log], lambda: 1_800_000_000)
    try:
        cosigned = witness.add_checkpoint(Request(0, (), note).to_bytes()).body
    finally:
        witness.close()
    checkpoint.write_text(note)
    assert "did not sign" in tlogverify("checkpoint", key, checkpoint, vkey).stderr
    checkpoint.write_text(note + cosigned)
    assert "cosigned: witness.example at 2027-01-15T08:00:00Z" in tlogverify("checkpoint", key, checkpoint, vkey).stdout
    signature = bytearray(base64.b64decode(cosigned.split(" ")[2]))
    signature[11] ^= 1  # The last byte of the time, behind the key's identifier.
    name = cosigned.rsplit(" ", 1)[0]
    checkpoint.write_text(f"{note}{name} {base64.b64encode(signature).decode()}\n")
    assert tlogverify("checkpoint", key, checkpoint, vkey).returncode == 1


def _proofbundle(key: Path, proof: Path, leaf: Path) -> Ran:
    vkey = key.read_text().strip()
    options = ("--payload-file", leaf, "--log-vkey", vkey, "--expected-origin", vkey.partition("+")[0])
    return ran(Path(sys.executable).with_name("proofbundle"), "verify-proof", proof, *options)


@pytest.mark.parametrize("kind", KINDS)
def test_proofbundle_verifies_that_an_attestation_is_logged_and_refuses_another_leaf(
    evidence: Evidence, kind: str, tmp_path: Path
) -> None:
    leaf = evidence.of(kind, "leaf")[0]
    done = _proofbundle(evidence.log_key(kind), leaf.with_suffix(".tlog-proof"), leaf)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "leaf").write_bytes(leaf.read_bytes() + b" ")
    assert _proofbundle(evidence.log_key(kind), leaf.with_suffix(".tlog-proof"), tmp_path / "leaf").returncode != 0


def test_what_the_leaf_of_an_attestation_commits_to_names_its_digest(evidence: Evidence) -> None:
    """With the standard library alone: SHA-256 of salt and record is in the leaf, and the record names the statement's digest."""
    import hashlib  # noqa: PLC0415  # All that it takes.

    for kind in KINDS:
        for path in evidence.of(kind, "entry.json"):
            entry = json.loads(path.read_bytes())
            committed = hashlib.sha256(bytes.fromhex(entry["salt"]) + entry["record"].encode()).hexdigest()
            assert json.loads(entry["leaf"])["commitment"] == committed
            statement = path.with_name(path.name.replace(".entry.json", ".statement.json")).read_bytes()
            assert json.loads(entry["record"])["digest"] == hashlib.sha256(statement).hexdigest()
