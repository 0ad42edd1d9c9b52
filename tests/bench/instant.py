"""A provider that answers at once: `python -m tests.bench.instant` prints its port.

Every request gets as many words as its `max_tokens` says, as one JSON or as a stream of events.
Bytes are made beforehand: what is measured is who stands before it.
"""

import asyncio
import sys
from typing import Any

import msgspec

_WORD = {"index": 0, "delta": {"content": " word"}, "finish_reason": None}
_END = {"index": 0, "delta": {}, "finish_reason": "length"}
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Body(msgspec.Struct):
    max_tokens: int
    stream: bool = False
    seed: int = 0  # milliseconds between two events


class Instant(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._pending = b""
        self._pacing: asyncio.Task[None] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._pacing:
            self._pacing.cancel()

    def data_received(self, data: bytes) -> None:
        self._pending += data
        head, separator, body = self._pending.partition(b"\r\n\r\n")
        if not separator or len(body) < _content_length(head):
            return
        self._pending = b""
        wanted = msgspec.json.decode(body, type=Body)
        if not wanted.stream:
            self._transport.write(_whole(wanted.max_tokens))
        elif wanted.seed:
            self._pacing = asyncio.create_task(self._pace(wanted.max_tokens, wanted.seed / 1e3))
        else:
            self._transport.write(_HEAD + _EVENT * wanted.max_tokens + _tail(wanted.max_tokens))

    async def _pace(self, num_tokens: int, pause_s: float) -> None:
        self._transport.write(_HEAD)
        for _ in range(num_tokens):
            self._transport.write(_EVENT)
            await asyncio.sleep(pause_s)
        self._transport.write(_tail(num_tokens))


def _content_length(head: bytes) -> int:
    _, _, rest = head.lower().partition(b"content-length: ")
    return int(rest.split(b"\r\n", 1)[0])


def _body(choices: list[Any], **fields: Any) -> bytes:
    common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return msgspec.json.encode({**common, "choices": choices, **fields})


def _usage(num_tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 9, "completion_tokens": num_tokens, "total_tokens": 9 + num_tokens}


def _chunk(data: bytes) -> bytes:
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(event), event)


def _tail(num_tokens: int) -> bytes:
    usage = _body([], usage=_usage(num_tokens))
    return _chunk(_body([_END])) + _chunk(usage) + _chunk(b"[DONE]") + b"0\r\n\r\n"


def _whole(num_tokens: int) -> bytes:
    message = {"role": "assistant", "content": " word" * num_tokens}
    choice = {"index": 0, "message": message, "finish_reason": "length"}
    body = _body([choice], usage=_usage(num_tokens))
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


_EVENT = _chunk(_body([_WORD]))


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)  # until whoever started it is gone
    server.close()


if __name__ == "__main__":
    asyncio.run(_serve())
