"""``oscal.json``: what it says of a clause, and what it does not say."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from licet_engine.evidence.report import derived
from licet_engine.evidence.report.clauses import control_id
from licet_policies import controls
from report_contents import MadeUp, hexed

OWN = (
    '@id("team.weekend")\n@title("No promotions on weekends")\n@control("House-Rules:7 <b>")\n@severity("high")\n@owner("ana")\n'
    'forbid (principal, action == Action::"model.promote", resource);'
)


def files(made: MadeUp) -> dict[str, bytes]:
    return {name: b"".join(chunks) for name, chunks in derived(made)}


def results(made: MadeUp) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(files(made)["oscal.json"])["assessment-results"]
    return document


def told(made: MadeUp) -> dict[str, tuple[str, str]]:
    """State of each finding, and why."""
    found = results(made)["results"][0].get("findings", [])
    return {
        each["target"]["target-id"]: (each["target"]["status"]["state"], each["target"]["status"]["remarks"])
        for each in found
    }


def props(value: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in value["props"]}


class Plain(MadeUp):
    """No entry but those that a test adds."""

    def __init__(self, own: str = "") -> None:
        super().__init__(rounds=0, own=own)


VALIDATION = "sr-11-7-v_enforced"


def test_a_clause_is_enforced_where_every_bundle_that_decided_enforces_its_policies() -> None:
    made = Plain()
    made.decide("model.promote", "allow", bundle=made.enforcing)
    assert told(made)[VALIDATION] == (
        "satisfied",
        "All 1 bundles that decided hold all policies of this clause, and enforce them.",
    )


def test_a_clause_that_was_only_observed_for_one_decision_is_not_satisfied() -> None:
    made = Plain()
    made.decide("model.promote", "allow", bundle=made.enforcing)
    made.decide("model.promote", "allow", bundle=made.observing)
    assert told(made)[VALIDATION] == (
        "not-satisfied",
        "In 1 of the 2 bundles that decided, a policy of this clause only observes.",
    )


def test_a_clause_that_one_bundle_lacks_is_not_satisfied() -> None:
    made = Plain()
    made.bundles[hexed("bare")] = {**made.bundles[made.enforcing], "policies": []}
    made.decide("model.promote", "allow", bundle=made.enforcing)
    made.decide("model.promote", "allow", bundle=hexed("bare"))
    assert told(made)[VALIDATION] == (
        "not-satisfied",
        "1 of the 2 bundles that decided do not hold all policies of this clause.",
    )


@pytest.mark.parametrize("record", [None, {"decision": "allow", "bundle": "none that is known"}])
def test_what_cannot_be_told_is_not_satisfied(record: dict[str, str] | None) -> None:
    made = Plain()
    made.decide("model.promote", "allow", bundle=made.enforcing)
    made.add("decision", record)
    assert told(made)[VALIDATION] == (
        "not-satisfied",
        "Under which policies 1 decisions of the window were made cannot be told.",
    )


def test_without_a_decision_nothing_is_found() -> None:
    assert told(Plain()) == {}
    assert results(Plain())["results"][0]["reviewed-controls"]["control-selections"][0].keys() == {"description"}


def test_a_decision_that_two_policies_of_a_clause_refused_counts_once() -> None:
    made = Plain()
    made.decide("model.promote", "deny", "sr-11-7.check.bias", "sr-11-7.check.drift")
    made.decide("model.promote", "allow", "role.pipeline.models", observed=("sr-11-7.check.drift",))
    made.decide("model.promote", "deny", "guardrail.active.tenant")
    observations = {each["title"]: props(each) for each in results(made)["results"][0]["observations"]}
    found = observations["Decisions under sr-11-7-v"]
    assert (found["decisions-refused"], found["decisions-that-would-have-been-refused"]) == ("1", "1")


def test_a_pack_that_is_not_in_force_is_not_reviewed() -> None:
    made = Plain()
    made.decide("model.promote", "allow")
    reviewed = json.dumps(results(made)["results"][0]["reviewed-controls"])
    assert "sr-11-7-v" in reviewed
    assert "hipaa" not in reviewed
    assert "gdpr-44" in reviewed


def test_a_clause_of_the_tenants_own_is_reviewed_and_its_words_are_no_markup() -> None:
    made = Plain(own=OWN)
    made.decide("model.promote", "deny", "team.weekend")
    (own,) = (
        each
        for each in results(made)["local-definitions"]["objectives-and-methods"]
        if each["control-id"].startswith("own-")
    )
    assert props(own) == {"framework": "House-Rules", "clause": "7 <b>"}
    assert told(made)[f"{own['control-id']}_enforced"][0] == "satisfied"


MARKUP = ("title", "description", "remarks", "prose")


def members(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, item in value.items():
            if isinstance(item, str):
                yield name, item
            yield from members(item)
    elif isinstance(value, list):
        for item in value:
            yield from members(item)


def test_nothing_that_a_stranger_named_stands_where_oscal_has_markup() -> None:
    made = MadeUp("<i>stranger</i>", own=OWN)
    made.add("attestation", {"predicate_type": "<i>stranger</i>"})
    document = results(made)
    where = {name for name, value in members(document) if "stranger" in value}
    assert where == {"value", "name"}
    assert not [value for name, value in members(document) if name in MARKUP and re.search(r"[<>\[\]*`]", value)]


def test_identifiers_follow_from_the_log_and_all_references_lead_somewhere() -> None:
    document = results(MadeUp())
    assert document == results(MadeUp())
    identifiers = [value for name, value in members(document) if name == "uuid"]
    assert len(identifiers) == len(set(identifiers))
    for name, value in members(document):
        if name in {"observation-uuid", "subject-uuid"}:
            assert value in identifiers
        if name == "href" and value.startswith("#"):
            assert value[1:] in identifiers
    other = MadeUp()
    other.decide("model.read", "allow")
    assert results(other)["uuid"] != document["uuid"]


def test_files_of_the_archive_are_named_with_their_digests() -> None:
    made = MadeUp()
    found = files(made)
    links = [
        link
        for each in json.loads(found["oscal.json"])["assessment-results"]["back-matter"]["resources"]
        for link in each.get("rlinks", [])
    ]
    known = {link["href"]: link["hashes"][0]["value"] for link in links if "hashes" in link}
    assert known == {
        name: hashlib.sha256(found[name]).hexdigest() for name in ("entries.csv", "index.json", "report.html")
    } | {f"bundles/{digest}.json": digest for digest in made.bundles}
    assert "attestations/000000000000.jsonl" in {link["href"] for link in links}


def test_a_clause_of_nist_bears_the_identifier_of_its_catalogue() -> None:

    assert control_id("NIST-SP-800-53", "CM-3(2)") == "cm-3.2"
    assert control_id("HIPAA", "164.312(a)(1)") == "hipaa-164.312-a-1"


def test_every_shipped_clause_has_an_identifier_of_its_own() -> None:

    found = [control_id(each.framework, each.clause) for each in controls()]
    assert len(found) == len(set(found))


def test_it_promises_nothing() -> None:
    text = files(MadeUp())["oscal.json"].decode()
    assert "no statement of compliance" in text
    assert "is compliant" not in text
