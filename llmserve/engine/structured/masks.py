"""Which tokens may come next, for every constrained sequence of a step.

`MaskFiller` (the worker and a helper thread) computes masks while the model computes logits.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeAlias

import llguidance.numpy
import numpy as np
from llguidance import LLExecutor, LLMatcher

from llmserve.engine.sampling.sampler import Allowed

Matcher: TypeAlias = LLMatcher  # what an answer must match, as far as it has come


class Constrained(Protocol):
    """What may have to match something; in the worker a `Sequence`."""

    @property
    def id(self) -> int: ...

    @property
    def matcher(self) -> Matcher | None: ...

    @property
    def guard(self) -> Matcher | None:
        """The matcher if the next token is its business, which one of a thought is not."""

    @property
    def opening(self) -> int | None:
        """The token that may come next besides."""


class StepMasks(NamedTuple):
    """By request id: what may come next, or why nothing can."""

    allowed: dict[int, Allowed]
    faults: dict[int, str]


class Masks:
    """The masks of one step, possibly still being computed."""

    def __init__(self, future: Future[StepMasks] | None, known: dict[int, Allowed]) -> None:
        self._future = future
        self._known = known

    def wait(self) -> StepMasks:
        if self._future is None:
            return StepMasks(self._known, {})
        masks = self._future.result()
        masks.allowed.update(self._known)
        return masks


class _Guard(NamedTuple):
    request_id: int
    matcher: Matcher
    opening: int | None


class MaskFiller:
    """Computes masks beside the decode of the same step: neither holds the interpreter lock."""

    def __init__(self, vocab_size: int, eog_tokens: Iterable[int]) -> None:
        self._vocab_size = vocab_size
        self._eog_tokens = sorted(eog_tokens)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")  # started by the first use
        self._executor: LLExecutor | None = None
        self._all_but_end = np.ones(vocab_size, dtype=np.bool_)
        self._all_but_end[self._eog_tokens] = False

    def start(self, sequences: Iterable[Constrained]) -> Masks:
        """Begin with the masks of those that have a matcher, which must not be used until `wait`.

        One `Masks` at a time: a later one waits for the earlier.
        """
        constrained = [s for s in sequences if s.matcher is not None]
        # Not its business yet; but an answer that ended here would not match.
        known = {s.id: self._all_but_end for s in constrained if s.guard is None}
        guards = [_Guard(s.id, s.guard, s.opening) for s in constrained if s.guard is not None]
        return Masks(self._thread.submit(self._fill, guards) if guards else None, known)

    def close(self) -> None:
        self._thread.shutdown()

    def _fill(self, guards: list["_Guard"]) -> StepMasks:
        if self._executor is None:
            self._executor = LLExecutor(2)  # so that a slow one does not hold up all the others
        bits = llguidance.numpy.allocate_token_bitmask(len(guards), self._vocab_size)
        llguidance.numpy.fill_next_token_bitmask_par(
            self._executor, [(guard.matcher, row) for row, guard in enumerate(guards)], bits
        )
        rows = np.unpackbits(bits.view(np.uint8), axis=1, bitorder="little")
        allowed = rows[:, : self._vocab_size].view(np.bool_)
        masks = StepMasks({}, {})
        for (request_id, matcher, opening), row in zip(guards, allowed, strict=True):
            if matcher.is_error():
                masks.faults[request_id] = _reason(matcher)
                continue
            if not matcher.is_accepting():
                # A grammar can name special tokens; one that ends must not come in the middle.
                row[self._eog_tokens] = False
            if opening is not None:
                row[opening] = True
            if row.any():
                masks.allowed[request_id] = row
            else:
                masks.faults[request_id] = "no token can come next"
        return masks


def accept(matcher: Matcher | None, token: int) -> str | None:
    """Go on with `token`; returns why that is impossible, if it is."""
    if matcher is None or matcher.consume_token(token):
        return None
    return _reason(matcher)


def _reason(matcher: Matcher) -> str:
    """The first line of the error, without what follows for llguidance's developers."""
    lines: Sequence[str] = matcher.get_error().splitlines()
    return lines[0][:300] if lines else "llguidance gives no reason"
