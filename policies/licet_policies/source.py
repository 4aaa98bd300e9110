"""Policy text, read into single policies.

Rules kept: text stays as its author wrote it, comments between policies left out; Cedar's own parser, not ours, says
that a piece of text is exactly one policy; a template is refused, since it decides nothing. That parser sees no text
before it is within the bounds that it survives.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

import cedarpy

from licet_policies.bounds import pieces, verify_text, verify_tree
from licet_policies.errors import PolicySourceError

__all__ = ["ID_PATTERN", "MAX_ID_CHARS", "Policy", "parse_policies"]

Effect = Literal["permit", "forbid"]

ID_PATTERN: Final = re.compile(r"[a-z][a-z0-9-]*(?:\.[a-z0-9][a-z0-9-]*)+")
MAX_ID_CHARS: Final = 128


@dataclass(frozen=True)
class Policy:
    """One Cedar policy.

    Attributes:
        id: Value of its ``@id``: dotted and stable.
        text: The policy alone, in Cedar's syntax.
        effect: ``permit`` or ``forbid``.
        annotations: All its annotations, ``id`` included.
        source: ``guardrail``, ``role``, ``pack:<name>`` or ``tenant``.
    """

    id: str
    text: str
    effect: Effect
    annotations: Mapping[str, str]
    source: str


def parse_policies(text: str, source: str) -> tuple[Policy, ...]:
    """Read every policy of ``text``, in its order.

    Args:
        text: Cedar policies; may be empty.
        source: Where they come from; goes into each policy.

    Raises:
        PolicySourceError: Text out of bounds or that does not parse, a template, or a policy without a dotted ``@id``.
    """
    return tuple(_parse_one(piece, source) for piece in pieces(text, source))


def _parse_one(text: str, source: str) -> Policy:
    where = f"{source}: policy that begins {text[:60]!r}"
    verify_text(text, where)
    try:
        parsed: dict[str, Any] = json.loads(cedarpy.policies_to_json_str(text))
    except RecursionError as error:
        raise PolicySourceError(f"{where}: is too deep to be read: write it as several policies") from error
    except ValueError as error:
        raise PolicySourceError(f"{where}: does not parse: {error}") from error
    if parsed.get("templates"):
        raise PolicySourceError(f"{where}: is a template; write out its principal and resource")
    policies = list(parsed["staticPolicies"].values())
    if len(policies) != 1:
        raise PolicySourceError(f"{where}: expected one policy up to the semicolon, found {len(policies)}")
    verify_tree(policies[0], where)
    # A bare annotation such as `@id` has no value.
    annotations = {name: value or "" for name, value in policies[0].get("annotations", {}).items()}
    policy_id = annotations.get("id", "")
    if len(policy_id) > MAX_ID_CHARS or not ID_PATTERN.fullmatch(policy_id):
        raise PolicySourceError(
            f"{where}: needs an @id of lower-case words joined by dots, such as"
            f' @id("team.no-weekend-promotions"); found {policy_id[:MAX_ID_CHARS]!r}'
        )
    return Policy(policy_id, text, policies[0]["effect"], MappingProxyType(annotations), source)
