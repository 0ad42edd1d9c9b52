"""When an address is not asked, because it failed too often: a circuit breaker.

    closed ──NUM_FAILURES in a row──> open ──its pause is over──> half-open (one trial)
       ^                               ^                              │
       └──────────── success ──────────┼──────────────────────────────┤
                                       └── failure: a longer pause ───┘

Pure: the clock is an argument, in seconds of any monotonic clock.
"""

from enum import StrEnum

NUM_FAILURES = 3
FIRST_PAUSE_S = 5.0
MAX_PAUSE_S = 60.0


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Of one address. `enter` before an attempt, then exactly one of `succeed`, `fail`, `leave`.

    The last two are told what `enter` returned: only the trial of a half-open one decides.
    """

    def __init__(self) -> None:
        self._num_failures = 0  # in a row
        self._open_until_s: float | None = None  # None: closed
        self._pause_s = FIRST_PAUSE_S
        self._is_on_trial = False

    def state(self, now_s: float) -> BreakerState:
        if self._open_until_s is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now_s < self._open_until_s else BreakerState.HALF_OPEN

    def wait_s(self, now_s: float) -> float:
        """How long until an attempt may be made, 0 for now; of a trial under way, a guess."""
        if self._open_until_s is None:
            return 0.0
        return 1.0 if self._is_on_trial else max(0.0, self._open_until_s - now_s)

    def enter(self, now_s: float) -> bool:
        """Whether the attempt is a trial."""
        assert self.wait_s(now_s) == 0
        self._is_on_trial = self._open_until_s is not None
        return self._is_on_trial

    def succeed(self) -> None:
        self._num_failures = 0
        self._open_until_s = None
        self._pause_s = FIRST_PAUSE_S
        self._is_on_trial = False

    def fail(self, now_s: float, *, is_trial: bool) -> None:
        """Attempts from before it opened do not lengthen the pause."""
        self._num_failures += 1
        if is_trial and self._is_on_trial:
            self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
            self._is_on_trial = False
            self._open_until_s = now_s + self._pause_s
        elif self._open_until_s is None and self._num_failures >= NUM_FAILURES:
            self._open_until_s = now_s + self._pause_s

    def leave(self, *, is_trial: bool) -> None:
        """The attempt was given up by us and says nothing about the address."""
        if is_trial:
            self._is_on_trial = False
