"""Load spec -> a running `LocalEngine`, in threads of this process."""

import asyncio
import logging
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from llmserve.engine.engine import LocalEngine
from llmserve.engine.input.pins import PinOptions
from llmserve.engine.kvcache.disk_store import DiskOptions, fingerprint
from llmserve.engine.load_spec import LoadSpec, Machine
from llmserve.engine.messages import Load, StepStats
from llmserve.engine.runtime import Runtime
from llmserve.engine.thread import ModelThread

log = logging.getLogger(__name__)


class Backend(Protocol):
    """A module that loads models: `engine/llama/backend.py` with llama.cpp, others in tests."""

    def machine(self) -> Machine: ...

    def load(self, spec: LoadSpec, on_progress: Callable[[float], bool]) -> Runtime:
        """Blocks. `on_progress(fraction)` is called now and then, and False ends the load.

        Raises `ModelFileError` or `EngineError`.
        """


def backend_of(module: str) -> Backend:
    return cast(Backend, import_module(module))


async def load_engine(
    spec: LoadSpec,
    backend: Backend,
    *,
    on_progress: Callable[[float], bool],
    on_step: Callable[[StepStats], None],
    on_load: Callable[[Load], None],
) -> LocalEngine:
    """Load and start. Raises `ModelFileError` or `EngineError`."""
    thread = ModelThread(f"worker-{spec.name}")
    try:
        runtime = await asyncio.wrap_future(thread.submit(backend.load, spec, on_progress))
    except BaseException:
        thread.shutdown()
        raise
    try:
        disks = await asyncio.wrap_future(thread.submit(_disk_options, spec, backend))
        return LocalEngine(
            spec.name,
            runtime,
            policy=spec.policy,
            default_mode=spec.default_mode,
            on_step=on_step,
            on_load=on_load,
            thread=thread,
            prefix_cache_bytes=spec.prefix_cache_bytes,
            disk=disks.usual,
            pinned=PinOptions(spec.pinned_prompts, disks.pinned),
        )
    except BaseException:
        await asyncio.wrap_future(thread.submit(runtime.close))
        thread.shutdown()
        raise


class _Disks(NamedTuple):
    usual: DiskOptions | None = None
    pinned: DiskOptions | None = None


def _disk_options(spec: LoadSpec, backend: Backend) -> _Disks:
    """Reads a little of the model's files. No file there is nothing that ends a load."""
    disk = spec.disk
    if disk is None or not (disk.folder or disk.pinned_folder):
        return _Disks()
    try:
        files = [Path(os.fsdecode(file)) for file in disk.files]
        stamp = fingerprint(files, backend.machine().build_info)
    except OSError as error:
        log.warning("%s: prefixes are kept in memory only: %s", spec.name, error)
        return _Disks()
    usual = pinned = None
    if disk.folder:
        usual = DiskOptions(Path(os.fsdecode(disk.folder)), disk.budget_bytes, stamp)
    if disk.pinned_folder:
        # What is pinned stays in memory anyway, however long the disk takes.
        folder, max_unwritten = Path(os.fsdecode(disk.pinned_folder)), disk.budget_bytes
        pinned = DiskOptions(folder, disk.budget_bytes, stamp, max_unwritten)
    return _Disks(usual, pinned)
