"""How few tokens a text can have, on vocabularies made up here; real ones are in test_llama."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmserve.engine.vocabulary import TokenBound, measure, min_tokens

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
