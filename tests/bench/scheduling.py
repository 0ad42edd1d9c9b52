"""What streams and newcomers feel while others send long prompts, beside another server.

Every workload is asked of all targets in turn, in each round, with prompts that nobody has seen.
"""

import asyncio
import itertools
import statistics
import time

import httpx2

from tests.bench.figures import Figure, percentile
from tests.bench.load import Answer, Target, Texts, drop, http_client, new_seed

NUM_RUNNING = 4
LONG_TOKENS = 2000
NUM_LONG = 4
BEHIND_TOKENS = 4000
NUM_SHORT = 6
SHORT_TOKENS = 24

Measured = dict[str, float]


class Rounds:
    """What each target measured in each round: `[target][key]` has a value a round."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, list[float]]] = {}

    def add(self, target: Target, measured: Measured) -> None:
        for key, value in measured.items():
            self._values.setdefault(target.name, {}).setdefault(key, []).append(value)

    def median(self, target: Target, key: str) -> float:
        return statistics.median(self._values[target.name][key])

    def ratio(self, key: str, target: Target, over: Target) -> float:
        """Median of the rounds' ratios."""
        pairs = zip(self._values[target.name][key], self._values[over.name][key], strict=True)
        return statistics.median(a / b for a, b in pairs)


async def _measure(targets: list[Target], *, num_rounds: int) -> Rounds:
    rounds = Rounds()
    async with http_client() as client:
        for number in range(num_rounds):
            for workload in (_stall, _overtake):
                order = targets if number % 2 == 0 else targets[::-1]
                seed = new_seed()
                for target in order:
                    texts = await Texts.make(target, client, seed=seed)
                    rounds.add(target, await workload(target, client, texts))
    return rounds


async def _stall(target: Target, client: httpx2.AsyncClient, texts: Texts) -> Measured:
    """`NUM_RUNNING` streams go on while long prompts keep arriving, one after the other."""
    answers = [Answer(time.perf_counter()) for _ in range(NUM_RUNNING)]
    streams = [
        asyncio.create_task(target.follow(client, texts.take(SHORT_TOKENS), 4000, answer))
        for answer in answers
    ]
    while not all(len(answer.arrivals_s) > 3 for answer in answers):
        await asyncio.sleep(0.01)
        for stream in streams:
            if stream.done():
                stream.result()
    begin_s = time.perf_counter()
    for _ in range(NUM_LONG):
        await target.stream(client, texts.take(LONG_TOKENS), 4)
    end_s = time.perf_counter()
    for stream in streams:
        await drop(stream)
    gaps_s = [_gaps_between(answer, begin_s, end_s) for answer in answers]
    num_pieces = sum(map(len, gaps_s))
    num_tokens = NUM_LONG * (LONG_TOKENS + 4) + num_pieces
    return {
        "gap p99": percentile([gap for gaps in gaps_s for gap in gaps], 99),
        "gap max": max(gap for gaps in gaps_s for gap in gaps),
        "tokens/s": num_tokens / (end_s - begin_s),
    }


def _gaps_between(answer: Answer, begin_s: float, end_s: float) -> list[float]:
    """The gaps that end in the window, and what was waited at its end."""
    times = [t for t in answer.arrivals_s if t <= end_s]
    before = [t for t in times if t < begin_s][-1:]
    inside = [t for t in times if t >= begin_s]
    points = [*before, *inside, end_s]
    return [b - a for a, b in itertools.pairwise(points)]


async def _overtake(target: Target, client: httpx2.AsyncClient, texts: Texts) -> Measured:
    """Short prompts arrive behind one of `BEHIND_TOKENS`."""
    long = asyncio.create_task(target.stream(client, texts.take(BEHIND_TOKENS), 4))
    await asyncio.sleep(0.3)
    shorts = []
    for _ in range(NUM_SHORT):
        prompt = texts.take(SHORT_TOKENS)
        shorts.append(asyncio.create_task(target.stream(client, prompt, 8)))
        await asyncio.sleep(0.1)
    answers = await asyncio.gather(*shorts)
    return {
        "short ttft": statistics.median(answer.ttft_s for answer in answers),
        "long ttft": (await long).ttft_s,
    }


def run(ours: Target, peer: Target | None, *, num_rounds: int) -> list[Figure]:
    """Every figure. `ours` and `peer` are running."""
    targets = [ours] if peer is None else [ours, peer]
    return _figures(asyncio.run(_measure(targets, num_rounds=num_rounds)), ours, peer)


def _figures(rounds: Rounds, ours: Target, peer: Target | None) -> list[Figure]:
    """Absolute values of all targets, and ours over the peer's."""
    keys = (
        ("gap p99", "gap between tokens beside long prompts, p99", 1e3, "ms"),
        ("gap max", "… longest", 1e3, "ms"),
        ("tokens/s", "… tokens of prompts and answers", 1, "tok/s"),
        ("short ttft", f"TTFT of short prompts behind {BEHIND_TOKENS} tokens, median", 1e3, "ms"),
        ("long ttft", "… of the long one", 1e3, "ms"),
    )  # fmt: skip
    table = []
    for target in [ours] if peer is None else [ours, peer]:
        for key, label, factor, unit in keys:
            value = rounds.median(target, key) * factor
            table.append(Figure(f"{target.name}: {label}", value, unit))
    if peer is not None:
        for key, label, reach in (
            ("gap p99", "gap between tokens, p99", "<= 0.05"),
            ("tokens/s", "tokens/s beside long prompts", ">= 0.80"),
            ("short ttft", "TTFT of short prompts behind a long one", "<= 0.10"),
        ):
            name = f"{ours.name} / {peer.name}: {label}"
            table.append(Figure(name, rounds.ratio(key, ours, peer), "", reach))
    return table
