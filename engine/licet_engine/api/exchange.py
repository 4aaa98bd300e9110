"""The door at which a workload's ID token is exchanged, as RFC 8693 has it.

Rules kept here:

- A form, as OAuth has it, of known parameters, each once; bounded before it is read.
- Answers are those of RFC 8693 and RFC 6749, section 5.2, are never cached, and tell nothing of what is there.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qsl

from litestar import Response, post

from licet_engine.api.context import AnyRequest, Context, stream
from licet_engine.domain.errors import TooLarge
from licet_engine.domain.exchanging import ACCESS_TOKEN, GRANT_TYPE, ID_TOKENS
from licet_engine.lifecycle.exchange import ExchangeRefused

_MAX_FORM_BYTES: Final = 24 * 1024
_TAKEN: Final = frozenset({"grant_type", "subject_token", "subject_token_type", "audience", "requested_token_type"})
_FORM: Final = "application/x-www-form-urlencoded"
_UNCACHED: Final = {"Cache-Control": "no-store", "Pragma": "no-cache"}


def routes(context: Context) -> list[Any]:
    """The one route."""

    @post(
        "/v1/token/exchange",
        tags=["token"],
        summary="Exchange the ID token of a workload for a token (RFC 8693).",
        status_code=200,
    )
    async def exchange(request: AnyRequest) -> Response[Any]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != _FORM:
            return _refused("invalid_request", f"the body must be {_FORM}")
        data = bytearray()
        async for chunk in stream(request, "body"):
            data += chunk
            if len(data) > _MAX_FORM_BYTES:
                raise TooLarge(f"a form has at most {_MAX_FORM_BYTES} bytes")
        wrong, form = _read(bytes(data))
        if wrong:
            return _refused(*wrong)
        try:
            made = await context.in_thread(context.services.exchanger.exchange, form["audience"], form["subject_token"])
        except ExchangeRefused as refused:
            return _refused(refused.code, refused.message)
        answer = {
            "access_token": made["token"],
            "issued_token_type": ACCESS_TOKEN,
            "token_type": "Bearer",
            "expires_in": made["ttl_s"],
        }
        return Response(answer, headers=_UNCACHED)

    return [exchange]


def _read(data: bytes) -> tuple[tuple[str, str] | None, dict[str, str]]:
    """The form's parameters; or what is wrong with it, as a code and a sentence."""
    try:
        pairs = parse_qsl(data.decode("ascii"), keep_blank_values=True, strict_parsing=True, max_num_fields=16)
    except (ValueError, UnicodeDecodeError):
        return ("invalid_request", "the body is no form"), {}
    form = dict(pairs)
    unknown = sorted(form.keys() - _TAKEN)
    wrong = None
    if len(form) < len(pairs) or unknown:
        said = f"{unknown[0][:64]!r} is not taken" if unknown else "a parameter stands twice"
        wrong = "invalid_request", f"{said}; each is taken once of {', '.join(sorted(_TAKEN))}"
    elif form.get("grant_type") != GRANT_TYPE:
        wrong = "unsupported_grant_type", f"grant_type must be {GRANT_TYPE}"
    elif form.get("requested_token_type", ACCESS_TOKEN) != ACCESS_TOKEN:
        wrong = "invalid_request", f"requested_token_type must be {ACCESS_TOKEN}, or left out"
    elif form.get("subject_token_type") not in ID_TOKENS:
        wrong = "invalid_request", f"subject_token_type must be one of {', '.join(sorted(ID_TOKENS))}"
    elif not form.get("subject_token") or not form.get("audience"):
        wrong = "invalid_request", "subject_token and audience (TENANT/ISSUER) are needed"
    return wrong, form


def _refused(code: str, said: str) -> Response[Any]:
    return Response({"error": code, "error_description": said}, status_code=400, headers=_UNCACHED)
