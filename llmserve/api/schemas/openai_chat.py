"""The wire format of POST /v1/chat/completions."""

from typing import Annotated, Literal

from msgspec import Meta, Raw, Struct, field

from llmserve.api.schemas.fields import JsonObject, MaxTokens
from llmserve.api.schemas.openai import GenerationRequest, Inert, Refused


class Part(Struct, forbid_unknown_fields=True):
    """One piece of a message; only text is understood."""

    type: str
    text: str | None = None
    image_url: Refused = None
    input_audio: Refused = None
    file: Refused = None
    refusal: Refused = None
    prompt_cache_breakpoint: Inert = None


class Message(Struct, forbid_unknown_fields=True):
    """A client may send back an answer as it got it: with nulls, or an empty list."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Part], Meta(max_length=1024)] | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None
    refusal: Refused = None
    tool_calls: Refused = None
    tool_call_id: Refused = None
    function_call: Refused = None
    reasoning_content: Refused = None
    audio: Refused = None
    annotations: Inert = None


Messages = Annotated[list[Message], Meta(min_length=1, max_length=4096)]


class JsonSchema(Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    description: str | None = None
    # As it was sent: decoding would lose what Python's types do not hold.
    schema: JsonObject = field(default_factory=Raw)
    strict: bool | None = None  # the answer follows the schema either way


class ResponseFormat(Struct, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(GenerationRequest, forbid_unknown_fields=True, kw_only=True):
    messages: Messages
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None

    metadata: Inert = None
    store: Inert = None
    service_tier: Inert = None
    safety_identifier: Inert = None
    prompt_cache_key: Inert = None
    prompt_cache_retention: Inert = None
    prompt_cache_options: Inert = None
    parallel_tool_calls: Inert = None

    tools: Refused = None
    tool_choice: Refused = None
    functions: Refused = None
    function_call: Refused = None
    modalities: Refused = None
    audio: Refused = None
    moderation: Refused = None
    prediction: Refused = None
    reasoning_effort: Refused = None
    verbosity: Refused = None
    web_search_options: Refused = None


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    content: list[ContentLogprob]
    refusal: None = None


class AnswerMessage(Struct, kw_only=True):
    role: str = "assistant"
    content: str
    refusal: None = None
    annotations: tuple[()] = ()


class ChatChoice(Struct):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatDelta(Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None


class ChunkChoice(Struct):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
