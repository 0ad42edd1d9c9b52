"""The gateway over real children that die: who is asked again, who is told, who stands in."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llmserve.config.schema import ModelSpec
from llmserve.core import (
    Delta,
    EmbeddingRequest,
    Event,
    Finished,
    Mode,
    Request,
    SamplingParams,
    Started,
)
from llmserve.engine.interface import Engine
from llmserve.engine.runtime import EmbeddingLimits
from llmserve.errors import EngineCrashedError, ModelQuarantinedError, RequestLostError
from llmserve.gateway import Gateway
from llmserve.pool import model as pool_model
from llmserve.pool.load_plan import LoadPlan
from llmserve.pool.loader import EngineLoader
from llmserve.pool.model import State
from llmserve.pool.pool import Pool
from llmserve.pool.progress import Progress
from llmserve.process.launcher import ProcessLauncher
from llmserve.remote.remotes import Remotes
from llmserve.telemetry.metrics import Metrics
from tests.process import aborting
from tests.process.backend import Script
from tests.process.children import open_child, until
from tests.serving import make_config, metric
from tests.tiny_models import write_llama

pytestmark = pytest.mark.anyio
SAMPLED = SamplingParams(temperature=1.0, ignore_eos=True)
EMBEDDING = EmbeddingLimits(num_dimensions=4, max_len=64, max_batch=16, max_inputs=2, num_cells=64)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_model, "FIRST_PAUSE_S", 0.0)


class Loader:
    """Children on a fake with one slot, whose steps wait for the file `gate`."""

    def __init__(self, folder: Path) -> None:
        self.gate = folder / "gate"
        options = {"num_slots": 1, "num_cells": 256}
        script = Script(options=options, gate=str(self.gate), embedding=EMBEDDING)
        self._path = script.write(folder / "model")
        self.engines: list[Any] = []

    async def plan(self, spec: ModelSpec, budget_bytes: int, progress: Progress) -> LoadPlan:
        return LoadPlan(context_length=256, max_sequences=1, size_bytes=1)

    def drop(self, spec: ModelSpec) -> None:
        pass

    async def load(self, spec: ModelSpec, plan: LoadPlan, progress: Progress) -> Engine:
        engine = await open_child(self._path)
        self.engines.append(engine)
        return engine

    def kill(self) -> None:
        os.kill(self.engines[-1].pid, signal.SIGKILL)

    @property
    def asked(self) -> list[Any]:
        return list(self.engines[-1]._asked.values()) if self.engines else []


@asynccontextmanager
async def gateway_over(loader: Any, **tables: Any) -> AsyncIterator[Gateway]:
    metrics = Metrics()
    pool = Pool(
        loader,
        budget_bytes=lambda resident: 1 << 30,
        load_wait_s=60,
        count_crash=metrics.count_crash,
    )
    gateway = Gateway(make_config(**tables), pool, Remotes({}, metrics), metrics)
    try:
        yield gateway
        pool.check_integrity()
        assert all(not model.num_leases for model in pool._models.values())
    finally:
        await gateway.close()


class Asking:
    def __init__(self, gateway: Gateway, prompt: str, **fields: Any) -> None:
        self.events: list[Event] = []
        request = Request(
            prompt=prompt, mode=Mode.COMPLETION, max_tokens=6, sampling=SAMPLED, **fields
        )
        self.task = asyncio.create_task(self._ask(gateway, request))

    async def _ask(self, gateway: Gateway, request: Request) -> None:
        async with aclosing(gateway.generate(request)) as events:
            async for event in events:
                self.events.append(event)

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Delta))

    @property
    def started(self) -> list[Started]:
        return [event for event in self.events if isinstance(event, Started)]


async def test_who_waits_is_asked_again_with_the_same_seed(tmp_path: Path) -> None:
    loader = Loader(tmp_path)
    async with gateway_over(loader) as gateway:
        running, waiting = Asking(gateway, "a"), Asking(gateway, "b")
        await until(lambda: running.started and waiting.started)
        await until(lambda: any(each.is_running for each in loader.asked))
        loader.kill()
        with pytest.raises(EngineCrashedError) as crashed:
            await running.task
        assert not isinstance(crashed.value, RequestLostError)
        loader.gate.touch()
        await waiting.task
        assert len(waiting.started) == 1, "it is accepted once"
        assert isinstance(waiting.events[-1], Finished)
        again = Asking(gateway, "b", seed=waiting.started[0].seed)
        await again.task
        assert again.text == waiting.text
        rendered = gateway.render_metrics().decode()
        assert metric(rendered, "llmserve_engine_crashes_total", model="fake") == 1
        assert metric(rendered, "llmserve_requests_total", outcome="engine_crashed") == 1


async def test_embeddings_are_asked_again(tmp_path: Path) -> None:
    loader = Loader(tmp_path)
    async with gateway_over(loader) as gateway:
        async with gateway.engine(None):
            pass
        os.kill(loader.engines[0].pid, signal.SIGSTOP)
        asking = asyncio.create_task(gateway.embed(EmbeddingRequest(("a",))))
        await until(lambda: loader.asked)
        loader.kill()
        assert (await asking).vectors.shape == (1, 4)


async def test_a_file_that_kills_its_loader_ends_in_quarantine(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "tiny.gguf")
    launcher = ProcessLauncher(lambda: 20, aborting.NAME)
    async with gateway_over(EngineLoader(Metrics(), launcher, auto_download=False)) as gateway:
        spec = ModelSpec(name="bad", path=path, context_length=64)
        gateway.config.names["bad"] = spec
        with pytest.raises(ModelQuarantinedError):
            await Asking(gateway, "a", model="bad").task
        model = gateway.pool.look(spec)
        assert (model.state, model.restarts.num_crashes) == (State.QUARANTINED, 3)
        assert "ggml.c:42: GGML_ASSERT(ne[0] > 0) failed" in model.log_lines
        assert "signal 6" in model.crash_message
