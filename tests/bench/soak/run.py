"""A server of its own, the load, and the verdict."""

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import click
import httpx2

from llmserve.config.load import load_config
from llmserve.hub.locate import locate
from tests.bench.figures import Figure
from tests.bench.soak.asks import STAYS, TAKE_TURNS
from tests.bench.soak.drive import STALL_S, Plan, Soak
from tests.bench.soak.judge import Judge
from tests.bench.soak.reference import CONTEXT_LENGTH, Reference
from tests.bench.soak.tally import Tally
from tests.bench.targets import Server, temporary_config


class Result(NamedTuple):
    figures: list[Figure]
    troubles: list[str]  # a line for each thing that went wrong
    is_whole: bool  # False: it was interrupted


def run(config: Path, plan: Plan) -> Result:
    """Soak the default model of `config`, under several names. Ctrl-C ends the load early."""
    path = locate(load_config(config).default)
    judge, tally = Judge(), Tally()
    with _several_models(path) as own, tempfile.TemporaryFile() as log:
        with Server(own, log=log) as server:
            soak = Soak(server, own, plan, judge, tally)
            is_whole = True
            try:
                asyncio.run(soak.drive())
            except KeyboardInterrupt:
                is_whole = False
            exit_code = server.end()
        tally.end(exit_code, num_left=len(soak.watch.left()), log_text=_text(log))
    if not tally.readings:
        raise SystemExit("bench: interrupted before the load began")
    click.echo("judging the answers", err=True)
    reference = Reference(path)
    try:
        judge.finish(reference)
    except KeyboardInterrupt:
        is_whole = False
    finally:
        reference.close()
    troubles = [*tally.troubles(), *judge.troubles()]
    return Result(tally.figures(judge), troubles, is_whole)


@contextlib.contextmanager
def _several_models(path: Path) -> Iterator[Path]:
    """One that stays, two of which one fits beside it, and one that cannot be loaded."""
    with temporary_config(_config_text(path, "auto")) as config:
        with path.open("rb") as file:
            config.with_name("broken.gguf").write_bytes(file.read(1 << 20))
        with Server(config) as server, httpx2.Client(base_url=server.url, timeout=600) as client:
            sizes = [
                client.post(f"/models/{name}/load").raise_for_status().json()["bytes"]
                for name in (STAYS, TAKE_TURNS[0])
            ]
        config.write_text(_config_text(path, f"{sizes[0] + sizes[1] * 3 // 2} B"))
        yield config


def _config_text(path: Path, budget: str) -> str:
    text = f'[server]\nmemory_budget = "{budget}"\npreload = false\n'
    common = f'path = "{path}"\ncontext_length = {CONTEXT_LENGTH}\nprefix_cache = "24MB"\n'
    # One thread each: two models with a team of threads each spin at each other's expense.
    common += f'stall_timeout = "{STALL_S:g}s"\nthreads = 1\n'
    text += f'[models.{STAYS}]\n{common}pinned = true\npooling = "mean"\n'
    for name in TAKE_TURNS:
        text += f"[models.{name}]\n{common}max_queue = 200\n"
    return text + '[models.broken]\npath = "broken.gguf"\n'


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
