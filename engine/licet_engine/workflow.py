"""How the api and the worker name the same thing to the workflow engine."""

from __future__ import annotations

from typing import Final

APPLICATION: Final = "licet"
QUEUE: Final = "operations"
WORKFLOW: Final = "perform"

WORKFLOW_VERSION: Final = "1"
"""Raised when a workflow that an older worker began cannot be gone on with; not with every release, or what was accepted
before an upgrade would never be performed."""
