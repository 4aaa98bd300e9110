"""An invariant that no solver tells of in the time that an examination has."""

from __future__ import annotations

# That no cube of a whole number is the sum of two others is true, and nothing that a solver tells in a few seconds.
HARD = """
@id("desk.invariant.hard")
@title("Somebody finds a cube that is the sum of two cubes")
@never
permit (principal is Person, action == Action::"training.launch", resource is Run)
when {
  resource.cost > 0 && resource.cost < 100000 &&
  resource.budget_remaining > 0 && resource.budget_remaining < 100000 &&
  context.now_ms > 0 && context.now_ms < 100000 &&
  resource.cost * resource.cost * resource.cost +
  resource.budget_remaining * resource.budget_remaining * resource.budget_remaining ==
  context.now_ms * context.now_ms * context.now_ms
};
"""
