"""What the worker makes of plans, costs and the queue, stepped by hand on the fake."""

import time
from collections.abc import Sequence

import pytest

from llmserve.core import Finished
from llmserve.engine.messages import Failed
from llmserve.engine.runtime import Chunk, Logits
from llmserve.engine.scheduler.cost_model import Costs
from tests.engine.solo import answer_alone
from tests.engine.worker.test_worker import ENDLESS, Bench
from tests.fakes import FakeRuntime

# -- the queue -----------------------------------------------------------------------------------


def test_the_queue_is_told_in_the_order_of_turns_whenever_it_changes() -> None:
    bench = Bench(FakeRuntime(num_cells=4000, num_slots=1))
    bench.submit([1], 50, sampling=ENDLESS)
    bench.step()
    long, short = bench.submit([2] * 30, 5), bench.submit([3] * 3, 5)
    bench.step()
    assert [w.id for w in bench.queues[-1].waiting] == [short, long]
    waits = [w.expected_wait_s for w in bench.queues[-1].waiting]
    assert 0 < waits[0] < waits[1] < bench.queues[-1].newcomer_wait_s
    num_told = len(bench.queues)
    bench.step()
    assert len(bench.queues) == num_told, "nothing has changed"
    bench.worker.cancel(short)
    bench.step()
    assert [w.id for w in bench.queues[-1].waiting] == [long]
    bench.run()
    assert bench.queues[-1].waiting == ()
    end = bench.ends[long]
    assert isinstance(end, Finished)
    assert end.timings.queue_position == 2
    assert end.timings.expected_queue_s == waits[1]


def test_who_waits_too_long_for_a_first_slot_fails_and_nobody_else() -> None:
    bench = Bench(FakeRuntime(num_cells=4000, num_slots=1), queue_timeout_s=3600)
    runs = bench.submit([1], 20, sampling=ENDLESS, accepted_s=time.monotonic() - 5000)
    bench.step()
    late = bench.submit([2], 5, accepted_s=time.monotonic() - 3601)
    early = bench.submit([2], 5, accepted_s=time.monotonic())
    bench.step()
    assert bench.ends[late] == Failed("no slot became free in time", is_timeout=True)
    bench.run()
    assert bench.answer(runs) == answer_alone([1], 20, sampling=ENDLESS)
    assert bench.answer(early) == answer_alone([2], 5)


def test_who_is_preempted_has_all_the_time() -> None:
    """However long ago it came: it has had a slot."""
    bench = Bench(FakeRuntime(num_cells=70, num_slots=2), queue_timeout_s=1.0)
    bench.expect_short_answers()
    now_s = time.monotonic()
    ids = [bench.submit([n], 40, sampling=ENDLESS, accepted_s=now_s - 0.5) for n in range(2)]
    for sequence_id in ids:
        bench.step()
        bench.worker._roster.find(sequence_id).accepted_s -= 3600  # type: ignore[union-attr]
    bench.run()
    assert [bench.answer(i) for i in ids] == [
        answer_alone([n], 40, sampling=ENDLESS) for n in range(2)
    ]
    assert sum(stats.num_preempted for stats in bench.stats) > 0, "a useless test"


# -- batch and deterministic requests ------------------------------------------------------------


def test_a_batch_request_gives_its_slot_to_an_interactive_one_and_goes_on_later() -> None:
    bench = Bench(FakeRuntime(num_slots=1))
    batch = bench.submit([1, 2], 30, sampling=ENDLESS, is_batch=True, accepted_s=time.monotonic())
    for _ in range(5):
        bench.step()
    asked = bench.submit([3], 5, sampling=ENDLESS)
    bench.step()
    assert [s.id for s in bench.worker._roster.running] == [asked]
    bench.run()
    assert list(bench.ends) == [asked, batch]
    assert bench.answer(batch) == answer_alone([1, 2], 30, sampling=ENDLESS)
    assert bench.answer(asked) == answer_alone([3], 5, sampling=ENDLESS)


class RecordingRuntime(FakeRuntime):
    """Notes who was in each step, by the first token, and how large each part was."""

    def __init__(self, *, max_batch: int = 32) -> None:
        super().__init__(num_cells=4000, max_batch=max_batch)
        self.steps: list[list[tuple[int, int]]] = []
        self.num_cells_before: list[int] = []

    def decode(self, chunks: Sequence[Chunk]) -> Logits:
        self.num_cells_before.append(sum(map(len, self.cells)))
        logits = super().decode(chunks)
        self.steps.append([(self.cells[c.slot][0], len(c.tokens)) for c in chunks])
        return logits


@pytest.mark.parametrize("num_others", [0, 1, 6])
def test_a_deterministic_request_is_computed_in_the_same_steps_whatever_the_load(
    num_others: int,
) -> None:
    bench = Bench(runtime := RecordingRuntime(), prefix_cache_bytes=1 << 20)
    prompt = [200] * 100
    for n in range(num_others):
        bench.submit([n + 1] * 40, 12, sampling=ENDLESS)
        bench.step()
    known = bench.submit(prompt, 3, sampling=ENDLESS)  # what a cache would have of it
    bench.step()
    alone = bench.submit(prompt, 6, sampling=ENDLESS, deterministic=True)
    for n in range(num_others):
        bench.step()
        bench.submit([n + 101] * 10, 12, sampling=ENDLESS)
    bench.run()
    steps = list(zip(runtime.steps, runtime.num_cells_before, strict=True))
    begin = next(
        n for n, (step, cells) in enumerate(steps) if cells == 0 and step == [(200, 32)] and n > 0
    )
    own = [step for step, _ in steps[begin : begin + 9]]
    assert own == [[(200, 32)]] * 3 + [[(200, 4)]] + [[(200, 1)]] * 5
    end = bench.ends[alone]
    assert isinstance(end, Finished)
    assert end.usage.cached_tokens == 0
    assert bench.answer(alone) == answer_alone(prompt, 6, sampling=ENDLESS)
    assert bench.answer(known) == answer_alone(prompt, 3, sampling=ENDLESS)


# -- long prompts beside streams -----------------------------------------------------------------


class FixedCosts(Costs):
    """Of a machine that is known and does not change."""

    def observe(self, *_: object) -> None:
        pass


def test_a_step_that_decodes_has_no_more_of_a_prompt_than_fits_the_target() -> None:
    bench = Bench(runtime := RecordingRuntime(max_batch=512), target_itl_s=0.06)
    costs = bench.worker._planner.costs = FixedCosts()
    stream = bench.submit([1], 150, sampling=ENDLESS)
    bench.step()
    prompts = [bench.submit([n] * 900, 3, sampling=ENDLESS) for n in (2, 3)]
    bench.run()
    sizes = set()
    for step, num_cells in zip(runtime.steps, runtime.num_cells_before, strict=True):
        num_rows = sum(size == 1 for _, size in step)
        num_prompt = sum(size for _, size in step) - num_rows
        if num_rows and num_prompt:
            assert num_prompt <= costs.max_prompt_tokens(num_rows, num_cells, 0.06)
            sizes.add(num_prompt)
    assert 10 < max(sizes) < 20, "no prompt was computed beside the stream"
    for request_id in (stream, *prompts):
        assert isinstance(bench.ends[request_id], Finished)


def test_steps_are_measured_and_learned_from() -> None:
    bench = Bench(FakeRuntime(num_cells=2000))
    before_s = bench.worker._planner.costs.step_s(1, 0, 100)
    bench.submit([1], 300, sampling=ENDLESS)
    bench.run()
    assert all(stats.expected_s and stats.expected_s > 0 for stats in bench.stats)
    assert all(stats.step_s > 0 for stats in bench.stats)
    assert bench.worker._planner.costs.step_s(1, 0, 100) < before_s / 2, "the fake is fast"
