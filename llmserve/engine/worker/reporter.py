"""What the worker tells of a step, and of its queue, once each has changed."""

from collections.abc import Callable

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
from llmserve.engine.scheduler.scheduler import Limits, Outlook, in_turn
from llmserve.engine.scheduler.sequence import Sequence
from llmserve.engine.worker.embedding import Embedder
from llmserve.engine.worker.slots import Roster
from llmserve.engine.worker.waits import expected_waits


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
        self._is_stale = False  # somebody came, entered or left since the last `tell`

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
