"""All events of a request -> one body."""

from collections.abc import Callable

from starlette.types import Send

from llmserve.api.streaming import Answer, IndexedStream
from llmserve.core import Event, Queued, Started
from llmserve.wire.folding import Folded


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
