"""A loader whose every step the test decides."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from llmserve.config.schema import ModelSpec
from llmserve.engine.interface import Crash, Engine
from llmserve.pool.load_plan import LoadPlan
from llmserve.pool.pool import Pool
from llmserve.pool.progress import Progress


class FakeEngine:
    """What the pool needs of an engine: it lives, and it ends when the test lets it."""

    def __init__(self, spec: ModelSpec, *, closes_at_once: bool) -> None:
        self.spec = spec
        self.is_alive = True
        self.is_closed = False
        self.may_close = asyncio.Event()
        if closes_at_once:
            self.may_close.set()

    def watch(self, on_crash: Callable[[Crash], None]) -> None:
        self.on_crash = on_crash

    async def close(self) -> None:
        self.is_alive = False
        await self.may_close.wait()
        self.is_closed = True


class FakeLoader:
    """Loads end when `finish` is called, or at once with `is_instant`. Sizes by model name."""

    def __init__(self, sizes: dict[str, int], *, is_instant: bool = True) -> None:
        self.sizes = sizes
        self.is_instant = is_instant
        self.loading: dict[ModelSpec, asyncio.Future[None]] = {}
        self.engines: list[FakeEngine] = []
        self.loads: list[str] = []  # names, in order

    async def plan(self, spec: ModelSpec, budget_bytes: int, progress: Progress) -> LoadPlan:
        return LoadPlan(context_length=1, max_sequences=1, size_bytes=self.sizes[spec.name])

    def drop(self, spec: ModelSpec) -> None:
        pass

    async def load(self, spec: ModelSpec, plan: LoadPlan, progress: Progress) -> Engine:
        self.loads.append(spec.name)
        if not self.is_instant:
            self.loading[spec] = asyncio.get_running_loop().create_future()
            await self.loading[spec]
        engine = FakeEngine(spec, closes_at_once=self.is_instant)
        self.engines.append(engine)
        return cast(Engine, engine)

    def finish(self, spec: ModelSpec, error: Exception | None = None) -> None:
        future = self.loading.pop(spec)
        if error:
            future.set_exception(error)
        else:
            future.set_result(None)

    @property
    def used(self) -> int:
        """What really is in memory: all that is loading or not yet closed."""
        open_engines = [e.spec.name for e in self.engines if not e.is_closed]
        return sum(self.sizes[name] for name in [*open_engines, *(s.name for s in self.loading)])


def make_spec(name: str, **keys: Any) -> ModelSpec:
    return ModelSpec(name=name, path=Path(f"{name}.gguf"), **keys)


def make_pool(loader: FakeLoader, budget: int, *, load_wait_s: float = 30) -> Pool:
    return Pool(loader, budget_bytes=lambda resident: budget, load_wait_s=load_wait_s)


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)
