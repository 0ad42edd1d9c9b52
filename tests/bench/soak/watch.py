"""What the server's processes hold: memory, descriptors, threads; and by its own books, slots."""

import contextlib
from collections.abc import Callable
from typing import TypeVar

import httpx2
import psutil
from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families

T = TypeVar("T")


class Reading(Struct, frozen=True):
    """Of the parent alone where nothing else is said; at a moment when nobody is served."""

    time_s: float
    parent_bytes: int  # proportional set size: what is shared counts by halves
    all_bytes: int  # with all children
    descriptors: int
    threads: int
    children: int
    zombies: int
    running: int  # slots that are held, by /metrics
    waiting: int  # requests in a queue
    leases: int  # of models, by GET /models

    @property
    def num_held(self) -> int:
        return self.running + self.waiting + self.leases


class Watch:
    def __init__(self, pid: int) -> None:
        self._parent = psutil.Process(pid)
        self._seen: dict[int, psutil.Process] = {}  # every child that there ever was

    async def read(self, time_s: float, client: httpx2.AsyncClient) -> Reading:
        """Of processes that end meanwhile nothing is counted."""
        running, waiting = slots((await client.get("/metrics")).text)
        models = (await client.get("/models")).json()["models"]
        children = self.children()
        zombies = [child for child in children if _status(child) == psutil.STATUS_ZOMBIE]
        parent_bytes = _pss(self._parent)
        return Reading(
            time_s=time_s,
            parent_bytes=parent_bytes,
            all_bytes=parent_bytes + sum(_of(child, _pss, 0) for child in children),
            descriptors=self._parent.num_fds(),
            threads=self._parent.num_threads(),
            children=len(children) - len(zombies),
            zombies=len(zombies),
            running=running,
            waiting=waiting,
            leases=sum(model["active"] for model in models),
        )

    def children(self) -> list[psutil.Process]:
        """All processes that the server started, and theirs."""
        children = self._parent.children(recursive=True)
        self._seen |= {child.pid: child for child in children}
        return children

    def left(self) -> list[psutil.Process]:
        """The children that live although the server has ended."""
        return [process for process in self._seen.values() if runs(process)]


def runs(process: psutil.Process) -> bool:
    """A zombie does not: whose parent has died may wait for an init that is slow."""
    return process.is_running() and _status(process) not in ("", psutil.STATUS_ZOMBIE)


def slots(metrics: str) -> tuple[int, int]:
    """Requests that hold a slot, and those that wait for one."""
    values = dict.fromkeys(("llmserve_running_requests", "llmserve_queue_depth"), 0)
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name in values:
                values[sample.name] += int(sample.value)
    running, waiting = values.values()
    return running, waiting


def slope(points: list[tuple[float, float]]) -> float:
    """Of the least-squares line; 0 of fewer than three points."""
    if len(points) < 3:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def _pss(process: psutil.Process) -> int:
    """Where the kernel tells none, such as on macOS, the resident set."""
    memory = process.memory_full_info()
    return int(getattr(memory, "pss", memory.rss))


def _status(process: psutil.Process) -> str:
    """Empty if it is gone."""
    return _of(process, psutil.Process.status, "")


def _of(process: psutil.Process, value: Callable[[psutil.Process], T], otherwise: T) -> T:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return value(process)
    return otherwise
