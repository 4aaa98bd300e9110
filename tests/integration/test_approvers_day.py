"""The approvers' day, with all processes and a real receiver: what waits, verdicts in another's place, ends, and who is told."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func
from sqlmodel import col, select
from standardwebhooks.webhooks import Webhook

from licet_engine.client import Answer, LicetClientError, StateConflict
from licet_engine.commands.render import COLUMNS
from licet_engine.domain.refs import now_ms
from licet_engine.lifecycle.inbox import MOST_LOOKED_AT
from licet_engine.store import tables
from licet_engine.store.db import tenant_session

sys.path.append(str(Path(__file__).parent))
from service_world import FAR_MS, Installation, poll, table  # The line above finds it.
from webhook_receiver import Receiver

from postgres_server import PostgresServer

pytestmark = pytest.mark.slow

TENANT = "northbank"


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    # Below a folder that everybody may look into: started as root, the worker is another user.
    folder = tempfile.TemporaryDirectory(prefix="lc-tickets-")
    tickets = Path(folder.name)
    tickets.chmod(0o755)
    (tickets / TENANT).mkdir(0o755)
    urls = ""
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        urls = str(server.write_urls(server.create(), tmp_path_factory.mktemp("database") / "urls"))
    world = Installation(
        database_urls=urls,
        checkpoint_interval_s=0.2,
        webhook_first_pause_s=0.2,
        outbound_timeout_s=2.0,
        webhook_tries=4,
        outbound_networks="127.0.0.0/8",
        adapters="local-objects,local-registry,local-training,local-checks,local-serving,standard-webhooks,file-tickets",
        tickets="file-tickets",
        tickets_folder=str(tickets),
    )
    try:
        world.start()
        world.people(TENANT, "us")
        world.person(f"{TENANT}/ravi", roles=["model-risk"])
        yield world
    finally:
        world.stop()
        folder.cleanup()


@pytest.fixture(scope="module")
def version(world: Installation) -> str:
    """A version that ana trained and registered."""
    assert world.register(f"{TENANT}/ana", "loans", table()).state == "done"
    ana = world.client(f"{TENANT}/ana")
    spec = {"epochs": 2, "seed": 1}
    body = {"dataset": f"{TENANT}/loans", "environment": "us-east", "use": "credit-risk", "spec": spec}
    run = world.done(ana, ana.act("training.launch", f"{TENANT}/run-1", body))
    assert run.state == "done", run.error
    made = world.done(ana, ana.act("model.register", f"{TENANT}/risk", {"run": f"{TENANT}/run-1", "tier": "high"}))
    assert made.state == "done", made.error
    return f"{TENANT}/risk@1"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def hook(world: Installation, receiver: Receiver, request: pytest.FixtureRequest) -> Iterator[Webhook]:
    """The receiver's own verification, with the secret that it was told once."""
    name = f"{TENANT}/h{abs(hash(request.node.name)) % 10**9}"
    admin = world.client(f"{TENANT}/admin")
    told = admin.webhook.create(name, receiver.url, unsafe_http=True).require().result
    receiver.name = name
    yield Webhook(told["secret"])
    admin.webhook.delete(name).require()
    # An address can hold what opens it: no more than its host is kept.
    with tenant_session(world.engine, TENANT) as session:
        (row,) = session.exec(select(tables.Webhook).where(tables.Webhook.name == name.partition("/")[2])).all()
    assert (row.url, row.removed_at_ms is None) == (receiver.url.removesuffix("in"), False)


def approve(world: Installation, who: str, version: str, track: str, **more: Any) -> Answer:
    """A verdict on the version as it stands now."""
    client = world.client(f"{TENANT}/{who}")
    binding = client.model.read(version).require().result["version"]["binding"]
    return client.model.approve(version, track, binding=binding, **more)


def deciding(answer: Answer) -> set[str]:
    return {policy.id for policy in answer.policies}


def inbox(world: Installation, who: str) -> list[dict[str, Any]]:
    rows, is_cut = world.client(f"{TENANT}/{who}").inbox(TENANT)
    assert not is_cut
    return rows


def test_a_request_waits_for_who_may_answer_it_and_for_nobody_else(world: Installation, version: str) -> None:
    ana = world.client(f"{TENANT}/ana")
    asked = ana.model.request(version, "model-risk", reason="please").require().result
    (row,) = inbox(world, "mei")
    assert (row["version"], row["track"], row["requested_by"], row["reason"]) == (
        version,
        "model-risk",
        "ana",
        "please",
    )
    assert row["binding"] == asked["binding"]
    assert set(COLUMNS["inbox"]) <= set(row)
    assert row["expires_at_ms"] == asked["expires_at_ms"] > row["at_ms"]
    assert (row["on_behalf_of"], row["changed_since_request"]) == (None, [])
    for other in ("ana", "ben", "cora", "sam", "ci"):
        assert inbox(world, other) == [], other
    # An author is shown nothing, whatever their roles.
    world.person(f"{TENANT}/ana", roles=["data-scientist", "model-risk"])
    assert inbox(world, "ana") == []
    world.person(f"{TENANT}/ana", roles=["data-scientist"])


def test_only_the_requester_withdraws_a_request(world: Installation, version: str) -> None:
    ana, ben = world.client(f"{TENANT}/ana"), world.client(f"{TENANT}/ben")
    ana.model.request(version, "compliance").require()
    assert len(inbox(world, "cora")) == 1
    assert not ben.model.withdraw_request(version, "compliance").allowed
    ana.model.withdraw_request(version, "compliance").require()
    assert inbox(world, "cora") == []


@pytest.fixture
def many(world: Installation, version: str) -> Iterator[Callable[[int, int], None]]:
    """Adds old open requests of a track that cora may not answer."""

    def add(first: int, end: int) -> None:
        row = {
            "tenant_id": TENANT,
            "model": version.partition("/")[2].partition("@")[0],
            "version": 1,
            "track": "legal",
            "binding": "",
            "requested_by": "ana",
            "expires_at_ms": FAR_MS,  # Nobody is reminded of them meanwhile.
        }
        with tenant_session(world.engine, TENANT, write=True) as session:
            session.add_all(
                tables.ApprovalRequest(**row, id=f"old-{number}", at_ms=1 + number // 1000)
                for number in range(first, end)
            )

    yield add
    with tenant_session(world.engine, TENANT, write=True) as session:
        session.execute(delete(tables.ApprovalRequest).where(col(tables.ApprovalRequest.id).startswith("old-")))


def test_who_may_answer_only_the_newest_of_many_requests_sees_it(
    world: Installation, version: str, many: Callable[[int, int], None]
) -> None:
    ana, cora = world.client(f"{TENANT}/ana"), world.client(f"{TENANT}/cora")
    with tenant_session(world.engine, TENANT) as session:
        is_open = tables.ApprovalRequest.state == "open"
        old = MOST_LOOKED_AT - 1 - session.exec(select(func.count()).where(is_open)).one()
    many(0, old)
    ana.model.request(version, "compliance").require()
    assert [row["track"] for row in inbox(world, "cora")] == ["compliance"]
    # Beyond the bound it is not seen, and that is said.
    many(old, old + 1)
    assert cora.inbox(TENANT) == ([], True)
    ana.model.withdraw_request(version, "compliance").require()
    assert cora.inbox(TENANT) == ([], False)


def test_who_withdraws_what_is_not_there_is_told_what_became_of_it(world: Installation, version: str) -> None:
    ana, ben, cora = (world.client(f"{TENANT}/{name}") for name in ("ana", "ben", "cora"))

    def refused(act: Callable[[], Answer], why: str) -> None:
        with pytest.raises(StateConflict, match=f"is open: {why}. See licet approval list {TENANT} --all"):
            act()

    refused(lambda: ben.model.withdraw_request(version, "legal"), "you made none")
    ana.model.request(version, "compliance").require()
    ana.model.withdraw_request(version, "compliance").require()
    refused(lambda: ana.model.withdraw_request(version, "compliance"), "you withdrew it already")
    refused(lambda: ben.model.withdraw_request(version, "compliance"), "you made none")
    ana.model.request(version, "compliance").require()
    with pytest.raises(StateConflict, match="stands: you gave none"):
        cora.model.withdraw_approval(version, "compliance")
    world.done(cora, approve(world, "cora", version, "compliance"))
    refused(lambda: ana.model.withdraw_request(version, "compliance"), "a verdict of the track has answered it")
    # Somebody else's is not taken back, nor is it told as missing.
    assert not ana.model.withdraw_approval(version, "compliance").allowed
    cora.model.withdraw_approval(version, "compliance").require()
    with pytest.raises(StateConflict, match="stands: it was withdrawn already"):
        cora.model.withdraw_approval(version, "compliance")
    with tenant_session(world.engine, TENANT, write=True) as session:
        session.add(
            tables.ApprovalRequest(
                tenant_id=TENANT,
                id="over",
                model="risk",
                version=1,
                track="legal",
                binding="",
                requested_by="ana",
                at_ms=1,
                expires_at_ms=2,
            )
        )
    refused(lambda: ana.model.withdraw_request(version, "legal"), "its time is over")


def test_who_stands_in_and_does_not_say_for_whom_is_told_to(world: Installation, version: str) -> None:
    ben, sam, admin = (world.client(f"{TENANT}/{name}") for name in ("ben", "sam", "admin"))
    admin.person.administer(f"{TENANT}/ben", roles=["data-scientist"], qualified=["security"]).require()
    sam.approval.delegate(f"{TENANT}/ben", "security", until_ms=int(time.time() * 1000) + 3_600_000).require()
    alone = ben.explain(approve(world, "ben", version, "security"))
    assert alone is not None
    (step,) = alone.path["steps"]
    assert (step["name"], alone.path["possible"], alone.is_approval_pending) == ("stand-in:sam", True, False)
    assert f"licet approval approve {version} --track security --binding" in step["describe"]
    assert step["describe"].endswith("--for sam")
    assert approve(world, "ben", version, "security", verdict="rejected", on_behalf_of="sam").allowed
    # Where it would not help it is not told: on another track, and to who is not qualified any more.
    other = ben.explain(approve(world, "ben", version, "legal"))
    assert other is not None
    assert other.path["possible"] is False
    admin.person.administer(f"{TENANT}/ben", roles=["data-scientist"]).require()
    lost = ben.explain(approve(world, "ben", version, "security"))
    assert lost is not None
    assert lost.path["possible"] is False
    sam.approval.revoke_delegation(f"{TENANT}/ben", "security").require()


def test_who_stands_in_approves_and_one_person_has_one_track(world: Installation, version: str) -> None:
    mei, cora, ben = (world.client(f"{TENANT}/{name}") for name in ("mei", "cora", "ben"))
    until_ms = int(time.time() * 1000) + 3_600_000
    # Standing in is for who is qualified, and an administrator says who is.
    unqualified = cora.approval.delegate(f"{TENANT}/ben", "compliance", until_ms=until_ms)
    assert deciding(unqualified) == {"guardrail.delegation.qualified"}
    admin = world.client(f"{TENANT}/admin")
    for name in ("ben", "ana"):
        admin.person.administer(
            f"{TENANT}/{name}", roles=["data-scientist"], qualified=["compliance", "model-risk"]
        ).require()
    # An author cannot be made to stand in to any effect; a service account not at all.
    cora.approval.delegate(f"{TENANT}/ben", "compliance", until_ms=until_ms).require()
    world.client(f"{TENANT}/ana").model.request(version, "compliance").require()
    assert [row["on_behalf_of"] for row in inbox(world, "ben")] == ["cora"]
    assert "guardrail.delegation.window" in deciding(
        cora.approval.delegate(f"{TENANT}/ben", "compliance", until_ms=until_ms + 31 * 86_400_000)
    )
    assert not ben.approval.delegate(f"{TENANT}/uma", "compliance", until_ms=until_ms).allowed
    cora.approval.delegate(f"{TENANT}/ana", "compliance", until_ms=until_ms).require()
    author = approve(world, "ana", version, "compliance", on_behalf_of="cora")
    assert deciding(author) == {"guardrail.separation-of-duties.author"}

    given = world.done(ben, approve(world, "ben", version, "compliance", on_behalf_of="cora"))
    assert given.state == "done"
    told = ben.model.read(version).require().result["version"]["approvals"]
    assert [(a["approver"], a["on_behalf_of"], a["current"]) for a in told] == [("ben", "cora", True)]
    # Cora is behind it, so she has no second track; nor has Ben.
    world.person(f"{TENANT}/cora", roles=["compliance", "model-risk"])
    assert deciding(approve(world, "cora", version, "model-risk")) == {"guardrail.approvals.one-track.compliance"}
    world.person(f"{TENANT}/cora", roles=["compliance"])
    mei.approval.delegate(f"{TENANT}/ben", "model-risk", until_ms=until_ms).require()
    assert deciding(approve(world, "ben", version, "model-risk", on_behalf_of="mei")) == {
        "guardrail.approvals.one-track.compliance"
    }
    assert not world.client(f"{TENANT}/mei").model.withdraw_approval(version, "compliance").allowed
    cora.model.withdraw_approval(version, "compliance", reason="on second thoughts").require()
    assert ben.model.read(version).require().result["version"]["approvals"] == []
    assert [row["state"] for row in ben.list(TENANT, "approvals") if row["id"] == given.decision] == ["withdrawn"]

    admin.person.administer(f"{TENANT}/ben", roles=["data-scientist"]).require()
    lost = approve(world, "ben", version, "compliance", on_behalf_of="cora")
    assert deciding(lost) == {"guardrail.delegation.qualified-still"}
    admin.person.administer(f"{TENANT}/ben", roles=["data-scientist"], qualified=["compliance"]).require()
    cora.approval.revoke_delegation(f"{TENANT}/ben", "compliance").require()
    after = approve(world, "ben", version, "compliance", on_behalf_of="cora")
    assert deciding(after) == {"guardrail.delegation.in-force"}
    # Who stands in hands nothing on, whatever they may do themselves.
    admin.person.administer(f"{TENANT}/mei", roles=["model-risk"], qualified=["model-risk"]).require()
    ravi = world.client(f"{TENANT}/ravi")
    ravi.approval.delegate(f"{TENANT}/mei", "model-risk", until_ms=until_ms).require()
    admin.person.administer(f"{TENANT}/ben", roles=["data-scientist"], qualified=["model-risk"]).require()
    chained = mei.approval.delegate(f"{TENANT}/ben", "model-risk", until_ms=until_ms)
    assert deciding(chained) == {"guardrail.delegation.again"}
    admin.approval.revoke_delegation(f"{TENANT}/mei", "model-risk", reviewer="ravi").require()
    events = [record.get("event") for leaf, record in world.entries(TENANT) if leaf.kind == "approval"]
    assert {"delegated", "delegation-revoked", "approval", "approval-withdrawn"} <= set(events)


def test_a_message_verifies_with_others_software_and_tells_what_was_decided(
    world: Installation, version: str, receiver: Receiver, hook: Webhook
) -> None:
    given = world.client(f"{TENANT}/mei").model.approve(version, "model-risk", verdict="rejected", reason="too young")
    given.require()
    poll("the verdict to be told", lambda: receiver.of("approval.rejected"))
    (headers, body), *_ = receiver.of("approval.rejected")
    raw = next(b for _, h, b in receiver.got if h["webhook-id"] == headers["webhook-id"])
    assert hook.verify(raw, headers) == body
    with pytest.raises(Exception, match=r"(?i)signature"):
        hook.verify(raw + b" ", headers)
    assert body["data"]["version"] == version
    assert body["data"]["approver"] == f"{TENANT}/mei"
    assert body["data"]["reason"] == "too young"
    assert body["data"]["decision"] == f"{TENANT}/{given.decision_id}"


def test_a_message_is_tried_again_under_its_identifier_and_redirects_are_not_followed(
    world: Installation, receiver: Receiver, hook: Webhook
) -> None:
    receiver.answer = lambda number: {1: 500, 2: 302}.get(number, 200)
    message = world.client(f"{TENANT}/admin").webhook.test(receiver.name).require().result["message"]

    def ended() -> Any:
        rows = world.client(f"{TENANT}/uma").list(TENANT, "messages")
        return next((r for r in rows if r["id"] == message and r["state"] == "delivered"), None)

    row = poll("the third try", ended)
    assert [t["status"] for t in row["history"]] == [500, 302, 200]
    assert {h["webhook-id"] for _, h, _ in receiver.got} == {message}
    assert len({b for _, _, b in receiver.got}) == 1
    for _, headers, body in receiver.got:
        hook.verify(body, headers)


def test_a_receiver_that_hangs_is_given_up_on_and_holds_up_nothing(
    world: Installation, receiver: Receiver, hook: Webhook
) -> None:
    del hook
    receiver.hang.clear()
    admin = world.client(f"{TENANT}/admin")
    other = Receiver()
    try:
        admin.webhook.create(f"{TENANT}/quick", other.url, unsafe_http=True).require()
        message = admin.webhook.test(receiver.name).require().result["message"]
        admin.webhook.test(f"{TENANT}/quick").require()
        poll("the quick one, meanwhile", lambda: other.of("webhook.test"), 5.0)

        def failed() -> Any:
            rows = admin.list(TENANT, "messages")
            return next((r for r in rows if r["id"] == message and r["state"] == "failed"), None)

        row = poll("the slow one to be given up", failed, 60.0)
        assert [t["number"] for t in row["history"]] == [1, 2, 3, 4]
        assert all(t["status"] == 0 and "within 2 s" in t["reason"] for t in row["history"])
    finally:
        admin.webhook.delete(f"{TENANT}/quick").require()
        other.close()


def test_a_worker_killed_while_it_sends_loses_nothing(world: Installation, receiver: Receiver, hook: Webhook) -> None:
    receiver.hang.clear()
    admin = world.client(f"{TENANT}/admin")
    message = admin.webhook.test(receiver.name).require().result["message"]
    poll("the message to be on its way", lambda: receiver.got)
    ready = world.settings.worker_sign
    killed = int(ready.read_text())
    os.kill(killed, signal.SIGKILL)
    receiver.hang.set()
    poll("another worker", lambda: ready.read_text() not in {"", str(killed)}, 60.0)

    def delivered() -> Any:
        rows = admin.list(TENANT, "messages")
        return next((r for r in rows if r["id"] == message and r["state"] == "delivered"), None)

    # The dead worker's claim ends by itself, after a minute, which is made to have passed.
    with tenant_session(world.engine, TENANT, write=True) as session:
        claimed = session.exec(select(tables.WebhookMessage).where(col(tables.WebhookMessage.id) == message)).one()
        assert (claimed.state, claimed.tries) == ("pending", 1)
        assert 0 < claimed.claimed_until_ms - now_ms() <= 60_000
        claimed.claimed_until_ms -= 60_000
        session.add(claimed)
    row = poll("the message to be sent again", delivered, 60.0)
    assert row["tries"] == 2
    assert [h["webhook-id"] for _, h, _ in receiver.got] == [message, message]
    for _, headers, body in receiver.got:
        hook.verify(body, headers)


def test_a_message_is_one_for_each_event_and_webhook_whatever_is_repeated_or_refused(
    world: Installation, version: str, receiver: Receiver, hook: Webhook
) -> None:
    del hook
    ana, ben = world.client(f"{TENANT}/ana"), world.client(f"{TENANT}/ben")
    before = {row["id"] for row in world.client(f"{TENANT}/uma").list(TENANT, "messages", limit=1000)}
    for _ in range(3):
        ana.model.request(version, "legal", reason="once", idempotency_key="same").require()
    assert not world.client(f"{TENANT}/uma").model.request(version, "legal").allowed
    ben.ask("model.request", version, {"track": "legal"})
    poll("the message", lambda: receiver.of("approval.requested"))
    rows = world.client(f"{TENANT}/uma").list(TENANT, "messages", limit=1000)
    new = [(row["event"], row["webhook"]) for row in rows if row["id"] not in before]
    assert new == [("approval.requested", receiver.name.partition("/")[2])]
    ana.model.withdraw_request(version, "legal").require()


def test_a_secret_is_rotated_without_a_gap_and_at_once_if_it_leaked(
    world: Installation, receiver: Receiver, hook: Webhook
) -> None:
    admin = world.client(f"{TENANT}/admin")

    def sent() -> tuple[dict[str, str], bytes]:
        before = len(receiver.got)
        admin.webhook.test(receiver.name).require()
        poll("the message", lambda: len(receiver.got) > before)
        _, headers, body = receiver.got[-1]
        return headers, body

    second = Webhook(admin.webhook.rotate(receiver.name).require().result["secret"])
    headers, body = sent()
    for verifies in (hook, second):
        verifies.verify(body, headers)
    third = Webhook(admin.webhook.rotate(receiver.name, overlap_s=0).require().result["secret"])
    headers, body = sent()
    third.verify(body, headers)
    for counts_no_more in (hook, second):
        with pytest.raises(Exception, match=r"(?i)signature"):
            counts_no_more.verify(body, headers)
    assert not world.client(f"{TENANT}/uma").webhook.rotate(receiver.name).allowed


def test_a_message_that_was_given_up_is_sent_again_under_its_identifier(
    world: Installation, receiver: Receiver, hook: Webhook
) -> None:
    admin = world.client(f"{TENANT}/admin")
    receiver.answer = lambda _: 410
    message = admin.webhook.test(receiver.name).require().result["message"]

    def in_state(state: str) -> Any:
        rows = admin.list(TENANT, "messages")
        return next((r for r in rows if r["id"] == message and r["state"] == state), None)

    poll("it to be given up", lambda: in_state("failed"))
    receiver.answer = lambda _: 204
    admin.webhook.redeliver(receiver.name, message).require()
    poll("it to be taken", lambda: in_state("delivered"))
    for _, headers, body in receiver.got:
        assert headers["webhook-id"] == message
        hook.verify(body, headers)
    assert len({body for _, _, body in receiver.got}) == 1
    missing = admin.webhook.redeliver(receiver.name, "msg_0")
    assert not missing.allowed
    assert not world.client(f"{TENANT}/uma").webhook.redeliver(receiver.name, message).allowed


def test_what_ends_soon_is_reminded_of_once_and_what_has_ended_no_longer_counts(
    world: Installation, version: str, receiver: Receiver, hook: Webhook
) -> None:
    del hook
    admin = world.client(f"{TENANT}/admin")
    admin.tenant.administer(TENANT, approval_ttl_s=60, remind_before_s=61).require()
    given = approve(world, "ravi", version, "model-risk").require().result["approval"]
    ana, ben = world.client(f"{TENANT}/ana"), world.client(f"{TENANT}/ben")
    for client in (ana, ben):
        client.model.request(version, "model-risk").require()
    with pytest.raises(LicetClientError, match="waits already"):
        ana.model.request(version, "model-risk")
    mine = poll(
        "the reminder",
        lambda: [b for _, b in receiver.of("approval.expiring") if b["data"].get("approval") == given],
    )
    assert len(mine) == 1
    assert mine[0]["data"]["what"] == "approval"
    # A change of policy voids it, and says so.
    other = world.client(f"{TENANT}/all")
    bundle = world.publish(f"{TENANT}/sam", {"packs": [{"name": "sr-11-7"}]})
    other.act("policy.activate", bundle, {}).require()
    told = poll(
        "the void", lambda: [b for _, b in receiver.of("approval.voided") if b["data"].get("approval") == given]
    )
    assert told[0]["data"]["changed"] == ["policy"]
    admin.tenant.administer(TENANT, approval_ttl_s=86_400, remind_before_s=3600).require()
    ana.model.request(version, "model-risk").require()
    rows = inbox(world, "mei")
    assert {(row["approved_before_by"], *row["changed_since_approval"]) for row in rows} == {("ravi", "policy")}
    # Ana's new request stands for her old one; Ben's is of what the version was, and says so.
    assert [(row["requested_by"], row["changed_since_request"]) for row in rows] == [("ben", ["policy"]), ("ana", [])]
    # A verdict on the version answers whoever asked, whatever it was when they did.
    world.client(f"{TENANT}/mei").model.approve(version, "model-risk", verdict="rejected", reason="no").require()
    assert inbox(world, "mei") == []


def test_a_ticket_counts_when_it_is_fetched_approved_and_about_the_version(world: Installation, version: str) -> None:
    other, ci = (world.client(f"{TENANT}/{name}") for name in ("all", "ci"))
    packs = [{"name": "sr-11-7", "parameters": {"ticket_tiers": ["high"], "model_risk_approval_tiers": ["none"]}}]
    bundle = world.publish(f"{TENANT}/sam", {"packs": packs})
    other.act("policy.activate", bundle, {}).require()
    rule = "sr-11-7.change.ticket"

    def denied() -> bool:
        return rule in deciding(ci.ask("model.promote", version, {"stage": "prod", "ticket": "CHG-1"}))

    assert denied()
    missing = world.done(ci, ci.ticket.fetch(TENANT, "CHG-1"))
    assert (missing.state, (missing.error or {})["code"]) == ("failed", "tickets.not-found")
    file = Path(world.settings.tickets_folder) / TENANT / "CHG-1.json"
    now_ms = int(time.time() * 1000)
    ticket = {"id": "CHG-1", "state": "approved", "approved": True, "subjects": [version], "as_of_ms": now_ms}
    for changed in ({"approved": False}, {"subjects": [f"{TENANT}/other"]}):
        file.write_text(json.dumps(ticket | changed))
        assert world.done(ci, ci.ticket.fetch(TENANT, "CHG-1")).state == "done"
        assert denied()
        # Named, it must be approved and about the version, whether or not the pack asks for one.
        named = ci.ask("model.promote", version, {"stage": "staging", "ticket": "CHG-1"})
        assert "guardrail.tickets.approved" in deciding(named)
    file.write_text(json.dumps(ticket))
    assert world.done(ci, ci.ticket.fetch(TENANT, "CHG-1")).state == "done"
    assert not denied()
    file.write_text(json.dumps(ticket | {"as_of_ms": now_ms - 10_000_000}))
    stale = world.done(ci, ci.ticket.fetch(TENANT, "CHG-1"))
    assert (stale.state, (stale.error or {})["code"]) == ("failed", "input.stale-ticket")


def test_only_an_administrator_adds_a_webhook_and_only_to_https(world: Installation, receiver: Receiver) -> None:
    assert not world.client(f"{TENANT}/ana").webhook.create(f"{TENANT}/mine", "https://hooks.example/x").allowed
    with world.http(f"{TENANT}/admin") as http:
        for url in ("http://hooks.example/x", "https://u:p@hooks.example/x", "ftp://hooks.example", receiver.url):
            body = {"resource": f"{TENANT}/mine", "parameters": {"url": url}}
            assert http.post("/v1/webhook/create", json=body).status_code == 400, url
        admin = world.client(f"{TENANT}/admin")
        admin.webhook.create(f"{TENANT}/hidden", "https://hooks.example/in").require()
        listed = http.get(f"/v1/list/{TENANT}/webhooks").text
        admin.webhook.delete(f"{TENANT}/hidden").require()
    # The address of a receiver may be a secret itself.
    assert "whsec_" not in listed
    assert "/in" not in listed
    assert "hooks.example" in listed
    assert "whsec_" not in world.output()


def test_an_approval_of_whoever_was_deactivated_never_counts_again(world: Installation, version: str) -> None:
    admin, ana = world.client(f"{TENANT}/admin"), world.client(f"{TENANT}/ana")

    def standing() -> set[str]:
        told = ana.model.read(version).require().result["version"]["approvals"]
        return {approval["approver"] for approval in told if approval["current"]}

    world.person(f"{TENANT}/nina", roles=["model-risk"])
    nina = world.client(f"{TENANT}/nina")
    assert world.done(nina, approve(world, "nina", version, "model-risk")).state == "done"
    assert "nina" in standing()
    for active in (False, True):
        admin.person.administer(f"{TENANT}/nina", roles=["model-risk"], active=active).require()
        assert "nina" not in standing()
    # She may approve anew, as it stands now.
    assert world.done(nina, approve(world, "nina", version, "model-risk")).state == "done"
    assert "nina" in standing()
