"""The plans under random arrivals, lengths and limits, simulated to the end of every sequence."""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmserve.core import Request, SamplingParams
from llmserve.engine.output.text import TextStream
from llmserve.engine.sampling.logprobs import PromptScores
from llmserve.engine.sampling.sampler import Sampler
from llmserve.engine.scheduler.cost_model import Costs, OutputLengths
from llmserve.engine.scheduler.scheduler import (
    AGING,
    GROWTH_TOKENS,
    IDLE_CHUNK,
    IDLE_STEP_S,
    MIN_PROGRESS,
    Entries,
    Limits,
    Outlook,
    Work,
    plan_entries,
    plan_work,
)
from llmserve.engine.scheduler.sequence import BATCH_PATIENCE_S, Sequence

SAMPLER = Sampler(SamplingParams(temperature=0), seed=0, vocab_size=1, eog_tokens=())


def make_sequence(
    arrival: int,
    prompt_len: int,
    num_generate: int,
    *,
    wants_all_rows: bool = False,
    is_batch: bool = False,
    deterministic: bool = False,
    accepted_s: float = 0.0,
) -> Sequence:
    return Sequence(
        id=arrival,
        arrival=arrival,
        request=Request(
            priority="batch" if is_batch else "interactive", deterministic=deterministic
        ),
        tokens=[0] * prompt_len,
        max_len=prompt_len + num_generate,
        sampler=SAMPLER,
        text=TextStream(),
        accepted_s=accepted_s,
        prompt_scores=PromptScores([0] * prompt_len, 0, _no_text) if wants_all_rows else None,
    )


def _no_text(_token: int) -> bytes:
    return b""


class Arrival(NamedTuple):
    at_s: float
    prompt_len: int
    num_generate: int
    wants_all_rows: bool = False
    is_batch: bool = False
    deterministic: bool = False


@st.composite
def scenarios(draw: st.DrawFn) -> tuple[Limits, list[Arrival]]:
    max_running = draw(st.integers(1, 6))
    max_batch = draw(st.integers(max_running, 40))
    num_cells = draw(st.one_of(st.integers(2, 60), st.integers(60, 400)))
    limits = Limits(
        max_batch=max_batch,
        max_running=max_running,
        num_cells=num_cells,
        max_outputs=draw(st.integers(max_running, 12)),
        target_itl_s=draw(st.sampled_from([0.001, 0.05, 0.15, 10.0])),
    )
    arrivals = []
    for _ in range(draw(st.integers(1, 10))):
        prompt_len = draw(st.integers(1, num_cells - 1))
        num_generate = draw(st.integers(1, num_cells - prompt_len))
        arrivals.append(
            Arrival(
                draw(st.floats(0, 3)),
                prompt_len,
                min(num_generate, 40),
                wants_all_rows=draw(st.booleans()),
                is_batch=draw(st.booleans()),
                deterministic=draw(st.integers(0, 4)) == 0,
            )
        )
    return limits, sorted(arrivals)


class Simulation:
    """What the worker does with plans, without a model: steps take what they are expected to."""

    def __init__(self, limits: Limits, arrivals: Iterable[Arrival] = ()) -> None:
        self.limits = limits
        self.arrivals = list(arrivals)
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.admitted: list[Sequence] = []  # first admissions, in their order
        self.finished: list[Sequence] = []
        self.num_steps = 0
        self.now_s = 0.0
        self.costs = Costs()
        self.lengths = OutputLengths()
        self._num_taken = 0

    @property
    def is_over(self) -> bool:
        return self._num_taken == len(self.arrivals) and not (self.running or self.waiting)

    @property
    def outlook(self) -> Outlook:
        return Outlook(self.costs, self.lengths, self.now_s)

    def take_arrivals(self) -> None:
        while self._num_taken < len(self.arrivals):
            arrival = self.arrivals[self._num_taken]
            if arrival.at_s > self.now_s:
                return
            self.waiting.append(
                make_sequence(
                    self._num_taken,
                    arrival.prompt_len,
                    arrival.num_generate,
                    wants_all_rows=arrival.wants_all_rows,
                    is_batch=arrival.is_batch,
                    deterministic=arrival.deterministic,
                    accepted_s=arrival.at_s,
                )
            )
            self._num_taken += 1

    def run_step(self) -> list[Work]:
        if not (self.running or self.waiting):
            self.now_s = max(self.now_s, self.arrivals[self._num_taken].at_s)
        self.take_arrivals()
        before = [snapshot(s) for s in [*self.running, *self.waiting]]
        running, waiting = list(self.running), list(self.waiting)
        entries = plan_entries(self.running, self.waiting, self.limits, self.outlook)
        check_entries(entries, running, waiting, self.outlook)
        for sequence in entries.preempt:
            self.running.remove(sequence)
            sequence.num_computed = 0
            self.waiting.append(sequence)
        for sequence in entries.admit:
            self.waiting.remove(sequence)
            self.running.append(sequence)
            if sequence not in self.admitted:
                self.admitted.append(sequence)
        work = plan_work(self.running, self.limits, self.outlook)
        if not entries.preempt:
            assert before == [snapshot(s) for s in [*running, *waiting]], "a plan changes nothing"
        check_work(work, self.running, self.limits, self.outlook)
        assert work or not (self.running or self.waiting)
        if not entries.preempt:
            assert {*entries.admit} <= {w.sequence for w in work}, "what enters starts at once"
        self._compute(work)
        return work

    def _compute(self, work: list[Work]) -> None:
        num_rows = sum(w.num_tokens == 1 for w in work)
        num_tokens = sum(w.num_tokens for w in work)
        used = sum(s.num_computed for s in self.running)
        self.now_s += self.costs.step_s(num_rows, num_tokens - num_rows, used)
        self.num_steps += 1
        for sequence, count, _ in work:
            sequence.num_computed += count
            if sequence.num_pending == 0:
                sequence.prompt_scores = None  # told
                sequence.add(0, self.now_s)
                if sequence.is_full:
                    self.running.remove(sequence)
                    self.finished.append(sequence)


def snapshot(sequence: Sequence) -> tuple[int, int, int, int | None]:
    return sequence.id, len(sequence.tokens), sequence.num_computed, sequence.slot


def check_entries(
    entries: Entries, running: list[Sequence], waiting: list[Sequence], outlook: Outlook
) -> None:
    assert not entries.admit or all(s.yields(outlook.now_s) for s in entries.preempt)
    assert {*entries.preempt} <= {*running}
    assert {*entries.admit} <= {*waiting}
    # Only the youngest make room, batch requests before others, and never the oldest for another.
    by_age = sorted(running, key=lambda s: (s.yields(outlook.now_s), s.arrival))
    num_kept = len(by_age) - len(entries.preempt)
    assert {*entries.preempt} == {*by_age[num_kept:]}
    if running and not by_age[0].yields(outlook.now_s):
        assert by_age[0] not in entries.preempt
    # Nobody overtakes whose turn it is.
    in_turn = sorted(
        waiting,
        key=lambda s: (
            s.yields(outlook.now_s),
            outlook.costs.prefill_s(s.num_pending) + AGING * s.accepted_s,
            s.arrival,
        ),
    )
    assert entries.admit == in_turn[: len(entries.admit)]


def check_work(work: list[Work], running: list[Sequence], limits: Limits, outlook: Outlook) -> None:
    num_tokens = {w.sequence: w.num_tokens for w in work}
    assert len(num_tokens) == len(work), "one piece of work a sequence"
    total = sum(num_tokens.values())
    used = sum(s.num_computed for s in running)
    assert total <= limits.max_batch
    assert sum(w.num_outputs for w in work) <= limits.max_outputs
    assert len(running) <= limits.max_running
    assert used + total <= limits.num_cells
    assert all(0 < count <= s.num_pending for s, count, _ in work)
    assert {*num_tokens} <= {*running}
    # Who is deterministic is alone, and its steps do not depend on what is expected.
    if any(s.deterministic for s in running):
        (only,) = running
        max_outputs = limits.max_outputs if only.wants_all_rows else limits.max_batch
        assert num_tokens[only] == min(limits.max_batch, max_outputs, only.num_pending)
    # Decoding never waits, and never waits long for prompts.
    rows = [s for s in running if s.num_pending == 1]
    assert all(num_tokens[s] == 1 for s in rows)
    if any(not s.yields(outlook.now_s) for s in rows):
        num_prompt = total - len(rows)
        step_s = outlook.costs.step_s(len(rows), num_prompt, used)
        assert num_prompt <= MIN_PROGRESS or step_s <= limits.target_itl_s * (1 + 1e-9)


@settings(max_examples=300, deadline=None)
@given(scenarios())
@example((Limits(1, 1, 2, 1, 0.15), [Arrival(0, 1, 1), Arrival(0, 1, 1)]))
def test_every_sequence_finishes(scenario: tuple[Limits, list[Arrival]]) -> None:
    """Whoever comes, in whatever class and size, under any limits."""
    limits, arrivals = scenario
    simulation = Simulation(limits, arrivals)
    # Preempted, a sequence starts again; but each time another one has come closer to its end.
    bound = 20 * sum(a.prompt_len + a.num_generate + 2 for a in arrivals)
    while not simulation.is_over:
        simulation.run_step()
        assert simulation.num_steps <= bound
    assert len(simulation.finished) == len(arrivals)


LIMITS = Limits(max_batch=512, max_running=16, num_cells=32_768, max_outputs=32, target_itl_s=0.15)


# -- fairness ------------------------------------------------------------------------------------


def prefill_s(num_tokens: int) -> float:
    return Costs().prefill_s(num_tokens)


@settings(max_examples=10, deadline=None)
@given(
    st.integers(350, 1000),
    st.lists(st.integers(50, 300), min_size=1, max_size=20),
    st.booleans(),
)
def test_no_prompt_starves_whoever_keeps_coming(
    long_len: int, short_lens: list[int], deterministic: bool
) -> None:
    """An adversary who always has more of shorter prompts waiting than one step can take.

    The long one is overtaken only by what came within rest / AGING.
    """
    simulation = Simulation(LIMITS)
    long = make_sequence(-1, long_len, 2, deterministic=deterministic)
    simulation.waiting.append(long)
    patience_s = prefill_s(long_len) / AGING
    while long.first_token_s is None:
        assert simulation.now_s < 1.5 * patience_s + 20, "starved"
        shorts = (s for s in [*simulation.running, *simulation.waiting] if s is not long)
        num_pending = sum(s.num_pending for s in shorts if s.num_pending > 1)
        while num_pending < 700:
            arrival = simulation.num_steps * 1000 + num_pending
            prompt_len = short_lens[arrival % len(short_lens)]
            num_pending += prompt_len
            simulation.waiting.append(
                make_sequence(arrival, prompt_len, 1, accepted_s=simulation.now_s)
            )
        simulation.run_step()


@pytest.mark.parametrize("num_streams", [0, 4])
def test_a_short_prompt_behind_a_long_one_gets_its_first_token_soon(num_streams: int) -> None:
    """Beside streams, and where all are only prefilling."""
    streams = [Arrival(0, 10, 2000) for _ in range(num_streams)]
    long = Arrival(0.5, 4000, 10)
    shorts = [Arrival(1.0 + n, 50, 1) for n in range(8)]
    simulation = Simulation(LIMITS, [*streams, long, *shorts])
    while len(simulation.finished) < len(shorts) + 1:
        simulation.run_step()
    for sequence in simulation.finished:
        assert sequence.first_token_s is not None
        if sequence.prompt_len == 50:
            assert sequence.first_token_s - sequence.accepted_s < 1.6
    (behind,) = [s for s in simulation.finished if s.prompt_len == 4000]
    assert behind.first_token_s is not None
    assert behind.first_token_s < 2.5 * (prefill_s(4000) + 8 * prefill_s(50)) + 8


def test_streams_hardly_notice_long_prompts() -> None:
    arrivals = [Arrival(0, 10, 150) for _ in range(4)]
    arrivals += [Arrival(0.5, 2900, 10) for _ in range(3)]
    simulation = Simulation(LIMITS, arrivals)
    gaps = []
    while len(simulation.finished) < 4:
        decoding = sum(s.num_generated > 0 for s in simulation.running) == 4
        begin_s = simulation.now_s
        simulation.run_step()
        gaps.append(simulation.now_s - begin_s if decoding else 0)
    assert max(gaps) <= LIMITS.target_itl_s * 1.001
    assert sum(gap > LIMITS.target_itl_s / 2 for gap in gaps) > 50, "no prompt was computed"


# -- what a plan is ------------------------------------------------------------------------------

SMALL = Limits(max_batch=32, max_running=4, num_cells=256, max_outputs=6, target_itl_s=0.06)
OUTLOOK = Outlook(Costs(), OutputLengths(), 0.0)  # in `SMALL`, one stream leaves 16 prompt tokens


def running_sequence(
    arrival: int, num_tokens: int, num_computed: int, *, is_batch: bool = False
) -> Sequence:
    sequence = make_sequence(arrival, num_tokens, 100, is_batch=is_batch)
    sequence.num_computed = num_computed
    return sequence


def entries(running: list[Sequence], waiting: list[Sequence], limits: Limits = SMALL) -> Entries:
    return plan_entries(running, waiting, limits, OUTLOOK)


def work(running: list[Sequence], limits: Limits = SMALL) -> list[Work]:
    return plan_work(running, limits, OUTLOOK)


def test_nothing_to_do_is_an_empty_plan() -> None:
    assert entries([], []) == Entries([], [])
    assert work([]) == []


def test_a_prompt_alone_takes_the_whole_batch() -> None:
    prompt = make_sequence(0, 100, 10)
    assert entries([], [prompt]) == Entries([], [prompt])
    assert work([prompt]) == [Work(prompt, 32)]


def test_where_nothing_is_decoded_a_step_takes_about_half_a_second() -> None:
    """In whole tiles; at least a chunk, as on a much slower machine."""
    assert Costs().max_prompt_tokens(0, 0, IDLE_STEP_S) == 165
    prompt = make_sequence(0, 4000, 10)
    assert work([prompt], LIMITS) == [Work(prompt, 192)]
    rest = make_sequence(0, 165, 10)
    assert work([rest], LIMITS) == [Work(rest, 165)]
    slow = Costs()
    slow.observe(0, 300, 0, 60.0)
    assert plan_work([prompt], LIMITS, OUTLOOK._replace(costs=slow)) == [Work(prompt, IDLE_CHUNK)]


def test_beside_a_stream_a_prompt_takes_what_the_target_leaves() -> None:
    stream, prompt = running_sequence(0, 10, 9), make_sequence(1, 100, 10)
    assert work([stream, prompt]) == [Work(stream, 1), Work(prompt, 16)]
    tight = Limits(32, 4, 256, 6, target_itl_s=0.001)
    assert work([stream, prompt], tight) == [Work(stream, 1), Work(prompt, MIN_PROGRESS)]


def test_beside_streams_a_large_step_has_whole_tiles() -> None:
    stream, prompt = running_sequence(0, 10, 9), make_sequence(1, 1000, 10)
    for target_itl_s, expected in ((0.15, 46), (0.21, 63), (0.39, 63), (0.41, 127)):
        limits = msgspec.structs.replace(LIMITS, target_itl_s=target_itl_s)
        assert work([stream, prompt], limits) == [Work(stream, 1), Work(prompt, expected)]


def test_beside_batch_answers_alone_a_prompt_takes_the_whole_batch() -> None:
    stream, prompt = running_sequence(0, 10, 9, is_batch=True), make_sequence(1, 100, 10)
    assert work([stream, prompt]) == [Work(stream, 1), Work(prompt, 31)]


def test_streams_come_before_an_older_prompt_which_takes_the_rest_of_the_batch() -> None:
    limits = Limits(max_batch=3, max_running=3, num_cells=256, max_outputs=3, target_itl_s=1)
    prompt = running_sequence(0, 10, 0)
    streams = [running_sequence(1, 10, 9), running_sequence(2, 10, 9)]
    assert work([prompt, *streams], limits) == [
        Work(streams[0], 1),
        Work(streams[1], 1),
        Work(prompt, 1),
    ]


def test_a_prompt_that_wants_all_its_rows_leaves_the_rest_of_the_batch_to_others() -> None:
    stream = running_sequence(0, 10, 9)
    scored = make_sequence(1, 100, 10, wants_all_rows=True, accepted_s=-1000.0)
    long, short = make_sequence(2, 3, 10), make_sequence(3, 3, 10)
    # No row is left for the last tokens.
    assert work([stream, scored, long, short]) == [
        Work(stream, 1),
        Work(scored, 5),
        Work(long, 2),
        Work(short, 2),
    ]


def test_the_shortest_rest_is_first_and_age_counts() -> None:
    stream = running_sequence(0, 10, 9)
    nearly_done = running_sequence(1, 100, 95)
    short, long = make_sequence(2, 20, 10), make_sequence(3, 60, 10)
    assert work([stream, long, nearly_done, short]) == [
        Work(stream, 1),
        Work(nearly_done, 5),
        Work(short, 11),
    ]
    long.accepted_s = -prefill_s(60) / AGING
    assert work([stream, long, nearly_done, short])[1] == Work(long, 16)


def test_entering_needs_room_for_the_expected_answer() -> None:
    short_answers = OutputLengths()
    for _ in range(100):
        short_answers.observe(50)
    outlook = OUTLOOK._replace(lengths=short_answers)
    stream = running_sequence(0, 100, 99)
    fits = make_sequence(1, 256 - 100 - 50 - 50, 100)
    assert plan_entries([stream], [fits], SMALL, outlook).admit == [fits]
    fits.tokens.append(0)
    fits.prompt_len += 1
    assert plan_entries([stream], [fits], SMALL, outlook).admit == []
    fits.max_len = len(fits.tokens) + 20  # it has asked for less
    assert plan_entries([stream], [fits], SMALL, outlook).admit == [fits]


def test_what_is_longer_than_expected_keeps_room_to_grow() -> None:
    short_answers = OutputLengths()
    for _ in range(100):
        short_answers.observe(1)
    outlook = OUTLOOK._replace(lengths=short_answers)
    stream = running_sequence(0, 100, 99)
    fits = make_sequence(1, 256 - 100 - 2 * GROWTH_TOKENS, 100)
    assert plan_entries([stream], [fits], SMALL, outlook).admit == [fits]
    fits.tokens.append(0)
    assert plan_entries([stream], [fits], SMALL, outlook).admit == []


def test_nobody_overtakes_a_large_prompt_whose_turn_it_is() -> None:
    stream = running_sequence(0, 100, 99)
    large, small = make_sequence(1, 200, 10, accepted_s=-1000), make_sequence(2, 1, 1)
    assert entries([stream], [large, small]).admit == []


def test_the_youngest_makes_room_and_nobody_enters_meanwhile() -> None:
    limits = Limits(max_batch=32, max_running=4, num_cells=30, max_outputs=4, target_itl_s=1)
    old, young = running_sequence(0, 16, 15), running_sequence(1, 16, 15)
    waiting = make_sequence(2, 1, 1)
    assert entries([young, old], [waiting], limits) == Entries([young], [])


# -- batch requests ------------------------------------------------------------------------------

PAIR = Limits(max_batch=32, max_running=2, num_cells=4000, max_outputs=6, target_itl_s=1)


def test_a_batch_request_waits_behind_interactive_ones() -> None:
    batch = make_sequence(0, 5, 10, is_batch=True)
    long, short = make_sequence(1, 60, 10), make_sequence(2, 10, 10)
    assert entries([], [batch, long, short], PAIR).admit == [short, long]
    assert entries([short], [batch], PAIR).admit == [batch]


def test_a_batch_request_makes_room_for_an_interactive_one() -> None:
    batch = running_sequence(0, 16, 15, is_batch=True)
    stream, waiting = running_sequence(1, 16, 15), make_sequence(2, 10, 10)
    assert entries([batch, stream], [waiting], PAIR) == Entries([batch], [waiting])
    also_batch = make_sequence(2, 10, 10, is_batch=True)
    assert entries([batch, stream], [also_batch], PAIR) == Entries([], [])


def test_a_batch_request_that_would_not_make_room_enough_stays() -> None:
    batch = running_sequence(0, 16, 15, is_batch=True)
    streams = [running_sequence(1, 3000, 2999)]
    assert entries([batch, *streams], [make_sequence(2, 900, 100)], PAIR) == Entries([], [])


def test_a_batch_request_is_like_the_others_after_a_while() -> None:
    outlook = OUTLOOK._replace(now_s=BATCH_PATIENCE_S)
    batch = running_sequence(0, 16, 15, is_batch=True)
    stream, waiting = running_sequence(1, 16, 15), make_sequence(2, 10, 10)
    assert plan_entries([batch, stream], [waiting], PAIR, outlook) == Entries([], [])


def test_batch_requests_finish_under_endless_interactive_ones() -> None:
    limits = Limits(max_batch=64, max_running=2, num_cells=4000, max_outputs=6, target_itl_s=0.15)
    simulation = Simulation(limits)
    batch = make_sequence(-1, 300, 20, is_batch=True)
    simulation.waiting.append(batch)
    num_displaced = 0
    for index in range(100_000):
        while len(simulation.waiting) < 3:
            simulation.waiting.append(make_sequence(index, 20, 20, accepted_s=simulation.now_s))
        was_running = batch in simulation.running
        simulation.run_step()
        if batch in simulation.finished:
            break
        num_displaced += was_running and batch in simulation.waiting
    assert batch.last_token_s is not None
    assert BATCH_PATIENCE_S < batch.last_token_s < BATCH_PATIENCE_S + 60


# -- deterministic requests ----------------------------------------------------------------------


def test_a_deterministic_request_waits_until_nobody_runs() -> None:
    stream = running_sequence(0, 16, 15)
    alone = make_sequence(1, 10, 10, deterministic=True)
    other = make_sequence(2, 20, 10)
    assert entries([stream], [alone, other], PAIR) == Entries([], [])
    assert entries([], [alone, other], PAIR) == Entries([], [alone])
    assert entries([alone], [other], PAIR) == Entries([], [])


def test_a_deterministic_request_makes_batch_requests_leave() -> None:
    batches = [running_sequence(n, 16, 15, is_batch=True) for n in range(2)]
    alone = make_sequence(2, 10, 10, deterministic=True)
    assert entries(batches, [alone], PAIR) == Entries(batches[::-1], [alone])


def test_a_deterministic_prompt_has_chunks_of_one_size() -> None:
    slow = Costs()
    slow.observe(0, 300, 0, 600.0)
    prompt = make_sequence(0, 1000, 10, deterministic=True)
    assert plan_work([prompt], LIMITS, OUTLOOK._replace(costs=slow)) == [Work(prompt, 512)]
