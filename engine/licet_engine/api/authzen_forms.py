"""The bodies of the AuthZEN API, as the specification has them.

Source: openid.net/specs/authorization-api-1_0.html.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec


class Subject(msgspec.Struct):
    """Subject of the specification."""

    type: str
    id: str
    properties: dict[str, Any] | None = None


class Action(msgspec.Struct):
    """Action of the specification."""

    name: str
    properties: dict[str, Any] | None = None


class Resource(msgspec.Struct):
    """Resource of the specification."""

    type: str
    id: str
    properties: dict[str, Any] | None = None


class Evaluation(msgspec.Struct):
    """Evaluation of the specification."""

    subject: Subject | None = None
    action: Action | None = None
    resource: Resource | None = None
    context: dict[str, Any] | None = None


class Options(msgspec.Struct):
    """Options of the specification."""

    evaluations_semantic: str = "execute_all"


class Evaluations(Evaluation):
    """Evaluations of the specification."""

    evaluations: list[Evaluation] = msgspec.field(default_factory=list)
    options: Options = msgspec.field(default_factory=Options)


_DECODER: Final = msgspec.json.Decoder(Evaluations)


def decode(data: bytes) -> Evaluations:
    """Read the body of a request.

    Raises:
        ValueError: Not of the form of the specification; says where.
    """
    return _DECODER.decode(data)
