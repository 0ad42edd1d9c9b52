"""Parked states in host memory: at most so many bytes, least recently used out first.

A payload of the radix tree is a `Parked`. Where sequences can be cut, it holds the cells of a run
of tokens; nodes that were one when it was saved share it, and no node has one without its parent.
Where they cannot, it is a checkpoint: the whole state at the end of its node.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from llmserve.engine.radix import Node, RadixTree
from llmserve.engine.runtime import State

MAX_RUN = 64  # tokens parked in one piece: what a cut may waste, and what a file on disk holds


class Parked:
    __slots__ = ("end", "num_nodes", "start", "state")

    def __init__(self, start: int, end: int, state: State) -> None:
        self.start = start  # the tokens whose cells `state` holds
        self.end = end
        self.state = state
        self.num_nodes = 1  # that share it


ParkedNode = Node[Parked]


class Parking:
    def __init__(self, budget_bytes: int, *, can_cut: bool) -> None:
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self.tree = RadixTree[Parked](MAX_RUN if can_cut else 1 << 30, self._divide)
        self._can_cut = can_cut
        self._oldest_first: OrderedDict[ParkedNode, None] = OrderedDict()

    def put(self, node: ParkedNode, state: State) -> bool:
        """Park `state`, of `node`'s run. False if there is no room even without all the others.

        `node` has no payload; where sequences can be cut, its parent has one.
        """
        assert node.payload is None
        node.payload = Parked(node.start if self._can_cut else 0, node.end, state)
        self._oldest_first[node] = None
        self.used_bytes += state.nbytes
        kept = {node, *above(node)}
        while self.used_bytes > self.budget_bytes:
            candidates = (n for n in self._oldest_first if n not in kept and self._is_free(n))
            oldest = next(candidates, None)
            self._drop(oldest or node)
            if oldest is None:
                return False
        return True

    def _is_free(self, node: ParkedNode) -> bool:
        """Whether nothing that is parked needs it."""
        return not self._can_cut or all(c.payload is None for c in node.children.values())

    def _drop(self, node: ParkedNode) -> None:
        assert node.payload is not None
        del self._oldest_first[node]
        node.payload.num_nodes -= 1
        if not node.payload.num_nodes:
            self.used_bytes -= node.payload.state.nbytes
        node.payload = None
        self.tree.prune(node)

    def touch(self, nodes: Sequence[ParkedNode]) -> None:
        """These, from the beginning of a sequence on, were used now."""
        for node in reversed(nodes):  # so that what others depend on is dropped last
            if node.payload is not None:
                self._oldest_first.move_to_end(node)

    def _divide(self, upper: ParkedNode, lower: ParkedNode) -> None:
        """The tree has split a node."""
        if lower.payload is not None and self._can_cut:
            upper.payload = lower.payload
            upper.payload.num_nodes += 1
            self._oldest_first[upper] = None

    def check_integrity(self) -> None:
        """Assert the invariants; for tests."""
        self.tree.check_integrity()
        parked = [node for node in self.tree if node.payload is not None]
        assert set(parked) == set(self._oldest_first)
        states: dict[Parked, int] = {}
        for node in parked:
            assert node.payload is not None
            states[node.payload] = states.get(node.payload, 0) + 1
            if self._can_cut:
                assert node.payload.start <= node.start < node.end <= node.payload.end
                assert all(parent.payload is not None for parent in above(node))
            else:
                assert (node.payload.start, node.payload.end) == (0, node.end)
        assert all(state.num_nodes == count for state, count in states.items())
        assert self.used_bytes == sum(parked.state.nbytes for parked in states)
        assert self.used_bytes <= self.budget_bytes


def above(node: ParkedNode) -> Iterable[ParkedNode]:
    """The nodes that `node` follows, but for the root."""
    while node.parent is not None and node.parent.parent is not None:
        node = node.parent
        yield node
