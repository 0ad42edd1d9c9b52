"""What a batch is worth: many short texts in one call, and in a call each."""

import statistics
import time
from pathlib import Path
from typing import Any

import httpx2

from llmserve.bench.figures import Figure
from llmserve.bench.targets import Server, temporary_config
from llmserve.bench.workload import short_texts
from llmserve.registry.config import load_config
from llmserve.registry.sources import locate

NUM_TEXTS = 64


def run(config: Path, *, num_rounds: int) -> list[Figure]:
    """Interleaved rounds over the default model of `config`, with mean pooling."""
    path = locate(load_config(config).default)
    text = f'[models.embedder]\npath = "{path}"\npooling = "mean"\ncontext_length = 2048\n'
    together_s: list[float] = []
    apart_s: list[float] = []
    num_tokens = 0
    with (
        temporary_config(text) as own,
        Server(own) as server,
        httpx2.Client(base_url=server.url, timeout=600) as client,
    ):
        _embed(client, short_texts(NUM_TEXTS))  # warm
        for salt in range(1, num_rounds + 1):
            texts = short_texts(NUM_TEXTS, salt=salt)
            ways = [(together_s, [texts]), (apart_s, [[text] for text in texts])]
            for times, calls in ways if salt % 2 else ways[::-1]:
                begin_s = time.perf_counter()
                num_tokens = sum(_embed(client, call) for call in calls)
                times.append(time.perf_counter() - begin_s)
    ratios = [b / a for a, b in zip(together_s, apart_s, strict=True)]
    return [
        Figure("64 short texts in one call", statistics.median(together_s) * 1e3, "ms"),
        Figure("… tokens", num_tokens / statistics.median(together_s), "tok/s"),
        Figure("… in 64 calls, one after the other", statistics.median(apart_s) * 1e3, "ms"),
        Figure("64 calls / one call", statistics.median(ratios), "", ">= 3"),
    ]


def _embed(client: httpx2.Client, texts: list[str]) -> int:
    """The tokens of the texts."""
    body: dict[str, Any] = {"input": texts, "encoding_format": "base64"}
    response = client.post("/v1/embeddings", json=body)
    response.raise_for_status()
    answer = response.json()
    assert len(answer["data"]) == len(texts)
    num_tokens: int = answer["usage"]["prompt_tokens"]
    return num_tokens
