"""Who is refused, and when there should be room."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.engine.messages import QueueReport, Waiting
from llmserve.engine.scheduler.queue import Admission
from llmserve.errors import QueueFullError
from tests.policies import policy


def queue_of(waits_s: list[float], newcomer_wait_s: float) -> QueueReport:
    waiting = tuple(Waiting(request_id, wait_s) for request_id, wait_s in enumerate(waits_s))
    return QueueReport(waiting, newcomer_wait_s)


def test_requests_are_counted_beyond_the_slots() -> None:
    admission = Admission("m", 2, policy(max_queue=3))
    admission.update(queue_of([4.2, 7.0, 9.0], 12.0))
    admission.check_count(4)
    with pytest.raises(QueueFullError, match="2 requests at a time and 3 more") as caught:
        admission.check_count(5)
    assert caught.value.retry_after_s == 5, "when the first of the queue has its slot"
    with pytest.raises(QueueFullError) as caught:
        admission.check_count(6)
    assert caught.value.retry_after_s == 7


def test_without_a_queue_it_is_the_next_slot() -> None:
    admission = Admission("m", 1, policy(max_queue=0))
    admission.update(queue_of([], 33.3))
    with pytest.raises(QueueFullError) as caught:
        admission.check_count(1)
    assert caught.value.retry_after_s == 34


def test_tokens_of_waiting_prompts_are_bounded() -> None:
    admission = Admission("m", 2, policy(max_queue_tokens=100))
    admission.check_prompt(5000, must_wait=True)  # nothing waits: any prompt may
    for request_id in range(3):
        admission.join(request_id, 30)
    admission.update(queue_of([1.0, 20.0, 30.0], 40.0))
    admission.check_prompt(10, must_wait=True)
    with pytest.raises(QueueFullError, match=r"prompts of 90 tokens .* with 11 more .* 100") as e:
        admission.check_prompt(11, must_wait=True)
    assert e.value.retry_after_s == 1
    with pytest.raises(QueueFullError) as e:
        admission.check_prompt(50, must_wait=True)  # two of them have to go first
    assert e.value.retry_after_s == 20
    admission.leave(0)
    admission.leave(0)
    admission.leave(77)
    admission.check_prompt(40, must_wait=True)


def test_who_would_wait_for_too_long_hears_it_at_once() -> None:
    admission = Admission("m", 2, policy(queue_timeout_s=30))
    admission.update(queue_of([10.0], 41.0))
    with pytest.raises(QueueFullError, match=r"about 41\.0 s, longer than the 30 s") as caught:
        admission.check_prompt(1, must_wait=True)
    assert caught.value.retry_after_s == 11
    admission.check_prompt(1, must_wait=False)
    admission.update(QueueReport())
    admission.check_prompt(1, must_wait=True)


@given(st.lists(st.floats(0, 1e6), max_size=5).map(sorted), st.floats(0, 1e9), st.integers(3, 100))
def test_a_retry_after_is_sane(waits_s: list[float], newcomer_s: float, num_active: int) -> None:
    admission = Admission("m", 1, policy(max_queue=2))
    admission.update(queue_of(waits_s, newcomer_s))
    with pytest.raises(QueueFullError) as caught:
        admission.check_count(num_active)
    assert caught.value.retry_after_s is not None
    assert 1 <= caught.value.retry_after_s <= 120
