"""One loaded model behind an async iterator. Hides where the worker lives.

Everything here runs on the event loop; rendering and tokenizing run in threads of their own,
so that a long prompt holds up neither the loop nor the worker's steps.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from llmserve.core import (
    EmbeddingRequest,
    Embeddings,
    Event,
    EventStream,
    Finished,
    Mode,
    Request,
    Started,
)
from llmserve.engine.input import embedding, prompt
from llmserve.engine.input.pins import PinOptions
from llmserve.engine.input.processor import InputProcessor
from llmserve.engine.interface import Crash
from llmserve.engine.kvcache.disk_store import DiskOptions
from llmserve.engine.load_spec import Policy
from llmserve.engine.messages import (
    Embed,
    Embedded,
    Ended,
    Failed,
    Load,
    Report,
    StepStats,
    Submit,
)
from llmserve.engine.runtime import EmbeddingLimits, ModelInfo, Runtime, RuntimeLimits
from llmserve.engine.scheduler.queue import Admission, QueueNews
from llmserve.engine.structured.compiler import Compiling
from llmserve.engine.thread import ModelThread
from llmserve.engine.worker.worker import Worker
from llmserve.errors import (
    EngineError,
    InvalidRequestError,
    LlmserveError,
    shutting_down,
)


class LocalEngine:
    """Generates with one model, up to `limits.num_slots` requests at the same time.

    Create it on the event loop that will use it, and `close` it there.
    """

    def __init__(
        self,
        name: str,
        runtime: Runtime,
        *,
        policy: Policy,
        default_mode: Mode | None = None,
        on_step: Callable[[StepStats], None] = lambda stats: None,
        on_load: Callable[[Load], None] = lambda load: None,
        thread: ModelThread | None = None,
        prefix_cache_bytes: int = 0,
        disk: DiskOptions | None = None,
        pinned: PinOptions = PinOptions(),  # noqa: B008 - frozen
    ) -> None:
        """`thread` is the one that loaded `runtime`; it is the engine's from now on."""
        self.name = name
        self._runtime = runtime
        self._on_step = on_step
        self._on_load = on_load
        self._input = InputProcessor(name, runtime, default_mode, self._check_alive)
        self._ids = itertools.count()
        self._requests: dict[int, asyncio.Queue[Event | Embedded | Failed]] = {}
        self._on_entry: dict[int, Callable[[], None]] = {}
        self._num_active = 0
        self._num_embedding = 0
        self._mean_embedding_s = 1.0
        self._loop = asyncio.get_running_loop()
        self._fault: str | None = None  # what the worker died of
        self._closing: asyncio.Task[None] | None = None
        self._thread = thread or ModelThread(f"worker-{name}")
        self._compiling = Compiling(name, runtime.grammar_tokenizer)
        self._admission = Admission(name, runtime.limits.num_slots, policy)
        self._news = QueueNews(self._requests)
        self._worker = Worker(
            runtime,
            self._report,
            self._compiling.compiler,
            policy=policy,
            prefix_cache_bytes=prefix_cache_bytes,
            disk=disk,
            pins=self._input.start_pins(pinned.prompts),
            pinned_disk=pinned.disk,
        )
        self._worker.start(self._thread)

    @property
    def info(self) -> ModelInfo:
        return self._runtime.info

    @property
    def limits(self) -> RuntimeLimits:
        return self._runtime.limits

    @property
    def is_alive(self) -> bool:
        """Whether it takes requests. False for good once the worker failed or `close` began."""
        return self._closing is None

    @property
    def num_queued(self) -> int:
        """Requests beyond the slots, also those whose prompt is still being tokenized."""
        return max(0, self._num_active - self.limits.num_slots)

    @property
    def pid(self) -> int | None:
        """None: it lives in threads of this process."""
        return None

    def watch(self, on_crash: Callable[[Crash], None]) -> None:
        """Threads cannot die by themselves: what ends them ends this process too."""

    async def generate(
        self, request: Request, *, on_entry: Callable[[], None] | None = None
    ) -> EventStream:
        """`Started`, any number of parts, `Finished`. Leaving early cancels.

        `on_entry` is called when it gets a slot, each time that it gets one.

        Raises `InvalidRequestError`, `TooLargeError`, `QueueFullError` or `ShuttingDownError`
        before the first event, `QueueTimeoutError` before the first part, and `EngineError` at
        any time.
        """
        self._check_alive()
        if not self.info.generates:
            raise InvalidRequestError(
                f"model {self.name!r} generates no text, it is for embeddings: use"
                " POST /v1/embeddings, or another model",
                param="model",
            )
        self._admission.check_count(self._num_active)
        self._num_active += 1
        try:
            accepted_s = time.monotonic()
            submit = await self._input.process(request, next(self._ids), accepted_s)
            if submit.constraint is not None:
                self._check_alive()  # `close` waits for all that is queued there
                await self._compiling.prepare(submit.id, submit.constraint)
            self._admission.check_prompt(len(submit.tokens), must_wait=self.num_queued > 0)
            with self._queued(submit, on_entry), self._submitted(submit) as events:
                yield Started(self.name, len(submit.tokens), submit.seed)
                while not isinstance(event := await events.get(), Finished):
                    assert not isinstance(event, Embedded)
                    if isinstance(event, Failed):
                        raise self._error(event)
                    yield event
                yield event
        finally:
            self._num_active -= 1

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """A vector for each input. To be cancelled cancels the work.

        Raises what `generate` raises.
        """
        self._check_alive()
        limits = self._embedding_limits()
        self._admission.check_embedding(
            self._num_embedding, limits.max_inputs, self._mean_embedding_s
        )
        self._num_embedding += 1
        try:
            inputs = await self._input.run(lambda: embedding.encode(request, self._runtime, limits))
            begin_s = time.monotonic()
            data = await self._embedded(Embed(next(self._ids), inputs))
            self._mean_embedding_s += 0.1 * (time.monotonic() - begin_s - self._mean_embedding_s)
        finally:
            self._num_embedding -= 1
        vectors = np.frombuffer(data, dtype="<f4").reshape(len(inputs), limits.num_dimensions)
        vectors = await asyncio.to_thread(embedding.normalized, vectors, request.dimensions)
        return Embeddings(self.name, vectors, sum(map(len, inputs)))

    def _embedding_limits(self) -> EmbeddingLimits:
        limits = self._runtime.embedding_limits
        if limits is None:
            raise InvalidRequestError(
                f"model {self.name!r} generates text, and is not set up for embeddings: set"
                f' pooling = "mean" (or "cls", "last") in [models.{self.name}] of models.toml, or'
                " use a model made for embeddings",
                param="model",
            )
        return limits

    async def _embedded(self, command: Embed) -> bytes:
        """The rows that the worker computes."""
        with self._submitted(command) as events:
            event = await events.get()
        if isinstance(event, Failed):
            raise EngineError(event.message)
        assert isinstance(event, Embedded)
        if event.data is None:
            raise shutting_down(f"model {self.name!r}")
        return event.data

    async def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """The tokens of `text` as it is. Raises `InvalidRequestError` for half a character."""
        return await self._input.run_bare(
            lambda: prompt.tokenize(text, self._runtime, add_special=add_special)
        )

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`, with that of control tokens; parts of characters become U+FFFD.

        Raises `InvalidRequestError` for what is not in the vocabulary.
        """
        return await self._input.run_bare(lambda: prompt.detokenize(tokens, self._runtime))

    async def render(self, request: Request) -> str:
        """What mode chat would give the model to continue. Raises `InvalidRequestError`."""
        return await self._input.render(request)

    async def close(self) -> None:
        """End the worker and give the model's memory back; what still runs ends as cancelled."""
        await asyncio.shield(self._start_closing())

    def _start_closing(self) -> asyncio.Task[None]:
        if self._closing is None:
            self._closing = asyncio.create_task(asyncio.to_thread(self._free))
        return self._closing

    def _free(self) -> None:
        self._worker.stop()
        self._input.close()  # it may be tokenizing with the model
        self._compiling.close()  # and so may this
        self._runtime.close()
        self._thread.shutdown()

    def _check_alive(self) -> None:
        if self._fault is not None:
            raise EngineError(self._fault)
        if self._closing is not None:
            raise shutting_down(f"model {self.name!r}")

    @contextlib.contextmanager
    def _queued(self, submit: Submit, on_entry: Callable[[], None] | None) -> Iterator[None]:
        """Count its tokens until it has a slot."""
        self._admission.join(submit.id, len(submit.tokens))
        if on_entry:
            self._on_entry[submit.id] = on_entry
        try:
            yield
        finally:
            self._on_entry.pop(submit.id, None)
            self._admission.leave(submit.id)
            self._news.forget(submit.id)

    @contextlib.contextmanager
    def _submitted(
        self, submit: Submit | Embed
    ) -> Iterator["asyncio.Queue[Event | Embedded | Failed]"]:
        """Give `submit` to the worker; leaving before its last event cancels it there.

        The worker is stopped only after `_closing` is set, here on the loop's thread: whatever
        passes the check is ahead of the `Stop` and gets an answer.
        """
        self._check_alive()
        events: asyncio.Queue[Event | Embedded | Failed] = asyncio.Queue()
        self._requests[submit.id] = events
        self._worker.submit(submit)
        try:
            yield events
        finally:
            if self._requests.pop(submit.id, None) is not None:
                self._worker.cancel(submit.id)

    def _report(self, report: Report) -> None:
        """Called in the worker's thread, once a step."""
        # The loop is closed only when nobody is left to listen.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, report)

    def _deliver(self, report: Report) -> None:
        if isinstance(report, Ended):
            self._end(report)
            return
        for request_id, event in report.replies:
            if events := self._requests.get(request_id):
                events.put_nowait(event)
                if isinstance(event, Finished | Embedded | Failed):  # the worker has forgotten it
                    del self._requests[request_id]
        if report.stats:
            self._on_step(report.stats)
        if report.load:
            self._on_load(report.load)
        for request_id in report.entered:
            self._admission.leave(request_id)
            self._news.tell_entry(request_id)
            if on_entry := self._on_entry.get(request_id):
                on_entry()
        if report.queue:
            self._admission.update(report.queue)
            self._news.tell(report.queue)

    def _error(self, failed: Failed) -> LlmserveError:
        return self._admission.timed_out() if failed.is_timeout else EngineError(failed.message)

    def _end(self, ended: Ended) -> None:
        """The worker is gone: nobody may wait for it any longer."""
        self._on_load(Load())
        if ended.fault is None:
            assert not self._requests, "the worker stopped without finishing these"
            return
        self._fault = ended.fault
        for events in self._requests.values():
            events.put_nowait(Failed(ended.fault))
        self._requests.clear()
        self._start_closing()  # what failed serves nobody: give its memory back at once
