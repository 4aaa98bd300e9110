"""Errors as the API tells them: RFC 9457 problem details, mapped here and nowhere else."""

from __future__ import annotations

import logging
from typing import Any

from litestar import Request, Response
from litestar.exceptions import HTTPException
from litestar.status_codes import (
    HTTP_404_NOT_FOUND,
    HTTP_405_METHOD_NOT_ALLOWED,
    HTTP_429_TOO_MANY_REQUESTS,
    HTTP_500_INTERNAL_SERVER_ERROR,
    HTTP_503_SERVICE_UNAVAILABLE,
)

from licet_attestations.errors import LicetAttestationError, SignerError
from licet_engine.domain.errors import LicetError, TooManyRequests
from licet_engine.lifecycle.asked import Answer

logger = logging.getLogger(__name__)

PROBLEM_JSON = "application/problem+json"
_RETRY_AFTER_S = 1
_TITLES = {
    400: "Invalid input",
    401: "Not authenticated",
    403: "Denied",
    404: "No such route",
    405: "Method not allowed",
    409: "Conflict",
    410: "Gone",
    413: "Too large",
    415: "Unsupported media type",
    429: "Too many requests",
    500: "Internal error",
    503: "Unavailable",
}
_CODES = {
    400: "invalid-input",
    401: "unauthenticated",
    404: "no-such-route",
    405: "method-not-allowed",
    413: "too-large",
}

AnyRequest = Request[Any, Any, Any]


def problem(
    status: int, code: str, detail: str, *, retry_after_s: int | None = None, **extra: Any
) -> Response[dict[str, Any]]:
    """A problem as a response."""
    body = {
        "type": f"urn:licet:problem:{code}",
        "title": _TITLES.get(status, "Error"),
        "status": status,
        "code": code,
        "detail": detail,
        **extra,
    }
    headers = {}
    if status in {HTTP_429_TOO_MANY_REQUESTS, HTTP_503_SERVICE_UNAVAILABLE}:
        headers["Retry-After"] = str(retry_after_s or _RETRY_AFTER_S)
    if status == 401:  # noqa: PLR2004 - RFC 9110 wants the challenge with it.
        headers["WWW-Authenticate"] = "Bearer"
    return Response(body, status_code=status, media_type=PROBLEM_JSON, headers=headers)


def denied(answer: Answer) -> Response[dict[str, Any]]:
    """A denial: one text for all, and as much of the decision as may be told."""
    return problem(403, "denied", "This is not permitted.", decision=answer.decision_json())


def on_licet_error(request: AnyRequest, error: LicetError) -> Response[dict[str, Any]]:
    """An error of ours, told as it is."""
    # Who sent nonsense, or a token that does not count, is nobody whose log it could stand in: it stands in ours.
    logger.info("request refused", extra={"code": error.code, "method": request.method, "path": request.url.path[:200]})
    if error.status >= HTTP_500_INTERNAL_SERVER_ERROR:
        logger.warning("request failed", extra={"code": error.code, "reason": error.message})
    if error.status == HTTP_500_INTERNAL_SERVER_ERROR:
        return problem(500, error.code, "Something went wrong here; it was logged.")
    retry_after_s = error.retry_after_s if isinstance(error, TooManyRequests) else None
    return problem(error.status, error.code, error.message, retry_after_s=retry_after_s)


def on_attestation_error(_request: AnyRequest, error: LicetAttestationError) -> Response[dict[str, Any]]:
    """The signer is away or refused: nothing was done."""
    logger.warning("request failed", extra={"code": error.code, "reason": str(error)})
    if isinstance(error, SignerError):
        return problem(503, "signer-unavailable", "The signer does not answer; try again, or see licet doctor.")
    return problem(500, "internal", "Something went wrong here; it was logged.")


def on_http_exception(request: AnyRequest, error: HTTPException) -> Response[dict[str, Any]]:
    """What the framework itself refused."""
    status = error.status_code
    logger.info("request refused", extra={"status": status, "method": request.method, "path": request.url.path[:200]})
    detail = error.detail if status < HTTP_500_INTERNAL_SERVER_ERROR else "Something went wrong here; it was logged."
    if status == HTTP_404_NOT_FOUND:
        detail = "There is no such route; /schema describes those that there are, and /v1/ask names the actions."
    if status == HTTP_405_METHOD_NOT_ALLOWED:
        takes = sorted(set((error.headers or {}).get("allow", "").split(", ")) - {"", "OPTIONS", "HEAD"})
        detail = f"This route does not take {request.method}; it takes {', '.join(takes) or 'something else'}."
    if status >= HTTP_500_INTERNAL_SERVER_ERROR:
        logger.error("request failed", exc_info=error)
    return problem(status, _CODES.get(status, "error"), detail)


def on_anything(_request: AnyRequest, error: Exception) -> Response[dict[str, Any]]:
    """A defect: told to the operator, not to the caller."""
    logger.error("request failed", exc_info=error)
    return problem(500, "internal", "Something went wrong here; it was logged.")
