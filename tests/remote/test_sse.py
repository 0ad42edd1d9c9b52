"""Any cut of the bytes gives the same events; what is too long ends early."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.remote.sse import SseEvent, SseReader, SseTooLongError

STREAM = (
    "\ufeffevent: start\r\ndata: {}\r\n\r\n: comment\n\ndata:a\ndata: é\n\nid: 7\nretry: 5\n\n"
    "event: lost\n\ndata\n\ndata: [DONE]\n\ndata: cut"
).encode()
EVENTS = [
    SseEvent("start", b"{}"),
    SseEvent("", "a\né".encode()),
    SseEvent("", b""),
    SseEvent("", b"[DONE]"),
]


@given(st.lists(st.integers(0, len(STREAM))))
def test_any_cut_of_the_bytes_gives_the_same_events(cuts: list[int]) -> None:
    reader = SseReader()
    events: list[SseEvent] = []
    ends = sorted({*cuts, 0, len(STREAM)})
    for begin, end in itertools.pairwise(ends):
        events += reader.push(STREAM[begin:end])
    assert events == EVENTS
    assert not reader.is_between_events


def test_the_end_of_the_last_event_is_known() -> None:
    reader = SseReader()
    assert list(reader.push(b"data: a\n\n")) == [SseEvent("", b"a")]
    assert reader.is_between_events


@pytest.mark.parametrize("piece", [b"x" * 10, b"data: 123456\n", b": long comment"])
def test_an_event_without_end_is_not_kept(piece: bytes) -> None:
    reader = SseReader(max_event_bytes=100)
    for _ in range(100 // len(piece)):
        assert not list(reader.push(piece))
    with pytest.raises(SseTooLongError):
        list(reader.push(piece * 20))


def test_many_short_events_are_no_long_one() -> None:
    reader = SseReader(max_event_bytes=10)
    assert len(list(reader.push(b"data: 12345\n\n" * 100))) == 100
