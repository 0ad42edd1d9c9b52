"""What is parked: at most so many bytes, least recently used out first.

The same books serve host memory, where a payload of the radix tree has the state itself, and disk,
where it has the name of a file. Where sequences can be cut, it is the cells of a run of tokens;
nodes that were one when it was saved share it, and no node has one without its parent. Where they
cannot, it is a checkpoint: the whole state at the end of its node.

What is pinned is never dropped for want of room. What is lent to another namespace is the same
payload in nodes of both.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from llmserve.engine.kvcache.radix_tree import Node, RadixTree

MAX_RUN = 64  # tokens parked in one piece: what a cut may waste, and what a file on disk holds


class Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


S = TypeVar("S", bound=Sized)


class Parked(Generic[S]):
    __slots__ = ("end", "num_nodes", "start", "state")

    def __init__(self, start: int, end: int, state: S) -> None:
        self.start = start  # the tokens whose cells `state` holds
        self.end = end
        self.state = state
        self.num_nodes = 0  # that share it


ParkedNode = Node[Parked[S]]


class Parking(Generic[S]):
    def __init__(
        self,
        budget_bytes: int,
        *,
        can_cut: bool,
        on_drop: Callable[[S], None] = lambda state: None,
    ) -> None:
        """`on_drop` is told what is no longer parked."""
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self.tree = RadixTree[Parked[S]](MAX_RUN if can_cut else 1 << 30, self._divide)
        self.can_cut = can_cut
        self._on_drop = on_drop
        self._oldest_first: OrderedDict[ParkedNode[S], None] = OrderedDict()
        self._pinned: set[ParkedNode[S]] = set()  # not among them

    def lacking(self, path: Sequence[ParkedNode[S]]) -> list[ParkedNode[S]]:
        """What is not parked of the sequence whose nodes are `path`."""
        return [n for n in (path if self.can_cut else path[-1:]) if n.payload is None]

    def add(self, namespace: str, tokens: Sequence[int], start: int, state: S) -> bool:
        """Park `state` of `tokens[start:]`; False if it is no news, too large, or hangs in the air.

        All before `start` must be parked; checkpoints start at 0.
        """
        path = self.tree.insert(namespace, tokens)
        lacking = self.lacking(path)
        is_news = bool(lacking) and (not self.can_cut or start <= lacking[0].start)
        is_parked = is_news and self.put(lacking, Parked(start, len(tokens), state))
        self.tree.prune(path[-1])
        self.touch(path)
        return is_parked

    def put(self, nodes: Sequence[ParkedNode[S]], parked: Parked[S]) -> bool:
        """Park what `nodes` have, one after the other. False if there is no room.

        They have no payload; where sequences can be cut, the parent of the first has one.
        """
        for node in nodes:
            assert node.payload is None
            node.payload = parked
            parked.num_nodes += 1
            self._oldest_first[node] = None
        self.used_bytes += parked.state.nbytes
        kept = {*nodes, *(above(nodes[-1]) if self.can_cut else ())}
        while self.used_bytes > self.budget_bytes:
            candidates = (n for n in self._oldest_first if n not in kept and self._is_free(n))
            oldest = next(candidates, None)
            if oldest is None:
                for node in reversed(nodes):
                    self._drop(node)
                return False
            self._drop(oldest)
        return True

    def _is_free(self, node: ParkedNode[S]) -> bool:
        """Whether nothing that is parked needs it."""
        return not self.can_cut or all(c.payload is None for c in node.children.values())

    def _drop(self, node: ParkedNode[S]) -> None:
        parked, node.payload = node.payload, None
        assert parked is not None
        self._oldest_first.pop(node, None)
        self._pinned.discard(node)
        parked.num_nodes -= 1
        if not parked.num_nodes:
            self.used_bytes -= parked.state.nbytes
            self._on_drop(parked.state)
        self.tree.prune(node)

    def discard(self, node: ParkedNode[S]) -> None:
        """What `node` has turned out to be unusable: forget it, and what needs it."""
        if self.can_cut:
            for child in list(node.children.values()):
                self.discard(child)
        if node.payload is not None:
            self._drop(node)

    def touch(self, nodes: Sequence[ParkedNode[S]]) -> None:
        """These, from the beginning of a sequence on, were used now."""
        for node in reversed(nodes):  # so that what others depend on is dropped last
            if node in self._oldest_first:
                self._oldest_first.move_to_end(node)

    def parked_path(self, namespace: str, tokens: Sequence[int]) -> list[ParkedNode[S]]:
        """The nodes of `tokens`, if all of them are parked; else none."""
        path = self.tree.match(namespace, tokens, len(tokens))
        if not path or path[-1].end < len(tokens) or path[-1].node.payload is None:
            return []
        is_whole = self.can_cut or path[-1].node.end == len(tokens)
        return [match.node for match in path] if is_whole else []

    def pin(self, namespace: str, tokens: Sequence[int]) -> bool:
        """Never drop what is parked of `tokens`; False if that is not all of it."""
        path = self.parked_path(namespace, tokens)
        for node in path if self.can_cut else path[-1:]:
            self._oldest_first.pop(node, None)
            self._pinned.add(node)
        return bool(path)

    def lend(self, tokens: Sequence[int], source: str, target: str) -> None:
        """Let the namespace `target` find what is parked of `tokens` in `source`, for no bytes."""
        if self.parked_path(target, tokens):
            return
        for node in self.parked_path(source, tokens):
            if node.payload is not None:
                end = min(node.end, len(tokens))
                for lacking in self.lacking(self.tree.insert(target, tokens[:end])):
                    self._share(node.payload, lacking)

    def _share(self, parked: Parked[S], node: ParkedNode[S]) -> None:
        node.payload = parked
        parked.num_nodes += 1
        self._oldest_first[node] = None

    def _divide(self, upper: ParkedNode[S], lower: ParkedNode[S]) -> None:
        """The tree has split a node."""
        if lower.payload is not None and self.can_cut:
            self._share(lower.payload, upper)
            if lower in self._pinned:
                del self._oldest_first[upper]
                self._pinned.add(upper)

    def check_integrity(self) -> None:
        """Assert the invariants; for tests."""
        self.tree.check_integrity()
        parked = [node for node in self.tree if node.payload is not None]
        assert set(parked) == {*self._oldest_first, *self._pinned}
        assert not self._pinned & set(self._oldest_first)
        counts: dict[Parked[S], int] = {}
        for node in parked:
            assert node.payload is not None
            counts[node.payload] = counts.get(node.payload, 0) + 1
            if self.can_cut:
                assert node.payload.start <= node.start < node.end <= node.payload.end
                assert all(parent.payload is not None for parent in above(node))
            else:
                assert (node.payload.start, node.payload.end) == (0, node.end)
        assert all(parked.num_nodes == count for parked, count in counts.items())
        assert self.used_bytes == sum(parked.state.nbytes for parked in counts)
        assert self.used_bytes <= self.budget_bytes


def above(node: ParkedNode[S]) -> Iterable[ParkedNode[S]]:
    """The nodes that `node` follows, but for the root."""
    while node.parent is not None and node.parent.parent is not None:
        node = node.parent
        yield node
