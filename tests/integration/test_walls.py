"""A tenant is a wall: whether a foreign thing exists cannot be told by status, body, headers, log or time."""

from __future__ import annotations

import socket
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from licet_attestations.leaf import Leaf
from licet_engine.domain.refs import VOID_LOG, new_id
from licet_engine.lifecycle.catalogue import VERBS
from licet_engine.lifecycle.verbs import RefForm

sys.path.append(str(Path(__file__).parent))
from service_world import FAR_MS, Installation, masked, problem, table  # The line above finds it.

pytestmark = pytest.mark.slow

HEX64 = "a" * 64
LISTS = (
    *("datasets", "runs", "models", "environments", "people"),
    *("approvals", "holds", "operations", "decisions", "bundles"),
    *("inbox", "delegations", "tickets", "webhooks", "all-webhooks", "messages"),
)
PARAMETERS: dict[str, dict[str, Any]] = {
    "tenant.create": {"region": "eu"},
    "tenant.administer": {"budgets": {"training": 1}},
    "tenant.allot": {"devices": 1},
    "tenant.suspend": {},
    "person.administer": {"roles": ["administrator"]},
    "token.issue": {},
    "token.revoke": {"token_id": "b" * 32},
    "token.list": {},
    "tenant.request-break-glass": {"reason": "why"},
    "tenant.approve-break-glass": {"id": "b" * 32},
    "tenant.break-glass": {"id": "b" * 32, "what": "decisions"},
    "tenant.end-break-glass": {"id": "b" * 32},
    "tenant.review-break-glass": {"id": "b" * 32, "finding": "none"},
    "policy.publish": {"packs": []},
    "policy.activate": {},
    "policy.roll-back": {},
    "policy.shadow": {"off": True},
    "policy.read": {},
    "dataset.register": {
        "digest_hex": HEX64,
        "size_bytes": 3,
        "classification": "public",
        "residency": ["us"],
        "uses": ["credit-risk"],
        "expires_at_ms": FAR_MS,
        "label": "deny",
    },
    "dataset.read": {},
    "dataset.classify": {"classification": "public"},
    "dataset.hold": {"reason": "mine"},
    "dataset.lift-hold": {"reason": "mine"},
    "dataset.archive": {},
    "dataset.delete": {},
    "training.launch": {"dataset": "northbank/loans", "environment": "us-east", "use": "credit-risk"},
    "training.cancel": {},
    "run.log": {"name": "auc", "step": 1, "value": "0.7"},
    "run.read": {},
    "model.register": {"run": "northbank/run-1"},
    "model.read": {},
    "model.download": {},
    "model.check": {},
    "model.hold": {"reason": "mine"},
    "model.lift-hold": {"reason": "mine"},
    "model.delete": {},
    "model.request": {"track": "compliance"},
    "model.approve": {"track": "compliance"},
    "model.withdraw-request": {"track": "compliance"},
    "model.withdraw-approval": {"track": "compliance"},
    "approval.delegate": {"track": "compliance", "until_ms": FAR_MS},
    "approval.revoke-delegation": {"track": "compliance"},
    "ticket.fetch": {"ticket": "CHG-1"},
    "webhook.create": {"url": "https://hooks.example/northbank"},
    "webhook.delete": {},
    "webhook.test": {},
    "webhook.rotate": {},
    "webhook.redeliver": {"message": "msg_1"},
    "webhook.read": {},
    "issuer.trust": {"url": "https://ci.example", "account": "ci", "claims": {"repository": "northbank/policies"}},
    "issuer.remove": {},
    "issuer.read": {},
    "model.promote": {},
    "model.roll-back": {},
    "model.retire": {},
    "endpoint.deploy": {"version": "nobody-home/risk@1"},
    "endpoint.shift-traffic": {"weights": {"1": 100}},
    "endpoint.roll-back": {},
    "endpoint.retire": {},
    "endpoint.invoke": {},
    "endpoint.read": {},
    "evidence.export": {},
    "evidence.hold": {"reason": "mine"},
    "evidence.lift-hold": {"reason": "mine"},
    "record.erase": {"entries": [0], "reason": "mine"},
    "log.read": {},
    "decision.read": {},
    "decision.explain": {},
    "operation.read": {},
    "catalogue.read": {},
    "key.destroy": {"reason": "mine"},
}
"""What every verb is asked with; a verb that is not here fails the test of the table."""


def test_the_table_names_every_verb() -> None:
    assert set(PARAMETERS) == set(VERBS)


def reference(action: str, tenant: str, name: str) -> str:
    """How a verb would name something of a tenant's."""
    form = VERBS[action].form
    if form is RefForm.TENANT:
        return tenant
    return f"{tenant}/{name}@1" if form is RefForm.VERSION else f"{tenant}/{name}"


def there(action: str) -> str:
    """The name of what exists in both tenants, for the noun of a verb."""
    return {"person": "ana", "token": "ana"}.get(action.partition(".")[0], "loans")


@pytest.fixture
def asker(world: Installation, request: pytest.FixtureRequest) -> Iterator[tuple[str, str, httpx.Client]]:
    """One who may do everything in a tenant, and the other tenant."""
    own, other = request.param
    with world.http(f"{own}/all") as http:
        yield own, other, http


BOTH_WAYS = pytest.mark.parametrize(
    "asker",
    [("lakeside", "northbank"), ("northbank", "lakeside")],
    indirect=True,
    ids=["from-lakeside", "from-northbank"],
)


def body_of(world: Installation, own: str, action: str) -> dict[str, Any]:
    body = dict(PARAMETERS[action])
    if action == "dataset.register":
        body |= world.upload(f"{own}/all", b"a,b")
    return body


def record_shape(entry: tuple[Leaf, dict[str, Any]]) -> Any:
    """What of an entry of the asker's could tell two attempts apart, other than what the asker sent."""
    leaf, record = entry
    told = {**record, "id": "*", "time_ms": "*", "facts": len(record["facts"])}
    told["context"] = {**record["context"], "now_ms": "*"}
    told["resource"] = {**record["resource"], "id": "*"}
    return leaf.kind, leaf.actor, leaf.owner, told


@BOTH_WAYS
@pytest.mark.parametrize("action", sorted(VERBS))
def test_what_is_foreign_and_what_was_never_there_are_denied_alike(
    world: Installation, asker: tuple[str, str, httpx.Client], action: str
) -> None:
    own, other, http = asker
    body = body_of(world, own, action)
    noun, _, verb = action.partition(".")
    targets = {
        "foreign": reference(action, other, there(action)),
        "foreign, not there": reference(action, other, "nothing-of-the-kind"),
        "no such tenant": reference(action, "nobody-home", there(action)),
    }
    firsts = {tenant: world.size(tenant) for tenant in (own, other, VOID_LOG)}
    answers = {
        what: http.post(f"/v1/{noun}/{verb}", json={"resource": ref, "parameters": body})
        for what, ref in targets.items()
    }
    told = {what: masked(answer) for what, answer in answers.items()}
    for answer in answers.values():
        decision = problem(answer, 403, "denied")["decision"]
        assert set(decision) == {"id", "decision"}
        assert decision["decision"] == "deny"
    assert told["foreign"] == told["foreign, not there"] == told["no such tenant"]

    # The asker's log: one entry each, which differ in what was sent alone. What its own work leaves there comes at any moment.
    mine = [
        (leaf, record)
        for leaf, record in world.entries(own, firsts[own])
        if leaf.owner != own or record.get("action") == action
    ]
    assert len(mine) == len(targets)
    assert len({repr(record_shape(entry)) for entry in mine}) == 1
    for (leaf, record), ref in zip(mine, targets.values(), strict=True):
        assert (leaf.kind, leaf.actor, leaf.owner) == ("decision", own, VOID_LOG)
        assert record["resource"] == {"type": "Elsewhere", "id": ref}
        assert record["decision"] == "deny"
        assert record["reasons"] == ["guardrail.isolation"]
        assert not record["errors"]

    # The owner's log, or the void log: that it was tried, by whom, and that it was denied.
    # What the owner's own work leaves in its log (a reminder, an attestation) comes by itself, at any moment.
    theirs = [(leaf, record) for leaf, record in world.entries(other, firsts[other]) if leaf.actor != other]
    void = world.entries(VOID_LOG, firsts[VOID_LOG])
    tried = [(leaf.kind, leaf.actor, leaf.owner, r["resource"], r["action"], r["decision"]) for leaf, r in theirs]
    shown = [targets["foreign"]] if targets["foreign"] == targets["foreign, not there"] else []
    expected = shown * 2 or [targets["foreign"], targets["foreign, not there"]]
    assert tried == [("attempt", own, other, ref, action, "deny") for ref in expected]
    assert [(leaf.kind, leaf.actor, r["resource"]) for leaf, r in void] == [("attempt", own, targets["no such tenant"])]
    assert {r["id"] for _, r in (*theirs, *void)} == {r["id"] for _, r in mine}


@BOTH_WAYS
def test_what_is_not_there_at_home_is_denied_as_if_it_were_elsewhere(
    world: Installation, asker: tuple[str, str, httpx.Client]
) -> None:
    own, other, http = asker
    first, foreign_first = world.size(VOID_LOG), world.size(other)
    for action in ("dataset.read", "run.read", "model.read", "policy.read", "token.issue"):
        noun, _, verb = action.partition(".")
        mine = http.post(f"/v1/{noun}/{verb}", json={"resource": reference(action, own, "nothing")})
        theirs = http.post(f"/v1/{noun}/{verb}", json={"resource": reference(action, other, there(action))})
        assert masked(mine) == masked(theirs)
    assert world.size(VOID_LOG) == first + 5
    assert world.size(other) == foreign_first + 5


@BOTH_WAYS
def test_nothing_foreign_can_be_read_by_any_address(
    world: Installation, asker: tuple[str, str, httpx.Client], trained: str
) -> None:
    own, other, http = asker
    assert trained
    with world.http(f"{other}/all") as owner:
        decision = owner.get(f"/v1/list/{other}/decisions").json()["items"][0]["id"]
        operations = owner.get(f"/v1/list/{other}/operations").json()["items"]
    operation = operations[0]["id"]
    unknown = new_id()
    tenants = (other, "nobody-home")
    families = [
        [f"/v1/operations/{tenant}/{name}{rest}" for tenant in tenants for name in (operation, unknown)]
        + [f"/v1/operations/{own}/{unknown}{rest}"]
        for rest in ("", "/artifact")
    ]
    families += [
        [f"/v1/decisions/{tenant}/{name}{rest}" for tenant in tenants for name in (decision, unknown)]
        + [f"/v1/decisions/{own}/{unknown}{rest}"]
        for rest in ("", "/explain")
    ]
    families += [[f"/v1/list/{tenant}/{what}" for tenant in tenants] for what in LISTS]
    families += [[f"/v1/enforced/{tenant}" for tenant in tenants]]
    families += [[f"/v1/flips/{tenant}" for tenant in tenants]]
    families += [[f"/v1/log/{tenant}{rest}" for tenant in tenants] for rest in ("", "/entries")]
    for paths in families:
        first, own_first = world.size(other), world.size(own)
        answers = [http.get(path) for path in paths]
        for answer in answers:
            assert set(problem(answer, 403, "denied")["decision"]) == {"id", "decision"}
        assert len({repr(masked(answer)) for answer in answers}) == 1, paths
        tried = world.entries(other, first)
        assert tried, f"{paths[0]} left no trace with its owner"
        assert {(leaf.kind, leaf.actor, r["decision"]) for leaf, r in tried} == {("attempt", own, "deny")}
        mine = world.entries(own, own_first)
        assert {leaf.owner for leaf, _ in mine} == {VOID_LOG}
        assert len({repr(record_shape(entry)) for entry in mine}) == len({r["context"].get("own") for _, r in mine})


def test_a_member_lists_what_the_tenant_has_and_of_operations_their_own(world: Installation, trained: str) -> None:
    assert trained
    for name, sees_all in (("ana", False), ("ci", False), ("uma", True)):
        with world.http(f"northbank/{name}") as http:
            first = world.size("northbank")
            datasets = http.get("/v1/list/northbank/datasets").json()["items"]
            operations = http.get("/v1/list/northbank/operations").json()["items"]
        asked = [(r["action"], r["context"].get("own"), r["decision"]) for _, r in world.entries("northbank", first)]
        assert "loans" in {row["name"] for row in datasets}
        assert asked[0] == ("catalogue.read", None, "allow")
        if sees_all:
            assert asked[1:] == [("operation.read", False, "allow")]
            assert {"ana", "ci"} <= {row["principal"] for row in operations}
        else:
            # Only the question that is answered is put: who may list their own leaves no denial behind.
            assert asked[1:] == [("operation.read", True, "allow")]
            assert {row["principal"] for row in operations} == {name}


def test_an_unknown_list_is_refused_alike_for_all(world: Installation) -> None:
    with world.http("lakeside/all") as http:
        answers = [
            problem(http.get(f"/v1/list/{t}/secrets"), 400, "invalid-input")
            for t in ("lakeside", "northbank", "nobody-home")
        ]
    assert answers[0] == answers[1] == answers[2]


@BOTH_WAYS
def test_asking_tells_nothing_of_what_is_foreign(asker: tuple[str, str, httpx.Client]) -> None:
    own, other, http = asker
    for action in ("dataset.read", "model.promote", "key.destroy"):
        refs = [reference(action, tenant, there(action)) for tenant in (other, "nobody-home")]
        answers = [
            http.post("/v1/ask", json={"action": action, "resource": ref, "parameters": PARAMETERS[action]})
            for ref in refs
        ]
        assert masked(answers[0]) == masked(answers[1])
        assert answers[0].status_code == 200
        assert answers[0].json()["decision"]["decision"] == "deny"
        assert set(answers[0].json()["decision"]) == {"id", "decision"}
    # On behalf of a foreign principal, about a thing of one's own: denied, and not told who is there.
    asked = []
    for subject in (f"{other}/ana", f"{other}/nobody", "nobody-home/ana"):
        body = {
            "subject": {"type": "person", "id": subject},
            "action": {"name": "dataset.read"},
            "resource": {"type": "Dataset", "id": f"{own}/loans"},
        }
        asked.append(masked(http.post("/access/v1/evaluation", json=body)))
    assert asked[0] == asked[1] == asked[2]
    assert asked[0][2] == {"decision": False, "context": {"id": "*", "decision": "deny"}}


def test_operators_read_nothing_of_a_tenants(world: Installation, trained: str) -> None:
    assert trained
    reach = {action for action in VERBS if action.startswith("tenant.")}
    with world.http("platform/operator") as http:
        for action in sorted(set(VERBS) - reach):
            noun, _, verb = action.partition(".")
            parameters = body_of_operator(world, action)
            answers = [
                http.post(
                    f"/v1/{noun}/{verb}",
                    json={"resource": reference(action, tenant, there(action)), "parameters": parameters},
                )
                for tenant in ("northbank", "nobody-home")
            ]
            assert problem(answers[0], 403, "denied")
            assert masked(answers[0]) == masked(answers[1]), action
        for what in LISTS:
            problem(http.get(f"/v1/list/northbank/{what}"), 403, "denied")
        problem(http.get("/v1/log/northbank"), 403, "denied")


def body_of_operator(world: Installation, action: str) -> dict[str, Any]:
    body = dict(PARAMETERS[action])
    if action == "dataset.register":
        body |= world.upload("platform/operator", b"a,b")
    return body


# --- who asks comes first ---------------------------------------------------------------------------------------------


def raw(world: Installation, request: bytes, *, within_s: float = 5.0) -> bytes:
    """Send bytes, and nothing more; return what is answered while the server still waits for the rest."""
    with socket.create_connection(("127.0.0.1", world.settings.port), timeout=within_s) as sock:
        sock.sendall(request)
        return sock.recv(65536)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/dataset/read"),
        ("POST", "/v1/ask"),
        ("POST", "/access/v1/evaluation"),
        ("POST", "/access/v1/evaluations"),
        ("PUT", "/v1/uploads"),
    ],
)
def test_who_asks_is_told_before_the_body_is_read(world: Installation, method: str, path: str) -> None:
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer licet_{'x' * 43}\r\nContent-Length: 999999999\r\n\r\n"
    # Not one byte of the body is sent, and the answer comes all the same.
    answer = raw(world, head.encode())
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nconnection: close\r\n" in answer.lower()


def test_who_asks_is_told_before_anything_is_looked_for(world: Installation) -> None:
    addresses = [
        f"/v1/{kind}/{tenant}/{name}"
        for kind, name in (("operations", "x"), ("decisions", "x"), ("list", "datasets"), ("list", "nonsense"))
        for tenant in ("northbank", "nobody-home", "NOT A TENANT")
    ]
    addresses += [f"/v1/log/{tenant}" for tenant in ("northbank", "nobody-home", "~void")]
    with world.http(None) as http:
        answers = [http.get(path) for path in addresses]
        answers += [
            http.post("/v1/dataset/read", content=content)
            for content in (b"{}", b"{", b'{"resource":"northbank/loans"}', b"x" * (65 << 10))
        ]
        answers.append(http.post("/v1/ask", content=b"["))
        answers.append(http.put("/v1/uploads", content=b"abc"))
        bodies = [problem(answer, 401, "unauthenticated") for answer in answers]
    assert all(body == bodies[0] for body in bodies)
    assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}


def test_no_attempt_of_nobody_is_written_to_a_tenants_log(world: Installation) -> None:
    sizes = [world.size(tenant) for tenant in ("northbank", VOID_LOG)]
    with world.http(None) as http:
        problem(http.post("/v1/dataset/read", json={"resource": "northbank/loans"}), 401, "unauthenticated")
    assert [world.size(tenant) for tenant in ("northbank", VOID_LOG)] == sizes


# --- time -------------------------------------------------------------------------------------------------------------


def test_time_does_not_tell_what_is_foreign_from_what_was_never_there(world: Installation) -> None:
    taken: dict[str, list[float]] = {"northbank": [], "nobody-home": []}
    with world.http("lakeside/all") as http:
        for turn in range(120):
            # A name of its own each time, so that nothing is remembered; and neither always goes first.
            order = sorted(taken, reverse=bool(turn % 2))
            for tenant in order:
                body = {"resource": f"{tenant}/{'loans' if turn % 3 else f'n-{turn}'}"}
                began_s = time.perf_counter()
                assert http.post("/v1/dataset/read", json=body).status_code == 403
                taken[tenant].append(time.perf_counter() - began_s)
    foreign, unknown = (statistics.median(taken[tenant][10:]) for tenant in ("northbank", "nobody-home"))
    # Generous: the machine is shared. A look-up that only one of the two takes would show as a multiple.
    assert 0.5 < foreign / unknown < 2.0, taken


def test_the_same_bytes_are_stored_under_names_that_do_not_tell_so(world: Installation) -> None:
    data = table(50, odd=977)
    names = {}
    for tenant in ("northbank", "lakeside"):
        before = world.objects(tenant)
        assert world.register(f"{tenant}/ana", "shared-secret", data).state == "done"
        (path,) = world.objects(tenant) - before
        names[tenant] = path
    assert names["northbank"].name != names["lakeside"].name
    assert names["northbank"].read_bytes() != names["lakeside"].read_bytes()
    for path in names.values():
        assert data[:40] not in path.read_bytes()
