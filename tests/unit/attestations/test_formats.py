"""Keys, envelopes, statements, leaves, checkpoints, proofs and trust roots: what is accepted, and what is not."""

import base64
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from licet_attestations import canonical, checkpoint, dsse, leaf, merkle, statement, tlogproof
from licet_attestations.errors import FormatError, LicetAttestationError, VerificationError
from licet_attestations.keys import ED25519, P256, Algorithm, PrivateKey, PublicKey
from licet_attestations.trustroot import TrustedKey, TrustRoot

ORIGIN = "licet.example/log/northbank"


class TestKeys:
    @pytest.mark.parametrize("alg", [P256, ED25519])
    def test_round_trip_and_signature(self, alg: Algorithm) -> None:
        key = PrivateKey.generate(alg)
        for passphrase in (None, b"secret"):
            again = PrivateKey.from_pkcs8(key.to_pkcs8(passphrase), passphrase)
            again.public.verify(key.sign(b"message"), b"message")
        assert PublicKey.from_pem(key.public.to_pem()) == key.public
        with pytest.raises(VerificationError):
            key.public.verify(key.sign(b"message"), b"other")
        with pytest.raises(VerificationError):
            PrivateKey.generate(alg).public.verify(key.sign(b"message"), b"message")
        with pytest.raises(VerificationError):
            key.public.verify(b"", b"message")

    def test_a_private_key_does_not_show_itself(self) -> None:
        key = PrivateKey.generate(P256)
        assert repr(key) == f"PrivateKey({P256}, {key.keyid[:16]})"

    def test_a_wrong_passphrase_is_refused(self) -> None:
        data = PrivateKey.generate(P256).to_pkcs8(b"secret")
        for passphrase in (None, b"other"):
            with pytest.raises(FormatError):
                PrivateKey.from_pkcs8(data, passphrase)

    def test_other_kinds_of_key_are_refused(self) -> None:
        with pytest.raises(FormatError):
            PrivateKey(ec.generate_private_key(ec.SECP384R1()))
        for data in (b"", b"x" * 5000, b"not a key"):
            with pytest.raises(FormatError):
                PublicKey.from_der(data)
            with pytest.raises(FormatError):
                PublicKey.from_pem(data)
        with pytest.raises(FormatError):
            PrivateKey.generate(P256).public.raw()


class TestEnvelope:
    @pytest.fixture
    def key(self) -> PrivateKey:
        return PrivateKey.generate(P256)

    def test_pae_is_the_specifications_example(self) -> None:
        expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        assert dsse.pae("http://example.com/HelloWorld", b"hello world") == expected

    def test_round_trip(self, key: PrivateKey) -> None:
        envelope = dsse.Envelope.from_json(dsse.sign(b"{}", "t", key).to_json())
        assert dsse.verify_envelope(envelope, [PrivateKey.generate(P256).public, key.public], "t") == b"{}"

    def test_no_keys_never_verify(self, key: PrivateKey) -> None:
        with pytest.raises(VerificationError):
            dsse.verify_envelope(dsse.sign(b"{}", "t", key), [], "t")

    def test_another_type_is_refused(self, key: PrivateKey) -> None:
        with pytest.raises(VerificationError, match="not 'u'"):
            dsse.verify_envelope(dsse.sign(b"{}", "t", key), [key.public], "u")
        with pytest.raises(VerificationError):
            dsse.verify_envelope(dataclasses.replace(dsse.sign(b"{}", "t", key), payload_type="u"), [key.public], "u")

    def test_one_good_signature_among_strange_ones_is_enough(self, key: PrivateKey) -> None:
        envelope = dsse.sign(b"{}", "t", key)
        strange = (dsse.Signature("f" * 64, b"x"), dsse.Signature("", b"y"), dsse.Signature(key.keyid, b"z"))
        more = dataclasses.replace(envelope, signatures=(*strange, *envelope.signatures))
        assert dsse.verify_envelope(more, [key.public], "t") == b"{}"
        with pytest.raises(VerificationError):
            dsse.verify_envelope(dataclasses.replace(envelope, signatures=strange), [key.public], "t")

    @pytest.mark.parametrize(
        "change",
        [
            {"payload": "e30"},
            {"payload": "e31="},
            {"payload": "e30= "},
            {"payload": 1},
            {"payload": None},
            {"payloadType": ""},
            {"payloadType": 1},
            {"signatures": []},
            {"signatures": {}},
            {"signatures": [1]},
            {"signatures": [{"sig": "e30="}]},
            {"signatures": [{"keyid": 1, "sig": "e30="}]},
            {"signatures": [{"keyid": "a", "sig": "e30="}] * 17},
            {"more": 1},
        ],
    )
    def test_what_is_no_envelope_is_refused(self, key: PrivateKey, change: dict[str, Any]) -> None:
        value = dsse.sign(b"{}", "t", key).to_dict() | change
        with pytest.raises(FormatError):
            dsse.Envelope.from_json(canonical.dumps(value))
        with pytest.raises(FormatError):
            dsse.Envelope.from_json(b"[]")


class TestStatement:
    GOOD = statement.Statement((statement.Subject("a", "1" * 64),), statement.TEST_RESULT, {"passed": True})

    def test_round_trip(self) -> None:
        assert statement.Statement.from_bytes(self.GOOD.to_bytes()) == self.GOOD
        assert json.loads(self.GOOD.to_bytes())["_type"] == "https://in-toto.io/Statement/v1"

    @pytest.mark.parametrize(
        "change",
        [
            {"_type": "https://in-toto.io/Statement/v0.1"},
            {"subject": []},
            {"subject": [{"name": "a"}]},
            {"subject": [{"name": 1, "digest": {"sha256": "1" * 64}}]},
            {"subject": [{"name": "a", "digest": {"sha256": "1"}}]},
            {"subject": [{"name": "a", "digest": {"sha256": "1" * 64}}] * 2},
            {"subject": [{"name": "a", "digest": {"sha1": "1" * 40}}]},
            {"predicateType": ""},
            {"predicateType": 1},
            {"predicate": []},
            {"more": 1},
        ],
    )
    def test_what_is_no_statement_is_refused(self, change: dict[str, Any]) -> None:
        with pytest.raises(FormatError):
            statement.Statement.from_bytes(canonical.dumps(json.loads(self.GOOD.to_bytes()) | change))

    def test_floats_and_spaces_are_refused(self) -> None:
        with pytest.raises(FormatError):
            dataclasses.replace(self.GOOD, predicate={"auc": 0.75}).to_bytes()
        with pytest.raises(FormatError):
            statement.Statement.from_bytes(self.GOOD.to_bytes() + b" ")

    def test_whose_a_predicate_is(self) -> None:
        assert statement.tenant_of({"tenant": "northbank"}) == "northbank"
        assert statement.tenant_of({"buildDefinition": {"externalParameters": {"tenant": "northbank"}}}) == "northbank"
        assert statement.tenant_of({"tenant": 1}) is None


class TestLeaf:
    GOOD = leaf.Leaf("decision", 1_700_000_000_000, "northbank", "northbank", leaf.commit(bytes(32), b"{}"))

    def test_the_one_text_is_fixed_forever(self) -> None:
        assert self.GOOD.to_bytes() == (
            b'{"actor":"northbank","commitment":"fb1634c4e6cd4b1f1afe3ce2d6ef080f7ac5d1f357d723ad4dfca782733b62db",'
            b'"kind":"decision","owner":"northbank","time_ms":1700000000000,"v":1}'
        )
        assert canonical.dumps(json.loads(self.GOOD.to_bytes())) == self.GOOD.to_bytes()
        assert leaf.Leaf.from_bytes(self.GOOD.to_bytes()) == self.GOOD
        assert self.GOOD.hash() == merkle.leaf_hash(self.GOOD.to_bytes())

    def test_commitment(self) -> None:
        assert leaf.verify_commitment(self.GOOD, bytes(32), b"{}") == b"{}"
        for salt, record in (
            (bytes(32), b"{} "),
            (b"\x01" * 32, b"{}"),
            (b"", bytes(32) + b"{}"),
            (bytes(31), b"\x00{}"),
        ):
            with pytest.raises(VerificationError):
                leaf.verify_commitment(self.GOOD, salt, record)
        with pytest.raises(FormatError):
            leaf.commit(b"short", b"{}")

    @pytest.mark.parametrize(
        "change",
        [
            {"v": 2},
            {"kind": "Decision"},
            {"kind": ""},
            {"kind": "a" * 33},
            {"actor": "Northbank"},
            {"actor": "~other"},
            {"owner": "a/b"},
            {"owner": 1},
            {"time_ms": -1},
            {"time_ms": "1"},
            {"time_ms": True},
            {"commitment": "A" * 64},
            {"commitment": "a" * 63},
            {"more": 1},
        ],
    )
    def test_what_is_no_leaf_is_refused(self, change: dict[str, Any]) -> None:
        with pytest.raises(FormatError):
            leaf.Leaf.from_bytes(canonical.dumps(json.loads(self.GOOD.to_bytes()) | change))

    def test_another_spelling_is_refused(self) -> None:
        text = self.GOOD.to_bytes()
        for other in (
            text.replace(b":", b": "),
            text + b"\n",
            text.replace(b'"kind"', b'"\\u006bind"'),
            b"[]",
            b"x" * 2000,
        ):
            with pytest.raises(FormatError):
                leaf.Leaf.from_bytes(other)

    def test_the_void_may_own(self) -> None:
        assert dataclasses.replace(self.GOOD, owner=leaf.VOID).owner == "~void"


class TestCheckpoint:
    @pytest.fixture
    def key(self) -> PrivateKey:
        return PrivateKey.generate(ED25519)

    def test_round_trip(self, key: PrivateKey) -> None:
        head = checkpoint.Checkpoint(ORIGIN, 12, bytes(range(32)))
        note = checkpoint.sign_checkpoint(head, key)
        assert note.startswith(f"{ORIGIN}\n12\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n\n\u2014 {ORIGIN} ")
        assert checkpoint.verify_checkpoint(note, ORIGIN, [key.public]) == head

    def test_key_ids_are_those_of_gos_note_package(self) -> None:
        """The example of golang.org/x/mod/sumdb/note."""
        vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
        raw = base64.b64decode(vkey.rsplit("+", 1)[1])[1:]
        prefix = bytes.fromhex("302a300506032b6570032100")  # SubjectPublicKeyInfo of an Ed25519 key, RFC 8410.
        key = PublicKey.from_der(prefix + raw)
        assert checkpoint.verifier_key("PeterNeumann", key) == vkey
        text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
        signature = base64.b64decode(
            "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
        )
        assert signature[:4] == checkpoint.key_id("PeterNeumann", key)
        key.verify(signature[4:], text.encode())

    def test_a_witness_may_add_its_line_and_counts_for_nothing(self, key: PrivateKey) -> None:
        note = checkpoint.sign_checkpoint(checkpoint.Checkpoint(ORIGIN, 1, bytes(32)), key)
        witness = "\u2014 witness.example AAAAAAAA\n"
        checkpoint.verify_checkpoint(note + witness, ORIGIN, [key.public])
        text = note[: note.index("\n\n") + 2]
        with pytest.raises(VerificationError, match="no pinned log key"):
            checkpoint.verify_checkpoint(text + witness, ORIGIN, [key.public])

    def test_no_keys_or_other_keys_never_verify(self, key: PrivateKey) -> None:
        note = checkpoint.sign_checkpoint(checkpoint.Checkpoint(ORIGIN, 1, bytes(32)), key)
        for keys in ([], [PrivateKey.generate(ED25519).public], [PrivateKey.generate(P256).public]):
            with pytest.raises(VerificationError):
                checkpoint.verify_checkpoint(note, ORIGIN, keys)

    @pytest.mark.parametrize(
        "mutate",
        [
            lambda n: n.replace("\n12\n", "\n13\n"),
            lambda n: n.replace("\n12\n", "\n012\n"),
            lambda n: n.replace("\n12\n", "\n12\nextension\n"),
            lambda n: n.replace("\n12\n", "\n-12\n"),
            lambda n: n.replace("northbank\n", "lakeside\n"),
            lambda n: n.replace("\n", "\r\n"),
            lambda n: n.replace("\u2014", "-"),
            lambda n: n[:-1],
            lambda n: n + "\n",
            lambda n: n.replace("\n\n", "\n"),
            lambda n: "\n" + n,
            lambda n: n.replace(ORIGIN, f"{ORIGIN}\x00"),
            lambda _: "",
            lambda n: n[: n.index("\n\n") + 2],
            lambda n: n + "x" * 70_000,
            lambda n: n[:-6] + ("A" if n[-6] != "A" else "B") + n[-5:],
        ],
    )
    def test_what_is_no_checkpoint_of_this_log_is_refused(self, key: PrivateKey, mutate: Callable[[str], str]) -> None:
        note = checkpoint.sign_checkpoint(checkpoint.Checkpoint(ORIGIN, 12, bytes(32)), key)
        with pytest.raises(VerificationError):
            checkpoint.verify_checkpoint(mutate(note), ORIGIN, [key.public])

    def test_what_cannot_be_written_is_refused(self, key: PrivateKey) -> None:
        for head in (
            checkpoint.Checkpoint("has space", 1, bytes(32)),
            checkpoint.Checkpoint("a+b", 1, bytes(32)),
            checkpoint.Checkpoint("a\nb", 1, bytes(32)),
            checkpoint.Checkpoint("", 1, bytes(32)),
            checkpoint.Checkpoint(ORIGIN, -1, bytes(32)),
            checkpoint.Checkpoint(ORIGIN, 1, b"short"),
        ):
            with pytest.raises(FormatError):
                checkpoint.sign_checkpoint(head, key)
        with pytest.raises(FormatError, match="Ed25519"):
            checkpoint.sign_checkpoint(checkpoint.Checkpoint(ORIGIN, 1, bytes(32)), PrivateKey.generate(P256))


class TestTlogProof:
    def test_format_and_verification(self) -> None:
        key = PrivateKey.generate(ED25519)
        hashes = [merkle.leaf_hash(b"a"), merkle.leaf_hash(b"b")]
        note = checkpoint.sign_checkpoint(checkpoint.Checkpoint(ORIGIN, 2, merkle.root(hashes)), key)
        text = tlogproof.TlogProof(1, (hashes[0],), note).to_text()
        assert text == f"c2sp.org/tlog-proof@v1\nindex 1\n{base64.b64encode(hashes[0]).decode()}\n\n{note}"
        assert tlogproof.verify(text, b"b", ORIGIN, [key.public])[0] == 1
        single = checkpoint.sign_checkpoint(checkpoint.Checkpoint(ORIGIN, 1, hashes[0]), key)
        assert tlogproof.verify(tlogproof.TlogProof(0, (), single).to_text(), b"a", ORIGIN, [key.public])[0] == 0
        other = f"{ORIGIN}x"
        for bad, data, origin in (
            (text, b"a", ORIGIN),
            (text, b"b", other),
            (text.replace("index 1", "index 0"), b"b", ORIGIN),
            (text.replace("index 1", "index 01"), b"b", ORIGIN),
            (text.replace("index 1", "index 1\nAAAA"), b"b", ORIGIN),
            (text.replace("index 1", "extra AAAA\nindex 1"), b"b", ORIGIN),
            (text.replace("@v1", "@v2"), b"b", ORIGIN),
            (text.replace("\n\n", "\n"), b"b", ORIGIN),
            ("", b"b", ORIGIN),
            ("x" * 100_000, b"b", ORIGIN),
        ):
            with pytest.raises(VerificationError):
                tlogproof.verify(bad, data, origin, [key.public])
        with pytest.raises(VerificationError):
            tlogproof.verify(text, b"b", ORIGIN, [PrivateKey.generate(ED25519).public])


class TestTrustRoot:
    def test_round_trip_purposes_and_times(self) -> None:
        old, new, attest = (PrivateKey.generate(a).public for a in (ED25519, ED25519, P256))
        root = TrustRoot(
            "i",
            (TrustedKey(old, "log", 10, 20), TrustedKey(new, "log", 20), TrustedKey(attest, "attestation", 0)),
            "licet.example/log",
        )
        assert TrustRoot.from_json(root.to_json()) == root
        assert root.origin("northbank") == ORIGIN
        assert root.keys("log") == (old, new)
        assert [root.keys("log", at_ms) for at_ms in (9, 10, 19, 20)] == [(), (old,), (old,), (new,)]
        assert root.keys("warrant") == ()

    @pytest.mark.parametrize(
        "change",
        [
            {"keyid": "0" * 64},
            {"alg": P256},
            {"purpose": "attestation"},
            {"purpose": "everything"},
            {"spki": "AAAA"},
            {"spki": None},
            {"valid_from_ms": "0"},
            {"valid_until_ms": 1.5},
            {"more": 1},
        ],
    )
    def test_a_key_that_is_not_what_it_says_is_refused(self, change: dict[str, Any]) -> None:
        root = TrustRoot("i", (TrustedKey(PrivateKey.generate(ED25519).public, "log", 0),), "p").to_dict()
        root["keys"][0] |= change
        with pytest.raises(LicetAttestationError):
            TrustRoot.from_json(json.dumps(root).encode())

    def test_one_key_has_one_purpose(self) -> None:
        key = PrivateKey.generate(P256).public
        root = TrustRoot("i", (TrustedKey(key, "warrant", 0), TrustedKey(key, "attestation", 0)), "p")
        with pytest.raises(FormatError, match="one purpose"):
            TrustRoot.from_json(root.to_json())

    @pytest.mark.parametrize(
        "change", [{"v": 2}, {"keys": []}, {"log_origin_prefix": "a b"}, {"instance": 1}, {"more": 1}]
    )
    def test_what_is_no_trust_root_is_refused(self, change: dict[str, Any]) -> None:
        root = TrustRoot("i", (TrustedKey(PrivateKey.generate(ED25519).public, "log", 0),), "p").to_dict()
        with pytest.raises(FormatError):
            TrustRoot.from_dict(root | change)

    def test_an_x25519_key_is_no_signature_key(self) -> None:
        raw = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes_raw()
        with pytest.raises(FormatError):
            PublicKey.from_der(bytes.fromhex("302a300506032b656e032100") + raw)
