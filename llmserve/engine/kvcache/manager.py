"""Which sequence computes a prefix, and which get it: what the worker asks about KV cells.

`attach` and `detach` go with getting a slot and giving it back. A sequence begins with the longest
prefix that is known: first what a running one holds, which costs nothing, then what is parked,
about 2 ms for 1,000 tokens. What no other place holds is stored when a sequence leaves. At
least one token is always left to compute, for its logits.

Of sequences that wait with a common prefix that is not computed yet, one leads; the others enter
when it has. If it leaves half-way, another goes on from what was parked of it.

Models that cannot be cut (recurrent, hybrid) go on only from checkpoints, which are whole states:
where others branch off, before the last token of the prompt, and at the end. See `clip`.

What the operator has pinned is in a namespace of its own, and lent to all others. Only who begins
with the whole of it gets it: with less, it could be guessed token by token.
"""

import logging
from collections.abc import Callable
from typing import NamedTuple

from llmserve.engine.kvcache.disk_store import DiskOptions
from llmserve.engine.kvcache.disk_tier import DiskTier
from llmserve.engine.kvcache.host_store import Parked, Parking
from llmserve.engine.kvcache.radix_tree import Match
from llmserve.engine.kvcache.shared_cells import SharedCells
from llmserve.engine.runtime import OutOfCellsError, Runtime, State
from llmserve.engine.scheduler.scheduler import Work
from llmserve.engine.scheduler.sequence import Sequence
from llmserve.errors import EngineError

log = logging.getLogger(__name__)

MAX_LOOKED_AT = 64  # of those that wait; a look takes 0.03 ms, and is taken in many steps
MIN_PREFIX = 16  # tokens that are worth waiting for, parking, or going on from
PINNED = "\0pinned"  # the namespace of what is pinned: no key's


class Known(NamedTuple):
    """What is known of a waiting sequence's beginning, in tokens."""

    path: list[Match[Parked[State]]]
    source: int | None  # the running slot that holds `num_shared` of it
    num_shared: int
    num_parked: int  # from the beginning
    num_promised: int  # that a sequence is computing, or has computed
    leader: int | None  # the slot that does

    @property
    def num_tokens(self) -> int:
        return max(self.num_shared, self.num_parked)


class KvCache:
    """Called by the worker's thread only."""

    def __init__(
        self,
        runtime: Runtime,
        budget_bytes: int,
        disk: DiskOptions | None = None,
        wake: Callable[[], None] = lambda: None,
        pinned_disk: DiskOptions | None = None,
    ) -> None:
        """`budget_bytes` bounds what is parked; 0 parks nothing, neither in memory nor on disk.

        `wake` is called in another thread when there is something to `collect`.
        """
        self._runtime = runtime
        self._can_cut = runtime.limits.can_cut
        self._parking = Parking[State](budget_bytes, can_cut=self._can_cut)
        self._tree = self._parking.tree
        self._cells = SharedCells()
        self._running: dict[int, Sequence] = {}  # by slot
        self._cuts: dict[int, set[int]] = {}  # slot -> where to save a checkpoint, in tokens
        self._disk = DiskTier(self._parking, disk if budget_bytes else None, wake)
        self._pinned_disk = DiskTier(self._parking, pinned_disk if budget_bytes else None, wake)
        self._pinned: list[list[int]] = []

    @property
    def parked_bytes(self) -> int:
        return self._parking.used_bytes

    @property
    def budget_bytes(self) -> int:
        return self._parking.budget_bytes

    # -- from disk ------------------------------------------------------------------------------

    def open(self) -> None:
        """Look at what an earlier run left on disk. Before everything else."""
        self._disk.open()
        self._pinned_disk.open()

    def close(self) -> None:
        """Have everything written that is to be."""
        self._disk.close()
        self._pinned_disk.close()

    def fetch(self, sequence: Sequence) -> None:
        """`sequence` has arrived: if more of it is on disk, it waits for that (`is_fetching`)."""
        if not sequence.can_reuse:
            return
        self._lend(sequence)
        disk = self._pinned_disk if sequence.namespace == PINNED else self._disk
        if disk.is_open:
            known = self._find(sequence)
            num_near = max(known.num_tokens, known.num_promised)
            disk.fetch(sequence, known.num_parked, num_near + MIN_PREFIX)

    def is_fetching(self, sequence: Sequence) -> bool:
        return self._disk.is_fetching(sequence) or self._pinned_disk.is_fetching(sequence)

    def collect(self) -> None:
        """Take in what came from disk; what waited for it need not any longer."""
        for sequence in self._disk.collect():
            self.fetch(sequence)  # it had joined another's, and there may be more of its own

    # -- pinned ---------------------------------------------------------------------------------

    def fetch_pinned(self, sequence: Sequence) -> None:
        """As `fetch`, for one of the namespace `PINNED`, and waits for the disk."""
        self.fetch(sequence)
        while self.is_fetching(sequence):
            self._pinned_disk.collect(wait=True)

    def pin(self, tokens: list[int]) -> bool:
        """Keep `tokens` for all, in memory and on disk; False if not all of them are parked."""
        if not self._parking.pin(PINNED, tokens):
            return False
        self._pinned.append(tokens)
        self._pinned_disk.keep(PINNED, tokens)
        return True

    def retain_pinned(self, prompts: list[list[int]]) -> None:
        """Remove from disk what was pinned once, and is not among `prompts`."""
        self._pinned_disk.retain(PINNED, prompts)

    def _lend(self, sequence: Sequence) -> None:
        for tokens in self._pinned:
            if sequence.tokens[: len(tokens)] == tokens:
                self._parking.lend(tokens, PINNED, sequence.namespace)

    # -- before a sequence enters ---------------------------------------------------------------

    def ready(self, waiting: list[Sequence]) -> list[Sequence]:
        """Those that need not wait for another's prefix, each told what it will find.

        Not empty unless a sequence runs, or all are fetching.
        """
        held = {sequence.id for sequence in waiting if self.is_fetching(sequence)}
        led: set[tuple[object, ...]] = set()
        in_order = sorted(waiting, key=lambda s: (s.is_batch, s.arrival))
        for sequence in in_order[:MAX_LOOKED_AT]:
            may_wait = sequence.can_reuse and sequence.id not in held
            if may_wait and self._must_wait(sequence, led):
                held.add(sequence.id)
        return [s for s in waiting if s.id not in held]

    def _must_wait(self, sequence: Sequence, led: set[tuple[object, ...]]) -> bool:
        """Whether another is about to compute what it begins with; notes what it leads itself."""
        known = self._find(sequence)
        sequence.num_known, sequence.num_shared = known.num_tokens, known.num_shared
        if known.num_promised - known.num_tokens >= MIN_PREFIX:
            if not self._can_cut and known.leader is not None:
                self._cuts[known.leader].add(known.num_promised)
            return True
        start = known.num_tokens
        begin = sequence.tokens[start : min(start + MIN_PREFIX, len(sequence.tokens) - 1)]
        if len(begin) < MIN_PREFIX or not self._can_lead:
            return False
        # What agrees up to here ends in the same node, so this stands for all the tokens before.
        node = known.path[-1].node if known.path else None
        prefix = (sequence.namespace, node, start, *begin)
        if prefix in led:
            return True
        led.add(prefix)
        return False

    @property
    def _can_lead(self) -> bool:
        return self._can_cut or self._parking.budget_bytes > 0

    def _leads(self, leader: Sequence, follower: Sequence) -> bool:
        """Whether it is worth waiting for."""
        if leader.is_batch and not follower.is_batch:
            return False
        return self._can_cut or (self._can_lead and leader.can_reuse)

    def _find(self, sequence: Sequence) -> Known:
        tokens = sequence.tokens
        path = self._tree.match(sequence.namespace, tokens, len(tokens) - 1)
        common: dict[int, int] = {}  # slot -> tokens in common
        num_parked = 0
        for node, end in path:
            common.update(dict.fromkeys(node.holders, end))
            if node.payload is not None and (self._can_cut or end == node.end):
                num_parked = end
        source, num_shared, leader, num_promised = None, 0, None, 0
        for slot, num_joint in common.items():
            other = self._running[slot]
            num_usable = min(other.num_computed, num_joint)
            if self._can_cut and num_usable > num_shared:
                source, num_shared = slot, num_usable
            if num_usable < num_joint > num_promised and self._leads(other, sequence):
                leader, num_promised = slot, num_joint
        if max(num_shared, num_parked) < MIN_PREFIX:
            source, num_shared, num_parked = None, 0, 0
        return Known(path, source, num_shared, num_parked, num_promised, leader)

    # -- entering -------------------------------------------------------------------------------

    def attach(self, sequence: Sequence, slot: int) -> None:
        """Let `sequence` begin in the empty `slot` with all that is known of it."""
        sequence.num_known = sequence.num_shared = 0
        if sequence.can_reuse:
            self._lend(sequence)
            sequence.num_computed = self._fill(slot, self._find(sequence))
            if sequence.started_s is None:
                sequence.num_cached = min(sequence.num_computed, sequence.prompt_len)
        self._tree.hold(sequence.namespace, sequence.tokens, slot)
        self._running[slot] = sequence
        self._cuts[slot] = self._planned_cuts(sequence)
        self._count_cells()

    def _fill(self, slot: int, known: Known) -> int:
        """Returns the number of tokens that `slot` has now."""
        num_tokens = 0
        if known.source is not None:
            self._runtime.share(known.source, slot, known.num_shared)
            self._cells.share(known.source, slot, known.num_shared)
            num_tokens = known.num_shared
        try:
            for parked, end in self._needed(known, num_tokens):
                self._runtime.load(slot, parked.state, end)
                num_tokens = end
        except OutOfCellsError:
            log.debug("no cells for a cached prefix beyond %d tokens", num_tokens)
        except EngineError as error:
            log.error("a cached prefix cannot be restored: %s", error)
        self._parking.touch([match.node for match in known.path])
        return num_tokens

    def _needed(self, known: Known, num_tokens: int) -> list[tuple[Parked[State], int]]:
        """The states to load behind the first `num_tokens`, and up to where each is needed."""
        ends: dict[Parked[State], int] = {}
        for node, end in known.path:
            if node.payload is not None and num_tokens < end <= known.num_parked:
                ends[node.payload] = end  # nodes that share one come one after the other
        if not self._can_cut:  # the last has everything
            return list(ends.items())[-1:]
        return list(ends.items())

    def _planned_cuts(self, sequence: Sequence) -> set[int]:
        last = sequence.prompt_len - 1  # so that the same prompt has one token to compute
        if self._can_cut or not sequence.can_reuse or last < MIN_PREFIX:
            return set()
        return {last}

    # -- checkpoints ----------------------------------------------------------------------------

    def clip(self, work: list[Work]) -> list[Work]:
        """`work`, but that no step goes beyond where a checkpoint is wanted."""
        if self._can_cut or not self._parking.budget_bytes:
            return work
        return [self._clip(w.sequence, w.num_tokens) for w in work]

    def _clip(self, sequence: Sequence, num_tokens: int) -> Work:
        assert sequence.slot is not None
        ahead = [c - sequence.num_computed for c in self._cuts[sequence.slot]]
        return Work(sequence, min([num_tokens, *(a for a in ahead if a > 0)]))

    def note(self, work: list[Work]) -> None:
        """`work` has been computed: save the checkpoints that are wanted."""
        if self._can_cut:
            return
        for each in work:
            sequence, slot = each.sequence, each.sequence.slot
            if slot is not None and sequence.num_computed in self._cuts[slot]:
                self._cuts[slot].discard(sequence.num_computed)
                self._park(sequence, slot)

    # -- leaving --------------------------------------------------------------------------------

    def detach(self, sequence: Sequence, slot: int) -> None:
        """`slot` is about to be emptied: park what is worth it."""
        self._park(sequence, slot)
        self._tree.release(slot)
        self._cells.leave(slot)
        del self._running[slot], self._cuts[slot]
        sequence.num_shared = 0
        self._count_cells()

    def _park(self, sequence: Sequence, slot: int) -> None:
        tokens = sequence.tokens[: sequence.num_computed]
        if len(tokens) < MIN_PREFIX or not self._parking.budget_bytes:
            return
        path = self._tree.insert(sequence.namespace, tokens)
        for node in self._parking.lacking(path):
            start = node.start if self._can_cut else 0
            state = self._runtime.save(slot, start, node.end)
            if not self._parking.put([node], Parked(start, node.end, state)):
                break
        self._tree.prune(path[-1])
        self._parking.touch(path)
        if sequence.namespace != PINNED:
            self._disk.keep(sequence.namespace, tokens)

    def _count_cells(self) -> None:
        for slot, sequence in self._running.items():
            sequence.num_shared = self._cells.num_shared(slot)

    # -- books ----------------------------------------------------------------------------------

    def check_empty(self, slots: list[int]) -> None:
        """A cheap look when nothing runs: untracked cells would slow every step."""
        for slot in slots:
            if num_lost := self._runtime.num_tokens(slot):
                log.error("slot %d holds %d untracked tokens", slot, num_lost)
                self._runtime.trim(slot, 0)

    def check_integrity(self) -> None:
        """Assert that our books balance, and agree with the runtime's."""
        self._parking.check_integrity()
        self._disk.check_integrity()
        self._pinned_disk.check_integrity()
        num_own = 0
        for slot in range(self._runtime.limits.num_slots):
            sequence = self._running.get(slot)
            expected = 0 if sequence is None else sequence.num_computed
            assert self._runtime.num_tokens(slot) == expected, f"slot {slot}"
            if sequence is not None:
                assert 0 <= sequence.num_shared <= sequence.num_computed
                num_own += sequence.num_own_cells
        assert num_own <= self._runtime.limits.num_cells
