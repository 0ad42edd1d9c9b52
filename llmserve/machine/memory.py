"""How much memory there is, and what processes have of it. Bytes."""

import contextlib
import ctypes
import gc
import os

import psutil

from llmserve.machine import cgroup


def total_bytes() -> int:
    """All memory of the machine, or of the control group that this process is in."""
    total, _ = _machine()
    return min([total, *(limit.limit_bytes for limit in cgroup.memory_limits())])


def available_bytes() -> int:
    """Memory that this process could still take without swapping or being killed."""
    _, available = _machine()
    return min([available, *(limit.free_bytes for limit in cgroup.memory_limits())])


def _machine() -> tuple[int, int]:
    """All of the machine's memory, and what is available of it."""
    try:
        memory = psutil.virtual_memory()
        return int(memory.total), int(memory.available)
    except (OSError, psutil.Error, RuntimeError):  # a /proc of processes only (subset=pid)
        page = os.sysconf("SC_PAGE_SIZE")
        return os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page


def process_bytes(pid: int) -> int | None:
    """What a process has in memory, with its pages of files; None if it is gone, or not shown."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except (OSError, psutil.Error, RuntimeError):
        return None


def read_bytes(pid: int) -> int | None:
    """What a process has read from disk so far; None where the system does not say."""
    with contextlib.suppress(OSError, psutil.Error, AttributeError, RuntimeError):
        return int(psutil.Process(pid).io_counters().read_bytes)
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
