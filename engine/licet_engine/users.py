"""Who the processes of an installation are where each is a user of its own: numbers without names, none of them root."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from licet_engine.settings import Settings

Process = Literal["signer", "api", "router", "worker"]


@dataclass(frozen=True, slots=True)
class Users:
    """The users of an installation's processes; each has a group of its own number.

    Attributes:
        base: Number of the group that all three are in, which lets them into the data folder.
    """

    base: int

    @property
    def signer(self) -> int:
        """The signer's user."""
        return self.base + 1

    @property
    def api(self) -> int:
        """The api's user."""
        return self.base + 2

    @property
    def worker(self) -> int:
        """The worker's user, and the router's, which is an adapter; its group is the api's too."""
        return self.base + 3

    def uid(self, process: Process) -> int:
        """Who a process is."""
        return {"signer": self.signer, "api": self.api, "router": self.worker, "worker": self.worker}[process]

    def groups(self, process: Process) -> list[int]:
        """Groups of a process beside its own."""
        return [self.base, self.worker] if process == "api" else [self.base]

    def all(self) -> range:
        """Every number that is used."""
        return range(self.base, self.base + 4)


def users_here(settings: Settings) -> Users | None:
    """The users of the installation, where this process is one of them."""
    users = Users(settings.uid_base)
    # Within its namespace the worker is 0: it asks nobody who may call it.
    return users if os.geteuid() in {users.signer, users.api} else None
