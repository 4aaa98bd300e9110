"""What things are: references, inherited restrictions, bindings."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licet_adapters.training.spec import CHECK_KINDS
from licet_engine.commands.models import CHECKS
from licet_engine.decide.obtaining import _BEST_FIGURES
from licet_engine.domain.binding import binding_hex
from licet_engine.domain.errors import InvalidInput
from licet_engine.domain.refs import (
    MAX_REF_CHARS,
    Ref,
    new_id,
    now_ms,
    parse_name,
    parse_ref,
    parse_role,
    parse_tenant,
)
from licet_engine.domain.restrictions import CLASSIFICATIONS, Restrictions, inherit

FAR_FUTURE_MS = 253_370_764_800_000  # 9999-01-01.


def test_what_could_be_got_has_every_kind_of_check_that_there_is() -> None:
    assert tuple(_BEST_FIGURES) == CHECK_KINDS == tuple(CHECKS)


# --- References ---------------------------------------------------------------------------------------------------------

TENANTS = st.from_regex(r"[a-z][a-z0-9-]{1,38}[a-z0-9]", fullmatch=True)
NAMES = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
HOSTILE = [
    *("", "/", "@", "northbank", "northbank/", "/hmda", "northbank//hmda", "northbank/hm/da", "northbank/../lakeside"),
    *("northbank/..", "northbank/.", "northbank/hmda\n", "\nnorthbank/hmda", "northbank/hmda\0", "northbank/hm da"),
    *("Northbank/hmda", "northbank/Hmda", "northbank/hmdá", "northbank/hmda\u200b", "north\u2024bank/hmda"),
    *("-northbank/hmda", "northbank-/hmda", "northbank/-hmda", "northbank/hmda-", "1northbank/hmda", "nb/hmda"),
    *("~/hmda", "~void/hmda", "northbank/*", "northbank/%2e%2e", "northbank\\hmda", f"northbank/{'a' * 64}"),
    f"{'n' * 41}/hmda",
]


@given(tenant=TENANTS, name=NAMES, version=st.integers(1, 999_999_999))
def test_a_reference_reads_back_as_it_was_written(tenant: str, name: str, version: int) -> None:
    plain, versioned = Ref(tenant, name), Ref(tenant, name, version)
    assert parse_ref(str(plain)) == plain
    assert parse_ref(str(versioned), versioned=True) == versioned
    assert versioned.unversioned == plain


@given(text=st.text(max_size=160) | TENANTS.map(lambda tenant: f"{tenant}/"))
def test_whatever_text_is_taken_for_a_reference_is_written_just_so(text: str) -> None:
    for versioned in (False, True):
        try:
            ref = parse_ref(text, versioned=versioned)
        except InvalidInput:
            continue
        assert str(ref) == text
        assert (ref.version is not None) == versioned


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_ref(text)
    with pytest.raises(InvalidInput):
        parse_ref(f"{text}@1", versioned=True)


@pytest.mark.parametrize("version", ["", "0", "-1", "01", "1.0", "1e3", "one", "1@2", "1 ", "1\n", "٣", "1" * 10])
def test_what_is_no_version_is_refused(version: str) -> None:
    with pytest.raises(InvalidInput):
        parse_ref(f"northbank/credit-risk@{version}", versioned=True)


def test_a_version_stands_where_one_is_wanted_and_nowhere_else() -> None:
    with pytest.raises(InvalidInput):
        parse_ref("northbank/credit-risk", versioned=True)
    with pytest.raises(InvalidInput):
        parse_ref("northbank/credit-risk@1")


@pytest.mark.parametrize("value", [None, 1, b"northbank/hmda", ["northbank/hmda"], "a" * (MAX_REF_CHARS + 1)])
def test_what_is_no_short_text_is_no_reference(value: Any) -> None:
    with pytest.raises(InvalidInput):
        parse_ref(value)


def test_the_longest_reference_there_can_be_is_taken() -> None:
    longest = f"{'n' * 40}/{'h' * 63}@{'9' * 9}"
    assert str(parse_ref(longest, versioned=True)) == longest


@pytest.mark.parametrize("text", ["~", "~void", "nb", "n" * 41, "north_bank", "northbank\n", "North", "", "-nb", "nb-"])
def test_what_is_no_tenant_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_tenant(text)


def test_names_and_roles_are_as_strict() -> None:
    assert (parse_tenant("northbank"), parse_name("h"), parse_role("data-scientist")) == (
        "northbank",
        "h",
        "data-scientist",
    )
    for name in ("", "-h", "h-", "H", "h/i", "h\n", "..", "h" * 64):
        with pytest.raises(InvalidInput):
            parse_name(name)
    for role in ("", "a", "role9", "Auditor", "auditor\n", "a/b", "-auditor", "a" * 40):
        with pytest.raises(InvalidInput):
            parse_role(role)
    for value in (None, 1, b"northbank"):
        for parse in (parse_tenant, parse_name, parse_role):
            with pytest.raises(InvalidInput):
                parse(value)  # type: ignore[arg-type]  # What JSON may bring.


def test_identifiers_are_new_and_sort_by_the_time_they_were_made() -> None:
    before_ms = now_ms()
    made = [new_id() for _ in range(1000)]
    after_ms = now_ms()
    assert len(set(made)) == len(made)
    times_ms = [int(identifier[:12], 16) for identifier in made]
    assert times_ms == sorted(times_ms)
    assert before_ms <= times_ms[0] <= times_ms[-1] <= after_ms
    assert all(len(identifier) == 32 and int(identifier, 16) >= 0 for identifier in made)


# --- Restrictions -------------------------------------------------------------------------------------------------------

RESTRICTIONS = st.builds(
    Restrictions,
    classification=st.sampled_from(CLASSIFICATIONS),
    protected=st.booleans(),
    residency=st.frozensets(st.sampled_from(["us", "eu", "uk"])),
    uses=st.frozensets(st.sampled_from(["credit-risk", "fraud", "marketing"])),
    expires_at_ms=st.integers(0, FAR_FUTURE_MS),
    held=st.booleans(),
)
PARENTS = st.lists(RESTRICTIONS, min_size=1, max_size=6)
OPEN = Restrictions(
    classification="public",
    protected=False,
    residency=frozenset({"us", "eu"}),
    uses=frozenset({"credit-risk", "fraud"}),
    expires_at_ms=FAR_FUTURE_MS,
    held=False,
)


def is_as_strict(child: Restrictions, parent: Restrictions) -> bool:
    """Whether whatever ``parent`` forbids, ``child`` forbids as well."""
    return (
        CLASSIFICATIONS.index(child.classification) >= CLASSIFICATIONS.index(parent.classification)
        and child.protected >= parent.protected
        and child.residency <= parent.residency
        and child.uses <= parent.uses
        and child.expires_at_ms <= parent.expires_at_ms
        and child.held >= parent.held
    )


@given(parents=PARENTS, held=st.booleans())
def test_what_is_made_is_never_looser_than_anything_behind_it(parents: list[Restrictions], *, held: bool) -> None:
    child = inherit(parents, held=held)
    assert all(is_as_strict(child, parent) for parent in parents)
    assert child.held >= held


@given(parents=PARENTS, held=st.booleans())
def test_what_is_made_is_no_stricter_than_need_be(parents: list[Restrictions], *, held: bool) -> None:
    child = inherit(parents, held=held)
    assert child.classification in {parent.classification for parent in parents}
    assert child.expires_at_ms in {parent.expires_at_ms for parent in parents}
    assert child.protected in {parent.protected for parent in parents}
    assert child.held in {held, *(parent.held for parent in parents)}
    for region in ("us", "eu", "uk"):
        assert (region in child.residency) == all(region in parent.residency for parent in parents)
    for use in ("credit-risk", "fraud", "marketing"):
        assert (use in child.uses) == all(use in parent.uses for parent in parents)


@given(parents=PARENTS, held=st.booleans(), chance=st.randoms(use_true_random=False))
def test_the_order_of_parents_does_not_matter(
    parents: list[Restrictions], *, held: bool, chance: random.Random
) -> None:
    other = list(parents)
    chance.shuffle(other)
    assert inherit(other, held=held) == inherit(parents, held=held)
    assert inherit([*parents, *other], held=held) == inherit(parents, held=held)


@given(parents=PARENTS, more=PARENTS)
def test_what_is_inherited_in_two_generations_is_inherited_in_one(
    parents: list[Restrictions], more: list[Restrictions]
) -> None:
    assert inherit([inherit(parents), *more]) == inherit([*parents, *more])


@given(parents=PARENTS, another=RESTRICTIONS)
def test_another_parent_never_loosens(parents: list[Restrictions], another: Restrictions) -> None:
    assert is_as_strict(inherit([*parents, another]), inherit(parents))


@given(one=RESTRICTIONS, other=RESTRICTIONS)
def test_what_is_not_as_strict_loosens_and_nothing_else_does(one: Restrictions, other: Restrictions) -> None:
    assert one.loosens(other) != is_as_strict(replace(one, held=other.held), other)


@pytest.mark.parametrize(
    "change",
    [
        {"classification": "internal"},
        {"residency": frozenset({"us", "uk"})},
        {"residency": frozenset({"uk"})},
        {"uses": frozenset({"credit-risk", "fraud", "marketing"})},
        {"expires_at_ms": 2},
    ],
)
def test_each_restriction_can_be_loosened_and_is_not_outweighed(change: dict[str, Any]) -> None:
    before = replace(OPEN, classification="confidential", expires_at_ms=1)
    assert replace(before, **change).loosens(before)
    # Being stricter in another respect makes up for nothing.
    assert replace(before, protected=True, **change).loosens(before)
    assert not before.loosens(before)


def test_an_only_parent_is_inherited_as_it_is() -> None:
    assert inherit([OPEN]) == OPEN
    assert inherit(iter([OPEN])) == OPEN


def test_what_has_nothing_known_behind_it_is_refused() -> None:
    for none in ([], (), iter(())):
        with pytest.raises(InvalidInput):
            inherit(none)
    with pytest.raises(InvalidInput):
        inherit([], held=True)


def test_parents_that_share_no_region_or_use_leave_none() -> None:
    there = replace(OPEN, residency=frozenset({"uk"}), uses=frozenset({"marketing"}))
    child = inherit([OPEN, there])
    # No region at all, which permits nothing; not "no restriction".
    assert (child.residency, child.uses) == (frozenset(), frozenset())
    assert (child.to_fact()["residency"], child.to_fact()["uses"]) == ([], [])


def test_a_classification_that_is_not_known_is_refused() -> None:
    for unknown in ("secret", "", "Public", "public "):
        with pytest.raises(InvalidInput):
            replace(OPEN, classification=unknown)


def test_a_fact_has_its_sets_in_order() -> None:
    assert OPEN.to_fact() == {
        "classification": "public",
        "protected": False,
        "residency": ["eu", "us"],
        "uses": ["credit-risk", "fraud"],
        "expires_at_ms": FAR_FUTURE_MS,
        "held": False,
    }


# --- Bindings -----------------------------------------------------------------------------------------------------------

PARTS: dict[str, Any] = {
    "model_digest_hex": "1" * 64,
    "revision": 1,
    "dataset_digests_hex": ["2" * 64, "3" * 64],
    "evaluation_digests_hex": {"bias": "4" * 64, "technical": "5" * 64},
    "policy_digest_hex": "6" * 64,
    "restrictions": {"classification": "internal", "residency": ["eu", "us"], "uses": ["credit-risk"]},
    "tier": "low",
}
CHANGES: dict[str, dict[str, Any]] = {
    "other files": {"model_digest_hex": "a" * 64},
    "another revision of the same files": {"revision": 2},
    "another dataset": {"dataset_digests_hex": ["2" * 64, "a" * 64]},
    "a dataset less": {"dataset_digests_hex": ["2" * 64]},
    "a dataset more": {"dataset_digests_hex": ["2" * 64, "3" * 64, "a" * 64]},
    "a dataset twice": {"dataset_digests_hex": ["2" * 64, "3" * 64, "3" * 64]},
    "no dataset": {"dataset_digests_hex": []},
    "an evaluation made again": {"evaluation_digests_hex": {"bias": "a" * 64, "technical": "5" * 64}},
    "evaluations exchanged": {"evaluation_digests_hex": {"bias": "5" * 64, "technical": "4" * 64}},
    "an evaluation less": {"evaluation_digests_hex": {"technical": "5" * 64}},
    "an evaluation more": {"evaluation_digests_hex": {**PARTS["evaluation_digests_hex"], "drift": "a" * 64}},
    "no evaluation": {"evaluation_digests_hex": {}},
    "other policies": {"policy_digest_hex": "a" * 64},
    "another classification": {"restrictions": {**PARTS["restrictions"], "classification": "restricted"}},
    "another region": {"restrictions": {**PARTS["restrictions"], "residency": ["us"]}},
    "a restriction less": {"restrictions": {"classification": "internal", "residency": ["eu", "us"]}},
    "no restriction": {"restrictions": {}},
    "another tier": {"tier": "high"},
    "files and policies exchanged": {"model_digest_hex": "6" * 64, "policy_digest_hex": "1" * 64},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_binding_is_another_with(change: dict[str, Any]) -> None:
    assert binding_hex(**(PARTS | change)) != binding_hex(**PARTS)


def test_no_two_of_the_changes_make_one_binding() -> None:
    assert len({binding_hex(**(PARTS | change)) for change in CHANGES.values()}) == len(CHANGES)


def test_a_binding_does_not_depend_on_order() -> None:
    turned = {
        "dataset_digests_hex": PARTS["dataset_digests_hex"][::-1],
        "evaluation_digests_hex": dict(reversed(PARTS["evaluation_digests_hex"].items())),
        "restrictions": dict(reversed(PARTS["restrictions"].items())),
    }
    assert binding_hex(**(PARTS | turned)) == binding_hex(**PARTS)


def test_a_binding_is_what_it_was() -> None:
    # Approvals that were given name it: were it computed otherwise, all of them would be void.
    assert binding_hex(**PARTS) == "362188c97cd4c6e259467b2402012052a86a5d197c52aa5ca7196b526ad49508"
