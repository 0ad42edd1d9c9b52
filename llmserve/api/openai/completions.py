"""POST /v1/completions, with the choices in the order of the prompts."""

import functools
from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from llmserve import core
from llmserve.api.caller import Caller, caller_of
from llmserve.api.collect import FoldedAnswer
from llmserve.api.endpoint import GENERATION, endpoint
from llmserve.api.http.decode import decode_body
from llmserve.api.http.errors import ErrorEnvelope
from llmserve.api.http.upload import read_body
from llmserve.api.openai.errors import describe_error
from llmserve.api.openai.logprobs import LogprobsEncoder, join
from llmserve.api.openai.params import (
    TextOrTokens,
    sampling,
    seeds,
    texts_or_tokens,
    wants_usage,
)
from llmserve.api.openai.response_format import structured_constraint
from llmserve.api.openai.schemas import (
    Body,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from llmserve.api.openai.stream import Head, StreamEncoder, finish_reason, fold_body, make_head
from llmserve.api.streaming import StreamedAnswer, merge
from llmserve.core import Delta, Finished, Part, PromptLogprobs
from llmserve.errors import InvalidRequestError
from llmserve.gateway import Gateway
from llmserve.wire.fields import stop_strings
from llmserve.wire.folding import Folded

MAX_PROMPTS = 64
MAX_GENERATIONS = 128  # prompts times n, or best_of
DEFAULT_MAX_TOKENS = 16  # OpenAI's, for this endpoint only


@endpoint(
    "POST",
    "/v1/completions",
    summary="Continue texts",
    tag="OpenAI",
    body=CompletionRequest,
    example={"prompt": "The capital of France is", "max_tokens": 8},
    answer=Body[CompletionChoice],
    events=(Body[CompletionChoice], ErrorEnvelope, "[DONE]"),
    errors=GENERATION,
)
async def completions(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    server = gateway.config.server
    wire = decode_body(await read_body(request), CompletionRequest)
    include_usage = wants_usage(wire)
    prompts = to_prompts(wire)
    requests = to_core(wire, prompts)
    caller = caller_of(request)
    echoes = await _echoes(caller, wire.model, prompts) if wire.echo else [""] * len(prompts)
    events = merge(caller.generate_all(requests))
    head = make_head(gateway, wire.model, prefix="cmpl", kind="text_completion")
    if not wire.stream:
        return FoldedAnswer(events, functools.partial(_render, head, wire, echoes))
    encoder = CompletionEncoder(head, wire, echoes, include_usage=include_usage)
    return StreamedAnswer(
        events,
        encoder.encode,
        keep_alive_s=server.keep_alive_s,
        describe_error=describe_error,
    )


# -- the request ------------------------------------------------------------------------------


def to_prompts(wire: CompletionRequest) -> list[TextOrTokens]:
    """One to `MAX_PROMPTS` prompts. Raises `InvalidRequestError`."""
    return texts_or_tokens(wire.prompt, "prompt", most=MAX_PROMPTS)


def to_core(wire: CompletionRequest, prompts: Sequence[TextOrTokens]) -> list[core.Request]:
    """A request for each candidate of each prompt. Raises `InvalidRequestError`s."""
    _check(wire, len(prompts))
    is_choosy = _num_candidates(wire) > _num_choices(wire)
    base = core.Request(
        model=wire.model,
        mode=core.Mode.COMPLETION,
        suffix=wire.suffix or None,
        sampling=sampling(wire),
        max_tokens=DEFAULT_MAX_TOKENS if wire.max_tokens is None else wire.max_tokens,
        stop=stop_strings(wire.stop),
        num_logprobs=0 if wire.logprobs is None and is_choosy else wire.logprobs,
        prompt_logprobs=bool(wire.echo) and wire.logprobs is not None,
        constraint=structured_constraint(wire),
        priority=wire.priority or "interactive",
        deterministic=bool(wire.deterministic),
        timeout_s=wire.timeout,
        cache_prompt=wire.cache_prompt is not False,
    )
    return [
        msgspec.structs.replace(base, seed=seed, **_as_field(prompt))
        for prompt in prompts
        for seed in seeds(wire, _num_candidates(wire))
    ]


def _as_field(prompt: TextOrTokens) -> dict[str, TextOrTokens]:
    return {"prompt" if isinstance(prompt, str) else "prompt_tokens": prompt}


def _num_choices(wire: CompletionRequest) -> int:
    """Answers to each prompt."""
    return wire.n or 1


def _num_candidates(wire: CompletionRequest) -> int:
    """Generations for each prompt, of which the best are the choices."""
    return wire.best_of or _num_choices(wire)


def _check(wire: CompletionRequest, num_prompts: int) -> None:
    """Raises `InvalidRequestError` for fields that do not go together."""
    num_choices, num_candidates = _num_choices(wire), _num_candidates(wire)
    if num_candidates < num_choices:
        raise InvalidRequestError(
            f"best_of is {num_candidates}, n is {num_choices}; best_of must be at least n",
            param="best_of",
        )
    if num_candidates > num_choices and wire.stream:
        raise InvalidRequestError(
            "best_of above n does not go with stream: which are the best shows at the end",
            param="best_of",
        )
    if num_prompts * num_candidates > MAX_GENERATIONS:
        field = "best_of" if wire.best_of else "n"
        raise InvalidRequestError(
            f"{num_prompts * num_candidates} generations are asked for, {field} for each prompt;"
            f" {MAX_GENERATIONS} is the most",
            param=field,
        )
    if wire.max_tokens == 0 and not wire.echo:
        raise InvalidRequestError(
            "max_tokens is 0, which goes with echo only; give at least 1", param="max_tokens"
        )
    if wire.suffix and wire.echo and wire.logprobs is not None:
        raise InvalidRequestError(
            "suffix does not go with echo and logprobs together: the model reads the text in"
            " another order",
            param="suffix",
        )


async def _echoes(caller: Caller, model: str | None, prompts: Sequence[TextOrTokens]) -> list[str]:
    """What stands before the answers: the prompts' text."""
    if all(isinstance(prompt, str) for prompt in prompts):
        return [prompt for prompt in prompts if isinstance(prompt, str)]
    try:
        async with caller.engine(model) as engine:
            return [
                prompt if isinstance(prompt, str) else await engine.detokenize(prompt)
                for prompt in prompts
            ]
    except InvalidRequestError as error:
        raise InvalidRequestError(error.message, param="prompt") from error


# -- the answer -------------------------------------------------------------------------------


def _render(
    head: Head, wire: CompletionRequest, echoes: Sequence[str], folded: list[Folded]
) -> bytes:
    num_choices, num_candidates = _num_choices(wire), _num_candidates(wire)
    choices: list[CompletionChoice] = []
    for index, echo in enumerate(echoes):
        candidates = folded[index * num_candidates : (index + 1) * num_candidates]
        if num_choices < num_candidates:
            candidates.sort(key=_mean_logprob, reverse=True)
        choices += [
            CompletionChoice(
                echo + each.text,
                len(choices) + rank,
                _logprobs(each, echo) if wire.logprobs is not None else None,
                finish_reason(each.finished.reason),
            )
            for rank, each in enumerate(candidates[:num_choices])
        ]
    return fold_body(head, folded, choices, num_candidates)


def _mean_logprob(folded: Folded) -> float:
    """What OpenAI ranks by: "the highest log probability per token". No token is the worst."""
    if not folded.logprobs:
        return float("-inf")
    return sum(each.chosen.logprob for each in folded.logprobs) / len(folded.logprobs)


def _logprobs(folded: Folded, echo: str) -> CompletionLogprobs:
    encoder = LogprobsEncoder()
    if folded.prompt_logprobs is None:
        return encoder.encode(folded.logprobs)
    prompt = encoder.encode_prompt(folded.prompt_logprobs, echo)
    return join(prompt, encoder.encode(folded.logprobs))


class CompletionEncoder(StreamEncoder):
    def __init__(
        self, head: Head, wire: CompletionRequest, echoes: Sequence[str], *, include_usage: bool
    ) -> None:
        num_choices = _num_choices(wire)
        super().__init__(
            head,
            num_prompts=len(echoes),
            num_choices=num_choices,
            include_usage=include_usage,
        )
        self._scores_prompt = wire.logprobs is not None
        self._echoes = [echo for echo in echoes for _ in range(num_choices)]
        self._logprobs = [LogprobsEncoder() for _ in self._echoes]

    def start(self, index: int) -> CompletionChoice | None:
        echo = self._echoes[index]
        # With its log probabilities, which come with an event of their own.
        return CompletionChoice(echo, index) if echo and not self._scores_prompt else None

    def part(self, index: int, event: Part) -> CompletionChoice | None:
        encoder = self._logprobs[index]
        match event:
            case PromptLogprobs():
                echo = self._echoes[index]
                return CompletionChoice(echo, index, encoder.encode_prompt(event, echo))
            case Delta(text, sampled):
                return CompletionChoice(text, index, encoder.encode(sampled) if sampled else None)
            case _:
                return None

    def finish(self, index: int, event: Finished) -> CompletionChoice:
        return CompletionChoice("", index, finish_reason=finish_reason(event.reason))
