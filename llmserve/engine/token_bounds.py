"""How few tokens a text can have, and where it can be cut: what bounds tokenizing. Pure.

A text of N bytes has at least N / `max_token_bytes` tokens, if its tokenizer loses nothing. Those
of `LOSSLESS` lose nothing but single bytes that have no token (`lost_bytes`), and whitespace
beside a special token that strips it. Source: llama.cpp, `llama-vocab.cpp`.
"""

import re
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

# `tokenizer.ggml.model` of a GGUF. Others lowercase, merge or drop: bert, t5, whitespace, rwkv.
BYTE_LEVEL = "gpt2"  # texts are written in an alphabet of 256 characters, one for each byte
LOSSLESS = frozenset([BYTE_LEVEL, "llama", "gemma4"])


class TokenBound(NamedTuple):
    max_token_bytes: int  # of text that one token can stand for
    lost_bytes: bytes  # those that may vanish


def measure(
    tokenizer: str,
    num_tokens: int,
    text_of: Callable[[int], bytes],
    piece_of: Callable[[int], bytes],
    strips: Callable[[int], bool],
) -> TokenBound | None:
    """The bound of a vocabulary, or None where there is none.

    `text_of(token)` is how the vocabulary writes a token, `piece_of` the bytes it stands for and
    `strips` whether it swallows the whitespace beside it. The first is called for every token,
    so that this takes 35 ms for 49k tokens; the others for few.
    """
    if tokenizer not in LOSSLESS:
        return None
    longest = 1
    known: set[bytes] = set()
    for token in range(num_tokens):
        text = text_of(token)
        # A space is written with three bytes, and such a text also stands for those three: only
        # byte-level pieces are the right measure. They are never longer than their texts.
        if len(text) > longest:
            longest = max(longest, len(piece_of(token) if tokenizer == BYTE_LEVEL else text))
        if len(text) <= 2 or text[0] in b"<[":
            if len(text) <= 2 or text.startswith(b"<0x"):
                known.add(piece_of(token))
            # llama.cpp sets this by the model's name: for <mask>, [MASK] or all special tokens.
            if strips(token):
                return None
    return TokenBound(longest, bytes(b for b in range(256) if bytes([b]) not in known))


def min_tokens(text: str, max_token_bytes: int, lost_bytes: bytes) -> int:
    """The least number of tokens of `text`. Raises `UnicodeEncodeError` for a lone surrogate."""
    num_bytes = len(text.encode().translate(None, lost_bytes))
    return -(-num_bytes // max_token_bytes)


def cutting_marks(controls: Collection[str], specials: Collection[str]) -> re.Pattern[str] | None:
    """Finds those of `controls` behind which a text can be cut, each part tokenized alone.

    `specials` are all texts that the tokenizer looks for, the longest first. One that overlaps
    another is none: which of them it is can depend on what follows.
    """
    marks = [mark for mark in controls if not any(_overlap(mark, text) for text in specials)]
    marks.sort(key=len, reverse=True)
    return re.compile("|".join(map(re.escape, marks))) if marks else None


def _overlap(mark: str, other: str) -> bool:
    """Whether a text can have both with a part in common, other than `other` inside of `mark`."""
    if mark == other:
        return False
    lengths = range(1, min(len(mark), len(other)))
    return mark in other or any(
        mark.endswith(other[:k]) or other.endswith(mark[:k]) for k in lengths
    )


def parts_of(text: str, marks: re.Pattern[str], size: int) -> Iterator[str]:
    """`text` cut behind the first mark in it after each `size` characters."""
    begin = 0
    while match := marks.search(text, begin + size):
        yield text[begin : match.end()]
        begin = match.end()
    yield text[begin:]
