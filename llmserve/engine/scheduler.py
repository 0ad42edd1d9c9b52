"""What the next step computes. Pure: reads the sequences, changes nothing, returns a `Plan`.

The rules, in this order:

1. Every running sequence with one pending token gets it: decoding never waits for a prompt.
2. If the free cells do not suffice for that, the youngest running sequences are preempted: they
   lose their cells and wait again at their old place. The oldest is never preempted for another.
3. Prompt tokens fill the rest of the batch, oldest sequence first: the whole batch if nothing is
   decoding, else at most `prefill_chunk`, which bounds how long running streams wait. A prompt
   whose every token wants its logits takes what is left of `max_outputs` at most.
4. Waiting sequences enter in the order of arrival while there is a slot and room for all their
   tokens plus some growth of everybody. Nobody overtakes, so nobody starves.
"""

from collections.abc import Sequence as Seq
from typing import NamedTuple

from msgspec import Struct

from llmserve.engine.sequence import Sequence

GROWTH_TOKENS = 32  # cells kept free per sequence at admission, so that it is not preempted at once


class Limits(Struct, frozen=True):
    max_batch: int  # tokens in one step; at least max_running, or prompts could starve
    max_running: int  # sequences with cells
    num_cells: int  # tokens of all running sequences together
    prefill_chunk: int  # prompt tokens in a step that also decodes
    max_outputs: int  # rows of logits in one step; at least max_running


class Work(NamedTuple):
    """Compute the next `num_tokens` pending tokens of `sequence`."""

    sequence: Sequence
    num_tokens: int

    @property
    def is_last(self) -> bool:
        """Whether its logits choose the next token."""
        return self.num_tokens == self.sequence.num_pending

    @property
    def num_outputs(self) -> int:
        return self.num_tokens if self.sequence.wants_all_rows else int(self.is_last)


class Plan(NamedTuple):
    """`preempt` first, then give slots to `admit` (a part of `work` is theirs), then compute."""

    preempt: list[Sequence]
    admit: list[Sequence]
    work: list[Work]

    @property
    def num_tokens(self) -> int:
        return sum(work.num_tokens for work in self.work)


def plan_step(running: Seq[Sequence], waiting: Seq[Sequence], limits: Limits) -> Plan:
    """The next step. Empty only if nothing runs and nothing waits.

    Every sequence must fit `num_cells` alone; `waiting` must be in the order of arrival.
    """
    kept, preempt = _make_room(sorted(running, key=lambda s: s.arrival), limits.num_cells)
    work = [Work(s, 1) for s in kept if s.num_pending == 1]
    free = limits.num_cells - sum(s.num_own_cells for s in kept) - len(work)
    batch = limits.max_batch - len(work)
    num_tokens = min(batch, limits.prefill_chunk if work else limits.max_batch, free)
    budget = _Budget(num_tokens, num_outputs=limits.max_outputs - len(work))
    prompts = [budget.share(s) for s in kept if s.num_pending > 1]
    entering = [] if preempt else _admit(kept, waiting, limits, budget)
    work += [prompt for prompt in [*prompts, *entering] if prompt.num_tokens]
    return Plan(preempt, [w.sequence for w in entering], work)


class _Budget:
    """What a step has left for prompts."""

    def __init__(self, num_tokens: int, num_outputs: int) -> None:
        self._num_tokens = num_tokens
        self._num_outputs = num_outputs

    def share(self, sequence: Sequence) -> Work:
        """As much of a prompt as there is room for, possibly nothing."""
        num_tokens = min(sequence.num_pending, self._num_tokens)
        if sequence.wants_all_rows:
            num_tokens = min(num_tokens, self._num_outputs)
        elif self._num_outputs == 0:  # all but the last token need none
            num_tokens = min(num_tokens, sequence.num_pending - 1)
        work = Work(sequence, num_tokens)
        self._num_tokens -= num_tokens
        self._num_outputs -= work.num_outputs
        return work


def _make_room(
    oldest_first: list[Sequence], num_cells: int
) -> tuple[list[Sequence], list[Sequence]]:
    """Split into those that stay, with room for a step, and the youngest, which must go."""
    kept, preempt = list(oldest_first), []
    while kept:
        used = sum(s.num_own_cells for s in kept)
        decoding = sum(s.num_pending == 1 for s in kept)
        # Without a decoding row one free cell is enough to go on with some prompt.
        if used + max(1, decoding) <= num_cells:
            break
        assert len(kept) > 1, "a sequence that does not fit alone was accepted"
        preempt.append(kept.pop())
    return kept, preempt


def _admit(
    kept: list[Sequence], waiting: Seq[Sequence], limits: Limits, budget: _Budget
) -> list[Work]:
    """Work for those of `waiting` that enter now: each gets at least one token of `budget`."""
    admit: list[Work] = []
    committed = sum(_footprint(s) for s in kept)
    for sequence in waiting:
        committed += _footprint(sequence)
        fits = committed <= limits.num_cells or not (kept or admit)
        if len(kept) + len(admit) >= limits.max_running or not fits:
            break
        work = budget.share(sequence)
        if not work.num_tokens:
            break
        admit.append(work)
    return admit


def _footprint(sequence: Sequence) -> int:
    """The cells that a sequence will hold before long."""
    return min(len(sequence.tokens) + GROWTH_TOKENS, sequence.max_len) - sequence.num_shared
