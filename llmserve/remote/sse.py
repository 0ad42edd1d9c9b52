"""Bytes of a stream of server-sent events -> events, however the bytes are cut. No I/O.

https://html.spec.whatwg.org/multipage/server-sent-events.html, without `id`, `retry`
and lines that end in a lone CR. A reader of our own, because the lines of a hostile or broken
server have to have a bound.
"""

from collections.abc import Iterator
from typing import NamedTuple

MAX_EVENT_BYTES = 1 << 20


class SseEvent(NamedTuple):
    name: str  # "" if it has none
    data: bytes


class SseTooLongError(Exception):
    """An event is longer than `MAX_EVENT_BYTES`."""


class SseReader:
    """Push bytes, take events; what is left at the end belongs to an event that was cut off."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._rest = bytearray()  # of a line whose end has not come
        self._name = ""
        self._data: list[bytes] = []
        self._num_bytes = 0  # of `_data`
        self._is_first = True

    @property
    def is_between_events(self) -> bool:
        return not self._rest and not self._data

    def push(self, data: bytes) -> Iterator[SseEvent]:
        """The events that `data` completes. Raises `SseTooLongError`."""
        *lines, rest = data.split(b"\n")
        if lines and self._rest:
            lines[0] = bytes(self._rest) + lines[0]
            self._rest.clear()
        for line in lines:
            event = self._take(line.removesuffix(b"\r"))
            if event:
                yield event
        self._rest += rest
        if self._num_bytes + len(self._rest) > self._max_event_bytes:
            raise SseTooLongError

    def _take(self, line: bytes) -> SseEvent | None:
        if self._is_first:
            self._is_first = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line:
            return self._end()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._num_bytes += len(value)
            if self._num_bytes > self._max_event_bytes:
                raise SseTooLongError
            self._data.append(value)
        elif field == b"event":
            self._name = value.decode(errors="replace")
        return None  # a comment, or a field that is not needed

    def _end(self) -> SseEvent | None:
        event = SseEvent(self._name, b"\n".join(self._data)) if self._data else None
        self._name, self._data, self._num_bytes = "", [], 0
        return event
