"""An order -> a running `Engine`, in threads of this process."""

import asyncio
import logging
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from llmserve.engine.disk import DiskOptions, fingerprint
from llmserve.engine.engine import Engine
from llmserve.engine.messages import Load, StepStats
from llmserve.engine.order import Machine, Order
from llmserve.engine.runtime import Runtime
from llmserve.engine.thread import ModelThread

log = logging.getLogger(__name__)


class Library(Protocol):
    """A module that loads models: `engine/library.py` with llama.cpp, others in tests."""

    def machine(self) -> Machine: ...

    def load(self, order: Order, on_progress: Callable[[float], bool]) -> Runtime:
        """Blocks. `on_progress(fraction)` is called now and then, and False ends the load.

        Raises `ModelFileError` or `EngineError`.
        """


def library(name: str) -> Library:
    return cast(Library, import_module(name))


async def open_engine(
    order: Order,
    library: Library,
    *,
    on_progress: Callable[[float], bool],
    on_step: Callable[[StepStats], None],
    on_load: Callable[[Load], None],
) -> Engine:
    """Load and start. Raises `ModelFileError` or `EngineError`."""
    thread = ModelThread(f"worker-{order.name}")
    try:
        runtime = await asyncio.wrap_future(thread.submit(library.load, order, on_progress))
    except BaseException:
        thread.shutdown()
        raise
    try:
        disk = await asyncio.wrap_future(thread.submit(_disk_options, order, library))
        return Engine(
            order.name,
            runtime,
            policy=order.policy,
            default_mode=order.default_mode,
            on_step=on_step,
            on_load=on_load,
            thread=thread,
            prefix_cache_bytes=order.prefix_cache_bytes,
            disk=disk,
        )
    except BaseException:
        await asyncio.wrap_future(thread.submit(runtime.close))
        thread.shutdown()
        raise


def _disk_options(order: Order, library: Library) -> DiskOptions | None:
    """Reads a little of the model's files. No file there is nothing that ends a load."""
    if order.disk is None:
        return None
    files = [Path(os.fsdecode(file)) for file in order.disk.files]
    try:
        stamp = fingerprint(files, library.machine().build_info)
    except OSError as error:
        log.warning("%s: prefixes are kept in memory only: %s", order.name, error)
        return None
    return DiskOptions(Path(os.fsdecode(order.disk.folder)), order.disk.budget_bytes, stamp)
