"""ModelSpec -> a running model, through a process or threads."""

import asyncio
import functools
import logging
import os
from pathlib import Path
from urllib.parse import quote

from msgspec.structs import replace

from llmserve.config.schema import ModelSpec
from llmserve.engine.interface import Engine
from llmserve.engine.load_spec import DiskCacheSpec, LoadSpec, Policy
from llmserve.engine.messages import Load, StepStats
from llmserve.engine.runtime import LlamaParams
from llmserve.engine.thread import ModelThread
from llmserve.gguf.header import ModelFiles, read_model
from llmserve.hub.locate import locate_all, obtain
from llmserve.machine.cpu import default_threads
from llmserve.pool.load_plan import LoadPlan, plan_load
from llmserve.pool.memory.estimate import repacked_types
from llmserve.pool.progress import DownloadProgress, Progress
from llmserve.process.launcher import Launcher
from llmserve.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


class EngineLoader:
    """Implements `pool.Loader`."""

    def __init__(
        self,
        metrics: Metrics,
        launcher: Launcher,
        *,
        auto_download: bool,
        prefix_cache_dir: Path | None = None,
        prefix_cache_disk_bytes: int = 0,
        pinned_dir: Path | None = None,
    ) -> None:
        """Prefixes outlive the server in these folders, those of pinned prompts in the last."""
        self._metrics = metrics
        self._launcher = launcher
        self._auto_download = auto_download
        self._prefix_cache_dir = prefix_cache_dir
        self._prefix_cache_disk_bytes = prefix_cache_disk_bytes
        self._pinned_dir = pinned_dir

    async def plan(self, spec: ModelSpec, budget_bytes: int, progress: Progress) -> LoadPlan:
        """Reads and validates the file's header, off the event loop. Raises `ModelFileError`.

        Downloads a file that is not on disk first, if the config allows it.
        """
        path = await self._obtain(spec, progress)
        overhead_bytes = self._launcher.overhead_bytes
        machine, model = await asyncio.gather(
            self._launcher.machine(spec.name), asyncio.to_thread(_model, path)
        )
        types = repacked_types(machine.system_info)
        plan = await asyncio.to_thread(plan_load, spec, model, budget_bytes - overhead_bytes, types)
        return replace(plan, size_bytes=plan.size_bytes + overhead_bytes)

    async def _obtain(self, spec: ModelSpec, progress: Progress) -> Path:
        # A thread of its own, and a daemon: shutting down waits for no download.
        thread = ModelThread(f"obtain-{spec.name}")
        try:
            download = DownloadProgress(spec.name, progress)
            obtaining = thread.submit(
                obtain, spec, auto_download=self._auto_download, progress=download
            )
            return await asyncio.wrap_future(obtaining)
        finally:
            thread.shutdown()

    def drop(self, spec: ModelSpec) -> None:
        self._launcher.drop(spec.name)

    async def load(self, spec: ModelSpec, plan: LoadPlan, progress: Progress) -> Engine:
        """Raises `ModelFileError`, `EngineError` or `EngineCrashedError`."""
        observer = EngineMetrics(spec.name, self._metrics)
        return await self._launcher.launch(self._load_spec(spec, plan), progress, observer)

    def _load_spec(self, spec: ModelSpec, plan: LoadPlan) -> LoadSpec:
        files = tuple(map(os.fsencode, locate_all(spec)))
        pinned_folder = _folder_in(self._pinned_dir, spec)
        if not spec.pinned_prompts and not (pinned_folder and os.path.exists(pinned_folder)):
            pinned_folder = None  # else, what was pinned once is removed
        return LoadSpec(
            name=spec.name,
            path=files[0],
            params=LlamaParams(
                context_length=plan.context_length,
                max_sequences=plan.max_sequences,
                max_outputs=plan.max_outputs,
                num_threads=_num_threads(spec),
                embedding=plan.embedding,
                generates=plan.generates,
            ),
            policy=policy(spec),
            stall_timeout_s=float(spec.stall_timeout),
            default_mode=spec.default_mode,
            prefix_cache_bytes=int(plan.prefix_cache_bytes),
            disk=DiskCacheSpec(
                files,
                int(self._prefix_cache_disk_bytes),
                _folder_in(self._prefix_cache_dir, spec),
                pinned_folder,
            ),
            pinned_prompts=spec.pinned_prompts,
        )


def _folder_in(parent: Path | None, spec: ModelSpec) -> bytes | None:
    return os.fsencode(parent / quote(spec.name, safe="")) if parent else None


class EngineMetrics:
    """Implements `EngineObserver`: one model's steps and load, as they show in `metrics`."""

    def __init__(self, name: str, metrics: Metrics) -> None:
        self._name = name
        self._metrics = metrics

    def on_step(self, stats: StepStats) -> None:
        self._metrics.observe_step(
            self._name,
            num_decoded=stats.num_decoded,
            num_prefilled=stats.num_prefilled,
            step_s=stats.step_s,
            expected_s=stats.expected_s,
        )
        if stats.num_drafted:
            self._metrics.observe_draft(self._name, stats.num_drafted, stats.num_accepted)
        if stats.num_preempted:
            self._metrics.observe_preemptions(self._name, stats.num_preempted)

    def on_load(self, load: Load) -> None:
        self._metrics.observe_load(self._name, load.num_running, load.num_waiting)


def _num_threads(spec: ModelSpec) -> int:
    if spec.threads:
        return spec.threads
    chosen = default_threads()
    log.info("%s: threads = %d (%s)", spec.name, chosen.num, chosen.reason)
    return chosen.num


def policy(spec: ModelSpec) -> Policy:
    """In plain numbers: the config has types of its own."""
    return Policy(
        max_queue=spec.max_queue,
        max_queue_tokens=spec.max_queue_tokens,
        queue_timeout_s=None if spec.queue_timeout is None else float(spec.queue_timeout),
        target_itl_s=float(spec.target_itl),
        speculation=spec.speculation,
    )


def _model(path: Path) -> ModelFiles:
    stat = path.stat()
    return _read_model(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=16)
def _read_model(path: Path, mtime_ns: int, size: int) -> ModelFiles:
    """As `read_model`, once for each version of a file: a header takes 20 ms and more."""
    return read_model(path)
