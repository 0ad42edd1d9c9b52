"""The estimate against what a process really grows by, for models that llama.cpp really runs."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmserve.config.schema import ModelSpec
from llmserve.core import Pooling
from llmserve.gguf.header import read_model
from llmserve.pool.memory.embedding import embedding_use
from llmserve.pool.memory.estimate import ContextOptions, MemoryEstimate, estimate, repacked_types
from tests.smollm2 import MODEL
from tests.tiny_encoders import write_bert, write_nomic_bert
from tests.tiny_models import (
    write_gemma3,
    write_lfm2,
    write_llama,
    write_mamba,
    write_qwen2,
    write_qwen3,
)

TOLERANCE = 0.10
MIB = 1 << 20


def _measure(path: Path, num_cells: int, how: str, *options: str) -> tuple[int, frozenset[str]]:
    """The growth of a process that uses the model fully, and the types that it repacked."""
    run = subprocess.run(
        [sys.executable, "-m", f"tests.pool.memory.{how}", str(path), str(num_cells), *options],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    report = json.loads(run.stdout)
    return report["growth_bytes"], repacked_types(report["system_info"])


def _check(path: Path, num_cells: int) -> None:
    growth_bytes, repacked = _measure(path, num_cells, "measure_growth")
    options = ContextOptions(repacked_types=repacked)
    estimated = estimate(read_model(path), num_cells=num_cells, options=options)
    _compare(path, num_cells, estimated, growth_bytes)


def _check_embedding(path: Path, max_len: int, pooling: Pooling | None = None) -> None:
    options = (pooling,) if pooling else ()
    growth_bytes, repacked = _measure(path, max_len, "measure_embedding", *options)
    model = read_model(path)
    estimated = estimate(
        model,
        num_cells=max_len,
        options=ContextOptions(repacked_types=repacked),
        embedding=embedding_use(ModelSpec(pooling=pooling), model.header),
    )
    _compare(path, max_len, estimated, growth_bytes)


def _compare(path: Path, num_cells: int, estimated: MemoryEstimate, growth_bytes: int) -> None:
    ratio = estimated.resident_bytes / growth_bytes
    print(  # shown by `pytest -rP`: the table for whoever calibrates
        f"{path.name:14} cells {num_cells:5}  estimate {estimated.resident_bytes / MIB:6.1f} MiB"
        f"  real {growth_bytes / MIB:6.1f} MiB  ratio {ratio:.3f}  {estimated}"
    )
    assert abs(ratio - 1) <= TOLERANCE, (ratio, estimated, growth_bytes)


@pytest.mark.parametrize("num_cells", [512, 4096])
def test_embedded_model(num_cells: int) -> None:
    _check(MODEL, num_cells)


def test_embedded_model_with_embeddings() -> None:
    """Two contexts on the same weights."""
    _check_embedding(MODEL, 512, Pooling.MEAN)


# Of 25 to 60 MiB each: large enough that 10 % means something, small enough to write and run.
_SHAPES: dict[str, tuple[Callable[..., Path], dict[str, Any]]] = {
    "llama-gqa": (
        write_llama,
        {"layers": 4, "embedding": 768, "heads": 12, "kv_heads": 3, "feed_forward": 2048}
        | {"vocab": 8192, "weights": "f16"},
    ),
    "llama-q4": (  # repacked where the CPU can, with an untied output
        write_llama,
        {"layers": 12, "embedding": 768, "heads": 12, "kv_heads": 4, "feed_forward": 2304}
        | {"vocab": 16384, "tied": False, "weights": "q4_0"},
    ),
    "moe": (
        write_llama,
        {"layers": 4, "embedding": 512, "heads": 8, "kv_heads": 4, "feed_forward": 512}
        | {"experts": 8, "experts_used": 2, "vocab": 4096},
    ),
    "qwen2": (
        write_qwen2,
        {"layers": 6, "embedding": 768, "heads": 12, "kv_heads": 2, "feed_forward": 2304}
        | {"vocab": 32768},
    ),
    "gemma3": (
        write_gemma3,
        {"layers": 12, "embedding": 512, "heads": 4, "kv_heads": 2, "head_len": 128}
        | {"feed_forward": 2048, "window": 128, "vocab": 16384},
    ),
    "mamba": (write_mamba, {"layers": 8, "embedding": 768, "vocab": 8192}),
    "lfm2": (
        write_lfm2,
        {"layers": 10, "embedding": 768, "heads": 12, "kv_heads": 4, "feed_forward": 2048}
        | {"vocab": 8192},
    ),
}


@pytest.mark.parametrize("shape", _SHAPES)
def test_other_shapes(shape: str, tmp_path: Path) -> None:
    write, arguments = _SHAPES[shape]
    _check(write(tmp_path / f"{shape}.gguf", **arguments), num_cells=4096)


# As the shapes above. Where the vocabulary is large, rows of logits are most of the memory.
_EMBEDDERS: dict[str, tuple[Callable[..., Path], dict[str, Any], int]] = {
    "bert-small": (
        write_bert,
        {"layers": 6, "embedding": 384, "heads": 12, "feed_forward": 1536, "vocab": 30522},
        512,
    ),
    "nomic-bert": (
        write_nomic_bert,
        {"layers": 3, "embedding": 768, "heads": 12, "feed_forward": 3072, "vocab": 8192}
        | {"weights": "q8_0"},
        1024,
    ),
    "qwen3": (
        write_qwen3,
        {"layers": 6, "embedding": 768, "heads": 12, "kv_heads": 4, "feed_forward": 2304}
        | {"vocab": 16384, "settings": {"pooling_type": 3}},
        1024,
    ),
}


@pytest.mark.parametrize("shape", _EMBEDDERS)
def test_models_for_embeddings(shape: str, tmp_path: Path) -> None:
    write, arguments, max_len = _EMBEDDERS[shape]
    _check_embedding(write(tmp_path / f"{shape}.gguf", **arguments), max_len)
