"""A job of a CI, without a secret of its own, exchanges its ID token and acts; whoever is not just that job does not."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm
from sqlmodel import col, select

from licet_engine.api.exchange import ACCESS_TOKEN, GRANT_TYPE
from licet_engine.client import LicetClient
from licet_engine.client_values import LicetClientError
from licet_engine.store import tables
from licet_engine.store.db import tenant_session

sys.path.append(str(Path(__file__).parent))
from service_world import Installation, poll, problem  # The line above finds it.

from postgres_server import PostgresServer

pytestmark = pytest.mark.slow

NUMBERS = count()
REPOSITORY = "northbank/policies"
AUDIENCE = "licet:northbank/github"
ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"


class Issuer:
    """An issuer of ID tokens on loopback: discovery, keys, and a door like that of GitHub Actions."""

    def __init__(self) -> None:
        self.keys = {"one": rsa.generate_private_key(65537, 2048)}
        self.asked = 0
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                told: Any = {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/keys"}
                if parts.path == "/keys":
                    issuer.asked += 1
                    told = issuer.published()
                elif parts.path == "/id-token":
                    assert self.headers["Authorization"] == "Bearer runner"
                    told = {"value": issuer.token(aud=parse_qs(parts.query)["audience"][0])}
                body = json.dumps(told).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def published(self) -> dict[str, Any]:
        return {
            "keys": [
                {**RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"}
                for kid, key in self.keys.items()
            ]
        }

    def token(self, kid: str = "one", **changes: Any) -> str:
        now_s = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": f"repo:{REPOSITORY}:ref:refs/heads/main",
            "repository": REPOSITORY,
            "ref": "refs/heads/main",
            "sha": "0123456789abcdef",
            "run_id": "4711",
            "event_name": "push",
            "iat": now_s,
            "exp": now_s + 300,
            "jti": str(next(NUMBERS)),
        }
        return jwt.encode(claims | changes, self.keys[kid], "RS256", {"kid": kid})

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Two tenants with their people, whose worker may reach this machine."""
    urls = ""
    if request.param == "postgresql":
        server: PostgresServer = request.getfixturevalue("postgres")
        urls = str(server.write_urls(server.create(), tmp_path_factory.mktemp("database") / "urls"))
    installation = Installation(outbound_networks="127.0.0.0/8", database_urls=urls)
    try:
        installation.start()
        for tenant, region in (("northbank", "us"), ("lakeside", "eu")):
            installation.people(tenant, region)
        yield installation
    finally:
        installation.stop()


@pytest.fixture(scope="module")
def issuer(world: Installation) -> Iterator[Issuer]:
    """One for each world: its keys change."""
    assert world.url
    made = Issuer()
    yield made
    made.close()


@pytest.fixture(scope="module")
def trusted(world: Installation, issuer: Issuer) -> Installation:
    """northbank trusts the issuer for its repository's main branch; lakeside as well, for the very same claims."""
    for tenant in ("northbank", "lakeside"):
        world.person(f"{tenant}/deploys", kind="service", roles=["security-engineer"], owner="sam")
        claims = {"repository": REPOSITORY, "ref": "refs/heads/main"}
        world.client(f"{tenant}/admin").issuer.trust(
            f"{tenant}/github", issuer.url, account="deploys", claims=claims, unsafe_http=True
        ).require()
    for tenant in ("northbank", "lakeside"):
        poll("the keys to be fetched", lambda tenant=tenant: listed(world, tenant)["keys"] == ["one"], 60)
    return world


def listed(world: Installation, tenant: str) -> dict[str, Any]:
    (row,) = [row for row in world.client(f"{tenant}/admin").list(tenant, "issuers") if row["name"] == "github"]
    return dict(row)


def post(world: Installation, token: str, **changes: str | None) -> httpx.Response:
    form = {"grant_type": GRANT_TYPE, "subject_token": token, "subject_token_type": ID_TOKEN}
    form |= {"audience": "northbank/github"}
    sent = {name: value for name, value in {**form, **changes}.items() if value is not None}
    return world.http(None).post("/v1/token/exchange", data=sent)


def refused(response: httpx.Response) -> None:
    """There is one refusal, whatever is the reason."""
    assert (response.status_code, response.json()["error"]) == (400, "invalid_grant"), response.text
    assert response.json()["error_description"].startswith("this ID token is not exchanged here")
    assert response.headers["cache-control"] == "no-store"


def people_notes(world: Installation, tenant: str, event: str) -> list[dict[str, Any]]:
    return [record for _, record in world.entries(tenant) if record.get("event") == event]


def test_a_job_has_a_token_for_its_account_and_every_decision_says_which_job_it_was(
    trusted: Installation, issuer: Issuer
) -> None:
    id_token = issuer.token()
    response = post(trusted, id_token)
    assert response.status_code == 200, response.text
    told = response.json()
    assert (told["token_type"], told["issued_token_type"]) == ("Bearer", ACCESS_TOKEN)
    assert 0 < told["expires_in"] <= 300
    assert response.headers["cache-control"] == "no-store"
    with LicetClient(trusted.url, told["access_token"]) as job:
        answer = job.ask("policy.publish", "northbank")
        assert answer.allowed
        record = next(r for _, r in trusted.entries("northbank") if r.get("id") == answer.decision_id)
        assert record["principal"] == {"type": "ServiceAccount", "id": "northbank/deploys"}
        claimed = {claim["name"]: claim["value"] for claim in record["context"]["claimed"]}
        assert claimed["workload.repository"] == REPOSITORY
        assert (claimed["workload.run_id"], claimed["workload.sha"]) == ("4711", "0123456789abcdef")
        # It is never the second person, whatever roles the account has.
        assert not job.ask("policy.activate", "northbank/0123456789abcdef").allowed
    (noted,) = people_notes(trusted, "northbank", "token-exchanged")[-1:]
    assert (noted["subject"], noted["workload"]["run_id"]) == ("northbank/deploys", "4711")
    # What was exchanged stands nowhere: neither token.
    for secret in (told["access_token"], id_token.rpartition(".")[2]):
        assert secret not in trusted.output()
        assert all(secret not in json.dumps(record) for _, record in trusted.entries("northbank"))


def test_nobody_may_claim_to_be_a_workload(trusted: Installation) -> None:
    body = {"action": "policy.publish", "resource": "northbank", "claimed": {"workload.repository": REPOSITORY}}
    answer = problem(trusted.http("northbank/sam").post("/v1/ask", json=body), 400, "invalid-input")
    assert "workload.*" in answer["detail"]


def test_an_id_token_is_exchanged_once_however_many_try_at_once(trusted: Installation, issuer: Issuer) -> None:
    token = issuer.token()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(trusted, token), range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] + [400] * 7
    for answer in answers:
        if answer.status_code == 400:
            refused(answer)


@pytest.mark.parametrize(
    "changes",
    [
        {"repository": "evil/policies"},
        {"repository": None},
        {"repository": [REPOSITORY]},
        {"ref": "refs/heads/feature"},
        {"aud": "licet:lakeside/github"},
        {"iss": "https://token.actions.githubusercontent.com"},
        {"exp": 1_700_000_000},
        {"iat": 4_000_000_000, "exp": 4_000_000_300},
    ],
    ids=str,
)
def test_a_token_that_is_not_just_so_is_refused(trusted: Installation, issuer: Issuer, changes: dict[str, Any]) -> None:
    refused(post(trusted, issuer.token(**changes)))


def test_a_genuine_token_of_another_job_stands_in_the_tenants_log_and_in_no_other(
    trusted: Installation, issuer: Issuer
) -> None:
    time.sleep(2.1)  # As many are logged as one a second.
    before = trusted.size("lakeside")
    refused(post(trusted, issuer.token(repository="evil/policies", run_id="666")))
    (noted,) = people_notes(trusted, "northbank", "exchange-refused")[-1:]
    assert noted["workload"]["repository"] == "evil/policies"
    assert "repository" in noted["reason"]
    assert trusted.size("lakeside") == before


def test_another_tenant_that_trusts_the_same_issuer_learns_and_gets_nothing(
    trusted: Installation, issuer: Issuer
) -> None:
    # lakeside names the very same repository. A token that northbank's job made for northbank is none for lakeside,
    refused(post(trusted, issuer.token(), audience="lakeside/github"))
    # nor is one that was made for lakeside exchanged at northbank, nor does it tell whether a tenant or an issuer is there.
    foreign = issuer.token(aud="licet:lakeside/github")
    answers = [
        post(trusted, foreign, audience=audience)
        for audience in (
            "northbank/github",
            "northbank/gitlab",
            "nowhere/github",
            "~void/github",
            "",
            "x" * 300,
            "a/b@1",
        )
        if audience
    ]
    for answer in answers:
        refused(answer)
    assert len({(answer.text, tuple(sorted(set(answer.headers) - {"date"}))) for answer in answers}) == 1
    # Whom northbank trusts is nobody's to read but northbank's.
    problem(trusted.http("lakeside/admin").get("/v1/list/northbank/issuers"), 403, "denied")
    assert not trusted.client("lakeside/admin").issuer.remove("northbank/github").allowed


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
        ({"grant_type": None}, "unsupported_grant_type"),
        ({"subject_token_type": "urn:ietf:params:oauth:token-type:saml2"}, "invalid_request"),
        ({"subject_token": None}, "invalid_request"),
        ({"subject_token": ""}, "invalid_request"),
        ({"audience": None}, "invalid_request"),
        ({"requested_token_type": "urn:ietf:params:oauth:token-type:refresh_token"}, "invalid_request"),
        ({"actor_token": "x"}, "invalid_request"),
        ({"subject_token": "a.b.c"}, "invalid_grant"),
        ({"subject_token": "x" * 20_000}, "invalid_grant"),
    ],
    ids=str,
)
def test_a_form_that_is_not_just_so_is_refused_as_oauth_has_it(
    trusted: Installation, changes: dict[str, str | None], code: str
) -> None:
    response = post(trusted, "a.b.c", **changes)
    assert (response.status_code, response.json()["error"]) == (400, code), response.text


def test_what_is_no_form_or_too_large_is_refused(trusted: Installation) -> None:
    http = trusted.http(None)
    assert http.post("/v1/token/exchange", json={}).json()["error"] == "invalid_request"
    twice = f"grant_type={GRANT_TYPE}&grant_type={GRANT_TYPE}"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert "twice" in http.post("/v1/token/exchange", content=twice, headers=headers).json()["error_description"]
    large = http.post("/v1/token/exchange", content="a=" + "x" * 30_000, headers=headers)
    problem(large, 413, "too-large")


def test_a_new_key_of_the_issuer_is_fetched_when_it_is_first_named(trusted: Installation, issuer: Issuer) -> None:
    issuer.keys["two"] = rsa.generate_private_key(65537, 2048)
    refused(post(trusted, issuer.token("two")))
    poll("the new key to be fetched", lambda: listed(trusted, "northbank")["keys"] == ["one", "two"], 60)
    assert post(trusted, issuer.token("two")).status_code == 200
    # Keys that nobody has are not asked for again and again.
    asked = issuer.asked
    issuer.keys["three"] = rsa.generate_private_key(65537, 2048)
    stranger = issuer.token("three")
    del issuer.keys["three"]
    for _ in range(20):
        refused(post(trusted, stranger))
    time.sleep(5)
    assert issuer.asked - asked <= 2


def test_the_command_writes_the_token_to_a_file_of_its_owner_and_shows_it_nowhere(
    trusted: Installation, issuer: Issuer, tmp_path: Path
) -> None:
    base = {"PATH": os.environ["PATH"], "LICET_URL": trusted.url, "HOME": str(tmp_path)}

    def licet(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).with_name("licet")), *arguments],
            env=base | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    actions = {"ACTIONS_ID_TOKEN_REQUEST_URL": f"{issuer.url}/id-token?v=1", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "runner"}
    at_github, at_gitlab = tmp_path / "github", tmp_path / "gitlab"
    ended = licet("token", "exchange", "northbank/github", "--out", str(at_github), **actions)
    assert ended.returncode == 0, ended.stderr
    also = licet("token", "exchange", "northbank/github", "--out", str(at_gitlab), LICET_ID_TOKEN=issuer.token())
    assert also.returncode == 0, also.stderr
    for file, said in ((at_github, ended), (at_gitlab, also)):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert file.read_text().strip() not in said.stdout + said.stderr
        asked = licet("ask", "policy.publish", "northbank", LICET_TOKEN_FILE=str(file))
        assert asked.returncode == 0, asked.stdout
    # A token that is there is not written over, and none is asked for in vain.
    again = licet("token", "exchange", "northbank/github", "--out", str(at_github), **actions)
    assert (again.returncode, "must be a new file" in again.stderr) == (2, True), again.stderr
    nothing = licet("token", "exchange", "northbank/github", "--out", str(tmp_path / "none"))
    assert "id-token: write" in nothing.stderr
    wrong = licet(
        *("token", "exchange", "northbank/github", "--out", str(tmp_path / "wrong"), "--patience", "0s"),
        LICET_ID_TOKEN=issuer.token(ref="refs/heads/other"),
    )
    assert wrong.returncode == 2
    assert "invalid_grant" in wrong.stderr
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": "http://ci.example"}, "must be https"),
        ({"url": "https://user:secret@ci.example"}, "https://HOST"),
        ({"url": "https://ci.example:99999"}, "valid host and port"),
        ({"claims": {"ref": "refs/heads/main"}}, "bind the tokens to one repository"),
        ({"claims": {}}, "claims"),
        ({"claims": {"repository": "a/b", "aud": "x"}}, "always looked at"),
        ({"keys": {"keys": []}}, "holds no key"),
        ({"account": "deploys@1"}, "account"),
    ],
    ids=str,
)
def test_an_issuer_is_not_trusted_with_less_than_it_takes(
    trusted: Installation, changes: dict[str, Any], said: str
) -> None:
    body = {"url": "https://ci.example", "account": "deploys", "claims": {"repository": "a/b"}}
    sent = {"resource": "northbank/other", "parameters": body | changes}
    answer = problem(trusted.http("northbank/admin").post("/v1/issuer/trust", json=sent), 400, "invalid-input")
    assert said in answer["detail"]
    assert "secret" not in answer["detail"]


def test_an_issuer_stands_for_a_service_account_alone_and_administrators_alone_say_so(trusted: Installation) -> None:
    claims = {"repository": "a/b"}
    for who in ("sam", "ana"):
        trusting = trusted.client(f"northbank/{who}").issuer
        assert not trusting.trust("northbank/other", "https://ci.example", account="deploys", claims=claims).allowed
    sent = {"url": "https://ci.example", "account": "sam", "claims": claims}
    body = {"resource": "northbank/other", "parameters": sent}
    answer = problem(trusted.http("northbank/admin").post("/v1/issuer/trust", json=body), 409, "conflict")
    assert "no service account" in answer["detail"]


def test_keys_that_were_given_are_never_fetched_and_count_for_good(trusted: Installation, issuer: Issuer) -> None:
    admin = trusted.client("northbank/admin")
    admin.issuer.trust(
        "northbank/pinned",
        "https://ci.example",
        account="deploys",
        claims={"repository": REPOSITORY},
        keys=issuer.published(),
    ).require()
    token = issuer.token(iss="https://ci.example", aud="licet:northbank/pinned")
    assert post(trusted, token, audience="northbank/pinned").status_code == 200
    row = next(row for row in admin.list("northbank", "issuers") if row["name"] == "pinned")
    assert not row["fetched"]


def test_who_is_trusted_no_more_gets_nothing_and_what_it_got_counts_no_more(
    trusted: Installation, issuer: Issuer
) -> None:
    admin = trusted.client("northbank/admin")
    claims = {"repository": REPOSITORY}
    keys = issuer.published()
    trust = lambda: admin.issuer.trust(  # noqa: E731  # Twice the same.
        "northbank/short", "https://ci.example", account="deploys", claims=claims, keys=keys
    ).require()
    trust()
    made = lambda: issuer.token(iss="https://ci.example", aud="licet:northbank/short")  # noqa: E731  # Each time another.
    token = post(trusted, made(), audience="northbank/short").json()["access_token"]
    with LicetClient(trusted.url, token) as job:
        assert job.ask("policy.publish", "northbank").allowed
        assert admin.issuer.remove("northbank/short").require().result["revoked"] == 1
        with pytest.raises(LicetClientError, match="revoked"):
            job.ask("policy.publish", "northbank")
    refused(post(trusted, made(), audience="northbank/short"))
    trust()
    assert post(trusted, made(), audience="northbank/short").status_code == 200


def test_a_deactivated_account_and_a_suspended_tenant_get_nothing(trusted: Installation, issuer: Issuer) -> None:
    admin, operator = trusted.client("northbank/admin"), trusted.client("platform/operator")
    body = {"kind": "service", "roles": ["security-engineer"], "owner": "sam"}
    held = post(trusted, issuer.token()).json()["access_token"]
    for end, begin in (
        (
            lambda: admin.act("person.administer", "northbank/deploys", body | {"active": False}),
            lambda: admin.act("person.administer", "northbank/deploys", body),
        ),
        (
            lambda: operator.act("tenant.suspend", "northbank", {"suspended": True, "reason": "a drill"}),
            lambda: operator.act("tenant.suspend", "northbank", {"suspended": False, "reason": "over"}),
        ),
    ):
        end().require()
        try:
            refused(post(trusted, issuer.token()))
            with LicetClient(trusted.url, held) as job:
                assert not job.ask("policy.publish", "northbank").allowed
            with tenant_session(trusted.engine, "northbank") as session:
                of_exchange = select(tables.Decision).where(tables.Decision.action == "token.exchange")
                newest = session.exec(of_exchange.order_by(col(tables.Decision.leaf_index).desc())).first()
            assert newest is not None
            assert not newest.allowed
        finally:
            begin().require()
        assert post(trusted, issuer.token()).status_code == 200


def test_keys_that_are_as_they_were_are_no_news(trusted: Installation, issuer: Issuer) -> None:
    before, known = people_notes(trusted, "northbank", "issuer-keys"), listed(trusted, "northbank")["keys_as_of_ms"]
    stranger = Issuer()
    issuer.keys["unpublished"] = stranger.keys["one"]
    token = issuer.token("unpublished")
    del issuer.keys["unpublished"]
    refused(post(trusted, token))
    poll("the keys to be looked at", lambda: listed(trusted, "northbank")["keys_as_of_ms"] > known, 90)
    stranger.close()
    assert people_notes(trusted, "northbank", "issuer-keys") == before
