"""Where the workbench sees the parts of a policy is where Cedar has them: over Cedar's corpus and every shipped policy.

Source: cedar-policy/cedar-integration-tests, a sample of the fuzz-made corpus; see the vectors' SOURCES.md.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cedarpy
import pytest

from licet_engine.decide.conjuncts import clauses
from licet_engine.workbench.spans import PolicyText, Range, SourceFile, read_policies
from licet_policies import guardrails, pack, pack_names, roles

ROOT = Path(__file__).parents[2]
CORPUS = Path(os.environ.get("LICET_VECTORS", ROOT.parent / "shared" / "vectors")) / "cedar" / "corpus-sample.tar.gz"

HAND_MADE = (
    (
        "permit (principal, action, resource)"
        " when { (context.a && context.b) && (context.c || context.d) && !(context.e && context.f)"
        " && (if context.g then context.h else context.i) };"
    ),
    (
        "forbid (principal, action, resource) when { (context.a || (context.b || context.c)) } unless { ((context.d)) }"
        " when { if context.a then context.b else context.c };"
    ),
    "permit (principal, action, resource) when { principal has a.b.c && principal has d && principal has e.f };",
    "permit (principal, action, resource) when { principal has a.b.c };",
    "permit (principal, action, resource) when { principal has a.b || principal has c.d };",
    'permit (principal, action, resource) when { "a && b || c" == "}" && // && || }\n [1, 2].contains(1) };',
    (
        "permit (principal, action, resource)"
        " when { context.a && (context.b || context.c && context.d) && {a: context.e && context.f}.a };"
    ),
)


def expression(text: str) -> Any:
    parsed = cedarpy.policies_to_json_str(f"permit (principal, action, resource) when {{ {text} }};")
    (policy,) = json.loads(parsed)["staticPolicies"].values()
    return policy["conditions"][0]["body"]


def tree(policy: PolicyText) -> dict[str, Any]:
    parsed = json.loads(cedarpy.policies_to_json_str(policy.text))
    found: dict[str, Any]
    (found,) = [*parsed["staticPolicies"].values(), *parsed["templates"].values()]
    return found


def verify(text: str) -> int:
    """Compare both ways of taking every policy of a text apart; returns how many parts there were."""
    file = SourceFile("f", text)
    count = 0
    for policy in read_policies(file):
        if policy.refusal is not None:
            continue  # It is out of our bounds, and is not taken apart.
        by_cedar, by_us = clauses(tree(policy)), policy.clauses
        assert [(one.kind, one.joiner, len(one.parts)) for one in by_us] == [
            (one.kind, one.joiner, len(one.parts)) for one in by_cedar
        ], policy.text
        for ours, cedars in zip(by_us, by_cedar, strict=True):
            stands: Counter[Range] = Counter(ours.parts)
            for place, part in zip(ours.parts, cedars.parts, strict=True):
                count += 1
                # `x has a.b` is two parts to Cedar, and stands in one place.
                if stands[place] == 1:
                    assert expression(text[place.begin : place.end]) == part, policy.text
    return count


def shipped() -> Iterator[str]:
    packs = [pack(name) for name in pack_names()]
    yield from (policy.text for policy in (*guardrails(), *roles()))
    yield from (each.text for each in packs)


@pytest.mark.parametrize("text", HAND_MADE)
def test_brackets_that_group_are_looked_into_and_others_are_not(text: str) -> None:
    assert verify(text) > 0


def test_the_parts_of_every_shipped_policy_stand_where_they_are_seen() -> None:
    assert sum(map(verify, shipped())) > 150


@pytest.mark.skipif(not CORPUS.exists(), reason=f"Cedar's corpus is not at {CORPUS}; set LICET_VECTORS")
def test_the_parts_of_every_policy_of_the_corpus_stand_where_they_are_seen() -> None:
    with tarfile.open(CORPUS) as archive:
        texts = [
            file.read().decode()
            for member in archive
            if member.name.endswith(".cedar") and (file := archive.extractfile(member)) is not None
        ]
    assert len(texts) > 500
    assert sum(map(verify, texts)) > 500
