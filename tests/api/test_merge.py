"""Several streams as one: order, failures, leaving early."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from llmserve.api.streaming import Indexed, merge
from llmserve.core import (
    Delta,
    Event,
    EventStream,
    Finished,
    FinishReason,
    Started,
    Timings,
    Usage,
)
from llmserve.errors import EngineError, QueueFullError

STARTED = Started("m", 1, 1)
FINISHED = Finished(FinishReason.STOP, None, Usage(1, 0, 1), Timings(0, 0, 0, 0, 0))


class Source:
    """A stream whose events are given one by one; knows how it ended."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self.drained = asyncio.Event()  # it wants more than it was given
        self.ending = ""

    def give(self, *events: Event | Exception) -> "Source":
        for event in events:
            self.events.put_nowait(event)
        return self

    async def stream(self) -> EventStream:
        self.ending = "open"
        try:
            event: Event | Exception = STARTED
            while not isinstance(event, Finished):
                if self.events.empty():
                    self.drained.set()
                event = await self.events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
            await asyncio.sleep(0)  # as something that gives a lease back
            self.ending = "whole"
        except asyncio.CancelledError:
            self.ending = "cancelled"
            raise
        except EngineError:
            self.ending = "failed"
            raise


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        await test()
        assert asyncio.all_tasks() == {asyncio.current_task()}, "a task was left over"

    asyncio.run(main())


async def collect(sources: list[Source]) -> list[Indexed]:
    return [item async for item in merge([source.stream() for source in sources])]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_everything_of_every_stream_in_its_order(count: int) -> None:
    async def test() -> None:
        events: list[Event] = [STARTED, Delta("a"), Delta("b"), FINISHED]
        sources = [Source().give(*events) for _ in range(count)]
        items = await collect(sources)
        assert [index for index, _ in items[:count]] == list(range(count))
        for i in range(count):
            assert [event for index, event in items if index == i] == events
        assert [source.ending for source in sources] == ["whole"] * count

    run(test)


def test_nothing_comes_before_all_have_started() -> None:
    async def test() -> None:
        first, second = Source(), Source().give(STARTED, Delta("early"))
        merged = merge([first.stream(), second.stream()])
        pending = asyncio.ensure_future(anext(merged))
        await second.drained.wait()
        assert not pending.done()
        first.give(STARTED)
        assert await pending == (0, STARTED)
        assert await anext(merged) == (1, STARTED)
        assert await anext(merged) == (1, Delta("early"))
        await merged.aclose()
        assert (first.ending, second.ending) == ("cancelled", "cancelled")

    run(test)


def test_a_refusal_of_one_is_raised_before_any_event() -> None:
    async def test() -> None:
        sources = [Source().give(STARTED), Source().give(QueueFullError("full"))]
        with pytest.raises(QueueFullError):
            await collect(sources)
        assert sources[0].ending == "cancelled"

    run(test)


def test_a_failure_of_one_cancels_the_others() -> None:
    async def test() -> None:
        sources = [Source().give(STARTED) for _ in range(3)]
        merged = merge([source.stream() for source in sources])
        assert [await anext(merged) for _ in range(3)] == [(i, STARTED) for i in range(3)]
        sources[1].give(Delta("last words"), EngineError("broken"))
        assert await anext(merged) == (1, Delta("last words"))
        with pytest.raises(EngineError):
            await anext(merged)
        assert [s.ending for s in sources] == ["cancelled", "failed", "cancelled"]

    run(test)


def test_a_reader_that_is_cancelled_cancels_all() -> None:
    async def test() -> None:
        sources = [Source().give(STARTED) for _ in range(2)]
        reading = asyncio.create_task(collect(sources))
        for source in sources:
            await source.drained.wait()
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
        assert [source.ending for source in sources] == ["cancelled", "cancelled"]

    run(test)


def test_leaving_before_the_first_event_starts_nothing() -> None:
    async def test() -> None:
        source = Source()
        await merge([source.stream(), source.stream()]).aclose()
        assert source.ending == ""

    run(test)
