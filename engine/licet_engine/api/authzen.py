"""The OpenID AuthZEN Authorization API 1.0: evaluation, evaluations, discovery.

Rules kept here:

- Who may ask for another principal is itself decided, by `decision.ask-for`, and logged.
- Properties of an action that its verb declares are the parameters of the question; every other property of subject,
  action, resource and context is a claim of the caller's, and feeds no guardrail.
- A denial is a value. What one may not know is denied like what is not there.

Source: openid.net/specs/authorization-api-1_0.html.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from litestar import Request, Response, get, post

from licet_engine.api.authzen_forms import Evaluation, Evaluations
from licet_engine.domain.errors import InvalidInput
from licet_engine.domain.refs import parse_ref
from licet_engine.lifecycle.asked import Answer, Asked, parse_asked
from licet_engine.lifecycle.catalogue import VERBS
from licet_engine.lifecycle.facts import View
from licet_engine.lifecycle.verbs import Ids, NoBody, Proposal, RefForm, Verb, Who
from licet_policies import resource_types

if TYPE_CHECKING:
    from licet_engine.api.context import Context

MAX_EVALUATIONS: Final = 100
_KINDS: Final[Mapping[str, str]] = {
    "person": "person",
    "user": "person",
    "serviceaccount": "service",
    "service-account": "service",
    "service": "service",
}
_SEMANTICS: Final = frozenset({"execute_all", "deny_on_first_deny", "permit_on_first_permit"})
AnyRequest = Request[Any, Any, Any]


@dataclass(frozen=True, slots=True)
class _Question:
    asked: Asked
    about: Who


def _ask_for(view: View, _who: Who, ref: Any, _body: NoBody, _ids: Ids) -> Proposal | None:
    row = view.principal(ref.name)
    return None if row is None else Proposal(resource=view.principal_entity(row))


_RESOURCE_TYPES: Final = resource_types()

_ASK_FOR: Final = Verb(
    action="decision.ask-for",
    summary="Ask on behalf of another principal.",
    form=RefForm.NAME,
    body=NoBody,
    propose=_ask_for,
)


def _question(sent: Evaluation) -> _Question:
    if sent.subject is None or sent.action is None or sent.resource is None:
        raise InvalidInput("an evaluation needs a subject, an action and a resource")
    kind = _KINDS.get(sent.subject.type.lower())
    if kind is None:
        raise InvalidInput(f"subject.type {sent.subject.type!r} is not known: use person or service-account")
    ref = parse_ref(sent.subject.id)
    verb = VERBS.get(sent.action.name)
    if verb is None:
        raise InvalidInput(f"action.name {sent.action.name!r} is not known; the actions are {', '.join(sorted(VERBS))}")
    kinds = _RESOURCE_TYPES[verb.action]
    if sent.resource.type not in kinds:
        raise InvalidInput(
            f"resource.type {sent.resource.type!r} is none that {verb.action} is about: use {' or '.join(sorted(kinds))}"
        )
    declared = verb.body.model_fields
    properties = sent.action.properties or {}
    parameters = {name: value for name, value in properties.items() if name in declared}
    claims = {f"action.{name}": value for name, value in properties.items() if name not in declared}
    claims |= {f"subject.{name}": value for name, value in (sent.subject.properties or {}).items()}
    claims |= {f"resource.{name}": value for name, value in (sent.resource.properties or {}).items()}
    claims |= {f"context.{name}": value for name, value in (sent.context or {}).items()}
    claimed = {name: _text(name, value) for name, value in claims.items()}
    asked = parse_asked(verb, sent.resource.id, parameters, claimed=claimed, is_dry=True)
    return _Question(asked, Who(tenant=ref.tenant, name=ref.name, kind=kind))


def _text(name: str, value: Any) -> str:
    """A property as a claim: text as it is, anything else as JSON."""
    try:
        return value if isinstance(value, str) else json.dumps(value)
    except RecursionError as error:
        raise InvalidInput(f"{name} is nested too deep") from error


async def _evaluate(context: Context, identify: Callable[[], Who], question: _Question) -> dict[str, Any]:
    who = identify()
    about = question.about
    asked = question.asked
    if (about.tenant, about.name, about.kind) != (who.tenant, who.name, who.kind):
        permission = await context.ask(identify, parse_asked(_ASK_FOR, about.id, {}, is_dry=True))
        if not permission.decision.allowed:
            return _told(permission)
        asked = replace(asked, subject=about)
    return _told(await context.ask(identify, asked))


async def _one_of_many(context: Context, identify: Callable[[], Who], item: Evaluation) -> dict[str, Any]:
    """One evaluation of a batch: what is wrong with it is its own answer, a no, and spoils none of the others."""
    try:
        return await _evaluate(context, identify, _question(item))
    except InvalidInput as error:
        return {"decision": False, "context": {"error": {"status": error.status, "message": error.message}}}


def _told(answer: Answer) -> dict[str, Any]:
    conflict = answer.conflict_json()
    return {
        "decision": answer.decision.allowed,
        "context": answer.decision_json() | ({} if conflict is None else {"conflict": conflict}),
    }


def routes(context: Context) -> list[Any]:
    """The routes of the specification."""

    @post("/access/v1/evaluation", tags=["authzen"], summary="AuthZEN: one evaluation.", status_code=200)
    async def evaluation(request: AnyRequest) -> Response[Any]:
        identify = context.identify(request)
        identify()
        sent: Evaluations = await context.body(request, strict=False)
        return _response(request, await _evaluate(context, identify, _question(sent)))

    @post("/access/v1/evaluations", tags=["authzen"], summary="AuthZEN: several evaluations.", status_code=200)
    async def evaluations(request: AnyRequest) -> Response[Any]:
        identify = context.identify(request)
        identify()
        sent: Evaluations = await context.body(request, strict=False)
        if not sent.evaluations:
            return _response(request, await _evaluate(context, identify, _question(sent)))
        if len(sent.evaluations) > MAX_EVALUATIONS:
            raise InvalidInput(f"at most {MAX_EVALUATIONS} evaluations at once; these are {len(sent.evaluations)}")
        semantic = sent.options.evaluations_semantic
        if semantic not in _SEMANTICS:
            raise InvalidInput(
                f"options.evaluations_semantic {semantic!r} is not known: use {', '.join(sorted(_SEMANTICS))}"
            )
        items = [_with_defaults(item, sent) for item in sent.evaluations]
        if semantic == "execute_all":
            answers = list(await asyncio.gather(*(_one_of_many(context, identify, item) for item in items)))
        else:
            answers = []
            for item in items:
                answers.append(await _one_of_many(context, identify, item))
                if answers[-1]["decision"] is (semantic == "permit_on_first_permit"):
                    break
        return _response(request, {"evaluations": answers})

    @get("/.well-known/authzen-configuration", tags=["authzen"], summary="AuthZEN: discovery.")
    async def discovery() -> dict[str, str]:
        # Never from what a request says of itself: an answer that a cache keeps would send others where one asker wants.
        base = context.services.settings.base_url
        return {
            "policy_decision_point": base,
            "access_evaluation_endpoint": f"{base}/access/v1/evaluation",
            "access_evaluations_endpoint": f"{base}/access/v1/evaluations",
        }

    return [evaluation, evaluations, discovery]


def _with_defaults(item: Evaluation, defaults: Evaluations) -> Evaluation:
    return Evaluation(
        subject=item.subject or defaults.subject,
        action=item.action or defaults.action,
        resource=item.resource or defaults.resource,
        context=defaults.context if item.context is None else item.context,
    )


def _response(request: AnyRequest, body: dict[str, Any]) -> Response[Any]:
    # The specification has the request's own identifier sent back.
    identifier = request.headers.get("x-request-id", "")
    headers = {"X-Request-ID": identifier} if identifier.isascii() and 0 < len(identifier) <= 128 else {}  # noqa: PLR2004 - no caller needs more.
    return Response(body, headers=headers)
