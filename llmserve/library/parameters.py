"""The keyword arguments of a call -> core.Request: the fields of POST /inference, and tools.

The types serve both the type checker of a caller and the checks here. Pure.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict

import msgspec
from msgspec import Meta, Struct

from llmserve import core
from llmserve.core import Constraint, EmbeddingRequest, Mode, Request, ToolUse
from llmserve.errors import InvalidRequestError
from llmserve.library.messages import to_messages, to_tools
from llmserve.wire.fields import (
    LogitBias,
    MaxTokens,
    MinP,
    Penalty,
    ReasoningEffort,
    Seed,
    StopString,
    StopStrings,
    Temperature,
    Timeout,
    TopK,
    TopP,
    stop_strings,
)
from llmserve.wire.native import ResponseFormat, to_constraint, to_sampling
from llmserve.wire.validation import convert, unknown_field


class Parameters(TypedDict, total=False):
    """Of every generation. None is as good as not given."""

    temperature: Temperature | None
    max_tokens: MaxTokens | None
    top_p: TopP | None
    top_k: TopK | None
    min_p: MinP | None
    frequency_penalty: Penalty | None
    presence_penalty: Penalty | None
    logit_bias: LogitBias | None
    ignore_eos: bool | None
    stop: StopString | StopStrings | None
    seed: Seed | None
    response_format: dict[str, Any] | None
    priority: core.Priority | None
    deterministic: bool | None
    timeout: Timeout | None  # seconds


class PromptParameters(Parameters, total=False):
    mode: Literal["completion", "instruct"] | None
    system: str | None  # with instruct


class ChatParameters(Parameters, total=False):
    tools: list[dict[str, Any]] | None  # as chat completions take them
    tool_choice: str | None  # none, auto, required, or the name of the tool that must be called
    parallel_tool_calls: bool | None
    reasoning_effort: ReasoningEffort | None
    template_variables: dict[str, Any] | None


class StreamParameters(PromptParameters, ChatParameters, total=False):
    """Those of a prompt or those of a conversation, whichever is given."""


class EmbeddingParameters(TypedDict, total=False):
    dimensions: Annotated[int, Meta(ge=1)] | None  # cut the vectors to so many
    timeout: Timeout | None


class _Format(Struct):
    response_format: ResponseFormat


def prompt_request(model: str, prompt: str, given: Mapping[str, Any]) -> Request:
    """Raises `InvalidRequestError`s that name field, value and range."""
    fields = _checked(given, PromptParameters)
    mode = fields.get("mode")
    return msgspec.structs.replace(
        _request(model, fields),
        prompt=_text(prompt, "prompt"),
        mode=Mode(mode) if mode else None,
        system=fields.get("system"),
    )


def chat_request(model: str, messages: Sequence[Any], given: Mapping[str, Any]) -> Request:
    """Raises `InvalidRequestError`s that name field, value and range."""
    fields = _checked(given, ChatParameters)
    return msgspec.structs.replace(
        _request(model, fields),
        messages=to_messages(messages),
        mode=Mode.CHAT,
        tool_use=_tool_use(fields),
        reasoning_effort=fields.get("reasoning_effort"),
        template_variables=fields.get("template_variables") or {},
    )


def prompt_requests(model: str, prompts: Sequence[str], given: Mapping[str, Any]) -> list[Request]:
    """The same request for each prompt."""
    request = prompt_request(model, "", given)
    return [
        msgspec.structs.replace(request, prompt=_text(prompt, f"prompt[{index}]"))
        for index, prompt in enumerate(prompts)
    ]


def stream_request(model: str, prompt: str | Sequence[Any], given: Mapping[str, Any]) -> Request:
    """That of a prompt or of messages."""
    if isinstance(prompt, str):
        return prompt_request(model, prompt, given)
    return chat_request(model, prompt, given)


def embedding_request(
    model: str, texts: str | Sequence[str], given: Mapping[str, Any]
) -> EmbeddingRequest:
    """Raises `InvalidRequestError`s that name field, value and range."""
    fields = _checked(given, EmbeddingParameters)
    inputs = [texts] if isinstance(texts, str) else texts
    if not inputs:
        raise InvalidRequestError("texts is empty; give at least one", param="texts")
    return EmbeddingRequest(
        tuple(_text(text, f"texts[{index}]") for index, text in enumerate(inputs)),
        model=model,
        dimensions=fields.get("dimensions"),
        timeout_s=fields.get("timeout"),
    )


def _request(model: str, fields: Mapping[str, Any]) -> Request:
    """What does not depend on the input."""
    return Request(
        model=model,
        sampling=to_sampling(fields),
        max_tokens=fields.get("max_tokens"),
        stop=stop_strings(fields.get("stop")),
        seed=fields.get("seed"),
        constraint=_constraint(fields.get("response_format")),
        priority=fields.get("priority", "interactive"),
        deterministic=fields.get("deterministic", False),
        timeout_s=fields.get("timeout"),
    )


def _checked(given: Mapping[str, Any], kind: type[Any]) -> dict[str, Any]:
    """What is given of `kind`, a TypedDict."""
    for name, value in given.items():
        if name not in kind.__annotations__:
            raise unknown_field(name, list(kind.__annotations__))
        if isinstance(value, float) and not math.isfinite(value):  # JSON would have null
            raise InvalidRequestError(f"{name} is {value}; it must be a number", param=name)
    fields = {name: value for name, value in given.items() if value is not None}
    return dict(convert(fields, kind))


def _text(given: object, field: str) -> str:
    if not isinstance(given, str):
        raise InvalidRequestError(f"{field} is {given!r:.80}; it must be a string", param=field)
    return given


def _constraint(given: dict[str, Any] | None) -> Constraint | None:
    if given is None:
        return None
    return to_constraint(convert({"response_format": given}, _Format).response_format)


def _tool_use(fields: Mapping[str, Any]) -> ToolUse | None:
    tools = to_tools(fields.get("tools", []))
    choice = fields.get("tool_choice", "auto")
    if not tools:
        if choice not in ("none", "auto"):
            raise InvalidRequestError(
                f"tool_choice is {choice!r}, but no tools are given", param="tool_choice"
            )
        return None
    use = ToolUse(tools, parallel=fields.get("parallel_tool_calls", True))
    if choice in ("none", "auto", "required"):
        return msgspec.structs.replace(use, choice=choice)
    names = [tool.name for tool in tools]
    if choice not in names:
        raise InvalidRequestError(
            f"tool_choice is {choice!r}; it must be none, auto, required, or one of the tools:"
            f" {', '.join(names)}",
            param="tool_choice",
        )
    return msgspec.structs.replace(use, choice="required", name=choice)
