"""What the gateway adds to a remote provider, over one on the loopback that answers at once."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import msgspec

from tests.bench.figures import Figure, percentile
from tests.bench.targets import Server, temporary_config

NUM_WORDS = 8
NUM_CLIENTS = 64
NUM_SEQUENTIAL = 400  # requests in turn, each way
NUM_TOGETHER = 1500  # requests of all clients, each way
NUM_STREAMS, NUM_EVENTS = 4, 1000

CONFIG = """
[models.cloud]
remote = "http://127.0.0.1:{port}/v1"
"""


def run(*, num_rounds: int) -> list[Figure]:
    """Both ways in turn, `num_rounds` times; the best round is told, as others use the machine."""
    with (
        _instant() as port,
        temporary_config(CONFIG.format(port=port)) as config,
        Server(config) as server,
    ):
        rounds = [asyncio.run(_round(port, server)) for _ in range(num_rounds)]
    return [
        Figure("added latency, 1 client, p50", min(r.added_p50_ms for r in rounds), "ms", "<= 1.5"),
        Figure("added latency, 1 client, p99", min(r.added_p99_ms for r in rounds), "ms", "<= 5"),
        Figure("CPU of an event, one by one", min(r.paced_ms for r in rounds), "ms", "<= 0.1"),
        Figure("CPU of an event, at full speed", min(r.flood_ms for r in rounds), "ms", "<= 0.1"),
        Figure("CPU of a request, 64 clients", min(r.request_ms for r in rounds), "ms"),
        Figure("gateway, 64 clients", max(r.gateway_rps for r in rounds), "requests/s", ">= 400"),
        Figure("direct, 64 clients", max(r.direct_rps for r in rounds), "requests/s"),
        Figure("gateway / direct, 64 clients", max(r.gateway_rps / r.direct_rps for r in rounds)),
    ]


class Round(msgspec.Struct):
    added_p50_ms: float
    added_p99_ms: float
    paced_ms: float
    flood_ms: float
    request_ms: float
    gateway_rps: float
    direct_rps: float


async def _round(port: int, server: Server) -> Round:
    direct, gateway = Client(port), Client(server.port)
    await _latencies(direct, 50), await _latencies(gateway, 50)  # warm
    before_ms = await _latencies(direct, NUM_SEQUENTIAL)
    after_ms = await _latencies(gateway, NUM_SEQUENTIAL)
    begin_s = server.cpu_s
    gateway_rps = await _rate(gateway)
    request_ms = (server.cpu_s - begin_s) / NUM_TOGETHER * 1e3
    return Round(
        added_p50_ms=percentile(after_ms, 50) - percentile(before_ms, 50),
        added_p99_ms=percentile(after_ms, 99) - percentile(before_ms, 99),
        paced_ms=await _event_cpu_ms(server, gateway, pause_ms=1),
        flood_ms=await _event_cpu_ms(server, gateway, pause_ms=0),
        request_ms=request_ms,
        gateway_rps=gateway_rps,
        direct_rps=await _rate(direct),
    )


async def _latencies(client: "Client", count: int) -> list[float]:
    """Milliseconds of each of `count` requests, one after the other on one connection."""
    times = []
    async with client.connection() as ask:
        for _ in range(count):
            begin_s = time.perf_counter()
            await ask(NUM_WORDS)
            times.append((time.perf_counter() - begin_s) * 1e3)
    return times


async def _rate(client: "Client") -> float:
    """Requests per second of `NUM_CLIENTS` that each ask again at once."""
    left = iter(range(NUM_TOGETHER))

    async def work() -> None:
        async with client.connection() as ask:
            for _ in left:
                await ask(NUM_WORDS)

    begin_s = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(NUM_CLIENTS)))
    return NUM_TOGETHER / (time.perf_counter() - begin_s)


async def _event_cpu_ms(server: Server, client: "Client", *, pause_ms: int) -> float:
    """CPU time of the gateway for one more event of a stream: long streams minus short ones."""

    async def cost_s(num_events: int) -> float:
        before_s = server.cpu_s
        await asyncio.gather(*(one(num_events) for _ in range(NUM_STREAMS)))
        return server.cpu_s - before_s

    async def one(num_events: int) -> None:
        async with client.connection() as ask:
            await ask(num_events, stream=True, pause_ms=pause_ms)

    short_s = await cost_s(1)
    return (await cost_s(1 + NUM_EVENTS) - short_s) / (NUM_STREAMS * NUM_EVENTS) * 1e3


class Client:
    """Chats over bare sockets: a client library would cost more than what is measured."""

    def __init__(self, port: int) -> None:
        self._port = port

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Callable[..., Awaitable[None]]]:
        """`ask(num_words, …)` for one kept connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)

        async def ask(num_words: int, *, stream: bool = False, pause_ms: int = 0) -> None:
            writer.write(_request(num_words, stream=stream, pause_ms=pause_ms))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head + await reader.read(1000)
            if stream:
                await _read_chunks(reader, num_words)
                return
            _, _, rest = head.lower().partition(b"content-length: ")
            body = await reader.readexactly(int(rest.split(b"\r\n", 1)[0]))
            assert body.count(b" word") == num_words, body

        try:
            yield ask
        finally:
            writer.close()
            await writer.wait_closed()


async def _read_chunks(reader: asyncio.StreamReader, num_words: int) -> None:
    found, data = 0, b""
    while not data.endswith(b"\r\n0\r\n\r\n"):
        more = await reader.read(65536)
        assert more, "the stream was cut"
        data = data[-6:] + more  # one byte less than what is counted
        found += data.count(b'" word"')
    assert found == num_words, (found, num_words)


def _request(num_words: int, *, stream: bool, pause_ms: int) -> bytes:
    body = {
        "model": "cloud", "messages": [{"role": "user", "content": "Say some words, please."}],
        "max_tokens": num_words, "stream": stream, "seed": pause_ms,
    }  # fmt: skip
    data = msgspec.json.encode(body)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


@contextlib.contextmanager
def _instant() -> Iterator[int]:
    command = [sys.executable, "-m", "tests.bench.instant"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()
