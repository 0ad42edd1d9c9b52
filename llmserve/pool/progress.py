"""How far a load is: told by the threads that do it, shown by GET /models and the log."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llmserve.config.units import human

log = logging.getLogger(__name__)

FIRST_LINE_S = 5.0  # a load that takes longer is told about, at first after so long
_MAX_WAIT_S = 60.0  # … and then ever less often: some downloads take an hour


class Progress:
    """What is being done for a load, and how much of that is done. It may be told to give up."""

    def __init__(self) -> None:
        self.doing = "reading"
        self.fraction = 0.0
        self.is_cancelled = False
        self.on_cancel: Callable[[], None] = lambda: None

    def cancel(self) -> None:
        """Have the load given up."""
        self.is_cancelled = True
        self.on_cancel()

    def begin(self, doing: str) -> None:
        """The next part of the load, such as "downloading". Any thread."""
        self.fraction = 0.0
        self.doing = doing

    def update(self, fraction: float) -> bool:
        """Note how much is done; whether to go on. Any thread."""
        self.fraction = fraction
        return not self.is_cancelled

    def __str__(self) -> str:
        return f"{self.doing}, {self.fraction:.0%}" if self.fraction else self.doing


class DownloadProgress:
    """Implements `hub.progress.Progress`: into the log, and into the load's `Progress`."""

    def __init__(self, name: str, load: Progress) -> None:
        self._name = name
        self._load = load
        self._total_bytes: int | None = None
        self._done_bytes = 0

    def note(self, text: str) -> None:
        log.info("%s: %s", self._name, text)

    def start(self, label: str, total_bytes: int | None, done_bytes: int) -> None:
        size = human(total_bytes) if total_bytes else "unknown size"
        rest = f", going on at {human(done_bytes)}" if done_bytes else ""
        self.note(f"downloading {label}, {size}{rest}")
        self._total_bytes, self._done_bytes = total_bytes, done_bytes
        self._load.begin("downloading")
        self.advance(0)

    def advance(self, num_bytes: int) -> None:
        """Raises `asyncio.CancelledError` in a load that was told to give up."""
        self._done_bytes += num_bytes
        done = self._done_bytes / self._total_bytes if self._total_bytes else 0.0
        if not self._load.update(done):
            raise asyncio.CancelledError

    def finish(self) -> None:
        self.note(f"{human(self._done_bytes)} are on disk")


@contextmanager
def told(name: str, progress: Progress, first_s: float) -> Iterator[None]:
    """Log `progress` after `first_s` and then ever less often, as long as the block runs."""
    loop = asyncio.get_running_loop()
    begin_s = time.monotonic()
    timer = loop.call_later(first_s, lambda: tell(first_s))

    def tell(wait_s: float) -> None:
        nonlocal timer
        log.info("%s: %s, %.0f s so far", name, progress, time.monotonic() - begin_s)
        wait_s = min(2 * wait_s, _MAX_WAIT_S)
        timer = loop.call_later(wait_s, tell, wait_s)

    try:
        yield
    finally:
        timer.cancel()
