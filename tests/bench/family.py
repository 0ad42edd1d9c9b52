"""The memory of a server together with the processes of its models."""

import contextlib
from collections import defaultdict

import psutil


def family_bytes(pid: int) -> int:
    """What `pid` and its children have in memory; pages of a file that they share count once."""
    parent = psutil.Process(pid)
    own_bytes = 0
    shared_bytes: dict[str, int] = defaultdict(int)
    for process in [parent, *parent.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for area in process.memory_maps():
                shared = area.shared_clean + area.shared_dirty
                own_bytes += area.rss - shared
                shared_bytes[area.path] = max(shared_bytes[area.path], shared)
    return own_bytes + sum(shared_bytes.values())
