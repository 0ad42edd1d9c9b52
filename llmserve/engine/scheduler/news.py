"""Tells those in the queue where they stand: at once when they come, then now and then.

Each message wakes up whoever waits for it, so a long queue does not hear of each of its steps.
Lives on the event loop.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from llmserve.core import Queued
from llmserve.engine.messages import QueueReport

INTERVAL_S = 2.0


class QueueNews:
    def __init__(self, requests: Mapping[int, "asyncio.Queue[Any]"]) -> None:
        """`requests` are those that listen, by id; somebody else keeps them."""
        self._requests = requests
        self._told: set[int] = set()  # who knows that it waits
        self._last_s = 0.0  # when all were told

    def tell(self, queue: QueueReport) -> None:
        now_s = time.monotonic()
        is_due = now_s - self._last_s >= INTERVAL_S
        if is_due:
            self._last_s = now_s
        for position, waiting in enumerate(queue.waiting, 1):
            events = self._requests.get(waiting.id)
            if events and (is_due or waiting.id not in self._told):
                self._told.add(waiting.id)
                events.put_nowait(Queued(position, waiting.expected_wait_s))

    def tell_entry(self, request_id: int) -> None:
        """It has a slot; who never heard that it waits does not hear that either."""
        events = self._requests.get(request_id)
        if events and request_id in self._told:
            self._told.discard(request_id)
            events.put_nowait(Queued(0, 0.0))

    def forget(self, request_id: int) -> None:
        """Whoever listened is gone. Unknown ids are fine."""
        self._told.discard(request_id)
