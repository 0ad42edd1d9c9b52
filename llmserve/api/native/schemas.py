"""The wire format of POST /inference. Ranges are in the types; nothing unknown is accepted."""

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from llmserve.core import FinishReason, Mode, Priority, Timings
from llmserve.wire.fields import (
    LogitBias,
    MaxTokens,
    MinP,
    Penalty,
    Seed,
    StopString,
    StopStrings,
    Temperature,
    Timeout,
    TopK,
    TopP,
)
from llmserve.wire.native import ResponseFormat


class Message(Struct, forbid_unknown_fields=True):
    role: Annotated[str, Meta(min_length=1, max_length=64)]
    content: str


class Parameters(Struct, forbid_unknown_fields=True):
    temperature: Temperature | None = None
    max_tokens: MaxTokens | None = None
    top_p: TopP | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    stop: StopString | StopStrings | None = None
    seed: Seed | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    logit_bias: LogitBias | None = None
    ignore_eos: bool | None = None


class InferenceRequest(Struct, forbid_unknown_fields=True):
    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1, max_length=4096)] | None = None
    mode: Mode | None = None
    system: str | None = None
    stream: bool | None = None
    details: bool | None = None
    parameters: Parameters | None = None
    response_format: ResponseFormat | None = None
    priority: Priority | None = None
    deterministic: bool | None = None
    timeout: Timeout | None = None  # of all of it, with waiting


class Details(Struct):
    model: str  # that answered
    finish_reason: FinishReason
    stop_sequence: str | None
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    seed: int | None  # null: a provider drew it
    timings: Timings
    reasoning: str | UnsetType = UNSET  # what a model that thinks has thought


class InferenceResponse(Struct, omit_defaults=True):
    generated_text: str
    details: Details | None = None


class StreamDelta(Struct):
    delta: str


class StreamReasoning(Struct):
    reasoning: str
