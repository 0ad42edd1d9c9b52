"""An event loop in a thread of its own, on which the engine runs. Any thread may give it work.

The thread is a daemon: a program that ends without `close` does not wait for it, and the processes
of its models end with it. Invariant: what `submit` took gets a result, also if `close` comes first.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from llmserve.errors import ShuttingDownError, UnavailableError
from llmserve.gateway import Gateway

T = TypeVar("T")


class Background:
    """Owns the gateway that `build` makes, there: a model's process ends with its thread."""

    def __init__(self, build: Callable[[], Gateway]) -> None:
        """Raises what `build` does."""
        self._pid = os.getpid()
        self._lock = threading.RLock()  # re-entered, where a collection finds another one to end
        self._is_closed = False
        self._running: set[asyncio.Task[Any]] = set()
        self._cut_short: set[asyncio.Task[Any]] = set()  # by `close`, not by the caller
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        built: Future[Gateway] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(build, built), name="llmserve", daemon=True
        )
        self._thread.start()
        self.gateway = built.result()

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Its result, in time; to cancel it cancels the work. Raises once `close` was called."""
        if self._is_forked:
            work.close()
            raise _forked(self._pid)
        with self._lock:  # nothing is scheduled behind the end
            if not self._is_closed:
                return asyncio.run_coroutine_threadsafe(self._ended(work), self._loop)
        work.close()
        raise _closed()

    def result(self, work: Coroutine[Any, Any, T]) -> T:
        """Waits for it. An interrupt cancels the work."""
        future = self.submit(work)
        try:
            return future.result()
        finally:
            future.cancel()  # does nothing to what has ended

    async def aresult(self, work: Coroutine[Any, Any, T]) -> T:
        """As `result`, on the event loop of the caller."""
        return await asyncio.wrap_future(self.submit(work))

    def start_closing(self) -> None:
        """End what runs, with an error, and then the gateway and the thread. Does not wait."""
        if self._is_forked:
            return
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._loop.call_soon_threadsafe(self._closing.set)

    def close(self) -> None:
        self.start_closing()
        if not self._is_forked:
            self._thread.join()

    async def aclose(self) -> None:
        self.start_closing()
        await asyncio.to_thread(self.close)

    @property
    def _is_forked(self) -> bool:
        """Whether this is a copy, without the thread, and with the lock as it was just then."""
        return self._pid != os.getpid()

    async def _ended(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        assert task
        self._running.add(task)
        try:
            return await work
        except asyncio.CancelledError:
            if task in self._cut_short:
                raise _closed() from None
            raise
        finally:
            self._running.discard(task)

    def _run(self, build: Callable[[], Gateway], built: "Future[Gateway]") -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(build, built))

    async def _serve(self, build: Callable[[], Gateway], built: "Future[Gateway]") -> None:
        try:
            gateway = build()
        except BaseException as error:
            built.set_exception(error)
            return
        built.set_result(gateway)
        # Whatever was submitted before has begun when this returns: the loop keeps the order.
        await self._closing.wait()
        self._cut_short = set(self._running)
        for task in self._cut_short:
            task.cancel()
        await asyncio.gather(*self._cut_short, return_exceptions=True)
        await gateway.close()


def _closed() -> ShuttingDownError:
    return ShuttingDownError("this LLM was closed; make a new one")


def _forked(pid: int) -> UnavailableError:
    return UnavailableError(
        f"this LLM belongs to process {pid}, of which process {os.getpid()} is a fork; make one in"
        " each process, or start processes with the method 'spawn'"
    )
