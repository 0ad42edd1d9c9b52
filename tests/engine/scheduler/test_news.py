"""Who hears of the queue, and how often."""

import asyncio

import pytest

from llmserve.core import Queued
from llmserve.engine.messages import QueueReport, Waiting
from llmserve.engine.scheduler import queue as news_module
from llmserve.engine.scheduler.queue import INTERVAL_S, QueueNews


class Clock:
    now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(news_module, "time", clock)
    return clock


def queue_of(*ids: int) -> QueueReport:
    return QueueReport(tuple(Waiting(i, 1.5 * n) for n, i in enumerate(ids)))


def test_newcomers_hear_at_once_and_the_others_now_and_then(clock: Clock) -> None:
    requests: dict[int, asyncio.Queue[object]] = {i: asyncio.Queue() for i in (1, 2, 3)}
    news = QueueNews(requests)

    def heard(request_id: int) -> list[object]:
        queue = requests[request_id]
        return [queue.get_nowait() for _ in range(queue.qsize())]

    news.tell(queue_of(1, 2))
    assert (heard(1), heard(2)) == ([Queued(1, 0.0)], [Queued(2, 1.5)])
    clock.now_s += INTERVAL_S / 2
    news.tell(queue_of(3, 2, 77))  # nobody listens to 77
    assert (heard(2), heard(3)) == ([], [Queued(1, 0.0)])
    clock.now_s += INTERVAL_S / 2
    news.tell(queue_of(2, 3))
    assert (heard(2), heard(3)) == ([Queued(1, 0.0)], [Queued(2, 1.5)])


def test_only_who_heard_of_the_queue_hears_of_its_end(clock: Clock) -> None:
    requests: dict[int, asyncio.Queue[object]] = {i: asyncio.Queue() for i in (1, 2)}
    news = QueueNews(requests)
    news.tell(queue_of(1))
    for request_id in (1, 1, 2, 77):
        news.tell_entry(request_id)
    assert requests[1].qsize() == 2
    assert requests[2].qsize() == 0
    news.tell(queue_of(1))  # preempted: it waits again
    assert requests[1].qsize() == 3
    news.forget(1)
    news.forget(77)
    assert not news._told
