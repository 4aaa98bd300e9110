"""Active probes: every action there is, tried across tenants through the real door with a real token.

Rules kept here:

- Every verb of the catalogue is tried as an act, not only asked about, on canary resources of another tenant; and every way to read.
- A probe holds only where it is denied, and where the same on a tenant that does not exist is answered alike, to the letter but for identifiers.
- What could not be tried is counted, and is no pass.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from licet_attestations import canonical
from licet_attestations.statement import TEST_RESULT, Statement, Subject
from licet_engine.evidence.isolation import PROBES_SUBJECT
from licet_engine.lifecycle.catalogue import VERBS
from licet_engine.lifecycle.verbs import RefForm

if TYPE_CHECKING:
    import httpx
    from pydantic import BaseModel

ABSENT: Final = "licet-no-such-tenant"
"""A tenant that does not exist, to compare with."""
CANARY: Final = "canary"
_DENIED: Final = 403
_LATER: Final = frozenset({429, 503})
_NOT_ACCEPTED: Final = _LATER | {400, 401}
_MOST_TRIES: Final = 5
_LONGEST_PAUSE_S: Final = 10.0
_TEXTS: Final = (
    *(
        "canary",
        "canary/canary",
        "canary/canary@1",
        "0" * 32,
        "0" * 64,
        "https://canary.example/",
        "CANARY-1",
        "1",
        "us",
    ),
    *("decisions", "model-risk", "msg_canary", "internal", "canary.policy"),
)
"""Of which the first that fits is sent."""
_MORE: Final[Mapping[str, Mapping[str, Any]]] = {
    "tenant.administer": {"budgets": {"canary": 1}},
    "token.revoke": {"every": True},
    "policy.shadow": {"off": True},
    "record.erase": {"entries": [0]},
    "endpoint.shift-traffic": {"weights": {"1": 100}},
    "webhook.create": {"url": "https://canary.example/"},
    "issuer.trust": {"url": "https://canary.example/", "claims": {"repository": "canary/canary"}},
}
"""What an action takes at the least beyond what its schema says."""
_UPLOAD: Final = b"canary\n1\n"
_IDENTIFIERS: Final = re.compile(r"[0-9a-f]{32}")
_READS: Final = (
    "/v1/log/{}",
    "/v1/log/{}/entries",
    "/v1/log/{}/directory",
    "/v1/tlog/{}/checkpoint",
    "/v1/list/{}/issuers",
    "/v1/isolation/{}/" + CANARY,
    "/v1/enforced/{}",
    "/v1/flips/{}",
    "/v1/list/{}/datasets",
    "/v1/list/{}/models",
    "/v1/list/{}/decisions",
    "/v1/list/{}/operations",
    "/v1/list/{}/people",
    "/v1/decisions/{}/" + "0" * 32,
    "/v1/decisions/{}/" + "0" * 32 + "/explain",
    "/v1/operations/{}/" + "0" * 32,
    "/v1/operations/{}/" + "0" * 32 + "/artifact",
    "/v1/endpoints/{}/" + CANARY,
)


@dataclass(frozen=True, slots=True)
class Probe:
    """One thing to try.

    Attributes:
        name: The action, or the address that is read.
        method: HTTP method.
        path: Where; of the tenant that is tried.
        body: What is sent, or None.
    """

    name: str
    method: str
    path: str
    body: Mapping[str, Any] | None = None


@dataclass(slots=True)
class Probed:
    """What came of probes.

    Attributes:
        tried: How many were decided on.
        allowed: Those that were not denied.
        told_apart: Those that were answered otherwise than on a tenant that does not exist.
        not_tried: Those that were not decided on, with why.
    """

    tried: int = 0
    allowed: list[str] = field(default_factory=list)
    told_apart: list[str] = field(default_factory=list)
    not_tried: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether everything was tried and denied, and nothing told apart."""
        return bool(self.tried) and not (self.allowed or self.told_apart or self.not_tried)

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "tried": self.tried,
            "allowed": list(self.allowed),
            "told_apart": list(self.told_apart),
            "not_tried": list(self.not_tried),
        }


def probes(tenant: str) -> Iterator[Probe]:
    """Everything that is tried on a tenant's things."""
    resources = {
        RefForm.TENANT: tenant,
        RefForm.NAME: f"{tenant}/{CANARY}",
        RefForm.BUNDLE: f"{tenant}/{CANARY}",
        RefForm.VERSION: f"{tenant}/{CANARY}@1",
        RefForm.NAME_OR_VERSION: f"{tenant}/{CANARY}",
    }
    for action, verb in VERBS.items():
        body = {"resource": resources[verb.form], "parameters": sample(verb.body, _MORE.get(action, {}))}
        yield Probe(action, "POST", "/v1/" + action.replace(".", "/", 1), body)
    for path in _READS:
        yield Probe(f"GET {path.format('TENANT')}", "GET", path.format(tenant))


def probe(http: httpx.Client, owner: str) -> Probed:
    """Try everything on a tenant's things, and on a tenant's that does not exist.

    Args:
        http: Speaks for a principal of another tenant, at the API's own address.
        owner: Whose canary resources are tried.
    """
    found = Probed()
    for real, absent in zip(probes(owner), probes(ABSENT), strict=True):
        answers = [_try(http, each) for each in (real, absent)]
        if answers[0].status_code in _NOT_ACCEPTED:
            found.not_tried.append(f"{real.name}: {answers[0].status_code}")
            continue
        found.tried += 1
        if answers[0].status_code != _DENIED:
            found.allowed.append(real.name)
        elif _told(answers[0]) != _told(answers[1]):
            found.told_apart.append(real.name)
    return found


def _try(http: httpx.Client, each: Probe) -> httpx.Response:
    """Try it; again, after a pause, where the service has no place or the rate is used up."""
    for _ in range(_MOST_TRIES - 1):
        answer = _try_once(http, each)
        if answer.status_code not in _LATER:
            return answer
        time.sleep(min(float(answer.headers.get("retry-after", "1")), _LONGEST_PAUSE_S))
    return _try_once(http, each)


def _try_once(http: httpx.Client, each: Probe) -> httpx.Response:
    if each.body is None:
        return http.request(each.method, each.path)
    parameters = dict(each.body["parameters"])
    if "upload" in parameters:
        # An upload of its own, or it would be refused for that, and nothing decided.
        sent = http.put("/v1/uploads", content=_UPLOAD, headers={"Content-Type": "application/octet-stream"}).json()
        parameters |= {name: sent[name] for name in ("upload", "digest_hex", "size_bytes") if name in sent}
    return http.request(each.method, each.path, json={**each.body, "parameters": parameters})


def probes_statement(found: Probed, tenant: str, at_ms: int) -> Statement:
    """in-toto test-result of probes on a tenant's canary resources; with its time, so that the same result later is another statement."""
    report: dict[str, Any] = {
        "tenant": tenant,
        "at_ms": at_ms,
        "tried": found.tried,
        # What was told apart, or could not be tried, is no denial.
        "allowed": len(found.allowed) + len(found.told_apart) + len(found.not_tried),
        "passedTests": ["licet:isolation-probes"] if found.holds else [],
        "failedTests": [*found.allowed, *found.told_apart, *found.not_tried],
    }
    predicate = {**report, "result": "PASSED" if found.holds else "FAILED", "configuration": []}
    return Statement((Subject(PROBES_SUBJECT, canonical.digest_hex(report)),), TEST_RESULT, predicate)


def _told(answer: httpx.Response) -> tuple[int, str]:
    """What an answer says, without what is another each time."""
    return answer.status_code, _IDENTIFIERS.sub("*", answer.text.replace(ABSENT, "*"))


# --- What is sent -------------------------------------------------------------------------------------------------------


def sample(model: type[BaseModel], more: Mapping[str, Any]) -> dict[str, Any]:
    """The least that a model takes, made from its own schema.

    Args:
        model: Of a verb's body.
        more: What it takes beyond what its schema says.

    Raises:
        LookupError: Nothing that is known here fits.
    """
    schema = model.model_json_schema()
    made: dict[str, Any] = _value(schema, schema.get("$defs", {})) | more
    model.model_validate_json(json.dumps(made))
    return made


def _value(schema: Mapping[str, Any], named: Mapping[str, Any]) -> Any:  # noqa: PLR0911  # One return for each kind of value.
    if "$ref" in schema:
        return _value(named[schema["$ref"].rpartition("/")[2]], named)
    for word in ("const", "default"):
        if word in schema:
            return schema[word]
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return _value(schema["anyOf"][0], named)
    match schema.get("type"):
        case "object":
            parts = schema.get("properties", {})
            return {name: _value(parts[name], named) for name in schema.get("required", ())}
        case "array":
            return [_value(schema.get("items", {}), named)] * schema.get("minItems", 0)
        case "integer":
            least = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
            return min(least, schema["maximum"]) if "maximum" in schema else least
        case "boolean":
            return False
    return _text(schema)


def _text(schema: Mapping[str, Any]) -> str:
    pattern = re.compile(schema.get("pattern", ""))
    least, most = schema.get("minLength", 0), schema.get("maxLength", 1000)
    for text in _TEXTS:
        if least <= len(text) <= most and pattern.search(text):
            return text
    raise LookupError(f"no text that is known here fits {pattern.pattern!r}: add one")
