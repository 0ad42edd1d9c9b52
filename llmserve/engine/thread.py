"""The one thread of a loaded model."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class ModelThread:
    """Runs what it is given, in order, until `shutdown`.

    A model is loaded and computed with by the same thread, because OpenMP keeps a team of threads
    for every thread that computes: with a second team in the process it has more threads than
    cores and stops spinning at barriers, which makes decoding 3 times slower. It is a daemon, which
    an executor's threads are not: a process that is told to leave at once does not wait for a load.
    """

    def __init__(self, name: str, *, stack_bytes: int = 0) -> None:
        """`stack_bytes` 0 is the system's default."""
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        # The size is the process's; a thread that starts elsewhere just now gets it too, and only
        # touched pages of a stack are memory.
        default = threading.stack_size(stack_bytes)
        try:
            self._thread.start()
        finally:
            threading.stack_size(default)

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def call() -> None:
            if not future.set_running_or_notify_cancel():
                return  # cancelled while it was in the queue; from now on it cannot be
            try:
                future.set_result(function(*args, **kwargs))
            except BaseException as error:  # whatever it is, the thread serves the next call
                future.set_exception(error)

        self._calls.put(call)
        return future

    def shutdown(self) -> None:
        """End the thread once it has done what was submitted. Does not wait."""
        self._calls.put(None)

    def join(self) -> None:
        """Wait for the end of the thread, after `shutdown`."""
        self._thread.join()

    def _run(self) -> None:
        while call := self._calls.get():
            call()
