"""llama.cpp as `loading.Backend`: importing this module loads it."""

import os
from collections.abc import Callable
from pathlib import Path

from llmserve.engine.llama.runtime import LlamaRuntime, build_info, system_info
from llmserve.engine.load_spec import LoadSpec, Machine


def machine() -> Machine:
    return Machine(system_info(), build_info())


def load(spec: LoadSpec, on_progress: Callable[[float], bool]) -> LlamaRuntime:
    return LlamaRuntime(Path(os.fsdecode(spec.path)), spec.params, on_progress=on_progress)
