"""Input that is wrong, and what may answer it: a 4xx of its own, or the end of the connection."""

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

NO_ANSWER = 0  # the server closed the connection, or the client did not wait for an answer


class Bad(Struct, frozen=True):
    """Bytes for a connection of their own, in pieces with `pause_s` before each but the first."""

    name: str
    pieces: list[bytes]
    allowed: tuple[int, ...]  # statuses
    pause_s: float = 0.0
    hangs_up: bool = False  # without waiting for an answer


async def send(port: int, bad: Bad, *, deadline_s: float) -> int:
    """The status that came back. Raises `TimeoutError` at the deadline."""
    async with asyncio.timeout(deadline_s):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            with contextlib.suppress(ConnectionError):  # it need not read to the end
                for piece in bad.pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(bad.pause_s)
            if bad.hangs_up:
                return NO_ANSWER
            with contextlib.suppress(ConnectionError):
                line = await reader.readline()
                return int(line.split()[1]) if line else NO_ANSWER
            return NO_ANSWER
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def draw(rng: random.Random) -> Bad:
    return rng.choice(_MAKERS)(rng)


def _http(path: str, body: bytes, headers: str = "", method: str = "POST") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def _json(path: str, **body: Any) -> bytes:
    return _http(path, msgspec.json.encode(body), "Content-Type: application/json\r\n")


def _field(rng: random.Random) -> Bad:
    """One field of the wrong type, out of range, or unknown."""
    values: list[Any] = [
        None,
        True,
        -1,
        2**80,
        1e308,
        "x" * 2000,
        [],
        [[]],
        {},
        {"a": {"b": 1}},
        "\ud7ff",
    ]
    fields = ["temperature", "max_tokens", "top_p", "stop", "seed", "logit_bias", "n", "logprobs"]
    name = rng.choice(fields)
    # None is as good as leaving it out, and some of the others happen to be right.
    body = {"prompt": "x", "max_tokens": 1, name: rng.choice(values)}
    return Bad("a field", [_json("/v1/completions", **body)], (200, 400))


def _unknown_field(rng: random.Random) -> Bad:
    body = {"prompt": "x", "parameters": {"max_tokens": 1, f"temprature{rng.random()}": 1}}
    return Bad("an unknown field", [_json("/inference", **body)], (400,))


def _unknown_model(rng: random.Random) -> Bad:
    name = rng.choice(["../../etc/passwd", "nobody", "x" * 5000, "/", "red\u0000"])
    return Bad("an unknown model", [_json("/inference", model=name, prompt="x")], (400, 404))


def _broken_model(rng: random.Random) -> Bad:
    body = {"model": "broken", "prompt": "x", "max_tokens": 1}
    return Bad("a model with half a file", [_json("/v1/completions", **body)], (503,))


def _garbage(rng: random.Random) -> Bad:
    return Bad("bytes that are no HTTP", [rng.randbytes(400) + b"\r\n\r\n"], (NO_ANSWER, 400))


def _no_json(rng: random.Random) -> Bad:
    return Bad("a body that is no JSON", [_http("/inference", rng.randbytes(300))], (400,))


def _nesting(rng: random.Random) -> Bad:
    body = b'{"prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    return Bad("a deep body", [_http("/v1/completions", body)], (400,))


def _schema(rng: random.Random) -> Bad:
    """One that cannot be enforced, or is too much."""
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(300):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
    schema = rng.choice([deep, {"type": "nonsense"}, {"$ref": "#/$defs/none"}])
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    body = {"prompt": "x", "response_format": form, "parameters": {"max_tokens": 1}}
    return Bad("a bad schema", [_json("/inference", **body)], (200, 400))


def _long_prompt(rng: random.Random) -> Bad:
    return Bad("a prompt that is too long", [_json("/inference", prompt="word " * 6000)], (413,))


def _large_body(rng: random.Random) -> Bad:
    head = b"POST /inference HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
    return Bad("a body of 1 GB", [head, *[b"x" * 65536] * 20], (413,))


def _large_header(rng: random.Random) -> Bad:
    header = f"X-Large: {'x' * 200_000}\r\n"
    return Bad("a large header", [_http("/health", b"", header, "GET")], (NO_ANSWER, 400, 431))


def _half_body(rng: random.Random) -> Bad:
    whole = _json("/inference", prompt="x" * 500)
    return Bad("half a body", [whole[: rng.randrange(80, len(whole))]], (NO_ANSWER,), hangs_up=True)


def _slow_body(rng: random.Random) -> Bad:
    """Slow, but right in the end."""
    whole = _json("/inference", prompt="Say hello.", parameters={"max_tokens": 2})
    size = len(whole) // 6 + 1
    pieces = [whole[i : i + size] for i in range(0, len(whole), size)]
    return Bad("a slow body", pieces, (200, 408), pause_s=rng.uniform(0.1, 0.5))


def _no_route(rng: random.Random) -> Bad:
    method, path = rng.choice([("GET", "/inference"), ("POST", "/nothing"), ("PUT", "/models")])
    return Bad("no such route", [_http(path, b"", method=method)], (404, 405))


_MAKERS: tuple[Callable[[random.Random], Bad], ...] = (
    _field, _field, _unknown_field, _unknown_model, _broken_model, _garbage, _no_json, _nesting,
    _schema, _long_prompt, _large_body, _large_header, _half_body, _slow_body, _no_route,
)  # fmt: skip
