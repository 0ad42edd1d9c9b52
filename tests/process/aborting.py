"""A backend whose native code gives up on every file."""

import os
import sys
from collections.abc import Callable

from llmserve.engine.load_spec import LoadSpec, Machine
from llmserve.engine.runtime import Runtime

NAME = __name__


def machine() -> Machine:
    return Machine("FAKE = 1", "fake")


def load(spec: LoadSpec, on_progress: Callable[[float], bool]) -> Runtime:
    print("ggml.c:42: GGML_ASSERT(ne[0] > 0) failed", file=sys.stderr, flush=True)
    os.abort()
