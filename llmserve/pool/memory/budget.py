"""How much memory models may take, from what the machine or its control group really offers."""

import ctypes
import gc
from pathlib import Path
from typing import NamedTuple

import psutil

AUTO_SHARE = 0.8  # of what is free at the start; the rest is for everything else
_CGROUP = Path("/sys/fs/cgroup")


class MemoryBudget:
    """`budget(resident_bytes)`: the most that all resident models may take now.

    Fixed at the start, but never more than what is really there: `resident_bytes` is what the
    caller's models already take, which is no longer available but is theirs.
    """

    def __init__(self, total_bytes: int | None = None) -> None:
        """`total_bytes` None: a share of what is available now."""
        # A plain int, as it goes into JSON: the config has a type of its own for sizes.
        self.total_bytes = int(
            available_bytes() * AUTO_SHARE if total_bytes is None else total_bytes
        )

    def __call__(self, resident_bytes: int) -> int:
        return min(self.total_bytes, resident_bytes + available_bytes())


def available_bytes() -> int:
    """Memory that this process could still take without swapping or being killed."""
    available = int(psutil.virtual_memory().available)
    group = _control_group(_CGROUP)
    if group is None:
        return available
    return min(available, max(0, group.limit_bytes - group.used_bytes))


def machine_bytes() -> int:
    """All memory of the machine, or of the container."""
    total = int(psutil.virtual_memory().total)
    group = _control_group(_CGROUP)
    return total if group is None else min(total, group.limit_bytes)


def process_bytes(pid: int) -> int | None:
    """What a process has in memory, with its pages of files; None if it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def give_back() -> None:
    """Return what an unloaded model leaves behind to the system: 15 to 20 MB of 310, every time.

    An engine refers to itself in a circle, so its buffers are garbage that Python has to find; and
    glibc keeps what it thinks it may need again. Takes some 50 ms, in which nothing else runs.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others do it by themselves
    if trim:
        trim(0)


class _ControlGroup(NamedTuple):
    limit_bytes: int
    used_bytes: int


def _control_group(root: Path) -> _ControlGroup | None:
    """A container's limit (cgroup v2, else v1); None without one.

    Page cache is not counted: the kernel gives it back before it kills anybody.
    """
    for limit_file, used_file, cache_key in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            limit = int((root / limit_file).read_text())
            used = int((root / used_file).read_text())
            stat = (root / used_file).with_name("memory.stat").read_text()
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if limit >= 2**60:  # v1's way to say that there is no limit
            continue
        counts = dict(line.split() for line in stat.splitlines())
        return _ControlGroup(limit, used - int(counts.get(cache_key, 0)))
    return None
