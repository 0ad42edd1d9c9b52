import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.auth.rate_limit import Bucket

RATES = st.integers(1, 1_000_000)
PAUSES = st.floats(0, 600)
AMOUNTS = st.integers(-1000, 100_000)


def test_it_is_full_at_first_and_refills() -> None:
    bucket = Bucket(60, 100)
    assert bucket.level(100) == 60
    bucket.take(60, 100)
    assert bucket.level(100) == 0
    assert bucket.level(110) == 10
    assert bucket.level(1000) == 60


def test_a_debt_is_paid_before_the_next_may_begin() -> None:
    bucket = Bucket(60, 0)
    assert bucket.wait_s(0) == 0
    bucket.take(100, 0)
    assert bucket.level(0) == -40
    assert bucket.wait_s(0) == 41
    assert bucket.wait_s(40.5) == 0.5
    assert bucket.wait_s(41) == 0
    assert bucket.full_in_s(0) == 100


def test_what_was_taken_too_much_is_given_back() -> None:
    bucket = Bucket(60, 0)
    bucket.take(30, 0)
    bucket.take(-10, 0)
    assert bucket.level(0) == 40


@pytest.mark.parametrize(("rate", "level"), [(600, 550), (10, -40), (60, 10)])
def test_another_rate_forgives_nothing(rate: int, level: int) -> None:
    bucket = Bucket(60, 0)
    bucket.take(50, 0)
    bucket.resize(rate, 0)
    assert bucket.level(0) == level


@given(RATES, st.lists(st.tuples(PAUSES, AMOUNTS), max_size=20))
def test_never_more_than_a_minute_brings(rate: int, steps: list[tuple[float, int]]) -> None:
    bucket, now_s = Bucket(rate, 0), 0.0
    for pause_s, amount in steps:
        now_s += pause_s
        bucket.take(amount, now_s)
        assert bucket.level(now_s) <= rate
        assert bucket.level(now_s + 1e9) == rate
        assert bucket.full_in_s(now_s) >= 0


@given(RATES, st.lists(st.tuples(PAUSES, st.integers(0, 100_000)), max_size=20))
def test_what_is_used_in_any_time_is_bounded(rate: int, steps: list[tuple[float, int]]) -> None:
    """Who begins only when allowed uses at most a minute's worth, what came since, and one more."""
    bucket, now_s, used = Bucket(rate, 0), 0.0, 0
    for pause_s, amount in steps:
        now_s += pause_s
        if not bucket.wait_s(now_s):
            assert used <= rate + now_s * rate / 60 + 1e-3
            bucket.take(amount, now_s)
            used += amount


@given(RATES, st.integers(0, 10_000_000), PAUSES)
def test_the_wait_is_right(rate: int, amount: int, now_s: float) -> None:
    bucket = Bucket(rate, now_s)
    bucket.take(amount, now_s)
    wait_s = bucket.wait_s(now_s)
    assert bucket.level(now_s + wait_s) >= 1 - 1e-3
    if wait_s > 1e-3:
        assert bucket.wait_s(now_s + wait_s / 2) > 0
    assert bucket.level(now_s + bucket.full_in_s(now_s)) >= rate - 1e-3


@given(RATES, st.lists(st.tuples(PAUSES, PAUSES), max_size=20))
def test_looking_changes_nothing(rate: int, steps: list[tuple[float, float]]) -> None:
    looked, blind, now_s = Bucket(rate, 0), Bucket(rate, 0), 0.0
    for pause_s, amount in steps:
        now_s += pause_s
        looked.level(now_s - pause_s / 2)
        looked.wait_s(now_s)
        looked.take(int(amount), now_s)
        blind.take(int(amount), now_s)
    assert looked.level(now_s) == blind.level(now_s)
