"""What the next step computes. Pure: reads the sequences, changes nothing, returns a `Plan`.

The rules, in this order:

1. Every running sequence with one pending token gets it: decoding never waits for a prompt.
2. If the free cells do not suffice for that, the youngest running sequences are preempted: they
   lose their cells and wait again at their old place. The oldest is never preempted for another.
3. Prompt tokens fill the rest of the batch, oldest sequence first: the whole batch if nothing is
   decoding, else at most `prefill_chunk`, which bounds how long running streams wait.
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


class Work(NamedTuple):
    """Compute the next `num_tokens` pending tokens of `sequence`."""

    sequence: Sequence
    num_tokens: int


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
    free = limits.num_cells - sum(s.num_computed for s in kept) - len(work)
    batch = limits.max_batch - len(work)
    budget = min(batch, limits.prefill_chunk if work else limits.max_batch, free)
    for sequence in kept:
        if sequence.num_pending > 1 and budget > 0:
            work.append(Work(sequence, min(sequence.num_pending, budget)))
            budget -= work[-1].num_tokens
    admit: list[Sequence] = []
    if not preempt:
        admit = _admit(kept, waiting, limits, budget)
        for sequence in admit:
            work.append(Work(sequence, min(sequence.num_pending, budget)))
            budget -= work[-1].num_tokens
    return Plan(preempt, admit, work)


def _make_room(
    oldest_first: list[Sequence], num_cells: int
) -> tuple[list[Sequence], list[Sequence]]:
    """Split into those that stay, with room for a step, and the youngest, which must go."""
    kept, preempt = list(oldest_first), []
    while kept:
        used = sum(s.num_computed for s in kept)
        decoding = sum(s.num_pending == 1 for s in kept)
        # Without a decoding row one free cell is enough to go on with some prompt.
        if used + max(1, decoding) <= num_cells:
            break
        assert len(kept) > 1, "a sequence that does not fit alone was accepted"
        preempt.append(kept.pop())
    return kept, preempt


def _admit(
    kept: list[Sequence], waiting: Seq[Sequence], limits: Limits, budget: int
) -> list[Sequence]:
    """Those of `waiting` that enter now: each gets at least one token of `budget`."""
    admit: list[Sequence] = []
    committed = sum(_footprint(s) for s in kept)
    for sequence in waiting:
        committed += _footprint(sequence)
        fits = committed <= limits.num_cells or not (kept or admit)
        if budget <= 0 or len(kept) + len(admit) >= limits.max_running or not fits:
            break
        admit.append(sequence)
        budget -= min(sequence.num_pending, budget)
    return admit


def _footprint(sequence: Sequence) -> int:
    """The cells that a sequence will hold before long."""
    return min(len(sequence.tokens) + GROWTH_TOKENS, sequence.max_len)
