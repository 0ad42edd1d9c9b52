"""What runs, what waits, and which slot belongs to which. Only the worker's thread touches it.

`occupy` and `vacate` are the only two places where a sequence gets a slot and gives it back, with
the cells in it.
"""

import bisect

from llmserve.engine.kvcache.manager import KvCache
from llmserve.engine.runtime import Runtime
from llmserve.engine.scheduler.sequence import Sequence
from llmserve.errors import EngineError


class Roster:
    def __init__(self, runtime: Runtime, kv: KvCache) -> None:
        self._runtime = runtime
        self._kv = kv
        self.free_slots = list(range(runtime.limits.num_slots))
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []  # in the order of arrival

    def enter(self, sequence: Sequence, now_s: float) -> None:
        """From the queue into a slot, which has what is known of its prefix."""
        self.waiting.remove(sequence)
        if sequence.deterministic:
            assert not self.running, "the plan has it alone"
            self._runtime.clear()
        self.running.append(sequence)
        self.occupy(sequence)
        if sequence.started_s is None:
            sequence.started_s = now_s

    def leave(self, sequence: Sequence) -> None:
        """Out of its slot."""
        self.vacate(sequence)
        self.running.remove(sequence)

    def occupy(self, sequence: Sequence) -> None:
        """Give it a slot."""
        sequence.slot = self.free_slots.pop()
        self._kv.attach(sequence, sequence.slot)

    def vacate(self, sequence: Sequence) -> None:
        """Give the slot and its cells back, parking what is worth it."""
        slot = slot_of(sequence)
        self._kv.detach(sequence, slot)
        self._runtime.trim(slot, 0)
        self.free_slots.append(slot)
        sequence.slot = None
        sequence.num_computed = 0

    def preempt(self, sequence: Sequence) -> None:
        """Back to the queue, at its place by arrival; all its tokens will be computed again."""
        self.leave(sequence)
        bisect.insort(self.waiting, sequence, key=lambda s: s.arrival)

    def remove(self, sequence: Sequence) -> None:
        """Out of here, wherever it is, if it still is."""
        if sequence.slot is not None:
            self.leave(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def rewind(self, sequence: Sequence) -> None:
        """Make its cells hold what the books say, or nothing where the model cannot be cut."""
        slot = slot_of(sequence)
        try:
            self._runtime.trim(slot, sequence.num_computed)
        except EngineError:  # a recurrent or sliding-window model
            self._runtime.trim(slot, 0)
            sequence.num_computed = 0

    def find(self, request_id: int) -> Sequence | None:
        sequences = [*self.running, *self.waiting]
        return next((s for s in sequences if s.id == request_id), None)

    def clear(self) -> list[Sequence]:
        """Forget all, for the end: their cells end with the runtime."""
        sequences = [*self.running, *self.waiting]
        self.running, self.waiting = [], []
        return sequences


def slot_of(sequence: Sequence) -> int:
    assert sequence.slot is not None, "only running sequences have cells"
    return sequence.slot
