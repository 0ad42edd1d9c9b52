"""The breaker as a state machine with a clock of its own."""

from hypothesis import given
from hypothesis import strategies as st

from llmserve.remote.breaker import (
    FIRST_PAUSE_S,
    MAX_PAUSE_S,
    NUM_FAILURES,
    Breaker,
    BreakerState,
)


def fail(breaker: Breaker, now_s: float) -> None:
    breaker.fail(now_s, is_trial=breaker.enter(now_s))


def opened(now_s: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(NUM_FAILURES):
        fail(breaker, now_s)
    return breaker


def test_it_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker()
    for _ in range(10):
        for _ in range(NUM_FAILURES - 1):
            fail(breaker, 0)
        breaker.enter(0)
        breaker.succeed()
    assert breaker.state(0) is BreakerState.CLOSED
    assert opened().state(0) is BreakerState.OPEN


def test_it_is_half_open_when_the_pause_is_over_and_lets_one_pass() -> None:
    breaker = opened(now_s=100)
    assert breaker.wait_s(101) == FIRST_PAUSE_S - 1
    now_s = 100 + FIRST_PAUSE_S
    assert breaker.state(now_s) is BreakerState.HALF_OPEN
    assert breaker.wait_s(now_s) == 0
    assert breaker.enter(now_s)
    assert breaker.wait_s(now_s) > 0
    breaker.succeed()
    assert breaker.state(now_s) is BreakerState.CLOSED
    assert not breaker.enter(now_s)


def test_a_failed_trial_doubles_the_pause_up_to_a_bound() -> None:
    breaker = opened()
    now_s, pauses = 0.0, []
    for _ in range(8):
        pauses.append(breaker.wait_s(now_s))
        now_s += pauses[-1]
        fail(breaker, now_s)
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == MAX_PAUSE_S


def test_a_trial_that_was_given_up_leaves_room_for_another() -> None:
    breaker = opened()
    breaker.leave(is_trial=breaker.enter(FIRST_PAUSE_S))
    assert breaker.wait_s(FIRST_PAUSE_S) == 0


def test_late_failures_of_old_attempts_decide_nothing() -> None:
    breaker = opened()
    breaker.fail(1, is_trial=False)
    assert breaker.wait_s(1) == FIRST_PAUSE_S - 1
    is_trial = breaker.enter(FIRST_PAUSE_S)
    breaker.fail(FIRST_PAUSE_S, is_trial=False)
    breaker.leave(is_trial=False)
    assert breaker.wait_s(FIRST_PAUSE_S) > 0, "the trial still runs"
    breaker.fail(FIRST_PAUSE_S, is_trial=is_trial)
    assert breaker.wait_s(FIRST_PAUSE_S) == 2 * FIRST_PAUSE_S


@given(st.lists(st.tuples(st.floats(0, 30), st.sampled_from(["succeed", "fail", "leave"]))))
def test_any_history_keeps_the_pause_bounded_and_one_success_closes(
    steps: list[tuple[float, str]],
) -> None:
    breaker, now_s = Breaker(), 0.0
    for step_s, end in steps:
        now_s += step_s
        assert 0 <= breaker.wait_s(now_s) <= MAX_PAUSE_S
        if breaker.wait_s(now_s):
            assert breaker.state(now_s) is not BreakerState.CLOSED
            continue
        is_trial = breaker.enter(now_s)
        assert is_trial == (breaker.state(now_s) is BreakerState.HALF_OPEN)
        if end == "succeed":
            breaker.succeed()
            assert breaker.state(now_s) is BreakerState.CLOSED
        elif end == "fail":
            breaker.fail(now_s, is_trial=is_trial)
        else:
            breaker.leave(is_trial=is_trial)
