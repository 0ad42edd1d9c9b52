"""Real children that load fakes, for tests."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil

from llmserve.core import Event, Mode, Request, SamplingParams, Started
from llmserve.engine.engine import LocalEngine
from llmserve.engine.load_spec import LoadSpec
from llmserve.engine.loading import load_engine
from llmserve.engine.messages import Load, StepStats
from llmserve.engine.runtime import LlamaParams
from llmserve.pool.progress import Progress
from llmserve.process.client import ProcessEngine
from llmserve.process.launcher import ProcessLauncher
from tests.policies import policy
from tests.process import backend
from tests.process.backend import Script

TIMEOUT_S = 60.0
GREEDY = SamplingParams(temperature=0)
ENDLESS = SamplingParams(temperature=0, ignore_eos=True)


def load_spec(path: Path, **keys: Any) -> LoadSpec:
    defaults: dict[str, Any] = {"policy": policy(), "stall_timeout_s": TIMEOUT_S}
    params = LlamaParams(256, max_sequences=16, max_outputs=16)
    return LoadSpec("fake", os.fsencode(path), params, **{**defaults, **keys})


class Seen:
    """What an engine told of itself."""

    def __init__(self) -> None:
        self.steps: list[StepStats] = []
        self.loads: list[Load] = []

    def on_step(self, stats: StepStats) -> None:
        self.steps.append(stats)

    def on_load(self, load: Load) -> None:
        self.loads.append(load)


def launcher() -> ProcessLauncher:
    return ProcessLauncher(lambda: 20, backend.NAME)


async def open_child(path: Path, seen: Seen | None = None, **keys: Any) -> ProcessEngine:
    return await launcher().launch(load_spec(path, **keys), Progress(), seen or Seen())


@contextlib.asynccontextmanager
async def child(
    folder: Path, script: Script | None = None, *, patience_s: float = 0, **keys: Any
) -> AsyncIterator[Any]:
    """A `ProcessEngine`, which is left without a trace of it and of any request.

    With `patience_s` that is how long it may stall once it is loaded.
    """
    engine = await open_child((script or Script()).write(folder / "model"), **keys)
    if patience_s:
        engine._working.timeout_s = engine._preparing.timeout_s = patience_s
    try:
        yield engine
        assert engine._asked == {}
    finally:
        await engine.close()
    assert not engine.is_alive
    assert not is_there(engine.pid)


async def open_thread(folder: Path, script: Script, **keys: Any) -> LocalEngine:
    """The same in this process."""
    path = script.write(folder / "model")
    return await load_engine(
        load_spec(path, **keys),
        backend,
        on_progress=lambda fraction: True,
        on_step=lambda stats: None,
        on_load=lambda load: None,
    )


def is_there(pid: int | None) -> bool:
    """As a process, or as what is left of one that nobody has waited for."""
    return pid is not None and psutil.pid_exists(pid)


def completion(prompt: str, max_tokens: int = 8, **rest: Any) -> Request:
    return Request(
        prompt=prompt, mode=Mode.COMPLETION, max_tokens=max_tokens, **{"sampling": ENDLESS, **rest}
    )


async def collect(stream: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in stream]


class Stream:
    """A generation that goes on by itself."""

    def __init__(self, engine: Any, request: Request) -> None:
        self.events: list[Event] = []
        self.task = asyncio.create_task(self._follow(engine, request))

    async def _follow(self, engine: Any, request: Request) -> None:
        async with contextlib.aclosing(engine.generate(request)) as events:
            async for event in events:
                self.events.append(event)

    @property
    def is_accepted(self) -> bool:
        return any(isinstance(event, Started) for event in self.events)


async def until(condition: Callable[[], object]) -> None:
    """For what another process does."""
    end_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end_s, "timed out"
        await asyncio.sleep(0.005)
