"""What targets share: choices that the input makes, and what is asked of every message."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """The first bytes of an input decide how the rest of it is used.

    Where the bytes are at their end, the first option and the number 0 are chosen.
    """

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def number(self) -> int:
        """0 to 255."""
        value, self.rest = self.rest[:1], self.rest[1:]
        return value[0] if value else 0

    def one_of(self, options: Sequence[T]) -> T:
        return options[self.number() % len(options)]

    def lengths(self, count: int) -> list[int]:
        return [self.number() for _ in range(count)]


def in_pieces(whole: T, lengths: Sequence[int]) -> list[T]:
    """`whole`, a text or bytes, cut into pieces of about these lengths, and what is left."""
    pieces, begin = [], 0
    for length in lengths:
        pieces.append(whole[begin : begin + length])  # type: ignore[index]
        begin += length
    return [*pieces, whole[begin:]]  # type: ignore[index]


def check_words(message: str, *, max_len: int = 5000, one_line: bool = False) -> None:
    """A message of an error can be sent, and has a length for people."""
    assert 0 < len(message.encode()) <= max_len, ascii(message[:max_len])
    assert message.isprintable() or not one_line, ascii(message)
