"""Events -> an HTTP answer, folded or streamed, that ends when the client goes away.

Starlette's StreamingResponse leaves its iterator open when a client disconnects during a send,
so both kinds of answer are Responses of our own. Nothing is sent before the first event, so
that every refusal is a real HTTP status.
"""

import asyncio
import contextlib
import logging
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable
from typing import Any, Generic, TypeVar

from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llmserve.api.errors import Describe, describe, encode_error
from llmserve.api.merge import IndexedStream
from llmserve.core import (
    Delta,
    Event,
    Finished,
    Part,
    PromptLogprobs,
    Queued,
    ReasoningDelta,
    SampledLogprob,
    Started,
    ToolCall,
    ToolCallDelta,
)
from llmserve.errors import LlmserveError

T = TypeVar("T")
log = logging.getLogger(__name__)

SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
KEEP_ALIVE = b": keep-alive\n\n"


class Answer(Response):
    """Runs `_send` until it ends or the client is gone; either way the events are closed."""

    def __init__(self, events: AsyncGenerator[Any, None]) -> None:
        self._events = events
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
        async with contextlib.aclosing(self._events):
            await self._send(send)

    @abstractmethod
    async def _send(self, send: Send) -> None: ...


class Folded:
    """One whole generation, as its events built it up."""

    def __init__(self, started: Started) -> None:
        self.started = started
        self.prompt_logprobs: PromptLogprobs | None = None
        self.logprobs: list[SampledLogprob] = []
        self._texts: list[str] = []
        self._reasonings: list[str] = []
        self._calls: list[tuple[str, str, list[str]]] = []  # id, name, pieces of the arguments
        self._finished: Finished | None = None

    def add(self, event: Part | Finished) -> None:
        match event:
            case PromptLogprobs():
                self.prompt_logprobs = event
            case Delta(text, logprobs):
                self._texts.append(text)
                self.logprobs += logprobs
            case ReasoningDelta(text):
                self._reasonings.append(text)
            case ToolCallDelta():
                self._add_call(event)
            case Finished():
                self._finished = event

    def _add_call(self, part: ToolCallDelta) -> None:
        if part.index == len(self._calls):
            assert part.id is not None
            assert part.name is not None
            self._calls.append((part.id, part.name, []))
        self._calls[part.index][2].append(part.arguments)

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasonings)

    @property
    def tool_calls(self) -> list[ToolCall]:
        return [ToolCall(call_id, name, "".join(pieces)) for call_id, name, pieces in self._calls]

    @property
    def finished(self) -> Finished:
        assert self._finished, "rendered before its end"
        return self._finished


class FoldedAnswer(Answer):
    """One JSON body, made by `render` of all generations, in their order."""

    def __init__(self, events: IndexedStream, render: Callable[[list[Folded]], bytes]) -> None:
        super().__init__(events)
        self._render = render

    async def _send(self, send: Send) -> None:
        folded: list[Folded] = []
        event: Event
        async for index, event in self._events:
            if isinstance(event, Started):
                assert index == len(folded), "merge starts them in their order"
                folded.append(Folded(event))
            elif not isinstance(event, Queued):
                folded[index].add(event)
        await send_body(send, self._render(folded))


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
        self._queued: Queued | None = None  # the last news, while it waits for a slot
        self._queued_s = 0.0  # when that was

    async def _send(self, send: Send) -> None:
        first = await anext(self._events)  # raises what has a status of its own
        await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
        await self._send_part(send, self._encode(first))
        keep_alive = asyncio.create_task(self._keep_alive(send))
        try:
            async for event in self._events:
                if queued := _queued(event):
                    self._note_queue(queued)
                else:
                    await self._send_part(send, self._encode(event))
        except Exception as error:  # too late for a status
            await self._send_part(send, self._encode_failure(error))
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
                await self._send_part(send, self._comment(loop.time()))

    def _note_queue(self, queued: Queued) -> None:
        self._queued = queued if queued.position else None
        self._queued_s = asyncio.get_running_loop().time()

    def _comment(self, now_s: float) -> bytes:
        if self._queued is None:
            return KEEP_ALIVE
        wait_s = max(0.0, self._queued.expected_wait_s - (now_s - self._queued_s))
        position = self._queued.position
        return f": queued position={position} expected_wait_s={wait_s:.1f}\n\n".encode()


def sse_event(data: bytes, name: str | None = None) -> bytes:
    """One server-sent event; `data` is JSON, so it has no line break."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + data + b"\n\n"


def _queued(event: object) -> Queued | None:
    """The news of the queue in an event, of one generation or of several that are merged."""
    if isinstance(event, tuple):
        event = event[1]
    return event if isinstance(event, Queued) else None


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_body(send: Send, body: bytes) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
