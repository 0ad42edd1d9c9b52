"""How many threads compute, where the config does not say."""

import math
import os
from typing import NamedTuple

import psutil

from llmserve.machine import cgroup


class Threads(NamedTuple):
    num: int
    reason: str  # for the log


def default_threads() -> Threads:
    """As many as can run at once: a thread that waits for a core makes all others wait for it."""
    return choose_threads(num_cores(), num_allowed(), cgroup.cpu_quota())


def choose_threads(cores: int, allowed: int | None, quota: float | None) -> Threads:
    """`cores`: physical ones; `allowed`: by affinity; `quota`: cores' worth of time. Pure."""
    choices = [Threads(cores, "physical cores")]
    if allowed is not None:
        choices.append(Threads(allowed, "cores that this process may run on"))
    if quota is not None:
        choices.append(
            Threads(math.floor(quota), f"CPU quota of its control group: {quota:g} cores")
        )
    least = min(choices, key=lambda choice: choice.num)
    return Threads(max(1, least.num), least.reason)


def num_cores() -> int:
    """Physical cores; logical ones where these are not told."""
    try:
        physical = psutil.cpu_count(logical=False)
    except (OSError, psutil.Error, RuntimeError):  # a /proc of processes only
        physical = None
    return physical or os.cpu_count() or 1


def num_allowed() -> int | None:
    """Logical cores that this process may run on; None where the system does not say (macOS)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
