"""How much the api takes on at once, and from whom: rates, places, and turns.

Rules kept here:

- Nobody is served beyond its rate: a token and a tenant each have a bucket that refills with time. Who finds it empty
  is told when to come again (429), and nothing is done.
- The api works on a bounded number of requests; a bounded number more wait; the rest are told to come again (503).
- No tenant has more than half of the places, nor more than half of the queue, and those who wait are let in turn by
  turn, tenant by tenant: a flood by one tenant costs the others at most the other half.
- What is remembered of callers is bounded, in this process's memory, and gone with it: with several processes each
  has limits of its own.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from licet_engine.domain.errors import Busy, TooManyRequests

LONGEST_WAIT_S: Final = 10.0


class Places:
    """The places at which requests are worked on, and the queues before them. For one event loop.

    Args:
        most: Requests worked on at once.
        most_waiting: Requests that wait.
        longest_wait_s: How long one waits at most.
    """

    def __init__(self, most: int, most_waiting: int, longest_wait_s: float = LONGEST_WAIT_S) -> None:
        self._most = most
        self._most_waiting = most_waiting
        self._longest_wait_s = longest_wait_s
        self._share = max(1, most // 2)
        self._waiting_share = max(1, most_waiting // 2)
        self._taken: Counter[str] = Counter()
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self.active = 0
        self.waiting = 0

    @asynccontextmanager
    async def place(self, tenant: str) -> AsyncIterator[None]:
        """Hold a place while in the block; waits for its turn.

        Raises:
            TooManyRequests: The tenant has as many waiting as it may.
            Busy: As many wait as may, or the turn did not come in time.
        """
        if self.active >= self._most or self._taken[tenant] >= self._share or tenant in self._queues:
            await self._wait(tenant)
        else:
            self._enter(tenant)
        try:
            yield
        finally:
            self._leave(tenant)

    def _enter(self, tenant: str) -> None:
        self.active += 1
        self._taken[tenant] += 1

    def _leave(self, tenant: str) -> None:
        self.active -= 1
        self._taken[tenant] -= 1
        if not self._taken[tenant]:
            del self._taken[tenant]
        self._let_in()

    def _let_in(self) -> None:
        """Give free places to those who wait: one for each tenant in turn, as far as its share goes."""
        for tenant in list(self._queues):
            if self.active >= self._most:
                return
            queue = self._queues[tenant]
            while queue and queue[0].done():  # It was given up.
                queue.popleft()
            if queue and self._taken[tenant] < self._share:
                self._enter(tenant)
                queue.popleft().set_result(None)
                self._queues.move_to_end(tenant)
            if not queue:
                del self._queues[tenant]

    async def _wait(self, tenant: str) -> None:
        queue = self._queues.setdefault(tenant, deque())
        if len(queue) >= self._waiting_share:
            raise TooManyRequests("too many requests of this tenant wait already", retry_after_s=1)
        if self.waiting >= self._most_waiting:
            if not queue:
                del self._queues[tenant]
            raise Busy("the service has as much to do as it takes on; try again")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        self.waiting += 1
        try:
            await asyncio.wait_for(turn, self._longest_wait_s)
        except TimeoutError as error:
            raise Busy("the service has as much to do as it takes on; try again") from error
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # Its turn came as its caller went away.
                self._leave(tenant)
            raise
        finally:
            self.waiting -= 1
            if turn.cancelled() and turn in queue:
                queue.remove(turn)
                if not queue and self._queues.get(tenant) is queue:
                    del self._queues[tenant]
