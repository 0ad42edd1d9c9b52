"""Token bytes -> the parts of an answer that has more than text in it: thoughts, and calls.

Like `output.TextStream`, with a parser of the model's format between characters and stop strings:
those apply to what is shown as text. Only where there can be more is this used at all.
"""

import codecs
from collections.abc import Sequence

from msgspec import Struct

from llmserve.chat.tools.formats.detect import FORMATS
from llmserve.chat.tools.formats.model import START, THOUGHT, Thinking, states_of
from llmserve.chat.tools.parser import Parser, Segment
from llmserve.core import Delta
from llmserve.engine.output.text import Piece, TextStream


class Reading(Struct, frozen=True):
    """How the answer to one request is to be understood; plain data."""

    format: str  # a name in FORMATS
    thinking: Thinking | None = None
    with_calls: bool = False
    starts_in_thought: bool = False  # the prompt has opened it
    value_types: dict[str, dict[str, frozenset[str]]] = {}  # of parameters, by tool
    controls: dict[int, bytes] = {}  # the control tokens that mean something, and their texts
    opening: int | None = None  # the token by which the answer may begin with a thought


class Reader:
    """One answer as it is read."""

    def __init__(self, reading: Reading, stops: Sequence[str] = ()) -> None:
        written = FORMATS[reading.format]
        self._reading = reading
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._parser = Parser(
            states_of(written, reading.thinking, with_calls=reading.with_calls),
            first=THOUGHT if reading.starts_in_thought else START,
            value_types=reading.value_types,
        )
        self._stops = stops
        self._shown = TextStream(stops)
        self.num_thought_tokens = 0

    @property
    def has_calls(self) -> bool:
        return self._parser.num_calls > 0

    @property
    def is_guarded(self) -> bool:
        """Whether the next token is the constraint's business.

        One that is made of tools says how calls and texts begin, any other what a text must match.
        """
        parser = self._parser
        return not parser.is_thinking if self._reading.with_calls else parser.is_answering

    @property
    def held_len(self) -> int:
        """How many characters are held back, one that is incomplete included."""
        is_incomplete = bool(self._decoder.getstate()[0])
        return self._parser.num_held + self._shown.held_len + is_incomplete

    def push(self, data: bytes) -> Piece:
        """Add one token's bytes. After a piece with a stop nothing more may be pushed."""
        was_thinking = self._parser.is_thinking
        segments = self._parser.push(self._decoder.decode(data))
        self.num_thought_tokens += was_thinking or self._parser.is_thinking
        return self._read(segments)

    def flush(self) -> Piece:
        """The end of the output: everything that was held back (which can still hold a stop)."""
        segments = self._parser.push(self._decoder.decode(b"", final=True)) + self._parser.flush()
        piece = self._read(segments)
        if piece.stop is not None:
            return piece
        return piece.followed_by(_as_segments(self._shown.flush()))

    def _read(self, segments: Sequence[Segment]) -> Piece:
        read: list[Segment] = []
        for segment in segments:
            if isinstance(segment.part, Delta):
                shown = _as_segments(self._shown.push(segment.part.text.encode()))
                read += shown.segments or ()
                if shown.stop is not None:
                    return Piece("", shown.stop, tuple(read))
            else:
                read += [*self._interrupt(), segment]
        return Piece("", None, tuple(read))

    def _interrupt(self) -> Sequence[Segment]:
        """What was held back: no stop string goes across a thought or a call."""
        if not self._shown.held_len:
            return ()
        held = _as_segments(self._shown.flush())
        self._shown = TextStream(self._stops)
        return held.segments or ()


def _as_segments(piece: Piece) -> Piece:
    text = piece.text
    return Piece("", piece.stop, (Segment(len(text), Delta(text)),) if text else ())
