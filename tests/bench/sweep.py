"""Throughput, gaps and time to first token against offered load, beside another server."""

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
from msgspec import Struct

from tests.bench.figures import Figure, percentile
from tests.bench.load import Answer, Target, Texts, http_client, new_seed

RATES = (0.25, 0.5, 1.0, 2.0)


class Point(Struct):
    """One target at one offered load."""

    target: str
    requests_per_s: float
    tokens_per_s: float  # generated, from the first arrival to the last token
    gap_p50_s: float
    gap_p99_s: float
    ttft_p50_s: float


class Sweep(NamedTuple):
    rates: tuple[float, ...]  # requests a second
    window_s: float  # of arrivals
    prompt_tokens: int = 300
    max_tokens: int = 48


def run(targets: list[Target], plan: Sweep) -> list[Point]:
    """Each rate at each target in turn: Poisson arrivals for `window_s`, then all may finish."""
    return asyncio.run(_sweep(targets, plan))


async def _sweep(targets: list[Target], plan: Sweep) -> list[Point]:
    points = []
    async with http_client() as client:
        for rate in plan.rates:
            seed = new_seed()
            for target in targets:
                texts = await Texts.make(target, client, seed=seed)
                points.append(await _offer(target, client, texts, plan, rate))
    return points


async def _offer(
    target: Target, client: httpx2.AsyncClient, texts: Texts, plan: Sweep, rate: float
) -> Point:
    rng = random.Random(int(rate * 1000))
    tasks: list[asyncio.Task[Answer]] = []
    begin_s = time.perf_counter()
    due_s = 0.0
    while (due_s := due_s + rng.expovariate(rate)) < plan.window_s or not tasks:
        await asyncio.sleep(max(0.0, begin_s + due_s - time.perf_counter()))
        prompt = texts.take(plan.prompt_tokens)
        tasks.append(asyncio.create_task(target.stream(client, prompt, plan.max_tokens)))
    answers = await asyncio.gather(*tasks)
    elapsed_s = max(answer.arrivals_s[-1] for answer in answers) - begin_s
    gaps_s = [gap for answer in answers for gap in answer.gaps_s]
    return Point(
        target=target.name,
        requests_per_s=rate,
        tokens_per_s=sum(answer.num_tokens for answer in answers) / elapsed_s,
        gap_p50_s=percentile(gaps_s, 50),
        gap_p99_s=percentile(gaps_s, 99),
        ttft_p50_s=percentile([answer.ttft_s for answer in answers], 50),
    )


def figures(points: list[Point]) -> list[Figure]:
    """Three for each point, in the order they were taken."""
    table = []
    for point in points:
        name = f"{point.target}, {point.requests_per_s:g} requests/s"
        table += [
            Figure(f"{name}: throughput", point.tokens_per_s, "tok/s"),
            Figure("… gap between tokens, p99", point.gap_p99_s * 1e3, "ms"),
            Figure("… TTFT, median", point.ttft_p50_s * 1e3, "ms"),
        ]
    return table


def plot(points: list[Point], path: Path) -> None:
    """Throughput and gaps against offered load, a line for each target."""
    from matplotlib.figure import Figure as Drawing

    panels: tuple[tuple[str, Callable[[Point], float], str], ...] = (
        ("tokens/s", lambda p: p.tokens_per_s, "linear"),
        ("gap between tokens, p99, s", lambda p: p.gap_p99_s, "log"),
        ("time to first token, median, s", lambda p: p.ttft_p50_s, "log"),
    )
    drawing: Any = Drawing(figsize=(13, 4), layout="tight")
    for axis, (label, value, scale) in zip(drawing.subplots(1, len(panels)), panels, strict=True):
        for name in dict.fromkeys(point.target for point in points):
            own = [point for point in points if point.target == name]
            axis.plot([p.requests_per_s for p in own], [value(p) for p in own], "o-", label=name)
        rates = sorted({point.requests_per_s for point in points})
        axis.set(xlabel="requests/s offered", ylabel=label, xscale="log", yscale=scale)
        axis.set_xticks(rates, [f"{rate:g}" for rate in rates], minor=False)
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
        axis.legend()
    drawing.savefig(path)
