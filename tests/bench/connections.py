"""What a normal request feels of a crowd of connections that want nothing, or want it slowly."""

import contextlib
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2

from llmserve.api.http.connection_limits import allowed_connections
from tests.bench.figures import Figure
from tests.bench.targets import Server
from tests.bench.workload import prompts

NUM_IDLE = 2000
NUM_SLOW = 500
_NUM_REQUESTS = 10  # of each round and way
_MAX_TOKENS = 16
_HEAD = b"POST /inference HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n"
_SLOW = (_HEAD + b"X-Slow: ", _HEAD + b"\r\n")  # in the middle of a head, and of a body


def run(config: Path, *, num_rounds: int) -> list[Figure]:
    """Interleaved rounds over the default model of `config`, with and without the crowd."""
    if allowed_connections(NUM_IDLE + NUM_SLOW) < NUM_IDLE + NUM_SLOW:
        raise SystemExit("bench: too few descriptors for the crowd; raise ulimit -n")
    alone_s: list[float] = []
    crowded_s: list[float] = []
    idle_bytes: list[float] = []
    with Server(config) as server, httpx2.Client(base_url=server.url, timeout=600) as client:
        _latency_s(client, salt=0)  # warm
        for salt in range(1, num_rounds + 1):
            alone_s.append(_latency_s(client, salt=2 * salt))
            before_bytes = server.memory_bytes
            with _idle(server.port):
                idle_bytes.append((server.memory_bytes - before_bytes) / NUM_IDLE)
                with _slow(server.port):
                    crowded_s.append(_latency_s(client, salt=2 * salt + 1))
    ratios = [one / other for one, other in zip(crowded_s, alone_s, strict=True)]
    return [
        Figure(f"a request of {_MAX_TOKENS} tokens, alone", statistics.median(alone_s) * 1e3, "ms"),
        Figure(
            f"the same beside {NUM_IDLE} idle and {NUM_SLOW} slow connections",
            statistics.median(crowded_s) * 1e3,
            "ms",
        ),
        Figure("crowded / alone", statistics.median(ratios), "", "<= 1.1"),
        # The first crowd's: later ones find the memory that it has left.
        Figure("memory of an idle connection", max(idle_bytes) / 1024, "KiB", "<= 16"),
    ]


def _latency_s(client: httpx2.Client, *, salt: int) -> float:
    """The median of one request after the other, no two of the same prompt."""
    found = []
    for prompt in prompts(_NUM_REQUESTS, salt=salt):
        parameters = {"temperature": 0, "max_tokens": _MAX_TOKENS, "ignore_eos": True}
        body = {"prompt": prompt, "mode": "completion", "parameters": parameters}
        begin_s = time.perf_counter()
        client.post("/inference", json=body).raise_for_status()
        found.append(time.perf_counter() - begin_s)
    return statistics.median(found)


@contextlib.contextmanager
def _idle(port: int) -> Iterator[None]:
    """Connections that have had an answer and now keep silent."""
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(NUM_IDLE):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.sendall(request)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        yield


@contextlib.contextmanager
def _slow(port: int) -> Iterator[None]:
    """Connections that send a byte a second; who is cut off comes again."""
    is_over = threading.Event()

    def drip() -> None:
        connections = [_begin(port, index) for index in range(NUM_SLOW)]
        is_there.set()
        while not is_over.is_set():
            for index in range(NUM_SLOW):
                try:
                    connections[index].sendall(b"x")
                except ConnectionError:
                    connections[index].close()
                    connections[index] = _begin(port, index)
                if is_over.wait(1 / NUM_SLOW):
                    break
        for connection in connections:
            connection.close()

    is_there = threading.Event()
    thread = threading.Thread(target=drip)
    thread.start()
    try:
        assert is_there.wait(60)
        yield
    finally:
        is_over.set()
        thread.join()


def _begin(port: int, index: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(_SLOW[index % 2])
    return connection
