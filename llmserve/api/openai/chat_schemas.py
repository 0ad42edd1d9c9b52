"""The wire format of POST /v1/chat/completions, its tools and calls.

A tool's name is what OpenAI takes, with dots; so it can stand in any model's format as it is.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from llmserve.api.openai.schemas import GenerationRequest, Inert, Refused, refused_but
from llmserve.wire.fields import JsonObjectOrNull, MaxTokens, ReasoningEffort

ToolName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
CallId = Annotated[str, Meta(min_length=1, max_length=256)]


class Function(Struct, forbid_unknown_fields=True):
    name: ToolName
    description: Annotated[str, Meta(max_length=65536)] | None = None
    # A JSON schema, which the engine bounds.
    parameters: JsonObjectOrNull | UnsetType = UNSET
    strict: bool | None = None  # arguments follow the schema either way


class Tool(Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    function: Function


Tools = Annotated[list[Tool], Meta(max_length=128)]


class FunctionName(Struct, forbid_unknown_fields=True):
    name: ToolName


class NamedTool(Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    function: FunctionName


class NamedChoice(Struct, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """This tool must be called."""

    function: FunctionName


class AllowedTools(Struct, forbid_unknown_fields=True):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Meta(min_length=1, max_length=128)]


class AllowedChoice(Struct, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"):
    """Only these of the tools may be called."""

    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | NamedChoice | AllowedChoice


class CalledFunction(Struct, forbid_unknown_fields=True):
    name: ToolName
    arguments: str  # JSON


class Call(Struct, forbid_unknown_fields=True):
    """A call in an assistant's message, of a request and of an answer."""

    id: CallId
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None  # clients that put deltas together send it back


class AnswerCall(Struct):
    id: str
    type: Literal["function"]
    function: CalledFunction


class FunctionDelta(Struct, omit_defaults=True):
    arguments: str
    name: str | None = None


class CallDelta(Struct, omit_defaults=True):
    """A piece of a call: the first has id, type and name, later ones only more of the arguments."""

    index: int
    function: FunctionDelta
    id: str | None = None
    type: str | None = None


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
    tool_calls: Annotated[list[Call], Meta(max_length=128)] | None = None
    tool_call_id: CallId | None = None
    function_call: Refused = None
    reasoning_content: str | None = None  # what the assistant thought
    audio: Refused = None
    annotations: Inert = None


TemplateVariables = dict[str, Any]  # as llama-server and vLLM take them
Messages = Annotated[list[Message], Meta(min_length=1, max_length=4096)]


class JsonSchema(Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    description: str | None = None
    # As it was sent: decoding would lose what Python's types do not hold.
    schema: JsonObjectOrNull = field(default_factory=Raw)
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
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: ReasoningEffort | None = None
    chat_template_kwargs: TemplateVariables | None = None

    metadata: Inert = None
    store: Inert = None
    service_tier: Inert = None
    safety_identifier: Inert = None
    prompt_cache_key: Inert = None
    prompt_cache_retention: Inert = None
    prompt_cache_options: Inert = None

    functions: Annotated[Any, refused_but([])] = None
    function_call: Annotated[Any, refused_but("none")] = None
    modalities: Annotated[Any, refused_but(["text"])] = None
    audio: Refused = None
    moderation: Refused = None
    prediction: Refused = None
    verbosity: Annotated[Any, refused_but("medium")] = None
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
    """`reasoning_content` and `tool_calls` are left out where there are none."""

    role: str = "assistant"
    content: str | None
    refusal: None = None
    annotations: tuple[()] = ()
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[AnswerCall] | UnsetType = UNSET


class ChatChoice(Struct):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: str


class ChatDelta(Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallDelta] | None = None


class ChunkChoice(Struct):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
