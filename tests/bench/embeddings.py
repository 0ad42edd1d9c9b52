"""What a batch is worth: many short texts in one call, and in a call each."""

import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

from llmserve.config.load import load_config
from llmserve.hub.locate import locate
from tests.bench.figures import Figure
from tests.bench.targets import Server, temporary_config
from tests.bench.workload import short_texts
from tests.tiny_encoders import CLS, SEP, write_bert

NUM_TEXTS = 64
# all-MiniLM-L6-v2, the most downloaded of all embedding models, at 23 M parameters.
_MINILM = {"layers": 6, "embedding": 384, "heads": 12, "feed_forward": 1536, "vocab": 30522}
Texts = Callable[[int], list[Any]]


def run(config: Path, *, num_rounds: int) -> list[Figure]:
    """An encoder of a usual size, and the default model of `config` with mean pooling."""
    path = locate(load_config(config).default)
    text = f'[models.decoder]\npath = "{path}"\npooling = "mean"\ncontext_length = 1024\n'
    text += '[models.encoder]\npath = "encoder.gguf"\n'
    with temporary_config(text) as own:
        write_bert(own.with_name("encoder.gguf"), weights="q8_0", **_MINILM)
        with Server(own) as server, httpx2.Client(base_url=server.url, timeout=600) as client:
            return [
                *_figures(client, "encoder", _token_lists, num_rounds, "of an encoder", ">= 3"),
                *_figures(client, "decoder", _texts, num_rounds, "of the default model", ""),
            ]


def _figures(
    client: httpx2.Client, model: str, texts: Texts, num_rounds: int, label: str, target: str
) -> list[Figure]:
    """Rounds of both ways, each first in turn."""
    together_s: list[float] = []
    apart_s: list[float] = []
    _embed(client, model, texts(0))  # loads it
    for salt in range(1, num_rounds + 1):
        inputs = texts(salt)
        ways = [(together_s, [inputs]), (apart_s, [[each] for each in inputs])]
        for times, calls in ways if salt % 2 else ways[::-1]:
            begin_s = time.perf_counter()
            for call in calls:
                _embed(client, model, call)
            times.append(time.perf_counter() - begin_s)
    ratios = [b / a for a, b in zip(together_s, apart_s, strict=True)]
    return [
        Figure(f"{NUM_TEXTS} short texts {label}, one call", _median_ms(together_s), "ms"),
        Figure("… a call each, one after the other", _median_ms(apart_s), "ms"),
        Figure("… calls / call", statistics.median(ratios), "", target),
    ]


def _median_ms(times_s: list[float]) -> float:
    return statistics.median(times_s) * 1e3


def _texts(salt: int) -> list[Any]:
    return short_texts(NUM_TEXTS, salt=salt)


def _token_lists(salt: int) -> list[Any]:
    """As many tokens as a real vocabulary makes of `_texts`."""
    rng = random.Random(salt)
    return [[CLS, *(rng.randrange(200, 30000) for _ in range(6)), SEP] for _ in range(NUM_TEXTS)]


def _embed(client: httpx2.Client, model: str, inputs: list[Any]) -> None:
    body = {"model": model, "input": inputs, "encoding_format": "base64"}
    response = client.post("/v1/embeddings", json=body)
    response.raise_for_status()
    assert len(response.json()["data"]) == len(inputs)
