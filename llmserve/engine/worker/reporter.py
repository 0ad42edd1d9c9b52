"""What the worker tells of a step, and how long those in the queue will wait.

The waits are a simulation of the rest: the running sequences end when their expected answers do,
each entrant takes the first slot that is free with room for it, and its prompt holds up all for as
long as it takes to compute. What comes later and overtakes is not in it, nor what ends early.
"""

import heapq
from collections.abc import Callable
from collections.abc import Sequence as Seq

import msgspec

from llmserve.engine.messages import (
    Load,
    QueueReport,
    Reply,
    Report,
    StepReport,
    StepStats,
    Waiting,
)
from llmserve.engine.scheduler.cost_model import OutputLengths
from llmserve.engine.scheduler.scheduler import Limits, Outlook, footprint, in_turn, used_cells
from llmserve.engine.scheduler.sequence import Sequence
from llmserve.engine.worker.embedding import Embedder
from llmserve.engine.worker.slots import Roster


class Reporter:
    """Collects until `tell`, which is one message however much there is to say."""

    def __init__(
        self,
        report: Callable[[Report], None],
        roster: Roster,
        limits: Limits,
        embedder: Embedder,
    ) -> None:
        self._report = report
        self._roster = roster
        self._limits = limits
        self._embedder = embedder
        self._load = Load()
        self._queue = QueueReport()
        self._entered: list[int] = []
        self._num_preempted = 0
        self._is_stale = False  # a request came, entered or left since the last `tell`

    def note_change(self) -> None:
        """Somebody came or left."""
        self._is_stale = True

    def note_entry(self, sequence: Sequence) -> None:
        self._entered.append(sequence.id)
        self._is_stale = True

    def note_preemption(self) -> None:
        self._num_preempted += 1
        self._is_stale = True

    def tell(self, replies: list[Reply], outlook: Outlook, stats: StepStats | None = None) -> None:
        """Report what there is to say; load and queue where they have changed."""
        load, queue = self._load, self._queue
        self._load = self._look_at_load()
        if not (replies or stats or self._is_stale or self._load != load):
            return
        if self._is_stale:
            self._queue = self._look_at_queue(outlook)
        if stats and self._num_preempted:
            stats = msgspec.structs.replace(stats, num_preempted=self._num_preempted)
            self._num_preempted = 0
        self._report(
            StepReport(
                replies,
                stats,
                load=self._load if self._load != load else None,
                queue=self._queue if self._queue != queue else None,
                entered=tuple(self._entered),
            )
        )
        self._entered.clear()
        self._is_stale = False

    def _look_at_load(self) -> Load:
        roster, embedder = self._roster, self._embedder
        return Load(
            len(roster.running) + embedder.num_running,
            len(roster.waiting) + embedder.num_waiting,
        )

    def _look_at_queue(self, outlook: Outlook) -> QueueReport:
        running, waiting = self._roster.running, self._roster.waiting
        if not waiting and len(running) < self._limits.max_running:
            return QueueReport()
        queue = in_turn(waiting, outlook)
        *waits, newcomer_wait_s = expected_waits(running, queue, self._limits, outlook)
        return QueueReport(
            tuple(map(_note, queue, range(1, len(queue) + 1), waits)), newcomer_wait_s
        )


def _note(sequence: Sequence, position: int, wait_s: float) -> Waiting:
    if sequence.queue_position is None:
        sequence.queue_position, sequence.expected_queue_s = position, wait_s
    return Waiting(sequence.id, wait_s)


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
