"""The policy: what is tried again, after how long, and where."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.config.provider import Retry
from llmserve.config.units import Duration
from llmserve.remote.retry import FIRST_PAUSE_S, Failure, Load, choose, is_retried, pause_s

FAILURES = st.builds(
    Failure,
    status=st.none() | st.integers(300, 599),
    retry_after_s=st.none() | st.floats(0, 1000),
    is_final=st.booleans(),
)
POLICIES = st.builds(
    Retry, attempts=st.integers(1, 10), max_wait=st.builds(Duration, st.floats(0, 100))
)


@pytest.mark.parametrize(
    ("status", "retried"),
    [(None, True), (408, True), (409, True), (429, True), (500, True), (503, True), (529, True)]
    + [(status, False) for status in (302, 400, 401, 403, 404, 413, 422)],
)
def test_what_is_tried_again(status: int | None, retried: bool) -> None:
    assert is_retried(Failure(status)) is retried
    assert not is_retried(Failure(status, is_final=True))


def test_pauses_double_and_are_jittered() -> None:
    policy = Retry(attempts=10, max_wait=Duration(1))
    longest = [pause_s(policy, n, Failure(), left_s=99, jitter=1) for n in range(1, 5)]
    assert longest == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 1, 1]
    assert pause_s(policy, 1, Failure(), left_s=99, jitter=0) == FIRST_PAUSE_S / 2


def test_what_the_provider_asks_for_is_waited_in_full_or_not_at_all() -> None:
    policy = Retry(max_wait=Duration(10))
    assert pause_s(policy, 1, Failure(429, 7), left_s=99, jitter=0) == 7
    assert pause_s(policy, 1, Failure(429, 11), left_s=99, jitter=0) is None
    assert pause_s(policy, 1, Failure(429, 7), left_s=6, jitter=0) is None


@given(POLICIES, st.integers(1, 10), FAILURES, st.floats(0, 100), st.floats(0, 1), st.booleans())
def test_no_pause_is_beyond_a_bound(
    policy: Retry,
    num_attempts: int,
    failure: Failure,
    left_s: float,
    jitter: float,
    is_elsewhere: bool,
) -> None:
    wait_s = pause_s(
        policy, num_attempts, failure, left_s=left_s, jitter=jitter, is_elsewhere=is_elsewhere
    )
    if wait_s is None:
        return
    assert num_attempts < policy.attempts
    assert is_retried(failure)
    assert 0 <= wait_s <= policy.max_wait
    assert wait_s < left_s
    assert wait_s == 0 or not is_elsewhere


@pytest.mark.parametrize(
    ("loads", "chosen"),
    [
        ([Load(0, 0, 0)], 0),
        ([Load(2, 0, 0), Load(1, 0, 0)], 1),
        ([Load(1, 0, 0), Load(1, 0, 0)], 0),
        ([Load(0, 1, 0), Load(5, 0, 0)], 1),
        ([Load(0, 0, 3), Load(5, 2, 0)], 1),
        ([Load(0, 0, 3), Load(0, 0, 1)], None),
    ],
)
def test_the_address_is_untried_then_least_busy_then_first(
    loads: list[Load], chosen: int | None
) -> None:
    assert choose(loads) == chosen
