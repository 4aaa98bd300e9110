"""The isolation answer of one pair: what follows from its proofs is signed and verified, and nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from licet_adapters.conformance import World as Installation
from licet_attestations import canonical, directory, dsse, isolation_pair, merkle, statement
from licet_attestations.directory import DirectoryMap, LogState
from licet_attestations.errors import SignerRefused, VerificationError
from licet_attestations.leaf import DIRECTORY, Leaf, commit
from licet_attestations.pairs import PairsMap
from licet_attestations.tlogproof import TlogProof
from licet_attestations.trustroot import TrustRoot

OWNER = "northbank"
SALT = hashlib.sha256(b"salt").digest()


class Scene:
    """An installation's signer, a log of northbank's, and a directory that has it."""

    def __init__(self, folder: Path) -> None:
        self.world = Installation(folder)
        actors = [OWNER, "lakeside", OWNER, "lakeside"]
        self.leaves = [
            Leaf("decision" if actor == OWNER else "attempt", n, actor, OWNER, "0" * 64)
            for n, actor in enumerate(actors)
        ]
        self.pairs = PairsMap.of(self.leaves)
        root = merkle.root(leaf.hash() for leaf in self.leaves)
        self.state = LogState(OWNER, len(self.leaves), root, self.pairs.root())
        self.opening = self.open([self.state, LogState("lakeside", 1, bytes(32), bytes(32))], OWNER)

    @property
    def trust(self) -> TrustRoot:
        return self.world.keystore.trust_root

    def open(self, states: list[LogState], tenant: str) -> dict[str, Any]:
        map_ = DirectoryMap(states, bytes(32))
        record = directory.entry_record(self.world.now_ms, map_.root)
        leaf = Leaf(directory.KIND, self.world.now_ms, "platform", DIRECTORY, commit(SALT, record)).to_bytes()
        index, proof, note = self.world.append(DIRECTORY, leaf)
        return directory.opening_document(
            map_.opening(tenant),
            leaf=leaf.decode(),
            record_salt=SALT,
            record=record,
            proof=TlogProof(index, tuple(proof), note).to_text(),
        )

    def predicate(self, actor: str, **changes: Any) -> dict[str, Any]:
        given: dict[str, Any] = {
            "actor": actor,
            "owner": OWNER,
            "pair": self.pairs.get(actor, OWNER),
            "proof": self.pairs.prove(actor, OWNER),
            "opening": self.opening,
        }
        return isolation_pair.pair_predicate(**(given | changes))

    def sign(self, predicate: dict[str, Any], tenant: str = OWNER) -> bytes:
        return self.world.signer.attest_isolation(tenant, predicate)

    def forge(self, predicate: dict[str, Any], **changes: Any) -> bytes:
        """Sign it whatever it says: as one who has the key."""
        claim = isolation_pair.pair_statement(predicate, changes.get("origin", self.trust.origin(OWNER)))
        key = self.world.keystore.signing_key("attestation")
        return dsse.sign(claim.to_bytes(), dsse.IN_TOTO_PAYLOAD_TYPE, key).to_json()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.mark.parametrize(("actor", "count"), [("lakeside", 2), ("hillside", None), ("nobody-home", None)])
def test_what_is_proved_is_signed_and_verifies(scene: Scene, actor: str, count: int | None) -> None:
    envelope = scene.sign(scene.predicate(actor))
    answer = isolation_pair.verify_statement(envelope, scene.trust)
    assert (answer.pair.count if answer.pair else None) == count
    assert answer.is_absent == (count is None)
    assert answer.opened.state == scene.state


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"answer": "no-records"}, "something else"),
        ({"sentence": "All is well."}, "something else"),
        ({"does_not_prove": []}, "something else"),
        ({"sections": []}, "something else"),
        ({"pair": None}, "shows|leads to another root"),
        ({"actor": "hillside"}, "not of 'hillside'"),
        ({"actor": OWNER}, "two tenants"),
        ({"actor": "~"}, "two tenants"),
        ({"owner": "lakeside"}, "two tenants"),
        ({"probes": {"tried": 1}}, "probes has exactly"),
        ({"probes": {"tried": "1", "allowed": 0, "at_ms": 0, "attestation": "0" * 64}}, "counts"),
        ({"policies": {"1" * 64: "2" * 64}}, "something else"),
        ({"policies": {"1" * 64: "proved"}}, "digests"),
        ({"outcomes": {"maybe": 1}}, "outcomes"),
        ({"v": 1}, "version 2"),
        ({"more": 1}, "version 2"),
        ({"directory": {}}, "opening"),
        ({"pairs_proof": {}}, "proof of a map"),
    ],
)
def test_what_does_not_follow_is_neither_signed_nor_accepted(scene: Scene, change: dict[str, Any], told: str) -> None:
    false = scene.predicate("lakeside") | change
    with pytest.raises(SignerRefused, match=told):
        scene.sign(false)
    if "directory" not in change:
        with pytest.raises(VerificationError, match=told):
            isolation_pair.verify_statement(scene.forge(false), scene.trust)


def test_an_absence_is_not_borrowed_from_another_log(scene: Scene) -> None:
    empty = PairsMap()
    false = scene.predicate("lakeside", pair=None, proof=empty.prove("lakeside", OWNER))
    with pytest.raises(SignerRefused, match="another root"):
        scene.sign(false)
    # Nor from another entry of the directory, whose log is a fork: the owner's root is then another.
    forked = LogState(OWNER, 2, bytes(32), empty.root())
    false = scene.predicate(
        "lakeside", pair=None, proof=empty.prove("lakeside", OWNER), opening=scene.open([forked], OWNER)
    )
    answer = isolation_pair.verify_statement(scene.sign(false), scene.trust)
    assert answer.opened.state.root != scene.state.root, "a fork is in the directory for all to see, or nowhere"
    assert answer.opened.checkpoint.size == 2


def test_it_is_signed_for_the_owner_alone_and_no_other_way(scene: Scene) -> None:
    predicate = scene.predicate("hillside")
    with pytest.raises(SignerRefused, match="another tenant's log"):
        scene.sign(predicate, "lakeside")
    claim = isolation_pair.pair_statement(predicate, scene.trust.origin(OWNER)).to_bytes()
    with pytest.raises(SignerRefused, match="not attested"):
        scene.world.signer.attest(OWNER, claim)


def test_a_statement_of_another_kind_subject_or_key_is_none(scene: Scene, tmp_path: Path) -> None:
    predicate = scene.predicate("hillside")
    with pytest.raises(VerificationError, match="another log"):
        isolation_pair.verify_statement(scene.forge(predicate, origin="licet/log/lakeside"), scene.trust)
    other = Installation(tmp_path / "other").keystore.trust_root
    with pytest.raises(VerificationError):
        isolation_pair.verify_statement(scene.sign(predicate), other)
    claim = statement.Statement((statement.Subject("it", "0" * 64),), statement.ISOLATION, {"tenant": OWNER})
    with pytest.raises(VerificationError, match="statement of type"):
        isolation_pair.verify_statement(scene.world.signer.attest(OWNER, claim.to_bytes()), scene.trust)
    for data in (b"", b"{}", b"[]", b"x" * 100):
        with pytest.raises(VerificationError):
            isolation_pair.verify_statement(data, scene.trust)


def test_parts_say_what_they_are_worth(scene: Scene) -> None:
    def statuses(**told: Any) -> list[str]:
        predicate = scene.predicate("hillside", **told)
        canonical.dumps(isolation_pair.verify_predicate(predicate, scene.trust).predicate)
        return [section["status"] for section in predicate["sections"]]

    at = {"at_ms": 1, "attestation": "0" * 64}
    assert statuses() == ["supported", "proven", "not-available", "not-available", "not-available"]
    assert statuses(policies={"1" * 64: "2" * 64, "3" * 64: ""})[2] == "not-proven-here"
    assert statuses(policies={})[2] == "not-proven-here"
    assert statuses(policies={"1" * 64: "2" * 64})[2] == "supported"
    assert statuses(reconciliation={"accesses": 5, "unmatched": 0} | at)[3] == "supported"
    assert statuses(reconciliation={"accesses": 5, "unmatched": 1} | at)[3] == "failed"
    assert statuses(probes={"tried": 5, "allowed": 0} | at)[4] == "supported"
    assert statuses(probes={"tried": 5, "allowed": 1} | at)[4] == "failed"
    assert statuses(probes={"tried": 0, "allowed": 0} | at)[4] == "failed"


def test_reports_tell_all_parts_and_limits_and_escape_what_they_show(scene: Scene) -> None:
    answer = isolation_pair.verify_statement(scene.sign(scene.predicate("lakeside")), scene.trust)
    text, page = "\n".join(isolation_pair.report_lines(answer)), isolation_pair.report_html(answer)
    for word in ("has 2 entries of", *isolation_pair.LIMITS, "Dual entry", "Active probes"):
        assert word in text
    assert "&#x27;northbank&#x27;" in page
    assert "<script" not in page
