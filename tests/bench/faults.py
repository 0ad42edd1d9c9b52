"""The process of a model is killed or stopped under streams, again and again; what that costs.

Each round: streams in all slots but one, a request for a whole answer in that one, others in the
queue; then the blow. Whoever was running is told, whoever waited is answered, and nothing stays.
"""

import asyncio
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2
from msgspec import Struct

from llmserve.config.load import load_config
from llmserve.hub.locate import locate
from tests.bench.figures import Figure
from tests.bench.soak.asks import Ask
from tests.bench.soak.client import attempt, http_client
from tests.bench.soak.faults import SIGNALS
from tests.bench.soak.replies import Reply
from tests.bench.soak.tally import CRASHED
from tests.bench.soak.watch import Reading, Watch, slots
from tests.bench.targets import Server, temporary_config

MODEL = "one"
NUM_STREAMS = 16
NUM_WAITING = 8
_DEADLINE_S = 120.0  # of everything in a round
_PAUSE_S = 0.02


class Round(Struct, frozen=True):
    """What came of one blow. `before` and `after` were read when nobody was served."""

    signal: signal.Signals
    streams: list[Reply]
    whole: list[Reply]  # who ran too, and had no byte yet
    waiting: list[Reply]
    back_s: float  # from the blow to the first answer to who waited
    before: Reading
    after: Reading

    @property
    def troubles(self) -> list[str]:
        """What should not be, in words."""
        return [
            *(f"a stream: {_told(r)}" for r in self.streams if not _has_crashed(r, 200)),
            *(f"a whole answer: {_told(r)}" for r in self.whole if not _has_crashed(r, 503)),
            *(f"one in the queue: {_told(r)}" for r in self.waiting if not r.is_whole),
            *(f"still held: {self.after}" for _ in range(self.after.num_held)),
            *(f"a zombie: {self.after}" for _ in range(self.after.zombies)),
            *(f"children: {self.after}" for _ in range(self.after.children - 1)),
        ]


def config_text(path: Path, *, stall_s: float) -> str:
    """One model with room for a round."""
    return (
        "[server]\nshutdown_grace_s = 60\n"
        f'[models.{MODEL}]\npath = "{path}"\naliases = ["default"]\ncontext_length = 8192\n'
        f'max_concurrency = {NUM_STREAMS + 1}\nstall_timeout = "{stall_s:g}s"\n'
        'prefix_cache = "8MB"\n'
    )


async def strike_once(url: str, watch: Watch, signum: signal.Signals) -> Round:
    """One round on a server of `config_text` whose model is loaded."""
    async with asyncio.timeout(_DEADLINE_S), http_client(url) as books:
        before = await at_rest(books, watch)
        async with http_client(url) as client:  # its connections are closed before `after`
            running = _start(client, [_endless(i) for i in range(NUM_STREAMS + 1)])
            await until_held(books, NUM_STREAMS + 1, 0)
            waiting = _start(client, [_short(i) for i in range(NUM_WAITING)])
            await until_held(books, NUM_STREAMS + 1, NUM_WAITING)
            hit_s = time.perf_counter()
            os.kill(await _pid(books), signum)
            told, answers = await asyncio.gather(*running), await asyncio.gather(*waiting)
        return Round(
            signum,
            streams=told[:NUM_STREAMS],
            whole=told[NUM_STREAMS:],
            waiting=answers,
            back_s=min(reply.end_s for reply in answers) - hit_s,
            before=before,
            after=await at_rest(books, watch),
        )


def run(config: Path, *, num_rounds: int, stall_s: float) -> tuple[list[Figure], list[str]]:
    """Figures and troubles of `num_rounds` rounds, with the default model of `config`."""
    text = config_text(locate(load_config(config).default), stall_s=stall_s)
    rounds = []
    with (
        temporary_config(text) as own,
        tempfile.TemporaryFile() as log,  # of interest to nobody: it tells of each death
        Server(own, log=log) as server,
    ):
        watch = Watch(server.pid)
        for number in range(num_rounds):
            signum = SIGNALS[number % len(SIGNALS)]
            rounds.append(asyncio.run(strike_once(server.url, watch, signum)))
        exit_code = server.end()
        num_left = len(watch.left())
    troubles = [f"{r.signal.name}: {trouble}" for r in rounds for trouble in r.troubles]
    if exit_code or num_left:
        troubles.append(f"exit code {exit_code}, {num_left} processes left")
    return _figures(rounds, troubles), troubles


def _figures(rounds: list[Round], troubles: list[str]) -> list[Figure]:
    # The first blow of each kind brings in code and buffers that were not needed before.
    first, last = rounds[min(len(SIGNALS), len(rounds)) - 1].after, rounds[-1].after
    told = [reply for r in rounds for reply in (*r.streams, *r.whole)]
    killed_s = [r.back_s for r in rounds if r.signal != signal.SIGSTOP]
    return [
        Figure("rounds", len(rounds)),
        Figure("running requests that were told `engine_crashed`", sum(map(_is_told, told))),
        Figure("requests in the queue that were answered", sum(len(r.waiting) for r in rounds)),
        Figure("what should not be", len(troubles), "", "<= 0"),
        Figure("from a kill to the first answer, median", statistics.median(killed_s), "s"),
        Figure("memory of the server: growth", _mb(last) - _mb(first), "MB"),
        Figure("descriptors: growth", last.descriptors - first.descriptors, "", "<= 0"),
        Figure("threads: growth", last.threads - first.threads, "", "<= 0"),
    ]


async def at_rest(client: httpx2.AsyncClient, watch: Watch) -> Reading:
    """When the model is loaded and nobody is served."""
    while True:
        reading = await watch.read(time.perf_counter(), client)
        (status,) = (await client.get("/models")).json()["models"]
        if not (reading.num_held or reading.zombies) and status["state"] == "ready":
            return reading
        await asyncio.sleep(_PAUSE_S)


async def until_held(client: httpx2.AsyncClient, num_running: int, num_waiting: int) -> None:
    """When so many have a slot, and so many wait for one."""
    while True:
        if slots((await client.get("/metrics")).text) == (num_running, num_waiting):
            return
        await asyncio.sleep(_PAUSE_S)


async def _pid(client: httpx2.AsyncClient) -> int:
    (status,) = (await client.get("/models")).json()["models"]
    return int(status["pid"])


def _start(client: httpx2.AsyncClient, asks: list[Ask]) -> list[asyncio.Task[Reply]]:
    end_s = time.perf_counter() + _DEADLINE_S
    return [asyncio.create_task(attempt(client, ask, end_s)) for ask in asks]


def _endless(number: int) -> Ask:
    """Does not end before the round does; all of them fit into the context at once."""
    is_stream = number < NUM_STREAMS
    return _ask(f"Number {number}:", stream=is_stream, max_tokens=400, ignore_eos=True)


def _short(number: int) -> Ask:
    return _ask(f"Count from {number}:", stream=number % 2 == 0, max_tokens=4)


def _ask(prompt: str, **fields: Any) -> Ask:
    body = {"model": MODEL, "prompt": prompt, "temperature": 0, **fields}
    return Ask(kind="fault", route="/v1/completions", body=body)


def _is_told(reply: Reply) -> bool:
    return reply.error == CRASHED


def _has_crashed(reply: Reply, status: int) -> bool:
    return _is_told(reply) and reply.status == status


def _told(reply: Reply) -> str:
    return f"{reply.status} {reply.error} {reply.message}, whole: {reply.is_whole}"


def _mb(reading: Reading) -> float:
    return reading.parent_bytes / 1e6
