"""Bytes -> text with stop strings: cuts do not matter, nothing leaks, nothing waits too long."""

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmserve.engine.output.text import Piece, TextStream


def reference(text: str, stops: Sequence[str]) -> Piece:
    """The shown text and the stop, by the definition at the top of `output.py`."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return Piece(text[: end - len(stop)], stop)
    return Piece(text)


def run(chunks: Sequence[bytes], stops: Sequence[str]) -> tuple[list[str], str | None]:
    """The text after each push (and the flush), and the stop."""
    stream = TextStream(stops)
    shown = [""]
    for chunk in chunks:
        piece = stream.push(chunk)
        shown.append(shown[-1] + piece.text)
        if piece.stop is not None:
            return shown, piece.stop
    piece = stream.flush()
    return [*shown, shown[-1] + piece.text], piece.stop


def cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """`data` in pieces of the `sizes` (0 gives an empty piece), the last takes the rest."""
    chunks, begin = [], 0
    for size in sizes:
        chunks.append(data[begin : begin + size])
        begin += size
    return [*chunks, data[begin:]]


# A tiny alphabet makes overlaps, shared prefixes and matches frequent.
letters = st.text("ab", max_size=30)
stops_of_letters = st.lists(st.text("ab", min_size=1, max_size=5), max_size=4)
# Characters of one to four bytes that share bytes, and what decoders write for broken ones.
characters = st.text("aé€😀\ufffd\x00", max_size=15)
stops_of_characters = st.lists(st.text("aé€😀\ufffd", min_size=1, max_size=3), max_size=3)
fragments = st.sampled_from([b"\xe2", b"\x82", b"\xac", b"\xf0\x9f", b"\xed\xa0", b"\xff", b"a"])
raw_bytes = st.one_of(
    characters.map(str.encode),
    st.binary(max_size=20),
    st.lists(fragments, max_size=10).map(b"".join),
)
sizes = st.lists(st.integers(0, 4), max_size=30)


@given(raw_bytes, stops_of_characters, sizes)
@example("€".encode(), ["\ufffd"], [1, 1])
@example(b"\xe2\x82", ["\ufffd"], [1])  # only the flush completes this stop
def test_any_cut_gives_the_text_and_stop_of_the_whole(
    data: bytes, stops: list[str], sizes: list[int]
) -> None:
    shown, stop = run(cut(data, sizes), stops)
    assert Piece(shown[-1], stop) == reference(data.decode(errors="replace"), stops)


@given(letters, stops_of_letters, sizes)
def test_any_cut_with_many_overlapping_stops(text: str, stops: list[str], sizes: list[int]) -> None:
    shown, stop = run(cut(text.encode(), sizes), stops)
    assert Piece(shown[-1], stop) == reference(text, stops)


@given(raw_bytes, stops_of_characters, sizes)
def test_what_is_shown_is_always_a_prefix_of_the_whole_text(
    data: bytes, stops: list[str], sizes: list[int]
) -> None:
    shown, _ = run(cut(data, sizes), stops)
    for text in shown:
        assert shown[-1].startswith(text)
        assert not any(stop in text for stop in stops)
        text.encode()  # no half of a character


@given(letters, stops_of_letters)
@example("a", ["abX", "b"])  # abX can never end the text: b always ends it before
@example("xa", ["xab", "ab"])
@example("aab", ["aabb", "abab"])
def test_what_is_held_back_could_still_become_a_stop(text: str, stops: list[str]) -> None:
    """Exactly the longest text that no continuation can take back is shown, at every character."""
    stream = TextStream(stops)
    shown = ""
    for end in range(1, len(text) + 1):
        piece = stream.push(text[end - 1].encode())
        shown += piece.text
        if piece.stop is not None:
            return
        so_far = text[:end]
        completions = [
            stop[size:]
            for stop in stops
            for size in range(len(stop))
            if so_far.endswith(stop[:size])
        ]
        outcomes = [reference(so_far + rest, stops).text for rest in completions]
        assert shown == so_far[: min([end, *map(len, outcomes)])]


def test_an_incomplete_character_waits_for_its_end() -> None:
    stream = TextStream()
    texts = [stream.push(bytes([byte])).text for byte in "a€😀".encode()]
    assert texts == ["a", "", "", "€", "", "", "", "😀"]
    assert stream.flush() == Piece("")


def test_an_incomplete_character_at_the_end_is_replaced() -> None:
    stream = TextStream()
    assert stream.push("a😀".encode()[:-1]) == Piece("a")
    assert stream.flush() == Piece("\ufffd")


def test_without_stops_everything_complete_is_shown_at_once() -> None:
    stream = TextStream()
    assert stream.push(b"abc") == Piece("abc")
    assert stream.push(b"") == Piece("")
    assert stream.flush() == Piece("")


def test_a_possible_stop_is_shown_once_it_is_none() -> None:
    stream = TextStream(["</s>"])
    assert stream.push(b"x</") == Piece("x")
    assert stream.push(b"p>") == Piece("</p>")
    assert stream.push(b"</s") == Piece("")
    assert stream.flush() == Piece("</s")


def test_a_stop_across_pushes() -> None:
    stream = TextStream(["\n\n", "END"])
    assert stream.push(b"one\n") == Piece("one")
    assert stream.push(b"two E") == Piece("\ntwo ")
    assert stream.push(b"ND more") == Piece("", "END")


def test_a_stop_at_the_very_beginning() -> None:
    assert TextStream(["ab"]).push(b"abc") == Piece("", "ab")


def test_of_two_stops_that_end_together_the_longer_counts() -> None:
    assert TextStream(["b", "ab"]).push(b"xab") == Piece("x", "ab")


def test_of_overlapping_stops_the_first_to_end_counts() -> None:
    assert TextStream(["abcd", "bc"]).push(b"xabcd") == Piece("xa", "bc")


def test_a_match_that_fails_may_hold_the_begin_of_another() -> None:
    stream = TextStream(["aab"])
    assert stream.push(b"aa") == Piece("")
    assert stream.push(b"a") == Piece("a")
    assert stream.push(b"b") == Piece("", "aab")


LONG = 500


@pytest.mark.parametrize(
    ("stops", "text"),
    [
        (["a" * LONG + "b"], "a"),
        (["ab" * LONG + "c"], "ab"),
        (["a" * size + "b" for size in range(LONG, LONG + 16)], "a"),
        ([("a" * 20 + "b") * 20 + "c"], "a" * 20 + "b"),
    ],
)
def test_time_is_linear_in_the_text(stops: list[str], text: str) -> None:
    """By counting executed lines: four times the text, about four times the lines."""

    def count(num_repeats: int) -> int:
        stream = TextStream(stops)

        def push_all() -> None:
            for char in text * num_repeats:
                assert stream.push(char.encode()).stop is None

        return _count_lines(push_all)

    num_repeats = 3 * LONG // len(text)
    assert count(4 * num_repeats) < 5 * count(num_repeats)


def _count_lines(function: Callable[[], None]) -> int:
    num_lines = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal num_lines
        num_lines += event == "line"
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(previous)
    return num_lines
