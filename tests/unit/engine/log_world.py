"""A clock that is set, and entries for a log: what the tests of the log share."""

import threading
from typing import Any

from sqlalchemy import Engine

from databases import writers_held
from licet_engine.log.sequencer import Sequencer
from licet_engine.log.submission import Insert, NewEntry, Submission
from licet_engine.store.tables import Tenant


class Clock:
    def __init__(self, now_ms: int = 1_000_000) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


def entry(tenant_id: str = "northbank", record: Any = b'{"v":1}', kind: str = "decision") -> NewEntry:
    return NewEntry(tenant_id, kind, tenant_id, tenant_id, record)


def tenant_row(tenant_id: str = "northbank") -> Insert:
    return Insert(Tenant, [{"tenant_id": tenant_id, "region": "us", "created_at_ms": 1}])


def grouped(sequencer: Sequencer, engine: Engine, submissions: list[Submission]) -> list[Any]:
    """Have submissions sequenced as one group; return receipts or errors."""
    with writers_held(engine, "platform"):
        # While this holds the lock, the sequencer is busy with the first, and all the others pile up.
        first = sequencer.submit(Submission([entry("platform")]))
        while sequencer.queued():
            threading.Event().wait(0.001)
        futures = [sequencer.submit(submission) for submission in submissions]
    first.result(10)
    return [future.exception(10) or future.result() for future in futures]
