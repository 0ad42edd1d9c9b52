"""What OpenAI's dialect costs, and log probabilities in it: the same conversations, streamed."""

import asyncio
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

from tests.bench.figures import Figure
from tests.bench.targets import Server
from tests.bench.workload import prompts

NUM_STREAMS = 16
Messages = list[dict[str, str]]
Way = Callable[[Messages, int], tuple[str, dict[str, Any]]]  # -> path, body


def run(config: Path, *, num_rounds: int, max_tokens: int) -> list[Figure]:
    """Interleaved rounds, each way first in turn, over the default model of `config`."""
    ways = [_native, _openai, _logprobs]
    rates: dict[Way, list[float]] = {way: [] for way in ways}
    with Server(config) as server:
        asyncio.run(_measure(server.url, _native, max_tokens, salt=0))  # warm
        for salt in range(1, num_rounds + 1):
            for number, way in enumerate(ways):
                own = len(ways) * salt + number  # who has seen a prompt has less to do
                rates[way].append(asyncio.run(_measure(server.url, way, max_tokens, salt=own)))
            ways.append(ways.pop(0))

    def ratio(way: Way, other: Way) -> float:
        pairs = zip(rates[way], rates[other], strict=True)
        return statistics.median(one / two for one, two in pairs)

    median = {way: statistics.median(found) for way, found in rates.items()}
    return [
        Figure("/inference, 16 streams", median[_native], "tok/s"),
        Figure("/v1/chat/completions, 16 streams", median[_openai], "tok/s"),
        Figure("the same with logprobs 5", median[_logprobs], "tok/s"),
        Figure("/v1/chat/completions / /inference", ratio(_openai, _native), "", ">= 0.98"),
        Figure("logprobs 5 / none", ratio(_logprobs, _openai), "", ">= 0.93"),
    ]


def _native(messages: Messages, max_tokens: int) -> tuple[str, dict[str, Any]]:
    parameters = {"temperature": 0, "max_tokens": max_tokens, "ignore_eos": True}
    return "/inference", {"messages": messages, "stream": True, "parameters": parameters}


def _openai(messages: Messages, max_tokens: int) -> tuple[str, dict[str, Any]]:
    body = {"temperature": 0, "max_tokens": max_tokens, "ignore_eos": True}
    options = {"include_usage": True}
    return "/v1/chat/completions", {
        "messages": messages, "stream": True, "stream_options": options, **body
    }  # fmt: skip


def _logprobs(messages: Messages, max_tokens: int) -> tuple[str, dict[str, Any]]:
    path, body = _openai(messages, max_tokens)
    return path, {**body, "logprobs": True, "top_logprobs": 5}


async def _measure(url: str, way: Way, max_tokens: int, *, salt: int) -> float:
    """Tokens per second of all streams together."""
    texts = prompts(NUM_STREAMS, salt=salt)
    calls = [way([{"role": "user", "content": text}], max_tokens) for text in texts]
    async with httpx2.AsyncClient(base_url=url, timeout=600) as client:
        begin_s = time.perf_counter()
        await asyncio.gather(*(_drain(client, path, body, max_tokens) for path, body in calls))
        return NUM_STREAMS * max_tokens / (time.perf_counter() - begin_s)


async def _drain(
    client: httpx2.AsyncClient, path: str, body: dict[str, Any], max_tokens: int
) -> None:
    """Read one stream without parsing it: the client shares the cores with the server."""
    last = b""
    async with client.stream("POST", path, json=body) as response:
        response.raise_for_status()
        async for part in response.aiter_raw():
            last = (last + part)[-8192:]
    counted = f'tokens":{max_tokens}'.encode()  # generated_tokens, completion_tokens
    assert counted in last, last
