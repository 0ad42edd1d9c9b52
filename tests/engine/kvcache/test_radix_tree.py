"""The radix tree against a list of sequences, with a vocabulary of two so that everything meets."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmserve.engine.kvcache.radix_tree import Node, RadixTree

MAX_RUN = 3
namespaces = st.sampled_from(["", "other"])
sequences = st.lists(st.integers(0, 1), min_size=1, max_size=8)


def num_common(a: list[int], b: list[int]) -> int:
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


class Machine(RuleBasedStateMachine):
    """Holders come and go, payloads are set on whole sequences and taken away from leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.tree = RadixTree[str](MAX_RUN, self.divide)
        self.held: dict[int, tuple[str, list[int]]] = {}
        self.paid: set[tuple[str, tuple[int, ...]]] = set()  # prefixes that have a payload
        self.num_holders = 0

    def divide(self, upper: Node[str], lower: Node[str]) -> None:
        upper.payload = lower.payload

    @rule(namespace=namespaces, tokens=sequences)
    def hold(self, namespace: str, tokens: list[int]) -> None:
        self.tree.hold(namespace, tokens, self.num_holders)
        self.held[self.num_holders] = (namespace, tokens)
        self.num_holders += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(sorted(self.held)))
        self.tree.release(holder)
        del self.held[holder]

    @rule(namespace=namespaces, tokens=sequences)
    def pay(self, namespace: str, tokens: list[int]) -> None:
        path = self.tree.insert(namespace, tokens)
        assert [token for node in path for token in node.tokens] == tokens
        for node in path:
            node.payload = "paid"
        self.paid |= {(namespace, tuple(tokens[:end])) for end in range(1, len(tokens) + 1)}

    @rule(namespace=namespaces, tokens=sequences)
    def insert_for_nothing(self, namespace: str, tokens: list[int]) -> None:
        path = self.tree.insert(namespace, tokens)
        self.tree.prune(path[-1])
        self.tree.prune(path[-1])

    @rule(data=st.data())
    def unpay(self, data: st.DataObject) -> None:
        leaves = [
            n for n in self.tree if n.payload and not any(c.payload for c in n.children.values())
        ]
        if leaves:
            node = data.draw(st.sampled_from(leaves))
            namespace, prefix = self.spell(node)
            self.paid -= {
                (namespace, tuple(prefix[:end])) for end in range(node.start + 1, node.end + 1)
            }
            node.payload = None
            self.tree.prune(node)

    def spell(self, node: Node[str]) -> tuple[str, list[int]]:
        tokens: list[int] = []
        while node.parent is not None:
            tokens = [*node.tokens, *tokens]
            node = node.parent
        return next(name for name, root in self.tree._roots.items() if root is node), tokens

    @rule(namespace=namespaces, tokens=sequences, data=st.data())
    def match(self, namespace: str, tokens: list[int], data: st.DataObject) -> None:
        limit = data.draw(st.integers(0, len(tokens)))
        path = self.tree.match(namespace, tokens, limit)
        known = [t for name, t in self.held.values() if name == namespace]
        known += [list(prefix) for name, prefix in self.paid if name == namespace]
        longest = max((num_common(tokens[:limit], t) for t in known), default=0)
        assert (path[-1].end if path else 0) == longest
        common = {
            h: num_common(tokens[:limit], t) for h, (n, t) in self.held.items() if n == namespace
        }
        found = {holder: end for node, end in path for holder in node.holders}
        assert found == {holder: n for holder, n in common.items() if n}
        num_paid = max((end for node, end in path if node.payload), default=0)
        paid = [list(prefix) for name, prefix in self.paid if name == namespace]
        assert num_paid == max((num_common(tokens[:limit], t) for t in paid), default=0)

    @invariant()
    def holds(self) -> None:
        self.tree.check_integrity()
        if not (self.held or self.paid):
            assert list(self.tree) == []


Machine.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)
TestRadixTree = Machine.TestCase
