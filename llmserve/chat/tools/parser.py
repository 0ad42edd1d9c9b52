"""The text of an answer -> what of it is for the user, thoughts, and calls. No I/O: push, flush.

Invariants: what comes out depends on the text alone, not on how it was cut into pushes (but for
where the parts are cut); nothing gets lost: what turns out to be no call is shown as it is. Only
markers disappear, with the whitespace around them, and the beginning of one call more that the end
of the answer cuts off.
"""

import re
import secrets
import string
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from llmserve.chat.tools.formats.model import START, TEXT, Kind, State
from llmserve.chat.tools.json_scan import JsonScan, ValueTypes, WrittenObject, read_call
from llmserve.core import Delta, Part, ReasoningDelta, ToolCallDelta

NO_TYPES: Mapping[str, ValueTypes] = MappingProxyType({})

_HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_ALPHABET = string.ascii_letters + string.digits


class Segment(NamedTuple):
    """Characters of the text, and what they became: None for markers and the like."""

    num_chars: int
    part: Part | None


class Parser:
    """Runs the states of one answer. `value_types`: of the parameters of each tool."""

    def __init__(
        self,
        states: Mapping[str, State],
        *,
        first: str = START,
        value_types: Mapping[str, ValueTypes] = NO_TYPES,
    ) -> None:
        self._states = states
        self._value_types = value_types
        self._name = first
        self._state = states[first]
        self._buffer = ""  # not yet understood
        self._raw = ""  # understood since the text, in case that it is no call after all
        self._word = ""  # collected by a state
        self._out: list[Segment] = []
        self._had_section = False  # a thought or a call
        self._tool = ""  # the name in the call
        self._has_begun = False  # and whether the call is one
        self._scan = JsonScan()
        self._num_scanned = 0  # characters of the buffer
        self._in_arguments = False
        self._in_tail = False  # of an object, after the arguments
        self._written = WrittenObject({})
        self.num_calls = 0
        self._enter(first)

    @property
    def is_thinking(self) -> bool:
        return self._state.kind is Kind.THOUGHT

    @property
    def is_answering(self) -> bool:
        """Whether what comes next is for the user, or may be."""
        return self._name in (START, TEXT) and self._state.kind is not Kind.HEADER

    @property
    def num_held(self) -> int:
        return len(self._buffer)

    def push(self, text: str) -> list[Segment]:
        self._buffer += text
        while self._step():
            pass
        out, self._out = self._out, []
        return out

    def flush(self) -> list[Segment]:
        """The end of the text: everything that was held back."""
        match self._state.kind:
            case Kind.TEXT | Kind.THOUGHT:
                self._show(len(self._buffer))
            case Kind.EDGE if self._name == START and not self._had_section:
                self._name, self._state = TEXT, self._states[TEXT]
                self._show(len(self._buffer))
            case _ if self.num_calls == 0:
                self._consume(len(self._buffer))
                self._spill()
            case _:  # the beginning of another call, or what follows the last one
                self._consume(len(self._buffer))
        out, self._out = self._out, []
        return out

    # -- steps: whether there is more to do -------------------------------------------------------

    def _step(self) -> bool:
        match self._state.kind:
            case Kind.EDGE:
                return self._edge()
            case Kind.OBJECT:
                return self._object()
            case Kind.ARGUMENTS:
                return self._arguments()
            case _:
                return self._until_exit()

    def _edge(self) -> bool:
        text = self._buffer.lstrip()
        if not text:
            return False
        for marker in self._state.exits:
            if text.startswith(marker):
                self._leave_by(marker, len(self._buffer) - len(text))
                return True
            if marker.startswith(text):
                return False
        if self._name == START:
            if self._had_section:  # or else the whitespace belongs to the text
                self._consume(len(self._buffer) - len(text))
        elif self._state.then == TEXT:
            self._spill()
        self._enter(self._state.then)
        return True

    def _until_exit(self) -> bool:
        """Of all states that end with a marker."""
        if self._is_section_start:
            self._skip_whitespace()
        exits = self._state.exits
        found = [(begin, m) for m in exits if (begin := self._buffer.find(m)) >= 0]
        if found:
            begin, marker = min(found)
            self._use(len(self._buffer[:begin].rstrip()) if self._trims else begin)
            self._leave_by(marker, self._buffer.index(marker))
            return True
        safe = self._buffer[: len(self._buffer) - _partial_len(self._buffer, exits)]
        self._use(len(safe.rstrip()) if self._trims and exits else len(safe))
        return False

    def _skip_whitespace(self) -> None:
        text = self._buffer.lstrip()
        self._is_section_start = not text
        self._consume(len(self._buffer) - len(text))

    @property
    def _trims(self) -> bool:
        return self._state.kind in (Kind.TEXT, Kind.THOUGHT)

    def _use(self, num_chars: int) -> None:
        """What a state does with text before its marker."""
        match self._state.kind:
            case _ if num_chars == 0:
                pass
            case Kind.TEXT | Kind.THOUGHT:
                self._show(num_chars)
            case Kind.VALUE:
                self._consume_as_call(num_chars, self._written.push(self._buffer[:num_chars]))
            case _:
                self._word += self._buffer[:num_chars]
                self._consume(num_chars)

    def _leave_by(self, marker: str, begin: int) -> None:
        """To the next state, by the marker at `begin`."""
        kind, name = self._state.kind, self._state.exits[marker]
        self._consume(begin + (0 if marker == "{" else len(marker)))
        word, self._word = self._word, ""
        match kind:
            case Kind.HEADER:
                name = self._route(word, name)
            case Kind.NAME:
                self._tool = word.strip()
            case Kind.PARAMETERS if self._states[name].kind is not Kind.KEY:
                self._call_piece(self._written.close())
            case Kind.KEY:
                self._call_piece(self._written.begin(word.strip()))
            case Kind.VALUE:
                self._call_piece(self._written.end())
        self._enter(name)

    def _route(self, header: str, default: str) -> str:
        for pattern, name in self._state.routes:
            if match := re.search(pattern, header):
                self._tool = match[1] if match.groups() else ""
                return name
        return default

    # -- JSON -------------------------------------------------------------------------------------

    def _object(self) -> bool:
        if self._in_arguments:
            return self._json_piece()
        if self._in_tail:
            return self._tail()
        if head := _HEAD.match(self._buffer):
            self._consume(head.end())
            self._begin_call(head[1])
            self._begin_json()
            return True
        if not self._buffer.lstrip().startswith("{"):
            return self._no_call() if self._buffer.strip() else False
        end = self._scan.feed(self._buffer, self._num_scanned)
        self._num_scanned = len(self._buffer)
        if end is None:
            return False
        call = read_call(self._buffer[:end])
        if call is None:
            return self._no_call()
        self._consume(end)
        self._begin_call(call[0])
        self._call_piece(call[1])
        self._enter(self._state.then)
        return True

    def _tail(self) -> bool:
        end = self._scan.feed(self._buffer)
        self._consume(len(self._buffer) if end is None else end)
        if end is None:
            return False
        self._enter(self._state.then)
        return True

    def _arguments(self) -> bool:
        if self._in_arguments:
            return self._json_piece()
        text = self._buffer.lstrip()
        if not text:
            return False
        if not text.startswith("{"):
            return self._no_call()
        self._consume(len(self._buffer) - len(text))
        self._begin_call(self._tool)
        self._begin_json()
        return True

    def _begin_json(self) -> None:
        self._scan, self._in_arguments = JsonScan(), True

    def _json_piece(self) -> bool:
        if not self._buffer:
            return False
        end = self._scan.feed(self._buffer)
        num_chars = len(self._buffer) if end is None else end
        self._consume_as_call(num_chars, self._buffer[:num_chars])
        if end is None:
            return False
        self._in_arguments = False
        if self._state.kind is Kind.OBJECT:
            self._scan, self._in_tail = JsonScan(depth=1), True
        else:
            self._enter(self._state.then)
        return True

    # -- what comes out ---------------------------------------------------------------------------

    def _enter(self, name: str) -> None:
        kind = self._states[name].kind
        if name in (START, TEXT) or kind is Kind.THOUGHT:
            self._raw, self._has_begun = "", False
        self._is_section_start = kind is Kind.THOUGHT
        self._had_section |= self._is_section_start
        self._has_begun &= kind not in (Kind.NAME, Kind.OBJECT)
        self._name, self._state = name, self._states[name]
        self._scan, self._num_scanned = JsonScan(), 0
        self._in_arguments = self._in_tail = False
        if kind is Kind.PARAMETERS and not self._has_begun:
            self._begin_call(self._tool)
            self._written = WrittenObject(self._value_types.get(self._tool, {}))

    def _consume(self, num_chars: int, part: Part | None = None) -> None:
        if part is None and not self._has_begun:
            self._raw += self._buffer[:num_chars]
        self._buffer = self._buffer[num_chars:]
        self._num_scanned = 0
        if num_chars or part:
            self._out.append(Segment(num_chars, part))

    def _show(self, num_chars: int) -> None:
        if num_chars:
            text = self._buffer[:num_chars]
            is_text = self._state.kind is Kind.TEXT
            self._consume(num_chars, Delta(text) if is_text else ReasoningDelta(text))

    def _begin_call(self, name: str) -> None:
        self._raw, self._tool, self._has_begun, self._had_section = "", name, True, True
        self.num_calls += 1
        self._out.append(Segment(0, ToolCallDelta(self.num_calls - 1, "", new_call_id(), name)))

    def _call_piece(self, arguments: str) -> None:
        self._consume_as_call(0, arguments)

    def _consume_as_call(self, num_chars: int, arguments: str) -> None:
        part = ToolCallDelta(self.num_calls - 1, arguments) if arguments else None
        self._consume(num_chars, part)

    def _no_call(self) -> bool:
        """Show what looked like a call, and go on with text."""
        self._spill()
        self._enter(TEXT)
        return True

    def _spill(self) -> None:
        if self._raw:
            self._out.append(Segment(0, Delta(self._raw)))
            self._raw = ""


def new_call_id() -> str:
    """As OpenAI's."""
    return "call_" + "".join(secrets.choice(_ALPHABET) for _ in range(24))


def _partial_len(text: str, markers: Mapping[str, str]) -> int:
    """How much of the end of `text` can be the beginning of a marker."""
    longest = max(map(len, markers), default=0)
    for size in range(min(len(text), longest - 1), 0, -1):
        if any(marker.startswith(text[-size:]) for marker in markers if len(marker) > size):
            return size
    return 0
