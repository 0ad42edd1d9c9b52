"""When a model whose process has died is loaded again, and when no more. Pure.

The first time at once; while it dies again and again without having answered anything, after ever
longer pauses; and at the third death in a row not before something has changed.
"""

MAX_IN_ROW = 3
FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 60.0
STEADY_S = 300.0  # who has lived so long dies of something else than last time


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
        """Somebody has changed something."""
        self.num_in_row = 0
        self.not_before_s = 0.0
