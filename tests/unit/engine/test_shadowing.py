"""A candidate beside the policies in force: asked after the answer, within bounds, and every failure of its own is a no."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlmodel import col, select

sys.path.append(str(Path(__file__).parent))
from decide_world import NOW_MS, PERMIT, bundle, compiled, facts, policy, promote  # The line above finds it.

from databases import Database, writers_held
from licet_attestations import canonical
from licet_engine.decide import decide
from licet_engine.lifecycle import shadowing
from licet_engine.lifecycle.shadowing import KEPT_FLIPS, Judged, Shadower
from licet_engine.lifecycle.tenants import Shadow
from licet_engine.store import tables
from licet_engine.store.db import open_engine, tenant_session

ACTIVE = compiled(PERMIT)
FORBID = policy("team.no", 'forbid (principal, action == Action::"model.promote", resource is ModelVersion);')
ERRS = policy(
    "team.errs",
    'forbid (principal, action == Action::"model.promote", resource is ModelVersion)'
    " when { context.now_ms * 9223372036854775807 > 0 };",
)


@pytest.fixture
def engine(prepared: Database) -> Iterator[Engine]:
    engine = prepared.open()
    for tenant in ("northbank", "lakeside"):
        with tenant_session(engine, tenant, write=True) as session:
            session.add(tables.Tenant(tenant_id=tenant, region="us", created_at_ms=1))
    yield engine
    engine.dispose()


def publish(engine: Engine, tenant: str, *policies: dict[str, str], body: bytes | None = None) -> Shadow:
    """Have a tenant's candidate stand where it is read from."""
    data = canonical.dumps(bundle(*policies)) if body is None else body
    digest_hex = hashlib.sha256(data).hexdigest()
    row = tables.PolicyBundle(
        tenant_id=tenant, digest_hex=digest_hex, author="sam", state="published", body=data, created_at_ms=1
    )
    with tenant_session(engine, tenant, write=True) as session:
        session.add(row)
    return Shadow(f"s-{digest_hex[:8]}", digest_hex)


def judged(shadow: Shadow, number: int = 0, tenant: str = "northbank", **context: Any) -> Judged:
    request, known = promote(**context), facts()
    decision = decide(ACTIVE, request, known)
    return Judged(tenant, shadow, f"{number:032x}", NOW_MS + number, request, known, decision)


def counts(engine: Engine, tenant: str = "northbank", kind: str = "total") -> dict[str, dict[str, int]]:
    with tenant_session(engine, tenant) as session:
        rows = session.exec(select(tables.PolicyShadowCount).where(tables.PolicyShadowCount.kind == kind)).all()
    names = ("same", "other_reasons", "to_deny", "to_allow", "dropped")
    return {row.name: {name: getattr(row, name) for name in names if getattr(row, name)} for row in rows}


def flips(engine: Engine, tenant: str = "northbank") -> list[tables.PolicyFlip]:
    with tenant_session(engine, tenant) as session:
        return list(session.exec(select(tables.PolicyFlip).order_by(col(tables.PolicyFlip.at_ms).desc())).all())


def wait_for(what: Callable[[], Any], within_s: float = 10.0) -> Any:
    until_s = time.monotonic() + within_s
    pause = threading.Event()
    while not (found := what()):
        assert time.monotonic() < until_s
        pause.wait(0.02)
    return found


def run(engine: Engine, *handed: Judged) -> None:
    """Put decisions to their candidates, and write what was found."""
    shadower = Shadower(engine, write_every_s=0.05)
    shadower.start()
    for each in handed:
        shadower.offer(each)
    wait_for(lambda: not shadower.waiting())
    shadower.close()


def test_a_stricter_candidate_flips_to_deny_and_the_newest_flips_are_told_whole(engine: Engine) -> None:
    shadow = publish(engine, "northbank", PERMIT, FORBID)
    run(engine, *(judged(shadow, number) for number in range(3)))
    assert counts(engine) == {"": {"to_deny": 3}}
    assert counts(engine, kind="action") == {"model.promote": {"to_deny": 3}}
    assert counts(engine, kind="policy") == {"team.no": {"to_deny": 3}}
    newest = flips(engine)[0]
    assert (newest.decision, newest.at_ms) == (f"{2:032x}", NOW_MS + 2)
    assert newest.principal == "northbank/ana"
    assert newest.action == "model.promote"
    assert newest.resource == 'ModelVersion::"northbank/credit-risk@1"'
    assert newest.before == {"decision": "allow", "reasons": ["p.all"], "errors": []}
    assert newest.after == {"decision": "deny", "reasons": ["team.no"], "errors": []}


def test_what_nothing_permits_any_more_is_told_so_and_what_is_permitted_otherwise_is_no_flip(engine: Engine) -> None:
    run(engine, judged(publish(engine, "northbank")))
    assert counts(engine, kind="policy") == {"(no permit)": {"to_deny": 1}}
    other = policy("p.other", PERMIT["text"].partition("  ")[2])
    run(engine, judged(publish(engine, "lakeside", other), tenant="lakeside"))
    assert counts(engine, "lakeside") == {"": {"other_reasons": 1}}
    assert flips(engine, "lakeside") == []


def test_a_looser_candidate_flips_to_allow_and_an_equal_one_not_at_all(engine: Engine) -> None:
    loose, same = publish(engine, "northbank", PERMIT), publish(engine, "lakeside", PERMIT, FORBID)
    request, known = promote(), facts()
    denied = decide(compiled(PERMIT, FORBID), request, known)
    run(
        engine,
        Judged("northbank", loose, "a" * 32, NOW_MS, request, known, denied),
        Judged("lakeside", same, "b" * 32, NOW_MS, request, known, denied),
    )
    assert counts(engine) == {"": {"to_allow": 1}}
    assert counts(engine, kind="policy") == {"p.all": {"to_allow": 1}}
    assert counts(engine, "lakeside") == {"": {"same": 1}}


def test_whatever_is_wrong_with_a_candidate_is_a_no_of_its_own(engine: Engine) -> None:
    run(engine, judged(publish(engine, "northbank", PERMIT, ERRS)))
    assert counts(engine, kind="policy") == {"team.errs": {"to_deny": 1}}
    assert flips(engine)[0].after == {"decision": "deny", "reasons": [], "errors": ["team.errs"]}
    broken = publish(engine, "lakeside", body=b'{"v":1}')
    run(engine, judged(broken, tenant="lakeside"), judged(Shadow("s-none", "f" * 64), 1, tenant="lakeside"))
    with tenant_session(engine, "lakeside") as session:
        rows = session.exec(select(tables.PolicyFlip)).all()
    assert {(row.shadow, *row.after["errors"]) for row in rows} == {(broken.id, "engine"), ("s-none", "engine")}


def test_a_context_that_the_candidate_does_not_know_is_a_no_and_not_an_end(engine: Engine) -> None:
    # As an older schema, under which what is asked now was no request yet.
    other = bundle(PERMIT)
    del other["schema"][""]["actions"]["model.promote"]
    other["policies"] = []
    shadow = publish(engine, "northbank", body=canonical.dumps(other))
    run(engine, judged(shadow))
    assert flips(engine)[0].after == {"decision": "deny", "reasons": [], "errors": ["request"]}


def test_several_processes_add_up_and_the_newest_flips_alone_are_kept(engine: Engine) -> None:
    shadow = publish(engine, "northbank", PERMIT, FORBID)
    both = [Shadower(engine, write_every_s=0.02) for _ in range(2)]
    total = KEPT_FLIPS + 100
    for each in both:
        each.start()
    for number in range(total):
        both[number % 2].offer(judged(shadow, number))
        if number % 100 == 99:  # So that none finds its line full.
            wait_for(lambda: not any(each.waiting() for each in both))
    wait_for(lambda: not any(each.waiting() for each in both))
    for each in both:
        each.close()
    assert counts(engine) == {"": {"to_deny": total}}
    kept = [row.at_ms - NOW_MS for row in flips(engine)]
    assert kept == list(range(total - 1, total - 1 - KEPT_FLIPS, -1))


def test_a_tenant_that_asks_too_fast_fills_its_own_line_and_nobody_elses(engine: Engine) -> None:
    noisy, quiet = publish(engine, "northbank", PERMIT), publish(engine, "lakeside", PERMIT)
    shadower = Shadower(engine)  # Not started yet, so that what waits is known.
    for number in range(shadowing._MAX_LINE + 50):
        shadower.offer(judged(noisy, number))
    shadower.offer(judged(quiet, tenant="lakeside"))
    assert shadower.waiting() == shadowing._MAX_LINE + 1
    # The quiet one comes after one of the noisy one's, not after all of them.
    taken = [shadower._take(0.0) for _ in range(3)]
    assert [each.tenant for each in taken if each is not None] == ["northbank", "lakeside", "northbank"]
    shadower.start()
    wait_for(lambda: not shadower.waiting())
    shadower.close()
    assert counts(engine) == {"": {"same": shadowing._MAX_LINE - 2, "dropped": 50}}
    assert counts(engine, "lakeside") == {}


def test_tenants_take_turns_and_the_longest_line_gives_way_when_all_are_full(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadowing, "_MAX_WAITING", 6)
    shadow = Shadow("s", "0" * 64)
    shadower = Shadower(engine)
    for number in range(6):
        shadower.offer(judged(shadow, number))
    for number in range(5):
        shadower.offer(judged(shadow, 10 + number, tenant="lakeside"))
    taken = [shadower._take(0.0) for _ in range(6)]
    assert [each.tenant for each in taken if each is not None] == ["northbank", "lakeside"] * 3
    assert [int(each.id, 16) for each in taken if each is not None] == [0, 10, 1, 11, 2, 12]
    assert shadower._take(0.0) is None


def test_while_the_database_is_held_nobody_waits_and_nothing_that_was_counted_is_lost(engine: Engine) -> None:
    shadow = publish(engine, "northbank", PERMIT, FORBID)
    shadower = Shadower(engine, write_every_s=0.02)
    shadower.start()
    shadower.offer(judged(shadow))
    wait_for(lambda: flips(engine))
    handed = [judged(shadow, number) for number in range(1, 101)]
    with writers_held(engine, "northbank"):
        began_s = time.perf_counter()
        for each in handed:
            shadower.offer(each)
        took_s = time.perf_counter() - began_s
    wait_for(lambda: not shadower.waiting())
    shadower.close()
    assert took_s < 0.5, "to hand over does not wait for the database"
    assert counts(engine) == {"": {"to_deny": 101}}


def test_a_candidate_that_cannot_be_read_now_is_no_judgement_of_it(tmp_path: Path) -> None:
    engine = open_engine(tmp_path / "empty.db")  # Without a table: whatever is asked of it fails.
    shadower = Shadower(engine, write_every_s=0.02)
    shadower.start()
    shadower.offer(judged(Shadow("s", "0" * 64)))
    wait_for(lambda: shadower._tallies)
    shadower.close()
    # Nor could that be written, and so it is still there to be.
    (tally,) = shadower._tallies.values()
    assert tally.counts["total", ""] == {"same": 0, "other_reasons": 0, "to_deny": 0, "to_allow": 0, "dropped": 1}
    engine.dispose()


def test_what_still_waits_at_the_end_is_counted_and_nothing_is_taken_after_it(engine: Engine) -> None:
    shadow = publish(engine, "northbank", PERMIT)
    shadower = Shadower(engine)
    shadower.offer(judged(shadow))
    shadower.close()
    shadower.offer(judged(shadow, 1))
    (tally,) = shadower._tallies.values()
    assert tally.counts["total", ""]["dropped"] == 2


def test_the_thread_works_a_quarter_of_the_time_at_most(engine: Engine) -> None:
    shadow = publish(engine, "northbank", PERMIT, FORBID)
    shadower = Shadower(engine, write_every_s=60.0)
    number, compared, busy_s = 0, 0, 0.0
    handed = [judged(shadow, number) for number in range(200)]
    compare = shadower._compare

    def timed(each: Judged) -> None:
        nonlocal busy_s, compared
        at_s = time.thread_time()
        compare(each)
        busy_s += time.thread_time() - at_s
        compared += 1

    shadower._compare = timed  # type: ignore[method-assign]  # It is measured, not replaced.
    shadower.start()
    began_s = time.monotonic()
    # On a busy machine it takes a while until the thread has its turn.
    while time.monotonic() < began_s + 1.0 or (compared < 10 and time.monotonic() < began_s + 30.0):
        shadower.offer(handed[number % len(handed)])
        number += 1
        if shadower.waiting() > 100:
            time.sleep(0.001)
    share = busy_s / (time.monotonic() - began_s)
    shadower.close()
    assert 0 < share < 0.3, share
