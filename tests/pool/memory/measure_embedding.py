"""Load a model for embeddings, use all that it takes, and print by how much the process grew.

    python -m tests.pool.memory.measure_embedding MODEL CONTEXT_LENGTH [POOLING]

As `measure_growth`, for what `plan_load` makes of a spec with that `pooling`.
"""

import json
import sys
from pathlib import Path

import psutil

from llmserve.config.schema import ModelSpec
from llmserve.core import Pooling
from llmserve.engine.llama import LlamaParams, LlamaRuntime
from llmserve.engine.llama.runtime import system_info
from llmserve.engine.runtime import Chunk, InputChunk
from llmserve.gguf.header import read_model
from llmserve.pool.load_plan import plan_load
from llmserve.pool.memory.estimate import repacked_types


def main() -> None:
    path, context_length, *pooling = sys.argv[1:]
    spec = ModelSpec(
        path=Path(path),
        context_length=int(context_length),
        pooling=Pooling(pooling[0]) if pooling else None,
    )
    repacked = repacked_types(system_info())
    plan = plan_load(spec, read_model(Path(path)), 1 << 40, repacked)
    before = psutil.Process().memory_info().rss
    runtime = LlamaRuntime(
        Path(path),
        LlamaParams(
            context_length=plan.context_length,
            max_sequences=plan.max_sequences,
            max_outputs=plan.max_outputs,
            num_threads=2,
            embedding=plan.embedding,
            generates=plan.generates,
        ),
    )
    _use(runtime)
    growth_bytes = psutil.Process().memory_info().rss - before
    report = {"growth_bytes": growth_bytes, "size_bytes": plan.size_bytes}
    print(json.dumps({**report, "system_info": system_info()}))


def _use(runtime: LlamaRuntime) -> None:
    """The longest input, in as few calls as there can be; where it generates, as long a prompt."""
    limits = runtime.embedding_limits
    assert limits
    tokens = [3 + i * 7 % 250 for i in range(limits.max_len)]
    size = limits.max_len if limits.is_whole else limits.max_batch
    for start in range(0, len(tokens), size):
        part = tokens[start : start + size]
        runtime.embed([InputChunk(0, start, part, is_last=start + size >= len(tokens))])
    if runtime.info.generates:
        size = runtime.limits.max_batch
        for start in range(0, len(tokens), size):
            runtime.decode([Chunk(0, start, tokens[start : start + size], True)])


if __name__ == "__main__":
    main()
