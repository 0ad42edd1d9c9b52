"""POST /v1/completions, with the choices in the order of the prompts."""

import functools
from collections.abc import Sequence
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from llmserve import core
from llmserve.api.answer import Folded, FoldedAnswer, StreamedAnswer
from llmserve.api.body import decode_body, read_body
from llmserve.api.merge import merge
from llmserve.api.openai.bodies import Head, StreamEncoder, finish_reason, fold_body, make_head
from llmserve.api.openai.errors import UnsupportedFieldError, describe_error
from llmserve.api.openai.params import refuse, sampling, seeds, wants_usage
from llmserve.api.schemas.fields import stop_strings
from llmserve.api.schemas.openai_completions import (
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from llmserve.core import Delta, Finished, Part, SampledLogprob, TokenLogprob
from llmserve.errors import InvalidRequestError
from llmserve.gateway import Gateway

T = TypeVar("T")

MAX_PROMPTS = 64
MAX_GENERATIONS = 128  # prompts times n
DEFAULT_MAX_TOKENS = 16  # OpenAI's, for this endpoint only

Prompt = str | tuple[int, ...]


async def completions(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    server = gateway.config.server
    wire = decode_body(await read_body(request, server.max_body_bytes), CompletionRequest)
    include_usage = wants_usage(wire)
    prompts = to_prompts(wire)
    requests = to_core(wire, prompts)
    echoes = await _echoes(gateway, wire.model, prompts) if wire.echo else [""] * len(prompts)
    events = merge([gateway.generate(each) for each in requests])
    head = make_head(gateway, wire.model, prefix="cmpl", kind="text_completion")
    if not wire.stream:
        return FoldedAnswer(events, functools.partial(_render, head, wire, echoes))
    encoder = CompletionEncoder(head, echoes, num_choices=wire.n or 1, include_usage=include_usage)
    return StreamedAnswer(
        events,
        encoder.encode,
        keep_alive_s=server.keep_alive_s,
        describe_error=describe_error,
    )


def to_prompts(wire: CompletionRequest) -> list[Prompt]:
    """One to `MAX_PROMPTS` prompts. Raises `InvalidRequestError`."""
    if isinstance(wire.prompt, str):
        return [wire.prompt]
    if isinstance(wire.prompt[0], int):
        return [tuple(_all_of(int, wire.prompt))]
    if len(wire.prompt) > MAX_PROMPTS:
        raise InvalidRequestError(
            f"prompt has {len(wire.prompt)} prompts; give at most {MAX_PROMPTS}", param="prompt"
        )
    if isinstance(wire.prompt[0], str):
        return list(_all_of(str, wire.prompt))
    return [tuple(tokens) for tokens in _all_of(list, wire.prompt)]


def _all_of(kind: type[T], items: Sequence[object]) -> list[T]:
    found = [item for item in items if isinstance(item, kind)]
    if len(found) < len(items):
        raise InvalidRequestError(
            "prompt is mixed; give strings, token ids, or lists of token ids", param="prompt"
        )
    return found


def to_core(wire: CompletionRequest, prompts: Sequence[Prompt]) -> list[core.Request]:
    """A request for each choice of each prompt. Raises `InvalidRequestError`s."""
    num_choices = wire.n or 1
    _check(wire, len(prompts) * num_choices)
    base = core.Request(
        model=wire.model,
        mode=core.Mode.COMPLETION,
        sampling=sampling(wire),
        max_tokens=DEFAULT_MAX_TOKENS if wire.max_tokens is None else wire.max_tokens,
        stop=stop_strings(wire.stop),
        num_logprobs=wire.logprobs,
    )
    return [
        msgspec.structs.replace(base, seed=seed, **_as_field(prompt))
        for prompt in prompts
        for seed in seeds(wire, num_choices)
    ]


def _as_field(prompt: Prompt) -> dict[str, Prompt]:
    return {"prompt" if isinstance(prompt, str) else "prompt_tokens": prompt}


def _check(wire: CompletionRequest, num_generations: int) -> None:
    refuse(wire, {"suffix": ("",)})
    num_choices = wire.n or 1
    if wire.best_of is not None and wire.best_of != num_choices:
        raise UnsupportedFieldError(
            f"best_of is {wire.best_of}, n is {num_choices}; choosing among more than n is not"
            " supported: leave best_of out",
            param="best_of",
        )
    if wire.echo and wire.logprobs is not None:
        raise UnsupportedFieldError("echo together with logprobs is not supported", param="echo")
    if num_generations > MAX_GENERATIONS:
        raise InvalidRequestError(
            f"{num_generations} choices are asked for, n for each prompt; {MAX_GENERATIONS} is"
            " the most",
            param="n",
        )


async def _echoes(gateway: Gateway, model: str | None, prompts: Sequence[Prompt]) -> list[str]:
    """What stands before the answers: the prompts' text."""
    if all(isinstance(prompt, str) for prompt in prompts):
        return [prompt for prompt in prompts if isinstance(prompt, str)]
    try:
        async with gateway.engine(model) as engine:
            return [
                prompt if isinstance(prompt, str) else await engine.detokenize(prompt)
                for prompt in prompts
            ]
    except InvalidRequestError as error:
        raise InvalidRequestError(error.message, param="prompt") from error


def _render(
    head: Head, wire: CompletionRequest, echoes: Sequence[str], folded: list[Folded]
) -> bytes:
    num_choices = wire.n or 1
    choices = [
        CompletionChoice(
            echoes[index // num_choices] + each.text,
            index,
            LogprobsEncoder().encode(each.logprobs) if wire.logprobs is not None else None,
            finish_reason(each.finished.reason),
        )
        for index, each in enumerate(folded)
    ]
    return fold_body(head, folded, choices, num_choices)


class CompletionEncoder(StreamEncoder):
    def __init__(
        self, head: Head, echoes: Sequence[str], *, num_choices: int, include_usage: bool
    ) -> None:
        super().__init__(
            head,
            num_prompts=len(echoes),
            num_choices=num_choices,
            include_usage=include_usage,
        )
        self._echoes = [echo for echo in echoes for _ in range(num_choices)]
        self._logprobs = [LogprobsEncoder() for _ in self._echoes]

    def start(self, index: int) -> CompletionChoice | None:
        echo = self._echoes[index]
        return CompletionChoice(echo, index) if echo else None

    def part(self, index: int, event: Part) -> CompletionChoice | None:
        if not isinstance(event, Delta):
            return None
        logprobs = self._logprobs[index].encode(event.logprobs) if event.logprobs else None
        return CompletionChoice(event.text, index, logprobs)

    def finish(self, index: int, event: Finished) -> CompletionChoice:
        return CompletionChoice("", index, finish_reason=finish_reason(event.reason))


class LogprobsEncoder:
    """The tokens of one generation -> the legacy lists; remembers how much text there was."""

    def __init__(self) -> None:
        self._num_characters = 0

    def encode(self, sampled: Sequence[SampledLogprob]) -> CompletionLogprobs:
        offsets = []
        for each in sampled:
            offsets.append(self._num_characters)
            # A character is one byte that begins it, and others.
            self._num_characters += sum(byte & 0xC0 != 0x80 for byte in each.chosen.data)
        return CompletionLogprobs(
            tokens=[_text(each.chosen) for each in sampled],
            token_logprobs=[each.chosen.logprob for each in sampled],
            top_logprobs=[_top(each) for each in sampled],
            text_offset=offsets,
        )


def _top(sampled: SampledLogprob) -> dict[str, float]:
    """The most likely tokens, and the chosen one, which need not be among them."""
    top: dict[str, float] = {}
    for token in (*sampled.top, sampled.chosen):
        top.setdefault(_text(token), token.logprob)
    return top


def _text(token: TokenLogprob) -> str:
    """A part of a character as OpenAI writes it, because there are no bytes beside it."""
    try:
        return token.data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.data)
