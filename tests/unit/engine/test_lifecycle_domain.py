"""References, restrictions and bindings: pure rules, held against what they are to mean."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from licet_attestations.leaf import is_tenant
from licet_engine.domain import refs
from licet_engine.domain.binding import binding_hex
from licet_engine.domain.errors import InvalidInput
from licet_engine.domain.refs import Ref, new_id, parse_name, parse_ref, parse_role, parse_tenant
from licet_engine.domain.restrictions import CLASSIFICATIONS, Restrictions, inherit

FAR_FUTURE_MS = 253_370_764_800_000  # 9999-01-01.

TENANTS = st.from_regex(r"[a-z][a-z0-9-]{1,38}[a-z0-9]", fullmatch=True)
NAMES = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
VERSIONS = st.integers(1, 999_999_999)

# --- references -------------------------------------------------------------------------------------------------------


@given(TENANTS, NAMES, VERSIONS)
def test_what_is_written_is_read_back(tenant: str, name: str, version: int) -> None:
    for ref in (Ref(tenant, name), Ref(tenant, name, version)):
        assert parse_ref(str(ref), versioned=ref.version is not None) == ref
        assert ref.unversioned == Ref(tenant, name)
    assert parse_tenant(tenant) == tenant
    assert parse_name(name) == name


@given(st.text(max_size=140), st.booleans())
def test_what_is_read_is_what_was_written(text: str, versioned: bool) -> None:  # noqa: FBT001  # Hypothesis passes it by position.
    try:
        ref = parse_ref(text, versioned=versioned)
    except InvalidInput:
        assert text != "northbank/x"
    else:
        # One thing has one name: nothing that is accepted is another writing of the same.
        assert str(ref) == text
        assert (ref.version is not None) == versioned


@given(TENANTS, NAMES, st.sampled_from(["\n", " ", "/", "@", "@0", "@01", "@1x", "@-1", "@1\n", "%", "\u0660", ".."]))
def test_nothing_may_stand_behind_or_before_a_reference(tenant: str, name: str, more: str) -> None:
    for text in (f"{tenant}/{name}{more}", f"{more}{tenant}/{name}"):
        with pytest.raises(InvalidInput):
            parse_ref(text)
    with pytest.raises(InvalidInput):
        parse_ref(f"{tenant}/{name}{more}", versioned=True)


@pytest.mark.parametrize(
    "text", ["", "~", "~void", "ab", "a" * 41, "Northbank", "north_bank", "-north", "north-", "1bank"]
)
def test_what_is_no_tenant_is_refused(text: str) -> None:
    for parse in (parse_tenant, lambda tenant: parse_ref(f"{tenant}/x")):
        with pytest.raises(InvalidInput):
            parse(text)


def test_reserved_logs_are_no_tenants_of_anybodys_and_yet_have_a_log() -> None:
    for reserved in (refs.VOID_LOG, refs.ELSEWHERE_TENANT):
        with pytest.raises(InvalidInput):
            parse_tenant(reserved)
    assert is_tenant(refs.VOID_LOG)
    assert parse_tenant(refs.PLATFORM) == "platform"


@pytest.mark.parametrize("text", ["", "a", "Auditor", "model_risk", "a" * 40, "role\n"])
def test_what_is_no_role_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_role(text)


def test_identifiers_sort_by_the_time_they_were_made() -> None:
    before = refs.now_ms()
    made = [new_id() for _ in range(100)]
    after = refs.now_ms()
    assert len(set(made)) == 100
    assert all(re.fullmatch("[0-9a-f]{32}", identifier) for identifier in made)
    times = [int(identifier[:12], 16) for identifier in made]
    assert times == sorted(times)
    assert before <= times[0] <= times[-1] <= after


# --- restrictions -----------------------------------------------------------------------------------------------------

WORDS = st.frozensets(st.sampled_from(["us", "eu", "uk", "jp"]))
RESTRICTIONS = st.builds(
    Restrictions,
    classification=st.sampled_from(CLASSIFICATIONS),
    protected=st.booleans(),
    residency=WORDS,
    uses=WORDS,
    expires_at_ms=st.integers(0, FAR_FUTURE_MS),
    held=st.booleans(),
)


@given(st.lists(RESTRICTIONS, min_size=1, max_size=5), st.booleans())
def test_what_is_made_is_bound_by_everything_behind_it(parents: list[Restrictions], held: bool) -> None:  # noqa: FBT001  # As above.
    made = inherit(parents, held=held)
    for parent in parents:
        # Never looser than any one of them, in any respect.
        assert CLASSIFICATIONS.index(made.classification) >= CLASSIFICATIONS.index(parent.classification)
        assert made.residency <= parent.residency
        assert made.uses <= parent.uses
        assert made.expires_at_ms <= parent.expires_at_ms
        assert made.protected >= parent.protected
        assert made.held >= parent.held
    assert made.held >= held
    # And not tighter than all of them together.
    assert made.classification in {parent.classification for parent in parents}
    assert made.expires_at_ms in {parent.expires_at_ms for parent in parents}
    assert made.residency == {word for word in ("us", "eu", "uk", "jp") if all(word in p.residency for p in parents)}
    assert made.held == (held or any(parent.held for parent in parents))


@given(st.lists(RESTRICTIONS, min_size=1, max_size=4), st.permutations(range(4)))
def test_in_which_order_does_not_matter_nor_how_often(parents: list[Restrictions], order: list[int]) -> None:
    shuffled = [parents[i] for i in order if i < len(parents)]
    assert (
        inherit(shuffled) == inherit(parents) == inherit([*parents, *parents]) == inherit([inherit(parents), *parents])
    )


def test_nothing_behind_it_is_refused_and_not_taken_for_no_restriction() -> None:
    with pytest.raises(InvalidInput):
        inherit([])


def test_what_has_nothing_in_common_may_be_processed_nowhere() -> None:
    one, other = (
        Restrictions(
            "public", protected=False, residency=frozenset({r}), uses=frozenset({r}), expires_at_ms=1, held=False
        )
        for r in ("us", "eu")
    )
    fact = inherit([one, other]).to_fact()
    assert (fact["residency"], fact["uses"]) == ([], [])


def test_an_unknown_classification_is_refused() -> None:
    with pytest.raises(InvalidInput):
        Restrictions("secret", protected=False, residency=frozenset(), uses=frozenset(), expires_at_ms=1, held=False)


# --- bindings ---------------------------------------------------------------------------------------------------------

DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
BINDINGS = st.fixed_dictionaries(
    {
        "model_digest_hex": DIGESTS,
        "revision": st.integers(1, 9),
        "dataset_digests_hex": st.lists(DIGESTS, min_size=1, max_size=3),
        "evaluation_digests_hex": st.dictionaries(st.sampled_from(["technical", "bias", "drift"]), DIGESTS),
        "policy_digest_hex": DIGESTS,
        "restrictions": RESTRICTIONS.map(Restrictions.to_fact),
        "tier": st.sampled_from(["low", "medium", "high"]),
    }
)


@given(BINDINGS, BINDINGS)
def test_two_bindings_are_the_same_only_if_all_they_bind_is_the_same(one: dict, other: dict) -> None:
    def meant(parts: dict) -> dict:
        return {**parts, "dataset_digests_hex": sorted(parts["dataset_digests_hex"])}

    assert (binding_hex(**one) == binding_hex(**other)) == (meant(one) == meant(other))
    # Changing any one part makes it another.
    for name in one:
        assert (binding_hex(**{**one, name: other[name]}) == binding_hex(**one)) == (
            meant({**one, name: other[name]}) == meant(one)
        )


@given(BINDINGS)
def test_in_which_order_the_data_is_named_does_not_matter(parts: dict) -> None:
    turned = {**parts, "dataset_digests_hex": parts["dataset_digests_hex"][::-1]}
    assert binding_hex(**turned) == binding_hex(**parts)
    assert re.fullmatch("[0-9a-f]{64}", binding_hex(**parts))
