"""What a child of the tests loads instead of llama.cpp: a fake, as the model's file says."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from llmserve.engine.load_spec import LoadSpec, Machine
from llmserve.engine.runtime import Chunk, EmbeddingLimits, Logits, Runtime
from llmserve.errors import ModelFileError
from tests.fakes import FakeRuntime

NAME = __name__


class Script(msgspec.Struct):
    """The contents of such a file."""

    options: dict[str, Any] = {}  # of `FakeRuntime`
    embedding: EmbeddingLimits | None = None
    gate: str | None = None  # decodes wait until there is a file of this name
    dies: int | None = None  # the signal that ends the load
    says: list[str] = []  # on stderr, before that
    refuses: str | None = None  # the load fails with this message
    hangs: bool = False  # the load makes no progress
    breaks: bool = False  # the third step of the worker fails with a bug

    def write(self, path: Path) -> Path:
        path.write_bytes(msgspec.json.encode(self))
        return path


class GatedRuntime(FakeRuntime):
    def __init__(self, script: Script) -> None:
        super().__init__(embedding=script.embedding, **script.options)
        self._script = script
        self._num_steps = 0

    def decode(self, chunks: Sequence[Chunk]) -> Logits:
        self._num_steps += 1
        if self._script.breaks and self._num_steps == 3:
            raise ZeroDivisionError("a bug in the worker")
        gate = self._script.gate
        while gate and not os.path.exists(gate) and not self._aborted.is_set():
            time.sleep(0.005)
        return super().decode(chunks)


def machine() -> Machine:
    return Machine("FAKE = 1", "fake")


def load(spec: LoadSpec, on_progress: Callable[[float], bool]) -> Runtime:
    script = msgspec.json.decode(Path(os.fsdecode(spec.path)).read_bytes(), type=Script)
    on_progress(0.5)
    for line in script.says:
        print(line, file=sys.stderr, flush=True)
    if script.dies:
        os.kill(os.getpid(), script.dies)
    if script.refuses:
        raise ModelFileError(script.refuses)
    while script.hangs:
        time.sleep(0.01)
    on_progress(1.0)
    return GatedRuntime(script)
