"""Token bytes -> text that may be shown, with stop strings. No I/O: push, then flush.

Invariant: the text and the stop that come out depend on the bytes alone, not on how they were cut
into pushes. The stop that counts is the one whose last character comes first; of several that
end at the same character, the longest.
"""

import codecs
from collections.abc import Sequence
from typing import NamedTuple

from llmserve.chat.tools.parser import Segment


class Piece(NamedTuple):
    """`text` may be shown now; `stop` is the stop string that ended the output, if one did."""

    text: str
    stop: str | None = None
    segments: tuple[Segment, ...] | None = None  # instead of `text`, of an answer with more in it

    @property
    def num_chars(self) -> int:
        """Of the output, that this says something about."""
        if self.segments is None:
            return len(self.text)
        return sum(segment.num_chars for segment in self.segments)

    def followed_by(self, rest: "Piece") -> "Piece":
        if self.segments is None or rest.segments is None:
            return Piece(self.text + rest.text, rest.stop)
        return Piece("", rest.stop, self.segments + rest.segments)


class TextStream:
    """Holds back incomplete characters, and text that may yet turn out to be a stop string."""

    __slots__ = ("_decoder", "_held", "_matchers")

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._matchers = [_Matcher(stop) for stop in _reachable(stops)]  # longest first
        self._held = ""

    @property
    def held_len(self) -> int:
        """How many characters are held back, one that is incomplete included."""
        return len(self._held) + bool(self._decoder.getstate()[0])

    def push(self, data: bytes) -> Piece:
        """Add one token's bytes. After a piece with a stop nothing more may be pushed."""
        return self._advance(self._decoder.decode(data))

    def flush(self) -> Piece:
        """The end of the output: everything that was held back (which can still hold a stop)."""
        piece = self._advance(self._decoder.decode(b"", final=True))
        if piece.stop is not None:
            return piece
        held, self._held = self._held, ""
        return Piece(piece.text + held)

    def _advance(self, text: str) -> Piece:
        if not self._matchers:
            return Piece(text)
        held = self._held + text
        for end, char in enumerate(text, start=len(self._held) + 1):
            for matcher in self._matchers:
                if matcher.push(char):
                    self._held = ""
                    return Piece(held[: end - len(matcher.stop)], matcher.stop)
        safe_len = len(held) - max(matcher.matched for matcher in self._matchers)
        self._held = held[safe_len:]
        return Piece(held[:safe_len])


def _reachable(stops: Sequence[str]) -> list[str]:
    """Without the stops that another one always ends before; text must not wait for those."""
    reachable = [stop for stop in set(stops) if not any(other in stop[:-1] for other in stops)]
    return sorted(reachable, key=len, reverse=True)


class _Matcher:
    """Knuth-Morris-Pratt: how much of `stop` the text so far ends with, in O(1) a character."""

    __slots__ = ("_fallback", "matched", "stop")

    def __init__(self, stop: str) -> None:
        assert stop
        self.stop = stop
        self.matched = 0
        self._fallback = _prefix_function(stop)

    def push(self, char: str) -> bool:
        """Whether the text now ends with the whole stop string."""
        while self.matched and self.stop[self.matched] != char:
            self.matched = self._fallback[self.matched - 1]
        if self.stop[self.matched] == char:
            self.matched += 1
        return self.matched == len(self.stop)


def _prefix_function(pattern: str) -> list[int]:
    """For each prefix of `pattern`, the length of its longest border."""
    borders = [0] * len(pattern)
    length = 0
    for index in range(1, len(pattern)):
        while length and pattern[index] != pattern[length]:
            length = borders[length - 1]
        if pattern[index] == pattern[length]:
            length += 1
        borders[index] = length
    return borders
