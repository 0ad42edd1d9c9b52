"""Prefixes on the fake: who computes what, counted in tokens, and nobody's answer changes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.core import Finished, SamplingParams, Usage
from llmserve.engine.kvcache.manager import MIN_PREFIX
from tests.engine.solo import GREEDY, answer_alone, tokens_alone
from tests.engine.worker.test_worker import Bench, end_worker
from tests.fakes import FakeRuntime

LONG = SamplingParams(temperature=0, ignore_eos=True)
PREFIX = [n % 251 for n in range(1000)]


def make_bench(
    *, num_cells: int = 4000, num_slots: int = 16, can_cut: bool = True, cache: int = 1 << 20
) -> Bench:
    runtime = FakeRuntime(
        num_cells=num_cells, num_slots=num_slots, max_batch=256, max_outputs=16, can_cut=can_cut
    )
    return Bench(runtime, prefix_cache_bytes=cache)


def usage(bench: Bench, request_id: int) -> Usage:
    end = bench.ends[request_id]
    assert isinstance(end, Finished)
    return end.usage


def num_computed(bench: Bench) -> int:
    return sum(bench.runtime.batch_sizes)


# -- together ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [0, 1 << 20])
def test_a_cold_prefix_of_many_is_computed_once(cache: int) -> None:
    bench = make_bench(cache=cache)
    prompts = [[*PREFIX, n, 2 * n, 3] for n in range(16)]
    ids = [bench.submit(prompt, 5, sampling=LONG) for prompt in prompts]
    bench.run()
    assert num_computed(bench) == 1000 + 16 * 3 + 16 * 4
    assert sorted(usage(bench, i).cached_tokens for i in ids) == [0] + [1000] * 15
    for request_id, prompt in zip(ids, prompts, strict=True):
        assert bench.answer(request_id) == answer_alone(prompt, 5, sampling=LONG)


def test_shared_cells_are_counted_once() -> None:
    """Sixteen times 1,000 tokens run side by side in 1,500 cells, and nobody is preempted."""
    bench = make_bench(num_cells=1500)
    prompts = [[*PREFIX, n] for n in range(16)]
    ids = [bench.submit(prompt, 20, sampling=LONG) for prompt in prompts]
    for _ in range(20):
        bench.step()
    assert max(load.num_running for load in bench.loads) == 16
    bench.run()
    assert num_computed(bench) == 1000 + 16 + 16 * 19
    for request_id, prompt in zip(ids, prompts, strict=True):
        assert bench.answer(request_id) == answer_alone(prompt, 20, sampling=LONG)


def test_choices_of_one_prompt_share_all_of_it() -> None:
    bench = make_bench()
    ids = [bench.submit(PREFIX, 5, sampling=LONG, seed=n) for n in range(4)]
    bench.run()
    assert num_computed(bench) == 1000 + 3 + 4 * 4
    assert [usage(bench, i).cached_tokens for i in ids] == [0, 999, 999, 999]


def test_when_the_leader_is_cancelled_another_goes_on() -> None:
    bench = make_bench()
    ids = [bench.submit([*PREFIX, n], 5, sampling=LONG) for n in range(4)]
    bench.step()
    bench.step()
    num_led = num_computed(bench)
    assert 0 < num_led < 1000, "the others wait"
    bench.worker.cancel(ids[0])
    bench.run()
    assert num_computed(bench) == 1000 + 3 + 3 * 4
    assert [usage(bench, i).cached_tokens for i in ids[1:]] == [num_led, 1000, 1000]


def test_without_a_cache_the_next_leader_begins_anew() -> None:
    bench = make_bench(cache=0)
    ids = [bench.submit([*PREFIX, n], 5, sampling=LONG) for n in range(4)]
    bench.step()
    num_led = num_computed(bench)
    bench.worker.cancel(ids[0])
    bench.run()
    assert num_computed(bench) == num_led + 1000 + 3 + 3 * 4


def test_others_do_not_wait_for_a_leader() -> None:
    bench = make_bench()
    bench.submit([*PREFIX, 1], 5, sampling=LONG)
    follower = bench.submit([*PREFIX, 2], 5, sampling=LONG)
    other = bench.submit([9, 9, 9], 2, sampling=LONG)
    bench.run()
    assert list(bench.ends).index(other) < list(bench.ends).index(follower)


def test_an_interactive_request_does_not_wait_for_a_batch_leader() -> None:
    bench = make_bench(cache=0)
    bench.submit([*PREFIX, 1], 5, sampling=LONG, is_batch=True)
    bench.step()
    ids = [bench.submit([*PREFIX, n], 5, sampling=LONG, is_batch=n == 3) for n in (2, 3)]
    bench.step()
    ready = bench.worker._kv.ready(bench.worker._roster.waiting)
    assert [s.id for s in ready] == ids[:1]


def test_a_deterministic_request_uses_nothing_and_is_of_use() -> None:
    bench = make_bench(can_cut=False)
    bench.submit(PREFIX, 5, sampling=LONG)
    bench.run()
    first = bench.submit(PREFIX, 5, sampling=LONG, deterministic=True)
    again = bench.submit(PREFIX, 5, sampling=LONG)
    bench.run()
    assert [usage(bench, i).cached_tokens for i in (first, again)] == [0, 999]


def test_a_short_common_beginning_is_not_waited_for() -> None:
    bench = make_bench()
    for n in range(4):
        bench.submit([*PREFIX[: MIN_PREFIX - 1], n, n], 5, sampling=LONG)
    bench.step()
    assert bench.runtime.batch_sizes == [4 * (MIN_PREFIX + 1)]


def test_namespaces_share_nothing() -> None:
    bench = make_bench()
    together = [bench.submit(PREFIX, 2, sampling=LONG, namespace=name) for name in ("a", "b", "")]
    bench.run()
    later = bench.submit(PREFIX, 2, sampling=LONG, namespace="c")
    bench.run()
    assert [usage(bench, i).cached_tokens for i in [*together, later]] == [0, 0, 0, 0]
    again = bench.submit(PREFIX, 2, sampling=LONG, namespace="b")
    bench.run()
    assert usage(bench, again).cached_tokens == 999


# -- one after the other -------------------------------------------------------------------------


def test_a_known_prompt_computes_its_last_token_only() -> None:
    bench = make_bench()
    bench.submit(PREFIX, 5, sampling=LONG)
    bench.run()
    before = num_computed(bench)
    request_id = bench.submit(PREFIX, 5, sampling=LONG)
    bench.run()
    assert num_computed(bench) - before == 1 + 4
    assert usage(bench, request_id).cached_tokens == 999
    assert bench.answer(request_id) == answer_alone(PREFIX, 5, sampling=LONG)


def test_a_conversation_computes_only_what_is_new() -> None:
    bench = make_bench()
    prompt: list[int] = []
    num_known = 0
    for turn in range(8):
        prompt += [turn, *PREFIX[: 40 + turn], 251]
        before = num_computed(bench)
        request_id = bench.submit(prompt, 30, sampling=LONG)
        bench.run()
        num_new = len(prompt) - num_known
        assert num_computed(bench) - before == num_new + 29
        answer = answer_alone(prompt, 30, sampling=LONG)
        assert bench.answer(request_id) == answer
        prompt += tokens_alone(prompt, 30)
        num_known = len(prompt) - 1  # the last token was chosen, and never computed


def test_an_extension_parks_only_what_is_new() -> None:
    bench = make_bench()
    bench.submit(PREFIX, 5, sampling=LONG)
    bench.run()
    assert bench.runtime.num_saved == 1004
    bench.submit([*PREFIX, 1, 2, 3], 5, sampling=LONG)
    bench.run()
    assert bench.runtime.num_saved == 1004 + 7


def test_a_branch_uses_what_is_common() -> None:
    bench = make_bench()
    bench.submit(PREFIX, 5, sampling=LONG)
    bench.run()
    branch = [*PREFIX[:500], 255, 255]
    request_id = bench.submit(branch, 5, sampling=LONG)
    bench.run()
    assert usage(bench, request_id).cached_tokens == 500
    assert bench.answer(request_id) == answer_alone(branch, 5, sampling=LONG)


def test_the_cache_stays_within_its_bytes() -> None:
    bench = make_bench(cache=5000)
    for n in range(20):
        bench.submit([n] * 300, 5, sampling=LONG)
        bench.run()
        assert 0 < bench.worker._kv.parked_bytes <= 5000


def test_who_wants_every_row_computes_everything() -> None:
    bench = make_bench()
    bench.submit(PREFIX[:100], 5, sampling=LONG)
    bench.run()
    request_id = bench.submit(PREFIX[:100], 5, sampling=LONG, num_logprobs=0, prompt_logprobs=True)
    bench.run()
    assert usage(bench, request_id).cached_tokens == 0


def test_cells_that_nobody_knows_of_are_found_when_idle(caplog: pytest.LogCaptureFixture) -> None:
    bench = make_bench()
    bench.submit([1] * 20, 2, sampling=LONG)
    bench.run()
    bench.runtime.cells[3].extend([1, 2, 3])
    with pytest.raises(AssertionError, match="slot 3"):
        bench.worker._kv.check_integrity()
    end_worker(bench)
    assert "slot 3 holds 3 untracked tokens" in caplog.text
    assert not any(bench.runtime.cells)


# -- models that cannot be cut -------------------------------------------------------------------


def test_checkpoints_where_others_branch_off() -> None:
    bench = make_bench(can_cut=False)
    prompts = [[*PREFIX, n, n, n] for n in range(8)]
    ids = [bench.submit(prompt, 5, sampling=LONG) for prompt in prompts]
    bench.run()
    assert num_computed(bench) == 1000 + 8 * 3 + 8 * 4
    for request_id, prompt in zip(ids, prompts, strict=True):
        assert bench.answer(request_id) == answer_alone(prompt, 5, sampling=LONG)


def test_checkpoints_before_the_last_token_and_at_the_end() -> None:
    bench = make_bench(can_cut=False)
    first = bench.submit(PREFIX[:100], 5, sampling=LONG)
    bench.run()
    again = bench.submit(PREFIX[:100], 5, sampling=LONG)
    bench.run()
    answer = tokens_alone(PREFIX[:100], 5)
    next_turn = bench.submit([*PREFIX[:100], *answer, 3, 4], 5, sampling=LONG)
    bench.run()
    branch = bench.submit([*PREFIX[:50], 255], 5, sampling=LONG)
    bench.run()
    ids = (first, again, next_turn, branch)
    assert [usage(bench, i).cached_tokens for i in ids] == [0, 99, 104, 0]


def test_without_a_cache_nobody_waits_for_a_checkpoint() -> None:
    bench = make_bench(can_cut=False, cache=0)
    ids = [bench.submit(PREFIX[:100], 5, sampling=LONG) for _ in range(2)]
    bench.run()
    assert [usage(bench, i).cached_tokens for i in ids] == [0, 0]


# -- whatever happens ----------------------------------------------------------------------------

turns = st.lists(st.integers(0, 1), min_size=1, max_size=60)


@settings(deadline=None, max_examples=60)
@given(
    conversations=st.lists(
        st.tuples(
            st.sampled_from(["", "x"]),
            st.lists(
                st.tuples(
                    turns,
                    st.integers(1, 25),  # tokens to generate
                    st.integers(0, 3),  # steps before it
                    st.one_of(st.none(), st.integers(0, 8)),  # steps to its cancel
                ),
                min_size=1,
                max_size=4,
            ),
        ),
        min_size=1,
        max_size=5,
    ),
    num_cells=st.integers(450, 900),
    num_slots=st.integers(1, 4),
    can_cut=st.booleans(),
    cache=st.sampled_from([0, 500, 3000, 1 << 20]),
    speculation=st.booleans(),
)
def test_conversations_get_what_they_would_get_alone(
    conversations: list[tuple[str, list[tuple[list[int], int, int, int | None]]]],
    num_cells: int,
    num_slots: int,
    can_cut: bool,
    cache: int,
    speculation: bool,
) -> None:
    """Turns of several conversations interleaved, with cancels and preemptions, under any cache.

    Small vocabulary, few cells, any budget; `Bench` checks the books after every step.
    """
    runtime = FakeRuntime(
        num_cells=num_cells, num_slots=num_slots, max_batch=16, max_outputs=16, can_cut=can_cut
    )
    bench = Bench(runtime, prefix_cache_bytes=cache, speculation=speculation)
    prompts: list[list[int]] = [[0] * MIN_PREFIX for _ in conversations]
    expected = {}
    for turn in range(4):
        due: list[tuple[int, int]] = []
        for index, (namespace, todo) in enumerate(conversations):
            if turn >= len(todo):
                continue
            text, max_tokens, wait, cancel = todo[turn]
            prompts[index] += text
            for _ in range(wait):
                bench.step()
            request_id = bench.submit(
                prompts[index], max_tokens, sampling=LONG, namespace=namespace
            )
            expected[request_id] = answer_alone(prompts[index], max_tokens, sampling=LONG)
            prompts[index] += tokens_alone(prompts[index], max_tokens)
            if cancel is not None:
                due.append((cancel, request_id))
        for step in range(9):
            for when, request_id in due:
                if when == step:
                    bench.worker.cancel(request_id)
            bench.step()
        if turn % 2:
            bench.run()
    bench.run()
    for request_id, answer in expected.items():
        if request_id in bench.ends:
            assert bench.answer(request_id) == answer
        else:
            assert answer.text.startswith(bench.texts[request_id])
    assert bench.runtime.num_used_cells == 0


def test_the_reference_is_the_fake_itself() -> None:
    tokens = tokens_alone([1, 2, 3], 10)
    text = bytes(t for t in tokens if t < 256).decode(errors="replace")
    assert answer_alone([1, 2, 3], 10, sampling=LONG).text == text
    assert GREEDY.temperature == LONG.temperature == 0


def test_who_wants_nothing_known_computes_all() -> None:
    bench = make_bench()
    bench.submit(PREFIX, 5, sampling=LONG)
    bench.run()
    fresh = bench.submit(PREFIX, 5, sampling=LONG, cache_prompt=False)
    bench.run()
    assert usage(bench, fresh).cached_tokens == 0
