"""The pages of attestations say what there is: every kind, every field, and examples that were made by a run and verify."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from licet_attestations import attested, oms, rotation, statement
from licet_attestations.errors import VerificationError
from licet_attestations.trustroot import TrustRoot
from licet_engine.commands.attestations import KINDS

# Test files are imported each by itself; what reads the pages stands beside them.
sys.path.append(str(Path(__file__).parent))
from attestation_pages import (  # The line above finds it.
    ALL,
    EXAMPLES,
    PAGES,
    TRUST_ROOT,
    TRUST_ROOT_BEFORE,
    Example,
    fields,
    shown,
    shown_on,
    undocumented,
    unseen,
    walk,
)

NAMES = sorted({example.page for example in ALL})
OF_ARCHIVES_ALONE = {statement.ISOLATION}
TRUST = TrustRoot.from_json(TRUST_ROOT.read_bytes())
BEFORE = TrustRoot.from_json(TRUST_ROOT_BEFORE.read_bytes())
each_page = pytest.mark.parametrize("name", NAMES)
each_example = pytest.mark.parametrize("example", ALL, ids=lambda example: example.file)


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text("utf-8")


def predicates(name: str) -> list[dict[str, Any]]:
    return [example.statement()["predicate"] for example in ALL if example.page == name]


def type_of(name: str) -> str:
    (found,) = re.findall(r"^\| predicate type \| `([^`]+)` \|$", page(name), re.MULTILINE)
    return str(found)


def verified(example: Example, trust: TrustRoot, data: bytes | None = None) -> attested.Attested:
    entry = None if example.entry is None else attested.read_entry(example.entry.read_bytes())
    return attested.verify_attestation(data or example.path.read_bytes(), trust, entry)


def test_every_kind_has_a_page_and_every_page_is_in_the_overview() -> None:
    assert {type_of(name) for name in NAMES} == (statement.PREDICATE_TYPES - OF_ARCHIVES_ALONE) | {oms.PREDICATE_TYPE}
    assert {path.stem for path in PAGES.glob("*.md")} - {"README"} == set(NAMES)
    rows = re.findall(r"^\| \[([\w-]+)\]\(([\w-]+)\.md\) \| .+ \| `([^`]+)` \|$", page("README"), re.MULTILINE)
    assert {(shown, name, kind) for shown, name, kind in rows} == {(name, name, type_of(name)) for name in NAMES}
    assert {"check" if kind == "test-result" else kind for kind in KINDS} == set(NAMES) - {"model", "examination"}


@each_page
def test_a_page_shows_its_examples_as_they_are(name: str) -> None:
    assert shown_on(page(name)) == shown(name), (
        "make it anew: python tests/docs/attestation_pages.py, or put it right by hand"
    )
    assert all(example.statement()["predicateType"] == type_of(name) for example in ALL if example.page == name)


@each_page
def test_a_page_says_every_field_of_its_examples_and_no_other(name: str) -> None:
    assert undocumented(page(name), predicates(name)) == set()
    assert unseen(page(name), predicates(name)) == set()


@each_page
def test_a_field_that_a_page_does_not_say_is_found(name: str) -> None:
    """As are one of another type, and one that no example has: the comparison is worth something."""
    (first, *_) = (path for path in fields(page(name)) if "*" not in path and "absent" not in path)
    row = next(line for line in page(name).splitlines() if line.startswith(f"| `{first}` |"))
    without = page(name).replace(row, "", 1)
    assert undocumented(without, predicates(name)) or any(path.startswith(first) for path in fields(without))
    assert unseen(page(name).replace(row, f"{row}\n| `nowhere` | text | nothing |", 1), predicates(name)) == {"nowhere"}
    assert "nowhere: text" in undocumented(page(name), [{"nowhere": "x"}])
    assert dict(walk({"a": [{"b": 1}]})) == {"a": "list", "a[]": "object", "a[].b": "integer"}


def root_of(example: Example) -> TrustRoot:
    return BEFORE if example.page == "key-rotation" else TRUST


@each_example
def test_an_example_verifies_under_the_trust_root_beside_it_and_tampered_does_not(example: Example) -> None:
    found = verified(example, root_of(example))
    assert json.loads(found.claim.to_bytes()) == example.statement()
    assert (found.leaf is not None) == bool(example.kind)
    data = example.path.read_bytes()
    envelope = json.loads(data)
    inner = envelope.get("dsseEnvelope", envelope)
    inner["payload"] = inner["payload"][:200] + ("A" if inner["payload"][200] != "A" else "B") + inner["payload"][201:]
    with pytest.raises(VerificationError):
        verified(example, root_of(example), json.dumps(envelope, separators=(",", ":"), sort_keys=True).encode())


@each_example
def test_an_example_does_not_verify_under_another_installations_keys(example: Example, tmp_path: Path) -> None:
    from licet_attestations.signer.keystore import Keystore  # noqa: PLC0415  # Another installation is needed here alone.

    (tmp_path / "other").mkdir(mode=0o700)
    other = Keystore.create(tmp_path / "other", instance="licet", log_origin_prefix="licet.local/log", now_ms=0)
    with pytest.raises(VerificationError):
        verified(example, other.trust_root)


def test_the_trust_roots_of_the_examples_lead_from_one_to_the_other() -> None:
    led = [(EXAMPLES / f"{name}.dsse.json").read_bytes() for name in ("key-rotation", "key-compromise")]
    assert rotation.follow(led, BEFORE) == TRUST
    with pytest.raises(VerificationError):
        rotation.follow(reversed(led), BEFORE)


def test_the_warrant_of_the_examples_counts_by_its_log_entry_alone_since_its_key_is_compromised() -> None:
    (warrant,) = (example for example in ALL if example.page == "warrant")
    assert verified(warrant, TRUST).leaf is not None
    with pytest.raises(VerificationError, match="is compromised"):
        attested.verify_attestation(warrant.path.read_bytes(), TRUST)
    assert attested.verify_attestation(warrant.path.read_bytes(), BEFORE)


def test_the_model_of_the_examples_is_the_one_that_its_signature_names(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "model", tmp_path / "model")
    signed = (tmp_path / "model" / "model.sig").read_bytes()
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (tmp_path / "model").iterdir()
        if path.name != "model.sig"
    }
    assert oms.verify_model(signed, digests, TRUST.keys("model")).name.startswith("northbank/risk@")
    with pytest.raises(VerificationError):
        oms.verify_model(signed, digests | {"model.safetensors": "0" * 64}, TRUST.keys("model"))
