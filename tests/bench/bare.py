"""The physical reference: a bare llama_decode loop in a process of its own.

Same model, context and batches as the engine makes for the same requests: all prompts first, as
many tokens a batch as fit, then one token of every sequence a step, chosen by argmax. No
scheduler, no sockets, no text.

`python -m tests.bench.bare MODEL` reads one JSON list of prompts with `max_tokens` a line and
answers with the seconds it took and the memory of its process.
"""

import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
from msgspec import Struct

from llmserve.engine.llama import LlamaParams, LlamaRuntime
from llmserve.engine.runtime import Chunk


class Order(Struct):
    prompts: list[str]
    max_tokens: int


class Result(Struct):
    elapsed_s: float
    rss_bytes: int


def timed_load(path: Path) -> float:
    """Seconds that llama.cpp takes to load and warm up a model, in a process of its own.

    It is the second load of that process: a server's process has loaded something before, too.
    """
    code = (
        "import sys, time; from pathlib import Path;"
        "from llmserve.engine.llama import LlamaParams, LlamaRuntime;"
        "arguments = Path(sys.argv[1]), LlamaParams(8192, 16, 16);"
        "LlamaRuntime(*arguments).close();"
        "begin_s = time.perf_counter();"
        "LlamaRuntime(*arguments);"
        "print(time.perf_counter() - begin_s)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True)
    return float(done.stdout)


def generate(runtime: LlamaRuntime, order: Order) -> float:
    """Greedy, ignoring end-of-generation tokens; returns the seconds it took."""
    prompts = [runtime.tokenize(prompt, add_special=True) for prompt in order.prompts]
    begin_s = time.perf_counter()
    last = _prefill(runtime, prompts)
    slots = range(len(prompts))
    for step in range(order.max_tokens - 1):
        chunks = [Chunk(slot, len(prompts[slot]) + step, [last[slot]], True) for slot in slots]
        last = _decode(runtime, chunks)
    elapsed_s = time.perf_counter() - begin_s
    for slot in slots:
        runtime.trim(slot, 0)
    return elapsed_s


def _prefill(runtime: LlamaRuntime, prompts: list[list[int]]) -> list[int]:
    """The first generated token of every prompt."""
    first: list[int] = []
    batch: list[Chunk] = []
    for slot, tokens in enumerate(prompts):
        if sum(len(chunk.tokens) for chunk in batch) + len(tokens) > runtime.limits.max_batch:
            first += _decode(runtime, batch)
            batch = []
        batch.append(Chunk(slot, 0, tokens, True))
    return first + _decode(runtime, batch)


def _decode(runtime: LlamaRuntime, batch: list[Chunk]) -> list[int]:
    tokens: list[int] = runtime.decode(batch).argmax(axis=1).tolist()
    return tokens


def main() -> None:
    runtime = LlamaRuntime(
        Path(sys.argv[1]), LlamaParams(context_length=8192, max_sequences=16, max_outputs=16)
    )
    print("ready", flush=True)
    for line in sys.stdin:
        elapsed_s = generate(runtime, msgspec.json.decode(line, type=Order))
        result = Result(elapsed_s, psutil.Process().memory_info().rss)
        print(msgspec.json.encode(result).decode(), flush=True)
    runtime.close()


if __name__ == "__main__":
    main()
