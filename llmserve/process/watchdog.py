"""Notices when a process that has work shows no sign of it for long. Lives on the event loop."""

import asyncio
from collections.abc import Callable

_LATE_S = 1.0


class Watchdog:
    """`begin` for each piece of work, `end` when it is done, `sign` for each sign of life."""

    def __init__(
        self,
        timeout_s: float,
        on_stall: Callable[[], None],
        has_moved: Callable[[], bool] = lambda: False,
    ) -> None:
        """`has_moved` is asked before the worst is believed: a sign that was not given."""
        self.timeout_s = timeout_s
        self._on_stall = on_stall
        self._has_moved = has_moved
        self._num_begun = 0
        self._last_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def begin(self) -> None:
        if self._num_begun == 0:
            self._last_s = self._loop.time()
        self._num_begun += 1
        if self._timer is None:
            self._arm()

    def end(self) -> None:
        self._num_begun -= 1
        assert self._num_begun >= 0

    def sign(self) -> None:
        self._last_s = self._loop.time()

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        due_s = self._last_s + self.timeout_s
        self._timer = self._loop.call_at(due_s, self._look, due_s)

    def _look(self, due_s: float) -> None:
        self._timer = None
        if self._num_begun == 0:
            return
        now_s = self._loop.time()
        # A watchdog that looks too late was stopped as well, perhaps by the same Ctrl-Z.
        if now_s - due_s > _LATE_S or self._has_moved():
            self._last_s = now_s
        if now_s - self._last_s >= self.timeout_s:
            self._on_stall()
        else:
            self._arm()
