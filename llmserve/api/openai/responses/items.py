"""The wire format of an answer of POST /v1/responses, and of the events of its stream.

The names of the events are their tags: `event:` and `type` say the same.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from llmserve.api.http.errors import ErrorBody
from llmserve.api.openai.chat_schemas import ContentLogprob
from llmserve.api.openai.responses.schemas import TextFormat, ToolChoice

ItemStatus = Literal["in_progress", "completed", "incomplete"]


# -- output items --------------------------------------------------------------------------------


class OutputText(Struct, tag_field="type", tag="output_text", kw_only=True):
    text: str
    annotations: tuple[()] = ()
    logprobs: list[ContentLogprob] = []


class ReasoningText(Struct, tag_field="type", tag="reasoning_text"):
    text: str


class SummaryText(Struct, tag_field="type", tag="summary_text"):
    text: str


class OutputMessage(Struct, tag_field="type", tag="message", kw_only=True):
    id: str
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText] = []


class OutputReasoning(Struct, tag_field="type", tag="reasoning", kw_only=True):
    """What the model thought: in `summary` if one was asked for, else in `content`."""

    id: str
    status: ItemStatus
    summary: list[SummaryText] = []
    content: list[ReasoningText] = []
    encrypted_content: None = None


class OutputCall(Struct, tag_field="type", tag="function_call", kw_only=True):
    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus


OutputItem = OutputMessage | OutputReasoning | OutputCall


# -- the answer ----------------------------------------------------------------------------------


class InputTokensDetails(Struct):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct):
    reasoning_tokens: int


class ResponseUsage(Struct):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(Struct):
    reason: Literal["max_output_tokens"]


class ResponseError(Struct):
    code: Literal["server_error"]
    message: str


class TextEcho(Struct):
    format: TextFormat
    verbosity: Literal["medium"] = "medium"


class ReasoningEcho(Struct):
    effort: str | None = None
    summary: str | None = None


class ResponseBody(Struct, kw_only=True):
    """What was asked for comes back, with the defaults filled in."""

    id: str
    object: Literal["response"] = "response"
    created_at: int  # unix time, as `completed_at`
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    background: Literal[False] = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, str] = {}
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    prompt_cache_key: str | None = None
    reasoning: ReasoningEcho
    safety_identifier: str | None = None
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    temperature: float
    text: TextEcho
    tool_choice: ToolChoice = "auto"
    tools: list[Any] = []
    top_logprobs: int = 0
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None


# -- the events of a stream ----------------------------------------------------------------------


class StreamEvent(Struct, tag_field="type", kw_only=True):
    sequence_number: int = -1  # given when the event is sent


class LifecycleEvent(StreamEvent, kw_only=True):
    response: ResponseBody


class Created(LifecycleEvent, tag="response.created"): ...


class InProgress(LifecycleEvent, tag="response.in_progress"): ...


class Completed(LifecycleEvent, tag="response.completed"): ...


class Incomplete(LifecycleEvent, tag="response.incomplete"): ...


class Failed(LifecycleEvent, tag="response.failed"): ...


class ItemEvent(StreamEvent, kw_only=True):
    output_index: int
    item: OutputItem


class ItemAdded(ItemEvent, tag="response.output_item.added"): ...


class ItemDone(ItemEvent, tag="response.output_item.done"): ...


class PlacedEvent(StreamEvent, kw_only=True):
    """Something about the item that began last."""

    item_id: str
    output_index: int


class PartEvent(PlacedEvent, kw_only=True):
    content_index: Literal[0] = 0
    part: OutputText | ReasoningText


class PartAdded(PartEvent, tag="response.content_part.added"): ...


class PartDone(PartEvent, tag="response.content_part.done"): ...


class TextDelta(PlacedEvent, kw_only=True, tag="response.output_text.delta"):
    content_index: Literal[0] = 0
    delta: str
    logprobs: list[ContentLogprob] = []


class TextDone(PlacedEvent, kw_only=True, tag="response.output_text.done"):
    content_index: Literal[0] = 0
    text: str
    logprobs: list[ContentLogprob] = []


class ReasoningDelta(PlacedEvent, kw_only=True, tag="response.reasoning_text.delta"):
    content_index: Literal[0] = 0
    delta: str


class ReasoningDone(PlacedEvent, kw_only=True, tag="response.reasoning_text.done"):
    content_index: Literal[0] = 0
    text: str


class SummaryPartEvent(PlacedEvent, kw_only=True):
    summary_index: Literal[0] = 0
    part: SummaryText


class SummaryPartAdded(SummaryPartEvent, tag="response.reasoning_summary_part.added"): ...


class SummaryPartDone(SummaryPartEvent, tag="response.reasoning_summary_part.done"): ...


class SummaryDelta(PlacedEvent, kw_only=True, tag="response.reasoning_summary_text.delta"):
    summary_index: Literal[0] = 0
    delta: str


class SummaryDone(PlacedEvent, kw_only=True, tag="response.reasoning_summary_text.done"):
    summary_index: Literal[0] = 0
    text: str


class ArgumentsDelta(PlacedEvent, kw_only=True, tag="response.function_call_arguments.delta"):
    delta: str


class ArgumentsDone(PlacedEvent, kw_only=True, tag="response.function_call_arguments.done"):
    name: str
    arguments: str


class StreamError(StreamEvent, kw_only=True, tag="error"):
    """As documented, flat, and as sent and looked for by OpenAI's packages, nested."""

    code: str
    message: str
    param: str | None
    error: ErrorBody


AnyStreamEvent = Annotated[
    Created
    | InProgress
    | ItemAdded
    | PartAdded
    | TextDelta
    | TextDone
    | ReasoningDelta
    | ReasoningDone
    | SummaryPartAdded
    | SummaryDelta
    | SummaryDone
    | SummaryPartDone
    | ArgumentsDelta
    | ArgumentsDone
    | PartDone
    | ItemDone
    | Completed
    | Incomplete
    | Failed
    | StreamError,
    Meta(description="An event of a stream; its name is its type."),
]
