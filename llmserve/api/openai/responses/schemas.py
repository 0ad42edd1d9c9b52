"""The wire format of a request to POST /v1/responses.

Items and tools are decoded one by one, after a look at their `type`: so a kind that is not
supported is refused by its name, and not by the first of its fields that is unknown.
"""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from llmserve.api.openai.chat_schemas import CallId, ToolName
from llmserve.api.openai.schemas import Inert, Refused, SamplingRequest, refused_but
from llmserve.wire.fields import JsonObjectOrNull, MaxTokens, ReasoningEffort

Parts = Annotated[list["ContentPart"], Meta(max_length=1024)]


# -- input items ---------------------------------------------------------------------------------


class ContentPart(Struct, forbid_unknown_fields=True):
    """One piece of a message; only text is understood."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: Refused = None
    file_id: Refused = None
    file_data: Refused = None
    file_url: Refused = None
    filename: Refused = None
    input_audio: Refused = None
    detail: Inert = None
    annotations: Inert = None
    logprobs: Inert = None
    prompt_cache_breakpoint: Inert = None


class MessageItem(Struct, forbid_unknown_fields=True):
    """What one side said, with or without a `type`; also a message of an answer, sent back."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | Parts
    type: Literal["message"] | None = None
    id: Inert = None
    status: Inert = None
    phase: Inert = None


class FunctionCallItem(Struct, forbid_unknown_fields=True):
    """A call that the model made."""

    call_id: CallId
    name: ToolName
    arguments: str
    type: Literal["function_call"]
    async_: Annotated[Any, refused_but(False)] = field(default=None, name="async")
    namespace: Refused = None
    caller: Annotated[Any, refused_but({"type": "direct"})] = None
    id: Inert = None
    status: Inert = None


class FunctionCallOutputItem(Struct, forbid_unknown_fields=True):
    """What a call came to."""

    call_id: CallId
    output: str | Parts
    type: Literal["function_call_output"]
    namespace: Refused = None
    caller: Annotated[Any, refused_but({"type": "direct"})] = None
    id: Inert = None
    name: Inert = None
    status: Inert = None


class ReasoningPart(Struct, forbid_unknown_fields=True):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(Struct, forbid_unknown_fields=True):
    """What the model thought; the template decides whether it sees it again."""

    type: Literal["reasoning"]
    summary: list[ReasoningPart] | None = None
    content: list[ReasoningPart] | None = None
    encrypted_content: Annotated[Any, refused_but("")] = None
    id: Inert = None
    status: Inert = None


InputItem = MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem
INPUT_ITEMS = (MessageItem, FunctionCallItem, FunctionCallOutputItem, ReasoningItem)


# -- tools ---------------------------------------------------------------------------------------


class FunctionTool(Struct, forbid_unknown_fields=True):
    name: ToolName
    type: Literal["function"]
    description: Annotated[str, Meta(max_length=65536)] | None = None
    parameters: JsonObjectOrNull | UnsetType = UNSET  # a JSON schema, or null
    strict: bool | None = None  # calls follow the schema either way
    async_: Annotated[Any, refused_but(False)] = field(default=None, name="async")
    defer_loading: Inert = None
    output_schema: Inert = None
    allowed_callers: Annotated[Any, refused_but(["direct"])] = None


class NamedTool(Struct, forbid_unknown_fields=True):
    type: Literal["function"]
    name: ToolName


class NamedChoice(Struct, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """This tool must be called."""

    name: ToolName


class AllowedChoice(Struct, forbid_unknown_fields=True, tag_field="type", tag="allowed_tools"):
    """Only these of the tools may be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Meta(min_length=1, max_length=128)]


ToolChoice = Literal["none", "auto", "required"] | NamedChoice | AllowedChoice


# -- the request ---------------------------------------------------------------------------------


class TextFormat(Struct, forbid_unknown_fields=True, omit_defaults=True):
    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Meta(max_length=256)] | None = None
    description: str | None = None
    schema: JsonObjectOrNull | UnsetType = UNSET
    strict: bool | None = None  # the answer follows the schema either way


class TextConfig(Struct, forbid_unknown_fields=True):
    format: TextFormat | None = None
    verbosity: Annotated[Any, refused_but("medium")] = None


class Reasoning(Struct, forbid_unknown_fields=True):
    effort: ReasoningEffort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Annotated[Any, refused_but("auto")] = None
    mode: Annotated[Any, refused_but("standard")] = None


class StreamOptions(Struct, forbid_unknown_fields=True):
    include_obfuscation: Inert = None


Include = Literal[
    "message.output_text.logprobs",
    # What the others would add to has no place in an answer, so they add nothing.
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16),
]


class ResponsesRequest(SamplingRequest, forbid_unknown_fields=True, kw_only=True):
    """`input`: a string, or items: messages, function calls with their outputs, reasoning."""

    input: str | Annotated[list[Raw], Meta(min_length=1, max_length=4096)]
    instructions: str | None = None
    tools: Annotated[list[Raw], Meta(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: MaxTokens | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    include: list[Include] | None = None
    truncation: Annotated[Any, refused_but("disabled")] = None

    metadata: Metadata | None = None  # comes back as it is, as these strings do
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    max_tool_calls: int | None = None  # of tools that run in the server

    store: Inert = None
    service_tier: Inert = None
    stream_options: StreamOptions | None = None
    prompt_cache_retention: Inert = None
    prompt_cache_options: Inert = None
    background_options: Inert = None

    access_programs: Refused = None
    background: Annotated[Any, refused_but(False)] = None
    context_management: Annotated[Any, refused_but([])] = None
    conversation: Refused = None
    image: Refused = None
    moderation: Refused = None
    previous_response_id: Refused = None
    prompt: Refused = None
