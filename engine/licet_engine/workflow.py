"""How the api and the worker name the same thing to the workflow engine."""

from __future__ import annotations

from typing import Final

APPLICATION: Final = "licet"
LONG_QUEUE: Final = "long-operations"
SHORT_QUEUE: Final = "short-operations"
"""Two queues, so that no training stands before a roll-back, a deletion or an export; each is divided by tenant."""
EXAMINATION_QUEUE: Final = "examinations"
"""Policies are examined in memory of their own, of which there is as much as there may be examinations at once."""
DEVICE_QUEUE: Final = "device-operations"
"""What needs devices waits for them among its like, and takes no place from what needs none."""
LONG_ACTIONS: Final = frozenset(
    {
        *("dataset.read", "dataset.register", "endpoint.deploy", "model.check", "model.download", "model.register"),
        "training.launch",
    }
)
"""What takes as long as its rows or its files are many. Everything else is a safety valve, or short."""
EXAMINED_ACTIONS: Final = frozenset({"policy.publish"})
WORKFLOW: Final = "perform"

WORKFLOW_VERSION: Final = "1"
"""Raised when a workflow that an older worker began cannot be gone on with; not with every release, or what was accepted
before an upgrade would never be performed."""


def queue_of(action: str, *, needs_devices: bool = False) -> str:
    """The queue in which an accepted operation waits."""
    if needs_devices:
        return DEVICE_QUEUE
    if action in EXAMINED_ACTIONS:
        return EXAMINATION_QUEUE
    return LONG_QUEUE if action in LONG_ACTIONS else SHORT_QUEUE
