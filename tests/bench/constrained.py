"""What structured output costs: tokens per second under a schema, and compiling one."""

import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

from llmserve.config.load import load_config
from llmserve.core import Constraint
from llmserve.engine.llama import LlamaParams, LlamaRuntime
from llmserve.engine.structured.compiler import Compiler
from llmserve.hub.locate import locate
from tests.bench.figures import Figure, percentile
from tests.bench.targets import Native, Server
from tests.bench.throughput import NUM_STREAMS, Rounds
from tests.bench.workload import prompts

NUM_FIELDS = 100
NUM_COMPILES = 100
_TYPES: tuple[dict[str, Any], ...] = (
    {"type": "string"},
    {"type": "integer"},
    {"type": "number"},
    {"type": "boolean"},
    {"type": "array", "items": {"type": "string"}},
)


def run(config: Path, *, num_rounds: int, max_tokens: int) -> list[Figure]:
    """Both streams of a round write `max_tokens` tokens: the schema cannot be done earlier."""
    rounds = Rounds()
    with Server(config) as server:
        native = Native(server.url)
        for salt in range(num_rounds):
            asyncio.run(_round(rounds, native, salt, max_tokens))
    compile_s = _compile_times(config)
    return [
        Figure("free, 16 streams", rounds.rate("free"), "tok/s"),
        Figure("under a JSON schema, 16 streams", rounds.rate("constrained"), "tok/s"),
        Figure("schema / free, 16 streams", rounds.ratio("constrained", "free"), "", ">= 0.90"),
        Figure("the model's token table, once", compile_s[0] * 1e3, "ms"),
        Figure("compiling 100 fields, median", statistics.median(compile_s[1:]) * 1e3, "ms"),
        Figure("compiling 100 fields, p95", percentile(compile_s[1:], 95) * 1e3, "ms", "<= 20"),
    ]


async def _round(rounds: Rounds, native: Native, salt: int, max_tokens: int) -> None:
    # A server that has seen a prompt has less to do.
    free, constrained = (prompts(NUM_STREAMS, salt=2 * salt + i) for i in range(2))
    wanted = {"type": "json_schema", "json_schema": {"schema": schema(0, max_tokens)}}
    await native.run(free[:1], 8, response_format=wanted)  # compiled before the clock runs
    rounds.add("free", await native.run(free, max_tokens))
    rounds.add("constrained", await native.run(constrained, max_tokens, response_format=wanted))


def schema(salt: int, min_items: int = 1) -> dict[str, Any]:
    """`NUM_FIELDS` fields; the first is a list that takes at least `min_items` tokens."""
    fields = {f"field_{i}": _TYPES[i % len(_TYPES)] for i in range(NUM_FIELDS)}
    item = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 40}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    }
    first = {"type": "array", "minItems": min_items, "items": item}
    return {
        "title": str(salt),
        "type": "object",
        "properties": {"field": first, **fields},
        "required": ["field", *fields],
        "additionalProperties": False,
    }


def _compile_times(config: Path) -> list[float]:
    """Seconds: the first with the token table, the rest each for a schema not seen before."""
    path = locate(load_config(config).default)
    runtime = LlamaRuntime(path, LlamaParams(context_length=512, max_sequences=1, max_outputs=16))
    compiler = Compiler(runtime.grammar_tokenizer)
    times = []
    for salt in range(1 + NUM_COMPILES):
        constraint = Constraint("json_schema", json.dumps(schema(salt)))
        begin_s = time.perf_counter()
        compiler.prepare(salt, constraint)
        times.append(time.perf_counter() - begin_s)
        compiler.discard(salt)
    del compiler  # before the model whose vocabulary it uses
    runtime.close()
    return times
