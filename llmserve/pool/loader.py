"""ModelSpec -> a running Engine on llama.cpp."""

import asyncio
import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from llmserve.engine.admission import Policy
from llmserve.engine.disk import DiskOptions, fingerprint
from llmserve.engine.engine import Engine
from llmserve.engine.messages import Load, StepStats
from llmserve.engine.pinning import PinOptions
from llmserve.engine.runtime import Runtime
from llmserve.engine.thread import ModelThread
from llmserve.metrics import Metrics
from llmserve.pool.memory import repacked_types
from llmserve.pool.placement import Placement, place
from llmserve.pool.progress import DownloadProgress, Progress
from llmserve.registry.config import ModelSpec
from llmserve.registry.gguf import ModelFiles, read_model
from llmserve.registry.sources import locate, locate_all, obtain

if TYPE_CHECKING:
    from llmserve.engine.llama import LlamaRuntime


log = logging.getLogger(__name__)


class EngineLoader:
    """Implements `pool.Loader`."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        auto_download: bool,
        prefix_cache_dir: Path | None = None,
        prefix_cache_disk_bytes: int = 0,
        pinned_dir: Path | None = None,
    ) -> None:
        """Prefixes outlive the server in these folders, those of pinned prompts in the last."""
        self._metrics = metrics
        self._auto_download = auto_download
        self._prefix_cache_dir = prefix_cache_dir
        self._prefix_cache_disk_bytes = prefix_cache_disk_bytes
        self._pinned_dir = pinned_dir

    async def place(self, spec: ModelSpec, budget_bytes: int, progress: Progress) -> Placement:
        """Reads and validates the file's header, off the event loop. Raises `ModelFileError`.

        Downloads a file that is not on disk first, if the config allows it.
        """
        # A thread of its own, and a daemon: shutting down waits for no download.
        thread = ModelThread(f"place-{spec.name}")
        try:
            placing = thread.submit(_place, spec, budget_bytes, self._auto_download, progress)
            return await asyncio.wrap_future(placing)
        finally:
            thread.shutdown()

    async def load(self, spec: ModelSpec, placement: Placement, progress: Progress) -> Engine:
        """Raises `ModelFileError` or `EngineError`."""
        thread = ModelThread(f"worker-{spec.name}")
        try:
            loading = thread.submit(_load_runtime, spec, placement, progress)
            runtime = await asyncio.wrap_future(loading)
        except BaseException:
            thread.shutdown()
            raise
        try:
            disk, pinned_disk = await asyncio.wrap_future(thread.submit(self._disk_options, spec))
            return make_engine(
                spec,
                runtime,
                self._metrics,
                thread,
                prefix_cache_bytes=placement.prefix_cache_bytes,
                disk=disk,
                pinned=PinOptions(spec.pinned_prompts, pinned_disk),
            )
        except BaseException:
            await asyncio.wrap_future(thread.submit(runtime.close))
            thread.shutdown()
            raise

    def _disk_options(self, spec: ModelSpec) -> tuple[DiskOptions | None, DiskOptions | None]:
        """For prefixes, and for pinned ones. Reads a little of the model's files.

        No file there is nothing that ends a load.
        """
        from llmserve.engine.llama import build_info

        pinned_folder = _folder_in(self._pinned_dir, spec)
        if not spec.pinned_prompts and not (pinned_folder and pinned_folder.exists()):
            pinned_folder = None  # else, what was pinned once is removed
        folder = _folder_in(self._prefix_cache_dir, spec)
        if folder is None and pinned_folder is None:
            return None, None
        try:
            stamp = fingerprint(locate_all(spec), build_info())
        except OSError as error:
            log.warning("%s: prefixes are kept in memory only: %s", spec.name, error)
            return None, None
        disk = DiskOptions(folder, self._prefix_cache_disk_bytes, stamp) if folder else None
        if pinned_folder is None:
            return disk, None
        # What is pinned stays in memory anyway, however long the disk takes.
        budget_bytes = self._prefix_cache_disk_bytes
        return disk, DiskOptions(pinned_folder, budget_bytes, stamp, budget_bytes)


def _folder_in(parent: Path | None, spec: ModelSpec) -> Path | None:
    return parent and parent / quote(spec.name, safe="")


def make_engine(
    spec: ModelSpec,
    runtime: Runtime,
    metrics: Metrics,
    thread: ModelThread | None = None,
    *,
    prefix_cache_bytes: int = 0,
    disk: DiskOptions | None = None,
    pinned: PinOptions = PinOptions(),  # noqa: B008 - frozen
) -> Engine:
    """An engine as `spec` wants it, whose steps and load show in `metrics`."""

    def on_step(stats: StepStats) -> None:
        metrics.observe_step(
            spec.name,
            num_decoded=stats.num_decoded,
            num_prefilled=stats.num_prefilled,
            step_s=stats.step_s,
            expected_s=stats.expected_s,
        )
        if stats.num_drafted:
            metrics.observe_draft(spec.name, stats.num_drafted, stats.num_accepted)
        if stats.num_preempted:
            metrics.observe_preemptions(spec.name, stats.num_preempted)

    def on_load(load: Load) -> None:
        metrics.observe_load(spec.name, load.num_running, load.num_waiting)

    return Engine(
        spec.name,
        runtime,
        policy=Policy(
            max_queue=spec.max_queue,
            max_queue_tokens=spec.max_queue_tokens,
            queue_timeout_s=spec.queue_timeout,
            target_itl_s=spec.target_itl,
            speculation=spec.speculation,
        ),
        default_mode=spec.default_mode,
        on_step=on_step,
        on_load=on_load,
        thread=thread,
        prefix_cache_bytes=prefix_cache_bytes,
        disk=disk,
        pinned=pinned,
    )


def _place(
    spec: ModelSpec, budget_bytes: int, auto_download: bool, progress: Progress
) -> Placement:
    # Imported when first needed: a server without a loaded model stays small.
    from llmserve.engine.llama import system_info

    download = DownloadProgress(spec.name, progress)
    path = obtain(spec, auto_download=auto_download, progress=download)
    stat = path.stat()
    model = _read_model(path, stat.st_mtime_ns, stat.st_size)
    return place(spec, model, budget_bytes, repacked_types(system_info()))


@functools.lru_cache(maxsize=16)
def _read_model(path: Path, mtime_ns: int, size: int) -> ModelFiles:
    """As `read_model`, once for each version of a file: a header takes 20 ms and more."""
    return read_model(path)


def _load_runtime(spec: ModelSpec, placement: Placement, progress: Progress) -> "LlamaRuntime":
    from llmserve.engine.llama import LlamaParams, LlamaRuntime

    params = LlamaParams(
        context_length=placement.context_length,
        max_sequences=placement.max_sequences,
        max_outputs=placement.max_outputs,
        num_threads=spec.threads,
        embedding=placement.embedding,
        generates=placement.generates,
    )
    return LlamaRuntime(locate(spec), params, on_progress=progress.update)
