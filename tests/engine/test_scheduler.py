"""`plan_step` under random arrivals, lengths and limits, simulated to the end of every sequence."""

from typing import NamedTuple

from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmserve.core import SamplingParams
from llmserve.engine.logprobs import PromptScores
from llmserve.engine.output import TextStream
from llmserve.engine.sampling import Sampler
from llmserve.engine.scheduler import GROWTH_TOKENS, Limits, Plan, Work, plan_step
from llmserve.engine.sequence import Sequence

SAMPLER = Sampler(SamplingParams(temperature=0), seed=0, vocab_size=1, eog_tokens=())


def make_sequence(
    arrival: int, prompt_len: int, num_generate: int, *, wants_all_rows: bool = False
) -> Sequence:
    return Sequence(
        id=arrival,
        arrival=arrival,
        tokens=[0] * prompt_len,
        max_len=prompt_len + num_generate,
        sampler=SAMPLER,
        text=TextStream(),
        accepted_s=0.0,
        prompt_scores=PromptScores([0] * prompt_len, 0, _no_text) if wants_all_rows else None,
    )


def _no_text(_token: int) -> bytes:
    return b""


class Arrival(NamedTuple):
    step: int
    prompt_len: int
    num_generate: int
    wants_all_rows: bool = False


@st.composite
def scenarios(draw: st.DrawFn) -> tuple[Limits, list[Arrival]]:
    max_running = draw(st.integers(1, 6))
    max_batch = draw(st.integers(max_running, 40))
    num_cells = draw(st.one_of(st.integers(2, 60), st.integers(60, 400)))
    limits = Limits(
        max_batch=max_batch,
        max_running=max_running,
        num_cells=num_cells,
        prefill_chunk=draw(st.integers(1, 50)),
        max_outputs=draw(st.integers(max_running, 12)),
    )
    arrivals = []
    for _ in range(draw(st.integers(1, 10))):
        prompt_len = draw(st.integers(1, num_cells - 1))
        num_generate = draw(st.integers(1, num_cells - prompt_len))
        step, wants_all_rows = draw(st.integers(0, 60)), draw(st.booleans())
        arrivals.append(Arrival(step, prompt_len, min(num_generate, 40), wants_all_rows))
    return limits, sorted(arrivals)


class Simulation:
    """What the worker does with plans, without a model."""

    def __init__(self, limits: Limits, arrivals: list[Arrival]) -> None:
        self.limits = limits
        self.arrivals = arrivals
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.admitted: list[Sequence] = []  # first admissions, in their order
        self.finished: list[Sequence] = []
        self.step = 0
        self._next = 0

    @property
    def is_over(self) -> bool:
        return self._next == len(self.arrivals) and not (self.running or self.waiting)

    def take_arrivals(self) -> None:
        while self._next < len(self.arrivals) and self.arrivals[self._next].step <= self.step:
            _, prompt_len, num_generate, wants_all_rows = self.arrivals[self._next]
            self.waiting.append(
                make_sequence(self._next, prompt_len, num_generate, wants_all_rows=wants_all_rows)
            )
            self._next += 1

    def run_step(self) -> None:
        self.take_arrivals()
        before = [snapshot(s) for s in [*self.running, *self.waiting]]
        running, waiting = list(self.running), list(self.waiting)
        plan = plan_step(self.running, self.waiting, self.limits)
        assert before == [snapshot(s) for s in [*self.running, *self.waiting]]
        assert (running, waiting) == (self.running, self.waiting)
        check_plan(plan, running, waiting, self.limits)
        for sequence in plan.preempt:
            self.running.remove(sequence)
            sequence.num_computed = 0
            self.waiting.append(sequence)
            self.waiting.sort(key=lambda s: s.arrival)
        for sequence in plan.admit:
            self.waiting.remove(sequence)
            self.running.append(sequence)
            if sequence not in self.admitted:
                self.admitted.append(sequence)
        for sequence, num_tokens in plan.work:
            sequence.num_computed += num_tokens
            if sequence.num_pending == 0:
                sequence.prompt_scores = None  # told
                sequence.add(0, 0.0)
                if sequence.is_full:
                    self.running.remove(sequence)
                    self.finished.append(sequence)
        self.step += 1


def snapshot(sequence: Sequence) -> tuple[int, int, int, int | None]:
    return sequence.id, len(sequence.tokens), sequence.num_computed, sequence.slot


def check_plan(
    plan: Plan, running: list[Sequence], waiting: list[Sequence], limits: Limits
) -> None:
    work = {id(w.sequence): w.num_tokens for w in plan.work}
    assert len(work) == len(plan.work), "one piece of work a sequence"
    # Limits.
    assert plan.num_tokens <= limits.max_batch
    assert sum(w.num_outputs for w in plan.work) <= limits.max_outputs
    active = [s for s in running if s not in plan.preempt] + plan.admit
    assert len(active) <= limits.max_running
    assert sum(s.num_computed for s in active) + plan.num_tokens <= limits.num_cells
    for sequence, num_tokens in plan.work:
        assert sequence in active
        assert 0 < num_tokens <= sequence.num_pending
    # Decoding never waits, and never waits long for prompts.
    decoding = [s for s in running if s.num_pending == 1 and s not in plan.preempt]
    assert all(work.get(id(s)) == 1 for s in decoding)
    if decoding:
        assert plan.num_tokens - len(decoding) <= limits.prefill_chunk
    # Something always happens; what enters starts at once.
    assert plan.work or not (running or waiting)
    assert all(id(s) in work for s in plan.admit)
    # First come, first served; only the youngest make room, never the oldest.
    assert plan.admit == waiting[: len(plan.admit)]
    by_age = sorted(running, key=lambda s: s.arrival)
    assert set(map(id, plan.preempt)) == set(map(id, by_age[len(by_age) - len(plan.preempt) :]))
    if running:
        assert by_age[0] not in plan.preempt
    # Prompts are served oldest first: who is behind one that waits gets nothing, unless that one
    # waits for output rows alone.
    prompts = [s for s in [*by_age, *plan.admit] if s not in plan.preempt and s not in decoding]
    if sum(w.num_outputs for w in plan.work) == limits.max_outputs:
        prompts = [
            s for s in prompts if not s.wants_all_rows and s.num_pending - work.get(id(s), 0) != 1
        ]
    served = [work.get(id(s), 0) for s in prompts]
    unfinished = [s.num_pending > n for s, n in zip(prompts, served, strict=True)]
    for index, is_unfinished in enumerate(unfinished):
        if is_unfinished:
            assert not any(served[index + 1 :])
            break


@settings(max_examples=300)
@given(scenarios())
@example((Limits(1, 1, 2, 1, 1), [Arrival(0, 1, 1), Arrival(0, 1, 1)]))
def test_every_sequence_finishes(scenario: tuple[Limits, list[Arrival]]) -> None:
    """Within a bound: the oldest computes at least one token in every second step (where it gets
    none, the cells are full, and the next step preempts), and nobody overtakes it.
    """
    limits, arrivals = scenario
    simulation = Simulation(limits, arrivals)
    bound = arrivals[-1].step
    # Being the oldest, a sequence starts again at most once: it is never preempted from then on.
    bound += sum(2 * (a.prompt_len + a.num_generate) + 1 for a in arrivals)
    while not simulation.is_over:
        simulation.run_step()
        assert simulation.step <= bound
    assert len(simulation.finished) == len(arrivals)
    assert [s.arrival for s in simulation.admitted] == list(range(len(arrivals)))


@given(scenarios())
def test_the_oldest_is_never_held_up_by_the_others(
    scenario: tuple[Limits, list[Arrival]],
) -> None:
    """The oldest running sequence computes something at least in every second step."""
    simulation = Simulation(*scenario)
    idle: tuple[Sequence, int] | None = None
    while not simulation.is_over:
        simulation.take_arrivals()
        everyone = [*simulation.running, *simulation.waiting]
        oldest = min(everyone, key=lambda s: s.arrival) if everyone else None
        computed = oldest.num_computed if oldest else 0
        simulation.run_step()
        if oldest is None or oldest.num_computed > computed or oldest in simulation.finished:
            idle = None
        else:
            assert idle != (oldest, computed), "no progress in two steps"
            idle = (oldest, computed)


LIMITS = Limits(max_batch=32, max_running=4, num_cells=256, prefill_chunk=8, max_outputs=6)


def running_sequence(arrival: int, num_tokens: int, num_computed: int) -> Sequence:
    sequence = make_sequence(arrival, num_tokens, 100)
    sequence.num_computed = num_computed
    return sequence


def test_nothing_to_do_is_an_empty_plan() -> None:
    assert plan_step([], [], LIMITS) == Plan([], [], [])


def test_a_prompt_alone_takes_the_whole_batch() -> None:
    prompt = make_sequence(0, 100, 10)
    plan = plan_step([], [prompt], LIMITS)
    assert plan == Plan([], [prompt], [Work(prompt, 32)])


def test_beside_a_stream_a_prompt_takes_a_chunk() -> None:
    stream, prompt = running_sequence(0, 10, 9), make_sequence(1, 100, 10)
    plan = plan_step([stream], [prompt], LIMITS)
    assert plan == Plan([], [prompt], [Work(stream, 1), Work(prompt, 8)])


def test_streams_come_before_an_older_prompt_which_takes_the_rest_of_the_batch() -> None:
    limits = Limits(max_batch=3, max_running=3, num_cells=256, prefill_chunk=8, max_outputs=3)
    prompt = running_sequence(0, 10, 0)
    streams = [running_sequence(1, 10, 9), running_sequence(2, 10, 9)]
    plan = plan_step([prompt, *streams], [], limits)
    assert plan.work == [Work(streams[0], 1), Work(streams[1], 1), Work(prompt, 1)]


def test_a_prompt_that_wants_all_its_rows_leaves_the_rest_of_the_batch_to_others() -> None:
    stream = running_sequence(0, 10, 9)
    scored = make_sequence(1, 100, 10, wants_all_rows=True)
    long, short = make_sequence(2, 2, 10), make_sequence(3, 1, 10)
    plan = plan_step([stream], [scored, long, short], LIMITS)
    # No row is left for the last token of `long`, and none at all for `short`.
    assert plan.work == [Work(stream, 1), Work(scored, 5), Work(long, 1)]
    assert plan.admit == [scored, long]


def test_entering_needs_room_to_grow() -> None:
    stream = running_sequence(0, 100, 99)
    fits = make_sequence(1, 256 - 100 - 2 * GROWTH_TOKENS, 100)
    assert plan_step([stream], [fits], LIMITS).admit == [fits]
    fits.tokens.append(0)
    assert plan_step([stream], [fits], LIMITS).admit == []


def test_nobody_overtakes_a_large_prompt() -> None:
    stream = running_sequence(0, 100, 99)
    large, small = make_sequence(1, 200, 10), make_sequence(2, 1, 1)
    assert plan_step([stream], [large, small], LIMITS).admit == []


def test_the_youngest_makes_room_and_nobody_enters_meanwhile() -> None:
    limits = Limits(max_batch=32, max_running=4, num_cells=30, prefill_chunk=8, max_outputs=4)
    old, young = running_sequence(0, 16, 15), running_sequence(1, 16, 15)
    waiting = make_sequence(2, 1, 1)
    plan = plan_step([young, old], [waiting], limits)
    assert plan == Plan([young], [], [Work(old, 1)])
