"""The parts of a running server below its HTTP surface, put together as the config says."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llmserve.auth.keyring import Keyring
from llmserve.config.schema import Config, ModelSpec
from llmserve.gateway import Gateway
from llmserve.machine.memory import give_back
from llmserve.pool.loader import EngineLoader
from llmserve.pool.memory.budget import MemoryBudget
from llmserve.pool.pool import Pool
from llmserve.process.launcher import ProcessLauncher, ThreadLauncher
from llmserve.remote.remotes import Remotes
from llmserve.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from llmserve.telemetry.tracing import Tracing

log = logging.getLogger(__name__)


def build_gateway(
    config: Config,
    environment: Mapping[str, str],
    *,
    keyring: Keyring | None = None,
    tracing: "Tracing | None" = None,
    first: ModelSpec | None = None,
    cache_dir: Path | None = None,
) -> Gateway:
    """Everything a running server needs below its HTTP surface. Nothing is loaded yet.

    `environment` has the keys of remote providers, `keyring` those of callers.
    `first` is a model that is going to be loaded at once: its process starts now, and does its
    imports while the server does its own. `cache_dir` is for what may be removed at any time.
    """
    metrics = Metrics()
    server = config.server
    prefixes = server.prefix_cache_dir
    # No model has a name that begins with an underscore.
    pinned_dir = prefixes / "_pinned" if prefixes else cache_dir and cache_dir / "prefixes"
    isolated = server.isolation == "process"
    loader = EngineLoader(
        metrics,
        _process_launcher(first) if isolated else ThreadLauncher(),
        auto_download=server.auto_download,
        prefix_cache_dir=prefixes,
        prefix_cache_disk_bytes=server.prefix_cache_disk,
        pinned_dir=pinned_dir,
    )
    pool = Pool(
        loader,
        budget_bytes=MemoryBudget(server.memory_budget),
        load_wait_s=server.load_wait_s,
        # What was in another process needs not be given back.
        give_back=(lambda: None) if isolated else give_back,
        count_crash=metrics.count_crash,
    )
    return Gateway(
        config,
        pool,
        Remotes(environment, metrics),
        metrics,
        keyring=keyring,
        tracing=tracing,
    )


def _process_launcher(first: ModelSpec | None) -> ProcessLauncher:
    launcher = ProcessLauncher(log.getEffectiveLevel)
    if first and not first.remote:
        launcher.start(first.name)
    return launcher
