"""How long it takes until a model that is warm, cold or in another's place answers."""

import statistics
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path

import httpx2

from llmserve.bench.bare import timed_load
from llmserve.bench.figures import Figure
from llmserve.bench.targets import Server, temporary_config
from llmserve.registry.config import load_config
from llmserve.registry.sources import locate

_SHORT = {"prompt": "Say hello.", "parameters": {"max_tokens": 1, "temperature": 0}}


def run(config: Path, *, num_rounds: int) -> list[Figure]:
    """Every figure, for the default model of `config` and a second one from the same file."""
    path = locate(load_config(config).default)
    with tempfile.TemporaryDirectory() as folder, _two_models(Path(folder), path) as two:
        with Server(two) as server, httpx2.Client(base_url=server.url, timeout=600) as client:
            one_bytes = client.get("/models").json()["models"][0]["bytes"]
            warm_s = [_ttft(client, "one") for _ in range(num_rounds * 3)]
            loads_s, bare_s = [], []
            for _ in range(num_rounds * 3):
                bare_s.append(timed_load(path))
                client.post("/models/one/unload").raise_for_status()
                loads_s.append(_timed(client, "/models/one/load", {}))
            client.post("/models/one/unload").raise_for_status()
            cold_s = []
            for _ in range(num_rounds):
                cold_s.append(_ttft(client, "one"))
                client.post("/models/one/unload").raise_for_status()
        with _two_models(Path(folder), path, budget_bytes=one_bytes * 3 // 2) as tight:
            swaps_s = _swaps(tight, num_rounds)
    return [
        Figure("time to first token, warm model", statistics.median(warm_s) * 1e3, "ms"),
        Figure("… cold load, warm page cache", statistics.median(cold_s) * 1e3, "ms"),
        Figure("… swap: another model has to leave first", statistics.median(swaps_s) * 1e3, "ms"),
        Figure("load by llama.cpp alone", statistics.median(bare_s) * 1e3, "ms"),
        Figure("load by the pool", statistics.median(loads_s) * 1e3, "ms"),
        Figure("pool over llama.cpp", _ratio(loads_s, bare_s), "", "<= 1.05"),
    ]


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


def _two_models(
    folder: Path, path: Path, *, budget_bytes: int | None = None
) -> AbstractContextManager[Path]:
    budget = "auto" if budget_bytes is None else f"{budget_bytes} B"
    text = f'[server]\nmemory_budget = "{budget}"\n'
    for name in ("one", "two"):
        text += f'[models.{name}]\npath = "{path}"\ncontext_length = 8192\n'
    return temporary_config(folder, text)
