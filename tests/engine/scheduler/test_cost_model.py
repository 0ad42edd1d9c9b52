"""The cost model on synthetic curves: facts about machines, with noise."""

import itertools
import math
import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.engine.scheduler.cost_model import Costs

Curve = Callable[[int, int, int], float]


def linear(speed: float) -> Curve:
    """The embedded model on two cores, `speed` times as slow."""

    def step_s(rows: int, prompt: int, cells: int) -> float:
        return speed * (0.006 + 0.0045 * rows + 0.0032 * prompt + 2e-7 * (rows + prompt) * cells)

    return step_s


def measured(rows: int, prompt: int, cells: int) -> float:
    """Interpolated from measurements, which are not quite linear: 1, 4, 16 and 32 rows, and
    prompt chunks of 8 to 512 tokens."""
    rows_s = _interpolate([(0, 0), (1, 0.0092), (4, 0.0255), (16, 0.0773), (32, 0.152)], rows)
    chunks = [(0, 0), (8, 0.045), (16, 0.074), (32, 0.141), (64, 0.231), (128, 0.446), (512, 1.65)]
    return rows_s + _interpolate(chunks, prompt) + 1.5e-7 * (rows + prompt) * cells


def _interpolate(points: list[tuple[int, float]], x: int) -> float:
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    raise AssertionError(x)


def steps(rng: random.Random, count: int) -> Iterator[tuple[int, int, int]]:
    """As a server has them: mostly decoding, some prompts, a long one now and then."""
    for _ in range(count):
        rows = rng.choice([0, 1, 4, 16])
        prompt = rng.choice([0, 0, 8, 32, 300]) if rows else rng.choice([32, 300])
        yield rows, prompt, rng.randrange(8000)


def learn(
    costs: Costs, curve: Curve, rng: random.Random, count: int, *, outliers: float = 0
) -> None:
    for step in steps(rng, count):
        noise = rng.uniform(0.85, 1.15) * (10 if rng.random() < outliers else 1)
        costs.observe(*step, curve(*step) * noise)


def worst_error(costs: Costs, curve: Curve) -> float:
    """The largest relative error over what a server's steps may be."""
    return max(
        abs(costs.step_s(rows, prompt, cells) / curve(rows, prompt, cells) - 1)
        for rows in (1, 4, 16)
        for prompt in (0, 16, 64, 300)
        for cells in (0, 2000, 8000)
    )


@pytest.mark.parametrize("speed", [0.1, 1, 30])
@pytest.mark.parametrize("seed", range(5))
def test_it_converges_whatever_the_machine(speed: float, seed: int) -> None:
    costs, rng = Costs(), random.Random(seed)
    learn(costs, linear(speed), rng, 300)
    assert worst_error(costs, linear(speed)) < 0.1


@pytest.mark.parametrize("seed", range(5))
def test_it_comes_close_where_the_machine_is_not_linear(seed: int) -> None:
    costs, rng = Costs(), random.Random(seed)
    learn(costs, measured, rng, 300)
    assert worst_error(costs, measured) < 0.35


@pytest.mark.parametrize("seed", range(10))
def test_a_fifth_of_steps_ten_times_too_slow_do_little(seed: int) -> None:
    costs, rng = Costs(), random.Random(seed)
    learn(costs, linear(1), rng, 600, outliers=0.2)
    assert worst_error(costs, linear(1)) < 0.3


@pytest.mark.parametrize(("before", "after"), [(1.0, 2.0), (2.0, 1.0), (1.0, 10.0)])
def test_it_follows_a_change_of_speed(before: float, after: float) -> None:
    costs, rng = Costs(), random.Random(7)
    learn(costs, linear(before), rng, 300)
    learn(costs, linear(after), rng, 40)
    assert worst_error(costs, linear(after)) < 0.2


def test_one_kind_of_step_does_not_spoil_the_other() -> None:
    """An hour of one stream, and then prompts again."""
    costs, rng = Costs(), random.Random(3)
    curve = linear(1)
    learn(costs, curve, rng, 300)
    for _ in range(20_000):
        costs.observe(1, 0, 500, curve(1, 0, 500) * rng.uniform(0.9, 1.1))
    assert costs.step_s(1, 0, 500) == pytest.approx(curve(1, 0, 500), rel=0.05)
    assert costs.step_s(0, 300, 500) == pytest.approx(curve(0, 300, 500), rel=0.3)
    assert costs.step_s(16, 0, 500) == pytest.approx(curve(16, 0, 500), rel=0.3)


def test_the_first_steps_teach_most() -> None:
    """A model fifty times as large: after three steps the guess is of its size."""
    costs = Costs()
    for step in [(0, 300, 0), (1, 0, 300), (1, 0, 301)]:
        costs.observe(*step, linear(50)(*step))
    assert costs.step_s(1, 32, 300) == pytest.approx(linear(50)(1, 32, 300), rel=0.5)


counts = st.integers(0, 100_000)
observations = st.tuples(
    counts,
    counts,
    counts,
    st.one_of(
        st.floats(1e-6, 100.0),
        st.sampled_from([0.0, -1.0, math.nan, math.inf, -math.inf, 1e-300, 1e300]),
    ),
)


@settings(deadline=None)
@given(st.lists(observations, max_size=80), counts, counts, counts)
def test_it_is_always_a_positive_number_that_grows_with_the_work(
    seen: list[tuple[int, int, int, float]], rows: int, prompt: int, cells: int
) -> None:
    """Whatever was measured, even nonsense."""
    costs = Costs()
    for each in seen:
        costs.observe(*each)
    step_s = costs.step_s(rows, prompt, cells)
    assert 0 < step_s < math.inf
    assert costs.step_s(rows + 1, prompt, cells) >= step_s
    assert costs.step_s(rows, prompt + 1, cells) >= step_s
    assert costs.step_s(rows, prompt, cells + 1) >= step_s
    assert 0 <= costs.prefill_s(prompt) <= costs.prefill_s(prompt + 1) < math.inf


@settings(deadline=None)
@given(
    st.lists(observations, max_size=30),
    st.integers(0, 64),
    st.integers(0, 50_000),
    st.floats(0.001, 10),
)
def test_the_largest_chunk_fits_and_a_larger_one_does_not(
    seen: list[tuple[int, int, int, float]], rows: int, cells: int, target_s: float
) -> None:
    costs = Costs()
    for each in seen:
        costs.observe(*each)
    largest = costs.max_prompt_tokens(rows, cells, target_s)
    if largest:
        assert costs.step_s(rows, largest, cells) <= target_s * (1 + 1e-6)
    assert costs.step_s(rows, largest + 1, cells) >= target_s * (1 - 1e-6)
