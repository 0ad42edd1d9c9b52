"""Which running sequences hold their first cells together, so that each cell is counted once.

Pure. A slot that shares counts its first cells with the slot it has them from; when that one
leaves, the one that holds most of them counts them from then on.
"""

from typing import NamedTuple


class _Link(NamedTuple):
    source: int
    num_cells: int


class SharedCells:
    def __init__(self) -> None:
        self._links: dict[int, _Link] = {}  # slot -> the one its first cells are counted with

    def num_shared(self, slot: int) -> int:
        """The first cells of `slot` that are counted with another."""
        link = self._links.get(slot)
        return link.num_cells if link else 0

    def share(self, source: int, target: int, num_cells: int) -> None:
        """`target` begins with the first `num_cells` of `source`."""
        assert target not in self._links
        link = self._links.get(source)
        while link and num_cells <= link.num_cells:  # not the source's own
            source = link.source
            link = self._links.get(source)
        self._links[target] = _Link(source, num_cells)

    def leave(self, slot: int) -> None:
        """`slot` has no cells any more."""
        above = self._links.pop(slot, None)
        sharers = {s: link.num_cells for s, link in self._links.items() if link.source == slot}
        if not sharers:
            return
        heir = max(sharers, key=lambda s: sharers[s])
        del self._links[heir]
        if above:
            self._links[heir] = _Link(above.source, min(above.num_cells, sharers.pop(heir)))
        for sharer, num_cells in sharers.items():
            if sharer != heir:
                self._links[sharer] = _Link(heir, num_cells)
