"""A provider that does as it is told, on bare sockets: what no decent server would send too.

Every request is answered by the next script of a list (the last one stays), which writes bytes
as it likes. Runs in a thread of its own, counts its connections, and remembers its requests.
"""

import asyncio
import contextlib
import json
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_S = 60.0

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


@dataclass
class Request:
    line: str
    headers: dict[str, str]
    body: Any


@dataclass
class Exchange:
    """One request, and the way to answer it."""

    request: Request
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        assert data, "an empty chunk is the end"
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def gone(self) -> None:
        """Return when the other side has closed the connection."""
        with contextlib.suppress(ConnectionError):
            await self.reader.read()

    def reset(self) -> None:
        self.writer.transport.abort()


Script = Callable[[Exchange], Awaitable[None]]


@dataclass
class Hostile:
    scripts: list[Script] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    num_connections: int = 0  # in all
    num_open: int = 0  # now
    num_running: int = 0  # scripts
    errors: list[BaseException] = field(default_factory=list)
    url: str = ""
    loop: asyncio.AbstractEventLoop | None = None
    server: asyncio.Server | None = None
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def play(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.requests.clear()

    def die(self) -> None:
        """As a killed process does: all connections end, and nobody listens any more."""

        def end() -> None:
            assert self.server
            self.server.close()
            for writer in self.writers:
                writer.transport.abort()

        assert self.loop
        self.loop.call_soon_threadsafe(end)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self.num_open += 1
        self.writers.add(writer)
        try:
            while request := await _read(reader):
                self.requests.append(request)
                script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
                self.num_running += 1
                try:
                    await script(Exchange(request, reader, writer))
                finally:
                    self.num_running -= 1
                if writer.transport.is_closing():
                    break
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except Exception as error:  # a broken script
            self.errors.append(error)
        finally:
            self.num_open -= 1
            self.writers.discard(writer)
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        first = await reader.readexactly(1)
        if first == b"\x16":  # somebody wants TLS here
            return None
        head = first + await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    line, *lines = head.decode().rstrip().split("\r\n")
    headers = {name.lower(): value for name, value in (each.split(": ", 1) for each in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(line, headers, json.loads(body) if body else None)


@contextlib.contextmanager
def hostile(context: ssl.SSLContext | None = None) -> Iterator[Hostile]:
    """Serves until the block ends; a script that broke fails the test."""
    upstream = Hostile()
    started, stop = threading.Event(), asyncio.Event()

    async def main() -> None:
        upstream.loop = asyncio.get_running_loop()
        server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, ssl=context)
        upstream.server = server
        port = server.sockets[0].getsockname()[1]
        upstream.url = f"{'https' if context else 'http'}://127.0.0.1:{port}/v1"
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
        yield upstream
    finally:
        assert upstream.loop
        upstream.loop.call_soon_threadsafe(stop.set)
        thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert not upstream.errors, upstream.errors


# -- what to send --------------------------------------------------------------------------------


def event(body: Any, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(body)}\n\n".encode()


def delta(text: str) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})


def finish(reason: str = "stop") -> bytes:
    return event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})


def usage(prompt: int = 5, generated: int = 2) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": generated}
    return event({"choices": [], "usage": counts})


WHOLE = delta("Hel") + delta("lo") + finish() + usage() + DONE


def streams(*parts: bytes) -> Script:
    """These parts, each in a chunk, and a proper end."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(HEAD)
        for part in parts:
            await exchange.chunk(part)
        await exchange.end()

    return script


def cuts(*parts: bytes) -> Script:
    """These parts, and then the connection is gone."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(HEAD)
        for part in parts:
            await exchange.chunk(part)
        exchange.writer.close()

    return script


def hangs(*parts: bytes) -> Script:
    """These parts, and then nothing until the other side leaves."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(HEAD)
        for part in parts:
            await exchange.chunk(part)
        await exchange.gone()

    return script


async def hangs_at_once(exchange: Exchange) -> None:
    await exchange.gone()


def answers(status: int, body: Any, **headers: str) -> Script:
    """One whole response."""

    async def script(exchange: Exchange) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        given = {"content-type": "application/json", **named}
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        head = f"HTTP/1.1 {status} Whatever\r\n{lines}content-length: {len(data)}\r\n\r\n"
        await exchange.send(head.encode() + data)

    return script


def error(status: int, message: str, **headers: str) -> Script:
    return answers(status, {"error": {"message": message, "type": "x", "code": None}}, **headers)


good = streams(WHOLE)
