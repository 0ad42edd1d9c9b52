"""Expected waits, against the same queue simulated to its end."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.engine.scheduler.cost_model import Costs, OutputLengths
from llmserve.engine.scheduler.scheduler import Limits, Outlook, in_turn
from llmserve.engine.worker.reporter import expected_waits
from tests.engine.scheduler.test_scheduler import (
    Arrival,
    Simulation,
    make_sequence,
    running_sequence,
)

LIMITS = Limits(max_batch=512, max_running=4, num_cells=4000, max_outputs=32, target_itl_s=10.0)
COSTS = Costs()


def outlook_of(num_generated: int) -> Outlook:
    """Answers are known to have so many tokens."""
    lengths = OutputLengths()
    for _ in range(300):
        lengths.observe(num_generated)
    return Outlook(COSTS, lengths, 0.0)


def test_with_a_free_slot_nobody_waits() -> None:
    running = [running_sequence(0, 10, 9)]
    assert expected_waits(running, [], LIMITS, outlook_of(50)) == [0.0]


def test_the_first_slot_is_free_when_the_first_answer_ends() -> None:
    running = [running_sequence(n, 10, 9) for n in range(4)]
    running[2].tokens += [0] * 30  # generated
    running[2].num_computed += 30
    waiting = [make_sequence(10, 100, 100), make_sequence(11, 100, 100)]
    first_s, second_s, newcomer_s = expected_waits(running, waiting, LIMITS, outlook_of(50))
    step_s = COSTS.step_s(4, 0, 66)
    assert first_s == pytest.approx(20 * step_s)
    assert second_s == pytest.approx(50 * step_s + COSTS.prefill_s(100))
    assert newcomer_s == pytest.approx(50 * step_s + 2 * COSTS.prefill_s(100))


def test_prompts_that_are_being_computed_hold_up_everybody() -> None:
    running = [running_sequence(n, 10, 9) for n in range(3)] + [running_sequence(3, 2000, 0)]
    (wait_s,) = expected_waits(running, [], LIMITS, outlook_of(50))
    assert wait_s >= COSTS.prefill_s(2000)


def test_who_needs_many_cells_waits_for_them() -> None:
    running = [running_sequence(0, 10, 9), running_sequence(1, 3000, 2999)]
    small, large = make_sequence(2, 100, 10), make_sequence(3, 2000, 10)
    small_s, large_s, _ = expected_waits(running, [small, large], LIMITS, outlook_of(50))
    assert small_s == 0
    assert large_s > 30 * COSTS.step_s(3, 0, 3008)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(2, 300), min_size=5, max_size=20),
    st.integers(5, 60),
    st.integers(1, 6),
)
def test_the_waits_are_about_what_they_turn_out_to_be(
    prompt_lens: list[int], num_generate: int, max_running: int
) -> None:
    """Where all answers are as long as expected, the last to enter waits as long as foretold."""
    limits = Limits(
        max_batch=512,
        max_running=max_running,
        num_cells=100_000,
        max_outputs=32,
        target_itl_s=10.0,
    )
    simulation = Simulation(limits, [Arrival(0.0, n, num_generate) for n in prompt_lens])
    simulation.lengths = outlook_of(num_generate).lengths
    simulation.take_arrivals()
    queue = in_turn(simulation.waiting, simulation.outlook)
    foretold = dict(zip(queue, expected_waits([], queue, limits, simulation.outlook), strict=False))
    entered: dict[object, float] = {}
    while not simulation.is_over:
        begin_s = simulation.now_s
        simulation.run_step()
        for sequence in simulation.admitted:
            entered.setdefault(sequence, begin_s)
    assert sorted(foretold.values()) == [foretold[s] for s in queue], "the order is that of turns"
    costs = simulation.outlook.costs
    for place, sequence in enumerate(queue):
        # Prompts that enter together are foretold one after the other.
        ahead = queue[max(0, place - max_running) : place]
        together_s = sum(costs.prefill_s(other.prompt_len) for other in ahead)
        waited_s = entered[sequence]
        assert 0.5 * waited_s - 1.5 <= foretold[sequence] <= 1.5 * waited_s + 1.5 + together_s
