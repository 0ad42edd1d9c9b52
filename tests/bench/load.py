"""One client for any server with /v1/completions, which notes when each piece of text arrives."""

import asyncio
import itertools
import random
import time
from collections.abc import Sequence
from typing import Any

import httpx2
import msgspec
from msgspec import Struct

from tests.bench.workload import TOPICS

# Not OpenAI's, but llama-server's and ours: end at max_tokens only, truncate nothing.
_EXTRA = {"ignore_eos": True, "top_k": 0, "min_p": 0, "temperature": 0}
_OPENERS = ("Once", "Then", "Later", "Now", "Soon", "Here", "Often", "Still", "Today", "Slowly")


class Answer(Struct):
    """One streamed answer. Times are on the clock of `time.perf_counter`."""

    begin_s: float
    arrivals_s: list[float] = []  # of each piece of text, nearly always one token
    num_tokens: int = 0  # generated, as the server counts them
    num_prompt: int = 0
    num_cached: int = 0  # prompt tokens that the server did not compute

    @property
    def ttft_s(self) -> float:
        return self.arrivals_s[0] - self.begin_s

    @property
    def gaps_s(self) -> list[float]:
        return [b - a for a, b in itertools.pairwise(self.arrivals_s)]


class Target:
    """A running server. `prompt` is a text or token ids; the same model is behind all targets."""

    def __init__(self, name: str, url: str, model: str | None = None) -> None:
        self.name = name
        self.url = url.rstrip("/").removesuffix("/v1")
        self._model = {} if model is None else {"model": model}

    async def stream(
        self, client: httpx2.AsyncClient, prompt: str | list[int], max_tokens: int, **fields: Any
    ) -> Answer:
        """The whole answer. Cancelling it closes the connection."""
        answer = Answer(time.perf_counter())
        await self.follow(client, prompt, max_tokens, answer, **fields)
        return answer

    async def follow(
        self,
        client: httpx2.AsyncClient,
        prompt: str | list[int],
        max_tokens: int,
        answer: Answer,
        **fields: Any,
    ) -> None:
        """As `stream`; `answer` can be read meanwhile, and after a cancel."""
        body = {
            "prompt": prompt, "max_tokens": max_tokens, "stream": True,
            "stream_options": {"include_usage": True}, **_EXTRA, **self._model, **fields,
        }  # fmt: skip
        async with client.stream("POST", self.url + "/v1/completions", json=body) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")
                raise SystemExit(f"bench: {self.name} answers {response.status_code}: {text}")
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    _note(answer, msgspec.json.decode(line[6:]), time.perf_counter())

    async def tokenize(self, client: httpx2.AsyncClient, text: str) -> list[int]:
        """By llama-server's route, which llmserve has too."""
        response = await client.post(self.url + "/tokenize", json={"content": text, **self._model})
        response.raise_for_status()
        tokens: list[int] = response.json()["tokens"]
        return tokens


def _note(answer: Answer, chunk: dict[str, Any], now_s: float) -> None:
    if "error" in chunk:
        raise SystemExit(f"bench: a stream failed: {chunk['error']}")
    if any(choice.get("text") for choice in chunk["choices"]):
        answer.arrivals_s.append(now_s)
    if usage := chunk.get("usage"):
        answer.num_tokens = usage["completion_tokens"]
        answer.num_prompt = usage["prompt_tokens"]
        answer.num_cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)


def http_client() -> httpx2.AsyncClient:
    # A connection for each request: some servers close idle ones just when they are used again.
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx2.AsyncClient(timeout=900, limits=limits)


def new_seed() -> int:
    """Another one for each call and each run: servers remember what they were asked."""
    return time.time_ns()


class Texts:
    """Prompts of an exact number of tokens; no two begin alike."""

    def __init__(self, tokens: Sequence[int], seed: int) -> None:
        self._tokens = tokens
        self._random = random.Random(seed)

    @classmethod
    async def make(cls, target: Target, client: httpx2.AsyncClient, *, seed: int) -> "Texts":
        rng = random.Random(seed)
        sentences = [
            f"{rng.choice(_OPENERS)} there was {rng.choice(TOPICS)} and number {rng.random():.6f}."
            for _ in range(1500)
        ]
        return cls(await target.tokenize(client, " ".join(sentences)), seed)

    def take(self, num_tokens: int) -> list[int]:
        """Token ids from anywhere in the text, led by five that nobody else has."""
        head = [self._random.choice(self._tokens) for _ in range(5)]
        start = self._random.randrange(len(self._tokens) - num_tokens)
        return (head + list(self._tokens[start : start + num_tokens]))[:num_tokens]


async def drop(task: "asyncio.Task[Any]") -> None:
    """Cancel `task` and wait until it is gone."""
    task.cancel()
    await asyncio.wait([task])
