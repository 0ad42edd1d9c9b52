"""Load spec -> a running model: in a process of its own, or in threads of the server."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from llmserve.engine.interface import Engine
from llmserve.engine.load_spec import BACKEND, LoadProgress, LoadSpec, Machine
from llmserve.engine.messages import EngineObserver
from llmserve.machine.memory import read_bytes
from llmserve.process.child_process import ChildProcess, Spawned, crashed, first_of, spawn
from llmserve.process.client import ProcessEngine
from llmserve.process.messages import FromChild, NotLoaded, Open, Progress, Ready
from llmserve.process.watchdog import Watchdog

if TYPE_CHECKING:
    from llmserve.engine.engine import LocalEngine
    from llmserve.engine.loading import Backend

OVERHEAD_BYTES = 40_000_000  # of a process, beside the model: its interpreter and modules


class Launcher(Protocol):
    """Where models live."""

    overhead_bytes: int  # what each model takes there, beside itself

    async def machine(self, name: str) -> Machine:
        """What the backend makes of this machine. `name` is the model that will be launched."""

    def drop(self, name: str) -> None:
        """Nothing will come of `machine(name)`. Fine if it was not asked."""

    async def launch(
        self, spec: LoadSpec, progress: LoadProgress, observer: EngineObserver
    ) -> Engine:
        """Raises `ModelFileError`, `EngineError` or `EngineCrashedError`. May be cancelled."""


class ProcessLauncher:
    """Implements `Launcher`."""

    overhead_bytes = OVERHEAD_BYTES

    def __init__(self, log_level: Callable[[], int], backend: str = BACKEND) -> None:
        """`log_level()` is the lowest level of records that are of use here."""
        self._log_level = log_level
        self._backend = backend
        self._machine: Machine | None = None
        self._started: dict[str, Spawned] = {}
        self._spares: dict[str, ChildProcess] = {}  # that have been asked about the machine

    def start(self, name: str) -> None:
        """Let the process of a model start that is going to be launched soon."""
        self._started[name] = spawn(name, self._backend)

    async def machine(self, name: str) -> Machine:
        """Of the first child, which waits for its load spec. Raises `EngineCrashedError`."""
        if self._machine is None:
            if name not in self._spares:
                self._spares[name] = self._child(name)
            self._machine = await self._spares[name].machine()
        return self._machine

    def drop(self, name: str) -> None:
        """There will be no load spec for `name`. Fine if nothing was asked."""
        if spare := self._spares.pop(name, None):
            spare.kill("was not needed")
        if name in self._started:
            self._started.pop(name).discard()

    def _child(self, name: str) -> ChildProcess:
        spawned = self._started.pop(name) if name in self._started else spawn(name, self._backend)
        return ChildProcess(name, spawned)

    async def launch(
        self, spec: LoadSpec, progress: LoadProgress, observer: EngineObserver
    ) -> ProcessEngine:
        """Raises `ModelFileError`, `EngineError`, or `EngineCrashedError`. May be cancelled."""
        process = self._spares.pop(spec.name, None) or self._child(spec.name)
        try:
            process.send(Open(spec, self._log_level()))
            ready = await _loaded(process, progress, spec.stall_timeout_s)
        except BaseException:
            process.kill("was told to give up")
            await process.wait()
            raise
        return ProcessEngine(
            process,
            ready,
            stall_timeout_s=spec.stall_timeout_s,
            on_step=observer.on_step,
            on_load=observer.on_load,
        )


async def _loaded(process: ChildProcess, progress: LoadProgress, stall_timeout_s: float) -> Ready:
    outcome: asyncio.Future[Ready | NotLoaded] = asyncio.get_running_loop().create_future()

    def receive(message: FromChild) -> None:
        match message:
            case Progress(fraction):
                watchdog.sign()
                progress.update(fraction)
            case Ready() | NotLoaded() if not outcome.done():
                outcome.set_result(message)

    def on_stall() -> None:
        process.kill(f"made no progress for {stall_timeout_s:g} s (stall_timeout): killed")

    watchdog = Watchdog(stall_timeout_s, on_stall, _reads_of(process.pid))
    process.on_message = receive
    progress.on_cancel = lambda: process.kill("was told to give up")
    if progress.is_cancelled:
        progress.on_cancel()
    try:
        await process.machine()  # until then it has its own time
        watchdog.begin()
        await first_of(outcome, process.ended)
    finally:
        watchdog.close()
        progress.on_cancel = lambda: None
    if not outcome.done():
        raise crashed(process.name, process.ended.result(), "while it was loading")
    result = outcome.result()
    if isinstance(result, NotLoaded):
        raise result.fault.error()
    return result


def _reads_of(pid: int) -> Callable[[], bool]:
    """Whether the process has read from disk since it was asked last.

    llama.cpp says nothing while the system reads a mapped file, which can take minutes.
    """
    last = -1

    def has_read() -> bool:
        nonlocal last
        before = last
        now = read_bytes(pid)
        last = last if now is None else now
        return last != before

    has_read()
    return has_read


class ThreadLauncher:
    """Implements `Launcher`."""

    overhead_bytes = 0

    def __init__(self, backend: str = BACKEND) -> None:
        self._backend = backend

    async def machine(self, name: str) -> Machine:
        return await asyncio.to_thread(lambda: self._load_backend().machine())

    def drop(self, name: str) -> None:
        """Nothing was begun."""

    async def launch(
        self, spec: LoadSpec, progress: LoadProgress, observer: EngineObserver
    ) -> "LocalEngine":
        """Raises `ModelFileError` or `EngineError`. A thread cannot be ended when it stalls."""
        from llmserve.engine.loading import load_engine

        return await load_engine(
            spec,
            self._load_backend(),
            on_progress=progress.update,
            on_step=observer.on_step,
            on_load=observer.on_load,
        )

    def _load_backend(self) -> "Backend":
        # Imported when first needed: a server without a loaded model stays small.
        from llmserve.engine.loading import backend_of

        return backend_of(self._backend)
