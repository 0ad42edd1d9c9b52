"""A provider that speaks HTTP/2 only, with h2's server side."""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import h2.config
import h2.connection
import h2.events

from tests.remote.hostile import TIMEOUT_S, WHOLE


@dataclass
class Http2:
    """Answers every request with `WHOLE`; with `hangs`, without its end or without a head."""

    hangs: Literal["", "head", "end"] = ""
    requests: list[dict[str, str]] = field(default_factory=list)  # their headers
    num_connections: int = 0
    num_resets: int = 0
    url: str = ""
    loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        connection = h2.connection.H2Connection(config)
        connection.initiate_connection()
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            while True:
                writer.write(connection.data_to_send())
                data = await reader.read(65536)
                if not data:
                    break
                for event in connection.receive_data(data):
                    self._react(connection, event)
        writer.close()

    def _react(self, connection: Any, event: object) -> None:
        match event:
            case h2.events.RequestReceived():
                self.requests.append({str(k): str(v) for k, v in event.headers})
            case h2.events.StreamReset():
                self.num_resets += 1
            case h2.events.StreamEnded(stream_id=stream) if self.hangs != "head":
                head = [(":status", "200"), ("content-type", "text/event-stream")]
                connection.send_headers(stream, head)
                body = WHOLE.replace(b'"Hel"', b'"Hello"').replace(b'"lo"', b'""')
                first, _, rest = body.partition(b"\n\n")
                connection.send_data(stream, first + b"\n\n")
                if not self.hangs:
                    connection.send_data(stream, rest, end_stream=True)


@contextlib.contextmanager
def http2_provider(context: ssl.SSLContext) -> Iterator[Http2]:
    provider = Http2()
    started, stop = threading.Event(), asyncio.Event()

    async def main() -> None:
        provider.loop = asyncio.get_running_loop()
        server = await asyncio.start_server(provider.serve, "127.0.0.1", 0, ssl=context)
        provider.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        started.set()
        await stop.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        assert started.wait(TIMEOUT_S)
        yield provider
    finally:
        assert provider.loop
        provider.loop.call_soon_threadsafe(stop.set)
        thread.join(TIMEOUT_S)
    assert not thread.is_alive()
