"""The count of shared cells against real sets of cells."""

from hypothesis import given
from hypothesis import strategies as st

from llmserve.engine.kvcache.shared_cells import SharedCells


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 9)), max_size=25))
def test_every_cell_is_counted_once(steps: list[tuple[int, int, int]]) -> None:
    """Each step: the second slot leaves, and enters again with a part of the first, if it runs."""
    cells: dict[int, list[object]] = {}
    books = SharedCells()
    for source, slot, num_cells in steps:
        if slot in cells:
            del cells[slot]
            books.leave(slot)
        cells[slot] = []
        if source in cells and source != slot and cells[source]:
            shared = cells[source][:num_cells]
            books.share(source, slot, len(shared))
            cells[slot] += shared
        cells[slot] += [object() for _ in range(num_cells)]
        counted = sum(len(held) - books.num_shared(s) for s, held in cells.items())
        assert counted == len({cell for held in cells.values() for cell in held})
        assert all(0 <= books.num_shared(s) < len(held) for s, held in cells.items())
    for slot in list(cells):
        books.leave(slot)
    assert all(books.num_shared(slot) == 0 for slot in range(6))
