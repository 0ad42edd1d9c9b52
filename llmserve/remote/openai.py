"""The OpenAI protocol: chat completions and completions, always streamed."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Raw, Struct

from llmserve.core import (
    Constraint,
    Delta,
    FinishReason,
    Message,
    Mode,
    Part,
    ReasoningDelta,
    Request,
    SampledLogprob,
    ToolUse,
    Usage,
)
from llmserve.errors import InvalidRequestError
from llmserve.registry.provider import Provider
from llmserve.remote.calls import CallPieces
from llmserve.remote.failure import BrokenAnswerError, ErrorInStreamError
from llmserve.remote.logprobs import Logprobs, read_logprobs
from llmserve.remote.protocol import (
    DEFAULT_MAX_TOKENS,
    Call,
    Ending,
    check_honoured,
    encode_body,
    not_honoured,
)
from llmserve.remote.sse import SseEvent

_BOTH = {
    "max_tokens", "stop", "seed", "num_logprobs", "temperature", "top_p", "frequency_penalty",
    "presence_penalty", "logit_bias",
}  # fmt: skip
_CHAT = _BOTH | {"prompt", "system", "messages", "constraint", "tool_use", "reasoning_effort"}
_COMPLETION = _BOTH | {"prompt", "prompt_tokens", "suffix"}
_WHOSE = "a provider of the OpenAI protocol"
_FIX = "leave it out, or list it in extra_parameters of models.toml if this one takes it"
_ONES = ("temperature", "top_p")  # whose default is 1
_OWN = ("top_k", "min_p", "ignore_eos")  # of other servers than OpenAI's

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


class OpenAIProtocol:
    def __init__(self, provider: Provider, remote_model: str) -> None:
        self._model = remote_model
        self._extra = frozenset[str](provider.extra_parameters)
        hosts = [urlsplit(url).hostname or "" for url in provider.urls]
        # Its models that think refuse what others need: the old name, and even default values.
        self._is_openai = all(
            host == "api.openai.com" or host.endswith(".openai.azure.com") for host in hosts
        )

    def headers(self, key: str | None) -> dict[str, str]:
        return {"authorization": f"Bearer {key}"} if key else {}

    def encode(self, request: Request, mode: Mode) -> Call:
        is_chat = mode is not Mode.COMPLETION
        self._check(request, is_chat=is_chat)
        body: dict[str, object] = {
            "model": self._model,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._sampling(request),
        }
        if is_chat:
            body |= self._chat(request)
        else:
            prompt = request.prompt_tokens if request.prompt is None else request.prompt
            body |= {
                "prompt": prompt, "suffix": request.suffix, "logprobs": request.num_logprobs
            }  # fmt: skip
            body["max_tokens"] = (
                DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
            )
        if request.constraint:
            body["response_format"] = _response_format(request.constraint)
        path = "/chat/completions" if is_chat else "/completions"
        return Call(path, encode_body({k: v for k, v in body.items() if v is not None}))

    def decoder(self, request: Request, mode: Mode) -> "OpenAIDecoder":
        use = request.tool_use
        return OpenAIDecoder(
            with_logprobs=request.num_logprobs is not None,
            must_call=use is not None and use.choice == "required",
        )

    def _check(self, request: Request, *, is_chat: bool) -> None:
        """Raises `InvalidRequestError`."""
        honoured = (_CHAT if is_chat else _COMPLETION) | self._extra
        if request.sampling.top_k == 1:  # is temperature 0
            honoured |= {"top_k"}
        if "response_format" in self._extra:
            honoured |= {"constraint"}
        whose = _WHOSE if is_chat else f"{_WHOSE} in mode completion"
        check_honoured(request, honoured, whose, _FIX)
        kind = request.constraint.kind if request.constraint else None
        if kind in ("regex", "lark"):
            raise not_honoured("response_format", _WHOSE, "use json_object or json_schema")

    def _sampling(self, request: Request) -> dict[str, object]:
        sampling = request.sampling
        is_greedy = sampling.top_k == 1 and "top_k" not in self._extra
        fields: dict[str, object] = {
            "temperature": 0 if is_greedy else sampling.temperature,
            "top_p": sampling.top_p,
            "frequency_penalty": sampling.frequency_penalty or None,
            "presence_penalty": sampling.presence_penalty or None,
            "logit_bias": {str(k): v for k, v in sampling.logit_bias.items()} or None,
            "stop": list(request.stop) or None,
            "seed": _signed(request.seed),
        }
        if self._is_openai:
            fields = {k: v for k, v in fields.items() if not (k in _ONES and v == 1)}
        # Named in the config, these are always sent: such servers have defaults of their own.
        own = {name: getattr(sampling, name) for name in _OWN if name in self._extra}
        return fields | own

    def _chat(self, request: Request) -> dict[str, object]:
        takes_new = self._is_openai or "max_completion_tokens" in self._extra
        logprobs = request.num_logprobs
        return {
            "messages": self._messages(request),
            "max_completion_tokens" if takes_new else "max_tokens": request.max_tokens,
            "logprobs": None if logprobs is None else True,
            "top_logprobs": logprobs or None,
            "reasoning_effort": request.reasoning_effort,
            **(_tools(request.tool_use) if request.tool_use else {}),
        }

    def _messages(self, request: Request) -> list[dict[str, object]]:
        if request.messages is not None:
            return [self._message(message) for message in request.messages]
        given = (("system", request.system), ("user", request.prompt))
        return [{"role": role, "content": text} for role, text in given if text is not None]

    def _message(self, message: Message) -> dict[str, object]:
        wire: dict[str, object] = {"role": message.role, "content": message.content}
        if message.name is not None and message.role != "tool":  # a result has its call's id
            wire["name"] = message.name
        if message.tool_call_id is not None:
            wire["tool_call_id"] = message.tool_call_id
        if message.reasoning is not None and not self._is_openai:  # which has no field for it
            wire["reasoning_content"] = message.reasoning
        if message.tool_calls:
            wire["content"] = message.content or None
            wire["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in message.tool_calls
            ]
        return wire


def _signed(seed: int | None) -> int | None:
    """Of 64 bits, as the API has it."""
    return seed if seed is None or seed < 2**63 else seed - 2**64


def _tools(use: ToolUse) -> dict[str, object]:
    tools = []
    for tool in use.tools:
        function: dict[str, object] = {"name": tool.name}
        if tool.description is not None:
            function["description"] = tool.description
        if tool.parameters is not None:
            function["parameters"] = Raw(tool.parameters)
        tools.append({"type": "function", "function": function})
    choice: object = use.choice
    if use.name is not None:
        choice = {"type": "function", "function": {"name": use.name}}
    return {
        "tools": tools,
        "tool_choice": choice,
        "parallel_tool_calls": None if use.parallel else False,
    }


def _response_format(constraint: Constraint) -> dict[str, object]:
    if constraint.kind == "json":
        return {"type": "json_object"}
    schema = {"name": "answer", "schema": Raw(constraint.source), "strict": True}
    return {"type": "json_schema", "json_schema": schema}


# -- answers -------------------------------------------------------------------------------------


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
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
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
