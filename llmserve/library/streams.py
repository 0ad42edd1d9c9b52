"""The parts of an answer while it is generated. Leaving early cancels it.

A task on the background's loop puts what comes into a queue that the caller reads, in a thread or
on an event loop of its own. The last item is the failure, or None.
"""

import asyncio
import contextlib
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from typing import Self, TypeAlias

from llmserve.core import (
    Delta,
    Event,
    Finished,
    PromptLogprobs,
    Queued,
    ReasoningDelta,
    Request,
    Started,
    ToolCallDelta,
)
from llmserve.errors import InvalidRequestError
from llmserve.library.background import Background
from llmserve.library.results import Generation, to_generation
from llmserve.wire.folding import Folded

StreamPart: TypeAlias = Delta | ReasoningDelta | ToolCallDelta
_Item: TypeAlias = Event | BaseException | None
_Put: TypeAlias = Callable[[_Item], object]


class _Feed:
    """Starts a generation whose items are `put`, in the background's thread; folds what is read."""

    _pumping: "Future[None] | None" = None

    def __init__(self, background: Background, request: Request, put: _Put, owner: object) -> None:
        """`owner` is kept: the background ends when it is collected."""
        self._owner = owner
        self._folded: Folded | None = None
        self.is_at_end = False
        self._pumping = background.submit(_pump(background, request, put))
        self._pumping.add_done_callback(lambda future: put(_failure(future)))

    def take(self, item: _Item) -> StreamPart | None:
        """The part that `item` is, if it is one. Raises what it is, if that is an error."""
        match item:
            case None:
                self.is_at_end = True
            case BaseException():
                self.is_at_end = True
                raise item
            case Started():
                self._folded = Folded(item)
            case Finished() | Delta() | ReasoningDelta() | ToolCallDelta():
                if self._folded:
                    self._folded.add(item)
                return None if isinstance(item, Finished) else item
            case PromptLogprobs() | Queued():
                pass
        return None

    def generation(self) -> Generation:
        if self._folded is None or not self._folded.is_finished:
            raise InvalidRequestError("the stream was left before its end; read all of it")
        return to_generation(self._folded)

    def close(self) -> None:
        self.is_at_end = True
        if self._pumping:
            self._pumping.cancel()  # does nothing to what has ended

    def __del__(self) -> None:
        self.close()


async def _pump(background: Background, request: Request, put: _Put) -> None:
    async with contextlib.aclosing(background.gateway.generate(request)) as events:
        async for event in events:
            put(event)


def _failure(future: "Future[None]") -> BaseException | None:
    return None if future.cancelled() else future.exception()


class Stream(Iterator[StreamPart]):
    """The parts as they come, for one thread to read; `result()` is the whole of them."""

    def __init__(self, background: Background, request: Request, owner: object) -> None:
        self._items: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._feed = _Feed(background, request, self._items.put, owner)

    def __next__(self) -> StreamPart:
        while not self._feed.is_at_end:
            if (part := self._feed.take(self._items.get())) is not None:
                return part
        raise StopIteration

    def texts(self) -> Iterator[str]:
        """The text alone, without thoughts and calls. Leaving it closes the stream."""
        with self:
            yield from (part.text for part in self if isinstance(part, Delta))

    def result(self) -> Generation:
        """Reads what is left; the whole answer."""
        for _ in self:
            pass
        return self._feed.generation()

    def close(self) -> None:
        """Cancel what is left."""
        self._feed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class AsyncStream(AsyncIterator[StreamPart]):
    """As `Stream`, for the event loop that it was made on."""

    def __init__(self, background: Background, request: Request, owner: object) -> None:
        loop = asyncio.get_running_loop()
        items = self._items = asyncio.Queue[_Item]()

        def put(item: _Item) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: there is no reader
                loop.call_soon_threadsafe(items.put_nowait, item)

        self._feed = _Feed(background, request, put, owner)

    async def __anext__(self) -> StreamPart:
        while not self._feed.is_at_end:
            if (part := self._feed.take(await self._items.get())) is not None:
                return part
        raise StopAsyncIteration

    async def texts(self) -> AsyncIterator[str]:
        """The text alone, without thoughts and calls. Leaving it closes the stream."""
        async with self:
            async for part in self:
                if isinstance(part, Delta):
                    yield part.text

    async def result(self) -> Generation:
        """Reads what is left; the whole answer."""
        async for _ in self:
            pass
        return self._feed.generation()

    async def aclose(self) -> None:
        """Cancel what is left."""
        self._feed.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._feed.close()
