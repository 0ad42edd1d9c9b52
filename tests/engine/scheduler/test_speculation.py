"""Guesses are what stood there before, and drafting stops where it does not pay."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.engine.scheduler.speculation import MATCH_LENS, MAX_DRAFT, MIN_GAIN, Drafter, best_len


def slow_guess(tokens: list[int]) -> tuple[int, ...]:
    """By looking everywhere: what followed the last place of the longest match length."""
    for length in MATCH_LENS:
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == tokens[-length:]:
                return cut_where_it_changed(end, tokens)
    return ()


def cut_where_it_changed(begin: int, tokens: list[int]) -> tuple[int, ...]:
    length = MATCH_LENS[-1]
    for end in range(begin, min(begin + MAX_DRAFT, len(tokens))):
        run = tokens[end - length : end]
        followers = [
            tokens[at] for at in range(length, len(tokens)) if tokens[at - length : at] == run
        ]
        if len({*followers[-2:]}) > 1:
            return tuple(tokens[begin:end])
    return tuple(tokens[begin : begin + MAX_DRAFT])


@given(st.lists(st.integers(0, 2), max_size=60), st.lists(st.integers(1, 9), max_size=20))
def test_a_guess_is_what_followed_the_last_time(tokens: list[int], growths: list[int]) -> None:
    drafter = Drafter()
    num_tokens = 0
    for growth in growths:
        num_tokens = min(num_tokens + growth, len(tokens))
        assert tuple(drafter.guess(tokens[:num_tokens])) == slow_guess(tokens[:num_tokens])


def test_in_a_list_what_stands_between_the_numbers_is_guessed() -> None:
    tokens = [token for n in range(4) for token in (7, 8, 50 + n, 9, 10, 11, 12)]
    drafter = Drafter()
    assert list(drafter.guess(tokens)) == [7, 8], "the number has been another each time"
    tokens += [7, 8, 54, 9, 10]
    assert list(drafter.guess(tokens)) == [11, 12, 7, 8]


def test_a_copy_is_trusted_and_noise_is_not() -> None:
    text = list(range(100, 160))
    copied = Drafter()
    for end in range(62, 120):
        copied.guess((text + text)[:end])
    assert copied.acceptance > 0.9

    rng = random.Random(1)
    noise = [rng.randrange(4) for _ in range(300)]
    noisy = Drafter()
    for end in range(2, 300):
        noisy.guess(noise[:end])
    assert 0.1 < noisy.acceptance < 0.4  # a guess of four is right every fourth time


def test_trust_comes_back_without_a_draft() -> None:
    rng = random.Random(2)
    noise = [rng.randrange(4) for _ in range(300)]
    text = list(range(100, 150))
    drafter = Drafter()
    for end in range(2, 300):
        drafter.guess(noise[:end])
    distrust = drafter.acceptance
    tokens = noise + text + text
    for end in range(350, 400):
        drafter.guess(tokens[:end])
    assert drafter.acceptance > 0.7 > distrust


def test_a_wrong_guess_ends_the_comparison() -> None:
    drafter = Drafter()
    drafter.guess([1, 2, 3, 4, 5, 6, 7, 1, 2])
    before = drafter.acceptance
    drafter.guess([1, 2, 3, 4, 5, 6, 7, 1, 2, 9, 4, 5, 6])  # 4, 5, 6 came true behind a wrong 9
    assert drafter.acceptance < before


def two_costs(first_s: float, more_s: float) -> Callable[[int], float]:
    return lambda length: first_s + more_s * length


@pytest.mark.parametrize(
    ("acceptance", "num_others", "more_s", "expected"),
    [
        (1.0, 0, 0.004, 10),  # sure guesses at half the price of a step: all of them
        (0.0, 0, 0.001, 0),
        (0.5, 0, 0.009, 0),  # as dear as decoding
        (0.9, 15, 0.009, 0),  # fifteen others would wait
    ],
)
def test_the_length_follows_the_costs(
    acceptance: float, num_others: int, more_s: float, expected: int
) -> None:
    assert best_len(acceptance, 10, num_others, two_costs(0.009, more_s)) == expected


@given(
    st.floats(0, 1),
    st.integers(0, MAX_DRAFT),
    st.integers(0, 16),
    st.floats(1e-4, 1),
    st.floats(1e-5, 1),
)
def test_no_other_length_is_expected_to_be_faster(
    acceptance: float, max_len: int, num_others: int, first_s: float, more_s: float
) -> None:
    step_s = two_costs(first_s, more_s)

    def rate(length: int) -> float:
        return (num_others + sum(acceptance**i for i in range(length + 1))) / step_s(length)

    chosen = best_len(acceptance, max_len, num_others, step_s)
    assert 0 <= chosen <= max_len
    best = max(rate(length) for length in range(max_len + 1))
    assert rate(chosen) >= best / MIN_GAIN * (1 - 1e-9)
    if chosen:
        assert rate(chosen) >= best * (1 - 1e-9)
        assert rate(chosen) >= rate(0) * MIN_GAIN * (1 - 1e-9)
