"""One loaded model behind an async iterator. Hides where the worker lives.

Everything here runs on the event loop; rendering and tokenizing run in a thread of their own, so
that a long prompt holds up neither the loop nor the worker's steps.
"""

import asyncio
import contextlib
import itertools
import math
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from llmserve.core import Event, EventStream, Finished, Mode, Request, Started
from llmserve.engine import prompt
from llmserve.engine.messages import Failed, StepReport, StepStats, Submit
from llmserve.engine.runtime import ModelInfo, Runtime, RuntimeLimits
from llmserve.engine.worker import Worker
from llmserve.errors import EngineError, InvalidRequestError, QueueFullError

MAX_RETRY_AFTER_S = 120


class Engine:
    """Generates with one model, up to `limits.num_slots` requests at the same time.

    Create it on the event loop that will use it, and `close` it there.
    """

    def __init__(
        self,
        name: str,
        runtime: Runtime,
        *,
        max_queue: int,
        default_mode: Mode | None = None,
        on_step: Callable[[StepStats], None] = lambda stats: None,
        thread: ThreadPoolExecutor | None = None,
    ) -> None:
        """`thread` is a single thread, the one that loaded `runtime`; the engine owns it now."""
        self.name = name
        self._runtime = runtime
        self._max_queue = max_queue
        self._default_mode = default_mode
        self._on_step = on_step
        self._template = prompt.load_template(runtime.info)
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix=f"encoder-{name}")
        self._ids = itertools.count()
        self._requests: dict[int, asyncio.Queue[Event | Failed]] = {}
        self._num_active = 0
        self._mean_request_s = 1.0
        self._loop = asyncio.get_running_loop()
        self._thread = thread or ThreadPoolExecutor(1, thread_name_prefix=f"worker-{name}")
        self._worker = Worker(runtime, self._report)
        self._worker.start(self._thread)

    @property
    def info(self) -> ModelInfo:
        return self._runtime.info

    @property
    def limits(self) -> RuntimeLimits:
        return self._runtime.limits

    async def generate(self, request: Request) -> EventStream:
        """`Started`, any number of `Delta`, `Finished`. Leaving early cancels.

        Raises `InvalidRequestError`, `TooLargeError` or `QueueFullError` before the first event
        and `EngineError` at any time.
        """
        self._admit()
        self._num_active += 1
        try:
            submit = await self._loop.run_in_executor(self._encoder, self._prepare, request)
            yield Started(self.name, len(submit.tokens), submit.seed)
            async with contextlib.aclosing(self._events(submit)) as events:
                async for event in events:
                    yield event
        finally:
            self._num_active -= 1

    async def close(self) -> None:
        """End the worker and give the model's memory back; what still runs ends as cancelled."""
        await asyncio.to_thread(self._worker.stop)
        self._thread.shutdown(wait=False)
        self._encoder.shutdown(wait=False, cancel_futures=True)

    def _admit(self) -> None:
        num_slots = self.limits.num_slots
        num_queued = self._num_active - num_slots
        if num_queued < self._max_queue:
            return
        wait_s = self._mean_request_s * (num_queued + 1) / num_slots
        raise QueueFullError(
            f"model {self.name!r} answers {num_slots} requests at a time and {self._max_queue}"
            " more are waiting; try again later",
            retry_after_s=min(max(1, math.ceil(wait_s)), MAX_RETRY_AFTER_S),
        )

    def _prepare(self, request: Request) -> Submit:
        """Render and tokenize. Runs in the encoder's thread."""
        tokens = prompt.encode(request, self._runtime, self._template, self._default_mode)
        vocab_size = self.info.vocab_size
        for token in request.sampling.logit_bias:
            if token >= vocab_size:
                raise InvalidRequestError(
                    f"token {token} is not in the vocabulary of {vocab_size} tokens",
                    param=f"parameters.logit_bias.{token}",
                )
        room = self.limits.context_length - len(tokens)
        max_tokens = room if request.max_tokens is None else min(request.max_tokens, room)
        return Submit(
            id=next(self._ids),
            tokens=tokens,
            max_len=len(tokens) + max_tokens,
            sampling=request.sampling,
            stop=request.stop,
            seed=secrets.randbits(53) if request.seed is None else request.seed,
        )

    async def _events(self, submit: Submit) -> EventStream:
        events: asyncio.Queue[Event | Failed] = asyncio.Queue()
        self._requests[submit.id] = events
        begin_s = self._loop.time()
        self._worker.submit(submit)
        try:
            while submit.id in self._requests:
                event = await events.get()
                if isinstance(event, Failed):
                    raise EngineError(event.message)
                if isinstance(event, Finished):
                    del self._requests[submit.id]
                    self._mean_request_s += 0.1 * (
                        self._loop.time() - begin_s - self._mean_request_s
                    )
                yield event
        finally:
            if self._requests.pop(submit.id, None) is not None:
                self._worker.cancel(submit.id)

    def _report(self, report: StepReport) -> None:
        """Called in the worker's thread, once a step."""
        # The loop is closed only when nobody is left to listen.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, report)

    def _deliver(self, report: StepReport) -> None:
        for request_id, event in report.replies:
            if events := self._requests.get(request_id):
                events.put_nowait(event)
        if report.stats:
            self._on_step(report.stats)
