"""What prompts with a common beginning cost: at once, again, in conversations, after a restart.

What is asked at once is asked of a peer too, in turn, with prefixes that nobody has seen. The rest
needs servers of its own: with fewer slots than users, a folder to remember in, a cache to fill.
"""

import asyncio
import contextlib
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

from llmserve.config.load import load_config
from llmserve.hub.locate import locate
from tests.bench.figures import Figure
from tests.bench.load import Target, Texts, http_client, new_seed
from tests.bench.scheduling import Rounds
from tests.bench.targets import Server, temporary_config
from tests.bench.workload import TOPICS

NUM_TOGETHER, SHARED_TOKENS, OWN_TOKENS, ANSWER_TOKENS = 16, 1000, 40, 32
NUM_USERS, NUM_SLOTS, NUM_TURNS, TURN_TOKENS = 4, 2, 8, 40
KNOWN_TOKENS = 2000
FILLING_TOKENS, NUM_FILLINGS, CACHE = 1500, 8, "200MB"


def run(config: Path, peer: Target | None, *, num_rounds: int) -> list[Figure]:
    """Every figure; `peer` is running."""
    with Server(config) as server:
        ours = Target("llmserve", server.url)
        rounds = asyncio.run(_compare([ours, *([peer] if peer else [])], num_rounds))
    figures = _together_figures(rounds, ours, peer)
    model = locate(load_config(config).default)
    with _own_config(model, f"max_concurrency = {NUM_SLOTS}") as path, Server(path) as server:
        share = asyncio.run(_conversations(Target("llmserve", server.url)))
    reach = f"{NUM_TURNS}-turn chats of {NUM_USERS} users, {NUM_SLOTS} slots: recomputed"
    figures.append(Figure(reach, share * 100, "%", "<= 2"))
    figures.append(
        Figure("first token after a restart / cold", _restarts(model, num_rounds), "", "<= 0.05")
    )
    figures.append(
        Figure("step with a full cache / empty", _fillings(model, num_rounds), "", "<= 1.03")
    )
    return figures


@contextlib.contextmanager
def _own_config(model: Path, *settings: str, server: str = "") -> Iterator[Path]:
    lines = ["[server]", server, "[models.one]", f"path = {str(model)!r}", "context_length = 8192"]
    with temporary_config("\n".join([*lines, *settings])) as path:
        yield path


# -- at once -------------------------------------------------------------------------------------


async def _compare(targets: list[Target], num_rounds: int) -> Rounds:
    rounds = Rounds()
    seeds = [new_seed() for _ in range(num_rounds)]
    async with http_client() as client:
        for number in range(num_rounds):
            for target in targets if number % 2 == 0 else targets[::-1]:
                texts = await Texts.make(target, client, seed=seeds[number])
                shared = texts.take(SHARED_TOKENS)
                prompts = [shared + texts.take(OWN_TOKENS) for _ in range(NUM_TOGETHER)]
                for key in ("cold", "warm"):
                    rounds.add(target, await _together(target, client, prompts, key))
    return rounds


async def _together(
    target: Target, client: httpx2.AsyncClient, prompts: list[list[int]], key: str
) -> dict[str, float]:
    begin_s = time.perf_counter()
    answers = await asyncio.gather(*(target.stream(client, p, ANSWER_TOKENS) for p in prompts))
    elapsed_s = time.perf_counter() - begin_s
    num_prompt = sum(answer.num_prompt - answer.num_cached for answer in answers)
    return {key: elapsed_s, f"{key} computed": num_prompt}


def _together_figures(rounds: Rounds, ours: Target, peer: Target | None) -> list[Figure]:
    figures = []
    for target in [ours, *([peer] if peer else [])]:
        for key in ("cold", "warm"):
            name = f"{target.name}: {NUM_TOGETHER} at once, {SHARED_TOKENS} tokens in common, {key}"
            figures.append(Figure(name, rounds.median(target, key), "s"))
            computed = rounds.median(target, f"{key} computed")
            figures.append(Figure("… prompt tokens computed", computed, ""))
    if peer:
        for key, reach in (("cold", ">= 8"), ("warm", ">= 1.3")):
            name = f"{peer.name} / {ours.name}: {key}"
            figures.append(Figure(name, rounds.ratio(key, peer, ours), "x", reach))
    return figures


# -- conversations -------------------------------------------------------------------------------


async def _conversations(target: Target) -> float:
    """The share of prompt tokens that were computed though they had been before."""
    num_again = num_prompt = 0
    async with http_client() as client:
        chats = [_Chat(user) for user in range(NUM_USERS)]
        for _ in range(NUM_TURNS):
            for usage in await asyncio.gather(*(chat.turn(target, client) for chat in chats)):
                num_again += usage["again"]
                num_prompt += usage["prompt"]
    return num_again / num_prompt


class _Chat:
    def __init__(self, user: int) -> None:
        system = f"You are the assistant of user {user}. " + " ".join(TOPICS) * 2
        self._messages: list[dict[str, str]] = [{"role": "system", "content": system}]
        self._user = user
        self._num_known = 0  # tokens of the last prompt and its answer

    async def turn(self, target: Target, client: httpx2.AsyncClient) -> dict[str, int]:
        question = f"Question {len(self._messages)} of {self._user}: and {TOPICS[self._user]}?"
        self._messages.append({"role": "user", "content": question})
        body: dict[str, Any] = {
            "messages": self._messages, "max_tokens": TURN_TOKENS, "temperature": 0,
        }  # fmt: skip
        response = await client.post(target.url + "/v1/chat/completions", json=body)
        response.raise_for_status()
        answer = response.json()
        self._messages.append(answer["choices"][0]["message"])
        usage = answer["usage"]
        num_prompt = usage["prompt_tokens"]
        num_computed = num_prompt - usage["prompt_tokens_details"]["cached_tokens"]
        num_new = num_prompt - self._num_known
        self._num_known = num_prompt + usage["completion_tokens"]
        return {"again": max(0, num_computed - num_new), "prompt": num_prompt}


# -- servers that end ----------------------------------------------------------------------------


def _restarts(model: Path, num_rounds: int) -> float:
    """Time to first token of a known prefix in a new server, over that of an unknown one."""
    ratios = []
    for number in range(num_rounds):
        with _own_config(model, server='prefix_cache_dir = "prefixes"') as path:
            cold_s = asyncio.run(_ttft(path, number))
            ratios.append(asyncio.run(_ttft(path, number)) / cold_s)
    return statistics.median(ratios)


async def _ttft(config: Path, seed: int) -> float:
    with Server(config) as server:
        target = Target("llmserve", server.url)
        async with http_client() as client:
            texts = await Texts.make(target, client, seed=seed)
            prefix = texts.take(KNOWN_TOKENS)
            await target.stream(client, texts.take(64), 4)  # so that everything is loaded
            return (await target.stream(client, prefix, 1)).ttft_s


def _fillings(model: Path, num_rounds: int) -> float:
    """The gap between tokens of one stream with a full cache, over that with an empty one."""
    ratios = []
    for number in range(num_rounds):
        # Guessed tokens come in bunches, which says nothing about a step.
        settings = (f'prefix_cache = "{CACHE}"', "speculation = false")
        with _own_config(model, *settings) as path, Server(path) as server:
            ratios.append(asyncio.run(_filled(Target("llmserve", server.url), number)))
    return statistics.median(ratios)


async def _filled(target: Target, seed: int) -> float:
    async with http_client() as client:
        texts = await Texts.make(target, client, seed=seed)
        await target.stream(client, texts.take(100), 32)
        empty = (await target.stream(client, texts.take(100), 128)).gaps_s
        for _ in range(NUM_FILLINGS):
            await target.stream(client, texts.take(FILLING_TOKENS), 1)
        full = (await target.stream(client, texts.take(100), 128)).gaps_s
    return statistics.median(full) / statistics.median(empty)
