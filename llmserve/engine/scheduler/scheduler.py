"""Which sequences enter, and what the next step computes. Pure: reads them, changes nothing.

The worker asks twice for each step, because a sequence that enters may find a part of its prompt
computed already: `plan_entries` says which lose and which get a slot, `plan_work` what is computed.

The rules, in this order:

1. Every running sequence with one pending token gets it: decoding never waits for a prompt.
2. If the free cells do not suffice for that, the youngest running sequences are preempted: they
   lose their cells and wait again at their old place. The oldest is never preempted for another.
3. Prompt tokens fill the rest of the step. If an interactive answer is being decoded, as many as
   the step can take within the target inter-token latency by what steps cost; but at least
   `MIN_PROGRESS`, so that no prompt starves where decoding alone is slower than that. If nothing
   is being decoded, a whole batch, or what about half a second suffices for: one with a short
   prompt may come any time. Of more than that, steps of `TILE` tokens or more take multiples of it.
   A prompt whose every token wants its logits takes what is left of `max_outputs` at most.
4. Of the prompts, running or waiting, the one with the shortest rest is first, but `AGING` of its
   age is taken off: one that comes later than rest / `AGING` does not overtake, so none starves.
5. A waiting sequence enters in that order while there is a slot, and room for all its tokens and
   the answer that is expected of it, beside all others'. None overtakes the first of them.
6. Batch requests are behind all interactive ones and make room for them, until they have waited for
   `BATCH_PATIENCE_S`: from then on they are like the others.
7. A deterministic sequence runs alone, in steps of a fixed size. When it is first in the order,
   no other enters; it does when the last one has left.
8. A step that only decodes may verify guesses at what comes next (`drafting`), as many as make all
   streams together faster and keep the step within the target.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from typing import NamedTuple

from msgspec import Struct

from llmserve.engine.scheduler.cost_model import Costs, OutputLengths
from llmserve.engine.scheduler.sequence import Sequence
from llmserve.engine.scheduler.speculation import best_len

MIN_PROGRESS = 8  # prompt tokens in any step
IDLE_CHUNK, IDLE_STEP_S = 64, 0.5  # of a step without decoding, the larger of the two
# Flash attention computes so many tokens together, and one more takes as long as all of them
# (ggml-cpu, GGML_FA_TILE_Q): behind 2,500 tokens one of 64 costs 1.0 ms, of 72 1.6, of 56 2.0.
TILE = 64
GROWTH_TOKENS = 32  # cells kept free per sequence at admission, so that it is not preempted at once
AGING = 0.1  # seconds of prompt that a second of age is worth


class Limits(Struct, frozen=True):
    max_batch: int  # tokens in one step; at least max_running, or prompts could starve
    max_running: int  # sequences with cells
    num_cells: int  # tokens of all running sequences together
    max_outputs: int  # rows of logits in one step; at least max_running
    target_itl_s: float  # what a step with decoding should take at most
    max_prompt: int = 1 << 30  # prompt tokens in one step


class Outlook(NamedTuple):
    """What is expected, and since when."""

    costs: Costs
    lengths: OutputLengths
    now_s: float


class Entries(NamedTuple):
    """`preempt` first, then give slots to `admit`."""

    preempt: list[Sequence]
    admit: list[Sequence]


class Work(NamedTuple):
    """Compute the next `num_tokens` pending tokens of `sequence`, and a guess at what follows."""

    sequence: Sequence
    num_tokens: int
    draft: Seq[int] = ()  # goes with the last pending token

    @property
    def is_last(self) -> bool:
        """Whether its logits choose the next token."""
        return self.num_tokens == self.sequence.num_pending

    @property
    def num_outputs(self) -> int:
        num_rows = self.num_tokens if self.sequence.wants_all_rows else int(self.is_last)
        return num_rows + len(self.draft)


def plan_entries(
    running: Seq[Sequence], waiting: Seq[Sequence], limits: Limits, outlook: Outlook
) -> Entries:
    """Which go back to the queue, and which enter. Every sequence must fit `num_cells` alone."""
    kept, preempt = _make_room(in_age(running, outlook.now_s), limits.num_cells)
    if preempt or not waiting or any(s.deterministic for s in kept):
        return Entries(preempt, [])
    if not has_room(kept, limits, outlook.now_s):
        return Entries([], [])
    displaceable = [s for s in kept if s.yields(outlook.now_s)]
    entrants = set(waiting)
    prompts = [*waiting, *(s for s in kept if s.num_pending > 1)]
    budget = _budget(kept, prompts, limits, outlook)
    admit: list[Sequence] = []
    for sequence in in_turn(prompts, outlook):
        if sequence not in entrants:
            budget.share(sequence)
            continue
        if not _fits(sequence, [*kept, *admit], limits, outlook):
            displaced = _displace(sequence, kept, displaceable, limits, outlook)
            if displaced and not admit and not sequence.yields(outlook.now_s):
                return Entries(displaced, [sequence])
            break
        if not budget.share(sequence).num_tokens:
            break
        admit.append(sequence)
    return Entries([], admit)


def has_room(running: Seq[Sequence], limits: Limits, now_s: float) -> bool:
    """Whether there is a slot, or a sequence that would make room."""
    return len(running) < limits.max_running or any(s.yields(now_s) for s in running)


def plan_work(running: Seq[Sequence], limits: Limits, outlook: Outlook) -> list[Work]:
    """The next step of those that have slots. Empty only if none has."""
    work = [Work(s, 1) for s in running if s.num_pending == 1]
    if len(work) < len(running):
        prompts = [s for s in running if s.num_pending > 1]
        budget = _budget(running, prompts, limits, outlook)
        parts = map(budget.share, in_turn(prompts, outlook))
        work += [part for part in parts if part.num_tokens]
    return work


def add_drafts(work: list[Work], limits: Limits, outlook: Outlook, num_cells: int) -> list[Work]:
    """`work` with guessed tokens where all together are then expected to be faster: rule 8.

    `num_cells` are in use.
    """
    if any(w.num_tokens > 1 for w in work) or not any(w.sequence.drafter for w in work):
        return work
    num_rows = len(work)
    room = min(limits.max_batch, limits.max_outputs, limits.num_cells - num_cells) - num_rows
    drafted = []
    for each in work:
        draft = _draft(each.sequence, room, num_rows, num_cells, limits, outlook)
        drafted.append(each._replace(draft=draft))
        room -= len(draft)
        num_rows += len(draft)
    return drafted


def _draft(
    sequence: Sequence,
    room: int,
    num_rows: int,
    num_cells: int,
    limits: Limits,
    outlook: Outlook,
) -> Seq[int]:
    """What to verify of `sequence`'s guess, in a step that has `num_rows` rows without it."""
    drafter = sequence.drafter
    if drafter is None:
        return ()
    guess = drafter.guess(sequence.tokens)
    # The last token of an answer is not computed.
    longest = min(len(guess), room, sequence.max_len - len(sequence.tokens) - 1)

    def step_s(length: int) -> float:
        return outlook.costs.step_s(num_rows + length, 0, num_cells)

    length = best_len(drafter.acceptance, longest, num_rows - 1, step_s)
    while length and step_s(length) > limits.target_itl_s:
        length -= 1
    return guess[:length]


def in_turn(prompts: Iterable[Sequence], outlook: Outlook) -> list[Sequence]:
    """In the order in which they are computed: rules 4 and 6."""

    def turn(sequence: Sequence) -> tuple[bool, float, int]:
        rest_s = outlook.costs.prefill_s(sequence.num_pending)
        aged_s = rest_s + AGING * sequence.accepted_s
        return sequence.yields(outlook.now_s), aged_s, sequence.arrival

    return sorted(prompts, key=turn)


def in_age(sequences: Iterable[Sequence], now_s: float) -> list[Sequence]:
    """Oldest first; the last ones make room for the others."""
    return sorted(sequences, key=lambda s: (s.yields(now_s), s.arrival))


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


def _budget(
    running: Seq[Sequence], prompts: Seq[Sequence], limits: Limits, outlook: Outlook
) -> _Budget:
    """For `prompts` in a step in which `running` decodes: rule 3."""
    rows = [s for s in running if s.num_pending == 1]
    used = used_cells(running)
    num_tokens = min(limits.max_batch, limits.num_cells - used) - len(rows)
    num_tokens = min(num_tokens, limits.max_prompt)
    if not any(s.deterministic for s in running):
        wanted = sum(s.num_pending for s in prompts)
        is_read = any(not s.yields(outlook.now_s) for s in rows)
        step_s = limits.target_itl_s if is_read else IDLE_STEP_S
        fast = outlook.costs.max_prompt_tokens(len(rows), used, step_s)
        if wanted > fast:
            fast = _in_tiles(fast, len(rows), nearest=not is_read)
        num_tokens = min(num_tokens, max(MIN_PROGRESS if is_read else IDLE_CHUNK, fast))
    return _Budget(num_tokens, limits.max_outputs - len(rows))


def _in_tiles(num_prompt: int, num_rows: int, *, nearest: bool) -> int:
    """`num_prompt`, or a little less or more, with which a step has whole tiles if it has any."""
    num_tokens = num_prompt + num_rows
    num_tiles = (num_tokens + (TILE // 2 if nearest else 0)) // TILE
    return num_tiles * TILE - num_rows if num_tokens >= TILE else num_prompt


def used_cells(running: Iterable[Sequence]) -> int:
    """KV cells in use."""
    return sum(s.num_own_cells for s in running)


def _make_room(
    oldest_first: list[Sequence], max_cells: int
) -> tuple[list[Sequence], list[Sequence]]:
    """Split into those that stay, with room for a step, and the youngest, which must go."""
    kept, preempt = list(oldest_first), []
    while kept:
        used = used_cells(kept)
        decoding = sum(s.num_pending == 1 for s in kept)
        # Without a decoding row one free cell is enough to go on with some prompt.
        if used + max(1, decoding) <= max_cells:
            break
        assert len(kept) > 1, "a sequence that does not fit alone was accepted"
        preempt.append(kept.pop())
    return kept, preempt


def _fits(sequence: Sequence, others: list[Sequence], limits: Limits, outlook: Outlook) -> bool:
    """Whether `sequence` may enter beside `others`."""
    if not others:
        return True
    if sequence.deterministic or any(s.deterministic for s in others):
        return False
    footprints = [footprint(s, outlook.lengths) for s in [*others, sequence]]
    return len(others) < limits.max_running and sum(footprints) <= limits.num_cells


def footprint(sequence: Sequence, lengths: OutputLengths) -> int:
    """The cells of its own that a sequence is expected to hold in the end."""
    num_tokens = len(sequence.tokens)
    left = lengths.left(sequence.num_generated, sequence.max_len - num_tokens)
    return min(num_tokens + max(left, GROWTH_TOKENS), sequence.max_len) - sequence.num_shared


def _displace(
    sequence: Sequence,
    kept: list[Sequence],
    displaceable: list[Sequence],
    limits: Limits,
    outlook: Outlook,
) -> list[Sequence]:
    """The youngest batch sequences without which `sequence` fits; none if that is not enough."""
    remaining, displaced = list(kept), []
    for victim in reversed(displaceable):
        remaining.remove(victim)
        displaced.append(victim)
        if _fits(sequence, remaining, limits, outlook):
            return displaced
    return []
