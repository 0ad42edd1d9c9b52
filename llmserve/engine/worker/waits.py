"""How long those in the queue will wait for a slot, by what steps cost and answers are long. Pure.

A simulation of the rest: the running sequences end when their expected answers do, each entrant
takes the first slot that is free with room for it, and its prompt holds up everybody for as long
as it takes to compute. What comes later and overtakes is not in it, nor what ends early.
"""

import heapq
from collections.abc import Sequence as Seq

from llmserve.engine.scheduler.lengths import OutputLengths
from llmserve.engine.scheduler.scheduler import Limits, Outlook, footprint, used_cells
from llmserve.engine.scheduler.sequence import Sequence


def expected_waits(
    running: Seq[Sequence], in_turn: Seq[Sequence], limits: Limits, outlook: Outlook
) -> list[float]:
    """Seconds until each of `in_turn` gets a slot, and as a last entry those of one that came now.

    `in_turn` are the waiting ones in the order of their turn, so the numbers never fall.
    """
    costs, lengths = outlook.costs, outlook.lengths
    num_rows = min(limits.max_running, len(running) + len(in_turn))
    step_s = costs.step_s(num_rows, 0, used_cells(running))
    prefill_s = sum(costs.prefill_s(s.num_pending) for s in running if s.num_pending > 1)
    # When each ends, by a clock that stands still during prompts, and the cells that it frees.
    ends = [(_left(s, lengths) * step_s, footprint(s, lengths)) for s in running]
    heapq.heapify(ends)
    free_cells = limits.num_cells - sum(cells for _, cells in ends)
    waits: list[float] = []
    decoding_s = 0.0
    entrants: list[Sequence | None] = [*in_turn, None]
    for sequence in entrants:
        needed = footprint(sequence, lengths) if sequence else 0
        while ends and (len(ends) >= limits.max_running or needed > free_cells):
            decoding_s, freed = heapq.heappop(ends)
            free_cells += freed
        waits.append(prefill_s + decoding_s)
        if sequence:
            prefill_s += costs.prefill_s(sequence.num_pending)
            heapq.heappush(ends, (decoding_s + _left(sequence, lengths) * step_s, needed))
            free_cells -= needed
    return waits


def _left(sequence: Sequence, lengths: OutputLengths) -> int:
    return lengths.left(sequence.num_generated, sequence.max_len - len(sequence.tokens))
