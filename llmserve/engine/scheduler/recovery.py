"""What a step that failed means for the next ones: less of a prompt, or one sequence at a time.

Where llama.cpp has fewer cells than our books say, steps become smaller, and no sequence enters
until one has left. Where a step fails for another reason, each of its sequences is tried alone, so
that only the one that makes it fail does.
"""

import msgspec

from llmserve.engine.scheduler.scheduler import Limits, Work
from llmserve.engine.scheduler.sequence import Sequence


class Setbacks:
    def __init__(self) -> None:
        self._max_prompt: int | None = None  # prompt tokens in a step, while cells are missing
        self.suspects: list[Sequence] = []  # those that have slots are still to be tried

    @property
    def may_enter(self) -> bool:
        """Whether waiting sequences may get slots."""
        self.suspects = [s for s in self.suspects if s.slot is not None]
        return self._max_prompt is None and not self.suspects

    def limited(self, limits: Limits) -> Limits:
        if self._max_prompt is None:
            return limits
        return msgspec.structs.replace(limits, max_prompt=self._max_prompt)

    def chosen(self, work: list[Work]) -> list[Work]:
        """What of the planned `work` is computed now."""
        if not self.suspects:
            return work
        suspect = self.suspects[0]
        return [w for w in work if w.sequence is suspect] or [Work(suspect, 1)]

    def note_success(self) -> None:
        """The chosen work has been computed: it was not this one."""
        if self.suspects:
            del self.suspects[0]

    def note_leaving(self) -> None:
        """A slot has been given back, and its cells."""
        self._max_prompt = None

    def shrink(self, work: list[Work]) -> bool:
        """There were no cells for `work`. False if it is as small as it gets."""
        num_prompt = sum(w.num_tokens for w in work if w.num_tokens > 1)
        if num_prompt > 1:
            self._max_prompt = num_prompt // 2
        return num_prompt > 1

    def close(self, limits: Limits) -> None:
        """Let no sequence in until one leaves."""
        self._max_prompt = limits.max_batch

    def isolate(self, work: list[Work]) -> None:
        self.suspects = [w.sequence for w in work]
