"""What it costs that a model has a process of its own, against threads of the server."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

from llmserve.config.load import load_config
from llmserve.hub.locate import locate
from tests.bench.figures import Figure
from tests.bench.targets import Native, Server, temporary_config
from tests.bench.throughput import NUM_STREAMS, Rounds
from tests.bench.workload import prompts

_MODES = ("process", "thread")


def run(config: Path, *, num_rounds: int, max_tokens: int) -> list[Figure]:
    """Throughput in rounds taken in turn, then memory of each alone."""
    model = locate(load_config(config).default)
    rounds = Rounds()
    with contextlib.ExitStack() as stack:
        servers = {mode: stack.enter_context(_server(model, mode)) for mode in _MODES}
        ready_s = {mode: server.ready_s for mode, server in servers.items()}
        for salt in range(num_rounds):
            # Who comes first in a round takes turns too.
            for mode in _MODES if salt % 2 else _MODES[::-1]:
                asyncio.run(_round(rounds, mode, Native(servers[mode].url), salt, max_tokens))
    memory_mb = {mode: _memory_mb(model, mode) for mode in _MODES}
    return [
        *_throughput(rounds),
        Figure("to ready, process", ready_s["process"], "s"),
        Figure("to ready, threads", ready_s["thread"], "s"),
        Figure("memory with the model loaded and used, process", memory_mb["process"], "MB"),
        Figure("… threads", memory_mb["thread"], "MB"),
        Figure("… beyond threads", memory_mb["process"] - memory_mb["thread"], "MB", "<= 45"),
    ]


async def _round(rounds: Rounds, mode: str, native: Native, salt: int, size: int) -> None:
    # A server that has seen a prompt has less to do; both get the same ones.
    many, streamed = (prompts(NUM_STREAMS, salt=2 * salt + i) for i in range(2))
    rounds.add(f"{mode} 1", await native.run(prompts(1, salt=salt), size))
    rounds.add(f"{mode} 16", await native.run(many, size))
    rounds.add(f"{mode} streamed 16", await native.run(streamed, size, stream=True))


def _throughput(rounds: Rounds) -> list[Figure]:
    figures = []
    for label, key, reach in (
        ("1 stream", "1", ""),
        ("16 at once", "16", ">= 0.97"),
        ("16 streams as SSE", "streamed 16", ">= 0.97"),
    ):
        names = [f"{mode} {key}" for mode in _MODES]
        figures += [
            Figure(f"{label}, process", rounds.rate(names[0]), "tok/s"),
            Figure(f"{label}, threads", rounds.rate(names[1]), "tok/s"),
            Figure(f"{label}, process / threads", rounds.ratio(*names), "", reach),
        ]
    return figures


def _memory_mb(model: Path, mode: str) -> float:
    with _server(model, mode) as server:
        asyncio.run(Native(server.url).run(prompts(NUM_STREAMS), 32))
        return server.memory_bytes / 1e6


@contextlib.contextmanager
def _server(model: Path, mode: str) -> Iterator[Server]:
    """Without remembered prefixes, which would be most of the memory."""
    text = (
        f'[server]\nisolation = "{mode}"\n'
        f'[models.one]\npath = "{model}"\ncontext_length = 8192\nprefix_cache = "0B"\n'
    )
    with temporary_config(text) as config, Server(config) as server:
        yield server
