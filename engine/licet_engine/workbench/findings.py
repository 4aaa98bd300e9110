"""What a tool found: where, by which rule, and whether somebody said that it stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from licet_engine.workbench.spans import Span

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding.

    Attributes:
        rule: Id of the rule that it breaks.
        severity: How much it matters; each of them counts.
        message: What is wrong and what to do.
        span: Where.
        policy: Id of the policy it is about, or None.
        suppressed: The reason for which it does not count, or None if it counts.
    """

    rule: str
    severity: Severity
    message: str
    span: Span
    policy: str | None = None
    suppressed: str | None = None

    def to_json(self) -> dict[str, Any]:
        """For an answer."""
        return {
            "rule": self.rule,
            "severity": self.severity,
            "message": self.message,
            "policy": self.policy,
            "suppressed": self.suppressed,
            **self.span.to_json(),
        }
