"""The loaded models. Everything here runs on the event loop, so the state has one writer.

A model is loaded when it is first wanted; everybody who wants it meanwhile joins that load. A
load that fails is tried again by the next request.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from llmserve.engine.engine import Engine
from llmserve.errors import LlmserveError, ModelLoadingError, ModelUnavailableError
from llmserve.registry.config import ModelSpec

log = logging.getLogger(__name__)

Loader = Callable[[ModelSpec], Awaitable[Engine]]


class Pool:
    """Name -> engine, loaded on demand by `load`."""

    def __init__(self, load: Loader, *, load_wait_s: float) -> None:
        self._load = load
        self._load_wait_s = load_wait_s
        self._engines: dict[str, asyncio.Task[Engine]] = {}

    def is_ready(self, spec: ModelSpec) -> bool:
        task = self._engines.get(spec.name)
        return task is not None and task.done() and not task.cancelled() and not task.exception()

    def preload(self, spec: ModelSpec) -> None:
        """Start loading without waiting; a failure is logged and told to who asks next."""
        self._loading(spec)

    @asynccontextmanager
    async def lease(self, spec: ModelSpec) -> AsyncIterator[Engine]:
        """A ready engine, for the time of the block.

        Raises `ModelLoadingError` after `load_wait_s`, `ModelUnavailableError` if it cannot load.
        """
        task = self._loading(spec)
        if not task.done():
            await asyncio.wait([task], timeout=self._load_wait_s)
        if not task.done():
            raise ModelLoadingError(
                f"model {spec.name!r} is still loading; try again", retry_after_s=5
            )
        yield task.result()

    async def close(self) -> None:
        """End every engine, and every load under way."""
        tasks = list(self._engines.values())
        self._engines.clear()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(e.close() for e in results if isinstance(e, Engine)))

    def _loading(self, spec: ModelSpec) -> asyncio.Task[Engine]:
        task = self._engines.get(spec.name)
        if task is None or (task.done() and task.exception()):
            task = asyncio.create_task(self._load_and_log(spec), name=f"load-{spec.name}")
            task.add_done_callback(lambda t: t.exception())  # a preload has nobody to raise it to
            self._engines[spec.name] = task
        return task

    async def _load_and_log(self, spec: ModelSpec) -> Engine:
        log.info("loading %s from %s", spec.name, spec.source)
        begin_s = time.monotonic()
        try:
            engine = await self._load(spec)
        except LlmserveError as error:
            log.error("cannot load %s: %s", spec.name, error.message)
            raise ModelUnavailableError(error.message) from error
        log.info(
            "%s is ready after %.1f s: %s, context of %d tokens, %d requests at a time",
            spec.name,
            time.monotonic() - begin_s,
            engine.info.description,
            engine.limits.context_length,
            engine.limits.num_slots,
        )
        return engine
