"""Bytes of an answer with thoughts and calls: stop strings, characters, and any cuts."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmserve.chat.tools.formats.detect import THINKING
from llmserve.chat.tools.parser import Segment
from llmserve.engine.output.parser import Reader, Reading
from llmserve.engine.output.text import TextStream
from tests.chat.tools.understood import Understood, understand

HERMES = Reading("hermes", THINKING[0], with_calls=True)
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>'


def read(pieces: list[bytes], stops: tuple[str, ...] = ()) -> tuple[Understood, str | None]:
    reader = Reader(HERMES, stops)
    segments: list[Segment] = []
    for data in pieces:
        piece = reader.push(data)
        segments += piece.segments or ()
        if piece.stop is not None:
            return understand(segments), piece.stop
    piece = reader.flush()
    return understand([*segments, *(piece.segments or ())]), piece.stop


fragments = st.sampled_from(
    ["<think>", "</think>", CALL, "<tool_call>", "a", "b", "é", "\n", " ", "<", "{", "ab"]
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(fragments, max_size=8).map("".join),
    st.lists(st.sampled_from(["ab", "é", "<t", "b\n"]), max_size=2),
    st.data(),
)
def test_cuts_do_not_matter(text: str, stops: list[str], data: Any) -> None:
    encoded = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=8)))
    pieces = [encoded[a:b] for a, b in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]
    whole, stop = read([encoded], tuple(stops))
    assert read(pieces, tuple(stops)) == (whole, stop)


@given(st.text("ab<é\n ", max_size=20), st.lists(st.text("ab", min_size=1, max_size=2), max_size=2))
def test_plain_text_is_as_in_a_text_stream(text: str, stops: list[str]) -> None:
    stream = TextStream(stops)
    piece = stream.push(text.encode())
    plain = piece.text if piece.stop else piece.text + stream.flush().text
    found, stop = read([text.encode()], tuple(stops))
    assert (found.text, stop) == (plain, piece.stop)


def test_a_broken_character_is_replaced() -> None:
    found, _ = read([b"<think>\xe2", b"\x82</think>x\xff"])
    assert found == Understood("x�", "�", [])


@pytest.mark.parametrize(("text", "stop"), [("xSTOP", "STOP"), ("<think>STOP</think>x", None)])
def test_stop_strings_are_for_the_text(text: str, stop: str | None) -> None:
    found = read([text.encode()], ("STOP",))
    assert (found[0].text, found[1]) == ("x", stop)


def test_no_stop_string_goes_across_a_call() -> None:
    found, stop = read([f"a{CALL}b".encode()], ("ab",))
    assert (found.text, stop) == ("ab", None)


def test_every_character_is_counted_once() -> None:
    reader, text = Reader(HERMES, ("zz",)), f"<think>a</think>\n\nb z{CALL} z<too"
    count = sum(reader.push(bytes([byte])).num_chars for byte in text.encode())
    assert count + reader.held_len == len(text)
    assert count + reader.flush().num_chars == len(text)


def test_thoughts_are_counted_in_tokens() -> None:
    reader = Reader(HERMES)
    for piece in ("<think>", "a", "b", "</think>", "x"):
        reader.push(piece.encode())
    assert reader.num_thought_tokens == 4  # with the markers


def test_what_the_constraint_has_a_say_in() -> None:
    reader = Reader(HERMES)
    guarded = [reader.is_guarded]
    for piece in ("<think>", "a", "</think>", "x", "<tool_call>"):
        reader.push(piece.encode())
        guarded.append(reader.is_guarded)
    assert guarded == [True, False, False, True, True, True]
    channels = Reader(Reading("harmony"))
    guarded = [channels.is_guarded]
    for piece in ("<|channel|>", "analysis<|message|>", "a", "<|end|>", "<|start|>assistant"):
        channels.push(piece.encode())
        guarded.append(channels.is_guarded)
    channels.push(b"<|channel|>final<|message|>")
    assert not any(guarded)
    assert channels.is_guarded
