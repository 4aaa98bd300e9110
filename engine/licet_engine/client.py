"""The Python client for pipelines: ask, act, wait.

    with LicetClient("https://licet.example", token) as licet:
        answer = licet.model.promote("northbank/credit-risk@2", stage="prod")
        if answer.allowed:
            licet.wait(answer.operation).require()

Rules kept here:

- A denial is a value. Errors are ``LicetClientError`` and its subclasses; nothing else leaves this module.
- Every call that may change something bears an ``Idempotency-Key``. An attempt that met a lost connection or a 503 is repeated
  with the same key, so that it is done at most once however often it is sent.
- The token goes to the api and the router that the caller named, and to no other origin: no redirect is followed, and it is not
  sent unencrypted to another machine.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import random
import re
import ssl
import time
import warnings
from functools import cache
from typing import IO, TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx

from licet_engine.client_nouns import (
    ApprovalVerbs,
    AttestationVerbs,
    DatasetVerbs,
    DecisionVerbs,
    EvidenceVerbs,
    IssuerVerbs,
    KeyVerbs,
    LogVerbs,
    ModelVerbs,
    PersonVerbs,
    PolicyVerbs,
    RecordVerbs,
    RunVerbs,
    TenantVerbs,
    TicketVerbs,
    TokenVerbs,
    TrainingVerbs,
    WebhookVerbs,
)
from licet_engine.client_serving import DEFAULT_SERVING_URL, EndpointVerbs, Invocation
from licet_engine.client_values import (
    Answer,
    DecidingPolicy,
    Denied,
    Enforced,
    ExchangedToken,
    Explanation,
    LicetClientError,
    LogHead,
    NotAuthenticated,
    Operation,
    OperationFailed,
    RequestRefused,
    ServerFault,
    ServerUnavailable,
    StateConflict,
    StillRunning,
    Upload,
)
from licet_engine.domain.exchanging import GRANT_TYPE, ID_TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

__all__ = [
    "Answer",
    "DecidingPolicy",
    "Denied",
    "Explanation",
    "Invocation",
    "LicetClient",
    "LicetClientError",
    "LogHead",
    "NotAuthenticated",
    "Operation",
    "OperationFailed",
    "RequestRefused",
    "ServerFault",
    "ServerUnavailable",
    "StateConflict",
    "StillRunning",
    "Upload",
]

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_S = 30.0
DEFAULT_ATTEMPTS = 5
DEFAULT_WAIT_S = 3600.0

T = TypeVar("T")

_ACTION = re.compile(r"([a-z][a-z-]*)\.([a-z][a-z-]*)")
_LIST_ACTIONS = {"decisions": "decision.read", "operations": "operation.read"}
_CHUNK_BYTES = 1 << 20
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_FIRST_POLL_S = 0.05
_LONGEST_POLL_S = 1.0
_OK, _CREATED, _ACCEPTED = 200, 201, 202
_BAD_REQUEST, _UNAUTHORIZED, _FORBIDDEN, _CONFLICT, _SERVER_ERROR, _UNAVAILABLE = 400, 401, 403, 409, 500, 503
_GATEWAY_TIMEOUT = 504
_TOO_MANY = 429


@cache
def _authorities(*, trust_env: bool) -> ssl.SSLContext:
    """What servers' certificates are verified against: as httpx would, but read once for all clients of a process."""
    return httpx.create_ssl_context(trust_env=trust_env)


class LicetClient:
    """A connection to one Licet server as one principal.

    Not to be shared by threads. Verbs stand by noun: ``client.dataset.register``, ``client.model.promote``, ...

    Args:
        url: Where the server answers.
        token: API token of the principal; kept out of every message.
        timeout_s: For connecting and for each wait on the socket.
        attempts: How often a call is tried before ``ServerUnavailable``.
        unsafe_plain_http: Send the token unencrypted to another machine; it warns.
        serving_url: Where the router takes invocations.

    Raises:
        RequestRefused: A URL cannot be used, or the token is not one.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        token: str = "",
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        attempts: int = DEFAULT_ATTEMPTS,
        unsafe_plain_http: bool = False,
        serving_url: str = DEFAULT_SERVING_URL,
    ) -> None:
        is_local = _check_url(url, unsafe_plain_http=unsafe_plain_http)
        is_serving_local = _check_url(serving_url, unsafe_plain_http=unsafe_plain_http)
        if not re.fullmatch(r"[\x21-\x7e]*", token):
            raise RequestRefused("the token holds spaces or unprintable characters: give it as it was issued")
        headers = {"Accept": "application/json, application/problem+json", "User-Agent": "licet-client"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self.url = url.rstrip("/")
        self._attempts = max(1, attempts)
        # A proxy of the environment must not see what is meant for this machine.
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=timeout_s,
            follow_redirects=False,
            trust_env=not is_local,
            verify=_authorities(trust_env=not is_local),
        )
        self._serving = httpx.Client(
            base_url=serving_url.rstrip("/"),
            headers=headers,
            timeout=timeout_s,
            follow_redirects=False,
            trust_env=not is_serving_local,
            verify=_authorities(trust_env=not is_serving_local),
        )
        self.http = self._http
        """The connection itself, for whoever must see answers as they come."""
        self.dataset = DatasetVerbs(self)
        self.training = TrainingVerbs(self)
        self.run = RunVerbs(self)
        self.model = ModelVerbs(self)
        self.endpoint = EndpointVerbs(self)
        self.tenant = TenantVerbs(self)
        self.person = PersonVerbs(self)
        self.token = TokenVerbs(self)
        self.policy = PolicyVerbs(self)
        self.evidence = EvidenceVerbs(self)
        self.attestation = AttestationVerbs(self)
        self.key = KeyVerbs(self)
        self.decision = DecisionVerbs(self)
        self.log = LogVerbs(self)
        self.record = RecordVerbs(self)
        self.approval = ApprovalVerbs(self)
        self.ticket = TicketVerbs(self)
        self.webhook = WebhookVerbs(self)
        self.issuer = IssuerVerbs(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
        self._serving.close()

    # --- asking and acting ----------------------------------------------------------------------------------------------

    def ask(
        self,
        action: str,
        resource: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        claimed: Mapping[str, str] | None = None,
    ) -> Answer:
        """Ask whether something would be permitted; nothing is done but the decision is logged.

        What is permitted may not be possible as things stand: then the answer's ``conflict`` says why not.

        Args:
            action: Such as ``model.promote``.
            resource: Reference, such as ``northbank/credit-risk@1``.
            parameters: As the action itself takes them.
            claimed: What the asker claims; it lands in ``context.claimed`` and feeds no guardrail.
        """
        _split_action(action)
        body = {"action": action, **_body(resource, parameters, claimed)}
        response = self._send("POST", "/v1/ask", json=body)
        return _answer(action, resource, response)

    def act(
        self,
        action: str,
        resource: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        claimed: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> Answer:
        """Ask for something, and have it done if it is permitted. The verbs by noun all end here.

        Args:
            action: Such as ``model.promote``.
            resource: Reference, such as ``northbank/credit-risk@1``.
            parameters: As the action takes them.
            claimed: What the asker claims.
            idempotency_key: Of an earlier call that ended in ``ServerUnavailable``; a fresh one by default.

        Returns:
            The answer; a denial is one. Work that takes longer is its ``operation``: ``wait`` for it.
        """
        noun, verb = _split_action(action)
        key = idempotency_key or _new_key()
        response = self._send(
            "POST", f"/v1/{noun}/{verb}", json=_body(resource, parameters, claimed), idempotency_key=key
        )
        return _answer(action, resource, response)

    def exchange(self, issuer: str, id_token: str) -> ExchangedToken:
        """Exchange an ID token of a workload for a token.

        It is tried once: an ID token is exchanged once, and whoever did not get the answer needs another.

        Args:
            issuer: As the tenant knows it: ``TENANT/NAME``.
            id_token: As the issuer made it.

        Raises:
            RequestRefused: It is exchanged for nothing.
            ServerUnavailable: No answer.
        """
        form = {
            "grant_type": GRANT_TYPE,
            "subject_token_type": ID_TOKEN,
            "subject_token": id_token,
            "audience": issuer,
        }
        try:
            response = self._http.post("/v1/token/exchange", data=form)
        except httpx.TransportError as error:
            raise ServerUnavailable(
                f"{self.url}: no answer to the exchange ({_describe(error)}); is the server running there?",
                idempotency_key=None,
                is_known_undone=False,
            ) from error
        told = _object_of(response)
        if response.status_code == _BAD_REQUEST and "error" in told:
            raise RequestRefused(f"{told['error']}: {told.get('error_description', '')}")
        _checked(response, None)
        return ExchangedToken(str(told["access_token"]), int(told["expires_in"]))

    def infer(self, ref: str, body: Mapping[str, Any], *, version: int | None = None) -> Invocation:
        """Put an inference request to an endpoint, at the router; see ``EndpointVerbs.invoke``."""
        tenant, _, name = ref.partition("/")
        if not tenant or not name or "/" in name:
            raise RequestRefused(f"{ref!r} names no endpoint: use TENANT/ENDPOINT")
        path = _path("/v2/models", tenant, name) + ("" if version is None else f"/versions/{version}") + "/infer"

        def send() -> httpx.Response:
            response = self._serving.post(path, json=dict(body))
            if response.status_code == _OK:
                return response
            message, code, told = _problem(response)
            if response.status_code == _FORBIDDEN and isinstance(told.get("decision"), dict):
                denial = {"decision": {"id": str(told["decision"].get("id") or ""), "decision": "deny"}}
                raise Denied(_read(lambda b: Answer.from_json("endpoint.invoke", ref, b), denial))
            if response.status_code == _GATEWAY_TIMEOUT:
                raise ServerFault(message, code=code, status=response.status_code)
            _raise_for(response, None)
            return response

        response = self._repeat(send, f"POST {path}", None, url=str(self._serving.base_url))
        answered = _json(response)
        return _read(
            lambda b: Invocation(
                outputs={str(tensor["name"]): dict(tensor) for tensor in b["outputs"]},
                version=response.headers.get("licet-version", ""),
                number=int(response.headers.get("licet-invocation", "0")),
                session=response.headers.get("licet-session", ""),
                body=b,
            ),
            answered,
        )

    def explain(self, answer: Answer) -> Explanation | None:
        """Why an answer fell as it did, and what would turn a denial into a permission.

        Returns:
            The explanation; None for who may not read it, and for what is unknown or foreign.
        """
        # Where nothing was named there is nothing to ask for: a foreign log would only note the attempt.
        if not answer.is_explained:
            return None
        try:
            return self.decision.explain(answer.resource.partition("/")[0], answer.decision_id)
        except (Denied, RequestRefused):
            return None

    # --- operations -----------------------------------------------------------------------------------------------------

    def operation(self, tenant: str, operation_id: str) -> Operation:
        """How an operation stands."""
        body = self.get_json("/v1/operations", tenant, operation_id)
        return _read(Operation.from_json, body)

    def wait(
        self,
        operation: Operation | str,
        *,
        timeout_s: float = DEFAULT_WAIT_S,
        on_progress: Callable[[Operation], None] | None = None,
    ) -> Operation:
        """Wait until an operation has ended.

        Args:
            operation: The operation, or ``tenant/id``.
            timeout_s: How long to wait at most.
            on_progress: Called with every change of its state, attempt or progress.

        Returns:
            The operation as it ended: done, failed or refused. ``require()`` raises unless it is done.

        Raises:
            StillRunning: It has not ended in time; it goes on.
        """
        tenant, operation_id = (
            operation.partition("/")[::2] if isinstance(operation, str) else (operation.tenant, operation.id)
        )
        until_s = time.monotonic() + timeout_s
        pause_s = _FIRST_POLL_S
        seen: tuple[Any, ...] | None = None
        while True:
            current = self.operation(tenant, operation_id)
            now = (current.state, current.attempt, current.progress)
            if now != seen:
                seen, pause_s = now, _FIRST_POLL_S
                if on_progress is not None:
                    on_progress(current)
            if current.is_final:
                return current
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                raise StillRunning(f"{current.sentence()} after {timeout_s:g} s: it goes on; wait for it again")
            time.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, _LONGEST_POLL_S)

    def fetch_artifact(self, operation: Operation, target: IO[bytes]) -> str:
        """Write what a done operation made for this principal to ``target``.

        Returns:
            SHA-256 of the bytes, in hex.
        """
        path = _path("/v1/operations", operation.tenant, operation.id) + "/artifact"

        def start_over() -> None:
            target.seek(0)
            target.truncate()

        def fetch() -> str:
            start_over()
            digest = hashlib.sha256()
            with self._http.stream("GET", path) as response:
                if response.status_code != _OK:
                    response.read()
                    _raise_for(response, None)
                for chunk in response.iter_bytes(_CHUNK_BYTES):
                    digest.update(chunk)
                    target.write(chunk)
            return digest.hexdigest()

        return self._repeat(fetch, f"GET {path}", None)

    # --- uploads and look-ups -------------------------------------------------------------------------------------------

    def upload(self, path: Path) -> Upload:
        """Send a file; a verb that takes it names the upload.

        Raises:
            RequestRefused: The file is empty.
            ServerFault: What arrived is not what was sent.
        """
        digest = hashlib.sha256()
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if not size_bytes:
                raise RequestRefused(f"{path} is empty: nothing was sent; name a file that holds something")
            for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""):
                digest.update(chunk)

            def chunks() -> Iterator[bytes]:
                file.seek(0)
                yield from iter(lambda: file.read(_CHUNK_BYTES), b"")

            def send() -> httpx.Response:
                headers = {"Content-Length": str(size_bytes), "Content-Type": "application/octet-stream"}
                return self._http.put("/v1/uploads", content=chunks(), headers=headers)

            response = self._repeat(lambda: _checked(send(), None), "PUT /v1/uploads", None)
        body = _json(response)
        upload = _read(lambda b: Upload(str(b["upload"]), str(b["digest_hex"]), int(b["size_bytes"])), body)
        if upload.digest_hex != digest.hexdigest() or upload.size_bytes != size_bytes:
            raise ServerFault(f"{path}: what the server received is not what was sent; send it again")
        return upload

    def inbox(self, tenant: str, *, limit: int = 50) -> tuple[list[dict[str, Any]], bool]:
        """What waits for the asker, and whether more was there than is looked at, so that newer requests may be missing."""
        body = self.get_json("/v1/list", tenant, "inbox", params={"limit": limit})
        return _read(lambda b: ([dict(item) for item in b["items"]], bool(b["is_cut"])), body)

    def list(self, tenant: str, what: str, *, limit: int = 50) -> list[dict[str, Any]]:
        """List datasets, runs, models, environments, people, approvals, delegations, tickets, holds, operations, ...

        What waits for the asker is ``inbox()``: it tells as well whether something may be left out.
        """
        body = self.get_json("/v1/list", tenant, what, params={"limit": limit})
        return _read(lambda b: [dict(item) for item in b["items"]], body)

    def trust_root(self) -> dict[str, Any]:
        """The server's public keys. To verify what comes from this server, pin them from elsewhere."""
        return self.get_json("/v1/trust-root")

    def rotations(self) -> dict[str, Any]:
        """The ``rotations`` by which earlier trust roots lead to the server's: each a ``statement`` and where it is ``logged``."""
        return self.get_json("/v1/trust-root/rotations")

    def get_json(self, base: str, *parts: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Get a JSON object; ``parts`` are the last parts of its path, as they are."""
        return _json(self._send("GET", _path(base, *parts), params=params))

    def get_bytes(self, base: str, *parts: str) -> bytes:
        """Get a file whole; ``parts`` are the last parts of its path, as they are. For those that are small."""
        return self._send("GET", _path(base, *parts)).content

    def enforced(self, tenant: str, params: Mapping[str, Any]) -> Enforced:
        """One part of how often which policies determined a decision; see ``decision.enforced`` for all of them."""
        return _read(Enforced.from_json, self.get_json("/v1/enforced", tenant, params=params))

    # --- transport ------------------------------------------------------------------------------------------------------

    def _send(
        self,
        method: str,
        path: str,
        *,
        json: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> httpx.Response:
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}

        def send() -> httpx.Response:
            response = self._http.request(
                method, path, json=None if json is None else dict(json), params=params, headers=headers
            )
            return _checked(response, idempotency_key)

        return self._repeat(send, f"{method} {path}", idempotency_key)

    def _repeat(self, attempt: Callable[[], T], what: str, idempotency_key: str | None, *, url: str | None = None) -> T:
        """Try until there is an answer, at most ``attempts`` times; ``url`` is whose, if not the api's."""
        pause_s = _FIRST_PAUSE_S
        # Whether an attempt reached the server that may have acted on it.
        is_known_undone = True
        url = self.url if url is None else url.rstrip("/")
        for number in range(1, self._attempts + 1):
            try:
                return attempt()
            except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
                raise RequestRefused(f"{url}: {error}") from error
            except httpx.TransportError as error:
                is_known_undone = is_known_undone and isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
                problem = ServerUnavailable(
                    f"{url}: no answer to {what} in {number} attempts ({_describe(error)}); is the server running there?",
                    idempotency_key=idempotency_key,
                    is_known_undone=is_known_undone,
                )
                if number == self._attempts:
                    raise problem from error
            except ServerUnavailable as problem:
                # A 503 may be of a write of which it is not known whether it lasted; a 429 is said before anything is read.
                is_known_undone = is_known_undone and problem.status == _TOO_MANY
                problem.is_known_undone = is_known_undone
                if number == self._attempts:
                    raise
            time.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311  # Spreads retries; nothing is kept secret by it.
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        raise ServerFault("no attempt was made")


def _object_of(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer; empty where it is none."""
    try:
        told = response.json()
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _check_url(url: str, *, unsafe_plain_http: bool) -> bool:
    """Return whether ``url`` is on this machine; refuse one that cannot be used."""
    form = "use the form https://HOST[:PORT], or http://127.0.0.1:PORT for this machine"
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError as error:
        raise RequestRefused(f"{url!r} is not the address of a server ({error}): {form}") from error
    if parts.scheme not in {"http", "https"} or not host or parts.username or parts.query or parts.fragment:
        raise RequestRefused(f"{url!r} is not the address of a server: {form}")
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = host == "localhost"
    if parts.scheme == "http" and not is_local:
        if not unsafe_plain_http:
            raise RequestRefused(f"{url}: a token is not sent unencrypted to another machine: use https")
        warnings.warn(f"the token is sent unencrypted to {host}", stacklevel=3)
    return is_local


def _new_key() -> str:
    return os.urandom(16).hex()


def _split_action(action: str) -> tuple[str, str]:
    match = _ACTION.fullmatch(action)
    if match is None:
        raise RequestRefused(f"{action!r} is not an action: use NOUN.VERB, such as model.promote")
    return match[1], match[2]


def _body(resource: str, parameters: Mapping[str, Any] | None, claimed: Mapping[str, str] | None) -> dict[str, Any]:
    body: dict[str, Any] = {"resource": resource, "parameters": dict(parameters or {})}
    if claimed:
        body["claimed"] = dict(claimed)
    return body


def _path(base: str, *parts: str) -> str:
    for part in parts:
        if part in {"", ".", ".."}:
            raise RequestRefused(f"{part!r} names nothing: a tenant, a kind or an identifier is missing")
    return "/".join([base, *(quote(part, safe="@~") for part in parts)])


def _describe(error: Exception) -> str:
    return str(error) or type(error).__name__


def _problem(response: httpx.Response) -> tuple[str, str | None, dict[str, Any]]:
    """Message, code and body of an error."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        where = f"{response.request.method} {response.request.url.path}"
        return f"{where} was answered with status {response.status_code}", None, {}
    code = body.get("code")
    message = body.get("detail") or body.get("title") or f"status {response.status_code}"
    return str(message), code if isinstance(code, str) else None, body


def _checked(response: httpx.Response, idempotency_key: str | None) -> httpx.Response:
    """Give an answer back; a denial is one."""
    if response.status_code in {_OK, _CREATED, _ACCEPTED}:
        return response
    if response.status_code == _FORBIDDEN and isinstance(_problem(response)[2].get("decision"), dict):
        return response
    _raise_for(response, idempotency_key)
    return response


def _raise_for(response: httpx.Response, idempotency_key: str | None) -> None:
    message, code, body = _problem(response)
    status = response.status_code
    if status in {_UNAVAILABLE, _TOO_MANY}:  # Nothing was done; after a pause it may be.
        raise ServerUnavailable(message, code=code, status=status, idempotency_key=idempotency_key)
    if status == _UNAUTHORIZED:
        raise NotAuthenticated(message, code=code, status=status)
    if status == _CONFLICT:
        raise StateConflict(message, code=code, status=status)
    if status == _FORBIDDEN and isinstance(body.get("decision"), dict):
        action, resource = _looked_up(response.request.url.path)
        raise Denied(_read(lambda b: Answer.from_json(action, resource, b), body))
    kind = RequestRefused if _BAD_REQUEST <= status < _SERVER_ERROR else ServerFault
    raise kind(message, code=code, status=status)


def _looked_up(path: str) -> tuple[str, str]:
    """The action that a look-up asked for, and on what: people name a tenant and its things, not addresses."""
    kind, _, rest = path.removeprefix("/v1/").partition("/")
    tenant, _, below = rest.partition("/")
    identifier, _, last = below.partition("/")
    match kind:
        case "decisions" if identifier:
            return ("decision.explain" if last == "explain" else "decision.read"), f"{tenant}/{identifier}"
        case "operations" if identifier:
            return "operation.read", f"{tenant}/{identifier}"
        case "enforced" | "list":
            action = "decision.read" if kind == "enforced" else _LIST_ACTIONS.get(identifier, "catalogue.read")
            return action, tenant
        case "log":
            return "log.read", tenant
        case "endpoints":
            return "endpoint.read", rest
    return "reading", rest or kind


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError as error:
        raise ServerFault(f"{response.request.url}: not JSON; is this a Licet server?") from error
    if response.status_code == _FORBIDDEN:
        _raise_for(response, None)
    if not isinstance(body, dict):
        raise ServerFault(f"{response.request.url}: not a JSON object; is this a Licet server?")
    return body


def _read(reader: Callable[[dict[str, Any]], T], body: dict[str, Any]) -> T:
    try:
        return reader(body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ServerFault(f"an answer of the server is not of the expected form ({_describe(error)})") from error


def _answer(action: str, resource: str, response: httpx.Response) -> Answer:
    try:
        body = response.json()
    except ValueError as error:
        raise ServerFault(f"{response.request.url}: not JSON; is this a Licet server?") from error
    answer = _read(lambda b: Answer.from_json(action, resource, b), body)
    # The status and the body must say the same; where they do not, it is no.
    if answer.allowed != (response.status_code != _FORBIDDEN) and not response.request.url.path.endswith("/v1/ask"):
        raise ServerFault(f"{response.request.url}: the status and the decision of an answer contradict each other")
    return answer
