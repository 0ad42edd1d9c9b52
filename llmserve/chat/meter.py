"""How much a chat template may do, and how much each of its operations does. Pure.

Work is counted in characters: those that an operation reads or writes, and what takes as long. An
operation is paid for before it runs, so that none is long by itself: what Python does within one,
such as padding a text to a billion characters, nothing can interrupt. The count is the same on
every machine and under every load; a million of it takes 30 ms at most here, usually much less.
"""

import re
from collections.abc import (
    Collection,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Sequence,
    ValuesView,
)
from typing import Any

MAX_WORK = 20_000_000  # of a template by itself: half a second
WORK_PER_CHARACTER = 200  # of what it is given: 20 operations that read each, and room
MAX_WORK_OF_ALL = 80_000_000  # whatever it is given
MAX_OUTPUT = 1 << 20  # characters beside …
OUTPUT_PER_CHARACTER = 4  # … these, of what it is given
MAX_DEPTH = 100  # values in values; C code recurses into them, for hashes without any guard
MAX_INT_BITS = 4096

ITEM = 16  # an item of a list is worth so many characters
_COLLECTIONS = (list, tuple, set, range, KeysView, ValuesView, ItemsView)
_SCALARS = frozenset([int, float, bool, type(None)])


class OverLimitsError(Exception):
    """The template does more than it may."""


class Meter:
    """What one rendering may still do."""

    def __init__(self, given: Iterable[Any]) -> None:
        """`given` is what the template may read."""
        self._left = self._all = MAX_WORK_OF_ALL
        for value in given:
            self.read(value)
        given_size = self._all - self._left
        self._all = min(self._all, MAX_WORK + WORK_PER_CHARACTER * given_size)
        self._left = self._all
        self._max_output = MAX_OUTPUT + OUTPUT_PER_CHARACTER * given_size

    @property
    def work(self) -> int:
        """What has been done."""
        return self._all - self._left

    def charge(self, work: int) -> None:
        self._left -= work
        if self._left < 0:
            raise OverLimitsError("it loops for too long, or makes texts that are too large")

    def read(self, value: Any) -> int:
        """Pay for all that is in `value`, once for each place where it is; returns that."""
        if type(value) is str:
            work = len(value) + 1
        elif type(value) in _SCALARS:
            work = ITEM
        else:
            work = self._size(value)
        self.charge(work)
        return work

    def _size(self, value: Any) -> int:
        if isinstance(value, str):
            return ITEM + len(value)
        size = ITEM
        level = [value]
        for _ in range(MAX_DEPTH):
            below = []
            for node in level:
                items = _items(node)
                size += ITEM * len(items)
                if size > self._left:
                    self.charge(size)
                for item in items:
                    if isinstance(item, str):
                        size += len(item)
                    elif type(item) not in _SCALARS:
                        below.append(item)
            if not below:
                return size
            level = below
        raise OverLimitsError(f"its values are nested over {MAX_DEPTH} deep")

    def read_items(self, value: Any) -> None:
        """Pay for a walk over the items of `value`, not for what is in them."""
        if isinstance(value, str):
            self.charge(len(value) + 1)
        elif hasattr(value, "__len__"):
            self.charge(ITEM * (1 + len(value)))

    def counted(self, items: Iterator[Any], work: int = ITEM) -> Iterator[Any]:
        """The same, where each item costs `work`."""
        for item in items:
            self.charge(work)
            yield item

    def multiply(self, value: Any, others: Iterable[Any]) -> int:
        """Pay for what may write `others` for each character of `value`; returns the latter's size.

        The size of a number among `others` is itself: it may be a width.
        """
        size = self.read(value)
        self.charge(size * sum(map(self._factor, others)) // 2)
        return size

    def multiply_items(self, value: Any, others: Iterable[Any]) -> None:
        """The same for each item of `value`."""
        num_items = 1 + len(value) if hasattr(value, "__len__") else 1
        self.charge(num_items * (ITEM + sum(map(self._factor, others))))

    def _factor(self, value: Any) -> int:
        return abs(value) if type(value) is int else self.read(value)

    def replace(self, text: Any, old: Any, new: Any) -> None:
        text, old, new = str(text), str(old), str(new)
        self.charge(len(text) + (text.count(old) + 1) * (len(new) + 1))

    def join(self, parts: Sequence[Any], between: Any) -> None:
        self.read(parts)
        self.charge(len(parts) * (ITEM + self.read(between)))

    def format(self, pattern: str, values: Iterable[Any]) -> None:
        """Pay for `pattern % values` and `pattern.format(*values)`."""
        if re.search(r"%[^a-zA-Z%]*\*|\{[^{}]*\{", pattern):
            raise OverLimitsError("a format takes a width from its values")
        widths = [min(int(digits[:10]), 1 << 40) for digits in re.findall(r"\d+", pattern)]
        # A value may come in many times, and as `repr` writes it.
        num_fields = pattern.count("%") + pattern.count("{")
        size = 4 * sum(map(self.read, values)) + max(widths, default=0)
        self.charge(len(pattern) + num_fields * size)

    def power(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() * abs(right))

    def times(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() + right.bit_length())
        for items, times in ((left, right), (right, left)):
            if isinstance(times, int) and hasattr(items, "__len__"):
                self.charge(ITEM * len(items) * max(times, 0))

    def output(self, parts: Iterable[str]) -> str:
        """All `parts` as one text."""
        kept = []
        size = 0
        for part in parts:
            size += len(part)
            self.charge(len(part))
            if size > self._max_output:
                raise OverLimitsError(f"it writes over {self._max_output} characters")
            kept.append(part)
        return "".join(kept)


def _items(value: Any) -> Collection[Any]:
    """What is in a value. jinja's own objects are not looked into, and no code in C does."""
    if isinstance(value, dict):
        return (*value, *value.values())
    if isinstance(value, _COLLECTIONS):
        return value
    return ()


def _check_bits(num_bits: int) -> None:
    if num_bits > MAX_INT_BITS:
        raise OverLimitsError(f"a number has {num_bits} bits, over {MAX_INT_BITS}")
