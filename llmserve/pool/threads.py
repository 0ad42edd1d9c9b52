"""Models in threads of the server, for devices on which a process for each is too much."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from llmserve.engine.load_spec import LIBRARY, LoadProgress, Machine, Order
from llmserve.engine.messages import Load, StepStats

if TYPE_CHECKING:
    from llmserve.engine.engine import Engine
    from llmserve.engine.loading import Library


class ThreadOpener:
    """Implements `pool.loader.Opener`."""

    overhead_bytes = 0

    def __init__(self, library: str = LIBRARY) -> None:
        self._library = library

    async def machine(self, name: str) -> Machine:
        return await asyncio.to_thread(lambda: self._load_library().machine())

    def drop(self, name: str) -> None:
        """Nothing was begun."""

    async def open(
        self,
        order: Order,
        progress: LoadProgress,
        *,
        stall_timeout_s: float,
        on_step: Callable[[StepStats], None],
        on_load: Callable[[Load], None],
    ) -> "Engine":
        """Raises `ModelFileError` or `EngineError`. A thread cannot be ended when it stalls."""
        from llmserve.engine.loading import open_engine

        return await open_engine(
            order,
            self._load_library(),
            on_progress=progress.update,
            on_step=on_step,
            on_load=on_load,
        )

    def _load_library(self) -> "Library":
        # Imported when first needed: a server without a loaded model stays small.
        from llmserve.engine.loading import library

        return library(self._library)
