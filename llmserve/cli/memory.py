"""Whether a model of some size would fit this machine: a quick guess for `pull --list`.

From the file's size alone, before it is downloaded. What a load really needs is estimated from the
file's header by the pool.
"""

from pathlib import Path

import psutil

USABLE = 0.8  # of the machine's memory
OVERHEAD = 1.2  # context and work buffers on top of the weights

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # a container's own, cgroup v2


def fits(size_bytes: int) -> bool:
    """Whether weights of `size_bytes` leave room for a context."""
    return size_bytes * OVERHEAD <= machine_bytes() * USABLE


def machine_bytes() -> int:
    """Memory of the machine, or of the container."""
    total = int(psutil.virtual_memory().total)
    try:
        return min(total, int(_CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):  # no such file; or "max"
        return total
