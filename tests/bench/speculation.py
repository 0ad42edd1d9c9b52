"""What guessing ahead gains where an answer repeats its prompt, and what it costs elsewhere."""

import asyncio
from contextlib import AbstractContextManager
from pathlib import Path

from llmserve.config.load import load_config
from llmserve.hub.locate import locate
from tests.bench.figures import Figure
from tests.bench.targets import Native, Server, temporary_config
from tests.bench.throughput import Rounds
from tests.bench.workload import TOPICS, prompts


def run(config: Path, *, num_rounds: int, max_tokens: int) -> list[Figure]:
    """One stream with and without guesses, in turn, over the default model of `config`."""
    path = locate(load_config(config).default)
    rounds = Rounds()
    with (
        _config(path, "true") as on,
        _config(path, "false") as off,
        Server(on) as drafting,
        Server(off) as plain,
    ):
        ways = {"": Native(drafting.url), " plain": Native(plain.url)}
        for salt in range(num_rounds):
            asyncio.run(_round(rounds, ways, salt, max_tokens))
    return [
        Figure("copying, no guesses, 1 stream", rounds.rate("copy plain"), "tok/s"),
        Figure("copying, 1 stream", rounds.rate("copy"), "tok/s"),
        Figure("copying: guesses / none", rounds.ratio("copy", "copy plain"), "", ">= 1.3"),
        Figure("new text: guesses / none", rounds.ratio("new", "new plain")),
        Figure("new text, 16 streams: guesses / none", rounds.ratio("many", "many plain")),
    ]


async def _round(rounds: Rounds, ways: dict[str, Native], salt: int, max_tokens: int) -> None:
    turns = list(ways.items())
    for suffix, target in turns if salt % 2 else turns[::-1]:
        rounds.add("copy" + suffix, await target.run([_copy_task(salt)], max_tokens))
        rounds.add("new" + suffix, await target.run(prompts(1, salt=salt), max_tokens))
        rounds.add("many" + suffix, await target.run(prompts(16, salt=salt), max_tokens // 2))


def _copy_task(salt: int) -> str:
    """A text, and the beginning of the same with one word changed."""
    words = [f"{TOPICS[(salt + i) % len(TOPICS)]} comes before number {i}," for i in range(8)]
    text = " ".join(words)
    copy = text.replace(" comes before ", " stands behind ", 1)
    return f"The text:\n{text}\nThe same text with one word changed:\n{copy[:120]}"


def _config(path: Path, speculation: str) -> AbstractContextManager[Path]:
    return temporary_config(
        f'[models.one]\npath = "{path}"\ncontext_length = 8192\nspeculation = {speculation}\n'
    )
