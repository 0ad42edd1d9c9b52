"""llama.cpp as `opening.Library`: importing this module loads it."""

import os
from collections.abc import Callable
from pathlib import Path

from llmserve.engine.llama.runtime import LlamaRuntime, build_info, system_info
from llmserve.engine.load_spec import Machine, Order


def machine() -> Machine:
    return Machine(system_info(), build_info())


def load(order: Order, on_progress: Callable[[float], bool]) -> LlamaRuntime:
    return LlamaRuntime(Path(os.fsdecode(order.path)), order.params, on_progress=on_progress)
