"""Several generations as one stream: the choices of one request."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import TypeAlias

from llmserve.core import Event, EventStream, Finished, Started

Indexed: TypeAlias = tuple[int, Event]
IndexedStream: TypeAlias = AsyncGenerator[Indexed, None]
Inbox: TypeAlias = "asyncio.Queue[Indexed | Exception]"


async def merge(streams: Sequence[EventStream]) -> IndexedStream:
    """`(index of the stream, event)` as they come, but first `Started` of all, in their order.

    So a request is refused as a whole or not at all. The first failure is raised, and the other
    streams are cancelled; leaving early cancels all.
    """
    if len(streams) == 1:  # as nearly always: no tasks, no queue
        async with contextlib.aclosing(streams[0]) as events:
            async for event in events:
                yield 0, event
        return
    inbox: Inbox = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(i, stream, inbox)) for i, stream in enumerate(streams)]
    try:
        early = await _until_all_started(inbox, len(streams))
        num_finished = 0
        while num_finished < len(streams):
            item = early.pop() if early else await _next(inbox)
            num_finished += isinstance(item[1], Finished)
            yield item
        await asyncio.wait(pumps)  # what they give back on their way out is not to be cut short
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.wait(pumps)


async def _pump(index: int, stream: EventStream, inbox: Inbox) -> None:
    try:
        async with contextlib.aclosing(stream) as events:
            async for event in events:
                inbox.put_nowait((index, event))
    except Exception as error:  # told to whoever reads the inbox
        inbox.put_nowait(error)


async def _until_all_started(inbox: Inbox, num_streams: int) -> list[Indexed]:
    """What came until the last `Started`, to be popped from the end."""
    started: list[Indexed] = []
    others: list[Indexed] = []
    while len(started) < num_streams:
        item = await _next(inbox)
        (started if isinstance(item[1], Started) else others).append(item)
    started.sort(key=lambda item: item[0])
    return (started + others)[::-1]


async def _next(inbox: Inbox) -> Indexed:
    item = await inbox.get()
    if isinstance(item, Exception):
        raise item
    return item
