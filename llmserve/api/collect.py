"""All events of a request -> one body."""

from collections.abc import Callable

from starlette.types import Send

from llmserve.api.streaming import Answer, IndexedStream
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


async def send_body(send: Send, body: bytes) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
