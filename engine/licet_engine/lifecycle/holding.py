"""Holds on their way to the store: policy says whether one stands, and what keeps the bytes follows.

Rules kept here:

- Whatever order they arrive in, a hold that stands reaches the store after everything that lifted: where an operation on a hold ends and
  what stands is the opposite of what it was to do, the opposite is accepted once more. It is decided again before anything is done.
- What stands and is not in the store is an error, and never done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from licet_engine.domain.errors import LicetError
from licet_engine.domain.refs import new_id
from licet_engine.lifecycle.facts import View
from licet_engine.store.tables import Operation

NOTHING_STORED: Final = "nothing-stored"
"""What a hold answers where there is nothing to keep yet."""

_TYPES: Final[Mapping[str, str]] = {"dataset": "Dataset", "model": "ModelVersion"}
_HOLD: Final = "hold"
_LIFT: Final = "lift-hold"
_NEVER: Final = -1
"""A version that no tenant's facts have: what stands on it is decided again."""


class Missing(LicetError):
    """What is to be held is not in the store, and should be."""

    status = 409
    default_code = "integrity.missing"


def is_about_hold(action: str) -> bool:
    """Whether an action places a hold or lifts one."""
    kind, _, verb = action.partition(".")
    return kind in _TYPES and verb in {_HOLD, _LIFT}


def stands(view: View, action: str, resource: str) -> bool:
    """Whether a hold lies on the resource of such an action, by policy."""
    return bool(view.holds(_TYPES[action.partition(".")[0]], resource.partition("/")[2]))


def is_overtaken(view: View, action: str, resource: str) -> bool:
    """Whether what stands now is the opposite of what such an action is to tell the store."""
    return stands(view, action, resource) is not action.endswith(f".{_HOLD}")


def told_again(view: View, ended: Operation, at_ms: int) -> dict[str, Any] | None:
    """The operation, as a row, that tells the store what stands after one ended that told it the opposite; None for none.

    Two may be at work at once, and nobody knows whose request the store took last, were it only that an answer was lost. So whoever
    ends looks at what stands: what is accepted here begins after the other has ended.
    """
    if not is_about_hold(ended.action) or not is_overtaken(view, ended.action, ended.resource):
        return None
    wanted = _HOLD if stands(view, ended.action, ended.resource) else _LIFT
    last = view.last_operation(f"{ended.action.partition('.')[0]}.{wanted}", ended.resource)
    if last is None or last.state == "accepted":  # It begins after this one ended, too.
        return None
    return last.model_dump() | {
        "id": new_id(),
        "state": "accepted",
        "last_decision_id": last.decision_id,
        "facts_version": _NEVER,
        "attempt": 0,
        "progress": None,
        "result": None,
        "error": None,
        "created_at_ms": at_ms,
        "updated_at_ms": at_ms,
    }


def check_stored(result: Mapping[str, Any], resource: str, *, is_stored: bool) -> None:
    """Refuse to take for done what found nothing, though it should be there.

    Raises:
        Missing: So it is.
    """
    if is_stored and result["kept_by"] == NOTHING_STORED:
        raise Missing(
            f"{resource} is not in the store, though it was stored: find out who removed it. If it was being stored just now, ask again"
        )
