"""The advance of one deployment: which weights it has when. Pure; time is handed in.

Rules kept here:

- A step is held ``bake_s`` seconds of this router's running time without an alarm before the next. A router that was
  away begins the bake of its step anew: nobody watched meanwhile.
- An alarm returns everything to the fallback, from any step, also long after the last: the deployment's warrant permits
  it for as long as the version serves. It happens once.
- What a person sets by hand ends an advance, and so does a newer deployment; the alarms stay on guard.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

State = Literal["advancing", "completed", "held", "rolled-back", "failed"]
_WHOLE = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """Where a deployment stands.

    Attributes:
        operation_id: The operation that deployed it.
        number: The version.
        fallback: Number of the version before; 0: there is none.
        steps: The version's weight at each step; none for a shadow.
        index: Which step; at the number of steps, all were held.
        state: What it is doing.
        bake_s: How long a step is held.
    """

    operation_id: str
    number: int
    fallback: int
    steps: tuple[int, ...]
    index: int
    state: State
    bake_s: int

    @property
    def weights(self) -> dict[int, int] | None:
        """How traffic is divided at this step; None where this deployment does not say (a shadow, set by hand)."""
        if not self.steps or self.state in {"held", "failed"}:
            return None
        if self.state == "rolled-back":
            return {self.fallback: _WHOLE}
        own = self.steps[min(self.index, len(self.steps) - 1)]
        return {self.number: own} | ({self.fallback: _WHOLE - own} if own < _WHOLE else {})

    def after(self, held_s: float) -> Rollout:
        """Where it stands after its step was held for ``held_s`` seconds without an alarm."""
        if self.state != "advancing" or held_s < self.bake_s:
            return self
        if self.index + 1 < len(self.steps):
            return self._at(self.index + 1, "advancing")
        return self._at(len(self.steps), "completed")

    def alarmed(self, *, serves: bool) -> Rollout:
        """Where it stands once an alarm has fired; ``serves``: its version has traffic."""
        if self.state in {"rolled-back", "failed"}:
            return self
        # A shadow has no traffic to return: it is taken away. Without a fallback there is nowhere to return to.
        return self._at(self.index, "rolled-back" if self.fallback or not serves else "failed")

    def by_hand(self) -> Rollout:
        """Where it stands once somebody set the weights."""
        return self._at(self.index, "held") if self.state in {"advancing", "completed"} else self

    def returning_to(self, fallback: int) -> Rollout:
        """The same with another fallback; 0: there is none."""
        return replace(self, fallback=fallback)

    @property
    def is_guarded(self) -> bool:
        """Whether its alarms are watched."""
        return self.state in {"advancing", "completed", "held"}

    def _at(self, index: int, state: State) -> Rollout:
        return replace(self, index=index, state=state)
