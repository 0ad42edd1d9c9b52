"""POST /v1/chat/completions."""

import functools

import msgspec
from msgspec import UNSET, Raw
from starlette.requests import Request
from starlette.responses import Response

from llmserve import core
from llmserve.api.caller import caller_of
from llmserve.api.collect import FoldedAnswer
from llmserve.api.endpoint import GENERATION, endpoint
from llmserve.api.http.decode import decode_body
from llmserve.api.http.errors import ErrorEnvelope
from llmserve.api.http.upload import read_body
from llmserve.api.openai.chat_schemas import (
    AnswerMessage,
    ChatChoice,
    ChatDelta,
    ChatLogprobs,
    ChatRequest,
    ChunkChoice,
    ResponseFormat,
)
from llmserve.api.openai.errors import describe_error
from llmserve.api.openai.logprobs import content_logprobs
from llmserve.api.openai.messages import to_messages
from llmserve.api.openai.params import refuse, sampling, seeds, wants_usage
from llmserve.api.openai.response_format import format_constraint, structured_constraint
from llmserve.api.openai.schemas import Body
from llmserve.api.openai.stream import Head, StreamEncoder, finish_reason, fold_body, make_head
from llmserve.api.openai.tools import answer_call, call_delta, tool_use
from llmserve.api.streaming import StreamedAnswer, merge
from llmserve.core import Constraint, Delta, Finished, Part, ReasoningDelta, ToolCallDelta
from llmserve.errors import InvalidRequestError
from llmserve.gateway import Gateway
from llmserve.wire.fields import stop_strings
from llmserve.wire.folding import Folded
from llmserve.wire.validation import MissingFieldError

_REFUSED: dict[str, tuple[object, ...]] = {  # with the values that ask for nothing
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "moderation": (),
    "prediction": (),
    "verbosity": ("medium",),
    "web_search_options": (),
}


@endpoint(
    "POST",
    "/v1/chat/completions",
    summary="Continue a conversation",
    tag="OpenAI",
    body=ChatRequest,
    example={
        "messages": [{"role": "user", "content": "Name three colours."}],
        "max_tokens": 32,
    },
    answer=Body[ChatChoice],
    events=(Body[ChunkChoice], ErrorEnvelope, "[DONE]"),
    errors=GENERATION,
)
async def chat_completions(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    server = gateway.config.server
    wire = decode_body(await read_body(request), ChatRequest)
    include_usage = wants_usage(wire)
    requests = to_core(wire)
    events = merge(caller_of(request).generate_all(requests))
    kind = "chat.completion.chunk" if wire.stream else "chat.completion"
    head = make_head(gateway, wire.model, prefix="chatcmpl", kind=kind)
    if not wire.stream:
        return FoldedAnswer(events, functools.partial(_render, head, bool(wire.logprobs)))
    encoder = ChatEncoder(
        head, num_prompts=1, num_choices=len(requests), include_usage=include_usage
    )
    return StreamedAnswer(
        events,
        encoder.encode,
        keep_alive_s=server.keep_alive_s,
        describe_error=describe_error,
    )


def to_core(wire: ChatRequest) -> list[core.Request]:
    """A request for each choice. Raises `InvalidRequestError`s that name the field."""
    refuse(wire, _REFUSED)
    base = core.Request(
        model=wire.model,
        messages=to_messages(wire.messages),
        mode=core.Mode.CHAT,
        sampling=sampling(wire),
        max_tokens=_max_tokens(wire),
        stop=stop_strings(wire.stop),
        num_logprobs=_num_logprobs(wire),
        constraint=structured_constraint(wire, _constraint(wire.response_format)),
        priority=wire.priority or "interactive",
        deterministic=bool(wire.deterministic),
        timeout_s=wire.timeout,
        cache_prompt=wire.cache_prompt is not False,
        tool_use=tool_use(wire),
        reasoning_effort=wire.reasoning_effort,
        template_variables=wire.chat_template_kwargs or {},
    )
    return [msgspec.structs.replace(base, seed=seed) for seed in seeds(wire, wire.n or 1)]


def _max_tokens(wire: ChatRequest) -> int | None:
    """Of the old and the new name of the same field."""
    old, new = wire.max_tokens, wire.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise InvalidRequestError(
            f"max_tokens is {old} and max_completion_tokens is {new}; give one of them",
            param="max_tokens",
        )
    return new if old is None else old


def _num_logprobs(wire: ChatRequest) -> int | None:
    if wire.logprobs:
        return wire.top_logprobs or 0
    if wire.top_logprobs:
        raise InvalidRequestError(
            "top_logprobs is given, but logprobs is not true", param="top_logprobs"
        )
    return None


def _constraint(wire: ResponseFormat | None) -> Constraint | None:
    if wire is None:
        return None
    path = "response_format.json_schema"
    if wire.type == "json_schema" and wire.json_schema is None:
        raise MissingFieldError(f"{path} is missing", param=path)
    schema = wire.json_schema.schema if wire.json_schema else Raw()
    return format_constraint(wire.type, schema, path=f"{path}.schema")


def _render(head: Head, with_logprobs: bool, folded: list[Folded]) -> bytes:
    choices = [
        ChatChoice(
            index,
            _message(each),
            ChatLogprobs(content_logprobs(each.logprobs)) if with_logprobs else None,
            finish_reason(each.finished.reason),
        )
        for index, each in enumerate(folded)
    ]
    return fold_body(head, folded, choices, len(choices))


def _message(folded: Folded) -> AnswerMessage:
    calls = [answer_call(call) for call in folded.tool_calls]
    return AnswerMessage(
        content=folded.text if folded.text or not calls else None,
        reasoning_content=folded.reasoning or UNSET,
        tool_calls=calls or UNSET,
    )


class ChatEncoder(StreamEncoder):
    def start(self, index: int) -> ChunkChoice:
        return ChunkChoice(index, ChatDelta(role="assistant", content=""))

    def part(self, index: int, event: Part) -> ChunkChoice | None:
        match event:
            case Delta(text, sampled):
                logprobs = ChatLogprobs(content_logprobs(sampled)) if sampled else None
                return ChunkChoice(index, ChatDelta(content=text), logprobs)
            case ReasoningDelta(text):
                return ChunkChoice(index, ChatDelta(reasoning_content=text))
            case ToolCallDelta():
                return ChunkChoice(index, ChatDelta(tool_calls=[call_delta(event)]))
            case _:
                return None

    def finish(self, index: int, event: Finished) -> ChunkChoice:
        return ChunkChoice(index, ChatDelta(), finish_reason=finish_reason(event.reason))
