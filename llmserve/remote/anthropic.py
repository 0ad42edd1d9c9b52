"""Anthropic's Messages API, always streamed. https://docs.anthropic.com/en/api/messages"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Raw, Struct

from llmserve.core import (
    Delta,
    FinishReason,
    Message,
    Mode,
    Part,
    ReasoningDelta,
    Request,
    ToolCall,
    ToolUse,
    Usage,
)
from llmserve.errors import InvalidRequestError
from llmserve.remote.errors import UNREADABLE, BrokenAnswerError, ErrorInStreamError
from llmserve.remote.protocol import (
    DEFAULT_MAX_TOKENS,
    Call,
    CallPieces,
    Ending,
    check_honoured,
    encode_body,
    not_honoured,
)
from llmserve.remote.sse import SseEvent

VERSION = "2023-06-01"
MAX_TEMPERATURE = 1.0

_HONOURED = {
    "prompt", "system", "messages", "max_tokens", "stop", "tool_use", "temperature", "top_p",
    "top_k",
}  # fmt: skip
_WHOSE = "a provider of the Anthropic protocol"
_CALL_ID = re.compile(r"[A-Za-z0-9_-]+")

_REASONS = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
}
_CHOICES = {"none": "none", "auto": "auto", "required": "any"}


class AnthropicProtocol:
    def __init__(self, remote_model: str) -> None:
        self._model = remote_model

    def headers(self, key: str | None) -> dict[str, str]:
        version = {"anthropic-version": VERSION}
        return version | {"x-api-key": key} if key else version

    def encode(self, request: Request, mode: Mode) -> Call:
        if mode is Mode.COMPLETION:
            raise not_honoured("mode", f"{_WHOSE}, which has chats only", "use mode instruct")
        check_honoured(request, _HONOURED, _WHOSE, "leave it out")
        system, messages = _messages(request)
        sampling = request.sampling
        if sampling.temperature > MAX_TEMPERATURE:
            raise not_honoured(
                "parameters.temperature", _WHOSE, f"give at most {MAX_TEMPERATURE:g}"
            )
        body: dict[str, object] = {
            "model": self._model,
            "stream": True,
            "system": system or None,
            "messages": messages,
            "max_tokens": DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens,
            "stop_sequences": list(request.stop) or None,
            # Newer models refuse both together, and one that is 1 says nothing.
            "temperature": None if sampling.temperature == 1 else sampling.temperature,
            "top_p": None if sampling.top_p == 1 else sampling.top_p,
            "top_k": sampling.top_k or None,
            **(_tools(request.tool_use) if request.tool_use else {}),
        }
        return Call("/messages", encode_body({k: v for k, v in body.items() if v is not None}))

    def decoder(self, request: Request, mode: Mode) -> "AnthropicDecoder":
        return AnthropicDecoder()


def _messages(request: Request) -> tuple[str, list[dict[str, object]]]:
    """The system text, and the conversation without it. Raises `InvalidRequestError`."""
    if request.messages is None:
        return request.system or "", [{"role": "user", "content": request.prompt}]
    systems: list[str] = []
    wire: list[dict[str, Any]] = []
    for index, message in enumerate(request.messages):
        path = f"messages[{index}]"
        if message.name is not None and message.role != "tool":
            raise not_honoured(f"{path}.name", _WHOSE, "leave it out")
        if message.role == "system" and not wire:
            systems.append(message.content)
            continue
        role, blocks = _blocks(message, path)
        if wire and wire[-1]["role"] == role and message.role == "tool":
            wire[-1]["content"] += blocks  # the results of one turn belong together
        else:
            wire.append({"role": role, "content": blocks})
    return "\n\n".join(systems), wire


def _blocks(message: Message, path: str) -> tuple[str, list[dict[str, object]]]:
    """Role and content blocks. What an assistant thought is not sent: it would need a signature."""
    text: list[dict[str, object]] = []
    if message.content:
        text = [{"type": "text", "text": message.content}]
    match message.role:
        case "user":
            return "user", text
        case "assistant":
            return "assistant", [*text, *(_call(call, path) for call in message.tool_calls)]
        case "tool":
            result = {"type": "tool_result", "tool_use_id": message.tool_call_id}
            return "user", [{**result, "content": message.content}]
        case role:
            fix = "put it first" if role == "system" else "use system, user, assistant or tool"
            raise not_honoured(f"{path}.role", _WHOSE, fix)


def _call(call: ToolCall, path: str) -> dict[str, object]:
    if not _CALL_ID.fullmatch(call.id):
        raise not_honoured(f"{path}.tool_calls", _WHOSE, "give ids of letters, digits, _ and -")
    try:
        arguments = msgspec.json.decode(call.arguments, type=dict[str, Raw])
    except UNREADABLE as error:
        raise InvalidRequestError(
            f"{path}.tool_calls: the arguments of {call.name!r} are not a JSON object",
            param=f"{path}.tool_calls",
        ) from error
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}


def _tools(use: ToolUse) -> dict[str, object]:
    tools: list[dict[str, object]] = []
    for tool in use.tools:
        wire: dict[str, object] = {"name": tool.name}
        if tool.description is not None:
            wire["description"] = tool.description
        wire["input_schema"] = Raw(tool.parameters or '{"type":"object"}')
        tools.append(wire)
    choice: dict[str, object] = {"type": _CHOICES[use.choice]}
    if use.name is not None:
        choice = {"type": "tool", "name": use.name}
    if not use.parallel and use.choice != "none":
        choice["disable_parallel_tool_use"] = True
    return {"tools": tools, "tool_choice": choice}


# -- answers -------------------------------------------------------------------------------------


class _Usage(Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _MessageStart(Struct):
    usage: _Usage | None = None


class _Block(Struct):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None


class _Delta(Struct):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None


class _Event(Struct):
    type: str = ""
    index: int = 0
    message: _MessageStart | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: _Usage | None = None


_decode_event = msgspec.json.Decoder(_Event).decode


class AnthropicDecoder:
    """Implements `protocol.Decoder`. Unknown events and blocks pass: more are to come."""

    def __init__(self) -> None:
        self.is_done = False
        self._reason: FinishReason | None = None
        self._stop_sequence: str | None = None
        self._usage = _Usage()
        self._calls = CallPieces()

    def push(self, event: SseEvent) -> Iterator[Part]:
        if self.is_done or not event.data:
            return
        try:
            wire = _decode_event(event.data)
        except UNREADABLE as error:
            raise BrokenAnswerError(f"sent an event that cannot be read: {error}") from error
        if "error" in (wire.type, event.name):
            raise ErrorInStreamError(event.data)
        if self._reason is not None and wire.type.startswith("content_block_"):
            raise BrokenAnswerError("sent more after the end of its answer")
        match wire.type:
            case "message_start" if wire.message:
                self._count(wire.message.usage)
            case "content_block_start" if wire.content_block:
                yield from self._start(wire.index, wire.content_block)
            case "content_block_delta" if wire.delta:
                yield from self._continue(wire.index, wire.delta)
            case "message_delta":
                self._count(wire.usage)
                if wire.delta and wire.delta.stop_reason and self._reason is None:
                    yield from self._finish(wire.delta.stop_reason, wire.delta.stop_sequence)
            case "message_stop":
                self.is_done = True

    def _start(self, index: int, block: _Block) -> Iterator[Part]:
        if block.type == "tool_use":
            yield self._calls.add(index, block.id, block.name, None)
        elif block.text:
            yield Delta(block.text)
        elif block.thinking:
            yield ReasoningDelta(block.thinking)

    def _continue(self, index: int, delta: _Delta) -> Iterator[Part]:
        if delta.text:
            yield Delta(delta.text)
        elif delta.thinking:
            yield ReasoningDelta(delta.thinking)
        elif delta.partial_json:
            yield self._calls.add(index, None, None, delta.partial_json)

    def _finish(self, word: str, stop_sequence: str | None) -> Iterator[Part]:
        reason = _REASONS.get(word)
        if reason is None:
            raise BrokenAnswerError(f"ended its answer for the reason {word[:80]!r}")
        self._reason, self._stop_sequence = reason, stop_sequence
        if reason is FinishReason.TOOL_CALLS:
            yield from self._calls.complete()

    def _count(self, usage: _Usage | None) -> None:
        """Every report is the total so far; what one leaves out has not changed."""
        for name in _Usage.__struct_fields__:
            if usage and (value := getattr(usage, name)) is not None:
                setattr(self._usage, name, value)

    def end(self) -> Ending:
        if self._reason is None:
            raise BrokenAnswerError("cut its answer off")
        usage = self._usage
        cached = usage.cache_read_input_tokens or 0
        prompt = (usage.input_tokens or 0) + cached + (usage.cache_creation_input_tokens or 0)
        return Ending(
            self._reason, self._stop_sequence, Usage(prompt, cached, usage.output_tokens or 0)
        )
