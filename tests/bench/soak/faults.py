"""Ends or stops the process of a model while it is at work."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence

import httpx2
from msgspec import Struct

SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP)
_BUSY_WAIT_S = 5.0  # for the model to have requests; then it is hit all the same
_SETTLE_S = 5.0  # after which nobody is told of a process that ended


class Fault(Struct):
    """`end_s`: when the last request that it hit must have been told. Clock: `perf_counter`."""

    model: str
    signal: signal.Signals
    begin_s: float
    end_s: float

    def hits(self, model: str, begin_s: float, end_s: float) -> bool:
        """Whether a request of that time may have been running in the process."""
        return model == self.model and begin_s <= self.end_s and end_s >= self.begin_s


async def strike(
    client: httpx2.AsyncClient, models: Sequence[str], signum: signal.Signals, *, stall_s: float
) -> Fault | None:
    """Hit the busiest of `models` when it has requests; None if none has a process of its own."""
    deadline_s = time.perf_counter() + _BUSY_WAIT_S
    while True:
        statuses = (await client.get("/models")).json()["models"]
        found = [
            s for s in statuses if s["name"] in models and s.get("pid") and s["state"] == "ready"
        ]
        busy = max(found, key=lambda status: int(status["active"]), default=None)
        if busy and (busy["active"] or time.perf_counter() > deadline_s):
            return _hit(busy["name"], busy["pid"], signum, stall_s)
        if time.perf_counter() > deadline_s:
            return None
        await asyncio.sleep(0.05)


def _hit(model: str, pid: int, signum: signal.Signals, stall_s: float) -> Fault:
    now_s = time.perf_counter()
    os.kill(pid, signum)
    silent_s = stall_s if signum == signal.SIGSTOP else 0.0
    return Fault(model, signum, now_s, now_s + silent_s + _SETTLE_S)
