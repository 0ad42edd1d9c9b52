"""A child process, from its start and greeting to its end. Lives on the event loop."""

import asyncio
import contextlib
import contextvars
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from msgspec import Struct

from llmserve.engine.load_spec import Machine
from llmserve.errors import EngineCrashedError, sanitized
from llmserve.process.channel import ChannelError, Connection
from llmserve.process.messages import FromChild, Hello, LogRecord, ToChild

# Proxies' addresses and OpenTelemetry's headers can have passwords in them.
_SECRET = re.compile("KEY|TOKEN|SECRET|PASS|AUTH|CREDENTIAL|PROXY|^OTEL_", re.IGNORECASE)


class Spawned(NamedTuple):
    """A child that has been started, which need not be on an event loop."""

    process: "subprocess.Popen[bytes]"
    socket: socket.socket

    def discard(self) -> None:
        """End it, where it is not wanted any more."""
        self.socket.close()
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


def spawn(name: str, backend: str) -> Spawned:
    """`name` is that of the model, to be seen in the list of processes."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    # -P: what lies in the working directory is nothing to import.
    command = [sys.executable, "-P", "-m", "llmserve.process.child", str(fd), backend, name]
    try:
        with theirs, _blocked(signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process = subprocess.Popen(  # noqa: S603 - our own interpreter
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                pass_fds=(fd,),
                env=_environment() | {"PYTHONPATH": path},
            )
    except BaseException:
        ours.close()
        raise
    return Spawned(process, ours)


def _environment() -> dict[str, str]:
    """Ours, without secrets: what reads the files of others needs none."""
    return {k: v for k, v in os.environ.items() if not _SECRET.search(k)}


@contextlib.contextmanager
def _blocked(*signals: signal.Signals) -> Iterator[None]:
    """A child inherits it: the signals wait there, until it says that it ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


log = logging.getLogger(__name__)

MAX_LINES = 20  # of stderr, that are kept
MAX_LINE_LEN = 400  # characters of each
_HELLO_S = 120.0  # for its greeting; it takes a fraction of a second on an idle machine
_ASSERTION = re.compile(r"([\w-]+\.(?:c|cpp|h|hpp):\d+: .+|what\(\): .+)")  # of ggml, of C++
_EXIT_S = 1.0  # for the end of a process that has closed its socket
_STDERR_S = 0.5  # for its last words, once it is gone


class End(Struct, frozen=True):
    """How it ended."""

    code: int  # the exit code; negative: the signal
    reason: str  # in words
    log_lines: tuple[str, ...]  # its last ones on stderr


class ChildProcess:
    """`on_message` gets what it sends, but for its greeting and its log."""

    def __init__(self, name: str, spawned: Spawned) -> None:
        """`spawned` is this object's from now on; `name` is that of the model, for the log."""
        self.name = name
        self.on_message: Callable[[FromChild], None] = lambda message: None
        loop = asyncio.get_running_loop()
        self._machine: asyncio.Future[Machine] = loop.create_future()
        self.ended: asyncio.Future[End] = loop.create_future()
        self._lost: asyncio.Future[None] = loop.create_future()
        self._kill_reason: str | None = None
        self._connection: Connection[FromChild] = Connection(
            FromChild,  # type: ignore[arg-type]  # a union
            self._receive,
            self._on_lost,
        )
        self._stderr = _Lines(name)
        self._process = spawned.process
        # It outlives the request that wanted the model, and its lines are not about that one.
        self._life = asyncio.create_task(
            self._live(spawned.socket), name=f"child-{name}", context=contextvars.Context()
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: ToChild) -> None:
        """Raises `ChannelError` if it cannot be sent."""
        self._connection.send(message)

    def kill(self, reason: str) -> None:
        """At once. `reason` is what its end is said to be."""
        if not self.ended.done():
            self._kill_reason = self._kill_reason or reason
            self._process.kill()  # does nothing once it was waited for

    async def machine(self) -> Machine:
        """What it makes of this machine. Raises `EngineCrashedError`."""
        await first_of(self._machine, self.ended, timeout_s=_HELLO_S)
        if not self._machine.done():
            self.kill(f"did not start within {_HELLO_S:.0f} s")
            await self.wait()
        if not self._machine.done():
            raise crashed(self.name, self.ended.result(), "while it was starting")
        return self._machine.result()

    async def wait(self, timeout_s: float | None = None) -> End | None:
        """Its end; None if that did not come in time."""
        await asyncio.wait([self.ended], timeout=timeout_s)
        return self.ended.result() if self.ended.done() else None

    async def _live(self, ours: socket.socket) -> None:
        try:
            await self._attend(ours)
            code = await asyncio.to_thread(self._reap)
        finally:
            if self._process.returncode is None:  # the loop is about to be closed
                self._process.kill()
                self._process.wait()
        await asyncio.wait([self._stderr.ended], timeout=_STDERR_S)
        self._stderr.close()
        reason = self._kill_reason or describe_exit(code, self._stderr.kept)
        self.ended.set_result(End(code, reason, tuple(self._stderr.kept)))

    async def _attend(self, ours: socket.socket) -> None:
        """Be there for it until it closes its socket."""
        loop = asyncio.get_running_loop()
        assert self._process.stdout
        await loop.connect_read_pipe(lambda: self._stderr, self._process.stdout)
        await loop.create_unix_connection(lambda: self._connection, sock=ours)
        await self._lost

    def _reap(self) -> int:
        try:
            return self._process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _on_lost(self, error: ChannelError | None) -> None:
        if error:
            self.kill(f"sent an invalid message ({error})")
        if not self._lost.done():
            self._lost.set_result(None)

    def _receive(self, message: FromChild) -> None:
        match message:
            case Hello(machine):
                if not self._machine.done():
                    self._machine.set_result(machine)
            case LogRecord(logger, level, text, exception):
                extra = {"fields": {"exception": exception}} if exception else None
                logging.getLogger(logger).log(level, "%s: %s", self.name, text, extra=extra)
            case _:
                self.on_message(message)


class _Lines(asyncio.Protocol):
    """What the child writes, line by line: logged, and the last lines kept."""

    def __init__(self, name: str) -> None:
        self.kept: deque[str] = deque(maxlen=MAX_LINES)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._name = name
        self._rest = b""
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def close(self) -> None:
        if self._transport:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:MAX_LINE_LEN]
        for line in lines:
            self._take(line)

    def connection_lost(self, error: Exception | None) -> None:
        self._take(self._rest)
        self.ended.set_result(None)

    def _take(self, line: bytes) -> None:
        if text := line[:MAX_LINE_LEN].decode(errors="replace").strip():
            self.kept.append(text)
            log.warning("%s: %s", self._name, text)


async def first_of(*futures: "asyncio.Future[Any]", timeout_s: float | None = None) -> None:
    """Returns when one of them is done. To be cancelled cancels none."""
    await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)


def crashed(name: str, end: End, when: str = "") -> EngineCrashedError:
    """What the requests that the child was working for are told."""
    message = f"the process of model {name!r} {end.reason}" + (f" {when}" if when else "")
    error = EngineCrashedError(message, retry_after_s=1)
    error.log_lines = end.log_lines
    return error


def describe_exit(code: int, lines: Iterable[str] = ()) -> str:
    """What the exit code of a process, and its last lines, say about its end."""
    if code >= 0:
        return f"ended with exit code {code}"
    known = {
        signal.SIGKILL: "out of memory?",
        signal.SIGSEGV: "a fault in native code",
        signal.SIGBUS: "its file was cut, or a fault in native code",
        signal.SIGILL: "built for another CPU?",
        signal.SIGABRT: _assertion_in(lines) or "it gave up by itself",
    }
    hint = f" ({known[signal.Signals(-code)]})" if -code in known else ""
    return f"was killed by signal {-code}{hint}"


def _assertion_in(lines: Iterable[str]) -> str:
    """What native code says before it gives up, without the path of its source."""
    found = (_ASSERTION.search(line) for line in lines)
    return next((sanitized(match[1]) for match in found if match), "")
