"""Log probabilities in the ways that servers of the OpenAI protocol write them -> core's."""

import re
from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta, Struct

from llmserve.core import SampledLogprob, TokenLogprob

UNKNOWN_TOKEN = -1  # providers tell a token's text, not its id
_BYTE = re.compile(r"\\x([0-9a-f]{2})")


class TopLogprob(Struct):
    token: str = ""
    logprob: float | None = None
    bytes: list[Annotated[int, Meta(ge=0, le=255)]] | None = None


class ContentLogprob(TopLogprob):
    top_logprobs: list[TopLogprob] | None = None


class Logprobs(Struct):
    """`content` is of chats (and of llama-server's completions), the lists are of completions."""

    content: list[ContentLogprob] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


def read_logprobs(wire: Logprobs) -> tuple[SampledLogprob, ...]:
    if wire.content is not None:
        return tuple(
            SampledLogprob(_token(each), tuple(map(_token, each.top_logprobs or ())))
            for each in wire.content
        )
    return tuple(_legacy(wire))


def _token(wire: TopLogprob) -> TokenLogprob:
    data = wire.token.encode(errors="replace") if wire.bytes is None else bytes(wire.bytes)
    return TokenLogprob(UNKNOWN_TOKEN, data, _value(wire.logprob))


def _legacy(wire: Logprobs) -> Iterator[SampledLogprob]:
    values = wire.token_logprobs or []
    tops = wire.top_logprobs or []
    for index, token in enumerate(wire.tokens or ()):
        value = values[index] if index < len(values) else None
        top = (tops[index] if index < len(tops) else None) or {}
        yield SampledLogprob(
            TokenLogprob(UNKNOWN_TOKEN, _bytes(token), _value(value)),
            tuple(TokenLogprob(UNKNOWN_TOKEN, _bytes(text), v) for text, v in top.items()),
        )


def _value(value: float | None) -> float:
    """OpenAI's word for "not among the most likely" is -9999."""
    return -9999.0 if value is None else value


def _bytes(token: str) -> bytes:
    """`bytes:\\xf0` is a part of a character, which has no text."""
    if token.startswith("bytes:"):
        return bytes(int(value, 16) for value in _BYTE.findall(token))
    return token.encode(errors="replace")
