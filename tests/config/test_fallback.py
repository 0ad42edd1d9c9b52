"""Chains and cycles of stand-ins, against slow references on random graphs."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from llmserve.config.fallback import chain, way_back

NAMES = "abcdef"
GRAPHS = st.fixed_dictionaries({name: st.lists(st.sampled_from(NAMES)) for name in NAMES})


def reachable(name: str, graph: dict[str, list[str]]) -> set[str]:
    """In one step or more."""
    found = set(graph[name])
    while more := {b for a in found for b in graph[a]} - found:
        found |= more
    return found


@given(GRAPHS, st.sampled_from(NAMES))
def test_a_way_back_is_found_exactly_where_there_is_one(
    graph: dict[str, list[str]], name: str
) -> None:
    way = way_back(name, graph)
    assert (way is not None) == (name in reachable(name, graph))
    if way:
        assert way[0] == way[-1] == name
        assert all(b in graph[a] for a, b in itertools.pairwise(way))


@given(GRAPHS, st.sampled_from(NAMES))
def test_a_chain_has_everybody_once_and_the_own_stand_ins_in_order(
    graph: dict[str, list[str]], name: str
) -> None:
    acyclic = {a: [b for b in others if b > a] for a, others in graph.items()}
    found = chain(name, acyclic)
    assert found[0] == name
    assert len(found) == len(set(found))
    assert set(found) == {name} | reachable(name, acyclic)
    if acyclic[name]:
        assert found[1] == acyclic[name][0]
