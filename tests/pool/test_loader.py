"""The loader with llama.cpp itself, where the model of `tests/tiny_models.py` is enough."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from llmserve.config.schema import ModelSpec
from llmserve.engine import loading
from llmserve.engine.llama import LlamaRuntime, backend
from llmserve.errors import LlmserveError, ModelFileError
from llmserve.pool import loader
from llmserve.pool.loader import EngineLoader
from llmserve.pool.model import State
from llmserve.pool.pool import Pool
from llmserve.pool.progress import Progress
from llmserve.process.launcher import ThreadLauncher
from llmserve.telemetry.metrics import Metrics
from tests.serving import wait_until
from tests.tiny_models import write_llama

pytestmark = pytest.mark.anyio
GIB = 1 << 30


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    path = write_llama(tmp_path_factory.mktemp("loader") / "tiny.gguf")
    return ModelSpec(name="tiny", path=path, context_length=256)


@pytest.fixture
def runtimes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[LlamaRuntime]]:
    """Every runtime that is made; all have to be closed in the end."""
    made: list[LlamaRuntime] = []
    real = LlamaRuntime.__init__

    def noted(self: LlamaRuntime, *args: Any, **keys: Any) -> None:
        real(self, *args, **keys)
        made.append(self)

    monkeypatch.setattr(LlamaRuntime, "__init__", noted)
    yield made
    assert all(runtime._closed for runtime in made)


async def load(spec: ModelSpec, progress: Progress) -> None:
    engines = EngineLoader(Metrics(), ThreadLauncher(), auto_download=False)
    plan = await engines.plan(spec, GIB, progress)
    engine = await engines.load(spec, plan, progress)
    await engine.close()


async def test_a_load_tells_its_progress(spec: ModelSpec, runtimes: list[LlamaRuntime]) -> None:
    progress = Progress()
    await load(spec, progress)
    assert progress.fraction == 1
    assert len(runtimes) == 1


async def test_a_load_that_was_told_to_give_up_makes_no_runtime(
    spec: ModelSpec, runtimes: list[LlamaRuntime]
) -> None:
    progress = Progress()
    progress.is_cancelled = True
    with pytest.raises(ModelFileError, match="cannot load it"):
        await load(spec, progress)
    assert not runtimes


async def test_no_engine_no_runtime(
    spec: ModelSpec, runtimes: list[LlamaRuntime], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **keys: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(loading, "LocalEngine", fail)
    with pytest.raises(ZeroDivisionError):
        await load(spec, Progress())
    assert [runtime._closed for runtime in runtimes] == [True]


async def test_pinned_prompts_have_a_folder_until_there_are_none(
    spec: ModelSpec, tmp_path: Path, runtimes: list[LlamaRuntime]
) -> None:
    def files() -> list[Path]:
        return list(tmp_path.glob("pinned/tiny/*.kv"))

    pinning = replace(spec, pinned_prompts=("You are the clerk of a harbour.",))
    for each in (spec, pinning, spec):
        engines = EngineLoader(
            Metrics(),
            ThreadLauncher(),
            auto_download=False,
            prefix_cache_disk_bytes=1 << 20,
            pinned_dir=tmp_path / "pinned",
        )
        plan = await engines.plan(each, GIB, Progress())
        engine = await engines.load(each, plan, Progress())
        if each.pinned_prompts:
            await asyncio.to_thread(wait_until, files)
        await engine.close()
        assert (tmp_path / "pinned").exists() == (each is pinning or len(runtimes) > 1)
        assert bool(files()) == (each is pinning)


# -- shutting down -------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["obtain", "load"])
async def test_closing_the_pool_ends_a_load_wherever_it_is(
    stage: str,
    spec: ModelSpec,
    runtimes: list[LlamaRuntime],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """… while a hub sends nothing, or while llama.cpp reads the weights."""
    loop, begun, may_go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    module: Any = loader if stage == "obtain" else backend
    real: Callable[..., Any] = getattr(module, stage)

    def hangs(*args: Any, **keys: Any) -> Any:
        loop.call_soon_threadsafe(begun.set)
        assert may_go_on.wait(30)
        return real(*args, **keys)

    monkeypatch.setattr(module, stage, hangs)
    pool = Pool(
        EngineLoader(Metrics(), ThreadLauncher(), auto_download=False),
        budget_bytes=lambda resident: GIB,
        load_wait_s=30,
    )
    pool.preload(spec)
    await begun.wait()
    closing = asyncio.create_task(pool.close())
    if stage == "load":
        while not pool.look(spec).progress.is_cancelled:  # noqa: ASYNC110 - a flag, not an event
            await asyncio.sleep(0)
        may_go_on.set()
    await closing
    may_go_on.set()
    model = pool.look(spec)
    assert model.state is State.FAILED
    assert isinstance(model.error, LlmserveError)
    assert model.error.code == "shutting_down"
    assert not runtimes
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
