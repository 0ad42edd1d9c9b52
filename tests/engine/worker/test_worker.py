"""The worker, stepped by hand on the fake: nothing runs beside the test, every step is checked."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.core import (
    Delta,
    Finished,
    FinishReason,
    PromptLogprobs,
    Request,
    SampledLogprob,
    SamplingParams,
)
from llmserve.engine.messages import (
    Ended,
    Failed,
    Load,
    QueueReport,
    Report,
    StepReport,
    StepStats,
    Stop,
    Submit,
)
from llmserve.engine.runtime import AbortedError, Chunk, Logits, OutOfCellsError
from llmserve.engine.scheduler.scheduler import Entries, Limits, Outlook, plan_entries
from llmserve.engine.scheduler.sequence import Sequence as EngineSequence
from llmserve.engine.worker import planner as planner_module
from llmserve.engine.worker.worker import Worker
from llmserve.errors import EngineError
from tests.engine.solo import GREEDY, Answer, answer_alone
from tests.fakes import FakeRuntime, reference_greedy
from tests.policies import policy

ENDLESS = SamplingParams(temperature=0, ignore_eos=True)


class Bench:
    """A worker whose thread is never started; `step` does one round of its loop."""

    def __init__(
        self,
        runtime: FakeRuntime,
        *,
        prefix_cache_bytes: int = 1 << 20,
        speculation: bool = False,
        **shares: Any,
    ) -> None:
        """Without `speculation` each token is computed once, which can be counted.

        `shares` is the rest of the policy.
        """
        self.runtime = runtime
        self.worker = Worker(
            runtime,
            self._note,
            prefix_cache_bytes=prefix_cache_bytes,
            policy=policy(speculation=speculation, **shares),
        )
        self.texts: dict[int, str] = {}
        self.logprobs: dict[int, list[SampledLogprob]] = {}
        self.prompts: dict[int, PromptLogprobs] = {}
        self.ends: dict[int, Finished | Failed] = {}
        self.stats: list[StepStats] = []
        self.loads: list[Load] = []
        self.queues: list[QueueReport] = []
        self.ended: Ended | None = None
        self._num_submitted = 0

    def _note(self, report: Report) -> None:
        if isinstance(report, Ended):
            assert self.ended is None
            self.ended = report
            return
        for request_id, event in report.replies:
            assert request_id not in self.ends, "nothing may follow the last event"
            if isinstance(event, PromptLogprobs):
                assert request_id not in self.prompts, "the prompt is told once"
                assert not self.texts[request_id], "the prompt is told first"
                self.prompts[request_id] = event
            elif isinstance(event, Delta):
                assert event.text or event.logprobs
                self.texts[request_id] += event.text
                self.logprobs[request_id] += event.logprobs
            else:
                assert isinstance(event, Finished | Failed)
                self.ends[request_id] = event
        if report.stats:
            self.stats.append(report.stats)
        if report.load:
            self.loads.append(report.load)
        if report.queue:
            self.queues.append(report.queue)

    def submit(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        *,
        sampling: SamplingParams = GREEDY,
        stops: tuple[str, ...] = (),
        seed: int = 0,
        num_logprobs: int | None = None,
        namespace: str = "",
        prompt_logprobs: bool = False,
        is_batch: bool = False,
        deterministic: bool = False,
        cache_prompt: bool = True,
        accepted_s: float = 0.0,
    ) -> int:
        request_id = self._num_submitted
        self._num_submitted += 1
        self.texts[request_id] = ""
        self.logprobs[request_id] = []
        self.worker.submit(
            Submit(
                id=request_id,
                request=Request(
                    sampling=sampling,
                    stop=stops,
                    num_logprobs=num_logprobs,
                    prompt_logprobs=prompt_logprobs,
                    cache_namespace=namespace,
                    priority="batch" if is_batch else "interactive",
                    deterministic=deterministic,
                    cache_prompt=cache_prompt,
                ),
                tokens=list(prompt),
                max_len=len(prompt) + max_tokens,
                seed=seed,
                accepted_s=accepted_s,
            )
        )
        return request_id

    def expect_short_answers(self) -> None:
        """As after many of them, so that too many enter and some are preempted."""
        for _ in range(200):
            self.worker._planner.lengths.observe(1)

    @property
    def is_busy(self) -> bool:
        return not (self.worker._is_idle and self.worker._inbox.empty())

    def step(self) -> None:
        worker = self.worker
        while not worker._inbox.empty():
            command = worker._inbox.get()
            assert not isinstance(command, Stop)
            worker._handle(command)
        self.check_books()
        if not worker._is_idle:
            worker._step()
            self.check_books()

    def run(self, max_steps: int = 10_000) -> None:
        for _ in range(max_steps):
            if not self.is_busy:
                return
            self.step()
        raise AssertionError("the worker makes no progress")

    def check_books(self) -> None:
        """The invariants of `sequence.py`, against what the runtime really holds."""
        worker = self.worker
        slots = [s.slot for s in worker._roster.running if s.slot is not None]
        assert sorted([*slots, *worker._roster.free_slots]) == list(range(len(self.runtime.cells)))
        for sequence in worker._roster.running:
            assert sequence.slot is not None
            cells = self.runtime.cells[sequence.slot]
            assert cells == sequence.tokens[: sequence.num_computed]
            assert sequence.num_pending > 0
        assert not any(self.runtime.cells[slot] for slot in worker._roster.free_slots)
        worker._kv.check_integrity()
        for sequence in worker._roster.waiting:
            assert sequence.slot is None
            assert sequence.num_computed == 0
        arrivals = [s.arrival for s in worker._roster.waiting]
        assert arrivals == sorted(arrivals)

    def answer(self, request_id: int) -> Answer:
        end = self.ends[request_id]
        assert isinstance(end, Finished), end
        return Answer(
            self.texts[request_id], end.reason, end.stop_sequence, end.usage.generated_tokens
        )


def end_worker(bench: Bench) -> None:
    """Let it take in its commands as its thread would, to the end."""
    bench.worker._inbox.put(Stop())
    bench.worker._run()


class FaultyRuntime(FakeRuntime):
    """Raises `faults[n]` in the n-th decode, having written the cells first if `writes`."""

    def __init__(
        self,
        faults: dict[int, Exception],
        *,
        writes: bool = False,
        num_cells: int = 256,
        num_slots: int = 4,
        max_batch: int = 32,
    ) -> None:
        super().__init__(num_cells=num_cells, num_slots=num_slots, max_batch=max_batch)
        self.faults = faults
        self.writes = writes
        self.num_decodes = 0

    def decode(self, chunks: Sequence[Chunk]) -> Logits:
        fault = self.faults.get(self.num_decodes)
        self.num_decodes += 1
        if fault is None:
            return super().decode(chunks)
        if self.writes:
            super().decode(chunks)
        raise fault


# -- everybody gets what they would get alone ----------------------------------------------------

prompts = st.lists(st.integers(0, 255), min_size=1, max_size=30)
samplings = st.sampled_from(
    [
        GREEDY,
        SamplingParams(temperature=0, ignore_eos=True, frequency_penalty=1.0),
        SamplingParams(temperature=1.0, top_p=0.9, presence_penalty=0.5),
        SamplingParams(temperature=0.7, logit_bias={256: 6.0}),  # ends soon
    ]
)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            prompts,
            st.integers(1, 20),
            samplings,
            st.lists(st.sampled_from(["a", "\ufffd\ufffd", "\x00"]), max_size=2),
            st.integers(0, 3),  # steps before it arrives
            st.one_of(st.none(), st.integers(0, 30)),  # steps after which it is cancelled
        ),
        max_size=6,
    ),
    st.integers(50, 120),
    st.integers(1, 4),
    st.integers(4, 32),
    st.booleans(),
)
def test_everybody_gets_what_they_would_get_alone(
    requests: list[tuple[list[int], int, SamplingParams, list[str], int, int | None]],
    num_cells: int,
    num_slots: int,
    max_batch: int,
    speculation: bool,
) -> None:
    """Whoever comes and goes, and whatever is preempted; the books balance after every step."""
    runtime = FakeRuntime(
        num_cells=num_cells, num_slots=num_slots, max_batch=max_batch, max_outputs=16
    )
    bench = Bench(runtime, speculation=speculation)
    bench.expect_short_answers()
    expected: dict[int, Answer] = {}
    cancels: dict[int, list[int]] = {}
    step = 0
    for seed, (prompt, max_tokens, sampling, stops, wait, cancel) in enumerate(requests):
        for _ in range(wait):
            _cancel_due(bench, cancels, step)
            bench.step()
            step += 1
        request_id = bench.submit(
            prompt, max_tokens, sampling=sampling, stops=tuple(stops), seed=seed
        )
        expected[request_id] = answer_alone(
            prompt, max_tokens, sampling=sampling, seed=seed, stops=stops
        )
        if cancel is not None:
            cancels.setdefault(step + cancel, []).append(request_id)
    while bench.is_busy:
        assert step < 5000
        _cancel_due(bench, cancels, step)
        bench.step()
        step += 1
    for request_id, answer in expected.items():
        if request_id in bench.ends:
            assert bench.answer(request_id) == answer
        else:
            assert any(request_id in ids for ids in cancels.values())
            assert answer.text.startswith(bench.texts[request_id])
    assert not any(bench.runtime.cells)


def _cancel_due(bench: Bench, cancels: dict[int, list[int]], step: int) -> None:
    for request_id in cancels.get(step, []):
        bench.worker.cancel(request_id)


def test_the_references_agree() -> None:
    for index in range(20):
        prompt = [index, 7, index]
        tokens = reference_greedy(prompt, 30)
        text = bytes(t for t in tokens if t < 256).decode(errors="replace")
        answer = answer_alone(prompt, 30)
        assert (answer.text, answer.num_generated) == (text, len(tokens))


@pytest.mark.parametrize("prefix_cache_bytes", [0, 1 << 20])
def test_preemption_changes_nobodys_answer(prefix_cache_bytes: int) -> None:
    """Nor is anything computed twice where what leaves is parked."""
    rng = random.Random(1)
    runtime = FakeRuntime(num_cells=90, num_slots=4, max_batch=16)
    bench = Bench(runtime, prefix_cache_bytes=prefix_cache_bytes)
    bench.expect_short_answers()
    sampling = SamplingParams(temperature=0.9, ignore_eos=True, presence_penalty=0.3)
    expected = {}
    for seed in range(8):
        prompt = rng.choices(range(256), k=rng.randint(1, 10))
        request_id = bench.submit(prompt, 70, sampling=sampling, seed=seed)
        expected[request_id] = answer_alone(prompt, 70, sampling=sampling, seed=seed)
    bench.run()
    assert {i: bench.answer(i) for i in expected} == expected
    num_needed = sum(
        end.usage.prompt_tokens + end.usage.generated_tokens - 1
        for end in bench.ends.values()
        if isinstance(end, Finished)
    )
    num_again = sum(bench.runtime.batch_sizes) - num_needed
    assert (num_again > 0) == (prefix_cache_bytes == 0)


# -- leaving -------------------------------------------------------------------------------------


def test_cancel_while_waiting_running_and_mid_prefill() -> None:
    bench = Bench(FakeRuntime(num_cells=500, num_slots=2, max_batch=32))
    stream = bench.submit([1, 2, 3], 100)
    bench.step()
    prefill = bench.submit([5] * 300, 10)
    bench.step()
    waiting = bench.submit([6], 10)
    bench.step()
    worker = bench.worker
    assert [s.id for s in worker._roster.running] == [stream, prefill]
    assert [s.id for s in worker._roster.waiting] == [waiting]
    worker.cancel(waiting)
    bench.step()
    assert not worker._roster.waiting
    worker.cancel(prefill)
    bench.step()
    assert [s.id for s in worker._roster.running] == [stream]
    assert sum(map(len, bench.runtime.cells)) == worker._roster.running[0].num_computed
    worker.cancel(stream)
    bench.step()
    assert not bench.is_busy
    assert not any(bench.runtime.cells)
    assert not bench.ends, "whoever cancels wants to hear no more"


def test_cancelling_twice_or_after_the_end_is_fine() -> None:
    bench = Bench(FakeRuntime())
    first = bench.submit([1], 3, sampling=SamplingParams(temperature=0, ignore_eos=True))
    bench.worker.cancel(12345)
    bench.run()
    bench.worker.cancel(first)
    bench.worker.cancel(first)
    second = bench.submit([1], 3)
    bench.run()
    assert bench.answer(second) == answer_alone([1], 3)


def test_a_cancel_that_comes_while_the_step_is_planned_still_interrupts_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After the inbox was read, before the worker says whom it prefills: `abort` is not called."""
    bench = Bench(FakeRuntime(num_cells=2000, max_batch=512))
    request_id = bench.submit([1] * 1000, 10)

    def plan_and_cancel(
        running: Sequence[EngineSequence],
        waiting: Sequence[EngineSequence],
        limits: Limits,
        outlook: Outlook,
    ) -> Entries:
        bench.worker.cancel(request_id)
        return plan_entries(running, waiting, limits, outlook)

    monkeypatch.setattr(planner_module, "plan_entries", plan_and_cancel)
    bench.step()
    assert bench.runtime.batch_sizes == []
    bench.step()
    assert not bench.is_busy
    assert not any(bench.runtime.cells)


def test_a_cancel_aborts_only_the_step_that_prefills_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(FakeRuntime(num_cells=2000, max_batch=512))
    aborts: list[int] = []
    monkeypatch.setattr(bench.runtime, "abort", lambda: aborts.append(1))
    small, large = bench.submit([1], 10), bench.submit([2] * 500, 10)
    decode = bench.runtime.decode

    def cancel_within(chunks: Sequence[Chunk]) -> Logits:
        bench.worker.cancel(small)
        assert not aborts
        bench.worker.cancel(large)
        assert aborts
        return decode(chunks)

    monkeypatch.setattr(bench.runtime, "decode", cancel_within)
    bench.step()
    assert len(bench.runtime.batch_sizes) == 1


# -- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize("writes", [False, True])
def test_an_aborted_step_is_done_again(writes: bool) -> None:
    faults: dict[int, Exception] = {n: AbortedError() for n in (0, 1, 3, 7)}
    bench = Bench(FaultyRuntime(faults, writes=writes))
    ids = [bench.submit([n] * 20, 10) for n in range(3)]
    bench.run()
    assert [bench.answer(i) for i in ids] == [answer_alone([n] * 20, 10) for n in range(3)]


@pytest.mark.parametrize("writes", [False, True])
def test_a_runtime_that_cannot_cut_a_sequence_computes_it_again(
    writes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As recurrent models: after an abort, a sequence that cannot be trimmed starts again."""
    bench = Bench(FaultyRuntime({2: AbortedError(), 5: AbortedError()}, writes=writes))
    trim = bench.runtime.trim

    def trim_all_or_nothing(slot: int, num_tokens: int) -> None:
        if num_tokens:
            raise EngineError("cannot cut")
        trim(slot, num_tokens)

    monkeypatch.setattr(bench.runtime, "trim", trim_all_or_nothing)
    ids = [bench.submit([n] * 20, 10) for n in range(3)]
    bench.run()
    assert [bench.answer(i) for i in ids] == [answer_alone([n] * 20, 10) for n in range(3)]


def test_out_of_cells_preempts_and_fails_nobody() -> None:
    bench = Bench(FaultyRuntime({4: OutOfCellsError()}))
    ids = [bench.submit([n] * 5, 20) for n in range(4)]
    bench.run()
    assert [bench.answer(i) for i in ids] == [answer_alone([n] * 5, 20) for n in range(4)]


class CrampedRuntime(FakeRuntime):
    """Promises more cells than it has."""

    num_real_cells = 60
    computed = 0

    def decode(self, chunks: Sequence[Chunk]) -> Logits:
        size = sum(len(chunk.tokens) for chunk in chunks)
        if sum(map(len, self.cells)) + size > self.num_real_cells:
            raise OutOfCellsError
        self.computed += size
        return super().decode(chunks)


def test_without_cells_the_batch_shrinks_before_anybody_leaves() -> None:
    """Sixty cells: the prompt's last tokens fit only in small parts, but they do."""
    bench = Bench(runtime := CrampedRuntime(num_cells=400))
    stream = bench.submit([1] * 10, 6, sampling=ENDLESS)
    bench.step()
    prompt = bench.submit([2] * 42, 2, sampling=ENDLESS)
    bench.run()
    assert bench.answer(stream) == answer_alone([1] * 10, 6, sampling=ENDLESS)
    assert bench.answer(prompt) == answer_alone([2] * 42, 2, sampling=ENDLESS)
    needed = 10 + 5 + 42 + 1
    assert runtime.computed == needed, "somebody was computed again"


def test_a_runtime_with_fewer_cells_than_it_says_serves_one_after_the_other() -> None:
    bench = Bench(CrampedRuntime(num_cells=400))
    ids = [bench.submit([n] * 30, 20) for n in range(4)]
    too_large = bench.submit([9] * 100, 20)
    last = bench.submit([10] * 30, 20)
    bench.run()
    assert [bench.answer(i) for i in ids] == [answer_alone([n] * 30, 20) for n in range(4)]
    assert bench.ends[too_large] == Failed(
        "the KV cache cannot hold this request: llama.cpp found no cell for its token 61"
    )
    assert bench.answer(last) == answer_alone([10] * 30, 20)


class PoisonRuntime(FakeRuntime):
    """Every step with a sequence that begins with 13 fails, having written its cells."""

    def decode(self, chunks: Sequence[Chunk]) -> Logits:
        logits = super().decode(chunks)
        if any(self.cells[chunk.slot][0] == 13 for chunk in chunks):
            raise EngineError("code -3")
        return logits


def test_a_step_that_fails_fails_only_who_makes_it_fail() -> None:
    bench = Bench(PoisonRuntime())
    ids = [bench.submit([n] * 3, 10) for n in (11, 12)]
    bench.step()
    poison = bench.submit([13] * 3, 10)
    ids.append(bench.submit([14], 10))
    bench.run()
    assert bench.ends[poison] == Failed("code -3")
    prompts = ([11] * 3, [12] * 3, [14])
    assert [bench.answer(i) for i in ids] == [answer_alone(p, 10) for p in prompts]


def test_a_step_that_fails_once_fails_nobody() -> None:
    bench = Bench(FaultyRuntime({2: EngineError("code -3"), 3: AbortedError()}, writes=True))
    ids = [bench.submit([n], 10) for n in range(3)]
    bench.run()
    assert [bench.answer(i) for i in ids] == [answer_alone([n], 10) for n in range(3)]


def test_if_the_machine_is_broken_everybody_fails() -> None:
    bench = Bench(FaultyRuntime({n: EngineError("code -3") for n in range(2, 1000)}, num_slots=2))
    ids = [bench.submit([n], 10) for n in range(3)]
    bench.run()
    assert [bench.ends[i] for i in ids] == [Failed("code -3")] * 3


def test_a_suspect_that_leaves_holds_up_nobody() -> None:
    bench = Bench(FaultyRuntime({1: EngineError("code -3")}))
    ids = [bench.submit([n], 10, sampling=ENDLESS) for n in range(3)]
    bench.step()
    bench.step()
    assert len(bench.worker._setbacks.suspects) == 3
    bench.worker.cancel(ids[0])
    bench.run()
    for n in (1, 2):
        assert bench.answer(ids[n]) == answer_alone([n], 10, sampling=ENDLESS)


class NanRuntime(FakeRuntime):
    """No finite logits for a sequence that begins with 13."""

    def decode(self, chunks: Sequence[Chunk]) -> Logits:
        logits = super().decode(chunks)
        rows = [c.slot for c in chunks if c.wants_logits]
        for row, slot in zip(logits, rows, strict=True):
            if self.cells[slot][0] == 13:
                row[:] = np.nan
        return logits


def test_nan_logits_fail_their_own_request_only() -> None:
    bench = Bench(NanRuntime())
    ids = [bench.submit([n], 10) for n in (12, 13, 14)]
    bench.run()
    assert bench.ends[ids[1]] == Failed("the model computed no finite logits for this request")
    assert bench.answer(ids[0]) == answer_alone([12], 10)
    assert bench.answer(ids[2]) == answer_alone([14], 10)
    assert not any(bench.runtime.cells)


def test_a_request_that_cannot_even_start_fails_alone() -> None:
    """Whatever a caller let through: parameters that no sampler can be made of."""
    bench = Bench(FakeRuntime())
    good = bench.submit([1], 10)
    bad = bench.submit([2], 10, seed=-1)
    bench.run()
    assert isinstance(bench.ends[bad], Failed)
    assert bench.answer(good) == answer_alone([1], 10)


# -- the end of the thread -----------------------------------------------------------------------


def test_stop_finishes_everything_submitted_before_as_cancelled() -> None:
    bench = Bench(FakeRuntime(num_slots=1))
    running = bench.submit([1, 2], 50, stops=("\x00" * 20,))
    bench.step()
    waiting = bench.submit([3], 50)
    bench.worker._inbox.put(Stop())
    bench.worker._run()
    for request_id in (running, waiting):
        end = bench.ends[request_id]
        assert isinstance(end, Finished)
        assert end.reason is FinishReason.CANCELLED
    assert bench.ended == Ended(None)
    assert not bench.runtime.closed, "the runtime belongs to whoever made it"


def test_what_was_held_back_is_said_before_the_end() -> None:
    alone = answer_alone([1, 2], 4, sampling=SamplingParams(temperature=0, ignore_eos=True))
    bench = Bench(FakeRuntime())
    request_id = bench.submit([1, 2], 50, stops=(alone.text + "?",))
    for _ in range(4):
        bench.step()
    held = bench.texts[request_id]
    bench.worker._inbox.put(Stop())
    bench.worker._run()
    assert held == ""
    assert bench.texts[request_id] == alone.text


def test_an_unexpected_exception_ends_the_worker_with_its_fault() -> None:
    bench = Bench(FaultyRuntime({0: ZeroDivisionError()}))
    bench.submit([1], 10)
    bench.worker._run()
    assert bench.ended is not None
    assert bench.ended.fault == "the engine failed; see the server's log"


# -- log probabilities ---------------------------------------------------------------------------


def expected_logprobs(prompt: list[int], tokens: list[int]) -> list[float]:
    """Of `tokens` after `prompt`, from the fake's own logits."""
    runtime = FakeRuntime()
    logprobs = []
    for index, token in enumerate(tokens):
        row = runtime._logits([*prompt, *tokens[:index]]).astype(np.float64)
        logprobs.append(float(row[token] - np.log(np.exp(row).sum())))
    return logprobs


HOT = SamplingParams(temperature=1.5, ignore_eos=True, logit_bias={65: 3.0}, presence_penalty=1.0)


def test_log_probabilities_come_from_the_raw_logits_of_the_own_row() -> None:
    """In a batch with others, through preemption, and whatever the sampling parameters add."""
    bench = Bench(FakeRuntime(num_cells=90, num_slots=4, max_batch=16))
    prompts = [[n, 2 * n, 7] for n in range(1, 7)]
    numbers = [None, 0, 5, 20, None, 3]
    ids = [
        bench.submit(p, 40, sampling=HOT, seed=p[0], num_logprobs=n)
        for p, n in zip(prompts, numbers, strict=True)
    ]
    bench.run()
    for request_id, prompt, number in zip(ids, prompts, numbers, strict=True):
        assert bench.answer(request_id) == answer_alone(prompt, 40, sampling=HOT, seed=prompt[0])
        entries = bench.logprobs[request_id]
        if number is None:
            assert entries == []
            continue
        tokens = [entry.chosen.token for entry in entries]
        assert (
            b"".join(e.chosen.data for e in entries).decode(errors="replace")
            == (bench.texts[request_id])
        )
        assert [e.chosen.logprob for e in entries] == pytest.approx(
            expected_logprobs(prompt, tokens), abs=1e-5
        )
        for index, entry in enumerate(entries):
            assert len(entry.top) == number
            row = bench.runtime._logits([*prompt, *tokens[:index]])
            assert [t.token for t in entry.top] == np.argsort(-row, kind="stable")[:number].tolist()


def test_the_end_of_generation_is_not_listed() -> None:
    bench = Bench(FakeRuntime())
    ends_soon = SamplingParams(temperature=0, logit_bias={256: 6.0})
    prompt = next([n] for n in range(256) if answer_alone([n], 9, sampling=ends_soon).text)
    request_id = bench.submit(prompt, 50, sampling=ends_soon, num_logprobs=1)
    bench.run()
    answer = bench.answer(request_id)
    assert answer.reason is FinishReason.STOP
    assert 1 < answer.num_generated < 50
    assert len(bench.logprobs[request_id]) == answer.num_generated - 1


def test_tokens_that_a_stop_string_cut_are_not_listed() -> None:
    ascii_only = SamplingParams(temperature=0, logit_bias=dict.fromkeys(range(128, 257), -100.0))
    alone = answer_alone([5], 20, sampling=ascii_only)
    bench = Bench(FakeRuntime())
    stop = alone.text[8:12]
    request_id = bench.submit([5], 20, sampling=ascii_only, stops=(stop,), num_logprobs=0)
    bench.run()
    text = bench.texts[request_id]
    assert bench.answer(request_id).stop == stop
    assert [chr(e.chosen.token) for e in bench.logprobs[request_id]] == list(text)


def test_what_was_held_back_is_listed_at_the_end() -> None:
    sampling = SamplingParams(temperature=0, ignore_eos=True)
    alone = answer_alone([1, 2], 4, sampling=sampling)
    bench = Bench(FakeRuntime())
    ids = [
        bench.submit([1, 2], n, sampling=sampling, stops=(alone.text + "?",), num_logprobs=0)
        for n in (4, 50)
    ]
    for _ in range(4):
        assert bench.logprobs[ids[0]] == bench.logprobs[ids[1]] == []
        bench.step()
    end_worker(bench)
    assert [len(bench.logprobs[i]) for i in ids] == [4, 4]


class MuteRuntime(FakeRuntime):
    """No token has any text, as control tokens."""

    def token_bytes(self, token: int) -> bytes:
        return b""


def test_only_who_asked_gets_deltas_without_text() -> None:
    bench = Bench(MuteRuntime())
    ids = [
        bench.submit(
            [1], 5, sampling=SamplingParams(temperature=0, ignore_eos=True), num_logprobs=n
        )
        for n in (None, 0)
    ]
    bench.run()
    assert [len(bench.logprobs[i]) for i in ids] == [0, 5]
    assert [bench.texts[i] for i in ids] == ["", ""]


# -- what a step says ----------------------------------------------------------------------------


def test_stats_count_tokens_by_kind() -> None:
    bench = Bench(FakeRuntime(num_cells=200, num_slots=2))
    sampling = SamplingParams(temperature=0, ignore_eos=True)
    bench.submit([1, 2, 3], 10, sampling=sampling)
    bench.submit([4] * 40, 10, sampling=sampling)
    bench.submit([5] * 50, 10, sampling=sampling)
    bench.step()
    bench.step()
    first, second = bench.stats
    assert (first.num_decoded, first.num_prefilled) == (0, 32)
    assert bench.loads == [Load(2, 1)], "told when it changes only"
    assert (second.num_decoded, second.num_prefilled) == (1, 11)


def test_a_cancel_that_leaves_the_worker_idle_is_told() -> None:
    bench = Bench(FakeRuntime(num_slots=1))
    running, waiting = bench.submit([1, 2], 50), bench.submit([3], 50)
    bench.step()
    assert bench.loads == [Load(1, 1)]
    bench.worker.cancel(waiting)
    bench.worker.cancel(running)
    end_worker(bench)
    assert bench.loads == [Load(1, 1), Load(0, 0)]


def test_a_failure_that_leaves_the_worker_idle_is_told() -> None:
    bench = Bench(FaultyRuntime({1: EngineError("code -3")}))
    bench.submit([1], 10, sampling=SamplingParams(temperature=0, ignore_eos=True))
    bench.step()
    bench.step()
    assert bench.loads == [Load(1, 0), Load(0, 0)]


def test_a_stop_is_told() -> None:
    bench = Bench(FakeRuntime(num_slots=1))
    bench.submit([1, 2], 50)
    bench.submit([3], 50)
    bench.step()
    end_worker(bench)
    assert bench.loads == [Load(1, 1), Load(0, 0)]


def test_who_enters_is_told_before_the_step_is_computed() -> None:
    """Which can take seconds, and can come to nothing."""
    bench = Bench(FaultyRuntime({0: AbortedError()}, num_slots=1))
    bench.submit([1], 10)
    bench.submit([2], 10)
    bench.step()
    assert (bench.stats, bench.loads) == ([], [Load(1, 1)])


def test_a_step_is_one_report() -> None:
    reports: list[Report] = []
    worker = Worker(FakeRuntime(), reports.append, policy=policy())
    for n in range(3):
        worker.submit(Submit(n, Request(sampling=GREEDY), [n], 10, 0, 0.0))
    assert worker._drain()
    worker._step()
    load, step = reports
    assert load == StepReport([], None, Load(3, 0), entered=(0, 1, 2))
    assert isinstance(step, StepReport)
    assert step.stats
    assert {request_id for request_id, _ in step.replies} == {0, 1, 2}
    assert worker._drain()
    worker._step()
    assert len(reports) == 3
