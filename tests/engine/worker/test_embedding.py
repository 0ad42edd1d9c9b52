"""The embedding work, stepped by hand on the fake: every batch is seen."""

import random
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmserve.core import Vectors
from llmserve.engine.messages import Cancel, Embed, Embedded, Failed, StepReport
from llmserve.engine.runtime import AbortedError, EmbeddingLimits, InputChunk
from llmserve.engine.worker import embedding as embedder_module
from llmserve.engine.worker.embedding import BUSY_TOKENS, Embedder, Input, Job, plan_batch
from llmserve.engine.worker.inbox import Inbox
from llmserve.errors import EngineError
from tests.fakes import FakeRuntime, fake_vector

DIM = 8
WHOLE = EmbeddingLimits(DIM, max_len=64, max_batch=32, max_inputs=4, num_cells=None)
PARTS = EmbeddingLimits(DIM, max_len=64, max_batch=32, max_inputs=4, num_cells=64)
LIMITS = pytest.mark.parametrize("limits", [WHOLE, PARTS], ids=["whole", "parts"])


class Bench:
    def __init__(self, limits: EmbeddingLimits, runtime: FakeRuntime | None = None) -> None:
        self.runtime = runtime or FakeRuntime(embedding=limits)
        self.inbox = Inbox(self.runtime)
        self.embedder = Embedder(self.runtime, self._note, self.inbox)
        self.inputs: dict[int, list[list[int]]] = {}
        self.answers: dict[int, Embedded | Failed] = {}
        self.order: list[int] = []  # requests, as they were answered
        self.num_tokens: list[int] = []  # of each batch, as it was reported

    def _note(self, report: StepReport) -> None:
        for request_id, event in report.replies:
            assert request_id not in self.answers
            assert isinstance(event, Embedded | Failed)
            self.answers[request_id] = event
            self.order.append(request_id)
        if report.stats:
            assert report.stats.num_decoded == 0
            self.num_tokens.append(report.stats.num_prefilled)

    def add(self, *inputs: Sequence[int]) -> int:
        request_id = len(self.inputs)
        self.inputs[request_id] = [list(tokens) for tokens in inputs]
        self.embedder.add(Embed(request_id, self.inputs[request_id]))
        return request_id

    def step(self, *, is_busy: bool = False) -> None:
        self.embedder.step(is_busy=is_busy)
        self.check_books()

    def run(self) -> None:
        for _ in range(10_000):
            if not self.embedder.has_work:
                return
            self.step()
        raise AssertionError("it does not end")

    def vectors(self, request_id: int) -> Vectors:
        answer = self.answers[request_id]
        assert isinstance(answer, Embedded), answer
        assert answer.data is not None
        return np.frombuffer(answer.data, dtype="<f4").reshape(-1, DIM)

    def check(self, request_id: int) -> None:
        """The answer is that of each input alone."""
        expected = np.array([fake_vector(tokens, DIM) for tokens in self.inputs[request_id]])
        np.testing.assert_array_equal(self.vectors(request_id), expected)

    def check_books(self) -> None:
        embedder = self.embedder
        begun = {each.slot: each for each in embedder._begun if each.slot is not None}
        assert len(begun) == len(embedder._begun)
        assert sorted([*begun, *embedder._free_slots]) == list(range(4))
        held = {slot: tokens for slot, tokens in self.runtime.inputs.items() if tokens}
        assert held == {
            slot: each.tokens[: each.num_computed]
            for slot, each in begun.items()
            if each.num_computed
        }
        assert all(each.job in embedder._jobs for each in begun.values())
        assert self.inbox.computing is None
        assert 0 <= embedder.num_running <= embedder.num_running + embedder.num_waiting


def tokens(length: int, salt: int = 0) -> list[int]:
    return [(salt * 31 + i) % 250 for i in range(length)]


# -- planning ------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(1, 64), max_size=20),
    begun=st.lists(st.tuples(st.integers(1, 16), st.integers(0, 15)), max_size=4),
    max_tokens=st.integers(1, 40),
    limits=st.sampled_from([WHOLE, PARTS]),
)
def test_a_batch_keeps_to_the_limits(
    lengths: list[int],
    begun: list[tuple[int, int]],
    max_tokens: int,
    limits: EmbeddingLimits,
) -> None:
    job = Job(
        0, [tokens(n) for n in [*lengths, *(n for n, _ in begun)]], np.zeros((1, DIM), np.float32)
    )
    under_way = []
    for slot, (length, done) in enumerate(begun):
        each = Input(job, len(lengths) + slot, slot=slot)
        each.num_computed = 0 if limits.is_whole else min(done, length - 1)
        under_way.append(each)
    upcoming = [Input(job, index) for index in range(len(lengths))]
    work = plan_batch(under_way, upcoming, limits, max_tokens)
    assert bool(work) == bool(lengths or begun)
    assert all(1 <= each.num_tokens <= each.input.num_pending for each in work)
    total = sum(each.num_tokens for each in work)
    if limits.is_whole:
        assert all(each.is_last for each in work)
        assert total <= max_tokens or len(work) == 1
    else:
        assert total <= max_tokens
    new = [each.input for each in work if each.input.slot is None]
    assert new == upcoming[: len(new)]  # nobody overtakes
    assert len(under_way) + len(new) <= limits.max_inputs
    if not limits.is_whole:
        assert sum(len(each.tokens) for each in [*under_way, *new]) <= max(
            64, sum(len(each.tokens) for each in under_way)
        )


# -- computing -----------------------------------------------------------------------------------


@LIMITS
def test_many_inputs_of_one_request(limits: EmbeddingLimits) -> None:
    bench = Bench(limits)
    request = bench.add(*(tokens(1 + i % 20, salt=i) for i in range(50)))
    bench.run()
    bench.check(request)
    total = sum(1 + i % 20 for i in range(50))
    assert sum(bench.runtime.batch_sizes) == sum(bench.num_tokens) == total
    assert len(bench.runtime.batch_sizes) < 25  # packed: 4 inputs at most


def test_short_inputs_share_a_batch() -> None:
    bench = Bench(WHOLE)
    bench.add(*(tokens(5, salt=i) for i in range(8)))
    bench.run()
    assert bench.runtime.batch_sizes == [20, 20]


def test_a_long_whole_input_is_alone() -> None:
    bench = Bench(WHOLE)
    request = bench.add(tokens(3), tokens(60), tokens(3))
    bench.run()
    assert bench.runtime.batch_sizes == [3, 60, 3]
    bench.check(request)


def test_a_long_input_in_parts_fills_batches() -> None:
    bench = Bench(PARTS)
    request = bench.add(tokens(3), tokens(50), tokens(11))
    bench.run()
    assert bench.runtime.batch_sizes == [32, 32]
    bench.check(request)


@LIMITS
def test_requests_take_turns(limits: EmbeddingLimits) -> None:
    bench = Bench(limits)
    large = bench.add(*(tokens(10, salt=i) for i in range(100)))
    bench.step()
    small = bench.add(tokens(10, salt=200))
    late = bench.add(tokens(10, salt=201), tokens(10, salt=202))
    for _ in range(4):
        bench.step()
    assert bench.order == [small, late]
    bench.run()
    for request in (large, small, late):
        bench.check(request)


def test_beside_streams_batches_are_small_and_not_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 100.0

    class Slow(FakeRuntime):
        def embed(self, chunks: Sequence[InputChunk]) -> Vectors:
            nonlocal now_s
            now_s += 0.2
            return super().embed(chunks)

    monkeypatch.setattr(embedder_module, "time", SimpleNamespace(monotonic=lambda: now_s))
    limits = EmbeddingLimits(DIM, max_len=256, max_batch=128, max_inputs=4, num_cells=256)
    bench = Bench(limits, Slow(embedding=limits))
    bench.add(tokens(200))
    bench.step(is_busy=True)
    bench.step(is_busy=True)  # it is generation's turn
    assert bench.runtime.batch_sizes == [BUSY_TOKENS]
    now_s += 0.19
    bench.step(is_busy=True)
    assert bench.runtime.batch_sizes == [BUSY_TOKENS]
    now_s += 0.01
    bench.step(is_busy=True)
    assert bench.runtime.batch_sizes == [BUSY_TOKENS] * 2
    bench.step(is_busy=False)  # the streams have ended
    assert bench.runtime.batch_sizes == [BUSY_TOKENS, BUSY_TOKENS, 128]


# -- leaving, and what goes wrong ----------------------------------------------------------------


@LIMITS
def test_a_cancelled_request_leaves_nothing(limits: EmbeddingLimits) -> None:
    bench = Bench(limits)
    first = bench.add(*(tokens(20, salt=i) for i in range(5)))
    second = bench.add(*(tokens(20, salt=i) for i in range(9, 12)))
    bench.step()
    bench.embedder.cancel(first)
    bench.embedder.cancel(99)
    bench.check_books()
    bench.run()
    assert bench.order == [second]
    bench.check(second)


@LIMITS
def test_at_the_end_everybody_is_told(limits: EmbeddingLimits) -> None:
    bench = Bench(limits)
    requests = [bench.add(tokens(20), tokens(21)) for _ in range(3)]
    bench.step()
    bench.embedder.cancel_all()
    assert not bench.embedder.has_work
    assert bench.answers == dict.fromkeys(requests, Embedded(None))


class Faulty(FakeRuntime):
    """Fails every batch with token 249 in it; aborts those whose number is in `aborts`."""

    def __init__(self, limits: EmbeddingLimits, aborts: Sequence[int] = ()) -> None:
        super().__init__(embedding=limits)
        self.aborts = aborts
        self.num_calls = 0

    def embed(self, chunks: Sequence[InputChunk]) -> Vectors:
        self.num_calls += 1
        if self.num_calls - 1 in self.aborts:
            self.inputs.clear()
            raise AbortedError
        if any(249 in chunk.tokens for chunk in chunks):
            self.inputs.clear()
            raise EngineError("llama_decode failed with code -3")
        return super().embed(chunks)


@LIMITS
def test_only_the_culprit_fails(limits: EmbeddingLimits) -> None:
    bench = Bench(limits, Faulty(limits))
    before = bench.add(tokens(6, salt=1), tokens(30, salt=2))
    culprit = bench.add(tokens(4), [1, 2, 249, 3], tokens(4))
    after = bench.add(*(tokens(6, salt=i) for i in range(3, 7)))
    bench.run()
    assert bench.answers[culprit] == Failed("llama_decode failed with code -3")
    bench.check(before)
    bench.check(after)


@LIMITS
def test_an_aborted_batch_is_computed_again(limits: EmbeddingLimits) -> None:
    bench = Bench(limits, Faulty(limits, aborts=(0, 2, 3)))
    requests = [bench.add(*(tokens(15, salt=i) for i in range(n))) for n in (1, 4)]
    bench.run()
    for request in requests:
        bench.check(request)


def test_no_number_is_no_answer() -> None:
    class Broken(FakeRuntime):
        def embed(self, chunks: Sequence[InputChunk]) -> Vectors:
            vectors = super().embed(chunks)
            vectors[[7 in chunk.tokens for chunk in chunks]] = np.nan
            return vectors

    bench = Bench(WHOLE, Broken(embedding=WHOLE))
    good = bench.add([1, 2])
    bad = bench.add([7])
    bench.run()
    bench.check(good)
    assert isinstance(bench.answers[bad], Failed)


def test_a_command_goes_before_a_batch_for_one_request() -> None:
    """It might be its cancellation."""
    bench = Bench(WHOLE)
    request = bench.add(tokens(40))
    bench.inbox.put(Cancel(request + 1))
    bench.step()
    assert bench.runtime.batch_sizes == []
    bench.inbox.get()
    bench.run()
    bench.check(request)


def test_the_one_whose_batch_runs_is_known() -> None:
    seen: list[int | None] = []

    class Watched(FakeRuntime):
        def embed(self, chunks: Sequence[InputChunk]) -> Vectors:
            seen.append(bench.inbox.computing)
            return super().embed(chunks)

    bench = Bench(WHOLE, Watched(embedding=WHOLE))
    first = bench.add(tokens(40), tokens(5))
    bench.step()
    bench.add(tokens(40))
    bench.run()
    assert seen == [first, None, 1]  # the second batch is short


class Machine(RuleBasedStateMachine):
    """Any order of requests, steps, cancellations, aborts and failures: the books stay right."""

    def __init__(self) -> None:
        super().__init__()
        self.runtime = Faulty(PARTS)
        self.bench = Bench(PARTS, self.runtime)
        self.cancelled: set[int] = set()
        self.random = random.Random(0)

    @rule(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=6), is_bad=st.booleans())
    def add(self, lengths: list[int], is_bad: bool) -> None:
        inputs = [tokens(n, salt=self.random.randrange(99)) for n in lengths]
        inputs = [[token % 240 for token in each] for each in inputs]
        if is_bad:
            inputs[-1][-1] = 249
        self.bench.add(*inputs)

    @precondition(lambda self: self.bench.embedder.has_work)
    @rule(is_busy=st.booleans())
    def step(self, is_busy: bool) -> None:
        self.bench.step(is_busy=is_busy)

    @rule()
    def abort_the_next(self) -> None:
        self.runtime.aborts = (self.runtime.num_calls,)

    @precondition(lambda self: self.bench.inputs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.bench.inputs)))
        self.bench.embedder.cancel(request_id)
        if request_id not in self.bench.answers:
            self.cancelled.add(request_id)

    @invariant()
    def books(self) -> None:
        self.bench.check_books()

    def teardown(self) -> None:
        self.bench.run()
        for request_id, inputs in self.bench.inputs.items():
            if request_id in self.cancelled:
                assert request_id not in self.bench.answers
            elif any(249 in each for each in inputs):
                assert isinstance(self.bench.answers[request_id], Failed)
            else:
                self.bench.check(request_id)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=30)
