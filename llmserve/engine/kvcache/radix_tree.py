"""Which token prefixes are known: a radix tree over running and parked sequences.

A node is a run of tokens that follow its parent's. Running sequences that begin with it are its
holders; what is parked of it is its payload. Namespaces share nothing. Pure: no I/O, no clock.

Invariants (`check_integrity`):

- a node begins where its parent ends, its run has 1 to `max_run` tokens, and the runs of its
  children begin with different tokens
- what holds a node holds its parent too
- a node without children is held or has a payload
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

P = TypeVar("P")


class Node(Generic[P]):
    __slots__ = ("children", "holders", "parent", "payload", "start", "tokens")

    def __init__(self, tokens: list[int], start: int, parent: "Node[P] | None") -> None:
        self.tokens = tokens
        self.start = start  # of its run, in tokens from the beginning of the sequence
        self.parent = parent  # None: the root of a namespace, whose run is empty
        self.children: dict[int, Node[P]] = {}  # by the first token of their runs
        self.holders: set[int] = set()
        self.payload: P | None = None

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class Match(NamedTuple, Generic[P]):
    """A node on the way of a sequence, which agrees with it up to `end`."""

    node: Node[P]
    end: int


class RadixTree(Generic[P]):
    def __init__(self, max_run: int, on_split: Callable[[Node[P], Node[P]], None]) -> None:
        """`on_split(upper, lower)` divides the payload, which is `lower`'s when it is called."""
        self._max_run = max_run
        self._on_split = on_split
        self._roots: dict[str, Node[P]] = {}
        self._held: dict[int, Node[P]] = {}  # holder -> the last node that it holds

    def match(self, namespace: str, tokens: Sequence[int], limit: int) -> list[Match[P]]:
        """The longest known prefix of `tokens[:limit]`, node by node; only the last can be cut."""
        path: list[Match[P]] = []
        node = self._roots.get(namespace)
        at = 0
        while node is not None and at < limit:
            node = node.children.get(tokens[at])
            if node is not None:
                at += num_common(node.tokens, tokens[at : min(node.end, limit)])
                path.append(Match(node, at))
                if at < node.end:
                    break
        return path

    def insert(self, namespace: str, tokens: Sequence[int]) -> list[Node[P]]:
        """The nodes whose runs are `tokens`, made where they are missing.

        The caller holds them, or gives them payloads, or prunes the last one.
        """
        node = self._roots.setdefault(namespace, Node([], 0, None))
        path: list[Node[P]] = []
        at = 0
        while at < len(tokens):
            child = node.children.get(tokens[at])
            if child is None:
                child = Node(list(tokens[at : at + self._max_run]), at, node)
                node.children[tokens[at]] = child
            else:
                common = num_common(child.tokens, tokens[at : child.end])
                if common < len(child.tokens):
                    child = self._split(child, common)
            path.append(child)
            node, at = child, child.end
        return path

    def _split(self, lower: Node[P], num_tokens: int) -> Node[P]:
        """Cut the run of `lower` after `num_tokens`; returns the new upper part."""
        assert lower.parent is not None
        upper = Node(lower.tokens[:num_tokens], lower.start, lower.parent)
        lower.parent.children[upper.tokens[0]] = upper
        lower.tokens = lower.tokens[num_tokens:]
        lower.start = upper.end
        lower.parent = upper
        upper.children[lower.tokens[0]] = lower
        upper.holders = set(lower.holders)
        self._on_split(upper, lower)
        return upper

    def hold(self, namespace: str, tokens: Sequence[int], holder: int) -> None:
        """`holder`, which holds nothing yet, runs `tokens`, which are not empty."""
        assert holder not in self._held
        path = self.insert(namespace, tokens)
        for node in path:
            node.holders.add(holder)
        self._held[holder] = path[-1]

    def release(self, holder: int) -> None:
        """`holder` runs no longer."""
        last = node = self._held.pop(holder)
        while node.parent is not None:
            node.holders.remove(holder)
            node = node.parent
        self.prune(last)

    def prune(self, node: Node[P]) -> None:
        """Forget `node`, and what is above it, as far as nothing needs it. Twice is fine."""
        while not (node.children or node.holders or node.payload is not None):
            parent = node.parent
            if parent is None:
                self._roots = {name: root for name, root in self._roots.items() if root.children}
                return
            if parent.children.get(node.tokens[0]) is not node:
                return
            del parent.children[node.tokens[0]]
            node = parent

    def __iter__(self) -> Iterator[Node[P]]:
        """All nodes but the roots, parents first."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            if node.parent is not None:
                yield node
            stack += node.children.values()

    def check_integrity(self) -> None:
        """Assert the invariants; for tests."""
        held: dict[int, Node[P]] = {}
        for node in self:
            assert node.parent is not None
            assert node.start == node.parent.end
            assert 1 <= len(node.tokens) <= self._max_run
            assert node.parent.children[node.tokens[0]] is node
            assert node.children or node.holders or node.payload is not None
            assert node.parent.parent is None or node.holders <= node.parent.holders
            held.update(dict.fromkeys(node.holders, node))  # the deepest, as parents come first
        assert held == self._held
        assert all(root.children for root in self._roots.values())


def num_common(run: Sequence[int], tokens: Sequence[int]) -> int:
    """How many tokens both begin with."""
    if run == tokens:
        return len(run)
    pairs = enumerate(zip(run, tokens, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(run), len(tokens)))
