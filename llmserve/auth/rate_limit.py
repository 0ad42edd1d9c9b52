"""What a key may use in a minute: a bucket that refills, and the meter that takes from it. Pure.

What a request costs is known only while it is answered, so what is taken may exceed what is
there. The key that made the debt waits until it is paid: no request begins while less than one
is left.
"""

from collections.abc import Callable

from llmserve.core import Delta, Event, Finished, ReasoningDelta, Started, ToolCallDelta

_TOKEN_LEN = 4  # characters of a token, about


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
        """How long until all is there again, if none is taken."""
        return (self.per_minute - self.level(now_s)) * 60 / self.per_minute

    def resize(self, per_minute: int, now_s: float) -> None:
        """Another rate from now on. What was used of the old one stays used."""
        used = self.per_minute - self.level(now_s)
        self.per_minute = per_minute
        self._level = per_minute - used
        self._seen_s = now_s


class Bill:
    """Charges while the answer comes, so that a caller that leaves early has paid for what it got.

    Of a part its length alone is known, so that is an estimate; the end settles it exactly.
    With `counts_prompt` false the prompt is on the bill of another choice of the same request.
    """

    def __init__(self, charge: Callable[[int], None], *, counts_prompt: bool = True) -> None:
        self.num_charged = 0
        self._charge = charge
        self._counts_prompt = counts_prompt

    def see(self, event: Event) -> None:
        match event:
            case Started(prompt_tokens=int(num_tokens)) if self._counts_prompt:
                self._add(num_tokens)
            case Delta(text) | ReasoningDelta(text) | ToolCallDelta(arguments=text):
                self._add(max(1, len(text) // _TOKEN_LEN))
            case Finished(usage=usage):
                num_prompt = usage.prompt_tokens if self._counts_prompt else 0
                self._add(num_prompt + usage.generated_tokens - self.num_charged)
            case _:
                pass

    def _add(self, num_tokens: int) -> None:
        self.num_charged += num_tokens
        self._charge(num_tokens)
