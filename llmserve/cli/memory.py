"""Whether a model of some size would fit this machine: a quick guess for `pull --list`.

From the file's size alone, before it is downloaded. What a load really needs is estimated from the
file's header by the pool.
"""

from llmserve.pool.memory.budget import machine_bytes

USABLE = 0.8  # of the machine's memory
OVERHEAD = 1.2  # context and work buffers on top of the weights


def fits(size_bytes: int) -> bool:
    """Whether weights of `size_bytes` leave room for a context."""
    return size_bytes * OVERHEAD <= machine_bytes() * USABLE
