"""The engine with its real worker thread, on the fake. No sleeps: steps are driven by a gate."""

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.core import (
    Delta,
    Event,
    EventStream,
    Finished,
    FinishReason,
    Message,
    Mode,
    Queued,
    Request,
    SamplingParams,
    Started,
)
from llmserve.engine.engine import LocalEngine
from llmserve.engine.load_spec import Policy
from llmserve.engine.messages import Load, StepStats
from llmserve.engine.runtime import Chunk, Logits, OutOfCellsError
from llmserve.engine.worker.worker import Worker
from llmserve.errors import (
    EngineError,
    InvalidRequestError,
    LlmserveError,
    QueueFullError,
    QueueTimeoutError,
    ShuttingDownError,
    TooLargeError,
)
from tests.engine.solo import GREEDY, Answer, answer_alone
from tests.fakes import EOS, FakeRuntime, reference_greedy
from tests.policies import policy

ENDLESS = SamplingParams(temperature=0, ignore_eos=True)
DEFAULT = policy()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine; what hangs fails."""
    asyncio.run(asyncio.wait_for(test(), timeout=60))


@contextlib.asynccontextmanager
async def engine_on(runtime: FakeRuntime, policy: Policy = DEFAULT) -> AsyncIterator[LocalEngine]:
    """An engine that must be left without a trace of any request."""
    engine = LocalEngine("fake", runtime, policy=policy)
    try:
        yield engine
        assert_nothing_leaked(engine)
    finally:
        await engine.close()
    assert runtime.closed
    assert not engine.is_alive


def assert_nothing_leaked(engine: LocalEngine) -> None:
    assert engine._requests == {}
    assert engine._num_active == 0
    assert engine._news._told == set()
    assert engine._admission._queued == {}
    assert engine._admission._num_tokens == 0


def completion(
    prompt: str, max_tokens: int | None = None, *, sampling: SamplingParams = GREEDY, **rest: Any
) -> Request:
    return Request(
        prompt=prompt, mode=Mode.COMPLETION, max_tokens=max_tokens, sampling=sampling, **rest
    )


async def collect(events: EventStream) -> tuple[Started, str, Finished]:
    """The folded events, having checked their grammar."""
    collected: list[Event] = [event async for event in events if not isinstance(event, Queued)]
    started, *deltas, finished = collected
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    text = ""
    for delta in deltas:
        assert isinstance(delta, Delta)
        assert delta.text
        text += delta.text
    return started, text, finished


async def answer(engine: LocalEngine, request: Request) -> Answer:
    _, text, end = await collect(engine.generate(request))
    return Answer(text, end.reason, end.stop_sequence, end.usage.generated_tokens)


async def settle(condition: Callable[[], bool]) -> None:
    """Give the loop and the worker turns until `condition` holds; `run` limits the wait."""
    while not condition():  # noqa: ASYNC110 - turns, not time; the worker's state has no event
        await asyncio.sleep(0)


class Gate:
    """Lets a `FakeRuntime` compute one step at a time."""

    def __init__(self) -> None:
        self.semaphore = threading.Semaphore(0)

    def open(self, num_steps: int = 1) -> None:
        self.semaphore.release(num_steps)


async def until_decoding(runtime: FakeRuntime) -> None:
    await asyncio.to_thread(runtime.decoding.wait)


# -- everybody gets what they would get alone ----------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.text(min_size=1, max_size=12),
            st.integers(1, 25),
            st.integers(0, 20),  # turns of the loop before it arrives
            st.one_of(st.none(), st.integers(0, 12)),  # events after which it leaves
        ),
        min_size=1,
        max_size=12,
    ),
    st.integers(75, 150),
    st.integers(1, 5),
)
def test_many_at_once_each_get_exactly_the_reference(
    requests: list[tuple[str, int, int, int | None]], num_cells: int, num_slots: int
) -> None:
    """With random arrivals and leavings, and so few cells that some are preempted."""
    runtime = FakeRuntime(num_cells=num_cells, num_slots=num_slots, max_batch=16)

    async def use(
        engine: LocalEngine, prompt: str, max_tokens: int, wait: int, leave: int | None
    ) -> None:
        for _ in range(wait):
            await asyncio.sleep(0)
        tokens = reference_greedy(list(prompt.encode()), max_tokens)
        text = bytes(t for t in tokens if t != EOS).decode(errors="replace")
        request = completion(prompt, max_tokens)
        if leave is None:
            got = await answer(engine, request)
            reason = FinishReason.STOP if tokens[-1] == EOS else FinishReason.LENGTH
            assert got == Answer(text, reason, None, len(tokens))
            return
        seen = ""
        async with contextlib.aclosing(engine.generate(request)) as events:
            for _ in range(leave):
                event = await anext(events, None)
                seen += event.text if isinstance(event, Delta) else ""
        assert text.startswith(seen)

    async def main() -> None:
        async with engine_on(runtime) as engine:
            await asyncio.gather(*(use(engine, *request) for request in requests))
            await cells_are_free(engine, runtime)

    run(main)


async def cells_are_free(engine: LocalEngine, runtime: FakeRuntime) -> None:
    """Once a last request has been through, the worker has also seen every cancel before it."""
    await answer(engine, completion("last", 1))
    assert not any(runtime.cells)
    assert not engine._worker._roster.running
    assert not engine._worker._roster.waiting
    assert sorted(engine._worker._roster.free_slots) == list(range(runtime.limits.num_slots))


def test_preempted_requests_get_the_reference_too() -> None:
    rng = random.Random(3)
    runtime = FakeRuntime(num_cells=80, num_slots=4, max_batch=16)

    async def main() -> None:
        async with engine_on(runtime) as engine:
            for _ in range(200):
                engine._worker._planner.lengths.observe(1)  # so that too many enter
            prompts = ["".join(rng.choices("abcdef", k=rng.randint(1, 9))) for _ in range(12)]
            answers = await asyncio.gather(
                *(answer(engine, completion(p, 65, sampling=ENDLESS)) for p in prompts)
            )
            for prompt, got in zip(prompts, answers, strict=True):
                assert got == answer_alone(prompt.encode(), 65, sampling=ENDLESS)
            num_needed = sum(len(p) + 65 - 1 for p in prompts)
            assert sum(runtime.batch_sizes) > num_needed, "nothing was preempted: a useless test"

    run(main)


def test_requests_share_steps() -> None:
    runtime = FakeRuntime(num_cells=1000, num_slots=4, gate=(gate := Gate()).semaphore)

    async def main() -> None:
        async with engine_on(runtime) as engine:
            tasks = [
                asyncio.create_task(answer(engine, completion(p, 9, sampling=ENDLESS)))
                for p in "abcd"
            ]
            await settle(lambda: len(engine._requests) == 4)
            gate.open(1000)
            await asyncio.gather(*tasks)
            assert max(runtime.batch_sizes) == 4
            assert len(runtime.batch_sizes) <= 9 + 1  # the first may have started before the rest

    run(main)


# -- the last token ------------------------------------------------------------------------------


def find_prompt(num_tokens: int) -> tuple[str, str]:
    """A prompt whose `num_tokens`-th generated character is ASCII and new, and that character."""
    for index in range(100_000):
        prompt = str(index)
        tokens = reference_greedy(list(prompt.encode()), num_tokens)
        last = tokens[-1]
        if len(tokens) == num_tokens and 32 <= last < 127 and last not in tokens[:-1]:
            text = bytes(tokens[:-1]).decode(errors="replace")
            if bytes(tokens).decode(errors="replace") == text + chr(last):
                return prompt, chr(last)
    raise AssertionError("no such prompt")


def test_a_stop_at_the_very_last_token() -> None:
    prompt, last = find_prompt(10)

    async def main() -> None:
        async with engine_on(FakeRuntime()) as engine:
            full = answer_alone(prompt.encode(), 10)
            assert full.reason is FinishReason.LENGTH
            got = await answer(engine, completion(prompt, 10, stop=(last,)))
            assert got == Answer(full.text[:-1], FinishReason.STOP, last, 10)
            # Held back as the begin of a stop that never comes: shown at the end.
            got = await answer(engine, completion(prompt, 10, stop=(last + "never",)))
            assert got == full

    run(main)


def test_max_tokens_one_and_the_context_as_the_limit() -> None:
    async def main() -> None:
        runtime = FakeRuntime(num_cells=64, context_length=40)
        async with engine_on(runtime) as engine:
            got = await answer(engine, completion("abc", 1, sampling=ENDLESS))
            assert got == answer_alone(b"abc", 1, sampling=ENDLESS)
            for max_tokens in (None, 37, 38, 10_000):
                got = await answer(engine, completion("abc", max_tokens, sampling=ENDLESS))
                assert got == answer_alone(b"abc", 37, sampling=ENDLESS)
                assert got.reason is FinishReason.LENGTH
            got = await answer(engine, completion("x" * 39, sampling=ENDLESS))
            assert (got.num_generated, got.reason) == (1, FinishReason.LENGTH)
            with pytest.raises(TooLargeError, match=r"40 tokens; the context .* holds 40"):
                await answer(engine, completion("x" * 40))

    run(main)


def test_end_of_generation_and_ignoring_it() -> None:
    ends_at_once = SamplingParams(temperature=0, logit_bias={EOS: 100.0})

    async def main() -> None:
        async with engine_on(FakeRuntime()) as engine:
            got = await answer(engine, completion("abc", 9, sampling=ends_at_once))
            assert got == Answer("", FinishReason.STOP, None, 1)
            ignoring = SamplingParams(temperature=0, logit_bias={EOS: 100.0}, ignore_eos=True)
            got = await answer(engine, completion("abc", 9, sampling=ignoring))
            assert got == answer_alone(b"abc", 9, sampling=ENDLESS)

    run(main)


def test_a_model_with_a_broken_template_still_completes() -> None:
    async def main() -> None:
        async with engine_on(FakeRuntime(chat_template="{% if %}")) as engine:
            assert await answer(engine, completion("abc", 5)) == answer_alone(b"abc", 5)
            with pytest.raises(InvalidRequestError, match="use mode completion"):
                await answer(engine, Request(prompt="abc"))

    run(main)


# -- usage, timings, seeds -----------------------------------------------------------------------


def test_log_probabilities_and_a_prompt_of_tokens() -> None:
    async def main() -> None:
        async with engine_on(FakeRuntime()) as engine:
            request = Request(
                prompt_tokens=(97, 98), max_tokens=8, sampling=ENDLESS, num_logprobs=20
            )
            events = [event async for event in engine.generate(request)]
            deltas = [event for event in events if isinstance(event, Delta)]
            entries = [entry for delta in deltas for entry in delta.logprobs]
            assert isinstance(events[0], Started)
            assert events[0].prompt_tokens == 2
            assert "".join(d.text for d in deltas) == answer_alone(b"ab", 8, sampling=ENDLESS).text
            assert [len(entry.top) for entry in entries] == [20] * 8

    run(main)


def test_usage_and_timings() -> None:
    async def main() -> None:
        async with engine_on(FakeRuntime(num_slots=1)) as engine:
            results = await asyncio.gather(
                *(collect(engine.generate(completion(p, 9, sampling=ENDLESS))) for p in ("ab", "c"))
            )
            for (started, _, end), prompt_len in zip(results, (2, 1), strict=True):
                assert started.model == "fake"
                assert started.prompt_tokens == end.usage.prompt_tokens == prompt_len
                assert (end.usage.generated_tokens, end.usage.cached_tokens) == (9, 0)
                times = end.timings
                assert min(times.queue_s, times.prefill_s, times.ttft_s, times.decode_s) >= 0
                assert times.ttft_s == pytest.approx(times.queue_s + times.prefill_s)
                assert times.tokens_per_s == pytest.approx(8 / times.decode_s)
            first, second = sorted((e for _, _, e in results), key=lambda e: e.timings.queue_s)
            # One slot: the second waited while the first computed.
            assert second.timings.queue_s >= first.timings.decode_s

    run(main)


def test_the_wait_for_a_running_step_counts_as_queueing() -> None:
    """`accepted` is when the engine was asked, not when the worker came to look."""
    runtime = FakeRuntime(num_cells=500, gate=(gate := Gate()).semaphore)

    async def main() -> None:
        async with engine_on(runtime) as engine:
            first = asyncio.create_task(answer(engine, completion("a", 5, sampling=ENDLESS)))
            await until_decoding(runtime)
            second = engine.generate(completion("b", 1))
            assert isinstance(await anext(second), Started)
            submitted_s = engine._loop.time()  # asyncio's clock is the monotonic one
            end_of_second = asyncio.create_task(collect_rest(second))
            await settle(lambda: engine._loop.time() > submitted_s)
            step_ended_s = engine._loop.time()
            gate.open(100)
            end = await end_of_second
            assert end.timings.queue_s > step_ended_s - submitted_s
            await first

    run(main)


async def collect_rest(events: EventStream) -> Finished:
    last = [event async for event in events][-1]
    assert isinstance(last, Finished)
    return last


def test_a_seed_repeats_and_a_drawn_one_is_reported() -> None:
    sampling = SamplingParams(temperature=1.5)

    async def main() -> None:
        async with engine_on(FakeRuntime()) as engine:
            request = completion("abc", 20, sampling=sampling)
            started, text, _ = await collect(engine.generate(request))
            other, other_text, _ = await collect(engine.generate(request))
            assert started.seed != other.seed
            assert text != other_text
            again = completion("abc", 20, sampling=sampling, seed=started.seed)
            crowd = [completion(p, 20, sampling=sampling) for p in "xyz"]
            (repeated, repeated_text, _), *_ = await asyncio.gather(
                *(collect(engine.generate(r)) for r in (again, *crowd))
            )
            assert (repeated.seed, repeated_text) == (started.seed, text)
            zero, _, _ = await collect(engine.generate(completion("abc", 2, seed=0)))
            assert zero.seed == 0

    run(main)


def test_steps_are_told() -> None:
    stats: list[StepStats] = []

    async def main() -> None:
        runtime = FakeRuntime()
        engine = LocalEngine("fake", runtime, policy=policy(max_queue=1), on_step=stats.append)
        await answer(engine, completion("abc", 5, sampling=ENDLESS))
        assert [(s.num_prefilled, s.num_decoded) for s in stats] == [(3, 0)] + [(0, 1)] * 4
        await engine.close()

    run(main)


@pytest.mark.parametrize("fault", [None, ZeroDivisionError()])
def test_the_end_of_the_worker_leaves_no_load(fault: BaseException | None) -> None:
    """Whether it was stopped or died with a request that it had counted."""
    loads: list[Load] = []

    class Dying(FakeRuntime):
        def decode(self, chunks: Sequence[Chunk]) -> Logits:
            logits = super().decode(chunks)
            if fault and len(self.batch_sizes) > 1:
                raise fault
            return logits

    async def main() -> None:
        gate = Gate()
        runtime = Dying(gate=gate.semaphore)
        engine = LocalEngine("fake", runtime, policy=policy(max_queue=1), on_load=loads.append)
        task = asyncio.create_task(answer(engine, completion("a", sampling=ENDLESS)))
        gate.open()
        await settle(lambda: loads == [Load(1, 0)])
        gate.open()
        if fault is None:
            await engine.close()
        await asyncio.gather(task, return_exceptions=True)
        await settle(lambda: loads[-1] == Load())
        await engine.close()

    run(main)


def test_the_queue_counts_who_has_no_slot() -> None:
    async def main() -> None:
        runtime = SlowTokenizer(num_slots=2)
        async with engine_on(runtime) as engine:
            assert engine.num_queued == 0
            tasks = [asyncio.create_task(answer(engine, completion("a", 3))) for _ in range(5)]
            await asyncio.to_thread(runtime.tokenizing.wait)
            assert engine.num_queued == 3
            runtime.may_tokenize.set()
            await asyncio.gather(*tasks)
            assert engine.num_queued == 0

    run(main)


# -- admission -----------------------------------------------------------------------------------


def test_a_full_queue_refuses_with_a_time_to_wait() -> None:
    runtime = FakeRuntime(num_slots=2, gate=(gate := Gate()).semaphore)

    async def main() -> None:
        async with engine_on(runtime, policy(max_queue=3)) as engine:
            tasks = [asyncio.create_task(answer(engine, completion("a", 3))) for _ in range(5)]
            await settle(lambda: engine._num_active == 5)
            with pytest.raises(QueueFullError, match="2 requests at a time and 3 more") as caught:
                await answer(engine, completion("a", 3))
            assert caught.value.retry_after_s is not None
            assert 1 <= caught.value.retry_after_s <= 120
            gate.open(100)
            await asyncio.gather(*tasks)
            await answer(engine, completion("a", 3))

    run(main)


def test_a_full_queue_of_tokens_refuses_too() -> None:
    runtime = FakeRuntime(num_slots=1, gate=(gate := Gate()).semaphore)

    async def main() -> None:
        async with engine_on(runtime, policy(max_queue_tokens=50)) as engine:
            running = asyncio.create_task(answer(engine, completion("x" * 100, 3)))
            await until_decoding(runtime)
            await settle(lambda: engine._admission._num_tokens == 0)
            waiting = [asyncio.create_task(answer(engine, completion("y" * 20, 3))) for _ in "ab"]
            await settle(lambda: len(engine._requests) == 3)
            with pytest.raises(QueueFullError, match="prompts of 40 tokens are waiting"):
                await anext(engine.generate(completion("z" * 11, 3)))
            waiting.append(asyncio.create_task(answer(engine, completion("z" * 10, 3))))
            await settle(lambda: len(engine._requests) == 4)
            gate.open(1000)
            await asyncio.gather(running, *waiting)
            assert engine._admission._queued == {}

    run(main)


def test_who_waits_hears_the_place_and_the_wait() -> None:
    runtime = FakeRuntime(num_slots=1, gate=(gate := Gate()).semaphore)

    async def main() -> None:
        async with engine_on(runtime) as engine:
            running = engine.generate(completion("a", 20, sampling=ENDLESS))
            await anext(running)
            await until_decoding(runtime)
            streams = [engine.generate(completion(p, 3)) for p in ("long prompt", "short")]
            for stream in streams:
                assert isinstance(await anext(stream), Started)
            gate.open()
            news = [await anext(stream) for stream in streams]
            assert [event.position for event in news if isinstance(event, Queued)] == [2, 1]
            waits = [event.expected_wait_s for event in news if isinstance(event, Queued)]
            assert 0 < waits[1] < waits[0]
            gate.open(1000)
            for stream, position in zip(streams, (2, 1), strict=True):
                rest = [event async for event in stream]
                first_part = next(i for i, e in enumerate(rest) if isinstance(e, Delta))
                last_news = [e for e in rest[:first_part] if isinstance(e, Queued)][-1]
                assert last_news == Queued(0, 0.0), "it has a slot"
                assert not any(isinstance(event, Queued) for event in rest[first_part:])
                end = rest[-1]
                assert isinstance(end, Finished)
                assert end.timings.queue_position == position
            first = [event async for event in running]
            assert not any(isinstance(event, Queued) for event in first), "it never waited"

    run(main)


def test_who_gets_no_slot_in_time_is_told_so() -> None:
    runtime = FakeRuntime(num_slots=1, gate=(gate := Gate()).semaphore)

    async def main() -> None:
        async with engine_on(runtime, policy(queue_timeout_s=3600.0)) as engine:
            running = asyncio.create_task(answer(engine, completion("a", 20, sampling=ENDLESS)))
            await until_decoding(runtime)
            late = engine.generate(completion("b", 3))
            assert isinstance(await anext(late), Started)
            engine._worker._queue_timeout_s = 0.0  # as if an hour had passed
            gate.open()
            with pytest.raises(QueueTimeoutError, match="3600 s of queue_timeout") as caught:
                await until_failure(late)
            assert caught.value.retry_after_s is not None
            gate.open(1000)
            await running

    run(main)


async def until_failure(events: EventStream) -> None:
    async for event in events:
        assert isinstance(event, Queued)


def test_who_would_wait_too_long_is_refused_at_once() -> None:
    runtime = FakeRuntime(num_slots=1, gate=(gate := Gate()).semaphore)

    async def main() -> None:
        async with engine_on(runtime, policy(queue_timeout_s=1e-9)) as engine:
            running = asyncio.create_task(answer(engine, completion("a", 20, sampling=ENDLESS)))
            await until_decoding(runtime)
            await settle(lambda: engine._admission._queue.newcomer_wait_s > 0)
            with pytest.raises(QueueFullError, match="longer than the 1e-09 s of queue_timeout"):
                await anext(engine.generate(completion("c", 3)))
            gate.open(1000)
            await running

    run(main)


def test_a_deterministic_request_without_a_seed_has_one() -> None:
    async def main() -> None:
        async with engine_on(FakeRuntime()) as engine:
            hot = SamplingParams(temperature=1.5)
            request = completion("abc", 20, sampling=hot, deterministic=True)
            others = [answer(engine, completion(p, 15, sampling=hot)) for p in "defg"]
            first, *_, second = await asyncio.gather(
                answer(engine, request), *others, answer(engine, request)
            )
            assert first == second == answer_alone(b"abc", 20, sampling=hot, seed=0)
            assert first != await answer(engine, msgspec.structs.replace(request, seed=1))

    run(main)


def test_without_a_queue_only_the_slots_count() -> None:
    runtime = FakeRuntime(num_slots=1, gate=(gate := Gate()).semaphore)

    async def main() -> None:
        async with engine_on(runtime, policy(max_queue=0)) as engine:
            task = asyncio.create_task(answer(engine, completion("a", 3)))
            await until_decoding(runtime)
            with pytest.raises(QueueFullError):
                await answer(engine, completion("a", 3))
            gate.open(100)
            await task

    run(main)


@pytest.mark.parametrize(
    ("request_", "error", "param"),
    [
        (completion(""), InvalidRequestError, "prompt"),
        (completion("x" * 1000), TooLargeError, "prompt"),
        (
            completion("x", sampling=SamplingParams(logit_bias={257: 1.0})),
            InvalidRequestError,
            "parameters.logit_bias.257",
        ),
        (
            completion("x", sampling=SamplingParams(logit_bias={-1: 1.0})),
            InvalidRequestError,
            "parameters.logit_bias.-1",
        ),
        (completion("x", num_logprobs=21), InvalidRequestError, "logprobs"),
        (completion("x", num_logprobs=-1), InvalidRequestError, "logprobs"),
        (Request(prompt_tokens=(1, 257)), InvalidRequestError, "prompt.1"),
        (Request(prompt="x", mode=Mode.CHAT), InvalidRequestError, "mode"),
        (
            Request(messages=(Message("user", "x" * 1000),)),
            TooLargeError,
            "messages",
        ),
    ],
)
def test_what_is_refused_comes_before_the_first_event_and_leaks_nothing(
    request_: Request, error: type[LlmserveError], param: str
) -> None:
    async def main() -> None:
        async with engine_on(FakeRuntime()) as engine:
            with pytest.raises(error) as caught:
                await anext(engine.generate(request_))
            assert caught.value.param == param

    run(main)


# -- leaving early -------------------------------------------------------------------------------


def test_leaving_while_running_frees_within_the_step() -> None:
    runtime = FakeRuntime(num_cells=500, gate=(gate := Gate()).semaphore)

    async def main() -> None:
        async with engine_on(runtime) as engine:
            events = engine.generate(completion("abc", 100, sampling=ENDLESS))
            assert isinstance(await anext(events), Started)
            pending = asyncio.ensure_future(anext(events))
            await until_decoding(runtime)
            gate.open(3)
            await pending
            await events.aclose()
            gate.open(100)  # the step under way, at most the fourth, finishes; no other begins
            await settle(lambda: not any(runtime.cells))
            assert len(runtime.batch_sizes) <= 4

    run(main)


def test_leaving_in_the_middle_of_a_long_prefill_interrupts_it() -> None:
    """The gate stays shut: only the abort can end the step."""
    runtime = FakeRuntime(num_cells=900, max_batch=512, gate=(gate := Gate()).semaphore)

    async def main() -> None:
        async with engine_on(runtime) as engine:
            events = engine.generate(completion("x" * 600, 10))
            assert isinstance(await anext(events), Started)
            task = asyncio.ensure_future(anext(events))
            await until_decoding(runtime)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await events.aclose()
            await settle(lambda: not engine._worker._roster.running)
            assert len(runtime.batch_sizes) == 1
            assert not any(runtime.cells)
            gate.open(100)
            assert await answer(engine, completion("a", 3)) == answer_alone(b"a", 3)

    run(main)


def test_leaving_while_waiting_for_a_slot() -> None:
    runtime = FakeRuntime(num_slots=1, gate=(gate := Gate()).semaphore)

    async def main() -> None:
        async with engine_on(runtime) as engine:
            first = asyncio.create_task(answer(engine, completion("a", 3)))
            await until_decoding(runtime)
            second = engine.generate(completion("b", 3))
            assert isinstance(await anext(second), Started)
            await second.aclose()
            waiting = asyncio.create_task(answer(engine, completion("c", 3)))
            await settle(lambda: len(engine._requests) == 2)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            gate.open(100)
            assert await first == answer_alone(b"a", 3)
            await cells_are_free(engine, runtime)

    run(main)


@pytest.mark.parametrize("num_events", range(6))
def test_leaving_after_any_number_of_events(num_events: int) -> None:
    async def main() -> None:
        runtime = FakeRuntime()
        async with engine_on(runtime) as engine:
            events = engine.generate(completion("abc", 50, sampling=ENDLESS))
            for _ in range(num_events):
                await anext(events)
            await events.aclose()
            assert_nothing_leaked(engine)
            await cells_are_free(engine, runtime)

    run(main)


class SlowTokenizer(FakeRuntime):
    """Tokenizes only when told to."""

    def __init__(self, num_slots: int = 4) -> None:
        super().__init__(num_slots=num_slots)
        self.tokenizing = threading.Event()
        self.may_tokenize = threading.Event()

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        self.tokenizing.set()
        assert self.may_tokenize.wait(60)
        return super().tokenize(text, add_special=add_special)


def test_leaving_while_the_prompt_is_tokenized() -> None:
    async def main() -> None:
        runtime = SlowTokenizer()
        async with engine_on(runtime) as engine:
            tasks = [asyncio.create_task(answer(engine, completion("a", 3))) for _ in range(3)]
            await asyncio.to_thread(runtime.tokenizing.wait)
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(result, asyncio.CancelledError)
            assert_nothing_leaked(engine)
            runtime.may_tokenize.set()
            assert await answer(engine, completion("a", 3)) == answer_alone(b"a", 3)

    run(main)


def test_a_long_prompt_holds_up_nobody_elses_tokenization() -> None:
    class SlowOnLong(SlowTokenizer):
        def tokenize(
            self, text: str, *, add_special: bool, parse_special: bool = True
        ) -> list[int]:
            if len(text) > 10:
                return super().tokenize(text, add_special=add_special)
            return FakeRuntime.tokenize(self, text, add_special=add_special)

    async def main() -> None:
        runtime = SlowOnLong()
        async with engine_on(runtime) as engine:
            long = asyncio.create_task(answer(engine, completion("x" * 20, 3)))
            await asyncio.to_thread(runtime.tokenizing.wait)
            assert await answer(engine, completion("a", 3)) == answer_alone(b"a", 3)
            assert not long.done()
            runtime.may_tokenize.set()
            assert await long == answer_alone(b"x" * 20, 3)

    run(main)


def test_bare_texts_hold_up_no_generation() -> None:
    class SlowOnLong(SlowTokenizer):
        def tokenize(
            self, text: str, *, add_special: bool, parse_special: bool = True
        ) -> list[int]:
            if len(text) > 10:
                return super().tokenize(text, add_special=add_special)
            return FakeRuntime.tokenize(self, text, add_special=add_special)

    async def main() -> None:
        runtime = SlowOnLong()
        async with engine_on(runtime) as engine:
            bare = [
                asyncio.create_task(engine.tokenize("x" * 20, add_special=False)) for _ in range(5)
            ]
            await asyncio.to_thread(runtime.tokenizing.wait)
            assert await answer(engine, completion("a", 3)) == answer_alone(b"a", 3)
            assert not any(task.done() for task in bare)
            runtime.may_tokenize.set()
            assert await asyncio.gather(*bare) == [list(b"x" * 20)] * 5

    run(main)


def test_the_end_and_the_cancel_may_cross() -> None:
    """The consumer leaves while the last events are already on their way, at every distance."""

    async def main() -> None:
        runtime = FakeRuntime(num_slots=2)
        async with engine_on(runtime) as engine:
            for turns in range(60):
                events = engine.generate(completion("ab", 2))
                await anext(events)
                task = asyncio.ensure_future(anext(events))
                for _ in range(turns % 20):
                    await asyncio.sleep(0)
                if turns % 3:
                    await settle(lambda: not engine._requests)  # the end is here, unread
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await events.aclose()
                assert_nothing_leaked(engine)
            await cells_are_free(engine, runtime)

    run(main)


# -- faults --------------------------------------------------------------------------------------


class FaultyRuntime(FakeRuntime):
    """Its n-th decode raises `fault`."""

    def __init__(
        self, fault: BaseException, at: int = 3, gate: threading.Semaphore | None = None
    ) -> None:
        super().__init__(num_slots=2, gate=gate)
        self.fault = fault
        self.at = at
        self.num_decodes = 0

    def decode(self, chunks: Sequence[Chunk]) -> Logits:
        logits = super().decode(chunks)
        self.num_decodes += 1
        if self.num_decodes == self.at:
            raise self.fault
        return logits


def test_a_failed_step_fails_its_requests_and_the_engine_goes_on() -> None:
    async def main() -> None:
        runtime = FaultyRuntime(EngineError("llama_decode failed with code -3"))
        async with engine_on(runtime) as engine:
            with pytest.raises(EngineError, match="code -3"):
                await answer(engine, completion("a", 30, sampling=ENDLESS))
            assert_nothing_leaked(engine)
            assert engine.is_alive
            assert await answer(engine, completion("a", 3)) == answer_alone(b"a", 3)

    run(main)


def test_out_of_cells_alone_fails_the_request() -> None:
    async def main() -> None:
        async with engine_on(FaultyRuntime(OutOfCellsError())) as engine:
            with pytest.raises(EngineError, match="cannot hold this request"):
                await answer(engine, completion("a", 30, sampling=ENDLESS))
            assert engine.is_alive

    run(main)


async def past_the_queue(events: EventStream) -> None:
    """Until something else is told than that it waits."""
    async for event in events:
        assert isinstance(event, Queued)


FAULTS = [ZeroDivisionError("?"), MemoryError(), SystemExit(1), AssertionError()]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_dead_worker_fails_everybody_now_and_later(fault: BaseException) -> None:
    """Those that run, that wait for a slot, that are being tokenized, and that come afterwards."""
    gate = Gate()
    runtime = FaultyRuntime(fault, at=1, gate=gate.semaphore)

    async def main() -> None:
        engine = LocalEngine("fake", runtime, policy=policy(max_queue=100))
        before = [
            asyncio.create_task(answer(engine, completion("a", 30, sampling=ENDLESS)))
            for _ in range(5)
        ]
        await settle(lambda: len(engine._requests) == 5)
        unread = engine.generate(completion("b", 3))
        assert isinstance(await anext(unread), Started)
        gate.open(100)
        for result in await asyncio.gather(*before, return_exceptions=True):
            assert isinstance(result, EngineError)
        assert not engine.is_alive
        with pytest.raises(EngineError):
            await past_the_queue(unread)
        for _ in range(3):
            with pytest.raises(EngineError, match="see the server's log"):
                await answer(engine, completion("c", 3))
        assert_nothing_leaked(engine)
        # It gives its memory back without being told, and may still be told.
        await settle(lambda: runtime.closed)
        await engine.close()

    run(main)


def test_a_worker_that_dies_while_a_prompt_is_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        runtime = SlowTokenizer()
        engine = LocalEngine("fake", runtime, policy=policy(max_queue=100))
        tasks = [asyncio.create_task(answer(engine, completion("a", 3))) for _ in range(3)]
        await asyncio.to_thread(runtime.tokenizing.wait)
        monkeypatch.delattr(Worker, "_forget")
        engine._worker.cancel(-1)  # kills it
        await settle(lambda: not engine.is_alive)
        assert not runtime.closed, "the tokenizer still reads the model"
        runtime.may_tokenize.set()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, EngineError)
        assert_nothing_leaked(engine)
        await engine.close()
        assert runtime.closed

    run(main)


# -- closing -------------------------------------------------------------------------------------


def test_closing_finishes_everything_as_cancelled() -> None:
    runtime = FakeRuntime(num_slots=2, num_cells=900, max_batch=512, gate=Gate().semaphore)

    async def main() -> None:
        async with engine_on(runtime) as engine:
            tasks = [
                asyncio.create_task(answer(engine, completion("x" * n, 100)))
                for n in (400, 1, 2, 3)
            ]
            await settle(lambda: len(engine._requests) == 4)
            await until_decoding(runtime)
            await engine.close()  # the gate is shut: only an abort ends the running step
            for got in await asyncio.gather(*tasks):
                assert got == Answer("", FinishReason.CANCELLED, None, 0)
            with pytest.raises(ShuttingDownError):
                await answer(engine, completion("a", 3))
            await engine.close()

    run(main)


def test_closing_while_a_prompt_is_tokenized() -> None:
    async def main() -> None:
        runtime = SlowTokenizer()
        async with engine_on(runtime) as engine:
            tasks = [asyncio.create_task(answer(engine, completion("a", 3))) for _ in range(3)]
            await asyncio.to_thread(runtime.tokenizing.wait)
            closing = asyncio.create_task(engine.close())
            await settle(lambda: engine._worker._ended.done())
            assert not runtime.closed, "the tokenizer still reads the model"
            runtime.may_tokenize.set()
            await closing
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(result, ShuttingDownError)

    run(main)


def test_closing_twice_at_once() -> None:
    async def main() -> None:
        runtime = FakeRuntime()
        engine = LocalEngine("fake", runtime, policy=policy(max_queue=1))
        first = asyncio.create_task(engine.close())
        second = asyncio.create_task(engine.close())
        await asyncio.sleep(0)
        first.cancel()
        await second
        assert runtime.closed

    run(main)


def test_an_idle_engine_closes() -> None:
    async def main() -> None:
        async with engine_on(FakeRuntime()):
            pass

    run(main)
