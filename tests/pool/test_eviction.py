"""The pure decision: what leaves, what drains, and when there is no hope."""

import uuid

from hypothesis import given
from hypothesis import strategies as st

from llmserve.pool.eviction import Decision, Residency, Resident, choose_evictions

residents = st.lists(
    st.builds(
        Resident,
        key=st.uuids(),
        size_bytes=st.integers(1, 100),
        last_used_s=st.floats(0, 1000),
        residency=st.sampled_from(Residency),
    ),
    max_size=8,
    unique_by=lambda resident: resident.key,
)


def test_what_fits_loads_at_once() -> None:
    there = [Resident("a", 40, 1.0, Residency.IDLE)]
    assert choose_evictions(60, there, 100) == Decision(can_load=True)


def test_the_least_recently_used_idle_models_leave_first() -> None:
    there = [
        Resident("new", 30, 3.0, Residency.IDLE),
        Resident("old", 30, 1.0, Residency.IDLE),
        Resident("middle", 30, 2.0, Residency.IDLE),
    ]
    assert choose_evictions(60, there, 100) == Decision(evict=("old", "middle"))


def test_busy_models_drain_only_when_idle_ones_do_not_suffice() -> None:
    there = [Resident("busy", 50, 1.0, Residency.BUSY), Resident("idle", 40, 2.0, Residency.IDLE)]
    assert choose_evictions(50, there, 100) == Decision(evict=("idle",))
    assert choose_evictions(80, there, 100) == Decision(evict=("idle",), drain=("busy",))


def test_memory_that_is_coming_back_is_waited_for() -> None:
    there = [
        Resident("leaving", 50, 1.0, Residency.LEAVING),
        Resident("idle", 40, 0.0, Residency.IDLE),
    ]
    assert choose_evictions(60, there, 100) == Decision()


def test_nobody_is_evicted_for_what_cannot_fit() -> None:
    there = [
        Resident("pinned", 50, 1.0, Residency.PINNED),
        Resident("idle", 40, 0.0, Residency.IDLE),
    ]
    assert choose_evictions(60, there, 100) == Decision(never=True)


@given(st.integers(1, 200), residents, st.integers(0, 300))
def test_the_decision_makes_room_and_takes_no_more_than_it_must(
    need: int, there: list[Resident[uuid.UUID]], budget: int
) -> None:
    decision = choose_evictions(need, there, budget)
    by_key = {r.key: r for r in there}
    used = sum(r.size_bytes for r in there)
    coming = sum(r.size_bytes for r in there if r.residency is Residency.LEAVING)
    going = [by_key[key] for key in (*decision.evict, *decision.drain)]
    assert all(by_key[key].residency is Residency.IDLE for key in decision.evict)
    assert all(by_key[key].residency is Residency.BUSY for key in decision.drain)
    if decision.can_load:
        assert used + need <= budget
        assert not going
    elif decision.never:
        kept = sum(r.size_bytes for r in there if r.residency is Residency.PINNED)
        assert kept + need > budget
        assert not going
    else:
        assert used + need > budget
        freed = coming + sum(r.size_bytes for r in going)
        assert used - freed + need <= budget
        if going:  # the last one was needed
            assert used - freed + going[-1].size_bytes + need > budget
