"""The exact sampler against a slow reference in float64 that sorts everything."""

import tracemalloc
from collections import Counter
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmserve.core import SamplingParams
from llmserve.engine.sampling.sampler import (
    GREEDY_BELOW,
    Floats,
    Sampler,
    candidates,
    choose_tokens,
)

EOG = frozenset([1, 4])
INF = float("inf")
NAN = float("nan")

# The sampler computes in float32, so a token that lies this close to a limit may fall either side.
TOLERANCE = 1e-5


class Reference(NamedTuple):
    """What the sampler should do: the tokens by falling probability, how many of them may be drawn
    (at least, at most), and everybody's probability relative to the first.
    """

    order: list[int]
    min_size: int
    max_size: int
    weights: NDArray[np.float64]


def adjusted(logits: Floats, params: SamplingParams, generated: list[int]) -> NDArray[np.float64]:
    """Bias and OpenAI's penalties: mu[j] - c[j] * frequency - (c[j] > 0) * presence."""
    scores = logits.astype(np.float64)
    for token, bias in params.logit_bias.items():
        scores[token] += bias
    for token, count in Counter(generated).items():
        scores[token] -= count * params.frequency_penalty + params.presence_penalty
    if params.ignore_eos:
        scores[sorted(EOG)] = -INF
    return scores


def reference(logits: Floats, params: SamplingParams, generated: list[int]) -> Reference | None:
    scores = adjusted(logits, params, generated)
    if not np.isfinite(scores.max()):
        return None
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    weights = np.exp((scores - scores.max()) / max(params.temperature, GREEDY_BELOW))
    sizes = []
    for slack in (-TOLERANCE, TOLERANCE):
        size = len(order)
        if params.temperature < GREEDY_BELOW:
            size = 1
        if params.top_k:
            size = min(size, params.top_k)
        if params.top_p < 1:
            kept = weights[order[:size]]
            target = min(1.0, params.top_p * (1 + slack)) * kept.sum()
            size = next((n for n in range(1, size) if kept[:n].sum() >= target), size)
        if params.min_p:
            floor = min(1.0, params.min_p * (1 - slack))
            size = sum(bool(weights[token] >= floor) for token in order[:size])
        sizes.append(size)
    return Reference(order, sizes[0], sizes[1], weights)


# A coarse grid makes ties common and keeps unequal logits apart in float32.
logit = st.one_of(
    st.integers(-40, 40).map(lambda n: n / 4),
    st.sampled_from([-INF, 0.0, -3e38, -1e4, 1e4]),
)
rows = st.lists(logit, min_size=5, max_size=40).map(lambda row: np.array(row, dtype=np.float32))
quarters = st.integers(-8, 8).map(lambda n: n / 4)
params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-9, 1e-4, 1e-3, 0.1, 0.7, 1.0, 1.3, 2.0]),
    top_k=st.sampled_from([0, 0, 1, 2, 3, 7, 39, 40, 1000]),
    top_p=st.one_of(
        st.sampled_from([1.0, 1.0, 1 - 1e-16, 1 - 1e-9, 0.999999, 1e-30, 5e-324, 0.5]),
        st.floats(0.001, 1.0),
    ),
    min_p=st.one_of(st.sampled_from([0.0, 0.0, 1.0, 1e-30]), st.floats(0.0, 1.0)),
    frequency_penalty=quarters,
    presence_penalty=quarters,
    logit_bias=st.dictionaries(st.integers(0, 4), st.sampled_from([-100.0, -1.5, 0.25, 100.0])),
    ignore_eos=st.booleans(),
)
histories = st.lists(st.integers(0, 4), max_size=6)


def make_sampler(
    params: SamplingParams, vocab_size: int, *, seed: int = 0, generated: list[int] | None = None
) -> Sampler:
    sampler = Sampler(params, seed=seed, vocab_size=vocab_size, eog_tokens=EOG)
    for token in generated or []:
        sampler.accept(token)
    return sampler


@given(rows, params)
def test_support_and_probabilities(row: Floats, params: SamplingParams) -> None:
    """`candidates` alone: temperature, top_k, top_p and min_p in all combinations."""
    plain = SamplingParams(
        temperature=max(params.temperature, GREEDY_BELOW),
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
    )
    expected = reference(row, plain, [])
    if expected is None:
        return
    with np.errstate(over="ignore"):  # as in `Sampler.choose`
        ids, weights = candidates(row, float(row.max()), plain)
    tokens = list(range(len(row))) if ids is None else [int(token) for token in ids]
    assert len(set(tokens)) == len(tokens) == len(weights)
    assert weights.max() == 1
    if ids is not None:
        assert list(weights) == sorted(weights, reverse=True)
    # Whatever underflows to no weight is never drawn, listed or not.
    drawable = {token for token, weight in zip(tokens, weights, strict=True) if weight > 0}
    at_least = {t for t in expected.order[: expected.min_size] if expected.weights[t] > 1e-37}
    assert at_least <= drawable <= set(expected.order[: expected.max_size])
    np.testing.assert_allclose(weights, expected.weights[tokens], rtol=1e-3, atol=1e-37)


@given(rows, params, histories, st.integers(0, 2**63 - 1))
@example(np.array([3e38, -3e38, 0, 0, 0], np.float32), SamplingParams(), [], 0)
@example(np.array([0, INF, 0, 0, INF], np.float32), SamplingParams(ignore_eos=True), [], 0)
@example(np.array([-INF, 0, -INF, -INF, 0], np.float32), SamplingParams(ignore_eos=True), [], 0)
def test_what_is_drawn_is_in_the_support(
    row: Floats, params: SamplingParams, generated: list[int], seed: int
) -> None:
    """The whole `Sampler`, with bias, penalties and ignore_eos."""
    sampler = make_sampler(params, len(row), seed=seed, generated=generated)
    finite = np.where(np.isposinf(row), np.float32(-INF), row) if params.ignore_eos else row
    expected = reference(finite, params, generated)
    token = sampler.choose(row)
    if expected is None:
        assert token is None
    elif token is not None:
        assert token in expected.order[: expected.max_size]
        assert expected.weights[token] > 0
        assert not (params.ignore_eos and token in EOG)
    else:
        assert np.isposinf(row).any()


@given(rows, params, histories)
def test_greedy_takes_the_first_maximum(
    row: Floats, params: SamplingParams, generated: list[int]
) -> None:
    greedy = SamplingParams(
        temperature=0,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        logit_bias=params.logit_bias,
        ignore_eos=params.ignore_eos,
    )
    expected = reference(row, greedy, generated)
    token = make_sampler(greedy, len(row), generated=generated).choose(row)
    assert token == (expected.order[0] if expected else None)


@given(st.lists(st.tuples(rows.map(lambda r: np.resize(r, 8)), params), max_size=6), st.data())
def test_a_batch_equals_its_rows_one_by_one(
    requests: list[tuple[Floats, SamplingParams]], data: st.DataObject
) -> None:
    batched = [make_sampler(p, 8, seed=i) for i, (_, p) in enumerate(requests)]
    alone = [make_sampler(p, 8, seed=i) for i, (_, p) in enumerate(requests)]
    for _ in range(3):
        rows = [np.roll(row, data.draw(st.integers(0, 7))) for row, _ in requests]
        logits = np.array(rows, dtype=np.float32).reshape(len(rows), 8)
        tokens = choose_tokens(logits, batched)
        assert tokens == [s.choose(row) for s, row in zip(alone, logits, strict=True)]
        for samplers in (batched, alone):
            for sampler, token in zip(samplers, tokens, strict=True):
                if token is not None:
                    sampler.accept(token)


BAD_ROWS = {
    "nan": [NAN, 0, 1, 2, 3],
    "nan last": [0, 1, 2, 3, NAN],
    "inf": [0, INF, 1, 2, 3],
    "nothing": [-INF] * 5,
    "nan and inf": [INF, NAN, 0, 0, 0],
}


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("bad", BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_none_and_touches_nobody_else(bad: list[float], temperature: float) -> None:
    params = SamplingParams(temperature=temperature, top_p=0.9)
    biased = SamplingParams(temperature=temperature, logit_bias={0: 1.0})
    good = [0.0, 1.0, 2.0, 3.0, 4.0]
    samplers = [make_sampler(p, 5, seed=7) for p in (params, params, biased, biased, params)]
    alone = [make_sampler(p, 5, seed=7) for p in (params, biased, params)]
    for _ in range(10):
        logits = np.array([good, bad, bad, good, good], dtype=np.float32)
        first, none, none_too, fourth, fifth = choose_tokens(logits, samplers)
        assert none is None
        assert none_too is None
        assert [first, fourth, fifth] == [s.choose(logits[0]) for s in alone]


def test_a_bad_row_takes_no_draw_from_its_generator() -> None:
    row = np.zeros(100, dtype=np.float32)
    one, two = (make_sampler(SamplingParams(temperature=1), 100, seed=3) for _ in range(2))
    assert one.choose(np.full(100, np.nan, dtype=np.float32)) is None
    assert [one.choose(row) for _ in range(20)] == [two.choose(row) for _ in range(20)]


def test_no_samplers() -> None:
    assert choose_tokens(np.empty((0, 5), dtype=np.float32), []) == []


def test_the_same_seed_draws_the_same_and_another_seed_does_not() -> None:
    row = np.zeros(1000, dtype=np.float32)

    def draw(seed: int) -> list[int | None]:
        sampler = make_sampler(SamplingParams(temperature=1), 1000, seed=seed)
        return [sampler.choose(row) for _ in range(20)]

    assert draw(5) == draw(5)
    assert len({tuple(draw(seed)) for seed in (0, 1, 5, 2**53, 2**63 - 1)}) == 5


def test_generators_are_private() -> None:
    """Who else is in the batch, and what they draw, changes nobody's tokens."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(30, 4, 50)).astype(np.float32)
    params = SamplingParams(temperature=1, top_p=0.9)
    together = [make_sampler(params, 50, seed=seed) for seed in range(4)]
    drawn = [choose_tokens(step, together) for step in logits]
    for index in range(4):
        alone = make_sampler(params, 50, seed=index)
        assert [alone.choose(step[index]) for step in logits] == [row[index] for row in drawn]


def test_penalties_count_generated_tokens_by_openais_formula() -> None:
    row = np.array([10.0, 9.0, 8.0, 7.0, -50.0], dtype=np.float32)
    params = SamplingParams(temperature=0, frequency_penalty=0.5, presence_penalty=0.75)
    sampler = make_sampler(params, 5)
    drawn: list[int] = []
    for _ in range(12):
        token = sampler.choose(row)
        assert token == int(adjusted(row, params, drawn).argmax())
        drawn.append(token)
        sampler.accept(token)
    assert set(drawn) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, top_p=0.9),
        SamplingParams(temperature=1.5, top_k=4),
        SamplingParams(temperature=1.0, min_p=0.2, logit_bias={5: 1.0}),
        SamplingParams(temperature=2.0, top_k=6, top_p=0.8, min_p=0.1),
    ],
)
def test_frequencies_match_the_probabilities(params: SamplingParams) -> None:
    """Chi-square with a fixed seed; 30 is beyond the 99.99 % point of 7 degrees of freedom."""
    row = np.array([2.0, 1.5, 1.5, 1.0, 0.0, -0.5, -1.0, -3.0], dtype=np.float32)
    expected = reference(row, params, [])
    assert expected
    assert expected.min_size == expected.max_size
    support = expected.order[: expected.min_size]
    weights = expected.weights[support]
    probabilities = weights / weights.sum()
    num_draws = 20_000
    sampler = make_sampler(params, len(row), seed=12345)
    counts = Counter(sampler.choose(row) for _ in range(num_draws))
    assert set(counts) <= set(support)
    observed = np.array([counts[token] for token in support])
    wanted = probabilities * num_draws
    assert ((observed - wanted) ** 2 / wanted).sum() < 30


def test_a_large_vocabulary_is_cut_exactly() -> None:
    """The cut-off search of `_nucleus`, with flat tails that force every one of its rounds."""
    rng = np.random.default_rng(1)
    for scale in (0.01, 0.5, 3.0, 20.0):
        row = (rng.normal(size=5000) * scale).astype(np.float32)
        for top_p in (1e-9, 0.3, 0.95, 0.999999, 1 - 1e-12):
            params = SamplingParams(temperature=1, top_p=top_p)
            weights = np.sort(np.exp(row.astype(np.float64) - row.max()))[::-1]
            cumulative = np.cumsum(weights) / weights.sum()
            ids, kept = candidates(row, float(row.max()), params)
            assert ids is not None
            assert cumulative[len(kept) - 1] >= top_p - 1e-6
            assert len(kept) == 1 or cumulative[len(kept) - 2] <= top_p + 1e-6


def test_drawing_from_a_large_vocabulary_inverts_its_cumulative_distribution() -> None:
    """Every generator draw u takes the token where the cumulative probability passes u."""
    rng = np.random.default_rng(2)
    row = (rng.normal(size=10_007) * 2).astype(np.float32)
    row[rng.random(len(row)) < 0.9] = -INF  # most tokens have no weight at all
    row[-300:] = -INF
    weights = np.exp(row.astype(np.float64) - row.max())
    cumulative = np.cumsum(weights) / weights.sum()
    sampler = make_sampler(SamplingParams(temperature=1), len(row), seed=9)
    for share in np.random.Generator(np.random.PCG64(9)).random(2000):
        token = sampler.choose(row)
        assert token is not None
        assert weights[token] > 0
        assert cumulative[token] - weights[token] / weights.sum() - 1e-6 <= share
        assert share <= cumulative[token] + 1e-6


# -- what a sampler keeps and leaves -------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(frequency_penalty=1.0),
        SamplingParams(presence_penalty=-1.0, temperature=0),
        SamplingParams(logit_bias={3: 1.0}),
        SamplingParams(ignore_eos=True),
    ],
)
def test_a_sampler_that_has_not_chosen_holds_no_vocabulary(params: SamplingParams) -> None:
    vocab_size = 1_000_000
    row = np.zeros(vocab_size, dtype=np.float32)
    tracemalloc.start()
    try:
        samplers = [
            Sampler(params, seed=seed, vocab_size=vocab_size, eog_tokens=EOG) for seed in range(20)
        ]
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
        samplers[0].choose(row)
        assert tracemalloc.get_traced_memory()[0] > vocab_size * 4, "or this measures nothing"
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("token", [-1, 5])
def test_a_bias_outside_the_vocabulary_is_found_at_once(token: int) -> None:
    """Not by the first choice, where it would end the worker."""
    with pytest.raises(AssertionError):
        Sampler(SamplingParams(logit_bias={token: 1.0}), seed=0, vocab_size=5, eog_tokens=EOG)


@given(st.lists(params, min_size=1, max_size=4), st.integers(0, 100))
def test_choosing_leaves_the_logits_as_they_are(several: list[SamplingParams], seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(len(several), 50)).astype(np.float32)
    before = logits.copy()
    samplers = [Sampler(p, seed=seed, vocab_size=50, eog_tokens=EOG) for p in several]
    for _ in range(2):
        for sampler, token in zip(samplers, choose_tokens(logits, samplers), strict=True):
            assert token is not None
            sampler.accept(token)
    np.testing.assert_array_equal(logits, before)
