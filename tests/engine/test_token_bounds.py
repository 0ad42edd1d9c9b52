"""How few tokens a text can have, on vocabularies made up here; real ones come with `llama`."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.engine.token_bounds import (
    TokenBound,
    cutting_marks,
    measure,
    min_tokens,
    parts_of,
)

BYTE_TOKENS = [b"<0x%02X>" % byte for byte in range(256)]


def measured(
    tokenizer: str, texts: list[bytes], *, stripping: frozenset[int] = frozenset()
) -> TokenBound | None:
    """With "é" as a byte-level text's character for the byte 0xE9, and <0xNN> as byte tokens."""

    def piece_of(token: int) -> bytes:
        text = texts[token]
        if text.startswith(b"<0x"):
            return bytes([int(text[3:5], 16)])
        return text.decode().encode("latin-1") if tokenizer == "gpt2" else text

    return measure(tokenizer, len(texts), texts.__getitem__, piece_of, stripping.__contains__)


def test_byte_level_texts_count_as_what_they_stand_for() -> None:
    singles = [chr(byte).encode() for byte in range(256)]
    bound = measured("gpt2", [*singles, b"abc", "éééé".encode(), b"ab"])
    assert bound == TokenBound(4, b"")


def test_bytes_without_a_token_are_lost() -> None:
    assert measured("gpt2", [chr(b).encode() for b in range(256) if b not in (0, 0xE9)]) == (
        TokenBound(1, b"\x00\xe9")
    )
    assert measured("llama", [*BYTE_TOKENS, b"abcdefgh"]) == TokenBound(8, b"")
    bound = measured("gemma4", BYTE_TOKENS[1:])
    assert bound is not None
    assert bound.lost_bytes == b"\0"


def test_a_written_space_also_stands_for_its_own_three_bytes() -> None:
    bound = measured("llama", [*BYTE_TOKENS, "▁▁▁".encode()])
    assert bound == TokenBound(9, b"")


@pytest.mark.parametrize("tokenizer", ["bert", "t5", "rwkv", "whitespace", "hybriddna", ""])
def test_a_tokenizer_that_changes_text_has_no_bound(tokenizer: str) -> None:
    assert measured(tokenizer, BYTE_TOKENS) is None


def test_a_token_that_swallows_whitespace_leaves_no_bound() -> None:
    texts = [*BYTE_TOKENS, b"<|user|>", b"x"]
    assert measured("llama", texts) is not None
    assert measured("llama", texts, stripping=frozenset([256])) is None


@given(st.text(max_size=50), st.integers(1, 9), st.binary(max_size=5))
def test_the_least_number_of_tokens(text: str, max_token_bytes: int, lost: bytes) -> None:
    kept = [byte for byte in text.encode() if byte not in lost]
    pieces = [kept[i : i + max_token_bytes] for i in range(0, len(kept), max_token_bytes)]
    assert min_tokens(text, max_token_bytes, lost) == len(pieces)


# -- where a text can be cut ----------------------------------------------------------------------


def test_a_mark_that_overlaps_another_cuts_nothing() -> None:
    def marks(controls: list[str], *others: str) -> str | None:
        found = cutting_marks(controls, [*controls, *others])
        return found.pattern if found else None

    assert marks(["<a>", "<bc>"], "x", "<") == "<bc>|<a>"
    assert marks(["<a>"], ">\n") is None
    assert marks(["<a>"], "\n<") is None
    assert marks(["<a>"], "<<a>>") is None
    assert marks(["<a>", "<a><b>"]) == "<a><b>"
    assert marks([]) is None


SPECIALS = ["<a>", "<bb>", "<c", "\n\n", "<a><bb>", "b>\n"]


def tokenized(text: str) -> list[str]:
    """As llama.cpp: all of the longest special texts, then in what is left of the next longest."""
    parts = [text]
    for special in sorted(SPECIALS, key=len, reverse=True):
        split: list[str] = []
        for part in parts:
            if part not in SPECIALS:
                split += re.split(f"({re.escape(special)})", part)
            else:
                split.append(part)
        parts = [part for part in split if part]
    return parts


@given(st.lists(st.sampled_from([*SPECIALS, "<", "a", "b", ">", "\n"])).map("".join))
def test_parts_alone_have_the_tokens_of_the_whole(text: str) -> None:
    marks = cutting_marks(["<a>", "<bb>", "<c"], SPECIALS)
    assert marks
    parts = list(parts_of(text, marks, 2))
    assert "".join(parts) == text
    assert [token for part in parts for token in tokenized(part)] == tokenized(text)
