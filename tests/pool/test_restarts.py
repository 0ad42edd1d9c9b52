from hypothesis import given
from hypothesis import strategies as st

from llmserve.pool.model import FIRST_PAUSE_S, MAX_IN_ROW, STEADY_S, Restarts

lives = st.lists(st.tuples(st.booleans(), st.floats(0, 2 * STEADY_S), st.floats(0, 100)))


def test_at_once_then_later_then_no_more() -> None:
    restarts = Restarts()
    restarts.note_crash(100.0)
    assert restarts.not_before_s == 100
    restarts.note_crash(101.0)
    assert restarts.not_before_s == 101 + FIRST_PAUSE_S
    before = restarts.is_over
    restarts.note_crash(103.0)
    at_third = restarts.is_over
    restarts.forgive()
    assert (before, at_third, restarts.is_over) == (False, True, False)
    assert restarts.not_before_s == 0
    assert restarts.num_crashes == 3


@given(lives)
def test_over_is_three_in_a_row(lives: list[tuple[bool, float, float]]) -> None:
    restarts, now_s, row = Restarts(), 0.0, 0
    for has_answered, lived_s, gap_s in lives:
        now_s += gap_s
        restarts.note_crash(now_s, has_answered=has_answered, lived_s=lived_s)
        row = 1 if has_answered or lived_s >= STEADY_S else row + 1
        assert restarts.is_over == (row >= MAX_IN_ROW)
        assert (restarts.not_before_s > now_s) == (row > 1)
    assert restarts.num_crashes == len(lives)


@given(st.integers(1, 200))
def test_who_answers_between_is_never_in_quarantine(num_crashes: int) -> None:
    restarts = Restarts()
    for now_s in range(num_crashes):
        restarts.note_crash(float(now_s), has_answered=True, lived_s=1)
        assert not restarts.is_over
        assert restarts.not_before_s <= now_s
