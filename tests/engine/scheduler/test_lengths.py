"""How long answers are expected to be."""

from hypothesis import given
from hypothesis import strategies as st

from llmserve.engine.scheduler.cost_model import OutputLengths


def test_it_learns_what_is_usual() -> None:
    lengths = OutputLengths()
    for n in range(200):
        lengths.observe(40 if n % 2 else 60)
    assert 45 <= lengths.left(0, 1000) <= 55
    assert lengths.left(30, 1000) == lengths.left(0, 1000) - 30


@given(st.lists(st.integers(0, 100_000)), st.integers(0, 100_000), st.integers(1, 100_000))
def test_at_least_one_token_is_left_and_at_most_what_was_asked_for(
    seen: list[int], num_generated: int, max_left: int
) -> None:
    lengths = OutputLengths()
    for each in seen:
        lengths.observe(each)
    assert 1 <= lengths.left(num_generated, max_left) <= max_left
