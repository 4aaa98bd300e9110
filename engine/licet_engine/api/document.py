"""The API's description: an OpenAPI document, complete for every route, and a page that shows it.

Rules kept here:

- What a verb takes is said by its model, once: the document has its JSON schema, and the page shows the document.
- The page is text that this service wrote: it runs no script and loads nothing, from here or elsewhere, and its policy says so.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from html import escape
from typing import Any, Final

import msgspec
from litestar import Request, Router
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin

from licet_engine.api import authzen_forms
from licet_engine.lifecycle.catalogue import VERBS
from licet_engine.lifecycle.verbs import Verb
from licet_engine.store.tables.shadow import COUNTED

_REF: Final = "#/components/schemas/"
_TEXT: Final[Mapping[str, Any]] = {"type": "string"}
_WHOLE: Final[Mapping[str, Any]] = {"type": "integer"}
_TEXTS: Final[Mapping[str, Any]] = {"type": "array", "items": {"type": "string"}}
_ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}
_OBJECTS: Final[Mapping[str, Any]] = {"type": "array", "items": _ANY_OBJECT}


def _object(optional: tuple[str, ...] = (), **members: Any) -> dict[str, Any]:
    """An object of these members, each of which is there but for the optional ones."""
    required = [name for name in members if name not in optional]
    return {"type": "object", "properties": members, "required": required}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF + name}


def _or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_POLICY: Final = _object(
    ("title", "advice", "control", "severity"),
    id=_TEXT,
    title=_TEXT,
    advice=_TEXT,
    requires=_TEXTS,
    control=_TEXT,
    severity=_TEXT,
)
_ATTESTATION: Final[Mapping[str, Any]] = {
    "digest_hex": _TEXT,
    "predicate_type": _TEXT,
    "kind": _TEXT,
    "about": _TEXTS,
    "leaf_index": _WHOLE,
    "at_ms": _WHOLE,
}
_SHADOW: Final = _object(
    id=_TEXT,
    bundle_hex=_TEXT,
    active_hex=_TEXT,
    set_by=_TEXT,
    since_ms=_WHOLE,
    ended_at_ms=_or_null(_WHOLE),
    ended=_or_null({"enum": ["off", "replaced", "overtaken"]}),
)
_COMPARED: Final[Mapping[str, Any]] = dict.fromkeys(COUNTED, _WHOLE)
_JUDGEMENT: Final = _object(decision={"enum": ["allow", "deny"]}, reasons=_TEXTS, errors=_TEXTS)
_FLIP: Final = _object(
    decision=_TEXT,
    at_ms=_WHOLE,
    principal=_TEXT,
    action=_TEXT,
    resource=_TEXT,
    before=_JUDGEMENT,
    after=_JUDGEMENT,
)
_SCHEMAS: Final[Mapping[str, Any]] = {
    "Policy": {**_POLICY, "description": "A policy that determined the decision, for who may read policy."},
    "Decision": {
        **_object(
            ("policies", "errors", "observed"),
            id=_TEXT,
            decision={"enum": ["allow", "deny"]},
            policies={"type": "array", "items": _ref("Policy")},
            errors=_TEXTS,
            observed=_TEXTS,
        ),
        "description": "Of what is unknown or another tenant's there is nothing but the id and a no.",
    },
    "Accepted": _object(id=_TEXT, tenant=_TEXT, state=_TEXT),
    "Answer": _object(decision=_ref("Decision"), operation=_or_null(_ref("Accepted")), result=_ANY_OBJECT),
    "DryAnswer": {
        **_object(decision=_ref("Decision"), conflict=_or_null(_object(code=_TEXT, detail=_TEXT))),
        "description": "With an allow, conflict says why it could not be done as things stand, where that is so.",
    },
    "Problem": {
        **_object(
            ("decision",),
            type=_TEXT,
            title=_TEXT,
            status=_WHOLE,
            code=_TEXT,
            detail=_TEXT,
            decision=_ref("Decision"),
        ),
        "description": "An error as RFC 9457 has it; a denial bears its decision.",
    },
    "Upload": _object(upload=_TEXT, digest_hex=_TEXT, size_bytes=_WHOLE),
    "Operation": _object(
        id=_TEXT,
        tenant=_TEXT,
        action=_TEXT,
        resource=_TEXT,
        state={"enum": ["accepted", "running", "done", "failed", "refused"]},
        attempt=_WHOLE,
        decision=_TEXT,
        principal=_TEXT,
        progress=_or_null(_ANY_OBJECT),
        result=_or_null(_ANY_OBJECT),
        error=_or_null(_ANY_OBJECT),
        created_at_ms=_WHOLE,
        updated_at_ms=_WHOLE,
    ),
    "List": {
        **_object(("is_cut",), items=_OBJECTS, is_cut={"type": "boolean"}),
        "description": "Of the inbox alone is_cut says whether more was there than is looked at, so that newer rows may be missing.",
    },
    "Flips": {
        **_object(
            shadow=_or_null(_SHADOW),
            counts=_object(decided=_WHOLE, **_COMPARED),
            by_action={"type": "array", "items": _object(action=_TEXT, decided=_WHOLE, **_COMPARED)},
            by_policy={"type": "array", "items": _object(policy=_TEXT, to_deny=_WHOLE, to_allow=_WHOLE)},
            flips={"type": "array", "items": _FLIP},
        ),
        "description": "Of the newest candidate, whether it still runs or not; no shadow where there was none.",
    },
    "DecisionRecord": _object(record=_ANY_OBJECT, leaf_index=_WHOLE, leaf=_TEXT),
    "Enforced": _object(
        groups={
            "type": "array",
            "items": _object(decision={"enum": ["allow", "deny"]}, policies=_TEXTS, observed=_TEXTS, count=_WHOLE),
        },
        decisions=_WHOLE,
        unread={**_WHOLE, "description": "Of how many of them the record was erased."},
        own={"type": "boolean", "description": "Whether only the asker's own decisions were looked at."},
        next={**_or_null(_WHOLE), "description": "What to send as before, to go on; null where that was all."},
    ),
    "Explanation": _object(
        record=_ANY_OBJECT,
        explanation=_ANY_OBJECT,
        path=_or_null(_ANY_OBJECT),
        now={**_or_null(_ANY_OBJECT), "description": "The same question on the facts and by the policies of now."},
    ),
    "Endpoint": _object(
        endpoint=_ANY_OBJECT,
        deployments=_OBJECTS,
        events=_OBJECTS,
        invocations=_ANY_OBJECT,
        live={**_object(state=_TEXT), "description": "As the router last told; state says whether it did of late."},
        path=_TEXT,
    ),
    "ExchangedToken": _object(
        access_token=_TEXT, issued_token_type=_TEXT, token_type={"const": "Bearer"}, expires_in=_WHOLE
    ),
    "ExchangeRefused": _object(error=_TEXT, error_description=_TEXT),
    "LogHead": _object(size=_WHOLE, root_hex=_TEXT, origin=_TEXT, checkpoint=_TEXT),
    "LogEntries": _object(entries={"type": "array", "items": _object(index=_WHOLE, leaf=_ANY_OBJECT)}),
    "DirectoryOpening": {
        **_object(
            v=_WHOLE,
            tenant=_TEXT,
            size=_WHOLE,
            root=_TEXT,
            pairs_root=_TEXT,
            salt=_TEXT,
            siblings=_TEXTS,
            leaf=_TEXT,
            record_salt=_TEXT,
            record=_ANY_OBJECT,
            proof=_TEXT,
        ),
        "description": "What the directory of all logs commits to of this one; docs/formats.md says how it is verified.",
    },
    "IsolationAnswer": _object(
        digest_hex=_TEXT,
        statement={**_ANY_OBJECT, "description": "DSSE envelope of the signed statement."},
        predicate={**_ANY_OBJECT, "description": "What the statement says, read."},
    ),
    "Attestations": _object(items={"type": "array", "items": _object(**_ATTESTATION)}),
    "Attestation": _object(
        **_ATTESTATION,
        statement={**_ANY_OBJECT, "description": "DSSE envelope of the signed statement."},
        logged={
            **_object(leaf_index=_WHOLE, leaf=_TEXT, salt=_TEXT, record=_TEXT, proof=_TEXT),
            "description": "The entry of the log that names it, and its .tlog-proof.",
        },
    ),
    "TrustRoot": _ANY_OBJECT,
    "Rotations": _object(rotations=_OBJECTS),
    "Live": _object(status=_TEXT),
    "Ready": _object(status=_TEXT, faults=_TEXTS, degraded=_TEXTS),
    "AuthzenAnswer": _object(decision={"type": "boolean"}, context=_ANY_OBJECT),
    "AuthzenAnswers": {
        "anyOf": [
            _object(evaluations={"type": "array", "items": _ref("AuthzenAnswer")}),
            _ref("AuthzenAnswer"),
        ]
    },
    "AuthzenConfiguration": _object(
        policy_decision_point=_TEXT, access_evaluation_endpoint=_TEXT, access_evaluations_endpoint=_TEXT
    ),
}
_PROBLEMS: Final[Mapping[int, str]] = {
    400: "What was sent has not the form that this takes.",
    401: "No token that counts.",
    403: "Denied; the decision is logged.",
    409: "Permitted, but not possible as things stand, or the idempotency key was used for another request.",
    413: "More than is read.",
    415: "The body is not JSON as it is.",
    429: "Asked more often than the token or the tenant may; Retry-After says how long to wait.",
    503: "A part that this needs does not answer, or too many wait; Retry-After says how long to wait.",
}
_OF_A_BODY: Final = (413, 415)
_OF_ANYBODY: Final = (429, 503)
_READS: Final[Mapping[str, str]] = {
    "/v1/operations/{tenant}/{operation}": "Operation",
    "/v1/list/{tenant}/{what}": "List",
    "/v1/flips/{tenant}": "Flips",
    "/v1/decisions/{tenant}/{decision}": "DecisionRecord",
    "/v1/decisions/{tenant}/{decision}/explain": "Explanation",
    "/v1/enforced/{tenant}": "Enforced",
    "/v1/endpoints/{tenant}/{name}": "Endpoint",
    "/v1/log/{tenant}": "LogHead",
    "/v1/log/{tenant}/entries": "LogEntries",
    "/v1/log/{tenant}/directory": "DirectoryOpening",
    "/v1/isolation/{owner}/{actor}": "IsolationAnswer",
    "/v1/attestations/{tenant}": "Attestations",
    "/v1/attestations/{tenant}/{digest}": "Attestation",
    "/v1/attestations/{tenant}/decision/{decision}": "Attestation",
    "/v1/attestations/{tenant}/policy/{bundle}": "Attestation",
    "/v1/attestations/{tenant}/entry/{index}": "Attestation",
}
_OPEN: Final[Mapping[str, str]] = {
    "/v1/trust-root": "TrustRoot",
    "/v1/trust-root/rotations": "Rotations",
    "/.well-known/authzen-configuration": "AuthzenConfiguration",
}
_KEY: Final[Mapping[str, Any]] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "maxLength": 64},
    "description": "A request that is sent again with the same key is done once.",
}


def completed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with what the framework cannot know of routes that read their bodies themselves.

    Args:
        document: As the framework made it from the routes.
    """
    paths: dict[str, Any] = {path: {m: dict(op) for m, op in item.items()} for path, item in document["paths"].items()}
    schemas: dict[str, Any] = dict(_SCHEMAS)
    for verb in VERBS.values():
        schemas |= _schemas_of(verb)
        noun, _, name = verb.action.partition(".")
        operation = paths[f"/v1/{noun}/{name}"]["post"]
        operation["parameters"] = [*operation.get("parameters", ()), dict(_KEY)]
        operation["requestBody"] = _json_body(_asked_schema(verb))
        answers = {200: "Permitted, and done."} | ({} if verb.do is None else {202: "Permitted, and accepted as work."})
        operation["responses"] = _responses(
            dict.fromkeys(answers, "Answer"), (400, 401, 403, 409, *_OF_A_BODY), answers
        )
    _complete_asking(paths, schemas)
    for path, name in _READS.items():
        paths[path]["get"]["responses"] = _responses({200: name}, (400, 401, 403))
    artifact = _responses({}, (400, 401, 403))
    artifact["200"] = {"description": "The file.", "content": {"application/octet-stream": {}}}
    paths["/v1/operations/{tenant}/{operation}/artifact"]["get"]["responses"] = artifact
    for name, kind in (("checkpoint", "text/plain"), ("tile/{path}", "application/octet-stream")):
        told = _responses({}, (400, 401, 403))
        told["200"] = {"description": "As C2SP tlog-tiles has it.", "content": {kind: {}}}
        paths[f"/v1/tlog/{{tenant}}/{name}"]["get"]["responses"] = told
    for path, name in _OPEN.items():
        paths[path]["get"] |= {"security": [], "responses": _responses({200: name}, ())}
    live, ready = (paths[f"/health/{name}"]["get"] for name in ("live", "ready"))
    live |= {"security": [], "responses": {"200": _answer("It answers.", "Live")}}
    ready["security"] = []
    ready["responses"] = {"200": _answer("Ready.", "Ready"), "503": _answer("Not ready; says why.", "Ready")}
    components = {**document.get("components", {}), "schemas": schemas}
    return {**document, "paths": paths, "components": components}


def _complete_asking(paths: Mapping[str, Any], schemas: dict[str, Any]) -> None:
    """The routes beside the verbs' that take a body."""
    dry = {
        "oneOf": [
            {**_asked_schema(verb, action=verb.action), "title": f"Whether {verb.action} would be permitted"}
            for verb in VERBS.values()
        ]
    }
    paths["/v1/ask"]["post"] |= {
        "requestBody": _json_body(dry),
        "responses": _responses({200: "DryAnswer"}, (400, 401, *_OF_A_BODY)),
    }
    paths["/v1/uploads"]["put"] |= {
        "requestBody": {
            "required": True,
            "description": "The bytes as they are, with a Content-Length.",
            "content": {"application/octet-stream": {}},
        },
        "responses": _responses({201: "Upload"}, (400, 401, *_OF_A_BODY)),
    }
    exchanged = _object(grant_type=_TEXT, subject_token=_TEXT, subject_token_type=_TEXT, audience=_TEXT)
    paths["/v1/token/exchange"]["post"] |= {
        "security": [],
        "requestBody": {
            "required": True,
            "content": {"application/x-www-form-urlencoded": {"schema": exchanged}},
        },
        "responses": {
            "200": _answer("A token, as RFC 8693 has it.", "ExchangedToken"),
            "400": _answer("Refused, as RFC 6749 has it in section 5.2.", "ExchangeRefused"),
            **_responses({}, (413, *_OF_ANYBODY)),
        },
    }
    (one, several), found = msgspec.json.schema_components(
        (authzen_forms.Evaluation, authzen_forms.Evaluations), ref_template=_REF + "Authzen.{name}"
    )
    schemas |= {f"Authzen.{name}": schema for name, schema in found.items()}
    for path, form, answer in (("evaluation", one, "AuthzenAnswer"), ("evaluations", several, "AuthzenAnswers")):
        paths[f"/access/v1/{path}"]["post"] |= {
            "requestBody": _json_body(form),
            "responses": _responses({200: answer}, (400, 401, *_OF_A_BODY)),
        }


def _schemas_of(verb: Verb) -> dict[str, Any]:
    """The schema of a verb's parameters, and those that it refers to, under names that are the verb's own."""
    schema = verb.body.model_json_schema(ref_template=f"{_REF}{verb.action}.{{model}}")
    parts = schema.pop("$defs", {})
    return {verb.action: schema} | {f"{verb.action}.{name}": part for name, part in parts.items()}


def _asked_schema(verb: Verb, **fixed: str) -> dict[str, Any]:
    members: dict[str, Any] = {
        **{name: {"const": value} for name, value in fixed.items()},
        "resource": {"type": "string", "description": f"Of the form {verb.form.value}."},
        "parameters": _ref(verb.action),
        "claimed": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "What the asker claims; it feeds no guardrail.",
        },
    }
    takes_more = any(field.is_required() for field in verb.body.model_fields.values())
    required = [*fixed, "resource", *(["parameters"] if takes_more else [])]
    return {"type": "object", "properties": members, "required": required, "additionalProperties": False}


def _json_body(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _answer(description: str, schema: str, media_type: str = "application/json") -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": _ref(schema)}}}


def _responses(
    answers: Mapping[int, str], problems: tuple[int, ...], told: Mapping[int, str] | None = None
) -> dict[str, Any]:
    said = told or {}
    found = {str(status): _answer(said.get(status, "The answer."), name) for status, name in answers.items()}
    for status in sorted((*problems, *_OF_ANYBODY)):
        found[str(status)] = _answer(_PROBLEMS[status], "Problem", "application/problem+json")
    return found


# --- how it is shown ------------------------------------------------------------------------------------------------

_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}"
    "pre{background:#f4f4f4;color:#111;overflow:auto;padding:1rem}"
    "summary{cursor:pointer}summary code{font-weight:bold}section{margin:.6rem 0}"
)
_STYLE_DIGEST: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY: Final = f"default-src 'none'; style-src 'sha256-{_STYLE_DIGEST}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def router() -> Router:
    """Where document and page are served, under the page's policy."""
    headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
    return Router("/schema", route_handlers=[], include_in_schema=False, response_headers=headers)


class DocumentPlugin(JsonRenderPlugin):
    """Serves the document."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """See ``OpenAPIRenderPlugin``."""
        return self.render_json(request, completed(openapi_schema))


class PagePlugin(OpenAPIRenderPlugin):
    """Serves the page."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """See ``OpenAPIRenderPlugin``."""
        return page(completed(openapi_schema), self.get_openapi_json_route(request)).encode()


def page(document: Mapping[str, Any], address: str) -> str:
    """The document as a page for people.

    Args:
        document: The document.
        address: Where the document itself is served.
    """
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Licet API</title>',
        f"<style>{_STYLE}</style></head><body><h1>{escape(document['info']['title'])} API</h1>",
        f"<p>{escape(document['info'].get('description') or '')}</p>",
        f'<p>This page shows the <a href="{escape(address)}">OpenAPI document</a>.</p>',
    ]
    by_tag: dict[str, list[str]] = {}
    for path, item in sorted(document["paths"].items()):
        for method, operation in item.items():
            by_tag.setdefault(operation["tags"][0], []).append(_operation(path, method, operation))
    for tag, operations in sorted(by_tag.items()):
        parts += [f"<h2>{escape(tag)}</h2>", *operations]
    parts.append("<h2>Schemas</h2>")
    parts += [
        f'<section id="{escape(name)}"><details><summary><code>{escape(name)}</code></summary>{_code(schema)}</details></section>'
        for name, schema in sorted(document["components"]["schemas"].items())
    ]
    return "\n".join([*parts, "</body></html>"])


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> str:
    summary = escape(operation.get("summary") or "")
    head = f"<code>{escape(method.upper())} {escape(path)}</code> {summary}"
    told = [f"<section><details><summary>{head}</summary>"]
    if operation.get("description"):
        told.append(f"<p>{escape(operation['description'])}</p>")
    for title, name in (("Parameters", "parameters"), ("Body", "requestBody"), ("Answers", "responses")):
        if operation.get(name):
            told.append(f"<h4>{title}</h4>{_code(operation[name])}")
    return "".join([*told, "</details></section>"])


def _code(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=1, default=str))}</pre>"
