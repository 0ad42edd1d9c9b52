"""How long it takes until a model that is warm, cold or in another's place answers."""

import statistics
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import httpx2

from llmserve.config.load import load_config
from llmserve.hub.locate import locate
from tests.bench.bare import timed_load
from tests.bench.figures import Figure
from tests.bench.targets import Server, temporary_config

_SHORT = {"prompt": "Say hello.", "parameters": {"max_tokens": 1, "temperature": 0}}


class _Loads(NamedTuple):
    """Seconds of each round, and what one model takes."""

    warm_s: list[float]
    cold_s: list[float]
    pool_s: list[float]
    bare_s: list[float]
    model_bytes: int


def run(config: Path, *, num_rounds: int) -> list[Figure]:
    """Every figure, for the default model of `config` and a second one from the same file."""
    path = locate(load_config(config).default)
    with _two_models(path) as roomy:
        loads = _loads(roomy, path, num_rounds)
    with _two_models(path, budget_bytes=loads.model_bytes * 3 // 2) as tight:
        swaps_s = _swaps(tight, num_rounds)
    return [
        Figure("time to first token, warm model", statistics.median(loads.warm_s) * 1e3, "ms"),
        Figure("… cold load, warm page cache", statistics.median(loads.cold_s) * 1e3, "ms"),
        Figure("… swap: another model has to leave first", statistics.median(swaps_s) * 1e3, "ms"),
        Figure("load by llama.cpp alone", statistics.median(loads.bare_s) * 1e3, "ms"),
        Figure("load by the pool", statistics.median(loads.pool_s) * 1e3, "ms"),
        Figure("pool over llama.cpp", _ratio(loads.pool_s, loads.bare_s), "", "<= 1.05"),
    ]


def _loads(config: Path, path: Path, num_rounds: int) -> _Loads:
    with Server(config) as server, httpx2.Client(base_url=server.url, timeout=600) as client:
        model_bytes = client.get("/models").json()["models"][0]["bytes"]
        loads = _Loads(
            [_ttft(client, "one") for _ in range(num_rounds * 3)], [], [], [], model_bytes
        )
        for _ in range(num_rounds * 3):
            loads.bare_s.append(timed_load(path))
            _unload(client)
            loads.pool_s.append(_timed(client, "/models/one/load", {}))
        for _ in range(num_rounds):
            _unload(client)
            loads.cold_s.append(_ttft(client, "one"))
    return loads


def _unload(client: httpx2.Client) -> None:
    client.post("/models/one/unload").raise_for_status()


def _swaps(config: Path, num_rounds: int) -> list[float]:
    with Server(config) as server, httpx2.Client(base_url=server.url, timeout=600) as client:
        _ttft(client, "one")
        return [_ttft(client, name) for _ in range(num_rounds) for name in ("two", "one")]


def _ttft(client: httpx2.Client, model: str) -> float:
    """Seconds for a whole answer of one token."""
    return _timed(client, "/inference", {**_SHORT, "model": model})


def _timed(client: httpx2.Client, route: str, body: object) -> float:
    begin_s = time.perf_counter()
    client.post(route, json=body).raise_for_status()
    return time.perf_counter() - begin_s


def _ratio(ours_s: list[float], theirs_s: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours_s, theirs_s, strict=True))


def _two_models(path: Path, *, budget_bytes: int | None = None) -> AbstractContextManager[Path]:
    budget = "auto" if budget_bytes is None else f"{budget_bytes} B"
    text = f'[server]\nmemory_budget = "{budget}"\n'
    for name in ("one", "two"):
        # Without remembered prefixes, which would make room for the other model.
        text += f'[models.{name}]\npath = "{path}"\ncontext_length = 8192\nprefix_cache = "0B"\n'
    return temporary_config(text)
