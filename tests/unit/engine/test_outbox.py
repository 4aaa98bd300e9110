"""Messages are claimed by one, tried a bounded number of times with growing pauses, and forgotten when they are old."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from databases import Database
from licet_adapters.errors import Unavailable
from licet_adapters.ports import Notice, NoticeOutcome
from licet_engine.courier import Courier
from licet_engine.domain.errors import InvalidInput
from licet_engine.domain.refs import now_ms
from licet_engine.lifecycle import outbox as outbox_module
from licet_engine.lifecycle.deed import Door
from licet_engine.lifecycle.outbox import MAX_WAITING, Mailing, Outbox, message_rows
from licet_engine.lifecycle.verbs import Event
from licet_engine.store import db, tables

T = {"tenant_id": "northbank"}
FAILED = {
    "delivered": False,
    "status": 500,
    "reason": "answered 500",
    "is_final": False,
    "retry_after_s": 0,
    "took_ms": 1,
}
TAKEN = FAILED | {"delivered": True, "status": 200, "reason": "taken"}


def hook(name: str, tenant: str = "northbank", **changes: Any) -> tables.Webhook:
    usual = {"tenant_id": tenant, "id": name, "name": name, "url": "https://x", "secret": name, "created_by": "ana"}
    return tables.Webhook(**usual | {"created_at_ms": 1} | changes)


@pytest.fixture
def engine(prepared: Database) -> Iterator[Engine]:
    made = prepared.open()
    with db.tenant_session(made, "northbank", write=True) as session:
        session.add(tables.Tenant(**T, region="us", created_at_ms=1))
        session.flush()
        for name in ("a", "b"):
            session.add(hook(f"wh-{name}"))
    yield made
    made.dispose()


def put(engine: Engine, *names: str, webhook: str = "wh-a", tenant: str = "northbank", next_at_ms: int = 1) -> None:
    with db.tenant_session(engine, tenant, write=True) as session:
        for name in names:
            row = tables.WebhookMessage(
                tenant_id=tenant,
                id=name,
                webhook=webhook,
                event="webhook.test",
                body="{}",
                created_at_ms=now_ms(),
                queued_at_ms=now_ms(),
                next_at_ms=next_at_ms,
            )
            session.add(row)


def row(engine: Engine, name: str) -> tables.WebhookMessage:
    with db.tenant_session(engine, "northbank") as session:
        found = session.get(tables.WebhookMessage, ("northbank", name))
    assert found is not None
    return found


def rested(engine: Engine, name: str = "wh-a") -> None:
    """The time for which a webhook is left alone is over."""
    with db.tenant_session(engine, "northbank", write=True) as session:
        found = session.get(tables.Webhook, ("northbank", name))
        assert found is not None
        found.rest_until_ms = 0
        session.add(found)


def change(engine: Engine, name: str, **values: Any) -> None:
    with db.tenant_session(engine, "northbank", write=True) as session:
        found = session.get(tables.WebhookMessage, ("northbank", name))
        for key, value in values.items():
            setattr(found, key, value)
        session.add(found)


@pytest.fixture
def outbox(engine: Engine) -> Outbox:
    return Outbox(engine, most_tries=3, first_pause_s=2.0, history_s=60)


def test_events_become_messages_for_those_who_want_them() -> None:
    hooks = Mailing([hook("wh-all"), hook("wh-some", events=["operation.failed"])])
    made = message_rows("northbank", hooks, [Event("approval.given", {"version": "northbank/m@1"})], 1_000, "d1")
    (insert,) = made
    (message,) = insert.rows
    assert message["webhook"] == "wh-all"
    assert json.loads(message["body"]) == {
        "type": "approval.given",
        "timestamp": "1970-01-01T00:00:01.000Z",
        "data": {"tenant": "northbank", "version": "northbank/m@1", "decision": "northbank/d1"},
    }
    both = message_rows("northbank", hooks, [Event("operation.failed", {})], 1, "")[0].rows
    assert len({m["id"] for m in both}) == len(both) == 2
    assert [
        m["webhook"]
        for m in message_rows("northbank", hooks, [Event("webhook.test", {}, webhook="wh-some")], 1, "")[0].rows
    ] == ["wh-some"]
    assert message_rows("northbank", Mailing(), [Event("webhook.test", {})], 1, "") == []
    with pytest.raises(InvalidInput, match="no event"):
        message_rows("northbank", hooks, [Event("approval.perhaps", {})], 1, "")


def test_a_message_is_claimed_by_one_of_many(engine: Engine, outbox: Outbox) -> None:
    for number in range(8):
        put(engine, f"m{number}", webhook="wh-a" if number % 2 else "wh-b")
    claimed: list[str] = []

    def claim() -> None:
        claimed.extend(m["message"] for m in Outbox(engine, most_tries=3, first_pause_s=2.0, history_s=60).claim(8))

    threads = [threading.Thread(target=claim) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == len(set(claimed))
    assert claimed
    assert outbox.claim(8) == []


def test_at_most_two_messages_of_a_webhook_are_on_their_way(engine: Engine, outbox: Outbox) -> None:
    put(engine, "a1", "a2", "a3")
    put(engine, "b1", webhook="wh-b")
    assert {m["message"] for m in outbox.claim(8)} == {"a1", "a2", "b1"}
    assert outbox.claim(8) == []
    outbox.tried("northbank", "a1", 1, TAKEN)
    assert [m["message"] for m in outbox.claim(8)] == ["a3"]


def test_a_claim_ends_by_itself_and_what_is_told_late_changes_nothing(engine: Engine, outbox: Outbox) -> None:
    put(engine, "m")
    assert [m["number"] for m in outbox.claim(1)] == [1]
    change(engine, "m", claimed_until_ms=now_ms() - 1)
    assert [m["number"] for m in outbox.claim(1)] == [2]
    assert outbox.tried("northbank", "m", 1, FAILED)["state"] == "pending"
    assert row(engine, "m").claimed_until_ms > now_ms()
    assert outbox.tried("northbank", "m", 2, TAKEN)["state"] == "delivered"
    assert outbox.tried("northbank", "m", 2, FAILED)["state"] == "delivered"


def test_pauses_grow_and_tries_end(engine: Engine, outbox: Outbox) -> None:
    put(engine, "m")
    for number, pause_s in ((1, 2.0), (2, 10.0)):
        (told,) = outbox.claim(1)
        assert told["number"] == number
        before = now_ms()
        outbox.tried("northbank", "m", number, FAILED)
        assert before + pause_s * 1000 <= row(engine, "m").next_at_ms <= now_ms() + pause_s * 1200
        rested(engine)
        assert outbox.claim(1) == []
        change(engine, "m", next_at_ms=1)
    outbox.claim(1)
    assert outbox.tried("northbank", "m", 3, FAILED)["state"] == "failed"
    assert outbox.claim(1) == []


def test_a_receiver_may_ask_to_be_left_alone_but_not_for_ever(engine: Engine, outbox: Outbox) -> None:
    put(engine, "m", "n")
    outbox.claim(2)
    outbox.tried("northbank", "m", 1, FAILED | {"retry_after_s": 600})
    outbox.tried("northbank", "n", 1, FAILED | {"retry_after_s": 86_400})
    assert 590_000 < row(engine, "m").next_at_ms - now_ms() <= 720_000
    assert row(engine, "n").next_at_ms - now_ms() <= 1.2 * 6 * 3_600_000
    put(engine, "gone")
    rested(engine)
    outbox.claim(1)
    assert outbox.tried("northbank", "gone", 1, FAILED | {"is_final": True})["state"] == "failed"


def test_a_removed_webhook_is_told_nothing_and_a_suspended_tenant_waits(engine: Engine, outbox: Outbox) -> None:
    put(engine, "a1")
    put(engine, "b1", webhook="wh-b")
    with db.tenant_session(engine, "northbank", write=True) as session:
        gone = session.get(tables.Webhook, ("northbank", "wh-a"))
        tenant = session.get(tables.Tenant, "northbank") or session.get(tables.Tenant, ("northbank",))
        assert gone is not None
        assert tenant is not None
        gone.removed_at_ms, tenant.suspended = 5, True
        session.add(gone)
        session.add(tenant)
    assert outbox.claim(8) == []
    assert (row(engine, "a1").state, row(engine, "b1").state) == ("dropped", "pending")


def test_what_ended_long_ago_is_forgotten_with_its_tries(engine: Engine, outbox: Outbox) -> None:
    put(engine, "old", "new")
    outbox.claim(2)
    outbox.tried("northbank", "old", 1, TAKEN)
    outbox.tried("northbank", "new", 1, TAKEN)
    change(engine, "old", ended_at_ms=now_ms() - 61_000)
    outbox.forget_old()
    with db.tenant_session(engine, "northbank") as session:
        assert session.get(tables.WebhookMessage, ("northbank", "old")) is None
        assert session.get(tables.WebhookTry, ("northbank", "old", 1)) is None
        assert session.get(tables.WebhookTry, ("northbank", "new", 1)) is not None


def test_what_came_of_tries_is_counted(engine: Engine) -> None:
    counted: list[bool] = []
    outbox = Outbox(engine, most_tries=3, first_pause_s=2.0, history_s=60, tried=counted.append)
    put(engine, "m")
    outbox.claim(1)
    outbox.tried("northbank", "m", 1, FAILED)
    outbox.tried("northbank", "m", 1, FAILED)
    assert counted == [False]


def test_pauses_are_spread_so_that_what_failed_together_does_not_come_again_together(outbox: Outbox) -> None:
    names = [f"m{number}" for number in range(20)]
    pauses = {outbox._pause_ms(name, 2, FAILED, 3600.0) for name in names}
    assert len(pauses) > 10
    assert all(10_000 <= pause <= 12_000 for pause in pauses)
    assert outbox._pause_ms("m", 10_000, FAILED, 60.0) <= 72_000


def test_a_webhook_that_fails_is_left_alone_longer_each_time_and_then_tried_one_by_one(
    engine: Engine, outbox: Outbox
) -> None:
    put(engine, *(f"m{number}" for number in range(6)))
    for expected_s in (2.0, 10.0, 50.0):
        claimed = outbox.claim(8)
        for message in claimed[:1]:
            outbox.tried("northbank", message["message"], message["number"], FAILED)
        with db.tenant_session(engine, "northbank") as session:
            rest_ms = (session.get(tables.Webhook, ("northbank", "wh-a")) or hook("x")).rest_until_ms - now_ms()
        assert expected_s * 900 < rest_ms <= expected_s * 1200
        assert outbox.claim(8) == []
        for message in claimed:
            change(engine, message["message"], claimed_until_ms=0)
        rested(engine)
    (last,) = outbox.claim(8)
    outbox.tried("northbank", last["message"], last["number"], TAKEN)
    assert len(outbox.claim(8)) == 2


def test_one_tenants_receivers_that_hang_hold_up_no_other_tenant(engine: Engine, outbox: Outbox) -> None:
    with db.tenant_session(engine, "northbank", write=True) as session:
        for number in range(14):
            session.add(hook(f"wh-{number}"))
    with db.tenant_session(engine, "lakeside", write=True) as session:
        session.add(tables.Tenant(tenant_id="lakeside", region="us", created_at_ms=1))
        session.flush()
        session.add(hook("wh-l", "lakeside"))
    for number in range(14):
        put(engine, *(f"m{number}-{count}" for count in range(30)), webhook=f"wh-{number}")
    put(engine, "ours", webhook="wh-l", tenant="lakeside", next_at_ms=2)
    # Nothing of what is claimed ever comes back, as with receivers that hang.
    claimed = outbox.claim(8)
    assert [m["message"] for m in claimed].index("ours") <= 1
    assert sum(m["tenant"] == "northbank" for m in claimed) == 4
    put(engine, "later", webhook="wh-l", tenant="lakeside", next_at_ms=2)
    assert [m["message"] for m in outbox.claim(8)] == ["later"]


def test_what_finds_no_room_is_written_as_failed_and_other_webhooks_have_theirs() -> None:
    mailing = Mailing([hook("wh-a"), hook("wh-b")], {"wh-a": MAX_WAITING - 1})
    (insert,) = message_rows("northbank", mailing, [Event("webhook.test", {})] * 2, 7, "")
    assert [(m["webhook"], m["state"], m["ended_at_ms"]) for m in insert.rows] == [
        ("wh-a", "pending", None),
        ("wh-b", "pending", None),
        ("wh-a", "failed", 7),
        ("wh-b", "pending", None),
    ]


def test_what_waited_too_long_has_failed_and_too_much_history_goes(
    engine: Engine, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(engine, "late", "young", "first", "second")
    change(engine, "late", queued_at_ms=now_ms() - 3 * 86_400_000 - 1)
    for number, name in enumerate(("first", "second")):
        change(engine, name, state="delivered", ended_at_ms=now_ms() - 20 + number)
    monkeypatch.setattr(outbox_module, "MAX_HISTORY", 1)
    outbox.forget_old()
    assert (row(engine, "late").state, row(engine, "young").state) == ("failed", "pending")
    with db.tenant_session(engine, "northbank") as session:
        kept = {name for name in ("first", "second") if session.get(tables.WebhookMessage, ("northbank", name))}
    assert kept == {"second"}


def test_a_message_that_is_queued_again_has_all_its_tries_again(engine: Engine, outbox: Outbox) -> None:
    put(engine, "m")
    change(engine, "m", tries=3, tries_before=3)
    for number in (4, 5):
        rested(engine)
        change(engine, "m", next_at_ms=1)
        assert [m["number"] for m in outbox.claim(1)] == [number]
        assert outbox.tried("northbank", "m", number, FAILED)["state"] == "pending"
    rested(engine)
    change(engine, "m", next_at_ms=1)
    outbox.claim(1)
    assert outbox.tried("northbank", "m", 6, FAILED)["state"] == "failed"


def test_a_secret_before_signs_for_a_while_and_no_longer(engine: Engine, outbox: Outbox) -> None:
    put(engine, "m", "n")
    for until_ms, expected in ((now_ms() + 60_000, ["new", "old"]), (now_ms() - 1, ["new"])):
        with db.tenant_session(engine, "northbank", write=True) as session:
            found = session.get(tables.Webhook, ("northbank", "wh-a"))
            assert found is not None
            found.secret, found.secret_before, found.secret_before_until_ms = "new", "old", until_ms
            session.add(found)
        (told,) = outbox.claim(1)
        assert told["secrets"] == expected


class OutboxDoor(Door):
    """The internal door without a socket in between."""

    def __init__(self, outbox: Outbox) -> None:
        super().__init__(Path("unused"))
        self._handlers = outbox.handlers()
        self.has_heard = threading.Event()

    def call(self, method: str, **params: Any) -> Any:
        answer = self._handlers[method](params)
        if method == "message_tried":
            self.has_heard.set()
        return answer


class Sender:
    """A notifier that sends nothing: it answers, or fails, as it is told."""

    def __init__(self, outcome: NoticeOutcome | Exception) -> None:
        self._outcome = outcome

    def send(self, notice: Notice) -> NoticeOutcome:
        assert notice.secrets == ["wh-a"]
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


@pytest.mark.parametrize(
    ("outcome", "state", "reason"),
    [
        (NoticeOutcome(delivered=True, status=204, reason="taken"), "delivered", "taken"),
        (Unavailable("the signer cannot be had"), "pending", "the signer cannot be had"),
        # Of a fault that nobody foresaw nothing is told to who reads the history: it may quote what was sent.
        (ValueError("whsec_x"), "pending", "the sender failed; the worker's log says how"),
    ],
)
def test_every_try_counts_however_it_ends(
    engine: Engine, outcome: NoticeOutcome | Exception, state: str, reason: str
) -> None:
    put(engine, "m")
    door = OutboxDoor(Outbox(engine, most_tries=3, first_pause_s=60, history_s=60))
    assert Courier(door, Sender(outcome)).send_what_waits() == 1
    assert door.has_heard.wait(10)
    with db.tenant_session(engine, "northbank") as session:
        tried = session.get(tables.WebhookTry, ("northbank", "m", 1))
    assert tried is not None
    assert (row(engine, "m").state, tried.reason) == (state, reason)
    if state == "pending":
        assert row(engine, "m").next_at_ms > now_ms() + 50_000
