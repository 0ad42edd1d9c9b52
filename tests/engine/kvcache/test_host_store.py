"""Parked states: the budget holds, what is used last leaves last, and nothing parked is wrong."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.engine.kvcache.host_store import Parked, Parking
from llmserve.engine.runtime import State


def state_of(tokens: list[int]) -> State:
    return np.array(tokens, dtype=np.uint8)


def park(parking: Parking[State], namespace: str, tokens: list[int], *, can_cut: bool) -> None:
    path = parking.tree.insert(namespace, tokens)
    for node in parking.lacking(path):
        start = node.start if can_cut else 0
        state = state_of(tokens[start : node.end])
        if not parking.put([node], Parked(start, node.end, state)):
            break
    parking.tree.prune(path[-1])
    parking.touch(path)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "x"]), st.lists(st.integers(0, 1), min_size=1, max_size=100)
        ),
        max_size=12,
    ),
    st.integers(0, 400),
    st.booleans(),
)
def test_what_is_found_is_what_was_parked(
    entries: list[tuple[str, list[int]]], budget_bytes: int, can_cut: bool
) -> None:
    parking = Parking[State](budget_bytes, can_cut=can_cut)
    for namespace, tokens in entries:
        known = parking.tree.match(namespace, tokens, len(tokens))
        pieces = {m.node.payload: m.end for m in known if m.node.payload} if can_cut else {}
        num_wasted = sum(parked.end - end for parked, end in pieces.items())  # of cut pieces
        park(parking, namespace, tokens, can_cut=can_cut)
        parking.check_integrity()
        if len(tokens) + num_wasted <= budget_bytes:  # the last one has what room there is
            path = parking.tree.match(namespace, tokens, len(tokens))
            assert path[-1].end == len(tokens)
            if not can_cut:
                assert path[-1].node.payload is not None
    for namespace, tokens in entries:
        for node, end in parking.tree.match(namespace, tokens, len(tokens)):
            if (parked := node.payload) is not None and (can_cut or end == node.end):
                assert parked.state[: end - parked.start].tolist() == tokens[parked.start : end]


def test_least_recently_used_leaves_first() -> None:
    parking = Parking[State](30, can_cut=True)
    a, b, c = [1] * 10, [2] * 10, [3] * 10
    for tokens in (a, b, c):
        park(parking, "", tokens, can_cut=True)
    parking.touch([match.node for match in parking.tree.match("", a, 10)])
    park(parking, "", [4] * 10, can_cut=True)
    found = [bool(parking.tree.match("", tokens, 10)) for tokens in (a, b, c)]
    assert found == [True, False, True]


def test_a_common_beginning_is_parked_once() -> None:
    parking = Parking[State](1000, can_cut=True)
    for last in range(10):
        park(parking, "", [7] * 64 + [last] * 4, can_cut=True)
    assert parking.used_bytes == 64 + 10 * 4


@pytest.mark.parametrize("can_cut", [True, False])
def test_what_does_not_fit_is_not_parked(can_cut: bool) -> None:
    parking = Parking[State](10, can_cut=can_cut)
    park(parking, "", [1] * 8, can_cut=can_cut)
    park(parking, "", [2] * 11, can_cut=can_cut)
    assert parking.used_bytes in (0, 8)
    parking.check_integrity()
    assert not parking.tree.match("", [2] * 11, 11)
