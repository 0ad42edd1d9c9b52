"""The time that a request may take, whatever it spends it on."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from llmserve.errors import DeadlineError

T = TypeVar("T")


def limited(events: AsyncGenerator[T, None], *limits_s: float | None) -> AsyncGenerator[T, None]:
    """`events`, which end with `DeadlineError` when the shortest of the limits is over."""
    limit_s = _shortest(limits_s)
    return events if limit_s is None else _limited(events, limit_s)


async def within(work: Coroutine[Any, Any, T], *limits_s: float | None) -> T:
    """The result of `work`, or `DeadlineError`, and then it is cancelled."""
    limit_s = _shortest(limits_s)
    try:
        async with asyncio.timeout(limit_s):
            return await work
    except TimeoutError as error:
        raise _over(limit_s) from error


async def _limited(events: AsyncGenerator[T, None], limit_s: float) -> AsyncGenerator[T, None]:
    end_s = asyncio.get_running_loop().time() + limit_s
    async with contextlib.aclosing(events):
        while True:
            try:
                async with asyncio.timeout_at(end_s):  # not around the yield: that is others' time
                    event = await anext(events)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise _over(limit_s) from error
            yield event


def _shortest(limits_s: tuple[float | None, ...]) -> float | None:
    return min((limit_s for limit_s in limits_s if limit_s is not None), default=None)


def _over(limit_s: float | None) -> DeadlineError:
    return DeadlineError(
        f"the request has taken longer than the {limit_s:g} s that it may (its timeout, or"
        " request_timeout)"
    )
