"""Events -> an HTTP answer, folded or streamed, that ends when the client goes away.

Starlette's StreamingResponse leaves its iterator open when a client disconnects during a send,
so both kinds of answer are Responses of our own. Nothing is sent before the first event, so
that every refusal is a real HTTP status.
"""

import asyncio
import contextlib
import logging
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Generic, TypeAlias, TypeVar

from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from llmserve.api.http.errors import Describe, describe, encode_error
from llmserve.core import (
    Embeddings,
    Event,
    EventStream,
    Finished,
    Queued,
    Started,
)
from llmserve.errors import LlmserveError, as_llmserve_error
from llmserve.telemetry.request_record import note_error

T = TypeVar("T")
log = logging.getLogger(__name__)
SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
KEEP_ALIVE = b": keep-alive\n\n"
Indexed: TypeAlias = tuple[int, Event]
IndexedStream: TypeAlias = AsyncGenerator[Indexed, None]
Inbox: TypeAlias = "asyncio.Queue[Indexed | Exception]"


class Answer(Response):
    """Runs `_send` until it ends or the client is gone; either way the events are closed.

    Its header `x-llmserve-model` says who answers, which may be a fallback.

    """

    def __init__(self, events: AsyncGenerator[Any, None]) -> None:
        self._models: dict[str, None] = {}  # that answer; several where some choices fell back
        self._events = self._watch(events)
        self.background: BackgroundTask | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._work(send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not work.done():
                work.cancel()
            await asyncio.wait((work, gone))
        if not work.cancelled():
            work.result()

    async def _work(self, send: Send) -> None:
        async def send_with_model(message: Message) -> None:
            if message["type"] == "http.response.start" and self._models:
                header = (b"x-llmserve-model", ", ".join(self._models).encode())
                message["headers"] = [*message["headers"], header]
            await send(message)

        async with contextlib.aclosing(self._events):
            await self._send(send_with_model)

    async def _watch(self, events: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """`events`: embeddings, or those of a generation, with or without its index."""
        async with contextlib.aclosing(events):
            async for item in events:
                event = item[1] if isinstance(item, tuple) else item
                if isinstance(event, Started | Embeddings):
                    self._models[event.model] = None
                yield item

    @abstractmethod
    async def _send(self, send: Send) -> None: ...


class StreamedAnswer(Answer, Generic[T]):
    """Server-sent events. `encode(event)` gives the bytes of one event, b"" for none.

    An error after the start is sent as an event, in the words of `describe_error`, and ends the
    stream. When nothing was sent for `keep_alive_s` (a long queue or prefill), a comment goes out,
    which says how the queue stands where the request is in it.
    """

    def __init__(
        self,
        events: AsyncGenerator[T, None],
        encode: Callable[[T], bytes],
        *,
        keep_alive_s: float,
        describe_error: Describe = describe,
    ) -> None:
        super().__init__(events)
        self._encode = encode
        self._keep_alive_s = keep_alive_s
        self._describe_error = describe_error
        self._last_sent_s = 0.0
        self._queue = _QueueState()

    async def _send(self, send: Send) -> None:
        first = await anext(self._events)  # raises what has a status of its own
        await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
        self._queue.note(first)
        await self._send_part(send, self._encode(first))
        keep_alive = asyncio.create_task(self._keep_alive(send))
        try:
            async for event in self._events:
                if not self._queue.note(event):
                    await self._send_part(send, self._encode(event))
        except Exception as error:  # too late for a status
            await self._send_part(send, self._encode_failure(error))
            note_error(as_llmserve_error(error).code)
            if not isinstance(error, LlmserveError):
                log.exception("a stream failed")
        finally:
            keep_alive.cancel()
        await send({"type": "http.response.body", "body": b""})

    def _encode_failure(self, error: Exception) -> bytes:
        """The last event of a stream that fails."""
        return sse_event(encode_error(error, self._describe_error))

    async def _send_part(self, send: Send, part: bytes) -> None:
        if part:
            self._last_sent_s = asyncio.get_running_loop().time()
            await send({"type": "http.response.body", "body": part, "more_body": True})
            # Neither `send` nor a full queue of events suspends: without this a reader that was
            # slow holds up the loop, and one that left is not noticed.
            await asyncio.sleep(0)

    async def _keep_alive(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        self._last_sent_s = loop.time()
        while True:
            await asyncio.sleep(self._last_sent_s + self._keep_alive_s - loop.time())
            if loop.time() >= self._last_sent_s + self._keep_alive_s:
                await self._send_part(send, self._queue.comment())


def sse_event(data: bytes, name: str | None = None) -> bytes:
    """One server-sent event; `data` is JSON, so it has no line break."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + data + b"\n\n"


class _QueueState:
    """Where the generations of one stream stand in the queue: the news that no dialect shows."""

    def __init__(self) -> None:
        self._num_started = 0
        self._news: dict[int, tuple[Queued, float]] = {}  # by index: of those without a slot, when

    def note(self, event: object) -> bool:
        """Whether `event`, of one generation or of several that are merged, is only for here."""
        index, event = event if isinstance(event, tuple) else (0, event)
        if isinstance(event, Started):
            self._num_started += 1
        if not isinstance(event, Queued):
            return False
        self._news.pop(index, None)
        if event.position:
            self._news[index] = event, time.monotonic()
        return True

    def comment(self) -> bytes:
        """How the queue stands, unless one of the generations has a slot."""
        if not self._news or len(self._news) < self._num_started:
            return KEEP_ALIVE
        first, told_s = min(self._news.values(), key=lambda news: news[0].position)
        wait_s = max(0.0, first.expected_wait_s - (time.monotonic() - told_s))
        return f": queued position={first.position} expected_wait_s={wait_s:.1f}\n\n".encode()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


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
