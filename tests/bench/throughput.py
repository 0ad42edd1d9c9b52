"""How much of the machine the server turns into tokens, how fast it starts, what it weighs."""

import asyncio
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llmserve.config.load import load_config
from llmserve.hub.locate import locate
from tests.bench.figures import Figure, percentile
from tests.bench.targets import (
    BareLoop,
    Native,
    OpenAIPeer,
    Sample,
    Server,
    temporary_config,
)
from tests.bench.workload import prompts

NUM_STREAMS = 16
SAMPLED: dict[str, Any] = {"temperature": 0.7, "top_p": 0.95}


class Rounds:
    """Samples by name, one of each a round."""

    def __init__(self) -> None:
        self._samples: dict[str, list[Sample]] = {}

    def add(self, name: str, sample: Sample) -> None:
        self._samples.setdefault(name, []).append(sample)

    def rate(self, name: str) -> float:
        """Median tokens per second."""
        return statistics.median(sample.tokens_per_s for sample in self._samples[name])

    def ratio(self, name: str, over: str) -> float:
        """Median of the rounds' ratios: what the machine does meanwhile cancels out."""
        pairs = zip(self._samples[name], self._samples[over], strict=True)
        return statistics.median(a.tokens_per_s / b.tokens_per_s for a, b in pairs)

    def all(self, name: str) -> Iterable[Sample]:
        return self._samples[name]


def run(config: Path, *, num_rounds: int, max_tokens: int, peer: OpenAIPeer | None) -> list[Figure]:
    """Every figure, for the default model of `config`."""
    figures = _startup(config)
    rounds = Rounds()
    model = locate(load_config(config).default)
    bare = BareLoop(model)
    with Server(config) as server:
        for salt in range(num_rounds):
            asyncio.run(_round(rounds, bare, Native(server.url), peer, salt, max_tokens))
    extra_mb = _extra_mb(model, bare)
    bare.close()
    return (
        figures
        + _throughput(rounds, with_peer=peer is not None)
        + [Figure("server memory beyond a bare loop's process", extra_mb, "MB", "<= 60")]
    )


async def _round(
    rounds: Rounds, bare: BareLoop, native: Native, peer: OpenAIPeer | None, salt: int, size: int
) -> None:
    one = prompts(1, salt=salt)
    # A server that has seen a prompt has less to do.
    many, sampled, streamed = (prompts(NUM_STREAMS, salt=3 * salt + i) for i in range(3))
    rounds.add("bare 1", bare.run(one, size))
    rounds.add("served 1", await native.run(one, size))
    rounds.add("bare 16", bare.run(many, size))
    rounds.add("served 16", await native.run(many, size))
    rounds.add("sampled 16", await native.run(sampled, size, **SAMPLED))
    rounds.add("streamed 16", await native.run(streamed, size, stream=True))
    if peer:
        rounds.add("peer 1", await peer.run(one, size))
        rounds.add("peer 16", await peer.run(many, size))
        rounds.add("peer sampled 16", await peer.run(sampled, size, **SAMPLED))


def _throughput(rounds: Rounds, *, with_peer: bool) -> list[Figure]:
    gaps_s = [gap for sample in rounds.all("streamed 16") for gap in sample.gaps_s]
    ttft_s = [ttft for sample in rounds.all("streamed 16") for ttft in sample.ttft_s]
    figures = [
        Figure("bare loop, 1 stream", rounds.rate("bare 1"), "tok/s"),
        Figure("served, 1 stream", rounds.rate("served 1"), "tok/s"),
        Figure("bare loop, 16 streams", rounds.rate("bare 16"), "tok/s"),
        Figure("served, 16 streams", rounds.rate("served 16"), "tok/s"),
        Figure("served, 16 streams, T 0.7, top_p 0.95", rounds.rate("sampled 16"), "tok/s"),
        Figure("served as SSE, 16 streams", rounds.rate("streamed 16"), "tok/s"),
        Figure("served / bare, 1 stream", rounds.ratio("served 1", "bare 1"), "", ">= 0.93"),
        Figure("served / bare, 16 streams", rounds.ratio("served 16", "bare 16"), "", ">= 0.93"),
        Figure("sampled / bare, 16 streams", rounds.ratio("sampled 16", "bare 16"), "", ">= 0.90"),
        Figure("SSE / bare, 16 streams", rounds.ratio("streamed 16", "bare 16")),
        Figure("served, 16 over 1 stream", rounds.ratio("served 16", "served 1"), "", ">= 1.6"),
        Figure("TTFT, 16 at once, median", statistics.median(ttft_s) * 1e3, "ms"),
        Figure("inter-token gap, 16 streams, median", statistics.median(gaps_s) * 1e3, "ms"),
        Figure("inter-token gap, p99", percentile(gaps_s, 99) * 1e3, "ms"),
    ]
    if with_peer:
        pairs = (("1 stream", "1"), ("16 streams", "16"), ("16 streams, sampled", "sampled 16"))
        for label, key in pairs:
            ours = key if key.startswith("sampled") else f"served {key}"
            figures.append(Figure(f"peer, {label}", rounds.rate(f"peer {key}"), "tok/s"))
            figures.append(Figure(f"served / peer, {label}", rounds.ratio(ours, f"peer {key}")))
    return figures


def _extra_mb(model: Path, bare: BareLoop) -> float:
    """What the server takes beyond the bare loop, without the prefixes that it may remember."""
    text = f'[models.one]\npath = "{model}"\ncontext_length = 8192\nprefix_cache = "0B"\n'
    with temporary_config(text) as config, Server(config) as server:
        asyncio.run(Native(server.url).run(prompts(NUM_STREAMS), 32))
        return (server.memory_bytes - bare.rss_bytes) / 1e6


def _startup(config: Path) -> list[Figure]:
    """Time to ready, and memory before any model is loaded."""
    times = []
    for _ in range(3):
        with Server(config) as server:
            times.append(server.ready_s)
    lazy = config.read_text().replace("[server]", "[server]\npreload = false")
    with temporary_config(lazy) as path, Server(path) as server:
        idle_mb = server.memory_bytes / 1e6
    return [
        Figure("`llmserve serve` to ready", statistics.median(times), "s", "<= 3"),
        Figure("server memory, no model loaded", idle_mb, "MB", "<= 80"),
    ]
