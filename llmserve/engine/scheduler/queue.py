"""Which requests may join a model's queue, and what each is told of its place.

The queue is bounded by requests and by prompt tokens; a `Retry-After` is when there should be room
again, by what the worker expects of those that wait. Lives on the event loop.
"""

import asyncio
import math
import time
from collections.abc import Mapping
from typing import Any

from llmserve.core import Queued
from llmserve.engine.load_spec import Policy
from llmserve.engine.messages import QueueReport
from llmserve.errors import QueueFullError, QueueTimeoutError

MAX_RETRY_AFTER_S = 120


INTERVAL_S = 2.0


class Admission:
    def __init__(self, name: str, num_slots: int, policy: Policy) -> None:
        self._name = name
        self._num_slots = num_slots
        self._policy = policy
        self._queue = QueueReport()
        self._queued: dict[int, int] = {}  # request id -> prompt tokens, until it has a slot
        self._num_tokens = 0  # of all of these

    def check_count(self, num_active: int) -> None:
        """Raises `QueueFullError` if one more than `num_active` requests are too many."""
        excess = num_active - self._num_slots - self._policy.max_queue
        if excess < 0:
            return
        raise QueueFullError(
            f"model {self._name!r} answers {self._num_slots} requests at a time and"
            f" {self._policy.max_queue} more are waiting; try again later",
            retry_after_s=self._retry_after_s(excess + 1, 0),
        )

    def check_embedding(self, num_active: int, num_slots: int, mean_s: float) -> None:
        """As `check_count`, for embeddings: so many at a time, `mean_s` each."""
        num_queued = num_active - num_slots
        if num_queued < self._policy.max_queue:
            return
        raise QueueFullError(
            f"model {self._name!r} embeds for {num_slots} requests at a time and"
            f" {self._policy.max_queue} more are waiting; try again later",
            retry_after_s=_whole_s(mean_s * (num_queued + 1) / num_slots),
        )

    def check_prompt(self, num_tokens: int, *, must_wait: bool) -> None:
        """Raises `QueueFullError` if a prompt is too much for the queue, or would wait too long.

        Where nothing waits, any prompt may be the first.
        """
        limit = self._policy.max_queue_tokens
        excess = self._num_tokens + num_tokens - limit
        if self._queued and excess > 0:
            raise QueueFullError(
                f"prompts of {self._num_tokens} tokens are waiting for model {self._name!r}; with"
                f" {num_tokens} more that would be over {limit}; try again later",
                retry_after_s=self._retry_after_s(1, excess),
            )
        timeout_s, wait_s = self._policy.queue_timeout_s, self._queue.newcomer_wait_s
        if must_wait and timeout_s is not None and wait_s > timeout_s:
            raise QueueFullError(
                f"a request to model {self._name!r} would wait for about {wait_s:.1f} s, longer"
                f" than the {timeout_s:g} s of queue_timeout; try again later",
                retry_after_s=_whole_s(wait_s - timeout_s),
            )

    def timed_out(self) -> QueueTimeoutError:
        return QueueTimeoutError(
            f"the request has waited for the {self._policy.queue_timeout_s:g} s of queue_timeout,"
            f" and model {self._name!r} is still answering others; try again later",
            retry_after_s=self._retry_after_s(1, 0),
        )

    def join(self, request_id: int, num_tokens: int) -> None:
        self._queued[request_id] = num_tokens
        self._num_tokens += num_tokens

    def leave(self, request_id: int) -> None:
        """It has a slot, or is gone. Unknown ids are fine."""
        self._num_tokens -= self._queued.pop(request_id, 0)

    def update(self, queue: QueueReport) -> None:
        self._queue = queue

    def _retry_after_s(self, num_requests: int, num_tokens: int) -> int:
        """When so many requests, with so many prompt tokens together, should have slots."""
        wait_s = 0.0
        for waiting in self._queue.waiting:
            if num_requests <= 0 and num_tokens <= 0:
                break
            wait_s = waiting.expected_wait_s
            num_requests -= 1
            num_tokens -= self._queued.get(waiting.id, 0)
        else:
            wait_s = self._queue.newcomer_wait_s
        return _whole_s(wait_s)


def _whole_s(wait_s: float) -> int:
    return min(max(1, math.ceil(wait_s)), MAX_RETRY_AFTER_S)


class QueueNews:
    def __init__(self, requests: Mapping[int, "asyncio.Queue[Any]"]) -> None:
        """`requests` are those that listen, by id; the caller keeps them."""
        self._requests = requests
        self._told: set[int] = set()  # ids of those that know that they wait
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
        """It has a slot; one that never heard that it waits does not hear that either."""
        events = self._requests.get(request_id)
        if events and request_id in self._told:
            self._told.discard(request_id)
            events.put_nowait(Queued(0, 0.0))

    def forget(self, request_id: int) -> None:
        """Its listener is gone. Unknown ids are fine."""
        self._told.discard(request_id)
