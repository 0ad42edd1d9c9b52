"""The text routes: what the model makes of a text, and what its tokenizer is.

The wire formats are llama-server's and vLLM's.
"""

from collections.abc import AsyncGenerator
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from llmserve import core
from llmserve.api.caller import Caller, caller_of
from llmserve.api.collect import send_body
from llmserve.api.endpoint import BODY, MODEL, endpoint
from llmserve.api.http.decode import decode_body, json_response
from llmserve.api.http.upload import read_body
from llmserve.api.openai.chat_schemas import Messages, TemplateVariables, Tools
from llmserve.api.openai.messages import to_messages
from llmserve.api.openai.tools import to_tools
from llmserve.api.streaming import Answer
from llmserve.errors import InvalidRequestError
from llmserve.wire.fields import ReasoningEffort, TokenId

# Seconds of a thread at most: what comes as one word, such as a million times the same letter,
# takes longest, and nothing can stop native code.
Text = Annotated[str, Meta(max_length=1 << 20)]


class TokenizeRequest(Struct, forbid_unknown_fields=True):
    """`content` and `add_special` are llama-server's, `prompt` and `add_special_tokens` vLLM's."""

    model: str | None = None
    content: Text | None = None
    add_special: bool | None = None
    prompt: Text | None = None
    add_special_tokens: bool | None = None


class TokenizeResponse(Struct):
    tokens: list[int]
    count: int
    max_model_len: int  # tokens of the context


class DetokenizeRequest(Struct, forbid_unknown_fields=True):
    tokens: Annotated[list[TokenId], Meta(max_length=1 << 20)]
    model: str | None = None


class DetokenizeResponse(Struct):
    """The same text twice: under llama-server's name and under vLLM's."""

    content: str
    prompt: str


class TokenizerInfo(Struct):
    """vLLM's: what a `tokenizer_config.json` would say. No text: the model has no such token."""

    model: str
    tokenizer_class: str  # as the GGUF calls it: gpt2, llama, …
    bos_token: str | None
    eos_token: str | None
    add_bos_token: bool  # whether the model wants BOS in front of every text
    chat_template: str | None
    model_max_length: int  # tokens of the context
    vocab_size: int


class TemplateRequest(Struct, forbid_unknown_fields=True):
    messages: Messages
    model: str | None = None
    tools: Tools | None = None
    reasoning_effort: ReasoningEffort | None = None
    chat_template_kwargs: TemplateVariables | None = None


class TemplateResponse(Struct):
    prompt: str


T = TypeVar("T")


class TextAnswer(Answer):
    """One Struct as the whole body. A client that goes away takes its text out of the queue."""

    async def _send(self, send: Send) -> None:
        await send_body(send, msgspec.json.encode(await anext(self._events)))


@endpoint(
    "POST",
    "/tokenize",
    summary="The tokens of a text",
    tag="Text",
    body=TokenizeRequest,
    example={"content": "Hello"},
    answer=TokenizeResponse,
    errors=(*BODY, *MODEL),
)
async def tokenize(request: Request) -> Response:
    wire = await _read(request, TokenizeRequest)
    return TextAnswer(_tokenized(caller_of(request), wire.model, *_text(wire)))


async def _tokenized(
    caller: Caller, model: str | None, text: str, add_special: bool
) -> AsyncGenerator[TokenizeResponse, None]:
    async with caller.engine(model) as engine:
        tokens = await engine.tokenize(text, add_special=add_special)
        max_len = engine.limits.context_length
    yield TokenizeResponse(tokens, len(tokens), max_len)


@endpoint(
    "POST",
    "/detokenize",
    summary="The text of tokens",
    tag="Text",
    body=DetokenizeRequest,
    example={"tokens": [1, 2, 3]},
    answer=DetokenizeResponse,
    errors=(*BODY, *MODEL),
)
async def detokenize(request: Request) -> Response:
    wire = await _read(request, DetokenizeRequest)
    return TextAnswer(_detokenized(caller_of(request), wire.model, wire.tokens))


async def _detokenized(
    caller: Caller, model: str | None, tokens: list[int]
) -> AsyncGenerator[DetokenizeResponse, None]:
    async with caller.engine(model) as engine:
        text = await engine.detokenize(tokens)
    yield DetokenizeResponse(text, text)


@endpoint(
    "GET",
    "/tokenizer_info",
    summary="The model's tokenizer",
    tag="Text",
    query=("model",),
    answer=TokenizerInfo,
    errors=MODEL,
)
async def tokenizer_info(request: Request) -> Response:
    """Of the model that the query names, as vLLM's, which has only one."""
    async with caller_of(request).engine(request.query_params.get("model")) as engine:
        info, name = engine.info, engine.name
        max_len = engine.limits.context_length
    return json_response(
        TokenizerInfo(
            model=name,
            tokenizer_class=info.tokenizer,
            bos_token=info.bos_text or None,
            eos_token=info.eos_text or None,
            add_bos_token=info.adds_bos,
            chat_template=info.chat_template,
            model_max_length=max_len,
            vocab_size=info.vocab_size,
        )
    )


@endpoint(
    "POST",
    "/apply-template",
    summary="The text that a conversation is for the model",
    tag="Text",
    body=TemplateRequest,
    example={"messages": [{"role": "user", "content": "Hello"}]},
    answer=TemplateResponse,
    errors=(*BODY, *MODEL),
)
async def apply_template(request: Request) -> Response:
    wire = await _read(request, TemplateRequest)
    tools = to_tools(wire.tools or [])
    conversation = core.Request(
        messages=to_messages(wire.messages),
        tool_use=core.ToolUse(tools) if tools else None,
        reasoning_effort=wire.reasoning_effort,
        template_variables=wire.chat_template_kwargs or {},
    )
    return TextAnswer(_rendered(caller_of(request), wire.model, conversation))


async def _rendered(
    caller: Caller, model: str | None, conversation: core.Request
) -> AsyncGenerator[TemplateResponse, None]:
    async with caller.engine(model) as engine:
        text = await engine.render(conversation)
    yield TemplateResponse(text)


def _text(wire: TokenizeRequest) -> tuple[str, bool]:
    """The text, and whether to put BOS in front: llama-server's default is no, vLLM's is yes."""
    if wire.add_special is not None and wire.add_special_tokens is not None:
        raise InvalidRequestError(
            "give either add_special or add_special_tokens", param="add_special"
        )
    given = wire.add_special if wire.add_special_tokens is None else wire.add_special_tokens
    if wire.content is not None and wire.prompt is None:
        return wire.content, bool(given)
    if wire.prompt is not None and wire.content is None:
        return wire.prompt, given is not False
    raise InvalidRequestError("give either content or prompt", param="content")


async def _read(request: Request, kind: type[T]) -> T:
    return decode_body(await read_body(request), kind)
