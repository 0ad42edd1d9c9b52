"""How many requests of one model are asked at the same time, and which is next."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llmserve.core import Priority


class Slots:
    """`num_slots` at a time; those that wait get theirs in order, interactive ones before batch.

    `num_slots` None: none waits. Everything runs on one event loop.
    """

    def __init__(self, num_slots: int | None) -> None:
        self._num_free = num_slots
        self._waiting: dict[Priority, deque[asyncio.Future[None]]] = {
            "interactive": deque(),
            "batch": deque(),
        }

    @property
    def num_waiting(self) -> int:
        return sum(not turn.done() for queue in self._waiting.values() for turn in queue)

    @property
    def is_full(self) -> bool:
        """Whether the next one has to wait."""
        return self._num_free == 0

    @asynccontextmanager
    async def slot(self, priority: Priority) -> AsyncIterator[None]:
        """For the time of the block, after a wait if need be."""
        if self._num_free is None:
            yield
            return
        await self._take(priority)
        try:
            yield
        finally:
            self._give_back()

    async def _take(self, priority: Priority) -> None:
        assert self._num_free is not None
        if self._num_free:
            self._num_free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        queue = self._waiting[priority]
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with contextlib.suppress(ValueError):  # `_give_back` has passed it over
                    queue.remove(turn)
            else:
                self._give_back()  # it came while its owner was leaving
            raise

    def _give_back(self) -> None:
        """To the next one, directly: none can come between."""
        assert self._num_free is not None
        for queue in self._waiting.values():
            while queue:
                turn = queue.popleft()
                if not turn.cancelled():
                    turn.set_result(None)
                    return
        self._num_free += 1

    def check_integrity(self) -> None:
        """Assert that none waits while there is room; for tests."""
        assert not (self._num_free and self.num_waiting)
