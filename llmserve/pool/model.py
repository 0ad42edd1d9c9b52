"""One model as the pool sees it, and when it is loaded again after a crash."""

import asyncio
import logging
import time
from enum import StrEnum

from llmserve.config.schema import ModelSpec
from llmserve.engine.interface import Crash, Engine
from llmserve.errors import LlmserveError
from llmserve.hub.locate import Stamp
from llmserve.pool.eviction import Residency
from llmserve.pool.load_plan import LoadPlan
from llmserve.pool.progress import Progress

log = logging.getLogger(__name__)
MAX_IN_ROW = 3
FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 60.0
STEADY_S = 300.0  # a process that lived so long died of something else than the last one


class State(StrEnum):
    COLD = "cold"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    FAILED = "failed"  # the next request tries again
    QUARANTINED = "quarantined"  # its process dies all the time: the next request does not


class Model:
    """Its state, written by the pool only."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.state = State.COLD
        self.engine: Engine | None = None  # while READY
        self.error: LlmserveError | None = None  # while FAILED or QUARANTINED
        self.plan: LoadPlan | None = None  # how it is, or was last, loaded
        self.progress = Progress()  # while LOADING
        self.restarts = Restarts()
        self.crash_message = ""  # of the last one
        self.log_lines: tuple[str, ...] = ()  # the last ones of a process that died
        self.file_stamp: Stamp | None = None  # of the files that are in quarantine
        self.num_leases = 0  # requests that hold the engine, or wait for the load under way
        self.last_used_s = 0.0  # unix time
        self.is_admitted = False  # its memory is counted
        self.is_wanted_after_crash = False  # it crashed while it was needed: load it again
        self.is_draining = False  # to be evicted once idle
        self.is_retired = False  # no longer in the config
        self.task: asyncio.Task[None] | None = None  # the load or unload under way
        self.idle_timer: asyncio.TimerHandle | None = None

    def note_crash(self, crash: Crash) -> None:
        """Its process has died."""
        log.error("%s", crash.message)
        self.crash_message, self.log_lines = crash.message, crash.log_lines
        self.restarts.note_crash(
            time.monotonic(), has_answered=crash.has_answered, lived_s=crash.lived_s
        )

    def quarantine(self, error: LlmserveError, file_stamp: Stamp | None) -> None:
        """Refuse it with `error`, until `forgive`."""
        log.error("%s", error.message)
        self.state, self.error, self.file_stamp = State.QUARANTINED, error, file_stamp

    def forgive(self) -> None:
        """Let it be tried again, without a pause."""
        self.restarts.forgive()
        if self.state is State.QUARANTINED:
            self.state, self.error = State.COLD, None

    @property
    def size_bytes(self) -> int:
        """The memory it takes, or last took; 0 if that is not known yet."""
        return self.plan.size_bytes if self.plan else 0

    @property
    def keep_alive_s(self) -> float | None:
        """How long it may be idle; None for ever."""
        return None if self.spec.pinned else self.spec.keep_alive

    @property
    def residency(self) -> Residency:
        if self.state is State.UNLOADING:
            return Residency.LEAVING
        if self.spec.pinned and not self.is_retired:
            return Residency.PINNED
        is_idle = self.state is State.READY and not self.num_leases
        return Residency.IDLE if is_idle else Residency.BUSY

    def check_integrity(self) -> None:
        """Assert what holds between two changes; for tests."""
        is_loaded = self.state in (State.READY, State.UNLOADING)
        assert (self.engine is not None) == is_loaded
        assert (self.error is not None) == (self.state in (State.FAILED, State.QUARANTINED))
        assert (self.task is not None) == (self.state in (State.LOADING, State.UNLOADING))
        assert self.is_admitted or not is_loaded
        assert not (self.num_leases and self.state is State.COLD)


class Restarts:
    """Of one model. Times are on the monotonic clock."""

    def __init__(self) -> None:
        self.num_crashes = 0  # ever
        self.num_in_row = 0
        self.not_before_s = 0.0

    def note_crash(self, now_s: float, *, has_answered: bool = False, lived_s: float = 0) -> None:
        self.num_crashes += 1
        if has_answered or lived_s >= STEADY_S:
            self.num_in_row = 0
        self.num_in_row += 1
        self.not_before_s = now_s + self._pause_s

    @property
    def _pause_s(self) -> float:
        if self.num_in_row < 2:
            return 0.0
        return min(FIRST_PAUSE_S * (1 << self.num_in_row - 2), MAX_PAUSE_S)

    @property
    def is_over(self) -> bool:
        """Whether it is of no use to try again."""
        return self.num_in_row >= MAX_IN_ROW

    def forgive(self) -> None:
        """Its file or its settings have changed, or it was asked for."""
        self.num_in_row = 0
        self.not_before_s = 0.0
