import asyncio
from collections.abc import AsyncGenerator

import pytest

from llmserve.deadline import limited, within
from llmserve.errors import DeadlineError


class Numbers:
    """0, 1, …; from `num_quick` on each takes for ever."""

    def __init__(self, num_quick: int) -> None:
        self._num_quick = num_quick
        self.is_closed = False

    async def stream(self) -> AsyncGenerator[int, None]:
        try:
            for number in range(self._num_quick):
                yield number
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)  # what is given back may take its time
            self.is_closed = True


def test_without_a_limit_nothing_is_added() -> None:
    stream = Numbers(1).stream()
    assert limited(stream, None, None) is stream


def test_the_shortest_limit_ends_the_events_and_closes_them() -> None:
    numbers = Numbers(3)

    async def read() -> None:
        stream = limited(numbers.stream(), None, 0.01, 50)
        assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
        await anext(stream)

    with pytest.raises(DeadlineError, match=r"0\.01 s") as caught:
        asyncio.run(read())
    assert (caught.value.status, caught.value.code) == (504, "deadline_exceeded")
    assert numbers.is_closed


def test_what_ends_in_time_is_complete() -> None:
    async def three() -> AsyncGenerator[int, None]:
        for number in range(3):
            yield number

    async def read() -> list[int]:
        return [number async for number in limited(three(), 50)]

    assert asyncio.run(read()) == [0, 1, 2]


def test_the_readers_own_time_is_not_interrupted() -> None:
    """But it counts: the next event comes too late."""
    numbers = Numbers(1)

    async def read() -> str:
        async for _ in limited(numbers.stream(), 0.01):
            await asyncio.sleep(0.05)
        return "complete"

    with pytest.raises(DeadlineError):
        asyncio.run(read())
    assert numbers.is_closed


def test_leaving_early_closes_the_events() -> None:
    numbers = Numbers(2)

    async def read() -> None:
        stream = limited(numbers.stream(), 50)
        assert await anext(stream) == 0
        await stream.aclose()

    asyncio.run(read())
    assert numbers.is_closed


def test_work_is_cancelled_when_its_time_is_over() -> None:
    numbers = Numbers(0)

    async def work() -> int:
        return await anext(numbers.stream())

    with pytest.raises(DeadlineError):
        asyncio.run(within(work(), 0.01, None))


def test_work_that_fails_fails_as_it_does() -> None:
    async def work() -> int:
        raise ValueError("as it does")

    with pytest.raises(ValueError, match="as it does"):
        asyncio.run(within(work(), None, None))
