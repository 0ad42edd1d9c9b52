"""A rate limit as a bucket: it refills at a steady rate, up to what one minute brings. Pure.

What a request costs is known only while it is answered, so what is taken may exceed what is
there. Who made the debt waits until it is paid: nobody may begin while less than one is left.
"""


class Bucket:
    """Full at first. Times are of any one clock that never goes back, in seconds."""

    def __init__(self, per_minute: int, now_s: float) -> None:
        assert per_minute > 0
        self.per_minute = per_minute
        self._level = float(per_minute)
        self._seen_s = now_s

    def level(self, now_s: float) -> float:
        """What is left; below zero it is a debt."""
        grown = self._level + (now_s - self._seen_s) * self.per_minute / 60
        return min(grown, float(self.per_minute))

    def take(self, amount: int, now_s: float) -> None:
        """A negative `amount` gives back what was taken too much."""
        self._level = self.level(now_s) - amount
        self._seen_s = now_s

    def wait_s(self, now_s: float) -> float:
        """How long until the next may begin; 0: at once."""
        return max(0.0, 1 - self.level(now_s)) * 60 / self.per_minute

    def full_in_s(self, now_s: float) -> float:
        """How long until all is there again, if nobody takes any."""
        return (self.per_minute - self.level(now_s)) * 60 / self.per_minute

    def resize(self, per_minute: int, now_s: float) -> None:
        """Another rate from now on. What was used of the old one stays used."""
        used = self.per_minute - self.level(now_s)
        self.per_minute = per_minute
        self._level = per_minute - used
        self._seen_s = now_s
