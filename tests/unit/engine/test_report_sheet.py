"""``entries.csv`` and ``index.json``: everything is in the one, a bounded extract in the other."""

from __future__ import annotations

import csv
import io
import itertools
import tracemalloc

import pytest

from licet_attestations import canonical
from licet_attestations.leaf import Leaf
from licet_engine.evidence.contents import Seen
from licet_engine.evidence.report import derived
from licet_engine.evidence.report.counting import MAX_NAMES, Buckets, Kept, Tally
from licet_engine.evidence.report.rows import row_of
from licet_engine.evidence.report.sheet import COLUMNS, lines
from licet_engine.evidence.report.story import MAX_BUNDLES, MAX_SPANS
from licet_engine.evidence.report.text import cut, fitting, moment, visible
from report_contents import BEGAN_MS, MadeUp, hexed


def files(made: MadeUp) -> dict[str, bytes]:
    return {name: b"".join(chunks) for name, chunks in derived(made)}


def rows(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline=""), strict=True))


def test_every_entry_has_a_row_that_says_what_it_is() -> None:
    made = MadeUp("credit")
    found = rows(files(made)["entries.csv"])
    assert [row["index"] for row in found] == [str(each.index) for each in made.seen]
    assert tuple(found[0]) == COLUMNS
    first = found[0]
    assert first["time"] == "2026-11-18T11:06:40.000Z"
    assert (first["kind"], first["principal"], first["action"]) == ("decision", "northbank/credit", "training.launch")
    assert (first["outcome"], first["operation"], first["bundle"]) == ("allow", "credit", made.observing)
    attested = next(row for row in found if row["attestation_type"] == "https://slsa.dev/verification_summary/v1")
    assert attested["attestation"] in {digest for digest, _, _ in made.statements}
    attempt = next(row for row in found if row["kind"] == "attempt")
    assert (attempt["actor"], attempt["outcome"], attempt["resource"]) == ("lakeside", "deny", "credit")
    assert [row["erased"] for row in found[-3:]] == ["no", "yes", "yes"]
    assert found[-1]["action"] == ""


def test_the_table_is_of_rfc_4180() -> None:
    data = files(MadeUp('a,"b"\r\nc'))["entries.csv"]
    assert data.endswith(b"\r\n")
    assert data.count(b"\n") == data.count(b"\r\n") == len(MadeUp().seen) + 1
    assert 'northbank/a,"b"\\u{000D}\\u{000A}c' in {row["principal"] for row in rows(data)}


@pytest.mark.parametrize(
    "name",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\uff1d1",
        "\uff0b1",
        "\uff0d1",
        "\uff20x",
        "\ufe66x",
        " =1",
        "\t=1",
        "x;=1",
        'x"=1',
        "x|-1",
        "x, @a",
    ],
)
def test_a_formula_is_text(name: str) -> None:
    # The approver of this log is named so without a tenant before it.
    made = MadeUp()
    made.add("policy", {"event": name, "by": name})
    principal = rows(files(made)["entries.csv"])[-1]["principal"]
    assert "'" in principal or principal.startswith("\\u{")
    assert principal.replace("'", "").lstrip() == visible(name).replace("'", "").lstrip()


def test_memory_does_not_grow_with_the_number_of_entries() -> None:
    leaf = Leaf("decision", BEGAN_MS, "northbank", "northbank", "0" * 64)

    def peak(count: int) -> int:
        tracemalloc.start()
        for _ in lines(row_of(Seen(index, leaf, {"action": "x" * 100})) for index in range(count)):
            pass
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    assert peak(20_000) < 1.5 * peak(2_000)


def test_the_index_counts_what_is_there() -> None:
    made = MadeUp()
    found = canonical.loads(files(made)["index.json"], canonical=True)
    assert found["scope"]["log_size"] == len(made.seen) + 7
    assert found["entries"]["count"] == len(made.seen)
    assert found["entries"]["erased"] == {"decision": 1, "facts": 1}
    assert found["decisions"]["own"] == {"allow": 2, "deny": 1, "erased": 1}
    assert found["decisions"]["foreign"] == {"deny": 1}
    refusing = {each["name"]: each["outcomes"] for each in found["decisions"]["by_policy_that_refused"]["list"]}
    assert refusing["sr-11-7.check.bias"] == {"deny": 1, "observed": 1}
    assert found["isolation"]["answer"] == "holds"
    assert [each["event"] for each in found["approvals"]["list"]] == ["approval", "approval-voided"]
    assert found["operations_not_done"]["list"][0]["code"] == "credit"
    assert found["traffic"]["list"][0]["cause_kind"] == "drift"


def test_the_index_says_which_bundle_decided_when() -> None:
    made = MadeUp()
    made.decide("model.read", "allow", bundle=made.observing)
    found = canonical.loads(files(made)["index.json"])["bundles"]
    intervals = [
        (each["bundle"], each["first_entry"], each["last_entry"], each["decisions"]) for each in found["intervals"]
    ]
    last = len(made.seen) - 1
    assert intervals == [(made.observing, 0, 0, 1), (made.enforcing, 4, 8, 2), (made.observing, last, last, 1)]
    assert {each["digest"]: each["packs"][0]["mode"] for each in found["list"]} == {
        made.observing: "observe",
        made.enforcing: "enforce",
    }


def test_of_many_intervals_the_newest_are_kept_and_none_reaches_over_another() -> None:
    made = MadeUp(rounds=0)
    for number in range(MAX_SPANS + 51):
        made.decide("model.read", "allow", bundle=(made.observing, made.enforcing)[number % 2])
    found = canonical.loads(files(made)["index.json"])["bundles"]
    assert {each["decisions"] for each in found["intervals"]} == {1}
    assert found["intervals"][-1]["last_entry"] == len(made.seen) - 1
    assert len(found["intervals"]) + found["more_intervals"] == len(made.seen)


def test_a_bundle_beyond_the_bound_ends_the_interval_before_it() -> None:
    made = MadeUp(rounds=0)
    for number in range(MAX_BUNDLES):
        made.bundles[hexed(f"b{number}")] = made.bundles[made.enforcing]
        made.decide("model.read", "allow", bundle=hexed(f"b{number}"))
    for digest in (hexed("one more"), hexed(f"b{MAX_BUNDLES - 1}")):
        made.decide("model.read", "allow", bundle=digest)
    found = canonical.loads(files(made)["index.json"])["bundles"]
    assert found["decisions_not_counted"] == 1
    assert [each["first_entry"] for each in found["intervals"][-2:]] == [MAX_BUNDLES - 1, MAX_BUNDLES + 1]


def test_the_index_follows_a_version_from_its_run_to_its_endpoint() -> None:
    found = canonical.loads(files(MadeUp(rounds=2))["index.json"])["versions"]
    assert [each["version"] for each in found["list"]] == ["northbank/credit@1", "northbank/credit@2"]
    assert found["list"][1] == {
        "version": "northbank/credit@2",
        "model": found["list"][1]["model"],
        "runs": ["northbank/credit"],
        "checks": 1,
        "approvals": 1,
        "promotions": ["prod"],
        "deployments": 2,
    }


def test_the_index_is_small_whatever_the_log() -> None:
    small, large = (len(files(MadeUp("n" * 5000, rounds=rounds))["index.json"]) for rounds in (100, 300))
    assert large < 1.1 * small
    assert large < 600_000


def test_a_record_of_a_wrong_form_stops_nothing() -> None:
    made = MadeUp()
    for kind in (
        "decision",
        "attempt",
        "attestation",
        "traffic",
        "approval",
        "operation",
        "break-glass",
        "hold",
        "policy",
    ):
        for wrong in (7, [], {}, None, "x", {"id": 7}):
            names = (
                "principal",
                "action",
                "resource",
                "operation",
                "reasons",
                "observed",
                "cause",
                "error",
                "digest",
                "bundle",
            )
            made.add(kind, dict.fromkeys((*names, "event", "kind", "changed", "decision", "endpoint"), wrong))
    found = files(made)
    assert len(rows(found["entries.csv"])) == len(made.seen)


def test_the_same_contents_give_the_same_bytes() -> None:
    assert files(MadeUp()) == files(MadeUp())


def test_what_cannot_be_seen_is_shown() -> None:
    assert visible("a\u202eb\x00\n\u200b\u3164\ud800") == "a\\u{202E}b\\u{0000}\\u{000A}\\u{200B}\\u{3164}\\u{D800}"
    assert visible("\u00a0\u2003") == "\\u{00A0}\\u{2003}"
    assert visible("Zürich 東京 naïve") == "Zürich 東京 naïve"
    assert visible("e" + "\u0301" * 4) == "e" + "\u0301" * 3 + "\\u{0301}"


def test_what_is_long_is_cut() -> None:
    assert cut("abc", 3) == "abc"
    assert cut("abcd", 3) == "ab…"
    assert fitting("東京東京", 5) == "東京…"
    assert visible("x" * 1000, 10) == "x" * 9 + "…"


def test_a_time_that_has_no_form_is_its_milliseconds() -> None:
    assert moment(0) == "1970-01-01T00:00:00.000Z"
    assert moment(2**53) == f"{2**53} ms"


def test_buckets_widen_as_time_goes_on() -> None:
    buckets = Buckets(most=10)
    for second in range(0, 100_000, 50):
        buckets.add(BEGAN_MS + second * 1000, "allow")
    found = buckets.each()
    assert len(found) <= 10
    assert sum(counts["allow"] for _, counts in found) == 2000
    widest = Buckets(most=3)
    for year in range(0, 200, 10):
        widest.add(year * 366 * 86_400_000, "deny")
    assert len(widest.each()) == 3


def test_counting_has_bounds_and_says_what_it_leaves_out() -> None:
    tally = Tally()
    for number in range(MAX_NAMES + 10):
        tally.add(f"n{number}", "allow")
    tally.add("n7", "deny")
    shown, names, entries = tally.top(2)
    assert [(each.name, each.total) for each in shown] == [("n7", 2), ("n0", 1)]
    assert (names, entries) == (MAX_NAMES - 2, MAX_NAMES - 2 + 10)
    kept: Kept[int] = Kept(3)
    for number in itertools.islice(itertools.count(), 5):
        kept.add(number)
    assert (list(kept), kept.more) == ([2, 3, 4], 2)
