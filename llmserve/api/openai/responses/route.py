"""POST /v1/responses, without a memory: nothing is stored, so the input is the whole history."""

import logging

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from llmserve.api.caller import caller_of
from llmserve.api.collect import send_body
from llmserve.api.endpoint import GENERATION, endpoint
from llmserve.api.http.decode import decode_body
from llmserve.api.http.upload import read_body
from llmserve.api.openai.errors import describe_response_error
from llmserve.api.openai.responses.builder import ResponseBuilder
from llmserve.api.openai.responses.items import AnyStreamEvent, ResponseBody, StreamEvent
from llmserve.api.openai.responses.request import to_core, to_echo, wants_summary
from llmserve.api.openai.responses.schemas import INPUT_ITEMS, FunctionTool, ResponsesRequest
from llmserve.api.streaming import Answer, StreamedAnswer, sse_event
from llmserve.core import Event, EventStream
from llmserve.errors import as_llmserve_error
from llmserve.gateway import Gateway

log = logging.getLogger(__name__)


@endpoint(
    "POST",
    "/v1/responses",
    summary="Continue a conversation of items",
    tag="OpenAI",
    body=ResponsesRequest,
    example={"input": "Name three colours.", "max_output_tokens": 32},
    items={"input": INPUT_ITEMS, "tools": (FunctionTool,)},
    answer=ResponseBody,
    events=(AnyStreamEvent,),
    errors=GENERATION,
)
async def responses(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    server = gateway.config.server
    wire = decode_body(await read_body(request), ResponsesRequest)
    asked = to_core(wire)
    builder = ResponseBuilder(to_echo(wire, asked), wants_summary=wants_summary(wire))
    events = caller_of(request).generate(asked)
    if wire.stream:
        return _Streamed(events, builder, keep_alive_s=server.keep_alive_s)
    return _Whole(events, builder)


class _Whole(Answer):
    """The response that the stream's last event would have."""

    def __init__(self, events: EventStream, builder: ResponseBuilder) -> None:
        super().__init__(events)
        self._builder = builder

    async def _send(self, send: Send) -> None:
        async for event in self._events:
            self._builder.push(event)
        await send_body(send, msgspec.json.encode(self._builder.response))


class _Streamed(StreamedAnswer[Event]):
    def __init__(
        self, events: EventStream, builder: ResponseBuilder, *, keep_alive_s: float
    ) -> None:
        super().__init__(
            events, lambda event: _encode(builder.push(event)), keep_alive_s=keep_alive_s
        )
        self._builder = builder

    def _encode_failure(self, error: Exception) -> bytes:
        described = describe_response_error(as_llmserve_error(error))
        return _encode(self._builder.fail(described.body))


def _encode(events: list[StreamEvent]) -> bytes:
    """Each under its name. There is no `[DONE]`: the last event says that it is the last."""
    return b"".join(
        sse_event(msgspec.json.encode(event), str(event.__struct_config__.tag)) for event in events
    )
