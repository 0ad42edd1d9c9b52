"""Model name -> backend, with what is true for every request: admission while draining, metrics."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from llmserve.core import Delta, EventStream, Finished, Request
from llmserve.errors import LlmserveError, ModelNotFoundError, ShuttingDownError
from llmserve.metrics import Metrics
from llmserve.pool.loader import load_engine
from llmserve.pool.pool import Pool
from llmserve.registry.config import Config, ModelSpec


class Gateway:
    """The one way to a model, whatever the dialect of the request."""

    def __init__(self, config: Config, pool: Pool, metrics: Metrics) -> None:
        self.config = config
        self.metrics = metrics
        self._pool = pool
        self._num_active = 0
        self._is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def is_ready(self) -> bool:
        """Whether the default model can answer now, or (without `preload`) once asked."""
        is_loaded = not self.config.server.preload or self._pool.is_ready(self.config.default)
        return is_loaded and not self._is_draining

    def start(self) -> None:
        """Load the default model in the background, unless the config says not to."""
        if self.config.server.preload:
            self._pool.preload(self.config.default)

    async def generate(self, request: Request) -> EventStream:
        """The events of `request`. Leaving early cancels it.

        Raises `LlmserveError`s; all but `EngineError` come before the first event.
        """
        async with (
            self._counted(),
            self._pool.lease(self.resolve(request.model)) as engine,
            contextlib.aclosing(engine.generate(request)) as events,
            contextlib.aclosing(self._measured(engine.name, events)) as measured,
        ):
            async for event in measured:
                yield event

    def resolve(self, name: str | None) -> ModelSpec:
        """The model called or aliased `name`; the default model for None."""
        if name is None:
            return self.config.default
        spec = self.config.names.get(name)
        if spec is None:
            known = ", ".join(sorted(self.config.names))
            raise ModelNotFoundError(f"no model {name!r}; there are: {known}", param="model")
        return spec

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests; return when the running ones are done, at most after `grace_s`."""
        self._is_draining = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_s)

    async def close(self) -> None:
        """End all models; what still runs ends as cancelled."""
        self._is_draining = True
        await self._pool.close()

    @asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        if self._is_draining:
            raise ShuttingDownError("the server is shutting down", retry_after_s=5)
        self._num_active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_active -= 1
            if self._num_active == 0:
                self._idle.set()

    async def _measured(self, model: str, events: EventStream) -> EventStream:
        """The same events, counted."""
        metrics = self.metrics
        outcome = "disconnected"
        inter_token = metrics.inter_token.labels(model)
        last_s: float | None = None
        try:
            async for event in events:
                if isinstance(event, Delta):
                    now_s = time.monotonic()
                    if last_s is not None:
                        inter_token.observe(now_s - last_s)
                    last_s = now_s
                elif isinstance(event, Finished):
                    outcome = event.reason
                    metrics.ttft.labels(model).observe(event.timings.ttft_s)
                    metrics.prompt_tokens.labels(model).inc(event.usage.prompt_tokens)
                    metrics.generated_tokens.labels(model).inc(event.usage.generated_tokens)
                yield event
        except LlmserveError as error:
            outcome = error.code
            raise
        finally:
            metrics.requests.labels(model, outcome).inc()


def build_gateway(config: Config) -> Gateway:
    """Everything a running server needs below its HTTP surface. Nothing is loaded yet."""
    metrics = Metrics()
    load = partial(load_engine, metrics=metrics)
    return Gateway(config, Pool(load, load_wait_s=config.server.load_wait_s), metrics)
