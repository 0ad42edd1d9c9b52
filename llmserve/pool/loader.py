"""ModelSpec -> a running Engine on llama.cpp."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from llmserve.engine.engine import Engine
from llmserve.engine.messages import StepStats
from llmserve.metrics import Metrics
from llmserve.registry.config import ModelSpec
from llmserve.registry.sources import locate

if TYPE_CHECKING:
    from llmserve.engine.llama import LlamaRuntime


async def load_engine(spec: ModelSpec, metrics: Metrics) -> Engine:
    """Load `spec` off the event loop. Raises `ModelFileError` or `EngineError`."""
    thread = ThreadPoolExecutor(1, thread_name_prefix=f"worker-{spec.name}")
    try:
        loading = asyncio.get_running_loop().run_in_executor(
            thread, _load_runtime, locate(spec), spec
        )
        runtime = await loading
    except BaseException:
        thread.shutdown(wait=False)
        raise

    def on_step(stats: StepStats) -> None:
        metrics.observe_step(spec.name, stats.num_decoded + stats.num_prefilled, stats.step_s)
        metrics.observe_load(spec.name, stats.num_running, stats.num_waiting)

    return Engine(
        spec.name,
        runtime,
        max_queue=spec.max_queue,
        default_mode=spec.default_mode,
        on_step=on_step,
        thread=thread,
    )


def _load_runtime(path: Path, spec: ModelSpec) -> "LlamaRuntime":
    # Imported when first needed: a server without a loaded model stays small.
    from llmserve.engine.llama import LlamaParams, LlamaRuntime

    params = LlamaParams(
        context_length=spec.context_length,
        max_sequences=spec.max_concurrency,
        num_threads=spec.threads,
    )
    return LlamaRuntime(path, params)
