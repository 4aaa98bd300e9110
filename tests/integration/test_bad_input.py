"""What is malformed, oversized, broken off, disguised or expired is refused in one shape, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import socket
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from licet_engine.client import Operation
from licet_engine.store.db import write_transaction
from licet_engine.store.tables import ApiToken, Dataset, ModelVersion

sys.path.append(str(Path(__file__).parent))
from service_world import FAR_MS, Installation, poll, problem, table  # The line above finds it.

pytestmark = pytest.mark.slow

READ = b'{"resource": "northbank/loans"}'


@pytest.fixture
def ana(world: Installation) -> Iterator[httpx.Client]:
    with world.http("northbank/ana") as http:
        yield http


@pytest.fixture(autouse=True)
def nothing_leaks_into_the_service_log(world: Installation) -> Iterator[None]:
    """Whatever a test sends, the processes print no traceback and no secret."""
    before = len(world.output())
    yield
    printed = world.output()[before:]
    assert "Traceback" not in printed, printed
    assert not [who for who, token in world.tokens.items() if token in printed]


def spooled(world: Installation) -> set[str]:
    """Every file of the spool, those not yet whole among them."""
    return {str(path.relative_to(world.settings.spool)) for path in world.settings.spool.rglob("*") if path.is_file()}


# --- bodies -----------------------------------------------------------------------------------------------------------

NOT_JSON = {
    "empty": b"",
    "cut": b'{"resource": "northbank/lo',
    "two": READ + READ,
    "same key twice": b'{"resource": "northbank/loans", "resource": "northbank/other"}',
    "same key twice inside": b'{"resource": "northbank/loans", "parameters": {"a": 1, "a": 2}}',
    "a float": b'{"resource": "northbank/loans", "parameters": {"ttl_s": 60.0}}',
    "an exponent": b'{"resource": "northbank/loans", "parameters": {"ttl_s": 6e1}}',
    "NaN": b'{"resource": NaN}',
    "infinity": b'{"resource": -Infinity}',
    "deep": b'{"parameters": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "deep objects": b'{"parameters": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}",
    "huge number": b'{"resource": ' + b"9" * 5_000 + b"}",
    "half a pair": b'{"resource": "\\ud800"}',
    "not UTF-8": b'{"resource": "\xff"}',
    "UTF-16": READ.decode().encode("utf-16"),
    "a comment": b'{"resource": "northbank/loans"} // mine',
}
WRONG_FORM = {
    "a list": [],
    "text": "northbank/loans",
    "nothing": None,
    "no resource": {},
    "resource is a number": {"resource": 1},
    "resource is null": {"resource": None},
    "resource is empty": {"resource": ""},
    "resource is a path": {"resource": "northbank/../lakeside"},
    "resource has a version": {"resource": "northbank/loans@1"},
    "resource is long": {"resource": "northbank/" + "x" * 200},
    "resource is upper case": {"resource": "Northbank/loans"},
    "resource is not of ASCII": {"resource": "northb\u00e4nk/loans"},
    "resource ends in a line": {"resource": "northbank/loans\n"},
    "unknown member": {"resource": "northbank/loans", "dry": True},
    "unknown parameter": {"resource": "northbank/loans", "parameters": {"force": True}},
    "parameters are a list": {"resource": "northbank/loans", "parameters": []},
    "parameters are text": {"resource": "northbank/loans", "parameters": "all"},
    "claims are a list": {"resource": "northbank/loans", "claimed": ["a"]},
    "a claim is a number": {"resource": "northbank/loans", "claimed": {"a": 1}},
    "many claims": {"resource": "northbank/loans", "claimed": {f"c{n}": "x" for n in range(65)}},
    "a long claim": {"resource": "northbank/loans", "claimed": {"a": "x" * 1024}},
}


@pytest.mark.parametrize("path", ["/v1/dataset/read", "/v1/ask"])
@pytest.mark.parametrize("content", NOT_JSON.values(), ids=NOT_JSON)
def test_what_is_not_json_of_the_strict_kind_is_refused(
    world: Installation, ana: httpx.Client, path: str, content: bytes
) -> None:
    size = world.size("northbank")
    problem(ana.post(path, content=content), 400, "malformed-json")
    assert world.size("northbank") == size


@pytest.mark.parametrize("body", WRONG_FORM.values(), ids=WRONG_FORM)
def test_what_has_another_form_is_refused(world: Installation, ana: httpx.Client, body: Any) -> None:
    size = world.size("northbank")
    problem(ana.post("/v1/dataset/read", content=json.dumps(body)), 400, "invalid-input")
    asked = body | {"action": "dataset.read"} if isinstance(body, dict) else body
    problem(ana.post("/v1/ask", content=json.dumps(asked)), 400, "invalid-input")
    assert world.size("northbank") == size


@pytest.mark.parametrize("action", [None, 1, "", "dataset", "dataset.explode", "__class__", ["dataset.read"]])
def test_an_unknown_action_is_refused(ana: httpx.Client, action: Any) -> None:
    told = problem(ana.post("/v1/ask", json={"action": action, "resource": "northbank/loans"}), 400, "invalid-input")
    assert "dataset.read" in told["detail"]


GOOD: dict[str, Any] = {
    "upload": "0" * 32,
    "digest_hex": "0" * 64,
    "size_bytes": 1,
    "classification": "internal",
    "residency": ["us"],
    "uses": ["credit-risk"],
    "expires_at_ms": FAR_MS,
    "label": "deny",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size_bytes", "1"),
        ("size_bytes", True),
        ("size_bytes", 0),
        ("size_bytes", -1),
        ("residency", []),
        ("residency", "us"),
        ("residency", ["US"]),
        ("residency", [1]),
        ("classification", "secret"),
        ("expires_at_ms", 0),
        ("label", ""),
        ("label", "a\x00b"),
        ("label", "=HYPERLINK()"),
        ("protected", ["x"] * 65),
        ("columns", {"a": "date"}),
        ("upload", "../../etc/passwd"),
        ("upload", "0" * 31),
        ("digest_hex", "G" * 64),
        ("purpose", ""),
    ],
)
def test_a_parameter_of_the_wrong_type_is_named(ana: httpx.Client, name: str, value: Any) -> None:
    body = {"resource": "northbank/wrong", "parameters": GOOD | {name: value}}
    told = problem(ana.post("/v1/dataset/register", json=body), 400, "invalid-input")
    assert name in told["detail"], told


@pytest.mark.parametrize("name", sorted(GOOD))
def test_a_parameter_that_is_missing_is_named(ana: httpx.Client, name: str) -> None:
    body = {"resource": "northbank/wrong", "parameters": {k: v for k, v in GOOD.items() if k != name}}
    assert name in problem(ana.post("/v1/dataset/register", json=body), 400, "invalid-input")["detail"]


def test_an_environment_that_is_named_twice_is_refused(world: Installation) -> None:
    place = {"name": "twice", "region": "us"}
    with world.http("northbank/admin") as http:
        body = {"resource": "northbank", "parameters": {"environments": [place, place]}}
        problem(http.post("/v1/tenant/administer", json=body), 400, "invalid-input")
        assert "twice" not in http.get("/v1/list/northbank/environments").text


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/dataset/read", "/v1/ask", "/access/v1/evaluation", "/access/v1/evaluations"])
def test_an_oversize_body_is_refused(world: Installation, ana: httpx.Client, path: str) -> None:
    content = b" " * world.settings.max_body_bytes + READ
    problem(ana.post(path, content=content), 413, "too-large")

    def unannounced() -> Iterator[bytes]:
        for start in range(0, len(content), 8192):
            yield content[start : start + 8192]

    problem(ana.post(path, content=unannounced()), 413, "too-large")
    # The connection, or a new one, goes on being of use.
    assert ana.post("/v1/ask", json={"action": "dataset.read", "resource": "northbank/loans"}).status_code == 200


def test_a_body_as_large_as_may_be_is_read(world: Installation, ana: httpx.Client) -> None:
    content = b'{"action": "dataset.read", "resource": "northbank/loans"}'
    padded = b" " * (world.settings.max_body_bytes - len(content)) + content
    assert ana.post("/v1/ask", content=padded).status_code == 200


def test_an_oversize_upload_is_refused(world: Installation, ana: httpx.Client) -> None:
    before = spooled(world)
    problem(ana.put("/v1/uploads", content=b"x" * (world.settings.max_upload_bytes + 1)), 413, "too-large")
    assert spooled(world) == before


def test_an_upload_says_how_long_it_is(world: Installation, ana: httpx.Client) -> None:
    before = spooled(world)
    problem(ana.put("/v1/uploads", content=iter([b"a,b\n"])), 400, "length-required")
    assert spooled(world) == before


@pytest.mark.parametrize("end", ["half closed", "closed", "reset"])
def test_an_upload_that_breaks_off_leaves_nothing(world: Installation, end: str) -> None:
    before = spooled(world)
    head = f"PUT /v1/uploads HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.tokens['northbank/ana']}\r\n"
    with socket.create_connection(("127.0.0.1", world.settings.port), timeout=10) as sock:
        sock.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode() + b"a,b\n1,2\n")
        poll("the upload to begin", lambda: spooled(world) != before, 10.0)
        if end == "half closed":
            sock.shutdown(socket.SHUT_WR)
            answer = sock.recv(65536)
            assert answer.startswith(b"HTTP/1.1 400 "), answer
            assert b'"code":"truncated-upload"' in answer
        elif end == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    poll("what was written of it to be gone", lambda: spooled(world) == before, 15.0)


def test_a_body_that_breaks_off_is_refused(world: Installation) -> None:
    head = f"POST /v1/ask HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.tokens['northbank/ana']}\r\n"
    size = world.size("northbank")
    with socket.create_connection(("127.0.0.1", world.settings.port), timeout=10) as sock:
        sock.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode() + b'{"action": "dataset.read"')
        sock.shutdown(socket.SHUT_WR)
        answer = sock.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert b'"code":"truncated-body"' in answer
    assert world.size("northbank") == size


def test_one_principal_cannot_fill_the_spool(world: Installation) -> None:
    world.person("northbank/hoarder", roles=["data-scientist"])
    with world.http("northbank/hoarder") as http:
        for number in range(world.settings.max_uploads_per_principal):
            assert http.put("/v1/uploads", content=b"%d" % number).status_code == 201
        problem(http.put("/v1/uploads", content=b"more"), 503, "busy")
    # Others are not affected.
    assert world.upload("northbank/ana", b"a,b\n")["size_bytes"] == 4


# --- uploads that are not what they should be ---------------------------------------------------------------------------


def test_anothers_upload_is_as_if_it_were_not_there(world: Installation) -> None:
    body = world.dataset_body("northbank/ana", table(20, odd=3))
    for who, ref in (("northbank/ben", "northbank/taken"), ("lakeside/ana", "lakeside/taken")):
        with world.http(who) as http:
            theirs = http.post("/v1/dataset/register", json={"resource": ref, "parameters": body})
            told = problem(theirs, 400, "no-such-upload")
            unknown = body | {"upload": "f" * 32}
            answer = http.post("/v1/dataset/register", json={"resource": ref, "parameters": unknown})
            assert problem(answer, 400, "no-such-upload")["detail"].replace("f" * 32, body["upload"]) == told["detail"]
    client = world.client("northbank/ana")
    assert world.done(client, client.act("dataset.register", "northbank/mine-still", body)).state == "done"


def refused(world: Installation, name: str, data: bytes, **changes: Any) -> Operation:
    """Register something that must not pass; assert that nothing of it is left, and that the log says what became of it."""
    objects, first = world.objects("northbank"), world.size("northbank")
    ended = world.register("northbank/ana", name, data, **changes)
    assert ended.state == "failed"
    assert world.objects("northbank") == objects
    assert not list((world.settings.worker_data / "plain").glob(f"{ended.id}-*"))
    (logged,) = (
        r for _, r in world.entries("northbank", first) if r.get("type") == "operation" and r["operation"] == ended.id
    )
    assert (logged["state"], logged["error"]["code"]) == ("failed", ended.error_code)
    (row,) = (r for r in world.client("northbank/ana").list("northbank", "datasets", limit=1000) if r["name"] == name)
    assert (row["state"], row["rows"]) == ("failed", 0)
    return ended


GOOD_ROWS = table(10)
BROKEN = {
    "a quote that never ends": (GOOD_ROWS + b'"1,0.5,yes,no\n', "input.csv", "line 1[12]"),
    "too few cells": (GOOD_ROWS + b"1,0.5,yes\n1,0.5,yes,no\n", "input.csv", "line 12"),
    "too many cells": (GOOD_ROWS + b"1,0.5,yes,no,more\n", "input.csv", "line 12"),
    "a NaN label": (GOOD_ROWS + b"1,0.5,yes,nan\n", "input.label", "line 12, column deny"),
    "no label": (GOOD_ROWS + b"1,0.5,yes,\n", "input.label", "line 12, column deny"),
    "a NaN": (GOOD_ROWS + b"nan,0.5,yes,no\n", "input.csv", "line 12, column income"),
    "an infinity": (GOOD_ROWS + b"1e999,0.5,yes,no\n", "input.csv", "line 12, column income"),
    "a missing value": (GOOD_ROWS + b",0.5,yes,no\n", "input.csv", "line 12, column income"),
    "cut in the last line": (GOOD_ROWS + b"1,0.5,ye", "input.csv", "line"),
    "NUL bytes": (GOOD_ROWS + b"1,\x000.5,yes,no\n", "input.csv", "NUL"),
    "not UTF-8": (GOOD_ROWS + b"1,0.5,yes,\xff\xfe\n", "input.csv", "UTF-8|utf-8"),
    "no rows": (b"income,ratio,minor,deny\n", "input.csv", "row|column"),
    "a column twice": (b"income,income,minor,deny\n1,2,yes,no\n", "input.csv", "income"),
    "no column of that name": (b"income,ratio,minor\n1,0.5,yes\n", "input.csv", "deny"),
    "no protected column": (b"income,ratio,deny\n1,0.5,yes\n", "input.csv", "minor"),
    "not a table": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "input.csv", "."),
}


@pytest.mark.parametrize("case", BROKEN, ids=[name.replace(" ", "-") for name in BROKEN])
def test_a_broken_table_is_refused_and_the_line_is_named(world: Installation, case: str) -> None:
    data, code, where = BROKEN[case]
    name = "b-" + hashlib.sha256(case.encode()).hexdigest()[:12]
    columns = {"income": "number", "ratio": "number", "minor": "yes-no", "deny": "yes-no"}
    declared = (
        {} if case in {"no column of that name", "no protected column", "a column twice"} else {"columns": columns}
    )
    ended = refused(world, name, data, **declared)
    assert ended.error is not None
    assert ended.error["code"] == code, ended.error
    assert re.search(where, ended.error["message"]), ended.error
    # No cell of it is told: it may be the very thing that must not be.
    assert "0.5" not in ended.error["message"]


def test_a_table_whose_columns_are_looked_for_is_refused_alike(world: Installation) -> None:
    ended = refused(world, "b-looked-for", GOOD_ROWS + b"1,0.5,yes,nan\n")
    assert ended.error is not None
    assert ended.error["code"] == "input.label"
    assert "line 12, column deny" in ended.error["message"]


@pytest.mark.parametrize(
    ("name", "change"),
    [("other-digest", {"digest_hex": "1" * 64}), ("other-size", {"size_bytes": 7})],
    ids=["digest", "size"],
)
def test_an_upload_that_is_not_what_was_said_is_refused(world: Installation, name: str, change: dict[str, Any]) -> None:
    assert refused(world, name, table(20, odd=5), **change).error_code == "other-upload"
    # The name is free again.
    assert world.register("northbank/ana", name, table(20, odd=6)).state == "done"


# --- models that are something else -------------------------------------------------------------------------------------


class _Runs:
    """Would leave a file, were it ever loaded."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self._mark,)


def disguises(mark: Path) -> dict[str, tuple[bytes, str]]:
    """Files that are no weights, and the code under which they are refused."""
    pickled = pickle.dumps(_Runs(mark))
    archive, bomb = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("archive/data.pkl", pickled)
        zipped.writestr("archive/version", "3")
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("zeros", b"\0" * (64 << 20))
    header = b'{"__metadata__":{"x":"y"}}'
    wrapped = len(header).to_bytes(8, "little") + header + pickled
    return {
        "a pickle": (pickled, "model.pickle"),
        "an old pickle": (pickle.dumps(_Runs(mark), protocol=0), "model.pickle"),
        "a torch archive": (archive.getvalue(), "model.archive"),
        "a zip bomb": (bomb.getvalue(), "model.archive"),
        "a pickle behind a header": (wrapped, "model."),
        "nothing at all": (b"\0", "model."),
    }


@pytest.mark.parametrize("case", sorted(disguises(Path("/nowhere"))))
def test_a_model_file_that_is_something_else_is_refused(
    world: Installation, trained: str, tmp_path: Path, case: str
) -> None:
    assert trained
    mark = tmp_path / "ran"
    data, code = disguises(mark)[case]
    client = world.client("northbank/ana")
    files = {"model.safetensors": world.upload("northbank/ana", data)}
    objects = world.objects("northbank")
    answer = client.act(
        "model.register", "northbank/disguised", {"run": "northbank/run-1", "tier": "high", "files": files}
    )
    ended = world.done(client, answer)
    assert ended.state == "failed"
    assert ended.error is not None
    assert ended.error["code"].startswith(code), ended.error
    assert not mark.exists()
    assert world.objects("northbank") == objects
    assert not list((world.settings.worker_data / "plain").glob("*"))
    versions = [row for row in client.list("northbank", "models") if row["model"] == "disguised"]
    assert [(row["version"], row["state"], row["signed"], row["digest_hex"]) for row in versions] == [
        (1, "failed", False, "")
    ]
    # What was refused cannot be used in any way.
    problem_of_use = world.http("northbank/ana").post("/v1/model/download", json={"resource": "northbank/disguised@1"})
    problem(problem_of_use, 409, "conflict")


@pytest.mark.parametrize("name", ["model.pkl", "../model.safetensors", "model.sig", ""])
def test_a_model_has_no_other_files(world: Installation, trained: str, name: str) -> None:
    assert trained
    files = {name: world.upload("northbank/ben", b"x")}
    body = {"resource": "northbank/disguised", "parameters": {"run": "northbank/run-1", "files": files}}
    with world.http("northbank/ben") as http:
        problem(http.post("/v1/model/register", json=body), 400, "invalid-input")
    for path in world.settings.spool.glob("northbank/uploads/*"):
        if path.read_bytes() == b"x":
            path.unlink()


# --- tokens -------------------------------------------------------------------------------------------------------------


def unauthenticated(world: Installation, header: str | bytes) -> dict[str, Any]:
    response = httpx.get(f"{world.url}/v1/list/northbank/datasets", headers={"Authorization": header}, trust_env=False)
    return problem(response, 401, "unauthenticated")


def test_tokens_that_do_not_count_are_refused_alike(world: Installation) -> None:
    token = world.person("northbank/leaver", roles=["data-scientist"])
    admin = world.client("northbank/admin")
    headers = ["", "Bearer", "Basic YTpi", f"bearer{token}", f"Bearer {token}x", f"Bearer {token[:-1]}"]
    headers += ["Bearer licet_", "Bearer " + "x" * 10_000, b"Bearer licet_\xff", f"Bearer {token} {token}"]
    bodies = [unauthenticated(world, header) for header in headers]
    with world.http("northbank/leaver") as http:
        assert http.get("/v1/list/northbank/datasets").status_code == 200
        # Revoked: at once, though it was used just now.
        issued = admin.act("token.issue", "northbank/leaver", {}).require().result
        revoked = {"resource": "northbank/leaver", "parameters": {"token_id": issued["token_id"]}}
        with world.http("northbank/admin") as other:
            assert other.post("/v1/token/revoke", json=revoked).status_code == 200
            problem(other.post("/v1/token/revoke", json=revoked), 409, "conflict")
        bodies.append(unauthenticated(world, f"Bearer {issued['token']}"))
        # The other token of the same principal still counts.
        assert http.get("/v1/list/northbank/datasets").status_code == 200
    assert all(body == bodies[0] for body in bodies)


def test_an_expired_token_is_refused(world: Installation) -> None:
    token = world.person("northbank/late", roles=["data-scientist"])
    # It expires: nobody waits for that here, so its end is moved to the past before it is ever used.
    with write_transaction(world.engine) as connection:
        connection.execute(
            update(ApiToken.__table__)  # type: ignore[attr-defined]
            .where(ApiToken.principal == "late")
            .values(expires_at_ms=1)
        )
    body = unauthenticated(world, f"Bearer {token}")
    assert body == unauthenticated(world, "Bearer licet_unknown")


def test_who_was_deactivated_may_do_nothing(world: Installation) -> None:
    world.person("northbank/gone", roles=["data-scientist"])
    with world.http("northbank/gone") as http:
        read = {"action": "dataset.read", "resource": "northbank/loans"}
        assert http.post("/v1/ask", json=read).json()["decision"]["decision"] == "allow"
        off = {"roles": ["data-scientist"], "active": False}
        world.client("northbank/admin").act("person.administer", "northbank/gone", off).require()
        told = http.post("/v1/ask", json=read).json()["decision"]
        assert told["decision"] == "deny"
        assert "guardrail.active.principal" in [policy["id"] for policy in told["policies"]]


# --- routes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/dataset/read", 405, "method-not-allowed"),
        ("DELETE", "/v1/list/northbank/datasets", 405, "method-not-allowed"),
        ("PUT", "/v1/ask", 405, "method-not-allowed"),
        ("POST", "/v1/uploads", 405, "method-not-allowed"),
        ("POST", "/v1/trust-root", 405, "method-not-allowed"),
        ("GET", "/access/v1/evaluation", 405, "method-not-allowed"),
        ("POST", "/v1/dataset/explode", 404, "no-such-route"),
        ("GET", "/", 404, "no-such-route"),
        ("GET", "/v1/decision/ask-for", 404, "no-such-route"),
        ("POST", "/v1/decision/ask-for", 404, "no-such-route"),
        ("GET", "/v1/list/northbank/secrets", 400, "invalid-input"),
        ("GET", "/v1/list/northbank/datasets?limit=many", 400, "invalid-input"),
        ("GET", "/v1/list/NORTHBANK/datasets", 400, "invalid-input"),
        ("GET", "/v1/enforced/northbank?from_ms=x", 400, "invalid-input"),
        ("GET", "/v1/enforced/northbank?from_ms=2&to_ms=1", 400, "invalid-input"),
        ("GET", "/v1/enforced/northbank?before=-1", 400, "invalid-input"),
        ("GET", "/v1/enforced/northbank?to_ms=99999999999999999", 400, "invalid-input"),
        ("GET", "/v1/log/northbank/entries?first=1.5", 400, "invalid-input"),
        ("GET", "/v1/log/~void", 400, "invalid-input"),
        ("GET", "/v1/operations/northbank/%00", 403, "denied"),
        ("GET", "/v1/operations/northbank/%ff%fe", 403, "denied"),
        ("GET", "/v1/operations/northbank/..%2f..%2fetc", 404, "no-such-route"),
        ("GET", "/v1/operations/northbank/" + "x" * 4000, 403, "denied"),
        ("GET", "/v1/decisions/northbank/%e2%80%ae/explain", 403, "denied"),
        ("GET", "/v1/decisions/northbank/'%20OR%201=1", 403, "denied"),
    ],
)
def test_every_wrong_address_is_answered_in_the_one_shape(  # noqa: PLR0917  # One for each column of the table above.
    world: Installation, ana: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    url = httpx.URL(world.url).copy_with(raw_path=path.encode())
    problem(ana.send(ana.build_request(method, url)), status, code)


def test_bounds_of_lists_hold(ana: httpx.Client) -> None:
    for limit in (-1, 0, 10**9):
        assert ana.get(f"/v1/list/northbank/datasets?limit={limit}").status_code == 200
    assert len(ana.get("/v1/list/northbank/datasets?limit=0").json()["items"]) == 1


def test_a_conflict_is_told_as_one(world: Installation, ana: httpx.Client) -> None:
    body = world.dataset_body("northbank/ana", table(20))
    conflict = ana.post("/v1/dataset/register", json={"resource": "northbank/loans", "parameters": body})
    problem(conflict, 409, "conflict")
    (path,) = world.settings.spool.glob(f"northbank/uploads/{body['upload']}.*")
    path.unlink()


def test_no_row_was_left_half_written(world: Installation) -> None:
    """After everything above: no operation hangs, and nothing is in a state that only work in progress has."""
    rows = {
        row["name"]: row["state"] for row in world.client("northbank/ana").list("northbank", "datasets", limit=1000)
    }
    assert "registering" not in rows.values(), (Dataset.__tablename__, rows)
    models = world.client("northbank/ana").list("northbank", "models", limit=1000)
    assert "registering" not in {row["state"] for row in models}, (ModelVersion.__tablename__, models)
    for tenant in ("northbank", "lakeside"):
        operations = world.client(f"{tenant}/all").list(tenant, "operations", limit=1000)
        assert {row["state"] for row in operations} <= {"done", "failed", "refused"}


def test_nested_policy_text_is_refused_and_ends_nothing(world: Installation) -> None:
    """Cedar's parser overflows its stack on it, which ends the process: neither the api's nor the worker's."""
    answering, working = world.supervisor.pid("api"), world.supervisor.pid("worker")
    sam = world.client("northbank/sam")
    for condition in ("(" * 5000 + "true" + ")" * 5000, "true" + " && true" * 5000, "principal" + ".tenant" * 5000):
        text = f'@id("own.x") forbid (principal, action, resource) when {{ {condition} }};'
        assert sam.ask("policy.publish", "northbank", {"policies": text}).allowed
        ended = world.done(sam, sam.policy.publish("northbank", policies=text))
        assert ended.state == "refused", ended
        assert {one["rule"] for one in ended.result["findings"] if one["severity"] == "error"} == {"too-large"}
    with world.http("lakeside/ana") as http:
        assert http.post("/v1/ask", json={"action": "model.read", "resource": "lakeside/x@1"}).status_code == 200
    assert (world.supervisor.pid("api"), world.supervisor.pid("worker")) == (answering, working)
