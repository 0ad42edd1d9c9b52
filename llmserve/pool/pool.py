"""The loaded models. Everything here runs on the event loop, so the state has one writer.

A model is loaded when it is first wanted, and requests that want it meanwhile join that load.
Loads are admitted to memory in the order they were asked for; two that fit load side by side.
Invariants (`check_integrity`):

- all that is resident or being loaded fits the budget that its admission saw
- a model that is leased or waited for is never evicted; a draining one gives no new leases, so
  that requests for one model cannot starve the load of another
"""

import asyncio
import contextlib
import contextvars
import copy
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Protocol

from llmserve.config.schema import ModelSpec
from llmserve.engine.interface import Crash, Engine
from llmserve.errors import (
    EngineCrashedError,
    LlmserveError,
    ModelBusyError,
    RequestLostError,
    shutting_down,
)
from llmserve.hub.locate import stamp
from llmserve.pool.admission import AbandonedError, MemoryAdmission
from llmserve.pool.changes import Changes
from llmserve.pool.errors import as_unavailable, quarantined, still_loading
from llmserve.pool.load_plan import LoadPlan
from llmserve.pool.model import Model, State
from llmserve.pool.progress import FIRST_LINE_S, Progress, told

log = logging.getLogger(__name__)


class Loader(Protocol):
    """How models come to be: `pool/loader.py` with llama.cpp, fakes in tests."""

    async def plan(self, spec: ModelSpec, budget_bytes: int, progress: Progress) -> LoadPlan:
        """How to load `spec` if it had all of the budget. Raises `LlmserveError`.

        May be cancelled, and then returns at once.
        """

    def drop(self, spec: ModelSpec) -> None:
        """What was planned is not going to be loaded. Fine if nothing was planned."""

    async def load(self, spec: ModelSpec, plan: LoadPlan, progress: Progress) -> Engine:
        """A ready engine. Raises `LlmserveError`."""


class Pool:
    """Spec -> engine, within a memory budget.

    `budget_bytes(resident_bytes)` is asked anew for every admission, as other processes take
    memory too; its argument is how much of what is in use is the pool's own.
    """

    def __init__(
        self,
        loader: Loader,
        *,
        budget_bytes: Callable[[int], int],
        load_wait_s: float,
        give_back: Callable[[], None] = lambda: None,
        count_crash: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`give_back` is called when an engine was closed and forgotten, `count_crash` with the
        name of a model whose process has died.
        """
        self._loader = loader
        self._load_wait_s = load_wait_s
        self._give_back = give_back
        self._count_crash = count_crash
        self._models: dict[ModelSpec, Model] = {}
        self._memory = MemoryAdmission(budget_bytes, self._models.values)
        self._changes = Changes()
        self._is_closed = False
        self._preloading: set[asyncio.Task[None]] = set()  # held, or they could be collected

    # -- for requests and commands ----------------------------------------------------------

    @asynccontextmanager
    async def lease(self, spec: ModelSpec) -> AsyncIterator[Engine]:
        """A ready engine, for the time of the block.

        Raises `ModelLoadingError` after `load_wait_s`, and whatever ended the load.
        """
        deadline_s = time.monotonic() + self._load_wait_s
        model = await self._enterable(spec, deadline_s)
        model.num_leases += 1
        try:
            engine = await self._loaded(model, deadline_s)
            model.last_used_s = time.time()
            try:
                yield engine
            finally:
                model.last_used_s = time.time()
        finally:
            model.num_leases -= 1
            self._on_change()

    def preload(self, spec: ModelSpec) -> None:
        """Start loading without waiting; a failure is logged, and raised for the next lease."""
        task = asyncio.create_task(self._preload(spec), name=f"preload-{spec.name}")
        self._preloading.add(task)
        task.add_done_callback(self._preloading.discard)

    async def _preload(self, spec: ModelSpec) -> None:
        with contextlib.suppress(LlmserveError):
            async with self.lease(spec):
                pass

    async def unload(self, spec: ModelSpec) -> None:
        """Give the model's memory back. Raises `ModelBusyError` while it is needed."""
        model = self._model(spec)
        if model.num_leases or model.state is State.LOADING:
            doing = f"answering {model.num_leases} requests" if model.num_leases else "loading"
            raise ModelBusyError(f"model {spec.name!r} is {doing}; try again later")
        if model.state is State.READY:
            self._start_unload(model)
        if model.task:
            await asyncio.wait([model.task])

    def retain(self, specs: Collection[ModelSpec]) -> None:
        """Part with every other model: at once if idle, else when its requests are done."""
        for model in self._models.values():
            model.is_retired = model.spec not in specs
        self._on_change()

    def look(self, spec: ModelSpec) -> Model:
        """The model's state, to be read only."""
        return self._models.get(spec) or Model(spec)

    async def close(self) -> None:
        """End every load and every engine; requests under way end as cancelled."""
        self._is_closed = True
        for model in self._models.values():
            model.progress.cancel()
            if model.task and not model.is_admitted:
                model.task.cancel()  # it waits for a download or for memory
        self._memory.clear()
        self._on_change()
        while tasks := [m.task for m in self._models.values() if m.task]:
            await asyncio.wait(tasks)

    # -- loading ----------------------------------------------------------------------------

    def _model(self, spec: ModelSpec) -> Model:
        return self._models.setdefault(spec, Model(spec))

    async def _enterable(self, spec: ModelSpec, deadline_s: float) -> Model:
        """The model, once it is on its way neither out of memory nor about to be."""
        while True:
            if self._is_closed:
                raise shutting_down()
            model = self._model(spec)
            if model.engine and not model.engine.is_alive and model.state is State.READY:
                self._start_unload(model)
            if model.state is State.QUARANTINED:
                if await asyncio.to_thread(stamp, spec) != model.file_stamp:
                    model.forgive()
                if model is not self._model(spec):  # it has left the config meanwhile
                    continue
            if not model.is_draining and model.state is not State.UNLOADING:
                return model
            await self._changes.next(deadline_s - time.monotonic())
            if time.monotonic() >= deadline_s:
                raise still_loading(model, time.monotonic())

    async def _loaded(self, model: Model, deadline_s: float) -> Engine:
        """Join the load under way, or start one. The caller holds a lease."""
        if model.idle_timer:
            model.idle_timer.cancel()
            model.idle_timer = None
        if model.state in (State.COLD, State.FAILED):
            self._start_load(model)
        while model.state is State.LOADING:  # more than once, if its process dies at once
            assert model.task
            left_s = max(0, deadline_s - time.monotonic())
            done, _ = await asyncio.wait([model.task], timeout=left_s)
            if not done:
                raise still_loading(model, time.monotonic())
        if model.error:
            raise copy.copy(model.error)  # many may raise it, each with its own traceback
        if model.engine is None:  # its process was dead before it could be used
            raise RequestLostError(model.crash_message, retry_after_s=1)
        return model.engine

    def _start_load(self, model: Model) -> None:
        model.state = State.LOADING
        model.error = None
        model.progress = Progress()
        model.task = asyncio.create_task(self._load(model), name=f"load-{model.spec.name}")

    async def _load(self, model: Model) -> None:
        spec = model.spec
        begin_s = time.monotonic()
        try:
            with told(spec.name, model.progress, FIRST_LINE_S):
                model.engine = await self._made_engine(model)
        except AbandonedError:
            model.state = State.COLD
        except (Exception, asyncio.CancelledError) as error:
            model.error = shutting_down() if self._is_closed else as_unavailable(error)
            model.state = State.FAILED
            if model.restarts.is_over and not self._is_closed:
                model.quarantine(quarantined(model), stamp(spec))
            model.is_admitted = False
            level = logging.INFO if self._is_closed else logging.ERROR
            log.log(level, "cannot load %s: %s", spec.name, model.error.message)
        else:
            model.state = State.READY
            model.last_used_s = time.time()
            log.info("%s is ready after %.1f s", spec.name, time.monotonic() - begin_s)
        model.task = None
        if model.engine:
            model.engine.watch(lambda crash: self._on_crash(model, crash))
        self._on_change()

    async def _made_engine(self, model: Model) -> Engine:
        """As `_make_engine`, again and again while its process dies, as far as that is of use."""
        while True:
            while (pause_s := model.restarts.not_before_s - time.monotonic()) > 0:
                model.progress.begin("waiting after a crash")
                await self._changes.next(pause_s)
            try:
                return await self._make_engine(model)
            except EngineCrashedError as error:
                model.is_admitted = False
                model.note_crash(Crash(error.message, error.log_lines))
                self._count_crash(model.spec.name)
                if model.restarts.is_over or self._is_closed or not model.num_leases:
                    raise
            finally:
                self._loader.drop(model.spec)

    async def _make_engine(self, model: Model) -> Engine:
        spec, progress = model.spec, model.progress
        model.plan = await self._loader.plan(spec, self._memory.largest_bytes, progress)
        progress.begin("waiting for memory")
        if self._is_closed:
            raise shutting_down()
        admission = self._memory.join(model)
        self._on_change()
        await admission
        log.info("loading %s from %s: %s", spec.name, spec.source, model.plan)
        progress.begin("loading")
        return await self._loader.load(spec, model.plan, progress)

    # -- unloading --------------------------------------------------------------------------

    def _start_unload(self, model: Model) -> None:
        model.state = State.UNLOADING
        model.task = asyncio.create_task(self._unload(model), name=f"unload-{model.spec.name}")

    async def _unload(self, model: Model) -> None:
        assert model.engine
        await model.engine.close()
        log.info("unloaded %s", model.spec.name)
        model.engine = None
        self._give_back()
        model.state = State.COLD
        model.is_admitted = False
        model.task = None
        if model.restarts.is_over and not self._is_closed:
            model.quarantine(quarantined(model), stamp(model.spec))
        elif model.is_wanted_after_crash:
            self.preload(model.spec)
        model.is_wanted_after_crash = False
        self._on_change()

    # -- crashing ---------------------------------------------------------------------------

    def _on_crash(self, model: Model, crash: Crash) -> None:
        """Its process has died. Requests that wait for it load it again, as do those to come."""
        model.note_crash(crash)
        self._count_crash(model.spec.name)
        if model.state is State.READY:
            model.is_wanted_after_crash = bool(model.num_leases) or model.spec.pinned
            self._start_unload(model)

    def forgive(self, spec: ModelSpec) -> None:
        """Let a model whose process has died be tried again at once, also out of quarantine."""
        self._model(spec).forgive()
        self._on_change()

    # -- deciding ---------------------------------------------------------------------------

    def _on_change(self) -> None:
        """Act on the new state, and wake all that waits for one."""
        for idle in self._memory.admit():
            self._start_unload(idle)
        for model in list(self._models.values()):
            self._settle(model)
        self._changes.notify()

    def _settle(self, model: Model) -> None:
        """What an unused model does next: leave, be forgotten, or count down to leaving."""
        if self._is_closed and model.state is State.READY:
            self._start_unload(model)
        if model.num_leases:
            return
        if model.state is State.READY and model.is_retired:
            self._start_unload(model)
        elif model.state in (State.COLD, State.FAILED, State.QUARANTINED) and model.is_retired:
            del self._models[model.spec]
        elif model.state is State.READY and model.keep_alive_s and not model.idle_timer:
            loop = asyncio.get_running_loop()
            model.idle_timer = loop.call_later(
                model.keep_alive_s, self._on_idle, model, context=contextvars.Context()
            )

    def _on_idle(self, model: Model) -> None:
        model.idle_timer = None
        if model.state is State.READY and not model.num_leases:
            log.info("%s was idle for %.0f s", model.spec.name, model.keep_alive_s)
            self._start_unload(model)

    # -- accounting -------------------------------------------------------------------------

    @property
    def budget_bytes(self) -> int:
        """The most that all models together may take now."""
        return self._memory.budget_bytes

    @property
    def resident_bytes(self) -> int:
        """What all admitted models take, by estimate."""
        return self._memory.resident_bytes

    def check_integrity(self) -> None:
        """Assert the invariants; for tests."""
        for model in self._models.values():
            model.check_integrity()
        self._memory.check_integrity()
