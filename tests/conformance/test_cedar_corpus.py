"""Cedar's own integration tests: its answers are ours, sliced and whole, and so are the answers of the parts.

Source: cedar-policy/cedar-integration-tests, a sample of the fuzz-made corpus; see the vectors' SOURCES.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cedarpy
import pytest
from cedarpy import _internal

from licet_engine.decide.bundle import CompiledBundle, Policy, read_policy
from licet_engine.decide.conjuncts import Probes
from licet_engine.decide.decision import Evaluation, evaluate
from licet_engine.decide.entities import EntityUid, Fact, FactSet
from licet_engine.decide.source import expression_text

ROOT = Path(__file__).parents[2]
CORPUS = Path(os.environ.get("LICET_VECTORS", ROOT.parent / "shared" / "vectors")) / "cedar" / "corpus-sample.tar.gz"

pytestmark = pytest.mark.skipif(not CORPUS.exists(), reason=f"Cedar's corpus is not at {CORPUS}; set LICET_VECTORS")


@dataclass(frozen=True)
class Case:
    name: str
    text: str
    schema: _internal.Schema
    facts: FactSet
    requests: list[dict[str, Any]]


def fact(entity: dict[str, Any]) -> Fact:
    """A fact of the corpus: its integers go beyond what our canonical JSON allows, so it is built past that door."""
    data = json.dumps(entity, sort_keys=True).encode()
    parents = tuple(EntityUid.from_json(parent) for parent in entity["parents"])
    return Fact(EntityUid.from_json(entity["uid"]), parents, data, hashlib.sha256(data).hexdigest(), entity)


@pytest.fixture(scope="module")
def corpus() -> list[Case]:
    with tarfile.open(CORPUS) as archive:
        texts = {
            member.name: file.read().decode() for member in archive if (file := archive.extractfile(member)) is not None
        }
    cases = []
    for name, text in sorted(texts.items()):
        if name.endswith(".entities.json") or not name.endswith(".json"):
            continue
        case = json.loads(text)
        schema = _internal.Schema.from_str(texts[case["schema"]])
        facts = FactSet(fact(entity) for entity in json.loads(texts[case["entities"]]))
        cases.append(Case(name, texts[case["policies"]], schema, facts, case["requests"]))
    assert len(cases) == 530
    return cases


def compiled(case: Case, *more: Policy) -> CompiledBundle:
    entry = {"id": "policy0", "source": "tenant", "mode": "enforce", "text": f'@id("policy0")\n{case.text}'}
    return CompiledBundle(case.name, case.schema, [read_policy(0, entry), *more])


def query(request: dict[str, Any]) -> dict[str, Any]:
    names = {slot: request[slot] for slot in ("principal", "action", "resource")}
    return {**names, "context": json.dumps(request["context"])}


def uid(value: dict[str, str]) -> tuple[str, str]:
    return (value["type"], value["id"])


def ask(bundle: CompiledBundle, case: Case, request: dict[str, Any], *, sliced: bool) -> Evaluation:
    principal, action, resource = uid(request["principal"]), uid(request["action"]), uid(request["resource"])
    ancestors = case.facts.ancestors(principal), case.facts.ancestors(resource)
    chosen = bundle.slice_for(principal, action, resource, *ancestors) if sliced else bundle.whole(action)
    return evaluate(chosen.enforced, query(request), bundle.entities.get(case.facts), bundle.schema)


def comparable(answer: Evaluation) -> tuple[bool, list[str], list[str]]:
    return answer.allowed, sorted(answer.reasons), sorted(answer.errors)


def variants(case: Case, bundle: CompiledBundle) -> list[Policy]:
    """The case's policy again under many scopes, those that its requests meet and those that they do not."""
    base = bundle.policies[0]
    uids = {uid(request[slot]) for request in case.requests[:3] for slot in ("principal", "resource")}
    uids |= {ancestor for one in set(uids) for ancestor in case.facts.ancestors(one)}
    some = [*sorted(uids)[:5], *[one.uid.key for one in case.facts if one.uid.key not in uids][:2]]
    scopes: list[dict[str, Any]] = [{"op": "All"}]
    for kind, name in some:
        entity = {"entity": {"type": kind, "id": name}}
        scopes += [
            {"op": "==", **entity},
            {"op": "in", **entity},
            {"op": "is", "entity_type": kind},
            {"op": "is", "entity_type": some[0][0], "in": entity},
        ]
    actions = {uid(request["action"]) for request in case.requests[:3]}
    action_scopes: list[dict[str, Any]] = [{"op": "All"}]
    for kind, name in sorted(actions):
        entity = {"type": kind, "id": name}
        action_scopes += [
            {"op": "==", "entity": entity},
            {"op": "in", "entity": entity},
            {"op": "in", "entities": [entity, {"type": kind, "id": "another"}]},
        ]
    made = []
    for number, scope in enumerate(scopes):
        ast = {**base.ast, "effect": ("permit", "forbid")[number % 3 == 2]}
        for slot in ("principal", "resource"):
            action = action_scopes[len(made) % len(action_scopes)]
            ast = {**ast, "action": action, slot: scope, "annotations": {"id": f"v{len(made)}"}}
            text = cedarpy.policies_from_json_str(
                json.dumps({"templates": {}, "staticPolicies": {"policy0": ast}, "templateLinks": []})
            )
            entry = {"id": f"v{len(made)}", "source": "tenant", "mode": "enforce", "text": text}
            made.append(read_policy(len(made) + 1, entry))
    return made


def test_every_answer_is_cedars_own_whether_sliced_or_whole(corpus: list[Case]) -> None:
    asked = 0
    for case in corpus:
        bundle = compiled(case)
        for request in case.requests:
            expected = (request["decision"] == "allow", sorted(request["reason"]), sorted(request["errors"]))
            for sliced in (True, False):
                assert comparable(ask(bundle, case, request, sliced=sliced)) == expected, (case.name, sliced)
            asked += 1
    assert asked == 530 * 8


def test_slicing_changes_nothing_under_any_scope(corpus: list[Case]) -> None:
    narrowed = 0
    for case in corpus[::2]:
        bundle = compiled(case, *variants(case, compiled(case)))
        for request in case.requests[:3]:
            sliced, whole = (ask(bundle, case, request, sliced=sliced) for sliced in (True, False))
            assert comparable(sliced) == comparable(whole), case.name
            principal, action, resource = uid(request["principal"]), uid(request["action"]), uid(request["resource"])
            ancestors = case.facts.ancestors(principal), case.facts.ancestors(resource)
            narrowed += len(bundle.slice_for(principal, action, resource, *ancestors).policies) < len(bundle.policies)
    assert narrowed > 300, "slices that leave nothing out would prove nothing"


def test_the_parts_folded_in_order_come_to_what_cedar_says_of_the_policy(corpus: list[Case]) -> None:
    seen = set()
    for case in corpus:
        bundle = compiled(case)
        (policy,) = bundle.policies
        for request in case.requests:
            handle = bundle.entities.get(case.facts)
            outcome = Probes([policy], query(request), handle, bundle.schema).outcome(policy)
            expected = "true" if request["reason"] else "error" if request["errors"] else "false"
            assert outcome == expected, case.name
            seen.add(outcome)
    assert seen == {"true", "false", "error"}


def test_what_is_shown_as_source_parses_to_the_same_expression(corpus: list[Case]) -> None:
    for case in corpus:
        (policy,) = compiled(case).policies
        for condition in policy.ast["conditions"]:
            text = f"permit (principal, action, resource) when {{ {expression_text(condition['body'])} }};"
            (again,) = json.loads(cedarpy.policies_to_json_str(text))["staticPolicies"].values()
            assert again["conditions"][0]["body"] == condition["body"], case.name
