"""The process of one model: `python -m llmserve.process.child FD BACKEND NAME`.

`FD` is a socket to the server. The end of the server is the end of this process; signals that are
meant for both of them are the server's to decide about.
"""

import asyncio
import contextlib
import ctypes
import faulthandler
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable
from pathlib import Path

from llmserve.core import Request
from llmserve.engine.engine import LocalEngine
from llmserve.engine.load_spec import LoadSpec
from llmserve.engine.loading import Backend, backend_of, load_engine
from llmserve.errors import LlmserveError, as_llmserve_error
from llmserve.process.channel import ChannelError, Connection
from llmserve.process.messages import (
    METHODS,
    Call,
    Cancel,
    Entered,
    Failure,
    Fault,
    FromChild,
    Generate,
    Hello,
    LogRecord,
    NotLoaded,
    Open,
    Progress,
    Question,
    Ready,
    Reply,
    Result,
    Stop,
    ToChild,
)
from llmserve.telemetry.request_record import RequestRecord, set_current
from llmserve.telemetry.traceback import outline

log = logging.getLogger("llmserve.process.child")  # not __main__

WORKER_FAILED = 70  # the exit code, after a bug of ours that the log has
_OOM_SCORE = 300  # of 1000: as if it took so much more of the machine's memory
_PR_SET_PDEATHSIG = 1
_MAX_LOG_LEN = 16_000  # characters of one record
_PROGRESS_STEP = 0.01


def main() -> None:
    fd, backend = int(sys.argv[1]), sys.argv[2]
    _settle()
    with socket.socket(fileno=fd) as server:
        asyncio.run(_serve(server, backend))


def _settle() -> None:
    """What has to be so before anything can go wrong."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    # A server that is gone closes the socket; a process that is stopped would not see that.
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # of all the weights, at every crash
    faulthandler.enable(all_threads=False)
    # Where memory runs out, the model has to go, not the server.
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError, ValueError):
        score.write_text(str(min(1000, int(score.read_text()) + _OOM_SCORE)))


async def _serve(server: socket.socket, backend: str) -> None:
    child = Child()
    loop = asyncio.get_running_loop()
    await loop.create_unix_connection(lambda: child.connection, sock=server)
    logging.basicConfig(
        handlers=[_ToServer(child, loop)], level=logging.WARNING, format="%(message)s"
    )
    child.greet(backend_of(backend))
    await loop.create_future()  # `os._exit` is the end


class Child:
    """Answers the server. Everything runs on the event loop."""

    def __init__(self) -> None:
        self.connection: Connection[ToChild] = Connection(
            ToChild,  # type: ignore[arg-type]  # a union
            self._receive,
            self._on_lost,
        )
        self._backend: Backend | None = None
        self._engine: LocalEngine | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._stopping: asyncio.Task[None] | None = None
        self._loading: asyncio.Task[None] | None = None

    def greet(self, backend: Backend) -> None:
        self._backend = backend
        self.send(Hello(backend.machine()))

    def send(self, message: FromChild) -> None:
        """Raises `ChannelError`."""
        self.connection.send(message)

    def _receive(self, message: ToChild) -> None:
        match message:
            case Open(spec, log_level):
                logging.getLogger().setLevel(log_level)
                self._loading = asyncio.create_task(self._load(spec))
            case Cancel(request_id):
                if task := self._tasks.get(request_id):
                    task.cancel()
            case Stop():
                self._stopping = asyncio.create_task(self._stop())
            case _:
                task = asyncio.create_task(self._answer(message))
                self._tasks[message.id] = task
                task.add_done_callback(lambda _: self._tasks.pop(message.id, None))

    def _on_lost(self, error: ChannelError | None) -> None:
        os._exit(0 if self._stopping else 1)  # not even Python's own end, which waits for threads

    # -- the model --------------------------------------------------------------------------

    async def _load(self, spec: LoadSpec) -> None:
        assert self._backend
        loop = asyncio.get_running_loop()
        told = 0.0

        def on_progress(fraction: float) -> bool:  # in the thread that loads
            nonlocal told
            if fraction >= told + _PROGRESS_STEP or fraction == 1:
                told = fraction
                loop.call_soon_threadsafe(self.send, Progress(fraction))
            return True

        try:
            self._engine = await load_engine(
                spec,
                self._backend,
                on_progress=on_progress,
                on_step=self.send,
                on_load=self.send,
            )
        except Exception as error:
            if not isinstance(error, LlmserveError):
                log.exception("a bug ended a load")
            self.send(NotLoaded(Fault.of(as_llmserve_error(error))))
        else:
            self.send(Ready(self._engine.info, self._engine.limits))

    async def _stop(self) -> None:
        if self._engine:
            await self._engine.close()
            if self._tasks:
                await asyncio.wait(self._tasks.values())
        self.connection.close()

    def _end_of_worker(self) -> None:
        """The engine will not answer again: as if it had crashed, which the server can handle."""
        self.connection.flush()
        os._exit(WORKER_FAILED)

    # -- requests ---------------------------------------------------------------------------

    async def _answer(self, question: Question) -> None:
        assert self._engine, "asked before it was ready"
        set_current(RequestRecord(""))  # so that `outline` knows what bugs may quote
        try:
            await self._work(self._engine, question)
        except Exception as error:
            if not self._engine.is_alive and not self._stopping:
                self._end_of_worker()
            if not isinstance(error, LlmserveError):
                log.exception("a bug ended a request")
            self.send(Failure(question.id, Fault.of(as_llmserve_error(error))))

    def _work(self, engine: LocalEngine, question: Question) -> Awaitable[None]:
        match question:
            case Generate(request_id, request):
                return self._generate(engine, request_id, request)
            case Call():
                return self._call(engine, question)

    async def _generate(self, engine: LocalEngine, request_id: int, request: Request) -> None:
        stream = engine.generate(request, on_entry=lambda: self.send(Entered(request_id)))
        async with contextlib.aclosing(stream) as events:
            async for event in events:
                self.send(Reply(request_id, event))

    async def _call(self, engine: LocalEngine, call: Call) -> None:
        method = METHODS[call.method]
        result = await getattr(engine, call.method)(**method.arguments(call.args))
        self.send(Result(call.id, method.pack(result)))


def _utf8(text: str) -> str:
    return text.encode(errors="replace").decode()


class _ToServer(logging.Handler):
    """Records go to the server, from any thread."""

    def __init__(self, child: Child, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._child = child
        self._loop = loop

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        exception = outline(error, record.name) if error else ""
        text = record.getMessage()[:_MAX_LOG_LEN]
        message = LogRecord(record.name, record.levelno, _utf8(text), _utf8(exception))
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._child.send, message)


if __name__ == "__main__":
    main()
