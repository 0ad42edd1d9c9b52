"""Load files and let each answer a little: python -m tests.fuzz.loading FILE...

Every file in a fork of this process, which has llama.cpp ready: a crash costs 20 ms and not the
second that a process takes to start. Prints a line of JSON for each: an `Outcome`.
"""

import contextlib
import logging
import os
import resource
import signal
import sys
from pathlib import Path

import msgspec

from llmserve.config.schema import ModelSpec
from llmserve.config.units import Size
from llmserve.engine.llama import LlamaRuntime
from llmserve.engine.runtime import Chunk, InputChunk, LlamaParams
from llmserve.errors import LlmserveError
from llmserve.gguf.header import read_model
from llmserve.pool.load_plan import plan_load

BUDGET_BYTES = 1 << 30
TEXT = "Hello wörld \U0001f600 <s>"
HANG_S = 60


class Outcome(msgspec.Struct):
    name: str
    kind: str  # "served"; "refused", by us or by llama.cpp; "crashed"; "failed": a bug of ours
    by_us: bool
    reason: str


def main() -> None:
    logging.disable()
    for argument in sys.argv[1:]:
        print(msgspec.json.encode(try_one(Path(argument))).decode(), flush=True)


def try_one(path: Path) -> Outcome:
    spec = ModelSpec(name="x", path=path, prefix_cache=Size(0))
    try:
        plan = plan_load(spec, read_model(path), BUDGET_BYTES, frozenset())
    except LlmserveError as error:
        return Outcome(path.name, "refused", True, error.message)
    if plan.size_bytes > BUDGET_BYTES:
        return Outcome(path.name, "refused", True, f"needs {plan.size_bytes} bytes")
    params = LlamaParams(
        context_length=plan.context_length,
        max_sequences=plan.max_sequences,
        max_outputs=plan.max_outputs,
        num_threads=1,
        embedding=plan.embedding,
        generates=plan.generates,
    )
    code, words = in_a_fork(path, params)
    kind, _, reason = words.rpartition("\n")[2].partition(":")
    if code != 0:
        return Outcome(path.name, "crashed", False, f"signal {-code}: {words}")
    return Outcome(path.name, kind, False, reason)


def in_a_fork(path: Path, params: LlamaParams) -> tuple[int, str]:
    """Its exit code (negative: a signal) and all that it wrote."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.closerange(3, 256)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(HANG_S)
        with contextlib.suppress(BaseException):
            os.write(1, f"\n{answer(path, params)}".encode(errors="replace"))
            os._exit(0)
        os._exit(1)
    os.close(writer)
    with open(reader, "rb") as pipe:
        words = pipe.read().decode(errors="replace")
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), words


def answer(path: Path, params: LlamaParams) -> str:
    try:
        runtime = LlamaRuntime(path, params)
        tokens = runtime.tokenize(TEXT, add_special=True)[: runtime.limits.max_batch] or [0]
        runtime.detokenize(tokens)
        for token in range(runtime.info.vocab_size):
            runtime.token_bytes(token)
        if params.generates:
            runtime.decode([Chunk(slot=0, start=0, tokens=tokens, wants_logits=True)])
        else:
            runtime.embed([InputChunk(slot=0, start=0, tokens=tokens, is_last=True)])
        runtime.close()
    except LlmserveError as error:
        return f"refused:{error.message!a}"
    except Exception as error:
        return f"failed:{error!a}"
    return "served:"


if __name__ == "__main__":
    main()
