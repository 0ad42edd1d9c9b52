"""Request -> tokens, in threads: a long prompt holds up neither loop nor worker."""

import asyncio
import secrets
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from llmserve.core import Mode, Request
from llmserve.engine.input import prompt
from llmserve.engine.input.answer_plan import Answering, AnswerPlan
from llmserve.engine.input.pins import Pin, make_pins
from llmserve.engine.messages import Submit
from llmserve.engine.runtime import Runtime
from llmserve.engine.sampling.logprobs import MAX_LOGPROBS
from llmserve.engine.structured.validate import check_request
from llmserve.errors import InvalidRequestError

T = TypeVar("T")

# One long prompt does not hold up everybody else's. No more, because they take their time from
# decoding. llama.cpp's vocabulary is const, and its tokenizers keep their state in a session of
# their own (llama-vocab.cpp), so they may run side by side.
NUM_THREADS = 2


class InputProcessor:
    """Renders and tokenizes with the template and the vocabulary of one model."""

    def __init__(
        self,
        model: str,
        runtime: Runtime,
        default_mode: Mode | None,
        check_alive: Callable[[], None],
    ) -> None:
        """`check_alive` raises once the model is about to be freed; called in any thread."""
        self._model = model
        self._runtime = runtime
        self._default_mode = default_mode
        self._check_alive = check_alive
        self._style = prompt.load_style(runtime.info)
        self._answering = Answering(self._style, runtime) if self._style else None
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix=f"input-{model}")
        # Of bare texts, which can be much longer than any prompt: only they wait for each other.
        self._bare = ThreadPoolExecutor(1, thread_name_prefix=f"bare-{model}")

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work` in one of the threads, while the model is there."""
        return await self._run(work, self._threads)

    async def run_bare(self, work: Callable[[], T]) -> T:
        """As `run`, of a bare text: it holds up no request that generates."""
        return await self._run(work, self._bare)

    async def _run(self, work: Callable[[], T], threads: ThreadPoolExecutor) -> T:
        def run() -> T:
            self._check_alive()  # `close` waits for all that is queued here
            return work()

        self._check_alive()
        return await asyncio.get_running_loop().run_in_executor(threads, run)

    async def process(self, request: Request, request_id: int, accepted_s: float) -> Submit:
        """What the worker needs to know of `request`. Raises what `prompt.encode` raises."""
        return await self.run(lambda: self._process(request, request_id, accepted_s))

    async def render(self, request: Request) -> str:
        """What mode chat would give the model to continue. Raises `InvalidRequestError`."""
        return await self.run_bare(lambda: self._render(request))

    def start_pins(self, prompts: Iterable[str]) -> Future[list[Pin]]:
        """The system messages `prompts` as what is to be pinned."""
        return self._threads.submit(make_pins, self._model, prompts, self._runtime, self._style)

    def close(self) -> None:
        """Return when nothing here uses the model any longer."""
        self._threads.shutdown()
        self._bare.shutdown()

    def _render(self, request: Request) -> str:
        check_request(request)
        return prompt.render(request, self._style)

    def _process(self, request: Request, request_id: int, accepted_s: float) -> Submit:
        check_request(request)
        _check_parameters(request, self._runtime.info.vocab_size)
        tokens, conversation = prompt.encode(
            request, self._runtime, self._style, self._default_mode
        )
        plan = AnswerPlan(None, request.constraint)
        if conversation is not None:
            assert self._answering
            plan = self._answering.plan(request, conversation)
        room = self._runtime.limits.context_length - len(tokens)
        max_tokens = room if request.max_tokens is None else min(request.max_tokens, room)
        return Submit(
            id=request_id,
            request=request,
            tokens=tokens,
            max_len=len(tokens) + max_tokens,
            seed=_seed(request),
            accepted_s=accepted_s,
            constraint=plan.constraint,
            reading=plan.reading,
        )


def _seed(request: Request) -> int:
    if request.seed is not None:
        return request.seed
    return 0 if request.deterministic else secrets.randbits(53)


def _check_parameters(request: Request, vocab_size: int) -> None:
    """Raises `InvalidRequestError` that names the field."""
    for token in request.sampling.logit_bias:
        if not 0 <= token < vocab_size:
            raise InvalidRequestError(
                f"token {token} is not in the vocabulary of {vocab_size} tokens",
                param=f"parameters.logit_bias.{token}",
            )
    if request.num_logprobs is not None and not 0 <= request.num_logprobs <= MAX_LOGPROBS:
        raise InvalidRequestError(
            f"{request.num_logprobs} log probabilities were asked for; the range is 0 to"
            f" {MAX_LOGPROBS}",
            param="logprobs",
        )
    assert not request.prompt_logprobs or request.num_logprobs is not None, "the dialects' care"
