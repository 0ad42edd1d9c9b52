"""Real servers for tests: the application over fakes in a thread, and the whole process."""

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import msgspec

import llmserve
from llmserve.api.server import Server, listen
from llmserve.auth.keyring import Keyring
from llmserve.config.load import load_config
from llmserve.config.schema import Config, ModelSpec, ServerConfig
from llmserve.engine.engine import LocalEngine
from llmserve.gateway import Gateway
from llmserve.pool.load_plan import LoadPlan
from llmserve.pool.loader import EngineMetrics, policy
from llmserve.pool.model import State
from llmserve.pool.pool import Pool
from llmserve.pool.progress import Progress
from llmserve.remote.protocol import Bounds
from llmserve.remote.remotes import Remotes
from llmserve.telemetry.metrics import Metrics
from llmserve.telemetry.tracing import Tracing
from tests.fakes import FakeRuntime, ScriptedRuntime

T = TypeVar("T")

TIMEOUT_S = 60.0  # for anything that should happen at once; a hang ends here


def wait_until(
    condition: Callable[[], object], what: str = "", *, timeout_s: float = TIMEOUT_S
) -> None:
    """Return when `condition()` is true. For what other threads and processes do."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, f"timed out waiting for {what or condition}"
        time.sleep(0.005)


def http_client(base_url: str) -> httpx2.Client:
    # Without verify=False each client reads the certificates of the world, for 40 ms.
    return httpx2.Client(base_url=base_url, timeout=TIMEOUT_S, verify=False, trust_env=False)


# -- requests ------------------------------------------------------------------------------------


def raw_request(method: str, path: str, body: bytes = b"", headers: str = "") -> bytes:
    """The bytes of one HTTP/1.1 request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    return (head + headers + "\r\n").encode() + body


def raw_inference(body: Mapping[str, Any], path: str = "/inference") -> bytes:
    return raw_request("POST", path, msgspec.json.encode(body))


@dataclass
class RawAnswer:
    """One answer as it came over a connection."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        body = msgspec.json.decode(self.body)
        assert list(body) == ["error"]
        return dict(body["error"])


def read_to_end(connection: socket.socket) -> bytes:
    """What comes until the other side closes, or resets because it did not read everything."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            data += part
    return data


def drip(connection: socket.socket, part: bytes) -> bytes:
    """Send `part` now and then, until there is an answer; then the connection is patient again."""
    connection.settimeout(0.02)
    for _ in range(int(TIMEOUT_S / 0.02)):
        with contextlib.suppress(TimeoutError):
            answer = connection.recv(65536)
            connection.settimeout(TIMEOUT_S)
            return answer
        connection.sendall(part)
    raise AssertionError("never cut")


def read_answer(connection: socket.socket) -> RawAnswer:
    """One whole answer with a Content-Length, on a connection that stays."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _receive(connection)
    answer = parse_answer(data)
    while len(answer.body) < int(answer.headers["content-length"]):
        answer.body += _receive(connection)
    return answer


def _receive(connection: socket.socket) -> bytes:
    part = connection.recv(65536)
    assert part, "closed"
    return part


def parse_answer(data: bytes) -> RawAnswer:
    head, separator, body = data.partition(b"\r\n\r\n")
    assert separator, data
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return RawAnswer(int(first.split()[1]), headers, body)


def sse_events(text: str) -> list[Any]:
    """The decoded `data:` of every event; comments are left out."""
    assert text.endswith("\n\n")
    parts = [part for part in text.split("\n\n") if part and not part.startswith(":")]
    assert all(part.startswith("data: ") and "\n" not in part for part in parts), text
    return [msgspec.json.decode(part.removeprefix("data: ")) for part in parts]


def metric(text: str, name: str, **labels: str) -> float:
    """The sum of the samples of `name` with (at least) `labels`; 0 if there is none."""
    total = 0.0
    for line in text.splitlines():
        match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if match and match[1] == name:
            found = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""))
            if labels.items() <= found.items():
                total += float(match[3])
    return total


# -- the application over FakeRuntime, in a thread -----------------------------------------------


def make_config(
    server: Mapping[str, Any] | None = None, models: Mapping[str, Mapping[str, Any]] | None = None
) -> Config:
    """A `Config` as `load_config` would make it, without files."""
    tables = models or {"fake": {"aliases": ("default",)}}
    specs = tuple(
        ModelSpec(name=name, path=None if "remote" in t else Path("none.gguf"), **t)
        for name, t in tables.items()
    )
    names = {word: spec for spec in specs for word in (spec.name, *spec.aliases)}
    return Config(Path("models.toml"), ServerConfig(port=0, **(server or {})), specs, names)


@dataclass
class FakeService:
    """A running server over `FakeRuntime`s. With a `gate`, each release lets one step pass."""

    config: Config
    runtime_options: dict[str, Any]
    gate: threading.Semaphore | None
    load_gate: threading.Event  # loads wait for it
    load_error: Exception | None
    environment: Mapping[str, str]  # keys of providers
    keyring: Keyring | None
    bounds: Bounds | None  # of remote answers
    tracing: Tracing | None
    metrics: Metrics = field(default_factory=Metrics)
    runtimes: dict[str, FakeRuntime] = field(default_factory=dict)
    engines: dict[str, LocalEngine] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)  # what was logged, or left over at the end
    num_expected_errors: int = 0
    base_url: str = ""
    port: int = 0
    loop: asyncio.AbstractEventLoop | None = None
    server: Server | None = None

    def __post_init__(self) -> None:
        pool = Pool(
            self, budget_bytes=lambda resident: 1 << 30, load_wait_s=self.config.server.load_wait_s
        )
        remotes = Remotes(self.environment, self.metrics, self.bounds)
        self.gateway = Gateway(
            self.config,
            pool,
            remotes,
            self.metrics,
            keyring=self.keyring,
            tracing=self.tracing,
        )

    async def plan(self, spec: ModelSpec, budget_bytes: int, progress: Progress) -> LoadPlan:
        return LoadPlan(context_length=4096, max_sequences=4, size_bytes=1000)

    def drop(self, spec: ModelSpec) -> None:
        pass

    async def load(self, spec: ModelSpec, plan: LoadPlan, progress: Progress) -> LocalEngine:
        await asyncio.to_thread(self.load_gate.wait)
        if self.load_error:
            raise self.load_error
        kind = ScriptedRuntime if "answer" in self.runtime_options else FakeRuntime
        runtime = self.runtimes[spec.name] = kind(gate=self.gate, **self.runtime_options)
        observer = EngineMetrics(spec.name, self.metrics)
        engine = self.engines[spec.name] = LocalEngine(
            spec.name,
            runtime,
            policy=policy(spec),
            default_mode=spec.default_mode,
            on_step=observer.on_step,
            on_load=observer.on_load,
        )
        return engine

    @property
    def runtime(self) -> FakeRuntime:
        return self.runtimes[self.config.default.name]

    @property
    def state(self) -> State:
        return self.gateway.pool.look(self.config.default).state

    @property
    def num_running(self) -> int:
        """Slots with cells."""
        return sum(bool(cells) for cells in self.runtime.cells)

    @property
    def num_connections(self) -> int:
        assert self.server
        return len(self.server.server_state.connections)

    @property
    def num_waiting(self) -> int:
        """Connections that the server waits for."""
        assert self.server
        return len(self.server.admission)

    @property
    def num_answers(self) -> int:
        assert self.server
        return self.server.server_state.total_requests

    def metric(self, name: str, **labels: str) -> float:
        return metric(self.metrics.render().decode(), name, **labels)

    def step(self, num_steps: int = 1) -> None:
        assert self.gate
        self.gate.release(num_steps)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of `coroutine` in the server's event loop."""
        assert self.loop
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(TIMEOUT_S)

    def client(self) -> httpx2.Client:
        return http_client(self.base_url)

    def post(self, body: Any, path: str = "/inference") -> httpx2.Response:
        with self.client() as client:
            return client.post(path, json=body)

    def get(self, path: str) -> httpx2.Response:
        with self.client() as client:
            return client.get(path)

    def connect(self, data: bytes = b"") -> socket.socket:
        """A bare connection, for clients that do not behave."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S)
        connection.sendall(data)
        return connection

    def wait_idle(self) -> None:
        """Until nobody is served and every slot is free."""
        wait_until(lambda: self.gateway.num_active == 0, "the gateway to be idle")
        wait_until(lambda: self.num_running == 0, "the slots to be free")


class _ThreadServer(Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals belong to the main thread


class _ErrorLog(logging.Handler):
    """Warnings and errors go to the service that was started last: one may be shared by a module
    while a test has its own."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.services: list[FakeService] = []

    def emit(self, record: logging.LogRecord) -> None:
        if self.services:
            self.services[-1].errors.append(logging.Formatter().format(record))


_error_log = _ErrorLog()
logging.getLogger().addHandler(_error_log)


@contextlib.contextmanager
def fake_service(
    *,
    server: Mapping[str, Any] | None = None,
    models: Mapping[str, Mapping[str, Any]] | None = None,
    config_path: Path | None = None,
    gated: bool = False,
    loaded: bool = True,
    load_error: Exception | None = None,
    environment: Mapping[str, str] | None = None,
    keyring: Keyring | None = None,
    bounds: Bounds | None = None,
    tracing: Tracing | None = None,
    send_buffer_bytes: int | None = None,
    **runtime_options: Any,
) -> Iterator[FakeService]:
    """Serve until the block ends, then check that nothing was left over and nothing went wrong.

    The config is read from `config_path`, or else made of the tables `server` and `models`.
    `loaded=False` holds the load until `load_gate` is set.
    """
    service = FakeService(
        load_config(config_path) if config_path else make_config(server, models),
        {"num_cells": 4096, "num_slots": 4, "max_batch": 64, **runtime_options},
        gate=threading.Semaphore(0) if gated else None,
        load_gate=threading.Event(),
        load_error=load_error,
        environment=environment or {},
        keyring=keyring,
        bounds=bounds,
        tracing=tracing,
    )
    listener = listen("127.0.0.1", 0)
    if send_buffer_bytes:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    service.port = listener.getsockname()[1]
    service.base_url = f"http://127.0.0.1:{service.port}"
    uvicorn_server = service.server = _ThreadServer(service.gateway, listener)
    thread = threading.Thread(target=_run, args=(uvicorn_server, service))
    _error_log.services.append(service)
    thread.start()
    try:
        if loaded:
            service.load_gate.set()
        if loaded and not load_error and not service.config.default.remote:
            wait_until(lambda: service.state is State.READY, "the fake model to be ready")
        yield service
    finally:
        service.load_gate.set()
        uvicorn_server.should_exit = True
        thread.join(TIMEOUT_S)
        _error_log.services.remove(service)
    assert not thread.is_alive(), "the server does not end"
    assert len(service.errors) == service.num_expected_errors, "\n".join(service.errors)


def _run(server: Server, service: FakeService) -> None:
    errors = service.errors

    async def main() -> None:
        loop = service.loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(repr(context)))
        await server.serve()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        errors.extend(f"left over: {task}" for task in left)

    asyncio.run(main())


def command_environment() -> dict[str, str]:
    """For `python -m llmserve` from any directory, without what the caller has set for it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LLMSERVE")}
    return environment | {"PYTHONPATH": str(Path(llmserve.__file__).parents[1])}


# -- the whole process ---------------------------------------------------------------------------


class ServerProcess:
    """`python -m llmserve serve` with a config file, on a free port."""

    def __init__(self, config: Path, *flags: str, env: Mapping[str, str] | None = None) -> None:
        self.log: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "llmserve", "serve", "--port=0", f"--config={config}", *flags],
            stderr=subprocess.PIPE,
            text=True,
            env={**command_environment(), **(env or {})},
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        self.base_url = ""
        wait_until(self._find_address, "the server to say where it listens")

    def _read_log(self) -> None:
        assert self._process.stderr
        with self._process.stderr as stderr:
            self.log.extend(stderr)

    def _find_address(self) -> bool:
        assert self._process.poll() is None, "".join(self.log)
        found = re.search(r'listening on (http:[^\s"]+)', "".join(self.log))
        self.base_url = found[1] if found else ""
        return bool(found)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def port(self) -> int:
        return int(self.base_url.rpartition(":")[2])

    def client(self) -> httpx2.Client:
        return http_client(self.base_url)

    def wait_ready(self) -> None:
        with self.client() as client:
            wait_until(lambda: client.get("/ready").status_code == 200, "the model to be ready")

    def wait_log(self, words: str) -> None:
        wait_until(lambda: any(words in line for line in self.log), f"{words!r} in the log")

    def post(self, route: str, body: Mapping[str, Any] | None = None) -> httpx2.Response:
        with self.client() as client:
            return client.post(route, json=body)

    def model(self, name: str) -> dict[str, Any]:
        """What GET /models says about `name`."""
        with self.client() as client:
            models = client.get("/models").json()["models"]
        (found,) = [model for model in models if model["name"] == name]
        return dict(found)

    def metric(self, name: str, **labels: str) -> float:
        with self.client() as client:
            return metric(client.get("/metrics").text, name, **labels)

    def signal(self, signum: int) -> None:
        self._process.send_signal(signum)

    def wait(self) -> int:
        """The exit code."""
        code = self._process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        return code

    def stop(self) -> None:
        if self._process.poll() is None:
            self.signal(signal.SIGKILL)
        self.wait()


@contextlib.contextmanager
def server_process(
    config: Path, *flags: str, env: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    """A server whose model is ready; killed at the end, if it still runs."""
    process = ServerProcess(config, *flags, env=env)
    try:
        process.wait_ready()
        yield process
    finally:
        process.stop()
