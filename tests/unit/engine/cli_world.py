"""The command line over a scripted server: how tests run it, and what the server may explain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

OPERATION = {"id": "0" * 32, "tenant": "northbank", "state": "accepted"}
Run = Callable[..., tuple[int, str, str]]


def explained(*reports: dict[str, Any], nearest: list[dict[str, Any]] | None = None, **path: Any) -> dict[str, Any]:
    return {
        "record": {"id": "d" * 32, "decision": "deny", "action": "model.promote", "resource": {"id": "northbank/m@1"}},
        "explanation": {"decision": "deny", "kind": "forbidden", "deciding": list(reports), "nearest": nearest or []},
        "path": {"possible": False, "steps": [], "minimal": False, "message": "No declared fact would do.", **path},
    }


APPROVAL = {"name": "approval:model-risk", "describe": "Have model risk approve it."}
REPORT = {
    "id": "sr-11-7.checks.bias",
    "effect": "forbid",
    "mode": "enforce",
    "source": "pack:sr-11-7",
    "outcome": "true",
    "title": "Bias review",
    "advice": "Train with a mitigation.",
    "requires": ["check:bias"],
    "scope": [],
    "clauses": [],
    "failing": [
        {
            "source": "resource.checks.bias.selection_rate_ratio_micro >= 800000",
            "outcome": "false",
            "supports": True,
            "values": [{"text": "resource.checks.bias.selection_rate_ratio_micro = 741234"}],
        }
    ],
}
