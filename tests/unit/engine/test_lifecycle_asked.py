"""The form of a question is verified before anything is looked up, the same for every verb."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from licet_engine.decide import EntityUid, Fact, FactSet
from licet_engine.domain.errors import InvalidInput
from licet_engine.lifecycle import asking
from licet_engine.lifecycle.asked import parse_asked
from licet_engine.lifecycle.catalogue import VERBS
from licet_engine.lifecycle.committing import Question
from licet_engine.lifecycle.verbs import Ids, RefForm, Verb, Who

READ = VERBS["dataset.read"]
VERB = st.sampled_from(sorted(VERBS.values(), key=lambda verb: verb.action))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 53), 1 << 53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(VERB, JSON, JSON, JSON)
def test_whatever_is_sent_is_a_question_or_is_refused_as_invalid(
    verb: Verb, resource: Any, parameters: Any, claimed: Any
) -> None:
    refused: InvalidInput | None = None
    try:
        asked = parse_asked(verb, resource, parameters, claimed=claimed)
    except InvalidInput as error:
        refused = error
    if refused is None:
        assert asked.sent == resource
        assert dict(asked.claimed) == (claimed or {})
    else:
        assert (refused.status, refused.code) == (400, "invalid-input")
        assert refused.message


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_every_verb_takes_its_own_form_of_reference_and_no_other(verb: Verb) -> None:
    forms = {
        RefForm.TENANT: ["northbank"],
        RefForm.NAME: ["northbank/x"],
        RefForm.BUNDLE: ["northbank/x", f"northbank/{'a' * 64}"],
        RefForm.VERSION: ["northbank/x@3"],
        RefForm.NAME_OR_VERSION: ["northbank/x", "northbank/x@3"],
    }
    parameters = minimal(verb)
    good = forms[verb.form]
    for text in good:
        asked = parse_asked(verb, text, parameters)
        assert asked.ref.tenant == "northbank"
        assert asked.ref.version == (3 if "@" in text else None)
    for text in {
        "northbank",
        "northbank/x",
        "northbank/x@3",
        "x@3",
        "northbank/x@0",
        "northbank/x/y",
        f"northbank/{'a' * 64}",
    } - set(good):
        with pytest.raises(InvalidInput):
            parse_asked(verb, text, parameters)


def minimal(verb: Verb) -> dict[str, Any]:
    """The least that a verb's parameters may be, made from its own schema."""
    chosen: dict[str, Any] = {
        "upload": "0" * 32,
        "digest_hex": "0" * 64,
        "size_bytes": 1,
        "classification": "public",
        "residency": ["us"],
        "uses": ["any"],
        "expires_at_ms": 1,
        "id": "0" * 32,
        "what": "log",
        "value": "1.5",
        "step": 1,
        "track": "security",
        "version": "northbank/x@1",
        "weights": {"1": 100},
        "until_ms": 1,
        "url": "https://hooks.example/in",
        "message": "msg_1",
        "devices": 1,
        "entries": [3],
        "claims": {"repository": "northbank/policies"},
    }
    parameters = {name: chosen.get(name, "x") for name, field in verb.body.model_fields.items() if field.is_required()}
    # What these need is one thing or another.
    either: dict[str, dict[str, Any]] = {
        "policy.shadow": {"off": True},
        "tenant.administer": {"budgets": {"training": 1}},
        "token.revoke": {"token_id": "0" * 32},
    }
    return parameters or either.get(verb.action, {})


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_every_verb_refuses_what_it_does_not_declare(verb: Verb) -> None:
    resource = {"TENANT": "northbank", "TENANT/NAME@VERSION": "northbank/x@1"}.get(verb.form.value, "northbank/x")
    assert parse_asked(verb, resource, minimal(verb))
    with pytest.raises(InvalidInput, match="undeclared"):
        parse_asked(verb, resource, {**minimal(verb), "undeclared": 1})
    for parameters in ([], "x", 1, True):
        with pytest.raises(InvalidInput):
            parse_asked(verb, resource, parameters)


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_a_body_survives_being_stored_and_asked_again(verb: Verb) -> None:
    # The worker's decisions are made on what was stored of the question.
    body = verb.body.model_validate(minimal(verb))
    stored = TypeAdapter(dict[str, Any]).validate_json(body.model_dump_json())
    assert verb.body.model_validate(stored) == body


@pytest.mark.parametrize("key", ["", "k", "k" * 64, "a b:c/d~"])
def test_a_key_is_printable_and_short(key: str) -> None:
    assert parse_asked(READ, "northbank/x", None, key=key).key == key


@pytest.mark.parametrize("key", ["k" * 65, "\x00", "a\nb", "\x7f", "caf\u00e9"])
def test_another_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidInput):
        parse_asked(READ, "northbank/x", None, key=key)


def test_claims_are_texts_in_bounded_number_and_in_one_order() -> None:
    asked = parse_asked(READ, "northbank/x", None, claimed={"b": "2", "a": "1"})
    assert asked.claimed == (("a", "1"), ("b", "2"))
    assert parse_asked(READ, "northbank/x", None, claimed=None).claimed == ()
    too_many = {f"c{number}": "" for number in range(65)}
    for claimed in (too_many, {"a": "x" * 1024}, {"a": 1}, {"a": None}, {"a": ["b"]}, [], "a"):
        with pytest.raises(InvalidInput):
            parse_asked(READ, "northbank/x", None, claimed=claimed)


def test_a_remembered_question_weighs_what_was_sent_with_it() -> None:
    """Ten thousand of them with all the claims that are taken would be more than half a gigabyte of text alone."""
    claims = {f"c{number:02d}": "x" * 1000 for number in range(64)}

    def question(claimed: dict[str, str]) -> Question:
        tenant = EntityUid("Tenant", "northbank")
        fact = Fact.from_entity({"uid": tenant.to_json(), "attrs": {"region": "us"}, "parents": []})
        return Question(
            who=Who(tenant="northbank", name="ana", kind="person"),
            asked=parse_asked(READ, "northbank/x", {}, claimed=claimed, is_dry=True),
            in_force=cast("Any", None),
            facts=FactSet([fact]),
            resource=tenant,
            context={},
            proposal=None,
            ids=Ids(decision="0" * 32, operation="0" * 32, now_ms=1),
            owner="northbank",
        )

    light, heavy = asking._weight(question({})), asking._weight(question(claims))
    assert heavy - light >= 64 * 1000
    remembered = asking.Desk(cast("Any", None), cast("Any", None), cast("Any", None))._remembered
    for number in range(2000):
        remembered.put(number, question({}), heavy)
    assert remembered.weight <= asking._MAX_REMEMBERED_BYTES
    assert 10 < len(remembered) < 2000
