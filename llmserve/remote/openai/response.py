"""Chunks of the OpenAI protocol -> parts of an answer; of chats and of completions."""

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from llmserve.core import Delta, FinishReason, Part, ReasoningDelta, SampledLogprob, Usage
from llmserve.errors import InvalidRequestError
from llmserve.remote.errors import UNREADABLE, BrokenAnswerError, ErrorInStreamError
from llmserve.remote.openai.logprobs import Logprobs, read_logprobs
from llmserve.remote.protocol import CallPieces, Ending
from llmserve.remote.sse import SseEvent

_REASONS = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "eos_token": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
}


class _Function(Struct):
    name: str | None = None
    arguments: str | None = None


class _CallPiece(Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # the same thing, elsewhere
    tool_calls: list[_CallPiece] | None = None


class _Choice(Struct):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None  # of completions
    finish_reason: str | None = None
    stop_reason: str | int | None = None  # vLLM's: the stop string
    logprobs: Logprobs | None = None


class _CachedTokens(Struct):
    cached_tokens: int | None = None


class _ThoughtTokens(Struct):
    reasoning_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _CachedTokens | None = None
    completion_tokens_details: _ThoughtTokens | None = None


class _Chunk(Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class OpenAIDecoder:
    """Implements `protocol.Decoder`."""

    def __init__(self, *, with_logprobs: bool, must_call: bool = False) -> None:
        self.is_done = False
        self._must_call = must_call
        self._with_logprobs = with_logprobs
        self._reason: FinishReason | None = None
        self._stop_sequence: str | None = None
        self._usage = _Usage()
        self._calls = CallPieces()

    def push(self, event: SseEvent) -> Iterator[Part]:
        if self.is_done or not event.data:
            return
        if event.data.startswith(b"[DONE]"):
            self.is_done = True
            return
        try:
            chunk = _decode_chunk(event.data)
        except UNREADABLE as error:
            raise BrokenAnswerError(f"sent an event that cannot be read: {error}") from error
        if chunk.error is not None or event.name == "error":
            raise ErrorInStreamError(event.data)
        if chunk.usage is not None:
            self._usage = chunk.usage
        for choice in chunk.choices or ():
            yield from self._choice(choice)

    def _choice(self, choice: _Choice) -> Iterator[Part]:
        if choice.index != 0:
            raise BrokenAnswerError(f"sent choice {choice.index} where one was asked for")
        is_over = self._reason is not None
        for part in self._parts(choice):
            if is_over:
                raise BrokenAnswerError("sent more after the end of its answer")
            yield part
        if choice.finish_reason and not is_over:
            yield from self._finish(choice.finish_reason)
            if isinstance(choice.stop_reason, str):
                self._stop_sequence = choice.stop_reason

    def _parts(self, choice: _Choice) -> Iterator[Part]:
        delta = choice.delta
        if delta and (reasoning := delta.reasoning_content or delta.reasoning):
            yield ReasoningDelta(reasoning)
        text = choice.text
        if delta:
            text = delta.content or delta.refusal
        logprobs = self._logprobs(choice, text)
        if text or logprobs:
            yield Delta(text or "", logprobs)
        if delta and delta.tool_calls:
            for piece in delta.tool_calls:
                function = piece.function or _Function()
                yield self._calls.add(piece.index, piece.id, function.name, function.arguments)

    def _logprobs(self, choice: _Choice, text: str | None) -> tuple[SampledLogprob, ...]:
        if not self._with_logprobs:
            return ()
        logprobs = read_logprobs(choice.logprobs) if choice.logprobs else ()
        if text and not logprobs:
            raise InvalidRequestError(
                "logprobs were asked for, and the provider sends none; leave them out",
                param="logprobs",
            )
        return logprobs

    def _finish(self, word: str) -> Iterator[Part]:
        reason = _REASONS.get(word)
        if reason is None:
            raise BrokenAnswerError(f"ended its answer for the reason {word[:80]!r}")
        if self._calls.num_calls and reason is FinishReason.STOP:  # some call it so
            reason = FinishReason.TOOL_CALLS
        if self._must_call and not self._calls.num_calls and reason is not FinishReason.LENGTH:
            raise BrokenAnswerError("was told to call a tool, and did not")
        self._reason = reason
        if reason is FinishReason.TOOL_CALLS:
            yield from self._calls.complete()

    def end(self) -> Ending:
        if self._reason is None:
            raise BrokenAnswerError("cut its answer off")
        usage = self._usage
        prompt = usage.prompt_tokens_details or _CachedTokens()
        generated = usage.completion_tokens_details or _ThoughtTokens()
        return Ending(
            self._reason,
            self._stop_sequence,
            Usage(
                prompt_tokens=usage.prompt_tokens or 0,
                cached_tokens=prompt.cached_tokens or 0,
                generated_tokens=usage.completion_tokens or 0,
                reasoning_tokens=generated.reasoning_tokens or 0,
            ),
        )
